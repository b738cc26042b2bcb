//! Histories: what clients saw, what the committed log says and what nodes hold at the end, as plain records ([`record`]).
//!
//! This crate shares no code with the server: it sees `base`, and of it ids and numbers. Whoever records a history converts what it
//! sees into these records; nothing here reads the server's bytes.

pub mod record;
