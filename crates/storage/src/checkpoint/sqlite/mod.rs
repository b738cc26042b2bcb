//! Checkpoints in SQLite.
//!
//! Each table has a column `key` (the primary key), the columns of its schema, and `checksum`: CRC-32C over the key and the values as
//! [`base::rows`] writes them. A sliced table is a family `name_1`, `name_2`, …; the views of the schema join all of them. The table
//! `checkpoint` has one row: which index the rest belongs to.
//!
//! The file is in SQLite's write-ahead mode, in which readers keep nobody from writing, nor the writer them. Only another program that writes
//! is in the way: every transaction of ours takes the write lock when it begins, so that nothing is half done where it has to wait.

mod install;
mod look;
mod snapshot;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use base::checksum::crc32c;
use base::codec::Malformed;
use base::rows::{Change, Changes, Row, RowSource, RowWriter, Schema, TableId, Unreadable, Value};
use base::{Index, Term};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Statement, TransactionBehavior, params};

use crate::StorageError;
use crate::checkpoint::snapshot::Content;
use crate::checkpoint::{BUSY_MAX, Checkpoint, Meta, RowReader, Snapshots, Staged, StoredRow};

pub use look::{CheckpointFile, Counted};
pub(super) use snapshot::StagedFile;
use snapshot::{SqliteSnapshots, Temporary};

/// Version of the tables that every checkpoint has.
const FORMAT: i64 = 1;

/// Those tables.
const CREATE_FORMAT: &str = "CREATE TABLE format (value INTEGER NOT NULL)";
const CREATE_CHECKPOINT: &str = "CREATE TABLE checkpoint (
                key INTEGER PRIMARY KEY, applied_index INTEGER, applied_term INTEGER, configuration BLOB, checksum INTEGER
             )";

/// One shard's checkpoint file.
pub struct SqliteCheckpoint {
    path: PathBuf,
    connection: Connection,
    schema: Schema,
    /// Existing slices of sliced tables.
    slices: BTreeSet<(TableId, u32)>,
    in_transaction: bool,
    /// Held while the file is replaced, and by whoever else opens it.
    replacing: Arc<Mutex<()>>,
}

/// Messages about a file of SQLite: damage stops the node with another advice than a failing disk.
fn error(path: &Path, doing: &'static str) -> impl Fn(rusqlite::Error) -> StorageError {
    move |cause| {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseCorrupt, NotADatabase};
        let file = path.display().to_string();
        match cause.sqlite_error_code() {
            Some(DatabaseCorrupt | NotADatabase) => StorageError::damaged(&file, None, cause.to_string()),
            Some(DatabaseBusy) => StorageError::Busy { file },
            _ => StorageError::failed(doing, &file, std::io::Error::other(cause)),
        }
    }
}

/// Makes the file, if there is none, so that only its owner can read it. SQLite gives its other files the same mode.
fn make_private(path: &Path) -> Result<(), StorageError> {
    let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    made.map(drop).map_err(|cause| StorageError::failed("open", &path.display().to_string(), cause))
}

impl SqliteCheckpoint {
    /// Opens the file, or makes it. Removes what a crash left of snapshots, and completes an installation that it interrupted.
    ///
    /// # Errors
    /// The disk failed, the file is damaged, or another build has made it; or [`StorageError::Busy`].
    pub fn open(path: &Path, schema: Schema) -> Result<SqliteCheckpoint, StorageError> {
        snapshot::remove_leftovers(path)?;
        install::complete(path)?;
        SqliteCheckpoint::connect(path, schema, Arc::default())
    }

    /// Closes the file so that it is all there is: nothing of it is left in SQLite's log.
    ///
    /// # Errors
    /// The disk failed, or somebody else has it open.
    pub fn close(self) -> Result<(), StorageError> {
        let failed = error(&self.path, "close");
        self.connection.flush_prepared_statement_cache();
        self.connection.pragma_update(None, "journal_mode", "delete").map_err(&failed)?;
        self.connection.close().map_err(|(_, cause)| failed(cause))
    }

    /// A file that was closed, to be installed in the place of another checkpoint. It stays if it is not.
    ///
    /// # Errors
    /// It cannot be read, or is no checkpoint of this schema.
    pub fn staged(path: &Path, schema: Schema) -> Result<Staged, StorageError> {
        snapshot::read_staged(Temporary::kept(path), schema)
    }

    fn connect(path: &Path, schema: Schema, replacing: Arc<Mutex<()>>) -> Result<SqliteCheckpoint, StorageError> {
        let failed = error(path, "open");
        make_private(path)?;
        let connection = Connection::open(path).map_err(&failed)?;
        connection.busy_timeout(BUSY_MAX).map_err(&failed)?;
        connection.pragma_update(None, "journal_mode", "wal").map_err(&failed)?;
        connection.pragma_update(None, "synchronous", "full").map_err(&failed)?;
        connection.pragma_update(None, "cache_size", -8_192).map_err(&failed)?;
        connection.pragma_update(None, "wal_autocheckpoint", 0).map_err(&failed)?;
        connection.set_prepared_statement_cache_capacity(256);
        let mut checkpoint = SqliteCheckpoint {
            path: path.into(),
            connection,
            schema,
            slices: BTreeSet::new(),
            in_transaction: false,
            replacing,
        };
        checkpoint.make_tables().map_err(&failed)?;
        checkpoint.slices = check_tables(&checkpoint.connection, path, &schema)?;
        // An earlier build may have made other views.
        make_views(&checkpoint.connection, &schema, &checkpoint.slices).map_err(&failed)?;
        // The file's name must be durable before the log may rely on it.
        install::sync_folder(&install::folder(path))?;
        Ok(checkpoint)
    }

    fn make_tables(&mut self) -> rusqlite::Result<()> {
        let exists: bool = self.connection.query_row(
            "SELECT count(*) > 0 FROM sqlite_master WHERE name = 'checkpoint'",
            [],
            |row| row.get(0),
        )?;
        if exists {
            return Ok(());
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(CREATE_FORMAT)?;
        transaction.execute_batch(CREATE_CHECKPOINT)?;
        transaction.execute("INSERT INTO format VALUES (?)", [FORMAT])?;
        for (table, definition) in self.schema.tables.iter().enumerate() {
            if !definition.sliced {
                transaction.execute_batch(&create_table(&self.schema, table as TableId, 0))?;
            }
        }
        make_views(&transaction, &self.schema, &BTreeSet::new())?;
        transaction.commit()
    }

    fn begin(&mut self) -> rusqlite::Result<()> {
        if !self.in_transaction {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Makes a slice that does not exist yet.
    fn ensure_slice(&mut self, table: TableId, slice: u32) -> rusqlite::Result<()> {
        if self.schema.tables[usize::from(table)].sliced && self.slices.insert((table, slice)) {
            self.connection.execute_batch(&create_table(&self.schema, table, slice))?;
            make_views(&self.connection, &self.schema, &self.slices)?;
        }
        Ok(())
    }

    fn drop_slice(&mut self, table: TableId, slice: u32) -> rusqlite::Result<()> {
        if !self.slices.remove(&(table, slice)) {
            return Ok(());
        }
        // Cached statements would keep the table busy.
        self.connection.flush_prepared_statement_cache();
        make_views(&self.connection, &self.schema, &self.slices)?;
        self.connection.execute_batch(&format!("DROP TABLE {}", name(&self.schema, table, slice)))
    }

    /// Inserts or replaces the rows that follow each other for one table.
    fn put_run<'a>(
        &self,
        table: TableId,
        slice: u32,
        rows: impl Iterator<Item = (i64, Row<'a>)>,
    ) -> Result<(), StorageError> {
        let failed = error(&self.path, "write");
        let columns = self.schema.tables[usize::from(table)].columns.len();
        let mut statement = self.connection.prepare_cached(&insert(&self.schema, table, slice)).map_err(&failed)?;
        for (key, row) in rows {
            if !bind(&mut statement, key, row, columns).map_err(&failed)? {
                let resolved = self.resolve(key, row)?;
                bind(&mut statement, key, Row(&resolved), columns).map_err(&failed)?;
            }
            statement.raw_execute().map_err(&failed)?;
        }
        Ok(())
    }

    fn delete_run(&self, table: TableId, slice: u32, keys: impl Iterator<Item = i64>) -> Result<(), StorageError> {
        let failed = error(&self.path, "write");
        if self.schema.tables[usize::from(table)].sliced && !self.slices.contains(&(table, slice)) {
            keys.for_each(drop);
            return Ok(());
        }
        let sql = format!("DELETE FROM {} WHERE key = ?", name(&self.schema, table, slice));
        let mut statement = self.connection.prepare_cached(&sql).map_err(&failed)?;
        for key in keys {
            statement.execute([key]).map_err(&failed)?;
        }
        Ok(())
    }

    /// The row with its stored values filled in.
    fn resolve(&self, key: i64, row: Row<'_>) -> Result<Vec<u8>, StorageError> {
        let mut resolved = Vec::new();
        let mut values = row.reader();
        while !values.is_empty() {
            let value = values.value().expect("rows are written by RowWriter");
            let Value::Stored(table) = value else {
                RowWriter::new(&mut resolved).value(value);
                continue;
            };
            let file = self.path.display().to_string();
            let missing =
                || StorageError::damaged(&file, None, format!("{} has no row {key}", name(&self.schema, table, 0)));
            let stored = read_row(&self.connection, &self.path, &self.schema, table, 0, key)?.ok_or_else(missing)?;
            RowWriter::new(&mut resolved).value(Row(&stored).reader().value().map_err(|Malformed| missing())?);
        }
        Ok(resolved)
    }
}

impl Checkpoint for SqliteCheckpoint {
    fn meta(&self) -> Result<Option<Meta>, StorageError> {
        read_meta(&self.connection, &self.path)
    }

    fn rows(&mut self) -> Box<dyn RowSource + '_> {
        Box::new(Rows { path: &self.path, connection: &self.connection, schema: &self.schema, slices: &self.slices })
    }

    fn write(&mut self, changes: &Changes) -> Result<(), StorageError> {
        self.begin().map_err(error(&self.path, "write"))?;
        let mut changes = changes.iter().peekable();
        // Changes of one kind and table follow each other, and share a statement.
        while let Some(change) = changes.next() {
            match change {
                Change::Put { table, slice, key, row } => {
                    self.ensure_slice(table, slice).map_err(error(&self.path, "write"))?;
                    let more = std::iter::from_fn(|| match changes.peek() {
                        Some(Change::Put { table: t, slice: s, key, row }) if (*t, *s) == (table, slice) => {
                            let next = (*key, *row);
                            changes.next();
                            Some(next)
                        }
                        _ => None,
                    });
                    self.put_run(table, slice, std::iter::once((key, row)).chain(more))?;
                }
                Change::Delete { table, slice, key } => {
                    let more = std::iter::from_fn(|| match changes.peek() {
                        Some(Change::Delete { table: t, slice: s, key }) if (*t, *s) == (table, slice) => {
                            let next = *key;
                            changes.next();
                            Some(next)
                        }
                        _ => None,
                    });
                    self.delete_run(table, slice, std::iter::once(key).chain(more))?;
                }
                Change::DropSlice { table, slice } => {
                    self.drop_slice(table, slice).map_err(error(&self.path, "write"))?;
                }
            }
        }
        Ok(())
    }

    fn commit(&mut self, meta: &Meta) -> Result<(), StorageError> {
        let path = self.path.clone();
        let failed = error(&path, "write");
        self.begin().map_err(&failed)?;
        let values =
            params![meta.index.0 as i64, meta.term.0 as i64, meta.configuration, i64::from(meta_checksum(meta))];
        self.connection.execute("INSERT OR REPLACE INTO checkpoint VALUES (0, ?, ?, ?, ?)", values).map_err(&failed)?;
        self.connection.execute_batch("COMMIT").map_err(&failed)?;
        self.in_transaction = false;
        // Copies what is durable into the main file, as far as no reader is in the way; the next one copies the rest.
        let copied: rusqlite::Result<i64> =
            self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(0));
        copied.map(drop).map_err(&failed)
    }

    fn reader(&self) -> Result<Box<dyn RowReader>, StorageError> {
        let connection = open_read_only(&self.path)?;
        connection.set_prepared_statement_cache_capacity(256);
        let mut reader = SqliteReader {
            path: self.path.clone(),
            connection,
            schema: self.schema,
            version: -1,
            slices: BTreeMap::new(),
        };
        // SQLite opens its log at the first read. Now it is the log of this file, whatever takes its place later.
        reader.refresh().map_err(error(&self.path, "read"))?;
        Ok(Box::new(reader))
    }

    fn snapshots(&self) -> Arc<dyn Snapshots> {
        Arc::new(SqliteSnapshots { path: self.path.clone(), schema: self.schema, replacing: self.replacing.clone() })
    }

    fn install(&mut self, staged: Staged) -> Result<(), StorageError> {
        let Content::File(staged) = staged.content else {
            panic!("a checkpoint installs what its own snapshots have received");
        };
        let replacing = self.replacing.clone();
        let _replacing = replacing.lock().expect(NEVER_POISONED);
        staged.decide(&self.path)?;
        // Closes the old file. SQLite may fold its log into it, which does no harm: both go.
        self.connection = Connection::open_in_memory().map_err(error(&self.path, "close"))?;
        install::complete(&self.path)?;
        *self = SqliteCheckpoint::connect(&self.path, self.schema, replacing.clone())?;
        Ok(())
    }
}

const NEVER_POISONED: &str = "nothing panics while it holds this lock";

fn open_read_only(path: &Path) -> Result<Connection, StorageError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(error(path, "open"))?;
    connection.busy_timeout(BUSY_MAX).map_err(error(path, "open"))?;
    Ok(connection)
}

/// Which slices exist, if the file has the tables of this program and schema.
fn check_tables(
    connection: &Connection,
    path: &Path,
    schema: &Schema,
) -> Result<BTreeSet<(TableId, u32)>, StorageError> {
    let failed = error(path, "read");
    let foreign = |what: String| StorageError::Foreign { directory: path.display().to_string(), what };
    let mut statement =
        connection.prepare("SELECT name, sql FROM sqlite_master WHERE type = 'table'").map_err(&failed)?;
    let tables = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(&failed)?;
    let tables: BTreeMap<String, String> = tables.collect::<Result<_, _>>().map_err(&failed)?;
    if tables.get("format").is_none_or(|sql| sql != CREATE_FORMAT) {
        return Err(foreign("it is a database of another program".into()));
    }
    let format: i64 = connection.query_row("SELECT value FROM format", [], |row| row.get(0)).map_err(&failed)?;
    if format > FORMAT {
        let what = format!("it has format {format}, and this program reads up to {FORMAT}; use a newer program");
        return Err(foreign(what));
    }
    let slices = slices(connection, schema).map_err(&failed)?;
    let whole = (0..).zip(schema.tables).filter(|(_, table)| !table.sliced).map(|(table, _)| (table, 0));
    let expected = whole.chain(slices.iter().copied());
    let expected = expected.map(|(table, slice)| (name(schema, table, slice), create_table(schema, table, slice)));
    for (name, sql) in expected.chain([("checkpoint".into(), CREATE_CHECKPOINT.into())]) {
        match tables.get(&name) {
            None => return Err(foreign(format!("it has no table {name}; another build of this program made it"))),
            Some(found) if *found != sql => {
                let what = format!("its table {name} has other columns; another build of this program made it");
                return Err(foreign(what));
            }
            Some(_) => {}
        }
    }
    Ok(slices)
}

fn read_meta(connection: &Connection, path: &Path) -> Result<Option<Meta>, StorageError> {
    let failed = error(path, "read");
    let mut statement = connection
        .prepare("SELECT applied_index, applied_term, configuration, checksum FROM checkpoint")
        .map_err(&failed)?;
    let mut rows = statement.query([]).map_err(&failed)?;
    let Some(row) = rows.next().map_err(&failed)? else {
        return Ok(None);
    };
    let meta = Meta {
        index: Index(row.get::<_, i64>(0).map_err(&failed)? as u64),
        term: Term(row.get::<_, i64>(1).map_err(&failed)? as u64),
        configuration: row.get(2).map_err(&failed)?,
    };
    if row.get::<_, i64>(3).map_err(&failed)? != i64::from(meta_checksum(&meta)) {
        let file = path.display().to_string();
        return Err(StorageError::damaged(&file, None, "the row of table checkpoint does not fit its checksum"));
    }
    Ok(Some(meta))
}

/// Binds a row to an insertion. False: it has stored values, which must be filled in first.
fn bind(statement: &mut Statement<'_>, key: i64, row: Row<'_>, columns: usize) -> rusqlite::Result<bool> {
    statement.raw_bind_parameter(1, key)?;
    let mut values = row.reader();
    for place in 2..columns + 2 {
        match values.value().expect("rows are written by RowWriter") {
            Value::Null => statement.raw_bind_parameter(place, rusqlite::types::Null)?,
            Value::Int(number) => statement.raw_bind_parameter(place, number)?,
            Value::Text(text) => statement.raw_bind_parameter(place, text)?,
            Value::Blob(blob) => statement.raw_bind_parameter(place, blob)?,
            Value::Stored(_) => return Ok(false),
        }
    }
    assert!(values.is_empty(), "a row has as many values as its table has columns");
    statement.raw_bind_parameter(columns + 2, i64::from(checksum(key, row.0)))?;
    Ok(true)
}

struct Rows<'a> {
    path: &'a Path,
    connection: &'a Connection,
    schema: &'a Schema,
    slices: &'a BTreeSet<(TableId, u32)>,
}

impl RowSource for Rows<'_> {
    fn for_each(
        &mut self,
        table: TableId,
        visit: &mut dyn FnMut(u32, i64, Row<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Unreadable> {
        let Rows { path, connection, schema, slices } = *self;
        let of_table = slices.iter().filter(|(known, _)| *known == table).map(|(_, slice)| *slice);
        let parts: Vec<u32> = if schema.tables[usize::from(table)].sliced { of_table.collect() } else { vec![0] };
        for slice in parts {
            let unreadable = |what: String| Unreadable(format!("{}: {what}", path.display()));
            let table_name = name(schema, table, slice);
            let failed = |cause: rusqlite::Error| unreadable(format!("table {table_name}: {cause}"));
            let sql = format!("SELECT * FROM {table_name} ORDER BY key");
            let mut statement = connection.prepare(&sql).map_err(failed)?;
            let mut rows = statement.query([]).map_err(failed)?;
            let mut bytes = Vec::new();
            while let Some(row) = rows.next().map_err(failed)? {
                let damaged =
                    |key: i64| unreadable(format!("row {key} of table {table_name} does not fit its checksum"));
                let key = row.get(0).map_err(failed)?;
                encode(row, schema.tables[usize::from(table)].columns.len(), key, &mut bytes)
                    .ok_or_else(|| damaged(key))?;
                visit(slice, key, Row(&bytes)).map_err(|Malformed| damaged(key))?;
            }
        }
        Ok(())
    }
}

struct SqliteReader {
    path: PathBuf,
    connection: Connection,
    schema: Schema,
    /// SQLite's version of the schema at which `slices` were listed.
    version: i64,
    slices: BTreeMap<TableId, Vec<u32>>,
}

impl SqliteReader {
    fn refresh(&mut self) -> rusqlite::Result<()> {
        let version = self.connection.pragma_query_value(None, "schema_version", |row| row.get(0))?;
        if version != self.version {
            self.slices.clear();
            for (table, slice) in slices(&self.connection, &self.schema)? {
                self.slices.entry(table).or_default().push(slice);
            }
            self.version = version;
        }
        Ok(())
    }

    fn find_in_transaction(&mut self, table: TableId, key: i64) -> Result<Option<StoredRow>, StorageError> {
        if !self.schema.tables[usize::from(table)].sliced {
            let bytes = read_row(&self.connection, &self.path, &self.schema, table, 0, key)?;
            return Ok(bytes.map(|bytes| StoredRow { slice: 0, bytes }));
        }
        self.refresh().map_err(error(&self.path, "read"))?;
        for slice in self.slices.get(&table).into_iter().flatten().rev() {
            if let Some(bytes) = read_row(&self.connection, &self.path, &self.schema, table, *slice, key)? {
                return Ok(Some(StoredRow { slice: *slice, bytes }));
            }
        }
        Ok(None)
    }
}

impl RowReader for SqliteReader {
    fn find(&mut self, table: TableId, key: i64) -> Result<Option<StoredRow>, StorageError> {
        let path = self.path.clone();
        let failed = error(&path, "read");
        // One view of the file for the list of slices and the row.
        self.connection.execute_batch("BEGIN").map_err(&failed)?;
        let found = self.find_in_transaction(table, key);
        self.connection.execute_batch("COMMIT").map_err(&failed)?;
        found
    }
}

fn read_row(
    connection: &Connection,
    path: &Path,
    schema: &Schema,
    table: TableId,
    slice: u32,
    key: i64,
) -> Result<Option<Vec<u8>>, StorageError> {
    let failed = error(path, "read");
    let table_name = name(schema, table, slice);
    let mut statement: rusqlite::CachedStatement<'_> =
        connection.prepare_cached(&format!("SELECT * FROM {table_name} WHERE key = ?")).map_err(&failed)?;
    let statement: &mut Statement<'_> = &mut statement;
    let mut rows = statement.query([key]).map_err(&failed)?;
    let Some(row) = rows.next().map_err(&failed)? else {
        return Ok(None);
    };
    let mut bytes = Vec::new();
    let damaged = || {
        let what = format!("row {key} of table {table_name} does not fit its checksum");
        StorageError::damaged(&path.display().to_string(), None, what)
    };
    encode(row, schema.tables[usize::from(table)].columns.len(), key, &mut bytes).ok_or_else(damaged)?;
    Ok(Some(bytes))
}

/// Writes the values of a row as [`base::rows`] does. Nothing: they do not fit the row's checksum.
fn encode(row: &rusqlite::Row<'_>, columns: usize, key: i64, bytes: &mut Vec<u8>) -> Option<()> {
    bytes.clear();
    let mut writer = RowWriter::new(bytes);
    for column in 0..columns {
        writer.value(match row.get_ref(column + 1).ok()? {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(number) => Value::Int(number),
            ValueRef::Text(text) => Value::Text(std::str::from_utf8(text).ok()?),
            ValueRef::Blob(blob) => Value::Blob(blob),
            ValueRef::Real(_) => return None,
        });
    }
    let ValueRef::Integer(expected) = row.get_ref(columns + 1).ok()? else {
        return None;
    };
    (expected == i64::from(checksum(key, bytes))).then_some(())
}

fn checksum(key: i64, row: &[u8]) -> u32 {
    crc32c(crc32c(0, &key.to_le_bytes()), row)
}

fn meta_checksum(meta: &Meta) -> u32 {
    crc32c(crc32c(crc32c(0, &meta.index.0.to_le_bytes()), &meta.term.0.to_le_bytes()), &meta.configuration)
}

/// `live`, or `completed_7`.
fn name(schema: &Schema, table: TableId, slice: u32) -> String {
    let table = &schema.tables[usize::from(table)];
    if table.sliced { format!("{}_{slice}", table.name) } else { table.name.into() }
}

fn create_table(schema: &Schema, table: TableId, slice: u32) -> String {
    let columns: String = schema.tables[usize::from(table)]
        .columns
        .iter()
        .map(|column| format!("{} {}, ", column.name, column.kind))
        .collect();
    format!("CREATE TABLE {} (key INTEGER PRIMARY KEY, {columns}checksum INTEGER)", name(schema, table, slice))
}

fn insert(schema: &Schema, table: TableId, slice: u32) -> String {
    let places = ", ?".repeat(schema.tables[usize::from(table)].columns.len() + 1);
    format!("INSERT OR REPLACE INTO {} VALUES (?{places})", name(schema, table, slice))
}

/// The slices that exist, ascending.
fn slices(connection: &Connection, schema: &Schema) -> rusqlite::Result<BTreeSet<(TableId, u32)>> {
    let mut statement = connection.prepare_cached("SELECT name FROM sqlite_master WHERE type = 'table'")?;
    let names: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let slice = |found: &String| {
        let (base, number) = found.rsplit_once('_')?;
        let table = schema.tables.iter().position(|table| table.sliced && table.name == base)?;
        Some((table as TableId, number.parse().ok()?))
    };
    Ok(names.iter().filter_map(slice).collect())
}

/// Makes the views what the schema and the slices say, unless they are that already.
fn make_views(connection: &Connection, schema: &Schema, slices: &BTreeSet<(TableId, u32)>) -> rusqlite::Result<()> {
    for view in schema.views {
        let parts: Vec<String> = view
            .over
            .iter()
            .flat_map(|table| {
                let all: Vec<u32> = if schema.tables[usize::from(*table)].sliced {
                    slices.iter().filter(|(known, _)| known == table).map(|(_, slice)| *slice).collect()
                } else {
                    vec![0]
                };
                all.into_iter().map(|slice| view.select.replace("{table}", &name(schema, *table, slice)))
            })
            .collect();
        let sql = format!("CREATE VIEW {} AS {}", view.name, parts.join(" UNION ALL "));
        let present = "SELECT count(*) FROM sqlite_master WHERE name = ? AND sql = ?";
        let present: i64 = connection.query_row(present, [view.name, &sql], |row| row.get(0))?;
        if present == 0 {
            connection.execute_batch(&format!("DROP VIEW IF EXISTS {}; {sql}", view.name))?;
        }
    }
    Ok(())
}
