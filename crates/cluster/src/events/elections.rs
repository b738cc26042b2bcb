//! How long the parts of an election took, by the clocks of the node that won it, and the record that it makes of it.

use std::collections::BTreeMap;

use base::{Millis, Mono, ScheduleTime, ShardId, Term};
use replica::{Cause, Election, Happening, Now, Role, Told, Vote, Won};

/// Writes that were seen no longer ago than this before the leader was lost say how long nobody could write.
const TRAFFIC: Millis = Millis(1_000);

/// The moments of the election under way, or of the last one, in one group.
#[derive(Debug, Default)]
struct Moments {
    /// When the leader was last heard of.
    contact: Option<Mono>,
    /// When this node first asked for votes since.
    asked: Option<Mono>,
    /// When it asked for votes in its present term.
    requested: Option<Mono>,
    won: Option<Mono>,
    /// What was recorded.
    record: Option<Election>,
}

/// The moments of all groups.
#[derive(Debug, Default)]
pub(crate) struct Elections(BTreeMap<ShardId, Moments>);

impl Elections {
    /// The leader of a group was heard of.
    pub(crate) fn on_contact(&mut self, now: Now, group: ShardId) {
        let moments = self.0.entry(group).or_default();
        moments.contact = Some(now.mono);
        moments.asked = None;
    }

    /// How long ago the leader of a group was heard of.
    pub(crate) fn since_contact(&self, now: Now, group: ShardId) -> Option<Millis> {
        Some(now.mono - self.0.get(&group)?.contact?)
    }

    /// Since when this node asks for votes in a group.
    pub(crate) fn asking_for(&self, now: Now, group: ShardId) -> Option<Millis> {
        Some(now.mono - self.0.get(&group)?.asked?)
    }

    /// Since when this node waits for votes in its present term.
    pub(crate) fn requested_for(&self, now: Now, group: ShardId) -> Option<Millis> {
        Some(now.mono - self.0.get(&group)?.requested?)
    }

    /// Takes note of what has happened. Returns what is to be recorded.
    pub(crate) fn on_told(
        &mut self,
        now: Now,
        me: u64,
        group: ShardId,
        told: &Told,
        name_of: &dyn Fn(u64) -> String,
    ) -> Option<Election> {
        let moments = self.0.entry(group).or_default();
        match &told.happening {
            // A leader is in contact with itself.
            Happening::Role { from: Role::Leader, .. } => {
                moments.contact = Some(now.mono);
                moments.asked = None;
            }
            Happening::PreVoteStarted { .. } => {
                moments.asked.get_or_insert(now.mono);
            }
            Happening::Candidate { .. } => {
                moments.asked.get_or_insert(now.mono);
                moments.requested = Some(now.mono);
            }
            Happening::Won(won) => {
                moments.won = Some(now.mono);
                let record = moments.record(now, me, told.term, won, name_of);
                moments.record = Some(record.clone());
                // Whoever is alone takes writes at once, and then records all of it.
                return (won.needed > 1).then_some(record);
            }
            _ => {}
        }
        None
    }

    /// This node takes writes in a group. Returns how long after it was elected, and what is to be recorded.
    pub(crate) fn on_ready(&mut self, now: Now, group: ShardId, term: Term) -> (Millis, Option<Election>) {
        let moments = self.0.entry(group).or_default();
        let since = moments.won.map_or(Millis(0), |won| now.mono - won);
        let record = moments.record.as_mut().filter(|record| record.term == term && record.ready.is_none());
        (
            since,
            record.map(|record| {
                record.ready = Some(since);
                record.clone()
            }),
        )
    }

    /// The first operations of a term were applied; those before at `last`. Returns what is to be recorded.
    pub(crate) fn on_first_write(
        &mut self,
        now: Now,
        group: ShardId,
        term: Term,
        last: Option<Mono>,
    ) -> Option<Election> {
        let moments = self.0.get_mut(&group)?;
        let lost = moments.contact.or(moments.asked)?;
        let record = moments.record.as_mut().filter(|record| record.term == term)?;
        // What began to write later says nothing.
        let (last, ready) = (last?, moments.won? + record.ready?);
        if lost - last.min(lost) > TRAFFIC || now.mono - ready > TRAFFIC {
            return None;
        }
        record.traffic = Some(now.mono - last);
        Some(record.clone())
    }
}

impl Moments {
    fn record(&self, now: Now, me: u64, term: Term, won: &Won, name_of: &dyn Fn(u64) -> String) -> Election {
        let named = |id: u64| (id, if id == 0 { String::new() } else { name_of(id) });
        let vote = |(id, reason): &(u64, _)| Vote { id: *id, name: name_of(*id), reason: *reason };
        let previous = if won.cause == Cause::Bootstrap { 0 } else { won.previous };
        Election {
            number: 0,
            term,
            leader: named(me),
            previous: named(previous),
            cause: won.cause,
            needed: won.needed as u64,
            attempts: won.attempts,
            votes: won.votes.iter().map(vote).collect(),
            won_at: ScheduleTime(now.wall.0),
            detect: self.contact.zip(self.asked).map(|(contact, asked)| asked - contact.min(asked)),
            elect: self.asked.map(|asked| now.mono - asked),
            ready: None,
            traffic: None,
        }
    }
}
