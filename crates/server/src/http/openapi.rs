//! `GET /openapi.json`: every route, in the terms of OpenAPI 3.1.
//!
//! The table below has a row for each route; who may call it is read from `routes`, which serves it, the error codes from the list of codes.
//! A test takes each row to `routes` and looks for one that is missing.

use std::sync::OnceLock;

use api::Code;
use hyper::Method;
use serde_json::{Map, Value, json};

use crate::auth::Access;
use crate::http::answer::Answer;
use crate::http::routes;

/// A route.
struct Row {
    method: Method,
    path: &'static str,
    summary: &'static str,
    /// Its parameters besides those of the path: names of sets, or of single ones.
    query: &'static [&'static str],
    /// The schema of its body.
    body: Option<&'static str>,
    answers: &'static [(u16, Shown)],
}

/// What an answer's body is.
#[derive(Clone, Copy)]
enum Shown {
    /// JSON of this schema.
    Json(&'static str),
    /// The same as [`Shown::Json`] without the charset that routes under `/v1` name.
    Plain(&'static str),
    Text,
    Html,
    Lines,
    /// Server-sent events.
    Stream,
    Tar,
    Nothing,
}

use Shown::{Html, Json, Lines, Nothing, Plain, Stream, Tar, Text};

const READ: &[&str] = &["consistency", "minPosition", "maxStaleness", "wait"];

macro_rules! rows {
    ($($method:ident $path:literal $summary:literal $query:tt $body:expr => $answers:tt;)*) => {
        const ROWS: &[Row] = &[$(Row {
            method: Method::$method, path: $path, summary: $summary, query: &$query, body: $body, answers: &$answers,
        }),*];
    };
}

rows! {
    POST "/v1/codeq/tasks" "Create a task" [] Some("NewTask") => [(202, Json("Task"))];
    GET "/v1/codeq/tasks" "List and search tasks" ["filter", "states", "order", "include", "page", "read"] None => [(200, Json("TaskPage"))];
    POST "/v1/codeq/tasks/batch" "Create several tasks" [] Some("NewTasks") => [(200, Json("CreatedTasks"))];
    POST "/v1/codeq/tasks/claim" "Claim a task" [] Some("Claim") => [(200, Json("Task")), (204, Nothing)];
    POST "/v1/codeq/tasks/claim/batch" "Claim several tasks" [] Some("ClaimBatch") => [(200, Json("ClaimedTasks")), (204, Nothing)];
    POST "/v1/codeq/tasks/batch/results" "Submit several results" [] Some("Results") => [(200, Json("SubmittedResults"))];
    GET "/v1/codeq/tasks/{id}" "Read a task, or wait for its end" ["waitSeconds", "waitFor", "read"] None => [(200, Json("Task"))];
    GET "/v1/codeq/tasks/{id}/events" "Follow what happens to a task" ["after", "read"] None => [(200, Stream)];
    GET "/v1/codeq/events" "Follow what happens" ["events", "after"] None => [(200, Stream)];
    GET "/v1/codeq/tasks/{id}/history" "What has happened to a task" ["page", "read"] None => [(200, Json("History"))];
    GET "/v1/codeq/tasks/{id}/result" "Read a result, or wait for it" ["waitSeconds", "read"] None => [(200, Json("TaskAndResult"))];
    POST "/v1/codeq/tasks/{id}/heartbeat" "Extend a lease" [] Some("Heartbeat") => [(200, Json("Extended"))];
    POST "/v1/codeq/tasks/{id}/abandon" "Give a task back unharmed" [] Some("Abandon") => [(200, Json("Abandoned"))];
    POST "/v1/codeq/tasks/{id}/nack" "End an attempt as failed" [] Some("Nack") => [(200, Json("Nacked"))];
    POST "/v1/codeq/tasks/{id}/result" "Submit a result" [] Some("Result") => [(200, Json("Submitted"))];
    POST "/v1/codeq/tasks/{id}/cancel" "Cancel a task" [] Some("Cancel") => [(200, Json("Task")), (202, Json("Task"))];
    PATCH "/v1/codeq/tasks/{id}" "Change a task that waits, or a dead one" [] Some("Edit") => [(200, Json("Task"))];
    POST "/v1/codeq/tasks/batch/heartbeat" "Extend several leases" [] Some("Heartbeats") => [(200, Json("ExtendedLeases"))];
    POST "/v1/codeq/tasks/cancel" "Cancel many tasks" [] Some("CancelMany") => [(202, Json("Operation"))];
    POST "/v1/codeq/tasks/{id}/redrive" "Bring an ended task back" [] Some("Redrive") => [(200, Json("Task"))];
    GET "/v1/codeq/dlq" "List dead letters" ["filter", "deadOrder", "include", "page", "read"] None => [(200, Json("TaskPage"))];
    GET "/v1/codeq/dlq/groups" "Dead letters by what they died of" ["filter", "groupLimit", "read"] None => [(200, Json("DeadGroups"))];
    POST "/v1/codeq/dlq/redrive" "Bring many dead letters back" [] Some("RedriveMany") => [(202, Json("Operation"))];
    POST "/v1/codeq/dlq/purge" "Delete many dead letters" [] Some("PurgeDead") => [(202, Json("Operation"))];
    POST "/v1/codeq/queues/{command}/pause" "Let claims pass a queue over" [] Some("Pause") => [(200, Json("Queue"))];
    POST "/v1/codeq/queues/{command}/resume" "End a pause" [] Some("Nothing") => [(200, Json("Queue"))];
    POST "/v1/codeq/queues/{command}/purge" "Delete the tasks that wait" [] Some("PurgeQueue") => [(202, Json("Operation"))];
    GET "/v1/codeq/operations" "List operations on many tasks" ["operationKind", "operationState", "page", "read"] None => [(200, Json("OperationPage"))];
    GET "/v1/codeq/operations/{id}" "Read an operation" ["read"] None => [(200, Json("Operation"))];
    POST "/v1/codeq/operations/{id}/stop" "Stop an operation" [] None => [(200, Json("Operation"))];
    POST "/v1/codeq/operations/{id}/resume" "Let an operation go on" [] None => [(200, Json("Operation"))];
    GET "/v1/codeq/queues" "List queues" ["prefix", "nonEmpty", "paused", "page", "read"] None => [(200, Json("QueuePage"))];
    GET "/v1/codeq/queues/{command}" "Read a queue" ["read"] None => [(200, Json("Queue"))];
    GET "/v1/codeq/admin/queues/{command}" "Read a queue's depths" ["read"] None => [(200, Json("Depths"))];
    GET "/v1/codeq/whoami" "What a token may do" [] None => [(200, Json("Whoami"))];
    GET "/v1/codeq/raft/status" "The state of Raft, as codeQ shows it" [] None => [(200, Json("Object"))];
    GET "/openapi.json" "This document" [] None => [(200, Json("Object"))];
    GET "/v1/codeq/openapi.json" "This document" [] None => [(200, Json("Object"))];
    GET "/healthz" "The process answers" [] None => [(200, Text)];
    GET "/livez" "Its loop turns" [] None => [(200, Text), (503, Text)];
    GET "/readyz" "Requests can be served here" [] None => [(200, Text), (503, Text)];
    GET "/readyz/{check}" "One check of readiness" [] None => [(200, Text), (503, Text)];
    GET "/metrics" "Metrics for Prometheus" [] None => [(200, Text)];
    GET "/" "A page for people" [] None => [(200, Html)];
    GET "/web/status" "The same page" [] None => [(200, Html)];
    GET "/cluster/status" "This node and its cluster" [] None => [(200, Plain("Object"))];
    GET "/cluster/health" "The cluster's health" [] None => [(200, Plain("Object")), (503, Plain("Object"))];
    GET "/cluster/health-reports" "What the members say of themselves" [] None => [(200, Plain("Object"))];
    GET "/cluster/nodes" "The members" [] None => [(200, Plain("Object"))];
    GET "/cluster/nodes/{node}" "A member" [] None => [(200, Plain("Object"))];
    GET "/cluster/groups" "The groups" [] None => [(200, Plain("Any"))];
    GET "/cluster/leader" "The leader of group 0" [] None => [(200, Plain("Object"))];
    GET "/cluster/leader-check" "Whether this node leads" [] None => [(200, Text), (404, Text)];
    GET "/cluster/leader-check/{code}" "The same, with another status for no" [] None => [(200, Text)];
    GET "/cluster/events" "What has happened" [] None => [(200, Lines)];
    GET "/cluster/elections" "The elections" [] None => [(200, Plain("Object"))];
    GET "/cluster/timeline" "The story of an election" [] None => [(200, Plain("Object"))];
    GET "/cluster/monitor" "The log of this node, as it is written" [] None => [(200, Text)];
    GET "/cluster/check/quorum" "Whether a node may stop" [] None => [(200, Json("Object"))];
    GET "/cluster/snapshot" "A backup" [] None => [(200, Tar)];
    PUT "/cluster/snapshot" "Restore a backup" [] Some("Any") => [(200, Json("Object"))];
    GET "/cluster/alarms" "What is wrong with the members" [] None => [(200, Plain("Object"))];
    POST "/cluster/snapshot/trigger" "Write checkpoints" [] None => [(200, Json("Object"))];
    POST "/cluster/reload" "Read certificates, tokens and log levels again" [] None => [(200, Json("Object"))];
    GET "/cluster/tokens" "Tokens that newcomers join with" [] None => [(200, Json("Object"))];
    POST "/cluster/tokens" "Make a token that newcomers join with" [] Some("Object") => [(201, Json("Object"))];
    DELETE "/cluster/tokens/{id}" "Revoke it" [] None => [(200, Json("Object"))];
    GET "/cluster/debug-bundle" "What all members say of themselves" [] None => [(200, Tar)];
    POST "/cluster/join" "Introduce this node to others" [] Some("Object") => [(200, Json("Object"))];
    POST "/cluster/leave" "Leave the cluster" [] Some("Object") => [(200, Json("Object"))];
    POST "/cluster/members" "Add a member" [] Some("Object") => [(200, Json("Object"))];
    DELETE "/cluster/members/{node}" "Remove a member" [] None => [(200, Json("Object"))];
    POST "/cluster/members/{node}/demote" "Take a member's vote" [] Some("Object") => [(200, Json("Object"))];
    POST "/cluster/members/{node}/promote" "Give a member a vote" [] None => [(200, Json("Object"))];
    POST "/cluster/members/{node}/replace" "Put another node in a member's place" [] Some("Object") => [(200, Json("Object"))];
    POST "/cluster/leader/transfer" "Hand leadership over" [] Some("Object") => [(200, Json("Object"))];
    POST "/cluster/leader/step-down" "Give leadership up" [] Some("Object") => [(200, Json("Object"))];
    GET "/api/{question}" "A question of orchestrator's" [] None => [(200, Json("Any"))];
}

/// The answer: the document, made once.
pub(crate) fn answer() -> Answer {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| document().to_string());
    Answer::json(200, |out| out.extend_from_slice(text.as_bytes()))
}

/// The document.
pub(crate) fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for row in ROWS {
        let path = paths.entry(row.path).or_insert_with(|| json!({}));
        path[row.method.as_str().to_ascii_lowercase()] = operation(row);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "codeq",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A durable, multi-tenant task queue. Errors are RFC 9457 problems; clients read `code`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": all_schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    })
}

fn operation(row: &Row) -> Value {
    let in_path = row.path.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(
        |(name, _)| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}),
    );
    let parameters: Vec<Value> = in_path.chain(row.query.iter().flat_map(|name| parameters(name))).collect();
    let mut responses = Map::new();
    for (status, shown) in row.answers {
        responses.insert(status.to_string(), response(*shown));
    }
    responses.insert("default".into(), problem());
    let (rights, security) = match access(row) {
        Access::Open => ("Nobody needs a token.".to_owned(), json!([])),
        Access::Any => ("For any token of the tenant.".into(), json!([{"token": []}])),
        Access::Producer => ("For producers.".into(), json!([{"token": []}])),
        Access::Worker(scope) => (format!("For workers with scope `{scope}`."), json!([{"token": []}])),
        Access::Admin => ("For administrators of the tenant.".into(), json!([{"token": []}])),
        Access::Metrics => {
            ("For any token, where the setting `metrics.requireToken` asks for one.".into(), json!([{"token": []}]))
        }
        Access::Join => ("For whoever may introduce nodes to each other.".into(), json!([{"token": []}])),
        Access::Viewer => ("For viewers of the cluster.".into(), json!([{"token": []}])),
        Access::Operator => ("For operators of the cluster.".into(), json!([{"token": []}])),
        Access::ClusterAdmin => ("For administrators of the cluster.".into(), json!([{"token": []}])),
    };
    let mut operation = json!({
        "summary": row.summary,
        "description": rights,
        "tags": [row.path.split('/').find(|part| !matches!(*part, "" | "v1" | "codeq")).unwrap_or("page")],
        "security": security,
        "responses": responses,
    });
    if !parameters.is_empty() {
        operation["parameters"] = json!(parameters);
    }
    if let Some(body) = row.body {
        let schema = json!({"$ref": format!("#/components/schemas/{body}")});
        operation["requestBody"] = json!({"content": {"application/json": {"schema": schema}}});
    }
    operation
}

/// Who may call a route: the answer of whoever serves it.
fn access(row: &Row) -> Access {
    routes::find(&row.method, &sample(row.path)).map_or(Access::Operator, |route| route.access())
}

/// The path with something in the place of its parameters.
fn sample(path: &str) -> String {
    let mut sample = String::new();
    let mut parts = path.split('{');
    sample.push_str(parts.next().unwrap_or_default());
    for (name, rest) in parts.filter_map(|part| part.split_once('}')) {
        sample.push_str(match name {
            "code" => "503",
            "check" => "leader",
            "question" => "leader-check",
            _ => "x",
        });
        sample.push_str(rest);
    }
    sample
}

fn response(shown: Shown) -> Value {
    let content = |kind: &str, schema: Value| json!({"description": "done", "content": {kind: {"schema": schema}}});
    let text = json!({"type": "string"});
    match shown {
        Json(schema) => {
            content("application/json; charset=utf-8", json!({"$ref": format!("#/components/schemas/{schema}")}))
        }
        Plain(schema) => content("application/json", json!({"$ref": format!("#/components/schemas/{schema}")})),
        Text => content("text/plain", text),
        Html => content("text/html", text),
        Lines => content("application/x-ndjson", text),
        // The schema is that of each event.
        Stream => {
            let event = json!({"type": "object", "properties": {"id": text, "event": text, "data": text}});
            content("text/event-stream", event)
        }
        Tar => content("application/x-tar", json!({})),
        Nothing => json!({"description": "nothing to claim"}),
    }
}

fn problem() -> Value {
    let schema = json!({"$ref": "#/components/schemas/Problem"});
    json!({
        "description": "what went wrong; `definite` says whether it is certain that nothing has happened",
        "content": {"application/problem+json": {"schema": schema}, "text/plain": {"schema": {"type": "string"}}},
    })
}

/// A set of parameters, or a single one.
fn parameters(name: &str) -> Vec<Value> {
    let one = |name: &str, schema: Value| json!({"name": name, "in": "query", "schema": schema});
    let list = |name: &str, values: Value| one(name, json!({"type": "array", "items": values}));
    let text = || json!({"type": "string"});
    let time = |name: &str| one(name, json!({"type": "string", "format": "date-time"}));
    let integer = |least: u64, most: u64| json!({"type": "integer", "minimum": least, "maximum": most});
    let range = |name: &str| one(name, json!({"type": "string", "pattern": "^[0-9]+(-[0-9]+)?$"}));
    let choice = |name: &str, values: &[&str]| one(name, json!({"type": "string", "enum": values}));
    match name {
        "read" => READ.iter().flat_map(|name| parameters(name)).collect(),
        "consistency" => vec![choice(name, &["linearizable", "leader", "stale"])],
        "minPosition" => {
            vec![one(name, json!({"type": "string", "pattern": "^[0-9]+:[0-9]+:[0-9]+(,[0-9]+:[0-9]+:[0-9]+)*$"}))]
        }
        "maxStaleness" | "wait" => vec![one(name, json!({"type": "string", "pattern": "^[0-9]{1,4}(ms|s|m|h)$"}))],
        "filter" => vec![
            list("command", json!({"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"})),
            list("workerId", text()),
            list("ids", text()),
            range("priority"),
            range("attempts"),
            time("createdAfter"),
            time("createdBefore"),
            time("finishedAfter"),
            time("finishedBefore"),
            time("runAfter"),
            time("runBefore"),
            one("idempotencyKey", text()),
            one("errorContains", json!({"type": "string", "minLength": 2, "maxLength": 100})),
            one("fingerprint", json!({"type": "string", "pattern": "^[0-9a-f]{16}$"})),
        ],
        "states" => vec![
            list("state", json!({"type": "string", "enum": STATES})),
            list("status", json!({"type": "string", "enum": STATUSES})),
        ],
        "order" => vec![choice(name, &["-created", "created", "-finished", "queue"])],
        "deadOrder" => vec![choice("order", &["-finished", "finished"])],
        "include" => vec![choice(name, &["payload", "result", "payload,result"])],
        "page" => vec![one("limit", integer(1, 500)), one("cursor", text())],
        "groupLimit" => vec![one("limit", integer(1, 200))],
        "operationKind" => vec![choice("kind", &KINDS)],
        "operationState" => vec![choice("state", &OPERATION_STATES)],
        "events" => vec![
            list("command", json!({"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"})),
            list("type", json!({"type": "string", "pattern": "^(task|queue|operation)\\.[a-z_]+$"})),
        ],
        "paused" | "nonEmpty" => vec![one(name, json!({"type": "boolean"}))],
        "waitSeconds" => vec![one(name, json!({"type": "number", "minimum": 0, "maximum": 60}))],
        "waitFor" => vec![choice(name, &["finished", "change"])],
        _ => vec![one(name, text())],
    }
}

const STATES: [&str; 7] = ["DELAYED", "READY", "LEASED", "COMPLETED", "FAILED", "DEAD", "CANCELLED"];
const KINDS: [&str; 4] = ["dlq.redrive", "dlq.purge", "queue.purge", "tasks.cancel"];
const OPERATION_STATES: [&str; 4] = ["RUNNING", "STOPPED", "SUCCEEDED", "FAILED"];
const STATUSES: [&str; 4] = ["PENDING", "IN_PROGRESS", "COMPLETED", "FAILED"];

/// An object with these members; those that are required come first, up to the bar.
fn object(members: &[(&str, Value)], required: usize) -> Value {
    let properties: Map<String, Value> =
        members.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    let names: Vec<&str> = members[..required].iter().map(|(name, _)| *name).collect();
    json!({"type": "object", "properties": properties, "required": names})
}

/// The same without any other member.
fn closed(members: &[(&str, Value)], required: usize) -> Value {
    let mut object = object(members, required);
    object["additionalProperties"] = json!(false);
    object
}

fn all_schemas() -> Value {
    let (mut all, more) = (schemas(), schemas_of_many());
    if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
        all.extend(more);
    }
    all
}

fn schemas() -> Value {
    let text = || json!({"type": "string"});
    let maybe = |kind: &str| json!({"type": [kind, "null"]});
    let integer = || json!({"type": "integer", "minimum": 0});
    let time = || json!({"type": "string", "format": "date-time"});
    let flag = || json!({"type": "boolean"});
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let list = |items: Value| json!({"type": "array", "items": items});
    let command = || json!({"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"});
    let state = || json!({"type": "string", "enum": STATES});
    let codes: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
    let page = |name, items: Value| closed(&[(name, list(items)), ("nextCursor", text()), ("partial", flag())], 1);
    let item_error =
        [("error", text()), ("code", text()), ("status", integer()), ("definite", flag()), ("field", text())];
    let with_errors = |members: &[(&str, Value)], required| object(&[members, &item_error[..]].concat(), required);
    let nacked = [
        ("status", json!({"type": "string", "enum": ["requeued", "dlq", "cancelled"]})),
        ("delaySeconds", integer()),
        ("delayMs", integer()),
        ("attempts", integer()),
        ("taskId", text()),
    ];
    let depths = [
        ("command", text()),
        ("ready", integer()),
        ("delayed", integer()),
        ("inProgress", integer()),
        ("dlq", integer()),
    ];
    let result = [
        ("status", json!({"type": "string"})),
        ("taskId", text()),
        ("result", json!({"type": ["object", "null"]})),
        ("error", maybe("string")),
        ("leaseToken", maybe("string")),
        ("retryable", maybe("boolean")),
        ("delaySeconds", maybe("number")),
    ];
    let claim = [
        ("commands", json!({"type": ["array", "null"], "items": command(), "maxItems": 100})),
        ("leaseSeconds", maybe("number")),
        ("waitSeconds", maybe("number")),
        ("order", json!({"type": ["string", "null"], "enum": ["request", "priority", null]})),
    ];
    json!({
        "Any": {},
        "Object": {"type": "object"},
        "Problem": object(&[
            ("type", text()), ("title", text()), ("status", integer()), ("detail", text()), ("error", text()),
            ("code", json!({"type": "string", "examples": codes})), ("definite", flag()), ("requestId", text()),
            ("field", text()), ("retryAfterSeconds", integer()), ("retryAfterMs", integer()), ("taskId", text()),
            ("leader", text()), ("leaderId", text()), ("hint", text()),
        ], 0),
        "Task": closed(&[
            ("id", text()), ("command", text()), ("status", json!({"type": "string", "enum": STATUSES})),
            ("lastKnownLocation", json!({"type": "string", "enum": ["PENDING_LIST", "DELAYED_ZSET", "INPROG_SET", "DLQ_SET", "NONE"]})),
            ("maxAttempts", integer()), ("tenantId", text()), ("createdAt", time()), ("updatedAt", time()), ("state", state()),
            ("payload", json!({})), ("priority", integer()), ("webhook", text()), ("workerId", text()), ("leaseUntil", time()),
            ("attempts", integer()), ("error", text()), ("resultKey", text()), ("runAt", time()), ("lastError", text()),
            ("finishedAt", time()), ("leaseToken", text()), ("leaseMs", integer()), ("idempotencyKey", text()),
            ("payloadBytes", integer()), ("cancelRequested", flag()), ("result", json!({})),
        ], 9),
        "TaskPage": page("tasks", reference("Task")),
        "ResultRecord": closed(&[
            ("taskId", text()), ("status", json!({"type": "string", "enum": ["COMPLETED", "FAILED"]})), ("completedAt", time()),
            ("result", json!({"type": "object"})), ("error", text()), ("attempt", integer()),
        ], 3),
        "TaskAndResult": closed(&[("task", reference("Task")), ("result", reference("ResultRecord"))], 2),
        "NewTask": object(&[
            ("command", command()), ("payload", json!({"not": {"type": "null"}})),
            ("priority", maybe("integer")), ("webhook", maybe("string")), ("idempotencyKey", maybe("string")),
            ("maxAttempts", maybe("integer")), ("runAt", json!({"type": ["string", "null"], "format": "date-time"})),
            ("delaySeconds", json!({"type": ["number", "null"], "minimum": 0})),
        ], 2),
        "NewTasks": object(&[("tasks", json!({"type": "array", "items": reference("NewTask"), "minItems": 1, "maxItems": 100}))], 1),
        "CreatedTasks": closed(&[("results", list(with_errors(&[("task", reference("Task")), ("replayed", flag())], 0)))], 1),
        "Claim": object(&claim, 0),
        "ClaimBatch": object(&[&[("count", json!({"type": "integer", "minimum": 1, "maximum": 10}))], &claim[..]].concat(), 1),
        "ClaimedTasks": object(&[("tasks", list(reference("Task"))), ("error", text()), ("code", text())], 1),
        "Heartbeat": object(&[("extendSeconds", maybe("number")), ("leaseToken", maybe("string"))], 0),
        "Extended": closed(&[("ok", flag()), ("leaseUntil", time()), ("leaseMs", integer()), ("cancelRequested", flag())], 3),
        "Abandon": object(&[("leaseToken", maybe("string"))], 0),
        "Abandoned": closed(&[("status", json!({"type": "string", "enum": ["requeued", "cancelled"]}))], 1),
        "Nack": object(&[("delaySeconds", maybe("number")), ("reason", maybe("string")), ("leaseToken", maybe("string"))], 0),
        "Nacked": closed(&nacked, 3),
        "Result": object(&result, 1),
        "Submitted": json!({"anyOf": [reference("ResultRecord"), reference("Nacked")]}),
        "Results": object(&[("results", json!({"type": "array", "items": object(&result, 2), "minItems": 1, "maxItems": 100}))], 1),
        "SubmittedResults": closed(&[("results", list(with_errors(&[("taskId", text()), ("result", reference("Submitted"))], 1)))], 1),
        "Cancel": closed(&[("reason", maybe("string")), ("force", maybe("boolean"))], 0),
        "Redrive": closed(&[
            ("attempts", json!({"type": ["string", "null"], "enum": ["reset", "keep", null]})),
            ("delaySeconds", json!({"type": ["number", "null"], "minimum": 0})), ("priority", maybe("integer")),
            ("payload", json!({})),
        ], 0),
        "Depths": closed(&depths, 5),
        "Queue": closed(&[&depths[..], &[
            ("tenantId", text()),
            ("readyByPriority", json!({"type": "array", "items": integer(), "minItems": 10, "maxItems": 10})),
            ("enqueuedTotal", integer()), ("completedTotal", integer()), ("failedTotal", integer()), ("deadTotal", integer()),
            ("paused", flag()), ("consumers", integer()), ("waiters", integer()), ("oldestReadyAgeMs", integer()), ("nextDueAt", time()), ("pausedUntil", time()), ("pauseReason", text()), ("pausedBy", text()),
            ("updatedAt", time()),
        ]].concat(), 14),
        "QueuePage": page("queues", reference("Queue")),
        "DeadGroups": closed(&[("groups", list(closed(&[
            ("fingerprint", text()), ("command", text()), ("error", text()), ("count", integer()), ("firstAt", time()),
            ("lastAt", time()), ("sampleIds", list(text())),
        ], 7))), ("partial", flag())], 1),
        "Whoami": closed(&[
            ("subject", text()), ("tenantId", text()), ("roles", list(text())), ("scopes", list(text())),
            ("eventTypes", list(text())), ("node", text()), ("clusterRole", text()),
        ], 6),
    })
}

/// The schemas of edits, pauses, batches of heartbeats and operations on many tasks.
fn schemas_of_many() -> Value {
    let text = || json!({"type": "string"});
    let maybe = |kind: &str| json!({"type": [kind, "null"]});
    let integer = || json!({"type": "integer", "minimum": 0});
    let time = || json!({"type": "string", "format": "date-time"});
    let flag = || json!({"type": "boolean"});
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let list = |items: Value| json!({"type": "array", "items": items});
    let many = [
        ("filter", reference("Filter")),
        ("ratePerSecond", json!({"type": ["integer", "null"], "minimum": 1})),
        ("dryRun", maybe("boolean")),
    ];
    json!({
        "Nothing": closed(&[], 0),
        "Edit": closed(&[
            ("priority", json!({"type": ["integer", "null"], "minimum": 0, "maximum": 9})), ("payload", json!({})),
            ("maxAttempts", json!({"type": ["integer", "null"], "minimum": 1})), ("webhook", maybe("string")),
            ("runAt", json!({"type": ["string", "null"], "format": "date-time"})),
            ("delaySeconds", json!({"type": ["number", "null"], "minimum": 0})),
        ], 0),
        "Heartbeats": closed(&[("heartbeats", json!({
            "type": "array", "minItems": 1, "maxItems": 100, "items": closed(&[
                ("taskId", text()), ("extendSeconds", maybe("number")), ("leaseToken", maybe("string")),
            ], 1),
        }))], 1),
        "ExtendedLeases": closed(&[("results", list(object(&[
            ("taskId", text()), ("ok", flag()), ("leaseUntil", time()), ("leaseMs", integer()), ("cancelRequested", flag()),
            ("error", text()), ("code", text()), ("status", integer()), ("definite", flag()), ("field", text()),
        ], 1)))], 1),
        "Pause": closed(&[
            ("reason", maybe("string")),
            ("durationSeconds", json!({"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 2_592_000})),
        ], 0),
        "Filter": json!({"type": ["object", "null"]}),
        "RedriveMany": closed(&[&many[..], &[
            ("attempts", json!({"type": ["string", "null"], "enum": ["reset", "keep", null]})),
            ("delaySeconds", json!({"type": ["number", "null"], "minimum": 0})),
            ("priority", json!({"type": ["integer", "null"], "minimum": 0, "maximum": 9})),
        ]].concat(), 0),
        "PurgeDead": closed(&[&many[..], &[("confirm", maybe("string"))]].concat(), 0),
        "PurgeQueue": closed(&[&many[..], &[
            ("confirm", maybe("string")),
            ("states", json!({"type": "array", "items": {"type": "string", "enum": ["READY", "DELAYED"]}, "minItems": 1})),
        ]].concat(), 0),
        "CancelMany": closed(&[&many[..], &[("reason", maybe("string")), ("force", maybe("boolean"))]].concat(), 0),
        "Operation": closed(&[
            ("operationId", text()), ("kind", json!({"type": "string", "enum": KINDS})),
            ("state", json!({"type": "string", "enum": OPERATION_STATES})), ("request", json!({"type": ["object", "null"]})), ("dryRun", flag()),
            ("processed", integer()), ("changed", integer()), ("skipped", integer()), ("startedAt", time()), ("updatedAt", time()),
            ("startedBy", text()), ("finishedAt", time()), ("estimatedTotal", integer()), ("sampleIds", list(text())), ("error", text()),
        ], 11),
        "History": closed(&[("entries", list(reference("HistoryEntry"))), ("nextCursor", text()), ("partial", flag())], 1),
        "HistoryEntry": closed(&[
            ("type", json!({"type": "string", "enum": queue::history::Happening::NAMES.map(|(_, name)| name)})),
            ("position", text()), ("at", time()), ("from", json!({"type": "string", "enum": STATES})),
            ("to", json!({"type": "string", "enum": STATES})), ("attempt", integer()), ("reason", text()),
            ("delayMs", integer()), ("leaseMs", integer()), ("count", integer()),
            ("actor", closed(&[
                ("kind", json!({"type": "string", "enum": queue::history::Actor::NAMES.map(|(_, name)| name)})), ("workerId", text()),
            ], 1)),
        ], 1),
        "OperationPage": closed(&[("operations", list(reference("Operation"))), ("nextCursor", text()), ("partial", flag())], 1),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Each row leads to a route, and each kind of route has a row. The kinds are counted in the text of the table of routes, so that a new
    /// one cannot be forgotten here.
    #[test]
    fn every_route_is_described() {
        let mut described = BTreeSet::new();
        for row in ROWS {
            let path = sample(row.path);
            let route = routes::find(&row.method, &path);
            let route = route.unwrap_or_else(|problem| panic!("{} {path}: {problem:?}", row.method));
            let shown = format!("{route:?}");
            described.insert(shown.split('(').next().unwrap_or_default().to_owned());
        }
        let source = include_str!("routes.rs");
        let (_, rest) = source.split_once("pub(crate) enum Route<'a> {").expect("there is a table of routes");
        let (variants, _) = rest.split_once("\n}").expect("it ends");
        let is_variant = |line: &&str| line.starts_with(char::is_uppercase);
        let variants: BTreeSet<String> = variants
            .lines()
            .map(str::trim)
            .filter(is_variant)
            .map(|line| line.trim_end_matches(',').split('(').next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(described, variants);
    }

    /// Every schema that is named exists, and every one that exists is named.
    #[test]
    fn schemas_and_references_fit_together() {
        fn references(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(members) => {
                    if let Some(name) = members.get("$ref").and_then(Value::as_str) {
                        found.insert(name.trim_start_matches("#/components/schemas/").to_owned());
                    }
                    members.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let document = document();
        let mut named = BTreeSet::new();
        references(&document, &mut named);
        let schemas = document["components"]["schemas"].as_object().expect("an object");
        assert_eq!(named, schemas.keys().cloned().collect::<BTreeSet<_>>());
        assert_eq!(document["openapi"], "3.1.0");
    }
}
