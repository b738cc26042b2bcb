//! Who becomes a member. The leader of group 0 decides, and its record there is the admission; the leaders of the other groups follow.

use base::codec::{Malformed, Reader, Write};
use base::machine::StateMachine;
use replica::tokens::Invalid;
use replica::{Joining, Member, MemberChange, Members};

use crate::inbox::Control;
use crate::lane::ReplyTo;
use crate::node::Cluster;
use crate::peer::handshake::{BAD_TOKEN, NOT_LEADER, Refusal};
use crate::peer::wire::Hello;
use crate::peer::{PeerConfig, Shared};
use crate::tokens::{is_proved, why};
use replica::Reply;
use tokio::sync::oneshot;

pub(crate) use replica::leadership::RECORDS;

/// Nodes that are not voters yet, at one time.
const JOINING_MAX: usize = 4;

/// Members that do not vote, until they are promoted.
const REPLICAS_MAX: usize = 16;

/// What a node asks for when it wants to become a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// It does not want to vote by itself.
    replica: bool,
    /// The join token that it has, and the proof that it knows its secret.
    token: Option<(u64, [u8; 32])>,
}

impl Asked {
    pub(crate) fn new(config: &PeerConfig, own: &Hello, theirs: &Hello) -> Asked {
        let token = config.token.as_ref();
        let token = token.map(|token| (token.id(), token.prove(own, theirs)));
        Asked { replica: config.replica, token }
    }

    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_u8(u8::from(self.replica));
        if let Some((id, proof)) = &self.token {
            bytes.put_u64(*id);
            bytes.extend_from_slice(proof);
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Asked, Malformed> {
        let mut reader = Reader::new(bytes);
        let replica = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(Malformed),
        };
        let token = if reader.is_empty() { None } else { Some((reader.u64()?, reader.array()?)) };
        reader.finish()?;
        Ok(Asked { replica, token })
    }
}

/// Makes a node a learner of this cluster. Twice is as good as once. `hellos`: what it said first, and what this node said.
pub(crate) async fn admit<S: StateMachine>(
    shared: &Shared<S>,
    asked: &Asked,
    hellos: (&Hello, &Hello),
) -> Result<Cluster, Refusal> {
    let not_now = |text: &str| Err(Refusal { code: NOT_LEADER, text: text.into() });
    let newcomer = hellos.0.greeting.me.clone();
    let Some(cluster) = shared.common.cluster() else {
        return not_now("this node has no cluster either");
    };
    if shared.common.routes.leader(RECORDS) != shared.common.me {
        return not_now("another node leads, and admits");
    }
    let members = shared.members();
    if members.get(newcomer.id).is_some() {
        return Ok(cluster);
    }
    let admission =
        Joining { token: asked.token.map(|(id, _)| id), at: shared.clock.now().wall, replica: asked.replica };
    check_token(&members, asked, &admission, hellos)?;
    judge(&shared.config, &members, &newcomer, asked.token.is_some(), |id| {
        shared.links.get(id).is_some_and(|link| link.is_up())
    })?;
    let (sender, reply) = oneshot::channel();
    let client = ReplyTo::Local { sender, lane: None };
    let mut changes = vec![MemberChange::AddLearner(newcomer.id)];
    changes.extend(lost(&members, &newcomer).map(MemberChange::Remove));
    let id = newcomer.id;
    shared.common.inbox.control(Control::Admit(changes, newcomer, admission, client));
    match reply.await {
        Ok(Reply::Applied { .. }) if shared.members().get(id).is_some() => Ok(cluster),
        // Another change is under way, or leadership was lost, or the token was used up or revoked meanwhile: it asks again.
        _ => not_now("the members cannot be changed just now"),
    }
}

/// Whether the token that a node has, if it has one, admits it. Who has one that does not hold is refused even if it needs none.
fn check_token(members: &Members, asked: &Asked, admission: &Joining, hellos: (&Hello, &Hello)) -> Result<(), Refusal> {
    let Some((id, given)) = asked.token else { return Ok(()) };
    let token = members.tokens().get(id);
    let invalid = match token {
        Some(token) if is_proved(token.key, hellos.0, hellos.1, given) => members.tokens().judge(admission).err(),
        _ => Some(Invalid::Unknown),
    };
    match invalid {
        None => Ok(()),
        Some(invalid) => {
            let text = format!("{} is not admitted: {}", hellos.0.greeting.me.name, why(invalid, id));
            Err(Refusal { code: BAD_TOKEN, text })
        }
    }
}

/// Learners of the newcomer's name: data directories that were lost before they voted.
fn lost<'a>(members: &'a Members, newcomer: &'a Member) -> impl Iterator<Item = u64> + 'a {
    let learners = members.iter().filter(|member| members.configuration.learners.contains(&member.id));
    learners.filter(|member| member.name == newcomer.name).map(|member| member.id)
}

/// Whether a node may become a member. `has_token`: it has proved one that holds.
fn judge(
    config: &PeerConfig,
    members: &Members,
    newcomer: &Member,
    has_token: bool,
    is_up: impl Fn(u64) -> bool,
) -> Result<(), Refusal> {
    let refuse = |code, text: String| Err(Refusal { code, text });
    let name = &newcomer.name;
    if members.was_removed(newcomer.id) {
        return refuse(
            "removed-member",
            format!("{name} was removed from the cluster; start it with an empty data directory"),
        );
    }
    if members.iter().any(|member| member.name == *name && is_up(member.id)) {
        return refuse("name-taken", format!("the member {name} is there; every node needs a name of its own"));
    }
    let has_proved = config.secret.is_some() || config.tls.is_some() || has_token;
    if !config.listed.contains(name) && !config.admits_anybody && !has_proved {
        return refuse(
            "not-admitted",
            format!(
                "{name} is not in cluster.initialCluster here, has no join token, and there is no cluster.clusterSecret that it could prove"
            ),
        );
    }
    let (kept, joining): (Vec<u64>, Vec<u64>) =
        members.configuration.learners.iter().partition(|id| members.is_demoted(**id));
    if kept.len() >= REPLICAS_MAX {
        return refuse("not-admitted", format!("{REPLICAS_MAX} members do not vote already; {name} must wait"));
    }
    if joining.iter().filter(|id| !lost(members, newcomer).any(|lost| lost == **id)).count() >= JOINING_MAX {
        return refuse("not-admitted", format!("{JOINING_MAX} nodes are joining already; {name} must wait"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forming::Plan;
    use base::Millis;
    use std::sync::Arc;

    fn member(id: u64, name: &str) -> Member {
        Member { id, name: name.into(), ..Member::default() }
    }

    fn config() -> PeerConfig {
        PeerConfig {
            listen: "127.0.0.1:0".parse().expect("it is an address"),
            advertise: String::new(),
            label: String::new(),
            secret: None,
            tls: None,
            token: None,
            replica: false,
            plan: Plan::Join,
            addresses: vec![],
            bootstrap: false,
            listed: [].into(),
            admits_anybody: false,
            promote_lag: 0,
            promote_after: Millis(0),
            health_interval: Millis(200),
            zone: String::new(),
        }
    }

    #[test]
    fn whoever_is_listed_or_proved_the_secret_is_admitted_and_nobody_takes_a_living_members_name() {
        let members = Members::of_voters([member(1, "a"), member(2, "b")]);
        let judged = |config: &PeerConfig, newcomer: Member, up: bool| {
            judge(config, &members, &newcomer, false, |_| up).map_err(|refusal| refusal.code)
        };
        assert_eq!(judged(&config(), member(3, "c"), true), Err("not-admitted"));
        let listed = PeerConfig { listed: ["c".into()].into(), ..config() };
        assert_eq!(judged(&listed, member(3, "c"), true), Ok(()));
        let secret = PeerConfig { secret: Some(Arc::from(*b"secret")), ..config() };
        assert_eq!(judged(&secret, member(3, "c"), true), Ok(()));
        let open = PeerConfig { admits_anybody: true, ..config() };
        assert_eq!(judged(&open, member(3, "b"), true), Err("name-taken"));
        assert_eq!(judged(&open, member(3, "b"), false), Ok(()), "a new data directory of a node that is gone");
    }
}
