//! One task in the hands of its handler.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use crate::client::Client;
use crate::routes::{Outcome, Report, Settled};
use crate::task::Task;
use crate::worker::{Crew, Ended, Phase, Verdict, count};

/// How long a handler may go on after its lease was lost, before it is dropped at the next point where it waits.
const AFTER_LOSS: Duration = Duration::from_secs(5);

/// What a handler is told of its task, and where it hears that it should stop.
#[derive(Clone, Debug)]
pub struct Job {
    task: Arc<Task>,
    client: Client,
    stop: watch::Receiver<Option<Stop>>,
}

/// Why a handler should stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Its lease has ended, or will before it can be extended: somebody else may have the task already. What it does from now on should have
    /// no effect outside; what it returns is most likely refused.
    LeaseLost,
    /// Somebody wants the task cancelled. It may still complete; whatever else it says ends the task as cancelled.
    Cancelled,
    /// The worker is about to end. A task that is not done by then is given back.
    WorkerEnds,
}

impl Job {
    /// The task.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Which delivery this is, from 1 on.
    pub fn attempt(&self) -> u32 {
        self.task.attempts
    }

    /// The client of its worker, to create more tasks.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Why it should stop; nothing: it should not. For handlers that compute for long.
    pub fn should_stop(&self) -> Option<Stop> {
        *self.stop.borrow()
    }

    /// Waits until it should stop. For handlers that wait for something else at the same time.
    pub async fn stopped(&self) -> Stop {
        let mut stop = self.stop.clone();
        loop {
            if let Some(why) = *stop.borrow_and_update() {
                return why;
            }
            if stop.changed().await.is_err() {
                // Its worker has no more use for it, and will drop it.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// What a handler says of a task that it could not do. Every error becomes one with `?`, which is tried again.
#[derive(Debug)]
pub struct Failure(Said);

#[derive(Debug)]
enum Said {
    Permanent(String),
    Retry(String, Option<Duration>),
    Release,
}

impl Failure {
    /// This attempt failed: again after the queue's backoff, while attempts are left.
    pub fn retry(error: impl Into<String>) -> Failure {
        Failure(Said::Retry(error.into(), None))
    }

    /// The same, not before this has passed; zero: at once.
    pub fn retry_after(delay: Duration, error: impl Into<String>) -> Failure {
        Failure(Said::Retry(error.into(), Some(delay)))
    }

    /// It will never work: the task has failed.
    pub fn permanent(error: impl Into<String>) -> Failure {
        Failure(Said::Permanent(error.into()))
    }

    /// Nothing was done, and somebody else should: the task goes back, and this delivery does not count.
    pub fn release() -> Failure {
        Failure(Said::Release)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(deeper) = cause {
            text = format!("{text}: {deeper}");
            cause = deeper.source();
        }
        Failure::retry(text)
    }
}

/// What a handler's return says.
pub(super) fn verdict(returned: Result<impl Serialize, Failure>) -> Verdict {
    match returned {
        Ok(result) => Verdict::Tell(
            Outcome::completed(&result)
                .unwrap_or_else(|why| Outcome::Failed(format!("the result cannot be written: {why}"))),
        ),
        Err(Failure(Said::Permanent(error))) => Verdict::Tell(Outcome::Failed(error)),
        Err(Failure(Said::Retry(error, delay))) => Verdict::Tell(Outcome::Retry { error, delay }),
        Err(Failure(Said::Release)) => Verdict::Release,
    }
}

/// Runs a task to its end; its place is free when what is to be told was told.
pub(super) async fn run(crew: Arc<Crew>, task: Task, received: Instant, place: OwnedSemaphorePermit) {
    let (stop, stopped) = watch::channel(None);
    let held = crew.leases.hold(&task, received, stop.clone());
    let task = Arc::new(task);
    match crew.handlers.get(&task.command) {
        Some(handler) => {
            let job = Job { task: task.clone(), client: crew.client.clone(), stop: stopped.clone() };
            // A handler may also panic before it returns what is to be waited for.
            let begun = catch_unwind(AssertUnwindSafe(|| handler(job)));
            let verdict = match begun {
                Ok(work) => watch_over(&crew, work, stop, stopped).await,
                Err(panic) => Some(panicked(&*panic)),
            };
            tell(&crew, &task, verdict).await;
        }
        // It was not asked for.
        None => tell(&crew, &task, Some(Verdict::Release)).await,
    }
    crew.leases.forget(held);
    drop(place);
}

/// What the handler has come to; nothing: its lease was lost, and it did not stop.
async fn watch_over(
    crew: &Crew,
    work: Ended,
    stop: watch::Sender<Option<Stop>>,
    mut stopped: watch::Receiver<Option<Stop>>,
) -> Option<Verdict> {
    let mut work = pin!(work);
    let work = std::future::poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(Poll::Ready(verdict)) => Poll::Ready(verdict),
        Ok(Poll::Pending) => Poll::Pending,
        Err(panic) => Poll::Ready(panicked(&*panic)),
    });
    let lost = async {
        // The sender is this function's.
        let _ = stopped.wait_for(|stop| *stop == Some(Stop::LeaseLost)).await;
        sleep(AFTER_LOSS).await;
    };
    let mut phase = crew.phase.subscribe();
    let dropped = async {
        let _ = phase.wait_for(|phase| *phase >= Phase::Stopping).await;
        stop.send_if_modified(|stop| stop.is_none() && stop.replace(Stop::WorkerEnds).is_none());
        let _ = phase.wait_for(|phase| *phase >= Phase::Dropping).await;
    };
    tokio::select! {
        biased;
        verdict = work => Some(verdict),
        () = lost => None,
        () = dropped => Some(Verdict::Release),
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Verdict {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words");
    Verdict::Tell(Outcome::Retry { error: format!("the handler panicked: {text}"), delay: None })
}

async fn tell(crew: &Crew, task: &Task, verdict: Option<Verdict>) {
    let counts = &crew.counts;
    let (counter, told) = match verdict {
        None => {
            warn!(name: "worker.handler_dropped", task = %task.id, "its lease was lost, and it did not stop");
            return count(&counts.lost);
        }
        Some(Verdict::Release) => (&counts.released, crew.client.release(&task.id, &task.lease_token).await),
        Some(Verdict::Tell(outcome)) => {
            let counter = match &outcome {
                Outcome::Completed(_) => &counts.completed,
                Outcome::Failed(_) => &counts.failed,
                Outcome::Retry { .. } => &counts.retried,
            };
            (counter, crew.reports.tell(Report::new(&task.id, &task.lease_token, outcome)).await)
        }
    };
    match told {
        Ok(settled) => {
            if settled == Settled::Dead {
                debug!(name: "worker.task_dead", task = %task.id, "its attempts are used up");
            }
            count(counter);
        }
        Err(error) => {
            warn!(name: "worker.outcome_lost", task = %task.id, %error, "what became of a task could not be told");
            count(&counts.lost);
        }
    }
}
