//! What has happened to a task, from outside: everything, in order, wherever the task stands, page by page, and after a restart.

use serde_json::{Value, json};

use crate::client::{Client, text};
use crate::server::{Running, settings, settings_in};

async fn claim(client: &Client) -> String {
    let task = client.post("/tasks/claim", json!({"commands": ["mail"], "waitSeconds": 20})).await.expect(200);
    text(&task, "leaseToken").to_owned()
}

async fn history(client: &Client, id: &str) -> Vec<Value> {
    let page = client.get(&format!("/v1/codeq/tasks/{id}/history?limit=500")).await.expect(200);
    assert!(page.get("nextCursor").is_none(), "{page}");
    page["entries"].as_array().expect("a list").clone()
}

fn types(entries: &[Value]) -> Vec<&str> {
    entries.iter().map(|entry| text(entry, "type")).collect()
}

/// A task whose first lease was lost, and which another worker has completed then.
async fn run_twice(client: &Client) -> String {
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    let first = claim(client).await;
    for _ in 0..3 {
        client.post(&format!("/tasks/{id}/heartbeat"), json!({"leaseToken": first})).await.expect(200);
    }
    let nack = json!({"leaseToken": first, "reason": "relay is down", "delaySeconds": 0.05});
    client.post(&format!("/tasks/{id}/nack"), nack).await.expect(200);
    let second = claim(client).await;
    let late = json!({"status": "COMPLETED", "result": {}, "leaseToken": first});
    client.post(&format!("/tasks/{id}/result"), late).await.problem(409, "lease_lost");
    let done = json!({"status": "COMPLETED", "result": {}, "leaseToken": second});
    client.post(&format!("/tasks/{id}/result"), done).await.expect(200);
    id
}

/// Goal: the history says what has happened, who did it and where it stands in the log; it is the same on every way it is read: in memory, from
/// the checkpoint, after a restart.
#[tokio::test]
async fn a_history_tells_why_a_task_ran_twice() {
    let directory = tempfile::tempdir().expect("a directory");
    for settings in [settings(), settings_in(directory.path())] {
        let server = Running::start(settings.clone()).await;
        let client = server.client();
        let id = run_twice(&client).await;
        let entries = history(&client, &id).await;
        let expected = ["created", "claimed", "extended", "retry", "ready", "claimed", "result_refused", "completed"];
        assert_eq!(types(&entries), expected, "{entries:?}");
        let kinds: Vec<&str> = entries.iter().map(|entry| text(&entry["actor"], "kind")).collect();
        assert_eq!(kinds, ["producer", "worker", "worker", "worker", "system", "worker", "worker", "worker"]);
        assert_eq!((&entries[2]["count"], &entries[3]["delayMs"]), (&json!(3), &json!(50)));
        assert_eq!((&entries[3]["reason"], &entries[6]["reason"]), (&json!("relay is down"), &json!("lease_lost")));
        assert_eq!((&entries[5]["attempt"], &entries[6]["attempt"]), (&json!(2), &json!(1)), "whose result it was");
        assert_eq!((&entries[0]["to"], &entries[7]["to"]), (&json!("READY"), &json!("COMPLETED")));
        assert!(entries[1]["leaseMs"].is_u64() && entries[1]["actor"]["workerId"].is_string(), "{}", entries[1]);
        let positions: Vec<Vec<u64>> = entries
            .iter()
            .map(|entry| text(entry, "position").split(':').map(|part| part.parse().expect("a number")).collect())
            .collect();
        assert!(positions.is_sorted() && positions.iter().all(|position| position[1] > 0), "{positions:?}");
        server.stop().await;
        if settings.node.data == cluster::Data::Memory {
            continue;
        }
        let server = Running::start(settings).await;
        assert_eq!(history(&server.client(), &id).await, entries, "after a restart");
        server.stop().await;
    }
}

/// Goal: pages follow each other, each entry is on one of them; what is no task of this tenant, no cursor of this list and no parameter is refused.
#[tokio::test]
async fn a_history_is_read_in_pages() {
    let server = Running::open().await;
    let client = server.client();
    let id = run_twice(&client).await;
    let all = history(&client, &id).await;
    let path = format!("/v1/codeq/tasks/{id}/history");
    let (mut pages, mut next) = (Vec::new(), format!("{path}?limit=3"));
    let cursor = loop {
        let page = client.get(&next).await.expect(200);
        pages.extend(page["entries"].as_array().expect("a list").clone());
        let Some(cursor) = page["nextCursor"].as_str() else { break next };
        next = format!("{path}?limit=3&cursor={cursor}");
    };
    assert_eq!(pages, all);
    let other = client.create(json!({"command": "mail", "payload": 1})).await;
    let cursor = cursor.split("cursor=").nth(1).expect("there were several pages");
    client.get(&format!("/v1/codeq/tasks/{other}/history?cursor={cursor}")).await.problem(400, "invalid_cursor");
    client.get(&format!("{path}?cursor=x")).await.problem(400, "invalid_cursor");
    client.get(&format!("{path}?limit=x")).await.problem(400, "invalid_filter");
    client.get(&format!("{path}?colour=red")).await.problem(400, "invalid_filter");
    client.get(&format!("{path}?consistency=often")).await.problem(400, "invalid_consistency");
    let unknown = id.replace(&id[30..], "ffffff");
    client.get(&format!("/v1/codeq/tasks/{unknown}/history")).await.problem(404, "task_not_found");
    assert_eq!(types(&history(&client, &other).await), ["created"]);
    server.stop().await;
}
