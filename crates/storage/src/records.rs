//! The last so many records of a kind, for people: what a node has seen, kept over restarts.
//!
//! ```text
//! record   length (4), CRC-32C of the bytes (4), bytes
//! ```
//!
//! All numbers are little-endian. Records are appended; when there are enough of them, the file becomes `<name>.before`, in the place of
//! the one that was, and another one begins. Nothing is synced and nothing depends on it: a loss of power loses the last ones, and a file
//! that ends in the middle of a record, or is damaged, is read up to there.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base::checksum::crc32c;
use base::codec::{Reader, Write as _};

use crate::StorageError;

/// A record of more bytes is damage.
const RECORD_BYTES_MAX: usize = 64 << 10;

/// A file of records.
#[derive(Debug)]
pub struct RecordFile {
    path: PathBuf,
    file: File,
    /// Records in it.
    count: usize,
    /// Records after which another file is begun.
    max: usize,
}

impl RecordFile {
    /// Opens the file, or makes it. Returns with it the last records, at most `max`, the oldest first.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn open(path: &Path, max: usize) -> Result<(RecordFile, Vec<Vec<u8>>), StorageError> {
        let (mut records, _) = read(&before(path))?;
        let (newer, whole) = read(path)?;
        let count = newer.len();
        records.extend(newer);
        records.drain(..records.len().saturating_sub(max));
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        let file = file.map_err(|cause| failed("open", path, cause))?;
        // Nothing is read behind a torn end, so nothing is written there.
        file.set_len(whole).map_err(|cause| failed("cut", path, cause))?;
        Ok((RecordFile { path: path.into(), file, count, max }, records))
    }

    /// Appends records.
    ///
    /// # Errors
    /// They could not be written, or only some of them.
    pub fn append(&mut self, records: &[Vec<u8>]) -> Result<(), StorageError> {
        let mut bytes = Vec::new();
        for record in records {
            bytes.put_u32(record.len() as u32);
            bytes.put_u32(crc32c(0, record));
            bytes.extend_from_slice(record);
        }
        self.file.write_all(&bytes).map_err(|cause| failed("write", &self.path, cause))?;
        self.count += records.len();
        if self.count >= self.max {
            std::fs::rename(&self.path, before(&self.path)).map_err(|cause| failed("rename", &self.path, cause))?;
            let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path);
            self.file = file.map_err(|cause| failed("make", &self.path, cause))?;
            self.count = 0;
        }
        Ok(())
    }
}

fn before(path: &Path) -> PathBuf {
    path.with_extension("before")
}

fn failed(doing: &'static str, path: &Path, cause: std::io::Error) -> StorageError {
    StorageError::failed(doing, &path.display().to_string(), cause)
}

/// The records of a file, and how many bytes they take.
fn read(path: &Path) -> Result<(Vec<Vec<u8>>, u64), StorageError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(cause) => return Err(failed("read", path, cause)),
    };
    let (mut records, mut whole) = (Vec::new(), 0);
    while let Some(record) = first(&bytes[whole..]) {
        whole += 8 + record.len();
        records.push(record.to_vec());
    }
    Ok((records, whole as u64))
}

fn first(bytes: &[u8]) -> Option<&[u8]> {
    let mut reader = Reader::new(bytes);
    let (length, checksum) = (reader.u32().ok()? as usize, reader.u32().ok()?);
    let record = reader.rest().get(..length).filter(|_| length <= RECORD_BYTES_MAX)?;
    (crc32c(0, record) == checksum).then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(range: std::ops::Range<u8>) -> Vec<Vec<u8>> {
        range.map(|number| vec![number; 3]).collect()
    }

    /// Goal: the last records are there after a restart, no more than asked for, and the files do not grow beyond twice that.
    #[test]
    fn the_last_records_are_kept() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let path = folder.path().join("events");
        let (mut file, records) = RecordFile::open(&path, 4).expect("it is made");
        assert!(records.is_empty());
        for number in 0..11 {
            file.append(&numbers(number..number + 1)).expect("it is written");
        }
        let (_, records) = RecordFile::open(&path, 4).expect("it is there");
        assert_eq!(records, numbers(7..11));
        let bytes = std::fs::metadata(&path).expect("it is there").len();
        assert_eq!(bytes, 3 * 11, "three records of eleven bytes");
    }

    /// Goal: a file that ends in the middle of a record is read up to there, and goes on from there.
    #[test]
    fn a_torn_end_is_cut() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let path = folder.path().join("events");
        let (mut file, _) = RecordFile::open(&path, 100).expect("it is made");
        file.append(&numbers(0..3)).expect("it is written");
        let whole = std::fs::read(&path).expect("it is there");
        for length in 22..33 {
            std::fs::write(&path, &whole[..length]).expect("it is written");
            let (mut file, records) = RecordFile::open(&path, 100).expect("it is there");
            assert_eq!(records, numbers(0..2));
            file.append(&numbers(9..10)).expect("it is written");
            let (_, records) = RecordFile::open(&path, 100).expect("it is there");
            assert_eq!(records, [numbers(0..2), numbers(9..10)].concat());
        }
    }
}
