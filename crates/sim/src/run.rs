//! One run: set-up, storm, heal, drain, export; and what it has come to.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base::ShardId;
use queue::{Answer, Query};

use crate::clock::EPOCH_MS;
use crate::options::Options;
use crate::world::{Violation, World};

/// What a run has come to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What is wrong, if anything is.
    pub violation: Option<Violation>,
    /// Simulated time, µs.
    pub time: u64,
    /// Nodes that took part.
    pub nodes: u64,
    /// Of everything that has happened.
    pub digest: u64,
    /// Operations that were answered.
    pub finished: u64,
    /// Events that have happened.
    pub events: u64,
    /// Faults by class.
    pub faults: BTreeMap<&'static str, u64>,
    /// What was reached.
    pub reached: BTreeMap<&'static str, u64>,
}

/// A cluster must have a leader so long after it was started, µs.
const FOUNDING_MAX: u64 = 60_000_000;

/// Longest extension of the quiet window, µs.
const QUIET_MAX: u64 = 240_000_000;

/// What a task that waits adds to the longest drain, µs.
const TASK_MAX: u64 = 500_000;

/// The drain may not stand still for so long, µs.
const STANDSTILL_MAX: u64 = 60_000_000;

/// Runs a seed.
pub fn run(seed: u64, options: &Options, trace: Option<Box<dyn FnMut(&str)>>) -> (Outcome, World) {
    let mut world = World::new(seed, options.clone());
    world.trace = trace;
    guarded(&mut world, play);
    if world.violation.is_some() && world.trace.is_some() {
        world.tell_standing();
    }
    let outcome = Outcome {
        violation: world.violation.clone(),
        time: world.time,
        nodes: options.nodes,
        digest: world.digest,
        finished: world.clients.finished,
        events: world.happened,
        faults: world.faults.counts.clone(),
        reached: world.reached.clone(),
    };
    (outcome, world)
}

/// Lets the checker judge a run, and does what comes behind that. Returns the checker's report, if it has found something.
pub fn finish(outcome: &mut Outcome, world: &mut World, reproduce: String) -> Option<String> {
    let mut report = None;
    guarded(world, |world| report = world.judge(reproduce));
    if world.violation.is_none() {
        guarded(world, World::restore_backup);
    }
    outcome.violation = world.violation.clone();
    outcome.time = world.time;
    outcome.faults = world.faults.counts.clone();
    outcome.reached = world.reached.clone();
    report
}

/// A panic is a violation.
fn guarded(world: &mut World, act: impl FnOnce(&mut World)) {
    let ended = catch_unwind(AssertUnwindSafe(|| act(world)));
    if let Err(panic) = ended {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).into()));
        world.violation = None;
        world.violate("panic", text.unwrap_or_else(|| "of an unknown kind".into()));
    }
}

fn play(world: &mut World) {
    found(world);
    let begun = world.time;
    world.start_clients();
    world.start_faults();
    world.run_until(begun + world.options.storm_ms * 1_000);
    // No fault begins any more.
    world.quiet = true;
    world.run_until(world.time + world.options.quiet_ms * 1_000);
    await_answers(world);
    if world.clients.finished < world.options.operations {
        // It lacks a majority that does not come back by itself.
        world.mend();
        await_answers(world);
    }
    settle(world);
}

/// Lets clients go on until the run shows something.
fn await_answers(world: &mut World) {
    let patience = world.time + QUIET_MAX;
    while world.violation.is_none() && world.clients.finished < world.options.operations && world.time < patience {
        world.run_until(world.time + 1_000_000);
    }
}

fn shards(world: &World) -> Vec<ShardId> {
    (0..world.options.shards as u16).map(ShardId).collect()
}

/// Starts the founders and waits until they have a cluster with leaders.
pub(crate) fn found(world: &mut World) {
    for n in 0..world.options.nodes as usize {
        world.start(n);
    }
    let shards = shards(world);
    let founded = |world: &World| shards.iter().all(|shard| world.leader(*shard).is_some());
    while world.violation.is_none() && !founded(world) {
        if world.time > FOUNDING_MAX {
            return world.violate("L1", "no leader 60 s after the start");
        }
        world.run_until(world.time + 100_000);
    }
}

/// Heals everything and lets the work be finished, unless something is wrong already.
pub(crate) fn settle(world: &mut World) {
    if world.violation.is_some() {
        return;
    }
    if world.options.restores > 0 {
        world.back_up();
    }
    world.heal();
    drain(world);
}

/// Lets honest workers finish what is left.
pub(crate) fn drain(world: &mut World) {
    let shards = &shards(world)[..];
    let healed = world.time;
    let mut limit = healed + world.options.drain_ms * 1_000;
    let mut behind = None;
    let (mut left, mut moved, mut led) = ((u64::MAX, u64::MAX), world.time, world.time);
    while world.violation.is_none() {
        world.run_until(world.time + 500_000);
        let leaders: Vec<Option<usize>> = shards.iter().map(|shard| world.leader(*shard)).collect();
        let elections = 10 * world.options.election_ms * 1_000 + 5_000_000;
        if leaders.iter().all(Option::is_some) {
            led = world.time;
        } else if world.time > led + elections + 10_000_000 {
            return world.violate("L1", "no leader after the heal");
        }
        let now = shards.iter().zip(&leaders).map(|(shard, leader)| leader.map(|n| waiting(world, n, *shard)));
        let (Some(now), Some(missing)) = (now.sum::<Option<u64>>(), missing(world, shards)) else { continue };
        world.is_drained = now == 0;
        let behind = *behind.get_or_insert_with(|| {
            limit += now * TASK_MAX;
            schedules_behind(world, shards)
        });
        if (now, missing) != left {
            (left, moved) = ((now, missing), world.time);
            world.tell(|| format!("{now} tasks wait, members lack {missing} entries"));
        }
        if left == (0, 0) {
            return;
        }
        let left = || format!("{now} tasks wait, members lack {missing} entries");
        if world.time > moved + STANDSTILL_MAX + 1_000 * world.options.delay_ms + behind {
            return world.violate("L4", format!("{}, and nothing has moved for long", left()));
        }
        if world.time > limit + behind {
            return world.violate("L4", format!("{} at the end of the drain", left()));
        }
    }
}

/// How far schedule clocks are behind the wall clock at most, µs: it has gone on while processes were suspended, and they follow it a tenth
/// faster than it goes.
fn schedules_behind(world: &mut World, shards: &[ShardId]) -> u64 {
    let wall = EPOCH_MS + world.time / 1_000;
    let behind = |shard: &ShardId| {
        let leader = world.leader(*shard)?;
        let machine = world.nodes[leader].process_mut()?.runner.replica.machine_mut(*shard);
        Some(1_000 * wall.saturating_sub(base::machine::StateMachine::stamps(machine).schedule.0))
    };
    shards.iter().filter_map(behind).max().unwrap_or(0)
}

/// Tasks of a shard that have not ended, and operations on many.
fn waiting(world: &mut World, n: usize, shard: ShardId) -> u64 {
    let process = world.nodes[n].process_mut().expect("it leads");
    let machine = process.runner.replica.machine_mut(shard);
    let (Answer::Queues(queues), _) = base::machine::StateMachine::query(machine, &Query::Queues) else { return 0 };
    let tasks = queues.iter().map(|queue| queue.depth.ready_total() + queue.depth.delayed + queue.depth.leased);
    tasks.sum::<u64>() + crate::bulk::count_running(process, shard)
}

/// How many entries that leaders have applied are not applied at members that run. `None`: a shard has no leader.
fn missing(world: &World, shards: &[ShardId]) -> Option<u64> {
    let of_shard = |shard: &ShardId| {
        let leader = &world.nodes[world.leader(*shard)?].process()?.runner.replica;
        let applied = leader.applied(*shard).0;
        let lacks = |id: &u64| {
            let node = world.ids.get(id).map(|n| &world.nodes[*n]);
            let process = node.filter(|node| node.directory.id == *id).and_then(|node| node.process());
            process.map_or(0, |process| applied.saturating_sub(process.runner.replica.applied(*shard).0))
        };
        Some(leader.members(*shard).configuration.members().iter().map(lacks).sum::<u64>())
    };
    shards.iter().map(of_shard).sum()
}
