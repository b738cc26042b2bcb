//! HTTP/2 without asking: the same routes, many requests on one connection, and an end to connections that do nothing.

use base::Millis;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::server::{Running, settings};

async fn connect(server: &Running) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(server.addr()).await.expect("the server listens");
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = handshake.expect("the server speaks HTTP/2");
    tokio::spawn(connection);
    sender
}

/// Posts JSON to a route under `/v1/codeq`; the status, and the body if there is one.
async fn post(mut sender: SendRequest<Full<Bytes>>, path: &str, body: Value) -> (u16, Option<Value>) {
    let request = hyper::Request::post(format!("http://localhost/v1/codeq{path}"));
    let request = request.body(Full::new(Bytes::from(body.to_string()))).expect("a request");
    let answered = sender.send_request(request).await.expect("the server answers");
    assert!(answered.headers().contains_key("x-request-id"));
    let status = answered.status().as_u16();
    let body = answered.into_body().collect().await.expect("a body").to_bytes();
    (status, serde_json::from_slice(&body).ok())
}

/// Requests on one connection do not wait for each other, and waiting ones are no idle ones.
#[tokio::test]
async fn requests_share_a_connection() {
    let mut short = settings();
    short.http.header_timeout = Millis(100);
    short.http.idle_timeout = Millis(200);
    let server = Running::start(short).await;
    let sender = connect(&server).await;
    let wait = json!({"waitSeconds": 1, "commands": ["none"]});
    let waiting = tokio::spawn(post(sender.clone(), "/tasks/claim", wait));
    server.client().until_waiting(1).await;
    for number in 0..20 {
        let (status, task) = post(sender.clone(), "/tasks", json!({"command": "mail", "payload": number})).await;
        assert_eq!((status, &task.expect("a task")["payload"]), (202, &json!(number)));
    }
    let (status, problem) = post(sender.clone(), "/tasks", json!({"command": "mail"})).await;
    assert_eq!((status, &problem.expect("a problem")["code"]), (400, &json!("invalid_body")));
    assert_eq!(waiting.await.expect("the client runs"), (204, None), "it outlives the idle timeout");
    // Now nothing is asked for any more.
    let mut sender = sender;
    while sender.ready().await.is_ok() {
        tokio::task::yield_now().await;
    }
    server.stop().await;
}

/// A client that begins to speak HTTP/2 and then says nothing is not kept.
#[tokio::test]
async fn a_connection_without_requests_is_closed() {
    let mut short = settings();
    short.http.idle_timeout = Millis(200);
    short.http.header_timeout = Millis(200);
    let server = Running::start(short).await;
    for begun in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n"] {
        let mut connection = server.client().connect().await;
        connection.write(begun).await;
        connection.ended().await;
    }
    server.stop().await;
}

/// Those who wait are told to go elsewhere when the server stops.
#[tokio::test]
async fn a_stop_ends_waiting_requests() {
    let server = Running::open().await;
    let sender = connect(&server).await;
    let waiting = tokio::spawn(post(sender.clone(), "/tasks/claim", json!({"waitSeconds": 30})));
    server.client().until_waiting(1).await;
    server.stop().await;
    let (status, problem) = waiting.await.expect("the client runs");
    assert_eq!((status, &problem.expect("a problem")["code"]), (503, &json!("draining")));
}
