//! Join tokens: made, listed and revoked by administrators, and proved by nodes that want to become members.
//!
//! A token's text is `codeq_join_`, its id as 16 hex digits, `_`, and its secret as 64; where connections are encrypted, `_` and the
//! fingerprint of the cluster's first authority as 64 more, so that the newcomer knows whom it joins. The cluster keeps the SHA-256 of the secret. The
//! newcomer proves that it knows the secret as SCRAM (RFC 5802) does: it sends the secret, masked with a hash under that SHA-256 over
//! what both sides have said first. Who listens cannot take off the mask, and who reads what the cluster keeps does not know the secret.

use base::Index;
use base::machine::StateMachine;
use base::{Millis, ScheduleTime};
use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use replica::tokens::{Invalid, TOKENS_MAX, TokenKey};
use replica::{JoinToken, Reply, TokenStep, Unavailable};
use sha2::{Digest, Sha256};
use tls::Fingerprint;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::inbox::Control;
use crate::lane::ReplyTo;
use crate::node::Handle;
use crate::operate::{Action, CHANGE_MAX, Done, Refused};
use crate::peer::Shared;
use crate::peer::admission::RECORDS;
use crate::peer::handshake::{HAS_TOKEN, proof};
use crate::peer::wire::Hello;

/// How long a token holds at most.
pub const TOKEN_TTL_MAX: Millis = Millis(30 * 24 * 3_600_000);

/// How long it holds, if nothing else is said.
pub const TOKEN_TTL: Millis = Millis(3_600_000);

const PREFIX: &str = "codeq_join_";

/// A join token as a newcomer is given it. Whoever has it may join; it is shown nowhere but where it is made.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinSecret {
    id: u64,
    secret: [u8; 32],
    authority: Option<Fingerprint>,
}

impl std::fmt::Debug for JoinSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinSecret({:016x})", self.id)
    }
}

impl JoinSecret {
    fn new(authority: Option<Fingerprint>) -> JoinSecret {
        let (mut id, mut secret) = ([0; 8], [0; 32]);
        for bytes in [&mut id[..], &mut secret[..]] {
            getrandom::fill(bytes).expect("the operating system has random numbers");
        }
        // 0 is nobody's.
        JoinSecret { id: u64::from_le_bytes(id).max(1), secret, authority }
    }

    /// The token of this text; nothing: it is none.
    pub fn read(text: &str) -> Option<JoinSecret> {
        let (id, rest) = text.trim().strip_prefix(PREFIX)?.split_once('_')?;
        let (secret, authority) = match rest.split_once('_') {
            Some((secret, authority)) => (secret, Some(Fingerprint(bytes(authority)?))),
            None => (rest, None),
        };
        let id = u64::from_be_bytes(bytes(id)?);
        (id != 0).then_some(JoinSecret { id, secret: bytes(secret)?, authority })
    }

    /// Its text, for the newcomer alone.
    pub fn reveal(&self) -> String {
        let secret = HEXLOWER.encode(&self.secret);
        let authority = self.authority.map(|authority| format!("_{authority}")).unwrap_or_default();
        format!("{PREFIX}{:016x}_{secret}{authority}", self.id)
    }

    /// The authority that vouches for the members of the cluster that made it; nothing: their connections are not encrypted.
    pub fn authority(&self) -> Option<Fingerprint> {
        self.authority
    }

    /// What names it.
    pub fn id(&self) -> u64 {
        self.id
    }

    fn key(&self) -> TokenKey {
        TokenKey(Sha256::digest(self.secret).into())
    }

    /// What shows `challenger` that `prover` knows the secret.
    pub(crate) fn prove(&self, prover: &Hello, challenger: &Hello) -> [u8; 32] {
        masked(self.secret, self.key(), prover, challenger)
    }
}

/// Bytes as twice as many hex digits.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// Whether `given` shows `challenger` that `prover` knows the secret that this key is of.
pub(crate) fn is_proved(key: TokenKey, prover: &Hello, challenger: &Hello, given: [u8; 32]) -> bool {
    // How long the comparison takes says nothing of use: nobody can choose what is compared.
    *Sha256::digest(masked(given, key, prover, challenger)) == key.0
}

fn masked(mut secret: [u8; 32], key: TokenKey, prover: &Hello, challenger: &Hello) -> [u8; 32] {
    let mask = proof(HAS_TOKEN, &key.0, prover, challenger);
    secret.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    secret
}

/// What a token is to allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// How long it holds; more than 0, at most [`TOKEN_TTL_MAX`].
    pub ttl: Millis,
    /// It admits one node only.
    pub once: bool,
    /// Whom it admits does not vote, until an operator promotes it.
    pub replica: bool,
}

/// What a newcomer must be told, besides its token, to find this cluster and to be understood by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meeting {
    /// Peer addresses of the members.
    pub addresses: Vec<String>,
    /// Which cluster is meant.
    pub label: String,
    /// Raft groups.
    pub shards: u16,
    /// Its connections must be encrypted.
    pub encrypted: bool,
    /// It must know a secret besides.
    pub has_secret: bool,
}

impl<S: StateMachine> Handle<S> {
    /// Makes a join token; who may is looked at where it is done. Its secret is known to the caller only.
    ///
    /// # Errors
    /// It was not made.
    pub async fn create_token(&self, grant: Grant) -> Result<(JoinSecret, JoinToken, Done), Refused> {
        let peers = self.common.peers.get().ok_or(Refused::SingleMode)?;
        let authority = peers.config.tls.as_ref().and_then(|tls| tls.fingerprints().first().copied());
        let secret = JoinSecret::new(authority);
        let at = peers.clock.now().wall;
        let token = JoinToken {
            id: secret.id,
            key: secret.key(),
            expires: ScheduleTime(at.0.saturating_add(grant.ttl.min(TOKEN_TTL_MAX).0)),
            once: grant.once,
            replica: grant.replica,
            uses: 0,
        };
        let done = self.act(Action::Token(TokenStep::Create { token: token.clone(), at })).await?;
        Ok((secret, token, done))
    }

    /// Revokes a join token: it admits nobody any more.
    ///
    /// # Errors
    /// It was not done, or there is no such token.
    pub async fn revoke_token(&self, id: u64) -> Result<Done, Refused> {
        self.act(Action::Token(TokenStep::Revoke(id))).await
    }

    /// The join tokens that are known here, and the time by which they expire.
    pub fn tokens(&self) -> (Vec<JoinToken>, ScheduleTime) {
        let Some(peers) = self.common.peers.get() else { return (Vec::new(), ScheduleTime(0)) };
        (peers.members().tokens().iter().cloned().collect(), peers.clock.now().wall)
    }

    /// How a newcomer meets this cluster.
    ///
    /// # Errors
    /// This node is alone.
    pub fn meeting(&self) -> Result<Meeting, Refused> {
        let peers = self.common.peers.get().ok_or(Refused::SingleMode)?;
        let greeting = peers.greeting();
        let mut addresses: Vec<String> = peers.members().iter().map(|member| member.peer.clone()).collect();
        addresses.retain(|address| !address.is_empty());
        Ok(Meeting {
            addresses,
            label: greeting.label,
            shards: greeting.shards,
            encrypted: peers.config.tls.is_some(),
            has_secret: peers.config.secret.is_some(),
        })
    }
}

/// Makes or revokes a token here, where this node leads group 0.
pub(crate) async fn perform<S: StateMachine>(peers: &Shared<S>, step: &TokenStep) -> Result<Done, Refused> {
    // The time that counts is this node's.
    let at = peers.clock.now().wall;
    let members = peers.members();
    let step = match step {
        TokenStep::Create { .. } if members.tokens().is_full(at) => {
            return Err(Refused::TooManyTokens(TOKENS_MAX));
        }
        TokenStep::Create { token, .. } => TokenStep::Create { token: token.clone(), at },
        TokenStep::Revoke(id) if members.tokens().get(*id).is_none() => return Err(Refused::UnknownToken(*id)),
        TokenStep::Revoke(id) => TokenStep::Revoke(*id),
    };
    let (sender, reply) = oneshot::channel();
    peers.common.inbox.control(Control::Token(step.clone(), ReplyTo::Local { sender, lane: None }));
    let position = match timeout(CHANGE_MAX, reply).await {
        Ok(Ok(Reply::Applied { position, .. })) => position,
        Ok(Ok(Reply::Unavailable(Unavailable::Overloaded))) => return Err(Refused::Busy),
        Ok(Ok(Reply::Unavailable(why))) if why.is_definite() => return Err(Refused::NoLeader),
        _ => return Err(Refused::Unknown),
    };
    match step {
        // Others were made at the same time.
        TokenStep::Create { token, .. } if peers.members().tokens().get(token.id).is_none() => {
            Err(Refused::TooManyTokens(TOKENS_MAX))
        }
        _ => Ok(Done {
            position: Some(position).filter(|at| at.index > Index(0)),
            ..crate::operate::done(peers, RECORDS, String::new())
        }),
    }
}

/// Why a token admits nobody, for the newcomer and the log.
pub(crate) fn why(invalid: Invalid, id: u64) -> String {
    match invalid {
        Invalid::Unknown => "its join token is not known here: it is wrong, was revoked, or has expired".into(),
        Invalid::Expired => format!("its join token {id:016x} has expired"),
        Invalid::Used => format!("its join token {id:016x} was for one node, and has been used"),
        Invalid::OnlyReplicas => format!("its join token {id:016x} is for replicas: start it with --replica"),
    }
}

#[cfg(test)]
mod tests {
    use replica::Member;

    use super::*;
    use crate::forming::{Greeting, Plan};
    use crate::peer::wire::PROTOCOL;

    /// Goal: a token reads back from its text and from nothing else, and only that text shows its secret.
    #[test]
    fn a_token_reads_back_from_its_text() {
        let secret = JoinSecret::new(None);
        let text = secret.reveal();
        assert_eq!(JoinSecret::read(&format!("{text}\n")), Some(secret.clone()));
        assert!((0..text.len()).all(|length| JoinSecret::read(&text[..length]).is_none()));
        let vouched = JoinSecret { authority: Some(Fingerprint([0xab; 32])), ..secret };
        assert_eq!(vouched.reveal(), format!("{text}_{}", "ab".repeat(32)));
        assert_eq!(JoinSecret::read(&vouched.reveal()), Some(vouched));
        assert!(JoinSecret::read(&format!("{text}_{}", "ab".repeat(31))).is_none());
        assert!(JoinSecret::read(&format!("{text}0")).is_none());
        assert!(JoinSecret::read(&format!("{PREFIX}{:016x}_{}", 0, "0".repeat(64))).is_none());
        assert!(JoinSecret::read(&format!("{PREFIX}{}_{}", "+".repeat(16), "é".repeat(32))).is_none());
        let shown = format!("{secret:?}");
        assert!(shown.contains(&format!("{:016x}", secret.id())) && !shown.contains(&text[text.len() - 16..]));
        assert_ne!(secret, JoinSecret::new(None));
    }

    fn hello(name: &str, nonce: u8) -> Hello {
        let greeting = Greeting {
            label: "codeq".into(),
            me: Member { id: 1, name: name.into(), ..Member::default() },
            shards: 1,
            plan: Plan::Join,
            bootstrap: false,
            accepted: None,
            cluster: None,
            acquaintances: vec![],
        };
        Hello { protocol: PROTOCOL, nonce: [nonce; 16], to: 0, greeting }
    }

    /// Goal: who knows the secret proves it to one challenger once; who knows only what the cluster keeps does not.
    #[test]
    fn only_who_knows_the_secret_proves_it() {
        let secret = JoinSecret::new(None);
        let (new, leader) = (hello("new", 1), hello("leader", 2));
        let given = secret.prove(&new, &leader);
        assert!(is_proved(secret.key(), &new, &leader, given));
        assert!(!is_proved(secret.key(), &new, &hello("leader", 3), given), "replayed");
        assert!(!is_proved(secret.key(), &leader, &new, given), "reflected");
        assert!(!is_proved(JoinSecret::new(None).key(), &new, &leader, given), "another token");
        let stolen = JoinSecret { secret: secret.key().0, ..secret };
        assert!(!is_proved(secret.key(), &new, &leader, masked(stolen.secret, secret.key(), &new, &leader)));
    }
}
