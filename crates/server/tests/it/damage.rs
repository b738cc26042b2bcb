//! Damaged data is never served: the server stops, and says which file is damaged and where.

use std::path::Path;

use base::checksum::crc32c;
use base::rows::{RowWriter, Value};
use cluster::{NodeError, StorageError};
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use serde_json::json;
use server::Exit;

use crate::server::{Running, settings_in};

/// Makes a completed task, and leaves the server's data in `path`; returns the task's id.
async fn completed(path: &Path) -> String {
    let server = Running::start(settings_in(path)).await;
    let client = server.client();
    let id = client.create(json!({"command": "mail", "payload": 1})).await;
    client.post("/tasks/claim", json!({})).await.expect(200);
    let result = json!({"status": "COMPLETED", "result": {}});
    client.post(&format!("/tasks/{id}/result"), result).await.expect(200);
    server.stop().await;
    id
}

/// Makes a task, and takes its payload away from the checkpoint, which nobody notices before it is wanted; returns the task's id.
async fn without_payload(path: &Path) -> String {
    let server = Running::start(settings_in(path)).await;
    let id = server.client().create(json!({"command": "mail", "payload": 1})).await;
    server.stop().await;
    let connection = Connection::open(path.join("shard-0.sqlite")).expect("it opens");
    assert_eq!(connection.execute("DELETE FROM payloads", []).expect("it is written"), 1);
    id
}

/// The server that has read this stops; returns what it says.
async fn says(server: Running, file: &Path) -> String {
    match server.failed().await {
        Exit::Node(NodeError::Storage(StorageError::Damaged { file: named, what, .. })) => {
            assert_eq!(Path::new(&named), file);
            what
        }
        other => panic!("{other}"),
    }
}

/// A row that does not fit its checksum is noticed when somebody reads it.
#[tokio::test]
async fn a_damaged_row_of_an_ended_task_stops_the_server() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    let id = completed(&path).await;
    let file = path.join("shard-0.sqlite");
    let connection = Connection::open(&file).expect("it opens");
    connection.execute("UPDATE completed_0 SET attempts = 7", []).expect("it is written");
    drop(connection);
    let server = Running::start(settings_in(&path)).await;
    server.client().get(&format!("/v1/codeq/tasks/{id}")).await.problem(500, "internal");
    let what = says(server, &file).await;
    assert!(what.contains("table completed_0 does not fit its checksum"), "{what}");
}

/// So is one that fits its checksum and is not what a task's row can be.
#[tokio::test]
async fn an_impossible_row_of_an_ended_task_stops_the_server() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    let id = completed(&path).await;
    let file = path.join("shard-0.sqlite");
    let connection = Connection::open(&file).expect("it opens");
    connection.execute("UPDATE completed_0 SET state = 'LOST'", []).expect("it is written");
    let checksum = connection.query_row("SELECT * FROM completed_0", [], |row| {
        let mut bytes = Vec::new();
        let mut values = RowWriter::new(&mut bytes);
        for column in 1..row.as_ref().column_count() - 1 {
            values.value(match row.get_ref(column)? {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(number) => Value::Int(number),
                ValueRef::Text(text) => Value::Text(std::str::from_utf8(text).expect("it is text")),
                ValueRef::Blob(bytes) => Value::Blob(bytes),
                other => panic!("{other:?} in a completed task"),
            });
        }
        Ok(crc32c(crc32c(0, &row.get::<_, i64>(0)?.to_le_bytes()), &bytes))
    });
    connection.execute("UPDATE completed_0 SET checksum = ?", [checksum.expect("it reads")]).expect("it is written");
    drop(connection);
    let server = Running::start(settings_in(&path)).await;
    server.client().get(&format!("/v1/codeq/tasks/{id}")).await.problem(500, "internal");
    let what = says(server, &file).await;
    assert!(what.contains("a table completed does not read back"), "{what}");
}

/// A claim whose task cannot be shown has had an effect, and says so. It goes back at once, so that the next one gets it.
#[tokio::test]
async fn a_claim_that_cannot_be_answered_is_undone_and_unknown() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    without_payload(&path).await;
    let server = Running::start(settings_in(&path)).await;
    let client = server.client();
    for route in ["/tasks/claim", "/tasks/claim/batch", "/tasks/claim"] {
        let claim = json!({"leaseSeconds": 600, "waitSeconds": 30, "count": 1});
        let problem = client.post(route, claim).await.problem(504, "outcome_unknown");
        assert_eq!(problem["definite"], false);
    }
    server.stop().await;
}

/// So does a cancel. The record of the task cannot be written either, so the server stops.
#[tokio::test]
async fn a_cancel_that_cannot_be_answered_is_unknown() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    let id = without_payload(&path).await;
    let mut settings = settings_in(&path);
    settings.node.checkpoint_interval = base::Millis(3_600_000);
    let server = Running::start(settings).await;
    let problem = server.client().post(&format!("/tasks/{id}/cancel"), json!({})).await.problem(504, "outcome_unknown");
    assert_eq!(problem["definite"], false);
    match server.stopped().await {
        Err(Exit::Node(NodeError::Storage(StorageError::Damaged { what, .. }))) => {
            assert!(what.contains("payloads has no row"), "{what}");
        }
        other => panic!("{other:?}"),
    }
}
