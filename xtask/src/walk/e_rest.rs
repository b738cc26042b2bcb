//! Three nodes that are all down, that get a newcomer, that send a large snapshot, and that have nothing to do.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::process::Folder;
use crate::walk::e::Stage;
use crate::walk::nodes::{Driver, Nodes, Process, eventually, free_ports};
use crate::walk::page::Page;
use crate::walk::{READY_MAX, TASKS, expect, list, number, text};

fn three(stage: &Stage, name: &str) -> Result<Nodes> {
    let mut nodes = Nodes::of(Page::Listed, Driver::Process, &stage.codeq, name)?;
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    Ok(nodes)
}

/// A lease, and a delay, that run while all are down.
const LEASE: Duration = Duration::from_secs(5);

/// How late what is due may be: all must be up, and one of them must lead.
const LATE_MAX: Duration = Duration::from_secs(5);

pub(super) fn all_down(stage: &Stage) -> Result<String> {
    let mut nodes = three(stage, "walk-all-down")?;
    let down = Duration::from_secs(u64::from(stage.count(8, 300)));
    let lease = LEASE.as_secs();
    let claim = |nodes: &Nodes, command: &str| {
        nodes.post(0, &format!("{TASKS}/claim"), &json!({ "commands": [command], "leaseSeconds": lease }))
    };
    expect(&nodes.post(0, TASKS, &json!({ "command": "DELAYED", "payload": 1, "delaySeconds": lease }))?, 202)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let due = now + down / 2;
    // Seconds since 1970, made a date by the program that every machine has.
    let due = crate::docker::printed(std::process::Command::new("date").args([
        "-u",
        "-d",
        &format!("@{}", due.as_secs()),
        "+%Y-%m-%dT%H:%M:%SZ",
    ]))?;
    expect(&nodes.post(0, TASKS, &json!({ "command": "SCHEDULED", "payload": 1, "runAt": due.trim() }))?, 202)?;
    expect(&nodes.post(0, TASKS, &json!({ "command": "LEASED", "payload": 1 }))?, 202)?;
    let held = expect(&claim(&nodes, "LEASED")?, 200)?;
    let claimed = Instant::now();
    let path = format!("{TASKS}/{}", text(&held["id"])?);
    (0..3).try_for_each(|place| nodes.kill(place))?;
    let before = claimed.elapsed();
    std::thread::sleep(down);

    nodes.up()?;
    let begun = Instant::now();
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let shown = nodes.page(0, &path)?;
    ensure!(shown["status"] == "IN_PROGRESS", "a lease of {LEASE:?} has ended while all were down: {shown}");
    expect(&claim(&nodes, "SCHEDULED")?, 200).context("its time was while all were down")?;
    let delayed = claim(&nodes, "DELAYED")?;
    ensure!(delayed.status == 204, "a delay of {LEASE:?} has ended while all were down: {delayed}");
    let ended = eventually(LEASE + LATE_MAX, || {
        let shown = nodes.page(0, &path)?;
        ensure!(shown["status"] != "IN_PROGRESS", "the lease goes on: {shown}");
        Ok(before + begun.elapsed())
    })?;
    ensure!(ended >= LEASE, "a lease of {LEASE:?} has ended after {ended:?} with a leader");
    eventually(LATE_MAX, || expect(&claim(&nodes, "DELAYED")?, 200)).context("a delay")?;
    nodes.down()?;
    Ok(format!(
        "all down for {} s: a lease of {lease} s ends after {} ms in which a node ran; what was scheduled is there at once, \
         what was delayed in its time",
        down.as_secs(),
        ended.as_millis()
    ))
}

/// Writes at a node, each of which must be taken, until it is told to stop. Returns how many.
fn writes(nodes: &Nodes, place: usize, over: &AtomicBool) -> Result<u64> {
    let mut taken = 0;
    while !over.load(Ordering::Relaxed) {
        expect(&nodes.post(place, TASKS, &json!({ "command": "LOAD", "payload": 1 }))?, 202)?;
        taken += 1;
    }
    Ok(taken)
}

/// Puts load on a node that is not touched by what is done meanwhile. Returns how many writes it took; every one of them must be.
fn under_load(nodes: &Nodes, place: usize, meanwhile: impl FnOnce() -> Result<()>) -> Result<u64> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| writes(nodes, place, &over));
        let done = meanwhile();
        over.store(true, Ordering::Relaxed);
        let taken = load.join().map_err(|_| anyhow!("a client has panicked"))?;
        done.and(taken)
    })
}

/// Voters, and how many of them are needed.
fn quorum(nodes: &Nodes) -> Result<(u64, u64)> {
    let health = nodes.page(0, "/cluster/health")?;
    Ok((number(&health["voters"])?, number(&health["needed"])?))
}

fn names(nodes: &Nodes) -> Result<Vec<String>> {
    list(&nodes.page(0, "/cluster/nodes")?["nodes"])?.iter().map(|node| text(&node["name"])).collect()
}

/// How long a newcomer that nobody reaches is watched.
const WATCHED: Duration = Duration::from_secs(3);

/// A newcomer is killed so many times.
const KILLS: u32 = 3;

pub(super) fn newcomer(stage: &Stage) -> Result<String> {
    let mut nodes = three(stage, "walk-newcomer")?;
    let refused = nodes.post(0, "/cluster/members", &json!({ "address": "127.0.0.1:1" }))?;
    ensure!(refused.status >= 400 && quorum(&nodes)? == (3, 2), "an address where nobody is: {refused}");
    let why = refused.json()?;
    let why = why["detail"].as_str().or(why["error"].as_str()).unwrap_or_default().to_owned();

    let folder = Folder::new("walk-unreachable")?;
    let ports = free_ports(3)?;
    let mut variables: BTreeMap<String, String> = nodes.variables(2).clone();
    variables.remove("CODEQ_INITIAL_CLUSTER");
    let own = [
        ("CODEQ_NODE_ID", "n4".to_owned()),
        ("CODEQ_DATA_DIR", folder.within("n4").display().to_string()),
        ("CODEQ_RAFT_ADDR", format!("127.0.0.1:{}", ports[0])),
        // Where nobody listens.
        ("CODEQ_RAFT_ADVERTISE", format!("127.0.0.1:{}", ports[1])),
        ("PORT", ports[2].to_string()),
        ("CODEQ_PUBLIC_URL", format!("http://localhost:{}", ports[2])),
        ("CODEQ_JOIN", nodes.peer(0).to_owned()),
    ];
    variables.extend(own.map(|(name, value)| (name.to_owned(), value)));
    let unreachable = Process::start(&stage.codeq, &["serve"], &variables)?;
    let taken = under_load(&nodes, 0, || {
        let begun = Instant::now();
        while begun.elapsed() < WATCHED {
            ensure!(quorum(&nodes)? == (3, 2), "a newcomer that nobody reaches counts: {:?}", quorum(&nodes)?);
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    })?;
    let is_member = names(&nodes)?.iter().any(|name| name == "n4");
    drop(unreachable);
    if is_member {
        expect(&nodes.send(0, "DELETE", "/cluster/members/n4", "")?, 200)?;
        ensure!(!names(&nodes)?.iter().any(|name| name == "n4"), "it was removed, and is a member");
    }
    let became = if is_member { "a learner that was removed" } else { "never a member" };

    fill(&nodes, 0, 20)?;
    nodes.kill(2)?;
    nodes.remove_volume(2)?;
    for round in 0..KILLS {
        nodes.start(2)?;
        eventually(READY_MAX, || nodes.get(2, "/healthz"))?;
        std::thread::sleep(Duration::from_millis(u64::from(round) * 60));
        ensure!(quorum(&nodes)?.1 == 2, "a newcomer that catches up counts: {:?}", quorum(&nodes)?);
        nodes.kill(2)?;
        expect(&nodes.post(1, TASKS, &json!({ "command": "LOAD", "payload": 1 }))?, 202)?;
    }
    nodes.start(2)?;
    let back = nodes.ready(&[2], READY_MAX)?;
    eventually(READY_MAX, || {
        ensure!(quorum(&nodes)? == (3, 2), "{:?}", quorum(&nodes)?);
        let node = nodes.page(0, &format!("/cluster/nodes/{}", nodes.name(2)))?;
        ensure!(node["voter"] == true, "{node}");
        Ok(())
    })?;
    nodes.down()?;
    Ok(format!(
        "nobody there: {} {why}; advertised where nobody listens: {became}, two of three voters needed all the time, {taken} writes taken; \
         killed {KILLS} times while it catches up: ready {} ms after its last start",
        refused.status,
        back.as_millis()
    ))
}

/// Bytes of a payload, and tasks in one request.
const PAYLOAD_BYTES: usize = 8 << 10;
const BATCH: usize = 100;

/// Fills a queue that nobody works on with so many MiB. Returns how many tasks those are.
fn fill(nodes: &Nodes, place: usize, mib: usize) -> Result<u64> {
    let task = json!({ "command": "BACKLOG", "payload": "x".repeat(PAYLOAD_BYTES), "delaySeconds": 86_400 });
    let body = json!({ "tasks": vec![task; BATCH] });
    let requests = ((mib << 20) / PAYLOAD_BYTES).div_ceil(BATCH);
    for _ in 0..requests {
        let made = expect(&nodes.post(place, &format!("{TASKS}/batch"), &body)?, 200)?;
        ensure!(list(&made["results"])?.iter().all(|item| item["task"].is_object()), "{made}");
    }
    Ok((requests * BATCH) as u64)
}

/// How long writes are counted before a snapshot is sent.
const BEFORE: Duration = Duration::from_secs(3);

/// While a snapshot is sent, writes go on at so many hundredths of their rate before. Looked at where a snapshot takes long enough for that.
const DURING_MIN_PERCENT: f64 = 80.0;

/// From the start of a newcomer to its vote, however much it is sent.
const SENT_MAX: Duration = Duration::from_secs(300);

pub(super) fn large_snapshot(stage: &Stage) -> Result<String> {
    let mut nodes = Nodes::of(Page::Listed, Driver::Process, &stage.codeq, "walk-large")?;
    (0..3).for_each(|place| nodes.set(place, "CODEQ_STORAGE_TRAILING_LOG_BYTES", "1MiB"));
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let mib = stage.count(64, 2_048) as usize;
    let tasks = fill(&nodes, 0, mib)?;
    let saved = nodes.codeq_at(0, &["snapshot", "trigger"])?;
    ensure!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    let rest = || -> Result<()> {
        std::thread::sleep(BEFORE);
        Ok(())
    };
    nodes.kill(2)?;
    nodes.remove_volume(2)?;
    let before = under_load(&nodes, 0, rest)? as f64 / BEFORE.as_secs_f64();

    // So long that a part of it has come.
    nodes.start(2)?;
    eventually(READY_MAX, || nodes.get(2, "/healthz"))?;
    std::thread::sleep(Duration::from_millis(u64::from(stage.count(150, 3_000))));
    nodes.kill(2)?;
    nodes.start(2)?;
    let begun = Instant::now();
    let during = under_load(&nodes, 0, || nodes.ready(&[2], SENT_MAX).map(drop))? as f64;
    let took = begun.elapsed();
    let during = during / took.as_secs_f64();
    let stats = nodes.page(2, "/v1/codeq/admin/queues/BACKLOG?consistency=stale")?;
    ensure!(stats["delayed"] == tasks, "it has caught up, and not with all {tasks}: {stats}");
    let percent = 100.0 * during / before;
    ensure!(!stage.long || percent >= DURING_MIN_PERCENT, "{before:.0} writes/s before, {during:.0} during");
    nodes.down()?;
    Ok(format!(
        "{mib} MiB of payloads, killed in the middle: whole and ready {:.1} s after its second start; {before:.0} writes/s before, {during:.0} \
         during: {percent:.0} %",
        took.as_secs_f64()
    ))
}

/// After a start, until nothing of it is under way any more.
const SETTLED: Duration = Duration::from_secs(5);

/// Of a processor, in hundredths.
const BUSY_MAX_PERCENT: f64 = 1.0;

/// Lines of a log in which nothing happens, in all.
const LINES_MAX: usize = 3;

/// Time of a processor that a node has had, in ticks, of which there are this many in a second.
const TICKS: f64 = 100.0;

fn busy(nodes: &Nodes, place: usize) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", nodes.process_id(place)?))?;
    // Behind the name, which may have spaces, stand state (field 3) and so on; times of user and kernel are fields 14 and 15.
    let (_, rest) = stat.rsplit_once(") ").context("a process has a name")?;
    let ticks = rest.split(' ').skip(11).take(2).map(|field| field.parse::<f64>().context("ticks"));
    Ok(ticks.sum::<Result<f64>>()? / TICKS)
}

/// What must not move: the last entry and the term, of every node.
fn ends(nodes: &Nodes) -> Result<Vec<[Value; 2]>> {
    (0..3)
        .map(|place| {
            let status = nodes.page(place, "/cluster/status")?;
            number(&status["lastIndex"])?;
            Ok([status["lastIndex"].clone(), status["term"].clone()])
        })
        .collect()
}

pub(super) fn idle(stage: &Stage) -> Result<String> {
    let mut nodes = three(stage, "walk-idle")?;
    expect(&nodes.post(0, TASKS, &json!({ "command": "IDLE", "payload": 1 }))?, 202)?;
    std::thread::sleep(SETTLED);
    let watched = Duration::from_secs(u64::from(stage.count(45, 3_600)));
    let all_busy = |nodes: &Nodes| (0..3).map(|place| busy(nodes, place)).collect::<Result<Vec<_>>>();
    let lines = |nodes: &Nodes| (0..3).map(|place| Ok(nodes.log(place)?.len())).collect::<Result<Vec<_>>>();
    let (busy_before, lines_before, ends_before) = (all_busy(&nodes)?, lines(&nodes)?, ends(&nodes)?);
    std::thread::sleep(watched);
    let (busy_after, lines_after, ends_after) = (all_busy(&nodes)?, lines(&nodes)?, ends(&nodes)?);
    ensure!(ends_before == ends_after, "the log grows: {ends_before:?} became {ends_after:?}");
    let percents: Vec<f64> = busy_before
        .iter()
        .zip(&busy_after)
        .map(|(before, after)| 100.0 * (after - before) / watched.as_secs_f64())
        .collect();
    ensure!(percents.iter().all(|percent| *percent < BUSY_MAX_PERCENT), "processors are busy: {percents:.2?} %");
    for place in 0..3 {
        let new = &nodes.log(place)?[lines_before[place]..lines_after[place]];
        ensure!(new.len() <= LINES_MAX, "{} talks:\n{}", nodes.name(place), new.join("\n"));
    }
    let said: usize = lines_before.iter().zip(&lines_after).map(|(before, after)| after - before).sum();
    nodes.down()?;
    Ok(format!(
        "{} s: no entry more, no election, {percents:.2?} % of a processor, {said} lines in three logs",
        watched.as_secs()
    ))
}
