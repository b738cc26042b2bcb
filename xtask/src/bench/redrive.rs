//! Dead letters brought back while a server works: how long that takes, and what it costs the work.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Bench;
use super::load::{Load, median};
use super::sections::{CYCLES, note};
use crate::http::Client;

/// Tasks per second that the operation asks for, which the server is set to allow: a hundred thousand in 25 seconds.
const RATE: u64 = 4_000;

/// Dead letters of each round, in a queue of their own.
const DEAD: u64 = 100_000;

/// Tasks of a request: as many as the server takes.
const CREATED: u64 = 100;
const CLAIMED: u64 = 10;

/// Rounds, each without the operation, with it, and without it again.
const ROUNDS: usize = 3;

/// How often the operation is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Brings dead letters back beside cycles in another queue.
pub(super) fn redrive(bench: &Bench) -> Result<String> {
    let server = bench.start("redrive", &["--operations-max-rate", &RATE.to_string()])?;
    let dead = if bench.quick { DEAD / 20 } else { DEAD };
    // Shorter than the operation, so that all of it is beside the operation.
    let load = Load { duration: Duration::from_millis(800 * dead / RATE), ..CYCLES };
    let cycles = || load.run(&bench.codeq, &server.url())?.cycles_per_second();
    let (mut ratios, mut longest, mut rows) = (Vec::new(), Duration::ZERO, String::new());
    for round in 1..=if bench.quick { 1 } else { ROUNDS } {
        note(&format!("redrive: round {round}"));
        let command = format!("dead-{round}");
        kill(server.addr(), &command, dead)?;
        let before = cycles()?;
        let (beside, took) = std::thread::scope(|scope| {
            let redriven = scope.spawn(|| bring_back(server.addr(), &command, dead));
            let beside = cycles();
            let took = redriven.join().expect("it does not panic");
            anyhow::Ok((beside?, took?))
        })?;
        let after = cycles()?;
        let ratio = 2.0 * beside / (before + after);
        ratios.push(ratio);
        longest = longest.max(took);
        let seconds = took.as_secs_f64();
        writeln!(rows, "| {round} | {seconds:.1} | {before:.0} | {beside:.0} | {after:.0} | {:.0} % |", 100.0 * ratio)?;
    }
    drop(server);
    bench.forget("redrive");
    Ok(format!(
        "### Dead letters brought back beside the work\n\n\
         {dead} dead letters are redriven at {RATE} per second (`operations.maxRate` says so), beside {} connections that create, claim and \
         complete in another queue for {:?}. Longest redrive: **{:.1} s** (bar for 100,000: 30 s). Median of the ratios of the cycles beside it \
         to those before and after: **{:.0} %** (bar: at least 90 %).\n\n\
         | round | redrive, s | before, cycles/s | beside, cycles/s | after, cycles/s | ratio |\n|---|---|---|---|---|---|\n{rows}",
        load.connections,
        load.duration,
        longest.as_secs_f64(),
        100.0 * median(ratios),
    ))
}

/// Makes dead letters: tasks with one attempt, whose lease runs out.
fn kill(addr: SocketAddr, command: &str, count: u64) -> Result<()> {
    let mut client = Client::connect(addr)?;
    let task = json!({"command": command, "payload": {}, "maxAttempts": 1});
    let tasks = json!({"tasks": vec![task; CREATED as usize]}).to_string();
    for _ in 0..count / CREATED {
        asked(&mut client, "/tasks/batch", &tasks)?;
    }
    let claim = json!({"commands": [command], "count": CLAIMED, "leaseSeconds": 1}).to_string();
    for _ in 0..count / CLAIMED {
        asked(&mut client, "/tasks/claim/batch", &claim)?;
    }
    while of_queue(&mut client, command)?["dlq"] != json!(count) {
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Has all dead letters of a queue brought back, and waits until they are. Returns how long that took.
fn bring_back(addr: SocketAddr, command: &str, count: u64) -> Result<Duration> {
    let mut client = Client::connect(addr)?;
    let begun = Instant::now();
    let request = json!({"filter": {"command": command}, "ratePerSecond": RATE}).to_string();
    let mut operation = asked(&mut client, "/dlq/redrive", &request)?;
    let path = format!("/v1/codeq/operations/{}", operation["operationId"].as_str().context("it has an id")?);
    while operation["state"] == "RUNNING" {
        std::thread::sleep(LOOK);
        operation = client.get(&path)?.json()?;
    }
    let took = begun.elapsed();
    ensure!(operation["state"] == "SUCCEEDED" && operation["changed"] == json!(count), "it ended as {operation}");
    let queue = of_queue(&mut client, command)?;
    ensure!(queue["ready"] == json!(count) && queue["dlq"] == 0, "the queue has {queue}");
    Ok(took)
}

fn of_queue(client: &mut Client, command: &str) -> Result<Value> {
    Ok(client.get(&format!("/v1/codeq/queues/{command}"))?.json()?)
}

fn asked(client: &mut Client, path: &str, body: &str) -> Result<Value> {
    let answer = client.post(&format!("/v1/codeq{path}"), body)?;
    ensure!(answer.status < 300, "{path} was answered with {answer}");
    Ok(answer.json()?)
}
