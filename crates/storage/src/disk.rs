//! The few things the log asks of a disk, so that a simulator can stand in for it.
//!
//! What is written may be lost until it is synced, in part and in any order. A new, renamed or removed name may be forgotten until its
//! directory is synced. Paths are relative to the disk's root and have no folders.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// A directory on some disk.
pub trait Disk: Clone + Send + 'static {
    /// An open file.
    type File: DiskFile;

    /// The names in the directory, sorted.
    ///
    /// # Errors
    /// As the operating system says; so for all methods.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens a file that exists.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Makes a file that does not exist.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Gives a file another name; the name must be free.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a name.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names durable.
    fn sync_names(&self) -> io::Result<()>;
    /// How the directory is called in messages.
    fn describe(&self, name: &str) -> String;
}

/// An open file.
pub trait DiskFile: Send + 'static {
    /// Its length in bytes.
    ///
    /// # Errors
    /// As the operating system says; so for all methods.
    fn length(&self) -> io::Result<u64>;
    /// Reads exactly that many bytes.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all bytes; the file grows if it must.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes what has been written durable.
    fn sync(&self) -> io::Result<()>;
}

/// A directory of the operating system.
#[derive(Clone, Debug)]
pub struct RealDisk(PathBuf);

impl RealDisk {
    /// The directory at `path`, which must exist.
    pub fn new(path: impl Into<PathBuf>) -> RealDisk {
        RealDisk(path.into())
    }
}

impl Disk for RealDisk {
    type File = File;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.0.join(name))
    }

    fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(self.0.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.0.join(from), self.0.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.0.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.0)?.sync_all()
    }

    fn describe(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// A directory in memory, for a server that keeps nothing on disk. Nothing is ever lost, and nothing survives the process.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<BTreeMap<String, MemoryFile>>>);

/// A file of a [`MemoryDisk`].
#[derive(Clone, Debug, Default)]
pub struct MemoryFile(Arc<Mutex<Vec<u8>>>);

const NEVER_POISONED: &str = "nothing panics while it holds this lock";

impl Disk for MemoryDisk {
    type File = MemoryFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().expect(NEVER_POISONED).keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<MemoryFile> {
        self.0.lock().expect(NEVER_POISONED).get(name).cloned().ok_or(io::ErrorKind::NotFound.into())
    }

    fn create(&self, name: &str) -> io::Result<MemoryFile> {
        let file = MemoryFile::default();
        self.0.lock().expect(NEVER_POISONED).insert(name.into(), file.clone());
        Ok(file)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut names = self.0.lock().expect(NEVER_POISONED);
        let file = names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        names.insert(to.into(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().expect(NEVER_POISONED).remove(name).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }

    fn describe(&self, name: &str) -> String {
        format!("{name} in memory")
    }
}

impl DiskFile for MemoryFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.0.lock().expect(NEVER_POISONED).len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = self.0.lock().expect(NEVER_POISONED);
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let from = start.checked_add(buffer.len()).and_then(|end| bytes.get(start..end));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut file = self.0.lock().expect(NEVER_POISONED);
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let end = start + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
