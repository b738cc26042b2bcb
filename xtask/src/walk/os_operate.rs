//! Three nodes with a SQLite file each, as their operator sees them: a look at the files, leaders and members that change, endpoints, a node
//! that was away for long, and a node alone that grows.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::docker::{docker, printed};
use crate::http::Client;
use crate::process::Folder;
use crate::walk::nodes::{Driver, Nodes, eventually, send_as};
use crate::walk::os::{Story, all, leader_of, only_leader};
use crate::walk::{READY_MAX, STATUS, Skip, TASKS, expect, list, text};

/// What a command prints that must end with 0.
fn said(nodes: &Nodes, place: usize, arguments: &[&str]) -> Result<String> {
    let output = nodes.codeq_at(place, arguments)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let complained = text(&output.stderr);
    ensure!(output.status.success(), "codeq {}: {} {complained}", arguments.join(" "), output.status);
    Ok(text(&output.stdout))
}

/// Orchestrator's form of names, in quotes, with the host as the address.
pub(super) fn quoted_names(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    if nodes.driver() == Driver::Process {
        return Err(Skip("processes of one machine have one host name").into());
    }
    nodes.forget()?;
    let names = nodes.names().map(|name| format!("\"{name}\"")).join(",");
    for place in 0..3 {
        let name = nodes.name(place);
        nodes.set(place, "BIND", name);
        nodes.set(place, "RAFT_NODES", &names);
    }
    let begun = Instant::now();
    nodes.up()?;
    let leader = leader_of(nodes)?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    Ok(format!("RAFT_NODES={names}: {} leads after {} ms", nodes.name(leader), begun.elapsed().as_millis()))
}

/// What a node keeps, by a stock SQLite client.
pub(super) fn look_at_the_file(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    let task = json!({ "command": "OS6", "payload": 1 });
    expect(&nodes.post(0, TASKS, &task)?, 202)?;
    said(nodes, 0, &["snapshot", "trigger"])?;
    let looks = |nodes: &Nodes| -> Result<(String, String)> {
        let path = said(nodes, 0, &["debug", "db", "path"])?.trim().to_owned();
        ensure!(path.lines().count() == 1 && path.ends_with(".sqlite"), "{path}");
        let tables = said(nodes, 0, &["debug", "db", "tables"])?;
        ensure!(tables.contains("payloads"), "{tables}");
        Ok((path, said(nodes, 0, &["debug", "db", "check"])?))
    };
    let (path, _) = looks(nodes)?;
    nodes.kill(0)?;
    nodes.start(0)?;
    nodes.ready(&[0], READY_MAX)?;
    let (_, checked) = looks(nodes)?;
    let folder = Folder::new("walk-os-copy")?;
    let here = folder.within("shard.sqlite");
    let name = nodes.name(0);
    match nodes.project() {
        None => said(nodes, 0, &["debug", "db", "copy", &here.display().to_string()]).map(|_| ())?,
        Some(project) => {
            let there = "/var/lib/codeq/shard-copy.sqlite";
            said(nodes, 0, &["debug", "db", "copy", there])?;
            docker(&["cp", &format!("{}:{there}", project.container(name)?), &here.display().to_string()])?;
        }
    }
    let query = "PRAGMA integrity_check; SELECT count(*) > 0 FROM tasks WHERE command = 'OS6'";
    let Ok(answer) = printed(Command::new("sqlite3").arg(&here).arg(query)) else {
        return Err(Skip("sqlite3 is not installed").into());
    };
    ensure!(answer.split_whitespace().eq(["ok", "1"]), "{answer}");
    Ok(format!("{path}; {}; sqlite3: ok, the task is there", checked.trim().replace('\n', "; ")))
}

/// What all nodes have saved: the index, and everything that is in it.
fn dumps(nodes: &Nodes) -> Result<String> {
    // Followers hear of the last entry's commit a heartbeat later than the leader.
    let saved = eventually(READY_MAX, || {
        let saved = said(nodes, 0, &["snapshot", "trigger"])?;
        let indexes: BTreeSet<&str> =
            saved.lines().filter_map(|line| line.split_once(": ")).map(|(_, at)| at).collect();
        ensure!(indexes.len() == 1, "{saved}");
        Ok(saved)
    })?;
    let dumps = all(|place| said(nodes, place, &["debug", "db", "dump"]))?;
    ensure!(dumps[0] == dumps[1] && dumps[0] == dumps[2], "the dumps differ after {saved}");
    Ok(format!("{} lines each, the same", dumps[0].lines().count()))
}

/// Creates tasks, and does to some what can be done to a task.
fn mixed(nodes: &Nodes, operations: usize) -> Result<()> {
    for number in 0..operations / 4 {
        let place = number % 3;
        let body = json!({ "command": "OS7", "payload": number, "priority": number % 10 });
        expect(&nodes.post(place, TASKS, &body)?, 202)?;
        let body = json!({ "commands": ["OS7"], "leaseSeconds": 60 });
        let claimed = expect(&nodes.post((place + 1) % 3, &format!("{TASKS}/claim"), &body)?, 200)?;
        let path = format!("{TASKS}/{}", text(&claimed["id"])?);
        let token = &claimed["leaseToken"];
        let (verb, body) = match number % 4 {
            0 => ("result", json!({ "status": "COMPLETED", "result": {}, "leaseToken": token })),
            1 => ("nack", json!({ "leaseToken": token })),
            2 => ("abandon", json!({ "leaseToken": token })),
            _ => ("heartbeat", json!({ "leaseToken": token })),
        };
        expect(&nodes.post(place, &format!("{path}/{verb}"), &body)?, 200)?;
        expect(&nodes.get((place + 2) % 3, &path)?, 200)?;
    }
    Ok(())
}

pub(super) fn equal_dumps(story: &mut Story) -> Result<String> {
    mixed(&story.nodes, 200)?;
    dumps(&story.nodes)
}

/// A leader that stepped down stays out for so long.
const HOLD_MS: u64 = 2_000;

/// Members know of each other's zone after a report.
const REPORTED_MAX: Duration = Duration::from_secs(10);

pub(super) fn another_leader(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    nodes.down()?;
    (0..3).for_each(|place| nodes.set(place, "CODEQ_ZONE", &format!("dc{}", place + 1)));
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let mut seen = Vec::new();
    let leader = leader_of(nodes)?;
    let (to, asked) = ((leader + 1) % 3, (leader + 2) % 3);
    let transfer = "/cluster/leader/transfer";
    let done = expect(&nodes.post(asked, transfer, &json!({ "to": nodes.name(to) }))?, 200)?;
    ensure!(only_leader(nodes)? == to, "{done}");
    seen.push(format!("{} leads at once ({} ms)", nodes.name(to), done["durationMs"]));
    let zone = format!("dc{}", leader + 1);
    eventually(REPORTED_MAX, || {
        let done = expect(&nodes.post(asked, transfer, &json!({ "zone": zone }))?, 200)?;
        ensure!(done["leader"] == nodes.name(leader), "{done}");
        Ok(())
    })?;
    seen.push(format!("zone {zone}: {} leads", nodes.name(leader)));
    let nowhere = nodes.post(asked, transfer, &json!({ "zone": "nowhere" }))?;
    ensure!(expect(&nowhere, 409)?["code"] == "transfer_failed", "{nowhere}");
    let stepped = nodes.post(asked, "/cluster/leader/step-down", &json!({ "holdMs": HOLD_MS }))?;
    let stepped = expect(&stepped, 200)?;
    ensure!(stepped["leader"] != nodes.name(leader), "{stepped}");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(HOLD_MS) {
        ensure!(nodes.get(leader, "/api/leader-check")?.status == 404, "{} leads again", nodes.name(leader));
    }
    seen.push(format!("{} stepped down and stays out", nodes.name(leader)));
    (0..3).for_each(|place| nodes.unset(place, "CODEQ_ZONE"));
    Ok(seen.join("; "))
}

/// From a removal to the end of the removed node, and from its start to its vote.
const MEMBER_MAX: Duration = Duration::from_secs(20);

pub(super) fn members(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    let saved = expect(&nodes.post(0, "/cluster/snapshot/trigger", &json!({}))?, 200)?;
    let leader = leader_of(nodes)?;
    let (gone, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let name = nodes.name(gone);
    let removed = nodes.send(other, "DELETE", &format!("/cluster/members/{name}"), "")?;
    let removed = expect(&removed, 200)?;
    let status = nodes.ended(gone, MEMBER_MAX)?;
    ensure!(status == Some(7), "{name} has ended with {status:?}");
    let alone = nodes.send(leader, "DELETE", &format!("/cluster/members/{}", nodes.name(other)), "")?;
    let alone = expect(&alone, 200)?;
    ensure!(text(&alone["note"])?.contains("nothing may fail"), "{alone}");
    ensure!(nodes.ended(other, MEMBER_MAX)? == Some(7), "it was removed");
    let last = nodes.send(leader, "DELETE", &format!("/cluster/members/{}", nodes.name(leader)), "")?;
    let guarded = expect(&last, 409)?;
    ensure!(guarded["code"] == "quorum_guard", "{guarded}");
    for place in [gone, other] {
        nodes.remove_volume(place)?;
        nodes.start(place)?;
        eventually(READY_MAX, || nodes.get(place, "/healthz"))?;
        let added = nodes.post(leader, "/cluster/members", &json!({ "address": nodes.peer(place) }))?;
        ensure!(expect(&added, 200)?["name"] == nodes.name(place), "{added}");
    }
    eventually(MEMBER_MAX, || {
        let seen = nodes.page(leader, "/cluster/nodes")?;
        ensure!(list(&seen["nodes"])?.iter().filter(|node| node["voter"] == true).count() == 3, "{seen}");
        Ok(())
    })?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    ensure!(saved["members"].is_array(), "{saved}");
    Ok(format!(
        "all saved; {}; {}; 409 for the last; two were added, and vote",
        text(&removed["note"])?,
        text(&alone["note"])?
    ))
}

/// The settings of a node in a file, as the image has them, and how much Raft tells.
fn settings(driver: Driver, raft_level: &str) -> String {
    let of_image = match driver {
        Driver::Process => "",
        Driver::Docker => "dataDir = \"/var/lib/codeq\"\ninsecure = true\n[cluster]\nraftAdvertise = \"auto\"\n",
    };
    format!("{of_image}[log]\nraftLevel = \"{raft_level}\"\n")
}

/// Members say how they are so often, which is told at debug.
const REPORT_MAX: Duration = Duration::from_secs(10);

pub(super) fn reload(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    let (driver, name) = (nodes.driver(), "codeq.toml");
    let path = nodes.put(0, name, &settings(driver, "info"))?;
    nodes.unset(0, "CODEQ_RAFT_LOG_LEVEL");
    nodes.set(0, "CODEQ_CONFIG", &path);
    nodes.stop(0)?;
    nodes.start(0)?;
    nodes.ready(&[0], READY_MAX)?;
    nodes.put(0, name, &settings(driver, "debug"))?;
    let report = "says how it is";
    ensure!(!nodes.log(0)?.iter().any(|line| line.contains(report)), "it tells of reports before it is told to");
    let answer = expect(&nodes.post(0, "/cluster/reload", &json!({}))?, 200)?;
    nodes.logged(0, report, REPORT_MAX)?;
    nodes.put(0, name, "nonsense = 1\n")?;
    let refused = expect(&nodes.post(0, "/cluster/reload", &json!({}))?, 422)?;
    ensure!(refused["code"] == "invalid_file" && text(&refused["detail"])?.contains("nonsense"), "{refused}");
    ensure!(nodes.get(0, "/readyz")?.status == 200, "it goes on");
    match driver {
        Driver::Process => nodes.unset(0, "CODEQ_CONFIG"),
        // Without any value it would have none of the image's settings.
        Driver::Docker => nodes.set(0, "CODEQ_CONFIG", "/etc/codeq/codeq.toml"),
    }
    nodes.stop(0)?;
    nodes.start(0)?;
    nodes.ready(&[0], READY_MAX)?;
    Ok(format!("{answer}: Raft tells more at once; a file that does not read changes nothing: {}", refused["detail"]))
}

/// Without a majority the leader is given up within this.
const NOTICED_MAX: Duration = Duration::from_secs(5);

pub(super) fn endpoints(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    let list = all(|place| Ok(nodes.http(place).to_string()))?.join(",");
    let codeq = nodes.codeq().to_owned();
    let ask = |arguments: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = Command::new(&codeq);
        let output = command.args(arguments).args(["--endpoints", &list]).env_clear().output()?;
        let both = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&both).trim().replace('\n', "; ")))
    };
    let (status, which) = ask(&["which-endpoint"])?;
    ensure!(status == Some(0) && which.contains("the first of 3"), "{status:?} {which}");
    for down in 0..2 {
        let (status, printed) = eventually(NOTICED_MAX, || {
            let (status, printed) = ask(&["leader"])?;
            ensure!(status == Some(0), "{down} down: {status:?} {printed}");
            Ok((status, printed))
        })?;
        ensure!(printed.contains("Leader") && status == Some(0), "{printed}");
        nodes.stop(down)?;
    }
    let lost = eventually(NOTICED_MAX, || {
        let (status, printed) = ask(&["leader"])?;
        ensure!(status == Some(3) && printed.contains("nothing can be decided"), "{status:?} {printed}");
        Ok(printed)
    })?;
    let (_, last) = ask(&["which-endpoint"])?;
    ensure!(last.contains(&nodes.http(2).to_string()), "{last}");
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    Ok(format!("{which}; answers with none and one stopped; with two exit 3: {lost}"))
}

/// Operations that a node misses.
const MISSED: usize = 50_000;

/// Tasks in one request: as many as the server takes.
const BATCH: usize = 100;

/// The same log as far back as the node needs would do; it is kept short.
const LOG_KEPT: &str = "1MiB";

/// A leader keeps more of its log for a member that it has heard from a moment ago: after so long that is over, however fast the writes.
const GONE: Duration = Duration::from_secs(3);

/// From a start to everything that was missed.
const CAUGHT_UP_MAX: Duration = Duration::from_secs(60);

pub(super) fn away_for_long(story: &mut Story) -> Result<String> {
    let nodes = &mut story.nodes;
    nodes.down()?;
    (0..3).for_each(|place| nodes.set(place, "CODEQ_STORAGE_TRAILING_LOG_BYTES", LOG_KEPT));
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let leader = leader_of(nodes)?;
    let away = (leader + 1) % 3;
    nodes.stop(away)?;
    let mut client = Client::connect(nodes.http(leader))?;
    let body = json!({ "tasks": vec![json!({ "command": "OS17", "payload": "x".repeat(64) }); BATCH] }).to_string();
    for _ in 0..MISSED / BATCH {
        expect(&client.post(&format!("{TASKS}/batch"), &body)?, 200)?;
    }
    std::thread::sleep(GONE);
    // One member is away, which the command says.
    nodes.codeq_at(leader, &["snapshot", "trigger"])?;
    let begun = Instant::now();
    nodes.start(away)?;
    nodes.logged(away, "raft.snapshot.installed", CAUGHT_UP_MAX)?;
    eventually(CAUGHT_UP_MAX, || {
        let node = nodes.page(leader, &format!("/cluster/nodes/{}", nodes.name(away)))?;
        ensure!(node["lag"] == 0 && node["healthy"] == true, "{node}");
        Ok(())
    })?;
    let took = begun.elapsed();
    nodes.ready(&[away], READY_MAX)?;
    let dumps = dumps(nodes)?;
    (0..3).for_each(|place| nodes.unset(place, "CODEQ_STORAGE_TRAILING_LOG_BYTES"));
    Ok(format!("{MISSED} operations missed; snapshot installed, lag 0 after {:.1} s; {dumps}", took.as_secs_f64()))
}

/// A node alone has a leader within this.
const ALONE_MAX: Duration = Duration::from_secs(1);

/// What is left out so that a node knows no others.
const ABOUT_OTHERS: [&str; 2] = ["RAFT_NODES", "BIND"];

pub(super) fn alone_grows(story: &mut Story) -> Result<String> {
    let mut nodes = story.nodes.others("walk-grow")?;
    if nodes.driver() == Driver::Docker {
        // They have the same ports and names.
        story.nodes.down()?;
    }
    let saved: Vec<BTreeMap<String, String>> = (0..3).map(|place| nodes.variables(place).clone()).collect();
    for place in 0..3 {
        ABOUT_OTHERS.iter().for_each(|name| nodes.unset(place, name));
    }
    nodes.unset(0, "RAFT_BIND_ADDR");
    nodes.set(0, "RAFT", "false");
    nodes.start(0)?;
    nodes.ready(&[0], READY_MAX)?;
    let kept = expect(&nodes.post(0, TASKS, &json!({ "command": "OS21", "payload": 1 }))?, 202)?;
    nodes.stop(0)?;
    nodes.unset(0, "RAFT");
    for (place, saved) in saved.iter().enumerate() {
        let listens = saved.get("RAFT_BIND_ADDR").cloned().unwrap_or_else(|| ":7000".into());
        nodes.set(place, "CODEQ_RAFT_ADDR", &listens);
        nodes.unset(place, "RAFT_BIND_ADDR");
        if place > 0 {
            let first = nodes.peer(0).to_owned();
            nodes.set(place, "CODEQ_JOIN", &first);
        }
    }
    nodes.start(0)?;
    nodes.ready(&[0], READY_MAX)?;
    nodes.up()?;
    let begun = Instant::now();
    let path = format!("{TASKS}/{}", text(&kept["id"])?);
    eventually(MEMBER_MAX, || {
        let status = nodes.page(0, STATUS)?;
        ensure!(status["quorum"]["voters"] == 3, "{status}");
        Ok(())
    })?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let took = begun.elapsed();
    for place in 0..3 {
        ensure!(expect(&nodes.get(place, &path)?, 200)?["status"] == "PENDING", "{}", nodes.name(place));
    }
    nodes.forget()?;
    let own = format!("{}={}", nodes.name(0), nodes.peer(0));
    nodes.set(0, "RAFT_NODES", &own);
    nodes.start(0)?;
    let addr = nodes.http(0);
    eventually(READY_MAX, || send_as(addr, None, "GET", "/healthz", ""))?;
    let begun = Instant::now();
    let alone: Value = eventually(ALONE_MAX, || {
        let seen = nodes.page(0, "/cluster/nodes")?;
        ensure!(seen["nodes"][0]["status"] == "leader", "{seen}");
        Ok(seen)
    })
    .context("a list of only itself")?;
    ensure!(list(&alone["nodes"])?.len() == 1, "{alone}");
    let led = begun.elapsed();
    nodes.forget()?;
    drop(nodes);
    story.nodes.up()?;
    story.nodes.ready(&[0, 1, 2], READY_MAX)?;
    Ok(format!(
        "its task is at all three, which vote after {:.1} s; a list of only itself: leader after {} ms",
        took.as_secs_f64(),
        led.as_millis()
    ))
}
