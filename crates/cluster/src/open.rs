//! Opening what a node goes on from: its data directory, the log, and the checkpoint of each shard.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::machine::{ShardInfo, StateMachine};
use base::{Incarnation, ShardId};
use consensus::LostLog;
use replica::{RestoreShard, restore};
use storage::checkpoint::{Checkpoint, MemoryCheckpoint, RowReader, Snapshots, SqliteCheckpoint};
use storage::disk::Disk;
use storage::identity::Identity;
use storage::wal::{Options, Wal};

use crate::checkpoints::{READERS, patiently, readers};
use crate::forming::Proposal;
use crate::founding::first_checkpoint;
use crate::node::NodeError;

/// Everything of a node that was opened.
pub(crate) struct Opened<S, D: Disk> {
    pub(crate) wal: Wal<D>,
    pub(crate) shards: BTreeMap<ShardId, RestoreShard<S>>,
    pub(crate) checkpoints: BTreeMap<ShardId, Box<dyn Checkpoint>>,
    pub(crate) readers: [BTreeMap<ShardId, Box<dyn RowReader>>; READERS],
    pub(crate) snapshots: BTreeMap<ShardId, Arc<dyn Snapshots>>,
}

/// 64 random bits, not zero.
pub(crate) fn random_incarnation() -> Incarnation {
    loop {
        let bits = getrandom::u64().expect("the operating system has random numbers");
        if bits != 0 {
            return Incarnation(bits);
        }
    }
}

/// Opens log and checkpoints, and restores every shard's state.
pub(crate) fn open<S: StateMachine, D: Disk>(
    disk: D,
    folder: Option<&Path>,
    identity: &Identity,
    founding: Option<&Proposal>,
    segment_bytes: u64,
    mut progress: impl FnMut(String),
) -> Result<Opened<S, D>, NodeError> {
    progress("reading the log".into());
    let (wal, mut recovered) = Wal::open(disk, Options { segment_bytes }).map_err(NodeError::Storage)?;
    if recovered.torn_bytes > 0 {
        tracing::info!(
            event = "storage.tail_cut",
            bytes = recovered.torn_bytes,
            "the log ended in a write that was under way when the node stopped; it was never acknowledged"
        );
    }
    let mut opened = Opened {
        wal,
        shards: BTreeMap::new(),
        checkpoints: BTreeMap::new(),
        readers: Default::default(),
        snapshots: BTreeMap::new(),
    };
    for number in 0..identity.shards {
        let shard = ShardId(number);
        progress(format!("loading the checkpoint of shard {number}, {} in all", identity.shards));
        let file = folder.map(|folder| checkpoint_file(folder, shard));
        let name = checkpoint_name(folder, shard);
        let mut checkpoint: Box<dyn Checkpoint> = match &file {
            Some(file) => {
                let opened = patiently(|| SqliteCheckpoint::open(file, S::schema()));
                Box::new(opened.map_err(NodeError::Storage)?)
            }
            None => Box::new(MemoryCheckpoint::new(S::schema())),
        };
        let log = recovered.shards.remove(&shard).unwrap_or_default();
        let info = ShardInfo { shard, incarnation: identity.cluster_incarnation };
        let restored = restore(info, &mut *checkpoint, &name, log, |checkpoint| {
            let meta = first_checkpoint(founding, identity);
            patiently(|| checkpoint.commit(&meta)).map(|()| meta)
        });
        let readers = readers(&*checkpoint).map_err(NodeError::Storage)?;
        for (all, reader) in opened.readers.iter_mut().zip(readers) {
            all.insert(shard, reader);
        }
        opened.snapshots.insert(shard, checkpoint.snapshots());
        opened.checkpoints.insert(shard, checkpoint);
        opened.shards.insert(shard, restored.map_err(NodeError::Storage)?);
    }
    Ok(opened)
}

fn checkpoint_file(folder: &Path, shard: ShardId) -> PathBuf {
    folder.join(format!("shard-{shard}.sqlite"))
}

/// How messages name a shard's checkpoint.
pub(crate) fn checkpoint_name(folder: Option<&Path>, shard: ShardId) -> String {
    folder.map_or_else(|| "memory".into(), |folder| checkpoint_file(folder, shard).display().to_string())
}

/// What to say when a shard's log does not hold what it must.
pub(crate) fn lost_log(folder: Option<&Path>, shard: ShardId, lost: LostLog) -> NodeError {
    let file = folder.map_or_else(|| "the log in memory".into(), |folder| folder.join("wal").display().to_string());
    NodeError::Storage(replica::lost_log(file, shard, lost))
}
