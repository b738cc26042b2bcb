//! Which ids are this cluster's: the incarnation in a task's id is that of the life of the cluster in which the task was created.

use std::collections::BTreeMap;
use std::sync::RwLock;

use base::{Incarnation, ShardId};
use queue::{QueueMachine, TaskId};

/// From which key on which incarnation is part of ids, by shard. It is known when a shard's state is, and changes when that is replaced.
#[derive(Debug, Default)]
pub(crate) struct Epochs(RwLock<BTreeMap<ShardId, Vec<(u64, u64)>>>);

const NEVER_POISONED: &str = "nothing panics while it holds this lock";

impl Epochs {
    /// Takes over what a shard's state says.
    pub(crate) fn set(&self, machine: &QueueMachine) {
        self.0.write().expect(NEVER_POISONED).insert(machine.shard(), machine.epochs().to_vec());
    }

    /// Whether a task with this key would have this id; nothing: its shard is not known yet.
    pub(crate) fn is_of(&self, id: &TaskId) -> Option<bool> {
        let all = self.0.read().expect(NEVER_POISONED);
        let (_, incarnation) = all.get(&id.shard)?.iter().rev().find(|(first, _)| *first <= id.key.0)?;
        Some(*id == TaskId::new(Incarnation(*incarnation), id.shard, id.key))
    }
}
