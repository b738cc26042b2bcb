//! The sections of the benchmark page, each from start to table.

use std::fmt::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::bench::Bench;
use crate::bench::fill::Fill;
use crate::bench::load::{Figures, Load, median};
use crate::process::{Starting, build_bare};

/// What most sections measure.
pub(super) const CYCLES: Load = Load {
    workload: "cycle",
    connections: 32,
    commands: 1,
    payload_bytes: 16,
    duration: Duration::from_secs(5),
    rate: None,
    verify: false,
};

/// Runs of each server in the comparison, alternating.
const PAIRS: usize = 7;

/// Runs at each length of the queue, alternating.
const BACKLOG_RUNS: usize = 5;

/// Bytes of each payload, where many tasks wait.
const WAITING_PAYLOAD_BYTES: usize = 100;

/// How long after the last creation the memory is looked at again: two checkpoints later.
const SETTLED: Duration = Duration::from_secs(15);

/// Says on standard error what is being done: standard output is the page.
pub(super) fn note(text: &str) {
    eprintln!("{text}");
}

/// Cycles of codeq and of a server with canned replies, in turns, so that both see the same machine.
pub(super) fn ratio(bench: &Bench) -> Result<String> {
    let mut command = Command::new(build_bare()?);
    command.arg("127.0.0.1:0");
    let bare = Starting::spawn(command, None)?.listening()?;
    let codeq = bench.start("ratio", &[])?;
    let load = Load { duration: bench.duration(CYCLES.duration), ..CYCLES };
    let warm = Load { duration: Duration::from_secs(1), ..CYCLES };
    for url in [bare.url(), codeq.url()] {
        warm.run(&bench.codeq, &url)?;
    }
    let mut rows = String::new();
    let mut ratios = Vec::new();
    for number in 1..=if bench.quick { 3 } else { PAIRS } {
        note(&format!("ratio: pair {number}"));
        let canned = load.run(&bench.codeq, &bare.url())?.cycles_per_second()?;
        let real = load.run(&bench.codeq, &codeq.url())?.cycles_per_second()?;
        ratios.push(real / canned);
        writeln!(rows, "| {number} | {canned:.0} | {real:.0} | {:.0} % |", 100.0 * real / canned)?;
    }
    bench.forget("ratio");
    Ok(format!(
        "### Against a bare HTTP server\n\n\
         Cycles (create, claim, complete) per second, {} connections, one queue, in alternating runs of {:?}. The bare server is hyper with canned \
         replies of the same size: no JSON, no log, no state. Median of the ratios: **{:.0} %** (bar: at least 60 %).\n\n\
         | pair | bare, cycles/s | codeq, cycles/s | ratio |\n|---|---|---|---|\n{rows}",
        load.connections,
        load.duration,
        100.0 * median(ratios),
    ))
}

/// Cycles by the SDK and by plain connections, in turns.
pub(super) fn sdk(bench: &Bench) -> Result<String> {
    let server = bench.start("sdk", &[])?;
    let plain = Load { duration: bench.duration(CYCLES.duration), ..CYCLES };
    let sdk = Load { workload: "sdk", ..plain };
    let mut rows = String::new();
    let mut ratios = Vec::new();
    for number in 1..=if bench.quick { 1 } else { PAIRS } {
        note(&format!("sdk: pair {number}"));
        let connections = plain.run(&bench.codeq, &server.url())?.cycles_per_second()?;
        let slots = sdk.run(&bench.codeq, &server.url())?.cycles_per_second()?;
        ratios.push(slots / connections);
        writeln!(rows, "| {number} | {connections:.0} | {slots:.0} | {:.0} % |", 100.0 * slots / connections)?;
    }
    bench.forget("sdk");
    Ok(format!(
        "### The SDK against plain connections\n\n\
         Cycles (create, claim, complete) per second in alternating runs of {:?}: {} connections that make one call each at a time, and the SDK's producer \
         and worker with as many slots, which put what comes up meanwhile into one call. Median of the ratios: **{:.0} %** (bar: at least 80 %).\n\n\
         | pair | connections, cycles/s | SDK, cycles/s | ratio |\n|---|---|---|---|\n{rows}",
        plain.duration,
        plain.connections,
        100.0 * median(ratios),
    ))
}

/// By connections, queues and shards; everything acknowledged is read back after each run.
pub(super) fn table(bench: &Bench) -> Result<String> {
    let mut rows = String::new();
    for shards in ["1", "4"] {
        for connections in [1, 8, 128, 512] {
            for commands in [1, 64] {
                note(&format!("table: {connections} connections, {commands} queues, {shards} shards"));
                let server = bench.start("table", &["--shards", shards])?;
                let duration = bench.duration(CYCLES.duration);
                let load = Load { connections, commands, payload_bytes: 1024, duration, verify: true, ..CYCLES };
                let figures = load.run(&bench.codeq, &server.url())?;
                writeln!(
                    rows,
                    "| {connections} | {commands} | {shards} | {:.0} | {} | {} | {} | {:.3} |",
                    figures.cycles_per_second()?,
                    latencies(&figures, "create")?,
                    latencies(&figures, "claim")?,
                    latencies(&figures, "complete")?,
                    figures.syncs_per_operation()?,
                )?;
            }
        }
    }
    bench.forget("table");
    Ok(format!(
        "### By connections, queues and shards\n\n\
         Payload 1 KiB, closed loop, {:?} each. Latencies are p50 / p99 / p99.9 in milliseconds. Afterwards every acknowledged task that was not \
         completed and up to 20,000 of the completed ones were read back: none was missing, none completed twice. Bar: fewer than 0.1 syncs per operation at 128 connections.\n\n\
         | connections | queues | shards | cycles/s | create | claim | complete | syncs per operation |\n|---|---|---|---|---|---|---|---|\n{rows}",
        bench.duration(CYCLES.duration),
    ))
}

fn latencies(figures: &Figures, kind: &str) -> Result<String> {
    let at = |at: &str| figures.millis(kind, at);
    Ok(format!("{:.2} / {:.2} / {:.2}", at("p50")?, at("p99")?, at("p999")?))
}

/// One node with four shards against one with one, many queues, in turns.
pub(super) fn shards(bench: &Bench) -> Result<String> {
    let servers =
        [("one-shard", "1"), ("four-shards", "4")].map(|(name, shards)| bench.start(name, &["--shards", shards]));
    let [one, four] = servers;
    let (one, four) = (one?, four?);
    let load = Load { commands: 64, connections: 128, duration: bench.duration(CYCLES.duration), ..CYCLES };
    let mut rows = String::new();
    let mut ratios = Vec::new();
    for number in 1..=if bench.quick { 1 } else { PAIRS } {
        note(&format!("shards: pair {number}"));
        let first = load.run(&bench.codeq, &one.url())?;
        let second = load.run(&bench.codeq, &four.url())?;
        let ratio = second.cycles_per_second()? / first.cycles_per_second()?;
        ratios.push(ratio);
        // A cycle is three operations.
        let syncs = |figures: &Figures| {
            Ok::<_, anyhow::Error>(figures.syncs_per_operation()? * 3.0 * figures.cycles_per_second()?)
        };
        writeln!(
            rows,
            "| {number} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} % |",
            first.cycles_per_second()?,
            syncs(&first)?,
            second.cycles_per_second()?,
            syncs(&second)?,
            100.0 * ratio
        )?;
    }
    drop((one, four));
    bench.forget("one-shard");
    bench.forget("four-shards");
    Ok(format!(
        "### Four shards against one\n\n\
         One node, {} queues, {} connections, in alternating runs of {:?}. Median of the ratios: **{:.0} %** (bar: not slower; not more syncs per second).\n\n\
         | pair | one shard, cycles/s | syncs/s | four shards, cycles/s | syncs/s | ratio |\n|---|---|---|---|---|---|\n{rows}",
        load.commands,
        load.connections,
        load.duration,
        100.0 * median(ratios),
    ))
}

/// Claims while a thousand tasks wait, and while a million do. Each cycle creates as many as it claims, so the length stays.
pub(super) fn backlog(bench: &Bench) -> Result<String> {
    let fills = [1_000, bench.many()].map(|tasks| Fill { tasks, payload_bytes: WAITING_PAYLOAD_BYTES });
    let mut servers = Vec::new();
    for (fill, name) in fills.iter().zip(["short", "long"]) {
        note(&format!("backlog: creating {} tasks", fill.tasks));
        let server = bench.start(name, &[])?;
        fill.create(server.addr())?;
        servers.push(server);
    }
    let duration = bench.duration(CYCLES.duration);
    let load = Load { payload_bytes: WAITING_PAYLOAD_BYTES as u32, duration, ..CYCLES };
    let mut rows = String::new();
    let mut ratios = Vec::new();
    for number in 1..=if bench.quick { 1 } else { BACKLOG_RUNS } {
        note(&format!("backlog: run {number}"));
        let short = load.run(&bench.codeq, &servers[0].url())?.millis("claim", "p99")?;
        let long = load.run(&bench.codeq, &servers[1].url())?.millis("claim", "p99")?;
        ratios.push(long / short);
        writeln!(rows, "| {number} | {short:.2} | {long:.2} | {:.2} |", long / short)?;
    }
    drop(servers);
    bench.forget("short");
    bench.forget("long");
    Ok(format!(
        "### Claims from a long queue\n\n\
         Claim p99 in milliseconds while {} and while {} tasks wait, {} connections creating, claiming and completing, in alternating runs of {duration:?}. Median \
         of the ratios: **{:.2}** (bar: at most 1.5).\n\n\
         | run | {} waiting | {} waiting | ratio |\n|---|---|---|---|\n{rows}",
        fills[0].tasks,
        fills[1].tasks,
        load.connections,
        median(ratios),
        fills[0].tasks,
        fills[1].tasks,
    ))
}

/// What a waiting task costs in memory, besides its payload.
pub(super) fn memory(bench: &Bench) -> Result<String> {
    let fill = Fill { tasks: bench.many(), payload_bytes: WAITING_PAYLOAD_BYTES };
    let server = bench.start("memory", &[])?;
    // One task: whatever is made at the first use is there.
    Fill { tasks: 1, ..fill }.create(server.addr())?;
    let before = server.resident_bytes()?;
    note(&format!("memory: creating {} tasks", fill.tasks));
    fill.create(server.addr())?;
    let at_once = server.resident_bytes()?;
    let wait = bench.duration(SETTLED);
    std::thread::sleep(wait);
    let settled = server.resident_bytes()?;
    server.kill()?;
    bench.forget("memory");
    let per_task = |after: u64| (after as f64 - before as f64 - fill.payload_bytes() as f64) / fill.tasks as f64;
    let mebibytes = |bytes: u64| bytes >> 20;
    Ok(format!(
        "### Memory of waiting tasks\n\n\
         Resident memory (VmRSS) of the server with {} waiting tasks of {} bytes of payload, less that with one, less the payloads, for each task (bar: at \
         most 200 bytes).\n\n\
         | | resident, MiB | bytes per task |\n|---|---|---|\n\
         | one task | {} | |\n\
         | after the last creation | {} | {:.0} |\n\
         | {:?} later | {} | **{:.0}** |\n",
        fill.tasks,
        fill.payload_bytes,
        mebibytes(before),
        mebibytes(at_once),
        per_task(at_once),
        wait,
        mebibytes(settled),
        per_task(settled),
    ))
}

/// SIGKILL at the last acknowledgement, and the time until the server serves again.
pub(super) fn restart(bench: &Bench) -> Result<String> {
    let fill = Fill { tasks: bench.many(), payload_bytes: WAITING_PAYLOAD_BYTES };
    let mut rows = String::new();
    for number in 1..=if bench.quick { 1 } else { 3 } {
        note(&format!("restart: creating {} tasks, {number}", fill.tasks));
        let server = bench.start("restart", &[])?;
        let created = fill.create(server.addr())?;
        server.kill()?;
        let begun = Instant::now();
        let server = bench.restart("restart", &[])?;
        let took = begun.elapsed();
        fill.look_for(server.addr(), &created)?;
        let resident = server.resident_bytes()? >> 20;
        server.kill()?;
        writeln!(rows, "| {number} | {:.2} | {resident} |", took.as_secs_f64())?;
    }
    bench.forget("restart");
    Ok(format!(
        "### Restart after SIGKILL\n\n\
         {} tasks of {} bytes of payload wait; the server is killed at the last acknowledgement and started again. Until `/readyz` says yes (bar: at most 10 \
         s). Afterwards all tasks were counted and up to 20,000 read back: none was missing.\n\n\
         | run | seconds until ready | resident, MiB |\n|---|---|---|\n{rows}",
        fill.tasks, fill.payload_bytes,
    ))
}

/// From the acknowledgement of a creation to the answer of the worker that waited for it, on an otherwise idle server.
pub(super) fn long_poll(bench: &Bench) -> Result<String> {
    note("long poll");
    let server = bench.start("long-poll", &[])?;
    let duration = bench.duration(Duration::from_secs(20));
    let load = Load { workload: "long-poll", connections: 4, duration, verify: true, ..CYCLES };
    let figures = load.run(&bench.codeq, &server.url())?;
    server.kill()?;
    bench.forget("long-poll");
    let at = |at: &str| figures.millis("hand_over", at);
    Ok(format!(
        "### Long poll\n\n\
         A worker waits, a task is created, the worker is answered: from the acknowledgement of the creation to the worker's answer, in milliseconds; {} \
         pairs, otherwise idle (bar: p99 at most 5 ms).\n\n\
         | p50 | p99 | p99.9 | max |\n|---|---|---|---|\n| {:.2} | {:.2} | {:.2} | {:.2} |\n",
        load.connections,
        at("p50")?,
        at("p99")?,
        at("p999")?,
        at("max")?,
    ))
}
