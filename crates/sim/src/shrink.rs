//! Makes a failing run smaller: whatever can go while the same property is still violated goes.

use std::time::{Duration, Instant};

use crate::options::{CLASSES, Options};
use crate::run::run;

/// The property that a run violates, judged as a whole run is, and when.
fn failure(seed: u64, options: &Options) -> Option<(String, u64)> {
    let (outcome, mut world) = run(seed, options, None);
    if outcome.violation.is_none() {
        world.judge(String::new());
    }
    world.violation.map(|violation| (violation.id, violation.at))
}

/// The smallest options found in `limit` under which the seed still violates what it violates with `options`.
pub fn shrink(seed: u64, options: &Options, limit: Duration, tell: &mut impl FnMut(&str)) -> Options {
    let begun = Instant::now();
    let Some((id, at)) = failure(seed, options) else { return options.clone() };
    let mut best = options.clone();
    let mut attempt = |best: &mut Options, what: &str, change: &dyn Fn(&mut Options)| {
        let mut smaller = best.clone();
        change(&mut smaller);
        if smaller == *best || begun.elapsed() > limit {
            return false;
        }
        let still = failure(seed, &smaller).is_some_and(|(found, _)| found == id);
        if still {
            tell(&format!("without {what}: still {id}"));
            *best = smaller;
        }
        still
    };
    let until = at / 1_000 + 1;
    attempt(&mut best, "what comes after", &|options| options.storm_ms = options.storm_ms.min(until));
    attempt(&mut best, "meddlers", &|options| options.meddlers = 0);
    attempt(&mut best, "operators", &|options| (options.operators, options.beats) = (0, 0));
    attempt(&mut best, "readers", &|options| options.readers = 0);
    attempt(&mut best, "more than one producer", &|options| options.producers = 1);
    attempt(&mut best, "more than two workers", &|options| options.workers = options.workers.min(2));
    for (class, _) in CLASSES {
        attempt(&mut best, class, &|options| *options = options.without(class));
    }
    attempt(&mut best, "more than one shard", &|options| options.shards = 1);
    attempt(&mut best, "more than three nodes", &|options| options.nodes = options.nodes.min(3));
    attempt(&mut best, "spare nodes", &|options| options.spares = 0);
    while attempt(&mut best, "half of the storm", &|options| options.storm_ms /= 2) {}
    while attempt(&mut best, "half of the operations", &|options| options.pace_ms *= 2) {}
    best
}
