//! What every other crate may see: ids, time, seeded randomness, checksums, named limits, the byte codec, rows of a checkpoint,
//! and the contract between a state machine and the replica that runs it.
//!
//! Nothing here knows a task, a log or a socket. There is no clock: time enters as an argument.

pub mod checksum;
pub mod codec;
pub mod ids;
pub mod limits;
pub mod log;
pub mod machine;
pub mod map;
pub mod planted;
pub mod rng;
pub mod rows;
pub mod rowstore;
pub mod time;

pub use ids::{Incarnation, Index, Position, ShardId, Term, is_node_name};
pub use time::{LeaseTime, Millis, Mono, ScheduleTime, Stamps};
