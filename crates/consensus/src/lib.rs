//! Raft behind our own types: one group, as a value. Messages and ticks go in, work comes out. The only crate that names the `raft` crate.
//!
//! The `raft` crate is used as it is, and what it leaves to its user is settled here, each in one place:
//!
//! - its one source of ambient randomness, the election timeout, is set from a seed after every step ([`timeouts`]);
//! - messages and entries travel in our encoding, never in its protobuf one, and there is no encoding of a proposal ([`codec`]);
//! - what may leave before a sync and what must wait for it are different fields of [`Work`].
//!
//! The group knows nothing of tasks, and nothing of what its entries say.

pub mod codec;
mod configuration;
mod group;
mod log;
mod story;
mod timeouts;

pub use codec::{Message, SnapshotOf};
pub use configuration::{Configuration, MemberChange, decode_changes};
pub use group::{Group, GroupConfig, LostLog, NotLeader, Progress, Refused, Restored, Role, Status, Ticket, Work};
pub use story::{Answered, Cause, Happening, Reason, StepDown, Told, Won};
