//! A whole snapshot takes the place of a checkpoint file, in steps between which the power may fail.
//!
//! SQLite's log lies beside its file and is bound to it by nothing but its name: a new file with the old log would be neither the old
//! checkpoint nor the new one. So the snapshot is first given the name `….installing`; once that is durable the old checkpoint is history, and
//! every start goes on from there:
//!
//! 1. The old file's log and the files like it are removed, durably. (The old file alone may not be whole now; nobody opens it any more.)
//! 2. The snapshot gets the checkpoint's name, durably.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::StorageError;

/// Something done in the folder of a checkpoint.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Gives a file another name; a file that has it is gone.
    Rename(PathBuf, PathBuf),
    /// Removes a file, if there is one.
    Remove(PathBuf),
    /// Makes all of that durable.
    SyncFolder(PathBuf),
}

impl Step {
    pub(super) fn perform(&self) -> Result<(), StorageError> {
        let failed = |doing, path: &PathBuf, cause| StorageError::failed(doing, &path.display().to_string(), cause);
        match self {
            Step::Rename(from, to) => std::fs::rename(from, to).map_err(|cause| failed("rename", from, cause)),
            Step::Remove(path) => remove(path).map_err(|cause| failed("remove", path, cause)),
            Step::SyncFolder(path) => sync_folder(path),
        }
    }
}

/// From then on, the snapshot in this file is the checkpoint.
pub(super) fn decide(snapshot: &Path, path: &Path) -> Step {
    Step::Rename(snapshot.into(), installing(path))
}

/// What follows. It begins with the sync that makes the decision durable, since a start may find one that is not.
pub(super) fn rest(path: &Path) -> Vec<Step> {
    let beside = |suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        Step::Remove(name.into())
    };
    vec![
        Step::SyncFolder(folder(path)),
        beside("-wal"),
        beside("-shm"),
        beside("-journal"),
        Step::SyncFolder(folder(path)),
        Step::Rename(installing(path), path.into()),
        Step::SyncFolder(folder(path)),
    ]
}

/// Does what is left to do, if an installation was decided. Nobody has the checkpoint open.
pub(super) fn complete(path: &Path) -> Result<(), StorageError> {
    let decided = installing(path);
    let exists = decided.try_exists();
    if exists.map_err(|cause| StorageError::failed("look for", &decided.display().to_string(), cause))? {
        rest(path).iter().try_for_each(Step::perform)?;
    }
    Ok(())
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StorageError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|cause| StorageError::failed("sync", &folder.display().to_string(), cause))
}

/// Makes what SQLite's log of this file holds durable.
pub(super) fn sync_log(path: &Path) -> Result<(), StorageError> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let synced = File::open(&log).and_then(|log| log.sync_data());
    synced.map_err(|cause| StorageError::failed("sync", &PathBuf::from(&log).display().to_string(), cause))
}

/// Removes a file, if there is one.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn installing(path: &Path) -> PathBuf {
    path.with_extension("installing")
}

/// The folder that a file lies in.
pub(super) fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.into(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use base::rows::{Changes, Column, RowSource, Schema, Table};
    use base::{Index, Term};
    use rusqlite::Connection;

    use super::*;
    use crate::checkpoint::{Checkpoint, Meta, SqliteCheckpoint};

    const SCHEMA: Schema = Schema {
        tables: &[Table {
            name: "things",
            sliced: false,
            columns: &[Column { name: "name", kind: "TEXT" }],
            indexes: &[],
        }],
        views: &[],
    };

    /// Writes rows that say which checkpoint they are of.
    fn write(checkpoint: &mut SqliteCheckpoint, index: u64, keys: std::ops::Range<i64>) {
        let mut changes = Changes::default();
        keys.for_each(|key| changes.put(0, 0, key, |row| row.text(&format!("of checkpoint {index}"))));
        checkpoint.write(&changes).expect("it is written");
        let meta = Meta { index: Index(index), term: Term(2), configuration: vec![7] };
        checkpoint.commit(&meta).expect("it is written");
    }

    fn dump(rows: &mut dyn RowSource) -> Vec<(i64, String)> {
        let mut found = Vec::new();
        let read = rows.for_each(0, &mut |_, key, row| {
            found.push((key, row.reader().text()?.to_owned()));
            Ok(())
        });
        read.expect("every row reads back");
        found
    }

    /// Every state in which the power may fail: the steps before some sync are done, and of those up to the next one any may have
    /// reached the disk. Each of them holds the old checkpoint or the new one, whole, and the new one once that was decided durably.
    #[test]
    fn the_power_may_fail_between_any_two_steps() {
        let root = std::env::temp_dir().join(format!("codeq-install-{}", std::process::id()));
        let folder = |name: &str| {
            let folder = root.join(name);
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir_all(&folder).expect("the folder can be made");
            folder
        };
        let (from, to) = (folder("from"), folder("to"));
        let mut sender = SqliteCheckpoint::open(&from.join("shard-0.sqlite"), SCHEMA).expect("it opens");
        write(&mut sender, 9, 500..900);
        let mut old = SqliteCheckpoint::open(&to.join("shard-0.sqlite"), SCHEMA).expect("it opens");
        write(&mut old, 3, 0..600);
        // A reader keeps the last commit of the old checkpoint in SQLite's log, where it must not be lost as long as it counts, and where the
        // new file would read it otherwise.
        let reader = Connection::open(to.join("shard-0.sqlite")).expect("it opens");
        reader.execute_batch("BEGIN; SELECT count(*) FROM things").expect("it runs");
        write(&mut old, 4, 100..700);
        let (expected_old, expected_new) = (dump(&mut *old.rows()), dump(&mut *sender.rows()));
        let outgoing = sender.snapshots().take().expect("a copy is made");
        let mut snapshot = vec![0; outgoing.snapshot().length as usize];
        outgoing.read_at(0, &mut snapshot).expect("it reads");
        let names = ["shard-0.sqlite", "shard-0.sqlite-wal", "shard-0.sqlite-shm"];
        let files = names.map(|name| (name, std::fs::read(to.join(name)).expect("it can be read")));
        assert!(files[1].1.len() > 10_000, "the last commit is in the log");

        let crashed = folder("crashed");
        let path = crashed.join("shard-0.sqlite");
        let arrived = crashed.join("shard-0.snapshot-in-1");
        let steps: Vec<Step> = std::iter::once(decide(&arrived, &path)).chain(rest(&path)).collect();
        let groups: Vec<&[Step]> = steps.split(|step| matches!(step, Step::SyncFolder(_))).collect();
        let mut seen = [0, 0];
        for (done, group) in groups.iter().enumerate() {
            for lost in 0..1 << group.len() {
                folder("crashed");
                std::fs::write(&arrived, &snapshot).expect("it can be written");
                for (name, bytes) in &files {
                    std::fs::write(crashed.join(name), bytes).expect("it can be written");
                }
                let before = groups[..done].iter().copied().flatten();
                let under_way = group.iter().enumerate().filter(|(place, _)| lost & 1 << place == 0);
                let performed: Vec<&Step> = before.chain(under_way.map(|(_, step)| step)).collect();
                performed.iter().for_each(|step| step.perform().expect("it can be done"));
                let mut found = SqliteCheckpoint::open(&path, SCHEMA).expect("it opens");
                let index = found.meta().expect("it reads").expect("it has one").index;
                let rows = dump(&mut *found.rows());
                match index {
                    Index(4) if done == 0 => {
                        seen[0] += 1;
                        assert_eq!(rows, expected_old, "after {performed:?}");
                    }
                    Index(9) => {
                        seen[1] += 1;
                        assert_eq!(rows, expected_new, "after {performed:?}");
                    }
                    other => panic!("a checkpoint of {other} after {performed:?}"),
                }
                drop(found);
                assert_eq!(std::fs::read_dir(&crashed).expect("it can be listed").count(), 1, "after {performed:?}");
            }
        }
        assert!(seen[0] == 1 && seen[1] > 10, "{seen:?}");
        std::fs::remove_dir_all(&root).expect("it can be removed");
    }
}
