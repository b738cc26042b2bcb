//! Operations on many tasks, carried out by the nodes as real ones do: whoever leads a shard has its readers shown what is applied, looks for
//! the next tasks, and proposes the next step by its own edge. A process that ends forgets all of that, and a new leader goes on.

use base::machine::StateMachine;
use base::{Index, ShardId};
use queue::operations::{Operation, OperationId, OperationKind};
use queue::steps::{Ahead, Page};
use queue::{Answer, Outcome, Query};
use replica::Operations;

use crate::edge::{Asked, Told};
use crate::process::{Control, Process};
use crate::world::{Event, World};

/// From this number on, clients are nodes that carry operations out.
pub(crate) const DRIVERS: usize = 1 << 20;

/// How often a node looks whether there is something to do, and how often while there is, µs.
const LOOK: u64 = 500_000;
const STEP: u64 = 50_000;

/// After a step that failed, µs.
const AGAIN: u64 = 200_000;

/// How long it may take to show what was applied when an operation began, µs.
const SHOW_MAX: u64 = 2_000_000;

/// What a process knows of an operation that it carries out.
pub(crate) struct Going {
    /// The next step is taken then at the earliest.
    due: u64,
    ahead: Ahead,
    /// Readers must see everything up to here: what was there when it began.
    needs: Index,
    /// What it waits for, and since when.
    waits: Option<(u64, u64)>,
}

impl Going {
    fn begin(needs: Index, due: u64) -> Going {
        Going { due, ahead: Ahead::default(), needs, waits: None }
    }
}

fn running(process: &mut Process, shard: ShardId) -> Vec<Operation> {
    let machine = process.runner.replica.machine_mut(shard);
    match machine.query(&Query::Operations { tenant: None, running: true }) {
        (Answer::Operations(operations), _) => operations,
        _ => Vec::new(),
    }
}

/// How many operations of a shard are under way.
pub(crate) fn count_running(process: &mut Process, shard: ShardId) -> u64 {
    running(process, shard).len() as u64
}

impl World {
    /// A process looks for the first time whether it has operations to carry out.
    pub(crate) fn start_bulk(&mut self, n: usize) {
        let epoch = self.nodes[n].epoch;
        if self.options.operators > 0 {
            self.after(LOOK, Event::Bulk(n, epoch));
        }
    }

    /// Takes every step that is due.
    pub(crate) fn on_bulk(&mut self, n: usize, epoch: u32) {
        if self.nodes[n].epoch != epoch || self.is_paused(n, || Event::Bulk(n, epoch)) {
            return;
        }
        let (me, time) = (self.nodes[n].directory.id, self.time);
        let Some(process) = self.nodes[n].process_mut() else { return };
        let led: Vec<ShardId> =
            process.routes.iter().filter(|(_, leader)| **leader == me).map(|(shard, _)| *shard).collect();
        let mut known = Vec::new();
        for shard in led {
            known.extend(running(process, shard).into_iter().map(|operation| (shard, operation.id)));
        }
        process.going.retain(|key, _| known.contains(key));
        let mut due = Vec::new();
        for key in known {
            let applied = process.runner.replica.applied(key.0);
            let going = process.going.entry(key).or_insert_with(|| Going::begin(applied, 0));
            let is_shown = process.runner.shown(key.0).is_some_and(|(index, _)| index >= going.needs);
            if !is_shown && going.waits.is_some_and(|(_, since)| time - since > SHOW_MAX) {
                (going.due, going.waits) = (time + AGAIN, None);
            }
            if going.waits.is_none() && going.due <= time {
                due.push(key);
            }
        }
        let next = if process.going.is_empty() { LOOK } else { STEP };
        self.after(next, Event::Bulk(n, epoch));
        for key in due {
            self.advance(n, key);
        }
    }

    /// Takes the next step of an operation, or has shown what it needs for that.
    fn advance(&mut self, n: usize, key: (ShardId, OperationId)) {
        let number = self.number();
        let time = self.time;
        let process = self.nodes[n].process_mut().expect("it runs");
        let going = process.going.get_mut(&key).expect("it is known");
        if process.runner.shown(key.0).is_some_and(|(index, _)| index >= going.needs) {
            return self.take_step(n, key, number);
        }
        going.waits = Some((number, time));
        process.controls.push_back(Control::Show(number));
        self.wake(n);
    }

    /// What was asked for under this number is shown. Whoever it is that waits, it is no client.
    pub(crate) fn on_shown(&mut self, n: usize, number: u64) {
        let Some(process) = self.nodes[n].process_mut() else { return };
        let waits = |going: &Going| going.waits.is_some_and(|(waits, _)| waits == number);
        let Some((key, going)) = process.going.iter_mut().find(|(_, going)| waits(going)) else { return };
        going.waits = None;
        let key = *key;
        self.advance(n, key);
    }

    fn take_step(&mut self, n: usize, key: (ShardId, OperationId), number: u64) {
        let (shard, id) = key;
        let (time, shards) = (self.time, self.options.shards as u16);
        // Now and then a look through the rows has no time, and goes on later.
        let has_time = !self.rng.one_in(8);
        let plan = self.names.plan(&id).expect("somebody has asked for it").clone();
        let (limit, pace) = plan.pace(plan.shards(shards).len());
        let process = self.nodes[n].process_mut().expect("it runs");
        let Some(operation) = running(process, shard).into_iter().find(|operation| operation.id == id) else { return };
        let going = process.going.get_mut(&key).expect("it is known");
        let mut listing = plan.listing(limit, going.ahead.places(operation.steps, &operation.cursor));
        let reader = process.readers.get_mut(&shard).expect("every shard has a reader");
        reader.begin().expect("a checkpoint in memory can be read");
        let reached = listing.read(vec![(shard, &mut **reader)], &|| has_time);
        reader.end().expect("a checkpoint in memory can be read");
        let reached = match reached {
            Ok(reached) => reached,
            Err(why) => return self.violate("S2", format!("a list of shard {shard}, for an operation: {why:?}")),
        };
        let page = Page::of(&operation, listing.found, listing.places, &reached);
        if page.tasks.is_empty() && !page.is_last {
            going.ahead.found_nothing(operation.steps, page.places);
            return;
        }
        going.due = time + pace.as_micros() as u64;
        going.waits = Some((number, time));
        if plan.kind == OperationKind::Cancel && plan.force {
            self.clients.forced.extend(page.tasks.iter().map(|task| task.id));
        }
        let mut operations = Operations::default();
        operations.push(|bytes| bytes.extend(plan.step(&operation, &page)));
        self.ask((DRIVERS + n, 0), n, shard, Vec::new(), Asked::Operations(operations, None), number);
    }

    /// What has become of a step.
    pub(crate) fn on_stepped(&mut self, n: usize, number: u64, told: &Told) {
        let time = self.time;
        let Some(process) = self.nodes[n].process_mut() else { return };
        let waits = |going: &Going| going.waits.is_some_and(|(waits, _)| waits == number);
        let Some((key, going)) = process.going.iter_mut().find(|(_, going)| waits(going)) else { return };
        let is_done = matches!(told, Told::Applied(_, outcomes) if *outcomes[0] == Outcome::Done);
        if is_done {
            going.waits = None;
        } else {
            *going = Going::begin(process.runner.replica.applied(key.0), time + AGAIN);
            self.reach("step-again");
        }
    }
}
