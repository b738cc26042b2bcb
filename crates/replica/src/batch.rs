//! Entries: what queued up while the previous sync was under way goes into one. No timer decides.
//!
//! ```text
//! entry   kind (1 byte: operations), term (8), lease stamp (8), schedule stamp (8), seed (16), then the operations
//! operation   length (varint), bytes
//! ```

use std::collections::VecDeque;

use base::codec::{Malformed, Reader, Write};
use base::machine::{EntryInfo, WaitKey};
use base::{Index, LeaseTime, Mono, ScheduleTime, Stamps, Term};
use consensus::codec::OPERATIONS;

/// Operations of one request, encoded: they enter one entry together.
#[derive(Clone, Debug, Default)]
pub struct Operations {
    bytes: Vec<u8>,
    count: usize,
}

impl Operations {
    /// None yet, with room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Operations {
        Operations { bytes: Vec::with_capacity(bytes), count: 0 }
    }

    /// Adds an operation whose bytes `encode` appends.
    pub fn push(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        // Most operations are shorter than 128 bytes, so that their length takes the one byte that is kept free for it.
        let start = self.bytes.len();
        self.bytes.push(0);
        encode(&mut self.bytes);
        let length = self.bytes.len() - start - 1;
        self.count += 1;
        if length < 0x80 {
            self.bytes[start] = length as u8;
        } else {
            let mut prefix = Vec::new();
            prefix.put_varint(length as u64);
            self.bytes.splice(start..=start, prefix);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Their size in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Appends their bytes, for another node.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_varint(self.count as u64);
        bytes.put_bytes(&self.bytes);
    }

    /// Reads what [`Operations::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Operations, Malformed> {
        let count = reader.narrow()?;
        let bytes = reader.bytes()?.to_vec();
        let mut found = 0;
        for operation in operations(&bytes) {
            operation?;
            found += 1;
        }
        if found != count {
            return Err(Malformed);
        }
        Ok(Operations { bytes, count })
    }

    /// The operations in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        operations(&self.bytes).map(|operation| operation.expect("they were encoded by this type"))
    }
}

/// The operations that `bytes` consist of.
pub(crate) fn operations(bytes: &[u8]) -> impl Iterator<Item = Result<&[u8], Malformed>> {
    let mut reader = Reader::new(bytes);
    std::iter::from_fn(move || (!reader.is_empty()).then(|| reader.bytes()))
}

/// A request that waits for its entry to be applied.
pub(crate) struct Pending<C> {
    /// Nobody: the replica proposed it itself.
    pub(crate) client: Option<C>,
    /// How many operations it has.
    pub(crate) count: usize,
    /// If it may go on waiting when it finds nothing.
    pub(crate) retry: Option<Retry>,
}

/// What a request needs to try again.
pub(crate) struct Retry {
    pub(crate) operations: Operations,
    pub(crate) wait: u64,
    pub(crate) deadline: Mono,
    /// Its rank among the waiting requests, which it keeps.
    pub(crate) rank: u64,
    /// The key by which it was woken.
    pub(crate) woken_by: Option<WaitKey>,
}

/// Requests that wait to become part of an entry.
pub(crate) struct Batch<C> {
    waiting: VecDeque<(Operations, Pending<C>)>,
    operations: usize,
    bytes: usize,
}

/// An entry, formed.
pub(crate) struct Formed<C> {
    pub(crate) data: Vec<u8>,
    pub(crate) requests: Vec<Pending<C>>,
}

impl<C> Batch<C> {
    pub(crate) fn new() -> Batch<C> {
        Batch { waiting: VecDeque::new(), operations: 0, bytes: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn operations(&self) -> usize {
        self.operations
    }

    pub(crate) fn push(&mut self, operations: Operations, pending: Pending<C>) {
        self.operations += operations.len();
        self.bytes += operations.size();
        self.waiting.push_back((operations, pending));
    }

    /// Takes requests up to the limits of an entry. A single larger one travels alone.
    pub(crate) fn form(&mut self, header: &EntryInfo, operations_max: usize, bytes_max: usize) -> Formed<C> {
        let mut data = Vec::with_capacity(HEADER + self.bytes.min(bytes_max));
        put_header(header, &mut data);
        let mut requests = Vec::new();
        let (mut operations, mut bytes) = (0, 0);
        while let Some((next, _)) = self.waiting.front() {
            if operations > 0 && (operations + next.len() > operations_max || bytes + next.size() > bytes_max) {
                break;
            }
            let (taken, mut pending) = self.waiting.pop_front().expect("it was looked at");
            operations += taken.len();
            bytes += taken.size();
            data.extend_from_slice(&taken.bytes);
            if let Some(retry) = &mut pending.retry {
                retry.operations = taken;
            }
            requests.push(pending);
        }
        self.operations -= operations;
        self.bytes -= bytes;
        Formed { data, requests }
    }

    /// Gives up all requests.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Pending<C>> {
        self.operations = 0;
        self.bytes = 0;
        std::mem::take(&mut self.waiting).into_iter().map(|(_, pending)| pending)
    }
}

/// What an entry says about the state machine's operations: its header and their bytes. Nothing: it is of another kind.
///
/// # Errors
/// The bytes are none that a leader proposes.
pub fn entry_operations(entry: &base::log::Entry) -> Result<Option<(EntryInfo, Vec<&[u8]>)>, Malformed> {
    if entry.data.first() != Some(&OPERATIONS) {
        return Ok(None);
    }
    let (header, rest) = read_entry(entry.index, &entry.data)?;
    Ok(Some((header, operations(rest).collect::<Result<_, _>>()?)))
}

/// Size of an entry without operations.
pub(crate) const HEADER: usize = 1 + 8 + 8 + 8 + 16;

/// Begins an entry.
pub(crate) fn put_header(header: &EntryInfo, data: &mut Vec<u8>) {
    data.put_u8(OPERATIONS);
    data.put_u64(header.term.0);
    data.put_u64(header.stamps.lease.0);
    data.put_u64(header.stamps.schedule.0);
    data.extend_from_slice(&header.seed);
}

/// Reads an entry: its header, and the bytes of its operations.
pub(crate) fn read_entry(index: Index, data: &[u8]) -> Result<(EntryInfo, &[u8]), Malformed> {
    let mut reader = Reader::new(data);
    if reader.u8()? != OPERATIONS {
        return Err(Malformed);
    }
    let term = Term(reader.u64()?);
    let stamps = Stamps { lease: LeaseTime(reader.u64()?), schedule: ScheduleTime(reader.u64()?) };
    let seed = reader.array()?;
    Ok((EntryInfo { term, index, stamps, seed }, reader.rest()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(sizes: &[usize]) -> (Operations, Pending<u8>) {
        let mut operations = Operations::default();
        for size in sizes {
            operations.push(|bytes| bytes.extend(std::iter::repeat_n(7, *size)));
        }
        let count = operations.len();
        (operations, Pending { client: Some(0), count, retry: None })
    }

    #[test]
    fn operations_of_every_length_read_back() {
        let sizes = [0, 1, 127, 128, 129, 20_000];
        let (operations, _) = request(&sizes);
        assert_eq!(operations.iter().map(<[u8]>::len).collect::<Vec<_>>(), sizes);
        assert_eq!(operations.len(), sizes.len());
    }

    #[test]
    fn an_entry_takes_whole_requests_up_to_its_limits() {
        let header = EntryInfo { term: Term(3), index: Index(9), stamps: Stamps::default(), seed: [5; 16] };
        let mut batch = Batch::new();
        for sizes in [&[1, 1][..], &[1], &[1, 1], &[5000], &[1]] {
            let (operations, pending) = request(sizes);
            batch.push(operations, pending);
        }
        let counts: Vec<Vec<usize>> = (0..4)
            .map(|_| {
                let formed = batch.form(&header, 3, 1000);
                let (read, rest) = read_entry(Index(9), &formed.data).expect("it was formed here");
                assert_eq!((read.term, read.seed), (Term(3), [5; 16]));
                let all: usize = formed.requests.iter().map(|request| request.count).sum();
                assert_eq!(operations(rest).filter(Result::is_ok).count(), all);
                formed.requests.iter().map(|request| request.count).collect()
            })
            .collect();
        // The request larger than any entry travels alone.
        assert_eq!(counts, [vec![2, 1], vec![2], vec![1], vec![1]]);
        assert!(batch.is_empty());
        assert_eq!((batch.operations, batch.bytes), (0, 0));
    }

    #[test]
    fn other_bytes_are_no_entry() {
        assert!(read_entry(Index(1), &[]).is_err());
        assert!(read_entry(Index(1), &[2; HEADER]).is_err());
        assert!(read_entry(Index(1), &[OPERATIONS; HEADER - 1]).is_err());
        assert!(operations(&[5, 1]).any(|operation| operation.is_err()));
    }
}
