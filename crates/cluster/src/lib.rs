//! Runs a replicated state machine for real: threads, clock, disk, and handles for clients. Knows no task.
//!
//! An application brings a deterministic state machine: a [`SimpleMachine`] whose whole state is small, or a [`StateMachine`] with rows of
//! its own. A [`Node`] replicates it: [`Handle::propose`] applies an operation on every node, [`Handle::read`] asks the state of this one,
//! and [`http::serve`] shows the cluster to people, probes and programs. docs/cluster-crate.md is a page about it for whoever begins, and
//! examples/hello-cluster is a whole program.
//!
//! A node owns a data directory and carries N shards. One thread, the loop, runs the replica: it takes what clients have queued, proposes,
//! writes the log and syncs it once for everything that gathered, applies, and hands out replies. A second thread writes checkpoints, a third
//! reads single rows of them for clients, two more look through them, another one carries the connections to other nodes. Nothing here blocks an async runtime: clients wait
//! for replies by future.
//!
//! Reading order: `builder` and `simple` (what one begins with), `node` (all that a user of this crate sees), `driver` (the loop), then the
//! parts: `inbox` where threads meet, `lane` for replies, `checkpoints`, `rows` and `looks` for other threads, `clock`. For several nodes:
//! [`forming`] and `founding` (how a cluster begins), `peer` (the connections), `routes` (who leads), `operate` and
//! `guard` (what operators ask for, and what is refused), `health` (how the members are), `tokens` (secrets that let nodes join),
//! `alarms` (what somebody
//! should look after), [`http`] (what a node says of all this),
//! [`events`] (what happens, and the story of each election). For data that must not be lost: [`backup`], [`recovery`] and `restoring`. For whoever
//! looks for a fault: [`bundle`].

mod alarms;
pub mod backup;
mod builder;
pub mod bundle;
mod checkpoints;
mod clock;
mod driver;
pub mod events;
mod founding;
mod guard;
mod health;
mod histogram;
pub mod http;
mod inbox;
mod lane;
mod looks;
mod node;
mod open;
mod operate;
mod peer;
pub mod recovery;
mod restoring;
mod routes;
mod rows;
mod simple;
mod tokens;

pub use alarms::{AlarmKind, Room};
pub use base::machine::{Admission, Effects, EntryInfo, NextDue, ShardInfo, StateMachine, UnknownOperation, WaitKey};
/// The rows of a checkpoint, as a [`StateMachine`] lists them and is restored from them.
pub use base::rows as checkpoint;
pub use base::{Incarnation, Index, LeaseTime, Millis, Position, ScheduleTime, ShardId, Stamps, Term, codec};
pub use builder::Builder;
pub use clock::Clock;
pub use events::counts::ElectionCounts;
pub use guard::Numbers;
pub use health::Report;
pub use histogram::Histogram;
pub use http::view;
pub use lane::{Lane, LaneId};
pub use looks::{Reader, Readers, Time};
pub use node::{
    AdminAction, Cluster, Counters, Data, Durability, Handle, Hooks, Node, NodeConfig, NodeError, NodeStatus, Stage,
    StartError,
};
pub use operate::{Actor, Done, HOLD, Refused, Retired, Right, TRANSFER_MAX, Target};
pub use peer::PeerConfig;
pub use replica::forming;
pub use replica::tokens::JoinToken;
pub use replica::{
    Cause, Configuration, Election, Elections, Fault, Freshness, Member, MemberChange, Members, Operations, Progress,
    Reason, Reply, Role, ShardStatus, Status, Unavailable,
};
pub use restoring::{NotRestored, Upload};
pub use rows::RowsUnavailable;
pub use simple::{Simple, SimpleMachine};
pub use storage::StorageError;
pub use storage::checkpoint::{RowReader, StoredRow};
pub use storage::identity::{Identity, recorded as recorded_identity};
pub use storage::socket::{self, LocalSocket};
pub use tls::{Fingerprint, PeerPem, PeerTls};
pub use tokens::{Grant, JoinSecret, Meeting, TOKEN_TTL, TOKEN_TTL_MAX};
