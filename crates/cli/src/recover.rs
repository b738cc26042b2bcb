//! `codeq recover`: a cluster of which so many nodes are lost that the others cannot agree on anything any more.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use server::offline::{self, Choice, Survivor};

use crate::data::{columns, failed};
use crate::output;
use crate::snapshot::{begun, now};

#[derive(Subcommand)]
pub(crate) enum RecoverCommand {
    /// Says what the data directories of stopped nodes hold, and which of them to go on with. Changes nothing.
    #[command(after_help = "Example:\n  codeq recover plan /var/lib/codeq-a /var/lib/codeq-b")]
    Plan(PlanArgs),
    /// Makes one of the directories a new cluster of one node, after copying what it holds into a folder inside it.
    ///
    /// Use it only when a majority of the nodes is lost for good: with a majority, a cluster goes on by itself and loses nothing.
    #[command(after_help = "Example:\n  codeq recover apply /var/lib/codeq-a /var/lib/codeq-b")]
    Apply(ApplyArgs),
}

#[derive(Args)]
pub(crate) struct PlanArgs {
    /// Data directories of the nodes that are left, all of one cluster. Their servers must not run.
    #[arg(required = true, value_name = "DIR")]
    directories: Vec<PathBuf>,
}

#[derive(Args)]
pub(crate) struct ApplyArgs {
    /// Data directories of the nodes that are left, all of one cluster. Their servers must not run.
    #[arg(required = true, value_name = "DIR")]
    directories: Vec<PathBuf>,
    /// If no directory is ahead in every group, take each group from the directory that is ahead in it.
    #[arg(long)]
    merge: bool,
}

pub(crate) fn run(command: &RecoverCommand) -> ExitCode {
    match command {
        RecoverCommand::Plan(args) => plan(args),
        RecoverCommand::Apply(args) => apply(args),
    }
}

fn look(directories: &[PathBuf]) -> Result<Vec<Survivor>, String> {
    let look = |directory: &PathBuf| offline::look(directory).map_err(|error| error.to_string());
    directories.iter().map(look).collect()
}

fn plan(args: &PlanArgs) -> ExitCode {
    let survivors = match look(&args.directories) {
        Ok(survivors) => survivors,
        Err(error) => return failed(&error),
    };
    for survivor in &survivors {
        output::data(&format!(
            "{}: node {} of cluster {:032x}",
            survivor.path().display(),
            survivor.identity.node,
            survivor.identity.cluster
        ));
        let headings = ["Group", "Term", "Last term", "Last index", "Committed", "Checkpoint", "State"];
        let mut rows = vec![headings.map(str::to_owned).to_vec()];
        rows.extend(survivor.groups.iter().map(|group| {
            vec![
                group.shard.to_string(),
                group.term.0.to_string(),
                group.last_term.0.to_string(),
                group.last.to_string(),
                group.commit.to_string(),
                group.checkpoint.to_string(),
                group.problem.clone().unwrap_or_else(|| "intact".into()),
            ]
        }));
        output::data(&columns(&rows));
    }
    let named = |number: usize| survivors[number].path().display().to_string();
    match offline::choose(&survivors) {
        Err(why) => return failed(&why),
        Ok(Choice::One(number)) => {
            output::data(&format!("recommended: {}, which has the latest entries of every group", named(number)));
        }
        Ok(Choice::Several(sources)) => {
            let each =
                sources.iter().enumerate().map(|(group, source)| format!("group {group} from {}", named(*source)));
            output::data(&format!(
                "no directory has the latest entries of every group; with --merge: {}",
                each.collect::<Vec<_>>().join(", ")
            ));
        }
    }
    output::data(LOSS);
    let all: Vec<String> = args.directories.iter().map(|directory| directory.display().to_string()).collect();
    output::data(&format!("go on with:  codeq recover apply {}", all.join(" ")));
    ExitCode::SUCCESS
}

const LOSS: &str = "what may be lost: operations that were acknowledged by nodes which are not named here, and that none of these has\n\
                    what may come back: operations in a log that were never acknowledged; their clients were told that the outcome is unknown\n\
                    leases are over, and their tasks are delivered again";

fn apply(args: &ApplyArgs) -> ExitCode {
    let survivors = match look(&args.directories) {
        Ok(survivors) => survivors,
        Err(error) => return failed(&error),
    };
    let (target, sources) = match offline::choose(&survivors) {
        Ok(Choice::One(number)) => (number, vec![number; usize::from(survivors[number].identity.shards)]),
        Ok(Choice::Several(sources)) if args.merge => (sources[0], sources),
        Ok(Choice::Several(_)) => {
            return failed(
                "no directory has the latest entries of every group: look at codeq recover plan, then add --merge",
            );
        }
        Err(why) => return failed(&why),
    };
    match offline::recover(&survivors, target, &sources, now()) {
        Ok((cluster, copy)) => {
            output::data(&format!("what was there is now in {}", copy.display()));
            output::data(&begun(&cluster, survivors[target].path()));
            for other in survivors.iter().enumerate().filter(|(number, _)| *number != target).map(|(_, other)| other) {
                output::data(&format!(
                    "node {}: move {} away and let it join with an empty directory",
                    other.identity.node,
                    other.path().display()
                ));
            }
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error.to_string()),
    }
}
