//! Where threads meet: bounded queues of requests, one for each shard, in front of the loop.
//!
//! A full queue refuses at once, so nothing that was refused has had an effect. The loop sleeps only when all queues are empty, and whoever
//! fills one wakes it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use base::machine::StateMachine;
use base::{Millis, ShardId};
use crossbeam_queue::{ArrayQueue, SegQueue};
use replica::{
    Arrived, Event, Joining, Member, MemberChange, Members, Message, RestoreId, RestoreStep, TellSaved, TellShown,
    TokenStep,
};
use storage::StorageError;
use storage::checkpoint::RowReader;

use crate::checkpoints::READERS;
use crate::lane::ReplyTo;

/// What the loop is asked for besides requests. There is at most a handful at a time, or as many as there are waiting requests.
pub(crate) enum Control<S: StateMachine> {
    /// A waiting request's client has gone.
    Forget(ShardId, u64),
    /// The connection to a member has ended.
    Unreachable(u64),
    /// Change the members of a group.
    Change(ShardId, Vec<MemberChange>, Vec<Member>, ReplyTo<S>),
    /// Make a node a member of group 0, if it can be admitted so.
    Admit(Vec<MemberChange>, Member, Joining, ReplyTo<S>),
    /// Make or revoke a join token, if this node leads group 0.
    Token(TokenStep, ReplyTo<S>),
    /// A snapshot has arrived.
    Arrived(Box<Arrived<S>>),
    /// It is the shard's checkpoint now.
    Installed(ShardId, [Box<dyn RowReader>; READERS]),
    /// A snapshot has reached a member, or has not.
    SnapshotSent(ShardId, u64, bool),
    /// A member says this of itself.
    Heard(Member),
    /// Hand the leadership of a group over, if this node has it.
    Transfer(ShardId, u64),
    /// Take a step of a restore, if this node leads group 0.
    Restore(RestoreStep, ReplyTo<S>),
    /// Somebody looks after the restore under way.
    StillRestoring(RestoreId),
    /// What was staged is the shard's checkpoint now, with these members.
    Restored(ShardId, Box<Members>, [Box<dyn RowReader>; READERS]),
    /// Give every group away, and lead none for this long.
    StepDown(Millis),
    /// Leave the groups where they are for a while.
    Settle,
    /// Let nobody wait any longer; everything else goes on.
    Drain,
    /// Stop: answer who waits, write a last checkpoint, end.
    Stop,
    /// Write checkpoints of all shards now, and tell which index each is of.
    Save(TellSaved),
    /// Show readers of checkpoints what is applied now.
    Show(TellShown),
    /// A checkpoint is durable, or shown.
    Saved(crate::checkpoints::Saved),
    /// A file for a later segment of the log is there.
    Spare(storage::wal::Spare),
    /// Writing a checkpoint or a file has failed, or what was read is damaged.
    Failed(StorageError),
}

/// Messages of consensus waiting for the loop.
const MESSAGES_MAX: usize = 8_192;

/// The queues in front of the loop.
pub(crate) struct Inbox<S: StateMachine> {
    shards: Vec<ArrayQueue<Event<S, ReplyTo<S>>>>,
    /// From other members.
    messages: ArrayQueue<(ShardId, Message)>,
    control: SegQueue<Control<S>>,
    asleep: AtomicBool,
    owner: OnceLock<Thread>,
}

impl<S: StateMachine> Inbox<S> {
    /// Queues for `shards` shards of `depth` requests each.
    pub(crate) fn new(shards: u16, depth: usize) -> Inbox<S> {
        Inbox {
            shards: (0..shards).map(|_| ArrayQueue::new(depth)).collect(),
            messages: ArrayQueue::new(MESSAGES_MAX),
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

    /// Whether there is such a shard.
    pub(crate) fn has(&self, shard: ShardId) -> bool {
        usize::from(shard.0) < self.shards.len()
    }

    /// Queues messages from another member. What does not fit is dropped: Raft sends it again.
    pub(crate) fn deliver(&self, messages: Vec<(ShardId, Message)>) {
        for message in messages {
            // A full queue is a loop that does not keep up: the messages are lost as on a network that does not.
            let _ = self.messages.push(message);
        }
        self.wake();
    }

    pub(crate) fn pop_message(&self) -> Option<(ShardId, Message)> {
        self.messages.pop()
    }

    pub(crate) fn control(&self, control: Control<S>) {
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

    pub(crate) fn pop_control(&self) -> Option<Control<S>> {
        self.control.pop()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.control.is_empty() && self.messages.is_empty() && self.shards.iter().all(ArrayQueue::is_empty)
    }

    /// Whether no client's request waits.
    pub(crate) fn has_no_requests(&self) -> bool {
        self.shards.iter().all(ArrayQueue::is_empty)
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
