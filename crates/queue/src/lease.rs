//! Claims and leases: who may act on a task, and until when.

use base::machine::Effects;
use base::map::IdMap;
use base::{LeaseTime, Millis, planted};

use crate::history::Happening;
use crate::id::LeaseToken;
use crate::machine::{QueueMachine, Signal};
use crate::op::{Claim, Credential, LeaseRef};
use crate::outcome::{Grant, Outcome, Rejection, State};
use crate::ready::hash;
use crate::slab::Slot;
use crate::task::{AttemptEnd, Ending, Lease, Note, Task};

/// Who holds leases of a queue.
#[derive(Default)]
pub(crate) struct Holders {
    /// How many each worker holds, by the hash of its identity, since every claim and every end comes by here; none: it is not here. Two
    /// with one hash would be counted as one.
    by_worker: IdMap<u32>,
    /// How many there are.
    pub(crate) leases: u64,
}

impl Holders {
    pub(crate) fn add(&mut self, worker: &str) {
        self.leases += 1;
        *self.by_worker.entry(hash(&[worker]).0).or_default() += 1;
    }

    pub(crate) fn remove(&mut self, worker: &str) {
        self.leases -= 1;
        let worker = hash(&[worker]).0;
        let leases = self.by_worker.get_mut(&worker).expect("who holds a lease is known");
        *leases -= 1;
        if *leases == 0 {
            self.by_worker.remove(&worker);
        }
    }

    /// How many workers hold at least one.
    pub(crate) fn workers(&self) -> u64 {
        self.by_worker.len() as u64
    }
}

impl QueueMachine {
    pub(crate) fn claim(&mut self, claim: &Claim<'_>, effects: &mut Effects<Self>) -> Vec<Grant> {
        let length = self.policy.lease.clamp(claim.lease);
        let mut grants = Vec::new();
        while grants.len() < usize::from(claim.count) {
            let Some(choice) = self.next_for(claim) else { break };
            let slot = self.pop_ready(&choice);
            let grant = self.grant(slot, claim.worker, length);
            effects.signals.push(Signal::Claimed { command: grant.task.command.clone() });
            grants.push(grant);
        }
        grants
    }

    fn grant(&mut self, slot: Slot, worker: &str, length: Millis) -> Grant {
        let rank = self.grants_in_entry;
        self.grants_in_entry += 1;
        let task = self.tasks.get_mut(slot);
        task.attempts += 1;
        let token = LeaseToken::new(task.attempts, self.entry.index, &self.entry.seed, rank);
        let queue = task.queue as usize;
        self.queues[queue].totals.claimed += 1;
        let deadline = self.clocks.lease + length;
        let until = self.clocks.schedule + length;
        self.become_leased(slot, Lease { worker: worker.into(), token, deadline, until });
        let (from, to) = (Some(State::Ready), Some(State::Leased));
        self.note(
            slot,
            Happening::Claimed,
            &Note { from, to, worker, attempt: token.attempt, lease: Some(length), ..Note::default() },
        );
        Grant { task: self.view(self.tasks.get(slot)), token, length }
    }

    /// The task whose lease the caller holds now.
    ///
    /// The lease is read from the task's own record, never from a timer: at its deadline it is over, even if nobody has noticed yet.
    pub(crate) fn held(&self, lease: &LeaseRef<'_>) -> Result<Slot, Rejection> {
        let slot = self.live(lease.tenant, lease.task).ok_or(Rejection::NotLive)?;
        check(self.tasks.get(slot), &lease.credential, self.clocks.lease).map(|()| slot)
    }

    /// M23: whoever once held the task may give it back again.
    fn held_or_ended(&self, lease: &LeaseRef<'_>) -> Result<Slot, Rejection> {
        let leased = |slot: &Slot| self.tasks.get(*slot).lease().is_some();
        match self.live(lease.tenant, lease.task).filter(leased) {
            Some(slot) if planted::is(23) => Ok(slot),
            _ => self.held(lease),
        }
    }

    pub(crate) fn extend(&mut self, lease: &LeaseRef<'_>, length: Option<Millis>) -> Result<Outcome, Rejection> {
        let slot = self.held(lease)?;
        let length = self.policy.lease.clamp(length);
        let current = self.tasks.get(slot).lease().expect("it is held").deadline;
        let deadline = current.max(self.clocks.lease + length);
        let remaining = deadline - self.clocks.lease;
        let until = self.clocks.schedule + remaining;
        self.move_deadline(slot, deadline, until);
        self.note_lease(slot, Happening::Extended, State::Leased, Some(remaining));
        Ok(Outcome::Extended { remaining, until, cancel_requested: self.tasks.get(slot).cancel_requested })
    }

    /// Notes what the holder of a task does with its lease.
    fn note_lease(&mut self, slot: Slot, what: Happening, to: State, lease: Option<Millis>) {
        let task = self.tasks.get(slot);
        let worker = task.lease().map(|lease| lease.worker.clone()).unwrap_or_default();
        let (from, attempt) = (Some(State::Leased), task.attempts);
        self.note(slot, what, &Note { from, to: Some(to), worker: &worker, attempt, lease, ..Note::default() });
    }

    /// Notes that a result came from somebody who does not hold the task. Nothing else of the task changes, not even when it changed last.
    fn note_refused(&mut self, lease: &LeaseRef<'_>, why: Rejection) {
        let Some(slot) = self.live(lease.tenant, lease.task) else { return };
        let task = self.tasks.get(slot);
        let (worker, attempt) = match lease.credential {
            Credential::Token(token) => ("", token.attempt),
            Credential::Worker(worker) => (worker, task.attempts),
            Credential::Unknown => ("", task.attempts),
        };
        let reason = match why {
            Rejection::NotOwner => "not_owner",
            Rejection::NotLeased => "not_in_progress",
            _ => "lease_lost",
        };
        let (state, key) = (Some(task.state()), task.key);
        self.save(slot);
        self.changes.note(self.entry.index, key);
        self.note(
            slot,
            Happening::ResultRefused,
            &Note { from: state, to: state, worker, attempt, reason, ..Note::default() },
        );
    }

    /// M16.
    pub(crate) fn renew_leases(&mut self) {
        let now = self.clocks;
        for key in self.due.leased() {
            let slot = self.tasks.find(key).expect("what is leased is live");
            let length = self.policy.lease.default;
            self.move_deadline(slot, now.lease + length, now.schedule + length);
        }
    }

    pub(crate) fn release(&mut self, lease: &LeaseRef<'_>, effects: &mut Effects<Self>) -> Result<Outcome, Rejection> {
        let slot = self.held_or_ended(lease)?;
        if self.tasks.get(slot).cancel_requested {
            let reason = self.cancel_reason(slot);
            let view = self.finish(slot, &Ending::Cancelled { reason: &reason }, effects);
            return Ok(Outcome::Cancelled(Box::new(view.as_ref().clone())));
        }
        self.leave_stage(slot);
        self.note_lease(slot, Happening::Released, State::Ready, None);
        self.tasks.get_mut(slot).attempts -= 1;
        self.become_ready(slot, effects);
        Ok(Outcome::Released)
    }

    pub(crate) fn nack(
        &mut self,
        lease: &LeaseRef<'_>,
        delay: Option<Millis>,
        reason: &str,
        effects: &mut Effects<Self>,
    ) -> Result<Outcome, Rejection> {
        let slot = self.held_or_ended(lease)?;
        Ok(match self.end_attempt(slot, delay, reason, effects) {
            AttemptEnd::Retried { delay, attempts } => Outcome::Retried { delay, attempts },
            AttemptEnd::Dead { attempts } => Outcome::DeadLettered { attempts },
            AttemptEnd::Cancelled(view) => Outcome::Cancelled(Box::new(view.as_ref().clone())),
        })
    }

    pub(crate) fn end(
        &mut self,
        lease: &LeaseRef<'_>,
        ending: &Ending<'_>,
        effects: &mut Effects<Self>,
    ) -> Result<Outcome, Rejection> {
        let slot = match self.held(lease) {
            Ok(slot) => slot,
            Err(why) => {
                self.note_refused(lease, why);
                return Err(why);
            }
        };
        let attempt = self.tasks.get(slot).attempts;
        self.finish(slot, ending, effects);
        Ok(Outcome::Finished { at: self.clocks.schedule, attempt })
    }
}

fn check(task: &Task, credential: &Credential<'_>, now: LeaseTime) -> Result<(), Rejection> {
    // M18: a lease that is over still counts while nobody else holds the task.
    let current = task.lease().filter(|lease| now < lease.deadline || planted::is(18));
    match (credential, current) {
        (Credential::Token(token), Some(lease)) if lease.token == *token => Ok(()),
        (Credential::Token(_) | Credential::Unknown, current) => Err(Rejection::LeaseLost { held: current.is_some() }),
        (Credential::Worker(worker), Some(lease)) if *lease.worker == **worker => Ok(()),
        (Credential::Worker(_), Some(_)) => Err(Rejection::NotOwner),
        (Credential::Worker(_), None) => Err(Rejection::NotLeased),
    }
}
