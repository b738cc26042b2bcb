//! What operations and questions are answered with.

use std::collections::BTreeSet;
use std::sync::Arc;

use base::{Index, Millis, ScheduleTime};

use crate::history::Terms;
use crate::id::{LeaseToken, TaskId};
use crate::operations::{Operation, OperationId};
use crate::payload::Payload;
use crate::ready::PRIORITIES;

/// What an applied operation did. Every variant but `Rejected` is an effect, or the statement that there was nothing to do.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// A new task.
    Created(Created),
    /// The key is bound to this earlier task; nothing new was made.
    Replayed(TaskId),
    /// The tasks leased, at most as many as asked for; empty if there was none.
    Claimed(Vec<Grant>),
    /// The lease goes on.
    Extended {
        /// Time until its new end.
        remaining: Millis,
        /// Its new end, estimated on the schedule clock.
        until: ScheduleTime,
        /// Somebody wants the worker to stop.
        cancel_requested: bool,
    },
    /// The task is ready again, its attempt given back.
    Released,
    /// The attempt failed; another one follows after `delay`.
    Retried {
        /// Time until the task is ready.
        delay: Millis,
        /// Deliveries so far.
        attempts: u32,
    },
    /// The attempt failed and was the last one.
    DeadLettered {
        /// Deliveries made.
        attempts: u32,
    },
    /// The task ended as completed or failed.
    Finished {
        /// When.
        at: ScheduleTime,
        /// The delivery that ended it.
        attempt: u32,
    },
    /// The task ended because somebody had asked for it.
    Cancelled(Box<TaskView>),
    /// The holder is asked to stop.
    CancelRequested(Box<TaskView>),
    /// The task is live again.
    Redriven(Box<TaskView>),
    /// The task as it is now.
    Edited(Box<TaskView>),
    /// It is as was asked for; whoever wants to see it asks for it.
    Done,
    /// The settings hold.
    Configured,
    /// No effect, but that a refused result is noted in its task's history.
    Rejected(Rejection),
}

/// A new task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its id.
    pub id: TaskId,
    /// When it was made.
    pub at: ScheduleTime,
    /// When it becomes ready; absent: it is.
    pub run_at: Option<ScheduleTime>,
    /// Its deliveries.
    pub max_attempts: u32,
}

/// One leased task.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// The task in its new state.
    pub task: TaskView,
    /// The right to act on the lease.
    pub token: LeaseToken,
    /// Length of the lease.
    pub length: Millis,
}

/// Why an operation had no effect. A rejection is the same on every replica, and definite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// No live task of this tenant has that id: it has ended, it is gone, or it never was.
    NotLive,
    /// The task is not leased: it waits.
    NotLeased,
    /// Another worker holds the task.
    NotOwner,
    /// The token is not the current one, or its deadline has passed.
    LeaseLost {
        /// Somebody holds the task under another token.
        held: bool,
    },
    /// The key is bound to another creation.
    KeyConflict {
        /// The task that it made.
        first: TaskId,
    },
    /// The task is live, so it cannot be redriven.
    NotEnded,
    /// The record that the redrive carries is not the present one.
    RecordChanged,
    /// The shard holds as many live tasks as it may (`limits.maxLiveTasks`).
    TooManyTasks,
    /// The shard holds as many queues as it may (`QUEUES_MAX`).
    TooManyQueues,
    /// A worker holds the task.
    IsLeased,
    /// An operation of the same kind on the same queues is under way.
    OperationConflict {
        /// Its name.
        with: OperationId,
    },
    /// There is no such operation.
    NoOperation,
    /// The operation is in a state in which this cannot be asked of it.
    OperationState,
    /// The shard knows as many operations as it may (`OPERATIONS_MAX`).
    TooManyOperations,
}

/// A task's states as clients see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Waits for its time.
    Delayed,
    /// Can be claimed.
    Ready,
    /// A worker holds it.
    Leased,
    /// Ended with success.
    Completed,
    /// Ended because its worker said so.
    Failed,
    /// Ended because its attempts were used up.
    Dead,
    /// Ended because somebody asked for it.
    Cancelled,
}

impl State {
    /// Every state, in the order of the variants, with the name that checkpoints and clients show.
    pub const NAMES: [(State, &'static str); 7] = [
        (State::Delayed, "DELAYED"),
        (State::Ready, "READY"),
        (State::Leased, "LEASED"),
        (State::Completed, "COMPLETED"),
        (State::Failed, "FAILED"),
        (State::Dead, "DEAD"),
        (State::Cancelled, "CANCELLED"),
    ];

    /// The name that checkpoints and clients show.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }

    /// The state of that name.
    pub fn from_name(name: &str) -> Option<State> {
        Self::NAMES.iter().find(|(_, known)| *known == name).map(|(state, _)| *state)
    }
}

/// A task as it stands at some position: everything that can be shown of it.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskView {
    /// Its id.
    pub id: TaskId,
    /// Owner of the queue.
    pub tenant: Arc<str>,
    /// Name of the queue.
    pub command: Arc<str>,
    /// What the producer sent.
    pub payload: Payload,
    /// 0 to 9, 9 most urgent.
    pub priority: u8,
    /// Where it stands in its life.
    pub state: State,
    /// Who holds it.
    pub worker: Option<Arc<str>>,
    /// Estimated end of the lease.
    pub lease_until: Option<ScheduleTime>,
    /// Deliveries so far that count, the present one included.
    pub attempts: u32,
    /// Deliveries it may have.
    pub max_attempts: u32,
    /// Why it ended; of a live task: why its last attempt failed.
    pub error: Arc<str>,
    /// Estimated time at which it becomes ready, of a delayed task.
    pub run_at: Option<ScheduleTime>,
    /// Creation.
    pub created_at: ScheduleTime,
    /// Last change of state.
    pub updated_at: ScheduleTime,
    /// End.
    pub finished_at: Option<ScheduleTime>,
    /// The entry that ended it.
    pub ended_at: Option<Index>,
    /// JSON of its result, as the worker sent it.
    pub result: Option<Arc<[u8]>>,
    /// URL to be told of the end; may be empty.
    pub webhook: Arc<str>,
    /// The producer's key; may be empty.
    pub idempotency_key: Arc<str>,
    /// Its holder is asked to stop.
    pub cancel_requested: bool,
    /// What has happened to it, see [`crate::history`]; empty where that was not asked for.
    pub history: Vec<u8>,
}

/// How many tasks of a queue are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Ready tasks by priority.
    pub ready: [u64; PRIORITIES],
    /// Delayed tasks.
    pub delayed: u64,
    /// Leased tasks.
    pub leased: u64,
    /// Dead tasks that retention still keeps.
    pub dead: u64,
}

impl Depth {
    /// Ready tasks of all priorities.
    pub fn ready_total(&self) -> u64 {
        self.ready.iter().sum()
    }
}

/// What has happened in a queue since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// New tasks, without replays.
    pub created: u64,
    /// Deliveries.
    pub claimed: u64,
    /// Tasks completed.
    pub completed: u64,
    /// Tasks failed by their worker.
    pub failed: u64,
    /// Tasks dead-lettered.
    pub dead: u64,
    /// Tasks cancelled.
    pub cancelled: u64,
    /// Leases that ran out.
    pub expired: u64,
}

/// Why nothing is claimed from a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PauseView {
    /// When it ends by itself, estimated on the schedule clock; absent: never.
    pub until: Option<ScheduleTime>,
    /// Why, for people; may be empty.
    pub reason: Arc<str>,
    /// Who paused it.
    pub by: Arc<str>,
}

/// One queue's numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStats {
    /// Owner of the queue.
    pub tenant: Arc<str>,
    /// Name of the queue.
    pub command: Arc<str>,
    /// What is in it.
    pub depth: Depth,
    /// What has happened in it.
    pub totals: Totals,
    /// Since when its oldest ready task is ready.
    pub oldest_ready: Option<ScheduleTime>,
    /// When the next of its delayed tasks becomes ready, estimated on the schedule clock.
    pub next_due: Option<ScheduleTime>,
    /// Workers that hold leases of it.
    pub consumers: u64,
    /// Why nothing is claimed from it, if that is so.
    pub pause: Option<PauseView>,
    /// When something in it changed last; 0: never.
    pub updated_at: ScheduleTime,
}

/// Some of a tenant's queues on a shard, by name.
#[derive(Clone, Debug, Default)]
pub struct QueuesOf {
    /// Their owner.
    pub tenant: Arc<str>,
    /// What their names begin with.
    pub prefix: Arc<str>,
    /// Their names come after this one.
    pub after: Option<Arc<str>>,
    /// These alone.
    pub commands: Option<BTreeSet<Arc<str>>>,
    /// Only those that hold tasks.
    pub non_empty: bool,
    /// Only those that are paused, or that are not.
    pub paused: Option<bool>,
    /// So many at most.
    pub limit: usize,
}

/// A question to a shard.
#[derive(Clone, Debug)]
pub enum Query {
    /// One task.
    Task {
        /// Its tenant.
        tenant: Arc<str>,
        /// Its id.
        id: TaskId,
        /// Wait until it has ended.
        until_ended: bool,
    },
    /// One task, as it is when an entry has changed it, or when it has ended.
    TaskAfter {
        /// Its tenant.
        tenant: Arc<str>,
        /// Its id.
        id: TaskId,
        /// The entry comes after this one. Of entries long ago it is not known what they have changed: then the answer comes at once.
        index: Index,
    },
    /// One task with its history, as it is when an entry after this one has changed it, or when it has ended; nothing: as it is now.
    History {
        /// Its tenant.
        tenant: Arc<str>,
        /// Its id.
        id: TaskId,
        /// The entry.
        after: Option<Index>,
    },
    /// When terms began, and what has been applied.
    Terms,
    /// Whether an operation on the lease would be refused now.
    Lease {
        /// Its tenant.
        tenant: Arc<str>,
        /// Its id.
        id: TaskId,
        /// The right to act on it.
        credential: OwnedCredential,
    },
    /// One queue's numbers.
    Queue {
        /// Its tenant.
        tenant: Arc<str>,
        /// Its name.
        command: Arc<str>,
    },
    /// The numbers of all queues.
    Queues,
    /// The numbers of some.
    QueuesOf(QueuesOf),
    /// The operations of a tenant, or of all, in the order in which they began.
    Operations {
        /// Whose; absent: all.
        tenant: Option<Arc<str>>,
        /// Only those that are under way.
        running: bool,
    },
    /// The settings in force.
    Policy,
}

/// [`crate::op::Credential`] that owns its worker's name.
#[derive(Clone, Debug)]
pub enum OwnedCredential {
    /// The token of the grant.
    Token(LeaseToken),
    /// The worker's identity.
    Worker(Arc<str>),
    /// A token that cannot be any grant's.
    Unknown,
}

/// The answer to a [`Query`].
#[derive(Clone, Debug)]
pub enum Answer {
    /// The task, live or ended not long ago.
    Task(Arc<TaskView>),
    /// Not in memory: the task has ended and stands in the checkpoint, or there is none of this tenant.
    NotLive {
        /// Slices of ended tasks in which the checkpoint may still show this one although it is gone from there.
        dropped: Vec<u32>,
    },
    /// When terms began.
    Terms {
        /// As far as it is remembered.
        terms: Terms,
        /// The last entry applied, as the state machine counts them; nothing: none since its state was read.
        applied: Option<Index>,
    },
    /// What an operation on the lease would be refused for.
    Lease(Result<(), Rejection>),
    /// One queue's numbers; zeros for an unknown one.
    Queue(QueueStats),
    /// All queues' numbers.
    Queues(Vec<QueueStats>),
    /// Some queues' numbers, by name.
    QueuePage {
        /// They.
        queues: Vec<QueueStats>,
        /// The last name that was looked at; nothing: it was the last there is.
        looked_to: Option<Arc<str>>,
    },
    /// Operations.
    Operations(Vec<Operation>),
    /// The settings in force.
    Policy(crate::policy::Policy),
}
