//! New tasks, and ended ones that come back.

use base::Millis;
use base::machine::Effects;

use crate::history::{Happening, History};
use crate::id::TaskKey;
use crate::idempotency::Binding;
use crate::machine::QueueMachine;
use crate::op::{Create, Redrive, Schedule};
use crate::outcome::{Created, Outcome, Rejection};
use crate::payload::Payload;
use crate::policy::ATTEMPTS_MAX;
use crate::record;
use crate::slab::Slot;
use crate::task::{Due, Extras, Note, Saving, Stage, Task};

impl QueueMachine {
    pub(crate) fn create(&mut self, create: &Create<'_>, effects: &mut Effects<Self>) -> Result<Outcome, Rejection> {
        if let Some(key) = &create.key {
            let bound = self.keys.find(&key.scope, self.clocks.lease, self.policy.idempotency_window);
            if let Some(binding) = bound {
                let first = self.id(binding.task);
                return if binding.body == key.body {
                    Ok(Outcome::Replayed(first))
                } else {
                    Err(Rejection::KeyConflict { first })
                };
            }
        }
        let queue = self.open_queue(create.tenant, create.command).ok_or(Rejection::TooManyQueues)?;
        // M24: ids count from the start of the process.
        let index = if base::planted::is(24) { base::Index(self.tasks.len() as u64 + 2) } else { self.entry.index };
        let key = TaskKey::new(index, self.creations_in_entry);
        self.creations_in_entry += 1;
        let due = match create.schedule {
            Schedule::Now | Schedule::After(Millis(0)) => None,
            Schedule::After(delay) => Some(Due::Lease(self.clocks.lease + delay)),
            Schedule::At(time) => (time > self.clocks.schedule).then_some(Due::Schedule(time)),
        };
        let max_attempts = create.max_attempts.unwrap_or(self.policy.max_attempts).clamp(1, ATTEMPTS_MAX);
        let extras = (create.key.is_some() || !create.webhook.is_empty()).then(|| {
            Box::new(Extras {
                webhook: create.webhook.into(),
                idempotency_key: create.key.map(|key| key.text).unwrap_or_default().into(),
                ..Extras::default()
            })
        });
        if let Some(bound) = &create.key {
            let binding = Binding { task: key.0, body: bound.body, since: self.clocks.lease };
            self.keys.bind(bound.scope, binding);
            self.saves.keys.push((bound.scope, binding));
        }
        let at = self.clocks.schedule;
        let task = Task {
            key: key.0,
            created_at: at,
            updated_at: at,
            payload: Payload::Resident(create.payload.into()),
            stage: UNPLACED,
            extras,
            queue,
            attempts: 0,
            max_attempts,
            priority: create.priority.min(9),
            cancel_requested: false,
            saving: Saving::default(),
        };
        self.change_queue(queue);
        self.queues[queue as usize].totals.created += 1;
        let slot = self.enter(task, due, effects);
        let to = Some(self.tasks.get(slot).state());
        self.note(slot, Happening::Created, &Note { to, ..Note::default() });
        effects.signals.push(crate::machine::Signal::Created { command: self.queues[queue as usize].command.clone() });
        let id = self.id(key.0);
        Ok(Outcome::Created(Created { id, at, run_at: due.map(|due| self.estimate(due)), max_attempts }))
    }

    /// Brings a dead, failed or cancelled task back under its id. With its attempts kept, a task that has used them up gets one more, and
    /// keeps that for good: its maximum is what a redrive raised it to, also when a later one begins anew.
    pub(crate) fn redrive(&mut self, redrive: &Redrive<'_>, effects: &mut Effects<Self>) -> Result<Outcome, Rejection> {
        let key = redrive.task.0;
        if self.live(redrive.tenant, redrive.task).is_some() {
            return Err(Rejection::NotEnded);
        }
        let Some(place) = self.ended.returnable.get(&key).copied() else {
            return Err(Rejection::NotLive);
        };
        let record = record::decode(redrive.record, self.id(key)).map_err(|_| Rejection::RecordChanged)?;
        let since = (redrive.task.index(), record.created_at);
        let history = History::read(&record.history, since).map_err(|_| Rejection::RecordChanged)?;
        if *record.tenant != *redrive.tenant {
            return Err(Rejection::NotLive);
        }
        if place.ended_at != redrive.ended_at {
            return Err(Rejection::RecordChanged);
        }
        let queue = self.open_queue(&record.tenant, &record.command).ok_or(Rejection::TooManyQueues)?;
        self.unretain(key, place);
        let attempts = if redrive.keep_attempts { record.attempts } else { 0 };
        let used_up = attempts >= record.max_attempts;
        let extras = Extras {
            webhook: record.webhook,
            idempotency_key: record.idempotency_key,
            last_error: record.error,
            history,
            ..Extras::default()
        };
        let task = Task {
            key,
            created_at: record.created_at,
            updated_at: self.clocks.schedule,
            payload: record.payload,
            stage: UNPLACED,
            extras: Some(Box::new(extras)),
            queue,
            attempts,
            // Beyond what a creation may ask for, if need be: no attempt is above the maximum.
            max_attempts: if used_up { attempts.saturating_add(1) } else { record.max_attempts },
            priority: redrive.priority.unwrap_or(record.priority).min(9),
            cancel_requested: false,
            saving: Saving::default(),
        };
        let due = (redrive.delay > Millis(0)).then(|| Due::Lease(self.clocks.lease + redrive.delay));
        let slot = self.enter(task, due, effects);
        let (from, to) = (Some(record.state), Some(self.tasks.get(slot).state()));
        let delay = Some(redrive.delay).filter(|delay| *delay > Millis(0));
        self.note(slot, Happening::Redriven, &Note { from, to, attempt: attempts, delay, ..Note::default() });
        Ok(Outcome::Redriven(Box::new(self.view(self.tasks.get(slot)))))
    }
}

/// The stage of a task that is in no index yet.
const UNPLACED: Stage = Stage::Ready { place: 0, before: Slot::NONE, after: Slot::NONE };
