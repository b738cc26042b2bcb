//! Who may do what: every route against every kind of token, the borders between tenants, and what holds where nobody needs a token.

use serde_json::{Value, json};

use crate::client::{Client, Response, text};
use crate::server::{Running, settings, settings_in, settings_with_tokens};

const PRODUCER: &str = r#"{"token": "p-token", "subject": "maker", "raw": {"tenantId": "acme"}}"#;
const ADMIN: &str = r#"{"token": "p-token", "subject": "boss", "raw": {"tenantId": "acme", "role": "Admin"}}"#;

/// The scopes of a worker, one for each route of its own.
const SCOPES: [&str; 5] = ["codeq:claim", "codeq:heartbeat", "codeq:abandon", "codeq:nack", "codeq:result"];

fn worker(tenant: &str, event_types: &[&str], scopes: &[&str]) -> String {
    let raw = json!({"tenantId": tenant});
    let config = json!({"token": "w-token", "subject": "w1", "eventTypes": event_types, "scopes": scopes, "raw": raw});
    config.to_string()
}

/// Which tokens a route takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Producer,
    /// With the scope of this number.
    Worker(usize),
    Any,
    Admin,
    Open,
}

/// Every route there is, with a body that it takes.
fn routes(id: &str) -> Vec<(Group, &'static str, String, Value)> {
    use Group::{Admin, Any, Open, Producer, Worker};
    let task = json!({"command": "mail", "payload": 1});
    let done = json!({"status": "COMPLETED", "result": {}});
    let of_task = |call: &str| format!("/v1/codeq/tasks/{id}{call}");
    let api = |path: &str| format!("/v1/codeq{path}");
    vec![
        (Producer, "POST", api("/tasks"), task.clone()),
        (Producer, "POST", api("/tasks/batch"), json!({"tasks": [task]})),
        (Producer, "POST", of_task("/cancel"), json!({})),
        (Worker(0), "POST", api("/tasks/claim"), json!({"commands": ["none"]})),
        (Worker(0), "POST", api("/tasks/claim/batch"), json!({"commands": ["none"], "count": 1})),
        (Worker(1), "POST", of_task("/heartbeat"), json!({})),
        (Worker(2), "POST", of_task("/abandon"), json!({})),
        (Worker(3), "POST", of_task("/nack"), json!({})),
        (Worker(4), "POST", of_task("/result"), done.clone()),
        (Worker(4), "POST", api("/tasks/batch/results"), json!({"results": [done]})),
        (Any, "GET", of_task(""), json!(null)),
        (Any, "GET", of_task("/result"), json!(null)),
        (Any, "GET", of_task("/history"), json!(null)),
        (Any, "GET", api("/raft/status"), json!(null)),
        (Any, "GET", api("/tasks"), json!(null)),
        (Any, "GET", api("/dlq"), json!(null)),
        (Any, "GET", api("/dlq/groups"), json!(null)),
        (Any, "GET", api("/queues"), json!(null)),
        (Any, "GET", api("/queues/mail"), json!(null)),
        (Any, "GET", api("/whoami"), json!(null)),
        (Admin, "GET", api("/admin/queues/mail"), json!(null)),
        (Admin, "POST", of_task("/redrive"), json!({})),
        (Open, "GET", "/openapi.json".into(), json!(null)),
        (Open, "GET", api("/openapi.json"), json!(null)),
        (Open, "GET", "/healthz".into(), json!(null)),
        (Open, "GET", "/livez".into(), json!(null)),
        (Open, "GET", "/readyz".into(), json!(null)),
        (Open, "GET", "/metrics".into(), json!(null)),
    ]
}

/// Calls every route as `client`; `refused` says which groups are refused how, by status, code and codeQ's text.
async fn check(client: &Client, id: &str, refused: impl Fn(Group) -> Option<(u16, &'static str, &'static str)>) {
    for (group, method, path, body) in routes(id) {
        let body = body.to_string();
        let answered = client.send(method, &path, (method == "POST").then_some(body.as_bytes())).await;
        match refused(group) {
            None => assert!(![401, 403].contains(&answered.status), "{group:?} {path}: {}", answered.text()),
            Some((status, code, error)) => {
                let problem = answered.problem(status, code);
                assert_eq!(text(&problem, "error"), error, "{group:?} {path}");
            }
        }
    }
}

const UNKNOWN: Option<(u16, &str, &str)> = Some((401, "invalid_credentials", "invalid token"));

/// Without a usable token only the open routes answer, whatever else the request claims.
#[tokio::test]
async fn without_a_token_only_probes_are_answered() {
    let server = Running::start(settings_with_tokens(Some(PRODUCER), Some(&worker("acme", &["*"], &SCOPES)))).await;
    let id = server.with_token("p-token").create(json!({"command": "mail", "payload": 1})).await;
    let closed = |refusal| move |group: Group| if group == Group::Open { None } else { refusal };
    let missing = Some((401, "missing_credentials", "missing Authorization header"));
    let malformed = Some((401, "invalid_credentials", "invalid Authorization format"));
    check(&server.client(), &id, closed(missing)).await;
    for (header, refusal) in [
        ("", missing),
        ("p-token", malformed),
        ("Bearer", malformed),
        ("Basic cC10b2tlbjo=", malformed),
        ("Bearer\tp-token", malformed),
    ] {
        check(&server.client().header("Authorization", header), &id, closed(refusal)).await;
    }
    let claims = server.client().header("X-Role", "ADMIN").header("X-Forwarded-User", "boss");
    check(&claims, &id, closed(missing)).await;
    server.stop().await;
}

/// The scheme's letter case and the space around a token do not matter; everything else of it does.
#[tokio::test]
async fn a_token_is_compared_exactly() {
    let server = Running::start(settings_with_tokens(Some(PRODUCER), None)).await;
    for header in ["Bearer p-token", "bearer p-token", "BEARER   p-token  "] {
        let client = server.client().header("Authorization", header);
        client.create(json!({"command": "mail", "payload": 1})).await;
    }
    for token in ["P-token", "p-toke", "p-token0", "p-token p-token", "\"p-token\"", &"p".repeat(8 << 10)] {
        let answered = server.with_token(token).post("/tasks", json!({"command": "mail", "payload": 1})).await;
        assert_eq!(text(&answered.problem(401, "invalid_credentials"), "error"), "invalid token", "{token}");
    }
    let in_query = server.client().get("/v1/codeq/raft/status?token=p-token&access_token=p-token").await;
    in_query.problem(401, "missing_credentials");
    server.stop().await;
}

/// A producer creates and cancels, a worker does what its scopes say, an administrator sees its tenant's queues; both sides read.
#[tokio::test]
async fn each_token_may_do_what_its_claims_say() {
    use Group::{Admin, Any, Open, Producer, Worker};
    let all = worker("acme", &["*"], &SCOPES);
    let admin_required = Some((403, "admin_required", "unauthorized. Admin only"));
    for (config, is_admin) in [
        (PRODUCER, false),
        (ADMIN, true),
        (r#"{"token": "p-token", "subject": "acme", "scopes": ["codeq:admin", "codeq:claim"]}"#, true),
        (r#"{"token": "p-token", "subject": "acme", "scopes": ["codeq:administrator"], "eventTypes": ["*"]}"#, false),
    ] {
        let server = Running::start(settings_with_tokens(Some(config), Some(&all))).await;
        let client = server.with_token("p-token");
        let id = client.create(json!({"command": "mail", "payload": 1, "tenantId": "other"})).await;
        let mine = |group| match group {
            Producer | Any | Open => None,
            Admin if is_admin => None,
            Admin => admin_required,
            Worker(_) => UNKNOWN,
        };
        check(&client, &id, mine).await;
        check(&client.header("X-Role", "ADMIN"), &id, mine).await;
        let workers = |group| if matches!(group, Producer | Admin) { UNKNOWN } else { None };
        check(&server.with_token("w-token").header("X-Role", "ADMIN"), &id, workers).await;
        server.stop().await;
    }
    let missing = |error| Some((403, "worker_claims_missing", error));
    let mut workers: Vec<(String, [Option<(u16, &str, &str)>; 5], bool)> = vec![
        (worker("acme", &[], &SCOPES), [missing("missing eventTypes"); 5], false),
        (worker("acme", &["*"], &[]), [missing("missing scope"); 5], true),
    ];
    for (number, scope) in SCOPES.iter().enumerate() {
        let mut refused = [Some((403, "missing_scope", "missing scope")); 5];
        refused[number] = None;
        workers.push((worker("acme", &["*"], &[scope, "codeq:admin"]), refused, true));
    }
    for (config, refused, reads) in workers {
        let server = Running::start(settings_with_tokens(Some(PRODUCER), Some(&config))).await;
        let id = server.with_token("p-token").create(json!({"command": "mail", "payload": 1})).await;
        let mine = |group| match group {
            Worker(number) => refused[number],
            Any if reads => None,
            Open => None,
            Any | Producer | Admin => UNKNOWN,
        };
        check(&server.with_token("w-token"), &id, mine).await;
        server.stop().await;
    }
}

/// A side without a provider takes no token; with the setting a producer's token may work as well, on all queues.
#[tokio::test]
async fn sides_may_be_missing_or_joined() {
    use Group::{Admin, Any, Open, Producer, Worker};
    let no_worker = Some((401, "auth_not_configured", "worker validator not configured"));
    let no_producer = Some((401, "auth_not_configured", "producer validator not configured"));
    let all = worker("acme", &["*"], &SCOPES);

    let server = Running::start(settings_with_tokens(Some(ADMIN), None)).await;
    let id = server.with_token("p-token").create(json!({"command": "mail", "payload": 1})).await;
    check(&server.with_token("p-token"), &id, |group| if let Worker(_) = group { no_worker } else { None }).await;
    server.stop().await;

    let server = Running::start(settings_with_tokens(None, Some(&all))).await;
    let refused = |group| if matches!(group, Producer | Admin) { no_producer } else { None };
    check(&server.with_token("w-token"), &id, refused).await;
    let refused = |group| match group {
        Producer | Admin => no_producer,
        Worker(_) | Any => UNKNOWN,
        Open => None,
    };
    check(&server.with_token("p-token"), &id, refused).await;
    server.stop().await;

    for workers in [None, Some(&*all)] {
        let mut joined = settings_with_tokens(Some(ADMIN), workers);
        joined.auth.allow_producer_as_worker = true;
        let server = Running::start(joined).await;
        let client = server.with_token("p-token");
        let id = client.create(json!({"command": "mail", "payload": 1})).await;
        check(&client, &id, |_| None).await;
        let id = client.create(json!({"command": "any-queue", "payload": 1})).await;
        let task = client.post("/tasks/claim", json!({"commands": ["any-queue"]})).await.expect(200);
        assert_eq!((text(&task, "id"), text(&task, "workerId")), (&*id, "boss"));
        let refused = |group| match (group, workers) {
            (Open, _) => None,
            (Worker(_), None) => no_worker,
            _ => UNKNOWN,
        };
        check(&server.with_token("unknown"), &id, refused).await;
        server.stop().await;
    }
}

/// A token without one usable tenant opens nothing.
#[tokio::test]
async fn a_token_needs_one_tenant() {
    for raw in [
        json!({"tenantId": "Acme"}),
        json!({"tenantId": ""}),
        json!({"tenantId": 7}),
        json!({"tid": "acme", "organization_id": "other"}),
        json!({"tenant_id": "a/b"}),
    ] {
        let config = json!({"token": "p-token", "subject": "acme", "raw": raw}).to_string();
        let server = Running::start(settings_with_tokens(Some(&config), None)).await;
        let answered = server.with_token("p-token").post("/tasks", json!({"command": "mail", "payload": 1})).await;
        let problem = answered.problem(403, "tenant_invalid");
        assert_eq!(text(&problem, "error"), "invalid tenant claims");
        server.stop().await;
    }
    // Without a claim the subject is the tenant.
    let server = Running::start(settings_with_tokens(Some(r#"{"token": "p-token", "subject": " acme "}"#), None)).await;
    let task = server.with_token("p-token").post("/tasks", json!({"command": "mail", "payload": 1})).await.expect(202);
    assert_eq!(text(&task, "tenantId"), "acme");
    server.stop().await;
}

/// A worker claims from the queues that its token names, and from no others, also when it names none.
#[tokio::test]
async fn a_worker_is_kept_to_its_event_types() {
    let config = worker("acme", &["a", " b ", "Mail"], &SCOPES);
    let server = Running::start(settings_with_tokens(Some(PRODUCER), Some(&config))).await;
    let (producer, worker) = (server.with_token("p-token"), server.with_token("w-token"));
    let mut ids = Vec::new();
    for command in ["mail", "c", "a", "b"] {
        ids.push(producer.create(json!({"command": command, "payload": 1})).await);
    }
    for commands in [json!(["c"]), json!(["a", "c"]), json!(["mail"]), json!(["A"])] {
        for (path, more) in [("/tasks/claim", json!(null)), ("/tasks/claim/batch", json!(1))] {
            let claim = json!({"commands": commands, "waitSeconds": 30, "count": more});
            let problem = worker.post(path, claim).await.problem(403, "event_type_not_allowed");
            assert_eq!(text(&problem, "error"), "event type not allowed");
        }
    }
    for id in &ids[2..] {
        assert_eq!(worker.post("/tasks/claim", json!({})).await.expect(200)["id"], **id);
    }
    assert_eq!(worker.post("/tasks/claim", json!({})).await.status, 204);
    worker.task(&ids[0]).await;
    server.stop().await;
}

/// A task of another tenant and one that never was are the same to a caller, on every route.
#[tokio::test]
async fn a_tenant_sees_nothing_of_another() {
    let server = Running::start(settings_with_tokens(Some(ADMIN), Some(&worker("other", &["*"], &SCOPES)))).await;
    let (owner, stranger) = (server.with_token("p-token"), server.with_token("w-token"));
    let id = owner.create(json!({"command": "mail", "payload": {"secret": 1}})).await;
    let unknown = id.replace(&id[30..], "ffffff");
    let canonical = |response: &Response| {
        let mut problem = response.problem(404, "task_not_found");
        problem["requestId"] = json!(null);
        let mut names: Vec<String> = response.headers.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        (problem, names)
    };
    for (group, method, path, body) in routes("{id}") {
        if !path.contains("{id}") || !matches!(group, Group::Worker(_) | Group::Any) {
            continue;
        }
        let body = body.to_string();
        let body = (method == "POST").then_some(body.as_bytes());
        let foreign = stranger.send(method, &path.replace("{id}", &id), body).await;
        let nothing = stranger.send(method, &path.replace("{id}", &unknown), body).await;
        assert_eq!(canonical(&foreign), canonical(&nothing), "{path}");
    }
    assert_eq!(stranger.post("/tasks/claim", json!({"commands": ["mail"]})).await.status, 204);
    assert_eq!(stranger.post("/tasks/claim", json!({})).await.status, 204);
    let result = json!({"results": [{"taskId": id, "status": "COMPLETED", "result": {}}]});
    let items = stranger.post("/tasks/batch/results", result).await.expect(200);
    assert_eq!(text(&items["results"][0], "code"), "task_not_found");
    let wait = stranger.get(&format!("/v1/codeq/tasks/{id}/result?waitSeconds=60")).await;
    assert_eq!(text(&wait.problem(404, "task_not_found"), "error"), "task not found");
    assert_eq!(owner.depths("mail").await, [1, 0, 0, 0]);
    server.stop().await;
}

/// The same for what only producers and administrators do, and for idempotency keys: another tenant's producer starts from nothing.
#[tokio::test]
async fn a_producer_sees_nothing_of_another_tenant() {
    let directory = tempfile::tempdir().expect("a directory");
    let with = |producer: &str| {
        let settings = settings_with_tokens(Some(producer), None);
        server::settings::Settings { node: settings_in(&directory.path().join("data")).node, ..settings }
    };
    let mut first = with(ADMIN);
    first.auth.allow_producer_as_worker = true;
    let server = Running::start(first).await;
    let owner = server.with_token("p-token");
    let task = json!({"command": "mail", "payload": 1, "idempotencyKey": "k", "maxAttempts": 1});
    let waiting = owner.create(task.clone()).await;
    let dead = owner.create(json!({"command": "dead", "payload": 1, "maxAttempts": 1})).await;
    owner.post("/tasks/claim", json!({"commands": ["dead"]})).await.expect(200);
    owner.post(&format!("/tasks/{dead}/nack"), json!({})).await.expect(200);
    server.stop().await;

    let server = Running::start(with(&ADMIN.replace("acme", "other"))).await;
    let stranger = server.with_token("p-token");
    for id in [&waiting, &dead] {
        stranger.get(&format!("/v1/codeq/tasks/{id}")).await.problem(404, "task_not_found");
        stranger.get(&format!("/v1/codeq/tasks/{id}/result")).await.problem(404, "task_not_found");
        stranger.post(&format!("/tasks/{id}/cancel"), json!({"force": true})).await.problem(404, "task_not_found");
        stranger.post(&format!("/tasks/{id}/redrive"), json!({})).await.problem(404, "task_not_found");
    }
    assert_eq!(stranger.depths("mail").await, [0; 4]);
    assert_eq!(stranger.depths("dead").await, [0; 4]);
    let created = stranger.post("/tasks", task).await;
    assert_eq!((created.status, created.header("idempotency-replayed")), (202, None));
    assert_ne!(created.expect(202)["id"], *waiting);
    server.stop().await;
}

/// A lease belongs to its holder: another subject needs the token, and with it needs nothing else.
#[tokio::test]
async fn a_lease_belongs_to_its_holder() {
    let mut settings = settings_with_tokens(Some(ADMIN), Some(&worker("acme", &["*"], &SCOPES)));
    settings.auth.allow_producer_as_worker = true;
    let server = Running::start(settings).await;
    let (holder, other) = (server.with_token("w-token"), server.with_token("p-token"));
    let id = other.create(json!({"command": "mail", "payload": 1})).await;
    let task = holder.post("/tasks/claim", json!({})).await.expect(200);
    for (call, body) in [
        ("heartbeat", json!({})),
        ("abandon", json!({})),
        ("nack", json!({})),
        ("result", json!({"status": "COMPLETED", "result": {}, "workerId": "w1"})),
        // Whose task it is comes before what is wrong with the result.
        ("result", json!({"status": "nonsense"})),
    ] {
        let problem = other.post(&format!("/tasks/{id}/{call}"), body).await.problem(403, "not_owner");
        assert_eq!(text(&problem, "error"), "not-owner");
    }
    let token = &task["leaseToken"];
    other.post(&format!("/tasks/{id}/heartbeat"), json!({"leaseToken": token})).await.expect(200);
    holder.post(&format!("/tasks/{id}/heartbeat"), json!({})).await.expect(200);
    let done = json!({"status": "COMPLETED", "result": {}, "leaseToken": token});
    other.post(&format!("/tasks/{id}/result"), done).await.expect(200);
    server.stop().await;
}

/// Checks are made in the order of the contract, so that no answer tells what its caller may not know.
#[tokio::test]
async fn checks_are_made_in_order() {
    let config = worker("acme", &["a"], &["codeq:claim"]);
    let server = Running::start(settings_with_tokens(Some(PRODUCER), Some(&config))).await;
    let (nobody, worker) = (server.client(), server.with_token("w-token"));
    nobody.get("/v1/codeq/nowhere").await.problem(404, "route_not_found");
    nobody.send("PUT", "/v1/codeq/tasks", None).await.problem(405, "method_not_allowed");
    let large = b"POST /v1/codeq/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n";
    nobody.raw(large).await.problem(413, "body_too_large");
    nobody.post_text("/tasks", "{").await.problem(401, "missing_credentials");
    worker.post_text("/tasks/x/nack", "{").await.problem(403, "missing_scope");
    worker.header("Content-Encoding", "gzip").post_text("/tasks/x/nack", "{").await.problem(403, "missing_scope");
    worker.post_text("/tasks/claim", r#"{"commands":["b"],"order":1}"#).await.problem(400, "invalid_body");
    worker.post("/tasks/claim", json!({"commands": ["b", "c d"]})).await.problem(400, "invalid_command");
    worker.post("/tasks/claim", json!({"commands": ["b"], "order": "x"})).await.problem(400, "invalid_field");
    worker.post("/tasks/claim", json!({"commands": ["b"]})).await.problem(403, "event_type_not_allowed");
    server.stop().await;
}

/// Whoever tries tokens is slowed down after fifty; tokens that have just been accepted still pass, and so does everybody elsewhere.
#[tokio::test]
async fn trying_tokens_is_slowed_down() {
    let all = worker("acme", &["*"], &SCOPES);
    let server = Running::start(settings_with_tokens(Some(PRODUCER), Some(&all))).await;
    let status = "/v1/codeq/raft/status";
    let [producer, worker] = ["p-token", "w-token"].map(|token| server.with_token(token));
    for known in [&producer, &worker] {
        known.get(status).await.expect(200);
    }
    for number in 0..50 {
        // Requests without a token try none.
        server.client().get(status).await.problem(401, "missing_credentials");
        server.with_token(&format!("guess-{number}")).get(status).await.problem(401, "invalid_credentials");
    }
    let refused = server.with_token("guess-50").get(status).await;
    assert_eq!(refused.problem(429, "auth_throttled")["retryAfterSeconds"], 60);
    for known in [&producer, &worker] {
        known.get(status).await.expect(200);
    }
    server.with_token("guess-51").from([127, 0, 0, 2]).get(status).await.problem(401, "invalid_credentials");
    assert_eq!(server.client().get("/healthz").await.status, 200);
    server.stop().await;
}

/// Where nobody needs a token, only programs and pages of this machine are answered.
#[tokio::test]
async fn an_open_server_answers_this_machine_only() {
    let mut named = settings();
    named.auth.open = Some(server::auth::OpenMode { names: vec!["queue.lan".into()] });
    let server = Running::start(named).await;
    let at = |host: &str| server.client().header("Host", host);
    let task = json!({"command": "mail", "payload": 1});
    for host in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.9.9.9:1", "[::1]:8080", "queue.lan", "queue.lan:80"] {
        at(host).create(task.clone()).await;
    }
    for host in
        ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "0.0.0.0", "[::2]", "x@localhost"]
    {
        at(host).post("/tasks", task.clone()).await.problem(403, "origin_not_allowed");
        at(host).get("/v1/codeq/raft/status").await.problem(403, "origin_not_allowed");
        assert_eq!(at(host).get("/healthz").await.status, 200, "probes are open to all");
    }
    let page = |origin: &str| at("localhost:8080").header("Origin", origin);
    page("http://localhost:8080").create(task.clone()).await;
    for origin in ["http://evil.example", "null", "", "http://localhost:9090", "http://localhost:8080.evil.example"] {
        page(origin).post("/tasks", task.clone()).await.problem(403, "origin_not_allowed");
        page(origin).get("/v1/codeq/raft/status").await.expect(200);
    }
    // The target of the request line is no way around the header.
    let request = b"GET http://localhost/v1/codeq/raft/status HTTP/1.1\r\nHost: evil.example\r\n\r\n";
    server.client().raw(request).await.problem(403, "origin_not_allowed");
    // A token is not looked at, and the tenant is the default one.
    let task = server.with_token("any").post("/tasks", task).await.expect(202);
    assert_eq!(text(&task, "tenantId"), "default");
    assert_eq!(server.client().depths("mail").await, [9, 0, 0, 0]);
    server.stop().await;
}
