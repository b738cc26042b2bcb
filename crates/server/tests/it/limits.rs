//! What is too much at one time is refused definitely: nothing of it has happened.

use serde_json::json;
use tokio::task::JoinSet;

use crate::client::Connection;
use crate::server::{Running, settings, settings_in};

/// When more requests come than the loop takes, some are refused at once; what was refused has had no effect, and the rest has.
#[tokio::test]
async fn a_full_inbox_refuses_definitely() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut tight = settings_in(&directory.path().join("data"));
    tight.node.inbox_depth = 1;
    let server = Running::start(tight).await;
    let client = server.client();
    let create = client.request("POST", "/v1/codeq/tasks", Some(br#"{"command":"mail","payload":1}"#));
    let mut connections: Vec<Connection> = Vec::new();
    for _ in 0..64 {
        connections.push(client.connect().await);
    }
    let (mut created, mut refused) = (0, 0);
    // How many are refused depends on how the threads run; that all of 64 find room again and again does not happen.
    while refused == 0 {
        assert!(created < 100_000, "an inbox for one request must become full");
        let mut answers = JoinSet::new();
        for mut connection in connections.drain(..) {
            let create = create.clone();
            answers.spawn(async move {
                connection.write(&create).await;
                (connection.answer().await, connection)
            });
        }
        while let Some(answered) = answers.join_next().await {
            let (answered, connection) = answered.expect("the client runs");
            connections.push(connection);
            if answered.status == 202 {
                created += 1;
            } else {
                let problem = answered.problem(503, "overloaded");
                assert_eq!(problem["definite"], true);
                refused += 1;
            }
        }
    }
    // A read may find no room either, so this one asks until it does.
    let ready = loop {
        let read = client.get("/v1/codeq/admin/queues/mail").await;
        if read.status == 200 {
            break read.expect(200)["ready"].clone();
        }
    };
    assert_eq!(ready, created, "every creation was answered by what became of it");
    assert_eq!(client.metric("codeq_requests_refused_total").await as u64 > 0, refused > 0);
    assert_eq!(client.metric("codeq_operations_total").await as u64, created, "what was refused is not counted");
    server.stop().await;
}

/// Waiting requests are limited for the node and for each tenant; what does not wait is not.
#[tokio::test]
async fn waiting_requests_are_limited() {
    for (all, tenant, status, code) in [(100, 3, 429, "too_many_waiters"), (3, 100, 503, "overloaded")] {
        let mut few = settings();
        few.limits.waiters_max = all;
        few.limits.waiters_per_tenant_max = tenant;
        let server = Running::start(few).await;
        let client = server.client();
        let id = client.create(json!({"command": "mail", "payload": 1})).await;
        let result = format!("/v1/codeq/tasks/{id}/result?waitSeconds=30");
        let mut waiting = Vec::new();
        for place in 0..3 {
            let mut connection = client.connect().await;
            let request = match place {
                0 => client.request("GET", &result, None),
                _ => {
                    client.request("POST", "/v1/codeq/tasks/claim", Some(br#"{"waitSeconds":30,"commands":["none"]}"#))
                }
            };
            connection.write(&request).await;
            waiting.push(connection);
            client.until_waiting(place + 1).await;
        }
        let wait = json!({"waitSeconds": 30, "commands": ["none"], "count": 1});
        for path in ["/tasks/claim", "/tasks/claim/batch"] {
            client.post(path, wait.clone()).await.problem(status, code);
        }
        client.get(&result).await.problem(status, code);
        assert_eq!(client.post("/tasks/claim", json!({"commands": ["none"]})).await.status, 204);
        client.get(&format!("/v1/codeq/tasks/{id}/result")).await.problem(404, "result_not_found");
        // A claim that finds something need not wait.
        let wait = json!({"waitSeconds": 30, "commands": ["mail"]});
        client.post("/tasks/claim", wait.clone()).await.expect(200);
        // Whoever goes makes room.
        waiting.pop();
        client.until_waiting(2).await;
        assert_eq!(client.post("/tasks/claim", json!({"waitSeconds": 0.01})).await.status, 204);
        server.stop().await;
    }
}

/// Live tasks are limited; the end of one makes room for another, and whatever is not a creation goes on.
#[tokio::test]
async fn live_tasks_are_limited() {
    let mut few = settings();
    few.limits.live_tasks_max = 2;
    let server = Running::start(few).await;
    let client = server.client();
    let task = json!({"command": "mail", "payload": 1});
    let id = client.create(task.clone()).await;
    client.create(json!({"command": "mail", "payload": 1, "delaySeconds": 60})).await;
    assert_eq!(client.post("/tasks", task.clone()).await.problem(507, "no_space")["definite"], true);
    let batch = client.post("/tasks/batch", json!({"tasks": [task, task]})).await.expect(200);
    for item in batch["results"].as_array().expect("a list") {
        assert_eq!(
            (&item["code"], &item["status"], &item["definite"]),
            (&json!("no_space"), &json!(507), &json!(true))
        );
    }
    client.post("/tasks/claim", json!({})).await.expect(200);
    client.post("/tasks", task.clone()).await.problem(507, "no_space");
    client.post(&format!("/tasks/{id}/result"), json!({"status": "COMPLETED", "result": {}})).await.expect(200);
    client.create(task.clone()).await;
    client.post("/tasks", task).await.problem(507, "no_space");
    assert_eq!(client.depths("mail").await, [1, 1, 0, 0]);
    server.stop().await;
}

/// With as many connections as there may be, others wait until one is closed.
#[tokio::test]
async fn connections_are_limited() {
    let mut few = settings();
    few.http.connections_max = 2;
    let server = Running::start(few).await;
    let client = server.client();
    let request = client.request("GET", "/healthz", None);
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut connection = client.connect().await;
        connection.write(&request).await;
        assert_eq!(connection.answer().await.status, 200);
        open.push(connection);
    }
    let mut late = client.connect().await;
    late.write(&request).await;
    // While the others are served, this one is not.
    for connection in &mut open {
        connection.write(&request).await;
        assert_eq!(connection.answer().await.status, 200);
    }
    assert!(late.is_silent());
    open.pop();
    assert_eq!(late.answer().await.status, 200);
    server.stop().await;
}
