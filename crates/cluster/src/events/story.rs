//! What consensus tells, in words: an event for each thing that has happened, as a reader of the Raft paper would tell it.

use base::{Index, Millis, ShardId, Term};
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
    /// Why this node hands groups over just now, if it does: a word of [`why`].
    pub(crate) hands_over: &'static str,
    /// Since it has begun to hand this group over.
    pub(crate) handing_for: Option<Millis>,
    /// How long ago the leader before was heard of.
    pub(crate) since_contact: Option<Millis>,
    /// Since this node first asked for votes.
    pub(crate) asking_for: Option<Millis>,
    /// Since it asked for votes in this term.
    pub(crate) requested_for: Option<Millis>,
}

/// Why a leader hands over.
pub(crate) mod why {
    /// It stops.
    pub(crate) const SHUTDOWN: &str = "shutdown";
    /// Somebody wants it so.
    pub(crate) const OPERATOR: &str = "operator";
    /// It is no member any more, or votes no more.
    pub(crate) const REMOVED: &str = "removed";
    /// Groups are spread over the nodes.
    pub(crate) const BALANCE: &str = "balance";

    /// What a reason means.
    pub(crate) fn sentence(reason: &str) -> &'static str {
        match reason {
            SHUTDOWN => "because it stops",
            REMOVED => "because it votes no more",
            BALANCE => "so that all nodes lead",
            _ => "because it was asked to",
        }
    }
}

/// Attempts to win an election up to this one are kept, of later ones those that are told.
const ATTEMPTS_KEPT: u64 = 64;

/// What repeats with each attempt is told with the 1st, 2nd, 4th, 8th, and so on.
fn repeated(attempt: u64, draft: Draft) -> Draft {
    match attempt {
        told if told.is_power_of_two() => draft,
        few if few <= ATTEMPTS_KEPT => Draft { level: Level::Debug, ..draft },
        _ => Draft { level: Level::Debug, ..draft }.unkept(),
    }
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
            Happening::HeartbeatTimeout { last_leader, ticks, attempt } => {
                let timeout = self.tick.0 * *ticks as u64;
                let since = self.since_contact.map_or(timeout, |since| since.0);
                let draft = Draft::new(
                    Warn,
                    "raft.heartbeat.timeout",
                    format!("heartbeat timeout after {since} ms without a leader"),
                )
                .with("lastLeader", self.name(*last_leader))
                .with("sinceContactMs", since)
                .with("timeoutMs", timeout);
                repeated(*attempt, draft)
            }
            Happening::PreVoteStarted { attempt, needed } => {
                let draft = Draft::new(Info, "raft.prevote.started", format!("pre-vote started, {needed} needed"));
                repeated(*attempt, draft.with("attempt", *attempt).with("needed", *needed))
            }
            Happening::PreVote(answered) if answered.reason == Reason::Ok => {
                answer(self, "raft.prevote.granted", "pre-vote", *answered)
            }
            Happening::PreVote(answered) => answer(self, "raft.prevote.denied", "pre-vote", *answered),
            Happening::PreVoteWon { tally, needed } => {
                Draft::new(Info, "raft.prevote.won", "pre-vote won").with("tally", *tally).with("needed", *needed)
            }
            Happening::PreVoteLost { tally, needed, attempt } => {
                let draft = Draft::new(Info, "raft.prevote.lost", format!("pre-vote lost, {tally} of {needed} needed"));
                repeated(*attempt, draft.with("tally", *tally).with("needed", *needed).with("attempt", *attempt))
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
            Happening::Vote(answered) => {
                let draft = answer(self, "raft.vote.received", "vote", *answered);
                match self.requested_for.filter(|_| answered.from != self.me) {
                    Some(rtt) => draft.with("rttMs", rtt.0),
                    None => draft,
                }
            }
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
                let reason = match (from, to) {
                    (Role::Leader, _) => "stepped down",
                    (_, Role::Leader) => "elected",
                    (_, Role::PreCandidate) => "no leader was heard of",
                    (_, Role::Candidate) => "a majority would vote for it",
                    (_, Role::Follower) => "another one leads, or asks",
                };
                let (from, to) = (role_name(*from), role_name(*to));
                Draft::new(level, "raft.role", format!("role {from} → {to}"))
                    .with("from", from)
                    .with("to", to)
                    .with("reason", reason)
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
                    StepDown::QuorumLost => (Warn, "quorum-lost", "a majority does not answer".into()),
                    StepDown::HigherTerm => (Warn, "higher-term", "there is a later term".into()),
                    StepDown::Transfer => {
                        let why = why::sentence(self.hands_over);
                        (Info, self.hands_over, format!("it has handed over, {why}"))
                    }
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
            Happening::ReplicationStopped { peer } => {
                let peer = self.name(*peer);
                Draft::new(Info, "raft.replication.stopped", format!("replication to {peer} stopped"))
                    .with("peer", peer)
            }
            Happening::Conflict { from, index } => {
                let peer = self.name(*from);
                let text = format!(
                    "the log of {peer} holds something else from entry {index} on, which was never committed here"
                );
                Draft::new(Warn, "raft.replication.conflict", text).with("peer", peer).with("truncatedFrom", index.0)
            }
            Happening::TransferStarted { to } => {
                let (to, why) = (self.name(*to), why::sentence(self.hands_over));
                Draft::new(Info, "raft.transfer.started", format!("hands over to {to}, {why}"))
                    .with("to", to)
                    .with("by", self.name(self.me))
                    .with("reason", self.hands_over)
            }
            Happening::TransferFailed { to } => {
                let (to, took) = (self.name(*to), self.handing_for.unwrap_or_default().0);
                let text = format!("{to} has not taken over in {took} ms, this node goes on leading");
                Draft::new(Warn, "raft.transfer.failed", text)
                    .with("to", to)
                    .with("by", self.name(self.me))
                    .with("durationMs", took)
                    .with("reason", self.hands_over)
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
            .with("for", to)
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

/// A hand-over is done: another one leads.
pub(crate) fn handed_over(to: &str, by: &str, took: Millis, reason: &'static str) -> Draft {
    Draft::new(Level::Info, "raft.transfer.done", format!("{to} has taken over after {} ms", took.0))
        .with("to", to)
        .with("by", by)
        .with("durationMs", took.0)
        .with("reason", reason)
}

/// The configuration of a group as of an entry, in words.
pub(crate) fn configuration(index: Index, members: &Members) -> Draft {
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
        .with("index", index.0)
        .with("voters", Value::List(voters))
        .with("learners", Value::List(learners))
        .with("joint", members.configuration.is_changing())
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
