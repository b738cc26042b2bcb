//! R4: no two nodes apply different entries at one index. R5: what is committed is durable on a majority. R7: the bounds of a log stand in
//! their order. R8: what was applied stays applied.

use base::ShardId;
use replica::ShardStatus;

use crate::invariants::FIRST_ENTRY;
use crate::world::World;

/// Entries that a leader commits at most before it has applied a change of members.
const UNAPPLIED_MAX: u64 = 20;

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

    pub(super) fn check_progress(&mut self, n: usize, status: &ShardStatus) {
        let (shard, applied, installing, epoch) =
            (status.shard, status.applied.0, status.installing, self.nodes[n].epoch);
        let before = self.watch.progress.insert((n, shard), (epoch, applied, installing));
        let Some((_, known, installed)) = before.filter(|(process, ..)| *process == epoch) else { return };
        if applied < known {
            let what = format!("n{} had applied entry {known} of shard {shard}, and now {applied}", n + 1);
            self.violate("R8", what);
        } else if installed && installing && applied > known {
            let what = format!("n{} applies entry {applied} of shard {shard} while a snapshot is installed", n + 1);
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
                    self.watch.push(shard, entry.clone(), status.consensus.term);
                    new.push(index);
                    if let Ok(Some((header, _))) = replica::entry_operations(&entry)
                        && header.term != entry.term
                    {
                        let what = format!(
                            "entry {index} of shard {shard} and term {} was proposed in term {}",
                            entry.term, header.term
                        );
                        return self.violate("I8", what);
                    }
                }
            }
        }
        self.note_members(n, status);
        for index in new {
            self.check_majority(n, shard, index, "R5");
        }
    }

    /// A majority of the voters must have a committed entry: of those whom the last change before it has made voters, or, as long as its
    /// leader may not have applied that change, of those before. Once later changes are committed, their voters do as well.
    pub(super) fn check_majority(&mut self, n: usize, shard: ShardId, index: u64, id: &str) {
        let Some(term) = self.watch.entry(shard, index).map(|entry| entry.term) else { return };
        let last = self.watch.change_before(shard, index);
        let earlier = (last > 0 && index - last <= UNAPPLIED_MAX).then(|| self.watch.change_before(shard, last));
        let held = |change: u64| {
            let configuration = self.watch.configurations.get(&(shard, change));
            configuration.is_none_or(|configuration| self.is_held(configuration, shard, index, term))
        };
        let latest = self.watch.change_before(shard, self.watch.committed_to(shard) + 1);
        let later = (latest > last && self.watch.configurations.contains_key(&(shard, latest))).then_some(latest);
        if !held(last) && !earlier.is_some_and(held) && !later.is_some_and(held) {
            let voters = &self.watch.configurations[&(shard, last)];
            let what = format!(
                "entry {index} of shard {shard} is committed, as n{} says, and no majority has it durably: {voters:?}",
                n + 1
            );
            self.violate(id, what);
        }
    }

    /// Takes note of the members that a node knows after all that it has applied.
    pub(super) fn note_members(&mut self, n: usize, status: &ShardStatus) {
        let (shard, applied) = (status.shard, status.applied.0);
        let process = self.nodes[n].process().expect("it runs");
        let configuration = &process.runner.replica.members(shard).configuration;
        if status.installing || applied > self.watch.committed_to(shard) || configuration.voters.is_empty() {
            return;
        }
        let change = self.watch.change_before(shard, applied + 1);
        let configuration = configuration.clone();
        self.watch.configurations.entry((shard, change)).or_insert(configuration);
    }
}
