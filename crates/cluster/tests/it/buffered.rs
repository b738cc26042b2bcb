//! A node that acknowledges what is only written.

use std::sync::atomic::Ordering;

use base::{Millis, ShardId};
use cluster::{Data, Durability, Handle, Hooks, Node, NodeConfig, Operations};

use crate::register::Register;

fn config(data: Data) -> NodeConfig {
    NodeConfig {
        durability: Durability::Buffered(Millis(3_600_000)),
        segment_bytes: 1 << 20,
        checkpoint_interval: Millis(3_600_000),
        checkpoint_log_bytes: 1 << 20,
        inbox_depth: 1024,
        leader_wait: Millis(5_000),
        trailing_log_bytes: 1 << 20,
        election_timeout: Millis(300),
        heartbeat: Millis(60),
        ..NodeConfig::new("a", data)
    }
}

fn syncs(node: &Handle<Register>) -> u64 {
    node.counters().log_syncs.load(Ordering::Relaxed)
}

/// Entries wait for the next sync, here for an hour; the vote that a leader gives itself does not.
#[tokio::test]
async fn a_vote_is_synced_and_entries_are_not() {
    crate::log();
    let folder = tempfile::tempdir().expect("a folder can be made");
    let data = Data::Directory(folder.path().join("a"));
    let mut node = Node::<Register>::start(config(data), Hooks::default()).expect("the node starts");
    node.handle().ready().await;
    let before = syncs(node.handle());
    assert!(before > 0, "it has voted");
    for line in 0..20 {
        let mut operations = Operations::default();
        operations.push(|bytes| bytes.push(b'a' + line));
        node.handle().submit(ShardId(0), operations, None, None).await.expect("it is written");
    }
    assert_eq!(syncs(node.handle()), before);
    node.handle().stop();
    node.ended().await.expect("it stops without a fault");
}
