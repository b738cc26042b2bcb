//! Which property an answer breaks that the model would not have given.

use crate::model::Model;
use crate::record::{Answer, Call, Export, Grant, Lease, Name, Rejection, Right, State, Task, View};

/// The property, what is wrong, and with which task.
pub(crate) type Blame = (&'static str, String, Option<Task>);

/// Why `answer` cannot be: `model` has just given `expected` instead. `closed`: the grant of a task that an operation closed last.
pub(crate) fn answer(
    model: &Model,
    call: &Call,
    answer: &Answer,
    expected: &Answer,
    closed: impl Fn(Task) -> Option<(u32, u64)>,
) -> Blame {
    let told = |what: &str| format!("{what}: {call:?} was answered {answer:?}, must be {expected:?}");
    match (call, answer, expected) {
        (Call::Claim(claim), Answer::Claimed(granted), Answer::Claimed(expected)) => {
            claimed(model, claim.tenant, granted, expected, &told)
        }
        (Call::Create(create), ..) => {
            let id = match (answer, expected) {
                (Answer::Created { .. }, Answer::Created { .. }) => "S16",
                (Answer::Created { .. } | Answer::Replayed(_), _) if create.key.is_some() => "S7",
                _ => "S8",
            };
            (id, told("a creation"), None)
        }
        (
            Call::Extend { lease, .. }
            | Call::Release { lease }
            | Call::Nack { lease, .. }
            | Call::Complete { lease, .. }
            | Call::Fail { lease, .. },
            ..,
        ) => held(model, call, lease, answer, expected, &closed, &told),
        (Call::Cancel { tenant, task, .. }, ..) => {
            let foreign = model.view(*task).is_some_and(|view| view.tenant != *tenant);
            (if foreign { "S18" } else { "S20" }, told("a cancellation"), Some(*task))
        }
        (Call::Redrive(redrive), Answer::Redriven(found), Answer::Redriven(expected)) => {
            (view(found, expected), told("a redrive"), Some(redrive.task))
        }
        (Call::Redrive(redrive), ..) => ("S8", told("a redrive"), Some(redrive.task)),
        (Call::Edit(edit), ..) => {
            let foreign = model.view(edit.task).is_some_and(|view| view.tenant != edit.tenant);
            let id = match (answer, expected) {
                (Answer::Edited(found), Answer::Edited(expected)) => view(found, expected),
                _ if foreign => "S18",
                (Answer::Edited(_), Answer::Rejected(Rejection::IsLeased)) => "S4",
                (Answer::Rejected(Rejection::NotLive), Answer::Edited(_)) => "S1",
                _ => "S16",
            };
            (id, told("an edit"), Some(edit.task))
        }
        (Call::Amend(amend), ..) => {
            let foreign = model.view(amend.task).is_some_and(|view| view.tenant != amend.tenant);
            let id = match (answer, expected) {
                (Answer::Edited(found), Answer::Edited(expected)) => view(found, expected),
                _ if foreign => "S18",
                _ => "S16",
            };
            (id, told("a change of a dead task"), Some(amend.task))
        }
        (Call::Read { tenant, task, .. }, ..) => {
            let id = match (answer, expected) {
                (Answer::Found(found), Answer::Found(expected)) => view(found, expected),
                (Answer::Missing, Answer::Found(_)) => "S1",
                _ if model.view(*task).is_some_and(|view| view.tenant != *tenant) => "S18",
                _ => "S2",
            };
            (id, told("a read"), Some(*task))
        }
        (Call::Operations { .. }, Answer::Operations(_), Answer::Operations(_)) => {
            ("I6", told("operations on many tasks"), None)
        }
        _ => ("S16", told("an answer"), None),
    }
}

/// A claim got other tasks than it must, or found none.
fn claimed(
    model: &Model,
    tenant: Name,
    granted: &[Grant],
    expected: &[Grant],
    told: &impl Fn(&str) -> String,
) -> Blame {
    let differs = granted.iter().zip(expected).find(|(one, other)| one.task.task != other.task.task);
    if let Some(grant) = differs.map(|(grant, _)| grant).or_else(|| granted.get(expected.len())) {
        let task = grant.task.task;
        let later = expected.iter().any(|other| other.task.task == task);
        let (id, what) = match model.view(task) {
            None => ("S2", "a grant of a task that is not there"),
            Some(view) if view.tenant != tenant => ("S18", "a grant of another tenant's task"),
            Some(_) if later => ("S12", "a grant out of order"),
            Some(view) => match view.state {
                State::Delayed => ("S11", "a grant before its time"),
                State::Ready if model.stats(view.tenant, view.command).pause.is_some() => {
                    ("S12", "a grant from a paused queue")
                }
                State::Ready => ("S12", "a grant out of order"),
                State::Leased => ("S4", "a grant of a task that is held"),
                State::Cancelled => ("S20", "a grant of a cancelled task"),
                State::Completed | State::Failed | State::Dead => ("S4", "a grant of a task that has ended"),
            },
        };
        return (id, told(what), Some(task));
    }
    if let Some(missed) = expected.get(granted.len()) {
        return ("S13", told("a claim that missed a task"), Some(missed.task.task));
    }
    let pairs = || granted.iter().zip(expected);
    let token = |grant: &Grant| (grant.token.attempt, grant.token.index);
    let differs = pairs().find(|(one, other)| one.task != other.task || token(one) != token(other));
    match differs {
        Some((one, other)) if one.task != other.task => {
            (view(&one.task, &other.task), told("a grant"), Some(one.task.task))
        }
        Some((one, other)) if one.token.attempt != other.token.attempt => ("S9", told("a grant"), Some(one.task.task)),
        Some((one, _)) => ("S16", told("a grant"), Some(one.task.task)),
        None => ("S16", told("a lease of another length"), granted.first().map(|grant| grant.task.task)),
    }
}

/// Whether somebody holds a lease was decided wrongly, or what follows from it.
fn held(
    model: &Model,
    call: &Call,
    lease: &Lease,
    answer: &Answer,
    expected: &Answer,
    closed: &impl Fn(Task) -> Option<(u32, u64)>,
    told: &impl Fn(&str) -> String,
) -> Blame {
    let now = model.view(lease.task);
    let id = match (answer, expected) {
        (Answer::Rejected(_), Answer::Rejected(_)) => "S8",
        (Answer::Rejected(Rejection::NotLive), _) => "S1",
        (Answer::Rejected(_), _) => "S16",
        (_, Answer::Rejected(_)) => match now {
            None => "S2",
            Some(view) if view.tenant != lease.tenant => "S18",
            Some(view) if view.state == State::Cancelled => "S20",
            Some(view) if matches!(view.state, State::Completed | State::Failed) => match call {
                Call::Complete { .. } | Call::Fail { .. } => "S3",
                _ => "S8",
            },
            Some(_) => match (call, lease.by) {
                (Call::Nack { .. } | Call::Release { .. }, Right::Token(token))
                    if closed(lease.task) == Some((token.attempt, token.index)) =>
                {
                    "S8"
                }
                _ => "S4",
            },
        },
        (Answer::Cancelled, _) | (_, Answer::Cancelled) => "S20",
        (Answer::Deadlettered { .. }, Answer::Retried { .. })
        | (Answer::Retried { .. }, Answer::Deadlettered { .. }) => "S10",
        (Answer::Retried { attempts: one, .. }, Answer::Retried { attempts: other, .. })
        | (Answer::Deadlettered { attempts: one }, Answer::Deadlettered { attempts: other })
        | (Answer::Finished { attempt: one }, Answer::Finished { attempt: other })
            if one != other =>
        {
            "S9"
        }
        (Answer::Extended { cancel_requested: one, .. }, Answer::Extended { cancel_requested: other, .. })
            if one != other =>
        {
            "S20"
        }
        _ => "S16",
    };
    (id, told("a lease"), Some(lease.task))
}

/// Which property two different views of one task break.
fn view(found: &View, expected: &View) -> &'static str {
    let dead = |view: &View| view.state == State::Dead;
    match () {
        () if found.task != expected.task => "S16",
        () if found.tenant != expected.tenant => "S18",
        () if (found.payload, found.command) != (expected.payload, expected.command) => "S2",
        () if dead(found) != dead(expected) => "S10",
        () if (found.attempts, found.max_attempts) != (expected.attempts, expected.max_attempts) => "S9",
        () if found.cancel_requested != expected.cancel_requested => "S20",
        () if (found.state == State::Cancelled) != (expected.state == State::Cancelled) => "S20",
        () if found.result != expected.result => "S3",
        () if found.priority != expected.priority => "S12",
        () if found.key != expected.key => "S7",
        () => "S14",
    }
}

/// Compares what a node holds with the model at the same position.
pub(crate) fn export(model: &Model, export: &Export) -> Result<(), Blame> {
    let mut held = export.tasks.iter().peekable();
    for expected in model.tasks() {
        if let Some(extra) = held.next_if(|view| view.task < expected.task) {
            return Err(("S2", format!("a task that nothing explains: {extra:?}"), Some(extra.task)));
        }
        let Some(found) = held.next_if(|view| view.task == expected.task) else {
            return Err(("S1", format!("a task is lost: {expected:?}"), Some(expected.task)));
        };
        if *found != expected {
            return Err((
                view(found, &expected),
                format!("a task is {found:?}, must be {expected:?}"),
                Some(found.task),
            ));
        }
    }
    if let Some(extra) = held.next() {
        return Err(("S2", format!("a task that nothing explains: {extra:?}"), Some(extra.task)));
    }
    let mut keys: Vec<_> = model.bound().collect();
    keys.sort_unstable();
    if keys != export.keys {
        let differs = keys.iter().find(|key| !export.keys.contains(key));
        let differs = differs.or_else(|| export.keys.iter().find(|key| !keys.contains(key))).copied();
        let task = differs.map(|bound| bound.task);
        return Err(("S7", format!("an idempotency key is bound on one side only: {differs:?}"), task));
    }
    let queues: Vec<_> = model.queues().collect();
    if queues != export.queues {
        let differs = queues.iter().find(|queue| !export.queues.contains(queue));
        return Err(("I6", format!("the numbers of a queue must be {differs:?}, among {:?}", export.queues), None));
    }
    if !model.operations().eq(export.operations.iter().cloned()) {
        let differs = model.operations().find(|operation| !export.operations.contains(operation));
        let what = format!("an operation on many tasks must be {differs:?}, among {:?}", export.operations);
        return Err(("I6", what, None));
    }
    Ok(())
}
