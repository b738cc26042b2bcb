//! The load: connections that create tasks and work on them, whatever happens to the server, and write down what they were told.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use base::rng::SplitMix;
use serde_json::{Value, json};

use crate::http::{Answer, Client, Unknown};
use crate::kill::ledger::{Grant, Id, Ledger, Number, command_of, id, payload_of, result_of, text};

/// What the connections share.
pub(super) struct Shared {
    server: Mutex<Server>,
    moved: Condvar,
    /// No more tasks are created; what is there is worked off.
    draining: AtomicBool,
    stopped: AtomicBool,
    /// Tasks created and not completed, about.
    waiting: AtomicI64,
    pub(super) commands: u64,
}

/// Where the server is, if it runs.
#[derive(Clone, Copy, Default)]
struct Server {
    addr: Option<SocketAddr>,
    /// How often it has moved.
    moves: u64,
}

/// Tasks that wait before the connections only work.
const WAITING_MAX: i64 = 20_000;

/// Length of a lease. Longer than a restart, short enough that what dead workers hold is soon given out again.
const LEASE: Duration = Duration::from_secs(3);

/// What the lease may be shorter by, for a client that measures from outside.
const LEASE_MARGIN: Duration = Duration::from_millis(200);

/// After a refusal.
const PAUSE: Duration = Duration::from_millis(2);

/// Keys that a connection remembers, to repeat them later.
const KEYS_KEPT: usize = 64;

impl Shared {
    pub(super) fn new(commands: u64) -> Shared {
        Shared {
            server: Mutex::default(),
            moved: Condvar::new(),
            draining: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            waiting: AtomicI64::new(0),
            commands,
        }
    }

    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().expect("nothing panics while it holds this lock")
    }

    /// The server serves here now.
    pub(super) fn serves_at(&self, addr: SocketAddr) {
        let mut server = self.server();
        *server = Server { addr: Some(addr), moves: server.moves + 1 };
        self.moved.notify_all();
    }

    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        // Under the lock, or somebody who has just looked would sleep for ever.
        let _server = self.server();
        self.moved.notify_all();
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Where the server is, once it is not where it was. Nothing: it is over.
    fn moved_since(&self, moves: u64) -> Option<(SocketAddr, u64)> {
        let mut server = self.server();
        loop {
            if self.is_stopped() {
                return None;
            }
            if let Some(addr) = server.addr.filter(|_| server.moves > moves) {
                return Some((addr, server.moves));
            }
            server = self.moved.wait(server).expect("nothing panics while it holds this lock");
        }
    }
}

/// One connection, and what it was told.
pub(super) struct Connection<'a> {
    shared: &'a Shared,
    rng: SplitMix,
    client: Option<Client>,
    /// The move of the server at which it was last found gone.
    gone: u64,
    /// The move of the server that `client` is connected to.
    here: u64,
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
    pub(super) fn new(shared: &'a Shared, seed: u64, number: u64) -> Connection<'a> {
        Connection {
            shared,
            rng: SplitMix::new(base::rng::mix_all(&[seed, number])),
            client: None,
            gone: 0,
            here: 0,
            next: number << 40,
            keys: Vec::new(),
            ledger: Ledger::default(),
        }
    }

    /// Runs until the load is over.
    pub(super) fn run(mut self) -> Ledger {
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
        let client = loop {
            if let Some(client) = &mut self.client {
                break client;
            }
            let (addr, moves) = self.shared.moved_since(self.gone).ok_or(Over)?;
            self.client = Client::connect(addr).ok();
            self.here = moves;
            if self.client.is_none() {
                self.gone = moves;
            }
        };
        let answer = client.post(path, &body.to_string());
        if answer.is_err() {
            self.client = None;
            self.ledger.unanswered += 1;
        }
        let told = told(answer);
        if let Told::Refused = told {
            self.ledger.refused += 1;
            std::thread::sleep(PAUSE);
        }
        Ok(told)
    }

    /// Sends a request that has the same effect however often it is sent, until there is an answer.
    fn insist(&mut self, path: &str, body: &Value) -> Result<Told, Over> {
        loop {
            match self.send(path, body)? {
                Told::Refused | Told::Unknown => {}
                told => return Ok(told),
            }
        }
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
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        Some(id)
    }

    fn create(&mut self) -> Result<(), Over> {
        let keyed = self.rng.one_in(3);
        let (number, body) = self.new_task(keyed);
        // Until there is an answer: if the load ends within, it stays so.
        self.ledger.maybe_created.insert(number);
        let path = "/v1/codeq/tasks";
        let told = if keyed { self.insist(path, &body)? } else { self.send(path, &body)? };
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
        let told = if keyed { self.insist(path, &body)? } else { self.send(path, &body)? };
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
                    if result["definite"] != json!(false) {
                        self.ledger.maybe_created.remove(&number);
                    }
                    if result["task"].is_object() {
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
        match self.insist("/v1/codeq/tasks", &body)? {
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
        429 | 503 => Told::Refused,
        _ => Told::Other(answer),
    }
}
