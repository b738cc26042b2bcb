//! `cargo xtask bench`: what the benchmark page shows, measured in one run on one machine, printed as Markdown.
//!
//! Nothing here passes or fails: the figures of a shared machine are no test. Bars are stated beside the figures, and a reader judges.

mod fill;
mod lists;
mod load;
mod redrive;
mod sections;
mod three;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::process::{Folder, Server, build_codeq};
use crate::repository::output;

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Only this section; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Section>,
    /// Short runs and few tasks: whether it works, not how fast it is.
    #[arg(long)]
    quick: bool,
}

/// The parts of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Against the same HTTP server with canned replies.
    Ratio,
    /// The SDK's worker and producer against the load generator's plain connections.
    Sdk,
    /// By connections, queues and shards.
    Table,
    /// Claims from a long queue against claims from a short one.
    Backlog,
    /// Memory for each waiting task.
    Memory,
    /// Restart with many waiting tasks, after SIGKILL.
    Restart,
    /// From a commit to the answer of the worker that waited for it.
    LongPoll,
    /// Pages of lists beside the work, and what they cost it.
    Lists,
    /// A hundred thousand dead letters brought back beside the work, and what they cost it.
    Redrive,
    /// Three nodes against one.
    Three,
    /// Reads at a follower against reads at the leader.
    FollowerReads,
    /// Four shards against one.
    Shards,
}

/// What the sections share.
struct Bench {
    codeq: PathBuf,
    folder: Folder,
    quick: bool,
}

/// Runs the sections asked for.
///
/// # Errors
/// Something cannot be built or started, or a run loses a task.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    let bench = Bench { codeq: build_codeq()?, folder: Folder::new("bench")?, quick: args.quick };
    println!("{}", machine()?);
    if args.quick {
        println!("\nA quick run: it shows that the programs work, not how fast they are.");
    }
    let all = Section::value_variants();
    for section in all.iter().filter(|section| args.only.is_empty() || args.only.contains(section)) {
        let table = match section {
            Section::Ratio => sections::ratio(&bench)?,
            Section::Sdk => sections::sdk(&bench)?,
            Section::Table => sections::table(&bench)?,
            Section::Backlog => sections::backlog(&bench)?,
            Section::Memory => sections::memory(&bench)?,
            Section::Restart => sections::restart(&bench)?,
            Section::LongPoll => sections::long_poll(&bench)?,
            Section::Lists => lists::lists(&bench)?,
            Section::Redrive => redrive::redrive(&bench)?,
            Section::Three => three::against_one(&bench)?,
            Section::FollowerReads => three::follower_reads(&bench)?,
            Section::Shards => sections::shards(&bench)?,
        };
        println!("\n{}", table.trim_end());
    }
    Ok(())
}

impl Bench {
    /// A server with an empty data directory and the settings it is shipped with, but for these.
    fn start(&self, name: &str, options: &[&str]) -> Result<Server> {
        let data = self.folder.within(name);
        // Of a run before, in the same folder.
        let _ = std::fs::remove_dir_all(&data);
        self.restart(name, options)
    }

    /// A server on the data directory of that name.
    fn restart(&self, name: &str, options: &[&str]) -> Result<Server> {
        Server::start(&self.codeq, &self.folder.within(name), options)
    }

    fn forget(&self, name: &str) {
        // It goes with the folder at the latest; sooner, because it may be large.
        let _ = std::fs::remove_dir_all(self.folder.within(name));
    }

    /// The length of a measurement: `long`, or a second in a quick run.
    fn duration(&self, long: Duration) -> Duration {
        if self.quick { Duration::from_secs(1) } else { long }
    }

    /// Tasks that wait: a million, or few in a quick run.
    fn many(&self) -> u64 {
        if self.quick { 20_000 } else { 1_000_000 }
    }
}

/// What it was measured on, and with what.
fn machine() -> Result<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu_info = read("/proc/cpuinfo");
    let cpu = cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo");
    let memory =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let gibibytes = memory.map_or(0, |kilobytes: u64| kilobytes >> 20);
    let kernel = read("/proc/sys/kernel/osrelease");
    let commit = output(Command::new("git").args(["describe", "--always", "--dirty"]))?;
    let rustc = output(Command::new("rustc").arg("--version"))?;
    let day = time::OffsetDateTime::now_utc().date();
    Ok(format!(
        "{day}, commit {}, {}. {cores} cores ({}), {gibibytes} GiB, Linux {}. Client and server share them. Every answer to a write follows its fsync.",
        commit.trim(),
        rustc.trim(),
        cpu.map_or("unknown", |(_, model)| model),
        kernel.trim(),
    ))
}
