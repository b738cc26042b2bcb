//! What a run is made of: every number that a seed draws, each with a name by which it can be set.
//!
//! Rates of rare things are mean times between them in milliseconds, 0: never. Chances are parts per million.

use std::collections::BTreeMap;
use std::fmt;

use base::rng::SplitMix;

macro_rules! options {
    ($($name:ident $about:literal)*) => {
        /// See the module's documentation.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Options { $(#[doc = $about] pub $name: u64,)* }

        impl Options {
            /// All names, with what they are.
            pub const NAMES: &'static [(&'static str, &'static str)] = &[$((stringify!($name), $about),)*];

            fn place(&mut self, name: &str) -> Option<&mut u64> {
                match name { $(stringify!($name) => Some(&mut self.$name),)* _ => None }
            }

            /// Names and numbers, in order.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

options! {
    nodes "Nodes that found the cluster."
    spares "Nodes that may join later."
    shards "Raft groups."
    storm_ms "Length of the storm."
    operations "Operations that must be answered for the run to show anything."
    drain_ms "Longest time from the heal until nothing is left to do."
    election_ms "Election timeout."
    heartbeat_ms "Between heartbeats."
    checkpoint_ms "Between checkpoints."
    checkpoint_log_bytes "Bytes of log that make a checkpoint sooner."
    trailing_bytes "Bytes of log kept behind a checkpoint."
    segment_bytes "Size of a segment of the log."
    entry_operations "Operations in one entry."
    inbox "Requests that wait for the loop, per shard."
    live_tasks_max "Live tasks of a shard; 0: no limit."
    payload_memory "Bytes of payloads kept in memory per shard."
    message_bytes "Bytes of entries in one message of consensus."
    due_per_entry "Delays and leases that one entry ends at most."
    install_us "Time of putting a snapshot in the place of a checkpoint."
    leader_wait_ms "How long a request is held while nobody leads."
    propose_timeout_ms "How long an edge waits for an answer."
    lease_ms "Default length of a lease."
    lease_min_ms "Shortest lease."
    backoff_ms "Base of the delays between attempts."
    backoff_max_ms "Longest delay between attempts."
    backoff_kind "Shape of the delays: 0 fixed to 4 full jitter."
    max_attempts "Deliveries of a task."
    key_window_ms "How long an idempotency key is bound."
    retention_ms "How long ended tasks are kept."
    delay_ms "Longest delay of a new task."
    producers "Producers."
    workers "Workers."
    readers "Readers."
    meddlers "Who cancels and redrives."
    operators "Who pauses queues and changes what waits."
    pace_ms "Mean time between two operations of a client."
    queues "Queues per tenant."
    tenants "Tenants."
    batch "Creations in one batch."
    claim_count "Tasks wanted by one claim."
    keyed "Chance that a creation has a key."
    delayed "Chance that a creation is delayed."
    bad_workers "Chance that a worker is not honest."
    amends "Chance that a dead task is changed before it is wanted again."
    beats "Chance that a worker extends all its leases at once."
    latency_us "Base latency of a link."
    jitter_us "Mean of what comes on top."
    spike "Chance that a message takes 100 to 800 ms."
    datagram "1: messages of consensus may be lost, doubled and reordered."
    loss "Chance that a datagram is lost."
    duplicate "Chance that it comes twice."
    reorder "Chance that it is overtaken."
    reset_ms "Between resets of a connection, per link."
    half_open "Chance that a reset is noticed by one side only, seconds later."
    netsplit_ms "Between netsplits."
    netsplit_length_ms "Longest netsplit."
    crash_ms "Between crashes, per node."
    power_losses "Losses of power of all nodes at once."
    restart_ms "Longest time until a crashed node is back, mostly."
    pause_ms "Between pauses."
    pause_length_ms "Longest pause."
    slow_ms "Between times of a slow processor."
    sync_us "Time of a sync."
    slow_disk_ms "Between times of a slow disk."
    slow_sync_us "Time of a sync while the disk is slow."
    disk_error_ms "Between failures of writes and syncs, under the damage rule."
    no_space_ms "Between times without space on a disk."
    bit_flip_ms "Between flips of a bit, under the damage rule."
    drift_ppm "How fast clocks drift apart at most."
    wall_drift_ppm "The same of wall clocks."
    wall_jumps "Jumps of wall clocks."
    member_ms "Between changes of members."
    wipe_ms "Between losses of a whole disk, under the damage rule."
    transfer_ms "Between transfers of leadership."
    save_ms "Between checkpoints forced by an operator."
    overloads "Times of overload."
    restores "1: behind the run, a backup is restored while nodes die."
    quiet_ms "Length of the quiet window at the end of the storm."
}

fn log_uniform(rng: &mut SplitMix, low: u64, high: u64) -> u64 {
    // By octaves: every factor of two is as likely as any other.
    let (mut low, octaves) = (low.max(1), (high / low.max(1)).max(1).ilog2());
    low <<= rng.below(u64::from(octaves) + 1);
    (low + rng.below(low + 1)).min(high)
}

fn between(rng: &mut SplitMix, low: u64, high: u64) -> u64 {
    low + rng.below(high - low + 1)
}

/// The classes of faults: the options that switch each of them on.
pub const CLASSES: &[(&str, &[&str])] = &[
    ("datagrams", &["datagram", "loss", "duplicate", "reorder"]),
    ("resets", &["reset_ms"]),
    ("latency", &["jitter_us", "spike"]),
    ("netsplits", &["netsplit_ms"]),
    ("crashes", &["crash_ms"]),
    ("power", &["power_losses"]),
    ("pauses", &["pause_ms"]),
    ("slow", &["slow_ms"]),
    ("disk-errors", &["disk_error_ms"]),
    ("no-space", &["no_space_ms"]),
    ("slow-disk", &["slow_disk_ms"]),
    ("bit-flips", &["bit_flip_ms"]),
    ("clocks", &["drift_ppm", "wall_drift_ppm", "wall_jumps"]),
    ("members", &["member_ms", "spares"]),
    ("wipes", &["wipe_ms"]),
    ("transfers", &["transfer_ms"]),
    ("overload", &["overloads"]),
];

impl Options {
    /// What a seed draws.
    pub fn draw(seed: u64) -> Options {
        let (options, mut rng) = Options::with_all_classes(seed);
        let mode = rng.below(100);
        let only = rng.below(CLASSES.len() as u64) as usize;
        let off = CLASSES.iter().enumerate().filter(|(place, _)| match mode {
            0..5 => true,
            5..15 => *place != only,
            _ => !rng.one_in(2),
        });
        let options = off.fold(options, |options, (_, (class, _))| options.without(class));
        Options { restores: u64::from(rng.one_in(4)), ..options }
    }

    /// What a seed draws, with these classes of faults on and no others; `none` is none.
    ///
    /// # Errors
    /// There is no such class.
    pub fn focused(seed: u64, classes: &[String]) -> Result<Options, String> {
        let known = CLASSES.iter().map(|(name, _)| *name);
        if let Some(unknown) =
            classes.iter().find(|class| *class != "none" && !known.clone().any(|name| name == class.as_str()))
        {
            return Err(format!("there is no class {unknown}; there are {}", known.collect::<Vec<_>>().join(", ")));
        }
        let off = known.filter(|class| !classes.iter().any(|wanted| wanted == class));
        Ok(off.fold(Options::with_all_classes(seed).0, |options, class| options.without(class)))
    }

    /// A small cluster to which nothing happens by itself, with work for it.
    pub fn calm() -> Options {
        Options {
            nodes: 3,
            spares: 2,
            shards: 1,
            operations: 50,
            drain_ms: 240_000,
            election_ms: 500,
            heartbeat_ms: 50,
            checkpoint_ms: 1_000,
            checkpoint_log_bytes: 64 << 10,
            segment_bytes: 16 << 10,
            entry_operations: 16,
            message_bytes: 1 << 20,
            due_per_entry: 4_096,
            install_us: 5_000,
            inbox: 64,
            payload_memory: 1 << 30,
            leader_wait_ms: 1_000,
            propose_timeout_ms: 2_000,
            lease_ms: 1_000,
            lease_min_ms: 50,
            backoff_ms: 100,
            backoff_max_ms: 10_000,
            max_attempts: 3,
            key_window_ms: 20_000,
            retention_ms: 20_000,
            delay_ms: 1_000,
            producers: 2,
            workers: 3,
            readers: 1,
            meddlers: 1,
            operators: 0,
            amends: 0,
            pace_ms: 200,
            queues: 2,
            tenants: 1,
            batch: 4,
            claim_count: 4,
            keyed: 300_000,
            delayed: 300_000,
            bad_workers: 300_000,
            latency_us: 500,
            jitter_us: 500,
            restart_ms: 500,
            sync_us: 500,
            ..Options::default()
        }
    }

    /// What a seed draws before it switches classes of faults off, and the generator with which it does.
    fn with_all_classes(seed: u64) -> (Options, SplitMix) {
        let mut generator = SplitMix::new(base::rng::mix_all(&[seed, 0x0071_0057]));
        let rng = &mut generator;
        let shape = rng.below(100);
        let (nodes, spares) = match shape {
            0..15 => (1, 0),
            15..85 => (3, 2),
            85..95 => (5, 1),
            _ => (1, 2),
        };
        let (producers, workers) = (between(rng, 1, 4), between(rng, 2, 8));
        let (readers, meddlers) = (between(rng, 0, 3), between(rng, 0, 2));
        // Together they ask for 8 to 32 operations in a second.
        let clients = producers + workers + readers + meddlers;
        let rate = log_uniform(rng, 8, 32);
        let heartbeat = [20, 50, 100][rng.below(3) as usize];
        let small = &mut SplitMix::new(base::rng::mix_all(&[seed, 0x0071_0058]));
        let options = Options {
            nodes,
            spares,
            shards: [1, 1, 2, 4][rng.below(4) as usize],
            storm_ms: between(rng, 60_000, 240_000).max(1_500_000 / rate),
            operations: 200,
            drain_ms: 240_000,
            heartbeat_ms: heartbeat,
            election_ms: heartbeat * between(rng, 5, 12),
            checkpoint_ms: log_uniform(rng, 500, 20_000),
            checkpoint_log_bytes: log_uniform(rng, 8 << 10, 1 << 20),
            trailing_bytes: [0, 4 << 10, 16 << 10, 64 << 10][rng.below(4) as usize],
            segment_bytes: (4 << 10) << rng.below(5),
            entry_operations: log_uniform(rng, 1, 64),
            inbox: log_uniform(rng, 4, 64),
            live_tasks_max: if rng.one_in(4) { between(rng, 50, 500) } else { 0 },
            payload_memory: if rng.one_in(2) { 1 << 30 } else { log_uniform(rng, 256, 64 << 10) },
            message_bytes: if small.one_in(2) { log_uniform(small, 1, 4 << 10) } else { 1 << 20 },
            due_per_entry: if small.one_in(2) { log_uniform(small, 1, 64) } else { 4_096 },
            install_us: log_uniform(small, 1_000, 3_000_000),
            leader_wait_ms: between(rng, 200, 2_000),
            propose_timeout_ms: between(rng, 1_000, 5_000),
            lease_ms: log_uniform(rng, 200, 30_000),
            lease_min_ms: 50,
            backoff_ms: log_uniform(rng, 1, 2_000),
            backoff_max_ms: 10_000,
            backoff_kind: rng.below(5),
            max_attempts: between(rng, 1, 6),
            key_window_ms: log_uniform(rng, 1_000, 60_000),
            retention_ms: log_uniform(rng, 1_000, 120_000),
            delay_ms: log_uniform(rng, 100, 30_000),
            producers,
            workers,
            readers,
            meddlers,
            operators: between(small, 0, 2),
            pace_ms: clients * 1_000 / rate,
            queues: between(rng, 1, 4),
            tenants: between(rng, 1, 2),
            batch: log_uniform(rng, 1, 16),
            claim_count: log_uniform(rng, 1, 16),
            keyed: rng.below(1_000_000),
            delayed: rng.below(600_000),
            bad_workers: rng.below(700_000),
            amends: SplitMix::new(base::rng::mix_all(&[seed, 0x0071_0059])).below(500_000),
            beats: if small.one_in(2) { small.below(200_000) } else { 0 },
            latency_us: log_uniform(rng, 50, 5_000),
            jitter_us: log_uniform(rng, 50, 30_000),
            spike: log_uniform(rng, 10, 5_000),
            datagram: 1,
            loss: log_uniform(rng, 1_000, 300_000),
            duplicate: log_uniform(rng, 1_000, 500_000),
            reorder: log_uniform(rng, 1_000, 500_000),
            reset_ms: log_uniform(rng, 5_000, 300_000),
            half_open: rng.below(500_000),
            netsplit_ms: log_uniform(rng, 5_000, 60_000),
            netsplit_length_ms: log_uniform(rng, 100, 30_000),
            crash_ms: log_uniform(rng, 10_000, 300_000),
            power_losses: between(rng, 1, 2),
            restart_ms: log_uniform(rng, 50, 10_000),
            pause_ms: log_uniform(rng, 10_000, 120_000),
            pause_length_ms: log_uniform(rng, 100, 60_000),
            slow_ms: log_uniform(rng, 10_000, 60_000),
            sync_us: log_uniform(rng, 100, 5_000),
            slow_disk_ms: log_uniform(rng, 10_000, 60_000),
            slow_sync_us: log_uniform(rng, 10_000, 1_000_000),
            disk_error_ms: log_uniform(rng, 20_000, 120_000),
            no_space_ms: log_uniform(rng, 30_000, 120_000),
            bit_flip_ms: log_uniform(rng, 20_000, 120_000),
            drift_ppm: log_uniform(rng, 10, 10_000),
            wall_drift_ppm: log_uniform(rng, 10, 50_000),
            wall_jumps: between(rng, 1, 5),
            member_ms: log_uniform(rng, 10_000, 120_000),
            wipe_ms: log_uniform(rng, 40_000, 200_000),
            transfer_ms: log_uniform(rng, 5_000, 120_000),
            save_ms: if rng.one_in(3) { log_uniform(rng, 1_000, 30_000) } else { 0 },
            overloads: between(rng, 1, 3),
            restores: 0,
            quiet_ms: if rng.one_in(4) { between(rng, 5_000, 20_000) } else { 0 },
        };
        (options, generator)
    }

    /// Switches a class of faults off.
    pub fn without(&self, class: &str) -> Options {
        let mut options = self.clone();
        let names = CLASSES.iter().find(|(name, _)| *name == class).map_or(&[][..], |(_, names)| names);
        names.iter().for_each(|name| *options.place(name).expect("it is an option") = 0);
        options
    }

    /// Sets `name=number`.
    ///
    /// # Errors
    /// There is no such option, or this is no number.
    pub fn set(&mut self, text: &str) -> Result<(), String> {
        let (name, number) = text.split_once('=').ok_or_else(|| format!("{text} is not name=number"))?;
        let number = number.parse().map_err(|_| format!("{number} is not a number"))?;
        *self.place(name).ok_or_else(|| format!("there is no option {name}"))? = number;
        Ok(())
    }

    /// The settings that make what `seed` draws into these.
    pub fn overrides(&self, seed: u64) -> Vec<String> {
        let drawn: BTreeMap<&str, u64> = Options::draw(seed).all().into_iter().collect();
        let differs = |(name, number): &(&'static str, u64)| drawn[name] != *number;
        self.all().into_iter().filter(differs).map(|(name, number)| format!("{name}={number}")).collect()
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.all().iter().map(|(name, number)| format!("{name}={number}")).collect();
        f.write_str(&all.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is set reads back as an override of what the seed draws, and nothing else is one.
    #[test]
    fn overrides_are_what_differs() {
        let mut options = Options::draw(7);
        assert_eq!(options.overrides(7), Vec::<String>::new());
        options.set("nodes=9").expect("it is an option");
        assert_eq!(options.overrides(7), ["nodes=9"]);
        assert!(options.set("node=9").is_err() && options.set("nodes=x").is_err());
    }
}
