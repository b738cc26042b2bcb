//! R4: no two nodes apply different entries at one index. R5: what is committed is durable on a majority. R7: the bounds of a log stand in
//! their order. R8: what was applied stays applied.

use base::ShardId;
use consensus::codec::MEMBERS;
use replica::ShardStatus;

use crate::invariants::FIRST_ENTRY;
use crate::world::World;

impl World {
    pub(super) fn check_bounds(&mut self, n: usize, status: &ShardStatus) {
        let consensus = &status.consensus;
        let (first, checkpoint) = (consensus.first.0, status.checkpoint.0);
        let (applied, commit, last) = (status.applied.0, consensus.commit.0, consensus.last.0);
        // While a snapshot is installed, consensus is ahead of the state.
        let ordered = first <= checkpoint + 1 && checkpoint <= applied && applied <= commit && commit <= last;
        if !ordered && !status.installing {
            let what = format!(
                "n{}, shard {}: first {first}, checkpoint {checkpoint}, applied {applied}, committed {commit}, last {last}",
                n + 1,
                status.shard
            );
            self.violate("R7", what);
        }
    }

    pub(super) fn check_applied(&mut self, n: usize, status: &ShardStatus) {
        let (shard, applied) = (status.shard, status.applied.0);
        let written = self.nodes[n].directory.written.get_mut(&shard).expect("every shard has a log");
        let before = written.applied.max(FIRST_ENTRY - 1);
        if applied <= before {
            return;
        }
        written.applied = applied;
        let mut new = Vec::new();
        for index in before + 1..=applied {
            let written = &self.nodes[n].directory.written[&shard];
            // What a snapshot covers was not seen here.
            let Some((entry, _)) = written.entries.get(&index) else { continue };
            let entry = entry.clone();
            self.watch.applied.entry((n, shard)).or_default().push(index);
            match self.watch.entry(shard, index) {
                Some(known) if known.term == entry.term && known.data == entry.data => {}
                Some(known) => {
                    let what = format!(
                        "n{} applies entry {index} of shard {shard} of term {}, others that of term {}",
                        n + 1,
                        entry.term,
                        known.term
                    );
                    return self.violate("R4", what);
                }
                None => {
                    if index != self.watch.committed_to(shard) + 1 {
                        let what = format!("n{} applies entry {index} of shard {shard}, but none before it", n + 1);
                        return self.violate("R4", what);
                    }
                    self.watch.committed[usize::from(shard.0)].push(entry.clone());
                    if entry.data.first() != Some(&MEMBERS) {
                        new.push(index);
                    }
                }
            }
        }
        for index in new {
            self.check_majority(n, shard, index, "R5");
        }
    }

    /// A majority of the voters must have a committed entry.
    pub(super) fn check_majority(&mut self, n: usize, shard: ShardId, index: u64, id: &str) {
        let Some(term) = self.watch.entry(shard, index).map(|entry| entry.term) else { return };
        // Who votes may have changed since: what follows a change is looked at when the change is applied everywhere.
        let range = index.saturating_sub(20)..=index + 20;
        let changes =
            |index: u64| self.watch.entry(shard, index).is_some_and(|entry| entry.data.first() == Some(&MEMBERS));
        if range.into_iter().any(changes) {
            return;
        }
        if let Some((holders, voters)) = self.holders(n, shard, index, term)
            && 2 * holders <= voters
        {
            let what = format!(
                "entry {index} of shard {shard} is committed, as n{} says, and durable on {holders} of {voters} voters",
                n + 1
            );
            self.violate(id, what);
        }
    }
}
