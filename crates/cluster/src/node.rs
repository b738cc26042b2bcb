//! A node: what a user of this crate starts, asks and stops.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use base::machine::StateMachine;
use base::rows::TableId;
use base::{Incarnation, Millis, Position, ShardId};
use replica::{Event, Fault, Freshness, Operations, Reply, ShardStatus, Transition, Unavailable, Wait};
use storage::StorageError;
use storage::checkpoint::StoredRow;
use storage::disk::{MemoryDisk, RealDisk};
use storage::identity::{DataDir, Identity};
use tokio::sync::{oneshot, watch};

use crate::clock::Clock;
use crate::driver::Driver;
use crate::inbox::{Control, Inbox};
use crate::lane::{Lane, LaneId, ReplyTo, Shared};
use crate::open::{identify, random_incarnation};
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
    /// When it is written; synced at least this often. A loss of power loses what was acknowledged since.
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
    /// How long a request waits for its entry to be applied; then its outcome is unknown.
    pub propose_timeout: Millis,
    /// Time without a leader until a campaign: drawn from this to twice this.
    pub election_timeout: Millis,
    /// Time between a leader's heartbeats.
    pub heartbeat: Millis,
    /// Operations in one entry.
    pub entry_operations_max: usize,
    /// Bytes of operations in one entry.
    pub entry_bytes_max: usize,
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

/// Why a node could not start. Nothing was changed, except that a new data directory may have been made.
#[derive(Debug)]
pub enum StartError {
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
    /// The operating system gives no thread.
    Thread(std::io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Storage(error) => error.fmt(f),
            StartError::Differs { directory, what, recorded, given } => write!(
                f,
                "{what} is fixed when a data directory is made: {directory} has {recorded}, asked for is {given}; \
                 use {recorded}, or another directory"
            ),
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
}

impl NodeStatus {
    /// Whether every shard takes writes here.
    pub fn is_ready(&self) -> bool {
        self.stage == Stage::Running && !self.shards.is_empty() && self.shards.iter().all(|shard| shard.ready)
    }
}

/// Counts since the node started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Syncs of the log.
    pub log_syncs: AtomicU64,
    /// Bytes written to the log.
    pub log_bytes: AtomicU64,
    /// Bytes of all segments of the log.
    pub log_size: AtomicU64,
    /// Entries proposed here and written.
    pub entries: AtomicU64,
    /// Operations handed to the loop.
    pub operations: AtomicU64,
    /// Requests refused because a queue was full.
    pub refused: AtomicU64,
    /// Checkpoints written.
    pub checkpoints: AtomicU64,
    /// Time spent writing them, in microseconds.
    pub checkpoint_micros: AtomicU64,
    /// Turns of the loop.
    pub turns: AtomicU64,
}

/// What the loop, the handles and the threads share.
pub(crate) struct Common<S: StateMachine> {
    pub(crate) inbox: Arc<Inbox<S>>,
    pub(crate) lanes: Mutex<Vec<Arc<Shared<S>>>>,
    pub(crate) rows: Mutex<Option<Rows>>,
    pub(crate) counters: Counters,
    pub(crate) status: watch::Sender<NodeStatus>,
    undelivered: Box<dyn Fn(Reply<S>) -> Vec<(ShardId, Operations)> + Send + Sync>,
    next_wait: AtomicU64,
}

/// A running node.
pub struct Node<S: StateMachine> {
    handle: Handle<S>,
    ended: oneshot::Receiver<Result<(), NodeError>>,
}

/// How clients reach a node. Cheap to clone.
pub struct Handle<S: StateMachine> {
    common: Arc<Common<S>>,
    identity: Arc<Identity>,
    propose_timeout: Millis,
}

impl<S: StateMachine> Clone for Handle<S> {
    fn clone(&self) -> Self {
        Handle { common: self.common.clone(), identity: self.identity.clone(), propose_timeout: self.propose_timeout }
    }
}

impl<S: StateMachine> Node<S> {
    /// Locks the data directory, checks that it fits, and starts the node's threads. Reading the data goes on behind: see
    /// [`Handle::status`].
    ///
    /// # Errors
    /// The directory cannot be used, or does not fit the configuration.
    pub fn start(config: NodeConfig, hooks: Hooks<S>) -> Result<Node<S>, StartError> {
        let clock = Clock::start();
        let (directory, identity) = match &config.data {
            Data::Memory => (None, memory_identity(&config, &clock)),
            Data::Directory(path) => {
                let directory = DataDir::open(path).map_err(StartError::Storage)?;
                let identity = identify(&directory, &config, clock.now().wall)?;
                (Some(directory), identity)
            }
        };
        let Hooks { prepare, observe, undelivered } = hooks;
        let status = NodeStatus { stage: Stage::Starting("starting".into()), shards: Vec::new() };
        let common = Arc::new(Common {
            inbox: Arc::new(Inbox::new(config.shards, config.inbox_depth)),
            lanes: Mutex::new(Vec::new()),
            rows: Mutex::new(None),
            counters: Counters::default(),
            status: watch::Sender::new(status),
            undelivered,
            next_wait: AtomicU64::new(1),
        });
        let identity = Arc::new(identity);
        let handle =
            Handle { common: common.clone(), identity: identity.clone(), propose_timeout: config.propose_timeout };
        let (end, ended) = oneshot::channel();
        let hooks = LoopHooks { prepare, observe };
        let run = move || {
            let outcome = match &directory {
                None => {
                    Driver::<S, MemoryDisk>::run(MemoryDisk::default(), None, &identity, &config, clock, common, hooks)
                }
                Some(directory) => directory.log_disk().map_err(NodeError::Storage).and_then(|disk| {
                    let at = Some(directory.path());
                    Driver::<S, RealDisk>::run(disk, at, &identity, &config, clock, common, hooks)
                }),
            };
            // The lock goes last: another process may start only when everything is closed.
            drop(directory);
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
}

impl<S: StateMachine> Handle<S> {
    /// A lane for the replies to one runtime. Its task must run from the first request on that names it.
    pub fn lane(&self) -> Lane<S> {
        let shared = Arc::new(Shared::new());
        let mut lanes = self.common.lanes.lock().expect("nothing panics while it holds this lock");
        lanes.push(shared.clone());
        let id = LaneId(lanes.len() - 1);
        let handle = self.clone();
        Lane { id, shared, undelivered: Arc::new(move |reply| handle.compensate(reply)) }
    }

    /// Proposes operations on one shard and waits until they are applied. With `wait`, a single operation that finds nothing to do waits for
    /// something that long. The operations are queued by the call itself, so several calls may be made before the first is awaited.
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
        self.common.counters.operations.fetch_add(operations.len() as u64, Ordering::Relaxed);
        let wait = wait.map(|up_to| self.new_wait(up_to));
        let (sender, reply) = oneshot::channel();
        let event = Event::Submit { shard, operations, wait, client: ReplyTo { sender, lane } };
        let reply = self.request(shard, wait, event, reply);
        async move {
            match reply.await? {
                Reply::Applied { position, outcomes } => Ok((position, outcomes)),
                Reply::Unavailable(why) => Err(why),
                Reply::Answered { .. } => panic!("operations are not answered like a question"),
            }
        }
    }

    /// Asks a question of one shard. With `wait`, waits that long for a better answer. The question is queued by the call itself.
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
        let wait = wait.map(|up_to| self.new_wait(up_to));
        let (sender, reply) = oneshot::channel();
        let event = Event::Ask { shard, query, freshness, wait, client: ReplyTo { sender, lane } };
        let reply = self.request(shard, wait, event, reply);
        async move {
            match reply.await? {
                Reply::Answered { position, answer } => Ok((position, answer)),
                Reply::Unavailable(why) => Err(why),
                Reply::Applied { .. } => panic!("a question is not answered like operations"),
            }
        }
    }

    fn request(
        &self,
        shard: ShardId,
        wait: Option<Wait>,
        event: Event<S, ReplyTo<S>>,
        reply: oneshot::Receiver<Reply<S>>,
    ) -> impl Future<Output = Result<Reply<S>, Unavailable>> + use<S> {
        let taken = self.common.inbox.push(shard, event);
        if !taken {
            self.common.counters.refused.fetch_add(1, Ordering::Relaxed);
        }
        // If the client goes away while its request waits, the request must not.
        let wait_id = wait.filter(|_| taken).map(|wait| wait.id);
        let mut guard = ForgetOnDrop { common: wait_id.map(|wait| (self.common.clone(), shard, wait)) };
        let waited = wait.map_or(Millis(0), |wait| wait.up_to);
        let longest = (self.propose_timeout + waited).to_std();
        async move {
            if !taken {
                return Err(Unavailable::Overloaded);
            }
            let outcome = tokio::time::timeout(longest, reply).await;
            if matches!(outcome, Ok(Ok(_))) {
                guard.disarm();
            }
            // The sender is dropped without a reply when the node ends.
            outcome.map_err(|_| Unavailable::Unknown)?.map_err(|_| Unavailable::Unknown)
        }
    }

    fn new_wait(&self, up_to: Millis) -> Wait {
        Wait { id: self.common.next_wait.fetch_add(1, Ordering::Relaxed), up_to }
    }

    /// A row of the last checkpoint of a shard, looked for in these tables in turn.
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

    /// Undoes what a reply has brought that nobody has taken.
    fn compensate(&self, reply: Reply<S>) {
        for (shard, operations) in (self.common.undelivered)(reply) {
            let (sender, _nobody) = oneshot::channel();
            let event = Event::Submit { shard, operations, wait: None, client: ReplyTo { sender, lane: None } };
            // If the queue is full, the lease ends by itself.
            self.common.inbox.push(shard, event);
        }
    }

    /// What the node is doing.
    pub fn stage(&self) -> Stage {
        self.common.status.borrow().stage.clone()
    }

    /// What the node says of itself.
    pub fn status(&self) -> NodeStatus {
        self.common.status.borrow().clone()
    }

    /// Waits until every shard takes writes here, or the node stops.
    pub async fn ready(&self) {
        let mut status = self.common.status.subscribe();
        let settled = |status: &NodeStatus| status.is_ready() || status.stage == Stage::Stopped;
        // The sender lives in `self`.
        let _ = status.wait_for(settled).await;
    }

    /// Counts since the start.
    pub fn counters(&self) -> &Counters {
        &self.common.counters
    }

    /// Requests that wait in front of the loop.
    pub fn queued(&self) -> usize {
        self.common.inbox.len()
    }

    /// Whose data directory this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The cluster's incarnation, part of every id.
    pub fn cluster_incarnation(&self) -> Incarnation {
        self.identity.cluster_incarnation
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

/// Tells the loop that a waiting request's client has gone.
struct ForgetOnDrop<S: StateMachine> {
    common: Option<(Arc<Common<S>>, ShardId, u64)>,
}

impl<S: StateMachine> ForgetOnDrop<S> {
    /// The reply has come: there is nothing to forget.
    fn disarm(&mut self) {
        self.common = None;
    }
}

impl<S: StateMachine> Drop for ForgetOnDrop<S> {
    fn drop(&mut self) {
        if let Some((common, shard, wait)) = self.common.take() {
            common.inbox.control(Control::Forget(shard, wait));
        }
    }
}

fn memory_identity(config: &NodeConfig, clock: &Clock) -> Identity {
    Identity {
        node: config.name.clone(),
        incarnation: random_incarnation(),
        cluster_incarnation: random_incarnation(),
        shards: config.shards,
        provider: "memory".into(),
        created_at: clock.now().wall,
    }
}

/// One line for the log for everything an operator wants to know happened.
pub(crate) fn log_transition(transition: &Transition) {
    match transition {
        Transition::Role { shard, from, to, term } => {
            tracing::info!(target: "raft", event = "raft.role", shard = shard.0, term = term.0, "role {from:?} to {to:?} in term {term}");
        }
        Transition::Leader { shard, leader, term } => {
            let leader = Incarnation(*leader);
            tracing::info!(target: "raft", event = "raft.leader.elected", shard = shard.0, term = term.0, "elected leader {leader} in term {term}");
        }
        Transition::Ready { shard, term, index } => {
            tracing::info!(target: "raft", event = "raft.leader.ready", shard = shard.0, term = term.0, index = index.0, "ready, writes accepted");
        }
    }
}
