//! The latest events of each shard, for those who follow them: in memory, on each node for itself, fed by what it applies.
//!
//! Events are kept in chunks, and the oldest chunk goes when there are too many or it is too old. A node that has just started knows those of the
//! entries that it has applied since, which begin behind its last checkpoint. It always knows from where on it knows all: whoever asks for
//! more is told of the gap.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use base::codec::{Reader, Write};
use base::{Index, Millis, ScheduleTime, ShardId, Term};
use queue::Signal;
use queue::events::Told;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Bytes of a chunk, about.
const CHUNK_BYTES: usize = 16 << 10;

/// An event for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    /// A part of the incarnation of its cluster: a restored backup goes on with other numbers.
    pub(crate) life: u16,
    /// Its log entry.
    pub(crate) index: Index,
    /// Its place there.
    pub(crate) place: u32,
}

/// The latest events of all shards.
pub(crate) struct Feed {
    rings: Mutex<BTreeMap<ShardId, Ring>>,
    grown: Notify,
    /// Of a shard.
    events_max: usize,
    kept_for: Millis,
}

/// The latest events of one.
struct Ring {
    sealed: VecDeque<Arc<Chunk>>,
    open: Chunk,
    /// How many there are.
    events: usize,
    /// Everything behind this one is known.
    forgotten: At,
}

/// Some events in a row.
#[derive(Clone, Default)]
pub(crate) struct Chunk {
    /// For each entry: index, term, place of the first event (varints), and their bytes.
    bytes: Vec<u8>,
    events: usize,
    last: (Index, u32),
    /// When the last one happened.
    at: ScheduleTime,
}

/// Events of one log entry.
pub(crate) struct Entry<'a> {
    pub(crate) index: Index,
    pub(crate) term: Term,
    /// The place of the first one.
    pub(crate) first: u32,
    pub(crate) events: &'a [u8],
}

/// What comes behind an event.
pub(crate) enum Behind {
    /// Nothing, up to now.
    Nothing,
    /// It is in this chunk, perhaps with others before.
    Chunk(Arc<Chunk>),
    /// It is not known any more, or never was.
    Gap,
}

const NEVER_POISONED: &str = "nothing panics while it holds this lock";

impl Feed {
    /// Keeps so many events of a shard at most, and none that is older.
    pub(crate) fn new(events_max: usize, kept_for: Millis) -> Feed {
        Feed { rings: Mutex::default(), grown: Notify::new(), events_max, kept_for }
    }

    /// Takes events out of what the state machine tells.
    pub(crate) fn take(&self, signals: &[Signal]) {
        let mut rings = self.rings();
        let mut has_grown = false;
        for signal in signals {
            match signal {
                Signal::Begun { shard, index, incarnation } => {
                    let before = At { life: incarnation.0 as u16, index: Index(index.0 - 1), place: u32::MAX };
                    rings.insert(*shard, Ring::behind(before));
                }
                Signal::Told(told) => {
                    let ring = rings.get_mut(&told.shard).expect("an entry has begun");
                    ring.push(told, self.events_max, self.kept_for);
                    has_grown = true;
                }
                _ => {}
            }
        }
        drop(rings);
        if has_grown {
            self.grown.notify_waiters();
        }
    }

    /// Done when there are more events than when it was made.
    pub(crate) fn grown(&self) -> Notified<'_> {
        self.grown.notified()
    }

    /// What comes behind an event; nothing: this node has not applied an entry of the shard yet.
    pub(crate) fn behind(&self, shard: ShardId, event: At) -> Option<Behind> {
        self.rings().get(&shard).map(|ring| ring.after(event))
    }

    /// The event of a shard behind which everything is known; nothing: this node has not applied an entry of it yet.
    pub(crate) fn oldest(&self, shard: ShardId) -> Option<At> {
        self.rings().get(&shard).map(|ring| ring.forgotten)
    }

    /// The last event of a shard, or the last that is not known; nothing: this node has not applied an entry of the shard yet.
    pub(crate) fn last(&self, shard: ShardId) -> Option<At> {
        self.rings().get(&shard).map(Ring::last)
    }

    fn rings(&self) -> MutexGuard<'_, BTreeMap<ShardId, Ring>> {
        self.rings.lock().expect(NEVER_POISONED)
    }
}

impl Ring {
    fn behind(forgotten: At) -> Ring {
        Ring { sealed: VecDeque::new(), open: Chunk::default(), events: 0, forgotten }
    }

    fn push(&mut self, told: &Told, events_max: usize, kept_for: Millis) {
        self.open.push(told);
        self.events += told.count as usize;
        if self.open.bytes.len() >= CHUNK_BYTES {
            self.sealed.push_back(Arc::new(std::mem::take(&mut self.open)));
        }
        while let Some(oldest) = self.sealed.front() {
            if self.events <= events_max && oldest.at + kept_for > told.at {
                break;
            }
            self.events -= oldest.events;
            self.forgotten = oldest.last(self.forgotten.life);
            self.sealed.pop_front();
        }
    }

    fn last(&self) -> At {
        let life = self.forgotten.life;
        match (self.open.events, self.sealed.back()) {
            (0, Some(sealed)) => sealed.last(life),
            (0, None) => self.forgotten,
            _ => self.open.last(life),
        }
    }

    fn after(&self, event: At) -> Behind {
        if event.life != self.forgotten.life || event < self.forgotten {
            return Behind::Gap;
        }
        if event >= self.last() {
            return Behind::Nothing;
        }
        let place = self.sealed.partition_point(|chunk| chunk.last(event.life) <= event);
        Behind::Chunk(self.sealed.get(place).cloned().unwrap_or_else(|| Arc::new(self.open.clone())))
    }
}

impl Chunk {
    fn push(&mut self, told: &Told) {
        if self.bytes.is_empty() {
            self.bytes.reserve(CHUNK_BYTES + CHUNK_BYTES / 16);
        }
        self.bytes.put_varint(told.index.0);
        self.bytes.put_varint(told.term.0);
        self.bytes.put_varint(u64::from(told.first));
        self.bytes.put_bytes(&told.bytes);
        self.events += told.count as usize;
        self.last = (told.index, told.first + told.count - 1);
        self.at = told.at;
    }

    /// The last event in it.
    pub(crate) fn last(&self, life: u16) -> At {
        At { life, index: self.last.0, place: self.last.1 }
    }

    /// What is in it, by log entry.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut reader = Reader::new(&self.bytes);
        std::iter::from_fn(move || {
            let mut next = || {
                Ok::<_, base::codec::Malformed>(Entry {
                    index: Index(reader.varint()?),
                    term: Term(reader.varint()?),
                    first: reader.narrow()?,
                    events: reader.bytes()?,
                })
            };
            // They were written here.
            next().ok()
        })
    }
}
