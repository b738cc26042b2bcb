//! Three nodes that start for the first time: in any order, at any moment, and killed on the way to their cluster.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base::rng::SplitMix;

use crate::walk::e::Stage;
use crate::walk::nodes::{Driver, Nodes, eventually};
use crate::walk::page::Page;
use crate::walk::{READY_MAX, list, text};

/// From the last start to one leader that all three name.
const FORMED_MAX: Duration = Duration::from_secs(3);

/// Between two starts: at most so many milliseconds.
const DELAY_MS: u64 = 500;

/// Kills on the way to a cluster, and how long after the one before: at most so many milliseconds.
const KILLS: u32 = 4;
const KILL_MS: u64 = 250;

/// The plan is always the same.
const SEED: u64 = 1;

/// An order of three nodes.
fn order(rng: &mut SplitMix) -> [usize; 3] {
    let first = rng.below(3) as usize;
    let [second, third] = [(first + 1) % 3, (first + 2) % 3];
    if rng.one_in(2) { [first, second, third] } else { [first, third, second] }
}

fn rest(rng: &mut SplitMix, longest_ms: u64) {
    std::thread::sleep(Duration::from_millis(rng.below(longest_ms)));
}

/// Waits until all three name the same three voters, one of which leads, in one cluster.
fn formed(nodes: &Nodes, longest: Duration) -> Result<Duration> {
    let begun = Instant::now();
    let formed = eventually(longest, || {
        let seen = (0..3).map(|place| nodes.page(place, "/cluster/nodes")).collect::<Result<Vec<_>>>()?;
        let ids = |one: &serde_json::Value| {
            let mut ids = list(&one["nodes"])?.iter().map(|node| text(&node["id"])).collect::<Result<Vec<_>>>()?;
            ids.sort();
            Ok::<_, anyhow::Error>(ids)
        };
        let first = ids(&seen[0])?;
        ensure!(first.len() == 3, "{}", seen[0]);
        for one in &seen {
            let leaders = list(&one["nodes"])?.iter().filter(|node| node["status"] == "leader").count();
            let voters = list(&one["nodes"])?.iter().filter(|node| node["voter"] == true).count();
            ensure!(leaders == 1 && voters == 3 && ids(one)? == first, "{one}");
            ensure!(!text(&one["clusterId"])?.is_empty() && one["clusterId"] == seen[0]["clusterId"], "{one}");
            ensure!(one["leader"] == seen[0]["leader"], "{one}");
        }
        Ok(begun.elapsed())
    });
    formed.with_context(|| {
        let log = |place| nodes.log(place).unwrap_or_default().join("\n");
        format!("logs:\n{}\n\n{}\n\n{}", log(0), log(1), log(2))
    })
}

fn slowest(took: &[Duration]) -> u128 {
    took.iter().max().map_or(0, Duration::as_millis)
}

pub(super) fn cold_starts(stage: &Stage) -> Result<String> {
    let rounds = stage.count(5, 100);
    let mut rng = SplitMix::new(SEED);
    let mut nodes = Nodes::of(Page::Listed, Driver::Process, &stage.codeq, "walk-cold")?;
    let mut took = Vec::new();
    for round in 1..=rounds {
        let order = order(&mut rng);
        nodes.start(order[0])?;
        for place in &order[1..] {
            rest(&mut rng, DELAY_MS);
            nodes.start(*place)?;
        }
        let formed = formed(&nodes, FORMED_MAX);
        took.push(formed.with_context(|| format!("round {round}, started in the order {order:?}"))?);
        nodes.forget()?;
    }
    Ok(format!("{rounds} cold starts: one cluster each, one leader at most {} ms after the last start", slowest(&took)))
}

pub(super) fn killed_while_forming(stage: &Stage) -> Result<String> {
    let rounds = stage.count(5, 100);
    let mut rng = SplitMix::new(SEED);
    let mut nodes = Nodes::of(Page::Listed, Driver::Process, &stage.codeq, "walk-forming")?;
    let mut took = Vec::new();
    for round in 1..=rounds {
        for place in order(&mut rng) {
            nodes.start(place)?;
        }
        for _ in 0..KILLS {
            rest(&mut rng, KILL_MS);
            let place = rng.below(3) as usize;
            nodes.kill(place)?;
            rest(&mut rng, KILL_MS);
            nodes.start(place)?;
        }
        took.push(formed(&nodes, READY_MAX).with_context(|| format!("round {round}"))?);
        nodes.forget()?;
    }
    Ok(format!(
        "{rounds} formations with {KILLS} kill -9 each: one cluster each, at most {} ms after the last start",
        slowest(&took)
    ))
}
