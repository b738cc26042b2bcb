//! What consensus tells, in words: an event for each thing that has happened, as a reader of the Raft paper would tell it.

use base::{Millis, ShardId, Term};
use replica::{Answered, Cause, Happening, Members, Reason, Role, StepDown, Told};

use crate::events::{Draft, Level, Value, role_name};

/// What the words need besides what has happened.
pub(crate) struct Scene<'a> {
    pub(crate) me: u64,
    pub(crate) group: ShardId,
    /// The name of a member.
    pub(crate) name_of: &'a dyn Fn(u64) -> String,
    /// The unit of consensus time.
    pub(crate) tick: Millis,
    /// The node stops.
    pub(crate) stops: bool,
    /// How long ago the leader before was heard of.
    pub(crate) since_contact: Option<Millis>,
    /// Since this node first asked for votes.
    pub(crate) asking_for: Option<Millis>,
}

impl Scene<'_> {
    fn who(&self, id: u64) -> String {
        if id == self.me { "itself".into() } else { (self.name_of)(id) }
    }

    fn name(&self, id: u64) -> String {
        if id == 0 { String::new() } else { (self.name_of)(id) }
    }

    /// An event for what has happened.
    pub(crate) fn event(&self, told: &Told) -> Draft {
        self.draft(told).of(self.group, told.term, told.role)
    }

    fn draft(&self, told: &Told) -> Draft {
        use Level::{Debug, Info, Warn};
        let term = told.term;
        match &told.happening {
            Happening::HeartbeatTimeout { last_leader, ticks } => {
                let timeout = self.tick.0 * *ticks as u64;
                let since = self.since_contact.map_or(timeout, |since| since.0);
                Draft::new(
                    Warn,
                    "raft.heartbeat.timeout",
                    format!("heartbeat timeout after {since} ms without a leader"),
                )
                .with("lastLeader", self.name(*last_leader))
                .with("sinceContactMs", since)
                .with("timeoutMs", timeout)
            }
            Happening::PreVoteStarted { attempt, needed } => {
                Draft::new(Info, "raft.prevote.started", format!("pre-vote started, {needed} needed"))
                    .with("attempt", *attempt)
                    .with("needed", *needed)
            }
            Happening::PreVote(answered) if answered.reason == Reason::Ok => {
                answer(self, "raft.prevote.granted", "pre-vote", *answered)
            }
            Happening::PreVote(answered) => answer(self, "raft.prevote.denied", "pre-vote", *answered),
            Happening::PreVoteWon { tally, needed } => {
                Draft::new(Info, "raft.prevote.won", "pre-vote won").with("tally", *tally).with("needed", *needed)
            }
            Happening::PreVoteLost { tally, needed } => {
                Draft::new(Info, "raft.prevote.lost", format!("pre-vote lost, {tally} of {needed} needed"))
                    .with("tally", *tally)
                    .with("needed", *needed)
            }
            Happening::Candidate { cause, attempt, needed, last, last_term } => {
                Draft::new(Info, "raft.candidate", format!("candidate in term {term}, votes needed: {needed}"))
                    .with("cause", cause_name(*cause))
                    .with("attempt", *attempt)
                    .with("needed", *needed)
                    .with("lastIndex", last.0)
                    .with("lastTerm", last_term.0)
            }
            Happening::VoteRequested { to } => {
                let to = self.name(*to);
                Draft::new(Debug, "raft.vote.requested", format!("asks {to} for its vote in term {term}"))
                    .with("to", to)
            }
            Happening::VoteCast { to, term, pre, reason } => self.cast(*to, *term, *pre, *reason),
            Happening::Vote(answered) => answer(self, "raft.vote.received", "vote", *answered),
            Happening::Won(won) => {
                let duration = self.asking_for.unwrap_or_default().0;
                let granted = won.votes.iter().filter(|(_, reason)| *reason == Reason::Ok);
                let mut from: Vec<String> = granted.map(|(id, _)| self.name(*id)).collect();
                from.sort_unstable();
                let text = format!("election won in term {term}, tally {}, {duration} ms", won.tally);
                Draft::new(Info, "raft.election.won", text)
                    .with("tally", won.tally)
                    .with("needed", won.needed)
                    .with("votesFrom", from)
                    .with("attempts", won.attempts)
                    .with("durationMs", duration)
            }
            Happening::ElectionTimeout { tally, needed, split } => {
                let how = if *split { ", the vote is split" } else { "" };
                let text = format!("election timeout, {tally} of {needed} votes needed{how}");
                Draft::new(Warn, "raft.election.timeout", text)
                    .with("tally", *tally)
                    .with("needed", *needed)
                    .with("split", *split)
            }
            Happening::Role { from, to } => {
                // What leads to a candidacy is told by the votes.
                let matters = [*from, *to].contains(&Role::Leader) || (*from, *to) == (Role::Candidate, Role::Follower);
                let level = if matters { Info } else { Debug };
                let (from, to) = (role_name(*from), role_name(*to));
                Draft::new(level, "raft.role", format!("role {from} → {to}")).with("from", from).with("to", to)
            }
            Happening::TermRaised { from, old } => {
                let from = self.name(*from);
                Draft::new(Info, "raft.term.raised", format!("term {old} → {term}, heard from {from}"))
                    .with("from", from)
                    .with("oldTerm", old.0)
                    .with("newTerm", term.0)
            }
            Happening::StepDown { reason } => {
                let (level, reason, words) = match reason {
                    StepDown::QuorumLost => (Warn, "quorum-lost", "a majority does not answer"),
                    StepDown::HigherTerm => (Warn, "higher-term", "there is a later term"),
                    StepDown::Transfer if self.stops => (Info, "shutdown", "it stops, and has handed over"),
                    StepDown::Transfer => (Info, "transfer", "it has handed over"),
                };
                Draft::new(level, "raft.leader.stepdown", format!("steps down: {words}")).with("reason", reason)
            }
            Happening::LeaderElected { leader, previous } => {
                let leader = self.name(*leader);
                Draft::new(Info, "raft.leader.elected", format!("elected leader {leader} in term {term}"))
                    .with("leader", leader)
                    .with("previous", self.name(*previous))
                    .with("leaderlessMs", self.since_contact.unwrap_or_default().0)
            }
            Happening::LeaderLost { leader } => {
                let leader = self.name(*leader);
                Draft::new(Warn, "raft.leader.lost", format!("leader {leader} lost, somebody else asks for votes"))
                    .with("leader", leader)
                    .with("lastContactMs", self.since_contact.unwrap_or_default().0)
            }
            Happening::FirstAppend { from, index } => {
                let from = self.name(*from);
                Draft::new(Info, "raft.append.first", format!("received append entries from {from} in term {term}"))
                    .with("from", from)
                    .with("index", index.0)
            }
            Happening::ReplicationStarted { peer, next } => {
                let peer = self.name(*peer);
                Draft::new(Info, "raft.replication.started", format!("replication to {peer} started"))
                    .with("peer", peer)
                    .with("next", next.0)
            }
            Happening::TransferStarted { to } => {
                let to = self.name(*to);
                let (why, reason) = if self.stops { (", because it stops", "shutdown") } else { ("", "asked") };
                Draft::new(Info, "raft.transfer.started", format!("hands over to {to}{why}"))
                    .with("to", to)
                    .with("reason", reason)
            }
        }
    }

    fn cast(&self, to: u64, term: Term, pre: bool, reason: Reason) -> Draft {
        let (to, kind) = (self.name(to), if pre { "pre-vote" } else { "vote" });
        let granted = reason == Reason::Ok;
        // Whoever hears a leader ignores such a question again and again.
        let level = if granted || pre { Level::Debug } else { Level::Info };
        let text = match granted {
            true => format!("{kind} for {to} in term {term}"),
            false => format!("no {kind} for {to} in term {term}: {}", reason_name(reason)),
        };
        Draft::new(level, "raft.vote.cast", text)
            .with("to", to)
            .with("granted", granted)
            .with("pre", pre)
            .with("inTerm", term.0)
            .with("reason", reason_name(reason))
    }
}

fn answer(scene: &Scene<'_>, name: &'static str, kind: &str, answered: Answered) -> Draft {
    let Answered { from, reason, tally, needed } = answered;
    let (who, granted) = (scene.who(from), reason == Reason::Ok);
    let text = match granted {
        true => format!("{kind} granted by {who}, tally {tally}"),
        false => format!("{kind} denied by {who}: {}, tally {tally}", reason_name(reason)),
    };
    Draft::new(Level::Debug, name, text)
        .with("from", scene.name(from))
        .with("granted", granted)
        .with("reason", reason_name(reason))
        .with("tally", tally)
        .with("needed", needed)
}

/// The configuration of a group, in words.
pub(crate) fn configuration(group: ShardId, term: Term, role: Role, members: &Members) -> Draft {
    let name_of = |id: &u64| members.get(*id).map_or_else(|| format!("{id:016x}"), |member| member.name.clone());
    let names = |ids: &[u64]| {
        let mut names: Vec<String> = ids.iter().map(name_of).collect();
        names.sort_unstable();
        names
    };
    let (voters, learners) = (names(&members.configuration.voters), names(&members.configuration.learners));
    let mut text = format!("configuration: voters {}", voters.join(", "));
    if !learners.is_empty() {
        text = format!("{text}; learners {}", learners.join(", "));
    }
    Draft::new(Level::Info, "raft.config", text)
        .with("voters", Value::List(voters))
        .with("learners", Value::List(learners))
        .with("joint", members.configuration.is_changing())
        .of(group, term, role)
}

/// The word for why somebody asks for votes.
pub(crate) fn cause_name(cause: Cause) -> &'static str {
    match cause {
        Cause::Timeout => "timeout",
        Cause::Retry => "retry",
        Cause::Transfer => "transfer",
        Cause::Bootstrap => "bootstrap",
    }
}

/// The word for why a vote was given or refused.
pub(crate) fn reason_name(reason: Reason) -> &'static str {
    match reason {
        Reason::Ok => "ok",
        Reason::AlreadyVoted => "already-voted",
        Reason::HaveLeader => "have-leader",
        Reason::LogBehind => "log-behind",
        Reason::OldTerm => "old-term",
        Reason::Unknown => "unknown",
    }
}
