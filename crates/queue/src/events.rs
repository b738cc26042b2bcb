//! What happens in a shard, for those who follow it: every change of a task, pauses, and operations on many tasks.
//!
//! Events are told when entries are applied, and are no part of the state. Every replica tells the same ones for the same entry in the same
//! order, also when it applies its log again after a restart, so an event is known for ever by its log entry and its place there.
//!
//! An event is its length (4 bytes), its kind (1 byte), tenant and queue (text; of an operation the queue is empty), and what its kind has. Nodes do
//! not exchange these bytes, and keep them in memory only.

use base::codec::{Malformed, Reader, Write};
use base::rows::{Row, RowWriter};
use base::{Index, ScheduleTime, ShardId, Term};

use crate::history::{Actor, Entry, Happening};
use crate::id::TaskId;
use crate::machine::{QueueMachine, Signal};
use crate::operations::{self, Operation, OperationKind, OperationState, operation_text};
use crate::outcome::State;
use crate::outcome_codec::{id, put_id};

const TASK: u8 = 0;
const PAUSED: u8 = 1;
const RESUMED: u8 = 2;
const PURGED: u8 = 3;
const STARTED: u8 = 4;
const PROGRESS: u8 = 5;
const ENDED: u8 = 6;

/// Room for the event of one operation: most have one.
const BYTES: usize = 128;

/// Events of one log entry, told together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The shard.
    pub shard: ShardId,
    /// The entry.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// When, by the schedule clock.
    pub at: ScheduleTime,
    /// The place of the first one among the entry's events.
    pub first: u32,
    /// How many.
    pub count: u32,
    /// They, see [`read`].
    pub bytes: Vec<u8>,
}

/// What was told of an entry so far.
#[derive(Default)]
pub(crate) struct Telling {
    bytes: Vec<u8>,
    count: u32,
    place: u32,
    /// An entry has begun since the state was read.
    has_begun: bool,
}

/// Something that has happened.
#[derive(Debug, PartialEq)]
pub struct Event<'a> {
    /// Whose.
    pub tenant: &'a str,
    /// In which queue; empty: in several.
    pub command: &'a str,
    /// What.
    pub body: Body<'a>,
}

/// What has happened.
#[derive(Debug, PartialEq)]
pub enum Body<'a> {
    /// Something to a task.
    Task {
        /// To which.
        id: TaskId,
        /// What.
        entry: Entry<'a>,
    },
    /// A queue was paused.
    Paused(Queue<'a>),
    /// It goes on.
    Resumed(Queue<'a>),
    /// An operation has deleted what waited in it.
    Purged(Queue<'a>),
    /// An operation began.
    Started(Box<Operation>),
    /// It went on.
    Progress(Box<Operation>),
    /// It ended, or was stopped.
    Ended(Box<Operation>),
}

/// What is told of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue<'a> {
    /// When, by the schedule clock.
    pub at: ScheduleTime,
    /// Who.
    pub actor: Actor,
    /// Its name; may be empty.
    pub by: &'a str,
    /// Why; may be empty.
    pub reason: &'a str,
    /// When it ends by itself.
    pub until: Option<ScheduleTime>,
}

impl Telling {
    fn put(&mut self, kind: u8, tenant: &str, command: &str, body: impl FnOnce(&mut Vec<u8>)) {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(BYTES);
        }
        let begin = self.bytes.len();
        self.bytes.put_u32(0);
        self.bytes.put_u8(kind);
        self.bytes.put_bytes(tenant.as_bytes());
        self.bytes.put_bytes(command.as_bytes());
        body(&mut self.bytes);
        let length = (self.bytes.len() - begin - 4) as u32;
        self.bytes[begin..begin + 4].copy_from_slice(&length.to_le_bytes());
        self.count += 1;
    }
}

impl Queue<'_> {
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.put_varint(self.at.0);
        bytes.put_u8(self.actor as u8);
        bytes.put_bytes(self.by.as_bytes());
        bytes.put_bytes(self.reason.as_bytes());
        bytes.put_option(self.until.map(|time| time.0));
    }

    fn read<'a>(r: &mut Reader<'a>) -> Result<Queue<'a>, Malformed> {
        Ok(Queue {
            at: ScheduleTime(r.varint()?),
            actor: Actor::NAMES.get(usize::from(r.u8()?)).ok_or(Malformed)?.0,
            by: r.text()?,
            reason: r.text()?,
            until: r.option()?.map(ScheduleTime),
        })
    }
}

impl QueueMachine {
    /// An entry begins. What was told before the state was read is not known.
    pub(crate) fn begin_telling(&mut self, signals: &mut Vec<Signal>) {
        self.telling.place = 0;
        if !std::mem::replace(&mut self.telling.has_begun, true) {
            let (_, incarnation) = *self.epochs.last().expect("the first epoch begins at key 0");
            let (shard, index) = (self.shard, self.entry.index);
            signals.push(Signal::Begun { shard, index, incarnation: base::Incarnation(incarnation) });
        }
    }

    /// Hands over what was told since the last time.
    pub(crate) fn hand_over(&mut self, signals: &mut Vec<Signal>) {
        let telling = &mut self.telling;
        let count = std::mem::take(&mut telling.count);
        if count > 0 {
            let (first, bytes) = (telling.place, std::mem::take(&mut telling.bytes));
            telling.place += count;
            let (shard, index, term, at) = (self.shard, self.entry.index, self.entry.term, self.clocks.schedule);
            signals.push(Signal::Told(Told { shard, index, term, at, first, count, bytes }));
        }
    }

    /// Tells what has happened to a task of this queue.
    pub(crate) fn tell_task(&mut self, queue: u32, key: u64, entry: &Entry<'_>) {
        let id = self.id(key);
        let queue = &self.queues[queue as usize];
        self.telling.put(TASK, &queue.tenant, &queue.command, |bytes| {
            put_id(&id, bytes);
            entry.put(FROM_THE_BEGINNING, bytes);
        });
    }

    /// Tells that nothing is left of a task.
    pub(crate) fn tell_deleted(&mut self, queue: u32, key: u64, from: Option<State>) {
        let reason = self.acting.operation.map(|id| operation_text(&id)).unwrap_or_default();
        let (index, at) = (self.entry.index, self.clocks.schedule);
        let entry = Entry { from, reason: &reason, ..Entry::new(Happening::Deleted, index, at, self.acting.actor) };
        self.tell_task(queue, key, &entry);
    }

    pub(crate) fn tell_paused(&mut self, queue: u32, by: &str, reason: &str, until: Option<ScheduleTime>) {
        let told = Queue { at: self.clocks.schedule, actor: self.acting.actor, by, reason, until };
        let queue = &self.queues[queue as usize];
        self.telling.put(PAUSED, &queue.tenant, &queue.command, |bytes| told.put(bytes));
    }

    pub(crate) fn tell_resumed(&mut self, queue: u32) {
        let told = Queue { at: self.clocks.schedule, actor: self.acting.actor, by: "", reason: "", until: None };
        let queue = &self.queues[queue as usize];
        self.telling.put(RESUMED, &queue.tenant, &queue.command, |bytes| told.put(bytes));
    }
}

/// Entries of events count from nothing.
const FROM_THE_BEGINNING: (Index, ScheduleTime) = (Index(0), ScheduleTime(0));

impl Telling {
    /// Tells that an operation began on this shard.
    pub(crate) fn started(&mut self, operation: &Operation) {
        self.put(STARTED, &operation.tenant, "", |bytes| operations::put(operation, &mut RowWriter::new(bytes)));
    }

    /// Tells that it went on, was stopped, or goes on again.
    pub(crate) fn progress(&mut self, operation: &Operation) {
        self.put(PROGRESS, &operation.tenant, "", |bytes| operations::put(operation, &mut RowWriter::new(bytes)));
    }

    /// Tells that it ended, and of queues that are empty by it.
    pub(crate) fn ended(&mut self, operation: &Operation) {
        let purged = operation.kind == OperationKind::QueuePurge && !operation.dry_run;
        if purged && operation.state == OperationState::Succeeded {
            let (at, reason) = (operation.updated_at, operation_text(&operation.id));
            let told = Queue { at, actor: Actor::Admin, by: &operation.by, reason: &reason, until: None };
            for command in &operation.commands {
                self.put(PURGED, &operation.tenant, command, |bytes| told.put(bytes));
            }
        }
        self.put(ENDED, &operation.tenant, "", |bytes| operations::put(operation, &mut RowWriter::new(bytes)));
    }
}

/// Reads the events of [`Told::bytes`], in order.
///
/// # Errors
/// The bytes are no events.
pub fn read(shard: ShardId, bytes: &[u8]) -> impl Iterator<Item = Result<Event<'_>, Malformed>> {
    let mut reader = Reader::new(bytes);
    std::iter::from_fn(move || {
        if reader.is_empty() {
            return None;
        }
        let mut event = || {
            let length = reader.u32()?;
            let mut one = Reader::new(reader.take(length as usize)?);
            read_one(shard, &mut one)
        };
        Some(event())
    })
}

fn read_one<'a>(shard: ShardId, r: &mut Reader<'a>) -> Result<Event<'a>, Malformed> {
    let kind = r.u8()?;
    let (tenant, command) = (r.text()?, r.text()?);
    let operation = |r: &Reader<'a>| operations::read(shard, &mut Row(r.rest()).reader()).map(Box::new);
    let body = match kind {
        TASK => Body::Task { id: id(r)?, entry: Entry::read(FROM_THE_BEGINNING, r)? },
        PAUSED => Body::Paused(Queue::read(r)?),
        RESUMED => Body::Resumed(Queue::read(r)?),
        PURGED => Body::Purged(Queue::read(r)?),
        STARTED => Body::Started(operation(r)?),
        PROGRESS => Body::Progress(operation(r)?),
        ENDED => Body::Ended(operation(r)?),
        _ => return Err(Malformed),
    };
    Ok(Event { tenant, command, body })
}
