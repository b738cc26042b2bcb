//! Live tasks in memory, in chunks: growing moves nothing and wastes at most one chunk.

use base::map::IdMap;

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
    by_key: IdMap<u32>,
}

impl Slab {
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(crate) fn find(&self, key: u64) -> Option<Slot> {
        self.by_key.get(&key).map(|slot| Slot(*slot))
    }

    pub(crate) fn insert(&mut self, task: Task) -> Slot {
        let slot = self.free.pop().unwrap_or_else(|| {
            if self.used as usize == self.chunks.len() * CHUNK {
                self.chunks.push((0..CHUNK).map(|_| None).collect());
            }
            self.used += 1;
            self.used - 1
        });
        let previous = self.by_key.insert(task.key, slot);
        assert!(previous.is_none(), "a task key is used once");
        self.chunks[slot as usize / CHUNK][slot as usize % CHUNK] = Some(task);
        Slot(slot)
    }

    pub(crate) fn remove(&mut self, slot: Slot) -> Task {
        let task = self.chunks[slot.0 as usize / CHUNK][slot.0 as usize % CHUNK].take().expect("the slot is in use");
        self.by_key.remove(&task.key);
        self.free.push(slot.0);
        task
    }

    pub(crate) fn get(&self, slot: Slot) -> &Task {
        self.chunks[slot.0 as usize / CHUNK][slot.0 as usize % CHUNK].as_ref().expect("the slot is in use")
    }

    pub(crate) fn get_mut(&mut self, slot: Slot) -> &mut Task {
        self.chunks[slot.0 as usize / CHUNK][slot.0 as usize % CHUNK].as_mut().expect("the slot is in use")
    }
}
