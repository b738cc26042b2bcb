//! Scripts with expected output: every transition of the life cycle and every rule, as a reader would try them out.
//!
//! Each file of `testdata/` is one test. `UPDATE_GOLDENFILES=1 cargo test -p queue` writes the output that the present code gives; read
//! the difference before you commit it. The commands are explained in [`Script::run`].

mod support;

use std::error::Error;
use std::fmt::Write as _;

use base::{Millis, ScheduleTime};
use goldenscript::{ArgumentConsumer, Command, Context};
use queue::history::{Happening, entries, numbered};
use queue::op::{
    Amend, Begin, Claim, ClaimOrder, Create, Credential, Delete, Edit, IdempotencyKey, LeaseRef, Redrive, Schedule,
    Step,
};
use queue::outcome::{Outcome, Query, Rejection, State, TaskView};
use queue::policy::{LeaseBounds, Retention};
use queue::{Answer, Backoff, BackoffPolicy, LeaseToken, Op, Payload, TaskId};
use support::Shard;

/// Wall time at which every script starts: 2026-01-01T00:00:00Z.
const START: u64 = 1_767_225_600_000;

struct Script {
    shard: Shard,
    /// Milliseconds since the start.
    now: u64,
    /// Tasks by order of creation: t1, t2, ….
    tasks: Vec<TaskId>,
    /// Tokens by order of grant: 1, 2, ….
    tokens: Vec<LeaseToken>,
    /// What was printed of each task last.
    shown: Vec<String>,
}

type Outcomes = Result<String, Box<dyn Error>>;

impl Script {
    fn new() -> Script {
        let shard = Shard::new(START);
        Script { shard, now: 0, tasks: Vec::new(), tokens: Vec::new(), shown: Vec::new() }
    }

    fn apply(&mut self, op: &Op<'_>) -> String {
        let outcome = self.shard.apply(op);
        let line = match outcome {
            Outcome::Created(created) => {
                self.tasks.push(created.id);
                self.shown.push(String::new());
                String::new()
            }
            Outcome::Replayed(id) => format!("replayed {}\n", self.name(id)),
            Outcome::Claimed(grants) if grants.is_empty() => "nothing to claim\n".into(),
            Outcome::Claimed(grants) => {
                let mut lines = String::new();
                for grant in grants {
                    self.tokens.push(grant.token);
                    let (task, token) = (self.name(grant.task.id), self.tokens.len());
                    writeln!(lines, "granted {task} for {} with token {token}", seconds(grant.length.0))
                        .expect("a string takes all");
                }
                lines
            }
            Outcome::Extended { remaining, cancel_requested, .. } => {
                let cancel = if cancel_requested { ", asked to stop" } else { "" };
                format!("extended, {} remain{cancel}\n", seconds(remaining.0))
            }
            Outcome::Retried { delay, attempts } => format!("retry after {}, attempts {attempts}\n", seconds(delay.0)),
            Outcome::Finished { attempt, .. } => format!("finished by attempt {attempt}\n"),
            Outcome::CancelRequested(_) => "cancel requested\n".into(),
            Outcome::Rejected(rejection) => format!("rejected: {}\n", self.reason(rejection)),
            Outcome::Released
            | Outcome::DeadLettered { .. }
            | Outcome::Cancelled(_)
            | Outcome::Redriven(_)
            | Outcome::Edited(_)
            | Outcome::Done
            | Outcome::Configured => String::new(),
        };
        line + &self.changes()
    }

    fn name(&self, id: TaskId) -> String {
        let place = self.tasks.iter().position(|known| *known == id).expect("the task was created here");
        format!("t{}", place + 1)
    }

    fn reason(&self, rejection: Rejection) -> String {
        match rejection {
            Rejection::KeyConflict { first } => format!("key bound by {} to another body", self.name(first)),
            Rejection::LeaseLost { held: true } => "lease lost, somebody else holds the task".into(),
            Rejection::LeaseLost { held: false } => "lease lost, nobody holds the task".into(),
            Rejection::NotLive => "no live task".into(),
            Rejection::NotLeased => "not leased".into(),
            Rejection::NotOwner => "held by another worker".into(),
            Rejection::NotEnded => "the task is live".into(),
            Rejection::RecordChanged => "the record has changed".into(),
            Rejection::TooManyTasks => "too many tasks".into(),
            Rejection::TooManyQueues => "too many queues".into(),
            Rejection::IsLeased => "a worker holds the task".into(),
            Rejection::OperationConflict { with } => format!("operation {} is under way", with[0]),
            Rejection::NoOperation => "no such operation".into(),
            Rejection::OperationState => "not in this state of the operation".into(),
            Rejection::TooManyOperations => "too many operations".into(),
        }
    }

    /// One line for each task that does not look as it did.
    fn changes(&mut self) -> String {
        let mut lines = String::new();
        for (place, id) in self.tasks.clone().into_iter().enumerate() {
            let description = self.describe(id);
            if description != self.shown[place] {
                writeln!(lines, "t{} {description}", place + 1).expect("a string takes all");
                self.shown[place] = description;
            }
        }
        lines
    }

    fn describe(&mut self, id: TaskId) -> String {
        let Some(task) = self.shard.task(id) else {
            return "is gone".into();
        };
        let at = |time: Option<ScheduleTime>| seconds(time.expect("it has a time").0.saturating_sub(START));
        let mut text = match task.state {
            State::Ready => "ready".into(),
            State::Delayed => format!("delayed until {}", at(task.run_at)),
            State::Leased => {
                format!("leased by {} until {}", task.worker.as_deref().unwrap_or("?"), at(task.lease_until))
            }
            State::Completed => format!("completed with {}", result(&task)),
            State::Failed => "failed".into(),
            State::Dead => "dead".into(),
            State::Cancelled => "cancelled".into(),
        };
        write!(text, ", attempts {} of {}", task.attempts, task.max_attempts).expect("a string takes all");
        if !task.error.is_empty() {
            write!(text, ", error {:?}", task.error).expect("a string takes all");
        }
        if task.cancel_requested {
            text.push_str(", asked to stop");
        }
        text
    }

    /// `t1` or an id.
    fn task(&self, name: Option<&str>) -> Result<TaskId, Box<dyn Error>> {
        let name = name.ok_or("which task?")?;
        match name.strip_prefix('t').and_then(|number| number.parse::<usize>().ok()) {
            Some(number) => Ok(*self.tasks.get(number - 1).ok_or("no such task")?),
            None => name.parse().map_err(|_| "neither t<n> nor a task id".into()),
        }
    }

    /// The lease named by a task and `token=<n>`, `token=bogus`, or `worker=<name>`.
    fn lease<'a>(&self, args: &mut ArgumentConsumer<'a>) -> Result<LeaseRef<'a>, Box<dyn Error>> {
        let task = self.task(args.next_pos())?;
        let tenant = args.take_key("tenant").unwrap_or("acme");
        let credential = match (args.take_key("token"), args.take_key("worker")) {
            (Some("bogus"), None) => Credential::Unknown,
            (Some(number), None) => Credential::Token(self.tokens[number.parse::<usize>()? - 1]),
            (None, worker) => Credential::Worker(worker.unwrap_or("w1")),
            _ => return Err("a token or a worker, not both".into()),
        };
        Ok(LeaseRef { tenant, task: task.key, credential })
    }

    fn create(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcomes {
        let tenant = args.take_key("tenant").unwrap_or("acme");
        let command = args.next_pos().ok_or("which queue?")?;
        let payload = args.take_key("payload").unwrap_or("{}");
        let priority = args.take_key("priority").unwrap_or("0").parse()?;
        let webhook = args.take_key("webhook").unwrap_or("");
        let max_attempts = args.take_key("max").map(str::parse).transpose()?;
        let schedule = match (args.take_key("delay"), args.take_key("at")) {
            (None, None) => Schedule::Now,
            (Some(delay), None) => Schedule::After(millis(delay)?),
            (None, Some(at)) => Schedule::At(ScheduleTime(START) + millis(at)?),
            _ => return Err("delay or at, not both".into()),
        };
        let key = args.take_key("key").map(|text| IdempotencyKey {
            text,
            scope: queue::idempotency::scope_digest(tenant, command, text),
            body: queue::idempotency::body_digest(payload.as_bytes(), priority, webhook, max_attempts, &schedule),
        });
        let payload = payload.as_bytes();
        Ok(self.apply(&Op::Create(Create { tenant, command, priority, payload, schedule, webhook, max_attempts, key })))
    }

    fn claim(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcomes {
        let commands: Vec<&str> = std::iter::from_fn(|| args.next_pos()).collect();
        let order = match args.take_key("order") {
            None if commands.is_empty() => ClaimOrder::Fair,
            None | Some("request") => ClaimOrder::Request,
            Some("priority") => ClaimOrder::Priority,
            Some("fair") => ClaimOrder::Fair,
            Some(_) => return Err("request, priority or fair".into()),
        };
        let claim = Claim {
            tenant: args.take_key("tenant").unwrap_or("acme"),
            worker: args.take_key("worker").unwrap_or("w1"),
            commands,
            order,
            count: args.take_key("count").unwrap_or("1").parse()?,
            lease: args.take_key("lease").map(millis).transpose()?,
        };
        Ok(self.apply(&Op::Claim(claim)))
    }

    /// Whether and how a queue is paused; nothing if it is not and never was.
    fn pause_of(&mut self, tenant: &str, command: &str) -> String {
        let (answer, _) = self.shard.query(&Query::Queue { tenant: tenant.into(), command: command.into() });
        let Answer::Queue(stats) = answer else { unreachable!("a queue was asked for") };
        stats.pause.map_or(String::new(), |pause| {
            let until = pause.until.map_or("resumed".into(), |time| seconds(time.0 - START));
            format!("{command} is paused until {until} by {}: {:?}\n", pause.by, pause.reason)
        })
    }

    fn redrive(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcomes {
        let id = self.task(args.next_pos())?;
        let task = self.shard.task(id).ok_or("it is gone")?;
        let row = self.shard.record(task.clone());
        let stale = args.take_key("stale").is_some();
        let ended_at = task.ended_at.unwrap_or_default();
        let redrive = Redrive {
            tenant: args.take_key("tenant").unwrap_or("acme"),
            task: id.key,
            ended_at: if stale { base::Index(ended_at.0 - 1) } else { ended_at },
            record: &row,
            keep_attempts: args.take_key("attempts") == Some("keep"),
            delay: args.take_key("delay").map(millis).transpose()?.unwrap_or_default(),
            priority: args.take_key("priority").map(str::parse).transpose()?,
        };
        Ok(self.apply(&Op::Redrive(redrive)))
    }

    fn edit(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcomes {
        let task = self.task(args.next_pos())?.key;
        let schedule = match (args.take_key("delay"), args.take_key("at")) {
            (None, None) => None,
            (Some("none"), None) => Some(Schedule::Now),
            (Some(delay), None) => Some(Schedule::After(millis(delay)?)),
            (None, Some(at)) => Some(Schedule::At(ScheduleTime(START) + millis(at)?)),
            _ => return Err("delay or at, not both".into()),
        };
        let edit = Edit {
            tenant: args.take_key("tenant").unwrap_or("acme"),
            task,
            priority: args.take_key("priority").map(str::parse).transpose()?,
            schedule,
            payload: args.take_key("payload").map(str::as_bytes),
            max_attempts: args.take_key("max").map(str::parse).transpose()?,
            webhook: args.take_key("webhook"),
        };
        Ok(self.apply(&Op::Edit(edit)))
    }

    fn amend(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcomes {
        let id = self.task(args.next_pos())?;
        let mut task = self.shard.task(id).ok_or("it is gone")?;
        let ended_at = task.ended_at.unwrap_or_default();
        if let Some(payload) = args.take_key("payload") {
            task.payload = Payload::Resident(payload.as_bytes().into());
        }
        if let Some(most) = args.take_key("max") {
            task.max_attempts = most.parse()?;
        }
        let row = self.shard.record(task);
        let amend = Amend {
            tenant: args.take_key("tenant").unwrap_or("acme"),
            task: id.key,
            ended_at: if args.take_key("stale").is_some() { base::Index(ended_at.0 - 1) } else { ended_at },
            record: &row,
        };
        Ok(self.apply(&Op::Amend(amend)))
    }

    /// The deletion of a task as it is now.
    fn deletion(&mut self, id: TaskId) -> Delete<'static> {
        let task = self.shard.task(id);
        let ended_at = task.as_ref().and_then(|task| task.ended_at);
        let key = task.filter(|task| !task.idempotency_key.is_empty());
        let key = key.map(|task| queue::idempotency::scope_digest("acme", &task.command, &task.idempotency_key));
        Delete { tenant: "acme", task: id.key, ended_at, key }
    }

    fn step(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcomes {
        let id = operation(args.next_pos())?;
        let mut items = Vec::new();
        while let Some(item) = args.next_pos() {
            let (what, name) = item.split_once('-').ok_or("redrive-tN, delete-tN or cancel-tN")?;
            let task = self.task(Some(name))?;
            let record = self.shard.task(task).map(|view| (view.ended_at, self.shard.record(view)));
            let op = match (what, &record) {
                ("redrive", Some((ended_at, record))) => Op::Redrive(Redrive {
                    tenant: "acme",
                    task: task.key,
                    ended_at: ended_at.unwrap_or_default(),
                    record,
                    keep_attempts: false,
                    delay: Millis(0),
                    priority: None,
                }),
                ("delete", _) => Op::Delete(self.deletion(task)),
                ("cancel", _) => Op::Cancel { tenant: "acme", task: task.key, reason: "", force: false },
                _ => return Err("redrive-tN, delete-tN or cancel-tN".into()),
            };
            let mut bytes = Vec::new();
            queue::codec::encode(&op, &mut bytes);
            items.push(bytes);
        }
        let step = Step {
            tenant: args.take_key("tenant").unwrap_or("acme"),
            id,
            after: args.take_key("after").unwrap_or("0").parse()?,
            cursor: b"there",
            is_last: args.take_key("last").is_some(),
            items: items.iter().map(Vec::as_slice).collect(),
            counted: args.take_key("count").unwrap_or("0").parse()?,
            samples: Vec::new(),
        };
        Ok(self.apply(&Op::Step(step)) + &self.operations())
    }

    fn operations(&self) -> String {
        let (answer, _) = self.shard.query(&Query::Operations { tenant: Some("acme".into()), running: false });
        let Answer::Operations(all) = answer else { unreachable!("operations were asked for") };
        let mut lines = String::new();
        for operation in all {
            let end = operation.finished_at.map_or(String::new(), |end| format!(", ended {}", seconds(end.0 - START)));
            let total = operation.estimated_total.map_or(String::new(), |total| format!(" of {total}"));
            let numbers = (operation.processed, operation.changed, operation.skipped);
            let (id, kind, state) = (operation.id[0], operation.kind.name(), operation.state.name());
            writeln!(lines, "operation {id} {kind} {state}: {numbers:?}{total}, {} steps{end}", operation.steps)
                .expect("a string takes all");
        }
        lines
    }

    fn policy(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcomes {
        let mut policy = self.shard.policy();
        while let Some((name, value)) = args.next_key() {
            match name {
                "backoff" => {
                    let known = BackoffPolicy::NAMES.iter().find(|(_, known)| *known == value);
                    policy.backoff = Backoff { policy: known.ok_or("no such backoff")?.0, ..policy.backoff };
                }
                "base" => policy.backoff.base = millis(value)?,
                "max_backoff" => policy.backoff.max = millis(value)?,
                "lease" => policy.lease = LeaseBounds { default: millis(value)?, ..policy.lease },
                "max_attempts" => policy.max_attempts = value.parse()?,
                "window" => policy.idempotency_window = millis(value)?,
                "retention" => {
                    let kept = millis(value)?;
                    policy.retention = Retention { completed: kept, failed: kept, dead: kept };
                }
                "error_bytes" => policy.error_bytes_max = value.parse()?,
                "history" => policy.history_entries_max = value.parse()?,
                _ => return Err(format!("no policy is called {name}").into()),
            }
        }
        Ok(self.apply(&Op::Configure(policy)))
    }

    /// Lets time pass; what becomes due meanwhile is applied at its time, as a leader with a timer does.
    fn advance(&mut self, by: Millis, wall_only: bool) -> String {
        let end = self.now + by.0;
        let mut lines = String::new();
        if wall_only {
            self.shard.jump_wall_clock(by);
            self.shard.tick();
            return self.changes();
        }
        while let Some(due) = self.shard.next_due_within(Millis(end - self.now)) {
            self.now += due.0;
            self.shard.advance(due);
            self.shard.tick();
            let changes = self.changes();
            for line in changes.lines() {
                writeln!(lines, "at {}: {line}", seconds(self.now)).expect("a string takes all");
            }
        }
        self.shard.advance(Millis(end - self.now));
        self.now = end;
        lines
    }
}

impl goldenscript::Runner for Script {
    type Command = Command;

    fn run(&mut self, command: &Command, _context: &Context) -> Outcomes {
        let mut args = command.consume_args();
        let output = match command.name.as_str() {
            // create QUEUE [tenant=T] [payload=JSON] [priority=0-9] [delay=D | at=D] [max=N] [key=K] [webhook=URL]
            "create" => self.create(&mut args)?,
            // claim [QUEUE…] [tenant=T] [worker=W] [count=N] [lease=D] [order=request|priority|fair]
            "claim" => self.claim(&mut args)?,
            // extend tN [token=N | worker=W] [by=D]
            "extend" => {
                let lease = self.lease(&mut args)?;
                let length = args.take_key("by").map(millis).transpose()?;
                self.apply(&Op::Extend { lease, length })
            }
            // release tN [token=N | worker=W]
            "release" => {
                let lease = self.lease(&mut args)?;
                self.apply(&Op::Release { lease })
            }
            // nack tN [token=N | worker=W] [delay=D] [reason=TEXT]
            "nack" => {
                let lease = self.lease(&mut args)?;
                let delay = args.take_key("delay").map(millis).transpose()?;
                self.apply(&Op::Nack { lease, delay, reason: args.take_key("reason").unwrap_or("") })
            }
            // complete tN [token=N | worker=W] [result=JSON] [error=TEXT]
            "complete" => {
                let lease = self.lease(&mut args)?;
                let result = args.take_key("result").unwrap_or("{}").as_bytes();
                self.apply(&Op::Complete { lease, result, error: args.take_key("error").unwrap_or("") })
            }
            // fail tN [token=N | worker=W] error=TEXT
            "fail" => {
                let lease = self.lease(&mut args)?;
                let error = args.take_key("error").ok_or("why?")?;
                self.apply(&Op::Fail { lease, result: None, error })
            }
            // cancel tN [tenant=T] [reason=TEXT] [force=yes]
            "cancel" => {
                let task = self.task(args.next_pos())?.key;
                let tenant = args.take_key("tenant").unwrap_or("acme");
                let reason = args.take_key("reason").unwrap_or("");
                self.apply(&Op::Cancel { tenant, task, reason, force: args.take_key("force").is_some() })
            }
            // redrive tN [attempts=keep] [delay=D] [priority=N] [stale=yes]
            "redrive" => self.redrive(&mut args)?,
            // edit tN [tenant=T] [priority=N] [delay=D|none | at=D] [payload=JSON] [max=N] [webhook=URL]
            "edit" => self.edit(&mut args)?,
            // amend tN [tenant=T] [payload=JSON] [max=N] [stale=yes]: its record as it is now, with that
            "amend" => self.amend(&mut args)?,
            // delete tN [stale=yes]: as it is now
            "delete" => {
                let task = self.task(args.next_pos())?;
                let mut delete = self.deletion(task);
                if args.take_key("stale").is_some() {
                    delete.ended_at = Some(base::Index(1));
                }
                self.apply(&Op::Delete(delete))
            }
            // begin N KIND [QUEUE…] [all=yes]
            "begin" => {
                let id = operation(args.next_pos())?;
                let kind =
                    args.next_pos().and_then(queue::operations::OperationKind::from_name).ok_or("no such kind")?;
                let commands: Vec<&str> = std::iter::from_fn(|| args.next_pos()).collect();
                let takes_all = args.take_key("all").is_some();
                let begin =
                    Begin { tenant: "acme", id, kind, commands, request: b"{}", dry_run: false, takes_all, by: "ann" };
                self.apply(&Op::Begin(begin)) + &self.operations()
            }
            // step N [after=N] [last=yes] [count=N] [redrive-tN | delete-tN | cancel-tN]…
            "step" => self.step(&mut args)?,
            // turn N STATE [tenant=T] [error=TEXT]
            "turn" => {
                let id = operation(args.next_pos())?;
                let to =
                    args.next_pos().and_then(queue::operations::OperationState::from_name).ok_or("no such state")?;
                let tenant = args.take_key("tenant").unwrap_or("acme");
                let error = args.take_key("error").unwrap_or("");
                self.apply(&Op::Turn { tenant, id, to, error }) + &self.operations()
            }
            // operations: all that are known
            "operations" => self.operations(),
            // pause QUEUE [tenant=T] [for=D] [reason=TEXT] [by=WHO]
            "pause" => {
                let command = args.next_pos().ok_or("which queue?")?;
                let tenant = args.take_key("tenant").unwrap_or("acme");
                let length = args.take_key("for").map(millis).transpose()?;
                let reason = args.take_key("reason").unwrap_or("");
                let by = args.take_key("by").unwrap_or("ann");
                self.apply(&Op::Pause { tenant, command, length, reason, by }) + &self.pause_of(tenant, command)
            }
            // resume QUEUE [tenant=T]
            "resume" => {
                let command = args.next_pos().ok_or("which queue?")?;
                let tenant = args.take_key("tenant").unwrap_or("acme");
                self.apply(&Op::Resume { tenant, command }) + &self.pause_of(tenant, command)
            }
            // policy [backoff=NAME] [base=D] [max_backoff=D] [lease=D] [max_attempts=N] [window=D] [retention=D] [error_bytes=N] [history=N]
            "policy" => self.policy(&mut args)?,
            // advance D [clock=wall]: both clocks, or a jump of the wall clock alone
            "advance" => {
                let by = millis(args.next_pos().ok_or("by how much?")?)?;
                let wall_only = args.take_key("clock") == Some("wall");
                self.advance(by, wall_only)
            }
            // outage D: no node runs; only wall time passes, and the next leader goes on from the last lease stamp
            "outage" => {
                self.shard.jump_wall_clock(millis(args.next_pos().ok_or("how long?")?)?);
                self.shard.tick();
                self.changes()
            }
            // restart: saves a checkpoint and goes on from it
            "restart" => {
                self.shard.restart();
                self.changes()
            }
            // save: saves a checkpoint and goes on in memory
            "save" => {
                self.shard.save(usize::MAX, |_| ());
                self.changes()
            }
            // memory BYTES: payloads beyond so many bytes are left to the checkpoint
            "memory" => {
                self.shard.machine.limit_payload_memory(args.next_pos().ok_or("how much?")?.parse()?);
                String::new()
            }
            // show tN: everything that can be shown of it
            "show" => {
                let id = self.task(args.next_pos())?;
                self.shard.task(id).map(|task| show(&task)).unwrap_or_else(|| "gone\n".into())
            }
            // history tN: what has happened to it
            "history" => {
                let id = self.task(args.next_pos())?;
                self.shard.history(id).map(|task| history(&task)).unwrap_or_else(|| "gone\n".into())
            }
            // stats QUEUE [tenant=T]
            "stats" => {
                let command = args.next_pos().ok_or("which queue?")?;
                let tenant = args.take_key("tenant").unwrap_or("acme");
                let (answer, _) = self.shard.query(&Query::Queue { tenant: tenant.into(), command: command.into() });
                let Answer::Queue(stats) = answer else { unreachable!("a queue was asked for") };
                format!("{:?}\n{:?}\n", stats.depth, stats.totals) + &self.pause_of(tenant, command)
            }
            // busy QUEUE: who works on it, and when more is to do
            "busy" => {
                let command = args.next_pos().ok_or("which queue?")?;
                let (answer, _) = self.shard.query(&Query::Queue { tenant: "acme".into(), command: command.into() });
                let Answer::Queue(stats) = answer else { unreachable!("a queue was asked for") };
                let next = stats.next_due.map_or("nothing delayed".into(), |time| {
                    format!("next due at {}", seconds(time.0.saturating_sub(START)))
                });
                format!("{} leases of {} workers, {next}\n", stats.depth.leased, stats.consumers)
            }
            // tables: rows of the last checkpoint, by table
            "tables" => self.shard.tables(),
            other => return Err(format!("no command is called {other}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}

fn show(task: &TaskView) -> String {
    let payload = match &task.payload {
        Payload::Resident(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Payload::Stored(bytes) => format!("({bytes} bytes in the checkpoint)"),
    };
    let since = |time: ScheduleTime| seconds(time.0.saturating_sub(START));
    let mut text = format!(
        "{} {}/{} {} priority {} payload {payload}\n",
        task.id,
        task.tenant,
        task.command,
        task.state.name(),
        task.priority
    );
    writeln!(text, "created {} updated {}", since(task.created_at), since(task.updated_at))
        .expect("a string takes all");
    if let Some(time) = task.finished_at {
        writeln!(text, "finished {} result {}", since(time), result(task)).expect("a string takes all");
    }
    if !task.webhook.is_empty() || !task.idempotency_key.is_empty() {
        writeln!(text, "webhook {:?} key {:?}", task.webhook, task.idempotency_key).expect("a string takes all");
    }
    text
}

fn history(task: &TaskView) -> String {
    let mut text = String::new();
    for ((index, place), entry) in numbered(entries(task).expect("it reads back")) {
        let state = |state: Option<State>| state.map_or("-", State::name);
        write!(text, "{index}.{place} ").expect("a string takes all");
        if entry.what != Happening::Truncated {
            let who = [entry.actor.name(), entry.worker].join(" ");
            let (from, to) = (state(entry.from), state(entry.to));
            let at = seconds(entry.at.0.saturating_sub(START));
            write!(text, "{at} by {}: {from} to {to}, attempt {}: ", who.trim_end(), entry.attempt)
                .expect("a string takes all");
        }
        text.push_str(entry.what.name());
        for (name, time) in [("after", entry.delay), ("for", entry.lease)] {
            time.into_iter().for_each(|time| write!(text, " {name} {}", seconds(time.0)).expect("a string takes all"));
        }
        if entry.count != 1 {
            write!(text, " × {}", entry.count).expect("a string takes all");
        }
        if !entry.reason.is_empty() {
            write!(text, " {:?}", entry.reason).expect("a string takes all");
        }
        text.push('\n');
    }
    text
}

fn result(task: &TaskView) -> String {
    task.result.as_ref().map_or("none".into(), |bytes| String::from_utf8_lossy(bytes).into_owned())
}

fn operation(number: Option<&str>) -> Result<[u8; 16], Box<dyn Error>> {
    Ok([number.ok_or("which operation?")?.parse()?; 16])
}

fn seconds(millis: u64) -> String {
    format!("{}.{:03}", millis / 1000, millis % 1000)
}

/// `250ms`, `5s`, `10m`, `24h`, `7d`, or 0.
fn millis(text: &str) -> Result<Millis, Box<dyn Error>> {
    if text == "0" {
        return Ok(Millis(0));
    }
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    for (unit, factor) in units {
        if let Some(Ok(number)) = text.strip_suffix(unit).map(str::parse::<u64>) {
            return Ok(Millis(number * factor));
        }
    }
    Err(format!("{text:?} is no duration").into())
}

/// One test for each file of `testdata/`, and one that fails if a file has none.
macro_rules! scripts {
    ($($folder:ident { $($file:ident),* $(,)? })*) => {
        $(mod $folder {
            $(#[test]
            fn $file() {
                let path = concat!("testdata/", stringify!($folder), "/", stringify!($file));
                goldenscript::run(&mut super::Script::new(), path).expect("the output is the expected one");
            })*
        })*

        #[test]
        fn every_script_is_run() {
            let listed: Vec<String> = vec![$($(concat!(stringify!($folder), "/", stringify!($file)).to_owned()),*),*];
            let mut found = Vec::new();
            for folder in std::fs::read_dir("testdata").expect("the folder exists") {
                let folder = folder.expect("it can be listed").path();
                let name = folder.file_name().expect("it has a name").to_string_lossy().into_owned();
                if name == "golden" {
                    continue;
                }
                for file in std::fs::read_dir(&folder).expect("it can be listed") {
                    found.push(format!("{name}/{}", file.expect("it can be listed").file_name().to_string_lossy()));
                }
            }
            found.sort();
            let mut sorted = listed.clone();
            sorted.sort();
            assert_eq!(found, sorted);
        }
    };
}

scripts! {
    lifecycle { create, delay, run_at, claim, complete, fail, nack, release, expiry, cancel, redrive, redrive_keep }
    backoff { fixed, linear, exponential, exp_equal_jitter, exp_full_jitter, explicit_delay }
    lease { length, extend, late_completion, tokens, workers, holders, tenants, outage, wall_jump }
    order { priority, fifo, several_queues, all_queues, returns_go_to_the_tail }
    pause { queue, by_itself, turns, restart }
    edit { waiting, payload_memory, amend, delete }
    operations { steps, conflicts, stop, restart, kept }
    history { life, refused, others, truncated }
    idempotency { repeat, conflict, window, scope, outlives_the_task }
    retention { slices, live_tasks_stay, keyed }
    checkpoint { restart_everywhere, born_and_ended_between, payload_memory }
}
