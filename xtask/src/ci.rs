//! `cargo xtask ci`: everything that must hold before a change is landed, step by step, with the time that each one takes.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::documents::{self, DocumentsArgs};
use crate::faults::{self, FaultsArgs};
use crate::kill::{self, KillArgs};
use crate::openapi::{self, OpenApiArgs};
use crate::process::{Folder, Server, build_codeq};
use crate::repository::{cargo, root};
use crate::sim::{self, SimArgs};
use crate::tidy;
use crate::walk::{self, WalkArgs};

#[derive(Args)]
pub(crate) struct CiArgs {
    /// Leaves out the tests, which have just been run.
    #[arg(long)]
    after_tests: bool,
}

/// A step, in the order of the table.
struct Step {
    name: &'static str,
    run: fn() -> Result<()>,
}

const STEPS: &[Step] = &[
    Step { name: TESTS, run: || run_cargo(&["test", "--workspace", "--locked"]) },
    Step { name: "format", run: || run_cargo(&["fmt", "--all", "--check"]) },
    Step {
        name: "clippy",
        run: || run_cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]),
    },
    Step { name: "tidy", run: tidy::run },
    Step { name: "advisories", run: advisories },
    Step { name: "bench smoke", run: bench_smoke },
    Step { name: "openapi", run: || openapi::run(&OpenApiArgs::few()) },
    Step { name: "simulator", run: simulator },
    Step { name: "kill -9", run: || kill::run(&KillArgs::few()) },
    Step { name: "faults", run: || faults::run(&FaultsArgs::quick()) },
    Step { name: "documents", run: || documents::run(&DocumentsArgs::all()) },
    Step { name: "walks", run: || walk::run(&WalkArgs::ci()) },
];

const TESTS: &str = "tests";

/// Seconds of load, and connections, of the smoke test.
const SMOKE: (&str, &str) = ("10s", "32");

/// Runs every step; stops at the first that fails.
///
/// # Errors
/// A step fails.
pub(crate) fn run(args: &CiArgs) -> Result<()> {
    let begun = Instant::now();
    for step in STEPS.iter().filter(|step| !(args.after_tests && step.name == TESTS)) {
        println!("== {}", step.name);
        let step_begun = Instant::now();
        (step.run)().with_context(|| format!("step `{}`", step.name))?;
        println!("== {}: {:.1} s", step.name, step_begun.elapsed().as_secs_f64());
    }
    println!("== all steps: {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// Formats, and applies what clippy can repair by itself.
///
/// # Errors
/// Cargo fails.
pub(crate) fn fix() -> Result<()> {
    run_cargo(&["clippy", "--fix", "--workspace", "--all-targets", "--allow-dirty", "--allow-staged"])?;
    run_cargo(&["fmt", "--all"])
}

/// Writes the pages of the reference anew: by the tests that compare them.
///
/// # Errors
/// Cargo fails.
pub(crate) fn reference() -> Result<()> {
    let mut command = Command::new(cargo());
    command.args(["test", "--quiet", "--locked", "-p", "server", "-p", "cli", "--lib", "--bins", "reference::"]);
    let status = command.env("UPDATE_GOLDENFILES", "1").current_dir(root()).status().context("cannot run cargo")?;
    ensure!(status.success(), "the pages are not written");
    Ok(())
}

fn run_cargo(arguments: &[&str]) -> Result<()> {
    let status = Command::new(cargo()).args(arguments).current_dir(root()).status().context("cannot run cargo")?;
    ensure!(status.success(), "cargo {} failed", arguments.join(" "));
    Ok(())
}

/// The advisories, where they can be had. Licences, sources and bans are tidy's, which needs nothing from outside.
fn advisories() -> Result<()> {
    let installed = Command::new("cargo-deny").arg("--version").output().is_ok_and(|output| output.status.success());
    if !installed {
        println!("skipped: cargo-deny is not installed (`cargo install --locked cargo-deny`)");
        return Ok(());
    }
    let fetched = Command::new("cargo-deny").args(["fetch", "db"]).current_dir(root()).output()?;
    if !fetched.status.success() {
        println!("skipped: the advisory database cannot be fetched");
        return Ok(());
    }
    let checked = Command::new("cargo-deny")
        .args(["--locked", "check", "advisories", "licenses", "bans", "sources"])
        .current_dir(root())
        .status()?;
    ensure!(checked.success(), "cargo deny complains");
    Ok(())
}

/// What once failed, seeds twice in two processes, and fresh seeds.
fn simulator() -> Result<()> {
    let [once_failed, fresh] = SimArgs::ci();
    sim::run(&once_failed)?;
    sim::compare()?;
    sim::run(&fresh)
}

/// The load generator against the server as it is shipped. It fails where something acknowledged is missing or was done twice.
fn bench_smoke() -> Result<()> {
    let codeq = build_codeq()?;
    let folder = Folder::new("smoke")?;
    let server = Server::start(&codeq, &folder.within("data"), &["--shards", "2"])?;
    let output = Command::new(&codeq)
        .args(["bench", "--json", "--duration", SMOKE.0, "--connections", SMOKE.1, "--commands", "4", "--url"])
        .arg(server.url())
        .output()?;
    if !output.status.success() {
        bail!("codeq bench failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let report: Value = serde_json::from_slice(&output.stdout).context("codeq bench prints JSON")?;
    let verdict = &report["verdict"];
    ensure!(report["errors"] == 0, "requests failed: {}", report["firstError"]);
    ensure!(verdict["acknowledged"].as_u64().is_some_and(|tasks| tasks > 0), "nothing was checked: {report}");
    println!(
        "{:.0} cycles/s over {} tasks; {} missing, {} completed twice",
        report["cyclesPerSecond"].as_f64().unwrap_or_default(),
        verdict["acknowledged"],
        verdict["missing"],
        verdict["completedTwice"],
    );
    server.kill()
}
