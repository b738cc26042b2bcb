//! The routes, one method each: what a producer, a worker or a person asks.

use std::time::Duration;

use api::Code;
use bytes::Bytes;
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio::time::Instant;

use crate::client::{Called, Client};
use crate::error::{Error, Problem};
use crate::repeat::Repeat;
use crate::task::{Created, Finished, NewTask, ResultRecord, Task, seconds};

/// Tasks of one batch, as servers take them where nothing else is set.
pub(crate) const CREATE_BATCH_MAX: usize = 100;
/// Bytes of one batch: a quarter of what servers take.
pub(crate) const BATCH_BYTES_MAX: usize = 4 << 20;
/// Longest time a server holds a question for a result.
const RESULT_WAIT_MAX: Duration = Duration::from_secs(60);
/// Longest time a server holds a claim.
pub(crate) const CLAIM_WAIT_MAX: Duration = Duration::from_secs(30);

/// What to claim.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    commands: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order: Option<&'static str>,
    count: usize,
    #[serde(skip)]
    wait: Duration,
}

impl Claim {
    /// One task of these queues, in their order; of none: of every queue that the token allows.
    pub fn of<N: Into<String>>(commands: impl IntoIterator<Item = N>) -> Claim {
        Claim { commands: commands.into_iter().map(Into::into).collect(), count: 1, ..Claim::default() }
    }

    /// Up to so many tasks, 1 to 10.
    #[must_use]
    pub fn count(mut self, count: usize) -> Claim {
        self.count = count;
        self
    }

    /// For so long. Left out: as the queue has it.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Claim {
        self.lease_seconds = Some(seconds(lease));
        self
    }

    /// Waits so long for a task, at most 30 s. Left out: not at all.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Claim {
        self.wait = wait.min(CLAIM_WAIT_MAX);
        self.wait_seconds = Some(seconds(self.wait));
        self
    }

    /// The most urgent task of all queues, instead of the first queue's first.
    #[must_use]
    pub fn by_priority(mut self) -> Claim {
        self.order = Some("priority");
        self
    }
}

/// What a worker says of a task that it holds.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is done. The result is a JSON object.
    Completed(Box<RawValue>),
    /// It is over, and will not be tried again.
    Failed(String),
    /// This attempt failed; it is tried again while attempts are left, after the queue's backoff or this delay.
    Retry {
        /// Why.
        error: String,
        /// Nothing: the queue's backoff.
        delay: Option<Duration>,
    },
}

impl Outcome {
    /// Done, with this result. What is not an object becomes one: nothing is `{}`, any other value stands in `value`.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn completed(result: &impl Serialize) -> Result<Outcome, serde_json::Error> {
        let result = to_raw_value(result)?;
        Ok(Outcome::Completed(match result.get().as_bytes() {
            [b'{', ..] => result,
            b"null" => RawValue::from_string("{}".into())?,
            _ => RawValue::from_string(format!("{{\"value\":{result}}}"))?,
        }))
    }
}

/// What became of an outcome that was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The task has ended with it.
    Ended,
    /// The task waits for its next attempt.
    Requeued,
    /// Its attempts are used up.
    Dead,
    /// It was cancelled meanwhile.
    Cancelled,
}

/// An outcome as it is sent.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) task_id: String,
    pub(crate) lease_token: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retryable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay_seconds: Option<f64>,
}

impl Report {
    pub(crate) fn new(task: &str, token: &str, outcome: Outcome) -> Report {
        let (status, result, error, retryable, delay) = match outcome {
            Outcome::Completed(result) => ("COMPLETED", Some(result), None, None, None),
            Outcome::Failed(error) => ("FAILED", None, Some(error), None, None),
            Outcome::Retry { error, delay } => ("FAILED", None, Some(error), Some(true), delay),
        };
        // A blank reason would be refused, and the task would hang until its lease ends.
        let error = error.map(|error| if error.trim().is_empty() { "no reason given".into() } else { error });
        let delay_seconds = delay.map(seconds);
        let (task_id, lease_token) = (task.to_owned(), token.to_owned());
        Report { task_id, lease_token, status, result, error, retryable, delay_seconds }
    }

    /// About how many bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        200 + self.result.as_ref().map_or(0, |result| result.get().len()) + self.error.as_ref().map_or(0, String::len)
    }
}

/// What the answer to a report says: of a record or of a nack.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Told {
    status: String,
}

impl Told {
    pub(crate) fn settled(&self) -> Settled {
        match &*self.status {
            "requeued" => Settled::Requeued,
            "dlq" => Settled::Dead,
            "cancelled" => Settled::Cancelled,
            _ => Settled::Ended,
        }
    }
}

/// An extension that was granted.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Extended {
    /// What is left of the lease, in milliseconds from the sending of the question on.
    pub lease_ms: u64,
    /// Whoever holds the task is asked to stop.
    #[serde(default)]
    pub cancel_requested: bool,
}

/// How many tasks of a queue are where.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueCounts {
    /// The queue.
    pub command: String,
    /// Wait for a worker.
    pub ready: u64,
    /// Wait for their time.
    pub delayed: u64,
    /// Are held by workers.
    pub in_progress: u64,
    /// Are dead.
    pub dlq: u64,
}

/// One item of a batch.
#[derive(Deserialize)]
struct CreatedItem {
    task: Option<Task>,
    #[serde(default)]
    replayed: bool,
    #[serde(flatten)]
    problem: Problem,
}

#[derive(Deserialize)]
struct CreatedBatch {
    results: Vec<CreatedItem>,
}

#[derive(Deserialize)]
struct ClaimedBatch {
    tasks: Vec<Task>,
}

impl Client {
    /// Creates a task. A key is drawn if it has none, so that it is created once, however often the call must be repeated.
    ///
    /// # Errors
    /// As every call. With the same key and another body it is refused as `idempotency_conflict`.
    pub async fn create(&self, task: NewTask) -> Result<Created, Error> {
        let body = body(&task.keyed());
        let called = self.call(&self.post("/v1/codeq/tasks", body, Repeat::Always)?).await;
        let answer = called.outcome?;
        Ok(Created { task: answer.json()?, is_replayed: answer.is_replayed && !called.maybe_done })
    }

    /// Creates many tasks, a hundred in a call. Each has an outcome of its own, in the order given; what no server could take, and what may
    /// or may not have been created, is tried again.
    pub async fn create_all(&self, tasks: impl IntoIterator<Item = NewTask>) -> Vec<Result<Created, Error>> {
        let tasks: Vec<NewTask> = tasks.into_iter().map(NewTask::keyed).collect();
        let mut results = Vec::with_capacity(tasks.len());
        while results.len() < tasks.len() {
            let rest = &tasks[results.len()..];
            results.extend(self.create_batch(&rest[..batch_length(rest)]).await);
        }
        results
    }

    /// At most a hundred, all with keys.
    pub(crate) async fn create_batch(&self, tasks: &[NewTask]) -> Vec<Result<Created, Error>> {
        let begun = Instant::now();
        let mut results: Vec<Option<Result<Created, Error>>> = tasks.iter().map(|_| None).collect();
        let mut open: Vec<usize> = (0..tasks.len()).collect();
        for tries in 1.. {
            let asked: Vec<&NewTask> = open.iter().map(|place| &tasks[*place]).collect();
            let items = self.create_once(&asked, begun).await;
            let mut again = Vec::new();
            for (place, item) in open.into_iter().zip(items) {
                let is_open = matches!(&item, Err(Error::Refused(problem)) if !problem.is_final());
                // The last word of each try stands, if there is no time for another one.
                results[place] = Some(item.map_err(unsettled));
                if is_open {
                    again.push(place);
                }
            }
            open = again;
            if open.is_empty() || !self.rest(begun, tries).await {
                break;
            }
        }
        results.into_iter().map(|result| result.expect("every place was asked for")).collect()
    }

    async fn create_once(&self, tasks: &[&NewTask], begun: Instant) -> Vec<Result<Created, Error>> {
        #[derive(Serialize)]
        struct Batch<'a> {
            tasks: &'a [&'a NewTask],
        }
        let all = |error: Error| tasks.iter().map(|_| Err(error.clone())).collect();
        let call = match self.post("/v1/codeq/tasks/batch", body(&Batch { tasks }), Repeat::Always) {
            Ok(mut call) => {
                call.patience = Some(self.patience().saturating_sub(begun.elapsed()));
                call
            }
            Err(error) => return all(error),
        };
        let called = self.call(&call).await;
        let maybe_done = called.maybe_done;
        match called.outcome.and_then(|answer| answer.json::<CreatedBatch>()) {
            Err(error) => all(error),
            Ok(batch) if batch.results.len() != tasks.len() => {
                all(Error::Unknown(format!("{} answers to {} tasks", batch.results.len(), tasks.len())))
            }
            Ok(batch) => {
                let item = |item: CreatedItem| match item.task {
                    Some(task) => Ok(Created { task, is_replayed: item.replayed && !maybe_done }),
                    None => Err(Error::Refused(Box::new(item.problem))),
                };
                batch.results.into_iter().map(item).collect()
            }
        }
    }

    /// A task; nothing: there is none of this id.
    ///
    /// # Errors
    /// As every call.
    pub async fn task(&self, id: &str) -> Result<Option<Task>, Error> {
        let call = self.get(&format!("/v1/codeq/tasks/{}", escaped(id)))?;
        known(self.ask(&call).await, Code::TaskNotFound)
    }

    /// How a task has ended, as soon as it has, waiting for so long. Nothing: it has not.
    ///
    /// # Errors
    /// As every call. A task that does not exist is refused as `task_not_found`.
    pub async fn finished(&self, id: &str, wait: Duration) -> Result<Option<Finished>, Error> {
        let begun = Instant::now();
        loop {
            let left = wait.saturating_sub(begun.elapsed());
            let wait = left.min(RESULT_WAIT_MAX);
            let path = format!("/v1/codeq/tasks/{}/result?waitSeconds={}", escaped(id), wait.as_secs_f64().ceil());
            let found = known(self.ask(&self.get(&path)?.waiting(wait)).await, Code::ResultNotFound)?;
            if found.is_some() || left <= RESULT_WAIT_MAX {
                return Ok(found);
            }
        }
    }

    /// Cancels a task. One that a worker holds goes on until it hears of it, unless it is forced: then its lease is gone.
    ///
    /// # Errors
    /// As every call. What has ended otherwise is refused as `already_finished`.
    pub async fn cancel(&self, id: &str, reason: &str, force: bool) -> Result<Task, Error> {
        let body = serde_json::json!({"reason": reason, "force": force});
        let path = format!("/v1/codeq/tasks/{}/cancel", escaped(id));
        self.ask(&self.post(&path, body.to_string().into(), Repeat::Always)?).await
    }

    /// Brings a task back that has failed, died or been cancelled, with fresh attempts.
    ///
    /// # Errors
    /// As every call. Needs an administrator's token. What is live is refused as `not_finished`.
    pub async fn redrive(&self, id: &str) -> Result<Task, Error> {
        let path = format!("/v1/codeq/tasks/{}/redrive", escaped(id));
        self.ask(&self.post(&path, Bytes::from_static(b"{}"), Repeat::IfDefinite)?).await
    }

    /// Claims tasks: none, if there are none in time. A call whose answer is lost may have claimed something; its lease ends by itself.
    ///
    /// # Errors
    /// As every call.
    pub async fn claim(&self, claim: &Claim) -> Result<Vec<Task>, Error> {
        let call = self.post("/v1/codeq/tasks/claim/batch", body(claim), Repeat::IfDefinite)?.waiting(claim.wait);
        let answer = self.call(&call).await.outcome?;
        if answer.status == 204 {
            return Ok(Vec::new());
        }
        answer.json::<ClaimedBatch>().map(|batch| batch.tasks)
    }

    /// Extends the lease of a task, for so long from now on; nothing: as the queue has it.
    ///
    /// # Errors
    /// As every call. A lease that is no more is refused as `lease_lost` or `not_in_progress`.
    pub async fn extend(&self, id: &str, token: &str, length: Option<Duration>) -> Result<Extended, Error> {
        self.extend_within(id, token, length, self.patience()).await
    }

    pub(crate) async fn extend_within(
        &self,
        id: &str,
        token: &str,
        length: Option<Duration>,
        patience: Duration,
    ) -> Result<Extended, Error> {
        let body = serde_json::json!({"leaseToken": token, "extendSeconds": length.map(seconds)});
        let path = format!("/v1/codeq/tasks/{}/heartbeat", escaped(id));
        let mut call = self.post(&path, body.to_string().into(), Repeat::Always)?;
        call.patience = Some(patience);
        self.ask(&call).await
    }

    /// Says how a task went, whose lease this token stands for. If an answer is lost, what the task shows is looked at.
    ///
    /// # Errors
    /// As every call. A lease that is no more is refused as `lease_lost` or `not_in_progress`.
    pub async fn finish(&self, id: &str, token: &str, outcome: Outcome) -> Result<Settled, Error> {
        let report = Report::new(id, token, outcome);
        let path = format!("/v1/codeq/tasks/{}/result", escaped(id));
        let Called { outcome, maybe_done } = self.call(&self.post(&path, body(&report), Repeat::Always)?).await;
        match outcome {
            Ok(answer) => answer.json::<Told>().map(|told| told.settled()),
            Err(error) if maybe_done => self.settle(&report, error).await,
            Err(error) => Err(error),
        }
    }

    /// An earlier try may have counted, so that the last one was refused: then the task shows it.
    pub(crate) async fn settle(&self, report: &Report, error: Error) -> Result<Settled, Error> {
        let is_gone = error.is(Code::LeaseLost) || error.is(Code::NotInProgress);
        if !is_gone || report.retryable.is_some() {
            // A retry leaves no mark that could be told from another one's.
            return if is_gone {
                Err(Error::Unknown(format!("its answer was lost, then: {error}")))
            } else {
                Err(error)
            };
        }
        let path = format!("/v1/codeq/tasks/{}/result", escaped(&report.task_id));
        match known::<Finished>(self.ask(&self.get(&path)?).await, Code::ResultNotFound)? {
            Some(Finished { result, .. }) if report.is_in(&result) => Ok(Settled::Ended),
            _ => Err(error),
        }
    }

    /// Gives a task back unharmed: the attempt does not count.
    ///
    /// # Errors
    /// As every call. A lease that is no more is refused as `lease_lost` or `not_in_progress`.
    pub async fn release(&self, id: &str, token: &str) -> Result<Settled, Error> {
        let body = serde_json::json!({"leaseToken": token}).to_string();
        let path = format!("/v1/codeq/tasks/{}/abandon", escaped(id));
        let told: Told = self.ask(&self.post(&path, body.into(), Repeat::Always)?).await?;
        Ok(told.settled())
    }

    /// How many tasks of a queue are where; all zero for one that is not known.
    ///
    /// # Errors
    /// As every call. Needs an administrator's token.
    pub async fn queue(&self, command: &str) -> Result<QueueCounts, Error> {
        self.ask(&self.get(&format!("/v1/codeq/admin/queues/{}", escaped(command)))?).await
    }

    fn get(&self, path: &str) -> Result<crate::client::Call, Error> {
        self.prepare(Method::GET, path, Bytes::new(), Repeat::Always)
    }

    pub(crate) fn post(&self, path: &str, body: Bytes, repeat: Repeat) -> Result<crate::client::Call, Error> {
        // Every node takes every request; one that is set to send clients elsewhere forwards if asked to.
        self.prepare(Method::POST, &format!("{path}?redirect=false"), body, repeat)
    }
}

impl Report {
    /// Whether this is what ended the task.
    fn is_in(&self, record: &ResultRecord) -> bool {
        let own = self.result.as_ref().map(|result| result.get());
        let shown = record.result.as_ref().map(|result| result.get());
        self.status == record.status && own == shown && self.error.as_deref().unwrap_or_default() == record.error
    }
}

/// What was asked for is not there.
fn known<T>(answer: Result<T, Error>, absent: Code) -> Result<Option<T>, Error> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is(absent) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An item that could not be decided is not refused for good.
fn unsettled(error: Error) -> Error {
    match error {
        Error::Refused(problem) if !problem.definite => Error::Unknown(problem.to_string()),
        Error::Refused(problem) if !problem.is_final() => Error::Unavailable(problem.to_string()),
        other => other,
    }
}

/// How many tasks from the first on go into one call.
pub(crate) fn batch_length(tasks: &[NewTask]) -> usize {
    let mut bytes = 0;
    let fits = tasks.iter().take(CREATE_BATCH_MAX).take_while(|task| {
        bytes += task.bytes();
        bytes <= BATCH_BYTES_MAX
    });
    fits.count().max(1)
}

pub(crate) fn body(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("what is sent has text as its keys").into()
}

/// What stands for this text as one segment of a path.
pub fn escaped(segment: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~:".contains(byte);
    let bytes = segment.bytes();
    bytes.map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_always_an_object() {
        for (value, expected) in [
            (serde_json::json!({"a": 1}), r#"{"a":1}"#),
            (serde_json::json!(null), "{}"),
            (serde_json::json!([1]), r#"{"value":[1]}"#),
            (serde_json::json!("x"), r#"{"value":"x"}"#),
        ] {
            let Outcome::Completed(result) = Outcome::completed(&value).expect("it is JSON") else { unreachable!() };
            assert_eq!(result.get(), expected);
        }
    }

    #[test]
    fn a_segment_cannot_leave_its_place() {
        assert_eq!(escaped("a/../b?c=%20 ü"), "a%2F..%2Fb%3Fc%3D%2520%20%C3%BC");
        assert_eq!(escaped("mail:eu.west-1_x"), "mail:eu.west-1_x");
    }

    /// A reason that says nothing would be refused.
    #[test]
    fn a_failure_has_a_reason() {
        let report = Report::new("t", "l", Outcome::Retry { error: " ".into(), delay: Some(Duration::ZERO) });
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"taskId":"t","leaseToken":"l","status":"FAILED","error":"no reason given","retryable":true,"delaySeconds":0.0}"#
        );
    }
}
