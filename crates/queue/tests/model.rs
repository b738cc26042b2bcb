//! The state machine against the reference model of crate `history`: the same random operations go to both, and after each of them both
//! must say the same.
//!
//! Now and then the state machine is saved while operations go on, and then restarted from the checkpoint and the operations since. One run
//! covers at least 100,000 operations; `CODEQ_MODEL_SEED=<n>` changes the seed, `CODEQ_MODEL_CASES=<n>` the number of sequences. A failing
//! sequence is shrunk.

mod support;

use base::machine::StateMachine;
use base::rows::Changes;
use base::{Index, Millis, ScheduleTime};
use history::model::Model;
use history::record::{self, Answer, Call, Digest, Grant, Name, Right, State, Task, Token, Totals, View};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use queue::op::{Claim, ClaimOrder, Create, Credential, IdempotencyKey, LeaseRef, Redrive, Schedule};
use queue::outcome::{Outcome, Query, QueueStats, Rejection, TaskView};
use queue::policy::{LeaseBounds, Retention};
use queue::{Backoff, BackoffPolicy, LeaseToken, Op, Policy, QueueMachine, TaskId, TaskKey, idempotency};
use support::Shard;

const START: u64 = 1_000_000;

/// Everything that has a name, by its number in the model: tenants, queues, workers, keys.
const NAMES: [&str; 9] = ["acme", "other", "a", "b", "c", "w1", "w2", "k1", "k2"];
const TENANTS: [Name; 2] = [Name(0), Name(1)];
const COMMANDS: [Name; 3] = [Name(2), Name(3), Name(4)];
const WORKERS: [Name; 2] = [Name(5), Name(6)];
const KEYS: [Name; 2] = [Name(7), Name(8)];

/// Everything that the model knows by its digest.
const TEXTS: [&str; 6] = ["", "0", "1", "{}", "why", "stop"];

/// One random step. Numbers name things modulo how many there are.
#[derive(Clone, Debug)]
enum Step {
    Create {
        tenant: u8,
        command: u8,
        priority: u8,
        schedule: u8,
        key: Option<u8>,
        body: u8,
        max: Option<u8>,
    },
    Claim {
        tenant: u8,
        worker: u8,
        commands: Vec<u8>,
        order: u8,
        count: u8,
        lease: Option<u16>,
    },
    Extend {
        task: u16,
        by: Option<u16>,
        as_token: Option<u16>,
        worker: u8,
    },
    Release {
        task: u16,
        as_token: Option<u16>,
        worker: u8,
    },
    Nack {
        task: u16,
        delay: Option<u16>,
        why: bool,
        as_token: Option<u16>,
        worker: u8,
    },
    End {
        task: u16,
        fail: bool,
        as_token: Option<u16>,
        worker: u8,
    },
    Cancel {
        task: u16,
        force: bool,
        why: bool,
        foreign: bool,
    },
    Redrive {
        task: u16,
        keep: bool,
        delay: u8,
        priority: Option<u8>,
    },
    Configure {
        backoff: u8,
        kept: u8,
    },
    Advance {
        lease: u16,
        schedule: u16,
    },
    /// Begins a checkpoint whose rows are collected a few per step, then restarts from it.
    Save {
        rows: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let token = || proptest::option::weighted(0.7, any::<u16>());
    prop_oneof![
        12 => (0..2u8, 0..3u8, 0..10u8, 0..10u8, proptest::option::weighted(0.3, 0..2u8), 0..2u8, proptest::option::of(1..4u8))
            .prop_map(|(tenant, command, priority, schedule, key, body, max)| Step::Create {
                tenant, command, priority: priority / 3, schedule, key, body, max
            }),
        12 => (0..2u8, 0..2u8, proptest::collection::vec(0..3u8, 0..3), 0..3u8, 1..4u8, proptest::option::of(0..20_000u16))
            .prop_map(|(tenant, worker, commands, order, count, lease)| Step::Claim {
                tenant, worker, commands, order, count, lease
            }),
        4 => (any::<u16>(), proptest::option::of(0..20_000u16), token(), 0..2u8)
            .prop_map(|(task, by, as_token, worker)| Step::Extend { task, by, as_token, worker }),
        2 => (any::<u16>(), token(), 0..2u8).prop_map(|(task, as_token, worker)| Step::Release { task, as_token, worker }),
        4 => (any::<u16>(), proptest::option::of(0..20_000u16), any::<bool>(), token(), 0..2u8)
            .prop_map(|(task, delay, why, as_token, worker)| Step::Nack { task, delay, why, as_token, worker }),
        6 => (any::<u16>(), any::<bool>(), token(), 0..2u8)
            .prop_map(|(task, fail, as_token, worker)| Step::End { task, fail, as_token, worker }),
        2 => (any::<u16>(), any::<bool>(), any::<bool>(), proptest::bool::weighted(0.1))
            .prop_map(|(task, force, why, foreign)| Step::Cancel { task, force, why, foreign }),
        2 => (any::<u16>(), any::<bool>(), 0..4u8, proptest::option::of(0..10u8))
            .prop_map(|(task, keep, delay, priority)| Step::Redrive { task, keep, delay, priority }),
        1 => (0..5u8, 0..3u8).prop_map(|(backoff, kept)| Step::Configure { backoff, kept }),
        6 => (0..8_000u16, 0..8_000u16).prop_map(|(lease, schedule)| Step::Advance { lease, schedule }),
        2 => (1..20u8).prop_map(|rows| Step::Save { rows }),
    ]
}

fn policy(backoff: record::Backoff, kept: u64) -> record::Policy {
    record::Policy {
        lease_default: 9_000,
        lease_min: 1_000,
        lease_max: 15_000,
        max_attempts: 2,
        backoff,
        backoff_base: 3_000,
        backoff_max: 10_000,
        idempotency_window: 12_000,
        completed_kept: kept,
        failed_kept: kept,
        dead_kept: kept * 2,
    }
}

/// Both sides, and what names things.
struct World {
    shard: Shard,
    model: Model,
    created: Vec<TaskId>,
    /// Every token that was handed out, with its task, the latest one last.
    tokens: Vec<(TaskId, LeaseToken)>,
    /// A save in progress: rows per step, the model at the freeze, and the rows so far.
    save: Option<(usize, Model, Changes)>,
    /// Further operations may join the entry begun last.
    open: bool,
}

impl World {
    fn new() -> World {
        let mut shard = Shard::new(START);
        // Each payload has one byte: most are left to the checkpoint once they are in it.
        shard.machine.limit_payload_memory(3);
        let settings = policy(record::Backoff::Fixed, 30_000);
        let run = record::Run {
            reproduce: String::new(),
            shards: 1,
            incarnation: support::INFO.incarnation.0,
            drift_ppm: 0,
            due_per_entry: base::limits::DUE_PER_ENTRY as u32,
            policy: settings,
            operations_min: 0,
            healed: None,
        };
        let model = Model::new(0, &run);
        let mut world = World { shard, model, created: Vec::new(), tokens: Vec::new(), save: None, open: false };
        world.apply(&Call::Configure(Box::new(settings)), false).expect("settings are taken");
        world
    }

    /// The task of that number: mostly a recent one, so that something happens to it.
    fn some_task(&self, number: u16) -> Option<TaskId> {
        let recent = self.created.len().saturating_sub(12);
        let range = if number.is_multiple_of(8) { &self.created[..] } else { &self.created[recent..] };
        range.get(usize::from(number) % range.len().max(1)).copied()
    }

    fn tenant(&self, id: TaskId) -> Name {
        self.model.view(task(id)).map_or(TENANTS[0], |view| view.tenant)
    }

    /// Takes a step; `joined`: in the entry of the step before, if there is one.
    fn run(&mut self, step: &Step, joined: bool) -> Result<(), TestCaseError> {
        match step {
            Step::Advance { lease, schedule } => {
                self.shard.advance_clocks(Millis(u64::from(*lease)), Millis(u64::from(*schedule)));
                self.begin();
            }
            Step::Save { rows } => {
                if self.save.is_none() {
                    self.shard.machine.freeze();
                    self.save = Some((usize::from(*rows), self.model.clone(), Changes::default()));
                }
                self.open = false;
            }
            _ => {
                let Some(call) = self.call(step) else { return Ok(()) };
                self.apply(&call, joined)?;
            }
        }
        self.save_a_little()?;
        self.compare()
    }

    /// Begins an entry on both sides.
    fn begin(&mut self) {
        self.shard.tick();
        let stamps = self.shard.stamps();
        self.model.begin(self.shard.entry().0, stamps.lease.0, stamps.schedule.0);
        self.open = true;
    }

    /// Applies an operation on both sides; the outcome must be the model's answer.
    fn apply(&mut self, call: &Call, joined: bool) -> Result<(), TestCaseError> {
        let record = match call {
            Call::Redrive(redrive) => self.shard.task(id(redrive.task)).map(|view| self.shard.record(view)),
            _ => None,
        };
        if !(joined && self.open) {
            self.begin();
        }
        let outcome = self.shard.apply_here(&self.op(call, record.as_deref().unwrap_or_default()));
        let mut expected = self.model.apply(call);
        match (&outcome, &mut expected) {
            (Outcome::Created(created), _) => {
                prop_assert!(self.created.last().is_none_or(|last| last.key < created.id.key), "keys rise");
                self.created.push(created.id);
            }
            (Outcome::Claimed(grants), Answer::Claimed(expected)) => {
                // The secret part of a token is the server's own.
                for (grant, expected) in grants.iter().zip(expected.iter_mut()) {
                    let known = self.tokens.iter().any(|(_, token)| *token == grant.token);
                    prop_assert!(!known, "a token names one grant for ever");
                    self.tokens.push((grant.task.id, grant.token));
                    expected.token.suffix = token(&grant.token).suffix;
                    self.model.learn(task(grant.task.id), &expected.token);
                }
            }
            _ => {}
        }
        prop_assert_eq!(self.answer(&outcome), expected, "{:?}", call);
        Ok(())
    }

    /// What a step asks for, if there is anything to ask it of.
    fn call(&self, step: &Step) -> Option<Call> {
        Some(match step {
            Step::Create { tenant, command, priority, schedule, key, body, max } => {
                // Half of the tasks are ready at once; the others wait by one of the clocks, from somewhere in the past to 8 s ahead.
                let offset = u64::from(schedule % 5) * 2_000;
                let now = self.shard.stamps().schedule.0;
                let at = match schedule {
                    0..5 => record::Schedule::Now,
                    5..8 => record::Schedule::After(offset),
                    _ => record::Schedule::At(now + offset - 4_000),
                };
                Call::Create(record::Create {
                    tenant: TENANTS[usize::from(*tenant)],
                    command: COMMANDS[usize::from(*command)],
                    priority: *priority,
                    payload: digest(TEXTS[1 + usize::from(*body)]),
                    // The schedule of a keyed creation is part of its body and must repeat exactly.
                    schedule: if key.is_some() { record::Schedule::Now } else { at },
                    webhook: Digest::EMPTY,
                    max_attempts: max.map(u32::from),
                    key: key.map(|key| KEYS[usize::from(key)]),
                })
            }
            Step::Claim { tenant, worker, commands, order, count, lease } => {
                let mut names: Vec<Name> = Vec::new();
                for command in commands.iter().map(|command| COMMANDS[usize::from(*command)]) {
                    if !names.contains(&command) {
                        names.push(command);
                    }
                }
                let order = match order {
                    _ if names.is_empty() => record::Order::Fair,
                    0 => record::Order::Request,
                    1 => record::Order::Priority,
                    _ => record::Order::Fair,
                };
                let (tenant, worker) = (TENANTS[usize::from(*tenant)], WORKERS[usize::from(*worker)]);
                let lease = lease.map(u64::from);
                Call::Claim(Box::new(record::Claim { tenant, worker, commands: names, order, count: *count, lease }))
            }
            Step::Extend { task, by, as_token, worker } => {
                Call::Extend { lease: self.lease(*task, *as_token, *worker)?, length: by.map(u64::from) }
            }
            Step::Release { task, as_token, worker } => Call::Release { lease: self.lease(*task, *as_token, *worker)? },
            Step::Nack { task, delay, why, as_token, worker } => {
                let delay = delay.map(|delay| if delay % 5 == 0 { 0 } else { u64::from(delay) });
                let reason = digest(if *why { "why" } else { "" });
                Call::Nack { lease: self.lease(*task, *as_token, *worker)?, delay, reason }
            }
            Step::End { task, fail: true, as_token, worker } => {
                Call::Fail { lease: self.lease(*task, *as_token, *worker)?, result: None, error: digest("why") }
            }
            Step::End { task, fail: false, as_token, worker } => {
                let lease = self.lease(*task, *as_token, *worker)?;
                Call::Complete { lease, result: digest("{}"), error: Digest::EMPTY }
            }
            Step::Cancel { task: number, force, why, foreign } => {
                let id = self.some_task(*number)?;
                let owner = self.tenant(id);
                let tenant = if *foreign { Name(1 - owner.0) } else { owner };
                let reason = digest(if *why { "stop" } else { "" });
                Call::Cancel { tenant, task: task(id), reason, force: *force }
            }
            Step::Redrive { task: number, keep, delay, priority } => {
                let view = self.shard.task(self.some_task(*number)?)?;
                Call::Redrive(record::Redrive {
                    tenant: name(&view.tenant),
                    task: task(view.id),
                    ended_at: view.ended_at.unwrap_or_default().0,
                    keep_attempts: *keep,
                    delay: u64::from(*delay) * 1_000,
                    priority: *priority,
                })
            }
            Step::Configure { backoff, kept } => {
                use record::Backoff::{ExpEqualJitter, ExpFullJitter, Exponential, Fixed, Linear};
                let backoff = [Fixed, Linear, Exponential, ExpEqualJitter, ExpFullJitter][usize::from(*backoff)];
                Call::Configure(Box::new(policy(backoff, [8_000, 30_000, 60_000][usize::from(*kept)])))
            }
            Step::Advance { .. } | Step::Save { .. } => return None,
        })
    }

    /// A right to a task: mostly its latest token, now and then any other, or the worker's name.
    fn lease(&self, number: u16, as_token: Option<u16>, worker: u8) -> Option<record::Lease> {
        let id = self.some_task(number)?;
        let latest = self.tokens.iter().rev().find(|(task, _)| *task == id);
        let by = match as_token {
            None => Right::Worker(WORKERS[usize::from(worker)]),
            Some(number) if number.is_multiple_of(11) => Right::Forged,
            Some(number) => {
                let any = self.tokens.get(usize::from(number) % self.tokens.len().max(1));
                let chosen = if number.is_multiple_of(5) { any } else { latest.or(any) };
                chosen.map_or(Right::Forged, |(_, chosen)| Right::Token(token(chosen)))
            }
        };
        Some(record::Lease { tenant: self.tenant(id), task: task(id), by })
    }

    /// The operation that asks for what the model is asked for.
    fn op<'a>(&self, call: &Call, record: &'a [u8]) -> Op<'a> {
        let lease = |lease: &record::Lease| LeaseRef {
            tenant: text(lease.tenant),
            task: TaskKey(lease.task.key),
            credential: match lease.by {
                Right::Token(right) => {
                    let known = self.tokens.iter().find(|(_, known)| token(known) == right);
                    Credential::Token(known.expect("it was handed out").1)
                }
                Right::Worker(worker) => Credential::Worker(text(worker)),
                Right::Forged => Credential::Unknown,
            },
        };
        match call {
            Call::Create(create) => Op::Create(create_op(create)),
            Call::Claim(claim) => Op::Claim(Claim {
                tenant: text(claim.tenant),
                worker: text(claim.worker),
                commands: claim.commands.iter().map(|command| text(*command)).collect(),
                order: match claim.order {
                    record::Order::Request => ClaimOrder::Request,
                    record::Order::Priority => ClaimOrder::Priority,
                    record::Order::Fair => ClaimOrder::Fair,
                },
                count: claim.count,
                lease: claim.lease.map(Millis),
            }),
            Call::Extend { lease: held, length } => Op::Extend { lease: lease(held), length: length.map(Millis) },
            Call::Release { lease: held } => Op::Release { lease: lease(held) },
            Call::Nack { lease: held, delay, reason } => {
                Op::Nack { lease: lease(held), delay: delay.map(Millis), reason: undigested(*reason) }
            }
            Call::Complete { lease: held, result, error } => {
                let (result, error) = (undigested(*result).as_bytes(), undigested(*error));
                Op::Complete { lease: lease(held), result, error }
            }
            Call::Fail { lease: held, result, error } => {
                let result = result.map(|result| undigested(result).as_bytes());
                Op::Fail { lease: lease(held), result, error: undigested(*error) }
            }
            Call::Cancel { tenant, task, reason, force } => {
                let (tenant, reason) = (text(*tenant), undigested(*reason));
                Op::Cancel { tenant, task: TaskKey(task.key), reason, force: *force }
            }
            Call::Redrive(redrive) => Op::Redrive(Redrive {
                tenant: text(redrive.tenant),
                task: TaskKey(redrive.task.key),
                ended_at: Index(redrive.ended_at),
                record,
                keep_attempts: redrive.keep_attempts,
                delay: Millis(redrive.delay),
                priority: redrive.priority,
            }),
            Call::Configure(settings) => Op::Configure(policy_op(settings)),
            Call::Read { .. } | Call::Stats { .. } => panic!("a question is no operation"),
        }
    }

    /// An outcome as the model puts it.
    fn answer(&self, outcome: &Outcome) -> Answer {
        match outcome {
            Outcome::Created(created) => Answer::Created { task: task(created.id), max_attempts: created.max_attempts },
            Outcome::Replayed(first) => Answer::Replayed(task(*first)),
            Outcome::Claimed(grants) => {
                let grant = |grant: &queue::outcome::Grant| Grant {
                    task: self.view(&grant.task),
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
            Outcome::Redriven(view) => Answer::Redriven(Box::new(self.view(view))),
            Outcome::Configured => Answer::Configured,
            Outcome::Edited(_) | Outcome::Done => panic!("the model is not asked for that"),
            Outcome::Rejected(rejection) => Answer::Rejected(match rejection {
                Rejection::NotLive => record::Rejection::NotLive,
                Rejection::NotLeased => record::Rejection::NotLeased,
                Rejection::NotOwner => record::Rejection::NotOwner,
                Rejection::LeaseLost { held } => record::Rejection::LeaseLost { held: *held },
                Rejection::KeyConflict { first } => record::Rejection::KeyConflict { first: task(*first) },
                Rejection::NotEnded => record::Rejection::NotEnded,
                Rejection::RecordChanged => record::Rejection::RecordChanged,
                other => panic!("the model is not asked for what is refused with {other:?}"),
            }),
        }
    }

    fn view(&self, view: &TaskView) -> View {
        let state = [
            State::Delayed,
            State::Ready,
            State::Leased,
            State::Completed,
            State::Failed,
            State::Dead,
            State::Cancelled,
        ][view.state as usize];
        View {
            task: task(view.id),
            tenant: name(&view.tenant),
            command: name(&view.command),
            payload: Digest::of(&self.shard.payload(view)),
            priority: view.priority,
            state,
            worker: view.worker.as_deref().map(name),
            attempts: view.attempts,
            max_attempts: view.max_attempts,
            error: digest(&view.error),
            ended_at: view.ended_at.map(|index| index.0),
            result: view.result.as_deref().map(Digest::of),
            webhook: digest(&view.webhook),
            key: (!view.idempotency_key.is_empty()).then(|| name(&view.idempotency_key)),
            cancel_requested: view.cancel_requested,
        }
    }

    /// Goes on with a save in progress; when it ends, the checkpoint must hold the model's state at the freeze.
    fn save_a_little(&mut self) -> Result<(), TestCaseError> {
        let Some((rows, frozen, mut changes)) = self.save.take() else {
            return Ok(());
        };
        if !self.shard.machine.collect(rows, &mut changes) {
            self.save = Some((rows, frozen, changes));
            return Ok(());
        }
        self.shard.store.apply(&changes).expect("stored rows exist");
        drop(self.shard.machine.saved());
        let mut copy = Shard::new(START);
        copy.store = self.shard.store.clone();
        copy.machine = QueueMachine::restore(support::INFO, &mut copy.store).expect("the checkpoint reads back");
        let unchanged = frozen.tasks().eq(self.model.tasks()) && frozen.clocks() == self.model.clocks();
        let created = self.created.clone();
        let restored = World { shard: copy, model: frozen, created, tokens: Vec::new(), save: None, open: false };
        restored.compare()?;
        // If nothing has happened since, the machine goes on from its checkpoint.
        if unchanged {
            self.shard.save(usize::MAX, |_| ());
            self.shard.machine = QueueMachine::restore(support::INFO, &mut self.shard.store).expect("it reads back");
            self.shard.machine.limit_payload_memory(3);
            self.open = false;
        }
        Ok(())
    }

    /// Every task and the numbers of every queue are the model's.
    fn compare(&self) -> Result<(), TestCaseError> {
        for id in &self.created {
            let found = self.shard.task(*id).map(|view| self.view(&view));
            prop_assert_eq!(found, self.model.view(task(*id)), "{}", id);
        }
        for tenant in TENANTS {
            for command in COMMANDS {
                let query = Query::Queue { tenant: text(tenant).into(), command: text(command).into() };
                let (queue::Answer::Queue(found), _) = self.shard.query(&query) else {
                    return Err(TestCaseError::fail("no queue"));
                };
                prop_assert_eq!(stats(tenant, command, &found), self.model.stats(tenant, command));
            }
        }
        Ok(())
    }
}

fn text(name: Name) -> &'static str {
    NAMES[name.0 as usize]
}

fn name(text: &str) -> Name {
    Name(NAMES.iter().position(|known| *known == text).expect("it has a name") as u32)
}

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn undigested(of: Digest) -> &'static str {
    TEXTS.into_iter().find(|text| digest(text) == of).expect("it is one of the texts")
}

fn task(id: TaskId) -> Task {
    Task { shard: id.shard.0, key: id.key.0 }
}

fn id(task: Task) -> TaskId {
    TaskId::new(support::INFO.incarnation, base::ShardId(task.shard), TaskKey(task.key))
}

fn token(token: &LeaseToken) -> Token {
    let suffix = u64::from_le_bytes(*token.suffix.first_chunk().expect("16 bytes have 8"));
    Token { attempt: token.attempt, index: token.index.0, suffix }
}

fn create_op(create: &record::Create) -> Create<'static> {
    let (tenant, command) = (text(create.tenant), text(create.command));
    let payload = undigested(create.payload).as_bytes();
    let schedule = match create.schedule {
        record::Schedule::Now => Schedule::Now,
        record::Schedule::After(delay) => Schedule::After(Millis(delay)),
        record::Schedule::At(time) => Schedule::At(ScheduleTime(time)),
    };
    let (priority, max_attempts) = (create.priority, create.max_attempts);
    let key = create.key.map(|key| IdempotencyKey {
        text: text(key),
        scope: idempotency::scope_digest(tenant, command, text(key)),
        body: idempotency::body_digest(payload, priority, "", max_attempts, &schedule),
    });
    Create { tenant, command, priority, payload, schedule, webhook: "", max_attempts, key }
}

fn policy_op(settings: &record::Policy) -> Policy {
    let policy = match settings.backoff {
        record::Backoff::Fixed => BackoffPolicy::Fixed,
        record::Backoff::Linear => BackoffPolicy::Linear,
        record::Backoff::Exponential => BackoffPolicy::Exponential,
        record::Backoff::ExpEqualJitter => BackoffPolicy::ExpEqualJitter,
        record::Backoff::ExpFullJitter => BackoffPolicy::ExpFullJitter,
    };
    Policy {
        lease: LeaseBounds {
            default: Millis(settings.lease_default),
            min: Millis(settings.lease_min),
            max: Millis(settings.lease_max),
        },
        max_attempts: settings.max_attempts,
        backoff: Backoff { policy, base: Millis(settings.backoff_base), max: Millis(settings.backoff_max) },
        idempotency_window: Millis(settings.idempotency_window),
        retention: Retention {
            completed: Millis(settings.completed_kept),
            failed: Millis(settings.failed_kept),
            dead: Millis(settings.dead_kept),
        },
        ..Policy::default()
    }
}

fn stats(tenant: Name, command: Name, found: &QueueStats) -> record::Stats {
    let totals = found.totals;
    record::Stats {
        tenant,
        command,
        ready: found.depth.ready,
        delayed: found.depth.delayed,
        leased: found.depth.leased,
        dead: found.depth.dead,
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

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn the_state_machine_and_the_reference_model_agree() {
    let seed = number("CODEQ_MODEL_SEED", 1);
    let cases = number("CODEQ_MODEL_CASES", 400) as u32;
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let operations = std::cell::Cell::new(0);
    let steps = proptest::collection::vec((step(), proptest::bool::weighted(0.3)), 1..600);
    let outcome = runner.run(&steps, |steps| {
        operations.set(operations.get() + steps.len());
        let mut world = World::new();
        steps.iter().try_for_each(|(step, joined)| world.run(step, *joined))
    });
    if let Err(failure) = outcome {
        panic!("{failure}\nreplay with CODEQ_MODEL_SEED={seed} CODEQ_MODEL_CASES={cases}");
    }
    assert!(cases < 400 || operations.get() >= 100_000, "only {} operations were tried", operations.get());
}
