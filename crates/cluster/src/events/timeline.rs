//! The events of several nodes as one story, and which of them belong to which election.

use std::collections::BTreeMap;

use base::ShardId;
use replica::Election;

use crate::events::Event;

/// An election with all that was told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The group.
    pub group: ShardId,
    /// Its record; nothing: nobody has won yet, or the record has not come here.
    pub election: Option<Election>,
    /// The last term it reached.
    pub term: u64,
    /// In an order in which no effect stands before its cause.
    pub events: Vec<Event>,
}

/// The events of all nodes in one order, none twice.
pub fn merged(mut events: Vec<Event>) -> Vec<Event> {
    events.sort_by_key(|event| (event.hlc, event.node_id, event.seq));
    events.dedup_by_key(|event| (event.node_id, event.seq));
    events
}

/// What nodes tell of an election after it is over: of its term, not of the next one's.
fn is_aftermath(name: &str) -> bool {
    matches!(
        name,
        "raft.leader.elected"
            | "raft.append.first"
            | "raft.started"
            | "raft.config"
            | "raft.term.raised"
            | "raft.vote.cast"
    )
}

/// The term that an event is about: who is asked whether somebody could win is in an earlier one.
fn term_of(event: &Event) -> u64 {
    event.number("inTerm").unwrap_or(event.term.0)
}

/// Whether an event that is told after a term was settled leads to another one.
fn is_new(event: &Event, settled: u64) -> bool {
    term_of(event) > settled || (term_of(event) == settled && !is_aftermath(&event.name))
}

/// The elections of a group: those that are recorded, with what was told of each, and last the one that is not recorded, if there is one.
/// `events` are [`merged`].
pub fn elections<'a>(group: ShardId, records: impl Iterator<Item = &'a Election>, events: &[Event]) -> Vec<Told> {
    let of_group: Vec<&Event> = events.iter().filter(|event| event.group == Some(group)).collect();
    // Where each term was settled: what is told of earlier terms before that belongs to how it came about.
    let mut settled: BTreeMap<u64, u64> = of_group
        .iter()
        .filter(|event| event.name == "raft.leader.ready")
        .map(|event| (event.term.0, event.hlc))
        .collect();
    // If the leader itself cannot be asked: where the first other one followed it.
    for event in of_group.iter().filter(|event| event.name == "raft.append.first") {
        settled.entry(event.term.0).or_insert(event.hlc);
    }
    let settled_before = |term: u64| settled.range(..term).next_back().map_or((0, 0), |(term, hlc)| (*term, *hlc));
    let mut all = Vec::new();
    for record in records {
        let term = record.term.0;
        let (last_term, from) = settled_before(term);
        let to = settled.get(&term).copied().unwrap_or(u64::MAX);
        let belongs = |event: &&&Event| match term_of(event) {
            of if of == term => event.hlc <= to || is_aftermath(&event.name),
            of if of < term => event.hlc > from && event.hlc <= to && is_new(event, last_term),
            _ => false,
        };
        let events = of_group.iter().filter(belongs).map(|event| (*event).clone()).collect();
        all.push(Told { group, election: Some(record.clone()), term, events });
    }
    let (last_term, from) = settled_before(u64::MAX);
    let open = |event: &&&Event| event.hlc > from && is_new(event, last_term);
    let events: Vec<Event> = of_group.iter().filter(open).map(|event| (*event).clone()).collect();
    if events.iter().any(|event| event.name == "raft.prevote.started" || event.name == "raft.candidate") {
        let term = events.iter().map(|event| event.term.0).max().unwrap_or_default();
        all.push(Told { group, election: None, term, events });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{Millis, ScheduleTime, Term};
    use replica::Cause;

    fn event(hlc: u64, node: &str, term: u64, name: &'static str) -> Event {
        Event {
            at_micros: 0,
            hlc,
            seq: hlc,
            node: node.into(),
            node_id: u64::from(node.as_bytes()[0]),
            cluster: None,
            boot: 1,
            group: Some(ShardId(0)),
            term: Term(term),
            role: None,
            name: name.into(),
            level: crate::events::Level::Info,
            text: String::new(),
            fields: Vec::new(),
        }
    }

    fn record(number: u64, term: u64) -> Election {
        Election {
            number,
            term: Term(term),
            leader: (1, "a".into()),
            previous: (0, String::new()),
            cause: Cause::Timeout,
            needed: 2,
            attempts: 1,
            votes: Vec::new(),
            won_at: ScheduleTime(0),
            detect: None,
            elect: None,
            ready: Some(Millis(1)),
            traffic: None,
        }
    }

    /// Goal: each event belongs to one election: those before a term was settled to it, those after to the next one, also if the leader of
    /// that term cannot be asked; and what led to nobody winning stands last.
    #[test]
    fn every_event_belongs_to_one_election() {
        let events = merged(vec![
            event(9, "c", 3, "raft.leader.ready"),
            event(1, "b", 1, "raft.vote.cast"),
            event(2, "b", 2, "raft.term.raised"),
            event(3, "b", 2, "raft.append.first"),
            event(4, "c", 2, "raft.append.first"),
            event(5, "c", 2, "raft.heartbeat.timeout"),
            event(6, "c", 2, "raft.prevote.started"),
            Event { fields: vec![("inTerm".into(), 3_u64.into())], ..event(7, "b", 2, "raft.vote.cast") },
            event(8, "c", 3, "raft.election.won"),
            event(8, "c", 3, "raft.election.won"),
            event(10, "b", 3, "raft.append.first"),
            event(11, "b", 3, "raft.prevote.started"),
        ]);
        assert_eq!(events.len(), 11, "none twice");
        let told = elections(ShardId(0), [record(1, 2), record(2, 3)].iter(), &events);
        let numbers = |told: &Told| told.events.iter().map(|event| event.hlc).collect::<Vec<_>>();
        let all: Vec<(u64, bool, Vec<u64>)> =
            told.iter().map(|told| (told.term, told.election.is_some(), numbers(told))).collect();
        assert_eq!(all[0], (2, true, vec![1, 2, 3, 4]));
        assert_eq!(all[1], (3, true, vec![5, 6, 7, 8, 9, 10]));
        assert_eq!(all[2], (3, false, vec![11]));
    }
}
