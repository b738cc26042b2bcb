//! One connection: HTTP/1.1, or HTTP/2 by prior knowledge, and the clocks that end a connection that gets stuck.
//!
//! What a connection is doing is noted as it goes on, and one task per thread looks every second whether any has been doing it for too long:
//! a timer for each request would cost more than the requests it guards.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper::{Request, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::http::edge::Edge;

/// How often connections are looked at.
const LOOK: Duration = Duration::from_millis(1_000);
/// An answer that a client does not read holds its connection no longer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a connection is doing, since when.
#[derive(Clone, Copy, Debug)]
enum Doing {
    /// Waiting for a request.
    Idle(Instant),
    /// Reading the head of one.
    Head(Instant),
    /// Serving it; its body and its wait have limits of their own.
    Serving,
}

/// One connection, as its watcher sees it.
struct Watched {
    doing: Cell<Doing>,
    /// The client has not read what was written since then.
    stuck: Cell<Option<Instant>>,
    /// End it now.
    close: Notify,
    /// End it after the request it serves.
    finish: Notify,
}

/// The connections of one thread.
#[derive(Default)]
pub(crate) struct Connections {
    open: RefCell<BTreeMap<u64, Rc<Watched>>>,
    next: Cell<u64>,
}

impl Connections {
    /// Ends connections that have been stuck for too long; runs for ever.
    pub(crate) async fn watch(self: Rc<Self>, edge: Rc<Edge>) {
        let http = edge.shared.settings.http;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = Instant::now();
            for connection in self.open.borrow().values() {
                let (since, longest) = match connection.doing.get() {
                    Doing::Idle(since) => (since, http.idle_timeout.to_std()),
                    Doing::Head(since) => (since, http.header_timeout.to_std()),
                    Doing::Serving => (now, WRITE_TIMEOUT),
                };
                let unread = connection.stuck.get().is_some_and(|since| now - since > WRITE_TIMEOUT);
                if unread || now - since > longest {
                    connection.close.notify_one();
                }
            }
        }
    }

    /// Lets every connection end after the request it serves, and waits for that.
    pub(crate) async fn close_all(&self) {
        for connection in self.open.borrow().values() {
            connection.finish.notify_one();
        }
        while !self.open.borrow().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn enter(&self) -> (u64, Rc<Watched>) {
        let watched = Rc::new(Watched {
            doing: Cell::new(Doing::Idle(Instant::now())),
            stuck: Cell::new(None),
            close: Notify::new(),
            finish: Notify::new(),
        });
        let number = self.next.replace(self.next.get() + 1);
        self.open.borrow_mut().insert(number, watched.clone());
        (number, watched)
    }
}

/// The first bytes of a client that speaks HTTP/2 without asking.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// Serves one connection to its end.
pub(crate) async fn serve_connection(stream: TcpStream, edge: Rc<Edge>, connections: &Connections) {
    let Ok(peer) = stream.peer_addr() else { return };
    let (number, watched) = connections.enter();
    let speak = async {
        let mut first = [0; PREFACE.len()];
        // A short first packet is HTTP/1.1: no client splits the preface.
        match stream.peek(&mut first).await {
            Ok(length) if length > 0 && PREFACE.starts_with(&first[..length]) => {
                speak_h2(stream, edge, &watched, peer.ip()).await
            }
            Ok(length) if length > 0 => speak_h1(stream, edge, &watched, peer.ip()).await,
            _ => {}
        }
    };
    tokio::select! {
        () = speak => {}
        () = watched.close.notified() => {}
    }
    connections.open.borrow_mut().remove(&number);
}

async fn speak_h1(stream: TcpStream, edge: Rc<Edge>, watched: &Rc<Watched>, peer: IpAddr) {
    let header_bytes = edge.shared.settings.http.header_bytes_max;
    let io = WatchedIo { io: TokioIo::new(stream), watched: watched.clone() };
    let connection = server::conn::http1::Builder::new()
        .pipeline_flush(true)
        .max_headers(100)
        // The parser must be able to hold what `check_head` refuses with an explanation.
        .max_buf_size(header_bytes + (64 << 10))
        .serve_connection(io, service_fn(|request| answer(request, edge.clone(), watched.clone(), peer)));
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

async fn speak_h2(stream: TcpStream, edge: Rc<Edge>, watched: &Rc<Watched>, peer: IpAddr) {
    // Many requests share the connection, so only its writes are watched.
    watched.doing.set(Doing::Serving);
    let connection = server::conn::http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(128)
        .max_header_list_size(16 << 10)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(10))
        .serve_connection(
            WatchedIo { io: TokioIo::new(stream), watched: watched.clone() },
            service_fn(|request| answer(request, edge.clone(), watched.clone(), peer)),
        );
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

async fn answer(
    request: Request<Incoming>,
    edge: Rc<Edge>,
    watched: Rc<Watched>,
    peer: IpAddr,
) -> Result<crate::http::answer::HttpResponse, std::convert::Infallible> {
    let is_h1 = request.version() < hyper::Version::HTTP_2;
    watched.doing.set(Doing::Serving);
    let response = edge.answer(request, peer).await;
    if is_h1 {
        watched.doing.set(Doing::Idle(Instant::now()));
    }
    Ok(response)
}

/// Runs the tasks of HTTP/2 on the connection's own thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// A socket that notes what happens on it.
struct WatchedIo {
    io: TokioIo<TcpStream>,
    watched: Rc<Watched>,
}

impl Read for WatchedIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if read.is_ready()
            && let Doing::Idle(_) = self.watched.doing.get()
        {
            self.watched.doing.set(Doing::Head(Instant::now()));
        }
        read
    }
}

impl WatchedIo {
    fn note<T>(&self, written: Poll<T>) -> Poll<T> {
        match (&written, self.watched.stuck.get()) {
            (Poll::Pending, None) => self.watched.stuck.set(Some(Instant::now())),
            (Poll::Ready(_), Some(_)) => self.watched.stuck.set(None),
            _ => {}
        }
        written
    }
}

impl Write for WatchedIo {
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
