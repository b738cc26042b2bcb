//! What can be measured: one list. Every name, type and label stands in [`Metrics::render`], in the order of the reference.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use base::Millis;
use cluster::view::{Contact, Inspection};
use cluster::{AlarmKind, Handle, Histogram, Role};
use queue::outcome::QueueStats;
use queue::{QueueMachine, Signal, State};

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
        let name = "codeq_event_streams";
        head(&mut out, name, "gauge", "Streams of what happens to tasks.");
        line(&mut out, name, "", streams as f64);
        let (name, alarms) = ("codeq_alarms", node.inspect().alarms());
        head(&mut out, name, "gauge", "Members that have raised an alarm, as far as this node knows.");
        for kind in AlarmKind::ALL {
            let raised = alarms.iter().filter(|alarm| alarm.kind == kind.name()).count();
            line(&mut out, name, &format!("kind=\"{}\"", kind.name()), raised as f64);
        }
        if let Some(age) = backup {
            let name = "codeq_backup_age_seconds";
            head(&mut out, name, "gauge", "Since everything was saved last in this node's directory of backups.");
            line(&mut out, name, "", age.0 as f64 / 1e3);
        }
        out
    }

    fn render_commands(&self, out: &mut String) {
        let commands = self.commands.lock().expect("nothing panics while it holds this lock");
        let mut counter = |name: &str, help: &str, value: &dyn Fn(&Counts) -> u64| {
            head(out, name, "counter", help);
            for (command, counts) in commands.iter() {
                line(out, name, &format!("command=\"{command}\""), value(counts) as f64);
            }
        };
        counter("codeq_task_created_total", "New tasks, without replays.", &|counts| counts.created);
        counter("codeq_task_claimed_total", "Deliveries.", &|counts| counts.claimed);
        counter("codeq_lease_expired_total", "Leases that ran out.", &|counts| counts.expired);
        let ended = |counts: &Counts| [("COMPLETED", counts.completed.count), ("FAILED", counts.failed.count)];
        let name = "codeq_task_completed_total";
        head(out, name, "counter", "Tasks that ended, by whatever path.");
        for (command, counts) in commands.iter() {
            for (status, count) in ended(counts) {
                line(out, name, &format!("command=\"{command}\",status=\"{status}\""), count as f64);
            }
        }
        let name = "codeq_task_processing_latency_seconds";
        head(out, name, "histogram", "From creation to end.");
        for (command, counts) in commands.iter() {
            for (status, latency) in [("COMPLETED", &counts.completed), ("FAILED", &counts.failed)] {
                let labels = format!("command=\"{command}\",status=\"{status}\"");
                let mut below = 0;
                for (bound, count) in LATENCY_BUCKETS.iter().zip(latency.buckets) {
                    below += count;
                    line(out, &format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), below as f64);
                }
                line(out, &format!("{name}_bucket"), &format!("{labels},le=\"+Inf\""), latency.count as f64);
                line(out, &format!("{name}_sum"), &labels, latency.sum_ms as f64 / 1000.0);
                line(out, &format!("{name}_count"), &labels, latency.count as f64);
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
        let name = "codeq_queue_depth";
        head(out, name, "gauge", "Tasks in each queue, all tenants added.");
        for (command, counts) in &depths {
            for (queue, count) in ["ready", "delayed", "in_progress", "dlq"].iter().zip(counts) {
                line(out, name, &format!("command=\"{command}\",queue=\"{queue}\""), *count as f64);
            }
        }
        let name = "codeq_dlq_depth";
        head(out, name, "gauge", "Dead letters that retention still keeps.");
        for (command, counts) in &depths {
            line(out, name, &format!("command=\"{command}\""), counts[3] as f64);
        }
    }
}

/// How long the certificates at the ports for peers and for clients still hold.
pub(crate) fn render_certificates(out: &mut String, certificates: &[(&str, i64)]) {
    if certificates.is_empty() {
        return;
    }
    let name = "codeq_certificate_left_seconds";
    head(
        out,
        name,
        "gauge",
        "Until the certificate that this node shows at this port ends; less than 0: it has ended.",
    );
    for (port, left) in certificates {
        line(out, name, &format!("port=\"{port}\""), *left as f64);
    }
}

fn render_node(out: &mut String, node: &Handle<QueueMachine>, waiting: usize) {
    let counters = node.counters();
    let mut one = |name: &str, kind: &str, help: &str, value: f64| {
        head(out, name, kind, help);
        line(out, name, "", value);
    };
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed) as f64;
    one(
        "codeq_operations_total",
        "counter",
        "Operations that the log's shards have taken.",
        read(&counters.operations),
    );
    one("codeq_log_entries_total", "counter", "Entries written to the log.", read(&counters.entries));
    one("codeq_log_syncs_total", "counter", "Syncs of the log.", read(&counters.log_syncs));
    one("codeq_log_written_bytes_total", "counter", "Bytes written to the log.", read(&counters.log_bytes));
    one(
        "codeq_requests_refused_total",
        "counter",
        "Requests refused because a queue was full.",
        read(&counters.refused),
    );
    one("codeq_loop_turns_total", "counter", "Turns of the loop.", read(&counters.turns));
    one("codeq_inbox_depth", "gauge", "Requests in front of the loop.", node.queued() as f64);
    one("codeq_waiters", "gauge", "Requests that wait for a task or a result.", waiting as f64);
    head(out, "codeq_storage_bytes", "gauge", "Bytes on disk.");
    line(out, "codeq_storage_bytes", "kind=\"log\"", read(&counters.log_size));
    head(out, "codeq_checkpoint_seconds", "summary", "Time spent writing checkpoints.");
    line(out, "codeq_checkpoint_seconds_sum", "", read(&counters.checkpoint_micros) / 1e6);
    line(out, "codeq_checkpoint_seconds_count", "", read(&counters.checkpoints));
    let seconds = |micros: u64| micros as f64 / 1e6;
    let count = |count: u64| count as f64;
    let name = "codeq_raft_commit_seconds";
    histogram(out, name, "From the proposal of an entry here until it is committed.", &counters.commit_time, &seconds);
    histogram(
        out,
        "codeq_raft_apply_seconds",
        "Turns of the loop that applied entries.",
        &counters.apply_time,
        &seconds,
    );
    histogram(out, "codeq_wal_sync_seconds", "Writes of the log with their syncs.", &counters.sync_time, &seconds);
    let name = "codeq_wal_batch_operations";
    histogram(out, name, "Operations of each entry proposed here.", &counters.batch_operations, &count);
    render_groups(out, node);
    head(out, "codeq_build_info", "gauge", "The build that runs.");
    line(out, "codeq_build_info", &format!("version=\"{}\"", env!("CARGO_PKG_VERSION")), 1.0);
}

fn render_groups(out: &mut String, node: &Handle<QueueMachine>) {
    let look = node.inspect();
    let groups = &look.shards;
    let mut group = |name: &str, help: &str, value: &dyn Fn(&cluster::ShardStatus) -> u64| {
        head(out, name, "gauge", help);
        for shard in groups {
            line(out, name, &format!("group=\"{}\"", shard.shard), value(shard) as f64);
        }
    };
    group("codeq_raft_term", "The term of each group.", &|shard| shard.consensus.term.0);
    group("codeq_raft_commit_index", "The last entry known to be committed.", &|shard| shard.consensus.commit.0);
    group("codeq_raft_applied_index", "The last entry applied.", &|shard| shard.applied.0);
    group("codeq_raft_checkpoint_index", "The last entry that the checkpoint holds.", &|shard| shard.checkpoint.0);
    group("codeq_raft_is_leader", "1 where this node leads and takes writes.", &|shard| u64::from(shard.ready));
    group("codeq_raft_skipped_entries", "Entries of a leader that had been deposed; never more than 0.", &|shard| {
        shard.skipped
    });
    group("codeq_raft_has_leader", "1 where a leader is known.", &|shard| u64::from(shard.consensus.leader != 0));
    let name = "codeq_raft_role";
    head(out, name, "gauge", "1 for the part that this node plays in each group.");
    for shard in groups {
        for (role, played) in ROLES {
            let labels = format!("group=\"{}\",role=\"{role}\"", shard.shard);
            line(out, name, &labels, f64::from(u8::from(shard.consensus.role == played)));
        }
    }
    let name = "codeq_raft_last_contact_seconds";
    head(out, name, "gauge", "Since the leader was heard of, or a quorum by the leader; absent while that is unknown.");
    for shard in groups {
        if let Some(heard) = node.contact_age(shard.shard) {
            line(out, name, &format!("group=\"{}\"", shard.shard), heard.0 as f64 / 1000.0);
        }
    }
    let quorum = look.quorum();
    let mut one = |name: &str, kind: &str, help: &str, value: f64| {
        head(out, name, kind, help);
        line(out, name, "", value);
    };
    let reaches = quorum.needed > 0 && quorum.reachable >= quorum.needed;
    one("codeq_raft_quorum_reachable", "gauge", "1 where a majority is there.", f64::from(u8::from(reaches)));
    let tolerance = quorum.failure_tolerance as f64;
    one("codeq_raft_failure_tolerance", "gauge", "Voters that may fail now, and a majority remains.", tolerance);
    render_members(out, &look);
    let counters = node.counters();
    let name = "codeq_raft_elections_total";
    head(out, name, "counter", "Elections that this node has stood for in a new term, of all groups.");
    for (cause, result, count) in counters.elections.all() {
        line(out, name, &format!("cause=\"{cause}\",result=\"{result}\""), count as f64);
    }
    let name = "codeq_raft_outage_seconds";
    let help = "From the last contact with a leader until this node, the next one, took writes.";
    histogram(out, name, help, &counters.outages, &|micros| micros as f64 / 1e6);
    let mut one = |name: &str, kind: &str, help: &str, value: f64| {
        head(out, name, kind, help);
        line(out, name, "", value);
    };
    let changes = counters.leader_changes.load(Relaxed) as f64;
    one("codeq_raft_leader_changes_total", "counter", "Leaders elected since the start, of all groups.", changes);
    let lost = node.events_lost() as f64;
    one("codeq_events_lost_total", "counter", "Events that their file did not take in time.", lost);
}

/// The members, as this node sees them.
fn render_members(out: &mut String, look: &Inspection) {
    let name = "codeq_member_healthy";
    head(out, name, "gauge", "1 where a member is there and lacks little, as far as this node knows.");
    for node in look.nodes().nodes {
        line(out, name, &format!("member=\"{}\"", node.name), f64::from(u8::from(node.healthy)));
    }
    let others: Vec<_> = look.members.iter().filter(|member| member.id != look.id).collect();
    let mut of_peers = |name: &str, help: &str, value: &dyn Fn(Contact) -> Option<f64>| {
        head(out, name, "gauge", help);
        for peer in &others {
            if let Some(value) = value(look.contacts.get(&peer.id).copied().unwrap_or_default()) {
                line(out, name, &format!("peer=\"{}\"", peer.name), value);
            }
        }
    };
    of_peers("codeq_raft_peer_up", "1 where there is a connection to a member.", &|contact| {
        Some(f64::from(u8::from(contact.connected)))
    });
    of_peers("codeq_raft_peer_rtt_seconds", "Round trip of the last sign of life.", &|contact| {
        contact.rtt_micros.map(|micros| micros as f64 / 1e6)
    });
    let name = "codeq_raft_peer_lag";
    head(out, name, "gauge", "Entries that a member lacks, of groups that this node leads.");
    for group in look.groups() {
        for peer in group.peers.iter().filter(|peer| peer.name != look.name) {
            line(out, name, &format!("peer=\"{}\",group=\"{}\"", peer.name, group.group), peer.lag as f64);
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
fn histogram(out: &mut String, name: &str, help: &str, histogram: &Histogram, shown: &dyn Fn(u64) -> f64) {
    head(out, name, "histogram", help);
    for (bound, below) in histogram.up_to_bounds() {
        line(out, &format!("{name}_bucket"), &format!("le=\"{}\"", shown(bound)), below as f64);
    }
    let (count, sum) = histogram.totals();
    line(out, &format!("{name}_bucket"), "le=\"+Inf\"", count as f64);
    line(out, &format!("{name}_sum"), "", shown(sum));
    line(out, &format!("{name}_count"), "", count as f64);
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a string takes all");
}

fn line(out: &mut String, name: &str, labels: &str, value: f64) {
    let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    writeln!(out, "{name}{labels} {value}").expect("a string takes all");
}
