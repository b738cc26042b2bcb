//! Who leads each shard, as far as this node knows: where clients' requests go.

use std::sync::atomic::{AtomicU64, Ordering};

use base::ShardId;
use tokio::sync::watch;

pub(crate) struct Routes {
    leaders: Vec<AtomicU64>,
    /// Counts changes, of leaders and of connections: whoever waits for a leader looks again.
    changes: watch::Sender<u64>,
}

impl Routes {
    pub(crate) fn new(shards: u16) -> Routes {
        Routes { leaders: (0..shards).map(|_| AtomicU64::new(0)).collect(), changes: watch::Sender::new(0) }
    }

    /// The leader's id; 0: none is known.
    pub(crate) fn leader(&self, shard: ShardId) -> u64 {
        self.leaders[usize::from(shard.0)].load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, shard: ShardId, leader: u64) {
        if self.leaders[usize::from(shard.0)].swap(leader, Ordering::Relaxed) != leader {
            self.bump();
        }
    }

    /// Something has changed that a waiting request may have waited for.
    pub(crate) fn bump(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
