//! What happens in a group, as values without time: who asked for votes, who gave them, who won, who stopped leading and why.
//!
//! The `raft` crate tells nothing of this, so it is derived: the group looks at itself before and after each call, and at the messages that
//! the call has left to be sent. Nothing here decides anything.

use std::collections::{BTreeMap, BTreeSet};

use base::{Index, Term};
use raft::eraftpb::{Message, MessageType};
use raft::{RawNode, StateRole};

use crate::group::Role;
use crate::log::Log;

/// Something that has happened, and as what the node came out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The node's term afterwards.
    pub term: Term,
    /// Its part afterwards.
    pub role: Role,
    /// What has happened.
    pub happening: Happening,
}

/// What can happen. Members are named by their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// No leader was heard of for as long as this node waits for one.
    HeartbeatTimeout {
        /// Whom it followed; 0: nobody.
        last_leader: u64,
        /// How long it has waited, in units of consensus time.
        ticks: usize,
        /// Which attempt this leads to; counts from 1 since there was a leader.
        attempt: u64,
    },
    /// It asks whether it could win.
    PreVoteStarted {
        /// Counts from 1 since there was a leader.
        attempt: u64,
        /// Votes that suffice.
        needed: usize,
    },
    /// Somebody would vote for it, or not.
    PreVote(Answered),
    /// Enough would.
    PreVoteWon {
        /// How many.
        tally: usize,
        /// Votes that suffice.
        needed: usize,
    },
    /// Not enough would, or nobody said so in time.
    PreVoteLost {
        /// How many would.
        tally: usize,
        /// Votes that suffice.
        needed: usize,
        /// Which attempt this was; counts from 1 since there was a leader.
        attempt: u64,
    },
    /// It asks for votes, in a new term.
    Candidate {
        /// Why.
        cause: Cause,
        /// Counts from 1 since there was a leader.
        attempt: u64,
        /// Votes that suffice.
        needed: usize,
        /// The last entry of its log.
        last: Index,
        /// The term of that entry.
        last_term: Term,
    },
    /// It asks this member for its vote.
    VoteRequested {
        /// The member.
        to: u64,
    },
    /// It was asked for its vote.
    VoteCast {
        /// The candidate.
        to: u64,
        /// In which term.
        term: Term,
        /// The candidate asks only whether it could win.
        pre: bool,
        /// Why it votes so; [`Reason::Ok`]: for the candidate.
        reason: Reason,
    },
    /// It got a vote, its own included, or did not get it.
    Vote(Answered),
    /// It was elected.
    Won(Won),
    /// Nobody was elected in time.
    ElectionTimeout {
        /// Votes it got.
        tally: usize,
        /// Votes that suffice.
        needed: usize,
        /// Somebody voted for another one.
        split: bool,
    },
    /// Its part has changed.
    Role {
        /// Before.
        from: Role,
        /// Now.
        to: Role,
    },
    /// Another member knows a later term.
    TermRaised {
        /// That member.
        from: u64,
        /// The term before.
        old: Term,
    },
    /// It leads no longer.
    StepDown {
        /// Why.
        reason: StepDown,
    },
    /// It knows a leader, for the first time in this term.
    LeaderElected {
        /// The leader, itself perhaps.
        leader: u64,
        /// Whom it knew before; 0: nobody.
        previous: u64,
    },
    /// It knows no leader any more, though it did not miss one: somebody else asks for votes.
    LeaderLost {
        /// Whom it knew before.
        leader: u64,
    },
    /// The leader's entries have come, for the first time in this term.
    FirstAppend {
        /// The leader.
        from: u64,
        /// The entry they begin behind.
        index: Index,
    },
    /// It leads, and begins to send to this member.
    ReplicationStarted {
        /// The member.
        peer: u64,
        /// The entry that it sends first.
        next: Index,
    },
    /// It does not send to this member any more: it leads no longer, or the member is none any more.
    ReplicationStopped {
        /// The member.
        peer: u64,
    },
    /// What the leader sends contradicts the end of its log, which was never committed: that end is dropped.
    Conflict {
        /// The leader.
        from: u64,
        /// The first entry that is dropped.
        index: Index,
    },
    /// It has begun to hand leadership over.
    TransferStarted {
        /// To whom.
        to: u64,
    },
    /// It has given up handing leadership over, and goes on leading.
    TransferFailed {
        /// To whom.
        to: u64,
    },
}

/// An answer to a request for a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Who answered.
    pub from: u64,
    /// [`Reason::Ok`]: for this node.
    pub reason: Reason,
    /// Votes for this node so far.
    pub tally: usize,
    /// Votes that suffice.
    pub needed: usize,
}

/// How an election was won.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Won {
    /// Why there was one.
    pub cause: Cause,
    /// Votes for this node.
    pub tally: usize,
    /// Votes that suffice.
    pub needed: usize,
    /// Who answered and how, by id, as far as it was known then.
    pub votes: Vec<(u64, Reason)>,
    /// Times that this node has asked for votes since there was a leader.
    pub attempts: u64,
    /// Who led before, as far as this node knows; 0: nobody.
    pub previous: u64,
}

/// Why a node asks for votes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It heard no leader.
    Timeout,
    /// It did so before, and nobody won.
    Retry,
    /// The leader has asked it to take over.
    Transfer,
    /// It need not wait, being alone or the first of a new cluster.
    Bootstrap,
}

/// Why a vote was given or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It was given.
    Ok,
    /// Another one has it already in this term.
    AlreadyVoted,
    /// A leader is there, or was heard of a moment ago. Such a request is not answered.
    HaveLeader,
    /// The candidate's log lacks entries.
    LogBehind,
    /// The voter knows a later term.
    OldTerm,
    /// The voter did not say.
    Unknown,
}

/// Why a leader leads no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepDown {
    /// A majority has not answered it for an election timeout.
    QuorumLost,
    /// Another member knows a later term.
    HigherTerm,
    /// It has handed over.
    Transfer,
}

const CAUSES: [Cause; 4] = [Cause::Timeout, Cause::Retry, Cause::Transfer, Cause::Bootstrap];

impl Cause {
    /// It as a number, for entries.
    pub fn code(self) -> u8 {
        CAUSES.iter().position(|known| *known == self).expect("all are listed") as u8
    }

    /// The cause of this number.
    pub fn of_code(code: u8) -> Option<Cause> {
        CAUSES.get(usize::from(code)).copied()
    }
}

const REASONS: [Reason; 6] =
    [Reason::Ok, Reason::AlreadyVoted, Reason::HaveLeader, Reason::LogBehind, Reason::OldTerm, Reason::Unknown];

impl Reason {
    /// It as a number, for messages and entries.
    pub fn code(self) -> u8 {
        REASONS.iter().position(|known| *known == self).expect("all are listed") as u8
    }

    /// The reason of this number; one of a later build is unknown.
    pub fn of_code(code: u8) -> Reason {
        REASONS.get(usize::from(code)).copied().unwrap_or(Reason::Unknown)
    }
}

/// What the story looks at before a call.
pub(crate) struct Before {
    role: StateRole,
    term: u64,
    leader: u64,
    vote: u64,
    timeout: usize,
    transferee: Option<u64>,
    sent: usize,
}

/// What is called.
pub(crate) enum Trigger {
    Tick,
    Campaign,
    Step(Facts),
}

/// What of a message matters here.
pub(crate) struct Facts {
    kind: MessageType,
    from: u64,
    term: u64,
    index: u64,
    log_term: u64,
    reason: Reason,
    /// The first entry of the log that the message contradicts.
    conflict: Option<u64>,
}

/// The first entry of a log that a leader's message contradicts, if what stands before agrees.
fn conflict(node: &RawNode<Log>, message: &Message) -> Option<u64> {
    let log = &node.raft.raft_log;
    let is_append = message.get_msg_type() == MessageType::MsgAppend && message.term >= node.raft.term;
    if !is_append || !log.match_term(message.index, message.log_term) {
        return None;
    }
    let overlap = message.entries.iter().take_while(|entry| entry.index <= log.last_index());
    overlap.filter(|entry| !log.match_term(entry.index, entry.term)).map(|entry| entry.index).next()
}

impl Facts {
    pub(crate) fn of(message: &Message, node: &RawNode<Log>) -> Facts {
        let reason = match (message.reject, message.context.first()) {
            (false, _) => Reason::Ok,
            (true, Some(code)) => Reason::of_code(*code),
            (true, None) => Reason::Unknown,
        };
        Facts {
            kind: message.get_msg_type(),
            from: message.from,
            term: message.term,
            index: message.index,
            log_term: message.log_term,
            reason,
            conflict: conflict(node, message),
        }
    }
}

/// The story of one group so far.
#[derive(Default)]
pub(crate) struct Story {
    told: Vec<Told>,
    /// Times that this node has begun to ask for votes since there was a leader.
    attempts: u64,
    /// Answers to the present question.
    votes: BTreeMap<u64, Reason>,
    cause: Option<Cause>,
    /// The last leader that was known.
    leader: u64,
    /// The terms in which a leader was known last, and its entries came last.
    elected: u64,
    appended: u64,
    /// Whom it sends to as the leader.
    replicated: BTreeSet<u64>,
}

impl Story {
    pub(crate) fn take(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    pub(crate) fn before(node: &RawNode<Log>) -> Before {
        let raft = &node.raft;
        Before {
            role: raft.state,
            term: raft.term,
            leader: raft.leader_id,
            vote: raft.vote,
            timeout: raft.randomized_election_timeout(),
            transferee: raft.lead_transferee,
            sent: raft.msgs.len(),
        }
    }

    fn tell(&mut self, node: &RawNode<Log>, happening: Happening) {
        let (term, role) = (Term(node.raft.term), node.raft.state.into());
        self.told.push(Told { term, role, happening });
    }

    pub(crate) fn transfer(&mut self, node: &RawNode<Log>, to: u64) {
        if node.raft.lead_transferee == Some(to) {
            self.tell(node, Happening::TransferStarted { to });
        }
    }

    /// Derives what a call has done.
    pub(crate) fn after(&mut self, before: &Before, trigger: &Trigger, node: &mut RawNode<Log>) {
        if let Trigger::Step(facts) = trigger {
            match facts.kind {
                MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => self.on_asked(before, facts, node),
                MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
                    self.on_answered(before, facts, node);
                }
                _ => {}
            }
        }
        let node = &*node;
        let raft = &node.raft;
        let asked = |kind| raft.msgs.get(before.sent..).is_some_and(|new| new.iter().any(|m| m.get_msg_type() == kind));
        let quiet = (before.role, before.term, before.leader) == (raft.state, raft.term, raft.leader_id);
        let campaigns = !matches!(trigger, Trigger::Step(_)) && before.role != StateRole::Leader;
        if !quiet || (campaigns && asked(MessageType::MsgRequestPreVote)) {
            self.on_campaign(before, trigger, node, asked(MessageType::MsgRequestPreVote));
            self.on_role(before, trigger, node);
            self.on_leader(before, node);
        }
        if let Trigger::Step(facts) = trigger
            && facts.kind == MessageType::MsgAppend
            && (facts.from, facts.term) == (raft.leader_id, raft.term)
            && self.appended != raft.term
        {
            self.appended = raft.term;
            self.tell(node, Happening::FirstAppend { from: facts.from, index: Index(facts.index) });
        }
        if let Trigger::Step(Facts { conflict: Some(index), from, .. }) = trigger {
            self.tell(node, Happening::Conflict { from: *from, index: Index(*index) });
        }
        if let (Some(to), None) = (before.transferee, raft.lead_transferee)
            && (raft.state, raft.term) == (StateRole::Leader, before.term)
        {
            self.tell(node, Happening::TransferFailed { to });
        }
    }

    /// Tells whom this node sends to as the leader, where that has changed.
    pub(crate) fn follow_members(&mut self, node: &RawNode<Log>) {
        let raft = &node.raft;
        let mut peers = BTreeMap::new();
        if raft.state == StateRole::Leader {
            peers.extend(raft.prs().iter().filter(|(id, _)| **id != raft.id).map(|(id, peer)| (*id, peer.next_idx)));
        }
        let before = std::mem::replace(&mut self.replicated, peers.keys().copied().collect());
        for peer in before.iter().filter(|peer| !peers.contains_key(peer)) {
            self.tell(node, Happening::ReplicationStopped { peer: *peer });
        }
        for (peer, next) in peers.into_iter().filter(|(peer, _)| !before.contains(peer)) {
            self.tell(node, Happening::ReplicationStarted { peer, next: Index(next) });
        }
    }

    /// Somebody has asked for a vote. The answer goes with its reason.
    fn on_asked(&mut self, before: &Before, facts: &Facts, node: &mut RawNode<Log>) {
        let pre = facts.kind == MessageType::MsgRequestPreVote;
        let is_answer = |message: &Message| {
            let kind = message.get_msg_type();
            message.to == facts.from
                && matches!(kind, MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse)
        };
        let is_current = node.raft.raft_log.is_up_to_date(facts.index, facts.log_term);
        let refusal = match () {
            () if facts.term < before.term => Reason::OldTerm,
            () if !is_current => Reason::LogBehind,
            () if before.vote != 0 => Reason::AlreadyVoted,
            () => Reason::HaveLeader,
        };
        let answer = node.raft.msgs.iter_mut().skip(before.sent).find(|message| is_answer(message));
        let reason = match answer {
            Some(answer) if !answer.reject => Reason::Ok,
            Some(answer) => {
                answer.context = vec![refusal.code()].into();
                refusal
            }
            // Whoever hears a leader does not answer; nor does anybody in an older term.
            None if facts.term < before.term => return,
            None => Reason::HaveLeader,
        };
        if before.term < facts.term && !pre && node.raft.term == facts.term {
            self.on_term(before, facts.from, node);
        }
        self.tell(node, Happening::VoteCast { to: facts.from, term: Term(facts.term), pre, reason });
    }

    fn on_answered(&mut self, before: &Before, facts: &Facts, node: &RawNode<Log>) {
        let pre = facts.kind == MessageType::MsgRequestPreVoteResponse;
        let waits = if pre { StateRole::PreCandidate } else { StateRole::Candidate };
        // Answers to an earlier question mean nothing.
        let is_late = facts.term < before.term || self.votes.contains_key(&facts.from);
        if before.role != waits || is_late {
            return;
        }
        self.votes.insert(facts.from, facts.reason);
        let answered = Answered { from: facts.from, reason: facts.reason, tally: self.tally(), needed: needed(node) };
        self.tell(node, if pre { Happening::PreVote(answered) } else { Happening::Vote(answered) });
    }

    fn tally(&self) -> usize {
        self.votes.values().filter(|reason| **reason == Reason::Ok).count()
    }

    /// What leads to asking for votes, and how it ended.
    fn on_campaign(&mut self, before: &Before, trigger: &Trigger, node: &RawNode<Log>, asks: bool) {
        let raft = &node.raft;
        let (needed, tally) = (needed(node), self.tally());
        let timed_out = matches!(trigger, Trigger::Tick);
        let others = needed > 1;
        match (before.role, raft.state) {
            (StateRole::Follower, StateRole::Follower | StateRole::Leader) if !others => {}
            (StateRole::Follower, StateRole::PreCandidate | StateRole::Candidate) if timed_out => {
                self.tell(
                    node,
                    Happening::HeartbeatTimeout {
                        last_leader: before.leader,
                        ticks: before.timeout,
                        attempt: self.attempts + 1,
                    },
                );
            }
            (StateRole::PreCandidate, StateRole::Candidate) => {
                self.tell(node, Happening::PreVoteWon { tally, needed });
            }
            (StateRole::PreCandidate, StateRole::Follower | StateRole::PreCandidate) if raft.leader_id == 0 => {
                self.tell(node, Happening::PreVoteLost { tally, needed, attempt: self.attempts.max(1) });
            }
            (StateRole::Candidate, StateRole::PreCandidate) if timed_out => {
                let split = self.votes.values().any(|reason| *reason == Reason::AlreadyVoted);
                self.tell(node, Happening::ElectionTimeout { tally, needed, split });
            }
            _ => {}
        }
        if raft.state == StateRole::PreCandidate && asks {
            self.attempts += 1;
            self.cause = Some(match trigger {
                Trigger::Campaign => Cause::Bootstrap,
                _ if self.attempts > 1 => Cause::Retry,
                _ => Cause::Timeout,
            });
            self.votes = [(raft.id, Reason::Ok)].into();
            self.tell(node, Happening::PreVoteStarted { attempt: self.attempts, needed });
        }
    }

    fn on_term(&mut self, before: &Before, from: u64, node: &RawNode<Log>) {
        self.tell(node, Happening::TermRaised { from, old: Term(before.term) });
    }

    fn on_role(&mut self, before: &Before, trigger: &Trigger, node: &RawNode<Log>) {
        let raft = &node.raft;
        if let Trigger::Step(facts) = trigger
            && raft.term > before.term
            && raft.state == StateRole::Follower
            && !matches!(facts.kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote)
        {
            self.on_term(before, facts.from, node);
        }
        if before.role == StateRole::Leader && raft.state != StateRole::Leader {
            let reason = match trigger {
                Trigger::Tick | Trigger::Campaign => StepDown::QuorumLost,
                Trigger::Step(_) if before.transferee.is_some() => StepDown::Transfer,
                Trigger::Step(_) => StepDown::HigherTerm,
            };
            self.tell(node, Happening::StepDown { reason });
        }
        let new_term = raft.term != before.term;
        if raft.state == StateRole::Candidate && (before.role != StateRole::Candidate || new_term) {
            self.on_candidate(trigger, node);
        }
        if raft.state == before.role {
            return;
        }
        let elected = raft.state == StateRole::Leader;
        if elected {
            // A sole voter becomes everything at once.
            if before.role != StateRole::Candidate {
                self.on_candidate(trigger, node);
            }
            let votes: Vec<(u64, Reason)> = self.votes.iter().map(|(id, reason)| (*id, *reason)).collect();
            let won = Won {
                cause: self.cause.unwrap_or(Cause::Timeout),
                tally: self.tally(),
                needed: needed(node),
                votes,
                attempts: self.attempts.max(1),
                previous: self.leader,
            };
            self.tell(node, Happening::Won(won));
        }
        self.tell(node, Happening::Role { from: before.role.into(), to: raft.state.into() });
        self.follow_members(node);
    }

    fn on_candidate(&mut self, trigger: &Trigger, node: &RawNode<Log>) {
        let raft = &node.raft;
        let handed_over = matches!(trigger, Trigger::Step(facts) if facts.kind == MessageType::MsgTimeoutNow);
        if handed_over {
            self.attempts += 1;
            self.cause = Some(Cause::Transfer);
        }
        if matches!(trigger, Trigger::Campaign) {
            self.cause = Some(Cause::Bootstrap);
        }
        self.votes = [(raft.id, Reason::Ok)].into();
        let candidate = Happening::Candidate {
            cause: self.cause.unwrap_or(Cause::Timeout),
            attempt: self.attempts.max(1),
            needed: needed(node),
            last: Index(raft.raft_log.last_index()),
            last_term: Term(raft.raft_log.last_term()),
        };
        self.tell(node, candidate);
        let own = Answered { from: raft.id, reason: Reason::Ok, tally: 1, needed: needed(node) };
        self.tell(node, Happening::Vote(own));
        let asked = raft.msgs.iter().filter(|message| message.get_msg_type() == MessageType::MsgRequestVote);
        let asked: Vec<u64> = asked.filter(|message| message.term == raft.term).map(|message| message.to).collect();
        for to in asked {
            self.tell(node, Happening::VoteRequested { to });
        }
    }

    fn on_leader(&mut self, before: &Before, node: &RawNode<Log>) {
        let raft = &node.raft;
        let leader = raft.leader_id;
        if leader == 0 {
            if before.leader != 0 && raft.state == StateRole::Follower && before.role == StateRole::Follower {
                self.tell(node, Happening::LeaderLost { leader: before.leader });
            }
            return;
        }
        (self.attempts, self.cause) = (0, None);
        if self.elected != raft.term {
            self.elected = raft.term;
            let previous = std::mem::replace(&mut self.leader, leader);
            self.tell(node, Happening::LeaderElected { leader, previous });
        }
    }
}

impl From<StateRole> for Role {
    fn from(role: StateRole) -> Role {
        match role {
            StateRole::Follower => Role::Follower,
            StateRole::PreCandidate => Role::PreCandidate,
            StateRole::Candidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        }
    }
}

/// Votes that suffice: more than half. While members change, of those who vote afterwards.
fn needed(node: &RawNode<Log>) -> usize {
    node.raft.prs().conf().to_conf_state().voters.len() / 2 + 1
}
