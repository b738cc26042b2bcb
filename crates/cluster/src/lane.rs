//! Replies on their way back: one wake-up carries all replies of a turn to one runtime.
//!
//! Waking a runtime of another thread costs a system call. A lane belongs to one runtime; the loop puts a turn's replies into it and wakes it
//! once, and the lane's task hands them to their futures, which are on the same thread.

use std::sync::{Arc, Mutex};

use base::machine::StateMachine;
use replica::{Client, Reply, Unavailable};
use tokio::sync::{Notify, oneshot};

use crate::node::Common;
use crate::peer::Answers;

/// Names a lane of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneId(pub(crate) usize);

/// Whoever waits for a reply.
pub(crate) enum ReplyTo<S: StateMachine> {
    /// A client of this node.
    Local {
        sender: oneshot::Sender<Reply<S>>,
        /// None: the reply is sent at once.
        lane: Option<LaneId>,
    },
    /// A client of another node, which has forwarded its request.
    Remote { answers: Arc<Answers<S>>, request: u64 },
}

impl<S: StateMachine> Client for ReplyTo<S> {
    fn is_gone(&self) -> bool {
        match self {
            ReplyTo::Local { sender, .. } => sender.is_closed(),
            ReplyTo::Remote { answers, .. } => answers.is_closed(),
        }
    }
}

impl<S: StateMachine> ReplyTo<S> {
    /// Says why there is nothing else to say.
    pub(crate) fn refuse(self, common: &Common<S>, why: Unavailable) {
        common.hand_out(vec![(self, Reply::Unavailable(why))]);
    }
}

pub(crate) type Replies<S> = Vec<(oneshot::Sender<Reply<S>>, Reply<S>)>;

/// What the loop and a lane's task share.
pub(crate) struct Shared<S: StateMachine> {
    waiting: Mutex<Replies<S>>,
    notify: Notify,
}

impl<S: StateMachine> Shared<S> {
    pub(crate) fn new() -> Shared<S> {
        Shared { waiting: Mutex::new(Vec::new()), notify: Notify::new() }
    }

    /// Hands over a turn's replies; leaves `replies` empty.
    pub(crate) fn put(&self, replies: &mut Replies<S>) {
        let mut waiting = self.waiting.lock().expect("nothing panics while it holds this lock");
        let was_empty = waiting.is_empty();
        waiting.append(replies);
        drop(waiting);
        // Replies that were there already have woken the task.
        if was_empty {
            self.notify.notify_one();
        }
    }
}

/// The end of a lane on its runtime.
pub struct Lane<S: StateMachine> {
    pub(crate) id: LaneId,
    pub(crate) shared: Arc<Shared<S>>,
    pub(crate) undelivered: Undelivered<S>,
}

/// What to do with a reply whose client has gone.
pub(crate) type Undelivered<S> = Arc<dyn Fn(Reply<S>) + Send + Sync>;

impl<S: StateMachine> Lane<S> {
    /// Names the lane in requests.
    pub fn id(&self) -> LaneId {
        self.id
    }

    /// Delivers replies for ever; to be run as a task of the runtime that waits for them.
    pub async fn deliver(self) {
        let mut replies = Vec::new();
        loop {
            self.shared.notify.notified().await;
            std::mem::swap(
                &mut replies,
                &mut *self.shared.waiting.lock().expect("nothing panics while it holds this lock"),
            );
            for (sender, reply) in replies.drain(..) {
                if let Err(reply) = sender.send(reply) {
                    (self.undelivered)(reply);
                }
            }
        }
    }
}
