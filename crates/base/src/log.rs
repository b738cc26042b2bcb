//! What a shard's log consists of, as consensus makes it and storage keeps it.

use bytes::Bytes;

use crate::{Index, Term};

/// An entry of a shard's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub index: Index,
    /// The term of the leader that made it.
    pub term: Term,
    /// What it says, in the encoding of the consensus crate.
    pub data: Bytes,
}

/// What Raft must remember besides entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The latest term the node has seen.
    pub term: Term,
    /// Whom it voted for in that term; 0: nobody.
    pub vote: u64,
    /// An index known to be committed.
    pub commit: Index,
}
