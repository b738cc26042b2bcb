//! The write-ahead log of a node: one log for all shards, written by one writer, synced once for whatever has gathered.
//!
//! The log is a chain of segment files of fixed size, pre-zeroed and recycled, so that a sync need not update file sizes (measured: half
//! the time of a sync of a growing file). See `record` for the bytes, `recover` for how they are read back.
//!
//! Invariants:
//!
//! 1. A record is durable once the [`Wal::flush`] after its [`Wal::append`] has returned, and the name of its segment is too.
//! 2. Every write begins at a sector boundary behind all synced bytes: tearing it cannot harm them.
//! 3. A segment's header names the exact end of the segment before it, so only the last one can have a torn tail.
//! 4. Each record carries the offset up to which its segment was synced when it was written: damage below a later mark is damage,
//!    not a torn tail.
//! 5. The checksum of a record covers its segment's sequence number: what an earlier use of the file left behind does not verify.
//! 6. Every segment begins with the hard state of every shard, so older segments can be freed.
//! 7. After a failed write or sync nothing is written any more.

mod record;
mod recover;
mod writer;

pub use recover::{Recovered, ShardLog, look};
pub use writer::{Options, Spare, SpareJob, Wal, WalStats};
