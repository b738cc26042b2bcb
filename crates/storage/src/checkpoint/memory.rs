//! A checkpoint that lives and dies with the process.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};

use base::codec::{Malformed, Reader, Write};
use base::rows::{Changes, Look, Row, RowSource, Scan, Schema, TableId};
use base::rowstore::{RowStore, StoreLook};
use base::{Index, Term};

use crate::StorageError;
use crate::checkpoint::snapshot::{Content, Target};
use crate::checkpoint::{Checkpoint, Incoming, Meta, Outgoing, RowReader, Snapshot, Snapshots, Staged, StoredRow};
use crate::disk::{DiskFile, MemoryFile};

/// The rows of a shard, in memory. Clones are the same checkpoint.
#[derive(Clone)]
pub struct MemoryCheckpoint {
    schema: Schema,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    meta: Option<Meta>,
    /// Copied when it changes during a look.
    rows: Arc<RowStore>,
    waiting: Vec<Changes>,
}

/// How it is called in messages.
const NAME: &str = "the checkpoint in memory";

/// What its snapshots begin with, the version included. The rest: index, term, configuration, rows.
const MAGIC: &[u8] = b"codeq rows 1\n";

impl MemoryCheckpoint {
    /// An empty checkpoint with these tables.
    pub fn new(schema: Schema) -> MemoryCheckpoint {
        MemoryCheckpoint { schema, state: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}

impl Checkpoint for MemoryCheckpoint {
    fn meta(&self) -> Result<Option<Meta>, StorageError> {
        Ok(self.state().meta.clone())
    }

    fn rows(&mut self) -> Box<dyn RowSource + '_> {
        Box::new(self.state().rows.as_ref().clone())
    }

    fn write(&mut self, changes: &Changes) -> Result<(), StorageError> {
        self.state().waiting.push(changes.clone());
        Ok(())
    }

    fn commit(&mut self, meta: &Meta) -> Result<(), StorageError> {
        self.show(meta)
    }

    fn show(&mut self, meta: &Meta) -> Result<(), StorageError> {
        let mut state = self.state();
        for changes in std::mem::take(&mut state.waiting) {
            let damaged = |what: base::rows::Unreadable| StorageError::damaged(NAME, None, what.0);
            Arc::make_mut(&mut state.rows).apply(&changes).map_err(damaged)?;
        }
        state.meta = Some(meta.clone());
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn RowReader>, StorageError> {
        Ok(Box::new(MemoryReader { checkpoint: self.clone(), look: Arc::default() }))
    }

    fn snapshots(&self) -> Arc<dyn Snapshots> {
        Arc::new(self.clone())
    }

    fn install(&mut self, staged: Staged) -> Result<(), StorageError> {
        let Content::Rows(rows) = staged.content else {
            panic!("a checkpoint installs what its own snapshots have received");
        };
        *self.state() = State { meta: Some(staged.meta), rows: Arc::new(rows), waiting: Vec::new() };
        Ok(())
    }
}

struct MemoryReader {
    checkpoint: MemoryCheckpoint,
    /// The rows that are looked at.
    look: Arc<RowStore>,
}

impl MemoryReader {
    fn look(&self) -> StoreLook<'_> {
        StoreLook { store: &self.look, schema: self.checkpoint.schema }
    }
}

impl RowReader for MemoryReader {
    fn begin(&mut self) -> Result<Option<Meta>, StorageError> {
        let state = self.checkpoint.state();
        self.look = state.rows.clone();
        Ok(state.meta.clone())
    }

    fn end(&mut self) -> Result<(), StorageError> {
        self.look = Arc::default();
        Ok(())
    }

    fn find(&mut self, table: TableId, key: i64) -> Result<Option<StoredRow>, StorageError> {
        let state = self.checkpoint.state();
        Ok(state.rows.find(table, key).map(|(slice, row)| StoredRow { slice, bytes: row.0.to_vec() }))
    }
}

impl Look for MemoryReader {
    type Error = StorageError;

    fn slices(&mut self, table: TableId) -> Result<Vec<u32>, StorageError> {
        let Ok(slices) = self.look().slices(table);
        Ok(slices)
    }

    fn row(&mut self, table: TableId, slice: u32, key: i64) -> Result<Option<Vec<u8>>, StorageError> {
        let Ok(row) = self.look().row(table, slice, key);
        Ok(row)
    }

    fn groups(
        &mut self,
        table: TableId,
        slice: u32,
        index: usize,
        beginning: Row<'_>,
        max: usize,
    ) -> Result<Option<Vec<Vec<u8>>>, StorageError> {
        let Ok(groups) = self.look().groups(table, slice, index, beginning, max);
        Ok(groups)
    }

    fn scan(
        &mut self,
        scan: &Scan<'_>,
        visit: &mut dyn FnMut(i64, i64, Row<'_>) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        let Ok(()) = self.look().scan(scan, visit);
        Ok(())
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
