//! What clients can see: JSON shapes, error codes, the form of times and numbers. Knows no server.
//!
//! [`code`] lists the stable error codes, [`problem`] is the body of every error, [`v1`] the bodies of the routes under `/v1/codeq`, and [`json`]
//! the few rules by which all of them are read and written.

pub mod code;
pub mod json;
pub mod problem;
pub mod time;
pub mod v1;

pub use code::Code;
pub use problem::Problem;
