//! The leader is killed, the leader is stopped, and every node is stopped in turn.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::faults::cluster::{Cluster, NAMES, NODES};
use crate::faults::figures::{Figures, Watch};
use crate::faults::{Run, calm};

/// After a stop the load is watched for a little longer: requests that were turned away come back.
const AFTER_STOP: Duration = Duration::from_millis(300);

/// SIGKILL: how long until somebody else acknowledges a write, each time.
pub(super) fn kill_leader(run: &Run) -> Result<Vec<Duration>> {
    let mut cluster = Cluster::new(run.codeq(), "kill-leader", false)?;
    let mut rng = run.rng();
    let outages = run.under_load(&mut cluster, |cluster, shared| {
        let mut outages = Figures::default();
        for round in 1..=run.rounds(2, 100) {
            cluster.wait_until_whole()?;
            calm(&mut rng);
            let leader = cluster.leader()?;
            let mut watch = Watch::begin(shared);
            let killed = Instant::now();
            cluster.kill(leader)?;
            let outage = watch.first_after(killed)?;
            let next = cluster.leader_of(&Cluster::others(leader))?;
            cluster.spawn(leader)?;
            cluster.wait_until_ready(leader)?;
            println!(
                "round {round}: {} killed, first write after {} ms, {} leads",
                NAMES[leader],
                outage.as_millis(),
                NAMES[next]
            );
            outages.add(outage);
        }
        Ok(outages)
    })?;
    println!("kill -9 of the leader until the first acknowledged write: {outages}");
    Ok(outages.into_all())
}

/// SIGTERM: how long nothing is acknowledged, each time.
pub(super) fn stop_leader(run: &Run) -> Result<Vec<Duration>> {
    let mut cluster = Cluster::new(run.codeq(), "stop-leader", false)?;
    let mut rng = run.rng();
    let (before, gaps, returns) = run.under_load(&mut cluster, |cluster, shared| {
        let [mut before, mut gaps, mut returns] = [(); 3].map(|()| Figures::default());
        for round in 1..=run.rounds(1, 50) {
            cluster.wait_until_whole()?;
            let mut watch = Watch::begin(shared);
            let calm_begun = Instant::now();
            calm(&mut rng);
            let leader = cluster.leader()?;
            let stopped = Instant::now();
            before.add(watch.longest_gap(calm_begun, stopped));
            let gap = stop(cluster, leader, &mut watch)?;
            let begun = Instant::now();
            cluster.spawn(leader)?;
            cluster.wait_until_ready(leader)?;
            cluster.wait_until_whole()?;
            let back = watch.longest_gap(begun, Instant::now());
            println!(
                "round {round}: {} stopped, longest gap {} ms; {} ms when it came back",
                NAMES[leader],
                gap.as_millis(),
                back.as_millis()
            );
            gaps.add(gap);
            returns.add(back);
        }
        Ok((before, gaps, returns))
    })?;
    println!("longest gap between acknowledged writes, nothing happening: {before}");
    println!("longest gap between acknowledged writes, SIGTERM of the leader: {gaps}");
    println!("longest gap between acknowledged writes, its return: {returns}");
    Ok(gaps.into_all())
}

/// SIGTERM of each node in turn, the leader last.
pub(super) fn rolling(run: &Run) -> Result<()> {
    let mut cluster = Cluster::new(run.codeq(), "rolling", false)?;
    let (gaps, took) = run.under_load(&mut cluster, |cluster, shared| {
        let [mut gaps, mut took] = [(); 2].map(|()| Figures::default());
        for round in 1..=run.rounds(1, 20) {
            let leader = cluster.leader()?;
            let mut watch = Watch::begin(shared);
            let begun = Instant::now();
            let [first, second] = Cluster::others(leader);
            let order: [usize; NODES] = [first, second, leader];
            for place in order {
                stop(cluster, place, &mut watch)?;
                cluster.spawn(place)?;
                cluster.wait_until_ready(place)?;
                cluster.wait_until_whole()?;
            }
            let gap = watch.longest_gap(begun, Instant::now());
            println!(
                "round {round}: all restarted in {:.1} s, longest gap {} ms",
                begun.elapsed().as_secs_f64(),
                gap.as_millis()
            );
            gaps.add(gap);
            took.add(begun.elapsed());
        }
        Ok((gaps, took))
    })?;
    println!("longest gap between acknowledged writes in a rolling restart: {gaps}");
    println!("a rolling restart: {took}");
    Ok(())
}

/// Stops a node; returns the longest time without an acknowledged write meanwhile.
fn stop(cluster: &mut Cluster, place: usize, watch: &mut Watch<'_>) -> Result<Duration> {
    let stopped = Instant::now();
    cluster.terminate(place)?;
    cluster.wait_until_stopped(place)?;
    std::thread::sleep(AFTER_STOP);
    Ok(watch.longest_gap(stopped, Instant::now()))
}
