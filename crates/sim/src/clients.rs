//! Who uses the cluster: producers, workers of every kind, readers, those who cancel and bring back, and operators.
//!
//! A client does one thing at a time. Payloads, reasons and the names of workers carry the number of their operation, so that the log tells
//! which of those whose outcome nobody knows have happened.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use base::rng::{SplitMix, mix_all};
use base::rows::RowWriter;
use base::{Index, Millis, ScheduleTime, ShardId};
use history::record::{Call, Level, Line, Work};
use queue::id::shard_of;
use queue::listing::{Order, Search};
use queue::op::{
    Amend, Begin, Claim, ClaimOrder, Create, Credential, Edit, IdempotencyKey, LeaseRef, Redrive, Schedule,
};
use queue::operations::{OperationId, OperationKind, OperationState};
use queue::search::Filter;
use queue::steps::Plan;
use queue::{LeaseToken, Op, Outcome, Payload, Query, State, TaskId, TaskView, codec, idempotency, record as rows};
use replica::{Freshness, Operations};

use crate::bulk::DRIVERS;
use crate::clock::EPOCH_MS;
use crate::edge::{Asked, Request, Told};
use crate::lists::List;
use crate::network::happens;
use crate::options::Options;
use crate::record;
use crate::world::{Event, World};

/// Tasks that readers and others remember.
const KNOWN_MAX: usize = 400;

/// Operations on many tasks that operators remember.
const MANY_MAX: usize = 20;

/// How a worker behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Reports in time.
    Honest,
    /// Reports when its lease is over.
    Slow,
    /// Never reports.
    Dying,
    /// Reports long after.
    Zombie,
    /// Reports twice.
    Double,
    /// Extends again and again.
    Extending,
    /// Shows no token, only its name.
    Tokenless,
}

/// What a producer sends.
#[derive(Clone, Debug)]
struct Draft {
    tenant: String,
    command: String,
    priority: u8,
    payload: Vec<u8>,
    schedule: Schedule,
    max_attempts: Option<u32>,
    key: Option<String>,
}

/// What a worker does with a task it holds.
#[derive(Clone, Debug)]
struct Action {
    tenant: Arc<str>,
    id: TaskId,
    token: LeaseToken,
    worker: String,
    length: u64,
    what: What,
    /// Times that it has failed to say so.
    tries: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Complete,
    Fail,
    Nack,
    Release,
    /// So many times more.
    Extend(u32),
}

enum Kind {
    Producer {
        again: Option<(Vec<Draft>, u32)>,
    },
    Worker {
        style: Style,
        actions: BTreeMap<(u64, u64), Action>,
        doing: Option<Action>,
    },
    /// With the page that comes next, if it reads a list.
    Reader {
        next: Option<(ShardId, Box<List>)>,
    },
    Meddler {
        wanted: Option<Rc<TaskView>>,
    },
    /// With the operation on many tasks of which it does not know whether it has begun, and the queue that is resumed next, when all is
    /// healed.
    Operator {
        again: Option<Many>,
        next: u64,
    },
}

/// An operation on many tasks, as somebody has asked for it.
#[derive(Clone)]
struct Many {
    tenant: String,
    shard: ShardId,
    id: OperationId,
}

struct Client {
    kind: Kind,
    session: u32,
    busy: bool,
    /// What its session has seen, by shard.
    seen: BTreeMap<u16, u64>,
}

/// All clients of a run.
pub struct Clients {
    list: Vec<Client>,
    rng: SplitMix,
    known: Vec<(String, TaskId)>,
    /// Operations on many tasks that somebody has asked for last.
    many: VecDeque<Many>,
    /// Operations that were answered.
    pub(crate) finished: u64,
    /// Operations asked for.
    pub(crate) asked: u64,
    /// There is more to do than usual, until then.
    pub(crate) overload_until: u64,
    /// Nobody asks for anything until the heal.
    pub(crate) idle: bool,
    order: u64,
    keys: u64,
    /// Tasks that somebody has wanted to end whoever holds them: their holders are not alone, and do not know it.
    pub(crate) forced: BTreeSet<TaskId>,
}

impl Clients {
    /// Clients as the options want them.
    pub fn new(seed: u64, options: &Options) -> Clients {
        let mut rng = SplitMix::new(mix_all(&[seed, 2]));
        let mut list = Vec::new();
        let mut add = |kind| list.push(Client { kind, session: 0, busy: false, seen: BTreeMap::new() });
        (0..options.producers).for_each(|_| add(Kind::Producer { again: None }));
        for place in 0..options.workers {
            let bad = place > 0 && happens(&mut rng, options.bad_workers);
            let styles = [Style::Slow, Style::Dying, Style::Zombie, Style::Double, Style::Extending, Style::Tokenless];
            let style = if bad { styles[rng.below(styles.len() as u64) as usize] } else { Style::Honest };
            add(Kind::Worker { style, actions: BTreeMap::new(), doing: None });
        }
        (0..options.readers).for_each(|_| add(Kind::Reader { next: None }));
        (0..options.meddlers).for_each(|_| add(Kind::Meddler { wanted: None }));
        (0..options.operators).for_each(|_| add(Kind::Operator { again: None, next: 0 }));
        Clients {
            list,
            rng,
            known: Vec::new(),
            many: VecDeque::new(),
            finished: 0,
            asked: 0,
            overload_until: 0,
            idle: false,
            order: 0,
            keys: 0,
            forced: BTreeSet::new(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.list.len()
    }
}

fn payload(number: u64, part: usize, rng: &mut SplitMix) -> Vec<u8> {
    let most = if rng.one_in(10) { 4_000 } else { 60 };
    let size = rng.below(most) as usize;
    format!("\"n={number}.{part} {:016x} {}\"", rng.next_u64(), "x".repeat(size)).into_bytes()
}

fn create(draft: &Draft) -> Op<'_> {
    let (priority, max_attempts) = (draft.priority, draft.max_attempts);
    let key = draft.key.as_ref().map(|text| IdempotencyKey {
        text,
        scope: idempotency::scope_digest(&draft.tenant, &draft.command, text),
        body: idempotency::body_digest(&draft.payload, priority, "", max_attempts, &draft.schedule),
    });
    Op::Create(Create {
        tenant: &draft.tenant,
        command: &draft.command,
        priority,
        payload: &draft.payload,
        schedule: draft.schedule,
        webhook: "",
        max_attempts,
        key,
    })
}

impl World {
    /// Lets all clients begin.
    pub(crate) fn start_clients(&mut self) {
        for client in 0..self.clients.count() {
            let delay = self.clients.rng.below(self.options.pace_ms * 2_000 + 1);
            self.after(delay, Event::Client(client));
        }
    }

    /// Lets all clients go on with nothing under way: what they had asked for was written down as open.
    pub(crate) fn begin_clients_anew(&mut self) {
        for client in 0..self.clients.count() {
            let state = &mut self.clients.list[client];
            state.busy = false;
            if let Kind::Worker { actions, doing, .. } = &mut state.kind {
                actions.clear();
                *doing = None;
            }
            self.after(1_000, Event::Client(client));
        }
    }

    fn pause(&mut self) -> u64 {
        // Whoever finishes what is left does not dawdle.
        let pace = if self.healed.is_some() { 20_000 } else { self.options.pace_ms * 2_000 };
        let pace = if self.time < self.clients.overload_until { pace / 20 } else { pace };
        self.clients.rng.below(pace + 1)
    }

    /// A client has nothing under way.
    pub(crate) fn on_client(&mut self, client: usize) {
        if self.clients.list[client].busy {
            return;
        }
        if self.clients.rng.one_in(200) {
            self.clients.list[client].session += 1;
            self.clients.list[client].seen.clear();
        }
        let drains = self.healed.is_some();
        if self.clients.idle && !drains {
            return self.after(100_000, Event::Client(client));
        }
        let acted = match &self.clients.list[client].kind {
            Kind::Producer { .. } => !drains && self.produce(client),
            Kind::Worker { .. } => self.work(client),
            Kind::Reader { .. } => !drains && self.read(client),
            Kind::Meddler { .. } => !drains && self.meddle(client),
            Kind::Operator { .. } => self.operate(client),
        };
        if !acted {
            let pause = self.pause().max(1_000);
            self.after(pause, Event::Client(client));
        }
    }

    fn queue_name(&mut self) -> (String, String) {
        let tenant = self.clients.rng.below(self.options.tenants);
        let queue = self.clients.rng.below(self.options.queues);
        (format!("t{tenant}"), format!("q{queue}"))
    }

    fn shard_of(&self, tenant: &str, command: &str) -> ShardId {
        shard_of(tenant, command, self.options.shards as u16)
    }

    fn submit(&mut self, client: usize, shard: ShardId, ops: &[Op<'_>], number: u64, wait: Option<u64>) {
        let mut operations = Operations::default();
        let mut calls = Vec::new();
        for op in ops {
            operations.push(|bytes| codec::encode(op, bytes));
            let call = record::call(&mut self.names, shard.0, op);
            // Whoever redrives or changes the dead does not know the entry that its edge has read.
            let call = match call {
                Call::Redrive(redrive) => Call::Redrive(history::record::Redrive { ended_at: 0, ..redrive }),
                Call::Amend(amend) => Call::Amend(history::record::Amend { ended_at: 0, ..amend }),
                call => call,
            };
            calls.push(call);
        }
        self.begin(client, shard, calls, Asked::Operations(operations, wait), number);
    }

    fn begin(&mut self, client: usize, shard: ShardId, calls: Vec<Call>, asked: Asked, number: u64) {
        let state = &mut self.clients.list[client];
        state.busy = true;
        self.clients.asked += 1;
        let session = self.clients.list[client].session;
        let node = self.clients.rng.below(self.nodes.len() as u64) as usize;
        // Nodes that never joined are asked rarely: nobody has their address.
        let founders = self.options.nodes;
        let node = if self.nodes[node].process().is_some() { node } else { self.clients.rng.below(founders) as usize };
        self.ask((client, session), node, shard, calls, asked, number);
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    // Producers.

    fn produce(&mut self, client: usize) -> bool {
        let number = self.number();
        let Kind::Producer { again } = &mut self.clients.list[client].kind else { return false };
        let (drafts, tries) = match again.take() {
            Some(again) => again,
            None => (self.drafts(number), 0),
        };
        let shard = self.shard_of(&drafts[0].tenant, &drafts[0].command);
        let ops: Vec<Op<'_>> = drafts.iter().map(create).collect();
        self.submit(client, shard, &ops, number, None);
        if let Kind::Producer { again } = &mut self.clients.list[client].kind {
            *again = Some((drafts, tries + 1));
        }
        true
    }

    fn drafts(&mut self, number: u64) -> Vec<Draft> {
        let (tenant, command) = self.queue_name();
        let options = &self.options;
        let time = self.time;
        let clients = &mut self.clients;
        let rng = &mut clients.rng;
        let count = if options.batch > 1 && rng.one_in(4) { 1 + rng.below(options.batch) } else { 1 };
        let mut drafts = Vec::new();
        for part in 0..count as usize {
            let key = happens(rng, options.keyed).then(|| {
                clients.keys += 1;
                // Some keys are used by several.
                let key = if rng.one_in(10) { rng.below(5) } else { clients.keys + 5 };
                format!("k{key}")
            });
            let schedule = match happens(rng, options.delayed) {
                false => Schedule::Now,
                true if rng.one_in(3) => {
                    let wall = EPOCH_MS + time / 1_000;
                    Schedule::At(ScheduleTime(wall + rng.below(options.delay_ms + 1)))
                }
                true => Schedule::After(Millis(rng.below(options.delay_ms + 1))),
            };
            drafts.push(Draft {
                tenant: tenant.clone(),
                command: command.clone(),
                priority: if rng.one_in(3) { rng.below(10) as u8 } else { 5 },
                payload: payload(number, part, rng),
                schedule,
                max_attempts: rng.one_in(5).then(|| 1 + rng.below(4) as u32),
                key,
            });
        }
        drafts
    }

    // Workers.

    fn work(&mut self, client: usize) -> bool {
        let time = self.time;
        let drains = self.healed.is_some();
        let Kind::Worker { actions, style, .. } = &mut self.clients.list[client].kind else { return false };
        if drains && *style != Style::Honest {
            // Whoever was not honest has gone home.
            return false;
        }
        if let Some(due) = actions.first_key_value().map(|(due, _)| *due).filter(|(at, _)| *at <= time) {
            let action = actions.remove(&due).expect("it was looked at");
            self.act(client, action);
            return true;
        }
        if actions.len() > 1 && !drains && happens(&mut self.clients.rng, self.options.beats) {
            self.beat(client);
            return true;
        }
        let Kind::Worker { actions, .. } = &mut self.clients.list[client].kind else { return false };
        if actions.len() >= 20 {
            let next = actions.first_key_value().map_or(time, |((at, _), _)| *at);
            self.plan(next, Event::Client(client));
            return true;
        }
        self.claim(client);
        true
    }

    /// Extends all leases that a worker holds in one of the shards.
    fn beat(&mut self, client: usize) {
        let number = self.number();
        let Kind::Worker { actions, style, .. } = &self.clients.list[client].kind else { return };
        let held: Vec<Action> = actions.values().cloned().collect();
        let tokenless = *style == Style::Tokenless;
        let shard = held[0].id.shard;
        let here = held.iter().filter(|action| action.id.shard == shard);
        let extend = here.map(|Action { tenant, id, token, worker, length, .. }| {
            let credential = if tokenless { Credential::Worker(worker) } else { Credential::Token(*token) };
            Op::Extend { lease: LeaseRef { tenant, task: id.key, credential }, length: Some(Millis(*length)) }
        });
        let ops: Vec<Op<'_>> = extend.collect();
        if ops.len() > 1 {
            self.reach("beats");
        }
        self.submit(client, shard, &ops, number, None);
    }

    fn claim(&mut self, client: usize) {
        let number = self.number();
        let (tenant, command) = self.queue_name();
        let shards = self.options.shards;
        let queues = self.options.queues;
        let drains = self.healed.is_some();
        let rng = &mut self.clients.rng;
        let everything = rng.one_in(4);
        let count = 1 + rng.below(if drains { 10 } else { self.options.claim_count }) as u8;
        let lease = rng.one_in(3).then(|| Millis(self.options.lease_min_ms + rng.below(self.options.lease_ms)));
        let wait = rng.one_in(3).then(|| 50 + rng.below(2_000));
        let order = [ClaimOrder::Request, ClaimOrder::Priority, ClaimOrder::Fair][rng.below(3) as usize];
        let any = ShardId(rng.below(shards) as u16);
        let worker = format!("w{client} n={number}");
        let (shard, commands): (ShardId, Vec<String>) = if everything {
            (any, Vec::new())
        } else {
            let shard = self.shard_of(&tenant, &command);
            let mut names: BTreeSet<String> = (0..queues).map(|queue| format!("q{queue}")).collect();
            names.retain(|name| self.shard_of(&tenant, name) == shard);
            let mut commands = vec![command.clone()];
            let rng = &mut self.clients.rng;
            commands.extend(names.into_iter().filter(|name| *name != command && rng.one_in(2)));
            (shard, commands)
        };
        let order = if everything { ClaimOrder::Fair } else { order };
        let op = Op::Claim(Claim {
            tenant: &tenant,
            worker: &worker,
            commands: commands.iter().map(String::as_str).collect(),
            order,
            count,
            lease,
        });
        self.submit(client, shard, std::slice::from_ref(&op), number, wait);
    }

    fn act(&mut self, client: usize, action: Action) {
        let number = self.number();
        let tokenless = matches!(self.clients.list[client].kind, Kind::Worker { style: Style::Tokenless, .. });
        let remark = format!("n={number}");
        let result = format!("\"r{number}\"");
        let credential = if tokenless { Credential::Worker(&action.worker) } else { Credential::Token(action.token) };
        let lease = LeaseRef { tenant: &action.tenant, task: action.id.key, credential };
        let rng = &mut self.clients.rng;
        let op = match action.what {
            What::Complete => Op::Complete { lease, result: result.as_bytes(), error: &remark },
            What::Fail => Op::Fail { lease, result: rng.one_in(2).then_some(result.as_bytes()), error: &remark },
            What::Nack => {
                let delay = rng.one_in(2).then(|| Millis(rng.below(2_000)));
                Op::Nack { lease, delay, reason: &remark }
            }
            What::Release => Op::Release { lease },
            What::Extend(_) => Op::Extend { lease, length: rng.one_in(2).then_some(Millis(action.length)) },
        };
        let shard = action.id.shard;
        self.submit(client, shard, std::slice::from_ref(&op), number, None);
        if let Kind::Worker { doing, .. } = &mut self.clients.list[client].kind {
            *doing = Some(action);
        }
    }

    fn later(&mut self, client: usize, at: u64, action: Action) {
        self.clients.order += 1;
        let order = self.clients.order;
        if let Kind::Worker { actions, .. } = &mut self.clients.list[client].kind {
            actions.insert((at, order), action);
            self.plan(at, Event::Client(client));
        }
    }

    fn on_grants(&mut self, client: usize, begun: u64, grants: &[queue::outcome::Grant]) {
        let (time, drains, drift) = (self.time, self.healed.is_some(), self.options.drift_ppm);
        for grant in grants {
            let Kind::Worker { style, .. } = &self.clients.list[client].kind else { return };
            let style = *style;
            let length = grant.length.0 * 1_000;
            let rng = &mut self.clients.rng;
            let what = match rng.below(100) {
                _ if drains => What::Complete,
                0..70 => What::Complete,
                70..78 => What::Fail,
                78..92 => What::Nack,
                _ => What::Release,
            };
            let short = (length / 2).clamp(1_000, if drains { 20_000 } else { 1_500_000 });
            let working = 200 + rng.below(short);
            let (at, what) = match style {
                Style::Honest if rng.one_in(6) && !drains => (time + working / 2, What::Extend(1)),
                Style::Honest | Style::Double | Style::Tokenless => (time + working, what),
                Style::Slow => (begun + length + rng.below(length + 1), what),
                Style::Dying => continue,
                Style::Zombie => (begun + length * 2 + rng.below(length * 8 + 1), what),
                Style::Extending => (time + rng.below(length + 1), What::Extend(1 + rng.below(5) as u32)),
            };
            let worker = grant.task.worker.as_deref().unwrap_or_default().to_owned();
            let action = Action {
                tenant: grant.task.tenant.clone(),
                id: grant.task.id,
                token: grant.token,
                worker: worker.clone(),
                length: grant.length.0,
                what,
                tries: 0,
            };
            if style == Style::Honest {
                let sure = begun + length - length * drift / 1_000_000;
                let to = at.min(sure.saturating_sub(1_000));
                if to > time {
                    let worker = self.names.of(&worker);
                    let (task, token) = (record::task(&grant.task.id), record::token(&grant.token));
                    self.lines.push(Line::Work(Work { worker, task, token, from: time, to }));
                }
            }
            if style == Style::Double {
                self.later(client, at + 1, action.clone());
            }
            self.later(client, at, action);
        }
    }

    // Readers.

    fn known(&mut self) -> Option<(String, TaskId)> {
        let count = self.clients.known.len() as u64;
        (count > 0).then(|| self.clients.known[self.clients.rng.below(count) as usize].clone())
    }

    fn read(&mut self, client: usize) -> bool {
        let number = self.number();
        let level = self.clients.rng.below(3);
        let (tenant, command) = self.queue_name();
        let of_queue = self.clients.rng.one_in(4);
        let next = match &mut self.clients.list[client].kind {
            Kind::Reader { next } => next.take(),
            _ => None,
        };
        if let Some((shard, mut list)) = next {
            if let Level::AtLeast(_) = list.level() {
                let seen = self.clients.list[client].seen.get(&shard.0).copied().unwrap_or(0);
                list.freshness = Freshness::AtLeast { index: Index(seen), up_to: Millis(1_000) };
            }
            self.begin(client, shard, Vec::new(), Asked::List(list), number);
            return true;
        }
        let Some((owner, id)) = self.known() else { return false };
        let shard = if of_queue { self.shard_of(&tenant, &command) } else { id.shard };
        let seen = self.clients.list[client].seen.get(&shard.0).copied().unwrap_or(0);
        let (freshness, level) = match level {
            0 => (Freshness::STALE, Level::Stale),
            1 => (Freshness::AtLeast { index: Index(seen), up_to: Millis(1_000) }, Level::AtLeast(seen)),
            _ => (Freshness::Linearizable, Level::Linearizable),
        };
        if self.clients.rng.one_in(5) {
            let shard = self.shard_of(&tenant, &command);
            let seen = self.clients.list[client].seen.get(&shard.0).copied().unwrap_or(0);
            let freshness = match freshness {
                Freshness::AtLeast { up_to, .. } if level != Level::Stale => {
                    Freshness::AtLeast { index: Index(seen), up_to }
                }
                freshness => freshness,
            };
            let list = List { search: self.search(&tenant, &command), places: BTreeMap::new(), freshness };
            self.begin(client, shard, Vec::new(), Asked::List(Box::new(list)), number);
            return true;
        }
        let (call, query) = if of_queue {
            let names = (self.names.of(&tenant), self.names.of(&command));
            let call = Call::Stats { tenant: names.0, command: names.1, level };
            (call, Query::Queue { tenant: tenant.into(), command: command.into() })
        } else {
            let call = Call::Read { tenant: self.names.of(&owner), task: record::task(&id), level };
            (call, Query::Task { tenant: owner.into(), id, until_ended: false })
        };
        self.begin(client, shard, vec![call], Asked::Question(query, freshness), number);
        true
    }

    /// A list of some tasks of a queue, in pages that are small.
    fn search(&mut self, tenant: &str, command: &str) -> Search {
        let rng = &mut self.clients.rng;
        let mut filter = Filter::of(&tenant.into());
        filter.commands = Some([command.into()].into());
        let one = State::NAMES[rng.below(State::NAMES.len() as u64) as usize].0;
        let one_state = rng.one_in(2);
        if one_state {
            filter.states = [one].into();
        }
        let descending = rng.one_in(2);
        let order = match rng.below(3) {
            0 if one_state && matches!(one, State::Ready | State::Delayed) => Order::Queue,
            1 => Order::Finished { descending },
            _ => Order::Created { descending },
        };
        Search { filter, order, limit: 1 + rng.below(8) as usize, with_payload: true, with_result: true }
    }

    // Whoever cancels and brings back.

    fn meddle(&mut self, client: usize) -> bool {
        let number = self.number();
        let Some((tenant, id)) = self.known() else { return false };
        let Kind::Meddler { wanted } = &mut self.clients.list[client].kind else { return false };
        if let Some(view) = wanted.take() {
            let mut row = Vec::new();
            let rng = &mut self.clients.rng;
            if view.state == State::Dead && self.options.amends > 0 && happens(rng, self.options.amends) {
                // It may go by what it has read once more.
                if rng.one_in(4) {
                    *wanted = Some(view.clone());
                }
                let mut view = view.as_ref().clone();
                if rng.one_in(2) {
                    view.payload = Payload::Resident(payload(number, 0, rng).into());
                } else {
                    view.max_attempts = 1 + rng.below(6) as u32;
                }
                rows::encode(&view, &mut RowWriter::new(&mut row));
                let ended_at = view.ended_at.unwrap_or_default();
                let op = Op::Amend(Amend { tenant: &view.tenant, task: view.id.key, ended_at, record: &row });
                self.submit(client, view.id.shard, std::slice::from_ref(&op), number, None);
                return true;
            }
            // Now and then it is to come back with another payload.
            let view = if self.options.operators > 0 && rng.one_in(3) {
                let another = payload(number, 0, rng);
                Rc::new(TaskView { payload: Payload::Resident(another.into()), ..view.as_ref().clone() })
            } else {
                view
            };
            rows::encode(&view, &mut RowWriter::new(&mut row));
            let op = Op::Redrive(Redrive {
                tenant: &view.tenant,
                task: view.id.key,
                ended_at: view.ended_at.unwrap_or_default(),
                record: &row,
                keep_attempts: rng.one_in(3),
                delay: Millis(if rng.one_in(2) { rng.below(1_000) } else { 0 }),
                priority: rng.one_in(3).then(|| rng.below(10) as u8),
            });
            self.submit(client, view.id.shard, std::slice::from_ref(&op), number, None);
        } else if self.clients.rng.one_in(2) {
            let (reason, force) = (format!("n={number}"), self.clients.rng.one_in(3));
            if force {
                self.clients.forced.insert(id);
            }
            let op = Op::Cancel { tenant: &tenant, task: id.key, reason: &reason, force };
            self.submit(client, id.shard, std::slice::from_ref(&op), number, None);
        } else {
            let call =
                Call::Read { tenant: self.names.of(&tenant), task: record::task(&id), level: Level::Linearizable };
            let query = Query::Task { tenant: tenant.into(), id, until_ended: false };
            let asked = Asked::Question(query, Freshness::Linearizable);
            self.begin(client, id.shard, vec![call], asked, number);
        }
        true
    }

    // Operators.

    fn operate(&mut self, client: usize) -> bool {
        let number = self.number();
        if self.is_drained {
            return false;
        }
        if self.healed.is_some() {
            let queues = self.options.queues;
            let Kind::Operator { next, .. } = &mut self.clients.list[client].kind else { return false };
            let place = *next;
            *next = (place + 1) % (queues * self.options.tenants);
            let (tenant, command) = (format!("t{}", place / queues), format!("q{}", place % queues));
            self.resume_queue(client, &tenant, &command, number);
            return true;
        }
        let (tenant, command) = self.queue_name();
        let Kind::Operator { again, .. } = &mut self.clients.list[client].kind else { return false };
        if let Some(many) = again.take() {
            self.begin_many(client, many, number);
            return true;
        }
        match self.clients.rng.below(20) {
            0..2 => {
                let many = self.plan_many(&tenant, &command, number);
                self.begin_many(client, many, number);
                true
            }
            2..4 => {
                let known = self.clients.many.len() as u64;
                if known == 0 {
                    return false;
                }
                let many = self.clients.many[self.clients.rng.below(known) as usize].clone();
                let to = if self.clients.rng.one_in(3) { OperationState::Stopped } else { OperationState::Running };
                let op = Op::Turn { tenant: &many.tenant, id: many.id, to, error: "" };
                self.submit(client, many.shard, std::slice::from_ref(&op), number, None);
                true
            }
            4..6 => {
                let shard = self.shard_of(&tenant, &command);
                let (freshness, level) = match self.clients.rng.one_in(2) {
                    true => (Freshness::STALE, Level::Stale),
                    false => (Freshness::Linearizable, Level::Linearizable),
                };
                let call = Call::Operations { tenant: self.names.of(&tenant), level };
                let query = Query::Operations { tenant: Some(tenant.into()), running: false };
                self.begin(client, shard, vec![call], Asked::Question(query, freshness), number);
                true
            }
            6..8 => {
                let shard = self.shard_of(&tenant, &command);
                let rng = &mut self.clients.rng;
                let length = rng.one_in(2).then(|| Millis(1 + rng.below(10_000)));
                let reason = format!("n={number}");
                let op = Op::Pause { tenant: &tenant, command: &command, length, reason: &reason, by: "somebody" };
                self.submit(client, shard, std::slice::from_ref(&op), number, None);
                true
            }
            8..13 => {
                self.resume_queue(client, &tenant, &command, number);
                true
            }
            _ => self.edit(client, number),
        }
    }

    /// Thinks of something to do to many tasks.
    fn plan_many(&mut self, tenant: &str, command: &str, number: u64) -> Many {
        let shard = self.shard_of(tenant, command);
        let rng = &mut self.clients.rng;
        let (kind, _) = OperationKind::NAMES[rng.below(OperationKind::NAMES.len() as u64) as usize];
        let mut filter = Filter::of(&tenant.into());
        // Who purges a queue names it; others may mean all of the tenant that stand in this shard.
        if kind == OperationKind::QueuePurge || rng.one_in(2) {
            filter.commands = Some([command.into()].into());
        }
        let states: &[State] = match kind {
            OperationKind::DeadRedrive | OperationKind::DeadPurge => &[State::Dead],
            OperationKind::QueuePurge => &[State::Ready, State::Delayed],
            OperationKind::Cancel => &[State::Ready, State::Delayed, State::Leased],
        };
        let one = states[rng.below(states.len() as u64) as usize];
        filter.states = if rng.one_in(3) { [one].into() } else { states.iter().copied().collect() };
        filter.attempts = rng.one_in(4).then(|| rng.below(2)..=1 + rng.below(3));
        filter.priority = rng.one_in(4).then(|| rng.below(6)..=5 + rng.below(5));
        let plan = Plan {
            kind,
            filter,
            keep_attempts: rng.one_in(3),
            priority: rng.one_in(3).then(|| rng.below(10) as u8),
            delay: Millis(if rng.one_in(2) { rng.below(1_000) } else { 0 }),
            reason: format!("many {number}"),
            force: rng.one_in(3),
            rate: 20 + rng.below(480),
            dry_run: rng.one_in(5),
        };
        let mut id = OperationId::default();
        id[..8].copy_from_slice(&rng.next_u64().to_le_bytes());
        self.names.note_plan(id, plan);
        Many { tenant: tenant.to_owned(), shard, id }
    }

    fn begin_many(&mut self, client: usize, many: Many, number: u64) {
        let plan = self.names.plan(&many.id).expect("somebody has thought of it").clone();
        let request = format!("n={number}");
        let all = match plan.kind {
            OperationKind::DeadRedrive | OperationKind::DeadPurge => 1,
            OperationKind::QueuePurge => 2,
            OperationKind::Cancel => 3,
        };
        let filter = &plan.filter;
        let op = Op::Begin(Begin {
            tenant: &many.tenant,
            id: many.id,
            kind: plan.kind,
            commands: plan.commands(),
            request: request.as_bytes(),
            dry_run: plan.dry_run,
            takes_all: filter.attempts.is_none() && filter.priority.is_none() && filter.states.len() == all,
            by: "somebody",
        });
        self.submit(client, many.shard, std::slice::from_ref(&op), number, None);
        if !self.clients.many.iter().any(|known| known.id == many.id) {
            if self.clients.many.len() == MANY_MAX {
                self.clients.many.pop_front();
            }
            self.clients.many.push_back(many.clone());
        }
        if let Kind::Operator { again, .. } = &mut self.clients.list[client].kind {
            *again = Some(many);
        }
    }

    fn resume_queue(&mut self, client: usize, tenant: &str, command: &str, number: u64) {
        let shard = self.shard_of(tenant, command);
        self.submit(client, shard, &[Op::Resume { tenant, command }], number, None);
    }

    /// Changes a task, if it waits.
    fn edit(&mut self, client: usize, number: u64) -> bool {
        let Some((tenant, id)) = self.known() else { return false };
        let (wall, delay) = (EPOCH_MS + self.time / 1_000, self.options.delay_ms);
        let rng = &mut self.clients.rng;
        let schedule = match rng.below(6) {
            0 => Some(Schedule::Now),
            1 => Some(Schedule::After(Millis(rng.below(delay + 1)))),
            2 => Some(Schedule::At(ScheduleTime(wall + rng.below(delay + 1)))),
            _ => None,
        };
        let another = rng.one_in(2).then(|| payload(number, 0, rng));
        let edit = Edit {
            tenant: &tenant,
            task: id.key,
            priority: rng.one_in(3).then(|| rng.below(10) as u8),
            schedule,
            payload: another.as_deref(),
            max_attempts: rng.one_in(4).then(|| 1 + rng.below(4) as u32),
            webhook: rng.one_in(8).then_some("http://somewhere/"),
        };
        self.submit(client, id.shard, &[Op::Edit(edit)], number, None);
        true
    }

    // Answers.

    /// A client has its answer.
    pub(crate) fn on_told(&mut self, client: usize, number: u64, request: &Request, told: Told) {
        if let Some(n) = client.checked_sub(DRIVERS) {
            return self.on_stepped(n, number, &told);
        }
        self.clients.list[client].busy = false;
        if let Told::Applied(position, _)
        | Told::Task(position, _)
        | Told::Queue(position, _)
        | Told::Operations(position, _)
        | Told::Page { position, .. } = &told
        {
            let is_stale = match &request.asked {
                Asked::Question(_, freshness) => *freshness == Freshness::STALE,
                Asked::List(list) => list.freshness == Freshness::STALE,
                Asked::Operations(..) => false,
            };
            if !is_stale {
                let seen = self.clients.list[client].seen.entry(position.shard.0).or_default();
                *seen = (*seen).max(position.index.0);
            }
        }
        if matches!(told, Told::Unknown | Told::Silent) {
            self.reach("unknown");
        }
        if self.healed.is_some() && matches!(told, Told::Silent) && request.begun >= self.healed.unwrap_or(0) {
            self.violate("L2", format!("operation {number}, asked for after the heal, was never answered"));
        }
        match &self.clients.list[client].kind {
            Kind::Producer { .. } => self.on_created(client, told),
            Kind::Worker { .. } => self.on_worked(client, request.begun, told),
            Kind::Meddler { .. } => {
                if let Told::Task(_, Some(view)) = &told
                    && matches!(view.state, State::Dead | State::Failed | State::Cancelled)
                    && let Kind::Meddler { wanted } = &mut self.clients.list[client].kind
                {
                    *wanted = Some(view.clone());
                } else if let Told::Applied(_, outcomes) = &told {
                    match &*outcomes[0] {
                        Outcome::Redriven(_) => self.reach("redriven"),
                        Outcome::Edited(view) => {
                            if let Kind::Meddler { wanted } = &mut self.clients.list[client].kind {
                                wanted.get_or_insert_with(|| Rc::new(view.as_ref().clone()));
                            }
                        }
                        _ => {}
                    }
                }
            }
            Kind::Operator { .. } => {
                // Whether or not it has begun, the same is asked for again.
                let is_known = !matches!(told, Told::Unknown | Told::Silent);
                let repeats = self.clients.rng.one_in(10);
                if let Kind::Operator { again, .. } = &mut self.clients.list[client].kind
                    && is_known
                    && !repeats
                {
                    *again = None;
                }
            }
            Kind::Reader { .. } => {
                if let (Told::Page { next: Some(places), .. }, Asked::List(list)) = (&told, &request.asked)
                    && !self.clients.rng.one_in(5)
                    && let Kind::Reader { next } = &mut self.clients.list[client].kind
                {
                    let list = List { places: places.clone(), ..list.as_ref().clone() };
                    *next = Some((request.shard, Box::new(list)));
                }
            }
        }
        let pause = self.pause();
        // Operators have time, and little to do when all is healed.
        let pause = match self.clients.list[client].kind {
            Kind::Operator { .. } if self.healed.is_some() => pause.max(500_000),
            Kind::Operator { .. } => pause * 3,
            _ => pause,
        };
        self.after(pause, Event::Client(client));
    }

    fn on_created(&mut self, client: usize, told: Told) {
        let Kind::Producer { again } = &mut self.clients.list[client].kind else { return };
        let Some((drafts, tries)) = again.take() else { return };
        match told {
            Told::Applied(_, outcomes) => {
                for (draft, outcome) in drafts.iter().zip(outcomes) {
                    if let Outcome::Created(created) = &*outcome {
                        let known = (draft.tenant.clone(), created.id);
                        let clients = &mut self.clients;
                        if clients.known.len() < KNOWN_MAX {
                            clients.known.push(known);
                        } else {
                            let place = clients.rng.below(KNOWN_MAX as u64) as usize;
                            clients.known[place] = known;
                        }
                    }
                    if matches!(*outcome, Outcome::Replayed(_)) {
                        self.reach("replayed");
                    }
                }
                // A key is used once more, now and then.
                if drafts.iter().any(|draft| draft.key.is_some()) && self.clients.rng.one_in(4) && tries < 5 {
                    self.keep_drafts(client, drafts, tries);
                }
            }
            Told::Unknown | Told::Silent | Told::Refused(_) if tries < 5 => {
                let keyed = drafts.iter().all(|draft| draft.key.is_some());
                // Without keys a repeat may make the tasks twice, and some repeat all the same.
                if keyed || self.clients.rng.one_in(3) {
                    self.keep_drafts(client, drafts, tries);
                }
            }
            _ => {}
        }
    }

    fn keep_drafts(&mut self, client: usize, mut drafts: Vec<Draft>, tries: u32) {
        let number = self.next_number + 1;
        for (part, draft) in drafts.iter_mut().enumerate() {
            if draft.key.is_none() {
                draft.payload = payload(number, part, &mut self.clients.rng);
            }
        }
        if let Kind::Producer { again } = &mut self.clients.list[client].kind {
            // The number in a payload must be that of the operation that sends it.
            let all_keyed = drafts.iter().all(|draft| draft.key.is_some());
            *again = all_keyed.then_some((drafts, tries));
        }
    }

    fn on_worked(&mut self, client: usize, begun: u64, told: Told) {
        let time = self.time;
        let Kind::Worker { doing, style, .. } = &mut self.clients.list[client].kind else { return };
        let style = *style;
        let Some(action) = doing.take() else {
            if let Told::Applied(_, outcomes) = told
                && let Outcome::Claimed(grants) = &*outcomes[0]
            {
                self.on_grants(client, begun, grants);
            }
            return;
        };
        match told {
            Told::Applied(_, outcomes) => {
                if let (What::Extend(more), Outcome::Extended { remaining, .. }) = (action.what, &*outcomes[0]) {
                    let next = if more > 1 { What::Extend(more - 1) } else { What::Complete };
                    let rng = &mut self.clients.rng;
                    if style == Style::Honest || more > 1 || rng.one_in(2) {
                        let at = time + rng.below(remaining.0 * 500 + 1);
                        self.later(client, at, Action { what: next, ..action });
                    }
                }
            }
            // Whether or not it happened, the same is asked for again.
            _ if action.tries < 3 => {
                let at = time + self.pause();
                self.later(client, at, Action { tries: action.tries + 1, ..action });
            }
            _ => {}
        }
    }
}
