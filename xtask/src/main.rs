//! `cargo xtask`: the checks and chores of this repository. `cargo xtask help` lists them.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program whose work is to tell what it found")]

mod bars;
mod bench;
mod chart;
mod ci;
mod compose;
mod disks;
mod docker;
mod documents;
mod faults;
mod http;
mod image;
mod judge;
mod kill;
mod load;
mod openapi;
mod process;
mod repository;
mod sim;
mod systemd;
mod tidy;
mod walk;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Checks and chores of this repository")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Everything that must hold before a change is landed; writes nothing but build products.
    Ci(ci::CiArgs),
    /// Formats, and applies what clippy can repair by itself.
    Fix,
    /// Writes the pages of docs/reference/ anew, from the code; a test is red while they differ.
    Reference,
    /// The rules of this repository that no other tool checks.
    Tidy,
    /// Kills a server under load with SIGKILL, again and again, and looks for what it had acknowledged.
    Kill(kill::KillArgs),
    /// Three nodes under load, and what can go wrong: nodes killed, stopped and held up, connections cut, a disk full and one empty.
    Faults(faults::FaultsArgs),
    /// Walks through an acceptance table line by line, over real processes or containers.
    Walk(walk::WalkArgs),
    /// Makes the container image of the program and what it loads, without a registry and a network, and tries it.
    Image(image::ImageArgs),
    /// Compares a running server with its description of itself, by requests made from it.
    Openapi(openapi::OpenApiArgs),
    /// Renders the Helm chart, and runs its pods as containers.
    Chart(chart::ChartArgs),
    /// Runs the systemd unit on three machines, which are containers with Debian's systemd.
    Systemd(systemd::SystemdArgs),
    /// Runs the commands of the documents, in a network of their own.
    Documents(documents::DocumentsArgs),
    /// Measures joins, the return of a node that lost its disk, and the image, each against its bar.
    Bars(bars::BarsArgs),
    /// Says what a recorded history shows: what clients saw, against the log and the rules.
    Judge(judge::JudgeArgs),
    /// Simulated clusters, one for each seed.
    Sim(sim::SimArgs),
    /// Runs the same seeds in two processes and compares.
    Twice,
    /// Plants bugs, and says how many seeds it takes to find each.
    Planted(sim::PlantedArgs),
    /// Measures what the benchmark page shows, and prints it as Markdown.
    Bench(bench::BenchArgs),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().chore {
        Chore::Ci(args) => ci::run(&args),
        Chore::Fix => ci::fix(),
        Chore::Reference => ci::reference(),
        Chore::Tidy => tidy::run(),
        Chore::Kill(args) => kill::run(&args),
        Chore::Faults(args) => faults::run(&args),
        Chore::Walk(args) => walk::run(&args),
        Chore::Image(args) => image::run(&args),
        Chore::Openapi(args) => openapi::run(&args),
        Chore::Chart(args) => chart::run(&args),
        Chore::Systemd(args) => systemd::run(&args),
        Chore::Documents(args) => documents::run(&args),
        Chore::Bars(args) => bars::run(&args),
        Chore::Judge(args) => judge::run(&args),
        Chore::Sim(args) => sim::run(&args),
        Chore::Twice => sim::compare(),
        Chore::Planted(args) => sim::planted(&args),
        Chore::Bench(args) => bench::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
