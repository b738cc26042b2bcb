//! `codeq events`: what happens to tasks, queues and operations, as it happens.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::calls::{CallArgs, Form};
use crate::filter::{cell, path_with};
use crate::output;

#[derive(Args)]
pub(crate) struct EventsArgs {
    /// Only of these queues. Can be repeated.
    #[arg(long = "queue", alias = "command", value_name = "QUEUE")]
    queues: Vec<String>,
    /// Only these, as in task.dead or queue.paused. Can be repeated.
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Those behind the event with this id, instead of those from now on.
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    #[command(flatten)]
    call: CallArgs,
}

/// Prints events until the process ends.
pub(crate) fn run(args: &EventsArgs) -> ExitCode {
    let mut pairs: Vec<(&'static str, String)> = Vec::new();
    pairs.extend(args.queues.iter().map(|queue| ("command", queue.clone())));
    pairs.extend(args.types.iter().map(|of| ("type", of.clone())));
    pairs.extend(args.after.iter().map(|id| ("after", id.clone())));
    let form = args.call.output;
    args.call.endpoint.follow(&path_with("/v1/codeq/events", &pairs), |event| {
        let data: Value = serde_json::from_str(event.data).unwrap_or_default();
        output::data(&match form {
            Form::Json => json!({"id": event.id, "event": event.kind, "data": data}).to_string(),
            Form::Table => line(event.kind, &data),
        });
    })
}

fn line(kind: &str, data: &Value) -> String {
    if kind == "gap" {
        return "gap: events are missing here, the servers do not keep them any more".into();
    }
    let at = if data["at"].is_string() { cell(data, "at") } else { cell(data, "updatedAt") };
    let mut text = format!("{at}  {kind}");
    for (name, value) in [
        ("queue", cell(data, "command")),
        ("task", cell(data, "taskId")),
        ("operation", cell(data, "operationId")),
        ("attempt", cell(data, "attempt")),
        ("worker", cell(&data["actor"], "workerId")),
        ("by", cell(&data["actor"], "subject")),
        ("delay_ms", cell(data, "delayMs")),
        ("processed", cell(data, "processed")),
        ("reason", cell(data, "reason")),
    ] {
        if value != "-" {
            text += &format!(" {name}={value}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let data = json!({"at": "2026-11-21T09:00:00.000Z", "command": "mail", "taskId": "x", "attempt": 2,
            "actor": {"kind": "worker", "workerId": "w1"}, "reason": "busy\nnow"});
        let expected = "2026-11-21T09:00:00.000Z  task.retry queue=mail task=x attempt=2 worker=w1 reason=busy now";
        assert_eq!(line("task.retry", &data), expected);
    }
}
