//! HTTP: from a socket to a typed operation and back.
//!
//! [`listener`] accepts and spreads connections over the edge's threads, `connection` speaks HTTP on one of them, `routes` says which path is
//! what and who may call it, `call` reads a request by the rules all routes share, and then there is one file per group of routes. What is
//! said when something cannot be done is decided in `error`.

mod answer;
mod audit;
mod batch;
mod body;
mod bulk;
mod bundle;
pub(crate) mod call;
mod claim;
mod cluster;
mod connection;
pub(crate) mod create;
pub(crate) mod cursor;
mod edge;
mod edit;
mod epochs;
pub(crate) mod error;
mod events;
pub(crate) mod filter;
mod groups;
mod history;
mod lease;
mod listener;
mod lists;
pub(crate) mod openapi;
mod operate;
mod page;
mod questions;
mod queues;
mod reads;
mod redirect;
mod result;
mod routes;
mod snapshot;
mod source;
mod status;
mod streams;
mod tasks;
mod tokens;
mod waiting;

pub(crate) use bundle::describe;
pub(crate) use claim::give_back;
pub(crate) use cluster::own_status;
pub(crate) use edge::Shared;
pub(crate) use epochs::Epochs;
pub(crate) use listener::{Listener, Threads};
pub(crate) use streams::STREAMS_MAX;
