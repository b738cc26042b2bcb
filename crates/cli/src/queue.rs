//! `codeq queue`: what is in a queue.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use client::{AnyRequest, path_segment};

use crate::calls::{CallArgs, call};

#[derive(Subcommand)]
pub(crate) enum QueueCommand {
    /// Prints how many tasks of a queue wait, are held, and are dead. Needs an administrator's token.
    #[command(after_help = "Example:\n  codeq queue stats mail -o json | jq .ready")]
    Stats(StatsArgs),
}

#[derive(Args)]
pub(crate) struct StatsArgs {
    /// Name of the queue.
    command: String,
    #[command(flatten)]
    call: CallArgs,
}

pub(crate) fn run(command: &QueueCommand) -> ExitCode {
    let QueueCommand::Stats(args) = command;
    call(&args.call.endpoint, |client| async move {
        let path = format!("/v1/codeq/admin/queues/{}", path_segment(&args.command));
        args.call.print(&client.send(AnyRequest::get(&path)).await?);
        Ok(())
    })
}
