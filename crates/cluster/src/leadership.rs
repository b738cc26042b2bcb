//! Who should lead: a node that stops gives its groups away, groups that one node leads spread over the others, and the members' records
//! follow their settings.

use std::collections::BTreeMap;

use base::machine::StateMachine;
use base::{Millis, Mono, ShardId};
use replica::{Event, Member, Now, Progress, Replica};

use crate::lane::ReplyTo;

/// A node that stops tries for so long to give its groups away.
const HAND_OVER_MAX: Millis = Millis(1_000);

/// How often it tries again.
const HAND_OVER_AGAIN: Millis = Millis(100);

/// Groups are spread when all have had the same leaders for this long, one at a time with this pause.
const CALM: Millis = Millis(30_000);
const SPREAD_PAUSE: Millis = Millis(5_000);

/// Entries that a voter may lack to be given a group when nothing forces it.
const LAG_MAX: u64 = 100;

/// What a node does about who leads.
#[derive(Default)]
pub(crate) struct Leadership {
    /// Since when the node gives its groups away.
    giving_away: Option<Mono>,
    next_try: Mono,
    calm_since: Mono,
    next_spread: Mono,
    /// What members have said of themselves, where it differs from what is recorded.
    corrections: BTreeMap<u64, Member>,
    next_correction: Mono,
}

impl Leadership {
    /// The node stops: it leads nothing any more as soon as somebody else can.
    pub(crate) fn give_away(&mut self, now: Now) {
        self.giving_away.get_or_insert(now.mono);
    }

    /// A group has another leader.
    pub(crate) fn changed(&mut self, now: Now) {
        self.calm_since = now.mono;
    }

    /// A member says this of itself.
    pub(crate) fn heard(&mut self, member: Member) {
        self.corrections.insert(member.id, member);
    }

    /// Whether a node that stops need not wait for somebody to take its groups over.
    pub(crate) fn is_given_away<S: StateMachine>(&self, now: Now, me: u64, replica: &Replica<S, ReplyTo<S>>) -> bool {
        let tried = self.giving_away.is_some_and(|since| now.mono - since >= HAND_OVER_MAX);
        tried || replica.shards().into_iter().all(|shard| successor(me, &replica.progress(shard), u64::MAX).is_none())
    }

    /// What is to be done now.
    pub(crate) fn events<S: StateMachine>(
        &mut self,
        now: Now,
        me: u64,
        replica: &Replica<S, ReplyTo<S>>,
    ) -> Vec<Event<S, ReplyTo<S>>> {
        if let Some(since) = self.giving_away {
            let trying = now.mono - since < HAND_OVER_MAX && now.mono >= self.next_try;
            if !trying {
                return Vec::new();
            }
            self.next_try = now.mono + HAND_OVER_AGAIN;
            return transfers(me, replica, |shard| successor(me, &replica.progress(shard), u64::MAX));
        }
        let mut events = Vec::new();
        if now.mono - self.calm_since >= CALM && now.mono >= self.next_spread {
            self.next_spread = now.mono + SPREAD_PAUSE;
            let spread = |shard: ShardId| {
                let progress = replica.progress(shard);
                let preferred = preferred(shard, &progress)?;
                (preferred != me && is_fit(preferred, &progress, LAG_MAX)).then_some(preferred)
            };
            events.extend(transfers(me, replica, spread).into_iter().take(1));
        }
        if now.mono >= self.next_correction
            && let Some(correction) = self.correct(replica)
        {
            self.next_correction = now.mono + HAND_OVER_AGAIN;
            events.push(correction);
        }
        events
    }

    /// Records what a member says of itself, if this node leads the group that keeps the records.
    fn correct<S: StateMachine>(&mut self, replica: &Replica<S, ReplyTo<S>>) -> Option<Event<S, ReplyTo<S>>> {
        const RECORDS: ShardId = ShardId(0);
        let members = replica.members(RECORDS);
        // Who is not a member yet will say it again.
        self.corrections.retain(|id, said| members.get(*id).is_some_and(|recorded| recorded != said));
        if replica.progress(RECORDS).is_empty() {
            return None;
        }
        let record = self.corrections.values().next()?.clone();
        tracing::info!(target: "raft", event = "raft.member.address", member = %record.name, "{} is reached at {} now", record.name, record.peer);
        let (sender, _nobody) = tokio::sync::oneshot::channel();
        let client = ReplyTo::Local { sender, lane: None };
        Some(Event::Change { shard: RECORDS, changes: Vec::new(), records: vec![record], client })
    }
}

fn transfers<S: StateMachine>(
    me: u64,
    replica: &Replica<S, ReplyTo<S>>,
    choose: impl Fn(ShardId) -> Option<u64>,
) -> Vec<Event<S, ReplyTo<S>>> {
    let led = replica.shards().into_iter().filter(|shard| replica.leader(*shard) == me);
    let idle = led.filter(|shard| !replica.is_transferring(*shard));
    idle.filter_map(|shard| Some(Event::Transfer { shard, to: choose(shard)? })).collect()
}

/// The voter that is to lead a group when all are well: they take turns.
fn preferred(shard: ShardId, progress: &[Progress]) -> Option<u64> {
    let voters: Vec<u64> = progress.iter().filter(|member| !member.learner).map(|member| member.id).collect();
    voters.get(usize::from(shard.0).checked_rem(voters.len())?).copied()
}

fn is_fit(id: u64, progress: &[Progress], lag_max: u64) -> bool {
    let last = progress.iter().map(|member| member.matched.0).max().unwrap_or_default();
    let fit = |member: &Progress| member.active && !member.learner && last - member.matched.0 <= lag_max;
    progress.iter().any(|member| member.id == id && fit(member))
}

/// The voter that lacks least, if there is another one that can be reached.
fn successor(me: u64, progress: &[Progress], lag_max: u64) -> Option<u64> {
    let others = progress.iter().filter(|member| member.id != me && is_fit(member.id, progress, lag_max));
    others.max_by_key(|member| member.matched).map(|member| member.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Index;

    fn member(id: u64, matched: u64) -> Progress {
        Progress { id, learner: false, matched: Index(matched), active: true, snapshot: None }
    }

    #[test]
    fn the_voter_that_lacks_least_succeeds() {
        let learner = Progress { learner: true, ..member(4, 100) };
        let gone = Progress { active: false, ..member(5, 100) };
        let progress = [member(1, 100), member(2, 90), member(3, 95), learner, gone];
        assert_eq!(successor(1, &progress, u64::MAX), Some(3));
        assert_eq!(successor(1, &progress, 4), None);
        assert_eq!(successor(1, &progress[..1], u64::MAX), None, "nobody else is there");
        assert_eq!(successor(1, &[], u64::MAX), None, "this node does not lead");
    }

    #[test]
    fn groups_take_turns_among_the_voters() {
        let progress = [member(1, 5), member(2, 5), member(3, 5), Progress { learner: true, ..member(4, 5) }];
        let chosen: Vec<Option<u64>> = (0..4).map(|shard| preferred(ShardId(shard), &progress)).collect();
        assert_eq!(chosen, [Some(1), Some(2), Some(3), Some(1)]);
        assert_eq!(preferred(ShardId(0), &[]), None);
    }
}
