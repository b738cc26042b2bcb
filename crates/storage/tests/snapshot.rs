//! Snapshots of checkpoints, in SQLite and in memory: what one node takes another one installs; nothing but that is ever installed.

mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use base::rng::SplitMix;
use base::rows::{Changes, Column, Row, RowSource, Schema, Table, Value};
use storage::StorageError;
use storage::checkpoint::{
    Checkpoint, Incoming, MemoryCheckpoint, Meta, Outgoing, Snapshot, Snapshots, SqliteCheckpoint, Staged,
};
use support::{Folder, OLD, SCHEMA, THINGS, dump, meta, open, things};

/// Both kinds of checkpoint do the same: `check` gets the sender's, which is of index 7 and has things 1 to 499 and a slice, and the
/// receiver's, which is of index 3 and has thing 1000.
fn with_each(test: &str, check: impl Fn(&mut dyn Checkpoint, &mut dyn Checkpoint)) {
    let fill = |sender: &mut dyn Checkpoint, receiver: &mut dyn Checkpoint| {
        let mut changes = things(1..500);
        changes.put(OLD, 7, 5, |row| {
            row.text("old");
            row.value(Value::Blob(b"\xff"));
        });
        sender.write(&changes).expect("it is written");
        sender.commit(&meta(7)).expect("it is written");
        receiver.write(&things(1000..1001)).expect("it is written");
        receiver.commit(&meta(3)).expect("it is written");
        check(sender, receiver);
    };
    let (from, to) = (Folder::new(&format!("{test}-from")), Folder::new(&format!("{test}-to")));
    fill(&mut open(&from.file()), &mut open(&to.file()));
    fill(&mut MemoryCheckpoint::new(SCHEMA), &mut MemoryCheckpoint::new(SCHEMA));
    // Neither copies nor what was received stay behind.
    for folder in [from, to] {
        assert!(folder.names().iter().all(|name| name.starts_with("shard-0.sqlite")), "{:?}", folder.names());
    }
}

fn take(checkpoint: &dyn Checkpoint) -> Outgoing {
    checkpoint.snapshots().take().expect("a copy is made")
}

fn bytes(outgoing: &Outgoing) -> Vec<u8> {
    let mut bytes = vec![0; outgoing.snapshot().length as usize];
    assert_eq!(outgoing.read_at(0, &mut bytes).expect("it reads"), bytes.len());
    bytes
}

/// Sends what the receiver does not have, in pieces of an odd size.
fn send(outgoing: &Outgoing, incoming: &mut Incoming, pieces: usize) {
    let mut buffer = [0; 1_003];
    for _ in 0..pieces {
        let read = outgoing.read_at(incoming.received(), &mut buffer).expect("it reads");
        incoming.write(incoming.received(), &buffer[..read]).expect("it is written");
    }
}

fn transfer(outgoing: &Outgoing, to: &dyn Snapshots) -> Staged {
    let mut incoming = to.receive(outgoing.snapshot(), None).expect("there is room");
    send(outgoing, &mut incoming, outgoing.snapshot().length as usize / 1_003 + 1);
    incoming.finish().expect("it is what was announced")
}

/// Receives bytes that were announced as `snapshot`.
fn receive(to: &dyn Snapshots, snapshot: &Snapshot, bytes: &[u8]) -> Result<Staged, StorageError> {
    let mut incoming = to.begin(snapshot)?;
    incoming.write(0, bytes)?;
    incoming.finish()
}

fn refusal(received: Result<Staged, StorageError>) -> String {
    match received {
        Err(error @ StorageError::BadSnapshot { .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was accepted"),
    }
}

#[test]
fn a_snapshot_is_installed_as_it_was_taken() {
    with_each("round-trip", |sender, receiver| {
        let outgoing = take(sender);
        assert_eq!(outgoing.snapshot().meta, meta(7));
        let expected = dump(&mut *sender.rows());
        // Neither what the sender commits later nor what the receiver has not committed is part of it.
        sender.write(&things(600..700)).expect("it is written");
        sender.commit(&meta(8)).expect("it is written");
        receiver.write(&things(2000..2100)).expect("it is written");
        let mut staged = transfer(&outgoing, &*receiver.snapshots());
        assert_eq!(staged.meta(), &meta(7));
        assert_eq!(dump(&mut staged), expected);
        assert_eq!(receiver.meta().expect("it reads"), Some(meta(3)), "nothing has happened yet");
        receiver.install(staged).expect("it is installed");
        assert_eq!(receiver.meta().expect("it reads"), Some(meta(7)));
        assert_eq!(dump(&mut *receiver.rows()), expected);
        // It goes on as a checkpoint like any other.
        let mut changes = things(3000..3001);
        changes.drop_slice(OLD, 7);
        receiver.write(&changes).expect("it is written");
        receiver.commit(&meta(9)).expect("it is written");
        let mut reader = receiver.reader().expect("a reader opens");
        assert!(reader.find(THINGS, 3000).expect("it reads").is_some());
        assert!(reader.find(THINGS, 1000).expect("it reads").is_none());
        assert!(reader.find(OLD, 5).expect("it reads").is_none());
        assert_eq!(take(receiver).snapshot().meta, meta(9));
    });
}

/// The snapshot of a state in which nothing is takes everything away.
#[test]
fn a_snapshot_of_nothing_empties() {
    let from = Folder::new("nothing-from");
    let check = |sender: &mut dyn Checkpoint, receiver: &mut dyn Checkpoint| {
        sender.commit(&meta(7)).expect("it is written");
        receiver.write(&things(1..500)).expect("it is written");
        receiver.commit(&meta(3)).expect("it is written");
        let staged = transfer(&take(sender), &*receiver.snapshots());
        receiver.install(staged).expect("it is installed");
        assert_eq!(receiver.meta().expect("it reads"), Some(meta(7)));
        assert_eq!(dump(&mut *receiver.rows()), []);
    };
    let to = Folder::new("nothing-to");
    check(&mut open(&from.file()), &mut open(&to.file()));
    check(&mut MemoryCheckpoint::new(SCHEMA), &mut MemoryCheckpoint::new(SCHEMA));
}

/// Each commit gives all rows the same number, and its own index is that number. So must every copy be.
#[test]
fn a_copy_is_of_one_commit_while_the_writer_goes_on() {
    let folder = Folder::new("consistent");
    let mut checkpoint = open(&folder.file());
    let write = |checkpoint: &mut SqliteCheckpoint, number: u64| {
        let mut changes = Changes::default();
        for key in 0..2_000 {
            changes.put(THINGS, 0, key, |row| {
                row.text(&number.to_string());
                row.number(number);
            });
        }
        checkpoint.write(&changes).expect("it is written");
        checkpoint.commit(&meta(number)).expect("it is written");
    };
    write(&mut checkpoint, 1);
    let snapshots = checkpoint.snapshots();
    let done = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let copies = scope.spawn(|| {
            let mut seen = Vec::new();
            while !done.load(Ordering::Relaxed) || seen.is_empty() {
                let outgoing = snapshots.take().expect("a copy is made");
                let mut staged = transfer(&outgoing, &*snapshots);
                let number = staged.meta().index.to_string();
                let rows = dump(&mut staged);
                assert_eq!(rows.len(), 2_000);
                assert!(rows.iter().all(|row| row.3 == number), "a copy of {number} has a row of another commit");
                seen.push(staged.meta().index);
            }
            seen
        });
        for number in 2..60 {
            write(&mut checkpoint, number);
        }
        done.store(true, Ordering::Relaxed);
        copies.join().expect("no copy is torn")
    });
    assert!(seen.is_sorted(), "{seen:?}");
}

#[test]
fn a_transfer_that_broke_off_goes_on_and_another_snapshot_begins_anew() {
    with_each("resume", |sender, receiver| {
        let first = take(sender);
        let snapshots = receiver.snapshots();
        let mut incoming = snapshots.receive(first.snapshot(), None).expect("there is room");
        send(&first, &mut incoming, 5);
        let incoming = snapshots.receive(first.snapshot(), Some(incoming)).expect("there is room");
        assert_eq!(incoming.received(), 5 * 1_003);
        sender.write(&things(600..700)).expect("it is written");
        sender.commit(&meta(8)).expect("it is written");
        let second = take(sender);
        let mut incoming = snapshots.receive(second.snapshot(), Some(incoming)).expect("there is room");
        assert_eq!(incoming.received(), 0);
        send(&second, &mut incoming, 2);
        let mut incoming = snapshots.receive(second.snapshot(), Some(incoming)).expect("there is room");
        send(&second, &mut incoming, second.snapshot().length as usize / 1_003 - 1);
        let staged = incoming.finish().expect("it is what was announced");
        receiver.install(staged).expect("it is installed");
        assert_eq!(dump(&mut *receiver.rows()), dump(&mut *sender.rows()));
        // What was taken first can still be read, and a copy does not change with its checkpoint.
        let staged = transfer(&first, &*snapshots);
        assert_eq!(staged.meta(), &meta(7));
    });
}

#[test]
fn bytes_out_of_turn_and_too_many_are_refused_and_change_nothing() {
    with_each("order", |sender, receiver| {
        let outgoing = take(sender);
        let all = bytes(&outgoing);
        let mut incoming = receiver.snapshots().begin(outgoing.snapshot()).expect("there is room");
        incoming.write(0, &all[..100]).expect("it is written");
        for (offset, bytes) in [(0, &all[..100]), (101, &all[101..]), (u64::MAX, &all[..1]), (100, &all[..])] {
            let error = incoming.write(offset, bytes).expect_err("these are not the next ones");
            assert!(matches!(error, StorageError::BadSnapshot { .. }), "{error}");
            assert_eq!(incoming.received(), 100);
        }
        incoming.write(100, &all[100..]).expect("it is written");
        incoming.finish().expect("it is whole");
    });
}

#[test]
fn what_is_not_what_was_announced_is_refused_and_the_old_checkpoint_stays() {
    with_each("refused", |sender, receiver| {
        let outgoing = take(sender);
        let all = bytes(&outgoing);
        let snapshots = receiver.snapshots();
        let announced = outgoing.snapshot();
        let short = refusal(receive(&*snapshots, announced, &all[..all.len() - 1]));
        assert!(short.contains("index 7, term 3") && short.contains("it ends after"), "{short}");
        for cut in (0..all.len()).step_by(4 << 10) {
            assert!(refusal(receive(&*snapshots, announced, &all[..cut])).contains("it ends after"), "cut at {cut}");
        }
        let mut rng = SplitMix::new(5);
        for _ in 0..20 {
            let mut flipped = all.clone();
            flipped[rng.below(all.len() as u64) as usize] ^= 1 << rng.below(8);
            assert!(refusal(receive(&*snapshots, announced, &flipped)).contains("SHA-256"));
        }
        let wrong = Snapshot { sha256: [1; 32], ..announced.clone() };
        assert!(refusal(receive(&*snapshots, &wrong, &all)).contains("SHA-256"));
        let others = [Meta { configuration: vec![9], ..meta(7) }, Meta { term: base::Term(4), ..meta(7) }, meta(8)];
        for meta in others {
            let other = Snapshot { meta, ..announced.clone() };
            assert!(refusal(receive(&*snapshots, &other, &all)).contains("it is of index 7, term 3"));
        }
        assert_eq!(receiver.meta().expect("it reads"), Some(meta(3)));
        assert_eq!(dump(&mut *receiver.rows()), [(THINGS, 0, 1000, "thing 1000".into())]);
    });
}

/// Announced as `outgoing` was, but with these bytes.
fn announce(bytes: &[u8]) -> Snapshot {
    use sha2::Digest;
    Snapshot { meta: meta(7), length: bytes.len() as u64, sha256: sha2::Sha256::digest(bytes).into() }
}

#[test]
fn a_snapshot_of_another_build_or_kind_is_refused_by_name() {
    const COLUMNS: Schema = Schema {
        tables: &[
            Table { name: "things", sliced: false, columns: &[Column { name: "name", kind: "TEXT" }], indexes: &[] },
            SCHEMA.tables[1],
            SCHEMA.tables[2],
        ],
        views: &[],
    };
    const TABLES: Schema = Schema { tables: &[SCHEMA.tables[0]], views: &[] };
    let to = Folder::new("foreign-to");
    let mut receiver = open(&to.file());
    receiver.commit(&meta(3)).expect("it is written");
    let snapshots = receiver.snapshots();
    for (schema, refused) in [(COLUMNS, "its table things has other columns"), (TABLES, "it has no table parts")] {
        let from = Folder::new("foreign-schema");
        let mut sender = SqliteCheckpoint::open(&from.file(), schema).expect("the checkpoint opens");
        sender.commit(&meta(7)).expect("it is written");
        let outgoing = take(&sender);
        let error = refusal(receive(&*snapshots, outgoing.snapshot(), &bytes(&outgoing)));
        assert!(error.contains(refused), "{error}");
    }
    let changed_by = |sql: &str| {
        let from = Folder::new("foreign-from");
        let mut sender = open(&from.file());
        sender.write(&things(1..3)).expect("it is written");
        sender.commit(&meta(7)).expect("it is written");
        rusqlite::Connection::open(from.file()).expect("it opens").execute_batch(sql).expect("it runs");
        bytes(&take(&sender))
    };
    for (sql, refused) in [
        ("UPDATE format SET value = 2", "use a newer program"),
        ("DROP TABLE format", "it is a database of another program"),
    ] {
        let bytes = changed_by(sql);
        let error = refusal(receive(&*snapshots, &announce(&bytes), &bytes));
        assert!(error.contains(refused), "{error}");
    }
    // A row that does not fit its checksum is noticed by whoever restores the state from it, before it is installed.
    let changed = changed_by("UPDATE things SET size = 11 WHERE key = 1");
    let mut staged = receive(&*snapshots, &announce(&changed), &changed).expect("its outside is fine");
    let unreadable = staged.for_each(THINGS, &mut |_, _, _: Row<'_>| Ok(())).expect_err("row 1 is damaged");
    assert!(unreadable.0.contains("row 1 of table things does not fit its checksum"), "{unreadable:?}");
    for garbage in [&b""[..], b"this is not SQLite", &[0; 4096]] {
        refusal(receive(&*snapshots, &announce(garbage), garbage));
        refusal(receive(&*MemoryCheckpoint::new(SCHEMA).snapshots(), &announce(garbage), garbage));
    }
    let mut memory = MemoryCheckpoint::new(SCHEMA);
    memory.commit(&meta(7)).expect("it is written");
    let outgoing = take(&memory);
    refusal(receive(&*snapshots, outgoing.snapshot(), &bytes(&outgoing)));
    let outgoing = take(&receiver);
    refusal(receive(&*memory.snapshots(), outgoing.snapshot(), &bytes(&outgoing)));
    assert_eq!(receiver.meta().expect("it reads"), Some(meta(3)));
}

/// A reader of the old file, whether it has read before or not, must not touch the log of the new one: neither read it, nor remove it when
/// it is closed.
#[test]
fn a_reader_of_the_old_checkpoint_goes_on_with_it_and_harms_nothing() {
    for has_read in [true, false] {
        let (from, to, after) = (Folder::new("readers-from"), Folder::new("readers-to"), Folder::new("readers-after"));
        let mut sender = open(&from.file());
        sender.write(&things(1..500)).expect("it is written");
        sender.commit(&meta(7)).expect("it is written");
        let mut receiver = open(&to.file());
        receiver.write(&things(1000..1500)).expect("it is written");
        receiver.commit(&meta(3)).expect("it is written");
        let mut reader = receiver.reader().expect("a reader opens");
        if has_read {
            reader.find(THINGS, 1000).expect("it reads").expect("it is there");
        }
        let staged = transfer(&take(&sender), &*receiver.snapshots());
        receiver.install(staged).expect("it is installed");
        // Somebody reads what was installed, so that what is committed next stays in the log.
        let other = rusqlite::Connection::open(to.file()).expect("it opens");
        other.execute_batch("BEGIN; SELECT count(*) FROM things").expect("it runs");
        receiver.write(&things(2000..2500)).expect("it is written");
        receiver.commit(&meta(9)).expect("it is written");
        for key in 1000..1500 {
            assert!(reader.find(THINGS, key).expect("it reads").is_some());
        }
        assert_eq!(reader.find(THINGS, 1).expect("it reads"), None);
        assert_eq!(reader.find(THINGS, 2000).expect("it reads"), None);
        drop(reader);
        receiver.write(&things(2500..2600)).expect("it is written");
        receiver.commit(&meta(10)).expect("it is written");
        to.copy_to(&after);
        let mut after = open(&after.file());
        assert_eq!(after.meta().expect("it reads"), Some(meta(10)));
        assert_eq!(dump(&mut *after.rows()).len(), 499 + 600);
    }
}

#[test]
fn what_a_crash_leaves_of_snapshots_is_gone_after_a_start() {
    let (folder, after) = (Folder::new("leftovers"), Folder::new("leftovers-after"));
    let mut checkpoint = open(&folder.file());
    checkpoint.write(&things(1..500)).expect("it is written");
    checkpoint.commit(&meta(7)).expect("it is written");
    let outgoing = take(&checkpoint);
    let mut incoming = checkpoint.snapshots().begin(outgoing.snapshot()).expect("there is room");
    send(&outgoing, &mut incoming, 2);
    let other = folder.0.join("shard-01.snapshot-in-1");
    std::fs::write(&other, "of another shard").expect("it can be written");
    folder.copy_to(&after);
    assert_eq!(after.names().iter().filter(|name| name.starts_with("shard-0.snapshot-")).count(), 2);
    let mut opened = open(&after.file());
    assert_eq!(dump(&mut *opened.rows()).len(), 499);
    drop(opened);
    assert_eq!(after.names(), ["shard-0.sqlite", "shard-01.snapshot-in-1"]);
}
