//! Backups: the checkpoint of every group in one file, with what is needed to check it and to restore it.
//!
//! The file is an uncompressed tar: `manifest.json`, one SQLite file for each group, and `SHA256SUMS` over all of them. Each group is cut at an
//! index of its own; no operation spans groups.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base::machine::StateMachine;
use base::{Incarnation, Index, ScheduleTime, ShardId};
use data_encoding::HEXLOWER;
use storage::StorageError;
use storage::backup::{Backup, BackupFile, Content, kept_name};
pub use storage::backup::{NewFile, WholeFile, kept, trim};
use storage::checkpoint::{CheckpointFile, Outgoing, Snapshots};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::forming::ClusterId;
use crate::http::manifest::FORMAT;
pub use crate::http::manifest::{Manifest, SavedGroup, Verdict};
use crate::inbox::Control;
use crate::node::{Handle, Stage};
use crate::operate::Right;
use crate::peer::saves;

const MANIFEST: &str = "manifest.json";
const SUMS: &str = "SHA256SUMS";

/// A manifest is not longer; it is read as a whole.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// How long each member may take to write its checkpoints.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// Backups that a node makes at a time: each takes as much disk as the checkpoints, while it is made.
const BACKUPS_MAX: usize = 1;

/// Why there is no backup.
#[derive(Debug)]
pub enum NoBackup {
    /// The node keeps its data in memory, or has not read it yet, or stops.
    NotRunning,
    /// It keeps nothing on disk.
    InMemory,
    /// Another backup is being made.
    Busy,
    /// Whoever asks may not; what is needed.
    NotAllowed(String),
    /// The disk failed or is full.
    Failed(StorageError),
}

/// A backup to be written somewhere: it reads as the bytes of the file.
pub struct Taken {
    /// What it says of itself.
    pub manifest: Manifest,
    backup: Backup,
    _permit: OwnedSemaphorePermit,
}

impl Taken {
    /// Bytes that are still to be read.
    pub fn left(&self) -> u64 {
        self.backup.left()
    }

    /// Writes it to a new file in a directory, durably, under a name that [`kept`] knows. Returns where it is and its size in bytes.
    ///
    /// # Errors
    /// The disk failed or is full.
    pub fn keep_in(self, directory: &Path) -> Result<(PathBuf, u64), StorageError> {
        let path = directory.join(kept_name(self.manifest.created_at_ms));
        let bytes = self.backup.write_to(&path)?;
        Ok((path, bytes))
    }
}

impl Read for Taken {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.backup.read(buffer)
    }
}

/// What a running node needs for backups.
pub(crate) struct Saving {
    pub(crate) snapshots: std::sync::OnceLock<BTreeMap<ShardId, Arc<dyn Snapshots>>>,
    permits: Arc<Semaphore>,
}

impl Default for Saving {
    fn default() -> Saving {
        Saving { snapshots: std::sync::OnceLock::new(), permits: Arc::new(Semaphore::new(BACKUPS_MAX)) }
    }
}

impl<S: StateMachine> Handle<S> {
    /// Writes a checkpoint of every group now. Answers which index each is of: at least what was applied here when this was called.
    ///
    /// # Errors
    /// The node does not run.
    pub async fn checkpoint(&self) -> Result<BTreeMap<ShardId, Index>, NoBackup> {
        if self.stage() != Stage::Running {
            return Err(NoBackup::NotRunning);
        }
        let (done, saved) = oneshot::channel();
        self.common().inbox.control(Control::Save(Box::new(|indexes| drop(done.send(indexes)))));
        saved.await.map_err(|_| NoBackup::NotRunning)
    }

    /// Lets every member write its checkpoints, once it has applied this much of each group. Answers for each of them, by name, which index
    /// each checkpoint is of; nothing: it cannot be reached, or did not catch up in time.
    ///
    /// # Errors
    /// This node does not run, or whoever asks may not.
    pub async fn checkpoint_all(
        &self,
        first: &BTreeMap<ShardId, Index>,
    ) -> Result<Vec<(String, Option<BTreeMap<ShardId, Index>>)>, NoBackup> {
        self.actor().check(Right::Operate).map_err(|refused| NoBackup::NotAllowed(refused.to_string()))?;
        let others = self.common().peers.get().map(|peers| peers.links.all()).unwrap_or_default();
        let asked: Vec<_> = others.iter().map(|link| (link.id, saves::ask(link, self.actor(), first))).collect();
        let mut answers = vec![(self.identity().node.clone(), Some(self.checkpoint().await?))];
        for (id, saved) in asked {
            let Some(member) = self.member(id) else { continue };
            let saved = match saved {
                Some(saved) => {
                    let body = tokio::time::timeout(ANSWER_MAX, saved).await.ok().and_then(Result::ok);
                    body.and_then(|body| saves::read(&body).ok())
                }
                None => None,
            };
            answers.push((member.name, saved));
        }
        answers.sort();
        Ok(answers)
    }

    /// A backup of what this node has applied, in a new checkpoint. `local`: it is marked as possibly behind the others. Needs a runtime of
    /// tokio.
    ///
    /// # Errors
    /// None can be made.
    pub async fn backup(&self, local: bool) -> Result<Taken, NoBackup> {
        let cluster = self.cluster().ok_or(NoBackup::NotRunning)?;
        if self.identity().provider != "sqlite" {
            return Err(NoBackup::InMemory);
        }
        let permit = self.common().saving.permits.clone().try_acquire_owned().map_err(|_| NoBackup::Busy)?;
        self.checkpoint().await?;
        let (common, node) = (self.common().clone(), self.identity().node.clone());
        let made_at = self.common().clock.now().wall;
        let taken = tokio::task::spawn_blocking(move || {
            let snapshots = common.saving.snapshots.get().ok_or(NoBackup::NotRunning)?;
            let origin = Origin { cluster: cluster.id, incarnation: cluster.incarnation, node, local, made_at };
            take::<S>(snapshots, &origin).map_err(NoBackup::Failed)
        });
        let (manifest, backup) = taken.await.unwrap_or(Err(NoBackup::NotRunning))?;
        Ok(Taken { manifest, backup, _permit: permit })
    }
}

/// Whose backup it is.
struct Origin {
    cluster: ClusterId,
    incarnation: Incarnation,
    node: String,
    local: bool,
    made_at: ScheduleTime,
}

fn take<S: StateMachine>(
    snapshots: &BTreeMap<ShardId, Arc<dyn Snapshots>>,
    origin: &Origin,
) -> Result<(Manifest, Backup), StorageError> {
    let copies: BTreeMap<ShardId, Outgoing> = snapshots
        .iter()
        .map(|(shard, snapshots)| Ok((*shard, snapshots.take()?)))
        .collect::<Result<_, StorageError>>()?;
    let groups: Vec<SavedGroup> =
        copies.iter().map(|(shard, copy)| describe::<S>(*shard, copy)).collect::<Result<_, StorageError>>()?;
    let manifest = Manifest {
        format: FORMAT,
        build: env!("CARGO_PKG_VERSION").into(),
        cluster_id: format!("{:032x}", origin.cluster.0),
        cluster_incarnation: origin.incarnation.to_string(),
        node: origin.node.clone(),
        local: origin.local,
        created_at_ms: origin.made_at.0,
        groups,
    };
    let text = manifest.encode();
    let mut sums = format!("{}  {MANIFEST}\n", sha256(&text));
    manifest.groups.iter().for_each(|group| sums.push_str(&format!("{}  {}\n", group.sha256, group.file)));
    let mut parts = vec![(MANIFEST.to_owned(), Content::Text(text))];
    parts.extend(copies.into_iter().map(|(shard, copy)| (part_name(shard), Content::Copy(copy))));
    parts.push((SUMS.to_owned(), Content::Text(sums.into_bytes())));
    let backup = Backup::new(parts, origin.made_at.0 / 1000)?;
    Ok((manifest, backup))
}

fn part_name(shard: ShardId) -> String {
    format!("shard-{shard}.sqlite")
}

fn describe<S: StateMachine>(shard: ShardId, copy: &Outgoing) -> Result<SavedGroup, StorageError> {
    let snapshot = copy.snapshot();
    let counts = CheckpointFile::open(copy.path(), S::schema())?.counts()?;
    let counts = counts.into_iter().map(|counted| {
        let of = counted.of.into_iter().map(|(name, value)| (name, value.into()));
        of.chain([("tasks".to_owned(), counted.number.into())]).collect()
    });
    Ok(SavedGroup {
        group: shard.0,
        term: snapshot.meta.term.0,
        index: snapshot.meta.index.0,
        file: part_name(shard),
        bytes: snapshot.length,
        sha256: HEXLOWER.encode(&snapshot.sha256),
        counts: counts.collect(),
    })
}

/// What a backup file says of itself.
///
/// # Errors
/// It cannot be read, is no backup, or its manifest is damaged.
pub fn inspect(path: &Path) -> Result<Manifest, StorageError> {
    manifest_of(&BackupFile::open(path)?)
}

pub(crate) fn manifest_of(file: &BackupFile) -> Result<Manifest, StorageError> {
    let Some(part) = file.part(MANIFEST) else {
        let why = file.broken().map(|why| format!(": {why}")).unwrap_or_default();
        return Err(file.refused(format!("it has no {MANIFEST}{why}")));
    };
    let text = file.text(part, MANIFEST_BYTES_MAX)?;
    let manifest: Manifest =
        Manifest::decode(&text).map_err(|why| file.refused(format!("{MANIFEST} is damaged: {why}")))?;
    if manifest.format > FORMAT {
        let found = manifest.format;
        return Err(file.refused(format!("it has format {found}, and this program reads up to {FORMAT}")));
    }
    let sums = sums_of(file)?;
    if sums.get(MANIFEST) != Some(&sha256(&text)) {
        return Err(file.refused(format!("{MANIFEST} is damaged: it does not fit its line in {SUMS}")));
    }
    Ok(manifest)
}

fn sums_of(file: &BackupFile) -> Result<BTreeMap<String, String>, StorageError> {
    let Some(part) = file.part(SUMS) else {
        let why = file.broken().map(|why| format!(": {why}")).unwrap_or_default();
        return Err(file.refused(format!("it has no {SUMS}{why}")));
    };
    let text = file.text(part, MANIFEST_BYTES_MAX)?;
    let text = String::from_utf8(text).map_err(|_| file.refused(format!("{SUMS} is damaged: it is no text")))?;
    let line = |line: &str| line.split_once("  ").map(|(sum, name)| (name.to_owned(), sum.to_owned()));
    let lines: Option<BTreeMap<String, String>> = text.lines().map(line).collect();
    lines.ok_or_else(|| file.refused(format!("{SUMS} is damaged: it is no list of checksums")))
}

/// Compares every part of a backup file with its checksum. That of a group stands in it twice, so that damage of one is told from damage of
/// the other.
///
/// # Errors
/// It cannot be read at all.
pub fn verify(path: &Path) -> Result<Vec<Verdict>, StorageError> {
    let file = BackupFile::open(path)?;
    let (sums, mut list_problem) = match sums_of(&file) {
        Ok(sums) => (sums, None),
        Err(error) => (BTreeMap::new(), Some(error.to_string())),
    };
    let manifest = file.part(MANIFEST).and_then(|part| file.text(part, MANIFEST_BYTES_MAX).ok());
    let manifest: Option<Manifest> = manifest.and_then(|text| Manifest::decode(&text).ok());
    let told: BTreeMap<&str, &str> =
        manifest.iter().flat_map(|all| &all.groups).map(|group| (group.file.as_str(), group.sha256.as_str())).collect();
    let mut verdicts = Vec::new();
    for part in file.parts().iter().filter(|part| part.name != SUMS) {
        let found = HEXLOWER.encode(&file.sha256(part)?);
        let listed = sums.get(&part.name).map(String::as_str);
        let fits = |sum: Option<&str>| sum == Some(found.as_str());
        let problem = match told.get(part.name.as_str()).copied() {
            told if fits(told) && !fits(listed) => {
                list_problem =
                    list_problem.or(Some(format!("it has another checksum of {} than {MANIFEST}", part.name)));
                None
            }
            _ if fits(listed) => None,
            None if listed.is_none() => Some(format!("{SUMS} does not list it")),
            _ => Some(format!("its bytes do not fit their checksum in {SUMS}")),
        };
        verdicts.push(Verdict { part: part.name.clone(), bytes: part.length, problem });
    }
    let named = sums.keys().map(String::as_str).chain(told.keys().copied());
    let missing: std::collections::BTreeSet<&str> = named.filter(|name| file.part(name).is_none()).collect();
    let verdict = |name: &str| Verdict { part: name.into(), bytes: 0, problem: Some("it is missing".into()) };
    verdicts.extend(missing.into_iter().map(verdict));
    let bytes = file.part(SUMS).map_or(0, |part| part.length);
    verdicts.push(Verdict { part: SUMS.into(), bytes, problem: list_problem });
    if let Some(why) = file.broken() {
        verdicts.push(Verdict { part: "the tar file".into(), bytes: 0, problem: Some(why.into()) });
    }
    // Checksums that fit say nothing of what a file that somebody else has made means.
    if verdicts.iter().all(|verdict| verdict.problem.is_none())
        && let Err(error) = manifest_of(&file)
    {
        verdicts[0].problem = Some(error.to_string());
    }
    Ok(verdicts)
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    HEXLOWER.encode(&sha2::Sha256::digest(bytes))
}
