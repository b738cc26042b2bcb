//! Answers that go on: what happens, as it happens, until the client goes or the server stops.

use serde_json::Value;

use crate::client::Connection;
use crate::server::{Running, settings};

async fn following(running: &Running, path: &str, headers: &[(&str, &str)]) -> Connection {
    let client = headers.iter().fold(running.client(), |client, (name, value)| client.header(name, value));
    let mut connection = client.connect().await;
    connection.write(&client.request("GET", path, None)).await;
    connection
}

const EVENTS: (&str, &str) = ("Accept", "text/event-stream");

/// Goal: events come as server-sent events and as lines, the past ones first; whoever comes back with the last id goes on behind it; and a
/// stop ends all streams as an answer ends, not as a connection breaks.
#[tokio::test]
async fn events_are_followed_until_the_server_stops() {
    let running = Running::open().await;
    let mut events = following(&running, "/cluster/events", &[EVENTS]).await;
    let told = events.until("event: raft.leader.ready\n").await;
    assert!(told.contains("content-type: text/event-stream"), "{told}");
    let id = told.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().expect("an id").to_owned();
    let mut again = following(&running, "/cluster/events", &[EVENTS, ("Last-Event-ID", &id)]).await;
    let mut lines = following(&running, "/cluster/events?follow=true&type=raft.leader.ready", &[]).await;
    let line = lines.until("\"firstIndex\"").await;
    assert!(line.contains("application/x-ndjson") && !line.contains("raft.started"), "{line}");
    running.client().send("POST", "/cluster/snapshot/trigger", Some(b"")).await;
    let rest = again.until("event: admin.action\n").await;
    assert!(!rest.contains("raft.started"), "what was seen is not told again: {rest}");
    events.until("event: admin.action\n").await;
    let stopped = tokio::spawn(running.stop());
    // The last piece of an answer without a length.
    for stream in [&mut events, &mut again, &mut lines] {
        stream.until("\r\n0\r\n\r\n").await;
    }
    stopped.await.expect("it stops");
}

/// Goal: elections and timelines are streams as well, a sole voter's election included; what makes no sense is refused at once.
#[tokio::test]
async fn elections_and_timelines_are_followed() {
    let running = Running::open().await;
    let mut elections = following(&running, "/cluster/elections", &[EVENTS]).await;
    let told = elections.until("\"readyMs\"").await;
    assert!(told.contains("event: election\n") && told.contains("\"cause\":\"bootstrap\""), "{told}");
    let mut timeline = following(&running, "/cluster/timeline?last=1&follow=true", &[]).await;
    let told = timeline.until("raft.leader.ready").await;
    assert!(told.contains("\"missing\":[]"), "{told}");
    for path in ["/cluster/events?follow=true&last=x", "/cluster/monitor?level=loud"] {
        assert_eq!(running.client().get(path).await.status, 400, "{path}");
    }
    let refused = running.client().header("Accept", "text/event-stream").header("Last-Event-ID", "x");
    assert_eq!(refused.get("/cluster/events").await.status, 400);
    running.stop().await;
}

/// Goal: streams have a limit, which is refused like any other, and a client that goes makes room.
#[tokio::test]
async fn streams_are_limited() {
    let running = Running::start(settings()).await;
    let mut streams = Vec::new();
    for _ in 0..32 {
        let mut stream = following(&running, "/cluster/monitor", &[]).await;
        stream.until("\r\n\r\n").await;
        streams.push(stream);
    }
    let refused = running.client().get("/cluster/monitor").await;
    assert_eq!((refused.status, refused.expect(503)["code"].clone()), (503, Value::from("overloaded")));
    drop(streams);
    let freed = async {
        loop {
            let mut stream = following(&running, "/cluster/monitor", &[]).await;
            if stream.until("\r\n\r\n").await.starts_with("HTTP/1.1 200") {
                return;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), freed).await.expect("there is room again");
    running.stop().await;
}
