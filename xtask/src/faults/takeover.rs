//! The leader is killed while nobody works: what waits, what is delayed and what is leased lives on under the next leader.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;

use crate::faults::Run;
use crate::faults::cluster::{Cluster, DEADLINE, NAMES};
use crate::faults::figures::Figures;
use crate::http::Client;

const WAITING: usize = 50;
const DELAYED: usize = 20;
const LEASED: usize = 20;

/// Seconds of delays and of leases, which differ by task: from this on, so many more.
const SECONDS: (u64, u64) = (3, 4);

/// Between the end of a lease and the next attempt.
const BACKOFF: Duration = Duration::from_millis(500);

/// What a task may be late by, beside the outage.
const LATE_MAX: Duration = Duration::from_secs(1);

/// What a task may seem to be early by: clocks of two processes that count milliseconds.
const GRAIN: Duration = Duration::from_millis(2);

/// A task that must be handed out.
struct Expected {
    /// Not before this.
    earliest: Instant,
    /// If nothing went wrong, at this.
    latest: Instant,
    attempt: u64,
    kind: &'static str,
}

/// Kills the leader and sees to it that all tasks come, each at its time.
pub(super) fn take_over(run: &Run) -> Result<()> {
    let mut cluster = Cluster::new(run.codeq(), "take-over", false)?;
    cluster.start_all()?;
    let [mut outages, mut late] = [(); 2].map(|()| Figures::default());
    for round in 1..=run.rounds(1, 20) {
        cluster.wait_until_whole()?;
        let leader = cluster.leader()?;
        let expected = prepare(&cluster, leader)?;
        let killed = Instant::now();
        cluster.kill(leader)?;
        let others = Cluster::others(leader);
        cluster.leader_of(&others)?;
        let outage = killed.elapsed();
        let granted = work(&others.map(|place| cluster.addr(place)), expected.len())?;
        let latest = compare(&expected, &granted, outage)?;
        println!(
            "round {round}: {} killed, the next leads after {} ms; {} tasks handed out, the latest {} ms behind its time",
            NAMES[leader],
            outage.as_millis(),
            granted.len(),
            latest.as_millis()
        );
        outages.add(outage);
        late.add(latest);
        cluster.spawn(leader)?;
        cluster.wait_until_ready(leader)?;
    }
    println!("kill -9 of the leader until the next one is known: {outages}");
    println!("the latest task of a round, behind its time: {late}");
    Ok(())
}

/// Creates the tasks, and claims those that are to be leased.
fn prepare(cluster: &Cluster, leader: usize) -> Result<BTreeMap<String, Expected>> {
    let mut client = Client::connect(cluster.addr(leader))?;
    let mut expected = BTreeMap::new();
    let seconds = |number: usize| SECONDS.0 + number as u64 % SECONDS.1;
    let mut create = |body: serde_json::Value| -> Result<(String, Instant, Instant)> {
        let sent = Instant::now();
        let answer = client.post("/v1/codeq/tasks", &body.to_string())?;
        let id = answer.json()?["id"].as_str().map(str::to_owned);
        Ok((id.with_context(|| format!("a creation was answered with {answer}"))?, sent, Instant::now()))
    };
    // Leases first, or the claims would find those that are to wait.
    for _ in 0..LEASED {
        create(json!({ "command": "take-over", "payload": {} }))?;
    }
    let mut worker = Client::connect(cluster.addr(leader))?;
    for number in 0..LEASED {
        let lease = seconds(number);
        let sent = Instant::now();
        let answer = worker
            .post("/v1/codeq/tasks/claim", &json!({ "commands": ["take-over"], "leaseSeconds": lease }).to_string())?;
        let id = answer.json()?["id"].as_str().map(str::to_owned);
        let id = id.with_context(|| format!("a claim was answered with {answer}"))?;
        let length = Duration::from_secs(lease) + BACKOFF;
        let latest = Instant::now() + length;
        expected.insert(id, Expected { earliest: sent + length, latest, attempt: 2, kind: "leased" });
    }
    for number in 0..DELAYED {
        let delay = seconds(number);
        let (id, sent, done) = create(json!({ "command": "take-over", "payload": {}, "delaySeconds": delay }))?;
        let delay = Duration::from_secs(delay);
        let task = Expected { earliest: sent + delay, latest: done + delay, attempt: 1, kind: "delayed" };
        expected.insert(id, task);
    }
    for _ in 0..WAITING {
        let (id, sent, done) = create(json!({ "command": "take-over", "payload": {} }))?;
        expected.insert(id, Expected { earliest: sent, latest: done, attempt: 1, kind: "waiting" });
    }
    Ok(expected)
}

/// A grant: when its answer came, and its attempt.
struct Granted {
    came: Instant,
    attempt: u64,
}

/// Workers at these nodes take whatever comes until that is as much as expected.
fn work(addrs: &[SocketAddr], expected: usize) -> Result<BTreeMap<String, Vec<Granted>>> {
    let granted: Mutex<BTreeMap<String, Vec<Granted>>> = Mutex::default();
    let count = || granted.lock().expect("nothing panics while it holds this lock").len();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = addrs
            .iter()
            .map(|addr| {
                let (granted, count) = (&granted, &count);
                scope.spawn(move || -> Result<()> {
                    let mut client = Client::connect(*addr)?;
                    while count() < expected && begun.elapsed() < DEADLINE {
                        let body = json!({ "commands": ["take-over"], "leaseSeconds": 60, "waitSeconds": 1 });
                        let answer = client.post("/v1/codeq/tasks/claim", &body.to_string())?;
                        if answer.status == 204 {
                            continue;
                        }
                        let (came, task) = (Instant::now(), answer.json()?);
                        let text = |name: &str| task[name].as_str().with_context(|| format!("{answer} has no {name}"));
                        let attempt = task["attempts"].as_u64().with_context(|| format!("{answer} has no attempts"))?;
                        let id = text("id")?.to_owned();
                        let result = json!({ "status": "COMPLETED", "result": {}, "leaseToken": text("leaseToken")? });
                        let done = client.post(&format!("/v1/codeq/tasks/{id}/result"), &result.to_string())?;
                        ensure!(done.status == 200, "the result of {id} was answered with {done}");
                        let mut granted = granted.lock().expect("nothing panics while it holds this lock");
                        granted.entry(id).or_default().push(Granted { came, attempt });
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
    })?;
    Ok(granted.into_inner().expect("every worker has ended"))
}

/// Returns how late the latest was.
fn compare(
    expected: &BTreeMap<String, Expected>,
    granted: &BTreeMap<String, Vec<Granted>>,
    outage: Duration,
) -> Result<Duration> {
    let mut latest = Duration::ZERO;
    for (id, Expected { earliest, latest: due, attempt, kind }) in expected {
        let grants = granted.get(id).with_context(|| format!("{id}, {kind}, was not handed out"))?;
        let [grant] = grants.as_slice() else {
            return Err(anyhow!("{id}, {kind}, was handed out {} times", grants.len()));
        };
        ensure!(grant.attempt == *attempt, "{id}, {kind}, is attempt {}, not {attempt}", grant.attempt);
        let early = earliest.saturating_duration_since(grant.came);
        ensure!(early <= GRAIN, "{id}, {kind}, came {early:?} before its time");
        let late = grant.came.saturating_duration_since(*due);
        // What waits could have been claimed all the time; it has no moment to be late for.
        if *kind != "waiting" {
            ensure!(late <= outage + LATE_MAX, "{id}, {kind}, came {late:?} behind its time");
            latest = latest.max(late);
        }
    }
    ensure!(granted.len() == expected.len(), "tasks were handed out that nobody created");
    Ok(latest)
}
