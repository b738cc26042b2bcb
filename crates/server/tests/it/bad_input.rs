//! Whatever is sent, it is refused with a stable code, nothing is stored, nothing is logged as an error, and the server goes on.

use base::Millis;
use serde_json::{Value, json};

use crate::client::{Client, text};
use crate::server::{Running, settings};

/// A server with a task that is leased and one that waits, and what it has written so far: refusals may not add to that.
struct Target {
    server: Running,
    client: Client,
    /// The leased task.
    id: String,
    entries: f64,
}

const ENTRIES: &str = "codeq_log_entries_total";

impl Target {
    async fn start(settings: server::settings::Settings) -> Target {
        let server = Running::start(settings).await;
        let client = server.client();
        let id = client.create(json!({"command": "mail", "payload": 1})).await;
        client.create(json!({"command": "mail", "payload": 1})).await;
        client.post("/tasks/claim", json!({})).await.expect(200);
        let entries = client.metric(ENTRIES).await;
        Target { server, client, id, entries }
    }

    /// The paths under test name the leased task as `{id}`.
    async fn post(&self, path: &str, body: &[u8]) -> crate::client::Response {
        let path = format!("/v1/codeq{}", path.replace("{id}", &self.id));
        self.client.send("POST", &path, Some(body)).await
    }

    async fn stop(self) {
        assert_eq!(self.client.depths("mail").await, [1, 0, 1, 0]);
        assert_eq!(self.client.metric(ENTRIES).await, self.entries, "nothing was written");
        assert_eq!(self.client.get("/livez").await.status, 200);
        self.server.stop().await;
    }
}

/// What a field of a body must be.
#[derive(Clone, Copy)]
enum Kind {
    Text,
    Seconds,
    Integer,
    Flag,
    Texts,
    Objects,
    Object,
}

impl Kind {
    /// What it must not be.
    fn others(self) -> Vec<Value> {
        let common = vec![json!({"a": 1}), json!([{"a": 1}]), json!(true), json!("1"), json!(1)];
        let is_other = |value: &Value| match self {
            Kind::Text => !value.is_string(),
            Kind::Seconds | Kind::Integer => !value.is_number(),
            Kind::Flag => !value.is_boolean(),
            Kind::Texts => true,
            Kind::Objects => !value.is_array(),
            Kind::Object => !value.is_object(),
        };
        let mut others: Vec<Value> = common.into_iter().filter(is_other).collect();
        others.extend(match self {
            Kind::Seconds => vec![json!(0.0001)],
            Kind::Integer => vec![json!(1.5)],
            Kind::Texts => vec![json!([1]), json!([null]), json!([["a"]]), json!(["a", {}])],
            Kind::Objects => vec![json!([1]), json!([null]), json!([[]]), json!(["a"])],
            Kind::Text | Kind::Flag | Kind::Object => vec![],
        });
        others
    }
}

/// Every route with a body: a body that it takes, and its fields.
fn routes() -> Vec<(&'static str, Value, &'static [(&'static str, Kind)])> {
    use Kind::{Flag, Integer, Object, Objects, Seconds, Text, Texts};
    const CREATE: &[(&str, Kind)] = &[
        ("command", Text),
        ("runAt", Text),
        ("delaySeconds", Seconds),
        ("webhook", Text),
        ("idempotencyKey", Text),
        ("priority", Integer),
        ("maxAttempts", Integer),
    ];
    const CLAIM: &[(&str, Kind)] =
        &[("commands", Texts), ("leaseSeconds", Seconds), ("waitSeconds", Seconds), ("order", Text)];
    const CLAIM_BATCH: &[(&str, Kind)] = &[
        ("commands", Texts),
        ("leaseSeconds", Seconds),
        ("waitSeconds", Seconds),
        ("order", Text),
        ("count", Integer),
    ];
    const RESULT: &[(&str, Kind)] = &[
        ("status", Text),
        ("result", Object),
        ("error", Text),
        ("leaseToken", Text),
        ("retryable", Flag),
        ("delaySeconds", Seconds),
    ];
    vec![
        ("/tasks", json!({"command": "mail", "payload": 1}), CREATE),
        ("/tasks/batch", json!({"tasks": [{"command": "mail", "payload": 1}]}), &[("tasks", Objects)]),
        ("/tasks/claim", json!({}), CLAIM),
        ("/tasks/claim/batch", json!({"count": 1}), CLAIM_BATCH),
        ("/tasks/{id}/heartbeat", json!({}), &[("extendSeconds", Seconds), ("leaseToken", Text)]),
        ("/tasks/{id}/abandon", json!({}), &[("leaseToken", Text)]),
        ("/tasks/{id}/nack", json!({}), &[("delaySeconds", Seconds), ("reason", Text), ("leaseToken", Text)]),
        ("/tasks/{id}/result", json!({"status": "COMPLETED", "result": {}}), RESULT),
        ("/tasks/batch/results", json!({"results": []}), &[("results", Objects)]),
        ("/tasks/{id}/cancel", json!({}), &[("reason", Text), ("force", Flag)]),
        ("/tasks/{id}/redrive", json!({}), &[("attempts", Text), ("delaySeconds", Seconds), ("priority", Integer)]),
    ]
}

/// A field of the wrong type makes the whole body unusable, on every route and in every element of a batch.
#[tokio::test]
async fn wrong_types_are_refused() {
    let target = Target::start(settings()).await;
    for (path, body, fields) in routes() {
        for (field, kind) in fields {
            for value in kind.others() {
                let mut body = body.clone();
                body[*field] = value;
                let problem = target.post(path, body.to_string().as_bytes()).await.problem(400, "invalid_body");
                let error = if path == "/tasks/{id}/result" {
                    ["invalid request body", "invalid body"]
                } else {
                    ["invalid body"; 2]
                };
                assert!(error.contains(&text(&problem, "error")), "{path}: {problem}");
            }
        }
    }
    for (field, kind) in routes()[0].2 {
        for value in kind.others() {
            let mut task = json!({"command": "mail", "payload": 1});
            task[*field] = value;
            let body = json!({"tasks": [{"command": "mail", "payload": 1}, task]});
            target.post("/tasks/batch", body.to_string().as_bytes()).await.problem(400, "invalid_body");
        }
    }
    for (field, kind) in routes()[7].2.iter().filter(|(field, _)| *field != "result") {
        for value in kind.others() {
            let mut result = json!({"taskId": target.id, "status": "COMPLETED", "result": {}});
            result[*field] = value;
            let body = json!({"results": [result]});
            target.post("/tasks/batch/results", body.to_string().as_bytes()).await.problem(400, "invalid_body");
        }
    }
    target.stop().await;
}

/// What is no JSON in UTF-8, nested too deep, or no object, is refused on every route; so is nothing at all where fields are required.
#[tokio::test]
async fn malformed_bodies_are_refused() {
    let target = Target::start(settings()).await;
    let deep = |levels: usize| [b"{\"payload\":".repeat(levels), b"1".to_vec(), b"}".repeat(levels)].concat();
    let bodies: Vec<Vec<u8>> = [
        &b"{"[..],
        b"}",
        b"[]",
        b"[{}]",
        b"\"text\"",
        b"0",
        b"false",
        b"nul",
        b"{} {}",
        b"{},",
        b"{'command':\"mail\"}",
        b"{command:\"mail\"}",
        b"{\"a\":1,}",
        b"{\"a\":01}",
        b"{\"a\":+1}",
        b"{\"a\":.5}",
        b"{\"a\":1e}",
        b"{\"a\":NaN}",
        b"{\"a\":tru}",
        b"{\"a\":\"\\x\"}",
        b"{\"a\":\"\\u12\"}",
        b"{\"a\":\"\n\"}",
        b"{\"a\":\"\0\"}",
        b"{\"a\":\"open}",
        b"{\"a\"}",
        b"{\"a\":1 \"b\":2}",
        b"{/*no*/}",
        b"\xef\xbb\xbf{}",
        b"{\"a\":\"\xff\"}",
        b"{\"a\":\"\xc3\"}",
        b"{\"a\":\"\xed\xa0\x80\"}",
        b"{\"\xff\":1}",
        b"\xff\xfe{\0}\0",
        b"\0",
        b"%7B%7D",
    ]
    .into_iter()
    .map(<[u8]>::to_vec)
    .chain([deep(129), b"[".repeat(50_000), b"{\"a\":".repeat(12_000), b"\"".to_vec()])
    .collect();
    for (path, body, _) in routes() {
        for bad in &bodies {
            let problem = target.post(path, bad).await.problem(400, "invalid_body");
            assert!(!text(&problem, "detail").contains('\u{fffd}'), "{problem}");
        }
        if body.as_object().is_some_and(|fields| !fields.is_empty()) {
            for nothing in [&b""[..], b" \r\n\t"] {
                target.post(path, nothing).await.problem(400, "invalid_body");
            }
            for nothing in [&b"null"[..], b"{}"] {
                let code = if path == "/tasks/{id}/result" { "invalid_result" } else { "invalid_body" };
                target.post(path, nothing).await.problem(400, code);
            }
        }
    }
    // What is just deep enough is taken, brackets in strings do not count, and of a field that comes twice the last one does.
    let taken = |payload: &str| format!(r#"{{"command":"other","payload":{payload}}}"#);
    let nested = format!("{}{}", "[".repeat(127), "]".repeat(127));
    for payload in [&nested, &format!("\"{}\"", "[{".repeat(500))] {
        target.post("/tasks", taken(payload).as_bytes()).await.expect(202);
    }
    target.post("/tasks", taken(&format!("[{nested}]")).as_bytes()).await.problem(400, "invalid_body");
    let twice = br#"{"command":"mail","payload":1,"command":"other","payload":{"last":true}}"#;
    assert_eq!(target.post("/tasks", twice).await.expect(202)["payload"], json!({"last": true}));
    assert_eq!(target.client.depths("other").await, [3, 0, 0, 0]);
    let entries = target.entries + 3.0;
    Target { entries, ..target }.stop().await;
}

/// Values out of range, each with the code of its field.
#[tokio::test]
async fn values_out_of_range_are_refused() {
    let target = Target::start(settings()).await;
    let create = |field: &str, value: Value| {
        let mut body = json!({"command": "mail", "payload": 1});
        body[field] = value;
        ("/tasks", body)
    };
    let result = |field: &str, value: Value| {
        let mut body = json!({"status": "COMPLETED", "result": {}});
        body[field] = value;
        ("/tasks/{id}/result", body)
    };
    let long = |length: usize| "x".repeat(length);
    let far = "9999-12-31T23:59:59Z";
    let table: Vec<((&str, Value), u16, &str, Option<&str>)> = vec![
        (create("command", json!(null)), 400, "invalid_body", Some("command")),
        (create("command", json!("")), 400, "invalid_body", Some("command")),
        (create("command", json!("a b")), 400, "invalid_command", Some("command")),
        (create("command", json!("a/b")), 400, "invalid_command", Some("command")),
        (create("command", json!("*")), 400, "invalid_command", Some("command")),
        (create("command", json!("a\u{0}")), 400, "invalid_command", Some("command")),
        (create("command", json!("ä")), 400, "invalid_command", Some("command")),
        (create("command", json!(long(129))), 400, "invalid_command", Some("command")),
        (create("payload", json!(null)), 400, "invalid_body", Some("payload")),
        (create("payload", json!(long(4 << 10))), 413, "payload_too_large", Some("payload")),
        (create("runAt", json!("tomorrow")), 400, "invalid_run_at", Some("runAt")),
        (create("runAt", json!("2026-13-01T00:00:00Z")), 400, "invalid_run_at", Some("runAt")),
        (create("runAt", json!("2026-02-30T00:00:00Z")), 400, "invalid_run_at", Some("runAt")),
        (create("runAt", json!("2026-01-01T00:00:00")), 400, "invalid_run_at", Some("runAt")),
        (create("runAt", json!("\u{0}")), 400, "invalid_run_at", Some("runAt")),
        (create("runAt", json!(far)), 400, "invalid_run_at", Some("runAt")),
        (create("delaySeconds", json!(-1)), 400, "invalid_delay", Some("delaySeconds")),
        (create("delaySeconds", json!(-0.001)), 400, "invalid_delay", Some("delaySeconds")),
        (create("delaySeconds", json!(315_360_000.001)), 400, "invalid_delay", Some("delaySeconds")),
        (create("delaySeconds", json!(u64::MAX)), 400, "invalid_delay", Some("delaySeconds")),
        (create("delaySeconds", json!(1e300)), 400, "invalid_delay", Some("delaySeconds")),
        (create("delaySeconds", json!(-1e300)), 400, "invalid_delay", Some("delaySeconds")),
        (create("webhook", json!("ftp://example.com")), 400, "invalid_webhook_url", Some("webhook")),
        (create("webhook", json!("//example.com")), 400, "invalid_webhook_url", Some("webhook")),
        (create("webhook", json!("http://")), 400, "invalid_webhook_url", Some("webhook")),
        (create("webhook", json!("http://:80/")), 400, "invalid_webhook_url", Some("webhook")),
        (create("webhook", json!("http://example.com:port/")), 400, "invalid_webhook_url", Some("webhook")),
        (create("webhook", json!("http://user:pw@example.com")), 400, "invalid_webhook_url", Some("webhook")),
        (create("webhook", json!("http://a b/")), 400, "invalid_webhook_url", Some("webhook")),
        (create("webhook", json!("http://a/\r\nX: y")), 400, "invalid_webhook_url", Some("webhook")),
        (create("webhook", json!("http://a/\u{0}")), 400, "invalid_webhook_url", Some("webhook")),
        (create("webhook", json!(format!("http://a/{}", long(2048)))), 400, "invalid_webhook_url", Some("webhook")),
        (create("idempotencyKey", json!(long(257))), 400, "invalid_idempotency_key", Some("idempotencyKey")),
        (("/tasks/batch", json!({"tasks": []})), 400, "invalid_body", Some("tasks")),
        (("/tasks/batch", json!({"tasks": null})), 400, "invalid_body", Some("tasks")),
        (("/tasks/batch", json!({"tasks": vec![json!({}); 101]})), 400, "batch_too_large", None),
        (("/tasks/claim", json!({"commands": [""]})), 400, "invalid_command", Some("commands[0]")),
        (("/tasks/claim", json!({"commands": ["a", "*"]})), 400, "invalid_command", Some("commands[1]")),
        (("/tasks/claim", json!({"commands": [long(129)]})), 400, "invalid_command", Some("commands[0]")),
        (("/tasks/claim", json!({"commands": vec!["a"; 101]})), 400, "invalid_field", Some("commands")),
        (("/tasks/claim", json!({"order": "random"})), 400, "invalid_field", Some("order")),
        (("/tasks/claim", json!({"order": "PRIORITY", "commands": ["a"]})), 400, "invalid_field", Some("order")),
        (("/tasks/claim/batch", json!({"count": 0})), 400, "invalid_body", Some("count")),
        (("/tasks/claim/batch", json!({"count": -1})), 400, "invalid_body", Some("count")),
        (("/tasks/claim/batch", json!({"count": null})), 400, "invalid_body", Some("count")),
        (("/tasks/claim/batch", json!({"count": 11})), 400, "batch_too_large", None),
        (("/tasks/claim/batch", json!({"count": u64::MAX})), 400, "batch_too_large", None),
        (("/tasks/claim/batch", json!({"count": 1, "commands": ["a b"]})), 400, "invalid_command", Some("commands[0]")),
        (("/tasks/{id}/heartbeat", json!({"leaseToken": "no token"})), 409, "lease_lost", None),
        (("/tasks/{id}/heartbeat", json!({"leaseToken": "\u{0}"})), 409, "lease_lost", None),
        (("/tasks/{id}/abandon", json!({"leaseToken": long(9_000)})), 409, "lease_lost", None),
        (result("status", json!(null)), 400, "invalid_result", Some("status")),
        (result("status", json!("completed")), 400, "invalid_result", Some("status")),
        (result("status", json!("CANCELLED")), 400, "invalid_result", Some("status")),
        (result("result", json!(null)), 400, "invalid_result", Some("result")),
        (result("result", json!({"a": long(4 << 10)})), 413, "result_too_large", Some("result")),
        (result("status", json!("FAILED")), 400, "invalid_result", Some("error")),
        (result("retryable", json!(true)), 400, "invalid_field", Some("retryable")),
        (("/tasks/{id}/result", json!({"status": "FAILED", "error": " \t"})), 400, "invalid_result", Some("error")),
        (("/tasks/batch/results", json!({"results": []})), 400, "invalid_body", Some("results")),
        (("/tasks/batch/results", json!({"results": vec![json!({}); 101]})), 400, "batch_too_large", None),
        (("/tasks/{id}/cancel", json!({"unknown": 1})), 400, "invalid_field", Some("unknown")),
        (("/tasks/{id}/redrive", json!({"unknown": 1})), 400, "invalid_field", Some("unknown")),
        (("/tasks/{id}/redrive", json!({"attempts": "all"})), 400, "invalid_field", Some("attempts")),
        (("/tasks/{id}/redrive", json!({"delaySeconds": -1})), 400, "invalid_delay", Some("delaySeconds")),
        (("/tasks/{id}/redrive", json!({"delaySeconds": 1e300})), 400, "invalid_delay", Some("delaySeconds")),
    ];
    let entries = target.client.metric(ENTRIES).await;
    let mut lost = 0.0;
    for ((path, body), status, code, field) in table {
        let problem = target.post(path, body.to_string().as_bytes()).await.problem(status, code);
        assert_eq!(problem.get("field").and_then(Value::as_str), field, "{problem}");
        // Whether a lease is lost is decided in the log.
        lost += if code == "lease_lost" { 1.0 } else { 0.0 };
    }
    assert_eq!(target.client.metric(ENTRIES).await - entries, lost);
    Target { entries: entries + lost, ..target }.stop().await;
}

/// The checks of a creation are made in the order of the contract: the first thing that is wrong is named.
#[tokio::test]
async fn the_first_wrong_field_is_named() {
    let target = Target::start(settings()).await;
    let order = [
        ("command", json!("a b"), "invalid_command"),
        ("payload", json!(null), "invalid_body"),
        ("runAt", json!("soon"), "invalid_run_at"),
        ("delaySeconds", json!(-1), "invalid_delay"),
        ("webhook", json!("x"), "invalid_webhook_url"),
        ("idempotencyKey", json!("k".repeat(300)), "invalid_idempotency_key"),
    ];
    for first in 0..order.len() {
        let mut body = json!({"command": "mail", "payload": 1});
        for (field, value, _) in &order[first..] {
            body[*field] = value.clone();
        }
        let problem = target.post("/tasks", body.to_string().as_bytes()).await.problem(400, order[first].2);
        assert_eq!(text(&problem, "field"), order[first].0);
    }
    target.stop().await;
}

/// Absurd lengths, waits and numbers that are in no way wrong are clamped, and overflow nothing.
#[tokio::test]
async fn absurd_values_are_clamped() {
    let server = Running::open().await;
    let client = server.client();
    for absurd in ["-1e300", "-1", "9223372036854775807", "18446744073709551615", "-99999999999999999999", "1e300"] {
        let id = client.create(json!({"command": "mail", "payload": 1})).await;
        // A wait of that length is not waited for, because there is something.
        let claim = format!(r#"{{"leaseSeconds":{absurd},"waitSeconds":{absurd},"commands":["mail"]}}"#);
        let task = client.post_text("/tasks/claim", &claim).await.expect(200);
        let ms = task["leaseMs"].as_u64().expect("a length");
        assert!([300_000, 43_200_000].contains(&ms), "{absurd}: {ms}");
        let path = format!("/tasks/{id}");
        let beat = format!(r#"{{"extendSeconds":{absurd}}}"#);
        let ms = client.post_text(&format!("{path}/heartbeat"), &beat).await.expect(200)["leaseMs"].clone();
        assert!(ms.as_u64() <= Some(43_200_000), "{absurd}: {ms}");
        let nack = format!(r#"{{"delaySeconds":{absurd},"reason":"x"}}"#);
        let ms = client.post_text(&format!("{path}/nack"), &nack).await.expect(200)["delayMs"].clone();
        assert!([json!(100), json!(900_000)].contains(&ms), "{absurd}: {ms}");
        client.post(&format!("{path}/cancel"), json!({})).await.expect(200);
        client.get(&format!("/v1/codeq{path}/result?waitSeconds={absurd}")).await.expect(200);
    }
    // A failure report is never lost for its length, and comes back cut at a character.
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    client.post("/tasks/claim", json!({})).await.expect(200);
    let reason = format!("x{}", "é".repeat(10_000));
    client.post(&format!("/tasks/{id}/nack"), json!({"reason": reason})).await.expect(200);
    let kept = client.task(&id).await["lastError"].as_str().expect("a text").to_owned();
    assert!(reason.starts_with(&kept) && kept.len() == (16 << 10) - 1, "{}", kept.len());
    server.stop().await;
}

/// Ids that are none are unknown tasks, whatever they look like, and a foreign cluster's id is one of them.
#[tokio::test]
async fn ids_that_are_none_are_unknown() {
    let target = Target::start(settings()).await;
    let foreign = format!("{}{}", if target.id.starts_with('0') { "1" } else { "0" }, &target.id[1..]);
    let other_shard = target.id.replacen("-8000-", "-8001-", 1);
    for id in [
        "x",
        "%00",
        "..%2F..",
        "%F0%9F%A6%80",
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        &target.id[1..],
        &format!("{}0", target.id),
        &foreign,
        &other_shard,
        &"a".repeat(7_000),
        "'%20OR%201=1",
    ] {
        let path = format!("/v1/codeq/tasks/{id}");
        let lookups = [("", "not found"), ("/result?waitSeconds=60", "task not found")];
        for (rest, error) in lookups {
            let problem = target.client.get(&format!("{path}{rest}")).await.problem(404, "task_not_found");
            assert_eq!(text(&problem, "error"), error, "{id}");
        }
        for (call, body, error) in [
            ("heartbeat", json!({}), "not-found"),
            ("abandon", json!({}), "not-found"),
            ("nack", json!({}), "not-found"),
            ("result", json!({"status": "COMPLETED", "result": {}}), "task not found"),
            ("result", json!({"status": "nonsense"}), "task not found"),
            ("cancel", json!({}), "not found"),
            ("redrive", json!({}), "not found"),
        ] {
            let body = body.to_string();
            let answered = target.client.send("POST", &format!("{path}/{call}"), Some(body.as_bytes())).await;
            assert_eq!(text(&answered.problem(404, "task_not_found"), "error"), error, "{call} {id}");
        }
    }
    target.stop().await;
}

/// Unknown paths are 404, known ones with another method 405 with the methods they have.
#[tokio::test]
async fn unknown_paths_and_methods_are_refused() {
    let target = Target::start(settings()).await;
    for path in [
        "/favicon.ico",
        "/v1",
        "/v1/codeq",
        "/v1/codeq/",
        "/v1/codeq/task",
        "/v1/codeq/Tasks/claim",
        "/v1/codeq/tasks//claim",
        "/v1/codeq/tasks/claim//",
        "/v1/codeq//tasks",
        "/v1/codeq/tasks/x/y",
        "/v1/codeq/tasks/x/result/y",
        "/v1/codeq/tasks/%",
        "/v1/codeq/tasks/%2",
        "/v1/codeq/tasks/%zz",
        "/v1/codeq/tasks/%ff",
        "/v1/codeq/tasks/%c3%28",
        "/v1/codeq/./tasks",
        "/v1/codeq/tasks/../tasks",
        "/v1%2Fcodeq/tasks",
        "/v1/codeq/raft",
        "/metrics/x",
        "/healthz/x",
        "*",
        "/../../etc/passwd",
        &format!("/{}", "x".repeat(8_000)),
    ] {
        for method in ["GET", "POST", "DELETE"] {
            let problem = target.client.send(method, path, None).await.problem(404, "route_not_found");
            assert!(text(&problem, "detail").len() < 300, "the path is not echoed at length");
        }
    }
    let id = &target.id;
    for (path, allow) in [
        ("/v1/codeq/tasks".into(), "GET, HEAD, POST"),
        ("/v1/codeq/tasks/".into(), "GET, HEAD, POST"),
        ("/v1/codeq/dlq".into(), "GET, HEAD"),
        ("/v1/codeq/dlq/groups".into(), "GET, HEAD"),
        ("/v1/codeq/queues".into(), "GET, HEAD"),
        ("/v1/codeq/queues/mail".into(), "GET, HEAD"),
        ("/v1/codeq/queues/mail/pause".into(), "POST"),
        ("/v1/codeq/queues/mail/resume".into(), "POST"),
        ("/v1/codeq/queues/mail/purge".into(), "POST"),
        ("/v1/codeq/dlq/redrive".into(), "POST"),
        ("/v1/codeq/dlq/purge".into(), "POST"),
        ("/v1/codeq/operations".into(), "GET, HEAD"),
        ("/v1/codeq/operations/op-1".into(), "GET, HEAD"),
        ("/v1/codeq/operations/op-1/stop".into(), "POST"),
        ("/v1/codeq/operations/op-1/resume".into(), "POST"),
        ("/v1/codeq/events".into(), "GET, HEAD"),
        (format!("/v1/codeq/tasks/{id}/events"), "GET, HEAD"),
        (format!("/v1/codeq/tasks/{id}/history"), "GET, HEAD"),
        ("/v1/codeq/tasks/cancel".into(), "GET, HEAD, POST"),
        ("/v1/codeq/tasks/batch/heartbeat".into(), "POST"),
        ("/v1/codeq/whoami".into(), "GET, HEAD"),
        ("/v1/codeq/tasks/batch".into(), "GET, HEAD, POST"),
        ("/v1/codeq/tasks/claim".into(), "GET, HEAD, POST"),
        ("/v1/codeq/tasks/claim/batch".into(), "POST"),
        ("/v1/codeq/tasks/batch/results".into(), "POST"),
        (format!("/v1/codeq/tasks/{id}"), "GET, HEAD, PATCH"),
        (format!("/v1/codeq/tasks/{id}/heartbeat"), "POST"),
        (format!("/v1/codeq/tasks/{id}/abandon"), "POST"),
        (format!("/v1/codeq/tasks/{id}/nack"), "POST"),
        (format!("/v1/codeq/tasks/{id}/result"), "GET, HEAD, POST"),
        (format!("/v1/codeq/tasks/{id}/cancel"), "POST"),
        (format!("/v1/codeq/tasks/{id}/redrive"), "POST"),
        ("/v1/codeq/admin/queues/mail".into(), "GET, HEAD"),
        ("/v1/codeq/raft/status".into(), "GET, HEAD"),
        ("/healthz".into(), "GET, HEAD"),
        ("/livez".into(), "GET, HEAD"),
        ("/readyz".into(), "GET, HEAD"),
        ("/metrics".into(), "GET, HEAD"),
    ] {
        let others = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW", "get"];
        for method in others.iter().filter(|method| !allow.split(", ").any(|allowed| allowed == **method)) {
            let answered = target.client.send(method, &path, None).await;
            answered.problem(405, "method_not_allowed");
            assert_eq!(answered.header("allow"), Some(allow), "{method} {path}");
        }
        if !allow.contains("GET") {
            let answered = target.client.send("HEAD", &path, None).await;
            assert_eq!((answered.status, answered.header("allow")), (405, Some(allow)), "{path}");
        }
    }
    // Headers that ask for another method ask nobody.
    let tricky = target.client.header("X-HTTP-Method-Override", "GET");
    tricky.send("DELETE", &format!("/v1/codeq/tasks/{id}"), None).await.problem(405, "method_not_allowed");
    target.stop().await;
}

/// Bodies over the limit are refused by their declared length, or as soon as there is too much; compressed ones always.
#[tokio::test]
async fn large_and_compressed_bodies_are_refused() {
    let target = Target::start(settings()).await;
    let client = &target.client;
    let most = settings().limits.body_bytes_max;
    let head = |more: &str| format!("POST /v1/codeq/tasks HTTP/1.1\r\nHost: localhost\r\n{more}\r\n\r\n");
    for declared in [most + 1, 1 << 50] {
        for sent in ["", "{", &" ".repeat(3 * most / 2)] {
            let bytes = head(&format!("Content-Length: {declared}")) + sent;
            client.raw(bytes.as_bytes()).await.problem(413, "body_too_large");
        }
    }
    let answered = client.raw(head(&format!("Expect: 100-continue\r\nContent-Length: {}", most + 1)).as_bytes()).await;
    answered.problem(413, "body_too_large");
    let chunk = [format!("{:x}\r\n", 1 << 10).into_bytes(), vec![b' '; 1 << 10], b"\r\n".to_vec()].concat();
    let chunked = [head("Transfer-Encoding: chunked").into_bytes(), chunk.repeat(most / 1024 + 1)].concat();
    client.raw(&chunked).await.problem(413, "body_too_large");
    let blank = vec![b' '; most];
    client.send("POST", "/v1/codeq/tasks", Some(&blank)).await.problem(400, "invalid_body");
    for encoding in ["gzip", "br", "identity, gzip", "x"] {
        let client = client.header("Content-Encoding", encoding);
        client.post_text("/tasks", "").await.problem(415, "unsupported_encoding");
    }
    // What the length is measured by is no matter, and neither is the type.
    let body = r#"{"command":"other","payload":1}"#;
    let chunked = format!("{}{:x}\r\n{body}\r\n0\r\n\r\n", head("Transfer-Encoding: chunked"), body.len());
    client.raw(chunked.as_bytes()).await.expect(202);
    let expected = format!("{}{body}", head(&format!("Expect: 100-continue\r\nContent-Length: {}", body.len())));
    client.raw(expected.as_bytes()).await.expect(202);
    for kind in ["text/plain", "application/x-www-form-urlencoded", "nonsense"] {
        let client = client.header("Content-Type", kind).header("Content-Encoding", "Identity");
        client.post_text("/tasks", body).await.expect(202);
    }
    assert_eq!(client.depths("other").await, [5, 0, 0, 0]);
    let entries = target.entries + 5.0;
    Target { entries, ..target }.stop().await;
}

/// A head over the limits is refused. What the parser itself refuses has a status and no body: it is no request yet.
#[tokio::test]
async fn heads_over_the_limits_are_refused() {
    let target = Target::start(settings()).await;
    let client = &target.client;
    let path = format!("/healthz?{}", "x".repeat(8 << 10));
    client.get(&path).await.problem(414, "uri_too_long");
    client.get(&path[..8 << 10]).await.expect(200);
    client.header("X-Long", &"x".repeat(33 << 10)).get("/healthz").await.problem(431, "headers_too_large");
    let mut many = client.clone();
    for number in 0..9 {
        many = many.header(&format!("X-{number}"), &"x".repeat(4 << 10));
    }
    many.get("/healthz").await.problem(431, "headers_too_large");
    client.header("X-Long", &"x".repeat(31 << 10)).get("/healthz").await.expect(200);

    let get = |rest: &str| format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{rest}\r\n\r\n").into_bytes();
    let lines: Vec<String> = (0..100).map(|number| format!("X-{number}: 1")).collect();
    for (bytes, status) in [
        (get(&lines.join("\r\n")), 431),
        (get(&format!("X-Long: {}", "x".repeat(200 << 10))), 431),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(70 << 10)).into_bytes(), 414),
        (get("no colon"), 400),
        (get("X: a\r\n folded"), 400),
        (get(": no name"), 400),
        (get("X Y: 1"), 400),
        (get("X: \u{1}"), 400),
        (get("X: \0"), 400),
        (get("Content-Length: -1"), 400),
        (get("Content-Length: 1x"), 400),
        (get("Content-Length: 1\r\nContent-Length: 2"), 400),
        (get("Content-Length: 99999999999999999999999"), 400),
        (get("Content-Length: 18446744073709551615"), 431),
        (get("Transfer-Encoding: gzip"), 400),
        (b"GET /\0 HTTP/1.1\r\n\r\n".to_vec(), 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n".to_vec(), 400),
        (b"GET / HTTP/1.1 \r\n\r\n".to_vec(), 400),
        (b"GET / HTTP/9.9\r\n\r\n".to_vec(), 400),
        (b"GET /\r\n\r\n".to_vec(), 400),
        (b"G\xc3\x84T / HTTP/1.1\r\n\r\n".to_vec(), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), 400),
        (b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\r\n\r\n".to_vec(), 400),
    ] {
        let mut connection = client.connect().await;
        connection.write(&bytes).await;
        let answered = connection.maybe_answer().await;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        let answered = answered.unwrap_or_else(|| panic!("closed without an answer: {shown:?}"));
        assert_eq!((answered.status, answered.body.len()), (status, 0), "{shown:?}");
        assert_eq!(answered.header("connection"), Some("close"), "{shown:?}");
        connection.closed().await;
    }
    target.stop().await;
}

/// A request that stops half-way is answered or closed in time, and what had come of it has no effect.
#[tokio::test]
async fn requests_that_stop_half_way_are_ended() {
    let mut short = settings();
    short.http.header_timeout = Millis(200);
    short.http.body_timeout = Millis(200);
    short.http.idle_timeout = Millis(600);
    let target = Target::start(short).await;
    let body = br#"{"command":"mail","payload":1}"#;
    let whole = target.client.request("POST", "/v1/codeq/tasks", Some(body));
    let head = whole.len() - body.len();

    // No byte at all, and a head that does not end: there is no request that could be answered.
    for sent in [0, 1, 20, head - 1] {
        let mut connection = target.client.connect().await;
        connection.write(&whole[..sent]).await;
        connection.closed().await;
    }
    // Nor does a byte now and then help, or a request before it on the same connection.
    let mut connection = target.client.connect().await;
    connection.write(&target.client.request("GET", "/healthz", None)).await;
    assert_eq!(connection.answer().await.status, 200);
    let drip = async {
        for byte in &whole[..head - 1] {
            connection.write(&[*byte]).await;
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        connection.closed().await;
    };
    drip.await;
    for sent in [head, head + 1, whole.len() - 1] {
        let mut connection = target.client.connect().await;
        connection.write(&whole[..sent]).await;
        connection.answer().await.problem(408, "request_timeout");
        connection.closed().await;
        // A client that says it has finished is not waited for.
        let mut connection = target.client.connect().await;
        connection.write(&whole[..sent]).await;
        connection.finish().await;
        if let Some(answered) = connection.maybe_answer().await {
            answered.problem(400, "invalid_body");
        }
    }
    let mut connection = target.client.connect().await;
    let chunked = b"POST /v1/codeq/tasks HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    connection.write(chunked).await;
    if let Some(answered) = connection.maybe_answer().await {
        answered.problem(400, "invalid_body");
    }
    target.stop().await;
}
