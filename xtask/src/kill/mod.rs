//! `cargo xtask kill`: a real server, real fsyncs, SIGKILL under load, again and again; at the end everything acknowledged must be there.
//!
//! The moments are drawn from a seed that is printed, but a real machine does not repeat itself: the same seed gives the same plan, not the same run.
//! What happens to a request without an answer is open, and either is accepted. What an answer has said is not.
//!
//! A killed process loses what it held in memory, not what it had written without a sync: the operating system still has that. What a power failure
//! would lose is the subject of the tests on a simulated disk.

mod ledger;
mod load;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base::rng::SplitMix;
use clap::Args;

use crate::http::Client;
use crate::kill::ledger::{Id, Ledger, Shown, text};
use crate::kill::load::{Connection, Shared};
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

/// How long working off what is left may take: leases of dead workers, retries, and work.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(180);

/// Threads that read back.
const READERS: usize = 8;

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
    let (ledger, restarts) = run_rounds(args, seed, &codeq, &folder.within("data"))
        .with_context(|| format!("the plan is that of: {again}"))?;
    let mut found = ledger.0.contradictions();
    found.extend(ledger.0.contradictions_with(&ledger.1, COMMANDS));
    report(&ledger.0, restarts);
    for line in &found {
        println!("VIOLATION {line}");
    }
    ensure!(found.is_empty(), "{} kinds of violation; the plan is that of: {again}", found.len());
    println!("nothing acknowledged is missing, nothing was done twice");
    Ok(())
}

type Judged = (Ledger, BTreeMap<Id, Option<Shown>>);

/// All rounds, and the reading back. Returns what was told, what is there, and how long each restart took.
fn run_rounds(args: &KillArgs, seed: u64, codeq: &Path, data: &Path) -> Result<(Judged, Vec<Duration>)> {
    let shards = args.shards.to_string();
    let mut options = vec!["--shards", &shards];
    options.extend(OPTIONS);
    let mut rng = SplitMix::new(seed);
    let shared = Shared::new(COMMANDS);
    let ledger = Mutex::new(Ledger::default());
    let mut restarts = Vec::new();
    let server = std::thread::scope(|scope| {
        for number in 1..=u64::from(args.connections) {
            let connection = Connection::new(&shared, seed, number);
            let ledger = &ledger;
            scope.spawn(move || {
                let told = connection.run();
                ledger.lock().expect("nothing panics while it holds this lock").merge(told);
            });
        }
        let last = kill_again_and_again(args.rounds, &mut rng, &shared, &mut restarts, &|early| {
            start(codeq, data, &options, early)
        });
        // Also where it failed: the scope ends when its threads have.
        let drained = last.and_then(|server| {
            shared.drain();
            wait_until_drained(server.addr())?;
            Ok(server)
        });
        shared.stop();
        drained
    })?;
    // What was worked off last must survive too.
    server.kill()?;
    let (server, _) = start(codeq, data, &options, None)?;
    let ledger = ledger.into_inner().expect("every thread has ended");
    let ids: Vec<Id> = ledger.tasks().into_keys().collect();
    println!("reading back {} tasks", ids.len());
    let shown = read_back(server.addr(), &ids)?;
    server.kill()?;
    Ok(((ledger, shown), restarts))
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

/// Waits until no queue has a task that is not ended.
fn wait_until_drained(addr: SocketAddr) -> Result<()> {
    let begun = Instant::now();
    let mut client = Client::connect(addr)?;
    let mut left = Vec::new();
    while begun.elapsed() < DRAIN_TIMEOUT {
        left.clear();
        for command in 0..COMMANDS {
            let stats = client.get(&format!("/v1/codeq/admin/queues/kill-{command}"))?;
            ensure!(stats.status == 200, "the statistics of a queue were answered with {stats}");
            let stats = stats.json()?;
            ensure!(stats["dlq"] == 0, "tasks that were never given up are dead letters: {stats}");
            let count = |name: &str| stats[name].as_u64().with_context(|| format!("{stats} has no {name}"));
            if count("ready")? + count("delayed")? + count("inProgress")? > 0 {
                left.push(stats.to_string());
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("tasks are left after {DRAIN_TIMEOUT:?} without a kill: {}", left.join(", "))
}

/// What the server shows of these tasks; nothing of those that it does not know.
fn read_back(addr: SocketAddr, ids: &[Id]) -> Result<BTreeMap<Id, Option<Shown>>> {
    let part = ids.len().div_ceil(READERS).max(1);
    std::thread::scope(|scope| {
        let readers: Vec<_> = ids.chunks(part).map(|ids| scope.spawn(move || read_some(addr, ids))).collect();
        let mut shown = BTreeMap::new();
        for reader in readers {
            shown.extend(reader.join().map_err(|_| anyhow!("a reader panicked"))??);
        }
        Ok(shown)
    })
}

fn read_some(addr: SocketAddr, ids: &[Id]) -> Result<Vec<(Id, Option<Shown>)>> {
    let mut client = Client::connect(addr)?;
    let mut all = Vec::with_capacity(ids.len());
    for id in ids {
        let mut answer = client.get(&format!("/v1/codeq/tasks/{}/result", text(*id)))?;
        if answer.status == 404 {
            // There is no result, or no task: the task itself tells.
            answer = client.get(&format!("/v1/codeq/tasks/{}", text(*id)))?;
        }
        let shown = match answer.status {
            404 => None,
            200 => {
                let body = answer.json()?;
                let task = if body["task"].is_object() { &body["task"] } else { &body };
                let string = |name: &str| task[name].as_str().unwrap_or_default().to_owned();
                Some(Shown {
                    command: string("command"),
                    payload: task["payload"].clone(),
                    status: string("status"),
                    result: body["result"]["result"].clone(),
                })
            }
            _ => bail!("reading {} was answered with {answer}", text(*id)),
        };
        all.push((*id, shown));
    }
    Ok(all)
}

fn report(ledger: &Ledger, mut restarts: Vec<Duration>) {
    restarts.sort_unstable();
    let millis = |place: usize| restarts.get(place).map_or(0, Duration::as_millis);
    println!(
        "{} kills: {} operations acknowledged ({} creations, {} grants, {} results)",
        restarts.len(),
        ledger.acknowledged(),
        ledger.created.len(),
        ledger.grants.len(),
        ledger.completed.len(),
    );
    println!(
        "{} requests without an answer, {} refused without effect; {} creations stayed unknown, {} of them had happened",
        ledger.unanswered,
        ledger.refused,
        ledger.maybe_created.len(),
        ledger.turned_out_created(),
    );
    let tasks = ledger.tasks().len();
    let without = ledger.tasks().keys().filter(|id| !ledger.completed.contains_key(id)).count();
    println!("{tasks} tasks in all; the completion of {without} was not acknowledged, that of the others was");
    println!(
        "restart until ready: p50 {} ms, max {} ms",
        millis(restarts.len() / 2),
        millis(restarts.len().saturating_sub(1))
    );
}
