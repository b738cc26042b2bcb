//! Snapshots of SQLite checkpoints: the copy that is sent, and the file that another node's copy arrives in.
//!
//! Beside `shard-0.sqlite` lie `shard-0.snapshot-out-1` and `shard-0.snapshot-in-2`, numbered so that no two are the same file. They go
//! with the values they belong to, or at the next start.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use base::codec::Malformed;
use base::rows::{Row, RowSource, Schema, TableId, Unreadable};
use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::ffi::{Error as Failure, SQLITE_BUSY};

use crate::StorageError;
use crate::checkpoint::snapshot::{Content, Target};
use crate::checkpoint::sqlite::install::{self, Step};
use crate::checkpoint::sqlite::{NEVER_POISONED, Rows, check_tables, error, open_read_only, read_meta};
use crate::checkpoint::{Incoming, Outgoing, Snapshot, Snapshots, Staged};

/// Snapshots of the checkpoint in one file.
pub(super) struct SqliteSnapshots {
    pub(super) path: PathBuf,
    pub(super) schema: Schema,
    pub(super) replacing: Arc<Mutex<()>>,
}

impl Snapshots for SqliteSnapshots {
    fn take(&self) -> Result<Outgoing, StorageError> {
        let file = Temporary::new(&self.path, "out");
        file.make()?;
        let meta = {
            let _not_replaced = self.replacing.lock().expect(NEVER_POISONED);
            let failed = error(&self.path, "copy");
            let source = open_read_only(&self.path)?;
            // One view of the file for what it is of and for the copy.
            source.execute_batch("BEGIN").map_err(&failed)?;
            let nothing =
                || StorageError::damaged(&self.path.display().to_string(), None, "no checkpoint was committed yet");
            let meta = read_meta(&source, &self.path)?.ok_or_else(nothing)?;
            copy(&source, &file.0).map_err(&failed)?;
            meta
        };
        let name = file.0.display().to_string();
        let bytes = File::open(&file.0).map_err(|cause| StorageError::failed("open", &name, cause))?;
        Outgoing::new(meta, name, Box::new(bytes), Box::new(file))
    }

    fn begin(&self, snapshot: &Snapshot) -> Result<Incoming, StorageError> {
        let path = Temporary::new(&self.path, "in");
        let file = path.make()?;
        Ok(Incoming::new(snapshot, Box::new(Arriving { file, path, schema: self.schema })))
    }
}

/// Copies what the transaction of `source` sees into an empty file. The copy needs no durability: it is made again after a crash.
pub(super) fn copy(source: &Connection, to: &Path) -> rusqlite::Result<()> {
    let mut copy = Connection::open(to)?;
    copy.pragma_update(None, "locking_mode", "exclusive")?;
    copy.pragma_update(None, "journal_mode", "off")?;
    copy.pragma_update(None, "synchronous", "off")?;
    // In one step, whatever is written meanwhile: `source` keeps reading what its transaction saw first.
    if Backup::new(source, &mut copy)?.step(-1)? != StepResult::Done {
        return Err(rusqlite::Error::SqliteFailure(Failure::new(SQLITE_BUSY), None));
    }
    // The copy is one file, without SQLite's log beside it, and can be read as such.
    copy.pragma_update(None, "journal_mode", "delete")?;
    copy.close().map_err(|(_, cause)| cause)
}

/// A file that is removed with this value, unless it is to stay.
pub(super) struct Temporary(PathBuf, Removal);

#[derive(PartialEq, Eq)]
enum Removal {
    WithValue,
    Never,
}

/// Tells apart the files of one process.
static NUMBER: AtomicU64 = AtomicU64::new(1);

impl Temporary {
    fn new(path: &Path, kind: &str) -> Temporary {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Temporary(path.with_extension(format!("{TEMPORARY}{kind}-{number}")), Removal::WithValue)
    }

    /// A file that is there already, and stays.
    pub(super) fn kept(path: &Path) -> Temporary {
        Temporary(path.into(), Removal::Never)
    }

    /// Makes the file so that only its owner can read it.
    fn make(&self) -> Result<File, StorageError> {
        let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.0);
        made.map_err(|cause| StorageError::failed("make", &self.0.display().to_string(), cause))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.1 == Removal::WithValue {
            // What cannot be removed now is removed at the next start.
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

const TEMPORARY: &str = "snapshot-";

/// Removes the files of an earlier process.
pub(super) fn remove_leftovers(path: &Path) -> Result<(), StorageError> {
    let Some(stem) = path.file_stem() else { return Ok(()) };
    let begin = format!("{}.{TEMPORARY}", stem.to_string_lossy());
    let folder = install::folder(path);
    let failed = |cause| StorageError::failed("list", &folder.display().to_string(), cause);
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with(&begin) {
            Step::Remove(entry.path()).perform()?;
        }
    }
    Ok(())
}

/// A file that is being received.
struct Arriving {
    file: File,
    path: Temporary,
    schema: Schema,
}

impl Target for Arriving {
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<(), StorageError> {
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(|cause| StorageError::failed("write", &self.path.0.display().to_string(), cause))
    }

    fn stage(self: Box<Self>) -> Result<Staged, StorageError> {
        let Arriving { file, path, schema } = *self;
        let name = path.0.display().to_string();
        file.sync_all().map_err(|cause| StorageError::failed("sync", &name, cause))?;
        drop(file);
        read_staged(path, schema)
    }
}

/// Opens a whole file that waits to be installed.
pub(super) fn read_staged(path: Temporary, schema: Schema) -> Result<Staged, StorageError> {
    let name = path.0.display().to_string();
    let connection = open_read_only(&path.0)?;
    let slices = check_tables(&connection, &path.0, &schema)?;
    let meta = read_meta(&connection, &path.0)?;
    let meta = meta.ok_or_else(|| StorageError::damaged(&name, None, "no checkpoint was committed to it"))?;
    Ok(Staged { meta, content: Content::File(StagedFile { connection, path, schema, slices }) })
}

/// A whole snapshot in a file of its own.
pub(in crate::checkpoint) struct StagedFile {
    connection: Connection,
    path: Temporary,
    schema: Schema,
    slices: BTreeSet<(TableId, u32)>,
}

impl StagedFile {
    /// Decides that this is the checkpoint at `path`; [`install::complete`] must follow.
    pub(super) fn decide(self, path: &Path) -> Result<(), StorageError> {
        let StagedFile { connection, path: snapshot, .. } = self;
        drop(connection);
        install::decide(&snapshot.0, path).perform()
    }
}

impl RowSource for StagedFile {
    fn for_each(
        &mut self,
        table: TableId,
        visit: &mut dyn FnMut(u32, i64, Row<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Unreadable> {
        let StagedFile { connection, path, schema, slices } = self;
        Rows { path: &path.0, connection, schema, slices }.for_each(table, visit)
    }
}
