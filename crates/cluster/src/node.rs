//! A node: what a user of this crate starts, asks and stops.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use base::machine::StateMachine;
use base::rows::TableId;
use base::{Incarnation, Millis, Mono, Position, ShardId};
use replica::{
    Elections, Event, Fault, Freshness, Member, MemberChange, Members, Operations, Progress, Reply, Restores,
    ShardStatus, Unavailable, Wait,
};
use storage::StorageError;
use storage::checkpoint::StoredRow;
use storage::disk::{MemoryDisk, RealDisk};
use storage::identity::{DataDir, Identity};
use storage::space::Space;
use tokio::sync::{oneshot, watch};

use crate::alarms::{self, AlarmKind, Alarms, Floors, Room, Watch};
use crate::backup::Saving;
use crate::builder::Builder;
use crate::bundle::Describe;
use crate::clock::Clock;
use crate::driver::Driver;
use crate::events::counts::ElectionCounts;
use crate::events::cursor::Cursor;
use crate::events::{Draft, Event as TimedEvent, Events, Level, Who, keep};
use crate::forming::{ClusterId, Proposal};
use crate::founding::{accept, accepted, found_alone, identify, join};
use crate::histogram::Histogram;
use crate::http::view::{About, Inspection};
use crate::inbox::{Control, Inbox};
use crate::lane::{Lane, LaneId, Replies, ReplyTo, Shared};
use crate::looks::{Readers, Shown, Time};
use crate::operate::{Actor, Retired};
use crate::peer::Shared as PeerShared;
use crate::peer::{Forward, Heard, Joined, Link, PeerConfig, Peers, own_greeting};
use crate::restoring::Staging;
use crate::routes::Routes;
use crate::rows::{Rows, RowsUnavailable};

/// Where a node keeps its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// In this directory.
    Directory(PathBuf),
    /// In memory: nothing survives the process.
    Memory,
}

/// When an operation is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When it is synced.
    Fsync,
    /// When it is written; synced at least this often. A loss of power loses what was acknowledged since. Terms and votes are synced before
    /// anybody hears of them.
    Buffered(Millis),
}

/// What a node is made with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The node's name, 1-63 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// The name was asked for, so a data directory of another name is refused; otherwise the directory's name holds.
    pub name_is_given: bool,
    /// Where it keeps its data.
    pub data: Data,
    /// How it meets others; nothing: it is alone.
    pub peers: Option<PeerConfig>,
    /// It is to stay alone, and is shown so; else a node that is alone is a cluster of one that could grow.
    pub is_single: bool,
    /// Where people reach it: a URL.
    pub url: String,
    /// Shards, 1 to `limits::SHARDS_MAX`; fixed when a data directory is made.
    pub shards: u16,
    /// When an operation is acknowledged.
    pub durability: Durability,
    /// Size of a log segment.
    pub segment_bytes: u64,
    /// Longest time between checkpoints while something changes.
    pub checkpoint_interval: Millis,
    /// Log written since the last checkpoint that starts another one.
    pub checkpoint_log_bytes: u64,
    /// Requests waiting per shard; more are refused.
    pub inbox_depth: usize,
    /// How long a request is held when there is no leader; then it is refused.
    pub leader_wait: Millis,
    /// Log that a checkpoint holds and that is kept for members that lack it, in bytes, per shard.
    pub trailing_log_bytes: u64,
    /// How long a request waits for its entry to be applied; then its outcome is unknown.
    pub propose_timeout: Millis,
    /// Time without a leader until a campaign: drawn from this to twice this.
    pub election_timeout: Millis,
    /// Time between a leader's heartbeats.
    pub heartbeat: Millis,
    /// Room that the disk must have, lest others are asked not to give this node more to keep; 0 asks never.
    pub disk_low: Room,
    /// Room that it must have, lest this node leads nothing.
    pub disk_critical: Room,
    /// How often the log says who leads and how far this node is; 0: never.
    pub status_log: Millis,
    /// Events that are kept; older ones are forgotten.
    pub events_max: usize,
    /// Operations in one entry.
    pub entry_operations_max: usize,
    /// Bytes of operations in one entry.
    pub entry_bytes_max: usize,
    /// What it decides by.
    pub clock: Clock,
}

impl NodeConfig {
    /// A node that is alone, with one shard and the settings that suit most: every operation synced, an election after half a second to
    /// a second without a leader.
    pub fn new(name: &str, data: Data) -> NodeConfig {
        NodeConfig {
            name: name.into(),
            name_is_given: true,
            data,
            peers: None,
            is_single: false,
            url: String::new(),
            shards: 1,
            durability: Durability::Fsync,
            segment_bytes: 64 << 20,
            checkpoint_interval: Millis(5_000),
            checkpoint_log_bytes: 64 << 20,
            inbox_depth: 4_096,
            leader_wait: Millis(2_000),
            trailing_log_bytes: 256 << 20,
            propose_timeout: Millis(10_000),
            election_timeout: Millis(500),
            heartbeat: Millis(100),
            disk_low: Room::Percent(10),
            disk_critical: Room::Percent(3),
            status_log: Millis(0),
            events_max: 10_000,
            entry_operations_max: 512,
            entry_bytes_max: 256 << 10,
            clock: Clock::default(),
        }
    }
}

/// Takes what applied entries tell observers.
pub(crate) type Observe<S> = Box<dyn FnMut(&mut Vec<<S as StateMachine>::Signal>) + Send>;

/// The hooks that run on the loop's thread.
pub(crate) struct LoopHooks<S: StateMachine> {
    pub(crate) prepare: Box<dyn Fn(&mut S) + Send>,
    pub(crate) observe: Observe<S>,
}

/// What a node calls back for. All run on the node's threads and must be quick.
pub struct Hooks<S: StateMachine> {
    /// Settings of this node for a state machine that has just been restored.
    pub prepare: Box<dyn Fn(&mut S) + Send>,
    /// Takes what applied entries tell observers.
    pub observe: Observe<S>,
    /// What to submit when a reply could not be delivered because its client had gone.
    pub undelivered: Box<dyn Fn(Reply<S>) -> Vec<(ShardId, Operations)> + Send + Sync>,
}

/// Hooks that do nothing.
impl<S: StateMachine> Default for Hooks<S> {
    fn default() -> Self {
        Hooks {
            prepare: Box::new(|_| {}),
            // What observers leave is dropped.
            observe: Box::new(|_| {}),
            undelivered: Box::new(|_| Vec::new()),
        }
    }
}

/// Why a node could not start. Nothing was changed, except that a new data directory may have been made.
#[derive(Debug)]
pub enum StartError {
    /// The settings do not go together; the text says which.
    Settings(String),
    /// The data directory cannot be used.
    Storage(StorageError),
    /// A setting that is fixed differs from the data directory's.
    Differs {
        /// The directory.
        directory: String,
        /// The setting.
        what: &'static str,
        /// The directory's value.
        recorded: String,
        /// The value asked for.
        given: String,
    },
    /// The node of this data directory is no member of its cluster any more.
    Retired {
        /// The directory.
        directory: String,
        /// `removed` or `left`.
        how: String,
    },
    /// This node has agreed to found a cluster with others, and is now to found one alone.
    Accepted {
        /// Its directory.
        directory: String,
        /// Their names.
        others: Vec<String>,
    },
    /// The address for peers cannot be listened on.
    Listen(std::net::SocketAddr, std::io::Error),
    /// The operating system gives no thread.
    Thread(std::io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Settings(what) => f.write_str(what),
            StartError::Storage(error) => error.fmt(f),
            StartError::Differs { directory, what, recorded, given } => write!(
                f,
                "{what} is fixed when a data directory is made: {directory} has {recorded}, asked for is {given}; \
                 use {recorded}, or another directory"
            ),
            StartError::Retired { directory, how } => write!(
                f,
                "data directory {directory} is marked {how:?}: its node is no member of its cluster any more; \
                 joining again needs an empty directory"
            ),
            StartError::Accepted { directory, others } => write!(
                f,
                "the node of {directory} is about to found a cluster with {}; start it with the same settings as them, or with \
                 an empty directory",
                others.join(", ")
            ),
            StartError::Listen(addr, cause) if cause.kind() == std::io::ErrorKind::AddrInUse => write!(
                f,
                "port {} for peers is in use ({addr}); stop whoever listens there, or choose another one with --raft-addr",
                addr.port()
            ),
            StartError::Listen(addr, cause) => write!(f, "cannot listen for peers on {addr}: {cause}"),
            StartError::Thread(cause) => write!(f, "cannot start a thread: {cause}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Why a running node has stopped by itself. It must not go on with the same data without an operator.
#[derive(Debug)]
pub enum NodeError {
    /// The disk failed, or what it holds is damaged.
    Storage(StorageError),
    /// A committed entry cannot be applied.
    Fault(Fault),
    /// A thread of the node has panicked; its message is in the log.
    Panicked,
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeError::Storage(error) => error.fmt(f),
            NodeError::Fault(Fault { shard, index }) => {
                write!(f, "entry {index} of shard {shard} is of a kind this program does not know; use a newer program")
            }
            NodeError::Panicked => f.write_str("the node has met a fault of its own; its log says where"),
        }
    }
}

impl std::error::Error for NodeError {}

/// What a node is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It belongs to no cluster; the text says what it waits for.
    Unjoined(String),
    /// It reads its data; the text says how far it is.
    Starting(String),
    /// It runs.
    Running,
    /// It stops.
    Draining,
    /// It has stopped.
    Stopped,
}

/// What a node says of itself.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// What it is doing.
    pub stage: Stage,
    /// Where its shards stand.
    pub shards: Vec<ShardStatus>,
    /// What is known of the members of the groups that it leads.
    pub progress: BTreeMap<ShardId, Vec<Progress>>,
    /// Members whose votes count, by group.
    pub voters: BTreeMap<ShardId, Vec<u64>>,
    /// What is known of restores, by group.
    pub restores: BTreeMap<ShardId, Restores>,
    /// Since when each shard has its leader, or none, on this process's clock; nothing: since the start.
    pub leader_since: BTreeMap<ShardId, Mono>,
    /// When its loop said this, on this process's clock: at the latest after a unit of consensus time, while it runs.
    pub at: Mono,
}

/// Which cluster a node belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its id.
    pub id: ClusterId,
    /// The number inside task ids.
    pub incarnation: Incarnation,
}

impl NodeStatus {
    /// Says what a node without a cluster waits for; false: it says so already.
    pub(crate) fn is_unjoined(&mut self, progress: &str) -> bool {
        let changed = self.stage != Stage::Unjoined(progress.into()) && self.stage != Stage::Stopped;
        if changed {
            self.stage = Stage::Unjoined(progress.into());
        }
        changed
    }
}

/// Counts since the node started.
#[derive(Debug)]
pub struct Counters {
    /// Syncs of the log.
    pub log_syncs: AtomicU64,
    /// Bytes written to the log.
    pub log_bytes: AtomicU64,
    /// Bytes of all segments of the log.
    pub log_size: AtomicU64,
    /// Entries proposed here and written.
    pub entries: AtomicU64,
    /// Operations that a shard's queue has taken, here or at its leader.
    pub operations: AtomicU64,
    /// Requests refused because a queue was full.
    pub refused: AtomicU64,
    /// Checkpoints written.
    pub checkpoints: AtomicU64,
    /// Time spent writing them, in microseconds.
    pub checkpoint_micros: AtomicU64,
    /// Turns of the loop.
    pub turns: AtomicU64,
    /// Leaders that were elected, of all groups, as far as this node has heard.
    pub leader_changes: AtomicU64,
    /// Elections that this node has stood for in a new term.
    pub elections: ElectionCounts,
    /// From the last contact with a leader until this node, the next one, took writes.
    pub outages: Histogram,
    /// From the proposal of an entry here until it is committed.
    pub commit_time: Histogram,
    /// Turns of the loop that applied entries.
    pub apply_time: Histogram,
    /// Writes of the log with their syncs.
    pub sync_time: Histogram,
    /// Operations of each entry proposed here.
    pub batch_operations: Histogram,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            log_syncs: AtomicU64::default(),
            log_bytes: AtomicU64::default(),
            log_size: AtomicU64::default(),
            entries: AtomicU64::default(),
            operations: AtomicU64::default(),
            refused: AtomicU64::default(),
            checkpoints: AtomicU64::default(),
            checkpoint_micros: AtomicU64::default(),
            turns: AtomicU64::default(),
            leader_changes: AtomicU64::default(),
            elections: ElectionCounts::default(),
            outages: Histogram::of_outages(),
            commit_time: Histogram::of_durations(),
            apply_time: Histogram::of_durations(),
            sync_time: Histogram::of_durations(),
            batch_operations: Histogram::of_counts(),
        }
    }
}

/// What the loop, the handles and the threads share.
pub(crate) struct Common<S: StateMachine> {
    pub(crate) clock: Clock,
    /// This node's Raft id.
    pub(crate) me: u64,
    pub(crate) routes: Routes,
    pub(crate) cluster: OnceLock<Cluster>,
    /// The incarnation that the last restore has brought; 0: there was none.
    pub(crate) restored: AtomicU64,
    /// What somebody should look after.
    pub(crate) alarms: Alarms,
    /// Nobody is to be given more to keep, as far as is known.
    pub(crate) lacks_room: AtomicBool,
    /// Room on the disk, when it was looked at last.
    pub(crate) space: Mutex<Space>,
    /// What waits to take the checkpoints' places.
    pub(crate) staging: Staging<S>,
    pub(crate) peers: OnceLock<Arc<PeerShared<S>>>,
    pub(crate) inbox: Arc<Inbox<S>>,
    pub(crate) lanes: Mutex<Vec<Arc<Shared<S>>>>,
    pub(crate) rows: Mutex<Option<Rows>>,
    pub(crate) shown: Shown,
    pub(crate) counters: Counters,
    pub(crate) events: Events,
    /// The elections that the groups remember, as far as they are applied here.
    pub(crate) elections: Mutex<BTreeMap<ShardId, Elections>>,
    pub(crate) saving: Saving,
    /// What whoever is in front of this node says of it.
    pub(crate) describing: OnceLock<Describe>,
    /// Says the page `/cluster/status` of this node, for whoever asks for all nodes'.
    pub(crate) status_page: OnceLock<Box<dyn Fn() -> Vec<u8> + Send + Sync>>,
    pub(crate) status: watch::Sender<NodeStatus>,
    /// What this node's data is kept in, and where.
    pub(crate) kind: String,
    pub(crate) paths: Vec<String>,
    /// Whoever was not heard of for longer is taken for dead.
    pub(crate) contact_max: Millis,
    /// It is this node that wants to be a member no more.
    pub(crate) leaving: AtomicBool,
    pub(crate) retired: watch::Sender<Option<Retired>>,
    undelivered: Box<dyn Fn(Reply<S>) -> Vec<(ShardId, Operations)> + Send + Sync>,
    next_wait: AtomicU64,
}

/// What an operator has wanted of a node.
#[derive(Clone, Copy, Debug)]
pub struct AdminAction<'a> {
    /// Whose token it was.
    pub who: &'a str,
    /// The address it came from.
    pub from: &'a str,
    /// What was asked for.
    pub action: &'a str,
    /// The member it was about.
    pub target: &'a str,
    /// What has come of it.
    pub result: &'a str,
}

/// A running node.
pub struct Node<S: StateMachine> {
    handle: Handle<S>,
    ended: oneshot::Receiver<Result<(), NodeError>>,
}

/// How clients reach a node. Cheap to clone.
pub struct Handle<S: StateMachine> {
    pub(crate) common: Arc<Common<S>>,
    identity: Arc<Identity>,
    propose_timeout: Millis,
    leader_wait: Millis,
    lease: Millis,
    url: Arc<str>,
    peer_addr: Option<std::net::SocketAddr>,
    about: Arc<About>,
    /// On whose behalf actions are done.
    pub(crate) actor: Arc<Actor>,
}

impl<S: StateMachine> Clone for Handle<S> {
    fn clone(&self) -> Self {
        Handle {
            common: self.common.clone(),
            identity: self.identity.clone(),
            url: self.url.clone(),
            about: self.about.clone(),
            actor: self.actor.clone(),
            ..*self
        }
    }
}

impl<S: StateMachine> Node<S> {
    /// A node that keeps its data there, with settings that can be left out.
    pub fn builder(data: Data) -> Builder<S> {
        Builder::new(data)
    }

    /// Locks the data directory, checks that it fits, and starts the node's threads. Reading the data goes on behind: see
    /// [`Handle::status`].
    ///
    /// # Errors
    /// The directory cannot be used, or does not fit the configuration.
    pub fn start(config: NodeConfig, hooks: Hooks<S>) -> Result<Node<S>, StartError> {
        let clock = config.clock.clone();
        let directory = match &config.data {
            Data::Memory => None,
            Data::Directory(path) => Some(Arc::new(DataDir::open(path).map_err(StartError::Storage)?)),
        };
        if let Some(directory) = &directory
            && let Some(how) = directory.retired().map_err(StartError::Storage)?
        {
            return Err(StartError::Retired { directory: directory.path().display().to_string(), how });
        }
        let mut identity = identify(directory.as_deref(), &config, clock.now().wall)?;
        if !base::is_node_name(&identity.node) {
            return Err(StartError::Settings(format!("a node cannot be called {:?}", identity.node)));
        }
        let mut founding = accepted(directory.as_deref()).map_err(StartError::Storage)?;
        let me = Member {
            id: identity.incarnation.0,
            name: identity.node.clone(),
            peer: config.peers.as_ref().map(|peers| peers.advertise.clone()).unwrap_or_default(),
            url: config.url.clone(),
        };
        let plan = config.peers.as_ref().map(|peers| &peers.plan);
        let others = founding.iter().flat_map(|founding| &founding.founders).filter(|founder| founder.id != me.id);
        let others: Vec<String> = others.map(|founder| founder.name.clone()).collect();
        if identity.cluster == 0 && plan.is_none_or(|plan| plan.is_only(&me.name)) {
            // One of them may have heard of it, and then the cluster is founded.
            if let (Some(directory), false) = (&directory, others.is_empty()) {
                return Err(StartError::Accepted { directory: directory.path().display().to_string(), others });
            }
            let label = config.peers.as_ref().map_or("", |peers| &peers.label);
            let alone = found_alone(label, me.clone(), config.shards);
            accept(directory.as_deref(), &alone).map_err(StartError::Storage)?;
            identity =
                join(directory.as_deref(), &identity, alone.cluster, alone.incarnation).map_err(StartError::Storage)?;
            founding = Some(alone);
        }
        let Hooks { prepare, observe, undelivered } = hooks;
        let status = NodeStatus {
            stage: Stage::Starting("starting".into()),
            shards: Vec::new(),
            progress: BTreeMap::new(),
            voters: BTreeMap::new(),
            restores: BTreeMap::new(),
            leader_since: BTreeMap::new(),
            at: clock.now().mono,
        };
        let boot = getrandom::u64().expect("the operating system has random numbers");
        let kept = directory.as_ref().map(|directory| keep::open(directory.path(), config.events_max)).transpose();
        let (file, kept) = kept.map_err(StartError::Storage)?.unzip();
        let who = Who { node: me.name.clone(), id: me.id, boot };
        let events = Events::new(who, kept.unwrap_or_default(), config.events_max);
        let keeper = file.map(|file| keep::start(file, events.to_file())).transpose().map_err(StartError::Thread)?;
        let common = Arc::new(Common {
            clock: clock.clone(),
            me: me.id,
            routes: Routes::new(config.shards),
            cluster: OnceLock::new(),
            restored: AtomicU64::new(0),
            alarms: Alarms::default(),
            lacks_room: AtomicBool::new(false),
            space: Mutex::default(),
            staging: Staging::new(directory.as_deref().map(DataDir::path)),
            peers: OnceLock::new(),
            inbox: Arc::new(Inbox::new(config.shards, config.inbox_depth)),
            lanes: Mutex::new(Vec::new()),
            rows: Mutex::new(None),
            shown: Shown::default(),
            counters: Counters::default(),
            events,
            elections: Mutex::new(BTreeMap::new()),
            saving: Saving::default(),
            describing: OnceLock::new(),
            status_page: OnceLock::new(),
            status: watch::Sender::new(status),
            kind: identity.provider.clone(),
            paths: match &config.data {
                Data::Directory(path) => vec![path.display().to_string()],
                Data::Memory => Vec::new(),
            },
            contact_max: Millis(config.election_timeout.0 * 2),
            leaving: AtomicBool::new(false),
            retired: watch::Sender::new(None),
            undelivered,
            next_wait: AtomicU64::new(1),
        });
        let mut peers = None;
        if let Some(config) = &config.peers {
            let mut greeting = own_greeting(config, me, identity.shards);
            greeting.accepted = founding.clone();
            greeting.cluster = (identity.cluster != 0).then_some(ClusterId(identity.cluster));
            let keeper = directory.clone();
            let keep = Box::new(move |proposal: &Proposal| accept(keeper.as_deref(), proposal));
            let started = Peers::start(config.clone(), greeting, clock.clone(), common.clone(), keep)
                .map_err(|cause| StartError::Listen(config.listen, cause))?;
            let set = common.peers.set(started.0.shared.clone());
            assert!(set.is_ok(), "a node has one thread for its peers");
            peers = Some(started);
        }
        let handle = Handle {
            common: common.clone(),
            identity: Arc::new(identity.clone()),
            propose_timeout: config.propose_timeout,
            leader_wait: config.leader_wait,
            lease: Millis(config.election_timeout.0 * 4 / 5),
            url: config.url.as_str().into(),
            peer_addr: peers.as_ref().map(|(peers, _)| peers.addr),
            actor: Arc::new(Actor::node()),
            about: Arc::new(About {
                boot,
                started_at: clock.now().wall,
                listens: peers.as_ref().map(|(peers, _)| peers.addr),
                paths: common.paths.clone(),
                is_single: config.is_single,
                is_buffered: config.durability != Durability::Fsync,
            }),
        };
        let (end, ended) = oneshot::channel();
        let hooks = LoopHooks { prepare, observe };
        let run = move || {
            let ending = common.clone();
            let told = common.clone();
            let start = Start { config, clock, common, hooks, identity, founding, fresh: false };
            let floors = Floors { low: start.config.disk_low, critical: start.config.disk_critical };
            // Without it nobody looks, and everything else works.
            let watch = Watch::start(start.common.clone(), directory.as_deref().map(DataDir::path), floors);
            let mut outcome = run_node(directory.as_deref(), start, &mut peers);
            if let Err(NodeError::Storage(failure)) = &outcome {
                let mut failed = Draft::new(Level::Error, "storage.failed", failure.to_string());
                if let StorageError::Failed { doing, cause, .. } = failure {
                    let errno = cause.raw_os_error().unwrap_or_default();
                    failed = failed.with("op", *doing).with("errno", u64::from(errno.unsigned_abs()));
                }
                told.events.tell(failed);
            }
            if let (Some(directory), Some(retired)) = (&directory, *ending.retired.borrow()) {
                let marked = directory.retire(retired.word()).map_err(NodeError::Storage);
                outcome = outcome.and(marked);
            }
            if let Some((peers, _)) = peers {
                peers.stop();
            }
            drop(watch);
            told.events.close();
            // A panic has been logged where it happened.
            let _ = keeper.map(std::thread::JoinHandle::join);
            // The lock goes last: another process may start only when everything is closed.
            drop(directory);
            // Nobody waits if the node was dropped.
            let _ = end.send(outcome);
        };
        std::thread::Builder::new().name("codeq-loop".into()).spawn(run).map_err(StartError::Thread)?;
        Ok(Node { handle, ended })
    }

    /// How clients reach the node.
    pub fn handle(&self) -> &Handle<S> {
        &self.handle
    }

    /// Waits until the node has stopped: because it was asked to, or because of what is wrong.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn ended(&mut self) -> Result<(), NodeError> {
        (&mut self.ended).await.unwrap_or(Err(NodeError::Panicked))
    }

    /// Stops the node and waits until it has stopped: it hands over what it leads, finishes what was taken and writes a last checkpoint.
    /// It stays a member. This takes a second or so at most if it leads and nobody can take over.
    ///
    /// # Errors
    /// What was wrong meanwhile.
    pub async fn shut_down(mut self) -> Result<(), NodeError> {
        self.handle.stop();
        self.ended().await
    }
}

impl<S: StateMachine> Handle<S> {
    /// A lane for the replies to one runtime. Its task must run from the first request on that names it.
    pub fn lane(&self) -> Lane<S> {
        let shared = Arc::new(Shared::new());
        let mut lanes = self.common.lanes.lock().expect("nothing panics while it holds this lock");
        lanes.push(shared.clone());
        let id = LaneId(lanes.len() - 1);
        let common = self.common.clone();
        Lane { id, shared, undelivered: Arc::new(move |reply| common.compensate(reply)) }
    }

    /// Proposes one operation on one shard, which must exist, and waits until it is applied, wherever the shard's leader is. Answers what
    /// applying it has answered, and its place in the log. While no other node leads either it is held, at most for the configured time.
    ///
    /// # Errors
    /// It was not applied, or nobody knows; see [`Unavailable::is_definite`].
    pub async fn propose(&self, shard: ShardId, operation: &[u8]) -> Result<(Position, S::Outcome), Unavailable> {
        let mut operations = Operations::with_capacity(operation.len() + 1);
        operations.push(|bytes| bytes.extend_from_slice(operation));
        let (position, outcomes) = self.submit(shard, operations, None, None).await?;
        // Another build might answer with something else.
        let outcome = outcomes.into_iter().next().ok_or(Unavailable::Unknown)?;
        Ok((position, outcome))
    }

    /// Asks a question of one shard, which must exist; it is answered by the state of this node, which catches up first as far as is asked
    /// for.
    ///
    /// # Errors
    /// The question was not answered; nothing has happened.
    pub async fn read(
        &self,
        shard: ShardId,
        query: S::Query,
        freshness: Freshness,
    ) -> Result<(Position, S::Answer), Unavailable> {
        self.ask(shard, query, freshness, None, None).await
    }

    /// Proposes operations on one shard and waits until they are applied, wherever the shard's leader is. With `wait`, a single operation
    /// that finds nothing to do waits for something that long. The operations are queued by the call itself, so several calls may be made
    /// before the first is awaited. While there is no leader they are held, at most for the configured time.
    ///
    /// # Errors
    /// The operations were not applied, or nobody knows; see [`Unavailable`].
    pub fn submit(
        &self,
        shard: ShardId,
        operations: Operations,
        wait: Option<Millis>,
        lane: Option<LaneId>,
    ) -> impl Future<Output = Result<(Position, Vec<S::Outcome>), Unavailable>> + use<S> {
        let begun = Instant::now();
        let count = operations.len();
        // In a cluster of one there is nowhere else to try.
        let again = self.common.peers.get().map(|_| (self.clone(), operations.clone()));
        let (mut taken, first) = self.send(shard, operations, wait, lane);
        self.count(taken, count);
        async move {
            let mut reply = first.await;
            if let Some((handle, operations)) = again {
                let mut patience = Patience::new(&handle);
                while let Err(Unavailable::NoLeader) = reply
                    && patience.wait().await
                {
                    let left = wait.map(|wait| Millis(wait.0.saturating_sub(begun.elapsed().as_millis() as u64)));
                    let (now_taken, next) = handle.send(shard, operations.clone(), left, lane);
                    handle.count(now_taken && !taken, count);
                    taken |= now_taken;
                    reply = next.await;
                }
            }
            match reply? {
                Reply::Applied { position, outcomes } => Ok((position, outcomes)),
                Reply::Unavailable(why) => Err(why),
                Reply::Answered { .. } => panic!("operations are not answered like a question"),
            }
        }
    }

    fn count(&self, taken: bool, operations: usize) {
        if taken {
            self.common.counters.operations.fetch_add(operations as u64, Ordering::Relaxed);
        }
    }

    /// Hands operations to the shard's leader, here or elsewhere, once. False: there was no room for them, or nobody to hand them to.
    fn send(
        &self,
        shard: ShardId,
        operations: Operations,
        wait: Option<Millis>,
        lane: Option<LaneId>,
    ) -> (bool, impl Future<Output = Result<Reply<S>, Unavailable>> + use<S>) {
        let (sender, reply) = oneshot::channel();
        let client = ReplyTo::Local { sender, lane };
        let leader = self.common.routes.leader(shard);
        let link = match self.common.peers.get() {
            Some(peers) if leader != self.common.me => Some(peers.links.get(leader)),
            _ => None,
        };
        let longest = (self.propose_timeout + wait.unwrap_or_default()).to_std();
        let sent = match link {
            None => {
                let wait = wait.map(|up_to| self.common.new_wait(up_to));
                let event = Event::Submit { shard, operations, wait, client };
                self.queue(shard, wait, event)
            }
            Some(Some(link)) => {
                let wait = wait.unwrap_or_default().0;
                match link.forward(Forward { shard, operations, wait, client }) {
                    Ok(request) => Ok(Some(Waiting::There { link, request })),
                    Err((_, why)) => Err(why),
                }
            }
            Some(None) => Err(Unavailable::NoLeader),
        };
        let common = self.common.clone();
        (sent.is_ok(), take_reply(sent.map(|waiting| Pending { common, reply, waiting }), longest))
    }

    /// Asks a question of one shard, answered by the state of this node. With `wait`, waits that long for a better answer. The question is
    /// queued by the call itself.
    ///
    /// # Errors
    /// The question was not answered; see [`Unavailable`].
    pub fn ask(
        &self,
        shard: ShardId,
        query: S::Query,
        freshness: Freshness,
        wait: Option<Millis>,
        lane: Option<LaneId>,
    ) -> impl Future<Output = Result<(Position, S::Answer), Unavailable>> + use<S> {
        let begun = Instant::now();
        let again = self.common.peers.get().map(|_| (self.clone(), query.clone()));
        let first = self.ask_once(shard, query, freshness, wait, lane);
        async move {
            let mut reply = first.await;
            if let Some((handle, query)) = again {
                let mut patience = Patience::new(&handle);
                while let Err(Unavailable::NoLeader) = reply
                    && patience.wait().await
                {
                    let left = wait.map(|wait| Millis(wait.0.saturating_sub(begun.elapsed().as_millis() as u64)));
                    reply = handle.ask_once(shard, query.clone(), freshness, left, lane).await;
                }
            }
            match reply? {
                Reply::Answered { position, answer } => Ok((position, answer)),
                Reply::Unavailable(why) => Err(why),
                Reply::Applied { .. } => panic!("a question is not answered like operations"),
            }
        }
    }

    fn ask_once(
        &self,
        shard: ShardId,
        query: S::Query,
        freshness: Freshness,
        wait: Option<Millis>,
        lane: Option<LaneId>,
    ) -> impl Future<Output = Result<Reply<S>, Unavailable>> + use<S> {
        let longest = (self.propose_timeout + wait.unwrap_or_default()).to_std();
        let wait = wait.map(|up_to| self.common.new_wait(up_to));
        let (sender, reply) = oneshot::channel();
        let event = Event::Ask { shard, query, freshness, wait, client: ReplyTo::Local { sender, lane } };
        let (sent, common) = (self.queue(shard, wait, event), self.common.clone());
        take_reply(sent.map(|waiting| Pending { common, reply, waiting }), longest)
    }

    /// Puts a request in front of the loop.
    fn queue(
        &self,
        shard: ShardId,
        wait: Option<Wait>,
        event: Event<S, ReplyTo<S>>,
    ) -> Result<Option<Waiting<S>>, Unavailable> {
        if !self.common.inbox.push(shard, event) {
            self.common.counters.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Unavailable::Overloaded);
        }
        Ok(wait.map(|wait| Waiting::Here { shard, wait: wait.id }))
    }

    /// A row of the last checkpoint of a shard, looked for in these tables in turn. A row that is damaged stops the node.
    ///
    /// # Errors
    /// It could not be read.
    pub async fn find_row(
        &self,
        shard: ShardId,
        tables: &[TableId],
        key: i64,
    ) -> Result<Option<(TableId, StoredRow)>, RowsUnavailable> {
        let rows = self.common.rows.lock().expect("nothing panics while it holds this lock").clone();
        rows.ok_or(RowsUnavailable::NotRunning)?.find(shard, tables, key).await
    }

    /// Shows those who look through checkpoints what is applied now, within this time. False: it takes longer.
    pub async fn show(&self, up_to: Millis) -> bool {
        let (done, shown) = oneshot::channel();
        self.common.inbox.control(Control::Show(Box::new(move || {
            // Whoever asked may have gone.
            let _ = done.send(());
        })));
        matches!(tokio::time::timeout(up_to.to_std(), shown).await, Ok(Ok(())))
    }

    /// Whether those who look through checkpoints see what was applied at this position.
    pub fn has_shown(&self, position: Position) -> bool {
        self.common.shown.get(position.shard).is_some_and(|(index, _)| index >= position.index)
    }

    /// Looks through the checkpoints of this node on a thread for that. `read` is called with all of them and the time it has; while that is
    /// not the last, it may give nothing, and is called again with more time and the checkpoints as they are by then.
    ///
    /// # Errors
    /// Too many look, or they cannot be read.
    pub async fn look<T: Send + 'static>(
        &self,
        read: impl FnMut(&mut Readers, &Time) -> Result<Option<T>, StorageError> + Send + 'static,
    ) -> Result<T, RowsUnavailable> {
        let rows = self.common.rows.lock().expect("nothing panics while it holds this lock").clone();
        let looked = rows.ok_or(RowsUnavailable::NotRunning)?.looks.look(read).await;
        // A thread that has ended answers nobody.
        looked.map_err(|why| if self.stage() == Stage::Stopped { RowsUnavailable::NotRunning } else { why })
    }

    /// For how long what a look has seen at `position` has been older than what is applied here.
    pub fn shown_age(&self, position: Position) -> Millis {
        let applied = |status: &ShardStatus| status.shard == position.shard && status.applied <= position.index;
        match self.common.shown.get(position.shard) {
            Some((index, _)) if index <= position.index && self.common.status.borrow().shards.iter().any(applied) => {
                Millis(0)
            }
            Some((_, at)) => self.common.clock.now().mono - at,
            None => Millis(0),
        }
    }

    /// A row that [`Handle::find_row`] found cannot be one that the state machine has written: the node stops.
    pub fn row_is_damaged(&self, shard: ShardId, table: TableId, key: i64) {
        let rows = self.common.rows.lock().expect("nothing panics while it holds this lock").clone();
        if let Some(rows) = rows {
            rows.damaged(shard, S::schema().tables[usize::from(table)].name, key);
        }
    }

    pub(crate) fn common(&self) -> &Arc<Common<S>> {
        &self.common
    }

    /// Who asks through this handle.
    pub(crate) fn actor(&self) -> &Actor {
        &self.actor
    }

    /// What the node is doing.
    pub fn stage(&self) -> Stage {
        self.common.status.borrow().stage.clone()
    }

    /// What the node says of itself.
    pub fn status(&self) -> NodeStatus {
        self.common.status.borrow().clone()
    }

    /// Whether requests for this shard can be served through this node: it leads and takes writes, or it can reach who does.
    pub fn serves(&self, shard: &ShardStatus) -> bool {
        let leader = shard.consensus.leader;
        if leader == self.common.me {
            return shard.ready;
        }
        let link = self.common.peers.get().and_then(|peers| peers.links.get(leader));
        link.is_some_and(|link| link.is_up())
    }

    /// Whether requests for every shard can be served through this node.
    pub fn is_ready(&self) -> bool {
        let status = self.common.status.borrow();
        let running = status.stage == Stage::Running && !status.shards.is_empty();
        running && status.shards.iter().all(|shard| self.serves(shard))
    }

    /// Raises an alarm of this node, or clears it.
    pub fn set_alarm(&self, kind: AlarmKind, text: Option<String>) {
        self.common.alarms.set(kind, text, self.common.clock.now().mono, &self.common.events);
    }

    /// Why nobody should be given more to keep: the disk of a member has little room.
    pub fn lacks_room(&self) -> Option<String> {
        // Every creation asks this.
        if !self.common.lacks_room.load(Ordering::Relaxed) {
            return None;
        }
        let who = alarms::who_lacks_room(&self.common)?;
        Some(self.member(who).map_or_else(|| self.identity.node.clone(), |member| member.name))
    }

    /// One look at this node and at what it knows of the others.
    pub fn inspect(&self) -> Inspection {
        let NodeStatus { stage, shards, progress, leader_since, at, .. } = self.common.status.borrow().clone();
        let now = self.common.clock.now().mono;
        let links = self.common.peers.get().map(|peers| peers.links.all()).unwrap_or_default();
        let own = self.common.peers.get().map(|peers| peers.greeting().me);
        let confirmed = shards.iter().filter_map(|shard| Some((shard.shard, now - shard.confirmed?))).collect();
        Inspection {
            id: self.common.me,
            name: self.identity.node.clone(),
            peer: own.as_ref().map(|own| own.peer.clone()).unwrap_or_default(),
            url: own.map_or_else(|| self.url.to_string(), |own| own.url),
            cluster: self.cluster(),
            stage,
            shards,
            progress,
            members: self.members(),
            reports: self.common.peers.get().map(|peers| peers.reports()).unwrap_or_default(),
            report_interval: self.common.peers.get().map(|peers| peers.config.health_interval).unwrap_or_default(),
            zone: self.common.peers.get().map(|peers| peers.config.zone.clone()).unwrap_or_default(),
            alarms: self.common.alarms.all(now),
            free_bytes: Some(self.common.space.lock().expect("nothing panics while it holds this lock").free)
                .filter(|free| *free > 0),
            contacts: links.iter().map(|link| (link.id, link.contact(now))).collect(),
            confirmed,
            uptime: now - Mono(0),
            contact_max: self.common.contact_max,
            last_turn: now - at,
            last_election: self.elections(ShardId(0)).iter().next_back().cloned(),
            leader_since: leader_since.into_iter().map(|(shard, since)| (shard, now - since)).collect(),
            provider: self.identity.provider.clone(),
            about: self.about.clone(),
        }
    }

    /// How long ago the loop of a running node turned last.
    pub fn last_turn(&self) -> Millis {
        let at = self.common.status.borrow().at;
        self.common.clock.now().mono - at
    }

    /// Waits until the node has said something new of itself: at the latest after a unit of consensus time, 50 ms.
    pub async fn changed(&self) {
        // The sender lives in `self`.
        let _ = self.common.status.subscribe().changed().await;
    }

    /// Waits until requests for every shard can be served through this node, or it stops.
    pub async fn ready(&self) {
        let (mut status, mut changes) = (self.common.status.subscribe(), self.common.routes.changes());
        while !self.is_ready() && self.stage() != Stage::Stopped {
            // The senders live in `self`.
            tokio::select! {
                _ = status.changed() => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// Makes a node without a cluster known to the nodes at these addresses, and them to it; says of each who has answered, or why nobody
    /// has. A node with a cluster has no use for it, nor has one without an address for peers: nobody is asked.
    pub async fn meet(&self, addresses: &[String]) -> Vec<Result<String, String>> {
        let Some(peers) = self.common.peers.get() else { return Vec::new() };
        // Nobody listens once there is a cluster.
        let _ = peers.heard.send(Heard::Addresses(addresses.to_vec()));
        peers.introduce(addresses).await
    }

    /// Hands the leadership of a group to another voter, if this node has it. Whether it worked, [`Handle::leader`] tells.
    pub fn transfer(&self, shard: ShardId, to: u64) {
        self.common.inbox.control(Control::Transfer(shard, to));
    }

    /// Changes the members of a group that this node leads, and waits until the change is applied. Without changes, what is known of
    /// members is replaced.
    ///
    /// # Errors
    /// The change was not made, or nobody knows; see [`Unavailable`].
    pub async fn change_members(
        &self,
        shard: ShardId,
        changes: Vec<MemberChange>,
        records: Vec<Member>,
    ) -> Result<Position, Unavailable> {
        let (sender, reply) = oneshot::channel();
        let client = ReplyTo::Local { sender, lane: None };
        self.common.inbox.control(Control::Change(shard, changes, records, client));
        let pending = Pending { common: self.common.clone(), reply, waiting: None };
        match take_reply(Ok(pending), self.propose_timeout.to_std()).await? {
            Reply::Applied { position, .. } => Ok(position),
            Reply::Unavailable(why) => Err(why),
            Reply::Answered { .. } => panic!("a change is not answered like a question"),
        }
    }

    /// How long a leader is trusted after a quorum has answered it: four fifths of the election timeout.
    pub fn lease(&self) -> Millis {
        self.lease
    }

    /// Where this node listens for peers; nothing if it is alone.
    pub fn peer_addr(&self) -> Option<std::net::SocketAddr> {
        self.peer_addr
    }

    /// Counts since the start.
    pub fn counters(&self) -> &Counters {
        &self.common.counters
    }

    /// Requests that wait in front of the loop.
    pub fn queued(&self) -> usize {
        self.common.inbox.len()
    }

    /// What this node has told of what happens behind that number and is wanted: the last `max`, the oldest first.
    pub fn events(&self, after: u64, max: usize, wanted: impl Fn(&TimedEvent) -> bool) -> Vec<Arc<TimedEvent>> {
        self.common.events.after(after, max, wanted)
    }

    /// What has happened on all nodes later than this reading of the hybrid logical clock, as far as they have kept it, in one order; and
    /// the names of the nodes that did not answer within a second.
    pub async fn collect_events(&self, after: u64) -> (Vec<TimedEvent>, Vec<String>) {
        self.collect_events_behind(&Cursor::from(after)).await
    }

    /// The same, for whoever has events of each node up to some point.
    pub async fn collect_events_behind(&self, cursor: &Cursor) -> (Vec<TimedEvent>, Vec<String>) {
        let (mut events, missing) = match self.common.peers.get() {
            Some(peers) => crate::peer::collecting::collect(peers, cursor).await,
            None => Default::default(),
        };
        let own = self.common.events.later(cursor.of(self.common.me));
        events.extend(own.iter().map(|event| TimedEvent::clone(event)));
        (crate::events::timeline::merged(events), missing)
    }

    /// An operator has wanted something of this node: an event tells of it.
    pub fn tell_action(&self, told: &AdminAction<'_>) {
        let AdminAction { who, from, action, target, result } = *told;
        let draft =
            Draft::new(Level::Info, "admin.action", format!("{who} from {from}: {action} at {target}: {result}"));
        let draft = draft.with("who", who).with("from", from).with("action", action);
        self.common.events.tell(draft.with("member", target).with("result", result));
    }

    /// Events that are kept in memory only, because their file did not take them in time.
    pub fn events_lost(&self) -> u64 {
        self.common.events.lost()
    }

    /// Tells when there is another event: the number of the last one.
    pub fn event_changes(&self) -> watch::Receiver<u64> {
        self.common.events.changes()
    }

    /// The elections that a group remembers, as far as they are applied here, the oldest first.
    pub fn elections(&self, shard: ShardId) -> Elections {
        let all = self.common.elections.lock().expect("nothing panics while it holds this lock");
        all.get(&shard).cloned().unwrap_or_default()
    }

    /// Whose data directory this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The cluster that the node belongs to; nothing if it has none yet.
    pub fn cluster(&self) -> Option<Cluster> {
        self.common.cluster()
    }

    /// The name and addresses of a member, as far as this node knows.
    pub fn member(&self, id: u64) -> Option<Member> {
        self.common.peers.get()?.member(id)
    }

    /// The members, as far as this node knows; of a node that is alone, nobody.
    pub fn members(&self) -> Members {
        self.common.peers.get().map(|peers| peers.members()).unwrap_or_default()
    }

    /// Who executed what was applied at this position: the id of that term's leader. Nothing: another term has begun here meanwhile.
    pub fn executor(&self, position: Position) -> Option<u64> {
        let status = self.common.status.borrow();
        let shard = status.shards.iter().find(|shard| shard.shard == position.shard)?.consensus;
        Some(shard.leader).filter(|leader| *leader != 0 && shard.term == position.term)
    }

    /// Who leads a shard, as far as this node knows: its id; 0: nobody.
    pub fn leader(&self, shard: ShardId) -> u64 {
        self.common.routes.leader(shard)
    }

    /// How long ago this node last had word of the shard's leader, of which it knows what it applies: of itself, if it leads, how long ago
    /// it asked a quorum that has confirmed it; 0 if nobody else could lead. Nothing: it knows no leader, or has not heard of it yet.
    pub fn contact_age(&self, shard: ShardId) -> Option<Millis> {
        let Some(peers) = self.common.peers.get() else { return Some(Millis(0)) };
        let now = self.common.clock.now().mono;
        let leader = self.common.routes.leader(shard);
        if leader != self.common.me {
            return peers.links.get(leader)?.contact(now).heard;
        }
        let status = self.common.status.borrow();
        let shard = status.shards.iter().find(|known| known.shard == shard)?;
        if shard.alone { Some(Millis(0)) } else { Some(now - shard.confirmed?) }
    }

    /// This node's id among the members.
    pub fn id(&self) -> u64 {
        self.common.me
    }

    /// Tells whoever waits to go elsewhere, and lets nobody wait any longer. Everything else goes on.
    pub fn drain(&self) {
        self.common.inbox.control(Control::Drain);
    }

    /// Stops the node: whoever waits is told to go elsewhere, what was taken is finished, a last checkpoint is written.
    pub fn stop(&self) {
        self.common.inbox.control(Control::Stop);
    }
}

/// A request whose reply has not been taken. If the client goes away meanwhile, the request must not wait on, and a reply that has come
/// already must not be lost.
struct Pending<S: StateMachine> {
    common: Arc<Common<S>>,
    reply: oneshot::Receiver<Reply<S>>,
    waiting: Option<Waiting<S>>,
}

impl<S: StateMachine> Drop for Pending<S> {
    fn drop(&mut self) {
        match self.waiting.take() {
            Some(Waiting::Here { shard, wait }) => self.common.inbox.control(Control::Forget(shard, wait)),
            Some(Waiting::There { link, request }) => link.forget(request),
            None => {}
        }
        // From here on whoever sends a reply gets it back.
        self.reply.close();
        if let Ok(reply) = self.reply.try_recv() {
            self.common.compensate(reply);
        }
    }
}

/// Waits for the reply to a request that was queued, or not.
async fn take_reply<S: StateMachine>(
    sent: Result<Pending<S>, Unavailable>,
    longest: Duration,
) -> Result<Reply<S>, Unavailable> {
    let mut pending = sent?;
    let outcome = tokio::time::timeout(longest, &mut pending.reply).await;
    if matches!(outcome, Ok(Ok(_))) {
        pending.waiting = None;
    }
    // The sender is dropped without a reply when the node ends.
    match outcome.map_err(|_| Unavailable::Unknown)?.map_err(|_| Unavailable::Unknown)? {
        Reply::Unavailable(why) => Err(why),
        reply => Ok(reply),
    }
}

/// A request that is held while there is no leader.
pub(crate) struct Patience {
    changes: watch::Receiver<u64>,
    given_up: Instant,
}

/// A leader that is known may still have to become ready, so a held request looks again this often although nothing was heard.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

impl Patience {
    pub(crate) fn new<S: StateMachine>(handle: &Handle<S>) -> Patience {
        let changes = handle.common.routes.changes();
        Patience { changes, given_up: Instant::now() + handle.leader_wait.to_std() }
    }

    /// Waits until it may be worth another try; false: it is time to give up.
    pub(crate) async fn wait(&mut self) -> bool {
        let left = self.given_up.saturating_duration_since(Instant::now());
        // Either way it is time to look.
        let _ = tokio::time::timeout(left.min(LOOK_AGAIN), self.changes.changed()).await;
        !left.is_zero()
    }
}

/// Where a request waits that must not go on waiting when its client goes away.
enum Waiting<S: StateMachine> {
    Here { shard: ShardId, wait: u64 },
    There { link: Arc<Link<S>>, request: u64 },
}

impl<S: StateMachine> Common<S> {
    /// The cluster that the node belongs to, in its present incarnation.
    pub(crate) fn cluster(&self) -> Option<Cluster> {
        let cluster = *self.cluster.get()?;
        match self.restored.load(Ordering::Relaxed) {
            0 => Some(cluster),
            restored => Some(Cluster { incarnation: Incarnation(restored), ..cluster }),
        }
    }

    /// This node is no member any more. Whoever wants to leave has left, however it learns that it is out.
    pub(crate) fn retire(&self, how: Retired) {
        let how = if self.leaving.load(Ordering::Relaxed) { Retired::Left } else { how };
        self.retired.send_if_modified(|retired| retired.replace(how).is_none());
    }

    pub(crate) fn new_wait(&self, up_to: Millis) -> Wait {
        Wait { id: self.next_wait.fetch_add(1, Ordering::Relaxed), up_to }
    }

    /// Undoes what a reply has brought that nobody has taken.
    pub(crate) fn compensate(&self, reply: Reply<S>) {
        for (shard, operations) in (self.undelivered)(reply) {
            let (sender, _nobody) = oneshot::channel();
            let client = ReplyTo::Local { sender, lane: None };
            let leader = self.routes.leader(shard);
            let link = self.peers.get().filter(|_| leader != self.me).map(|peers| peers.links.get(leader));
            // If there is no room or no leader, the lease ends by itself.
            match link {
                None => drop(self.inbox.push(shard, Event::Submit { shard, operations, wait: None, client })),
                Some(Some(link)) => drop(link.forward(Forward { shard, operations, wait: 0, client })),
                Some(None) => {}
            }
        }
    }

    /// Hands replies to their clients, one wake-up for each lane.
    pub(crate) fn hand_out(&self, replies: Vec<(ReplyTo<S>, Reply<S>)>) {
        let lanes = self.lanes.lock().expect("nothing panics while it holds this lock").clone();
        let mut by_lane: Vec<Replies<S>> = Vec::new();
        by_lane.resize_with(lanes.len(), Vec::new);
        for (client, reply) in replies {
            match client {
                ReplyTo::Local { sender, lane: Some(lane) } => by_lane[lane.0].push((sender, reply)),
                // Without a lane nobody undoes what a lost reply has brought.
                ReplyTo::Local { sender, lane: None } => drop(sender.send(reply)),
                ReplyTo::Remote { answers, request } => {
                    if let Err(reply) = answers.put(request, reply) {
                        self.compensate(reply);
                    }
                }
            }
        }
        for (lane, replies) in lanes.iter().zip(&mut by_lane) {
            if !replies.is_empty() {
                lane.put(replies);
            }
        }
    }
}

/// What the loop's thread begins with.
pub(crate) struct Start<S: StateMachine> {
    pub(crate) config: NodeConfig,
    pub(crate) clock: Clock,
    pub(crate) common: Arc<Common<S>>,
    pub(crate) hooks: LoopHooks<S>,
    pub(crate) identity: Identity,
    /// The founding that this node has accepted.
    pub(crate) founding: Option<Proposal>,
    /// The cluster has only just been founded.
    pub(crate) fresh: bool,
}

type StartedPeers<S> = (Peers<S>, oneshot::Receiver<Result<Joined, StorageError>>);

/// Waits until the node has a cluster, and runs it.
fn run_node<S: StateMachine>(
    directory: Option<&DataDir>,
    mut start: Start<S>,
    peers: &mut Option<StartedPeers<S>>,
) -> Result<(), NodeError> {
    start.common.inbox.own();
    if start.identity.cluster == 0
        && let Some((_, formed)) = peers
    {
        let Some(joined) = wait_for_cluster(&start.common, formed)? else { return Ok(()) };
        let (cluster, incarnation) = match &joined {
            Joined::Founded(proposal) => (proposal.cluster, proposal.incarnation),
            Joined::Admitted(cluster) => (cluster.id, cluster.incarnation),
        };
        start.identity = join(directory, &start.identity, cluster, incarnation).map_err(NodeError::Storage)?;
        match joined {
            Joined::Founded(proposal) => {
                let voters: Vec<String> = proposal.founders.iter().map(|founder| founder.name.clone()).collect();
                let text = format!("cluster {cluster} formed with voters {}", voters.join(", "));
                let formed = Draft::new(Level::Info, "raft.bootstrap.done", text);
                start.common.events.tell(formed.with("voters", voters).with("by", proposal.first.as_str()));
                start.founding = Some(proposal);
                start.fresh = true;
            }
            Joined::Admitted(_) => {
                let admitted = Draft::new(Level::Info, "raft.joined", format!("admitted to cluster {cluster}"));
                start.common.events.tell(admitted);
            }
        }
    }
    let cluster = Cluster { id: ClusterId(start.identity.cluster), incarnation: start.identity.cluster_incarnation };
    start.common.cluster.get_or_init(|| cluster);
    start.common.events.joined(cluster.id);
    match directory {
        None => Driver::<S, MemoryDisk>::run(MemoryDisk::default(), None, start),
        Some(directory) => {
            let disk = directory.log_disk().map_err(NodeError::Storage)?;
            Driver::<S, RealDisk>::run(disk, Some(directory.path()), start)
        }
    }
}

/// Nothing: the node is to stop before it has a cluster.
fn wait_for_cluster<S: StateMachine>(
    common: &Common<S>,
    formed: &mut oneshot::Receiver<Result<Joined, StorageError>>,
) -> Result<Option<Joined>, NodeError> {
    loop {
        match formed.try_recv() {
            Ok(formed) => return formed.map(Some).map_err(NodeError::Storage),
            Err(oneshot::error::TryRecvError::Closed) => return Err(NodeError::Panicked),
            Err(oneshot::error::TryRecvError::Empty) => {}
        }
        while let Some(control) = common.inbox.pop_control() {
            if let Control::Stop = control {
                common.status.send_modify(|status| status.stage = Stage::Stopped);
                return Ok(None);
            }
        }
        common.inbox.sleep(Duration::from_millis(20));
    }
}
