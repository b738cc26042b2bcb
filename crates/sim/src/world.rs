//! The simulated world: true time, the events to come, nodes, links, clients. One thread, one seed.
//!
//! What happens next is the event with the least time, and of those the one planned first. Everything drawn comes from generators that the
//! seed begins, so a seed is a run.

use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use base::checksum::crc32c;
use base::log::Entry;
use base::machine::ShardInfo;
use base::rng::{SplitMix, mix_all};
use base::{Incarnation, Index, Millis, Mono, ShardId};
use bytes::Bytes;
use queue::policy::{LeaseBounds, Retention};
use queue::{Backoff, BackoffPolicy, Policy, QueueMachine};
use replica::forming::{Forming, Greeting, Plan, Proposal, Step, cluster_id};
use replica::leadership::{Leadership, Promotion, RECORDS};
use replica::{
    Arrived, Event as ReplicaEvent, FIRST, Halt, Job, Joining, Member, MemberChange, Members, Message, Now, Replica,
    ReplicaConfig, Role, Runner, RunnerConfig, SnapshotOf, Transition, Write,
};
use storage::checkpoint::{Checkpoint, MemoryCheckpoint, Meta};
use storage::wal::{Options as WalOptions, Wal};

use crate::checkpoint::SimCheckpoint;
use crate::clients::Clients;
use crate::clock::Clock;
use crate::disk::Survival;
use crate::edge::Request;
use crate::faults::{Fault, Faults};
use crate::invariants::{FIRST_ENTRY, Watch};
use crate::network::{Link, Packet, Piece, Receipt, Weather, happens};
use crate::options::Options;
use crate::process::{
    Caller, Control, Directory, JobQueue, Node, Own, Process, Sending, State, StorageStep, Unproven, Written,
};
use crate::record::Names;
use crate::restores;
use replica::tokens::{Invalid, JoinToken, TokenKey, TokenStep};

/// Bytes of a snapshot in one packet.
const CHUNK_BYTES: usize = 16 << 10;

/// Bytes of a snapshot on their way at a time.
const WINDOW_BYTES: u64 = 64 << 10;

/// Longest time that a sync or a job on the disk takes, however slow the node and its disk, µs: one that is on when everything is healed
/// holds up the node no longer than a cluster may be without a leader then.
const DISK_MAX: u64 = 10_000_000;

/// A snapshot of which nothing is heard for so long is given up, µs.
const TRANSFER_MAX: u64 = 10_000_000;

/// A dead connection is noticed after so long at most, µs.
const NOTICED_MAX: u64 = 3_000_000;

/// A run of more events hangs.
const EVENTS_MAX: u64 = 30_000_000;

/// Messages that wait for a loop.
const MESSAGES_MAX: usize = 8_192;

/// Something that will happen.
pub enum Event {
    /// The loop of a process begins a turn, unless it was planned anew since.
    Turn(usize, u32),
    /// The sync of its turn has ended.
    Synced(usize, u32),
    /// A job is done.
    Job(usize, u32),
    /// A packet arrives by the connection that `dialler` has made.
    Deliver {
        /// Who sent it.
        from: usize,
        /// To whom.
        to: usize,
        /// Which of the two has made the connection; nothing: it needs none.
        connection: Option<(usize, u32)>,
        /// The packet.
        packet: Packet,
    },
    /// A node without a cluster greets the others.
    Greet(usize, u32),
    /// A node dials another one.
    Connect(usize, usize),
    /// A connection breaks, unless it did before.
    Reset(usize, usize, u32),
    /// A client goes on.
    Client(usize),
    /// A request is tried again.
    Retry(u64),
    /// Its edge waits no longer.
    EdgeTimeout(u64),
    /// Its client waits no longer.
    Deadline(u64),
    /// A list of a process waits no longer for the newest state.
    Look(usize, u32, u64),
    /// Its answer reaches the client.
    Answer(u64),
    /// A process looks for operations on many tasks to carry out.
    Bulk(usize, u32),
    /// What a paused node has postponed happens, unless it is paused for longer.
    GoOn(usize),
    /// Something is done to the cluster.
    Fault(Fault),
    /// A phase of the run ends.
    Phase,
}

struct Planned {
    time: u64,
    order: u64,
    event: Box<Event>,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Planned) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Planned) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    /// The earliest is the greatest, as the heap wants it.
    fn cmp(&self, other: &Planned) -> std::cmp::Ordering {
        (other.time, other.order).cmp(&(self.time, self.order))
    }
}

/// Something that must never be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which property.
    pub id: String,
    /// How.
    pub what: String,
    /// When, µs.
    pub at: u64,
}

/// See the module's documentation.
pub struct World {
    pub(crate) options: Options,
    pub(crate) time: u64,
    events: BinaryHeap<Planned>,
    planned: u64,
    /// Events that have happened.
    pub(crate) happened: u64,
    /// Of everything that has happened.
    pub(crate) digest: u64,
    pub(crate) rng: SplitMix,
    pub(crate) nodes: Vec<Node>,
    /// Raft ids, by the index of their node.
    pub(crate) ids: BTreeMap<u64, usize>,
    /// By who dials, then whom.
    pub(crate) links: Vec<Vec<Link>>,
    pub(crate) weather: Weather,
    pub(crate) own: Own,
    pub(crate) watch: Watch,
    pub(crate) requests: BTreeMap<u64, Request>,
    pub(crate) clients: Clients,
    pub(crate) faults: Faults,
    pub(crate) names: Names,
    pub(crate) lines: Vec<history::record::Line>,
    /// The first thing that is wrong, if anything is.
    pub violation: Option<Violation>,
    /// No fault begins any more.
    pub(crate) quiet: bool,
    /// Everything is healed from then on.
    pub(crate) healed: Option<u64>,
    /// Nothing waits any more, when it was looked at last.
    pub(crate) is_drained: bool,
    pub(crate) next_number: u64,
    /// What an operator has put by.
    pub(crate) backup: Option<BTreeMap<ShardId, MemoryCheckpoint>>,
    /// What happens is told, for whoever debugs.
    pub(crate) trace: Option<Box<dyn FnMut(&str)>>,
    /// Named things that have happened, with how often.
    pub reached: BTreeMap<&'static str, u64>,
}

/// The settings that a run gives its queues.
fn policy(options: &Options) -> Policy {
    let kind = BackoffPolicy::NAMES[options.backoff_kind as usize % BackoffPolicy::NAMES.len()].0;
    let kept = Millis(options.retention_ms);
    Policy {
        lease: LeaseBounds {
            default: Millis(options.lease_ms),
            min: Millis(options.lease_min_ms),
            max: Millis(60_000),
        },
        max_attempts: options.max_attempts as u32,
        backoff: Backoff { policy: kind, base: Millis(options.backoff_ms), max: Millis(options.backoff_max_ms) },
        idempotency_window: Millis(options.key_window_ms),
        retention: Retention { completed: kept, failed: kept, dead: kept },
        error_bytes_max: 1_024,
        history_entries_max: 6,
    }
}

impl World {
    /// A world at its beginning.
    pub fn new(seed: u64, options: Options) -> World {
        let mut rng = SplitMix::new(mix_all(&[seed, 1]));
        let count = (options.nodes + options.spares) as usize;
        let drift = |rng: &mut SplitMix, most: u64| rng.below(2 * most + 1) as i64 - most as i64;
        let nodes = (0..count)
            .map(|place| Node {
                name: format!("n{}", place + 1),
                directory: Directory::new(rng.next_u64().max(1)),
                state: State::Down,
                epoch: 0,
                clock: Clock::new(0, drift(&mut rng, options.drift_ppm), drift(&mut rng, options.wall_drift_ppm)),
                paused_until: 0,
                postponed: Vec::new(),
                slow: (1, 0),
                slow_disk_until: 0,
                dies_at: None,
                stays_down: false,
            })
            .collect();
        let weather = Weather {
            latency: options.latency_us,
            jitter: options.jitter_us,
            spike: options.spike,
            loss: options.loss,
            duplicate: options.duplicate,
            reorder: options.reorder,
        };
        let own = Own {
            policy: policy(&options),
            live_tasks_max: options.live_tasks_max,
            payload_memory: options.payload_memory,
            due_per_entry: options.due_per_entry as usize,
        };
        let clients = Clients::new(seed, &options);
        let faults = Faults::new(seed, &options);
        World {
            time: 0,
            events: BinaryHeap::new(),
            planned: 0,
            happened: 0,
            digest: seed,
            rng,
            nodes,
            ids: BTreeMap::new(),
            links: vec![vec![Link::default(); count]; count],
            weather,
            own,
            watch: Watch::new(options.shards as u16),
            requests: BTreeMap::new(),
            clients,
            faults,
            names: Names::default(),
            lines: Vec::new(),
            violation: None,
            quiet: false,
            healed: None,
            is_drained: false,
            next_number: 1,
            backup: None,
            trace: None,
            reached: BTreeMap::new(),
            options,
        }
    }

    /// Plans an event.
    pub fn plan(&mut self, time: u64, event: Event) {
        self.planned += 1;
        let time = time.max(self.time);
        self.events.push(Planned { time, order: self.planned, event: Box::new(event) });
    }

    pub(crate) fn after(&mut self, delay: u64, event: Event) {
        self.plan(self.time + delay, event);
    }

    /// Notes that something has happened that runs are to reach.
    pub(crate) fn reach(&mut self, mark: &'static str) {
        *self.reached.entry(mark).or_default() += 1;
    }

    /// Something is wrong. The first one counts.
    pub(crate) fn violate(&mut self, id: &str, what: impl Into<String>) {
        if self.violation.is_none() {
            let what = what.into();
            self.tell(|| format!("VIOLATION {id}: {what}"));
            self.violation = Some(Violation { id: id.into(), what, at: self.time });
        }
    }

    /// For whoever debugs.
    pub(crate) fn tell(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let text = format!("{:>12.6} {}", self.time as f64 / 1e6, what());
            trace(&text);
        }
    }

    pub(crate) fn fold(&mut self, parts: &[u64]) {
        self.digest = parts.iter().fold(self.digest, |digest, part| base::rng::mix(digest.wrapping_add(*part) ^ 0x51));
    }

    /// Lets the next event happen. False: there is none.
    pub fn step(&mut self) -> bool {
        let Some(Planned { time, event, .. }) = self.events.pop() else { return false };
        self.time = time;
        self.happened += 1;
        match *event {
            Event::Turn(node, epoch) => self.on_turn(node, epoch),
            Event::Synced(node, epoch) => self.on_synced(node, epoch),
            Event::Job(node, epoch) => self.on_job(node, epoch),
            Event::Deliver { from, to, connection, packet } => self.on_packet(from, to, connection, packet),
            Event::Greet(node, epoch) => self.on_greet(node, epoch),
            Event::Connect(from, to) => self.on_connect(from, to),
            Event::Reset(from, to, epoch) => {
                if self.links[from][to].epoch == epoch {
                    self.reset(from, to);
                }
            }
            Event::Client(client) => self.on_client(client),
            Event::Retry(number) => self.on_retry(number),
            Event::EdgeTimeout(number) => self.on_edge_timeout(number),
            Event::Deadline(number) => self.on_deadline(number),
            Event::Look(node, epoch, number) => self.on_look(node, epoch, number),
            Event::Answer(number) => self.on_answer(number),
            Event::Bulk(node, epoch) => self.on_bulk(node, epoch),
            Event::GoOn(node) => self.go_on(node),
            Event::Fault(fault) => self.on_fault(fault),
            Event::Phase => {}
        }
        true
    }

    /// Runs until `time`, or until something is wrong.
    pub fn run_until(&mut self, time: u64) {
        while self.violation.is_none() && self.events.peek().is_some_and(|next| next.time <= time) {
            self.step();
            if self.happened > EVENTS_MAX {
                self.violate("hang", format!("{EVENTS_MAX} events, and no end"));
            }
        }
        self.time = self.time.max(time);
    }

    // Processes.

    pub(crate) fn member(&self, n: usize) -> Member {
        let node = &self.nodes[n];
        Member {
            id: node.directory.id,
            name: node.name.clone(),
            peer: format!("{}:7000", node.name),
            url: format!("http://{}:8080", node.name),
        }
    }

    fn greeting(&self, n: usize) -> Greeting {
        let founders = self.options.nodes as usize;
        let directory = &self.nodes[n].directory;
        // If none of those who founded the cluster has its data any more, they would found another one.
        let knows = |node: &Node| node.directory.cluster.is_some();
        let may_found = self.watch.incarnation.is_none() || self.nodes[..founders].iter().any(knows);
        let plan = if n < founders && may_found {
            Plan::List(self.nodes[..founders].iter().map(|node| node.name.clone()).collect())
        } else {
            Plan::Join
        };
        Greeting {
            label: "sim".into(),
            me: self.member(n),
            shards: self.options.shards as u16,
            plan,
            bootstrap: false,
            accepted: directory.accepted.clone(),
            cluster: directory.cluster.map(|(cluster, _)| cluster),
            acquaintances: Vec::new(),
        }
    }

    /// Starts a process on a node.
    pub fn start(&mut self, n: usize) {
        let time = self.time;
        let node = &mut self.nodes[n];
        if !matches!(node.state, State::Down) {
            return;
        }
        node.epoch += 1;
        node.clock.restart(time);
        let epoch = node.epoch;
        self.ids.insert(self.nodes[n].directory.id, n);
        self.tell(|| format!("n{} starts, process {epoch}", n + 1));
        if self.nodes[n].directory.cluster.is_some() {
            return self.open(n, false);
        }
        if self.options.nodes == 1 && n == 0 && self.watch.incarnation.is_none() {
            let me = self.member(n);
            let incarnation = Incarnation(self.rng.next_u64().max(1));
            let proposal = Proposal {
                cluster: cluster_id("sim", std::iter::once(me.id)),
                incarnation,
                shards: self.options.shards as u16,
                first: me.name.clone(),
                founders: vec![me],
            };
            return self.join(n, &proposal);
        }
        let forming = Forming::new(self.greeting(n));
        self.nodes[n].state = State::Forming(Box::new(forming));
        self.after(0, Event::Greet(n, epoch));
    }

    fn join(&mut self, n: usize, proposal: &Proposal) {
        let directory = &mut self.nodes[n].directory;
        directory.accepted = Some(proposal.clone());
        directory.cluster = Some((proposal.cluster, proposal.incarnation));
        self.watch.incarnation = Some(proposal.incarnation);
        self.open(n, true);
    }

    /// Opens a directory and lets a process run in it.
    fn open(&mut self, n: usize, fresh: bool) {
        match self.try_open(n, fresh) {
            Ok(process) => {
                self.nodes[n].state = State::Running(Box::new(process));
                self.start_bulk(n);
                for other in 0..self.nodes.len() {
                    if other != n {
                        self.after(0, Event::Connect(n, other));
                        self.after(0, Event::Connect(other, n));
                    }
                }
                self.wake(n);
            }
            Err(why) => {
                self.tell(|| format!("n{} refuses to start: {why}", n + 1));
                if self.nodes[n].directory.damaged {
                    self.reach("refused-damage");
                } else if !self.nodes[n].directory.disk.is_full() {
                    self.violate("I4", format!("n{} refuses data that nothing has damaged: {why}", n + 1));
                }
                self.nodes[n].state = State::Stopped(why);
            }
        }
    }

    fn try_open(&mut self, n: usize, fresh: bool) -> Result<Process, String> {
        let (options, time) = (self.options.clone(), self.time);
        let own = self.own;
        let directory = &mut self.nodes[n].directory;
        let (_, incarnation) = directory.cluster.expect("it belongs to a cluster");
        let founding = directory.accepted.clone();
        let me = directory.id;
        let told = |error: storage::StorageError| error.to_string();
        let (mut wal, mut recovered) =
            Wal::open(directory.disk.clone(), WalOptions { segment_bytes: options.segment_bytes }).map_err(told)?;
        let torn = recovered.torn_bytes > 0;
        let (mut shards, mut checkpoints, mut readers, mut snapshots) =
            (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for number in 0..options.shards as u16 {
            let shard = ShardId(number);
            let durable =
                directory.checkpoints.entry(shard).or_insert_with(|| MemoryCheckpoint::new(queue::schema())).clone();
            let mut checkpoint = SimCheckpoint::open(&durable);
            let log = recovered.shards.remove(&shard).unwrap_or_default();
            let info = ShardInfo { shard, incarnation };
            let first = match &founding {
                Some(founding) => {
                    Meta { configuration: Members::of_voters(founding.founders.iter().cloned()).encode(), ..FIRST }
                }
                None => Meta { configuration: Members::default().encode(), ..Meta::default() },
            };
            let restored =
                replica::restore::<QueueMachine>(info, &mut checkpoint, "its checkpoint", log, |checkpoint| {
                    checkpoint.commit(&first).map(|()| first)
                });
            let mut restored = restored.map_err(told)?;
            own.prepare(&mut restored.machine);
            readers.insert(shard, checkpoint.reader().map_err(told)?);
            snapshots.insert(shard, checkpoint.snapshots());
            checkpoints.insert(shard, checkpoint);
            shards.insert(shard, restored);
        }
        let before = std::mem::take(&mut directory.written);
        let damaged = directory.damaged;
        let mut overlooked = None;
        for (shard, restored) in &shards {
            let mut written = before.get(shard).cloned().unwrap_or_default();
            let unproven = if damaged { directory.unproven.get(shard).copied() } else { None };
            if let Some(problem) = reopened(&written, restored, unproven) {
                if !damaged {
                    return Err(format!("shard {shard}: {problem}"));
                }
                overlooked = Some(format!("n{} starts on a damaged log of shard {shard}: {problem}", n + 1));
            }
            if torn && restored.index.0 >= FIRST_ENTRY && !restored.entries.is_empty() {
                self.reached.entry("K10").and_modify(|count| *count += 1).or_insert(1);
            }
            written.checkpoint = restored.index.0;
            written.pending.clear();
            written.term = restored.hard_state.term.max(restored.term).0;
            written.durable_term = written.term;
            written.entries = restored.entries.iter().map(|entry| (entry.index.0, (entry.clone(), true))).collect();
            directory.written.insert(*shard, written);
        }
        directory.unproven.clear();
        directory.gathered.clear();
        directory.sealed = false;
        directory.log_bytes = wal.stats().bytes;
        let was_full = std::mem::take(&mut directory.was_full);
        if let Some(overlooked) = overlooked {
            self.violate("I4", overlooked);
        }
        if torn {
            self.reach("torn-tail");
        }
        if was_full {
            self.reach("K12");
        }
        let changes = |restored: &replica::RestoreShard<QueueMachine>| {
            restored.members.configuration.is_changing() || !restored.members.configuration.learners.is_empty()
        };
        if !fresh && shards.values().any(changes) {
            self.reach("K11");
        }
        let kept_from = shards.iter().map(|(shard, restored)| (*shard, restored.follow(*shard, &mut wal))).collect();
        let tick = self.tick_length();
        let config = ReplicaConfig {
            id: me,
            seed: self.rng.next_u64(),
            election_ticks: options.election_ms.div_ceil(tick.0) as usize,
            heartbeat_ticks: options.heartbeat_ms.div_ceil(tick.0) as usize,
            entry_operations_max: options.entry_operations as usize,
            entry_bytes_max: 256 << 10,
            message_bytes_max: options.message_bytes,
            lease_renewal: Millis(options.heartbeat_ms),
            leader_wait: Millis(options.leader_wait_ms),
            trailing_bytes: options.trailing_bytes,
        };
        let replica = Replica::new(config, shards)
            .map_err(|(shard, lost)| replica::lost_log("its log".into(), shard, lost).to_string())?;
        let runner_config = RunnerConfig {
            checkpoint_interval: Millis(options.checkpoint_ms),
            checkpoint_log_bytes: options.checkpoint_log_bytes,
            buffered: None,
        };
        let now = self.nodes[n].clock.now(time);
        let promotion = Promotion { lag: 20, after: Millis(500) };
        let mut process = Process {
            runner: Runner::new(runner_config, now, replica, wal, kept_from),
            leadership: Leadership::new(promotion),
            jobs: JobQueue::default(),
            job_running: false,
            checkpoints,
            readers,
            shown: Arc::default(),
            snapshots,
            messages: Default::default(),
            requests: (0..options.shards as u16).map(|shard| (ShardId(shard), Default::default())).collect(),
            controls: Default::default(),
            routes: BTreeMap::new(),
            next_tick: now.mono + tick,
            first_until: None,
            forwarded: BTreeMap::new(),
            parked: BTreeMap::new(),
            next_wait: 1,
            sending: BTreeMap::new(),
            receiving: BTreeMap::new(),
            arrived_from: BTreeMap::new(),
            seeds: SplitMix::new(self.rng.next_u64()),
            going: BTreeMap::new(),
            syncing: false,
            turn_at: None,
            busy_until: time,
        };
        process.leadership.heard(self.member(n));
        if fresh && founding.is_some_and(|founding| founding.first == self.nodes[n].name) {
            process.first_until = Some(now.mono + Millis(options.election_ms));
        }
        Ok(process)
    }

    fn tick_length(&self) -> Millis {
        Millis(self.options.heartbeat_ms.min(50))
    }

    /// Ends the process of a node; what its disk keeps is for `survival` to say.
    pub fn crash(&mut self, n: usize, survival: Survival) {
        if matches!(self.nodes[n].state, State::Down) {
            return;
        }
        self.tell(|| format!("n{} crashes, {survival:?} survives", n + 1));
        self.note_step(n);
        self.end_process(n);
        let rng = &mut self.rng;
        self.nodes[n].directory.disk.crash(survival, rng);
        self.nodes[n].state = State::Down;
    }

    /// Notes between which two steps of its storage a process ends.
    fn note_step(&mut self, n: usize) {
        let Some(process) = self.nodes[n].process() else { return };
        let job = process.jobs.0.front().filter(|_| process.job_running).and_then(StorageStep::of);
        let steps = [process.syncing.then_some(StorageStep::Write), job];
        steps.into_iter().flatten().for_each(|step| self.reach(step.mark()));
    }

    /// Lets a node that is to die in a step do so before the step is over.
    fn die_in(&mut self, n: usize, step: StorageStep, length: u64) {
        let node = &mut self.nodes[n];
        if node.dies_at == Some(step) {
            node.dies_at = None;
            let epoch = node.epoch;
            let moment = self.rng.below(length.max(1));
            self.after(moment, Event::Fault(Fault::Die(n, epoch)));
        }
    }

    /// A process ends: its connections break, and what it was asked is not known.
    pub(crate) fn end_process(&mut self, n: usize) {
        self.nodes[n].epoch += 1;
        self.nodes[n].state = State::Down;
        for other in 0..self.nodes.len() {
            if other != n {
                self.reset(n, other);
                self.reset(other, n);
            }
        }
        self.lose_requests_of(n);
    }

    /// A process ends by itself: it says why and does nothing any more.
    pub(crate) fn stop(&mut self, n: usize, why: String) {
        self.tell(|| format!("n{} stops: {why}", n + 1));
        self.end_process(n);
        self.nodes[n].state = State::Stopped(why);
    }

    // Turns.

    /// Lets the loop of a node go on soon, if it sleeps.
    pub(crate) fn wake(&mut self, n: usize) {
        let time = self.time;
        self.turn_by(n, time + 5);
    }

    fn turn_by(&mut self, n: usize, time: u64) {
        let epoch = self.nodes[n].epoch;
        let Some(process) = self.nodes[n].process_mut() else { return };
        if process.syncing {
            return;
        }
        let at = time.max(process.busy_until);
        if process.turn_at.is_none_or(|planned| at < planned) {
            process.turn_at = Some(at);
            self.plan(at, Event::Turn(n, epoch));
        }
    }

    /// Whether an event of a process must wait; it is planned anew then.
    pub(crate) fn is_paused(&mut self, n: usize, event: impl FnOnce() -> Event) -> bool {
        let until = self.nodes[n].paused_until;
        let paused = until > self.time;
        if paused {
            if self.nodes[n].postponed.is_empty() {
                self.plan(until, Event::GoOn(n));
            }
            self.nodes[n].postponed.push(event());
        }
        paused
    }

    /// A pause is over, or was to be.
    pub(crate) fn go_on(&mut self, n: usize) {
        let until = self.nodes[n].paused_until.max(self.time);
        if until > self.time {
            return self.plan(until, Event::GoOn(n));
        }
        for event in std::mem::take(&mut self.nodes[n].postponed) {
            self.plan(until, event);
        }
    }

    fn slowness(&self, n: usize) -> u64 {
        let (factor, until) = self.nodes[n].slow;
        if self.time < until { factor } else { 1 }
    }

    fn on_turn(&mut self, n: usize, epoch: u32) {
        let time = self.time;
        if self.nodes[n].epoch != epoch || self.nodes[n].process().is_none_or(|process| process.turn_at != Some(time)) {
            return;
        }
        if self.nodes[n].paused_until > time {
            let until = self.nodes[n].paused_until;
            self.nodes[n].process_mut().expect("it runs").turn_at = Some(until);
            return self.plan(until, Event::Turn(n, epoch));
        }
        let process = self.nodes[n].process_mut().expect("it runs");
        if process.syncing {
            // When it has synced it looks for what has come meanwhile.
            process.turn_at = None;
            return;
        }
        let cost = 15 * self.slowness(n);
        let now = self.nodes[n].clock.now(time);
        self.fold(&[1, n as u64, time, now.wall.0]);
        let process = self.nodes[n].process_mut().expect("it runs");
        process.turn_at = None;
        process.busy_until = time + cost;
        if let Err(why) = self.begin_turn(n, now) {
            return self.stop(n, why);
        }
        if self.violation.is_some() {
            return;
        }
        let node = &mut self.nodes[n];
        node.directory.disk.begin_sync();
        let runner = &mut node.process_mut().expect("it runs").runner;
        let written = runner.write(now);
        let log_bytes = runner.wal().stats().bytes;
        node.directory.log_grew_to(log_bytes);
        match written {
            Err(error) => self.stop(n, error.to_string()),
            Ok((_, true)) => {
                self.nodes[n].process_mut().expect("it runs").syncing = true;
                let slow = if time < self.nodes[n].slow_disk_until { self.options.slow_sync_us } else { 0 };
                let latency = (self.options.sync_us + slow) * self.slowness(n);
                let latency = (latency / 2 + self.rng.below(latency + 1)).min(DISK_MAX);
                self.after(latency, Event::Synced(n, epoch));
                self.die_in(n, StorageStep::Write, latency);
            }
            Ok((_, false)) => {
                self.nodes[n].directory.disk.end_sync();
                self.end_turn(n, now, false);
            }
        }
    }

    fn on_synced(&mut self, n: usize, epoch: u32) {
        if self.nodes[n].epoch != epoch || self.is_paused(n, || Event::Synced(n, epoch)) {
            return;
        }
        let now = self.nodes[n].clock.now(self.time);
        self.fold(&[2, n as u64, self.time]);
        self.nodes[n].process_mut().expect("it runs").syncing = false;
        self.nodes[n].directory.disk.end_sync();
        self.end_turn(n, now, true);
    }

    fn begin_turn(&mut self, n: usize, now: Now) -> Result<(), String> {
        let (own, tick, me) = (self.own, self.tick_length(), self.nodes[n].directory.id);
        let links = &self.links[n];
        let ids = &self.ids;
        let State::Running(process) = &mut self.nodes[n].state else { return Ok(()) };
        let ticks = now.mono >= process.next_tick;
        if ticks {
            // After a pause only one tick is made up for.
            process.next_tick = now.mono + tick;
            let out = process.leadership.is_out(now);
            process.runner.replica.stay_out(out);
            process.runner.on_event(now, ReplicaEvent::Tick);
        }
        if ticks && let Some(until) = process.first_until {
            let status = process.runner.replica.status();
            if now.mono >= until || status.iter().all(|shard| shard.consensus.leader != 0) {
                process.first_until = None;
            } else {
                let voters = &process.runner.replica.members(RECORDS).configuration.voters;
                let there = |id: &&u64| **id == me || ids.get(id).is_some_and(|other| links[*other].up);
                let asks = status.iter().all(|shard| shard.consensus.role == Role::Candidate);
                if !asks && 2 * voters.iter().filter(there).count() > voters.len() {
                    process.runner.replica.campaign();
                }
            }
        }
        while let Some(control) = process.controls.pop_front() {
            match control {
                Control::Forget(shard, wait) => process.runner.on_event(now, ReplicaEvent::Forget { shard, wait }),
                Control::Unreachable(member) => process.runner.on_event(now, ReplicaEvent::Unreachable { member }),
                Control::Change(changes, records) => {
                    let change = ReplicaEvent::Change { shard: RECORDS, changes, records, client: None };
                    process.runner.on_event(now, change);
                }
                Control::Admit(changes, newcomer, admission) => {
                    let admit = ReplicaEvent::Admit { changes, newcomer, admission, client: Caller::Nobody };
                    process.runner.on_event(now, admit);
                }
                Control::Token(step) => {
                    process.runner.on_event(now, ReplicaEvent::Token { step, client: Caller::Nobody });
                }
                Control::Arrived(arrived) => process.runner.on_arrived(now, arrived),
                Control::Installed(shard) => {
                    let reader = process.checkpoints[&shard].reader().map_err(|error| error.to_string())?;
                    process.readers.insert(shard, reader);
                    process.runner.installed(now, shard, &mut process.jobs);
                }
                Control::SnapshotSent(shard, to, arrived) => {
                    process.runner.on_event(now, ReplicaEvent::SnapshotSent { shard, to, arrived });
                }
                Control::Transfer(shard, to) => process.runner.on_event(now, ReplicaEvent::Transfer { shard, to }),
                Control::Saved(shard, index) => {
                    process.runner.saved(shard, index, &mut process.jobs).map_err(|error| error.to_string())?;
                }
                Control::Spare(spare) => process.runner.add_spare(spare),
                Control::Save => process.runner.on_save_asked(Box::new(|_| ())),
                Control::Restored(shard, members) => {
                    let reader = process.checkpoints[&shard].reader().map_err(|error| error.to_string())?;
                    process.readers.insert(shard, reader);
                    let prepare = |machine: &mut QueueMachine| own.prepare(machine);
                    let restored = process.runner.restored(now, shard, *members, prepare, &mut process.jobs);
                    restored.map_err(|error| error.to_string())?;
                }
                Control::Restore(step) => process.runner.on_event(now, World::restore_event(step)),
                Control::Show(number) => {
                    let shown = process.shown.clone();
                    process.runner.on_show_asked(Box::new(move || {
                        shown.lock().expect("nothing panics while it holds this lock").push(number);
                    }));
                }
            }
        }
        while let Some((shard, message)) = process.messages.pop_front() {
            process.runner.on_event(now, ReplicaEvent::Message { shard, message });
        }
        for (shard, requests) in &mut process.requests {
            while process.runner.replica.has_room(*shard)
                && let Some(event) = requests.pop_front()
            {
                process.runner.on_event(now, event);
            }
        }
        for event in process.leadership.events(now, me, &process.runner.replica) {
            process.runner.on_event(now, event);
        }
        let seeds = &mut process.seeds;
        let seed = || {
            let mut seed = [0; 16];
            seed[..8].copy_from_slice(&seeds.next_u64().to_le_bytes());
            seed[8..].copy_from_slice(&seeds.next_u64().to_le_bytes());
            seed
        };
        let begun = process.runner.begin(now, seed, |machine| own.prepare(machine), &mut process.jobs);
        match begun {
            Ok(()) => {}
            Err(Halt::Fault(fault)) => {
                return Err(format!("entry {} of shard {} cannot be applied", fault.index, fault.shard));
            }
            Err(Halt::Lost(shard, lost)) => {
                let why = replica::lost_log("its log".into(), shard, lost).to_string();
                if self.nodes[n].directory.damaged {
                    self.reach("noticed-loss");
                } else {
                    self.violate("I4", format!("n{}: {why}", n + 1));
                }
                return Err(why);
            }
        }
        self.swap(n);
        let process = self.nodes[n].process_mut().expect("it runs");
        let effects = &mut process.runner.effects;
        effects.signals.clear();
        effects.proposed.clear();
        let transitions = std::mem::take(&mut effects.transitions);
        let replies = std::mem::take(&mut effects.replies);
        let messages = std::mem::take(&mut effects.messages);
        let mut members_changed = false;
        for transition in transitions {
            match transition {
                Transition::Leader { shard, leader, .. } => {
                    process.leadership.changed(now);
                    process.routes.insert(shard, leader);
                }
                Transition::Members { .. } => members_changed = true,
                Transition::Role { .. }
                | Transition::Told { .. }
                | Transition::FirstWrite { .. }
                | Transition::Elections { .. }
                | Transition::Ready { .. } => {}
            }
        }
        let mut ended = Vec::new();
        if !process.arrived_from.is_empty() {
            let status = process.runner.replica.status();
            let installs = |shard: &ShardId| status.iter().any(|status| status.installing && status.shard == *shard);
            ended.extend(process.arrived_from.extract_if(.., |shard, _| !installs(shard)));
        }
        for (shard, (from, epoch)) in ended {
            self.send_back(n, from, epoch, Packet::Receipt { shard, receipt: Receipt::Installed });
        }
        if members_changed {
            self.forget_staged(n);
            // Whoever was removed is not listened to any more, and hears why when it dials again.
            for other in (0..self.nodes.len()).filter(|other| self.is_removed_at(n, *other)).collect::<Vec<_>>() {
                self.reset(other, n);
            }
        }
        self.look_at_writes(n);
        self.check_process(n);
        for (caller, reply) in replies {
            self.on_reply(n, caller, reply);
        }
        self.send_messages(n, messages);
        Ok(())
    }

    /// Notes what a turn is about to write.
    fn look_at_writes(&mut self, n: usize) {
        let Node { state: State::Running(process), directory, .. } = &mut self.nodes[n] else { return };
        let (written, gathered) = (&mut directory.written, &mut directory.gathered);
        for write in &process.runner.effects.writes {
            match write {
                Write::Entry(shard, entry) => {
                    let log = written.get_mut(shard).expect("every shard has a log");
                    let first = &mut gathered.entry(*shard).or_default().from;
                    *first = (*first).min(entry.index.0);
                    if log.entries.last_key_value().is_some_and(|(last, _)| *last >= entry.index.0) {
                        log.entries.split_off(&entry.index.0);
                    }
                    log.entries.insert(entry.index.0, (entry.clone(), false));
                    log.pending.push(entry.index.0);
                }
                Write::HardState(shard, state) => {
                    gathered.entry(*shard).or_default().hard_state = true;
                    written.get_mut(shard).expect("every shard has a log").term = state.term.0;
                }
                Write::Restart(shard, index, _) => {
                    let log = written.get_mut(shard).expect("every shard has a log");
                    log.entries.clear();
                    log.pending.clear();
                    log.checkpoint = index.0;
                }
            }
        }
    }

    fn end_turn(&mut self, n: usize, now: Now, syncs: bool) {
        let process = self.nodes[n].process_mut().expect("it runs");
        let messages = match process.runner.keep(now) {
            Err(error) => return self.stop(n, error.to_string()),
            Ok(messages) => messages,
        };
        self.check_synced(n, syncs);
        self.send_messages(n, messages);
        let process = self.nodes[n].process_mut().expect("it runs");
        process.runner.checkpoint(now, false, &mut process.jobs);
        self.look_where_shown(n);
        self.begin_job(n);
        self.rest(n);
    }

    /// Plans the next turn.
    fn rest(&mut self, n: usize) {
        let time = self.time;
        let now = self.nodes[n].clock.now(time);
        let process = self.nodes[n].process_mut().expect("it runs");
        let runner = &mut process.runner;
        let waits = !process.controls.is_empty()
            || !process.messages.is_empty()
            || process.requests.values().any(|queue| !queue.is_empty());
        if runner.is_collecting() || runner.replica.has_work(now) || waits {
            return self.turn_by(n, time + 1);
        }
        let next_tick = process.next_tick;
        let show = runner.next_show();
        if show.is_some_and(|moment| moment <= now.mono) {
            return self.violate("spin", format!("n{} would look again and again whether a round can begin", n + 1));
        }
        let wakeup = runner.replica.next_wakeup(now).into_iter().chain(show).fold(next_tick, Mono::min);
        if wakeup > now.mono {
            let settled = runner.settle();
            let log_bytes = runner.wal().stats().bytes;
            self.nodes[n].directory.log_grew_to(log_bytes);
            if let Err(error) = settled {
                return self.stop(n, error.to_string());
            }
        }
        // Clocks are read in whole milliseconds: what is due now may not be due before the next one.
        let when = self.nodes[n].clock.when(wakeup).max(time + 100);
        self.turn_by(n, when);
    }

    // Jobs.

    fn begin_job(&mut self, n: usize) {
        let epoch = self.nodes[n].epoch;
        let Some(process) = self.nodes[n].process_mut() else { return };
        if process.job_running {
            return;
        }
        let Some(job) = process.jobs.0.front() else { return };
        process.job_running = true;
        let length = match job {
            Job::Write(..) => 300,
            Job::Commit(..) | Job::Show(..) => 2_000,
            Job::Install(..) => self.options.install_us,
            Job::Drop(_) | Job::Restore(..) => 1,
            Job::MakeSpare(_) => 1_000,
        };
        let step = StorageStep::of(job);
        let length = ((length / 2 + self.rng.below(length + 1)) * self.slowness(n)).min(DISK_MAX);
        self.after(length, Event::Job(n, epoch));
        step.into_iter().for_each(|step| self.die_in(n, step, length));
    }

    fn on_job(&mut self, n: usize, epoch: u32) {
        if self.nodes[n].epoch != epoch || self.is_paused(n, || Event::Job(n, epoch)) {
            return;
        }
        self.fold(&[3, n as u64, self.time]);
        match self.do_job(n) {
            Ok(()) => {
                self.begin_job(n);
                self.wake(n);
            }
            Err(why) => self.stop(n, why),
        }
    }

    fn do_job(&mut self, n: usize) -> Result<(), String> {
        let State::Running(process) = &mut self.nodes[n].state else { return Ok(()) };
        process.job_running = false;
        let Some(job) = process.jobs.0.pop_front() else { return Ok(()) };
        let told = |error: storage::StorageError| error.to_string();
        let of = match &job {
            Job::Write(shard, _) | Job::Commit(shard, _) | Job::Show(shard, _) | Job::Install(shard, _) => {
                process.checkpoints.get_mut(shard)
            }
            Job::Drop(_) | Job::Restore(..) | Job::MakeSpare(_) => None,
        };
        let checkpoint = || of.expect("every shard has a checkpoint");
        match job {
            Job::Write(_, changes) => checkpoint().write(&changes).map_err(told)?,
            Job::Commit(shard, meta) => {
                checkpoint().commit(&meta).map_err(told)?;
                let written = self.nodes[n].directory.written.get_mut(&shard).expect("every shard has a log");
                written.checkpoint = written.checkpoint.max(meta.index.0);
                // Those before may still be sent, and looked at.
                written.entries = written.entries.split_off(&meta.index.0.saturating_sub(2_000));
                let process = self.nodes[n].process_mut().expect("it runs");
                process.controls.push_back(Control::Saved(shard, meta.index));
                self.reach("checkpoint");
            }
            Job::Show(shard, meta) => {
                let checkpoint = checkpoint();
                checkpoint.show(&meta).map_err(told)?;
                let reader = checkpoint.reader().map_err(told)?;
                let process = self.nodes[n].process_mut().expect("it runs");
                process.readers.insert(shard, reader);
                process.controls.push_back(Control::Saved(shard, meta.index));
                self.reach("shown");
            }
            Job::Install(shard, staged) => {
                let (index, term) = (staged.meta().index, staged.meta().term);
                checkpoint().install(*staged).map_err(told)?;
                let written = self.nodes[n].directory.written.get_mut(&shard).expect("every shard has a log");
                let others = |index: u64| self.watch.entry(shard, index).map(|entry| entry.term);
                let behind = written.entries.range(written.applied + 1..);
                if behind.into_iter().any(|(index, (entry, _))| others(*index).is_some_and(|term| term != entry.term)) {
                    *self.reached.entry("K05").or_default() += 1;
                }
                written.checkpoint = index.0;
                written.applied = written.applied.max(index.0);
                if written.entries.get(&index.0).is_some_and(|(entry, _)| entry.term != term) {
                    written.entries.clear();
                }
                let process = self.nodes[n].process_mut().expect("it runs");
                process.controls.push_back(Control::Installed(shard));
                self.reach("installed");
            }
            Job::Drop(garbage) => drop(garbage),
            Job::Restore(_, swap) => {
                let Node { state: State::Running(process), directory, .. } = &mut self.nodes[n] else { return Ok(()) };
                let Some((_, mut part)) = directory.staged.remove(&swap.shard) else {
                    return Err("what was staged is gone".into());
                };
                let checkpoint = process.checkpoints.get_mut(&swap.shard).expect("every shard has a checkpoint");
                let members = restores::install(checkpoint, &mut part, &swap).map_err(told)?;
                let written = directory.written.get_mut(&swap.shard).expect("every shard has a log");
                written.checkpoint = written.checkpoint.max(swap.index.0);
                process.controls.push_back(Control::Restored(swap.shard, Box::new(members)));
            }
            Job::MakeSpare(job) => {
                let spare = job.run().map_err(told)?;
                process.controls.push_back(Control::Spare(spare));
            }
        }
        Ok(())
    }

    // Messages.

    fn send_messages(&mut self, n: usize, messages: Vec<(ShardId, Message)>) {
        if messages.is_empty() {
            return;
        }
        if self.nodes[n].directory.disk.has_failed() {
            self.violate("I9", format!("n{} goes on after its disk has failed", n + 1));
        }
        let mut frames: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        for (shard, message) in messages {
            let target = self.place_of(message.to());
            // Whoever does not know a member, or no member at all yet, answers it if it has introduced itself.
            let known = |process: &Process| {
                let members = process.runner.replica.members(RECORDS);
                let is_removed = members.was_removed(message.to());
                members.get(message.to()).is_some()
                    || !is_removed && target.is_some_and(|other| self.links[other][n].up)
            };
            let Some(to) = target.filter(|_| self.nodes[n].process().is_some_and(known)) else {
                if message.snapshot().is_some()
                    && let Some(process) = self.nodes[n].process_mut()
                {
                    process.controls.push_back(Control::SnapshotSent(shard, message.to(), false));
                    self.wake(n);
                }
                continue;
            };
            if message.snapshot().is_some() {
                self.begin_transfer(n, to, shard, message);
                continue;
            }
            let mut bytes = Vec::with_capacity(message.size());
            message.encode(&mut bytes);
            self.check_sent(n, shard, &bytes);
            let frame = frames.entry(to).or_default();
            frame.extend_from_slice(&shard.0.to_le_bytes());
            frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            frame.extend_from_slice(&bytes);
        }
        for (to, frame) in frames {
            self.fold(&[4, n as u64, to as u64, u64::from(crc32c(0, &frame))]);
            self.send(n, to, Packet::Messages(frame.into()));
        }
    }

    /// Sends a packet by the connection that `from` has made. False: there is none.
    pub(crate) fn send(&mut self, from: usize, to: usize, packet: Packet) -> bool {
        let link = &self.links[from][to];
        if !link.up {
            return false;
        }
        let connection = (from, link.epoch);
        self.carry(from, to, Some(connection), packet);
        true
    }

    /// Answers by the connection that `to` has made, if it is still the same.
    pub(crate) fn send_back(&mut self, from: usize, to: usize, epoch: u32, packet: Packet) {
        let link = &self.links[to][from];
        if link.up && link.epoch == epoch {
            self.carry(from, to, Some((to, epoch)), packet);
        }
    }

    fn carry(&mut self, from: usize, to: usize, connection: Option<(usize, u32)>, packet: Packet) {
        let (time, weather) = (self.time, self.weather);
        let delay = weather.delay(&mut self.rng);
        let link = &mut self.links[from][to];
        let datagram = self.options.datagram == 1 && self.healed.is_none() && matches!(packet, Packet::Messages(_));
        if datagram {
            if link.is_blocked(time) || happens(&mut self.rng, weather.loss) {
                return self.faults.count("lost");
            }
            let twice = happens(&mut self.rng, weather.duplicate).then(|| packet.clone());
            let overtaken = happens(&mut self.rng, weather.reorder);
            let arrival = if overtaken { time + delay + self.rng.below(50_000) } else { link.arrival(time, delay) };
            self.plan(arrival, Event::Deliver { from, to, connection, packet });
            if overtaken {
                self.faults.count("reordered");
            }
            if let Some(packet) = twice {
                self.faults.count("duplicated");
                let again = time + delay + self.rng.below(100_000);
                self.plan(again, Event::Deliver { from, to, connection, packet });
            }
            return;
        }
        // What is sent into a netsplit waits for its end, if the connection lives that long.
        let begin = time.max(link.blocked_until);
        let arrival = link.arrival(begin, delay);
        self.plan(arrival, Event::Deliver { from, to, connection, packet });
    }

    /// Sends a packet without a connection of its own.
    fn cast(&mut self, from: usize, to: usize, packet: Packet) {
        if !self.links[from][to].is_blocked(self.time) {
            let delay = self.weather.delay(&mut self.rng);
            self.after(delay, Event::Deliver { from, to, connection: None, packet });
        }
    }

    fn on_connect(&mut self, from: usize, to: usize) {
        let link = &self.links[from][to];
        let runs = |n: usize| self.nodes[n].process().is_some();
        if link.up || !runs(from) || self.time < link.retry_at {
            return;
        }
        let blocked = link.is_blocked(self.time) || self.links[to][from].is_blocked(self.time);
        if !runs(to) || blocked || self.nodes[to].paused_until > self.time {
            let delay = 200_000 + self.rng.below(200_000);
            self.links[from][to].retry_at = self.time + delay;
            return self.after(delay, Event::Connect(from, to));
        }
        if self.is_removed_at(to, from) {
            return self.stop(from, "it was removed from the cluster".into());
        }
        self.links[from][to].up = true;
        self.fold(&[5, from as u64, to as u64]);
        self.wake(from);
    }

    /// Whether a node knows that another one is no member any more.
    fn is_removed_at(&self, n: usize, other: usize) -> bool {
        let id = self.nodes[other].directory.id;
        self.nodes[n].process().is_some_and(|process| process.runner.replica.members(RECORDS).was_removed(id))
    }

    /// A connection breaks.
    pub(crate) fn reset(&mut self, from: usize, to: usize) {
        if !self.links[from][to].up {
            return;
        }
        self.links[from][to].reset();
        self.fold(&[6, from as u64, to as u64]);
        let member = self.nodes[to].directory.id;
        if let Some(process) = self.nodes[from].process_mut() {
            process.controls.push_back(Control::Unreachable(member));
            let given_up = process.sending.extract_if(.., |(id, _), _| *id == member);
            let shards: Vec<ShardId> = given_up.map(|((_, shard), _)| shard).collect();
            process.controls.extend(shards.into_iter().map(|shard| Control::SnapshotSent(shard, member, false)));
            let lost: Vec<u64> =
                process.forwarded.extract_if(.., |_, (node, _)| *node == to).map(|(number, _)| number).collect();
            for number in lost {
                self.conclude_unknown(number);
            }
            self.wake(from);
            let delay = 50_000 + self.rng.below(300_000);
            self.links[from][to].retry_at = self.time + delay;
            self.after(delay, Event::Connect(from, to));
        }
        if let Some(process) = self.nodes[to].process_mut() {
            let parked = process.parked.extract_if(.., |(node, _), _| *node == from);
            let left: Vec<_> = parked.map(|(_, parked)| parked).collect();
            for (shard, wait, gone) in left {
                gone.set(true);
                process.controls.push_back(Control::Forget(shard, wait));
            }
            self.wake(to);
        }
    }

    /// Nothing gets from one node to another for a while. Connections that live longer than anybody waits for them break.
    pub(crate) fn block(&mut self, from: usize, to: usize, length: u64) {
        let until = self.time + length;
        let noticed = 500_000 + self.rng.below(NOTICED_MAX - 500_000);
        let link = &mut self.links[from][to];
        link.blocked_until = link.blocked_until.max(until);
        let epoch = link.epoch;
        if length > noticed {
            self.after(noticed, Event::Reset(from, to, epoch));
            let back = self.links[to][from].epoch;
            if self.rng.one_in(2) {
                self.after(noticed, Event::Reset(to, from, back));
            }
        }
    }

    fn on_packet(&mut self, from: usize, to: usize, connection: Option<(usize, u32)>, packet: Packet) {
        if let Some((dialler, epoch)) = connection {
            let other = if dialler == from { to } else { from };
            if self.links[dialler][other].epoch != epoch || !self.links[dialler][other].up {
                return;
            }
        }
        self.fold(&[7, from as u64, to as u64, self.time]);
        match packet {
            Packet::Messages(bytes) => self.on_messages(from, to, &bytes),
            Packet::Forward { request, shard, wait, operations } => {
                let epoch = connection.expect("it came by one").1;
                self.on_forward(from, to, epoch, (request, shard, wait), &operations);
            }
            Packet::Answer { request, reply } => self.on_remote_answer(to, request, &reply),
            Packet::Forget { request } => {
                if let Some(process) = self.nodes[to].process_mut()
                    && let Some((shard, wait, gone)) = process.parked.remove(&(from, request))
                {
                    gone.set(true);
                    process.controls.push_back(Control::Forget(shard, wait));
                    self.wake(to);
                }
            }
            Packet::Chunk(piece) => {
                let epoch = connection.expect("it came by one").1;
                self.on_chunk(from, to, epoch, &piece);
            }
            Packet::Receipt { shard, receipt } => self.on_receipt(to, from, shard, receipt),
            Packet::Greeting(bytes) => self.on_greeting(from, to, &bytes),
            Packet::Ask { greeting } => self.on_ask(from, to, &greeting),
            Packet::Admitted(cluster, incarnation) => self.on_admitted(to, cluster, incarnation),
        }
    }

    fn on_messages(&mut self, from: usize, to: usize, bytes: &Bytes) {
        let sender = self.nodes[from].directory.id;
        let Some(process) = self.nodes[to].process_mut() else { return };
        // The handshake refuses who is no member any more.
        if process.runner.replica.members(RECORDS).was_removed(sender) {
            return;
        }
        let mut place = 0;
        while place < bytes.len() {
            let shard = u16::from_le_bytes([bytes[place], bytes[place + 1]]);
            let length = u32::from_le_bytes(*bytes[place + 2..].first_chunk().expect("a frame is whole")) as usize;
            place += 6;
            let message = Message::decode(&bytes.slice(place..place + length)).expect("what was encoded reads back");
            place += length;
            if process.messages.len() < MESSAGES_MAX {
                process.messages.push_back((ShardId(shard), message));
            }
        }
        self.wake(to);
    }

    // Snapshots.

    fn begin_transfer(&mut self, n: usize, to: usize, shard: ShardId, message: Message) {
        let (time, up) = (self.time, self.links[n][to].up);
        let member = message.to();
        let process = self.nodes[n].process_mut().expect("it runs");
        let busy = process.sending.contains_key(&(member, shard));
        if !up || busy {
            process.controls.push_back(Control::SnapshotSent(shard, member, false));
            return self.wake(n);
        }
        let copy = match process.snapshots[&shard].take() {
            Ok(copy) => std::sync::Arc::new(copy),
            Err(_) => {
                process.controls.push_back(Control::SnapshotSent(shard, member, false));
                return self.wake(n);
            }
        };
        let meta = &copy.snapshot().meta;
        let members = Members::decode(&meta.configuration).expect("a checkpoint's members read back");
        let of = SnapshotOf { index: meta.index, term: meta.term, configuration: members.configuration };
        let mut bytes = Vec::new();
        message.with_snapshot(&of).encode(&mut bytes);
        let sending = Sending { copy, message: bytes.into(), sent: 0, heard: time };
        process.sending.insert((member, shard), sending);
        self.put_chunk(n, to, member, shard, 0, 0);
    }

    fn put_chunk(&mut self, n: usize, to: usize, member: u64, shard: ShardId, offset: u64, length: usize) {
        let process = self.nodes[n].process_mut().expect("it runs");
        let Some(sending) = process.sending.get(&(member, shard)) else { return };
        let mut buffer = vec![0; length];
        let read = sending.copy.read_at(offset, &mut buffer).expect("a copy in memory can be read");
        buffer.truncate(read);
        let snapshot = sending.copy.snapshot().clone();
        let message = sending.message.clone();
        let piece = Piece { shard, snapshot, message, offset, bytes: buffer.into() };
        self.send(n, to, Packet::Chunk(Box::new(piece)));
    }

    fn on_chunk(&mut self, from: usize, to: usize, epoch: u32, piece: &Piece) {
        let shard = piece.shard;
        let receipt = self.take_chunk(to, piece);
        if receipt == Some(Receipt::Installed) {
            // The sender hears of it when consensus has decided, and it is done.
            let process = self.nodes[to].process_mut().expect("it has taken a piece");
            process.arrived_from.insert(shard, (from, epoch));
        } else if let Some(receipt) = receipt {
            self.send_back(to, from, epoch, Packet::Receipt { shard, receipt });
        }
    }

    fn take_chunk(&mut self, n: usize, piece: &Piece) -> Option<Receipt> {
        let Piece { shard, snapshot, message, offset, bytes } = piece;
        let (shard, offset) = (*shard, *offset);
        let incarnation = self.nodes[n].directory.cluster?.1;
        let process = self.nodes[n].process_mut()?;
        let message = Message::decode(message).ok()?;
        let earlier = process.receiving.remove(&shard);
        let mut incoming = process.snapshots[&shard].receive(snapshot, earlier).ok()?;
        if offset == incoming.received() && !bytes.is_empty() {
            incoming.write(offset, bytes).ok()?;
        }
        let received = incoming.received();
        if received < snapshot.length {
            process.receiving.insert(shard, incoming);
            return Some(Receipt::Arrived(received));
        }
        let Ok(mut staged) = incoming.finish() else { return Some(Receipt::Refused) };
        let Ok(members) = Members::decode(&staged.meta().configuration) else { return Some(Receipt::Refused) };
        let info = ShardInfo { shard, incarnation: members.incarnation(incarnation) };
        let machine = <QueueMachine as base::machine::StateMachine>::restore(info, &mut staged);
        let Ok(machine) = machine else { return Some(Receipt::Refused) };
        let meta = snapshot.meta.clone();
        let arrived = Arrived { shard, message, meta, staged, machine, members, done: Box::new(|| ()) };
        process.controls.push_back(Control::Arrived(Box::new(arrived)));
        self.wake(n);
        Some(Receipt::Installed)
    }

    fn on_receipt(&mut self, n: usize, from: usize, shard: ShardId, receipt: Receipt) {
        let (time, member) = (self.time, self.nodes[from].directory.id);
        let Some(process) = self.nodes[n].process_mut() else { return };
        let Some(sending) = process.sending.get_mut(&(member, shard)) else { return };
        sending.heard = time;
        match receipt {
            Receipt::Arrived(there) => {
                let length = sending.copy.snapshot().length;
                sending.sent = sending.sent.max(there);
                let mut pieces = Vec::new();
                while sending.sent < length && sending.sent - there < WINDOW_BYTES {
                    pieces.push(sending.sent);
                    sending.sent = (sending.sent + CHUNK_BYTES as u64).min(length);
                }
                for offset in pieces {
                    self.put_chunk(n, from, member, shard, offset, CHUNK_BYTES);
                }
            }
            Receipt::Installed | Receipt::Refused => {
                process.sending.remove(&(member, shard));
                let arrived = receipt == Receipt::Installed;
                process.controls.push_back(Control::SnapshotSent(shard, member, arrived));
                self.wake(n);
            }
        }
    }

    /// Gives up what nobody answers to.
    pub(crate) fn give_up_transfers(&mut self) {
        for n in 0..self.nodes.len() {
            let time = self.time;
            let Some(process) = self.nodes[n].process_mut() else { continue };
            let late: Vec<_> =
                process.sending.extract_if(.., |_, sending| time - sending.heard > TRANSFER_MAX).collect();
            for ((member, shard), _) in late {
                process.controls.push_back(Control::SnapshotSent(shard, member, false));
            }
        }
    }

    // How clusters begin, and who joins.

    fn on_greet(&mut self, n: usize, epoch: u32) {
        if self.nodes[n].epoch != epoch || self.is_paused(n, || Event::Greet(n, epoch)) {
            return;
        }
        let mono = self.nodes[n].clock.now(self.time).mono;
        let random = Incarnation(self.rng.next_u64().max(1));
        let State::Forming(forming) = &mut self.nodes[n].state else { return };
        let steps = forming.tick(mono, random);
        let mut bytes = Vec::new();
        forming.greeting().encode(&mut bytes);
        let bytes = Bytes::from(bytes);
        for other in (0..self.nodes.len()).filter(|other| *other != n) {
            self.cast(n, other, Packet::Greeting(bytes.clone()));
        }
        self.take_steps(n, steps);
        if matches!(self.nodes[n].state, State::Forming(_)) {
            self.after(100_000, Event::Greet(n, epoch));
        }
    }

    fn on_greeting(&mut self, from: usize, n: usize, bytes: &Bytes) {
        let greeting = Greeting::decode(&mut base::codec::Reader::new(bytes)).expect("what was encoded reads back");
        let mono = self.nodes[n].clock.now(self.time).mono;
        match &mut self.nodes[n].state {
            State::Forming(forming) => {
                let steps = forming.on_greeting(mono, greeting);
                self.take_steps(n, steps);
            }
            // Members have other ways to speak to each other.
            State::Running(_) if greeting.cluster.is_some() => {}
            State::Running(_) => {
                let mut bytes = Vec::new();
                self.greeting(n).encode(&mut bytes);
                self.cast(n, from, Packet::Greeting(bytes.into()));
            }
            State::Down | State::Stopped(_) => {}
        }
    }

    fn take_steps(&mut self, n: usize, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Accept(proposal) => {
                    self.nodes[n].directory.accepted = Some(proposal.clone());
                    if let State::Forming(forming) = &mut self.nodes[n].state {
                        forming.on_accepted(proposal);
                    }
                }
                Step::Formed(proposal) => {
                    self.tell(|| format!("n{} belongs to a new cluster", n + 1));
                    return self.join(n, &proposal);
                }
                Step::Ask(address) => {
                    let Some(to) = self.nodes.iter().position(|node| format!("{}:7000", node.name) == address) else {
                        continue;
                    };
                    let mut bytes = Vec::new();
                    self.greeting(n).encode(&mut bytes);
                    self.cast(n, to, Packet::Ask { greeting: bytes.into() });
                }
                Step::Several(_) => {}
                Step::Conflict(what) => self.tell(|| format!("n{} cannot found: {what:?}", n + 1)),
            }
        }
    }

    /// A node wants to become a member.
    fn on_ask(&mut self, from: usize, n: usize, bytes: &Bytes) {
        let greeting = Greeting::decode(&mut base::codec::Reader::new(bytes)).expect("what was encoded reads back");
        let Some((cluster, incarnation)) = self.nodes[n].directory.cluster else { return };
        let me = self.nodes[n].directory.id;
        let up: Vec<bool> = self.links[n].iter().map(|link| link.up).collect();
        let ids = &self.ids;
        let nodes: Vec<u64> = self.nodes.iter().map(|node| node.directory.id).collect();
        let wall = self.nodes[n].clock.now(self.time).wall;
        let Some(process) = self.nodes[n].process_mut() else { return };
        let members = process.runner.replica.members(RECORDS);
        let newcomer = greeting.me;
        if process.runner.replica.leader(RECORDS) != me || members.was_removed(newcomer.id) {
            return;
        }
        if members.get(newcomer.id).is_some() {
            return self.cast(n, from, Packet::Admitted(cluster.0, incarnation.0));
        }
        let is_up = |id: u64| ids.get(&id).is_some_and(|place| nodes[*place] == id && up[*place]);
        let taken = members.named(&newcomer.name).is_some_and(|present| is_up(present.id));
        if taken || members.configuration.learners.len() >= 4 {
            return;
        }
        let (admission, token) = token_for(newcomer.id, wall);
        match members.tokens().judge(&admission) {
            Ok(()) => {
                let is_lost = |id: &&u64| members.get(**id).is_some_and(|learner| learner.name == newcomer.name);
                let lost = members.configuration.learners.iter().filter(is_lost);
                let mut changes = vec![MemberChange::AddLearner(newcomer.id)];
                changes.extend(lost.map(|id| MemberChange::Remove(*id)));
                process.controls.push_back(Control::Admit(changes, newcomer, admission));
            }
            // Its operator makes one.
            Err(Invalid::Unknown) => {
                process.controls.push_back(Control::Token(TokenStep::Create { token, at: admission.at }));
            }
            Err(_) => process.controls.push_back(Control::Token(TokenStep::Revoke(token.id))),
        }
        self.wake(n);
    }

    fn on_admitted(&mut self, n: usize, cluster: u128, incarnation: u64) {
        if let State::Forming(_) = self.nodes[n].state {
            self.tell(|| format!("n{} is admitted", n + 1));
            let directory = &mut self.nodes[n].directory;
            directory.cluster = Some((replica::forming::ClusterId(cluster), Incarnation(incarnation)));
            let replaces = directory.replaces;
            self.nodes[n].epoch += 1;
            self.reach("admitted");
            if replaces {
                self.reach("K20");
            }
            self.open(n, true);
        }
    }

    /// Where every group stands on every node, for whoever debugs.
    pub(crate) fn tell_standing(&mut self) {
        let mut lines = Vec::new();
        for (n, node) in self.nodes.iter().enumerate() {
            let Some(process) = node.process() else {
                let state = match &node.state {
                    State::Down => "is down".to_owned(),
                    State::Forming(_) => "has no cluster".to_owned(),
                    State::Stopped(why) => format!("has stopped: {why}"),
                    State::Running(_) => String::new(),
                };
                lines.push(format!("n{} {state}", n + 1));
                continue;
            };
            let name = |id: &u64| self.place_of(*id).map_or_else(|| format!("{id:x}"), |n| format!("n{}", n + 1));
            for status in process.runner.replica.status() {
                let consensus = status.consensus;
                let configuration = &process.runner.replica.members(status.shard).configuration;
                let voters: Vec<String> = configuration.voters.iter().map(name).collect();
                let learners: Vec<String> = configuration.learners.iter().map(name).collect();
                let changing = if configuration.is_changing() { " changing" } else { "" };
                lines.push(format!(
                    "n{} shard {} {:?} term {} led by {} applied {} committed {} last {} first {} checkpoint {} ready {} installing {} voters {voters:?} learners {learners:?}{changing}",
                    n + 1, status.shard, consensus.role, consensus.term, name(&consensus.leader), status.applied,
                    consensus.commit, consensus.last, consensus.first, status.checkpoint, status.ready, status.installing
                ));
            }
        }
        for line in lines {
            self.tell(|| line);
        }
    }

    /// Where the data directory of this id is, if it still exists.
    pub(crate) fn place_of(&self, id: u64) -> Option<usize> {
        self.ids.get(&id).copied().filter(|n| self.nodes[*n].directory.id == id)
    }

    /// The nodes that run and belong to the cluster.
    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| self.nodes[*n].process().is_some()).collect()
    }

    /// Who leads a shard, if somebody does and takes writes.
    pub(crate) fn leader(&self, shard: ShardId) -> Option<usize> {
        self.running().into_iter().find(|n| {
            let status = self.nodes[*n].process().map(|process| process.runner.replica.status());
            status.is_some_and(|all| all.iter().any(|status| status.shard == shard && status.ready))
        })
    }
}

/// How long a join token holds, ms: longer than any clock jumps.
const TOKEN_HOLDS: u64 = 7_200_000;

/// How a newcomer is to be admitted, and the token that its operator makes for it: every second one needs one, and some never vote.
fn token_for(id: u64, wall: base::ScheduleTime) -> (Joining, JoinToken) {
    let replica = id.is_multiple_of(7);
    let expires = base::ScheduleTime(wall.0 + TOKEN_HOLDS);
    let token = JoinToken { id, key: TokenKey([0; 32]), expires, once: true, replica, uses: 0 };
    (Joining { token: id.is_multiple_of(2).then_some(id), at: wall, replica }, token)
}

/// What is wrong with what a process finds in its directory, if anything is.
fn reopened<S>(written: &Written, restored: &replica::RestoreShard<S>, unproven: Option<Unproven>) -> Option<String> {
    let unproven = unproven.unwrap_or_default();
    if restored.index.0 < written.checkpoint {
        return Some(format!("I1: a durable checkpoint at {} is gone", written.checkpoint));
    }
    let known = restored.hard_state.term.max(restored.term);
    if known.0 < written.promised && !unproven.hard_state {
        return Some(format!("I3: term {} was promised, and only {known} is known", written.promised));
    }
    let has = |index: u64, entry: &Entry| {
        index <= restored.index.0
            || restored.entries.iter().any(|found| found.index == Index(index) && found.term >= entry.term)
    };
    let proven = written.entries.range(..unproven.from);
    let lost = proven.into_iter().find(|(index, (entry, durable))| *durable && !has(**index, entry));
    lost.map(|(index, _)| format!("I1: entry {index} was durable and is gone"))
}
