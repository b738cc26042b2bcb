//! Tells the server how tasks went: what comes up while a call is under way goes together into the next one.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::client::{Called, Client};
use crate::error::{Error, Problem};
use crate::key::chance;
use crate::repeat::{Repeat, pause};
use crate::routes::{BATCH_BYTES_MAX, Report, Settled, Told, body};

/// Reports of one call, as servers take them where nothing else is set.
const BATCH_MAX: usize = 100;
/// Calls under way at one time.
const CALLS_MAX: usize = 4;
/// How long it is tried to tell what a task has come to. Its lease is kept meanwhile, and work that is done is worth some patience.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where handlers leave what is to be told. There are never more of them than slots.
#[derive(Debug)]
pub(super) struct Reports(mpsc::UnboundedSender<Open>);

#[derive(Debug)]
pub(super) struct Open {
    report: Report,
    /// An earlier try may have counted.
    maybe_done: bool,
    told: oneshot::Sender<Result<Settled, Error>>,
}

#[derive(Serialize)]
struct Batch<'a> {
    results: Vec<&'a Report>,
}

#[derive(Deserialize)]
struct Answers {
    results: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    result: Option<Told>,
    #[serde(flatten)]
    problem: Problem,
}

impl Reports {
    pub(super) fn new() -> (Reports, mpsc::UnboundedReceiver<Open>) {
        let (reports, to_tell) = mpsc::unbounded_channel();
        (Reports(reports), to_tell)
    }

    /// Waits until it is told, or cannot be.
    pub(super) async fn tell(&self, report: Report) -> Result<Settled, Error> {
        let (told, settled) = oneshot::channel();
        // If nobody takes it any more, the worker was dropped.
        let _ = self.0.send(Open { report, maybe_done: false, told });
        settled.await.unwrap_or_else(|_| Err(Error::Unknown("the worker was dropped".into())))
    }
}

/// Tells what comes, for as long as the worker runs.
pub(super) async fn tell(client: Client, mut to_tell: mpsc::UnboundedReceiver<Open>) {
    let calls = Arc::new(Semaphore::new(CALLS_MAX));
    let mut waiting: Vec<Open> = Vec::new();
    loop {
        // What was left over goes first.
        if waiting.is_empty() && to_tell.recv_many(&mut waiting, BATCH_MAX).await == 0 {
            return;
        }
        let call = calls.clone().acquire_owned().await.expect("nobody closes it");
        while waiting.len() < BATCH_MAX
            && let Ok(another) = to_tell.try_recv()
        {
            waiting.push(another);
        }
        let mut bytes = 0;
        let fits = waiting.iter().take_while(|open| {
            bytes += open.report.bytes();
            bytes <= BATCH_BYTES_MAX
        });
        let rest = waiting.split_off(fits.count().max(1));
        let (client, batch) = (client.clone(), std::mem::replace(&mut waiting, rest));
        tokio::spawn(async move {
            tell_all(&client, batch).await;
            drop(call);
        });
    }
}

/// Tells these, again and again what nobody could take.
async fn tell_all(client: &Client, mut open: Vec<Open>) {
    let begun = Instant::now();
    for tries in 1.. {
        let left = PATIENCE.saturating_sub(begun.elapsed());
        let answers = ask(client, &open, left).await;
        let mut again = Vec::new();
        for (mut each, answer) in open.into_iter().zip(answers) {
            match answer {
                Answered::Settled(settled) => each.done(Ok(settled)),
                Answered::Final(error, maybe_done) if maybe_done || each.maybe_done => {
                    let settled = client.settle(&each.report, error).await;
                    each.done(settled);
                }
                Answered::Final(error, _) => each.done(Err(error)),
                Answered::Open { maybe_done, error } => {
                    each.maybe_done |= maybe_done;
                    let wait = pause(tries, chance());
                    if begun.elapsed() + wait < PATIENCE {
                        again.push(each);
                    } else {
                        each.done(Err(error));
                    }
                }
            }
        }
        open = again;
        if open.is_empty() {
            return;
        }
        sleep(pause(tries, chance())).await;
    }
}

/// What one try has brought for one report.
enum Answered {
    Settled(Settled),
    /// It was refused; an earlier try of the same call may have counted.
    Final(Error, bool),
    /// It is to be tried again.
    Open {
        maybe_done: bool,
        error: Error,
    },
}

async fn ask(client: &Client, open: &[Open], patience: Duration) -> Vec<Answered> {
    let batch = Batch { results: open.iter().map(|open| &open.report).collect() };
    let all =
        |error: &Error, maybe_done: bool| open.iter().map(|_| Answered::Final(error.clone(), maybe_done)).collect();
    let mut call = match client.post("/v1/codeq/tasks/batch/results", body(&batch), Repeat::Always) {
        Ok(call) => call,
        Err(error) => return all(&error, false),
    };
    call.patience = Some(patience);
    let Called { outcome, maybe_done } = client.call(&call).await;
    let answers = match outcome.and_then(|answer| answer.json::<Answers>()) {
        Ok(answers) if answers.results.len() == open.len() => answers,
        Ok(_) => return all(&Error::Unknown("an answer has another number of results".into()), true),
        Err(error) => return all(&error, maybe_done),
    };
    let item = |item: Item| match item.result {
        Some(told) => Answered::Settled(told.settled()),
        None if item.problem.is_final() => Answered::Final(Error::Refused(Box::new(item.problem)), maybe_done),
        None if item.problem.definite => {
            Answered::Open { maybe_done, error: Error::Unavailable(item.problem.to_string()) }
        }
        None => Answered::Open { maybe_done: true, error: Error::Unknown(item.problem.to_string()) },
    };
    answers.results.into_iter().map(item).collect()
}

impl Open {
    fn done(self, settled: Result<Settled, Error>) {
        // Whoever waited was dropped with its worker.
        let _ = self.told.send(settled);
    }
}
