//! Checkpoints: what a shard's state machine was at some index, in one SQLite file that any SQLite tool can open, or in memory.
//!
//! One transaction carries the changed rows and the index they belong to, so a crash leaves the old or the new checkpoint. Every row has a
//! checksum over its key and values; one that does not fit is damage.

mod memory;
mod snapshot;
mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use base::rows::{Changes, Look, RowSource, TableId};
use base::{Index, Term};

use crate::StorageError;

pub use memory::MemoryCheckpoint;
pub use snapshot::{Incoming, Outgoing, Snapshot, Snapshots, Staged};
pub use sqlite::{CheckpointFile, Counted, SqliteCheckpoint};

/// How long a lock of another program is waited for at a time.
pub const BUSY_MAX: Duration = Duration::from_secs(1);

/// What a checkpoint is of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Every entry up to here is applied.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
    /// The members at that entry, as consensus encodes them.
    pub configuration: Vec<u8>,
}

/// Writes the checkpoints of one shard, and reads them at start.
pub trait Checkpoint: Send {
    /// What the last committed checkpoint is of; nothing if there is none yet.
    ///
    /// # Errors
    /// It cannot be read.
    fn meta(&self) -> Result<Option<Meta>, StorageError>;

    /// The rows of the last committed checkpoint.
    fn rows(&mut self) -> Box<dyn RowSource + '_>;

    /// Makes changes that count once [`Checkpoint::commit`] has returned.
    ///
    /// # Errors
    /// The disk failed, or the checkpoint is damaged; or [`StorageError::Busy`].
    fn write(&mut self, changes: &Changes) -> Result<(), StorageError>;

    /// Makes all changes since the last commit durable, together.
    ///
    /// # Errors
    /// The disk failed; or [`StorageError::Busy`], if nothing was written since the last commit.
    fn commit(&mut self, meta: &Meta) -> Result<(), StorageError>;

    /// Shows readers all changes since the last commit, together, without making them durable: a crash leaves the last commit, or what was
    /// shown since, whole.
    ///
    /// # Errors
    /// The disk failed; or [`StorageError::Busy`], if nothing was written since the last commit.
    fn show(&mut self, meta: &Meta) -> Result<(), StorageError>;

    /// Another reader of committed and shown rows, for another thread.
    ///
    /// # Errors
    /// It cannot be opened.
    fn reader(&self) -> Result<Box<dyn RowReader>, StorageError>;

    /// Sends copies of this checkpoint and receives those of other nodes. Stays valid when one of them is installed.
    fn snapshots(&self) -> Arc<dyn Snapshots>;

    /// A snapshot that [`Checkpoint::snapshots`] received takes the place of this checkpoint, durably: a crash leaves the one or the
    /// other, whole. Changes since the last commit are forgotten. Readers opened before go on reading the old checkpoint: open new ones.
    ///
    /// # Errors
    /// The disk failed. Which of the two it is will be known at the next start.
    fn install(&mut self, staged: Staged) -> Result<(), StorageError>;
}

/// Reads rows of the last checkpoint that was committed or shown. As a [`Look`] it reads between [`RowReader::begin`] and
/// [`RowReader::end`].
pub trait RowReader: Look<Error = StorageError> + Send {
    /// Begins a look, and says what it is at; nothing: nothing was committed yet.
    ///
    /// # Errors
    /// The disk failed, or the checkpoint is damaged.
    fn begin(&mut self) -> Result<Option<Meta>, StorageError>;

    /// Ends a look. Rows that have changed meanwhile take up room until then.
    ///
    /// # Errors
    /// The disk failed.
    fn end(&mut self) -> Result<(), StorageError>;

    /// The row of that key, and its slice; in a sliced table the newest slice is looked at first.
    ///
    /// # Errors
    /// The disk failed, or the row is damaged.
    fn find(&mut self, table: TableId, key: i64) -> Result<Option<StoredRow>, StorageError>;
}

/// A row out of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRow {
    /// Its slice; 0 in a table that is not sliced.
    pub slice: u32,
    /// Its values, as [`base::rows::Row`] reads them.
    pub bytes: Vec<u8>,
}
