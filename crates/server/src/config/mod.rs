//! Where a server's settings come from: flags, the environment, a file, and a table of defaults.
//!
//! [`table`] is the list of all settings; [`kinds`] are their types. [`Inputs::read`] gathers what flags, variables (`CODEQ_…`, and those codeQ
//! has: `codeq`) and the file say, and picks what holds: a flag before the environment before the file before the default. Then
//! [`Reading::configuration`] checks how the values go together and makes the values a server runs with. Nothing is opened or changed by
//! any of this, and all problems are told together.
//!
//! Reading order: `table`, `kinds`, `sources`, `codeq`, `file`, `values`, `build`, `access`, `cluster`, `show`.

mod access;
mod build;
mod cluster;
mod codeq;
mod file;
pub mod kinds;
pub mod show;
mod sources;
pub mod table;
mod values;

use std::fmt;

pub use build::{Configuration, LogFormat, LogSettings};
pub use sources::{Inputs, Reading};
pub use values::{Held, Origin, Values};

/// Settings that are refused: what is wrong, a line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub Vec<String>);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Refused {}

/// Something an operator should know, though the server starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whether it asks for attention.
    pub is_warning: bool,
    /// One line.
    pub text: String,
}

impl Notice {
    pub(crate) fn info(text: impl Into<String>) -> Notice {
        Notice { is_warning: false, text: text.into() }
    }

    pub(crate) fn warning(text: impl Into<String>) -> Notice {
        Notice { is_warning: true, text: text.into() }
    }
}
