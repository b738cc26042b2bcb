//! `codeq bench`: a load generator that also checks what it was told.
//!
//! Connections are spread over threads, each with a runtime of its own. In a closed loop a connection sends its next request when the last one
//! is answered; with `--rate` requests are due at fixed times, and their latency counts from when they were due, so that a stall shows in
//! full. At the end every task whose creation was acknowledged is looked for, and no task may have been completed twice.

mod connection;
mod load;
mod report;
mod sdk;
mod verify;

use std::time::Duration;

use clap::{Args, ValueEnum};

/// Puts load on a server, and checks its answers.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    /// The server; or several nodes of a cluster, with commas between them: the connections are dealt out to them in turns.
    #[arg(
        long,
        default_value = "http://127.0.0.1:8080",
        env = "CODEQ_BENCH_URL",
        hide_env = true,
        value_delimiter = ','
    )]
    pub(crate) url: Vec<String>,
    /// What to do.
    #[arg(long, value_enum, default_value_t = Workload::Cycle)]
    pub(crate) workload: Workload,
    /// Connections at one time.
    #[arg(short, long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) connections: u32,
    /// How long, as in 500ms, 10s, 5m.
    #[arg(short, long, default_value = "10s", value_parser = crate::flags::duration)]
    pub(crate) duration: Duration,
    /// Bytes of a payload.
    #[arg(short, long, default_value_t = 16)]
    pub(crate) payload: usize,
    /// Queues to spread the tasks over.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) commands: u32,
    /// Open loop: so many requests per second in all, whatever the answers. Absent: closed loop.
    #[arg(long)]
    pub(crate) rate: Option<u64>,
    /// Tasks to create before the measurement begins.
    #[arg(long, default_value_t = 0)]
    pub(crate) prefill: u64,
    /// Threads of the load generator.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) threads: u32,
    /// Token of producer and worker, for a server that asks for one.
    #[arg(long, env = "CODEQ_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// A worker's token, where it differs from the producer's.
    #[arg(long, env = "CODEQ_WORKER_TOKEN", hide_env_values = true)]
    pub(crate) worker_token: Option<String>,
    /// Skips the check at the end: for a server that answers from memory what it never did.
    #[arg(long)]
    pub(crate) no_verify: bool,
    /// The figures as JSON on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What each connection does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Create a task.
    Create,
    /// Claim a task and complete it.
    Work,
    /// Create a task, claim one and complete it.
    Cycle,
    /// Read a task by its id, the same one again and again.
    Read,
    /// Wait for a task that another connection creates; measures from its commit to the worker's answer.
    LongPoll,
    /// The cycle by the SDK: its producer, and its worker with as many slots as there are connections.
    Sdk,
}

/// Runs the load and prints the figures.
pub(crate) fn run(args: &BenchArgs) -> Result<(), anyhow::Error> {
    let report = load::run(args)?;
    if args.json {
        crate::output::data(&report.to_json());
    } else {
        crate::output::data(&report.to_string());
    }
    if report.is_good() { Ok(()) } else { Err(anyhow::anyhow!("{}", report.complaint())) }
}
