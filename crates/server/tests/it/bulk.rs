//! What is done to a queue or to many tasks at once, from outside: pauses, edits, heartbeats of many, and operations that redrive, delete
//! and cancel in the background.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, text};
use crate::server::{Running, settings, settings_in, settings_with_tokens};

/// Longer than any operation here takes.
const PATIENCE: Duration = Duration::from_secs(60);

async fn claim(client: &Client, command: &str) -> Option<Value> {
    let answer = client.post("/tasks/claim", json!({"commands": [command]})).await;
    (answer.status == 200).then(|| answer.expect(200))
}

/// So many tasks that have died, of an error with their number.
async fn dead(client: &Client, command: &str, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..count {
        let body = json!({"command": command, "payload": {"n": number}, "maxAttempts": 1, "idempotencyKey": format!("{command}-{number}")});
        ids.push(client.create(body).await);
        let task = claim(client, command).await.expect("it is ready");
        let reason = if number % 2 == 0 { "timeout" } else { "refused" };
        client.post(&format!("/tasks/{}/nack", text(&task, "id")), json!({"reason": reason})).await.expect(200);
    }
    ids
}

/// The operation once it has ended.
async fn ended(client: &Client, operation: &Value) -> Value {
    let path = format!("/v1/codeq/operations/{}", text(operation, "operationId"));
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let operation = client.get(&path).await.expect(200);
        if operation["finishedAt"].is_string() {
            return operation;
        }
    }
    panic!("it does not end");
}

fn numbers(operation: &Value) -> [u64; 3] {
    ["processed", "changed", "skipped"].map(|name| operation[name].as_u64().expect("a number"))
}

/// Goal: nothing is claimed from a paused queue; whoever waits for it gets its tasks when it is resumed, by somebody or by time.
#[tokio::test]
async fn a_paused_queue_gives_nothing() {
    let server = Running::open().await;
    let client = server.client();
    let paused = client.post("/queues/mail/pause", json!({"reason": "relay down"})).await.expect(200);
    assert_eq!((&paused["paused"], &paused["pauseReason"]), (&json!(true), &json!("relay down")));
    assert!(paused["pausedUntil"].is_null() && paused["pausedBy"].is_string(), "{paused}");
    let id = client.create(json!({"command": "mail", "payload": {}})).await;
    assert!(claim(&client, "mail").await.is_none());
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.post("/tasks/claim", json!({"commands": ["mail"], "waitSeconds": 20})).await.expect(200) }
    });
    client.until_waiting(1).await;
    let listed = client.get("/v1/codeq/queues?paused=true&consistency=linearizable").await.expect(200);
    assert_eq!(listed["queues"].as_array().map(Vec::len), Some(1), "{listed}");
    let resumed = client.post("/queues/mail/resume", json!({})).await.expect(200);
    assert_eq!(resumed["paused"], json!(false));
    assert_eq!(text(&waiting.await.expect("it is answered"), "id"), id);
    client.post("/queues/mail/resume", Value::Null).await.expect(200);
    let shortly = client.post("/queues/sms/pause", json!({"durationSeconds": 0.2})).await.expect(200);
    assert!(shortly["pausedUntil"].is_string());
    let id = client.create(json!({"command": "sms", "payload": {}})).await;
    let later = client.post("/tasks/claim", json!({"commands": ["sms"], "waitSeconds": 20})).await.expect(200);
    assert_eq!(text(&later, "id"), id);
    for (body, field) in [
        (json!({"durationSeconds": 0}), "durationSeconds"),
        (json!({"durationSeconds": 2_592_001}), "durationSeconds"),
        (json!({"colour": 1}), "colour"),
    ] {
        let refused = client.post("/queues/mail/pause", body).await.expect(400);
        assert_eq!((text(&refused, "code"), text(&refused, "field")), ("invalid_field", field));
    }
    assert_eq!(text(&client.post("/queues/a%20b/pause", json!({})).await.expect(400), "code"), "invalid_command");
    server.stop().await;
}

/// Goal: dead letters come back, those that are asked for and each once, though they die again meanwhile; also over a restart.
#[tokio::test]
async fn dead_letters_are_redriven() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Running::start(settings_in(directory.path())).await;
    let client = server.client();
    let ids = dead(&client, "mail", 30).await;
    dead(&client, "sms", 3).await;
    let counted = client.post("/dlq/redrive", json!({"dryRun": true})).await.expect(202);
    let counted = ended(&client, &counted).await;
    assert_eq!((numbers(&counted), counted["sampleIds"].as_array().map(Vec::len)), ([33, 33, 0], Some(20)));
    assert_eq!(client.depths("mail").await, [0, 0, 0, 30]);
    let filter = json!({"command": "mail", "errorContains": "TIMEOUT"});
    let begun = client.post("/dlq/redrive", json!({"filter": filter, "priority": 7, "ratePerSecond": 20})).await;
    let path = begun.header("location").expect("it is somewhere").to_owned();
    let begun = begun.expect(202);
    assert_eq!(path, format!("/v1/codeq/operations/{}", text(&begun, "operationId")));
    assert_eq!((text(&begun, "kind"), &begun["request"]["filter"]), ("dlq.redrive", &filter));
    let refused = client.post("/dlq/redrive", json!({"filter": {"command": ["mail", "sms"]}})).await.expect(409);
    assert_eq!(text(&refused, "code"), "operation_conflict");
    // It goes on where it was after being stopped, and in the next process.
    let stopped = client.post(&format!("{}/stop", path.trim_start_matches("/v1/codeq")), json!({})).await.expect(200);
    assert_eq!(text(&stopped, "state"), "STOPPED");
    server.stop().await;
    let server = Running::start(settings_in(directory.path())).await;
    let client = server.client();
    let before = client.get(&path).await.expect(200);
    assert_eq!(numbers(&before), numbers(&stopped));
    client.post(&format!("{}/resume", path.trim_start_matches("/v1/codeq")), json!({})).await.expect(200);
    // What dies again is left alone.
    let again = claim(&client, "mail").await;
    if let Some(task) = again {
        client.post(&format!("/tasks/{}/nack", text(&task, "id")), json!({"reason": "timeout"})).await.expect(200);
    }
    let done = ended(&client, &begun).await;
    assert_eq!((text(&done, "state"), numbers(&done)), ("SUCCEEDED", [15, 15, 0]), "{done}");
    let [ready, _, _, dead] = client.depths("mail").await;
    assert_eq!(ready + dead, 30);
    assert!(ready >= 14, "{ready} came back");
    assert_eq!(client.task(&ids[2]).await["priority"], 7);
    assert_eq!(text(&client.task(&ids[1]).await, "lastKnownLocation"), "DLQ_SET");
    let refused = client.post(&format!("{}/stop", path.trim_start_matches("/v1/codeq")), json!({})).await.expect(409);
    assert_eq!(text(&refused, "code"), "operation_state");
    let all = client.get("/v1/codeq/operations?kind=dlq.redrive&limit=1").await.expect(200);
    assert_eq!(text(&all["operations"][0], "operationId"), text(&begun, "operationId"), "the youngest first");
    let next = format!("/v1/codeq/operations?kind=dlq.redrive&limit=1&cursor={}", text(&all, "nextCursor"));
    let next = client.get(&next).await.expect(200);
    assert_eq!((&next["operations"][0]["dryRun"], next.get("nextCursor")), (&json!(true), None));
    server.stop().await;
}

/// Goal: what is purged is gone, and its keys are free; what is held by a worker, or came later, is left alone.
#[tokio::test]
async fn queues_and_dead_letters_are_purged() {
    let directory = tempfile::tempdir().expect("a directory");
    for settings in [settings(), settings_in(directory.path())] {
        let server = Running::start(settings).await;
        let client = server.client();
        let gone = dead(&client, "sms", 3).await;
        for number in 0..20 {
            let delay = if number % 2 == 0 { 0 } else { 3600 };
            client.create(json!({"command": "mail", "payload": {}, "delaySeconds": delay, "idempotencyKey": format!("k{number}")})).await;
        }
        let held = claim(&client, "mail").await.expect("it is ready");
        let refused = client.post("/queues/mail/purge", json!({})).await.expect(400);
        assert_eq!((text(&refused, "code"), text(&refused, "field")), ("confirmation_required", "confirm"));
        let delayed = json!({"confirm": "mail", "states": ["DELAYED"]});
        let delayed = client.post("/queues/mail/purge", delayed).await.expect(202);
        assert_eq!(numbers(&ended(&client, &delayed).await), [10, 10, 0]);
        let all = client.post("/queues/mail/purge", json!({"confirm": "mail"})).await.expect(202);
        assert_eq!(all["estimatedTotal"], 9);
        assert_eq!(numbers(&ended(&client, &all).await), [9, 9, 0]);
        assert_eq!(client.depths("mail").await, [0, 0, 1, 0]);
        client.post(&format!("/tasks/{}/heartbeat", text(&held, "id")), json!({})).await.expect(200);
        let again = json!({"command": "mail", "payload": {"new": true}, "idempotencyKey": "k5"});
        assert!(client.post("/tasks", again).await.header("idempotency-replayed").is_none(), "its key is free");
        let purged = client.post("/dlq/purge", json!({"confirm": "purge"})).await.expect(202);
        assert_eq!(numbers(&ended(&client, &purged).await), [3, 3, 0]);
        assert_eq!(client.depths("sms").await, [0, 0, 0, 0]);
        for id in gone {
            client.get(&format!("/v1/codeq/tasks/{id}")).await.expect(404);
        }
        let key = json!({"command": "sms", "payload": {"new": true}, "idempotencyKey": "sms-0"});
        assert!(client.post("/tasks", key).await.header("idempotency-replayed").is_none(), "its key is free");
        server.stop().await;
    }
}

/// Goal: many tasks are cancelled at once, those that are held are asked for, and nothing else is touched.
#[tokio::test]
async fn tasks_are_cancelled_by_filter() {
    let server = Running::open().await;
    let client = server.client();
    for _ in 0..5 {
        client.create(json!({"command": "mail", "payload": {}, "priority": 3})).await;
    }
    let other = client.create(json!({"command": "mail", "payload": {}, "priority": 1})).await;
    let held = claim(&client, "mail").await.expect("it is ready");
    let begun =
        client.post("/tasks/cancel", json!({"filter": {"command": "mail", "priority": 3}, "reason": "typo"})).await;
    let done = ended(&client, &begun.expect(202)).await;
    assert_eq!(numbers(&done), [5, 5, 0]);
    assert_eq!(client.task(text(&held, "id")).await["cancelRequested"], json!(true));
    assert_eq!(text(&client.task(&other).await, "state"), "READY");
    assert_eq!(client.depths("mail").await, [1, 0, 1, 0]);
    let refused = client.post("/tasks/cancel", json!({})).await.expect(400);
    assert_eq!((text(&refused, "code"), text(&refused, "field")), ("invalid_filter", "filter"));
    server.stop().await;
}

/// Goal: only administrators see operations, and what is asked for wrongly is named.
#[tokio::test]
async fn operations_are_for_administrators() {
    let admin = r#"{"token": "admin", "subject": "ann", "raw": {"tenantId": "acme", "role": "Admin"}}"#;
    let worker = r#"{"token": "worker", "subject": "w1", "eventTypes": ["*"], "scopes": ["codeq:claim"], "raw": {"tenantId": "acme"}}"#;
    let server = Running::start(settings_with_tokens(Some(admin), Some(worker))).await;
    let admin = server.with_token("admin");
    let begun = admin.post("/dlq/redrive", json!({})).await.expect(202);
    ended(&admin, &begun).await;
    let path = format!("/v1/codeq/operations/{}", text(&begun, "operationId"));
    for (token, status) in [("worker", 401), ("nobody", 401)] {
        server.with_token(token).get(&path).await.expect(status);
    }
    let unknown = admin.get("/v1/codeq/operations/op-00000000000000000000000000000000").await.expect(404);
    assert_eq!(text(&unknown, "code"), "operation_not_found");
    for query in ["kind=x", "state=x", "colour=red", "limit=x"] {
        let refused = admin.get(&format!("/v1/codeq/operations?{query}")).await.expect(400);
        assert_eq!(text(&refused, "code"), "invalid_filter", "{query}");
    }
    server.stop().await;
}

/// Goal: a waiting task is changed, and nothing else of it; a held or an ended one is not.
#[tokio::test]
async fn a_waiting_task_is_edited() {
    let directory = tempfile::tempdir().expect("a directory");
    for settings in [settings(), settings_in(directory.path())] {
        let server = Running::start(settings).await;
        let client = server.client();
        let patch = async |id: &str, body: Value| {
            client.send("PATCH", &format!("/v1/codeq/tasks/{id}"), Some(body.to_string().as_bytes())).await
        };
        let id = client.create(json!({"command": "mail", "payload": {"n": 1}, "priority": 2})).await;
        let edited = patch(&id, json!({"payload": {"n": 2}, "delaySeconds": 3600, "maxAttempts": 9})).await.expect(200);
        assert_eq!((&edited["payload"], text(&edited, "state")), (&json!({"n": 2}), "DELAYED"));
        assert_eq!((&edited["maxAttempts"], &edited["priority"]), (&json!(9), &json!(2)));
        let edited = patch(&id, json!({"delaySeconds": 0, "priority": 9, "webhook": "https://example.com/x"})).await;
        let edited = edited.expect(200);
        assert_eq!((text(&edited, "state"), &edited["priority"]), ("READY", &json!(9)));
        for (body, code, field) in [
            (json!({"priority": 10}), "invalid_field", "priority"),
            (json!({"maxAttempts": 0}), "invalid_field", "maxAttempts"),
            (json!({"delaySeconds": -1}), "invalid_delay", "delaySeconds"),
            (json!({"webhook": "ftp://x"}), "invalid_webhook_url", "webhook"),
            (json!({"colour": 1}), "invalid_field", "colour"),
        ] {
            let refused = patch(&id, body).await.expect(400);
            assert_eq!((text(&refused, "code"), text(&refused, "field")), (code, field));
        }
        let held = claim(&client, "mail").await.expect("it is ready");
        assert_eq!(held["payload"], json!({"n": 2}));
        assert_eq!(text(&patch(&id, json!({"priority": 1})).await.expect(409), "code"), "already_leased");
        let done = json!({"status": "COMPLETED", "result": {}});
        client.post(&format!("/tasks/{id}/result"), done).await.expect(200);
        assert_eq!(text(&patch(&id, json!({"priority": 1})).await.expect(409), "code"), "already_finished");
        let nobody = "00000000-0000-8000-8000-000000000000";
        assert_eq!(text(&patch(nobody, json!({"priority": 1})).await.expect(404), "code"), "task_not_found");
        server.stop().await;
    }
}

/// Goal: a dead task can be given another payload and number of attempts, and nothing else; it stays dead, in lists too and after a restart, and
/// comes back with them.
#[tokio::test]
async fn a_dead_task_is_changed_before_it_comes_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Running::start(settings_in(directory.path())).await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": {"n": 1}, "maxAttempts": 1})).await;
    claim(&client, "mail").await.expect("it is ready");
    client.post(&format!("/tasks/{id}/nack"), json!({"reason": "no"})).await.expect(200);
    let path = format!("/v1/codeq/tasks/{id}");
    let body = json!({"payload": {"n": 2}, "maxAttempts": 3}).to_string();
    let edited = client.send("PATCH", &path, Some(body.as_bytes())).await.expect(200);
    assert_eq!(
        (text(&edited, "state"), &edited["payload"], &edited["maxAttempts"]),
        ("DEAD", &json!({"n": 2}), &json!(3))
    );
    for refused in [json!({"priority": 1}), json!({"delaySeconds": 1}), json!({"webhook": "http://x"})] {
        let refused = client.send("PATCH", &path, Some(refused.to_string().as_bytes())).await.expect(409);
        assert_eq!(text(&refused, "code"), "already_finished");
    }
    let dead = client.get("/v1/codeq/dlq?include=payload&consistency=linearizable").await.expect(200);
    assert_eq!(dead["tasks"][0]["payload"], json!({"n": 2}));
    server.stop().await;

    let server = Running::start(settings_in(directory.path())).await;
    let client = server.client();
    let shown = client.get(&path).await.expect(200);
    assert_eq!((text(&shown, "state"), text(&shown, "error"), &shown["payload"]), ("DEAD", "no", &json!({"n": 2})));
    let back = client.post(&format!("/tasks/{id}/redrive"), json!({})).await.expect(200);
    assert_eq!(
        (&back["payload"], &back["maxAttempts"], &back["attempts"]),
        (&json!({"n": 2}), &json!(3), &json!(null))
    );
    server.stop().await;
}

/// Goal: a queue shows who works on it, who waits for a task of it here, and when the next one is due.
#[tokio::test]
async fn a_queue_shows_who_works_and_waits() {
    let server = Running::start(settings()).await;
    let client = server.client();
    let queue = async || client.get("/v1/codeq/queues/mail").await.expect(200);
    let shown = queue().await;
    assert_eq!((&shown["consumers"], &shown["waiters"], &shown["nextDueAt"]), (&json!(0), &json!(0), &json!(null)));
    client.create(json!({"command": "mail", "payload": 1})).await;
    claim(&client, "mail").await.expect("it is ready");
    client.create(json!({"command": "mail", "payload": 1, "runAt": "2030-01-02T03:04:05Z"})).await;
    let wish = |commands: Value| json!({"commands": commands, "waitSeconds": 30});
    let waiting = [wish(json!(["mail", "print"])), wish(json!([])), wish(json!(["print"]))];
    let waiting = waiting.map(|wish| {
        let client = client.clone();
        tokio::spawn(async move { client.post("/tasks/claim", wish).await.status })
    });
    let (mut shown, begun) = (queue().await, Instant::now());
    while shown["waiters"] != json!(2) {
        assert!(begun.elapsed() < PATIENCE, "{shown}");
        shown = queue().await;
    }
    assert_eq!((&shown["consumers"], &shown["inProgress"]), (&json!(1), &json!(1)));
    assert_eq!(text(&shown, "nextDueAt"), "2030-01-02T03:04:05.000Z");
    for _ in 0..3 {
        client.create(json!({"command": "print", "payload": 1})).await;
    }
    for waits in waiting {
        assert_eq!(waits.await.expect("it does not panic"), 200);
    }
    assert_eq!(queue().await["waiters"], json!(0));
    server.stop().await;
}

/// Goal: a redriven task can come back with another payload.
#[tokio::test]
async fn a_dead_task_comes_back_with_another_payload() {
    let server = Running::open().await;
    let client = server.client();
    let id = dead(&client, "mail", 1).await.remove(0);
    let back = client.post(&format!("/tasks/{id}/redrive"), json!({"payload": {"fixed": true}})).await.expect(200);
    assert_eq!(back["payload"], json!({"fixed": true}));
    assert_eq!(claim(&client, "mail").await.expect("it is ready")["payload"], json!({"fixed": true}));
    server.stop().await;
}

/// Goal: many leases go on by one call, each judged by itself.
#[tokio::test]
async fn many_leases_are_extended_at_once() {
    let server = Running::open().await;
    let client = server.client();
    let mut held = Vec::new();
    for _ in 0..3 {
        client.create(json!({"command": "mail", "payload": {}})).await;
        held.push(claim(&client, "mail").await.expect("it is ready"));
    }
    client.post(&format!("/tasks/{}/cancel", text(&held[1], "id")), json!({})).await.expect(202);
    let beat = |task: &Value, token: &str| json!({"taskId": task["id"], "leaseToken": token, "extendSeconds": 600});
    let token = |place: usize| text(&held[place], "leaseToken").to_owned();
    let body = json!({"heartbeats": [
        beat(&held[0], &token(0)), beat(&held[1], &token(1)), beat(&held[2], "wrong"), {"taskId": "x"},
    ]});
    let answer = client.post("/tasks/batch/heartbeat", body).await.expect(200);
    let results = answer["results"].as_array().expect("a list");
    assert_eq!((&results[0]["ok"], &results[0]["leaseMs"]), (&json!(true), &json!(600_000)));
    assert_eq!(results[1]["cancelRequested"], json!(true));
    assert_eq!(text(&results[2], "code"), "lease_lost");
    assert_eq!((text(&results[3], "code"), results.len()), ("task_not_found", 4));
    let many: Vec<Value> = (0..101).map(|_| json!({"taskId": "x"})).collect();
    let refused = client.post("/tasks/batch/heartbeat", json!({"heartbeats": many})).await.expect(400);
    assert_eq!(text(&refused, "code"), "batch_too_large");
    client.post("/tasks/batch/heartbeat", json!({"heartbeats": []})).await.expect(400);
    server.stop().await;
}
