//! Data directories that commands work on, and what such commands print.

use std::path::PathBuf;
use std::process::ExitCode;

use server::config::Inputs;
use server::config::Values;
use server::config::kinds::Value;

use crate::output;

/// Settings as a server on this machine would read them from its environment.
pub(crate) struct Settings(Values);

impl Settings {
    /// Those of this process's environment.
    pub(crate) fn of_environment() -> Settings {
        let named = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        Settings(Inputs { flags: Vec::new(), environment: named.collect() }.read().values)
    }

    /// Where the server keeps its data.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.text("dataDir").unwrap_or_default().into()
    }

    /// The server's name, if it is set.
    pub(crate) fn node_id(&self) -> Option<String> {
        self.text("cluster.nodeId")
    }

    fn text(&self, name: &str) -> Option<String> {
        match &self.0.get(name).value {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }
}

/// Says what went wrong.
pub(crate) fn failed(what: &str) -> ExitCode {
    output::note(&format!("error: {what}"));
    ExitCode::FAILURE
}

/// Rows below each other, the first one with headings. Every row has as many cells.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..count).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}
