//! The server from outside: each test starts one, speaks HTTP with it over a socket, and stops it.
//!
//! `server` starts servers, `client` speaks HTTP by hand so that it can also send what no library would send, `faults` notices what a server
//! must never do whatever it is sent. The tests stand by what they are about.

mod access;
mod backups;

mod bad_input;
mod bulk;
mod client;
mod damage;
mod events;
mod faults;
mod history;
mod http2;
mod life;
mod limits;
mod lists;
mod metrics;
mod operator;
mod operators;
mod questions;
mod restart;
mod roles;
mod routes;
mod server;
mod status;
mod stopping;
mod streams;
