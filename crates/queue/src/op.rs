//! Operations: what enters the log, decoded. They borrow from the entry that carries them.

use base::{Millis, ScheduleTime};

use crate::id::{LeaseToken, TaskId, TaskKey};
use crate::operations::{OperationId, OperationKind, OperationState};
use crate::policy::Policy;

/// One operation on a shard's queues. Names and texts are within their limits: the edge checks them.
#[derive(Clone, Debug, PartialEq)]
pub enum Op<'a> {
    /// A new task.
    Create(Create<'a>),
    /// Leases ready tasks to a worker.
    Claim(Claim<'a>),
    /// Moves the deadline of a lease into the future.
    Extend {
        /// Whose task, and by what right.
        lease: LeaseRef<'a>,
        /// New length from now on; absent: the default.
        length: Option<Millis>,
    },
    /// Gives a task back unharmed; the attempt does not count.
    Release {
        /// Whose task, and by what right.
        lease: LeaseRef<'a>,
    },
    /// Gives a task back after a failed attempt.
    Nack {
        /// Whose task, and by what right.
        lease: LeaseRef<'a>,
        /// Delay until the next attempt; absent: the policy's backoff.
        delay: Option<Millis>,
        /// Why, for people.
        reason: &'a str,
    },
    /// Ends a task with a result.
    Complete {
        /// Whose task, and by what right.
        lease: LeaseRef<'a>,
        /// JSON as sent.
        result: &'a [u8],
        /// A remark of the worker; may be empty.
        error: &'a str,
    },
    /// Ends a task without success: the worker decided that there is no point in trying again.
    Fail {
        /// Whose task, and by what right.
        lease: LeaseRef<'a>,
        /// JSON as sent, if any.
        result: Option<&'a [u8]>,
        /// Why, for people.
        error: &'a str,
    },
    /// Ends a waiting task, or asks the holder of a leased one to stop.
    Cancel {
        /// The task's tenant.
        tenant: &'a str,
        /// The task.
        task: TaskKey,
        /// Why, for people.
        reason: &'a str,
        /// End a leased task as well; its lease closes.
        force: bool,
    },
    /// Brings a dead, failed or cancelled task back.
    Redrive(Redrive<'a>),
    /// Changes a task that waits.
    Edit(Edit<'a>),
    /// Changes the record of a dead task, which stays dead.
    Amend(Amend<'a>),
    /// Deletes a task that waits, or a dead one.
    Delete(Delete<'a>),
    /// Begins an operation on many tasks.
    Begin(Begin<'a>),
    /// Takes the next step of one.
    Step(Step<'a>),
    /// Stops one, lets it go on, or ends it because it cannot.
    Turn {
        /// Whose operation.
        tenant: &'a str,
        /// Which.
        id: OperationId,
        /// How it stands from here on: not [`OperationState::Succeeded`].
        to: OperationState,
        /// Why it cannot go on; otherwise empty.
        error: &'a str,
    },
    /// Lets claims pass a queue over.
    Pause {
        /// Owner of the queue.
        tenant: &'a str,
        /// Its name.
        command: &'a str,
        /// When it ends by itself; absent: never.
        length: Option<Millis>,
        /// Why, for people.
        reason: &'a str,
        /// Who, for people.
        by: &'a str,
    },
    /// Ends a pause.
    Resume {
        /// Owner of the queue.
        tenant: &'a str,
        /// Its name.
        command: &'a str,
    },
    /// The leader's settings of scope *cluster*; they hold from here on.
    Configure(Policy),
}

/// What a new task is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Create<'a> {
    /// Owner of the queue.
    pub tenant: &'a str,
    /// Name of the queue.
    pub command: &'a str,
    /// 0 to 9, 9 most urgent.
    pub priority: u8,
    /// JSON as sent.
    pub payload: &'a [u8],
    /// When it becomes ready.
    pub schedule: Schedule,
    /// URL to be told of the end; may be empty.
    pub webhook: &'a str,
    /// Deliveries, 1 to `ATTEMPTS_MAX`; absent: the policy's.
    pub max_attempts: Option<u32>,
    /// Makes a repeat answer with the first task.
    pub key: Option<IdempotencyKey<'a>>,
}

/// When a new task becomes ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// At once.
    Now,
    /// After this time on the lease clock.
    After(Millis),
    /// At this time on the schedule clock.
    At(ScheduleTime),
}

/// A producer's name for a creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyKey<'a> {
    /// As the producer wrote it, 1 to 256 bytes.
    pub text: &'a str,
    /// `idempotency::scope_digest` of tenant, command and text.
    pub scope: [u8; 16],
    /// `idempotency::body_digest` of what was asked for.
    pub body: [u8; 16],
}

/// A worker's request for tasks.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim<'a> {
    /// Owner of the queues.
    pub tenant: &'a str,
    /// Identity of the worker.
    pub worker: &'a str,
    /// Names of queues without repeats, or none: all of the tenant.
    pub commands: Vec<&'a str>,
    /// Which of several queues is served first. Without `commands` it is `Fair`.
    pub order: ClaimOrder,
    /// Most tasks wanted, 1 to 100.
    pub count: u8,
    /// Length of the lease; absent: the default.
    pub lease: Option<Millis>,
}

/// Which of several queues a claim takes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimOrder {
    /// In the order in which the claim names them.
    Request,
    /// The highest priority at any head, then the oldest head.
    Priority,
    /// The highest priority at any head, then the queues in turn, each round in order of head age.
    Fair,
}

/// A task and the right to act on its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRef<'a> {
    /// The task's tenant.
    pub tenant: &'a str,
    /// The task.
    pub task: TaskKey,
    /// The right.
    pub credential: Credential<'a>,
}

/// What shows that the caller holds the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential<'a> {
    /// The token of the grant.
    Token(LeaseToken),
    /// Only the worker's identity: who held the same task twice cannot tell the two leases apart.
    Worker(&'a str),
    /// A token that cannot be any grant's.
    Unknown,
}

/// Brings an ended task back, under its id. Its record stands in the checkpoint and not in memory, so the operation carries it.
#[derive(Clone, Debug, PartialEq)]
pub struct Redrive<'a> {
    /// The task's tenant.
    pub tenant: &'a str,
    /// The task.
    pub task: TaskKey,
    /// The entry that ended it, or changed its record since: if there is a later one, the record below is out of date.
    pub ended_at: base::Index,
    /// The record, as `record::encode` writes it.
    pub record: &'a [u8],
    /// Keep the attempts made so far instead of starting anew.
    pub keep_attempts: bool,
    /// Delay until it becomes ready.
    pub delay: Millis,
    /// Another priority.
    pub priority: Option<u8>,
}

/// Changes a task that waits. What is absent stays.
#[derive(Clone, Debug, PartialEq)]
pub struct Edit<'a> {
    /// The task's tenant.
    pub tenant: &'a str,
    /// The task.
    pub task: TaskKey,
    /// 0 to 9, 9 most urgent.
    pub priority: Option<u8>,
    /// When it becomes ready.
    pub schedule: Option<Schedule>,
    /// JSON as sent.
    pub payload: Option<&'a [u8]>,
    /// Deliveries, 1 to `ATTEMPTS_MAX`; at least one more than there have been.
    pub max_attempts: Option<u32>,
    /// URL to be told of the end; may be empty.
    pub webhook: Option<&'a str>,
}

/// Puts another record in the place of that of a dead task: another payload, another number of attempts for when it comes back. It stands in
/// the checkpoint and not in memory, so the operation carries it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amend<'a> {
    /// The task's tenant.
    pub tenant: &'a str,
    /// The task.
    pub task: TaskKey,
    /// The entry that ended it, or changed its record since: if there is a later one, the record below is out of date.
    pub ended_at: base::Index,
    /// The new record, as `record::encode` writes it.
    pub record: &'a [u8],
}

/// Deletes one task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delete<'a> {
    /// The task's tenant.
    pub tenant: &'a str,
    /// The task.
    pub task: TaskKey,
    /// The entry that ended it, of a task that can come back; absent: it must wait.
    pub ended_at: Option<base::Index>,
    /// `idempotency::scope_digest` of its key, if it has one, which is free from here on.
    pub key: Option<[u8; 16]>,
}

/// Begins an operation on many tasks.
#[derive(Clone, Debug, PartialEq)]
pub struct Begin<'a> {
    /// Whose tasks.
    pub tenant: &'a str,
    /// Its name.
    pub id: OperationId,
    /// What it does.
    pub kind: OperationKind,
    /// The queues that it may touch; none: all of the tenant.
    pub commands: Vec<&'a str>,
    /// What was asked for, in the asker's words.
    pub request: &'a [u8],
    /// It only counts.
    pub dry_run: bool,
    /// It takes every task of its queues that its kind can take, so that there are as many as the queues count.
    pub takes_all: bool,
    /// Who asks for it.
    pub by: &'a str,
}

/// A step of an operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Step<'a> {
    /// Whose operation.
    pub tenant: &'a str,
    /// Which.
    pub id: OperationId,
    /// Steps made before this one.
    pub after: u64,
    /// Where the next one goes on.
    pub cursor: &'a [u8],
    /// There is none.
    pub is_last: bool,
    /// What it does, each item as `codec::encode` writes it: redrives, deletions, cancellations.
    pub items: Vec<&'a [u8]>,
    /// Tasks that it would change, if the operation only counts.
    pub counted: u64,
    /// Some of those.
    pub samples: Vec<TaskId>,
}
