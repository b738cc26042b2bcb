//! Queues to other nodes, one for each member: the loop and the clients put things in; the loop sends them itself, and for the others a
//! task of the peers' thread does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use base::machine::StateMachine;
use base::{Mono, ShardId};
use replica::{Member, Message, Operations, Unavailable};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, watch};

use crate::http::view::Contact;
use crate::lane::ReplyTo;
use crate::peer::outgoing::{Outbox, Writing};
use crate::peer::requests::{Request, Waiting};
use crate::peer::snapshots::{Receipt, Receipts};
use crate::peer::stream::Sink;

/// Requests waiting for answers from one member; more are refused.
const FORWARDED_MAX: usize = 100_000;

/// Nodes that a node has links to; whoever introduces itself to one that has more is not answered before it is known as a member.
const LINKS_MAX: usize = 64;

/// A client's operations on their way to the leader.
pub(crate) struct Forward<S: StateMachine> {
    pub(crate) shard: ShardId,
    pub(crate) operations: Operations,
    /// How long they may wait for something to do, in milliseconds; 0: not at all.
    pub(crate) wait: u64,
    pub(crate) client: ReplyTo<S>,
}

struct Pending<S: StateMachine> {
    shard: ShardId,
    sent: bool,
    client: ReplyTo<S>,
}

/// The queue to one member.
pub(crate) struct Link<S: StateMachine> {
    pub(crate) id: u64,
    outbox: Mutex<Outbox>,
    /// While there is a connection.
    writing: Mutex<Option<Writing>>,
    pending: Mutex<BTreeMap<u64, Pending<S>>>,
    /// Who sends a snapshot, by shard.
    transfers: Mutex<BTreeMap<ShardId, UnboundedSender<Receipt>>>,
    /// Requests that wait for their answers.
    waiting: Mutex<Waiting>,
    pub(crate) wake: Notify,
    /// The member has connected to this node.
    pub(crate) called: Notify,
    up: AtomicBool,
    next_request: AtomicU64,
    /// When the member was last heard of, on this process's clock in milliseconds plus one; 0: never.
    heard: AtomicU64,
    /// Round trip of the last ping in microseconds; 0: none yet.
    pub(crate) rtt: AtomicU64,
    /// Bumped when the member is to be dialled at another address, or not at all.
    pub(crate) target: watch::Sender<Option<Member>>,
    /// What the member has said of itself when it connected last. It may have moved since that was recorded.
    told: Mutex<Option<Member>>,
}

impl<S: StateMachine> Link<S> {
    pub(crate) fn new(member: Member) -> Link<S> {
        Link {
            id: member.id,
            outbox: Mutex::default(),
            writing: Mutex::new(None),
            pending: Mutex::new(BTreeMap::new()),
            transfers: Mutex::new(BTreeMap::new()),
            waiting: Mutex::default(),
            wake: Notify::new(),
            called: Notify::new(),
            up: AtomicBool::new(false),
            next_request: AtomicU64::new(1),
            heard: AtomicU64::new(0),
            rtt: AtomicU64::new(0),
            target: watch::Sender::new(Some(member)),
            told: Mutex::default(),
        }
    }

    /// The member has connected to this node, and says this of itself.
    pub(crate) fn on_called(&self, member: &Member) {
        *self.told.lock().expect("nothing panics while it holds this lock") = Some(member.clone());
        self.called.notify_one();
    }

    /// What the member has said of itself, if it ever has.
    pub(crate) fn told(&self) -> Option<Member> {
        self.told.lock().expect("nothing panics while it holds this lock").clone()
    }

    /// Whether the member can be reached just now, as far as is known.
    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// The member has said something.
    pub(crate) fn on_heard(&self, now: Mono) {
        self.heard.fetch_max(now.0 + 1, Ordering::Relaxed);
    }

    /// How this node stands to the member.
    pub(crate) fn contact(&self, now: Mono) -> Contact {
        let heard = self.heard.load(Ordering::Relaxed).checked_sub(1).map(|heard| now - Mono(heard));
        let rtt_micros = Some(self.rtt.load(Ordering::Relaxed)).filter(|rtt| *rtt > 0);
        Contact { connected: self.is_up(), heard, rtt_micros }
    }

    /// The member is dialled where it says that it is.
    fn turn_to(&self, member: &Member) {
        self.target.send_if_modified(|target| {
            let differs = target.as_ref() != Some(member);
            *target = Some(member.clone());
            differs
        });
    }

    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().expect("nothing panics while it holds this lock")
    }

    fn pending(&self) -> MutexGuard<'_, BTreeMap<u64, Pending<S>>> {
        self.pending.lock().expect("nothing panics while it holds this lock")
    }

    /// Sends messages of consensus, caused by nothing later than `hlc`. False: some were dropped, and the member should be probed.
    pub(crate) fn send(&self, messages: Vec<(ShardId, Message)>, hlc: u64) -> bool {
        if !self.is_up() {
            return false;
        }
        let mut complete = true;
        let mut outbox = self.outbox();
        outbox.hlc = hlc;
        for (shard, message) in messages {
            complete &= outbox.put(shard, message);
        }
        drop(outbox);
        if !matches!(self.poll_flush(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(()))) {
            // The task waits for the socket, or sees what ails it.
            self.wake.notify_one();
        }
        complete
    }

    /// Writes what waits to the socket, if there is one. Pending: it takes no more just now, and wakes whoever asked last when it does.
    ///
    /// # Errors
    /// The connection has ended.
    pub(crate) fn poll_flush(&self, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        let mut writing = self.writing.lock().expect("nothing panics while it holds this lock");
        writing.as_mut().map_or(Poll::Ready(Ok(())), |writing| writing.poll_flush(context, || self.take()))
    }

    /// Asks the member for a sign of life; `now` comes back in its answer.
    pub(crate) fn ping(&self, now: Duration) {
        self.outbox().ping = Some(now.as_micros() as u64);
    }

    /// Queues a client's operations, and gives them a number to forget them by. The answer goes to the client.
    ///
    /// # Errors
    /// The member cannot be reached; nothing was sent, and the client's reply is still to be given.
    pub(crate) fn forward(&self, forward: Forward<S>) -> Result<u64, (Forward<S>, Unavailable)> {
        let mut pending = self.pending();
        if !self.is_up() {
            return Err((forward, Unavailable::NoLeader));
        }
        if pending.len() >= FORWARDED_MAX {
            return Err((forward, Unavailable::Overloaded));
        }
        let Forward { shard, operations, wait, client } = forward;
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        pending.insert(request, Pending { shard, sent: false, client });
        // Both under one lock: when the connection ends, what is forgotten here must not be sent on the next one.
        self.outbox().forwards.push((request, shard, wait, operations));
        drop(pending);
        self.wake.notify_one();
        Ok(request)
    }

    pub(crate) fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("nothing panics while it holds this lock")
    }

    pub(crate) fn put_request(&self, request: Request) {
        self.outbox().requests.push(request);
        self.wake.notify_one();
    }

    /// Nobody waits for the answer any longer.
    pub(crate) fn forget(&self, request: u64) {
        if self.pending().remove(&request).is_some() {
            self.outbox().forgets.push(request);
            self.wake.notify_one();
        }
    }

    /// Takes out the clients whose requests were sent for groups of which this is said.
    pub(crate) fn give_up(&self, of: impl Fn(ShardId) -> bool) -> Vec<ReplyTo<S>> {
        let mut pending = self.pending();
        pending
            .extract_if(.., |_, pending| pending.sent && of(pending.shard))
            .map(|(_, pending)| pending.client)
            .collect()
    }

    fn transfers(&self) -> MutexGuard<'_, BTreeMap<ShardId, UnboundedSender<Receipt>>> {
        self.transfers.lock().expect("nothing panics while it holds this lock")
    }

    /// Begins to send a snapshot of a shard; nothing: one is on its way already, or the member cannot be reached.
    pub(crate) fn begin_transfer(&self, shard: ShardId) -> Option<Receipts> {
        let mut transfers = self.transfers();
        if !self.is_up() || transfers.contains_key(&shard) {
            return None;
        }
        let (sender, receipts) = unbounded_channel();
        transfers.insert(shard, sender);
        Some(receipts)
    }

    pub(crate) fn end_transfer(&self, shard: ShardId) {
        self.transfers().remove(&shard);
    }

    /// The member says how far a snapshot is.
    pub(crate) fn on_receipt(&self, shard: ShardId, receipt: Receipt) {
        if let Some(transfer) = self.transfers().get(&shard) {
            // It has given up meanwhile.
            let _ = transfer.send(receipt);
        }
    }

    /// Tells the member how this node is, if it can be reached.
    pub(crate) fn put_report(&self, report: Vec<u8>) {
        if self.is_up() {
            self.outbox().report = Some(report);
            self.wake.notify_one();
        }
    }

    /// Queues a piece of a snapshot.
    pub(crate) fn put_chunk(&self, chunk: Vec<u8>) {
        self.outbox().chunks.push(chunk);
        self.wake.notify_one();
    }

    /// Takes out what is to be sent now. Forwarded requests count as sent from here on.
    fn take(&self) -> Outbox {
        let taken = std::mem::take(&mut *self.outbox());
        if !taken.forwards.is_empty() {
            let mut pending = self.pending();
            for (request, ..) in &taken.forwards {
                if let Some(pending) = pending.get_mut(request) {
                    pending.sent = true;
                }
            }
        }
        taken
    }

    /// The client of an answered request; nothing if it was forgotten.
    pub(crate) fn answered(&self, request: u64) -> Option<ReplyTo<S>> {
        self.pending().remove(&request).map(|pending| pending.client)
    }

    /// The handshake is done: what comes from now on is written there.
    pub(crate) fn connected(&self, socket: Sink) {
        *self.writing.lock().expect("nothing panics while it holds this lock") = Some(Writing::new(socket));
        self.up.store(true, Ordering::Release);
    }

    /// The connection has ended. Returns the clients that wait, and what they are to be told: of what was not sent nothing happened.
    pub(crate) fn lost(&self) -> Vec<(ReplyTo<S>, Unavailable)> {
        // First: what is not sent by now never will be.
        *self.writing.lock().expect("nothing panics while it holds this lock") = None;
        let mut pending = self.pending();
        self.up.store(false, Ordering::Release);
        let waiting = std::mem::take(&mut *pending);
        drop(pending);
        drop(self.take());
        // Whoever sends a snapshot hears that nothing comes any more.
        self.transfers().clear();
        self.waiting().clear();
        let why = |sent: bool| if sent { Unavailable::Unknown } else { Unavailable::NoLeader };
        waiting.into_values().map(|pending| (pending.client, why(pending.sent))).collect()
    }
}

/// The links of a node, by the id of the member.
pub(crate) struct Links<S: StateMachine> {
    by_id: Mutex<BTreeMap<u64, Arc<Link<S>>>>,
    /// Tells the dialler that links have come or gone.
    pub(crate) changed: Notify,
}

impl<S: StateMachine> Default for Links<S> {
    fn default() -> Self {
        Links { by_id: Mutex::new(BTreeMap::new()), changed: Notify::new() }
    }
}

impl<S: StateMachine> Links<S> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Link<S>>>> {
        self.by_id.lock().expect("nothing panics while it holds this lock")
    }

    pub(crate) fn get(&self, id: u64) -> Option<Arc<Link<S>>> {
        self.lock().get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Link<S>>> {
        self.lock().values().cloned().collect()
    }

    /// A member has introduced itself to a node that does not know it yet: it is answered where it says.
    pub(crate) fn introduce(&self, member: &Member) {
        let mut links = self.lock();
        if links.len() < LINKS_MAX || links.contains_key(&member.id) {
            links.entry(member.id).or_insert_with(|| Arc::new(Link::new(member.clone()))).turn_to(member);
        }
        drop(links);
        self.changed.notify_one();
    }

    /// Takes over who the other members are. Of those who have introduced themselves and are not among them, whoever was not removed stays:
    /// what this node knows of the members may be old.
    pub(crate) fn follow<'a>(&self, others: impl Iterator<Item = &'a Member>, was_removed: impl Fn(u64) -> bool) {
        let mut links = self.lock();
        let mut gone = std::mem::take(&mut *links);
        for member in others {
            let link = gone.remove(&member.id).unwrap_or_else(|| Arc::new(Link::new(member.clone())));
            link.turn_to(member);
            links.insert(member.id, link);
        }
        links.extend(gone.extract_if(.., |id, _| !was_removed(*id)));
        gone.into_values().for_each(|link| drop(link.target.send_replace(None)));
        drop(links);
        self.changed.notify_one();
    }
}
