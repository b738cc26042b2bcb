//! The load itself.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::task::LocalSet;

use crate::bench::connection::{As, Connection, RECONNECT, Target};
use crate::bench::report::{Measured, Report};
use crate::bench::verify::{Ledger, verify};
use crate::bench::{BenchArgs, Workload, sdk};

/// What one thread has measured and was told.
pub(super) struct Log {
    /// Latency in microseconds by kind of request.
    pub(super) create: Histogram<u64>,
    pub(super) claim: Histogram<u64>,
    pub(super) complete: Histogram<u64>,
    pub(super) read: Histogram<u64>,
    /// From the acknowledgement of a creation to the answer of the worker that waited for it.
    pub(super) hand_over: Histogram<u64>,
    pub(super) cycles: u64,
    pub(super) empty_claims: u64,
    pub(super) errors: u64,
    pub(super) first_error: Option<String>,
    pub(super) ledger: Ledger,
}

/// What the threads share while they run.
pub(super) struct Shared {
    targets: Vec<Target>,
    pub(super) args: BenchArgs,
    pub(super) payload: String,
    pub(super) requests: AtomicU64,
    errors: AtomicU64,
    /// The measurement is over.
    pub(super) stop: AtomicBool,
}

impl Log {
    pub(super) fn new() -> Log {
        let histogram = || Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are in order");
        Log {
            create: histogram(),
            claim: histogram(),
            complete: histogram(),
            read: histogram(),
            hand_over: histogram(),
            cycles: 0,
            empty_claims: 0,
            errors: 0,
            first_error: None,
            ledger: Ledger::default(),
        }
    }

    fn note_error(&mut self, error: &anyhow::Error) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| format!("{error:#}"));
    }

    fn note_hand_over(&mut self, took: Duration, created: Option<&str>) {
        self.hand_over.saturating_record(took.as_micros() as u64);
        created.into_iter().for_each(|id| self.ledger.created(id));
    }

    fn merge(&mut self, other: Log) {
        for (mine, its) in [
            (&mut self.create, &other.create),
            (&mut self.claim, &other.claim),
            (&mut self.complete, &other.complete),
            (&mut self.read, &other.read),
            (&mut self.hand_over, &other.hand_over),
        ] {
            mine.add(its).expect("the bounds are equal");
        }
        self.cycles += other.cycles;
        self.empty_claims += other.empty_claims;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.ledger.merge(other.ledger);
    }
}

/// Runs the load that was asked for, and the check.
pub(super) fn run(args: &BenchArgs) -> Result<Report> {
    let target = |url: &String| Target::new(url, args.token.as_deref(), args.worker_token.as_deref());
    let targets = args.url.iter().map(target).collect::<Result<Vec<_>>>()?;
    let payload = payload(args.payload);
    let shared = Arc::new(Shared {
        targets: targets.clone(),
        args: args.clone(),
        payload,
        requests: AtomicU64::new(0),
        errors: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    targets.iter().try_for_each(|target| on_a_runtime(probe(target)))?;
    let mut all = Log::new();
    if args.prefill > 0 {
        crate::output::note(&format!("creating {} tasks first", args.prefill));
        all.ledger = on_a_runtime(prefill(&shared, args.prefill))?;
    }
    let syncs_before = on_a_runtime(counters(&targets));
    let start = Instant::now();
    let threads: Vec<_> = (0..args.threads)
        .map(|number| {
            let shared = shared.clone();
            std::thread::spawn(move || on_a_runtime(one_thread(&shared, number, start)))
        })
        .collect();
    show_progress(&shared, start);
    shared.stop.store(true, Ordering::Relaxed);
    for thread in threads {
        all.merge(thread.join().expect("a thread of the load generator panicked")?);
    }
    let elapsed = start.elapsed();
    let syncs_after = on_a_runtime(counters(&targets));
    let verdict = if args.no_verify {
        None
    } else {
        crate::output::note("checking every acknowledged task");
        Some(on_a_runtime(verify(&targets[0], &mut all.ledger))?)
    };
    Ok(Report::new(args, Measured { log: all, elapsed, syncs_before, syncs_after, verdict }))
}

fn on_a_runtime<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    LocalSet::new().block_on(&runtime, work)
}

/// JSON of about so many bytes.
fn payload(bytes: usize) -> String {
    let fill = bytes.saturating_sub(8);
    format!("{{\"n\":\"{}\"}}", "x".repeat(fill))
}

async fn probe(target: &Target) -> Result<()> {
    let mut connection = target.connect().await?;
    connection.get(As::Producer, "/healthz").await.context("the server does not answer")?;
    Ok(())
}

/// Syncs and operations of all servers so far, where they tell.
async fn counters(targets: &[Target]) -> Option<(u64, u64)> {
    let mut all = (0, 0);
    for target in targets {
        let (syncs, operations) = counters_of(target).await?;
        all = (all.0 + syncs, all.1 + operations);
    }
    Some(all)
}

async fn counters_of(target: &Target) -> Option<(u64, u64)> {
    let mut connection = target.connect().await.ok()?;
    let answer = connection.get(As::Producer, "/metrics").await.ok()?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let read = |name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.split(' ').next() == Some(name))?;
        line.rsplit(' ').next()?.parse::<f64>().ok().map(|value| value as u64)
    };
    Some((read("codeq_log_syncs_total")?, read("codeq_operations_total")?))
}

fn show_progress(shared: &Shared, start: Instant) {
    let mut before = 0;
    while start.elapsed() < shared.args.duration {
        let left = shared.args.duration - start.elapsed();
        std::thread::sleep(left.min(Duration::from_secs(1)));
        let requests = shared.requests.load(Ordering::Relaxed);
        let errors = shared.errors.load(Ordering::Relaxed);
        let seconds = start.elapsed().as_secs_f64();
        crate::output::note(&format!("{seconds:6.1} s  {:8} requests/s  {errors} errors", requests - before));
        before = requests;
    }
}

async fn one_thread(shared: &Arc<Shared>, number: u32, start: Instant) -> Result<Log> {
    if shared.args.workload == Workload::Sdk {
        return sdk::one_thread(shared, number).await;
    }
    let log = Rc::new(RefCell::new(Log::new()));
    let mut tasks = Vec::new();
    for connection in (number..shared.args.connections).step_by(shared.args.threads as usize) {
        let (shared, log) = (shared.clone(), log.clone());
        tasks.push(tokio::task::spawn_local(async move {
            let mut worker = Worker { number: connection, shared, log, due: None, start, sent: 0 };
            worker.run().await
        }));
    }
    for task in tasks {
        task.await.expect("a task of the load generator panicked")?;
    }
    Ok(Rc::into_inner(log).expect("every task has ended").into_inner())
}

/// One connection with what it does.
struct Worker {
    number: u32,
    shared: Arc<Shared>,
    log: Rc<RefCell<Log>>,
    /// When the next request is due, in an open loop.
    due: Option<Instant>,
    start: Instant,
    sent: u64,
}

impl Worker {
    async fn run(&mut self) -> Result<()> {
        let mut connection = self.target().connect().await?;
        let mut own = None;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let done = match self.shared.args.workload {
                Workload::Create => self.create(&mut connection).await.map(drop),
                Workload::Work => self.work(&mut connection).await,
                Workload::Cycle => match self.create(&mut connection).await {
                    Ok(_) => self.work(&mut connection).await,
                    Err(error) => Err(error),
                },
                Workload::Read => self.read(&mut connection, &mut own).await,
                Workload::LongPoll => self.long_poll(&mut connection).await,
                Workload::Sdk => unreachable!("its threads have no connections of their own"),
            };
            if let Err(error) = done {
                self.shared.errors.fetch_add(1, Ordering::Relaxed);
                self.log.borrow_mut().note_error(&error);
                tokio::time::sleep(RECONNECT).await;
            }
        }
        Ok(())
    }

    fn target(&self) -> &Target {
        &self.shared.targets[self.number as usize % self.shared.targets.len()]
    }

    fn command(&self) -> u32 {
        self.number % self.shared.args.commands
    }

    /// Creates a task and returns its id.
    async fn create(&mut self, connection: &mut Connection) -> Result<String> {
        let body = format!("{{\"command\":\"bench-{}\",\"payload\":{}}}", self.command(), self.shared.payload);
        let begun = self.begin().await;
        let answer = match connection.post(As::Producer, "/v1/codeq/tasks", body.into()).await {
            Ok(answer) => answer.expect(&[202])?,
            Err(error) => {
                self.log.borrow_mut().ledger.maybe_created += 1;
                return Err(error);
            }
        };
        let mut log = self.log.borrow_mut();
        log.create.saturating_record(micros(begun));
        if self.shared.args.workload == Workload::Create {
            log.cycles += 1;
        }
        let id = answer.text("id").context("the answer has an id")?;
        if !self.shared.args.no_verify {
            log.ledger.created(id);
        }
        Ok(id.to_owned())
    }

    /// Reads the connection's own task, which is made at the first time.
    async fn read(&mut self, connection: &mut Connection, own: &mut Option<String>) -> Result<()> {
        let id = match own {
            Some(id) => id,
            None => own.insert(self.create(connection).await?),
        };
        let path = format!("/v1/codeq/tasks/{id}");
        let begun = self.begin().await;
        connection.get(As::Producer, &path).await?.expect(&[200])?;
        let mut log = self.log.borrow_mut();
        log.read.saturating_record(micros(begun));
        log.cycles += 1;
        Ok(())
    }

    async fn work(&mut self, connection: &mut Connection) -> Result<()> {
        let body = format!("{{\"commands\":[\"bench-{}\"]}}", self.command());
        let begun = self.begin().await;
        let answer = connection.post(As::Worker, "/v1/codeq/tasks/claim", body.into()).await?.expect(&[200, 204])?;
        self.log.borrow_mut().claim.saturating_record(micros(begun));
        if answer.status == 204 {
            self.log.borrow_mut().empty_claims += 1;
            return Ok(());
        }
        self.complete(connection, &answer).await
    }

    async fn complete(
        &mut self,
        connection: &mut Connection,
        claimed: &crate::bench::connection::Answer,
    ) -> Result<()> {
        let id = claimed.text("id").context("the answer has an id")?.to_owned();
        let token = claimed.text("leaseToken").context("the answer has a lease token")?;
        let body = format!("{{\"status\":\"COMPLETED\",\"result\":{{}},\"leaseToken\":\"{token}\"}}");
        let begun = self.begin().await;
        let path = format!("/v1/codeq/tasks/{id}/result");
        connection.post(As::Worker, &path, body.into()).await?.expect(&[200])?;
        let mut log = self.log.borrow_mut();
        log.complete.saturating_record(micros(begun));
        log.cycles += 1;
        if !self.shared.args.no_verify {
            log.ledger.completed(&id);
        }
        Ok(())
    }

    /// Waits with one connection and creates with another one; otherwise idle.
    async fn long_poll(&mut self, connection: &mut Connection) -> Result<()> {
        let command = format!("poll-{}-{}", self.number, std::process::id());
        let mut producer = self.target().connect().await?;
        let claim = Bytes::from(format!("{{\"commands\":[\"{command}\"],\"waitSeconds\":10}}"));
        let create = Bytes::from(format!("{{\"command\":\"{command}\",\"payload\":{}}}", self.shared.payload));
        let waiting = connection.post(As::Worker, "/v1/codeq/tasks/claim", claim);
        let creating = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let created = producer.post(As::Producer, "/v1/codeq/tasks", create).await?.expect(&[202])?;
            anyhow::Ok((created, Instant::now()))
        };
        let both = async { tokio::join!(async { (waiting.await, Instant::now()) }, creating) };
        let ((claimed, woken), created) = both.await;
        let (created, acknowledged) = created?;
        let claimed = claimed?.expect(&[200])?;
        let id = created.text("id").context("the answer has an id")?.to_owned();
        let took = woken.saturating_duration_since(acknowledged);
        self.log.borrow_mut().note_hand_over(took, (!self.shared.args.no_verify).then_some(id.as_str()));
        self.complete(connection, &claimed).await
    }

    /// Waits until the next request is due, in an open loop. Returns when its latency begins.
    async fn begin(&mut self) -> Instant {
        self.shared.requests.fetch_add(1, Ordering::Relaxed);
        self.sent += 1;
        let Some(rate) = self.shared.args.rate else { return Instant::now() };
        let connections = f64::from(self.shared.args.connections);
        let interval = Duration::from_secs_f64(connections / rate as f64);
        let first = self.start + interval.mul_f64(f64::from(self.number) / connections);
        let due = self.due.map_or(first, |due| due + interval);
        self.due = Some(due);
        tokio::time::sleep_until(due.into()).await;
        due
    }
}

fn micros(since: Instant) -> u64 {
    since.elapsed().as_micros() as u64
}

/// Creates tasks in batches before the measurement.
async fn prefill(shared: &Arc<Shared>, count: u64) -> Result<Ledger> {
    let mut connection = shared.targets[0].connect().await?;
    let mut ledger = Ledger::default();
    let mut made = 0;
    while made < count {
        let batch = (count - made).min(100);
        let tasks: Vec<String> = (made..made + batch)
            .map(|number| {
                let command = number % u64::from(shared.args.commands);
                format!("{{\"command\":\"bench-{command}\",\"payload\":{}}}", shared.payload)
            })
            .collect();
        let body = format!("{{\"tasks\":[{}]}}", tasks.join(","));
        let answer = connection.post(As::Producer, "/v1/codeq/tasks/batch", body.into()).await?.expect(&[200])?;
        if !shared.args.no_verify {
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            let ids = body.split("\"task\":{\"id\":\"").skip(1).filter_map(|part| part.split('"').next());
            ids.for_each(|id| ledger.created(id));
        }
        made += batch;
    }
    Ok(ledger)
}
