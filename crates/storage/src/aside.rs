//! A data directory that gets other content: what it holds is copied aside first, and while one content takes the place of the other the
//! directory has no identity, so that no node starts with half of each. Until that is over, a file says which copy to begin again with.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base::ShardId;

use crate::StorageError;
use crate::identity::{DataDir, LOCK, recorded};

/// The file that holds the name of the copy.
const RECOVERING: &str = "recovering";

/// Where a shard's checkpoint is in a data directory.
pub fn checkpoint_file(directory: &Path, shard: ShardId) -> PathBuf {
    directory.join(format!("shard-{shard}.sqlite"))
}

impl DataDir {
    /// Copies all files but the lock, and no earlier copies, into a folder of this name inside the directory, durably.
    ///
    /// # Errors
    /// The folder is there already, or the disk failed or is full.
    pub fn copy_aside(&self, folder: &str) -> Result<PathBuf, StorageError> {
        let to = self.path().join(folder);
        let copy = || -> io::Result<()> {
            DirBuilder::new().mode(0o700).create(&to)?;
            for entry in std::fs::read_dir(self.path())? {
                let entry = entry?;
                let name = entry.file_name();
                let kind = entry.file_type()?;
                let is_folder = kind.is_dir();
                if is_folder && name == "wal" {
                    DirBuilder::new().mode(0o700).create(to.join(&name))?;
                    for segment in std::fs::read_dir(entry.path())? {
                        let segment = segment?;
                        copy_file(&segment.path(), &to.join(&name).join(segment.file_name()))?;
                    }
                    File::open(to.join(&name))?.sync_all()?;
                } else if kind.is_file() && name != LOCK {
                    copy_file(&entry.path(), &to.join(&name))?;
                }
            }
            File::open(&to)?.sync_all()?;
            File::open(self.path())?.sync_all()
        };
        copy().map_err(|cause| StorageError::failed("copy the data directory to", &to.display().to_string(), cause))?;
        Ok(to)
    }

    /// Lets these checkpoints take the place of everything that the directory holds, but for folders of copies. Until an identity follows,
    /// no node starts with it. `copy`: what was there, for whoever has to begin again; see [`interrupted`].
    ///
    /// # Errors
    /// The disk failed.
    pub fn put_in_place(&self, copy: &Path, checkpoints: &[(ShardId, PathBuf)]) -> Result<(), StorageError> {
        let folder = copy.file_name().expect("a copy is a folder in the directory").to_string_lossy();
        self.replace(RECOVERING, folder.as_bytes())?;
        let replace = || -> io::Result<()> {
            remove(&self.path().join("identity"))?;
            File::open(self.path())?.sync_all()?;
            remove(&self.path().join("founding"))?;
            match std::fs::remove_dir_all(self.path().join("wal")) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
                _ => {}
            }
            for (shard, file) in checkpoints {
                let place = checkpoint_file(self.path(), *shard);
                for suffix in ["", "-wal", "-shm", "-journal"] {
                    let mut name = place.as_os_str().to_owned();
                    name.push(suffix);
                    remove(Path::new(&name))?;
                }
                std::fs::rename(file, &place)?;
            }
            File::open(self.path())?.sync_all()
        };
        let shown = self.path().display().to_string();
        replace().map_err(|cause| StorageError::failed("put checkpoints into", &shown, cause))
    }
}

impl DataDir {
    /// The directory has its content and its identity.
    ///
    /// # Errors
    /// The disk failed.
    pub fn settled(&self) -> Result<(), StorageError> {
        discard(&self.path().join(RECOVERING))
    }
}

/// The copy of what a directory held, if [`DataDir::put_in_place`] has begun there and no identity has followed.
///
/// # Errors
/// It cannot be read.
pub fn interrupted(directory: &Path) -> Result<Option<PathBuf>, StorageError> {
    let path = directory.join(RECOVERING);
    let folder = match std::fs::read_to_string(&path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(|cause| StorageError::failed("read", &path.display().to_string(), cause))?,
    };
    let is_settled = recorded(directory)?.is_some();
    Ok((!is_settled).then(|| directory.join(folder)))
}

/// Removes a file, if there is one.
///
/// # Errors
/// The disk failed.
pub fn discard(path: &Path) -> Result<(), StorageError> {
    remove(path).map_err(|cause| StorageError::failed("remove", &path.display().to_string(), cause))
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::copy(from, to)?;
    File::open(to)?.sync_all()
}
