//! What the tests of checkpoints share: tables, folders, rows.

use std::path::{Path, PathBuf};

use base::rows::{Changes, Column, RowSource, Schema, Table, TableId, View};
use base::{Index, Term};
use storage::checkpoint::{Meta, SqliteCheckpoint};

pub(crate) const THINGS: TableId = 0;
pub(crate) const PARTS: TableId = 1;
pub(crate) const OLD: TableId = 2;

pub(crate) const SCHEMA: Schema = Schema {
    tables: &[
        Table {
            name: "things",
            sliced: false,
            columns: &[Column { name: "name", kind: "TEXT" }, Column { name: "size", kind: "INTEGER" }],
            indexes: &[],
        },
        Table { name: "parts", sliced: false, columns: &[Column { name: "part", kind: "TEXT" }], indexes: &[] },
        Table {
            name: "old",
            sliced: true,
            columns: &[Column { name: "name", kind: "TEXT" }, Column { name: "part", kind: "BLOB" }],
            indexes: &[],
        },
    ],
    views: &[View { name: "everything", over: &[THINGS, OLD], select: "SELECT key, name FROM {table}" }],
};

/// A folder of its own for each test, removed at the end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(test: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("codeq-checkpoint-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("the folder can be made");
        Folder(path)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.0.join("shard-0.sqlite")
    }

    /// The files as they are: what a crash of the process would leave.
    pub(crate) fn copy_to(&self, other: &Folder) {
        for name in self.names() {
            std::fs::copy(self.0.join(&name), other.0.join(&name)).expect("it can be copied");
        }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let files = std::fs::read_dir(&self.0).expect("it can be listed");
        let mut names: Vec<String> =
            files.map(|file| file.expect("it can be listed").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn open(path: &Path) -> SqliteCheckpoint {
    SqliteCheckpoint::open(path, SCHEMA).expect("the checkpoint opens")
}

pub(crate) fn meta(index: u64) -> Meta {
    Meta { index: Index(index), term: Term(3), configuration: vec![1, 2, 3] }
}

pub(crate) fn things(keys: std::ops::Range<i64>) -> Changes {
    let mut changes = Changes::default();
    for key in keys {
        changes.put(THINGS, 0, key, |row| {
            row.text(&format!("thing {key}"));
            row.number(key as u64 * 10);
        });
    }
    changes
}

/// (table, slice, key, first value) of every row.
pub(crate) fn dump(rows: &mut dyn RowSource) -> Vec<(TableId, u32, i64, String)> {
    let mut found = Vec::new();
    for table in [THINGS, PARTS, OLD] {
        rows.for_each(table, &mut |slice, key, row| {
            found.push((table, slice, key, row.reader().text()?.to_owned()));
            Ok(())
        })
        .expect("every row reads back");
    }
    found
}
