//! What happens, followed from outside: everything that should come does, in order and once, behind the last event that was seen; what does
//! not come any more is a gap that the client is told of.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::client::{Client, text};
use crate::server::{Running, settings, settings_in, settings_with_tokens};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A stream of events. It is asked for by HTTP/1.0, so that its bytes are the events and nothing else.
struct Stream {
    stream: TcpStream,
    pending: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq)]
struct Event {
    id: String,
    kind: String,
    data: Value,
}

impl Stream {
    async fn begin(server: &Running, path: &str, headers: &[(&str, &str)]) -> Stream {
        Stream::with_buffer(server, path, headers, 1 << 20).await
    }

    /// Asks with room for so many bytes that were not read.
    async fn with_buffer(server: &Running, path: &str, headers: &[(&str, &str)], bytes: u32) -> Stream {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(bytes).expect("it can be set");
        let mut stream = socket.connect(server.addr()).await.expect("the server listens");
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!("GET /v1/codeq{path} HTTP/1.0\r\nHost: {}\r\n{headers}\r\n", server.addr());
        stream.write_all(request.as_bytes()).await.expect("the server reads");
        let mut begun = Stream { stream, pending: Vec::new() };
        let head = begun.read_to(b"\r\n\r\n").await.expect("an answer");
        assert!(head.contains(" 200 ") && head.contains("content-type: text/event-stream"), "{head}");
        begun
    }

    /// What comes up to the end of these bytes; nothing: the stream ends before.
    async fn read_to(&mut self, end: &[u8]) -> Option<String> {
        let read = async {
            loop {
                if let Some(place) = self.pending.windows(end.len()).position(|window| window == end) {
                    let text = self.pending.drain(..place + end.len()).collect();
                    return Some(String::from_utf8(text).expect("it is text"));
                }
                if self.stream.read_buf(&mut self.pending).await.ok()? == 0 {
                    return None;
                }
            }
        };
        timeout(PATIENCE, read).await.expect("something comes")
    }

    /// The next event; nothing: the stream ends.
    async fn next(&mut self) -> Option<Event> {
        loop {
            let block = self.read_to(b"\n\n").await?;
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            if let Some(kind) = field("event: ") {
                let data = serde_json::from_str(&field("data: ").expect("it has data")).expect("it is JSON");
                return Some(Event { id: field("id: ").expect("it has an id"), kind, data });
            }
        }
    }

    async fn some(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            events.push(self.next().await.expect("the stream goes on"));
        }
        events
    }
}

fn kinds(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.kind.as_str()).collect()
}

async fn claim(client: &Client, command: &str) -> Value {
    client.post("/tasks/claim", json!({"commands": [command], "waitSeconds": 20})).await.expect(200)
}

async fn complete(client: &Client, task: &Value) {
    let done = json!({"status": "COMPLETED", "result": {}, "leaseToken": task["leaseToken"]});
    client.post(&format!("/tasks/{}/result", text(task, "id")), done).await.expect(200);
}

/// A task that is created, claimed and completed: three events.
async fn cycle(client: &Client, command: &str) -> String {
    let id = client.create(json!({"command": command, "payload": 1})).await;
    complete(client, &claim(client, command).await).await;
    id
}

/// Goal: whoever follows gets what happens from then on, by queue and by kind as asked for; pauses and operations are events as well; whoever comes
/// back with an id gets what comes behind it, the same events under the same ids.
#[tokio::test]
async fn events_come_as_they_happen_and_again() {
    let mut settings = settings();
    settings.node.shards = 4;
    let server = Running::start(settings).await;
    let client = server.client();
    cycle(&client, "mail").await;
    let mut all = Stream::begin(&server, "/events", &[]).await;
    let mut ends = Stream::begin(&server, "/events?type=task.completed&command=sms&command=mail", &[]).await;
    let mut paused = Stream::begin(&server, "/events?command=mail&type=queue.paused&type=queue.resumed", &[]).await;
    let mail = cycle(&client, "mail").await;
    let told = all.some(3).await;
    assert_eq!(kinds(&told), ["task.created", "task.claimed", "task.completed"]);
    for event in &told {
        assert_eq!((text(&event.data, "taskId"), text(&event.data, "command")), (&*mail, "mail"), "{event:?}");
        assert!(event.data.get("payload").is_none() && event.data["tenantId"].is_string(), "{event:?}");
    }
    let history = client.get(&format!("/v1/codeq/tasks/{mail}/history")).await.expect(200);
    for (event, entry) in told.iter().zip(history["entries"].as_array().expect("a list")) {
        assert_eq!((&event.data["position"], &event.data["at"]), (&entry["position"], &entry["at"]), "{event:?}");
    }
    client.post("/queues/mail/pause", json!({"reason": "relay is down"})).await.expect(200);
    client.post("/queues/mail/resume", json!({})).await.expect(200);
    let of_queue = paused.some(2).await;
    assert_eq!(kinds(&of_queue), ["queue.paused", "queue.resumed"]);
    assert_eq!(of_queue[0].data["reason"], "relay is down");
    cycle(&client, "print").await;
    let sms = cycle(&client, "sms").await;
    let ended = ends.some(2).await;
    assert_eq!([text(&ended[0].data, "taskId"), text(&ended[1].data, "taskId")], [mail.as_str(), sms.as_str()]);
    client.create(json!({"command": "mail", "payload": 1})).await;
    client.post("/queues/mail/purge", json!({"confirm": "mail"})).await.expect(202);
    let mut rest = all.some(2 + 3 + 3 + 1).await;
    while rest.last().expect("there is one").kind != "operation.ended"
        || rest.iter().all(|event| event.kind != "queue.purged")
    {
        rest.extend(all.some(1).await);
    }
    assert!(rest.iter().any(|event| event.kind == "operation.started"), "{rest:?}");
    let deleted = rest.iter().find(|event| event.kind == "task.deleted").expect("it was deleted");
    assert!(
        text(&deleted.data, "reason").starts_with("op-") && deleted.data["actor"]["kind"] == "admin",
        "{deleted:?}"
    );
    let seen: Vec<Event> = told.into_iter().chain(rest).collect();
    for place in 0..seen.len() - 1 {
        let again = if place % 2 == 0 {
            Stream::begin(&server, "/events", &[("Last-Event-ID", &seen[place].id)]).await.some(1).await
        } else {
            Stream::begin(&server, &format!("/events?after={}", seen[place].id), &[]).await.some(1).await
        };
        // Between shards there is no order, so the next one may come from another one.
        let known = seen[place + 1..].iter().any(|event| event.kind == again[0].kind && event.data == again[0].data);
        assert!(known, "behind {:?} comes {:?}", seen[place], again[0]);
    }
    for (path, code) in [
        ("/events?after=x", "invalid_cursor"),
        ("/events?after=0:0000:1:1", "invalid_cursor"),
        ("/events?type=task.sold", "invalid_filter"),
        ("/events?command=a%20b", "invalid_command"),
        ("/events?colour=red", "invalid_filter"),
        (&format!("/tasks/{mail}/events?after=0:1"), "invalid_cursor"),
        (&format!("/tasks/{mail}/events?colour=red"), "invalid_filter"),
    ] {
        client.get(&format!("/v1/codeq{path}")).await.problem(400, code);
    }
    server.stop().await;
}

/// Goal: a token follows its tenant alone, and a worker's token the queues that it names; operations are for administrators.
#[tokio::test]
async fn nobody_sees_what_is_not_theirs() {
    let producer = r#"{"token": "p-token", "subject": "boss", "raw": {"tenantId": "acme", "role": "Admin"}}"#;
    let worker = |tenant: &str| {
        let scopes = ["codeq:claim", "codeq:result"];
        let raw = json!({"tenantId": tenant});
        json!({"token": "w-token", "subject": "w1", "eventTypes": ["sms"], "scopes": scopes, "raw": raw}).to_string()
    };
    for (tenant, expected) in [("acme", vec!["task.created", "queue.paused"]), ("other", vec![])] {
        let server = Running::start(settings_with_tokens(Some(producer), Some(&worker(tenant)))).await;
        let owner = server.with_token("p-token");
        server.client().get("/v1/codeq/events").await.problem(401, "missing_credentials");
        let mut boss = Stream::begin(&server, "/events", &[("Authorization", "Bearer p-token")]).await;
        let mut clerk = Stream::begin(&server, "/events", &[("Authorization", "Bearer w-token")]).await;
        owner.create(json!({"command": "mail", "payload": 1})).await;
        owner.create(json!({"command": "sms", "payload": 1})).await;
        owner.post("/queues/mail/purge", json!({"confirm": "mail"})).await.expect(202);
        owner.post("/queues/sms/pause", json!({})).await.expect(200);
        let mut told = Vec::new();
        while told.len() < 7 {
            told.extend(boss.some(1).await);
        }
        for kind in ["operation.started", "task.deleted", "queue.purged", "operation.ended", "queue.paused"] {
            assert!(kinds(&told).contains(&kind), "{told:?}");
        }
        assert_eq!(kinds(&clerk.some(expected.len()).await), expected);
        server.stop().await;
        assert_eq!(clerk.next().await, None, "there was nothing more");
    }
}

/// Goal: after a restart a client gets everything behind its id, or is told that something is missing, and never less.
#[tokio::test]
async fn after_a_restart_nothing_is_missing_unsaid() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Running::start(settings_in(directory.path())).await;
    let client = server.client();
    let mut stream = Stream::begin(&server, "/events", &[]).await;
    cycle(&client, "mail").await;
    let first = stream.some(3).await;
    let second = cycle(&client, "mail").await;
    let last = stream.some(3).await;
    server.stop().await;
    let server = Running::start(settings_in(directory.path())).await;
    let client = server.client();
    let third = cycle(&client, "mail").await;
    let mut again = Stream::begin(&server, "/events", &[("Last-Event-ID", &first[2].id)]).await;
    let mut told = again.some(1).await;
    let had_gap = told[0].kind == "gap";
    if had_gap {
        assert_eq!((&told[0].data["lost"], &told[0].data["oldest"]), (&json!(true), &json!(told[0].id)), "{told:?}");
        told.clear();
    }
    while told.last().is_none_or(|event| event.data["taskId"] != third || event.kind != "task.completed") {
        told.extend(again.some(1).await);
    }
    let has_second = told.iter().any(|event| event.data["taskId"] == second);
    assert!(had_gap || has_second, "a hole that nobody was told of: {told:?}");
    // Whoever has missed nothing may be told of a gap, but of what comes next nothing is missing.
    let mut end = Stream::begin(&server, "/events", &[("Last-Event-ID", &last[2].id)]).await;
    let mut told = end.some(1).await;
    if told[0].kind == "gap" {
        told.clear();
    }
    told.extend(end.some(3 - told.len()).await);
    assert_eq!(kinds(&told), ["task.created", "task.claimed", "task.completed"]);
    assert!(told.iter().all(|event| event.data["taskId"] == third), "{told:?}");
    server.stop().await;
}

/// Goal: what was forgotten is a gap, and behind the gap everything comes, each event once.
#[tokio::test]
async fn what_is_not_kept_is_a_gap() {
    let mut settings = settings();
    settings.limits.events_max = 500;
    let server = Running::start(settings).await;
    let client = server.client();
    let mut stream = Stream::begin(&server, "/events", &[]).await;
    client.create(json!({"command": "mail", "payload": 0})).await;
    let first = stream.some(1).await;
    let tasks: Vec<Value> = (0..100).map(|_| json!({"command": "mail", "payload": 1})).collect();
    let mut ids = Vec::new();
    for _ in 0..20 {
        let made = client.post("/tasks/batch", json!({"tasks": tasks})).await.expect(200);
        ids.extend(made["results"].as_array().expect("a list").iter().map(|made| text(&made["task"], "id").to_owned()));
    }
    let mut again = Stream::begin(&server, "/events", &[("Last-Event-ID", &first[0].id)]).await;
    let gap = again.some(1).await;
    assert_eq!(gap[0].kind, "gap");
    let mut told: Vec<String> = Vec::new();
    while told.last() != ids.last() {
        told.extend(again.some(1).await.iter().map(|event| text(&event.data, "taskId").to_owned()));
    }
    assert!(told.len() < 1_000, "{} were kept", told.len());
    assert_eq!(told, ids[ids.len() - told.len()..], "behind the gap nothing is missing");
    // The gap's own id is one to come back with.
    let mut from_gap = Stream::begin(&server, "/events", &[("Last-Event-ID", &gap[0].id)]).await;
    assert_eq!(text(&from_gap.some(1).await[0].data, "taskId"), told[0]);
    server.stop().await;
}

/// Goal: a client that does not read is let go when too much waits for it, and has missed nothing when it comes back; one that never reads keeps no
/// server from stopping.
#[tokio::test]
async fn who_does_not_read_is_let_go() {
    let server = Running::open().await;
    let client = server.client();
    let mut slow = Stream::with_buffer(&server, "/events", &[], 4 << 10).await;
    let _never_read = Stream::with_buffer(&server, "/events", &[], 4 << 10).await;
    let tasks: Vec<Value> = (0..100).map(|_| json!({"command": "mail", "payload": 1})).collect();
    let mut created = 0;
    let let_go = async {
        while client.metric("codeq_event_streams").await > 0.0 {
            client.post("/tasks/batch", json!({"tasks": tasks})).await.expect(200);
            created += 100;
            assert!(created < 100_000, "it is let go");
        }
    };
    timeout(PATIENCE, let_go).await.expect("it is let go");
    let mut told = Vec::new();
    while let Some(event) = slow.next().await {
        told.push(event);
    }
    assert!(told.len() + 1_000 < created, "{} of {created} were sent", told.len());
    let last = told.last().expect("something was sent").id.clone();
    let mut again = Stream::begin(&server, "/events", &[("Last-Event-ID", &last)]).await;
    told.extend(again.some(created - told.len()).await);
    let ids: std::collections::BTreeSet<&str> = told.iter().map(|event| text(&event.data, "taskId")).collect();
    assert_eq!((ids.len(), told.len()), (created, created), "each once");
    timeout(PATIENCE, server.stop()).await.expect("it stops");
}

/// Goal: the events of one task come from its beginning, then as they happen, behind an id if one is given, and end with it; also when it has ended
/// long ago, and after a restart.
#[tokio::test]
async fn one_task_is_followed_to_its_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut settings = settings_in(directory.path());
    settings.limits.event_streams_max = 2;
    let server = Running::start(settings.clone()).await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    let path = format!("/tasks/{id}/events");
    let mut stream = Stream::begin(&server, &path, &[]).await;
    assert_eq!(kinds(&stream.some(1).await), ["task.created"]);
    let task = claim(&client, "mail").await;
    let claimed = stream.some(1).await;
    assert_eq!(kinds(&claimed), ["task.claimed"]);
    let mut later = Stream::begin(&server, &path, &[("Last-Event-ID", &claimed[0].id)]).await;
    client.get("/v1/codeq/events").await.problem(503, "overloaded");
    for _ in 0..2 {
        let beat = json!({"leaseToken": task["leaseToken"]});
        client.post(&format!("/tasks/{id}/heartbeat"), beat).await.expect(200);
        assert_eq!(kinds(&stream.some(1).await), ["task.extended"]);
    }
    complete(&client, &task).await;
    let rest = stream.some(2).await;
    assert_eq!(kinds(&rest), ["task.completed", "end"]);
    assert_eq!((stream.next().await, &rest[1].data["state"]), (None, &json!("COMPLETED")));
    let mut seen = Vec::new();
    while let Some(event) = later.next().await {
        seen.push(event);
    }
    assert_eq!(seen[seen.len() - 2..], rest, "the same events");
    assert!(kinds(&seen).iter().all(|kind| *kind != "task.claimed" && *kind != "task.created"), "{seen:?}");
    server.stop().await;
    let server = Running::start(settings).await;
    let mut again = Stream::begin(&server, &path, &[]).await;
    let told = again.some(5).await;
    assert_eq!(kinds(&told), ["task.created", "task.claimed", "task.extended", "task.completed", "end"]);
    assert_eq!(again.next().await, None);
    let unknown = id.replace(&id[30..], "ffffff");
    server.client().get(&format!("/v1/codeq/tasks/{unknown}/events")).await.problem(404, "task_not_found");
    server.stop().await;
}

/// Goal: a stream with nothing to say says where it begins, so that nothing is missed by whoever loses it at once, and that it lives.
#[tokio::test]
async fn a_silent_stream_says_that_it_lives() {
    let server = Running::open().await;
    let mut stream = Stream::begin(&server, "/events", &[]).await;
    let id = stream.read_to(b"\n\n").await.expect("where it begins");
    assert!(id.starts_with("id: 0:"), "{id}");
    assert_eq!(stream.read_to(b"\n\n").await.as_deref(), Some(":\n\n"));
    server.stop().await;
}
