//! Data directories without a running node: restored from a backup, or brought back to life after a lost quorum. Either way a new cluster
//! begins, with one voter, an id and an incarnation of its own, so that it and what is left of the old one refuse each other; the other nodes
//! join it with empty directories.

use std::path::{Path, PathBuf};

use base::log::Entry;
use base::machine::{ShardInfo, StateMachine};
use base::rows::{Changes, Unreadable};
use base::{Incarnation, Index, ScheduleTime, ShardId, Term};
use data_encoding::HEXLOWER;
use replica::{Fault, Member, Members, replay};
use storage::StorageError;
pub use storage::aside::checkpoint_file;
use storage::aside::{discard, interrupted};
use storage::backup::BackupFile;
pub use storage::checkpoint::CheckpointFile;
use storage::checkpoint::{Checkpoint, Meta, SqliteCheckpoint};
use storage::disk::RealDisk;
use storage::identity::{DataDir, Identity, recorded};
use storage::wal::{Recovered, look};

use crate::backup::{Manifest, manifest_of};
use crate::forming::ClusterId;
use crate::founding::{accept, found_alone};
use crate::open::random_incarnation;

/// A cluster that begins with old data.
#[derive(Clone, Debug)]
pub struct NewCluster {
    /// The name of its one node.
    pub node: String,
    /// Its id.
    pub cluster: ClusterId,
    /// The number inside the ids of tasks that it will create.
    pub incarnation: Incarnation,
    /// Its groups, with the entry up to which each has its data.
    pub groups: Vec<(ShardId, Term, Index)>,
}

/// Makes an empty directory the data of a node that is a cluster by itself, with what is in a backup. `now`: shown as the time at which the
/// directory was made. A crash leaves a directory that is empty, or that no node starts with.
///
/// # Errors
/// The backup cannot be used, or the directory is not empty or used by a process, or the disk failed or is full.
pub fn restore<S: StateMachine>(
    backup: &Path,
    directory: &Path,
    node: &str,
    now: ScheduleTime,
) -> Result<(NewCluster, Manifest), StorageError> {
    let file = BackupFile::open(backup)?;
    let manifest = manifest_of(&file)?;
    let directory = DataDir::open(directory)?;
    if let Some(identity) = directory.identity()? {
        let what = format!(
            "it has the data of node {}; a backup is restored into an empty directory, and the other nodes then join with empty ones too",
            identity.node
        );
        return Err(StorageError::Foreign { directory: directory.path().display().to_string(), what });
    }
    let shards: Vec<ShardId> = manifest.groups.iter().map(|group| ShardId(group.group)).collect();
    if shards.is_empty() || !shards.iter().zip(0..).all(|(shard, number)| shard.0 == number) {
        return Err(file.refused("its groups are not numbered from 0"));
    }
    let extracted = extract(&file, &manifest, directory.path());
    let settled = extracted.and_then(|()| settle::<S>(&directory, node, &shards, now));
    if settled.is_err() && matches!(recorded(directory.path()), Ok(None)) {
        // The directory is empty again; what cannot be removed is named by the next attempt.
        let files = shards.iter().map(|shard| checkpoint_file(directory.path(), *shard));
        let suffixes = files.flat_map(|file| ["", "-wal", "-shm"].map(|suffix| with_suffix(&file, suffix)));
        suffixes.for_each(|file| drop(discard(&file)));
        drop(discard(&directory.path().join("founding")));
    }
    Ok((settled?, manifest))
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn extract(file: &BackupFile, manifest: &Manifest, directory: &Path) -> Result<(), StorageError> {
    for group in &manifest.groups {
        let part = file.part(&group.file).ok_or_else(|| file.refused(format!("{} is missing", group.file)))?;
        let hash = file.extract(part, &checkpoint_file(directory, ShardId(group.group)))?;
        if HEXLOWER.encode(&hash) != group.sha256 {
            return Err(file.refused(format!("{} is damaged: its bytes do not fit their SHA-256", group.file)));
        }
    }
    Ok(())
}

/// Founds a cluster of one in a directory that has its checkpoints and nothing else.
fn settle<S: StateMachine>(
    directory: &DataDir,
    node: &str,
    shards: &[ShardId],
    now: ScheduleTime,
) -> Result<NewCluster, StorageError> {
    let me = Member { id: random_incarnation().0, name: node.into(), ..Member::default() };
    let alone = found_alone("", me.clone(), shards.len() as u16);
    let mut groups = Vec::new();
    for shard in shards {
        let Meta { index, term, .. } = renew::<S>(
            &checkpoint_file(directory.path(), *shard),
            &Members::of_voters([me.clone()]),
            alone.incarnation,
        )?;
        groups.push((*shard, term, index));
    }
    accept(Some(directory), &alone)?;
    directory.found(&Identity {
        node: node.into(),
        incarnation: Incarnation(me.id),
        cluster: alone.cluster.0,
        cluster_incarnation: alone.incarnation,
        shards: shards.len() as u16,
        provider: "sqlite".into(),
        created_at: now,
    })?;
    Ok(NewCluster { node: node.into(), cluster: alone.cluster, incarnation: alone.incarnation, groups })
}

/// Makes a checkpoint one of another life of its cluster, with these members, and closes it.
pub(crate) fn renew<S: StateMachine>(
    path: &Path,
    members: &Members,
    incarnation: Incarnation,
) -> Result<Meta, StorageError> {
    let mut checkpoint = SqliteCheckpoint::open(path, S::schema())?;
    let meta = checkpoint.meta()?.ok_or_else(|| damaged(path, "no checkpoint was committed to it"))?;
    let before = Members::decode(&meta.configuration).map_err(|_| damaged(path, "its members do not read back"))?;
    let first = Index(meta.index.next().0.wrapping_add_signed(before.ahead()));
    let mut changes = Changes::default();
    let listed = S::renew(&mut *checkpoint.rows(), first, incarnation, &mut changes);
    listed.map_err(|Unreadable(what)| damaged(path, &what))?;
    checkpoint.write(&changes)?;
    let renewed = Meta { configuration: members.clone().ahead_by(before.ahead()).encode(), ..meta };
    checkpoint.commit(&renewed)?;
    checkpoint.close()?;
    Ok(renewed)
}

pub(crate) fn damaged(path: &Path, what: &str) -> StorageError {
    StorageError::Damaged { file: path.display().to_string(), offset: None, what: what.into() }
}

/// A data directory of a cluster that has lost its quorum. Its lock is held, so that no node starts meanwhile.
pub struct Survivor {
    /// Whose it is.
    pub identity: Identity,
    /// What it has of each group.
    pub groups: Vec<SurvivingGroup>,
    directory: DataDir,
    /// Where its data is read: in the directory, or in the copy that an interrupted recovery has left.
    data: PathBuf,
    log: Option<Recovered>,
}

/// What a data directory has of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurvivingGroup {
    /// The group.
    pub shard: ShardId,
    /// The last term that the node has heard of.
    pub term: Term,
    /// The term of the last entry it has.
    pub last_term: Term,
    /// The index of that entry.
    pub last: Index,
    /// The last entry that it knows to be committed.
    pub commit: Index,
    /// The last entry in the checkpoint.
    pub checkpoint: Index,
    /// Why this group cannot be taken from this directory.
    pub problem: Option<String>,
}

impl Survivor {
    /// Looks at the data of a node that does not run.
    ///
    /// # Errors
    /// It is no data directory, or a process uses it. Damage of a group is told with the group.
    pub fn look<S: StateMachine>(path: &Path) -> Result<Survivor, StorageError> {
        let copy = interrupted(path)?;
        let data = copy.clone().unwrap_or_else(|| path.to_owned());
        let Some(identity) = recorded(&data)? else {
            let what = "it is no node's data".into();
            return Err(StorageError::Foreign { directory: path.display().to_string(), what });
        };
        let directory = DataDir::open(path)?;
        let log = match copy {
            Some(copy) => look(&RealDisk::new(copy.join("wal"))),
            None => look(&directory.log_disk()?),
        };
        let problem = log.as_ref().err().map(ToString::to_string);
        let log = log.ok();
        let groups = (0..identity.shards)
            .map(|number| look_at_group::<S>(&data, ShardId(number), log.as_ref(), problem.clone()))
            .collect();
        Ok(Survivor { identity, groups, directory, data, log })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

fn look_at_group<S: StateMachine>(
    directory: &Path,
    shard: ShardId,
    log: Option<&Recovered>,
    problem: Option<String>,
) -> SurvivingGroup {
    let own = log.and_then(|log| log.shards.get(&shard));
    let mut group = SurvivingGroup {
        shard,
        term: own.map(|own| own.hard_state.term).unwrap_or_default(),
        last_term: Term::default(),
        last: Index::default(),
        commit: own.map(|own| own.hard_state.commit).unwrap_or_default(),
        checkpoint: Index::default(),
        problem,
    };
    let path = checkpoint_file(directory, shard);
    let meta = CheckpointFile::open(&path, S::schema()).and_then(|mut file| {
        file.check()?;
        Ok(file.meta().clone())
    });
    match meta {
        Err(error) => group.problem = group.problem.or(Some(error.to_string())),
        Ok(meta) => {
            let rest = own.map(|own| behind(&own.entries, &meta)).unwrap_or_default();
            let last = rest.last().map_or((meta.term, meta.index), |entry| (entry.term, entry.index));
            (group.last_term, group.last) = last;
            group.checkpoint = meta.index;
            group.commit = group.commit.max(meta.index);
            group.term = group.term.max(last.0);
            let begins = rest.first().map_or(meta.index.next(), |entry| entry.index);
            if begins != meta.index.next() {
                let text = format!("entry {} is missing between checkpoint and log", meta.index.next());
                group.problem = group.problem.or(Some(text));
            }
            if group.commit > group.last && group.problem.is_none() {
                let text = format!("its log ends at entry {}, though entry {} was committed", group.last, group.commit);
                group.problem = Some(text);
            }
        }
    }
    group
}

/// The entries that the checkpoint does not hold.
fn behind<'a>(entries: &'a [Entry], meta: &Meta) -> &'a [Entry] {
    let first = entries.partition_point(|entry| entry.index <= meta.index);
    &entries[first..]
}

/// From which directory each group is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one, by its place among the survivors, has the latest entry of every group.
    One(usize),
    /// Each group from the one that has its latest entry, by group.
    Several(Vec<usize>),
}

/// Which directories have the latest entries: the highest term of the last entry, then the highest index. Between equals the one named first.
///
/// # Errors
/// In words, why nothing can be recommended.
pub fn choose(survivors: &[Survivor]) -> Result<Choice, String> {
    let Some(first) = survivors.first() else { return Err("no directory was named".into()) };
    if let Some(other) = survivors.iter().find(|other| other.identity.cluster != first.identity.cluster) {
        return Err(format!(
            "{} and {} belong to different clusters: name directories of one cluster only",
            first.path().display(),
            other.path().display()
        ));
    }
    let mut best = Vec::new();
    for place in 0..usize::from(first.identity.shards) {
        let sound = survivors.iter().enumerate().filter_map(|(number, survivor)| {
            let group = survivor.groups.get(place).filter(|group| group.problem.is_none())?;
            Some(((group.last_term, group.last, std::cmp::Reverse(number)), number))
        });
        match sound.max() {
            Some((_, number)) => best.push(number),
            None => return Err(format!("no directory has group {place} intact: restore a backup instead")),
        }
    }
    let has_all = |number: usize| {
        let group = |place: usize, number: usize| &survivors[number].groups[place];
        let as_good = |place: usize| {
            let (own, top) = (group(place, number), group(place, best[place]));
            own.problem.is_none() && (own.last_term, own.last) == (top.last_term, top.last)
        };
        (0..best.len()).all(as_good)
    };
    Ok(match (0..survivors.len()).find(|number| has_all(*number)) {
        Some(number) => Choice::One(number),
        None => Choice::Several(best),
    })
}

/// Makes the directory of `target` a cluster of one that has everything that `sources` have: for each group, the survivor it is taken from.
/// What the directory holds is copied into a folder inside it first. Entries in a log count, whether or not they were committed. If it is
/// interrupted, the directory holds what it held, or no node starts with it; done again, it goes on with the copy.
///
/// # Errors
/// A group cannot be read, or the disk failed or is full.
pub fn recover<S: StateMachine>(
    survivors: &[Survivor],
    target: usize,
    sources: &[usize],
    now: ScheduleTime,
) -> Result<(NewCluster, PathBuf), StorageError> {
    let Survivor { identity, directory, data, .. } = &survivors[target];
    let copy = if data == directory.path() {
        directory.copy_aside(&format!("before-recovery-{}", now.0))?
    } else {
        data.clone()
    };
    let mut staged = Vec::new();
    for (shard, source) in (0..).map(ShardId).zip(sources) {
        let to = directory.path().join(format!("recovered-{shard}.sqlite"));
        // An earlier attempt may have left one.
        discard(&to)?;
        stage::<S>(&survivors[*source], shard, &to)?;
        staged.push((shard, to));
    }
    directory.put_in_place(&copy, &staged)?;
    let shards: Vec<ShardId> = staged.iter().map(|(shard, _)| *shard).collect();
    let cluster = settle::<S>(directory, &identity.node, &shards, now)?;
    directory.settled()?;
    Ok((cluster, copy))
}

/// Copies a group's checkpoint and adds to it what the log holds behind it.
fn stage<S: StateMachine>(from: &Survivor, shard: ShardId, to: &Path) -> Result<(), StorageError> {
    CheckpointFile::open(&checkpoint_file(&from.data, shard), S::schema())?.copy_to(to)?;
    let mut checkpoint = SqliteCheckpoint::open(to, S::schema())?;
    let meta = checkpoint.meta()?.ok_or_else(|| damaged(to, "no checkpoint was committed to it"))?;
    let info = ShardInfo { shard, incarnation: from.identity.cluster_incarnation };
    let restored = S::restore(info, &mut *checkpoint.rows());
    let mut machine = restored.map_err(|Unreadable(what)| damaged(to, &what))?;
    let entries = from.log.as_ref().and_then(|log| log.shards.get(&shard)).map_or(&[][..], |log| &log.entries);
    let rest = behind(entries, &meta);
    let Some(last) = rest.last() else { return Ok(()) };
    let unknown = |Fault { index, .. }| {
        damaged(from.path(), &format!("entry {index} of group {shard} is of a kind that this program does not know"))
    };
    let members = Members::decode(&meta.configuration).map_err(|_| damaged(to, "its members do not read back"))?;
    replay(shard, &mut machine, &members, rest).map_err(unknown)?;
    machine.freeze();
    let mut complete = false;
    while !complete {
        let mut changes = Changes::default();
        complete = machine.collect(ROWS_AT_ONCE, &mut changes);
        checkpoint.write(&changes)?;
    }
    checkpoint.commit(&Meta { index: last.index, term: last.term, ..meta })
}

/// Rows written to a checkpoint at a time.
const ROWS_AT_ONCE: usize = 4_096;
