//! What happens to a task over time: expiry, retries, dead letters, delays, order, and who is woken when.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::client::{Client, Response, now, text, time};
use crate::server::{Running, settings};

/// Posts to a route in the background.
fn spawn(client: &Client, path: &str, body: Value) -> JoinHandle<Response> {
    let (client, path) = (client.clone(), path.to_owned());
    tokio::spawn(async move { client.post(&path, body).await })
}

async fn answer(waiting: JoinHandle<Response>) -> Response {
    waiting.await.expect("the client runs")
}

/// A worker claims a task and dies. Another one, which has waited since before the lease ran out, gets it; and nobody asks the server for
/// anything in between, so it is the passing of time alone that moves the task.
#[tokio::test]
async fn the_task_of_a_dead_worker_is_delivered_again() {
    let server = Running::open().await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    let began = Instant::now();
    client.post("/tasks/claim", json!({"leaseSeconds": 1})).await.expect(200);
    let [operations, entries] = ["codeq_operations_total", "codeq_log_entries_total"];
    let before = [client.metric(operations).await, client.metric(entries).await];
    let claimed = client.post("/tasks/claim", json!({"commands": ["mail"], "waitSeconds": 30})).await;
    let task = claimed.expect(200);
    assert_eq!((text(&task, "id"), &task["attempts"]), (&*id, &json!(2)));
    assert_eq!(text(&task, "lastError"), "LEASE_EXPIRED");
    // Never early: the lease of a second, and the backoff of 100 ms behind it. The clocks count whole milliseconds.
    assert!(began.elapsed() >= Duration::from_millis(1_099));
    // The claim was tried, and waited. Only what came due was written: the end of the lease, the end of the delay, and the claim.
    assert_eq!(client.metric(operations).await - before[0], 2.0);
    assert!(client.metric(entries).await - before[1] <= 3.0, "nothing is written while nothing happens");
    server.stop().await;
}

/// Whatever a worker does with a lease that has run out is refused with a stable code, by its token and without it.
#[tokio::test]
async fn a_late_worker_is_refused() {
    let server = Running::open().await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    let first = client.post("/tasks/claim", json!({"leaseSeconds": 0.05})).await.expect(200);
    let second = client.post("/tasks/claim", json!({"waitSeconds": 30})).await.expect(200);
    let old = text(&first, "leaseToken");
    assert_ne!(old, text(&second, "leaseToken"));
    let calls = [
        ("heartbeat", json!({"leaseToken": old})),
        ("abandon", json!({"leaseToken": old})),
        ("nack", json!({"leaseToken": old})),
        ("result", json!({"leaseToken": old, "status": "COMPLETED", "result": {}})),
        ("result", json!({"leaseToken": old, "status": "FAILED", "error": "no"})),
        ("result", json!({"leaseToken": old, "status": "FAILED", "error": "no", "retryable": true})),
        // Where the task stands comes before what is wrong with the result.
        ("result", json!({"leaseToken": old, "status": "nonsense"})),
    ];
    for (call, body) in &calls {
        let problem = client.post(&format!("/tasks/{id}/{call}"), body.clone()).await.problem(409, "lease_lost");
        assert_eq!(text(&problem, "error"), "not-owner", "somebody else holds it now");
    }
    assert_eq!(text(&client.task(&id).await, "state"), "LEASED");
    let done = json!({"status": "COMPLETED", "result": {}, "leaseToken": second["leaseToken"]});
    client.post(&format!("/tasks/{id}/result"), done).await.expect(200);
    for (call, body) in &calls {
        let problem = client.post(&format!("/tasks/{id}/{call}"), body.clone()).await.problem(409, "lease_lost");
        assert_eq!(text(&problem, "error"), "not-in-progress");
        let mut without = body.clone();
        without.as_object_mut().expect("an object").remove("leaseToken");
        let problem = client.post(&format!("/tasks/{id}/{call}"), without).await.problem(409, "not_in_progress");
        assert_eq!(text(&problem, "error"), "not-in-progress");
    }
    assert_eq!(text(&client.task(&id).await, "state"), "COMPLETED");
    server.stop().await;
}

/// A lease that has run out is over even while nobody else holds the task, also without a token.
#[tokio::test]
async fn a_late_result_is_refused_while_nobody_holds_the_task() {
    let mut settings = settings();
    settings.policy.backoff.base = base::Millis::from_secs(600);
    let server = Running::start(settings).await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    let claimed = client.post("/tasks/claim", json!({"leaseSeconds": 0.05})).await.expect(200);
    // Another queue's task is due later than the lease is over, so its claim marks the time.
    client.create(json!({"command": "clock", "payload": 1, "delaySeconds": 0.06})).await;
    client.post("/tasks/claim", json!({"commands": ["clock"], "waitSeconds": 30})).await.expect(200);
    let path = format!("/tasks/{id}/result");
    let done = json!({"status": "COMPLETED", "result": {}, "leaseToken": claimed["leaseToken"]});
    let problem = client.post(&path, done).await.problem(409, "lease_lost");
    assert_eq!(text(&problem, "error"), "not-in-progress");
    client.post(&path, json!({"status": "COMPLETED", "result": {}})).await.problem(409, "not_in_progress");
    let task = client.task(&id).await;
    assert_eq!((text(&task, "state"), text(&task, "lastError")), ("DELAYED", "LEASE_EXPIRED"));
    server.stop().await;
}

/// A task is delivered as often as it may be, by expiry and by nack alike; then it is dead, its reader is told, and it can be redriven.
#[tokio::test]
async fn a_task_that_never_succeeds_ends_as_a_dead_letter() {
    let server = Running::open().await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": 1, "maxAttempts": 3})).await;
    let reader = tokio::spawn({
        let (client, path) = (client.clone(), format!("/v1/codeq/tasks/{id}/result?waitSeconds=60"));
        async move { client.get(&path).await }
    });
    for attempt in 1..=3 {
        // The second attempt is given back, the others run out.
        let lease = if attempt == 2 { 60.0 } else { 0.05 };
        let claim = json!({"commands": ["mail"], "waitSeconds": 30, "leaseSeconds": lease});
        let task = client.post("/tasks/claim", claim).await.expect(200);
        assert_eq!((text(&task, "id"), &task["attempts"]), (&*id, &json!(attempt)));
        if attempt == 2 {
            client.post(&format!("/tasks/{id}/nack"), json!({"delaySeconds": 0, "reason": "no"})).await.expect(200);
        }
    }
    let both = answer(reader).await.expect(200);
    assert_eq!((text(&both["task"], "state"), text(&both["task"], "error")), ("DEAD", "LEASE_EXPIRED"));
    assert_eq!(
        (text(&both["result"], "status"), text(&both["result"], "error"), &both["result"]["attempt"]),
        ("FAILED", "LEASE_EXPIRED", &json!(3))
    );
    assert_eq!(client.post("/tasks/claim", json!({})).await.status, 204);
    assert_eq!(client.depths("mail").await, [0, 0, 0, 1]);
    let waiting = spawn(&client, "/tasks/claim", json!({"waitSeconds": 30}));
    client.until_waiting(1).await;
    client.post(&format!("/tasks/{id}/redrive"), json!({})).await.expect(200);
    let task = answer(waiting).await.expect(200);
    assert_eq!((text(&task, "id"), &task["attempts"]), (&*id, &json!(1)), "it comes back with fresh attempts");
    server.stop().await;
}

/// Delays and times are never early, and end without anybody asking.
#[tokio::test]
async fn a_delayed_task_becomes_ready_in_time() {
    let server = Running::open().await;
    let client = server.client();
    let deliver = async |body: Value| {
        let created = client.post("/tasks", body).await.expect(202);
        assert_eq!(text(&created, "state"), "DELAYED");
        assert_eq!(client.post("/tasks/claim", json!({})).await.status, 204);
        let task = client.post("/tasks/claim", json!({"waitSeconds": 30})).await.expect(200);
        assert_eq!((&task["id"], task.get("runAt")), (&created["id"], None));
        task
    };
    let began = Instant::now();
    deliver(json!({"command": "mail", "payload": 1, "delaySeconds": 0.3})).await;
    assert!(began.elapsed() >= Duration::from_millis(299));
    let at = now() + 300;
    let soon = String::from_utf8(api::time::format(at).to_vec()).expect("digits");
    let task = deliver(json!({"command": "mail", "payload": 1, "runAt": soon})).await;
    assert!(time(&task, "leaseUntil") - 300_000 >= at, "by the clock that decides it: {task}");
    server.stop().await;
}

/// The most urgent task comes first, then the one that has been ready longest; queues named in a claim are drained in their order, unless
/// the claim asks for one merged order; without names the queues take turns.
#[tokio::test]
async fn tasks_are_delivered_in_order() {
    let server = Running::open().await;
    let client = server.client();
    let fill = async || {
        for (command, priority) in [("a", 0), ("a", 5), ("b", 9), ("a", 5), ("b", 1), ("a", 9)] {
            let name = format!("{command}{priority}");
            client.create(json!({"command": command, "payload": name, "priority": priority})).await;
        }
    };
    let drain = async |claim: Value| {
        let mut order = String::new();
        for _ in 0..6 {
            let task = client.post("/tasks/claim", claim.clone()).await.expect(200);
            order = order + " " + text(&task, "payload");
        }
        order
    };
    for (claim, order) in [
        (json!({"commands": ["a", "b"]}), " a9 a5 a5 a0 b9 b1"),
        (json!({"commands": ["b", "a"], "order": "request"}), " b9 b1 a9 a5 a5 a0"),
        (json!({"commands": ["a", "b"], "order": "priority"}), " b9 a9 a5 a5 b1 a0"),
        (json!({}), " b9 a9 a5 a5 b1 a0"),
    ] {
        fill().await;
        assert_eq!(drain(claim.clone()).await, order, "{claim}");
    }
    // Turns: a long queue does not starve a short one of the same priority.
    for (command, count) in [("a", 4), ("b", 2)] {
        for _ in 0..count {
            client.create(json!({"command": command, "payload": command})).await;
        }
    }
    let order = drain(json!({})).await;
    assert!([" a b a b a a", " b a b a a a"].contains(&&*order), "{order}");
    server.stop().await;
}

/// Waiting claims are served in the order in which they came, each by the task that fits it.
#[tokio::test]
async fn waiting_claims_are_woken_by_what_they_wait_for() {
    let server = Running::open().await;
    let client = server.client();
    let mut waiting = Vec::new();
    for (place, commands) in [json!(["a"]), json!(["b"]), json!(["a", "b"]), json!([])].into_iter().enumerate() {
        let wait = json!({"commands": commands, "waitSeconds": 30});
        waiting.push(spawn(&client, "/tasks/claim", wait));
        client.until_waiting(place + 1).await;
    }
    let mut waiting = waiting.into_iter();
    for (command, payload) in [("a", 1), ("b", 2), ("b", 3), ("c", 4)] {
        client.create(json!({"command": command, "payload": payload})).await;
        let task = answer(waiting.next().expect("one for each")).await.expect(200);
        assert_eq!((text(&task, "command"), &task["payload"]), (command, &json!(payload)));
    }
    client.until_waiting(0).await;

    // Also by what is returned, retried and delayed.
    let id = client.create(json!({"command": "a", "payload": 1})).await;
    client.post("/tasks/claim", json!({})).await.expect(200);
    for (call, body) in
        [("abandon", json!({})), ("nack", json!({"delaySeconds": 0})), ("nack", json!({"delaySeconds": 0.05}))]
    {
        let waiting = spawn(&client, "/tasks/claim", json!({"waitSeconds": 30}));
        client.until_waiting(1).await;
        client.post(&format!("/tasks/{id}/{call}"), body).await.expect(200);
        assert_eq!(answer(waiting).await.expect(200)["id"], *id, "{call}");
    }
    // A wait that ends with nothing is no error, and a batch waits for its first task only.
    let before = now();
    assert_eq!(client.post("/tasks/claim", json!({"commands": ["none"], "waitSeconds": 0.2})).await.status, 204);
    assert!(now() >= before + 199);
    let waiting = spawn(&client, "/tasks/claim/batch", json!({"commands": ["a"], "count": 5, "waitSeconds": 30}));
    client.until_waiting(1).await;
    client.create(json!({"command": "a", "payload": 1})).await;
    assert_eq!(answer(waiting).await.expect(200)["tasks"].as_array().map(Vec::len), Some(1));
    server.stop().await;
}

/// A claim over several shards takes one task; what another shard has granted to it meanwhile is free again at once.
#[tokio::test]
async fn a_claim_that_waits_on_several_shards_takes_one_task() {
    let mut settings = settings();
    settings.node.shards = 8;
    settings.http.threads = 1;
    let server = Running::start(settings).await;
    let client = server.client();
    let tasks: Vec<Value> =
        (0..16).map(|number| json!({"command": format!("q{number}"), "payload": 1, "delaySeconds": 0.02})).collect();
    for _ in 0..10 {
        // All become due at nearly the same time, on all shards, while the claim waits.
        client.post("/tasks/batch", json!({"tasks": tasks})).await.expect(200);
        let mut seen = std::collections::BTreeSet::new();
        while seen.len() < tasks.len() {
            // What is not given back stays leased for five minutes, and this claim ends with nothing.
            let claimed = client.post("/tasks/claim", json!({"waitSeconds": 5})).await;
            let task = claimed.expect(200);
            assert_eq!(task["attempts"], 1, "a delivery that did not take place counts nothing");
            assert!(seen.insert(text(&task, "id").to_owned()), "no task is delivered twice");
        }
    }
    server.stop().await;
}

/// A client that goes away while it waits takes nothing with it.
#[tokio::test]
async fn a_client_that_has_gone_is_given_nothing() {
    let server = Running::open().await;
    let client = server.client();
    let mut connection = client.connect().await;
    let wait = br#"{"waitSeconds":30}"#;
    connection.write(&client.request("POST", "/v1/codeq/tasks/claim", Some(wait))).await;
    client.until_waiting(1).await;
    drop(connection);
    client.until_waiting(0).await;
    client.create(json!({"command": "mail", "payload": 1})).await;
    assert_eq!(client.post("/tasks/claim", json!({})).await.expect(200)["attempts"], 1);
    server.stop().await;
}
