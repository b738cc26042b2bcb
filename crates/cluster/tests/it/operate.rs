//! What operators ask of three nodes: another leader, fewer members. Work goes on meanwhile, and what cannot be is refused with numbers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::backup::NoBackup;
use cluster::forming::Plan;
use cluster::{
    Actor, Data, HOLD, Handle, Millis, Node, NodeConfig, Numbers, PeerConfig, Refused, Retired, Right, ShardId,
    StartError, TRANSFER_MAX, Target,
};

use crate::register::Register;
use crate::three_nodes::{NAMES, SHARD, Three, eventually, free_addrs, hooks, read, start, write};

/// Writes at a node until it is told to stop; every write must succeed. Returns what it wrote.
fn load(node: &Handle<Register>) -> (Arc<AtomicBool>, tokio::task::JoinHandle<Vec<String>>) {
    let (stop, node) = (Arc::new(AtomicBool::new(false)), node.clone());
    let stopped = stop.clone();
    let writing = tokio::spawn(async move {
        let mut written = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            let line = format!("line {}", written.len());
            write(&node, &line).await.expect("no write fails");
            written.push(line);
        }
        written
    });
    (stop, writing)
}

async fn retired(node: &Handle<Register>) -> Retired {
    let told = tokio::time::timeout(Duration::from_secs(20), node.retired()).await;
    told.expect("a node that can be reached is told at once")
}

/// Goal: leadership moves where it is asked to, from any node, and writes go on without an error. It stays away from a node that stepped
/// down, and a target that cannot lead is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_under_load() {
    let three = Three::begin().await;
    let (stop, writing) = load(three.node(0));
    for round in 0..6 {
        let target = (three.leader() + 1 + round % 2) % 3;
        let asked = (target + 1) % 3;
        let done =
            three.node(asked).hand_over(None, &Target::named(NAMES[target]), TRANSFER_MAX).await.expect("it is there");
        assert_eq!(done.leader, NAMES[target]);
        let node = three.node(asked);
        eventually("the asked node has heard", node, || node.leader(SHARD) == three.node(target).id()).await;
    }
    let before = three.leader();
    let done = three.node((before + 1) % 3).step_down(HOLD).await.expect("two others are there");
    assert_ne!(done.leader, NAMES[before]);
    let best =
        three.node(before).hand_over(None, &Target::default(), TRANSFER_MAX).await.expect("another voter is there");
    assert_ne!(best.leader, done.leader);
    stop.store(true, Ordering::Relaxed);
    let written = writing.await.expect("no write fails");
    assert_eq!(read(three.node(1)).await, written);
    let nobody = three.node(0).hand_over(None, &Target::named("z"), TRANSFER_MAX).await;
    assert_eq!(nobody, Err(Refused::UnknownMember("z".into())));
}

/// Goal: the leader's vote is taken: another one leads, nobody gives the vote back but an operator, and then it counts again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vote_is_taken_and_given_back_under_load() {
    let three = Three::begin().await;
    let demoted = three.leader();
    let (stop, writing) = load(three.node(demoted));
    let id = three.node(demoted).id();
    let done = three.node(demoted).demote(NAMES[demoted], false).await.expect("two of two are there");
    assert_ne!(done.leader, NAMES[demoted]);
    let other = three.node((demoted + 1) % 3).clone();
    let votes = || other.members().configuration.voters.contains(&id);
    eventually("it votes no more", &other, || !votes()).await;
    // Longer than a learner waits for its promotion.
    let seen = other.inspect().uptime;
    eventually("time has passed", &other, || other.inspect().uptime.0 > seen.0 + 1_000).await;
    assert!(!votes(), "it waits for an operator");
    let leads = three.node(demoted).hand_over(None, &Target::named(NAMES[demoted]), TRANSFER_MAX).await;
    assert_eq!(leads, Err(Refused::NotVoter(NAMES[demoted].into())));
    three.node(demoted).promote(NAMES[demoted]).await.expect("it has caught up");
    eventually("it votes again", &other, votes).await;
    stop.store(true, Ordering::Relaxed);
    let written = writing.await.expect("no write fails");
    assert_eq!(read(&other).await, written);
}

/// Goal: every member knows from every other one how it is, and the reports go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_report_how_they_are() {
    let three = Three::begin().await;
    for place in 0..3 {
        let node = three.node(place).clone();
        let all =
            || node.inspect().reports.into_values().filter(|(_, report)| report.uptime > Millis(500)).count() == 2;
        eventually("later reports of both others", &node, all).await;
        let shown = cluster::http::serve(&node, "/cluster/health-reports", "", None).expect("there is such a page");
        assert!(shown.status == 200 && shown.text().matches("\"fresh\":true").count() == 2, "{}", shown.text());
        assert!(node.inspect().nodes().nodes.iter().all(|node| node.build.is_some() && node.storage.is_some()));
    }
}

/// Goal: three become one while writes go on: a follower is removed, then the leader leaves. Both are told and never start again; the last
/// one stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_become_one_under_load() {
    let mut three = Three::begin().await;
    let leader = three.leader();
    let (gone, last) = ((leader + 1) % 3, (leader + 2) % 3);
    let (stop, writing) = load(three.node(last));
    let done = three.node(last).remove(NAMES[gone], false).await.expect("two of two are there");
    assert!(done.position.is_some() && done.note.contains("nothing may fail"), "{done:?}");
    assert_eq!(retired(three.node(gone)).await, Retired::Removed);
    three.stop(gone).await;
    let again = Node::<Register>::start(three.config(gone), hooks());
    assert!(matches!(again, Err(StartError::Retired { how, .. }) if how == "removed"));

    three.node(leader).leave(false).await.expect("one of one is there");
    assert_eq!(retired(three.node(leader)).await, Retired::Left);
    three.stop(leader).await;
    let again = Node::<Register>::start(three.config(leader), hooks());
    assert!(matches!(again, Err(StartError::Retired { how, .. }) if how == "left"));

    stop.store(true, Ordering::Relaxed);
    let written = writing.await.expect("no write fails");
    assert_eq!(read(three.node(last)).await, written);
    let refused = three.node(last).remove(NAMES[last], true).await;
    assert!(matches!(refused, Err(Refused::Guard(Numbers { voters: 0, .. }))), "{refused:?}");
    let unknown = three.node(last).remove(NAMES[gone], false).await;
    assert_eq!(unknown, Err(Refused::UnknownMember(NAMES[gone].into())));
}

/// Goal: of four groups with different leaders each is handed over, and a member that leads some of them is taken out of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_group_follows() {
    let mut three = Three::with_shards(4).await;
    let groups: Vec<ShardId> = (0..4).map(ShardId).collect();
    let leads = |node: &Handle<Register>, id: u64| groups.iter().all(|group| node.leader(*group) == id);
    three.node(0).hand_over(None, &Target::named("b"), TRANSFER_MAX).await.expect("it is there");
    let (first, gone) = (three.node(0).clone(), three.node(2).id());
    eventually("one leads all", &first, || leads(&first, three.node(1).id())).await;
    for group in &groups[2..] {
        first.hand_over(Some(*group), &Target::named("c"), TRANSFER_MAX).await.expect("it is there");
    }
    let unknown = first.hand_over(Some(ShardId(4)), &Target::default(), TRANSFER_MAX).await;
    assert_eq!(unknown, Err(Refused::UnknownGroup(4)));
    let done = first.remove("c", false).await.expect("two of two are there");
    assert!(!done.note.contains("not every group"), "{done:?}");
    assert_eq!(retired(three.node(2)).await, Retired::Removed);
    let is_out = || first.status().voters.values().all(|voters| voters.len() == 2 && !voters.contains(&gone));
    eventually("no group has it", &first, is_out).await;
    three.stop(2).await;
    let led = || groups.iter().all(|group| ![0, gone].contains(&first.leader(*group)));
    eventually("every group is led by another", &first, led).await;
    first.leave(false).await.expect("one of one is there");
    three.stop(0).await;
    let last = three.node(1).clone();
    eventually("the last one leads all", &last, || last.is_ready() && leads(&last, last.id())).await;
}

/// Goal: with a voter down, what would leave no majority is refused with the numbers, and what helps is done: the one that is down is
/// removed, and hears of it when it comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_is_not_removed() {
    let mut three = Three::begin().await;
    let leader = three.leader();
    let (down, other) = ((leader + 1) % 3, (leader + 2) % 3);
    three.stop(down).await;
    let node = three.node(leader).clone();
    let risky = Numbers { group: 0, voters: 3, alive: 1, needed: 2 };
    eventually("it is taken for dead", &node, || node.if_stopped(NAMES[other]) == Ok(risky)).await;
    let refused = three.node(leader).remove(NAMES[other], false).await;
    assert_eq!(refused, Err(Refused::Guard(Numbers { group: 0, voters: 2, alive: 1, needed: 2 })));
    let refused = three.node(other).leave(false).await;
    assert!(matches!(refused, Err(Refused::Guard(_))), "{refused:?}");
    let unreachable = three.node(other).hand_over(None, &Target::named(NAMES[down]), Millis(500)).await;
    assert!(matches!(unreachable, Err(Refused::TransferFailed(_))), "{unreachable:?}");
    write(three.node(other), "two of three go on").await.expect("nothing was changed");

    three.node(other).remove(NAMES[down], false).await.expect("two of two are there");
    three.start(down);
    assert_eq!(retired(three.node(down)).await, Retired::Removed);
    write(three.node(other), "and two of two").await.expect("they are there");
    for place in [down, leader, other] {
        three.stop(place).await;
    }
}

/// Goal: a newcomer takes the place of the leader while writes go on: it learns first, the vote changes hands in every group, the old one is
/// told and never comes back. A zone leads when it is asked to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_takes_a_members_place_under_load() {
    let mut three = Three::with_shards(2).await;
    let old = three.leader();
    let (other, asked) = ((old + 1) % 3, (old + 2) % 3);
    let folder = tempfile::tempdir().expect("a folder can be made");
    let addr = free_addrs(1)[0];
    let like = three.config(old).peers.expect("it has peers");
    let peers = PeerConfig {
        listen: addr,
        advertise: addr.to_string(),
        plan: Plan::Join,
        addresses: Vec::new(),
        zone: "dc2".into(),
        ..like
    };
    let config =
        NodeConfig { peers: Some(peers), shards: 2, ..NodeConfig::new("d", Data::Directory(folder.path().join("d"))) };
    let newcomer = start(config);
    let (stop, writing) = load(three.node(other));
    let (gone, came) = (three.node(old).id(), newcomer.handle().id());
    let done = three.node(asked).replace(NAMES[old], &addr.to_string()).await.expect("three of three are there");
    assert!(done.note.contains("d has taken the place of"), "{done:?}");
    assert_eq!(retired(three.node(old)).await, Retired::Removed);
    three.stop(old).await;
    let node = three.node(asked).clone();
    let swapped = || {
        let status = node.status();
        status.voters.len() == 2 && status.voters.values().all(|all| all.contains(&came) && !all.contains(&gone))
    };
    eventually("every group has the newcomer", &node, swapped).await;
    assert_eq!(node.members().configuration.learners, [0; 0]);
    let itself = node.replace("d", &addr.to_string()).await;
    assert!(matches!(itself, Err(Refused::NotAdmitted(_))), "{itself:?}");
    let zone = |zone: &str| Target { name: None, zone: Some(zone.into()) };
    eventually("its zone is known", &node, || node.inspect().reports.values().any(|(_, report)| report.zone == "dc2"))
        .await;
    assert_eq!(node.hand_over(None, &zone("dc2"), TRANSFER_MAX).await.expect("one is there").leader, "d");
    let nowhere = node.hand_over(None, &zone("dc3"), TRANSFER_MAX).await;
    assert!(matches!(nowhere, Err(Refused::TransferFailed(_))), "{nowhere:?}");
    stop.store(true, Ordering::Relaxed);
    let written = writing.await.expect("no write fails");
    assert_eq!(read(newcomer.handle()).await, written);
}

/// Goal: whoever may only look is refused every action, at the leader and at a follower that would hand it on; and an operator is refused what
/// takes an administrator. Nothing has changed afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_are_looked_at_wherever_an_action_is_asked_for() {
    let three = Three::begin().await;
    let leader = three.leader();
    for place in [leader, (leader + 1) % 3] {
        let of = |name: &str, right| three.node(place).on_behalf_of(Actor { name: name.into(), right });
        let (ann, ben) = (of("ann", Right::Look), of("ben", Right::Operate));
        let other = NAMES[(leader + 2) % 3];
        let address = "127.0.0.1:1";
        let target = Target::named(other);
        let refused = [
            ann.remove(other, true).await.map(drop),
            ann.demote(other, true).await.map(drop),
            ann.promote(other).await.map(drop),
            ann.replace(other, address).await.map(drop),
            ann.add(address, false).await.map(drop),
            ann.leave(true).await.map(drop),
            ann.hand_over(None, &target, TRANSFER_MAX).await.map(drop),
            ann.step_down(HOLD).await.map(drop),
        ];
        for (number, refused) in refused.into_iter().enumerate() {
            assert_eq!(refused, Err(Refused::NotAllowed("ann has no right to this".into())), "{place}: {number}");
        }
        let refused = ann.checkpoint_all(&BTreeMap::new()).await;
        assert!(matches!(refused, Err(NoBackup::NotAllowed(_))), "{refused:?}");
        for handle in [&ann, &ben] {
            assert!(matches!(handle.bundle(Vec::new()).await, Err(NoBackup::NotAllowed(_))));
        }
        let saved = ben.checkpoint_all(&BTreeMap::new()).await.expect("an operator may");
        assert!(saved.iter().all(|(_, indexes)| indexes.is_some()), "{saved:?}");
    }
    assert_eq!(three.leader(), leader);
    assert_eq!(three.node(0).members().configuration.voters.len(), 3);
}
