//! The names codeQ has for settings, in the environment and at the top level of its file, and what becomes of each; and a few variables
//! that clusters of other programs are started with.
//!
//! An operator is told in a line for each kind: what was taken over, what works otherwise than there, what has no meaning here, and what is
//! so in any case.

use std::net::Ipv6Addr;

use crate::config::Notice;
use crate::config::kinds::{Kind, PEER_PORT, boolean};
use crate::config::values::Origin;

/// A name of codeQ's.
#[derive(Debug)]
pub(crate) struct Name {
    /// Its variable; empty if it has none.
    pub(crate) variable: &'static str,
    /// Its key in the file, or with `*` what such keys begin with; empty if it has none.
    pub(crate) key: &'static str,
    becomes: Becomes,
}

/// What becomes of it.
#[derive(Debug)]
enum Becomes {
    /// A setting; with `changed`, it works otherwise than in codeQ.
    Setting { name: &'static str, form: Form, changed: Option<&'static str> },
    /// Several settings: the members of `PERSISTENCE_CONFIG`.
    Persistence,
    /// The timers of elections: the larger one counts.
    Election,
    /// The host of the peer port, for users of another program than codeQ.
    Bind,
    /// A founder, for the same users: it counts only beside the one above.
    Founder,
    /// A setting, for users of other programs than codeQ.
    Foreign(&'static str),
    /// Nothing, for this reason.
    Ignored(&'static str),
    /// Nothing, as it is always so; whoever says the opposite is told.
    Always(&'static str),
    /// Nothing if it is one of these; everything else is refused.
    Only { allowed: &'static [&'static str], why: &'static str, refused: &'static str },
    /// A start-up error.
    Refused(&'static str),
}

/// How its value is written.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// As ours.
    Same,
    /// A storage provider: as ours, and `pebble` works otherwise.
    Provider,
    /// A port.
    Port,
    /// A whole number; codeQ takes its default if it is not positive.
    Count,
    /// Whole seconds, likewise.
    Seconds,
    /// Whole milliseconds, likewise.
    Millis,
}

/// A name of codeQ's that is in use.
#[derive(Debug)]
pub(crate) struct Used {
    pub(crate) name: &'static Name,
    /// The variable or the key.
    pub(crate) shown: String,
    pub(crate) text: String,
    pub(crate) origin: Origin,
}

impl Used {
    /// Its name, and where that stands if it stands in a file.
    fn place(&self) -> String {
        match &self.origin {
            Origin::Codeq(_) | Origin::Environment(_) => self.shown.clone(),
            origin => format!("{} ({origin})", self.shown),
        }
    }
}

/// What became of those in use.
#[derive(Debug, Default)]
pub(crate) struct Translated {
    /// Settings by name, with their text.
    pub(crate) given: Vec<(&'static str, String, Origin)>,
    pub(crate) notices: Vec<Notice>,
    pub(crate) problems: Vec<String>,
    mapped: Vec<String>,
    changed: Vec<String>,
    ignored: Vec<String>,
    needless: Vec<String>,
    foreign: Vec<String>,
}

/// All names.
pub(crate) static NAMES: &[Name] = &[
    Name {
        variable: "CODEQ_CONFIG_PATH",
        key: "",
        becomes: Becomes::Setting { name: "config", form: Form::Same, changed: None },
    },
    Name {
        variable: "PORT",
        key: "port",
        becomes: Becomes::Setting { name: "http.addr", form: Form::Port, changed: None },
    },
    Name {
        variable: "ENV",
        key: "",
        becomes: Becomes::Setting { name: "env", form: Form::Same, changed: Some("codeQ does not read the variable") },
    },
    Name {
        variable: "LOG_LEVEL",
        key: "logLevel",
        becomes: Becomes::Setting {
            name: "log.level",
            form: Form::Same,
            changed: Some("codeQ does not read the variable"),
        },
    },
    Name {
        variable: "LOG_FORMAT",
        key: "logFormat",
        becomes: Becomes::Setting {
            name: "log.format",
            form: Form::Same,
            changed: Some("codeQ does not read the variable"),
        },
    },
    Name {
        variable: "PERSISTENCE_PROVIDER",
        key: "persistenceProvider",
        becomes: Becomes::Setting { name: "storage.provider", form: Form::Provider, changed: None },
    },
    Name { variable: "PERSISTENCE_CONFIG", key: "persistenceConfig", becomes: Becomes::Persistence },
    Name { variable: "REDIS_ADDR", key: "redisAddr", becomes: Becomes::Ignored("no Redis") },
    Name { variable: "REDIS_PASSWORD", key: "redisPassword", becomes: Becomes::Ignored("no Redis") },
    Name { variable: "KVROCKS_PASSWORD", key: "kvrocksPassword", becomes: Becomes::Ignored("no Redis") },
    Name {
        variable: "RAFT_ENABLED",
        key: "raft.enabled",
        becomes: Becomes::Setting { name: "cluster.raft", form: Form::Same, changed: None },
    },
    Name {
        variable: "RAFT_SELF_ID",
        key: "raft.selfId",
        becomes: Becomes::Setting { name: "cluster.nodeId", form: Form::Same, changed: None },
    },
    Name {
        variable: "RAFT_PEERS",
        key: "raft.peers",
        becomes: Becomes::Setting { name: "cluster.initialCluster", form: Form::Same, changed: None },
    },
    Name {
        variable: "RAFT_BIND_ADDR",
        key: "raft.bindAddr",
        becomes: Becomes::Setting { name: "cluster.raftAddr", form: Form::Same, changed: None },
    },
    Name {
        variable: "RAFT_PEER_HTTP_ADDRS",
        key: "raft.peerHTTPAddrs",
        becomes: Becomes::Setting { name: "cluster.peerHttp", form: Form::Same, changed: None },
    },
    Name {
        variable: "RAFT_BOOTSTRAP",
        key: "raft.bootstrap",
        becomes: Becomes::Setting { name: "cluster.bootstrap", form: Form::Same, changed: None },
    },
    Name { variable: "RAFT_ELECTION_MS", key: "raft.electionMS", becomes: Becomes::Election },
    Name { variable: "RAFT_HEARTBEAT_MS", key: "raft.heartbeatMS", becomes: Becomes::Election },
    Name {
        variable: "RAFT_LEADER_LEASE_MS",
        key: "raft.leaderLeaseMS",
        becomes: Becomes::Setting { name: "cluster.leaderLease", form: Form::Millis, changed: None },
    },
    Name { variable: "RAFT_COMMIT_MS", key: "raft.commitMS", becomes: Becomes::Ignored("no timer makes a batch") },
    Name {
        variable: "RAFT_APPLY_TIMEOUT_SECONDS",
        key: "raft.applyTimeoutSeconds",
        becomes: Becomes::Setting {
            name: "cluster.proposeTimeout",
            form: Form::Seconds,
            changed: Some("it bounds the whole wait of a request"),
        },
    },
    Name {
        variable: "RAFT_MUX_ENABLED",
        key: "raft.muxEnabled",
        becomes: Becomes::Always("all shards share one port"),
    },
    Name {
        variable: "RAFT_TOPIC_CATALOG_PROTOCOL",
        key: "raft.topicCatalogProtocol",
        becomes: Becomes::Only { allowed: &["v1"], why: "topics are always replicated", refused: "only v1 is known" },
    },
    Name {
        variable: "CLUSTER_ENABLED",
        key: "cluster.enabled",
        becomes: Becomes::Only {
            allowed: &["false", "0", "no", "off"],
            why: "no ring mode",
            refused: "codeQ's ring mode is not supported; use RAFT_PEERS",
        },
    },
    Name { variable: "CLUSTER_SELF_ID", key: "cluster.selfId", becomes: Becomes::Ignored("no ring mode") },
    Name { variable: "CLUSTER_GRPC_ADDR", key: "cluster.grpcAddr", becomes: Becomes::Ignored("no ring mode") },
    Name { variable: "CLUSTER_NODES", key: "cluster.nodes", becomes: Becomes::Ignored("no ring mode") },
    Name {
        variable: "",
        key: "sharding.enabled",
        becomes: Becomes::Only {
            allowed: &["false", "0", "no", "off"],
            why: "no Redis",
            refused: "sharding over Redis back ends is not supported; use `shards`",
        },
    },
    Name { variable: "", key: "sharding.*", becomes: Becomes::Ignored("no Redis") },
    Name {
        variable: "PRODUCER_AUTH_PROVIDER",
        key: "producerAuthProvider",
        becomes: Becomes::Setting { name: "auth.producer.provider", form: Form::Same, changed: None },
    },
    Name {
        variable: "PRODUCER_AUTH_CONFIG",
        key: "producerAuthConfig",
        becomes: Becomes::Setting { name: "auth.producer.config", form: Form::Same, changed: None },
    },
    Name {
        variable: "WORKER_AUTH_PROVIDER",
        key: "workerAuthProvider",
        becomes: Becomes::Setting { name: "auth.worker.provider", form: Form::Same, changed: None },
    },
    Name {
        variable: "WORKER_AUTH_CONFIG",
        key: "workerAuthConfig",
        becomes: Becomes::Setting { name: "auth.worker.config", form: Form::Same, changed: None },
    },
    Name {
        variable: "IDENTITY_SERVICE_URL",
        key: "identityServiceUrl",
        becomes: Becomes::Refused("this version cannot check tokens against a key set; configure a static provider"),
    },
    Name {
        variable: "IDENTITY_JWKS_URL",
        key: "identityJwksUrl",
        becomes: Becomes::Refused("this version cannot check tokens against a key set; configure a static provider"),
    },
    Name {
        variable: "WORKER_JWKS_URL",
        key: "workerJwksUrl",
        becomes: Becomes::Refused("this version cannot check tokens against a key set; configure a static provider"),
    },
    Name { variable: "IDENTITY_ISSUER", key: "identityIssuer", becomes: Becomes::Ignored("no key sets") },
    Name { variable: "IDENTITY_AUDIENCE", key: "identityAudience", becomes: Becomes::Ignored("no key sets") },
    Name { variable: "WORKER_ISSUER", key: "workerIssuer", becomes: Becomes::Ignored("no key sets") },
    Name { variable: "WORKER_AUDIENCE", key: "workerAudience", becomes: Becomes::Ignored("no key sets") },
    Name {
        variable: "ALLOWED_CLOCK_SKEW_SECONDS",
        key: "allowedClockSkewSeconds",
        becomes: Becomes::Ignored("no key sets"),
    },
    Name {
        variable: "IDENTITY_SERVICE_API_KEY",
        key: "identityServiceApiKey",
        becomes: Becomes::Ignored("the server never used it"),
    },
    Name {
        variable: "ALLOW_PRODUCER_AS_WORKER",
        key: "allowProducerAsWorker",
        becomes: Becomes::Setting { name: "auth.allowProducerAsWorker", form: Form::Same, changed: None },
    },
    Name {
        variable: "MAX_ATTEMPTS_DEFAULT",
        key: "maxAttemptsDefault",
        becomes: Becomes::Setting {
            name: "queue.maxAttempts",
            form: Form::Count,
            changed: Some("it is the number of deliveries"),
        },
    },
    Name {
        variable: "BACKOFF_POLICY",
        key: "backoffPolicy",
        becomes: Becomes::Setting { name: "queue.backoff.policy", form: Form::Same, changed: None },
    },
    Name {
        variable: "BACKOFF_BASE_SECONDS",
        key: "backoffBaseSeconds",
        becomes: Becomes::Setting { name: "queue.backoff.base", form: Form::Seconds, changed: None },
    },
    Name {
        variable: "BACKOFF_MAX_SECONDS",
        key: "backoffMaxSeconds",
        becomes: Becomes::Setting { name: "queue.backoff.max", form: Form::Seconds, changed: None },
    },
    Name {
        variable: "DEFAULT_LEASE_SECONDS",
        key: "defaultLeaseSeconds",
        becomes: Becomes::Setting {
            name: "queue.lease.default",
            form: Form::Seconds,
            changed: Some("codeQ does not read the variable"),
        },
    },
    Name {
        variable: "REQUEUE_INSPECT_LIMIT",
        key: "requeueInspectLimit",
        becomes: Becomes::Ignored("nothing is inspected in batches"),
    },
    Name { variable: "TIMEZONE", key: "timezone", becomes: Becomes::Ignored("times are UTC") },
    Name {
        variable: "WORKER_STREAM_ADDR",
        key: "workerStreamAddr",
        becomes: Becomes::Ignored("no gRPC in this version"),
    },
    Name {
        variable: "PRODUCER_STREAM_ADDR",
        key: "producerStreamAddr",
        becomes: Becomes::Ignored("no gRPC in this version"),
    },
    Name {
        variable: "LOCAL_ARTIFACTS_DIR",
        key: "localArtifactsDir",
        becomes: Becomes::Ignored("no artifacts in this version"),
    },
    Name {
        variable: "WEBHOOK_HMAC_SECRET",
        key: "webhookHmacSecret",
        becomes: Becomes::Ignored("no webhooks in this version"),
    },
    Name {
        variable: "SUBSCRIPTION_MIN_INTERVAL_SECONDS",
        key: "subscriptionMinIntervalSeconds",
        becomes: Becomes::Ignored("no webhooks in this version"),
    },
    Name {
        variable: "SUBSCRIPTION_CLEANUP_INTERVAL_SECONDS",
        key: "subscriptionCleanupIntervalSeconds",
        becomes: Becomes::Ignored("no webhooks in this version"),
    },
    Name {
        variable: "RESULT_WEBHOOK_MAX_ATTEMPTS",
        key: "resultWebhookMaxAttempts",
        becomes: Becomes::Ignored("no webhooks in this version"),
    },
    Name {
        variable: "RESULT_WEBHOOK_BASE_BACKOFF_SECONDS",
        key: "resultWebhookBaseBackoffSeconds",
        becomes: Becomes::Ignored("no webhooks in this version"),
    },
    Name {
        variable: "RESULT_WEBHOOK_MAX_BACKOFF_SECONDS",
        key: "resultWebhookMaxBackoffSeconds",
        becomes: Becomes::Ignored("no webhooks in this version"),
    },
    Name {
        variable: "",
        key: "rateLimit.producer.requestsPerMinute",
        becomes: Becomes::Ignored("no rate limits in this version"),
    },
    Name {
        variable: "",
        key: "rateLimit.producer.burstSize",
        becomes: Becomes::Ignored("no rate limits in this version"),
    },
    Name {
        variable: "",
        key: "rateLimit.worker.requestsPerMinute",
        becomes: Becomes::Ignored("no rate limits in this version"),
    },
    Name {
        variable: "",
        key: "rateLimit.worker.burstSize",
        becomes: Becomes::Ignored("no rate limits in this version"),
    },
    Name {
        variable: "",
        key: "rateLimit.webhook.requestsPerMinute",
        becomes: Becomes::Ignored("no rate limits in this version"),
    },
    Name {
        variable: "",
        key: "rateLimit.webhook.burstSize",
        becomes: Becomes::Ignored("no rate limits in this version"),
    },
    Name {
        variable: "",
        key: "rateLimit.admin.requestsPerMinute",
        becomes: Becomes::Ignored("no rate limits in this version"),
    },
    Name {
        variable: "",
        key: "rateLimit.admin.burstSize",
        becomes: Becomes::Ignored("no rate limits in this version"),
    },
    Name {
        variable: "TRACING_ENABLED",
        key: "tracingEnabled",
        becomes: Becomes::Ignored("no tracing in this version"),
    },
    Name {
        variable: "TRACING_SERVICE_NAME",
        key: "tracingServiceName",
        becomes: Becomes::Ignored("no tracing in this version"),
    },
    Name {
        variable: "TRACING_OTLP_ENDPOINT",
        key: "tracingOtlpEndpoint",
        becomes: Becomes::Ignored("no tracing in this version"),
    },
    Name {
        variable: "TRACING_OTLP_INSECURE",
        key: "tracingOtlpInsecure",
        becomes: Becomes::Ignored("no tracing in this version"),
    },
    Name {
        variable: "TRACING_SAMPLE_RATIO",
        key: "tracingSampleRatio",
        becomes: Becomes::Ignored("no tracing in this version"),
    },
    Name { variable: "OTEL_SERVICE_NAME", key: "", becomes: Becomes::Ignored("no tracing in this version") },
    Name { variable: "OTEL_EXPORTER_OTLP_ENDPOINT", key: "", becomes: Becomes::Ignored("no tracing in this version") },
    Name { variable: "OTEL_EXPORTER_OTLP_INSECURE", key: "", becomes: Becomes::Ignored("no tracing in this version") },
    Name { variable: "CODEQ_PPROF", key: "", becomes: Becomes::Ignored("no profiler in this version") },
    Name { variable: "RAFT", key: "", becomes: Becomes::Foreign("cluster.raft") },
    Name { variable: "RAFT_NODES", key: "", becomes: Becomes::Foreign("cluster.initialCluster") },
    Name { variable: "BIND", key: "", becomes: Becomes::Bind },
    Name { variable: "NODE1", key: "", becomes: Becomes::Founder },
    Name { variable: "NODE2", key: "", becomes: Becomes::Founder },
    Name { variable: "NODE3", key: "", becomes: Becomes::Founder },
    Name { variable: "NODE4", key: "", becomes: Becomes::Founder },
    Name { variable: "NODE5", key: "", becomes: Becomes::Founder },
    Name { variable: "NODE6", key: "", becomes: Becomes::Founder },
    Name { variable: "NODE7", key: "", becomes: Becomes::Founder },
    Name { variable: "NODE8", key: "", becomes: Becomes::Founder },
    Name { variable: "NODE9", key: "", becomes: Becomes::Founder },
    Name { variable: "CODEQ_PPROF_ADDR", key: "", becomes: Becomes::Ignored("no profiler in this version") },
];

/// Keys that stand in codeQ's example file, though it reads none of them.
const HINTS: [(&str, &str); 4] = [
    ("retentionSeconds", "codeQ never read it; see queue.retention.completed, .failed and .deadLettered"),
    ("cleanupIntervalSeconds", "codeQ never read it; finished tasks go by themselves"),
    ("auth.jwt", "codeQ never read it; see auth.producer and auth.worker"),
    ("webhookHandlers", "codeQ never read it"),
];

/// The name with this key.
pub(crate) fn by_key(key: &str) -> Option<&'static Name> {
    let is_it = |name: &&Name| match name.key.strip_suffix('*') {
        Some(prefix) => key.starts_with(prefix),
        None => !name.key.is_empty() && name.key == key,
    };
    NAMES.iter().find(is_it)
}

/// All keys.
pub(crate) fn keys() -> impl Iterator<Item = &'static str> {
    NAMES.iter().map(|name| name.key).filter(|key| !key.is_empty())
}

/// The configuration file that codeQ's variable names: needed before anything can be translated.
pub(crate) fn config_path(used: &[Used]) -> Option<String> {
    used.iter().find(|used| used.name.variable == "CODEQ_CONFIG_PATH").map(|used| used.text.trim().to_owned())
}

/// What to say of a key that only seems to be one of codeQ's.
pub(crate) fn hint(key: &str) -> Option<&'static str> {
    HINTS.iter().find(|(known, _)| *known == key).map(|(_, hint)| *hint)
}

/// The names that codeQ has for a setting: variables, then keys.
pub(crate) fn names_of(setting: &str) -> Vec<&'static str> {
    let is_one = |name: &&Name| match name.becomes {
        Becomes::Setting { name, .. } => name == setting,
        Becomes::Persistence => ["dataDir", "shards", "storage.durability"].contains(&setting),
        Becomes::Election => ["cluster.electionTimeout", "cluster.heartbeat"].contains(&setting),
        _ => false,
    };
    let names = || NAMES.iter().filter(is_one);
    let variables = names().map(|name| name.variable);
    variables.chain(names().map(|name| name.key)).filter(|name| !name.is_empty()).collect()
}

/// The variables that other programs have for a setting.
pub(crate) fn foreign_names_of(setting: &str) -> impl Iterator<Item = &'static str> {
    let is_one = move |name: &&Name| match name.becomes {
        Becomes::Foreign(name) => name == setting,
        Becomes::Bind => setting == "cluster.raftAddr",
        Becomes::Founder => setting == "cluster.initialCluster",
        _ => false,
    };
    NAMES.iter().filter(is_one).map(|name| name.variable)
}

impl Name {
    /// Whether it is codeQ's, and not another program's.
    pub(crate) fn is_codeq(&self) -> bool {
        !matches!(self.becomes, Becomes::Bind | Becomes::Founder | Becomes::Foreign(_))
    }

    /// Whether its value may hold a secret.
    pub(crate) fn is_secret(&self) -> bool {
        match &self.becomes {
            Becomes::Setting { name, .. } => {
                super::table::setting(name).is_some_and(|setting| setting.kind.is_secret())
            }
            Becomes::Persistence => true,
            _ => self.key.ends_with("Password") || self.key.ends_with("Secret") || self.key.ends_with("ApiKey"),
        }
    }
}

/// Turns the names in use into settings.
pub(crate) fn translate(used: &[Used]) -> Translated {
    let mut out = Translated::default();
    let mut election: Vec<(&Used, u64)> = Vec::new();
    for one in used {
        let Used { name, shown, text, .. } = one;
        let text = text.trim();
        match &name.becomes {
            Becomes::Setting { name, form, changed } => out.setting(name, *form, *changed, one),
            Becomes::Persistence => out.persistence(one),
            Becomes::Election => election.extend(out.positive(one).map(|millis| (one, millis))),
            Becomes::Bind => out.bind(one, used),
            // It was read with the one above.
            Becomes::Founder => {}
            Becomes::Foreign(setting) => out.foreign(setting, text.into(), one),
            Becomes::Ignored(why) => out.ignored.push(format!("{shown} ({why})")),
            Becomes::Always(why) => match boolean(text) {
                Some(true) => out.needless.push(format!("{shown} ({why})")),
                Some(false) => out.ignored.push(format!("{shown} ({why})")),
                None => out.problems.push(format!("{} is {text:?}: allowed is true or false", one.place())),
            },
            Becomes::Only { allowed, why, .. } if allowed.contains(&text.to_ascii_lowercase().as_str()) => {
                out.needless.push(format!("{shown} ({why})"));
            }
            Becomes::Only { refused, .. } => out.problems.push(format!("{} is {text:?}: {refused}", one.place())),
            Becomes::Refused(why) => out.problems.push(format!("{}: {why}", one.place())),
        }
    }
    // The environment's, or else the file's.
    let rank = election.iter().map(|(one, _)| one.origin.rank()).max();
    election.retain(|(one, _)| Some(one.origin.rank()) == rank);
    if let Some((one, millis)) = election.iter().max_by_key(|(_, millis)| millis) {
        let names: Vec<&str> = election.iter().map(|(used, _)| used.shown.as_str()).collect();
        out.given.push(("cluster.electionTimeout", format!("{millis}ms"), one.origin.clone()));
        out.given.push(("cluster.heartbeat", format!("{}ms", millis / 5), one.origin.clone()));
        let how = "the larger one is cluster.electionTimeout, a fifth of it cluster.heartbeat";
        out.changed.push(format!("{} ({how})", names.join(" and ")));
    }
    out.tell();
    out
}

impl Translated {
    fn setting(&mut self, setting: &'static str, form: Form, changed: Option<&str>, used: &Used) {
        let Used { shown, text, origin, .. } = used;
        let text = match form {
            Form::Same | Form::Provider => Some(text.clone()),
            Form::Port => match self.positive(used) {
                Some(port) if port > u64::from(u16::MAX) => {
                    return self.problems.push(format!("{} is {text:?}: allowed is a port, up to 65535", used.place()));
                }
                port => port.map(|port| format!(":{port}")),
            },
            Form::Count => self.positive(used).map(|count| count.to_string()),
            Form::Seconds => self.positive(used).map(|seconds| format!("{seconds}s")),
            Form::Millis => self.positive(used).map(|millis| format!("{millis}ms")),
        };
        let Some(text) = text else { return };
        let is_pebble = matches!(form, Form::Provider) && text.trim().eq_ignore_ascii_case("pebble");
        let changed = if is_pebble { Some("pebble is sqlite here; old files are not read") } else { changed };
        match changed {
            Some(how) => self.changed.push(format!("{shown} is {setting} ({how})")),
            None => self.mapped.push(format!("{shown} is {setting}")),
        }
        self.given.push((setting, text, origin.clone()));
    }

    /// A number from 1; nothing, and a notice, if it is not positive, as codeQ then takes its default.
    fn positive(&mut self, used: &Used) -> Option<u64> {
        let text = &used.text;
        match text.trim().parse::<i64>() {
            Ok(number) if number > 0 => u64::try_from(number).ok(),
            Ok(number) => {
                let text = format!("{} is {number}, which counts as not set; the default holds", used.place());
                self.notices.push(Notice::warning(text));
                None
            }
            Err(_) => {
                self.problems.push(format!("{} is {text:?}: allowed is a whole number", used.place()));
                None
            }
        }
    }

    /// `PERSISTENCE_CONFIG`: nothing of it is repeated, since it may hold a password.
    fn persistence(&mut self, used: &Used) {
        let (Used { shown, text, origin, .. }, at) = (used, used.place());
        let members = match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text) {
            Ok(members) => members,
            Err(error) => {
                let place = format!("line {} column {}", error.line(), error.column());
                return self.problems.push(format!("{at}: it is not a JSON object, at {place}"));
            }
        };
        for (member, value) in members {
            let wrong = |what: &str| format!("{at}: {member} is not {what}");
            match (member.as_str(), value) {
                ("path", serde_json::Value::String(path)) => {
                    if !path.trim().is_empty() {
                        self.mapped.push(format!("{shown}.path is dataDir"));
                        self.given.push(("dataDir", path, origin.clone()));
                    }
                }
                ("path", _) => self.problems.push(wrong("a text")),
                ("numShards", value) => match value.as_i64() {
                    Some(shards) => {
                        self.mapped.push(format!("{shown}.numShards is shards"));
                        self.given.push(("shards", shards.max(1).to_string(), origin.clone()));
                    }
                    None => self.problems.push(wrong("a whole number")),
                },
                ("fsyncOnCommit", serde_json::Value::Bool(true)) => {
                    self.mapped.push(format!("{shown}.fsyncOnCommit is storage.durability"));
                    self.given.push(("storage.durability", "fsync".into(), origin.clone()));
                }
                ("fsyncOnCommit", serde_json::Value::Bool(false)) => {
                    self.changed.push(format!("{shown}.fsyncOnCommit is storage.durability (codeQ ignores false)"));
                    self.given.push(("storage.durability", "buffered".into(), origin.clone()));
                }
                ("fsyncOnCommit", _) => self.problems.push(wrong("true or false")),
                ("addr" | "password", _) => self.ignored.push(format!("{shown}.{member} (no Redis)")),
                _ => self.problems.push(format!(
                    "{at}: it has a member {member}; known are path, numShards, fsyncOnCommit, addr and password"
                )),
            }
        }
    }

    fn foreign(&mut self, setting: &'static str, text: String, used: &Used) {
        self.foreign.push(format!("{} is {setting}", used.shown));
        self.given.push((setting, text, used.origin.clone()));
    }

    /// `BIND` is the host of the peer port, and beside it `NODE1` to `NODE9` are the founders.
    fn bind(&mut self, used: &Used, all: &[Used]) {
        let host = used.text.trim();
        let is_whole = Kind::Addr.parse(host).is_ok();
        let address = match host.parse::<Ipv6Addr>() {
            Ok(v6) => format!("[{v6}]:{PEER_PORT}"),
            Err(_) if is_whole => host.into(),
            Err(_) => format!("{host}:{PEER_PORT}"),
        };
        self.foreign("cluster.raftAddr", address, used);
        let founders: Vec<&Used> = all.iter().filter(|one| matches!(one.name.becomes, Becomes::Founder)).collect();
        if let Some(first) = founders.first() {
            let names: Vec<&str> = founders.iter().map(|one| one.shown.as_str()).collect();
            self.foreign.push(format!("{} together are cluster.initialCluster", names.join(", ")));
            let list: Vec<&str> = founders.iter().map(|one| one.text.trim()).collect();
            self.given.push(("cluster.initialCluster", list.join(","), first.origin.clone()));
        }
    }

    fn tell(&mut self) {
        let kinds = [
            (false, "names of codeQ's in use", &self.mapped),
            (true, "names of codeQ's that work otherwise here", &self.changed),
            (true, "names of codeQ's without a meaning here", &self.ignored),
            (false, "names of codeQ's that say what is so in any case", &self.needless),
            (false, "names of other programs in use", &self.foreign),
        ];
        for (is_warning, what, names) in kinds {
            if !names.is_empty() {
                self.notices.push(Notice { is_warning, text: format!("{what}: {}", names.join(", ")) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::table::setting;

    #[test]
    fn every_name_leads_somewhere_and_stands_there_once() {
        let mut seen = std::collections::BTreeSet::new();
        for name in NAMES {
            if let Becomes::Setting { name, .. } = name.becomes {
                assert!(setting(name).is_some(), "{name}");
            }
            for one in [name.variable, name.key].into_iter().filter(|one| !one.is_empty()) {
                assert!(seen.insert(one), "{one} is there twice");
                assert!(setting(one).is_none(), "{one} is a setting of ours");
            }
            if let Becomes::Only { allowed, .. } = name.becomes {
                assert!(allowed.contains(&"v1") || allowed.iter().all(|word| boolean(word) == Some(false)));
            }
        }
    }
}
