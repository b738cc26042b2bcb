//! Restoring a backup into a running cluster: every voter stages its parts of it beside its data and reads them, and then an entry of each
//! group lets them take the place of what was there. See [`replica::restores`] for how the logs decide.
//!
//! The node that was given the backup looks after the restore: it lets the leader begin it, sends the parts to the others, and lets the
//! leader commit or abort it. While it does, it says so again and again; a leader that does not hear of it any more aborts. A crash of any
//! node at any point therefore leaves every group as it was, or restored.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base::machine::{ShardInfo, StateMachine};
use base::rows::Unreadable;
use base::{Incarnation, Millis, Position, ShardId};
use replica::{Members, Reply, RestoreId, RestoreStep, Restores, Unavailable};
use sha2::{Digest, Sha256};
use storage::StorageError;
use storage::backup::{BackupFile, NewFile};
use storage::checkpoint::{Checkpoint, Meta, SqliteCheckpoint};
use storage::staging::{StagedPart, staged, upload};
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::time::timeout;

use crate::backup::{Manifest, inspect, verify};
use crate::inbox::Control;
use crate::lane::ReplyTo;
use crate::node::{Common, Handle, NodeStatus, Stage};
use crate::open::random_incarnation;
use crate::operate::{Action, Done, Refused};
use crate::peer::admission::RECORDS;
use crate::peer::stages;
use crate::recovery::{damaged, renew};

/// A leader that has heard nothing of a restore for so long aborts it.
pub(crate) const SILENCE_MAX: Millis = Millis(10_000);

/// How often it hears of it.
const WORD_INTERVAL: Duration = Duration::from_secs(2);

/// Time for a decision to be heard of here, and for all groups to follow it.
const DECISION_MAX: Duration = Duration::from_secs(60);

/// Restores that one node looks after at a time.
const RESTORES_MAX: usize = 1;

/// Why nothing was restored.
#[derive(Debug)]
pub enum NotRestored {
    /// The node has not read its data yet, or stops.
    NotRunning,
    /// It keeps nothing on disk.
    InMemory,
    /// Another restore is under way.
    Busy,
    /// The backup cannot be used here; why. Nothing has changed.
    BadBackup(String),
    /// A member could not take its part; why. Nothing has changed.
    Refused(String),
    /// No node leads just now. Nothing has changed.
    NoLeader,
    /// Whether it was done is not known.
    Unknown,
    /// The disk failed or is full. Nothing has changed.
    Failed(StorageError),
}

impl From<Refused> for NotRestored {
    fn from(refused: Refused) -> NotRestored {
        match refused {
            Refused::NoLeader => NotRestored::NoLeader,
            Refused::Busy => NotRestored::Busy,
            Refused::Unknown => NotRestored::Unknown,
            other => NotRestored::Refused(other.to_string()),
        }
    }
}

/// A backup that comes in, to be written here.
pub struct Upload<'a> {
    file: NewFile,
    _permit: SemaphorePermit<'a>,
}

impl std::io::Write for Upload<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// What this node has staged.
pub(crate) struct Staging<S> {
    directory: Option<PathBuf>,
    parts: Mutex<Parts<S>>,
    permits: Semaphore,
}

struct Parts<S> {
    arriving: BTreeMap<ShardId, Arriving>,
    ready: BTreeMap<ShardId, (StagedPart, S)>,
}

/// A part on its way to this node.
struct Arriving {
    part: StagedPart,
    file: NewFile,
    received: u64,
    hash: Sha256,
}

/// A piece of a part.
pub(crate) struct Piece<'a> {
    pub(crate) id: RestoreId,
    pub(crate) shard: ShardId,
    /// Of the whole part.
    pub(crate) length: u64,
    pub(crate) sha256: [u8; 32],
    pub(crate) offset: u64,
    pub(crate) bytes: &'a [u8],
}

/// How far a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// So many bytes are there.
    Received(u64),
    /// It is staged.
    Staged,
    /// It cannot be; why.
    Refused(String),
}

impl<S: StateMachine> Staging<S> {
    pub(crate) fn new(directory: Option<&Path>) -> Staging<S> {
        let parts = Mutex::new(Parts { arriving: BTreeMap::new(), ready: BTreeMap::new() });
        Staging { directory: directory.map(Path::to_owned), parts, permits: Semaphore::new(RESTORES_MAX) }
    }

    fn part(&self, id: RestoreId, shard: ShardId) -> Option<StagedPart> {
        Some(StagedPart::new(self.directory.as_deref()?, id.begun, id.incarnation, shard))
    }

    /// Reads what an earlier process has staged and may still be needed, and removes the rest.
    pub(crate) fn load(&self, members: &BTreeMap<ShardId, Members>) -> Result<(), StorageError> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let first = members.get(&RECORDS).map(|members| *members.restores()).unwrap_or_default();
        for part in staged(directory)? {
            let own = members.get(&part.shard).map(|members| *members.restores()).unwrap_or_default();
            if first.needs(id_of(&part), &own) {
                let machine = read(&part)?;
                self.lock().ready.insert(part.shard, (part, machine));
            } else {
                storage::aside::discard(&part.path)?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Parts<S>> {
        self.parts.lock().expect("nothing panics while it holds this lock")
    }

    /// Takes a piece; stages the part when it is whole, which takes time in proportion to it.
    pub(crate) fn take(&self, piece: &Piece<'_>) -> Result<Progress, StorageError> {
        let Some(part) = self.part(piece.id, piece.shard) else {
            return Ok(Progress::Refused("it keeps its data in memory".into()));
        };
        let mut parts = self.lock();
        if parts.ready.get(&piece.shard).is_some_and(|(ready, _)| *ready == part) {
            return Ok(Progress::Staged);
        }
        let mut arriving = match parts.arriving.remove(&piece.shard) {
            Some(arriving) if arriving.part == part => arriving,
            earlier => {
                // Its file may have the same name.
                drop(earlier);
                let file = NewFile::create(&part.path)?;
                Arriving { part, file, received: 0, hash: Sha256::new() }
            }
        };
        if piece.offset == arriving.received {
            let shown = arriving.file.partial().display().to_string();
            arriving.file.write_all(piece.bytes).map_err(|cause| StorageError::Failed {
                doing: "write",
                file: shown,
                cause,
            })?;
            arriving.hash.update(piece.bytes);
            arriving.received += piece.bytes.len() as u64;
        }
        if arriving.received < piece.length {
            let received = arriving.received;
            parts.arriving.insert(piece.shard, arriving);
            return Ok(Progress::Received(received));
        }
        drop(parts);
        let Arriving { part, file, hash, .. } = arriving;
        if hash.finalize()[..] != piece.sha256 {
            return Ok(Progress::Refused("its bytes do not fit their SHA-256".into()));
        }
        self.stage(part, file)?;
        Ok(Progress::Staged)
    }

    /// Makes a whole part ready to take a checkpoint's place.
    fn stage(&self, part: StagedPart, file: NewFile) -> Result<(), StorageError> {
        renew::<S>(file.partial(), &Members::default(), part.incarnation)?;
        file.finish()?;
        let machine = read(&part)?;
        self.lock().ready.insert(part.shard, (part, machine));
        Ok(())
    }

    /// The state that is staged for a shard, and its file. The file stays until it is installed.
    pub(crate) fn claim(&self, id: RestoreId, shard: ShardId) -> Option<(PathBuf, S)> {
        let mut parts = self.lock();
        let is_it = parts.ready.get(&shard).is_some_and(|(part, _)| id_of(part) == id);
        let (part, machine) = if is_it { parts.ready.remove(&shard)? } else { return None };
        Some((part.path, machine))
    }

    /// Drops what is not needed any more. Answers it, since dropping it takes time.
    pub(crate) fn forget(&self, needs: impl Fn(RestoreId, ShardId) -> bool) -> Result<Vec<S>, StorageError> {
        let mut parts = self.lock();
        parts.arriving.retain(|shard, arriving| needs(id_of(&arriving.part), *shard));
        let gone: Vec<(StagedPart, S)> =
            parts.ready.extract_if(.., |shard, (part, _)| !needs(id_of(part), *shard)).map(|(_, gone)| gone).collect();
        drop(parts);
        gone.into_iter().map(|(part, machine)| storage::aside::discard(&part.path).map(|()| machine)).collect()
    }
}

fn id_of(part: &StagedPart) -> RestoreId {
    RestoreId { begun: part.begun, incarnation: part.incarnation }
}

/// The state in a part that is staged.
fn read<S: StateMachine>(part: &StagedPart) -> Result<S, StorageError> {
    let mut file = SqliteCheckpoint::open(&part.path, S::schema())?;
    let info = ShardInfo { shard: part.shard, incarnation: part.incarnation };
    let machine = S::restore(info, &mut *file.rows()).map_err(|Unreadable(what)| damaged(&part.path, &what))?;
    file.close()?;
    Ok(machine)
}

/// Makes a staged part the checkpoint of the entry that says so. Twice, after a crash, is as good as once. Answers the members that the
/// checkpoint has.
pub(crate) fn install<S: StateMachine>(
    checkpoint: &mut dyn Checkpoint,
    path: &Path,
    swap: &replica::Swap,
) -> Result<Members, StorageError> {
    let mut file = SqliteCheckpoint::open(path, S::schema())?;
    let meta = file.meta()?.ok_or_else(|| damaged(path, "no checkpoint was committed to it"))?;
    let of_part = Members::decode(&meta.configuration).map_err(|_| damaged(path, "its members do not read back"))?;
    let members = if of_part.restores().done == Some(swap.id) {
        of_part
    } else {
        let counted = meta.index.0.wrapping_add_signed(of_part.ahead());
        let members = swap.members.clone().ahead_by(counted.wrapping_sub(swap.index.0).cast_signed());
        file.commit(&Meta { index: swap.index, term: swap.term, configuration: members.encode() })?;
        members
    };
    file.close()?;
    checkpoint.install(SqliteCheckpoint::staged(path, S::schema())?)?;
    Ok(members)
}

/// Proposes a step here, where this node leads group 0.
pub(crate) async fn propose<S: StateMachine>(common: &Common<S>, step: RestoreStep) -> Result<Position, Refused> {
    if let RestoreStep::Begin(_) = step {
        let all = common.status.borrow().restores.clone();
        let first = all.get(&RECORDS).copied().unwrap_or_default();
        if first.pending || all.values().any(|own| own.done != first.done) {
            return Err(Refused::Busy);
        }
    }
    let (sender, reply) = oneshot::channel();
    common.inbox.control(Control::Restore(step, ReplyTo::Local { sender, lane: None }));
    match timeout(DECISION_MAX, reply).await {
        Ok(Ok(Reply::Applied { position, .. })) => Ok(position),
        Ok(Ok(Reply::Unavailable(Unavailable::Overloaded))) => Err(Refused::Busy),
        Ok(Ok(Reply::Unavailable(why))) if why.is_definite() => Err(Refused::NoLeader),
        _ => Err(Refused::Unknown),
    }
}

fn of_group_0(status: &NodeStatus) -> Restores {
    status.restores.get(&RECORDS).copied().unwrap_or_default()
}

impl<S: StateMachine> Handle<S> {
    /// A place for a backup that is to be restored into this cluster.
    ///
    /// # Errors
    /// There is none.
    pub fn upload(&self) -> Result<Upload<'_>, NotRestored> {
        if self.stage() != Stage::Running {
            return Err(NotRestored::NotRunning);
        }
        let staging = &self.common().staging;
        let directory = staging.directory.as_deref().ok_or(NotRestored::InMemory)?;
        let permit = staging.permits.try_acquire().map_err(|_| NotRestored::Busy)?;
        let file = NewFile::create(&upload(directory)).map_err(NotRestored::Failed)?;
        Ok(Upload { file, _permit: permit })
    }

    /// Lets a backup take the place of all that this cluster holds. Operations are refused meanwhile; ids of tasks stay, leases do not
    /// survive it. Every voter must be there. It is done on a majority of every group, and here, when this returns. Needs a runtime of tokio.
    ///
    /// # Errors
    /// It was not done; see [`NotRestored::Unknown`] for the one case in which nobody knows.
    pub async fn restore(&self, upload: Upload<'_>) -> Result<Manifest, NotRestored> {
        let path = upload.file.partial().to_owned();
        let manifest = self.look_at(&path).await?;
        self.check_voters()?;
        let incarnation = random_incarnation();
        let begun = self.step(RestoreStep::Begin(incarnation)).await?.index;
        let id = RestoreId { begun, incarnation };
        tracing::info!(target: "raft", event = "admin.action", action = "restore", ok = true, "a restore has begun; nothing is written until it is done or given up");
        let staged = tokio::select! {
            staged = self.stage_everywhere(id, &path, &manifest) => staged,
            never = self.keep_saying(id) => match never {},
        };
        let step = if staged.is_ok() { RestoreStep::Commit(id) } else { RestoreStep::Abort(id) };
        let decided = self.decide(step, id).await;
        staged?;
        if !decided? {
            return Err(NotRestored::Refused("the leader heard nothing of it for too long, and gave it up".into()));
        }
        let mut status = self.common().status.subscribe();
        let followed = status.wait_for(|status| status.restores.values().all(|own| own.done == Some(id)));
        // It is decided: groups that have not followed yet will.
        timeout(DECISION_MAX, followed).await.map_err(|_| NotRestored::Unknown)?.map_err(|_| NotRestored::Unknown)?;
        Ok(manifest)
    }

    async fn look_at(&self, path: &Path) -> Result<Manifest, NotRestored> {
        let path = path.to_owned();
        let looked = tokio::task::spawn_blocking(move || {
            let verdicts = verify(&path)?;
            let bad = verdicts.into_iter().find_map(|verdict| Some(format!("{}: {}", verdict.part, verdict.problem?)));
            bad.map_or_else(|| inspect(&path).map(Ok), |bad| Ok(Err(bad)))
        });
        let looked = looked.await.map_err(|_| NotRestored::NotRunning)?;
        let manifest = match looked {
            Ok(Ok(manifest)) => manifest,
            Ok(Err(bad)) => return Err(NotRestored::BadBackup(format!("the backup is damaged: {bad}"))),
            Err(StorageError::BadBackup { what, .. }) => return Err(NotRestored::BadBackup(what)),
            Err(error) => return Err(NotRestored::Failed(error)),
        };
        let shards = self.identity().shards;
        let groups: Vec<u16> = manifest.groups.iter().map(|group| group.group).collect();
        if !groups.iter().copied().eq(0..shards) {
            let text = format!("it has {} groups, and this cluster has {shards}", groups.len());
            return Err(NotRestored::BadBackup(text));
        }
        Ok(manifest)
    }

    /// The ids of all who vote in some group.
    fn voters(&self) -> BTreeSet<u64> {
        self.status().voters.into_values().flatten().collect()
    }

    fn check_voters(&self) -> Result<(), NotRestored> {
        let Some(peers) = self.common().peers.get() else { return Ok(()) };
        let is_up = |id: u64| id == self.id() || peers.links.get(id).is_some_and(|link| link.is_up());
        match self.voters().into_iter().find(|id| !is_up(*id)) {
            None => Ok(()),
            Some(id) => {
                Err(NotRestored::Refused(format!("{} cannot be reached, and every voter must be", self.called(id))))
            }
        }
    }

    fn called(&self, id: u64) -> String {
        self.member(id).map_or_else(|| Incarnation(id).to_string(), |member| member.name)
    }

    async fn step(&self, step: RestoreStep) -> Result<Position, Refused> {
        match self.common().peers.get() {
            None => propose(self.common(), step).await,
            Some(_) => {
                let Done { position, .. } = self.act(Action::Restore(step)).await?;
                position.ok_or(Refused::Unknown)
            }
        }
    }

    /// Tells the leader again and again that somebody looks after the restore.
    async fn keep_saying(&self, id: RestoreId) -> std::convert::Infallible {
        loop {
            match self.common().peers.get() {
                None => self.common().inbox.control(Control::StillRestoring(id)),
                // A leader that does not hear this time hears the next time.
                Some(_) => drop(self.act(Action::StillRestoring(id)).await),
            }
            tokio::time::sleep(WORD_INTERVAL).await;
        }
    }

    /// Gets a decision into the log. Answers whether the restore is done; an abort that was decided first is not an error.
    async fn decide(&self, step: RestoreStep, id: RestoreId) -> Result<bool, NotRestored> {
        let mut status = self.common().status.subscribe();
        let decided = async {
            loop {
                // It may have got lost, or lost the leader, and does no harm twice.
                let _ = self.step(step).await;
                let is_so = |status: &NodeStatus| of_group_0(status).last == Some(id) && !of_group_0(status).pending;
                if let Ok(Ok(status)) = timeout(WORD_INTERVAL, status.wait_for(is_so)).await {
                    return of_group_0(&status).done == Some(id);
                }
            }
        };
        timeout(DECISION_MAX, decided).await.map_err(|_| NotRestored::Unknown)
    }

    /// Lets every member stage its parts; those who do not vote may fail, and get a snapshot.
    async fn stage_everywhere(&self, id: RestoreId, path: &Path, manifest: &Manifest) -> Result<(), NotRestored> {
        let mut status = self.common().status.subscribe();
        let heard = status.wait_for(|status| of_group_0(status).last.is_some_and(|last| last.begun >= id.begun));
        let heard = timeout(DECISION_MAX, heard).await.ok().and_then(Result::ok).map(|status| of_group_0(&status));
        if heard.is_none_or(|restores| restores.last != Some(id) || !restores.pending) {
            return Err(NotRestored::Busy);
        }
        let file = BackupFile::open(path).map_err(NotRestored::Failed)?;
        let (common, file, groups) = (self.common().clone(), Arc::new(file), manifest.groups.clone());
        let source = file.clone();
        let own = tokio::task::spawn_blocking(move || {
            groups.iter().try_for_each(|group| stage_own(&common.staging, id, &source, group))
        });
        let links = self.common().peers.get().map(|peers| peers.links.all()).unwrap_or_default();
        let sending: Vec<_> = links
            .into_iter()
            .map(|link| {
                let (file, groups) = (file.clone(), manifest.groups.clone());
                (link.id, tokio::spawn(async move { stages::send(&link, id, &file, &groups).await }))
            })
            .collect();
        own.await.map_err(|_| NotRestored::NotRunning)?.map_err(NotRestored::Failed)?;
        let voters = self.voters();
        for (member, sent) in sending {
            let sent = sent.await.unwrap_or_else(|_| Err("this node stops".into()));
            if let (Err(why), true) = (&sent, voters.contains(&member)) {
                return Err(NotRestored::Refused(format!("{} cannot stage it: {why}", self.called(member))));
            }
        }
        Ok(())
    }
}

fn stage_own<S: StateMachine>(
    staging: &Staging<S>,
    id: RestoreId,
    file: &BackupFile,
    group: &crate::backup::SavedGroup,
) -> Result<(), StorageError> {
    let shard = ShardId(group.group);
    let part = file.part(&group.file).ok_or_else(|| file.refused(format!("{} is missing", group.file)))?;
    let Some(staged) = staging.part(id, shard) else { return Ok(()) };
    let mut to = NewFile::create(&staged.path)?;
    file.copy(part, &mut to)?;
    staging.stage(staged, to)
}
