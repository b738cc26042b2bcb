//! `POST /tasks` and `POST /tasks/batch`.

use api::json::Seconds;
use api::v1::{CreateBatchBody, CreateBody, Task};
use api::{Code, Problem};
use base::{Millis, Position, ScheduleTime};
use cluster::{Freshness, Operations};
use hyper::http::uri::Authority;
use queue::id::shard_of;
use queue::op::{Create, IdempotencyKey, Op, Schedule};
use queue::outcome::{Created, Outcome as Applied, State, TaskView};
use queue::policy::ATTEMPTS_MAX;
use queue::{TaskId, codec, idempotency};
use std::sync::Arc;

use crate::http::answer::Answer;
use crate::http::batch::{Batch, Item, results};
use crate::http::call::{Call, Outcome};
use crate::http::edge::Edge;
use crate::http::error::{Words, invalid_body, rejected, unavailable};
use crate::http::tasks::{location, str_of, write_task};
use crate::settings::Limits;

/// Longest name of a queue.
const COMMAND_MAX: usize = 128;
/// Longest idempotency key in bytes.
const KEY_MAX: usize = 256;
/// Longest URL of a webhook in bytes.
const WEBHOOK_MAX: usize = 2048;

impl Edge {
    /// Refuses what would have to be kept where a member's disk has little room.
    fn check_room(&self) -> Outcome<()> {
        let Some(member) = self.node.lacks_room() else { return Ok(()) };
        let detail =
            format!("the disk of {member} has little room: no new tasks until there is more (storage.diskLow)");
        Err(Box::new(Problem::new(Code::NoSpace, detail).retry_after(5_000)))
    }

    pub(crate) async fn create(&self, call: &Call) -> Outcome<Answer> {
        let body: CreateBody<'_> = call.required_json()?;
        let key = header_key(call)?;
        let limits = &self.shared.settings.limits;
        let create = read_create(&body, None, key.as_deref(), call, limits, self.now())?;
        self.check_running()?;
        self.check_room()?;
        let shard = shard_of(create.tenant, create.command, self.node.identity().shards);
        self.redirect(call, [shard])?;
        let mut operations = Operations::with_capacity(128 + create.payload.len() + create.webhook.len());
        let created = Op::Create(create);
        operations.push(|bytes| codec::encode(&created, bytes));
        let submitted = self.node.submit(shard, operations, None, Some(self.lane)).await;
        let (position, mut outcomes) = submitted.map_err(unavailable)?;
        let Op::Create(create) = created else {
            return Err(unavailable(cluster::Unavailable::Unknown));
        };
        match outcomes.pop() {
            Some(Applied::Created(created)) => {
                Ok(Answer::json(202, |out| write_new(&create, &created, out)).at(position))
            }
            Some(Applied::Replayed(first)) => {
                let (position, view) = self.first_task(call, first, position).await?;
                Ok(Answer::json(202, |out| write_task(&view, None, out)).at(position).replayed())
            }
            Some(Applied::Rejected(rejection)) => Err(rejected(&rejection, Words::Tasks, None)),
            _ => Err(unavailable(cluster::Unavailable::Unknown)),
        }
    }

    pub(crate) async fn create_batch(&self, call: &Call) -> Outcome<Answer> {
        let body: CreateBatchBody<'_> = call.required_json()?;
        let key = header_key(call)?;
        let limits = &self.shared.settings.limits;
        let tasks = body.tasks.unwrap_or_default();
        if tasks.is_empty() {
            return Err(invalid_body("tasks is required, and must not be empty").map_field("tasks"));
        }
        if tasks.len() > limits.batch_create_max {
            return Err(batch_too_large("batch size exceeds maximum of", limits.batch_create_max));
        }
        self.check_running()?;
        self.check_room()?;
        let now = self.now();
        // The header names the call; it gives a key to each item that has none of its own.
        let key_of = |(place, task): (usize, &CreateBody<'_>)| match (&key, own_key(task)) {
            (Some(key), None) => Some(format!("{key}#{place}")),
            _ => None,
        };
        let keys: Vec<Option<String>> = tasks.iter().enumerate().map(key_of).collect();
        let mut batch = Batch::new();
        for (place, task) in tasks.iter().enumerate() {
            match read_create(task, Some("null"), keys[place].as_deref(), call, limits, now) {
                Ok(create) => {
                    let shard = shard_of(create.tenant, create.command, self.node.identity().shards);
                    batch.push(shard, Op::Create(create), codec::encode);
                }
                Err(problem) => batch.refuse(problem.map_field(&format!("tasks[{place}]"))),
            }
        }
        self.redirect(call, batch.shards())?;
        let (positions, items) = batch.submit(self).await?;
        let mut answered: Vec<Outcome<Made<'_>>> = Vec::with_capacity(items.len());
        for item in items {
            answered.push(match item {
                Item::Refused(problem) => Err(problem),
                Item::Applied(_, Applied::Created(created), Op::Create(create)) => Ok(Made::New(create, created)),
                Item::Applied(position, Applied::Replayed(first), _) => {
                    self.first_task(call, first, position).await.map(|(_, view)| Made::Known(view))
                }
                Item::Applied(_, Applied::Rejected(rejection), _) => Err(rejected(&rejection, Words::Tasks, None)),
                Item::Applied(..) => Err(unavailable(cluster::Unavailable::Unknown)),
            });
        }
        let answer = results(
            &answered,
            |_, _| (),
            |made, item| match made {
                Made::New(create, created) => item.value("task", |out| write_new(create, created, out)),
                Made::Known(view) => {
                    item.value("task", |out| write_task(view, None, out));
                    item.flag("replayed", true);
                }
            },
        );
        Ok(answer.at_all(positions))
    }

    /// The task that a key was bound to first, in its present state.
    async fn first_task(&self, call: &Call, first: TaskId, position: Position) -> Outcome<(Position, Arc<TaskView>)> {
        let freshness = Freshness::AtLeast { index: position.index, up_to: Millis(2_000) };
        let (position, view) = self.find_task(&call.principal.tenant, first, freshness, None).await?;
        let gone = || {
            Box::new(
                Problem::new(Code::Overloaded, "the first task of this key has just gone; try again").retry_after(1000),
            )
        };
        Ok((position, view.ok_or_else(gone)?))
    }

    pub(crate) fn now(&self) -> ScheduleTime {
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
        ScheduleTime(now.as_millis() as u64)
    }
}

/// Appends the task that a creation has made: only what the log has decided comes back from there.
fn write_new(create: &Create<'_>, created: &Created, out: &mut Vec<u8>) {
    let state = if created.run_at.is_some() { State::Delayed } else { State::Ready };
    Task {
        id: str_of(&created.id.text()),
        command: create.command,
        payload: Some(create.payload),
        priority: create.priority,
        webhook: create.webhook,
        location: location(state),
        worker: None,
        lease_until: None,
        attempts: 0,
        max_attempts: created.max_attempts,
        error: "",
        has_result: false,
        tenant: create.tenant,
        created_at: created.at.0,
        updated_at: created.at.0,
        run_at: created.run_at.map(|time| time.0),
        last_error: "",
        finished_at: None,
        lease: None,
        idempotency_key: create.key.map(|key| key.text).unwrap_or_default(),
        payload_bytes: None,
        cancel_requested: false,
        result: None,
    }
    .write(out);
}

/// What became of one item of a batch.
enum Made<'a> {
    New(Create<'a>, Created),
    Known(Arc<TaskView>),
}

/// The key of the header `Idempotency-Key`, bare or quoted; only white space is none.
fn header_key(call: &Call) -> Outcome<Option<String>> {
    let Some(value) = call.head.headers.get("idempotency-key") else {
        return Ok(None);
    };
    let bad = |detail: &str| Box::new(Problem::new(Code::InvalidIdempotencyKey, detail).field("Idempotency-Key"));
    let text = std::str::from_utf8(value.as_bytes()).map_err(|_| bad("the header is not text"))?.trim();
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    Ok((!text.trim().is_empty()).then(|| text.to_owned()))
}

/// The creation that a body asks for. Fields are checked in the order of the contract. A payload that is not there is `absent`, or an error.
fn read_create<'a>(
    body: &'a CreateBody<'_>,
    absent: Option<&'static str>,
    header_key: Option<&'a str>,
    call: &'a Call,
    limits: &Limits,
    now: ScheduleTime,
) -> Outcome<Create<'a>> {
    let command = check_command(body.command.as_deref().unwrap_or(""), true)?;
    let missing = || invalid_body("payload is required, and must not be null").map_field("payload");
    let payload = body.payload.map(|payload| payload.get()).or(absent).ok_or_else(missing)?;
    let payload = check_payload(payload, limits)?;
    let schedule = read_schedule(body.run_at.as_deref(), body.delay.unwrap_or(Seconds(0)), limits, now)?;
    let webhook = check_webhook(body.webhook.as_deref().unwrap_or(""))?;
    let key = check_key(own_key(body), header_key)?;
    let tenant: &str = &call.principal.tenant;
    let priority = body.priority.map_or(0, |priority| priority.0.clamp(0, 9) as u8);
    let max_attempts = body.max_attempts.map(|attempts| attempts.0).filter(|attempts| *attempts > 0);
    let max_attempts = max_attempts.map(|attempts| attempts.min(i64::from(ATTEMPTS_MAX)) as u32);
    let key = key.map(|text| IdempotencyKey {
        text,
        scope: idempotency::scope_digest(tenant, command, text),
        body: idempotency::body_digest(payload, priority, webhook, max_attempts, &schedule),
    });
    Ok(Create { tenant, command, priority, payload, schedule, webhook, max_attempts, key })
}

/// A queue's name: 1 to 128 of `[A-Za-z0-9._:-]`. An empty one is a missing one where the field is required.
pub(crate) fn check_command(command: &str, required: bool) -> Outcome<&str> {
    if command.is_empty() && required {
        return Err(invalid_body("command is required").map_field("command"));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-');
    if (1..=COMMAND_MAX).contains(&command.len()) && command.bytes().all(allowed) {
        return Ok(command);
    }
    let detail = "a command is 1 to 128 characters of A-Z, a-z, 0-9, '.', '_', ':' and '-'";
    Err(Box::new(Problem::new(Code::InvalidCommand, detail).error("invalid command").field("command")))
}

/// The bytes of a payload that is not too large.
pub(crate) fn check_payload<'a>(payload: &'a str, limits: &Limits) -> Outcome<&'a [u8]> {
    if payload.len() > limits.payload_bytes_max {
        let detail = format!("a payload has at most {} bytes (limits.maxPayloadBytes)", limits.payload_bytes_max);
        return Err(Box::new(Problem::new(Code::PayloadTooLarge, detail).field("payload")));
    }
    Ok(payload.as_bytes())
}

/// When a task becomes ready: a time wins over a delay, and an empty one is none.
pub(crate) fn read_schedule(
    run_at: Option<&str>,
    delay: Seconds,
    limits: &Limits,
    now: ScheduleTime,
) -> Outcome<Schedule> {
    let most = limits.delay_max;
    let run_at = match run_at {
        None | Some("") => None,
        Some(text) => {
            let time = api::time::parse(text).map(ScheduleTime).filter(|time| *time - now <= most);
            let detail =
                format!("runAt is an RFC 3339 time, at most {} days ahead (queue.maxDelay)", most.0 / 86_400_000);
            let bad = || Problem::new(Code::InvalidRunAt, detail).error("invalid 'runAt' (use RFC3339)").field("runAt");
            Some(time.ok_or_else(|| Box::new(bad()))?)
        }
    };
    let Seconds(delay) = delay;
    if delay < 0 || delay as u64 > most.0 {
        let detail = format!("delaySeconds is 0 to {} (queue.maxDelay)", most.0 / 1000);
        let problem = Problem::new(Code::InvalidDelay, detail).error("invalid 'delaySeconds' (must be >= 0)");
        return Err(Box::new(problem.field("delaySeconds")));
    }
    Ok(match (run_at, delay) {
        (Some(time), _) => Schedule::At(time),
        (None, 0) => Schedule::Now,
        (None, delay) => Schedule::After(Millis(delay as u64)),
    })
}

pub(crate) fn check_webhook(url: &str) -> Outcome<&str> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    // Not `//example.com`, which names no host of its own, nor a host without a name or with something else than a port.
    let authority = rest.and_then(|rest| rest.split(['/', '?', '#', '\\']).next()?.parse::<Authority>().ok());
    let is_host = |authority: Authority| {
        let port = authority.as_str().strip_prefix(authority.host()).unwrap_or("@");
        !authority.host().is_empty() && (port.is_empty() || authority.port_u16().is_some())
    };
    let clean = !url.bytes().any(|byte| byte <= b' ' || byte == 0x7f);
    if url.is_empty() || (url.len() <= WEBHOOK_MAX && clean && authority.is_some_and(is_host)) {
        return Ok(url);
    }
    let detail = "a webhook is an http or https URL with a host and without user information, at most 2048 bytes";
    Err(Box::new(Problem::new(Code::InvalidWebhookUrl, detail).error("invalid webhook url").field("webhook")))
}

/// The key of a body; only white space is none.
fn own_key<'a>(body: &'a CreateBody<'_>) -> Option<&'a str> {
    body.idempotency_key.as_deref().filter(|key| !key.trim().is_empty())
}

/// The key of the body or the header; both must be equal.
fn check_key<'a>(body: Option<&'a str>, header: Option<&'a str>) -> Outcome<Option<&'a str>> {
    let bad = |detail: &str| Err(Box::new(Problem::new(Code::InvalidIdempotencyKey, detail).field("idempotencyKey")));
    let key = match (body, header) {
        (Some(body), Some(header)) if body != header => {
            return bad("the header Idempotency-Key and the field idempotencyKey differ; send one of them");
        }
        (body, header) => body.or(header),
    };
    match key {
        Some(key) if key.len() > KEY_MAX => bad("an idempotency key has at most 256 bytes"),
        key => Ok(key),
    }
}

/// More items than a batch may have.
pub(crate) fn batch_too_large(what: &str, most: usize) -> Box<Problem> {
    let detail = format!("{what} {most}");
    let error = match (what, most) {
        ("batch size exceeds maximum of", 100) => "batch size exceeds maximum of 100",
        ("count exceeds maximum of", 10) => "count exceeds maximum of 10",
        _ => Code::BatchTooLarge.title(),
    };
    Box::new(Problem::new(Code::BatchTooLarge, detail).error(error))
}

/// Puts a problem's field beneath another one.
pub(crate) trait MapField {
    /// With the field beneath `prefix`.
    fn map_field(self, prefix: &str) -> Self;
}

impl MapField for Box<Problem> {
    fn map_field(mut self, prefix: &str) -> Self {
        self.field = Some(match self.field.take() {
            Some(field) => format!("{prefix}.{field}"),
            None => prefix.to_owned(),
        });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_queues_follow_their_rule() {
        for good in ["a", "mail.send_v2:eu-1", &"x".repeat(128)] {
            assert_eq!(check_command(good, true), Ok(good));
        }
        for bad in ["a b", "ä", "a/b", "a\0b", &"x".repeat(129), "*"] {
            assert_eq!(check_command(bad, true).map_err(|problem| problem.code), Err(Code::InvalidCommand), "{bad:?}");
        }
        assert_eq!(check_command("", true).map_err(|problem| problem.code), Err(Code::InvalidBody));
    }

    #[test]
    fn webhooks_are_http_urls_with_a_host() {
        for good in ["", "http://example.com", "https://example.com:8443/path?x=1", "http://[::1]:80/"] {
            assert_eq!(check_webhook(good), Ok(good));
        }
        let long = format!("http://example.com/{}", "x".repeat(WEBHOOK_MAX));
        for bad in [
            "ftp://example.com",
            "http://",
            "http:///x",
            "example.com",
            "http://user@example.com",
            "http://a b",
            "http://:80/",
            "http://example.com:port",
            "http://example.com:99999",
            "http://[::1",
            &long,
            "javascript:alert(1)",
        ] {
            assert_eq!(check_webhook(bad).map_err(|problem| problem.code), Err(Code::InvalidWebhookUrl), "{bad:?}");
        }
    }

    #[test]
    fn keys_of_body_and_header_must_agree() {
        assert_eq!(check_key(Some("k"), None), Ok(Some("k")));
        assert_eq!(check_key(None, Some("k")), Ok(Some("k")));
        assert_eq!(check_key(Some("k"), Some("k")), Ok(Some("k")));
        assert!(check_key(Some("a"), Some("b")).is_err());
        assert!(check_key(Some("a"), Some("a#0")).is_err());
        assert!(check_key(Some(&"k".repeat(257)), None).is_err());
    }
}
