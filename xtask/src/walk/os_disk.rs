//! Disks of three nodes that get full, have room again, and break.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::disks::Disk;
use crate::docker::docker;
use crate::process::Folder;
use crate::walk::nodes::{Driver, Nodes, allowed, eventually};
use crate::walk::os::{Story, all, leader_of};
use crate::walk::{READY_MAX, TASKS, expect, list, text};

/// Bytes of a node's disk: a few segments of its log and its checkpoint, several times.
const DISK_BYTES: u64 = 256 << 20;

/// Less than `--disk-low`, and less than `--disk-critical`.
const LOW_BYTES: u64 = DISK_BYTES / 14;
const CRITICAL_BYTES: u64 = DISK_BYTES / 60;

/// From a disk that is full or broken to another leader.
const HANDED_OVER_MAX: Duration = Duration::from_secs(5);

/// From a change of the room on a disk until every member acts on it.
const NOTICED_MAX: Duration = Duration::from_secs(10);

/// How long a node whose disk is full is watched: it must not lead, and nobody must stand for election.
const WATCHED: Duration = Duration::from_secs(5);

/// What a server ends with when its disk fails.
const STORAGE_FAILED: Option<i32> = Some(9);

/// Three nodes with a disk each, none of which has been used. The others have stopped if they have the same ports.
struct Stage {
    nodes: Nodes,
    disks: Vec<Disk>,
    /// Goes last.
    _folder: Folder,
}

impl Stage {
    fn new(story: &mut Story, name: &str) -> Result<Stage> {
        let mut nodes = story.nodes.others(name)?;
        if nodes.driver() == Driver::Docker {
            story.nodes.down()?;
        }
        let folder = Folder::new(&format!("{name}-disks"))?;
        let disks = nodes.with_disks(&folder, DISK_BYTES)?;
        for place in 0..3 {
            ["CODEQ_DISK_LOW", "CODEQ_DISK_CRITICAL"].iter().for_each(|name| nodes.unset(place, name));
        }
        nodes.up()?;
        nodes.ready(&[0, 1, 2], READY_MAX)?;
        Ok(Stage { nodes, disks, _folder: folder })
    }

    /// Back to the others.
    fn end(self, story: &mut Story) -> Result<()> {
        drop(self);
        story.nodes.up()?;
        story.nodes.ready(&[0, 1, 2], READY_MAX).map(|_| ())
    }
}

/// The one of these nodes that says it leads.
fn leads(nodes: &Nodes, places: &[usize]) -> Result<usize> {
    let mut found = None;
    for place in places {
        if nodes.get(*place, "/cluster/leader-check")?.status == 200 {
            ensure!(found.is_none(), "two say that they lead");
            found = Some(*place);
        }
    }
    found.ok_or_else(|| anyhow::anyhow!("nobody leads"))
}

pub(super) fn of_leader(story: &mut Story) -> Result<String> {
    let mut stage = Stage::new(story, "walk-disk")?;
    let nodes = &mut stage.nodes;
    let task = json!({ "command": "OS16", "payload": 1 });
    expect(&nodes.post(0, TASKS, &task)?, 202)?;
    let full = leader_of(nodes)?;
    let others = [(full + 1) % 3, (full + 2) % 3];
    let begun = Instant::now();
    stage.disks[full].fill(CRITICAL_BYTES)?;
    eventually(HANDED_OVER_MAX, || leads(nodes, &others))?;
    let handed_over = begun.elapsed();
    let said = nodes.logged(full, "alarm space-critical", NOTICED_MAX)?;
    let term = nodes.page(others[0], "/cluster/status")?["term"].clone();
    let watched = Instant::now();
    while watched.elapsed() < WATCHED {
        ensure!(nodes.get(full, "/cluster/leader-check")?.status == 404, "{} leads again", nodes.name(full));
    }
    ensure!(nodes.page(others[0], "/cluster/status")?["term"] == term, "elections go on");
    stage.disks[full].make_room()?;
    eventually(NOTICED_MAX, || expect(&nodes.post(full, TASKS, &task)?, 202))?;

    let broken = leader_of(nodes)?;
    let others = [(broken + 1) % 3, (broken + 2) % 3];
    if let Some(project) = nodes.project() {
        // Started again, it would tell of its second start.
        docker(&["update", "--restart", "no", &project.container(nodes.name(broken))?])?;
    }
    let begun = Instant::now();
    stage.disks[broken].make_read_only()?;
    // A disk fails when something is written to it. What becomes of this is not known.
    let _ = nodes.post(others[0], TASKS, &task);
    let next = eventually(HANDED_OVER_MAX, || leads(nodes, &others))?;
    let led = begun.elapsed();
    eventually(HANDED_OVER_MAX, || expect(&nodes.post(others[1], TASKS, &task)?, 202))?;
    let line = nodes.logged(broken, "storage.failed", NOTICED_MAX)?;
    let status = nodes.ended(broken, NOTICED_MAX)?;
    ensure!(status == STORAGE_FAILED, "{} has ended with {status:?}", nodes.name(broken));
    ensure!(line.to_lowercase().contains("read-only"), "{line}");
    let seen = format!(
        "full: {} leads no more after {} ms and stays out; it says: {}; broken: {} leads after {} ms, exit 9: {}",
        nodes.name(full),
        handed_over.as_millis(),
        said.split("raft: ").last().unwrap_or(&said),
        nodes.name(next),
        led.as_millis(),
        line.trim()
    );
    stage.end(story)?;
    Ok(seen)
}

/// What is refused and what goes on while a disk has little room, at every node.
fn takes_no_tasks(nodes: &Nodes, lacking: &[usize]) -> Result<()> {
    let task = json!({ "command": "E31", "payload": 1 });
    for place in 0..3 {
        eventually(NOTICED_MAX, || {
            let refused = expect(&nodes.post(place, TASKS, &task)?, 507)?;
            ensure!(refused["code"] == "no_space" && refused["definite"] == true, "{refused}");
            let alarms = nodes.page(place, "/cluster/alarms")?;
            let low = list(&alarms["alarms"])?.iter().filter(|alarm| alarm["kind"] == "space-low");
            let members = low.map(|alarm| text(&alarm["member"])).collect::<Result<Vec<_>>>()?;
            ensure!(lacking.iter().all(|place| members.iter().any(|name| name == nodes.name(*place))), "{alarms}");
            Ok(())
        })?;
        let body = json!({ "commands": ["E31"], "leaseSeconds": 60 });
        let claimed = expect(&nodes.post(place, &format!("{TASKS}/claim"), &body)?, 200)?;
        let path = format!("{TASKS}/{}/result", text(&claimed["id"])?);
        let result = json!({ "status": "COMPLETED", "result": {}, "leaseToken": claimed["leaseToken"] });
        expect(&nodes.post((place + 1) % 3, &path, &result)?, 200)?;
    }
    Ok(())
}

pub(super) fn little_room(story: &mut Story) -> Result<String> {
    let stage = Stage::new(story, "walk-room")?;
    let (nodes, disks) = (&stage.nodes, &stage.disks);
    let task = json!({ "command": "E31", "payload": 1 });
    (0..6).try_for_each(|_| expect(&nodes.post(0, TASKS, &task)?, 202).map(|_| ()))?;
    disks[0].fill(LOW_BYTES)?;
    takes_no_tasks(nodes, &[0])?;
    disks[1..].iter().try_for_each(|disk| disk.fill(LOW_BYTES))?;
    takes_no_tasks(nodes, &[0, 1, 2])?;
    disks.iter().try_for_each(Disk::make_room)?;
    let begun = Instant::now();
    all(|place| eventually(NOTICED_MAX, || expect(&nodes.post(place, TASKS, &task)?, 202)))?;
    let took = begun.elapsed();
    all(|place| {
        eventually(NOTICED_MAX, || {
            let alarms = nodes.page(place, "/cluster/alarms")?;
            ensure!(list(&alarms["alarms"])?.is_empty(), "{alarms}");
            Ok(())
        })
    })?;
    ensure!(took <= allowed(NOTICED_MAX), "after {took:?}");
    stage.end(story)?;
    Ok(format!(
        "one, then all: 507 for new tasks at every node, claims and results go on; over {} ms later",
        took.as_millis()
    ))
}
