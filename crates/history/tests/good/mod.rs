//! Good histories: the reference model answers what clients at random ask for, over two shards, with refusals, answers that get lost,
//! operations that vanish, leaders that change, leases that run out, and an end at which everything is drained.

use base::rng::{SplitMix, mix_all};
use history::model::Model;
use history::record::{
    Amend, Answer, Backoff, Begin, Body, Bulk, Call, Claim, Create, Delete, Digest, Edit, Entry, Event, Export, Held,
    Lease, Level, Line, Logged, Name, NameText, Op, Order, Outcome, Policy, Position, Redrive, Refusal, Right, Run,
    Schedule, Stands, State, Step, Task, Token, View, Work,
};

const SHARDS: u16 = 2;
const CLIENTS: u32 = 12;
const TENANTS: u32 = 2;
/// Names: tenants from 0, queues from 10, workers from 100, keys from 1,000.
const QUEUES: u32 = 4;
const WALL: u64 = 1_700_000_000_000;
/// The model's clocks run by the test clock.
pub(crate) const DRIFT_PPM: u32 = 10_000;

pub(crate) fn policy() -> Policy {
    Policy {
        lease_default: 60,
        lease_min: 10,
        lease_max: 400,
        max_attempts: 3,
        backoff: Backoff::ExpFullJitter,
        backoff_base: 10,
        backoff_max: 80,
        idempotency_window: 300,
        completed_kept: 2_000,
        failed_kept: 3_000,
        dead_kept: 4_000,
    }
}

fn run() -> Run {
    Run {
        reproduce: "none".into(),
        shards: SHARDS,
        incarnation: 0x1234_5678_9abc,
        drift_ppm: DRIFT_PPM,
        due_per_entry: 3,
        policy: policy(),
        operations_min: 10,
        healed: None,
    }
}

struct Shard {
    model: Model,
    index: u64,
    term: u32,
    /// The lease clock stands still when nobody leads.
    lost: u64,
    pending: Vec<Pending>,
    /// Operations on many tasks, the entries that began them, and the keys of the tasks that they have met last.
    many: Vec<(Begin, u64, u64)>,
}

/// An operation that its client waits for.
#[derive(Clone)]
struct Pending {
    number: u64,
    client: u32,
    t0: u64,
    call: Call,
}

#[derive(Default)]
struct Client {
    busy: bool,
    /// Grants it knows of, among them closed ones.
    grants: Vec<(Task, Name, Token, u64)>,
    /// The grant that it gave back or ended last.
    closed: Option<(Task, Name, Token, u64)>,
    session: u32,
}

struct World<'a> {
    rng: SplitMix,
    now: u64,
    number: u64,
    shards: Vec<Shard>,
    clients: Vec<Client>,
    /// Tasks that somebody has heard of, with their tenant.
    tasks: Vec<(Task, Name)>,
    draining: bool,
    sink: &'a mut dyn FnMut(Line),
}

/// Hands the lines of a good history to `sink`: about so many operations, and the same for the same seed.
pub(crate) fn good(seed: u64, operations: u64, sink: &mut dyn FnMut(Line)) {
    let shards = (0..SHARDS).map(|shard| Shard {
        model: Model::new(shard, &run()),
        index: 1,
        term: 1,
        lost: 0,
        pending: Vec::new(),
        many: Vec::new(),
    });
    let mut world = World {
        rng: SplitMix::new(seed),
        now: 1_000_000,
        number: 0,
        shards: shards.collect(),
        clients: (0..CLIENTS).map(|_| Client::default()).collect(),
        tasks: Vec::new(),
        draining: false,
        sink,
    };
    for (name, text) in [(0, "acme"), (1, "other"), (10, "mail"), (11, "scan"), (12, "sort"), (13, "bill")] {
        (world.sink)(Line::Name(NameText { name: Name(name), text: text.into() }));
    }
    while world.number < operations {
        world.turn();
    }
    world.draining = true;
    let healed = world.now + 1;
    (world.sink)(Line::Note(Event { t: healed, what: "healed".into() }));
    (world.sink)(Line::Run(Box::new(Run { healed: Some(healed), ..run() })));
    while world.is_live() {
        world.turn();
    }
    world.export();
}

impl World<'_> {
    fn chance(&mut self, percent: u64) -> bool {
        self.rng.below(100) < percent
    }

    fn is_live(&self) -> bool {
        let waits = |stats: history::record::Stats| stats.delayed + stats.leased + stats.ready.iter().sum::<u64>() > 0;
        let goes_on = |shard: &Shard| shard.model.operations().any(|progress| progress.stands == Stands::Running);
        self.shards.iter().any(|shard| !shard.pending.is_empty() || goes_on(shard) || shard.model.queues().any(waits))
    }

    /// Time passes, clients ask, and each shard answers some.
    fn turn(&mut self) {
        self.now += 100 + self.rng.below(3_000);
        for client in 0..CLIENTS {
            if !self.clients[client as usize].busy && self.chance(30) {
                self.ask(client);
            }
        }
        for shard in 0..SHARDS {
            if !self.draining && self.chance(1) {
                self.change_leader(shard);
            } else if self.chance(60) {
                self.answer_some(shard);
            } else if self.chance(50) {
                self.step_some(shard);
            }
        }
    }

    fn ask(&mut self, client: u32) {
        let (shard, call) = self.something(client);
        self.number += 1;
        let pending = Pending { number: self.number, client, t0: self.now, call };
        self.clients[client as usize].busy = true;
        self.shards[usize::from(shard)].pending.push(pending);
    }

    /// What a client asks for, and of which shard: queues with even numbers stand on the first.
    fn something(&mut self, client: u32) -> (u16, Call) {
        let tenant = Name(client % TENANTS);
        let command = 10 + self.rng.below(u64::from(QUEUES)) as u32;
        let shard = (command % u32::from(SHARDS)) as u16;
        let command = Name(command);
        let what = self.rng.below(100);
        match what {
            _ if self.draining && what < 45 => {}
            0..35 => {
                let schedule = match self.rng.below(8) {
                    0 => Schedule::After(self.rng.below(60)),
                    1 => Schedule::At(WALL + self.now / 1_000 + self.rng.below(100) - 30),
                    _ => Schedule::Now,
                };
                let keyed = self.chance(25);
                let key = keyed.then(|| Name(1_000 + self.rng.below(20) as u32));
                let payload = match key {
                    Some(key) => [u64::from(key.0), self.rng.below(10) / 9],
                    None => [self.number + 1, u64::from(tenant.0)],
                };
                let create = Create {
                    tenant,
                    command,
                    priority: self.rng.below(3) as u8 * 4,
                    payload: Digest::of(payload.map(u64::to_le_bytes).as_flattened()),
                    schedule: if keyed { Schedule::Now } else { schedule },
                    webhook: Digest::EMPTY,
                    max_attempts: (!keyed && self.chance(30)).then(|| 1 + self.rng.below(4) as u32),
                    key,
                };
                return (shard, Call::Create(if keyed { Create { priority: 4, ..create } } else { create }));
            }
            35..42 => {
                if let Some((task, tenant)) = self.known_task() {
                    let level = match self.rng.below(3) {
                        0 => Level::Stale,
                        1 => Level::AtLeast(1 + self.rng.below(self.shards[usize::from(task.shard)].index)),
                        _ => Level::Linearizable,
                    };
                    return (task.shard, Call::Read { tenant, task, level });
                }
            }
            42 => return (shard, Call::Stats { tenant, command, level: Level::Linearizable }),
            43 => return (shard, Call::Operations { tenant, level: Level::Linearizable }),
            44..47 => {
                if let Some((task, tenant)) = self.known_task() {
                    let reason = Digest::of(&(self.number + 1).to_le_bytes());
                    return (task.shard, Call::Cancel { tenant, task, reason, force: self.chance(30) });
                }
            }
            47..50 if !self.draining => {
                if let Some((task, tenant)) = self.known_task() {
                    if self.chance(30) {
                        let payload = Digest::of(&(self.number + 1).to_le_bytes());
                        let max_attempts = 1 + self.rng.below(5) as u32;
                        return (task.shard, Call::Amend(Amend { tenant, task, ended_at: 0, payload, max_attempts }));
                    }
                    // Whoever asks has read the task, and may want another payload.
                    let own = self.shards[usize::from(task.shard)].model.view(task).map(|view| view.payload);
                    let another = Digest::of(&(self.number + 1).to_le_bytes());
                    let redrive = Redrive {
                        payload: own.filter(|_| self.chance(70)).unwrap_or(another),
                        tenant,
                        task,
                        ended_at: 0,
                        keep_attempts: self.chance(40),
                        delay: self.rng.below(3) * 5,
                        priority: self.chance(20).then_some(8),
                    };
                    return (task.shard, Call::Redrive(redrive));
                }
            }
            50..52 if self.draining => return (shard, Call::Resume { tenant, command }),
            54 if !self.draining => return (shard, self.some_many(shard, tenant, command)),
            50 if self.chance(50) => return (shard, Call::Resume { tenant, command }),
            50 | 51 => {
                let length = self.chance(50).then(|| self.rng.below(60));
                let reason = Digest::of(&(self.number + 1).to_le_bytes());
                return (shard, Call::Pause { tenant, command, length, reason });
            }
            52..54 if !self.draining => {
                if let Some((task, tenant)) = self.known_task() {
                    let schedule = match self.rng.below(6) {
                        0 => Some(Schedule::Now),
                        1 => Some(Schedule::After(self.rng.below(60))),
                        2 => Some(Schedule::At(WALL + self.now / 1_000 + self.rng.below(60))),
                        _ => None,
                    };
                    let edit = Edit {
                        tenant,
                        task,
                        priority: self.chance(30).then(|| self.rng.below(12) as u8),
                        schedule,
                        payload: self.chance(30).then(|| Digest::of(&(self.number + 1).to_le_bytes())),
                        max_attempts: self.chance(20).then(|| self.rng.below(4) as u32),
                        webhook: self.chance(20).then(|| Digest::of(b"http://a/")),
                    };
                    return (task.shard, Call::Edit(edit));
                }
            }
            50..75 => {
                if let Some(call) = self.on_lease(client) {
                    return call;
                }
            }
            _ => {}
        }
        let commands = match self.rng.below(4) {
            0 => vec![],
            1 => vec![command, Name((command.0 - 10 + 2) % QUEUES + 10)],
            _ => vec![command],
        };
        let order = [Order::Request, Order::Priority, Order::Fair][self.rng.below(3) as usize];
        let order = if commands.is_empty() { Order::Fair } else { order };
        let lease = self.chance(50).then(|| 5 + self.rng.below(300));
        let count = 1 + self.rng.below(4) as u8;
        (shard, Call::Claim(Box::new(Claim { tenant, worker: worker(client), commands, order, count, lease })))
    }

    fn known_task(&mut self) -> Option<(Task, Name)> {
        let recent = self.tasks.len().saturating_sub(200);
        let range = self.tasks.len() - recent;
        if range == 0 {
            return None;
        }
        let (task, tenant) = self.tasks[recent + self.rng.below(range as u64) as usize];
        // Now and then somebody asks for another tenant's.
        Some((task, if self.chance(5) { Name(1 - tenant.0) } else { tenant }))
    }

    /// Something about many tasks: an operation begins, stops or goes on.
    fn some_many(&mut self, shard: u16, tenant: Name, command: Name) -> Call {
        let known: Vec<u64> = self.shards[usize::from(shard)].model.operations().map(|of| of.operation).collect();
        if !known.is_empty() && self.chance(50) {
            let operation = known[self.rng.below(known.len() as u64) as usize];
            let to = if self.chance(40) { Stands::Stopped } else { Stands::Running };
            return Call::Turn { tenant, operation, to };
        }
        let (does, states) = match self.rng.below(4) {
            0 => {
                let (keep_attempts, delay) = (self.chance(50), self.rng.below(3) * 5);
                (Bulk::Redrive { keep_attempts, delay, priority: None }, vec![State::Dead])
            }
            1 => (Bulk::PurgeDead, vec![State::Dead]),
            2 => (Bulk::Purge, vec![State::Delayed, State::Ready]),
            _ => {
                let reason = Digest::of(b"many");
                let states = vec![State::Delayed, State::Ready, State::Leased];
                (Bulk::Cancel { reason, force: self.chance(30) }, states)
            }
        };
        let priority = self.chance(20).then_some((0, 4));
        Call::Begin(Box::new(Begin {
            tenant,
            operation: self.number + 1,
            does,
            commands: if self.chance(60) { vec![command] } else { vec![] },
            states,
            attempts: None,
            priority,
            dry_run: self.chance(20),
            all: priority.is_none(),
        }))
    }

    /// Whoever leads takes the next steps of operations on many tasks, now and then twice.
    fn step_some(&mut self, shard: u16) {
        for place in 0..self.shards[usize::from(shard)].many.len() {
            let this = &self.shards[usize::from(shard)];
            let (begin, begun, met) = this.many[place].clone();
            let progress = this.model.operations().find(|progress| progress.operation == begin.operation);
            let Some(progress) = progress.filter(|progress| progress.stands == Stands::Running) else { continue };
            let means = |view: &View| {
                let since = view.ended_at.unwrap_or(view.task.key / 65_536);
                view.task.key > met
                    && since < begun
                    && view.tenant == begin.tenant
                    && (begin.commands.is_empty() || begin.commands.contains(&view.command))
                    && begin.states.contains(&view.state)
                    && begin.priority.is_none_or(|(least, most)| (least..=most).contains(&view.priority))
            };
            let mut met: Vec<View> = this.model.tasks().filter(means).collect();
            let last = met.len() <= 3;
            met.truncate(3);
            let step = Step {
                tenant: begin.tenant,
                operation: begin.operation,
                after: progress.steps,
                last,
                items: if begin.dry_run { vec![] } else { met.iter().filter_map(|view| item(&begin, view)).collect() },
                counted: if begin.dry_run { met.len() as u64 } else { 0 },
                samples: if begin.dry_run { met.iter().map(|view| view.task).collect() } else { vec![] },
            };
            if let Some(view) = met.last() {
                self.shards[usize::from(shard)].many[place].2 = view.task.key;
            }
            let logged = Logged { number: 0, part: 0, call: Call::Step(Box::new(step)) };
            let times = if self.chance(10) { 2 } else { 1 };
            let body = self.body(shard, vec![logged; times]);
            let this = &mut self.shards[usize::from(shard)];
            this.model.begin(this.index + 1, body.lease, body.schedule);
            body.operations.iter().for_each(|logged| drop(this.model.apply(&logged.call)));
            self.log(shard, Some(&body));
        }
    }

    /// Something about a lease that the client has, or had.
    fn on_lease(&mut self, client: u32) -> Option<(u16, Call)> {
        let known = self.clients[client as usize].grants.len();
        if known == 0 {
            return None;
        }
        let place = self.rng.below(known as u64) as usize;
        // Now and then one comes again with what it has closed.
        let again = self.clients[client as usize].closed.take().filter(|_| self.rng.one_in(4));
        let grant @ (task, tenant, token, t1) = again.unwrap_or(self.clients[client as usize].grants[place]);
        let by = match self.rng.below(20) {
            0 => Right::Forged,
            1 | 2 => Right::Worker(worker(client)),
            _ => Right::Token(token),
        };
        let lease = Lease { tenant, task, by };
        let text = Digest::of(&(self.number + 1).to_le_bytes());
        let (call, closes) = match self.rng.below(if self.draining { 6 } else { 12 }) {
            0..6 => (Call::Complete { lease, result: text, error: Digest::EMPTY }, true),
            6 => (Call::Fail { lease, result: self.chance(50).then_some(text), error: text }, true),
            7 | 8 => (Call::Nack { lease, delay: self.chance(50).then(|| self.rng.below(40)), reason: text }, true),
            9 => (Call::Release { lease }, true),
            _ => (Call::Extend { lease, length: self.chance(60).then(|| self.rng.below(200)) }, false),
        };
        if closes {
            (self.sink)(Line::Work(Work { worker: worker(client), task, token, from: t1, to: t1 + 1 }));
            self.clients[client as usize].closed = Some(grant);
            if again.is_none() && !self.chance(8) {
                self.clients[client as usize].grants.swap_remove(place);
            }
        }
        Some((task.shard, call))
    }

    /// Another leader: an entry that says nothing, and sometimes one of the old leader's that came too late.
    fn change_leader(&mut self, shard: u16) {
        self.shards[usize::from(shard)].term += 1;
        self.log(shard, None);
        if self.chance(50)
            && let Some(pending) = self.shards[usize::from(shard)].pending.pop()
        {
            let logged = self.logged(&pending);
            let late = self.body(shard, vec![logged]);
            self.log(shard, Some(&Body { proposed_in: late.proposed_in - 1, ..late }));
            self.end(pending, Outcome::Unknown);
        }
        (self.sink)(Line::Fault(Event { t: self.now, what: format!("shard {shard} gets another leader") }));
    }

    fn body(&mut self, shard: u16, operations: Vec<Logged>) -> Body {
        let this = &mut self.shards[usize::from(shard)];
        let (lease, schedule) = (self.now / 1_000 - this.lost, WALL + self.now / 1_000);
        Body { proposed_in: this.term, lease, schedule, operations }
    }

    fn log(&mut self, shard: u16, body: Option<&Body>) {
        let this = &mut self.shards[usize::from(shard)];
        this.index += 1;
        let (index, term) = (this.index, this.term);
        let digest = Digest(mix_all(&[u64::from(shard), index, u64::from(term)]));
        (self.sink)(Line::Log(Box::new(Entry { node: 1, shard, index, term, digest, body: body.cloned() })));
        (self.sink)(Line::Held(Held { node: 2, shard, index, term, digest }));
        // The third node once got a snapshot.
        if index > 20 {
            (self.sink)(Line::Held(Held { node: 3, shard, index, term, digest }));
        }
    }

    fn logged(&self, pending: &Pending) -> Logged {
        let mut call = pending.call.clone();
        if let Call::Redrive(Redrive { task, ended_at, .. }) | Call::Amend(Amend { task, ended_at, .. }) = &mut call {
            let model = &self.shards[usize::from(task.shard)].model;
            *ended_at = model.view(*task).and_then(|view| view.ended_at).unwrap_or_default();
        }
        let named = match &call {
            Call::Create(create) => create.key.is_none(),
            Call::Nack { .. } | Call::Complete { .. } | Call::Fail { .. } | Call::Cancel { .. } => true,
            Call::Pause { .. } | Call::Begin(_) => true,
            Call::Edit(edit) => edit.payload.is_some(),
            _ => false,
        };
        Logged { number: if named { pending.number } else { 0 }, part: 0, call }
    }

    /// Forms an entry of what waits, and answers questions from the state behind it.
    fn answer_some(&mut self, shard: u16) {
        let mut pending = std::mem::take(&mut self.shards[usize::from(shard)].pending);
        let later = pending.split_off(pending.len().min(8));
        self.shards[usize::from(shard)].pending = later;
        let (mut writes, mut questions) = (Vec::new(), Vec::new());
        for pending in pending {
            let is_question = matches!(pending.call, Call::Read { .. } | Call::Stats { .. } | Call::Operations { .. });
            if !self.draining && self.chance(3) {
                let refusal = [Refusal::NoLeader, Refusal::Overloaded, Refusal::TooStale][self.rng.below(3) as usize];
                self.end(pending, Outcome::Refused(refusal));
            } else if !self.draining && self.chance(2) {
                self.end(pending, Outcome::Unknown);
            } else if is_question {
                questions.push(pending);
            } else {
                writes.push(pending);
            }
        }
        // With nothing to write an entry only lets time pass.
        let operations: Vec<Logged> = writes.iter().map(|pending| self.logged(pending)).collect();
        if !operations.is_empty() || self.chance(20) {
            self.entry(shard, writes, operations);
        }
        for pending in questions {
            let answer = self.shards[usize::from(shard)].model.apply(&pending.call);
            self.answered(shard, pending, answer);
        }
    }

    fn entry(&mut self, shard: u16, writes: Vec<Pending>, operations: Vec<Logged>) {
        // A claim that would find nothing is often answered without the log.
        let body = self.body(shard, operations);
        let this = &mut self.shards[usize::from(shard)];
        let index = this.index + 1;
        this.model.begin(index, body.lease, body.schedule);
        let (mut kept, mut without) = (Vec::new(), Vec::new());
        for (pending, logged) in writes.into_iter().zip(body.operations) {
            let this = &self.shards[usize::from(shard)];
            let empty = matches!(&pending.call, Call::Claim(claim) if !this.model.has_work(claim));
            if empty && self.chance(60) {
                without.push(pending);
                continue;
            }
            let mut answer = self.shards[usize::from(shard)].model.apply(&logged.call);
            if let (Call::Begin(begin), Answer::Done) = (&logged.call, &answer) {
                self.shards[usize::from(shard)].many.push(((**begin).clone(), index, 0));
            }
            if let Answer::Claimed(grants) = &mut answer {
                for (rank, grant) in grants.iter_mut().enumerate() {
                    grant.token.suffix = mix_all(&[u64::from(shard), index, kept.len() as u64, rank as u64]);
                    self.shards[usize::from(shard)].model.learn(grant.task.task, &grant.token);
                }
            }
            kept.push((logged, pending, answer));
        }
        let operations = kept.iter().map(|(logged, ..)| logged.clone()).collect();
        self.log(shard, Some(&Body { operations, ..body }));
        for (_, pending, answer) in kept {
            if !self.draining && self.chance(3) {
                let outcome = if self.chance(20) { Outcome::Silent } else { Outcome::Unknown };
                self.end(pending, outcome);
            } else {
                self.answered(shard, pending, answer);
            }
        }
        for pending in without {
            let empty = match &pending.call {
                Call::Claim(claim) => !self.shards[usize::from(shard)].model.has_work(claim),
                _ => false,
            };
            if empty {
                self.answered(shard, pending, Answer::Claimed(Box::default()));
            } else {
                self.shards[usize::from(shard)].pending.push(pending);
            }
        }
    }

    fn answered(&mut self, shard: u16, pending: Pending, answer: Answer) {
        let this = &self.shards[usize::from(shard)];
        let at = Position { shard, term: this.term, index: this.index };
        let client = pending.client as usize;
        match &answer {
            Answer::Created { task, .. } => {
                if let Call::Create(create) = &pending.call {
                    self.tasks.push((*task, create.tenant));
                }
            }
            Answer::Claimed(grants) => {
                for grant in grants {
                    let known = (grant.task.task, grant.task.tenant, grant.token, self.now);
                    self.clients[client].grants.push(known);
                }
                let known = self.clients[client].grants.len();
                self.clients[client].grants.drain(..known.saturating_sub(30));
            }
            _ => {}
        }
        self.end(pending, Outcome::Answered { at, answer });
    }

    /// The client hears what came of it.
    fn end(&mut self, pending: Pending, outcome: Outcome) {
        let client = &mut self.clients[pending.client as usize];
        client.busy = false;
        let session = client.session;
        if self.rng.one_in(50) {
            self.clients[pending.client as usize].session += 1;
        }
        let op = Op {
            number: pending.number,
            part: 0,
            client: pending.client,
            session,
            node: 1 + (pending.number % 3) as u16,
            t0: pending.t0,
            t1: Some(self.now),
            call: pending.call,
            outcome,
        };
        (self.sink)(Line::Op(Box::new(op)));
    }

    fn export(&mut self) {
        for shard in 0..SHARDS {
            let this = &self.shards[usize::from(shard)];
            let export = Export {
                node: 0,
                at: Position { shard, term: this.term, index: this.index },
                tasks: this.model.tasks().collect(),
                keys: this.model.bound().collect(),
                queues: this.model.queues().collect(),
                operations: this.model.operations().collect(),
            };
            assert!(export.tasks.iter().all(|view| view.state >= State::Completed), "everything is drained");
            for node in 1..=3 {
                (self.sink)(Line::Export(Box::new(Export { node, ..export.clone() })));
            }
        }
    }
}

/// What an operation on many tasks does to one.
fn item(begin: &Begin, view: &View) -> Option<Call> {
    let (tenant, task) = (begin.tenant, view.task);
    Some(match begin.does {
        Bulk::Redrive { keep_attempts, delay, priority } => {
            let (ended_at, payload) = (view.ended_at.unwrap_or_default(), view.payload);
            Call::Redrive(Redrive { tenant, task, ended_at, keep_attempts, delay, priority, payload })
        }
        Bulk::PurgeDead | Bulk::Purge => Call::Delete(Delete { tenant, task, ended_at: view.ended_at, key: view.key }),
        Bulk::Cancel { force: false, .. } if view.cancel_requested => return None,
        Bulk::Cancel { reason, force } => Call::Cancel { tenant, task, reason, force },
    })
}

fn worker(client: u32) -> Name {
    Name(100 + client)
}
