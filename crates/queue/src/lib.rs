//! The task state machine: every rule about tasks, leases, retries, dead letters, idempotency and retention.
//!
//! [`QueueMachine`] is a value: operations and clock readings in, outcomes out. It has no clock, disk, socket, thread or random number of
//! its own, so all replicas of a shard, and every replay of its log, agree. What a client may rely on is decided here, in `apply`, at one
//! position of the log; nothing is decided before the log or beside it.
//!
//! Reading order: [`op`] and [`outcome`] say what goes in and what comes out; `machine` applies an entry; `task` holds the life cycle;
//! the other modules are its rules, one each.

mod backoff;
mod cancel;
mod changes;
pub mod checkpoint;
pub mod codec;
mod create;
mod due;
mod edit;
pub mod groups;
pub mod id;
pub mod idempotency;
mod lease;
pub mod listing;
mod machine;
pub mod op;
pub mod operations;
pub mod outcome;
mod outcome_codec;
mod pause;
mod payload;

pub mod policy;
mod query;
mod ready;
pub mod record;
mod retention;
pub mod search;
mod slab;
pub mod steps;
mod task;

pub use backoff::{Backoff, BackoffPolicy};
pub use id::{LeaseToken, TaskId, TaskKey};
pub use machine::{QueueMachine, Signal};
pub use op::Op;
pub use outcome::{Answer, Outcome, Query, Rejection, State, TaskView};
pub use payload::Payload;
pub use policy::Policy;
/// The tables and views of a shard's checkpoint.
pub fn schema() -> base::rows::Schema {
    checkpoint::SCHEMA
}

pub use ready::{PRIORITIES, QUEUES_MAX};
