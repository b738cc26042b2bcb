//! Three nodes that are no cluster until somebody introduces them, as in raft-consul-demo: watch them wait, join them, watch the election.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::walk::nodes::{Driver, Nodes, eventually};
use crate::walk::page::Page;
use crate::walk::{READY_MAX, Row, Skip, Skipped, list, number, text, walk_rows};

struct Story {
    nodes: Nodes,
    long: bool,
}

/// Walks through the demonstration.
///
/// # Errors
/// A row does not show what it must.
pub(crate) fn walk(codeq: &Path, long: bool, driver: Driver) -> Result<Skipped> {
    let mut story = Story { nodes: Nodes::of(Page::Join, driver, codeq, "walk-cd")?, long };
    walk_rows("raft-consul-demo", ROWS, &mut story)
}

const ROWS: &[Row<Story>] = &[
    Row { number: "CD1", command: "docker compose build", run: build },
    Row { number: "CD2", command: "docker compose up | grep raft", run: up },
    Row { number: "CD3", command: "wait", run: wait },
    Row { number: "CD4", command: "curl :818{0,1,2}/healthz, /livez, /readyz", run: probes },
    Row { number: "CD5", command: "docker exec node-b codeq members; the same on node-c", run: members_alone },
    Row { number: "CD6", command: "docker exec node-a codeq join ADDRESS-OF-B ADDRESS-OF-C", run: join },
    Row { number: "CD7", command: "codeq members on all", run: members_together },
    Row { number: "CD8", command: "the log of CD2", run: story_in_the_log },
    Row { number: "CD9", command: "codeq cluster timeline --last 1 on each", run: timeline },
    Row { number: "CD18", command: "codeq members -o json; curl :8180/cluster/nodes", run: members_as_json },
    Row { number: "CD14", command: "docker stop the leader", run: stop_leader },
    Row { number: "CD16", command: "docker compose restart", run: restart },
    Row { number: "CD17", command: "node-c with an empty directory; codeq join node-a there", run: empty_directory },
    Row { number: "CD15", command: "a fourth node with expect 3; codeq join node-a there", run: fourth },
    Row { number: "CD10", command: "fresh, by names from node-b; from two at once; once more", run: join_elsewhere },
    Row { number: "CD11", command: "fresh; with one dead address; with only dead ones", run: dead_addresses },
    Row { number: "CD13", command: "fresh at level info; codeq monitor --level debug", run: story_at_info },
    Row { number: "CD12", command: "fresh; node-c expects 5; join", run: other_expectation },
    Row { number: "CD19", command: "docker compose down", run: down },
];

/// From an introduction to a leader.
const ELECTED_MAX: Duration = Duration::from_secs(3);

/// How long nodes that nobody introduces are watched.
const WATCHED: Duration = Duration::from_secs(10);
const WATCHED_LONG: Duration = Duration::from_secs(600);

fn build(story: &mut Story) -> Result<String> {
    let Some(project) = story.nodes.project() else { return Err(Skip("it needs containers").into()) };
    project.run(&["build"])?;
    Ok("built, from the scratch file".into())
}

fn up(story: &mut Story) -> Result<String> {
    story.nodes.up()?;
    for place in 0..3 {
        story.nodes.logged(place, "1 of 3 nodes known", READY_MAX)?;
    }
    Ok("each waits, and says for what".into())
}

fn wait(story: &mut Story) -> Result<String> {
    let watched = if story.long { WATCHED_LONG } else { WATCHED };
    // What is looked for is that nothing happens.
    std::thread::sleep(watched);
    for place in 0..3 {
        let log = story.nodes.log(place)?;
        let warnings = log.iter().filter(|line| line.contains("WARN raft")).count();
        ensure!(warnings == 1, "{} warns {warnings} times:\n{}", story.nodes.name(place), log.join("\n"));
        let campaigns = log.iter().find(|line| line.to_ascii_lowercase().contains("candidate"));
        ensure!(campaigns.is_none(), "{campaigns:?}");
        let nodes = story.nodes.page(place, "/cluster/nodes")?;
        ensure!(nodes["term"] == 0, "{nodes}");
        if let Some(project) = story.nodes.project() {
            let health = project.look(story.nodes.name(place), "{{.State.Health.Status}}")?;
            ensure!(health == "healthy", "{} is {health}", story.nodes.name(place));
        }
    }
    Ok(format!("{} s: one warning each, no candidate, term 0", watched.as_secs()))
}

fn probes(story: &mut Story) -> Result<String> {
    for place in 0..3 {
        let asked = |path| story.nodes.get(place, path);
        let statuses = [asked("/healthz")?.status, asked("/livez")?.status, asked("/readyz")?.status];
        ensure!(statuses == [200, 200, 503], "{statuses:?}");
        let why = String::from_utf8(asked("/readyz")?.body)?;
        ensure!(why.contains("not joined: 1 of 3 nodes known"), "{why}");
    }
    Ok("200, 200, 503 not joined: 1 of 3 nodes known".into())
}

/// What a command prints that must end with 0.
fn said(nodes: &Nodes, place: usize, arguments: &[&str]) -> Result<String> {
    let output = nodes.codeq_at(place, arguments)?;
    let [printed, complained] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    ensure!(output.status.success(), "codeq {}: {} {printed}{complained}", arguments.join(" "), output.status);
    Ok(format!("{printed}{complained}"))
}

/// The header of the table of members begins so.
const HEADER: [&str; 7] = ["Node", "Address", "Status", "Type", "Build", "Protocol", "DC"];

/// The rows of members that a node prints.
fn rows(nodes: &Nodes, place: usize) -> Result<Vec<Vec<String>>> {
    let printed = said(nodes, place, &["members"])?;
    let mut lines = printed.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let header = lines.next().unwrap_or_default();
    ensure!(header.len() >= HEADER.len() && header[..HEADER.len()] == HEADER, "{header:?}");
    Ok(lines.filter(|row| row.get(3).is_some_and(|kind| kind == "server")).collect())
}

fn members_alone(story: &mut Story) -> Result<String> {
    for place in [1, 2] {
        let rows = rows(&story.nodes, place)?;
        ensure!(rows.len() == 1 && rows[0][0] == story.nodes.name(place), "{rows:?}");
        ensure!(rows[0][2] == "alive" && rows[0].iter().any(|word| word == "unjoined"), "{rows:?}");
    }
    Ok("one row each, its own: alive, server, unjoined".into())
}

/// Where a node is reached by its address and not by its name.
fn address(nodes: &Nodes, place: usize) -> Result<String> {
    match nodes.project() {
        None => Ok(nodes.peer(place).to_owned()),
        Some(project) => project.look(nodes.name(place), "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"),
    }
}

fn join(story: &mut Story) -> Result<String> {
    let (b, c) = (address(&story.nodes, 1)?, address(&story.nodes, 2)?);
    let printed = said(&story.nodes, 0, &["join", &b, &c])?;
    ensure!(printed.contains("joined: 2 of 2 addresses answered"), "{printed}");
    Ok(printed.trim().to_owned())
}

/// Waits until all see the same three members and one leader.
fn together(nodes: &Nodes) -> Result<(Duration, Value)> {
    let begun = Instant::now();
    let seen = eventually(ELECTED_MAX, || {
        let seen = (0..3).map(|place| nodes.page(place, "/cluster/nodes")).collect::<Result<Vec<_>>>()?;
        let names =
            |seen: &Value| list(&seen["nodes"])?.iter().map(|node| text(&node["name"])).collect::<Result<Vec<_>>>();
        for one in &seen {
            ensure!(names(one)?.len() == 3 && names(one)? == names(&seen[0])?, "{one}");
            ensure!(one["leader"].is_string() && one["leader"] == seen[0]["leader"], "{one}");
            ensure!(one["clusterId"] == seen[0]["clusterId"], "{one}");
            ensure!(list(&one["nodes"])?.iter().all(|node| node["alive"] == "alive"), "{one}");
        }
        Ok(seen[0].clone())
    })?;
    Ok((begun.elapsed(), seen))
}

fn members_together(story: &mut Story) -> Result<String> {
    let (took, seen) = together(&story.nodes)?;
    for place in 0..3 {
        let rows = rows(&story.nodes, place)?;
        let leaders = rows.iter().filter(|row| row.iter().any(|word| word == "leader")).count();
        ensure!(rows.len() == 3 && leaders == 1 && rows.iter().all(|row| row[2] == "alive"), "{rows:?}");
    }
    ensure!(number(&seen["term"])? >= 1, "{seen}");
    Ok(format!("after {} ms: three alive, {} leads in term {}", took.as_millis(), seen["leader"], seen["term"]))
}

fn story_in_the_log(story: &mut Story) -> Result<String> {
    let seen = story.nodes.page(0, "/cluster/nodes")?;
    let leader = text(&seen["leader"])?;
    for place in 0..3 {
        let is_leader = story.nodes.name(place) == leader;
        if !is_leader {
            story.nodes.logged(place, "received append entries", ELECTED_MAX)?;
        }
        let log = story.nodes.log(place)?;
        let position = |word: &str| {
            let found = log.iter().position(|line| line.contains(word));
            found.with_context(|| format!("{} does not say {word:?}:\n{}", story.nodes.name(place), log.join("\n")))
        };
        let elected = position(&format!("elected leader {leader}"))?;
        ensure!(position("1 of 3 nodes known")? < elected, "it was elected before it waited");
        if is_leader {
            ensure!(position("andidate")? < elected, "it was elected before it stood for it");
        }
    }
    Ok(format!("wait, candidate, elected leader {leader}, received append entries, in this order"))
}

/// The text of a log from the first line that has one word on, and all behind it that have one of these, by their order in `words`.
fn order(log: &[String], words: &[String]) -> Vec<Option<usize>> {
    words.iter().map(|word| log.iter().position(|line| line.contains(word.as_str()))).collect()
}

fn timeline(story: &mut Story) -> Result<String> {
    let nodes = &story.nodes;
    let told = |place| -> Result<Value> {
        Ok(serde_json::from_str(&said(nodes, place, &["cluster", "timeline", "--last", "1", "-o", "json"])?)?)
    };
    let first = eventually(ELECTED_MAX, || {
        let all = (0..3).map(told).collect::<Result<Vec<_>>>()?;
        ensure!(all.iter().all(|one| *one == all[0]), "the nodes tell different things");
        ensure!(list(&all[0]["missing"])?.is_empty(), "{} are missing", all[0]["missing"]);
        ensure!(all[0]["elections"][0]["election"]["readyMs"].is_u64(), "{}", all[0]);
        Ok(all[0].clone())
    })?;
    let drawn =
        (0..3).map(|place| said(nodes, place, &["cluster", "timeline", "--last", "1"])).collect::<Result<Vec<_>>>()?;
    ensure!(drawn.iter().all(|one| *one == drawn[0]), "{drawn:?}");
    let election = &first["elections"][0]["election"];
    let (winner, term) = (text(&election["leader"])?, number(&election["term"])?);
    let place = (0..3).find(|place| nodes.name(*place) == winner).context("it is one of them")?;
    let log = nodes.log(place)?;
    let words = [
        format!("candidate in term {term}"),
        format!("election won in term {term}"),
        format!("elected leader {winner} in term {term}"),
        "writes accepted".to_owned(),
    ];
    let places = order(&log, &words);
    ensure!(places.iter().all(Option::is_some) && places.is_sorted(), "{words:?} at {places:?}:\n{}", log.join("\n"));
    let names = ["raft.candidate", "raft.election.won", "raft.leader.elected", "raft.leader.ready"];
    let events = list(&first["elections"][0]["events"])?;
    let of_winner =
        |name: &&str| events.iter().position(|event| event["event"] == **name && event["node"] == winner.as_str());
    let told: Vec<Option<usize>> = names.iter().map(of_winner).collect();
    ensure!(told.iter().all(Option::is_some) && told.is_sorted(), "{names:?} at {told:?} in {first}");
    // Its own vote is one of those it has counted in its log.
    let votes = list(&election["votes"])?.iter().filter(|vote| vote["granted"] == true).count();
    ensure!(log.iter().any(|line| line.contains(&format!("in term {term}, tally {votes}"))), "{votes} votes: {first}");
    Ok(format!("the same on each: {winner} has won term {term} with {votes} votes, in the order of its log"))
}

/// From the beginning of a watch to its first line: nodes tell each other every few seconds how they are.
const WATCHING_MAX: Duration = Duration::from_secs(15);

fn story_at_info(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    (0..3).for_each(|place| nodes.set(place, "CODEQ_LOG_LEVEL", "info"));
    fresh(nodes)?;
    let peers: Vec<String> = (0..3).map(|place| nodes.peer(place).to_owned()).collect();
    said(nodes, 0, &["join", &peers[1], &peers[2]])?;
    let (_, seen) = together(nodes)?;
    let leader = (0..3).find(|place| seen["leader"] == nodes.name(*place)).context("one leads")?;
    nodes.logged(leader, "writes accepted", ELECTED_MAX)?;
    let log = nodes.log(leader)?;
    let words = ["pre-vote started", "candidate in term", "election won", "elected leader", "writes accepted"];
    let places = order(&log, &words.map(str::to_owned));
    ensure!(places.iter().all(Option::is_some) && places.is_sorted(), "{words:?} at {places:?}:\n{}", log.join("\n"));
    for place in 0..3 {
        let votes = nodes.log(place)?.into_iter().find(|line| line.contains("vote granted by"));
        ensure!(votes.is_none(), "{} tells of votes: {votes:?}", nodes.name(place));
    }
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let watching = others.map(|place| nodes.watching(place, &["monitor", "--level", "debug", "--json"]));
    let watching = watching.into_iter().collect::<Result<Vec<_>>>()?;
    eventually(WATCHING_MAX, || {
        ensure!(watching.iter().all(|one| !one.lines().is_empty()), "nothing is shown");
        Ok(())
    })?;
    nodes.stop(leader)?;
    let votes = eventually(ELECTED_MAX, || {
        let lines: Vec<String> = watching.iter().flat_map(|one| one.lines()).collect();
        let shown = |event: &str| lines.iter().filter(|line| line.contains(&format!("\"event\":\"{event}\""))).count();
        let (cast, received) = (shown("raft.vote.cast"), shown("raft.vote.received"));
        ensure!(cast > 0 && received > 1, "{cast} votes cast and {received} received in {lines:?}");
        Ok((cast, received))
    })?;
    drop(watching);
    nodes.start(leader)?;
    together(nodes)?;
    (0..3).for_each(|place| nodes.set(place, "CODEQ_LOG_LEVEL", "debug"));
    let (cast, received) = votes;
    Ok(format!(
        "complete without the votes; the monitor shows {cast} cast and {received} received in the second election"
    ))
}

/// Without what is older a moment later.
fn without_ages(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(name, _)| !name.ends_with("Ms"));
            Value::Object(kept.map(|(name, value)| (name.clone(), without_ages(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_ages).collect()),
        other => other.clone(),
    }
}

fn members_as_json(story: &mut Story) -> Result<String> {
    let printed: Value = serde_json::from_str(&said(&story.nodes, 0, &["members", "-o", "json"])?)?;
    let page = story.nodes.page(0, "/cluster/nodes")?;
    ensure!(without_ages(&printed) == without_ages(&page), "{printed} and {page}");
    Ok("equal apart from ages".into())
}

fn stop_leader(story: &mut Story) -> Result<String> {
    let leader = text(&story.nodes.page(0, "/cluster/nodes")?["leader"])?;
    let place = (0..3).find(|place| story.nodes.name(*place) == leader).context("it is one of them")?;
    let begun = Instant::now();
    story.nodes.stop(place)?;
    let survivors = story.nodes.running();
    let next = eventually(ELECTED_MAX, || {
        let next = text(&story.nodes.page(survivors[0], "/cluster/nodes")?["leader"])?;
        ensure!(next != leader, "{leader} still leads");
        Ok(next)
    })?;
    let took = begun.elapsed();
    for survivor in &survivors {
        story.nodes.logged(*survivor, &format!("elected leader {next}"), ELECTED_MAX)?;
    }
    story.nodes.start(place)?;
    together(&story.nodes)?;
    Ok(format!("{next} leads {} ms after the stop began, and both survivors say so", took.as_millis()))
}

fn restart(story: &mut Story) -> Result<String> {
    let before = story.nodes.page(0, "/cluster/nodes")?["clusterId"].clone();
    for place in 0..3 {
        story.nodes.stop(place)?;
    }
    story.nodes.up()?;
    story.nodes.ready(&[0, 1, 2], READY_MAX)?;
    let (_, seen) = together(&story.nodes)?;
    ensure!(seen["clusterId"] == before, "{seen}");
    Ok(format!("without a join, cluster {} as before", text(&before)?))
}

/// From an introduction to a vote, with the pause in which the old node's name may still be in use.
const VOTER_MAX: Duration = Duration::from_secs(20);

fn empty_directory(story: &mut Story) -> Result<String> {
    let id = |nodes: &Nodes| text(&nodes.page(0, "/cluster/nodes/node-c")?["id"]);
    let before = id(&story.nodes)?;
    let cluster = story.nodes.page(0, "/cluster/nodes")?["clusterId"].clone();
    story.nodes.stop(2)?;
    story.nodes.remove_volume(2)?;
    story.nodes.start(2)?;
    eventually(READY_MAX, || story.nodes.get(2, "/healthz"))?;
    let begun = Instant::now();
    let a = address(&story.nodes, 0)?;
    said(&story.nodes, 2, &["join", &a])?;
    let after = eventually(VOTER_MAX, || {
        let seen = story.nodes.page(0, "/cluster/nodes")?;
        let all = list(&seen["nodes"])?;
        ensure!(all.len() == 3 && all.iter().all(|node| node["voter"] == true && node["healthy"] == true), "{seen}");
        let after = id(&story.nodes)?;
        ensure!(after != before && seen["clusterId"] == cluster, "{seen}");
        Ok(after)
    })?;
    story.nodes.ready(&[2], READY_MAX)?;
    Ok(format!(
        "{before} is {after} now, a voter {:.1} s after the join; the cluster is the same",
        begun.elapsed().as_secs_f64()
    ))
}

fn fourth(story: &mut Story) -> Result<String> {
    let nodes = &story.nodes;
    let before = nodes.page(0, "/cluster/nodes")?["clusterId"].clone();
    let extra = nodes.extra("node-d")?;
    let a = nodes.peer(0).to_owned();
    // Until it listens.
    eventually(READY_MAX, || {
        let joined = extra.codeq(&["join", &a])?;
        ensure!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
        Ok(())
    })?;
    let begun = Instant::now();
    let status = |nodes: &Nodes| -> Result<Value> {
        let seen = nodes.page(0, "/cluster/nodes")?;
        ensure!(seen["clusterId"] == before, "{seen}");
        let node = list(&seen["nodes"])?.iter().find(|node| node["name"] == "node-d").cloned();
        node.with_context(|| format!("it is no member: {seen}"))
    };
    let first = eventually(VOTER_MAX, || status(nodes))?;
    eventually(VOTER_MAX, || {
        let node = status(nodes)?;
        ensure!(node["voter"] == true && node["healthy"] == true, "{node}");
        Ok(())
    })?;
    let took = begun.elapsed();
    let log = extra.lines()?;
    ensure!(!log.iter().any(|line| line.contains("cluster formed")), "it has founded one:\n{}", log.join("\n"));
    said(nodes, 1, &["member", "remove", "node-d"])?;
    Ok(format!(
        "first seen as {}, a voter after {:.1} s, the same cluster; removed again",
        first["status"],
        took.as_secs_f64()
    ))
}

/// Three nodes that know nothing, again.
fn fresh(nodes: &mut Nodes) -> Result<()> {
    nodes.forget()?;
    nodes.up()?;
    for place in 0..3 {
        eventually(READY_MAX, || nodes.get(place, "/healthz"))?;
    }
    Ok(())
}

fn join_elsewhere(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    fresh(nodes)?;
    let peers: Vec<String> = (0..3).map(|place| nodes.peer(place).to_owned()).collect();
    said(nodes, 1, &["join", &peers[0], &peers[2]])?;
    together(nodes)?;
    fresh(nodes)?;
    std::thread::scope(|scope| {
        let nodes = &*nodes;
        let (peers, both) = (&peers, [0, 2]);
        let joined = both.map(|place| scope.spawn(move || said(nodes, place, &["join", &peers[1]])));
        joined
            .into_iter()
            .try_for_each(|joined| joined.join().map_err(|_| anyhow::anyhow!("a join panicked"))?.map(|_| ()))
    })?;
    let (took, _) = together(nodes)?;
    let again = said(nodes, 0, &["join", &peers[1], &peers[2]])?;
    ensure!(again.contains("already"), "{again}");
    Ok(format!("one cluster each time, the second {} ms after both joins; then: {}", took.as_millis(), again.trim()))
}

fn dead_addresses(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    fresh(nodes)?;
    let [dead, gone] = ["127.0.0.1:9", "127.0.0.1:10"];
    let none = nodes.codeq_at(0, &["join", dead, gone])?;
    let complained = String::from_utf8_lossy(&none.stderr).into_owned();
    let names_all = complained.contains(dead) && complained.contains(gone);
    ensure!(none.status.code() == Some(1) && names_all, "{}: {complained}", none.status);
    let (b, c) = (nodes.peer(1).to_owned(), nodes.peer(2).to_owned());
    let some = said(nodes, 0, &["join", &b, dead, &c])?;
    ensure!(some.contains(dead) && some.contains("2 of 3"), "{some}");
    together(nodes)?;
    Ok(format!("{}: {}; then 0: {}", none.status, complained.trim(), some.trim().replace('\n', "; ")))
}

fn other_expectation(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    nodes.set(2, "CODEQ_BOOTSTRAP_EXPECT", "5");
    fresh(nodes)?;
    let (b, c) = (nodes.peer(1).to_owned(), nodes.peer(2).to_owned());
    said(nodes, 0, &["join", &b, &c])?;
    let mut told = Vec::new();
    for place in [0, 2] {
        told.push(nodes.logged(place, "cluster.bootstrapExpect is", ELECTED_MAX)?);
    }
    ensure!(told.iter().all(|line| line.contains('3') && line.contains('5')), "{told:?}");
    for place in 0..3 {
        let seen = nodes.page(place, "/cluster/nodes")?;
        ensure!(seen["clusterId"].is_null(), "{seen}");
    }
    Ok("nothing is founded; both sides name the setting and both numbers".into())
}

fn down(story: &mut Story) -> Result<String> {
    let begun = Instant::now();
    story.nodes.down()?;
    Ok(format!("all end with 0 after {} ms", begun.elapsed().as_millis()))
}
