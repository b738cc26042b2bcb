//! Changing what waits: another priority, time, payload, number of attempts or callback; and deleting it. Of a dead task, payload and number
//! of attempts can be changed before it comes back.

use std::sync::Arc;

use base::machine::Effects;

use crate::checkpoint::DEAD;
use crate::history::{Entry, Happening, History};
use crate::machine::QueueMachine;
use crate::op::{Amend, Edit, Schedule};
use crate::outcome::{Outcome, Rejection, State};
use crate::payload::Payload;
use crate::policy::ATTEMPTS_MAX;
use crate::record;
use crate::retention::Recent;
use crate::slab::Slot;
use crate::task::{Due, Note, Saving, Stage};

impl QueueMachine {
    /// Changes a task that waits. Another priority or time puts it at the tail, as if it had come just now.
    pub(crate) fn edit(&mut self, edit: &Edit<'_>, effects: &mut Effects<Self>) -> Result<Outcome, Rejection> {
        let slot = self.live(edit.tenant, edit.task).ok_or(Rejection::NotLive)?;
        if matches!(self.tasks.get(slot).stage, Stage::Leased(_)) {
            return Err(Rejection::IsLeased);
        }
        self.change(slot);
        let from = self.tasks.get(slot).state();
        let task = self.tasks.get_mut(slot);
        if let Some(most) = edit.max_attempts {
            // No attempt is above the maximum.
            task.max_attempts = most.clamp(1, ATTEMPTS_MAX).max(task.attempts.saturating_add(1));
        }
        if let Some(webhook) = edit.webhook {
            task.extras.get_or_insert_default().webhook = Arc::from(webhook);
        }
        if let Some(payload) = edit.payload {
            self.replace_payload(slot, payload);
        }
        let moves = edit.priority.is_some_and(|priority| priority.min(9) != self.tasks.get(slot).priority);
        if !moves && edit.schedule.is_none() {
            self.note_edit(slot, from);
            return Ok(Outcome::Edited(Box::new(self.view(self.tasks.get(slot)))));
        }
        let due = match (edit.schedule, &self.tasks.get(slot).stage) {
            (None, Stage::Delayed(due)) => Some(*due),
            (None | Some(Schedule::Now), _) => None,
            (Some(Schedule::After(delay)), _) => (delay.0 > 0).then(|| Due::Lease(self.clocks.lease + delay)),
            (Some(Schedule::At(time)), _) => (time > self.clocks.schedule).then_some(Due::Schedule(time)),
        };
        self.leave_stage(slot);
        if let Some(priority) = edit.priority {
            self.tasks.get_mut(slot).priority = priority.min(9);
        }
        match due {
            None => self.become_ready(slot, effects),
            Some(due) => self.become_delayed(slot, due),
        }
        self.note_edit(slot, from);
        Ok(Outcome::Edited(Box::new(self.view(self.tasks.get(slot)))))
    }

    fn note_edit(&mut self, slot: Slot, from: State) {
        let task = self.tasks.get(slot);
        let delay = match task.stage {
            Stage::Delayed(due) => Some(self.estimate(due) - self.clocks.schedule),
            _ => None,
        };
        let (from, to, attempt) = (Some(from), Some(task.state()), task.attempts);
        self.note(slot, Happening::Edited, &Note { from, to, attempt, delay, ..Note::default() });
    }

    /// Puts another record in the place of a dead task's. It stays where it is, and is kept as long as before.
    pub(crate) fn amend(&mut self, amend: &Amend<'_>) -> Result<Outcome, Rejection> {
        let key = amend.task.0;
        let record = record::decode(amend.record, self.id(key));
        if self.live(amend.tenant, amend.task).is_some() {
            return Err(Rejection::NotEnded);
        }
        let place = self.ended.returnable.get_mut(&key).filter(|place| place.table == DEAD);
        let place = place.ok_or(Rejection::NotLive)?;
        if *self.queues[place.queue as usize].tenant != *amend.tenant {
            return Err(Rejection::NotLive);
        }
        // M28: a record takes the place of one that is newer than that which it was made from.
        if place.ended_at != amend.ended_at && !base::planted::is(28) {
            return Err(Rejection::RecordChanged);
        }
        let mut view = record.map_err(|_| Rejection::RecordChanged)?;
        let since = (amend.task.index(), view.created_at);
        let mut history = History::read(&view.history, since).map_err(|_| Rejection::RecordChanged)?;
        place.ended_at = self.entry.index;
        let (slice, table, queue) = (place.slice, place.table, place.queue);
        view.ended_at = Some(self.entry.index);
        view.max_attempts = view.max_attempts.clamp(1, ATTEMPTS_MAX);
        let (state, attempt) = (Some(State::Dead), view.attempts);
        let edited = Entry::new(Happening::Edited, self.entry.index, self.clocks.schedule, self.acting.actor);
        let edited = Entry { from: state, to: state, attempt, ..edited };
        let told = self.tell_task(queue, key, view.created_at, &edited);
        history.push(edited, &self.telling.bytes[told], since, self.policy.history_entries_max);
        view.history = history.into_bytes();
        let view = Arc::new(view);
        // If the last save has not taken it over yet, there is nothing in the checkpoint that this one would have to replace.
        let is_saved = match self.ended.recent.get(&key) {
            Some(recent) => recent.is_saved,
            None => {
                self.saves.ended.push(key);
                true
            }
        };
        self.ended.recent.insert(key, Recent { view: view.clone(), slice, table, is_saved });
        self.changes.note(self.entry.index, key);
        self.change_queue(queue);
        Ok(Outcome::Edited(Box::new(view.as_ref().clone())))
    }

    /// Gives a task that has been noted as changing another payload. A row of the old one is deleted by the next save, which writes the new.
    fn replace_payload(&mut self, slot: Slot, payload: &[u8]) {
        let payload = Payload::Resident(payload.into());
        self.cache.enter(&payload);
        let task = self.tasks.get_mut(slot);
        let old = std::mem::replace(&mut task.payload, payload);
        let (key, had_row) = (task.key, std::mem::take(&mut task.saving.payload));
        self.cache.leave(&old);
        if had_row {
            self.saves.removed.push((key, Saving { payload: true, ..Saving::default() }));
        }
    }

    /// Deletes a task that waits: nothing is left of it.
    pub(crate) fn remove_waiting(&mut self, slot: Slot) -> Result<(), Rejection> {
        if matches!(self.tasks.get(slot).stage, Stage::Leased(_)) {
            return Err(Rejection::IsLeased);
        }
        let from = Some(self.tasks.get(slot).state());
        self.leave_stage(slot);
        let task = self.tasks.remove(slot);
        self.tell_deleted(task.queue, task.key, from);
        self.cache.leave(&task.payload);
        if task.saving.row || task.saving.payload {
            self.saves.removed.push((task.key, task.saving));
        }
        Ok(())
    }
}
