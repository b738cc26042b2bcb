//! The part of a group's log that is in memory, as the `raft` crate asks for it.

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

/// Entries behind a checkpoint, in ascending order without gaps. What stands here is written, though perhaps not synced yet.
pub(crate) struct Log {
    /// Index and term of the last entry that the checkpoint covers.
    base: (u64, u64),
    entries: VecDeque<Entry>,
    hard_state: HardState,
    configuration: ConfState,
}

impl Log {
    pub(crate) fn new(
        base: (u64, u64),
        entries: VecDeque<Entry>,
        hard_state: HardState,
        configuration: ConfState,
    ) -> Log {
        let contiguous = entries.iter().zip(base.0 + 1..).all(|(entry, index)| entry.index == index);
        assert!(contiguous, "the log follows its checkpoint without a gap");
        Log { base, entries, hard_state, configuration }
    }

    pub(crate) fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    /// Adds entries; they replace what stands at their indexes and behind.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.base.0 && first.index <= self.last() + 1, "entries continue the log");
        self.entries.truncate((first.index - self.base.0 - 1) as usize);
        self.entries.extend(entries.iter().cloned());
    }

    /// Forgets entries up to `index`, which is applied and held by a checkpoint.
    pub(crate) fn compact(&mut self, index: u64) {
        let index = index.min(self.last());
        if index > self.base.0 {
            let term = self.term(index).expect("it is in the log");
            self.entries.drain(..(index - self.base.0) as usize);
            self.base = (index, term);
        }
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.configuration.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "nobody asks for entries behind the last one");
        let max_size = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let range = (low - self.base.0 - 1) as usize..(high - self.base.0 - 1) as usize;
        let fits = |entry: &&Entry| {
            let first = size == 0;
            size += entry.data.len() as u64 + 32;
            first || size <= max_size
        };
        Ok(self.entries.range(range).take_while(fits).cloned().collect())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        if index < self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        let entry = self.entries.get((index - self.base.0 - 1) as usize);
        entry.map(|entry| entry.term).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
