//! raftbase: one command builds it, one starts a node, three command lines start a cluster; and what happens when nodes stop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::docker::printed;
use crate::http::Client;
use crate::process::Folder;
use crate::repository::root;
use crate::walk::bad_config::ended;
use crate::walk::nodes::{Driver, End, Nodes, STOP_MAX, eventually, free_ports};
use crate::walk::page::Page;
use crate::walk::{READY_MAX, Row, STATUS, Skip, Skipped, TASKS, expect, list, number, text, walk_rows};

struct Story {
    codeq: PathBuf,
    /// The program was given, so nothing is built.
    given: bool,
    long: bool,
    /// One node that nothing was said to but where its data is.
    one: Nodes,
    /// What it was when it ran first.
    first: Value,
    three: Nodes,
}

/// Walks through the table, without containers.
///
/// # Errors
/// A row does not show what it must.
pub(crate) fn walk(codeq: &Path, given: bool, long: bool) -> Result<Skipped> {
    let mut one = Nodes::of(Page::Listed, Driver::Process, codeq, "walk-rb-one")?;
    for name in ["CODEQ_INITIAL_CLUSTER", "CODEQ_RAFT_ADDR", "CODEQ_CLUSTER_TOKEN"] {
        one.unset(0, name);
    }
    let three = Nodes::of(Page::Listed, Driver::Process, codeq, "walk-rb")?;
    let mut story = Story { codeq: codeq.to_owned(), given, long, one, first: Value::Null, three };
    walk_rows("raftbase", ROWS, &mut story)
}

const ROWS: &[Row<Story>] = &[
    Row { number: "RB1", command: "make help; make build", run: make },
    Row { number: "RB2", command: "codeq serve; curl -s :8080/healthz", run: run_one },
    Row { number: "RB3", command: "curl -s :8080/cluster/nodes", run: one_node },
    Row { number: "RB4", command: "Ctrl-C", run: stop_one },
    Row { number: "RB5", command: "codeq serve again", run: run_again },
    Row { number: "RB6", command: "codeq serve --help", run: help },
    Row {
        number: "RB7", command: "codeq serve --node-id n1 … --initial-cluster n1=…,n2=…,n3=…", run: first_of_three
    },
    Row { number: "RB8", command: "the same for n2 and n3", run: three_nodes },
    Row {
        number: "RB10",
        command: "stop n2; start it with directory and addresses only, then in full",
        run: without_list,
    },
    Row { number: "RB11", command: "a fourth with another --cluster-token", run: another_token },
    Row { number: "RB12", command: "a second process on data/n1; a port in use", run: in_use },
    Row {
        number: "RB13",
        command: "--raft-addr localhost:PORT; 0.0.0.0:PORT with and without --raft-advertise",
        run: peer_addresses,
    },
    Row { number: "RB14", command: "--log-format json; --log-level error", run: logs },
    Row { number: "RB15", command: "SIGTERM to the leader, clients writing at the others", run: stop_leader },
    Row { number: "RB16", command: "kill -9 the leader", run: kill_leader },
    Row { number: "RB9", command: "RB7 and RB8 in the other five orders", run: other_orders },
    Row { number: "RB17", command: "make test-unit; make fmt; make clean", run: make_tests },
];

fn make(story: &mut Story) -> Result<String> {
    let help = printed(Command::new("make").arg("help").current_dir(root()))?;
    for target in ["help", "install", "run", "build", "test", "test-unit", "test-e2e", "lint", "fmt", "clean"] {
        ensure!(
            help.lines().any(|line| line.split_whitespace().next() == Some(target)),
            "no line for {target}: {help}"
        );
    }
    if story.given {
        return Ok("ten targets; nothing is built, for the program was given".into());
    }
    printed(Command::new("make").arg("build").current_dir(root()))?;
    let version = printed(Command::new(root().join("bin/codeq")).arg("version"))?;
    Ok(format!("ten targets; bin/codeq is {}", version.trim()))
}

/// From a start to the first answer.
const STARTED_MAX: Duration = Duration::from_secs(2);

fn run_one(story: &mut Story) -> Result<String> {
    story.one.start(0)?;
    let begun = Instant::now();
    let answer = eventually(STARTED_MAX, || story.one.get(0, "/healthz"))?;
    ensure!(answer.status == 200 && answer.body == b"ok", "{answer}");
    Ok(format!("200 ok after {} ms", begun.elapsed().as_millis()))
}

fn one_node(story: &mut Story) -> Result<String> {
    story.one.ready(&[0], READY_MAX)?;
    story.first = story.one.page(0, "/cluster/nodes")?;
    let nodes = list(&story.first["nodes"])?;
    ensure!(nodes.len() == 1 && nodes[0]["status"] == "leader", "{}", story.first);
    expect(&story.one.post(0, TASKS, &json!({ "command": "RB", "payload": 1 }))?, 202)?;
    Ok("one node, leader".into())
}

fn stop_one(story: &mut Story) -> Result<String> {
    let begun = Instant::now();
    let End { status, lines } = story.one.stopping(0)?.end(STOP_MAX)?;
    ensure!(status.success(), "{status}");
    let loud = lines.iter().find(|line| line.contains(" WARN ") || line.contains(" ERROR "));
    ensure!(loud.is_none(), "{loud:?}");
    Ok(format!("exit 0 after {} ms; no warning, no error", begun.elapsed().as_millis()))
}

fn run_again(story: &mut Story) -> Result<String> {
    story.one.start(0)?;
    story.one.ready(&[0], READY_MAX)?;
    let nodes = story.one.page(0, "/cluster/nodes")?;
    ensure!(nodes["nodes"][0]["id"] == story.first["nodes"][0]["id"], "{nodes} and {}", story.first);
    ensure!(nodes["clusterId"] == story.first["clusterId"], "{nodes} and {}", story.first);
    let (before, after) = (number(&story.first["term"])?, number(&nodes["term"])?);
    ensure!(after > before, "{nodes} and {}", story.first);
    let body = json!({ "commands": ["RB"], "leaseSeconds": 60 });
    expect(&story.one.post(0, &format!("{TASKS}/claim"), &body)?, 200)?;
    story.one.down()?;
    Ok(format!("the same id and cluster, term {before} is {after} now, its task is there"))
}

fn first_of_three(story: &mut Story) -> Result<String> {
    let nodes = &mut story.three;
    nodes.start(0)?;
    eventually(STARTED_MAX, || nodes.get(0, "/healthz"))?;
    let why = eventually(STARTED_MAX, || {
        let ready = nodes.get(0, "/readyz")?;
        let text = String::from_utf8(ready.body.clone())?;
        ensure!(ready.status == 503 && text.contains("n2 and n3 are missing"), "{ready}");
        Ok(text)
    })?;
    ensure!(nodes.page(0, "/cluster/nodes")?["term"] == 0, "there was an election");
    let why = why.lines().find(|line| line.contains("joined")).unwrap_or_default();
    Ok(format!("503 {why}; no election"))
}

/// From the last start to a cluster.
const FORMED_MAX: Duration = Duration::from_secs(3);

/// Waits until all three name the same three, one leader and two followers.
fn formed(nodes: &Nodes) -> Result<String> {
    let begun = Instant::now();
    let leader = eventually(FORMED_MAX, || {
        let seen = (0..3).map(|place| nodes.page(place, "/cluster/nodes")).collect::<Result<Vec<_>>>()?;
        for one in &seen {
            let mut statuses =
                list(&one["nodes"])?.iter().map(|node| text(&node["status"])).collect::<Result<Vec<_>>>()?;
            statuses.sort();
            ensure!(statuses == ["follower", "follower", "leader"], "{one}");
            ensure!(one["leader"] == seen[0]["leader"] && one["clusterId"] == seen[0]["clusterId"], "{one}");
        }
        text(&seen[0]["leader"])
    })?;
    Ok(format!("{leader} leads for all after {} ms", begun.elapsed().as_millis()))
}

fn three_nodes(story: &mut Story) -> Result<String> {
    story.three.start(1)?;
    story.three.start(2)?;
    formed(&story.three)
}

fn other_orders(story: &mut Story) -> Result<String> {
    let mut seen = Vec::new();
    for order in [[0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        story.three.forget()?;
        for place in order {
            story.three.start(place)?;
            eventually(STARTED_MAX, || story.three.get(place, "/healthz"))?;
        }
        seen.push(formed(&story.three)?);
    }
    Ok(seen.join("; "))
}

fn without_list(story: &mut Story) -> Result<String> {
    let nodes = &mut story.three;
    let path = "/cluster/nodes/n2";
    let before = nodes.page(0, path)?["id"].clone();
    let lists = ["CODEQ_INITIAL_CLUSTER", "CODEQ_CLUSTER_TOKEN"];
    let saved: BTreeMap<String, String> = nodes.variables(1).clone();
    nodes.stop(1)?;
    lists.iter().for_each(|name| nodes.unset(1, name));
    let own = nodes.peer(1).to_owned();
    nodes.set(1, "CODEQ_RAFT_ADVERTISE", &own);
    nodes.start(1)?;
    nodes.ready(&[1], STARTED_MAX)?;
    ensure!(nodes.page(1, path)?["id"] == before, "another id");
    nodes.stop(1)?;
    nodes.unset(1, "CODEQ_RAFT_ADVERTISE");
    lists.iter().for_each(|name| nodes.set(1, name, &saved[*name]));
    nodes.start(1)?;
    nodes.ready(&[1], STARTED_MAX)?;
    ensure!(nodes.page(1, path)?["id"] == before, "another id");
    let ignored = nodes.log(1)?.into_iter().filter(|line| line.contains("belongs to a cluster already")).count();
    ensure!(ignored == 1, "{ignored} lines tell what is ignored");
    Ok("the same id both times, ready within 2 s; one line tells what is ignored".into())
}

fn another_token(story: &mut Story) -> Result<String> {
    let nodes = &story.three;
    let ports = free_ports(2)?;
    let mut variables = nodes.variables(0).clone();
    let list = format!("{},n4=127.0.0.1:{}", variables["CODEQ_INITIAL_CLUSTER"], ports[1]);
    let data = format!("{}-n4", variables["CODEQ_DATA_DIR"]);
    let changes = [
        ("CODEQ_NODE_ID", "n4".to_owned()),
        ("PORT", ports[0].to_string()),
        ("CODEQ_RAFT_ADDR", format!("127.0.0.1:{}", ports[1])),
        ("CODEQ_INITIAL_CLUSTER", list),
        ("CODEQ_CLUSTER_TOKEN", "another".into()),
        ("CODEQ_DATA_DIR", data),
        ("CODEQ_JOIN_TIMEOUT", "3s".into()),
    ];
    variables.extend(changes.map(|(name, value)| (name.to_owned(), value)));
    let begun = Instant::now();
    let line = ended(&story.codeq, &[], &variables, 3, &["clusterToken"])?;
    ensure!(list_of(nodes)?.len() == 3, "a fourth has entered");
    Ok(format!("after {:.1} s {line}", begun.elapsed().as_secs_f64()))
}

fn list_of(nodes: &Nodes) -> Result<Vec<Value>> {
    Ok(list(&nodes.page(0, "/cluster/nodes")?["nodes"])?.to_vec())
}

/// Settings of a cluster of which a flag, a variable and a default are told; those of which nothing is told are not there.
const SETTINGS: [&str; 30] = [
    "node-id",
    "data-dir",
    "shards",
    "storage",
    "http-addr",
    "http-advertise",
    "public-url",
    "raft-addr",
    "raft-advertise",
    "initial-cluster",
    "peer-http",
    "bootstrap",
    "raft",
    "initial-cluster-state",
    "cluster-token",
    "cluster-secret-file",
    "bootstrap-expect",
    "join",
    "join-timeout",
    "election-timeout",
    "heartbeat",
    "leader-lease",
    "propose-timeout",
    "leader-wait",
    "drain-timeout",
    "follower-writes",
    "promote-lag",
    "promote-after",
    "health-interval",
    "zone",
];

fn help(story: &mut Story) -> Result<String> {
    let help = printed(Command::new(&story.codeq).args(["serve", "--help"]))?;
    let mut flags = 0;
    // A flag stands on a line of its own, and what it means on the next one.
    let lines: Vec<&str> = help.lines().map(str::trim).collect();
    for pair in lines.windows(2).filter(|pair| pair[0].starts_with("--") && !pair[0].starts_with("--config")) {
        ensure!(pair[1].contains("Environment: "), "{} has no variable: {}", pair[0], pair[1]);
        flags += 1;
    }
    for name in SETTINGS {
        let flag = format!("--{name} ");
        let meaning =
            lines.windows(2).find(|pair| pair[0].starts_with(&flag) || pair[0].starts_with(&format!("--{name} [")));
        meaning.with_context(|| format!("there is no {flag}in {help}"))?;
    }
    let defaults = lines.iter().filter(|line| line.contains("[default: ")).count();
    ensure!(defaults > SETTINGS.len(), "{defaults} defaults are told");
    Ok(format!("{flags} flags, each with its variable; {defaults} with a default, the others have none"))
}

fn peer_addresses(story: &mut Story) -> Result<String> {
    for all_interfaces in [false, true] {
        let ports = free_ports(2)?;
        let mut nodes = Nodes::of(Page::Listed, Driver::Process, &story.codeq, "walk-rb-addr")?;
        let named = format!("localhost:{}", ports[0]);
        nodes.set(0, "CODEQ_INITIAL_CLUSTER", &format!("n1={named}"));
        let listens = if all_interfaces { format!("0.0.0.0:{}", ports[0]) } else { named.clone() };
        nodes.set(0, "CODEQ_RAFT_ADDR", &listens);
        nodes.set(0, "CODEQ_RAFT_ADVERTISE", &named);
        nodes.start(0)?;
        nodes.ready(&[0], READY_MAX)?;
        let node = nodes.page(0, "/cluster/nodes")?["nodes"][0].clone();
        ensure!(node["raftAddr"] == named, "{node}");
    }
    let port = free_ports(1)?[0];
    let arguments = ["--raft-addr", &format!("0.0.0.0:{port}"), "--node-id", "n1"];
    let refused = ended_with(&story.codeq, &arguments, 2, &["--raft-advertise"])?;
    Ok(format!("works; works; {refused}"))
}

fn ended_with(codeq: &Path, arguments: &[&str], status: i32, named: &[&str]) -> Result<String> {
    ended(codeq, arguments, &BTreeMap::new(), status, named)
}

/// After the build, the tests without sockets take no longer.
const UNIT_TESTS_MAX: Duration = Duration::from_secs(60);

fn make_tests(story: &mut Story) -> Result<String> {
    if !story.long {
        return Err(
            Skip("it builds and tests everything, as the other steps of cargo xtask ci do; --long does it").into()
        );
    }
    let make = |target: &str| printed(Command::new("make").arg(target).current_dir(root()));
    make("test-unit")?;
    let begun = Instant::now();
    make("test-unit")?;
    let took = begun.elapsed();
    ensure!(took <= UNIT_TESTS_MAX, "test-unit takes {took:?}");
    let status = || printed(Command::new("git").args(["status", "--porcelain"]).current_dir(root()));
    let before = status()?;
    make("fmt")?;
    ensure!(status()? == before, "make fmt changes something");
    make("lint")?;
    // What is cleaned is a copy: this program is among what would go.
    let folder = Folder::new("walk-clean")?;
    let copy = folder.within("copy");
    printed(Command::new("git").args(["clone", "--quiet"]).arg(root()).arg(&copy))?;
    for name in ["bin", "data"] {
        std::fs::create_dir(copy.join(name))?;
    }
    printed(Command::new("make").arg("clean").current_dir(&copy).env_remove("CARGO_TARGET_DIR"))?;
    ensure!(!copy.join("bin").exists() && !copy.join("data").exists(), "bin or data is left");
    Ok(format!("test-unit {:.1} s; fmt changes nothing; lint; bin and data gone", took.as_secs_f64()))
}

fn in_use(story: &mut Story) -> Result<String> {
    let mut variables = story.three.variables(0).clone();
    let data = variables["CODEQ_DATA_DIR"].clone();
    let port = variables["PORT"].clone();
    let ports = free_ports(2)?;
    variables.insert("PORT".into(), ports[0].to_string());
    variables.insert("CODEQ_RAFT_ADDR".into(), format!("127.0.0.1:{}", ports[1]));
    let list = variables["CODEQ_INITIAL_CLUSTER"].replace(story.three.peer(0), &format!("127.0.0.1:{}", ports[1]));
    variables.insert("CODEQ_INITIAL_CLUSTER".into(), list);
    let locked = ended(&story.codeq, &[], &variables, 1, &[&data])?;
    variables.insert("CODEQ_DATA_DIR".into(), format!("{data}-other"));
    variables.insert("PORT".into(), port.clone());
    let taken = ended(&story.codeq, &[], &variables, 1, &[&port])?;
    Ok(format!("{locked}; {taken}"))
}

fn logs(story: &mut Story) -> Result<String> {
    let nodes = &mut story.three;
    nodes.stop(2)?;
    nodes.set(2, "CODEQ_LOG_FORMAT", "json");
    nodes.start(2)?;
    nodes.ready(&[2], READY_MAX)?;
    let lines = nodes.log(2)?;
    for line in &lines {
        let event: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        let fields = ["ts", "level", "target", "msg"];
        ensure!(fields.iter().all(|field| event[field].is_string()), "{line}");
    }
    ensure!(lines.iter().any(|line| line.contains("\"target\":\"raft\"")), "no line of raft");
    nodes.stop(2)?;
    nodes.set(2, "CODEQ_LOG_LEVEL", "error");
    nodes.start(2)?;
    nodes.ready(&[2], READY_MAX)?;
    let quiet = nodes.log(2)?;
    ensure!(quiet.iter().all(|line| line.contains("\"level\":\"error\"")), "{quiet:?}");
    nodes.stop(2)?;
    nodes.set(2, "CODEQ_LOG_FORMAT", "text");
    let mut variables = nodes.variables(2).clone();
    variables.insert("CODEQ_LOG_LEVEL".into(), "nonsense".into());
    let refused = ended(&story.codeq, &[], &variables, 2, &["nonsense"])?;
    nodes.unset(2, "CODEQ_LOG_LEVEL");
    nodes.start(2)?;
    nodes.ready(&[2], READY_MAX)?;
    Ok(format!(
        "{} lines, all JSON with ts, level, target, msg; {} at level error; {refused}",
        lines.len(),
        quiet.len()
    ))
}

/// Longest time without an acknowledged write at nodes that go on, while the leader stops as planned.
const PLANNED_OUTAGE_MAX: Duration = Duration::from_millis(200);

fn stop_leader(story: &mut Story) -> Result<String> {
    let nodes = &mut story.three;
    let leader = nodes.leader(0)?;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let stop = AtomicBool::new(false);
    let body = json!({ "command": "RB15", "payload": 1 }).to_string();
    let written = std::thread::scope(|scope| -> Result<Vec<(usize, Duration)>> {
        let (stop, body) = (&stop, &body);
        let writers = others.map(|place| {
            let addr = nodes.http(place);
            scope.spawn(move || -> Result<(usize, Duration)> {
                let mut client = Client::connect(addr)?;
                let (mut count, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
                while !stop.load(Ordering::Relaxed) {
                    expect(&client.send("POST", TASKS, body)?, 202)?;
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                    count += 1;
                }
                Ok((count, longest))
            })
        });
        // Writes go on before, during and after.
        let go_on = || std::thread::sleep(Duration::from_millis(500));
        go_on();
        let stopped = nodes.stop(leader);
        go_on();
        stop.store(true, Ordering::Relaxed);
        stopped?;
        writers.into_iter().map(|writer| writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?).collect()
    })?;
    let longest = written.iter().map(|(_, longest)| *longest).max().unwrap_or_default();
    let count: usize = written.iter().map(|(count, _)| count).sum();
    ensure!(longest <= PLANNED_OUTAGE_MAX, "no write for {longest:?}");
    let next = nodes.leader(others[0])?;
    nodes.start(leader)?;
    nodes.ready(&[leader], READY_MAX)?;
    Ok(format!("{} leads; {count} writes, no error, at most {} ms between two", nodes.name(next), longest.as_millis()))
}

/// From a death to a leader whom all survivors name.
const FAILOVER_MAX: Duration = Duration::from_secs(2);

fn kill_leader(story: &mut Story) -> Result<String> {
    let nodes = &mut story.three;
    let seen = failover(nodes, |nodes, leader| nodes.kill(leader))?;
    Ok(seen)
}

/// Takes the leader away and waits until the survivors agree on another one.
fn failover(nodes: &mut Nodes, end: impl FnOnce(&mut Nodes, usize) -> Result<()>) -> Result<String> {
    let leader = nodes.leader(0)?;
    let name = nodes.name(leader);
    end(nodes, leader)?;
    let begun = Instant::now();
    let survivors = nodes.running();
    let next = eventually(FAILOVER_MAX, || {
        let leaders = survivors.iter().map(|place| nodes.leader(*place)).collect::<Result<Vec<_>>>()?;
        ensure!(leaders[0] == leaders[1] && leaders[0] != leader, "{leaders:?}");
        for place in &survivors {
            let node = nodes.page(*place, &format!("/cluster/nodes/{name}"))?;
            ensure!(node["status"] == "failed", "{node}");
        }
        Ok(leaders[0])
    })?;
    let took = begun.elapsed();
    nodes.start(leader)?;
    nodes.ready(&[leader], READY_MAX)?;
    Ok(format!("{} leads after {} ms, and {name} has failed", nodes.name(next), took.as_millis()))
}

struct Containers {
    nodes: Nodes,
}

/// Walks through what raftbase's end-to-end test does, in containers.
///
/// # Errors
/// A row does not show what it must.
pub(crate) fn walk_containers(codeq: &Path) -> Result<Skipped> {
    let nodes = Nodes::of(Page::Raft, Driver::Docker, codeq, "walk-e2e")?;
    walk_rows("raftbase, end to end", CONTAINER_ROWS, &mut Containers { nodes })
}

const CONTAINER_ROWS: &[Row<Containers>] = &[
    Row { number: "RB18", command: "make test-e2e: convergence", run: convergence },
    Row { number: "RB19", command: "make test-e2e: failover", run: container_failover },
];

fn convergence(story: &mut Containers) -> Result<String> {
    story.nodes.up_and_wait(READY_MAX)?;
    formed(&story.nodes)
}

/// Tasks of which none may be lost.
const TASKS_KEPT: usize = 50;

fn container_failover(story: &mut Containers) -> Result<String> {
    let nodes = &mut story.nodes;
    let mut ids = Vec::new();
    for number in 0..TASKS_KEPT {
        let created = nodes.post(number % 3, TASKS, &json!({ "command": "RB19", "payload": number }))?;
        ids.push(text(&expect(&created, 202)?["id"])?);
    }
    let seen = failover(nodes, |nodes, leader| nodes.stop(leader).map(|_| ()))?;
    for id in &ids {
        for place in 0..3 {
            ensure!(nodes.page(place, &format!("{TASKS}/{id}"))?["status"] == "PENDING", "{id} at {place}");
        }
    }
    let cluster = nodes.page(0, STATUS)?["clusterId"].clone();
    nodes.forget()?;
    let left = nodes.project().map(|project| project.volumes()).transpose()?.unwrap_or_default();
    ensure!(left.is_empty(), "{left:?} are left");
    Ok(format!("{seen}; {TASKS_KEPT} tasks are at every node of {}; nothing is left", text(&cluster)?))
}
