//! The stand-in for a node's edge: hands clients' operations to whoever leads, holds them while nobody does, and gives up in time; and the
//! clients' side of it: deadlines, broken connections, what was seen.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use base::codec::{Reader, Write};
use base::machine::StateMachine;
use base::{Index, Millis, Position, ShardId, Term};
use bytes::Bytes;
use history::record::{Answer, Call, Line, Op, Outcome, Refusal};
use queue::listing::Place;
use queue::operations::Operation;
use queue::{Answer as QueueAnswer, Outcome as QueueOutcome, Payload, Query, QueueMachine, TaskView};
use replica::{Event as ReplicaEvent, Freshness, Operations, Reply, Unavailable, Wait};

use crate::bulk::DRIVERS;
use crate::lists::List;
use crate::network::Packet;
use crate::process::{Caller, Control};
use crate::record;
use crate::world::{Event, World};

/// What a client asks for.
#[derive(Clone, Debug)]
pub enum Asked {
    /// Operations on one shard, encoded; how long they may wait for something to do, ms.
    Operations(Operations, Option<u64>),
    /// A question, and how fresh its answer must be.
    Question(Query, Freshness),
    /// A page of a list.
    List(Box<List>),
}

/// What a client is told.
#[derive(Clone, Debug)]
pub enum Told {
    /// The operations' outcomes.
    Applied(Position, Vec<Rc<QueueOutcome>>),
    /// The task, or none.
    Task(Position, Option<Rc<TaskView>>),
    /// A queue's numbers.
    Queue(Position, Rc<queue::outcome::QueueStats>),
    /// Operations on many tasks.
    Operations(Position, Rc<Vec<Operation>>),
    /// A page of a list.
    Page {
        /// What it was read at.
        position: Position,
        /// The tasks on it.
        found: Vec<Rc<TaskView>>,
        /// Where the next one begins, if there is one.
        next: Option<BTreeMap<ShardId, Place>>,
    },
    /// Nothing happened.
    Refused(Refusal),
    /// It is not known.
    Unknown,
    /// Nobody said anything in time.
    Silent,
}

/// A client's request under way.
pub struct Request {
    pub(crate) client: usize,
    pub(crate) session: u32,
    pub(crate) node: usize,
    pub(crate) shard: ShardId,
    pub(crate) begun: u64,
    pub(crate) calls: Vec<Call>,
    pub(crate) asked: Asked,
    pub(crate) gone: Rc<Cell<bool>>,
    /// The process of the node that was asked.
    epoch: u32,
    /// It was handed to a loop, or sent to a node.
    handed: bool,
    /// Under which number it waits in the loop of its node; 0: it does not.
    wait: u64,
    told: Option<Told>,
}

impl Request {
    /// Whether its client waits, and nobody has an answer yet.
    pub(crate) fn is_open(&self) -> bool {
        self.told.is_none() && !self.gone.get()
    }
}

/// How often a request that nobody could take is tried again.
const AGAIN: u64 = 20_000;

impl World {
    /// A client asks a node for something. Returns the operation's number; its answer comes to `on_told`.
    pub(crate) fn ask(
        &mut self,
        (client, session): (usize, u32),
        node: usize,
        shard: ShardId,
        calls: Vec<Call>,
        asked: Asked,
        number: u64,
    ) {
        let wait = match &asked {
            Asked::Operations(_, wait) => wait.unwrap_or(0),
            Asked::Question(..) | Asked::List(_) => 0,
        };
        let begun = self.time;
        let request = Request {
            client,
            session,
            node,
            shard,
            begun,
            calls,
            asked,
            gone: Rc::new(Cell::new(false)),
            epoch: 0,
            handed: false,
            wait: 0,
            told: None,
        };
        self.requests.insert(number, request);
        // Most clients wait longer than the edge does; some do not.
        let edge = self.options.propose_timeout_ms + wait;
        let impatient = self.healed.is_none() && self.rng.one_in(20);
        let patience = if impatient { self.rng.below(edge.max(2)) } else { edge + 10_000 };
        self.after(patience * 1_000, Event::Deadline(number));
        self.after(edge * 1_000, Event::EdgeTimeout(number));
        // The way from the client to the node.
        let way = 20 + self.rng.below(200);
        self.after(way, Event::Retry(number));
    }

    /// A request reaches its node, or is tried again there.
    pub(crate) fn on_retry(&mut self, number: u64) {
        let Some(request) = self.requests.get(&number).filter(|request| request.told.is_none() && !request.handed)
        else {
            return;
        };
        let (node, first) = (request.node, request.epoch == 0);
        if self.is_paused(node, || Event::Retry(number)) {
            return;
        }
        let (epoch, runs) = (self.nodes[node].epoch, self.nodes[node].process().is_some());
        if first {
            self.requests.get_mut(&number).expect("it was there").epoch = epoch;
        }
        if !runs {
            return self.conclude(number, Told::Refused(Refusal::NoLeader));
        }
        match self.hand(node, number) {
            Ok(()) => self.requests.get_mut(&number).expect("it was there").handed = true,
            Err(Unavailable::NoLeader) => self.hold(number),
            Err(why) => self.conclude(number, told(why)),
        }
    }

    /// Nobody leads: the request is tried again, for as long as requests are held.
    fn hold(&mut self, number: u64) {
        let Some(request) = self.requests.get_mut(&number) else { return };
        request.handed = false;
        let held = self.time - request.begun;
        if held > self.options.leader_wait_ms * 1_000 {
            return self.conclude(number, Told::Refused(Refusal::NoLeader));
        }
        let delay = AGAIN / 2 + self.rng.below(AGAIN);
        self.after(delay, Event::Retry(number));
    }

    /// Hands a request to the loop of its node, or to the leader's node.
    fn hand(&mut self, n: usize, number: u64) -> Result<(), Unavailable> {
        let request = &self.requests[&number];
        let (shard, gone, asked) = (request.shard, request.gone.clone(), request.asked.clone());
        let (inbox, me) = (self.options.inbox as usize, self.nodes[n].directory.id);
        let process = self.nodes[n].process_mut().expect("it runs");
        let caller = Caller::Here(number, gone);
        let applied = process.runner.replica.applied(shard);
        let (operations, wait) = match asked {
            Asked::Question(query, freshness) => {
                let mark = match freshness {
                    Freshness::AtLeast { index, .. } if index > applied => Some("K09-behind"),
                    Freshness::Linearizable if self.transferring(shard) => Some("K09-transfer"),
                    _ => None,
                };
                let process = self.nodes[n].process_mut().expect("it runs");
                let queue = process.requests.get_mut(&shard).expect("every shard has a queue");
                if queue.len() >= inbox {
                    return Err(Unavailable::Overloaded);
                }
                queue.push_back(ReplicaEvent::Ask { shard, query, freshness, wait: None, client: caller });
                mark.into_iter().for_each(|mark| self.reach(mark));
                self.wake(n);
                return Ok(());
            }
            Asked::List(list) => return self.hand_list(n, number, &list),
            Asked::Operations(operations, wait) => (operations, wait),
        };
        let leader = process.routes.get(&shard).copied().unwrap_or(0);
        if leader == me {
            let queue = process.requests.get_mut(&shard).expect("every shard has a queue");
            if queue.len() >= inbox {
                return Err(Unavailable::Overloaded);
            }
            process.next_wait += 1;
            let id = process.next_wait;
            let wait = wait.map(|up_to| Wait { id, up_to: Millis(up_to) });
            queue.push_back(ReplicaEvent::Submit { shard, operations, wait, client: caller });
            self.requests.get_mut(&number).expect("it was there").wait = id;
            self.wake(n);
            return Ok(());
        }
        let Some(to) = self.place_of(leader).filter(|to| self.links[n][*to].up) else {
            return Err(Unavailable::NoLeader);
        };
        let mut bytes = Vec::new();
        operations.encode(&mut bytes);
        let epoch = self.links[n][to].epoch;
        let process = self.nodes[n].process_mut().expect("it runs");
        process.forwarded.insert(number, (to, epoch));
        let wait = wait.unwrap_or(0);
        self.send(n, to, Packet::Forward { request: number, shard, wait, operations: bytes.into() });
        Ok(())
    }

    /// Whether a group is being handed over.
    fn transferring(&self, shard: ShardId) -> bool {
        self.running().into_iter().any(|n| {
            let process = self.nodes[n].process().expect("it runs");
            process.runner.replica.is_transferring(shard)
        })
    }

    /// Another node's client asks.
    pub(crate) fn on_forward(
        &mut self,
        from: usize,
        n: usize,
        epoch: u32,
        (request, shard, wait): (u64, ShardId, u64),
        operations: &Bytes,
    ) {
        let inbox = self.options.inbox as usize;
        let Some(process) = self.nodes[n].process_mut() else { return };
        let operations = Operations::decode(&mut Reader::new(operations)).expect("what was encoded reads back");
        let gone = Rc::new(Cell::new(false));
        let client = Caller::There(from, epoch, request, gone.clone());
        let queue = process.requests.get_mut(&shard).expect("every shard has a queue");
        if queue.len() >= inbox {
            let refused = Reply::Unavailable(Unavailable::Overloaded);
            return self.on_reply(n, client, refused);
        }
        let wait = (wait > 0).then(|| {
            process.next_wait += 1;
            process.parked.insert((from, request), (shard, process.next_wait, gone));
            Wait { id: process.next_wait, up_to: Millis(wait) }
        });
        queue.push_back(ReplicaEvent::Submit { shard, operations, wait, client });
        self.wake(n);
    }

    /// The loop of a node has a reply.
    pub(crate) fn on_reply(&mut self, n: usize, caller: Caller, mut reply: Reply<QueueMachine>) {
        if let Reply::Applied { outcomes, position } = &mut reply {
            let position = *position;
            self.check_reply(n, position);
            for outcome in outcomes {
                self.with_payloads(n, position.shard, outcome);
            }
        }
        match caller {
            Caller::Nobody => {}
            Caller::Here(number, gone) => {
                if gone.get() || !self.requests.contains_key(&number) {
                    return self.give_back(n, &reply);
                }
                self.settle(n, number, reply);
            }
            Caller::There(to, epoch, request, gone) => {
                if matches!(reply, Reply::Unavailable(Unavailable::NoLeader)) {
                    self.reach("K15");
                }
                if let Some(process) = self.nodes[n].process_mut() {
                    process.parked.remove(&(to, request));
                }
                let link = &self.links[to][n];
                if gone.get() || !link.up || link.epoch != epoch {
                    return self.give_back(n, &reply);
                }
                let mut bytes = Vec::new();
                put_reply(&reply, &mut bytes);
                self.send_back(n, to, epoch, Packet::Answer { request, reply: bytes.into() });
            }
        }
    }

    /// The leader's node has answered.
    pub(crate) fn on_remote_answer(&mut self, n: usize, number: u64, bytes: &Bytes) {
        let reply = read_reply(bytes);
        let Some(process) = self.nodes[n].process_mut() else { return };
        let known = process.forwarded.remove(&number).is_some();
        let listens = self.requests.get(&number).is_some_and(|request| !request.gone.get() && request.told.is_none());
        if !known || !listens {
            return self.give_back(n, &reply);
        }
        self.settle(n, number, reply);
    }

    /// An edge has the answer to a request of its own.
    fn settle(&mut self, n: usize, number: u64, reply: Reply<QueueMachine>) {
        match reply {
            Reply::Unavailable(Unavailable::NoLeader) => self.hold(number),
            Reply::Unavailable(why) => self.conclude(number, told(why)),
            Reply::Applied { position, outcomes } => {
                self.conclude(number, Told::Applied(position, outcomes.into_iter().map(Rc::new).collect()));
            }
            Reply::Answered { position, answer } => {
                let told = match answer {
                    QueueAnswer::Task(view) => {
                        let view = self.with_payload(n, position.shard, view.as_ref().clone());
                        Told::Task(position, Some(Rc::new(view)))
                    }
                    QueueAnswer::NotLive { dropped } => {
                        let Asked::Question(Query::Task { tenant, id, .. }, _) = &self.requests[&number].asked else {
                            return;
                        };
                        let (tenant, id) = (tenant.clone(), *id);
                        let found = self.find_ended(n, id, &dropped).filter(|view| view.tenant == tenant);
                        Told::Task(position, found.map(Rc::new))
                    }
                    QueueAnswer::Queue(stats) => Told::Queue(position, Rc::new(stats)),
                    QueueAnswer::Policy(_) => return self.show(n, number),
                    QueueAnswer::Operations(operations) => Told::Operations(position, Rc::new(operations)),
                    QueueAnswer::Lease(_) | QueueAnswer::Queues(_) | QueueAnswer::QueuePage { .. } => return,
                };
                self.conclude(number, told);
            }
        }
    }

    /// An ended task in the checkpoint of a node.
    pub(crate) fn find_ended(&mut self, n: usize, id: queue::TaskId, dropped: &[u32]) -> Option<TaskView> {
        use queue::checkpoint::{COMPLETED, DEAD, FAILED};
        let process = self.nodes[n].process_mut()?;
        let reader = process.readers.get_mut(&id.shard)?;
        let mut find = |table| reader.find(table, id.key.0 as i64).ok().flatten();
        let row = [COMPLETED, FAILED, DEAD].into_iter().find_map(&mut find)?;
        if dropped.contains(&row.slice) {
            return None;
        }
        record::ended(&row.bytes, id)
    }

    fn with_payloads(&mut self, n: usize, shard: ShardId, outcome: &mut QueueOutcome) {
        let views: Vec<&mut TaskView> = match outcome {
            QueueOutcome::Claimed(grants) => grants.iter_mut().map(|grant| &mut grant.task).collect(),
            QueueOutcome::Redriven(view)
            | QueueOutcome::Edited(view)
            | QueueOutcome::Cancelled(view)
            | QueueOutcome::CancelRequested(view) => vec![view],
            _ => return,
        };
        for view in views {
            *view = self.with_payload(n, shard, view.clone());
        }
    }

    /// The same task with its payload, which may stand in the checkpoint only.
    pub(crate) fn with_payload(&mut self, n: usize, shard: ShardId, view: TaskView) -> TaskView {
        let Payload::Stored(_) = view.payload else { return view };
        let key = view.id.key.0 as i64;
        let process = self.nodes[n].process_mut().expect("it runs");
        let reader = process.readers.get_mut(&shard).expect("every shard has a reader");
        let row = reader.find(queue::checkpoint::PAYLOADS, key).ok().flatten();
        let payload =
            row.and_then(|row| base::rows::Row(&row.bytes).reader().maybe_bytes().ok().flatten().map(<[u8]>::to_vec));
        let payload = match payload {
            Some(bytes) => Payload::Resident(bytes.into()),
            None => match self.find_ended(n, view.id, &[]) {
                Some(ended) => ended.payload,
                None => {
                    self.violate(
                        "S2",
                        format!("the payload of {} is neither in memory nor in the checkpoint", view.id),
                    );
                    view.payload.clone()
                }
            },
        };
        TaskView { payload, ..view }
    }

    /// Nobody has taken what a claim brought: it is released.
    fn give_back(&mut self, n: usize, reply: &Reply<QueueMachine>) {
        let Reply::Applied { position, outcomes } = reply else { return };
        let mut operations = Operations::default();
        for outcome in outcomes {
            let QueueOutcome::Claimed(grants) = outcome else { continue };
            for grant in grants {
                let lease = queue::op::LeaseRef {
                    tenant: &grant.task.tenant,
                    task: grant.task.id.key,
                    credential: queue::op::Credential::Token(grant.token),
                };
                operations.push(|bytes| queue::codec::encode(&queue::Op::Release { lease }, bytes));
            }
        }
        let shard = position.shard;
        if !operations.is_empty()
            && let Some(process) = self.nodes[n].process_mut()
        {
            let queue = process.requests.get_mut(&shard).expect("every shard has a queue");
            queue.push_back(ReplicaEvent::Submit { shard, operations, wait: None, client: Caller::Nobody });
            self.wake(n);
        }
    }

    /// The connection by which a request was forwarded has ended.
    pub(crate) fn conclude_unknown(&mut self, number: u64) {
        self.conclude(number, Told::Unknown);
    }

    /// The node's process has ended, and with it what its clients waited for.
    pub(crate) fn lose_requests_of(&mut self, n: usize) {
        let epoch = self.nodes[n].epoch;
        let lost = |request: &Request| request.node == n && request.epoch != 0 && request.epoch != epoch;
        let numbers: Vec<u64> =
            self.requests.iter().filter(|(_, request)| lost(request)).map(|(number, _)| *number).collect();
        for number in numbers {
            self.conclude_unknown(number);
        }
    }

    pub(crate) fn on_edge_timeout(&mut self, number: u64) {
        let Some(request) = self.requests.get(&number).filter(|request| request.told.is_none()) else { return };
        let (node, handed, gone) = (request.node, request.handed, request.gone.clone());
        if self.is_paused(node, || Event::EdgeTimeout(number)) {
            return;
        }
        gone.set(true);
        self.forget(node, number);
        self.conclude(number, if handed { Told::Unknown } else { Told::Refused(Refusal::NoLeader) });
    }

    /// The client has hung up, whether or not somebody is about to answer.
    pub(crate) fn on_deadline(&mut self, number: u64) {
        let Some(request) = self.requests.get(&number).filter(|request| request.told.is_none()) else { return };
        let node = request.node;
        request.gone.set(true);
        self.forget(node, number);
        self.finish(number, Told::Silent);
    }

    /// A node need not answer any more.
    fn forget(&mut self, n: usize, number: u64) {
        let Request { shard, wait, .. } = self.requests[&number];
        let Some(process) = self.nodes[n].process_mut() else { return };
        match process.forwarded.remove(&number) {
            Some((to, _)) => drop(self.send(n, to, Packet::Forget { request: number })),
            None => process.controls.push_back(Control::Forget(shard, wait)),
        }
    }

    /// An edge answers its client.
    pub(crate) fn conclude(&mut self, number: u64, told: Told) {
        let Some(request) = self.requests.get_mut(&number).filter(|request| request.told.is_none()) else { return };
        request.told = Some(told);
        let way = 20 + self.rng.below(200);
        self.after(way, Event::Answer(number));
    }

    pub(crate) fn on_answer(&mut self, number: u64) {
        if let Some(told) = self.requests.get_mut(&number).and_then(|request| request.told.take()) {
            self.finish(number, told);
        }
    }

    /// The run is over, and nobody knows what has become of what is under way.
    pub(crate) fn write_down_open(&mut self) {
        for (number, request) in std::mem::take(&mut self.requests) {
            for (part, call) in request.calls.iter().enumerate() {
                self.lines.push(Line::Op(Box::new(Op {
                    number,
                    part: part as u16,
                    client: request.client as u32,
                    session: request.session,
                    node: request.node as u16,
                    t0: request.begun,
                    t1: None,
                    call: call.clone(),
                    outcome: Outcome::Unknown,
                })));
            }
        }
    }

    /// The client knows.
    fn finish(&mut self, number: u64, told: Told) {
        let Some(request) = self.requests.remove(&number) else { return };
        self.write_down(number, &request, &told);
        self.on_told(request.client, number, &request, told);
    }

    /// Puts an operation into the history.
    fn write_down(&mut self, number: u64, request: &Request, told: &Told) {
        let at = |position: &Position| record::position(*position);
        let parts: Vec<Outcome> = match told {
            Told::Applied(position, outcomes) => outcomes
                .iter()
                .map(|outcome| match &**outcome {
                    QueueOutcome::Rejected(queue::Rejection::TooManyTasks) => Outcome::Refused(Refusal::Overloaded),
                    outcome => Outcome::Answered { at: at(position), answer: record::answer(&mut self.names, outcome) },
                })
                .collect(),
            Told::Task(position, Some(view)) => {
                let answer = Answer::Found(Box::new(record::view(&mut self.names, view)));
                vec![Outcome::Answered { at: at(position), answer }]
            }
            Told::Task(position, None) => vec![Outcome::Answered { at: at(position), answer: Answer::Missing }],
            Told::Queue(position, stats) => {
                let answer = Answer::Stats(Box::new(record::stats(&mut self.names, stats)));
                vec![Outcome::Answered { at: at(position), answer }]
            }
            Told::Operations(position, operations) => {
                let all = operations.iter().map(|operation| record::progress(&mut self.names, operation)).collect();
                vec![Outcome::Answered { at: at(position), answer: Answer::Operations(all) }]
            }
            Told::Page { position, found, .. } => found
                .iter()
                .map(|view| Outcome::Answered {
                    at: at(position),
                    answer: Answer::Found(Box::new(record::view(&mut self.names, view))),
                })
                .collect(),
            Told::Refused(why) => vec![Outcome::Refused(*why); request.calls.len()],
            Told::Unknown => vec![Outcome::Unknown; request.calls.len()],
            Told::Silent => vec![Outcome::Silent; request.calls.len()],
        };
        // An empty page shows nothing.
        let is_ok = parts.iter().any(|part| matches!(part, Outcome::Answered { .. }));
        self.clients.finished += u64::from(is_ok && request.client < DRIVERS);
        self.fold(&[8, number, self.time, u64::from(is_ok)]);
        let t1 = Some(self.time);
        let mut read = |list: &List, view: &TaskView| Call::Read {
            tenant: self.names.of(&view.tenant),
            task: record::task(&view.id),
            level: list.level(),
        };
        let calls: Vec<Call> = match (told, &request.asked) {
            (Told::Page { found, .. }, Asked::List(list)) => found.iter().map(|view| read(list, view)).collect(),
            _ => request.calls.clone(),
        };
        for (part, (call, outcome)) in calls.into_iter().zip(parts).enumerate() {
            self.lines.push(Line::Op(Box::new(Op {
                number,
                part: part as u16,
                client: request.client as u32,
                session: request.session,
                node: request.node as u16,
                t0: request.begun,
                t1,
                call,
                outcome,
            })));
        }
    }
}

fn told(why: Unavailable) -> Told {
    match why {
        Unavailable::NoLeader => Told::Refused(Refusal::NoLeader),
        Unavailable::Overloaded => Told::Refused(Refusal::Overloaded),
        Unavailable::Draining | Unavailable::Restoring => Told::Refused(Refusal::Draining),
        Unavailable::TooStale => Told::Refused(Refusal::TooStale),
        Unavailable::Unknown => Told::Unknown,
    }
}

const REASONS: [Unavailable; 6] = [
    Unavailable::NoLeader,
    Unavailable::Overloaded,
    Unavailable::Draining,
    Unavailable::TooStale,
    Unavailable::Unknown,
    Unavailable::Restoring,
];

fn put_reply(reply: &Reply<QueueMachine>, bytes: &mut Vec<u8>) {
    match reply {
        Reply::Applied { position, outcomes } => {
            bytes.put_u8(0);
            bytes.put_u16(position.shard.0);
            bytes.put_varint(position.term.0);
            bytes.put_varint(position.index.0);
            for outcome in outcomes {
                let mut encoded = Vec::new();
                QueueMachine::encode_outcome(outcome, &mut encoded);
                bytes.put_bytes(&encoded);
            }
        }
        Reply::Unavailable(why) => {
            bytes.put_u8(1);
            bytes.put_u8(REASONS.iter().position(|known| known == why).expect("it is one of them") as u8);
        }
        Reply::Answered { .. } => panic!("questions are not forwarded"),
    }
}

fn read_reply(bytes: &Bytes) -> Reply<QueueMachine> {
    let mut reader = Reader::new(bytes);
    let mut read = || -> Result<Reply<QueueMachine>, base::codec::Malformed> {
        if reader.u8()? == 1 {
            return Ok(Reply::Unavailable(REASONS[usize::from(reader.u8()?)]));
        }
        let shard = ShardId(reader.u16()?);
        let position = Position { shard, term: Term(reader.varint()?), index: Index(reader.varint()?) };
        let mut outcomes = Vec::new();
        while !reader.is_empty() {
            outcomes.push(QueueMachine::decode_outcome(reader.bytes()?)?);
        }
        Ok(Reply::Applied { position, outcomes })
    };
    read().expect("what was encoded reads back")
}
