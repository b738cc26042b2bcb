//! What the clients saw and what the logs say, in the checker's words.

use std::collections::BTreeMap;

use base::ScheduleTime;
use history::record::{
    Amend, Answer, Backoff, Begin, Body, Bound, Bulk, Call, Claim, Create, Delete, Digest, Edit, Entry, Grant, Lease,
    Logged, Name, NameText, Order, Policy, Position, Progress, Redrive, Rejection, Right, Schedule, Stands, State,
    Stats, Step, Task, Token, Totals, View,
};
use queue::op::{ClaimOrder, Credential};
use queue::operations::{Operation, OperationId, OperationKind, OperationState};
use queue::outcome::QueueStats;
use queue::steps::Plan;
use queue::{BackoffPolicy, LeaseToken, Op, Outcome, Payload, TaskId, TaskKey, TaskView, codec};

/// Texts and their numbers.
#[derive(Default)]
pub struct Names {
    numbers: BTreeMap<String, Name>,
    /// By the scope of an idempotency key: whose it is.
    keys: BTreeMap<[u8; 16], (Name, Name, Name)>,
    /// What operations on many tasks are asked for.
    plans: BTreeMap<OperationId, Plan>,
}

impl Names {
    /// The number of a text.
    pub fn of(&mut self, text: &str) -> Name {
        if let Some(name) = self.numbers.get(text) {
            return *name;
        }
        let name = Name(self.numbers.len() as u32 + 1);
        self.numbers.insert(text.into(), name);
        name
    }

    /// The number of an idempotency key, which belongs to a queue.
    pub fn of_key(&mut self, tenant: &str, command: &str, key: &str) -> Name {
        let scope = queue::idempotency::scope_digest(tenant, command, key);
        let names = (self.of(tenant), self.of(command), self.of(key));
        self.keys.insert(scope, names);
        names.2
    }

    /// The key whose scope this is, bound to a task.
    pub fn bound(&self, scope: &[u8; 16], task: Task) -> Option<Bound> {
        self.keys.get(scope).map(|(tenant, command, key)| Bound { tenant: *tenant, command: *command, key: *key, task })
    }

    /// Takes note of what an operation on many tasks is asked for, whose request says it in words that nobody reads here.
    pub fn note_plan(&mut self, id: OperationId, plan: Plan) {
        self.plans.insert(id, plan);
    }

    /// What this operation is asked for.
    pub fn plan(&self, id: &OperationId) -> Option<&Plan> {
        self.plans.get(id)
    }

    /// All texts.
    pub fn all(&self) -> impl Iterator<Item = NameText> {
        self.numbers.iter().map(|(text, name)| NameText { name: *name, text: text.clone() })
    }
}

/// A digest of texts that may be empty.
fn digest(bytes: &[u8]) -> Digest {
    Digest::of(bytes)
}

/// A task's id.
pub fn task(id: &TaskId) -> Task {
    Task { shard: id.shard.0, key: id.key.0 }
}

/// A token.
pub fn token(token: &LeaseToken) -> Token {
    let suffix = u64::from_le_bytes(*token.suffix.first_chunk().expect("16 bytes have 8"));
    Token { attempt: token.attempt, index: token.index.0, suffix }
}

/// A position.
pub fn position(at: base::Position) -> Position {
    Position { shard: at.shard.0, term: at.term.0 as u32, index: at.index.0 }
}

/// Settings.
pub fn policy(policy: &queue::Policy) -> Policy {
    Policy {
        lease_default: policy.lease.default.0,
        lease_min: policy.lease.min.0,
        lease_max: policy.lease.max.0,
        max_attempts: policy.max_attempts,
        backoff: match policy.backoff.policy {
            BackoffPolicy::Fixed => Backoff::Fixed,
            BackoffPolicy::Linear => Backoff::Linear,
            BackoffPolicy::Exponential => Backoff::Exponential,
            BackoffPolicy::ExpEqualJitter => Backoff::ExpEqualJitter,
            BackoffPolicy::ExpFullJitter => Backoff::ExpFullJitter,
        },
        backoff_base: policy.backoff.base.0,
        backoff_max: policy.backoff.max.0,
        idempotency_window: policy.idempotency_window.0,
        completed_kept: policy.retention.completed.0,
        failed_kept: policy.retention.failed.0,
        dead_kept: policy.retention.dead.0,
    }
}

fn lease(names: &mut Names, shard: u16, lease: &queue::op::LeaseRef<'_>) -> Lease {
    Lease {
        tenant: names.of(lease.tenant),
        task: Task { shard, key: lease.task.0 },
        by: match lease.credential {
            Credential::Token(right) => Right::Token(token(&right)),
            Credential::Worker(worker) => Right::Worker(names.of(worker)),
            Credential::Unknown => Right::Forged,
        },
    }
}

/// An operation, as whoever asks for it means it.
pub fn call(names: &mut Names, shard: u16, op: &Op<'_>) -> Call {
    match op {
        Op::Create(create) => Call::Create(Create {
            tenant: names.of(create.tenant),
            command: names.of(create.command),
            priority: create.priority,
            payload: digest(create.payload),
            schedule: schedule(create.schedule),
            webhook: digest(create.webhook.as_bytes()),
            max_attempts: create.max_attempts,
            key: create.key.as_ref().map(|key| names.of_key(create.tenant, create.command, key.text)),
        }),
        Op::Claim(claim) => Call::Claim(Box::new(Claim {
            tenant: names.of(claim.tenant),
            worker: names.of(claim.worker),
            commands: claim.commands.iter().map(|command| names.of(command)).collect(),
            order: match claim.order {
                ClaimOrder::Request => Order::Request,
                ClaimOrder::Priority => Order::Priority,
                ClaimOrder::Fair => Order::Fair,
            },
            count: claim.count,
            lease: claim.lease.map(|lease| lease.0),
        })),
        Op::Extend { lease: held, length } => {
            Call::Extend { lease: lease(names, shard, held), length: length.map(|length| length.0) }
        }
        Op::Release { lease: held } => Call::Release { lease: lease(names, shard, held) },
        Op::Nack { lease: held, delay, reason } => Call::Nack {
            lease: lease(names, shard, held),
            delay: delay.map(|delay| delay.0),
            reason: digest(reason.as_bytes()),
        },
        Op::Complete { lease: held, result, error } => {
            Call::Complete { lease: lease(names, shard, held), result: digest(result), error: digest(error.as_bytes()) }
        }
        Op::Fail { lease: held, result, error } => {
            Call::Fail { lease: lease(names, shard, held), result: result.map(digest), error: digest(error.as_bytes()) }
        }
        Op::Cancel { tenant, task, reason, force } => Call::Cancel {
            tenant: names.of(tenant),
            task: Task { shard, key: task.0 },
            reason: digest(reason.as_bytes()),
            force: *force,
        },
        Op::Redrive(redrive) => Call::Redrive(Redrive {
            tenant: names.of(redrive.tenant),
            task: Task { shard, key: redrive.task.0 },
            ended_at: redrive.ended_at.0,
            keep_attempts: redrive.keep_attempts,
            delay: redrive.delay.0,
            priority: redrive.priority,
            payload: payload_of(&in_record(redrive.task, redrive.record)),
        }),
        Op::Edit(edit) => Call::Edit(Edit {
            tenant: names.of(edit.tenant),
            task: Task { shard, key: edit.task.0 },
            priority: edit.priority,
            schedule: edit.schedule.map(schedule),
            payload: edit.payload.map(digest),
            max_attempts: edit.max_attempts,
            webhook: edit.webhook.map(|webhook| digest(webhook.as_bytes())),
        }),
        Op::Pause { tenant, command, length, reason, .. } => Call::Pause {
            tenant: names.of(tenant),
            command: names.of(command),
            length: length.map(|length| length.0),
            reason: digest(reason.as_bytes()),
        },
        Op::Resume { tenant, command } => Call::Resume { tenant: names.of(tenant), command: names.of(command) },
        Op::Configure(settings) => Call::Configure(Box::new(policy(settings))),
        Op::Amend(amend) => {
            let view = in_record(amend.task, amend.record);
            Call::Amend(Amend {
                tenant: names.of(amend.tenant),
                task: Task { shard, key: amend.task.0 },
                ended_at: amend.ended_at.0,
                payload: payload_of(&view),
                max_attempts: view.map_or(0, |view| view.max_attempts),
            })
        }
        Op::Delete(delete) => Call::Delete(Delete {
            tenant: names.of(delete.tenant),
            task: Task { shard, key: delete.task.0 },
            ended_at: delete.ended_at.map(|index| index.0),
            key: delete.key.and_then(|scope| names.keys.get(&scope).map(|(.., key)| *key)),
        }),
        Op::Begin(begin) => Call::Begin(Box::new(self::begin(names, begin))),
        Op::Step(step) => Call::Step(Box::new(Step {
            tenant: names.of(step.tenant),
            operation: operation(&step.id),
            after: step.after,
            last: step.is_last,
            items: step
                .items
                .iter()
                .map(|item| call(names, shard, &codec::decode(item).expect("it was encoded here")))
                .collect(),
            counted: step.counted,
            samples: step.samples.iter().map(task).collect(),
        })),
        Op::Turn { tenant, id, to, .. } => {
            Call::Turn { tenant: names.of(tenant), operation: operation(id), to: stands(*to) }
        }
    }
}

/// The name of an operation on many tasks.
fn operation(id: &OperationId) -> u64 {
    u64::from_le_bytes(*id.first_chunk().expect("16 bytes have 8"))
}

fn stands(state: OperationState) -> Stands {
    match state {
        OperationState::Running => Stands::Running,
        OperationState::Stopped => Stands::Stopped,
        OperationState::Succeeded => Stands::Succeeded,
        OperationState::Failed => panic!("what was asked for here can be carried out"),
    }
}

fn begin(names: &mut Names, begin: &queue::op::Begin<'_>) -> Begin {
    let plan = names.plans.get(&begin.id).expect("it was noted").clone();
    let narrow = |range: &std::ops::RangeInclusive<u64>| (*range.start() as u32, *range.end() as u32);
    Begin {
        tenant: names.of(begin.tenant),
        operation: operation(&begin.id),
        does: match begin.kind {
            OperationKind::DeadRedrive => {
                Bulk::Redrive { keep_attempts: plan.keep_attempts, delay: plan.delay.0, priority: plan.priority }
            }
            OperationKind::DeadPurge => Bulk::PurgeDead,
            OperationKind::QueuePurge => Bulk::Purge,
            OperationKind::Cancel => Bulk::Cancel { reason: digest(plan.reason.as_bytes()), force: plan.force },
        },
        commands: begin.commands.iter().map(|command| names.of(command)).collect(),
        states: plan.filter.states.iter().map(|of| state(*of)).collect(),
        attempts: plan.filter.attempts.as_ref().map(narrow),
        priority: plan.filter.priority.as_ref().map(|range| (*range.start() as u8, *range.end() as u8)),
        dry_run: begin.dry_run,
        all: begin.takes_all,
    }
}

/// How an operation on many tasks stands.
pub fn progress(names: &mut Names, of: &Operation) -> Progress {
    Progress {
        tenant: names.of(&of.tenant),
        operation: operation(&of.id),
        stands: stands(of.state),
        steps: of.steps,
        processed: of.processed,
        changed: of.changed,
        skipped: of.skipped,
        expected: of.estimated_total,
        samples: of.samples.iter().map(task).collect(),
    }
}

fn schedule(schedule: queue::op::Schedule) -> Schedule {
    match schedule {
        queue::op::Schedule::Now => Schedule::Now,
        queue::op::Schedule::After(delay) => Schedule::After(delay.0),
        queue::op::Schedule::At(time) => Schedule::At(time.0),
    }
}

/// The task in a record that an operation carries.
fn in_record(task: TaskKey, record: &[u8]) -> Option<TaskView> {
    queue::record::decode(record, TaskId { incarnation: 0, shard: base::ShardId(0), key: task }).ok()
}

fn payload_of(view: &Option<TaskView>) -> Digest {
    match view.as_ref().map(|view| &view.payload) {
        Some(Payload::Resident(bytes)) => digest(bytes),
        // A record has its payload.
        Some(Payload::Stored(_)) | None => Digest(u64::MAX),
    }
}

/// The number of the operation that a payload or a reason carries: the digits behind `n=`; 0: none.
fn number_in(bytes: &[u8]) -> (u64, u16) {
    let Some(place) = bytes.windows(2).position(|pair| pair == b"n=") else { return (0, 0) };
    let digits = |from: usize| {
        let rest = &bytes[from..];
        let end = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        (rest[..end].iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')), from + end)
    };
    let (number, end) = digits(place + 2);
    let part = if bytes.get(end) == Some(&b'.') { digits(end + 1).0 } else { 0 };
    (number, part as u16)
}

/// The number and part of an operation in the log, where it carries them.
fn number_of(op: &Op<'_>) -> (u64, u16) {
    match op {
        // Whoever repeats a creation under its key sends the same payload.
        Op::Create(create) if create.key.is_some() => (0, 0),
        Op::Create(create) => number_in(create.payload),
        Op::Claim(claim) => number_in(claim.worker.as_bytes()),
        Op::Nack { reason, .. } | Op::Cancel { reason, .. } | Op::Pause { reason, .. } => number_in(reason.as_bytes()),
        Op::Edit(edit) => edit.payload.map_or((0, 0), number_in),
        Op::Begin(begin) => number_in(begin.request),
        Op::Complete { error, .. } | Op::Fail { error, .. } => number_in(error.as_bytes()),
        _ => (0, 0),
    }
}

/// An entry of a shard's log.
pub fn entry(names: &mut Names, node: u16, shard: u16, logged: &base::log::Entry) -> Entry {
    let body = replica::entry_operations(logged).ok().flatten().map(|(header, operations)| {
        let decode = |bytes: &[u8]| {
            let op = codec::decode(bytes).expect("what is in the log was proposed here");
            let (number, part) = number_of(&op);
            Logged { number, part, call: call(names, shard, &op) }
        };
        Body {
            proposed_in: header.term.0 as u32,
            lease: header.stamps.lease.0,
            schedule: header.stamps.schedule.0,
            operations: operations.into_iter().map(decode).collect(),
        }
    });
    let (index, term) = (logged.index.0, logged.term.0 as u32);
    Entry { node, shard, index, term, digest: digest(&logged.data), body }
}

/// A task as it is shown.
pub fn view(names: &mut Names, view: &TaskView) -> View {
    View {
        task: task(&view.id),
        tenant: names.of(&view.tenant),
        command: names.of(&view.command),
        payload: match &view.payload {
            Payload::Resident(bytes) => digest(bytes),
            // Whoever shows it has looked it up before.
            Payload::Stored(_) => Digest(u64::MAX),
        },
        priority: view.priority,
        state: state(view.state),
        worker: view.worker.as_ref().map(|worker| names.of(worker)),
        attempts: view.attempts,
        max_attempts: view.max_attempts,
        error: digest(view.error.as_bytes()),
        ended_at: view.ended_at.map(|index| index.0),
        result: view.result.as_ref().map(|result| digest(result)),
        webhook: digest(view.webhook.as_bytes()),
        key: match &*view.idempotency_key {
            "" => None,
            key => Some(names.of_key(&view.tenant, &view.command, key)),
        },
        cancel_requested: view.cancel_requested,
    }
}

fn state(state: queue::State) -> State {
    match state {
        queue::State::Delayed => State::Delayed,
        queue::State::Ready => State::Ready,
        queue::State::Leased => State::Leased,
        queue::State::Completed => State::Completed,
        queue::State::Failed => State::Failed,
        queue::State::Dead => State::Dead,
        queue::State::Cancelled => State::Cancelled,
    }
}

/// A queue's numbers.
pub fn stats(names: &mut Names, stats: &QueueStats) -> Stats {
    let totals = &stats.totals;
    Stats {
        tenant: names.of(&stats.tenant),
        command: names.of(&stats.command),
        ready: stats.depth.ready,
        delayed: stats.depth.delayed,
        leased: stats.depth.leased,
        dead: stats.depth.dead,
        pause: stats.pause.as_ref().map(|pause| digest(pause.reason.as_bytes())),
        totals: Totals {
            created: totals.created,
            claimed: totals.claimed,
            completed: totals.completed,
            failed: totals.failed,
            dead: totals.dead,
            cancelled: totals.cancelled,
            expired: totals.expired,
        },
    }
}

/// What an operation has come to.
pub fn answer(names: &mut Names, outcome: &Outcome) -> Answer {
    match outcome {
        Outcome::Created(created) => Answer::Created { task: task(&created.id), max_attempts: created.max_attempts },
        Outcome::Replayed(first) => Answer::Replayed(task(first)),
        Outcome::Claimed(grants) => {
            let grant = |grant: &queue::outcome::Grant| Grant {
                task: view(names, &grant.task),
                token: token(&grant.token),
                length: grant.length.0,
            };
            Answer::Claimed(grants.iter().map(grant).collect())
        }
        Outcome::Extended { remaining, cancel_requested, .. } => {
            Answer::Extended { remaining: remaining.0, cancel_requested: *cancel_requested }
        }
        Outcome::Released => Answer::Released,
        Outcome::Retried { delay, attempts } => Answer::Retried { delay: delay.0, attempts: *attempts },
        Outcome::DeadLettered { attempts } => Answer::Deadlettered { attempts: *attempts },
        Outcome::Finished { attempt, .. } => Answer::Finished { attempt: *attempt },
        Outcome::Cancelled(_) => Answer::Cancelled,
        Outcome::CancelRequested(_) => Answer::CancelRequested,
        Outcome::Redriven(shown) => Answer::Redriven(Box::new(view(names, shown))),
        Outcome::Configured => Answer::Configured,
        Outcome::Edited(shown) => Answer::Edited(Box::new(view(names, shown))),
        Outcome::Done => Answer::Done,
        Outcome::Rejected(why) => Answer::Rejected(match why {
            queue::Rejection::NotLive => Rejection::NotLive,
            queue::Rejection::NotLeased => Rejection::NotLeased,
            queue::Rejection::NotOwner => Rejection::NotOwner,
            queue::Rejection::LeaseLost { held } => Rejection::LeaseLost { held: *held },
            queue::Rejection::KeyConflict { first } => Rejection::KeyConflict { first: task(first) },
            queue::Rejection::NotEnded => Rejection::NotEnded,
            queue::Rejection::RecordChanged => Rejection::RecordChanged,
            queue::Rejection::IsLeased => Rejection::IsLeased,
            queue::Rejection::NoOperation => Rejection::NoOperation,
            queue::Rejection::OperationState => Rejection::OperationState,
            queue::Rejection::OperationConflict { with } => Rejection::OperationConflict { with: operation(with) },
            other => panic!("no client asks for what is refused with {other:?}"),
        }),
    }
}

/// The id of the task with this key.
pub fn id_of(incarnation: base::Incarnation, shard: base::ShardId, key: u64) -> TaskId {
    TaskId::new(incarnation, shard, TaskKey(key))
}

/// A view of an ended task as its record keeps it: what estimates times is of no interest.
pub fn ended(row: &[u8], id: TaskId) -> Option<TaskView> {
    queue::record::decode(row, id).ok().map(|view| TaskView { updated_at: ScheduleTime(0), ..view })
}
