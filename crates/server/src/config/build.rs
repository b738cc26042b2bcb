//! From values to what a server runs with, once it is known that they go together.

use base::Millis;
use cluster::{Clock, Data, Durability, Identity, NodeConfig, Room};
use queue::policy::{LeaseBounds, Retention};
use queue::{Backoff, BackoffPolicy, Policy};

use crate::backups::BackupSettings;
use crate::config::access::{self, Access};
use crate::config::cluster::{self as cluster_settings, Meeting};
use crate::config::kinds::{KIB, LEVELS};
use crate::config::show;
use crate::config::table::room;
use crate::config::values::{Origin, Values};
use crate::config::{Notice, Reading, Refused};
use crate::reload::Files;
use crate::settings::{HttpSettings, Limits, Settings};

/// How old the answers of a quorum may be, unless the election timeout is shorter.
const LEADER_LEASE: Millis = Millis(400);

/// What a process runs with.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The server.
    pub settings: Settings,
    /// The log.
    pub log: LogSettings,
    /// The label of this deployment.
    pub env: String,
    /// What an operator should know, in order.
    pub notices: Vec<Notice>,
}

/// How a process logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// A level, then `target=level` pairs, separated by commas.
    pub filter: String,
    /// The form; nothing means text on a terminal and JSON elsewhere.
    pub format: Option<LogFormat>,
}

/// The form of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object per line.
    Json,
}

impl Reading {
    /// Checks how the values go together, also with what a data directory has recorded, and makes of them what a server runs with.
    ///
    /// # Errors
    /// All that is wrong with the settings.
    pub fn configuration(&self) -> Result<Configuration, Refused> {
        let values = &self.values;
        let (mut notices, mut problems) = (self.notices.clone(), self.problems.clone());
        let access = access::decide(values, &mut notices, &mut problems);
        // A directory that cannot be read is found out at the start.
        let recorded = cluster::recorded_identity(values.text("dataDir").as_ref()).ok().flatten();
        let meeting = cluster_settings::decide(values, &access, recorded.as_ref(), &mut notices, &mut problems);
        check_combinations(values, &mut problems);
        if let Some(recorded) = &recorded {
            check_directory(values, recorded, &mut problems);
        }
        if !problems.is_empty() {
            return Err(Refused(problems));
        }
        if values.text("storage.durability") == "buffered" {
            let text = format!(
                "{}: a loss of power loses what was answered since the last sync",
                values.told("storage.durability")
            );
            notices.push(Notice::warning(text));
        }
        let log = LogSettings {
            filter: log_filter(values),
            format: values
                .maybe_text("log.format")
                .map(|name| if name == "json" { LogFormat::Json } else { LogFormat::Text }),
        };
        Ok(Configuration {
            settings: settings_of(values, access, meeting),
            log,
            env: values.text("env").into(),
            notices,
        })
    }
}

fn settings_of(values: &Values, Access { addr, auth, encryption, roles }: Access, mut meeting: Meeting) -> Settings {
    Settings {
        files: Files { peers: meeting.encryption.take(), http: encryption, roles },
        node: node_of(values, meeting),
        join_timeout: values.maybe_duration("cluster.joinTimeout"),
        policy: policy_of(values),
        http: HttpSettings {
            addr,
            header_timeout: values.duration("http.headerTimeout"),
            body_timeout: values.duration("http.bodyTimeout"),
            idle_timeout: values.duration("http.idleTimeout"),
            header_bytes_max: values.count("http.maxHeaderBytes"),
            connections_max: values.count("http.maxConnections"),
            threads: match values.maybe_number("http.threads") {
                Some(threads) => threads as usize,
                None => std::thread::available_parallelism().map_or(1, usize::from),
            },
        },
        auth,
        limits: Limits {
            body_bytes_max: values.count("limits.maxBodyBytes"),
            payload_bytes_max: values.count("limits.maxPayloadBytes"),
            result_bytes_max: values.count("limits.maxResultBytes"),
            batch_create_max: values.count("limits.batchCreate"),
            batch_results_max: values.count("limits.batchResults"),
            batch_claim_max: values.count("limits.batchClaim"),
            delay_max: values.duration("queue.maxDelay"),
            waiters_max: values.count("limits.waiters"),
            waiters_per_tenant_max: values.count("limits.waitersPerTenant"),
            live_tasks_max: values.number("limits.maxLiveTasks"),
            bulk_rate_max: values.number("operations.maxRate"),
            event_streams_max: values.count("limits.eventStreams"),
            events_max: values.count("events.maxEntries"),
            events_kept_for: values.duration("events.retention"),
            payload_cache_bytes: values.count("storage.payloadCacheBytes"),
        },
        follower_redirects: values.text("followerWrites") == "redirect",
        leader_lease: leader_lease(values),
        backup: BackupSettings {
            directory: values.maybe_text("backup.dir").map(Into::into),
            interval: values.duration("backup.interval"),
            keep: values.count("backup.keep"),
        },
        drain_timeout: values.duration("drainTimeout"),
        metrics_enabled: values.flag("metrics.enabled"),
        metrics_need_token: values.flag("metrics.requireToken"),
        read_only: values.flag("readOnly"),
        metrics_commands_max: values.count("metrics.maxCommands"),
        shown: show::table(values, true),
        raft: values.flag("cluster.raft"),
    }
}

/// How often the log says who leads, where `BIND` is given: as the program does that it comes from.
const STATUS_LOG: Millis = Millis(5_000);

fn room_of(values: &Values, name: &str) -> Room {
    room(values.text(name)).expect("the table bounds it")
}

fn node_of(values: &Values, meeting: Meeting) -> NodeConfig {
    let is_beside_bind = match &values.get("cluster.raftAddr").origin {
        Origin::Codeq(name) => *name == "BIND",
        Origin::Environment(name) => name == "BIND",
        _ => false,
    };
    NodeConfig {
        name: meeting.name,
        name_is_given: values.is_given("cluster.nodeId"),
        data: match values.text("storage.provider") {
            "memory" => Data::Memory,
            _ => Data::Directory(values.text("dataDir").into()),
        },
        is_single: !values.flag("cluster.raft"),
        peers: meeting.peers,
        url: meeting.url,
        shards: u16::try_from(values.number("shards")).expect("the table bounds it"),
        durability: match values.text("storage.durability") {
            "buffered" => Durability::Buffered(values.duration("storage.bufferedSyncInterval")),
            _ => Durability::Fsync,
        },
        segment_bytes: values.number("storage.segmentBytes"),
        checkpoint_interval: values.duration("storage.checkpointInterval"),
        checkpoint_log_bytes: values.number("storage.checkpointLogBytes"),
        inbox_depth: values.count("limits.inboxDepth"),
        leader_wait: values.duration("cluster.leaderWait"),
        trailing_log_bytes: values.number("storage.trailingLogBytes"),
        propose_timeout: values.duration("cluster.proposeTimeout"),
        election_timeout: values.duration("cluster.electionTimeout"),
        heartbeat: values.duration("cluster.heartbeat"),
        disk_low: room_of(values, "storage.diskLow"),
        disk_critical: room_of(values, "storage.diskCritical"),
        status_log: values.maybe_duration("cluster.raftStatusLog").unwrap_or(if is_beside_bind {
            STATUS_LOG
        } else {
            Millis(0)
        }),
        events_max: values.count("cluster.eventsMax"),
        entry_operations_max: values.count("raft.maxEntryOps"),
        entry_bytes_max: values.count("raft.maxEntryBytes"),
        clock: Clock::default(),
    }
}

fn policy_of(values: &Values) -> Policy {
    let named = values.text("queue.backoff.policy");
    let policy = BackoffPolicy::NAMES.into_iter().find(|(_, name)| *name == named);
    Policy {
        lease: LeaseBounds {
            default: values.duration("queue.lease.default"),
            min: values.duration("queue.lease.min"),
            max: values.duration("queue.lease.max"),
        },
        max_attempts: u32::try_from(values.number("queue.maxAttempts")).expect("the table bounds it"),
        backoff: Backoff {
            policy: policy.expect("the table has the names of all policies").0,
            base: values.duration("queue.backoff.base"),
            max: values.duration("queue.backoff.max"),
        },
        idempotency_window: values.duration("queue.idempotencyWindow"),
        retention: Retention {
            completed: values.duration("queue.retention.completed"),
            failed: values.duration("queue.retention.failed"),
            dead: values.duration("queue.retention.deadLettered"),
        },
        error_bytes_max: values.count("limits.maxErrorBytes"),
        history_entries_max: u32::try_from(values.number("history.maxEntries")).expect("the table bounds it"),
    }
}

/// Where nobody says anything, it leaves room below the election timeout.
fn leader_lease(values: &Values) -> Millis {
    let below = Millis(values.duration("cluster.electionTimeout").0 * 4 / 5);
    values.maybe_duration("cluster.leaderLease").unwrap_or(below.min(LEADER_LEASE))
}

/// Combinations that make no sense, each with both settings, their values and where those came from.
fn check_combinations(values: &Values, problems: &mut Vec<String>) {
    let mut ordered = |low: &str, high: &str| {
        values.refuse_if(values.duration(low) > values.duration(high), &[low, high], problems, || {
            format!("{} is above {}", values.told(low), values.told(high))
        });
    };
    ordered("queue.lease.min", "queue.lease.default");
    ordered("queue.lease.default", "queue.lease.max");
    ordered("queue.backoff.base", "queue.backoff.max");
    let (heartbeat, timeout) = ("cluster.heartbeat", "cluster.electionTimeout");
    let fifth = Millis(values.duration(timeout).0 / 5);
    values.refuse_if(values.duration(heartbeat) > fifth, &[heartbeat, timeout], problems, || {
        format!("{} is above a fifth of {}", values.told(heartbeat), values.told(timeout))
    });
    let lease = "cluster.leaderLease";
    let is_long = values.maybe_duration(lease).is_some_and(|length| length >= values.duration(timeout));
    values.refuse_if(is_long, &[lease, timeout], problems, || {
        format!("{} is not below {}", values.told(lease), values.told(timeout))
    });
    let body = "limits.maxBodyBytes";
    for part in ["limits.maxPayloadBytes", "limits.maxResultBytes"] {
        let room = values.number(body).saturating_sub(64 * KIB);
        values.refuse_if(values.number(part) > room, &[part, body], problems, || {
            format!(
                "{} does not fit into {}, of which 64KiB are for what stands around it",
                values.told(part),
                values.told(body)
            )
        });
    }
}

/// What is fixed must be as the data directory has it.
fn check_directory(values: &Values, identity: &Identity, problems: &mut Vec<String>) {
    let mut differs = |name: &str, recorded: &str| {
        let given = values.shown(name);
        values.refuse_if(given != recorded, &[name, "dataDir"], problems, || {
            format!(
                "{} is fixed when a data directory is made, and {} has {recorded}; use {recorded}, or another directory",
                values.told(name),
                values.told("dataDir")
            )
        });
    };
    differs("storage.provider", &identity.provider);
    let shards = identity.shards.to_string();
    differs("shards", &shards);
    if values.is_given("cluster.nodeId") {
        differs("cluster.nodeId", &identity.node);
    }
}

/// The log's level, and that of the target `raft`, which is the same unless it has its own; one that came from a name of codeQ's leaves it
/// at `info` or finer, so that elections are seen.
fn log_filter(values: &Values) -> String {
    let level = values.text("log.level");
    let place = |level: &str| LEVELS.iter().position(|known| *known == level);
    let own = values.maybe_text("log.raftLevel");
    let general = level.split(',').next().unwrap_or_default();
    let raft = match own {
        Some(own) => own,
        None if values.get("log.level").as_codeq && place(general) < place("info") => "info",
        None => return level.into(),
    };
    format!("{level},raft={raft}")
}
