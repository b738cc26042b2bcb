//! A replica with its log and its checkpoints, run turn by turn.
//!
//! What must not happen before what stands here, and nowhere else: a driver brings a disk, a clock and somebody for the work that takes time,
//! and calls, in each turn, [`Runner::begin`], [`Runner::write`], [`Runner::keep`] and [`Runner::checkpoint`], in this order. What
//! `begin` leaves in [`Runner::effects`] (messages, replies, transitions) goes out before `write`; what promises something comes out
//! of `keep`, after the sync. A crash between any two of them loses nothing that was promised.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base::machine::StateMachine;
use base::rows::Changes;
use base::{Index, Millis, Mono, ShardId, Term, planted};
use storage::StorageError;
use storage::checkpoint::{Meta, Staged};
use storage::disk::Disk;
use storage::wal::{Spare, SpareJob, Wal};

use crate::event::{Client, Effects, Event, MustSync, Now, Swap, Write};
use crate::members::Members;
use crate::replica::Replica;
use crate::shard::Halt;
use consensus::Message;

/// Rows collected for a checkpoint in one turn: about 0.2 ms.
const ROWS_PER_TURN: usize = 512;

/// When checkpoints are written, and what is durable.
#[derive(Clone, Copy, Debug)]
pub struct RunnerConfig {
    /// A round of checkpoints begins so long after the last one, if anything was written.
    pub checkpoint_interval: Millis,
    /// It begins sooner after so many bytes of log.
    pub checkpoint_log_bytes: u64,
    /// Clients accept that entries are only written when they are answered: the log is synced this often. Votes are synced always.
    pub buffered: Option<Millis>,
}

/// Work that takes time and that nobody waits for. Jobs are done in order.
pub enum Job<D: Disk> {
    /// Changes of the checkpoint being written.
    Write(ShardId, Changes),
    /// They are complete and become durable: then [`Runner::saved`].
    Commit(ShardId, Meta),
    /// They are complete, and readers of the checkpoint see them: then [`Runner::saved`].
    Show(ShardId, Meta),
    /// A snapshot takes the place of the checkpoint, and of what was written to it and not completed: then [`Runner::installed`].
    Install(ShardId, Box<Staged>),
    /// What was staged for a restore, in this file, takes the place of the checkpoint, likewise: then [`Runner::restored`].
    Restore(PathBuf, Box<Swap>),
    /// Something that takes time to drop.
    Drop(Box<dyn Send>),
    /// A file for a later segment of the log: then [`Runner::add_spare`].
    MakeSpare(SpareJob<D>),
}

/// Whoever does [`Job`]s.
pub trait Jobs<D: Disk> {
    /// Takes a job unless too many wait.
    ///
    /// # Errors
    /// They do; the job comes back.
    fn try_queue(&mut self, job: Job<D>) -> Result<(), Job<D>>;

    /// Takes a job, however long it must wait for room.
    fn queue(&mut self, job: Job<D>);
}

/// A snapshot that has arrived and was read: consensus decides whether it is wanted.
pub struct Arrived<S> {
    /// The shard.
    pub shard: ShardId,
    /// What consensus has sent with it.
    pub message: Message,
    /// What it is of.
    pub meta: Meta,
    /// The snapshot.
    pub staged: Staged,
    /// The state that it holds.
    pub machine: S,
    /// The members that it holds.
    pub members: Members,
    /// Called when it is installed; dropped when it is not wanted.
    pub done: Box<dyn FnOnce() + Send>,
}

/// Told which index the checkpoint of each shard is of.
pub type TellSaved = Box<dyn FnOnce(BTreeMap<ShardId, Index>) + Send>;

/// Told that readers of checkpoints see what was applied when it was asked for.
pub type TellShown = Box<dyn FnOnce() + Send>;

/// Who has asked for a round of checkpoints.
#[derive(Default)]
struct Asked {
    /// For durable ones.
    saves: Vec<TellSaved>,
    /// For any that readers see.
    shows: Vec<TellShown>,
}

/// To show readers what is new takes no more than this part of the time, unless they would wait for long.
const SHOW_SHARE: u64 = 20;

/// Nor is it held back for longer.
const SHOW_PAUSE_MAX: Millis = Millis(500);

/// A checkpoint being collected or written.
struct Saving {
    shard: ShardId,
    meta: Meta,
    /// When it was the present state.
    at: Mono,
    /// Collected, and waiting for room among the jobs.
    waiting: Option<Changes>,
    /// Everything is collected.
    complete: bool,
    /// Everything is handed over.
    committed: bool,
}

/// A snapshot that has become a checkpoint.
pub struct Installed {
    /// Everything up to here is in it.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
    /// Since consensus accepted it.
    pub took: Millis,
}

/// What a shard goes on with when a snapshot has become its checkpoint.
struct Installing<S> {
    index: Index,
    term: Term,
    since: Mono,
    machine: S,
    members: Members,
    done: Box<dyn FnOnce() + Send>,
}

/// See the module's documentation.
pub struct Runner<S: StateMachine, C, D: Disk> {
    config: RunnerConfig,
    /// The replica.
    pub replica: Replica<S, C>,
    /// What the replica wants done. A driver takes the replies, messages, transitions, signals and proposals out after [`Runner::begin`].
    pub effects: Effects<S, C>,
    wal: Wal<D>,
    /// Snapshots that consensus is asked about in this turn.
    arrived: BTreeMap<ShardId, Box<Arrived<S>>>,
    /// Snapshots that become checkpoints just now.
    installing: BTreeMap<ShardId, Installing<S>>,
    /// States that were staged for a restore and take their places just now.
    swapping: BTreeMap<ShardId, S>,
    /// What of this turn's writes must be durable.
    must_sync: MustSync,
    last_sync: Mono,
    /// The shards that the present round of checkpoints still has to save.
    to_save: Vec<ShardId>,
    saving: Option<Saving>,
    /// Whether the present round makes its checkpoints durable, or only shows them to readers, and since when it lasts.
    is_durable: bool,
    round_since: Mono,
    /// From when on readers may be shown something again.
    show_from: Mono,
    /// What readers see of each shard, and when that was its state.
    shown: BTreeMap<ShardId, (Index, Mono)>,
    /// Who has asked for checkpoints that the next round makes, and who for those of the present one.
    asked: [Asked; 2],
    last_checkpoint: Mono,
    log_bytes_at_checkpoint: u64,
    /// What the log must keep, by shard: everything from here on.
    kept_from: BTreeMap<ShardId, Index>,
    /// A round of checkpoints was begun after the node was asked to stop.
    saved_since_stop: bool,
}

impl<S: StateMachine, C: Client, D: Disk> Runner<S, C, D> {
    /// A replica that writes to this log. Of each shard the log must keep everything from `kept_from` on.
    pub fn new(
        config: RunnerConfig,
        now: Now,
        replica: Replica<S, C>,
        wal: Wal<D>,
        kept_from: BTreeMap<ShardId, Index>,
    ) -> Runner<S, C, D> {
        let shown = replica.shards().into_iter().map(|shard| (shard, (replica.applied(shard), now.mono))).collect();
        Runner {
            config,
            replica,
            is_durable: true,
            round_since: now.mono,
            show_from: now.mono,
            shown,
            effects: Effects::default(),
            wal,
            arrived: BTreeMap::new(),
            installing: BTreeMap::new(),
            swapping: BTreeMap::new(),
            must_sync: MustSync::Nothing,
            last_sync: now.mono,
            to_save: Vec::new(),
            saving: None,
            asked: Default::default(),
            last_checkpoint: now.mono,
            log_bytes_at_checkpoint: 0,
            kept_from,
            saved_since_stop: false,
        }
    }

    /// The log.
    pub fn wal(&self) -> &Wal<D> {
        &self.wal
    }

    // Between turns.

    /// Takes note of an event, for the next turn.
    pub fn on_event(&mut self, now: Now, event: Event<S, C>) {
        self.replica.on_event(now, event, &mut self.effects);
    }

    /// Takes note of a snapshot, for the next turn. While another one takes the place of the shard's checkpoint, or is about to, nobody wants
    /// it: consensus would accept it, and ask for it when it is not here any more.
    pub fn on_arrived(&mut self, now: Now, arrived: Box<Arrived<S>>) {
        if self.installing.contains_key(&arrived.shard) || self.arrived.contains_key(&arrived.shard) {
            return;
        }
        self.on_event(now, Event::Message { shard: arrived.shard, message: arrived.message.clone() });
        self.arrived.insert(arrived.shard, arrived);
    }

    /// The next round of checkpoints begins as soon as the present one has ended; who asks is told when it is durable.
    pub fn on_save_asked(&mut self, tell: TellSaved) {
        self.asked[0].saves.push(tell);
    }

    /// Readers of checkpoints are shown what is applied now as soon as may be; who asks is told when they see it.
    pub fn on_show_asked(&mut self, tell: TellShown) {
        self.asked[0].shows.push(tell);
    }

    /// What readers of a shard's checkpoint see: the state at an index, and when that was the present one.
    pub fn shown(&self, shard: ShardId) -> Option<(Index, Mono)> {
        self.shown.get(&shard).copied()
    }

    /// A file that [`Job::MakeSpare`] has made.
    pub fn add_spare(&mut self, spare: Spare) {
        self.wal.add_spare(spare);
    }

    // A turn.

    /// Does what has come up. What leaves at once is in [`Runner::effects`] then.
    ///
    /// # Errors
    /// A committed entry cannot be applied, or a part of the log is gone: the node must stop.
    ///
    /// # Panics
    /// Consensus accepts a snapshot that has not arrived.
    pub fn begin(
        &mut self,
        now: Now,
        seeds: impl FnMut() -> [u8; 16],
        prepare: impl Fn(&mut S),
        jobs: &mut impl Jobs<D>,
    ) -> Result<(), Halt> {
        self.replica.poll(now, seeds, &mut self.effects)?;
        self.install(now, prepare, jobs);
        Ok(())
    }

    /// Lets the snapshots that consensus has accepted become checkpoints.
    fn install(&mut self, now: Now, prepare: impl Fn(&mut S), jobs: &mut impl Jobs<D>) {
        for install in std::mem::take(&mut self.effects.installs) {
            let shard = install.shard;
            let arrived = self.arrived.remove(&shard).expect("consensus accepts what has arrived");
            assert_eq!((arrived.meta.index, arrived.meta.term), (install.index, install.term));
            let Arrived { staged, mut machine, members, done, .. } = *arrived;
            prepare(&mut machine);
            self.stop_saving(shard);
            let (index, term) = (install.index, install.term);
            self.installing.insert(shard, Installing { index, term, since: now.mono, machine, members, done });
            jobs.queue(Job::Install(shard, Box::new(staged)));
        }
        // The others were not wanted; whoever waits for them is told.
        self.arrived.clear();
    }

    /// Lets what is staged for a restore, in this file and with this state in it, become the shard's checkpoint, as [`Effects::swaps`] asks.
    pub fn swap(&mut self, swap: Swap, file: PathBuf, machine: S, jobs: &mut impl Jobs<D>) {
        self.stop_saving(swap.shard);
        self.swapping.insert(swap.shard, machine);
        jobs.queue(Job::Restore(file, Box::new(swap)));
    }

    /// Another state takes the place of a shard's. A round of checkpoints under way waits for that one, which makes a checkpoint itself.
    fn stop_saving(&mut self, shard: ShardId) {
        if self.saving.take_if(|saving| saving.shard == shard).is_some() {
            self.to_save.push(shard);
        }
    }

    /// Writes the turn's entries and hard states to the log. Returns how many entries, and whether [`Runner::keep`] must wait for the disk.
    ///
    /// # Errors
    /// The disk failed: the node must stop.
    pub fn write(&mut self, now: Now) -> Result<(usize, bool), StorageError> {
        let mut entries = 0;
        for write in self.effects.writes.drain(..) {
            match write {
                Write::Entry(shard, entry) => {
                    entries += 1;
                    self.wal.append(shard, entry);
                }
                Write::HardState(shard, state) => self.wal.append_hard_state(shard, state),
                Write::Restart(shard, index, term) => self.wal.restart(shard, index, term),
            }
        }
        self.must_sync = std::mem::take(&mut self.effects.must_sync);
        if self.must_sync > MustSync::Nothing {
            let written = self.wal.flush(false);
            // M04: the node goes on with what it could not write.
            if !planted::is(4) {
                written?;
            }
        }
        Ok((entries, self.syncs(now)))
    }

    fn syncs(&self, now: Now) -> bool {
        match self.config.buffered {
            None => self.must_sync > MustSync::Nothing,
            Some(interval) => self.must_sync == MustSync::Vote || now.mono - self.last_sync >= interval,
        }
    }

    /// Syncs the log where something rests on it. Returns the messages that may leave now.
    ///
    /// # Errors
    /// The disk failed: the node must stop.
    pub fn keep(&mut self, now: Now) -> Result<Vec<(ShardId, Message)>, StorageError> {
        if self.syncs(now) {
            self.last_sync = now.mono;
            let synced = self.wal.flush(true);
            if !planted::is(4) {
                synced?;
            }
        }
        self.must_sync = MustSync::Nothing;
        let after_sync = std::mem::take(&mut self.effects.after_sync);
        Ok(self.replica.on_synced(after_sync))
    }

    /// Starts checkpoints when it is time, and goes on with the one under way. A node that stops writes a last one of everything.
    ///
    /// # Panics
    /// Never: what is handed over comes back as it was.
    pub fn checkpoint(&mut self, now: Now, stopping: bool, jobs: &mut impl Jobs<D>) {
        if let Some(job) = self.wal.spare_job()
            && let Err(Job::MakeSpare(job)) = jobs.try_queue(Job::MakeSpare(job))
        {
            self.wal.give_back(job);
        }
        if self.saving.is_none() && self.to_save.is_empty() {
            self.end_round(now);
            let asked = !self.asked[0].saves.is_empty();
            let written = self.wal.stats().bytes - self.log_bytes_at_checkpoint;
            let due = now.mono - self.last_checkpoint >= self.config.checkpoint_interval;
            let wanted = self.replica.wants_checkpoint();
            let worth = due || wanted || written >= self.config.checkpoint_log_bytes || stopping;
            self.is_durable = asked || (written > 0 && worth);
            if self.is_durable {
                self.last_checkpoint = now.mono;
                self.log_bytes_at_checkpoint += written;
                self.to_save = self.replica.shards();
                self.saved_since_stop |= stopping;
                self.asked.swap(0, 1);
            } else if self.next_show().is_some_and(|moment| moment <= now.mono) {
                let is_new = |shard: &ShardId| self.shown[shard].0 < self.replica.applied(*shard);
                self.to_save = self.replica.shards().into_iter().filter(is_new).collect();
                self.asked.swap(0, 1);
                if self.to_save.is_empty() {
                    self.end_round(now);
                }
            }
            self.round_since = now.mono;
        }
        let replaced = |shard: &ShardId| self.installing.contains_key(shard) || self.swapping.contains_key(shard);
        if self.saving.is_none()
            && let Some(place) = self.to_save.iter().rposition(|shard| !replaced(shard))
        {
            let shard = self.to_save.remove(place);
            let (index, term, configuration) = self.replica.freeze(shard);
            // M09: the checkpoint says that it covers one entry more than it does.
            let index = if planted::is(9) { index.next() } else { index };
            let meta = Meta { index, term, configuration };
            let at = now.mono;
            self.saving = Some(Saving { shard, meta, at, waiting: None, complete: false, committed: false });
        }
        self.collect(jobs);
    }

    /// Tells those who asked for the round that has ended.
    fn end_round(&mut self, now: Now) {
        if !self.is_durable && !self.asked[1].shows.is_empty() {
            let took = now.mono - self.round_since;
            self.show_from = now.mono + Millis(took.0 * (SHOW_SHARE - 1)).min(SHOW_PAUSE_MAX);
        }
        for tell in self.asked[1].saves.drain(..) {
            let saved = self.kept_from.iter().map(|(shard, next)| (*shard, Index(next.0.saturating_sub(1))));
            tell(saved.collect());
        }
        self.asked[1].shows.drain(..).for_each(|tell| tell());
    }

    /// When a round begins that somebody has asked for. Nothing: nobody has, or one is under way, and its end is the moment to look again.
    pub fn next_show(&self) -> Option<Mono> {
        let is_free = self.saving.is_none() && self.to_save.is_empty();
        (is_free && !self.asked[0].shows.is_empty()).then_some(self.show_from)
    }

    /// Collects a few rows of the checkpoint under way and hands them over.
    fn collect(&mut self, jobs: &mut impl Jobs<D>) {
        let Some(saving) = &mut self.saving else { return };
        if saving.committed {
            return;
        }
        if saving.waiting.is_none() && !saving.complete {
            let mut changes = Changes::default();
            saving.complete = self.replica.collect(saving.shard, ROWS_PER_TURN, &mut changes);
            saving.waiting = Some(changes);
        }
        if let Some(changes) = saving.waiting.take()
            && let Err(Job::Write(_, changes)) = jobs.try_queue(Job::Write(saving.shard, changes))
        {
            saving.waiting = Some(changes);
        }
        if saving.complete && saving.waiting.is_none() {
            let (shard, meta) = (saving.shard, saving.meta.clone());
            let job = if self.is_durable { Job::Commit(shard, meta) } else { Job::Show(shard, meta) };
            saving.committed = jobs.try_queue(job).is_ok();
        }
    }

    // Jobs that are done.

    /// A checkpoint is durable, or shown. False: it is not durable, or a snapshot has taken its place meanwhile.
    ///
    /// # Errors
    /// The disk failed: the node must stop.
    pub fn saved(&mut self, shard: ShardId, index: Index, jobs: &mut impl Jobs<D>) -> Result<bool, StorageError> {
        let of_this = |saving: &mut Saving| saving.shard == shard && saving.meta.index == index;
        let Some(saving) = self.saving.take_if(of_this) else { return Ok(false) };
        self.shown.insert(shard, (index, saving.at));
        let garbage = if self.is_durable { self.replica.saved(shard) } else { self.replica.shown(shard) };
        jobs.queue(Job::Drop(garbage));
        if !self.is_durable {
            return Ok(false);
        }
        self.kept_from.insert(shard, index.next());
        self.wal.release(&self.kept_from)?;
        Ok(true)
    }

    /// A snapshot is the shard's checkpoint.
    ///
    /// # Panics
    /// It was not being installed.
    pub fn installed(&mut self, now: Now, shard: ShardId, jobs: &mut impl Jobs<D>) -> Installed {
        let Installing { index, term, since, machine, members, done } =
            self.installing.remove(&shard).expect("it was being installed");
        let before = self.replica.installed(now, shard, machine, members, &mut self.effects);
        self.kept_from.insert(shard, index.next());
        self.replaced(now, shard, index);
        jobs.queue(Job::Drop(Box::new(before)));
        done();
        Installed { index, term, took: now.mono - since }
    }

    /// What was staged is the shard's checkpoint, with these members. Returns its index.
    ///
    /// # Errors
    /// The disk failed: the node must stop.
    ///
    /// # Panics
    /// It was not asked for.
    pub fn restored(
        &mut self,
        now: Now,
        shard: ShardId,
        members: Members,
        prepare: impl Fn(&mut S),
        jobs: &mut impl Jobs<D>,
    ) -> Result<Index, StorageError> {
        let mut machine = self.swapping.remove(&shard).expect("it was being restored");
        prepare(&mut machine);
        let before = self.replica.restored(now, shard, machine, members, &mut self.effects);
        jobs.queue(Job::Drop(Box::new(before)));
        let index = self.replica.applied(shard);
        self.replaced(now, shard, index);
        self.kept_from.insert(shard, index.next());
        self.wal.release(&self.kept_from)?;
        Ok(index)
    }

    /// Another checkpoint has taken the place of a shard's: readers see it, and a round under way has it.
    fn replaced(&mut self, now: Now, shard: ShardId, index: Index) {
        self.shown.insert(shard, (index, now.mono));
        self.to_save.retain(|other| *other != shard);
    }

    // Stopping and sleeping.

    /// Whether a round of checkpoints is under way.
    pub fn is_saving(&self) -> bool {
        self.saving.is_some() || !self.to_save.is_empty()
    }

    /// Whether another turn has rows to collect at once.
    pub fn is_collecting(&self) -> bool {
        self.saving.as_ref().is_some_and(|saving| !saving.committed && saving.waiting.is_none())
    }

    /// Whether the last round of checkpoints was begun behind everything written.
    pub fn has_saved_all(&self) -> bool {
        self.wal.stats().bytes == self.log_bytes_at_checkpoint
    }

    /// Whether a round of checkpoints was begun after the node was asked to stop.
    pub fn has_saved_since_stop(&self) -> bool {
        self.saved_since_stop
    }

    /// Nothing is to be done just now: the log notes how far it is synced.
    ///
    /// # Errors
    /// The disk failed: the node must stop.
    pub fn settle(&mut self) -> Result<(), StorageError> {
        self.wal.settle()
    }

    /// The node stops: everything written becomes durable.
    ///
    /// # Errors
    /// The disk failed.
    pub fn finish(&mut self) -> Result<(), StorageError> {
        self.wal.flush(true)?;
        self.wal.settle()
    }
}
