//! The figures of a run.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::bench::load::Log;
use crate::bench::verify::Verdict;
use crate::bench::{BenchArgs, Workload};

/// What a run has measured.
pub(super) struct Measured {
    pub(super) log: Log,
    pub(super) elapsed: Duration,
    /// Syncs and operations of the server, before and after.
    pub(super) syncs_before: Option<(u64, u64)>,
    pub(super) syncs_after: Option<(u64, u64)>,
    pub(super) verdict: Option<Verdict>,
}

/// The figures of a run, for people and programs.
pub(crate) struct Report {
    args: BenchArgs,
    measured: Measured,
}

impl Report {
    pub(super) fn new(args: &BenchArgs, measured: Measured) -> Report {
        Report { args: args.clone(), measured }
    }

    /// Cycles of the workload per second.
    fn per_second(&self) -> f64 {
        self.measured.log.cycles as f64 / self.measured.elapsed.as_secs_f64()
    }

    fn kinds(&self) -> Vec<(&'static str, &Histogram<u64>)> {
        let log = &self.measured.log;
        let all = [
            ("create", &log.create),
            ("claim", &log.claim),
            ("complete", &log.complete),
            ("read", &log.read),
            ("hand over", &log.hand_over),
        ];
        all.into_iter().filter(|(_, histogram)| !histogram.is_empty()).collect()
    }

    /// Syncs of the server's log per operation.
    fn syncs_per_operation(&self) -> Option<f64> {
        let (before, after) = (self.measured.syncs_before?, self.measured.syncs_after?);
        let operations = after.1.checked_sub(before.1).filter(|operations| *operations > 0)?;
        Some(after.0.checked_sub(before.0)? as f64 / operations as f64)
    }

    /// Nothing was lost or done twice, and something was done.
    pub(crate) fn is_good(&self) -> bool {
        let sound = |verdict: &Verdict| verdict.missing + verdict.completed_twice + verdict.not_completed == 0;
        self.measured.log.cycles > 0 && self.measured.verdict.as_ref().is_none_or(sound)
    }

    /// What is wrong, in one line.
    pub(crate) fn complaint(&self) -> String {
        match (&self.measured.verdict, &self.measured.log.first_error) {
            (Some(verdict), _) if verdict.missing + verdict.completed_twice + verdict.not_completed > 0 => format!(
                "{} of {} acknowledged tasks are missing, {} were completed twice, {} completions are not shown; one of them is {}",
                verdict.missing,
                verdict.acknowledged,
                verdict.completed_twice,
                verdict.not_completed,
                verdict.example.as_deref().unwrap_or("unknown"),
            ),
            (_, Some(error)) => format!("nothing was done; the first error was: {error}"),
            _ => "nothing was done".into(),
        }
    }

    /// The figures as one JSON object. Latencies are microseconds.
    pub(crate) fn to_json(&self) -> String {
        let log = &self.measured.log;
        let mut latencies = serde_json::Map::new();
        for (kind, histogram) in self.kinds() {
            let at = |quantile| histogram.value_at_quantile(quantile);
            latencies.insert(
                kind.replace(' ', "_"),
                serde_json::json!({
                    "count": histogram.len(), "mean": histogram.mean(),
                    "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": histogram.max(),
                }),
            );
        }
        let verdict = self.measured.verdict.as_ref().map(|verdict| {
            serde_json::json!({
                "acknowledged": verdict.acknowledged, "missing": verdict.missing,
                "completedTwice": verdict.completed_twice, "notCompleted": verdict.not_completed,
            })
        });
        let report = serde_json::json!({
            "workload": name(self.args.workload), "connections": self.args.connections, "payloadBytes": self.args.payload,
            "commands": self.args.commands, "rate": self.args.rate, "seconds": self.measured.elapsed.as_secs_f64(),
            "cycles": log.cycles, "cyclesPerSecond": self.per_second(), "emptyClaims": log.empty_claims,
            "errors": log.errors, "firstError": log.first_error, "unknownCreations": log.ledger.maybe_created,
            "syncsPerOperation": self.syncs_per_operation(), "latencyMicros": latencies, "verdict": verdict,
        });
        report.to_string()
    }
}

fn name(workload: Workload) -> &'static str {
    match workload {
        Workload::Create => "create",
        Workload::Work => "work",
        Workload::Cycle => "cycle",
        Workload::Read => "read",
        Workload::LongPoll => "long-poll",
        Workload::Sdk => "sdk",
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let log = &self.measured.log;
        let loops = self.args.rate.map_or("closed loop".into(), |rate| format!("{rate} requests/s"));
        writeln!(
            f,
            "{}: {} connections, {} bytes of payload, {} queues, {loops}, {:.1} s",
            name(self.args.workload),
            self.args.connections,
            self.args.payload,
            self.args.commands,
            self.measured.elapsed.as_secs_f64()
        )?;
        writeln!(f, "{:.0} per second, {} errors, {} empty claims", self.per_second(), log.errors, log.empty_claims)?;
        if let Some(syncs) = self.syncs_per_operation() {
            writeln!(f, "{syncs:.4} syncs of the log per operation")?;
        }
        writeln!(f, "{:<10} {:>9} {:>9} {:>9} {:>9} {:>9}  ms", "", "p50", "p90", "p99", "p99.9", "max")?;
        for (kind, histogram) in self.kinds() {
            let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
            let max = histogram.max() as f64 / 1000.0;
            writeln!(
                f,
                "{kind:<10} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {max:>9.2}",
                at(0.5),
                at(0.9),
                at(0.99),
                at(0.999)
            )?;
        }
        if let Some(error) = &log.first_error {
            writeln!(f, "first error: {error}")?;
        }
        match &self.measured.verdict {
            None => write!(f, "not checked"),
            Some(verdict) => write!(
                f,
                "checked: {} tasks acknowledged, {} missing, {} completed twice, {} completions not shown",
                verdict.acknowledged, verdict.missing, verdict.completed_twice, verdict.not_completed
            ),
        }
    }
}
