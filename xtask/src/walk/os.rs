//! Three nodes that each keep a SQLite file of their own, as in orchestrator: its questions, a page on each node, nodes that stop and come back.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::docker::docker;
use crate::http::Answer;
use crate::walk::nodes::{Driver, Nodes, allowed, eventually, send_as};
use crate::walk::os_operate as operate;
use crate::walk::page::Page;
use crate::walk::{READY_MAX, Row, STATUS, Skip, Skipped, TASKS, expect, list, text, walk_rows};
use crate::walk::{os_access, os_disk};

pub(super) struct Story {
    pub(super) nodes: Nodes,
}

/// Walks through the table.
///
/// # Errors
/// A row does not show what it must.
pub(crate) fn walk(codeq: &Path, driver: Driver) -> Result<Skipped> {
    let mut story = Story { nodes: Nodes::of(Page::Sqlite, driver, codeq, "walk-os")? };
    walk_rows("orchestrator-raft-sqlite", ROWS, &mut story)
}

const ROWS: &[Row<Story>] = &[
    Row { number: "OS1", command: "docker build -f deploy/Dockerfile.scratch .; docker images", run: images },
    Row { number: "OS2", command: "curl -w ' %{http_code}' localhost:300N/api/leader-check", run: leader_check },
    Row { number: "OS4", command: "/api/leader-check/503, HEAD, /cluster/leader-check", run: other_checks },
    Row { number: "OS5", command: "docker logs codeq1, codeq2, codeq3", run: logs },
    Row { number: "OS8", command: "curl :300N/ and /web/status", run: pages },
    Row { number: "OS10", command: "each /api question on all three", run: questions },
    Row { number: "OS11", command: "create at each port, read at the next, claim at the third", run: tasks },
    Row {
        number: "OS6",
        command: "codeq debug db path, tables, check; docker kill and start; copy F, sqlite3 F",
        run: operate::look_at_the_file,
    },
    Row {
        number: "OS7",
        command: "200 operations; codeq snapshot trigger; codeq debug db dump on each",
        run: operate::equal_dumps,
    },
    Row {
        number: "OS12",
        command: "POST /cluster/leader/transfer to a node, to a zone; step-down",
        run: operate::another_leader,
    },
    Row { number: "OS13", command: "GET on the old action paths", run: old_actions },
    Row { number: "OS13", command: "snapshot trigger; members removed and added", run: operate::members },
    Row { number: "OS13", command: "POST /cluster/reload", run: operate::reload },
    Row {
        number: "OS14",
        command: "codeq leader --endpoints with none, one, two stopped; which-endpoint",
        run: operate::endpoints,
    },
    Row { number: "OS9", command: "docker stop a follower; start it", run: stop_follower },
    Row { number: "OS15", command: "docker network disconnect orchnet $LEADER; connect", run: disconnect },
    Row { number: "OS16", command: "the leader's disk gets full; it breaks", run: os_disk::of_leader },
    Row { number: "E31", command: "little room on one disk, on all, and room again", run: os_disk::little_room },
    Row { number: "OS17", command: "a follower down over 50000 operations, then started", run: operate::away_for_long },
    Row { number: "OS18", command: "all containers with other addresses, same volumes", run: other_addresses },
    Row { number: "OS19", command: "one with an empty volume", run: empty_volume },
    Row { number: "OS20", command: "RAFT=false", run: single_mode },
    Row {
        number: "OS21",
        command: "its data without RAFT=false, then two joiners; a list of only itself",
        run: operate::alone_grows,
    },
    Row {
        number: "OS22",
        command: "--tokens-file: a viewer, an operator, nobody; basic authentication; --read-only",
        run: os_access::roles,
    },
    Row {
        number: "OS22",
        command: "--http-cert, --http-client-ca: codeq health with and without a certificate",
        run: os_access::encrypted,
    },
    Row { number: "OS3", command: "RAFT_NODES with names in quotes, fresh volumes", run: operate::quoted_names },
    Row { number: "OS23", command: "docker stop codeq1 codeq2 codeq3", run: stop_all },
];

fn images(story: &mut Story) -> Result<String> {
    if story.nodes.driver() == Driver::Process {
        return Err(Skip("it needs containers").into());
    }
    let listed = docker(&["images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}", "codeq"])?;
    ensure!(listed.contains("codeq:latest"), "{listed}");
    Ok(listed.trim().replace('\n', ", "))
}

pub(super) fn all<T>(look: impl Fn(usize) -> Result<T>) -> Result<Vec<T>> {
    (0..3).map(look).collect()
}

/// The only one of three that says it leads.
pub(super) fn only_leader(nodes: &Nodes) -> Result<usize> {
    let answers = all(|place| nodes.get(place, "/api/leader-check"))?;
    let leads = |answer: &Answer| answer.status == 200 && answer.body == b"\"OK\"";
    let follows = |answer: &Answer| answer.status == 404 && answer.body == b"\"Not leader\"";
    let leaders: Vec<usize> = (0..3).filter(|place| leads(&answers[*place])).collect();
    let followers = answers.iter().filter(|answer| follows(answer)).count();
    ensure!(leaders.len() == 1 && followers == 2, "{leaders:?} lead, {followers} follow");
    Ok(leaders[0])
}

/// The leader, once there is one again: rows before may have stopped some.
pub(super) fn leader_of(nodes: &Nodes) -> Result<usize> {
    eventually(READY_MAX, || only_leader(nodes))
}

fn leader_check(story: &mut Story) -> Result<String> {
    let begun = Instant::now();
    story.nodes.up()?;
    let leader = leader_of(&story.nodes)?;
    story.nodes.ready(&[0, 1, 2], READY_MAX)?;
    Ok(format!(
        "{} \"OK\" 200, the others \"Not leader\" 404, after {} ms",
        story.nodes.name(leader),
        begun.elapsed().as_millis()
    ))
}

fn other_checks(story: &mut Story) -> Result<String> {
    let leader = leader_of(&story.nodes)?;
    for place in 0..3 {
        let nodes = &story.nodes;
        let expected = |no| if place == leader { 200 } else { no };
        ensure!(nodes.get(place, "/api/leader-check/503")?.status == expected(503), "/503");
        ensure!(nodes.send(place, "HEAD", "/api/leader-check", "")?.status == expected(404), "HEAD");
        let plain = nodes.get(place, "/cluster/leader-check")?;
        let body = if place == leader { "OK" } else { "Not leader" };
        ensure!(plain.status == expected(404) && plain.body == body.as_bytes(), "{plain}");
        ensure!(nodes.get(place, "/api/routed-leader-check")?.status == 200, "a leader can be reached");
    }
    Ok("503 where it was asked for; the same statuses; OK, Not leader".into())
}

/// The log says so often who leads, and members tell each other so often how they are.
const STATUS_EVERY: Duration = Duration::from_secs(5);

fn logs(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    let leader = leader_of(nodes)?;
    let lines = |nodes: &Nodes, place, text: &str| -> Result<Vec<String>> {
        Ok(nodes.log(place)?.into_iter().filter(|line| line.contains(text)).collect())
    };
    let address = format!("leader is {} at {}", nodes.name(leader), nodes.peer(leader));
    for place in 0..3 {
        // The one at the change, and then another one.
        let told = eventually(3 * STATUS_EVERY, || {
            let told = lines(nodes, place, &address)?;
            ensure!(told.len() > 1, "{} says so {} times: {address}", nodes.name(place), told.len());
            Ok(told)
        })?;
        let state = if place == leader { "(this node); state leader, applied " } else { "; state follower, applied " };
        let last = told.last().context("there are two")?;
        ensure!(last.contains(state) && last.contains("(this node)") == (place == leader), "{last}");
    }
    let follower = (leader + 1) % 3;
    nodes.stop(follower)?;
    nodes.set(follower, "CODEQ_RAFT_LOG_LEVEL", "debug");
    nodes.start(follower)?;
    nodes.ready(&[follower], READY_MAX)?;
    let report = nodes.logged(follower, "says how it is", 2 * STATUS_EVERY)?;
    nodes.unset(follower, "CODEQ_RAFT_LOG_LEVEL");
    Ok(format!(
        "leader's address, own state and index, at the change and every 5 s; at debug also {}",
        report.split("raft: ").last().unwrap_or_default()
    ))
}

fn pages(story: &mut Story) -> Result<String> {
    let nodes = &story.nodes;
    let leader = leader_of(nodes)?;
    for place in 0..3 {
        for path in ["/", "/web/status"] {
            let page = nodes.get(place, path)?;
            let html = String::from_utf8(page.body.clone())?;
            let name = nodes.name(place);
            ensure!(page.status == 200 && html.contains(&format!("{name}</a> (this node)")), "{page}");
            ensure!(html.matches("<tr").count() >= 3 && nodes.names().iter().all(|name| html.contains(name)), "{html}");
            ensure!(!html.contains("src=") && !html.contains("<script"), "it loads something: {html}");
            let shown = ["Storage", "sqlite ", "Version", "Uptime", "Role", "★"];
            let missing = shown.iter().find(|text| !html.contains(**text));
            ensure!(missing.is_none(), "{missing:?} is not in {html}");
            ensure!(html.contains(&format!("href=\"{}/\"", nodes.public_url(leader))), "{html}");
        }
    }
    ensure!(nodes.get(leader, "/")?.status == 200, "the leader's page answers at its public URL");
    Ok("own node marked, three rows, leader's public URL, storage, version, uptime; nothing is loaded".into())
}

fn questions(story: &mut Story) -> Result<String> {
    let nodes = &story.nodes;
    let ask = |place, name: &str| nodes.page(place, &format!("/api/{name}"));
    let mut states = all(|place| text(&ask(place, "raft-state")?))?;
    let leaders = all(|place| text(&ask(place, "raft-leader")?))?;
    ensure!(leaders.iter().all(|leader| *leader == leaders[0] && leader.contains(':')), "{leaders:?}");
    for (place, state) in states.iter().enumerate() {
        let peers = ask(place, "raft-peers")?;
        ensure!(list(&peers)?.len() == 3 && list(&peers)?.contains(&json!(leaders[0])), "{peers}");
        for (name, expected) in [("raft-health", "healthy"), ("lb-check", "OK"), ("_ping", "OK")] {
            ensure!(ask(place, name)? == expected, "{name}");
        }
        for name in ["health", "status"] {
            let health = ask(place, name)?;
            ensure!(health["Code"] == "OK" && health["Details"]["Healthy"] == true, "{health}");
        }
        let status = ask(place, "raft-status")?;
        ensure!(status["State"] == *state && status["Leader"] == leaders[0], "{status}");
        ensure!(status["Healthy"] == true && status["IsPartOfQuorum"] == true, "{status}");
        ensure!(list(&status["Peers"])?.len() == 3 && text(&status["LeaderURI"])?.starts_with("http://"), "{status}");
    }
    states.sort();
    ensure!(states == ["Follower", "Follower", "Leader"], "{states:?}");
    Ok(format!("one Leader, at {} for all; three peers; healthy", leaders[0]))
}

fn tasks(story: &mut Story) -> Result<String> {
    let nodes = &story.nodes;
    let leader = nodes.name(leader_of(nodes)?);
    for place in 0..3 {
        let command = format!("OS11-{place}");
        let created = nodes.post(place, TASKS, &json!({ "command": command, "payload": 1 }))?;
        let task = expect(&created, 202)?;
        ensure!(created.header("codeq-served-by") == Some(leader), "{:?}", created.header("codeq-served-by"));
        let read = nodes.page((place + 1) % 3, &format!("{TASKS}/{}", text(&task["id"])?))?;
        ensure!(read["status"] == "PENDING", "{read}");
        let body = json!({ "commands": [command], "leaseSeconds": 60 });
        let claimed = nodes.post((place + 2) % 3, &format!("{TASKS}/claim"), &body)?;
        ensure!(expect(&claimed, 200)?["id"] == task["id"], "{claimed}");
        ensure!(claimed.header("codeq-served-by") == Some(leader), "{:?}", claimed.header("codeq-served-by"));
    }
    Ok(format!("made, read and claimed at three nodes each; {leader} has executed it"))
}

fn old_actions(story: &mut Story) -> Result<String> {
    let actions = ["raft-yield/codeq2", "raft-yield-hint/dc1", "reelect", "raft-add-peer/a", "raft-remove-peer/a"];
    for name in actions.iter().chain(&["raft-snapshot", "reload-configuration"]) {
        let refused = story.nodes.get(0, &format!("/api/{name}"))?;
        let problem = expect(&refused, 405)?;
        ensure!(text(&problem["detail"])?.contains(" /cluster/"), "{problem}");
    }
    Ok("405, naming the route".into())
}

/// Whoever is not heard of for two intervals of reports is told of.
const NOTICED_MAX: Duration = Duration::from_secs(10);

fn stop_follower(story: &mut Story) -> Result<String> {
    let leader = leader_of(&story.nodes)?;
    let (follower, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let name = story.nodes.name(follower);
    story.nodes.stop(follower)?;
    let begun = Instant::now();
    let is_healthy = |nodes: &Nodes, place, healthy| -> Result<String> {
        let node = nodes.page(place, &format!("/cluster/nodes/{name}"))?;
        ensure!(node["healthy"] == healthy, "{node}");
        text(&node["message"])
    };
    for place in [leader, other] {
        let message = eventually(NOTICED_MAX, || is_healthy(&story.nodes, place, false))?;
        let html = String::from_utf8(story.nodes.get(place, "/")?.body)?;
        ensure!(html.contains("not heard of for"), "{message}, but the page has {html}");
        let printed = String::from_utf8(story.nodes.codeq_at(place, &["members"])?.stdout)?;
        ensure!(printed.contains("failed") && printed.contains("not heard of for"), "{printed}");
    }
    let noticed = begun.elapsed();
    story.nodes.start(follower)?;
    for place in [leader, other] {
        eventually(NOTICED_MAX, || is_healthy(&story.nodes, place, true))?;
    }
    story.nodes.ready(&[follower], READY_MAX)?;
    Ok(format!("both others show it with the age after {} ms, and healthy after its start", noticed.as_millis()))
}

/// From a cut to a new leader, and to the first refusal.
const CUT_MAX: Duration = Duration::from_secs(2);

fn disconnect(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    let leader = leader_of(nodes)?;
    let survivors = [(leader + 1) % 3, (leader + 2) % 3];
    let name = nodes.name(leader);
    let Some(project) = nodes.project() else { return Err(Skip("it needs containers").into()) };
    let network = project.look(name, "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}")?;
    let container = project.container(name)?;
    docker(&["network", "disconnect", &network, &container])?;
    let begun = Instant::now();
    let task = json!({ "command": "OS15", "payload": 1 });
    eventually(CUT_MAX, || expect(&nodes.post(survivors[0], TASKS, &task)?, 202))?;
    let outage = begun.elapsed();
    eventually(CUT_MAX, || {
        let health = nodes.codeq_at(leader, &["health", "--ready"])?;
        ensure!(health.status.code() == Some(6), "{} {}", health.status, String::from_utf8_lossy(&health.stdout));
        Ok(())
    })?;
    let next = text(&nodes.page(survivors[0], STATUS)?["leaderID"])?;
    let term = nodes.page(survivors[0], STATUS)?["term"].clone();
    docker(&["network", "connect", "--alias", name, &network, &container])?;
    // A container that comes back may have lost its port on this machine for a moment, but not its name.
    eventually(READY_MAX, || {
        let node = nodes.page(survivors[0], &format!("/cluster/nodes/{name}"))?;
        ensure!(node["status"] == "follower" && node["healthy"] == true, "{node}");
        let status = nodes.page(survivors[0], STATUS)?;
        ensure!(status["leaderID"] == next && status["term"] == term, "{status}");
        Ok(())
    })?;
    eventually(READY_MAX, || {
        let health = nodes.codeq_at(leader, &["health", "--ready"])?;
        ensure!(health.status.success(), "{}", String::from_utf8_lossy(&health.stdout));
        Ok(())
    })?;
    Ok(format!(
        "writes again after {} ms; {name} not ready, then a follower; {next} still leads in term {term}",
        outage.as_millis()
    ))
}

fn other_addresses(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    let before = nodes.page(0, STATUS)?["clusterId"].clone();
    if nodes.driver() == Driver::Process {
        return Err(Skip("it needs containers").into());
    }
    let addresses = |nodes: &Nodes| -> Result<Vec<String>> {
        let project = nodes.project().context("they are containers")?;
        all(|place| project.look(nodes.name(place), "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"))
    };
    let old = addresses(nodes)?;
    nodes.down()?;
    // Addresses are given out in the order of starts.
    for place in [2, 1, 0] {
        nodes.start(place)?;
    }
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let new = addresses(nodes)?;
    ensure!(old != new, "the addresses are as they were: {new:?}");
    ensure!(nodes.page(0, STATUS)?["clusterId"] == before, "another cluster");
    Ok(format!("{} are {} now, and one cluster as before", old.join(", "), new.join(", ")))
}

/// From a start to a vote, with the pause in which the old node's name may still be in use.
const VOTER_MAX: Duration = Duration::from_secs(20);

fn empty_volume(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    let leader = leader_of(nodes)?;
    let follower = (leader + 1) % 3;
    let path = format!("/cluster/nodes/{}", nodes.name(follower));
    let before = nodes.page(leader, &path)?["id"].clone();
    nodes.stop(follower)?;
    nodes.remove_volume(follower)?;
    let begun = Instant::now();
    nodes.start(follower)?;
    let after = eventually(VOTER_MAX, || {
        let node = nodes.page(leader, &path)?;
        ensure!(node["id"] != before && node["voter"] == true && node["healthy"] == true, "{node}");
        text(&node["id"])
    })?;
    nodes.ready(&[follower], READY_MAX)?;
    Ok(format!("{} is {after} now, a voter after {:.1} s", text(&before)?, begun.elapsed().as_secs_f64()))
}

fn single_mode(story: &mut Story) -> Result<String> {
    let mut one = story.nodes.others("walk-single")?;
    if one.driver() == Driver::Docker {
        // They have the same ports and names.
        story.nodes.down()?;
    }
    for name in ["RAFT_NODES", "BIND", "RAFT_BIND_ADDR"] {
        one.unset(0, name);
    }
    one.set(0, "RAFT", "false");
    one.start(0)?;
    one.ready(&[0], READY_MAX)?;
    let ask = |path: &str| send_as(one.http(0), None, "GET", path, "");
    let created = expect(&one.post(0, TASKS, &json!({ "command": "OS20", "payload": 1 }))?, 202)?;
    text(&created["id"])?;
    let html = String::from_utf8(ask("/")?.body)?;
    ensure!(html.contains("single mode"), "{html}");
    let nodes = expect(&ask("/cluster/nodes")?, 200)?;
    ensure!(list(&nodes["nodes"])?.len() == 1 && nodes["nodes"][0]["status"] == "standalone", "{nodes}");
    ensure!(ask("/api/leader-check")?.status == 200, "it leads");
    ensure!(expect(&ask(STATUS)?, 200)?["enabled"] == false, "Raft is off");
    let raft: Value = expect(&ask("/api/raft-state")?, 500)?;
    ensure!(raft["Message"] == "raft-state: not running with raft setup", "{raft}");
    let join = one.post(0, "/cluster/join", &json!({ "addresses": ["127.0.0.1:9"] }))?;
    ensure!(expect(&join, 409)?["code"] == "single_mode", "{join}");
    one.forget()?;
    drop(one);
    story.nodes.up()?;
    story.nodes.ready(&[0, 1, 2], READY_MAX)?;
    Ok("tasks; \"single mode\" on the page; one standalone node; 200; enabled false; 500; join 409 single_mode".into())
}

fn stop_all(story: &mut Story) -> Result<String> {
    let begun = Instant::now();
    story.nodes.down()?;
    let took = begun.elapsed();
    ensure!(took <= allowed(Duration::from_secs(10)), "after {took:?}");
    Ok(format!("all exit 0 after {} ms", took.as_millis()))
}
