//! One node: its machine with disk and clocks, and the process that runs there, if one does.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use base::log::Entry;
use base::rng::SplitMix;
use base::{Incarnation, Index, Mono, ShardId, Term};
use queue::operations::OperationId;
use queue::{Policy, QueueMachine};
use replica::forming::{ClusterId, Forming, Proposal};
use replica::leadership::Leadership;
use replica::tokens::TokenStep;
use replica::{
    Arrived, Client, Event, Job, Jobs, Joining, Member, MemberChange, Members, Message, RestoreId, RestoreStep, Runner,
};
use storage::checkpoint::{Incoming, MemoryCheckpoint, Outgoing, RowReader, Snapshots};

use crate::bulk::Going;
use crate::checkpoint::SimCheckpoint;
use crate::clock::Clock;
use crate::disk::SimDisk;

/// Who waits for a reply of a replica.
#[derive(Clone, Debug)]
pub enum Caller {
    /// An operation whose client asked this node.
    Here(u64, Rc<Cell<bool>>),
    /// A request that another node has forwarded: the node, the connection that it came by, its number there.
    There(usize, u32, u64, Rc<Cell<bool>>),
    /// The node itself.
    Nobody,
}

impl Client for Caller {
    fn is_gone(&self) -> bool {
        match self {
            Caller::Here(_, gone) | Caller::There(_, _, _, gone) => gone.get(),
            Caller::Nobody => false,
        }
    }
}

/// The replica of a simulated node, with its log.
pub type SimRunner = Runner<QueueMachine, Caller, SimDisk>;

/// What the loop is asked for besides requests.
pub enum Control {
    /// A waiting request's client has gone.
    Forget(ShardId, u64),
    /// The connection to a member has ended.
    Unreachable(u64),
    /// Change the members of group 0.
    Change(Vec<MemberChange>, Vec<Member>),
    /// Make a node a member of group 0, as it is admitted.
    Admit(Vec<MemberChange>, Member, Joining),
    /// A join token is made, or revoked.
    Token(TokenStep),
    /// A snapshot has arrived.
    Arrived(Box<Arrived<QueueMachine>>),
    /// It is the shard's checkpoint.
    Installed(ShardId),
    /// A snapshot has reached a member, or has not.
    SnapshotSent(ShardId, u64, bool),
    /// Hand a group over.
    Transfer(ShardId, u64),
    /// A checkpoint is durable.
    Saved(ShardId, Index),
    /// A file for the log is there.
    Spare(storage::wal::Spare),
    /// An operator wants checkpoints.
    Save,
    /// What was staged is the shard's checkpoint.
    Restored(ShardId, Box<Members>),
    /// A step of a restore.
    Restore(RestoreStep),
    /// Whoever has asked for a list waits for what readers of checkpoints are shown.
    Show(u64),
}

/// Jobs that wait.
#[derive(Default)]
pub struct JobQueue(pub VecDeque<Job<SimDisk>>);

/// As many as the checkpoint thread takes.
const JOBS_MAX: usize = 8;

impl Jobs<SimDisk> for JobQueue {
    fn try_queue(&mut self, job: Job<SimDisk>) -> Result<(), Job<SimDisk>> {
        if self.0.len() >= JOBS_MAX {
            return Err(job);
        }
        self.0.push_back(job);
        Ok(())
    }

    fn queue(&mut self, job: Job<SimDisk>) {
        self.0.push_back(job);
    }
}

/// A snapshot on its way to a member.
pub struct Sending {
    pub(crate) copy: Arc<Outgoing>,
    pub(crate) message: bytes::Bytes,
    pub(crate) sent: u64,
    /// When something was heard of it last.
    pub(crate) heard: u64,
}

/// A process of a node that belongs to a cluster.
pub struct Process {
    pub(crate) runner: SimRunner,
    pub(crate) leadership: Leadership,
    pub(crate) jobs: JobQueue,
    pub(crate) job_running: bool,
    pub(crate) checkpoints: BTreeMap<ShardId, SimCheckpoint>,
    pub(crate) readers: BTreeMap<ShardId, Box<dyn RowReader>>,
    /// Requests that have waited for what readers are shown now.
    pub(crate) shown: Arc<Mutex<Vec<u64>>>,
    pub(crate) snapshots: BTreeMap<ShardId, Arc<dyn Snapshots>>,
    pub(crate) messages: VecDeque<(ShardId, Message)>,
    pub(crate) requests: BTreeMap<ShardId, VecDeque<Event<QueueMachine, Caller>>>,
    pub(crate) controls: VecDeque<Control>,
    /// Who leads, by shard; 0: nobody.
    pub(crate) routes: BTreeMap<ShardId, u64>,
    pub(crate) next_tick: Mono,
    pub(crate) first_until: Option<Mono>,
    /// Operations forwarded to other nodes: by number, where, by which connection, and whether sent.
    pub(crate) forwarded: BTreeMap<u64, (usize, u32)>,
    /// Requests of other nodes that may wait: by node and number, where and under which number.
    pub(crate) parked: BTreeMap<(usize, u64), (ShardId, u64, Rc<Cell<bool>>)>,
    pub(crate) next_wait: u64,
    pub(crate) sending: BTreeMap<(u64, ShardId), Sending>,
    pub(crate) receiving: BTreeMap<ShardId, Incoming>,
    /// Who has sent a snapshot that is being installed, by which connection.
    pub(crate) arrived_from: BTreeMap<ShardId, (usize, u32)>,
    pub(crate) seeds: SplitMix,
    /// Operations on many tasks that it carries out.
    pub(crate) going: BTreeMap<(ShardId, OperationId), Going>,
    /// A turn's second half is under way.
    pub(crate) syncing: bool,
    /// When the next turn begins.
    pub(crate) turn_at: Option<u64>,
    /// The loop is busy until then.
    pub(crate) busy_until: u64,
}

/// What runs on a node.
pub enum State {
    /// Nothing.
    Down,
    /// A process that has no cluster yet.
    Forming(Box<Forming>),
    /// A member, or a node that is about to be one.
    Running(Box<Process>),
    /// A process that has ended by itself, and why.
    Stopped(String),
}

/// What is in the log of one shard on one node, as the simulator has seen it written.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// By index: the entry, and whether it is durable.
    pub entries: BTreeMap<u64, (Entry, bool)>,
    /// Indexes of entries that are not durable yet.
    pub pending: Vec<u64>,
    /// Everything up to here is held by a durable checkpoint.
    pub checkpoint: u64,
    /// Entries handed to the state machine, over all processes of this data directory: the last one.
    pub applied: u64,
    /// Highest term that this data directory has promised anything in.
    pub promised: u64,
    /// The last term written, and the last one that is durable.
    pub term: u64,
    /// See `term`.
    pub durable_term: u64,
}

impl Written {
    /// Index and term of the last entry that would survive a loss of power.
    pub fn last_durable(&self) -> Option<(u64, Term)> {
        self.entries.iter().rev().find(|(_, (_, durable))| *durable).map(|(index, (entry, _))| (*index, entry.term))
    }

    /// Whether this entry would survive a loss of power.
    pub fn has_durably(&self, index: u64, term: Term) -> bool {
        index <= self.checkpoint
            || self.entries.get(&index).is_some_and(|(entry, durable)| *durable && entry.term == term)
    }
}

/// What was written last: if its bytes are damaged, nothing tells that they were whole once.
#[derive(Clone, Copy, Debug)]
pub struct Unproven {
    /// Entries from here on.
    pub from: u64,
    /// A term or a vote.
    pub hard_state: bool,
}

impl Unproven {
    fn add(&mut self, other: Unproven) {
        self.from = self.from.min(other.from);
        self.hard_state |= other.hard_state;
    }
}

impl Default for Unproven {
    fn default() -> Unproven {
        Unproven { from: u64::MAX, hard_state: false }
    }
}

/// A data directory: what outlives processes.
pub struct Directory {
    pub(crate) id: u64,
    pub(crate) accepted: Option<Proposal>,
    pub(crate) cluster: Option<(ClusterId, Incarnation)>,
    pub(crate) disk: SimDisk,
    pub(crate) checkpoints: BTreeMap<ShardId, MemoryCheckpoint>,
    /// Parts of a backup that may take the places of checkpoints.
    pub(crate) staged: BTreeMap<ShardId, (RestoreId, MemoryCheckpoint)>,
    pub(crate) written: BTreeMap<ShardId, Written>,
    /// It was damaged: the process may refuse to start.
    pub(crate) damaged: bool,
    /// It is in the place of one that was lost.
    pub(crate) replaces: bool,
    /// Its disk was full and the process ended of it.
    pub(crate) was_full: bool,
    /// By shard: what nothing in the log shows to be durable yet, although it may be.
    pub(crate) unproven: BTreeMap<ShardId, Unproven>,
    /// What is unproven is synced; the next write to the disk shows that.
    pub(crate) sealed: bool,
    /// By shard: what the process has not written to the disk yet.
    pub(crate) gathered: BTreeMap<ShardId, Unproven>,
    /// Bytes that the process has written to the log.
    pub(crate) log_bytes: u64,
}

impl Directory {
    /// An empty one.
    pub fn new(id: u64) -> Directory {
        Directory {
            id,
            accepted: None,
            cluster: None,
            disk: SimDisk::new(),
            checkpoints: BTreeMap::new(),
            staged: BTreeMap::new(),
            written: BTreeMap::new(),
            damaged: false,
            replaces: false,
            was_full: false,
            unproven: BTreeMap::new(),
            sealed: false,
            gathered: BTreeMap::new(),
            log_bytes: 0,
        }
    }
}

impl Directory {
    /// The process has written so much to its log since it was opened: what it had gathered, if that is more than before.
    pub(crate) fn log_grew_to(&mut self, bytes: u64) {
        if bytes == std::mem::replace(&mut self.log_bytes, bytes) {
            return;
        }
        if std::mem::take(&mut self.sealed) {
            self.unproven.clear();
        }
        for (shard, gathered) in std::mem::take(&mut self.gathered) {
            self.unproven.entry(shard).or_default().add(gathered);
        }
    }
}

/// Something that a process does with its storage and that takes a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageStep {
    /// A write to the log, until its sync ends.
    Write,
    /// Rows of a checkpoint are written.
    Rows,
    /// A checkpoint is committed.
    Commit,
    /// A snapshot takes the place of a checkpoint.
    Install,
    /// A file for the log is made.
    Spare,
}

impl StorageStep {
    /// All steps.
    pub const ALL: [StorageStep; 5] =
        [StorageStep::Write, StorageStep::Rows, StorageStep::Commit, StorageStep::Install, StorageStep::Spare];

    /// The step that a job is, if it is one.
    pub(crate) fn of(job: &Job<SimDisk>) -> Option<StorageStep> {
        match job {
            Job::Write(..) => Some(StorageStep::Rows),
            Job::Commit(..) => Some(StorageStep::Commit),
            Job::Install(..) => Some(StorageStep::Install),
            Job::MakeSpare(_) => Some(StorageStep::Spare),
            Job::Show(..) | Job::Drop(_) | Job::Restore(..) => None,
        }
    }

    /// How the mark is called that a process died in it.
    pub(crate) fn mark(self) -> &'static str {
        match self {
            StorageStep::Write => "K06-write",
            StorageStep::Rows => "K06-rows",
            StorageStep::Commit => "K06-commit",
            StorageStep::Install => "K06-install",
            StorageStep::Spare => "K06-spare",
        }
    }
}

/// A machine.
pub struct Node {
    pub(crate) name: String,
    pub(crate) directory: Directory,
    pub(crate) state: State,
    /// Counts processes.
    pub(crate) epoch: u32,
    pub(crate) clock: Clock,
    /// Nothing runs until then.
    pub(crate) paused_until: u64,
    /// What was to happen before.
    pub(crate) postponed: Vec<crate::world::Event>,
    /// By how much the processor is slower, until when.
    pub(crate) slow: (u64, u64),
    /// How long a sync takes, until when.
    pub(crate) slow_disk_until: u64,
    /// It is to die in the middle of the next such step.
    pub(crate) dies_at: Option<StorageStep>,
    /// It is not brought back before the heal.
    pub(crate) stays_down: bool,
}

impl Node {
    /// The process, if it belongs to a cluster.
    pub fn process(&self) -> Option<&Process> {
        match &self.state {
            State::Running(process) => Some(process),
            _ => None,
        }
    }

    pub(crate) fn process_mut(&mut self) -> Option<&mut Process> {
        match &mut self.state {
            State::Running(process) => Some(process),
            _ => None,
        }
    }
}

/// The settings of a node's state machines.
#[derive(Clone, Copy, Debug)]
pub struct Own {
    pub(crate) policy: Policy,
    pub(crate) live_tasks_max: u64,
    pub(crate) payload_memory: u64,
    pub(crate) due_per_entry: usize,
}

impl Own {
    /// What a node does to a state machine before it runs.
    pub fn prepare(&self, machine: &mut QueueMachine) {
        machine.set_own_policy(self.policy);
        machine.limit_live_tasks(self.live_tasks_max);
        machine.limit_payload_memory(self.payload_memory);
        machine.limit_due(self.due_per_entry);
    }
}
