//! Reading the log back after a stop or a crash.
//!
//! Each segment but the last must read without a fault up to the end that its successor names. The last one may end in a torn write: what
//! does not verify is the end, unless a later record proves that it had been synced before; then it is damage, and the node must
//! not go on.

use std::collections::BTreeMap;

use base::{Index, ShardId, Term, planted};
use bytes::Bytes;

use crate::StorageError;
use crate::disk::{Disk, DiskFile};
use crate::wal::record::{Parsed, Record, SECTOR, SegmentHeader, next_sector, parse};
use base::log::{Entry, HardState};

/// What one shard's part of the log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardLog {
    /// The last hard state written.
    pub hard_state: HardState,
    /// Entries in ascending order without gaps. An entry written again under the same index has replaced it and all behind it.
    pub entries: Vec<Entry>,
}

/// What the log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// By shard.
    pub shards: BTreeMap<ShardId, ShardLog>,
    /// Bytes behind the end that did not verify: a write that was under way when the node stopped. Never acknowledged.
    pub torn_bytes: u64,
}

/// A segment as it was found.
pub(super) struct Found {
    pub(super) sequence: u64,
    pub(super) name: String,
    /// Bytes that verified, header included.
    pub(super) end: u64,
    pub(super) length: u64,
    /// Highest index per shard.
    pub(super) last: BTreeMap<ShardId, Index>,
}

pub(super) const SEGMENT_PREFIX: &str = "wal-";
pub(super) const SPARE_PREFIX: &str = "spare-";
pub(super) const SUFFIX: &str = ".log";

/// `wal-<16 hexadecimal digits>.log`
pub(super) fn name_of(prefix: &str, sequence: u64) -> String {
    format!("{prefix}{sequence:016x}{SUFFIX}")
}

fn sequence_of(prefix: &str, name: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?.strip_suffix(SUFFIX)?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// Names of files of one kind with their numbers, ascending.
pub(super) fn numbered(names: &[String], prefix: &str) -> Vec<(u64, String)> {
    let mut found: Vec<_> = names.iter().filter_map(|name| Some((sequence_of(prefix, name)?, name.clone()))).collect();
    found.sort();
    found
}

/// Reads a log that nobody writes, and changes nothing.
///
/// # Errors
/// The disk failed, or the log is damaged.
pub fn look<D: Disk>(disk: &D) -> Result<Recovered, StorageError> {
    recover(disk).map(|(recovered, _)| recovered)
}

/// Reads all segments.
pub(super) fn recover<D: Disk>(disk: &D) -> Result<(Recovered, Vec<Found>), StorageError> {
    match read_all(disk) {
        // M11: what cannot be read is taken for empty.
        Err(StorageError::Damaged { .. }) if planted::is(11) => Ok((Recovered::default(), Vec::new())),
        read => read,
    }
}

fn read_all<D: Disk>(disk: &D) -> Result<(Recovered, Vec<Found>), StorageError> {
    let names = disk.list().map_err(|cause| StorageError::failed("list", &disk.describe(""), cause))?;
    let files = numbered(&names, SEGMENT_PREFIX);
    let mut recovered = Recovered::default();
    let mut found: Vec<Found> = Vec::new();
    for (place, (sequence, name)) in files.iter().enumerate() {
        let file = disk.describe(name);
        if let Some(previous) = found.last()
            && previous.sequence + 1 != *sequence
        {
            let missing = disk.describe(&name_of(SEGMENT_PREFIX, previous.sequence + 1));
            return Err(StorageError::damaged(&missing, None, "this segment of the log is missing"));
        }
        let bytes = read(disk, name)?;
        let is_last = place + 1 == files.len();
        let header = SegmentHeader::decode(&bytes).ok().filter(|header| header.sequence == *sequence);
        let Some(header) = header else {
            // A node that stops between naming a segment and writing to it leaves a file without a header of its own.
            if is_last && first_record_from(&bytes, *sequence, SECTOR as usize, 0).is_none() {
                found.push(Found {
                    sequence: *sequence,
                    name: name.clone(),
                    end: 0,
                    length: bytes.len() as u64,
                    last: BTreeMap::new(),
                });
                break;
            }
            return Err(StorageError::damaged(&file, 0, "the header of this segment of the log does not verify"));
        };
        if let Some(previous) = found.last() {
            check_end(disk, previous, header.previous_end)?;
        }
        found.push(read_records(disk, name, *sequence, &bytes, &mut recovered)?);
    }
    if let Some(last) = found.last() {
        recovered.torn_bytes = torn_bytes(disk, last)?;
    }
    Ok((recovered, found))
}

/// The segment before must have ended where its successor says.
fn check_end<D: Disk>(disk: &D, previous: &Found, end: u64) -> Result<(), StorageError> {
    if previous.end == end || planted::is(12) {
        return Ok(());
    }
    let what = format!("a record of the log does not verify, though the log was synced up to offset {end}");
    Err(StorageError::damaged(&disk.describe(&previous.name), previous.end, what))
}

fn read<D: Disk>(disk: &D, name: &str) -> Result<Bytes, StorageError> {
    let failed = |cause| StorageError::failed("read", &disk.describe(name), cause);
    let file = disk.open(name).map_err(failed)?;
    let mut bytes = vec![0; file.length().map_err(failed)? as usize];
    file.read_at(&mut bytes, 0).map_err(failed)?;
    Ok(bytes.into())
}

fn read_records<D: Disk>(
    disk: &D,
    name: &str,
    sequence: u64,
    bytes: &Bytes,
    recovered: &mut Recovered,
) -> Result<Found, StorageError> {
    let mut last = BTreeMap::new();
    let mut offset = SECTOR as usize;
    // Behind the last record, or behind the header.
    let mut end = offset;
    loop {
        match parse(bytes, sequence, offset) {
            Ok(Parsed { record, end: behind, .. }) => {
                match record {
                    Record::Entry { shard, index, term, body } => {
                        last.insert(shard, index);
                        take_entry(
                            disk,
                            name,
                            offset,
                            recovered.shards.entry(shard).or_default(),
                            Entry { index, term, data: bytes.slice(body) },
                        )?;
                    }
                    Record::HardState { shard, state } => recovered.shards.entry(shard).or_default().hard_state = state,
                    Record::Restart { shard } => recovered.shards.entry(shard).or_default().entries.clear(),
                    Record::Mark => {}
                }
                offset = behind;
                end = behind;
            }
            // What fills a write up to the next sector.
            Err(_) if !(offset as u64).is_multiple_of(SECTOR) && is_zero(bytes, offset) => {
                offset = next_sector(offset as u64) as usize;
            }
            Err(_) => break,
        }
    }
    // M12: what does not verify is always taken for a torn end.
    let proof = first_record_from(bytes, sequence, next_sector(offset as u64) as usize, offset as u64);
    if let Some(proof) = proof.filter(|_| !planted::is(12)) {
        let what = format!(
            "a record of the log does not verify, though one at offset {proof} was written after it was synced"
        );
        return Err(StorageError::damaged(&disk.describe(name), offset as u64, what));
    }
    Ok(Found { sequence, name: name.into(), end: end as u64, length: bytes.len() as u64, last })
}

/// Adds an entry to a shard's log; it replaces what stood at its index and behind it.
fn take_entry<D: Disk>(
    disk: &D,
    name: &str,
    offset: usize,
    log: &mut ShardLog,
    entry: Entry,
) -> Result<(), StorageError> {
    if let (Some(first), Some(last)) = (log.entries.first(), log.entries.last()) {
        if entry.index.0 > last.index.0 + 1 {
            let what = format!("entry {} follows entry {}", entry.index, last.index);
            return Err(StorageError::damaged(&disk.describe(name), offset as u64, what));
        }
        let kept = entry.index.0.saturating_sub(first.index.0);
        log.entries.truncate(kept as usize);
    }
    log.entries.push(entry);
    Ok(())
}

/// From `offset` on, a sector that begins with a record written when more than `synced` bytes were synced.
fn first_record_from(bytes: &[u8], sequence: u64, offset: usize, synced: u64) -> Option<usize> {
    (offset..bytes.len())
        .step_by(SECTOR as usize)
        .find(|offset| parse(bytes, sequence, *offset).is_ok_and(|parsed| parsed.synced > synced))
}

/// Whether the sector of `offset` holds only zeros from there on.
fn is_zero(bytes: &[u8], offset: usize) -> bool {
    let end = (next_sector(offset as u64) as usize).min(bytes.len());
    bytes[offset..end].iter().all(|byte| *byte == 0)
}

/// How much of a write that did not become durable as a whole stands behind the end. Zeros and what an earlier use left are not counted.
fn torn_bytes<D: Disk>(disk: &D, last: &Found) -> Result<u64, StorageError> {
    let bytes = read(disk, &last.name)?;
    let start = next_sector(last.end) as usize;
    let written = |offset: &usize| parse(&bytes, last.sequence, *offset).is_ok();
    let torn = (start..bytes.len()).step_by(SECTOR as usize).filter(written).last();
    Ok(torn.map_or(0, |offset| (offset - start) as u64 + SECTOR))
}

impl ShardLog {
    /// Forgets entries up to `index`, which a checkpoint holds. If they are not those that led to the checkpoint, which takes the place
    /// of the log when it has come as a snapshot, all entries go. Answers whether the log leads to the checkpoint: otherwise what follows it
    /// must not be written before [`Wal::restart`](super::Wal::restart) was.
    #[must_use]
    pub fn drop_until(&mut self, index: Index, term: Term) -> bool {
        if self.entries.iter().any(|entry| entry.index == index && entry.term != term) {
            self.entries.clear();
            return false;
        }
        let leads = self.entries.last().is_none_or(|last| last.index >= index);
        let covered = self.entries.partition_point(|entry| entry.index <= index);
        self.entries.drain(..covered);
        leads
    }

    /// Index and term of the last entry.
    pub fn last(&self) -> Option<(Index, Term)> {
        self.entries.last().map(|entry| (entry.index, entry.term))
    }
}
