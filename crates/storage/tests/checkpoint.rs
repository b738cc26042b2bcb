//! Checkpoints in SQLite and in memory: what was committed reads back, what was not is not there, damage is noticed.

mod look;
mod support;

use base::Index;
use base::rng::SplitMix;
use base::rows::{Changes, Value};
use storage::StorageError;
use storage::checkpoint::{Checkpoint, MemoryCheckpoint, SqliteCheckpoint};
use support::{Folder, OLD, PARTS, SCHEMA, THINGS, dump, meta, open, things};

/// Both kinds of checkpoint do the same.
fn with_each(test: &str, check: impl Fn(&mut dyn Checkpoint)) {
    let folder = Folder::new(test);
    check(&mut open(&folder.file()));
    check(&mut MemoryCheckpoint::new(SCHEMA));
}

#[test]
fn a_new_checkpoint_is_empty_and_a_committed_one_reads_back() {
    with_each("commit", |checkpoint| {
        assert_eq!(checkpoint.meta().expect("it reads"), None);
        assert_eq!(dump(&mut *checkpoint.rows()), []);
        checkpoint.write(&things(1..3)).expect("it is written");
        checkpoint.commit(&meta(7)).expect("it is written");
        assert_eq!(checkpoint.meta().expect("it reads"), Some(meta(7)));
        let mut changes = Changes::default();
        changes.delete(THINGS, 0, 1);
        changes.delete(THINGS, 0, 99);
        checkpoint.write(&changes).expect("it is written");
        checkpoint.commit(&meta(8)).expect("it is written");
        assert_eq!(dump(&mut *checkpoint.rows()), [(THINGS, 0, 2, "thing 2".into())]);
    });
}

#[test]
fn slices_come_with_their_first_row_and_go_as_a_whole() {
    with_each("slices", |checkpoint| {
        let mut changes = Changes::default();
        for slice in 1..4 {
            for key in 0..3 {
                changes.put(OLD, slice, key * 10 + i64::from(slice), |row| {
                    row.text("old");
                    row.value(Value::Blob(b"\xff"));
                });
            }
        }
        changes.delete(OLD, 9, 1);
        changes.drop_slice(OLD, 9);
        checkpoint.write(&changes).expect("it is written");
        checkpoint.commit(&meta(2)).expect("it is written");
        let mut reader = checkpoint.reader().expect("a reader opens");
        assert_eq!(reader.find(OLD, 12).expect("it reads").map(|row| row.slice), Some(2));
        let mut changes = Changes::default();
        changes.drop_slice(OLD, 2);
        changes.put(OLD, 4, 13, |row| {
            row.text("newer");
            row.value(Value::Null);
        });
        checkpoint.write(&changes).expect("it is written");
        // Not before the commit.
        assert_eq!(reader.find(OLD, 12).expect("it reads").map(|row| row.slice), Some(2));
        checkpoint.commit(&meta(3)).expect("it is written");
        assert_eq!(reader.find(OLD, 12).expect("it reads"), None);
        // The newest slice wins.
        assert_eq!(reader.find(OLD, 13).expect("it reads").map(|row| row.slice), Some(4));
        let slices: Vec<u32> = dump(&mut *checkpoint.rows()).iter().map(|row| row.1).collect();
        assert_eq!(slices, [1, 1, 1, 3, 3, 3, 4]);
    });
}

#[test]
fn a_stored_value_is_taken_from_the_row_of_the_same_key() {
    with_each("stored", |checkpoint| {
        let mut changes = Changes::default();
        changes.put(PARTS, 0, 5, |row| row.text("the part"));
        checkpoint.write(&changes).expect("it is written");
        checkpoint.commit(&meta(2)).expect("it is written");
        let mut changes = Changes::default();
        changes.put(OLD, 1, 5, |row| {
            row.text("old");
            row.value(Value::Stored(PARTS));
        });
        changes.delete(PARTS, 0, 5);
        checkpoint.write(&changes).expect("it is written");
        checkpoint.commit(&meta(3)).expect("it is written");
        let row = checkpoint.reader().expect("a reader opens").find(OLD, 5).expect("it reads").expect("it is there");
        let mut values = base::rows::Row(&row.bytes).reader();
        assert_eq!((values.text(), values.text()), (Ok("old"), Ok("the part")));
    });
}

#[test]
fn what_was_not_committed_is_not_there_after_a_crash() {
    let folder = Folder::new("crash");
    let mut checkpoint = open(&folder.file());
    checkpoint.write(&things(0..100)).expect("it is written");
    checkpoint.commit(&meta(5)).expect("it is written");
    let before = dump(&mut *checkpoint.rows());
    // Enough rows that pages leave SQLite's cache before the commit.
    checkpoint.write(&things(100..30_000)).expect("it is written");
    let copy = Folder::new("crash-copy");
    folder.copy_to(&copy);
    let mut after = open(&copy.file());
    assert_eq!(after.meta().expect("it reads"), Some(meta(5)));
    assert_eq!(dump(&mut *after.rows()), before);
}

/// A crash at any moment: the files as they are, cut off or with a torn tail of SQLite's own log, hold the old or the new checkpoint.
#[test]
fn a_crash_in_a_commit_leaves_the_old_checkpoint_or_the_new_one() {
    let folder = Folder::new("atomic");
    let mut checkpoint = open(&folder.file());
    checkpoint.write(&things(0..200)).expect("it is written");
    checkpoint.commit(&meta(5)).expect("it is written");
    // A reader keeps the new pages in SQLite's log instead of the main file.
    let mut reader = checkpoint.reader().expect("a reader opens");
    reader.find(THINGS, 1).expect("it reads");
    checkpoint.write(&things(100..400)).expect("it is written");
    let main = std::fs::read(folder.file()).expect("it can be read");
    checkpoint.commit(&meta(6)).expect("it is written");
    let log = std::fs::read(folder.0.join("shard-0.sqlite-wal")).expect("it can be read");
    let mut rng = SplitMix::new(3);
    let mut seen = [0, 0];
    for round in 0..60 {
        let copy = Folder::new("atomic-copy");
        let kept = if round == 0 { log.len() } else { rng.below(log.len() as u64 + 1) as usize };
        std::fs::write(copy.file(), &main).expect("it can be written");
        std::fs::write(copy.0.join("shard-0.sqlite-wal"), &log[..kept]).expect("it can be written");
        let mut after = open(&copy.file());
        match after.meta().expect("it reads").expect("it has one").index {
            Index(5) => {
                seen[0] += 1;
                assert_eq!(dump(&mut *after.rows()).len(), 200);
            }
            Index(6) => {
                seen[1] += 1;
                assert_eq!(dump(&mut *after.rows()).len(), 400);
            }
            other => panic!("a checkpoint of {other}"),
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

#[test]
fn a_flipped_bit_is_noticed_before_a_wrong_row_is_read() {
    let folder = Folder::new("damage");
    let mut checkpoint = open(&folder.file());
    checkpoint.write(&things(0..500)).expect("it is written");
    checkpoint.commit(&meta(5)).expect("it is written");
    drop(checkpoint);
    let whole = std::fs::read(folder.file()).expect("it can be read");
    let expected = dump(&mut *open(&folder.file()).rows());
    let mut rng = SplitMix::new(11);
    let mut noticed = 0;
    for _ in 0..150 {
        let copy = Folder::new("damage-copy");
        let mut bytes = whole.clone();
        // Behind SQLite's file header, whose counters mean nothing to the rows.
        let offset = 100 + rng.below(bytes.len() as u64 - 100) as usize;
        bytes[offset] ^= 1 << rng.below(8);
        std::fs::write(copy.file(), &bytes).expect("it can be written");
        let Ok(mut damaged) = SqliteCheckpoint::open(&copy.file(), SCHEMA) else {
            noticed += 1;
            continue;
        };
        let mut found = Vec::new();
        let read = damaged.rows().for_each(THINGS, &mut |slice, key, row| {
            found.push((THINGS, slice, key, row.reader().text()?.to_owned()));
            Ok(())
        });
        match read {
            Err(_) => noticed += 1,
            // The flip hit free space, or rows have disappeared: the state machine counts them. None may be wrong.
            Ok(()) => assert!(found.iter().all(|row| expected.contains(row)), "a flip at {offset} changed a row"),
        }
    }
    assert!(noticed > 30, "only {noticed} of 150 flips were noticed");
}

#[test]
fn a_file_that_is_no_checkpoint_is_damage_and_stays_as_it_is() {
    let folder = Folder::new("foreign");
    std::fs::write(folder.file(), b"this is not SQLite, and nobody may overwrite it").expect("it can be written");
    match SqliteCheckpoint::open(&folder.file(), SCHEMA) {
        Err(StorageError::Damaged { file, .. }) => assert!(file.ends_with("shard-0.sqlite")),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was opened"),
    }
    let kept = std::fs::read(folder.file()).expect("it can be read");
    assert_eq!(kept, b"this is not SQLite, and nobody may overwrite it");
}

#[test]
fn an_operator_finds_all_rows_in_one_view() {
    let folder = Folder::new("view");
    let mut checkpoint = open(&folder.file());
    let mut changes = things(1..3);
    changes.put(OLD, 1, 10, |row| {
        row.text("first slice");
        row.value(Value::Null);
    });
    changes.put(OLD, 2, 20, |row| {
        row.text("second slice");
        row.value(Value::Null);
    });
    checkpoint.write(&changes).expect("it is written");
    checkpoint.commit(&meta(2)).expect("it is written");
    let connection = rusqlite::Connection::open(folder.file()).expect("it opens");
    let mut statement = connection.prepare("SELECT key FROM everything ORDER BY key").expect("the view exists");
    let keys: Vec<i64> = statement.query_map([], |row| row.get(0)).expect("it runs").map(Result::unwrap).collect();
    assert_eq!(keys, [1, 2, 10, 20]);
}

/// While another program writes to the file, nothing of ours begins, and what did not begin can be tried again. One that reads is in nobody's
/// way.
#[test]
fn another_program_holds_a_checkpoint_up_and_does_not_break_it() {
    let folder = Folder::new("busy");
    let mut checkpoint = open(&folder.file());
    checkpoint.write(&things(0..10)).expect("it is written");
    checkpoint.commit(&meta(5)).expect("it is written");
    let reading = rusqlite::Connection::open(folder.file()).expect("it opens");
    let count = |connection: &rusqlite::Connection| -> i64 {
        connection.query_row("SELECT count(*) FROM things", [], |row| row.get(0)).expect("it runs")
    };
    reading.execute_batch("BEGIN").expect("it begins");
    assert_eq!(count(&reading), 10);
    let writing = rusqlite::Connection::open(folder.file()).expect("it opens");
    writing.execute_batch("BEGIN IMMEDIATE").expect("it begins");

    let refused = checkpoint.write(&things(10..20)).expect_err("the file is locked");
    assert!(matches!(refused, StorageError::Busy { .. }), "{refused}");
    let refused = checkpoint.commit(&meta(6)).expect_err("the file is locked");
    assert!(matches!(refused, StorageError::Busy { .. }), "{refused}");
    drop(open(&folder.file()));
    let mut reader = checkpoint.reader().expect("a reader opens");
    assert!(reader.find(THINGS, 1).expect("it reads").is_some());

    writing.execute_batch("ROLLBACK").expect("it ends");
    checkpoint.write(&things(10..20)).expect("it is written");
    checkpoint.commit(&meta(6)).expect("it is written");
    assert_eq!(count(&reading), 10, "a reader goes on seeing what it saw first");
    reading.execute_batch("COMMIT").expect("it ends");
    assert_eq!(count(&reading), 20);
}

/// The views of a file are those of the build that opens it.
#[test]
fn a_view_of_an_earlier_build_is_replaced() {
    let folder = Folder::new("old-view");
    let mut checkpoint = open(&folder.file());
    checkpoint.write(&things(1..3)).expect("it is written");
    checkpoint.commit(&meta(2)).expect("it is written");
    drop(checkpoint);
    let connection = rusqlite::Connection::open(folder.file()).expect("it opens");
    let earlier = "DROP VIEW everything; CREATE VIEW everything AS SELECT 7 AS key";
    connection.execute_batch(earlier).expect("it is a view");
    drop(open(&folder.file()));
    let count: i64 = connection.query_row("SELECT count(name) FROM everything", [], |row| row.get(0)).expect("it runs");
    assert_eq!(count, 2);
}

/// The text of the tables of format version 1. If this fails, checkpoints in the field cannot be read: write a new version instead.
#[test]
fn the_format_is_the_one_on_record() {
    let folder = Folder::new("golden");
    let mut checkpoint = open(&folder.file());
    let mut changes = things(1..2);
    changes.put(OLD, 1, 10, |row| {
        row.text("old");
        row.value(Value::Blob(b"\x00\xff"));
    });
    checkpoint.write(&changes).expect("it is written");
    checkpoint.commit(&meta(2)).expect("it is written");
    let connection = rusqlite::Connection::open(folder.file()).expect("it opens");
    let mut text = String::new();
    let mut statement = connection.prepare("SELECT sql FROM sqlite_master ORDER BY name").expect("it runs");
    for sql in statement.query_map([], |row| row.get::<_, String>(0)).expect("it runs") {
        text.push_str(&format!("{};\n", sql.expect("it is text")));
    }
    for table in ["format", "checkpoint", "things", "old_1"] {
        let mut statement = connection.prepare(&format!("SELECT * FROM {table}")).expect("it exists");
        let columns = statement.column_count();
        let mut rows = statement.query([]).expect("it runs");
        while let Some(row) = rows.next().expect("it runs") {
            let values: Vec<String> =
                (0..columns).map(|column| format!("{:?}", row.get_ref(column).expect("it is there"))).collect();
            text.push_str(&format!("{table}: {}\n", values.join(", ")));
        }
    }
    let golden = "testdata/checkpoint-v1.txt";
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::write(golden, &text).expect("it can be written");
    }
    assert_eq!(text, std::fs::read_to_string(golden).expect("the file exists"));
}
