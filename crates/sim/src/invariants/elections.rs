//! R1: at most one leader in a term. R3: a leader has every committed entry. R6: what a leader commits by counting is of its own term, or it
//! could be undone.

use replica::{Role, ShardStatus};

use crate::world::World;

impl World {
    pub(super) fn check_commit(&mut self, n: usize, status: &ShardStatus) {
        let (shard, term, commit) = (status.shard, status.consensus.term, status.consensus.commit.0);
        if status.consensus.role != Role::Leader {
            self.watch.leading.remove(&(n, shard));
            return;
        }
        let Some((before, known)) = self.watch.leading.insert((n, shard), (term, commit)) else { return };
        let written = &self.nodes[n].directory.written[&shard];
        let of = written.entries.get(&commit).map(|(entry, _)| entry.term);
        if before == term && commit > known && commit > written.checkpoint && of.is_some_and(|of| of < term) {
            let what =
                format!("n{} commits entry {commit} of shard {shard} of an earlier term than its own, {term}", n + 1);
            self.violate("R6", what);
        }
    }

    pub(super) fn check_leader(&mut self, n: usize, status: &ShardStatus) {
        if status.consensus.role != Role::Leader {
            return;
        }
        let (shard, term, id) = (status.shard, status.consensus.term, self.nodes[n].directory.id);
        match self.watch.leaders.get(&(shard, term)) {
            Some(leader) if *leader == id => return,
            Some(leader) => {
                let what = format!("{leader:x} and {id:x} lead shard {shard} in term {term}");
                return self.violate("R1", what);
            }
            None => {}
        }
        self.watch.leaders.insert((shard, term), id);
        self.reach("elected");
        let process = self.nodes[n].process_mut().expect("it runs");
        let leases = base::machine::StateMachine::next_due(process.runner.replica.machine_mut(shard)).lease.is_some();
        if leases && term.0 > 1 {
            self.reach("K01");
        }
        // What is committed in this term or a later one is not for it to have: it may learn late that it was elected.
        let written = &self.nodes[n].directory.written[&shard];
        let last = self.watch.committed_to(shard);
        let mut missing = None;
        for index in written.checkpoint + 1..=last {
            if self.watch.committed_in(shard, index).is_none_or(|of| of >= term) {
                continue;
            }
            let Some(committed) = self.watch.entry(shard, index) else { continue };
            if written.entries.get(&index).is_none_or(|(entry, _)| entry.term != committed.term) {
                missing = Some(index);
                break;
            }
        }
        if let Some(index) = missing {
            let what =
                format!("n{} leads shard {shard} in term {term} without entry {index}, which is committed", n + 1);
            self.violate("R3", what);
        }
    }
}
