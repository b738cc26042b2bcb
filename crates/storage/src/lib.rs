//! Bytes on disk. The only crate that opens files.
//!
//! A data directory holds, for all shards of a node together, one write-ahead log ([`wal`]); for each shard one SQLite file with its last
//! checkpoint ([`checkpoint`]); the [`identity`] of the node, and a lock. An operation is durable when its entry is synced in the log;
//! a restart reads the checkpoints and replays the log's tail. Another node gets a checkpoint as a snapshot, which it installs in the place
//! of its own; an operator gets copies of all of them as a [`backup`], whose parts wait in
//! [`staging`] when they are to take the checkpoints' places.
//!
//! Beside them, [`records`] keep what a node has seen, for people; nothing depends on them.
//!
//! The log goes through the [`disk::Disk`] trait, so that a simulator can lose, tear and damage what was written. Nothing on disk is
//! silently repaired or deleted: what does not read back is [`StorageError::Damaged`], and the node stops.

pub mod aside;
pub mod backup;
pub mod checkpoint;
pub mod disk;
mod error;
pub mod identity;
pub mod records;
pub mod socket;
pub mod space;
pub mod staging;
pub mod wal;

pub use error::StorageError;
