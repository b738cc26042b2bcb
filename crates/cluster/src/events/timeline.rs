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

/// Whether an event that is told after a term was settled leads to another one.
fn is_new(event: &Event, settled: u64) -> bool {
    event.term.0 > settled || (event.term.0 == settled && !is_aftermath(&event.name))
}

/// The elections of a group: those that are recorded, with what was told of each, and last the one that is not recorded, if there is one.
/// `events` are [`merged`].
pub fn elections<'a>(group: ShardId, records: impl Iterator<Item = &'a Election>, events: &[Event]) -> Vec<Told> {
    let of_group: Vec<&Event> = events.iter().filter(|event| event.group == Some(group)).collect();
    // Where each term was settled: what is told of earlier terms before that belongs to how it came about.
    let settled: BTreeMap<u64, u64> = of_group
        .iter()
        .filter(|event| event.name == "raft.leader.ready")
        .map(|event| (event.term.0, event.hlc))
        .collect();
    let settled_before = |term: u64| settled.range(..term).next_back().map_or((0, 0), |(term, hlc)| (*term, *hlc));
    let mut all = Vec::new();
    for record in records {
        let term = record.term.0;
        let (last_term, from) = settled_before(term);
        let to = settled.get(&term).copied().unwrap_or(u64::MAX);
        let belongs = |event: &&&Event| match event.term.0 {
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
