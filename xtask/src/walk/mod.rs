//! `cargo xtask walk`: acceptance tables, line by line, over real processes or containers, and plain HTTP that follows no redirect.
//!
//! A table is a list of rows: a number, what a user types, and what must be seen. Each is printed with what was seen and how long it took; what
//! cannot be walked is skipped with the reason. A table stops at its first failure, and the program fails.

mod bad_config;
mod cd;
mod cq;
mod e;
mod e_failover;
mod e_probes;
mod e_rest;
mod e_start;
mod files;
pub(crate) mod nodes;
mod os;
mod os_access;
mod os_disk;
mod os_operate;
pub(crate) mod page;
mod pull_request;
mod rb;
mod tests;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::compose;
use crate::docker::Engine;
use crate::http::Answer;
use crate::image;
use crate::process::build_codeq;

use crate::walk::nodes::Driver;

pub(crate) use nodes::{eventually, send_as};

const TASKS: &str = "/v1/codeq/tasks";
const STATUS: &str = "/v1/codeq/raft/status";

/// Longest a cluster of three may take to take writes.
pub(crate) const READY_MAX: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(crate) struct WalkArgs {
    /// Which table.
    #[arg(value_enum, default_value_t = Table::All)]
    table: Table,
    /// The program to walk with. Absent: it is built as it is shipped.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Only these rows of the table `e`, by number.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Repeats often what CI repeats a few times.
    #[arg(long)]
    long: bool,
    /// What the nodes run as. In containers, the image is made first, and Docker is installed and started if it is missing.
    #[arg(long, value_enum, default_value_t = Driver::Process)]
    driver: Driver,
    /// Fails if a row could not be walked.
    #[arg(long)]
    strict: bool,
    /// What is waited for may take so many times as long: on a machine that has other work.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    slower: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Table {
    /// codeQ's compose page and the checks of its raft pull request.
    Cq,
    /// raftbase: one node, three nodes, and what happens when they stop; in containers, its end-to-end test.
    Rb,
    /// orchestrator-raft-sqlite: its questions, and a page on each node.
    Os,
    /// raft-consul-demo: nodes that are introduced by hand.
    Cd,
    /// The compose files that no other table begins with.
    Files,
    /// Settings that no server starts with.
    BadConfig,
    /// The whole cluster, end to end; over processes only.
    E,
    /// Each of them.
    All,
}

impl WalkArgs {
    /// Every table, a few times; of the table `e` the rows that have stories of their own.
    pub(crate) fn ci() -> WalkArgs {
        WalkArgs {
            table: Table::All,
            program: None,
            only: e::WITH_STORIES.map(str::to_owned).into(),
            long: false,
            driver: Driver::Process,
            strict: false,
            slower: 1,
        }
    }
}

/// A line of a table, walked in a story that rows before it have begun.
struct Row<S> {
    number: &'static str,
    /// What a user does.
    command: &'static str,
    /// Does it, and says what was seen.
    run: fn(&mut S) -> Result<String>,
}

/// Walks through the tables.
///
/// # Errors
/// A row does not show what it must.
pub(crate) fn run(args: &WalkArgs) -> Result<()> {
    let codeq = args.program.clone().map_or_else(build_codeq, Ok)?;
    nodes::allow_slower(args.slower);
    let _engine = match args.driver {
        Driver::Process => None,
        Driver::Docker => {
            let engine = Engine::running()?;
            println!("{} compose files are understood", compose::check_files()?);
            image::build(&codeq)?;
            Some(engine)
        }
    };
    let begun = Instant::now();
    let is = |table| args.table == Table::All || args.table == table;
    // What is walked without containers is the same, whatever the rest is walked with.
    let of_processes = |table| is(table) && args.driver == Driver::Process;
    let mut skipped = 0;
    if of_processes(Table::BadConfig) {
        skipped += bad_config::walk(&codeq)?;
    }
    if is(Table::Rb) {
        skipped += match args.driver {
            Driver::Process => rb::walk(&codeq, args.program.is_some(), args.long)?,
            Driver::Docker => rb::walk_containers(&codeq)?,
        };
    }
    if of_processes(Table::Rb) {
        tests::walk_crate()?;
    }
    if is(Table::Files) {
        skipped += files::walk(args.driver)?;
    }
    if is(Table::Cd) {
        skipped += cd::walk(&codeq, args.long, args.driver)?;
    }
    if is(Table::Os) {
        skipped += os::walk(&codeq, args.driver)?;
    }
    if is(Table::Cq) {
        skipped += cq::walk(&codeq, args.long, args.driver)?;
    }
    if of_processes(Table::Cq) {
        skipped += pull_request::walk(&codeq, args.long)?;
        tests::walk()?;
    }
    if of_processes(Table::E) {
        skipped += e::walk(&codeq, args.long, &args.only)?;
    }
    println!("all rows: {:.1} s, {skipped} skipped", begun.elapsed().as_secs_f64());
    ensure!(!args.strict || skipped == 0, "{skipped} rows were skipped");
    Ok(())
}

/// How many rows could not be walked.
type Skipped = usize;

/// Why a row cannot be walked here; a row returns it as its error.
#[derive(Debug)]
struct Skip(&'static str);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Skip {}

/// Walks through one table in one story.
fn walk_rows<S>(title: &str, rows: &[Row<S>], story: &mut S) -> Result<Skipped> {
    println!("{title}");
    let mut skipped = 0;
    for Row { number, command, run } in rows {
        let begun = Instant::now();
        let seen = run(story);
        let took = begun.elapsed().as_secs_f64();
        match seen {
            Ok(seen) => println!("{number:<5} {took:6.2} s  {command}\n               {seen}"),
            Err(failure) if failure.is::<Skip>() => {
                skipped += 1;
                println!("{number:<5} {took:6.2} s  {command}\n               SKIP {failure}");
            }
            Err(failure) => {
                println!("{number:<5} {took:6.2} s  {command}\n               FAILED");
                return Err(failure).context(*number);
            }
        }
    }
    Ok(skipped)
}

/// The body of an answer with this status.
///
/// # Errors
/// It has another one.
fn expect(answer: &Answer, status: u16) -> Result<Value> {
    ensure!(answer.status == status, "{answer} instead of {status}");
    answer.json()
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("{value} is no text"))
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("{value} is no number"))
}

fn list(value: &Value) -> Result<&[Value]> {
    value.as_array().map(Vec::as_slice).with_context(|| format!("{value} is no list"))
}

fn has(value: &Value, names: &[&str]) -> Result<()> {
    match names.iter().find(|name| value.get(name).is_none()) {
        None => Ok(()),
        Some(name) => bail!("there is no {name} in {value}"),
    }
}
