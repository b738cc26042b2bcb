//! `codeq worker run`: a worker made of any program. Each task is a run of it: payload on standard input, result from standard output, the exit
//! status decides.

use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use client::{Client, Failure, Job, Stop, Summary};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::Notify;

use crate::calls::{Trouble, call};
use crate::endpoint::EndpointArgs;
use crate::output;
use crate::serve::Signals;

/// The program says that the task will never work (`EX_DATAERR` of sysexits.h).
const PERMANENT: i32 = 65;
/// The program says that somebody else should do it, or later: it does not count as an attempt (`EX_TEMPFAIL`).
const GIVE_BACK: i32 = 75;
/// What a program may print as its result. The server may allow less.
const RESULT_BYTES_MAX: usize = 3 << 20;
/// What is kept of the end of what it says on standard error, for the task's reason.
const ERROR_BYTES_MAX: usize = 4 << 10;

#[derive(Subcommand)]
pub(crate) enum WorkerCommand {
    /// Claims tasks and runs a program for each, until it is asked to stop (Ctrl-C or SIGTERM).
    ///
    /// The program gets the payload on standard input. What it prints becomes the result: a JSON object as it is, anything else as
    /// {"output": …}. Its exit status decides: 0 completes the task, 65 fails it for good, 75 gives it back without counting, anything else
    /// is a failed attempt, which is tried again while attempts are left. The end of what it says on standard error is the reason. Its lease
    /// is extended for as long as it runs. If it is lost, if the task is cancelled or the worker is to end, the program gets SIGTERM.
    ///
    /// Variables: CODEQ_TASK_ID, CODEQ_TASK_COMMAND, CODEQ_TASK_ATTEMPT, CODEQ_LEASE_TOKEN.
    #[command(
        after_help = "Examples:\n  codeq worker run --queue mail --slots 4 -- ./send-mail\n  codeq worker run --queue sums -- sh -c 'jq -r .path | xargs sha256sum'\n\nExit status:\n  0 stopped as asked, and every task told or given back; 1 the server refused, or tasks were lost"
    )]
    Run(RunArgs),
}

#[derive(Args)]
pub(crate) struct RunArgs {
    /// Names of queues, with commas between them; the most urgent task of all is next.
    #[arg(long, required = true, value_name = "NAME,…", value_delimiter = ',')]
    queue: Vec<String>,
    /// Programs at one time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    slots: u16,
    /// How long a task stays with this worker if it dies; extended while the program runs.
    #[arg(long, default_value = "30s", value_parser = crate::flags::duration)]
    lease: Duration,
    /// How long programs may go on when the worker is asked to stop; then they get SIGTERM.
    #[arg(long, default_value = "25s", value_parser = crate::flags::duration)]
    drain: Duration,
    /// How long they may take after SIGTERM; then they are killed, and their tasks given back.
    #[arg(long, default_value = "5s", value_parser = crate::flags::duration)]
    stop: Duration,
    /// Ends by itself when so many runs are over; what was begun meanwhile is finished.
    #[arg(long, value_name = "COUNT")]
    tasks: Option<u64>,
    #[command(flatten)]
    endpoint: EndpointArgs,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<String>,
}

pub(crate) fn run(command: WorkerCommand) -> ExitCode {
    let WorkerCommand::Run(args) = command;
    call(&args.endpoint, |client| until_stopped(client, &args))
}

async fn until_stopped(client: Client, args: &RunArgs) -> Result<(), Trouble> {
    let mut signals = Signals::listen().map_err(|why| anyhow!("signals cannot be listened to: {why}"))?;
    let program: Arc<[String]> = args.program.clone().into();
    let (over, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let (slots, tasks) = (args.slots.into(), args.tasks);
    let mut worker = client.worker().slots(slots).lease(args.lease).drain(args.drain).stop(args.stop);
    for queue in &args.queue {
        let (program, over, enough) = (program.clone(), over.clone(), enough.clone());
        worker = worker.handle(queue, move |payload: Box<RawValue>, job: Job| {
            let (program, over, enough) = (program.clone(), over.clone(), enough.clone());
            async move {
                let done = work(&program, &payload, &job).await;
                if Some(over.fetch_add(1, Ordering::Relaxed) + 1) == tasks {
                    enough.notify_one();
                }
                done
            }
        });
    }
    let until = async {
        tokio::select! {
            () = signals.next() => output::note("stopping: no more tasks are claimed"),
            () = enough.notified() => {}
        }
    };
    let summary = worker.run(until).await?;
    output::note(&told(&summary));
    if summary.lost > 0 { Err(anyhow!("{} tasks were lost on the way", summary.lost).into()) } else { Ok(()) }
}

fn told(summary: &Summary) -> String {
    let Summary { completed, failed, retried, released, lost } = summary;
    format!("{completed} completed, {failed} failed, {retried} to be tried again, {released} given back, {lost} lost")
}

/// One run of the program.
async fn work(program: &[String], payload: &RawValue, job: &Job) -> Result<Box<RawValue>, Failure> {
    let task = job.task();
    let mut child = Command::new(&program[0])
        .args(&program[1..])
        .env("CODEQ_TASK_ID", &task.id)
        .env("CODEQ_TASK_COMMAND", &task.command)
        .env("CODEQ_TASK_ATTEMPT", task.attempts.to_string())
        .env("CODEQ_LEASE_TOKEN", &task.lease_token)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C is for the worker, which lets its programs finish.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|why| Failure::retry(format!("{} cannot be run: {why}", program[0])))?;
    let group = Group(child.id());
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program need not read what it is given.
            let _ = stdin.write_all(payload.get().as_bytes()).await;
        }
    };
    let both = async { tokio::join!(feed, head(stdout), tail(stderr), ended(&mut child, job, &group)) };
    let ((), output, error, (status, stopped)) = both.await;
    let status = status.map_err(|why| Failure::retry(format!("it cannot be waited for: {why}")))?;
    match (status.code(), stopped) {
        (Some(0), _) => result(&output),
        (_, Some(Stop::WorkerEnds)) | (Some(GIVE_BACK), _) => Err(Failure::release()),
        (Some(PERMANENT), _) => Err(Failure::permanent(reason(status, &error))),
        _ => Err(Failure::retry(reason(status, &error))),
    }
}

/// A program and whatever it has started. What is left of them when the task is over is killed.
struct Group(Option<u32>);

impl Group {
    fn signal(&self, signal: Signal) {
        if let Some(id) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // It may have ended already.
            let _ = killpg(Pid::from_raw(id), signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// Waits for the end; asks the program to stop where its task is not to be gone on with.
async fn ended(child: &mut Child, job: &Job, group: &Group) -> (std::io::Result<ExitStatus>, Option<Stop>) {
    tokio::select! {
        status = child.wait() => (status, None),
        why = job.stopped() => {
            group.signal(Signal::SIGTERM);
            (child.wait().await, Some(why))
        }
    }
}

/// What the program prints, up to the most that a result may be.
async fn head(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        let mut limited = from.take(RESULT_BYTES_MAX as u64);
        // What was read before it failed is what there is.
        let _ = limited.read_to_end(&mut bytes).await;
        // A program that goes on printing must not wait for somebody who reads.
        let _ = tokio::io::copy(&mut limited.into_inner(), &mut tokio::io::sink()).await;
    }
    bytes
}

/// The end of what the program says on standard error, which is handed on as it comes.
async fn tail(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let (mut kept, mut bytes) = (Vec::new(), vec![0; 8 << 10]);
    if let Some(mut from) = from {
        while let Ok(length @ 1..) = from.read(&mut bytes).await {
            output::pass(&bytes[..length]);
            kept.extend_from_slice(&bytes[..length]);
            let surplus = kept.len().saturating_sub(ERROR_BYTES_MAX);
            kept.drain(..surplus);
        }
    }
    kept
}

/// An object as it was printed; anything else as text.
fn result(output: &[u8]) -> Result<Box<RawValue>, Failure> {
    let text = String::from_utf8_lossy(output);
    match serde_json::from_str::<Box<RawValue>>(text.trim()) {
        Ok(object) if object.get().starts_with('{') => Ok(object),
        _ => Ok(to_raw_value(&json!({"output": text.trim_end()}))?),
    }
}

fn reason(status: ExitStatus, error: &[u8]) -> String {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended".into(),
    };
    let said = String::from_utf8_lossy(error);
    let said = said.trim();
    if said.is_empty() { how } else { format!("{how}: {said}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_prints_becomes_an_object() {
        let check = |output: &str, expected: &str| {
            assert_eq!(result(output.as_bytes()).expect("it becomes one").get(), expected);
        };
        check("{\"a\": 12345678901234567890123}\n", "{\"a\": 12345678901234567890123}");
        check("", "{\"output\":\"\"}");
        check("two\nlines\n", "{\"output\":\"two\\nlines\"}");
        check("[1]", "{\"output\":\"[1]\"}");
        check("{\"a\"", "{\"output\":\"{\\\"a\\\"\"}");
    }
}
