//! `GET /tasks/{id}`, `GET /tasks/{id}/result` and `GET /admin/queues/{command}`.

use std::sync::Arc;

use api::json::Writer;
use api::{Code, Problem};
use base::{Millis, Position};
use cluster::{Freshness, Unavailable};
use queue::id::shard_of;
use queue::{Query, TaskId, TaskView};

use crate::http::answer::Answer;
use crate::http::call::{Call, Consistency, Outcome, query_seconds};
use crate::http::create::check_command;
use crate::http::edge::Edge;
use crate::http::error::{Words, task_not_found, unavailable};
use crate::http::filter::bad;
use crate::http::tasks::{has_ended, write_result, write_task};
use crate::http::waiting::For;

/// Longest wait for the end of a task.
const WAIT_MAX: Millis = Millis(60_000);

impl Edge {
    pub(crate) async fn get_task(&self, call: &Call, id: &str) -> Outcome<Answer> {
        let id = self.live_id(id, Words::Tasks)?;
        let reading = call.freshness(id.shard, self.node.identity().shards, Consistency::Linearizable)?;
        let wait = query_seconds(call.query("waitSeconds")).min(WAIT_MAX);
        let changed_after = match call.query("waitFor").as_deref() {
            None | Some("finished") => None,
            Some("change") => match reading.position() {
                Some(index) => Some(index),
                None => {
                    let detail = "waitFor=change needs minPosition: the position of the state that is known";
                    return Err(Box::new(Problem::new(Code::InvalidFilter, detail).field("minPosition")));
                }
            },
            Some(other) => return Err(bad("waitFor", other, "finished or change")),
        };
        self.check_running()?;
        let tenant = &call.principal.tenant;
        let (mut position, view) = self.find_task(tenant, id, reading.freshness(), None).await?;
        let mut view = view.ok_or_else(|| task_not_found(Words::Tasks))?;
        if !has_ended(view.state) && wait > Millis(0) {
            let query = match changed_after {
                Some(index) => Query::TaskAfter { tenant: tenant.clone(), id, index },
                None => Query::Task { tenant: tenant.clone(), id, until_ended: true },
            };
            (position, view) = self.await_task(query, tenant, id, reading.freshness(), wait, Words::Tasks).await?;
        }
        Ok(Answer::json(200, |out| write_task(&view, None, out)).at(position).age(reading.age(&self.node)?))
    }

    pub(crate) async fn get_result(&self, call: &Call, id: &str) -> Outcome<Answer> {
        let id = self.live_id(id, Words::Results)?;
        let reading = call.freshness(id.shard, self.node.identity().shards, Consistency::Linearizable)?;
        let wait = query_seconds(call.query("waitSeconds")).min(WAIT_MAX);
        self.check_running()?;
        let tenant = &call.principal.tenant;
        let (mut position, view) = self.find_task(tenant, id, reading.freshness(), None).await?;
        let mut view = view.ok_or_else(|| task_not_found(Words::Results))?;
        if !has_ended(view.state) && wait > Millis(0) {
            let query = Query::Task { tenant: tenant.clone(), id, until_ended: true };
            (position, view) = self.await_task(query, tenant, id, reading.freshness(), wait, Words::Results).await?;
        }
        if !has_ended(view.state) {
            let problem = Problem::new(Code::ResultNotFound, "the task has not ended yet; wait with waitSeconds");
            return Err(Box::new(problem.error("result not found")));
        }
        let answer = Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.value("task", |out| write_task(&view, None, out));
            body.value("result", |out| write_result(&view, out));
            body.end();
        });
        Ok(answer.at(position).age(reading.age(&self.node)?))
    }

    /// The task when there is a final answer to a question that waits, or when that time is over.
    async fn await_task(
        &self,
        query: Query,
        tenant: &Arc<str>,
        id: TaskId,
        freshness: Freshness,
        wait: Millis,
        words: Words,
    ) -> Outcome<(Position, Arc<TaskView>)> {
        if self.is_draining() {
            return Err(unavailable(Unavailable::Draining));
        }
        let limits = &self.shared.settings.limits;
        let (all_max, tenant_max) = (limits.waiters_max, limits.waiters_per_tenant_max);
        let _place = self.shared.waiting.enter(tenant, For::Change, all_max, tenant_max)?;
        let (position, waited) = self.find_by(query, tenant, id, freshness, Some(wait)).await?;
        Ok((position, waited.ok_or_else(|| task_not_found(words))?))
    }

    pub(crate) async fn get_queue(&self, call: &Call, command: &str) -> Outcome<Answer> {
        let command = check_command(command, false)?;
        let tenant = &call.principal.tenant;
        let shards = self.node.identity().shards;
        let shard = shard_of(tenant, command, shards);
        let reading = call.freshness(shard, shards, Consistency::Linearizable)?;
        self.check_running()?;
        let (position, stats) = self.queue_now(tenant, command, reading.freshness()).await?;
        let answer = Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.text("command", command);
            body.number("ready", stats.depth.ready_total());
            body.number("delayed", stats.depth.delayed);
            body.number("inProgress", stats.depth.leased);
            body.number("dlq", stats.depth.dead);
            body.end();
        });
        Ok(answer.at(position).age(reading.age(&self.node)?))
    }
}
