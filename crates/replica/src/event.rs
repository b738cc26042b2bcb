//! What goes into a replica, and what comes out.

use base::log::{Entry, HardState};
use base::machine::{Notice, StateMachine};
use base::{Index, LeaseTime, Millis, Mono, Position, ScheduleTime, ShardId, Term};
use consensus::{MemberChange, Message, Role, SnapshotOf, Ticket, Told};

use crate::batch::Operations;
use crate::elections::{Election, Elections};
use crate::members::{Member, Members};
use crate::restores::{RestoreId, RestoreStep};
use crate::tokens::{Joining, TokenStep};

/// The present moment, read by the driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// Monotonic time.
    pub mono: Mono,
    /// Wall time: may jump.
    pub wall: ScheduleTime,
}

/// Whoever waits for a reply. The replica hands it back with the reply and looks into it only to see whether anybody still listens.
pub trait Client {
    /// Nobody will take the reply.
    fn is_gone(&self) -> bool;
}

/// How long a request may wait for something to come up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Names the request for [`Event::Forget`]; unique on this node.
    pub id: u64,
    /// From now on.
    pub up_to: Millis,
}

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It reflects every write acknowledged before the question was asked.
    Linearizable,
    /// It reflects at least this entry; 0: whatever is applied here.
    AtLeast {
        /// The entry.
        index: Index,
        /// How long to wait for it.
        up_to: Millis,
    },
}

impl Freshness {
    /// Whatever is applied here, at once: perhaps less than was acknowledged already.
    pub const STALE: Freshness = Freshness::AtLeast { index: Index(0), up_to: Millis(0) };
}

/// All that can wake a replica.
pub enum Event<S: StateMachine, C> {
    /// Operations of one client on one shard.
    Submit {
        /// The shard.
        shard: ShardId,
        /// They enter one entry together.
        operations: Operations,
        /// If they find nothing to do.
        wait: Option<Wait>,
        /// Who waits for the reply.
        client: C,
    },
    /// A question to one shard.
    Ask {
        /// The shard.
        shard: ShardId,
        /// The question.
        query: S::Query,
        /// How fresh the answer must be.
        freshness: Freshness,
        /// If the answer may become better.
        wait: Option<Wait>,
        /// Who waits for the reply.
        client: C,
    },
    /// A waiting request's client has gone.
    Forget {
        /// The shard it was sent to.
        shard: ShardId,
        /// The request.
        wait: u64,
    },
    /// A message from another member.
    Message {
        /// The group it belongs to.
        shard: ShardId,
        /// The message.
        message: Message,
    },
    /// Change the members of a group; answered like operations, of which there are none, when the change is applied here.
    Change {
        /// The group.
        shard: ShardId,
        /// Made together; none: only the records change.
        changes: Vec<MemberChange>,
        /// What is known of members from now on.
        records: Vec<Member>,
        /// Who waits for the reply, if anybody does.
        client: Option<C>,
    },
    /// Change the members of group 0 as [`Event::Change`] does, if the newcomer can be admitted so when that is applied.
    /// Else nothing changes.
    Admit {
        /// Made together; none: the newcomer is a member already.
        changes: Vec<MemberChange>,
        /// What is known of it from now on.
        newcomer: Member,
        /// How it is admitted.
        admission: Joining,
        /// Who waits for the reply.
        client: C,
    },
    /// Make or revoke a join token, in group 0; answered like operations, of which there are none, when it is applied here.
    Token {
        /// Which.
        step: TokenStep,
        /// Who waits for the reply.
        client: C,
    },
    /// Record an election that this node has won, or what it has learnt of it since. If it leads in that term no longer, nothing is recorded.
    Elected {
        /// The group.
        shard: ShardId,
        /// The election.
        election: Election,
    },
    /// Take a step of a restore; answered like operations, of which there are none, when the step is applied here.
    Restore {
        /// The group.
        shard: ShardId,
        /// The step.
        step: RestoreStep,
        /// Who waits for the reply.
        client: C,
    },
    /// Hand the leadership of a group over, if this node has it.
    Transfer {
        /// The group.
        shard: ShardId,
        /// The voter that is to lead.
        to: u64,
    },
    /// Messages to a member could not be delivered.
    Unreachable {
        /// The member.
        member: u64,
    },
    /// A snapshot has reached the member that needs it, or has not.
    SnapshotSent {
        /// The group.
        shard: ShardId,
        /// The member.
        to: u64,
        /// Whether the member has it.
        arrived: bool,
    },
    /// One unit of consensus time has passed.
    Tick,
    /// No request may wait any longer: the node stops.
    Drain,
}

/// What a client is told.
pub enum Reply<S: StateMachine> {
    /// The operations were applied, or could be answered without.
    Applied {
        /// Where in the log; what the outcomes reflect.
        position: Position,
        /// One for each operation, in order.
        outcomes: Vec<S::Outcome>,
    },
    /// The question's answer.
    Answered {
        /// What it reflects.
        position: Position,
        /// The answer.
        answer: S::Answer,
    },
    /// Nothing could be done, or it is not known what was.
    Unavailable(Unavailable),
}

/// Why a request was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// This node does not lead the shard. Nothing happened.
    NoLeader,
    /// Too much is under way. Nothing happened.
    Overloaded,
    /// The node stops. Nothing happened.
    Draining,
    /// The entry asked for was not applied here in time. Nothing happened.
    TooStale,
    /// A backup takes the place of all data. Nothing happened.
    Restoring,
    /// Leadership was lost after the operations were proposed: they may have happened, or may still happen.
    Unknown,
}

impl Unavailable {
    /// It is certain that nothing happened, so the request may be repeated.
    pub const fn is_definite(self) -> bool {
        !matches!(self, Unavailable::Unknown)
    }
}

impl std::fmt::Display for Unavailable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Unavailable::NoLeader => "no node leads just now",
            Unavailable::Overloaded => "too many requests wait",
            Unavailable::Draining => "this node stops",
            Unavailable::TooStale => "the entry asked for was not applied here in time",
            Unavailable::Restoring => "a backup is being restored",
            Unavailable::Unknown => "the leader was lost; whether it happened is not known",
        })
    }
}

impl std::error::Error for Unavailable {}

/// Something to write to the log, in order.
#[derive(Debug)]
pub enum Write {
    /// An entry.
    Entry(ShardId, Entry),
    /// A hard state.
    HardState(ShardId, HardState),
    /// A snapshot up to this entry has taken the place of the shard's log.
    Restart(ShardId, Index, Term),
}

/// A snapshot that consensus has accepted: it takes the place of a shard's state and log. The driver makes it the shard's checkpoint and
/// calls [`crate::Replica::installed`] then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// The shard.
    pub shard: ShardId,
    /// The last entry that it covers.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
}

impl Install {
    pub(crate) fn new(shard: ShardId, snapshot: &SnapshotOf) -> Install {
        Install { shard, index: snapshot.index, term: snapshot.term }
    }
}

/// A restore that the group has decided on: what was staged takes the place of its state. The driver makes it the shard's checkpoint, of this
/// entry, and calls [`crate::Replica::restored`] then; or, if it has nothing staged, [`crate::Replica::ask_for_snapshot`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// The shard.
    pub shard: ShardId,
    /// Which restore.
    pub id: RestoreId,
    /// The entry that says so.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
    /// What the checkpoint says of the members, but for how far the restored state is ahead, see [`Members::ahead_by`].
    pub members: Members,
}

/// What of a turn's writes must be durable before anything that rests on it leaves. All earlier writes become durable with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum MustSync {
    /// Nothing: the writes may wait for later ones.
    #[default]
    Nothing,
    /// Entries: what clients are told rests on them, and a driver whose clients accept less may say that they are durable when they are
    /// only written.
    Entries,
    /// A term or a vote: a node that forgets one votes twice, and two lead in one term. No driver may say that it is durable before it is.
    Vote,
}

/// What becomes possible once all writes so far are durable. Only [`crate::Replica::on_synced`] opens it, so nothing leaves too early.
#[derive(Debug, Default)]
pub struct AfterSync {
    pub(crate) tickets: Vec<(ShardId, Ticket)>,
    pub(crate) messages: Vec<(ShardId, Message)>,
}

/// Something an operator wants to know happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    /// This node's part in a group has changed.
    Role {
        /// The group.
        shard: ShardId,
        /// Before.
        from: Role,
        /// Now.
        to: Role,
        /// In this term.
        term: Term,
    },
    /// A group has another leader, as far as this node knows, or none.
    Leader {
        /// The group.
        shard: ShardId,
        /// Its id; 0: none.
        leader: u64,
        /// In this term.
        term: Term,
    },
    /// The members of a group have changed, or what is known of them.
    Members {
        /// The group.
        shard: ShardId,
        /// From now on.
        members: Box<Members>,
    },
    /// Something has happened in a group.
    Told {
        /// The group.
        shard: ShardId,
        /// What.
        told: Told,
    },
    /// This node leads, and the first operations of its term were applied.
    FirstWrite {
        /// The group.
        shard: ShardId,
        /// In this term.
        term: Term,
        /// When operations were applied last before its leader was lost; nothing: not since the start.
        last: Option<Mono>,
    },
    /// An election was recorded, on every replica alike.
    Elections {
        /// The group.
        shard: ShardId,
        /// All that are remembered.
        elections: Elections,
    },
    /// This node leads and has committed an entry of its term: it takes writes.
    Ready {
        /// The group.
        shard: ShardId,
        /// In this term.
        term: Term,
        /// The first entry of the term.
        index: Index,
        /// What the lease clock shows now.
        resumed: LeaseTime,
        /// What has passed on it since the last entry of the term before was stamped.
        counted: Millis,
        /// What the state machine says of it.
        notice: Option<Notice>,
    },
}

impl Transition {
    /// The group that it is about.
    pub fn shard(&self) -> ShardId {
        match self {
            Transition::Role { shard, .. }
            | Transition::Leader { shard, .. }
            | Transition::Members { shard, .. }
            | Transition::Told { shard, .. }
            | Transition::FirstWrite { shard, .. }
            | Transition::Elections { shard, .. }
            | Transition::Ready { shard, .. } => *shard,
        }
    }
}

/// What a replica wants done. The driver takes the fields in their order.
pub struct Effects<S: StateMachine, C> {
    /// May leave at once, while the writes are under way.
    pub messages: Vec<(ShardId, Message)>,
    /// To be written, in order.
    pub writes: Vec<Write>,
    /// What of the writes must be durable before `after_sync`.
    pub must_sync: MustSync,
    /// For [`crate::Replica::on_synced`], once the writes are durable.
    pub after_sync: AfterSync,
    /// Snapshots to install; the shards do nothing until then.
    pub installs: Vec<Install>,
    /// Restores to finish; the shards apply nothing until then.
    pub swaps: Vec<Swap>,
    /// To be handed to their clients.
    pub replies: Vec<(C, Reply<S>)>,
    /// For observers.
    pub signals: Vec<S::Signal>,
    /// For the log and for observers.
    pub transitions: Vec<Transition>,
    /// Entries proposed, with how many operations.
    pub proposed: Vec<(ShardId, Index, usize)>,
}

impl<S: StateMachine, C> Default for Effects<S, C> {
    fn default() -> Self {
        Effects {
            messages: Vec::new(),
            writes: Vec::new(),
            must_sync: MustSync::Nothing,
            after_sync: AfterSync::default(),
            installs: Vec::new(),
            swaps: Vec::new(),
            replies: Vec::new(),
            signals: Vec::new(),
            transitions: Vec::new(),
            proposed: Vec::new(),
        }
    }
}

/// Where a shard stands on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// The shard.
    pub shard: ShardId,
    /// What consensus says.
    pub consensus: consensus::Status,
    /// Every entry up to here is applied.
    pub applied: Index,
    /// The term of that entry.
    pub applied_term: Term,
    /// What the lease clock showed when that entry was proposed.
    pub lease_clock: LeaseTime,
    /// Every entry up to here is held by the checkpoint.
    pub checkpoint: Index,
    /// This node leads and takes writes.
    pub ready: bool,
    /// When this node, if it leads, last asked a quorum that has answered: until an election timeout later nobody else leads.
    pub confirmed: Option<Mono>,
    /// Nobody else could lead.
    pub alone: bool,
    /// A snapshot is being installed.
    pub installing: bool,
    /// A member needs a snapshot for which the last checkpoint is too old.
    pub wants_checkpoint: bool,
    /// Requests that wait for something to come up.
    pub waiting: usize,
    /// Entries that were skipped because their header names another term; never more than 0 unless there is a fault.
    pub skipped: u64,
}
