//! Operations on many tasks, one step at a time: which ones are under way, how far they have come, and what became of them.
//!
//! The state machine keeps the record and applies the steps; which tasks are next is found in a checkpoint by whoever leads the shard. A
//! step names the one before it, so that a step which is proposed twice, or by two leaders, is applied once. Everything works on what was
//! there when the operation began: a task that came later is left alone, and one that has been dealt with does not fit any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::codec::{Malformed, Reader, Write};
use base::machine::Effects;
use base::rows::{RowReader, RowWriter, Value};
use base::{Index, Millis, ScheduleTime};

use crate::id::{TaskId, TaskKey};
use crate::machine::QueueMachine;
use crate::op::{Begin, Delete, Op, Step};
use crate::outcome::{Outcome, Rejection, State};
use crate::{checkpoint, codec};

/// Operations that a shard knows at a time, ended ones included.
pub const OPERATIONS_MAX: usize = 1_000;

/// Tasks that an operation which changes nothing shows as examples.
pub const SAMPLES_MAX: usize = 20;

/// How long an operation is known after its end.
const KEPT: Millis = Millis(7 * 24 * 3_600_000);

/// Names an operation; chosen at random by whoever asks for it.
pub type OperationId = [u8; 16];

/// An operation's name as clients see it.
pub fn operation_text(id: &OperationId) -> String {
    format!("op-{:032x}", u128::from_be_bytes(*id))
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperationKind {
    /// Dead tasks come back.
    DeadRedrive,
    /// Dead tasks are deleted.
    DeadPurge,
    /// Waiting tasks are deleted.
    QueuePurge,
    /// Tasks are cancelled.
    Cancel,
}

impl OperationKind {
    /// Every kind, in the order of the variants, with the name that clients see.
    pub const NAMES: [(OperationKind, &'static str); 4] = [
        (OperationKind::DeadRedrive, "dlq.redrive"),
        (OperationKind::DeadPurge, "dlq.purge"),
        (OperationKind::QueuePurge, "queue.purge"),
        (OperationKind::Cancel, "tasks.cancel"),
    ];

    /// The name that clients see.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<OperationKind> {
        Self::NAMES.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperationState {
    /// Steps are taken.
    Running,
    /// Somebody has stopped it; it can go on.
    Stopped,
    /// It has seen everything.
    Succeeded,
    /// It cannot go on.
    Failed,
}

impl OperationState {
    /// Every state, in the order of the variants, with the name that clients see.
    pub const NAMES: [(OperationState, &'static str); 4] = [
        (OperationState::Running, "RUNNING"),
        (OperationState::Stopped, "STOPPED"),
        (OperationState::Succeeded, "SUCCEEDED"),
        (OperationState::Failed, "FAILED"),
    ];

    /// The name that clients see.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<OperationState> {
        Self::NAMES.iter().find(|(_, known)| *known == name).map(|(state, _)| *state)
    }
}

/// One operation, or what one shard has done of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Its name.
    pub id: OperationId,
    /// Whose tasks.
    pub tenant: Arc<str>,
    /// What it does.
    pub kind: OperationKind,
    /// The queues that it may touch; none: all of the tenant.
    pub commands: Vec<Arc<str>>,
    /// What was asked for, in the asker's words.
    pub request: Arc<[u8]>,
    /// It only counts.
    pub dry_run: bool,
    /// Who asked for it.
    pub by: Arc<str>,
    /// How it stands.
    pub state: OperationState,
    /// The entry that began it.
    pub begun: Index,
    /// Where it goes on, in the words of whoever makes its steps; empty: at the beginning.
    pub cursor: Arc<[u8]>,
    /// Steps made.
    pub steps: u64,
    /// Tasks looked at.
    pub processed: u64,
    /// Tasks changed, or that would be.
    pub changed: u64,
    /// Tasks that did not fit any more when their turn came.
    pub skipped: u64,
    /// How many there would be, if that is known.
    pub estimated_total: Option<u64>,
    /// Some that would be changed.
    pub samples: Vec<TaskId>,
    /// When it began.
    pub started_at: ScheduleTime,
    /// When it went on last.
    pub updated_at: ScheduleTime,
    /// When it ended.
    pub finished_at: Option<ScheduleTime>,
    /// Why it cannot go on; may be empty.
    pub error: Arc<str>,
}

impl Operation {
    /// Whether a task was there, in its present state, when the operation began. `since`: the entry that made it so.
    pub fn was_there(&self, since: Index) -> bool {
        since < self.begun
    }

    /// Whether it is under way, and does the same to some of these queues; none: all of the tenant.
    pub fn overlaps(&self, tenant: &str, kind: OperationKind, commands: &[&str]) -> bool {
        let shares = || commands.iter().any(|command| self.commands.iter().any(|own| **own == **command));
        self.state == OperationState::Running
            && *self.tenant == *tenant
            && self.kind == kind
            && (self.commands.is_empty() || commands.is_empty() || shares())
    }
}

/// The operations of a shard.
#[derive(Default)]
pub(crate) struct Operations {
    /// By the order in which they began.
    all: BTreeMap<u64, Operation>,
    numbers: BTreeMap<OperationId, u64>,
    /// Those that have ended, by when.
    ended: BTreeSet<(ScheduleTime, u64)>,
    /// Rows that differ from the checkpoint.
    changed: BTreeSet<u64>,
}

impl Operations {
    fn find(&self, tenant: &str, id: &OperationId) -> Result<u64, Rejection> {
        let number = self.numbers.get(id).filter(|number| *self.all[number].tenant == *tenant);
        number.copied().ok_or(Rejection::NoOperation)
    }

    /// Those of a tenant, or all, in the order in which they began.
    pub(crate) fn of<'a>(&'a self, tenant: Option<&'a str>) -> impl Iterator<Item = &'a Operation> {
        self.all.values().filter(move |operation| tenant.is_none_or(|tenant| *operation.tenant == *tenant))
    }

    /// Forgets what ended long ago.
    pub(crate) fn tidy(&mut self, now: ScheduleTime) {
        while let Some((_, number)) = self.ended.first().copied().filter(|(end, _)| *end + KEPT <= now) {
            self.ended.pop_first();
            if let Some(operation) = self.all.remove(&number) {
                self.numbers.remove(&operation.id);
            }
            self.changed.insert(number);
        }
    }

    /// The rows that have changed: a number, and the operation if it is still known.
    pub(crate) fn take_changed(&mut self) -> Vec<(u64, Option<&Operation>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|number| (number, self.all.get(&number))).collect()
    }

    /// Takes an operation over, from a checkpoint or as a new one.
    pub(crate) fn restore(&mut self, number: u64, operation: Operation) {
        self.numbers.insert(operation.id, number);
        self.ended.extend(operation.finished_at.map(|end| (end, number)));
        self.all.insert(number, operation);
    }
}

impl QueueMachine {
    /// Begins an operation. Repeating does nothing.
    pub(crate) fn begin(&mut self, begin: &Begin<'_>) -> Result<Outcome, Rejection> {
        if self.operations.find(begin.tenant, &begin.id).is_ok() {
            return Ok(Outcome::Done);
        }
        self.refuse_conflict(begin.tenant, begin.kind, &begin.commands)?;
        if self.operations.all.len() >= OPERATIONS_MAX || self.operations.numbers.contains_key(&begin.id) {
            return Err(Rejection::TooManyOperations);
        }
        let number = self.operations.all.last_key_value().map_or(1, |(last, _)| last + 1);
        let now = self.clocks.schedule;
        let operation = Operation {
            id: begin.id,
            tenant: begin.tenant.into(),
            kind: begin.kind,
            commands: begin.commands.iter().map(|command| Arc::from(*command)).collect(),
            request: begin.request.into(),
            dry_run: begin.dry_run,
            by: self.cut(begin.by).into(),
            state: OperationState::Running,
            begun: self.entry.index,
            cursor: Arc::default(),
            steps: 0,
            processed: 0,
            changed: 0,
            skipped: 0,
            estimated_total: begin.takes_all.then(|| self.estimate_of(begin)),
            samples: Vec::new(),
            started_at: now,
            updated_at: now,
            finished_at: None,
            error: Arc::default(),
        };
        self.telling.started(&operation);
        self.operations.restore(number, operation);
        self.operations.changed.insert(number);
        Ok(Outcome::Done)
    }

    fn refuse_conflict(&self, tenant: &str, kind: OperationKind, commands: &[&str]) -> Result<(), Rejection> {
        match self.operations.all.values().find(|operation| operation.overlaps(tenant, kind, commands)) {
            Some(operation) => Err(Rejection::OperationConflict { with: operation.id }),
            None => Ok(()),
        }
    }

    /// How many tasks an operation will meet that takes all of its queues.
    fn estimate_of(&self, begin: &Begin<'_>) -> u64 {
        let Some(owner) = self.tenant_ids.get(begin.tenant) else { return 0 };
        let of = |queue: &u32| {
            let depth = self.queues[*queue as usize].depth();
            match begin.kind {
                OperationKind::DeadRedrive | OperationKind::DeadPurge => depth.dead,
                OperationKind::QueuePurge => depth.ready_total() + depth.delayed,
                OperationKind::Cancel => depth.ready_total() + depth.delayed + depth.leased,
            }
        };
        let queues = &self.tenants[*owner as usize].queues;
        if begin.commands.is_empty() {
            queues.values().map(of).sum()
        } else {
            begin.commands.iter().filter_map(|command| queues.get(*command)).map(of).sum()
        }
    }

    /// Takes the next step of an operation. One that is not the next has no effect.
    pub(crate) fn step(&mut self, step: &Step<'_>, effects: &mut Effects<Self>) -> Result<Outcome, Rejection> {
        let number = self.operations.find(step.tenant, &step.id)?;
        let operation = &self.operations.all[&number];
        // M27: a step that was taken is taken again.
        let is_next = operation.steps == step.after || base::planted::is(27);
        if operation.state != OperationState::Running || !is_next {
            return Err(Rejection::OperationState);
        }
        self.acting.operation = Some(step.id);
        let (mut changed, mut skipped) = (0, 0);
        for item in &step.items {
            // Nothing but what changes one task is encoded as an item.
            let applied = codec::decode(item).map(|op| match op {
                Op::Redrive(_) | Op::Cancel { .. } | Op::Delete(_) => self.apply_op(&op, effects).is_ok(),
                _ => false,
            });
            *(if applied == Ok(true) { &mut changed } else { &mut skipped }) += 1;
        }
        let now = self.clocks.schedule;
        let operation = self.operations.all.get_mut(&number).expect("it was found");
        operation.steps += 1;
        operation.cursor = step.cursor.into();
        operation.changed += changed + step.counted;
        operation.skipped += skipped;
        operation.processed += changed + skipped + step.counted;
        let room = SAMPLES_MAX - operation.samples.len();
        operation.samples.extend(step.samples.iter().take(room));
        let is_same_second = operation.updated_at.0 / 1_000 == now.0 / 1_000;
        operation.updated_at = now;
        if step.is_last {
            operation.state = OperationState::Succeeded;
            operation.finished_at = Some(now);
            self.telling.ended(operation);
            self.operations.ended.insert((now, number));
        } else if !is_same_second {
            self.telling.progress(operation);
        }
        self.operations.changed.insert(number);
        Ok(Outcome::Done)
    }

    /// Stops an operation, or lets it go on, or ends it because it cannot. Repeating does nothing.
    pub(crate) fn turn(
        &mut self,
        tenant: &str,
        id: &OperationId,
        to: OperationState,
        error: &str,
    ) -> Result<Outcome, Rejection> {
        use OperationState::{Failed, Running, Stopped};
        let number = self.operations.find(tenant, id)?;
        let operation = &self.operations.all[&number];
        match (operation.state, to) {
            (from, to) if from == to => return Ok(Outcome::Done),
            (Running, Stopped) | (Running | Stopped, Failed) => {}
            (Stopped, Running) => {
                let commands: Vec<&str> = operation.commands.iter().map(|command| &**command).collect();
                self.refuse_conflict(tenant, operation.kind, &commands)?;
            }
            _ => return Err(Rejection::OperationState),
        }
        let error: Arc<str> = self.cut(error).into();
        let now = self.clocks.schedule;
        let operation = self.operations.all.get_mut(&number).expect("it was found");
        operation.state = to;
        operation.updated_at = now;
        operation.finished_at = (to == Failed).then_some(now);
        operation.error = error;
        match to {
            Failed => self.telling.ended(operation),
            _ => self.telling.progress(operation),
        }
        self.operations.ended.extend(operation.finished_at.map(|end| (end, number)));
        self.operations.changed.insert(number);
        Ok(Outcome::Done)
    }

    /// Deletes one task that waits, or one dead task if it ended in that entry. Nobody is told of its end.
    pub(crate) fn delete(&mut self, delete: &Delete<'_>) -> Result<Outcome, Rejection> {
        let Delete { tenant, task, ended_at, key } = *delete;
        match (self.live(tenant, task), ended_at) {
            (Some(slot), None) => self.remove_waiting(slot)?,
            (Some(_), Some(_)) => return Err(Rejection::NotEnded),
            (None, None) => return Err(Rejection::NotLive),
            (None, Some(ended_at)) => {
                let place = self.ended.returnable.get(&task.0).copied().ok_or(Rejection::NotLive)?;
                if *self.queues[place.queue as usize].tenant != *tenant {
                    return Err(Rejection::NotLive);
                }
                if place.ended_at != ended_at {
                    return Err(Rejection::RecordChanged);
                }
                self.unretain(task.0, place);
                let from = Some(State::Dead).filter(|_| place.table == checkpoint::DEAD);
                self.tell_deleted(place.queue, task.0, from);
                self.changes.note(self.entry.index, task.0);
            }
        }
        if key.is_some_and(|scope| self.keys.unbind(&scope, task.0)) {
            self.saves.freed_keys.push(task.0);
        }
        Ok(Outcome::Done)
    }
}

/// Appends an operation to a row.
pub(crate) fn put(operation: &Operation, row: &mut RowWriter<'_>) {
    row.text(&operation.tenant);
    row.value(Value::Blob(&operation.id));
    row.text(operation.kind.name());
    row.text(operation.state.name());
    let mut commands = Vec::new();
    operation.commands.iter().for_each(|command| commands.put_bytes(command.as_bytes()));
    row.value(Value::Blob(&commands));
    row.readable(&operation.request);
    row.number(u64::from(operation.dry_run));
    row.text(&operation.by);
    row.number(operation.begun.0);
    row.value(Value::Blob(&operation.cursor));
    for number in [operation.steps, operation.processed, operation.changed, operation.skipped] {
        row.number(number);
    }
    row.maybe_number(operation.estimated_total);
    let mut samples = Vec::new();
    for id in &operation.samples {
        samples.put_u64(id.incarnation);
        samples.put_u64(id.key.0);
    }
    row.value(Value::Blob(&samples));
    row.number(operation.started_at.0);
    row.number(operation.updated_at.0);
    row.maybe_number(operation.finished_at.map(|time| time.0));
    row.maybe_text(&operation.error);
}

/// Reads back what [`put`] wrote.
pub(crate) fn read(shard: base::ShardId, r: &mut RowReader<'_>) -> Result<Operation, Malformed> {
    let tenant: Arc<str> = r.text()?.into();
    let id = r.maybe_array()?.ok_or(Malformed)?;
    let kind = OperationKind::from_name(r.text()?).ok_or(Malformed)?;
    let state = OperationState::from_name(r.text()?).ok_or(Malformed)?;
    let mut names = Reader::new(r.maybe_bytes()?.ok_or(Malformed)?);
    let mut commands = Vec::new();
    while !names.is_empty() {
        commands.push(names.text()?.into());
    }
    let request = r.maybe_bytes()?.ok_or(Malformed)?.into();
    let dry_run = r.number()? != 0;
    let by = r.text()?.into();
    let begun = Index(r.number()?);
    let cursor = r.maybe_bytes()?.ok_or(Malformed)?.into();
    let (steps, processed, changed, skipped) = (r.number()?, r.number()?, r.number()?, r.number()?);
    let estimated_total = r.maybe_number()?;
    let mut ids = Reader::new(r.maybe_bytes()?.ok_or(Malformed)?);
    let mut samples = Vec::new();
    while !ids.is_empty() {
        samples.push(TaskId { incarnation: ids.u64()?, shard, key: TaskKey(ids.u64()?) });
    }
    Ok(Operation {
        id,
        tenant,
        kind,
        commands,
        request,
        dry_run,
        by,
        state,
        begun,
        cursor,
        steps,
        processed,
        changed,
        skipped,
        estimated_total,
        samples,
        started_at: ScheduleTime(r.number()?),
        updated_at: ScheduleTime(r.number()?),
        finished_at: r.maybe_number()?.map(ScheduleTime),
        error: r.text()?.into(),
    })
}
