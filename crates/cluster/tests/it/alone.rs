//! A node that founds a cluster alone, with a port for peers, and one that must not.

use std::time::Duration;

use base::Incarnation;
use cluster::forming::{ClusterId, Plan, Proposal};
use cluster::{Member, Node, NodeConfig, StartError};
use storage::identity::DataDir;

use crate::register::Register;
use crate::three_nodes::{config, free_addrs, hooks, read, start, write};

/// As one of three would be configured, but with a list of only itself.
fn alone(folder: &std::path::Path) -> NodeConfig {
    let mut config = config(folder, 0, &free_addrs(3));
    let peers = config.peers.as_mut().expect("it has a port for peers");
    peers.plan = Plan::List(["a".into()].into());
    config
}

#[tokio::test]
async fn a_list_of_only_itself_founds_at_once() {
    crate::log();
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut node = start(alone(folder.path()));
    tokio::time::timeout(Duration::from_secs(20), node.handle().ready()).await.expect("it needs nobody");
    write(node.handle(), "alone").await.expect("it is written");
    assert_eq!(read(node.handle()).await, ["alone"]);
    let members = node.handle().members();
    let members: Vec<(&str, &str)> = members.iter().map(|member| (&*member.name, &*member.peer)).collect();
    let addr = node.handle().peer_addr().expect("its port is open").to_string();
    assert_eq!(members, [("a", &*addr)], "whoever joins can reach it");
    node.handle().stop();
    node.ended().await.expect("it stops without a fault");
}

/// The others may have founded the cluster that this node has agreed to: a second one beside it would be a lie.
#[test]
fn who_has_agreed_to_found_with_others_does_not_found_alone() {
    crate::log();
    let folder = tempfile::tempdir().expect("a folder can be made");
    let member = |id: u64, name: &str| Member { id, name: name.into(), ..Member::default() };
    let proposal = Proposal {
        cluster: ClusterId(7),
        incarnation: Incarnation(8),
        shards: 1,
        founders: vec![member(1, "a"), member(2, "b")],
        first: "a".into(),
    };
    let mut bytes = Vec::new();
    proposal.encode(&mut bytes);
    let mut config = alone(folder.path());
    config.data = cluster::Data::Directory(folder.path().into());
    let directory = DataDir::open(folder.path()).expect("it is new");
    directory
        .found(&storage::identity::Identity {
            node: "a".into(),
            incarnation: Incarnation(1),
            cluster: 0,
            cluster_incarnation: Incarnation(0),
            shards: 1,
            provider: "sqlite".into(),
            created_at: base::ScheduleTime(0),
        })
        .expect("it can be written");
    directory.accept_founding(&bytes).expect("it can be written");
    drop(directory);
    for peers in [config.peers.clone(), None] {
        let refused = Node::<Register>::start(NodeConfig { peers, ..config.clone() }, hooks());
        match refused.map(|_| ()) {
            Err(StartError::Accepted { others, .. }) => assert_eq!(others, ["b"]),
            other => panic!("it started, or failed otherwise: {other:?}"),
        }
    }
}
