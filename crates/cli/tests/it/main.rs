//! The program as its users meet it: real processes, free ports, and lines that are waited for.

mod alarms;
mod backup;
mod bundle;
mod cluster;
mod config;
mod dev;
mod documents;
mod events;
mod many;
mod operate;
mod process;
mod roles;
mod serve;
mod task;
mod tls;
mod tokens;
