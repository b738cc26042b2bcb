//! The settings: one table, from which come the flags and their help, the names in the environment and in files, `codeq config show`
//! and `template`.
//!
//! To add a setting: a row here, and a line in `build.rs` that puts its value where it acts. A test fails as long as either is missing.
//! A name that codeQ has for it is a row in `codeq.rs`.

use base::limits::{ENTRY_OPERATIONS_MAX, SHARDS_MAX};
use cluster::Room;
use cluster::forming::FOUNDERS_MAX;
use queue::policy::ATTEMPTS_MAX;

use crate::auth::is_tenant;
use crate::config::kinds::{DAY, GIB, HOUR, KIB, Kind, MIB, MINUTE, Rule, SECOND, TIB, Words, size};

/// A setting.
#[derive(Debug)]
pub struct Setting {
    /// Its name in files and messages. Never `port`, `port.*` or `service.*`: Kubernetes makes variables of these.
    pub name: &'static str,
    /// Its flag, where that does not follow from the name; without the dashes.
    pub flag: Option<&'static str>,
    /// Its type, with what it allows.
    pub kind: Kind,
    /// What holds where nobody says anything.
    pub default: Default,
    /// Where it acts, and when it may change.
    pub scope: Scope,
    /// What it is, in a line.
    pub meaning: &'static str,
}

/// What holds where nobody says anything.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// This value.
    Is(&'static str),
    /// Nothing.
    Absent,
    /// What other things say; in words.
    Computed(&'static str),
}

/// Where a setting acts, and when it may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// This process; changed by a restart.
    Node,
    /// Every replica: the leader writes its value to the log, and the value in the log holds.
    Cluster,
    /// Written down when a data directory is made; it cannot change afterwards.
    Fixed,
}

/// Settings that belong together.
#[derive(Debug)]
pub struct Section {
    /// Its heading.
    pub title: &'static str,
    /// Its settings.
    pub settings: &'static [Setting],
}

/// All settings, in the order in which they are shown.
pub fn settings() -> impl Iterator<Item = &'static Setting> {
    SECTIONS.iter().flat_map(|section| section.settings)
}

/// The setting of this name.
pub fn setting(name: &str) -> Option<&'static Setting> {
    settings().find(|setting| setting.name == name)
}

/// Flags that users of other programs know, with the setting that each means.
pub static FLAG_ALIASES: &[(&str, &str)] = &[
    ("name", "cluster.nodeId"),
    ("api-addr", "http.addr"),
    ("peer-url", "cluster.raftAddr"),
    ("advertise-peer-url", "cluster.raftAdvertise"),
    ("initial-cluster-token", "cluster.clusterToken"),
];

/// The setting that a flag means, by its own name or by another.
pub fn by_flag(flag: &str) -> Option<&'static Setting> {
    let own = settings().find(|setting| setting.flag() == flag);
    own.or_else(|| FLAG_ALIASES.iter().find(|(alias, _)| *alias == flag).and_then(|(_, name)| setting(name)))
}

impl Setting {
    /// Its flag, without the dashes: its name in kebab case, without `cluster.`. That of a secret names a file.
    pub fn flag(&self) -> String {
        let flag = match self.flag {
            Some(flag) => flag.into(),
            None => kebab(self.name.strip_prefix("cluster.").unwrap_or(self.name)),
        };
        if self.kind.is_secret() { flag + "-file" } else { flag }
    }

    /// Its variable in the environment.
    pub fn variable(&self) -> String {
        let flag = self.flag();
        let name = if self.kind.is_secret() { flag.trim_end_matches("-file") } else { &flag };
        format!("CODEQ_{}", name.replace('-', "_").to_ascii_uppercase())
    }

    /// The variable that names a file with its value, where it is a secret.
    pub fn file_variable(&self) -> Option<String> {
        self.kind.is_secret().then(|| self.variable() + "_FILE")
    }

    /// The key that names a file with its value, where it is a secret.
    pub fn file_key(&self) -> Option<String> {
        self.kind.is_secret().then(|| format!("{}File", self.name))
    }
}

impl Scope {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Node => "node",
            Scope::Cluster => "cluster",
            Scope::Fixed => "fixed",
        }
    }
}

/// `http.maxHeaderBytes` as `http-max-header-bytes`.
fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for char in name.chars() {
        match char {
            '.' => kebab.push('-'),
            upper if upper.is_ascii_uppercase() => {
                kebab.push('-');
                kebab.push(upper.to_ascii_lowercase());
            }
            other => kebab.push(other),
        }
    }
    kebab
}

static ENV: Rule = Rule { allowed: "1 to 32 characters", fits: |text| (1..=32).contains(&text.chars().count()) };

static TENANT: Rule = Rule { allowed: "2 to 63 of a-z, 0-9 and -, a letter first", fits: is_tenant };

pub(crate) static NODE_ID: Rule =
    Rule { allowed: "1 to 63 of A-Z, a-z, 0-9, . _ and -, and neither . nor ..", fits: base::is_node_name };

static LABEL: Rule = Rule { allowed: "1 to 63 characters", fits: |text| (1..=63).contains(&text.chars().count()) };

static ROOM: Rule = Rule { allowed: "0% to 50%, or an amount of bytes like 2GiB", fits: |text| room(text).is_some() };

/// An amount of free space: a part of the disk, or bytes.
pub(crate) fn room(text: &str) -> Option<Room> {
    match text.strip_suffix('%') {
        Some(percent) => percent.parse().ok().filter(|percent| *percent <= 50).map(Room::Percent),
        None => size(text).map(Room::Bytes),
    }
}

static CLUSTER_STATE: Words = Words { known: &[("new", "new"), ("existing", "existing")], refused: &[] };

static LEVEL: Words = Words {
    known: &[
        ("off", "off"),
        ("error", "error"),
        ("warn", "warn"),
        ("info", "info"),
        ("debug", "debug"),
        ("trace", "trace"),
    ],
    refused: &[],
};

static LOG_FORMAT: Words = Words { known: &[("text", "text"), ("json", "json"), ("human", "text")], refused: &[] };

static AUTH_MODE: Words =
    Words { known: &[("auto", "auto"), ("configured", "configured"), ("open", "open")], refused: &[] };

static PROVIDER: Words = Words {
    known: &[("static", "static"), ("multi", "multi"), ("composite", "multi")],
    refused: &[("jwks", "this version cannot check tokens against a key set; it knows static and multi")],
};

static STORAGE: Words = Words {
    known: &[("sqlite", "sqlite"), ("memory", "memory"), ("pebble", "sqlite")],
    refused: &[("redis", "Redis storage is not supported; data is kept in `dataDir`; remove PERSISTENCE_PROVIDER")],
};

static DURABILITY: Words = Words { known: &[("fsync", "fsync"), ("buffered", "buffered")], refused: &[] };

static FOLLOWER_WRITES: Words = Words { known: &[("forward", "forward"), ("redirect", "redirect")], refused: &[] };

static BACKOFF: Words = Words {
    known: &[
        ("fixed", "fixed"),
        ("linear", "linear"),
        ("exponential", "exponential"),
        ("exp_equal_jitter", "exp_equal_jitter"),
        ("exp_full_jitter", "exp_full_jitter"),
    ],
    refused: &[],
};

/// The table.
pub static SECTIONS: &[Section] = &[
    Section {
        title: "Process, logs and metrics",
        settings: &[
            Setting {
                name: "config",
                flag: None,
                kind: Kind::Path,
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "configuration file: .yaml, .yml, .toml or .json",
            },
            Setting {
                name: "env",
                flag: None,
                kind: Kind::Text(&ENV),
                default: Default::Is("dev"),
                scope: Scope::Node,
                meaning: "label of this deployment; anything but dev forbids a server without credentials",
            },
            Setting {
                name: "dataDir",
                flag: None,
                kind: Kind::Path,
                default: Default::Is("./data"),
                scope: Scope::Node,
                meaning: "directory for everything this node keeps; one process at a time",
            },
            Setting {
                name: "log.level",
                flag: None,
                kind: Kind::Levels,
                default: Default::Is("info"),
                scope: Scope::Node,
                meaning: "how much is logged",
            },
            Setting {
                name: "log.raftLevel",
                flag: Some("raft-log-level"),
                kind: Kind::Choice(&LEVEL),
                default: Default::Computed("as log.level"),
                scope: Scope::Node,
                meaning: "how much Raft logs",
            },
            Setting {
                name: "log.format",
                flag: None,
                kind: Kind::Choice(&LOG_FORMAT),
                default: Default::Computed("text on a terminal, else json"),
                scope: Scope::Node,
                meaning: "form of the log",
            },
            Setting {
                name: "metrics.enabled",
                flag: None,
                kind: Kind::Bool,
                default: Default::Is("true"),
                scope: Scope::Node,
                meaning: "whether there is /metrics",
            },
            Setting {
                name: "metrics.requireToken",
                flag: None,
                kind: Kind::Bool,
                default: Default::Is("false"),
                scope: Scope::Node,
                meaning: "whether /metrics asks for a token; any will do, also one with the role metrics",
            },
            Setting {
                name: "readOnly",
                flag: None,
                kind: Kind::Bool,
                default: Default::Is("false"),
                scope: Scope::Node,
                meaning: "this node takes no actions on the cluster; tasks are served as ever",
            },
            Setting {
                name: "metrics.maxCommands",
                flag: None,
                kind: Kind::Int(10, 100_000),
                default: Default::Is("1000"),
                scope: Scope::Node,
                meaning: "distinct values of the label command; the rest is other",
            },
        ],
    },
    Section {
        title: "HTTP",
        settings: &[
            Setting {
                name: "http.addr",
                flag: None,
                kind: Kind::Addr,
                default: Default::Is(":8080"),
                scope: Scope::Node,
                meaning: "where to listen; an empty host is all IPv4 interfaces if credentials are configured or insecure is set, else loopback",
            },
            Setting {
                name: "http.advertise",
                flag: None,
                kind: Kind::Reach,
                default: Default::Computed(
                    "the host of http.addr if it is one, else that of cluster.raftAdvertise, else the host name; and the port of http.addr",
                ),
                scope: Scope::Node,
                meaning: "where other nodes and clients reach http.addr",
            },
            Setting {
                name: "publicUrl",
                flag: None,
                kind: Kind::Url,
                default: Default::Computed("this node's entry of cluster.peerHttp, else http:// and http.advertise"),
                scope: Scope::Node,
                meaning: "what people are told of where this node is",
            },
            Setting {
                name: "http.headerTimeout",
                flag: None,
                kind: Kind::Duration(100, 5 * MINUTE),
                default: Default::Is("5s"),
                scope: Scope::Node,
                meaning: "time for the head of a request",
            },
            Setting {
                name: "http.bodyTimeout",
                flag: None,
                kind: Kind::Duration(SECOND, 10 * MINUTE),
                default: Default::Is("30s"),
                scope: Scope::Node,
                meaning: "time for its body",
            },
            Setting {
                name: "http.idleTimeout",
                flag: None,
                kind: Kind::Duration(SECOND, HOUR),
                default: Default::Is("2m"),
                scope: Scope::Node,
                meaning: "how long a connection without a request is kept",
            },
            Setting {
                name: "http.maxHeaderBytes",
                flag: None,
                kind: Kind::Size(4 * KIB, MIB),
                default: Default::Is("32KiB"),
                scope: Scope::Node,
                meaning: "all header lines together",
            },
            Setting {
                name: "http.maxConnections",
                flag: None,
                kind: Kind::Int(10, 1_000_000),
                default: Default::Is("20000"),
                scope: Scope::Node,
                meaning: "connections at one time; then accepting pauses",
            },
            Setting {
                name: "http.cert",
                flag: None,
                kind: Kind::Path,
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "file with the certificate of the HTTP port, which speaks HTTPS only then; read again when it changes",
            },
            Setting {
                name: "http.key",
                flag: None,
                kind: Kind::Path,
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "file with its key",
            },
            Setting {
                name: "http.clientCa",
                flag: None,
                kind: Kind::Path,
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "file with authorities: every client must show a certificate that one of them vouches for",
            },
            Setting {
                name: "http.threads",
                flag: None,
                kind: Kind::Int(1, 256),
                default: Default::Computed("the number of cores"),
                scope: Scope::Node,
                meaning: "threads for connections",
            },
            Setting {
                name: "followerWrites",
                flag: None,
                kind: Kind::Choice(&FOLLOWER_WRITES),
                default: Default::Is("forward"),
                scope: Scope::Node,
                meaning: "what a node does with a write that another one leads: forward, or redirect (307 to its public URL)",
            },
            Setting {
                name: "drainTimeout",
                flag: None,
                kind: Kind::Duration(0, 5 * MINUTE),
                default: Default::Is("5s"),
                scope: Scope::Node,
                meaning: "time that requests under way have when the server is asked to stop",
            },
        ],
    },
    Section {
        title: "Authentication",
        settings: &[
            Setting {
                name: "auth.mode",
                flag: None,
                kind: Kind::Choice(&AUTH_MODE),
                default: Default::Is("auto"),
                scope: Scope::Node,
                meaning: "auto: open on loopback if no credentials are configured; configured: never open; open: for everybody who can connect",
            },
            Setting {
                name: "insecure",
                flag: None,
                kind: Kind::Bool,
                default: Default::Is("false"),
                scope: Scope::Node,
                meaning: "as auth.mode open, but void once credentials are configured: for demonstrations",
            },
            Setting {
                name: "auth.producer.provider",
                flag: None,
                kind: Kind::Choice(&PROVIDER),
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "what accepts the tokens of producers",
            },
            Setting {
                name: "auth.producer.config",
                flag: None,
                kind: Kind::SecretJson,
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "that provider's configuration",
            },
            Setting {
                name: "auth.worker.provider",
                flag: None,
                kind: Kind::Choice(&PROVIDER),
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "what accepts the tokens of workers",
            },
            Setting {
                name: "auth.worker.config",
                flag: None,
                kind: Kind::SecretJson,
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "that provider's configuration",
            },
            Setting {
                name: "auth.tokensFile",
                flag: Some("tokens-file"),
                kind: Kind::Path,
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "file with a role in the cluster, a name and the SHA-256 of a token on each line; read again when it changes",
            },
            Setting {
                name: "auth.allowProducerAsWorker",
                flag: None,
                kind: Kind::Bool,
                default: Default::Is("false"),
                scope: Scope::Node,
                meaning: "a producer's token may also work, on all queues",
            },
            Setting {
                name: "auth.defaultTenant",
                flag: None,
                kind: Kind::Text(&TENANT),
                default: Default::Computed("the token's subject"),
                scope: Scope::Node,
                meaning: "tenant of tokens without a tenant claim",
            },
        ],
    },
    Section {
        title: "Storage and cluster",
        settings: &[
            Setting {
                name: "storage.provider",
                flag: Some("storage"),
                kind: Kind::Choice(&STORAGE),
                default: Default::Is("sqlite"),
                scope: Scope::Fixed,
                meaning: "where tasks are kept; memory keeps nothing over a restart",
            },
            Setting {
                name: "storage.durability",
                flag: None,
                kind: Kind::Choice(&DURABILITY),
                default: Default::Is("fsync"),
                scope: Scope::Node,
                meaning: "fsync: an answer means that the disk has it; buffered: a loss of power loses what was answered since the last sync",
            },
            Setting {
                name: "storage.bufferedSyncInterval",
                flag: None,
                kind: Kind::Duration(1, 50),
                default: Default::Is("50ms"),
                scope: Scope::Node,
                meaning: "longest time unsynced where durability is buffered",
            },
            Setting {
                name: "shards",
                flag: None,
                kind: Kind::Int(1, SHARDS_MAX as u64),
                default: Default::Is("1"),
                scope: Scope::Fixed,
                meaning: "Raft groups; a queue lives on one",
            },
            Setting {
                name: "storage.segmentBytes",
                flag: None,
                kind: Kind::Size(MIB, GIB),
                default: Default::Is("64MiB"),
                scope: Scope::Node,
                meaning: "size of a segment of the log",
            },
            Setting {
                name: "storage.checkpointInterval",
                flag: None,
                kind: Kind::Duration(500, 10 * MINUTE),
                default: Default::Is("5s"),
                scope: Scope::Node,
                meaning: "longest time between checkpoints",
            },
            Setting {
                name: "storage.checkpointLogBytes",
                flag: None,
                kind: Kind::Size(MIB, 8 * GIB),
                default: Default::Is("64MiB"),
                scope: Scope::Node,
                meaning: "volume of log that starts a checkpoint",
            },
            Setting {
                name: "storage.payloadCacheBytes",
                flag: None,
                kind: Kind::Size(8 * MIB, TIB),
                default: Default::Is("256MiB"),
                scope: Scope::Node,
                meaning: "payloads of waiting tasks held in memory",
            },
            Setting {
                name: "storage.trailingLogBytes",
                flag: None,
                kind: Kind::Size(0, 64 * GIB),
                default: Default::Is("256MiB"),
                scope: Scope::Node,
                meaning: "log that a checkpoint holds and that is kept for members that lack it, per shard",
            },
            Setting {
                name: "storage.diskLow",
                flag: Some("disk-low"),
                kind: Kind::Text(&ROOM),
                default: Default::Is("10%"),
                scope: Scope::Node,
                meaning: "free space below which a member raises an alarm, and new tasks are refused everywhere; 0: never",
            },
            Setting {
                name: "storage.diskCritical",
                flag: Some("disk-critical"),
                kind: Kind::Text(&ROOM),
                default: Default::Is("3%"),
                scope: Scope::Node,
                meaning: "free space below which a member leads nothing; 0: never",
            },
            Setting {
                name: "backup.dir",
                flag: None,
                kind: Kind::Path,
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "directory that exists, into which the leader saves backups by itself",
            },
            Setting {
                name: "backup.interval",
                flag: None,
                kind: Kind::Duration(MINUTE, 30 * DAY),
                default: Default::Is("1h"),
                scope: Scope::Node,
                meaning: "time from one backup to the next; skipped while nothing changes",
            },
            Setting {
                name: "backup.keep",
                flag: None,
                kind: Kind::Int(1, 10_000),
                default: Default::Is("24"),
                scope: Scope::Node,
                meaning: "backups kept in the directory; the oldest go",
            },
            Setting {
                name: "cluster.nodeId",
                flag: None,
                kind: Kind::Text(&NODE_ID),
                default: Default::Computed("the data directory's; of a new one the host name"),
                scope: Scope::Fixed,
                meaning: "name of this node, unique in the cluster",
            },
            Setting {
                name: "cluster.raft",
                flag: None,
                kind: Kind::Bool,
                default: Default::Is("true"),
                scope: Scope::Node,
                meaning: "false: one node for ever, no port for peers, and pages about Raft say so",
            },
            Setting {
                name: "cluster.bootstrap",
                flag: None,
                kind: Kind::Bool,
                default: Default::Is("false"),
                scope: Scope::Node,
                meaning: "propose the first configuration; without a list, found a cluster alone; without effect once the data directory belongs to a cluster",
            },
            Setting {
                name: "cluster.initialCluster",
                flag: None,
                kind: Kind::Nodes,
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "the founders, this node among them: the same on all of them",
            },
            Setting {
                name: "cluster.peerHttp",
                flag: None,
                kind: Kind::Urls,
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "public URLs of nodes: this node's is its publicUrl, the others tell theirs themselves",
            },
            Setting {
                name: "cluster.raftAddr",
                flag: None,
                kind: Kind::Addr,
                default: Default::Computed(
                    "the port of the own entry in cluster.initialCluster, else :7000; closed if no setting names an address",
                ),
                scope: Scope::Node,
                meaning: "where to listen for peers, for all shards; an empty host is all IPv4 interfaces",
            },
            Setting {
                name: "cluster.raftAdvertise",
                flag: None,
                kind: Kind::Reach,
                default: Default::Computed("the own entry in cluster.initialCluster, else cluster.raftAddr"),
                scope: Scope::Node,
                meaning: "where peers reach this node",
            },
            Setting {
                name: "cluster.clusterToken",
                flag: None,
                kind: Kind::Text(&LABEL),
                default: Default::Is("codeq"),
                scope: Scope::Node,
                meaning: "label, not a secret: nodes with different ones never meet",
            },
            Setting {
                name: "cluster.clusterSecret",
                flag: None,
                kind: Kind::Secret(16),
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "what peers prove to each other; whoever proves it is admitted",
            },
            Setting {
                name: "cluster.peerCert",
                flag: None,
                kind: Kind::Path,
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "file with this node's certificate: peers encrypt every connection, and know each other by it; read again when it changes",
            },
            Setting {
                name: "cluster.peerKey",
                flag: None,
                kind: Kind::Path,
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "file with its key",
            },
            Setting {
                name: "cluster.peerCa",
                flag: None,
                kind: Kind::Path,
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "file with the authorities that vouch for members; nobody else does",
            },
            Setting {
                name: "cluster.initialClusterState",
                flag: None,
                kind: Kind::Choice(&CLUSTER_STATE),
                default: Default::Is("new"),
                scope: Scope::Node,
                meaning: "existing: never found anything, only be admitted",
            },
            Setting {
                name: "cluster.bootstrapExpect",
                flag: None,
                kind: Kind::Int(0, FOUNDERS_MAX as u64),
                default: Default::Is("0"),
                scope: Scope::Node,
                meaning: "found a cluster when so many nodes have met",
            },
            Setting {
                name: "cluster.join",
                flag: None,
                kind: Kind::Hosts,
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "peer ports to ask for admission, or to get to know; without a list or a number of founders this node founds nothing",
            },
            Setting {
                name: "cluster.joinTimeout",
                flag: None,
                kind: Kind::Duration(SECOND, DAY),
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "a node that belongs to no cluster by then ends with status 3",
            },
            Setting {
                name: "cluster.joinToken",
                flag: None,
                kind: Kind::Secret(16),
                default: Default::Absent,
                scope: Scope::Node,
                meaning: "join token that this node proves when it asks for admission; codeq token create makes one",
            },
            Setting {
                name: "cluster.replica",
                flag: None,
                kind: Kind::Bool,
                default: Default::Is("false"),
                scope: Scope::Node,
                meaning: "when this node is admitted it does not vote, until an operator promotes it",
            },
            Setting {
                name: "cluster.electionTimeout",
                flag: None,
                kind: Kind::Duration(50, MINUTE),
                default: Default::Is("500ms"),
                scope: Scope::Node,
                meaning: "time without a leader until a campaign, drawn from this to twice this",
            },
            Setting {
                name: "cluster.heartbeat",
                flag: None,
                kind: Kind::Duration(10, 12 * SECOND),
                default: Default::Is("100ms"),
                scope: Scope::Node,
                meaning: "time between a leader's heartbeats; at most a fifth of the election timeout",
            },
            Setting {
                name: "cluster.leaderLease",
                flag: None,
                kind: Kind::Duration(10, MINUTE),
                default: Default::Computed("400ms, or four fifths of a shorter election timeout"),
                scope: Scope::Node,
                meaning: "how long a leader is trusted after a majority has answered it, in checks and in the status; below the election timeout",
            },
            Setting {
                name: "cluster.leaderWait",
                flag: None,
                kind: Kind::Duration(0, MINUTE),
                default: Default::Is("2s"),
                scope: Scope::Node,
                meaning: "how long a request is held when there is no leader; then 503",
            },
            Setting {
                name: "cluster.proposeTimeout",
                flag: None,
                kind: Kind::Duration(100, 5 * MINUTE),
                default: Default::Is("10s"),
                scope: Scope::Node,
                meaning: "how long a request waits until its effect is committed; then 504",
            },
            Setting {
                name: "cluster.promoteLag",
                flag: None,
                kind: Kind::Int(0, 1_000_000),
                default: Default::Is("1000"),
                scope: Scope::Node,
                meaning: "entries that a learner may lack when it becomes a voter",
            },
            Setting {
                name: "cluster.promoteAfter",
                flag: None,
                kind: Kind::Duration(0, 10 * MINUTE),
                default: Default::Is("1s"),
                scope: Scope::Node,
                meaning: "for how long it must have lacked no more",
            },
            Setting {
                name: "cluster.healthInterval",
                flag: None,
                kind: Kind::Duration(100, 10 * MINUTE),
                default: Default::Is("5s"),
                scope: Scope::Node,
                meaning: "how often a member tells the others how it is",
            },
            Setting {
                name: "cluster.zone",
                flag: None,
                kind: Kind::Text(&LABEL),
                default: Default::Is("dc1"),
                scope: Scope::Node,
                meaning: "label of the data centre or rack, shown as DC; leadership can be handed to a zone",
            },
            Setting {
                name: "cluster.raftStatusLog",
                flag: None,
                kind: Kind::Duration(0, 60 * MINUTE),
                default: Default::Computed("5s beside BIND, else 0s: never"),
                scope: Scope::Node,
                meaning: "how often the log says who leads and how far this node is",
            },
            Setting {
                name: "cluster.eventsMax",
                flag: None,
                kind: Kind::Int(100, 100_000),
                default: Default::Is("10000"),
                scope: Scope::Node,
                meaning: "events that this node keeps; older ones are forgotten",
            },
            Setting {
                name: "raft.maxEntryOps",
                flag: None,
                kind: Kind::Int(1, ENTRY_OPERATIONS_MAX as u64),
                default: Default::Is("512"),
                scope: Scope::Node,
                meaning: "operations in one log entry",
            },
            Setting {
                name: "raft.maxEntryBytes",
                flag: None,
                kind: Kind::Size(4 * KIB, 8 * MIB),
                default: Default::Is("256KiB"),
                scope: Scope::Node,
                meaning: "bytes of operations in one log entry; a larger operation travels alone",
            },
        ],
    },
    Section {
        title: "Queue defaults",
        settings: &[
            Setting {
                name: "queue.lease.default",
                flag: None,
                kind: Kind::Duration(100, 7 * DAY),
                default: Default::Is("5m"),
                scope: Scope::Cluster,
                meaning: "lease of a claim that names none",
            },
            Setting {
                name: "queue.lease.min",
                flag: None,
                kind: Kind::Duration(100, HOUR),
                default: Default::Is("1s"),
                scope: Scope::Cluster,
                meaning: "shorter leases become this",
            },
            Setting {
                name: "queue.lease.max",
                flag: None,
                kind: Kind::Duration(SECOND, 7 * DAY),
                default: Default::Is("12h"),
                scope: Scope::Cluster,
                meaning: "longer leases become this",
            },
            Setting {
                name: "queue.maxAttempts",
                flag: None,
                kind: Kind::Int(1, ATTEMPTS_MAX as u64),
                default: Default::Is("5"),
                scope: Scope::Cluster,
                meaning: "deliveries of a task whose creation names no number",
            },
            Setting {
                name: "queue.backoff.policy",
                flag: None,
                kind: Kind::Choice(&BACKOFF),
                default: Default::Is("exp_full_jitter"),
                scope: Scope::Cluster,
                meaning: "how delays between attempts grow",
            },
            Setting {
                name: "queue.backoff.base",
                flag: None,
                kind: Kind::Duration(1, DAY),
                default: Default::Is("5s"),
                scope: Scope::Cluster,
                meaning: "delay after the first failure, before jitter",
            },
            Setting {
                name: "queue.backoff.max",
                flag: None,
                kind: Kind::Duration(1, 7 * DAY),
                default: Default::Is("15m"),
                scope: Scope::Cluster,
                meaning: "longest delay, also of one that a worker asks for",
            },
            Setting {
                name: "queue.idempotencyWindow",
                flag: None,
                kind: Kind::Duration(MINUTE, 30 * DAY),
                default: Default::Is("1d"),
                scope: Scope::Cluster,
                meaning: "how long an idempotency key answers with its first task",
            },
            Setting {
                name: "history.maxEntries",
                flag: None,
                kind: Kind::Int(0, queue::history::ENTRIES_MAX as u64),
                default: Default::Is("200"),
                scope: Scope::Cluster,
                meaning: "entries of a task's history; those in the middle are left out first; 0: none are kept",
            },
            Setting {
                name: "queue.maxDelay",
                flag: None,
                kind: Kind::Duration(HOUR, 36_500 * DAY),
                default: Default::Is("3650d"),
                scope: Scope::Cluster,
                meaning: "furthest that a task may be put off",
            },
            Setting {
                name: "queue.retention.completed",
                flag: None,
                kind: Kind::Duration(MINUTE, 3650 * DAY),
                default: Default::Is("1d"),
                scope: Scope::Cluster,
                meaning: "how long completed tasks can be read",
            },
            Setting {
                name: "queue.retention.failed",
                flag: None,
                kind: Kind::Duration(MINUTE, 3650 * DAY),
                default: Default::Is("7d"),
                scope: Scope::Cluster,
                meaning: "how long failed and cancelled tasks can be read",
            },
            Setting {
                name: "queue.retention.deadLettered",
                flag: None,
                kind: Kind::Duration(MINUTE, 3650 * DAY),
                default: Default::Is("7d"),
                scope: Scope::Cluster,
                meaning: "how long dead letters can be read",
            },
        ],
    },
    Section {
        title: "Limits",
        settings: &[
            Setting {
                name: "limits.maxBodyBytes",
                flag: None,
                kind: Kind::Size(64 * KIB, 256 * MIB),
                default: Default::Is("16MiB"),
                scope: Scope::Node,
                meaning: "body of a request",
            },
            Setting {
                name: "limits.maxPayloadBytes",
                flag: None,
                kind: Kind::Size(KIB, 3 * MIB),
                default: Default::Is("1MiB"),
                scope: Scope::Cluster,
                meaning: "payload of a task",
            },
            Setting {
                name: "limits.maxResultBytes",
                flag: None,
                kind: Kind::Size(KIB, 3 * MIB),
                default: Default::Is("1MiB"),
                scope: Scope::Cluster,
                meaning: "result of a task",
            },
            Setting {
                name: "limits.maxErrorBytes",
                flag: None,
                kind: Kind::Size(256, 64 * KIB),
                default: Default::Is("16KiB"),
                scope: Scope::Cluster,
                meaning: "text of an error; longer ones are cut",
            },
            Setting {
                name: "limits.batchCreate",
                flag: None,
                kind: Kind::Int(1, 1000),
                default: Default::Is("100"),
                scope: Scope::Node,
                meaning: "tasks in one batch creation",
            },
            Setting {
                name: "limits.batchResults",
                flag: None,
                kind: Kind::Int(1, 1000),
                default: Default::Is("100"),
                scope: Scope::Node,
                meaning: "results in one batch",
            },
            Setting {
                name: "limits.batchClaim",
                flag: None,
                kind: Kind::Int(1, 100),
                default: Default::Is("10"),
                scope: Scope::Node,
                meaning: "tasks in one batch claim",
            },
            Setting {
                name: "limits.inboxDepth",
                flag: None,
                kind: Kind::Int(64, 1_000_000),
                default: Default::Is("4096"),
                scope: Scope::Node,
                meaning: "requests waiting per shard; more get 503",
            },
            Setting {
                name: "limits.waiters",
                flag: None,
                kind: Kind::Int(1, 1_000_000),
                default: Default::Is("10000"),
                scope: Scope::Node,
                meaning: "long polls on this node",
            },
            Setting {
                name: "limits.waitersPerTenant",
                flag: None,
                kind: Kind::Int(1, 1_000_000),
                default: Default::Is("2000"),
                scope: Scope::Node,
                meaning: "long polls of one tenant on this node",
            },
            Setting {
                name: "limits.eventStreams",
                flag: None,
                kind: Kind::Int(1, 100_000),
                default: Default::Is("1000"),
                scope: Scope::Node,
                meaning: "streams of what happens to tasks on this node",
            },
            Setting {
                name: "events.maxEntries",
                flag: None,
                kind: Kind::Int(1_000, 100_000_000),
                default: Default::Is("100000"),
                scope: Scope::Node,
                meaning: "events of a shard that this node keeps in memory for those who come back to a stream, of about 70 bytes each",
            },
            Setting {
                name: "events.retention",
                flag: None,
                kind: Kind::Duration(MINUTE, 7 * DAY),
                default: Default::Is("1h"),
                scope: Scope::Node,
                meaning: "and for how long at most",
            },
            Setting {
                name: "limits.maxLiveTasks",
                flag: None,
                kind: Kind::Int(0, 2_000_000_000),
                default: Default::Is("0"),
                scope: Scope::Node,
                meaning: "live tasks of a shard; more get 507; 0 is no limit",
            },
            Setting {
                name: "operations.maxRate",
                flag: None,
                kind: Kind::Int(1, 100_000),
                default: Default::Is("500"),
                scope: Scope::Node,
                meaning: "tasks per second that a request for an operation on many tasks may ask for",
            },
        ],
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_of_flags_and_variables_follow_from_the_name() {
        let names = |name: &str| {
            let setting = setting(name).expect("the table has it");
            (setting.flag(), setting.variable())
        };
        let expect = |flag: &str, variable: &str| (flag.to_owned(), variable.to_owned());
        assert_eq!(names("http.maxHeaderBytes"), expect("http-max-header-bytes", "CODEQ_HTTP_MAX_HEADER_BYTES"));
        assert_eq!(names("cluster.nodeId"), expect("node-id", "CODEQ_NODE_ID"));
        assert_eq!(names("storage.provider"), expect("storage", "CODEQ_STORAGE"));
        assert_eq!(names("log.raftLevel"), expect("raft-log-level", "CODEQ_RAFT_LOG_LEVEL"));
        assert_eq!(names("auth.worker.config"), expect("auth-worker-config-file", "CODEQ_AUTH_WORKER_CONFIG"));
        let secret = setting("auth.worker.config").expect("the table has it");
        assert_eq!(secret.file_variable().as_deref(), Some("CODEQ_AUTH_WORKER_CONFIG_FILE"));
        assert_eq!(secret.file_key().as_deref(), Some("auth.worker.configFile"));
    }

    #[test]
    fn no_name_is_there_twice_or_one_that_kubernetes_would_set() {
        let mut seen = BTreeSet::new();
        for setting in settings() {
            let aliases =
                FLAG_ALIASES.iter().filter(|(_, name)| *name == setting.name).map(|(alias, _)| (*alias).into());
            let names = [setting.name.to_owned(), setting.flag(), setting.variable()].into_iter().chain(aliases);
            for name in names.collect::<BTreeSet<String>>() {
                assert!(seen.insert(name.clone()), "{name} is there twice");
            }
            let first = setting.name.split('.').next().expect("a split has a first part");
            assert!(!["port", "service"].contains(&first), "{}", setting.name);
        }
        assert!(FLAG_ALIASES.iter().all(|(alias, name)| by_flag(alias).is_some_and(|setting| setting.name == *name)));
    }

    #[test]
    fn defaults_are_allowed_values() {
        for setting in settings() {
            if let Default::Is(text) = setting.default {
                let value = setting.kind.parse(text).unwrap_or_else(|why| panic!("{}: {why}", setting.name));
                assert_eq!(value.to_string(), text, "{} is shown otherwise", setting.name);
            }
        }
    }

    /// A choice says each of its words once, and every word means one that means itself.
    #[test]
    fn words_are_sound() {
        for setting in settings() {
            let Kind::Choice(words) = setting.kind else { continue };
            for (word, meaning) in words.known {
                assert!(words.known.contains(&(meaning, meaning)), "{}: {word}", setting.name);
            }
        }
    }
}
