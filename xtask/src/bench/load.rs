//! One run of the load generator, and its figures.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What to ask `codeq bench` for.
#[derive(Clone)]
pub(super) struct Load {
    pub(super) workload: &'static str,
    pub(super) connections: u32,
    pub(super) commands: u32,
    pub(super) payload_bytes: u32,
    pub(super) duration: Duration,
    /// Requests per second in all, whatever the answers; nothing: each connection waits for its answers.
    pub(super) rate: Option<u64>,
    /// Reads everything acknowledged back afterwards; a run that lost something is an error.
    pub(super) verify: bool,
}

/// What a run has measured.
pub(super) struct Figures(Value);

impl Load {
    /// Runs it against a server.
    ///
    /// # Errors
    /// Requests fail, or something acknowledged is missing.
    pub(super) fn run(&self, codeq: &Path, url: &str) -> Result<Figures> {
        let mut command = Command::new(codeq);
        command.args(["bench", "--json", "--url", url, "--workload", self.workload]);
        command.args(["--connections", &self.connections.to_string()]);
        command.args(["--commands", &self.commands.to_string()]);
        command.args(["--payload", &self.payload_bytes.to_string()]);
        command.args(["--duration", &format!("{}ms", self.duration.as_millis())]);
        if let Some(rate) = self.rate {
            command.args(["--rate", &rate.to_string()]);
        }
        if !self.verify {
            command.arg("--no-verify");
        }
        let output = command.output().context("cannot run codeq bench")?;
        ensure!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
        let figures = serde_json::from_slice(&output.stdout).context("codeq bench prints JSON")?;
        let figures = Figures(figures);
        ensure!(figures.0["errors"] == 0, "requests failed: {}", figures.0["firstError"]);
        Ok(figures)
    }
}

impl Figures {
    pub(super) fn cycles_per_second(&self) -> Result<f64> {
        self.0["cyclesPerSecond"].as_f64().context("the figures have no cyclesPerSecond")
    }

    /// Syncs of the server's log for each operation.
    pub(super) fn syncs_per_operation(&self) -> Result<f64> {
        self.0["syncsPerOperation"].as_f64().context("the figures have no syncsPerOperation")
    }

    /// A latency in milliseconds: of `create`, `claim`, `complete`, `read` or `hand_over`, at `p50`, `p99`, `p999` or `max`.
    pub(super) fn millis(&self, kind: &str, at: &str) -> Result<f64> {
        let micros = self.0["latencyMicros"][kind][at].as_f64();
        Ok(micros.with_context(|| format!("the figures have no {at} of {kind}"))? / 1000.0)
    }
}

/// The middle one; of an even number the upper one of the two.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "there is no middle of nothing");
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![1.0]), 1.0);
    }
}
