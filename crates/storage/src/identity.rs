//! Whose data directory this is: written when it is made, once more when it becomes part of a cluster, and compared at every start. Beside it,
//! the founding of a cluster that the node has accepted, and the lock that keeps a second process out.
//!
//! The identity is text, one `name = value` per line, the last line a checksum of those above, so that an operator can read it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base::checksum::crc32c;
use base::{Incarnation, ScheduleTime};

use crate::StorageError;
use crate::aside::interrupted;
use crate::disk::RealDisk;

const IDENTITY: &str = "identity";
const FOUNDING: &str = "founding";
const RETIRED: &str = "retired";
pub(crate) const LOCK: &str = "lock";
const LOG: &str = "wal";
const FORMAT: u64 = 1;

/// What is fixed when a data directory is made, but for the cluster, which it may get later, for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The node's name.
    pub node: String,
    /// The data directory's own incarnation; the node's Raft id.
    pub incarnation: Incarnation,
    /// The cluster that it belongs to; 0: none yet.
    pub cluster: u128,
    /// The cluster's incarnation, part of every task id; 0: it belongs to none yet.
    pub cluster_incarnation: Incarnation,
    /// Shards of the cluster.
    pub shards: u16,
    /// Which kind of storage: `sqlite`.
    pub provider: String,
    /// When it was made.
    pub created_at: ScheduleTime,
}

/// Whose a data directory is, whoever may use it just now; nothing if it is new or does not exist.
///
/// # Errors
/// The identity cannot be read.
pub fn recorded(directory: &Path) -> Result<Option<Identity>, StorageError> {
    let path = directory.join(IDENTITY);
    let shown = path.display().to_string();
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&text).map(Some).map_err(|what| StorageError::damaged(&shown, None, what)),
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(cause) if cause.kind() == std::io::ErrorKind::InvalidData => {
            Err(StorageError::damaged(&shown, None, "it is not text"))
        }
        Err(cause) => Err(StorageError::failed("read", &shown, cause)),
    }
}

/// A data directory that this process holds alone, until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if there is none, and locks it.
    ///
    /// # Errors
    /// It cannot be made or written to, or another process holds it.
    pub fn open(path: &Path) -> Result<DataDir, StorageError> {
        let shown = path.display().to_string();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|cause| StorageError::failed("make the data directory", &shown, cause))?;
        let lock_path = path.join(LOCK);
        let lock_shown = lock_path.display().to_string();
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|cause| StorageError::failed("write to the data directory, at", &lock_shown, cause))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Whoever holds the lock has written its process id, unless it has only just started.
                let _ = lock.read_to_string(&mut holder);
                let holder = match holder.trim() {
                    "" => "another process".into(),
                    id => format!("process {id}"),
                };
                return Err(StorageError::Locked { file: lock_shown, holder });
            }
            Err(TryLockError::Error(cause)) => return Err(StorageError::failed("lock", &lock_shown, cause)),
        }
        let written = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .and_then(|()| lock.flush());
        written.map_err(|cause| StorageError::failed("write", &lock_shown, cause))?;
        Ok(DataDir { path: path.into(), _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk of the log: a folder in this directory. Its name is durable before anything in it can be.
    ///
    /// # Errors
    /// The folder cannot be made, or the directory cannot be synced.
    pub fn log_disk(&self) -> Result<RealDisk, StorageError> {
        let folder = self.path.join(LOG);
        let shown = folder.display().to_string();
        match std::fs::create_dir(&folder) {
            Ok(()) => {}
            Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(cause) => return Err(StorageError::failed("make", &shown, cause)),
        }
        // Also where it was there: the process that made it may have stopped before this.
        let synced = File::open(&self.path).and_then(|directory| directory.sync_all());
        synced.map_err(|cause| StorageError::failed("make durable the name of", &shown, cause))?;
        Ok(RealDisk::new(folder))
    }

    /// Whose it is; nothing if it is new.
    ///
    /// # Errors
    /// The identity cannot be read, or the directory holds data without one.
    pub fn identity(&self) -> Result<Option<Identity>, StorageError> {
        if let Some(identity) = recorded(&self.path)? {
            return Ok(Some(identity));
        }
        let strange = self.foreign_files()?;
        if strange.is_empty() {
            return Ok(None);
        }
        let what = match interrupted(&self.path)? {
            Some(_) => {
                "it has no identity file, because codeq recover apply was interrupted here: run that again".into()
            }
            None => format!("it has no identity file, but holds {}; choose an empty directory", strange.join(", ")),
        };
        Err(StorageError::Foreign { directory: self.path.display().to_string(), what })
    }

    /// Makes the directory this node's, durably; and once more when it becomes a member of a cluster.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn found(&self, identity: &Identity) -> Result<(), StorageError> {
        self.replace(IDENTITY, format(identity).as_bytes())
    }

    /// Keeps the founding of a cluster that this node has accepted, durably.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn accept_founding(&self, founding: &[u8]) -> Result<(), StorageError> {
        let mut bytes = founding.to_vec();
        bytes.extend_from_slice(&crc32c(0, founding).to_le_bytes());
        self.replace(FOUNDING, &bytes)
    }

    /// The founding that this node has accepted.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn founding(&self) -> Result<Option<Vec<u8>>, StorageError> {
        let path = self.path.join(FOUNDING);
        let shown = path.display().to_string();
        let mut bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(StorageError::failed("read", &shown, cause)),
        };
        let checksum = bytes.len().checked_sub(4).map(|length| bytes.split_off(length));
        if checksum.as_deref() != Some(crc32c(0, &bytes).to_le_bytes().as_slice()) {
            return Err(StorageError::damaged(&shown, None, "its checksum does not fit"));
        }
        Ok(Some(bytes))
    }

    /// Marks the directory, durably, as one whose node is no member of its cluster any more: no node may start with it again. `how`: a word.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn retire(&self, how: &str) -> Result<(), StorageError> {
        self.replace(RETIRED, format!("{how}\n").as_bytes())
    }

    /// The word that [`DataDir::retire`] has marked the directory with.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn retired(&self) -> Result<Option<String>, StorageError> {
        let path = self.path.join(RETIRED);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().into())),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(StorageError::failed("read", &path.display().to_string(), cause)),
        }
    }

    /// Writes a whole file under this name, durably: a crash leaves the old or the new one.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!("{name}.new"));
        let shown = path.display().to_string();
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|cause| StorageError::failed("write", &shown, cause))
    }

    /// Files that a new directory of ours does not have. A directory that was being made when the process stopped is still new, and folders
    /// without anything in them, like those that other volumes are mounted on, hold nobody's data.
    fn foreign_files(&self) -> Result<Vec<String>, StorageError> {
        let shown = self.path.display().to_string();
        let failed = |cause| StorageError::failed("list", &shown, cause);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_empty = || std::fs::read_dir(entry.path()).is_ok_and(|mut within| within.next().is_none());
            if !matches!(name.as_str(), LOCK | "identity.new" | "founding.new" | "lost+found") && !is_empty() {
                names.push(name);
            }
        }
        names.sort();
        names.truncate(5);
        Ok(names)
    }
}

fn format(identity: &Identity) -> String {
    let mut text = format!(
        "# Whose data this is. Written by codeq once; never edit it, never copy it to another node.\n\
         format = {FORMAT}\n\
         node = {}\n\
         incarnation = {}\n\
         cluster = {:032x}\n\
         cluster_incarnation = {}\n\
         shards = {}\n\
         provider = {}\n\
         created_at_ms = {}\n",
        identity.node,
        identity.incarnation,
        identity.cluster,
        identity.cluster_incarnation,
        identity.shards,
        identity.provider,
        identity.created_at.0,
    );
    let checksum = crc32c(0, text.as_bytes());
    text.push_str(&format!("checksum = {checksum:08x}\n"));
    text
}

fn parse(text: &str) -> Result<Identity, String> {
    let (body, last) = text.trim_end().rsplit_once('\n').ok_or("it is too short")?;
    let expected = format!("checksum = {:08x}", crc32c(0, format!("{body}\n").as_bytes()));
    let field = |name: &str| {
        let mut lines = body.lines().filter_map(|line| line.split_once(" = "));
        lines.find(|(known, _)| *known == name).map(|(_, value)| value).ok_or(format!("it has no {name}"))
    };
    let number = |name: &str| field(name)?.parse::<u64>().map_err(|_| format!("{name} is no number"));
    let incarnation = |name: &str| {
        u64::from_str_radix(field(name)?, 16).map(Incarnation).map_err(|_| format!("{name} is no incarnation"))
    };
    let format = number("format")?;
    if format > FORMAT {
        return Err(format!("it has format {format}, and this program reads up to {FORMAT}; use a newer program"));
    }
    if last != expected {
        return Err("its checksum does not fit".into());
    }
    Ok(Identity {
        node: field("node")?.into(),
        incarnation: incarnation("incarnation")?,
        cluster: u128::from_str_radix(field("cluster")?, 16).map_err(|_| "cluster is no id")?,
        cluster_incarnation: incarnation("cluster_incarnation")?,
        shards: u16::try_from(number("shards")?).map_err(|_| "shards is out of range")?,
        provider: field("provider")?.into(),
        created_at: ScheduleTime(number("created_at_ms")?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            node: "node-a".into(),
            incarnation: Incarnation(0x0123_4567_89ab_cdef),
            cluster: 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff,
            cluster_incarnation: Incarnation(0xfedc_ba98_7654_3210),
            shards: 4,
            provider: "sqlite".into(),
            created_at: ScheduleTime(1_767_225_600_000),
        }
    }

    #[test]
    fn an_identity_reads_back_and_no_damage_goes_unnoticed() {
        let text = format(&identity());
        assert_eq!(parse(&text), Ok(identity()));
        for place in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[place] ^= 1;
            let Ok(damaged) = String::from_utf8(bytes) else {
                continue;
            };
            assert!(parse(&damaged).is_err(), "a flip at {place} went unnoticed: {damaged}");
        }
        assert!(parse("").is_err());
        assert!(parse(&text[..text.len() / 2]).is_err());
    }

    #[test]
    fn a_founding_reads_back_and_damage_is_named() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let directory = DataDir::open(folder.path()).expect("it can be opened");
        assert!(directory.founding().expect("it can be read").is_none());
        directory.accept_founding(b"founding").expect("it can be written");
        assert_eq!(directory.founding().expect("it can be read").as_deref(), Some(b"founding".as_slice()));
        std::fs::write(folder.path().join(FOUNDING), b"foundin").expect("it can be written");
        assert!(directory.founding().is_err());
    }

    /// A directory is new while nothing is in it, and its folders are not something; a single file is.
    #[test]
    fn a_directory_with_empty_folders_is_new() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let within = folder.path().join("artifacts");
        std::fs::create_dir(&within).expect("a folder can be made");
        let directory = DataDir::open(folder.path()).expect("it can be opened");
        assert_eq!(directory.identity().expect("it is new"), None);
        std::fs::write(within.join("a"), b"a").expect("it can be written");
        let refusal = directory.identity().expect_err("it is somebody's").to_string();
        assert!(refusal.contains("holds artifacts"), "{refusal}");
    }

    #[test]
    fn a_retired_directory_stays_so() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let directory = DataDir::open(folder.path()).expect("it can be opened");
        assert_eq!(directory.retired().expect("it can be read"), None);
        directory.retire("left").expect("it can be written");
        drop(directory);
        let directory = DataDir::open(folder.path()).expect("it can be opened");
        assert_eq!(directory.retired().expect("it can be read").as_deref(), Some("left"));
    }

    #[test]
    fn a_newer_format_is_named_as_such() {
        let text = format(&identity()).replace("format = 1", "format = 2");
        let refusal = parse(&text).expect_err("it is refused");
        assert!(refusal.contains("use a newer program"), "{refusal}");
    }

    #[test]
    fn the_format_is_the_one_on_record() {
        let golden = "testdata/identity-v1.txt";
        let text = format(&identity());
        if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
            std::fs::write(golden, &text).expect("it can be written");
        }
        assert_eq!(text, std::fs::read_to_string(golden).expect("the file exists"));
    }
}
