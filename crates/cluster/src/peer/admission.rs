//! Who becomes a member. The leader of group 0 decides, and its record there is the admission; the leaders of the other groups follow.

use base::machine::StateMachine;
use replica::{Member, MemberChange, Members};

use crate::inbox::Control;
use crate::lane::ReplyTo;
use crate::node::Cluster;
use crate::peer::handshake::Refusal;
use crate::peer::{PeerConfig, Shared};
use replica::Reply;
use tokio::sync::oneshot;

pub(crate) use replica::leadership::RECORDS;

/// Nodes that are not voters yet, at one time.
const JOINING_MAX: usize = 4;

/// Makes a node a learner of this cluster. Twice is as good as once.
pub(crate) async fn admit<S: StateMachine>(shared: &Shared<S>, newcomer: Member) -> Result<Cluster, Refusal> {
    let refuse = |code, text: &str| Err(Refusal { code, text: text.into() });
    let Some(cluster) = shared.common.cluster() else {
        return refuse("not-leader", "this node has no cluster either");
    };
    if shared.common.routes.leader(RECORDS) != shared.common.me {
        return refuse("not-leader", "another node leads, and admits");
    }
    let members = shared.members();
    if members.get(newcomer.id).is_some() {
        return Ok(cluster);
    }
    judge(&shared.config, &members, &newcomer, |id| shared.links.get(id).is_some_and(|link| link.is_up()))?;
    let (sender, reply) = oneshot::channel();
    let client = ReplyTo::Local { sender, lane: None };
    let mut changes = vec![MemberChange::AddLearner(newcomer.id)];
    changes.extend(lost(&members, &newcomer).map(MemberChange::Remove));
    shared.common.inbox.control(Control::Change(RECORDS, changes, vec![newcomer], client));
    match reply.await {
        Ok(Reply::Applied { .. }) => Ok(cluster),
        // Another change is under way, or leadership was lost: it asks again.
        _ => refuse("not-leader", "the members cannot be changed just now"),
    }
}

/// Learners of the newcomer's name: data directories that were lost before they voted.
fn lost<'a>(members: &'a Members, newcomer: &'a Member) -> impl Iterator<Item = u64> + 'a {
    let learners = members.iter().filter(|member| members.configuration.learners.contains(&member.id));
    learners.filter(|member| member.name == newcomer.name).map(|member| member.id)
}

/// Whether a node may become a member.
fn judge(
    config: &PeerConfig,
    members: &Members,
    newcomer: &Member,
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
    let has_proved = config.secret.is_some() || config.tls.is_some();
    if !config.listed.contains(name) && !config.admits_anybody && !has_proved {
        return refuse(
            "not-admitted",
            format!(
                "{name} is not in cluster.initialCluster here, and there is no cluster.clusterSecret that it could prove"
            ),
        );
    }
    if members.configuration.learners.len() - lost(members, newcomer).count() >= JOINING_MAX {
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
            judge(config, &members, &newcomer, |_| up).map_err(|refusal| refusal.code)
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
