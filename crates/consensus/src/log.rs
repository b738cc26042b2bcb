//! The part of a group's log that is in memory, as the `raft` crate asks for it.

use std::cell::Cell;
use std::collections::VecDeque;

use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use crate::codec::{SnapshotOf, from_log, to_log};

/// Entries behind some index, in ascending order without gaps. What stands here is written, though perhaps not synced yet.
pub(crate) struct Log {
    /// Index and term of the last entry that is forgotten; the checkpoint covers it.
    base: (u64, u64),
    entries: VecDeque<Entry>,
    hard_state: HardState,
    configuration: ConfState,
    /// What a snapshot would be of.
    checkpoint: SnapshotOf,
    /// Somebody needs a snapshot that the checkpoint cannot be.
    wants_checkpoint: Cell<bool>,
}

impl Log {
    pub(crate) fn new(
        base: (u64, u64),
        entries: VecDeque<Entry>,
        hard_state: HardState,
        checkpoint: SnapshotOf,
    ) -> Log {
        let contiguous = entries.iter().zip(base.0 + 1..).all(|(entry, index)| entry.index == index);
        assert!(contiguous, "the log follows its checkpoint without a gap");
        let configuration = checkpoint.configuration.to_raft();
        Log { base, entries, hard_state, configuration, checkpoint, wants_checkpoint: Cell::new(false) }
    }

    /// A newer checkpoint is durable.
    pub(crate) fn saved(&mut self, checkpoint: SnapshotOf) {
        self.checkpoint = checkpoint;
        self.wants_checkpoint.set(false);
    }

    /// A snapshot takes the place of everything.
    pub(crate) fn install(&mut self, snapshot: SnapshotOf) {
        self.entries.clear();
        self.base = (snapshot.index.0, snapshot.term.0);
        self.saved(snapshot);
    }

    /// Whether somebody needs a snapshot of a later state than the checkpoint's, or with other members.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.wants_checkpoint.get()
    }

    /// Index up to which entries can be forgotten so that no more than `bytes` remain before `index`.
    pub(crate) fn start_of_last(&self, bytes: u64, index: u64) -> u64 {
        let before = (index.min(self.last()) - self.base.0.min(index)) as usize;
        let mut kept = 0;
        for entry in self.entries.range(..before).rev() {
            kept += entry.data.len() as u64 + ENTRY_BYTES;
            if kept > bytes {
                return entry.index;
            }
        }
        self.base.0
    }

    pub(crate) fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    /// Adds entries; they replace what stands at their indexes and behind.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.base.0 && first.index <= self.last() + 1, "entries continue the log");
        self.entries.truncate((first.index - self.base.0 - 1) as usize);
        // By way of our own encoding, in which the kind of an entry decides its type.
        self.entries.extend(entries.iter().map(|entry| from_log(&to_log(entry))));
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

/// What an entry weighs besides its data.
const ENTRY_BYTES: u64 = 32;

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
            size += entry.data.len() as u64 + ENTRY_BYTES;
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

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // Whoever installs a snapshot must be a member by it.
        let fits = self.checkpoint.index.0 >= request_index && self.checkpoint.configuration.members().contains(&to);
        if !fits {
            self.wants_checkpoint.set(true);
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.checkpoint.to_raft())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::Configuration;

    fn log(from: u64) -> Log {
        let checkpoint = SnapshotOf {
            index: base::Index(from),
            term: base::Term(1),
            configuration: Configuration { voters: vec![1], ..Configuration::default() },
        };
        Log::new((from, 1), VecDeque::new(), HardState::default(), checkpoint)
    }

    fn entries(indexes: std::ops::Range<u64>, term: u64) -> Vec<Entry> {
        let entry =
            |index| Entry { index, term, data: vec![crate::codec::OPERATIONS, index as u8].into(), ..Entry::default() };
        indexes.map(entry).collect()
    }

    fn read(log: &Log, low: u64, high: u64) -> Vec<(u64, u64)> {
        let found = log.entries(low, high, None, GetEntriesContext::empty(false)).expect("they are there");
        found.iter().map(|entry| (entry.index, entry.term)).collect()
    }

    fn bounds(log: &Log) -> (u64, u64) {
        (log.first_index().expect("it always has"), log.last_index().expect("it always has"))
    }

    /// Goal: the bounds of a log are those of what was appended and not cut off, at either end; what is appended reads back.
    #[test]
    fn the_bounds_follow_what_is_appended_and_cut() {
        let mut log = log(0);
        assert_eq!(bounds(&log), (1, 0), "nothing is there");
        log.append(&[]);
        assert_eq!(bounds(&log), (1, 0));
        log.append(&entries(1..2, 1));
        log.append(&entries(2..6, 1));
        assert_eq!((bounds(&log), read(&log, 2, 4)), ((1, 5), vec![(2, 1), (3, 1)]));
        assert_eq!(read(&log, 3, 3), [], "an empty range has nothing in it");
        // A later leader's entries cut the end off.
        log.append(&entries(4..5, 2));
        assert_eq!((bounds(&log), read(&log, 3, 5)), ((1, 4), vec![(3, 1), (4, 2)]));
        log.compact(1);
        log.compact(3);
        assert_eq!((bounds(&log), read(&log, 4, 5)), ((4, 4), vec![(4, 2)]));
        log.compact(2);
        assert_eq!(bounds(&log), (4, 4), "what is cut off stays cut off");
        log.compact(9);
        assert_eq!(bounds(&log), (5, 4), "no more is cut off than there is");
    }

    /// Goal: what is cut off, what is there and what is not there yet are told apart.
    #[test]
    fn what_is_not_there_is_told_apart() {
        let mut log = log(3);
        log.append(&entries(4..7, 2));
        assert_eq!(log.term(3), Ok(1), "the last one that is cut off still has its term");
        assert_eq!((log.term(4), log.term(6)), (Ok(2), Ok(2)));
        assert_eq!(log.term(2), Err(Error::Store(StorageError::Compacted)));
        assert_eq!(log.term(7), Err(Error::Store(StorageError::Unavailable)));
        let cut_off = log.entries(3, 5, None, GetEntriesContext::empty(false));
        assert_eq!(cut_off, Err(Error::Store(StorageError::Compacted)));
    }

    /// Goal: a range that ends before it begins, or behind the last entry, is a fault of whoever asks.
    #[test]
    fn nobody_asks_for_what_cannot_be() {
        let mut log = log(0);
        log.append(&entries(1..4, 1));
        for (low, high) in [(3, 2), (2, 6)] {
            let asked = std::panic::AssertUnwindSafe(|| log.entries(low, high, None, GetEntriesContext::empty(false)));
            assert!(std::panic::catch_unwind(asked).is_err(), "{low}..{high}");
        }
    }
}
