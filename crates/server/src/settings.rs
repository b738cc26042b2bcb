//! The values a server runs with.

use std::net::SocketAddr;

use base::Millis;
use cluster::NodeConfig;
use queue::Policy;

use crate::auth::AuthSettings;
use crate::backups::BackupSettings;
use crate::bulk::Bounds;
use crate::reload::Files;

/// Everything a server is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node beneath. Port 0 at the end of its URL means the one that the listener has.
    pub node: NodeConfig,
    /// What queues follow.
    pub policy: Policy,
    /// The listener.
    pub http: HttpSettings,
    /// A node that belongs to no cluster by then gives up.
    pub join_timeout: Option<Millis>,
    /// Who may do what.
    pub auth: AuthSettings,
    /// What is too much.
    pub limits: Limits,
    /// Writes that another node leads are answered with its place instead of being forwarded.
    pub follower_redirects: bool,
    /// How long a leader is trusted after a quorum has answered it; below the election timeout.
    pub leader_lease: Millis,
    /// Files that are read again while the server runs.
    pub files: Files,
    /// Backups that the server makes by itself.
    pub backup: BackupSettings,
    /// How long a planned stop may take.
    pub drain_timeout: Millis,
    /// Whether there is `/metrics`.
    pub metrics_enabled: bool,
    /// Distinct values of the label `command`; the rest is `other`.
    pub metrics_commands_max: usize,
    /// Whether `/metrics` asks for a token.
    pub metrics_need_token: bool,
    /// It takes no actions on the cluster.
    pub read_only: bool,
    /// What held for every setting at the start, and why, for people. Nothing of it is secret.
    pub shown: String,
    /// Whether the node may become one of several; only told to whoever asks for the state of Raft.
    pub raft: bool,
}

/// The listener.
#[derive(Clone, Copy, Debug)]
pub struct HttpSettings {
    /// Where to listen; port 0 is a free one.
    pub addr: SocketAddr,
    /// Time for the head of a request, from its first byte.
    pub header_timeout: Millis,
    /// Time for its body.
    pub body_timeout: Millis,
    /// How long a connection without a request is kept.
    pub idle_timeout: Millis,
    /// All header lines together, in bytes.
    pub header_bytes_max: usize,
    /// Connections at one time; then accepting pauses.
    pub connections_max: usize,
    /// Threads, each with a runtime of its own.
    pub threads: usize,
}

/// What is too much.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
    /// Bytes of a task's payload.
    pub payload_bytes_max: usize,
    /// Bytes of a result.
    pub result_bytes_max: usize,
    /// Tasks in one batch creation.
    pub batch_create_max: usize,
    /// Results in one batch.
    pub batch_results_max: usize,
    /// Tasks in one batch claim.
    pub batch_claim_max: usize,
    /// Furthest a task may be delayed.
    pub delay_max: Millis,
    /// Waiting requests on this node.
    pub waiters_max: usize,
    /// Waiting requests of one tenant on this node.
    pub waiters_per_tenant_max: usize,
    /// Live tasks of a shard; 0: any number.
    pub live_tasks_max: u64,
    /// Tasks per second of one operation on many of them.
    pub bulk_rate_max: u64,
    /// Streams of what happens to tasks, on this node.
    pub event_streams_max: usize,
    /// Events of a shard kept for them.
    pub events_max: usize,
    /// And for how long.
    pub events_kept_for: Millis,
    /// Bytes of waiting tasks' payloads held in memory, shared evenly by the shards.
    pub payload_cache_bytes: usize,
}

impl Settings {
    /// What requests for operations on many tasks may ask for.
    pub(crate) fn bulk_bounds(&self) -> Bounds {
        Bounds { rate_max: self.limits.bulk_rate_max, delay_max: self.limits.delay_max }
    }
}
