//! What an operator finds in a checkpoint file with an SQLite tool.

use std::path::Path;

use base::machine::{Effects, EntryInfo, ShardInfo, StateMachine};
use base::rng::SplitMix;
use base::rows::Changes;
use base::rowstore::RowStore;
use base::{Incarnation, Index, LeaseTime, ScheduleTime, ShardId, Stamps, Term};
use queue::op::{Create, Schedule};
use queue::outcome::Outcome;
use queue::{Op, QueueMachine, codec};
use rusqlite::{Connection, OpenFlags};
use serde_json::json;
use storage::checkpoint::{Checkpoint, Meta, SqliteCheckpoint};

use crate::server::{Running, settings_in};

/// Opens the file as an operator's tool does who only looks.
fn look_into(file: &Path) -> Connection {
    Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("the file opens")
}

/// Writes a checkpoint with a few new tasks of a cluster of this incarnation; returns their ids as clients see them.
fn write_checkpoint(file: &Path, info: ShardInfo, first: Index) -> Vec<String> {
    let mut machine = QueueMachine::restore(info, &mut RowStore::default()).expect("no rows are the initial state");
    let mut effects = Effects::default();
    let stamps = Stamps { lease: LeaseTime(0), schedule: ScheduleTime(0) };
    machine.begin_entry(&EntryInfo { term: Term(1), index: first, stamps, seed: [0; 16] }, &mut effects);
    let mut ids = Vec::new();
    for _ in 0..3 {
        let create = Op::Create(Create {
            tenant: "acme",
            command: "mail",
            priority: 0,
            payload: b"1",
            schedule: Schedule::Now,
            webhook: "",
            max_attempts: None,
            key: None,
        });
        let mut bytes = Vec::new();
        codec::encode(&create, &mut bytes);
        let Ok(Outcome::Created(created)) = machine.apply(&bytes, &mut effects) else { panic!("it is created") };
        ids.push(created.id.to_string());
    }
    machine.freeze();
    let mut changes = Changes::default();
    assert!(machine.collect(usize::MAX, &mut changes), "all rows fit");
    let mut checkpoint = SqliteCheckpoint::open(file, QueueMachine::schema()).expect("it opens");
    checkpoint.write(&changes).expect("it is written");
    checkpoint.commit(&Meta { index: first, term: Term(1), configuration: Vec::new() }).expect("it is written");
    ids
}

/// The ids in the view `tasks` are those that clients see, whatever the cluster's incarnation, the shard and the place in the log.
#[test]
fn the_view_shows_the_ids_that_clients_see() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut random = SplitMix::new(7);
    let edges = [1, u64::MAX, 1 << 63, i64::MAX as u64];
    for round in 0..40 {
        let incarnation = edges.get(round).copied().unwrap_or_else(|| random.next_u64());
        let shard = ShardId(random.below(64) as u16);
        let first = Index(2 + random.below((1 << 46) - 2));
        let file = directory.path().join(format!("{round}.sqlite"));
        let expected = write_checkpoint(&file, ShardInfo { shard, incarnation: Incarnation(incarnation) }, first);
        let connection = look_into(&file);
        let mut statement = connection.prepare("SELECT id FROM tasks ORDER BY id").expect("the view is there");
        let ids = statement.query_map([], |row| row.get(0)).expect("it is read");
        let ids: Vec<String> = ids.collect::<Result<_, _>>().expect("they are read");
        assert_eq!(ids, expected, "incarnation {incarnation:x}, shard {shard}, index {}", first.0);
    }
}

/// How many tasks there are per queue and status is one plain query, over live and ended tasks alike.
#[tokio::test]
async fn tasks_are_counted_by_a_plain_query() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data");
    let server = Running::start(settings_in(&path)).await;
    let client = server.client();
    for command in ["mail", "mail", "mail", "mail", "mail", "print"] {
        client.create(json!({"command": command, "payload": 1, "maxAttempts": 1})).await;
    }
    client.create(json!({"command": "print", "payload": 1, "delaySeconds": 600})).await;
    let claim = async || client.post("/tasks/claim", json!({"commands": ["mail"]})).await.expect(200);
    for end in ["result", "result", "nack"] {
        let task = claim().await;
        let path = format!("/tasks/{}/{end}", task["id"].as_str().expect("an id"));
        client.post(&path, json!({"status": "COMPLETED", "result": {}})).await.expect(200);
    }
    claim().await;
    server.stop().await;

    let connection = look_into(&path.join("shard-0.sqlite"));
    let counts = "SELECT command, status, count(*) FROM tasks GROUP BY 1, 2 ORDER BY 1, 2";
    let mut statement = connection.prepare(counts).expect("the view is there");
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let counted = statement.query_map([], row).expect("it is read");
    let counted: Vec<(String, String, u32)> = counted.collect::<Result<_, _>>().expect("they are read");
    let expected = [
        ("mail", "COMPLETED", 2),
        ("mail", "FAILED", 1),
        ("mail", "IN_PROGRESS", 1),
        ("mail", "PENDING", 1),
        ("print", "PENDING", 2),
    ];
    assert_eq!(counted, expected.map(|(command, status, count)| (command.into(), status.into(), count)));
}
