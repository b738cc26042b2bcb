//! Snapshots: a checkpoint on its way from one node to another.
//!
//! A snapshot is so many bytes with a SHA-256, announced before they are sent, so that a transfer that broke off goes on where it ended.
//! What arrives is kept beside the checkpoint and compared with what was announced; only [`crate::checkpoint::Checkpoint::install`] lets it
//! take the checkpoint's place.

use std::path::Path;

use sha2::{Digest, Sha256};

use base::codec::Malformed;
use base::rows::{Row, RowSource, TableId, Unreadable};
use base::rowstore::RowStore;

use crate::StorageError;
use crate::checkpoint::Meta;
use crate::checkpoint::sqlite::StagedFile;
use crate::disk::DiskFile;

/// Names a snapshot: two that are equal have the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What it is of.
    pub meta: Meta,
    /// Its size in bytes.
    pub length: u64,
    /// SHA-256 of its bytes.
    pub sha256: [u8; 32],
}

impl Snapshot {
    fn refused(&self, what: impl Into<String>) -> StorageError {
        StorageError::BadSnapshot { index: self.meta.index, term: self.meta.term, what: what.into() }
    }
}

/// Takes and receives snapshots of one shard's checkpoint, on any thread, while its writer goes on.
pub trait Snapshots: Send + Sync {
    /// Copies the last committed checkpoint. Takes time in proportion to it; an installation waits meanwhile.
    ///
    /// # Errors
    /// The disk failed or is full, or the checkpoint is damaged, or none has been committed yet.
    fn take(&self) -> Result<Outgoing, StorageError>;

    /// Makes room for what another node has announced.
    ///
    /// # Errors
    /// The disk failed.
    fn begin(&self, snapshot: &Snapshot) -> Result<Incoming, StorageError>;

    /// Goes on with `earlier` if that is the snapshot announced now; else drops it and begins anew.
    ///
    /// # Errors
    /// The disk failed.
    fn receive(&self, snapshot: &Snapshot, earlier: Option<Incoming>) -> Result<Incoming, StorageError> {
        match earlier {
            Some(earlier) if earlier.snapshot == *snapshot => Ok(earlier),
            _ => self.begin(snapshot),
        }
    }
}

/// Bytes read at once while their SHA-256 is computed.
const CHUNK: usize = 1 << 20;

/// A copy of a checkpoint, to be sent. It is removed when the value is dropped.
pub struct Outgoing {
    snapshot: Snapshot,
    name: String,
    bytes: Box<dyn DiskFile + Sync>,
    _removal: Box<dyn Send + Sync>,
}

impl Outgoing {
    /// The copy called `name` in messages. What makes it go away is dropped with the value.
    pub(super) fn new(
        meta: Meta,
        name: String,
        bytes: Box<dyn DiskFile + Sync>,
        removal: Box<dyn Send + Sync>,
    ) -> Result<Outgoing, StorageError> {
        let length = bytes.length().map_err(|cause| StorageError::failed("read", &name, cause))?;
        let snapshot = Snapshot { meta, length, sha256: [0; 32] };
        let mut outgoing = Outgoing { snapshot, name, bytes, _removal: removal };
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        let mut offset = 0;
        while offset < length {
            let read = outgoing.read_at(offset, &mut buffer)?;
            hash.update(&buffer[..read]);
            offset += read as u64;
        }
        outgoing.snapshot.sha256 = hash.finalize().into();
        Ok(outgoing)
    }

    /// What to announce.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The file that it is in; a checkpoint in memory has none.
    pub fn path(&self) -> &Path {
        Path::new(&self.name)
    }

    /// Fills the buffer from `offset` on, as far as there are bytes. Returns how many; 0 at the end.
    ///
    /// # Errors
    /// The disk failed.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, StorageError> {
        let left = usize::try_from(self.snapshot.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        let read = self.bytes.read_at(&mut buffer[..length], offset);
        read.map_err(|cause| StorageError::failed("read", &self.name, cause))?;
        Ok(length)
    }
}

/// Where the bytes of a snapshot are put.
pub(super) trait Target: Send {
    /// Writes bytes where those before end.
    fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<(), StorageError>;
    /// Makes the bytes durable and reads them as a checkpoint. Damage is the sender's.
    fn stage(self: Box<Self>) -> Result<Staged, StorageError>;
}

/// A snapshot that arrives. What has arrived is removed when the value is dropped.
pub struct Incoming {
    snapshot: Snapshot,
    received: u64,
    hash: Sha256,
    target: Box<dyn Target>,
}

impl Incoming {
    pub(super) fn new(snapshot: &Snapshot, target: Box<dyn Target>) -> Incoming {
        Incoming { snapshot: snapshot.clone(), received: 0, hash: Sha256::new(), target }
    }

    /// What was announced.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Bytes that have arrived: the offset of the next ones.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`StorageError::BadSnapshot`] if these are not the next ones, or more than were announced; or the disk failed or is full. The bytes
    /// have not arrived then.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let Snapshot { length, .. } = self.snapshot;
        if offset != self.received {
            let what = format!("bytes at offset {offset} came when those at {} were next", self.received);
            return Err(self.snapshot.refused(what));
        }
        if bytes.len() as u64 > length - offset {
            return Err(self.snapshot.refused(format!("it is longer than the {length} bytes announced")));
        }
        self.target.write_at(bytes, offset)?;
        self.hash.update(bytes);
        self.received += bytes.len() as u64;
        Ok(())
    }

    /// Makes what has arrived durable, once all of it has, and looks whether it is what was announced and a checkpoint that this program
    /// reads. Its rows are checked when they are read.
    ///
    /// # Errors
    /// [`StorageError::BadSnapshot`], or the disk failed. What has arrived is removed in either case.
    pub fn finish(self) -> Result<Staged, StorageError> {
        let Incoming { snapshot, received, hash, target } = self;
        if received != snapshot.length {
            let what = format!("it ends after {received} of the {} bytes announced", snapshot.length);
            return Err(snapshot.refused(what));
        }
        if hash.finalize()[..] != snapshot.sha256 {
            return Err(snapshot.refused("its bytes do not fit the SHA-256 announced"));
        }
        let staged = target.stage().map_err(|error| match error {
            StorageError::Damaged { what, .. } | StorageError::Foreign { what, .. } => snapshot.refused(what),
            other => other,
        })?;
        if staged.meta != snapshot.meta {
            let Meta { index, term, .. } = &staged.meta;
            let what = format!("it is of index {index}, term {term}, or of other members than announced");
            return Err(snapshot.refused(what));
        }
        Ok(staged)
    }
}

/// A whole snapshot that waits to be installed. It is removed when the value is dropped before.
pub struct Staged {
    pub(super) meta: Meta,
    pub(super) content: Content,
}

/// What each kind of checkpoint makes of a snapshot.
pub(super) enum Content {
    File(StagedFile),
    Rows(RowStore),
}

impl Staged {
    /// What it is of.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }
}

/// A row that does not fit its checksum, or that the state machine refuses, is the sender's damage: nothing has been taken over yet.
impl RowSource for Staged {
    fn for_each(
        &mut self,
        table: TableId,
        visit: &mut dyn FnMut(u32, i64, Row<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Unreadable> {
        match &mut self.content {
            Content::File(file) => file.for_each(table, visit),
            Content::Rows(rows) => rows.for_each(table, visit),
        }
    }
}
