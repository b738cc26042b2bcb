//! `codeq debug`: a look at what a node keeps, for when something is to be found out.

use std::path::PathBuf;
use std::process::ExitCode;

use base::ShardId;
use clap::{Args, Subcommand};
use server::offline::{self, NewFile};

use crate::data::{Settings, columns, failed};
use crate::endpoint::{EndpointArgs, refused, unanswered};
use crate::output;

#[derive(Subcommand)]
pub(crate) enum DebugCommand {
    /// Looks at the checkpoint of a shard, which is a SQLite database. Changes nothing; the server may run.
    #[command(subcommand, after_help = "Example:\n  codeq debug db tables --shard 0")]
    Db(DbCommand),
    /// Gathers what all nodes say of themselves in a file, for whoever looks for a fault.
    ///
    /// The file is a tar: status, members, elections, settings, metrics and the last lines of the log of each node that answers, and the events of
    /// the cluster. It has no payloads and no secrets. Asks for the role admin.
    #[command(after_help = "Example:\n  codeq debug bundle bundle.tar")]
    Bundle(BundleArgs),
}

#[derive(Args)]
pub(crate) struct BundleArgs {
    /// The file to make.
    file: PathBuf,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

#[derive(Subcommand)]
pub(crate) enum DbCommand {
    /// Prints where the file is.
    #[command(after_help = "Example:\n  codeq debug db path")]
    Path(DbArgs),
    /// Prints its tables and how many rows they have.
    #[command(after_help = "Example:\n  codeq debug db tables")]
    Tables(DbArgs),
    /// Checks the file and the checksum of every row.
    #[command(after_help = "Example:\n  codeq debug db check")]
    Check(DbArgs),
    /// Copies it, as it is at one moment, to a file that any SQLite tool can open.
    #[command(after_help = "Example:\n  codeq debug db copy shard.sqlite")]
    Copy(CopyArgs),
    /// Prints all rows as SQL, in order. Nodes that have saved the same index print the same.
    #[command(after_help = "Example:\n  codeq debug db dump --shard 0")]
    Dump(DbArgs),
}

#[derive(Args)]
pub(crate) struct DbArgs {
    /// Only this shard. Without it, all of them.
    #[arg(long)]
    shard: Option<u16>,
    /// The data directory. Without it, the one of the settings in the environment.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct CopyArgs {
    /// The file to make.
    file: PathBuf,
    /// The shard.
    #[arg(long, default_value_t = 0)]
    shard: u16,
    /// The data directory. Without it, the one of the settings in the environment.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

pub(crate) fn run(command: DebugCommand) -> ExitCode {
    match command {
        DebugCommand::Db(command) => db(command),
        DebugCommand::Bundle(args) => bundle(&args),
    }
}

fn bundle(args: &BundleArgs) -> ExitCode {
    let mut file = match NewFile::create(&args.file) {
        Ok(file) => file,
        Err(error) => return failed(&error.to_string()),
    };
    match args.endpoint.download("/cluster/debug-bundle", &mut file) {
        Ok(answer) if answer.status == 200 => {}
        Ok(answer) => return refused(&answer),
        Err(error) => return unanswered(&error),
    }
    match file.finish() {
        Ok(()) => {
            output::data(&args.file.display().to_string());
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error.to_string()),
    }
}

fn db(command: DbCommand) -> ExitCode {
    let outcome = match command {
        DbCommand::Path(args) => each(&args, |directory, shard| {
            output::data(&offline::checkpoint_file(directory, shard).display().to_string());
            Ok(())
        }),
        DbCommand::Tables(args) => each(&args, tables),
        DbCommand::Check(args) => each(&args, |directory, shard| {
            let mut file = offline::checkpoint(directory, shard).map_err(|error| error.to_string())?;
            file.check().map_err(|error| error.to_string())?;
            let meta = file.meta();
            output::data(&format!("shard {shard}: ok, applied index {}, term {}", meta.index, meta.term));
            Ok(())
        }),
        DbCommand::Copy(CopyArgs { file, shard, data_dir }) => {
            let args = DbArgs { shard: Some(shard), data_dir };
            each(&args, |directory, shard| {
                let checkpoint = offline::checkpoint(directory, shard).map_err(|error| error.to_string())?;
                checkpoint.copy_to(&file).map_err(|error| error.to_string())?;
                output::data(&file.display().to_string());
                Ok(())
            })
        }
        DbCommand::Dump(args) => each(&args, |directory, shard| {
            output::data(&format!("-- shard {shard}"));
            let checkpoint = offline::checkpoint(directory, shard).map_err(|error| error.to_string())?;
            checkpoint.dump(output::data).map_err(|error| error.to_string())
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn tables(directory: &std::path::Path, shard: ShardId) -> Result<(), String> {
    let file = offline::checkpoint(directory, shard).map_err(|error| error.to_string())?;
    let mut rows = vec![["Shard", "Table", "Rows"].map(str::to_owned).to_vec()];
    let tables = file.tables().map_err(|error| error.to_string())?;
    rows.extend(tables.into_iter().map(|(table, count)| vec![shard.to_string(), table, count.to_string()]));
    output::data(&columns(&rows));
    Ok(())
}

/// Does something with the shard that was named, or with all of them.
fn each(args: &DbArgs, mut act: impl FnMut(&std::path::Path, ShardId) -> Result<(), String>) -> Result<(), String> {
    let directory = args.data_dir.clone().unwrap_or_else(|| Settings::of_environment().data_dir());
    let shards = offline::shards(&directory).map_err(|error| error.to_string())?;
    let shards = shards.ok_or_else(|| format!("{} is no node's data directory", directory.display()))?;
    if let Some(shard) = args.shard.filter(|shard| *shard >= shards) {
        return Err(format!("there is no shard {shard}: {} has {shards}", directory.display()));
    }
    let wanted = args.shard.map_or(0..shards, |shard| shard..shard + 1);
    wanted.map(ShardId).try_for_each(|shard| act(&directory, shard))
}
