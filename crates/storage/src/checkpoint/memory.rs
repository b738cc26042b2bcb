//! A checkpoint that lives and dies with the process.

use std::sync::{Arc, Mutex, MutexGuard};

use base::rows::{Changes, RowSource, TableId};
use base::rowstore::RowStore;

use crate::StorageError;
use crate::checkpoint::{Checkpoint, Meta, RowReader, StoredRow};

/// The rows of a shard, in memory. Clones are the same checkpoint.
#[derive(Clone, Default)]
pub struct MemoryCheckpoint(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    meta: Option<Meta>,
    rows: RowStore,
    waiting: Vec<Changes>,
}

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
            let damaged =
                |what: base::rows::Unreadable| StorageError::damaged("the checkpoint in memory", None, what.0);
            state.rows.apply(&changes).map_err(damaged)?;
        }
        state.meta = Some(meta.clone());
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn RowReader>, StorageError> {
        Ok(Box::new(self.clone()))
    }
}

impl RowReader for MemoryCheckpoint {
    fn find(&mut self, table: TableId, key: i64) -> Result<Option<StoredRow>, StorageError> {
        let state = self.state();
        Ok(state.rows.find(table, key).map(|(slice, row)| StoredRow { slice, bytes: row.0.to_vec() }))
    }
}
