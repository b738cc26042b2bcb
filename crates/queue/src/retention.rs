//! Ended tasks: kept for readers, then gone, a slice of time at once.
//!
//! Tasks that ended in the same way within the same slice of time stand in one table of the checkpoint, and the whole table is dropped
//! when the last of them has been kept for long enough: deleting costs nothing per task. A slice is as long as a sixteenth of what its
//! tasks are kept for. Memory holds the slices, and for tasks that can come back (dead, failed, cancelled) where they stand.
//!
//! Until the checkpoint holds them, ended tasks stay in memory for readers.

use std::sync::Arc;

use base::machine::NextDue;
use base::map::IdMap;
use base::rows::TableId;
use base::{Index, LeaseTime, Millis, ScheduleTime};

use crate::checkpoint::{COMPLETED, DEAD, FAILED};
use crate::machine::QueueMachine;
use crate::outcome::{State, TaskView};
use crate::policy::Retention;
use crate::task::Task;

/// Ended tasks of one kind and one stretch of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    /// The slice's number, unique in the shard.
    pub(crate) number: u32,
    /// Which of the three tables.
    pub(crate) table: TableId,
    /// No task ends into it from this moment on.
    pub(crate) closes: ScheduleTime,
    /// When its last task with an idempotency key ended; such a task outlives its key.
    pub(crate) last_keyed: Option<LeaseTime>,
    /// Tasks in it that can come back.
    pub(crate) returnable: Vec<u64>,
}

/// Where an ended task that can come back stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Returnable {
    pub(crate) slice: u32,
    pub(crate) table: TableId,
    /// The entry that ended it, or changed its record since.
    pub(crate) ended_at: Index,
    pub(crate) queue: u32,
}

/// An ended task that the checkpoint does not hold yet, or not as it is.
#[derive(Clone, Debug)]
pub(crate) struct Recent {
    pub(crate) view: Arc<TaskView>,
    pub(crate) slice: u32,
    pub(crate) table: TableId,
    /// The checkpoint holds an older record of it, or will when the save in progress ends.
    pub(crate) is_saved: bool,
}

/// All that memory knows of ended tasks.
#[derive(Default)]
pub(crate) struct Ended {
    pub(crate) slices: Vec<Slice>,
    pub(crate) next_slice: u32,
    pub(crate) returnable: IdMap<Returnable>,
    /// Ended since the last freeze.
    pub(crate) recent: IdMap<Recent>,
    /// Ended before the freeze, and being saved.
    pub(crate) saving: IdMap<Recent>,
}

/// Slices per retention time.
const SLICES_PER_RETENTION: u64 = 16;
/// No slice is shorter.
const SLICE_MIN: Millis = Millis(1_000);

/// The table for tasks that ended in `state`.
pub(crate) fn table_of(state: State) -> TableId {
    match state {
        State::Completed => COMPLETED,
        State::Dead => DEAD,
        _ => FAILED,
    }
}

fn kept_for(table: TableId, retention: &Retention) -> Millis {
    match table {
        COMPLETED => retention.completed,
        DEAD => retention.dead,
        _ => retention.failed,
    }
}

impl QueueMachine {
    /// Keeps a task that has just ended.
    pub(crate) fn retain(&mut self, task: &Task, view: Arc<TaskView>) {
        let table = table_of(view.state);
        let keyed = !view.idempotency_key.is_empty();
        let now = self.clocks;
        let slice =
            match self.ended.slices.iter().rposition(|slice| slice.table == table && now.schedule < slice.closes) {
                Some(open) => open,
                None => {
                    let length =
                        Millis(kept_for(table, &self.policy.retention).0 / SLICES_PER_RETENTION).max(SLICE_MIN);
                    let number = self.ended.next_slice;
                    self.ended.next_slice += 1;
                    let closes = now.schedule + length;
                    self.ended.slices.push(Slice { number, table, closes, last_keyed: None, returnable: Vec::new() });
                    self.saves.slices = true;
                    self.ended.slices.len() - 1
                }
            };
        let slice = &mut self.ended.slices[slice];
        if keyed && slice.last_keyed != Some(now.lease) {
            slice.last_keyed = Some(now.lease);
            self.saves.slices = true;
        }
        if table != COMPLETED {
            slice.returnable.push(task.key);
            let place = Returnable { slice: slice.number, table, ended_at: self.entry.index, queue: task.queue };
            self.ended.returnable.insert(task.key, place);
        }
        if table == DEAD {
            self.queues[task.queue as usize].dead += 1;
        }
        if task.saving.row || task.saving.payload {
            self.saves.removed.push((task.key, task.saving));
        }
        self.saves.ended.push(task.key);
        self.ended.recent.insert(task.key, Recent { view, slice: slice.number, table, is_saved: false });
    }

    /// Forgets an ended task that has come back to life.
    pub(crate) fn unretain(&mut self, key: u64, place: Returnable) {
        self.ended.returnable.remove(&key);
        if place.table == DEAD {
            self.queues[place.queue as usize].dead -= 1;
            self.change_queue(place.queue);
        }
        if self.ended.recent.remove(&key).is_none_or(|recent| recent.is_saved) {
            self.saves.returned.push((place.table, place.slice, key));
            self.saves.outdated.insert(key, place.slice);
        }
    }

    /// Drops slices whose last task has been kept for long enough.
    pub(crate) fn drop_slices(&mut self) {
        let (policy, now) = (self.policy, self.clocks);
        let over = |slice: &Slice| {
            let kept = slice.closes + kept_for(slice.table, &policy.retention) <= now.schedule;
            kept && slice.last_keyed.is_none_or(|last| last + policy.idempotency_window <= now.lease)
        };
        if !self.ended.slices.iter().any(over) {
            return;
        }
        let (dropped, kept) = std::mem::take(&mut self.ended.slices).into_iter().partition(over);
        self.ended.slices = kept;
        let dropped: Vec<Slice> = dropped;
        for slice in dropped {
            for key in slice.returnable {
                // A task that came back and ended again stands in another slice.
                let Some(place) = self.ended.returnable.get(&key).filter(|place| place.slice == slice.number) else {
                    continue;
                };
                let (table, queue) = (place.table, place.queue);
                if table == DEAD {
                    self.queues[queue as usize].dead -= 1;
                    self.change_queue(queue);
                }
                self.ended.returnable.remove(&key);
            }
            self.ended.recent.retain(|_, recent| recent.slice != slice.number);
            self.saves.dropped.push((slice.table, slice.number));
            self.saves.slices = true;
        }
    }

    /// Slices in which the checkpoint may still show a task that is gone: they are over, or it has come back since.
    pub(crate) fn outdated_slices(&self, key: u64) -> Vec<u32> {
        let saves = &self.saves;
        let over = saves.dropped.iter().chain(&saves.dropping).map(|(_, slice)| *slice);
        over.chain(saves.outdated.get(&key).copied()).chain(saves.outdating.get(&key).copied()).collect()
    }

    /// When the next slice is due to be dropped: by the schedule clock, or by the lease clock where only a key is waited for.
    pub(crate) fn next_drop(&self) -> NextDue {
        let mut next = NextDue::default();
        for slice in &self.ended.slices {
            let kept = slice.closes + kept_for(slice.table, &self.policy.retention);
            match slice.last_keyed {
                Some(last) if kept <= self.clocks.schedule => {
                    let freed = last + self.policy.idempotency_window;
                    next.lease = Some(next.lease.map_or(freed, |time| time.min(freed)));
                }
                _ => next.schedule = Some(next.schedule.map_or(kept, |time| time.min(kept))),
            }
        }
        next
    }
}
