//! The least that any HTTP server does: hyper with canned replies to the three requests of a cycle.
//!
//! It reads requests and writes replies of the same size as codeq's, on the same number of threads with the same runtime and allocator, and does
//! nothing else: no JSON, no log, no state. What the same load generator reaches here is the ceiling for any server on hyper on that machine.
//!
//! `cargo bench -p cli --bench bare -- 127.0.0.1:9999` runs it until it is killed. It prints where it listens; port 0 is a free one.

#![expect(clippy::print_stdout, reason = "a program of its own")]

use std::convert::Infallible;
use std::net::TcpStream;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, server};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::LocalSet;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CREATED: &str = r#"{"id":"7b06e441-4628-8000-8000-000000030000","command":"bench-0","payload":{"n":"xxxxxxxx"},"status":"PENDING","lastKnownLocation":"PENDING_LIST","maxAttempts":5,"tenantId":"default","createdAt":"2026-11-21T03:59:18.548Z","updatedAt":"2026-11-21T03:59:18.548Z","state":"READY"}"#;
const CLAIMED: &str = r#"{"id":"7b06e441-4628-8000-8000-000000030000","command":"bench-0","payload":{"n":"xxxxxxxx"},"status":"IN_PROGRESS","lastKnownLocation":"INPROG_SET","workerId":"default","leaseUntil":"2026-11-21T04:04:18.557Z","attempts":1,"maxAttempts":5,"tenantId":"default","createdAt":"2026-11-21T03:59:18.548Z","updatedAt":"2026-11-21T03:59:18.557Z","state":"LEASED","leaseToken":"1-4-56da9e23d41da73dd1f17d0df5f2b5ca","leaseMs":300000}"#;
const COMPLETED: &str = r#"{"taskId":"7b06e441-4628-8000-8000-000000030000","status":"COMPLETED","result":{},"completedAt":"2026-11-21T03:59:18.557Z","attempt":1}"#;

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    // The body must be read, or the connection could not be used again.
    let _ = body.collect().await;
    let (status, reply) = match head.uri.path() {
        "/v1/codeq/tasks" => (202, CREATED),
        "/v1/codeq/tasks/claim" => (200, CLAIMED),
        _ => (200, COMPLETED),
    };
    let mut response = Response::new(Full::new(Bytes::from_static(reply.as_bytes())));
    *response.status_mut() = hyper::StatusCode::from_u16(status).expect("a status");
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    Ok(response)
}

fn main() {
    let addr = std::env::args().find(|argument| argument.contains(':')).unwrap_or_else(|| "127.0.0.1:9999".into());
    let listener = std::net::TcpListener::bind(&addr).expect("the address can be listened on");
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let edges: Vec<_> = (0..threads)
        .map(|_| {
            let (sender, mut receiver) = unbounded_channel::<TcpStream>();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                LocalSet::new().block_on(&runtime, async {
                    while let Some(stream) = receiver.recv().await {
                        stream.set_nonblocking(true).expect("a socket");
                        let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
                        tokio::task::spawn_local(async move {
                            let io = TokioIo::new(stream);
                            let connection = server::conn::http1::Builder::new()
                                .pipeline_flush(true)
                                .serve_connection(io, service_fn(answer));
                            // It ends when the client goes away.
                            let _ = connection.await;
                        });
                    }
                });
            });
            sender
        })
        .collect();
    println!("listening on http://{}", listener.local_addr().expect("it listens"));
    for (number, stream) in listener.incoming().enumerate() {
        let Ok(stream) = stream else { continue };
        stream.set_nodelay(true).expect("a socket");
        edges[number % threads].send(stream).expect("the thread runs");
    }
}
