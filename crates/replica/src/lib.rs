//! One replica of N shards, as a value: events in, effects out.
//!
//! [`Replica`] joins consensus with a state machine for each shard a node carries. It decides what becomes an entry, what an entry's stamps
//! are, which waiting requests go on, and what may be answered; its driver owns threads, the clock, the disk and the sockets, and does what
//! [`Effects`] asks for. A replica never waits: what takes time comes back as an event.
//!
//! Reading order: [`event`] says what goes in and comes out, `shard` joins the parts, and the parts are one file each: `batch` forms
//! entries, `stamp` keeps the clocks, `writes` orders what goes to the log, `deadlines` says when to wake up, `waiters` holds requests open,
//! `reads` confirms questions, `members` says who is in the group, `elections` who was elected when. `runner` joins a replica with its log
//! and its checkpoints: the order in which a turn does things; `restore` says what a shard goes on from. [`forming`] and [`leadership`]
//! decide how a cluster begins and who should lead. `restores` says how a backup takes the place of all data.
//! `replay` applies entries where there is no group any more.

mod batch;
mod deadlines;
pub mod elections;
pub mod event;
pub mod forming;
pub mod leadership;
pub mod members;
mod reads;
mod replay;
mod replica;
mod restore;
pub mod restores;
mod runner;
mod shard;
mod stamp;
pub mod tokens;
mod waiters;
mod writes;

pub use batch::{Operations, entry_operations};
pub use consensus::{
    Answered, Cause, Configuration, Happening, MemberChange, Message, Progress, Reason, Role, SnapshotOf, Status,
    StepDown, Told, Won,
};
pub use elections::{Election, Elections, Vote};
pub use event::{
    AfterSync, Client, Effects, Event, Freshness, Install, MustSync, Now, Reply, ShardStatus, Swap, Transition,
    Unavailable, Wait, Write,
};
pub use members::{Member, Members};
pub use replay::replay;
pub use replica::{Replica, ReplicaConfig, RestoreShard};
pub use restore::{FIRST, lost_log, restore};
pub use restores::{RestoreId, RestoreStep, Restores};
pub use runner::{Arrived, Installed, Job, Jobs, Runner, RunnerConfig, TellSaved, TellShown};
pub use shard::{Fault, Halt};
pub use tokens::{JoinToken, Joining, TokenStep};
