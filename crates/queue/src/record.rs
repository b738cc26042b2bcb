//! The record of an ended task: a row of the checkpoint, which is also how a redrive carries it.

use base::codec::Malformed;
use base::rows::{Column, Row, RowWriter, Value};
use base::{Index, ScheduleTime};

use crate::checkpoint::PAYLOADS;
use crate::id::TaskId;
use crate::outcome::{State, TaskView};
use crate::payload::Payload;

/// The columns of the tables of ended tasks, after the key. Times are milliseconds since the Unix epoch.
pub(crate) const COLUMNS: &[Column] = &[
    Column { name: "tenant", kind: "TEXT" },
    Column { name: "command", kind: "TEXT" },
    Column { name: "state", kind: "TEXT" },
    Column { name: "priority", kind: "INTEGER" },
    Column { name: "attempts", kind: "INTEGER" },
    Column { name: "max_attempts", kind: "INTEGER" },
    Column { name: "created_at", kind: "INTEGER" },
    Column { name: "finished_at", kind: "INTEGER" },
    Column { name: "ended_at", kind: "INTEGER" },
    Column { name: "error", kind: "TEXT" },
    Column { name: "payload", kind: "TEXT" },
    Column { name: "result", kind: "TEXT" },
    Column { name: "webhook", kind: "TEXT" },
    Column { name: "idempotency_key", kind: "TEXT" },
    Column { name: "history", kind: "BLOB" },
];

/// Writes the row of an ended task.
pub fn encode(task: &TaskView, row: &mut RowWriter<'_>) {
    row.text(&task.tenant);
    row.text(&task.command);
    row.text(task.state.name());
    row.number(u64::from(task.priority));
    row.number(u64::from(task.attempts));
    row.number(u64::from(task.max_attempts));
    row.number(task.created_at.0);
    row.number(task.finished_at.unwrap_or_default().0);
    row.number(task.ended_at.unwrap_or_default().0);
    row.maybe_text(&task.error);
    match &task.payload {
        Payload::Resident(payload) => row.readable(payload),
        Payload::Stored(_) => row.value(Value::Stored(PAYLOADS)),
    }
    match &task.result {
        Some(result) => row.readable(result),
        None => row.value(Value::Null),
    }
    row.maybe_text(&task.webhook);
    row.maybe_text(&task.idempotency_key);
    row.maybe_blob(&task.history);
}

/// Reads the row of the ended task `id`.
///
/// # Errors
/// The bytes are not such a row.
pub fn decode(row: &[u8], id: TaskId) -> Result<TaskView, Malformed> {
    let mut row = Row(row).reader();
    let r = &mut row;
    let view = TaskView {
        id,
        tenant: r.text()?.into(),
        command: r.text()?.into(),
        state: State::from_name(r.text()?).ok_or(Malformed)?,
        priority: r.narrow()?,
        attempts: r.narrow()?,
        max_attempts: r.narrow()?,
        created_at: ScheduleTime(r.number()?),
        finished_at: Some(ScheduleTime(r.number()?)),
        ended_at: Some(Index(r.number()?)),
        error: r.text()?.into(),
        payload: Payload::Resident(r.maybe_bytes()?.ok_or(Malformed)?.into()),
        result: r.maybe_bytes()?.map(Into::into),
        webhook: r.text()?.into(),
        idempotency_key: r.text()?.into(),
        history: r.maybe_bytes()?.unwrap_or_default().into(),
        updated_at: ScheduleTime(0),
        worker: None,
        lease_until: None,
        run_at: None,
        cancel_requested: false,
    };
    if !row.is_empty() {
        return Err(Malformed);
    }
    Ok(TaskView { updated_at: view.finished_at.unwrap_or_default(), ..view })
}
