//! A worker, and what can happen to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use client::{Client, Failure, Finished, Job, NewTask, State, Stop, Summary};
use testserver::TestServer;
use tokio::sync::{Notify, mpsc};

use crate::between::Between;

const LONG: Duration = Duration::from_secs(60);

async fn create(client: &Client, command: &str, payload: impl serde::Serialize) -> String {
    let task = NewTask::new(command, &payload).expect("it is JSON").max_attempts(2);
    client.create(task).await.expect("it is created").task.id
}

async fn finished(client: &Client, id: &str) -> Finished {
    client.finished(id, LONG).await.expect("the server answers").expect("it ends in time")
}

/// Whatever a handler says, or does not, the task shows; each queue has a handler of its own type.
#[tokio::test]
async fn what_handlers_say_is_what_tasks_show() {
    let server = TestServer::with(&[("queue.backoff.policy", "fixed"), ("queue.backoff.base", "1ms")]).await;
    let client = server.client();
    let doubled = create(&client, "double", 21).await;
    let misfit = create(&client, "double", "twenty").await;
    let permanent = create(&client, "text", "permanent").await;
    let error = create(&client, "text", "12x").await;
    let panic = create(&client, "text", "panic").await;
    let released = create(&client, "text", "release").await;
    let releases = Arc::new(AtomicUsize::new(0));
    let worker = client
        .worker()
        .slots(3)
        .handle("double", |number: u32, _: Job| async move { Ok::<_, Failure>(number * 2) })
        .handle("text", move |text: String, job: Job| {
            let releases = releases.clone();
            async move {
                match &*text {
                    "permanent" => Err(Failure::permanent("never")),
                    "panic" => panic!("at attempt {}", job.attempt()),
                    "release" if releases.fetch_add(1, Ordering::SeqCst) == 0 => Err(Failure::release()),
                    "release" => Ok(job.attempt()),
                    _ => Ok(text.parse::<u32>()?),
                }
            }
        });
    let both = client.clone();
    let ids = [doubled, misfit, permanent, error, panic, released];
    let told = ids.clone();
    let summary = worker.run(async move {
        for id in told {
            finished(&both, &id).await;
        }
    });
    let summary = tokio::time::timeout(LONG, summary).await.unwrap().unwrap();
    assert_eq!(summary, Summary { completed: 2, failed: 2, retried: 4, released: 1, lost: 0 });
    let mut shown = Vec::new();
    for id in &ids {
        let Finished { task, result } = finished(&client, id).await;
        let text = result.result.map(|result| result.get().to_owned());
        shown.push((task.state, task.attempts, text.unwrap_or(result.error)));
    }
    let expected = [
        (State::Completed, 1, r#"{"value":42}"#),
        (
            State::Failed,
            1,
            "the payload does not fit: invalid type: string \"twenty\", expected u32 at line 1 column 8",
        ),
        (State::Failed, 1, "never"),
        (State::Dead, 2, "invalid digit found in string"),
        (State::Dead, 2, "the handler panicked: at attempt 2"),
        (State::Completed, 1, r#"{"value":1}"#),
    ];
    assert_eq!(shown, expected.map(|(state, attempts, text)| (state, attempts, text.to_owned())));
    server.stop().await;
}

/// A lease of a second is kept for as long as its handler works: for several seconds of the server's time, which is moved on in steps that are
/// shorter than a lease.
#[tokio::test]
async fn leases_are_kept_while_handlers_work() {
    let server = TestServer::start().await;
    let client = server.client();
    let id = create(&client, "long", 1).await;
    let (begun, mut has_begun) = mpsc::channel(1);
    let end = Arc::new(Notify::new());
    let finish = end.clone();
    let worker = client.worker().lease(Duration::from_secs(1)).handle("long", move |_: u32, job: Job| {
        let (begun, end) = (begun.clone(), end.clone());
        async move {
            begun.send(()).await?;
            tokio::select! {
                () = end.notified() => Ok(()),
                why = job.stopped() => Err(Failure::permanent(format!("{why:?}"))),
            }
        }
    });
    let both = client.clone();
    let work = tokio::spawn(worker.run(async move {
        finished(&both, &id).await;
    }));
    has_begun.recv().await.unwrap();
    for _ in 0..5 {
        let before = operations(&client).await;
        server.advance(Duration::from_millis(300)).await;
        // The next operation is an extension: then there is a whole second again.
        while operations(&client).await == before {
            tokio::task::yield_now().await;
        }
        assert_eq!(client.queue("long").await.unwrap().in_progress, 1);
    }
    finish.notify_one();
    let summary = tokio::time::timeout(LONG, work).await.unwrap().unwrap().unwrap();
    assert_eq!((summary.completed, summary.lost), (1, 0));
    server.stop().await;
}

/// How many operations the server has taken.
async fn operations(client: &Client) -> u64 {
    let answer = client.send(client::AnyRequest::get("/metrics")).await.expect("the server answers");
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let count = text.lines().find_map(|line| line.strip_prefix("codeq_operations_total "));
    count.and_then(|count| count.parse().ok()).expect("there is a count of operations")
}

/// The server's time jumps over the end of a lease: the handler hears it, what it says does not count, and the next worker does the task.
#[tokio::test]
async fn a_handler_hears_that_its_lease_is_lost() {
    let server = TestServer::with(&[("queue.backoff.policy", "fixed"), ("queue.backoff.base", "1ms")]).await;
    let client = server.client();
    let id = create(&client, "mail", 1).await;
    let (begun, mut has_begun) = mpsc::channel(1);
    let (why, mut heard) = mpsc::channel(1);
    let worker = client.worker().slots(1).lease(Duration::from_secs(1)).handle("mail", move |_: u32, job: Job| {
        let (begun, why) = (begun.clone(), why.clone());
        async move {
            if job.attempt() == 2 {
                return Ok("by the second");
            }
            begun.send(()).await?;
            why.send(job.stopped().await).await?;
            Ok("by the first")
        }
    });
    let both = client.clone();
    let told = id.clone();
    let work = tokio::spawn(worker.run(async move {
        finished(&both, &told).await;
    }));
    has_begun.recv().await.unwrap();
    server.advance(Duration::from_secs(2)).await;
    assert_eq!(tokio::time::timeout(LONG, heard.recv()).await.unwrap(), Some(Stop::LeaseLost));
    let summary = tokio::time::timeout(LONG, work).await.unwrap().unwrap().unwrap();
    assert_eq!((summary.completed, summary.lost), (1, 1));
    let Finished { task, result } = finished(&client, &id).await;
    assert_eq!((task.attempts, result.result.unwrap().get()), (2, r#"{"value":"by the second"}"#));
    server.stop().await;
}

/// Somebody cancels a task that is being worked on: the handler hears it with the next extension.
#[tokio::test]
async fn a_handler_hears_that_its_task_is_cancelled() {
    let server = TestServer::start().await;
    let client = server.client();
    let id = create(&client, "mail", 1).await;
    let (begun, mut has_begun) = mpsc::channel(1);
    let worker = client.worker().lease(Duration::from_secs(1)).handle("mail", move |_: u32, job: Job| {
        let begun = begun.clone();
        async move {
            begun.send(()).await?;
            assert_eq!(job.stopped().await, Stop::Cancelled);
            Err::<(), _>(Failure::retry("stopped half way"))
        }
    });
    let (both, told) = (client.clone(), id.clone());
    let work = tokio::spawn(worker.run(async move {
        finished(&both, &told).await;
    }));
    has_begun.recv().await.unwrap();
    assert!(client.cancel(&id, "no need", false).await.unwrap().cancel_requested);
    tokio::time::timeout(LONG, work).await.unwrap().unwrap().unwrap();
    assert_eq!(finished(&client, &id).await.task.state, State::Cancelled);
    server.stop().await;
}

/// A worker that is to end claims nothing more, lets handlers finish, tells the next ones to stop, and gives back what does not: no attempt
/// is lost.
#[tokio::test]
async fn a_worker_ends_in_phases() {
    let server = TestServer::start().await;
    let client = server.client();
    let ids = [create(&client, "mail", 0).await, create(&client, "mail", 1).await, create(&client, "mail", 2).await];
    let (begun, mut has_begun) = mpsc::channel(3);
    let end = Arc::new(Notify::new());
    let quick = end.clone();
    let worker = client.worker().slots(3).drain(Duration::from_millis(200)).stop(Duration::from_millis(200)).handle(
        "mail",
        move |number: u32, job: Job| {
            let (begun, quick) = (begun.clone(), quick.clone());
            async move {
                begun.send(()).await?;
                match number {
                    0 => quick.notified().await,
                    1 => assert_eq!(job.stopped().await, Stop::WorkerEnds),
                    _ => std::future::pending().await,
                }
                Ok(number)
            }
        },
    );
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let work = tokio::spawn(worker.run(async move {
        // Its sender sends.
        let _ = stopped.await;
    }));
    for _ in 0..3 {
        has_begun.recv().await.unwrap();
    }
    stop.send(()).unwrap();
    let late = create(&client, "mail", 3).await;
    end.notify_one();
    let summary = tokio::time::timeout(LONG, work).await.unwrap().unwrap().unwrap();
    assert_eq!(summary, Summary { completed: 2, released: 1, ..Summary::default() });
    let mut states = Vec::new();
    for id in ids.iter().chain([&late]) {
        let task = client.task(id).await.unwrap().expect("it is there");
        states.push((task.state, task.attempts));
    }
    let expected = [(State::Completed, 1), (State::Completed, 1), (State::Ready, 0), (State::Ready, 0)];
    assert_eq!(states, expected);
    server.stop().await;
}

/// Answers to claims and results are lost now and then: each task is completed once, and none is left.
#[tokio::test]
async fn lost_answers_lose_no_task() {
    let server = TestServer::with(&[("queue.backoff.policy", "fixed"), ("queue.backoff.base", "1ms")]).await;
    let between = Arc::new(Between::start(&server.url()).await);
    let client = Client::new(&between.url).unwrap();
    let direct = server.client();
    let tasks = (0..200).map(|number| NewTask::new("mail", &number).unwrap());
    assert!(direct.create_all(tasks).await.iter().all(Result::is_ok));
    let (did, mut done) = mpsc::unbounded_channel();
    let breaker = between.clone();
    let worker = client.worker().slots(16).lease(Duration::from_secs(1)).handle("mail", move |number: u32, _: Job| {
        let (did, breaker) = (did.clone(), breaker.clone());
        async move {
            if number.is_multiple_of(20) {
                breaker.cut(1);
            }
            did.send(number)?;
            Ok::<_, Failure>(())
        }
    });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let work = tokio::spawn(worker.run(async move {
        // Its sender sends.
        let _ = stopped.await;
    }));
    // What was claimed by an answer that was lost comes back when its lease ends.
    let counts = || async { direct.queue("mail").await.unwrap() };
    let left = async {
        loop {
            let counts = counts().await;
            if counts.ready + counts.delayed + counts.in_progress == 0 {
                return counts;
            }
            server.advance(Duration::from_millis(20)).await;
            tokio::task::yield_now().await;
        }
    };
    let counts = tokio::time::timeout(LONG, left).await.expect("all tasks end");
    assert_eq!(counts.dlq, 0);
    stop.send(()).unwrap();
    let summary = tokio::time::timeout(LONG, work).await.unwrap().unwrap().unwrap();
    assert!(summary.completed <= 200 && summary.failed == 0, "{summary:?}");
    let mut numbers = std::collections::BTreeSet::new();
    while let Ok(number) = done.try_recv() {
        numbers.insert(number);
    }
    assert_eq!(numbers.len(), 200);
    server.stop().await;
}

/// A worker whose token or queue is refused says so at once.
#[tokio::test]
async fn a_worker_that_is_refused_ends() {
    let server = TestServer::start().await;
    let worker = server.client().worker().handle("no such name", |_: u32, _: Job| async { Ok::<_, Failure>(()) });
    let error =
        tokio::time::timeout(LONG, worker.run(std::future::pending())).await.unwrap().expect_err("it is refused");
    assert!(error.is(client::Code::InvalidCommand), "{error}");
    let empty = server.client().worker().run(std::future::pending()).await;
    assert!(empty.is_err());
    server.stop().await;
}
