//! Backups that a server makes by itself: the leader, at an interval, into a directory that keeps so many of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base::{Index, Millis, ShardId};
use cluster::backup::{NoBackup, kept, trim};
use cluster::{AlarmKind, Freshness, Handle, Stage, StorageError};
use queue::{Query, QueueMachine};
use tokio::sync::oneshot;

/// How a server makes backups by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupSettings {
    /// Where they are kept; nothing: none are made.
    pub directory: Option<PathBuf>,
    /// Time from one to the next.
    pub interval: Millis,
    /// How many are kept there; older ones are removed.
    pub keep: usize,
}

/// How often it is looked whether a backup is due: another node may have taken over, and a failed one is tried again.
const LOOK: Duration = Duration::from_secs(1);

/// The time since which everything is saved, in milliseconds since the Unix epoch; 0: it is not known to be.
#[derive(Debug, Default)]
pub(crate) struct LastBackup(AtomicU64);

impl LastBackup {
    /// How old the last backup is; nothing: there is none.
    pub(crate) fn age(&self) -> Option<Millis> {
        let last = self.0.load(Ordering::Relaxed);
        (last > 0).then(|| Millis(now().saturating_sub(last)))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// The thread that makes backups. It ends when this is dropped.
pub(crate) struct Backups {
    _stop: oneshot::Sender<()>,
}

impl Backups {
    /// Starts it.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub(crate) fn start(
        settings: BackupSettings,
        node: Handle<QueueMachine>,
        last: Arc<LastBackup>,
    ) -> std::io::Result<Backups> {
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        std::thread::Builder::new().name("codeq-backup".into()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = run(settings, node, &last) => {}
                    // The sender is dropped, which is all that is asked for.
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Backups { _stop: stop })
    }
}

async fn run(settings: BackupSettings, node: Handle<QueueMachine>, last: &LastBackup) {
    let BackupSettings { directory, interval, keep } = settings;
    let Some(directory) = directory else { return };
    let mut saved = BTreeMap::new();
    let mut failed_at = None;
    let started = now();
    loop {
        // An earlier leader may have saved there, if the nodes share the directory.
        if let Ok(found) = kept(&directory) {
            last.0.fetch_max(found.last().map_or(0, |(made_at, _)| *made_at), Ordering::Relaxed);
        }
        let due = last.age().is_none_or(|age| age >= interval);
        let leads = node.stage() == Stage::Running && node.leader(ShardId(0)) == node.id();
        // Where none was ever made, one should have been since the start.
        let without = last.age().map_or_else(|| now().saturating_sub(started), |age| age.0);
        let is_old = leads && without > 2 * interval.0;
        let text = is_old.then(|| format!("no backup was made in {} for two intervals", directory.display()));
        node.set_alarm(AlarmKind::BackupOld, text);
        // What has failed is not tried again at once: a full disk does not get better by that.
        let rests = failed_at.is_some_and(|at: u64| now().saturating_sub(at) < interval.0.min(60_000));
        if due && leads && !rests {
            let began = now();
            failed_at = None;
            match back_up(&node, &directory, &mut saved).await {
                Ok(()) => {
                    last.0.store(began, Ordering::Relaxed);
                    if let Err(error) = trim(&directory, keep) {
                        tracing::warn!(event = "backup.kept", %error, "old backups cannot be removed");
                    }
                }
                Err(why) => {
                    failed_at = Some(began);
                    tracing::warn!(event = "backup.failed", why, "no backup was made; it is tried again");
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Makes one, unless nothing was applied since the one before.
async fn back_up(
    node: &Handle<QueueMachine>,
    directory: &std::path::Path,
    saved: &mut BTreeMap<ShardId, Index>,
) -> Result<(), String> {
    for number in 0..node.identity().shards {
        let asked = node.read(ShardId(number), Query::Policy, Freshness::Linearizable).await;
        asked.map_err(|_| format!("shard {number} has no leader that answers"))?;
    }
    let applied: BTreeMap<ShardId, Index> =
        node.status().shards.iter().map(|shard| (shard.shard, shard.applied)).collect();
    if !saved.is_empty() && *saved == applied {
        return Ok(());
    }
    let backup = node.backup(false).await.map_err(|why| match why {
        NoBackup::NotRunning => "the node starts or stops".to_owned(),
        NoBackup::InMemory => "the node keeps its data in memory".to_owned(),
        NoBackup::Busy => "another backup is being made".to_owned(),
        NoBackup::NotAllowed(why) => why,
        NoBackup::Failed(error) => error.to_string(),
    })?;
    let groups: BTreeMap<ShardId, Index> =
        backup.manifest.groups.iter().map(|group| (ShardId(group.group), Index(group.index))).collect();
    let directory = directory.to_owned();
    let written = tokio::task::spawn_blocking(move || backup.keep_in(&directory)).await;
    let written = written.map_err(|_| "it has met a fault of the server".to_owned())?;
    let (path, bytes) = written.map_err(|error: StorageError| error.to_string())?;
    tracing::info!(event = "backup.made", bytes, path = %path.display(), "a backup was made");
    *saved = groups;
    Ok(())
}
