//! A whole server: the node beneath and the edge in front of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::forming::Plan;
use cluster::{Data, Handle, Hooks, LocalSocket, Node, NodeError, Reply, StartError};
use hyper::header::HeaderValue;
use queue::QueueMachine;

use crate::auth::Authenticator;
use crate::backups::Backups;
use crate::bulk::Bulk;
use crate::feed::Feed;
use crate::http::{Epochs, Listener, STREAMS_MAX, Shared, Threads, describe, give_back, own_status};
use crate::metrics::Metrics;
use crate::reload::{Reload, Watch};
use crate::settings::Settings;
use tokio::sync::Semaphore;

/// A running server.
pub struct Server {
    node: Node<QueueMachine>,
    shared: Arc<Shared>,
    threads: Option<Threads>,
    backups: Option<Backups>,
    /// Carries operations on many tasks out.
    bulk: Option<Bulk>,
    /// Looks at the files that may change.
    _watch: Watch,
    addr: SocketAddr,
    drain_timeout: Duration,
}

/// Why a server did not start, or has stopped by itself.
#[derive(Debug)]
pub enum Exit {
    /// The address cannot be listened on.
    Bind(SocketAddr, std::io::Error),
    /// The data directory cannot be used.
    Start(StartError),
    /// The node has stopped by itself.
    Node(NodeError),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Bind(addr, cause) if cause.kind() == std::io::ErrorKind::AddrInUse => {
                write!(
                    f,
                    "port {} is in use ({addr}); stop whoever listens there, or choose another one with --http-addr",
                    addr.port()
                )
            }
            Exit::Bind(addr, cause) => write!(f, "cannot listen on {addr}: {cause}"),
            Exit::Start(error) => error.fmt(f),
            Exit::Node(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Exit {}

impl Server {
    /// Takes the port, starts the node and serves. Requests are answered from now on, with 503 until the node has read its data.
    ///
    /// # Errors
    /// The port or the data directory cannot be had.
    pub fn start(mut settings: Settings) -> Result<Server, Exit> {
        let listener = Listener::bind(settings.http.addr).map_err(|cause| Exit::Bind(settings.http.addr, cause))?;
        let addr = listener.addr();
        if let Some(host) = settings.node.url.strip_suffix(":0") {
            settings.node.url = format!("{host}:{}", addr.port());
        }
        let metrics = Arc::new(Metrics::new(settings.metrics_commands_max));
        let (policy, live_tasks_max) = (settings.policy, settings.limits.live_tasks_max);
        let payload_bytes = (settings.limits.payload_cache_bytes / usize::from(settings.node.shards)) as u64;
        let observer = metrics.clone();
        let feed = Arc::new(Feed::new(settings.limits.events_max, settings.limits.events_kept_for));
        let fed = feed.clone();
        let epochs = Arc::new(Epochs::default());
        let known = epochs.clone();
        let hooks = Hooks {
            prepare: Box::new(move |machine: &mut QueueMachine| {
                machine.set_own_policy(policy);
                machine.limit_live_tasks(live_tasks_max);
                machine.limit_payload_memory(payload_bytes);
                known.set(machine);
            }),
            observe: Box::new(move |signals| {
                fed.take(signals);
                observer.observe(signals);
            }),
            undelivered: Box::new(|reply| match reply {
                Reply::Applied { position, outcomes } => give_back(position, &outcomes),
                _ => Vec::new(),
            }),
        };
        let node = Node::start(settings.node.clone(), hooks).map_err(Exit::Start)?;
        let drain_timeout = settings.drain_timeout.to_std();
        let name = HeaderValue::from_str(&node.handle().identity().node).unwrap_or(HeaderValue::from_static("codeq"));
        let shared = Arc::new(Shared {
            auth: Authenticator::new(settings.auth.clone()),
            metrics,
            waiting: Default::default(),
            epochs,
            last_backup: Arc::default(),
            reload: Arc::new(Reload::new(settings.files.clone())),
            node: node.handle().clone(),
            name,
            draining: AtomicBool::new(false),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            event_streams: Arc::new(Semaphore::new(settings.limits.event_streams_max)),
            feed,
            wake_bulk: Arc::default(),
            settings,
        });
        // The node must not keep alive what keeps it alive.
        let described = Arc::downgrade(&shared);
        shared.node.describe_with(move || Box::pin(describe(described.clone())));
        let local = match &shared.settings.node.data {
            Data::Directory(directory) => LocalSocket::bind(directory)
                .inspect_err(|error| {
                    let text = "commands on this machine have to use HTTP: there is no socket in the data directory";
                    tracing::warn!(event = "http.no_socket", %error, "{text}");
                })
                .ok(),
            Data::Memory => None,
        };
        let shown = Arc::downgrade(&shared);
        shared.node.show_status_with(move || own_status(&shown).unwrap_or_default());
        let threads = listener.start(&shared, local).map_err(|cause| Exit::Bind(addr, cause))?;
        let settings = &shared.settings.backup;
        let backups = settings
            .directory
            .is_some()
            .then(|| Backups::start(settings.clone(), node.handle().clone(), shared.last_backup.clone()));
        let backups = backups.transpose().map_err(|cause| Exit::Start(StartError::Thread(cause)))?;
        let bulk = Bulk::start(node.handle().clone(), shared.wake_bulk.clone());
        let bulk = Some(bulk.map_err(|cause| Exit::Start(StartError::Thread(cause)))?);
        let watch = Watch::start(shared.reload.clone(), node.handle().clone())
            .map_err(|cause| Exit::Start(StartError::Thread(cause)))?;
        Ok(Server { node, _watch: watch, shared, backups, bulk, threads: Some(threads), addr, drain_timeout })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Reads files again that may have changed.
    pub fn reload(&self) -> &Arc<Reload> {
        &self.shared.reload
    }

    /// What a node that belongs to no cluster yet waits for, and where it listens meanwhile; nothing: it belongs to one.
    pub fn waits(&self) -> Option<String> {
        let node = self.node.handle();
        let peers = self.shared.settings.node.peers.as_ref().filter(|_| node.cluster().is_none())?;
        let how = match &peers.plan {
            Plan::List(names) => format!("founds one with {} (cluster.initialCluster)", {
                let others: Vec<&str> =
                    names.iter().map(String::as_str).filter(|name| *name != node.identity().node).collect();
                others.join(", ")
            }),
            Plan::Expect(count) => {
                format!("founds one when {count} have met: by --join, or by codeq join ADDRESS… at one of them")
            }
            Plan::Join => format!("is admitted by --join, or by codeq member add {} at a member", peers.advertise),
        };
        let scheme = if self.shared.settings.files.http.is_some() { "https" } else { "http" };
        Some(format!(
            "node {} listens on {scheme}://{}, peers on {}; it belongs to no cluster yet, and {how}",
            node.identity().node,
            self.addr,
            peers.advertise
        ))
    }

    /// The node beneath.
    pub fn node(&self) -> &Handle<QueueMachine> {
        self.node.handle()
    }

    /// Waits until the node stops by itself.
    pub async fn failed(&mut self) -> Exit {
        match self.node.ended().await {
            Ok(()) => Exit::Node(NodeError::Panicked),
            Err(error) => Exit::Node(error),
        }
    }

    /// Stops: whoever waits is told to go elsewhere, requests that have begun are finished, a last checkpoint is written. Needs a runtime of
    /// tokio with timers.
    ///
    /// # Errors
    /// The node failed meanwhile.
    pub async fn stop(mut self) -> Result<(), Exit> {
        self.shared.draining.store(true, Ordering::Relaxed);
        self.backups = None;
        self.bulk = None;
        self.node.handle().drain();
        // The connections' threads need the node until their requests are finished.
        if let Some(threads) = self.threads.take() {
            threads.stop(self.drain_timeout).await;
        }
        self.node.handle().stop();
        self.node.ended().await.map_err(Exit::Node)
    }
}
