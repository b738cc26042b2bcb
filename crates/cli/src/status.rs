//! `codeq status`: how the cluster is, in a sentence, and then the numbers of the server that is asked.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use crate::endpoint::{EndpointArgs, refused, unanswered};
use crate::members::{Form, columns, understood};
use crate::output;

#[derive(Args)]
pub(crate) struct StatusArgs {
    /// How to print it. Wide has a row for each member as the leader sees it.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    /// A row for each node, as each of them says it.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

/// Prints it.
pub(crate) fn status(args: &StatusArgs) -> ExitCode {
    let ask = |path: &str| match args.endpoint.ask(path, None) {
        // An unavailable cluster is told of as well.
        Ok(answer) if answer.status == 200 || (answer.status == 503 && path.ends_with("health")) => Ok(answer),
        Ok(answer) => Err(refused(&answer)),
        Err(error) => Err(unanswered(&error)),
    };
    let page = if args.all { "/cluster/status?all" } else { "/cluster/status" };
    let (health, answer) = match ask("/cluster/health").and_then(|health| Ok((health, ask(page)?))) {
        Ok(answers) => answers,
        Err(exit) => return exit,
    };
    if args.output == Form::Json {
        output::data(&answer.body);
        return ExitCode::SUCCESS;
    }
    let (Some(health), Some(status)) = (understood::<Value>(&health), understood::<Value>(&answer)) else {
        return ExitCode::FAILURE;
    };
    let text = match args.all {
        true => told_of_all(&health, &status),
        false => told(&health, &status, args.output == Form::Wide),
    };
    output::data(&text);
    ExitCode::SUCCESS
}

/// A value as it stands in a cell.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The sentence, and what is wrong.
fn sentence(health: &Value) -> Vec<String> {
    let mut lines = vec![format!("cluster {}: {}", cell(&health["status"]), cell(&health["summary"]))];
    lines.extend(health["reasons"].as_array().into_iter().flatten().map(|reason| format!("  {}", cell(reason))));
    lines
}

/// A row for each node; of one that does not answer, why there is none.
fn told_of_all(health: &Value, pages: &Value) -> String {
    let headings = ["Node", "Role", "Leader", "Term", "Commit", "Applied", "Uptime s", "Build", "Message"];
    let row = |(name, page): (&String, &Value)| {
        let uptime = page["uptimeMs"].as_u64().map_or(Value::Null, |ms| (ms / 1000).into());
        let leader = &page["leader"]["name"];
        let rest = [
            &page["role"],
            leader,
            &page["term"],
            &page["commitIndex"],
            &page["appliedIndex"],
            &uptime,
            &page["build"],
            &page["error"],
        ];
        [name.clone()].into_iter().chain(rest.map(cell)).collect::<Vec<String>>()
    };
    let rows = pages.as_object().into_iter().flatten().map(row);
    let table: Vec<Vec<String>> = [headings.map(str::to_owned).to_vec()].into_iter().chain(rows).collect();
    [sentence(health), columns(&table)].concat().join("\n")
}

fn told(health: &Value, status: &Value, wide: bool) -> String {
    let mut lines = sentence(health);
    let leader = cell(&status["leader"]["name"]);
    let seconds = status["uptimeMs"].as_u64().unwrap_or_default() / 1000;
    lines.push(format!(
        "{} is {} in term {}; {leader} leads; {}; up {seconds} s; codeq {}, {} ({})",
        cell(&status["name"]),
        cell(&status["role"]),
        cell(&status["term"]),
        cell(&status["stage"]),
        cell(&status["build"]),
        cell(&status["storage"]),
        cell(&status["durability"]),
    ));
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let row = |of: &Value, fields: &[&str]| fields.iter().map(|field| cell(&of[*field])).collect::<Vec<String>>();
    let table = |headings: &[&str], rows: Vec<Vec<String>>| {
        let headings = headings.iter().map(|heading| (*heading).to_owned()).collect();
        columns(&[vec![headings], rows].concat())
    };
    let fields =
        ["group", "role", "leader", "term", "lastIndex", "commitIndex", "appliedIndex", "checkpointIndex", "pending"];
    let headings = ["Group", "Role", "Leader", "Term", "Last", "Commit", "Applied", "Checkpoint", "Pending"];
    lines.extend(table(&headings, list(&status["groups"]).iter().map(|group| row(group, &fields)).collect()));
    let fields = ["name", "match", "next", "lag", "state", "lastContactMs", "rttMs"];
    let headings = ["Member", "Match", "Next", "Lag", "State", "Contact ms", "Round trip ms"];
    let peers: Vec<Vec<String>> = list(&status["peers"]).iter().map(|peer| row(peer, &fields)).collect();
    if wide && !peers.is_empty() {
        lines.extend(table(&headings, peers));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The sentence comes first, with what is wrong; then the server, its groups, and where it leads the members.
    #[test]
    fn a_sentence_and_then_the_numbers() {
        let health = json!({ "status": "degraded", "summary": "2 of 3", "reasons": ["node-c: not heard of"] });
        let group = json!({ "group": 0, "role": "leader", "leader": "node-a", "term": 8, "lastIndex": 12,
            "commitIndex": 12, "appliedIndex": 11, "checkpointIndex": 5, "pending": 1 });
        let peer = json!({ "name": "node-b", "match": 12, "next": 13, "lag": 0, "state": "replicating",
            "lastContactMs": 3, "rttMs": 0.5 });
        let status = json!({ "name": "node-a", "role": "leader", "term": 8, "stage": "running", "uptimeMs": 61_000,
            "build": "0.1.0", "storage": "sqlite", "durability": "fsync", "leader": { "name": "node-a" },
            "groups": [group], "peers": [peer] });
        let expected = "\
cluster degraded: 2 of 3
  node-c: not heard of
node-a is leader in term 8; node-a leads; running; up 61 s; codeq 0.1.0, sqlite (fsync)
Group  Role    Leader  Term  Last  Commit  Applied  Checkpoint  Pending
0      leader  node-a  8     12    12      11       5           1";
        assert_eq!(told(&health, &status, false), expected);
        let wide = told(&health, &status, true);
        assert!(wide.ends_with("node-b  12     13    0    replicating  3           0.5"), "{wide}");
    }
}
