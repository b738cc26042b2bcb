//! One connection: HTTP/1.1, or HTTP/2 by prior knowledge, and the clocks that end a connection that gets stuck.
//!
//! What a connection is doing is noted as it goes on, and one task per thread looks every second whether any has been doing it for too long:
//! a timer for each request would cost more than the requests it guards.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper::{Request, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use crate::http::edge::Edge;
use crate::http::listener::Accepted;
use crate::http::source::Source;

/// How often connections are looked at.
const LOOK: Duration = Duration::from_millis(1_000);
/// An answer that a client does not read holds its connection no longer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// Waiting for a request.
    Idle,
    /// Reading the head of one.
    Head,
    /// Serving it; its body and its wait have limits of their own.
    Serving,
}

/// One connection, as its watcher sees it. Moments are milliseconds since the thread began, as its watcher last read the clock: they are
/// compared with limits of seconds.
struct Watched {
    /// What it is doing, in the lowest two bits, and since when.
    doing: AtomicU64,
    /// Requests being served; HTTP/2 serves several at a time.
    serving: AtomicUsize,
    /// The client has not read what was written since then; 0: it has.
    stuck: AtomicU64,
    clock: Arc<AtomicU64>,
    /// End it now.
    close: Notify,
    /// End it after the request it serves.
    finish: Notify,
}

impl Watched {
    fn set(&self, doing: Doing) {
        let now = self.clock.load(Ordering::Relaxed);
        self.doing.store(now << 2 | doing as u64, Ordering::Relaxed);
    }

    fn get(&self) -> (Doing, u64) {
        let bits = self.doing.load(Ordering::Relaxed);
        let doing = match bits & 3 {
            0 => Doing::Idle,
            1 => Doing::Head,
            _ => Doing::Serving,
        };
        (doing, bits >> 2)
    }
}

/// The connections of one thread.
pub(crate) struct Connections {
    open: Mutex<BTreeMap<u64, Arc<Watched>>>,
    next: AtomicU64,
    began: Instant,
    clock: Arc<AtomicU64>,
}

const FREE: &str = "nothing panics while it holds this lock";

impl Connections {
    pub(crate) fn new() -> Connections {
        Connections {
            open: Mutex::default(),
            next: AtomicU64::new(0),
            began: Instant::now(),
            // Not 0, which says that a client reads.
            clock: Arc::new(AtomicU64::new(1)),
        }
    }

    /// Ends connections that have been stuck for too long; runs for ever.
    pub(crate) async fn watch(self: Arc<Self>, edge: Arc<Edge>) {
        let http = edge.shared.settings.http;
        // Short limits are looked at more often.
        let look = LOOK.min(http.header_timeout.to_std() / 4).max(Duration::from_millis(10));
        loop {
            tokio::time::sleep(look).await;
            let now = 1 + self.began.elapsed().as_millis() as u64;
            self.clock.store(now, Ordering::Relaxed);
            for connection in self.open.lock().expect(FREE).values() {
                let (doing, since) = connection.get();
                let longest = match doing {
                    Doing::Idle => http.idle_timeout.0,
                    Doing::Head => http.header_timeout.0,
                    Doing::Serving => u64::MAX,
                };
                let stuck = connection.stuck.load(Ordering::Relaxed);
                let unread = stuck != 0 && now.saturating_sub(stuck) > WRITE_TIMEOUT.as_millis() as u64;
                if unread || now.saturating_sub(since) > longest {
                    connection.close.notify_one();
                }
            }
        }
    }

    /// Lets every connection end after the request it serves, and waits for that.
    pub(crate) async fn close_all(&self) {
        loop {
            {
                let open = self.open.lock().expect(FREE);
                if open.is_empty() {
                    return;
                }
                // Again and again: one that was accepted a moment ago may only now be among them.
                open.values().for_each(|connection| connection.finish.notify_one());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn enter(&self) -> (u64, Arc<Watched>) {
        let watched = Arc::new(Watched {
            doing: AtomicU64::new(0),
            serving: AtomicUsize::new(0),
            stuck: AtomicU64::new(0),
            clock: self.clock.clone(),
            close: Notify::new(),
            finish: Notify::new(),
        });
        watched.set(Doing::Idle);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.lock().expect(FREE).insert(number, watched.clone());
        (number, watched)
    }
}

/// The first bytes of a client that speaks HTTP/2 without asking.
const PREFACE: [u8; 14] = *b"PRI * HTTP/2.0";

/// Serves one connection to its end.
pub(crate) async fn serve_connection(accepted: Accepted, edge: Arc<Edge>, connections: &Connections) {
    let (number, watched) = connections.enter();
    let speak = async {
        let stream = match accepted {
            Accepted::Port(stream) => stream,
            // Nobody but this machine hears it, and only our own commands speak there.
            Accepted::Socket(stream) => return speak_h1(stream, edge.clone(), &watched, Source::Socket).await,
        };
        let Ok(peer) = stream.peer_addr() else { return };
        let source = Source::Address(peer.ip());
        if let Some(files) = &edge.shared.settings.files.http {
            // The handshake has as much time as the head of a request.
            watched.set(Doing::Head);
            // Whoever does not manage it is told by it.
            let Ok(stream) = files.tls.accept(stream).await else { return };
            watched.set(Doing::Idle);
            let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            return match is_h2 {
                true => speak_h2(stream, edge.clone(), &watched, source).await,
                false => speak_h1(stream, edge.clone(), &watched, source).await,
            };
        }
        let mut first = [0; PREFACE.len()];
        // A short first packet is HTTP/1.1, also if it is the `P` of a `POST`: no client splits the preface.
        let peeked = tokio::select! {
            peeked = stream.peek(&mut first) => peeked,
            // It has asked for nothing.
            () = watched.finish.notified() => return,
        };
        match peeked {
            Ok(_) if first == PREFACE => speak_h2(stream, edge.clone(), &watched, source).await,
            Ok(length) if length > 0 => speak_h1(stream, edge.clone(), &watched, source).await,
            _ => {}
        }
    };
    tokio::select! {
        () = speak => {}
        () = watched.close.notified() => {}
    }
    connections.open.lock().expect(FREE).remove(&number);
}

async fn speak_h1<T: Socket>(stream: T, edge: Arc<Edge>, watched: &Arc<Watched>, source: Source) {
    let header_bytes = edge.shared.settings.http.header_bytes_max;
    let io = WatchedIo { io: TokioIo::new(stream), watched: watched.clone(), bytes_begin_heads: true };
    let connection = server::conn::http1::Builder::new()
        .max_headers(100)
        // The parser must be able to hold what `check_head` refuses with an explanation.
        .max_buf_size(header_bytes + (64 << 10))
        .serve_connection(io, service_fn(|request| answer(request, edge.clone(), watched.clone(), source)));
    let mut connection = std::pin::pin!(connection);
    let finished = tokio::select! {
        // The reasons are the client's: it went away, or sent no HTTP, and was told so.
        _ = connection.as_mut() => true,
        () = watched.finish.notified() => false,
    };
    if !finished {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

async fn speak_h2<T: Socket>(stream: T, edge: Arc<Edge>, watched: &Arc<Watched>, source: Source) {
    // Pings keep coming while nothing is asked for, so bytes alone do not make it busy.
    let io = WatchedIo { io: TokioIo::new(stream), watched: watched.clone(), bytes_begin_heads: false };
    let connection = server::conn::http2::Builder::new(SameThread)
        .timer(TokioTimer::new())
        .max_concurrent_streams(128)
        .max_header_list_size(16 << 10)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(10))
        .serve_connection(io, service_fn(|request| answer(request, edge.clone(), watched.clone(), source)));
    let mut connection = std::pin::pin!(connection);
    let finished = tokio::select! {
        _ = connection.as_mut() => true,
        () = watched.finish.notified() => false,
    };
    if !finished {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

type Answering =
    Pin<Box<dyn Future<Output = Result<crate::http::answer::HttpResponse, std::convert::Infallible>> + Send>>;

/// Answers one request. The future is boxed: hyper moves it several times, and it is large.
fn answer(request: Request<Incoming>, edge: Arc<Edge>, watched: Arc<Watched>, source: Source) -> Answering {
    Box::pin(async move {
        let serving = Serving::begin(watched);
        let mut response = edge.answer(request, source).await;
        response.body_mut().hold(serving);
        Ok(response)
    })
}

/// A request that is being served, until this is dropped: its client may have reset it.
struct Serving(Arc<Watched>);

impl Serving {
    fn begin(watched: Arc<Watched>) -> Serving {
        watched.serving.fetch_add(1, Ordering::Relaxed);
        watched.set(Doing::Serving);
        Serving(watched)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if self.0.serving.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.set(Doing::Idle);
        }
    }
}

/// Runs the tasks of HTTP/2 on the connection's own thread.
#[derive(Clone, Copy)]
struct SameThread;

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for SameThread {
    fn execute(&self, future: F) {
        tokio::spawn(future);
    }
}

/// What a connection is spoken on: a socket, or an encrypted one.
trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Socket for T {}

/// A socket that notes what happens on it.
struct WatchedIo<T> {
    io: TokioIo<T>,
    watched: Arc<Watched>,
    /// Bytes that come while nothing is served are the head of a request.
    bytes_begin_heads: bool,
}

impl<T: Socket> Read for WatchedIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if self.bytes_begin_heads && read.is_ready() && self.watched.get().0 == Doing::Idle {
            self.watched.set(Doing::Head);
        }
        read
    }
}

impl<T> WatchedIo<T> {
    fn note<R>(&self, written: Poll<R>) -> Poll<R> {
        match (&written, self.watched.stuck.load(Ordering::Relaxed)) {
            (Poll::Pending, 0) => {
                self.watched.stuck.store(self.watched.clock.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            (Poll::Ready(_), since) if since != 0 => self.watched.stuck.store(0, Ordering::Relaxed),
            _ => {}
        }
        written
    }
}

impl<T: Socket> Write for WatchedIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.note(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, parts);
        self.note(written)
    }
}
