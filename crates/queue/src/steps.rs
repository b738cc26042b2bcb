//! The steps of an operation on many tasks: whoever leads a shard looks for the next tasks in a checkpoint, and proposes what is done to
//! each. What must not be lost stands in the state machine; a plan says the same at every leader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::{Millis, ShardId};

use crate::codec;
use crate::id::shard_of;
use crate::idempotency;
use crate::listing::{Listing, Order, Place, Reached, Search, decode_places, encode_places};
use crate::op::{Delete, Op, Redrive, Step};
use crate::operations::{Operation, OperationKind, SAMPLES_MAX};
use crate::outcome::TaskView;
use crate::record;
use crate::search::Filter;

/// Tasks in one step, and in one step of an operation that only counts.
const STEP_MAX: usize = 500;
const COUNTED_MAX: usize = 5_000;

/// Steps of an operation follow each other at this distance, or further apart if it is slow.
const STEP: Duration = Duration::from_millis(100);

/// What an operation is asked for, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What it does.
    pub kind: OperationKind,
    /// To which tasks; its states are among those that the kind can take.
    pub filter: Filter,
    /// Tasks that come back keep their attempts.
    pub keep_attempts: bool,
    /// Another priority of tasks that come back.
    pub priority: Option<u8>,
    /// Delay until tasks that come back are ready.
    pub delay: Millis,
    /// Why tasks are cancelled.
    pub reason: String,
    /// Cancel tasks that somebody holds as well.
    pub force: bool,
    /// Tasks per second, at least 1.
    pub rate: u64,
    /// It only counts.
    pub dry_run: bool,
}

/// Tasks that an operation meets next.
#[derive(Clone, Debug)]
pub struct Page {
    /// They.
    pub tasks: Vec<TaskView>,
    /// Where the next page begins.
    pub places: BTreeMap<ShardId, Place>,
    /// There is none.
    pub is_last: bool,
}

/// How far whoever makes the steps has looked without finding a task.
#[derive(Clone, Debug, Default)]
pub struct Ahead(Option<(u64, BTreeMap<ShardId, Place>)>);

impl Ahead {
    /// A look behind so many steps has come so far, and found nothing.
    pub fn found_nothing(&mut self, steps: u64, places: BTreeMap<ShardId, Place>) {
        self.0 = Some((steps, places));
    }

    /// Where an operation of so many steps goes on: where the last look has ended, or where the last step says if it was taken since then,
    /// by whoever led meanwhile.
    pub fn places(&mut self, steps: u64, cursor: &[u8]) -> BTreeMap<ShardId, Place> {
        match self.0.take() {
            Some((before, places)) if before == steps => places,
            _ => decode_places(cursor).unwrap_or_default(),
        }
    }
}

impl Plan {
    /// The queues that it may touch; none: all of the tenant.
    pub fn commands(&self) -> Vec<&str> {
        self.filter.commands.iter().flatten().map(|command| &**command).collect()
    }

    /// The shards in which such tasks can be.
    pub fn shards(&self, count: u16) -> BTreeSet<ShardId> {
        match &self.filter.commands {
            Some(commands) => commands.iter().map(|command| shard_of(&self.filter.tenant, command, count)).collect(),
            None => (0..count).map(ShardId).collect(),
        }
    }

    /// How many tasks a step has, and how long it takes, where so many shards share the rate.
    pub fn pace(&self, shards: usize) -> (usize, Duration) {
        if self.dry_run {
            return (COUNTED_MAX, Duration::ZERO);
        }
        let rate = (self.rate as f64 / shards.max(1) as f64).max(0.1);
        let tasks = (rate * STEP.as_secs_f64()).clamp(1.0, STEP_MAX as f64).floor();
        (tasks as usize, Duration::from_secs_f64(tasks / rate))
    }

    /// The list of its next tasks, at most so many, from these places on.
    pub fn listing(&self, limit: usize, places: BTreeMap<ShardId, Place>) -> Listing {
        let order = match self.kind {
            OperationKind::DeadRedrive | OperationKind::DeadPurge => Order::Finished { descending: false },
            OperationKind::QueuePurge | OperationKind::Cancel => Order::Created { descending: false },
        };
        let with_payload = self.kind == OperationKind::DeadRedrive && !self.dry_run;
        Listing::new(Search { filter: self.filter.clone(), order, limit, with_payload, with_result: false }, places)
    }

    /// The step, encoded, that does to a page of tasks what `operation` asks for.
    pub fn step(&self, operation: &Operation, page: &Page) -> Vec<u8> {
        let items: Vec<Vec<u8>> =
            if self.dry_run { Vec::new() } else { page.tasks.iter().filter_map(|task| self.item(task)).collect() };
        let samples = page.tasks.iter().map(|task| task.id).take(if self.dry_run { SAMPLES_MAX } else { 0 });
        let step = Step {
            tenant: &operation.tenant,
            id: operation.id,
            after: operation.steps,
            cursor: &encode_places(&page.places),
            is_last: page.is_last,
            items: items.iter().map(Vec::as_slice).collect(),
            counted: if self.dry_run { page.tasks.len() as u64 } else { 0 },
            samples: samples.collect(),
        };
        let mut bytes = Vec::new();
        codec::encode(&Op::Step(step), &mut bytes);
        bytes
    }

    /// What is done to one task, unless nothing is left to do.
    fn item(&self, task: &TaskView) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let (tenant, key) = (&*self.filter.tenant, task.id.key);
        let scope = || idempotency::scope_digest(tenant, &task.command, &task.idempotency_key);
        match self.kind {
            OperationKind::DeadRedrive => {
                let mut row = Vec::new();
                record::encode(task, &mut base::rows::RowWriter::new(&mut row));
                let redrive = Redrive {
                    tenant,
                    task: key,
                    ended_at: task.ended_at.unwrap_or_default(),
                    record: &row,
                    keep_attempts: self.keep_attempts,
                    delay: self.delay,
                    priority: self.priority,
                };
                codec::encode(&Op::Redrive(redrive), &mut bytes);
            }
            OperationKind::DeadPurge | OperationKind::QueuePurge => {
                let key_scope = (!task.idempotency_key.is_empty()).then(scope);
                let delete = Delete { tenant, task: key, ended_at: task.ended_at, key: key_scope };
                codec::encode(&Op::Delete(delete), &mut bytes);
            }
            OperationKind::Cancel if task.cancel_requested && !self.force => return None,
            OperationKind::Cancel => {
                let cancel = Op::Cancel { tenant, task: key, reason: &self.reason, force: self.force };
                codec::encode(&cancel, &mut bytes);
            }
        }
        Some(bytes)
    }
}

impl Page {
    /// What [`Plan::listing`] has found and how far it has come, without what came later than the operation.
    pub fn of(
        operation: &Operation,
        mut tasks: Vec<TaskView>,
        places: BTreeMap<ShardId, Place>,
        reached: &Reached,
    ) -> Page {
        // In their order, nothing that was there when it began follows what came later.
        let since = |task: &TaskView| task.ended_at.unwrap_or_else(|| task.id.key.index());
        let came_later = |task: &TaskView| match task.ended_at {
            Some(_) => task.finished_at.is_some_and(|time| time > operation.started_at),
            None => !operation.was_there(since(task)),
        };
        let is_last = *reached == Reached::End || tasks.last().is_some_and(came_later);
        tasks.retain(|task| operation.was_there(since(task)));
        Page { tasks, places, is_last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: who has looked ahead, and comes back when others have taken steps, goes on behind these.
    #[test]
    fn what_was_looked_at_before_a_step_is_forgotten() {
        let places = |key: i64| BTreeMap::from([(ShardId(0), Place { order: key, key })]);
        let mut ahead = Ahead::default();
        assert_eq!(ahead.places(0, &[]), BTreeMap::new());
        ahead.found_nothing(2, places(7));
        assert_eq!(ahead.places(2, &encode_places(&places(5))), places(7));
        ahead.found_nothing(2, places(7));
        assert_eq!(ahead.places(3, &encode_places(&places(9))), places(9));
    }

    #[test]
    fn shards_share_the_rate() {
        let filter = Filter::of(&"acme".into());
        let plan = Plan {
            kind: OperationKind::DeadRedrive,
            filter,
            keep_attempts: false,
            priority: None,
            delay: Millis(0),
            reason: String::new(),
            force: false,
            rate: 1,
            dry_run: false,
        };
        for (rate, shards, tasks, ms) in [(100, 1, 10, 100), (100, 4, 2, 80), (1, 1, 1, 1_000), (1, 4, 1, 4_000)] {
            let plan = Plan { rate, ..plan.clone() };
            assert_eq!(plan.pace(shards), (tasks, Duration::from_millis(ms)), "{rate} in {shards}");
        }
        assert_eq!(Plan { dry_run: true, ..plan }.pace(4), (COUNTED_MAX, Duration::ZERO));
    }
}
