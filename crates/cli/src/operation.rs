//! `codeq operation`: work on many tasks in the background, and waiting for its end.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use client::{AnyRequest, Client, Repeat, path_segment};
use serde_json::{Map, Value};

use crate::calls::{CallArgs, EXITS, Trouble, call};
use crate::filter::{PageArgs, as_object, cell, print_list};
use crate::output;

#[derive(Subcommand)]
pub(crate) enum OperationCommand {
    /// Lists operations, the youngest first.
    #[command(after_help = "Example:\n  codeq operation list")]
    List(ListArgs),
    /// Prints how far an operation is; with --wait, once it has ended. Exit status 1 if it has failed.
    #[command(after_help = "Example:\n  codeq operation show op-… --wait")]
    Show(ShowArgs),
    /// Stops an operation after its present step.
    #[command(after_help = "Example:\n  codeq operation stop op-…")]
    Stop(OneArgs),
    /// Lets a stopped operation go on where it was.
    #[command(after_help = "Example:\n  codeq operation resume op-…")]
    Resume(OneArgs),
}

#[derive(Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    page: PageArgs,
    #[command(flatten)]
    call: CallArgs,
}

#[derive(Args)]
#[command(after_long_help = EXITS)]
pub(crate) struct OneArgs {
    /// Its id.
    id: String,
    #[command(flatten)]
    call: CallArgs,
}

#[derive(Args)]
pub(crate) struct ShowArgs {
    /// Until it has ended.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    one: OneArgs,
}

/// How work on many tasks is begun and followed.
#[derive(Args)]
pub(crate) struct BulkArgs {
    /// Changes nothing: counts, and shows some of the tasks.
    #[arg(long)]
    dry_run: bool,
    /// Tasks per second. Without it, 100.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: Option<u32>,
    /// Does not wait for the end: prints the operation and lets it go on by itself.
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    pub(crate) call: CallArgs,
}

/// How often a running operation is looked at.
const LOOK: Duration = Duration::from_millis(250);

pub(crate) fn run(command: &OperationCommand) -> ExitCode {
    match command {
        OperationCommand::List(ListArgs { page, call: args }) => call(&args.endpoint, |client| async move {
            let header = ["OPERATION", "KIND", "STATE", "CHANGED", "SKIPPED", "STARTED", "BY"];
            let names = ["operationId", "kind", "state", "changed", "skipped", "startedAt", "startedBy"];
            let row = |operation: &Value| names.iter().map(|name| cell(operation, name)).collect();
            let path = "/v1/codeq/operations";
            print_list(&client, path, Vec::new(), (page, args.output), "operations", &header, row).await
        }),
        OperationCommand::Show(ShowArgs { wait, one }) => {
            let path = path_of(&one.id);
            call(&one.call.endpoint, |client| async move { follow(&client, &path, &one.call, *wait).await })
        }
        OperationCommand::Stop(one) => turn(one, "/stop"),
        OperationCommand::Resume(one) => turn(one, "/resume"),
    }
}

fn path_of(id: &str) -> String {
    format!("/v1/codeq/operations/{}", path_segment(id))
}

fn turn(one: &OneArgs, what: &str) -> ExitCode {
    call(&one.call.endpoint, |client| async move {
        let request = AnyRequest::post(&(path_of(&one.id) + what), "{}", Repeat::Always);
        one.call.print(&client.send(request).await?);
        Ok(())
    })
}

/// Begins work on many tasks, and follows it to its end unless it is to go on by itself.
pub(crate) fn begin(
    path: &str,
    args: &BulkArgs,
    filter: &[(&'static str, String)],
    more: &[(&str, Value)],
) -> ExitCode {
    let mut body: Map<String, Value> = more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    body.insert("filter".into(), as_object(filter));
    body.extend(args.rate.map(|rate| ("ratePerSecond".to_owned(), rate.into())));
    body.extend(args.dry_run.then(|| ("dryRun".to_owned(), true.into())));
    body.retain(|_, value| !value.is_null());
    let body = Value::Object(body).to_string();
    call(&args.call.endpoint, |client| async move {
        // A second one of its kind would be refused, so it is not begun again after a lost answer.
        let begun = client.send(AnyRequest::post(path, body, Repeat::IfDefinite)).await?;
        if args.detach {
            args.call.print(&begun);
            return Ok(());
        }
        let operation: Value = begun.json()?;
        follow(&client, &path_of(&cell(&operation, "operationId")), &args.call, true).await
    })
}

/// Prints an operation, if `to_end` once it has ended, with a line of progress meanwhile where somebody sees it.
async fn follow(client: &Client, path: &str, args: &CallArgs, to_end: bool) -> Result<(), Trouble> {
    let is_seen = std::io::stderr().is_terminal();
    let mut is_shown = false;
    loop {
        let answer = client.send(AnyRequest::get(path)).await?;
        let operation: Value = answer.json()?;
        let state = cell(&operation, "state");
        if to_end && state == "RUNNING" {
            if is_seen {
                output::progress(&progress(&operation));
                is_shown = true;
            }
            tokio::time::sleep(LOOK).await;
            continue;
        }
        if is_shown {
            output::progress("");
        }
        args.print(&answer);
        if state == "FAILED" {
            return Err(anyhow::anyhow!("it cannot go on: {}", cell(&operation, "error")).into());
        }
        if to_end && state == "STOPPED" {
            let id = cell(&operation, "operationId");
            return Err(anyhow::anyhow!("somebody has stopped it; codeq operation resume {id} lets it go on").into());
        }
        return Ok(());
    }
}

/// How far an operation is, in a line.
fn progress(operation: &Value) -> String {
    let number = |name: &str| operation[name].as_u64().unwrap_or_default();
    let (done, kind) = (number("processed"), cell(operation, "kind"));
    match operation["estimatedTotal"].as_u64().filter(|total| *total > 0) {
        Some(total) => {
            let share = (done.min(total) * 100 / total) as usize;
            let bar: String = (0..20).map(|place| if place < share / 5 { '#' } else { '.' }).collect();
            format!("{kind} [{bar}] {share:3} %, {done} of {total}")
        }
        None => format!("{kind} {done} tasks"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn progress_is_a_line() {
        let half = json!({"kind": "dlq.redrive", "processed": 50, "estimatedTotal": 100});
        assert_eq!(progress(&half), "dlq.redrive [##########..........]  50 %, 50 of 100");
        let more = json!({"kind": "dlq.redrive", "processed": 150, "estimatedTotal": 100});
        assert_eq!(progress(&more), "dlq.redrive [####################] 100 %, 150 of 100");
        let unknown = json!({"kind": "tasks.cancel", "processed": 7});
        assert_eq!(progress(&unknown), "tasks.cancel 7 tasks");
    }
}
