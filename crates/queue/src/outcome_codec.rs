//! Outcomes as bytes between nodes: what a leader answers to the node that forwarded an operation. Nodes of different builds talk to each
//! other, so a kind or field once sent keeps its number and its meaning; `testdata/golden/outcomes.hex` holds one of each.
//!
//! A task is its id, then two bytes that say which of its optional fields follow, then its fields.

use std::sync::Arc;

use base::codec::{Malformed, Reader, Write};
use base::{Index, Millis, ScheduleTime, ShardId};

use crate::codec::{flag, put_token, token};
use crate::id::{TaskId, TaskKey};
use crate::outcome::{Created, Grant, Outcome, Rejection, State, TaskView};
use crate::payload::Payload;

const CREATED: u8 = 1;
const REPLAYED: u8 = 2;
const CLAIMED: u8 = 3;
const EXTENDED: u8 = 4;
const RELEASED: u8 = 5;
const RETRIED: u8 = 6;
const DEAD_LETTERED: u8 = 7;
const FINISHED: u8 = 8;
const CANCELLED: u8 = 9;
const CANCEL_REQUESTED: u8 = 10;
const REDRIVEN: u8 = 11;
const CONFIGURED: u8 = 12;
const REJECTED: u8 = 13;
const DONE: u8 = 14;
const EDITED: u8 = 15;

const NOT_LIVE: u8 = 1;
const NOT_LEASED: u8 = 2;
const NOT_OWNER: u8 = 3;
const LEASE_LOST: u8 = 4;
const KEY_CONFLICT: u8 = 5;
const NOT_ENDED: u8 = 6;
const RECORD_CHANGED: u8 = 7;
const TOO_MANY_TASKS: u8 = 8;
const TOO_MANY_QUEUES: u8 = 9;
const IS_LEASED: u8 = 10;
const OPERATION_CONFLICT: u8 = 11;
const NO_OPERATION: u8 = 12;
const OPERATION_STATE: u8 = 13;
const TOO_MANY_OPERATIONS: u8 = 14;

/// Appends `outcome` to `bytes`.
pub(crate) fn encode(outcome: &Outcome, bytes: &mut Vec<u8>) {
    match outcome {
        Outcome::Created(Created { id, at, run_at, max_attempts }) => {
            bytes.put_u8(CREATED);
            put_id(id, bytes);
            bytes.put_varint(at.0);
            bytes.put_u8(u8::from(run_at.is_some()));
            run_at.iter().for_each(|time| bytes.put_varint(time.0));
            bytes.put_varint(u64::from(*max_attempts));
        }
        Outcome::Replayed(id) => {
            bytes.put_u8(REPLAYED);
            put_id(id, bytes);
        }
        Outcome::Claimed(grants) => {
            bytes.put_u8(CLAIMED);
            bytes.put_varint(grants.len() as u64);
            for Grant { task, token, length } in grants {
                put_task(task, bytes);
                put_token(token, bytes);
                bytes.put_varint(length.0);
            }
        }
        Outcome::Extended { remaining, until, cancel_requested } => {
            bytes.put_u8(EXTENDED);
            bytes.put_varint(remaining.0);
            bytes.put_varint(until.0);
            bytes.put_u8(u8::from(*cancel_requested));
        }
        Outcome::Released => bytes.put_u8(RELEASED),
        Outcome::Retried { delay, attempts } => {
            bytes.put_u8(RETRIED);
            bytes.put_varint(delay.0);
            bytes.put_varint(u64::from(*attempts));
        }
        Outcome::DeadLettered { attempts } => {
            bytes.put_u8(DEAD_LETTERED);
            bytes.put_varint(u64::from(*attempts));
        }
        Outcome::Finished { at, attempt } => {
            bytes.put_u8(FINISHED);
            bytes.put_varint(at.0);
            bytes.put_varint(u64::from(*attempt));
        }
        Outcome::Cancelled(task) => {
            bytes.put_u8(CANCELLED);
            put_task(task, bytes);
        }
        Outcome::CancelRequested(task) => {
            bytes.put_u8(CANCEL_REQUESTED);
            put_task(task, bytes);
        }
        Outcome::Redriven(task) => {
            bytes.put_u8(REDRIVEN);
            put_task(task, bytes);
        }
        Outcome::Edited(task) => {
            bytes.put_u8(EDITED);
            put_task(task, bytes);
        }
        Outcome::Configured => bytes.put_u8(CONFIGURED),
        Outcome::Done => bytes.put_u8(DONE),
        Outcome::Rejected(rejection) => {
            bytes.put_u8(REJECTED);
            put_rejection(rejection, bytes);
        }
    }
}

/// Reads back what [`encode`] wrote.
///
/// # Errors
/// A kind this build does not know, or bytes that are not an outcome.
pub(crate) fn decode(bytes: &[u8]) -> Result<Outcome, Malformed> {
    let mut reader = Reader::new(bytes);
    let r = &mut reader;
    let tasks = &mut Tasks::default();
    let outcome = match r.u8()? {
        CREATED => Outcome::Created(Created {
            id: id(r)?,
            at: time(r)?,
            run_at: if flag(r)? { Some(time(r)?) } else { None },
            max_attempts: r.narrow()?,
        }),
        REPLAYED => Outcome::Replayed(id(r)?),
        CLAIMED => {
            let count = r.varint()?;
            let mut grant = || Ok(Grant { task: tasks.read(r)?, token: token(r)?, length: Millis(r.varint()?) });
            Outcome::Claimed((0..count).map(|_| grant()).collect::<Result<_, _>>()?)
        }
        EXTENDED => Outcome::Extended { remaining: Millis(r.varint()?), until: time(r)?, cancel_requested: flag(r)? },
        RELEASED => Outcome::Released,
        RETRIED => Outcome::Retried { delay: Millis(r.varint()?), attempts: r.narrow()? },
        DEAD_LETTERED => Outcome::DeadLettered { attempts: r.narrow()? },
        FINISHED => Outcome::Finished { at: time(r)?, attempt: r.narrow()? },
        CANCELLED => Outcome::Cancelled(Box::new(tasks.read(r)?)),
        CANCEL_REQUESTED => Outcome::CancelRequested(Box::new(tasks.read(r)?)),
        REDRIVEN => Outcome::Redriven(Box::new(tasks.read(r)?)),
        EDITED => Outcome::Edited(Box::new(tasks.read(r)?)),
        DONE => Outcome::Done,
        CONFIGURED => Outcome::Configured,
        REJECTED => Outcome::Rejected(rejection(r)?),
        _ => return Err(Malformed),
    };
    reader.finish()?;
    Ok(outcome)
}

fn put_rejection(rejection: &Rejection, bytes: &mut Vec<u8>) {
    match rejection {
        Rejection::NotLive => bytes.put_u8(NOT_LIVE),
        Rejection::NotLeased => bytes.put_u8(NOT_LEASED),
        Rejection::NotOwner => bytes.put_u8(NOT_OWNER),
        Rejection::LeaseLost { held } => {
            bytes.put_u8(LEASE_LOST);
            bytes.put_u8(u8::from(*held));
        }
        Rejection::KeyConflict { first } => {
            bytes.put_u8(KEY_CONFLICT);
            put_id(first, bytes);
        }
        Rejection::NotEnded => bytes.put_u8(NOT_ENDED),
        Rejection::RecordChanged => bytes.put_u8(RECORD_CHANGED),
        Rejection::TooManyTasks => bytes.put_u8(TOO_MANY_TASKS),
        Rejection::TooManyQueues => bytes.put_u8(TOO_MANY_QUEUES),
        Rejection::IsLeased => bytes.put_u8(IS_LEASED),
        Rejection::OperationConflict { with } => {
            bytes.put_u8(OPERATION_CONFLICT);
            bytes.extend_from_slice(with);
        }
        Rejection::NoOperation => bytes.put_u8(NO_OPERATION),
        Rejection::OperationState => bytes.put_u8(OPERATION_STATE),
        Rejection::TooManyOperations => bytes.put_u8(TOO_MANY_OPERATIONS),
    }
}

fn rejection(r: &mut Reader<'_>) -> Result<Rejection, Malformed> {
    Ok(match r.u8()? {
        NOT_LIVE => Rejection::NotLive,
        NOT_LEASED => Rejection::NotLeased,
        NOT_OWNER => Rejection::NotOwner,
        LEASE_LOST => Rejection::LeaseLost { held: flag(r)? },
        KEY_CONFLICT => Rejection::KeyConflict { first: id(r)? },
        NOT_ENDED => Rejection::NotEnded,
        RECORD_CHANGED => Rejection::RecordChanged,
        TOO_MANY_TASKS => Rejection::TooManyTasks,
        TOO_MANY_QUEUES => Rejection::TooManyQueues,
        IS_LEASED => Rejection::IsLeased,
        OPERATION_CONFLICT => Rejection::OperationConflict { with: r.array()? },
        NO_OPERATION => Rejection::NoOperation,
        OPERATION_STATE => Rejection::OperationState,
        TOO_MANY_OPERATIONS => Rejection::TooManyOperations,
        _ => return Err(Malformed),
    })
}

pub(crate) fn put_id(id: &TaskId, bytes: &mut Vec<u8>) {
    bytes.put_u64(id.incarnation);
    bytes.put_u16(id.shard.0);
    bytes.put_varint(id.key.0);
}

pub(crate) fn id(r: &mut Reader<'_>) -> Result<TaskId, Malformed> {
    Ok(TaskId { incarnation: r.u64()?, shard: ShardId(r.u16()?), key: TaskKey(r.varint()?) })
}

fn time(r: &mut Reader<'_>) -> Result<ScheduleTime, Malformed> {
    Ok(ScheduleTime(r.varint()?))
}

/// Which optional fields of a task are there, and what it says with yes or no: one bit each.
#[derive(Clone, Copy)]
struct Fields(u16);

impl Fields {
    const WORKER: u16 = 1 << 0;
    const LEASE_UNTIL: u16 = 1 << 1;
    const ERROR: u16 = 1 << 2;
    const RUN_AT: u16 = 1 << 3;
    const FINISHED_AT: u16 = 1 << 4;
    const ENDED_AT: u16 = 1 << 5;
    const RESULT: u16 = 1 << 6;
    const WEBHOOK: u16 = 1 << 7;
    const IDEMPOTENCY_KEY: u16 = 1 << 8;
    /// The payload is its length in a checkpoint.
    const STORED: u16 = 1 << 9;
    const CANCEL_REQUESTED: u16 = 1 << 10;
    const ALL: u16 = (1 << 11) - 1;

    fn of(task: &TaskView) -> Fields {
        let TaskView { worker, lease_until, error, run_at, finished_at, ended_at, .. } = task;
        let TaskView { payload, result, webhook, idempotency_key, cancel_requested, .. } = task;
        let fields = [
            (Self::WORKER, worker.is_some()),
            (Self::LEASE_UNTIL, lease_until.is_some()),
            (Self::ERROR, !error.is_empty()),
            (Self::RUN_AT, run_at.is_some()),
            (Self::FINISHED_AT, finished_at.is_some()),
            (Self::ENDED_AT, ended_at.is_some()),
            (Self::RESULT, result.is_some()),
            (Self::WEBHOOK, !webhook.is_empty()),
            (Self::IDEMPOTENCY_KEY, !idempotency_key.is_empty()),
            (Self::STORED, matches!(payload, Payload::Stored(_))),
            (Self::CANCEL_REQUESTED, *cancel_requested),
        ];
        Fields(fields.iter().filter(|(_, there)| *there).map(|(field, _)| field).sum())
    }

    fn read(r: &mut Reader<'_>) -> Result<Fields, Malformed> {
        let fields = r.u16()?;
        if fields & !Self::ALL == 0 { Ok(Fields(fields)) } else { Err(Malformed) }
    }

    fn has(self, field: u16) -> bool {
        self.0 & field != 0
    }

    /// What `read` gives, if the field is there.
    fn when<T>(self, field: u16, read: impl FnOnce() -> Result<T, Malformed>) -> Result<Option<T>, Malformed> {
        if self.has(field) { read().map(Some) } else { Ok(None) }
    }
}

fn put_task(task: &TaskView, bytes: &mut Vec<u8>) {
    put_id(&task.id, bytes);
    bytes.put_u16(Fields::of(task).0);
    bytes.put_u8(task.state as u8);
    bytes.put_u8(task.priority);
    bytes.put_varint(u64::from(task.attempts));
    bytes.put_varint(u64::from(task.max_attempts));
    bytes.put_varint(task.created_at.0);
    bytes.put_varint(task.updated_at.0);
    bytes.put_bytes(task.tenant.as_bytes());
    bytes.put_bytes(task.command.as_bytes());
    let times = [task.lease_until, task.run_at, task.finished_at];
    times.into_iter().flatten().for_each(|time| bytes.put_varint(time.0));
    task.ended_at.into_iter().for_each(|index| bytes.put_varint(index.0));
    task.worker.iter().for_each(|worker| bytes.put_bytes(worker.as_bytes()));
    for text in [&task.error, &task.webhook, &task.idempotency_key] {
        if !text.is_empty() {
            bytes.put_bytes(text.as_bytes());
        }
    }
    match &task.payload {
        Payload::Resident(payload) => bytes.put_bytes(payload),
        Payload::Stored(length) => bytes.put_varint(u64::from(*length)),
    }
    task.result.iter().for_each(|result| bytes.put_bytes(result));
}

/// Reads the tasks of one outcome. They have mostly the same tenant, queue and worker: equal names share their memory.
#[derive(Default)]
struct Tasks {
    tenant: Arc<str>,
    command: Arc<str>,
    worker: Arc<str>,
}

impl Tasks {
    fn read(&mut self, r: &mut Reader<'_>) -> Result<TaskView, Malformed> {
        let id = id(r)?;
        let fields = Fields::read(r)?;
        Ok(TaskView {
            id,
            state: State::NAMES.get(usize::from(r.u8()?)).ok_or(Malformed)?.0,
            priority: r.u8()?,
            attempts: r.narrow()?,
            max_attempts: r.narrow()?,
            created_at: time(r)?,
            updated_at: time(r)?,
            tenant: name(r, &mut self.tenant)?,
            command: name(r, &mut self.command)?,
            lease_until: fields.when(Fields::LEASE_UNTIL, || time(r))?,
            run_at: fields.when(Fields::RUN_AT, || time(r))?,
            finished_at: fields.when(Fields::FINISHED_AT, || time(r))?,
            ended_at: fields.when(Fields::ENDED_AT, || Ok(Index(r.varint()?)))?,
            worker: fields.when(Fields::WORKER, || name(r, &mut self.worker))?,
            error: fields.when(Fields::ERROR, || r.text())?.map(Arc::from).unwrap_or_default(),
            webhook: fields.when(Fields::WEBHOOK, || r.text())?.map(Arc::from).unwrap_or_default(),
            idempotency_key: fields.when(Fields::IDEMPOTENCY_KEY, || r.text())?.map(Arc::from).unwrap_or_default(),
            payload: match fields.has(Fields::STORED) {
                false => Payload::Resident(r.bytes()?.into()),
                true => Payload::Stored(r.narrow()?),
            },
            result: fields.when(Fields::RESULT, || r.bytes())?.map(Arc::from),
            cancel_requested: fields.has(Fields::CANCEL_REQUESTED),
            history: Vec::new(),
        })
    }
}

/// A text that is probably `last`, which it becomes.
fn name(r: &mut Reader<'_>, last: &mut Arc<str>) -> Result<Arc<str>, Malformed> {
    let text = r.text()?;
    if **last != *text {
        *last = text.into();
    }
    Ok(last.clone())
}
