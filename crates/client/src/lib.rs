//! The Rust SDK of codeq: producers, workers, and every question a program asks a server.
//!
//! | to | use |
//! |---|---|
//! | create tasks, one or many at a time | [`Client::create`], [`Client::create_all`] |
//! | create tasks as they come up, without waiting for each | [`Client::producer`] |
//! | work on tasks | [`Client::worker`] |
//! | see how a task ended | [`Client::finished`] |
//! | test all that | the crate `testserver` |
//!
//! **What may have happened.** An [`Error`] says whether the call can have had an effect. Calls are made again by themselves wherever that is
//! safe, for [`Builder::patience`]: what no server took, in any case; what was sent and not answered, if a second time does what the first
//! one did. So that this holds for creations, each task has an idempotency key; one is drawn where you give none. Claims are not made again
//! after a lost answer: what was claimed comes back when its lease ends.
//!
//! **Several servers.** Give the URLs of all nodes. A call goes to the one that answered last, and at once to the next one if that cannot be
//! reached or cannot take it.
//!
//! **Any route.** [`Client::send`] asks for what has no method here; [`Client::first_answer`] takes whatever the first server says,
//! [`Client::stream`] reads a body piece by piece, [`Client::upload`] sends one. A server on the same machine may be named by its socket,
//! `unix:PATH`.
//!
//! **Bounds.** Nothing here grows without one: calls under way ([`Builder::calls_max`]), bytes of tasks that a producer has under way, tasks
//! that a worker has in hand ([`WorkerBuilder::slots`]), bytes of an answer.
//!
//! Reading order: `client` (one call, from the first try to the last), `repeat` (when there is another one), `error`, `routes` (what can be
//! asked), `task`, `producer`, `worker`; `connection` beneath.

mod client;
mod connection;
mod error;
mod key;
mod producer;
mod repeat;
mod routes;
mod task;
mod worker;

pub use api::Code;
pub use client::{AnyRequest, Builder, Client};
pub use connection::{Answer, Pieces, Upload};
pub use error::{Error, Problem};
pub use key::draw as idempotency_key;
pub use producer::{Producer, Ticket};
pub use repeat::Repeat;
pub use routes::escaped as path_segment;
pub use routes::{Claim, Extended, Outcome, QueueCounts, Settled};
pub use task::{Created, Finished, NewTask, ResultRecord, State, Task};
/// Whom a client trusts, and the certificate it shows: made of PEM.
pub use tls::ClientTls;
pub use worker::{Failure, Job, Stop, Summary, WorkerBuilder};

/// The programs of the guides compile, and run where they say what they do.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../../../docs/guides/producers.md")]
    struct Producers;
    #[doc = include_str!("../../../docs/guides/workers.md")]
    struct Workers;
}
