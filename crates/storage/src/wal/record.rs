//! The bytes of the log.
//!
//! ```text
//! segment header, at offset 0, one sector
//!    0   8  magic "codeqwal"
//!    8   4  format version, 1
//!   12   8  sequence number of the segment, from 1
//!   20   8  end of the segment before it, in bytes; 0 in the first one
//!   28   4  CRC-32C of the 28 bytes above
//!
//! record, anywhere after the header; the first of a write begins a sector, and a write is filled up with zeros to the next sector
//!    0   2  magic 0xC0DE
//!    2   1  kind: 1 entry, 2 hard state, 3 mark, 4 restart
//!    3   1  0
//!    4   2  shard
//!    6   4  length of the body
//!   10   4  sectors of this segment known to be synced when the record was written
//!   14   8  index of the entry (entry), commit index (hard state), last index covered (restart)
//!   22   8  term
//!   30   4  CRC-32C of the segment's sequence number, the 30 bytes above, and the body
//!   34      body: the entry's bytes (entry), the vote (hard state, 8 bytes), nothing (mark, restart)
//! ```
//!
//! All numbers are little-endian.

use base::checksum::crc32c;
use base::codec::{Malformed, Reader, Write};
use base::log::{Entry, HardState};
use base::{Index, ShardId, Term};

/// Writes begin at multiples of this. No disk tears what is smaller.
pub(super) const SECTOR: u64 = 512;

/// Size of a record before its body.
pub(super) const RECORD_HEADER: usize = 34;

const SEGMENT_MAGIC: &[u8; 8] = b"codeqwal";
const SEGMENT_VERSION: u32 = 1;
const SEGMENT_HEADER: usize = 32;
const RECORD_MAGIC: u16 = 0xC0DE;
const ENTRY: u8 = 1;
const HARD_STATE: u8 = 2;
const MARK: u8 = 3;
const RESTART: u8 = 4;

/// What a segment header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) sequence: u64,
    pub(super) previous_end: u64,
}

impl SegmentHeader {
    /// One sector.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SECTOR as usize);
        bytes.extend_from_slice(SEGMENT_MAGIC);
        bytes.put_u32(SEGMENT_VERSION);
        bytes.put_u64(self.sequence);
        bytes.put_u64(self.previous_end);
        bytes.put_u32(crc32c(0, &bytes));
        bytes.resize(SECTOR as usize, 0);
        bytes
    }

    pub(super) fn decode(sector: &[u8]) -> Result<SegmentHeader, Malformed> {
        let (fields, _) = sector.split_at_checked(SEGMENT_HEADER).ok_or(Malformed)?;
        let mut reader = Reader::new(fields);
        if reader.array()? != *SEGMENT_MAGIC || reader.u32()? != SEGMENT_VERSION {
            return Err(Malformed);
        }
        let header = SegmentHeader { sequence: reader.u64()?, previous_end: reader.u64()? };
        if reader.u32()? != crc32c(0, &fields[..SEGMENT_HEADER - 4]) {
            return Err(Malformed);
        }
        Ok(header)
    }
}

/// One record, decoded; its body is a range of the segment it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Entry {
        shard: ShardId,
        index: Index,
        term: Term,
        body: std::ops::Range<usize>,
    },
    HardState {
        shard: ShardId,
        state: HardState,
    },
    Mark,
    /// A snapshot has taken the place of the shard's log: entries behind its index follow.
    Restart {
        shard: ShardId,
    },
}

/// What [`parse`] found.
pub(super) struct Parsed {
    pub(super) record: Record,
    /// Offset behind the record.
    pub(super) end: usize,
    /// Bytes of the segment that were synced when the record was written.
    pub(super) synced: u64,
}

pub(super) fn put_entry(bytes: &mut Vec<u8>, sequence: u64, synced: u64, shard: ShardId, entry: &Entry) {
    put(bytes, sequence, synced, ENTRY, shard, entry.index.0, entry.term, &entry.data);
}

pub(super) fn put_hard_state(bytes: &mut Vec<u8>, sequence: u64, synced: u64, shard: ShardId, state: &HardState) {
    put(bytes, sequence, synced, HARD_STATE, shard, state.commit.0, state.term, &state.vote.to_le_bytes());
}

pub(super) fn put_restart(bytes: &mut Vec<u8>, sequence: u64, synced: u64, shard: ShardId, index: Index, term: Term) {
    put(bytes, sequence, synced, RESTART, shard, index.0, term, &[]);
}

pub(super) fn put_mark(bytes: &mut Vec<u8>, sequence: u64, synced: u64) {
    put(bytes, sequence, synced, MARK, ShardId(0), 0, Term(0), &[]);
}

#[expect(clippy::too_many_arguments, reason = "the fields of a record in their order")]
fn put(bytes: &mut Vec<u8>, sequence: u64, synced: u64, kind: u8, shard: ShardId, index: u64, term: Term, body: &[u8]) {
    let start = bytes.len();
    bytes.put_u16(RECORD_MAGIC);
    bytes.put_u8(kind);
    bytes.put_u8(0);
    bytes.put_u16(shard.0);
    bytes.put_u32(u32::try_from(body.len()).expect("entries are far smaller than 4 GiB"));
    bytes.put_u32((synced / SECTOR) as u32);
    bytes.put_u64(index);
    bytes.put_u64(term.0);
    let checksum = checksum(sequence, &bytes[start..], body);
    bytes.put_u32(checksum);
    bytes.extend_from_slice(body);
}

fn checksum(sequence: u64, header: &[u8], body: &[u8]) -> u32 {
    crc32c(crc32c(crc32c(0, &sequence.to_le_bytes()), header), body)
}

/// Reads the record at `offset` of a segment. `Malformed`: there is none that belongs to this use of the segment.
pub(super) fn parse(segment: &[u8], sequence: u64, offset: usize) -> Result<Parsed, Malformed> {
    let mut reader = Reader::new(segment.get(offset..).ok_or(Malformed)?);
    if reader.u16()? != RECORD_MAGIC {
        return Err(Malformed);
    }
    let kind = reader.u8()?;
    let reserved = reader.u8()?;
    let shard = ShardId(reader.u16()?);
    let length = reader.u32()? as usize;
    let synced = u64::from(reader.u32()?) * SECTOR;
    let index = reader.u64()?;
    let term = Term(reader.u64()?);
    let expected = reader.u32()?;
    let body = reader.take(length)?;
    if reserved != 0 || checksum(sequence, &segment[offset..offset + RECORD_HEADER - 4], body) != expected {
        return Err(Malformed);
    }
    let start = offset + RECORD_HEADER;
    let end = start + length;
    let record = match kind {
        ENTRY => Record::Entry { shard, index: Index(index), term, body: start..end },
        HARD_STATE => {
            let vote = u64::from_le_bytes(body.try_into().map_err(|_| Malformed)?);
            Record::HardState { shard, state: HardState { term, vote, commit: Index(index) } }
        }
        MARK => Record::Mark,
        RESTART => Record::Restart { shard },
        _ => return Err(Malformed),
    };
    Ok(Parsed { record, end, synced })
}

/// The next sector boundary at or behind `offset`.
pub(super) fn next_sector(offset: u64) -> u64 {
    offset.next_multiple_of(SECTOR)
}
