//! How long a snapshot takes: the copy, what a network would carry, the checks at the other end, and its installation.
//!
//! `cargo bench -p storage --bench snapshot -- 100000` prints the times for so many rows of 200 bytes, in files of the temporary directory.

#![expect(clippy::print_stdout, reason = "a program of its own")]

use std::time::Instant;

use base::rows::{Changes, Column, RowSource, Schema, Table};
use base::{Index, Term};
use storage::checkpoint::{Checkpoint, Meta, SqliteCheckpoint};

const SCHEMA: Schema = Schema {
    tables: &[Table {
        name: "things",
        sliced: false,
        columns: &[Column { name: "text", kind: "TEXT" }, Column { name: "number", kind: "INTEGER" }],
        indexes: &[],
    }],
    views: &[],
};

/// Bytes sent at once.
const PIECE: usize = 256 << 10;

fn main() {
    let rows = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(100_000);
    let folder = std::env::temp_dir().join(format!("codeq-snapshot-bench-{}", std::process::id()));
    let open = |node: &str| {
        std::fs::create_dir_all(folder.join(node)).expect("the folder can be made");
        SqliteCheckpoint::open(&folder.join(node).join("shard-0.sqlite"), SCHEMA).expect("it opens")
    };
    let (mut sender, mut receiver) = (open("a"), open("b"));
    let mut changes = Changes::default();
    let text = "x".repeat(190);
    for key in 0..rows {
        changes.put(0, 0, key, |row| {
            row.text(&text);
            row.number(key as u64);
        });
    }
    let mut start = Instant::now();
    let mut lap = |what: &str| {
        println!("{what:<12} {:>8.1} ms", start.elapsed().as_secs_f64() * 1e3);
        start = Instant::now();
    };
    sender.write(&changes).expect("it is written");
    let meta = Meta { index: Index(7), term: Term(1), configuration: vec![] };
    sender.commit(&meta).expect("it is written");
    lap("checkpoint");
    let outgoing = sender.snapshots().take().expect("a copy is made");
    lap("take");
    let mut incoming = receiver.snapshots().begin(outgoing.snapshot()).expect("there is room");
    let mut buffer = vec![0; PIECE];
    while incoming.received() < outgoing.snapshot().length {
        let read = outgoing.read_at(incoming.received(), &mut buffer).expect("it reads");
        incoming.write(incoming.received(), &buffer[..read]).expect("it is written");
    }
    lap("transfer");
    let mut staged = incoming.finish().expect("it is what was announced");
    lap("finish");
    let mut found = 0;
    let visited = staged.for_each(0, &mut |_, _, _| {
        found += 1;
        Ok(())
    });
    visited.expect("every row reads back");
    assert_eq!(found, rows);
    lap("rows");
    receiver.install(staged).expect("it is installed");
    lap("install");
    println!("{rows} rows, {} bytes", outgoing.snapshot().length);
    drop((sender, receiver, outgoing));
    std::fs::remove_dir_all(&folder).expect("it can be removed");
}
