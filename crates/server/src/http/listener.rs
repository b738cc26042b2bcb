//! Accepting connections and spreading them over the edge's threads.
//!
//! Each thread has a runtime of its own; connections are dealt out in turn, so that a few busy ones do not end up on one thread. One listener
//! accepts for all: several listeners on one port would let a second server start on it unnoticed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cluster::LocalSocket;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tokio::sync::watch;

use crate::http::connection::{Connections, serve_connection};
use crate::http::edge::{Edge, Shared};

/// A bound listener.
pub(crate) struct Listener {
    listener: std::net::TcpListener,
    addr: SocketAddr,
}

/// A connection that was accepted.
pub(crate) enum Accepted {
    /// At the port for clients.
    Port(tokio::net::TcpStream),
    /// At the socket in the data directory.
    Socket(tokio::net::UnixStream),
}

/// The same on its way to the thread that serves it.
enum Dealt {
    Port(std::net::TcpStream),
    Socket(std::os::unix::net::UnixStream),
}

impl Dealt {
    fn of(accepted: Accepted) -> std::io::Result<Dealt> {
        match accepted {
            Accepted::Port(stream) => {
                // A connection without these still works.
                let _ = stream.set_nodelay(true);
                stream.into_std().map(Dealt::Port)
            }
            Accepted::Socket(stream) => stream.into_std().map(Dealt::Socket),
        }
    }

    fn accepted(self) -> std::io::Result<Accepted> {
        match self {
            Dealt::Port(stream) => tokio::net::TcpStream::from_std(stream).map(Accepted::Port),
            Dealt::Socket(stream) => tokio::net::UnixStream::from_std(stream).map(Accepted::Socket),
        }
    }
}

/// The edge's threads.
pub(crate) struct Threads {
    /// Closed when the last of them has ended.
    ended: Receiver<()>,
    stop: watch::Sender<bool>,
}

impl Listener {
    /// Binds the address.
    ///
    /// # Errors
    /// As the operating system says.
    pub(crate) fn bind(addr: SocketAddr) -> std::io::Result<Listener> {
        let listener = std::net::TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        Ok(Listener { listener, addr })
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Starts the threads that serve its connections, and those of the socket in the data directory if there is one.
    pub(crate) fn start(self, shared: &Arc<Shared>, local: Option<LocalSocket>) -> std::io::Result<Threads> {
        let open = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = watch::channel(false);
        // Each thread holds a sender and never sends.
        let (running, ended) = channel(1);
        let mut edges = Vec::new();
        for number in 0..shared.settings.http.threads {
            let (sender, receiver) = unbounded_channel();
            edges.push(sender);
            let (shared, open, stopped) = (shared.clone(), open.clone(), stopped.clone());
            let running = running.clone();
            let run = move || {
                on_a_runtime(serve_connections(shared, receiver, open, stopped));
                drop(running);
            };
            std::thread::Builder::new().name(format!("codeq-edge-{number}")).spawn(run)?;
        }
        let most = shared.settings.http.connections_max;
        let accept = move || {
            on_a_runtime(accept(self.listener, local, edges, open, most, stopped));
            drop(running);
        };
        std::thread::Builder::new().name("codeq-accept".into()).spawn(accept)?;
        Ok(Threads { ended, stop })
    }
}

impl Threads {
    /// Accepts no more connections and lets those that are open end after the requests they have begun, for at most `longest`.
    pub(crate) async fn stop(mut self, longest: Duration) {
        self.stop.send_replace(true);
        // Whoever takes longer is left behind.
        let _ = tokio::time::timeout(longest, self.ended.recv()).await;
    }
}

fn on_a_runtime(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    runtime.block_on(work);
}

async fn accept(
    listener: std::net::TcpListener,
    local: Option<LocalSocket>,
    edges: Vec<UnboundedSender<Dealt>>,
    open: Arc<AtomicUsize>,
    most: usize,
    mut stopped: watch::Receiver<bool>,
) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime takes any listener");
    // Without it, commands use the port.
    let at_socket = local.as_ref().and_then(|local| tokio::net::UnixListener::from_std(local.listener().ok()?).ok());
    let by_socket = async || match &at_socket {
        Some(listener) => listener.accept().await.map(|(stream, _)| Accepted::Socket(stream)),
        None => std::future::pending().await,
    };
    let mut next = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted.map(|(stream, _)| Accepted::Port(stream)),
            accepted = by_socket() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        match accepted {
            Ok(accepted) => {
                let Ok(dealt) = Dealt::of(accepted) else { continue };
                open.fetch_add(1, Ordering::Relaxed);
                let _ = edges[next].send(dealt);
                next = (next + 1) % edges.len();
                while open.load(Ordering::Relaxed) >= most {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            Err(error) => {
                // Out of handles, most likely: those that close make room.
                tracing::warn!(event = "http.accept_failed", %error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connections(
    shared: Arc<Shared>,
    mut streams: UnboundedReceiver<Dealt>,
    open: Arc<AtomicUsize>,
    mut stopped: watch::Receiver<bool>,
) {
    let lane = shared.node.lane();
    let edge = Arc::new(Edge::new(shared, lane.id()));
    tokio::spawn(lane.deliver());
    let connections = Arc::new(Connections::new());
    tokio::spawn(connections.clone().watch(edge.clone()));
    loop {
        tokio::select! {
            dealt = streams.recv() => {
                let Some(Ok(accepted)) = dealt.map(Dealt::accepted) else { continue };
                let (edge, connections, open) = (edge.clone(), connections.clone(), open.clone());
                tokio::spawn(async move {
                    serve_connection(accepted, edge, &connections).await;
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
            _ = stopped.wait_for(|stopped| *stopped) => break,
        }
    }
    connections.close_all().await;
}
