//! Limits that are not settings: each bounds something that could grow. Settings carry their own bounds in the settings table.

use crate::Millis;

/// Shards of one cluster.
pub const SHARDS_MAX: u16 = 64;

/// Operations in one log entry, whatever the setting; the place of an operation must fit 16 bits beside the due phase.
pub const ENTRY_OPERATIONS_MAX: usize = 32_768;

/// Due tasks handled before an entry's operations. What remains is handled by the next entry.
pub const DUE_PER_ENTRY: usize = 4_096;

/// Entries proposed by one turn of the loop for one shard, before one sync.
pub const ENTRIES_PER_TURN: usize = 8;

/// Operations that wait for a majority to have the batch before them are held at most this long after it; then they follow it.
pub const BATCH_HELD_MAX: Millis = Millis(2);

/// Requests whose leader has lost its office wait at most this long for another leader to become known, which tells what became of them.
/// Then their outcome is unknown.
pub const LEADERLESS_MAX: Millis = Millis(2_000);

/// Bytes proposed and not yet applied, per shard. More operations stay in the inbox, which refuses when it is full.
pub const UNAPPLIED_BYTES_MAX: u64 = 64 << 20;

/// Entries that a checkpoint holds and a member lacks that is there are kept up to so many bytes, per shard, whatever the setting: while it
/// is sent a snapshot, the entries behind that must not go, or it would be sent one after the other.
pub const PRESENT_LOG_BYTES_MAX: u64 = 512 << 20;

/// Bytes of entries in one message of consensus; a single larger entry travels alone.
pub const MESSAGE_BYTES_MAX: u64 = 1 << 20;

/// Bytes of one frame between nodes: the largest request, and what is said around it.
pub const FRAME_BYTES_MAX: usize = (256 << 20) + (1 << 20);
