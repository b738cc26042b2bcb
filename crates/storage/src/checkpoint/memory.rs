//! A checkpoint that lives and dies with the process.

use std::sync::{Arc, Mutex, MutexGuard};

use base::codec::{Malformed, Reader, Write};
use base::rows::{Changes, RowSource, TableId};
use base::rowstore::RowStore;
use base::{Index, Term};

use crate::StorageError;
use crate::checkpoint::snapshot::{Content, Target};
use crate::checkpoint::{Checkpoint, Incoming, Meta, Outgoing, RowReader, Snapshot, Snapshots, Staged, StoredRow};
use crate::disk::{DiskFile, MemoryFile};

/// The rows of a shard, in memory. Clones are the same checkpoint.
#[derive(Clone, Default)]
pub struct MemoryCheckpoint(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    meta: Option<Meta>,
    rows: RowStore,
    waiting: Vec<Changes>,
}

/// How it is called in messages.
const NAME: &str = "the checkpoint in memory";

/// What its snapshots begin with, the version included. The rest: index, term, configuration, rows.
const MAGIC: &[u8] = b"codeq rows 1\n";

impl MemoryCheckpoint {
    /// An empty checkpoint.
    pub fn new() -> MemoryCheckpoint {
        MemoryCheckpoint::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

impl Checkpoint for MemoryCheckpoint {
    fn meta(&self) -> Result<Option<Meta>, StorageError> {
        Ok(self.state().meta.clone())
    }

    fn rows(&mut self) -> Box<dyn RowSource + '_> {
        Box::new(self.state().rows.clone())
    }

    fn write(&mut self, changes: &Changes) -> Result<(), StorageError> {
        self.state().waiting.push(changes.clone());
        Ok(())
    }

    fn commit(&mut self, meta: &Meta) -> Result<(), StorageError> {
        let mut state = self.state();
        for changes in std::mem::take(&mut state.waiting) {
            let damaged = |what: base::rows::Unreadable| StorageError::damaged(NAME, None, what.0);
            state.rows.apply(&changes).map_err(damaged)?;
        }
        state.meta = Some(meta.clone());
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn RowReader>, StorageError> {
        Ok(Box::new(self.clone()))
    }

    fn snapshots(&self) -> Arc<dyn Snapshots> {
        Arc::new(self.clone())
    }

    fn install(&mut self, staged: Staged) -> Result<(), StorageError> {
        let Content::Rows(rows) = staged.content else {
            panic!("a checkpoint installs what its own snapshots have received");
        };
        *self.state() = State { meta: Some(staged.meta), rows, waiting: Vec::new() };
        Ok(())
    }
}

impl RowReader for MemoryCheckpoint {
    fn find(&mut self, table: TableId, key: i64) -> Result<Option<StoredRow>, StorageError> {
        let state = self.state();
        Ok(state.rows.find(table, key).map(|(slice, row)| StoredRow { slice, bytes: row.0.to_vec() }))
    }
}

impl Snapshots for MemoryCheckpoint {
    fn take(&self) -> Result<Outgoing, StorageError> {
        let state = self.state();
        let meta = state.meta.clone().ok_or_else(|| StorageError::damaged(NAME, None, "nothing was committed yet"))?;
        let mut bytes = MAGIC.to_vec();
        bytes.put_varint(meta.index.0);
        bytes.put_varint(meta.term.0);
        bytes.put_bytes(&meta.configuration);
        state.rows.encode(&mut bytes);
        drop(state);
        let file = MemoryFile::default();
        file.write_at(&bytes, 0).map_err(|cause| StorageError::failed("copy", NAME, cause))?;
        Outgoing::new(meta, NAME.into(), Box::new(file), Box::new(()))
    }

    fn begin(&self, snapshot: &Snapshot) -> Result<Incoming, StorageError> {
        Ok(Incoming::new(snapshot, Box::new(Vec::new())))
    }
}

impl Target for Vec<u8> {
    fn write_at(&mut self, bytes: &[u8], _offset: u64) -> Result<(), StorageError> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn stage(self: Box<Self>) -> Result<Staged, StorageError> {
        let foreign = || StorageError::damaged(NAME, None, "it is no snapshot that this program keeps in memory");
        let bytes = self.strip_prefix(MAGIC).ok_or_else(foreign)?;
        let read = || -> Result<Staged, Malformed> {
            let mut reader = Reader::new(bytes);
            let (index, term) = (Index(reader.varint()?), Term(reader.varint()?));
            let configuration = reader.bytes()?.to_vec();
            let rows = RowStore::decode(reader.rest())?;
            Ok(Staged { meta: Meta { index, term, configuration }, content: Content::Rows(rows) })
        };
        read().map_err(|Malformed| foreign())
    }
}
