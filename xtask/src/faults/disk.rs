//! The leader's disk is full: the node stops itself and says why, the others go on.
//!
//! Where the runner may mount file systems, each node has a small one of its own, and the leader's is filled up. Elsewhere the leader's process
//! is forbidden to let a file grow, which fails its writes as well, with another number.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::disks::Disk;
use crate::faults::cluster::{Cluster, NAMES, NODES};
use crate::faults::figures::Watch;
use crate::faults::{Run, calm};

/// Bytes of a node's disk.
const DISK_BYTES: u64 = 192 << 20;

/// What `codeq serve` ends with when its disk fails.
const STORAGE_FAILED: i32 = 9;

/// Fills the leader's disk, and starts it again when there is room.
pub(super) fn disk_full(run: &Run) -> Result<()> {
    let mut cluster = Cluster::new(run.codeq(), "disk-full", false)?;
    let folder = |cluster: &Cluster, place: usize| cluster.folder().within(&format!("{}-disk", NAMES[place]));
    let disks: Option<Vec<Disk>> =
        (0..NODES).map(|place| Disk::mount(folder(&cluster, place), DISK_BYTES)).collect::<Result<Option<Vec<_>>>>()?;
    match &disks {
        Some(disks) => {
            for (place, disk) in disks.iter().enumerate() {
                cluster.keeps_data_in(place, disk.folder().join("data"));
            }
        }
        None => println!("file systems cannot be mounted here; files are forbidden to grow instead"),
    }
    let mut rng = run.rng();
    for place in 0..NODES {
        spawn(&mut cluster, place, disks.is_some())?;
    }
    run.under_load(&mut cluster, |cluster, shared| {
        for round in 1..=run.rounds(1, 5) {
            cluster.wait_until_whole()?;
            calm(&mut rng);
            let leader = cluster.leader()?;
            let mut watch = Watch::begin(shared);
            let full = Instant::now();
            match &disks {
                Some(disks) => disks[leader].fill(0)?,
                None => forbid_growth(cluster.process(leader)?)?,
            }
            let (status, printed) = cluster.wait_until_ended(leader)?;
            let ended = Instant::now();
            let lines: Vec<&str> = printed.lines().filter(|line| says_why(line, cluster.data(leader))).collect();
            ensure!(
                status == Some(STORAGE_FAILED) && lines.len() == 1,
                "{} ended with {status:?}, and said:\n{printed}",
                NAMES[leader]
            );
            let outage = watch.first_after(ended)?;
            println!(
                "round {round}: {} ended after {} ms, first write {} ms later; it said: {}",
                NAMES[leader],
                (ended - full).as_millis(),
                outage.as_millis(),
                lines[0]
            );
            if let Some(disks) = &disks {
                disks[leader].make_room()?;
            }
            spawn(cluster, leader, disks.is_some())?;
            cluster.wait_until_ready(leader)?;
        }
        Ok(())
    })
}

/// Whether a line of the log says that the server failed because of a file of its data.
fn says_why(line: &str, data: &Path) -> bool {
    line.contains("server.failed") && line.contains(&*data.to_string_lossy())
}

/// Starts a node. If its files may be forbidden to grow, it must not be ended by the signal that comes with that.
fn spawn(cluster: &mut Cluster, place: usize, mounted: bool) -> Result<()> {
    if mounted {
        return cluster.spawn(place);
    }
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(cluster.program());
    cluster.arguments(&mut command, place);
    cluster.spawn_as(place, command)
}

/// From now on no file of the process grows.
fn forbid_growth(process: u32) -> Result<()> {
    let mut limit = Command::new("prlimit");
    let status = limit.args(["--pid", &process.to_string(), "--fsize=4096"]).status().context("cannot run prlimit")?;
    ensure!(status.success(), "prlimit failed");
    Ok(())
}
