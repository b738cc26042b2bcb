//! What becomes due, ordered by time and then by task: delays and leases on the lease clock, absolute run-at on the schedule clock.

use std::collections::BTreeSet;

use base::machine::{Effects, NextDue, Notice};
use base::{LeaseTime, ScheduleTime, Stamps};

use crate::history::Happening;
use crate::machine::{QueueMachine, Signal};
use crate::outcome::State;
use crate::task::{Due, LEASE_EXPIRED, Note, Stage, estimate};

/// Deadlines of a shard: of all its leases, and of every queue with delayed tasks the one that comes first.
#[derive(Default)]
pub(crate) struct DueIndex {
    leases: BTreeSet<(LeaseTime, u64)>,
    delays: Heads<LeaseTime>,
    schedule: Heads<ScheduleTime>,
}

/// The delayed tasks of one queue.
#[derive(Default)]
pub(crate) struct Delayed {
    lease: BTreeSet<(LeaseTime, u64)>,
    schedule: BTreeSet<(ScheduleTime, u64)>,
}

/// (time, task, queue) of the first of each queue.
type Heads<T> = BTreeSet<(T, u64, u32)>;

impl Delayed {
    /// How many there are.
    pub(crate) fn len(&self) -> u64 {
        (self.lease.len() + self.schedule.len()) as u64
    }

    /// When the first of them is due, estimated on the schedule clock.
    pub(crate) fn next(&self, clocks: Stamps) -> Option<ScheduleTime> {
        let lease = self.lease.first().map(|(time, _)| Due::Lease(*time));
        let schedule = self.schedule.first().map(|(time, _)| Due::Schedule(*time));
        lease.into_iter().chain(schedule).map(|due| estimate(due, clocks)).min()
    }
}

/// Adds a task to those of its queue, and to the heads if it is the first there.
fn hold<T: Ord + Copy>(of_queue: &mut BTreeSet<(T, u64)>, heads: &mut Heads<T>, queue: u32, (time, key): (T, u64)) {
    let head = of_queue.first().copied();
    assert!(of_queue.insert((time, key)), "a task has one deadline");
    if head.is_none_or(|head| (time, key) < head) {
        if let Some((time, key)) = head {
            heads.remove(&(time, key, queue));
        }
        heads.insert((time, key, queue));
    }
}

/// Takes one away, and lets the next of its queue take its place among the heads.
fn free<T: Ord + Copy>(of_queue: &mut BTreeSet<(T, u64)>, heads: &mut Heads<T>, queue: u32, (time, key): (T, u64)) {
    let was_head = of_queue.first() == Some(&(time, key));
    assert!(of_queue.remove(&(time, key)), "the deadline of a task is in the index");
    if was_head {
        heads.remove(&(time, key, queue));
        heads.extend(of_queue.first().map(|(time, key)| (*time, *key, queue)));
    }
}

impl DueIndex {
    pub(crate) fn delay(&mut self, of_queue: &mut Delayed, queue: u32, due: Due, key: u64) {
        match due {
            Due::Lease(time) => hold(&mut of_queue.lease, &mut self.delays, queue, (time, key)),
            Due::Schedule(time) => hold(&mut of_queue.schedule, &mut self.schedule, queue, (time, key)),
        }
    }

    pub(crate) fn end_delay(&mut self, of_queue: &mut Delayed, queue: u32, due: Due, key: u64) {
        match due {
            Due::Lease(time) => free(&mut of_queue.lease, &mut self.delays, queue, (time, key)),
            Due::Schedule(time) => free(&mut of_queue.schedule, &mut self.schedule, queue, (time, key)),
        }
    }

    pub(crate) fn lease(&mut self, deadline: LeaseTime, key: u64) {
        assert!(self.leases.insert((deadline, key)), "a task has one deadline");
    }

    pub(crate) fn end_lease(&mut self, deadline: LeaseTime, key: u64) {
        assert!(self.leases.remove(&(deadline, key)), "the deadline of a task is in the index");
    }

    /// What is due first on the lease clock.
    fn first(&self) -> Option<(LeaseTime, u64)> {
        let delay = self.delays.first().map(|(time, key, _)| (*time, *key));
        self.leases.first().copied().into_iter().chain(delay).min()
    }

    /// The next task whose time has come: the lease clock's first.
    fn next(&self, clocks: &Stamps) -> Option<u64> {
        // M20: only a page of the deadlines is looked at, in the order of their tasks.
        if base::planted::is(20) {
            let delays = self.delays.iter().map(|(time, key, _)| (*key, *time));
            let mut page: Vec<_> = self.leases.iter().map(|(time, key)| (*key, *time)).chain(delays).collect();
            page.sort_unstable();
            return page.into_iter().take(4).find(|(_, time)| *time <= clocks.lease).map(|(key, _)| key);
        }
        let lease = self.first().filter(|(time, _)| *time <= clocks.lease).map(|(_, key)| key);
        lease.or_else(|| self.schedule.first().filter(|(time, _, _)| *time <= clocks.schedule).map(|(_, key, _)| *key))
    }

    /// The tasks that are leased.
    pub(crate) fn leased(&self) -> Vec<u64> {
        self.leases.iter().map(|(_, key)| *key).collect()
    }

    pub(crate) fn next_due(&self) -> NextDue {
        NextDue {
            lease: self.first().map(|(time, _)| time),
            schedule: self.schedule.first().map(|(time, _, _)| *time),
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
        let leases: u64 = self.queues.iter().map(|queue| queue.holders.leases).sum();
        if leases == 0 {
            return None;
        }
        let mut fields = vec![("leases", leases)];
        let mut text = format!("{leases} leases go on");
        if let Some((deadline, _)) = self.due.leases.first() {
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
