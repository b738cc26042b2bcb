//! `codeq dlq`: dead letters.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use client::AnyRequest;
use serde_json::Value;

use crate::calls::{CallArgs, Form, call, seconds};
use crate::filter::{FilterArgs, PageArgs, cell, path_with, print_list};
use crate::members::columns;
use crate::operation::{BulkArgs, begin};
use crate::output;

#[derive(Subcommand)]
pub(crate) enum DlqCommand {
    /// Lists dead letters, the last that died first.
    #[command(after_help = "Example:\n  codeq dlq list --queue mail --error-contains timeout")]
    List(ListArgs),
    /// Says what tasks died of, the most frequent first.
    #[command(after_help = "Example:\n  codeq dlq groups --queue mail")]
    Groups(ListArgs),
    /// Brings dead letters back, the oldest first.
    #[command(
        after_help = "Examples:\n  codeq dlq redrive --queue mail --error-contains timeout --dry-run\n  codeq dlq redrive --fingerprint 9f86d081884c7d65 --rate 50"
    )]
    Redrive(RedriveArgs),
    /// Deletes dead letters for good.
    #[command(after_help = "Example:\n  codeq dlq purge --queue mail --finished-before 2026-01-01T00:00:00Z --yes")]
    Purge(PurgeArgs),
}

#[derive(Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    page: PageArgs,
    #[command(flatten)]
    call: CallArgs,
}

#[derive(Args)]
pub(crate) struct RedriveArgs {
    /// What becomes of the attempts made so far.
    #[arg(long, value_enum, default_value_t = Attempts::Reset)]
    attempts: Attempts,
    /// Another priority, 0 to 9.
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=9))]
    priority: Option<u8>,
    /// Not before so long has passed.
    #[arg(long, value_parser = crate::flags::duration)]
    delay: Option<Duration>,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    bulk: BulkArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Attempts {
    /// They are forgotten.
    Reset,
    /// They count; where all are used up, there is one more.
    Keep,
}

#[derive(Args)]
pub(crate) struct PurgeArgs {
    /// This cannot be undone.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    bulk: BulkArgs,
}

pub(crate) fn run(command: &DlqCommand) -> ExitCode {
    match command {
        DlqCommand::List(args) => call(&args.call.endpoint, |client| async move {
            let header = ["TASK", "QUEUE", "ATTEMPTS", "DIED", "ERROR"];
            let names = ["id", "command", "attempts", "finishedAt", "error"];
            let row = |task: &Value| names.iter().map(|name| cell(task, name)).collect();
            let shown = (&args.page, args.call.output);
            print_list(&client, "/v1/codeq/dlq", args.filter.pairs(), shown, "tasks", &header, row).await
        }),
        DlqCommand::Groups(args) => call(&args.call.endpoint, |client| async move {
            let mut pairs = args.filter.pairs();
            pairs.push(("limit", args.page.limit.min(200).to_string()));
            let answer = client.send(AnyRequest::get(&path_with("/v1/codeq/dlq/groups", &pairs))).await?;
            if args.call.output == Form::Json {
                args.call.print(&answer);
                return Ok(());
            }
            let body: Value = answer.json()?;
            let names = ["fingerprint", "count", "command", "lastAt", "error"];
            let header = ["FINGERPRINT", "COUNT", "QUEUE", "LAST", "ERROR"].map(str::to_owned).to_vec();
            let groups = body["groups"].as_array().into_iter().flatten();
            let rows = groups.map(|group| names.iter().map(|name| cell(group, name)).collect());
            let rows: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
            columns(&rows).iter().for_each(|line| output::data(line));
            if body["partial"].as_bool().unwrap_or(false) {
                output::note("there are more than could be looked at in time; narrow it, for example with --queue");
            }
            Ok(())
        }),
        DlqCommand::Redrive(args) => {
            let attempts = if args.attempts == Attempts::Keep { "keep" } else { "reset" };
            let more = [
                ("attempts", attempts.into()),
                ("priority", args.priority.map_or(Value::Null, Value::from)),
                ("delaySeconds", args.delay.map_or(Value::Null, |delay| seconds(delay).into())),
            ];
            begin("/v1/codeq/dlq/redrive", &args.bulk, &args.filter.pairs(), &more)
        }
        DlqCommand::Purge(args) => {
            let confirm = if args.yes { "purge".into() } else { Value::Null };
            begin("/v1/codeq/dlq/purge", &args.bulk, &args.filter.pairs(), &[("confirm", confirm)])
        }
    }
}
