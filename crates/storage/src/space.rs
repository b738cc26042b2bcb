//! How much room a directory has, and a reserve for when there is none.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::StorageError;
use crate::aside::discard;

/// The room on the disk that a directory is on, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// What an ordinary user may still write.
    pub free: u64,
    /// The size of the disk.
    pub total: u64,
}

/// Looks how much room there is.
///
/// # Errors
/// The disk does not say.
pub fn space(directory: &Path) -> Result<Space, StorageError> {
    let failed = |cause: rustix::io::Errno| {
        StorageError::failed("look for free space in", &directory.display().to_string(), cause.into())
    };
    let stats = statvfs(directory).map_err(failed)?;
    Ok(Space {
        free: stats.f_bavail.saturating_mul(stats.f_frsize),
        total: stats.f_blocks.saturating_mul(stats.f_frsize),
    })
}

const RESERVE: &str = "reserve";

/// Keeps so many bytes of a directory's disk for [`release`]. They are kept already: nothing happens.
///
/// # Errors
/// The disk is full or failed.
pub fn keep(directory: &Path, bytes: u64) -> Result<(), StorageError> {
    let path = directory.join(RESERVE);
    let keep = || -> io::Result<()> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path)?;
        if file.metadata()?.len() < bytes {
            fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        }
        Ok(())
    };
    keep().map_err(|cause| StorageError::failed("keep a reserve in", &path.display().to_string(), cause))
}

/// Gives the reserve to whoever writes.
///
/// # Errors
/// The disk failed.
pub fn release(directory: &Path) -> Result<(), StorageError> {
    discard(&directory.join(RESERVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the reserve takes the room that it is said to take, once, and gives it back.
    #[test]
    fn a_reserve_is_kept_and_released() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let space = space(folder.path()).expect("it is known");
        assert!(space.free > 0 && space.free <= space.total, "{space:?}");
        let size = || std::fs::metadata(folder.path().join(RESERVE)).map(|found| found.len()).ok();
        for _ in 0..2 {
            keep(folder.path(), 1 << 20).expect("there is room");
            assert_eq!(size(), Some(1 << 20));
        }
        for _ in 0..2 {
            release(folder.path()).expect("it can be removed");
            assert_eq!(size(), None);
        }
    }
}
