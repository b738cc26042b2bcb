//! What nodes say of themselves when something is not as it should be: each its own truth.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::process::Folder;
use crate::walk::e::Stage;
use crate::walk::nodes::{Driver, Nodes, eventually};
use crate::walk::page::Page;
use crate::walk::{READY_MAX, TASKS, expect};

/// From a change until a node knows of it.
const NOTICED_MAX: Duration = Duration::from_secs(5);

/// Waits until a node is alive and not ready, for a reason with this text; returns the reason.
fn not_ready(nodes: &Nodes, place: usize, reason: &str) -> Result<String> {
    eventually(NOTICED_MAX, || {
        for path in ["/healthz", "/livez"] {
            let answer = nodes.get(place, path)?;
            ensure!(answer.status == 200, "{path}: {answer}");
        }
        let ready = nodes.get(place, "/readyz")?;
        let text = String::from_utf8_lossy(&ready.body);
        let line = text.lines().find(|line| line.starts_with("[-]") && line.contains(reason));
        ensure!(ready.status == 503 && line.is_some(), "{ready}");
        Ok(line.unwrap_or_default().to_owned())
    })
}

pub(super) fn joining(stage: &Stage) -> Result<String> {
    let mut nodes = Nodes::of(Page::Join, Driver::Process, &stage.codeq, "walk-joining")?;
    nodes.start(0)?;
    eventually(READY_MAX, || nodes.get(0, "/healthz"))?;
    let reason = not_ready(&nodes, 0, "not joined: 1 of 3 nodes known")?;
    nodes.down()?;
    Ok(format!("joining: alive, {reason}"))
}

pub(super) fn no_leader(stage: &Stage) -> Result<String> {
    let mut nodes = Nodes::of(Page::Listed, Driver::Process, &stage.codeq, "walk-no-leader")?;
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let leader = nodes.leader(0)?;
    let last = (leader + 1) % 3;
    nodes.kill(leader)?;
    nodes.kill((leader + 2) % 3)?;
    let reason = not_ready(&nodes, last, "no leader is known")?;
    let local = nodes.get(last, "/readyz?noleader")?;
    ensure!(local.status == 200, "its own part is not ready: {local}");
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    nodes.down()?;
    Ok(format!("no leader: alive, {reason}; ready again with the others"))
}

/// Bytes of a node's disk.
const DISK_BYTES: u64 = 256 << 20;

/// From a disk that answers nothing to another leader.
const HANDED_OVER_MAX: Duration = Duration::from_secs(5);

pub(super) fn frozen_disk(stage: &Stage) -> Result<String> {
    let mut nodes = Nodes::of(Page::Listed, Driver::Process, &stage.codeq, "walk-frozen")?;
    let folder = Folder::new("walk-frozen-disks")?;
    let disks = nodes.with_disks(&folder, DISK_BYTES)?;
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let task = json!({ "command": "E14", "payload": 1 });
    let leader = nodes.leader(0)?;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    let frozen = disks[leader].freeze()?;
    let begun = Instant::now();
    // What is written for the disk to be missed; what becomes of it is not known.
    let writes = std::thread::scope(|scope| {
        scope.spawn(|| nodes.post(leader, TASKS, &task));
        eventually(HANDED_OVER_MAX, || {
            let says = nodes.leader(others[0])?;
            ensure!(says != leader, "{} leads for {}", nodes.name(leader), nodes.name(others[0]));
            expect(&nodes.post(others[0], TASKS, &task)?, 202)?;
            Ok(begun.elapsed())
        })
    })?;
    let said = eventually(NOTICED_MAX, || {
        let live = nodes.get(leader, "/livez")?;
        ensure!(live.status == 503, "its disk does not answer, and it lives: {live}");
        Ok(String::from_utf8_lossy(&live.body).into_owned())
    });
    let next = nodes.leader(others[0])?;
    drop(frozen);
    let said = said?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    nodes.down()?;
    Ok(format!(
        "the leader's disk frozen: {} leads and takes writes after {} ms; /livez there: 503 {}; back with its disk",
        nodes.name(next),
        writes.as_millis(),
        said.trim()
    ))
}

/// What `codeq check` ends with where it may not be.
const NOT_WELL: i32 = 6;

pub(super) fn check_quorum(stage: &Stage) -> Result<String> {
    let mut nodes = Nodes::of(Page::Listed, Driver::Process, &stage.codeq, "walk-check-quorum")?;
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let check = |nodes: &Nodes| -> Result<(Option<i32>, String)> {
        let output = nodes.codeq_at(0, &["check", "quorum", "--node", nodes.name(1)])?;
        let both = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&both).trim().to_owned()))
    };
    let allows = |nodes: &Nodes| {
        eventually(READY_MAX, || {
            let (status, said) = check(nodes)?;
            ensure!(status == Some(0), "exit {status:?}: {said}");
            Ok(said)
        })
    };
    allows(&nodes)?;
    nodes.kill(2)?;
    let refused = eventually(READY_MAX, || {
        let (status, said) = check(&nodes)?;
        ensure!(status == Some(NOT_WELL), "exit {status:?}: {said}");
        Ok(said)
    })?;
    nodes.start(2)?;
    let allowed = allows(&nodes)?;
    nodes.down()?;
    Ok(format!("codeq check quorum with one node down: exit 6, {refused}; with it again: exit 0, {allowed}"))
}
