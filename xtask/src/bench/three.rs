//! The sections of the benchmark page that need three nodes: processes on one machine, which share its cores and its disk with the client.

use std::fmt::Write;

use anyhow::Result;

use crate::bench::Bench;
use crate::bench::load::{Load, median};
use crate::bench::sections::{CYCLES, note};
use crate::faults::cluster::{Cluster, NODES};

/// Runs of each kind, in turns.
const ROUNDS: usize = 5;

/// Connections that read.
const READERS: u32 = 8;

fn start(bench: &Bench) -> Result<Cluster> {
    let mut cluster = Cluster::new(&bench.codeq, "bench", false)?.with_defaults();
    cluster.start_all()?;
    Ok(cluster)
}

fn url(cluster: &Cluster, place: usize) -> String {
    format!("http://{}", cluster.addr(place))
}

/// Cycles of three nodes, with the client at the leader and spread over all, and of one node.
pub(super) fn against_one(bench: &Bench) -> Result<String> {
    let mut rows = String::new();
    let mut medians = String::new();
    for connections in [32, 128] {
        let load = Load { connections, duration: bench.duration(CYCLES.duration), ..CYCLES };
        let (mut at_leader, mut spread) = (Vec::new(), Vec::new());
        for number in 1..=if bench.quick { 1 } else { ROUNDS } {
            note(&format!("three nodes: {connections} connections, round {number}"));
            let server = bench.start("one", &[])?;
            let one = load.run(&bench.codeq, &server.url())?.cycles_per_second()?;
            server.kill()?;
            let cluster = start(bench)?;
            let leader = load.run(&bench.codeq, &url(&cluster, cluster.leader()?))?;
            let urls: Vec<String> = (0..NODES).map(|place| url(&cluster, place)).collect();
            let all = load.run(&bench.codeq, &urls.join(","))?.cycles_per_second()?;
            let syncs = leader.syncs_per_operation()?;
            let leader = leader.cycles_per_second()?;
            at_leader.push(leader / one);
            spread.push(all / one);
            writeln!(
                rows,
                "| {connections} | {number} | {one:.0} | {leader:.0} | {:.0} % | {syncs:.3} | {all:.0} | {:.0} % |",
                100.0 * leader / one,
                100.0 * all / one
            )?;
        }
        write!(
            medians,
            " With {connections} connections **{:.0} %** at the leader, **{:.0} %** spread over all.",
            100.0 * median(at_leader),
            100.0 * median(spread)
        )?;
    }
    bench.forget("one");
    Ok(format!(
        "### Three nodes against one\n\n\
         Cycles per second of one node, and of three nodes on the same machine with the client at the leader and spread over all; one queue, in turns of \
         {:?}, everything synced everywhere. Medians of the ratios:{medians} (Bars: at least 55 % and 40 %.) Three nodes write each entry three times to \
         one disk, and share two cores with the client; syncs are the leader's, for each operation.\n\n\
         | connections | round | one, cycles/s | leader, cycles/s | | syncs | spread, cycles/s | |\n|---|---|---|---|---|---|---|---|\n{rows}",
        bench.duration(CYCLES.duration),
    ))
}

/// Linearizable reads by id, at the leader and at a follower.
pub(super) fn follower_reads(bench: &Bench) -> Result<String> {
    let cluster = start(bench)?;
    let leader = cluster.leader()?;
    let follower = Cluster::others(leader)[0];
    let load = Load { workload: "read", connections: READERS, duration: bench.duration(CYCLES.duration), ..CYCLES };
    let mut rows = String::new();
    let mut ratios = Vec::new();
    for number in 1..=if bench.quick { 1 } else { ROUNDS } {
        note(&format!("follower reads: round {number}"));
        let near = load.run(&bench.codeq, &url(&cluster, leader))?;
        let far = load.run(&bench.codeq, &url(&cluster, follower))?;
        let ratio = far.millis("read", "p50")? / near.millis("read", "p50")?;
        ratios.push(ratio);
        writeln!(
            rows,
            "| {number} | {:.2} / {:.2} | {:.0} | {:.2} / {:.2} | {:.0} | {ratio:.1} |",
            near.millis("read", "p50")?,
            near.millis("read", "p99")?,
            near.cycles_per_second()?,
            far.millis("read", "p50")?,
            far.millis("read", "p99")?,
            far.cycles_per_second()?
        )?;
    }
    Ok(format!(
        "### Reads at a follower\n\n\
         Linearizable reads of a task by its id, {READERS} connections, at the leader and at a follower in turns of {:?}; p50 / p99 in milliseconds. Median of \
         the ratios of p50: **{:.1}** (bar: at most 3).\n\n\
         | round | leader | reads/s | follower | reads/s | ratio |\n|---|---|---|---|---|---|\n{rows}",
        load.duration,
        median(ratios),
    ))
}
