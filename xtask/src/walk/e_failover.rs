//! What clients and operators get at every node while leadership moves: answers that can be relied on, their own writes, and their rights.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::http::Answer;
use crate::walk::e::Stage;
use crate::walk::nodes::{Driver, Nodes, allowed, eventually, send_as};
use crate::walk::os_access::{TOKENS as ROLES, tokens_file};
use crate::walk::page::Page;
use crate::walk::{READY_MAX, STATUS, TASKS, expect, list, text};

/// Between two transfers.
const TRANSFER_EVERY: Duration = Duration::from_millis(150);

/// From a kill until no outcome is unknown any more: what was under way has been answered by then.
const UNKNOWN_MAX: Duration = Duration::from_secs(5);

/// Three nodes that take writes.
fn three(stage: &Stage, page: Page, name: &str) -> Result<Nodes> {
    let mut nodes = Nodes::of(page, Driver::Process, &stage.codeq, name)?;
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    Ok(nodes)
}

/// Moves leadership from node to node, so many times; each transfer is asked of another node.
fn transfers(nodes: &Nodes, rounds: u32) -> Result<()> {
    for round in 0..rounds as usize {
        std::thread::sleep(TRANSFER_EVERY);
        let to = (nodes.leader(0)? + 1 + round % 2) % 3;
        let body = json!({ "to": nodes.name(to) });
        expect(&nodes.post(round % 3, "/cluster/leader/transfer", &body)?, 200)?;
    }
    Ok(())
}

/// Works at each of these nodes, again and again, until `faults` has had its way. Returns what came of each.
fn meanwhile<T: Send>(
    places: &[usize],
    work: impl Fn(usize, &AtomicBool) -> Result<T> + Sync,
    faults: impl FnOnce() -> Result<()>,
) -> Result<Vec<T>> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (work, over) = (&work, &over);
        let clients: Vec<_> = places.iter().map(|place| scope.spawn(move || work(*place, over))).collect();
        let done = faults();
        over.store(true, Ordering::Relaxed);
        let results: Vec<_> =
            clients.into_iter().map(|client| client.join().map_err(|_| anyhow!("a client has panicked"))).collect();
        done?;
        results.into_iter().map(|result| result?).collect()
    })
}

/// A client of one node, and what it was told.
struct Client<'a> {
    nodes: &'a Nodes,
    place: usize,
    /// Tasks of which a result was acknowledged.
    completed: Vec<String>,
    answered: usize,
    /// Refusals with which nothing has happened.
    refused: usize,
    /// When an outcome was unknown.
    unknown: Vec<Instant>,
}

/// What was asked for has happened, or may have.
enum Told {
    Done(Answer),
    Unknown,
}

impl<'a> Client<'a> {
    fn new(nodes: &'a Nodes, place: usize) -> Client<'a> {
        Client { nodes, place, completed: Vec::new(), answered: 0, refused: 0, unknown: Vec::new() }
    }

    /// Asks until it is not refused.
    fn told(&mut self, method: &str, path: &str, body: &Value) -> Result<Told> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let begun = Instant::now();
        while begun.elapsed() < allowed(READY_MAX) {
            let answer = self.nodes.send(self.place, method, path, &body)?;
            match answer.status {
                200 | 202 | 204 => {
                    self.answered += 1;
                    return Ok(Told::Done(answer));
                }
                503 => {
                    ensure!(answer.json()?["definite"] == true, "{method} {path}: {answer}");
                    self.refused += 1;
                    std::thread::sleep(Duration::from_millis(5));
                }
                504 => {
                    ensure!(answer.json()?["definite"] == false, "{method} {path}: {answer}");
                    self.unknown.push(Instant::now());
                    return Ok(Told::Unknown);
                }
                _ => bail!("{} answers {method} {path} with {answer}", self.nodes.name(self.place)),
            }
        }
        bail!("{} refuses {method} {path} for {READY_MAX:?}", self.nodes.name(self.place))
    }

    /// The body of what was done; nothing if that is unknown.
    fn done(&mut self, method: &str, path: &str, body: &Value, status: u16) -> Result<Option<Value>> {
        let Told::Done(answer) = self.told(method, path, body)? else { return Ok(None) };
        expect(&answer, status).map(Some)
    }

    /// Every mutating route about tasks, once. Ends early where an outcome is unknown.
    fn life(&mut self) -> Result<Option<()>> {
        let command = format!("E10-{}", self.place);
        let task = json!({ "command": command, "payload": 1 });
        let one = json!({ "commands": [command], "leaseSeconds": 60 });
        let Some(_) = self.done("POST", TASKS, &task, 202)? else { return Ok(None) };
        for verb in ["abandon", "nack", "result"] {
            let Told::Done(claimed) = self.told("POST", &format!("{TASKS}/claim"), &one)? else { return Ok(None) };
            if claimed.status == 204 {
                // A claim of unknown outcome has taken it.
                ensure!(!self.unknown.is_empty(), "there is no task, and all outcomes are known");
                return Ok(None);
            }
            let claimed = claimed.json()?;
            let path = format!("{TASKS}/{}", text(&claimed["id"])?);
            let lease = &claimed["leaseToken"];
            let Some(kept) = self.done(
                "POST",
                &format!("{path}/heartbeat"),
                &json!({ "leaseToken": lease, "extendSeconds": 60 }),
                200,
            )?
            else {
                return Ok(None);
            };
            ensure!(kept.is_object(), "{kept}");
            let body = match verb {
                "result" => json!({ "leaseToken": lease, "status": "COMPLETED", "result": { "ok": true } }),
                "nack" => json!({ "leaseToken": lease, "delaySeconds": 0 }),
                _ => json!({ "leaseToken": lease }),
            };
            let Some(_) = self.done("POST", &format!("{path}/{verb}"), &body, 200)? else { return Ok(None) };
            if verb == "result" {
                self.completed.push(text(&claimed["id"])?);
            }
        }
        let batch = json!({ "tasks": [task, task] });
        let Some(made) = self.done("POST", &format!("{TASKS}/batch"), &batch, 200)? else { return Ok(None) };
        for item in list(&made["results"])? {
            let Some(id) = item["task"]["id"].as_str() else {
                ensure!(item["error"].is_string() || item["code"].is_string(), "{item}");
                continue;
            };
            let Told::Done(_) = self.told("POST", &format!("{TASKS}/{id}/cancel"), &json!({}))? else {
                return Ok(None);
            };
        }
        Ok(Some(()))
    }
}

pub(super) fn forwarding(stage: &Stage) -> Result<String> {
    let mut nodes = three(stage, Page::Raft, "walk-forwarding")?;
    let live = |place: usize, over: &AtomicBool, nodes: &Nodes| -> Result<(Vec<String>, usize, usize, Vec<Instant>)> {
        let mut client = Client::new(nodes, place);
        while !over.load(Ordering::Relaxed) {
            client.life()?;
        }
        Ok((client.completed, client.answered, client.refused, client.unknown))
    };
    let rounds = stage.count(20, 500);
    let told = {
        let nodes = &nodes;
        meanwhile(&[0, 1, 2], |place, over| live(place, over, nodes), || transfers(nodes, rounds))?
    };
    let mut completed: Vec<String> = told.iter().flat_map(|(completed, ..)| completed.clone()).collect();
    let answered: usize = told.iter().map(|(_, answered, ..)| answered).sum();
    let refused: usize = told.iter().map(|(_, _, refused, _)| refused).sum();
    let unknown: usize = told.iter().map(|(.., unknown)| unknown.len()).sum();
    let mut seen = format!("{rounds} transfers: {answered} answers, {refused} refused definitely, {unknown} unknown");

    let kills = stage.count(2, 50);
    let [mut answered, mut refused, mut unknown] = [0; 3];
    for _ in 0..kills {
        let leader = nodes.leader(0)?;
        let others = [(leader + 1) % 3, (leader + 2) % 3];
        let id = nodes.process_id(leader)?;
        let mut killed = Instant::now();
        let told = {
            let nodes = &nodes;
            meanwhile(
                &others,
                |place, over| live(place, over, nodes),
                || {
                    std::thread::sleep(TRANSFER_EVERY);
                    killed = Instant::now();
                    kill(id, Signal::SIGKILL)?;
                    eventually(READY_MAX, || {
                        ensure!(nodes.leader(others[0])? != leader, "nobody else leads");
                        Ok(())
                    })?;
                    std::thread::sleep(TRANSFER_EVERY);
                    Ok(())
                },
            )?
        };
        for (done, answers, refusals, moments) in told {
            let outside = moments.iter().find(|at| **at < killed || **at - killed > allowed(UNKNOWN_MAX));
            ensure!(outside.is_none(), "an outcome is unknown, and nobody was killed then");
            completed.extend(done);
            answered += answers;
            refused += refusals;
            unknown += moments.len();
        }
        nodes.kill(leader)?;
        nodes.start(leader)?;
        nodes.ready(&[0, 1, 2], READY_MAX)?;
    }
    ensure!(!completed.is_empty(), "nothing was completed");
    for (number, id) in completed.iter().enumerate() {
        let task = nodes.page(number % 3, &format!("{TASKS}/{id}"))?;
        ensure!(task["status"] == "COMPLETED", "its result was acknowledged: {task}");
    }
    seen += &format!(
        "; {kills} kill -9: {answered} answers, {refused} refused definitely, {unknown} unknown, all of them just after a kill; {} results \
         are all there. There are no streams of gRPC",
        completed.len()
    );
    Ok(seen)
}

pub(super) fn own_writes(stage: &Stage) -> Result<String> {
    let nodes = three(stage, Page::Raft, "walk-own-writes")?;
    let rounds = stage.count(20, 500);
    let read = |reader: &mut Client<'_>, path: &str| -> Result<Value> {
        loop {
            // A read that got lost is made again.
            if let Some(task) = reader.done("GET", path, &Value::Null, 200)? {
                return Ok(task);
            }
        }
    };
    let work = |place: usize, over: &AtomicBool| -> Result<usize> {
        let mut writer = Client::new(&nodes, place);
        let mut readers = [1, 2].map(|step| Client::new(&nodes, (place + step) % 3));
        let (mut reads, command) = (0, format!("E11-{place}"));
        let mut wrong = |status: &str, path: &str, position: &str| -> Result<()> {
            for reader in &mut readers {
                let at_least = format!("{path}?consistency=stale&minPosition={position}");
                for asked in [path, &at_least] {
                    let task = read(reader, asked)?;
                    ensure!(task["status"] == status, "{asked} after {status} was acknowledged: {task}");
                    reads += 1;
                }
            }
            Ok(())
        };
        while !over.load(Ordering::Relaxed) {
            let body = json!({ "command": command, "payload": 1 });
            let Told::Done(made) = writer.told("POST", TASKS, &body)? else { continue };
            let path = format!("{TASKS}/{}", text(&made.json()?["id"])?);
            let position = |answer: &Answer| answer.header("codeq-position").map(str::to_owned).context("a position");
            wrong("PENDING", &path, &position(&made)?)?;
            let Told::Done(cancelled) = writer.told("POST", &format!("{path}/cancel"), &json!({}))? else { continue };
            let status = text(&cancelled.json()?["status"])?;
            wrong(&status, &path, &position(&cancelled)?)?;
        }
        Ok(reads)
    };
    let reads = meanwhile(&[0, 1, 2], work, || transfers(&nodes, rounds))?;
    ensure!(reads.iter().all(|count| *count > 0), "nothing was read: {reads:?}");
    Ok(format!(
        "{rounds} transfers: {} reads at the other two nodes, linearizable and by minPosition, each with the write before it",
        reads.iter().sum::<usize>()
    ))
}

/// Routes, and whether a viewer may; an operator may do all of these. Those that change something ask for what cannot be, so that nothing does.
const ROUTES: [(&str, &str, &str, bool); 16] = [
    ("GET", "/cluster/nodes", "", true),
    ("GET", "/cluster/status", "", true),
    ("GET", "/cluster/leader", "", true),
    ("GET", "/cluster/groups", "", true),
    ("GET", "/cluster/elections", "", true),
    ("GET", "/cluster/events", "", true),
    ("GET", "/cluster/alarms", "", true),
    ("GET", "/cluster/check/quorum", "", true),
    ("POST", "/cluster/members", r#"{"address":"127.0.0.1:1"}"#, false),
    ("DELETE", "/cluster/members/nobody", "", false),
    ("POST", "/cluster/members/nobody/promote", "", false),
    ("POST", "/cluster/members/nobody/demote", "", false),
    ("POST", "/cluster/members/nobody/replace", r#"{"address":"127.0.0.1:1"}"#, false),
    ("POST", "/cluster/leader/transfer", r#"{"to":"nobody"}"#, false),
    ("POST", "/cluster/leader/step-down", r#"{"holdMs":"long"}"#, false),
    ("POST", "/cluster/reload", "", false),
];

pub(super) fn roles(stage: &Stage) -> Result<String> {
    let mut nodes = Nodes::of(Page::Listed, Driver::Process, &stage.codeq, "walk-roles-failover")?;
    for place in 0..3 {
        let file = nodes.put(place, "tokens", &tokens_file()?)?;
        nodes.set(place, "CODEQ_TOKENS_FILE", &file);
    }
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let [(_, _, viewer), (_, _, operator)] = ROLES;
    let work = |place: usize, over: &AtomicBool| -> Result<usize> {
        let mut cells = 0;
        while !over.load(Ordering::Relaxed) {
            for (method, route, body, viewed) in ROUTES {
                let asked = |token| send_as(nodes.http(place), token, method, route, body);
                for (token, may) in [(viewer, viewed), (operator, true)] {
                    let answer = asked(Some(token))?;
                    ensure!((answer.status == 403) != may && answer.status != 401, "{method} {route}: {answer}");
                    cells += 1;
                }
                let answer = asked(None)?;
                ensure!(answer.status == 401, "{method} {route} without a token: {answer}");
                cells += 1;
            }
        }
        Ok(cells)
    };
    let rounds = stage.count(10, 200);
    let cells = meanwhile(&[0, 1, 2], work, || {
        for round in 0..rounds as usize {
            std::thread::sleep(TRANSFER_EVERY);
            let asked =
                |place: usize| send_as(nodes.http(place), Some(operator), "POST", "/cluster/leader/transfer", "{}");
            expect(&asked(round % 3)?, 200)?;
        }
        Ok(())
    })?;
    ensure!(cells.iter().all(|count| *count >= ROUTES.len() * 3), "not every cell was asked for: {cells:?}");
    Ok(format!(
        "{rounds} transfers, {} cells asked for at three nodes: each as in the table",
        cells.iter().sum::<usize>()
    ))
}

/// From the end of a node until every group is led by another one.
const LED_MAX: Duration = Duration::from_secs(2);

/// The leader of each group, as a node knows it.
fn leaders(nodes: &Nodes, place: usize) -> Result<Vec<String>> {
    list(&nodes.page(place, STATUS)?["groups"])?.iter().map(|group| text(&group["leaderId"])).collect()
}

pub(super) fn four_groups(stage: &Stage) -> Result<String> {
    let mut nodes = Nodes::of(Page::Listed, Driver::Process, &stage.codeq, "walk-four-groups")?;
    (0..3).for_each(|place| nodes.set(place, "CODEQ_SHARDS", "4"));
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let rounds = stage.count(3, 100);
    let (mut took, mut alone) = (Vec::new(), 0);
    for round in 0..rounds as usize {
        let before = leaders(&nodes, 0)?;
        ensure!(before.len() == 4, "{before:?}");
        let group = round % 4;
        let from = nodes.names().iter().position(|name| *name == before[group]).context("a node leads it")?;
        let to = nodes.name((from + 1) % 3);
        expect(&nodes.post(round % 3, "/cluster/leader/transfer", &json!({ "to": to, "group": group }))?, 200)?;
        eventually(LED_MAX, || {
            let after = leaders(&nodes, 0)?;
            let others = (0..4).filter(|other| *other != group).all(|other| after[other] == before[other]);
            ensure!(after[group] == to && others, "group {group} went to {to}: {before:?} became {after:?}");
            Ok(())
        })?;
        alone += 1;

        let dead = (from + 1) % 3;
        let others = [(dead + 1) % 3, (dead + 2) % 3];
        let led = leaders(&nodes, others[0])?.iter().filter(|name| *name == nodes.name(dead)).count();
        ensure!(led > 0, "{} leads nothing", nodes.name(dead));
        let killed = Instant::now();
        nodes.kill(dead)?;
        eventually(LED_MAX, || {
            for place in others {
                let after = leaders(&nodes, place)?;
                ensure!(after.iter().all(|name| !name.is_empty() && name != nodes.name(dead)), "{after:?}");
            }
            Ok(())
        })?;
        took.push(killed.elapsed().as_millis());
        nodes.start(dead)?;
        nodes.ready(&[0, 1, 2], READY_MAX)?;
    }
    Ok(format!(
        "{alone} times one group went elsewhere by itself; {rounds} kill -9: all groups led again after {took:?} ms"
    ))
}
