//! Servers under test.

use std::net::SocketAddr;
use std::path::Path;

use base::Millis;
use cluster::{Data, NodeConfig, Room};
use queue::policy::LeaseBounds;
use queue::{Backoff, BackoffPolicy, Policy};
use server::auth::{AuthSettings, OpenMode, StaticTokens};
use server::reload::Files;
use server::settings::{HttpSettings, Limits, Settings};
use server::{BackupSettings, Exit, Server};

use crate::client::Client;
use crate::faults;

/// A server that runs.
pub(crate) struct Running {
    server: Server,
}

impl Running {
    /// Starts a server and waits until it takes writes.
    pub(crate) async fn start(settings: Settings) -> Running {
        let running = Running::starting(settings);
        running.server.node().ready().await;
        running
    }

    /// Starts a server, and waits for nothing.
    pub(crate) fn starting(settings: Settings) -> Running {
        faults::watch();
        Running { server: Server::start(settings).expect("it starts") }
    }

    /// A server in memory that asks nobody for a token.
    pub(crate) async fn open() -> Running {
        Running::start(settings()).await
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// Somebody without a token.
    pub(crate) fn client(&self) -> Client {
        Client::of(self.server.addr())
    }

    /// Somebody with this token.
    pub(crate) fn with_token(&self, token: &str) -> Client {
        self.client().header("Authorization", &format!("Bearer {token}"))
    }

    /// Waits until it has stopped by itself.
    pub(crate) async fn failed(mut self) -> Exit {
        let failed = tokio::time::timeout(std::time::Duration::from_secs(20), self.server.failed()).await;
        failed.expect("it stops")
    }

    /// Stops it as planned.
    pub(crate) async fn stop(self) {
        self.stopped().await.expect("it stops");
        faults::assert_none();
    }

    /// Stops it and returns how that went.
    pub(crate) async fn stopped(self) -> Result<(), Exit> {
        self.server.stop().await
    }
}

/// A server in memory, open, with short leases and a backoff of 100 ms.
pub(crate) fn settings() -> Settings {
    Settings {
        node: NodeConfig {
            segment_bytes: 1 << 20,
            checkpoint_interval: Millis(200),
            checkpoint_log_bytes: 1 << 20,
            url: "http://127.0.0.1:0".into(),
            trailing_log_bytes: 64 << 20,
            // Nothing here depends on how full this machine's disk is.
            disk_low: Room::Bytes(0),
            disk_critical: Room::Bytes(0),
            ..NodeConfig::new("n1", Data::Memory)
        },
        policy: Policy {
            lease: LeaseBounds { min: Millis(50), ..Policy::default().lease },
            backoff: Backoff { policy: BackoffPolicy::Fixed, base: Millis(100), max: Millis::from_secs(900) },
            ..Policy::default()
        },
        http: HttpSettings {
            addr: "127.0.0.1:0".parse().expect("an address"),
            header_timeout: Millis(5_000),
            body_timeout: Millis(30_000),
            idle_timeout: Millis(120_000),
            header_bytes_max: 32 << 10,
            connections_max: 10_000,
            threads: 2,
        },
        join_timeout: None,
        auth: AuthSettings { open: Some(OpenMode { names: Vec::new() }), ..AuthSettings::default() },
        limits: Limits {
            body_bytes_max: 64 << 10,
            payload_bytes_max: 4 << 10,
            result_bytes_max: 4 << 10,
            batch_create_max: 100,
            batch_results_max: 100,
            batch_claim_max: 10,
            delay_max: Millis::from_secs(3650 * 86_400),
            waiters_max: 10_000,
            waiters_per_tenant_max: 2_000,
            live_tasks_max: 0,
            bulk_rate_max: 500,
            payload_cache_bytes: 64 << 20,
            event_streams_max: 1_000,
            events_max: 100_000,
            events_kept_for: Millis(3_600_000),
        },
        leader_lease: Millis(400),
        backup: BackupSettings { directory: None, interval: Millis(60_000), keep: 1 },
        follower_redirects: false,
        drain_timeout: Millis(5_000),
        metrics_enabled: true,
        metrics_need_token: false,
        read_only: false,
        files: Files::default(),
        metrics_commands_max: 1_000,
        shown: "dataDir  unset".into(),
        raft: true,
    }
}

/// The same on disk.
pub(crate) fn settings_in(directory: &Path) -> Settings {
    let mut settings = settings();
    settings.node.data = Data::Directory(directory.to_owned());
    settings
}

/// The same with the tokens of these providers.
pub(crate) fn settings_with_tokens(producer: Option<&str>, worker: Option<&str>) -> Settings {
    let tokens = |config: &str| StaticTokens::from_config(config, None).expect("it is a configuration");
    let auth = AuthSettings { producer: producer.map(tokens), worker: worker.map(tokens), ..AuthSettings::default() };
    Settings { auth, ..settings() }
}
