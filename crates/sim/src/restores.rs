//! A backup is restored into the cluster that it was made of, while nodes die: every group has it at last, or none has, and the cluster works.
//!
//! This comes behind what is judged: a history knows no state that changes without an operation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use base::machine::{ShardInfo, StateMachine};
use base::rows::{Changes, Unreadable};
use base::{Incarnation, Index, ShardId};
use queue::QueueMachine;
use replica::leadership::RECORDS;
use replica::{Event as ReplicaEvent, Members, RestoreId, RestoreStep, Restores, Swap};
use storage::StorageError;
use storage::checkpoint::{Checkpoint, MemoryCheckpoint, Meta, Staged};

use crate::checkpoint::copy_of;
use crate::disk::Survival;
use crate::faults::Fault;
use crate::process::{Caller, Control, State};
use crate::world::{Event, World};

/// Steps of a restore are looked at this often, µs.
const LOOK: u64 = 50_000;

/// Who looks after a restore says what is to be done this often, µs.
const WORD_INTERVAL: u64 = 2_000_000;

/// A restore is decided after so long, and done in every group after as long again, µs.
const DECISION_MAX: u64 = 60_000_000;

/// What happens to nodes meanwhile, and how often at most.
const CRASH: &str = "crash-in-restore";
const CRASHES_MAX: u64 = 4;

/// What a restore of a checkpoint in memory is called where a file has a path.
const NOWHERE: &str = "memory";

fn damaged(what: String) -> StorageError {
    StorageError::Damaged { file: NOWHERE.into(), offset: None, what }
}

/// A part of a backup as a member stages it: of another life of the cluster.
fn stage(saved: &MemoryCheckpoint, incarnation: Incarnation) -> Result<MemoryCheckpoint, StorageError> {
    let mut part = copy_of(saved)?;
    let meta = part.meta()?.ok_or_else(|| damaged("nothing was saved".into()))?;
    let before = Members::decode(&meta.configuration).map_err(|_| damaged("its members do not read back".into()))?;
    let first = Index(meta.index.next().0.wrapping_add_signed(before.ahead()));
    let mut changes = Changes::default();
    let listed = QueueMachine::renew(&mut *part.rows(), first, incarnation, &mut changes);
    listed.map_err(|Unreadable(what)| damaged(what))?;
    part.write(&changes)?;
    part.commit(&Meta { configuration: Members::default().ahead_by(before.ahead()).encode(), ..meta })?;
    Ok(part)
}

/// The same rows, ready to take the place of a checkpoint.
fn staged(part: &MemoryCheckpoint) -> Result<Staged, StorageError> {
    let snapshots = part.snapshots();
    let copy = snapshots.take()?;
    let mut incoming = snapshots.receive(copy.snapshot(), None)?;
    let mut bytes = vec![0; copy.snapshot().length as usize];
    let length = copy.read_at(0, &mut bytes)?;
    incoming.write(0, &bytes[..length])?;
    incoming.finish()
}

/// Makes a staged part the checkpoint of the entry that says so; returns the members that it has.
pub(crate) fn install(
    checkpoint: &mut dyn Checkpoint,
    part: &mut MemoryCheckpoint,
    swap: &Swap,
) -> Result<Members, StorageError> {
    let meta = part.meta()?.ok_or_else(|| damaged("nothing was staged".into()))?;
    let of_part = Members::decode(&meta.configuration).map_err(|_| damaged("its members do not read back".into()))?;
    let counted = meta.index.0.wrapping_add_signed(of_part.ahead());
    let members = swap.members.clone().ahead_by(counted.wrapping_sub(swap.index.0).cast_signed());
    part.commit(&Meta { index: swap.index, term: swap.term, configuration: members.encode() })?;
    checkpoint.install(staged(part)?)?;
    Ok(members)
}

impl World {
    /// Keeps what a backup would hold now.
    pub(crate) fn back_up(&mut self) {
        let is_founded = |n: &usize| {
            let checkpoints = &self.nodes[*n].directory.checkpoints;
            checkpoints.values().all(|durable| durable.meta().is_ok_and(|meta| meta.is_some()))
        };
        let Some(n) = self.leader(RECORDS).or_else(|| self.running().into_iter().find(is_founded)) else { return };
        let parts = self.nodes[n].directory.checkpoints.iter().map(|(shard, durable)| (*shard, copy_of(durable)));
        let parts: Result<BTreeMap<ShardId, MemoryCheckpoint>, StorageError> =
            parts.map(|(shard, copy)| copy.map(|copy| (shard, copy))).collect();
        self.backup = parts.ok();
    }

    /// Lets what is staged become the state, where a log says so; whoever has staged nothing asks for a snapshot.
    pub(crate) fn swap(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let parts = &mut node.directory.staged;
        let State::Running(process) = &mut node.state else { return };
        for swap in std::mem::take(&mut process.runner.effects.swaps) {
            let part = parts.get_mut(&swap.shard).filter(|(id, _)| *id == swap.id);
            let info = ShardInfo { shard: swap.shard, incarnation: swap.id.incarnation };
            let machine = part.and_then(|(_, part)| QueueMachine::restore(info, &mut *part.rows()).ok());
            match machine {
                Some(machine) => process.runner.swap(swap, PathBuf::from(NOWHERE), machine, &mut process.jobs),
                None => process.runner.replica.ask_for_snapshot(swap.shard),
            }
        }
    }

    /// Drops what is staged on a node and not needed any more.
    pub(crate) fn forget_staged(&mut self, n: usize) {
        let Some(process) = self.nodes[n].process() else { return };
        let replica = &process.runner.replica;
        let first = *replica.members(RECORDS).restores();
        let of: BTreeMap<ShardId, Restores> =
            replica.shards().into_iter().map(|shard| (shard, *replica.members(shard).restores())).collect();
        self.nodes[n].directory.staged.retain(|shard, (id, _)| first.needs(*id, &of[shard]));
    }

    fn of_group_0(&self, n: usize) -> Option<Restores> {
        self.nodes[n].process().map(|process| *process.runner.replica.members(RECORDS).restores())
    }

    fn step_restore(&mut self, step: RestoreStep) {
        if let Some(leader) = self.leader(RECORDS) {
            let process = self.nodes[leader].process_mut().expect("it leads");
            process.controls.push_back(Control::Restore(step));
            self.wake(leader);
        }
    }

    /// Something happens to the cluster, perhaps.
    fn disturb(&mut self) {
        let running = self.running();
        let away = self.nodes.iter().any(|node| matches!(node.state, State::Down) && node.directory.cluster.is_some());
        let crashes = self.faults.counts.get(CRASH).copied().unwrap_or(0);
        if !away && !running.is_empty() && crashes < CRASHES_MAX && self.rng.one_in(6) {
            let n = running[self.rng.below(running.len() as u64) as usize];
            let survival = if self.rng.one_in(2) { Survival::Nothing } else { Survival::Any };
            self.faults.count(CRASH);
            self.crash(n, survival);
            let delay = 10_000 + self.rng.below(5_000_000);
            self.after(delay, Event::Fault(Fault::Restart(n)));
        }
    }

    /// Lets time pass until something is so, while this step is asked for again and again. False: it is not, after the longest time for that.
    fn until(&mut self, step: Option<RestoreStep>, is_so: impl Fn(&World) -> bool) -> bool {
        let end = self.time + DECISION_MAX;
        let mut next = self.time;
        while self.violation.is_none() && self.time < end {
            if is_so(self) {
                return true;
            }
            if let Some(step) = step.filter(|_| self.time >= next) {
                // It may get lost, or lose its leader, and does no harm twice.
                self.step_restore(step);
                next = self.time + WORD_INTERVAL;
            }
            self.disturb();
            self.run_until(self.time + LOOK);
        }
        false
    }

    /// Restores the backup, and lets honest workers finish what it brings. The run is over behind this.
    pub fn restore_backup(&mut self) {
        let Some(backup) = self.backup.take() else { return };
        let incarnation = Incarnation(self.rng.next_u64().max(1));
        self.tell(|| "a backup is restored".into());
        // The export has ended what the nodes were saving, and what clients had asked for.
        for n in self.running() {
            self.crash(n, Survival::Everything);
            self.after(1_000, Event::Fault(Fault::Restart(n)));
        }
        self.begin_clients_anew();
        let shards = self.options.shards as u16;
        if !self.until(None, |world| (0..shards).all(|shard| world.leader(ShardId(shard)).is_some())) {
            return self.violate("L1", "no leader after a restart");
        }
        let begun = |world: &World| {
            let first = world.leader(RECORDS).and_then(|leader| world.of_group_0(leader))?;
            first.last.filter(|last| first.pending && last.incarnation == incarnation)
        };
        if !self.until(Some(RestoreStep::Begin(incarnation)), |world| begun(world).is_some()) {
            return self.violate("L4", "a restore was not begun");
        }
        let Some(id) = begun(self) else { return };
        let is_decided = move |world: &World| {
            let leader = world.leader(RECORDS).and_then(|leader| world.of_group_0(leader));
            leader.is_some_and(|first| first.last == Some(id) && !first.pending)
        };
        // Now and then its operator gives up, or does not reach everybody.
        let mut all = !self.rng.one_in(4);
        for n in 0..self.nodes.len() {
            self.disturb();
            let wait = self.time + self.rng.below(500_000);
            self.run_until(wait);
            all &= self.stage_on(n, id, &backup);
        }
        let step = if all { RestoreStep::Commit(id) } else { RestoreStep::Abort(id) };
        if !self.until(Some(step), is_decided) {
            return self.violate("L4", "a restore was not decided");
        }
        let done = move |world: &World| world.restored_to(id);
        let everywhere = |world: &World| !done(world).is_empty() && done(world).len() == 1;
        if !self.until(None, everywhere) {
            let what = format!("some groups have what was restored, others have not: {:?}", done(self));
            return self.violate("L4", what);
        }
        if !all && done(self).contains(&true) {
            return self.violate("S2", "what was given up was restored");
        }
        self.reach(if all { "restored" } else { "restore-aborted" });
        crate::run::drain(self);
    }

    /// Stages a backup on a node. False: it votes, and cannot.
    fn stage_on(&mut self, n: usize, id: RestoreId, backup: &BTreeMap<ShardId, MemoryCheckpoint>) -> bool {
        let me = self.nodes[n].directory.id;
        let votes = self.leader(RECORDS).and_then(|leader| self.nodes[leader].process()).is_none_or(|process| {
            let replica = &process.runner.replica;
            let voters = |shard: ShardId| &replica.members(shard).configuration.voters;
            replica.shards().into_iter().any(|shard| voters(shard).contains(&me))
        });
        if self.nodes[n].process().is_none() {
            return !votes;
        }
        for (shard, saved) in backup {
            match stage(saved, id.incarnation) {
                Ok(part) => drop(self.nodes[n].directory.staged.insert(*shard, (id, part))),
                Err(error) => self.violate("S2", format!("a backup cannot be staged: {error}")),
            }
        }
        true
    }

    /// Whether groups have done this restore, on every member that runs: both answers, if they differ.
    fn restored_to(&self, id: RestoreId) -> BTreeSet<bool> {
        let running = self.running().into_iter().filter_map(|n| {
            let replica = &self.nodes[n].process()?.runner.replica;
            let is_member = replica.members(RECORDS).get(self.nodes[n].directory.id).is_some();
            is_member.then_some(replica)
        });
        running
            .flat_map(|replica| {
                replica.shards().into_iter().map(|shard| replica.members(shard).restores().done == Some(id))
            })
            .collect()
    }

    /// An operator's step of a restore.
    pub(crate) fn restore_event(step: RestoreStep) -> ReplicaEvent<QueueMachine, Caller> {
        ReplicaEvent::Restore { shard: RECORDS, step, client: Caller::Nobody }
    }
}
