//! A producer that does not wait for each task: what comes up while a call is under way goes together into the next one.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::client::Client;
use crate::error::Error;
use crate::routes::{CREATE_BATCH_MAX, batch_length};
use crate::task::{Created, NewTask};

/// What tasks under way may take, in KiB; each counts as one at least.
const KIB_MAX: u32 = 16 << 10;
/// Calls under way at one time.
const CALLS_MAX: usize = 4;

/// Creates tasks in the background, in the order in which they come as far as they go in one call. Made by [`Client::producer`].
///
/// What is under way is bounded, at 16 MiB: beyond that [`send`](Producer::send) waits. Nothing waits for a timer: a task that comes alone is
/// sent alone.
///
/// ```
/// # async fn example(client: client::Client) -> Result<(), client::Error> {
/// use client::NewTask;
///
/// let producer = client.producer();
/// let mut tickets = Vec::new();
/// for number in 0..1000 {
///     tickets.push(producer.send(NewTask::new("mail", &number)?).await);
/// }
/// for ticket in tickets {
///     ticket.await?;
/// }
/// # Ok(())
/// # }
/// # let runtime = tokio::runtime::Runtime::new().expect("a runtime");
/// # runtime.block_on(async {
/// #     let server = testserver::TestServer::start().await;
/// #     example(server.client()).await.expect("it runs");
/// #     assert_eq!(server.client().queue("mail").await.expect("it answers").ready, 1000);
/// #     server.stop().await;
/// # });
/// ```
#[derive(Debug)]
pub struct Producer {
    queue: mpsc::UnboundedSender<Queued>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Queued {
    task: NewTask,
    ticket: oneshot::Sender<Result<Created, Error>>,
    place: OwnedSemaphorePermit,
}

/// Becomes what became of a task. It is created whether or not anybody waits for this.
#[derive(Debug)]
pub struct Ticket(oneshot::Receiver<Result<Created, Error>>);

impl Client {
    /// A producer that does not wait for each task.
    pub fn producer(&self) -> Producer {
        let (queue, queued) = mpsc::unbounded_channel();
        // Ends when the producer is dropped and what it was given is done.
        tokio::spawn(run(self.clone(), queued));
        Producer { queue, room: Arc::new(Semaphore::new(KIB_MAX as usize)) }
    }
}

impl Producer {
    /// Takes a task; waits while too much is under way.
    pub async fn send(&self, task: NewTask) -> Ticket {
        let kib = u32::try_from(task.bytes().div_ceil(1024)).unwrap_or(KIB_MAX).min(KIB_MAX);
        let place = self.room.clone().acquire_many_owned(kib).await.expect("nobody closes it");
        let (ticket, told) = oneshot::channel();
        // If the runtime is going down, the ticket says so.
        let _ = self.queue.send(Queued { task: task.keyed(), ticket, place });
        Ticket(told)
    }

    /// Waits until all tasks sent before are decided.
    pub async fn flush(&self) {
        drop(self.room.acquire_many(KIB_MAX).await);
    }
}

impl Future for Ticket {
    type Output = Result<Created, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let gone = || Error::Unknown("the program is going down".into());
        Pin::new(&mut self.0).poll(context).map(|told| told.unwrap_or_else(|_| Err(gone())))
    }
}

async fn run(client: Client, mut queued: mpsc::UnboundedReceiver<Queued>) {
    let calls = Arc::new(Semaphore::new(CALLS_MAX));
    let (mut waiting, mut tasks) = (Vec::new(), Vec::new());
    loop {
        // What was left over goes first.
        if waiting.is_empty() && queued.recv_many(&mut waiting, CREATE_BATCH_MAX).await == 0 {
            return;
        }
        let call = calls.clone().acquire_owned().await.expect("nobody closes it");
        while waiting.len() < CREATE_BATCH_MAX
            && let Ok(another) = queued.try_recv()
        {
            waiting.push(another);
        }
        let mut tickets = Vec::with_capacity(waiting.len());
        for Queued { task, ticket, place } in waiting.drain(..) {
            tasks.push(task);
            tickets.push((ticket, place));
        }
        let length = batch_length(&tasks);
        let rest = tasks.drain(length..).zip(tickets.drain(length..));
        waiting.extend(rest.map(|(task, (ticket, place))| Queued { task, ticket, place }));
        let (client, batch) = (client.clone(), std::mem::take(&mut tasks));
        tokio::spawn(async move {
            let results = client.create_batch(&batch).await;
            for (result, (ticket, place)) in results.into_iter().zip(tickets) {
                // Whoever dropped the ticket does not want to know.
                let _ = ticket.send(result);
                drop(place);
            }
            drop(call);
        });
    }
}
