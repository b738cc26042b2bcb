//! Checkpoints of a node whose process can die: what was committed survives, what was only written does not.

use std::sync::Arc;

use base::rows::{Changes, RowSource};
use storage::StorageError;
use storage::checkpoint::{Checkpoint, MemoryCheckpoint, Meta, RowReader, Snapshots, Staged};

/// One process's view of a checkpoint. The durable part is shared with the processes after it.
pub struct SimCheckpoint {
    durable: MemoryCheckpoint,
    /// Changes since the last commit.
    waiting: Vec<Changes>,
    /// What readers are shown, once that is more than what is durable.
    shown: Option<Shown>,
}

struct Shown {
    checkpoint: MemoryCheckpoint,
    /// How many of the waiting changes are in it.
    changes: usize,
}

impl SimCheckpoint {
    /// What a process opens.
    pub fn open(durable: &MemoryCheckpoint) -> SimCheckpoint {
        SimCheckpoint { durable: durable.clone(), waiting: Vec::new(), shown: None }
    }

    /// A copy that has what is not durable yet as well.
    pub fn with_what_waits(&self) -> Result<MemoryCheckpoint, StorageError> {
        let mut copy = copy_of(&self.durable)?;
        self.waiting.iter().try_for_each(|changes| copy.write(changes))?;
        Ok(copy)
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
        if self.shown.is_some() {
            self.show(meta)?;
        }
        for changes in self.waiting.drain(..) {
            self.durable.write(&changes)?;
        }
        if let Some(shown) = &mut self.shown {
            shown.changes = 0;
        }
        self.durable.commit(meta)
    }

    fn show(&mut self, meta: &Meta) -> Result<(), StorageError> {
        let shown = match &mut self.shown {
            Some(shown) => shown,
            empty => empty.insert(Shown { checkpoint: copy_of(&self.durable)?, changes: 0 }),
        };
        for changes in &self.waiting[shown.changes..] {
            shown.checkpoint.write(changes)?;
        }
        shown.changes = self.waiting.len();
        shown.checkpoint.show(meta)
    }

    fn reader(&self) -> Result<Box<dyn RowReader>, StorageError> {
        self.shown.as_ref().map_or(&self.durable, |shown| &shown.checkpoint).reader()
    }

    fn snapshots(&self) -> Arc<dyn Snapshots> {
        self.durable.snapshots()
    }

    fn install(&mut self, staged: Staged) -> Result<(), StorageError> {
        self.waiting.clear();
        self.shown = None;
        self.durable.install(staged)
    }
}

/// Another checkpoint with the same rows.
pub(crate) fn copy_of(checkpoint: &MemoryCheckpoint) -> Result<MemoryCheckpoint, StorageError> {
    let mut copy = MemoryCheckpoint::new(queue::schema());
    let snapshots = checkpoint.snapshots();
    let outgoing = snapshots.take()?;
    let mut incoming = snapshots.receive(outgoing.snapshot(), None)?;
    let mut bytes = vec![0; outgoing.snapshot().length as usize];
    let length = outgoing.read_at(0, &mut bytes)?;
    incoming.write(0, &bytes[..length])?;
    copy.install(incoming.finish()?)?;
    Ok(copy)
}
