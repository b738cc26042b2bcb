//! What a checkpoint of a shard holds, which rows of it change, and how the state is read back from it.
//!
//! Live tasks have one row each, and their payloads one that is written once. Ended tasks stand in slices (see `retention`). A task that
//! was born and ended between two checkpoints costs one row. Saving goes on while entries are applied: a task of the frozen state
//! that is about to change is written first.

use std::sync::Arc;
use std::vec::IntoIter;

use base::codec::{Malformed, Reader, Write};
use base::machine::ShardInfo;
use base::map::IdMap;
use base::rows::{
    Changes, Column, Index as RowIndex, RowSource, RowWriter, Schema, Table, TableId, Unreadable, Value, View,
};
use base::{Incarnation, Index, LeaseTime, ScheduleTime, Stamps};

use crate::history::{History, Terms};
use crate::id::{LeaseToken, TaskKey};
use crate::idempotency::Binding;
use crate::machine::QueueMachine;
use crate::operations;
use crate::outcome::{State, Totals};
use crate::pause::Pause;
use crate::payload::Payload;
use crate::policy::Policy;
use crate::ready::PRIORITIES;
use crate::record;
use crate::retention::{Returnable, Slice};
use crate::slab::Slot;
use crate::task::{Due, Extras, Lease, Saving, Stage, Task};

/// Tasks that have not ended.
pub const LIVE: TableId = 0;
/// Their payloads, under the same keys.
pub const PAYLOADS: TableId = 1;
/// Completed tasks, in slices.
pub const COMPLETED: TableId = 2;
/// Failed and cancelled tasks, in slices.
pub const FAILED: TableId = 3;
/// Dead-lettered tasks, in slices.
pub const DEAD: TableId = 4;
const QUEUES: TableId = 5;
const TENANTS: TableId = 6;
const KEYS: TableId = 7;
pub(crate) const SLICES: TableId = 8;
pub(crate) const EPOCHS: TableId = 9;
pub(crate) const SHARD: TableId = 10;
const OPERATIONS: TableId = 11;

macro_rules! columns {
    ($($name:ident $kind:ident),* $(,)?) => { &[$(Column { name: stringify!($name), kind: stringify!($kind) }),*] };
}

/// Few values: so a list merges the groups that it wants, each in the order of its keys.
const BY_QUEUE: RowIndex =
    RowIndex { name: "queue", group: &["tenant", "command", "state", "priority"], order: None, present: None };
const BY_KEY: RowIndex = RowIndex {
    name: "key",
    group: &["tenant", "command", "idempotency_key"],
    order: None,
    present: Some("idempotency_key"),
};
const STATE_OF_QUEUE: &[&str] = &["tenant", "command", "state"];
const OF_ENDED: &[RowIndex] =
    &[BY_QUEUE, BY_KEY, RowIndex { name: "finished", group: &[], order: Some("finished_at"), present: None }];

pub(crate) const TABLES: &[Table] = &[
    Table {
        name: "live",
        sliced: false,
        columns: columns! {
            tenant TEXT, command TEXT, state TEXT, priority INTEGER, attempts INTEGER, max_attempts INTEGER,
            created_at INTEGER, updated_at INTEGER, place INTEGER, due_lease INTEGER, due_schedule INTEGER,
            worker TEXT, lease_index INTEGER, lease_suffix BLOB, lease_until INTEGER,
            cancel_requested INTEGER, cancel_reason TEXT, error TEXT, webhook TEXT, idempotency_key TEXT, payload_bytes INTEGER,
            history BLOB,
        },
        indexes: &[
            BY_QUEUE,
            BY_KEY,
            RowIndex {
                name: "ready",
                group: &["tenant", "command", "priority"],
                order: Some("place"),
                present: Some("place"),
            },
            RowIndex { name: "due_lease", group: STATE_OF_QUEUE, order: Some("due_lease"), present: Some("due_lease") },
            RowIndex {
                name: "due_schedule",
                group: STATE_OF_QUEUE,
                order: Some("due_schedule"),
                present: Some("due_schedule"),
            },
        ],
    },
    Table { name: "payloads", sliced: false, columns: columns! { payload TEXT }, indexes: &[] },
    Table { name: "completed", sliced: true, columns: record::COLUMNS, indexes: OF_ENDED },
    Table { name: "failed", sliced: true, columns: record::COLUMNS, indexes: OF_ENDED },
    Table { name: "dead", sliced: true, columns: record::COLUMNS, indexes: OF_ENDED },
    Table {
        name: "queues",
        sliced: false,
        columns: columns! {
            tenant TEXT, command TEXT, created INTEGER, claimed INTEGER, completed INTEGER, failed INTEGER, dead INTEGER,
            cancelled INTEGER, expired INTEGER, rounds BLOB, updated_at INTEGER,
            paused INTEGER, pause_ends INTEGER, paused_until INTEGER, pause_reason TEXT, paused_by TEXT,
        },
        indexes: &[],
    },
    Table { name: "tenants", sliced: false, columns: columns! { tenant TEXT, rounds BLOB }, indexes: &[] },
    Table {
        name: "idempotency",
        sliced: false,
        columns: columns! { scope BLOB, body BLOB, since INTEGER },
        indexes: &[],
    },
    Table {
        name: "slices",
        sliced: false,
        columns: columns! { ending INTEGER, closes INTEGER, last_keyed INTEGER },
        indexes: &[],
    },
    Table { name: "epochs", sliced: false, columns: columns! { incarnation INTEGER }, indexes: &[] },
    Table {
        name: "shard",
        sliced: false,
        columns: columns! {
            shard INTEGER, lease_clock INTEGER, schedule_clock INTEGER, next_place INTEGER, next_slice INTEGER,
            live_tasks INTEGER, policy BLOB, terms BLOB,
        },
        indexes: &[],
    },
    Table {
        name: "operations",
        sliced: false,
        columns: columns! {
            tenant TEXT, id BLOB, kind TEXT, state TEXT, queues BLOB, request TEXT, dry_run INTEGER, subject TEXT, begun INTEGER,
            position BLOB, steps INTEGER, processed INTEGER, changed INTEGER, skipped INTEGER, estimated_total INTEGER, samples BLOB,
            started_at INTEGER, updated_at INTEGER, finished_at INTEGER, error TEXT,
        },
        indexes: &[],
    },
];

/// The id of a row's task, as clients write it.
macro_rules! id_column {
    () => {
        "(SELECT printf('%08x-%04x-8%03x-', (incarnation >> 16) & 4294967295, incarnation & 65535, \
         (SELECT shard FROM shard)) FROM epochs WHERE epochs.key <= {table}.key ORDER BY epochs.key DESC LIMIT 1) || \
         printf('%04x-%012x', (({table}.key >> 48) & 16383) | 32768, {table}.key & 281474976710655) AS id"
    };
}

macro_rules! status_column {
    () => {
        "CASE state WHEN 'DELAYED' THEN 'PENDING' WHEN 'READY' THEN 'PENDING' WHEN 'LEASED' THEN 'IN_PROGRESS' \
         WHEN 'COMPLETED' THEN 'COMPLETED' ELSE 'FAILED' END AS status"
    };
}

/// The tables and views of a shard's checkpoint.
pub(crate) const SCHEMA: Schema = Schema {
    tables: TABLES,
    views: &[
        View {
            name: "tasks",
            over: &[LIVE, COMPLETED, FAILED, DEAD],
            select: concat!(
                "SELECT ",
                id_column!(),
                ", tenant, command, ",
                status_column!(),
                ", state, priority, attempts, max_attempts, created_at, error FROM {table}"
            ),
        },
        View {
            name: "counts",
            over: &[LIVE, COMPLETED, FAILED, DEAD],
            select: "SELECT tenant, command AS queue, state, count(*) AS tasks FROM {table} GROUP BY tenant, command, state",
        },
    ],
};

/// Which of two checkpoints a changed task belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Unchanged since it was saved.
    #[default]
    Clean,
    /// Changed; `Saves::current` tells whether before or after the freeze.
    Even,
    /// The other one.
    Odd,
}

/// What has changed since the last freeze, and what of the frozen state is not collected yet.
pub(crate) struct Saves {
    /// Marks the tasks that changed since the last freeze.
    pub(crate) current: Mark,
    pub(crate) dirty: Vec<u64>,
    /// Ended tasks that had rows among the live ones.
    pub(crate) removed: Vec<(u64, Saving)>,
    /// Ended tasks that came back: (table, slice, key).
    pub(crate) returned: Vec<(TableId, u32, u64)>,
    /// The slices of those, by key: until the next save the checkpoint shows them as they were.
    pub(crate) outdated: IdMap<u32>,
    /// The same of the save in progress.
    pub(crate) outdating: IdMap<u32>,
    /// Ended tasks in the order in which they ended.
    pub(crate) ended: Vec<u64>,
    pub(crate) keys: Vec<([u8; 16], Binding)>,
    pub(crate) freed_keys: Vec<u64>,
    pub(crate) queues: Vec<u32>,
    pub(crate) tenants: Vec<u32>,
    pub(crate) slices: bool,
    pub(crate) dropped: Vec<(TableId, u32)>,
    /// The same of the save in progress.
    pub(crate) dropping: Vec<(TableId, u32)>,
    frozen: Option<Frozen>,
}

/// What is left to collect of the frozen state.
struct Frozen {
    returned: IntoIter<(TableId, u32, u64)>,
    ended: IntoIter<u64>,
    removed: IntoIter<(u64, Saving)>,
    dirty: IntoIter<u64>,
    keys: IntoIter<([u8; 16], Binding)>,
    freed_keys: IntoIter<u64>,
    queues: IntoIter<u32>,
    tenants: IntoIter<u32>,
    /// Rows that could not wait, because what they describe changes: tasks and queues about to change, clocks. They are listed after what
    /// concerns ended tasks.
    ready: Changes,
    /// Tasks whose payload has got a row by this save.
    payloads: Vec<u64>,
}

impl QueueMachine {
    /// Notes that a queue's numbers are about to change, so that the next checkpoint holds the new ones and a save in progress the old ones.
    pub(crate) fn change_queue(&mut self, queue: u32) {
        let before = self.queues[queue as usize].mark;
        if before != self.saves.current {
            if before != Mark::Clean {
                let mut frozen = self.saves.frozen.take().expect("a frozen queue belongs to a save");
                self.put_queue(queue, &mut frozen.ready);
                self.saves.frozen = Some(frozen);
            }
            self.queues[queue as usize].mark = self.saves.current;
            self.saves.queues.push(queue);
        }
        self.queues[queue as usize].updated_at = self.clocks.schedule;
    }

    /// The same of whose turn it is among a tenant's queues.
    pub(crate) fn change_tenant(&mut self, owner: u32) {
        let before = self.tenants[owner as usize].mark;
        if before == self.saves.current {
            return;
        }
        if before != Mark::Clean {
            let mut frozen = self.saves.frozen.take().expect("a frozen tenant belongs to a save");
            self.put_tenant(owner, &mut frozen.ready);
            self.saves.frozen = Some(frozen);
        }
        self.tenants[owner as usize].mark = self.saves.current;
        self.saves.tenants.push(owner);
    }

    /// Whether something with this mark has changed before the freeze and is not listed yet.
    fn is_frozen(&self, mark: Mark) -> bool {
        mark != Mark::Clean && mark != self.saves.current
    }

    /// Writes a task of the frozen state before it changes.
    pub(crate) fn save_before_change(&mut self, slot: Slot) {
        let mut frozen = self.saves.frozen.take().expect("a frozen task belongs to a save");
        self.put_live(slot, &mut frozen);
        self.saves.frozen = Some(frozen);
    }

    pub(crate) fn freeze_state(&mut self) {
        assert!(self.saves.frozen.is_none(), "the previous save has ended");
        self.saves.current = match self.saves.current {
            Mark::Even => Mark::Odd,
            _ => Mark::Even,
        };
        let saves = &mut self.saves;
        let mut frozen = Frozen {
            returned: std::mem::take(&mut saves.returned).into_iter(),
            ended: std::mem::take(&mut saves.ended).into_iter(),
            removed: std::mem::take(&mut saves.removed).into_iter(),
            dirty: std::mem::take(&mut saves.dirty).into_iter(),
            keys: std::mem::take(&mut saves.keys).into_iter(),
            freed_keys: std::mem::take(&mut saves.freed_keys).into_iter(),
            queues: std::mem::take(&mut saves.queues).into_iter(),
            tenants: std::mem::take(&mut saves.tenants).into_iter(),
            ready: Changes::default(),
            payloads: Vec::new(),
        };
        self.ended.saving = std::mem::take(&mut self.ended.recent);
        self.saves.outdating = std::mem::take(&mut self.saves.outdated);
        self.put_small_tables(&mut frozen.ready);
        self.saves.frozen = Some(frozen);
    }

    /// Lists about `rows_max` more rows, and at once those that could not wait. Deletions of what came back go first and insertions of live
    /// tasks last, so that a task that ended, came back and ended again ends up where it is.
    pub(crate) fn collect_rows(&mut self, rows_max: usize, changes: &mut Changes) -> bool {
        let mut frozen = self.saves.frozen.take().expect("a save is in progress");
        let end = changes.len() + rows_max;
        while changes.len() < end
            && let Some((table, slice, key)) = frozen.returned.next()
        {
            changes.delete(table, slice, key as i64);
        }
        while changes.len() < end
            && let Some(key) = frozen.ended.next()
        {
            // What came back before the freeze is not among the ended any more.
            if let Some(ended) = self.ended.saving.get(&key) {
                changes.put(ended.table, ended.slice, key as i64, |row| record::encode(&ended.view, row));
            }
        }
        while changes.len() < end
            && let Some((key, saving)) = frozen.removed.next()
        {
            if saving.row {
                changes.delete(LIVE, 0, key as i64);
            }
            if saving.payload {
                changes.delete(PAYLOADS, 0, key as i64);
            }
        }
        // A task has at most one key in its life, so what is deleted here was never put back.
        while changes.len() < end
            && let Some((scope, binding)) = frozen.keys.next()
        {
            changes.put(KEYS, 0, binding.task as i64, |row| {
                row.value(base::rows::Value::Blob(&scope));
                row.value(base::rows::Value::Blob(&binding.body));
                row.number(binding.since.0);
            });
        }
        while changes.len() < end
            && let Some(key) = frozen.freed_keys.next()
        {
            changes.delete(KEYS, 0, key as i64);
        }
        while changes.len() < end
            && let Some(queue) = frozen.queues.next()
        {
            if self.is_frozen(self.queues[queue as usize].mark) {
                self.put_queue(queue, changes);
                self.queues[queue as usize].mark = Mark::Clean;
            }
        }
        while changes.len() < end
            && let Some(owner) = frozen.tenants.next()
        {
            if self.is_frozen(self.tenants[owner as usize].mark) {
                self.put_tenant(owner, changes);
                self.tenants[owner as usize].mark = Mark::Clean;
            }
        }
        while changes.len() + frozen.ready.len() < end
            && let Some(key) = frozen.dirty.next()
        {
            let Some(slot) = self.tasks.find(key) else { continue };
            if self.is_frozen(self.tasks.get(slot).saving.mark) {
                self.put_live(slot, &mut frozen);
                self.tasks.get_mut(slot).saving.mark = Mark::Clean;
            }
        }
        let live_ones_follow = frozen.returned.len() + frozen.ended.len() + frozen.removed.len() == 0;
        if live_ones_follow {
            changes.append(std::mem::take(&mut frozen.ready));
        }
        let others = frozen.keys.len() + frozen.freed_keys.len() + frozen.queues.len() + frozen.tenants.len();
        let done = live_ones_follow && others + frozen.dirty.len() == 0;
        self.saves.frozen = Some(frozen);
        done
    }

    /// The save is durable: forgets what was kept for readers, which the caller drops at leisure.
    pub(crate) fn end_save(&mut self) -> Box<dyn Send> {
        let frozen = self.saves.frozen.take().expect("a save is in progress");
        self.saves.dropping.clear();
        let evicted = self.evict_payloads(&frozen.payloads);
        let outdated = std::mem::take(&mut self.saves.outdating);
        Box::new((std::mem::take(&mut self.ended.saving), outdated, evicted, frozen))
    }

    fn put_live(&mut self, slot: Slot, frozen: &mut Frozen) {
        let task = self.tasks.get(slot);
        if !task.saving.payload {
            let Payload::Resident(payload) = &task.payload else {
                panic!("a payload outside memory is in the checkpoint")
            };
            frozen.ready.put(PAYLOADS, 0, task.key as i64, |row| row.readable(payload));
            frozen.payloads.push(task.key);
        }
        frozen.ready.put(LIVE, 0, task.key as i64, |row| self.live_row(task, row));
        let saving = &mut self.tasks.get_mut(slot).saving;
        saving.row = true;
        saving.payload = true;
    }

    fn live_row(&self, task: &Task, row: &mut RowWriter<'_>) {
        let queue = &self.queues[task.queue as usize];
        row.text(&queue.tenant);
        row.text(&queue.command);
        row.text(task.state().name());
        row.number(u64::from(task.priority));
        row.number(u64::from(task.attempts));
        row.number(u64::from(task.max_attempts));
        row.number(task.created_at.0);
        row.number(task.updated_at.0);
        let (place, due) = match &task.stage {
            Stage::Ready { place, .. } => (Some(*place), None),
            Stage::Delayed(due) => (None, Some(*due)),
            Stage::Leased(lease) => (None, Some(Due::Lease(lease.deadline))),
        };
        row.maybe_number(place);
        let (lease, schedule) = match due {
            None => (None, None),
            Some(Due::Lease(time)) => (Some(time.0), None),
            Some(Due::Schedule(time)) => (None, Some(time.0)),
        };
        row.maybe_number(lease);
        row.maybe_number(schedule);
        match task.lease() {
            None => (0..4).for_each(|_| row.value(base::rows::Value::Null)),
            Some(lease) => {
                row.text(&lease.worker);
                row.number(lease.token.index.0);
                row.value(base::rows::Value::Blob(&lease.token.suffix));
                row.number(lease.until.0);
            }
        }
        let none = Extras::default();
        let extras = task.extras.as_deref().unwrap_or(&none);
        row.number(u64::from(task.cancel_requested));
        row.maybe_text(&extras.cancel_reason);
        row.maybe_text(&extras.last_error);
        row.maybe_text(&extras.webhook);
        row.maybe_text(&extras.idempotency_key);
        row.number(task.payload.len() as u64);
        row.maybe_blob(extras.history.bytes());
    }

    fn put_queue(&self, queue: u32, changes: &mut Changes) {
        let entry = &self.queues[queue as usize];
        let totals = &entry.totals;
        changes.put(QUEUES, 0, i64::from(queue), |row| {
            row.text(&entry.tenant);
            row.text(&entry.command);
            for total in [
                totals.created,
                totals.claimed,
                totals.completed,
                totals.failed,
                totals.dead,
                totals.cancelled,
                totals.expired,
            ] {
                row.number(total);
            }
            put_rounds(row, entry.lists.iter().map(|list| list.round));
            row.number(entry.updated_at.0);
            Pause::put(entry.pause.as_deref(), row);
        });
    }

    fn put_tenant(&self, owner: u32, changes: &mut Changes) {
        let tenant = &self.tenants[owner as usize];
        let queue = tenant.queues.values().next().expect("a tenant is known by its first queue");
        changes.put(TENANTS, 0, i64::from(owner), |row| {
            row.text(&self.queues[*queue as usize].tenant);
            put_rounds(row, tenant.turns.iter().map(|turns| turns.round));
        });
    }

    /// Tables whose changes are few: written at the freeze.
    fn put_small_tables(&mut self, changes: &mut Changes) {
        self.saves.dropping = std::mem::take(&mut self.saves.dropped);
        for &(table, slice) in &self.saves.dropping {
            changes.drop_slice(table, slice);
            changes.delete(SLICES, 0, i64::from(slice));
        }
        if std::mem::take(&mut self.saves.slices) {
            for slice in &self.ended.slices {
                changes.put(SLICES, 0, i64::from(slice.number), |row| {
                    row.number(u64::from(slice.table));
                    row.number(slice.closes.0);
                    row.maybe_number(slice.last_keyed.map(|time| time.0));
                });
            }
        }
        for (number, operation) in self.operations.take_changed() {
            match operation {
                Some(operation) => changes.put(OPERATIONS, 0, number as i64, |row| operations::put(operation, row)),
                None => changes.delete(OPERATIONS, 0, number as i64),
            }
        }
        for (first, incarnation) in &self.epochs {
            changes.put(EPOCHS, 0, *first as i64, |row| row.number(*incarnation));
        }
        changes.put(SHARD, 0, 0, |row| {
            row.number(u64::from(self.shard.0));
            row.number(self.clocks.lease.0);
            row.number(self.clocks.schedule.0);
            row.number(self.next_place);
            row.number(u64::from(self.ended.next_slice));
            row.number(self.tasks.len() as u64);
            let mut policy = Vec::new();
            self.policy.encode(&mut policy);
            row.value(base::rows::Value::Blob(&policy));
            row.maybe_blob(&self.terms.encode());
        });
    }
}

fn put_rounds(row: &mut RowWriter<'_>, rounds: impl Iterator<Item = u64>) {
    let mut bytes = Vec::new();
    rounds.for_each(|round| bytes.put_varint(round));
    row.value(base::rows::Value::Blob(&bytes));
}

fn rounds(bytes: Option<&[u8]>) -> Result<[u64; PRIORITIES], Malformed> {
    let mut reader = Reader::new(bytes.ok_or(Malformed)?);
    let mut rounds = [0; PRIORITIES];
    for round in &mut rounds {
        *round = reader.varint()?;
    }
    reader.finish()?;
    Ok(rounds)
}

/// Builds the state from its rows.
pub(crate) fn restore(info: ShardInfo, rows: &mut dyn RowSource) -> Result<QueueMachine, Unreadable> {
    let mut machine = QueueMachine::new(info);
    let mut live_tasks = 0;
    rows.for_each(SHARD, &mut |_, _, row| {
        let mut row = row.reader();
        if row.number()? != u64::from(info.shard.0) {
            return Err(Malformed);
        }
        machine.clocks = Stamps { lease: LeaseTime(row.number()?), schedule: ScheduleTime(row.number()?) };
        machine.next_place = row.number()?;
        machine.ended.next_slice = row.narrow()?;
        live_tasks = row.number()?;
        machine.policy = Policy::decode(&mut Reader::new(row.maybe_bytes()?.ok_or(Malformed)?))?;
        machine.terms = Terms::decode(row.maybe_bytes()?.unwrap_or_default())?;
        machine.epochs.clear();
        Ok(())
    })?;
    rows.for_each(EPOCHS, &mut |_, key, row| {
        machine.epochs.push((key as u64, row.reader().number()?));
        Ok(())
    })?;
    if machine.epochs.is_empty() {
        machine.epochs.push((0, info.incarnation.0));
    }
    rows.for_each(QUEUES, &mut |_, _, row| restore_queue(&mut machine, &mut row.reader()))?;
    rows.for_each(TENANTS, &mut |_, _, row| {
        let mut row = row.reader();
        let owner = *machine.tenant_ids.get(row.text()?).ok_or(Malformed)?;
        for (turns, round) in machine.tenants[owner as usize].turns.iter_mut().zip(rounds(row.maybe_bytes()?)?) {
            turns.round = round;
        }
        Ok(())
    })?;
    let mut ready: Vec<(u64, Slot)> = Vec::new();
    rows.for_each(LIVE, &mut |_, key, row| {
        let task = restore_task(&mut machine, key as u64, &mut row.reader())?;
        match &task.stage {
            Stage::Ready { place, .. } => {
                let place = *place;
                ready.push((place, machine.tasks.insert(task)));
            }
            Stage::Delayed(due) => {
                let queue = &mut machine.queues[task.queue as usize];
                machine.due.delay(&mut queue.delayed, task.queue, *due, task.key);
                machine.tasks.insert(task);
            }
            Stage::Leased(lease) => {
                machine.due.lease(lease.deadline, task.key);
                machine.queues[task.queue as usize].holders.add(&lease.worker);
                machine.tasks.insert(task);
            }
        }
        Ok(())
    })?;
    if machine.tasks.len() as u64 != live_tasks {
        let found = machine.tasks.len();
        return Err(Unreadable(format!("table live holds {found} tasks and should hold {live_tasks}")));
    }
    ready.sort_unstable();
    for (place, slot) in ready {
        machine.push_ready(slot, place);
    }
    let mut bindings: Vec<([u8; 16], Binding)> = Vec::new();
    rows.for_each(KEYS, &mut |_, key, row| {
        let mut row = row.reader();
        let scope = row.maybe_array()?.ok_or(Malformed)?;
        let body = row.maybe_array()?.ok_or(Malformed)?;
        bindings.push((scope, Binding { task: key as u64, body, since: LeaseTime(row.number()?) }));
        Ok(())
    })?;
    bindings.sort_unstable_by_key(|(scope, binding)| (binding.since, *scope));
    for (scope, binding) in bindings {
        machine.keys.bind(scope, binding);
    }
    rows.for_each(SLICES, &mut |_, key, row| {
        let mut row = row.reader();
        machine.ended.slices.push(Slice {
            number: u32::try_from(key).map_err(|_| Malformed)?,
            table: row.narrow()?,
            closes: ScheduleTime(row.number()?),
            last_keyed: row.maybe_number()?.map(LeaseTime),
            returnable: Vec::new(),
        });
        Ok(())
    })?;
    rows.for_each(OPERATIONS, &mut |_, key, row| {
        machine.operations.restore(key as u64, operations::read(info.shard, &mut row.reader())?);
        Ok(())
    })?;
    for table in [FAILED, DEAD] {
        rows.for_each(table, &mut |slice, key, row| restore_returnable(&mut machine, table, slice, key as u64, row.0))?;
    }
    Ok(machine)
}

/// Lists what changes when the state in `rows` begins another life of its cluster, whose first entry is `first`: tasks are created under the
/// new incarnation from there on, and every lease is over, since whoever holds one may act in the life before.
pub(crate) fn renew(
    rows: &mut dyn RowSource,
    first: Index,
    incarnation: Incarnation,
    changes: &mut Changes,
) -> Result<(), Unreadable> {
    let mut now = None;
    rows.for_each(SHARD, &mut |_, _, row| {
        let mut row = row.reader();
        row.number()?;
        now = Some(row.number()?);
        Ok(())
    })?;
    // Without that row nothing has happened yet: the first epoch begins with the state.
    let Some(now) = now else { return Ok(()) };
    let key = TaskKey::new(first, 0).0;
    changes.put(EPOCHS, 0, key as i64, |row| row.number(incarnation.0));
    let column = |name: &str| TABLES[usize::from(LIVE)].columns.iter().position(|column| column.name == name);
    let (state, deadline) = (column("state"), column("due_lease"));
    rows.for_each(LIVE, &mut |_, key, row| {
        let mut values = Vec::with_capacity(TABLES[usize::from(LIVE)].columns.len());
        let mut reader = row.reader();
        while !reader.is_empty() {
            values.push(reader.value()?);
        }
        if state.and_then(|place| values.get(place)) == Some(&Value::Text(State::Leased.name())) {
            *deadline.and_then(|place| values.get_mut(place)).ok_or(Malformed)? = Value::Int(now as i64);
            changes.put(LIVE, 0, key, |row| values.iter().for_each(|value| row.value(*value)));
        }
        Ok(())
    })
}

fn restore_queue(machine: &mut QueueMachine, row: &mut base::rows::RowReader<'_>) -> Result<(), Malformed> {
    let (tenant, command) = (row.text()?, row.text()?);
    let queue = machine.open_queue(tenant, command).ok_or(Malformed)?;
    let entry = &mut machine.queues[queue as usize];
    entry.totals = Totals {
        created: row.number()?,
        claimed: row.number()?,
        completed: row.number()?,
        failed: row.number()?,
        dead: row.number()?,
        cancelled: row.number()?,
        expired: row.number()?,
    };
    for (list, round) in entry.lists.iter_mut().zip(rounds(row.maybe_bytes()?)?) {
        list.round = round;
    }
    entry.updated_at = ScheduleTime(row.number()?);
    entry.mark = Mark::Clean;
    let owner = entry.owner;
    if let Some(pause) = Pause::read(row)? {
        machine.keep_pause(queue, pause);
    }
    machine.tenants[owner as usize].mark = Mark::Clean;
    machine.saves.queues.clear();
    machine.saves.tenants.clear();
    Ok(())
}

fn restore_task(machine: &mut QueueMachine, key: u64, row: &mut base::rows::RowReader<'_>) -> Result<Task, Malformed> {
    let (tenant, command) = (row.text()?, row.text()?);
    let queue = machine.queue_id(tenant, command).ok_or(Malformed)?;
    let state = State::from_name(row.text()?).ok_or(Malformed)?;
    let priority: u8 = row.narrow()?;
    let attempts = row.narrow()?;
    let max_attempts = row.narrow()?;
    let created_at = ScheduleTime(row.number()?);
    let updated_at = ScheduleTime(row.number()?);
    let place = row.maybe_number()?;
    let due = match (row.maybe_number()?, row.maybe_number()?) {
        (Some(lease), None) => Some(Due::Lease(LeaseTime(lease))),
        (None, Some(schedule)) => Some(Due::Schedule(ScheduleTime(schedule))),
        (None, None) => None,
        (Some(_), Some(_)) => return Err(Malformed),
    };
    let worker: Arc<str> = row.text()?.into();
    let index = row.maybe_number()?;
    let suffix = row.maybe_array()?;
    let until = row.maybe_number()?;
    let stage = match (state, place, due) {
        (State::Ready, Some(place), None) => Stage::Ready { place, before: Slot::NONE, after: Slot::NONE },
        (State::Delayed, None, Some(due)) => Stage::Delayed(due),
        (State::Leased, None, Some(Due::Lease(deadline))) => Stage::Leased(Box::new(Lease {
            worker,
            token: LeaseToken {
                attempt: attempts,
                index: Index(index.ok_or(Malformed)?),
                suffix: suffix.ok_or(Malformed)?,
            },
            deadline,
            until: ScheduleTime(until.ok_or(Malformed)?),
        })),
        _ => return Err(Malformed),
    };
    let cancel_requested = row.number()? != 0;
    let mut extras = Extras {
        cancel_reason: row.text()?.into(),
        last_error: row.text()?.into(),
        webhook: row.text()?.into(),
        idempotency_key: row.text()?.into(),
        history: History::default(),
    };
    let payload = Payload::Stored(row.narrow()?);
    extras.history = History::read(row.maybe_bytes()?.unwrap_or_default(), (TaskKey(key).index(), created_at))?;
    let plain = extras.is_empty();
    if usize::from(priority) >= PRIORITIES || !row.is_empty() {
        return Err(Malformed);
    }
    Ok(Task {
        key,
        created_at,
        updated_at,
        payload,
        stage,
        extras: (!plain).then(|| Box::new(extras)),
        queue,
        attempts,
        max_attempts,
        priority,
        cancel_requested,
        saving: Saving { row: true, payload: true, ..Saving::default() },
    })
}

fn restore_returnable(
    machine: &mut QueueMachine,
    table: TableId,
    slice: u32,
    key: u64,
    row: &[u8],
) -> Result<(), Malformed> {
    let view = record::decode(row, machine.id(key))?;
    let queue = machine.queue_id(&view.tenant, &view.command).ok_or(Malformed)?;
    let home = machine.ended.slices.iter_mut().find(|known| known.number == slice && known.table == table);
    home.ok_or(Malformed)?.returnable.push(key);
    let ended_at = view.ended_at.ok_or(Malformed)?;
    machine.ended.returnable.insert(key, Returnable { slice, table, ended_at, queue });
    if table == DEAD {
        machine.queues[queue as usize].dead += 1;
    }
    Ok(())
}

impl Default for Saves {
    fn default() -> Saves {
        Saves {
            current: Mark::Even,
            dirty: Vec::new(),
            removed: Vec::new(),
            returned: Vec::new(),
            outdated: IdMap::default(),
            outdating: IdMap::default(),
            ended: Vec::new(),
            keys: Vec::new(),
            freed_keys: Vec::new(),
            queues: Vec::new(),
            tenants: Vec::new(),
            slices: false,
            dropped: Vec::new(),
            dropping: Vec::new(),
            frozen: None,
        }
    }
}
