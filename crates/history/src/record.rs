//! The lines of a history. In a file each line is one JSON object with one member that names its kind: `{"op":{…}}`.
//!
//! Names (tenants, queues, workers, idempotency keys) are numbers that the recorder hands out; a `name` line gives one its text, for
//! reports. Payloads, results and texts are digests ([`Digest::of`]). Times of the test clock are microseconds; durations and stamps are
//! milliseconds, as in the log.
//!
//! Order: `op` lines come before the `log` lines that hold the same operations, or the reader needs more memory. All else may come in
//! any order. An `op` line is written when the operation has ended, or at the end of the run if it never did.

use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// What the run was; one line.
    Run(Box<Run>),
    /// A name's text.
    Name(NameText),
    /// An operation as its client saw it.
    Op(Box<Op>),
    /// A careful worker was really working.
    Work(Work),
    /// An entry that a node has applied.
    Log(Box<Entry>),
    /// An entry that a node has applied, and of which another node's line says more.
    Held(Held),
    /// What a node holds of a shard at the end.
    Export(Box<Export>),
    /// What was done to the cluster; for reports only.
    Fault(Event),
    /// Anything else worth a line in a report.
    Note(Event),
}

/// What the run was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The command that repeats it; for reports.
    pub reproduce: String,
    /// Shards; each must have an export.
    pub shards: u16,
    /// The cluster's incarnation: backoff draws depend on it.
    pub incarnation: u64,
    /// ρ: how much a node's monotonic clock may be off, in parts per million.
    pub drift_ppm: u32,
    /// Due tasks that one entry handles before its operations.
    pub due_per_entry: u32,
    /// In force until the first `Configure` of a shard's log.
    pub policy: Policy,
    /// With fewer operations answered the run shows nothing.
    pub operations_min: u32,
    /// When the last fault ended and only honest workers were left, on the test clock. Absent: never, so that liveness is not judged.
    pub healed: Option<u64>,
}

/// A tenant, a queue of some tenant, a worker's identity or an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Name(pub u32);

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameText {
    /// The name.
    pub name: Name,
    /// Its text.
    pub text: String,
}

/// 64 bits that stand for bytes: [`Digest::EMPTY`] for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Digest(pub u64);

impl Digest {
    /// Of no bytes.
    pub const EMPTY: Digest = Digest(0);

    /// The digest of some bytes. Two texts share one once in 2^64; nobody looks for such texts here.
    pub fn of(bytes: &[u8]) -> Digest {
        if bytes.is_empty() {
            return Digest::EMPTY;
        }
        let words = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        });
        let hash = words.fold(bytes.len() as u64, |hash, word| base::rng::mix_all(&[hash, word]));
        Digest(hash.max(1))
    }
}

/// A task: its shard, and its key there (index of the entry that created it × 65,536 + its rank among that entry's creations). An id of
/// another incarnation of the cluster is no task: recorders write it with a key that no entry can have, such as `u64::MAX`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Task {
    /// The shard.
    pub shard: u16,
    /// The key.
    pub key: u64,
}

/// What names a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Token {
    /// Which delivery.
    pub attempt: u32,
    /// The entry that granted it.
    pub index: u64,
    /// The secret part, or as much of it as fits.
    pub suffix: u64,
}

/// A point in a shard's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The shard.
    pub shard: u16,
    /// Term of the entry.
    pub term: u32,
    /// Index of the entry.
    pub index: u64,
}

/// One operation as its client saw it.
///
/// A client has one operation open at a time. What one request asks of several shards, and the items of a batch, are parts of one
/// operation: lines with the same number, which may overlap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Op {
    /// Its number, unique in the history, not 0.
    pub number: u64,
    /// Which part of the operation.
    #[serde(default)]
    pub part: u16,
    /// Who asked.
    pub client: u32,
    /// Which of the client's sessions. Positions do not fall within a session: a read `AtLeast` in it names what the session has seen.
    pub session: u32,
    /// The node that was asked.
    pub node: u16,
    /// When the request left its client, µs of the test clock.
    pub t0: u64,
    /// When the answer came or the client gave up, µs of the test clock; absent: neither, to the end of the run. What has no known outcome
    /// may take effect later all the same.
    pub t1: Option<u64>,
    /// What was asked for.
    pub call: Call,
    /// What came of it.
    pub outcome: Outcome,
}

/// What an operation asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Call {
    /// A new task.
    Create(Create),
    /// Leases for ready tasks.
    Claim(Box<Claim>),
    /// A longer lease.
    Extend {
        /// Whose.
        lease: Lease,
        /// From now on, ms; absent: the default.
        length: Option<u64>,
    },
    /// The task is given back unharmed.
    Release {
        /// Whose.
        lease: Lease,
    },
    /// The attempt has failed.
    Nack {
        /// Whose.
        lease: Lease,
        /// Until the next attempt, ms; absent: the policy's backoff.
        delay: Option<u64>,
        /// Why.
        reason: Digest,
    },
    /// The task is done.
    Complete {
        /// Whose.
        lease: Lease,
        /// Its result.
        result: Digest,
        /// A remark.
        error: Digest,
    },
    /// The task cannot be done.
    Fail {
        /// Whose.
        lease: Lease,
        /// Its result, if any.
        result: Option<Digest>,
        /// Why.
        error: Digest,
    },
    /// The task is not wanted any more.
    Cancel {
        /// Its tenant.
        tenant: Name,
        /// The task.
        task: Task,
        /// Why.
        reason: Digest,
        /// Leased or not.
        force: bool,
    },
    /// The ended task is wanted again.
    Redrive(Redrive),
    /// A task that waits is to be another one.
    Edit(Edit),
    /// A dead task is to have another record.
    Amend(Amend),
    /// Claims are to pass a queue over.
    Pause {
        /// Its tenant.
        tenant: Name,
        /// Its name.
        command: Name,
        /// When that ends by itself, ms from now on; absent: never.
        length: Option<u64>,
        /// Why.
        reason: Digest,
    },
    /// Claims are to see a queue again.
    Resume {
        /// Its tenant.
        tenant: Name,
        /// Its name.
        command: Name,
    },
    /// An operation on many tasks is to begin.
    Begin(Box<Begin>),
    /// One is to stop, or to go on.
    Turn {
        /// Its tenant.
        tenant: Name,
        /// Its name.
        operation: u64,
        /// How it stands from here on: running or stopped.
        to: Stands,
    },
    /// The next step of one. Only the server asks for that: there is no `op` line for it.
    Step(Box<Step>),
    /// A task is to go. Only steps ask for that.
    Delete(Delete),
    /// Other settings. Only the server asks for that: there is no `op` line for it.
    Configure(Box<Policy>),
    /// One task.
    Read {
        /// Its tenant.
        tenant: Name,
        /// The task.
        task: Task,
        /// How new the answer must be.
        level: Level,
    },
    /// One queue's numbers.
    Stats {
        /// Its tenant.
        tenant: Name,
        /// Its name.
        command: Name,
        /// How new the answer must be.
        level: Level,
    },
    /// How the operations of a tenant stand on a shard.
    Operations {
        /// Their tenant.
        tenant: Name,
        /// How new the answer must be.
        level: Level,
    },
}

/// A new task.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Create {
    /// Owner of the queue.
    pub tenant: Name,
    /// Name of the queue.
    pub command: Name,
    /// 0 to 9, 9 most urgent.
    pub priority: u8,
    /// The payload's.
    pub payload: Digest,
    /// When it becomes ready.
    pub schedule: Schedule,
    /// URL of its webhook.
    #[serde(default)]
    pub webhook: Digest,
    /// Deliveries; absent: the policy's.
    pub max_attempts: Option<u32>,
    /// Its idempotency key.
    pub key: Option<Name>,
}

/// When a new task becomes ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// At once.
    Now,
    /// After so many ms of the lease clock.
    After(u64),
    /// At this reading of the schedule clock, ms since the Unix epoch.
    At(u64),
}

/// A worker's request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// Owner of the queues.
    pub tenant: Name,
    /// Who.
    pub worker: Name,
    /// From which queues; none: all of the tenant.
    pub commands: Vec<Name>,
    /// Which of them first.
    pub order: Order,
    /// How many tasks at most.
    pub count: u8,
    /// For how long, ms; absent: the default.
    pub lease: Option<u64>,
}

/// Which of several queues a claim takes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// In the order named.
    Request,
    /// The highest priority at any head, then the oldest head.
    Priority,
    /// The highest priority at any head, then in turn.
    Fair,
}

/// A lease and the right to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Lease {
    /// The task's tenant.
    pub tenant: Name,
    /// The task.
    pub task: Task,
    /// The right.
    pub by: Right,
}

/// What shows that the caller holds a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// The grant's token.
    Token(Token),
    /// Only who it is.
    Worker(Name),
    /// A token that no grant has.
    Forged,
}

/// An ended task that is wanted again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Redrive {
    /// Its tenant.
    pub tenant: Name,
    /// The task.
    pub task: Task,
    /// Index of the entry that ended it, as whoever asks has read it. In an `op` line 0: its client does not know.
    pub ended_at: u64,
    /// Do not begin anew.
    pub keep_attempts: bool,
    /// Until it becomes ready, ms.
    pub delay: u64,
    /// Another priority.
    pub priority: Option<u8>,
    /// The payload's that it comes back with: its own, or another one.
    pub payload: Digest,
}

/// A task that waits is to be another one. What is absent stays.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Edit {
    /// Its tenant.
    pub tenant: Name,
    /// The task.
    pub task: Task,
    /// Another priority.
    pub priority: Option<u8>,
    /// Another time at which it becomes ready.
    pub schedule: Option<Schedule>,
    /// Another payload's.
    pub payload: Option<Digest>,
    /// So many deliveries, but at least one more than there have been.
    pub max_attempts: Option<u32>,
    /// Another webhook.
    pub webhook: Option<Digest>,
}

/// Another record for a dead task.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Amend {
    /// Its tenant.
    pub tenant: Name,
    /// The task.
    pub task: Task,
    /// Index of the entry that ended it or changed its record, as whoever asks has read it. In an `op` line 0: its client does not know.
    pub ended_at: u64,
    /// The payload's in the new record.
    pub payload: Digest,
    /// The deliveries in it.
    pub max_attempts: u32,
}

/// What an operation on many tasks does to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bulk {
    /// Dead tasks come back.
    Redrive {
        /// They do not begin anew.
        keep_attempts: bool,
        /// Until they become ready, ms.
        delay: u64,
        /// Another priority.
        priority: Option<u8>,
    },
    /// Dead tasks go.
    PurgeDead,
    /// Tasks that wait go.
    Purge,
    /// Tasks are cancelled.
    Cancel {
        /// Why.
        reason: Digest,
        /// Leased or not.
        force: bool,
    },
}

/// An operation on many tasks, as one shard is asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Begin {
    /// Whose tasks.
    pub tenant: Name,
    /// Its name, unique in the history.
    pub operation: u64,
    /// What it does.
    pub does: Bulk,
    /// To tasks of these queues; none: all of the tenant.
    pub commands: Vec<Name>,
    /// In these states.
    pub states: Vec<State>,
    /// With so many deliveries, from and to.
    pub attempts: Option<(u32, u32)>,
    /// With these priorities, from and to.
    pub priority: Option<(u8, u8)>,
    /// It only counts.
    pub dry_run: bool,
    /// It takes every task of its queues that its kind can take.
    pub all: bool,
}

/// The next step of an operation on many tasks.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Step {
    /// Whose operation.
    pub tenant: Name,
    /// Which.
    pub operation: u64,
    /// Steps before this one.
    pub after: u64,
    /// There is none behind it.
    pub last: bool,
    /// What it does to single tasks: [`Call::Redrive`], [`Call::Delete`], [`Call::Cancel`].
    pub items: Vec<Call>,
    /// Tasks that it only counts.
    pub counted: u64,
    /// Some of those.
    pub samples: Vec<Task>,
}

/// A task is to go: one that waits, or a dead one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Delete {
    /// Its tenant.
    pub tenant: Name,
    /// The task.
    pub task: Task,
    /// The entry that ended it; absent: it must wait.
    pub ended_at: Option<u64>,
    /// Its idempotency key, which is free from here on.
    pub key: Option<Name>,
}

/// How an operation on many tasks stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stands {
    /// Steps are taken.
    Running,
    /// Somebody has stopped it.
    Stopped,
    /// It has met everything.
    Succeeded,
}

/// How far an operation on many tasks is on a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Its tenant.
    pub tenant: Name,
    /// Its name.
    pub operation: u64,
    /// How it stands.
    pub stands: Stands,
    /// Steps made.
    pub steps: u64,
    /// Tasks met.
    pub processed: u64,
    /// Tasks changed, or that would be.
    pub changed: u64,
    /// Tasks that did not fit any more.
    pub skipped: u64,
    /// How many there would be, if that is known.
    pub expected: Option<u64>,
    /// Some that would be changed.
    pub samples: Vec<Task>,
}

/// How new the state must be that a read reflects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Everything acknowledged before.
    Linearizable,
    /// The entry at this index of the shard, at least.
    AtLeast(u64),
    /// Any.
    Stale,
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was answered from the state at a position: its own entry's, of an operation that stands in the log.
    Answered {
        /// Where.
        at: Position,
        /// How.
        answer: Answer,
    },
    /// It was refused before the log: it has had no effect and will have none.
    Refused(Refusal),
    /// Somebody said that it is not known, or the connection broke: it may have an effect, now or later.
    Unknown,
    /// Nobody said anything until the client gave up. Also not known; and after the heal it must not be.
    Silent,
}

/// Why an operation was refused before the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Refusal {
    /// Nobody leads.
    NoLeader,
    /// Too much is under way, or held.
    Overloaded,
    /// The node stops.
    Draining,
    /// The entry asked for was not there in time.
    TooStale,
    /// It makes no sense: found at the edge.
    Invalid,
}

/// An answer. Times that are estimates for people are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// A new task.
    Created {
        /// Its id.
        task: Task,
        /// Its deliveries.
        max_attempts: u32,
    },
    /// The key names this earlier task.
    Replayed(Task),
    /// Tasks leased.
    Claimed(Box<[Grant]>),
    /// The lease goes on.
    Extended {
        /// For so long, ms.
        remaining: u64,
        /// Its holder should stop.
        cancel_requested: bool,
    },
    /// The task is ready again.
    Released,
    /// Another attempt follows.
    Retried {
        /// After so long, ms.
        delay: u64,
        /// Attempts so far.
        attempts: u32,
    },
    /// It was the last attempt.
    Deadlettered {
        /// Attempts made.
        attempts: u32,
    },
    /// The task ended as completed or failed.
    Finished {
        /// By this attempt.
        attempt: u32,
    },
    /// The task ended as cancelled.
    Cancelled,
    /// The holder is asked to stop.
    CancelRequested,
    /// The task lives again.
    Redriven(Box<View>),
    /// The task as it waits now.
    Edited(Box<View>),
    /// It is as was asked for.
    Done,
    /// The settings hold.
    Configured,
    /// No effect.
    Rejected(Rejection),
    /// The task asked for.
    Found(Box<View>),
    /// No task of this tenant has that id.
    Missing,
    /// A queue's numbers.
    Stats(Box<Stats>),
    /// Operations on many tasks, in the order in which they began.
    Operations(Box<[Progress]>),
}

/// One task leased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The task as it is now.
    pub task: View,
    /// The right to the lease.
    pub token: Token,
    /// The lease's length, ms.
    pub length: u64,
}

/// Why an operation of the log had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rejection {
    /// No live task of the tenant has the id.
    NotLive,
    /// The task waits.
    NotLeased,
    /// Another worker holds the task.
    NotOwner,
    /// The token is not the current one, or the deadline has passed.
    LeaseLost {
        /// Somebody holds the task.
        held: bool,
    },
    /// The key is bound to another creation.
    KeyConflict {
        /// Of this task.
        first: Task,
    },
    /// The task is live.
    NotEnded,
    /// The task has ended again since it was read.
    RecordChanged,
    /// Somebody holds the task.
    IsLeased,
    /// There is no such operation on many tasks.
    NoOperation,
    /// It is in a state in which this cannot be asked of it.
    OperationState,
    /// Another one does the same to the same queues.
    OperationConflict {
        /// Its name.
        with: u64,
    },
}

/// Where a task stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waits for its time.
    Delayed,
    /// Can be claimed.
    Ready,
    /// A worker holds it.
    Leased,
    /// Ended with success.
    Completed,
    /// Ended: its worker said so.
    Failed,
    /// Ended: no attempts left.
    Dead,
    /// Ended: somebody asked for it.
    Cancelled,
}

/// A task as it can be seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its id.
    pub task: Task,
    /// Owner of the queue.
    pub tenant: Name,
    /// Name of the queue.
    pub command: Name,
    /// The payload's.
    pub payload: Digest,
    /// 0 to 9.
    pub priority: u8,
    /// Where it stands.
    pub state: State,
    /// Who holds it.
    pub worker: Option<Name>,
    /// Deliveries that count.
    pub attempts: u32,
    /// Deliveries it may have.
    pub max_attempts: u32,
    /// Why it ended, or its last attempt failed.
    #[serde(default)]
    pub error: Digest,
    /// The entry that ended it.
    pub ended_at: Option<u64>,
    /// Its result.
    pub result: Option<Digest>,
    /// URL of its webhook.
    #[serde(default)]
    pub webhook: Digest,
    /// Its idempotency key.
    pub key: Option<Name>,
    /// Its holder is asked to stop.
    #[serde(default)]
    pub cancel_requested: bool,
}

/// One queue's numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Owner of the queue.
    pub tenant: Name,
    /// Name of the queue.
    pub command: Name,
    /// Ready tasks by priority.
    pub ready: [u64; 10],
    /// Delayed tasks.
    pub delayed: u64,
    /// Leased tasks.
    pub leased: u64,
    /// Dead tasks that are kept.
    pub dead: u64,
    /// Why claims pass it over, if they do.
    #[serde(default)]
    pub pause: Option<Digest>,
    /// What has happened since the queue began.
    pub totals: Totals,
}

/// What has happened in a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// New tasks, without replays.
    pub created: u64,
    /// Deliveries.
    pub claimed: u64,
    /// Completed.
    pub completed: u64,
    /// Failed by their workers.
    pub failed: u64,
    /// Dead-lettered.
    pub dead: u64,
    /// Cancelled.
    pub cancelled: u64,
    /// Leases that ran out.
    pub expired: u64,
}

/// What holds for every queue; durations in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Policy {
    /// Length of a lease whose claim names none.
    pub lease_default: u64,
    /// No lease is granted shorter.
    pub lease_min: u64,
    /// No lease is granted longer.
    pub lease_max: u64,
    /// Deliveries of a task whose creation names no number.
    pub max_attempts: u32,
    /// Shape of the delays between attempts.
    pub backoff: Backoff,
    /// Delay after the first failure, before jitter.
    pub backoff_base: u64,
    /// No delay after a failure is longer.
    pub backoff_max: u64,
    /// How long an idempotency key is bound, on the lease clock.
    pub idempotency_window: u64,
    /// How long completed tasks are kept, on the schedule clock.
    pub completed_kept: u64,
    /// How long failed and cancelled tasks are kept.
    pub failed_kept: u64,
    /// How long dead tasks are kept.
    pub dead_kept: u64,
}

/// The shape of the delays between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backoff {
    /// min(base, max).
    Fixed,
    /// min(base × n, max).
    Linear,
    /// min(base × 2ⁿ⁻¹, max).
    Exponential,
    /// Half of `Exponential`, and a draw from 0 to the other half.
    ExpEqualJitter,
    /// A draw from 0 to `Exponential`.
    ExpFullJitter,
}

/// Time in which a worker that stops before its lease can end was working on a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Who.
    pub worker: Name,
    /// On what.
    pub task: Task,
    /// By what right.
    pub token: Token,
    /// From, µs of the test clock.
    pub from: u64,
    /// To, µs of the test clock.
    pub to: u64,
}

/// An entry of a shard's log that a node has applied, as that node has it. The nodes' logs may begin late and have gaps, where a
/// snapshot took their place; together they must have every entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The node.
    pub node: u16,
    /// The shard.
    pub shard: u16,
    /// Index.
    pub index: u64,
    /// Term.
    pub term: u32,
    /// Of the entry's bytes.
    pub digest: Digest,
    /// What it says about tasks; absent: nothing, as the first entry of a leader, or a change of members.
    pub body: Option<Body>,
}

/// An entry of a node's log, without what it says. It must be the one that a `log` line of another node shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The node.
    pub node: u16,
    /// The shard.
    pub shard: u16,
    /// Index.
    pub index: u64,
    /// Term.
    pub term: u32,
    /// Of the entry's bytes.
    pub digest: Digest,
}

/// Operations of an entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Body {
    /// The term that its proposer led in. If it is not the entry's, nothing of the entry holds, its clocks neither.
    pub proposed_in: u32,
    /// The lease clock, ms.
    pub lease: u64,
    /// The schedule clock, ms.
    pub schedule: u64,
    /// Its operations in order; none: only time passes.
    pub operations: Vec<Logged>,
}

/// An operation in the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logged {
    /// The number of the `op` line that asked for it, where the log keeps it: in payloads, reasons, errors. Else 0, and it is known by
    /// what it asks for; so are creations with a key, which repeat their payload.
    #[serde(default)]
    pub number: u64,
    /// The part of that operation.
    #[serde(default)]
    pub part: u16,
    /// What is asked for.
    pub call: Call,
}

/// What a node holds of a shard at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// The node.
    pub node: u16,
    /// What it has applied.
    pub at: Position,
    /// Every task it can show, live or ended.
    pub tasks: Vec<View>,
    /// Idempotency keys whose window is not over.
    pub keys: Vec<Bound>,
    /// Every queue that has had a task.
    pub queues: Vec<Stats>,
    /// Operations on many tasks, in the order in which they began.
    #[serde(default)]
    pub operations: Vec<Progress>,
}

/// An idempotency key and what it is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bound {
    /// Owner of the queue.
    pub tenant: Name,
    /// Name of the queue.
    pub command: Name,
    /// The key.
    pub key: Name,
    /// The first task.
    pub task: Task,
}

/// Something that happened besides operations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, µs of the test clock.
    pub t: u64,
    /// What.
    pub what: String,
}
