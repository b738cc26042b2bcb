//! A live task, and the transitions of its life. Every change of a task's state goes through this file, which keeps the ready lists, the
//! due index, the counters and the checkpoint's list of changes in step; the life cycle in the documentation is drawn from it.
//!
//! ```text
//!            create                     claim                     complete, fail
//!   (none) ─────────▶ Ready ◀─────────────────────▶ Leased ─────────────────────▶ Completed, Failed
//!      │                ▲        release              │ │ nack, expiry: attempts used up
//!      │ due later      │ due                         │ └──────────────────────────▶ Dead
//!      └───────────▶ Delayed ◀────────────────────────┘ nack, expiry: attempts left
//!
//!   Delayed, Ready ── cancel ──▶ Cancelled       Dead, Failed, Cancelled ── redrive ──▶ Ready, Delayed
//! ```

use std::sync::Arc;

use base::machine::{Effects, WaitKey};
use base::{LeaseTime, Millis, ScheduleTime, Stamps};

use crate::checkpoint::Mark;
use crate::history::{Actor, Entry, Happening, History, REASON_BYTES_MAX};
use crate::id::{LeaseToken, TaskKey};
use crate::machine::{QueueMachine, Signal};
use crate::operations::operation_text;
use crate::outcome::{State, TaskView};
use crate::payload::Payload;
use crate::slab::Slot;

/// A task that has not ended.
pub(crate) struct Task {
    /// [`TaskKey`] as a number.
    pub(crate) key: u64,
    pub(crate) created_at: ScheduleTime,
    pub(crate) updated_at: ScheduleTime,
    pub(crate) payload: Payload,
    pub(crate) stage: Stage,
    pub(crate) extras: Option<Box<Extras>>,
    /// Index in `QueueMachine::queues`.
    pub(crate) queue: u32,
    pub(crate) attempts: u32,
    pub(crate) max_attempts: u32,
    /// 0 to 9.
    pub(crate) priority: u8,
    pub(crate) cancel_requested: bool,
    pub(crate) saving: Saving,
}

/// What only a live task can be in.
pub(crate) enum Stage {
    Delayed(Due),
    Ready {
        /// Rank among everything that ever became ready on this shard; decides FIFO.
        place: u64,
        /// Neighbours in the list of the task's queue and priority.
        before: Slot,
        after: Slot,
    },
    Leased(Box<Lease>),
}

/// When something is due, and by which clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Lease(LeaseTime),
    Schedule(ScheduleTime),
}

/// One grant of a task.
pub(crate) struct Lease {
    pub(crate) worker: Arc<str>,
    pub(crate) token: LeaseToken,
    pub(crate) deadline: LeaseTime,
    /// The deadline, estimated on the schedule clock: for people.
    pub(crate) until: ScheduleTime,
}

/// What a task does not have that only waits.
#[derive(Clone, Default)]
pub(crate) struct Extras {
    pub(crate) webhook: Arc<str>,
    pub(crate) idempotency_key: Arc<str>,
    /// Why the last attempt failed.
    pub(crate) last_error: Arc<str>,
    /// Why the holder is asked to stop.
    pub(crate) cancel_reason: Arc<str>,
    pub(crate) history: History,
}

/// How a task stands to the checkpoint.
#[derive(Clone, Copy, Default)]
pub(crate) struct Saving {
    /// Whether it changed before or after the last freeze, and is not collected yet.
    pub(crate) mark: Mark,
    /// Has a row in the checkpoint, or will have one when the save in progress ends.
    pub(crate) row: bool,
    /// The same for its payload, which is written once.
    pub(crate) payload: bool,
}

/// What is noted of a change of a task, besides what happened.
#[derive(Default)]
pub(crate) struct Note<'a> {
    pub(crate) from: Option<State>,
    pub(crate) to: Option<State>,
    /// Whoever holds the task or wants to.
    pub(crate) worker: &'a str,
    pub(crate) attempt: u32,
    pub(crate) reason: &'a str,
    pub(crate) delay: Option<Millis>,
    pub(crate) lease: Option<Millis>,
}

/// How a task ends.
pub(crate) enum Ending<'a> {
    Completed { result: &'a [u8], error: &'a str },
    Failed { result: Option<&'a [u8]>, error: &'a str },
    Dead { error: &'a str },
    Cancelled { reason: &'a str },
}

/// Error of an attempt whose lease ran out.
pub(crate) const LEASE_EXPIRED: &str = "LEASE_EXPIRED";
/// Error of a dead task whose worker gave no reason.
pub(crate) const MAX_ATTEMPTS: &str = "MAX_ATTEMPTS";
/// Error of a cancelled task without a reason.
pub(crate) const CANCELLED: &str = "CANCELLED";

impl Extras {
    pub(crate) fn is_empty(&self) -> bool {
        let texts = [&self.webhook, &self.idempotency_key, &self.last_error, &self.cancel_reason];
        texts.iter().all(|text| text.is_empty()) && self.history.is_empty()
    }
}

impl Task {
    pub(crate) fn state(&self) -> State {
        match self.stage {
            Stage::Delayed(_) => State::Delayed,
            Stage::Ready { .. } => State::Ready,
            Stage::Leased(_) => State::Leased,
        }
    }

    pub(crate) fn lease(&self) -> Option<&Lease> {
        match &self.stage {
            Stage::Leased(lease) => Some(lease),
            _ => None,
        }
    }
}

/// The same, when the clocks show this.
pub(crate) fn estimate(due: Due, clocks: Stamps) -> ScheduleTime {
    match due {
        Due::Schedule(time) => time,
        Due::Lease(time) => clocks.schedule + (time - clocks.lease),
    }
}

/// The key that requests waiting for a task to change, or to end, wait for.
pub(crate) fn change_of(task: u64) -> WaitKey {
    WaitKey(base::rng::mix(task ^ 0x656e_6420_6f66))
}

impl QueueMachine {
    /// The index of a live task of this tenant. Foreign and unknown tasks are the same to the caller.
    pub(crate) fn live(&self, tenant: &str, task: TaskKey) -> Option<Slot> {
        let slot = self.tasks.find(task.0)?;
        let queue = &self.queues[self.tasks.get(slot).queue as usize];
        (*queue.tenant == *tenant).then_some(slot)
    }

    /// Adds a new task, ready or delayed, to the live ones.
    pub(crate) fn enter(&mut self, task: Task, due: Option<Due>, effects: &mut Effects<Self>) -> Slot {
        self.cache.enter(&task.payload);
        let slot = self.tasks.insert(task);
        match due {
            None => self.become_ready(slot, effects),
            Some(due) => self.become_delayed(slot, due),
        }
        slot
    }

    /// Puts a task that is in no index at the tail of its priority.
    pub(crate) fn become_ready(&mut self, slot: Slot, effects: &mut Effects<Self>) {
        self.change(slot);
        let place = self.next_place;
        self.next_place += 1;
        let task = self.tasks.get(slot);
        let (queue, priority) = (task.queue, usize::from(task.priority));
        self.join_round(queue, priority);
        self.push_ready(slot, place);
        self.wake_claims(queue, effects);
    }

    /// Lets a task that is in no index wait for its time.
    pub(crate) fn become_delayed(&mut self, slot: Slot, due: Due) {
        self.change(slot);
        let task = self.tasks.get_mut(slot);
        task.stage = Stage::Delayed(due);
        self.due.delay(&mut self.queues[task.queue as usize].delayed, task.queue, due, task.key);
    }

    /// Leases a task that is in no index.
    pub(crate) fn become_leased(&mut self, slot: Slot, lease: Lease) {
        self.change(slot);
        let task = self.tasks.get_mut(slot);
        self.due.lease(lease.deadline, task.key);
        self.queues[task.queue as usize].holders.add(&lease.worker);
        task.stage = Stage::Leased(Box::new(lease));
    }

    /// Moves the deadline of a leased task.
    pub(crate) fn move_deadline(&mut self, slot: Slot, deadline: LeaseTime, until: ScheduleTime) {
        self.change(slot);
        let task = self.tasks.get_mut(slot);
        let Stage::Leased(lease) = &mut task.stage else { panic!("only a leased task has a deadline") };
        // M19: the deadline moves, and what waits for it does not.
        let moved = if base::planted::is(19) { lease.deadline } else { deadline };
        self.due.end_lease(lease.deadline, task.key);
        lease.deadline = moved;
        lease.until = until;
        self.due.lease(moved, task.key);
    }

    /// Takes a task out of the index of its stage, before it goes into another one. What is left of its stage means nothing.
    pub(crate) fn leave_stage(&mut self, slot: Slot) {
        self.change(slot);
        let task = self.tasks.get(slot);
        let (key, queue) = (task.key, &mut self.queues[task.queue as usize]);
        match &task.stage {
            Stage::Delayed(due) => self.due.end_delay(&mut queue.delayed, task.queue, *due, key),
            Stage::Ready { .. } => self.unlink_ready(slot),
            Stage::Leased(lease) => {
                self.due.end_lease(lease.deadline, key);
                queue.holders.remove(&lease.worker);
            }
        }
    }

    /// Ends a failed attempt of a leased task: another one after `delay`, or none if this was the last. `delay` absent: the policy's.
    ///
    /// Returns the delay, or nothing if the task has ended.
    pub(crate) fn end_attempt(
        &mut self,
        slot: Slot,
        delay: Option<Millis>,
        error: &str,
        effects: &mut Effects<Self>,
    ) -> AttemptEnd {
        let task = self.tasks.get(slot);
        // M21: the end of a lease gives the attempt back.
        let attempts = task.attempts - u32::from(base::planted::is(21) && error == LEASE_EXPIRED);
        if task.cancel_requested {
            let reason = self.cancel_reason(slot);
            return AttemptEnd::Cancelled(self.finish(slot, &Ending::Cancelled { reason: &reason }, effects));
        }
        if attempts >= task.max_attempts {
            let error = if error.is_empty() { MAX_ATTEMPTS } else { error };
            self.finish(slot, &Ending::Dead { error }, effects);
            return AttemptEnd::Dead { attempts };
        }
        let random =
            base::rng::mix_all(&[self.incarnation_of(task.key), task.key, u64::from(attempts), self.entry.index.0]);
        let backoff = &self.policy.backoff;
        let delay = delay.map_or_else(|| backoff.delay(attempts, random), |delay| delay.min(backoff.max));
        self.leave_stage(slot);
        let worker = self.tasks.get(slot).lease().map(|lease| lease.worker.clone()).unwrap_or_default();
        self.tasks.get_mut(slot).attempts = attempts;
        let error: Arc<str> = self.cut(error).into();
        self.tasks.get_mut(slot).extras.get_or_insert_default().last_error = error.clone();
        if delay == Millis(0) {
            self.become_ready(slot, effects);
        } else {
            self.become_delayed(slot, Due::Lease(self.clocks.lease + delay));
        }
        let what = if self.acting.actor == Actor::System { Happening::Expired } else { Happening::Retry };
        let (from, to) = (Some(State::Leased), Some(self.tasks.get(slot).state()));
        let note =
            Note { from, to, worker: &worker, attempt: attempts, reason: &error, delay: Some(delay), lease: None };
        self.note(slot, what, &note);
        AttemptEnd::Retried { delay, attempts }
    }

    /// Ends a task: it leaves memory and is kept for readers until retention ends it.
    pub(crate) fn finish(&mut self, slot: Slot, ending: &Ending<'_>, effects: &mut Effects<Self>) -> Arc<TaskView> {
        let from = self.tasks.get(slot).state();
        self.leave_stage(slot);
        let mut view = self.view(self.tasks.get(slot));
        let now = self.clocks.schedule;
        let (state, error, result) = match *ending {
            Ending::Completed { result, error } => (State::Completed, error, Some(result)),
            Ending::Failed { result, error } => (State::Failed, error, result),
            Ending::Dead { error } => (State::Dead, error, None),
            Ending::Cancelled { reason } => {
                (State::Cancelled, if reason.is_empty() { CANCELLED } else { reason }, None)
            }
        };
        let what = match state {
            State::Completed => Happening::Completed,
            State::Failed => Happening::Failed,
            State::Dead => Happening::Dead,
            _ => Happening::Cancelled,
        };
        let (worker, attempt) = (view.worker.as_deref().unwrap_or_default(), view.attempts);
        let note = Note { from: Some(from), to: Some(state), worker, attempt, reason: error, ..Note::default() };
        self.note(slot, what, &note);
        let mut task = self.tasks.remove(slot);
        self.cache.leave(&task.payload);
        view.history =
            task.extras.as_mut().map(|extras| std::mem::take(&mut extras.history).into_bytes()).unwrap_or_default();
        // M22: a key is free again when its task has ended.
        if base::planted::is(22) && !view.idempotency_key.is_empty() {
            let scope = crate::idempotency::scope_digest(&view.tenant, &view.command, &view.idempotency_key);
            self.keys.unbind(&scope, task.key);
        }
        view.state = state;
        view.error = self.cut(error).into();
        view.result = result.map(Arc::from);
        view.worker = None;
        view.lease_until = None;
        view.run_at = None;
        view.cancel_requested = false;
        view.updated_at = now;
        view.finished_at = Some(now);
        view.ended_at = Some(self.entry.index);
        let queue = &mut self.queues[task.queue as usize];
        let total = match state {
            State::Completed => &mut queue.totals.completed,
            State::Failed => &mut queue.totals.failed,
            State::Dead => &mut queue.totals.dead,
            _ => &mut queue.totals.cancelled,
        };
        *total += 1;
        effects.signals.push(Signal::Ended { command: view.command.clone(), state, lived: now - task.created_at });
        let view = Arc::new(view);
        self.retain(&task, view.clone());
        view
    }

    /// Tells of a live task, which is about to change or has just done so, and appends to its history.
    pub(crate) fn note(&mut self, slot: Slot, what: Happening, note: &Note<'_>) {
        let by_operation = self.acting.operation.map(|id| operation_text(&id));
        let reason = by_operation.as_deref().unwrap_or(note.reason);
        let entry = Entry {
            what,
            index: self.entry.index,
            at: self.clocks.schedule,
            actor: self.acting.actor,
            worker: if self.acting.actor == Actor::Worker { note.worker } else { "" },
            from: note.from,
            to: note.to,
            attempt: note.attempt,
            reason: &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)],
            delay: note.delay,
            lease: note.lease,
            count: 1,
        };
        let (queue, key) = (self.tasks.get(slot).queue, self.tasks.get(slot).key);
        self.tell_task(queue, key, &entry);
        // How a task began can be read from the task.
        if what != Happening::Created {
            let task = self.tasks.get_mut(slot);
            let since = (TaskKey(task.key).index(), task.created_at);
            let entries_max = self.policy.history_entries_max;
            if entries_max > 0 || task.extras.is_some() {
                task.extras.get_or_insert_default().history.push(entry, since, entries_max);
            }
        }
    }

    /// Notes that a live task is about to change: for the checkpoint, and for those who look at it or at its queue.
    pub(crate) fn change(&mut self, slot: Slot) {
        self.save(slot);
        let now = self.clocks.schedule;
        let task = self.tasks.get_mut(slot);
        task.updated_at = now;
        let (queue, key) = (task.queue, task.key);
        self.changes.note(self.entry.index, key);
        self.change_queue(queue);
    }

    /// Lets the next checkpoint hold what a live task is about to become, and a save in progress what it was.
    pub(crate) fn save(&mut self, slot: Slot) {
        let mark = self.tasks.get(slot).saving.mark;
        if mark != self.saves.current {
            if mark != Mark::Clean {
                self.save_before_change(slot);
            }
            let task = self.tasks.get_mut(slot);
            task.saving.mark = self.saves.current;
            self.saves.dirty.push(task.key);
        }
    }

    /// What can be shown of a live task.
    pub(crate) fn view(&self, task: &Task) -> TaskView {
        let queue = &self.queues[task.queue as usize];
        let lease = task.lease();
        let extras = task.extras.as_deref();
        TaskView {
            id: self.id(task.key),
            tenant: queue.tenant.clone(),
            command: queue.command.clone(),
            payload: task.payload.clone(),
            priority: task.priority,
            state: task.state(),
            worker: lease.map(|lease| lease.worker.clone()),
            lease_until: lease.map(|lease| lease.until),
            attempts: task.attempts,
            max_attempts: task.max_attempts,
            error: extras.map(|extras| extras.last_error.clone()).unwrap_or_default(),
            run_at: match task.stage {
                Stage::Delayed(due) => Some(self.estimate(due)),
                _ => None,
            },
            created_at: task.created_at,
            updated_at: task.updated_at,
            finished_at: None,
            ended_at: None,
            result: None,
            webhook: extras.map(|extras| extras.webhook.clone()).unwrap_or_default(),
            idempotency_key: extras.map(|extras| extras.idempotency_key.clone()).unwrap_or_default(),
            cancel_requested: task.cancel_requested,
            history: Vec::new(),
        }
    }

    /// A due time on the schedule clock, for people.
    pub(crate) fn estimate(&self, due: Due) -> ScheduleTime {
        estimate(due, self.clocks)
    }

    /// An error text within its limit, cut at a character boundary.
    pub(crate) fn cut<'a>(&self, text: &'a str) -> &'a str {
        &text[..text.floor_char_boundary(self.policy.error_bytes_max)]
    }
}

/// What became of a failed attempt.
pub(crate) enum AttemptEnd {
    Retried { delay: Millis, attempts: u32 },
    Dead { attempts: u32 },
    Cancelled(Arc<TaskView>),
}
