//! codeq's face: HTTP, authentication, configuration, metrics.
//!
//! A request is read on one of the edge's threads ([`http`]), checked for who sends it ([`auth`]), turned into a typed operation, and handed
//! to the node; the outcome becomes the answer. Nothing about tasks is decided here: rights are, and the shape of what goes in and out.
//! What a server runs with ([`settings`]) is made from flags, variables and a file by [`config`].

pub mod auth;
mod backups;
mod bulk;
pub mod config;
pub mod families;
mod feed;
pub mod http;
mod log_lines;
pub mod metrics;
pub mod offline;
#[cfg(test)]
mod reference;
pub mod reload;
mod serve;
pub mod settings;

pub use backups::BackupSettings;
pub use log_lines::{LogLines, log_lines};
pub use serve::{Exit, Server};

/// What a server's settings and end say of its node: whoever starts a server needs no other crate for them.
pub use cluster::{Clock, Data, Durability, NodeError, Retired, Stage, StartError, StorageError, socket};
