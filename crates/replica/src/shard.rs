//! One shard of a replica: a Raft group, a state machine, and the requests between them.

use std::collections::VecDeque;

use base::codec::Reader;
use base::limits::{BATCH_HELD_MAX, ENTRIES_PER_TURN, LEADERLESS_MAX, UNAPPLIED_BYTES_MAX};
use base::log::{Entry, HardState};
use base::machine::{Admission, Effects as MachineEffects, EntryInfo, StateMachine, WaitKey};
use base::{Index, Mono, Position, ShardId, Stamps, Term, planted};
use consensus::codec::{ELECTION, MEMBERS, OPERATIONS, RESTORE, TOKEN};
use consensus::{
    Group, LostLog, MemberChange, Message, Progress, Refused, Role, SnapshotOf, Status, Ticket, decode_changes,
};

use crate::batch::{Batch, Operations, Pending, Retry, operations, read_entry};
use crate::deadlines::{Clocks, next_proposal};
use crate::elections::Election;
use crate::event::{
    Client, Effects, Freshness, Install, MustSync, Now, Reply, ShardStatus, Swap, Transition, Unavailable, Wait, Write,
};
use crate::members::{Members, decode_note};
use crate::reads::{Late, Reads};
use crate::replica::ReplicaConfig;
use crate::restores::{RestoreStep, Restores};
use crate::stamp::Stamper;
use crate::tokens::{Joining, TokenStep};
use crate::waiters::{Waiter, Waiters, Wants};
use crate::writes::in_order;

/// A committed entry that this build cannot apply. The node must stop: it would no longer agree with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The shard.
    pub shard: ShardId,
    /// The entry.
    pub index: Index,
}

/// Why a node must not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// An entry cannot be applied.
    Fault(Fault),
    /// A part of a shard's log is gone.
    Lost(ShardId, LostLog),
}

impl From<Fault> for Halt {
    fn from(fault: Fault) -> Halt {
        Halt::Fault(fault)
    }
}

/// A question, and who asks it.
pub(crate) struct Question<Q, C> {
    pub(crate) query: Q,
    pub(crate) freshness: Freshness,
    pub(crate) wait: Option<(u64, Mono)>,
    pub(crate) client: C,
}

/// What must not be said before it is known that this node still leads.
enum Claimed<S: StateMachine, C> {
    /// The answer to a question.
    Answer(Question<S::Query, C>),
    /// That there was nothing to do there.
    Nothing(Position, S::Outcome, C),
}

/// Requests whose entry is proposed and not applied yet.
struct UnderWay<C> {
    index: Index,
    term: Term,
    bytes: u64,
    requests: Vec<Pending<C>>,
}

/// A request that was applied in vain and may wait on.
struct Again<O, C> {
    client: C,
    retry: Retry,
    nothing: Vec<O>,
}

/// A snapshot that is being installed, and what must not be written before it is.
struct Installing {
    snapshot: SnapshotOf,
    ticket: Option<Ticket>,
    writes: Vec<Write>,
    messages_after_sync: Vec<Message>,
}

/// A restore that is being finished.
struct Restoring<C> {
    index: Index,
    term: Term,
    requests: Vec<Pending<C>>,
}

/// What a shard begins with.
pub(crate) struct Start<S> {
    pub(crate) machine: S,
    /// The last entry that the machine has applied.
    pub(crate) applied: (Index, Term),
    pub(crate) members: Members,
    /// What the log holds.
    pub(crate) hard_state: HardState,
}

pub(crate) struct Shard<S: StateMachine, C> {
    id: ShardId,
    config: ReplicaConfig,
    group: Group,
    machine: S,
    batch: Batch<C>,
    under_way: VecDeque<UnderWay<C>>,
    /// When operations were proposed last.
    last_batch: Mono,
    /// Since when no leader is known.
    leaderless_since: Option<Mono>,
    unapplied_bytes: u64,
    waiters: Waiters<S::Query, S::Outcome, C>,
    reads: Reads<Claimed<S, C>>,
    /// Set while this node leads and takes writes.
    stamper: Option<Stamper>,
    status: Status,
    hard_state: HardState,
    applied: Index,
    applied_term: Term,
    applied_stamps: Stamps,
    /// Since when this process knows `applied_stamps`; nothing before its first turn.
    heard: Option<Mono>,
    proposed_stamps: Stamps,
    members: Members,
    /// The last entry proposed here that changes the members, until it is applied.
    changing: Option<Index>,
    installing: Option<Installing>,
    /// Committed entries that are not applied yet: those behind a restore that is being finished.
    committed: VecDeque<Entry>,
    /// The restore that is being finished, and who waits for it.
    restoring: Option<Restoring<C>>,
    /// What was staged is not here: the leader is asked for a snapshot.
    strayed: bool,
    /// The last entry proposed here that commits a restore, until it is applied. Its clocks are not those of what follows it.
    swapping: Option<Index>,
    /// A restore is under way: no operations are taken.
    held: bool,
    /// An installed snapshot, until what was held back because of it is synced.
    installed: Option<(Index, Ticket)>,
    /// What the save in progress is of.
    frozen: Option<SnapshotOf>,
    checkpoint: Index,
    draining: bool,
    skipped: u64,
    /// When operations were applied last.
    wrote: Option<Mono>,
    /// The same, before the last leader was lost.
    wrote_before: Option<Mono>,
    /// The term in which operations were applied last.
    wrote_in: Term,
}

impl<S: StateMachine, C: Client> Shard<S, C> {
    pub(crate) fn new(id: ShardId, config: ReplicaConfig, group: Group, start: Start<S>) -> Shard<S, C> {
        let Start { machine, applied, members, hard_state } = start;
        let status = group.status();
        let stamps = machine.stamps();
        Shard {
            id,
            config,
            group,
            machine,
            batch: Batch::new(),
            under_way: VecDeque::new(),
            last_batch: Mono(0),
            leaderless_since: None,
            unapplied_bytes: 0,
            waiters: Waiters::default(),
            reads: Reads::new(config.seed),
            stamper: None,
            status,
            hard_state,
            applied: applied.0,
            applied_term: applied.1,
            applied_stamps: stamps,
            heard: None,
            proposed_stamps: stamps,
            members,
            changing: None,
            installing: None,
            committed: VecDeque::new(),
            restoring: None,
            strayed: false,
            swapping: None,
            held: false,
            installed: None,
            frozen: None,
            checkpoint: applied.0,
            draining: false,
            skipped: 0,
            wrote: None,
            wrote_before: None,
            wrote_in: Term(0),
        }
    }

    pub(crate) fn group_mut(&mut self) -> &mut Group {
        &mut self.group
    }

    pub(crate) fn machine_mut(&mut self) -> &mut S {
        &mut self.machine
    }

    pub(crate) fn status(&self) -> ShardStatus {
        ShardStatus {
            shard: self.id,
            consensus: self.group.status(),
            applied: self.applied,
            applied_term: self.applied_term,
            lease_clock: self.applied_stamps.lease,
            checkpoint: self.checkpoint,
            ready: self.takes_writes(),
            confirmed: self.reads.confirmed().filter(|_| self.status.role == Role::Leader),
            alone: self.group.is_alone(),
            installing: self.installing.is_some(),
            wants_checkpoint: self.group.wants_checkpoint(),
            waiting: self.waiters.len(),
            skipped: self.skipped,
        }
    }

    pub(crate) fn applied(&self) -> Index {
        self.applied
    }

    pub(crate) fn members(&self) -> &Members {
        &self.members
    }

    pub(crate) fn progress(&self) -> Vec<Progress> {
        self.group.progress()
    }

    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.group.wants_checkpoint()
    }

    pub(crate) fn is_transferring(&self) -> bool {
        self.group.is_transferring()
    }

    /// Whether more operations may be submitted before the next turn.
    pub(crate) fn has_room(&self) -> bool {
        self.batch.operations() < self.config.entry_operations_max * ENTRIES_PER_TURN
            && self.unapplied_bytes < UNAPPLIED_BYTES_MAX
    }

    // Requests.

    pub(crate) fn submit(
        &mut self,
        now: Now,
        operations: Operations,
        wait: Option<Wait>,
        client: C,
        fx: &mut Effects<S, C>,
    ) {
        if self.draining && wait.is_some() {
            return refuse(fx, client, Unavailable::Draining);
        }
        if self.held {
            return refuse(fx, client, Unavailable::Restoring);
        }
        if !(self.takes_writes() || planted::is(15)) {
            return refuse(fx, client, Unavailable::NoLeader);
        }
        let mut keys = Vec::new();
        let mut refused = Vec::new();
        let mut nothing = None;
        for operation in operations.iter() {
            match self.machine.admit(operation, &mut keys) {
                Admission::Propose => {}
                Admission::Refuse(outcome) => refused.push(outcome),
                Admission::Nothing(outcome) => nothing = Some(outcome),
            }
        }
        // What holds for one item of a batch may not hold for the next, so a batch is refused as a whole or goes to the log.
        if refused.len() == operations.len() {
            let position = self.position();
            return fx.replies.push((client, Reply::Applied { position, outcomes: refused }));
        }
        let deadline = wait.map(|Wait { id, up_to }| (id, now.mono + up_to));
        match (nothing.filter(|_| operations.len() == 1), deadline) {
            (Some(nothing), None) => self.claim(now, Claimed::Nothing(self.position(), nothing, client), fx),
            (Some(nothing), Some((wait, deadline))) => {
                let rank = self.waiters.new_rank();
                let wants = Wants::Work { operations, nothing };
                self.waiters.park(rank, Waiter { wait, keys, deadline, client, wants });
            }
            (None, deadline) => {
                let retry = deadline.map(|(wait, deadline)| Retry {
                    operations: Operations::default(),
                    wait,
                    deadline,
                    rank: self.waiters.new_rank(),
                    woken_by: None,
                });
                let count = operations.len();
                self.batch.push(operations, Pending { client: Some(client), count, retry });
            }
        }
    }

    pub(crate) fn elected(&mut self, election: &Election) {
        // Whoever leads next records its own election.
        let _ = self.group.propose(election.term, election.entry());
    }

    /// Whether this node leads, has committed an entry of its term, and keeps its leadership.
    fn takes_writes(&self) -> bool {
        self.stamper.is_some() && !self.group.is_transferring()
    }

    /// Proposes a change of members, with a note as [`decode_note`] reads it. One at a time:
    /// a member that has not applied the last one could still campaign by the members before it.
    pub(crate) fn change(&mut self, changes: &[MemberChange], note: &[u8], client: Option<C>, fx: &mut Effects<S, C>) {
        let why = if !self.takes_writes() {
            Unavailable::NoLeader
        } else if self.held || self.changing.is_some() || self.members.configuration.is_changing() {
            Unavailable::Overloaded
        } else {
            match self.group.propose_members(self.status.term, changes, note) {
                Ok(()) => return self.await_change(client),
                Err(refused) => unavailable(refused),
            }
        };
        if let Some(client) = client {
            refuse(fx, client, why);
        }
    }

    fn await_change(&mut self, client: Option<C>) {
        self.changing = Some(self.group.status().last);
        self.await_last(client);
    }

    /// Lets a client wait for the entry proposed last.
    fn await_last(&mut self, client: Option<C>) {
        let (index, term) = (self.group.status().last, self.status.term);
        let requests = vec![Pending { client, count: 0, retry: None }];
        self.under_way.push_back(UnderWay { index, term, bytes: 0, requests });
    }

    /// The group leaves a change of members as soon as it has entered it.
    fn leave_change(&mut self) {
        let entered = self.members.configuration.is_changing() && self.changing.is_none();
        if entered && self.takes_writes() && self.group.propose_leaving(self.status.term).is_ok() {
            self.await_change(None);
        }
    }

    /// Takes note of what group 0 knows of restores: while one is under way there is no room for operations, and where this node leads a
    /// group that has not committed what group 0 has, it does.
    pub(crate) fn follow_restores(&mut self, first: &Restores, fx: &mut Effects<S, C>) {
        let held = !first.lets_write(&self.members.restores);
        if held && !self.held {
            let unproposed: Vec<_> = self.batch.drain().collect();
            self.fail(unproposed, Unavailable::Restoring, fx);
            for waiter in self.waiters.drain() {
                refuse(fx, waiter.client, Unavailable::Restoring);
            }
        }
        self.held = held;
        if let (false, Some(id)) = (first.pending, first.done)
            && held
        {
            self.restore(RestoreStep::Commit(id), None, fx);
        }
    }

    /// Proposes a step of a restore.
    pub(crate) fn restore(&mut self, step: RestoreStep, client: Option<C>, fx: &mut Effects<S, C>) {
        let why = if !self.takes_writes() {
            Unavailable::NoLeader
        } else if self.swapping.is_some() || self.restoring.is_some() || self.changing.is_some() {
            Unavailable::Overloaded
        } else {
            match self.group.propose(self.status.term, step.entry()) {
                Ok(()) => {
                    if let RestoreStep::Commit(_) = step {
                        self.swapping = Some(self.group.status().last);
                    }
                    return self.await_last(client);
                }
                Err(refused) => unavailable(refused),
            }
        };
        if let Some(client) = client {
            refuse(fx, client, why);
        }
    }

    /// Proposes to make or to revoke a join token.
    pub(crate) fn token(&mut self, step: &TokenStep, client: C, fx: &mut Effects<S, C>) {
        let why = if !self.takes_writes() {
            Unavailable::NoLeader
        } else {
            match self.group.propose(self.status.term, step.entry()) {
                Ok(()) => return self.await_last(Some(client)),
                Err(refused) => unavailable(refused),
            }
        };
        refuse(fx, client, why);
    }

    pub(crate) fn ask(&mut self, now: Now, question: Question<S::Query, C>, fx: &mut Effects<S, C>) {
        if self.draining && question.wait.is_some() {
            return refuse(fx, question.client, Unavailable::Draining);
        }
        match question.freshness {
            Freshness::AtLeast { index, .. } if index <= self.applied => self.settle(Claimed::Answer(question), fx),
            Freshness::AtLeast { index, up_to } => {
                self.reads.wait_for(index, now.mono + up_to, Claimed::Answer(question));
            }
            Freshness::Linearizable => self.claim(now, Claimed::Answer(question), fx),
        }
    }

    pub(crate) fn forget(&mut self, wait: u64) {
        self.waiters.forget(wait);
    }

    /// Lets nobody wait any longer.
    pub(crate) fn drain(&mut self, fx: &mut Effects<S, C>) {
        self.draining = true;
        for waiter in self.waiters.drain() {
            refuse(fx, waiter.client, Unavailable::Draining);
        }
    }

    /// Says something that another leader could know better: at once if nobody else could lead, else when a quorum has confirmed it. That
    /// there is nothing to do is for the leader alone to say, since it wakes who waits.
    fn claim(&mut self, now: Now, claimed: Claimed<S, C>, fx: &mut Effects<S, C>) {
        // M14: questions are answered without asking who leads.
        // After a restart it is alone before it has applied what its log holds.
        let is_alone = self.group.is_alone() && self.stamper.is_some();
        if is_alone || (planted::is(14) && matches!(claimed, Claimed::Answer(_))) {
            self.settle(claimed, fx);
        } else if self.status.role == Role::Leader || matches!(claimed, Claimed::Answer(_)) {
            self.reads.gather(now.mono + self.config.leader_wait, claimed);
        } else {
            refuse(fx, claimed.into_client(), Unavailable::NoLeader);
        }
    }

    fn settle(&mut self, claimed: Claimed<S, C>, fx: &mut Effects<S, C>) {
        match claimed {
            // More may have been applied since it was looked, and have changed that.
            Claimed::Nothing(position, outcome, client) => {
                fx.replies.push((client, Reply::Applied { position, outcomes: vec![outcome] }));
            }
            Claimed::Answer(question) => {
                let (answer, key) = self.machine.query(&question.query);
                if let (Some(key), Some((wait, deadline))) = (key, question.wait) {
                    let rank = self.waiters.new_rank();
                    let wants = Wants::Answer(question.query);
                    let client = question.client;
                    self.waiters.park(rank, Waiter { wait, keys: vec![key], deadline, client, wants });
                } else {
                    let position = self.position();
                    fx.replies.push((question.client, Reply::Answered { position, answer }));
                }
            }
        }
    }

    fn position(&self) -> Position {
        Position { shard: self.id, term: self.applied_term, index: self.applied }
    }

    // A turn.

    /// Does what has come up: applies, wakes, proposes, and collects what is to be written and sent.
    pub(crate) fn poll(
        &mut self,
        now: Now,
        seeds: &mut impl FnMut() -> [u8; 16],
        fx: &mut Effects<S, C>,
    ) -> Result<(), Halt> {
        if let Some(lost) = self.group.lost() {
            return Err(Halt::Lost(self.id, lost));
        }
        self.heard.get_or_insert(now.mono);
        if self.strayed && self.restoring.is_some() {
            // It is asked again until it can be.
            self.strayed = !self.group.request_snapshot();
        }
        self.tell(fx);
        self.work(now, fx)?;
        self.follow_status(now, fx);
        self.leave_change();
        self.confirm_reads(now);
        for claimed in self.reads.take_ready(self.applied) {
            self.settle(claimed, fx);
        }
        self.wake(now, fx);
        self.give_up_late(now, fx);
        self.propose(now, seeds, fx);
        self.group.tell_commit();
        Ok(self.work(now, fx)?)
    }

    /// Whether another turn has something to do at once.
    pub(crate) fn has_work(&self, now: Now) -> bool {
        self.has_consensus_work() || self.next_batch().is_some_and(|moment| moment <= now.mono)
    }

    /// Whether nothing waits to be done, now or later.
    pub(crate) fn is_idle(&self) -> bool {
        !self.has_consensus_work() && self.next_batch().is_none()
    }

    fn has_consensus_work(&self) -> bool {
        self.installing.is_none() && (self.group.has_work() || (self.restoring.is_none() && !self.committed.is_empty()))
    }

    /// When the shard wants a turn although nothing happens.
    pub(crate) fn next_wakeup(&mut self, now: Now) -> Option<Mono> {
        let proposal = self.next_proposal(now);
        let batch = self.next_batch();
        [proposal, batch, self.waiters.next_deadline(), self.reads.next_deadline()].into_iter().flatten().min()
    }

    fn next_proposal(&mut self, now: Now) -> Option<Mono> {
        if self.is_swapping() {
            return None;
        }
        let present = self.stamper.as_mut()?.stamp(now);
        let clocks = Clocks { proposed: self.proposed_stamps, applied: self.applied_stamps, present };
        next_proposal(self.machine.next_due(), &clocks, now.mono)
    }

    /// Whether what is proposed now could be applied to another state than the one it is stamped for.
    fn is_swapping(&self) -> bool {
        self.swapping.is_some() || self.restoring.is_some()
    }

    fn work(&mut self, now: Now, fx: &mut Effects<S, C>) -> Result<(), Fault> {
        self.apply_committed(now, fx)?;
        // M10: entries are applied while a snapshot takes the place of the state.
        while (self.installing.is_none() || planted::is(10)) && self.group.has_work() {
            let work = self.group.work();
            let shard = self.id;
            let messages = work.messages.into_iter().map(|message| (shard, message));
            if let Some(snapshot) = work.snapshot {
                fx.messages.extend(messages);
                self.begin_install(snapshot, work.ticket, work.hard_state, work.entries, work.messages_after_sync, fx);
                return Ok(());
            }
            if !work.entries.is_empty() {
                fx.must_sync = fx.must_sync.max(MustSync::Entries);
            }
            if let Some(state) = work.hard_state {
                // A commit index alone can be learnt again; a term and a vote must never be forgotten.
                if (state.term, state.vote) != (self.hard_state.term, self.hard_state.vote) {
                    fx.must_sync = MustSync::Vote;
                }
                self.hard_state = state;
            }
            fx.writes.extend(in_order(shard, work.hard_state, work.entries));
            fx.after_sync.tickets.extend(work.ticket.map(|ticket| (shard, ticket)));
            // A sole voter leads in the turn in which it takes its new term. If it said so and forgot, it would lead in that term again, with
            // other entries.
            if fx.must_sync == MustSync::Vote {
                fx.after_sync.messages.extend(messages);
            } else {
                fx.messages.extend(messages);
            }
            let after_sync = work.messages_after_sync.into_iter().map(|message| (shard, message));
            // M05: a vote leaves before it is durable.
            if planted::is(5) {
                fx.messages.extend(after_sync);
            } else {
                fx.after_sync.messages.extend(after_sync);
            }
            for (context, index) in work.reads {
                self.reads.on_confirmed(&context, index);
            }
            self.committed.extend(work.committed);
            self.apply_committed(now, fx)?;
        }
        Ok(())
    }

    /// Applies what is committed, up to a restore that is to be finished first.
    fn apply_committed(&mut self, now: Now, fx: &mut Effects<S, C>) -> Result<(), Fault> {
        let before = self.applied;
        while self.restoring.is_none()
            && let Some(entry) = self.committed.pop_front()
        {
            self.apply(now, &entry, fx)?;
        }
        if self.applied > before {
            self.group.on_applied(self.applied);
        }
        Ok(())
    }

    fn apply(&mut self, now: Now, entry: &Entry, fx: &mut Effects<S, C>) -> Result<(), Fault> {
        let fault = Fault { shard: self.id, index: entry.index };
        let requests = self.requests_of(entry, fx);
        if entry.data.first() == Some(&RESTORE) {
            return self.apply_restore(entry, requests, fx);
        }
        self.applied = entry.index;
        self.applied_term = entry.term;
        match entry.data.first() {
            // A new leader's first entry says nothing.
            None => Ok(()),
            Some(&OPERATIONS) => self.apply_operations(now, entry, requests, fx),
            Some(&MEMBERS) => self.apply_members(entry, requests, fx),
            Some(&ELECTION) => self.apply_election(entry, fx),
            Some(&TOKEN) => self.apply_token(entry, requests, fx),
            Some(_) => Err(fault),
        }
    }

    fn apply_members(&mut self, entry: &Entry, requests: Vec<Pending<C>>, fx: &mut Effects<S, C>) -> Result<(), Fault> {
        let fault = Fault { shard: self.id, index: entry.index };
        let (changes, note) = decode_changes(&entry.data).map_err(|_| fault)?;
        let (records, admission) = decode_note(note).map_err(|_| fault)?;
        // Between proposing and applying the token may have been revoked or used up: then nobody is admitted.
        if admission.is_none_or(|admission| self.members.tokens.admit(&admission)) {
            let replicas: Vec<u64> = match admission {
                Some(Joining { replica: true, .. }) => records.iter().map(|record| record.id).collect(),
                _ => Vec::new(),
            };
            self.group.apply_members(&entry.data).map_err(|_| fault)?;
            self.members.apply(&changes, records, self.group.configuration());
            self.members.keep_from_voting(replicas);
        }
        if self.changing.is_some_and(|index| index <= entry.index) {
            self.changing = None;
        }
        fx.transitions.push(Transition::Members { shard: self.id, members: Box::new(self.members.clone()) });
        self.answer(requests, fx);
        Ok(())
    }

    fn apply_token(&mut self, entry: &Entry, requests: Vec<Pending<C>>, fx: &mut Effects<S, C>) -> Result<(), Fault> {
        let fault = Fault { shard: self.id, index: entry.index };
        self.members.tokens.apply(TokenStep::decode(&entry.data[1..]).map_err(|_| fault)?);
        fx.transitions.push(Transition::Members { shard: self.id, members: Box::new(self.members.clone()) });
        self.answer(requests, fx);
        Ok(())
    }

    fn apply_restore(&mut self, entry: &Entry, requests: Vec<Pending<C>>, fx: &mut Effects<S, C>) -> Result<(), Fault> {
        let fault = Fault { shard: self.id, index: entry.index };
        let step = RestoreStep::decode(&entry.data[1..]).map_err(|_| fault)?;
        if self.swapping.is_some_and(|index| index <= entry.index) {
            self.swapping = None;
        }
        let mut members = self.members.clone();
        let swaps = members.restores.apply(step, entry.index, self.id == ShardId(0));
        if let (true, RestoreStep::Commit(id)) = (swaps, step) {
            // Applied is this entry only with what it brings.
            self.restoring = Some(Restoring { index: entry.index, term: entry.term, requests });
            fx.swaps.push(Swap { shard: self.id, id, index: entry.index, term: entry.term, members });
            return Ok(());
        }
        (self.applied, self.applied_term, self.members) = (entry.index, entry.term, members);
        fx.transitions.push(Transition::Members { shard: self.id, members: Box::new(self.members.clone()) });
        self.answer(requests, fx);
        Ok(())
    }

    /// Tells who waited for an entry without operations that it is applied.
    fn answer(&self, requests: Vec<Pending<C>>, fx: &mut Effects<S, C>) {
        let position = self.position();
        for client in requests.into_iter().filter_map(|request| request.client) {
            fx.replies.push((client, Reply::Applied { position, outcomes: Vec::new() }));
        }
    }

    fn apply_election(&mut self, entry: &Entry, fx: &mut Effects<S, C>) -> Result<(), Fault> {
        let fault = Fault { shard: self.id, index: entry.index };
        let mut reader = Reader::new(&entry.data[1..]);
        let election = Election::decode(&mut reader).map_err(|_| fault)?;
        reader.finish().map_err(|_| fault)?;
        self.members.elections.apply(election);
        fx.transitions.push(Transition::Elections { shard: self.id, elections: self.members.elections.clone() });
        Ok(())
    }

    fn apply_operations(
        &mut self,
        now: Now,
        entry: &Entry,
        requests: Vec<Pending<C>>,
        fx: &mut Effects<S, C>,
    ) -> Result<(), Fault> {
        let fault = Fault { shard: self.id, index: entry.index };
        let (header, rest) = read_entry(self.members.restores.seen(entry.index), &entry.data).map_err(|_| fault)?;
        // Stamps of another term's leader mean nothing in this one.
        // M15: nobody looks.
        if header.term != entry.term && !planted::is(15) {
            self.skipped += 1;
            return Ok(());
        }
        let mut effects = MachineEffects { woken: Vec::new(), signals: std::mem::take(&mut fx.signals) };
        self.machine.begin_entry(&header, &mut effects);
        self.applied_stamps = self.machine.stamps();
        self.heard = Some(now.mono);
        let mut all = operations(rest);
        let mut again = Vec::new();
        let position = self.position();
        for request in requests {
            let mut outcomes = Vec::with_capacity(request.count);
            for operation in all.by_ref().take(request.count) {
                let operation = operation.map_err(|_| fault)?;
                outcomes.push(self.machine.apply(operation, &mut effects).map_err(|_| fault)?);
            }
            let Some(client) = request.client else { continue };
            if let Some(key) = request.retry.as_ref().and_then(|retry| retry.woken_by) {
                self.waiters.settled(key);
            }
            let in_vain = |outcomes: &[S::Outcome]| outcomes.iter().all(|outcome| self.machine.found_nothing(outcome));
            match request.retry {
                Some(retry) if retry.deadline > now.mono && in_vain(&outcomes) && self.stamper.is_none() => {
                    // Only a leader wakes who waits.
                    refuse(fx, client, Unavailable::NoLeader);
                }
                Some(retry) if retry.deadline > now.mono && !self.draining && in_vain(&outcomes) => {
                    again.push(Again { client, retry, nothing: outcomes });
                }
                _ => fx.replies.push((client, Reply::Applied { position, outcomes })),
            }
        }
        // Nobody here waits for the others: they came from another leader.
        for operation in all {
            self.machine.apply(operation.map_err(|_| fault)?, &mut effects).map_err(|_| fault)?;
        }
        fx.signals = effects.signals;
        for key in effects.woken {
            self.waiters.signal(key);
        }
        for request in again {
            self.wait_again(request);
        }
        if !rest.is_empty() {
            self.wrote = Some(now.mono);
            let is_first = std::mem::replace(&mut self.wrote_in, entry.term) != entry.term;
            if is_first && self.status.role == Role::Leader && self.status.term == entry.term {
                let (shard, term, last) = (self.id, entry.term, self.wrote_before);
                fx.transitions.push(Transition::FirstWrite { shard, term, last });
            }
        }
        Ok(())
    }

    /// The requests that proposed this entry here. Those of entries that it has overtaken are lost.
    fn requests_of(&mut self, entry: &Entry, fx: &mut Effects<S, C>) -> Vec<Pending<C>> {
        while let Some(first) = self.under_way.front().filter(|first| first.index <= entry.index) {
            let found = (first.index, first.term) == (entry.index, entry.term);
            let taken = self.under_way.pop_front().expect("it was looked at");
            self.unapplied_bytes -= taken.bytes;
            if found {
                return taken.requests;
            }
            self.fail(taken.requests, Unavailable::Unknown, fx);
        }
        Vec::new()
    }

    /// A request that found nothing to do waits on with its old rank, or tries again if something has come up meanwhile.
    fn wait_again(&mut self, request: Again<S::Outcome, C>) {
        let Again { client, retry, nothing } = request;
        let mut keys: Vec<WaitKey> = Vec::new();
        let operation = retry.operations.iter().next().expect("what waits has an operation");
        let nothing_now = matches!(self.machine.admit(operation, &mut keys), Admission::Nothing(_));
        let Some(nothing) = nothing.into_iter().next().filter(|_| nothing_now) else {
            let operations = retry.operations;
            let retry = Retry { operations: Operations::default(), woken_by: None, ..retry };
            return self.batch.push(operations, Pending { client: Some(client), count: 1, retry: Some(retry) });
        };
        let wants = Wants::Work { operations: retry.operations, nothing };
        let waiter = Waiter { wait: retry.wait, keys, deadline: retry.deadline, client, wants };
        self.waiters.park(retry.rank, waiter);
    }

    fn tell(&mut self, fx: &mut Effects<S, C>) {
        let shard = self.id;
        fx.transitions.extend(self.group.take_story().into_iter().map(|told| Transition::Told { shard, told }));
    }

    /// Takes note of a new role, leader or term.
    fn follow_status(&mut self, now: Now, fx: &mut Effects<S, C>) {
        self.tell(fx);
        let status = self.group.status();
        let before = std::mem::replace(&mut self.status, status);
        let (shard, term) = (self.id, status.term);
        if status.role != before.role {
            fx.transitions.push(Transition::Role { shard, from: before.role, to: status.role, term });
        }
        if status.leader != before.leader || (status.leader != 0 && status.term != before.term) {
            fx.transitions.push(Transition::Leader { shard, leader: status.leader, term });
        }
        self.leaderless_since = (status.leader == 0).then(|| self.leaderless_since.unwrap_or(now.mono));
        if status.leader != before.leader && before.leader != 0 {
            self.wrote_before = self.wrote;
        }
        let leads = status.role == Role::Leader;
        if before.role == Role::Leader && (!leads || status.term != before.term) {
            self.stop_leading(fx);
        }
        // Everything before its own first entry is applied: the stamps go on from there, and reads are current.
        if leads && self.stamper.is_none() && self.applied_term == status.term {
            self.start_leading(now, fx);
        }
    }

    fn start_leading(&mut self, now: Now, fx: &mut Effects<S, C>) {
        let (shard, term, index) = (self.id, self.status.term, self.applied);
        let mut stamper = Stamper::begin_term(self.applied_stamps, self.heard.unwrap_or(now.mono), now);
        let (last, resumed) = (self.applied_stamps.lease, stamper.stamp(now).lease);
        self.stamper = Some(stamper);
        self.proposed_stamps = self.applied_stamps;
        let mut opening = Operations::default();
        let mut operation = Vec::new();
        if self.machine.opening(&mut operation) {
            opening.push(|bytes| bytes.extend_from_slice(&operation));
            self.batch.push(opening, Pending { client: None, count: 1, retry: None });
        }
        let notice = self.machine.on_leader_ready();
        fx.transitions.push(Transition::Ready { shard, term, index, resumed, counted: resumed - last, notice });
    }

    /// What was proposed may still be committed by the next leader, which is seen here when it is applied; so whoever waits for it waits on.
    fn stop_leading(&mut self, fx: &mut Effects<S, C>) {
        self.stamper = None;
        self.changing = None;
        self.swapping = None;
        // M15: what waits to be proposed is kept for the next leader.
        if !planted::is(15) {
            let unproposed: Vec<_> = self.batch.drain().collect();
            self.fail(unproposed, Unavailable::NoLeader, fx);
        }
        for waiter in self.waiters.drain() {
            refuse(fx, waiter.client, Unavailable::NoLeader);
        }
        for claimed in self.reads.drain() {
            refuse(fx, claimed.into_client(), Unavailable::NoLeader);
        }
    }

    fn fail(&mut self, requests: Vec<Pending<C>>, why: Unavailable, fx: &mut Effects<S, C>) {
        for request in requests {
            if let Some(key) = request.retry.and_then(|retry| retry.woken_by) {
                self.waiters.settled(key);
            }
            if let Some(client) = request.client {
                refuse(fx, client, why);
            }
        }
    }

    fn confirm_reads(&mut self, now: Now) {
        // A leader that has not committed in its term, and a member that knows no leader, cannot ask yet.
        let asks = if self.status.role == Role::Leader { self.stamper.is_some() } else { self.status.leader != 0 };
        if !asks {
            return;
        }
        // A leader asks although nobody wants to know, so that it can tell for how long it has surely led.
        let leads = self.status.role == Role::Leader && !self.group.is_alone();
        let renews = leads && self.reads.is_idle_for(self.config.lease_renewal, now.mono);
        let context = match self.reads.is_gathering() || renews {
            true => Some(self.reads.begin_round(now.mono)),
            false => self.reads.repeat_round(now.mono),
        };
        if let Some(context) = context {
            // If the leader is lost meanwhile, it is asked for again.
            let _ = self.group.confirm_read(context);
        }
    }

    /// Lets waiting requests go on for which something has come up.
    fn wake(&mut self, now: Now, fx: &mut Effects<S, C>) {
        let machine = &self.machine;
        for (rank, key, waiter) in self.waiters.wake(|key| machine.available(key)) {
            let Waiter { wait, deadline, client, wants, .. } = waiter;
            match wants {
                Wants::Answer(query) => {
                    let question =
                        Question { query, freshness: Freshness::Linearizable, wait: Some((wait, deadline)), client };
                    self.claim(now, Claimed::Answer(question), fx);
                }
                Wants::Work { .. } if client.is_gone() => self.waiters.settled(key),
                Wants::Work { operations, .. } => {
                    let retry = Retry { operations: Operations::default(), wait, deadline, rank, woken_by: Some(key) };
                    self.batch.push(operations, Pending { client: Some(client), count: 1, retry: Some(retry) });
                }
            }
        }
    }

    fn give_up_late(&mut self, now: Now, fx: &mut Effects<S, C>) {
        for waiter in self.waiters.take_late(now.mono) {
            let client = waiter.client;
            let claimed = match waiter.wants {
                Wants::Work { operations, nothing } => {
                    let operation = operations.iter().next().expect("what waits has an operation");
                    if !matches!(self.machine.admit(operation, &mut Vec::new()), Admission::Nothing(_)) {
                        // What is there is about to go to somebody else, perhaps: the log decides.
                        self.batch.push(operations, Pending { client: Some(client), count: 1, retry: None });
                        continue;
                    }
                    Claimed::Nothing(self.position(), nothing, client)
                }
                Wants::Answer(query) => {
                    Claimed::Answer(Question { query, freshness: Freshness::Linearizable, wait: None, client })
                }
            };
            self.claim(now, claimed, fx);
        }
        // Only a leader could say what became of what this node proposed while it led.
        if self.leaderless_since.is_some_and(|since| now.mono - since >= LEADERLESS_MAX) {
            let under_way = self.under_way.iter_mut();
            let requests: Vec<_> = under_way.flat_map(|entry| std::mem::take(&mut entry.requests)).collect();
            self.fail(requests, Unavailable::Unknown, fx);
        }
        for late in self.reads.take_late(now.mono) {
            match late {
                Late::Unconfirmed(claimed) => refuse(fx, claimed.into_client(), Unavailable::NoLeader),
                Late::Behind(claimed) => refuse(fx, claimed.into_client(), Unavailable::TooStale),
            }
        }
    }

    /// From when on the operations that wait may be proposed, if there are any: when nothing is under way to a majority, and
    /// [`BATCH_HELD_MAX`] after the last proposal in any case. What comes up until then makes the batch larger; entries of few operations
    /// would cost every member a sync and a message for each.
    fn next_batch(&self) -> Option<Mono> {
        let held_until = if self.under_way.is_empty() { Mono(0) } else { self.last_batch + BATCH_HELD_MAX };
        (!self.batch.is_empty() && self.stamper.is_some() && !self.is_swapping()).then_some(held_until)
    }

    /// Turns what waits into entries, or proposes an empty one if something is due.
    fn propose(&mut self, now: Now, seeds: &mut impl FnMut() -> [u8; 16], fx: &mut Effects<S, C>) {
        if self.is_swapping() {
            return;
        }
        let due = self.batch.is_empty() && self.next_proposal(now).is_some_and(|moment| moment <= now.mono);
        let next_batch = self.next_batch().is_some_and(|moment| moment <= now.mono);
        let Some(stamper) = &mut self.stamper else { return self.pass_on(now, seeds) };
        let term = self.status.term;
        let mut header = EntryInfo { term, index: self.group.status().last, stamps: stamper.stamp(now), seed: [0; 16] };
        let mut entries = 0;
        while (due && entries == 0)
            || (next_batch
                && !self.batch.is_empty()
                && entries < ENTRIES_PER_TURN
                && self.unapplied_bytes < UNAPPLIED_BYTES_MAX)
        {
            entries += 1;
            header.index = header.index.next();
            header.seed = seeds();
            let formed = self.batch.form(&header, self.config.entry_operations_max, self.config.entry_bytes_max);
            let bytes = formed.data.len() as u64;
            match self.group.propose(term, formed.data) {
                Ok(()) => {
                    self.proposed_stamps = header.stamps;
                    self.last_batch = now.mono;
                    self.unapplied_bytes += bytes;
                    let operations = formed.requests.iter().map(|request| request.count).sum();
                    fx.proposed.push((self.id, header.index, operations));
                    self.under_way.push_back(UnderWay { index: header.index, term, bytes, requests: formed.requests });
                }
                Err(refused) => return self.fail(formed.requests, unavailable(refused), fx),
            }
        }
    }

    /// M15: a follower proposes what it has, stamped in its own last term, through whoever leads.
    fn pass_on(&mut self, now: Now, seeds: &mut impl FnMut() -> [u8; 16]) {
        if !planted::is(15) || self.batch.is_empty() || self.status.leader == 0 {
            return;
        }
        let stamps = Stamper::begin_term(self.applied_stamps, self.heard.unwrap_or(now.mono), now).stamp(now);
        let (term, index) = (Term(self.status.term.0 - 1), self.group.status().last.next());
        let header = EntryInfo { term, index, stamps, seed: seeds() };
        let formed = self.batch.form(&header, self.config.entry_operations_max, self.config.entry_bytes_max);
        // What is lost on the way nobody hears of.
        let _ = self.group.propose(term, formed.data);
    }

    // Checkpoints and snapshots.

    pub(crate) fn freeze(&mut self) -> (Index, Term, Vec<u8>) {
        self.machine.freeze();
        let configuration = self.members.configuration.clone();
        self.frozen = Some(SnapshotOf { index: self.applied, term: self.applied_term, configuration });
        (self.applied, self.applied_term, self.members.encode())
    }

    pub(crate) fn saved(&mut self) -> Box<dyn Send> {
        let frozen = self.frozen.take().expect("a save is in progress");
        self.checkpoint = frozen.index;
        self.group.saved(frozen, self.config.trailing_bytes);
        self.machine.saved()
    }

    pub(crate) fn shown(&mut self) -> Box<dyn Send> {
        self.frozen = None;
        self.machine.saved()
    }

    fn begin_install(
        &mut self,
        snapshot: SnapshotOf,
        ticket: Option<Ticket>,
        hard_state: Option<HardState>,
        entries: Vec<Entry>,
        messages_after_sync: Vec<Message>,
        fx: &mut Effects<S, C>,
    ) {
        let shard = self.id;
        fx.installs.push(Install::new(shard, &snapshot));
        // A log that says more than the checkpoint holds would look as if it had lost something, so it is written after it.
        let mut writes = vec![Write::Restart(shard, snapshot.index, snapshot.term)];
        if let Some(state) = hard_state {
            self.hard_state = state;
        }
        writes.extend(in_order(shard, hard_state, entries));
        self.installing = Some(Installing { snapshot, ticket, writes, messages_after_sync });
    }

    /// The snapshot under way is the shard's checkpoint now, and `machine` and `members` are what it holds.
    pub(crate) fn installed(&mut self, now: Now, machine: S, members: Members, fx: &mut Effects<S, C>) -> S {
        let Installing { snapshot, ticket, writes, messages_after_sync } =
            self.installing.take().expect("a snapshot is being installed");
        let before = std::mem::replace(&mut self.machine, machine);
        self.members = members;
        self.frozen = None;
        // The snapshot covers them, and a restore among them.
        self.committed.clear();
        self.strayed = false;
        if let Some(Restoring { requests, .. }) = self.restoring.take() {
            self.fail(requests, Unavailable::Unknown, fx);
        }
        (self.applied, self.applied_term, self.checkpoint) = (snapshot.index, snapshot.term, snapshot.index);
        self.applied_stamps = self.machine.stamps();
        self.heard = Some(now.mono);
        fx.transitions.push(Transition::Members { shard: self.id, members: Box::new(self.members.clone()) });
        fx.transitions.push(Transition::Elections { shard: self.id, elections: self.members.elections.clone() });
        // What became of requests that the snapshot covers is not seen here.
        while self.under_way.front().is_some_and(|first| first.index <= snapshot.index) {
            let covered = self.under_way.pop_front().expect("it was looked at");
            self.unapplied_bytes -= covered.bytes;
            self.fail(covered.requests, Unavailable::Unknown, fx);
        }
        let shard = self.id;
        // The term of its leader may be new here.
        fx.must_sync = MustSync::Vote;
        fx.writes.extend(writes);
        fx.after_sync.tickets.extend(ticket.map(|ticket| (shard, ticket)));
        fx.after_sync.messages.extend(messages_after_sync.into_iter().map(|message| (shard, message)));
        self.installed = ticket.map(|ticket| (snapshot.index, ticket));
        before
    }

    /// Nothing is staged here for the restore that is to be finished.
    pub(crate) fn ask_for_snapshot(&mut self) {
        self.strayed = true;
    }

    /// What was staged is the shard's checkpoint now, and `machine` and `members` are what it holds.
    pub(crate) fn restored(&mut self, now: Now, machine: S, members: Members, fx: &mut Effects<S, C>) -> S {
        let Restoring { index, term, requests } = self.restoring.take().expect("a restore is being finished");
        let before = std::mem::replace(&mut self.machine, machine);
        self.members = members;
        self.frozen = None;
        (self.applied, self.applied_term, self.checkpoint) = (index, term, index);
        self.applied_stamps = self.machine.stamps();
        self.proposed_stamps = self.applied_stamps;
        self.heard = Some(now.mono);
        // The clocks go on from what they showed when the backup was made.
        if self.stamper.is_some() {
            self.stamper = Some(Stamper::begin_term(self.applied_stamps, now.mono, now));
        }
        self.group.on_applied(index);
        let configuration = self.members.configuration.clone();
        self.group.saved(SnapshotOf { index, term, configuration }, self.config.trailing_bytes);
        for waiter in self.waiters.drain() {
            refuse(fx, waiter.client, Unavailable::Restoring);
        }
        fx.transitions.push(Transition::Members { shard: self.id, members: Box::new(self.members.clone()) });
        self.answer(requests, fx);
        before
    }

    pub(crate) fn on_synced(&mut self, ticket: Ticket) {
        self.group.on_synced(ticket);
        if let Some((index, awaited)) = self.installed
            && awaited <= ticket
        {
            self.installed = None;
            self.group.on_applied(index);
        }
    }
}

fn unavailable(refused: Refused) -> Unavailable {
    match refused {
        Refused::NotLeader => Unavailable::NoLeader,
        Refused::Busy => Unavailable::Overloaded,
    }
}

impl<S: StateMachine, C> Claimed<S, C> {
    fn into_client(self) -> C {
        match self {
            Claimed::Answer(question) => question.client,
            Claimed::Nothing(_, _, client) => client,
        }
    }
}

fn refuse<S: StateMachine, C>(fx: &mut Effects<S, C>, client: C, why: Unavailable) {
    fx.replies.push((client, Reply::Unavailable(why)));
}
