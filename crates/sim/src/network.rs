//! The network between nodes: connections that carry packets in order and can break, and netsplits.

use base::rng::SplitMix;
use bytes::Bytes;
use storage::checkpoint::Snapshot;

use base::ShardId;

/// What travels.
#[derive(Clone, Debug)]
pub enum Packet {
    /// Messages of consensus: for each its shard (2 bytes), length (4) and bytes.
    Messages(Bytes),
    /// A client's operations for the leader.
    Forward {
        /// Names it in the answer.
        request: u64,
        /// The shard.
        shard: ShardId,
        /// How long it may wait, ms; 0: not at all.
        wait: u64,
        /// The operations.
        operations: Bytes,
    },
    /// What became of them.
    Answer {
        /// The request.
        request: u64,
        /// The reply.
        reply: Bytes,
    },
    /// Nobody waits for the answer any longer.
    Forget {
        /// The request.
        request: u64,
    },
    /// A piece of a snapshot.
    Chunk(Box<Piece>),
    /// How far a snapshot is.
    Receipt {
        /// The shard.
        shard: ShardId,
        /// How.
        receipt: Receipt,
    },
    /// What a node says of itself.
    Greeting(Bytes),
    /// Whoever has no cluster asks to be admitted.
    Ask {
        /// Its greeting.
        greeting: Bytes,
    },
    /// It is a member of this cluster: id and incarnation.
    Admitted(u128, u64),
}

/// A piece of a snapshot.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The shard.
    pub shard: ShardId,
    /// What the whole of it is.
    pub snapshot: Snapshot,
    /// The message that hands it over.
    pub message: Bytes,
    /// Where the piece begins.
    pub offset: u64,
    /// The piece.
    pub bytes: Bytes,
}

/// What becomes of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// So much is there.
    Arrived(u64),
    /// It is the checkpoint, or was not wanted.
    Installed,
    /// It is of no use.
    Refused,
}

/// The way from one node to another.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// There is a connection.
    pub up: bool,
    /// Which one.
    pub epoch: u32,
    /// Its last packet arrives then.
    last: u64,
    /// Nothing gets through until then.
    pub blocked_until: u64,
    /// When it is tried again.
    pub retry_at: u64,
}

/// How links behave, in this run.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Base latency, µs.
    pub latency: u64,
    /// Mean of what comes on top, µs; 0: nothing.
    pub jitter: u64,
    /// Chance of 100 to 800 ms, in parts per million.
    pub spike: u64,
    /// Chance that a datagram is lost.
    pub loss: u64,
    /// Chance that it comes twice.
    pub duplicate: u64,
    /// Chance that it is overtaken.
    pub reorder: u64,
}

/// Whether something happens that has this chance in a million.
pub fn happens(rng: &mut SplitMix, chance: u64) -> bool {
    chance > 0 && rng.below(1_000_000) < chance
}

impl Weather {
    /// How long a packet takes.
    pub fn delay(&self, rng: &mut SplitMix) -> u64 {
        let jitter = if self.jitter > 0 { rng.below(2 * self.jitter) } else { 0 };
        let spike = if happens(rng, self.spike) { 100_000 + rng.below(700_000) } else { 0 };
        self.latency + jitter + spike
    }
}

impl Link {
    /// When a packet sent now arrives: behind all sent before.
    pub fn arrival(&mut self, time: u64, delay: u64) -> u64 {
        self.last = self.last.max(time + delay);
        self.last
    }

    /// Whether nothing gets through.
    pub fn is_blocked(&self, time: u64) -> bool {
        time < self.blocked_until
    }

    /// The connection has ended.
    pub fn reset(&mut self) {
        self.up = false;
        self.epoch += 1;
        self.last = 0;
    }
}
