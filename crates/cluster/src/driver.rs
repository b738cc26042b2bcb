//! The loop: one thread that runs the replica of a node.
//!
//! A turn takes what clients have queued, lets the replica do its work, hands out its replies, and then writes and syncs the log. What
//! clients queue during the sync is the next turn's batch, so no timer decides how large one is; and the replies of a turn leave before the
//! sync of the next one begins.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base::machine::StateMachine;
use base::rows::Changes;
use base::{Incarnation, Index, Millis, Mono, ShardId, Term};
use replica::{
    Effects, Election, Event, Happening, Members, Message, MustSync, Now, Replica, ReplicaConfig, Role, Told,
    Transition, Write,
};
use storage::checkpoint::Meta;
use storage::checkpoint::RowReader;
use storage::disk::Disk;
use storage::wal::Wal;
use tokio::sync::oneshot;

use crate::checkpoints::{Background, Job, READERS, Saved};
use crate::clock::Clock;
use crate::events::elections::Elections;
use crate::events::story::{Scene, configuration};
use crate::events::{Draft, Level, role_name};
use crate::inbox::Control;
use crate::lane::{Replies, ReplyTo};
use crate::leadership::{Leadership, Promotion};
use crate::looks::Looks;
use crate::node::{Common, Durability, LoopHooks, NodeConfig, NodeError, NodeStatus, Observe, Stage, Start};
use crate::open::{Opened, lost_log, open};
use crate::peer::Arrived;
use crate::rows::{Fail, Rows};

/// Rows collected for a checkpoint in one turn: about 0.2 ms.
const ROWS_PER_TURN: usize = 512;

/// To show readers what is new takes no more than this part of the time.
const SHOW_SHARE: u32 = 10;

/// Nothing sleeps longer: the loop shows that it lives.
const SLEEP_MAX: Duration = Duration::from_millis(1_000);

/// A checkpoint being collected or written.
struct Saving {
    shard: ShardId,
    meta: Meta,
    /// When it was the present state.
    at: Mono,
    /// Collected, and waiting for room in the queue of the checkpoint thread.
    waiting: Option<Changes>,
    /// Everything is collected.
    complete: bool,
    /// Everything is handed over.
    committed: bool,
}

/// Who has asked for a round of checkpoints.
#[derive(Default)]
struct Asked {
    /// For durable ones.
    saves: Vec<oneshot::Sender<BTreeMap<ShardId, Index>>>,
    /// For any that readers see.
    shows: Vec<oneshot::Sender<()>>,
}

/// What a shard goes on with when a snapshot has become its checkpoint.
struct Installing<S> {
    index: Index,
    machine: S,
    members: Members,
    done: tokio::sync::oneshot::Sender<()>,
}

pub(crate) struct Driver<S: StateMachine, D: Disk> {
    config: NodeConfig,
    clock: Clock,
    common: Arc<Common<S>>,
    prepare: Box<dyn Fn(&mut S) + Send>,
    observe: Observe<S>,
    /// Snapshots that consensus is asked about in this turn.
    arrived: BTreeMap<ShardId, Box<Arrived<S>>>,
    /// Snapshots that become checkpoints just now.
    installing: BTreeMap<ShardId, Installing<S>>,
    replica: Replica<S, ReplyTo<S>>,
    wal: Wal<D>,
    background: Background<D>,
    effects: Effects<S, ReplyTo<S>>,
    /// Entries proposed here and not committed yet, by shard, with the moment of the proposal.
    proposed: BTreeMap<ShardId, VecDeque<(Index, Instant)>>,
    /// Replies of this turn by lane.
    replies: Vec<Replies<S>>,
    next_tick: Mono,
    last_sync: Mono,
    /// The shards that the present round of checkpoints still has to save.
    to_save: Vec<ShardId>,
    saving: Option<Saving>,
    /// Whether the present round makes its checkpoints durable, or only shows them.
    is_durable: bool,
    /// Who has asked for checkpoints that the next round makes, and who for those of the present one.
    asked: [Asked; 2],
    /// Time spent on showing in the present round, and from when on something may be shown again.
    showing: Duration,
    show_from: Mono,
    last_checkpoint: Mono,
    log_bytes_at_checkpoint: u64,
    /// What the log must keep, by shard: everything from here on.
    kept_from: BTreeMap<ShardId, Index>,
    leadership: Leadership,
    /// Until then this node asks for votes without waiting for a timeout; nothing: it waits.
    first_until: Option<Mono>,
    /// Since when a shard has its leader, or none.
    leader_since: BTreeMap<ShardId, Mono>,
    /// How long elections take.
    elections: Elections,
    next_status: Mono,
    /// Groups whose configuration was told.
    configured: BTreeSet<ShardId>,
    stopping: bool,
    /// A round of checkpoints was begun after the node was asked to stop.
    saved_since_stop: bool,
}

impl<S: StateMachine, D: Disk> Driver<S, D> {
    /// Opens the node's data and runs it until it is stopped.
    pub(crate) fn run(disk: D, folder: Option<&Path>, start: Start<S>) -> Result<(), NodeError> {
        let Start { config, clock, common, hooks, identity, founding, fresh } = start;
        let LoopHooks { prepare, observe } = hooks;
        let progress = |text: String| {
            common.status.send_modify(|status| status.stage = Stage::Starting(text));
        };
        // In memory, segments need not be large: nothing is pre-zeroed for the sake of a sync.
        let segment_bytes = if folder.is_some() { config.segment_bytes } else { config.segment_bytes.min(4 << 20) };
        let Opened { wal, mut shards, checkpoints, readers, snapshots } =
            open::<S, D>(disk, folder, &identity, founding.as_ref(), segment_bytes, progress)?;
        let kept_from = shards.iter().map(|(shard, restored)| (*shard, restored.index.next())).collect();
        for (shard, restored) in &shards {
            common.shown.set(*shard, restored.index, clock.now().mono);
        }
        for restored in shards.values_mut() {
            prepare(&mut restored.machine);
        }
        let tick = tick(&config);
        let replica_config = ReplicaConfig {
            id: identity.incarnation.0,
            seed: getrandom::u64().expect("the operating system has random numbers"),
            election_ticks: (config.election_timeout.0.div_ceil(tick.0)) as usize,
            heartbeat_ticks: (config.heartbeat.0.div_ceil(tick.0)) as usize,
            entry_operations_max: config.entry_operations_max,
            entry_bytes_max: config.entry_bytes_max,
            lease_renewal: config.heartbeat,
            leader_wait: config.leader_wait,
            trailing_bytes: config.trailing_log_bytes,
        };
        common.saving.snapshots.get_or_init(|| snapshots.clone());
        if let Some(peers) = common.peers.get() {
            peers.snapshots.get_or_init(|| snapshots);
        }
        let replica = Replica::new(replica_config, shards).map_err(|(shard, lost)| lost_log(folder, shard, lost))?;
        let failed = |cause| {
            NodeError::Storage(storage::StorageError::Failed { doing: "start", file: "a thread".into(), cause })
        };
        let inbox = common.inbox.clone();
        let fail: Fail = Arc::new(move |failure| inbox.control(Control::Failed(failure)));
        let [single, quick, slow] = readers;
        let looks = Looks::start(quick, slow, &fail).map_err(failed)?;
        let rows = Rows::start(single, folder.map(Path::to_owned), fail, looks).map_err(failed)?;
        *common.rows.lock().expect("nothing panics while it holds this lock") = Some(rows);
        let (background, thread) = Background::start(checkpoints, common.inbox.clone()).map_err(failed)?;
        let promotion = config
            .peers
            .as_ref()
            .map_or(Promotion::default(), |peers| Promotion { lag: peers.promote_lag, after: peers.promote_after });
        let now = clock.now();
        let mut driver = Driver {
            config,
            clock,
            common,
            prepare,
            observe,
            arrived: BTreeMap::new(),
            installing: BTreeMap::new(),
            replica,
            wal,
            background,
            effects: Effects::default(),
            proposed: BTreeMap::new(),
            replies: Vec::new(),
            next_tick: now.mono + tick,
            last_sync: now.mono,
            to_save: Vec::new(),
            saving: None,
            is_durable: true,
            asked: Default::default(),
            showing: Duration::ZERO,
            show_from: now.mono,
            last_checkpoint: now.mono,
            log_bytes_at_checkpoint: 0,
            kept_from,
            leadership: Leadership::new(promotion),
            first_until: None,
            leader_since: BTreeMap::new(),
            elections: Elections::default(),
            next_status: now.mono,
            configured: BTreeSet::new(),
            stopping: false,
            saved_since_stop: false,
        };
        let records = driver.replica.members(ShardId(0));
        if driver.common.peers.get().is_none() && records.configuration.members().len() > 1 {
            let names: Vec<&str> = records.iter().map(|member| member.name.as_str()).collect();
            tracing::warn!(target: "raft", event = "raft.no_peers", "this node belongs to a cluster of {}, but no setting names an address for peers: it cannot reach them", names.join(", "));
        }
        for shard in driver.replica.shards() {
            let (status, members) = (driver.replica.leader(shard), driver.replica.members(shard).clone());
            driver.common.routes.set(shard, status);
            driver.remember_elections(shard);
            driver.tell_start(shard);
            if let (ShardId(0), Some(peers)) = (shard, driver.common.peers.get()) {
                peers.follow(members);
            }
        }
        if let Some(peers) = driver.common.peers.get() {
            driver.leadership.heard(peers.greeting().me);
        }
        if fresh && founding.is_some_and(|founding| founding.first == identity.node) {
            driver.first_until = Some(now.mono + driver.config.election_timeout);
            driver.lead_first(now);
        }
        driver.publish(Stage::Running);
        let outcome = driver.turns();
        driver.publish(Stage::Stopped);
        *driver.common.rows.lock().expect("nothing panics while it holds this lock") = None;
        drop(driver);
        let ended = thread.join();
        outcome?;
        ended.map_err(|_| NodeError::Panicked)
    }

    fn turns(&mut self) -> Result<(), NodeError> {
        loop {
            let now = self.clock.now();
            self.tick(now);
            self.take_controls(now)?;
            self.take_messages(now);
            self.take_requests(now);
            self.lead(now);
            let seeds = || {
                let mut seed = [0; 16];
                getrandom::fill(&mut seed).expect("the operating system has random numbers");
                seed
            };
            let (begun, applied_before) = (Instant::now(), self.replica.applied_entries());
            self.replica.poll(now, seeds, &mut self.effects).map_err(NodeError::Fault)?;
            self.measure(begun, applied_before);
            self.install();
            self.common.counters.turns.fetch_add(1, Ordering::Relaxed);
            self.follow_transitions(now);
            self.hand_out_replies();
            self.send_messages();
            self.write_log(now)?;
            self.checkpoint(now)?;
            if self.is_done() {
                return self.finish();
            }
            self.rest()?;
        }
    }

    /// Takes the time of what the turn that began then has applied, and of the entries that are committed by now.
    fn measure(&mut self, begun: Instant, applied_before: u64) {
        let counters = &self.common.counters;
        for (shard, index, operations) in self.effects.proposed.drain(..) {
            counters.batch_operations.record(operations as u64);
            self.proposed.entry(shard).or_default().push_back((index, begun));
        }
        if self.replica.applied_entries() == applied_before {
            return;
        }
        counters.apply_time.record_duration(begun.elapsed());
        for (shard, proposed) in &mut self.proposed {
            let applied = self.replica.applied(*shard);
            let done = proposed.partition_point(|(index, _)| *index <= applied);
            for (_, at) in proposed.drain(..done) {
                counters.commit_time.record_duration(begun - at);
            }
        }
    }

    fn tick(&mut self, now: Now) {
        if now.mono < self.next_tick {
            return;
        }
        let tick = tick(&self.config);
        // After a pause only one tick is made up for: the others did not pass for anybody who could have acted.
        self.next_tick = now.mono + tick;
        self.replica.stay_out(self.leadership.is_out(now));
        self.replica.on_event(now, Event::Tick, &mut self.effects);
        self.lead_first(now);
        self.log_status(now);
        let stage = if self.stopping { Stage::Draining } else { Stage::Running };
        self.publish(stage);
    }

    /// Asks for votes in a new cluster at once, again and again until there is a leader: the others may still be getting ready to hear it.
    /// When others may ask as well, this ends.
    fn lead_first(&mut self, now: Now) {
        let Some(until) = self.first_until else { return };
        let status = self.replica.status();
        if now.mono >= until || status.iter().all(|shard| shard.consensus.leader != 0) {
            self.first_until = None;
            return;
        }
        let members = self.replica.members(ShardId(0));
        let is_there = |id: &u64| {
            let link = self.common.peers.get().and_then(|peers| peers.links.get(*id));
            *id == self.common.me || link.is_some_and(|link| link.is_up())
        };
        let voters = &members.configuration.voters;
        let asks = status.iter().all(|shard| shard.consensus.role == Role::Candidate);
        if !asks && 2 * voters.iter().filter(|id| is_there(id)).count() > voters.len() {
            self.replica.campaign();
        }
    }

    /// Hands messages to the peers' thread, those of a turn together.
    fn send_messages(&mut self) {
        let messages = std::mem::take(&mut self.effects.messages);
        self.send(messages);
    }

    fn send(&mut self, messages: Vec<(ShardId, Message)>) {
        let Some(peers) = self.common.peers.get().filter(|_| !messages.is_empty()) else { return };
        let mut by_member: BTreeMap<u64, Vec<(ShardId, Message)>> = BTreeMap::new();
        for (shard, message) in messages {
            if message.snapshot().is_some() {
                peers.send_snapshot(shard, self.replica.first(shard), message);
                continue;
            }
            by_member.entry(message.to()).or_default().push((shard, message));
        }
        for (id, messages) in by_member {
            // What cannot be sent is lost, as on any network: the member is probed when it is there again.
            let hlc = self.common.events.hlc.last();
            let _ = peers.links.get(id).is_some_and(|link| link.send(messages, hlc));
        }
    }

    fn take_controls(&mut self, now: Now) -> Result<(), NodeError> {
        while let Some(control) = self.common.inbox.pop_control() {
            match control {
                Control::Forget(shard, wait) => {
                    self.replica.on_event(now, Event::Forget { shard, wait }, &mut self.effects);
                }
                Control::Unreachable(member) => {
                    self.replica.on_event(now, Event::Unreachable { member }, &mut self.effects);
                }
                Control::Change(shard, changes, records, client) => {
                    let change = Event::Change { shard, changes, records, client };
                    self.replica.on_event(now, change, &mut self.effects);
                }
                Control::Transfer(shard, to) => {
                    self.replica.on_event(now, Event::Transfer { shard, to }, &mut self.effects);
                }
                Control::Arrived(arrived) => {
                    let event = Event::Message { shard: arrived.shard, message: arrived.message.clone() };
                    self.replica.on_event(now, event, &mut self.effects);
                    self.arrived.insert(arrived.shard, arrived);
                }
                Control::Installed(shard, readers) => self.on_installed(now, shard, readers),
                Control::SnapshotSent(shard, to, arrived) => {
                    let event = Event::SnapshotSent { shard, to, arrived };
                    self.replica.on_event(now, event, &mut self.effects);
                }
                Control::StepDown(hold) => self.leadership.stay_out(now, hold),
                Control::Settle => self.leadership.settle(now),
                Control::Heard(member) => self.leadership.heard(member),
                Control::Drain => {
                    self.leadership.give_away(now);
                    self.replica.on_event(now, Event::Drain, &mut self.effects);
                }
                Control::Stop if !self.stopping => {
                    self.leadership.give_away(now);
                    self.stopping = true;
                    self.replica.on_event(now, Event::Drain, &mut self.effects);
                    self.publish(Stage::Draining);
                }
                Control::Stop => {}
                Control::Save(done) => self.asked[0].saves.push(done),
                Control::Show(done) => self.asked[0].shows.push(done),
                Control::Saved(saved) => self.on_saved(&saved)?,
                Control::Spare(spare) => self.wal.add_spare(spare),
                Control::Failed(failure) => return Err(NodeError::Storage(failure)),
            }
        }
        Ok(())
    }

    fn lead(&mut self, now: Now) {
        // A node without peers leads for ever.
        if self.common.peers.get().is_some() {
            let events = self.leadership.events(now, self.common.me, &self.replica);
            let changes = !events.is_empty();
            for event in events {
                self.replica.on_event(now, event, &mut self.effects);
            }
            // That this node gives a group away is known here before it is known anywhere else.
            if changes {
                let stage = if self.stopping { Stage::Draining } else { Stage::Running };
                self.publish(stage);
            }
        }
    }

    fn take_messages(&mut self, now: Now) {
        while let Some((shard, message)) = self.common.inbox.pop_message() {
            if message.from() == self.common.routes.leader(shard) {
                self.elections.on_contact(now, shard);
            }
            self.replica.on_event(now, Event::Message { shard, message }, &mut self.effects);
        }
    }

    fn take_requests(&mut self, now: Now) {
        for number in 0..self.config.shards {
            let shard = ShardId(number);
            while self.replica.has_room(shard)
                && let Some(event) = self.common.inbox.pop(shard)
            {
                self.replica.on_event(now, event, &mut self.effects);
            }
        }
    }

    fn follow_transitions(&mut self, now: Now) {
        if !self.effects.transitions.is_empty() {
            for transition in std::mem::take(&mut self.effects.transitions) {
                match transition {
                    Transition::Told { shard, told } => self.tell(now, shard, &told),
                    Transition::Leader { shard, leader, .. } => {
                        self.leadership.changed(now);
                        self.leader_since.insert(shard, now.mono);
                        if leader != 0 {
                            self.common.counters.leader_changes.fetch_add(1, Ordering::Relaxed);
                        }
                        self.common.routes.set(shard, leader);
                    }
                    Transition::Ready { shard, term, index } => {
                        self.common.routes.bump();
                        self.tell_ready(now, shard, term, index);
                    }
                    Transition::FirstWrite { shard, term, last } => {
                        let record = self.elections.on_first_write(now, shard, term, last);
                        self.record(now, shard, record);
                    }
                    Transition::Elections { shard, .. } => self.remember_elections(shard),
                    Transition::Members { shard, members } => {
                        self.tell_configuration(shard);
                        if let (ShardId(0), Some(peers)) = (shard, self.common.peers.get()) {
                            peers.follow(members);
                        }
                    }
                    Transition::Role { .. } => {}
                }
            }
            let stage = if self.stopping { Stage::Draining } else { Stage::Running };
            self.publish(stage);
        }
        if !self.effects.signals.is_empty() {
            (self.observe)(&mut self.effects.signals);
            self.effects.signals.clear();
        }
    }

    /// Puts what has happened in a group into words.
    fn tell(&mut self, now: Now, shard: ShardId, told: &Told) {
        let members = self.replica.members(shard);
        let name_of = |id: u64| members.get(id).map_or_else(|| Incarnation(id).to_string(), |one| one.name.clone());
        let record = self.elections.on_told(now, self.common.me, shard, told, &name_of);
        let scene = Scene {
            me: self.common.me,
            group: shard,
            name_of: &name_of,
            tick: tick(&self.config),
            stops: self.leadership.gives_away(),
            since_contact: self.elections.since_contact(now, shard),
            asking_for: self.elections.asking_for(now, shard),
        };
        self.common.events.tell(scene.event(told));
        if matches!(told.happening, Happening::LeaderElected { .. }) && !self.configured.contains(&shard) {
            self.tell_configuration(shard);
        }
        self.record(now, shard, record);
    }

    fn tell_configuration(&mut self, shard: ShardId) {
        let (term, role) = self.part(shard);
        self.configured.insert(shard);
        self.common.events.tell(configuration(shard, term, role, self.replica.members(shard)));
    }

    fn tell_ready(&mut self, now: Now, shard: ShardId, term: Term, index: Index) {
        let (since, record) = self.elections.on_ready(now, shard, term);
        let outage = record.as_ref().and_then(Election::outage);
        let text = format!("ready after {} ms, writes accepted", since.0);
        let mut ready = Draft::new(Level::Info, "raft.leader.ready", text)
            .with("index", index.0)
            .with("sinceElectedMs", since.0)
            .of(shard, term, Role::Leader);
        if let Some(outage) = outage {
            ready = ready.with("outageMs", outage.0);
        }
        self.common.events.tell(ready);
        self.record(now, shard, record);
    }

    fn tell_start(&self, shard: ShardId) {
        let (term, role) = self.part(shard);
        let status = self.replica.status();
        let Some(status) = status.iter().find(|status| status.shard == shard) else { return };
        let configuration = &self.replica.members(shard).configuration;
        let (last, voters) = (status.consensus.last.0, configuration.voters.len());
        let text = format!("started as follower in term {term}, {voters} voters, last entry {last}");
        let started = Draft::new(Level::Info, "raft.started", text)
            .with("lastIndex", last)
            .with("lastTerm", status.applied_term.0)
            .with("commit", status.consensus.commit.0)
            .with("voters", voters)
            .with("learners", configuration.learners.len());
        self.common.events.tell(started.of(shard, term, role));
    }

    /// Says from time to time who leads and how far this node is.
    fn log_status(&mut self, now: Now) {
        if self.config.status_log == Millis(0) || now.mono < self.next_status {
            return;
        }
        self.next_status = now.mono + self.config.status_log;
        let group = ShardId(0);
        let Some(status) = self.replica.status().into_iter().find(|status| status.shard == group) else { return };
        let leader = match self.replica.members(group).get(status.consensus.leader) {
            Some(leader) => format!("{} at {}", leader.name, leader.peer),
            None => "unknown".into(),
        };
        let own = if status.consensus.leader == self.common.me { " (this node)" } else { "" };
        let (state, applied) = (role_name(status.consensus.role), status.applied.0);
        tracing::info!(target: "raft", event = "raft.status", leader, state, applied, "leader is {leader}{own}; state {state}, applied {applied}");
    }

    fn part(&self, shard: ShardId) -> (Term, Role) {
        let status = self.replica.status();
        let status = status.iter().find(|status| status.shard == shard).map(|status| status.consensus);
        status.map_or((Term(0), Role::Follower), |status| (status.term, status.role))
    }

    fn record(&mut self, now: Now, shard: ShardId, election: Option<Election>) {
        if let Some(election) = election {
            self.replica.on_event(now, Event::Elected { shard, election }, &mut self.effects);
        }
    }

    fn remember_elections(&self, shard: ShardId) {
        let elections = self.replica.members(shard).elections().clone();
        let mut all = self.common.elections.lock().expect("nothing panics while it holds this lock");
        all.insert(shard, elections);
    }

    fn hand_out_replies(&mut self) {
        if self.effects.replies.is_empty() {
            return;
        }
        let lanes = self.common.lanes.lock().expect("nothing panics while it holds this lock");
        self.replies.resize_with(lanes.len(), Vec::new);
        let mut lost = Vec::new();
        for (client, reply) in self.effects.replies.drain(..) {
            match client {
                ReplyTo::Local { sender, lane: Some(lane) } => self.replies[lane.0].push((sender, reply)),
                // Without a lane nobody undoes what a lost reply has brought.
                ReplyTo::Local { sender, lane: None } => drop(sender.send(reply)),
                ReplyTo::Remote { answers, request } => lost.extend(answers.put(request, reply).err()),
            }
        }
        for (lane, replies) in lanes.iter().zip(&mut self.replies) {
            if !replies.is_empty() {
                lane.put(replies);
            }
        }
        drop(lanes);
        lost.into_iter().for_each(|reply| self.common.compensate(reply));
    }

    fn write_log(&mut self, now: Now) -> Result<(), NodeError> {
        let entries = self.effects.writes.iter().filter(|write| matches!(write, Write::Entry(..))).count();
        for write in self.effects.writes.drain(..) {
            match write {
                Write::Entry(shard, entry) => self.wal.append(shard, entry),
                Write::HardState(shard, state) => self.wal.append_hard_state(shard, state),
                Write::Restart(shard, index, term) => self.wal.restart(shard, index, term),
            }
        }
        let must_sync = std::mem::take(&mut self.effects.must_sync);
        if must_sync > MustSync::Nothing {
            let sync = must_sync == MustSync::Vote || self.config.durability == Durability::Fsync;
            let begun = Instant::now();
            self.wal.flush(sync).map_err(NodeError::Storage)?;
            self.common.counters.sync_time.record_duration(begun.elapsed());
        }
        if let Durability::Buffered(interval) = self.config.durability
            && now.mono - self.last_sync >= interval
        {
            self.last_sync = now.mono;
            self.wal.flush(true).map_err(NodeError::Storage)?;
        }
        let after_sync = std::mem::take(&mut self.effects.after_sync);
        let messages = self.replica.on_synced(after_sync);
        self.send(messages);
        if must_sync > MustSync::Nothing {
            let stats = self.wal.stats();
            let counters = &self.common.counters;
            counters.entries.fetch_add(entries as u64, Ordering::Relaxed);
            counters.log_syncs.store(stats.syncs, Ordering::Relaxed);
            counters.log_bytes.store(stats.bytes, Ordering::Relaxed);
            counters.log_size.store(stats.size, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Starts checkpoints when it is time, and goes on with the one under way.
    fn checkpoint(&mut self, now: Now) -> Result<(), NodeError> {
        if let Some(job) = self.wal.spare_job()
            && let Err(Job::MakeSpare(job)) = self.background.try_queue(Job::MakeSpare(job))
        {
            self.wal.give_back(job);
        }
        if self.saving.is_none() && self.to_save.is_empty() {
            self.end_round(now);
            let asked = !self.asked[0].saves.is_empty();
            let written = self.wal.stats().bytes - self.log_bytes_at_checkpoint;
            let due = now.mono - self.last_checkpoint >= self.config.checkpoint_interval;
            let wanted = self.replica.wants_checkpoint();
            let worth = due || wanted || written >= self.config.checkpoint_log_bytes || self.stopping;
            self.is_durable = asked || (written > 0 && worth);
            if self.is_durable {
                self.last_checkpoint = now.mono;
                self.log_bytes_at_checkpoint += written;
                self.to_save = self.replica.shards();
                self.saved_since_stop |= self.stopping;
                self.asked.swap(0, 1);
            } else if !self.asked[0].shows.is_empty() && now.mono >= self.show_from {
                let is_new = |shard: &ShardId| {
                    self.common.shown.get(*shard).is_none_or(|(index, _)| index < self.replica.applied(*shard))
                };
                self.to_save = self.replica.shards().into_iter().filter(is_new).collect();
                self.asked.swap(0, 1);
                if self.to_save.is_empty() {
                    self.end_round(now);
                }
            }
        }
        if self.saving.is_none()
            && let Some(shard) = self.to_save.pop()
            && !self.installing.contains_key(&shard)
        {
            let (index, term, configuration) = self.replica.freeze(shard);
            let meta = Meta { index, term, configuration };
            let at = now.mono;
            self.saving = Some(Saving { shard, meta, at, waiting: None, complete: false, committed: false });
        }
        self.collect();
        Ok(())
    }

    /// Tells those who asked for the round that has ended.
    fn end_round(&mut self, now: Now) {
        let showing = std::mem::take(&mut self.showing);
        if showing > Duration::ZERO {
            let pause = showing * (SHOW_SHARE - 1);
            self.show_from = now.mono + Millis(pause.as_micros().div_ceil(1_000) as u64);
        }
        for done in self.asked[1].saves.drain(..) {
            let saved = self.kept_from.iter().map(|(shard, next)| (*shard, Index(next.0.saturating_sub(1))));
            // Whoever asked may have gone.
            let _ = done.send(saved.collect());
        }
        for done in self.asked[1].shows.drain(..) {
            // The same.
            let _ = done.send(());
        }
    }

    /// Collects a few rows of the checkpoint under way and hands them over.
    fn collect(&mut self) {
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
            && let Err(Job::Write(_, changes)) = self.background.try_queue(Job::Write(saving.shard, changes))
        {
            saving.waiting = Some(changes);
        }
        if saving.complete && saving.waiting.is_none() {
            let (shard, meta) = (saving.shard, saving.meta.clone());
            let job = if self.is_durable { Job::Commit(shard, meta) } else { Job::Show(shard, meta) };
            saving.committed = self.background.try_queue(job).is_ok();
        }
    }

    /// Lets the snapshots that consensus has accepted become checkpoints.
    fn install(&mut self) {
        for install in self.effects.installs.drain(..) {
            let shard = install.shard;
            let arrived = self.arrived.remove(&shard).expect("consensus accepts what has arrived");
            assert_eq!((arrived.meta.index, arrived.meta.term), (install.index, install.term));
            let Arrived { staged, mut machine, members, done, .. } = *arrived;
            (self.prepare)(&mut machine);
            if self.saving.as_ref().is_some_and(|saving| saving.shard == shard) {
                self.saving = None;
            }
            tracing::info!(target: "raft", event = "raft.snapshot.installing", shard = shard.0, index = install.index.0, "a snapshot takes the place of shard {shard}, up to entry {}", install.index);
            self.installing.insert(shard, Installing { index: install.index, machine, members, done });
            self.background.queue(Job::Install(shard, Box::new(staged)));
        }
        // The others were not wanted; whoever waits for them is told.
        self.arrived.clear();
    }

    fn on_installed(&mut self, now: Now, shard: ShardId, readers: [Box<dyn RowReader>; READERS]) {
        let Installing { index, machine, members, done } =
            self.installing.remove(&shard).expect("it was being installed");
        if let Some(rows) = &*self.common.rows.lock().expect("nothing panics while it holds this lock") {
            rows.replace(shard, readers);
        }
        self.common.shown.set(shard, index, now.mono);
        let before = self.replica.installed(now, shard, machine, members, &mut self.effects);
        self.kept_from.insert(shard, index.next());
        self.background.queue(Job::Drop(Box::new(before)));
        tracing::info!(target: "raft", event = "raft.snapshot.installed", shard = shard.0, index = index.0, "shard {shard} goes on from the snapshot");
        // The sender may have given up.
        let _ = done.send(());
    }

    fn on_saved(&mut self, saved: &Saved) -> Result<(), NodeError> {
        let Saved { shard, index, took } = *saved;
        // A snapshot may have taken its place meanwhile.
        let of_this = |saving: &mut Saving| saving.shard == shard && saving.meta.index == index;
        let Some(saving) = self.saving.take_if(of_this) else { return Ok(()) };
        self.common.shown.set(shard, index, saving.at);
        if !self.is_durable {
            self.showing += took;
            let garbage = self.replica.shown(shard);
            self.background.queue(Job::Drop(garbage));
            return Ok(());
        }
        let garbage = self.replica.saved(shard);
        self.background.queue(Job::Drop(garbage));
        self.kept_from.insert(shard, index.next());
        self.wal.release(&self.kept_from).map_err(NodeError::Storage)?;
        let counters = &self.common.counters;
        counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        counters.checkpoint_micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        tracing::debug!(event = "storage.checkpoint", shard = shard.0, index = index.0, ms = took.as_millis() as u64);
        Ok(())
    }

    fn publish(&self, stage: Stage) {
        let shards = self.replica.status();
        let led = shards.iter().filter(|shard| shard.consensus.role == Role::Leader);
        let progress = led.map(|shard| (shard.shard, self.replica.progress(shard.shard))).collect();
        let voters = |shard: ShardId| self.replica.members(shard).configuration.voters.clone();
        let voters = self.replica.shards().into_iter().map(|shard| (shard, voters(shard))).collect();
        let leader_since = self.leader_since.clone();
        let at = self.clock.now().mono;
        self.common.status.send_replace(NodeStatus { stage, shards, progress, voters, leader_since, at });
    }

    /// Asked to stop, everything taken is finished, and a checkpoint holds it.
    fn is_done(&self) -> bool {
        let given_away = || self.leadership.is_given_away(self.clock.now(), self.common.me, &self.replica);
        if !self.stopping || self.saving.is_some() || !self.to_save.is_empty() || !given_away() {
            return false;
        }
        let all_saved = self.wal.stats().bytes == self.log_bytes_at_checkpoint;
        let leads = self.replica.shards().into_iter().any(|shard| self.replica.leader(shard) == self.common.me);
        if leads {
            return all_saved && self.common.inbox.is_empty() && self.replica.is_idle();
        }
        // Others go on writing, and what they send would always leave something to save: it is in the log.
        (all_saved || self.saved_since_stop) && self.common.inbox.has_no_requests()
    }

    fn finish(&mut self) -> Result<(), NodeError> {
        self.wal.flush(true).and_then(|()| self.wal.settle()).map_err(NodeError::Storage)
    }

    /// Sleeps if there is nothing to do.
    fn rest(&mut self) -> Result<(), NodeError> {
        let collecting = self.saving.as_ref().is_some_and(|saving| !saving.committed && saving.waiting.is_none());
        let now = self.clock.now();
        if collecting || self.replica.has_work(now) || !self.common.inbox.is_empty() {
            return Ok(());
        }
        let show = (!self.asked[0].shows.is_empty()).then_some(self.show_from);
        let wakeup = self.replica.next_wakeup(now).into_iter().chain(show).fold(self.next_tick, Mono::min);
        let idle = wakeup - now.mono;
        if idle > Millis(0) {
            self.wal.settle().map_err(NodeError::Storage)?;
            self.common.inbox.sleep(idle.to_std().min(SLEEP_MAX));
        }
        Ok(())
    }
}

/// The unit of consensus time.
fn tick(config: &NodeConfig) -> Millis {
    config.heartbeat.min(Millis(50))
}
