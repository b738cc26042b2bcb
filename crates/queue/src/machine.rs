//! The state of one shard and the order in which an entry is applied to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::codec::Malformed;
use base::limits::DUE_PER_ENTRY;
use base::machine::{
    Admission, Effects, EntryInfo, NextDue, Notice, ShardInfo, StateMachine, UnknownOperation, WaitKey,
};
use base::map::IdMap;
use base::rows::{Changes, RowSource, Schema, Unreadable};
use base::{Incarnation, Index, Millis, ShardId, Stamps, Term};

use crate::changes::RecentChanges;
use crate::checkpoint::{self, SCHEMA, Saves};
use crate::codec;
use crate::due::DueIndex;
use crate::events::{Telling, Told};
use crate::history::{Acting, Terms};
use crate::id::{TaskId, TaskKey};
use crate::idempotency::Keys;
use crate::op::{Claim, Op};
use crate::operations::Operations;
use crate::outcome::{Answer, Outcome, Query, Rejection, State};
use crate::outcome_codec;
use crate::pause::Pauses;
use crate::payload::PayloadCache;
use crate::policy::Policy;
use crate::ready::{Queue, Supplier, Tenant, work_in, work_of};
use crate::retention::Ended;
use crate::slab::Slab;
use crate::task::{Ending, change_of};

/// All queues of one shard: a deterministic state machine. See the crate's documentation for how to read it.
pub struct QueueMachine {
    pub(crate) shard: ShardId,
    /// From which key on which incarnation is part of task ids, ascending.
    pub(crate) epochs: Vec<(u64, u64)>,
    /// The clocks of the last entry, forced to be non-decreasing.
    pub(crate) clocks: Stamps,
    pub(crate) policy: Policy,
    pub(crate) terms: Terms,
    /// Whose operation is applied.
    pub(crate) acting: Acting,
    pub(crate) telling: Telling,
    /// The entry being applied.
    pub(crate) entry: EntryInfo,
    pub(crate) creations_in_entry: u16,
    pub(crate) grants_in_entry: u32,
    pub(crate) tasks: Slab,
    /// Place of the task that becomes ready next.
    pub(crate) next_place: u64,
    pub(crate) queues: Vec<Queue>,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) tenant_ids: BTreeMap<Arc<str>, u32>,
    /// Who can serve waiting claims, by wait key.
    pub(crate) suppliers: IdMap<Supplier>,
    pub(crate) due: DueIndex,
    pub(crate) pauses: Pauses,
    pub(crate) operations: Operations,
    pub(crate) keys: Keys,
    pub(crate) ended: Ended,
    pub(crate) saves: Saves,
    pub(crate) changes: RecentChanges,
    /// Most live tasks; 0: no limit. Not replicated: it guards the leader's memory before an operation is proposed.
    live_tasks_max: u64,
    /// Delays and leases that an entry's stamps end at most.
    pub(crate) due_per_entry: usize,
    /// This node's settings, which it makes those of the shard when it leads. Not replicated.
    own_policy: Option<Policy>,
    pub(crate) cache: PayloadCache,
}

/// What observers learn.
#[derive(Clone, Debug)]
pub enum Signal {
    /// A new task.
    Created {
        /// Its queue's name.
        command: Arc<str>,
    },
    /// A task was leased.
    Claimed {
        /// Its queue's name.
        command: Arc<str>,
    },
    /// A task ended.
    Ended {
        /// Its queue's name.
        command: Arc<str>,
        /// How.
        state: State,
        /// From creation to end.
        lived: Millis,
    },
    /// The first entry since the state was read: of entries before it no events are known.
    Begun {
        /// The shard.
        shard: ShardId,
        /// The entry.
        index: Index,
        /// Under which its tasks are created.
        incarnation: Incarnation,
    },
    /// Events for those who follow them.
    Told(Told),
    /// A lease ran out.
    LeaseExpired {
        /// Its queue's name.
        command: Arc<str>,
    },
}

impl QueueMachine {
    pub(crate) fn new(info: ShardInfo) -> QueueMachine {
        QueueMachine {
            shard: info.shard,
            epochs: vec![(0, info.incarnation.0)],
            clocks: Stamps::default(),
            policy: Policy::default(),
            terms: Terms::default(),
            acting: Acting::SYSTEM,
            telling: Telling::default(),
            entry: EntryInfo { term: Term(0), index: Index(0), stamps: Stamps::default(), seed: [0; 16] },
            creations_in_entry: 0,
            grants_in_entry: 0,
            tasks: Slab::default(),
            next_place: 1,
            queues: Vec::new(),
            tenants: Vec::new(),
            tenant_ids: BTreeMap::new(),
            suppliers: IdMap::default(),
            due: DueIndex::default(),
            pauses: Pauses::default(),
            operations: Operations::default(),
            keys: Keys::default(),
            ended: Ended::default(),
            saves: Saves::default(),
            changes: RecentChanges::default(),
            live_tasks_max: 0,
            due_per_entry: DUE_PER_ENTRY,
            own_policy: None,
            cache: PayloadCache::default(),
        }
    }

    /// Refuses creations before the log once so many tasks are live; 0: never.
    pub fn limit_live_tasks(&mut self, live_tasks_max: u64) {
        self.live_tasks_max = live_tasks_max;
    }

    /// Lets an entry's stamps end at most so many delays and leases, at least 1; `limits::DUE_PER_ENTRY` unless this is called. All
    /// replicas of a shard must be given the same number.
    pub fn limit_due(&mut self, due_per_entry: usize) {
        self.due_per_entry = due_per_entry.max(1);
    }

    /// Keeps payloads of live tasks beyond so many bytes only in the checkpoint, as soon as they are in it.
    pub fn limit_payload_memory(&mut self, bytes_max: u64) {
        self.cache.bytes_max = bytes_max;
    }

    /// Makes these settings those of the shard when this node leads it.
    pub fn set_own_policy(&mut self, policy: Policy) {
        self.own_policy = Some(policy);
    }

    /// Its shard.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Which incarnation is part of task ids from which key on, ascending; it changes only with a restore.
    pub fn epochs(&self) -> &[(u64, u64)] {
        &self.epochs
    }

    /// The incarnation that a task's id shows.
    pub(crate) fn incarnation_of(&self, key: u64) -> u64 {
        let epoch = self.epochs.iter().rev().find(|(first, _)| *first <= key);
        epoch.expect("the first epoch begins at key 0").1
    }

    /// A task's id.
    pub(crate) fn id(&self, key: u64) -> TaskId {
        TaskId::new(base::Incarnation(self.incarnation_of(key)), self.shard, TaskKey(key))
    }

    pub(crate) fn apply_op(&mut self, op: &Op<'_>, effects: &mut Effects<Self>) -> Result<Outcome, Rejection> {
        match op {
            Op::Create(create) => self.create(create, effects),
            Op::Claim(claim) => Ok(Outcome::Claimed(self.claim(claim, effects))),
            Op::Extend { lease, length } => self.extend(lease, *length),
            Op::Release { lease } => self.release(lease, effects),
            Op::Nack { lease, delay, reason } => self.nack(lease, *delay, reason, effects),
            Op::Complete { lease, result, error } => self.end(lease, &Ending::Completed { result, error }, effects),
            Op::Fail { lease, result, error } => self.end(lease, &Ending::Failed { result: *result, error }, effects),
            Op::Cancel { tenant, task, reason, force } => self.cancel(tenant, *task, reason, *force, effects),
            Op::Redrive(redrive) => self.redrive(redrive, effects),
            Op::Edit(edit) => self.edit(edit, effects),
            Op::Amend(amend) => self.amend(amend),
            Op::Delete(delete) => self.delete(delete),
            Op::Begin(begin) => self.begin(begin),
            Op::Step(step) => self.step(step, effects),
            Op::Turn { tenant, id, to, error } => self.turn(tenant, id, *to, error),
            Op::Pause { tenant, command, length, reason, by } => self.pause(tenant, command, *length, reason, by),
            Op::Resume { tenant, command } => Ok(self.resume(tenant, command, effects)),
            Op::Configure(policy) => {
                self.policy = *policy;
                Ok(Outcome::Configured)
            }
        }
    }

    /// What a claim that finds nothing waits for.
    fn claim_keys(claim: &Claim<'_>, keys: &mut Vec<WaitKey>) {
        if claim.commands.is_empty() {
            keys.push(work_of(claim.tenant));
        } else {
            keys.extend(claim.commands.iter().map(|command| work_in(claim.tenant, command)));
        }
    }
}

impl StateMachine for QueueMachine {
    type Outcome = Outcome;
    type Query = Query;
    type Answer = Answer;
    type Signal = Signal;

    fn schema() -> Schema {
        SCHEMA
    }

    fn restore(info: ShardInfo, rows: &mut dyn RowSource) -> Result<QueueMachine, Unreadable> {
        checkpoint::restore(info, rows)
    }

    fn renew(
        rows: &mut dyn RowSource,
        first: Index,
        incarnation: Incarnation,
        changes: &mut Changes,
    ) -> Result<(), Unreadable> {
        checkpoint::renew(rows, first, incarnation, changes)
    }

    fn stamps(&self) -> Stamps {
        self.clocks
    }

    fn begin_entry(&mut self, entry: &EntryInfo, effects: &mut Effects<Self>) {
        // M16: a new leader gives all leases their full length again.
        if base::planted::is(16) && entry.term != self.entry.term {
            self.renew_leases();
        }
        self.entry = *entry;
        self.terms.note(entry.index, entry.term);
        self.acting = Acting::SYSTEM;
        self.creations_in_entry = 0;
        self.grants_in_entry = 0;
        self.changes.begin(entry.index);
        self.begin_telling(&mut effects.signals);
        self.clocks.lease = self.clocks.lease.max(entry.stamps.lease);
        self.clocks.schedule = self.clocks.schedule.max(entry.stamps.schedule);
        self.due_phase(effects);
        let freed = self.keys.tidy(self.clocks.lease, self.policy.idempotency_window);
        self.saves.freed_keys.extend(freed);
        self.drop_slices();
        self.operations.tidy(self.clocks.schedule);
        self.hand_over(&mut effects.signals);
        effects.woken.extend(self.changes.take_untold().map(change_of));
    }

    fn apply(&mut self, operation: &[u8], effects: &mut Effects<Self>) -> Result<Outcome, UnknownOperation> {
        let op = codec::decode(operation)?;
        self.acting = Acting::of(&op);
        let outcome = self.apply_op(&op, effects).unwrap_or_else(Outcome::Rejected);
        self.hand_over(&mut effects.signals);
        effects.woken.extend(self.changes.take_untold().map(change_of));
        Ok(outcome)
    }

    fn encode_outcome(outcome: &Outcome, bytes: &mut Vec<u8>) {
        outcome_codec::encode(outcome, bytes);
    }

    fn decode_outcome(bytes: &[u8]) -> Result<Outcome, Malformed> {
        outcome_codec::decode(bytes)
    }

    fn opening(&self, operation: &mut Vec<u8>) -> bool {
        let differs = self.own_policy.is_some_and(|own| own != self.policy);
        if let (true, Some(own)) = (differs, self.own_policy) {
            codec::encode(&Op::Configure(own), operation);
        }
        differs
    }

    fn admit(&self, operation: &[u8], keys: &mut Vec<WaitKey>) -> Admission<Outcome> {
        if !codec::is_admitted_by_look(operation) {
            return Admission::Propose;
        }
        match codec::decode(operation) {
            Ok(Op::Claim(claim)) if self.next_for(&claim).is_none() => {
                Self::claim_keys(&claim, keys);
                Admission::Nothing(Outcome::Claimed(Vec::new()))
            }
            Ok(Op::Create(_)) if self.live_tasks_max > 0 && self.tasks.len() as u64 >= self.live_tasks_max => {
                Admission::Refuse(Outcome::Rejected(Rejection::TooManyTasks))
            }
            _ => Admission::Propose,
        }
    }

    fn found_nothing(&self, outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Claimed(grants) if grants.is_empty())
    }

    fn available(&self, key: WaitKey) -> usize {
        self.supply(key)
    }

    fn query(&self, query: &Query) -> (Answer, Option<WaitKey>) {
        self.answer(query)
    }

    fn next_due(&self) -> NextDue {
        let mut due = self.due.next_due();
        let drop = self.next_drop();
        due.lease = due.lease.into_iter().chain(drop.lease).chain(self.pauses.next()).min();
        due.schedule = due.schedule.into_iter().chain(drop.schedule).min();
        due.overdue = self.is_overdue();
        due
    }

    fn on_leader_ready(&self) -> Option<Notice> {
        self.leases_resumed()
    }

    fn freeze(&mut self) {
        self.freeze_state();
    }

    fn collect(&mut self, rows_max: usize, changes: &mut Changes) -> bool {
        self.collect_rows(rows_max, changes)
    }

    fn saved(&mut self) -> Box<dyn Send> {
        self.end_save()
    }
}
