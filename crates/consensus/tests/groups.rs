//! Three members in one thread, with messages as real bytes, and one member alone.

use std::collections::VecDeque;

use base::log::{Entry, HardState};
use base::{Index, ShardId, Term};
use bytes::Bytes;
use consensus::{Configuration, Group, GroupConfig, LostLog, Message, Refused, Restored, Role, codec};

struct Member {
    group: Group,
    applied: Vec<Entry>,
}

struct Cluster {
    members: Vec<Member>,
    wire: VecDeque<Bytes>,
    /// Everything that was sent, for comparison.
    trace: Vec<Bytes>,
    cut_off: Option<u64>,
}

fn config(id: u64, seed: u64) -> GroupConfig {
    GroupConfig { shard: ShardId(0), id, seed, election_ticks: 10, heartbeat_ticks: 2, uncommitted_bytes_max: 1 << 20 }
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
        let member = |id| Member {
            group: Group::new(config(id, seed), &restored(&[1, 2, 3])).expect("nothing is lost"),
            applied: Vec::new(),
        };
        Cluster { members: (1..4).map(member).collect(), wire: VecDeque::new(), trace: Vec::new(), cut_off: None }
    }

    /// Does all work and delivers all messages until nothing is left.
    fn settle(&mut self) {
        loop {
            for member in &mut self.members {
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
                    if let Some(last) = work.committed.last() {
                        member.group.on_applied(last.index);
                    }
                    member.applied.extend(work.committed);
                }
            }
            let Some(bytes) = self.wire.pop_front() else { return };
            let message = Message::decode(&bytes).expect("it was encoded here");
            self.trace.push(bytes);
            if self.cut_off.is_some_and(|id| id == message.to() || id == message.from()) {
                continue;
            }
            let to = message.to();
            self.members[to as usize - 1].group.step(message);
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
    group.compact(Index(3));
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
