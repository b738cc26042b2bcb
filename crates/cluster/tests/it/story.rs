//! Elections as the nodes tell them: the story of each node in order, the same records everywhere, and all of it there after a restart.

use std::sync::Arc;

use base::ShardId;
use cluster::events::{Event, Level};
use cluster::http::look_back;
use cluster::{Cause, Data, Election, Handle, NodeConfig, TRANSFER_MAX, Target};

use crate::register::Register;
use crate::three_nodes::{Three, eventually, start, write};

const SHARD: ShardId = ShardId(0);

fn told(node: &Handle<Register>) -> Vec<Arc<Event>> {
    node.events(0, usize::MAX, |_| true)
}

/// The names of what a node has told in a term, in order, those of which `level` is too low left out.
fn names(events: &[Arc<Event>], term: u64, level: Level) -> Vec<String> {
    let in_term = events.iter().filter(|event| event.group == Some(SHARD) && event.term.0 == term);
    in_term.filter(|event| event.level >= level).map(|event| event.name.to_string()).collect()
}

fn place(names: &[String], name: &str) -> usize {
    names.iter().position(|known| known == name).unwrap_or_else(|| panic!("no {name} in {names:?}"))
}

/// All stories of one election, by the term it began.
async fn check_story(three: &Three, term: u64) {
    let mut lines = 0;
    let mut all: Vec<Arc<Event>> = Vec::new();
    for place_of in three.running() {
        let node = three.node(place_of);
        let last = if node.leader(SHARD) == node.id() { "raft.leader.ready" } else { "raft.append.first" };
        let is_told = || told(node).iter().any(|event| event.term.0 == term && event.name == last);
        eventually("the story is over", node, is_told).await;
        let events = told(node);
        let story = names(&events, term, Level::Info);
        let elected = place(&story, "raft.leader.elected");
        assert_eq!(story.iter().filter(|name| *name == "raft.leader.elected").count(), 1, "once in a term: {story:?}");
        if node.leader(SHARD) == node.id() {
            let order =
                ["raft.candidate", "raft.election.won", "raft.role", "raft.replication.started", "raft.leader.elected"];
            let mut places = order.map(|name| place(&story, name)).to_vec();
            places.push(place(&story, "raft.leader.ready"));
            assert!(places.is_sorted(), "{story:?}");
            let whole: Vec<String> = events.iter().map(|event| event.name.to_string()).collect();
            let began = whole.iter().rposition(|name| name == "raft.prevote.started");
            let candidate = whole.iter().rposition(|name| name == "raft.candidate");
            assert!(began < candidate, "{whole:?}");
        } else {
            assert!(elected < place(&story, "raft.append.first"), "{story:?}");
        }
        lines += story.len();
        all.extend(events.into_iter().filter(|event| event.term.0 == term && event.group == Some(SHARD)));
    }
    assert!((8..=24).contains(&lines), "about 15 lines, not {lines}");
    // By cause: nobody follows, or hears entries, before the leader was elected; nobody grants before it was asked.
    all.sort_by_key(|event| event.hlc);
    let order: Vec<String> = all.iter().map(|event| event.name.to_string()).collect();
    assert!(place(&order, "raft.candidate") < place(&order, "raft.vote.cast"), "{order:?}");
    // A leader that hands over votes as well, and cannot be asked any more.
    if three.running().len() == 3 {
        assert!(place(&order, "raft.vote.cast") < place(&order, "raft.election.won"), "{order:?}");
    }
    assert!(place(&order, "raft.election.won") < place(&order, "raft.append.first"), "{order:?}");
}

fn records(node: &Handle<Register>) -> Vec<Election> {
    node.elections(SHARD).iter().cloned().collect()
}

/// Goal: five failovers, each with a story in order and one record, the same on all nodes, also on the one that was away. Half of them by
/// hand-over, so that both causes are seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_election_is_told_in_order_and_recorded_once() {
    let mut three = Three::begin().await;
    write(three.node(0), "first").await.expect("it is written");
    let mut terms = vec![three.term()];
    check_story(&three, three.term()).await;
    for round in 0..5 {
        let leader = three.leader();
        three.stop(leader).await;
        let other = (leader + 1) % 3;
        write(three.node(other), &format!("round {round}")).await.expect("two of three go on");
        three.ready().await;
        terms.push(three.term());
        check_story(&three, three.term()).await;
        three.start(leader);
        three.ready().await;
    }
    let last = |node: &Handle<Register>| records(node).last().is_some_and(|last| last.ready.is_some());
    for at in 0..3 {
        let node = three.node(at);
        let same = || records(node) == records(three.node(three.leader())) && last(node);
        eventually("the records are the same", node, same).await;
    }
    let known = records(three.node(0));
    let recorded: Vec<u64> = known.iter().map(|record| record.term.0).collect();
    assert!(terms.iter().all(|term| recorded.contains(term)), "one for each of {terms:?}: {recorded:?}");
    assert!(recorded.is_sorted() && recorded.windows(2).all(|pair| pair[0] != pair[1]), "{recorded:?}");
    assert!(known.iter().skip(1).all(|record| record.cause == Cause::Transfer), "who stops hands over: {known:?}");
    assert!(known.iter().all(|record| record.votes.len() as u64 >= record.needed), "{known:?}");
    // What a node has told before its restart is there, and its numbers go on.
    let events = told(three.node(0));
    assert!(events.windows(2).all(|pair| pair[0].seq < pair[1].seq));
    let starts = events.iter().filter(|event| event.name == "raft.started").count();
    let boots: std::collections::BTreeSet<u64> = events.iter().map(|event| event.boot).collect();
    assert_eq!(starts, boots.len());
}

async fn asked(node: &Handle<Register>, path: &str, query: &str) -> serde_json::Value {
    let answer = look_back(node, path, query).await.expect("there is such a path");
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_str(answer.text()).expect("it is JSON")
}

/// Goal: every node tells the same timeline, with every vote, and names whoever it could not ask.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_tells_the_same_timeline() {
    let mut three = Three::begin().await;
    let leader = three.leader();
    three.stop(leader).await;
    three.ready().await;
    three.start(leader);
    three.ready().await;
    let complete = |node: &Handle<Register>| records(node).last().is_some_and(|last| last.ready.is_some());
    for place in three.running() {
        let both = || records(three.node(place)).len() == 2 && complete(three.node(place));
        eventually("both elections are recorded", three.node(place), both).await;
    }
    let linked = |place: usize| {
        let look = three.node(place).inspect();
        look.contacts.values().filter(|contact| contact.connected).count() == 2
    };
    for place in 0..3 {
        eventually("everybody is connected", three.node(place), || linked(place)).await;
    }
    let told = asked(three.node(0), "/cluster/timeline", "last=1").await;
    for place in 1..3 {
        assert_eq!(asked(three.node(place), "/cluster/timeline", "last=1").await, told);
    }
    assert_eq!(told["missing"], serde_json::json!([]));
    let election = &told["elections"][0];
    assert_eq!(election["election"]["cause"], "transfer", "{election}");
    assert_eq!(election["election"]["number"], 2);
    let told_by = election["events"].as_array().into_iter().flatten();
    let mut handed_over = told_by.filter(|event| event["event"] == "raft.transfer.started");
    assert!(handed_over.any(|event| event["reason"] == "shutdown"), "{election}");
    let names: Vec<&str> =
        election["events"].as_array().expect("a list").iter().filter_map(|event| event["event"].as_str()).collect();
    let order = ["raft.transfer.started", "raft.candidate", "raft.vote.cast", "raft.election.won", "raft.leader.ready"];
    let places: Vec<usize> =
        order.iter().map(|name| names.iter().position(|known| known == name).expect(name)).collect();
    assert!(places.is_sorted(), "{names:?}");
    let all = asked(three.node(1), "/cluster/elections", "").await;
    assert_eq!(all["elections"].as_array().map(Vec::len), Some(2));
    // Events of one node alone, from any of them.
    let other = three.node((leader + 1) % 3);
    let lines = look_back(other, "/cluster/events", "type=raft.started&node=a").await.expect("there is such a path");
    let line: serde_json::Value =
        serde_json::from_str(lines.text().lines().next().expect("it has started")).expect("JSON");
    assert_eq!((&line["node"], &line["event"]), (&"a".into(), &"raft.started".into()));
    three.stop(2).await;
    three.ready().await;
    let missing = asked(three.node(0), "/cluster/timeline", "last=1").await;
    assert_eq!(missing["missing"], serde_json::json!(["c"]));
}

/// Goal: what an operator asks for and what nodes notice is told as well: a hand-over with what came of it, the clock of the next leader, and
/// a majority that is gone and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hand_overs_and_majorities_are_told() {
    let mut three = Three::begin().await;
    write(three.node(0), "first").await.expect("it is written");
    let (before, to) = (three.leader(), (three.leader() + 1) % 3);
    let name = three.node(to).identity().node.clone();
    let target = Target { name: Some(name.clone()), ..Target::default() };
    three.node(to).hand_over(None, &target, TRANSFER_MAX).await.expect("it is handed over");
    let find = |place: usize, event: &str| told(three.node(place)).into_iter().find(|told| told.name == event);
    eventually("the hand-over is done", three.node(before), || find(before, "raft.transfer.done").is_some()).await;
    let (started, done) = (find(before, "raft.transfer.started"), find(before, "raft.transfer.done"));
    for event in [started.expect("it has begun"), done.expect("it is done")] {
        assert_eq!(
            (event.text_of("to"), event.text_of("reason")),
            (Some(name.as_str()), Some("operator")),
            "{event:?}"
        );
    }
    let stepped = find(before, "raft.leader.stepdown").expect("it leads no more");
    assert_eq!((stepped.text_of("reason"), stepped.level), (Some("operator"), Level::Info));
    eventually("the clock goes on", three.node(to), || find(to, "raft.clock.resumed").is_some()).await;
    let clock = find(to, "raft.clock.resumed").expect("it was told");
    assert_eq!(
        clock.number("lastStampMs").zip(clock.number("countedMs")).map(|(a, b)| a + b),
        clock.number("resumedAtMs")
    );
    let last = 3 - before - to;
    three.stop(before).await;
    three.stop(to).await;
    let node = three.node(last).clone();
    let lost = || told(&node).into_iter().find(|told| told.name == "cluster.quorum.lost");
    eventually("the majority is gone", &node, || lost().is_some()).await;
    let lost = lost().expect("it was told");
    assert_eq!((lost.number("reachable"), lost.number("needed"), lost.level), (Some(1), Some(2), Level::Error));
    three.start(before);
    three.ready().await;
    let regained = || told(&node).iter().any(|told| told.name == "cluster.quorum.regained");
    eventually("the majority is back", &node, regained).await;
}

/// Goal: a node that is alone elects itself, and records that, once for each term.
#[tokio::test]
async fn a_sole_voter_records_its_elections() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    for starts in 1..=2 {
        let config = NodeConfig::new("alone", Data::Directory(folder.path().to_owned()));
        let mut node = start(config);
        node.handle().ready().await;
        let handle = node.handle().clone();
        eventually("the election is recorded", &handle, || records(&handle).len() == starts).await;
        let record = records(&handle).pop().expect("there is one");
        assert_eq!((record.cause, record.needed, record.votes.len()), (Cause::Bootstrap, 1, 1));
        assert!(record.ready.is_some(), "{record:?}");
        handle.stop();
        node.ended().await.expect("it stops");
    }
}
