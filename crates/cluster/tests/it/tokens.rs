//! Join tokens: nodes that have one that holds become members, and others do not, whoever leads.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use cluster::forming::Plan;
use cluster::{Actor, Data, Grant, Handle, JoinSecret, Millis, Node, NodeConfig, PeerConfig, Refused, Right};

use crate::register::Register;
use crate::three_nodes::{SHARD, Three, config, eventually, free_addrs, start};
use crate::{LOGGED, logged};

const HOUR: Millis = Millis(3_600_000);
const MANY: Grant = Grant { ttl: HOUR, once: false, replica: false };

/// Nodes that admit nobody but each other, and whoever has a token.
struct Closed {
    folder: tempfile::TempDir,
    addrs: Vec<SocketAddr>,
    nodes: Vec<Option<Node<Register>>>,
}

fn closed(folder: &Path, place: usize, addrs: &[SocketAddr]) -> NodeConfig {
    let config = config(folder, place, addrs);
    let peers = config.peers.clone().map(|peers| PeerConfig { secret: None, ..peers });
    NodeConfig { peers, ..config }
}

impl Closed {
    async fn begin() -> Closed {
        crate::log();
        let (folder, addrs) = (tempfile::tempdir().expect("a folder can be made"), free_addrs(3));
        let nodes = (0..3).map(|place| Some(start(closed(folder.path(), place, &addrs)))).collect();
        let closed = Closed { folder, addrs, nodes };
        for place in 0..3 {
            let ready = tokio::time::timeout(Duration::from_secs(20), closed.node(place).ready()).await;
            ready.expect("a cluster of three is ready within seconds");
        }
        closed
    }

    fn node(&self, place: usize) -> &Handle<Register> {
        self.nodes[place].as_ref().expect("it runs").handle()
    }

    /// A node of this name that asks to be admitted.
    fn newcomer(&self, name: &str, token: Option<&JoinSecret>, replica: bool) -> Node<Register> {
        let addr = free_addrs(1)[0];
        let like = closed(self.folder.path(), 0, &self.addrs);
        let peers = like.peers.clone().map(|peers| PeerConfig {
            listen: addr,
            advertise: addr.to_string(),
            plan: Plan::Join,
            listed: [].into(),
            token: token.cloned(),
            replica,
            ..peers
        });
        start(NodeConfig { name: name.into(), data: Data::Directory(self.folder.path().join(name)), peers, ..like })
    }

    /// A node with this token is refused for this reason, and both sides say so.
    async fn refuses(&self, name: &str, token: Option<&JoinSecret>, reason: &str) {
        let node = self.newcomer(name, token, false);
        let is_said = |event: &str| {
            logged()
                .iter()
                .any(|line| line.contains(event) && line.contains(reason) && line.contains(&format!("{name} ")))
        };
        let said = async {
            loop {
                let mut more = std::pin::pin!(LOGGED.notified());
                more.as_mut().enable();
                if is_said("raft.join.refused") && is_said("raft.peer.rejected") {
                    return;
                }
                more.await;
            }
        };
        let said = tokio::time::timeout(Duration::from_secs(20), said).await;
        said.unwrap_or_else(|_| panic!("{name}: nobody says {reason}: {:#?}", logged()));
        assert!(self.node(0).members().named(name).is_none());
        stop(node).await;
    }

    /// A node with this token becomes a member, known to the node at this place.
    async fn admits(&self, place: usize, name: &str, token: &JoinSecret, replica: bool) -> Node<Register> {
        let node = self.newcomer(name, Some(token), replica);
        let known = || self.node(place).members().named(name).is_some();
        eventually("it is a member", self.node(place), known).await;
        node
    }
}

async fn stop(mut node: Node<Register>) {
    node.handle().stop();
    node.ended().await.expect("it stops without a fault");
}

fn changed(secret: &JoinSecret) -> JoinSecret {
    let text = secret.reveal();
    let (rest, last) = text.split_at(text.len() - 1);
    JoinSecret::read(&format!("{rest}{}", if last == "0" { "1" } else { "0" })).expect("it is one")
}

/// Goal: without a token, and with one that is wrong, revoked, expired, used or for replicas, a node stays outside and both sides say why;
/// with one that holds it votes, or, as a replica, waits to be promoted; also when the node that made the token leads no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn join_token_matrix() {
    let mut three = Closed::begin().await;
    let any = three.node(1).clone();
    let create = async |grant| any.create_token(grant).await.expect("somebody leads").0;
    let (many, once) = (create(MANY).await, create(Grant { once: true, ..MANY }).await);
    let revoked = create(MANY).await;
    any.revoke_token(revoked.id()).await.expect("it is there");
    assert_eq!(any.revoke_token(revoked.id()).await, Err(Refused::UnknownToken(revoked.id())));
    let expired = create(Grant { ttl: Millis(1), ..MANY }).await;
    let replicas = create(Grant { replica: true, ..MANY }).await;

    three.refuses("none", None, "has no join token").await;
    three.refuses("wrong", Some(&changed(&many)), "wrong").await;
    three.refuses("revoked", Some(&revoked), "revoked").await;
    three.refuses("expired", Some(&expired), "expired").await;
    three.refuses("voter", Some(&replicas), "--replica").await;

    let replica = three.admits(0, "r", &replicas, true).await;
    let id = replica.handle().id();
    assert!(three.node(0).members().is_demoted(id), "it waits for an operator");

    // Whoever comes first.
    let two = [three.newcomer("x", Some(&once), false), three.newcomer("y", Some(&once), false)];
    let is_member = |name: &str| three.node(0).members().named(name).is_some();
    eventually("one of two is a member", three.node(0), || is_member("x") || is_member("y")).await;
    three.refuses("used", Some(&once), "has been used").await;
    assert!(is_member("x") != is_member("y"), "one of two");

    let leader = (0..3).find(|place| three.node(*place).id() == any.leader(SHARD)).expect("a founder leads");
    let left = (leader + 1) % 3;
    let before = three.nodes[leader].take().expect("it runs");
    let gone = before.handle().id();
    stop(before).await;
    let node = three.node(left).clone();
    eventually("another one leads", &node, || ![0, gone].contains(&node.leader(SHARD))).await;
    let late = three.admits(left, "late", &many, false).await;
    let votes = || node.members().configuration.voters.contains(&late.handle().id());
    eventually("it votes", &node, votes).await;
    assert!(!node.members().configuration.voters.contains(&id), "a replica does not");
    node.promote("r").await.expect("it has caught up");
    let uses = |secret: &JoinSecret| node.members().tokens().get(secret.id()).map(|token| token.uses);
    assert_eq!((uses(&many), uses(&once), uses(&replicas)), (Some(1), Some(1), Some(1)));
    for one in two.into_iter().chain([late, replica]) {
        stop(one).await;
    }
}

/// Goal: only administrators make and revoke tokens, also where another node does it; nobody else is shown a secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_administrators_make_tokens() {
    let three = Three::begin().await;
    for place in 0..2 {
        let ann = |right| three.node(place).on_behalf_of(Actor { name: "ann".into(), right });
        let refused = ann(Right::Operate).create_token(MANY).await;
        assert!(matches!(refused, Err(Refused::NotAllowed(_))), "{refused:?}");
        let (secret, token, _) = ann(Right::Administer).create_token(MANY).await.expect("somebody leads");
        let refused = ann(Right::Operate).revoke_token(secret.id()).await;
        assert!(matches!(refused, Err(Refused::NotAllowed(_))), "{refused:?}");
        assert_eq!((token.id, token.uses), (secret.id(), 0));
        assert!(logged().iter().all(|line| !line.contains(&secret.reveal())));
    }
    let meeting = three.node(0).meeting().expect("it has peers");
    assert_eq!((meeting.addresses.len(), meeting.shards, meeting.has_secret), (3, 1, true));
}
