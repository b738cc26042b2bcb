//! Three members in one thread, with messages as real bytes, and one member alone.

use std::collections::VecDeque;

use base::log::{Entry, HardState};
use base::{Index, ShardId, Term};
use bytes::Bytes;
use consensus::{
    Cause, Configuration, Group, GroupConfig, Happening, LostLog, MemberChange, Message, NotLeader, Reason, Refused,
    Restored, Role, SnapshotOf, StepDown, Told, codec,
};

struct Member {
    group: Group,
    /// Its state: everything that it has applied.
    applied: Vec<Entry>,
    /// Its last checkpoint.
    saved: (SnapshotOf, Vec<Entry>),
    /// Reads that were confirmed.
    reads: Vec<(Vec<u8>, Index)>,
}

struct Cluster {
    members: Vec<Member>,
    wire: VecDeque<Bytes>,
    /// Everything that was sent, for comparison.
    trace: Vec<Bytes>,
    cut_off: Option<u64>,
    /// Snapshots are taken and not installed.
    installs_slowly: bool,
}

fn config(id: u64, seed: u64) -> GroupConfig {
    GroupConfig {
        shard: ShardId(0),
        id,
        seed,
        election_ticks: 10,
        heartbeat_ticks: 2,
        uncommitted_bytes_max: 1 << 20,
        message_bytes_max: 1 << 20,
    }
}

fn restored(voters: &[u64]) -> Restored {
    let configuration = Configuration { voters: voters.to_vec(), ..Configuration::default() };
    Restored { configuration, applied: Index(1), applied_term: Term(1), ..Restored::default() }
}

fn operations(text: &str) -> Vec<u8> {
    [&[codec::OPERATIONS], text.as_bytes()].concat()
}

impl Cluster {
    fn new(seed: u64) -> Cluster {
        Cluster::of(seed, &[restored(&[1, 2, 3]), restored(&[1, 2, 3]), restored(&[1, 2, 3])])
    }

    fn of(seed: u64, restored: &[Restored]) -> Cluster {
        let member = |(id, from): (u64, &Restored)| Member {
            group: Group::new(config(id, seed), from).expect("nothing is lost"),
            applied: Vec::new(),
            saved: Default::default(),
            reads: Vec::new(),
        };
        let members = (1..).zip(restored).map(member).collect();
        Cluster { members, wire: VecDeque::new(), trace: Vec::new(), cut_off: None, installs_slowly: false }
    }

    /// One member that leads, and others that nobody knows yet.
    fn of_one(seed: u64, others: usize) -> Cluster {
        let mut all = vec![restored(&[1])];
        all.resize(others + 1, Restored::default());
        let mut cluster = Cluster::of(seed, &all);
        cluster.members[0].group.campaign();
        cluster.settle();
        cluster
    }

    fn propose(&mut self, member: usize, text: &str) {
        let term = self.members[member].group.status().term;
        self.members[member].group.propose(term, operations(text)).expect("it leads");
        self.settle();
    }

    fn change(&mut self, member: usize, changes: &[MemberChange]) {
        let term = self.members[member].group.status().term;
        self.members[member].group.propose_members(term, changes, b"note").expect("it leads");
        self.settle();
    }

    /// Saves a checkpoint of a member, after which its log keeps so many bytes for those who lack them.
    fn save(&mut self, member: usize, trailing_bytes: u64) {
        let member = &mut self.members[member];
        let last = member.applied.last().expect("something is applied");
        let of = SnapshotOf { index: last.index, term: last.term, configuration: member.group.configuration() };
        member.saved = (of.clone(), member.applied.clone());
        member.group.saved(of, trailing_bytes);
    }

    /// Does all work and delivers all messages until nothing is left.
    fn settle(&mut self) {
        loop {
            for member in &mut self.members {
                member.group.tell_commit();
                while member.group.has_work() {
                    let work = member.group.work();
                    let mut send = |messages: Vec<Message>| {
                        for message in messages {
                            let mut bytes = Vec::new();
                            message.encode(&mut bytes);
                            self.wire.push_back(bytes.into());
                        }
                    };
                    send(work.messages);
                    if let Some(ticket) = work.ticket {
                        member.group.on_synced(ticket);
                    }
                    send(work.messages_after_sync);
                    if let Some(snapshot) = &work.snapshot {
                        // It has travelled beside its message, see below.
                        assert_eq!(*snapshot, member.saved.0);
                        member.applied = member.saved.1.clone();
                        if self.installs_slowly {
                            continue;
                        }
                        member.group.on_applied(snapshot.index);
                    }
                    for entry in &work.committed {
                        if entry.data.first() == Some(&codec::MEMBERS) {
                            member.group.apply_members(&entry.data).expect("it was encoded here");
                        }
                    }
                    if let Some(last) = work.committed.last() {
                        member.group.on_applied(last.index);
                    }
                    member.applied.extend(work.committed);
                    member.reads.extend(work.reads);
                }
            }
            let Some(bytes) = self.wire.pop_front() else { return };
            let message = Message::decode(&bytes).expect("it was encoded here");
            self.trace.push(bytes);
            if self.cut_off.is_some_and(|id| id == message.to() || id == message.from()) {
                continue;
            }
            let to = message.to() as usize - 1;
            if message.snapshot().is_some() {
                let from = message.from() as usize - 1;
                self.members[to].saved = self.members[from].saved.clone();
                self.members[from].group.on_snapshot_sent(message.to(), true);
            }
            self.members[to].group.step(message);
        }
    }

    fn tick(&mut self, ticks: usize) {
        for _ in 0..ticks {
            for member in &mut self.members {
                member.group.tick();
            }
            self.settle();
        }
    }

    fn leader(&self) -> Option<usize> {
        let leads = |member: &&Member| member.group.status().role == Role::Leader;
        let term = |member: &&Member| member.group.status().term;
        let newest = self.members.iter().filter(leads).max_by_key(term)?;
        Some(newest.group.status().leader as usize - 1)
    }

    fn run(seed: u64) -> Cluster {
        let mut cluster = Cluster::new(seed);
        for round in 0..5 {
            cluster.tick(40);
            let leader = cluster.leader().expect("a leader within two election timeouts");
            let term = cluster.members[leader].group.status().term;
            let proposed = cluster.members[leader].group.propose(term, operations(&format!("round {round}")));
            assert_eq!(proposed, Ok(()));
            cluster.settle();
            // Whoever leads now is cut off for a while, so that another one must win.
            cluster.cut_off = Some(leader as u64 + 1);
            cluster.tick(60);
            cluster.cut_off = None;
        }
        cluster.tick(40);
        cluster
    }
}

#[test]
fn leaders_change_and_every_member_applies_the_same() {
    for seed in 0..20 {
        let cluster = Cluster::run(seed);
        let said = |member: &Member| -> Vec<String> {
            let texts = member.applied.iter().filter(|entry| !entry.data.is_empty());
            texts.map(|entry| String::from_utf8_lossy(&entry.data[1..]).into_owned()).collect()
        };
        for member in &cluster.members {
            assert_eq!(member.applied, cluster.members[0].applied, "seed {seed}");
            assert_eq!(said(member), ["round 0", "round 1", "round 2", "round 3", "round 4"], "seed {seed}");
        }
        assert!(cluster.members[0].group.status().term >= Term(6), "seed {seed}: five leaders were cut off");
    }
}

/// Goal: a member that stays out leaves an election to the others, gives its vote to another one at once, and still takes over when a leader
/// hands over.
#[test]
fn who_stays_out_votes_and_does_not_campaign() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(seed);
        cluster.tick(40);
        let leader = cluster.leader().expect("a leader within two election timeouts");
        let (out, other) = ((leader + 1) % 3, (leader + 2) % 3);
        cluster.members[out].group.stay_out(true);
        cluster.cut_off = Some(leader as u64 + 1);
        cluster.tick(60);
        assert_eq!(cluster.leader(), Some(other), "seed {seed}");
        cluster.cut_off = None;
        cluster.tick(40);
        cluster.members[other].group.transfer_to(out as u64 + 1);
        cluster.settle();
        assert_eq!(cluster.leader(), Some(out), "seed {seed}: it was handed over to");
    }
}

/// Goal: when only the member that stays out has all that is committed, it leads after a while: no other one can win.
#[test]
fn who_stays_out_leads_when_no_other_can() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(seed);
        cluster.tick(40);
        let leader = cluster.leader().expect("a leader within two election timeouts");
        let (out, other) = ((leader + 1) % 3, (leader + 2) % 3);
        cluster.members[out].group.stay_out(true);
        cluster.cut_off = Some(other as u64 + 1);
        cluster.propose(leader, "only two have it");
        cluster.cut_off = Some(leader as u64 + 1);
        cluster.tick(50);
        assert_eq!(cluster.leader(), None, "seed {seed}: it leaves it to the other one, which cannot win");
        cluster.tick(50);
        assert_eq!(cluster.leader(), Some(out), "seed {seed}");
        assert_eq!(cluster.members[other].applied, cluster.members[out].applied, "seed {seed}");
    }
}

#[test]
fn a_seed_replays_every_message() {
    let traces: Vec<Vec<Bytes>> = [7, 7, 8].map(|seed| Cluster::run(seed).trace).to_vec();
    assert!(traces[0] == traces[1], "the same seed gave another run");
    assert!(traces[0] != traces[2], "another seed gave the same run");
}

#[test]
fn only_the_leader_of_a_term_proposes_in_it() {
    let mut cluster = Cluster::new(1);
    cluster.tick(40);
    let leader = cluster.leader().expect("a leader within two election timeouts");
    let term = cluster.members[leader].group.status().term;
    let stale = Term(term.0 - 1);
    assert_eq!(cluster.members[leader].group.propose(stale, operations("stale")), Err(Refused::NotLeader));
    let follower = (leader + 1) % 3;
    assert_eq!(cluster.members[follower].group.propose(term, operations("foreign")), Err(Refused::NotLeader));
    let large = vec![codec::OPERATIONS; 2 << 20];
    assert_eq!(cluster.members[leader].group.propose(term, large.clone()), Ok(()), "a single one may be too large");
    assert_eq!(cluster.members[leader].group.propose(term, large), Err(Refused::Busy));
}

#[test]
fn a_group_of_one_leads_at_once_and_commits_what_is_synced() {
    let mut group = Group::new(config(9, 1), &restored(&[9])).expect("nothing is lost");
    group.campaign();
    let mut commit = Vec::new();
    for _ in 0..4 {
        let work = group.work();
        commit.extend(work.committed.iter().map(|entry| entry.index));
        if let Some(last) = work.committed.last() {
            group.on_applied(last.index);
        }
        work.ticket.into_iter().for_each(|ticket| group.on_synced(ticket));
    }
    let status = group.status();
    assert_eq!((status.role, status.term, status.leader), (Role::Leader, Term(2), 9));
    assert!(group.is_alone());
    assert_eq!(commit, [Index(2)]);

    group.propose(Term(2), operations("first")).expect("it leads");
    group.propose(Term(2), operations("second")).expect("it leads");
    let work = group.work();
    assert_eq!(work.entries.iter().map(|entry| entry.index).collect::<Vec<_>>(), [Index(3), Index(4)]);
    assert!(work.committed.is_empty(), "nothing is committed before it is synced");
    group.on_synced(work.ticket.expect("there is something to sync"));
    let work = group.work();
    assert_eq!(work.committed.iter().map(|entry| entry.index).collect::<Vec<_>>(), [Index(3), Index(4)]);
    group.on_applied(Index(4));
    let configuration = group.configuration();
    group.saved(SnapshotOf { index: Index(3), term: Term(2), configuration }, 0);
    assert_eq!(group.status().last, Index(4));
}

#[test]
fn a_restarted_member_goes_on_with_its_term_and_log() {
    let entry = |index| Entry { index: Index(index), term: Term(4), data: operations("x").into() };
    let hard_state = HardState { term: Term(5), vote: 2, commit: Index(11) };
    let whole = Restored {
        applied: Index(10),
        applied_term: Term(4),
        hard_state,
        entries: vec![entry(11), entry(12)],
        ..restored(&[1, 2, 3])
    };
    let group = Group::new(config(1, 1), &whole).expect("nothing is lost");
    let status = group.status();
    assert_eq!((status.term, status.vote, status.commit, status.last), (Term(5), 2, Index(11), Index(12)));

    let gap = Restored { entries: vec![entry(11), entry(13)], ..whole.clone() };
    assert_eq!(Group::new(config(1, 1), &gap).err(), Some(LostLog::Gap { missing: Index(12) }));
    let short = Restored { entries: vec![], ..whole };
    let lost = LostLog::Short { last: Index(10), committed: Index(11) };
    assert_eq!(Group::new(config(1, 1), &short).err(), Some(lost));
}

/// Goal: a member whose log has lost what it had acknowledged, without a trace, says so as soon as the leader speaks, and neither follows nor
/// ends.
#[test]
fn a_loss_that_cannot_be_seen_in_the_log_is_noticed() {
    let mut cluster = Cluster::new(1);
    cluster.tick(40);
    let leader = cluster.leader().expect("a leader within two election timeouts");
    cluster.propose(leader, "acknowledged");
    cluster.tick(4);
    let follower = (leader + 1) % 3;
    let status = cluster.members[follower].group.status();
    let mut entries = cluster.members[follower].applied.clone();
    let committed = entries.pop().expect("it has applied something").index;
    let last = entries.last().map_or(Index(1), |entry| entry.index);
    let hard_state = HardState { term: status.term, vote: status.vote, commit: last };
    let from = Restored { hard_state, entries, ..restored(&[1, 2, 3]) };
    cluster.members[follower].group =
        Group::new(config(follower as u64 + 1, 1), &from).expect("nothing shows the loss");
    assert_eq!(cluster.members[follower].group.lost(), None);
    cluster.tick(4);
    assert_eq!(cluster.members[follower].group.lost(), Some(LostLog::Short { last, committed }));
    assert_eq!(cluster.members[follower].group.status().last, last);
}

/// A member alone becomes three, one learner at a time, while it goes on; then it leaves, and the others go on without it.
#[test]
fn members_come_and_go() {
    for seed in 0..20 {
        let mut cluster = Cluster::of_one(seed, 2);
        cluster.propose(0, "before");
        for (member, id) in [(1, 2), (2, 3)] {
            cluster.change(0, &[MemberChange::AddLearner(id)]);
            assert!(cluster.members[0].group.configuration().learners.contains(&id));
            // The first checkpoint does not know the newcomer, so it cannot be its snapshot.
            cluster.tick(5);
            assert!(cluster.members[0].group.wants_checkpoint(), "seed {seed}");
            cluster.save(0, 0);
            assert!(!cluster.members[0].group.wants_checkpoint());
            cluster.tick(5);
            assert_eq!(cluster.members[member].applied, cluster.members[0].applied, "seed {seed}");
            cluster.change(0, &[MemberChange::AddVoter(id)]);
        }
        let all = Configuration { voters: vec![1, 2, 3], ..Configuration::default() };
        cluster.tick(5);
        for member in &cluster.members {
            assert_eq!(sorted(member.group.configuration()), all, "seed {seed}");
        }
        cluster.propose(0, "three");
        let progress = cluster.members[0].group.progress();
        assert!(progress.iter().all(|member| member.active && !member.learner && member.snapshot.is_none()));

        let term = cluster.members[0].group.status().term;
        cluster.members[0].group.transfer_to(2);
        assert_eq!(cluster.members[0].group.propose(term, operations("late")), Err(Refused::NotLeader));
        cluster.settle();
        assert_eq!(cluster.leader(), Some(1), "seed {seed}: the voter that was named leads");
        cluster.change(1, &[MemberChange::Remove(1)]);
        cluster.propose(1, "two");
        let expected = Configuration { voters: vec![2, 3], ..Configuration::default() };
        assert_eq!(sorted(cluster.members[2].group.configuration()), expected, "seed {seed}");
        assert_eq!(cluster.members[2].applied, cluster.members[1].applied, "seed {seed}");
    }
}

/// Goal: a leader that removes itself outlives the acknowledgements that come behind its removal, and the others go on with all it has proposed.
#[test]
fn a_leader_that_has_removed_itself_counts_nothing_more() {
    for seed in 0..20 {
        let mut cluster = Cluster::new(seed);
        cluster.tick(40);
        let leader = cluster.leader().expect("a leader within two election timeouts");
        let id = leader as u64 + 1;
        let group = &mut cluster.members[leader].group;
        let term = group.status().term;
        // Two messages for each of the others: the removal is applied before the second is acknowledged.
        group.propose_members(term, &[MemberChange::Remove(id)], b"note").expect("it leads");
        group.propose(term, operations("behind it")).expect("it leads");
        cluster.settle();
        assert!(!cluster.members[leader].group.configuration().voters.contains(&id), "seed {seed}: it is removed");
        cluster.cut_off = Some(id);
        cluster.tick(60);
        let next = cluster.leader().expect("the others elect a leader");
        assert_ne!(next, leader, "seed {seed}");
        for member in (0..3).filter(|member| *member != leader) {
            let behind = cluster.members[member].applied.iter().any(|entry| *entry.data == *operations("behind it"));
            assert!(behind, "seed {seed}: what it had proposed is applied");
        }
    }
}

/// Goal: a leader that has removed itself from a group of two confirms no read by itself: the other one may lead already.
#[test]
fn a_leader_that_has_left_one_voter_confirms_nothing() {
    let mut cluster = Cluster::of(1, &[restored(&[1, 2]), restored(&[1, 2])]);
    cluster.members[0].group.campaign();
    cluster.settle();
    let group = &mut cluster.members[0].group;
    let term = group.status().term;
    group.propose_members(term, &[MemberChange::Remove(1)], b"note").expect("it leads");
    cluster.settle();
    cluster.cut_off = Some(1);
    cluster.members[1].group.campaign();
    cluster.settle();
    assert_eq!(cluster.members[1].group.status().role, Role::Leader);
    let left = &mut cluster.members[0].group;
    assert_eq!((left.status().role, left.configuration().voters), (Role::Leader, vec![2]));
    assert_eq!(left.confirm_read(b"mine".to_vec()), Err(NotLeader));
    cluster.settle();
    assert!(cluster.members[0].reads.is_empty());
}

/// A dead voter is replaced by a learner in one change, which both majorities decide and which is left by a second entry.
#[test]
fn a_voter_is_replaced_in_one_change() {
    let mut all = vec![restored(&[1, 2, 3]); 3];
    all.push(Restored::default());
    let mut cluster = Cluster::of(3, &all);
    cluster.cut_off = Some(3);
    cluster.tick(60);
    let leader = cluster.leader().expect("two of three are enough");
    cluster.change(leader, &[MemberChange::AddLearner(4)]);
    cluster.save(leader, 0);
    cluster.tick(5);
    cluster.change(leader, &[MemberChange::AddVoter(4), MemberChange::Remove(3)]);
    let group = &mut cluster.members[leader].group;
    assert!(group.configuration().is_changing());
    let term = group.status().term;
    group.propose_leaving(term).expect("it leads");
    cluster.settle();
    let expected = Configuration { voters: vec![1, 2, 4], ..Configuration::default() };
    for member in [0, 1, 3] {
        assert_eq!(sorted(cluster.members[member].group.configuration()), expected);
    }
    cluster.propose(leader, "after");
    assert_eq!(cluster.members[3].applied, cluster.members[leader].applied);
}

/// Who was away gets the entries that it lacks if they are still there, and a snapshot otherwise.
#[test]
fn who_was_away_catches_up_by_log_or_by_snapshot() {
    // Whoever was heard of just now is kept the log for whatever the setting.
    for (trailing_bytes, is_gone, by_snapshot) in [(u64::MAX, true, false), (0, true, true), (0, false, false)] {
        let mut cluster = Cluster::new(5);
        cluster.tick(40);
        let leader = cluster.leader().expect("a leader within two election timeouts");
        let away = (leader + 1) % 3;
        cluster.cut_off = Some(away as u64 + 1);
        for number in 0..50 {
            cluster.propose(leader, &format!("{number}"));
        }
        if is_gone {
            cluster.tick(10 + 10 + 2 * 2);
        }
        cluster.save(leader, trailing_bytes);
        cluster.propose(leader, "behind the checkpoint");
        let saved = cluster.members[away].saved.0.clone();
        cluster.cut_off = None;
        cluster.tick(40);
        assert_eq!(cluster.members[away].applied, cluster.members[leader].applied);
        assert_eq!(cluster.members[away].saved.0 != saved, by_snapshot);
    }
}

/// Whoever installs a snapshot for longer than an election timeout does not campaign meanwhile, whatever it is asked, and does afterwards.
#[test]
fn who_installs_a_snapshot_does_not_campaign() {
    let mut cluster = Cluster::new(5);
    cluster.tick(40);
    let leader = cluster.leader().expect("a leader within two election timeouts");
    let away = (leader + 1) % 3;
    cluster.cut_off = Some(away as u64 + 1);
    for number in 0..50 {
        cluster.propose(leader, &format!("{number}"));
    }
    cluster.tick(10 + 10 + 2 * 2);
    cluster.save(leader, 0);
    cluster.cut_off = None;
    cluster.installs_slowly = true;
    cluster.tick(5);
    let installed = cluster.members[leader].saved.0.index;
    assert_eq!(cluster.members[away].saved.0.index, installed);
    cluster.cut_off = Some(away as u64 + 1);
    let group = &mut cluster.members[away].group;
    (0..100).for_each(|_| group.tick());
    group.campaign();
    assert_eq!(group.status().role, Role::Follower);
    group.on_applied(installed);
    cluster.tick(40);
    assert_ne!(cluster.members[away].group.status().role, Role::Follower);
}

/// Whoever answers every heartbeat is there at every tick, also at those at which the leader asks anew who is; who does not is gone soon.
#[test]
fn members_that_answer_are_there_all_the_time() {
    let mut cluster = Cluster::new(6);
    cluster.tick(40);
    let leader = cluster.leader().expect("a leader within two election timeouts");
    let away = (leader + 1) % 3;
    let is_there = |cluster: &Cluster| {
        let progress = cluster.members[leader].group.progress();
        progress.into_iter().find(|member| member.id == away as u64 + 1).expect("it is a member").active
    };
    for tick in 0..50 {
        cluster.members.iter_mut().for_each(|member| member.group.tick());
        assert!(is_there(&cluster), "tick {tick}, before the answer to its heartbeat");
        cluster.settle();
    }
    cluster.cut_off = Some(away as u64 + 1);
    // What is left of this timeout, a whole one, and two heartbeats.
    cluster.tick(10 + 10 + 2 * 2);
    assert!(!is_there(&cluster));
    cluster.cut_off = None;
    cluster.tick(2);
    assert!(is_there(&cluster));
}

/// A follower learns from the leader what a read must wait for, and a cut-off leader confirms nothing.
#[test]
fn reads_are_confirmed_by_a_quorum_wherever_they_are_asked() {
    let mut cluster = Cluster::new(9);
    assert_eq!(cluster.members[0].group.confirm_read(b"early".to_vec()), Err(NotLeader));
    cluster.tick(40);
    let leader = cluster.leader().expect("a leader within two election timeouts");
    cluster.propose(leader, "written");
    let written = cluster.members[leader].group.status().commit;
    let follower = (leader + 1) % 3;
    cluster.members[follower].group.confirm_read(b"here".to_vec()).expect("it knows a leader");
    cluster.settle();
    assert_eq!(cluster.members[follower].reads, [(b"here".to_vec(), written)]);

    cluster.cut_off = Some(leader as u64 + 1);
    cluster.members[leader].group.confirm_read(b"alone".to_vec()).expect("it still believes to lead");
    cluster.tick(60);
    assert!(cluster.members[leader].reads.is_empty());
    assert_ne!(cluster.members[leader].group.status().role, Role::Leader, "without a quorum it steps down");
}

fn sorted(mut configuration: Configuration) -> Configuration {
    configuration.voters.sort_unstable();
    configuration
}

/// What a member tells of one election: names of what happened, in order.
fn told(member: &mut Member) -> Vec<String> {
    let name = |told: &Told| match &told.happening {
        Happening::Role { to, .. } => format!("{to:?}"),
        Happening::PreVote(answered) => format!("pre-vote {:?} {}", answered.reason, answered.tally),
        Happening::Vote(answered) => format!("vote {:?} {}", answered.reason, answered.tally),
        Happening::VoteCast { pre, reason, .. } => {
            format!("cast {} {reason:?}", if *pre { "pre-vote" } else { "vote" })
        }
        other => format!("{other:?}").split([' ', '(']).next().unwrap_or_default().to_owned(),
    };
    member.group.take_story().iter().map(name).collect()
}

/// Goal: an election is told by each member as the paper tells it. The first one, among three that have nothing to refuse.
#[test]
fn an_election_is_told_in_order() {
    let mut cluster = Cluster::new(1);
    cluster.tick(40);
    let leader = cluster.leader().expect("a leader within two election timeouts");
    let winner = [
        "HeartbeatTimeout",
        "PreVoteStarted",
        "PreCandidate",
        "pre-vote Ok 2",
        "PreVoteWon",
        "Candidate",
        "vote Ok 1",
        "VoteRequested",
        "VoteRequested",
        "Candidate",
        "vote Ok 2",
        "Won",
        "Leader",
        "ReplicationStarted",
        "ReplicationStarted",
        "LeaderElected",
    ];
    assert_eq!(told(&mut cluster.members[leader]), winner);
    for follower in [(leader + 1) % 3, (leader + 2) % 3] {
        let expected = ["cast pre-vote Ok", "TermRaised", "cast vote Ok", "LeaderElected", "FirstAppend"];
        assert_eq!(told(&mut cluster.members[follower]), expected);
    }
}

/// Goal: who steps down says why, and a vote that is refused is refused for the reason that the voter has. A leader that is cut off misses its
/// quorum; whoever lacks entries is told so.
#[test]
fn refusals_and_departures_have_reasons() {
    let mut cluster = Cluster::new(3);
    cluster.tick(40);
    let old = cluster.leader().expect("a leader within two election timeouts");
    cluster.members.iter_mut().for_each(|member| drop(told(member)));
    cluster.cut_off = Some(old as u64 + 1);
    cluster.tick(60);
    let story = cluster.members[old].group.take_story();
    let quorum_lost = Happening::StepDown { reason: StepDown::QuorumLost };
    assert!(story.iter().any(|told| told.happening == quorum_lost), "{story:?}");
    let new = cluster.leader().expect("the two others have elected one");
    let story = cluster.members[new].group.take_story();
    let won = story.iter().find_map(|told| match &told.happening {
        Happening::Won(won) => Some(won.clone()),
        _ => None,
    });
    let won = won.expect("it tells so");
    assert_eq!((won.previous, won.cause, won.tally, won.needed), (old as u64 + 1, Cause::Timeout, 2, 2));
    cluster.propose(new, "what the old leader lacks");
    // It is heard again, but hears nobody in time: nobody would vote for it.
    cluster.cut_off = None;
    cluster.members.iter_mut().for_each(|member| drop(told(member)));
    cluster.members[old].group.campaign();
    cluster.settle();
    let reasons: Vec<Reason> = (0..3)
        .filter(|member| *member != old)
        .flat_map(|member| cluster.members[member].group.take_story())
        .filter_map(|told| match told.happening {
            Happening::VoteCast { reason, .. } => Some(reason),
            _ => None,
        })
        .collect();
    assert!(!reasons.is_empty() && !reasons.contains(&Reason::Ok), "{reasons:?}");
}

/// Goal: a leader that was cut off tells that it sends to nobody any more, and, when it is back, from which entry on its log gives way.
#[test]
fn what_was_never_committed_gives_way_and_is_told() {
    let mut cluster = Cluster::new(5);
    cluster.tick(40);
    let old = cluster.leader().expect("a leader within two election timeouts");
    cluster.members.iter_mut().for_each(|member| drop(told(member)));
    cluster.cut_off = Some(old as u64 + 1);
    cluster.propose(old, "never committed");
    cluster.tick(60);
    let stopped = told(&mut cluster.members[old]).into_iter().filter(|name| name == "ReplicationStopped").count();
    assert_eq!(stopped, 2, "it has led two others");
    let new = cluster.leader().expect("the two others have elected one");
    cluster.propose(new, "what holds instead");
    cluster.cut_off = None;
    cluster.tick(20);
    let story = cluster.members[old].group.take_story();
    let conflict = story.iter().find_map(|told| match told.happening {
        Happening::Conflict { from, index } => Some((from, index)),
        _ => None,
    });
    let begins = cluster.members[new].applied.iter().find(|entry| entry.term > Term(2)).map(|entry| entry.index);
    assert_eq!(conflict, begins.map(|index| (new as u64 + 1, index)), "{story:?}");
    assert_eq!(cluster.members[old].applied, cluster.members[new].applied);
}

/// Goal: a hand-over that nobody takes up is told to have failed, and the leader goes on.
#[test]
fn a_hand_over_that_fails_is_told() {
    let mut cluster = Cluster::new(6);
    cluster.tick(40);
    let leader = cluster.leader().expect("a leader within two election timeouts");
    cluster.members.iter_mut().for_each(|member| drop(told(member)));
    let to = (leader + 1) % 3;
    cluster.cut_off = Some(to as u64 + 1);
    cluster.members[leader].group.transfer_to(to as u64 + 1);
    cluster.tick(20);
    assert_eq!(told(&mut cluster.members[leader]), ["TransferStarted", "TransferFailed"]);
    assert_eq!(cluster.leader(), Some(leader));
}
