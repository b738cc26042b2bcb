//! Runs a replicated state machine for real: threads, clock, disk, and handles for clients. Knows no task.
//!
//! A [`Node`] owns a data directory and carries N shards. One thread, the loop, runs the replica: it takes what clients have queued, proposes,
//! writes the log and syncs it once for everything that gathered, applies, and hands out replies. A second thread writes checkpoints, a third
//! reads single rows of them for clients, a fourth carries the connections to other nodes. Nothing here blocks an async runtime: clients wait
//! for replies by future.
//!
//! Reading order: `node` (what a user of this crate sees), `driver` (the loop), then the parts: `inbox` where threads meet, `lane` for replies,
//! `checkpoints` and `rows` for two of the other threads, `clock`. For several nodes: [`forming`] and `founding` (how a cluster begins), `peer`
//! (the connections), `routes` (who leads), `leadership` (who should), [`http`] (what a node says of all this).

mod checkpoints;
mod clock;
mod driver;
pub mod forming;
mod founding;
pub mod http;
mod inbox;
mod lane;
mod leadership;
mod node;
mod open;
mod peer;
mod routes;
mod rows;

pub use http::view;
pub use lane::{Lane, LaneId};
pub use node::{
    Cluster, Counters, Data, Durability, Handle, Hooks, Node, NodeConfig, NodeError, NodeStatus, Stage, StartError,
};
pub use peer::PeerConfig;
pub use replica::{Freshness, Member, Members, Operations, Reply, Role, ShardStatus, Unavailable};
pub use rows::RowsUnavailable;
pub use storage::StorageError;
pub use storage::checkpoint::StoredRow;
pub use storage::identity::{Identity, recorded as recorded_identity};
