//! Appending to the log: everything that has gathered goes out in one write and one sync.

use std::collections::BTreeMap;

use base::{Index, ShardId, Term, planted};

use crate::StorageError;
use crate::disk::{Disk, DiskFile};
use crate::wal::record::{
    RECORD_HEADER, SECTOR, SegmentHeader, next_sector, put_entry, put_hard_state, put_mark, put_restart,
};
use crate::wal::recover::{Found, Recovered, SEGMENT_PREFIX, SPARE_PREFIX, name_of, numbered, recover};
use base::log::{Entry, HardState};

/// How the log is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Size of a segment, 1 MiB to 1 GiB; a single larger write gets a segment of its own.
    pub segment_bytes: u64,
}

const HARD_STATE_BYTES: u64 = RECORD_HEADER as u64 + 8;

/// Spare files kept for later segments; more are removed.
const SPARES_MAX: usize = 2;

/// What the log has done since it was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct WalStats {
    /// Syncs of segments.
    pub syncs: u64,
    /// Bytes written, filling included.
    pub bytes: u64,
    /// Bytes of all segments on disk.
    pub size: u64,
}

/// A segment that is in use.
struct Segment {
    sequence: u64,
    name: String,
    length: u64,
    /// Highest index per shard.
    last: BTreeMap<ShardId, Index>,
}

/// A file that can become a segment: pre-zeroed, or used before.
#[derive(Debug)]
pub struct Spare {
    name: String,
    length: u64,
}

/// Makes a spare file; takes as long as writing a segment does, so it runs beside the writer.
#[derive(Debug)]
pub struct SpareJob<D: Disk> {
    disk: D,
    name: String,
    length: u64,
}

/// A record that is not written yet: its checksum covers where it will stand.
enum Waiting {
    Entry(ShardId, Entry),
    HardState(ShardId, HardState),
    Mark,
    Restart(ShardId, Index, Term),
}

/// The write-ahead log of a node. See the module's documentation.
pub struct Wal<D: Disk> {
    disk: D,
    options: Options,
    segments: Vec<Segment>,
    file: D::File,
    /// Where the next write begins.
    end: u64,
    /// Where the last record ended.
    record_end: u64,
    /// Bytes of the last segment known to be synced.
    synced: u64,
    /// The last mark says less than `synced`.
    mark_due: bool,
    spares: Vec<Spare>,
    spare_pending: bool,
    next_spare: u64,
    hard_states: BTreeMap<ShardId, HardState>,
    /// What the next write holds.
    waiting: Vec<Waiting>,
    /// Bytes of `waiting`.
    waiting_bytes: u64,
    buffer: Vec<u8>,
    stats: WalStats,
    failed: bool,
}

impl<D: Disk> Wal<D> {
    /// Opens the log, or begins one. Every opening begins a new segment, so that nothing is written behind a torn tail.
    ///
    /// # Errors
    /// The disk failed, or the log is damaged.
    pub fn open(disk: D, options: Options) -> Result<(Wal<D>, Recovered), StorageError> {
        let (recovered, mut found) = recover(&disk)?;
        let names = disk.list().map_err(|cause| StorageError::failed("list", &disk.describe(""), cause))?;
        let mut spares = Vec::new();
        let mut next_spare = 0;
        for (number, name) in numbered(&names, SPARE_PREFIX) {
            next_spare = number + 1;
            let length = disk.open(&name).and_then(|file| file.length());
            let length = length.map_err(|cause| StorageError::failed("open", &disk.describe(&name), cause))?;
            if length < options.segment_bytes {
                // Left by a stop while it was made, or by a smaller setting; it never held anything that counts.
                disk.remove(&name).map_err(|cause| StorageError::failed("remove", &disk.describe(&name), cause))?;
            } else {
                spares.push(Spare { name, length });
            }
        }
        // The file of a segment that was named and never written to is used again under the same name.
        let unused = found.pop_if(|last| last.end == 0);
        let sequence = found.last().map_or(1, |last| last.sequence + 1);
        let previous_end = found.last().map_or(0, |last| last.end);
        if let Some(unused) = unused {
            let spare = name_of(SPARE_PREFIX, next_spare);
            next_spare += 1;
            disk.rename(&unused.name, &spare)
                .map_err(|cause| StorageError::failed("rename", &disk.describe(&unused.name), cause))?;
            spares.push(Spare { name: spare, length: unused.length });
        }
        // What was read may stand in the operating system's memory only: the process that wrote it died before its sync.
        if let Some(last) = found.last() {
            let synced = disk.open(&last.name).and_then(|file| file.sync());
            synced.map_err(|cause| StorageError::failed("sync", &disk.describe(&last.name), cause))?;
        }
        let hard_states = recovered.shards.iter().map(|(shard, log)| (*shard, log.hard_state)).collect();
        let segments: Vec<Segment> = found.into_iter().map(Segment::from).collect();
        let (segment, file) =
            begin_segment(&disk, &mut spares, &mut next_spare, options.segment_bytes, sequence, previous_end)?;
        let mut wal = Wal {
            disk,
            options,
            segments,
            file,
            end: SECTOR,
            record_end: SECTOR,
            synced: SECTOR,
            mark_due: false,
            spares,
            spare_pending: false,
            next_spare,
            hard_states,
            waiting: Vec::new(),
            waiting_bytes: 0,
            buffer: Vec::new(),
            stats: WalStats::default(),
            failed: false,
        };
        wal.segments.push(segment);
        wal.waiting.extend(wal.all_hard_states());
        wal.flush(true)?;
        Ok((wal, recovered))
    }

    /// Adds an entry to what the next [`Wal::flush`] writes.
    pub fn append(&mut self, shard: ShardId, entry: Entry) {
        self.waiting_bytes += (RECORD_HEADER + entry.data.len()) as u64;
        self.waiting.push(Waiting::Entry(shard, entry));
    }

    /// Adds a hard state to what the next [`Wal::flush`] writes.
    pub fn append_hard_state(&mut self, shard: ShardId, state: HardState) {
        self.waiting_bytes += HARD_STATE_BYTES;
        self.waiting.push(Waiting::HardState(shard, state));
    }

    /// Adds, to what the next [`Wal::flush`] writes, that a snapshot up to this entry has taken the place of the shard's log.
    pub fn restart(&mut self, shard: ShardId, index: Index, term: Term) {
        self.waiting_bytes += RECORD_HEADER as u64;
        self.waiting.push(Waiting::Restart(shard, index, term));
    }

    /// Writes what was appended, and makes it durable if `sync`. Without `sync` it is durable after the next [`Wal::flush`] that syncs.
    ///
    /// # Errors
    /// The disk failed. From then on every call fails: what has become of the bytes is not known, so nothing may follow them.
    pub fn flush(&mut self, sync: bool) -> Result<(), StorageError> {
        if self.failed {
            let cause = std::io::Error::other("an earlier write or sync failed");
            return Err(StorageError::failed("write", &self.describe(), cause));
        }
        let written = self.try_flush(sync);
        self.failed = written.is_err();
        written
    }

    fn try_flush(&mut self, sync: bool) -> Result<(), StorageError> {
        if !self.waiting.is_empty() {
            if self.end + next_sector(self.waiting_bytes) > self.segment().length {
                self.roll()?;
            }
            self.encode_waiting();
            self.record_end = self.end + self.buffer.len() as u64;
            self.buffer.resize(next_sector(self.buffer.len() as u64) as usize, 0);
            self.file
                .write_at(&self.buffer, self.end)
                .map_err(|cause| StorageError::failed("write", &self.describe(), cause))?;
            self.end += self.buffer.len() as u64;
            self.stats.bytes += self.buffer.len() as u64;
        }
        if sync { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        if self.synced < self.end {
            // M01: nothing is synced. M03: a failure is passed over.
            let synced = if planted::is(1) { Ok(()) } else { self.file.sync() };
            if !planted::is(3) {
                synced.map_err(|cause| StorageError::failed("sync", &self.describe(), cause))?;
            }
            self.stats.syncs += 1;
            self.synced = self.end;
            self.mark_due = true;
        }
        Ok(())
    }

    fn encode_waiting(&mut self) {
        let (sequence, synced) = (self.sequence(), self.synced);
        self.buffer.clear();
        self.waiting_bytes = 0;
        let segment = self.segments.last_mut().expect("the log has a segment from its opening on");
        for record in self.waiting.drain(..) {
            match record {
                Waiting::Entry(shard, entry) => {
                    segment.last.insert(shard, entry.index);
                    put_entry(&mut self.buffer, sequence, synced, shard, &entry);
                }
                Waiting::HardState(shard, state) => {
                    self.hard_states.insert(shard, state);
                    put_hard_state(&mut self.buffer, sequence, synced, shard, &state);
                }
                Waiting::Restart(shard, index, term) => {
                    segment.last.insert(shard, index);
                    put_restart(&mut self.buffer, sequence, synced, shard, index, term);
                }
                Waiting::Mark => put_mark(&mut self.buffer, sequence, synced),
            }
        }
    }

    /// When nothing is to be written for a while: notes in the log how far it is synced, so that later damage of the last write is known
    /// for what it is. Every record says so; where none waits, a mark does. It needs no sync.
    ///
    /// # Errors
    /// The disk failed.
    pub fn settle(&mut self) -> Result<(), StorageError> {
        if self.mark_due {
            if self.waiting.is_empty() {
                self.waiting_bytes += RECORD_HEADER as u64;
                self.waiting.push(Waiting::Mark);
            }
            self.flush(false)?;
            self.mark_due = false;
        }
        Ok(())
    }

    /// Closes the last segment and begins another one with room for what waits.
    fn roll(&mut self) -> Result<(), StorageError> {
        // What has been written without a sync must not become durable after what follows.
        self.sync()?;
        let states = self.all_hard_states();
        self.waiting_bytes += states.len() as u64 * HARD_STATE_BYTES;
        self.waiting.splice(0..0, states);
        let length = self.options.segment_bytes.max(SECTOR + next_sector(self.waiting_bytes));
        let sequence = self.sequence() + 1;
        let (segment, file) =
            begin_segment(&self.disk, &mut self.spares, &mut self.next_spare, length, sequence, self.record_end)?;
        self.segments.push(segment);
        self.file = file;
        self.end = SECTOR;
        self.record_end = SECTOR;
        self.synced = SECTOR;
        self.mark_due = false;
        Ok(())
    }

    /// As the first records of a segment, so that older ones can go.
    fn all_hard_states(&self) -> Vec<Waiting> {
        self.hard_states.iter().map(|(shard, state)| Waiting::HardState(*shard, *state)).collect()
    }

    /// Frees segments whose entries are all held by checkpoints: of each shard, everything up to `kept_from`, exclusive.
    ///
    /// # Errors
    /// The disk failed.
    pub fn release(&mut self, kept_from: &BTreeMap<ShardId, Index>) -> Result<(), StorageError> {
        let covered = |segment: &Segment| {
            segment.last.iter().all(|(shard, last)| kept_from.get(shard).is_some_and(|kept| last < kept))
        };
        let free = self.segments.iter().take(self.segments.len() - 1).take_while(|segment| covered(segment)).count();
        if free == 0 {
            return Ok(());
        }
        // The hard states that the last one begins with take the place of those that go.
        if self.synced == SECTOR {
            self.flush(true)?;
        }
        for segment in self.segments.drain(..free) {
            let failed = |cause| StorageError::failed("recycle", &self.disk.describe(&segment.name), cause);
            if self.spares.len() < SPARES_MAX && segment.length == self.options.segment_bytes {
                let name = name_of(SPARE_PREFIX, self.next_spare);
                self.next_spare += 1;
                self.disk.rename(&segment.name, &name).map_err(failed)?;
                self.spares.push(Spare { name, length: segment.length });
            } else {
                self.disk.remove(&segment.name).map_err(failed)?;
            }
            // One by one: if names come back after a crash, those that are left must still be a chain without a gap.
            self.disk.sync_names().map_err(failed)?;
        }
        Ok(())
    }

    /// A spare file that should be made, if there is none and nobody makes one. Run it on another thread and hand the result to
    /// [`Wal::add_spare`].
    pub fn spare_job(&mut self) -> Option<SpareJob<D>> {
        if !self.spares.is_empty() || self.spare_pending {
            return None;
        }
        self.spare_pending = true;
        let name = name_of(SPARE_PREFIX, self.next_spare);
        self.next_spare += 1;
        Some(SpareJob { disk: self.disk.clone(), name, length: self.options.segment_bytes })
    }

    /// Nobody could run the job; [`Wal::spare_job`] offers another one.
    pub fn give_back(&mut self, _job: SpareJob<D>) {
        self.spare_pending = false;
    }

    /// Takes over what a [`SpareJob`] has made.
    pub fn add_spare(&mut self, spare: Spare) {
        self.spare_pending = false;
        self.spares.push(spare);
    }

    /// What the log has done, and how much it takes on disk.
    pub fn stats(&self) -> WalStats {
        WalStats { size: self.segments.iter().map(|segment| segment.length).sum(), ..self.stats }
    }

    fn sequence(&self) -> u64 {
        self.segment().sequence
    }

    fn segment(&self) -> &Segment {
        self.segments.last().expect("the log has a segment from its opening on")
    }

    fn describe(&self) -> String {
        self.disk.describe(&self.segment().name)
    }
}

/// Names a segment, writes its header, and makes both durable before any record: a record proves that its header was.
fn begin_segment<D: Disk>(
    disk: &D,
    spares: &mut Vec<Spare>,
    next_spare: &mut u64,
    length: u64,
    sequence: u64,
    previous_end: u64,
) -> Result<(Segment, D::File), StorageError> {
    let spare = match spares.iter().position(|spare| spare.length >= length) {
        Some(place) => spares.remove(place),
        None => {
            let name = name_of(SPARE_PREFIX, *next_spare);
            *next_spare += 1;
            SpareJob { disk: disk.clone(), name, length }.run()?
        }
    };
    let name = name_of(SEGMENT_PREFIX, sequence);
    let failed = |doing| {
        let file = disk.describe(&name);
        move |cause| StorageError::failed(doing, &file, cause)
    };
    disk.rename(&spare.name, &name).map_err(failed("name"))?;
    let file = disk.open(&name).map_err(failed("open"))?;
    let header = SegmentHeader { sequence, previous_end }.encode();
    file.write_at(&header, 0).map_err(failed("write"))?;
    file.sync().map_err(failed("sync"))?;
    // M02: the file is durable, its name is not.
    if !planted::is(2) {
        disk.sync_names().map_err(failed("sync the name of"))?;
    }
    Ok((Segment { sequence, name, length: spare.length, last: BTreeMap::new() }, file))
}

impl<D: Disk> SpareJob<D> {
    /// Makes the file and fills it with zeros.
    ///
    /// # Errors
    /// The disk failed.
    pub fn run(self) -> Result<Spare, StorageError> {
        let failed = |doing| {
            let file = self.disk.describe(&self.name);
            move |cause| StorageError::failed(doing, &file, cause)
        };
        let file = self.disk.create(&self.name).map_err(failed("create"))?;
        let zeros = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < self.length {
            let length = (self.length - offset).min(zeros.len() as u64);
            file.write_at(&zeros[..length as usize], offset).map_err(failed("write"))?;
            offset += length;
        }
        file.sync().map_err(failed("sync"))?;
        Ok(Spare { name: self.name, length: self.length })
    }
}

impl From<Found> for Segment {
    fn from(found: Found) -> Segment {
        Segment { sequence: found.sequence, name: found.name, length: found.length, last: found.last }
    }
}
