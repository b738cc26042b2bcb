//! A backup takes the place of what a running cluster holds: everywhere or nowhere, whoever is asked, and whoever crashes meanwhile.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cluster::{Data, Handle, Hooks, Node, NodeConfig, NotRestored, Unavailable};

use crate::register::Register;
use crate::three_nodes::{NAMES, SHARD, Three, eventually, read, write};

/// The bytes of a backup of what a node has.
async fn backup(node: &Handle<Register>) -> Vec<u8> {
    let mut taken = node.backup(false).await.expect("it can be made");
    let mut bytes = Vec::new();
    taken.read_to_end(&mut bytes).expect("it can be read");
    bytes
}

async fn restore(node: &Handle<Register>, bytes: &[u8]) -> Result<(), NotRestored> {
    let mut upload = node.upload()?;
    upload.write_all(bytes).expect("there is room");
    node.restore(upload).await.map(drop)
}

fn incarnation(node: &Handle<Register>) -> u64 {
    node.cluster().expect("it has one").incarnation.0
}

/// Goal: a restore through a follower, under load: what was written since the backup is gone on all nodes, writes meanwhile are refused and
/// nothing happens of them, and the cluster goes on with one incarnation, also after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_go_on_from_the_backup() {
    let mut three = Three::with_shards(2).await;
    for line in ["one", "two"] {
        write(three.node(0), line).await.expect("it is written");
    }
    let bytes = backup(three.node(1)).await;
    for round in 0..50 {
        write(three.node(round % 3), "later").await.expect("it is written");
    }
    let (before, id) = (incarnation(three.node(0)), three.node(0).cluster().expect("it has one").id);
    let (stop, node) = (Arc::new(AtomicBool::new(false)), three.node(2).clone());
    let stopped = stop.clone();
    let writing = tokio::spawn(async move {
        let (mut written, mut refused) = (0, 0);
        while !stopped.load(Ordering::Relaxed) {
            match write(&node, "during").await {
                Ok(_) => written += 1,
                Err(Unavailable::Restoring) => refused += 1,
                Err(why) => panic!("{why}"),
            }
        }
        (written, refused)
    });
    let follower = (three.leader() + 1) % 3;
    restore(three.node(follower), &bytes).await.expect("all are there");
    stop.store(true, Ordering::Relaxed);
    let (written, refused) = writing.await.expect("no other error comes");
    assert!(written > 0 && refused > 0, "{written} {refused}");
    let lines = read(three.node(0)).await;
    assert_eq!(lines[..2], ["one", "two"]);
    assert!(lines[2..].iter().all(|line| line == "during"), "{lines:?}");
    let after = incarnation(three.node(follower));
    assert_ne!(after, before);
    for place in 0..3 {
        let node = three.node(place);
        eventually("it has heard", node, || incarnation(node) == after).await;
        assert_eq!((read(node).await, node.cluster().expect("it has one").id), (lines.clone(), id));
    }
    write(three.node(0), "three").await.expect("it is written");
    for place in 0..3 {
        three.stop(place).await;
    }
    (0..3).for_each(|place| three.start(place));
    three.ready().await;
    assert_eq!(read(three.node(1)).await.last().map(String::as_str), Some("three"));
    assert_eq!(incarnation(three.node(2)), after);
    // What was staged is gone.
    for place in 0..3 {
        let Data::Directory(path) = three.config(place).data else { panic!("it has a directory") };
        let names = std::fs::read_dir(path).expect("it can be listed");
        let names = names.map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned());
        let left: Vec<String> =
            names.filter(|name| name.starts_with("restore-") || name.starts_with("upload-")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// Goal: a backup of a cluster that has seen far more entries, and one that has seen fewer, take the place of each other, time and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_may_be_ahead_or_behind() {
    let three = Three::begin().await;
    let old = backup(three.node(0)).await;
    for _ in 0..30 {
        write(three.node(0), "line").await.expect("it is written");
    }
    let young = backup(three.node(0)).await;
    let folder = tempfile::tempdir().expect("a folder can be made");
    let alone = NodeConfig::new("alone", Data::Directory(folder.path().into()));
    let alone: Node<Register> = Node::start(alone, Hooks::default()).expect("it starts");
    alone.handle().ready().await;
    for (bytes, lines) in [(&young, 30), (&old, 0), (&young, 30)] {
        for node in [alone.handle(), three.node(1)] {
            restore(node, bytes).await.expect("all are there");
            assert_eq!(read(node).await.len(), lines);
            write(node, "another").await.expect("it goes on");
        }
    }
    alone.shut_down().await.expect("it stops");
}

/// Goal: without one voter, with damage, or with another number of groups, nothing changes, and writes go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_staged_everywhere_changes_nothing() {
    let mut three = Three::begin().await;
    let bytes = backup(three.node(0)).await;
    write(three.node(0), "later").await.expect("it is written");
    let before = incarnation(three.node(0));
    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    let refused = restore(three.node(1), &damaged).await;
    assert!(matches!(&refused, Err(NotRestored::BadBackup(why)) if why.contains("damaged")), "{refused:?}");
    let gone = (three.leader() + 1) % 3;
    three.stop(gone).await;
    let node = three.node((gone + 1) % 3).clone();
    let link_is_down = || node.inspect().contacts.values().any(|contact| !contact.connected);
    eventually("it is known to be gone", &node, link_is_down).await;
    let refused = restore(&node, &bytes).await;
    assert!(matches!(&refused, Err(NotRestored::Refused(why)) if why.starts_with(NAMES[gone])), "{refused:?}");
    write(&node, "still").await.expect("writes go on");
    assert_eq!((read(&node).await, incarnation(&node)), (vec!["later".into(), "still".into()], before));
    let other = Three::with_shards(2).await;
    let refused = restore(other.node(0), &bytes).await;
    assert!(matches!(&refused, Err(NotRestored::BadBackup(why)) if why.contains("1 groups")), "{refused:?}");
    assert_eq!(other.node(0).status().restores[&SHARD].last, None);
}

/// Goal: a member without a vote that was away gets the restored state from the others, although their logs still have the entries that it
/// lacks: what those entries name is not staged there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_gets_a_snapshot() {
    let mut three = Three::begin().await;
    write(three.node(0), "one").await.expect("it is written");
    let bytes = backup(three.node(0)).await;
    write(three.node(0), "later").await.expect("it is written");
    let away = (three.leader() + 1) % 3;
    let node = three.node((away + 1) % 3).clone();
    node.demote(NAMES[away], false).await.expect("two are enough");
    three.stop(away).await;
    restore(&node, &bytes).await.expect("both voters are there");
    write(&node, "two").await.expect("it is written");
    three.start(away);
    let back = three.node(away);
    eventually("it has caught up", back, || {
        back.stage() == cluster::Stage::Running
            && back.status().restores.get(&SHARD).is_some_and(|own| own.done == node.status().restores[&SHARD].done)
    })
    .await;
    assert_eq!(read(back).await, ["one", "two"]);
    assert_eq!(incarnation(back), incarnation(&node));
}

/// Goal: a restore that nobody looks after any more is given up, and writes go on: here the node that was asked is gone while it waits for
/// another one. What the others have staged for it is removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_is_abandoned_is_given_up() {
    let three = Three::begin().await;
    write(three.node(0), "one").await.expect("it is written");
    let bytes = backup(three.node(0)).await;
    let node = three.node((three.leader() + 1) % 3).clone();
    let asked = node.clone();
    let restoring = tokio::spawn(async move { restore(&asked, &bytes).await });
    eventually("it has begun", &node, || node.status().restores.get(&SHARD).is_some_and(|own| own.pending)).await;
    restoring.abort();
    let abandoned = restoring.await.expect_err("it is cut off in the middle");
    assert!(abandoned.is_cancelled());
    assert_eq!(write(&node, "two").await, Err(Unavailable::Restoring));
    eventually("it is given up", &node, || node.status().restores.get(&SHARD).is_some_and(|own| !own.pending)).await;
    write(&node, "two").await.expect("writes go on");
    assert_eq!(read(&node).await, ["one", "two"]);
}
