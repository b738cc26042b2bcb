//! The same cycles by the SDK: its producer creates tasks as fast as they are done, its worker does them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use client::{Client, Failure, Job, NewTask};
use serde::de::IgnoredAny;
use tokio::sync::Semaphore;

use crate::bench::load::{Log, Shared};

/// Tasks that wait or are being done, for each slot: enough that a worker never waits for the producer.
const AHEAD: usize = 4;
/// How often the end is looked for.
const LOOK: Duration = Duration::from_millis(5);

/// One thread's part: a producer and a worker with these slots, until the measurement is over. A cycle is a task that was created, claimed and
/// completed, and whose completion was acknowledged.
pub(super) async fn one_thread(shared: &Arc<Shared>, number: u32) -> Result<Log> {
    let slots = (number..shared.args.connections).step_by(shared.args.threads as usize).count();
    let mut log = Log::new();
    if slots == 0 {
        return Ok(log);
    }
    let url = &shared.args.url[number as usize % shared.args.url.len()];
    let client = |token: Option<&String>| {
        let builder = Client::builder([url]);
        token.map_or(builder.clone(), |token| builder.token(token)).build()
    };
    let token = shared.args.token.as_ref();
    let (producing, working) = (client(token)?, client(shared.args.worker_token.as_ref().or(token))?);
    let command = format!("bench-sdk-{number}");
    let payload: Box<serde_json::value::RawValue> = serde_json::from_str(&shared.payload)?;
    let task = NewTask::new(&command, &payload)?;

    let room = Arc::new(Semaphore::new(slots * AHEAD));
    let done: Arc<Mutex<Vec<String>>> = Arc::default();
    let (freed, noted, counting) = (room.clone(), done.clone(), shared.clone());
    let worker = working.worker().slots(slots).handle(&command, move |_: IgnoredAny, job: Job| {
        if !counting.args.no_verify {
            noted.lock().expect("nothing panics while it holds this lock").push(job.task().id.clone());
        }
        counting.requests.fetch_add(3, Ordering::Relaxed);
        freed.add_permits(1);
        std::future::ready(Ok::<_, Failure>(()))
    });
    let created: Rc<RefCell<Vec<String>>> = Rc::default();
    let made = created.clone();
    let is_verified = !shared.args.no_verify;
    let produce = async {
        let producer = producing.producer();
        loop {
            room.acquire().await.expect("nobody closes it").forget();
            let ticket = producer.send(task.clone()).await;
            let made = made.clone();
            tokio::task::spawn_local(async move {
                if let (Ok(created), true) = (ticket.await, is_verified) {
                    made.borrow_mut().push(created.task.id);
                }
            });
        }
    };
    let over = async {
        while !shared.stop.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK).await;
        }
    };
    let summary = tokio::select! {
        summary = worker.run(over) => summary?,
        () = produce => unreachable!("it ends with the worker"),
    };
    log.cycles = summary.completed;
    log.errors = summary.failed + summary.retried + summary.lost;
    created.borrow().iter().for_each(|id| log.ledger.created(id));
    done.lock().expect("nothing panics while it holds this lock").iter().for_each(|id| log.ledger.completed(id));
    Ok(log)
}
