//! `PATCH /tasks/{id}`: changing a task that waits, or a dead one before it is brought back.

use api::json::Seconds;
use api::v1::EditBody;
use api::{Code, Problem};
use cluster::Unavailable;
use queue::op::{Amend, Edit, Op, Schedule};
use queue::outcome::{Outcome as Applied, Rejection, State};
use queue::policy::ATTEMPTS_MAX;
use queue::{Payload, TaskId, TaskView, record};

use crate::http::answer::Answer;
use crate::http::call::{Call, Outcome};
use crate::http::create::{check_payload, check_webhook, read_schedule};
use crate::http::edge::Edge;
use crate::http::error::{Words, after_effect, rejected, task_not_found, unavailable};
use crate::http::lease::check_unknown;
use crate::http::tasks::write_task;

/// How often a record is read again that has changed since.
pub(crate) const RECORD_TRIES: u32 = 3;

impl Edge {
    pub(crate) async fn edit(&self, call: &Call, id: &str) -> Outcome<Answer> {
        let body: EditBody<'_> = call.required_json()?;
        check_unknown(body.unknown.as_deref())?;
        let id = self.live_id(id, Words::Tasks)?;
        let limits = &self.shared.settings.limits;
        let range = |value: i64, least: i64, most: i64, name: &str| {
            let detail = || format!("{name} is {least} to {most}");
            let inside = (least..=most).contains(&value).then_some(value);
            inside.ok_or_else(|| Box::new(Problem::new(Code::InvalidField, detail()).field(name)))
        };
        let priority = body.priority.map(|number| range(number.0, 0, 9, "priority")).transpose()?;
        let most = i64::from(ATTEMPTS_MAX);
        let max_attempts = body.max_attempts.map(|number| range(number.0, 1, most, "maxAttempts")).transpose()?;
        let payload = body.payload.map(|payload| check_payload(payload.get(), limits)).transpose()?;
        let is_timed = body.run_at.as_deref().is_some_and(|text| !text.is_empty()) || body.delay.is_some();
        let delay = body.delay.unwrap_or(Seconds(0));
        let schedule: Option<Schedule> =
            is_timed.then(|| read_schedule(body.run_at.as_deref(), delay, limits, self.now())).transpose()?;
        let webhook = body.webhook.as_deref().map(check_webhook).transpose()?;
        let edit = Edit {
            tenant: &call.principal.tenant,
            task: id.key,
            priority: priority.map(|priority| priority as u8),
            schedule,
            payload,
            max_attempts: max_attempts.map(|attempts| attempts as u32),
            webhook,
        };
        match self.apply(&id, &Op::Edit(edit.clone())).await? {
            (position, Applied::Edited(view)) => {
                let view = self.with_payload_at(position, std::sync::Arc::new(*view)).await;
                let view = view.map_err(|why| after_effect("the task was edited", &why))?;
                Ok(Answer::json(200, |out| write_task(&view, None, out)).at(position))
            }
            (_, Applied::Rejected(Rejection::NotLive)) => self.amend(call, id, &edit).await,
            (_, Applied::Rejected(rejection)) => Err(rejected(&rejection, Words::Tasks, None)),
            _ => Err(unavailable(Unavailable::Unknown)),
        }
    }
    /// Changes the record of a dead task: what counts only once it is brought back.
    async fn amend(&self, call: &Call, id: TaskId, edit: &Edit<'_>) -> Outcome<Answer> {
        let ended = |detail| Err(Box::new(Problem::new(Code::AlreadyFinished, detail)));
        // The record may change between being read and being replaced; then it is read again.
        for _ in 0..RECORD_TRIES {
            let (_, found) = self.read_now(call, id).await?;
            let view = found.ok_or_else(|| task_not_found(Words::Tasks))?;
            if view.state != State::Dead {
                return ended("the task has ended; redrive it, with another payload if need be");
            }
            if edit.priority.is_some() || edit.schedule.is_some() || edit.webhook.is_some() {
                return ended(
                    "the task is dead: its payload and maxAttempts can be changed; a redrive takes priority and delay",
                );
            }
            let mut view = TaskView::clone(&view);
            if let Some(payload) = edit.payload {
                view.payload = Payload::Resident(payload.into());
            }
            view.max_attempts = edit.max_attempts.unwrap_or(view.max_attempts);
            let mut row = Vec::new();
            record::encode(&view, &mut base::rows::RowWriter::new(&mut row));
            let ended_at = view.ended_at.unwrap_or_default();
            let op = Op::Amend(Amend { tenant: edit.tenant, task: id.key, ended_at, record: &row });
            match self.apply(&id, &op).await? {
                (position, Applied::Edited(view)) => {
                    return Ok(Answer::json(200, |out| write_task(&view, None, out)).at(position));
                }
                (_, Applied::Rejected(Rejection::RecordChanged | Rejection::NotLive | Rejection::NotEnded)) => {}
                (_, Applied::Rejected(rejection)) => return Err(rejected(&rejection, Words::Tasks, None)),
                _ => return Err(unavailable(Unavailable::Unknown)),
            }
        }
        Err(rejected(&Rejection::RecordChanged, Words::Tasks, None))
    }
}
