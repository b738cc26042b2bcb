//! `POST /tasks/{id}/heartbeat`, `/abandon`, `/nack`, `/cancel` and `/redrive`.

use std::sync::Arc;

use api::json::{Seconds, Writer};
use api::v1::{CancelBody, HeartbeatBatchBody, HeartbeatBody, NackBody, RedriveBody, ReleaseBody};
use api::{Code, Problem};
use base::{Millis, Position};
use cluster::{Freshness, Operations, Unavailable};
use queue::op::{Credential, LeaseRef, Op, Redrive};
use queue::outcome::{Outcome as Applied, Rejection, State};
use queue::{Payload, TaskId, TaskView, codec, record};

use crate::http::answer::Answer;
use crate::http::batch::{Batch, Item, results};
use crate::http::call::{Call, Outcome, task_id};
use crate::http::create::{MapField, batch_too_large, check_payload};
use crate::http::edge::Edge;
use crate::http::edit::RECORD_TRIES;
use crate::http::error::{Ended, Words, after_effect, invalid_body, rejected, task_not_found, unavailable};
use crate::http::tasks::{has_ended, str_of, write_task};

/// Leases that one call extends.
const HEARTBEATS_MAX: usize = 100;

impl Edge {
    pub(crate) async fn heartbeat(&self, call: &Call, id: &str) -> Outcome<Answer> {
        let body: HeartbeatBody<'_> = call.json()?;
        let id = self.live_id(id, Words::Leases)?;
        let lease = self.lease_of(call, &id, body.lease_token.as_deref());
        let (position, applied) = self.apply(&id, &Op::Extend { lease, length: read_length(body.extend) }).await?;
        if !matches!(applied, Applied::Extended { .. }) {
            return Err(self.refusal(call, &id, &applied, &lease.credential, Words::Leases).await);
        }
        let answer = Answer::json(200, |out| {
            let mut body = Writer::object(out);
            write_extended(&applied, &mut body);
            body.end();
        });
        Ok(answer.at(position))
    }

    /// Extends many leases, each on its own.
    pub(crate) async fn heartbeat_batch(&self, call: &Call) -> Outcome<Answer> {
        let body: HeartbeatBatchBody<'_> = call.required_json()?;
        check_unknown(body.unknown.as_deref())?;
        let asked = body.heartbeats.unwrap_or_default();
        if asked.is_empty() {
            return Err(invalid_body("heartbeats is required, and has at least one item").map_field("heartbeats"));
        }
        if asked.len() > HEARTBEATS_MAX {
            return Err(batch_too_large("batch size exceeds maximum of", HEARTBEATS_MAX).map_field("heartbeats"));
        }
        self.check_running()?;
        let mut batch = Batch::new();
        for (place, item) in asked.iter().enumerate() {
            let text = item.task_id.as_deref().unwrap_or("");
            let id = task_id(text).filter(|id| self.is_ours(id)).ok_or_else(|| task_not_found(Words::Leases));
            match check_unknown(item.unknown.as_deref()).and(id) {
                Ok(id) => {
                    let lease = self.lease_of(call, &id, item.lease_token.as_deref());
                    let op = Op::Extend { lease, length: read_length(item.extend) };
                    batch.push(id.shard, (id, lease.credential), |_, bytes| codec::encode(&op, bytes));
                }
                Err(problem) => batch.refuse(problem.map_field(&format!("heartbeats[{place}]"))),
            }
        }
        self.redirect(call, batch.shards())?;
        let (positions, items) = batch.submit(self).await?;
        let mut answered: Vec<Outcome<Applied>> = Vec::with_capacity(items.len());
        for item in items {
            answered.push(match item {
                Item::Refused(problem) => Err(problem),
                Item::Applied(_, extended @ Applied::Extended { .. }, _) => Ok(extended),
                Item::Applied(_, other, (id, credential)) => {
                    Err(self.refusal(call, &id, &other, &credential, Words::Leases).await)
                }
            });
        }
        let begin = |place: usize, item: &mut Writer<'_>| {
            item.text("taskId", asked[place].task_id.as_deref().unwrap_or(""));
        };
        Ok(results(&answered, begin, write_extended).at_all(positions))
    }

    pub(crate) async fn abandon(&self, call: &Call, id: &str) -> Outcome<Answer> {
        let body: ReleaseBody<'_> = call.json()?;
        let id = self.live_id(id, Words::Leases)?;
        let lease = self.lease_of(call, &id, body.lease_token.as_deref());
        let (position, applied) = self.apply(&id, &Op::Release { lease }).await?;
        let status = match applied {
            Applied::Released => "requeued",
            Applied::Cancelled(_) => "cancelled",
            other => {
                return Err(self.refusal(call, &id, &other, &lease.credential, Words::Leases).await);
            }
        };
        Ok(Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.text("status", status);
            body.end();
        })
        .at(position))
    }

    pub(crate) async fn nack(&self, call: &Call, id: &str) -> Outcome<Answer> {
        let body: NackBody<'_> = call.json()?;
        let id = self.live_id(id, Words::Leases)?;
        let lease = self.lease_of(call, &id, body.lease_token.as_deref());
        let delay = read_retry_delay(body.delay);
        let op = Op::Nack { lease, delay, reason: body.reason.as_deref().unwrap_or("") };
        let (position, applied) = self.apply(&id, &op).await?;
        match write_nack(&applied, None) {
            Some(body) => Ok(Answer::json(200, |out| out.extend_from_slice(&body)).at(position)),
            None => Err(self.refusal(call, &id, &applied, &lease.credential, Words::Leases).await),
        }
    }

    pub(crate) async fn cancel(&self, call: &Call, id: &str) -> Outcome<Answer> {
        let body: CancelBody<'_> = call.json()?;
        check_unknown(body.unknown.as_deref())?;
        let id = self.live_id(id, Words::Tasks)?;
        let op = Op::Cancel {
            tenant: &call.principal.tenant,
            task: id.key,
            reason: body.reason.as_deref().unwrap_or(""),
            force: body.force.unwrap_or(false),
        };
        let (position, applied) = self.apply(&id, &op).await?;
        let (status, view) = match applied {
            Applied::Cancelled(view) => (200, view),
            Applied::CancelRequested(view) => (202, view),
            // What has ended cannot be cancelled, but cancelling twice is harmless.
            Applied::Rejected(Rejection::NotLive) => {
                let (position, found) = self.read_now(call, id).await?;
                return match found {
                    None => Err(task_not_found(Words::Tasks)),
                    Some(view) if view.state == State::Cancelled => {
                        Ok(Answer::json(200, |out| write_task(&view, None, out)).at(position))
                    }
                    Some(_) => {
                        Err(Box::new(Problem::new(Code::AlreadyFinished, "the task has ended; read its result")))
                    }
                };
            }
            _ => return Err(unavailable(Unavailable::Unknown)),
        };
        let view = self.with_payload_at(position, std::sync::Arc::new(*view)).await;
        let view = view.map_err(|why| after_effect("the task was cancelled, or will be", &why))?;
        Ok(Answer::json(status, |out| write_task(&view, None, out)).at(position))
    }

    pub(crate) async fn redrive(&self, call: &Call, id: &str) -> Outcome<Answer> {
        let body: RedriveBody<'_> = call.json()?;
        check_unknown(body.unknown.as_deref())?;
        let keep_attempts = match body.attempts.as_deref() {
            None | Some("" | "reset") => false,
            Some("keep") => true,
            Some(_) => {
                return Err(Box::new(Problem::new(Code::InvalidField, "attempts is reset or keep").field("attempts")));
            }
        };
        let delay = body.delay.map_or(0, |Seconds(ms)| ms);
        if delay < 0 || delay as u64 > self.shared.settings.limits.delay_max.0 {
            return Err(Box::new(
                Problem::new(Code::InvalidDelay, "delaySeconds is 0 to queue.maxDelay").field("delaySeconds"),
            ));
        }
        let payload =
            body.payload.map(|payload| check_payload(payload.get(), &self.shared.settings.limits)).transpose()?;
        let id = self.live_id(id, Words::Tasks)?;
        // The record may change between being read and being redriven; then it is read again.
        for _ in 0..RECORD_TRIES {
            let (_, found) = self.read_now(call, id).await?;
            let view = found.ok_or_else(|| task_not_found(Words::Tasks))?;
            if !has_ended(view.state) {
                return Err(rejected(&Rejection::NotEnded, Words::Tasks, None));
            }
            if view.state == State::Completed {
                return Err(Box::new(Problem::new(Code::AlreadyFinished, "a completed task is not redriven")));
            }
            let mut row = Vec::new();
            let view = match payload {
                Some(payload) => {
                    Arc::new(TaskView { payload: Payload::Resident(payload.into()), ..view.as_ref().clone() })
                }
                None => view,
            };
            record::encode(&view, &mut base::rows::RowWriter::new(&mut row));
            let op = Op::Redrive(Redrive {
                tenant: &call.principal.tenant,
                task: id.key,
                ended_at: view.ended_at.unwrap_or_default(),
                record: &row,
                keep_attempts,
                delay: Millis(delay as u64),
                priority: body.priority.map(|priority| priority.0.clamp(0, 9) as u8),
            });
            match self.apply(&id, &op).await? {
                (position, Applied::Redriven(view)) => {
                    return Ok(Answer::json(200, |out| write_task(&view, None, out)).at(position));
                }
                (_, Applied::Rejected(Rejection::RecordChanged | Rejection::NotLive)) => {}
                (_, Applied::Rejected(rejection)) => return Err(rejected(&rejection, Words::Tasks, None)),
                _ => return Err(unavailable(Unavailable::Unknown)),
            }
        }
        Err(rejected(&Rejection::RecordChanged, Words::Tasks, None))
    }

    /// Applies one operation on a task.
    pub(crate) async fn apply(&self, id: &TaskId, op: &Op<'_>) -> Outcome<(Position, Applied)> {
        self.check_running()?;
        let mut operations = Operations::with_capacity(128);
        operations.push(|bytes| codec::encode(op, bytes));
        let submitted = self.node.submit(id.shard, operations, None, Some(self.lane)).await;
        let (position, mut outcomes) = submitted.map_err(unavailable)?;
        Ok((position, outcomes.pop().ok_or_else(|| unavailable(Unavailable::Unknown))?))
    }

    /// The task of a path, if it could be one of this cluster. A node that belongs to none yet cannot tell.
    pub(crate) fn live_id(&self, text: &str, words: Words) -> Outcome<TaskId> {
        if self.node.cluster().is_none() {
            self.check_running()?;
        }
        task_id(text).filter(|id| self.is_ours(id)).ok_or_else(|| task_not_found(words))
    }

    pub(crate) fn lease_of<'a>(&self, call: &'a Call, id: &TaskId, token: Option<&str>) -> LeaseRef<'a> {
        LeaseRef { tenant: &call.principal.tenant, task: id.key, credential: call.credential(token) }
    }

    /// Why an operation on a lease was refused. Whether a task that is not live has ended or never was stands in the checkpoint.
    pub(crate) async fn refusal(
        &self,
        call: &Call,
        id: &TaskId,
        applied: &Applied,
        credential: &Credential<'_>,
        words: Words,
    ) -> Box<Problem> {
        let Applied::Rejected(rejection) = applied else {
            return unavailable(Unavailable::Unknown);
        };
        let ended = if *rejection == Rejection::NotLive {
            match self.read_now(call, *id).await {
                Ok((_, found)) => found.map(|_| Ended { by_token: !matches!(credential, Credential::Worker(_)) }),
                Err(problem) => return problem,
            }
        } else {
            None
        };
        rejected(rejection, words, ended)
    }

    pub(crate) async fn read_now(
        &self,
        call: &Call,
        id: TaskId,
    ) -> Outcome<(Position, Option<std::sync::Arc<queue::TaskView>>)> {
        self.find_task(&call.principal.tenant, id, Freshness::Linearizable, None).await
    }
}

/// Routes that codeQ does not have refuse fields they do not know.
pub(crate) fn check_unknown(unknown: Option<&str>) -> Outcome<()> {
    match unknown {
        None => Ok(()),
        Some(name) => {
            let name: String = name.chars().take(100).collect();
            Err(Box::new(Problem::new(Code::InvalidField, "this route knows no such field").field(name)))
        }
    }
}

/// What an extension answers.
fn write_extended(applied: &Applied, body: &mut Writer<'_>) {
    let Applied::Extended { remaining, until, cancel_requested } = applied else { return };
    body.flag("ok", true);
    body.time("leaseUntil", until.0);
    body.number("leaseMs", remaining.0);
    if *cancel_requested {
        body.flag("cancelRequested", true);
    }
}

/// The new length of a lease; absent, 0 or less: the default.
fn read_length(extend: Option<Seconds>) -> Option<Millis> {
    extend.map(|Seconds(ms)| ms).filter(|ms| *ms > 0).map(|ms| Millis(ms as u64))
}

/// A delay until the next attempt; absent or negative: the policy's.
pub(crate) fn read_retry_delay(delay: Option<Seconds>) -> Option<Millis> {
    delay.map(|Seconds(ms)| ms).filter(|ms| *ms >= 0).map(|ms| Millis(ms as u64))
}

/// The answer to a nack; nothing if it was refused.
pub(crate) fn write_nack(applied: &Applied, task_id: Option<&TaskId>) -> Option<Vec<u8>> {
    let (status, delay, attempts) = match applied {
        Applied::Retried { delay, attempts } => ("requeued", *delay, Some(*attempts)),
        Applied::DeadLettered { attempts } => ("dlq", Millis(0), Some(*attempts)),
        Applied::Cancelled(view) => ("cancelled", Millis(0), Some(view.attempts)),
        _ => return None,
    };
    let mut out = Vec::new();
    let mut body = Writer::object(&mut out);
    if let Some(id) = task_id {
        body.plain("taskId", str_of(&id.text()));
    }
    body.text("status", status);
    body.number("delaySeconds", delay.0.div_ceil(1000));
    body.number("delayMs", delay.0);
    if let Some(attempts) = attempts {
        body.number("attempts", u64::from(attempts));
    }
    body.end();
    Some(out)
}
