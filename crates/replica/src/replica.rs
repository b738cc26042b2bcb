//! All shards of a node.

use std::collections::BTreeMap;

use base::log::HardState;
use base::machine::StateMachine;
use base::rows::Changes;
use base::{Index, Millis, Mono, ShardId, Term};
use consensus::{Configuration, Group, GroupConfig, LostLog, Message, Progress, Restored};

use crate::event::{AfterSync, Client, Effects, Event, Now, ShardStatus};
use crate::members::{Members, encode_note};
use crate::shard::{Halt, Question, Shard, Start};

/// The group that says which restores there are.
const RECORDS: ShardId = ShardId(0);

/// What a replica is made with.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaConfig {
    /// This node's Raft id, not 0.
    pub id: u64,
    /// Decides election timeouts; random in production, given in the simulator.
    pub seed: u64,
    /// Ticks without a leader until a campaign: drawn from this to twice this.
    pub election_ticks: usize,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Operations in one entry: 1 to `limits::ENTRY_OPERATIONS_MAX`. A larger request travels alone.
    pub entry_operations_max: usize,
    /// Bytes of operations in one entry; a single larger request travels alone.
    pub entry_bytes_max: usize,
    /// Bytes of entries in one message to a member; a single larger entry travels alone.
    pub message_bytes_max: u64,
    /// How often a leader makes sure that it still leads.
    pub lease_renewal: Millis,
    /// How long a question is held when no leader can be asked.
    pub leader_wait: Millis,
    /// Bytes of entries that a checkpoint holds and that are kept for members that lack them; who lacks more gets a snapshot.
    pub trailing_bytes: u64,
}

/// What one shard goes on from.
pub struct RestoreShard<S> {
    /// The state at `index`.
    pub machine: S,
    /// The last entry that the checkpoint covers.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// The members then.
    pub members: Members,
    /// The last hard state in the log.
    pub hard_state: HardState,
    /// The entries in the log behind `index`.
    pub entries: Vec<base::log::Entry>,
    /// The log has the entry at `index`, or none up to there.
    pub(crate) log_leads_here: bool,
}

/// One replica of N shards. See the crate's documentation.
pub struct Replica<S: StateMachine, C> {
    shards: BTreeMap<ShardId, Shard<S, C>>,
}

impl<S: StateMachine, C: Client> Replica<S, C> {
    /// A replica that goes on from what was restored.
    ///
    /// # Errors
    /// A shard's log does not hold what it must.
    pub fn new(
        config: ReplicaConfig,
        restored: impl IntoIterator<Item = (ShardId, RestoreShard<S>)>,
    ) -> Result<Replica<S, C>, (ShardId, LostLog)> {
        let mut shards = BTreeMap::new();
        for (id, shard) in restored {
            let group_config = GroupConfig {
                shard: id,
                id: config.id,
                seed: config.seed,
                election_ticks: config.election_ticks,
                heartbeat_ticks: config.heartbeat_ticks,
                uncommitted_bytes_max: base::limits::UNAPPLIED_BYTES_MAX,
                message_bytes_max: config.message_bytes_max,
            };
            let alone = shard.members.configuration == Configuration::of_one(config.id);
            let from = Restored {
                configuration: shard.members.configuration.clone(),
                applied: shard.index,
                applied_term: shard.term,
                hard_state: shard.hard_state,
                entries: shard.entries,
            };
            let group = Group::new(group_config, &from).map_err(|lost| (id, lost))?;
            let start = Start {
                machine: shard.machine,
                applied: (shard.index, shard.term),
                members: shard.members,
                hard_state: shard.hard_state,
            };
            let mut shard = Shard::new(id, config, group, start);
            // Nobody else could lead, so there is nothing to wait for.
            if alone {
                shard.group_mut().campaign();
            }
            shards.insert(id, shard);
        }
        Ok(Replica { shards })
    }

    /// Takes note of an event. What follows from it comes out of [`Replica::poll`], refusals excepted.
    ///
    /// Events for shards that the node does not carry are ignored: no client can name one.
    pub fn on_event(&mut self, now: Now, event: Event<S, C>, fx: &mut Effects<S, C>) {
        match event {
            Event::Submit { shard, operations, wait, client } => {
                if let Some(shard) = self.shards.get_mut(&shard) {
                    shard.submit(now, operations, wait, client, fx);
                }
            }
            Event::Ask { shard, query, freshness, wait, client } => {
                if let Some(shard) = self.shards.get_mut(&shard) {
                    let wait = wait.map(|wait| (wait.id, now.mono + wait.up_to));
                    shard.ask(now, Question { query, freshness, wait, client }, fx);
                }
            }
            Event::Forget { shard, wait } => {
                if let Some(shard) = self.shards.get_mut(&shard) {
                    shard.forget(wait);
                }
            }
            Event::Message { shard, message } => {
                if let Some(shard) = self.shards.get_mut(&shard) {
                    shard.group_mut().step(message);
                }
            }
            Event::Change { shard, changes, records, client } => {
                if let Some(shard) = self.shards.get_mut(&shard) {
                    shard.change(&changes, &encode_note(&records, None), client, fx);
                }
            }
            Event::Admit { changes, newcomer, admission, client } => {
                if let Some(shard) = self.shards.get_mut(&ShardId(0)) {
                    shard.change(&changes, &encode_note(&[newcomer], Some(&admission)), Some(client), fx);
                }
            }
            Event::Token { step, client } => {
                if let Some(shard) = self.shards.get_mut(&ShardId(0)) {
                    shard.token(&step, client, fx);
                }
            }
            Event::Elected { shard, election } => {
                if let Some(shard) = self.shards.get_mut(&shard) {
                    shard.elected(&election);
                }
            }
            Event::Restore { shard, step, client } => {
                if let Some(shard) = self.shards.get_mut(&shard) {
                    shard.restore(step, Some(client), fx);
                }
            }
            Event::Transfer { shard, to } => {
                if let Some(shard) = self.shards.get_mut(&shard) {
                    shard.group_mut().transfer_to(to);
                }
            }
            Event::Unreachable { member } => {
                self.shards.values_mut().for_each(|shard| shard.group_mut().on_unreachable(member));
            }
            Event::SnapshotSent { shard, to, arrived } => {
                if let Some(shard) = self.shards.get_mut(&shard) {
                    shard.group_mut().on_snapshot_sent(to, arrived);
                }
            }
            Event::Tick => self.shards.values_mut().for_each(|shard| shard.group_mut().tick()),
            Event::Drain => self.shards.values_mut().for_each(|shard| shard.drain(fx)),
        }
    }

    /// Does what has come up, for all shards together. `seeds` yields 128 unpredictable bits for each entry proposed.
    ///
    /// # Errors
    /// A committed entry cannot be applied, or a part of the log is gone: the node must stop.
    pub fn poll(&mut self, now: Now, mut seeds: impl FnMut() -> [u8; 16], fx: &mut Effects<S, C>) -> Result<(), Halt> {
        for id in self.shards() {
            let first = *self.members(RECORDS).restores();
            let shard = self.shard_mut(id);
            shard.follow_restores(&first, fx);
            shard.poll(now, &mut seeds, fx)?;
        }
        // What group 0 has just applied holds for all, and for itself, before anything else is submitted.
        let first = *self.members(RECORDS).restores();
        self.shards.values_mut().for_each(|shard| shard.follow_restores(&first, fx));
        Ok(())
    }

    /// There is nothing staged for the restore that [`Effects::swaps`] asked to finish: the shard gets its state from its leader.
    ///
    /// # Panics
    /// The node does not carry the shard.
    pub fn ask_for_snapshot(&mut self, shard: ShardId) {
        self.shard_mut(shard).ask_for_snapshot();
    }

    /// What was staged for the restore that [`Effects::swaps`] asked to finish is the shard's checkpoint, and `machine` and `members` are
    /// what it holds. Returns the state before, which the caller should drop where nobody waits. A save in progress has ended without
    /// success.
    ///
    /// # Panics
    /// The node does not carry the shard, or it finishes no restore.
    pub fn restored(&mut self, now: Now, shard: ShardId, machine: S, members: Members, fx: &mut Effects<S, C>) -> S {
        self.shard_mut(shard).restored(now, machine, members, fx)
    }

    /// All writes of the effects that `after_sync` belongs to are durable. Returns what may be sent now.
    pub fn on_synced(&mut self, after_sync: AfterSync) -> Vec<(ShardId, Message)> {
        for (shard, ticket) in after_sync.tickets {
            if let Some(shard) = self.shards.get_mut(&shard) {
                shard.on_synced(ticket);
            }
        }
        after_sync.messages
    }

    /// Whether this node asks for no group's leadership unless a leader hands it over. It votes as ever.
    pub fn stay_out(&mut self, out: bool) {
        self.shards.values_mut().for_each(|shard| shard.group_mut().stay_out(out));
    }

    /// Asks for votes in every group without waiting for a timeout: for the node that is to lead a new cluster first.
    pub fn campaign(&mut self) {
        self.shards.values_mut().for_each(|shard| shard.group_mut().campaign());
    }

    /// Whether another [`Replica::poll`] has something to do at once.
    pub fn has_work(&self, now: Now) -> bool {
        self.shards.values().any(|shard| shard.has_work(now))
    }

    /// Whether all that was submitted has been proposed and nothing of consensus is to be done.
    pub fn is_idle(&self) -> bool {
        self.shards.values().all(Shard::is_idle)
    }

    /// When a [`Replica::poll`] is wanted although nothing happens.
    pub fn next_wakeup(&mut self, now: Now) -> Option<Mono> {
        self.shards.values_mut().filter_map(|shard| shard.next_wakeup(now)).min()
    }

    /// Whether the shard takes more operations before the next [`Replica::poll`]. What does not fit stays where it waits.
    pub fn has_room(&self, shard: ShardId) -> bool {
        self.shards.get(&shard).is_none_or(|shard| shard.has_room())
    }

    /// Where all shards stand.
    pub fn status(&self) -> Vec<ShardStatus> {
        self.shards.values().map(Shard::status).collect()
    }

    /// The shards.
    pub fn shards(&self) -> Vec<ShardId> {
        self.shards.keys().copied().collect()
    }

    /// A shard's state machine: for settings of this node that are not replicated.
    ///
    /// # Panics
    /// The node does not carry the shard.
    pub fn machine_mut(&mut self, shard: ShardId) -> &mut S {
        self.shard_mut(shard).machine_mut()
    }

    /// Marks a shard's present state as the one to be saved; returns what a checkpoint of it is of: index, term and members.
    ///
    /// # Panics
    /// The node does not carry the shard.
    pub fn freeze(&mut self, shard: ShardId) -> (Index, Term, Vec<u8>) {
        self.shard_mut(shard).freeze()
    }

    /// Lists about `rows_max` more changes of the frozen state. True: those were the last.
    ///
    /// # Panics
    /// The node does not carry the shard, or it is not frozen.
    pub fn collect(&mut self, shard: ShardId, rows_max: usize, changes: &mut Changes) -> bool {
        self.shard_mut(shard).machine_mut().collect(rows_max, changes)
    }

    /// The checkpoint of the frozen state is durable: entries up to there are forgotten, but for those that members nearby lack. Returns
    /// what the caller should drop where nobody waits.
    ///
    /// # Panics
    /// The node does not carry the shard, or it is not frozen.
    pub fn saved(&mut self, shard: ShardId) -> Box<dyn Send> {
        self.shard_mut(shard).saved()
    }

    /// Readers see the checkpoint of the frozen state, which is not durable. Returns what the caller should drop where nobody waits.
    ///
    /// # Panics
    /// The node does not carry the shard, or it is not frozen.
    pub fn shown(&mut self, shard: ShardId) -> Box<dyn Send> {
        self.shard_mut(shard).shown()
    }

    /// The snapshot that [`Effects::installs`] asked for is the shard's checkpoint, and `machine` and `members` are what it holds. Returns
    /// the state before, which the caller should drop where nobody waits. A save in progress has ended without success.
    ///
    /// # Panics
    /// The node does not carry the shard, or it installs nothing.
    pub fn installed(&mut self, now: Now, shard: ShardId, machine: S, members: Members, fx: &mut Effects<S, C>) -> S {
        self.shard_mut(shard).installed(now, machine, members, fx)
    }

    /// The members of a group.
    ///
    /// # Panics
    /// The node does not carry the shard.
    pub fn members(&self, shard: ShardId) -> &Members {
        self.shard(shard).members()
    }

    /// The first entry of a group's log that this node can still send.
    ///
    /// # Panics
    /// The node does not carry the shard.
    pub fn first(&self, shard: ShardId) -> Index {
        self.shard(shard).status().consensus.first
    }

    /// The last entry that a shard has applied.
    pub fn applied(&self, shard: ShardId) -> Index {
        self.shard(shard).applied()
    }

    /// Entries that all shards have applied, from the beginning of their logs.
    pub fn applied_entries(&self) -> u64 {
        self.shards.values().map(|shard| shard.applied().0).sum()
    }

    /// Whether a member of a group that this node leads needs a snapshot for which the last checkpoint is too old.
    pub fn wants_checkpoint(&self) -> bool {
        self.shards.values().any(Shard::wants_checkpoint)
    }

    /// Who leads a group, as far as this node knows: its id; 0: nobody.
    ///
    /// # Panics
    /// The node does not carry the shard.
    pub fn leader(&self, shard: ShardId) -> u64 {
        self.shard(shard).status().consensus.leader
    }

    /// What this node knows of the members of a group that it leads.
    ///
    /// # Panics
    /// The node does not carry the shard.
    pub fn progress(&self, shard: ShardId) -> Vec<Progress> {
        self.shard(shard).progress()
    }

    /// Whether this node hands the leadership of a group over just now.
    ///
    /// # Panics
    /// The node does not carry the shard.
    pub fn is_transferring(&self, shard: ShardId) -> bool {
        self.shard(shard).is_transferring()
    }

    fn shard(&self, shard: ShardId) -> &Shard<S, C> {
        self.shards.get(&shard).expect("the node carries this shard")
    }

    fn shard_mut(&mut self, shard: ShardId) -> &mut Shard<S, C> {
        self.shards.get_mut(&shard).expect("the node carries this shard")
    }
}
