//! `cargo xtask judge FILE`: says what a recorded history shows.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use history::{History, Verdict, judge};

#[derive(Args)]
pub(crate) struct JudgeArgs {
    /// A history: JSON lines, as docs/internals/history.md describes them.
    file: PathBuf,
}

/// Reads a history and prints the verdict.
///
/// # Errors
/// It is red or inconclusive, or it cannot be read.
pub(crate) fn run(args: &JudgeArgs) -> Result<()> {
    let path = args.file.display();
    let file = File::open(&args.file).with_context(|| format!("{path} cannot be opened"))?;
    let begun = Instant::now();
    let history = History::read(BufReader::new(file)).with_context(|| format!("{path} cannot be judged"))?;
    let verdict = judge(&history);
    let seconds = begun.elapsed().as_secs_f64();
    match verdict {
        Verdict::Green(summary) => {
            println!("green: nothing wrong is to be seen ({seconds:.1} s)");
            println!(
                "{} operations, {} answered; {} of unknown outcome had happened, {} had not; {} in {} entries of the logs",
                summary.operations,
                summary.answered,
                summary.happened,
                summary.vanished,
                summary.logged,
                summary.entries
            );
            Ok(())
        }
        Verdict::Red(report) => {
            println!("{report}");
            bail!("red: {} is violated", report.id)
        }
        Verdict::Inconclusive(why) => bail!("inconclusive, which is as bad as red: {why}"),
    }
}
