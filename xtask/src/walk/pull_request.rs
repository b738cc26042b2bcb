//! The checks of codeQ's raft pull request that take processes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use crate::http::Client;
use crate::walk::nodes::{NAMES, Nodes, Process, allowed, eventually};
use crate::walk::{READY_MAX, Row, STATUS, Skipped, TASKS, bad_config, expect, list, text, walk_rows};

struct Story {
    codeq: PathBuf,
    long: bool,
}

/// Walks through them.
///
/// # Errors
/// A row does not show what it must.
pub(crate) fn walk(codeq: &Path, long: bool) -> Result<Skipped> {
    walk_rows("codeQ's raft pull request", ROWS, &mut Story { codeq: codeq.to_owned(), long })
}

const ROWS: &[Row<Story>] = &[
    Row { number: "CQ46", command: "a group of one: elect, write, read, many in one operation", run: one_node },
    Row { number: "CQ49", command: "create, claim, result, get on a group of one", run: life_on_one_node },
    Row { number: "CQ50", command: "each refused combination of settings", run: refused_combinations },
    Row { number: "CQ51", command: "leases that end: at a follower, a leader, a new leader", run: expiries },
    Row {
        number: "CQ52",
        command: "50 ms timers, any order of starts: 15 tasks, kill the leader, 15 more",
        run: fast_timers,
    },
    Row { number: "CQ54", command: "stop under load, again and again", run: stop_under_load },
    Row { number: "CQ56", command: "reads at a follower: default, stale, minPosition", run: reads },
    Row { number: "CQ57", command: "numShards 4: batches over all while their leader goes", run: four_groups },
    Row { number: "CQ55", command: "codeq bench: one node, then three", run: one_against_three },
];

const TOKEN: (&str, &str) = ("Authorization", "Bearer dev-token");

/// The nodes of the page, of which only the first is used: alone, and without a list.
fn alone(story: &Story, name: &str) -> Result<Nodes> {
    let mut nodes = Nodes::new(&story.codeq, name)?;
    for variable in ["RAFT_PEERS", "RAFT_PEER_HTTP_ADDRS", "RAFT_BIND_ADDR", "RAFT_BOOTSTRAP"] {
        nodes.unset(0, variable);
    }
    Ok(nodes)
}

fn one_node(story: &mut Story) -> Result<String> {
    let mut nodes = alone(story, "walk-one")?;
    nodes.start(0)?;
    nodes.ready(&[0], READY_MAX)?;
    let mut client = Client::connect(nodes.http(0))?;
    let begun = Instant::now();
    let body = json!({"command": "ONE", "payload": 1});
    let created = expect(&client.send_with("POST", TASKS, &[TOKEN], &body.to_string())?, 202)?;
    let path = format!("{TASKS}/{}", text(&created["id"])?);
    let read = expect(&client.send_with("GET", &path, &[TOKEN], "")?, 200)?;
    let took = begun.elapsed();
    ensure!(read["status"] == "PENDING" && took <= allowed(Duration::from_millis(100)), "{took:?}: {read}");
    let body = json!({ "tasks": vec![body; 100] });
    let batch = expect(&client.send_with("POST", &format!("{TASKS}/batch"), &[TOKEN], &body.to_string())?, 200)?;
    let ids = list(&batch["results"])?.iter().map(|item| text(&item["task"]["id"])).collect::<Result<BTreeSet<_>>>()?;
    let queue = nodes.page(0, "/v1/codeq/admin/queues/ONE")?;
    ensure!(ids.len() == 100 && queue["ready"] == 101, "{} made, then {queue}", ids.len());
    nodes.down()?;
    Ok(format!("written and read back within {:.1} ms; 100 in one operation are all there", took.as_secs_f64() * 1e3))
}

fn life_on_one_node(story: &mut Story) -> Result<String> {
    let mut nodes = alone(story, "walk-life")?;
    nodes.start(0)?;
    nodes.ready(&[0], READY_MAX)?;
    let created = nodes.post(0, TASKS, &json!({"command": "ONE", "payload": 1}))?;
    let claimed = nodes.post(0, &format!("{TASKS}/claim"), &json!({"commands": ["ONE"]}))?;
    let path = format!("{TASKS}/{}", text(&created.json()?["id"])?);
    let done = nodes.post(0, &format!("{path}/result"), &json!({"status": "COMPLETED", "result": {"ok": true}}))?;
    let statuses = [created.status, claimed.status, done.status];
    let shown = nodes.page(0, &path)?["status"].clone();
    ensure!(statuses == [202, 200, 200] && shown == "COMPLETED", "{statuses:?}, {shown}");
    nodes.down()?;
    Ok("202, 200, 200, COMPLETED".into())
}

fn refused_combinations(story: &mut Story) -> Result<String> {
    let nodes = Nodes::new(&story.codeq, "walk-refused")?;
    bad_config::refused_by_the_page(&story.codeq, nodes.variables(0))?;
    Ok("exit 2 with both names; the other combinations are in the table of settings that no server starts with".into())
}

/// How long the leases are, and how late their end may show: it is applied in an entry of its own, and read over HTTP.
const LEASE: Duration = Duration::from_secs(1);
const LATE_MAX: Duration = Duration::from_millis(50);
const READ_MAX: Duration = Duration::from_millis(100);

fn expiries(story: &mut Story) -> Result<String> {
    let mut nodes = Nodes::new(&story.codeq, "walk-expiries")?;
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let leader = nodes.leader(0)?;
    let survivors = [(leader + 1) % 3, (leader + 2) % 3];
    let hold = |command: &str, seconds: f64| -> Result<(String, Instant)> {
        expect(&nodes.post(leader, TASKS, &json!({"command": command, "payload": 1}))?, 202)?;
        let body = json!({"commands": [command], "leaseSeconds": seconds});
        let begun = Instant::now();
        let claimed = nodes.post(leader, &format!("{TASKS}/claim"), &body)?;
        let position = claimed.header("codeq-position").context("a claim has a position")?;
        Ok((format!("{TASKS}/{}?minPosition={position}", text(&expect(&claimed, 200)?["id"])?), begun))
    };
    let ended = |place: usize, path: &str, begun: Instant| -> Result<Duration> {
        eventually(Duration::from_secs(6), || {
            let status = nodes.page(place, path)?["status"].clone();
            ensure!(status != "IN_PROGRESS", "the lease goes on");
            Ok(begun.elapsed())
        })
    };
    let (path, begun) = hold("ENDS", LEASE.as_secs_f64())?;
    // Nobody claims: the entry that ends the lease is the leader's own, and the follower follows it.
    let at_leader = ended(leader, &path, begun)?;
    ended(survivors[0], &path, begun)?;
    ensure!(at_leader >= LEASE, "the lease of {LEASE:?} has ended after {at_leader:?}");
    ensure!(at_leader <= LEASE + LATE_MAX + READ_MAX, "the lease of {LEASE:?} has ended after {at_leader:?}");
    let (path, begun) = hold("ENDS-LATER", 2.0 * LEASE.as_secs_f64())?;
    nodes.kill(leader)?;
    let at_successor = eventually(Duration::from_secs(6), || {
        let status = nodes.page(survivors[0], &path)?["status"].clone();
        ensure!(status != "IN_PROGRESS", "the lease goes on");
        Ok(begun.elapsed())
    })?;
    ensure!(at_successor >= 2 * LEASE, "the new leader ended a lease of {:?} after {at_successor:?}", 2 * LEASE);
    Ok(format!(
        "a lease of 1 s ends after {} ms at the leader; one of 2 s after {} ms at its successor, none early",
        at_leader.as_millis(),
        at_successor.as_millis()
    ))
}

/// From a kill to the next write, with timers of 50 ms.
const FAST_OUTAGE_MAX: Duration = Duration::from_millis(350);

/// Three nodes with timers of 50 ms, started in this order.
fn fast(story: &Story, order: [usize; 3]) -> Result<Nodes> {
    let mut nodes = Nodes::new(&story.codeq, "walk-fast")?;
    for place in 0..NAMES.len() {
        nodes.set(place, "RAFT_ELECTION_MS", "50");
        nodes.set(place, "RAFT_LEADER_LEASE_MS", "40");
        nodes.set(place, "CODEQ_HEARTBEAT", "10ms");
    }
    order.into_iter().try_for_each(|place| nodes.start(place))?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    Ok(nodes)
}

fn fast_timers(story: &mut Story) -> Result<String> {
    let mut outages = Vec::new();
    for order in [[0, 1, 2], [2, 1, 0]] {
        let mut nodes = fast(story, order)?;
        let mut ids = BTreeSet::new();
        let mut create = |nodes: &Nodes, place: usize| -> Result<()> {
            let created = nodes.post(place, TASKS, &json!({"command": "FAST", "payload": 1}))?;
            ids.insert(text(&expect(&created, 202)?["id"])?);
            Ok(())
        };
        (0..15).try_for_each(|number| create(&nodes, number % 3))?;
        let leader = nodes.leader(0)?;
        let killed = Instant::now();
        nodes.kill(leader)?;
        let survivors = nodes.running();
        create(&nodes, survivors[0])?;
        let outage = killed.elapsed();
        outages.push(outage);
        (1..15).try_for_each(|number| create(&nodes, survivors[number % 2]))?;
        for place in &survivors {
            for id in &ids {
                ensure!(
                    nodes.page(*place, &format!("{TASKS}/{id}"))?["status"] == "PENDING",
                    "{id} at {}",
                    NAMES[*place]
                );
            }
        }
        let mut done = BTreeSet::new();
        while done.len() < ids.len() {
            let place = survivors[done.len() % 2];
            let task = expect(&nodes.post(place, &format!("{TASKS}/claim"), &json!({"commands": ["FAST"]}))?, 200)?;
            let id = text(&task["id"])?;
            let result = json!({"status": "COMPLETED", "result": {"ok": true}, "leaseToken": task["leaseToken"]});
            expect(&nodes.post(place, &format!("{TASKS}/{id}/result"), &result)?, 200)?;
            ensure!(done.insert(id.clone()), "{id} was handed out twice");
        }
        ensure!(done == ids, "{} of {} were completed", done.len(), ids.len());
        let last = nodes.post(survivors[0], &format!("{TASKS}/claim"), &json!({"commands": ["FAST"]}))?;
        ensure!(last.status == 204, "something is left: {last}");
    }
    ensure!(outages.iter().all(|outage| *outage <= allowed(FAST_OUTAGE_MAX)), "writes again after {outages:?}");
    Ok(format!("writes again after {outages:?}; 30 tasks at both survivors, 30 completions, no repeat (CQ53)"))
}

/// Stops in CI, and by hand.
const STOPS: [usize; 2] = [8, 100];

fn stop_under_load(story: &mut Story) -> Result<String> {
    let mut nodes = alone(story, "walk-stops")?;
    nodes.start(0)?;
    nodes.ready(&[0], READY_MAX)?;
    let stops = STOPS[usize::from(story.long)];
    let (addr, over) = (nodes.http(0), AtomicBool::new(false));
    let created: Result<Vec<String>> = std::thread::scope(|scope| {
        let load = || -> Result<Vec<String>> {
            let mut ids = Vec::new();
            let body = json!({"command": "LOAD", "payload": 1}).to_string();
            while !over.load(Ordering::Relaxed) {
                let Ok(mut client) = Client::connect(addr) else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                // The server may close the connection between two requests, and then nothing is acknowledged.
                while let Ok(answer) = client.send_with("POST", TASKS, &[TOKEN], &body) {
                    match answer.status {
                        202 => ids.push(text(&answer.json()?["id"])?),
                        503 => break,
                        _ => bail!("a creation was told {answer}"),
                    }
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            }
            Ok(ids)
        };
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(load)).collect();
        let stopped = (0..stops).try_for_each(|round| {
            std::thread::sleep(Duration::from_millis(20 + 7 * (round as u64 % 10)));
            let process = nodes.stopping(0)?;
            check_quiet(process)?;
            nodes.start(0)?;
            nodes.ready(&[0], READY_MAX).map(|_| ())
        });
        over.store(true, Ordering::Relaxed);
        let mut ids = Vec::new();
        for client in clients {
            ids.extend(client.join().map_err(|_| anyhow!("a client has panicked"))??);
        }
        stopped.map(|()| ids)
    });
    let created = created?;
    let mut client = Client::connect(addr)?;
    for id in &created {
        let read = client.send_with("GET", &format!("{TASKS}/{id}"), &[TOKEN], "")?;
        ensure!(read.status == 200, "{id} was acknowledged, and is gone: {read}");
    }
    nodes.down()?;
    Ok(format!("{stops} stops: {} acknowledged, none missing, no line of warning or error", created.len()))
}

/// A stop is planned: it ends with 0, and nothing is wrong.
fn check_quiet(process: Process) -> Result<()> {
    let before = process.lines().len();
    let end = process.end(crate::walk::nodes::STOP_MAX)?;
    let shown = end.lines.join("\n");
    ensure!(end.status.success(), "it has ended with {}:\n{shown}", end.status);
    let loud = end.lines[before.min(end.lines.len())..]
        .iter()
        .find(|line| ["ERROR", "WARN", "panicked"].iter().any(|word| line.contains(word)));
    ensure!(loud.is_none(), "while it stopped: {loud:?}");
    Ok(())
}

fn reads(story: &mut Story) -> Result<String> {
    let mut nodes = Nodes::new(&story.codeq, "walk-reads")?;
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let leader = nodes.leader(0)?;
    let follower = (leader + 1) % 3;
    for waited in 0..100 {
        let created = nodes.post(leader, TASKS, &json!({"command": "READ", "payload": 1}))?;
        let position = created.header("codeq-position").context("a write has a position")?.to_owned();
        let path = format!("{TASKS}/{}", text(&expect(&created, 202)?["id"])?);
        // In turns, so that neither waits for the other.
        let read = match waited % 2 {
            0 => nodes.get(follower, &path)?,
            _ => nodes.get(follower, &format!("{path}?minPosition={position}"))?,
        };
        ensure!(read.status == 200, "{read}");
        ensure!(read.header("codeq-served-by") == Some(NAMES[follower]), "{:?}", read.header("codeq-served-by"));
        let marked = read.header("codeq-consistency");
        ensure!(marked == (waited % 2 == 1).then_some("stale"), "{marked:?}");
    }
    let any = nodes.post(leader, TASKS, &json!({"command": "READ", "payload": 1}))?;
    let path = format!("{TASKS}/{}", text(&any.json()?["id"])?);
    let stale = eventually(Duration::from_secs(1), || {
        let stale = nodes.get(follower, &format!("{path}?consistency=stale"))?;
        ensure!(stale.status == 200, "{stale}");
        Ok(stale)
    })?;
    let age: u64 = stale.header("codeq-last-contact-ms").context("a stale read has an age")?.parse()?;
    ensure!(stale.header("codeq-consistency") == Some("stale") && age < 1_000, "{age} ms");
    let ahead = nodes.get(follower, &format!("{path}?minPosition=0:1:1000000&wait=50ms"))?;
    ensure!(ahead.status == 503 && ahead.json()?["code"] == "too_stale", "{ahead}");
    // Without its leader and the third one, the follower knows only what it has.
    nodes.kill(leader)?;
    nodes.kill((leader + 2) % 3)?;
    let alone = eventually(Duration::from_secs(5), || {
        let refused = nodes.post(follower, TASKS, &json!({"command": "READ", "payload": 1}))?;
        ensure!(refused.status == 503 && refused.json()?["code"] == "isolated", "{refused}");
        refused.json()
    })?;
    ensure!(alone["hint"].is_string() && alone["definite"] == true, "{alone}");
    let stale = nodes.get(follower, &format!("{path}?consistency=stale"))?;
    ensure!(stale.status == 200, "a stale read needs no leader: {stale}");
    let young = nodes.get(follower, &format!("{path}?consistency=stale&maxStaleness=100ms"))?;
    ensure!(young.status == 503 && young.json()?["code"] == "too_stale", "{young}");
    Ok(format!(
        "100 reads, none older than the last write; stale marked, {age} ms old; alone: stale works, writes are told isolated"
    ))
}

fn four_groups(story: &mut Story) -> Result<String> {
    let mut nodes = Nodes::new(&story.codeq, "walk-groups")?;
    for place in 0..NAMES.len() {
        let config = nodes.variables(place)["PERSISTENCE_CONFIG"].replace("\"numShards\":1", "\"numShards\":4");
        nodes.set(place, "PERSISTENCE_CONFIG", &config);
    }
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let status = nodes.page(0, STATUS)?;
    let led = list(&status["groups"])?.iter().all(|group| group["hasLeader"] == true);
    ensure!(status["numGroups"] == 4 && led, "{status}");
    let leader = nodes.leader(0)?;
    let follower = (leader + 1) % 3;
    let tasks: Vec<Value> = (0..40).map(|number| json!({"command": format!("G{number}"), "payload": 1})).collect();
    let body = json!({ "tasks": tasks }).to_string();
    let addr = nodes.http(follower);
    let over = AtomicBool::new(false);
    let (made, refused) = std::thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<(Vec<String>, usize)> {
            let (mut made, mut refused) = (Vec::new(), 0);
            let mut client = Client::connect(addr)?;
            while !over.load(Ordering::Relaxed) {
                let answer = client.send_with("POST", &format!("{TASKS}/batch"), &[TOKEN], &body)?;
                if answer.status != 200 {
                    ensure!(answer.json()?["definite"] == true, "{answer}");
                    refused += 40;
                    continue;
                }
                for item in list(&answer.json()?["results"])? {
                    match item["task"]["id"].as_str() {
                        Some(id) => made.push(id.to_owned()),
                        None => {
                            ensure!(item["definite"] == true, "{item}");
                            refused += 1;
                        }
                    }
                }
            }
            Ok((made, refused))
        });
        std::thread::sleep(Duration::from_millis(200));
        let stopped = nodes.stop(leader).and_then(|_| nodes.ready(&[follower], READY_MAX));
        over.store(true, Ordering::Relaxed);
        let told = load.join().map_err(|_| anyhow!("a client has panicked"))?;
        stopped.and(told)
    })?;
    for id in made.iter().rev().step_by(7) {
        nodes.page((leader + 2) % 3, &format!("{TASKS}/{id}"))?;
    }
    Ok(format!("{} items made, {refused} refused definitely, none unknown", made.len()))
}

/// Cycles per second of three nodes must be so many hundredths of those of one.
const THREE_MIN_PERCENT: f64 = 30.0;

fn one_against_three(story: &mut Story) -> Result<String> {
    let duration = if story.long { "10s" } else { "2s" };
    let bench = |nodes: &Nodes, place: usize| -> Result<f64> {
        let output = Command::new(&story.codeq)
            .args(["bench", "--json", "--no-verify", "--connections", "32", "--commands", "4", "--token", "dev-token"])
            .args(["--duration", duration, "--url", &format!("http://{}", nodes.http(place))])
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(report["errors"] == 0, "requests failed: {}", report["firstError"]);
        report["cyclesPerSecond"].as_f64().context("a figure")
    };
    let mut nodes = alone(story, "walk-bench-one")?;
    nodes.start(0)?;
    nodes.ready(&[0], READY_MAX)?;
    let one = bench(&nodes, 0)?;
    nodes.down()?;
    let mut nodes = Nodes::new(&story.codeq, "walk-bench-three")?;
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let three = bench(&nodes, nodes.leader(0)?)?;
    nodes.down()?;
    let percent = 100.0 * three / one;
    ensure!(percent >= THREE_MIN_PERCENT, "one {one:.0} cycles/s, three {three:.0}: {percent:.0} %");
    Ok(format!("one {one:.0} cycles/s, three {three:.0}: {percent:.0} %"))
}
