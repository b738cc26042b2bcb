//! `cargo xtask faults`: three real nodes, real fsyncs, a load on all of them, and what can go wrong: processes killed, stopped and held up,
//! connections cut, a full disk, an empty one.
//!
//! What each scenario asserts is told in `docs/internals/faults.md`. Figures are printed; the only moments that are asserted are deadlines far
//! beyond them, so that a slow machine fails nothing. The seed that is printed gives the same plan, not the same run.

pub(crate) mod cluster;
mod disk;
mod elections;
mod figures;
mod links;
mod members;
mod netsplits;
mod newcomer;
mod pauses;
mod samples;
mod stories;
mod takeover;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base::rng::SplitMix;
use clap::{Args, ValueEnum};

use crate::faults::cluster::Cluster;
use crate::load::verdict::{judge, wait_until_drained};
use crate::load::{self, Shared};
use crate::process::build_codeq;

#[derive(Args)]
pub(crate) struct FaultsArgs {
    /// Only this scenario; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Scenario>,
    /// Rounds of each scenario; absent: as many as its figures need.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: Option<u32>,
    /// The program to run. Absent: it is built as it is shipped.
    #[arg(long)]
    program: Option<PathBuf>,
    /// One round or two of each, and few tasks: whether it works.
    #[arg(long)]
    quick: bool,
    /// Of the moments and of the load. Absent: another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Connections that create tasks and work on them, spread over the nodes.
    #[arg(long, default_value_t = CONNECTIONS, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
}

impl FaultsArgs {
    /// All scenarios, briefly, for every change.
    pub(crate) fn quick() -> FaultsArgs {
        FaultsArgs { only: Vec::new(), rounds: None, program: None, quick: true, seed: None, connections: CONNECTIONS }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Scenario {
    /// The leader is killed with SIGKILL and started again.
    KillLeader,
    /// The leader is stopped with SIGTERM and started again.
    StopLeader,
    /// Each node is stopped with SIGTERM and started again, one after the other, the leader last.
    Rolling,
    /// Nodes are held up with SIGSTOP, longer than leases last, and go on.
    Pause,
    /// Connections between nodes are cut both ways and one way, slowed down, ended.
    Links,
    /// The leader's disk is full.
    DiskFull,
    /// The leader is killed while tasks wait, are delayed and are leased, and no worker lives.
    TakeOver,
    /// A node loses its disk and comes back while there are many tasks.
    Snapshot,
    /// Leaders are killed, held up and asked to hand over, with one group and with four: what the nodes tell of it, and who says it leads.
    Elections,
    /// Each node in turn loses its disk and comes back.
    Wipe,
    /// Members are removed, demoted, promoted, made to lead, at random and with kills.
    Members,
    /// Leadership is handed over by hand, again and again.
    Transfers,
}

/// What scenarios need to know.
struct Run {
    codeq: PathBuf,
    seed: u64,
    connections: u16,
    rounds: Option<u32>,
    quick: bool,
}

/// Connections of the load, if nobody says how many.
const CONNECTIONS: u16 = 12;

/// Queues that the tasks of the load are spread over.
const COMMANDS: u64 = 6;

/// Runs the scenarios asked for.
///
/// # Errors
/// Something that a scenario asserts does not hold.
pub(crate) fn run(args: &FaultsArgs) -> Result<()> {
    let codeq = args.program.clone().map_or_else(build_codeq, Ok)?;
    let seed = args.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |since| base::rng::mix(since.as_nanos() as u64) >> 32)
    });
    let run = Run { codeq, seed, connections: args.connections, rounds: args.rounds, quick: args.quick };
    println!("three nodes, {} connections, seed {seed}", args.connections);
    let all = Scenario::value_variants();
    let chosen = all.iter().filter(|scenario| args.only.is_empty() || args.only.contains(scenario));
    chosen.copied().try_for_each(|scenario| one(scenario, &run).map(drop))
}

/// Runs one scenario, so many rounds of it, always by the same plan, and returns the figure that it has for each round: of `KillLeader` until
/// the next acknowledged write, of `StopLeader` the longest gap between acknowledged writes, of `Transfers` how long each took, of `Elections`
/// how long it took with one group from the election until every node that ran had the whole of its timeline. The others have none.
///
/// # Errors
/// Something that the scenario asserts does not hold.
pub(crate) fn measure(codeq: &Path, scenario: Scenario, rounds: u32, size: Size) -> Result<Vec<Duration>> {
    let quick = size == Size::Small;
    one(scenario, &Run { codeq: codeq.to_owned(), seed: 1, connections: CONNECTIONS, rounds: Some(rounds), quick })
}

/// How much of what is not counted in rounds a scenario has: tasks, and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Small,
    Full,
}

fn one(scenario: Scenario, run: &Run) -> Result<Vec<Duration>> {
    let name = scenario.name();
    println!("-- {name}");
    let begun = Instant::now();
    let nothing = |()| Vec::new();
    let done = match scenario {
        Scenario::KillLeader => elections::kill_leader(run),
        Scenario::StopLeader => elections::stop_leader(run),
        Scenario::Rolling => elections::rolling(run).map(nothing),
        Scenario::Pause => pauses::pause(run).map(nothing),
        Scenario::Links => netsplits::links(run).map(nothing),
        Scenario::DiskFull => disk::disk_full(run).map(nothing),
        Scenario::TakeOver => takeover::take_over(run).map(nothing),
        Scenario::Snapshot => newcomer::snapshot(run).map(nothing),
        Scenario::Elections => stories::elections(run),
        Scenario::Wipe => members::wipe(run).map(nothing),
        Scenario::Members => members::members_at_random(run).map(nothing),
        Scenario::Transfers => members::transfers(run),
    };
    let figures = done.with_context(|| {
        let logs = Cluster::logs(&name);
        format!("{name}; the plan is that of --seed {}, the nodes' logs are in {}", run.seed, logs.display())
    })?;
    println!("-- {name}: {:.1} s", begun.elapsed().as_secs_f64());
    Ok(figures)
}

impl Scenario {
    /// As `--only` knows it.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Run {
    fn rounds(&self, quick: u32, long: u32) -> u32 {
        self.rounds.unwrap_or(if self.quick { quick } else { long })
    }

    fn rng(&self) -> SplitMix {
        SplitMix::new(self.seed)
    }

    fn codeq(&self) -> &Path {
        &self.codeq
    }

    /// Starts the nodes that do not run, puts load on them while `faults` has its way, lets the load end, kills all nodes, starts them again,
    /// and compares what they have with what they had acknowledged.
    ///
    /// # Errors
    /// `faults` fails, or something acknowledged is missing, or was done twice, or an answer was outside the rule.
    fn under_load<T>(
        &self,
        cluster: &mut Cluster,
        faults: impl FnOnce(&mut Cluster, &Shared) -> Result<T>,
    ) -> Result<T> {
        cluster.start_all()?;
        let addrs = cluster.addrs();
        let shared = Shared::new(COMMANDS, &addrs);
        let (result, ledger) = load::run(&shared, self.seed, self.connections, || {
            // So that there is something to lose.
            std::thread::sleep(WARM_UP);
            let result = faults(cluster, &shared)?;
            cluster.start_all()?;
            shared.drain();
            wait_until_drained(addrs[0], COMMANDS)?;
            Ok(result)
        })?;
        (0..addrs.len()).try_for_each(|place| cluster.kill(place))?;
        cluster.start_all()?;
        judge(&ledger, &addrs, COMMANDS)?;
        Ok(result)
    }
}

/// Load before the first fault.
const WARM_UP: Duration = Duration::from_millis(500);

/// Load between two faults: at least, and at most so many milliseconds more.
const CALM_MS: (u64, u64) = (100, 700);

/// Lets the load go on undisturbed.
fn calm(rng: &mut SplitMix) {
    std::thread::sleep(Duration::from_millis(CALM_MS.0 + rng.below(CALM_MS.1)));
}
