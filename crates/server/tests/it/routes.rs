//! Every route answers as the contract says: status, headers, and the very bytes of the body.

use serde_json::{Value, json};

use crate::client::{Response, now, text, time};
use crate::server::{Running, settings};

/// `shard:term:index`
fn position(response: &Response) -> [u64; 3] {
    let header = response.header("codeq-position").expect("the answer has a position");
    let parts: Vec<u64> = header.split(':').map(|part| part.parse().expect("a number")).collect();
    parts.try_into().expect("three numbers")
}

/// What every JSON answer under `/v1/codeq` has.
#[track_caller]
fn check_json(response: &Response, status: u16) -> Value {
    let body = response.expect(status);
    assert_eq!(response.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(response.header("cache-control"), Some("no-store"));
    body
}

/// A created task is answered field by field in the order of the contract, with its payload as it was sent.
#[tokio::test]
async fn a_task_is_created_and_shown() {
    let server = Running::open().await;
    let client = server.client();
    let before = now();
    let payload = r#"{"b" : [1, 2.50, 12345678901234567890123], "a":"<&>\u00e9 é", "a":null}"#;
    let body = format!(
        r#"{{"command":"mail","payload":{payload},"priority":3,"webhook":"https://example.com/hook","idempotencyKey":"k1","maxAttempts":7,"unknown":[1]}}"#
    );
    let created = client.post_text("/tasks", &body).await;
    let task = check_json(&created, 202);
    assert_eq!(created.header("idempotency-replayed"), None);
    assert_eq!(created.header("x-request-id").map(str::len), Some(32));
    let [shard, term, index] = position(&created);
    assert!(shard == 0 && term >= 1 && index >= 1);
    let at = time(&task, "createdAt");
    assert!(at.abs_diff(before) < 5_000, "the schedule clock follows the wall clock");
    let (id, at) = (text(&task, "id"), text(&task, "createdAt"));
    assert_eq!(
        created.text(),
        format!(
            r#"{{"id":"{id}","command":"mail","payload":{payload},"priority":3,"webhook":"https://example.com/hook","status":"PENDING","lastKnownLocation":"PENDING_LIST","maxAttempts":7,"tenantId":"default","createdAt":"{at}","updatedAt":"{at}","state":"READY","idempotencyKey":"k1"}}"#
        )
    );
    let read = client.get(&format!("/v1/codeq/tasks/{id}")).await;
    check_json(&read, 200);
    assert_eq!(read.text(), created.text(), "reading shows the same");
    assert!(position(&read)[2] >= index);

    // The smallest body: what is not given is left out or has its default.
    let created = client.post_text("/tasks", r#"{"command":"mail","payload":0}"#).await;
    let task = check_json(&created, 202);
    let (id, at) = (text(&task, "id"), text(&task, "createdAt"));
    assert_eq!(
        created.text(),
        format!(
            r#"{{"id":"{id}","command":"mail","payload":0,"status":"PENDING","lastKnownLocation":"PENDING_LIST","maxAttempts":5,"tenantId":"default","createdAt":"{at}","updatedAt":"{at}","state":"READY"}}"#
        )
    );
    for payload in ["false", "\"\"", "[]", "{}", "-0.0", " [ 1 ] "] {
        let created = client.post_text("/tasks", &format!(r#"{{"command":"mail","payload":{payload}}}"#)).await;
        created.expect(202);
        assert!(created.text().contains(&format!(r#""payload":{},"status""#, payload.trim())), "{}", created.text());
    }
    server.stop().await;
}

/// A time or a delay makes a task wait; a time that has passed does not. Out of range, priority and attempts are clamped.
#[tokio::test]
async fn a_task_is_created_for_later() {
    let server = Running::open().await;
    let client = server.client();
    let create = async |body: Value| client.post("/tasks", body).await.expect(202);
    let delayed = create(json!({"command": "mail", "payload": 1, "delaySeconds": 1.5})).await;
    assert_eq!(
        ["status", "lastKnownLocation", "state"].map(|name| text(&delayed, name)),
        ["PENDING", "DELAYED_ZSET", "DELAYED"]
    );
    assert_eq!(time(&delayed, "runAt") - time(&delayed, "createdAt"), 1_500);

    let at = json!({"command": "mail", "payload": 1, "runAt": "2031-05-06T09:08:09.1+02:00", "delaySeconds": 3});
    assert_eq!(text(&create(at).await, "runAt"), "2031-05-06T07:08:09.100Z", "the time wins over the delay");
    for past in ["1999-12-31T23:59:59Z", "1960-01-01T00:00:00Z", ""] {
        let task = create(json!({"command": "mail", "payload": 1, "runAt": past})).await;
        assert_eq!((text(&task, "state"), task.get("runAt")), ("READY", None), "{past:?}");
    }
    for (asked, granted) in [(-5, None), (0, None), (9, Some(9)), (10_000, Some(9))] {
        let task = create(json!({"command": "mail", "payload": 1, "priority": asked})).await;
        assert_eq!(task.get("priority").and_then(Value::as_u64), granted, "{asked}");
    }
    for (asked, granted) in [(json!(-1), 5), (json!(0), 5), (json!(2.0), 2), (json!(1e300), 1_000_000)] {
        let task = create(json!({"command": "mail", "payload": 1, "maxAttempts": asked})).await;
        assert_eq!(task["maxAttempts"], granted, "{asked}");
    }
    server.stop().await;
}

/// A repeated key answers with the first task in its present state; another body under it is a conflict that names the first task.
#[tokio::test]
async fn an_idempotency_key_is_known_again() {
    let server = Running::open().await;
    let client = server.client();
    let with_key = client.header("Idempotency-Key", "\"k\"");
    let body = json!({"command": "mail", "payload": {"a": 1}});
    let first = with_key.post("/tasks", body.clone()).await;
    let id = text(&check_json(&first, 202), "id").to_owned();
    client.post("/tasks/claim", json!({})).await.expect(200);
    // The key in the body, and other white space in the payload, are the same request.
    let repeat = client
        .post_text("/tasks", r#"{"command":"mail","payload":{"a" : 1},"idempotencyKey":"k","priority":-1}"#)
        .await;
    let task = check_json(&repeat, 202);
    assert_eq!(repeat.header("idempotency-replayed"), Some("true"));
    assert_eq!((text(&task, "id"), text(&task, "state"), text(&task, "idempotencyKey")), (&*id, "LEASED", "k"));
    assert!(position(&repeat)[2] >= position(&first)[2]);

    for other in [
        json!({"command": "mail", "payload": {"a": 2}}),
        json!({"command": "mail", "payload": {"a": 1}, "priority": 1}),
        json!({"command": "mail", "payload": {"a": 1}, "maxAttempts": 5}),
        json!({"command": "mail", "payload": {"a": 1}, "delaySeconds": 1}),
        json!({"command": "mail", "payload": {"a": 1}, "webhook": "http://example.com"}),
    ] {
        let problem = with_key.post("/tasks", other).await.problem(409, "idempotency_conflict");
        assert_eq!((text(&problem, "taskId"), text(&problem, "error")), (&*id, "idempotency conflict"));
    }
    // Another queue is another scope, and blank keys are none.
    let elsewhere = with_key.post("/tasks", json!({"command": "other", "payload": {"a": 1}})).await;
    assert_ne!(text(&elsewhere.expect(202), "id"), id);
    for _ in 0..2 {
        let blank =
            client.header("Idempotency-Key", "  ").post("/tasks", json!({"command": "blank", "payload": 1})).await;
        assert_eq!((blank.status, blank.header("idempotency-replayed")), (202, None));
    }
    assert_eq!(client.depths("blank").await, [2, 0, 0, 0]);
    for (client, key) in [
        (&with_key, "other"),
        (&client.header("Idempotency-Key", "a#1"), "other"),
        (&client, &*"k".repeat(257)),
        (&client.header("Idempotency-Key", &"k".repeat(257)), ""),
    ] {
        let refused = client.post("/tasks", json!({"command": "mail", "payload": 1, "idempotencyKey": key})).await;
        refused.problem(400, "invalid_idempotency_key");
    }
    assert_eq!(client.depths("mail").await, [0, 0, 1, 0]);
    server.stop().await;
}

/// A batch answers item by item, in order; bad items do not keep good ones from being created, and the whole call can be repeated.
#[tokio::test]
async fn tasks_are_created_in_batches() {
    let mut settings = settings();
    settings.node.shards = 3;
    let server = Running::start(settings).await;
    let client = server.client();
    let tasks = json!([
        {"command": "a", "payload": 1},
        {"command": "no such name"},
        {"command": "b", "payload": {"n": 2}, "delaySeconds": 60},
        {"command": "c"},
        {"command": "a", "payload": 5, "idempotencyKey": "own"},
        {"command": "a", "payload": 6, "idempotencyKey": "own"},
    ]);
    let batch = client.header("Idempotency-Key", "call");
    let answered = batch.post("/tasks/batch", json!({"tasks": tasks})).await;
    let body = check_json(&answered, 200);
    let positions = answered.header("codeq-position").expect("positions").split(',').count();
    assert!((1..=3).contains(&positions));
    let results = body["results"].as_array().expect("a list");
    assert_eq!(results.len(), 6);
    assert_eq!(text(&results[0]["task"], "idempotencyKey"), "call#0");
    assert_eq!(
        results[1],
        json!({"error": "invalid command", "code": "invalid_command", "status": 400, "definite": true})
    );
    assert_eq!((text(&results[2]["task"], "state"), &results[2]["task"]["payload"]), ("DELAYED", &json!({"n": 2})));
    assert_eq!(results[3]["task"].get("payload"), Some(&Value::Null), "only in batches: no payload is null");
    assert_eq!(text(&results[4]["task"], "idempotencyKey"), "own");
    assert_eq!((text(&results[5], "code"), &results[5]["taskId"]), ("idempotency_conflict", &results[4]["task"]["id"]));
    assert!(results.iter().all(|item| item.get("replayed").is_none()));

    let again = check_json(&batch.post("/tasks/batch", json!({"tasks": tasks})).await, 200);
    for place in [0, 2, 3, 4] {
        let item = &again["results"][place];
        assert_eq!((&item["task"]["id"], &item["replayed"]), (&results[place]["task"]["id"], &json!(true)));
    }
    assert_eq!(client.depths("a").await, [2, 0, 0, 0]);
    assert_eq!(client.depths("b").await, [0, 1, 0, 0]);
    server.stop().await;
}

/// A claim hands out the task with its lease; with nothing to claim the answer is empty.
#[tokio::test]
async fn a_task_is_claimed() {
    let server = Running::open().await;
    let client = server.client();
    for body in ["", "null", "{}", " \n", r#"{"commands":null,"waitSeconds":0}"#, r#"{"commands":[],"waitSeconds":-3}"#]
    {
        let nothing = client.post_text("/tasks/claim", body).await;
        assert_eq!((nothing.status, &*nothing.body), (204, &b""[..]), "{body:?}");
        assert_eq!((nothing.header("content-type"), nothing.header("cache-control")), (None, Some("no-store")));
        position(&nothing);
    }
    let id = client.create(json!({"command": "mail", "payload": {"to": "x"}})).await;
    let claimed = client.post("/tasks/claim", json!({"commands": ["mail", "mail"], "leaseSeconds": 60.5})).await;
    let task = check_json(&claimed, 200);
    let (created, until, token) = (text(&task, "createdAt"), text(&task, "leaseUntil"), text(&task, "leaseToken"));
    let updated = text(&task, "updatedAt");
    assert_eq!(time(&task, "leaseUntil") - time(&task, "updatedAt"), 60_500);
    assert!(token.len() <= 96);
    assert_eq!(
        claimed.text(),
        format!(
            r#"{{"id":"{id}","command":"mail","payload":{{"to":"x"}},"status":"IN_PROGRESS","lastKnownLocation":"INPROG_SET","workerId":"default","leaseUntil":"{until}","attempts":1,"maxAttempts":5,"tenantId":"default","createdAt":"{created}","updatedAt":"{updated}","state":"LEASED","leaseToken":"{token}","leaseMs":60500}}"#
        )
    );
    let shown = client.task(&id).await;
    assert_eq!((shown.get("leaseToken"), shown.get("leaseMs")), (None, None), "only the claim shows the token");
    assert_eq!((text(&shown, "workerId"), text(&shown, "leaseUntil")), ("default", until));

    // Lengths are clamped to the bounds, and absent ones are the default.
    for (asked, granted) in [
        (json!(null), 300_000),
        (json!(0), 300_000),
        (json!(-1), 300_000),
        (json!(0.001), 50),
        (json!(1e300), 43_200_000),
    ] {
        client.create(json!({"command": "mail", "payload": 1})).await;
        let task = client.post("/tasks/claim", json!({"leaseSeconds": asked})).await.expect(200);
        assert_eq!(task["leaseMs"], granted, "{asked}");
    }
    server.stop().await;
}

/// A batch of claims hands out at most what is asked for and what there is.
#[tokio::test]
async fn tasks_are_claimed_in_batches() {
    let server = Running::open().await;
    let client = server.client();
    let nothing = client.post("/tasks/claim/batch", json!({"count": 10})).await;
    assert_eq!((nothing.status, nothing.body.len()), (204, 0));
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(client.create(json!({"command": "mail", "payload": number})).await);
    }
    let claimed = client.post("/tasks/claim/batch", json!({"count": 3, "commands": ["mail"]})).await;
    let body = check_json(&claimed, 200);
    assert_eq!(body.as_object().map(|body| body.len()), Some(1));
    let shown: Vec<&str> = body["tasks"].as_array().expect("a list").iter().map(|task| text(task, "id")).collect();
    assert_eq!(shown, ids[..3]);
    let rest = client.post("/tasks/claim/batch", json!({"count": 10, "leaseSeconds": 2})).await.expect(200);
    let rest = rest["tasks"].as_array().expect("a list").clone();
    assert_eq!(rest.len(), 2);
    assert!(rest.iter().all(|task| task["leaseMs"] == 2_000 && !text(task, "leaseToken").is_empty()));
    server.stop().await;
}

/// A heartbeat moves the end of the lease away, never nearer.
#[tokio::test]
async fn a_lease_is_extended() {
    let server = Running::open().await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    let claimed = client.post("/tasks/claim", json!({"leaseSeconds": 60})).await.expect(200);
    let path = format!("/tasks/{id}/heartbeat");
    let answered = client.post("/tasks/claim", json!({})).await;
    assert_eq!(answered.status, 204);
    let token = text(&claimed, "leaseToken");
    let answered = client.post(&path, json!({"leaseToken": token, "extendSeconds": 100})).await;
    let body = check_json(&answered, 200);
    let until = text(&body, "leaseUntil");
    assert_eq!(answered.text(), format!(r#"{{"ok":true,"leaseUntil":"{until}","leaseMs":100000}}"#));
    assert_eq!(text(&client.task(&id).await, "leaseUntil"), until);
    position(&answered);
    let shorter = client.post(&path, json!({"extendSeconds": 1})).await.expect(200);
    assert!(shorter["leaseMs"].as_u64().is_some_and(|ms| (90_000..=100_000).contains(&ms)), "{shorter}");
    for body in ["", "null", "{}", r#"{"extendSeconds":0}"#, r#"{"extendSeconds":-7}"#] {
        let longer = client.post_text(&path, body).await.expect(200);
        assert!(longer["leaseMs"].as_u64().is_some_and(|ms| (290_000..=300_000).contains(&ms)), "{body}: {longer}");
    }
    server.stop().await;
}

/// An abandoned task is ready again at once and has lost no attempt.
#[tokio::test]
async fn a_task_is_abandoned() {
    let server = Running::open().await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    for body in ["", "{}"] {
        client.post("/tasks/claim", json!({})).await.expect(200);
        let answered = client.post_text(&format!("/tasks/{id}/abandon"), body).await;
        check_json(&answered, 200);
        assert_eq!(answered.text(), r#"{"status":"requeued"}"#);
        position(&answered);
        let task = client.task(&id).await;
        assert_eq!((text(&task, "state"), task.get("attempts"), task.get("workerId")), ("READY", None, None));
    }
    server.stop().await;
}

/// A nack ends an attempt: the policy's delay, or the one that is given, or none; after the last attempt the task is dead.
#[tokio::test]
async fn a_task_is_given_back_as_failed() {
    let server = Running::open().await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": 1, "maxAttempts": 2})).await;
    let path = format!("/tasks/{id}/nack");
    client.post("/tasks/claim", json!({})).await.expect(200);
    let answered = client.post(&path, json!({"delaySeconds": 0, "reason": "not now"})).await;
    check_json(&answered, 200);
    assert_eq!(answered.text(), r#"{"status":"requeued","delaySeconds":0,"delayMs":0,"attempts":1}"#);
    position(&answered);
    let task = client.task(&id).await;
    assert_eq!((text(&task, "state"), text(&task, "lastError"), task.get("error")), ("READY", "not now", None));
    client.post("/tasks/claim", json!({})).await.expect(200);
    let answered = client.post_text(&path, "").await;
    assert_eq!(answered.text(), r#"{"status":"dlq","delaySeconds":0,"delayMs":0,"attempts":2}"#);
    let task = client.task(&id).await;
    assert_eq!(
        ["status", "lastKnownLocation", "state", "error"].map(|name| text(&task, name)),
        ["FAILED", "DLQ_SET", "DEAD", "MAX_ATTEMPTS"]
    );
    assert_eq!((task.get("lastError"), task["attempts"].as_u64()), (None, Some(2)));
    time(&task, "finishedAt");

    for (body, delay) in [
        ("{}", 100),
        (r#"{"delaySeconds":-1}"#, 100),
        (r#"{"delaySeconds":1.001}"#, 1_001),
        (r#"{"delaySeconds":1e9}"#, 900_000),
    ] {
        let id = client.create(json!({"command": "other", "payload": 1})).await;
        client.post("/tasks/claim", json!({"commands": ["other"]})).await.expect(200);
        let answered = client.post_text(&format!("/tasks/{id}/nack"), body).await.expect(200);
        let seconds = u64::div_ceil(delay, 1_000);
        assert_eq!(
            answered,
            json!({"status": "requeued", "delaySeconds": seconds, "delayMs": delay, "attempts": 1}),
            "{body}"
        );
    }
    server.stop().await;
}

/// A result ends a task, once; what was sent comes back as it was.
#[tokio::test]
async fn a_result_is_stored() {
    let server = Running::open().await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    client.post("/tasks/claim", json!({})).await.expect(200);
    let result = r#"{"n" : 1.0}"#;
    let body = format!(r#"{{"status":"COMPLETED","result":{result},"error":"a remark","workerId":"anybody"}}"#);
    let answered = client.post_text(&format!("/tasks/{id}/result"), &body).await;
    let record = check_json(&answered, 200);
    let at = text(&record, "completedAt");
    time(&record, "completedAt");
    assert_eq!(
        answered.text(),
        format!(
            r#"{{"taskId":"{id}","status":"COMPLETED","result":{result},"error":"a remark","completedAt":"{at}","attempt":1}}"#
        )
    );
    position(&answered);
    let read = client.get(&format!("/v1/codeq/tasks/{id}/result")).await;
    let both = check_json(&read, 200);
    assert_eq!((&both["result"], &both["task"]), (&record, &client.task(&id).await));
    assert_eq!(
        ["status", "lastKnownLocation", "state", "error", "resultKey", "finishedAt"]
            .map(|name| text(&both["task"], name)),
        ["COMPLETED", "NONE", "COMPLETED", "a remark", "codeq:results", at]
    );
    assert_eq!((both["task"].get("workerId"), both["task"].get("leaseUntil")), (None, None));

    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    client.post("/tasks/claim", json!({})).await.expect(200);
    let failed = client.post(&format!("/tasks/{id}/result"), json!({"status": "FAILED", "error": "no"})).await;
    let record = check_json(&failed, 200);
    let at = text(&record, "completedAt");
    assert_eq!(
        failed.text(),
        format!(r#"{{"taskId":"{id}","status":"FAILED","error":"no","completedAt":"{at}","attempt":1}}"#)
    );
    let task = client.task(&id).await;
    assert_eq!(
        (text(&task, "state"), text(&task, "lastKnownLocation"), text(&task, "error")),
        ("FAILED", "NONE", "no")
    );

    // A failure that may be tried again is a nack.
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    client.post("/tasks/claim", json!({})).await.expect(200);
    let retried = json!({"status": "FAILED", "error": "later", "retryable": true, "delaySeconds": 60});
    let answered = client.post(&format!("/tasks/{id}/result"), retried).await;
    check_json(&answered, 200);
    assert_eq!(
        answered.text(),
        format!(r#"{{"taskId":"{id}","status":"requeued","delaySeconds":60,"delayMs":60000,"attempts":1}}"#)
    );
    let task = client.task(&id).await;
    assert_eq!((text(&task, "state"), text(&task, "lastError")), ("DELAYED", "later"));
    server.stop().await;
}

/// A batch of results answers item by item, in order, and of two results for one task the first one counts.
#[tokio::test]
async fn results_are_stored_in_batches() {
    let mut settings = settings();
    settings.node.shards = 3;
    let server = Running::start(settings).await;
    let client = server.client();
    let mut ids = Vec::new();
    for command in ["a", "b", "c", "d"] {
        ids.push(client.create(json!({"command": command, "payload": 1})).await);
        client.post("/tasks/claim", json!({"commands": [command]})).await.expect(200);
    }
    let unknown = ids[0].replace(&ids[0][30..], "ffffff");
    let results = json!([
        {"taskId": ids[0], "status": "COMPLETED", "result": {}},
        {"taskId": "nonsense", "status": "COMPLETED", "result": {}},
        {"taskId": ids[1], "status": "FAILED", "error": "no", "retryable": true, "delaySeconds": 0},
        {"taskId": ids[2], "status": "COMPLETED"},
        {"taskId": ids[3], "status": "FAILED", "error": "no", "result": {"part": 1}},
        {"taskId": ids[0], "status": "FAILED", "error": "no"},
        {"taskId": unknown, "status": "FAILED"},
        {"taskId": ids[2], "status": "COMPLETED", "result": {}, "leaseToken": "not one"},
        {"status": "COMPLETED", "result": {}},
    ]);
    let answered = client.post("/tasks/batch/results", json!({"results": results})).await;
    let body = check_json(&answered, 200);
    assert!(answered.header("codeq-position").is_some());
    let items = body["results"].as_array().expect("a list");
    let refused = |id: &str, status: u16, code: &str, error: &str| json!({"taskId": id, "error": error, "code": code, "status": status, "definite": true});
    assert_eq!(items[0]["taskId"], *ids[0]);
    assert_eq!((&items[0]["result"]["taskId"], text(&items[0]["result"], "status")), (&json!(ids[0]), "COMPLETED"));
    assert_eq!(items[1], refused("nonsense", 404, "task_not_found", "task not found"));
    assert_eq!(
        items[2]["result"],
        json!({"taskId": ids[1], "status": "requeued", "delaySeconds": 0, "delayMs": 0, "attempts": 1})
    );
    assert_eq!(items[3], refused(&ids[2], 400, "invalid_result", "result required when status=COMPLETED"));
    assert_eq!((text(&items[4]["result"], "status"), &items[4]["result"]["result"]), ("FAILED", &json!({"part": 1})));
    assert_eq!(items[5], refused(&ids[0], 409, "not_in_progress", "not-in-progress"));
    assert_eq!(items[6], refused(&unknown, 404, "task_not_found", "task not found"));
    assert_eq!(items[7], refused(&ids[2], 409, "lease_lost", "not-owner"));
    assert_eq!(items[8], refused("", 404, "task_not_found", "task not found"));
    assert_eq!(items.len(), 9);
    assert_eq!(text(&client.task(&ids[2]).await, "state"), "LEASED");
    server.stop().await;
}

/// A waiting task is cancelled at once, a leased one when its worker listens, or by force; what has ended stays as it is.
#[tokio::test]
async fn a_task_is_cancelled() {
    let server = Running::open().await;
    let client = server.client();
    for delay in [0, 60] {
        let id = client.create(json!({"command": "mail", "payload": 1, "delaySeconds": delay})).await;
        for reason in ["not needed", "again"] {
            let answered = client.post(&format!("/tasks/{id}/cancel"), json!({"reason": reason})).await;
            let task = check_json(&answered, 200);
            position(&answered);
            assert_eq!(
                ["status", "lastKnownLocation", "state", "error"].map(|name| text(&task, name)),
                ["FAILED", "NONE", "CANCELLED", "not needed"]
            );
            assert_eq!(task, client.task(&id).await);
        }
        let record = client.get(&format!("/v1/codeq/tasks/{id}/result")).await.expect(200)["result"].clone();
        assert_eq!((text(&record, "status"), text(&record, "error")), ("FAILED", "not needed"));
    }
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    let claimed = client.post("/tasks/claim", json!({})).await.expect(200);
    for _ in 0..2 {
        let asked = client.post_text(&format!("/tasks/{id}/cancel"), "").await;
        let task = check_json(&asked, 202);
        assert_eq!((text(&task, "state"), &task["cancelRequested"]), ("LEASED", &json!(true)));
    }
    let beat = client.post(&format!("/tasks/{id}/heartbeat"), json!({})).await.expect(200);
    assert_eq!(beat["cancelRequested"], true);
    let abandoned = client.post(&format!("/tasks/{id}/abandon"), json!({})).await;
    assert_eq!((abandoned.status, &*abandoned.text()), (200, r#"{"status":"cancelled"}"#));
    assert_eq!(text(&client.task(&id).await, "error"), "CANCELLED");
    let late = json!({"status": "COMPLETED", "result": {}, "leaseToken": claimed["leaseToken"]});
    client.post(&format!("/tasks/{id}/result"), late).await.problem(409, "lease_lost");

    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    client.post("/tasks/claim", json!({})).await.expect(200);
    let forced = client.post(&format!("/tasks/{id}/cancel"), json!({"force": true, "reason": "now"})).await;
    assert_eq!(text(&check_json(&forced, 200), "state"), "CANCELLED");

    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    client.post("/tasks/claim", json!({})).await.expect(200);
    client.post(&format!("/tasks/{id}/result"), json!({"status": "COMPLETED", "result": {}})).await.expect(200);
    client.post(&format!("/tasks/{id}/cancel"), json!({})).await.problem(409, "already_finished");
    server.stop().await;
}

/// A task that did not complete is brought back under its id, with fresh attempts or its old ones.
#[tokio::test]
async fn a_task_is_redriven() {
    let server = Running::open().await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": {"a": 1}, "maxAttempts": 1})).await;
    client.post(&format!("/tasks/{id}/redrive"), json!({})).await.problem(409, "not_finished");
    client.post("/tasks/claim", json!({})).await.expect(200);
    client.post(&format!("/tasks/{id}/nack"), json!({"reason": "broken"})).await.expect(200);
    assert_eq!(client.depths("mail").await, [0, 0, 0, 1]);

    let answered = client.post_text(&format!("/tasks/{id}/redrive"), "").await;
    let task = check_json(&answered, 200);
    position(&answered);
    assert_eq!((text(&task, "id"), text(&task, "state"), &task["payload"]), (&*id, "READY", &json!({"a": 1})));
    assert_eq!((task.get("attempts"), task.get("finishedAt"), task.get("error")), (None, None, None));
    assert_eq!(task, client.task(&id).await);
    assert_eq!(client.depths("mail").await, [1, 0, 0, 0]);
    client.get(&format!("/v1/codeq/tasks/{id}/result")).await.problem(404, "result_not_found");

    client.post("/tasks/claim", json!({})).await.expect(200);
    client.post(&format!("/tasks/{id}/result"), json!({"status": "FAILED", "error": "no"})).await.expect(200);
    let kept = json!({"attempts": "keep", "delaySeconds": 60, "priority": 9});
    let task = client.post(&format!("/tasks/{id}/redrive"), kept).await.expect(200);
    assert_eq!((text(&task, "state"), &task["priority"]), ("DELAYED", &json!(9)));
    assert_eq!((&task["attempts"], &task["maxAttempts"]), (&json!(1), &json!(2)), "one more attempt than used up");
    client.post(&format!("/tasks/{id}/cancel"), json!({})).await.expect(200);
    assert_eq!(text(&client.post(&format!("/tasks/{id}/redrive"), json!({})).await.expect(200), "state"), "READY");
    server.stop().await;
}

/// Reading a result waits for it, up to a limit, and says at once that a task is unknown.
#[tokio::test]
async fn a_result_is_waited_for() {
    let server = Running::open().await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    let path = format!("/v1/codeq/tasks/{id}/result");
    for query in ["", "?waitSeconds=0", "?waitSeconds=-1", "?waitSeconds=soon", "?waitSeconds=0.01", "?waitSeconds="] {
        let problem = client.get(&format!("{path}{query}")).await.problem(404, "result_not_found");
        assert_eq!(text(&problem, "error"), "result not found");
    }
    let unknown = client.get(&format!("{}?waitSeconds=60", path.replace(&id[30..], "ffffff"))).await;
    assert_eq!(text(&unknown.problem(404, "task_not_found"), "error"), "task not found");

    let waiting = tokio::spawn({
        let (client, path) = (client.clone(), path.clone());
        async move { client.get(&format!("{path}?waitSeconds=60")).await }
    });
    client.until_waiting(1).await;
    client.post("/tasks/claim", json!({})).await.expect(200);
    client.post(&format!("/tasks/{id}/result"), json!({"status": "COMPLETED", "result": {"a": 1}})).await.expect(200);
    let answered = waiting.await.expect("the client runs");
    let both = check_json(&answered, 200);
    assert_eq!((text(&both["task"], "state"), &both["result"]["result"]), ("COMPLETED", &json!({"a": 1})));
    position(&answered);
    server.stop().await;
}

/// Reads are linearizable unless they ask for less, and can wait for a position.
#[tokio::test]
async fn reads_say_how_fresh_they_are() {
    let server = Running::open().await;
    let client = server.client();
    let created = client.post("/tasks", json!({"command": "mail", "payload": 1})).await;
    let id = text(&created.expect(202), "id").to_owned();
    let [shard, term, index] = position(&created);
    for path in [format!("/v1/codeq/tasks/{id}"), "/v1/codeq/admin/queues/mail".into()] {
        for query in ["", "?consistency=linearizable", "?consistency=leader"] {
            let read = client.get(&format!("{path}{query}")).await;
            check_json(&read, 200);
            assert_eq!((read.header("codeq-consistency"), read.header("codeq-last-contact-ms")), (None, None));
            assert!(position(&read)[2] >= index);
        }
        let reached = format!("{shard}:{term}:{index}");
        for read in [
            client.get(&format!("{path}?consistency=stale")).await,
            client.get(&format!("{path}?consistency=stale&maxStaleness=0ms")).await,
            client.get(&format!("{path}?minPosition={reached}")).await,
            client.header("Codeq-Min-Position", &reached).get(&path).await,
            client.header("X-CodeQ-Consistency", "stale").get(&path).await,
        ] {
            check_json(&read, 200);
            assert_eq!(
                (read.header("codeq-consistency"), read.header("codeq-last-contact-ms")),
                (Some("stale"), Some("0"))
            );
        }
        // The query wins over the header.
        let read = client.header("Codeq-Consistency", "stale").get(&format!("{path}?consistency=leader")).await;
        assert_eq!(read.header("codeq-consistency"), None);
        let far = format!("{path}?minPosition=0:{term}:{}&wait=10ms", index + 1_000_000);
        client.get(&far).await.problem(503, "too_stale");
        for (query, code) in [
            ("consistency=none", "invalid_consistency"),
            ("consistency=", "invalid_consistency"),
            ("maxStaleness=2", "invalid_field"),
            ("minPosition=1:1:1", "invalid_position"),
            ("minPosition=latest", "invalid_position"),
            ("minPosition=0:1", "invalid_position"),
            ("minPosition=0:1:99999999999999999999999", "invalid_position"),
            ("wait=ever", "invalid_field"),
        ] {
            let problem = client.get(&format!("{path}?{query}")).await.problem(400, code);
            assert_eq!(problem["field"], query.split_once('=').expect("a parameter").0);
        }
    }
    server.stop().await;
}

/// The counts of a queue are always there, zeros for one that nobody has used.
#[tokio::test]
async fn a_queue_is_counted() {
    let server = Running::open().await;
    let client = server.client();
    for attempts in [1, 5, 5, 5, 5] {
        client.create(json!({"command": "mail", "payload": 1, "maxAttempts": attempts})).await;
    }
    client.create(json!({"command": "mail", "payload": 1, "delaySeconds": 60})).await;
    let dead = client.post("/tasks/claim", json!({})).await.expect(200);
    client.post(&format!("/tasks/{}/nack", text(&dead, "id")), json!({})).await.expect(200);
    client.post("/tasks/claim", json!({})).await.expect(200);
    let read = client.get("/v1/codeq/admin/queues/mail").await;
    check_json(&read, 200);
    assert_eq!(read.text(), r#"{"command":"mail","ready":3,"delayed":1,"inProgress":1,"dlq":1}"#);
    position(&read);
    let unused = client.get("/v1/codeq/admin/queues/Mail").await;
    assert_eq!(unused.text(), r#"{"command":"Mail","ready":0,"delayed":0,"inProgress":0,"dlq":0}"#);
    for bad in ["a%20b", "%00", "a%2Fb", "%C3%A4", &"x".repeat(129)] {
        client.get(&format!("/v1/codeq/admin/queues/{bad}")).await.problem(400, "invalid_command");
    }
    server.stop().await;
}

/// `HEAD` is `GET` without the body; one trailing slash does not matter; ids are compared as numbers.
#[tokio::test]
async fn paths_are_read_leniently_where_the_contract_says_so() {
    let server = Running::open().await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    let path = format!("/v1/codeq/tasks/{id}");
    let whole = client.get(&path).await;
    for path in [path.clone(), "/healthz".into(), "/v1/codeq/raft/status".into()] {
        let (head, get) = (client.send("HEAD", &path, None).await, client.get(&path).await);
        assert_eq!((head.status, head.header("content-length")), (200, get.header("content-length")));
        assert_eq!(head.header("content-type"), get.header("content-type"));
    }
    for other in
        [format!("{path}/"), format!("{path}?"), path.to_uppercase().replace("/V1/CODEQ/TASKS", "/v1/codeq/tasks")]
    {
        assert_eq!(client.get(&other).await.text(), whole.text(), "{other}");
    }
    // Where a fixed segment is meant by another method, it is an id.
    client.get("/v1/codeq/tasks/claim").await.problem(404, "task_not_found");
    client.get("/v1/codeq/tasks/batch").await.problem(404, "task_not_found");
    server.stop().await;
}

/// The id of a request comes back if it is printable, and every answer has one.
#[tokio::test]
async fn a_request_has_an_id() {
    let server = Running::open().await;
    let client = server.client();
    for id in ["order 7/ü".replace('ü', "u"), "x".repeat(128)] {
        let client = client.header("X-Request-Id", &id);
        for path in ["/healthz", "/nowhere", "/v1/codeq/tasks/unknown"] {
            assert_eq!(client.get(path).await.header("x-request-id"), Some(&*id));
        }
    }
    let mut drawn = Vec::new();
    for id in ["".to_owned(), "x".repeat(129), "a\tb".into(), "é".into()] {
        let answered = client.header("X-Request-Id", &id).get("/healthz").await;
        drawn.push(answered.header("x-request-id").expect("an id").to_owned());
    }
    assert!(drawn.iter().all(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())), "{drawn:?}");
    drawn.sort();
    drawn.dedup();
    assert_eq!(drawn.len(), 4);
    server.stop().await;
}

/// Requests follow each other on one connection, also when they are sent without waiting.
#[tokio::test]
async fn a_connection_is_kept() {
    let server = Running::open().await;
    let client = server.client();
    let mut connection = client.connect().await;
    let create = client.request("POST", "/v1/codeq/tasks", Some(br#"{"command":"mail","payload":1}"#));
    for _ in 0..3 {
        connection.write(&create).await;
        connection.answer().await.expect(202);
    }
    let claim = client.request("POST", "/v1/codeq/tasks/claim", None);
    connection.write(&[&*create, &*claim, &*claim, &*client.request("GET", "/nowhere", None)].concat()).await;
    for status in [202, 200, 200, 404] {
        connection.answer().await.expect(status);
    }
    // An answer does not wait for what follows its request: half of another one, an empty line, or one that waits itself.
    let get = client.request("GET", "/healthz", None);
    for (rest, whole) in [(&get[10..], [&*get, &get[..10]].concat()), (&get[..], [&*get, b"\r\n"].concat())] {
        connection.write(&whole).await;
        assert_eq!(connection.answer().await.status, 200);
        connection.write(rest).await;
        assert_eq!(connection.answer().await.status, 200);
    }
    let wait = client.request("POST", "/v1/codeq/tasks/claim", Some(br#"{"waitSeconds":30,"commands":["later"]}"#));
    connection.write(&[&*get, &*wait, &*get].concat()).await;
    assert_eq!(connection.answer().await.status, 200);
    client.create(json!({"command": "later", "payload": 1})).await;
    connection.answer().await.expect(200);
    assert_eq!(connection.answer().await.status, 200);
    let last = client.header("Connection", "close").request("GET", "/healthz", None);
    connection.write(&last).await;
    assert_eq!(connection.answer().await.status, 200);
    connection.closed().await;
    server.stop().await;
}
