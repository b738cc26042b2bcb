//! Where threads meet: bounded queues of requests, one for each shard, in front of the loop.
//!
//! A full queue refuses at once, so nothing that was refused has had an effect. The loop sleeps only when all queues are empty, and whoever
//! fills one wakes it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use base::ShardId;
use base::machine::StateMachine;
use crossbeam_queue::{ArrayQueue, SegQueue};
use replica::Event;
use storage::StorageError;

use crate::lane::ReplyTo;

/// What the loop is asked for besides requests. There is at most a handful at a time, or as many as there are waiting requests.
pub(crate) enum Control {
    /// A waiting request's client has gone.
    Forget(ShardId, u64),
    /// Let nobody wait any longer; everything else goes on.
    Drain,
    /// Stop: answer who waits, write a last checkpoint, end.
    Stop,
    /// A checkpoint is durable.
    Saved(crate::checkpoints::Saved),
    /// A file for a later segment of the log is there.
    Spare(storage::wal::Spare),
    /// Writing a checkpoint or a file has failed.
    Failed(StorageError),
}

/// The queues in front of the loop.
pub(crate) struct Inbox<S: StateMachine> {
    shards: Vec<ArrayQueue<Event<S, ReplyTo<S>>>>,
    control: SegQueue<Control>,
    asleep: AtomicBool,
    owner: OnceLock<Thread>,
}

impl<S: StateMachine> Inbox<S> {
    /// Queues for `shards` shards of `depth` requests each.
    pub(crate) fn new(shards: u16, depth: usize) -> Inbox<S> {
        Inbox {
            shards: (0..shards).map(|_| ArrayQueue::new(depth)).collect(),
            control: SegQueue::new(),
            asleep: AtomicBool::new(false),
            owner: OnceLock::new(),
        }
    }

    /// Queues a request. False: the shard's queue is full.
    ///
    /// # Panics
    /// There is no such shard.
    pub(crate) fn push(&self, shard: ShardId, event: Event<S, ReplyTo<S>>) -> bool {
        let taken = self.shards[usize::from(shard.0)].push(event).is_ok();
        if taken {
            self.wake();
        }
        taken
    }

    pub(crate) fn control(&self, control: Control) {
        self.control.push(control);
        self.wake();
    }

    /// Wakes the loop if it sleeps.
    pub(crate) fn wake(&self) {
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(owner) = self.owner.get()
        {
            owner.unpark();
        }
    }

    pub(crate) fn pop(&self, shard: ShardId) -> Option<Event<S, ReplyTo<S>>> {
        self.shards[usize::from(shard.0)].pop()
    }

    pub(crate) fn pop_control(&self) -> Option<Control> {
        self.control.pop()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.control.is_empty() && self.shards.iter().all(ArrayQueue::is_empty)
    }

    /// Requests that wait, all shards together.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(ArrayQueue::len).sum()
    }

    /// The loop's thread calls this once, before it sleeps for the first time.
    pub(crate) fn own(&self) {
        let first = self.owner.set(std::thread::current());
        assert!(first.is_ok(), "a node has one loop");
    }

    /// Sleeps until somebody queues something, at most `longest`.
    pub(crate) fn sleep(&self, longest: Duration) {
        self.asleep.store(true, Ordering::SeqCst);
        // Whoever has queued something before it could see the flag is seen here.
        if self.is_empty() {
            std::thread::park_timeout(longest);
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}
