//! What is said when something cannot be done: one exhaustive match for each kind of error.

use api::{Code, Problem};
use cluster::{RowsUnavailable, Unavailable};
use queue::Rejection;
use queue::operations::operation_text;

/// Which words a route has for the same rejection: codeQ's texts differ by route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    /// Heartbeat, abandon, nack.
    Leases,
    /// Results.
    Results,
    /// Reading a task.
    Tasks,
}

/// No task of this tenant has that id.
pub(crate) fn task_not_found(words: Words) -> Box<Problem> {
    let error = match words {
        Words::Leases => "not-found",
        Words::Results => "task not found",
        Words::Tasks => "not found",
    };
    Box::new(Problem::new(Code::TaskNotFound, "no task of this tenant has that id").error(error))
}

/// What to say to an operation that was rejected. `ended`: the task is known to have ended.
pub(crate) fn rejected(rejection: &Rejection, words: Words, ended: Option<Ended>) -> Box<Problem> {
    let not_in_progress = "nobody holds the task now; claim it again, or read its result";
    Box::new(match rejection {
        Rejection::NotLive => match ended {
            None => return task_not_found(words),
            Some(Ended { by_token: true }) => {
                Problem::new(Code::LeaseLost, "the task has ended, and this lease with it").error("not-in-progress")
            }
            Some(Ended { by_token: false }) => {
                Problem::new(Code::NotInProgress, "the task has ended").error("not-in-progress")
            }
        },
        Rejection::NotLeased => Problem::new(Code::NotInProgress, not_in_progress).error("not-in-progress"),
        Rejection::NotOwner => {
            Problem::new(Code::NotOwner, "another worker holds the task; send the lease token of the claim")
                .error("not-owner")
        }
        Rejection::LeaseLost { held: true } => {
            Problem::new(Code::LeaseLost, "the lease has ended, and another one holds the task").error("not-owner")
        }
        Rejection::LeaseLost { held: false } => {
            Problem::new(Code::LeaseLost, "the lease has ended; the task will be delivered again")
                .error("not-in-progress")
        }
        Rejection::KeyConflict { first } => {
            let detail = "the key was used for another body; choose another key, or repeat the first body";
            let problem = Problem::new(Code::IdempotencyConflict, detail).error("idempotency conflict");
            Problem { task_id: Some(first.to_string()), ..problem }
        }
        Rejection::NotEnded => {
            Problem::new(Code::NotFinished, "only a task that has failed, died or was cancelled can be redriven")
        }
        Rejection::RecordChanged => {
            Problem::new(Code::Overloaded, "the task changed meanwhile; try again").retry_after(1000)
        }
        Rejection::TooManyTasks => Problem::new(Code::NoSpace, "limits.maxLiveTasks is reached").retry_after(1000),
        Rejection::IsLeased => Problem::new(
            Code::AlreadyLeased,
            "a worker holds the task; wait until it gives the task back, or cancel it",
        ),
        Rejection::OperationConflict { with } => {
            let detail = format!("{} works on the same queues; wait for its end, or stop it", operation_text(with));
            Problem::new(Code::OperationConflict, detail)
        }
        Rejection::NoOperation => {
            Problem::new(Code::OperationNotFound, "no operation of this tenant has that id; they are kept for 7 days")
        }
        Rejection::OperationState => Problem::new(Code::OperationState, "the operation has ended"),
        Rejection::TooManyOperations => Problem::new(
            Code::NoSpace,
            "a shard knows as many operations as it may; they are kept for 7 days after their end",
        )
        .retry_after(60_000),
        Rejection::TooManyQueues => {
            Problem::new(Code::NoSpace, "the shard holds as many queues as it may").retry_after(1000)
        }
    })
}

/// A task that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// The caller showed a lease token.
    pub(crate) by_token: bool,
}

/// What to say when the node could not do it.
pub(crate) fn unavailable(why: Unavailable) -> Box<Problem> {
    Box::new(match why {
        Unavailable::NoLeader => Problem::new(Code::NoLeader, "no node leads this shard now; try again")
            .error("not leader")
            .retry_after(1000),
        Unavailable::Overloaded => {
            Problem::new(Code::Overloaded, "too many requests wait; try again").retry_after(1000)
        }
        Unavailable::Draining => Problem::new(Code::Draining, "this server stops; repeat elsewhere").retry_after(0),
        Unavailable::TooStale => {
            Problem::new(Code::TooStale, "the position was not reached here in time; wait longer, or ask for less")
                .retry_after(1000)
        }
        Unavailable::Restoring => {
            Problem::new(Code::RestoreInProgress, "a backup takes the place of all data; try again").retry_after(1000)
        }
        Unavailable::Unknown => Problem::new(
            Code::OutcomeUnknown,
            "the request may have had an effect; repeat it with the same idempotency key, or read the task",
        ),
    })
}

/// What to say when the request has had an effect, `effect`, and what it changed could not be shown for this reason.
pub(crate) fn after_effect(effect: &str, why: &Problem) -> Box<Problem> {
    Box::new(Problem::new(Code::OutcomeUnknown, format!("{effect}, but: {}", why.detail)))
}

/// What to say when a row of a checkpoint could not be read.
pub(crate) fn rows_unavailable(why: &RowsUnavailable) -> Box<Problem> {
    Box::new(match why {
        RowsUnavailable::Overloaded => {
            Problem::new(Code::Overloaded, "too many requests read finished tasks; try again").retry_after(1000)
        }
        RowsUnavailable::NotRunning => {
            Problem::new(Code::NotReady, "the server is starting or stopping").retry_after(1000)
        }
        RowsUnavailable::Failed => damaged(),
    })
}

/// What to say when the data of this node is damaged. It stops, and its last words say what is wrong.
pub(crate) fn damaged() -> Problem {
    Problem::new(Code::Internal, "this server cannot read its data and stops; its log says why")
}

/// A body that cannot be used.
pub(crate) fn invalid_body(detail: impl Into<String>) -> Box<Problem> {
    Box::new(Problem::new(Code::InvalidBody, detail).error("invalid body"))
}
