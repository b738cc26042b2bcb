//! I5: the same log makes the same state. I8: no entry carries another term's stamps.

use base::machine::StateMachine;
use base::rng::mix_all;
use queue::{Answer, Query, QueueMachine};
use replica::ShardStatus;

use crate::world::World;

/// A hash of what can be seen of a state at little cost: clocks, deadlines and the numbers of all queues.
fn hash(machine: &QueueMachine) -> u64 {
    let stamps = machine.stamps();
    let due = machine.next_due();
    let mut parts = vec![stamps.lease.0, stamps.schedule.0];
    parts.push(due.lease.map_or(0, |time| time.0 + 1));
    parts.push(due.schedule.map_or(0, |time| time.0 + 1));
    if let (Answer::Queues(queues), _) = machine.query(&Query::Queues) {
        for queue in queues {
            parts.push(u64::from(base::checksum::crc32c(0, queue.command.as_bytes())));
            parts.extend(queue.depth.ready);
            parts.extend([queue.depth.delayed, queue.depth.leased, queue.depth.dead]);
            let totals = queue.totals;
            parts.extend([totals.created, totals.claimed, totals.completed, totals.failed]);
            parts.extend([totals.dead, totals.cancelled, totals.expired, u64::from(queue.pause.is_some())]);
        }
    }
    if let (Answer::Operations(running), _) = machine.query(&Query::Operations { tenant: None, running: true }) {
        running.iter().for_each(|operation| parts.extend([operation.steps, operation.changed, operation.skipped]));
    }
    mix_all(&parts)
}

impl World {
    pub(super) fn check_state(&mut self, n: usize, status: &ShardStatus) {
        let (shard, applied) = (status.shard, status.applied.0);
        if status.skipped > 0 {
            return self.violate("I8", format!("n{} has skipped an entry of shard {shard}", n + 1));
        }
        if status.installing || self.watch.seen.get(&(n, shard)) == Some(&applied) {
            return;
        }
        self.watch.seen.insert((n, shard), applied);
        let process = self.nodes[n].process_mut().expect("it runs");
        let members = process.runner.replica.members(shard).encode();
        let hash =
            mix_all(&[hash(process.runner.replica.machine_mut(shard)), u64::from(base::checksum::crc32c(0, &members))]);
        let (known, first) = *self.watch.states.entry((shard, applied)).or_insert((hash, n));
        if known != hash {
            let shown = |world: &mut World, n: usize| {
                let process = world.nodes[n].process_mut()?;
                let at = process.runner.replica.applied(shard);
                let machine = process.runner.replica.machine_mut(shard);
                let (due, stamps) = (machine.next_due(), machine.stamps());
                Some(format!("n{} at {at}: {stamps:?} {due:?} {:?}", n + 1, process.runner.replica.members(shard)))
            };
            let (one, other) = (shown(self, n), shown(self, first));
            self.tell(|| format!("{one:?}"));
            self.tell(|| format!("{other:?}"));
            let what = format!("n{} and n{} differ at entry {applied} of shard {shard}", n + 1, first + 1);
            self.violate("I5", what);
        }
    }
}
