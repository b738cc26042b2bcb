//! Answers to requests that another node has forwarded: the loop puts them in, a task of the connection sends them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use base::ShardId;
use base::machine::StateMachine;
use replica::Reply;
use tokio::sync::Notify;

/// The way back of one connection.
pub(crate) struct Answers<S: StateMachine> {
    waiting: Mutex<Vec<(u64, Reply<S>)>>,
    /// Requests that may wait for something to do, by number: where, and under which number.
    parked: Mutex<BTreeMap<u64, (ShardId, u64)>>,
    pub(crate) wake: Notify,
    closed: AtomicBool,
}

impl<S: StateMachine> Answers<S> {
    pub(crate) fn new() -> Answers<S> {
        Answers {
            waiting: Mutex::new(Vec::new()),
            parked: Mutex::new(BTreeMap::new()),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
        }
    }

    /// Hands an answer over.
    ///
    /// # Errors
    /// The connection has ended: nobody will take it.
    pub(crate) fn put(&self, request: u64, reply: Reply<S>) -> Result<(), Reply<S>> {
        let mut waiting = self.waiting.lock().expect("nothing panics while it holds this lock");
        if self.closed.load(Ordering::Relaxed) {
            return Err(reply);
        }
        let was_empty = waiting.is_empty();
        waiting.push((request, reply));
        drop(waiting);
        if was_empty {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// What is to be sent now.
    pub(crate) fn take(&self) -> Vec<(u64, Reply<S>)> {
        let taken = std::mem::take(&mut *self.waiting.lock().expect("nothing panics while it holds this lock"));
        if !taken.is_empty() {
            let mut parked = self.parked.lock().expect("nothing panics while it holds this lock");
            if !parked.is_empty() {
                parked.retain(|request, _| !taken.iter().any(|(answered, _)| answered == request));
            }
        }
        taken
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// A request may wait from now on.
    pub(crate) fn park(&self, request: u64, shard: ShardId, wait: u64) {
        self.parked.lock().expect("nothing panics while it holds this lock").insert(request, (shard, wait));
    }

    /// The other side does not want the answer any longer.
    pub(crate) fn unpark(&self, request: u64) -> Option<(ShardId, u64)> {
        self.parked.lock().expect("nothing panics while it holds this lock").remove(&request)
    }

    /// The connection has ended. Returns the answers that nobody took, and the requests that wait in vain.
    pub(crate) fn close(&self) -> (Vec<(u64, Reply<S>)>, Vec<(ShardId, u64)>) {
        let mut waiting = self.waiting.lock().expect("nothing panics while it holds this lock");
        self.closed.store(true, Ordering::Relaxed);
        let left = std::mem::take(&mut *waiting);
        drop(waiting);
        let mut parked = self.parked.lock().expect("nothing panics while it holds this lock");
        (left, std::mem::take(&mut *parked).into_values().collect())
    }
}
