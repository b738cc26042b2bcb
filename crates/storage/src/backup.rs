//! Backup files: an uncompressed tar whose parts are texts and copies of checkpoints.
//!
//! Everything about the parts (their lengths and checksums) is known before the first byte is written, so a backup can be streamed and begins
//! with what says how to check the rest. What the parts mean is for whoever makes them.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::StorageError;
use crate::checkpoint::Outgoing;

/// Tar files consist of blocks of so many bytes.
const BLOCK: usize = 512;
/// Two blocks of zeros end one.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
/// Bytes read at once.
const CHUNK: usize = 1 << 20;
/// Parts of one backup: a checkpoint for each shard, and what describes them.
pub const PARTS_MAX: usize = base::limits::SHARDS_MAX as usize + 8;

/// What one part of a backup holds.
pub enum Content {
    /// These bytes.
    Text(Vec<u8>),
    /// The copy of a checkpoint.
    Copy(Outgoing),
}

impl Content {
    fn length(&self) -> u64 {
        match self {
            Content::Text(bytes) => bytes.len() as u64,
            Content::Copy(copy) => copy.snapshot().length,
        }
    }
}

/// A backup to be written: it reads as the bytes of the file. The copies go when they have been read, or when the value is dropped.
pub struct Backup {
    pieces: VecDeque<Content>,
    offset: u64,
    left: u64,
}

impl Backup {
    /// A backup of these parts, in this order. `made_at` is in seconds since the Unix epoch.
    ///
    /// # Errors
    /// A name is too long for a tar file.
    pub fn new(parts: Vec<(String, Content)>, made_at: u64) -> Result<Backup, StorageError> {
        let mut pieces = VecDeque::new();
        for (name, content) in parts {
            let length = content.length();
            let mut header = tar::Header::new_ustar();
            header.set_path(&name).map_err(|cause| StorageError::failed("name a part of a backup", &name, cause))?;
            header.set_size(length);
            header.set_mode(0o600);
            header.set_mtime(made_at);
            header.set_cksum();
            pieces.push_back(Content::Text(header.as_bytes().to_vec()));
            pieces.push_back(content);
            let padding = length.next_multiple_of(BLOCK as u64) - length;
            pieces.push_back(Content::Text(vec![0; padding as usize]));
        }
        pieces.push_back(Content::Text(END.to_vec()));
        let left = pieces.iter().map(Content::length).sum();
        Ok(Backup { pieces, offset: 0, left })
    }

    /// Bytes that are still to be read.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Writes it to a new file, durably. Returns its size in bytes.
    ///
    /// # Errors
    /// A file of that name is there already, or the disk failed or is full.
    pub fn write_to(mut self, path: &Path) -> Result<u64, StorageError> {
        let mut file = NewFile::create(path)?;
        let written = io::copy(&mut self, &mut file);
        let written = written.map_err(|cause| StorageError::failed("write", &path.display().to_string(), cause))?;
        file.finish()?;
        Ok(written)
    }
}

/// A file that only its owner can read, and that has another name until it is whole. It goes if the value is dropped before.
pub struct NewFile {
    path: PathBuf,
    partial: PathBuf,
    file: File,
    is_whole: bool,
}

impl NewFile {
    /// Begins a file that shall have this name.
    ///
    /// # Errors
    /// A file of that name is there already, or none can be made.
    pub fn create(path: &Path) -> Result<NewFile, StorageError> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let create = || -> io::Result<File> {
            if path.try_exists()? {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&partial)
        };
        let file = create().map_err(|cause| StorageError::failed("make", &path.display().to_string(), cause))?;
        Ok(NewFile { path: path.into(), partial, file, is_whole: false })
    }

    /// Where it is until it is whole.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// Gives it its name, durably.
    ///
    /// # Errors
    /// The disk failed.
    pub fn finish(mut self) -> Result<(), StorageError> {
        let folder = self.path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let finish = || -> io::Result<()> {
            self.file.sync_all()?;
            std::fs::rename(&self.partial, &self.path)?;
            File::open(folder)?.sync_all()
        };
        finish().map_err(|cause| StorageError::failed("write", &self.path.display().to_string(), cause))?;
        self.is_whole = true;
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_whole {
            // What cannot be removed is written over by the next attempt.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

impl Read for Backup {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(piece) = self.pieces.front() {
            let read = match piece {
                Content::Text(bytes) => {
                    let rest = &bytes[self.offset as usize..];
                    let length = rest.len().min(buffer.len());
                    buffer[..length].copy_from_slice(&rest[..length]);
                    length
                }
                Content::Copy(copy) => copy.read_at(self.offset, buffer).map_err(io::Error::other)?,
            };
            if read > 0 || buffer.is_empty() {
                self.offset += read as u64;
                self.left -= read as u64;
                return Ok(read);
            }
            self.pieces.pop_front();
            self.offset = 0;
        }
        Ok(0)
    }
}

/// A file that is read from its beginning to its end.
pub struct WholeFile {
    file: File,
    length: u64,
}

impl WholeFile {
    /// Opens a file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(path: &Path) -> Result<WholeFile, StorageError> {
        let open = || -> io::Result<WholeFile> {
            let file = File::open(path)?;
            let length = file.metadata()?.len();
            Ok(WholeFile { file, length })
        };
        open().map_err(|cause| StorageError::failed("read", &path.display().to_string(), cause))
    }

    /// Its size in bytes, when it was opened.
    pub fn length(&self) -> u64 {
        self.length
    }
}

impl Read for WholeFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

/// The backups that are kept in a directory, with the time each was made at in milliseconds since the Unix epoch; the oldest comes first.
/// They are told by their names, as [`kept_name`] makes them.
///
/// # Errors
/// The directory cannot be listed.
pub fn kept(directory: &Path) -> Result<Vec<(u64, PathBuf)>, StorageError> {
    let mut found = Vec::new();
    for (name, path) in listed(directory)? {
        let made_at = name.strip_prefix(KEPT).and_then(|rest| rest.strip_suffix(".tar"));
        found.extend(made_at.and_then(|digits| digits.parse().ok()).map(|made_at| (made_at, path)));
    }
    found.sort();
    Ok(found)
}

const KEPT: &str = "codeq-backup-";

/// The name under which a backup is kept.
pub fn kept_name(made_at: u64) -> String {
    format!("{KEPT}{made_at}.tar")
}

/// Removes the oldest backups but for so many, and what is left of those that were never finished.
///
/// # Errors
/// The directory cannot be listed, or a file cannot be removed.
pub fn trim(directory: &Path, keep: usize) -> Result<(), StorageError> {
    let all = kept(directory)?;
    let old = all.len().saturating_sub(keep);
    all[..old].iter().try_for_each(|(_, path)| crate::aside::discard(path))?;
    let unfinished = |name: &str| name.starts_with(KEPT) && name.ends_with(".tar.partial");
    let mut files = listed(directory)?.into_iter();
    files.try_for_each(|(name, path)| if unfinished(&name) { crate::aside::discard(&path) } else { Ok(()) })
}

fn listed(directory: &Path) -> Result<Vec<(String, PathBuf)>, StorageError> {
    let list = || -> io::Result<Vec<(String, PathBuf)>> {
        let entry = |entry: io::Result<std::fs::DirEntry>| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.path()))
        };
        std::fs::read_dir(directory)?.map(entry).collect()
    };
    list().map_err(|cause| StorageError::failed("list", &directory.display().to_string(), cause))
}

/// A part of a backup file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// How many there are.
    pub length: u64,
}

/// A backup file that is read.
pub struct BackupFile {
    shown: String,
    file: File,
    parts: Vec<Part>,
    /// Why the list of parts ends where it does, if that is not the end of the file.
    broken: Option<String>,
}

impl BackupFile {
    /// Opens a file and lists its parts, as far as their headers can be read.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(path: &Path) -> Result<BackupFile, StorageError> {
        let shown = path.display().to_string();
        let failed = |cause| StorageError::failed("read", &shown, cause);
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let mut parts = Vec::new();
        let mut broken = None;
        let mut archive = tar::Archive::new(&file);
        for entry in archive.entries_with_seek().map_err(failed)? {
            let read = entry.map(|entry| {
                let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                Part { name, offset: entry.raw_file_position(), length: entry.size() }
            });
            match read {
                Ok(part) if part.offset.saturating_add(part.length) > size => {
                    broken = Some(format!("the file ends in the middle of {}", part.name));
                    break;
                }
                Ok(_) if parts.len() == PARTS_MAX => {
                    broken = Some(format!("it has more than {PARTS_MAX} parts"));
                    break;
                }
                Ok(part) => parts.push(part),
                Err(cause) => {
                    let after = parts.last().map_or("the beginning", |part: &Part| part.name.as_str());
                    broken = Some(format!("what follows {after} is no header of a tar file ({cause})"));
                    break;
                }
            }
        }
        Ok(BackupFile { shown, file, parts, broken })
    }

    /// Its parts.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Why there may be more parts than can be read.
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// The part of this name.
    pub fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// The bytes of a part that is a text of at most `most` bytes.
    ///
    /// # Errors
    /// It is longer, or the disk failed.
    pub fn text(&self, part: &Part, most: u64) -> Result<Vec<u8>, StorageError> {
        if part.length > most {
            return Err(self.refused(format!("{} is longer than {most} bytes", part.name)));
        }
        let mut bytes = vec![0; part.length as usize];
        self.file.read_exact_at(&mut bytes, part.offset).map_err(|cause| self.failed(cause))?;
        Ok(bytes)
    }

    /// SHA-256 of a part.
    ///
    /// # Errors
    /// The disk failed.
    pub fn sha256(&self, part: &Part) -> Result<[u8; 32], StorageError> {
        self.for_each_chunk(part, |_| Ok(()))
    }

    /// Writes a part to a new file that only its owner can read, durably but for its name. Returns its SHA-256.
    ///
    /// # Errors
    /// The file is there already, or a disk failed.
    pub fn extract(&self, part: &Part, to: &Path) -> Result<[u8; 32], StorageError> {
        let shown = to.display().to_string();
        let failed = |cause| StorageError::failed("write", &shown, cause);
        let mut made = OpenOptions::new().create_new(true).write(true).mode(0o600).open(to).map_err(failed)?;
        let hash = self.for_each_chunk(part, |bytes| made.write_all(bytes).map_err(failed))?;
        made.sync_all().map_err(failed)?;
        Ok(hash)
    }

    /// Writes a part somewhere.
    ///
    /// # Errors
    /// A disk failed or is full.
    pub fn copy(&self, part: &Part, to: &mut NewFile) -> Result<(), StorageError> {
        let shown = to.partial.display().to_string();
        let write =
            |bytes: &[u8]| to.file.write_all(bytes).map_err(|cause| StorageError::failed("write", &shown, cause));
        self.for_each_chunk(part, write).map(drop)
    }

    /// Fills the buffer with bytes of a part, from `offset` on, as far as there are any. Returns how many; 0 at the end.
    ///
    /// # Errors
    /// The disk failed.
    pub fn read_at(&self, part: &Part, offset: u64, buffer: &mut [u8]) -> Result<usize, StorageError> {
        let left = usize::try_from(part.length.saturating_sub(offset)).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        self.file.read_exact_at(&mut buffer[..length], part.offset + offset).map_err(|cause| self.failed(cause))?;
        Ok(length)
    }

    fn for_each_chunk(
        &self,
        part: &Part,
        mut visit: impl FnMut(&[u8]) -> Result<(), StorageError>,
    ) -> Result<[u8; 32], StorageError> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        let mut done = 0;
        while done < part.length {
            let length = usize::try_from(part.length - done).unwrap_or(CHUNK).min(CHUNK);
            let chunk = &mut buffer[..length];
            self.file.read_exact_at(chunk, part.offset + done).map_err(|cause| self.failed(cause))?;
            hash.update(&*chunk);
            visit(chunk)?;
            done += length as u64;
        }
        Ok(hash.finalize().into())
    }

    fn failed(&self, cause: io::Error) -> StorageError {
        StorageError::failed("read", &self.shown, cause)
    }

    /// What is wrong with the file.
    pub fn refused(&self, what: impl Into<String>) -> StorageError {
        StorageError::BadBackup { file: self.shown.clone(), what: what.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path) -> PathBuf {
        let path = folder.join("backup.tar");
        let text = |length: usize| Content::Text((0..length).map(|place| place as u8).collect());
        let parts = vec![("first".into(), text(700)), ("empty".into(), text(0)), ("last".into(), text(1024))];
        let backup = Backup::new(parts, 1_767_225_600).expect("the names fit");
        let expected = backup.left();
        assert_eq!(backup.write_to(&path).expect("it can be written"), expected);
        path
    }

    /// What is written reads back part by part; a part that is cut off or whose header is damaged is told apart from those before it.
    #[test]
    fn parts_read_back_and_what_is_cut_off_is_known() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let path = write(folder.path());
        let file = BackupFile::open(&path).expect("it opens");
        let names: Vec<(&str, u64)> = file.parts().iter().map(|part| (part.name.as_str(), part.length)).collect();
        assert_eq!((names, file.broken()), (vec![("first", 700), ("empty", 0), ("last", 1024)], None));
        let first = file.part("first").expect("it is there");
        let bytes = file.text(first, 700).expect("it can be read");
        assert_eq!(<[u8; 32]>::from(Sha256::digest(&bytes)), file.sha256(first).expect("it can be read"));
        assert!(file.text(first, 699).is_err());
        let copy = folder.path().join("copy");
        file.extract(first, &copy).expect("it can be written");
        assert_eq!(std::fs::read(&copy).expect("it can be read"), bytes);
        assert!(file.extract(first, &copy).is_err(), "an existing file is not written over");

        let whole = std::fs::read(&path).expect("it can be read");
        std::fs::write(&path, &whole[..whole.len() - 2000]).expect("it can be written");
        let cut = BackupFile::open(&path).expect("it opens");
        assert!(
            cut.part("last").is_none() && cut.broken().is_some_and(|why| why.contains("last")),
            "{:?}",
            cut.broken()
        );
        let mut damaged = whole;
        damaged[512 + 1024 + 3] ^= 1;
        std::fs::write(&path, &damaged).expect("it can be written");
        let damaged = BackupFile::open(&path).expect("it opens");
        assert!(damaged.broken().is_some_and(|why| why.contains("follows first")), "{:?}", damaged.broken());
    }

    /// The newest backups stay, by the time in their names; other files are left alone.
    #[test]
    fn the_oldest_backups_go() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let partial = format!("{}.partial", kept_name(7));
        let names = [kept_name(900), kept_name(1_000), kept_name(20), partial, "codeq-backup-x.tar".into()];
        names.iter().for_each(|name| std::fs::write(folder.path().join(name), b"x").expect("it can be written"));
        trim(folder.path(), 2).expect("they can be removed");
        let times: Vec<u64> = kept(folder.path()).expect("it can be listed").iter().map(|(time, _)| *time).collect();
        assert_eq!(times, [900, 1_000]);
        assert_eq!(std::fs::read_dir(folder.path()).expect("it can be listed").count(), 3);
    }

    /// A backup does not write over another one, and leaves nothing behind when it cannot be written.
    #[test]
    fn a_file_that_is_there_stays() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let path = write(folder.path());
        let again = Backup::new(vec![("other".into(), Content::Text(vec![1]))], 0).expect("the name fits");
        let refused = again.write_to(&path).expect_err("it is refused");
        assert!(refused.to_string().contains("backup.tar"), "{refused}");
        assert_eq!(std::fs::read_dir(folder.path()).expect("it can be listed").count(), 1);
    }
}
