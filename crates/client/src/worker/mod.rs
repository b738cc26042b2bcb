//! A worker: claims tasks, runs a handler for each, keeps their leases, tells how they went, and stops without losing any.
//!
//! | part | does |
//! |---|---|
//! | `claim` | asks for as many tasks as slots are free, waiting at the server while there are none |
//! | `job` | runs one handler, watches over it, and says what is to be told |
//! | `leases` | extends every lease in good time; tells a handler when it has lost its own |
//! | `reports` | tells how tasks went, many in one call |
//!
//! **Stopping** has phases, each bounded: no task is claimed any more; handlers go on for [`WorkerBuilder::drain`]; then they are told to
//! stop, and have [`WorkerBuilder::stop`] for it; then those that are left are dropped at the next point where they wait, and their tasks
//! given back, which costs them no attempt. Leases are kept all the while, and what is to be told is told before the worker ends.

mod claim;
mod job;
mod leases;
mod reports;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client::Client;
use crate::error::Error;
use crate::routes::Outcome;
use leases::Leases;
use reports::Reports;

pub use job::{Failure, Job, Stop};

/// What a handler has come to.
type Ended = Pin<Box<dyn Future<Output = Verdict> + Send>>;
type Handler = Box<dyn Fn(Job) -> Ended + Send + Sync>;

/// What is to be told of a task.
enum Verdict {
    Tell(Outcome),
    /// Give it back.
    Release,
}

/// A worker to be made: which queues it works on, and how. Made by [`Client::worker`].
///
/// ```
/// # async fn example(client: client::Client, told: impl Future<Output = ()>) -> Result<(), client::Error> {
/// use client::{Failure, Job};
///
/// #[derive(serde::Deserialize)]
/// struct Mail {
///     to: String,
/// }
///
/// let worker = client.worker().slots(32).handle("mail", |mail: Mail, job: Job| async move {
///     if mail.to.is_empty() {
///         return Err(Failure::permanent("nobody to send it to"));
///     }
///     println!("{} gets mail, attempt {}", mail.to, job.attempt());
///     Ok(serde_json::json!({"sent": true}))
/// });
/// let summary = worker.run(told).await?;
/// println!("{} done", summary.completed);
/// # assert_eq!((summary.completed, summary.failed), (1, 1));
/// # Ok(())
/// # }
/// # let runtime = tokio::runtime::Runtime::new().expect("a runtime");
/// # runtime.block_on(async {
/// #     let server = testserver::TestServer::start().await;
/// #     let client = server.client();
/// #     let mut ids = Vec::new();
/// #     for to in ["ada", ""] {
/// #         let task = client::NewTask::new("mail", &serde_json::json!({"to": to})).expect("it is JSON");
/// #         ids.push(client.create(task).await.expect("it is created").task.id);
/// #     }
/// #     let both = client.clone();
/// #     let told = async move {
/// #         for id in ids {
/// #             both.finished(&id, std::time::Duration::from_secs(30)).await.expect("it answers").expect("it ends");
/// #         }
/// #     };
/// #     example(client, told).await.expect("it runs");
/// #     server.stop().await;
/// # });
/// ```
pub struct WorkerBuilder {
    client: Client,
    handlers: BTreeMap<String, Handler>,
    slots: usize,
    lease: Duration,
    drain: Duration,
    stop: Duration,
}

/// What a worker has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Tasks completed.
    pub completed: u64,
    /// Tasks failed for good.
    pub failed: u64,
    /// Attempts that failed, and are tried again while any are left.
    pub retried: u64,
    /// Tasks given back.
    pub released: u64,
    /// Tasks whose lease was lost, or whose outcome could not be told. Somebody else does them again.
    pub lost: u64,
}

/// The same, while it is counted.
#[derive(Debug, Default)]
struct Counts {
    completed: AtomicU64,
    failed: AtomicU64,
    retried: AtomicU64,
    released: AtomicU64,
    lost: AtomicU64,
}

/// What the parts of a running worker share.
struct Crew {
    client: Client,
    handlers: BTreeMap<String, Handler>,
    lease: Duration,
    slots: Arc<Semaphore>,
    leases: Leases,
    reports: Reports,
    counts: Counts,
    phase: watch::Sender<Phase>,
}

/// How far a worker is on its way to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Working,
    /// No task is claimed any more.
    Draining,
    /// Handlers are told to stop.
    Stopping,
    /// Handlers are dropped.
    Dropping,
}

impl Client {
    /// A worker on the queues that it is given handlers for.
    pub fn worker(&self) -> WorkerBuilder {
        WorkerBuilder {
            client: self.clone(),
            handlers: BTreeMap::new(),
            slots: 8,
            lease: Duration::from_secs(30),
            drain: Duration::from_secs(25),
            stop: Duration::from_secs(5),
        }
    }
}

impl WorkerBuilder {
    /// Tasks at one time. Left out: 8.
    #[must_use]
    pub fn slots(mut self, slots: usize) -> WorkerBuilder {
        self.slots = slots.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// How long a task stays with a worker that has gone, before somebody else gets it: leases have this length, and are extended after a
    /// third of it. Left out: 30 s.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> WorkerBuilder {
        self.lease = lease;
        self
    }

    /// How long handlers may go on when the worker is asked to end. Left out: 25 s.
    #[must_use]
    pub fn drain(mut self, longest: Duration) -> WorkerBuilder {
        self.drain = longest;
        self
    }

    /// How long they may take after they were told to stop. Left out: 5 s.
    #[must_use]
    pub fn stop(mut self, longest: Duration) -> WorkerBuilder {
        self.stop = longest;
        self
    }

    /// Works on this queue. The handler gets the payload as a type of its own; a task whose payload does not fit fails for good. What it
    /// returns becomes the task's result; see [`Failure`] for what else it may say. If it panics, the attempt has failed.
    #[must_use]
    pub fn handle<P, R, F, W>(mut self, command: &str, handler: F) -> WorkerBuilder
    where
        P: DeserializeOwned,
        R: Serialize,
        F: Fn(P, Job) -> W + Send + Sync + 'static,
        W: Future<Output = Result<R, Failure>> + Send + 'static,
    {
        let handler = move |job: Job| -> Ended {
            match job.task().payload::<P>() {
                Ok(payload) => {
                    let work = handler(payload, job);
                    Box::pin(async move { job::verdict(work.await) })
                }
                Err(why) => {
                    let text = format!("the payload does not fit: {why}");
                    Box::pin(std::future::ready(Verdict::Tell(Outcome::Failed(text))))
                }
            }
        };
        self.handlers.insert(command.into(), Box::new(handler));
        self
    }

    /// Works until `until` is there, then ends in phases. If this future is dropped instead, so are the handlers, and their tasks are given
    /// back as far as the runtime goes on.
    ///
    /// # Errors
    /// The server refuses to give it tasks; what it had begun was ended as in any case.
    pub async fn run(self, until: impl Future<Output = ()>) -> Result<Summary, Error> {
        if self.handlers.is_empty() {
            return Err(Error::Unusable("a worker needs a handler".into()));
        }
        let slots = Arc::new(Semaphore::new(self.slots));
        let (reports, to_tell) = Reports::new();
        let crew = Arc::new(Crew {
            client: self.client,
            handlers: self.handlers,
            lease: self.lease,
            slots: slots.clone(),
            leases: Leases::default(),
            reports,
            counts: Counts::default(),
            phase: watch::Sender::new(Phase::Working),
        });
        let _ending = Ending(crew.clone());
        // All of these end with this future.
        let mut parts = JoinSet::new();
        parts.spawn(leases::keep(crew.clone()));
        parts.spawn(reports::tell(crew.client.clone(), to_tell));
        let mut claimers = JoinSet::new();
        for _ in 0..claim::claimers(self.slots) {
            claimers.spawn(claim::claim(crew.clone()));
        }
        let refused = tokio::select! {
            () = until => None,
            ended = claimers.join_next() => Some(ended.expect("there is one").expect("a claimer does not panic")),
        };
        crew.phase.send_replace(Phase::Draining);
        let all = u32::try_from(self.slots).unwrap_or(u32::MAX);
        for (phase, longest) in [(Phase::Stopping, self.drain), (Phase::Dropping, self.stop)] {
            if timeout(longest, slots.acquire_many(all)).await.is_ok() {
                break;
            }
            crew.phase.send_replace(phase);
        }
        // What is left is to be told or given back; a cluster that takes nothing now will do it when the leases end.
        let is_done = timeout(self.stop.max(LAST_WORDS), slots.acquire_many(all)).await.is_ok();
        let mut summary = crew.counts.summary();
        if !is_done {
            summary.lost += crew.leases.count() as u64;
        }
        match refused {
            Some(Err(error)) => Err(error),
            Some(Ok(())) | None => Ok(summary),
        }
    }
}

/// Drops all handlers when the worker ends, however that comes.
struct Ending(Arc<Crew>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.phase.send_replace(Phase::Dropping);
    }
}

/// The least time for telling what the last tasks have come to.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl Counts {
    fn summary(&self) -> Summary {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Summary {
            completed: read(&self.completed),
            failed: read(&self.failed),
            retried: read(&self.retried),
            released: read(&self.released),
            lost: read(&self.lost),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl std::fmt::Debug for WorkerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let commands: Vec<&String> = self.handlers.keys().collect();
        f.debug_struct("WorkerBuilder").field("commands", &commands).field("slots", &self.slots).finish_non_exhaustive()
    }
}
