//! `cargo xtask kill`: a real server, real fsyncs, SIGKILL under load, again and again; at the end everything acknowledged must be there.
//!
//! The moments are drawn from a seed that is printed, but a real machine does not repeat itself: the same seed gives the same plan, not the same run.
//! What happens to a request without an answer is open, and either is accepted. What an answer has said is not.
//!
//! A killed process loses what it held in memory, not what it had written without a sync: the operating system still has that. What a power failure
//! would lose is the subject of the tests on a simulated disk.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base::rng::SplitMix;
use clap::Args;

use crate::load::verdict::{judge, wait_until_drained};
use crate::load::{self, Shared};
use crate::process::{Folder, Server, build_codeq};

#[derive(Args)]
pub(crate) struct KillArgs {
    /// How often the server is killed.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// Of the moments and of the load. Absent: another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Connections that create tasks and work on them.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    /// Shards of the server.
    #[arg(long, default_value_t = 2)]
    shards: u8,
}

impl KillArgs {
    /// A few rounds, for every change.
    pub(crate) fn few() -> KillArgs {
        KillArgs { rounds: 5, seed: None, connections: 32, shards: 2 }
    }
}

/// Queues that the tasks are spread over.
const COMMANDS: u64 = 6;

/// Milliseconds from serving to the kill: at least, and at most so many more.
const LIFE_MS: (u64, u64) = (50, 1500);

/// One start in so many is killed within its first milliseconds, while it reads its disk.
const KILLED_AT_START_ONE_IN: u64 = 4;
const START_LIFE_MS: u64 = 120;

/// Small segments and frequent checkpoints, so that kills hit those too; short retries, so that the end comes soon.
const OPTIONS: &[&str] = &[
    "--storage-segment-bytes",
    "4MiB",
    "--storage-checkpoint-interval",
    "500ms",
    "--queue-backoff-policy",
    "fixed",
    "--queue-backoff-base",
    "500ms",
];

/// Kills a server and looks for what it had acknowledged.
///
/// # Errors
/// Something acknowledged is missing, or was done twice; or the server does not start.
pub(crate) fn run(args: &KillArgs) -> Result<()> {
    let codeq = build_codeq()?;
    let seed = args.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |since| base::rng::mix(since.as_nanos() as u64) >> 32)
    });
    let again = format!("cargo xtask kill --rounds {} --seed {seed}", args.rounds);
    println!("{} rounds, {} connections, {} shards, seed {seed}", args.rounds, args.connections, args.shards);
    let folder = Folder::new("kill")?;
    run_rounds(args, seed, &codeq, &folder.within("data")).with_context(|| format!("the plan is that of: {again}"))
}

/// All rounds, the reading back, and the verdict.
fn run_rounds(args: &KillArgs, seed: u64, codeq: &Path, data: &Path) -> Result<()> {
    let shards = args.shards.to_string();
    let mut options = vec!["--shards", &shards];
    options.extend(OPTIONS);
    let mut rng = SplitMix::new(seed);
    let shared = Shared::new(COMMANDS, &[]);
    let mut restarts = Vec::new();
    let (server, ledger) = load::run(&shared, seed, args.connections, || {
        let start = |early| start(codeq, data, &options, early);
        let server = kill_again_and_again(args.rounds, &mut rng, &shared, &mut restarts, &start)?;
        shared.drain();
        wait_until_drained(server.addr(), COMMANDS)?;
        Ok(server)
    })?;
    // What was worked off last must survive too.
    server.kill()?;
    let (server, _) = start(codeq, data, &options, None)?;
    restarts.sort_unstable();
    let millis = |place: usize| restarts.get(place).map_or(0, Duration::as_millis);
    println!(
        "{} kills; restart until ready: p50 {} ms, max {} ms",
        restarts.len(),
        millis(restarts.len() / 2),
        millis(restarts.len().saturating_sub(1))
    );
    judge(&ledger, &[server.addr()], COMMANDS)?;
    server.kill()
}

/// Starts the server; with `early`, kills it so long after the start and starts it again. Returns how long the last start took.
fn start(codeq: &Path, data: &Path, options: &[&str], early: Option<Duration>) -> Result<(Server, Duration)> {
    if let Some(life) = early {
        let starting = Server::spawn(codeq, data, options)?;
        std::thread::sleep(life);
        starting.kill()?;
    }
    let begun = Instant::now();
    let server = Server::start(codeq, data, options)?;
    Ok((server, begun.elapsed()))
}

type Start<'a> = &'a dyn Fn(Option<Duration>) -> Result<(Server, Duration)>;

fn kill_again_and_again(
    rounds: u32,
    rng: &mut SplitMix,
    shared: &Shared,
    restarts: &mut Vec<Duration>,
    start: Start<'_>,
) -> Result<Server> {
    let (mut server, _) = start(None)?;
    for round in 1..=rounds {
        shared.serves_at(server.addr());
        let life = Duration::from_millis(LIFE_MS.0 + rng.below(LIFE_MS.1));
        std::thread::sleep(life);
        server.kill().with_context(|| format!("round {round}"))?;
        let early = rng.one_in(KILLED_AT_START_ONE_IN).then(|| Duration::from_millis(rng.below(START_LIFE_MS)));
        let took;
        (server, took) = start(early).with_context(|| format!("round {round}"))?;
        restarts.push(took);
        let twice =
            early.map_or(String::new(), |life| format!(", killed again {} ms into its start", life.as_millis()));
        println!(
            "round {round}: killed after {} ms{twice}, serves again after {} ms",
            life.as_millis(),
            took.as_millis()
        );
    }
    shared.serves_at(server.addr());
    Ok(server)
}
