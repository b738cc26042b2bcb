//! Live tasks in memory, in chunks: growing moves nothing and wastes at most one chunk.

use base::rng::mix;
use hashbrown::HashTable;

use crate::task::Task;

/// Tasks per chunk.
const CHUNK: usize = 1024;

/// Where a live task is kept. Valid until the task is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(pub(crate) u32);

impl Slot {
    /// Marks the end of a list.
    pub(crate) const NONE: Slot = Slot(u32::MAX);
}

/// All live tasks of a shard, found by slot or by key.
#[derive(Default)]
pub(crate) struct Slab {
    chunks: Vec<Box<[Option<Task>]>>,
    free: Vec<u32>,
    used: u32,
    by_key: HashTable<Place>,
}

/// Where a task is, by its key. The key itself stands in the task only: a million tasks would pay for it twice. A part of its hash stands
/// here, so that the table grows without looking at every task.
#[derive(Debug)]
struct Place {
    hash: u32,
    slot: u32,
}

impl Place {
    fn new(key: u64, slot: u32) -> Place {
        Place { hash: mix(key) as u32, slot }
    }

    /// Spread over the bits that the table looks at.
    fn spread(&self) -> u64 {
        u64::from(self.hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

impl Slab {
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(crate) fn find(&self, key: u64) -> Option<Slot> {
        let sought = Place::new(key, 0);
        let is_it = |place: &Place| place.hash == sought.hash && key_at(&self.chunks, place.slot) == key;
        self.by_key.find(sought.spread(), is_it).map(|place| Slot(place.slot))
    }

    pub(crate) fn insert(&mut self, task: Task) -> Slot {
        assert!(self.find(task.key).is_none(), "a task key is used once");
        let slot = self.free.pop().unwrap_or_else(|| {
            if self.used as usize == self.chunks.len() * CHUNK {
                self.chunks.push((0..CHUNK).map(|_| None).collect());
            }
            self.used += 1;
            self.used - 1
        });
        let place = Place::new(task.key, slot);
        self.chunks[slot as usize / CHUNK][slot as usize % CHUNK] = Some(task);
        self.by_key.insert_unique(place.spread(), place, Place::spread);
        Slot(slot)
    }

    pub(crate) fn remove(&mut self, slot: Slot) -> Task {
        let sought = Place::new(self.get(slot).key, slot.0);
        let known = self.by_key.find_entry(sought.spread(), |place| place.slot == slot.0);
        known.expect("a task in use is found by its key").remove();
        self.free.push(slot.0);
        self.chunks[slot.0 as usize / CHUNK][slot.0 as usize % CHUNK].take().expect("the slot is in use")
    }

    pub(crate) fn get(&self, slot: Slot) -> &Task {
        self.chunks[slot.0 as usize / CHUNK][slot.0 as usize % CHUNK].as_ref().expect("the slot is in use")
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> &mut Task {
        self.chunks[slot.0 as usize / CHUNK][slot.0 as usize % CHUNK].as_mut().expect("the slot is in use")
    }
}

fn key_at(chunks: &[Box<[Option<Task>]>], slot: u32) -> u64 {
    let task = &chunks[slot as usize / CHUNK][slot as usize % CHUNK];
    task.as_ref().expect("a slot that has a key is in use").key
}
