//! The contract between a state machine and the replica that runs it.
//!
//! A state machine is a value without clock, disk, socket or randomness. The replica hands it committed entries, one operation after the
//! other; what it answers and what it becomes depend on nothing but those entries, so every replica of a shard agrees.

use crate::codec::Malformed;
use crate::rows::{Changes, RowSource, Schema, Unreadable};
use crate::{Incarnation, Index, LeaseTime, ScheduleTime, ShardId, Stamps, Term};

/// Which shard of which cluster a state machine serves.
#[derive(Clone, Copy, Debug)]
pub struct ShardInfo {
    /// The shard.
    pub shard: ShardId,
    /// The cluster's incarnation in force for entries from now on.
    pub incarnation: Incarnation,
}

/// What is known about an entry besides its operations.
#[derive(Clone, Copy, Debug)]
pub struct EntryInfo {
    /// Its term.
    pub term: Term,
    /// Its index.
    pub index: Index,
    /// Its leader's clocks. Not yet forced to be non-decreasing: the state machine does that.
    pub stamps: Stamps,
    /// 128 bits from the leader's operating system: the only randomness that apply may use.
    pub seed: [u8; 16],
}

/// Something that requests wait for: work in a queue, the end of a task. Two things that share a number cost a wake-up in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaitKey(pub u64);

/// What applying an entry leads to besides the outcomes of its operations.
pub struct Effects<S: StateMachine> {
    /// Waits that may be over.
    pub woken: Vec<WaitKey>,
    /// What observers want to know, such as measurements.
    pub signals: Vec<S::Signal>,
}

impl<S: StateMachine> Default for Effects<S> {
    fn default() -> Self {
        Effects { woken: Vec::new(), signals: Vec::new() }
    }
}

/// When the state machine wants an entry although nobody writes. The clocks are those of the entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextDue {
    /// The earliest deadline on the lease clock.
    pub lease: Option<LeaseTime>,
    /// The earliest deadline on the schedule clock.
    pub schedule: Option<ScheduleTime>,
    /// The last entry reached its cap and left due work behind.
    pub overdue: bool,
}

/// What to do with an operation before it is proposed.
pub enum Admission<O> {
    /// Propose it.
    Propose,
    /// It cannot have an effect now: answer with this, or wait for one of the keys that were listed.
    Nothing(O),
    /// Refuse it before the log; nothing happens.
    Refuse(O),
}

/// Something that a state machine wants people to know: an event under a name of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Stable and dotted, beginning with the product's word, as `queue.leases.resumed`.
    pub name: &'static str,
    /// A sentence.
    pub text: String,
    /// Numbers; their names have the unit.
    pub fields: Vec<(&'static str, u64)>,
}

/// A committed operation this build does not know: the replica must stop, because it cannot agree with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownOperation;

impl From<Malformed> for UnknownOperation {
    fn from(Malformed: Malformed) -> Self {
        UnknownOperation
    }
}

/// A deterministic state machine, replicated by running it on the same entries everywhere.
pub trait StateMachine: Sized + Send + 'static {
    /// What an operation answers.
    type Outcome: Send;
    /// A question that changes nothing.
    type Query: Clone + Send;
    /// What a question is answered with.
    type Answer: Send;
    /// What observers learn from applied entries.
    type Signal: Send;

    /// The tables of its checkpoint.
    fn schema() -> Schema;

    /// The state that the rows of a checkpoint describe; without rows, the initial state.
    ///
    /// # Errors
    /// The checkpoint does not hold what this type wrote.
    fn restore(info: ShardInfo, rows: &mut dyn RowSource) -> Result<Self, Unreadable>;

    /// Lists in `changes` what becomes of the state in `rows` when it begins another life of its cluster, after a restore or a lost quorum:
    /// `first` is the index of that life's first entry, `incarnation` its number. What was promised in the life before must not hold in it.
    ///
    /// # Errors
    /// The checkpoint does not hold what this type wrote.
    fn renew(
        rows: &mut dyn RowSource,
        first: Index,
        incarnation: Incarnation,
        changes: &mut Changes,
    ) -> Result<(), Unreadable> {
        let _ = (rows, first, incarnation, changes);
        Ok(())
    }

    /// The clocks of the last entry begun, forced to be non-decreasing. A leader's stamps go on from here.
    fn stamps(&self) -> Stamps;

    /// Begins an entry: takes over its stamps and applies what they have made due.
    fn begin_entry(&mut self, entry: &EntryInfo, effects: &mut Effects<Self>);

    /// Applies one operation of the entry begun last.
    ///
    /// # Errors
    /// The operation is of a kind this build does not know.
    fn apply(&mut self, operation: &[u8], effects: &mut Effects<Self>) -> Result<Self::Outcome, UnknownOperation>;

    /// Appends an outcome to `bytes`, for the node that forwarded its operation.
    fn encode_outcome(outcome: &Self::Outcome, bytes: &mut Vec<u8>);

    /// Reads back what [`StateMachine::encode_outcome`] wrote, in this build or another one.
    ///
    /// # Errors
    /// The bytes are not an outcome, or one of a kind this build does not know.
    fn decode_outcome(bytes: &[u8]) -> Result<Self::Outcome, Malformed>;

    /// The operation that this node proposes first when it becomes leader, appended to `operation`. False: none.
    fn opening(&self, operation: &mut Vec<u8>) -> bool {
        let _ = operation;
        false
    }

    /// Looks at an operation before it is proposed. For `Nothing`, lists in `keys` what would change the verdict.
    fn admit(&self, operation: &[u8], keys: &mut Vec<WaitKey>) -> Admission<Self::Outcome> {
        let _ = (operation, keys);
        Admission::Propose
    }

    /// Whether an applied operation found nothing to do, so that its client may go on waiting.
    fn found_nothing(&self, outcome: &Self::Outcome) -> bool {
        let _ = outcome;
        false
    }

    /// How many waiting requests `key` can serve now; the replica proposes no more than that.
    fn available(&self, key: WaitKey) -> usize {
        let _ = key;
        usize::MAX
    }

    /// Answers a question from the present state. `Some(key)`: the answer may become better, and the client may wait for `key`.
    fn query(&self, query: &Self::Query) -> (Self::Answer, Option<WaitKey>);

    /// When it wants an entry although nobody writes.
    fn next_due(&self) -> NextDue {
        NextDue::default()
    }

    /// What people should know when this node begins to lead, all earlier entries being applied. It runs between two entries, so it must be
    /// quick.
    fn on_leader_ready(&self) -> Option<Notice> {
        None
    }

    /// Marks the present state as the one to be saved. What [`StateMachine::collect`] lists from now on describes this state, whatever
    /// is applied meanwhile. The previous save has ended.
    fn freeze(&mut self);

    /// Lists about `rows_max` more changes between the save before and the frozen state. True: that was the last of them.
    fn collect(&mut self, rows_max: usize, changes: &mut Changes) -> bool;

    /// The frozen state is durable. Returns what was kept for readers until then: dropping it takes time, so the caller does it where
    /// nobody waits.
    fn saved(&mut self) -> Box<dyn Send>;
}
