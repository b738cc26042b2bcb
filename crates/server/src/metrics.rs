//! What is measured, and the page that shows it. Names, types, labels and meanings stand in [`families`].

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use base::Millis;
use cluster::view::{Contact, Inspection};
use cluster::{AlarmKind, Handle, Histogram, Role};
use queue::outcome::QueueStats;
use queue::{QueueMachine, Signal, State};

use crate::families::{self, Family};

/// Upper bounds of the buckets of a task's life, in seconds.
const LATENCY_BUCKETS: [f64; 14] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];

/// Counts by queue name.
pub struct Metrics {
    commands: Mutex<BTreeMap<Arc<str>, Counts>>,
    /// Distinct names; the rest is counted as `other`.
    commands_max: usize,
}

#[derive(Default)]
struct Counts {
    created: u64,
    claimed: u64,
    expired: u64,
    completed: Latency,
    failed: Latency,
}

/// How long tasks lived, by the way they ended.
#[derive(Default)]
struct Latency {
    buckets: [u64; LATENCY_BUCKETS.len()],
    count: u64,
    sum_ms: u64,
}

impl Metrics {
    /// Counts for at most so many queue names.
    pub fn new(commands_max: usize) -> Metrics {
        Metrics { commands: Mutex::new(BTreeMap::new()), commands_max }
    }

    /// Takes what the state machine tells of applied entries.
    pub fn observe(&self, signals: &mut Vec<Signal>) {
        let mut commands = self.commands.lock().expect("nothing panics while it holds this lock");
        for signal in signals.drain(..) {
            match signal {
                Signal::Created { command } => self.counts(&mut commands, &command).created += 1,
                Signal::Claimed { command } => self.counts(&mut commands, &command).claimed += 1,
                Signal::LeaseExpired { command } => self.counts(&mut commands, &command).expired += 1,
                // For those who follow events.
                Signal::Begun { .. } | Signal::Told(_) => {}
                Signal::Ended { command, state, lived } => {
                    let counts = self.counts(&mut commands, &command);
                    let latency = if state == State::Completed { &mut counts.completed } else { &mut counts.failed };
                    latency.count += 1;
                    latency.sum_ms += lived.0;
                    let seconds = lived.0 as f64 / 1000.0;
                    if let Some(bucket) = LATENCY_BUCKETS.iter().position(|bound| seconds <= *bound) {
                        latency.buckets[bucket] += 1;
                    }
                }
            }
        }
    }

    fn counts<'a>(&self, commands: &'a mut BTreeMap<Arc<str>, Counts>, command: &Arc<str>) -> &'a mut Counts {
        let command = if commands.len() >= self.commands_max && !commands.contains_key(command) {
            "other".into()
        } else {
            command.clone()
        };
        commands.entry(command).or_default()
    }

    /// Everything in Prometheus' text format.
    pub(crate) fn render(
        &self,
        queues: &[QueueStats],
        node: &Handle<QueueMachine>,
        waiting: usize,
        streams: usize,
        backup: Option<Millis>,
    ) -> String {
        let mut out = String::with_capacity(16 << 10);
        self.render_commands(&mut out);
        self.render_depths(&mut out, queues);
        render_node(&mut out, node, waiting);
        one(&mut out, &families::EVENT_STREAMS, streams as f64);
        let alarms = node.inspect().alarms();
        head(&mut out, &families::ALARMS);
        for kind in AlarmKind::ALL {
            let raised = alarms.iter().filter(|alarm| alarm.kind == kind.name()).count();
            line(&mut out, &families::ALARMS, &[kind.name()], raised as f64);
        }
        if let Some(age) = backup {
            one(&mut out, &families::BACKUP_AGE, age.0 as f64 / 1e3);
        }
        out
    }

    fn render_commands(&self, out: &mut String) {
        let commands = self.commands.lock().expect("nothing panics while it holds this lock");
        let mut counter = |family: &Family, value: &dyn Fn(&Counts) -> u64| {
            head(out, family);
            for (command, counts) in commands.iter() {
                line(out, family, &[command], value(counts) as f64);
            }
        };
        counter(&families::CREATED, &|counts| counts.created);
        counter(&families::CLAIMED, &|counts| counts.claimed);
        counter(&families::EXPIRED, &|counts| counts.expired);
        let ended = |counts: &Counts| [("COMPLETED", counts.completed.count), ("FAILED", counts.failed.count)];
        head(out, &families::COMPLETED);
        for (command, counts) in commands.iter() {
            for (status, count) in ended(counts) {
                line(out, &families::COMPLETED, &[command, status], count as f64);
            }
        }
        head(out, &families::LATENCY);
        for (command, counts) in commands.iter() {
            for (status, latency) in [("COMPLETED", &counts.completed), ("FAILED", &counts.failed)] {
                let mut below = 0;
                let buckets = LATENCY_BUCKETS.iter().zip(latency.buckets).map(|(bound, count)| {
                    below += count;
                    (*bound, below)
                });
                let sum = latency.sum_ms as f64 / 1000.0;
                buckets_of(out, &families::LATENCY, &[command, status], buckets, (latency.count, sum));
            }
        }
    }

    fn render_depths(&self, out: &mut String, queues: &[QueueStats]) {
        let mut depths: BTreeMap<&str, [u64; 4]> = BTreeMap::new();
        for queue in queues {
            let command = if depths.len() >= self.commands_max && !depths.contains_key(&*queue.command) {
                "other"
            } else {
                &queue.command
            };
            let depth = &queue.depth;
            let sums = depths.entry(command).or_default();
            for (sum, count) in sums.iter_mut().zip([depth.ready_total(), depth.delayed, depth.leased, depth.dead]) {
                *sum += count;
            }
        }
        head(out, &families::QUEUE_DEPTH);
        for (command, counts) in &depths {
            for (queue, count) in ["ready", "delayed", "in_progress", "dlq"].into_iter().zip(counts) {
                line(out, &families::QUEUE_DEPTH, &[command, queue], *count as f64);
            }
        }
        head(out, &families::DLQ_DEPTH);
        for (command, counts) in &depths {
            line(out, &families::DLQ_DEPTH, &[command], counts[3] as f64);
        }
    }
}

/// How long the certificates at the ports for peers and for clients still hold.
pub(crate) fn render_certificates(out: &mut String, certificates: &[(&str, i64)]) {
    if certificates.is_empty() {
        return;
    }
    head(out, &families::CERTIFICATE_LEFT);
    for (port, left) in certificates {
        line(out, &families::CERTIFICATE_LEFT, &[port], *left as f64);
    }
}

fn render_node(out: &mut String, node: &Handle<QueueMachine>, waiting: usize) {
    let counters = node.counters();
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed) as f64;
    one(out, &families::OPERATIONS, read(&counters.operations));
    one(out, &families::ENTRIES, read(&counters.entries));
    one(out, &families::SYNCS, read(&counters.log_syncs));
    one(out, &families::WRITTEN, read(&counters.log_bytes));
    one(out, &families::REFUSED, read(&counters.refused));
    one(out, &families::TURNS, read(&counters.turns));
    one(out, &families::INBOX_DEPTH, node.queued() as f64);
    one(out, &families::WAITERS, waiting as f64);
    head(out, &families::STORAGE);
    line(out, &families::STORAGE, &["log"], read(&counters.log_size));
    head(out, &families::CHECKPOINT);
    sample(out, &families::CHECKPOINT, "_sum", &[], None, read(&counters.checkpoint_micros) / 1e6);
    sample(out, &families::CHECKPOINT, "_count", &[], None, read(&counters.checkpoints));
    let seconds = |micros: u64| micros as f64 / 1e6;
    let count = |count: u64| count as f64;
    histogram(out, &families::COMMIT, &counters.commit_time, &seconds);
    histogram(out, &families::APPLY, &counters.apply_time, &seconds);
    histogram(out, &families::SYNC, &counters.sync_time, &seconds);
    histogram(out, &families::BATCH, &counters.batch_operations, &count);
    render_groups(out, node);
    head(out, &families::BUILD_INFO);
    line(out, &families::BUILD_INFO, &[env!("CARGO_PKG_VERSION")], 1.0);
}

fn render_groups(out: &mut String, node: &Handle<QueueMachine>) {
    let look = node.inspect();
    let groups = &look.shards;
    let mut group = |family: &Family, value: &dyn Fn(&cluster::ShardStatus) -> u64| {
        head(out, family);
        for shard in groups {
            line(out, family, &[&shard.shard.to_string()], value(shard) as f64);
        }
    };
    group(&families::TERM, &|shard| shard.consensus.term.0);
    group(&families::COMMIT_INDEX, &|shard| shard.consensus.commit.0);
    group(&families::APPLIED_INDEX, &|shard| shard.applied.0);
    group(&families::CHECKPOINT_INDEX, &|shard| shard.checkpoint.0);
    group(&families::IS_LEADER, &|shard| u64::from(shard.ready));
    group(&families::SKIPPED, &|shard| shard.skipped);
    group(&families::HAS_LEADER, &|shard| u64::from(shard.consensus.leader != 0));
    head(out, &families::ROLE);
    for shard in groups {
        for (role, played) in ROLES {
            let plays = f64::from(u8::from(shard.consensus.role == played));
            line(out, &families::ROLE, &[&shard.shard.to_string(), role], plays);
        }
    }
    head(out, &families::LAST_CONTACT);
    for shard in groups {
        if let Some(heard) = node.contact_age(shard.shard) {
            line(out, &families::LAST_CONTACT, &[&shard.shard.to_string()], heard.0 as f64 / 1000.0);
        }
    }
    let quorum = look.quorum();
    let reaches = quorum.needed > 0 && quorum.reachable >= quorum.needed;
    one(out, &families::QUORUM_REACHABLE, f64::from(u8::from(reaches)));
    one(out, &families::FAILURE_TOLERANCE, quorum.failure_tolerance as f64);
    render_members(out, &look);
    let counters = node.counters();
    head(out, &families::ELECTIONS);
    for (cause, result, count) in counters.elections.all() {
        line(out, &families::ELECTIONS, &[cause, result], count as f64);
    }
    histogram(out, &families::OUTAGE, &counters.outages, &|micros| micros as f64 / 1e6);
    one(out, &families::LEADER_CHANGES, counters.leader_changes.load(Relaxed) as f64);
    one(out, &families::EVENTS_LOST, node.events_lost() as f64);
}

/// The members, as this node sees them.
fn render_members(out: &mut String, look: &Inspection) {
    head(out, &families::MEMBER_HEALTHY);
    for node in look.nodes().nodes {
        line(out, &families::MEMBER_HEALTHY, &[&node.name], f64::from(u8::from(node.healthy)));
    }
    let others: Vec<_> = look.members.iter().filter(|member| member.id != look.id).collect();
    let mut of_peers = |family: &Family, value: &dyn Fn(Contact) -> Option<f64>| {
        head(out, family);
        for peer in &others {
            if let Some(value) = value(look.contacts.get(&peer.id).copied().unwrap_or_default()) {
                line(out, family, &[&peer.name], value);
            }
        }
    };
    of_peers(&families::PEER_UP, &|contact| Some(f64::from(u8::from(contact.connected))));
    of_peers(&families::PEER_RTT, &|contact| contact.rtt_micros.map(|micros| micros as f64 / 1e6));
    head(out, &families::PEER_LAG);
    for group in look.groups() {
        for peer in group.peers.iter().filter(|peer| peer.name != look.name) {
            line(out, &families::PEER_LAG, &[&peer.name, &group.group.to_string()], peer.lag as f64);
        }
    }
}

/// The parts that a node can play in a group.
const ROLES: [(&str, Role); 4] = [
    ("leader", Role::Leader),
    ("follower", Role::Follower),
    ("candidate", Role::Candidate),
    ("pre-candidate", Role::PreCandidate),
];

/// `shown` turns a recorded value into the unit of the series.
fn histogram(out: &mut String, family: &Family, histogram: &Histogram, shown: &dyn Fn(u64) -> f64) {
    head(out, family);
    let buckets = histogram.up_to_bounds().into_iter().map(|(bound, below)| (shown(bound), below));
    let (count, sum) = histogram.totals();
    buckets_of(out, family, &[], buckets, (count, shown(sum)));
}

/// The series of one histogram: how many values are at most each bound, how many there are, and their sum.
fn buckets_of(
    out: &mut String,
    family: &Family,
    values: &[&str],
    buckets: impl Iterator<Item = (f64, u64)>,
    (count, sum): (u64, f64),
) {
    for (bound, below) in buckets {
        sample(out, family, "_bucket", values, Some(&bound.to_string()), below as f64);
    }
    sample(out, family, "_bucket", values, Some("+Inf"), count as f64);
    sample(out, family, "_sum", values, None, sum);
    sample(out, family, "_count", values, None, count as f64);
}

/// A family of one series.
fn one(out: &mut String, family: &Family, value: f64) {
    head(out, family);
    line(out, family, &[], value);
}

/// Announces a family; its samples follow.
fn head(out: &mut String, Family { name, kind, help, .. }: &Family) {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {}", kind.name()).expect("a string takes all");
}

fn line(out: &mut String, family: &Family, values: &[&str], value: f64) {
    sample(out, family, "", values, None, value);
}

/// One sample. `values`: those of the family's labels, in their order; names of commands, nodes and the like need no escape.
fn sample(out: &mut String, family: &Family, part: &str, values: &[&str], le: Option<&str>, value: f64) {
    assert_eq!(values.len(), family.labels.len(), "{} has its labels", family.name);
    let labels = family.labels.iter().copied().zip(values.iter().copied()).chain(le.map(|bound| ("le", bound)));
    let labels: Vec<String> = labels.map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    writeln!(out, "{}{part}{labels} {value}", family.name).expect("a string takes all");
}
