//! The load: connections that create tasks and work on them, whatever happens to the servers, and write down what they were told.
//!
//! A connection follows the documented rule: what was refused for certain is tried again elsewhere, what is unknown is repeated where a repeat
//! does no harm, and counts as open where it would. Any answer outside that rule is a violation.

pub(crate) mod ledger;
pub(crate) mod verdict;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Result;
use base::rng::SplitMix;
use serde_json::{Value, json};

use crate::http::{Answer, Client, Unknown};
use crate::load::ledger::{Grant, Id, Ledger, Number, command_of, id, payload_of, result_of, text};

/// What the connections share.
pub(crate) struct Shared {
    /// Where requests can be sent; nobody has to listen there just now.
    servers: Mutex<Vec<SocketAddr>>,
    moved: Condvar,
    /// No more tasks are created; what is there is worked off.
    draining: AtomicBool,
    stopped: AtomicBool,
    /// Tasks created and not completed, about.
    waiting: AtomicI64,
    pub(crate) commands: u64,
    writes: Mutex<Vec<Write>>,
}

/// An acknowledged creation or result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    /// When its request was sent, for the last time.
    pub(crate) sent: Instant,
    pub(crate) acknowledged: Instant,
}

/// Tasks that wait before the connections only work.
const WAITING_MAX: i64 = 20_000;

/// Length of a lease. Longer than a restart, short enough that what dead workers hold is soon given out again.
const LEASE: Duration = Duration::from_secs(3);

/// What the lease may be shorter by, for a client that measures from outside.
const LEASE_MARGIN: Duration = Duration::from_millis(200);

/// After a refusal.
const PAUSE: Duration = Duration::from_millis(2);

/// Between two rounds of looking for somebody who listens.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A connection that had to go elsewhere returns after so many requests, about.
const RETURNS_ONE_IN: u64 = 100;

/// Keys that a connection remembers, to repeat them later.
const KEYS_KEPT: usize = 64;

impl Shared {
    pub(crate) fn new(commands: u64, servers: &[SocketAddr]) -> Shared {
        Shared {
            servers: Mutex::new(servers.to_vec()),
            moved: Condvar::new(),
            draining: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            waiting: AtomicI64::new(0),
            commands,
            writes: Mutex::default(),
        }
    }

    fn servers(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.servers.lock().expect("nothing panics while it holds this lock")
    }

    /// The only server is here now.
    pub(crate) fn serves_at(&self, addr: SocketAddr) {
        *self.servers() = vec![addr];
        self.moved.notify_all();
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Under the lock, or somebody who has just looked would sleep for ever.
        let _servers = self.servers();
        self.moved.notify_all();
    }

    /// Takes out what was acknowledged since this was last asked.
    pub(crate) fn take_writes(&self) -> Vec<Write> {
        std::mem::take(&mut *self.writes.lock().expect("nothing panics while it holds this lock"))
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// A connection to the server of that place, or to one behind it, and its place. Nothing: it is over.
    fn connect(&self, preferred: usize) -> Option<(Client, usize)> {
        loop {
            let addrs = self.servers().clone();
            for place in (0..addrs.len()).map(|further| (preferred + further) % addrs.len()) {
                if self.is_stopped() {
                    return None;
                }
                if let Ok(client) = Client::connect(addrs[place]) {
                    return Some((client, place));
                }
            }
            let servers = self.servers();
            if self.is_stopped() {
                return None;
            }
            if *servers == addrs {
                // Woken by a move or by the end, or to look whether somebody listens again.
                drop(self.moved.wait_timeout(servers, LOOK_AGAIN));
            }
        }
    }
}

/// Runs so many connections while something else goes on, and until that has ended. Returns what both have brought.
///
/// # Errors
/// Those of `meanwhile`.
pub(crate) fn run<T>(
    shared: &Shared,
    seed: u64,
    connections: u16,
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<(T, Ledger)> {
    let ledger = Mutex::new(Ledger::default());
    let result = std::thread::scope(|scope| {
        for number in 1..=u64::from(connections) {
            let connection = Connection::new(shared, seed, number);
            let ledger = &ledger;
            scope.spawn(move || {
                let told = connection.run();
                ledger.lock().expect("nothing panics while it holds this lock").merge(told);
            });
        }
        let result = meanwhile();
        // Also where it failed: the scope ends when its threads have.
        shared.stop();
        result
    })?;
    Ok((result, ledger.into_inner().expect("every thread has ended")))
}

/// One connection, and what it was told.
struct Connection<'a> {
    shared: &'a Shared,
    rng: SplitMix,
    client: Option<Client>,
    /// The server that it prefers.
    home: usize,
    /// The server that it is connected to, or tries first.
    place: usize,
    /// When the last request was sent.
    sent: Instant,
    next: Number,
    keys: Vec<(Number, Id)>,
    ledger: Ledger,
}

/// What an answer means for the ledger.
enum Told {
    Done(Value),
    /// It had no effect.
    Refused,
    Unknown,
    /// Any other answer.
    Other(Answer),
}

/// The load is over; whatever was begun stays unknown.
struct Over;

impl<'a> Connection<'a> {
    /// The connection of that number. Numbers of its tasks begin above `number` << 40.
    fn new(shared: &'a Shared, seed: u64, number: u64) -> Connection<'a> {
        let home = number as usize % shared.servers().len().max(1);
        Connection {
            shared,
            rng: SplitMix::new(base::rng::mix_all(&[seed, number])),
            client: None,
            home,
            place: home,
            sent: Instant::now(),
            next: number << 40,
            keys: Vec::new(),
            ledger: Ledger::default(),
        }
    }

    /// Runs until the load is over.
    fn run(mut self) -> Ledger {
        while !self.shared.is_stopped() {
            let draining = self.shared.draining.load(Ordering::Relaxed);
            let creates = !draining && self.shared.waiting.load(Ordering::Relaxed) < WAITING_MAX;
            let step = match self.rng.below(20) {
                0..=6 if creates => self.create(),
                7..=8 if creates => self.create_batch(),
                9 if creates && !self.keys.is_empty() => self.repeat(),
                10..=13 => self.work_batch(draining),
                _ => self.work(draining),
            };
            // The loop's condition says the same.
            if let Err(Over) = step {
                break;
            }
        }
        self.ledger
    }

    /// Sends a request once, to a server that is there.
    fn send(&mut self, path: &str, body: &Value) -> Result<Told, Over> {
        if self.place != self.home && self.rng.one_in(RETURNS_ONE_IN) {
            (self.client, self.place) = (None, self.home);
        }
        if self.client.is_none() {
            let (client, place) = self.shared.connect(self.place).ok_or(Over)?;
            (self.client, self.place) = (Some(client), place);
        }
        let Some(client) = &mut self.client else { return Err(Over) };
        self.sent = Instant::now();
        let answer = client.post(path, &body.to_string());
        if answer.is_err() {
            self.ledger.unanswered += 1;
        }
        let told = told(answer);
        if let Told::Refused | Told::Unknown = told {
            if let Told::Refused = told {
                self.ledger.refused += 1;
            }
            // Somebody else may know better.
            (self.client, self.place) = (None, self.place + 1);
            std::thread::sleep(PAUSE);
        }
        Ok(told)
    }

    /// Sends a request that has the same effect however often it is sent, until there is an answer. Also says whether a try before the
    /// answered one may have had an effect.
    fn insist(&mut self, path: &str, body: &Value) -> Result<(Told, bool), Over> {
        let mut open = false;
        loop {
            match self.send(path, body)? {
                Told::Refused => {}
                Told::Unknown => open = true,
                told => return Ok((told, open)),
            }
        }
    }

    /// Notes that what was sent last is acknowledged.
    fn acknowledged(&self) {
        let write = Write { sent: self.sent, acknowledged: Instant::now() };
        self.shared.writes.lock().expect("nothing panics while it holds this lock").push(write);
    }

    fn new_task(&mut self, keyed: bool) -> (Number, Value) {
        self.next += 1;
        let number = self.next;
        (number, self.task(number, keyed))
    }

    /// The body of a creation; it follows from the number, so that a repeat is one.
    fn task(&self, number: Number, keyed: bool) -> Value {
        let command = command_of(number, self.shared.commands);
        let mut body = json!({
            "command": command, "payload": payload_of(number), "priority": number % 10, "maxAttempts": 1000,
        });
        if keyed {
            body["idempotencyKey"] = json!(format!("key-{number}"));
        }
        body
    }

    fn created(&mut self, number: Number, task: &Value) -> Option<Id> {
        let Some(id) = task["id"].as_str().and_then(id) else {
            self.ledger.wrong.push(format!("a creation was answered with {task}"));
            return None;
        };
        self.ledger.created.push((number, id));
        self.acknowledged();
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        Some(id)
    }

    fn create(&mut self) -> Result<(), Over> {
        let keyed = self.rng.one_in(3);
        let (number, body) = self.new_task(keyed);
        // Until there is an answer: if the load ends within, it stays so.
        self.ledger.maybe_created.insert(number);
        let path = "/v1/codeq/tasks";
        let (told, _) = if keyed { self.insist(path, &body)? } else { (self.send(path, &body)?, false) };
        match told {
            Told::Done(task) => {
                self.ledger.maybe_created.remove(&number);
                let id = self.created(number, &task);
                if let Some(id) = id.filter(|_| keyed && self.keys.len() < KEYS_KEPT) {
                    self.keys.push((number, id));
                }
            }
            Told::Refused => {
                self.ledger.maybe_created.remove(&number);
            }
            Told::Unknown => {}
            Told::Other(answer) => self.ledger.wrong.push(format!("a creation was answered with {answer}")),
        }
        Ok(())
    }

    fn create_batch(&mut self) -> Result<(), Over> {
        let count = 2 + self.rng.below(9);
        let keyed = self.rng.one_in(3);
        let (numbers, tasks): (Vec<Number>, Vec<Value>) = (0..count).map(|_| self.new_task(keyed)).unzip();
        self.ledger.maybe_created.extend(&numbers);
        let body = json!({ "tasks": tasks });
        let path = "/v1/codeq/tasks/batch";
        let (told, open) = if keyed { self.insist(path, &body)? } else { (self.send(path, &body)?, false) };
        match told {
            Told::Done(answer) => {
                let results = answer["results"].as_array().cloned().unwrap_or_default();
                if results.len() != numbers.len() {
                    self.ledger
                        .wrong
                        .push(format!("a batch of {} creations was answered with {answer}", numbers.len()));
                }
                for (number, result) in numbers.into_iter().zip(results) {
                    // An item that was not carried out for certain is gone; one that may have been stays unknown.
                    let created = result["task"].is_object();
                    if created || (!open && result["definite"] != json!(false)) {
                        self.ledger.maybe_created.remove(&number);
                    }
                    if created {
                        self.created(number, &result["task"]);
                    }
                }
            }
            Told::Refused => self.ledger.maybe_created.retain(|number| !numbers.contains(number)),
            Told::Unknown => {}
            Told::Other(answer) => self.ledger.wrong.push(format!("a batch of creations was answered with {answer}")),
        }
        Ok(())
    }

    /// Repeats a creation from long ago: the answer must be the first task, whatever became of it and of the server.
    fn repeat(&mut self) -> Result<(), Over> {
        let place = self.rng.below(self.keys.len() as u64) as usize;
        let (number, first) = self.keys[place];
        let body = self.task(number, true);
        match self.insist("/v1/codeq/tasks", &body)?.0 {
            Told::Done(task) => {
                if task["id"].as_str().and_then(id) != Some(first) {
                    self.ledger
                        .wrong
                        .push(format!("a repeat of the creation of {} was answered with {task}", text(first)));
                }
            }
            Told::Refused | Told::Unknown => {}
            Told::Other(answer) => self.ledger.wrong.push(format!("a repeated creation was answered with {answer}")),
        }
        Ok(())
    }

    fn claim_body(&mut self) -> Value {
        let count = self.rng.below(4);
        let commands = self.shared.commands;
        // None: all of them.
        let wanted: Vec<String> = (0..count).map(|_| command_of(self.rng.below(commands), commands)).collect();
        let mut body = json!({ "commands": wanted, "leaseSeconds": LEASE.as_secs() });
        if self.rng.one_in(16) {
            body["waitSeconds"] = json!(1);
        }
        body
    }

    /// Writes a grant down.
    fn granted(&mut self, task: &Value) -> Option<(Grant, String)> {
        let grant = || {
            let id = id(task["id"].as_str()?)?;
            let attempt = u32::try_from(task["attempts"].as_u64()?).ok()?;
            let number = task["payload"]["number"].as_u64()?;
            Some((Grant { id, attempt, number }, task["leaseToken"].as_str()?.to_owned()))
        };
        let grant = grant();
        match &grant {
            Some((grant, _)) => self.ledger.grants.push(*grant),
            None => self.ledger.wrong.push(format!("a claim was answered with {task}")),
        }
        grant
    }

    fn work(&mut self, draining: bool) -> Result<(), Over> {
        let body = self.claim_body();
        let claimed = Instant::now();
        let task = match self.send("/v1/codeq/tasks/claim", &body)? {
            Told::Done(task) => task,
            Told::Refused | Told::Unknown => return Ok(()),
            Told::Other(answer) => {
                self.ledger.wrong.push(format!("a claim was answered with {answer}"));
                return Ok(());
            }
        };
        if task.is_null() {
            std::thread::sleep(PAUSE);
            return Ok(());
        }
        let Some((grant, token)) = self.granted(&task) else { return Ok(()) };
        match self.rng.below(32) {
            // This worker dies: nobody says anything about the task until its lease is over.
            0 if !draining => return Ok(()),
            1..=2 if !draining => return self.nack(grant, &token),
            3 => {
                let path = format!("/v1/codeq/tasks/{}/heartbeat", text(grant.id));
                let body = json!({ "leaseToken": token, "extendSeconds": LEASE.as_secs() });
                // Whatever it answers, the result tells more.
                self.send(&path, &body)?;
            }
            _ => {}
        }
        self.complete(grant, &token, claimed)
    }

    fn nack(&mut self, grant: Grant, token: &str) -> Result<(), Over> {
        let path = format!("/v1/codeq/tasks/{}/nack", text(grant.id));
        let told = self.send(&path, &json!({ "leaseToken": token, "delaySeconds": 0, "reason": "as planned" }))?;
        if let Told::Other(answer) = told
            && answer.status != 409
        {
            self.ledger.wrong.push(format!("a nack was answered with {answer}"));
        }
        Ok(())
    }

    fn complete(&mut self, grant: Grant, token: &str, claimed: Instant) -> Result<(), Over> {
        let path = format!("/v1/codeq/tasks/{}/result", text(grant.id));
        let result = result_of(grant.number, grant.attempt);
        let body = json!({ "status": "COMPLETED", "result": result, "leaseToken": token });
        // Until there is an answer that says whether it counted.
        self.ledger.maybe_completed.entry(grant.id).or_default().push(grant.attempt);
        let mut tries = 0;
        loop {
            tries += 1;
            match self.send(&path, &body)? {
                Told::Done(_) => {
                    self.ledger.completed.entry(grant.id).or_default().push(grant.attempt);
                    self.acknowledged();
                    self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
                    return Ok(());
                }
                Told::Refused | Told::Unknown => {}
                // The first try may have counted, or the lease is over.
                Told::Other(answer) if answer.status == 409 => {
                    if tries == 1 && claimed.elapsed() + LEASE_MARGIN < LEASE {
                        let held = claimed.elapsed();
                        let what = format!("the lease of {} was lost after {held:?}: {answer}", text(grant.id));
                        self.ledger.wrong.push(what);
                    }
                    return Ok(());
                }
                Told::Other(answer) => {
                    self.ledger.wrong.push(format!("the result of {} was answered with {answer}", text(grant.id)));
                    return Ok(());
                }
            }
        }
    }

    /// Claims several and completes them in one call.
    fn work_batch(&mut self, draining: bool) -> Result<(), Over> {
        let mut body = self.claim_body();
        body["count"] = json!(1 + self.rng.below(10));
        let claim = match self.send("/v1/codeq/tasks/claim/batch", &body)? {
            Told::Done(claim) => claim,
            Told::Refused | Told::Unknown => return Ok(()),
            Told::Other(answer) => {
                self.ledger.wrong.push(format!("a claim of several was answered with {answer}"));
                return Ok(());
            }
        };
        let tasks = claim["tasks"].as_array().cloned().unwrap_or_default();
        let grants: Vec<(Grant, String)> = tasks.iter().filter_map(|task| self.granted(task)).collect();
        // A worker that dies with all it holds.
        if grants.is_empty() || (!draining && self.rng.one_in(32)) {
            return Ok(());
        }
        let results: Vec<Value> = grants
            .iter()
            .map(|(grant, token)| {
                let result = result_of(grant.number, grant.attempt);
                json!({ "taskId": text(grant.id), "status": "COMPLETED", "result": result, "leaseToken": token })
            })
            .collect();
        for (grant, _) in &grants {
            self.ledger.maybe_completed.entry(grant.id).or_default().push(grant.attempt);
        }
        match self.send("/v1/codeq/tasks/batch/results", &json!({ "results": results }))? {
            Told::Done(answer) => {
                let answers = answer["results"].as_array().cloned().unwrap_or_default();
                if answers.len() != grants.len() {
                    self.ledger.wrong.push(format!("{} results were answered with {answer}", grants.len()));
                }
                for ((grant, _), answer) in grants.iter().zip(answers) {
                    if answer["error"].is_null() {
                        self.ledger.completed.entry(grant.id).or_default().push(grant.attempt);
                        self.acknowledged();
                        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
                    }
                }
            }
            // What may have counted is in the ledger; what has not is given out again.
            Told::Refused | Told::Unknown => {}
            Told::Other(answer) => self.ledger.wrong.push(format!("several results were answered with {answer}")),
        }
        Ok(())
    }
}

/// What an answer means. An empty one is null.
fn told(answer: Result<Answer, Unknown>) -> Told {
    let Ok(answer) = answer else { return Told::Unknown };
    if answer.status == 204 {
        return Told::Done(Value::Null);
    }
    let Ok(body) = answer.json() else { return Told::Other(answer) };
    match answer.status {
        200..=299 => Told::Done(body),
        _ if body["definite"] == json!(false) => Told::Unknown,
        429 | 503 | 507 => Told::Refused,
        _ => Told::Other(answer),
    }
}
