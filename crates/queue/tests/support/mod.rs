//! A shard without replication: operations become entries of their own, and a checkpoint is kept in memory.

#![expect(dead_code, reason = "each test binary uses its part")]

use base::machine::{Effects, EntryInfo, ShardInfo, StateMachine, WaitKey};
use base::rows::Changes;
use base::rowstore::RowStore;
use base::{Incarnation, Index, LeaseTime, Millis, ScheduleTime, ShardId, Stamps, Term};
use queue::outcome::{Outcome, TaskView};
use queue::{Answer, Op, Payload, Policy, Query, QueueMachine, TaskId, codec, record};

pub(crate) const INFO: ShardInfo = ShardInfo { shard: ShardId(0), incarnation: Incarnation(0xffff_c0de_c0de_c0de) };

/// Where ended tasks are looked for: completed, failed, dead.
const ENDED: [u8; 3] = [queue::checkpoint::COMPLETED, queue::checkpoint::FAILED, queue::checkpoint::DEAD];

pub(crate) struct Shard {
    pub(crate) machine: QueueMachine,
    pub(crate) store: RowStore,
    stamps: Stamps,
    next: Index,
    pub(crate) effects: Effects<QueueMachine>,
}

impl Shard {
    /// A new shard whose wall clock shows `start`, milliseconds since the Unix epoch.
    pub(crate) fn new(start: u64) -> Shard {
        let mut store = RowStore::default();
        let machine = QueueMachine::restore(INFO, &mut store).expect("no rows are the initial state");
        let stamps = Stamps { lease: LeaseTime(0), schedule: ScheduleTime(start) };
        let mut shard = Shard { machine, store, stamps, next: Index(2), effects: Effects::default() };
        shard.tick();
        shard
    }

    /// Goes on at the time and the entry of another one.
    pub(crate) fn catch_up_with(&mut self, other: &Shard) {
        (self.stamps, self.next) = (other.stamps, other.next);
    }

    /// Applies one operation in an entry of its own.
    pub(crate) fn apply(&mut self, op: &Op<'_>) -> Outcome {
        let mut outcomes = self.apply_all(std::slice::from_ref(op));
        outcomes.pop().expect("one operation has one outcome")
    }

    /// Applies an entry.
    pub(crate) fn apply_all(&mut self, ops: &[Op<'_>]) -> Vec<Outcome> {
        self.tick();
        ops.iter().map(|op| self.apply_here(op)).collect()
    }

    /// Applies one more operation in the entry begun last.
    pub(crate) fn apply_here(&mut self, op: &Op<'_>) -> Outcome {
        let mut bytes = Vec::new();
        codec::encode(op, &mut bytes);
        assert_eq!(codec::decode(&bytes).as_ref(), Ok(op), "an operation reads back from its bytes");
        self.machine.apply(&bytes, &mut self.effects).expect("the operation is known")
    }

    /// The entry begun last.
    pub(crate) fn entry(&self) -> Index {
        Index(self.next.0 - 1)
    }

    /// Begins an entry, which applies what is due.
    pub(crate) fn tick(&mut self) {
        let index = self.next;
        self.next = index.next();
        self.effects = Effects::default();
        let mut seed = [0; 16];
        seed[..8].copy_from_slice(&base::rng::mix(index.0).to_le_bytes());
        let entry = EntryInfo { term: Term(1), index, stamps: self.stamps, seed };
        self.machine.begin_entry(&entry, &mut self.effects);
    }

    pub(crate) fn stamps(&self) -> Stamps {
        self.stamps
    }

    /// Lets both clocks go on.
    pub(crate) fn advance(&mut self, by: Millis) {
        self.stamps.lease = self.stamps.lease + by;
        self.stamps.schedule = self.stamps.schedule + by;
    }

    /// Lets the two clocks go on at rates of their own.
    pub(crate) fn advance_clocks(&mut self, lease: Millis, schedule: Millis) {
        self.stamps.lease = self.stamps.lease + lease;
        self.stamps.schedule = self.stamps.schedule + schedule;
    }

    /// Moves the wall clock alone.
    pub(crate) fn jump_wall_clock(&mut self, by: Millis) {
        self.stamps.schedule = self.stamps.schedule + by;
    }

    /// How long until the state machine wants an entry, if that is within `limit`.
    pub(crate) fn next_due_within(&self, limit: Millis) -> Option<Millis> {
        let due = self.machine.next_due();
        let lease = due.lease.map(|time| time - self.stamps.lease);
        let schedule = due.schedule.map(|time| time - self.stamps.schedule);
        lease.into_iter().chain(schedule).min().filter(|wait| *wait <= limit)
    }

    /// Saves a checkpoint, a few rows at a time, while `meanwhile` may apply more; the checkpoint holds the state at the call.
    pub(crate) fn save(&mut self, rows: usize, mut meanwhile: impl FnMut(&mut Shard)) {
        self.machine.freeze();
        let mut changes = Changes::default();
        while !self.machine.collect(rows, &mut changes) {
            meanwhile(self);
        }
        self.store.apply(&changes).expect("stored rows exist");
        drop(self.machine.saved());
    }

    /// Goes on from a checkpoint of the present state.
    pub(crate) fn restart(&mut self) {
        self.save(usize::MAX, |_| ());
        self.machine = QueueMachine::restore(INFO, &mut self.store).expect("the checkpoint reads back");
    }

    pub(crate) fn query(&self, query: &Query) -> (Answer, Option<WaitKey>) {
        self.machine.query(query)
    }

    pub(crate) fn policy(&self) -> Policy {
        match self.query(&Query::Policy) {
            (Answer::Policy(policy), _) => policy,
            (other, _) => panic!("asked for the policy, got {other:?}"),
        }
    }

    /// A task wherever it stands: live, ended and in memory, ended and in the checkpoint.
    pub(crate) fn task(&self, id: TaskId) -> Option<TaskView> {
        self.find(id, |tenant| Query::Task { tenant: tenant.into(), id, until_ended: false })
    }

    /// The same with its history.
    pub(crate) fn history(&self, id: TaskId) -> Option<TaskView> {
        self.find(id, |tenant| Query::History { tenant: tenant.into(), id, after: None })
    }

    fn find(&self, id: TaskId, query: impl Fn(&str) -> Query) -> Option<TaskView> {
        let mut over = Vec::new();
        for tenant in ["acme", "other"] {
            match self.query(&query(tenant)).0 {
                Answer::Task(view) => return Some(view.as_ref().clone()),
                Answer::NotLive { dropped } => over = dropped,
                other => panic!("asked for a task, got {other:?}"),
            }
        }
        let key = id.key.0 as i64;
        let (slice, row) = ENDED.iter().find_map(|table| self.store.find(*table, key))?;
        (!over.contains(&slice)).then(|| record::decode(row.0, id).expect("the row reads back"))
    }

    /// A task's payload, fetched from the checkpoint if it is only there.
    pub(crate) fn payload(&self, task: &TaskView) -> Vec<u8> {
        match &task.payload {
            Payload::Resident(bytes) => bytes.to_vec(),
            Payload::Stored(_) => {
                let stored = self.store.find(queue::checkpoint::PAYLOADS, task.id.key.0 as i64);
                let (_, row) = stored.expect("a payload outside memory is in the checkpoint");
                row.reader().maybe_bytes().expect("the row reads back").expect("it has a payload").to_vec()
            }
        }
    }

    /// The record of a task as a redrive carries it.
    pub(crate) fn record(&self, mut task: TaskView) -> Vec<u8> {
        task.payload = Payload::Resident(self.payload(&task).into());
        let mut row = Vec::new();
        record::encode(&task, &mut base::rows::RowWriter::new(&mut row));
        row
    }

    pub(crate) fn tables(&self) -> String {
        let count = |(table, name): (usize, &str)| format!("{name} {}\n", self.store.count(table as u8));
        let schema = QueueMachine::schema();
        schema.tables.iter().map(|table| table.name).enumerate().map(count).collect()
    }
}
