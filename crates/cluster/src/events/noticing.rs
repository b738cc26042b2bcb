//! What a node notices by looking at itself and the others: a majority that is gone, members that a leader does not hear, logs that fall
//! behind, learners that wait, clocks that differ.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::machine::StateMachine;
use base::{Incarnation, Index, Millis, Mono, ShardId, Term};
use replica::{Members, Progress, Role};
use tokio::time::interval;

use crate::events::lasting::{Lasting, Said};
use crate::events::{Draft, Level};
use crate::node::Stage;
use crate::peer::Shared;

/// How often a node looks.
const EVERY: Duration = Duration::from_millis(250);

/// A node that has just started has not met everybody yet: for so long nothing of that is said, unless it had a majority before.
const STARTING: Millis = Millis(5_000);

/// A member that lacks more entries lags, until it lacks a tenth of that.
const LAG_MAX: u64 = 10_000;

/// A learner that does not vote after so long waits.
const JOINING_MAX: Millis = Millis(5_000);

/// Clocks that differ by more are told of.
const SKEW_MAX_MS: u64 = 1_000;

/// A group that this node leads.
#[derive(Clone, Debug)]
pub(crate) struct Led {
    group: ShardId,
    term: Term,
    progress: Vec<Progress>,
}

/// What a node sees at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Look {
    now: Mono,
    me: u64,
    members: Members,
    /// How long ago others were heard of; who is absent never was.
    heard: BTreeMap<u64, Millis>,
    /// Whoever was not heard of for longer is taken for dead.
    contact_max: Millis,
    /// How far clocks of others are ahead of this node's, in milliseconds.
    skews: BTreeMap<u64, i64>,
    led: Vec<Led>,
}

/// What lasts at present.
#[derive(Default)]
pub(crate) struct Watch {
    /// There was a majority once.
    had_quorum: bool,
    quorum: Lasting,
    silent: BTreeMap<u64, Lasting>,
    lagging: BTreeMap<(ShardId, u64), Lasting>,
    /// Learners that this node has seen as the leader, and since when.
    learners: BTreeMap<u64, (Mono, Lasting)>,
    skewed: BTreeMap<u64, Lasting>,
}

impl Watch {
    /// What is to be told.
    pub(crate) fn look(&mut self, look: &Look) -> Vec<Draft> {
        let mut drafts = Vec::new();
        self.quorum(look, &mut drafts);
        self.contacts(look, &mut drafts);
        self.lags(look, &mut drafts);
        self.learners(look, &mut drafts);
        self.skews(look, &mut drafts);
        drafts
    }

    fn quorum(&mut self, look: &Look, drafts: &mut Vec<Draft>) {
        let voters = &look.members.configuration.voters;
        if voters.is_empty() {
            return;
        }
        let missing: Vec<String> = voters.iter().filter(|id| !look.is_there(**id)).map(|id| look.name(*id)).collect();
        let (needed, reachable) = (voters.len() / 2 + 1, voters.len() - missing.len());
        self.had_quorum |= reachable >= needed;
        let is_lost = reachable < needed && (self.had_quorum || look.now >= Mono(0) + STARTING);
        let lost = |text: String| {
            Draft::new(Level::Error, "cluster.quorum.lost", text)
                .with("reachable", reachable)
                .with("needed", needed)
                .with("missing", missing.clone())
        };
        let absent = missing.join(", ");
        drafts.extend(self.quorum.look(look.now, is_lost).map(|said| match said {
            Said::Began => {
                lost(format!("{reachable} voters can be reached, {needed} are needed; not heard of: {absent}"))
            }
            Said::Lasts(age) => {
                let text = format!("for {} s {reachable} voters can be reached, {needed} are needed", age.0 / 1_000);
                lost(text).with("durationMs", age.0)
            }
            Said::Ended(age) => {
                let text = format!("a majority can be reached again, after {} ms", age.0);
                Draft::new(Level::Info, "cluster.quorum.regained", text)
                    .with("reachable", reachable)
                    .with("needed", needed)
                    .with("missing", missing.clone())
                    .with("durationMs", age.0)
            }
        }));
    }

    /// Voters that a leader does not hear, once each time.
    fn contacts(&mut self, look: &Look, drafts: &mut Vec<Draft>) {
        let Some(led) = look.led.first() else { return self.silent.clear() };
        let voters: Vec<u64> = led.progress.iter().filter(|member| !member.learner).map(|member| member.id).collect();
        self.silent.retain(|id, _| voters.contains(id));
        let acks = voters.iter().filter(|id| look.is_there(**id)).count();
        let needed = voters.len() / 2 + 1;
        for id in voters.iter().filter(|id| **id != look.me) {
            let is_silent = !look.is_there(*id);
            if self.silent.entry(*id).or_default().look(look.now, is_silent) == Some(Said::Began) {
                let (peer, since) = (look.name(*id), look.heard.get(id).copied());
                let text = match since {
                    Some(since) => format!("{peer} has not answered for {} ms, {acks} do, {needed} needed", since.0),
                    None => format!("{peer} has never answered, {acks} do, {needed} needed"),
                };
                let mut draft = Draft::new(Level::Warn, "raft.leader.contact", text).with("peer", peer);
                if let Some(since) = since {
                    draft = draft.with("sinceMs", since.0);
                }
                drafts.push(draft.with("acks", acks).with("needed", needed).of(led.group, led.term, Role::Leader));
            }
        }
    }

    fn lags(&mut self, look: &Look, drafts: &mut Vec<Draft>) {
        let followed = |(group, id): &(ShardId, u64)| {
            let led = look.led.iter().find(|led| led.group == *group);
            led.is_some_and(|led| led.progress.iter().any(|member| member.id == *id))
        };
        self.lagging.retain(|key, _| followed(key));
        for led in &look.led {
            let last = led.progress.iter().map(|member| member.matched).max().unwrap_or(Index(0));
            // Of whom nothing is heard, it is said that it is gone.
            for member in led.progress.iter().filter(|member| member.active) {
                let lag = last.0 - member.matched.0;
                let lasting = self.lagging.entry((led.group, member.id)).or_default();
                let lags = lag > if lasting.is_on() { LAG_MAX / 10 } else { LAG_MAX };
                let peer = look.name(member.id);
                let draft = lasting.look(look.now, lags).map(|said| match said {
                    Said::Began | Said::Lasts(_) => {
                        let text = format!("{peer} lacks {lag} entries");
                        Draft::new(Level::Warn, "raft.replication.lagging", text)
                    }
                    Said::Ended(age) => {
                        let text = format!("{peer} has caught up after {} ms", age.0);
                        Draft::new(Level::Info, "raft.replication.caughtup", text).with("durationMs", age.0)
                    }
                });
                let with = |draft: Draft| {
                    draft.with("peer", peer.clone()).with("next", member.next.0).with("lag", lag).of(
                        led.group,
                        led.term,
                        Role::Leader,
                    )
                };
                drafts.extend(draft.map(with));
            }
        }
    }

    /// Learners that do not vote yet, in the group that decides about members.
    fn learners(&mut self, look: &Look, drafts: &mut Vec<Draft>) {
        let Some(led) = look.led.iter().find(|led| led.group == ShardId(0)) else { return self.learners.clear() };
        let waits = |member: &&Progress| member.learner && !look.members.is_demoted(member.id);
        let waiting: Vec<&Progress> = led.progress.iter().filter(waits).collect();
        self.learners.retain(|id, _| waiting.iter().any(|member| member.id == *id));
        let last = led.progress.iter().map(|member| member.matched).max().unwrap_or(Index(0));
        for member in waiting {
            let (since, lasting) = self.learners.entry(member.id).or_insert((look.now, Lasting::default()));
            let is_late = look.now - *since >= JOINING_MAX;
            if lasting.look(look.now, is_late).is_some() {
                let (name, lag) = (look.name(member.id), last.0 - member.matched.0);
                let why = if member.active { "" } else { " and does not answer" };
                let text = format!("{name} waits to vote, it lacks {lag} entries{why}");
                let draft = Draft::new(Level::Info, "raft.member.waiting", text).with("member", name).with("lag", lag);
                drafts.push(draft.of(led.group, led.term, Role::Leader));
            }
        }
    }

    fn skews(&mut self, look: &Look, drafts: &mut Vec<Draft>) {
        self.skewed.retain(|id, _| look.skews.contains_key(id));
        for (id, skew) in &look.skews {
            let is_skewed = skew.unsigned_abs() > SKEW_MAX_MS;
            let said = self.skewed.entry(*id).or_default().look(look.now, is_skewed);
            if matches!(said, Some(Said::Began | Said::Lasts(_))) {
                let (peer, ms) = (look.name(*id), skew.unsigned_abs());
                let where_to = if *skew > 0 { "ahead of" } else { "behind" };
                let text = format!("the clock of {peer} is {ms} ms {where_to} this node's");
                let draft = Draft::new(Level::Warn, "clock.skew", text).with("peer", peer);
                drafts.push(draft.with("skewMs", ms).with("ahead", *skew > 0));
            }
        }
    }
}

impl Look {
    fn of<S: StateMachine>(shared: &Shared<S>) -> Look {
        let (now, status) = (shared.clock.now().mono, shared.common.status.borrow().clone());
        let term_of = |group| status.shards.iter().find(|shard| shard.shard == group).map(|shard| shard.consensus.term);
        let led = status.progress.iter().filter(|(_, progress)| !progress.is_empty()).map(|(group, progress)| Led {
            group: *group,
            term: term_of(*group).unwrap_or_default(),
            progress: progress.clone(),
        });
        let heard = |id: u64, found: Option<Millis>| Some((id, found?));
        Look {
            now,
            me: shared.common.me,
            members: shared.members(),
            heard: shared.links.all().iter().filter_map(|link| heard(link.id, link.contact(now).heard)).collect(),
            contact_max: shared.common.contact_max,
            skews: shared.skews(),
            led: led.collect(),
        }
    }

    fn name(&self, id: u64) -> String {
        self.members.get(id).map_or_else(|| Incarnation(id).to_string(), |member| member.name.clone())
    }

    fn is_there(&self, id: u64) -> bool {
        id == self.me || self.heard.get(&id).is_some_and(|heard| *heard <= self.contact_max)
    }
}

/// Looks for ever, and tells.
pub(crate) async fn notice_for_ever<S: StateMachine>(shared: Arc<Shared<S>>) {
    let (mut watch, mut due) = (Watch::default(), interval(EVERY));
    loop {
        due.tick().await;
        if shared.common.status.borrow().stage == Stage::Running {
            watch.look(&Look::of(&shared)).into_iter().for_each(|draft| shared.common.events.tell(draft));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use replica::Member;

    fn look(second: u64, there: &[u64]) -> Look {
        let member = |id: u64| Member { id, name: format!("node-{id}"), ..Member::default() };
        Look {
            now: Mono(second * 1_000),
            me: 1,
            members: Members::of_voters([1, 2, 3].map(member)),
            heard: [2, 3].map(|id| (id, if there.contains(&id) { Millis(0) } else { Millis(9_000) })).into(),
            contact_max: Millis(1_000),
            ..Look::default()
        }
    }

    fn leading(look: Look, learner: Option<u64>, lag: u64) -> Look {
        let member = |id: u64| Progress {
            id,
            learner: learner == Some(id),
            matched: Index(if id == 3 { 100_000 - lag } else { 100_000 }),
            next: Index(100_001),
            active: true,
            replicating: true,
            snapshot: None,
        };
        Look { led: vec![Led { group: ShardId(0), term: Term(7), progress: vec![member(1), member(3)] }], ..look }
    }

    fn names(drafts: &[Draft]) -> Vec<&'static str> {
        drafts.iter().map(|draft| draft.name).collect()
    }

    /// Goal: a majority is told to be lost once it was there, and again after a while, with who is missing; and that it is back.
    #[test]
    fn a_majority_is_lost_and_regained() {
        let mut watch = Watch::default();
        assert!(watch.look(&look(0, &[])).is_empty(), "it has met nobody yet");
        assert!(watch.look(&look(1, &[2])).is_empty(), "two of three");
        let lost = watch.look(&look(2, &[]));
        assert_eq!(names(&lost), ["cluster.quorum.lost"]);
        assert_eq!(lost[0].text, "1 voters can be reached, 2 are needed; not heard of: node-2, node-3");
        assert!(watch.look(&look(3, &[])).is_empty());
        assert_eq!(names(&watch.look(&look(12, &[]))), ["cluster.quorum.lost"]);
        let regained = watch.look(&look(15, &[3]));
        assert_eq!(names(&regained), ["cluster.quorum.regained"]);
        assert_eq!(regained[0].text, "a majority can be reached again, after 13000 ms");
        assert_eq!(names(&Watch::default().look(&look(6, &[]))), ["cluster.quorum.lost"], "it was never there");
    }

    /// Goal: a leader tells once that a voter does not answer, of logs that lag until they have nearly caught up, and of learners that wait.
    #[test]
    fn a_leader_tells_of_its_members() {
        let mut watch = Watch::default();
        let at = |second, there: &[u64], lag| leading(look(second, there), None, lag);
        assert!(watch.look(&at(0, &[2, 3], 0)).is_empty());
        let contact = watch.look(&at(1, &[2], 0));
        assert_eq!(names(&contact), ["raft.leader.contact"]);
        assert_eq!(contact[0].text, "node-3 has not answered for 9000 ms, 1 do, 2 needed");
        assert!(watch.look(&at(60, &[2], 0)).is_empty(), "once for each time");
        assert_eq!(names(&watch.look(&at(61, &[2, 3], LAG_MAX + 1))), ["raft.replication.lagging"]);
        assert!(watch.look(&at(62, &[2, 3], LAG_MAX)).is_empty());
        assert_eq!(names(&watch.look(&at(63, &[2, 3], LAG_MAX / 10))), ["raft.replication.caughtup"]);
        let joining = |second| leading(look(second, &[2, 3]), Some(3), 5);
        assert!(watch.look(&joining(70)).is_empty());
        let waiting = watch.look(&joining(76));
        assert_eq!(names(&waiting), ["raft.member.waiting"]);
        assert_eq!(waiting[0].text, "node-3 waits to vote, it lacks 5 entries");
    }

    /// Goal: a clock that differs is told of, in which direction, and not with every look.
    #[test]
    fn clocks_that_differ_are_told_of() {
        let mut watch = Watch::default();
        let at = |second, skew| Look { skews: [(2, skew)].into(), ..look(second, &[2, 3]) };
        assert!(watch.look(&at(0, 900)).is_empty());
        let told = watch.look(&at(1, -1_500));
        assert_eq!(told[0].text, "the clock of node-2 is 1500 ms behind this node's");
        assert!(watch.look(&at(2, -1_500)).is_empty());
        assert!(watch.look(&at(3, 0)).is_empty());
        assert_eq!(names(&watch.look(&at(4, 2_000))), ["clock.skew"]);
    }
}
