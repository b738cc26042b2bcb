//! A checkpoint file that is only looked at: by an operator, or before it is taken over. Its server may run meanwhile.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base::codec::Malformed;
use base::rows::{Row, RowSource, Schema, TableId, Unreadable};
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use crate::StorageError;
use crate::checkpoint::Meta;
use crate::checkpoint::sqlite::snapshot::copy;
use crate::checkpoint::sqlite::{Rows, all_tables, check_tables, error, name, open_read_only, read_meta};

/// Lines of a count of what a checkpoint holds; the rest is left out.
const COUNTED_MAX: usize = 2_000;

/// How many things of one kind a checkpoint holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// What they have in common: names and values.
    pub of: Vec<(String, String)>,
    /// How many there are.
    pub number: u64,
}

/// One shard's checkpoint file, opened for reading only.
pub struct CheckpointFile {
    path: PathBuf,
    connection: Connection,
    schema: Schema,
    slices: BTreeSet<(TableId, u32)>,
    meta: Meta,
}

impl CheckpointFile {
    /// Opens it. Everything that is read of it is of one moment.
    ///
    /// # Errors
    /// There is no such file, it cannot be read, or it is none that this program and this schema have made.
    pub fn open(path: &Path, schema: Schema) -> Result<CheckpointFile, StorageError> {
        let connection = open_read_only(path)?;
        connection.execute_batch("BEGIN").map_err(error(path, "read"))?;
        let slices = check_tables(&connection, path, &schema)?;
        let nothing = || StorageError::damaged(&path.display().to_string(), None, "no checkpoint was committed to it");
        let meta = read_meta(&connection, path)?.ok_or_else(nothing)?;
        Ok(CheckpointFile { path: path.into(), connection, schema, slices, meta })
    }

    /// What it is of.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Its tables, by name, and how many rows each has.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn tables(&self) -> Result<Vec<(String, u64)>, StorageError> {
        let count = |(_, _, table): (TableId, u32, String)| {
            let sql = format!("SELECT count(*) FROM {table}");
            let rows: i64 = self.connection.query_row(&sql, [], |row| row.get(0)).map_err(error(&self.path, "read"))?;
            Ok((table, rows as u64))
        };
        self.each_table().into_iter().map(count).collect()
    }

    /// Counts what the schema's view `counts` lists: its last column is a number, the others say of what.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn counts(&self) -> Result<Vec<Counted>, StorageError> {
        if !self.schema.views.iter().any(|view| view.name == "counts") {
            return Ok(Vec::new());
        }
        let read = || -> rusqlite::Result<Vec<Counted>> {
            let columns = self.connection.prepare("SELECT * FROM counts")?;
            let mut names: Vec<String> = columns.column_names().map(str::to_owned).collect();
            let number = names.pop().unwrap_or_default();
            let of = names.join(", ");
            let sql = format!("SELECT {of}, sum({number}) FROM counts GROUP BY {of} ORDER BY {of} LIMIT {COUNTED_MAX}");
            let mut statement = self.connection.prepare(&sql)?;
            let counted = statement.query_map([], |row| {
                let value = |(place, name): (usize, &String)| Ok((name.clone(), row.get::<_, String>(place)?));
                let of = names.iter().enumerate().map(value).collect::<rusqlite::Result<_>>()?;
                Ok(Counted { of, number: row.get::<_, i64>(names.len())? as u64 })
            })?;
            counted.collect()
        };
        read().map_err(error(&self.path, "read"))
    }

    /// Whether SQLite finds the file whole, and every row fits its checksum.
    ///
    /// # Errors
    /// The damage.
    pub fn check(&mut self) -> Result<(), StorageError> {
        let checked = self.connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0));
        let verdict: String = checked.map_err(error(&self.path, "read"))?;
        let shown = self.path.display().to_string();
        if verdict != "ok" {
            return Err(StorageError::damaged(&shown, None, verdict));
        }
        for table in 0..self.schema.tables.len() {
            let read = self.for_each(table as TableId, &mut |_, _, _| Ok(()));
            read.map_err(|Unreadable(what)| StorageError::damaged(&shown, None, what))?;
        }
        Ok(())
    }

    /// Copies it to a new file that any SQLite tool can open and only its owner can read.
    ///
    /// # Errors
    /// The file is there already, or a disk failed.
    pub fn copy_to(&self, to: &Path) -> Result<(), StorageError> {
        let made = OpenOptions::new().create_new(true).write(true).mode(0o600).open(to);
        made.map_err(|cause| StorageError::failed("make", &to.display().to_string(), cause))?;
        copy(&self.connection, to).map_err(error(&self.path, "copy"))
    }

    /// Lists all replicated rows as SQL, by table and key. Two nodes that have saved the same index list the same lines.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn dump(&self, mut line: impl FnMut(&str)) -> Result<(), StorageError> {
        let failed = error(&self.path, "read");
        line(&format!("-- applied index {}, term {}", self.meta.index, self.meta.term));
        let mut text = String::new();
        for (_, _, table) in self.each_table() {
            let sql = format!("SELECT * FROM {table} ORDER BY key");
            let mut statement = self.connection.prepare(&sql).map_err(&failed)?;
            let columns = statement.column_count();
            let mut rows = statement.query([]).map_err(&failed)?;
            while let Some(row) = rows.next().map_err(&failed)? {
                text.clear();
                text.push_str("INSERT INTO ");
                text.push_str(&table);
                text.push_str(" VALUES(");
                for column in 0..columns {
                    if column > 0 {
                        text.push(',');
                    }
                    put_literal(row.get_ref(column).map_err(&failed)?, &mut text);
                }
                text.push_str(");");
                line(&text);
            }
        }
        Ok(())
    }

    fn each_table(&self) -> Vec<(TableId, u32, String)> {
        let all = all_tables(&self.schema, &self.slices);
        all.into_iter().map(|(table, slice)| (table, slice, name(&self.schema, table, slice))).collect()
    }
}

impl RowSource for CheckpointFile {
    fn for_each(
        &mut self,
        table: TableId,
        visit: &mut dyn FnMut(u32, i64, Row<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Unreadable> {
        let CheckpointFile { path, connection, schema, slices, .. } = self;
        Rows { path, connection, schema, slices }.for_each(table, visit)
    }
}

/// A value as SQL has it.
fn put_literal(value: ValueRef<'_>, text: &mut String) {
    let written = match value {
        ValueRef::Null => write!(text, "NULL"),
        ValueRef::Integer(number) => write!(text, "{number}"),
        ValueRef::Real(number) => write!(text, "{number:?}"),
        ValueRef::Text(bytes) => write!(text, "'{}'", String::from_utf8_lossy(bytes).replace('\'', "''")),
        ValueRef::Blob(bytes) => {
            text.push_str("X'");
            let digits = bytes.iter().try_for_each(|byte| write!(text, "{byte:02X}"));
            text.push('\'');
            digits
        }
    };
    written.expect("a text takes everything");
}
