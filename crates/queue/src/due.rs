//! What becomes due, ordered by time and then by task: delays and leases on the lease clock, absolute run-at on the schedule clock.

use std::collections::BTreeSet;

use base::machine::{Effects, NextDue, Notice};
use base::{LeaseTime, ScheduleTime, Stamps};

use crate::history::Happening;
use crate::machine::{QueueMachine, Signal};
use crate::outcome::State;
use crate::task::{Due, LEASE_EXPIRED, Note, Stage};

/// Deadlines that are looked at to find a lease's among those of delays.
const LOOKED_AT_MAX: usize = 4_096;

/// Deadlines of delayed and leased tasks.
#[derive(Default)]
pub(crate) struct DueIndex {
    lease: BTreeSet<(LeaseTime, u64)>,
    schedule: BTreeSet<(ScheduleTime, u64)>,
}

impl DueIndex {
    pub(crate) fn insert(&mut self, due: Due, key: u64) {
        let new = match due {
            Due::Lease(time) => self.lease.insert((time, key)),
            Due::Schedule(time) => self.schedule.insert((time, key)),
        };
        assert!(new, "a task has one deadline");
    }

    pub(crate) fn remove(&mut self, due: Due, key: u64) {
        let known = match due {
            Due::Lease(time) => self.lease.remove(&(time, key)),
            Due::Schedule(time) => self.schedule.remove(&(time, key)),
        };
        assert!(known, "the deadline of a task is in the index");
    }

    /// The next task whose time has come: the lease clock's first.
    fn next(&self, clocks: &Stamps) -> Option<u64> {
        // M20: only a page of the deadlines is looked at, in the order of their tasks.
        if base::planted::is(20) {
            let mut page: Vec<_> = self.lease.iter().map(|(time, key)| (*key, *time)).collect();
            page.sort_unstable();
            return page.into_iter().take(4).find(|(_, time)| *time <= clocks.lease).map(|(key, _)| key);
        }
        let lease = self.lease.first().filter(|(time, _)| *time <= clocks.lease).map(|(_, key)| *key);
        lease.or_else(|| self.schedule.first().filter(|(time, _)| *time <= clocks.schedule).map(|(_, key)| *key))
    }

    /// The tasks that wait for the lease clock.
    pub(crate) fn keys(&self) -> Vec<u64> {
        self.lease.iter().map(|(_, key)| *key).collect()
    }

    pub(crate) fn next_due(&self) -> NextDue {
        NextDue {
            lease: self.lease.first().map(|(time, _)| *time),
            schedule: self.schedule.first().map(|(time, _)| *time),
            overdue: false,
        }
    }
}

impl QueueMachine {
    /// Applies what the clocks have made due, at most as many pauses and tasks as an entry may: pauses first, then in order of
    /// time and task.
    pub(crate) fn due_phase(&mut self, effects: &mut Effects<Self>) {
        let ended = self.end_pauses(self.due_per_entry, effects);
        for _ in ended..self.due_per_entry {
            let Some(key) = self.due.next(&self.clocks) else { return };
            let slot = self.tasks.find(key).expect("what is due is live");
            match &self.tasks.get(slot).stage {
                Stage::Delayed(_) => {
                    self.leave_stage(slot);
                    self.become_ready(slot, effects);
                    let (from, to) = (Some(State::Delayed), Some(State::Ready));
                    let attempt = self.tasks.get(slot).attempts;
                    self.note(slot, Happening::Ready, &Note { from, to, attempt, ..Note::default() });
                }
                Stage::Leased(_) => {
                    let queue = self.tasks.get(slot).queue;
                    self.change_queue(queue);
                    let queue = &mut self.queues[queue as usize];
                    queue.totals.expired += 1;
                    effects.signals.push(Signal::LeaseExpired { command: queue.command.clone() });
                    self.end_attempt(slot, None, LEASE_EXPIRED, effects);
                }
                Stage::Ready { .. } => panic!("a ready task has no deadline"),
            }
        }
    }

    /// What a new leader takes over from the one before: leases, and when the next of them ends unless it is extended. Nothing: there are none.
    pub(crate) fn leases_resumed(&self) -> Option<Notice> {
        let leases: u64 = self.queues.iter().map(|queue| queue.leased).sum();
        if leases == 0 {
            return None;
        }
        let is_leased =
            |key: u64| self.tasks.find(key).is_some_and(|slot| matches!(self.tasks.get(slot).stage, Stage::Leased(_)));
        let soonest = self.due.lease.iter().take(LOOKED_AT_MAX).find(|(_, key)| is_leased(*key));
        let mut fields = vec![("leases", leases)];
        let mut text = format!("{leases} leases go on");
        if let Some((deadline, _)) = soonest {
            let left = (*deadline - self.clocks.lease.min(*deadline)).0;
            fields.push(("nextExpiryMs", left));
            text = format!("{text}, the next ends in {left} ms");
        }
        Some(Notice { name: "queue.leases.resumed", text, fields })
    }

    /// Whether the last due phase reached its cap.
    pub(crate) fn is_overdue(&self) -> bool {
        self.due.next(&self.clocks).is_some() || self.pauses.next().is_some_and(|end| end <= self.clocks.lease)
    }
}
