//! Members that were away while the cluster changed, and members that come back with nothing.

use cluster::forming::Plan;
use cluster::{Data, NodeConfig, PeerConfig, TRANSFER_MAX, Target};

use crate::three_nodes::{NAMES, Three, eventually, free_addrs, read, start, write};

/// Goal: a member that was away while a newcomer took the place of another one, and leads now, takes the newcomer for what it is, though all
/// that it knows itself is older than that: otherwise nobody could tell it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_follows_a_leader_that_it_does_not_know() {
    let mut three = Three::with_shards(2).await;
    let old = three.leader();
    let (other, away) = ((old + 1) % 3, (old + 2) % 3);
    three.stop(away).await;
    let folder = tempfile::tempdir().expect("a folder can be made");
    let addr = free_addrs(1)[0];
    let like = three.config(old).peers.expect("it has peers");
    let peers =
        PeerConfig { listen: addr, advertise: addr.to_string(), plan: Plan::Join, addresses: Vec::new(), ..like };
    let config = NodeConfig {
        peers: Some(peers),
        ..NodeConfig { name: "d".into(), data: Data::Directory(folder.path().join("d")), ..three.config(old) }
    };
    let newcomer = start(config);
    three.node(other).replace(NAMES[old], &addr.to_string()).await.expect("two of three are there");
    three.stop(old).await;
    three.node(other).hand_over(None, &Target::named("d"), TRANSFER_MAX).await.expect("it is there");
    write(three.node(other), "while it was away").await.expect("two of three are there");
    three.start(away);
    three.ready().await;
    assert_eq!(read(three.node(away)).await, ["while it was away"]);
    let node = three.node(away).clone();
    let knows = || node.members().get(newcomer.handle().id()).is_some();
    eventually("it knows the newcomer", &node, knows).await;
}

/// Goal: a member whose data directory was lost becomes a member of every group again, and what it was before is one of none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_lost_its_data_comes_back_in_every_group() {
    let mut three = Three::with_shards(3).await;
    let place = (three.leader() + 1) % 3;
    let before = three.node(place).id();
    three.stop(place).await;
    three.wipe(place);
    three.start(place);
    let came = three.node(place).id();
    let node = three.node(three.leader()).clone();
    let swapped = || {
        let status = node.status();
        status.voters.len() == 3 && status.voters.values().all(|all| all.contains(&came) && !all.contains(&before))
    };
    eventually("every group has it, and not what it was", &node, swapped).await;
}

/// Goal: a majority that has moved is found by what it says of itself to the one that has not: nothing can be recorded before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_that_has_moved_is_found() {
    let mut three = Three::begin().await;
    write(three.node(0), "before").await.expect("all are there");
    for place in 0..3 {
        three.stop(place).await;
    }
    three.start_elsewhere(0);
    three.start_elsewhere(1);
    three.start(2);
    three.ready().await;
    write(three.node(1), "after").await.expect("all are there");
    for place in 0..3 {
        assert_eq!(read(three.node(place)).await, ["before", "after"]);
    }
}
