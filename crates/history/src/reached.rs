//! Rare things that a shard's log shows to have happened. A run in which they did not has shown little about them.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Expired, Model};
use crate::record::{Answer, Call, Claim, Delete, Rejection, Stands, State, Task};

/// What one shard's log has come to so far. Names are those of docs/internals/simulation.md.
#[derive(Default)]
pub(crate) struct Reached {
    pub(crate) marks: BTreeMap<&'static str, usize>,
    /// The term in which the entry before was proposed; 0: there was none.
    term: u32,
    /// The entry before, and the present one: has a lease been extended, has one run out?
    before: (bool, bool),
    now: (bool, bool),
    /// The term in which a task with an idempotency key was created, by its key.
    keyed: BTreeMap<u64, u32>,
    /// Dead tasks that were brought back and are not completed.
    revived: BTreeSet<u64>,
    /// The operation being applied brings a task back with another payload, or moves one by an edit.
    with_another: bool,
    /// The term in which an operation on many tasks went on last.
    bulk: BTreeMap<u64, u32>,
}

impl Reached {
    fn mark(&mut self, name: &'static str) {
        *self.marks.entry(name).or_default() += 1;
    }

    /// An entry has begun, and its stamps have ended these leases.
    pub(crate) fn entry(&mut self, term: u32, model: &Model, expired: &[Expired]) {
        if self.term != 0 && self.term != term && !expired.is_empty() {
            self.mark("K02");
        }
        self.term = term;
        if model.ended_pauses() > 0 {
            self.mark("K22");
        }
        self.before = std::mem::replace(&mut self.now, (false, !expired.is_empty()));
        if self.before.0 && self.now.1 {
            self.mark("K04");
        }
        if model.is_overdue() {
            self.mark("K13");
        }
        let dead = |task: Task| model.view(task).is_some_and(|view| view.state == State::Dead);
        if expired.iter().any(|expired| expired.delay.is_none() && dead(expired.task)) {
            self.mark("K07-expiry");
        }
    }

    /// An operation is about to be applied.
    pub(crate) fn asked(&mut self, call: &Call, model: &Model) {
        let before = match call {
            Call::Redrive(redrive) => model.view(redrive.task),
            Call::Edit(edit) => model.view(edit.task),
            _ => return,
        };
        self.with_another = before.is_some_and(|view| match call {
            Call::Redrive(redrive) => {
                if view.state == State::Dead {
                    self.revived.insert(redrive.task.key);
                }
                view.payload != redrive.payload
            }
            Call::Edit(edit) => edit.schedule.is_some() || edit.priority.is_some_and(|other| other != view.priority),
            _ => false,
        });
    }

    /// An operation was applied.
    pub(crate) fn answered(&mut self, call: &Call, answer: &Answer) {
        match (call, answer) {
            (Call::Extend { .. }, Answer::Extended { .. }) => {
                self.now.0 = true;
                if self.before.1 {
                    self.mark("K04");
                }
            }
            (Call::Complete { .. } | Call::Fail { .. }, Answer::Rejected(Rejection::LeaseLost { .. })) => {
                self.mark("K03")
            }
            (Call::Complete { lease, .. }, Answer::Finished { .. }) if self.revived.remove(&lease.task.key) => {
                self.mark("K17");
            }
            (Call::Nack { .. }, Answer::Deadlettered { .. }) => self.mark("K07-nack"),
            (Call::Edit(_), Answer::Edited(_)) if self.with_another => self.mark("K23-moved"),
            (Call::Edit(_), Answer::Rejected(Rejection::IsLeased)) => self.mark("K23-held"),
            (Call::Amend(_), Answer::Edited(_)) => self.mark("K23-dead"),
            (Call::Amend(_), Answer::Rejected(Rejection::RecordChanged)) => self.mark("K23-changed"),
            (Call::Redrive(_), Answer::Redriven(_)) if self.with_another => self.mark("K24"),
            (Call::Create(create), Answer::Created { task, .. }) if create.key.is_some() => {
                self.keyed.insert(task.key, self.term);
            }
            (Call::Create(_), Answer::Replayed(first))
                if self.keyed.get(&first.key).is_some_and(|of| *of != self.term) =>
            {
                self.mark("K08");
            }
            _ => {}
        }
    }

    /// An operation on many tasks went on, or did not.
    pub(crate) fn stepped(&mut self, call: &Call, answer: &Answer, model: &Model) {
        let name = match (call, answer) {
            (Call::Begin(begin), Answer::Done) => begin.operation,
            (Call::Turn { to: Stands::Running, .. }, Answer::Done) => return self.mark("K26-resumed"),
            (Call::Step(_), Answer::Rejected(Rejection::OperationState)) => return self.mark("K26-again"),
            (Call::Step(step), Answer::Done) => {
                if model.items().iter().any(|(_, answer)| matches!(answer, Answer::Rejected(_))) {
                    self.mark("K26-skipped");
                }
                for (item, answer) in model.items() {
                    match (item, answer) {
                        (Call::Redrive(_), Answer::Redriven(_)) => self.mark("K25-redrive"),
                        (Call::Delete(Delete { ended_at: Some(_), .. }), Answer::Done) => self.mark("K25-purge-dead"),
                        (Call::Delete(_), Answer::Done) => self.mark("K25-purge"),
                        (Call::Cancel { .. }, Answer::Cancelled | Answer::CancelRequested) => self.mark("K25-cancel"),
                        _ => {}
                    }
                }
                step.operation
            }
            _ => return,
        };
        let before = self.bulk.insert(name, self.term);
        if before.is_some_and(|before| before != self.term) {
            self.mark("K26-leader");
        }
    }

    /// A claim was told that there is nothing to do.
    pub(crate) fn nothing(&mut self, claim: &Claim, model: &Model) {
        if model.has_delayed() {
            self.mark("K14");
        }
        if model.has_paused_work(claim) {
            self.mark("K21");
        }
    }
}
