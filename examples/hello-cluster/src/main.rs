//! A key-value store, and a counter, on as many machines as are given: all that an application adds to the crate `cluster`.
//!
//! `store` is the state machine. Here are its face, which is HTTP, and the flags. Who may reach it is not checked: keep it on a network where
//! everybody is trusted.

mod store;

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use cluster::{Data, Freshness, Handle, Node, ShardId, Simple, Unavailable};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, header, service::service_fn};
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown};
use tokio::signal::unix::{SignalKind, signal};

use crate::store::{Operation, Outcome, Question, Store};

/// A replicated key-value store.
#[derive(Parser)]
struct Flags {
    /// The node's name; its data directory remembers it.
    #[arg(long)]
    name: Option<String>,
    /// Where it serves people; port 0 is a free one.
    #[arg(long, default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// Where it listens for the other nodes; without it, and without --peers, it is alone.
    #[arg(long)]
    peer: Option<SocketAddr>,
    /// The nodes that found the cluster, this one among them, the same list on each: a=host:port,b=host:port,…
    #[arg(long, value_delimiter = ',', value_parser = name_and_address)]
    peers: Vec<(String, String)>,
    /// Where it keeps its data.
    #[arg(long)]
    data: PathBuf,
    /// Nodes of a cluster that it asks to be admitted to: host:port,…
    #[arg(long, value_delimiter = ',')]
    join: Vec<String>,
    /// Which cluster is meant; nodes with different labels never meet.
    #[arg(long, default_value = "hello")]
    label: String,
}

fn name_and_address(text: &str) -> Result<(String, String), String> {
    let parts = text.split_once('=').map(|(name, address)| (name.into(), address.into()));
    parts.ok_or_else(|| "it is name=host:port".into())
}

/// Everything is in one group.
const SHARD: ShardId = ShardId(0);

/// Bytes of a value.
const VALUE_BYTES_MAX: usize = 64 << 10;

/// Requests that have begun are finished within this time when the node stops.
const DRAIN_MAX: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let flags = Flags::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let listener = tokio::net::TcpListener::bind(flags.http).await?;
    let url = format!("http://{}", listener.local_addr()?);
    let mut builder = Node::<Simple<Store>>::builder(Data::Directory(flags.data)).url(&url).label(&flags.label);
    builder = builder.peers(flags.peers).join(flags.join).admit_anybody();
    if let Some(name) = &flags.name {
        builder = builder.name(name);
    }
    if let Some(peer) = flags.peer {
        builder = builder.listen(peer);
    }
    let mut node = builder.start()?;
    tracing::info!("serving {url}");
    let (mut terminated, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let connections = GracefulShutdown::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // Whoever connected has gone again.
                let Ok((stream, _)) = accepted else { continue };
                let handle = node.handle().clone();
                let service = service_fn(move |request| answer(handle.clone(), request));
                let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connections.watch(serving));
            }
            ended = node.ended() => return Ok(ended?),
            _ = terminated.recv() => break,
            _ = interrupted.recv() => break,
        }
    }
    node.shut_down().await?;
    // Who has not taken its answer by then does not want it.
    let _ = tokio::time::timeout(DRAIN_MAX, connections.shutdown()).await;
    Ok(())
}

type Answer = Response<Full<Bytes>>;

async fn answer(node: Handle<Simple<Store>>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
    let question = match path.strip_prefix("/kv/") {
        Some(key) => Some(Question::Value(key.into())),
        None => (path == "/counter").then_some(Question::Counter),
    };
    let stale = query.split('&').any(|pair| pair == "consistency=stale");
    let freshness = if stale { Freshness::STALE } else { Freshness::Linearizable };
    Ok(match (&head.method, question) {
        (&Method::GET, Some(question)) => match node.read(SHARD, question, freshness).await {
            Ok((_, Some(value))) => text(200, value),
            Ok((_, None)) => text(404, "there is no such key"),
            Err(why) => unavailable(why),
        },
        (&Method::PUT, Some(Question::Value(key))) => {
            let body = Limited::new(body, VALUE_BYTES_MAX).collect().await.map(|body| body.to_bytes().to_vec());
            match body.ok().and_then(|body| String::from_utf8(body).ok()) {
                Some(value) => propose(&node, &Operation::Put { key, value }).await,
                None => text(400, format!("a value is UTF-8 of at most {VALUE_BYTES_MAX} bytes")),
            }
        }
        (&Method::POST, Some(Question::Counter)) => propose(&node, &Operation::Count).await,
        (&Method::GET | &Method::HEAD, None) => {
            let accept = head.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
            match cluster::http::serve(&node, path, query, accept) {
                Some(made) => respond(made.status, made.content_type, made.body),
                None => text(404, "there is no such page"),
            }
        }
        _ => text(405, "GET and PUT /kv/{key}, GET and POST /counter, GET /cluster/…"),
    })
}

async fn propose(node: &Handle<Simple<Store>>, operation: &Operation) -> Answer {
    let operation = serde_json::to_vec(operation).expect("texts are JSON");
    match node.propose(SHARD, &operation).await.map(|(_, outcome)| serde_json::from_slice::<Outcome>(&outcome)) {
        Ok(Ok(Ok(value))) => text(200, value),
        Ok(Ok(Err(refused))) => text(507, refused),
        // The leader is of another build.
        Ok(Err(_)) => unavailable(Unavailable::Unknown),
        Err(why) => unavailable(why),
    }
}

/// 503: nothing has happened, it may be repeated. 504: nobody knows.
fn unavailable(why: Unavailable) -> Answer {
    text(if why.is_definite() { 503 } else { 504 }, why.to_string())
}

fn text(status: u16, text: impl Into<String>) -> Answer {
    respond(status, "text/plain; charset=utf-8", text.into().into_bytes())
}

fn respond(status: u16, content_type: &'static str, body: Vec<u8>) -> Answer {
    let builder = Response::builder().status(status).header(header::CONTENT_TYPE, content_type);
    builder.body(Full::new(body.into())).expect("status and header are valid")
}
