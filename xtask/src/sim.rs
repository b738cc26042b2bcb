//! `cargo xtask sim`: simulated clusters, one for each seed; and `cargo xtask planted`: how many seeds it takes to find bugs on purpose.
//!
//! Both build the crate `sim` as they need it and run it; what it prints is told in docs/internals/simulation.md.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::repository::{cargo, root};

#[derive(Args)]
pub(crate) struct SimArgs {
    /// What `sim` is asked for; `cargo xtask sim -- --help` lists it.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl SimArgs {
    /// What every landed change is run through, beside some seeds twice in two processes: what once failed, and five minutes of seeds, on all
    /// processors, in which everything must be reached.
    pub(crate) fn ci() -> [SimArgs; 2] {
        [&["--regress"][..], &["--seed", "1000", "--minutes", "5", "--go-on", "--covered"]]
            .map(|arguments| SimArgs { arguments: arguments.iter().map(ToString::to_string).collect() })
    }
}

/// Runs so many seeds with these classes of faults and no others; more options of `sim` may follow.
///
/// # Errors
/// It cannot be built, or a seed is red.
pub(crate) fn focused(focus: &str, seeds: u32, more: &[&str]) -> Result<()> {
    let seeds = seeds.to_string();
    let fixed = ["--seed", "1000", "--seeds", &seeds, "--focus", focus];
    run(&SimArgs { arguments: fixed.iter().chain(more).map(ToString::to_string).collect() })
}

/// Runs the simulator.
///
/// # Errors
/// It cannot be built, or a seed is red.
pub(crate) fn run(args: &SimArgs) -> Result<()> {
    build(&[], "target")?;
    let status = Command::new(root().join("target/sim/sim")).args(&args.arguments).current_dir(root()).status()?;
    ensure!(status.success(), "the simulator found something");
    Ok(())
}

/// Seeds that are run twice, each time in a process of its own.
const TWICE: &str = "20";

/// The same seeds in two processes must give the same digests.
///
/// # Errors
/// They differ, or it cannot be built.
pub(crate) fn compare() -> Result<()> {
    build(&[], "target")?;
    let digests = |before: &str| -> Result<String> {
        let mut command = Command::new(root().join("target/sim/sim"));
        command.args(["--seed", "1", "--seeds", TWICE, "--digests", "--unjudged", "--go-on", "--threads", before]);
        let output = command.env("RUST_MIN_STACK", format!("{}", (2 << 20) + 4096 * before.len())).output()?;
        let mut lines: Vec<String> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter(|line| line.split(' ').count() == 2 && !line.starts_with(' '))
            .map(String::from)
            .collect();
        lines.sort_unstable();
        Ok(lines.join("\n"))
    };
    let (one, other) = (digests("1")?, digests("2")?);
    ensure!(!one.is_empty() && one == other, "two processes differ:\n{one}\n\n{other}");
    println!("{TWICE} seeds gave the same digests in two processes");
    Ok(())
}

fn build(flags: &[&str], folder: &str) -> Result<()> {
    let mut command = Command::new(cargo());
    command.args(["build", "--quiet", "--profile", "sim", "--package", "sim", "--target-dir"]).arg(root().join(folder));
    if !flags.is_empty() {
        command.env("RUSTFLAGS", flags.join(" "));
    }
    let status = command.current_dir(root()).status().context("cannot run cargo")?;
    ensure!(status.success(), "the simulator cannot be built");
    Ok(())
}

#[derive(Args)]
pub(crate) struct PlantedArgs {
    /// Only these bugs, by number.
    #[arg(long, value_delimiter = ',')]
    only: Vec<u64>,
    /// Seeds after which a bug counts as not found.
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
}

/// The first seed that looks for them.
const PLANTED_FROM: u64 = 100;

/// Bugs on purpose, by number, with the rule that each breaks.
const BUGS: &[(u64, &str)] = &[
    (1, "log reported durable without the sync"),
    (2, "file synced, its name not"),
    (3, "sync error ignored"),
    (4, "goes on after a failed write"),
    (5, "vote sent before it is durable"),
    (6, "older term's entry committed by counting"),
    (7, "one acknowledgement too few is a majority"),
    (8, "new members take effect late on some nodes"),
    (9, "checkpoint claims one index too many"),
    (10, "old entries keep applying while a snapshot installs"),
    (11, "what cannot be read is taken for empty"),
    (12, "every checksum error is a torn tail"),
    (13, "a randomly seeded map has its say in apply"),
    (14, "linearizable reads without asking the leader"),
    (15, "proposals of who does not lead reach the log"),
    (16, "a new leader gives leases their full length again"),
    (17, "a new leader's lease clock begins with its wall clock"),
    (18, "expired token accepted while nobody else holds the task"),
    (19, "deadline moves, due index does not"),
    (20, "due scan looks at one page in id order"),
    (21, "expiry gives the attempt back"),
    (22, "key freed by completion"),
    (23, "nack or release with a closed token takes effect"),
    (24, "task ids from a counter in memory"),
    (26, "leases run on the wall clock"),
    (27, "a step of an operation on many tasks is taken twice"),
    (28, "a dead task's record replaced by one made from an older"),
];

/// Plants each bug in turn and prints after how many seeds the simulator finds it.
///
/// # Errors
/// One is not found, or seeds are red without any.
pub(crate) fn planted(args: &PlantedArgs) -> Result<()> {
    build(&["--cfg", "planted"], "target/planted")?;
    let program = root().join("target/planted/sim/sim");
    let mut most = 0;
    println!("| bug | rule broken | seeds | found by |\n|---|---|---|---|");
    let mut survivors = Vec::new();
    for (bug, rule) in BUGS.iter().filter(|(bug, _)| args.only.is_empty() || args.only.contains(bug)) {
        match seeds_to_find(&program, *bug, args.seeds)? {
            Some((seed, id)) => {
                let seeds = seed - PLANTED_FROM + 1;
                most = most.max(seeds);
                println!("| M{bug:02} | {rule} | {seeds} | {id} |");
            }
            None => {
                println!("| M{bug:02} | {rule} | – | not found in {} |", args.seeds);
                survivors.push(*bug);
            }
        }
    }
    if !survivors.is_empty() {
        bail!("not found: {survivors:?}");
    }
    let green =
        Command::new(&program).args(["--seed", &PLANTED_FROM.to_string(), "--seeds", &most.to_string()]).output()?;
    ensure!(green.status.success(), "{most} seeds without a bug: {}", String::from_utf8_lossy(&green.stdout));
    println!("{most} seeds without a bug are green");
    Ok(())
}

/// The first red seed among so many, and what it violates.
fn seeds_to_find(program: &Path, bug: u64, seeds: u64) -> Result<Option<(u64, String)>> {
    let output = Command::new(program)
        .args(["--seed", &PLANTED_FROM.to_string(), "--seeds", &seeds.to_string(), "--plant", &bug.to_string()])
        .output()
        .context("cannot run the simulator")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.lines().find_map(|line| {
        let (seed, rest) = line.strip_prefix("seed ")?.split_once(": ")?;
        Some((seed.parse().ok()?, rest.split(' ').next()?.to_owned()))
    });
    Ok(found)
}
