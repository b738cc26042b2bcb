//! Join tokens: secrets that let a node become a member. Group 0 keeps what proves them, so every node that leads it can admit, and the
//! entry that admits a node uses its token up.
//!
//! Whether a token still holds is decided where the entry is applied, by the latest reading of the schedule clock that any such entry has
//! carried: a leader whose clock is behind does not bring back what has expired.

use std::collections::BTreeMap;

use base::ScheduleTime;
use base::codec::{Malformed, Reader, Write};
use consensus::codec::TOKEN;

/// Tokens that a cluster keeps, those included that are used up. More are not made.
pub const TOKENS_MAX: usize = 100;

/// What a token is proved with: the SHA-256 of its secret. It is not shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TokenKey(pub [u8; 32]);

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenKey")
    }
}

/// A token as the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    /// Names it; not 0, and no secret.
    pub id: u64,
    /// What it is proved with.
    pub key: TokenKey,
    /// From then on it admits nobody.
    pub expires: ScheduleTime,
    /// It admits one node only.
    pub once: bool,
    /// Whom it admits never votes by itself.
    pub replica: bool,
    /// Nodes that it has admitted.
    pub uses: u64,
}

/// Why a token admits nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    /// It was never made, was revoked, or has expired long ago.
    Unknown,
    /// Its time is over.
    Expired,
    /// It was for one node, and has admitted one.
    Used,
    /// It is for nodes that do not vote.
    OnlyReplicas,
}

/// How a node is admitted, as the entry that does it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joining {
    /// The token that was proved; nothing: it needs none.
    pub token: Option<u64>,
    /// The leader's clock.
    pub at: ScheduleTime,
    /// It does not vote by itself.
    pub replica: bool,
}

/// An entry about a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenStep {
    /// It admits from now on. What has expired is forgotten.
    Create {
        /// The token.
        token: JoinToken,
        /// The leader's clock.
        at: ScheduleTime,
    },
    /// It admits nobody any more.
    Revoke(u64),
}

/// The tokens of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    known: BTreeMap<u64, JoinToken>,
    /// The latest reading that an entry has carried.
    latest: ScheduleTime,
}

impl Tokens {
    /// The token of this id.
    pub fn get(&self, id: u64) -> Option<&JoinToken> {
        self.known.get(&id)
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = &JoinToken> {
        self.known.values()
    }

    /// Whether there is no place for another one at this time.
    pub fn is_full(&self, at: ScheduleTime) -> bool {
        let at = at.max(self.latest);
        self.known.values().filter(|token| token.expires > at).count() >= TOKENS_MAX
    }

    /// Whether a node may be admitted so.
    ///
    /// # Errors
    /// Why not.
    pub fn judge(&self, admission: &Joining) -> Result<(), Invalid> {
        let Some(id) = admission.token else { return Ok(()) };
        let token = self.known.get(&id).ok_or(Invalid::Unknown)?;
        match token {
            _ if token.expires <= admission.at.max(self.latest) => Err(Invalid::Expired),
            _ if token.once && token.uses > 0 => Err(Invalid::Used),
            _ if token.replica && !admission.replica => Err(Invalid::OnlyReplicas),
            _ => Ok(()),
        }
    }

    /// Uses a token up. False: it admits nobody, and nothing has changed.
    pub(crate) fn admit(&mut self, admission: &Joining) -> bool {
        if self.judge(admission).is_err() {
            return false;
        }
        self.latest = self.latest.max(admission.at);
        if let Some(token) = admission.token.and_then(|id| self.known.get_mut(&id)) {
            token.uses += 1;
        }
        true
    }

    pub(crate) fn apply(&mut self, step: TokenStep) {
        match step {
            TokenStep::Create { token, at } => {
                self.latest = self.latest.max(at);
                let latest = self.latest;
                self.known.retain(|_, token| token.expires > latest);
                if self.known.len() < TOKENS_MAX {
                    self.known.entry(token.id).or_insert(token);
                }
            }
            TokenStep::Revoke(id) => drop(self.known.remove(&id)),
        }
    }

    pub(crate) fn is_initial(&self) -> bool {
        *self == Tokens::default()
    }

    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_u64(self.latest.0);
        bytes.put_varint(self.known.len() as u64);
        self.known.values().for_each(|token| token.encode(bytes));
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Tokens, Malformed> {
        let (latest, count) = (ScheduleTime(reader.u64()?), reader.varint()?);
        let read = |_| JoinToken::decode(reader).map(|token| (token.id, token));
        Ok(Tokens { known: (0..count).map(read).collect::<Result<_, _>>()?, latest })
    }
}

impl JoinToken {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_u64(self.id);
        bytes.extend_from_slice(&self.key.0);
        bytes.put_u64(self.expires.0);
        bytes.put_u8(u8::from(self.once) | u8::from(self.replica) << 1);
        bytes.put_varint(self.uses);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<JoinToken, Malformed> {
        let (id, key, expires) = (reader.u64()?, TokenKey(reader.array()?), ScheduleTime(reader.u64()?));
        let flags = reader.u8()?;
        if id == 0 || flags > 3 {
            return Err(Malformed);
        }
        Ok(JoinToken { id, key, expires, once: flags & 1 != 0, replica: flags & 2 != 0, uses: reader.varint()? })
    }
}

impl Joining {
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_u64(self.token.unwrap_or_default());
        bytes.put_u64(self.at.0);
        bytes.put_u8(u8::from(self.replica));
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Joining, Malformed> {
        let (token, at) = (reader.u64()?, ScheduleTime(reader.u64()?));
        let replica = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(Malformed),
        };
        Ok(Joining { token: (token != 0).then_some(token), at, replica })
    }
}

const CREATE: u8 = 0;
const REVOKE: u8 = 1;

impl TokenStep {
    /// The entry.
    pub fn entry(&self) -> Vec<u8> {
        let mut bytes = vec![TOKEN];
        match self {
            TokenStep::Create { token, at } => {
                bytes.put_u8(CREATE);
                bytes.put_u64(at.0);
                token.encode(&mut bytes);
            }
            TokenStep::Revoke(id) => {
                bytes.put_u8(REVOKE);
                bytes.put_u64(*id);
            }
        }
        bytes
    }

    /// Reads what follows the kind of the entry.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(bytes: &[u8]) -> Result<TokenStep, Malformed> {
        let mut reader = Reader::new(bytes);
        let step = match reader.u8()? {
            CREATE => {
                let at = ScheduleTime(reader.u64()?);
                TokenStep::Create { token: JoinToken::decode(&mut reader)?, at }
            }
            REVOKE => TokenStep::Revoke(reader.u64()?),
            _ => return Err(Malformed),
        };
        reader.finish()?;
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: u64, expires: u64) -> JoinToken {
        let key = TokenKey([7; 32]);
        JoinToken { id, key, expires: ScheduleTime(expires), once: false, replica: false, uses: 0 }
    }

    fn create(token: JoinToken, at: u64) -> TokenStep {
        TokenStep::Create { token, at: ScheduleTime(at) }
    }

    fn admission(token: u64, at: u64) -> Joining {
        Joining { token: Some(token), at: ScheduleTime(at), replica: false }
    }

    /// Goal: an entry reads back, nothing else is one, and no log shows what a token is proved with.
    #[test]
    fn steps_and_what_they_lead_to_read_back() {
        let made = JoinToken { once: true, replica: true, ..token(3, 50) };
        for step in [create(made.clone(), 7), TokenStep::Revoke(3)] {
            let bytes = step.entry();
            assert_eq!((bytes[0], TokenStep::decode(&bytes[1..])), (TOKEN, Ok(step)));
            assert!((1..bytes.len()).all(|length| TokenStep::decode(&bytes[1..length]).is_err()));
        }
        let mut tokens = Tokens::default();
        tokens.apply(create(made.clone(), 7));
        assert!(tokens.admit(&Joining { replica: true, ..admission(3, 9) }));
        let mut bytes = Vec::new();
        tokens.encode(&mut bytes);
        assert_eq!(Tokens::decode(&mut Reader::new(&bytes)), Ok(tokens));
        assert!(format!("{made:?}").contains("key: TokenKey,"));
    }

    /// Goal: a token admits while it holds, as often as it may, and whom it is for; a clock that is behind brings nothing back.
    #[test]
    fn a_token_admits_whom_it_is_for_and_no_longer_than_it_holds() {
        let mut tokens = Tokens::default();
        let made =
            [token(1, 50), JoinToken { once: true, ..token(2, 100) }, JoinToken { replica: true, ..token(3, 100) }];
        made.into_iter().for_each(|made| tokens.apply(create(made, 10)));
        assert!(tokens.admit(&admission(1, 20)) && tokens.admit(&admission(1, 21)), "many");
        assert!(tokens.admit(&admission(2, 22)));
        assert_eq!(tokens.judge(&admission(2, 23)), Err(Invalid::Used));
        assert_eq!(tokens.judge(&admission(3, 23)), Err(Invalid::OnlyReplicas));
        assert!(tokens.admit(&Joining { replica: true, ..admission(3, 60) }));
        assert_eq!(tokens.judge(&admission(1, 30)), Err(Invalid::Expired), "another clock was further on");
        assert_eq!(tokens.judge(&admission(4, 30)), Err(Invalid::Unknown));
        tokens.apply(TokenStep::Revoke(3));
        assert_eq!(tokens.judge(&Joining { replica: true, ..admission(3, 60) }), Err(Invalid::Unknown));
        let none = Joining { token: None, ..admission(0, 1) };
        assert!(tokens.admit(&none) && tokens.get(2).is_some_and(|token| token.uses == 1));
    }

    /// Goal: there are never more than so many, and what has expired makes room.
    #[test]
    fn only_so_many_are_kept() {
        let mut tokens = Tokens::default();
        (1..=TOKENS_MAX as u64 + 1).for_each(|id| tokens.apply(create(token(id, 50), 1)));
        assert!(tokens.iter().count() == TOKENS_MAX && tokens.is_full(ScheduleTime(49)));
        assert!(!tokens.is_full(ScheduleTime(50)));
        tokens.apply(create(token(7_000, 90), 50));
        assert_eq!(tokens.iter().map(|token| token.id).collect::<Vec<_>>(), [7_000]);
    }
}
