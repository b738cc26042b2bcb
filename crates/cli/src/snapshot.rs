//! `codeq snapshot`: backups of a cluster, made by a running server, and looked at and restored without one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base::ScheduleTime;
use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;
use server::offline::{self, Manifest, NewCluster, NewFile, SavedGroup};

use crate::data;
use crate::endpoint::{EndpointArgs, refused, unanswered};
use crate::output;

/// A backup is damaged.
const DAMAGED: u8 = 6;

#[derive(Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Saves all tasks of a cluster to a file, while it runs.
    ///
    /// The file is a tar of one SQLite database for each group. It has everything that was acknowledged before the command was given.
    #[command(after_help = "Example:\n  codeq snapshot save backup.tar")]
    Save(SaveArgs),
    /// Says what a backup holds. Needs no server.
    #[command(after_help = "Example:\n  codeq snapshot inspect backup.tar")]
    Inspect(FileArgs),
    /// Compares every part of a backup with its checksum. Needs no server. Exit status 6 if one is damaged.
    #[command(after_help = "Example:\n  codeq snapshot verify backup.tar")]
    Verify(FileArgs),
    /// Restores a backup: into an empty data directory, as a new cluster of one node, or with --yes into the cluster that runs.
    ///
    /// Ids of tasks stay what they were. Leases that were held when the backup was made are over: their tasks are delivered again. A running
    /// cluster loses all that is not in the backup; it refuses writes until every voter has the backup, and if one cannot have it nothing
    /// changes.
    #[command(
        after_help = "Examples:\n  codeq snapshot restore backup.tar --data-dir /var/lib/codeq\n  codeq snapshot restore backup.tar --yes"
    )]
    Restore(RestoreArgs),
    /// Lets all members write their checkpoints now, and prints the index each is of. Exit status 1 if one of them did not.
    #[command(after_help = "Example:\n  codeq snapshot trigger")]
    Trigger(EndpointArgs),
}

#[derive(Args)]
pub(crate) struct SaveArgs {
    /// The file to make.
    file: PathBuf,
    /// What the asked server has, without asking the leader: also where there is none. The backup is marked so.
    #[arg(long)]
    local: bool,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

#[derive(Args)]
pub(crate) struct FileArgs {
    /// The backup.
    file: PathBuf,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
}

/// How something is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Columns.
    Table,
    /// JSON.
    Json,
}

#[derive(Args)]
pub(crate) struct RestoreArgs {
    /// The backup.
    file: PathBuf,
    /// The directory to restore to: empty, or not there yet. Without it, the one of the settings in the environment.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Replaces all data of the cluster that runs.
    #[arg(long, conflicts_with_all = ["data_dir", "node_id"])]
    yes: bool,
    #[command(flatten)]
    endpoint: EndpointArgs,
    /// The node's name. Without it, the one of the settings in the environment, else that of the node which made the backup.
    #[arg(long, value_name = "NAME")]
    node_id: Option<String>,
}

pub(crate) fn run(command: SnapshotCommand) -> ExitCode {
    match command {
        SnapshotCommand::Save(args) => save(&args),
        SnapshotCommand::Inspect(args) => inspect(&args),
        SnapshotCommand::Verify(args) => verify(&args),
        SnapshotCommand::Restore(args) => restore(args),
        SnapshotCommand::Trigger(endpoint) => trigger(&endpoint),
    }
}

fn save(args: &SaveArgs) -> ExitCode {
    let path = if args.local { "/cluster/snapshot?local" } else { "/cluster/snapshot" };
    let mut file = match NewFile::create(&args.file) {
        Ok(file) => file,
        Err(error) => return data::failed(&error.to_string()),
    };
    match args.endpoint.download(path, &mut file) {
        Ok(answer) if answer.status == 200 => {}
        Ok(answer) => return refused(&answer),
        Err(error) => return unanswered(&error),
    }
    let manifest = sound(file.partial());
    match manifest.and_then(|manifest| file.finish().map(|()| manifest).map_err(|error| error.to_string())) {
        Ok(manifest) => {
            output::data(&format!("saved {}: {}", args.file.display(), summary(&manifest)));
            ExitCode::SUCCESS
        }
        Err(error) => data::failed(&error),
    }
}

/// What a backup says of itself, if every part of it is whole.
fn sound(file: &Path) -> Result<Manifest, String> {
    let verdicts = offline::verify(file).map_err(|error| error.to_string())?;
    if let Some(verdict) = verdicts.iter().find(|verdict| verdict.problem.is_some()) {
        let problem = verdict.problem.as_deref().unwrap_or_default();
        return Err(format!("{} is damaged: {}: {problem}", file.display(), verdict.part));
    }
    offline::inspect(file).map_err(|error| error.to_string())
}

fn tasks_of(group: &SavedGroup) -> u64 {
    group.counts.iter().filter_map(|line| line.get("tasks")?.as_u64()).sum()
}

fn summary(manifest: &Manifest) -> String {
    let tasks: u64 = manifest.groups.iter().map(tasks_of).sum();
    let bytes: u64 = manifest.groups.iter().map(|group| group.bytes).sum();
    let local = if manifest.local { ", of that node alone" } else { "" };
    format!(
        "{tasks} tasks in {} groups, {bytes} bytes, of cluster {} by {}{local}",
        manifest.groups.len(),
        manifest.cluster_id,
        manifest.node
    )
}

fn inspect(args: &FileArgs) -> ExitCode {
    let manifest = match offline::inspect(&args.file) {
        Ok(manifest) => manifest,
        Err(error) => return data::failed(&error.to_string()),
    };
    if args.output == Form::Json {
        output::data(&serde_json::to_string(&manifest).unwrap_or_default());
        return ExitCode::SUCCESS;
    }
    output::data(&summary(&manifest));
    output::data(&format!(
        "cluster incarnation {}, made by codeq {} at {} ms since 1970",
        manifest.cluster_incarnation, manifest.build, manifest.created_at_ms
    ));
    let mut rows = vec![["Group", "Term", "Index", "Bytes", "Tasks", "SHA-256"].map(str::to_owned).to_vec()];
    rows.extend(manifest.groups.iter().map(|group| {
        vec![
            group.group.to_string(),
            group.term.to_string(),
            group.index.to_string(),
            group.bytes.to_string(),
            tasks_of(group).to_string(),
            group.sha256.clone(),
        ]
    }));
    output::data(&data::columns(&rows));
    let mut rows = vec![["Group", "Tenant", "Queue", "State", "Tasks"].map(str::to_owned).to_vec()];
    for group in &manifest.groups {
        rows.extend(group.counts.iter().map(|line| {
            let cell = |name: &str| match line.get(name) {
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => "-".into(),
            };
            vec![group.group.to_string(), cell("tenant"), cell("queue"), cell("state"), cell("tasks")]
        }));
    }
    output::data(&data::columns(&rows));
    ExitCode::SUCCESS
}

fn verify(args: &FileArgs) -> ExitCode {
    let verdicts = match offline::verify(&args.file) {
        Ok(verdicts) => verdicts,
        Err(error) => return data::failed(&error.to_string()),
    };
    let is_sound = verdicts.iter().all(|verdict| verdict.problem.is_none());
    if args.output == Form::Json {
        let body = serde_json::json!({ "ok": is_sound, "parts": verdicts });
        output::data(&body.to_string());
    } else {
        let mut rows = vec![["Part", "Bytes", "Verdict"].map(str::to_owned).to_vec()];
        rows.extend(verdicts.into_iter().map(|verdict| {
            let problem = verdict.problem.map(|problem| format!("damaged: {problem}"));
            vec![verdict.part, verdict.bytes.to_string(), problem.unwrap_or_else(|| "ok".into())]
        }));
        output::data(&data::columns(&rows));
    }
    if is_sound { ExitCode::SUCCESS } else { ExitCode::from(DAMAGED) }
}

/// What identifies the cluster that a server belongs to.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfCluster {
    cluster_id: Option<String>,
}

/// The server takes so long at most to send a backup to the others and to let them read it.
const RESTORE_MAX: Duration = Duration::from_secs(3_600);

fn restore_online(args: &RestoreArgs) -> ExitCode {
    // What is damaged is not sent.
    let manifest = match sound(&args.file) {
        Ok(manifest) => manifest,
        Err(error) => return data::failed(&error),
    };
    let status = match args.endpoint.ask("/cluster/status", None) {
        Ok(answer) if answer.status == 200 => answer,
        Ok(answer) => return refused(&answer),
        Err(error) => return unanswered(&error),
    };
    let of: OfCluster = match serde_json::from_str(&status.body) {
        Ok(of) => of,
        Err(error) => return data::failed(&format!("the answer is not understood: {error}")),
    };
    let Some(cluster) = of.cluster_id else { return data::failed("that server belongs to no cluster yet") };
    match args.endpoint.upload(&format!("/cluster/snapshot?confirm={cluster}"), &args.file, RESTORE_MAX) {
        Ok(answer) if answer.status == 200 => {
            output::data(&format!("restored {}, into cluster {cluster}", summary(&manifest)));
            ExitCode::SUCCESS
        }
        Ok(answer) => refused(&answer),
        Err(error) => unanswered(&error),
    }
}

fn restore(args: RestoreArgs) -> ExitCode {
    if args.yes {
        return restore_online(&args);
    }
    let settings = data::Settings::of_environment();
    let directory = args.data_dir.unwrap_or_else(|| settings.data_dir());
    let restored = offline::inspect(&args.file).and_then(|manifest| {
        let node = args.node_id.or_else(|| settings.node_id()).unwrap_or(manifest.node);
        offline::restore(&args.file, &directory, &node, now())
    });
    match restored {
        Ok((cluster, manifest)) => {
            output::data(&format!("restored {}", summary(&manifest)));
            output::data(&begun(&cluster, &directory));
            ExitCode::SUCCESS
        }
        Err(error) => data::failed(&error.to_string()),
    }
}

/// How to go on with a cluster of one.
pub(crate) fn begun(cluster: &NewCluster, directory: &Path) -> String {
    let groups = cluster.groups.iter().map(|(shard, term, index)| format!("{shard}:{term}:{index}"));
    format!(
        "{} is now node {} of the new cluster {:032x}, alone, at {}\n\
         start it:     codeq serve --data-dir {} --node-id {} --shards {}\n\
         then others:  codeq serve --data-dir <empty directory> --join <peer address of {}>",
        directory.display(),
        cluster.node,
        cluster.cluster.0,
        groups.collect::<Vec<_>>().join(", "),
        directory.display(),
        cluster.node,
        cluster.groups.len(),
        cluster.node,
    )
}

/// The time that people see.
pub(crate) fn now() -> ScheduleTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    ScheduleTime(since.as_millis() as u64)
}

/// The answer of `/cluster/snapshot/trigger`.
#[derive(Deserialize)]
struct Triggered {
    ok: bool,
    members: Vec<TriggeredMember>,
}

#[derive(Deserialize)]
struct TriggeredMember {
    name: String,
    error: Option<String>,
    #[serde(default)]
    groups: Vec<TriggeredGroup>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TriggeredGroup {
    group: u16,
    applied_index: u64,
}

fn trigger(endpoint: &EndpointArgs) -> ExitCode {
    let answer = match endpoint.ask("/cluster/snapshot/trigger", Some("")) {
        Ok(answer) if answer.status == 200 => answer,
        Ok(answer) => return refused(&answer),
        Err(error) => return unanswered(&error),
    };
    match serde_json::from_str::<Triggered>(&answer.body) {
        Ok(triggered) => {
            for TriggeredMember { name, error, groups } in triggered.members {
                for TriggeredGroup { group, applied_index } in groups {
                    output::data(&format!("{name}: group {group}: applied index {applied_index}"));
                }
                if let Some(error) = error {
                    output::note(&format!("{name}: {error}"));
                }
            }
            if triggered.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => data::failed(&format!("the answer is not understood: {error}")),
    }
}
