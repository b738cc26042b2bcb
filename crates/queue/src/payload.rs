//! What a producer sent, and how much of it is held in memory.
//!
//! A payload is read twice in the life of most tasks: when a checkpoint saves it and when a worker gets it. In between it may be left to
//! the checkpoint. This is each replica's own affair: which payloads are resident decides nothing that replicas must agree on.

use std::sync::Arc;

use crate::machine::QueueMachine;

/// What the producer sent: in memory, or only in the checkpoint when memory is short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The bytes.
    Resident(Arc<[u8]>),
    /// So many bytes in the checkpoint's payload table, under the task's key.
    Stored(u32),
}

/// The memory that payloads of live tasks may take.
pub(crate) struct PayloadCache {
    /// Exceeded only by payloads that no checkpoint holds yet.
    pub(crate) bytes_max: u64,
    bytes: u64,
}

impl Payload {
    /// Its size in bytes.
    pub fn len(&self) -> usize {
        match self {
            Payload::Resident(bytes) => bytes.len(),
            Payload::Stored(length) => *length as usize,
        }
    }

    /// Whether it has no bytes; no JSON value has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn resident_bytes(&self) -> u64 {
        match self {
            Payload::Resident(bytes) => bytes.len() as u64,
            Payload::Stored(_) => 0,
        }
    }
}

impl Default for PayloadCache {
    fn default() -> PayloadCache {
        PayloadCache { bytes_max: u64::MAX, bytes: 0 }
    }
}

impl PayloadCache {
    /// A live task with this payload begins.
    pub(crate) fn enter(&mut self, payload: &Payload) {
        self.bytes += payload.resident_bytes();
    }

    /// It ends.
    pub(crate) fn leave(&mut self, payload: &Payload) {
        self.bytes -= payload.resident_bytes();
    }
}

impl QueueMachine {
    /// Leaves payloads that a checkpoint holds since just now to it, until the rest fits: the youngest first, since they are claimed last.
    /// Returns their bytes.
    pub(crate) fn evict_payloads(&mut self, saved: &[u64]) -> Vec<Payload> {
        let mut evicted = Vec::new();
        for key in saved.iter().rev() {
            if self.cache.bytes <= self.cache.bytes_max {
                break;
            }
            // Some have ended since, and of those some have come back, with a payload that is saved anew.
            let Some(slot) = self.tasks.find(*key) else { continue };
            let task = self.tasks.get_mut(slot);
            if task.saving.payload {
                let stored = Payload::Stored(task.payload.len() as u32);
                let payload = std::mem::replace(&mut task.payload, stored);
                self.cache.leave(&payload);
                evicted.push(payload);
            }
        }
        evicted
    }
}
