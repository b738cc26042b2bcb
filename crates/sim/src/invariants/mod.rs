//! What must be true after every step, whoever looks: elections, logs, disks and states of all nodes beside each other.
//!
//! The simulator sees what no node does: every entry as it is written, which part of a disk is durable, and what each node has applied.

mod durability;
mod elections;
mod log;
mod state;

use std::collections::BTreeMap;

use base::log::Entry;
use base::{Incarnation, ShardId, Term};
use consensus::Configuration;
use consensus::codec::MEMBERS;

use crate::process::Written;
use crate::world::World;

/// The first entry that a shard's log has behind its configuration.
pub(crate) const FIRST_ENTRY: u64 = 2;

/// What the nodes have done, put together.
pub struct Watch {
    /// By shard: what is committed, from [`FIRST_ENTRY`] on.
    pub(crate) committed: Vec<Vec<Entry>>,
    /// By shard: the term in which each of these was known as committed first. It was committed in this one or an earlier one.
    committed_in: Vec<Vec<Term>>,
    /// By shard: indexes of committed entries that change the members.
    changes: Vec<Vec<u64>>,
    /// Who has led in a term, by shard and term.
    leaders: BTreeMap<(ShardId, Term), u64>,
    /// What the state was at an index: by shard and index, its hash and the node that had it first.
    states: BTreeMap<(ShardId, u64), (u64, usize)>,
    /// What a node has applied in its present process, and whether a snapshot was being installed then: by node and shard, with the
    /// process.
    progress: BTreeMap<(usize, ShardId), (u32, u64, bool)>,
    /// Who led when it was looked at last, in which term, and how far it had committed.
    leading: BTreeMap<(usize, ShardId), (Term, u64)>,
    /// At which index the state of a node was looked at last.
    seen: BTreeMap<(usize, ShardId), u64>,
    /// The last entry of each shard whose reply was looked at.
    replied: BTreeMap<ShardId, u64>,
    /// The members of a shard as of its last entry up to an index that changed them, by shard and that entry; 0: those it was founded with.
    configurations: BTreeMap<(ShardId, u64), Configuration>,
    /// The cluster's.
    pub(crate) incarnation: Option<Incarnation>,
    /// Applied entries by node and shard.
    pub(crate) applied: BTreeMap<(usize, ShardId), Vec<u64>>,
}

impl Watch {
    /// Nothing has happened yet.
    pub fn new(shards: u16) -> Watch {
        Watch {
            committed: vec![Vec::new(); usize::from(shards)],
            committed_in: vec![Vec::new(); usize::from(shards)],
            changes: vec![Vec::new(); usize::from(shards)],
            leaders: BTreeMap::new(),
            states: BTreeMap::new(),
            progress: BTreeMap::new(),
            leading: BTreeMap::new(),
            seen: BTreeMap::new(),
            replied: BTreeMap::new(),
            configurations: BTreeMap::new(),
            incarnation: None,
            applied: BTreeMap::new(),
        }
    }

    /// The last entry known to be committed.
    pub fn committed_to(&self, shard: ShardId) -> u64 {
        FIRST_ENTRY + self.committed[usize::from(shard.0)].len() as u64 - 1
    }

    pub(crate) fn entry(&self, shard: ShardId, index: u64) -> Option<&Entry> {
        let place = index.checked_sub(FIRST_ENTRY)?;
        self.committed[usize::from(shard.0)].get(place as usize)
    }

    /// The last entry before `index` that changed the members of a shard; 0: none did.
    fn change_before(&self, shard: ShardId, index: u64) -> u64 {
        let changes = &self.changes[usize::from(shard.0)];
        let before = changes.partition_point(|change| *change < index);
        before.checked_sub(1).map_or(0, |last| changes[last])
    }

    /// The term in which an entry was known as committed first.
    fn committed_in(&self, shard: ShardId, index: u64) -> Option<Term> {
        let place = index.checked_sub(FIRST_ENTRY)?;
        self.committed_in[usize::from(shard.0)].get(place as usize).copied()
    }

    /// The next entry of a shard is committed, as somebody knows in this term.
    fn push(&mut self, shard: ShardId, entry: Entry, term: Term) {
        if entry.data.first() == Some(&MEMBERS) {
            self.changes[usize::from(shard.0)].push(entry.index.0);
        }
        self.committed[usize::from(shard.0)].push(entry);
        self.committed_in[usize::from(shard.0)].push(term);
    }

    /// Whether a log holds all that is committed, durably.
    pub fn has_all(&self, shard: ShardId, written: &Written) -> bool {
        let last = self.committed_to(shard);
        self.entry(shard, last).is_none_or(|entry| written.has_durably(last, entry.term))
    }
}

impl World {
    /// Looks at a process after a turn.
    pub(crate) fn check_process(&mut self, n: usize) {
        let Some(process) = self.nodes[n].process() else { return };
        for status in process.runner.replica.status() {
            self.check_leader(n, &status);
            self.check_commit(n, &status);
            self.check_bounds(n, &status);
            self.check_progress(n, &status);
            self.check_applied(n, &status);
            self.check_state(n, &status);
        }
    }

    /// Whether a majority has an entry durably: of the voters, and where these are changing, of those before as well.
    fn is_held(&self, configuration: &Configuration, shard: ShardId, index: u64, term: Term) -> bool {
        let has = |id: &&u64| {
            let Some(other) = self.place_of(**id) else { return false };
            let directory = &self.nodes[other].directory;
            directory.id == **id
                && directory.written.get(&shard).is_some_and(|written| written.has_durably(index, term))
        };
        let majority = |voters: &[u64]| voters.is_empty() || 2 * voters.iter().filter(has).count() > voters.len();
        majority(&configuration.voters) && majority(&configuration.voters_outgoing)
    }
}
