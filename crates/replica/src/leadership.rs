//! Who should lead: a node that stops gives its groups away, groups that one node leads spread over the others, and the members' records
//! follow their settings.

use std::collections::BTreeMap;

use base::machine::StateMachine;
use base::{Millis, Mono, ShardId};
use consensus::{MemberChange, Progress};

use crate::event::{Client, Event, Now};
use crate::members::{Member, Members};
use crate::replica::Replica;

/// The group that keeps the members' records.
pub const RECORDS: ShardId = ShardId(0);

/// A node that stops tries for so long to give its groups away.
const HAND_OVER_MAX: Millis = Millis(1_000);

/// How often it tries again.
const HAND_OVER_AGAIN: Millis = Millis(100);

/// Members change one step at a time, with this pause.
const CHANGE_PAUSE: Millis = Millis(100);

/// Groups are spread when all have had the same leaders for this long, one at a time with this pause.
const CALM: Millis = Millis(30_000);
const SPREAD_PAUSE: Millis = Millis(5_000);

/// An operator who has put a group somewhere finds it there for so long, if its leader lives.
const LEFT_ALONE: Millis = Millis(600_000);

/// Entries that a voter may lack to be given a group when nothing forces it.
const LAG_MAX: u64 = 100;

/// What a node does about who leads.
#[derive(Default)]
pub struct Leadership {
    /// Since when the node gives its groups away.
    giving_away: Option<Mono>,
    next_try: Mono,
    calm_since: Mono,
    next_spread: Mono,
    /// What members have said of themselves, where it differs from what is recorded.
    corrections: BTreeMap<u64, Member>,
    /// Since when learners of groups led here lack no more than they may, by group.
    close: BTreeMap<(ShardId, u64), Mono>,
    next_change: Mono,
    promotion: Promotion,
    /// Until then this node leads nothing if somebody else can.
    out_until: Mono,
    /// Something other than an operator keeps it from leading.
    barred: bool,
}

/// When a learner becomes a voter.
#[derive(Clone, Copy, Debug, Default)]
pub struct Promotion {
    /// Entries that it may lack.
    pub lag: u64,
    /// For how long it must have lacked no more.
    pub after: Millis,
}

impl Leadership {
    /// What a node begins with.
    pub fn new(promotion: Promotion) -> Leadership {
        Leadership { promotion, ..Leadership::default() }
    }

    /// The node stops: it leads nothing any more as soon as somebody else can.
    pub fn give_away(&mut self, now: Now) {
        self.giving_away.get_or_insert(now.mono);
    }

    /// This node leads nothing for a while, if somebody else can.
    pub fn stay_out(&mut self, now: Now, hold: Millis) {
        self.out_until = now.mono + hold;
    }

    /// This node leads nothing as long as this is so, if somebody else can.
    pub fn bar(&mut self, barred: bool) {
        self.barred = barred;
    }

    /// Whether this node neither asks for a group nor keeps one.
    pub fn is_out(&self, now: Now) -> bool {
        self.barred || now.mono < self.out_until
    }

    /// An operator has put a group somewhere: none is spread for a while.
    pub fn settle(&mut self, now: Now) {
        self.next_spread = now.mono + LEFT_ALONE;
    }

    /// Whether the node gives its groups away because it stops.
    pub fn gives_away(&self) -> bool {
        self.giving_away.is_some()
    }

    /// A group has another leader.
    pub fn changed(&mut self, now: Now) {
        self.calm_since = now.mono;
    }

    /// A member says this of itself.
    pub fn heard(&mut self, member: Member) {
        self.corrections.insert(member.id, member);
    }

    /// Whether a node that stops need not wait for somebody to take its groups over.
    pub fn is_given_away<S: StateMachine, C: Client>(&self, now: Now, me: u64, replica: &Replica<S, C>) -> bool {
        let tried = self.giving_away.is_some_and(|since| now.mono - since >= HAND_OVER_MAX);
        tried || replica.shards().into_iter().all(|shard| successor(me, &replica.progress(shard), u64::MAX).is_none())
    }

    /// What is to be done now.
    pub fn events<S: StateMachine, C: Client>(
        &mut self,
        now: Now,
        me: u64,
        replica: &Replica<S, C>,
    ) -> Vec<Event<S, C>> {
        if let Some(since) = self.giving_away {
            let trying = now.mono - since < HAND_OVER_MAX && now.mono >= self.next_try;
            if !trying {
                return Vec::new();
            }
            self.next_try = now.mono + HAND_OVER_AGAIN;
            return transfers(me, replica, |shard| successor(me, &replica.progress(shard), u64::MAX));
        }
        let mut events = Vec::new();
        if self.is_out(now) && now.mono >= self.next_try {
            self.next_try = now.mono + HAND_OVER_AGAIN;
            events.extend(transfers(me, replica, |shard| successor(me, &replica.progress(shard), u64::MAX)));
        }
        // A single group has nothing to be spread with: whoever leads goes on.
        let is_spread = replica.shards().len() < 2;
        if !is_spread && now.mono - self.calm_since >= CALM && now.mono >= self.next_spread {
            self.next_spread = now.mono + SPREAD_PAUSE;
            let spread = |shard: ShardId| {
                let progress = replica.progress(shard);
                let preferred = preferred(shard, &progress)?;
                (preferred != me && is_fit(preferred, &progress, LAG_MAX)).then_some(preferred)
            };
            events.extend(transfers(me, replica, spread).into_iter().take(1));
        }
        if now.mono >= self.next_change {
            self.next_change = now.mono + CHANGE_PAUSE;
            // Whoever is no member any more, or votes no more, hands over what it leads; the next leader changes the group.
            let records = replica.members(RECORDS);
            if !records.configuration.members().contains(&me) || records.is_demoted(me) {
                return transfers(me, replica, |shard| successor(me, &replica.progress(shard), u64::MAX));
            }
            for (shard, changes) in self.member_changes(now, replica) {
                // Whoever gives its vote to a successor lets another one lead first, if there is one.
                let heir = changes.contains(&MemberChange::Remove(me)).then(|| {
                    let progress = replica.progress(shard);
                    successor(me, &progress, u64::MAX)
                });
                match heir.flatten() {
                    Some(to) => {
                        events.extend((!replica.is_transferring(shard)).then_some(Event::Transfer { shard, to }))
                    }
                    None => events.push(change(shard, changes, Vec::new())),
                }
            }
            events.extend(self.correct(replica));
        }
        events
    }

    /// What the groups led here must change so that every member of group 0 is in every group, nobody else is, and learners that have
    /// caught up vote: in group 0 last, so that a voter there is one everywhere.
    fn member_changes<S: StateMachine, C: Client>(
        &mut self,
        now: Now,
        replica: &Replica<S, C>,
    ) -> Vec<(ShardId, Vec<MemberChange>)> {
        let records = replica.members(RECORDS);
        let mut all = Vec::new();
        for shard in replica.shards() {
            let progress = replica.progress(shard);
            let members = replica.members(shard);
            if progress.is_empty() || members.configuration.is_changing() {
                continue;
            }
            let present = members.configuration.members();
            let wanted = records.configuration.members();
            let voters = &members.configuration.voters;
            // Whose vote another one has taken here already does not come back. Of two data directories of one name the learner is the new one.
            let is_new = |id: u64| records.configuration.learners.contains(&id);
            let replaced =
                |id: u64| !is_new(id) && voters.iter().any(|other| records.predecessors(*other).contains(&id));
            let missing = wanted.iter().find(|id| !present.contains(id) && !replaced(**id));
            let missing = missing.map(|id| vec![MemberChange::AddLearner(*id)]);
            let extra = present.iter().find(|id| !wanted.contains(id)).map(|id| vec![MemberChange::Remove(*id)]);
            let demoted =
                voters.iter().find(|id| records.is_demoted(**id)).map(|id| vec![MemberChange::AddLearner(*id)]);
            let votes_elsewhere = |id: u64| {
                let others = replica.shards().into_iter().filter(|other| *other != RECORDS);
                others.map(|other| replica.members(other)).all(|members| members.configuration.voters.contains(&id))
            };
            let promoted = || {
                self.caught_up(now, shard, &progress).into_iter().find_map(|id| {
                    let may = (shard != RECORDS || votes_elsewhere(id)) && !records.is_demoted(id);
                    may.then(|| promotion(id, records, &present))
                })
            };
            all.extend(missing.or(extra).or(demoted).or_else(promoted).map(|changes| (shard, changes)));
        }
        all
    }

    /// Learners that have lacked little for long enough.
    fn caught_up(&mut self, now: Now, shard: ShardId, progress: &[Progress]) -> Vec<u64> {
        let mut caught_up = Vec::new();
        for learner in progress.iter().filter(|member| member.learner) {
            let key = (shard, learner.id);
            if lacks_at_most(learner, progress, self.promotion.lag) {
                let since = *self.close.entry(key).or_insert(now.mono);
                if now.mono - since >= self.promotion.after {
                    caught_up.push(learner.id);
                }
            } else {
                self.close.remove(&key);
            }
        }
        self.close
            .retain(|(of, id), _| *of != shard || progress.iter().any(|member| member.learner && member.id == *id));
        caught_up
    }

    /// Records what a member says of itself, if this node leads the group that keeps the records.
    fn correct<S: StateMachine, C: Client>(&mut self, replica: &Replica<S, C>) -> Option<Event<S, C>> {
        let members = replica.members(RECORDS);
        // Who is not a member yet will say it again.
        self.corrections.retain(|id, said| members.get(*id).is_some_and(|recorded| recorded != said));
        if replica.progress(RECORDS).is_empty() {
            return None;
        }
        let record = self.corrections.values().next()?.clone();
        Some(change(RECORDS, Vec::new(), vec![record]))
    }
}

fn change<S: StateMachine, C: Client>(shard: ShardId, changes: Vec<MemberChange>, records: Vec<Member>) -> Event<S, C> {
    // What has become of it is seen in the members.
    Event::Change { shard, changes, records, client: None }
}

/// Makes a learner a voter. Whoever it succeeds goes at the same moment. `present`: the members of the group.
fn promotion(id: u64, records: &Members, present: &[u64]) -> Vec<MemberChange> {
    let mut changes = vec![MemberChange::AddVoter(id)];
    changes
        .extend(records.predecessors(id).into_iter().filter(|other| present.contains(other)).map(MemberChange::Remove));
    changes
}

/// Where the log of a member that is being probed ends is not known, unless it is known to lack nothing: after a snapshot, probing goes on
/// until there is something to send.
fn lacks_at_most(member: &Progress, progress: &[Progress], lag: u64) -> bool {
    let last = progress.iter().map(|member| member.matched.0).max().unwrap_or_default();
    let is_known = member.replicating || member.matched.0 == last;
    member.active && is_known && last - member.matched.0 <= lag
}

fn transfers<S: StateMachine, C: Client>(
    me: u64,
    replica: &Replica<S, C>,
    choose: impl Fn(ShardId) -> Option<u64>,
) -> Vec<Event<S, C>> {
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
    let fit = |member: &Progress| !member.learner && lacks_at_most(member, progress, lag_max);
    progress.iter().any(|member| member.id == id && fit(member))
}

/// The voter that lacks least, if there is another one that can be reached.
pub fn successor(me: u64, progress: &[Progress], lag_max: u64) -> Option<u64> {
    let others = progress.iter().filter(|member| member.id != me && is_fit(member.id, progress, lag_max));
    others.max_by_key(|member| member.matched).map(|member| member.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::Index;

    fn member(id: u64, matched: u64) -> Progress {
        Progress {
            id,
            learner: false,
            matched: Index(matched),
            next: Index(matched + 1),
            active: true,
            replicating: true,
            snapshot: None,
        }
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
    fn a_new_data_directory_takes_the_vote_of_the_old_one() {
        let named = |id: u64, name: &str| Member { id, name: name.into(), ..Member::default() };
        let records = Members::of_voters([named(1, "a"), named(2, "b"), named(3, "b"), named(4, "b")]);
        let (votes, gone) = (MemberChange::AddVoter(3), MemberChange::Remove);
        assert_eq!(promotion(3, &records, &[1, 2, 3]), [votes, gone(2)]);
        assert_eq!(promotion(3, &records, &[1, 3]), [votes]);
        assert_eq!(
            promotion(3, &records, &[1, 2, 3, 4]),
            [votes, gone(2), gone(4)],
            "one that was lost as a learner, too"
        );
    }

    #[test]
    fn a_learner_is_promoted_when_it_has_lacked_little_for_long_enough() {
        let mut leadership = Leadership::new(Promotion { lag: 10, after: Millis(100) });
        let now = |mono: u64| Now { mono: Mono(mono), ..Now::default() };
        let learner = |matched: u64| [member(1, 100), Progress { learner: true, ..member(4, matched) }];
        let shard = ShardId(0);
        assert!(leadership.caught_up(now(0), shard, &learner(95)).is_empty());
        assert!(leadership.caught_up(now(50), shard, &learner(80)).is_empty(), "it has fallen behind");
        assert!(leadership.caught_up(now(60), shard, &learner(95)).is_empty());
        let probed = |matched: u64| learner(matched).map(|member| Progress { replicating: false, ..member });
        assert!(leadership.caught_up(now(200), shard, &probed(95)).is_empty(), "where its log ends is not known");
        let mut quiet = Leadership::new(Promotion { lag: 10, after: Millis(0) });
        assert_eq!(quiet.caught_up(now(0), shard, &probed(100)), [4], "it has everything, from a snapshot");
        assert!(leadership.caught_up(now(60), shard, &learner(95)).is_empty());
        assert_eq!(leadership.caught_up(now(160), shard, &learner(95)), [4]);
    }

    #[test]
    fn groups_take_turns_among_the_voters() {
        let progress = [member(1, 5), member(2, 5), member(3, 5), Progress { learner: true, ..member(4, 5) }];
        let chosen: Vec<Option<u64>> = (0..4).map(|shard| preferred(ShardId(shard), &progress)).collect();
        assert_eq!(chosen, [Some(1), Some(2), Some(3), Some(1)]);
        assert_eq!(preferred(ShardId(0), &[]), None);
    }
}
