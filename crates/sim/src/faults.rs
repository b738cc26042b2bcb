//! What is done to the cluster while it works.

use std::collections::{BTreeMap, BTreeSet};

use base::ShardId;
use base::machine::StateMachine;
use base::rng::{SplitMix, mix_all};
use history::record::Line;
use replica::MemberChange;
use replica::leadership::RECORDS;

use crate::disk::Survival;
use crate::network::happens;
use crate::options::Options;
use crate::process::{Control, Directory, State, StorageStep, Written};
use crate::world::{Event, World};

/// Something that happens to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A connection breaks.
    Reset,
    /// Nodes cannot reach each other.
    Netsplit,
    /// A process or a machine dies.
    Crash,
    /// A node that was to die while it writes does so, unless its process has ended before.
    Die(usize, u32),
    /// A node is started.
    Restart(usize),
    /// All machines lose power.
    PowerLoss,
    /// A process does nothing for a while.
    Pause,
    /// A processor is slow.
    Slow,
    /// Syncs are slow.
    SlowDisk,
    /// A write or sync fails.
    DiskError,
    /// A disk is full.
    NoSpace,
    /// There is room again.
    Space(usize),
    /// A bit of a file flips.
    BitFlip,
    /// A wall clock jumps.
    WallJump,
    /// The members change.
    Member,
    /// A disk is lost.
    Wipe,
    /// A node whose data is damaged, or that was removed, gets an empty directory.
    Replace(usize),
    /// A member whose vote was taken goes, as soon as it votes nowhere.
    Remove(u64),
    /// A group is handed over.
    Transfer,
    /// An operator wants checkpoints.
    Save,
    /// More work than usual.
    Overload,
    /// Transfers of snapshots that nobody answers to end.
    Housekeeping,
}

/// The nemesis.
pub struct Faults {
    rng: SplitMix,
    /// How often what was done.
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// Members whose votes are being taken: groups may not know it yet.
    leaving: BTreeSet<u64>,
}

impl Faults {
    /// One that draws from this seed.
    pub fn new(seed: u64, _options: &Options) -> Faults {
        Faults { rng: SplitMix::new(mix_all(&[seed, 3])), counts: BTreeMap::new(), leaving: BTreeSet::new() }
    }

    /// Notes a fault.
    pub(crate) fn count(&mut self, class: &'static str) {
        *self.counts.entry(class).or_default() += 1;
    }
}

impl World {
    /// Plans the first of everything that the options want.
    pub(crate) fn start_faults(&mut self) {
        let options = self.options.clone();
        let links = (options.nodes * options.nodes.saturating_sub(1)).max(1);
        let recurring = [
            (options.reset_ms / links, options.reset_ms > 0 && options.nodes > 1, Fault::Reset),
            (options.netsplit_ms, options.netsplit_ms > 0 && options.nodes + options.spares > 1, Fault::Netsplit),
            (options.crash_ms / options.nodes, options.crash_ms > 0, Fault::Crash),
            (options.pause_ms, options.pause_ms > 0, Fault::Pause),
            (options.slow_ms, options.slow_ms > 0, Fault::Slow),
            (options.slow_disk_ms, options.slow_disk_ms > 0, Fault::SlowDisk),
            (options.disk_error_ms, options.disk_error_ms > 0, Fault::DiskError),
            (options.no_space_ms, options.no_space_ms > 0, Fault::NoSpace),
            (options.bit_flip_ms, options.bit_flip_ms > 0, Fault::BitFlip),
            (options.member_ms, options.member_ms > 0, Fault::Member),
            (options.wipe_ms, options.wipe_ms > 0, Fault::Wipe),
            (options.transfer_ms, options.transfer_ms > 0, Fault::Transfer),
            (options.save_ms, options.save_ms > 0, Fault::Save),
            (5_000, true, Fault::Housekeeping),
        ];
        for (mean, on, fault) in recurring {
            if on {
                self.plan_again(mean, fault);
            }
        }
        let storm = options.storm_ms * 1_000;
        let begun = self.time;
        let some = [
            (options.power_losses, Fault::PowerLoss),
            (options.wall_jumps, Fault::WallJump),
            (options.overloads, Fault::Overload),
        ];
        for (times, fault) in some {
            for _ in 0..times {
                let at = begun + self.faults.rng.below(storm);
                self.plan(at, Event::Fault(fault));
            }
        }
    }

    fn plan_again(&mut self, mean_ms: u64, fault: Fault) {
        let delay = self.faults.rng.below(mean_ms.max(1) * 2_000) + 1_000;
        self.after(delay, Event::Fault(fault));
    }

    fn done(&mut self, class: &'static str, what: impl FnOnce() -> String) {
        self.faults.count(class);
        let what = what();
        self.tell(|| what.clone());
        let t = self.time;
        self.lines.push(Line::Fault(history::record::Event { t, what }));
    }

    fn some_running(&mut self) -> Option<usize> {
        let running = self.running();
        let count = running.len() as u64;
        (count > 0).then(|| running[self.faults.rng.below(count) as usize])
    }

    /// Whether damage to a node's data leaves a majority of every shard's voters undamaged, with all that is committed, and with all that this
    /// node has: a leader may count it as soon as it hears so. A node that is away, one that is to go and may still be a voter of a shard, and one
    /// that has not caught up since its last damage, count as damaged. A learner may be given a vote before its leader knows that
    /// it is gone.
    fn may_damage(&self, n: usize) -> bool {
        let Some(leader) = self.leader(RECORDS).and_then(|leader| self.nodes[leader].process()) else { return false };
        let shards = leader.runner.replica.shards();
        let of_cluster = leader.runner.replica.members(RECORDS);
        shards.iter().all(|shard| {
            let Some(leader) = self.leader(*shard).filter(|leader| *leader != n) else { return false };
            let process = self.nodes[leader].process().expect("it leads");
            let members = process.runner.replica.members(*shard);
            if members.configuration.is_changing() {
                return false;
            }
            let committed = self.watch.committed_to(*shard);
            let voters = &members.configuration.voters;
            let own = self.nodes[n].directory.written.get(shard).and_then(Written::last_durable);
            let sound = |id: &&u64| {
                let Some(other) = self.place_of(**id) else { return false };
                let node = &self.nodes[other];
                let has = node.directory.written.get(shard).is_some_and(|written| {
                    let has_own = own.is_none_or(|(index, term)| written.has_durably(index, term));
                    has_own && self.watch.has_all(*shard, written)
                });
                let goes = of_cluster.was_removed(**id) || self.faults.leaving.contains(*id);
                let stays = other != n && node.directory.id == **id && !goes;
                stays && !node.directory.damaged && has && committed > 0
            };
            let soon = members.configuration.learners.contains(&self.nodes[n].directory.id);
            2 * voters.iter().filter(sound).count() > voters.len() + usize::from(soon)
        })
    }

    /// Something is done to the cluster.
    pub(crate) fn on_fault(&mut self, fault: Fault) {
        self.fold(&[9, self.time]);
        if let Fault::Restart(n) = fault {
            if matches!(self.nodes[n].state, State::Stopped(_)) {
                self.nodes[n].state = State::Down;
                // Nothing but the process has ended.
                let rng = &mut self.faults.rng;
                self.nodes[n].directory.disk.crash(Survival::Everything, rng);
            }
            return self.start(n);
        }
        if let Fault::Die(n, epoch) = fault {
            if self.nodes[n].epoch == epoch {
                self.crash_one(n, true);
            }
            return;
        }
        if let Fault::Remove(id) = fault {
            return self.remove(id);
        }
        if let Fault::Replace(n) = fault {
            return self.replace(n);
        }
        if fault == Fault::Housekeeping {
            self.give_up_transfers();
            return self.after(5_000_000, Event::Fault(fault));
        }
        if let Fault::Space(n) = fault {
            self.nodes[n].directory.disk.fill(false);
            if matches!(self.nodes[n].state, State::Stopped(_)) {
                // An operator has made room and starts it again.
                self.nodes[n].directory.was_full = true;
                self.after(1_000_000, Event::Fault(Fault::Restart(n)));
            }
            return;
        }
        if self.quiet || self.healed.is_some() {
            return;
        }
        let o = self.options.clone();
        match fault {
            Fault::Reset => {
                self.break_one();
                let links = (o.nodes * o.nodes.saturating_sub(1)).max(1);
                self.plan_again(o.reset_ms / links, fault);
            }
            Fault::Netsplit => {
                self.split();
                self.plan_again(o.netsplit_ms, fault);
            }
            Fault::Crash => {
                if let Some(n) = self.some_running() {
                    match self.faults.rng.below(3) {
                        0 => self.crash_one(n, false),
                        1 => self.crash_one(n, true),
                        _ => {
                            let step = self.faults.rng.below(StorageStep::ALL.len() as u64) as usize;
                            self.nodes[n].dies_at = Some(StorageStep::ALL[step]);
                        }
                    }
                }
                self.plan_again(o.crash_ms / o.nodes, fault);
            }
            Fault::PowerLoss => {
                self.done("power-loss", || "all machines lose power".into());
                for n in self.running() {
                    let survival = self.survival();
                    self.crash(n, survival);
                    self.restart_later(n);
                }
            }
            Fault::Pause => {
                if let Some(n) = self.some_running() {
                    let length = 1_000 * (100 + self.faults.rng.below(o.pause_length_ms.max(1)));
                    let suspended = self.faults.rng.one_in(3);
                    self.done("pause", || format!("n{} pauses for {} ms", n + 1, length / 1_000));
                    let until = self.time + length;
                    self.nodes[n].paused_until = self.nodes[n].paused_until.max(until);
                    if suspended && self.nodes[n].paused_until == until {
                        self.nodes[n].clock.suspend(self.time, until);
                    }
                }
                self.plan_again(o.pause_ms, fault);
            }
            Fault::Slow => {
                if let Some(n) = self.some_running() {
                    let (factor, length) =
                        (2 + self.faults.rng.below(19), 1_000_000 + self.faults.rng.below(29_000_000));
                    self.done("slow", || format!("n{} is {factor} times slower", n + 1));
                    self.nodes[n].slow = (factor, self.time + length);
                }
                self.plan_again(o.slow_ms, fault);
            }
            Fault::SlowDisk => {
                if let Some(n) = self.some_running() {
                    let length = 1_000_000 + self.faults.rng.below(10_000_000);
                    self.done("slow-disk", || format!("the disk of n{} is slow", n + 1));
                    self.nodes[n].slow_disk_until = self.time + length;
                }
                self.plan_again(o.slow_disk_ms, fault);
            }
            Fault::DiskError => {
                if let Some(n) = self.some_running() {
                    self.fail_disk(n);
                }
                self.plan_again(o.disk_error_ms, fault);
            }
            Fault::NoSpace => {
                if let Some(n) = self.some_running() {
                    let length = 1_000_000 + self.faults.rng.below(10_000_000);
                    self.done("no-space", || format!("the disk of n{} is full", n + 1));
                    self.nodes[n].directory.disk.fill(true);
                    self.after(length, Event::Fault(Fault::Space(n)));
                }
                self.plan_again(o.no_space_ms, fault);
            }
            Fault::BitFlip => {
                if let Some(n) = self.some_running().filter(|n| self.may_damage(*n)) {
                    self.flip(n);
                }
                self.plan_again(o.bit_flip_ms, fault);
            }
            Fault::WallJump => {
                let n = self.faults.rng.below(self.nodes.len() as u64) as usize;
                let most = if self.faults.rng.one_in(2) { 10_000 } else { 3_600_000 };
                let ms = self.faults.rng.below(2 * most + 1) as i64 - most as i64;
                self.done("wall-jump", || format!("the wall clock of n{} jumps by {ms} ms", n + 1));
                self.nodes[n].clock.jump(ms);
                if self.has_leases(n) {
                    self.reach("K19");
                }
            }
            Fault::Member => {
                self.change_members();
                self.plan_again(o.member_ms, fault);
            }
            Fault::Wipe => {
                if let Some(n) = self.some_running().filter(|n| self.may_damage(*n)) {
                    self.wipe(n, "wipe");
                }
                self.plan_again(o.wipe_ms, fault);
            }
            Fault::Transfer => {
                let shard = ShardId(self.faults.rng.below(self.options.shards) as u16);
                self.transfer(shard);
                self.plan_again(o.transfer_ms, fault);
            }
            Fault::Save => {
                if let Some(n) = self.some_running() {
                    self.faults.count("save");
                    self.nodes[n].process_mut().expect("it runs").controls.push_back(Control::Save);
                    self.wake(n);
                }
                self.plan_again(o.save_ms, fault);
            }
            Fault::Overload => {
                let length = 1_000_000 + self.faults.rng.below(8_000_000);
                self.done("overload", || "there is more to do than usual".into());
                self.clients.overload_until = self.time + length;
            }
            Fault::Die(..)
            | Fault::Restart(_)
            | Fault::Replace(_)
            | Fault::Remove(_)
            | Fault::Housekeeping
            | Fault::Space(_) => {}
        }
    }

    /// Whether something that a node leads ends by the lease clock.
    fn has_leases(&mut self, n: usize) -> bool {
        let Some(process) = self.nodes[n].process_mut() else { return false };
        let led = process.runner.replica.status().into_iter().filter(|status| status.ready);
        let shards: Vec<ShardId> = led.map(|status| status.shard).collect();
        let due = |shard| process.runner.replica.machine_mut(shard).next_due().lease;
        shards.into_iter().map(due).any(|lease| lease.is_some())
    }

    fn survival(&mut self) -> Survival {
        let all = [Survival::Nothing, Survival::Prefix, Survival::Suffix, Survival::Any, Survival::Everything];
        all[self.faults.rng.below(all.len() as u64) as usize]
    }

    fn restart_later(&mut self, n: usize) {
        let rng = &mut self.faults.rng;
        let short = self.options.restart_ms.max(1) * 1_000;
        let delay = match rng.below(10) {
            0..7 => 10_000 + rng.below(short),
            7..9 => short + rng.below(30_000_000),
            _ if self.may_stay_down(n) => {
                self.nodes[n].stays_down = true;
                return;
            }
            _ => 10_000 + self.faults.rng.below(short),
        };
        self.after(delay, Event::Fault(Fault::Restart(n)));
    }

    /// Whether most of those who found the cluster are still to come back, if this one does not before everything is healed.
    fn may_stay_down(&self, n: usize) -> bool {
        let founders = self.options.nodes as usize;
        let away = (0..self.nodes.len()).filter(|other| *other == n || self.nodes[*other].stays_down).count();
        2 * away < founders
    }

    fn crash_one(&mut self, n: usize, machine: bool) {
        let survival = if machine { self.survival() } else { Survival::Everything };
        let leads = self.nodes[n].process().is_some_and(|process| {
            let status = process.runner.replica.status();
            status.iter().any(|shard| shard.ready)
        });
        self.done(if machine { "crash" } else { "kill" }, || {
            format!("n{} dies{}", n + 1, if leads { ", leading" } else { "" })
        });
        self.crash(n, survival);
        self.restart_later(n);
    }

    fn break_one(&mut self) {
        let count = self.nodes.len() as u64;
        let (from, to) = (self.faults.rng.below(count) as usize, self.faults.rng.below(count) as usize);
        if from == to || !self.links[from][to].up {
            return;
        }
        self.faults.count("reset");
        if happens(&mut self.faults.rng, self.options.half_open) {
            let length = 100_000 + self.faults.rng.below(5_000_000);
            let epoch = self.links[from][to].epoch;
            self.links[from][to].blocked_until = self.time + length;
            self.after(length, Event::Reset(from, to, epoch));
        } else {
            self.reset(from, to);
        }
    }

    fn split(&mut self) {
        let count = self.nodes.len();
        let length = 1_000 * (100 + self.faults.rng.below(self.options.netsplit_length_ms.max(1)));
        let one_way = self.faults.rng.one_in(4);
        let alone = self.faults.rng.below(count as u64) as usize;
        let shape = self.faults.rng.below(4);
        let sides: Vec<bool> = match shape {
            // One node.
            0 | 3 => (0..count).map(|n| n == alone).collect(),
            // Two parts.
            1 => (0..count).map(|_| self.faults.rng.one_in(2)).collect(),
            // All but a bridge: it alone reaches both sides.
            _ => (0..count).map(|n| n % 2 == 0).collect(),
        };
        self.done("netsplit", || {
            format!("a netsplit of {} ms: {sides:?}{}", length / 1_000, if one_way { ", one way" } else { "" })
        });
        for from in 0..count {
            for to in 0..count {
                let bridge = shape == 2 && (from == alone || to == alone);
                if from != to && sides[from] != sides[to] && !bridge && (!one_way || sides[from]) {
                    self.block(from, to, length);
                }
            }
        }
    }

    fn fail_disk(&mut self, n: usize) {
        // A disk that fails once is not damaged: what it has acknowledged is there. But the process ends.
        let later = self.faults.rng.below(20);
        let sync = self.faults.rng.one_in(2);
        self.done("disk-error", || format!("the disk of n{} will fail", n + 1));
        let disk = &self.nodes[n].directory.disk;
        if sync {
            disk.fail_sync_after(later);
        } else {
            disk.fail_write_after(later);
        }
        // An operator looks at it later.
        let delay = 2_000_000 + self.faults.rng.below(20_000_000);
        self.after(delay, Event::Fault(Fault::Restart(n)));
    }

    pub(crate) fn flip(&mut self, n: usize) {
        let files: Vec<(String, u64)> = self.nodes[n].directory.disk.lengths();
        let logs: Vec<&(String, u64)> =
            files.iter().filter(|(name, length)| name.starts_with("wal-") && *length > 0).collect();
        if logs.is_empty() {
            return;
        }
        let (name, length) = logs[self.faults.rng.below(logs.len() as u64) as usize];
        let (offset, bit) = (self.faults.rng.below(*length), self.faults.rng.below(8) as u8);
        self.done("bit-flip", || format!("a bit of {name} on n{} flips, at {offset}", n + 1));
        self.nodes[n].directory.damaged = true;
        self.crash(n, Survival::Everything);
        self.nodes[n].directory.disk.flip_bit(name, offset, bit);
        self.after(1_000_000, Event::Fault(Fault::Restart(n)));
        // Whether or not it starts, an operator gives it an empty directory later: nobody knows what the bit meant.
        let delay = 3_000_000 + self.faults.rng.below(20_000_000);
        self.after(delay, Event::Fault(Fault::Replace(n)));
    }

    /// What an operator does with a node whose data is of no use any more.
    fn replace(&mut self, n: usize) {
        let id = self.nodes[n].directory.id;
        let leader = self.leader(RECORDS).and_then(|leader| self.nodes[leader].process());
        let removed = leader.map(|process| process.runner.replica.members(RECORDS).was_removed(id));
        let damaged = self.nodes[n].directory.damaged;
        if (damaged && !self.may_damage(n)) || (!damaged && removed.is_none()) {
            // Others need what it has, or nobody knows just now.
            return self.after(1_000_000, Event::Fault(Fault::Replace(n)));
        }
        if damaged || removed == Some(true) {
            self.crash(n, Survival::Everything);
            self.empty(n);
        }
        if damaged {
            self.after(1_000_000, Event::Fault(Fault::Restart(n)));
        }
    }

    /// A node begins anew with an empty directory, under its old name.
    pub(crate) fn wipe(&mut self, n: usize, class: &'static str) {
        self.done(class, || format!("n{} loses its disk", n + 1));
        self.crash(n, Survival::Everything);
        self.empty(n);
        let delay = 100_000 + self.faults.rng.below(10_000_000);
        self.after(delay, Event::Fault(Fault::Restart(n)));
    }

    pub(crate) fn empty(&mut self, n: usize) {
        let id = self.rng.next_u64().max(1);
        self.nodes[n].directory = Directory { replaces: true, ..Directory::new(id) };
        self.nodes[n].state = State::Down;
    }

    pub(crate) fn transfer(&mut self, shard: ShardId) {
        let Some(leader) = self.leader(shard) else { return };
        let process = self.nodes[leader].process_mut().expect("it leads");
        let voters = process.runner.replica.members(shard).configuration.voters.clone();
        let to = voters[self.faults.rng.below(voters.len() as u64) as usize];
        let process = self.nodes[leader].process_mut().expect("it leads");
        process.controls.push_back(Control::Transfer(shard, to));
        self.done("transfer", || format!("shard {shard} is to be led by {to:x}"));
        self.wake(leader);
    }

    /// A member comes or goes.
    fn change_members(&mut self) {
        let Some(leader) = self.leader(RECORDS) else { return };
        let process = self.nodes[leader].process().expect("it leads");
        let members = process.runner.replica.members(RECORDS).clone();
        let voters = &members.configuration.voters;
        let idle: Vec<usize> = (0..self.nodes.len())
            .filter(|n| {
                let node = &self.nodes[*n];
                matches!(node.state, State::Down) && !node.stays_down && node.directory.cluster.is_none()
            })
            .collect();
        // Somebody may go if the others can still decide.
        let up = voters.iter().filter(|id| self.is_near(leader, **id)).count();
        let spare = voters.len() > 1 && 2 * up > voters.len() + 1;
        if !idle.is_empty() && (!spare || self.faults.rng.one_in(2)) {
            let n = idle[self.faults.rng.below(idle.len() as u64) as usize];
            self.done("join", || format!("n{} joins", n + 1));
            return self.start(n);
        }
        if !spare || voters.len() <= 1 {
            return;
        }
        let id = voters[self.faults.rng.below(voters.len() as u64) as usize];
        if self.can_spare(leader, id) {
            self.take_vote(id);
        }
    }

    /// Whether a leader can go on with this member: it runs, is reached, and its data is not damaged.
    fn is_near(&self, leader: usize, id: u64) -> bool {
        let is_up = |n: usize| n == leader || (self.nodes[n].process().is_some() && self.links[leader][n].up);
        self.place_of(id).is_some_and(|n| is_up(n) && !self.nodes[n].directory.damaged)
    }

    /// Whether the other voters of each group can still decide without this one: groups may not have followed the first one yet.
    fn can_spare(&self, leader: usize, id: u64) -> bool {
        let replica = &self.nodes[leader].process().expect("it leads").runner.replica;
        replica.shards().into_iter().all(|shard| {
            let voters = &replica.members(shard).configuration.voters;
            let rest = || voters.iter().filter(|voter| **voter != id);
            2 * rest().filter(|voter| self.is_near(leader, **voter)).count() > rest().count()
        })
    }

    /// A member is to go: its vote first.
    pub(crate) fn take_vote(&mut self, id: u64) {
        let Some(leader) = self.leader(RECORDS) else { return };
        let Some(n) = self.place_of(id) else { return };
        self.done("remove", || format!("n{} is removed", n + 1));
        self.faults.leaving.insert(id);
        let process = self.nodes[leader].process_mut().expect("it leads");
        process.controls.push_back(Control::Change(vec![MemberChange::AddLearner(id)], Vec::new()));
        self.wake(leader);
        self.after(500_000, Event::Fault(Fault::Remove(id)));
    }

    /// Takes out a member whose vote is gone in every group.
    fn remove(&mut self, id: u64) {
        let Some(leader) = self.leader(RECORDS) else {
            return self.after(1_000_000, Event::Fault(Fault::Remove(id)));
        };
        let process = self.nodes[leader].process().expect("it leads");
        let replica = &process.runner.replica;
        if replica.members(RECORDS).get(id).is_none() {
            if let Some(n) = self.place_of(id) {
                let delay = 2_000_000 + self.faults.rng.below(20_000_000);
                self.after(delay, Event::Fault(Fault::Replace(n)));
            }
            return;
        }
        let votes = replica.shards().into_iter().any(|shard| replica.members(shard).configuration.voters.contains(&id));
        if !votes {
            let process = self.nodes[leader].process_mut().expect("it leads");
            process.controls.push_back(Control::Change(vec![MemberChange::Remove(id)], Vec::new()));
            self.wake(leader);
        }
        self.after(1_000_000, Event::Fault(Fault::Remove(id)));
    }

    /// All is well from now on, and clients only finish what they have begun.
    pub(crate) fn heal(&mut self) {
        self.healed = Some(self.time);
        self.tell(|| "everything is healed".into());
        self.mend();
    }

    /// Everything that stands in the way goes; a random majority is whole again, and everybody else may be.
    pub(crate) fn mend(&mut self) {
        let count = self.nodes.len();
        for from in 0..count {
            for to in 0..count {
                self.links[from][to].blocked_until = 0;
                self.links[from][to].retry_at = 0;
                if from != to {
                    self.after(1, Event::Connect(from, to));
                }
            }
        }
        self.weather.jitter = self.weather.jitter.min(2_000);
        self.weather.spike = 0;
        for n in 0..count {
            let node = &mut self.nodes[n];
            node.directory.disk.fill(false);
            node.directory.disk.heal();
            node.slow = (1, 0);
            node.slow_disk_until = 0;
            node.dies_at = None;
            node.clock.heal();
            if node.paused_until > self.time {
                node.paused_until = self.time;
                node.clock.resume(self.time);
                let epoch = node.epoch;
                self.plan(self.time, Event::GoOn(n));
                let node = &mut self.nodes[n];
                if let Some(process) = node.process_mut()
                    && process.turn_at.is_some()
                {
                    process.turn_at = Some(self.time);
                    self.plan(self.time, Event::Turn(n, epoch));
                }
            }
            let never_joined = self.nodes[n].directory.cluster.is_none() && n >= self.options.nodes as usize;
            if self.nodes[n].directory.damaged {
                self.after(1_000_000, Event::Fault(Fault::Replace(n)));
            }
            if !never_joined {
                let delay = 1_000 * (1 + n as u64);
                self.after(delay, Event::Fault(Fault::Restart(n)));
            }
        }
    }
}
