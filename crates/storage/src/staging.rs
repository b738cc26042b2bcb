//! What is staged for a restore: files beside the checkpoints that take their places when the cluster says so, which may be after a restart.
//!
//! `restore-<entry>-<incarnation>-<shard>.sqlite` is whole and durable; while it is written it ends in `.partial`, and the next start removes
//! it. `upload-<number>.tar` is a backup on its way to the members; the next start removes it as well.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use base::{Incarnation, Index, ShardId};

use crate::StorageError;
use crate::aside::discard;

/// A file that waits to become a shard's checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagedPart {
    /// The entry that has begun the restore.
    pub begun: Index,
    /// The incarnation that the restore brings.
    pub incarnation: Incarnation,
    /// The shard.
    pub shard: ShardId,
    /// Where it is.
    pub path: PathBuf,
}

impl StagedPart {
    /// The part of a restore for a shard, whether or not it is there.
    pub fn new(directory: &Path, begun: Index, incarnation: Incarnation, shard: ShardId) -> StagedPart {
        let path = directory.join(format!("{STAGED}{begun}-{incarnation}-{shard}.sqlite"));
        StagedPart { begun, incarnation, shard, path }
    }

    fn of_name(name: &str, path: &Path) -> Option<StagedPart> {
        let mut fields = name.strip_prefix(STAGED)?.strip_suffix(".sqlite")?.split('-');
        let begun = Index(fields.next()?.parse().ok()?);
        let incarnation = Incarnation(u64::from_str_radix(fields.next()?, 16).ok()?);
        let shard = ShardId(fields.next()?.parse().ok()?);
        fields.next().is_none().then(|| StagedPart { begun, incarnation, shard, path: path.into() })
    }
}

const STAGED: &str = "restore-";
const UPLOAD: &str = "upload-";

/// Tells apart the uploads of one process.
static NUMBER: AtomicU64 = AtomicU64::new(1);

/// A new name for a backup that comes in.
pub fn upload(directory: &Path) -> PathBuf {
    directory.join(format!("{UPLOAD}{}.tar", NUMBER.fetch_add(1, Ordering::Relaxed)))
}

/// What is staged in a data directory. To be called at a start: what an earlier process had not finished is removed.
///
/// # Errors
/// The disk failed.
pub fn staged(directory: &Path) -> Result<Vec<StagedPart>, StorageError> {
    let failed = |cause| StorageError::failed("list", &directory.display().to_string(), cause);
    let mut parts = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        // The files that SQLite keeps beside an unfinished one go with it.
        if name.starts_with(UPLOAD) || (name.starts_with(STAGED) && name.contains(".partial")) {
            discard(&path)?;
        }
        parts.extend(StagedPart::of_name(&name, &path));
    }
    parts.sort_by_key(|part| (part.begun, part.shard));
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is whole is found by its name, what is not is removed, and everything else is left alone.
    #[test]
    fn whole_parts_are_found_and_others_removed() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let part = |begun: u64, shard: u16| {
            StagedPart::new(folder.path(), Index(begun), Incarnation(0xfedc_ba98_7654_3210), ShardId(shard))
        };
        let parts = [part(7, 0), part(7, 1), part(12, 0)];
        let partial = |suffix: &str| PathBuf::from(format!("{}{suffix}", part(9, 0).path.display()));
        let unfinished = [partial(".partial"), partial(".partial-wal"), upload(folder.path())];
        let other = folder.path().join("shard-0.sqlite");
        let all = parts.iter().map(|part| part.path.clone()).chain(unfinished.clone()).chain([other.clone()]);
        all.for_each(|path| std::fs::write(path, b"x").expect("it can be written"));
        assert_eq!(staged(folder.path()).expect("it can be listed"), parts);
        assert!(other.exists() && unfinished.iter().all(|path| !path.exists()));
    }
}
