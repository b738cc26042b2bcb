//! `cargo xtask bars`: what operating a cluster is measured by, as figures beside their bars. The program fails if a bar is not met.
//!
//! Each figure is the worst of some rounds, on the machine that it is run on, with the program as it is shipped.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::docker::{Engine, docker};
use crate::faults::{self, Scenario, Size};
use crate::image::{self, IMAGE_BYTES_MAX, TAGS};
use crate::process::{Folder, Server, build_codeq};
use crate::walk::nodes::{Driver, Nodes};
use crate::walk::page::Page;
use crate::walk::{READY_MAX, eventually};

#[derive(Args)]
pub(crate) struct BarsArgs {
    /// The program to measure. Absent: it is built as it is shipped.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Rounds of each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Leaders that are killed, held up and asked to hand over, with one group and with four, while every node is asked every 10 ms whether it
    /// leads.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    elections: u32,
    /// Leaves out the image, which needs Docker.
    #[arg(long)]
    no_image: bool,
}

/// From `codeq join` at a node that belongs to no cluster to a leader that all three name.
const JOIN_BAR: Duration = Duration::from_secs(3);

/// From the start of a node with an empty directory to its vote, ready.
const VOTER_BAR: Duration = Duration::from_secs(10);

/// From an election to its timeline, complete on every node that runs, also while one hangs.
const TIMELINE_BAR: Duration = Duration::from_secs(1);

/// From a backup of so many tasks to nodes that serve them.
const RESTORE_BAR: Duration = Duration::from_secs(60);
const RESTORED_TASKS: u64 = 1_000_000;

/// Measures, and prints a line for each bar.
///
/// # Errors
/// A bar is not met.
pub(crate) fn run(args: &BarsArgs) -> Result<()> {
    let codeq = args.program.clone().map_or_else(build_codeq, Ok)?;
    let mut all = tell("un-joined nodes: codeq join until all name one leader", JOIN_BAR, &joins(&codeq, args.rounds)?);
    all &= tell(
        "a node with an empty directory: start until it votes and is ready",
        VOTER_BAR,
        &wipes(&codeq, args.rounds)?,
    );
    let [offline, online] = restores(&codeq)?;
    all &=
        tell("1000000 tasks: codeq snapshot restore into an empty directory, until it serves", RESTORE_BAR, &[offline]);
    all &=
        tell("1000000 tasks: codeq snapshot restore --yes into three nodes, until they serve", RESTORE_BAR, &[online]);
    // It ends with an error if two nodes ever say at one time that they lead.
    let timelines = faults::measure(&codeq, Scenario::Elections, args.elections, Size::Full)?;
    println!(
        "PASS {} elections with each number of groups: never two nodes said at one time that they lead",
        args.elections
    );
    all &= tell("an election: until its timeline is complete on every node that runs", TIMELINE_BAR, &timelines);
    if !args.no_image {
        let _engine = Engine::running()?;
        image::build(&codeq)?;
        let bytes: u64 = docker(&["image", "inspect", "--format", "{{.Size}}", TAGS[0]])?.trim().parse()?;
        let met = bytes <= IMAGE_BYTES_MAX;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!("{} image: {:.1} MiB, bar {:.0} MiB", word(met), mib(bytes), mib(IMAGE_BYTES_MAX));
        all &= met;
    }
    ensure!(all, "a bar is not met");
    Ok(())
}

fn word(met: bool) -> &'static str {
    if met { "PASS" } else { "FAIL" }
}

fn tell(what: &str, bar: Duration, took: &[Duration]) -> bool {
    let worst = took.iter().max().copied().unwrap_or_default();
    let all: Vec<String> = took.iter().map(|took| took.as_millis().to_string()).collect();
    println!("{} {what}: {} ms, bar {} ms", word(worst <= bar), all.join(", "), bar.as_millis());
    worst <= bar
}

/// Waits until all three name the same leader.
fn led(nodes: &Nodes) -> Result<()> {
    eventually(READY_MAX, || {
        let leader = nodes.leader(0)?;
        ensure!((1..3).map(|place| nodes.leader(place)).collect::<Result<Vec<_>>>()? == [leader; 2], "they differ");
        Ok(())
    })
}

fn joins(codeq: &Path, rounds: u32) -> Result<Vec<Duration>> {
    let mut nodes = Nodes::of(Page::Join, Driver::Process, codeq, "bars-join")?;
    let mut took = Vec::new();
    for _ in 0..rounds {
        nodes.forget()?;
        nodes.up()?;
        for place in 0..3 {
            eventually(READY_MAX, || nodes.get(place, "/healthz"))?;
        }
        let (b, c) = (nodes.peer(1).to_owned(), nodes.peer(2).to_owned());
        let begun = Instant::now();
        let joined = nodes.codeq_at(0, &["join", &b, &c])?;
        ensure!(joined.status.success(), "{}", String::from_utf8_lossy(&joined.stderr));
        led(&nodes)?;
        took.push(begun.elapsed());
    }
    Ok(took)
}

fn wipes(codeq: &Path, rounds: u32) -> Result<Vec<Duration>> {
    let mut nodes = Nodes::of(Page::Listed, Driver::Process, codeq, "bars-wipe")?;
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let mut took = Vec::new();
    for round in 0..rounds as usize {
        let (place, other) = (round % 3, (round + 1) % 3);
        let path = format!("/cluster/nodes/{}", nodes.name(place));
        let before = nodes.page(other, &path)?["id"].clone();
        nodes.kill(place)?;
        nodes.remove_volume(place)?;
        let begun = Instant::now();
        nodes.start(place)?;
        let back = eventually(VOTER_BAR * 2, || {
            let node = nodes.page(other, &path)?;
            ensure!(node["id"] != before && node["voter"] == true, "{node}");
            nodes.ready(&[place], Duration::ZERO).map(|_| ())
        });
        back.with_context(|| {
            format!("log of {}:\n{}", nodes.name(place), nodes.log(place).unwrap_or_default().join("\n"))
        })?;
        took.push(begun.elapsed());
        // Until the old vote is gone for good, the next failure would be one too many.
        eventually(READY_MAX, || {
            let health = nodes.page(other, "/cluster/health")?;
            ensure!(health["failureTolerance"] == 1, "{health}");
            Ok(())
        })?;
    }
    Ok(took)
}

/// What a command prints, which must succeed.
fn succeeded(output: &Output) -> Result<String> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Saves many tasks of three nodes, and restores them to an empty directory and to the three.
fn restores(codeq: &Path) -> Result<[Duration; 2]> {
    let mut nodes = Nodes::of(Page::Listed, Driver::Process, codeq, "bars-restore")?;
    nodes.up()?;
    nodes.ready(&[0, 1, 2], READY_MAX)?;
    let (url, count) = (format!("http://{}", nodes.http(0)), RESTORED_TASKS.to_string());
    let fill = ["bench", "--url", &url, "--workload", "read", "--prefill", &count, "--commands", "64"];
    succeeded(&nodes.codeq_at(0, &[&fill[..], &["--duration", "100ms", "--no-verify"]].concat())?)?;
    let folder = Folder::new("bars-restored")?;
    let [file, again, data] = ["backup.tar", "again.tar", "data"].map(|name| folder.within(name));
    let [file, again] = [file, again].map(|path| path.display().to_string());
    let is_whole = |saved: &str| -> Result<()> {
        // What is measured with reads a task of its own.
        let tasks: u64 = saved.split(' ').nth(2).unwrap_or_default().parse()?;
        ensure!(tasks >= RESTORED_TASKS, "{saved}");
        Ok(())
    };
    is_whole(&succeeded(&nodes.codeq_at(0, &["snapshot", "save", &file])?)?)?;
    let manifest = succeeded(&nodes.codeq_at(0, &["snapshot", "inspect", &file, "-o", "json"])?)?;
    let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
    let shards = manifest["groups"].as_array().map_or(0, Vec::len).to_string();

    let begun = Instant::now();
    succeeded(&nodes.codeq_at(0, &["snapshot", "restore", &file, "--yes"])?)?;
    nodes.ready(&[0, 1, 2], RESTORE_BAR * 2)?;
    let online = begun.elapsed();
    is_whole(&succeeded(&nodes.codeq_at(0, &["snapshot", "save", &again])?)?)?;
    nodes.forget()?;

    let begun = Instant::now();
    let mut command = Command::new(codeq);
    command.args(["snapshot", "restore", &file, "--node-id", "restored", "--data-dir"]).arg(&data);
    succeeded(&command.output()?)?;
    let server = Server::start(codeq, &data, &["--node-id", "restored", "--shards", &shards])?;
    let offline = begun.elapsed();
    server.kill()?;
    Ok([offline, online])
}
