//! Tasks as programs see them: those to be created, those that are there, and how they ended.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{DeserializeOwned, Deserializer};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::error::Error;

/// A task to be created.
///
/// ```
/// # use std::time::Duration;
/// # use client::NewTask;
/// let mail = serde_json::json!({"to": "ada@example.com"});
/// let task = NewTask::new("mail", &mail)?.priority(5).delay(Duration::from_secs(60)).max_attempts(3);
/// # Ok::<(), client::Error>(())
/// ```
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NewTask {
    pub(crate) command: String,
    payload: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    webhook: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idempotency_key: Option<String>,
}

impl NewTask {
    /// A task for the queue `command`. The payload is any JSON value but null.
    ///
    /// # Errors
    /// The payload cannot be written as JSON.
    pub fn new(command: &str, payload: &(impl Serialize + ?Sized)) -> Result<NewTask, Error> {
        let payload = to_raw_value(payload).map_err(|why| Error::unusable("the payload cannot be written", why))?;
        Ok(NewTask {
            command: command.into(),
            payload,
            priority: None,
            delay_seconds: None,
            run_at: None,
            max_attempts: None,
            webhook: None,
            idempotency_key: None,
        })
    }

    /// 0 to 9; 9 is claimed first. Left out: 0.
    #[must_use]
    pub fn priority(mut self, priority: u8) -> NewTask {
        self.priority = Some(priority);
        self
    }

    /// Not before this has passed, in milliseconds' precision.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> NewTask {
        self.delay_seconds = Some(seconds(delay));
        self
    }

    /// Not before this time; wins over a delay.
    #[must_use]
    pub fn run_at(mut self, time: SystemTime) -> NewTask {
        let ms = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let text = api::time::format(u64::try_from(ms).unwrap_or(u64::MAX));
        self.run_at = Some(String::from_utf8_lossy(&text).into_owned());
        self
    }

    /// Not before this time, as RFC 3339 has it; the server judges it.
    #[must_use]
    pub fn run_at_text(mut self, time: &str) -> NewTask {
        self.run_at = Some(time.into());
        self
    }

    /// How often it is delivered at most, before it is dead. Left out: as the queue has it.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> NewTask {
        self.max_attempts = Some(attempts);
        self
    }

    /// A URL that is told of its end.
    #[must_use]
    pub fn webhook(mut self, url: &str) -> NewTask {
        self.webhook = Some(url.into());
        self
    }

    /// Creating with the same key again, within a day, answers with the first task. Left out: one is drawn, so that a call that is repeated
    /// because its answer was lost makes no second task. Give your own where your program may make the same call again after a restart.
    #[must_use]
    pub fn idempotency_key(mut self, key: &str) -> NewTask {
        self.idempotency_key = Some(key.into());
        self
    }

    /// About how many bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        300 + self.payload.get().len()
    }

    /// With a key in any case.
    pub(crate) fn keyed(mut self) -> NewTask {
        self.idempotency_key.get_or_insert_with(crate::key::draw);
        self
    }
}

/// Seconds with up to three decimals, as bodies have them.
pub(crate) fn seconds(length: Duration) -> f64 {
    length.as_millis() as f64 / 1000.0
}

/// A task that was created.
#[derive(Clone, Debug)]
pub struct Created {
    /// The task.
    pub task: Task,
    /// It was there before: this is its present state.
    pub is_replayed: bool,
}

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum State {
    /// Waits for a worker.
    Ready,
    /// Waits for its time.
    Delayed,
    /// A worker has it.
    Leased,
    /// Done.
    Completed,
    /// Ended by its worker's word.
    Failed,
    /// Ended because its attempts are used up.
    Dead,
    /// Ended because somebody wanted so.
    Cancelled,
    /// A state that this version does not know.
    #[default]
    #[serde(other)]
    Other,
}

impl State {
    /// Nothing more happens to it by itself.
    pub fn has_ended(self) -> bool {
        matches!(self, State::Completed | State::Failed | State::Dead | State::Cancelled)
    }
}

/// A task as the server shows it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Its id.
    pub id: String,
    /// Name of its queue.
    pub command: String,
    /// Its payload, as it was sent; nothing where a list leaves it out.
    #[serde(default)]
    pub payload: Option<Box<RawValue>>,
    /// Where it is.
    #[serde(default)]
    pub state: State,
    /// 0 to 9.
    #[serde(default)]
    pub priority: u8,
    /// Deliveries so far, this one included.
    #[serde(default)]
    pub attempts: u32,
    /// Deliveries that it may have.
    #[serde(default)]
    pub max_attempts: u32,
    /// Who holds it; empty: nobody.
    #[serde(default)]
    pub worker_id: String,
    /// Why it ended; empty: it has not, or well.
    #[serde(default)]
    pub error: String,
    /// Why its last attempt failed, while it is live; empty: none did.
    #[serde(default)]
    pub last_error: String,
    /// Its tenant.
    #[serde(default)]
    pub tenant_id: String,
    /// The key it was created with; empty: none.
    #[serde(default)]
    pub idempotency_key: String,
    /// When it was created.
    #[serde(deserialize_with = "time")]
    pub created_at: SystemTime,
    /// When it becomes ready; only while it is delayed.
    #[serde(default, deserialize_with = "maybe_time")]
    pub run_at: Option<SystemTime>,
    /// When it ended.
    #[serde(default, deserialize_with = "maybe_time")]
    pub finished_at: Option<SystemTime>,
    /// Whoever holds it is asked to stop.
    #[serde(default)]
    pub cancel_requested: bool,
    /// The right to act on it; only in the answer to a claim.
    #[serde(default)]
    pub lease_token: String,
    /// The lease that was granted, in milliseconds; only in the answer to a claim.
    #[serde(default)]
    pub lease_ms: u64,
}

impl Task {
    /// Its payload as a type of yours.
    ///
    /// # Errors
    /// It does not fit.
    pub fn payload<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.payload.as_ref().map_or("null", |payload| payload.get()))
    }
}

/// How a task ended.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResultRecord {
    /// `COMPLETED` or `FAILED`.
    pub status: String,
    /// What its worker said, a JSON object; nothing if it said nothing.
    #[serde(default)]
    pub result: Option<Box<RawValue>>,
    /// Why it failed, or a remark.
    #[serde(default)]
    pub error: String,
    /// The delivery that ended it; 0: none did.
    #[serde(default)]
    pub attempt: u32,
}

impl ResultRecord {
    /// Whether it was completed.
    pub fn is_completed(&self) -> bool {
        self.status == "COMPLETED"
    }

    /// The result as a type of yours.
    ///
    /// # Errors
    /// It does not fit, or there is none.
    pub fn result<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.result.as_ref().map_or("null", |result| result.get()))
    }
}

/// A task that has ended, and how.
#[derive(Clone, Debug, Deserialize)]
pub struct Finished {
    /// The task.
    pub task: Task,
    /// How it ended.
    pub result: ResultRecord,
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
    maybe_time(deserializer)?.ok_or_else(|| serde::de::Error::custom("a time is missing"))
}

fn maybe_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let ms = api::time::parse(&text).ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no time")))?;
    Ok(Some(UNIX_EPOCH + Duration::from_millis(ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left out is not sent, and what is sent is as the contract has it.
    #[test]
    fn a_new_task_is_written_as_the_contract_has_it() {
        let plain = NewTask::new("a", &[1, 2]).expect("it is JSON");
        assert_eq!(serde_json::to_string(&plain).unwrap(), r#"{"command":"a","payload":[1,2]}"#);
        let full = plain
            .priority(9)
            .delay(Duration::from_millis(1500))
            .run_at(UNIX_EPOCH + Duration::from_secs(1))
            .max_attempts(3)
            .idempotency_key("k")
            .webhook("http://h/");
        assert_eq!(
            serde_json::to_string(&full).unwrap(),
            r#"{"command":"a","payload":[1,2],"priority":9,"delaySeconds":1.5,"runAt":"1970-01-01T00:00:01.000Z","maxAttempts":3,"webhook":"http://h/","idempotencyKey":"k"}"#
        );
        assert!(NewTask::new("a", &f64::NAN).is_ok(), "serde writes null, which the server refuses");
    }

    /// Fields that a later server adds, and states that it knows, do not stop a reader.
    #[test]
    fn a_task_of_a_later_server_is_read() {
        let text = r#"{"id":"x","command":"a","payload":{"n":12345678901234567890123},"state":"RESTING","createdAt":"1970-01-01T00:00:01.000Z","new":[1]}"#;
        let task: Task = serde_json::from_str(text).expect("it is a task");
        assert_eq!(task.state, State::Other);
        assert_eq!(task.payload.expect("it has one").get(), r#"{"n":12345678901234567890123}"#);
        assert_eq!(task.created_at, UNIX_EPOCH + Duration::from_secs(1));
    }
}
