//! What a server has acknowledged is there after it has stopped and started again.

use std::path::Path;

use serde_json::{Value, json};
use server::{Exit, Server};

use crate::client::{Client, text};
use crate::server::{Running, settings_in};

/// One of everything, made on the first start and looked at on the others.
struct Everything {
    ready: String,
    keyed: String,
    delayed: String,
    leased: Value,
    completed: String,
    failed: String,
    dead: String,
    cancelled: String,
}

impl Everything {
    async fn make(client: &Client) -> Everything {
        let create = async |command: &str, more: Value| {
            let mut body = json!({"command": command, "payload": {"of": command}});
            body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            client.create(body).await
        };
        let claim = async |command: &str| {
            client.post("/tasks/claim", json!({"commands": [command], "leaseSeconds": 600})).await.expect(200)
        };
        let ready = create("ready", json!({"priority": 7, "webhook": "https://example.com/"})).await;
        let keyed = create("keyed", json!({"idempotencyKey": "k"})).await;
        let delayed = create("delayed", json!({"delaySeconds": 600.5})).await;
        create("leased", json!({"maxAttempts": 9})).await;
        let leased = claim("leased").await;
        let completed = create("completed", json!({})).await;
        claim("completed").await;
        let done = json!({"status": "COMPLETED", "result": {"big": 12_345_678_901_234_567_890_u64}});
        client.post(&format!("/tasks/{completed}/result"), done).await.expect(200);
        let failed = create("failed", json!({})).await;
        claim("failed").await;
        client.post(&format!("/tasks/{failed}/result"), json!({"status": "FAILED", "error": "no"})).await.expect(200);
        let dead = create("dead", json!({"maxAttempts": 1})).await;
        claim("dead").await;
        client.post(&format!("/tasks/{dead}/nack"), json!({"reason": "broken"})).await.expect(200);
        let cancelled = create("cancelled", json!({})).await;
        client.post(&format!("/tasks/{cancelled}/cancel"), json!({"reason": "not now"})).await.expect(200);
        Everything { ready, keyed, delayed, leased, completed, failed, dead, cancelled }
    }

    fn ids(&self) -> [&str; 8] {
        let leased = text(&self.leased, "id");
        [&self.ready, &self.keyed, &self.delayed, leased, &self.completed, &self.failed, &self.dead, &self.cancelled]
    }

    /// Everything that can be read of it. A delay runs on while the server does, so its end is an estimate that moves.
    async fn read(&self, client: &Client) -> Vec<Value> {
        let mut all = Vec::new();
        for id in self.ids() {
            let mut task = client.task(id).await;
            if task.get("runAt").is_some() {
                task["runAt"] = json!("later");
            }
            if task.get("leaseUntil").is_some() {
                task["leaseUntil"] = json!("later");
            }
            let result = client.get(&format!("/v1/codeq/tasks/{id}/result")).await;
            all.push(json!({"task": task, "result": (result.status == 200).then(|| result.expect(200))}));
        }
        for command in ["ready", "keyed", "delayed", "leased", "completed", "failed", "dead", "cancelled"] {
            all.push(json!(client.depths(command).await));
        }
        all
    }
}

async fn start(directory: &Path, shards: u16) -> Running {
    let mut settings = settings_in(directory);
    settings.node.shards = shards;
    Running::start(settings).await
}

/// Tasks in every state, results, keys, leases and counts are the same after each of several starts, whether they come from a checkpoint
/// or from the log; and the life of each goes on where it was.
#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    let server = start(&path, 3).await;
    let made = Everything::make(&server.client()).await;
    let before = made.read(&server.client()).await;
    server.stop().await;
    for _ in 0..2 {
        let server = start(&path, 3).await;
        assert_eq!(made.read(&server.client()).await, before);
        // Something more for the next start's log.
        server.client().create(json!({"command": "more", "payload": 1})).await;
        server.stop().await;
    }
    let server = start(&path, 3).await;
    let client = server.client();
    assert_eq!(client.depths("more").await, [2, 0, 0, 0]);

    let same = json!({"command": "keyed", "payload": {"of": "keyed"}, "idempotencyKey": "k"});
    let repeat = client.post("/tasks", same).await;
    assert_eq!((repeat.header("idempotency-replayed"), &repeat.expect(202)["id"]), (Some("true"), &json!(made.keyed)));
    let other = json!({"command": "keyed", "payload": 2, "idempotencyKey": "k"});
    client.post("/tasks", other).await.problem(409, "idempotency_conflict");

    let leased = format!("/tasks/{}", text(&made.leased, "id"));
    let token = json!({"leaseToken": made.leased["leaseToken"]});
    client.post(&format!("{leased}/heartbeat"), token.clone()).await.expect(200);
    client.post(&format!("{leased}/abandon"), token.clone()).await.expect(200);
    client.post(&format!("{leased}/heartbeat"), token).await.problem(409, "lease_lost");
    let again = client.post("/tasks/claim", json!({"commands": ["leased"]})).await.expect(200);
    assert_eq!((&again["attempts"], &again["maxAttempts"]), (&json!(1), &json!(9)));

    let ready = client.post("/tasks/claim", json!({"commands": ["ready"]})).await.expect(200);
    assert_eq!((text(&ready, "id"), &ready["payload"]), (&*made.ready, &json!({"of": "ready"})));
    assert_eq!(client.post("/tasks/claim", json!({"commands": ["delayed"]})).await.status, 204);
    client.post(&format!("/tasks/{}/redrive", made.dead), json!({})).await.expect(200);
    client.post("/tasks/claim", json!({"commands": ["dead"]})).await.expect(200);
    client.post(&format!("/tasks/{}/cancel", made.completed), json!({})).await.problem(409, "already_finished");
    let new = client.create(json!({"command": "ready", "payload": 1})).await;
    assert!(!made.ids().contains(&&*new), "no id is used again");
    server.stop().await;
}

/// Delays and leases that were running when a server stopped end after it has started again, and the time between does not count.
#[tokio::test]
async fn what_was_running_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    let server = start(&path, 1).await;
    let client = server.client();
    let leased = client.create(json!({"command": "leased", "payload": 1})).await;
    client.post("/tasks/claim", json!({"leaseSeconds": 0.3})).await.expect(200);
    let delayed = client.create(json!({"command": "delayed", "payload": 1, "delaySeconds": 0.3})).await;
    server.stop().await;
    let server = start(&path, 1).await;
    let client = server.client();
    for (command, id, attempts) in [("delayed", delayed, 1), ("leased", leased, 2)] {
        let task = client.post("/tasks/claim", json!({"commands": [command], "waitSeconds": 30})).await.expect(200);
        assert_eq!((text(&task, "id"), &task["attempts"]), (&*id, &json!(attempts)));
    }
    server.stop().await;
}

/// A directory belongs to one server at a time, and to the shards and the name that it was made with; a port to one server.
#[tokio::test]
async fn a_directory_that_does_not_fit_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    let server = start(&path, 2).await;
    let refused = |settings| match Server::start(settings) {
        Ok(_) => panic!("it must not start"),
        Err(exit) => (matches!(exit, Exit::Start(_)), exit.to_string()),
    };
    let mut second = settings_in(&path);
    second.node.shards = 2;
    let (is_start, why) = refused(second.clone());
    assert!(is_start && why.contains(&*path.to_string_lossy()), "{why}");
    server.client().create(json!({"command": "mail", "payload": 1})).await;
    let mut same_port = settings_in(&directory.path().join("other"));
    same_port.http.addr = server.addr();
    let (is_start, why) = refused(same_port);
    assert!(!is_start && why.contains(&server.addr().port().to_string()), "{why}");
    server.stop().await;

    let (_, why) = refused(settings_in(&path));
    assert!(why.contains("shards is fixed") && why.contains('2'), "{why}");
    let mut renamed = second.clone();
    renamed.node.name = "n2".into();
    let (_, why) = refused(renamed);
    assert!(why.contains("n1") && why.contains("n2"), "{why}");
    let server = Running::start(second).await;
    assert_eq!(server.client().depths("mail").await, [1, 0, 0, 0]);
    server.stop().await;
}
