//! The loop: one thread that runs the replica of a node.
//!
//! A turn takes what clients have queued, lets the replica do its work, hands out its replies, and then writes and syncs the log. What
//! clients queue during the sync is the next turn's batch, so no timer decides how large one is; and the replies of a turn leave before the
//! sync of the next one begins.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base::machine::StateMachine;
use base::{Incarnation, Index, Millis, Mono, ShardId, Term};
use replica::leadership::{Leadership, Promotion};
use replica::{
    Election, Event, Halt, Happening, Installed, Job, Jobs, Members, Message, Now, Replica, ReplicaConfig, RestoreStep,
    Role, Runner, RunnerConfig, Told, Transition,
};
use storage::checkpoint::RowReader;
use storage::disk::Disk;

use crate::alarms::{AlarmKind, SYNC_MAX, Slowness};
use crate::checkpoints::{Background, READERS, Saved};
use crate::clock::Clock;
use crate::events::counts::Standing;
use crate::events::elections::Elections;
use crate::events::lasting::{Lasting, Said};
use crate::events::members::changes;
use crate::events::story::{Scene, configuration, handed_over, why};
use crate::events::{Draft, Level, role_name};
use crate::health::Report;
use crate::inbox::Control;
use crate::lane::{Replies, ReplyTo};
use crate::looks::Looks;
use crate::node::{Common, Durability, LoopHooks, NodeConfig, NodeError, NodeStatus, Observe, Stage, Start};
use crate::open::{Opened, lost_log, open};
use crate::operate::HOLD;
use crate::restoring::SILENCE_MAX;
use crate::rows::{Fail, Rows};

/// Nothing sleeps longer: the loop shows that it lives.
const SLEEP_MAX: Duration = Duration::from_millis(1_000);

/// A group being handed over.
struct HandingOver {
    to: u64,
    since: Mono,
    /// A word of [`why`].
    why: &'static str,
}

pub(crate) struct Driver<S: StateMachine, D: Disk> {
    /// Where the data is; nothing: in memory.
    folder: Option<PathBuf>,
    config: NodeConfig,
    clock: Clock,
    common: Arc<Common<S>>,
    prepare: Box<dyn Fn(&mut S) + Send>,
    observe: Observe<S>,
    slowness: Slowness,
    /// When somebody last said that the restore under way is looked after.
    restore_heard: Mono,
    runner: Runner<S, ReplyTo<S>, D>,
    background: Background<D>,
    /// Entries proposed here and not committed yet, by shard, with the moment of the proposal.
    proposed: BTreeMap<ShardId, VecDeque<(Index, Instant)>>,
    /// Replies of this turn by lane.
    replies: Vec<Replies<S>>,
    next_tick: Mono,
    leadership: Leadership,
    /// Until then this node asks for votes without waiting for a timeout; nothing: it waits.
    first_until: Option<Mono>,
    /// Since when a shard has its leader, or none.
    leader_since: BTreeMap<ShardId, Mono>,
    /// How long elections take.
    elections: Elections,
    standing: Standing,
    next_status: Mono,
    /// Groups that this node hands over just now.
    handing_over: BTreeMap<ShardId, HandingOver>,
    /// Groups that somebody wants to be led elsewhere.
    asked_over: BTreeSet<ShardId>,
    slow_sync: Lasting,
    /// Groups whose configuration was told.
    configured: BTreeSet<ShardId>,
    stopping: bool,
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
        let Opened { mut wal, mut shards, checkpoints, readers, snapshots } =
            open::<S, D>(disk, folder, &identity, founding.as_ref(), segment_bytes, progress)?;
        let kept_from = shards.iter().map(|(shard, restored)| (*shard, restored.follow(*shard, &mut wal))).collect();
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
            message_bytes_max: base::limits::MESSAGE_BYTES_MAX,
            lease_renewal: config.heartbeat,
            leader_wait: config.leader_wait,
            trailing_bytes: config.trailing_log_bytes,
        };
        let members = shards.iter().map(|(shard, restored)| (*shard, restored.members.clone())).collect();
        common.staging.load(&members).map_err(NodeError::Storage)?;
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
        let runner_config = RunnerConfig {
            checkpoint_interval: config.checkpoint_interval,
            checkpoint_log_bytes: config.checkpoint_log_bytes,
            buffered: match config.durability {
                Durability::Fsync => None,
                Durability::Buffered(interval) => Some(interval),
            },
        };
        let now = clock.now();
        let mut driver = Driver {
            folder: folder.map(Path::to_owned),
            config,
            clock,
            common,
            prepare,
            observe,
            slowness: Slowness::default(),
            restore_heard: now.mono,
            runner: Runner::new(runner_config, now, replica, wal, kept_from),
            background,
            proposed: BTreeMap::new(),
            replies: Vec::new(),
            next_tick: now.mono + tick,
            leadership: Leadership::new(promotion),
            first_until: None,
            leader_since: BTreeMap::new(),
            elections: Elections::default(),
            standing: Standing::default(),
            next_status: now.mono,
            handing_over: BTreeMap::new(),
            asked_over: BTreeSet::new(),
            slow_sync: Lasting::default(),
            configured: BTreeSet::new(),
            stopping: false,
        };
        let records = driver.runner.replica.members(ShardId(0));
        if driver.common.peers.get().is_none() && records.configuration.members().len() > 1 {
            let names: Vec<&str> = records.iter().map(|member| member.name.as_str()).collect();
            tracing::warn!(target: "raft", event = "raft.no_peers", "this node belongs to a cluster of {}, but no setting names an address for peers: it cannot reach them", names.join(", "));
        }
        driver.follow_incarnation();
        for shard in driver.runner.replica.shards() {
            let (status, members) = (driver.runner.replica.leader(shard), driver.runner.replica.members(shard).clone());
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
            let (begun, applied_before) = (Instant::now(), self.runner.replica.applied_entries());
            let begun_turn = self.runner.begin(now, seeds, &self.prepare, &mut self.background);
            begun_turn.map_err(|halt| match halt {
                Halt::Fault(fault) => NodeError::Fault(fault),
                Halt::Lost(shard, lost) => lost_log(self.folder.as_deref(), shard, lost),
            })?;
            self.swap();
            self.measure(begun, applied_before);
            self.common.counters.turns.fetch_add(1, Ordering::Relaxed);
            self.follow_transitions(now);
            self.hand_out_replies();
            self.send_messages();
            self.write_log(now)?;
            // Who leads nothing any more stops with one round: with more, who is sent entries all the time would never end.
            let saves_last = self.stopping && (self.leads() || !self.runner.has_saved_since_stop());
            self.runner.checkpoint(now, saves_last, &mut self.background);
            if self.is_done() {
                return self.finish();
            }
            self.rest()?;
        }
    }

    /// Takes the time of what the turn that began then has applied, and of the entries that are committed by now.
    fn measure(&mut self, begun: Instant, applied_before: u64) {
        let counters = &self.common.counters;
        for (shard, index, operations) in self.runner.effects.proposed.drain(..) {
            counters.batch_operations.record(operations as u64);
            self.proposed.entry(shard).or_default().push_back((index, begun));
        }
        if self.runner.replica.applied_entries() == applied_before {
            return;
        }
        counters.apply_time.record_duration(begun.elapsed());
        for (shard, proposed) in &mut self.proposed {
            let applied = self.runner.replica.applied(*shard);
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
        self.leadership.bar(self.common.alarms.is_raised(AlarmKind::SpaceCritical));
        self.runner.replica.stay_out(self.leadership.is_out(now));
        self.runner.on_event(now, Event::Tick);
        self.lead_first(now);
        self.give_up_restore(now);
        self.log_status(now);
        self.publish(self.stage());
    }

    /// Asks for votes in a new cluster at once, again and again until there is a leader: the others may still be getting ready to hear it.
    /// When others may ask as well, this ends.
    fn lead_first(&mut self, now: Now) {
        let Some(until) = self.first_until else { return };
        let status = self.runner.replica.status();
        if now.mono >= until || status.iter().all(|shard| shard.consensus.leader != 0) {
            self.first_until = None;
            return;
        }
        let members = self.runner.replica.members(ShardId(0));
        let is_there = |id: &u64| {
            let link = self.common.peers.get().and_then(|peers| peers.links.get(*id));
            *id == self.common.me || link.is_some_and(|link| link.is_up())
        };
        let voters = &members.configuration.voters;
        let asks = status.iter().all(|shard| shard.consensus.role == Role::Candidate);
        if !asks && 2 * voters.iter().filter(|id| is_there(id)).count() > voters.len() {
            self.runner.replica.campaign();
        }
    }

    /// Aborts a restore that nobody looks after any more, if this node leads group 0.
    fn give_up_restore(&mut self, now: Now) {
        let restores = *self.runner.replica.members(ShardId(0)).restores();
        let Some(id) = restores.last.filter(|_| restores.pending) else {
            self.restore_heard = now.mono;
            return;
        };
        if self.runner.replica.leader(ShardId(0)) != self.common.me {
            // A new leader waits as long as the one before.
            self.restore_heard = now.mono;
        } else if now.mono - self.restore_heard >= SILENCE_MAX {
            self.restore_heard = now.mono;
            tracing::warn!(target: "raft", event = "restore.given_up", "nobody looks after the restore any more: it is given up");
            let (sender, _nobody) = tokio::sync::oneshot::channel();
            let client = ReplyTo::Local { sender, lane: None };
            let event = Event::Restore { shard: ShardId(0), step: RestoreStep::Abort(id), client };
            self.runner.on_event(now, event);
        }
    }

    fn follow_incarnation(&self) {
        if let Some(id) = self.runner.replica.members(ShardId(0)).restores().done {
            self.common.restored.store(id.incarnation.0, Ordering::Relaxed);
        }
    }

    /// Drops what is staged and not needed any more.
    fn forget_staged(&mut self) {
        let first = *self.runner.replica.members(ShardId(0)).restores();
        let needs = |id, shard| first.needs(id, self.runner.replica.members(shard).restores());
        match self.common.staging.forget(needs) {
            Ok(states) if states.is_empty() => {}
            Ok(states) => self.background.queue(Job::Drop(Box::new(states))),
            // It is tried again at the next start.
            Err(error) => tracing::warn!(event = "restore.leftover", %error, "what was staged cannot be removed"),
        }
    }

    /// Hands messages to the peers' thread, those of a turn together.
    fn send_messages(&mut self) {
        let messages = std::mem::take(&mut self.runner.effects.messages);
        self.send(messages);
    }

    fn send(&mut self, messages: Vec<(ShardId, Message)>) {
        let Some(peers) = self.common.peers.get().filter(|_| !messages.is_empty()) else { return };
        let mut by_member: BTreeMap<u64, Vec<(ShardId, Message)>> = BTreeMap::new();
        for (shard, message) in messages {
            if message.snapshot().is_some() {
                peers.send_snapshot(shard, self.runner.replica.first(shard), message);
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
                    self.runner.on_event(now, Event::Forget { shard, wait });
                }
                Control::Unreachable(member) => {
                    self.runner.on_event(now, Event::Unreachable { member });
                }
                Control::Change(shard, changes, records, client) => {
                    let change = Event::Change { shard, changes, records, client: Some(client) };
                    self.runner.on_event(now, change);
                }
                Control::Admit(changes, newcomer, admission, client) => {
                    self.runner.on_event(now, Event::Admit { changes, newcomer, admission, client });
                }
                Control::Token(step, client) => self.runner.on_event(now, Event::Token { step, client }),
                Control::Transfer(shard, to) => {
                    self.asked_over.insert(shard);
                    self.runner.on_event(now, Event::Transfer { shard, to });
                }
                Control::Arrived(arrived) => self.runner.on_arrived(now, arrived),
                Control::Installed(shard, readers) => self.on_installed(now, shard, readers),
                Control::SnapshotSent(shard, to, arrived) => {
                    let event = Event::SnapshotSent { shard, to, arrived };
                    self.runner.on_event(now, event);
                }
                Control::Restore(step, client) => {
                    let event = Event::Restore { shard: ShardId(0), step, client };
                    self.runner.on_event(now, event);
                }
                Control::StillRestoring(id) => {
                    if self.runner.replica.members(ShardId(0)).restores().last == Some(id) {
                        self.restore_heard = now.mono;
                    }
                }
                Control::Restored(shard, members, readers) => self.on_restored(now, shard, *members, readers)?,
                Control::StepDown(hold) => self.leadership.stay_out(now, hold),
                Control::Settle => self.leadership.settle(now),
                Control::Heard(member) => self.leadership.heard(member),
                Control::Drain => {
                    self.leadership.give_away(now);
                    self.runner.on_event(now, Event::Drain);
                }
                Control::Stop if !self.stopping => {
                    self.leadership.give_away(now);
                    self.stopping = true;
                    self.runner.on_event(now, Event::Drain);
                    self.publish(Stage::Draining);
                }
                Control::Stop => {}
                Control::Save(tell) => self.runner.on_save_asked(tell),
                Control::Show(tell) => self.runner.on_show_asked(tell),
                Control::Saved(saved) => self.on_saved(&saved)?,
                Control::Spare(spare) => self.runner.add_spare(spare),
                Control::Failed(failure) => return Err(NodeError::Storage(failure)),
            }
        }
        Ok(())
    }

    fn lead(&mut self, now: Now) {
        // A node without peers leads for ever.
        if self.common.peers.get().is_some() {
            let events = self.leadership.events(now, self.common.me, &self.runner.replica);
            let changes = !events.is_empty();
            for event in events {
                if let Event::Change { changes, records, .. } = &event
                    && changes.is_empty()
                {
                    for record in records {
                        tracing::info!(target: "raft", event = "raft.member.address", member = %record.name, "{} is reached at {} now", record.name, record.peer);
                    }
                }
                self.runner.on_event(now, event);
            }
            // That this node gives a group away is known here before it is known anywhere else.
            if changes {
                self.publish(self.stage());
            }
        }
    }

    fn take_messages(&mut self, now: Now) {
        while let Some((shard, message)) = self.common.inbox.pop_message() {
            if message.from() == self.common.routes.leader(shard) {
                self.elections.on_contact(now, shard);
            }
            self.runner.on_event(now, Event::Message { shard, message });
        }
    }

    fn take_requests(&mut self, now: Now) {
        for number in 0..self.config.shards {
            let shard = ShardId(number);
            while self.runner.replica.has_room(shard)
                && let Some(event) = self.common.inbox.pop(shard)
            {
                self.runner.on_event(now, event);
            }
        }
    }

    fn follow_transitions(&mut self, now: Now) {
        if !self.runner.effects.transitions.is_empty() {
            for transition in std::mem::take(&mut self.runner.effects.transitions) {
                match transition {
                    Transition::Told { shard, told } => self.tell(now, shard, &told),
                    Transition::Leader { shard, leader, .. } => {
                        self.leadership.changed(now);
                        self.leader_since.insert(shard, now.mono);
                        if leader != 0 {
                            self.common.counters.leader_changes.fetch_add(1, Ordering::Relaxed);
                        }
                        self.common.routes.set(shard, leader);
                        self.next_status = now.mono;
                    }
                    Transition::Ready { shard, term, index, resumed, counted, notice } => {
                        self.common.routes.bump();
                        self.tell_ready(now, shard, term, index);
                        let text =
                            format!("the lease clock goes on at {} ms, {} ms were counted", resumed.0, counted.0);
                        let clock = Draft::new(Level::Info, "raft.clock.resumed", text)
                            .with("lastStampMs", resumed.0 - counted.0)
                            .with("resumedAtMs", resumed.0)
                            .with("countedMs", counted.0);
                        self.common.events.tell(clock.of(shard, term, Role::Leader));
                        if let Some(notice) = notice {
                            let draft = Draft::new(Level::Info, notice.name, notice.text).of(shard, term, Role::Leader);
                            let with = |draft: Draft, (name, number)| draft.with(name, number);
                            self.common.events.tell(notice.fields.into_iter().fold(draft, with));
                        }
                    }
                    Transition::FirstWrite { shard, term, last } => {
                        let record = self.elections.on_first_write(now, shard, term, last);
                        self.record(now, shard, record);
                    }
                    Transition::Elections { shard, .. } => self.remember_elections(shard),
                    Transition::Members { shard, members } => {
                        self.tell_configuration(shard);
                        self.follow_incarnation();
                        self.forget_staged();
                        if let (ShardId(0), Some(peers)) = (shard, self.common.peers.get()) {
                            self.tell_changes(&peers.members(), &members);
                            peers.follow(*members);
                        }
                    }
                    Transition::Role { .. } => {}
                }
            }
            self.publish(self.stage());
        }
        if !self.runner.effects.signals.is_empty() {
            (self.observe)(&mut self.runner.effects.signals);
            self.runner.effects.signals.clear();
        }
    }

    /// Why this node hands a group over, if it does so now.
    fn reason(&self, now: Now, shard: ShardId) -> &'static str {
        let records = self.runner.replica.members(ShardId(0));
        match () {
            () if self.leadership.gives_away() => why::SHUTDOWN,
            () if self.leadership.is_out(now) || self.asked_over.contains(&shard) => why::OPERATOR,
            () if records.is_demoted(self.common.me) || records.get(self.common.me).is_none() => why::REMOVED,
            () => why::BALANCE,
        }
    }

    /// Takes note of who is to lead a group next. What has come of it is told when somebody leads.
    fn follow_hand_over(&mut self, now: Now, shard: ShardId, told: &Told) {
        let why = self.reason(now, shard);
        match &told.happening {
            Happening::TransferStarted { to } => {
                self.asked_over.remove(&shard);
                self.handing_over.insert(shard, HandingOver { to: *to, since: now.mono, why });
            }
            Happening::LeaderElected { leader, .. } => {
                let Some(HandingOver { to, since, why }) = self.handing_over.remove(&shard) else { return };
                if to == *leader {
                    let members = self.runner.replica.members(shard);
                    let name_of = |id: u64| members.get(id).map(|one| one.name.clone()).unwrap_or_default();
                    let done = handed_over(&name_of(to), &name_of(self.common.me), now.mono - since, why);
                    self.common.events.tell(done.of(shard, told.term, told.role));
                }
            }
            _ => {}
        }
    }

    /// Tells, as the leader, what has become of the members.
    fn tell_changes(&self, before: &Members, after: &Members) {
        let (term, role) = self.part(ShardId(0));
        // Others hear of it in the configuration. Whoever knew nobody before has only just been told.
        if role != Role::Leader || before.configuration.voters.is_empty() {
            return;
        }
        let by = after.get(self.common.me).map(|me| me.name.clone()).unwrap_or_default();
        changes(before, after, &by)
            .into_iter()
            .for_each(|draft| self.common.events.tell(draft.of(ShardId(0), term, role)));
    }

    /// Puts what has happened in a group into words.
    fn tell(&mut self, now: Now, shard: ShardId, told: &Told) {
        let handing = self.handing_over.get(&shard).map(|over| (over.why, now.mono - over.since));
        let hands_over = handing.map_or_else(|| self.reason(now, shard), |(why, _)| why);
        let members = self.runner.replica.members(shard);
        let name_of = |id: u64| members.get(id).map_or_else(|| Incarnation(id).to_string(), |one| one.name.clone());
        let record = self.elections.on_told(now, self.common.me, shard, told, &name_of);
        self.standing.on_told(shard, &told.happening, &self.common.counters.elections);
        let scene = Scene {
            me: self.common.me,
            group: shard,
            name_of: &name_of,
            tick: tick(&self.config),
            hands_over,
            handing_for: handing.map(|(_, since)| since),
            since_contact: self.elections.since_contact(now, shard),
            asking_for: self.elections.asking_for(now, shard),
            requested_for: self.elections.requested_for(now, shard),
        };
        self.common.events.tell(scene.event(told));
        self.follow_hand_over(now, shard, told);
        if matches!(told.happening, Happening::LeaderElected { .. }) && !self.configured.contains(&shard) {
            self.tell_configuration(shard);
        }
        self.record(now, shard, record);
    }

    fn tell_configuration(&mut self, shard: ShardId) {
        let (term, role) = self.part(shard);
        self.configured.insert(shard);
        let replica = &self.runner.replica;
        let configuration = configuration(replica.applied(shard), replica.members(shard));
        self.common.events.tell(configuration.of(shard, term, role));
    }

    fn tell_ready(&mut self, now: Now, shard: ShardId, term: Term, index: Index) {
        let (since, record) = self.elections.on_ready(now, shard, term);
        let outage = record.as_ref().and_then(Election::outage);
        let text = format!("ready after {} ms, writes accepted", since.0);
        let mut ready = Draft::new(Level::Info, "raft.leader.ready", text)
            .with("firstIndex", index.0)
            .with("sinceElectedMs", since.0)
            .of(shard, term, Role::Leader);
        if let Some(outage) = outage {
            self.common.counters.outages.record_duration(Duration::from_millis(outage.0));
            ready = ready.with("outageMs", outage.0);
        }
        self.common.events.tell(ready);
        self.record(now, shard, record);
    }

    fn tell_start(&self, shard: ShardId) {
        let (term, role) = self.part(shard);
        let status = self.runner.replica.status();
        let Some(status) = status.iter().find(|status| status.shard == shard) else { return };
        let configuration = &self.runner.replica.members(shard).configuration;
        let (last, voters) = (status.consensus.last.0, configuration.voters.len());
        let text = format!("started as follower in term {term}, {voters} voters, last entry {last}");
        let started = Draft::new(Level::Info, "raft.started", text)
            .with("lastIndex", last)
            .with("lastTerm", status.applied_term.0)
            .with("commit", status.consensus.commit.0)
            .with("voters", voters)
            .with("learners", configuration.learners.len())
            .with("storage", &*self.common.kind);
        self.common.events.tell(started.of(shard, term, role));
    }

    /// Says from time to time who leads and how far this node is.
    fn log_status(&mut self, now: Now) {
        if self.config.status_log == Millis(0) || now.mono < self.next_status {
            return;
        }
        self.next_status = now.mono + self.config.status_log;
        let group = ShardId(0);
        let Some(status) = self.runner.replica.status().into_iter().find(|status| status.shard == group) else {
            return;
        };
        let leader = match self.runner.replica.members(group).get(status.consensus.leader) {
            Some(leader) => format!("{} at {}", leader.name, leader.peer),
            None => "unknown".into(),
        };
        let own = if status.consensus.leader == self.common.me { " (this node)" } else { "" };
        let (state, applied) = (role_name(status.consensus.role), status.applied.0);
        let text = format!("leader is {leader}{own}; state {state}, applied {applied}");
        let status_line = Draft::new(Level::Info, "raft.status", text)
            .with("leader", leader)
            .with("self", !own.is_empty())
            .with("state", state)
            .with("applied", applied);
        let (term, role) = (status.consensus.term, status.consensus.role);
        self.common.events.tell(status_line.of(group, term, role).unkept());
    }

    fn part(&self, shard: ShardId) -> (Term, Role) {
        let status = self.runner.replica.status();
        let status = status.iter().find(|status| status.shard == shard).map(|status| status.consensus);
        status.map_or((Term(0), Role::Follower), |status| (status.term, status.role))
    }

    fn record(&mut self, now: Now, shard: ShardId, election: Option<Election>) {
        if let Some(election) = election {
            self.runner.on_event(now, Event::Elected { shard, election });
        }
    }

    fn remember_elections(&self, shard: ShardId) {
        let elections = self.runner.replica.members(shard).elections().clone();
        let mut all = self.common.elections.lock().expect("nothing panics while it holds this lock");
        all.insert(shard, elections);
    }

    fn hand_out_replies(&mut self) {
        if self.runner.effects.replies.is_empty() {
            return;
        }
        let lanes = self.common.lanes.lock().expect("nothing panics while it holds this lock");
        self.replies.resize_with(lanes.len(), Vec::new);
        let mut lost = Vec::new();
        for (client, reply) in self.runner.effects.replies.drain(..) {
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
        let begun = Instant::now();
        let (entries, syncs) = self.runner.write(now).map_err(NodeError::Storage)?;
        let messages = self.runner.keep(now).map_err(NodeError::Storage)?;
        if syncs {
            self.common.counters.sync_time.record_duration(begun.elapsed());
            self.tell_slow(now, begun.elapsed());
            self.watch_sync(now, begun.elapsed());
        }
        self.send(messages);
        if entries > 0 || syncs {
            let stats = self.runner.wal().stats();
            let counters = &self.common.counters;
            counters.entries.fetch_add(entries as u64, Ordering::Relaxed);
            counters.log_syncs.store(stats.syncs, Ordering::Relaxed);
            counters.log_bytes.store(stats.bytes, Ordering::Relaxed);
            counters.log_size.store(stats.size, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Lets what is staged take the places that the log has decided on.
    fn swap(&mut self) {
        for swap in std::mem::take(&mut self.runner.effects.swaps) {
            let shard = swap.shard;
            match self.common.staging.claim(swap.id, shard) {
                Some((path, machine)) => self.runner.swap(swap, path, machine, &mut self.background),
                None => {
                    tracing::warn!(target: "raft", event = "restore.missed", shard = shard.0, "shard {shard} was restored while nothing was staged here: it is asked for as a snapshot");
                    self.runner.replica.ask_for_snapshot(shard);
                }
            }
        }
    }

    fn on_restored(
        &mut self,
        now: Now,
        shard: ShardId,
        members: Members,
        readers: [Box<dyn RowReader>; READERS],
    ) -> Result<(), NodeError> {
        if let Some(rows) = &*self.common.rows.lock().expect("nothing panics while it holds this lock") {
            rows.replace(shard, readers);
        }
        let index = self.runner.restored(now, shard, members, &self.prepare, &mut self.background);
        let index = index.map_err(NodeError::Storage)?;
        self.note_shown(shard);
        let (term, role) = self.part(shard);
        let text = format!("shard {shard} was restored from a backup, at entry {index}");
        let restored = Draft::new(Level::Info, "raft.restored", text).with("index", index.0);
        self.common.events.tell(restored.of(shard, term, role));
        Ok(())
    }

    /// A disk that is slow for long lets the groups go elsewhere, if another voter's is not.
    fn watch_sync(&mut self, now: Now, took: Duration) {
        let took = Millis(took.as_millis() as u64);
        let is_slow = self.slowness.on_sync(now.mono, took);
        let was_slow = self.common.alarms.is_raised(AlarmKind::SlowStorage);
        if is_slow == was_slow {
            return;
        }
        let text = is_slow.then(|| format!("syncs of the log take longer than a second, the last one {} ms", took.0));
        self.common.alarms.set(AlarmKind::SlowStorage, text, now.mono, &self.common.events);
        if !is_slow {
            return;
        }
        let reports = self.common.peers.get().map(|peers| peers.reports()).unwrap_or_default();
        let voters = &self.runner.replica.members(ShardId(0)).configuration.voters;
        let is_fast = |report: &Report| report.alarms.iter().all(|(kind, ..)| *kind != AlarmKind::SlowStorage);
        if reports.iter().any(|(id, (_, report))| voters.contains(id) && is_fast(report)) {
            self.leadership.stay_out(now, HOLD);
        }
    }

    /// Tells of a disk that is slow, until a sync is fast again.
    fn tell_slow(&mut self, now: Now, took: Duration) {
        if let Some(Said::Began | Said::Lasts(_)) = self.slow_sync.look(now.mono, took > SYNC_MAX.to_std()) {
            let ms = took.as_millis() as u64;
            let slow = Draft::new(Level::Warn, "storage.slow", format!("writing and syncing the log took {ms} ms"));
            self.common.events.tell(slow.with("op", "sync").with("ms", ms));
        }
    }

    fn on_installed(&mut self, now: Now, shard: ShardId, readers: [Box<dyn RowReader>; READERS]) {
        if let Some(rows) = &*self.common.rows.lock().expect("nothing panics while it holds this lock") {
            rows.replace(shard, readers);
        }
        let Installed { index, term, took } = self.runner.installed(now, shard, &mut self.background);
        self.note_shown(shard);
        let installed =
            Draft::new(Level::Info, "raft.snapshot.installed", format!("goes on from a snapshot at {index}"))
                .with("index", index.0)
                .with("snapshotTerm", term.0)
                .with("durationMs", took.0);
        let (own_term, role) = self.part(shard);
        self.common.events.tell(installed.of(shard, own_term, role));
    }

    /// Makes known what readers of a shard's checkpoint see.
    fn note_shown(&self, shard: ShardId) {
        if let Some((index, at)) = self.runner.shown(shard) {
            self.common.shown.set(shard, index, at);
        }
    }

    fn on_saved(&mut self, saved: &Saved) -> Result<(), NodeError> {
        let Saved { shard, index, took } = *saved;
        let is_durable = self.runner.saved(shard, index, &mut self.background).map_err(NodeError::Storage)?;
        self.note_shown(shard);
        if !is_durable {
            return Ok(());
        }
        let counters = &self.common.counters;
        counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        counters.checkpoint_micros.fetch_add(took.as_micros() as u64, Ordering::Relaxed);
        let taken = Draft::new(Level::Debug, "raft.snapshot.taken", format!("checkpoint at {index}"))
            .with("index", index.0)
            .with("durationMs", took.as_millis() as u64);
        let (term, role) = self.part(shard);
        self.common.events.tell(taken.of(shard, term, role).unkept());
        Ok(())
    }

    fn stage(&self) -> Stage {
        if self.stopping { Stage::Draining } else { Stage::Running }
    }

    fn publish(&self, stage: Stage) {
        let shards = self.runner.replica.status();
        let led = shards.iter().filter(|shard| shard.consensus.role == Role::Leader);
        let progress = led.map(|shard| (shard.shard, self.runner.replica.progress(shard.shard))).collect();
        let voters = |shard: ShardId| self.runner.replica.members(shard).configuration.voters.clone();
        let voters = self.runner.replica.shards().into_iter().map(|shard| (shard, voters(shard))).collect();
        let leader_since = self.leader_since.clone();
        let restores = self.runner.replica.shards().into_iter();
        let restores = restores.map(|shard| (shard, *self.runner.replica.members(shard).restores())).collect();
        let at = self.clock.now().mono;
        self.common.status.send_replace(NodeStatus { stage, shards, progress, voters, restores, leader_since, at });
    }

    fn leads(&self) -> bool {
        self.runner.replica.shards().into_iter().any(|shard| self.runner.replica.leader(shard) == self.common.me)
    }

    /// Asked to stop, everything taken is finished, and a checkpoint holds it.
    fn is_done(&self) -> bool {
        let given_away = || self.leadership.is_given_away(self.clock.now(), self.common.me, &self.runner.replica);
        if !self.stopping || self.runner.is_saving() || !given_away() {
            return false;
        }
        let all_saved = self.runner.has_saved_all();
        if self.leads() {
            return all_saved && self.common.inbox.is_empty() && self.runner.replica.is_idle();
        }
        // Others go on writing, and what they send would always leave something to save: it is in the log.
        (all_saved || self.runner.has_saved_since_stop()) && self.common.inbox.has_no_requests()
    }

    fn finish(&mut self) -> Result<(), NodeError> {
        self.runner.finish().map_err(NodeError::Storage)
    }

    /// Sleeps if there is nothing to do.
    fn rest(&mut self) -> Result<(), NodeError> {
        let now = self.clock.now();
        if self.runner.is_collecting() || self.runner.replica.has_work(now) || !self.common.inbox.is_empty() {
            return Ok(());
        }
        let show = self.runner.next_show();
        let wakeup = self.runner.replica.next_wakeup(now).into_iter().chain(show).fold(self.next_tick, Mono::min);
        let idle = wakeup - now.mono;
        if idle > Millis(0) {
            self.runner.settle().map_err(NodeError::Storage)?;
            self.common.inbox.sleep(idle.to_std().min(SLEEP_MAX));
        }
        Ok(())
    }
}

/// The unit of consensus time.
fn tick(config: &NodeConfig) -> Millis {
    config.heartbeat.min(Millis(50))
}
