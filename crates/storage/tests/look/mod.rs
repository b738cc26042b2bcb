//! Looking through rows: a file and the memory show the same, in the order of every index; a look is of one moment; what is shown
//! need not be durable.

use std::ops::ControlFlow;

use crate::support::{Folder, meta};
use base::rng::SplitMix;
use base::rows::{Changes, Column, Index, Row, RowWriter, Scan, Schema, Table, Value, Wanted};
use storage::checkpoint::{Checkpoint, MemoryCheckpoint, RowReader, SqliteCheckpoint};

const SCHEMA: Schema = Schema {
    tables: &[Table {
        name: "tasks",
        sliced: true,
        columns: &[
            Column { name: "owner", kind: "TEXT" },
            Column { name: "level", kind: "INTEGER" },
            Column { name: "at", kind: "INTEGER" },
            Column { name: "text", kind: "TEXT" },
        ],
        indexes: &[
            Index { name: "owner", group: &["owner", "level"], order: None, present: None },
            Index { name: "at", group: &[], order: Some("at"), present: Some("at") },
            Index { name: "some", group: &["owner"], order: Some("at"), present: Some("at") },
        ],
    }],
    views: &[],
};

const OWNERS: [&str; 3] = ["ann", "bob", "cy"];
const ALL: &[Wanted] = &[Wanted::Value(0), Wanted::Value(1), Wanted::Value(2), Wanted::Bytes(3)];

fn random_rows(seed: u64) -> Changes {
    let mut random = SplitMix::new(seed);
    let mut changes = Changes::default();
    for key in 0..300 {
        let slice = 1 + (random.next_u64() % 2) as u32;
        changes.put(0, slice, key, |row| {
            row.text(OWNERS[(random.next_u64() % 3) as usize]);
            row.number(random.next_u64() % 3);
            row.maybe_number(random.next_u64().is_multiple_of(2).then(|| random.next_u64() % 40));
            row.maybe_text(&"x".repeat((random.next_u64() % 3) as usize));
        });
    }
    changes
}

fn seen(reader: &mut dyn RowReader, scan: &Scan<'_>, most: usize) -> Vec<(i64, i64, Vec<u8>)> {
    let mut seen = Vec::new();
    let mut visit = |order, key, row: Row<'_>| {
        seen.push((order, key, row.0.to_vec()));
        if seen.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    reader.scan(scan, &mut visit).expect("it reads");
    seen
}

fn row(values: &[Value<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = RowWriter::new(&mut bytes);
    values.iter().for_each(|value| writer.value(*value));
    bytes
}

/// Every index, group, direction and beginning, over random rows: the file against the memory, which filters and sorts.
#[test]
fn a_file_and_the_memory_show_the_same_rows_in_the_same_order() {
    let folder = Folder::new("look-same");
    let mut file = SqliteCheckpoint::open(&folder.file(), SCHEMA).expect("it opens");
    let mut memory = MemoryCheckpoint::new(SCHEMA);
    for checkpoint in [&mut file as &mut dyn Checkpoint, &mut memory] {
        checkpoint.write(&random_rows(7)).expect("it is written");
        checkpoint.commit(&meta(9)).expect("it is written");
    }
    let mut file = file.reader().expect("it opens");
    let mut memory = memory.reader().expect("it opens");
    assert_eq!(file.begin().expect("it begins"), Some(meta(9)));
    assert_eq!(memory.begin().expect("it begins"), Some(meta(9)));
    assert_eq!(file.slices(0).expect("it reads"), [1, 2]);
    assert_eq!(memory.slices(0).expect("it reads"), [1, 2]);
    let mut compared = 0;
    let mut groups: Vec<Option<(usize, Vec<u8>)>> = vec![None, Some((1, Vec::new()))];
    for owner in OWNERS {
        groups.push(Some((2, row(&[Value::Text(owner)]))));
        groups.extend((0..4).map(|level| Some((0, row(&[Value::Text(owner), Value::Int(level)])))));
    }
    for slice in [1, 2] {
        for group in &groups {
            for descending in [false, true] {
                for after in [None, Some((20, 150)), Some((0, 0)), Some((39, i64::MAX)), Some((5, i64::MIN))] {
                    let index = group.as_ref().map(|(index, group)| (*index, Row(group)));
                    let scan = Scan { table: 0, slice, index, after, descending, wanted: ALL };
                    let [of_file, of_memory] =
                        [&mut file, &mut memory].map(|reader| seen(&mut **reader, &scan, usize::MAX));
                    assert_eq!(of_file, of_memory, "{scan:?}");
                    assert_eq!(seen(&mut *file, &scan, 2).len(), 2.min(seen(&mut *memory, &scan, 2).len()));
                    compared += of_file.len();
                }
            }
        }
    }
    assert!(compared > 1_000, "{compared} rows were compared");
}

/// The groups of an index are found without looking through its rows, all of them or those that begin alike, unless there are too many.
#[test]
fn a_file_lists_the_groups_of_an_index() {
    let folder = Folder::new("look-groups");
    let mut file = SqliteCheckpoint::open(&folder.file(), SCHEMA).expect("it opens");
    file.write(&random_rows(3)).expect("it is written");
    file.commit(&meta(2)).expect("it is written");
    let mut reader = file.reader().expect("it opens");
    reader.begin().expect("it begins");
    let mut groups =
        |beginning: &[Value<'_>], max| reader.groups(0, 1, 0, Row(&row(beginning)), max).expect("it reads");
    let all: Vec<Vec<u8>> =
        OWNERS.iter().flat_map(|owner| (0..3).map(|level| row(&[Value::Text(owner), Value::Int(level)]))).collect();
    assert_eq!(groups(&[], 9), Some(all.clone()));
    assert_eq!(groups(&[], 8), None);
    assert_eq!(groups(&[Value::Text("bob")], 9), Some(all[3..6].to_vec()));
    assert_eq!(groups(&[Value::Text("bob"), Value::Int(2)], 9), Some(all[5..6].to_vec()));
    assert_eq!(groups(&[Value::Text("bo")], 9), Some(Vec::new()));
}

/// What is shown can be read at once; a look goes on showing what was there when it began; and a commit makes durable what was shown before.
#[test]
fn a_look_is_of_one_moment_and_sees_what_was_shown() {
    let folder = Folder::new("look-moment");
    let mut file = SqliteCheckpoint::open(&folder.file(), SCHEMA).expect("it opens");
    let mut memory = MemoryCheckpoint::new(SCHEMA);
    for checkpoint in [&mut file as &mut dyn Checkpoint, &mut memory] {
        let put = |key: i64| {
            let mut changes = Changes::default();
            changes.put(0, 1, key, |row| {
                [Value::Text("ann"), Value::Int(1), Value::Null, Value::Null]
                    .iter()
                    .for_each(|value| row.value(*value));
            });
            changes
        };
        checkpoint.write(&put(1)).expect("it is written");
        checkpoint.commit(&meta(2)).expect("it is written");
        let mut reader = checkpoint.reader().expect("it opens");
        let all = Scan { table: 0, slice: 1, index: None, after: None, descending: false, wanted: ALL };
        reader.begin().expect("it begins");
        assert_eq!(seen(&mut *reader, &all, 9).len(), 1);
        checkpoint.write(&put(2)).expect("it is written");
        checkpoint.show(&meta(3)).expect("it is written");
        assert_eq!(seen(&mut *reader, &all, 9).len(), 1, "the look is of the moment when it began");
        reader.end().expect("it ends");
        assert_eq!(reader.begin().expect("it begins"), Some(meta(3)));
        assert_eq!(seen(&mut *reader, &all, 9).len(), 2);
        reader.end().expect("it ends");
        checkpoint.commit(&meta(4)).expect("it is written");
        assert_eq!(checkpoint.meta().expect("it reads"), Some(meta(4)));
    }
    drop(file);
    let file = SqliteCheckpoint::open(&folder.file(), SCHEMA).expect("it opens");
    assert_eq!(file.meta().expect("it reads"), Some(meta(4)));
}

/// A file that an earlier build has made gets its indexes when it is opened.
#[test]
fn a_file_without_indexes_gets_them() {
    const PLAIN: Schema = Schema { tables: &[Table { indexes: &[], ..SCHEMA.tables[0] }], views: &[] };
    let folder = Folder::new("look-older");
    let mut file = SqliteCheckpoint::open(&folder.file(), PLAIN).expect("it opens");
    file.write(&random_rows(3)).expect("it is written");
    file.commit(&meta(2)).expect("it is written");
    drop(file);
    let file = SqliteCheckpoint::open(&folder.file(), SCHEMA).expect("it opens");
    let mut reader = file.reader().expect("it opens");
    reader.begin().expect("it begins");
    let ann = row(&[Value::Text("ann")]);
    let scan = Scan { table: 0, slice: 1, index: Some((2, Row(&ann))), after: None, descending: true, wanted: ALL };
    assert!(!seen(&mut *reader, &scan, 9).is_empty());
}
