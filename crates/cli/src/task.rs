//! `codeq task`: a task through its life, by hand or by a script.

use std::io::{BufRead, Read};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use client::{AnyRequest, Client, Code, NewTask, Repeat, ResultRecord, path_segment};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::calls::{CallArgs, EXITS, Form, Trouble, call, seconds, shown};
use crate::filter::{FilterArgs, PageArgs, StateArgs, cell, print_list};
use crate::operation::{BulkArgs, begin};
use crate::output;

#[derive(Subcommand)]
pub(crate) enum TaskCommand {
    /// Creates a task, or one for each line of the standard input.
    ///
    /// A key is drawn if none is given, so that a call whose answer was lost is repeated without a second task.
    #[command(
        after_help = "Examples:\n  codeq task create mail '{\"to\":\"ada@example.com\"}' --priority 5\n  codeq task create mail --delay 10m < payload.json\n  codeq task create thumbnail --lines < payloads.ndjson"
    )]
    Create(CreateArgs),
    /// Prints a task.
    #[command(after_help = "Example:\n  codeq task get 0198c4a2-… -o json | jq .state")]
    Get(TaskArgs),
    /// Prints what has happened to a task.
    #[command(
        after_help = "Example:\n  codeq task history 0198c4a2-…\n  codeq task history 0198c4a2-… -o json | jq -r .type"
    )]
    History(HistoryArgs),
    /// Lists tasks, the youngest first.
    #[command(
        after_help = "Examples:\n  codeq task list --queue mail --state LEASED\n  codeq task list --error-contains timeout -o json | jq -r .id"
    )]
    List(ListArgs),
    /// Changes a task that waits. What is left out stays.
    #[command(after_help = "Example:\n  codeq task edit 0198c4a2-… --priority 9 --delay 0s")]
    Edit(EditArgs),
    /// Cancels all tasks that fit.
    #[command(after_help = "Example:\n  codeq task cancel-many --queue mail --state READY --reason 'wrong template'")]
    CancelMany(CancelManyArgs),
    /// Waits for the end of a task and prints how it ended. Exit status 0 if it was completed, 1 if not, 10 if it has not ended in time.
    #[command(after_help = "Example:\n  codeq task watch 0198c4a2-… --for 10m")]
    Watch(WatchArgs),
    /// Cancels a task. A worker that has it hears of it; with --force its lease is gone at once.
    #[command(after_help = "Example:\n  codeq task cancel 0198c4a2-… --reason 'ordered twice'")]
    Cancel(CancelArgs),
    /// Brings a task back that has failed, died or been cancelled.
    #[command(after_help = "Example:\n  codeq task redrive 0198c4a2-…")]
    Redrive(TaskArgs),
    /// Claims tasks, and prints them with the tokens of their leases. Exit status 10 if there is none.
    #[command(
        after_help = "Examples:\n  codeq task claim mail --wait 20s\n  codeq task claim mail sms --count 10 -o json"
    )]
    Claim(ClaimArgs),
    /// Extends a lease.
    #[command(after_help = "Example:\n  codeq task heartbeat 0198c4a2-… --lease-token … --extend 1m")]
    Heartbeat(HeartbeatArgs),
    /// Says that a claimed task is done. The result is a JSON object.
    #[command(after_help = "Example:\n  codeq task complete 0198c4a2-… --lease-token … '{\"sent\":true}'")]
    Complete(CompleteArgs),
    /// Says that a claimed task has failed, and will not be tried again.
    #[command(after_help = "Example:\n  codeq task fail 0198c4a2-… --lease-token … --error 'no such address'")]
    Fail(FailArgs),
    /// Says that an attempt has failed: again later, while attempts are left.
    #[command(after_help = "Example:\n  codeq task nack 0198c4a2-… --lease-token … --reason 'server busy' --delay 1m")]
    Nack(NackArgs),
    /// Gives a claimed task back; this delivery does not count.
    #[command(after_help = "Example:\n  codeq task abandon 0198c4a2-… --lease-token …")]
    Abandon(HeldArgs),
}

#[derive(Args)]
#[command(after_long_help = EXITS)]
pub(crate) struct CreateArgs {
    /// Name of the queue.
    command: String,
    /// Any JSON value but null; without it, or as `-`, the standard input.
    payload: Option<String>,
    /// One task for each line of the standard input, as fast as the server takes them, and so in no certain order; prints a line for each.
    #[arg(long, conflicts_with_all = ["payload", "idempotency_key"])]
    lines: bool,
    /// 0 to 9; 9 is claimed first.
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// Not before so long has passed, as in 90s, 10m, 2h.
    #[arg(long, value_parser = crate::flags::duration)]
    delay: Option<Duration>,
    /// Not before this time (RFC 3339).
    #[arg(long, value_name = "TIME")]
    run_at: Option<String>,
    /// Deliveries that it may have.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_attempts: Option<u32>,
    /// Creating with the same key again answers with the first task.
    #[arg(long)]
    idempotency_key: Option<String>,
    /// URL that is told of its end.
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    #[command(flatten)]
    call: CallArgs,
}

#[derive(Args)]
pub(crate) struct TaskArgs {
    /// Its id.
    #[arg(env = "CODEQ_TASK_ID")]
    id: String,
    #[command(flatten)]
    call: CallArgs,
}

#[derive(Args)]
pub(crate) struct HistoryArgs {
    /// So many entries at most.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    limit: u32,
    #[command(flatten)]
    task: TaskArgs,
}

#[derive(Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    states: StateArgs,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    page: PageArgs,
    #[command(flatten)]
    call: CallArgs,
}

#[derive(Args)]
pub(crate) struct EditArgs {
    /// 0 to 9; 9 is claimed first.
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// Not before so long has passed; 0s: at once.
    #[arg(long, value_parser = crate::flags::duration, conflicts_with = "run_at")]
    delay: Option<Duration>,
    /// Not before this time (RFC 3339).
    #[arg(long, value_name = "TIME")]
    run_at: Option<String>,
    /// Any JSON value but null; `-` is the standard input.
    #[arg(long, value_name = "JSON")]
    payload: Option<String>,
    /// Deliveries that it may have.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_attempts: Option<u32>,
    /// URL that is told of its end; empty: none.
    #[arg(long, value_name = "URL")]
    webhook: Option<String>,
    #[command(flatten)]
    task: TaskArgs,
}

#[derive(Args)]
pub(crate) struct CancelManyArgs {
    /// Why; the tasks show it.
    #[arg(long, default_value = "")]
    reason: String,
    /// Also those that workers hold: what they say afterwards is refused.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    states: StateArgs,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    bulk: BulkArgs,
}

#[derive(Args)]
pub(crate) struct WatchArgs {
    /// How long at most.
    #[arg(long = "for", value_name = "DURATION", default_value = "1h", value_parser = crate::flags::duration)]
    longest: Duration,
    #[command(flatten)]
    task: TaskArgs,
}

#[derive(Args)]
pub(crate) struct CancelArgs {
    /// Why; the task shows it.
    #[arg(long, default_value = "")]
    reason: String,
    /// Also if a worker has it: what it says afterwards is refused.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    task: TaskArgs,
}

#[derive(Args)]
pub(crate) struct ClaimArgs {
    /// Names of queues, the first one first.
    #[arg(required = true)]
    commands: Vec<String>,
    /// Tasks at most.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=10))]
    count: u8,
    /// For how long. Without it, as the queue has it.
    #[arg(long, value_parser = crate::flags::duration)]
    lease: Option<Duration>,
    /// How long to wait for a task, at most 30s.
    #[arg(long, default_value = "0s", value_parser = crate::flags::duration)]
    wait: Duration,
    #[command(flatten)]
    call: CallArgs,
}

/// A task that is held.
#[derive(Args)]
pub(crate) struct HeldArgs {
    /// The token that the claim printed. Without it, the task must be held by the worker of the own token.
    #[arg(long, env = "CODEQ_LEASE_TOKEN", hide_env_values = true)]
    lease_token: Option<String>,
    #[command(flatten)]
    task: TaskArgs,
}

#[derive(Args)]
pub(crate) struct HeartbeatArgs {
    /// For so long from now on. Without it, as the queue has it.
    #[arg(long, value_parser = crate::flags::duration)]
    extend: Option<Duration>,
    #[command(flatten)]
    held: HeldArgs,
}

#[derive(Args)]
pub(crate) struct CompleteArgs {
    #[command(flatten)]
    held: HeldArgs,
    /// A JSON object; `-` is the standard input.
    #[arg(default_value = "{}")]
    result: String,
}

#[derive(Args)]
pub(crate) struct FailArgs {
    /// Why.
    #[arg(long)]
    error: String,
    #[command(flatten)]
    held: HeldArgs,
}

#[derive(Args)]
pub(crate) struct NackArgs {
    /// Why.
    #[arg(long, default_value = "")]
    reason: String,
    /// When it may be tried again; 0s: at once. Without it, by the queue's backoff.
    #[arg(long, value_parser = crate::flags::duration)]
    delay: Option<Duration>,
    #[command(flatten)]
    held: HeldArgs,
}

pub(crate) fn run(command: TaskCommand) -> ExitCode {
    match command {
        TaskCommand::Create(args) if args.lines => call(&args.call.endpoint, |client| create_lines(client, &args)),
        TaskCommand::Create(args) => call(&args.call.endpoint, |client| create(client, &args)),
        TaskCommand::Get(args) => call(&args.call.endpoint, |client| get(client, &args)),
        TaskCommand::History(args) => call(&args.task.call.endpoint, |client| history(client, &args)),
        TaskCommand::List(args) => call(&args.call.endpoint, |client| list(client, &args)),
        TaskCommand::Edit(args) => call(&args.task.call.endpoint, |client| edit(client, &args)),
        TaskCommand::CancelMany(CancelManyArgs { reason, force, states, filter, bulk }) => {
            let pairs: Vec<(&'static str, String)> = filter.pairs().into_iter().chain(states.pairs()).collect();
            begin("/v1/codeq/tasks/cancel", &bulk, &pairs, &[("reason", reason.into()), ("force", force.into())])
        }
        TaskCommand::Watch(args) => watch(&args),
        TaskCommand::Cancel(CancelArgs { reason, force, task }) => {
            let body = json!({"reason": reason, "force": force});
            post(&task, "/cancel", &body, Repeat::Always)
        }
        TaskCommand::Redrive(task) => post(&task, "/redrive", &json!({}), Repeat::IfDefinite),
        TaskCommand::Claim(args) => call(&args.call.endpoint, |client| claim(client, &args)),
        TaskCommand::Heartbeat(HeartbeatArgs { extend, held }) => {
            held.tell("/heartbeat", json!({"extendSeconds": extend.map(seconds)}))
        }
        TaskCommand::Complete(CompleteArgs { held, result }) => match json_of(&result) {
            Ok(result) => held.tell("/result", json!({"status": "COMPLETED", "result": result})),
            Err(error) => wrong(&error),
        },
        TaskCommand::Fail(FailArgs { error, held }) => {
            held.tell("/result", json!({"status": "FAILED", "error": error}))
        }
        TaskCommand::Nack(NackArgs { reason, delay, held }) => {
            held.tell("/nack", json!({"reason": reason, "delaySeconds": delay.map(seconds)}))
        }
        TaskCommand::Abandon(held) => held.tell("/abandon", json!({})),
    }
}

impl TaskArgs {
    fn path(&self, rest: &str) -> String {
        format!("/v1/codeq/tasks/{}{rest}", path_segment(&self.id))
    }
}

impl HeldArgs {
    /// Says something of a task that is held. Saying it twice does no harm: the lease is gone with the first time.
    fn tell(self, rest: &str, body: Value) -> ExitCode {
        let Value::Object(mut body) = body else { unreachable!("bodies are objects") };
        body.extend(self.lease_token.map(|token| ("leaseToken".to_owned(), token.into())));
        body.retain(|_, value| !value.is_null());
        post(&self.task, rest, &Value::Object(body), Repeat::Always)
    }
}

fn post(task: &TaskArgs, rest: &str, body: &Value, repeat: Repeat) -> ExitCode {
    call(&task.call.endpoint, |client| async move {
        let request = AnyRequest::post(&task.path(rest), body.to_string(), repeat);
        task.call.print(&client.send(request).await?);
        Ok(())
    })
}

async fn get(client: Client, args: &TaskArgs) -> Result<(), Trouble> {
    args.call.print(&client.send(AnyRequest::get(&args.path(""))).await?);
    Ok(())
}

async fn history(client: Client, args: &HistoryArgs) -> Result<(), Trouble> {
    let header = ["AT", "TYPE", "WHO", "ATTEMPT", "STATE", "DETAILS"];
    let row = |entry: &Value| {
        let named = |name: &str, unit: &str| entry[name].as_u64().map(|number| format!("{unit}{number}"));
        let details = [
            named("count", "times="),
            named("leaseMs", "lease_ms="),
            named("delayMs", "delay_ms="),
            entry["reason"].as_str().map(|_| cell(entry, "reason")),
        ];
        let details: Vec<String> = details.into_iter().flatten().collect();
        let actor = &entry["actor"];
        let who = [cell(actor, "kind"), cell(actor, "workerId")].into_iter().filter(|part| part != "-");
        let who: Vec<String> = who.collect();
        vec![
            cell(entry, "at"),
            cell(entry, "type"),
            who.join(" "),
            cell(entry, "attempt"),
            cell(entry, "to"),
            details.join(" "),
        ]
    };
    let shown = (&PageArgs { limit: args.limit }, args.task.call.output);
    print_list(&client, &args.task.path("/history"), Vec::new(), shown, "entries", &header, row).await
}

async fn list(client: Client, args: &ListArgs) -> Result<(), Trouble> {
    let header = ["TASK", "QUEUE", "STATE", "PRIORITY", "ATTEMPTS", "UPDATED", "ERROR"];
    let row = |task: &Value| {
        let mut cells: Vec<String> = ["id", "command", "state", "priority", "attempts", "updatedAt", "error"]
            .iter()
            .map(|name| cell(task, name))
            .collect();
        // A live task's last error tells as much.
        if cells[6] == "-" {
            cells[6] = cell(task, "lastError");
        }
        if cells[3] == "-" {
            cells[3] = "0".into();
        }
        cells
    };
    let pairs: Vec<(&'static str, String)> = args.filter.pairs().into_iter().chain(args.states.pairs()).collect();
    let shown = (&args.page, args.call.output);
    print_list(&client, "/v1/codeq/tasks", pairs, shown, "tasks", &header, row).await
}

async fn edit(client: Client, args: &EditArgs) -> Result<(), Trouble> {
    let options = [
        ("priority", args.priority.map(Value::from)),
        ("delaySeconds", args.delay.map(|delay| seconds(delay).into())),
        ("runAt", args.run_at.clone().map(Value::from)),
        ("maxAttempts", args.max_attempts.map(Value::from)),
        ("webhook", args.webhook.clone().map(Value::from)),
    ];
    let options: Map<String, Value> =
        options.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    if options.is_empty() && args.payload.is_none() {
        return Err(anyhow!("nothing is to be changed; see codeq task edit --help").into());
    }
    let mut body = Value::Object(options).to_string();
    if let Some(payload) = &args.payload {
        let comma = if body == "{}" { "" } else { "," };
        // The payload goes as it was given: no number in it is changed.
        body = format!("{}{comma}\"payload\":{}}}", body.trim_end_matches('}'), json_of(payload)?);
    }
    args.task.call.print(&client.send(AnyRequest::patch(&args.task.path(""), body, Repeat::Always)).await?);
    Ok(())
}

fn wrong(error: &anyhow::Error) -> ExitCode {
    output::note(&format!("error: {error:#}"));
    ExitCode::from(2)
}

/// A JSON value as it was given, or read from the standard input.
fn json_of(text: &str) -> anyhow::Result<Box<RawValue>> {
    let mut given = text.to_owned();
    if text == "-" {
        given.clear();
        std::io::stdin().read_to_string(&mut given).context("the standard input cannot be read")?;
    }
    let given = given.trim();
    serde_json::from_str(given).map_err(|why| {
        let shown: String = given.chars().take(60).collect();
        anyhow!("this is not JSON ({why}): {shown}\nhint: a text stands in quotes of its own: '\"hello\"'")
    })
}

async fn create(client: Client, args: &CreateArgs) -> Result<(), Trouble> {
    let payload = json_of(args.payload.as_deref().unwrap_or("-"))?;
    let key = args.idempotency_key.clone().unwrap_or_else(client::idempotency_key);
    let options = [
        ("priority", args.priority.map(Value::from)),
        ("delaySeconds", args.delay.map(|delay| seconds(delay).into())),
        ("runAt", args.run_at.clone().map(Value::from)),
        ("maxAttempts", args.max_attempts.map(Value::from)),
        ("webhook", args.webhook.clone().map(Value::from)),
        ("idempotencyKey", Some(key.into())),
        ("command", Some(args.command.clone().into())),
    ];
    let options: Map<String, Value> =
        options.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    let options = Value::Object(options).to_string();
    // The payload goes as it was given: no number in it is changed.
    let body = format!("{{\"payload\":{payload},{}", options.strip_prefix('{').unwrap_or_default());
    args.call.print(&client.send(AnyRequest::post("/v1/codeq/tasks", body, Repeat::Always)).await?);
    Ok(())
}

/// Lines that were sent and are not decided, at most.
const LINES_AHEAD: usize = 1000;

async fn create_lines(client: Client, args: &CreateArgs) -> Result<(), Trouble> {
    let producer = client.producer();
    let mut tickets = std::collections::VecDeque::new();
    let (mut lines, mut number, mut failed) = (std::io::stdin().lock().lines(), 0, 0);
    loop {
        let line = if tickets.len() < LINES_AHEAD { lines.next() } else { None };
        if let Some(line) = line {
            number += 1;
            let line = line.context("the standard input cannot be read")?;
            if line.trim().is_empty() {
                continue;
            }
            let payload: Box<RawValue> = serde_json::from_str(&line)
                .map_err(|why| anyhow!("line {number} is not JSON: {why}; the lines before it are created"))?;
            tickets.push_back((number, producer.send(args.task(&payload)?).await));
            continue;
        }
        let Some((line, ticket)) = tickets.pop_front() else { break };
        match ticket.await {
            Ok(created) if args.call.output == Form::Json => output::data(&json!({"id": created.task.id}).to_string()),
            Ok(created) => output::data(&created.task.id),
            Err(error) => {
                failed += 1;
                output::note(&format!("error: line {line}: {error}"));
            }
        }
    }
    if failed > 0 { Err(anyhow!("{failed} of {number} lines were not created").into()) } else { Ok(()) }
}

impl CreateArgs {
    fn task(&self, payload: &RawValue) -> Result<NewTask, client::Error> {
        let mut task = NewTask::new(&self.command, payload)?;
        if let Some(priority) = self.priority {
            task = task.priority(priority);
        }
        if let Some(delay) = self.delay {
            task = task.delay(delay);
        }
        if let Some(time) = &self.run_at {
            task = task.run_at_text(time);
        }
        if let Some(attempts) = self.max_attempts {
            task = task.max_attempts(attempts);
        }
        if let Some(url) = &self.webhook {
            task = task.webhook(url);
        }
        Ok(task)
    }
}

async fn claim(client: Client, args: &ClaimArgs) -> Result<(), Trouble> {
    #[derive(Deserialize)]
    struct Claimed {
        tasks: Vec<Box<RawValue>>,
    }
    let mut body = json!({
        "commands": args.commands, "count": args.count, "waitSeconds": seconds(args.wait), "leaseSeconds": args.lease.map(seconds),
    });
    body.as_object_mut().expect("it is one").retain(|_, value| !value.is_null());
    let request = AnyRequest::post("/v1/codeq/tasks/claim/batch", body.to_string(), Repeat::IfDefinite);
    let answer = client.send(request.waiting(args.wait)).await?;
    if answer.status == 204 {
        return Err(Trouble::Nothing("there is no task to claim".into()));
    }
    let Claimed { tasks } = answer.json()?;
    let separator = if args.call.output == Form::Json { "\n" } else { "\n\n" };
    let shown: Vec<String> = tasks.iter().map(|task| shown(task.get().as_bytes(), args.call.output)).collect();
    output::data(&shown.join(separator));
    Ok(())
}

fn watch(args: &WatchArgs) -> ExitCode {
    let mut completed = false;
    let watched = call(&args.task.call.endpoint, |client| until_ended(client, args, &mut completed));
    if watched == ExitCode::SUCCESS && !completed { ExitCode::FAILURE } else { watched }
}

async fn until_ended(client: Client, args: &WatchArgs, completed: &mut bool) -> Result<(), Trouble> {
    #[derive(Deserialize)]
    struct Ended {
        result: Box<RawValue>,
    }
    let begun = std::time::Instant::now();
    loop {
        let left = args.longest.saturating_sub(begun.elapsed());
        let wait = left.min(Duration::from_secs(60));
        let path = args.task.path(&format!("/result?waitSeconds={}", wait.as_secs_f64().ceil()));
        match client.send(AnyRequest::get(&path).waiting(wait)).await {
            Ok(answer) => {
                let Ended { result } = answer.json()?;
                let record: ResultRecord = serde_json::from_str(result.get()).map_err(anyhow::Error::from)?;
                *completed = record.is_completed();
                output::data(&shown(result.get().as_bytes(), args.task.call.output));
                return Ok(());
            }
            Err(error) if error.is(Code::ResultNotFound) && left > wait => {}
            Err(error) if error.is(Code::ResultNotFound) => {
                return Err(Trouble::Nothing(format!("it has not ended within {:?}", args.longest)));
            }
            Err(error) => return Err(error.into()),
        }
    }
}
