//! `codeq queue`: what is in queues, and who may take from them.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use client::{AnyRequest, Repeat, path_segment};
use serde_json::{Value, json};

use crate::calls::{CallArgs, call, seconds};
use crate::filter::{FilterArgs, PageArgs, cell, print_list};
use crate::operation::{BulkArgs, begin};

#[derive(Subcommand)]
pub(crate) enum QueueCommand {
    /// Lists queues with their numbers.
    #[command(after_help = "Example:\n  codeq queue list --non-empty")]
    List(ListArgs),
    /// Prints how many tasks of a queue wait, are held, and are dead.
    #[command(after_help = "Example:\n  codeq queue stats mail -o json | jq .ready")]
    Stats(OneArgs),
    /// Lets claims pass a queue over. Leases, results and new tasks go on.
    #[command(after_help = "Example:\n  codeq queue pause mail --reason 'relay is down' --for 1h")]
    Pause(PauseArgs),
    /// Ends a pause.
    #[command(after_help = "Example:\n  codeq queue resume mail")]
    Resume(OneArgs),
    /// Deletes the tasks of a queue that wait, for good. Tasks that workers hold are left alone.
    #[command(after_help = "Example:\n  codeq queue purge mail --yes")]
    Purge(Box<PurgeArgs>),
}

#[derive(Args)]
pub(crate) struct ListArgs {
    /// Names that begin like this.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Only queues that hold tasks.
    #[arg(long)]
    non_empty: bool,
    /// Only queues that are paused.
    #[arg(long)]
    paused: bool,
    #[command(flatten)]
    page: PageArgs,
    #[command(flatten)]
    call: CallArgs,
}

#[derive(Args)]
pub(crate) struct OneArgs {
    /// Name of the queue.
    command: String,
    #[command(flatten)]
    call: CallArgs,
}

#[derive(Args)]
pub(crate) struct PauseArgs {
    /// Why; the queue shows it.
    #[arg(long, default_value = "")]
    reason: String,
    /// It ends by itself after so long, at most 30 days.
    #[arg(long = "for", value_name = "DURATION", value_parser = crate::flags::duration)]
    length: Option<Duration>,
    #[command(flatten)]
    one: OneArgs,
}

#[derive(Args)]
pub(crate) struct PurgeArgs {
    /// Name of the queue.
    command: String,
    /// This cannot be undone.
    #[arg(long)]
    yes: bool,
    /// Only tasks in this state.
    #[arg(long = "state", value_name = "STATE", ignore_case = true, value_parser = ["READY", "DELAYED"])]
    state: Option<String>,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    bulk: BulkArgs,
}

pub(crate) fn run(command: &QueueCommand) -> ExitCode {
    match command {
        QueueCommand::List(args) => list(args),
        QueueCommand::Stats(one) => call(&one.call.endpoint, |client| async move {
            one.call.print(&client.send(AnyRequest::get(&one.path(""))).await?);
            Ok(())
        }),
        QueueCommand::Pause(PauseArgs { reason, length, one }) => {
            let mut body = json!({"reason": reason});
            if let Some(length) = length {
                body["durationSeconds"] = seconds(*length).into();
            }
            one.post("/pause", &body)
        }
        QueueCommand::Resume(one) => one.post("/resume", &json!({})),
        QueueCommand::Purge(args) => {
            let confirm = if args.yes { args.command.as_str().into() } else { Value::Null };
            let states = args.state.as_ref().map_or(Value::Null, |state| json!([state.to_ascii_uppercase()]));
            let path = format!("/v1/codeq/queues/{}/purge", path_segment(&args.command));
            begin(&path, &args.bulk, &args.filter.pairs(), &[("confirm", confirm), ("states", states)])
        }
    }
}

fn list(args: &ListArgs) -> ExitCode {
    let flags = [("nonEmpty", args.non_empty), ("paused", args.paused)];
    let mut pairs = vec![("prefix", args.prefix.clone())];
    pairs.extend(flags.into_iter().filter(|(_, given)| *given).map(|(name, _)| (name, "true".to_owned())));
    call(&args.call.endpoint, |client| async move {
        let header = ["QUEUE", "READY", "DELAYED", "HELD", "DEAD", "PAUSED"];
        let row = |queue: &Value| {
            let mut cells: Vec<String> =
                ["command", "ready", "delayed", "inProgress", "dlq"].iter().map(|name| cell(queue, name)).collect();
            let is_paused = queue["paused"].as_bool().unwrap_or(false);
            cells.push(match (is_paused, cell(queue, "pauseReason")) {
                (false, _) => "-".into(),
                (true, reason) if reason == "-" => "yes".into(),
                (true, reason) => reason,
            });
            cells
        };
        let shown = (&args.page, args.call.output);
        print_list(&client, "/v1/codeq/queues", pairs, shown, "queues", &header, row).await
    })
}

impl OneArgs {
    fn path(&self, rest: &str) -> String {
        format!("/v1/codeq/queues/{}{rest}", path_segment(&self.command))
    }

    fn post(&self, rest: &str, body: &Value) -> ExitCode {
        call(&self.call.endpoint, |client| async move {
            let request = AnyRequest::post(&self.path(rest), body.to_string(), Repeat::Always);
            self.call.print(&client.send(request).await?);
            Ok(())
        })
    }
}
