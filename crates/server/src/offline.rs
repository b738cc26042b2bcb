//! What can be done with the data of a server that need not run: backups, recovery, a look at checkpoints.

use std::path::{Path, PathBuf};

use base::{ScheduleTime, ShardId};
use cluster::StorageError;
pub use cluster::backup::{Manifest, NewFile, SavedGroup, Verdict, WholeFile, inspect, verify};
pub use cluster::recovery::{CheckpointFile, Choice, NewCluster, Survivor, checkpoint_file, choose};
use queue::{QueueMachine, schema};

/// Restores a backup into an empty directory, as a cluster of one node of this name.
///
/// # Errors
/// The backup or the directory cannot be used.
pub fn restore(
    backup: &Path,
    directory: &Path,
    node: &str,
    now: ScheduleTime,
) -> Result<(NewCluster, Manifest), StorageError> {
    cluster::recovery::restore::<QueueMachine>(backup, directory, node, now)
}

/// Looks at the data of a node that has lost its quorum and does not run.
///
/// # Errors
/// The directory cannot be used.
pub fn look(directory: &Path) -> Result<Survivor, StorageError> {
    Survivor::look::<QueueMachine>(directory)
}

/// Makes one survivor a cluster of one, each group taken from the survivor named in `sources`.
///
/// # Errors
/// The data cannot be read, or the disk failed or is full.
pub fn recover(
    survivors: &[Survivor],
    target: usize,
    sources: &[usize],
    now: ScheduleTime,
) -> Result<(NewCluster, PathBuf), StorageError> {
    cluster::recovery::recover::<QueueMachine>(survivors, target, sources, now)
}

/// Opens the checkpoint of a shard for reading; its server may run.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn checkpoint(directory: &Path, shard: ShardId) -> Result<CheckpointFile, StorageError> {
    CheckpointFile::open(&checkpoint_file(directory, shard), schema())
}

/// The number of shards that a data directory has; nothing: it is no node's.
///
/// # Errors
/// Its identity cannot be read.
pub fn shards(directory: &Path) -> Result<Option<u16>, StorageError> {
    Ok(cluster::recorded_identity(directory)?.map(|identity| identity.shards))
}
