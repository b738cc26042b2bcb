//! Operations as bytes in the log. Replay is part of the contract: a kind or field once written keeps its number and its meaning;
//! `testdata/golden/operations.hex` holds one of each.

use base::codec::{Malformed, Reader, Write};
use base::{Index, Millis, ScheduleTime};

use crate::id::{LeaseToken, TaskKey};
use crate::op::{
    Amend, Begin, Claim, ClaimOrder, Create, Credential, Delete, Edit, IdempotencyKey, LeaseRef, Op, Redrive, Schedule,
    Step,
};
use crate::operations::{OperationKind, OperationState};
use crate::outcome_codec::{id, put_id};
use crate::policy::Policy;

const CREATE: u8 = 1;
const CLAIM: u8 = 2;
const EXTEND: u8 = 3;
const RELEASE: u8 = 4;
const NACK: u8 = 5;
const COMPLETE: u8 = 6;
const FAIL: u8 = 7;
const CANCEL: u8 = 8;
const REDRIVE: u8 = 9;
const CONFIGURE: u8 = 10;
const PAUSE: u8 = 11;
const RESUME: u8 = 12;
const EDIT: u8 = 13;
const DELETE: u8 = 14;
const BEGIN: u8 = 15;
const STEP: u8 = 16;
const TURN: u8 = 17;
const AMEND: u8 = 18;

/// Appends `op` to `bytes`.
pub fn encode(op: &Op<'_>, bytes: &mut Vec<u8>) {
    match op {
        Op::Create(create) => {
            bytes.put_u8(CREATE);
            put_create(create, bytes);
        }
        Op::Claim(claim) => {
            bytes.put_u8(CLAIM);
            put_claim(claim, bytes);
        }
        Op::Extend { lease, length } => {
            bytes.put_u8(EXTEND);
            put_lease(lease, bytes);
            put_millis(*length, bytes);
        }
        Op::Release { lease } => {
            bytes.put_u8(RELEASE);
            put_lease(lease, bytes);
        }
        Op::Nack { lease, delay, reason } => {
            bytes.put_u8(NACK);
            put_lease(lease, bytes);
            put_millis(*delay, bytes);
            bytes.put_bytes(reason.as_bytes());
        }
        Op::Complete { lease, result, error } => {
            bytes.put_u8(COMPLETE);
            put_lease(lease, bytes);
            bytes.put_bytes(result);
            bytes.put_bytes(error.as_bytes());
        }
        Op::Fail { lease, result, error } => {
            bytes.put_u8(FAIL);
            put_lease(lease, bytes);
            bytes.put_u8(u8::from(result.is_some()));
            bytes.put_bytes(result.unwrap_or_default());
            bytes.put_bytes(error.as_bytes());
        }
        Op::Cancel { tenant, task, reason, force } => {
            bytes.put_u8(CANCEL);
            bytes.put_bytes(tenant.as_bytes());
            bytes.put_varint(task.0);
            bytes.put_bytes(reason.as_bytes());
            bytes.put_u8(u8::from(*force));
        }
        Op::Redrive(redrive) => {
            bytes.put_u8(REDRIVE);
            bytes.put_bytes(redrive.tenant.as_bytes());
            bytes.put_varint(redrive.task.0);
            bytes.put_varint(redrive.ended_at.0);
            bytes.put_bytes(redrive.record);
            bytes.put_u8(u8::from(redrive.keep_attempts));
            bytes.put_varint(redrive.delay.0);
            bytes.put_option(redrive.priority.map(u64::from));
        }
        Op::Pause { tenant, command, length, reason, by } => {
            bytes.put_u8(PAUSE);
            bytes.put_bytes(tenant.as_bytes());
            bytes.put_bytes(command.as_bytes());
            put_millis(*length, bytes);
            bytes.put_bytes(reason.as_bytes());
            bytes.put_bytes(by.as_bytes());
        }
        Op::Resume { tenant, command } => {
            bytes.put_u8(RESUME);
            bytes.put_bytes(tenant.as_bytes());
            bytes.put_bytes(command.as_bytes());
        }
        Op::Edit(edit) => {
            bytes.put_u8(EDIT);
            put_edit(edit, bytes);
        }
        Op::Amend(Amend { tenant, task, ended_at, record }) => {
            bytes.put_u8(AMEND);
            bytes.put_bytes(tenant.as_bytes());
            bytes.put_varint(task.0);
            bytes.put_varint(ended_at.0);
            bytes.put_bytes(record);
        }
        Op::Delete(delete) => {
            bytes.put_u8(DELETE);
            bytes.put_bytes(delete.tenant.as_bytes());
            bytes.put_varint(delete.task.0);
            bytes.put_option(delete.ended_at.map(|index| index.0));
            bytes.put_u8(u8::from(delete.key.is_some()));
            delete.key.iter().for_each(|key| bytes.extend_from_slice(key));
        }
        Op::Begin(begin) => {
            bytes.put_u8(BEGIN);
            put_begin(begin, bytes);
        }
        Op::Step(step) => {
            bytes.put_u8(STEP);
            put_step(step, bytes);
        }
        Op::Turn { tenant, id, to, error } => {
            bytes.put_u8(TURN);
            bytes.put_bytes(tenant.as_bytes());
            bytes.extend_from_slice(id);
            bytes.put_u8(*to as u8);
            bytes.put_bytes(error.as_bytes());
        }
        Op::Configure(policy) => {
            bytes.put_u8(CONFIGURE);
            policy.encode(bytes);
        }
    }
}

/// Reads back what [`encode`] wrote.
///
/// # Errors
/// A kind this build does not know, or bytes that are not an operation.
pub fn decode(bytes: &[u8]) -> Result<Op<'_>, Malformed> {
    let mut reader = Reader::new(bytes);
    let r = &mut reader;
    let op = match r.u8()? {
        CREATE => Op::Create(create(r)?),
        CLAIM => Op::Claim(claim(r)?),
        EXTEND => Op::Extend { lease: lease(r)?, length: millis(r)? },
        RELEASE => Op::Release { lease: lease(r)? },
        NACK => Op::Nack { lease: lease(r)?, delay: millis(r)?, reason: r.text()? },
        COMPLETE => Op::Complete { lease: lease(r)?, result: r.bytes()?, error: r.text()? },
        FAIL => {
            let lease = lease(r)?;
            let given = flag(r)?;
            let result = r.bytes()?;
            Op::Fail { lease, result: given.then_some(result), error: r.text()? }
        }
        CANCEL => Op::Cancel { tenant: r.text()?, task: TaskKey(r.varint()?), reason: r.text()?, force: flag(r)? },
        REDRIVE => Op::Redrive(Redrive {
            tenant: r.text()?,
            task: TaskKey(r.varint()?),
            ended_at: Index(r.varint()?),
            record: r.bytes()?,
            keep_attempts: flag(r)?,
            delay: Millis(r.varint()?),
            priority: r.option()?.map(u8::try_from).transpose().map_err(|_| Malformed)?,
        }),
        PAUSE => {
            let (tenant, command) = (r.text()?, r.text()?);
            Op::Pause { tenant, command, length: millis(r)?, reason: r.text()?, by: r.text()? }
        }
        RESUME => Op::Resume { tenant: r.text()?, command: r.text()? },
        EDIT => Op::Edit(edit(r)?),
        AMEND => Op::Amend(Amend {
            tenant: r.text()?,
            task: TaskKey(r.varint()?),
            ended_at: Index(r.varint()?),
            record: r.bytes()?,
        }),
        DELETE => Op::Delete(Delete {
            tenant: r.text()?,
            task: TaskKey(r.varint()?),
            ended_at: r.option()?.map(Index),
            key: if flag(r)? { Some(r.array()?) } else { None },
        }),
        BEGIN => Op::Begin(begin(r)?),
        STEP => Op::Step(step(r)?),
        TURN => {
            let (tenant, id) = (r.text()?, r.array()?);
            let (to, _) = OperationState::NAMES.get(usize::from(r.u8()?)).copied().ok_or(Malformed)?;
            Op::Turn { tenant, id, to, error: r.text()? }
        }
        CONFIGURE => Op::Configure(Policy::decode(r)?),
        _ => return Err(Malformed),
    };
    reader.finish()?;
    Ok(op)
}

/// Whether an operation must be looked at before it is proposed: creations may be refused, claims may find nothing.
pub(crate) fn is_admitted_by_look(bytes: &[u8]) -> bool {
    matches!(bytes.first(), Some(&CREATE | &CLAIM))
}

fn put_create(create: &Create<'_>, bytes: &mut Vec<u8>) {
    bytes.put_bytes(create.tenant.as_bytes());
    bytes.put_bytes(create.command.as_bytes());
    bytes.put_u8(create.priority);
    put_schedule(create.schedule, bytes);
    bytes.put_bytes(create.webhook.as_bytes());
    bytes.put_option(create.max_attempts.map(u64::from));
    match &create.key {
        None => bytes.put_u8(0),
        Some(key) => {
            bytes.put_u8(1);
            bytes.put_bytes(key.text.as_bytes());
            bytes.extend_from_slice(&key.scope);
            bytes.extend_from_slice(&key.body);
        }
    }
    bytes.put_bytes(create.payload);
}

fn create<'a>(r: &mut Reader<'a>) -> Result<Create<'a>, Malformed> {
    Ok(Create {
        tenant: r.text()?,
        command: r.text()?,
        priority: r.u8()?,
        schedule: schedule(r)?,
        webhook: r.text()?,
        max_attempts: r.option()?.map(u32::try_from).transpose().map_err(|_| Malformed)?,
        key: if flag(r)? {
            Some(IdempotencyKey { text: r.text()?, scope: r.array()?, body: r.array()? })
        } else {
            None
        },
        payload: r.bytes()?,
    })
}

fn put_schedule(schedule: Schedule, bytes: &mut Vec<u8>) {
    match schedule {
        Schedule::Now => bytes.put_u8(0),
        Schedule::After(delay) => {
            bytes.put_u8(1);
            bytes.put_varint(delay.0);
        }
        Schedule::At(time) => {
            bytes.put_u8(2);
            bytes.put_varint(time.0);
        }
    }
}

fn schedule(r: &mut Reader<'_>) -> Result<Schedule, Malformed> {
    Ok(match r.u8()? {
        0 => Schedule::Now,
        1 => Schedule::After(Millis(r.varint()?)),
        2 => Schedule::At(ScheduleTime(r.varint()?)),
        _ => return Err(Malformed),
    })
}

fn put_edit(edit: &Edit<'_>, bytes: &mut Vec<u8>) {
    bytes.put_bytes(edit.tenant.as_bytes());
    bytes.put_varint(edit.task.0);
    bytes.put_option(edit.priority.map(u64::from));
    bytes.put_u8(u8::from(edit.schedule.is_some()));
    edit.schedule.into_iter().for_each(|schedule| put_schedule(schedule, bytes));
    bytes.put_u8(u8::from(edit.payload.is_some()));
    bytes.put_bytes(edit.payload.unwrap_or_default());
    bytes.put_option(edit.max_attempts.map(u64::from));
    bytes.put_u8(u8::from(edit.webhook.is_some()));
    bytes.put_bytes(edit.webhook.unwrap_or_default().as_bytes());
}

fn edit<'a>(r: &mut Reader<'a>) -> Result<Edit<'a>, Malformed> {
    let (tenant, task) = (r.text()?, TaskKey(r.varint()?));
    let priority = r.option()?.map(u8::try_from).transpose().map_err(|_| Malformed)?;
    let schedule = if flag(r)? { Some(schedule(r)?) } else { None };
    let has_payload = flag(r)?;
    let payload = Some(r.bytes()?).filter(|_| has_payload);
    let max_attempts = r.option()?.map(u32::try_from).transpose().map_err(|_| Malformed)?;
    let has_webhook = flag(r)?;
    let webhook = Some(r.text()?).filter(|_| has_webhook);
    Ok(Edit { tenant, task, priority, schedule, payload, max_attempts, webhook })
}

fn put_begin(begin: &Begin<'_>, bytes: &mut Vec<u8>) {
    bytes.put_bytes(begin.tenant.as_bytes());
    bytes.extend_from_slice(&begin.id);
    bytes.put_u8(begin.kind as u8);
    bytes.put_varint(begin.commands.len() as u64);
    begin.commands.iter().for_each(|command| bytes.put_bytes(command.as_bytes()));
    bytes.put_bytes(begin.request);
    bytes.put_u8(u8::from(begin.dry_run));
    bytes.put_u8(u8::from(begin.takes_all));
    bytes.put_bytes(begin.by.as_bytes());
}

fn begin<'a>(r: &mut Reader<'a>) -> Result<Begin<'a>, Malformed> {
    Ok(Begin {
        tenant: r.text()?,
        id: r.array()?,
        kind: OperationKind::NAMES.get(usize::from(r.u8()?)).copied().ok_or(Malformed)?.0,
        commands: (0..r.varint()?).map(|_| r.text()).collect::<Result<_, _>>()?,
        request: r.bytes()?,
        dry_run: flag(r)?,
        takes_all: flag(r)?,
        by: r.text()?,
    })
}

fn put_step(step: &Step<'_>, bytes: &mut Vec<u8>) {
    bytes.put_bytes(step.tenant.as_bytes());
    bytes.extend_from_slice(&step.id);
    bytes.put_varint(step.after);
    bytes.put_bytes(step.cursor);
    bytes.put_u8(u8::from(step.is_last));
    bytes.put_varint(step.items.len() as u64);
    step.items.iter().for_each(|item| bytes.put_bytes(item));
    bytes.put_varint(step.counted);
    bytes.put_varint(step.samples.len() as u64);
    step.samples.iter().for_each(|id| put_id(id, bytes));
}

fn step<'a>(r: &mut Reader<'a>) -> Result<Step<'a>, Malformed> {
    Ok(Step {
        tenant: r.text()?,
        id: r.array()?,
        after: r.varint()?,
        cursor: r.bytes()?,
        is_last: flag(r)?,
        items: (0..r.varint()?).map(|_| r.bytes()).collect::<Result<_, _>>()?,
        counted: r.varint()?,
        samples: (0..r.varint()?).map(|_| id(r)).collect::<Result<_, _>>()?,
    })
}

fn put_claim(claim: &Claim<'_>, bytes: &mut Vec<u8>) {
    bytes.put_bytes(claim.tenant.as_bytes());
    bytes.put_bytes(claim.worker.as_bytes());
    bytes.put_u8(match claim.order {
        ClaimOrder::Request => 0,
        ClaimOrder::Priority => 1,
        ClaimOrder::Fair => 2,
    });
    bytes.put_u8(claim.count);
    put_millis(claim.lease, bytes);
    bytes.put_varint(claim.commands.len() as u64);
    for command in &claim.commands {
        bytes.put_bytes(command.as_bytes());
    }
}

fn claim<'a>(r: &mut Reader<'a>) -> Result<Claim<'a>, Malformed> {
    Ok(Claim {
        tenant: r.text()?,
        worker: r.text()?,
        order: match r.u8()? {
            0 => ClaimOrder::Request,
            1 => ClaimOrder::Priority,
            2 => ClaimOrder::Fair,
            _ => return Err(Malformed),
        },
        count: r.u8()?,
        lease: millis(r)?,
        commands: (0..r.varint()?).map(|_| r.text()).collect::<Result<_, _>>()?,
    })
}

fn put_lease(lease: &LeaseRef<'_>, bytes: &mut Vec<u8>) {
    bytes.put_bytes(lease.tenant.as_bytes());
    bytes.put_varint(lease.task.0);
    match lease.credential {
        Credential::Worker(worker) => {
            bytes.put_u8(0);
            bytes.put_bytes(worker.as_bytes());
        }
        Credential::Token(token) => {
            bytes.put_u8(1);
            put_token(&token, bytes);
        }
        Credential::Unknown => bytes.put_u8(2),
    }
}

fn lease<'a>(r: &mut Reader<'a>) -> Result<LeaseRef<'a>, Malformed> {
    Ok(LeaseRef {
        tenant: r.text()?,
        task: TaskKey(r.varint()?),
        credential: match r.u8()? {
            0 => Credential::Worker(r.text()?),
            1 => Credential::Token(token(r)?),
            2 => Credential::Unknown,
            _ => return Err(Malformed),
        },
    })
}

pub(crate) fn put_token(token: &LeaseToken, bytes: &mut Vec<u8>) {
    bytes.put_varint(u64::from(token.attempt));
    bytes.put_varint(token.index.0);
    bytes.extend_from_slice(&token.suffix);
}

pub(crate) fn token(r: &mut Reader<'_>) -> Result<LeaseToken, Malformed> {
    Ok(LeaseToken { attempt: r.narrow()?, index: Index(r.varint()?), suffix: r.array()? })
}

fn put_millis(millis: Option<Millis>, bytes: &mut Vec<u8>) {
    bytes.put_option(millis.map(|millis| millis.0));
}

fn millis(r: &mut Reader<'_>) -> Result<Option<Millis>, Malformed> {
    Ok(r.option()?.map(Millis))
}

pub(crate) fn flag(r: &mut Reader<'_>) -> Result<bool, Malformed> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed),
    }
}
