//! Paused queues: nothing is claimed from them until somebody resumes them or their time is over. Leases go on, and so do creations and
//! due times.
//!
//! The lists of a paused queue stand outside the turns of their tenant, so that no claim meets them: it costs nothing that they are there.

use std::collections::BTreeSet;

use base::codec::Malformed;
use base::machine::Effects;
use base::rows::{RowReader, RowWriter};
use base::{LeaseTime, Millis, ScheduleTime};

use crate::machine::QueueMachine;
use crate::outcome::{Outcome, PauseView, Rejection};
use crate::ready::PRIORITIES;

/// Why and until when a queue is paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pause {
    /// When it ends by itself.
    pub(crate) deadline: Option<LeaseTime>,
    /// What people are shown.
    pub(crate) view: PauseView,
}

/// When pauses end by themselves.
#[derive(Default)]
pub(crate) struct Pauses {
    ends: BTreeSet<(LeaseTime, u32)>,
}

impl Pauses {
    pub(crate) fn next(&self) -> Option<LeaseTime> {
        self.ends.first().map(|(time, _)| *time)
    }
}

impl QueueMachine {
    /// Pauses a queue, or changes why and until when it is paused. A queue that nobody has used yet is known from now on.
    pub(crate) fn pause(
        &mut self,
        tenant: &str,
        command: &str,
        length: Option<Millis>,
        reason: &str,
        by: &str,
    ) -> Result<Outcome, Rejection> {
        let queue = self.open_queue(tenant, command).ok_or(Rejection::TooManyQueues)?;
        let view = PauseView {
            until: length.map(|length| self.clocks.schedule + length),
            reason: self.cut(reason).into(),
            by: self.cut(by).into(),
        };
        let pause = Pause { deadline: length.map(|length| self.clocks.lease + length), view };
        self.change_queue(queue);
        self.forget_end(queue);
        if self.queues[queue as usize].pause.is_none() {
            self.leave_turns(queue);
        }
        self.tell_paused(queue, &pause.view.by, &pause.view.reason, pause.view.until);
        self.keep_pause(queue, pause);
        Ok(Outcome::Done)
    }

    /// Lets claims see the queue again. Harmless if it is not paused, or not known.
    pub(crate) fn resume(&mut self, tenant: &str, command: &str, effects: &mut Effects<Self>) -> Outcome {
        if let Some(queue) = self.queue_id(tenant, command).filter(|queue| self.is_paused(*queue)) {
            self.end_pause(queue, effects);
        }
        Outcome::Done
    }

    /// Ends the pauses whose time is over, at most so many; says how many that were.
    pub(crate) fn end_pauses(&mut self, at_most: usize, effects: &mut Effects<Self>) -> usize {
        for ended in 0..at_most {
            match self.pauses.ends.first() {
                Some((time, queue)) if *time <= self.clocks.lease => self.end_pause(*queue, effects),
                _ => return ended,
            }
        }
        at_most
    }

    fn end_pause(&mut self, queue: u32, effects: &mut Effects<Self>) {
        self.change_queue(queue);
        self.tell_resumed(queue);
        self.forget_end(queue);
        self.queues[queue as usize].pause = None;
        self.return_to_turns(queue);
        self.wake_claims(queue, effects);
    }

    pub(crate) fn is_paused(&self, queue: u32) -> bool {
        self.queues[queue as usize].pause.is_some()
    }

    /// Notes a pause of a queue whose lists stand outside the turns.
    pub(crate) fn keep_pause(&mut self, queue: u32, pause: Pause) {
        self.pauses.ends.extend(pause.deadline.map(|deadline| (deadline, queue)));
        self.queues[queue as usize].pause = Some(Box::new(pause));
    }

    fn forget_end(&mut self, queue: u32) {
        if let Some(deadline) = self.queues[queue as usize].pause.as_ref().and_then(|pause| pause.deadline) {
            self.pauses.ends.remove(&(deadline, queue));
        }
    }

    fn leave_turns(&mut self, queue: u32) {
        for priority in 0..PRIORITIES {
            if self.queues[queue as usize].lists[priority].length > 0 {
                self.give_up_turn(queue, priority);
            }
        }
        let entry = &self.queues[queue as usize];
        self.tenants[entry.owner as usize].ready -= entry.ready();
    }

    fn return_to_turns(&mut self, queue: u32) {
        let entry = &self.queues[queue as usize];
        let owner = entry.owner as usize;
        self.tenants[owner].ready += entry.ready();
        for priority in 0..PRIORITIES {
            if self.queues[queue as usize].lists[priority].length > 0 {
                // The rounds that it has missed are gone.
                let served = self.tenants[owner].turns[priority].round;
                let list = &mut self.queues[queue as usize].lists[priority];
                list.round = list.round.max(served);
                self.take_turn(queue, priority);
            }
        }
    }
}

impl Pause {
    /// Appends it, or that there is none, to a row.
    pub(crate) fn put(pause: Option<&Pause>, row: &mut RowWriter<'_>) {
        row.number(u64::from(pause.is_some()));
        row.maybe_number(pause.and_then(|pause| pause.deadline).map(|time| time.0));
        row.maybe_number(pause.and_then(|pause| pause.view.until).map(|time| time.0));
        row.maybe_text(pause.map_or("", |pause| &pause.view.reason));
        row.maybe_text(pause.map_or("", |pause| &pause.view.by));
    }

    /// Reads back what [`Pause::put`] wrote.
    pub(crate) fn read(row: &mut RowReader<'_>) -> Result<Option<Pause>, Malformed> {
        let is_paused = row.number()? != 0;
        let deadline = row.maybe_number()?.map(LeaseTime);
        let until = row.maybe_number()?.map(ScheduleTime);
        let view = PauseView { until, reason: row.text()?.into(), by: row.text()?.into() };
        Ok(is_paused.then_some(Pause { deadline, view }))
    }
}
