//! `codeq`: the server and its command line. Each subcommand is a file of its own; this one only leads to them.

mod bench;
mod calls;
mod config;
mod data;
mod debug;
mod dev;
mod dlq;
mod elections;
mod endpoint;
mod events;
mod file_body;
mod filter;
mod flags;
mod logs;
mod members;
mod operate;
mod operation;
mod output;
mod profile;
mod queue;
mod recover;
#[cfg(test)]
mod reference;
mod serve;
mod shell;
mod snapshot;
mod status;
mod stream;
mod task;
mod tls_init;
mod token;
mod worker;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::flags::SettingFlags;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A durable, multi-tenant task queue over HTTP.
#[derive(Parser)]
#[command(
    name = "codeq",
    version,
    after_help = "To try it:\n  codeq dev\n\nTo run it:\n  codeq serve --data-dir /var/lib/codeq\n\nTo ask a server (the flags of a command that say which may stand before it):\n  codeq --endpoints node-a:8080,node-b:8080 status"
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
        after_help = "Example:\n  codeq serve --config codeq.yaml --data-dir /var/lib/codeq --http-addr :8080\n\nExit status:\n  0 stopped as asked; 1 could not start, or failed; 2 settings are refused; 3 not admitted to a cluster in time; 7 no member of its cluster any more; 8 the data is damaged; 9 the disk failed"
    )]
    Serve(SettingFlags),
    /// Runs a server, or a cluster, to try things out: this machine only, no token.
    ///
    /// It prints three lines that create, claim and complete a task. What it keeps is there again at the next start, also with more nodes. It
    /// reads no variables and no file.
    #[command(after_help = "Examples:\n  codeq dev --http-addr 127.0.0.1:9090\n  codeq dev --nodes 3")]
    Dev(dev::DevArgs),
    /// Creates tasks, looks at them, and works on them by hand.
    #[command(subcommand, after_help = "Example:\n  codeq task create greet '{\"name\":\"Ada\"}'")]
    Task(task::TaskCommand),
    /// Looks at queues, pauses and purges them.
    #[command(subcommand, after_help = "Example:\n  codeq queue stats greet")]
    Queue(queue::QueueCommand),
    /// Looks at dead letters, brings them back or deletes them.
    #[command(subcommand, after_help = "Example:\n  codeq dlq redrive --queue greet --dry-run")]
    Dlq(dlq::DlqCommand),
    /// Looks at work on many tasks that goes on in the background, stops it and lets it go on.
    #[command(subcommand, after_help = "Example:\n  codeq operation list")]
    Operation(operation::OperationCommand),
    /// Prints what happens to tasks and queues, as it happens, through failures of servers.
    #[command(
        after_help = "Examples:\n  codeq events --queue mail --type task.dead\n  codeq events -o json | jq -r .data.taskId"
    )]
    Events(events::EventsArgs),
    /// Works on tasks with any program.
    #[command(subcommand, after_help = "Example:\n  codeq worker run --queue greet -- ./greet")]
    Worker(worker::WorkerCommand),
    /// Prints the members of a cluster, and whether it works.
    #[command(after_help = "Example:\n  codeq members --endpoints http://127.0.0.1:8080,http://127.0.0.1:8081")]
    Members(members::MembersArgs),
    /// Makes a node that belongs to no cluster known to others, and them to it.
    #[command(after_help = "Example:\n  codeq join node-b node-c:7000")]
    Join(members::JoinArgs),
    /// Shows who leads, or has another node lead.
    #[command(
        after_help = "Examples:\n  codeq leader\n  codeq leader transfer node-c\n  codeq leader step-down --hold 5m"
    )]
    Leader(operate::LeaderArgs),
    /// Adds a member to a cluster or removes one, takes a vote or gives it back. Exit status 4 if the cluster would lose its majority.
    #[command(subcommand, after_help = "Example:\n  codeq member remove node-c")]
    Member(operate::MemberCommand),
    /// Takes the server that is asked out of its cluster for good; then it ends. Exit status 4 if the cluster would lose its majority.
    #[command(after_help = "Example:\n  codeq leave --endpoints http://127.0.0.1:8082")]
    Leave(operate::LeaveArgs),
    /// Says whether something may be done.
    #[command(subcommand, after_help = "Example:\n  codeq check quorum --node node-b")]
    Check(operate::CheckCommand),
    /// Waits until the cluster is as it should be. Exit status 3 or 6, with the reason, if it is not in time.
    #[command(after_help = "Example:\n  codeq wait --leader --voters 3 --for 2m")]
    Wait(operate::WaitArgs),
    /// Prints the server that commands ask, and why that one.
    #[command(after_help = "Example:\n  codeq which-endpoint --endpoints node-a:8080,node-b:8080")]
    WhichEndpoint(operate::WhichArgs),
    /// Prints how the cluster is, in a sentence, and then the numbers of the server that is asked.
    #[command(after_help = "Example:\n  codeq status -o wide")]
    Status(status::StatusArgs),
    /// Asks a server how it is. Exit status 6 if it is not well.
    #[command(after_help = "Example:\n  codeq health --ready")]
    Health(members::HealthArgs),
    /// Saves all tasks to a file, and restores them.
    #[command(subcommand, after_help = "Example:\n  codeq snapshot save backup.tar")]
    Snapshot(snapshot::SnapshotCommand),
    /// Brings a cluster back that has lost a majority of its nodes for good.
    #[command(subcommand, after_help = "Example:\n  codeq recover plan /var/lib/codeq")]
    Recover(recover::RecoverCommand),
    /// Makes join tokens, with which nodes become members, lists and revokes them.
    #[command(subcommand, after_help = "Example:\n  codeq token create --once --ttl 30m")]
    Token(token::TokenCommand),
    /// Makes certificates for the connections between members.
    #[command(subcommand, after_help = "Example:\n  codeq tls init --nodes node-a,node-b,node-c --out certificates")]
    Tls(tls_init::TlsCommand),
    /// Looks at what a node keeps.
    #[command(subcommand, after_help = "Example:\n  codeq debug db check")]
    Debug(debug::DebugCommand),
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
    /// Prints a script that makes a shell complete these commands.
    #[command(after_help = "Example:\n  codeq completion bash > /etc/bash_completion.d/codeq")]
    Completion(shell::CompletionArgs),
    /// Writes manual pages.
    #[command(after_help = "Example:\n  codeq man --out /usr/local/share/man/man1")]
    Man(shell::ManArgs),
    /// Prints the version, or those of all members of a cluster.
    #[command(after_help = "Example:\n  codeq version --all")]
    Version(members::VersionArgs),
}

fn main() -> ExitCode {
    match Cli::parse_from(endpoint::behind_the_command(std::env::args_os())).command {
        Command::Serve(flags) => serve::serve(flags),
        Command::Dev(args) => dev::dev(&args),
        Command::Task(command) => task::run(command),
        Command::Queue(command) => queue::run(&command),
        Command::Dlq(command) => dlq::run(&command),
        Command::Operation(command) => operation::run(&command),
        Command::Events(args) => events::run(&args),
        Command::Worker(command) => worker::run(command),
        Command::Completion(args) => shell::completion(&args, Cli::command()),
        Command::Man(args) => shell::man(&args, Cli::command()),
        Command::Members(args) => members::members(&args),
        Command::Join(args) => members::join(&args),
        Command::Leader(args) => operate::leader(&args),
        Command::Member(command) => operate::member(&command),
        Command::Leave(args) => operate::leave(&args),
        Command::Check(command) => operate::check(&command),
        Command::Wait(args) => operate::wait(&args),
        Command::WhichEndpoint(args) => operate::which_endpoint(&args),
        Command::Status(args) => status::status(&args),
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
        Command::Snapshot(command) => snapshot::run(command),
        Command::Recover(command) => recover::run(&command),
        Command::Token(command) => token::run(&command),
        Command::Tls(command) => tls_init::run(&command),
        Command::Debug(command) => debug::run(command),
        Command::Config(command) => config::run(command),
        Command::Version(args) => members::version(&args),
    }
}
