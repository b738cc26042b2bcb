//! Checkpoints of a node whose process can die: what was committed survives, what was only written does not.

use std::sync::Arc;

use base::rows::{Changes, RowSource};
use storage::StorageError;
use storage::checkpoint::{Checkpoint, MemoryCheckpoint, Meta, RowReader, Snapshots, Staged};

/// One process's view of a checkpoint. The durable part is shared with the processes after it.
pub struct SimCheckpoint {
    durable: MemoryCheckpoint,
    waiting: Vec<Changes>,
}

impl SimCheckpoint {
    /// What a process opens.
    pub fn open(durable: &MemoryCheckpoint) -> SimCheckpoint {
        SimCheckpoint { durable: durable.clone(), waiting: Vec::new() }
    }
}

impl Checkpoint for SimCheckpoint {
    fn meta(&self) -> Result<Option<Meta>, StorageError> {
        self.durable.meta()
    }

    fn rows(&mut self) -> Box<dyn RowSource + '_> {
        self.durable.rows()
    }

    fn write(&mut self, changes: &Changes) -> Result<(), StorageError> {
        self.waiting.push(changes.clone());
        Ok(())
    }

    fn commit(&mut self, meta: &Meta) -> Result<(), StorageError> {
        for changes in self.waiting.drain(..) {
            self.durable.write(&changes)?;
        }
        self.durable.commit(meta)
    }

    fn show(&mut self, _: &Meta) -> Result<(), StorageError> {
        panic!("nobody lists tasks in a simulated cluster")
    }

    fn reader(&self) -> Result<Box<dyn RowReader>, StorageError> {
        self.durable.reader()
    }

    fn snapshots(&self) -> Arc<dyn Snapshots> {
        self.durable.snapshots()
    }

    fn install(&mut self, staged: Staged) -> Result<(), StorageError> {
        self.waiting.clear();
        self.durable.install(staged)
    }
}
