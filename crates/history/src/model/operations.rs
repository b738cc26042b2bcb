//! Operations on many tasks. Which tasks are next, somebody finds in a checkpoint; the model knows which they may be: those that were there
//! when the operation began and have fitted its conditions since, each once, and all of those that have fitted all the time.

use std::collections::BTreeSet;

use super::{Model, Stage};
use crate::record::{Answer, Begin, Bulk, Call, Delete, Name, Progress, Redrive, Rejection, Stands, State, Step, Task};

/// One operation.
#[derive(Clone)]
pub(super) struct Operation {
    begin: Begin,
    /// The entry that began it.
    begun: u64,
    progress: Progress,
    /// Tasks that have fitted at some moment since it began.
    fitting: BTreeSet<u64>,
    /// Those of them that have not changed since it began.
    steady: BTreeSet<u64>,
    /// Those that it has dealt with.
    touched: BTreeSet<u64>,
}

/// Something that a step must not do: the property, what, and to which task.
pub type Wrong = (&'static str, String, Option<Task>);

/// Tasks that an operation which only counts shows.
const SAMPLES_MAX: usize = 20;

impl Operation {
    fn overlaps(&self, begin: &Begin) -> bool {
        let (own, other) = (&self.begin.commands, &begin.commands);
        self.progress.stands == Stands::Running
            && self.begin.tenant == begin.tenant
            && std::mem::discriminant(&self.begin.does) == std::mem::discriminant(&begin.does)
            && (own.is_empty() || other.is_empty() || own.iter().any(|command| other.contains(command)))
    }

    fn has_ended(&self) -> bool {
        self.progress.stands == Stands::Succeeded
    }
}

impl Model {
    /// The operations of a tenant in the order in which they began.
    pub(super) fn operations_of(&self, tenant: Name) -> Box<[Progress]> {
        self.operations().filter(|progress| progress.tenant == tenant).collect()
    }

    /// All operations in the order in which they began.
    pub fn operations(&self) -> impl Iterator<Item = Progress> {
        self.operations.iter().map(|operation| operation.progress.clone())
    }

    /// What the last step did to single tasks, and with what success.
    pub fn items(&self) -> &[(Call, Answer)] {
        &self.items
    }

    /// What the last step did and must not, if it did.
    pub fn wrong(&self) -> Option<&Wrong> {
        self.wrong.as_ref()
    }

    fn place_of(&self, tenant: Name, operation: u64) -> Result<usize, Rejection> {
        let is_it = |known: &Operation| (known.begin.tenant, known.begin.operation) == (tenant, operation);
        self.operations.iter().position(is_it).ok_or(Rejection::NoOperation)
    }

    fn refuse_conflict(&self, begin: &Begin) -> Result<(), Rejection> {
        match self.operations.iter().find(|operation| operation.overlaps(begin)) {
            Some(operation) => Err(Rejection::OperationConflict { with: operation.begin.operation }),
            None => Ok(()),
        }
    }

    pub(super) fn begin_operation(&mut self, begin: &Begin) -> Result<Answer, Rejection> {
        if self.place_of(begin.tenant, begin.operation).is_ok() {
            return Ok(Answer::Done);
        }
        self.refuse_conflict(begin)?;
        let progress = Progress {
            tenant: begin.tenant,
            operation: begin.operation,
            stands: Stands::Running,
            steps: 0,
            processed: 0,
            changed: 0,
            skipped: 0,
            expected: begin.all.then(|| self.expected(begin)),
            samples: Vec::new(),
        };
        let mut operation = Operation {
            begin: begin.clone(),
            begun: self.index,
            progress,
            fitting: BTreeSet::new(),
            steady: BTreeSet::new(),
            touched: BTreeSet::new(),
        };
        operation.fitting = self.tasks.keys().copied().filter(|key| self.fits(&operation, *key)).collect();
        operation.steady = operation.fitting.clone();
        self.operations.push(operation);
        Ok(Answer::Done)
    }

    fn expected(&self, begin: &Begin) -> u64 {
        let is_meant = |queue: &(Name, Name)| {
            queue.0 == begin.tenant && (begin.commands.is_empty() || begin.commands.contains(&queue.1))
        };
        let count = |queue: &(Name, Name)| {
            let stats = self.stats(queue.0, queue.1);
            let waiting = stats.ready.iter().sum::<u64>() + stats.delayed;
            match begin.does {
                Bulk::Redrive { .. } | Bulk::PurgeDead => stats.dead,
                Bulk::Purge => waiting,
                Bulk::Cancel { .. } => waiting + stats.leased,
            }
        };
        self.queues.keys().filter(|queue| is_meant(queue)).map(count).sum()
    }

    /// Whether a task was there when the operation began, in its present life or death, and is one of those asked for.
    fn fits(&self, operation: &Operation, key: u64) -> bool {
        let Some(item) = self.tasks.get(&key) else { return false };
        let begin = &operation.begin;
        let (state, since) = match item.stage {
            Stage::DelayedByLease(_) | Stage::DelayedBySchedule(_) => (State::Delayed, key / 65_536),
            Stage::Ready { .. } => (State::Ready, key / 65_536),
            Stage::Leased { .. } => (State::Leased, key / 65_536),
            Stage::Ended { state, at, .. } => (state, at),
        };
        since < operation.begun
            && item.tenant == begin.tenant
            && (begin.commands.is_empty() || begin.commands.contains(&item.command))
            && begin.states.contains(&state)
            && begin.attempts.is_none_or(|(least, most)| (least..=most).contains(&item.attempts))
            && begin.priority.is_none_or(|(least, most)| (least..=most).contains(&item.priority))
    }

    /// A task has changed: operations under way may mean it from now on.
    pub(super) fn notice(&mut self, key: u64) {
        let mut operations = std::mem::take(&mut self.operations);
        for operation in operations.iter_mut().filter(|operation| !operation.has_ended()) {
            operation.steady.remove(&key);
            if self.fits(operation, key) {
                operation.fitting.insert(key);
            }
        }
        self.operations = operations;
    }

    pub(super) fn turn(&mut self, tenant: Name, operation: u64, to: Stands) -> Result<Answer, Rejection> {
        let place = self.place_of(tenant, operation)?;
        match (self.operations[place].progress.stands, to) {
            (from, to) if from == to => return Ok(Answer::Done),
            (Stands::Running, Stands::Stopped) => {}
            (Stands::Stopped, Stands::Running) => self.refuse_conflict(&self.operations[place].begin)?,
            _ => return Err(Rejection::OperationState),
        }
        self.operations[place].progress.stands = to;
        Ok(Answer::Done)
    }

    pub(super) fn step(&mut self, step: &Step) -> Result<Answer, Rejection> {
        let place = self.place_of(step.tenant, step.operation)?;
        let progress = &self.operations[place].progress;
        if progress.stands != Stands::Running || progress.steps != step.after {
            return Err(Rejection::OperationState);
        }
        self.wrong = self.look_at(place, step);
        let (mut changed, mut skipped, mut items) = (0, 0, Vec::new());
        for item in &step.items {
            let answer = self.apply_one(item).unwrap_or_else(Answer::Rejected);
            *(if matches!(answer, Answer::Rejected(_)) { &mut skipped } else { &mut changed }) += 1;
            items.push((item.clone(), answer));
        }
        self.items = items;
        let operation = &mut self.operations[place];
        operation.touched.extend(step.items.iter().filter_map(|item| target(item).map(|(_, task)| task.key)));
        let progress = &mut operation.progress;
        progress.steps += 1;
        progress.changed += changed + step.counted;
        progress.skipped += skipped;
        progress.processed += changed + skipped + step.counted;
        let room = SAMPLES_MAX - progress.samples.len();
        progress.samples.extend(step.samples.iter().take(room));
        if step.last {
            progress.stands = Stands::Succeeded;
            let left = self.left(place);
            self.wrong = self.wrong.take().or(left);
            let operation = &mut self.operations[place];
            // It means no task any more.
            for keys in [&mut operation.fitting, &mut operation.steady, &mut operation.touched] {
                keys.clear();
            }
        }
        Ok(Answer::Done)
    }

    /// Whether a step does what its operation is for, to tasks that it means.
    fn look_at(&self, place: usize, step: &Step) -> Option<Wrong> {
        let operation = &self.operations[place];
        let number = operation.begin.operation;
        let mut touched = operation.touched.clone();
        for item in &step.items {
            let Some((ended_at, task)) = target(item) else {
                return Some(("S2", format!("a step of operation {number:x} holds {item:?}"), None));
            };
            if !self.is_meant(operation, item) {
                return Some(("S2", format!("operation {number:x} is not for {item:?}"), Some(task)));
            }
            if !operation.fitting.contains(&task.key) || ended_at.is_some_and(|ended| ended >= operation.begun) {
                return Some(("S2", format!("operation {number:x} does not mean the task of {item:?}"), Some(task)));
            }
            if !touched.insert(task.key) {
                return Some(("S8", format!("operation {number:x} has dealt with the task of {item:?}"), Some(task)));
            }
        }
        let foreign = step.samples.iter().find(|task| !operation.fitting.contains(&task.key));
        foreign.map(|task| ("S2", format!("operation {number:x} does not mean a task that it shows"), Some(*task)))
    }

    /// Whether the operation asks for that.
    fn is_meant(&self, operation: &Operation, item: &Call) -> bool {
        let tenant = operation.begin.tenant;
        match (operation.begin.does, item) {
            _ if operation.begin.dry_run => false,
            (Bulk::Redrive { keep_attempts, delay, priority }, Call::Redrive(redrive)) => {
                let own = self.tasks.get(&redrive.task.key).map_or(redrive.payload, |item| item.payload);
                let ended = self.view(redrive.task).and_then(|view| view.ended_at);
                // What has become of it since, the redrive does not know, and has no effect.
                let payload = if ended == Some(redrive.ended_at) { own } else { redrive.payload };
                let Redrive { task, ended_at, .. } = *redrive;
                *redrive == Redrive { tenant, task, ended_at, keep_attempts, delay, priority, payload }
            }
            (Bulk::PurgeDead, Call::Delete(delete)) => delete.tenant == tenant && delete.ended_at.is_some(),
            (Bulk::Purge, Call::Delete(delete)) => delete.tenant == tenant && delete.ended_at.is_none(),
            (Bulk::Cancel { reason, force }, Call::Cancel { tenant: of, task, .. }) => {
                *of == tenant && *item == Call::Cancel { tenant, task: *task, reason, force }
            }
            _ => false,
        }
    }

    /// Whether an operation has ended without dealing with all that it must have met.
    fn left(&self, place: usize) -> Option<Wrong> {
        let operation = &self.operations[place];
        let number = operation.begin.operation;
        let asked_to_stop = |key: u64| match operation.begin.does {
            Bulk::Cancel { force, .. } => !force && self.tasks[&key].cancel.is_some(),
            _ => false,
        };
        let steady = || operation.steady.iter().copied().filter(|key| self.tasks.contains_key(key));
        if operation.begin.dry_run {
            let (least, most) = (steady().count() as u64, operation.fitting.len() as u64);
            let counted = operation.progress.processed;
            let right = (least..=most).contains(&counted);
            let what = || format!("operation {number:x} counts {counted} tasks, must be {least} to {most}");
            return (!right).then(|| ("I6", what(), None));
        }
        let missed = steady().find(|key| !operation.touched.contains(key) && !asked_to_stop(*key))?;
        Some(("S13", format!("operation {number:x} has ended and missed a task"), Some(self.task(missed))))
    }

    pub(super) fn delete(&mut self, delete: &Delete) -> Result<Answer, Rejection> {
        let key = delete.task.key;
        match (self.live(delete.tenant, delete.task), delete.ended_at) {
            (Some(_), None) if matches!(self.tasks[&key].stage, Stage::Leased { .. }) => {
                return Err(Rejection::IsLeased);
            }
            (Some(_), None) => {}
            (Some(_), Some(_)) => return Err(Rejection::NotEnded),
            (None, None) => return Err(Rejection::NotLive),
            (None, Some(ended_at)) => {
                let here = self.tasks.get(&key).filter(|item| item.tenant == delete.tenant);
                match here.ok_or(Rejection::NotLive)?.stage {
                    Stage::Ended { state: State::Completed, .. } => return Err(Rejection::NotLive),
                    Stage::Ended { at, .. } if at != ended_at => return Err(Rejection::RecordChanged),
                    _ => {}
                }
            }
        }
        self.leave(key);
        let item = self.tasks.remove(&key).expect("it was found");
        if let Some(name) = delete.key {
            let bound = ((item.tenant, item.command), name);
            if self.bound.get(&bound).is_some_and(|binding| binding.task == key) {
                self.bound.remove(&bound);
            }
        }
        Ok(Answer::Done)
    }
}

/// What a part of a step is about: the task, and the entry that ended it, if it names one.
fn target(item: &Call) -> Option<(Option<u64>, Task)> {
    match item {
        Call::Redrive(redrive) => Some((Some(redrive.ended_at), redrive.task)),
        Call::Delete(delete) => Some((delete.ended_at, delete.task)),
        Call::Cancel { task, .. } => Some((None, *task)),
        _ => None,
    }
}
