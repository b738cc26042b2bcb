//! A planned stop: whoever waits is told to go elsewhere, what has begun is finished, nothing new begins.

use serde_json::json;

use crate::server::{Running, settings, settings_in};

/// Waiting requests end with `draining` at once, a request whose body is still coming is served, idle connections are closed, new ones
/// refused; and what was acknowledged meanwhile is there afterwards.
#[tokio::test]
async fn a_stop_loses_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    let server = Running::start(settings_in(&path)).await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    client.post("/tasks/claim", json!({"leaseSeconds": 600})).await.expect(200);
    let mut waiting = Vec::new();
    let claim = |path: &str| client.request("POST", path, Some(br#"{"waitSeconds":30,"count":1}"#));
    for request in [
        claim("/v1/codeq/tasks/claim"),
        claim("/v1/codeq/tasks/claim/batch"),
        client.request("GET", &format!("/v1/codeq/tasks/{id}/result?waitSeconds=60"), None),
    ] {
        let mut connection = client.connect().await;
        connection.write(&request).await;
        waiting.push(connection);
        client.until_waiting(waiting.len()).await;
    }
    // The server asks for the body of the one request, and has answered on the other connection, before it is stopped.
    let body = br#"{"command":"late","payload":1}"#;
    let begun = client.header("Expect", "100-continue").request("POST", "/v1/codeq/tasks", Some(body));
    let mut half = client.connect().await;
    half.write(&begun[..begun.len() - body.len()]).await;
    half.asked_to_continue().await;
    let mut idle = client.connect().await;
    idle.write(&client.request("GET", "/readyz", None)).await;
    assert_eq!(idle.answer().await.text(), "ok");

    let stopping = tokio::spawn(server.stopped());
    for mut connection in waiting {
        let answered = connection.answer().await;
        let problem = answered.problem(503, "draining");
        assert_eq!((answered.header("retry-after"), &problem["retryAfterMs"]), (Some("0"), &json!(0)));
        connection.closed().await;
    }
    idle.closed().await;
    client.until_refused().await;
    half.write(body).await;
    let created = half.answer().await.expect(202);
    half.closed().await;
    stopping.await.expect("the stop runs").expect("it stops");

    let server = Running::start(settings_in(&path)).await;
    assert_eq!(server.client().task(created["id"].as_str().expect("an id")).await["state"], "READY");
    assert_eq!(server.client().task(&id).await["state"], "LEASED");
    server.stop().await;
}

/// A client that never finishes its request does not keep a server from stopping.
#[tokio::test]
async fn a_stop_takes_no_longer_than_it_may() {
    let mut quick = settings();
    quick.drain_timeout = base::Millis(100);
    let server = Running::start(quick).await;
    let client = server.client();
    let mut stuck = client.connect().await;
    stuck
        .write(
            b"POST /v1/codeq/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n",
        )
        .await;
    stuck.asked_to_continue().await;
    let before = std::time::Instant::now();
    server.stop().await;
    assert!(before.elapsed() < std::time::Duration::from_secs(10));
}
