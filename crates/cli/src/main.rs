//! `codeq`: the server and its command line. Each subcommand is a file of its own; this one only leads to them.

mod bench;
mod config;
mod dev;
mod elections;
mod endpoint;
mod flags;
mod logs;
mod members;
mod output;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::flags::SettingFlags;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A durable, multi-tenant task queue over HTTP.
#[derive(Parser)]
#[command(
    name = "codeq",
    version,
    after_help = "To try it:\n  codeq dev\n\nTo run it:\n  codeq serve --data-dir /var/lib/codeq"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a server until it is asked to stop (Ctrl-C or SIGTERM).
    ///
    /// A setting comes from its flag, else from its variable of the environment, else from the file named by --config, else it has its default.
    /// Without credentials the server answers this machine only. `codeq config template` explains every setting.
    #[command(
        after_help = "Example:\n  codeq serve --config codeq.yaml --data-dir /var/lib/codeq --http-addr :8080\n\nExit status:\n  0 stopped as asked; 1 could not start, or failed; 2 settings are refused; 3 not admitted to a cluster in time; 8 the data is damaged; 9 the disk failed"
    )]
    Serve(SettingFlags),
    /// Runs a server, or a cluster, to try things out: this machine only, no token.
    ///
    /// It prints three lines that create, claim and complete a task. What it keeps is there again at the next start, also with more nodes. It
    /// reads no variables and no file.
    #[command(after_help = "Examples:\n  codeq dev --http-addr 127.0.0.1:9090\n  codeq dev --nodes 3")]
    Dev(dev::DevArgs),
    /// Prints the members of a cluster, and whether it works.
    #[command(after_help = "Example:\n  codeq members --endpoints http://127.0.0.1:8080,http://127.0.0.1:8081")]
    Members(members::MembersArgs),
    /// Makes a node that belongs to no cluster known to others, and them to it.
    #[command(after_help = "Example:\n  codeq join node-b node-c:7000")]
    Join(members::JoinArgs),
    /// Asks a server how it is. Exit status 6 if it is not well.
    #[command(after_help = "Example:\n  codeq health --ready")]
    Health(members::HealthArgs),
    /// Prints what has happened in a cluster: events, elections, and drawings of them.
    #[command(subcommand, after_help = "Example:\n  codeq cluster timeline --last 1")]
    Cluster(elections::ClusterCommand),
    /// Prints what happens in a cluster from now on, finer than the nodes' own logs if asked for.
    #[command(after_help = "Example:\n  codeq monitor --level debug")]
    Monitor(elections::MonitorArgs),
    /// Puts load on a running server, and checks its answers.
    #[command(after_help = "Example:\n  codeq bench --duration 10s --connections 64 --workload cycle")]
    Bench(bench::BenchArgs),
    /// Shows, checks or explains settings, without starting anything.
    #[command(subcommand, after_help = "Example:\n  codeq config template > codeq.yaml")]
    Config(config::ConfigCommand),
    /// Prints the version.
    #[command(after_help = "Example:\n  codeq version")]
    Version,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(flags) => serve::serve(flags),
        Command::Dev(args) => dev::dev(&args),
        Command::Members(args) => members::members(&args),
        Command::Join(args) => members::join(&args),
        Command::Health(args) => members::health(&args),
        Command::Cluster(command) => elections::cluster(&command),
        Command::Monitor(args) => elections::monitor(&args),
        Command::Bench(args) => match bench::run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                output::note(&format!("error: {error:#}"));
                ExitCode::FAILURE
            }
        },
        Command::Config(command) => config::run(command),
        Command::Version => {
            output::data(concat!("codeq ", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
    }
}
