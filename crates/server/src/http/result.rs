//! `POST /tasks/{id}/result` and `POST /tasks/batch/results`.

use std::collections::BTreeSet;

use api::json::Writer;
use api::v1::{ResultBatchBody, ResultBody, ResultRecord};
use api::{Code, Problem};
use base::ScheduleTime;
use cluster::{Freshness, Unavailable};
use queue::op::{Credential, LeaseRef, Op};
use queue::outcome::Outcome as Applied;
use queue::{Answer as Told, Query, TaskId, codec};

use crate::http::answer::Answer;
use crate::http::batch::{Batch, Item, results};
use crate::http::call::{Call, Outcome, owned, task_id};
use crate::http::create::{MapField, batch_too_large};
use crate::http::edge::Edge;
use crate::http::error::{Words, invalid_body, task_not_found, unavailable};
use crate::http::lease::{read_retry_delay, write_nack};
use crate::http::tasks::str_of;

/// A result that can be applied, and what its answer repeats of it.
struct Submission<'a> {
    op: Op<'a>,
    status: &'static str,
    result: Option<&'a [u8]>,
    error: &'a str,
}

impl Edge {
    pub(crate) async fn submit_result(&self, call: &Call, id: &str) -> Outcome<Answer> {
        let body: ResultBody<'_> =
            call.required_json().map_err(|problem| Box::new(problem.error("invalid request body")))?;
        let id = self.live_id(id, Words::Results)?;
        let lease = self.lease_of(call, &id, body.lease_token.as_deref());
        let submission = match read_result(&body, lease, self.shared.settings.limits.result_bytes_max) {
            Ok(submission) => submission,
            // A task that is unknown, foreign or not held is said to be so first.
            Err(problem) => {
                return Err(self.look_first(call, &id, &lease.credential).await.err().unwrap_or(problem));
            }
        };
        let (position, applied) = self.apply(&id, &submission.op).await?;
        match write_submitted(&id, &submission, &applied) {
            Some(body) => Ok(Answer::json(200, |out| out.extend_from_slice(&body)).at(position)),
            None => Err(self.refusal(call, &id, &applied, &lease.credential, Words::Results).await),
        }
    }

    pub(crate) async fn submit_results(&self, call: &Call) -> Outcome<Answer> {
        let body: ResultBatchBody<'_> = call.required_json()?;
        let limits = &self.shared.settings.limits;
        let asked = body.results.unwrap_or_default();
        if asked.is_empty() {
            return Err(invalid_body("results is required, and must not be empty").map_field("results"));
        }
        if asked.len() > limits.batch_results_max {
            return Err(batch_too_large("batch size exceeds maximum of", limits.batch_results_max));
        }
        self.check_running()?;
        let mut batch = Batch::new();
        let mut seen = BTreeSet::new();
        for (place, item) in asked.iter().enumerate() {
            match self.read_item(call, item, limits.result_bytes_max, &mut seen).await {
                Ok((id, submission)) => {
                    batch.push(id.shard, (id, submission), |(_, submission), bytes| {
                        codec::encode(&submission.op, bytes)
                    });
                }
                Err(problem) => batch.refuse(problem.map_field(&format!("results[{place}]"))),
            }
        }
        self.redirect(call, batch.shards())?;
        let (positions, items) = batch.submit(self).await?;
        let mut answered: Vec<Outcome<Vec<u8>>> = Vec::with_capacity(items.len());
        for item in items {
            answered.push(match item {
                Item::Refused(problem) => Err(problem),
                Item::Applied(_, applied, (id, submission)) => match write_submitted(&id, &submission, &applied) {
                    Some(record) => Ok(record),
                    None => {
                        let lease = self.lease_of(call, &id, None);
                        let credential = credential_of(&submission.op).unwrap_or(lease.credential);
                        Err(self.refusal(call, &id, &applied, &credential, Words::Results).await)
                    }
                },
            });
        }
        let begin = |place: usize, item: &mut Writer<'_>| {
            item.text("taskId", asked[place].task_id.as_deref().unwrap_or(""));
        };
        Ok(results(&answered, begin, |record, item| item.raw("result", record)).at_all(positions))
    }

    async fn read_item<'a>(
        &self,
        call: &'a Call,
        item: &'a ResultBody<'_>,
        result_bytes_max: usize,
        seen: &mut BTreeSet<TaskId>,
    ) -> Outcome<(TaskId, Submission<'a>)> {
        let text = item.task_id.as_deref().unwrap_or("");
        let id = task_id(text).filter(|id| self.is_ours(id)).ok_or_else(|| task_not_found(Words::Results))?;
        let lease = self.lease_of(call, &id, item.lease_token.as_deref());
        let submission = match read_result(item, lease, result_bytes_max) {
            Ok(submission) => submission,
            Err(problem) => {
                return Err(self.look_first(call, &id, &lease.credential).await.err().unwrap_or(problem));
            }
        };
        // Of two results for one task in a call the first one counts; the second comes too late by definition.
        if !seen.insert(id) {
            let problem = Problem::new(Code::NotInProgress, "the call has a result for this task already");
            return Err(Box::new(problem.error("not-in-progress")));
        }
        Ok((id, submission))
    }

    /// What a result for this task would be refused for, whatever it says.
    async fn look_first(&self, call: &Call, id: &TaskId, credential: &Credential<'_>) -> Outcome<()> {
        self.check_running()?;
        let query = Query::Lease { tenant: call.principal.tenant.clone(), id: *id, credential: owned(credential) };
        let asked = self.node.ask(id.shard, query, Freshness::Linearizable, None, Some(self.lane)).await;
        match asked.map_err(unavailable)?.1 {
            Told::Lease(Ok(())) => Ok(()),
            Told::Lease(Err(rejection)) => {
                Err(self.refusal(call, id, &Applied::Rejected(rejection), credential, Words::Results).await)
            }
            _ => Err(unavailable(Unavailable::Unknown)),
        }
    }
}

fn credential_of<'a>(op: &Op<'a>) -> Option<Credential<'a>> {
    match op {
        Op::Complete { lease, .. } | Op::Fail { lease, .. } | Op::Nack { lease, .. } => Some(lease.credential),
        _ => None,
    }
}

/// The operation that a body asks for.
fn read_result<'a>(body: &'a ResultBody<'_>, lease: LeaseRef<'a>, result_bytes_max: usize) -> Outcome<Submission<'a>> {
    let invalid = |error: &'static str, field: &str| {
        Err(Box::new(Problem::new(Code::InvalidResult, error).error(error).field(field)))
    };
    let result = body.result.map(|result| result.get().as_bytes());
    let error = body.error.as_deref().unwrap_or("");
    let retryable = body.retryable.unwrap_or(false);
    if result.is_some_and(|result| !result.starts_with(b"{")) {
        return Err(invalid_body("result is an object").map_field("result"));
    }
    if result.is_some_and(|result| result.len() > result_bytes_max) {
        let detail = format!("a result has at most {result_bytes_max} bytes (limits.maxResultBytes)");
        return Err(Box::new(Problem::new(Code::ResultTooLarge, detail).field("result")));
    }
    match body.status.as_deref() {
        Some("COMPLETED") => {
            let Some(bytes) = result else {
                return invalid("result required when status=COMPLETED", "result");
            };
            if retryable {
                let problem = Problem::new(Code::InvalidField, "a completed task is not retried");
                return Err(Box::new(problem.field("retryable")));
            }
            Ok(Submission { op: Op::Complete { lease, result: bytes, error }, status: "COMPLETED", result, error })
        }
        Some("FAILED") if error.trim().is_empty() => invalid("error required when status=FAILED", "error"),
        Some("FAILED") if retryable => {
            let delay = read_retry_delay(body.delay);
            Ok(Submission { op: Op::Nack { lease, delay, reason: error }, status: "FAILED", result: None, error })
        }
        Some("FAILED") => Ok(Submission { op: Op::Fail { lease, result, error }, status: "FAILED", result, error }),
        _ => invalid("invalid status", "status"),
    }
}

/// The answer to a result that was applied; nothing if it was refused.
fn write_submitted(id: &TaskId, submission: &Submission<'_>, applied: &Applied) -> Option<Vec<u8>> {
    let Applied::Finished { at: ScheduleTime(completed_at), attempt } = applied else {
        return write_nack(applied, Some(id));
    };
    let mut out = Vec::with_capacity(256);
    let id = id.text();
    let record = ResultRecord {
        task_id: str_of(&id),
        status: submission.status,
        result: submission.result,
        error: submission.error,
        completed_at: *completed_at,
        attempt: *attempt,
    };
    record.write(&mut out);
    Some(out)
}
