//! A node that has lost its disk comes back under its name while there are many tasks: it is sent a snapshot, and votes again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use crate::faults::Run;
use crate::faults::cluster::{Cluster, NAMES, wait_until};
use crate::faults::figures::{Figures, Watch};
use crate::http::Client;

/// Tasks that wait, in a short run and in a long one.
const TASKS: [u64; 2] = [20_000, 1_000_000];

/// Tasks in one request: as many as the server takes.
const BATCH: u64 = 100;

/// Connections that create them.
const CONNECTIONS: u64 = 8;

/// How long throughput is measured before, in a short run and in a long one.
const BEFORE: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(10)];

/// Bytes of a payload.
const PAYLOAD_BYTES: usize = 100;

/// Wipes a follower and starts it again.
pub(super) fn snapshot(run: &Run) -> Result<()> {
    let mut cluster = Cluster::new(run.codeq(), "snapshot", false)?;
    // Little log is kept, so that it cannot catch up by log.
    cluster.option("--storage-trailing-log-bytes", "1MiB");
    cluster.start_all()?;
    let tasks = TASKS[usize::from(!run.quick)];
    let begun = Instant::now();
    let leader = cluster.leader()?;
    fill(cluster.addr(leader), tasks)?;
    println!("{tasks} tasks of {PAYLOAD_BYTES} bytes created in {:.1} s", begun.elapsed().as_secs_f64());
    let joins = run.under_load(&mut cluster, |cluster, shared| {
        let mut joins = Figures::default();
        for round in 1..=run.rounds(1, 3) {
            cluster.wait_until_whole()?;
            let leader = cluster.leader()?;
            let place = Cluster::others(leader)[0];
            let mut watch = Watch::begin(shared);
            let begun = Instant::now();
            std::thread::sleep(BEFORE[usize::from(!run.quick)]);
            let before = watch.rate(begun, Instant::now());
            cluster.kill(place)?;
            cluster.wipe(place)?;
            let begun = Instant::now();
            cluster.spawn(place)?;
            wait_until("a newcomer that votes", || Ok(cluster.view(place).is_some_and(|view| view.voter)))?;
            let took = begun.elapsed();
            let during = watch.rate(begun, Instant::now());
            cluster.wait_until_ready(place)?;
            let stats = cluster.get(place, "/v1/codeq/admin/queues/backlog?consistency=stale")?;
            ensure!(stats.json()?["delayed"] == tasks, "{} has caught up, but not with all: {stats}", NAMES[place]);
            println!(
                "round {round}: {} votes again after {:.1} s; {before:.0} writes/s before, {during:.0} during: {:.0} %",
                NAMES[place],
                took.as_secs_f64(),
                100.0 * during / before
            );
            joins.add(took);
        }
        Ok(joins)
    })?;
    println!("start of an empty node until it votes: {joins}");
    Ok(())
}

/// Creates tasks that stay out of the load's way: they are due tomorrow.
fn fill(addr: SocketAddr, tasks: u64) -> Result<()> {
    let task =
        json!({ "command": "backlog", "payload": { "fill": "x".repeat(PAYLOAD_BYTES) }, "delaySeconds": 86_400 });
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|first| {
                let task = &task;
                scope.spawn(move || -> Result<()> {
                    let mut client = Client::connect(addr)?;
                    for start in (first * BATCH..tasks).step_by((CONNECTIONS * BATCH) as usize) {
                        let count = BATCH.min(tasks - start) as usize;
                        let body = json!({ "tasks": vec![task; count] }).to_string();
                        let answer = client.post("/v1/codeq/tasks/batch", &body)?;
                        let results = answer.json()?;
                        let all = results["results"].as_array().with_context(|| format!("answered with {answer}"))?;
                        ensure!(all.iter().all(|result| result["task"].is_object()), "answered with {answer}");
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}
