//! Lists from outside: what has been acknowledged is listed, in memory and on disk, in every order and by every condition; pages follow each
//! other by cursors; what a token may not see is not there.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::client::{Client, text, time};
use crate::server::{Running, settings, settings_in, settings_with_tokens};

fn ids(page: &Value) -> Vec<String> {
    page["tasks"].as_array().expect("a list").iter().map(|task| text(task, "id").to_owned()).collect()
}

/// The tasks of a list that reflects everything this client has done so far.
async fn list(client: &Client, query: &str) -> Vec<String> {
    let (sign, wait) = (if query.contains('?') { '&' } else { '?' }, "consistency=linearizable&wait=30s");
    ids(&client.get(&format!("/v1/codeq{query}{sign}{wait}")).await.expect(200))
}

async fn claim(client: &Client, command: &str) -> Value {
    client.post("/tasks/claim", json!({"commands": [command]})).await.expect(200)
}

/// A server with two queues and a task in every state, by name.
async fn fill(client: &Client) -> Vec<(&'static str, String)> {
    let create = async |command: &str, priority: u8, more: Value| {
        let mut body = json!({"command": command, "payload": {"n": priority}, "priority": priority});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        client.create(body).await
    };
    let completed = create("mail", 9, json!({})).await;
    let lease = claim(client, "mail").await;
    let done = json!({"status": "COMPLETED", "result": {"ok": true}, "leaseToken": lease["leaseToken"]});
    client.post(&format!("/tasks/{completed}/result"), done).await.expect(200);
    let failed = create("mail", 9, json!({})).await;
    claim(client, "mail").await;
    let no = json!({"status": "FAILED", "error": "Disk 7 is FULL"});
    client.post(&format!("/tasks/{failed}/result"), no).await.expect(200);
    let dead = create("mail", 9, json!({"maxAttempts": 1})).await;
    claim(client, "mail").await;
    client.post(&format!("/tasks/{dead}/nack"), json!({"reason": "timeout after 31 ms"})).await.expect(200);
    let cancelled = create("mail", 9, json!({})).await;
    client.post(&format!("/tasks/{cancelled}/cancel"), json!({})).await.expect(200);
    let leased = create("sms", 9, json!({})).await;
    claim(client, "sms").await;
    let delayed = create("sms", 1, json!({"delaySeconds": 3600, "idempotencyKey": "k1"})).await;
    let ready = create("sms", 2, json!({})).await;
    vec![
        ("COMPLETED", completed),
        ("FAILED", failed),
        ("DEAD", dead),
        ("CANCELLED", cancelled),
        ("LEASED", leased),
        ("DELAYED", delayed),
        ("READY", ready),
    ]
}

/// Every condition alone, and some together, on a server in memory and on one whose lists come from files.
#[tokio::test]
async fn every_condition_finds_what_it_says() {
    let directory = tempfile::tempdir().expect("a directory");
    for settings in [settings(), settings_in(directory.path())] {
        let server = Running::start(settings).await;
        let client = server.client();
        let tasks = fill(&client).await;
        let by = |states: &[&str]| -> Vec<String> {
            tasks.iter().rev().filter(|(state, _)| states.contains(state)).map(|(_, id)| id.clone()).collect()
        };
        let all: Vec<&str> = tasks.iter().map(|(state, _)| *state).collect();
        for state in &all {
            assert_eq!(list(&client, &format!("/tasks?state={state}")).await, by(&[state]), "{state}");
        }
        let (dead, first, last) = (&tasks[2].1, &tasks[0].1, &tasks[6].1);
        let created_at = |id: &str| {
            let id = id.to_owned();
            let client = client.clone();
            async move { text(&client.task(&id).await, "createdAt").to_owned() }
        };
        let created = created_at(last).await;
        for (query, expected) in [
            ("/tasks", by(&all)),
            ("/tasks?order=created", by(&all).into_iter().rev().collect()),
            ("/tasks?status=PENDING", by(&["READY", "DELAYED"])),
            ("/tasks?state=READY&state=DEAD", by(&["READY", "DEAD"])),
            ("/tasks?command=mail", by(&["COMPLETED", "FAILED", "DEAD", "CANCELLED"])),
            ("/tasks?command=sms&command=none", by(&["LEASED", "DELAYED", "READY"])),
            ("/tasks?command=none", Vec::new()),
            ("/tasks?priority=1-2", by(&["DELAYED", "READY"])),
            ("/tasks?attempts=0", by(&["CANCELLED", "DELAYED", "READY"])),
            ("/tasks?workerId=default", by(&["LEASED"])),
            ("/tasks?command=sms&idempotencyKey=k1", by(&["DELAYED"])),
            ("/tasks?command=mail&idempotencyKey=k1", Vec::new()),
            ("/tasks?errorContains=full", by(&["FAILED"])),
            (&format!("/tasks?ids={dead},{last}&ids={first}"), by(&["COMPLETED", "DEAD", "READY"])),
            (&format!("/tasks?createdAfter={created}&ids={last}"), by(&["READY"])),
            (&format!("/tasks?createdBefore={created}&ids={last}"), Vec::new()),
            ("/tasks?createdBefore=2000-01-01T00:00:00Z", Vec::new()),
            ("/tasks?runAfter=2000-01-01T00:00:00Z", by(&["DELAYED"])),
            ("/tasks?finishedAfter=2000-01-01T00:00:00Z", by(&["COMPLETED", "FAILED", "DEAD", "CANCELLED"])),
            ("/tasks?finishedBefore=2000-01-01T00:00:00Z", Vec::new()),
            ("/tasks?order=-finished", by(&["COMPLETED", "FAILED", "DEAD", "CANCELLED"])),
            ("/tasks?order=queue&command=sms&state=READY", by(&["READY"])),
            ("/tasks?order=queue&command=sms&state=DELAYED", by(&["DELAYED"])),
            ("/dlq", by(&["DEAD"])),
            ("/dlq?order=finished&command=mail", by(&["DEAD"])),
            ("/dlq?command=sms", Vec::new()),
        ] {
            assert_eq!(list(&client, query).await, expected, "{query}");
        }
        server.stop().await;
    }
}

/// A list shows each task as reading it does, but for its payload; that and the result come on request.
#[tokio::test]
async fn a_listed_task_is_shown_like_one_that_is_read() {
    let server = Running::open().await;
    let client = server.client();
    for (state, id) in fill(&client).await {
        let mut expected = client.task(&id).await;
        let listed =
            client.get(&format!("/v1/codeq/tasks?ids={id}&include=payload&consistency=linearizable&wait=30s")).await;
        let mut listed = listed.expect(200)["tasks"][0].clone();
        // Estimates, made at different moments.
        for task in [&mut expected, &mut listed] {
            task.as_object_mut().expect("an object").remove("runAt");
        }
        assert_eq!(listed, expected, "{state}");
        let plain =
            client.get(&format!("/v1/codeq/tasks?ids={id}&include=result")).await.expect(200)["tasks"][0].clone();
        assert_eq!(plain["payload"], Value::Null);
        assert_eq!(plain["payloadBytes"], expected["payload"].to_string().len());
        assert_eq!(plain["result"], if state == "COMPLETED" { json!({"ok": true}) } else { Value::Null });
    }
    server.stop().await;
}

/// Whoever has just been told that a task was created finds it in the next list, and in one that names the position of the answer.
#[tokio::test]
async fn what_was_just_created_is_listed() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut settings = settings_in(directory.path());
    // No checkpoint is due: only whoever asks for a list is shown what is new.
    settings.node.checkpoint_interval = base::Millis(3_600_000);
    let server = Running::start(settings).await;
    let client = server.client();
    for n in 0..20 {
        let created = client.post("/tasks", json!({"command": "mail", "payload": n})).await;
        let id = text(&created.expect(202), "id").to_owned();
        let position = created.header("codeq-position").expect("a position").to_owned();
        let page = client.get(&format!("/v1/codeq/tasks?limit=1&minPosition={position}&wait=30s")).await;
        assert_eq!(ids(&page.expect(200)), [id], "task {n}");
        assert_eq!(page.header("codeq-consistency"), Some("stale"));
        assert!(page.header("codeq-last-contact-ms").is_some() || page.header("codeq-position").is_some());
        let index = |text: &str| text.rsplit(':').next().and_then(|index| index.parse::<u64>().ok()).expect("an index");
        assert!(index(page.header("codeq-position").expect("a position")) >= index(&position));
    }
    let late = client.get("/v1/codeq/tasks?minPosition=0:1:999999999&wait=10ms").await;
    late.problem(503, "too_stale");
    server.stop().await;
}

/// Pages follow each other by cursor, also by the header `Link`, while other tasks come; over shards as well.
#[tokio::test]
async fn pages_follow_each_other_while_tasks_come() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut settings = settings_in(directory.path());
    settings.node.shards = 3;
    let server = Running::start(settings).await;
    let client = server.client();
    let mut before = Vec::new();
    for n in 0..40 {
        before.push(client.create(json!({"command": format!("q{}", n % 7), "payload": n, "priority": n % 10})).await);
    }
    let mut path = "/v1/codeq/tasks?limit=7&consistency=linearizable&wait=30s".to_owned();
    let (mut found, mut created) = (Vec::new(), BTreeMap::new());
    loop {
        let response = client.get(&path).await;
        let page = response.expect(200);
        assert!(ids(&page).len() <= 7);
        let tasks = page["tasks"].as_array().expect("a list").iter();
        created.extend(tasks.map(|task| (text(task, "id").to_owned(), time(task, "createdAt"))));
        found.extend(ids(&page));
        client.create(json!({"command": "q1", "payload": 0})).await;
        let Some(next) = page["nextCursor"].as_str() else {
            assert_eq!(response.header("link"), None);
            break;
        };
        let link = response.header("link").expect("a further page").to_owned();
        assert!(link.contains(next), "{link}");
        let inner = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\""));
        path = inner.expect("a link to the next page").to_owned();
    }
    let once: BTreeSet<&String> = found.iter().collect();
    assert_eq!(once.len(), found.len());
    let old: BTreeSet<&String> = found.iter().filter(|id| before.contains(id)).collect();
    assert_eq!(old.len(), before.len());
    let times: Vec<&u64> = found.iter().map(|id| &created[id]).collect();
    assert!(times.is_sorted_by(|earlier, later| earlier >= later), "{times:?}");
    server.stop().await;
}

/// A cursor is good for the list that it came from, and for no other.
#[tokio::test]
async fn a_cursor_of_another_list_is_refused() {
    let server = Running::open().await;
    let client = server.client();
    for n in 0..3 {
        client.create(json!({"command": "mail", "payload": n})).await;
    }
    let page = client.get("/v1/codeq/tasks?limit=1&command=mail&consistency=linearizable&wait=30s").await.expect(200);
    let cursor = text(&page, "nextCursor");
    for good in ["limit=2&command=mail", "command=mail&include=payload"] {
        client.get(&format!("/v1/codeq/tasks?{good}&cursor={cursor}")).await.expect(200);
    }
    for bad in ["command=sms", "command=mail&state=READY", "command=mail&order=created", ""] {
        let refused = client.get(&format!("/v1/codeq/tasks?{bad}&cursor={cursor}")).await;
        assert_eq!(refused.problem(400, "invalid_cursor")["field"], "cursor", "{bad}");
    }
    client.get(&format!("/v1/codeq/dlq?command=mail&cursor={cursor}")).await.problem(400, "invalid_cursor");
    for broken in ["x", "", "00", &cursor[2..], &format!("{cursor}00")] {
        client.get(&format!("/v1/codeq/tasks?command=mail&cursor={broken}")).await.problem(400, "invalid_cursor");
    }
    server.stop().await;
}

/// Bad input names the parameter at fault.
#[tokio::test]
async fn parameters_that_cannot_be_used_are_named() {
    let server = Running::open().await;
    let client = server.client();
    for (query, code, field) in [
        ("/tasks?colour=red", "invalid_filter", "colour"),
        ("/tasks?state=ready", "invalid_filter", "state"),
        ("/tasks?order=size", "invalid_filter", "order"),
        ("/tasks?order=queue", "invalid_filter", "order"),
        ("/tasks?order=queue&command=a&state=DEAD", "invalid_filter", "order"),
        ("/tasks?limit=many", "invalid_filter", "limit"),
        ("/tasks?include=everything", "invalid_filter", "include"),
        ("/tasks?idempotencyKey=k", "invalid_filter", "idempotencyKey"),
        ("/tasks?command=a%20b", "invalid_command", "command"),
        ("/tasks?minPosition=9:1:1", "invalid_position", "minPosition"),
        ("/tasks?consistency=loose", "invalid_consistency", "consistency"),
        ("/tasks?wait=2", "invalid_field", "wait"),
        ("/dlq?state=DEAD", "invalid_filter", "state"),
        ("/dlq?order=-created", "invalid_filter", "order"),
        ("/dlq/groups?order=finished", "invalid_filter", "order"),
        ("/dlq/groups?status=FAILED", "invalid_filter", "state"),
        ("/queues?state=READY", "invalid_filter", "state"),
        ("/queues?nonEmpty=perhaps", "invalid_filter", "nonEmpty"),
        ("/queues?cursor=00", "invalid_cursor", "cursor"),
        ("/queues/mail?prefix=a", "invalid_filter", "prefix"),
        ("/queues/a%20b", "invalid_command", "command"),
        ("/whoami?x=1", "invalid_filter", "x"),
    ] {
        let refused = client.get(&format!("/v1/codeq{query}")).await;
        assert_eq!(refused.problem(400, code)["field"], field, "{query}");
    }
    server.stop().await;
}

/// Dead letters that died of the same are one group.
#[tokio::test]
async fn dead_letters_are_grouped_by_their_error() {
    let server = Running::open().await;
    let client = server.client();
    let die = async |command: &str, reason: &str| {
        let id = client.create(json!({"command": command, "payload": 1, "maxAttempts": 1})).await;
        claim(&client, command).await;
        client.post(&format!("/tasks/{id}/nack"), json!({"reason": reason})).await.expect(200);
        id
    };
    let mut slow = Vec::new();
    for n in 0..7 {
        slow.push(die("mail", &format!("Timeout after {n} ms")).await);
    }
    let gone = die("mail", "no file 'a'").await;
    die("mail", "no file 'b'").await;
    die("sms", "no file 'b'").await;
    let answer = client.get("/v1/codeq/dlq/groups?consistency=linearizable&wait=30s").await.expect(200);
    let groups = answer["groups"].as_array().expect("a list").clone();
    let counts: Vec<u64> = groups.iter().filter_map(|group| group["count"].as_u64()).collect();
    assert_eq!(counts, [7, 2, 1]);
    assert_eq!((text(&groups[0], "command"), text(&groups[0], "error")), ("mail", "Timeout after 6 ms"));
    let samples: Vec<&str> =
        groups[0]["sampleIds"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert_eq!(samples, slow.iter().rev().take(5).map(String::as_str).collect::<Vec<_>>());
    assert_eq!(answer["partial"], Value::Null);
    let fingerprint = text(&groups[1], "fingerprint");
    let of_group = list(&client, &format!("/dlq?fingerprint={fingerprint}&order=finished")).await;
    assert_eq!((of_group.len(), &of_group[0]), (2, &gone));
    let one = client.get("/v1/codeq/dlq/groups?limit=1&command=sms").await.expect(200);
    assert_eq!(one["groups"].as_array().map(Vec::len), Some(1));
    server.stop().await;
}

/// Queues are listed by name, in pages, over shards; one that does not exist has zeros.
#[tokio::test]
async fn queues_are_listed_and_shown() {
    let mut settings = settings();
    settings.node.shards = 3;
    let server = Running::start(settings).await;
    let client = server.client();
    let empty = client.get("/v1/codeq/queues/none").await.expect(200);
    assert_eq!(empty["ready"], 0);
    assert_eq!(empty["readyByPriority"], json!([0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    assert_eq!(empty["oldestReadyAgeMs"], Value::Null);
    for n in 0..12 {
        client.create(json!({"command": format!("q{n:02}"), "payload": n, "priority": 3})).await;
    }
    claim(&client, "q05").await;
    client.create(json!({"command": "other", "payload": 1, "delaySeconds": 60})).await;
    let queue = client.get("/v1/codeq/queues/q07").await.expect(200);
    assert_eq!((text(&queue, "command"), text(&queue, "tenantId")), ("q07", "default"));
    assert_eq!(
        (&queue["ready"], &queue["readyByPriority"][3], &queue["enqueuedTotal"]),
        (&json!(1), &json!(1), &json!(1))
    );
    assert!(queue["oldestReadyAgeMs"].as_u64().is_some_and(|age| age < 60_000));
    let mut names = Vec::new();
    let mut path = "/v1/codeq/queues?limit=5&prefix=q".to_owned();
    loop {
        let page = client.get(&path).await.expect(200);
        let queues = page["queues"].as_array().expect("a list");
        names.extend(queues.iter().map(|queue| text(queue, "command").to_owned()));
        let Some(cursor) = page["nextCursor"].as_str() else { break };
        path = format!("/v1/codeq/queues?limit=5&prefix=q&cursor={cursor}");
    }
    assert_eq!(names, (0..12).map(|n| format!("q{n:02}")).collect::<Vec<_>>());
    let all = client.get("/v1/codeq/queues?nonEmpty=true").await.expect(200);
    assert_eq!(all["queues"].as_array().map(Vec::len), Some(13));
    server.stop().await;
}

async fn groups(client: &Client) -> usize {
    let answer = client.get("/v1/codeq/dlq/groups?consistency=linearizable&wait=30s").await.expect(200);
    answer["groups"].as_array().map_or(0, Vec::len)
}

async fn queues(client: &Client) -> Vec<String> {
    let answer = client.get("/v1/codeq/queues").await.expect(200);
    let queues = answer["queues"].as_array().expect("a list");
    queues.iter().map(|queue| text(queue, "command").to_owned()).collect()
}

/// Another tenant's tasks, queues, dead letters and cursors are as if they did not exist; a worker sees the queues of its token.
#[tokio::test]
async fn nobody_sees_what_is_not_theirs() {
    let token = |token: &str, tenant: &str, types: &[&str]| {
        let scopes = ["codeq:claim", "codeq:nack"];
        let raw = json!({"tenantId": tenant});
        json!({"token": token, "subject": token, "eventTypes": types, "scopes": scopes, "raw": raw}).to_string()
    };
    let directory = tempfile::tempdir().expect("a directory");
    let start = async |producer: String, worker: String| {
        let auth = settings_with_tokens(Some(&producer), Some(&worker)).auth;
        Running::start(server::settings::Settings { auth, ..settings_in(directory.path()) }).await
    };
    let server = start(token("p-acme", "acme", &[]), token("w-all", "acme", &["*"])).await;
    let [acme, all] = ["p-acme", "w-all"].map(|token| server.with_token(token));
    let mailed = acme.create(json!({"command": "mail", "payload": 1, "maxAttempts": 1})).await;
    claim(&all, "mail").await;
    all.post(&format!("/tasks/{mailed}/nack"), json!({"reason": "x"})).await.expect(200);
    let texted = acme.create(json!({"command": "sms", "payload": 1})).await;
    assert_eq!(list(&acme, "/tasks").await, [texted.clone(), mailed.clone()]);
    assert_eq!(list(&all, "/tasks").await.len(), 2);
    let page = acme.get("/v1/codeq/tasks?limit=1").await.expect(200);
    let cursor = text(&page, "nextCursor");
    assert_eq!((groups(&acme).await, queues(&acme).await), (1, vec!["mail".to_owned(), "sms".to_owned()]));
    server.stop().await;
    let server = start(token("p-other", "other", &[]), token("w-mail", "acme", &["mail"])).await;
    let [other, mail] = ["p-other", "w-mail"].map(|token| server.with_token(token));
    let seen = vec![mailed.clone()];
    assert_eq!(list(&mail, "/tasks").await, seen);
    assert_eq!(list(&mail, &format!("/tasks?ids={texted},{mailed}")).await, seen);
    assert_eq!(list(&mail, "/tasks?command=sms").await, Vec::<String>::new());
    assert_eq!(list(&other, "/tasks").await, Vec::<String>::new());
    assert_eq!(list(&other, &format!("/tasks?ids={texted},{mailed}")).await, Vec::<String>::new());
    assert_eq!(list(&other, "/dlq").await, Vec::<String>::new());
    assert_eq!((groups(&other).await, groups(&mail).await), (0, 1));
    assert_eq!(queues(&mail).await, ["mail"]);
    assert_eq!(queues(&other).await, Vec::<String>::new());
    assert_eq!(other.get("/v1/codeq/queues/mail").await.expect(200)["enqueuedTotal"], 0);
    other.get(&format!("/v1/codeq/tasks?cursor={cursor}")).await.problem(400, "invalid_cursor");
    let me = mail.get("/v1/codeq/whoami").await.expect(200);
    assert_eq!((text(&me, "subject"), text(&me, "tenantId"), text(&me, "node")), ("w-mail", "acme", "n1"));
    assert_eq!((&me["eventTypes"], &me["roles"]), (&json!(["mail"]), &json!([])));
    assert_eq!(me["scopes"], json!(["codeq:claim", "codeq:nack"]));
    server.stop().await;
}

/// Whoever awaits a task is answered by its end; when the time is over, with the task as it is; and it counts as one who waits.
#[tokio::test]
async fn a_task_is_awaited() {
    let server = Running::open().await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    let path = format!("/v1/codeq/tasks/{id}");
    let at_once = client.get(&format!("{path}?waitSeconds=0.05")).await.expect(200);
    assert_eq!(text(&at_once, "state"), "READY");
    let waiting = client.clone();
    let awaited = format!("{path}?waitSeconds=60&waitFor=finished");
    let waiter = tokio::spawn(async move { waiting.get(&awaited).await.expect(200) });
    client.until_waiting(1).await;
    claim(&client, "mail").await;
    client.post(&format!("/tasks/{id}/result"), json!({"status": "COMPLETED", "result": {}})).await.expect(200);
    assert_eq!(text(&waiter.await.expect("it ends"), "state"), "COMPLETED");
    // What has ended is not waited for.
    assert_eq!(text(&client.get(&format!("{path}?waitSeconds=60")).await.expect(200), "state"), "COMPLETED");
    let other = client.create(json!({"command": "mail", "payload": 2})).await;
    let path = format!("/v1/codeq/tasks/{other}");
    let known = client.get(&path).await;
    let position = known.header("codeq-position").expect("a position").to_owned();
    let change = format!("{path}?waitSeconds=60&waitFor=change&minPosition={position}");
    let waiting = (client.clone(), change.clone());
    let waiter = tokio::spawn(async move { waiting.0.get(&waiting.1).await.expect(200) });
    client.until_waiting(1).await;
    claim(&client, "mail").await;
    assert_eq!(text(&waiter.await.expect("it ends"), "state"), "LEASED");
    // What has changed since is not waited for.
    assert_eq!(text(&client.get(&change).await.expect(200), "state"), "LEASED");
    let unsure = client.get(&format!("{path}?waitSeconds=1&waitFor=change")).await;
    assert_eq!(unsure.problem(400, "invalid_filter")["field"], "minPosition");
    client.get(&format!("{path}?waitSeconds=1&waitFor=ever")).await.problem(400, "invalid_filter");
    let unknown = client.get("/v1/codeq/tasks/00000000-0000-8000-8000-000000000000?waitSeconds=60").await;
    unknown.problem(404, "task_not_found");
    server.stop().await;
}
