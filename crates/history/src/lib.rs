//! Histories and their judge: what clients saw, what the committed log says and what nodes hold at the end, and whether that can be.
//!
//! This crate shares no code with the server: it sees `base`, and of it ids and numbers. Whoever records a history converts what it
//! sees into the lines of [`record`]; nothing here reads the server's bytes.
//!
//! Reading order: [`record`] says what a history is made of; [`model`] is the reference, what the rules are; [`judge`] compares the
//! two, in passes, one file each.

pub mod record;

mod blame;
mod form;
mod heal;
mod history;
mod judge;
pub mod model;
mod order;
mod place;
mod reached;
mod replay;
mod report;
mod session;

pub use history::{History, Unreadable};
pub use judge::{Summary, Verdict, judge};
pub use report::{RECORDS_MAX, Report};
