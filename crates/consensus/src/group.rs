//! One Raft group.

use std::collections::{BTreeMap, VecDeque};

use base::limits::PRESENT_LOG_BYTES_MAX;
use base::log::{Entry, HardState};
use base::{Index, ShardId, Term, planted};
use raft::eraftpb::MessageType;
use raft::{Config, ProgressState, RawNode, ReadOnlyOption, SnapshotStatus, StateRole};
use slog::{Discard, Logger, o};

use crate::codec::{LEAVE, Message, SnapshotOf, from_log, to_log};
use crate::configuration::{Configuration, MemberChange, decode_changes, encode_changes, to_raft_change};
use crate::log::Log;
use crate::story::{Facts, Story, Told, Trigger};
use crate::timeouts::{Draw, election_ticks};

/// What a group is made with.
#[derive(Clone, Copy, Debug)]
pub struct GroupConfig {
    /// Which shard it carries.
    pub shard: ShardId,
    /// This node's Raft id: the incarnation of its data directory, not 0.
    pub id: u64,
    /// Decides the election timeouts.
    pub seed: u64,
    /// Ticks without a leader until a campaign: drawn from this to twice this. More than `heartbeat_ticks`.
    pub election_ticks: usize,
    /// Ticks between a leader's heartbeats, at least 1.
    pub heartbeat_ticks: usize,
    /// Bytes of entries proposed and not committed beyond which proposals are refused.
    pub uncommitted_bytes_max: u64,
    /// Bytes of entries in one message; a single larger entry travels alone.
    pub message_bytes_max: u64,
}

/// What a group goes on from.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// The members at `applied`.
    pub configuration: Configuration,
    /// The last entry that the checkpoint covers.
    pub applied: Index,
    /// Its term.
    pub applied_term: Term,
    /// The last hard state in the log.
    pub hard_state: HardState,
    /// The entries behind `applied`, without gaps.
    pub entries: Vec<Entry>,
}

/// What a node is in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it could win an election.
    PreCandidate,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// Where a group stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// This node's part.
    pub role: Role,
    /// The term it knows.
    pub term: Term,
    /// The leader's id; 0: none is known.
    pub leader: u64,
    /// Whom it voted for in this term; 0: nobody.
    pub vote: u64,
    /// The last entry known to be committed.
    pub commit: Index,
    /// The last entry of its log.
    pub last: Index,
    /// The first entry of its log that it can still send.
    pub first: Index,
}

/// Names a [`Work`]; higher ones are later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What a group wants done. Handle the fields in their order.
#[derive(Debug, Default)]
pub struct Work {
    /// Names this work for [`Group::on_synced`].
    pub ticket: Option<Ticket>,
    /// May leave at once.
    pub messages: Vec<Message>,
    /// A snapshot that takes the place of state and log. Nothing else of the group is done until it is installed and
    /// [`Group::on_synced`] and [`Group::on_applied`] have said so.
    pub snapshot: Option<SnapshotOf>,
    /// To be written to the log, before `entries`.
    pub hard_state: Option<HardState>,
    /// To be written to the log.
    pub entries: Vec<Entry>,
    /// Must leave only after `hard_state` and `entries` are synced.
    pub messages_after_sync: Vec<Message>,
    /// Entries to apply, in order. They are durable on a majority.
    pub committed: Vec<Entry>,
    /// Contexts of reads that are confirmed, each with the index that must be applied before it is answered.
    pub reads: Vec<(Vec<u8>, Index)>,
}

/// This node does not lead the group now; nothing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotLeader;

/// The log does not hold what it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostLog {
    /// An entry between the checkpoint and the end of the log is missing.
    Gap {
        /// The first one that is missing.
        missing: Index,
    },
    /// The log ends too early.
    Short {
        /// Its last entry.
        last: Index,
        /// An entry known to be committed.
        committed: Index,
    },
}

/// Why a proposal was refused; nothing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// This node does not lead, or hands its leadership over.
    NotLeader,
    /// Too much is proposed and not committed.
    Busy,
}

/// What a leader knows of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The member.
    pub id: u64,
    /// It does not vote.
    pub learner: bool,
    /// Its log agrees with the leader's up to here.
    pub matched: Index,
    /// The entry it is sent next.
    pub next: Index,
    /// It has been heard of within an election timeout and two heartbeats. Of itself the leader says so always.
    pub active: bool,
    /// It takes entries as they come: where its log ends is known.
    pub replicating: bool,
    /// It waits for a snapshot at this index.
    pub snapshot: Option<Index>,
}

/// How many election timeouts a node that stays out leaves to the others, after its own is over.
const PATIENCE: usize = 4;

/// One Raft group of one shard, on one node.
pub struct Group {
    node: RawNode<Log>,
    config: GroupConfig,
    campaigns: u64,
    last_role: StateRole,
    ticks: u64,
    /// At which tick members were known to have been heard of, if this node leads.
    heard: BTreeMap<u64, u64>,
    /// The commit index that the others have been told with the last entries, if this node leads.
    told: u64,
    /// It leaves it to the others to campaign.
    out: bool,
    /// For how many ticks it has left it to them since it could have campaigned.
    left: usize,
    story: Story,
    /// What the leader has shown to be gone from the log.
    lost: Option<LostLog>,
}

impl Group {
    /// A group that goes on from what was restored.
    ///
    /// # Errors
    /// What was restored has a gap, or ends before an entry that is known to be committed: a part of the log is lost.
    ///
    /// # Panics
    /// The configuration is out of range.
    pub fn new(config: GroupConfig, restored: &Restored) -> Result<Group, LostLog> {
        let applied = restored.applied.0;
        let gap = restored.entries.iter().zip(applied + 1..).find(|(entry, index)| entry.index.0 != *index);
        if let Some((_, index)) = gap {
            return Err(LostLog::Gap { missing: Index(index) });
        }
        let last = Index(applied + restored.entries.len() as u64);
        if restored.hard_state.commit > last {
            return Err(LostLog::Short { last, committed: restored.hard_state.commit });
        }
        let hard_state = raft::eraftpb::HardState {
            term: restored.hard_state.term.0.max(restored.applied_term.0),
            vote: restored.hard_state.vote,
            commit: restored.hard_state.commit.0.max(applied),
            ..Default::default()
        };
        let entries: VecDeque<_> = restored.entries.iter().map(from_log).collect();
        let checkpoint = SnapshotOf {
            index: restored.applied,
            term: restored.applied_term,
            configuration: restored.configuration.clone(),
        };
        let log = Log::new((applied, restored.applied_term.0), entries, hard_state, checkpoint);
        let raft_config = Config {
            id: config.id,
            election_tick: config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            min_election_tick: config.election_ticks,
            max_election_tick: config.election_ticks * 2,
            applied,
            max_size_per_msg: config.message_bytes_max,
            max_inflight_msgs: 256,
            check_quorum: true,
            pre_vote: true,
            // Reads are confirmed by a quorum, never by a clock.
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: config.uncommitted_bytes_max,
            max_committed_size_per_ready: 16 << 20,
            // See `tell_commit`.
            skip_bcast_commit: true,
            ..Config::default()
        };
        // The core is silent: what happens is returned, not logged.
        let silent = Logger::root(Discard, o!());
        let node = RawNode::new(&raft_config, log, &silent).expect("the configuration has been checked");
        let last_role = StateRole::Follower;
        let mut group = Group {
            node,
            config,
            campaigns: 0,
            last_role,
            ticks: 0,
            heard: BTreeMap::new(),
            told: 0,
            out: false,
            left: 0,
            story: Story::default(),
            lost: None,
        };
        group.tame_timeout();
        Ok(group)
    }

    /// One unit of consensus time has passed.
    ///
    /// While a snapshot is being installed, none passes here: whoever has no state yet to go on from cannot lead.
    pub fn tick(&mut self) {
        if self.is_installing() {
            return;
        }
        self.ticks += 1;
        self.note_who_is_there();
        self.leave_it_to_others();
        self.watched(&Trigger::Tick, |node| {
            node.tick();
        });
    }

    /// Who stays out campaigns later than anybody else, not never: its log may be the only one with all that is committed, and then no other
    /// can win.
    fn leave_it_to_others(&mut self) {
        let elapsed = self.node.raft.election_elapsed;
        if !self.out || self.node.raft.state != StateRole::Follower || elapsed < self.config.election_ticks {
            self.left = 0;
            return;
        }
        self.left += 1;
        if self.left <= PATIENCE * self.config.election_ticks {
            // Long enough to vote for another one, not long enough to campaign: see `tame_timeout`.
            self.node.raft.election_elapsed = self.config.election_ticks;
        }
    }

    /// A leader asks anew in every election timeout who is there, and forgets who was: until they answer nobody would be.
    fn note_who_is_there(&mut self) {
        if self.node.raft.state != StateRole::Leader {
            self.heard.clear();
            return;
        }
        let tracker = self.node.raft.prs();
        self.heard.retain(|id, _| tracker.get(*id).is_some());
        let there = tracker.iter().filter(|(_, progress)| progress.recent_active);
        self.heard.extend(there.map(|(id, _)| (*id, self.ticks)));
    }

    fn is_there(&self, id: u64, progress: &raft::Progress) -> bool {
        let grace = 2 * self.config.heartbeat_ticks as u64;
        let lately = || self.heard.get(&id).is_some_and(|heard| self.ticks - heard <= grace);
        id == self.config.id || progress.recent_active || lately()
    }

    /// Whether this node leaves it to the others to campaign, for a while that is longer than they need. It votes, and leads when a leader
    /// hands over to it.
    pub fn stay_out(&mut self, out: bool) {
        self.out = out;
        self.tame_timeout();
    }

    /// A message has come from another member. One that does not fit the group's state is ignored, as Raft says.
    pub fn step(&mut self, message: Message) {
        if message.0.get_msg_type() == MessageType::MsgTimeoutNow && self.is_installing() {
            return;
        }
        // A leader that has removed itself goes on until the others know it, and counts nothing more as committed: the `raft` crate looks
        // for the leader among the members when it does.
        let raft = &self.node.raft;
        let counts = message.0.get_msg_type() == MessageType::MsgAppendResponse && raft.state == StateRole::Leader;
        if counts && raft.prs().get(self.config.id).is_none() {
            return;
        }
        if message.0.get_msg_type() == MessageType::MsgReadIndex && self.has_left_one_voter() {
            return;
        }
        let raft = &self.node.raft;
        // A leader says no more than this member has acknowledged; the `raft` crate gives up where that is not there.
        let heartbeat = message.0.get_msg_type() == MessageType::MsgHeartbeat && message.0.term >= raft.term;
        if heartbeat && message.0.commit > raft.raft_log.last_index() {
            let (last, committed) = (Index(raft.raft_log.last_index()), Index(message.0.commit));
            self.lost = Some(LostLog::Short { last, committed });
            return;
        }
        // The only errors are messages from unknown members and local ones, which must not disturb.
        let facts = Facts::of(&message.0, &self.node);
        self.watched(&Trigger::Step(facts), |node| drop(node.step(message.0)));
        self.commit_too_much();
    }

    /// What was acknowledged once, and is not there any more: the log was damaged so that it could not be seen when it was opened. This
    /// member must not go on.
    pub fn lost(&self) -> Option<LostLog> {
        self.lost
    }

    /// Asks for votes without waiting for the timeout. Useful where nobody else can be leading, as in a group of one.
    pub fn campaign(&mut self) {
        if self.is_installing() {
            return;
        }
        // The only error is a message refused because it is local, and this one is made here.
        self.watched(&Trigger::Campaign, |node| drop(node.campaign()));
    }

    /// Whether a snapshot has taken the place of the log, and [`Group::on_applied`] has not been told that it is the state as well. The
    /// `raft` crate looks for changes of members among what is committed and not applied before it campaigns, and those entries are gone.
    fn is_installing(&self) -> bool {
        let log = &self.node.raft.raft_log;
        log.applied + 1 < log.first_index()
    }

    fn watched(&mut self, trigger: &Trigger, call: impl FnOnce(&mut RawNode<Log>)) {
        let before = Story::before(&self.node);
        call(&mut self.node);
        self.story.after(&before, trigger, &mut self.node);
        self.tame_timeout();
    }

    /// What has happened since this was asked last, in order.
    pub fn take_story(&mut self) -> Vec<Told> {
        self.story.take()
    }

    /// Adds an entry to the log, if this node leads in `term`. `data` begins with its kind, see [`crate::codec`].
    ///
    /// # Errors
    /// Nothing was added.
    pub fn propose(&mut self, term: Term, data: Vec<u8>) -> Result<(), Refused> {
        let leads = self.node.raft.state == StateRole::Leader && self.node.raft.term == term.0;
        // M15: who follows passes its proposals on to whoever leads.
        if !(leads || planted::is(15)) || self.is_transferring() {
            return Err(Refused::NotLeader);
        }
        self.node.propose(Vec::new(), data).map_err(|_| Refused::Busy)?;
        self.told = self.node.raft.raft_log.committed;
        Ok(())
    }

    /// Tells the others how far the log is committed, unless the entries that were proposed since have told them. To be called after
    /// proposing: a message of its own, and its answer, would cost as much as the entries.
    pub fn tell_commit(&mut self) {
        let committed = self.node.raft.raft_log.committed;
        if self.node.raft.state == StateRole::Leader && committed > self.told {
            self.told = committed;
            self.node.raft.bcast_append();
        }
    }

    /// Adds an entry that changes the members, if this node leads in `term`: all changes together, or, without changes, the second step of
    /// the change under way. `note` travels with the entry. Nothing has changed before [`Group::apply_members`].
    ///
    /// The caller must not propose a change before it has applied every earlier one, those of earlier terms included.
    ///
    /// # Errors
    /// Nothing was added.
    pub fn propose_members(&mut self, term: Term, changes: &[MemberChange], note: &[u8]) -> Result<(), Refused> {
        self.propose(term, encode_changes(changes, note))
    }

    /// Leaves the change under way; see [`Group::propose_members`].
    ///
    /// # Errors
    /// Nothing was added.
    pub fn propose_leaving(&mut self, term: Term) -> Result<(), Refused> {
        self.propose(term, LEAVE.to_vec())
    }

    /// Applies a committed entry that changes the members. To be called for each such entry, in order. A change that makes no sense any
    /// more, like removing the last voter, changes nothing; the same on every member.
    ///
    /// # Errors
    /// The entry is of a later build.
    pub fn apply_members(&mut self, data: &[u8]) -> Result<(), base::codec::Malformed> {
        let (changes, _) = decode_changes(data)?;
        // M08: some nodes go on with the members before.
        if planted::is(8) && self.config.id.is_multiple_of(3) {
            return Ok(());
        }
        // The only errors are those of changes that make no sense, which every member refuses alike.
        let _ = self.node.apply_conf_change(&to_raft_change(&changes));
        self.story.follow_members(&self.node);
        self.tame_timeout();
        Ok(())
    }

    /// Hands leadership over to a voter that has caught up, as soon as it has. Proposals are refused until it is done or given up, which
    /// happens after an election timeout.
    pub fn transfer_to(&mut self, voter: u64) {
        let under_way = self.is_transferring();
        self.node.transfer_leader(voter);
        if !under_way {
            self.story.transfer(&self.node, voter);
        }
        self.tame_timeout();
    }

    /// Asks the leader for a snapshot of all that this node has in its log, although the leader could send entries. False: it cannot be
    /// asked just now.
    pub fn request_snapshot(&mut self) -> bool {
        let asked = self.node.request_snapshot().is_ok();
        self.tame_timeout();
        asked
    }

    /// A message could not be delivered to this member: it is asked where it stands before it gets more.
    pub fn on_unreachable(&mut self, member: u64) {
        self.node.report_unreachable(member);
        self.tame_timeout();
    }

    /// The snapshot that a member was sent has arrived, or has not.
    pub fn on_snapshot_sent(&mut self, member: u64, arrived: bool) {
        let status = if arrived { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
        self.node.report_snapshot(member, status);
        self.tame_timeout();
    }

    /// Asks the quorum, by way of the leader, how far the log is committed; the answer comes as one of [`Work::reads`], with the same
    /// context. It may get lost on its way: ask again.
    ///
    /// # Errors
    /// No leader is known, or this node leads and has not committed an entry of its term yet: reads must wait for that.
    pub fn confirm_read(&mut self, context: Vec<u8>) -> Result<(), NotLeader> {
        let raft = &self.node.raft;
        let asks = match raft.state {
            StateRole::Leader => raft.commit_to_current_term() && !self.has_left_one_voter(),
            _ => raft.leader_id != 0,
        };
        if !asks {
            return Err(NotLeader);
        }
        self.node.read_index(context);
        Ok(())
    }

    /// Whether this node leads, and another one is the only voter: it may lead already. The `raft` crate takes the one voter of a group for
    /// whoever leads, and confirms reads without asking it.
    fn has_left_one_voter(&self) -> bool {
        let raft = &self.node.raft;
        let voters = raft.prs().conf().voters().ids();
        raft.state == StateRole::Leader && voters.len() == 1 && !voters.contains(self.config.id)
    }

    /// Whether this node alone decides: it leads, nobody else votes, and it has committed an entry of its term. Then its reads are confirmed.
    pub fn is_alone(&self) -> bool {
        let voters = self.node.raft.prs().conf().voters();
        self.node.raft.state == StateRole::Leader
            && self.node.raft.commit_to_current_term()
            && voters.ids().iter().all(|voter| voter == self.config.id)
    }

    /// Whether there is something to do.
    pub fn has_work(&self) -> bool {
        self.node.has_ready()
    }

    /// What is to be done now. Its entries stand in the log of this value already; [`Group::on_synced`] tells when they are durable.
    pub fn work(&mut self) -> Work {
        if !self.node.has_ready() {
            return Work::default();
        }
        let mut ready = self.node.ready();
        let messages = travelling(ready.take_messages());
        let messages_after_sync = travelling(ready.take_persisted_messages());
        let hard_state =
            ready.hs().map(|state| HardState { term: Term(state.term), vote: state.vote, commit: Index(state.commit) });
        let reads = ready.take_read_states().into_iter().map(|read| (read.request_ctx, Index(read.index))).collect();
        let entries = ready.take_entries();
        let committed = ready.take_committed_entries();
        let snapshot = Some(ready.snapshot()).filter(|snapshot| !snapshot.is_empty()).map(SnapshotOf::from_raft);
        if let Some(snapshot) = &snapshot {
            self.node.mut_store().install(snapshot.clone());
        }
        self.node.mut_store().append(&entries);
        let work = Work {
            ticket: Some(Ticket(ready.number())),
            messages,
            snapshot,
            hard_state,
            entries: entries.iter().map(to_log).collect(),
            messages_after_sync,
            committed: committed.iter().map(to_log).collect(),
            reads,
        };
        self.node.advance_append_async(ready);
        work
    }

    /// Everything that work up to `ticket` wanted written is durable.
    pub fn on_synced(&mut self, ticket: Ticket) {
        self.node.on_persist_ready(ticket.0);
        self.commit_too_much();
        self.tame_timeout();
    }

    /// M06: an entry of an older term counts as committed when a majority has it. M07: one acknowledgement less than a majority suffices.
    fn commit_too_much(&mut self) {
        if !(planted::is(6) || planted::is(7)) || self.node.raft.state != StateRole::Leader {
            return;
        }
        let mut matched: Vec<u64> =
            self.progress().iter().filter(|member| !member.learner).map(|member| member.matched.0).collect();
        matched.sort_unstable_by(|one, other| other.cmp(one));
        let needed = matched.len() / 2 + usize::from(planted::is(6));
        if let Some(index) = needed.checked_sub(1).and_then(|place| matched.get(place))
            && *index > self.node.raft.raft_log.committed
        {
            self.node.raft.raft_log.commit_to(*index);
        }
    }

    /// Entries up to `index` are applied.
    pub fn on_applied(&mut self, index: Index) {
        self.node.advance_apply_to(index.0);
        self.tame_timeout();
    }

    /// A checkpoint is durable: it can be sent as a snapshot, and what its entries did is held. They are forgotten, except for those that
    /// a member within `trailing_bytes` of it still lacks; within [`PRESENT_LOG_BYTES_MAX`] if it is there.
    pub fn saved(&mut self, checkpoint: SnapshotOf, trailing_bytes: u64) {
        let index = checkpoint.index.0;
        assert!(index <= self.node.raft.raft_log.applied, "only applied entries are forgotten");
        self.node.mut_store().saved(checkpoint);
        let needed_by = |member: &Progress| {
            let has = member.matched.max(member.snapshot.unwrap_or_default()).0;
            let kept = if member.active { trailing_bytes.max(PRESENT_LOG_BYTES_MAX) } else { trailing_bytes };
            has.max(self.node.store().start_of_last(kept, index))
        };
        let needed = self.progress().iter().map(needed_by).min().unwrap_or(index);
        self.node.mut_store().compact(needed.min(index));
    }

    /// Whether a member needs a snapshot for which the last checkpoint is too old.
    pub fn wants_checkpoint(&self) -> bool {
        self.node.store().wants_checkpoint()
    }

    /// What this node knows of the members, if it leads.
    pub fn progress(&self) -> Vec<Progress> {
        if self.node.raft.state != StateRole::Leader {
            return Vec::new();
        }
        let tracker = self.node.raft.prs();
        let view = |(id, progress): (&u64, &raft::Progress)| Progress {
            id: *id,
            learner: tracker.conf().learners().contains(id),
            matched: Index(progress.matched),
            next: Index(progress.next_idx),
            active: self.is_there(*id, progress),
            replicating: *id == self.config.id || progress.state == ProgressState::Replicate,
            snapshot: (progress.state == ProgressState::Snapshot).then_some(Index(progress.pending_snapshot)),
        };
        let mut members: Vec<Progress> = tracker.iter().map(view).collect();
        members.sort_unstable_by_key(|member| member.id);
        members
    }

    /// Where the group stands.
    pub fn status(&self) -> Status {
        let raft = &self.node.raft;
        Status {
            role: raft.state.into(),
            term: Term(raft.term),
            leader: raft.leader_id,
            vote: raft.vote,
            commit: Index(raft.raft_log.committed),
            last: Index(raft.raft_log.last_index()),
            first: Index(raft.raft_log.first_index()),
        }
    }

    /// The members.
    pub fn configuration(&self) -> Configuration {
        Configuration::from_raft(self.node.raft.prs().conf().to_conf_state())
    }

    /// Whether this node hands its leadership over just now.
    pub fn is_transferring(&self) -> bool {
        self.node.raft.lead_transferee.is_some()
    }

    /// Replaces whatever timeout the `raft` crate has drawn. See [`crate::timeouts`].
    fn tame_timeout(&mut self) {
        let role = self.node.raft.state;
        let campaigning = |role| matches!(role, StateRole::PreCandidate | StateRole::Candidate);
        if campaigning(role) && role != self.last_role {
            self.campaigns += 1;
        }
        self.last_role = role;
        let draw = Draw {
            seed: self.config.seed,
            shard: u64::from(self.config.shard.0),
            id: self.config.id,
            term: self.node.raft.term,
            campaigns: self.campaigns,
        };
        let longest = self.config.election_ticks * 2 - 1;
        let ticks = if self.out { longest } else { election_ticks(&draw, self.config.election_ticks) };
        self.node.raft.set_randomized_election_timeout(ticks);
    }
}

/// Messages for other members. The `raft` crate addresses some to itself, which it has handled.
fn travelling(messages: Vec<raft::eraftpb::Message>) -> Vec<Message> {
    let travels =
        |message: &raft::eraftpb::Message| message.get_msg_type() != MessageType::MsgPropose || planted::is(15);
    messages.into_iter().filter(travels).map(Message).collect()
}
