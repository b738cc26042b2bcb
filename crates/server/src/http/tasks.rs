//! Domain values in the shape of the wire.

use std::sync::Arc;

use api::v1::{Lease, Location, ResultRecord, Task};
use api::{Code, Problem};
use base::Position;
use base::rows::{Row, TableId};
use cluster::{Freshness, Unavailable};
use queue::checkpoint::{COMPLETED, DEAD, FAILED, PAYLOADS};
use queue::outcome::State;
use queue::{Answer, Payload, Query, TaskId, TaskView, record};

use crate::http::call::Outcome;
use crate::http::edge::Edge;
use crate::http::error::{damaged, rows_unavailable, unavailable};

/// An id's text as a string.
pub(crate) fn str_of(id: &[u8; 36]) -> &str {
    std::str::from_utf8(id).expect("hexadecimal digits")
}

/// Where a state is in codeQ's words.
pub(crate) fn location(state: State) -> Location {
    let (status, location) = match state {
        State::Ready => ("PENDING", "PENDING_LIST"),
        State::Delayed => ("PENDING", "DELAYED_ZSET"),
        State::Leased => ("IN_PROGRESS", "INPROG_SET"),
        State::Completed => ("COMPLETED", "NONE"),
        State::Failed | State::Cancelled => ("FAILED", "NONE"),
        State::Dead => ("FAILED", "DLQ_SET"),
    };
    Location { status, location, state: state.name() }
}

/// Whether a task in this state will not change any more by itself.
pub(crate) fn has_ended(state: State) -> bool {
    matches!(state, State::Completed | State::Failed | State::Dead | State::Cancelled)
}

/// Appends a task. Its payload must be in memory; see [`Edge::with_payload`].
pub(crate) fn write_task(view: &TaskView, lease: Option<Lease<'_>>, out: &mut Vec<u8>) {
    let id = view.id.text();
    Task { lease, ..wire(view, str_of(&id)) }.write(out);
}

/// Appends a task of a list: with its result if it has been read, and with the length of a payload that has not.
pub(crate) fn write_listed(view: &TaskView, out: &mut Vec<u8>) {
    let id = view.id.text();
    let payload_bytes = match view.payload {
        Payload::Resident(_) => None,
        Payload::Stored(bytes) => Some(u64::from(bytes)),
    };
    Task { payload_bytes, result: view.result.as_deref(), ..wire(view, str_of(&id)) }.write(out);
}

fn wire<'a>(view: &'a TaskView, id: &'a str) -> Task<'a> {
    let ended = has_ended(view.state);
    let payload = match &view.payload {
        Payload::Resident(bytes) => Some(&**bytes),
        Payload::Stored(_) => None,
    };
    Task {
        id,
        command: &view.command,
        payload,
        priority: view.priority,
        webhook: &view.webhook,
        location: location(view.state),
        worker: view.worker.as_deref(),
        lease_until: view.lease_until.map(|time| time.0),
        attempts: view.attempts,
        max_attempts: view.max_attempts,
        error: if ended { &view.error } else { "" },
        has_result: matches!(view.state, State::Completed | State::Failed),
        tenant: &view.tenant,
        created_at: view.created_at.0,
        updated_at: view.updated_at.0,
        run_at: view.run_at.map(|time| time.0),
        last_error: if ended { "" } else { &view.error },
        finished_at: view.finished_at.map(|time| time.0),
        lease: None,
        idempotency_key: &view.idempotency_key,
        payload_bytes: None,
        cancel_requested: view.cancel_requested,
        result: None,
    }
}

/// Appends how a task ended.
pub(crate) fn write_result(view: &TaskView, out: &mut Vec<u8>) {
    let id = view.id.text();
    ResultRecord {
        task_id: str_of(&id),
        status: location(view.state).status,
        result: view.result.as_deref(),
        error: &view.error,
        completed_at: view.finished_at.unwrap_or_default().0,
        attempt: view.attempts,
    }
    .write(out);
}

impl Edge {
    /// A task of this tenant, wherever it stands. With `wait`, waits that long for its end.
    pub(crate) async fn find_task(
        &self,
        tenant: &Arc<str>,
        id: TaskId,
        freshness: Freshness,
        wait: Option<base::Millis>,
    ) -> Outcome<(Position, Option<Arc<TaskView>>)> {
        let query = Query::Task { tenant: tenant.clone(), id, until_ended: wait.is_some() };
        self.find_by(query, tenant, id, freshness, wait).await
    }

    /// The same by another question for that task.
    pub(crate) async fn find_by(
        &self,
        query: Query,
        tenant: &Arc<str>,
        id: TaskId,
        freshness: Freshness,
        wait: Option<base::Millis>,
    ) -> Outcome<(Position, Option<Arc<TaskView>>)> {
        if !self.is_ours(&id) {
            return Ok((Position { shard: id.shard, ..Position::default() }, None));
        }
        // Between the answer of the state machine and the look into the checkpoint a task may end or come back to life, or a checkpoint may
        // be replaced: what is missing is looked for once more.
        let mut last = None;
        for _ in 0..2 {
            let asked = self.node.ask(id.shard, query.clone(), freshness, wait, Some(self.lane)).await;
            let (position, answer) = asked.map_err(unavailable)?;
            let dropped = match answer {
                // Whoever asks for a history does not ask for the payload.
                Answer::Task(view) if matches!(query, Query::History { .. }) => return Ok((position, Some(view))),
                Answer::Task(view) => match self.with_payload(view).await {
                    Err(Unread::Missing(_)) if last.is_none() => {
                        last = Some(position);
                        continue;
                    }
                    whole => return Ok((position, Some(whole?))),
                },
                Answer::NotLive { dropped } => dropped,
                _ => return Err(unavailable(Unavailable::Unknown)),
            };
            last = Some(position);
            let found = self.node.find_row(id.shard, &[COMPLETED, FAILED, DEAD], id.key.0 as i64).await;
            let Some((table, row)) = found.map_err(|why| rows_unavailable(&why))? else {
                continue;
            };
            let view = record::decode(&row.bytes, id).map_err(|_| self.damaged_row(id, table))?;
            let known = !dropped.contains(&row.slice) && view.tenant == *tenant;
            return Ok((position, known.then(|| Arc::new(view))));
        }
        Ok((last.unwrap_or_default(), None))
    }

    /// The same task, which the leader has shown at `position`, with its payload in memory. Which payloads are in memory and which only in
    /// the checkpoint differs from node to node, so this node's own state is asked, once it is as new as the answer.
    pub(crate) async fn with_payload_at(&self, position: Position, view: Arc<TaskView>) -> Outcome<Arc<TaskView>> {
        if matches!(view.payload, Payload::Resident(_)) || self.node.leader(position.shard) == self.node.id() {
            return Ok(self.with_payload(view).await?);
        }
        let (tenant, id) = (view.tenant.clone(), view.id);
        let query = Query::Task { tenant, id, until_ended: false };
        let freshness = Freshness::AtLeast { index: position.index, up_to: self.shared.settings.node.propose_timeout };
        let asked = self.node.ask(position.shard, query, freshness, None, Some(self.lane)).await;
        let payload = match asked.map_err(unavailable)? {
            (_, Answer::Task(here)) => here.payload.clone(),
            _ => view.payload.clone(),
        };
        Ok(self.with_payload(Arc::new(TaskView { payload, ..view.as_ref().clone() })).await?)
    }

    /// The same task with its payload in memory.
    async fn with_payload(&self, view: Arc<TaskView>) -> Result<Arc<TaskView>, Unread> {
        let Payload::Stored(_) = view.payload else {
            return Ok(view);
        };
        let id = view.id;
        let tables = [PAYLOADS, COMPLETED, FAILED, DEAD];
        let found = self.node.find_row(id.shard, &tables, id.key.0 as i64).await;
        let (table, row) = found.map_err(|why| Unread::Refused(rows_unavailable(&why)))?.ok_or(Unread::Missing(id))?;
        let damaged = || Unread::Refused(self.damaged_row(id, table));
        let payload = if table == PAYLOADS {
            let bytes = Row(&row.bytes).reader().maybe_bytes().ok().flatten().ok_or_else(damaged)?;
            Payload::Resident(bytes.into())
        } else {
            record::decode(&row.bytes, id).map_err(|_| damaged())?.payload
        };
        Ok(Arc::new(TaskView { payload, ..view.as_ref().clone() }))
    }

    fn damaged_row(&self, id: TaskId, table: TableId) -> Box<Problem> {
        self.node.row_is_damaged(id.shard, table, id.key.0 as i64);
        Box::new(damaged())
    }
}

/// Why a payload is not in memory.
enum Unread {
    /// No table has a row of its task: it may have moved between two of them just now.
    Missing(TaskId),
    /// This is why.
    Refused(Box<Problem>),
}

impl From<Unread> for Box<Problem> {
    fn from(why: Unread) -> Box<Problem> {
        match why {
            Unread::Missing(task) => {
                tracing::error!(event = "storage.missing", %task, "the checkpoint does not hold the task's payload");
                Box::new(Problem::new(Code::Internal, "the task's payload is missing; the server's log says more"))
            }
            Unread::Refused(problem) => problem,
        }
    }
}
