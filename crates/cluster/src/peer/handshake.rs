//! Who is at the other end of a connection, and whether it may be.
//!
//! Both sides say who they are and what cluster they belong to. If the settings name a secret, both prove that they know it, by a hash
//! over it and over both sides' random numbers and names, so that nothing can be replayed or reflected and the secret never travels.

use hmac::{Hmac, KeyInit, Mac};
use replica::Members;
use sha2::Sha256;
use tls::Facts;

use crate::forming::Greeting;
use crate::peer::wire::{Hello, PROTOCOL};

/// Why a connection was refused. The code is what operators and logs name it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: &'static str,
    pub(crate) text: String,
}

/// The code for a node that is no member any more.
pub(crate) const REMOVED: &str = "removed-member";

/// The code for a connection that is not encrypted as it should be.
pub(crate) const TLS: &str = "tls";

/// The code for a node that is asked to admit another one, and cannot.
pub(crate) const NOT_LEADER: &str = "not-leader";

/// The code for a join token that admits nobody.
pub(crate) const BAD_TOKEN: &str = "bad-token";

/// Codes that a refusal can have.
pub(crate) const CODES: [&str; 13] = [
    TLS,
    "version",
    "cluster-token-mismatch",
    "cluster-id-mismatch",
    "groups-mismatch",
    "name-taken",
    "bad-name",
    REMOVED,
    "stale-incarnation",
    "bad-secret",
    BAD_TOKEN,
    "not-admitted",
    NOT_LEADER,
];

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    /// A member of this cluster, though perhaps not known as one here yet.
    Member(u64),
    /// A node that only wants to know whom it has met, because one of the two has no cluster.
    Stranger,
    /// It was a member of this cluster, and is to be told that it is none any more.
    Removed,
}

/// Judges the other side by what it says.
pub(crate) fn judge(own: &Greeting, members: &Members, hello: &Hello) -> Result<Guest, Refusal> {
    let other = &hello.greeting;
    let refuse = |code, text| Err(Refusal { code, text });
    let (here, there) = (&own.me.name, &other.me.name);
    if hello.protocol != PROTOCOL {
        return refuse(
            "version",
            format!("{there} speaks version {} of the peer protocol, {here} version {PROTOCOL}", hello.protocol),
        );
    }
    if !base::is_node_name(there) {
        let text =
            format!("{there:?} is no name for a node: 1 to 63 of A-Z, a-z, 0-9, . _ and -, and neither . nor ..");
        return refuse("bad-name", text);
    }
    // Members of one cluster are known by its id, which their label is part of: whoever was one before needs no setting to come back.
    let is_one_cluster = own.cluster.is_some() && own.cluster == other.cluster;
    if other.label != own.label && !is_one_cluster {
        return refuse(
            "cluster-token-mismatch",
            format!("cluster.clusterToken is {} at {there} and {} at {here}", other.label, own.label),
        );
    }
    if hello.to != 0 && hello.to != own.me.id {
        return refuse("stale-incarnation", format!("{there} looks for an earlier data directory of {here}"));
    }
    let (Some(ours), Some(theirs)) = (own.cluster, other.cluster) else { return Ok(Guest::Stranger) };
    if ours != theirs {
        return refuse("cluster-id-mismatch", format!("{there} belongs to cluster {theirs}, {here} to cluster {ours}"));
    }
    if other.shards != own.shards {
        return refuse("groups-mismatch", format!("{there} has {} shards, {here} has {}", other.shards, own.shards));
    }
    if members.was_removed(other.me.id) {
        return refuse(REMOVED, format!("{there} was removed from the cluster"));
    }
    // Nobody has the id of a cluster that has not admitted it. That it is a member may not be known here yet: this node has just been
    // admitted itself, or was away while others came, perhaps everybody who could tell it so.
    Ok(Guest::Member(other.me.id))
}

/// Whether the certificate that the other side has shown has the name that it says.
pub(crate) fn check_certificate(facts: Option<&Facts>, hello: &Hello) -> Result<(), Refusal> {
    let name = &hello.greeting.me.name;
    match facts {
        Some(facts) if !facts.names.contains(name) => {
            let names = facts.names.join(", ");
            let text = format!("{name} shows a certificate of {names}; a member's has the node's name");
            Err(Refusal { code: TLS, text })
        }
        _ => Ok(()),
    }
}

/// What is proved: nothing that proves the one proves the other.
pub(crate) const IS_PEER: &[u8] = b"codeq peer";
pub(crate) const HAS_TOKEN: &[u8] = b"codeq join token";

/// What a side that knows the secret can compute: over the other side's random number first, then its own, and both identities.
pub(crate) fn proof(what: &[u8], secret: &[u8], prover: &Hello, challenger: &Hello) -> [u8; 32] {
    let mut mac = prover_mac(secret, prover, challenger);
    mac.update(what);
    mac.finalize().into_bytes().into()
}

/// Whether `given` is the proof that `prover` owes `challenger`. Takes the same time for every wrong one.
pub(crate) fn is_proof(what: &[u8], secret: &[u8], prover: &Hello, challenger: &Hello, given: &[u8]) -> bool {
    let mut mac = prover_mac(secret, prover, challenger);
    mac.update(what);
    mac.verify_slice(given).is_ok()
}

fn prover_mac(secret: &[u8], prover: &Hello, challenger: &Hello) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("a key may have any length");
    for side in [challenger, prover] {
        let mut bytes = Vec::new();
        side.encode(&mut bytes);
        mac.update(&(bytes.len() as u64).to_le_bytes());
        mac.update(&bytes);
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forming::{ClusterId, Plan};
    use replica::Member;

    fn greeting(name: &str, id: u64, cluster: Option<u128>) -> Greeting {
        Greeting {
            label: "codeq".into(),
            me: Member { id, name: name.into(), peer: format!("{name}:7000"), url: String::new() },
            shards: 1,
            plan: Plan::Join,
            bootstrap: false,
            accepted: None,
            cluster: cluster.map(ClusterId),
            acquaintances: vec![],
        }
    }

    fn hello(greeting: Greeting) -> Hello {
        Hello { protocol: PROTOCOL, nonce: [7; 16], to: 0, greeting }
    }

    #[test]
    fn members_are_let_in_and_everybody_else_learns_why_not() {
        let own = greeting("a", 1, Some(9));
        let members = Members::of_voters([own.me.clone(), greeting("b", 2, None).me]);
        let judged = |hello: &Hello| judge(&own, &members, hello);
        assert_eq!(judged(&hello(greeting("b", 2, Some(9)))), Ok(Guest::Member(2)));
        assert_eq!(judged(&hello(greeting("b", 2, None))), Ok(Guest::Stranger));
        let unlabelled = Greeting { label: "x".into(), ..greeting("b", 2, Some(9)) };
        assert_eq!(judged(&hello(unlabelled)), Ok(Guest::Member(2)), "its cluster is known");
        assert_eq!(judged(&hello(greeting("c", 3, Some(9)))), Ok(Guest::Member(3)), "it was admitted by others");
        assert_eq!(judged(&hello(greeting("b", 3, Some(9)))), Ok(Guest::Member(3)), "it has taken the place of b");
        let cases = [
            (Hello { protocol: PROTOCOL + 1, ..hello(greeting("b", 2, Some(9))) }, "version"),
            (hello(Greeting { label: "x".into(), ..greeting("b", 2, Some(8)) }), "cluster-token-mismatch"),
            (hello(Greeting { label: "x".into(), ..greeting("b", 2, None) }), "cluster-token-mismatch"),
            (Hello { to: 5, ..hello(greeting("b", 2, Some(9))) }, "stale-incarnation"),
            (hello(greeting("..", 2, None)), "bad-name"),
            (hello(greeting("b/c", 2, None)), "bad-name"),
            (hello(greeting("b", 2, Some(8))), "cluster-id-mismatch"),
            (hello(Greeting { shards: 2, ..greeting("b", 2, Some(9)) }), "groups-mismatch"),
        ];
        for (hello, expected) in cases {
            let refusal = judged(&hello).expect_err(expected);
            assert_eq!(refusal.code, expected);
            assert!(CODES.contains(&refusal.code));
        }
    }

    #[test]
    fn a_proof_holds_for_one_secret_one_pair_and_one_direction() {
        let (one, other) = (hello(greeting("a", 1, None)), hello(greeting("b", 2, None)));
        let given = proof(IS_PEER, b"secret", &one, &other);
        assert!(is_proof(IS_PEER, b"secret", &one, &other, &given));
        assert!(!is_proof(IS_PEER, b"another", &one, &other, &given));
        assert!(!is_proof(IS_PEER, b"secret", &other, &one, &given), "reflected");
        assert!(!is_proof(HAS_TOKEN, b"secret", &one, &other, &given), "of something else");
        let later = Hello { nonce: [8; 16], ..other };
        assert!(!is_proof(IS_PEER, b"secret", &one, &later, &given), "replayed");
    }
}
