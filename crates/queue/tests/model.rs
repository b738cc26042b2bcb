//! The state machine against a naive model: the same random operations go to both, and after each of them both must say the same.
//!
//! The model is written from the rules, not from the code: plain vectors, linear scans, nothing cached. Now and then the state machine is
//! saved while operations go on, and then restarted from the checkpoint and the operations since. One run covers at least 100,000
//! operations; `CODEQ_MODEL_SEED=<n>` changes the seed, `CODEQ_MODEL_CASES=<n>` the number of sequences. A failing sequence is shrunk.

mod support;

use std::collections::BTreeMap;

use base::{Millis, ScheduleTime};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use queue::op::{Claim, ClaimOrder, Create, Credential, IdempotencyKey, LeaseRef, Redrive, Schedule};
use queue::outcome::{Outcome, Query, Rejection, State};
use queue::policy::Retention;
use queue::{Answer, Backoff, BackoffPolicy, LeaseToken, Op, Policy, TaskId, idempotency};
use support::Shard;

const START: u64 = 1_000_000;
const TENANTS: [&str; 2] = ["acme", "other"];
const COMMANDS: [&str; 3] = ["a", "b", "c"];
const WORKERS: [&str; 2] = ["w1", "w2"];
const KEYS: [&str; 2] = ["k1", "k2"];

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
        foreign: bool,
    },
    Redrive {
        task: u16,
        keep: bool,
        delay: u8,
        priority: Option<u8>,
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
        6 => (0..2u8, 0..3u8, 0..10u8, 0..10u8, proptest::option::weighted(0.3, 0..2u8), 0..2u8, proptest::option::of(1..4u8))
            .prop_map(|(tenant, command, priority, schedule, key, body, max)| Step::Create {
                tenant, command, priority: priority / 3, schedule, key, body, max
            }),
        6 => (0..2u8, 0..2u8, proptest::collection::vec(0..3u8, 0..3), 0..3u8, 1..4u8, proptest::option::of(0..20_000u16))
            .prop_map(|(tenant, worker, commands, order, count, lease)| Step::Claim {
                tenant, worker, commands, order, count, lease
            }),
        2 => (any::<u16>(), proptest::option::of(0..20_000u16), token(), 0..2u8)
            .prop_map(|(task, by, as_token, worker)| Step::Extend { task, by, as_token, worker }),
        1 => (any::<u16>(), token(), 0..2u8).prop_map(|(task, as_token, worker)| Step::Release { task, as_token, worker }),
        2 => (any::<u16>(), proptest::option::of(0..20_000u16), token(), 0..2u8)
            .prop_map(|(task, delay, as_token, worker)| Step::Nack { task, delay, as_token, worker }),
        3 => (any::<u16>(), any::<bool>(), token(), 0..2u8)
            .prop_map(|(task, fail, as_token, worker)| Step::End { task, fail, as_token, worker }),
        1 => (any::<u16>(), any::<bool>(), proptest::bool::weighted(0.1))
            .prop_map(|(task, force, foreign)| Step::Cancel { task, force, foreign }),
        1 => (any::<u16>(), any::<bool>(), 0..4u8, proptest::option::of(0..10u8))
            .prop_map(|(task, keep, delay, priority)| Step::Redrive { task, keep, delay, priority }),
        3 => (0..8_000u16, 0..8_000u16).prop_map(|(lease, schedule)| Step::Advance { lease, schedule }),
        1 => (1..20u8).prop_map(|rows| Step::Save { rows }),
    ]
}

/// A task as the rules describe it.
#[derive(Clone, Debug, PartialEq)]
struct ModelTask {
    id: TaskId,
    tenant: &'static str,
    command: &'static str,
    priority: u8,
    state: State,
    attempts: u32,
    max_attempts: u32,
    error: String,
    /// When it became ready last, in order of becoming ready.
    place: u64,
    due_lease: Option<u64>,
    due_schedule: Option<u64>,
    worker: &'static str,
    token: Option<LeaseToken>,
    cancel_requested: bool,
    ended: Option<u64>,
    ended_lease: u64,
    keyed: bool,
}

#[derive(Clone)]
struct Bound {
    tenant: &'static str,
    command: &'static str,
    key: &'static str,
    body: (u8, u8, u8, Option<u8>),
    task: TaskId,
    since: u64,
}

/// The naive queue. Delays after a failure are `fixed`, so that nothing is drawn.
#[derive(Clone)]
struct Model {
    policy: Policy,
    lease_clock: u64,
    schedule_clock: u64,
    places: u64,
    tasks: Vec<ModelTask>,
    bound: Vec<Bound>,
    /// Per (tenant, command, priority): the round in which it is served next. Per (tenant, priority): the round served last.
    rounds: BTreeMap<(&'static str, &'static str, u8), u64>,
    served: BTreeMap<(&'static str, u8), u64>,
    /// Slices of ended tasks: (kind, closes, last keyed end on the lease clock).
    slices: Vec<(State, u64, Option<u64>, Vec<TaskId>)>,
}

impl Model {
    fn task(&mut self, id: TaskId) -> &mut ModelTask {
        self.tasks.iter_mut().find(|task| task.id == id).expect("the model knows the task")
    }

    fn ready(&mut self, id: TaskId) {
        self.places += 1;
        let place = self.places;
        let task = self.task(id);
        (task.state, task.place, task.due_lease, task.due_schedule, task.token) =
            (State::Ready, place, None, None, None);
        let (tenant, command, priority) = (task.tenant, task.command, task.priority);
        let alone = self.list(tenant, command, priority).len() == 1;
        if alone {
            let served = *self.served.entry((tenant, priority)).or_default();
            let round = self.rounds.entry((tenant, command, priority)).or_default();
            *round = served.max(*round);
        }
    }

    fn list(&self, tenant: &str, command: &str, priority: u8) -> Vec<&ModelTask> {
        let of_list = |task: &&ModelTask| {
            task.state == State::Ready && task.tenant == tenant && task.command == command && task.priority == priority
        };
        let mut list: Vec<_> = self.tasks.iter().filter(of_list).collect();
        list.sort_by_key(|task| task.place);
        list
    }

    /// Everything due, oldest first: the lease clock before the schedule clock.
    fn due_phase(&mut self) {
        loop {
            let lease = self.tasks.iter().filter_map(|task| Some((task.due_lease?, task.id))).min();
            let schedule = self.tasks.iter().filter_map(|task| Some((task.due_schedule?, task.id))).min();
            let due = match (lease, schedule) {
                (Some((time, id)), _) if time <= self.lease_clock => id,
                (_, Some((time, id))) if time <= self.schedule_clock => id,
                _ => break,
            };
            if self.task(due).state == State::Leased {
                self.attempt_failed(due, None, "LEASE_EXPIRED");
            } else {
                self.ready(due);
            }
        }
        let (lease, window) = (self.lease_clock, self.policy.idempotency_window.0);
        self.bound.retain(|bound| lease < bound.since + window);
        let retention = self.policy.retention.completed.0;
        let schedule = self.schedule_clock;
        let (over, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.slices).into_iter().partition(|(_, closes, keyed, _)| {
                closes + retention <= schedule && keyed.is_none_or(|end| end + window <= lease)
            });
        self.slices = kept;
        for (_, _, _, ids) in over {
            let kept = |task: &ModelTask| {
                !ids.contains(&task.id)
                    || task.ended.is_none()
                    || self.slices.iter().any(|slice| slice.3.contains(&task.id))
            };
            let survivors: Vec<_> = self.tasks.iter().filter(|task| kept(task)).cloned().collect();
            self.tasks = survivors;
        }
    }

    fn attempt_failed(&mut self, id: TaskId, delay: Option<u64>, error: &str) -> String {
        let (base, max) = (self.policy.backoff.base.0, self.policy.backoff.max.0);
        let now = self.lease_clock;
        let task = self.task(id);
        if task.cancel_requested {
            self.end(id, State::Cancelled, "stop");
            return "cancelled".into();
        }
        if task.attempts >= task.max_attempts {
            self.end(id, State::Dead, if error.is_empty() { "MAX_ATTEMPTS" } else { error });
            return "dead".into();
        }
        let delay = delay.unwrap_or(base).min(max);
        error.clone_into(&mut task.error);
        let attempts = task.attempts;
        if delay == 0 {
            self.ready(id);
        } else {
            task.token = None;
            task.state = State::Delayed;
            task.due_lease = Some(now + delay);
        }
        format!("retried after {delay} at {attempts}")
    }

    fn end(&mut self, id: TaskId, state: State, error: &str) {
        let (schedule, lease) = (self.schedule_clock, self.lease_clock);
        let task = self.task(id);
        (task.state, task.due_lease, task.due_schedule, task.token) = (state, None, None, None);
        (task.cancel_requested, task.ended, task.ended_lease) = (false, Some(schedule), lease);
        error.clone_into(&mut task.error);
        let keyed = task.keyed;
        let kind = if state == State::Cancelled { State::Failed } else { state };
        let width = (self.policy.retention.completed.0 / 16).max(1000);
        if !self.slices.iter().any(|slice| slice.0 == kind && schedule < slice.1) {
            self.slices.push((kind, schedule + width, None, Vec::new()));
        }
        let slice =
            self.slices.iter_mut().rev().find(|slice| slice.0 == kind && schedule < slice.1).expect("it is open");
        slice.3.push(id);
        if keyed {
            slice.2 = Some(lease);
        }
    }

    /// Why the holder's right is refused.
    fn refused(&self, id: TaskId, tenant: &str, token: Option<LeaseToken>, worker: &str) -> Option<Rejection> {
        let live = |task: &&ModelTask| task.id == id && task.tenant == tenant && task.ended.is_none();
        let Some(task) = self.tasks.iter().find(live) else {
            return Some(Rejection::NotLive);
        };
        let held = task.state == State::Leased && task.due_lease.is_some_and(|deadline| self.lease_clock < deadline);
        match token {
            Some(token) if held && task.token == Some(token) => None,
            Some(_) => Some(Rejection::LeaseLost { held }),
            None if held && task.worker == worker => None,
            None if held => Some(Rejection::NotOwner),
            None => Some(Rejection::NotLeased),
        }
    }

    /// The next task of a claim.
    fn next(&mut self, tenant: &'static str, commands: &[&'static str], order: ClaimOrder) -> Option<TaskId> {
        let candidates: Vec<&'static str> = if commands.is_empty() { COMMANDS.to_vec() } else { commands.to_vec() };
        let heads: Vec<(u8, &'static str, u64, TaskId)> = candidates
            .iter()
            .filter_map(|command| {
                let priority = (0..10).rev().find(|priority| !self.list(tenant, command, *priority).is_empty())?;
                let list = self.list(tenant, command, priority);
                Some((priority, *command, list[0].place, list[0].id))
            })
            .collect();
        let fair = order == ClaimOrder::Fair;
        let round = |command, priority| {
            if fair { self.rounds[&(tenant, command, priority)] } else { 0 }
        };
        let best = match order {
            ClaimOrder::Request => heads.first(),
            _ => heads
                .iter()
                .min_by_key(|(priority, command, place, _)| (10 - priority, round(*command, *priority), *place)),
        };
        let (priority, command, _, id) = *best?;
        if fair {
            let round = self.rounds[&(tenant, command, priority)];
            let served = self.served.entry((tenant, priority)).or_default();
            *served = round.max(*served);
            self.rounds.insert((tenant, command, priority), round + 1);
        }
        Some(id)
    }
}

/// Both sides, and what names things.
struct World {
    shard: Shard,
    model: Model,
    created: Vec<TaskId>,
    tokens: Vec<LeaseToken>,
    /// A save in progress: rows per step, the model at the freeze, and the operations since.
    save: Option<(usize, Model, base::rows::Changes)>,
}

fn policy() -> Policy {
    let kept = Millis(30_000);
    Policy {
        backoff: Backoff { policy: BackoffPolicy::Fixed, base: Millis(3_000), max: Millis(10_000) },
        max_attempts: 2,
        idempotency_window: Millis(12_000),
        retention: Retention { completed: kept, failed: kept, dead: kept },
        ..Policy::default()
    }
}

impl World {
    fn new() -> World {
        let mut shard = Shard::new(START);
        // Each payload has one byte: most are left to the checkpoint once they are in it.
        shard.machine.limit_payload_memory(3);
        shard.apply(&Op::Configure(policy()));
        let model = Model {
            policy: policy(),
            lease_clock: 0,
            schedule_clock: START,
            places: 0,
            tasks: Vec::new(),
            bound: Vec::new(),
            rounds: BTreeMap::new(),
            served: BTreeMap::new(),
            slices: Vec::new(),
        };
        World { shard, model, created: Vec::new(), tokens: Vec::new(), save: None }
    }

    fn some_task(&self, number: u16) -> Option<TaskId> {
        // Mostly recent ones, so that something happens to them.
        let recent = self.created.len().saturating_sub(12);
        let range = if number.is_multiple_of(8) { &self.created[..] } else { &self.created[recent..] };
        range.get(usize::from(number) % range.len().max(1)).copied()
    }

    fn run(&mut self, step: &Step) -> Result<(), TestCaseError> {
        if let Step::Advance { lease, schedule } = step {
            self.model.lease_clock += u64::from(*lease);
            self.model.schedule_clock += u64::from(*schedule);
            self.shard.advance_clocks(Millis(u64::from(*lease)), Millis(u64::from(*schedule)));
        }
        // Every step but a save is an entry of its own.
        match step {
            Step::Create { tenant, command, priority, schedule, key, body, max } => {
                let tenant = TENANTS[usize::from(*tenant)];
                let command = COMMANDS[usize::from(*command)];
                self.create(tenant, command, *priority, *schedule, *key, *body, *max)?;
            }
            Step::Claim { tenant, worker, commands, order, count, lease } => {
                self.claim(TENANTS[usize::from(*tenant)], *worker, commands, *order, *count, *lease)?;
            }
            Step::Extend { task, by, as_token, worker } => {
                let Some(lease) = self.lease(*task, *as_token, *worker) else {
                    return Ok(());
                };
                let by = by.map(u64::from);
                let outcome = self.shard.apply(&Op::Extend { lease: lease.reference(), length: by.map(Millis) });
                self.model.due_phase();
                match (lease.refused(&self.model), outcome) {
                    (Some(expected), Outcome::Rejected(rejection)) => prop_assert_eq!(rejection, expected),
                    (None, Outcome::Extended { remaining, cancel_requested, .. }) => {
                        let bounds = self.model.policy.lease;
                        let length = by.map_or(bounds.default, Millis).clamp(bounds.min, bounds.max);
                        let now = self.model.lease_clock;
                        let task = self.model.task(lease.id);
                        let deadline = task.due_lease.expect("it is leased").max(now + length.0);
                        task.due_lease = Some(deadline);
                        prop_assert_eq!((remaining.0, cancel_requested), (deadline - now, task.cancel_requested));
                    }
                    other => prop_assert!(false, "extend: {other:?}"),
                }
            }
            Step::Release { task, as_token, worker } => {
                let Some(lease) = self.lease(*task, *as_token, *worker) else {
                    return Ok(());
                };
                let outcome = self.shard.apply(&Op::Release { lease: lease.reference() });
                self.model.due_phase();
                match (lease.refused(&self.model), outcome) {
                    (Some(expected), Outcome::Rejected(rejection)) => prop_assert_eq!(rejection, expected),
                    (None, Outcome::Cancelled(_)) => {
                        prop_assert!(self.model.task(lease.id).cancel_requested);
                        self.model.end(lease.id, State::Cancelled, "stop");
                    }
                    (None, Outcome::Released) => {
                        let task = self.model.task(lease.id);
                        prop_assert!(!task.cancel_requested);
                        task.attempts -= 1;
                        self.model.ready(lease.id);
                    }
                    other => prop_assert!(false, "release: {other:?}"),
                }
            }
            Step::Nack { task, delay, as_token, worker } => {
                let Some(lease) = self.lease(*task, *as_token, *worker) else {
                    return Ok(());
                };
                let delay = delay.map(u64::from).map(|delay| if delay % 5 == 0 { 0 } else { delay });
                let op = Op::Nack { lease: lease.reference(), delay: delay.map(Millis), reason: "why" };
                let outcome = self.shard.apply(&op);
                self.model.due_phase();
                match (lease.refused(&self.model), outcome) {
                    (Some(expected), Outcome::Rejected(rejection)) => prop_assert_eq!(rejection, expected),
                    (None, outcome) => {
                        let happened = match outcome {
                            Outcome::Retried { delay, attempts } => format!("retried after {} at {attempts}", delay.0),
                            Outcome::DeadLettered { .. } => "dead".into(),
                            Outcome::Cancelled(_) => "cancelled".into(),
                            other => format!("{other:?}"),
                        };
                        prop_assert_eq!(happened, self.model.attempt_failed(lease.id, delay, "why"));
                    }
                    other => prop_assert!(false, "nack: {other:?}"),
                }
            }
            Step::End { task, fail, as_token, worker } => {
                let Some(lease) = self.lease(*task, *as_token, *worker) else {
                    return Ok(());
                };
                let reference = lease.reference();
                let outcome = self.shard.apply(&if *fail {
                    Op::Fail { lease: reference, result: None, error: "no" }
                } else {
                    Op::Complete { lease: reference, result: b"{}", error: "" }
                });
                self.model.due_phase();
                match (lease.refused(&self.model), outcome) {
                    (Some(expected), Outcome::Rejected(rejection)) => prop_assert_eq!(rejection, expected),
                    (None, Outcome::Finished { attempt, .. }) => {
                        prop_assert_eq!(attempt, self.model.task(lease.id).attempts);
                        let (state, error) = if *fail { (State::Failed, "no") } else { (State::Completed, "") };
                        self.model.end(lease.id, state, error);
                    }
                    other => prop_assert!(false, "end: {other:?}"),
                }
            }
            Step::Cancel { task, force, foreign } => self.cancel(*task, *force, *foreign)?,
            Step::Redrive { task, keep, delay, priority } => self.redrive(*task, *keep, *delay, *priority)?,
            Step::Advance { .. } => {
                self.shard.tick();
                self.model.due_phase();
            }
            Step::Save { rows } => {
                if self.save.is_none() {
                    base::machine::StateMachine::freeze(&mut self.shard.machine);
                    self.save = Some((usize::from(*rows), self.model.clone(), base::rows::Changes::default()));
                }
            }
        }
        self.save_a_little()?;
        self.compare()
    }

    #[expect(clippy::too_many_arguments, reason = "they are the fields of one random step")]
    fn create(
        &mut self,
        tenant: &'static str,
        command: &'static str,
        priority: u8,
        schedule: u8,
        key: Option<u8>,
        body: u8,
        max: Option<u8>,
    ) -> Result<(), TestCaseError> {
        // Half of the tasks are ready at once; the others wait by one of the clocks, from somewhere in the past to 8 s ahead.
        let offset = u64::from(schedule % 5) * 2_000;
        let at = match schedule {
            0..5 => Schedule::Now,
            5..8 => Schedule::After(Millis(offset)),
            _ => Schedule::At(ScheduleTime(self.model.schedule_clock + offset - 4_000)),
        };
        // The schedule of a keyed creation is part of its body and must repeat exactly.
        let at = if key.is_some() { Schedule::Now } else { at };
        let payload = [b'0' + body];
        let max_attempts = max.map(u32::from);
        let key = key.map(|key| KEYS[usize::from(key)]);
        let key_digests = key.map(|text| IdempotencyKey {
            text,
            scope: idempotency::scope_digest(tenant, command, text),
            body: idempotency::body_digest(&payload, priority, "", max_attempts, &at),
        });
        let create = Create {
            tenant,
            command,
            priority,
            payload: &payload,
            schedule: at,
            webhook: "",
            max_attempts,
            key: key_digests,
        };
        let outcome = self.shard.apply(&Op::Create(create));
        self.model.due_phase();
        let asked = (body, priority, 0, max);
        let bound = key.and_then(|key| {
            self.model
                .bound
                .iter()
                .find(|bound| (bound.tenant, bound.command, bound.key) == (tenant, command, key))
                .cloned()
        });
        let created = match (bound, outcome) {
            (Some(bound), Outcome::Replayed(id)) => {
                prop_assert_eq!((bound.task, bound.body), (id, asked));
                return Ok(());
            }
            (Some(bound), Outcome::Rejected(Rejection::KeyConflict { first })) => {
                prop_assert_eq!(bound.task, first);
                prop_assert_ne!(bound.body, asked);
                return Ok(());
            }
            (None, Outcome::Created(created)) => created,
            other => return Err(TestCaseError::fail(format!("create: {:?}", other.1))),
        };
        let id = created.id;
        prop_assert!(self.created.last().is_none_or(|last| last.key < id.key), "keys rise");
        self.created.push(id);
        self.model.tasks.push(ModelTask {
            id,
            tenant,
            command,
            priority,
            state: State::Delayed,
            attempts: 0,
            max_attempts: max_attempts.unwrap_or(self.model.policy.max_attempts),
            error: String::new(),
            place: 0,
            due_lease: None,
            due_schedule: None,
            worker: "",
            token: None,
            cancel_requested: false,
            ended: None,
            ended_lease: 0,
            keyed: key.is_some(),
        });
        if let Some(key) = key {
            let since = self.model.lease_clock;
            self.model.bound.push(Bound { tenant, command, key, body: asked, task: id, since });
        }
        let (lease_clock, schedule_clock) = (self.model.lease_clock, self.model.schedule_clock);
        let task = self.model.task(id);
        match at {
            Schedule::After(Millis(delay)) if delay > 0 => task.due_lease = Some(lease_clock + delay),
            Schedule::At(ScheduleTime(time)) if time > schedule_clock => task.due_schedule = Some(time),
            _ => self.model.ready(id),
        }
        Ok(())
    }

    fn claim(
        &mut self,
        tenant: &'static str,
        worker: u8,
        commands: &[u8],
        order: u8,
        count: u8,
        lease: Option<u16>,
    ) -> Result<(), TestCaseError> {
        let worker = WORKERS[usize::from(worker)];
        let mut names: Vec<&'static str> = Vec::new();
        for command in commands {
            let name = COMMANDS[usize::from(*command)];
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let order = match order {
            _ if names.is_empty() => ClaimOrder::Fair,
            0 => ClaimOrder::Request,
            1 => ClaimOrder::Priority,
            _ => ClaimOrder::Fair,
        };
        let lease = lease.map(|lease| Millis(u64::from(lease)));
        let outcome =
            self.shard.apply(&Op::Claim(Claim { tenant, worker, commands: names.clone(), order, count, lease }));
        self.model.due_phase();
        let Outcome::Claimed(grants) = outcome else {
            return Err(TestCaseError::fail(format!("claim: {outcome:?}")));
        };
        let bounds = self.model.policy.lease;
        let length = lease.unwrap_or(bounds.default).clamp(bounds.min, bounds.max);
        for grant in &grants {
            let expected = self.model.next(tenant, &names, order);
            prop_assert_eq!(Some(grant.task.id), expected);
            prop_assert_eq!(grant.length, length);
            prop_assert!(!self.tokens.contains(&grant.token), "a token names one grant for ever");
            self.tokens.push(grant.token);
            let deadline = self.model.lease_clock + length.0;
            let task = self.model.task(grant.task.id);
            task.state = State::Leased;
            task.attempts += 1;
            task.worker = worker;
            task.token = Some(grant.token);
            task.due_lease = Some(deadline);
        }
        if grants.len() < usize::from(count) {
            prop_assert_eq!(self.model.clone().next(tenant, &names, order), None, "a claim takes all it may");
        }
        Ok(())
    }

    fn cancel(&mut self, task: u16, force: bool, foreign: bool) -> Result<(), TestCaseError> {
        let Some(id) = self.some_task(task) else { return Ok(()) };
        let owner = self.model.tasks.iter().find(|task| task.id == id).map_or("acme", |task| task.tenant);
        let tenant = if foreign { TENANTS[usize::from(owner == "acme")] } else { owner };
        let outcome = self.shard.apply(&Op::Cancel { tenant, task: id.key, reason: "stop", force });
        self.model.due_phase();
        let live = self.model.tasks.iter().find(|task| task.id == id && task.tenant == tenant && task.ended.is_none());
        match (live.map(|task| task.state), outcome) {
            (None, Outcome::Rejected(Rejection::NotLive)) => {}
            (Some(State::Leased), Outcome::CancelRequested(view)) if !force => {
                prop_assert!(view.cancel_requested);
                self.model.task(id).cancel_requested = true;
            }
            (Some(state), Outcome::Cancelled(_)) if force || state != State::Leased => {
                self.model.end(id, State::Cancelled, "stop")
            }
            other => prop_assert!(false, "cancel: {other:?}"),
        }
        Ok(())
    }

    fn redrive(&mut self, task: u16, keep: bool, delay: u8, priority: Option<u8>) -> Result<(), TestCaseError> {
        let Some(id) = self.some_task(task) else { return Ok(()) };
        let Some(view) = self.shard.task(id) else { return Ok(()) };
        let row = self.shard.record(view.clone());
        let delay = u64::from(delay) * 1_000;
        let tenant: &str = &view.tenant;
        let outcome = self.shard.apply(&Op::Redrive(Redrive {
            tenant,
            task: id.key,
            ended_at: view.ended_at.unwrap_or_default(),
            record: &row,
            keep_attempts: keep,
            delay: Millis(delay),
            priority,
        }));
        self.model.due_phase();
        let state = self.model.tasks.iter().find(|task| task.id == id).map(|task| task.state);
        match (state, outcome) {
            (None | Some(State::Completed), Outcome::Rejected(Rejection::NotLive)) => {}
            (
                Some(State::Ready | State::Delayed | State::Leased),
                Outcome::Rejected(Rejection::NotEnded | Rejection::RecordChanged),
            ) => {}
            (Some(State::Failed | State::Dead | State::Cancelled), Outcome::Redriven(_)) => {
                let now = self.model.lease_clock;
                for slice in &mut self.model.slices {
                    slice.3.retain(|ended| *ended != id);
                }
                let task = self.model.task(id);
                if !keep {
                    task.attempts = 0;
                }
                if task.attempts >= task.max_attempts {
                    task.max_attempts = task.attempts + 1;
                }
                task.priority = priority.unwrap_or(task.priority);
                task.ended = None;
                if delay == 0 {
                    self.model.ready(id);
                } else {
                    task.state = State::Delayed;
                    task.due_lease = Some(now + delay);
                }
            }
            // The record was read before the due phase of the redrive's entry, which may have ended a lease.
            (Some(State::Dead | State::Cancelled), Outcome::Rejected(Rejection::RecordChanged))
                if view.ended_at.is_none() => {}
            other => prop_assert!(false, "redrive: {other:?}"),
        }
        Ok(())
    }

    fn lease(&self, task: u16, token: Option<u16>, worker: u8) -> Option<Lease> {
        let id = self.some_task(task)?;
        let tenant = self.model.tasks.iter().find(|task| task.id == id).map_or("acme", |task| task.tenant);
        // Mostly the current token, now and then any other.
        let current = self.model.tasks.iter().find(|task| task.id == id).and_then(|task| task.token);
        let token = token.and_then(|number| {
            if number.is_multiple_of(5) || current.is_none() {
                self.tokens.get(usize::from(number) % self.tokens.len().max(1)).copied()
            } else {
                current
            }
        });
        Some(Lease { id, tenant, token, worker: WORKERS[usize::from(worker)] })
    }

    /// Goes on with a save in progress; when it ends, the checkpoint must hold the model's state at the freeze.
    fn save_a_little(&mut self) -> Result<(), TestCaseError> {
        use base::machine::StateMachine;
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
        copy.machine = queue::QueueMachine::restore(support::INFO, &mut copy.store).expect("the checkpoint reads back");
        let mut restored =
            World { shard: copy, model: frozen, created: self.created.clone(), tokens: Vec::new(), save: None };
        restored.compare()?;
        // If nothing has happened since, the machine goes on from its checkpoint.
        if restored.model.tasks == self.model.tasks && restored.model.lease_clock == self.model.lease_clock {
            let all = usize::MAX;
            self.shard.save(all, |_| ());
            self.shard.machine =
                queue::QueueMachine::restore(support::INFO, &mut self.shard.store).expect("it reads back");
            self.shard.machine.limit_payload_memory(3);
        }
        Ok(())
    }

    /// Every task, the counts of every queue and the next deadline are the model's.
    fn compare(&mut self) -> Result<(), TestCaseError> {
        for id in &self.created {
            let expected = self.model.tasks.iter().find(|task| task.id == *id);
            let found = self.shard.task(*id);
            match (&found, expected) {
                (None, None) => {}
                (Some(view), Some(task)) => {
                    let seen = (
                        view.state,
                        view.attempts,
                        view.max_attempts,
                        view.priority,
                        &*view.error,
                        view.cancel_requested,
                    );
                    let wanted = (
                        task.state,
                        task.attempts,
                        task.max_attempts,
                        task.priority,
                        task.error.as_str(),
                        task.cancel_requested,
                    );
                    prop_assert_eq!(seen, wanted, "{}", id);
                    prop_assert_eq!((&*view.tenant, &*view.command), (task.tenant, task.command));
                    prop_assert_eq!(view.worker.as_deref(), (task.state == State::Leased).then_some(task.worker));
                }
                _ => prop_assert!(false, "{id}: found {found:?}, expected {expected:?}"),
            }
        }
        for tenant in TENANTS {
            for command in COMMANDS {
                let (answer, _) = self.shard.query(&Query::Queue { tenant: tenant.into(), command: command.into() });
                let Answer::Queue(stats) = answer else {
                    return Err(TestCaseError::fail("no queue"));
                };
                let of_queue = |state: State| {
                    let all = self.model.tasks.iter();
                    all.filter(|task| (task.tenant, task.command, task.state) == (tenant, command, state)).count()
                        as u64
                };
                let depth = stats.depth;
                prop_assert_eq!(
                    (depth.ready_total(), depth.delayed, depth.leased, depth.dead),
                    (of_queue(State::Ready), of_queue(State::Delayed), of_queue(State::Leased), of_queue(State::Dead))
                );
            }
        }
        Ok(())
    }
}

/// A caller's right to a task.
struct Lease {
    id: TaskId,
    tenant: &'static str,
    token: Option<LeaseToken>,
    worker: &'static str,
}

impl Lease {
    fn reference(&self) -> LeaseRef<'static> {
        let credential = self.token.map_or(Credential::Worker(self.worker), Credential::Token);
        LeaseRef { tenant: self.tenant, task: self.id.key, credential }
    }

    fn refused(&self, model: &Model) -> Option<Rejection> {
        model.refused(self.id, self.tenant, self.token, self.worker)
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn the_state_machine_and_the_naive_model_agree() {
    let seed = number("CODEQ_MODEL_SEED", 1);
    let cases = number("CODEQ_MODEL_CASES", 400) as u32;
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let operations = std::cell::Cell::new(0);
    let outcome = runner.run(&proptest::collection::vec(step(), 1..600), |steps| {
        operations.set(operations.get() + steps.len());
        let mut world = World::new();
        steps.iter().try_for_each(|step| world.run(step))
    });
    if let Err(failure) = outcome {
        panic!("{failure}\nreplay with CODEQ_MODEL_SEED={seed} CODEQ_MODEL_CASES={cases}");
    }
    assert!(cases < 400 || operations.get() >= 100_000, "only {} operations were tried", operations.get());
}
