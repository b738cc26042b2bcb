//! The state machine against the reference model of crate `history`: the same random operations go to both, and after each of them both
//! must say the same, as the simulator's records put it. The history of each task must tell how it came to stand as the model says.
//!
//! Now and then the state machine is saved while operations go on, and then restarted from the checkpoint and the operations since. One run
//! covers at least 100,000 operations; `CODEQ_MODEL_SEED=<n>` changes the seed, `CODEQ_MODEL_CASES=<n>` the number of sequences. A failing
//! sequence is shrunk.

#[path = "../../queue/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use base::machine::StateMachine;
use base::rows::Changes;
use base::rowstore::StoreLook;
use base::{Millis, ScheduleTime};
use history::model::Model;
use history::record::{Answer, Progress, Run};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use queue::history::{Happening, entries};
use queue::listing::decode_places;
use queue::op::{
    Amend, Begin, Claim, ClaimOrder, Create, Credential, Edit, IdempotencyKey, LeaseRef, Redrive, Schedule,
};
use queue::operations::{OperationId, OperationKind, OperationState};
use queue::outcome::{Outcome, Query, State, TaskView};
use queue::policy::{LeaseBounds, Retention};
use queue::search::Filter;
use queue::steps::{Page, Plan};
use queue::{Backoff, BackoffPolicy, LeaseToken, Op, Payload, Policy, QueueMachine, TaskId, codec, idempotency};
use sim::record::{self, Names};
use support::Shard;

const START: u64 = 1_000_000;

const TENANTS: [&str; 2] = ["acme", "other"];
const COMMANDS: [&str; 3] = ["a", "b", "c"];
const WORKERS: [&str; 2] = ["w1", "w2"];
const KEYS: [&str; 2] = ["k1", "k2"];
const PAYLOADS: [&str; 2] = ["0", "1"];

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
        payload: Option<u8>,
    },
    Edit {
        task: u16,
        priority: Option<u8>,
        schedule: Option<u8>,
        payload: Option<u8>,
        max: Option<u8>,
        webhook: Option<bool>,
    },
    /// Another record for a dead task, made from what was read now or from an older one.
    Amend {
        task: u16,
        payload: u8,
        max: Option<u8>,
        late: bool,
    },
    Pause {
        tenant: u8,
        command: u8,
        length: Option<u16>,
    },
    Resume {
        tenant: u8,
        command: u8,
    },
    /// Begins an operation on many tasks.
    Begin {
        tenant: u8,
        command: Option<u8>,
        kind: u8,
        one_state: bool,
        attempts: Option<u8>,
        flags: u8,
    },
    /// Stops one, or lets it go on.
    Turn {
        which: u16,
        stop: bool,
    },
    /// Takes the next step of one, of so many tasks; twice: a second leader proposes the same.
    Meet {
        which: u16,
        limit: u8,
        twice: bool,
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
        2 => (any::<u16>(), any::<bool>(), 0..4u8, proptest::option::of(0..10u8), proptest::option::weighted(0.3, 0..2u8))
            .prop_map(|(task, keep, delay, priority, payload)| Step::Redrive { task, keep, delay, priority, payload }),
        3 => (any::<u16>(), proptest::option::of(0..12u8), proptest::option::of(0..10u8),
            proptest::option::weighted(0.3, 0..2u8), proptest::option::weighted(0.2, 0..6u8), proptest::option::weighted(0.2, any::<bool>()))
            .prop_map(|(task, priority, schedule, payload, max, webhook)| Step::Edit {
                task, priority, schedule, payload, max, webhook
            }),
        2 => (any::<u16>(), 0..2u8, proptest::option::of(0..6u8), proptest::bool::weighted(0.2))
            .prop_map(|(task, payload, max, late)| Step::Amend { task, payload, max, late }),
        1 => (0..2u8, 0..3u8, proptest::option::of(0..8_000u16))
            .prop_map(|(tenant, command, length)| Step::Pause { tenant, command, length }),
        2 => (0..2u8, 0..3u8).prop_map(|(tenant, command)| Step::Resume { tenant, command }),
        1 => (0..2u8, proptest::option::of(0..3u8), 0..4u8, any::<bool>(), proptest::option::weighted(0.2, 0..2u8), 0..16u8)
            .prop_map(|(tenant, command, kind, one_state, attempts, flags)| Step::Begin {
                tenant, command, kind, one_state, attempts, flags
            }),
        1 => (any::<u16>(), any::<bool>()).prop_map(|(which, stop)| Step::Turn { which, stop }),
        3 => (any::<u16>(), 1..4u8, proptest::bool::weighted(0.1))
            .prop_map(|(which, limit, twice)| Step::Meet { which, limit, twice }),
        1 => (0..5u8, 0..3u8).prop_map(|(backoff, kept)| Step::Configure { backoff, kept }),
        6 => (0..8_000u16, 0..8_000u16).prop_map(|(lease, schedule)| Step::Advance { lease, schedule }),
        2 => (1..20u8).prop_map(|rows| Step::Save { rows }),
    ]
}

fn policy(backoff: BackoffPolicy, kept: u64) -> Policy {
    Policy {
        lease: LeaseBounds { default: Millis(9_000), min: Millis(1_000), max: Millis(15_000) },
        max_attempts: 2,
        backoff: Backoff { policy: backoff, base: Millis(3_000), max: Millis(10_000) },
        idempotency_window: Millis(12_000),
        retention: Retention { completed: Millis(kept), failed: Millis(kept), dead: Millis(kept * 2) },
        ..Policy::default()
    }
}

/// An entry of a task's history: the log entry, what, the states before and after, the attempt, how many heartbeats.
type Line = (u64, Happening, Option<State>, Option<State>, u32, u64);

/// What may happen to a task in a state, and what that makes of it.
fn may_happen(what: Happening, from: State, to: State) -> bool {
    use State::{Cancelled, Completed, Dead, Delayed, Failed, Leased, Ready};
    let waits = |state| matches!(state, Ready | Delayed);
    match what {
        Happening::Ready => (from, to) == (Delayed, Ready),
        Happening::Claimed => (from, to) == (Ready, Leased),
        Happening::Extended | Happening::CancelRequested => (from, to) == (Leased, Leased),
        Happening::Released => (from, to) == (Leased, Ready),
        Happening::Retry | Happening::Expired => from == Leased && waits(to),
        Happening::Completed => (from, to) == (Leased, Completed),
        Happening::Failed => (from, to) == (Leased, Failed),
        Happening::Dead => (from, to) == (Leased, Dead),
        Happening::Cancelled => (waits(from) || from == Leased) && to == Cancelled,
        Happening::Redriven => matches!(from, Dead | Failed | Cancelled) && waits(to),
        Happening::Edited => (waits(from) && waits(to)) || (from, to) == (Dead, Dead),
        Happening::ResultRefused => from == to,
        Happening::Created | Happening::Deleted | Happening::Truncated => false,
    }
}

/// Both sides, and what names things.
struct World {
    shard: Shard,
    model: Model,
    names: Names,
    created: Vec<TaskId>,
    /// Every token that was handed out, with its task, the latest one last.
    tokens: Vec<(TaskId, LeaseToken)>,
    /// Operations on many tasks, with whose they are.
    many: Vec<(&'static str, OperationId)>,
    /// What was known to have happened to each task when histories were looked at last, and in which entry that was.
    told: BTreeMap<TaskId, Vec<Line>>,
    looked_at: u64,
    steps: u64,
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
        let settings = policy(BackoffPolicy::Fixed, 30_000);
        let run = Run {
            reproduce: String::new(),
            shards: 1,
            incarnation: support::INFO.incarnation.0,
            drift_ppm: 0,
            due_per_entry: base::limits::DUE_PER_ENTRY as u32,
            policy: record::policy(&settings),
            operations_min: 0,
            healed: None,
        };
        let (model, names) = (Model::new(0, &run), Names::default());
        let (created, tokens, many, told) = (Vec::new(), Vec::new(), Vec::new(), BTreeMap::new());
        let mut world =
            World { shard, model, names, created, tokens, many, told, looked_at: 0, steps: 0, save: None, open: false };
        world.apply(&Op::Configure(settings), false).expect("settings are taken");
        world
    }

    /// The task of that number: mostly a recent one, so that something happens to it.
    fn some_task(&self, number: u16) -> Option<TaskId> {
        let recent = self.created.len().saturating_sub(12);
        let range = if number.is_multiple_of(8) { &self.created[..] } else { &self.created[recent..] };
        range.get(usize::from(number) % range.len().max(1)).copied()
    }

    fn tenant(&self, id: TaskId) -> Arc<str> {
        self.shard.task(id).map_or_else(|| TENANTS[0].into(), |view| view.tenant)
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
            _ => self.ask(step, joined)?,
        }
        self.save_a_little()?;
        self.steps += 1;
        if self.steps.is_multiple_of(8) {
            self.look_at_histories()?;
        }
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
    fn apply(&mut self, op: &Op<'_>, joined: bool) -> Result<(), TestCaseError> {
        if !(joined && self.open) {
            self.begin();
        }
        let call = record::call(&mut self.names, 0, op);
        let mut outcome = self.shard.apply_here(op);
        let mut expected = self.model.apply(&call);
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
                    expected.token.suffix = record::token(&grant.token).suffix;
                    self.model.learn(record::task(&grant.task.id), &expected.token);
                }
            }
            _ => {}
        }
        match &mut outcome {
            Outcome::Claimed(grants) => grants.iter_mut().for_each(|grant| self.fetch(&mut grant.task)),
            Outcome::Redriven(view) | Outcome::Edited(view) => self.fetch(view),
            _ => {}
        }
        prop_assert_eq!(record::answer(&mut self.names, &outcome), expected, "{:?}", call);
        prop_assert_eq!(self.model.wrong(), None, "{:?}", call);
        Ok(())
    }

    /// Gives a task its payload, which may stand in the checkpoint only.
    fn fetch(&self, view: &mut TaskView) {
        view.payload = Payload::Resident(self.shard.payload(view).into());
    }

    /// Half of the tasks are ready at once; the others wait by one of the clocks, from somewhere in the past to 8 s ahead.
    fn schedule(&self, schedule: u8) -> Schedule {
        let offset = u64::from(schedule % 5) * 2_000;
        let now = self.shard.stamps().schedule.0;
        match schedule {
            0..5 => Schedule::Now,
            5..8 => Schedule::After(Millis(offset)),
            _ => Schedule::At(ScheduleTime(now + offset - 4_000)),
        }
    }

    /// Asks both sides for what a step says, if there is anything to ask it of.
    fn ask(&mut self, step: &Step, joined: bool) -> Result<(), TestCaseError> {
        match step {
            Step::Create { tenant, command, priority, schedule, key, body, max } => {
                let (tenant, command) = (TENANTS[usize::from(*tenant)], COMMANDS[usize::from(*command)]);
                let (payload, max_attempts) = (PAYLOADS[usize::from(*body)].as_bytes(), max.map(u32::from));
                // The schedule of a keyed creation is part of its body and must repeat exactly.
                let schedule = if key.is_some() { Schedule::Now } else { self.schedule(*schedule) };
                let key = key.map(|key| KEYS[usize::from(key)]).map(|text| IdempotencyKey {
                    text,
                    scope: idempotency::scope_digest(tenant, command, text),
                    body: idempotency::body_digest(payload, *priority, "", max_attempts, &schedule),
                });
                let priority = *priority;
                let create = Create { tenant, command, priority, payload, schedule, webhook: "", max_attempts, key };
                self.apply(&Op::Create(create), joined)
            }
            Step::Claim { tenant, worker, commands, order, count, lease } => {
                let mut names: Vec<&str> = Vec::new();
                for command in commands.iter().map(|command| COMMANDS[usize::from(*command)]) {
                    if !names.contains(&command) {
                        names.push(command);
                    }
                }
                let order = match order {
                    _ if names.is_empty() => ClaimOrder::Fair,
                    0 => ClaimOrder::Request,
                    1 => ClaimOrder::Priority,
                    _ => ClaimOrder::Fair,
                };
                let (tenant, worker) = (TENANTS[usize::from(*tenant)], WORKERS[usize::from(*worker)]);
                let lease = lease.map(|lease| Millis(u64::from(lease)));
                let claim = Claim { tenant, worker, commands: names, order, count: *count, lease };
                self.apply(&Op::Claim(claim), joined)
            }
            Step::Extend { task, by, as_token, worker } => {
                let length = by.map(|by| Millis(u64::from(by)));
                self.with_lease(*task, *as_token, *worker, joined, |lease| Op::Extend { lease, length })
            }
            Step::Release { task, as_token, worker } => {
                self.with_lease(*task, *as_token, *worker, joined, |lease| Op::Release { lease })
            }
            Step::Nack { task, delay, why, as_token, worker } => {
                let delay = delay.map(|delay| Millis(if delay % 5 == 0 { 0 } else { u64::from(delay) }));
                let reason = if *why { "why" } else { "" };
                self.with_lease(*task, *as_token, *worker, joined, |lease| Op::Nack { lease, delay, reason })
            }
            Step::End { task, fail, as_token, worker } => {
                self.with_lease(*task, *as_token, *worker, joined, |lease| match fail {
                    true => Op::Fail { lease, result: None, error: "why" },
                    false => Op::Complete { lease, result: b"{}", error: "" },
                })
            }
            Step::Cancel { task, force, why, foreign } => {
                let Some(id) = self.some_task(*task) else { return Ok(()) };
                let owner = self.tenant(id);
                let foreigner = TENANTS.into_iter().find(|tenant| **tenant != *owner).unwrap_or_default();
                let (tenant, reason) = (if *foreign { foreigner } else { &owner }, if *why { "stop" } else { "" });
                self.apply(&Op::Cancel { tenant, task: id.key, reason, force: *force }, joined)
            }
            Step::Redrive { task, keep, delay, priority, payload } => {
                let Some(mut view) = self.some_task(*task).and_then(|id| self.shard.task(id)) else { return Ok(()) };
                self.fetch(&mut view);
                if let Some(another) = payload {
                    view.payload = Payload::Resident(PAYLOADS[usize::from(*another)].as_bytes().into());
                }
                let record = self.shard.record(view.clone());
                let redrive = Redrive {
                    tenant: &view.tenant,
                    task: view.id.key,
                    ended_at: view.ended_at.unwrap_or_default(),
                    record: &record,
                    keep_attempts: *keep,
                    delay: Millis(u64::from(*delay) * 1_000),
                    priority: *priority,
                };
                self.apply(&Op::Redrive(redrive), joined)
            }
            Step::Edit { task, priority, schedule, payload, max, webhook } => {
                let Some(id) = self.some_task(*task) else { return Ok(()) };
                let tenant = self.tenant(id);
                let edit = Edit {
                    tenant: &tenant,
                    task: id.key,
                    priority: *priority,
                    schedule: schedule.map(|schedule| self.schedule(schedule)),
                    payload: payload.map(|payload| PAYLOADS[usize::from(payload)].as_bytes()),
                    max_attempts: max.map(u32::from),
                    webhook: webhook.map(|webhook| if webhook { "http://a/" } else { "" }),
                };
                self.apply(&Op::Edit(edit), joined)
            }
            Step::Amend { task, payload, max, late } => {
                let Some(mut view) = self.some_task(*task).and_then(|id| self.shard.history(id)) else { return Ok(()) };
                let ended_at = view.ended_at.unwrap_or_default();
                view.payload = Payload::Resident(PAYLOADS[usize::from(*payload)].as_bytes().into());
                view.max_attempts = max.map_or(view.max_attempts, u32::from);
                let record = self.shard.record(view.clone());
                let ended_at = if *late { base::Index(ended_at.0.saturating_sub(1)) } else { ended_at };
                let amend = Amend { tenant: &view.tenant, task: view.id.key, ended_at, record: &record };
                self.apply(&Op::Amend(amend), joined)
            }
            Step::Pause { tenant, command, length } => {
                let (tenant, command) = (TENANTS[usize::from(*tenant)], COMMANDS[usize::from(*command)]);
                let length = length.map(|length| Millis(u64::from(length)));
                self.apply(&Op::Pause { tenant, command, length, reason: "why", by: "w1" }, joined)
            }
            Step::Resume { tenant, command } => {
                let (tenant, command) = (TENANTS[usize::from(*tenant)], COMMANDS[usize::from(*command)]);
                self.apply(&Op::Resume { tenant, command }, joined)
            }
            Step::Begin { tenant, command, kind, one_state, attempts, flags } => {
                let (kind, _) = OperationKind::NAMES[usize::from(*kind)];
                let tenant = TENANTS[usize::from(*tenant)];
                let mut filter = Filter::of(&tenant.into());
                filter.commands = command.map(|command| [COMMANDS[usize::from(command)].into()].into());
                let states: &[State] = match kind {
                    OperationKind::DeadRedrive | OperationKind::DeadPurge => &[State::Dead],
                    OperationKind::QueuePurge => &[State::Ready, State::Delayed],
                    OperationKind::Cancel => &[State::Ready, State::Delayed, State::Leased],
                };
                filter.states = states[usize::from(*one_state && states.len() > 1)..].iter().copied().collect();
                filter.attempts = attempts.map(|least| u64::from(least)..=2);
                let takes_all = filter.attempts.is_none() && filter.states.len() == states.len();
                let is_set = |bit: u8| flags & bit > 0;
                let plan = Plan {
                    kind,
                    filter,
                    keep_attempts: is_set(1),
                    priority: is_set(2).then_some(7),
                    delay: Millis(if is_set(4) { 2_000 } else { 0 }),
                    reason: "stop".into(),
                    force: is_set(4),
                    rate: 100,
                    dry_run: *flags >= 14,
                };
                let mut id = OperationId::default();
                id[0] = self.many.len() as u8;
                id[1] = (self.many.len() >> 8) as u8;
                self.many.push((tenant, id));
                self.names.note_plan(id, plan.clone());
                let (commands, dry_run) = (plan.commands(), plan.dry_run);
                let begin = Begin { tenant, id, kind, commands, request: b"", dry_run, takes_all, by: "w1" };
                self.apply(&Op::Begin(begin), joined)
            }
            Step::Turn { which, stop } => {
                let Some((tenant, id)) = self.some_many(*which) else { return Ok(()) };
                let to = if *stop { OperationState::Stopped } else { OperationState::Running };
                self.apply(&Op::Turn { tenant, id, to, error: "" }, joined)
            }
            Step::Meet { which, limit, twice } => {
                let Some((tenant, id)) = self.some_many(*which).filter(|_| self.save.is_none()) else { return Ok(()) };
                let all = Query::Operations { tenant: Some(tenant.into()), running: false };
                let (queue::Answer::Operations(all), _) = self.shard.query(&all) else { return Ok(()) };
                let Some(operation) = all.into_iter().find(|operation| operation.id == id) else { return Ok(()) };
                self.open = false;
                self.shard.save(usize::MAX, |_| ());
                let plan = self.names.plan(&id).expect("it was noted").clone();
                let places = decode_places(&operation.cursor).expect("it was encoded here");
                let mut listing = plan.listing(usize::from(*limit), places);
                let mut look = StoreLook { store: &self.shard.store, schema: queue::schema() };
                let reached = listing.read(vec![(support::INFO.shard, &mut look)], &|| true);
                let reached = reached.expect("rows in memory can be read");
                let page = Page::of(&operation, listing.found, listing.places, &reached);
                let step = plan.step(&operation, &page);
                let step = codec::decode(&step).expect("it was encoded here");
                self.apply(&step, false)?;
                if *twice { self.apply(&step, joined) } else { Ok(()) }
            }
            Step::Configure { backoff, kept } => {
                let (backoff, _) = BackoffPolicy::NAMES[usize::from(*backoff)];
                let settings = policy(backoff, [8_000, 30_000, 60_000][usize::from(*kept)]);
                self.apply(&Op::Configure(settings), joined)
            }
            Step::Advance { .. } | Step::Save { .. } => Ok(()),
        }
    }

    /// Mostly a recent one.
    fn some_many(&self, which: u16) -> Option<(&'static str, OperationId)> {
        let recent = &self.many[self.many.len().saturating_sub(3)..];
        recent.get(usize::from(which) % recent.len().max(1)).copied()
    }

    /// Asks for something with a right to a task: mostly its latest token, now and then any other, or the worker's name.
    fn with_lease(
        &mut self,
        number: u16,
        as_token: Option<u16>,
        worker: u8,
        joined: bool,
        op: impl Fn(LeaseRef<'_>) -> Op<'_>,
    ) -> Result<(), TestCaseError> {
        let Some(id) = self.some_task(number) else { return Ok(()) };
        let latest = self.tokens.iter().rev().find(|(task, _)| *task == id);
        let credential = match as_token {
            None => Credential::Worker(WORKERS[usize::from(worker)]),
            Some(number) if number.is_multiple_of(11) => Credential::Unknown,
            Some(number) => {
                let any = self.tokens.get(usize::from(number) % self.tokens.len().max(1));
                let chosen = if number.is_multiple_of(5) { any } else { latest.or(any) };
                chosen.map_or(Credential::Unknown, |(_, chosen)| Credential::Token(*chosen))
            }
        };
        let tenant = self.tenant(id);
        self.apply(&op(LeaseRef { tenant: &tenant, task: id.key, credential }), joined)
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
        copy.catch_up_with(&self.shard);
        copy.machine = QueueMachine::restore(support::INFO, &mut copy.store).expect("the checkpoint reads back");
        let unchanged = frozen.tasks().eq(self.model.tasks()) && frozen.clocks() == self.model.clocks();
        let created = self.created.clone();
        let names = Names::default();
        let (tokens, many, told) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut restored = World {
            shard: copy,
            model: frozen,
            names,
            created,
            tokens,
            many,
            told,
            looked_at: 0,
            steps: 0,
            save: None,
            open: false,
        };
        std::mem::swap(&mut restored.names, &mut self.names);
        let compared = restored.compare().and_then(|()| restored.look_at_histories());
        std::mem::swap(&mut restored.names, &mut self.names);
        compared?;
        // If nothing has happened since, the machine goes on from its checkpoint.
        if unchanged {
            self.shard.save(usize::MAX, |_| ());
            self.shard.machine = QueueMachine::restore(support::INFO, &mut self.shard.store).expect("it reads back");
            self.shard.machine.limit_payload_memory(3);
            self.open = false;
        }
        Ok(())
    }

    fn look_at_histories(&mut self) -> Result<(), TestCaseError> {
        self.created.clone().into_iter().try_for_each(|id| self.look_at_history(id))?;
        self.looked_at = self.shard.entry().0;
        Ok(())
    }

    /// A task's history leads, by things that may happen, to how it stands, and has changed only by what came last.
    fn look_at_history(&mut self, id: TaskId) -> Result<(), TestCaseError> {
        let Some(view) = self.shard.history(id) else {
            self.told.remove(&id);
            return Ok(());
        };
        let entries = entries(&view).expect("a history can be read");
        let line = |entry: &queue::history::Entry<'_>| {
            (entry.index.0, entry.what, entry.from, entry.to, entry.attempt, entry.count)
        };
        let lines: Vec<Line> = entries.iter().map(line).collect();
        let first = lines[0];
        prop_assert_eq!((first.0, first.1, first.2), (id.key.index().0, Happening::Created, None));
        let (mut state, mut attempts, mut before) = (first.3, 0, first);
        for (entry, line) in entries.iter().zip(&lines).skip(1) {
            let (index, what, from, to, attempt, count) = *line;
            let (Some(was), Some(is)) = (from, to) else { return Err(TestCaseError::fail(format!("{lines:?}"))) };
            prop_assert!(state == from && may_happen(what, was, is), "{what:?} in {lines:?}");
            prop_assert!(index >= before.0 && index <= self.shard.entry().0, "{lines:?}");
            prop_assert!(entry.at <= self.shard.stamps().schedule);
            prop_assert!(count == 1 || what == Happening::Extended, "{lines:?}");
            match what {
                Happening::Claimed => {
                    prop_assert_eq!(attempt, attempts + 1, "{:?}", lines);
                    prop_assert!(WORKERS.contains(&entry.worker) && entry.lease.is_some());
                }
                Happening::Redriven => prop_assert!(attempt == 0 || attempt == attempts, "{lines:?}"),
                // The attempt that a late result is of.
                Happening::ResultRefused => {}
                _ => prop_assert_eq!(attempt, attempts, "{:?}", lines),
            }
            match what {
                Happening::Released => attempts -= 1,
                Happening::ResultRefused => {}
                _ => attempts = attempt,
            }
            (state, before) = (to, *line);
        }
        prop_assert_eq!((state, attempts), (Some(view.state), view.attempts), "{:?}", lines);
        if let Some(told) = self.told.insert(id, lines.clone()) {
            // A heartbeat behind another takes its place.
            let same = told.iter().zip(&lines).take_while(|(told, line)| told == line).count();
            let counted = |told: &[Line]| matches!(told, [(_, Happening::Extended, .., count)] if lines.get(same).is_some_and(|line| line.1 == Happening::Extended && line.5 > *count));
            prop_assert!(told[same..].is_empty() || counted(&told[same..]), "{told:?} became {lines:?}");
            prop_assert!(lines[same..].iter().all(|line| line.0 >= self.looked_at), "{told:?} became {lines:?}");
        }
        Ok(())
    }

    /// Every task and the numbers of every queue are the model's.
    fn compare(&mut self) -> Result<(), TestCaseError> {
        for place in 0..self.created.len() {
            let id = self.created[place];
            let found = self.shard.task(id).map(|mut view| {
                self.fetch(&mut view);
                record::view(&mut self.names, &view)
            });
            prop_assert_eq!(found, self.model.view(record::task(&id)), "{}", id);
        }
        for tenant in TENANTS {
            for command in COMMANDS {
                let query = Query::Queue { tenant: tenant.into(), command: command.into() };
                let (queue::Answer::Queue(found), _) = self.shard.query(&query) else {
                    return Err(TestCaseError::fail("no queue"));
                };
                let found = record::stats(&mut self.names, &found);
                prop_assert_eq!(&found, &self.model.stats(found.tenant, found.command));
            }
        }
        let (queue::Answer::Operations(found), _) =
            self.shard.query(&Query::Operations { tenant: None, running: false })
        else {
            return Err(TestCaseError::fail("no operations"));
        };
        let found: Vec<Progress> = found.iter().map(|of| record::progress(&mut self.names, of)).collect();
        prop_assert_eq!(found, self.model.operations().collect::<Vec<_>>());
        Ok(())
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
