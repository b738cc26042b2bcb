//! The reference model: one shard's queues as the rules describe them, to say what the operations of a log must have been answered with.
//!
//! It is written from the documents (docs/lifecycle.md, docs/guarantees.md, docs/internals/entries.md), not from the server: plain maps,
//! one task after the other, nothing saved and nothing loaded. There are two indexes beside the tasks, because a log of a million
//! operations must be judged in seconds: who is ready, and what is due.
//!
//! It knows of a token only its attempt and its entry. The secret part is learned from the first answer that shows it ([`Model::learn`]).

mod operations;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base::rng::{mix_all, scale};

use self::operations::Operation;
pub use self::operations::Wrong;
use crate::record::{
    Amend, Answer, Backoff, Bound, Call, Claim, Create, Digest, Edit, Grant, Lease, Name, Order, Policy, Redrive,
    Rejection, Right, Run, Schedule, State, Stats, Task, Token, Totals, View,
};

/// One shard's queues.
#[derive(Clone)]
pub struct Model {
    shard: u16,
    incarnation: u64,
    due_per_entry: u32,
    policy: Policy,
    /// The entry being applied, and how many tasks it has created.
    index: u64,
    created: u64,
    lease: u64,
    schedule: u64,
    tasks: BTreeMap<u64, Item>,
    /// Ready tasks by queue and priority, in order of becoming ready.
    ready: BTreeMap<(Queue, u8), BTreeMap<u64, u64>>,
    /// The place of the next task that becomes ready.
    next_place: u64,
    /// Deadlines of leased and delayed tasks on either clock: time and key.
    due_by_lease: BTreeSet<(u64, u64)>,
    due_by_schedule: BTreeSet<(u64, u64)>,
    bound: BTreeMap<(Queue, Name), Binding>,
    /// The bindings in order of time, for tidying.
    bindings: VecDeque<(u64, Queue, Name)>,
    queues: BTreeMap<Queue, Numbers>,
    /// When pauses end by themselves: time, and the rank of the queue among all that became known.
    pauses: BTreeSet<(u64, usize, Queue)>,
    ended_pauses: u32,
    /// The round in which a queue is served next at a priority, and the one in which its tenant was served last.
    rounds: BTreeMap<(Queue, u8), u64>,
    served: BTreeMap<(Name, u8), u64>,
    slices: Vec<Slice>,
    next_slice: u32,
    /// Operations on many tasks, in the order in which they began.
    operations: Vec<Operation>,
    /// What the last step did to single tasks, and what it must not have done.
    items: Vec<(Call, Answer)>,
    wrong: Option<Wrong>,
}

/// A queue: its tenant and its command.
type Queue = (Name, Name);

/// A task.
#[derive(Clone)]
struct Item {
    tenant: Name,
    command: Name,
    payload: Digest,
    webhook: Digest,
    key: Option<Name>,
    priority: u8,
    attempts: u32,
    max_attempts: u32,
    error: Digest,
    cancel: Option<Digest>,
    stage: Stage,
}

#[derive(Clone)]
enum Stage {
    DelayedByLease(u64),
    DelayedBySchedule(u64),
    Ready { place: u64 },
    Leased { worker: Name, attempt: u32, index: u64, suffix: Option<u64>, deadline: u64 },
    Ended { state: State, at: u64, result: Option<Digest>, slice: u32 },
}

#[derive(Clone)]
struct Binding {
    task: u64,
    create: Create,
    since: u64,
}

#[derive(Clone, Default)]
struct Numbers {
    /// How many queues were known before it.
    rank: usize,
    /// When its pause ends by itself, if it does, and why there is one.
    pause: Option<(Option<u64>, Digest)>,
    delayed: u64,
    leased: u64,
    dead: u64,
    totals: Totals,
}

/// Tasks that ended in the same way within a sixteenth of the time for which they are kept (a second at least). They go together.
#[derive(Clone)]
struct Slice {
    number: u32,
    kind: State,
    /// On the schedule clock: nothing ends into it from here on.
    closes: u64,
    /// On the lease clock: when the last task with an idempotency key ended into it. It is kept for as long as that key.
    last_keyed: Option<u64>,
    members: Vec<u64>,
}

/// A lease that ran out before an entry's operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// Of this task.
    pub task: Task,
    /// It waits so long now, ms; nothing: it has ended.
    pub delay: Option<u64>,
}

/// What a failed attempt leads to.
enum Failed {
    Retried(u64),
    Dead,
    Cancelled,
}

impl Model {
    /// A shard before its first entry.
    pub fn new(shard: u16, run: &Run) -> Model {
        Model {
            shard,
            incarnation: run.incarnation,
            due_per_entry: run.due_per_entry,
            policy: run.policy,
            index: 0,
            created: 0,
            lease: 0,
            schedule: 0,
            tasks: BTreeMap::new(),
            ready: BTreeMap::new(),
            next_place: 1,
            due_by_lease: BTreeSet::new(),
            due_by_schedule: BTreeSet::new(),
            bound: BTreeMap::new(),
            bindings: VecDeque::new(),
            queues: BTreeMap::new(),
            pauses: BTreeSet::new(),
            ended_pauses: 0,
            rounds: BTreeMap::new(),
            served: BTreeMap::new(),
            slices: Vec::new(),
            next_slice: 0,
            operations: Vec::new(),
            items: Vec::new(),
            wrong: None,
        }
    }

    /// Begins an entry: its clocks, which never go back, and all that they make due.
    pub fn begin(&mut self, index: u64, lease: u64, schedule: u64) -> Vec<Expired> {
        (self.index, self.created) = (index, 0);
        self.lease = self.lease.max(lease);
        self.schedule = self.schedule.max(schedule);
        let mut expired = Vec::new();
        self.ended_pauses = self.end_pauses();
        for _ in self.ended_pauses..self.due_per_entry {
            let Some(key) = self.next_due() else { break };
            if matches!(self.tasks[&key].stage, Stage::Leased { .. }) {
                self.numbers(key).totals.expired += 1;
                let delay = match self.attempt_failed(key, None, Digest::of(b"LEASE_EXPIRED")) {
                    Failed::Retried(delay) => Some(delay),
                    Failed::Dead | Failed::Cancelled => None,
                };
                expired.push(Expired { task: self.task(key), delay });
            } else {
                self.leave(key);
                self.become_ready(key);
            }
        }
        self.free_keys();
        self.drop_slices();
        expired
    }

    /// Whether a task is delayed.
    pub fn has_delayed(&self) -> bool {
        self.queues.values().any(|numbers| numbers.delayed > 0)
    }

    /// Whether the last entry's clocks have made more due than one entry ends.
    pub fn is_overdue(&self) -> bool {
        self.next_due().is_some() || self.pauses.first().is_some_and(|(end, ..)| *end <= self.lease)
    }

    /// Applies an operation of the entry begun last, or answers a question. Tokens in the answer have no secret part.
    pub fn apply(&mut self, call: &Call) -> Answer {
        self.items.clear();
        self.wrong = None;
        self.apply_one(call).unwrap_or_else(Answer::Rejected)
    }

    fn apply_one(&mut self, call: &Call) -> Result<Answer, Rejection> {
        match call {
            Call::Create(create) => self.create(create),
            Call::Claim(claim) => Ok(Answer::Claimed(self.claim(claim).into())),
            Call::Extend { lease, length } => self.extend(lease, *length),
            Call::Release { lease } => self.release(lease),
            Call::Nack { lease, delay, reason } => self.nack(lease, *delay, *reason),
            Call::Complete { lease, result, error } => self.finish(lease, State::Completed, Some(*result), *error),
            Call::Fail { lease, result, error } => self.finish(lease, State::Failed, *result, *error),
            Call::Cancel { tenant, task, reason, force } => self.cancel(*tenant, *task, *reason, *force),
            Call::Redrive(redrive) => self.redrive(redrive),
            Call::Edit(edit) => self.edit(edit),
            Call::Amend(amend) => self.amend(amend),
            Call::Pause { tenant, command, length, reason } => Ok(self.pause((*tenant, *command), *length, *reason)),
            Call::Resume { tenant, command } => {
                self.end_pause((*tenant, *command));
                Ok(Answer::Done)
            }
            Call::Configure(policy) => {
                self.policy = **policy;
                Ok(Answer::Configured)
            }
            Call::Read { tenant, task, .. } => Ok(match self.view(*task).filter(|view| view.tenant == *tenant) {
                Some(view) => Answer::Found(Box::new(view)),
                None => Answer::Missing,
            }),
            Call::Stats { tenant, command, .. } => Ok(Answer::Stats(Box::new(self.stats(*tenant, *command)))),
            Call::Begin(begin) => self.begin_operation(begin),
            Call::Turn { tenant, operation, to } => self.turn(*tenant, *operation, *to),
            Call::Step(step) => self.step(step),
            Call::Delete(delete) => self.delete(delete),
            Call::Operations { tenant, .. } => Ok(Answer::Operations(self.operations_of(*tenant))),
        }
    }

    /// Takes note of a token that an answer has shown.
    pub fn learn(&mut self, task: Task, token: &Token) {
        if let Some(Item { stage: Stage::Leased { attempt, index, suffix, .. }, .. }) = self.tasks.get_mut(&task.key)
            && (*attempt, *index) == (token.attempt, token.index)
        {
            suffix.get_or_insert(token.suffix);
        }
    }

    /// The clocks: lease, schedule.
    pub fn clocks(&self) -> (u64, u64) {
        (self.lease, self.schedule)
    }

    /// Whether a claim would find a task.
    pub fn has_work(&self, claim: &Claim) -> bool {
        self.next(claim).is_some()
    }

    /// Whether it would find one in a queue that is paused.
    pub fn has_paused_work(&self, claim: &Claim) -> bool {
        let is_asked =
            |queue: &Queue| queue.0 == claim.tenant && (claim.commands.is_empty() || claim.commands.contains(&queue.1));
        let has_ready = |queue: Queue| {
            (0..10).any(|priority| self.ready.get(&(queue, priority)).is_some_and(|list| !list.is_empty()))
        };
        let paused = self.queues.iter().filter(|(queue, numbers)| numbers.pause.is_some() && is_asked(queue));
        paused.into_iter().any(|(queue, _)| has_ready(*queue))
    }

    /// How many pauses the last entry's clocks have ended.
    pub fn ended_pauses(&self) -> u32 {
        self.ended_pauses
    }

    /// The length of a lease for which so much was asked, ms.
    pub fn length(&self, asked: Option<u64>) -> u64 {
        asked.unwrap_or(self.policy.lease_default).clamp(self.policy.lease_min, self.policy.lease_max)
    }

    /// Every task that can be shown.
    pub fn tasks(&self) -> impl Iterator<Item = View> {
        self.tasks.keys().map(|key| self.view(self.task(*key)).expect("it is there"))
    }

    /// A task as it can be seen.
    pub fn view(&self, task: Task) -> Option<View> {
        let item = self.tasks.get(&task.key).filter(|_| task.shard == self.shard)?;
        let (state, worker, ended_at, result) = match &item.stage {
            Stage::DelayedByLease(_) | Stage::DelayedBySchedule(_) => (State::Delayed, None, None, None),
            Stage::Ready { .. } => (State::Ready, None, None, None),
            Stage::Leased { worker, .. } => (State::Leased, Some(*worker), None, None),
            Stage::Ended { state, at, result, .. } => (*state, None, Some(*at), *result),
        };
        Some(View {
            task,
            tenant: item.tenant,
            command: item.command,
            payload: item.payload,
            priority: item.priority,
            state,
            worker,
            attempts: item.attempts,
            max_attempts: item.max_attempts,
            error: item.error,
            ended_at,
            result,
            webhook: item.webhook,
            key: item.key,
            cancel_requested: item.cancel.is_some(),
        })
    }

    /// When a delayed task becomes ready by the schedule clock, if that is what it waits for.
    pub fn run_at(&self, task: Task) -> Option<u64> {
        match self.tasks.get(&task.key)?.stage {
            Stage::DelayedBySchedule(time) => Some(time),
            _ => None,
        }
    }

    /// Keys whose window is not over.
    pub fn bound(&self) -> impl Iterator<Item = Bound> {
        self.bound.iter().map(|(((tenant, command), key), binding)| {
            let (tenant, command, key) = (*tenant, *command, *key);
            Bound { tenant, command, key, task: self.task(binding.task) }
        })
    }

    /// Every queue that has had a task, with its numbers.
    pub fn queues(&self) -> impl Iterator<Item = Stats> {
        self.queues.keys().map(|(tenant, command)| self.stats(*tenant, *command))
    }

    /// A queue's numbers; zeros for an unknown one.
    pub fn stats(&self, tenant: Name, command: Name) -> Stats {
        let queue = (tenant, command);
        let numbers = self.queues.get(&queue).cloned().unwrap_or_default();
        let length = |priority: u8| self.ready.get(&(queue, priority)).map_or(0, |list| list.len() as u64);
        Stats {
            tenant,
            command,
            ready: std::array::from_fn(|priority| length(priority as u8)),
            delayed: numbers.delayed,
            leased: numbers.leased,
            dead: numbers.dead,
            pause: numbers.pause.map(|(_, reason)| reason),
            totals: numbers.totals,
        }
    }

    fn task(&self, key: u64) -> Task {
        Task { shard: self.shard, key }
    }

    fn item(&mut self, key: u64) -> &mut Item {
        self.tasks.get_mut(&key).expect("the task is there")
    }

    fn numbers(&mut self, key: u64) -> &mut Numbers {
        let item = &self.tasks[&key];
        self.queues.get_mut(&(item.tenant, item.command)).expect("a queue of a task is known")
    }

    /// The key of a task of this tenant that has not ended.
    fn live(&self, tenant: Name, task: Task) -> Option<u64> {
        let item = self.tasks.get(&task.key).filter(|_| task.shard == self.shard)?;
        (item.tenant == tenant && !matches!(item.stage, Stage::Ended { .. })).then_some(task.key)
    }

    /// A queue is known from its first task or pause on.
    fn open(&mut self, queue: Queue) -> &mut Numbers {
        let rank = self.queues.len();
        self.queues.entry(queue).or_insert_with(|| Numbers { rank, ..Numbers::default() })
    }

    // Pauses.

    fn pause(&mut self, queue: Queue, length: Option<u64>, reason: Digest) -> Answer {
        let end = length.map(|length| self.lease.saturating_add(length));
        let numbers = self.open(queue);
        let (rank, before) = (numbers.rank, numbers.pause.replace((end, reason)));
        if let Some((Some(end), _)) = before {
            self.pauses.remove(&(end, rank, queue));
        }
        self.pauses.extend(end.map(|end| (end, rank, queue)));
        Answer::Done
    }

    /// Whatever waits in the queue takes turns with the others again, from the round that is being served.
    fn end_pause(&mut self, queue: Queue) {
        let Some(numbers) = self.queues.get_mut(&queue) else { return };
        let Some((end, _)) = numbers.pause.take() else { return };
        let rank = numbers.rank;
        if let Some(end) = end {
            self.pauses.remove(&(end, rank, queue));
        }
        for priority in 0..10 {
            if self.ready.get(&(queue, priority)).is_some_and(|list| !list.is_empty()) {
                self.join_round(queue, priority);
            }
        }
    }

    /// Ends the pauses whose time is over, as many as an entry may; says how many that were.
    fn end_pauses(&mut self) -> u32 {
        let mut ended = 0;
        while let Some((_, _, queue)) = self.pauses.first().copied().filter(|(end, ..)| *end <= self.lease)
            && ended < self.due_per_entry
        {
            self.end_pause(queue);
            ended += 1;
        }
        ended
    }

    // Ways into and out of a stage.

    /// The task that is due next: by the lease clock first, then by the schedule clock; by time and then by key.
    fn next_due(&self) -> Option<u64> {
        let over = |index: &BTreeSet<(u64, u64)>, now: u64| index.first().filter(|due| due.0 <= now).map(|due| due.1);
        over(&self.due_by_lease, self.lease).or_else(|| over(&self.due_by_schedule, self.schedule))
    }

    fn leave(&mut self, key: u64) {
        let item = &self.tasks[&key];
        let queue = (item.tenant, item.command);
        match item.stage {
            Stage::DelayedByLease(time) => {
                self.due_by_lease.remove(&(time, key));
                self.numbers(key).delayed -= 1;
            }
            Stage::DelayedBySchedule(time) => {
                self.due_by_schedule.remove(&(time, key));
                self.numbers(key).delayed -= 1;
            }
            Stage::Ready { place } => {
                let list = (queue, item.priority);
                self.ready.get_mut(&list).expect("its list is there").remove(&place);
            }
            Stage::Leased { deadline, .. } => {
                self.due_by_lease.remove(&(deadline, key));
                self.numbers(key).leased -= 1;
            }
            Stage::Ended { state, .. } => self.numbers(key).dead -= u64::from(state == State::Dead),
        }
    }

    /// Every way into Ready gives a new place, at the tail. A list that was empty joins the round that is being served.
    fn become_ready(&mut self, key: u64) {
        let place = self.next_place;
        self.next_place += 1;
        let item = self.item(key);
        item.stage = Stage::Ready { place };
        let (queue, priority) = ((item.tenant, item.command), item.priority);
        if self.ready.entry((queue, priority)).or_default().is_empty() {
            self.join_round(queue, priority);
        }
        self.ready.get_mut(&(queue, priority)).expect("it was just made").insert(place, key);
        self.notice(key);
    }

    fn join_round(&mut self, queue: Queue, priority: u8) {
        let served = self.served.get(&(queue.0, priority)).copied().unwrap_or_default();
        let round = self.rounds.entry((queue, priority)).or_default();
        *round = served.max(*round);
    }

    fn become_delayed(&mut self, key: u64, stage: Stage) {
        match stage {
            Stage::DelayedByLease(time) => self.due_by_lease.insert((time, key)),
            Stage::DelayedBySchedule(time) => self.due_by_schedule.insert((time, key)),
            _ => panic!("a delayed task waits for one of the clocks"),
        };
        self.item(key).stage = stage;
        self.numbers(key).delayed += 1;
        self.notice(key);
    }

    fn become_ready_after(&mut self, key: u64, delay: u64) {
        if delay == 0 {
            self.become_ready(key);
        } else {
            let time = self.lease.saturating_add(delay);
            self.become_delayed(key, Stage::DelayedByLease(time));
        }
    }

    /// Ends a task: it is kept for readers with those that end in the same way and at about the same time.
    fn end(&mut self, key: u64, state: State, result: Option<Digest>, error: Digest) {
        self.leave(key);
        let (lease, schedule) = (self.lease, self.schedule);
        let kind = if state == State::Cancelled { State::Failed } else { state };
        let open = self.slices.iter().rposition(|slice| slice.kind == kind && schedule < slice.closes);
        let place = open.unwrap_or_else(|| {
            let closes = schedule.saturating_add((self.kept(kind) / 16).max(1_000));
            self.slices.push(Slice { number: self.next_slice, kind, closes, last_keyed: None, members: Vec::new() });
            self.next_slice += 1;
            self.slices.len() - 1
        });
        let keyed = self.tasks[&key].key.is_some();
        let slice = &mut self.slices[place];
        slice.members.push(key);
        if keyed {
            slice.last_keyed = Some(lease);
        }
        let (slice, at) = (slice.number, self.index);
        let item = self.item(key);
        item.stage = Stage::Ended { state, at, result, slice };
        item.error = error;
        item.cancel = None;
        let numbers = self.numbers(key);
        match state {
            State::Completed => numbers.totals.completed += 1,
            State::Failed => numbers.totals.failed += 1,
            State::Dead => {
                numbers.totals.dead += 1;
                numbers.dead += 1;
            }
            _ => numbers.totals.cancelled += 1,
        }
        self.notice(key);
    }

    fn free_keys(&mut self) {
        let (now, window) = (self.lease, self.policy.idempotency_window);
        while let Some((since, queue, key)) = self.bindings.front().copied()
            && since.saturating_add(window) <= now
        {
            self.bindings.pop_front();
            if self.bound.get(&(queue, key)).is_some_and(|binding| binding.since == since) {
                self.bound.remove(&(queue, key));
            }
        }
    }

    fn kept(&self, kind: State) -> u64 {
        match kind {
            State::Completed => self.policy.completed_kept,
            State::Dead => self.policy.dead_kept,
            _ => self.policy.failed_kept,
        }
    }

    /// Ended tasks go when the last one of their slice has been kept for long enough.
    fn drop_slices(&mut self) {
        let (lease, schedule, window) = (self.lease, self.schedule, self.policy.idempotency_window);
        let over = |model: &Model, slice: &Slice| {
            slice.closes.saturating_add(model.kept(slice.kind)) <= schedule
                && slice.last_keyed.is_none_or(|last| last.saturating_add(window) <= lease)
        };
        if !self.slices.iter().any(|slice| over(self, slice)) {
            return;
        }
        let (gone, kept) = std::mem::take(&mut self.slices).into_iter().partition(|slice| over(self, slice));
        self.slices = kept;
        let gone: Vec<Slice> = gone;
        for slice in gone {
            for key in slice.members {
                // A task that came back and ended again is a member of another slice.
                let here =
                    |item: &Item| matches!(item.stage, Stage::Ended { slice: number, .. } if number == slice.number);
                if self.tasks.get(&key).is_some_and(here) {
                    self.leave(key);
                    self.tasks.remove(&key);
                }
            }
        }
    }

    // Operations.

    fn create(&mut self, create: &Create) -> Result<Answer, Rejection> {
        let queue = (create.tenant, create.command);
        if let Some(binding) = create.key.and_then(|key| self.bound.get(&(queue, key))) {
            let first = self.task(binding.task);
            let same = binding.create == *create;
            return if same { Ok(Answer::Replayed(first)) } else { Err(Rejection::KeyConflict { first }) };
        }
        let key = self.index * 65_536 + self.created;
        self.created += 1;
        if let Some(name) = create.key {
            self.bound.insert((queue, name), Binding { task: key, create: create.clone(), since: self.lease });
            self.bindings.push_back((self.lease, queue, name));
        }
        let max_attempts = create.max_attempts.unwrap_or(self.policy.max_attempts).clamp(1, 1_000_000);
        self.open(queue).totals.created += 1;
        let item = Item {
            tenant: create.tenant,
            command: create.command,
            payload: create.payload,
            webhook: create.webhook,
            key: create.key,
            priority: create.priority.min(9),
            attempts: 0,
            max_attempts,
            error: Digest::EMPTY,
            cancel: None,
            stage: Stage::Ready { place: 0 },
        };
        self.tasks.insert(key, item);
        match create.schedule {
            Schedule::Now => self.become_ready(key),
            Schedule::After(delay) => self.become_ready_after(key, delay),
            Schedule::At(time) if time > self.schedule => self.become_delayed(key, Stage::DelayedBySchedule(time)),
            Schedule::At(_) => self.become_ready(key),
        }
        Ok(Answer::Created { task: self.task(key), max_attempts })
    }

    fn claim(&mut self, claim: &Claim) -> Vec<Grant> {
        let length = self.length(claim.lease);
        let mut grants = Vec::new();
        while grants.len() < usize::from(claim.count) {
            let Some((priority, queue, key)) = self.next(claim) else { break };
            if in_turn(claim) {
                let round = self.rounds[&(queue, priority)];
                let served = self.served.entry((queue.0, priority)).or_default();
                *served = round.max(*served);
                self.rounds.insert((queue, priority), round + 1);
            }
            let deadline = self.lease.saturating_add(length);
            let index = self.index;
            self.leave(key);
            let item = self.item(key);
            item.attempts += 1;
            let attempt = item.attempts;
            item.stage = Stage::Leased { worker: claim.worker, attempt, index, suffix: None, deadline };
            self.due_by_lease.insert((deadline, key));
            let numbers = self.numbers(key);
            numbers.leased += 1;
            numbers.totals.claimed += 1;
            self.notice(key);
            let task = self.view(self.task(key)).expect("it is leased");
            grants.push(Grant { task, token: Token { attempt, index, suffix: 0 }, length });
        }
        grants
    }

    /// The task that a claim gets next: its priority, its queue, itself.
    fn next(&self, claim: &Claim) -> Option<(u8, Queue, u64)> {
        let commands: Vec<Name> = if claim.commands.is_empty() {
            let of_tenant = (claim.tenant, Name(0))..=(claim.tenant, Name(u32::MAX));
            self.queues.range(of_tenant).map(|(queue, _)| queue.1).collect()
        } else {
            claim.commands.clone()
        };
        // The head of each queue.
        let is_open = |queue: &Queue| self.queues.get(queue).is_some_and(|numbers| numbers.pause.is_none());
        let mut heads = commands.iter().filter_map(|command| {
            let queue = Some((claim.tenant, *command)).filter(is_open)?;
            (0..10).rev().find_map(|priority| {
                let (place, key) = self.ready.get(&(queue, priority))?.first_key_value()?;
                Some((priority, queue, *place, *key))
            })
        });
        let round = |priority, queue| if in_turn(claim) { self.rounds[&(queue, priority)] } else { 0 };
        let (priority, queue, _, key) = match claim.order {
            Order::Request if !in_turn(claim) => heads.next(),
            _ => heads.min_by_key(|(priority, queue, place, _)| (9 - priority, round(*priority, *queue), *place)),
        }?;
        Some((priority, queue, key))
    }

    /// The task that the caller holds: its right is the current one, and the lease clock is before the deadline.
    fn held(&self, lease: &Lease) -> Result<u64, Rejection> {
        let key = self.live(lease.tenant, lease.task).ok_or(Rejection::NotLive)?;
        let current = match &self.tasks[&key].stage {
            Stage::Leased { worker, attempt, index, suffix, deadline } if self.lease < *deadline => {
                Some((*worker, *attempt, *index, *suffix))
            }
            _ => None,
        };
        match (lease.by, current) {
            (Right::Token(token), Some((_, attempt, index, suffix)))
                if (attempt, index) == (token.attempt, token.index)
                    && suffix.is_none_or(|suffix| suffix == token.suffix) =>
            {
                Ok(key)
            }
            (Right::Token(_) | Right::Forged, current) => Err(Rejection::LeaseLost { held: current.is_some() }),
            (Right::Worker(caller), Some((worker, ..))) if worker == caller => Ok(key),
            (Right::Worker(_), Some(_)) => Err(Rejection::NotOwner),
            (Right::Worker(_), None) => Err(Rejection::NotLeased),
        }
    }

    fn extend(&mut self, lease: &Lease, length: Option<u64>) -> Result<Answer, Rejection> {
        let key = self.held(lease)?;
        let (now, asked) = (self.lease, self.length(length));
        let item = self.item(key);
        let Stage::Leased { deadline, .. } = &mut item.stage else { panic!("it is held") };
        let before = *deadline;
        *deadline = before.max(now.saturating_add(asked));
        let after = *deadline;
        let cancel_requested = item.cancel.is_some();
        self.due_by_lease.remove(&(before, key));
        self.due_by_lease.insert((after, key));
        Ok(Answer::Extended { remaining: after - now, cancel_requested })
    }

    fn release(&mut self, lease: &Lease) -> Result<Answer, Rejection> {
        let key = self.held(lease)?;
        if let Some(reason) = self.tasks[&key].cancel {
            self.end_cancelled(key, reason);
            return Ok(Answer::Cancelled);
        }
        self.leave(key);
        self.item(key).attempts -= 1;
        self.become_ready(key);
        Ok(Answer::Released)
    }

    fn nack(&mut self, lease: &Lease, delay: Option<u64>, reason: Digest) -> Result<Answer, Rejection> {
        let key = self.held(lease)?;
        let attempts = self.tasks[&key].attempts;
        Ok(match self.attempt_failed(key, delay, reason) {
            Failed::Retried(delay) => Answer::Retried { delay, attempts },
            Failed::Dead => Answer::Deadlettered { attempts },
            Failed::Cancelled => Answer::Cancelled,
        })
    }

    fn attempt_failed(&mut self, key: u64, delay: Option<u64>, error: Digest) -> Failed {
        let item = &self.tasks[&key];
        let (attempts, max_attempts) = (item.attempts, item.max_attempts);
        if let Some(reason) = item.cancel {
            self.end_cancelled(key, reason);
            return Failed::Cancelled;
        }
        if attempts >= max_attempts {
            let error = if error == Digest::EMPTY { Digest::of(b"MAX_ATTEMPTS") } else { error };
            self.end(key, State::Dead, None, error);
            return Failed::Dead;
        }
        let delay = delay.unwrap_or_else(|| self.backoff(key, attempts)).min(self.policy.backoff_max);
        self.leave(key);
        self.item(key).error = error;
        self.become_ready_after(key, delay);
        Failed::Retried(delay)
    }

    /// The policy's delay after delivery number `attempts`. What is drawn is a function of task, attempt and entry.
    fn backoff(&self, key: u64, attempts: u32) -> u64 {
        let Policy { backoff, backoff_base: base, backoff_max: max, .. } = self.policy;
        let doubled = (1..attempts).try_fold(base, |delay, _| delay.checked_mul(2)).unwrap_or(max).min(max);
        let drawn = mix_all(&[self.incarnation, key, u64::from(attempts), self.index]);
        match backoff {
            Backoff::Fixed => base.min(max),
            Backoff::Linear => base.saturating_mul(u64::from(attempts)).min(max),
            Backoff::Exponential => doubled,
            Backoff::ExpEqualJitter => doubled / 2 + scale(drawn, doubled / 2 + 1),
            Backoff::ExpFullJitter => scale(drawn, doubled + 1),
        }
    }

    fn finish(&mut self, by: &Lease, to: State, result: Option<Digest>, error: Digest) -> Result<Answer, Rejection> {
        let key = self.held(by)?;
        let attempt = self.tasks[&key].attempts;
        self.end(key, to, result, error);
        Ok(Answer::Finished { attempt })
    }

    fn cancel(&mut self, tenant: Name, task: Task, reason: Digest, force: bool) -> Result<Answer, Rejection> {
        let key = self.live(tenant, task).ok_or(Rejection::NotLive)?;
        let item = self.item(key);
        if matches!(item.stage, Stage::Leased { .. }) && !force {
            item.cancel.get_or_insert(reason);
            return Ok(Answer::CancelRequested);
        }
        self.end_cancelled(key, reason);
        Ok(Answer::Cancelled)
    }

    fn end_cancelled(&mut self, key: u64, reason: Digest) {
        let reason = if reason == Digest::EMPTY { Digest::of(b"CANCELLED") } else { reason };
        self.end(key, State::Cancelled, None, reason);
    }

    fn redrive(&mut self, redrive: &Redrive) -> Result<Answer, Rejection> {
        if self.live(redrive.tenant, redrive.task).is_some() {
            return Err(Rejection::NotEnded);
        }
        let key = redrive.task.key;
        let here = |item: &&Item| item.tenant == redrive.tenant && redrive.task.shard == self.shard;
        let item = self.tasks.get(&key).filter(here).ok_or(Rejection::NotLive)?;
        match item.stage {
            Stage::Ended { state: State::Completed, .. } => return Err(Rejection::NotLive),
            Stage::Ended { at, .. } if at != redrive.ended_at => return Err(Rejection::RecordChanged),
            _ => {}
        }
        self.leave(key);
        let item = self.item(key);
        if !redrive.keep_attempts {
            item.attempts = 0;
        }
        // With its attempts kept and used up, a task gets one more, for good.
        item.max_attempts = item.max_attempts.max(item.attempts.saturating_add(1));
        item.priority = redrive.priority.unwrap_or(item.priority).min(9);
        item.payload = redrive.payload;
        self.become_ready_after(key, redrive.delay);
        let view = self.view(redrive.task).expect("it is live");
        Ok(Answer::Redriven(Box::new(view)))
    }

    fn edit(&mut self, edit: &Edit) -> Result<Answer, Rejection> {
        let key = self.live(edit.tenant, edit.task).ok_or(Rejection::NotLive)?;
        let (lease, schedule) = (self.lease, self.schedule);
        let item = self.item(key);
        if let Stage::Leased { .. } = item.stage {
            return Err(Rejection::IsLeased);
        }
        if let Some(most) = edit.max_attempts {
            item.max_attempts = most.clamp(1, 1_000_000).max(item.attempts.saturating_add(1));
        }
        item.webhook = edit.webhook.unwrap_or(item.webhook);
        item.payload = edit.payload.unwrap_or(item.payload);
        let priority = edit.priority.unwrap_or(item.priority).min(9);
        if priority != item.priority || edit.schedule.is_some() {
            // What a delayed task waits for stays if no other time is named.
            let waits_for = match (edit.schedule, &item.stage) {
                (None, Stage::DelayedByLease(_) | Stage::DelayedBySchedule(_)) => Some(item.stage.clone()),
                (None | Some(Schedule::Now), _) => None,
                (Some(Schedule::After(delay)), _) => {
                    (delay > 0).then(|| Stage::DelayedByLease(lease.saturating_add(delay)))
                }
                (Some(Schedule::At(time)), _) => (time > schedule).then_some(Stage::DelayedBySchedule(time)),
            };
            self.leave(key);
            self.item(key).priority = priority;
            match waits_for {
                Some(stage) => self.become_delayed(key, stage),
                None => self.become_ready(key),
            }
        }
        Ok(Answer::Edited(Box::new(self.view(edit.task).expect("it is live"))))
    }

    fn amend(&mut self, amend: &Amend) -> Result<Answer, Rejection> {
        if self.live(amend.tenant, amend.task).is_some() {
            return Err(Rejection::NotEnded);
        }
        let (shard, index) = (self.shard, self.index);
        let item = self.tasks.get_mut(&amend.task.key).ok_or(Rejection::NotLive)?;
        if item.tenant != amend.tenant || amend.task.shard != shard {
            return Err(Rejection::NotLive);
        }
        let Stage::Ended { state: State::Dead, at, .. } = &mut item.stage else { return Err(Rejection::NotLive) };
        if *at != amend.ended_at {
            return Err(Rejection::RecordChanged);
        }
        *at = index;
        item.payload = amend.payload;
        item.max_attempts = amend.max_attempts.clamp(1, 1_000_000);
        self.notice(amend.task.key);
        Ok(Answer::Edited(Box::new(self.view(amend.task).expect("it is dead"))))
    }
}

/// Whether the queues that a claim may take from are served in turn.
fn in_turn(claim: &Claim) -> bool {
    claim.commands.is_empty() || claim.order == Order::Fair
}
