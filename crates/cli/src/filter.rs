//! Which tasks are meant: the flags that lists and work on many tasks share, and the pages of a list.

use std::collections::BTreeMap;

use clap::Args;
use client::{AnyRequest, Client, path_segment};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::calls::{Form, Trouble};
use crate::members::columns;
use crate::output;

/// Conditions that all must hold. One that is given several times means any of its values.
#[derive(Args)]
#[command(next_help_heading = "Which tasks")]
pub(crate) struct FilterArgs {
    /// Of this queue; may be repeated.
    #[arg(short, long = "queue", value_name = "QUEUE")]
    queues: Vec<String>,
    /// This task; may be repeated.
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<String>,
    /// Held by this worker; may be repeated.
    #[arg(long = "worker", value_name = "WORKER")]
    workers: Vec<String>,
    /// Of this priority, as in 5 or 3-9.
    #[arg(long, value_name = "N|N-N")]
    priority_is: Option<String>,
    /// Delivered so often, as in 5 or 3-9.
    #[arg(long, value_name = "N|N-N")]
    attempts_are: Option<String>,
    /// Created at this time (RFC 3339) or later.
    #[arg(long, value_name = "TIME")]
    created_after: Option<String>,
    /// Created before this time.
    #[arg(long, value_name = "TIME")]
    created_before: Option<String>,
    /// Ended at this time or later.
    #[arg(long, value_name = "TIME")]
    finished_after: Option<String>,
    /// Ended before this time.
    #[arg(long, value_name = "TIME")]
    finished_before: Option<String>,
    /// Ready at this time or later.
    #[arg(long, value_name = "TIME")]
    run_after: Option<String>,
    /// Ready before this time.
    #[arg(long, value_name = "TIME")]
    run_before: Option<String>,
    /// With this key; needs one --queue.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// With this in its error, whatever the case.
    #[arg(long, value_name = "TEXT")]
    error_contains: Option<String>,
    /// Died of what this group died of: see `codeq dlq groups`.
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
}

/// A state of a task.
#[derive(Args)]
pub(crate) struct StateArgs {
    /// In this state, like READY or LEASED; may be repeated.
    #[arg(long = "state", value_name = "STATE", ignore_case = true, value_parser = ["DELAYED", "READY", "LEASED", "COMPLETED", "FAILED", "DEAD", "CANCELLED"])]
    states: Vec<String>,
}

impl StateArgs {
    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.states.iter().map(|state| ("state", state.to_ascii_uppercase()))
    }
}

impl FilterArgs {
    /// The conditions by their names on the wire.
    pub(crate) fn pairs(&self) -> Vec<(&'static str, String)> {
        let many = [("command", &self.queues), ("ids", &self.ids), ("workerId", &self.workers)];
        let one = [
            ("priority", &self.priority_is),
            ("attempts", &self.attempts_are),
            ("createdAfter", &self.created_after),
            ("createdBefore", &self.created_before),
            ("finishedAfter", &self.finished_after),
            ("finishedBefore", &self.finished_before),
            ("runAfter", &self.run_after),
            ("runBefore", &self.run_before),
            ("idempotencyKey", &self.idempotency_key),
            ("errorContains", &self.error_contains),
            ("fingerprint", &self.fingerprint),
        ];
        let many = many.into_iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value.clone())));
        many.chain(one.into_iter().filter_map(|(name, value)| Some((name, value.clone()?)))).collect()
    }
}

/// The conditions as a JSON object.
pub(crate) fn as_object(pairs: &[(&'static str, String)]) -> Value {
    let mut object: Map<String, Value> = Map::new();
    for (name, value) in pairs {
        let values = object.entry(*name).or_insert_with(|| Value::Array(Vec::new()));
        values.as_array_mut().expect("it was made as one").push(value.as_str().into());
    }
    for value in object.values_mut() {
        if let Value::Array(values) = value
            && values.len() == 1
        {
            *value = values.remove(0);
        }
    }
    Value::Object(object)
}

/// A path with these parameters.
pub(crate) fn path_with(path: &str, pairs: &[(&'static str, String)]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={}", path_segment(value))).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

/// How much of a list is printed.
#[derive(Args)]
pub(crate) struct PageArgs {
    /// So many at most.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) limit: u32,
}

/// Things that a server puts on one page.
const PAGE_MAX: u32 = 500;

/// Prints a list, page by page: `member` names it in the answer, `row` makes a line of each thing.
pub(crate) async fn print_list(
    client: &Client,
    path: &str,
    pairs: Vec<(&'static str, String)>,
    (page, form): (&PageArgs, Form),
    member: &str,
    header: &[&str],
    row: impl Fn(&Value) -> Vec<String>,
) -> Result<(), Trouble> {
    let (mut left, mut cursor, mut is_first) = (page.limit, None::<String>, true);
    loop {
        let asked = left.min(PAGE_MAX);
        let mut all = pairs.clone();
        all.push(("limit", asked.to_string()));
        all.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let answer = client.send(AnyRequest::get(&path_with(path, &all))).await?;
        let members: BTreeMap<String, Box<RawValue>> = answer.json()?;
        let read = |name: &str| members.get(name).map(|value| value.get());
        let things: Vec<Box<RawValue>> =
            serde_json::from_str(read(member).unwrap_or("[]")).map_err(anyhow::Error::from)?;
        left = left.saturating_sub(things.len() as u32);
        if form == Form::Json {
            // A thing in a line, as it was sent.
            things.iter().for_each(|thing| output::data(thing.get()));
        } else {
            let head = is_first.then(|| header.iter().map(|&name| name.to_owned()).collect());
            let parsed = things.iter().filter_map(|thing| serde_json::from_str(thing.get()).ok());
            let rows: Vec<Vec<String>> = head.into_iter().chain(parsed.map(|thing: Value| row(&thing))).collect();
            columns(&rows).iter().for_each(|line| output::data(line));
        }
        is_first = false;
        cursor = read("nextCursor").and_then(|text| serde_json::from_str(text).ok());
        if cursor.is_none() {
            return Ok(());
        }
        if left == 0 {
            output::note("there are more: ask for more with --limit");
            return Ok(());
        }
    }
}

/// A member of a thing as a cell: text as it is, anything else as JSON, nothing as a dash.
pub(crate) fn cell(thing: &Value, name: &str) -> String {
    match &thing[name] {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.replace(['\n', '\r', '\t'], " "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_parameters_and_members() {
        let pairs = [("command", "a".to_owned()), ("command", "b".to_owned()), ("errorContains", "no way".to_owned())];
        assert_eq!(path_with("/x", &pairs), "/x?command=a&command=b&errorContains=no%20way");
        assert_eq!(as_object(&pairs), serde_json::json!({"command": ["a", "b"], "errorContains": "no way"}));
        assert_eq!((path_with("/x", &[]), as_object(&[])), ("/x".to_owned(), serde_json::json!({})));
    }
}
