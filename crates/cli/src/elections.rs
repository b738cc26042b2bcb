//! `codeq cluster events|elections|timeline` and `codeq monitor`: what has happened in a cluster, for people.

use std::collections::BTreeSet;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use crate::endpoint::{EndpointArgs, refused, unanswered};
use crate::output;

#[derive(Subcommand)]
pub(crate) enum ClusterCommand {
    /// Prints what has happened, on all nodes, in one order.
    #[command(after_help = "Example:\n  codeq cluster events --level debug --since 10m")]
    Events(LookArgs),
    /// Prints the elections that were won, a line for each.
    #[command(after_help = "Example:\n  codeq cluster elections --last 5")]
    Elections(LookArgs),
    /// Draws elections: who did what when.
    #[command(after_help = "Example:\n  codeq cluster timeline --last 1")]
    Timeline(LookArgs),
}

#[derive(Args)]
pub(crate) struct LookArgs {
    /// Only the last so many.
    #[arg(long, value_name = "NUMBER")]
    last: Option<usize>,
    /// Only what is not older: 90s, 10m, 1h.
    #[arg(long, value_name = "DURATION")]
    since: Option<String>,
    /// Only this term.
    #[arg(long)]
    term: Option<u64>,
    /// Only this group.
    #[arg(long)]
    group: Option<u16>,
    /// Only this node.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Only what matters so much: debug, info, warn or error.
    #[arg(long)]
    level: Option<String>,
    /// Goes on with what happens from now on, until it is ended.
    #[arg(long)]
    follow: bool,
    /// Draws with plain letters.
    #[arg(long)]
    ascii: bool,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

#[derive(Args)]
pub(crate) struct MonitorArgs {
    /// How much is shown, whatever the node itself logs: debug, info, warn or error.
    #[arg(long, default_value = "info")]
    level: String,
    /// A JSON object per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people.
    Table,
    /// The body of the route.
    Json,
}

/// Prints what has happened in a cluster.
pub(crate) fn cluster(command: &ClusterCommand) -> ExitCode {
    match command {
        ClusterCommand::Events(args) if args.follow => args.follow("/cluster/events", |event| vec![line(event)]),
        ClusterCommand::Elections(args) if args.follow => {
            let mut is_first = true;
            args.follow("/cluster/elections", move |election| {
                let rows = table(std::slice::from_ref(election));
                rows.into_iter().skip(usize::from(!std::mem::take(&mut is_first))).collect()
            })
        }
        ClusterCommand::Timeline(args) if args.follow => {
            args.follow("/cluster/timeline", |timeline| drawn(timeline, args.ascii))
        }
        ClusterCommand::Events(args) => {
            args.print("/cluster/events", |body| body.lines().map(|text| line(&parsed(text))).collect())
        }
        ClusterCommand::Elections(args) => args.print("/cluster/elections", |body| {
            table(parsed(body)["elections"].as_array().map(Vec::as_slice).unwrap_or_default())
        }),
        ClusterCommand::Timeline(args) => args.print("/cluster/timeline", |body| drawn(&parsed(body), args.ascii)),
    }
}

/// Prints what a node logs from now on, at any level.
pub(crate) fn monitor(args: &MonitorArgs) -> ExitCode {
    args.endpoint.follow(&format!("/cluster/monitor?level={}", args.level), |event| {
        let text = event.data;
        output::data(&if args.json { text.to_owned() } else { logged(&parsed(text)) });
    })
}

impl LookArgs {
    fn query(&self) -> String {
        let given = [
            ("last", self.last.map(|last| last.to_string())),
            ("since", self.since.clone()),
            ("term", self.term.map(|term| term.to_string())),
            ("group", self.group.map(|group| group.to_string())),
            ("node", self.node.clone()),
            ("level", self.level.clone()),
        ];
        let pairs = given.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", value?)));
        pairs.collect::<Vec<_>>().join("&")
    }

    /// Prints what a page says.
    fn print(&self, page: &str, shown: impl Fn(&str) -> Vec<String>) -> ExitCode {
        let answer = match self.endpoint.ask(&format!("{page}?{}", self.query()), None) {
            Ok(answer) if answer.status == 200 => answer,
            Ok(answer) => return refused(&answer),
            Err(error) => return unanswered(&error),
        };
        match self.output {
            Form::Json => output::data(answer.body.trim_end()),
            Form::Table => shown(&answer.body).iter().for_each(|line| output::data(line)),
        }
        ExitCode::SUCCESS
    }

    /// Prints what a page goes on to say, until the process is ended.
    fn follow(&self, page: &str, mut shown: impl FnMut(&Value) -> Vec<String>) -> ExitCode {
        self.endpoint.follow(&format!("{page}?{}", self.query()), |event| match self.output {
            Form::Json => output::data(event.data),
            Form::Table => shown(&parsed(event.data)).iter().for_each(|line| output::data(line)),
        })
    }
}

fn parsed(body: &str) -> Value {
    serde_json::from_str(body).unwrap_or_default()
}

fn hlc(event: &Value) -> u64 {
    event["hlc"].as_str().and_then(|hlc| hlc.parse().ok()).unwrap_or_default()
}

fn text(value: &Value, name: &str) -> String {
    match &value[name] {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Time, Node, Group, Term, Event, Message.
fn line(event: &Value) -> String {
    let get = |name| text(event, name);
    format!(
        "{}  {:<12} {:>3} {:>5}  {:<26} {}",
        get("ts"),
        get("node"),
        get("group"),
        get("term"),
        get("event"),
        get("msg")
    )
}

/// A line of a node's log: time, level, where from, message, and what else is known.
fn logged(line: &Value) -> String {
    let get = |name| text(line, name);
    let named = ["ts", "level", "target", "msg"];
    let others = line.as_object().into_iter().flatten().filter(|(name, _)| !named.contains(&name.as_str()));
    let others: String = others.map(|(name, value)| format!(" {name}={value}")).collect();
    format!("{} {:>5} {}: {}{others}", get("ts"), get("level").to_uppercase(), get("target"), get("msg"))
}

/// The narrowest columns of elections, so that lines that come one by one stand below each other.
const WIDTHS: [usize; 10] = [4, 4, 5, 27, 10, 10, 9, 5, 8, 7];

fn table(elections: &[Value]) -> Vec<String> {
    let headings =
        ["No", "Term", "Group", "When", "Leader", "Previous", "Cause", "Votes", "Attempts", "Outage"].map(String::from);
    let mut rows = vec![headings];
    for election in elections {
        let get = |name| text(election, name);
        let votes = election["votes"].as_array().into_iter().flatten();
        let granted = votes.filter(|vote| vote["granted"] == true).count();
        let outage = election["outageMs"].as_u64().map_or("-".into(), |ms| format!("{ms} ms"));
        rows.push([
            get("number"),
            get("term"),
            get("group"),
            get("wonAt"),
            get("leader"),
            get("previous"),
            get("cause"),
            format!("{granted}/{}", get("needed")),
            get("attempts"),
            outage,
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).fold(WIDTHS[column], usize::max);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &[String; 10]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// Letters that a drawing is made of.
struct Ink {
    gone: &'static str,
    won: &'static str,
    back: &'static str,
    dash: char,
    right: char,
    left: char,
    arrow: &'static str,
    dot: &'static str,
}

const FINE: Ink =
    Ink { gone: "✖", won: "★", back: "↺", dash: '─', right: '▶', left: '◀', arrow: "→", dot: "·" };
const PLAIN: Ink = Ink { gone: "x", won: "*", back: "@", dash: '-', right: '>', left: '<', arrow: "->", dot: "-" };

/// The width of a lane.
const LANE: usize = 24;

fn drawn(body: &Value, ascii: bool) -> Vec<String> {
    let ink = if ascii { PLAIN } else { FINE };
    let missing: Vec<&str> = body["missing"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut drawing = Vec::new();
    for told in body["elections"].as_array().into_iter().flatten() {
        if !drawing.is_empty() {
            drawing.push(String::new());
        }
        draw(told, &missing, &ink, &mut drawing);
    }
    if drawing.is_empty() {
        drawing.push("no election that is remembered fits".into());
    }
    let missing = if missing.is_empty() { "-".into() } else { missing.join(", ") };
    drawing.push(format!("no data from: {missing}"));
    drawing
}

fn draw(told: &Value, missing: &[&str], ink: &Ink, drawing: &mut Vec<String>) {
    let (election, term, dot) = (&told["election"], text(told, "term"), ink.dot);
    let events: Vec<&Value> = told["events"].as_array().into_iter().flatten().collect();
    let ms = |name: &str| election[name].as_u64();
    let or_dash = |name: &str| text(election, name);
    if election.is_null() {
        drawing.push(format!("no leader yet {dot} group {} {dot} term {term}", text(told, "group")));
    } else {
        let before = events.iter().filter_map(|event| event["term"].as_u64()).min();
        let before = before.map_or("-".into(), |term| term.to_string());
        let head = format!("election {} {dot} group {}", or_dash("number"), text(told, "group"));
        drawing.push(format!("{head} {dot} term {before} {} {term} {dot} cause: {}", ink.arrow, or_dash("sentence")));
        let votes: Vec<&Value> = election["votes"].as_array().into_iter().flatten().collect();
        let granted = votes.iter().filter(|vote| vote["granted"] == true).count();
        drawing.push(format!(
            "outage {} ms   detect {} {dot} elect {} {dot} ready {}   votes {granted}, {} needed   attempts {}",
            or_dash("outageMs"),
            or_dash("detectMs"),
            or_dash("electMs"),
            or_dash("readyMs"),
            or_dash("needed"),
            or_dash("attempts")
        ));
    }
    let previous = election["previous"].as_str().filter(|_| or_dash("cause") != "transfer");
    let mut nodes: BTreeSet<&str> = events.iter().filter_map(|event| event["node"].as_str()).collect();
    nodes.extend(previous);
    nodes.extend(missing);
    let lanes: Vec<&str> = nodes.into_iter().collect();
    let lane = |node: &str| lanes.iter().position(|known| *known == node);
    let names: String = lanes.iter().map(|node| format!("{node:LANE$}")).collect();
    drawing.push(format!("   +ms   {}", names.trim_end()));
    let moment = |event: &Value| hlc(event) >> 16;
    let won = events.iter().find(|event| event["event"] == "raft.election.won").map(|event| moment(event));
    let until_won = ms("detectMs").unwrap_or_default() + ms("electMs").unwrap_or_default();
    let first = events.first().map_or(0, |event| moment(event));
    let zero = won.map_or(first, |won| won.saturating_sub(until_won).min(first));
    let mut row = |at: u64, cells: &str| drawing.push(format!("{at:>6}   {}", cells.trim_end()));
    if let Some(place) = previous.and_then(lane) {
        row(0, &format!("{}{} gone", " ".repeat(place * LANE), ink.gone));
    }
    for event in events {
        let Some(place) = event["node"].as_str().and_then(lane) else { continue };
        let indent = |place: usize| " ".repeat(place * LANE);
        let cells = match event["event"].as_str().unwrap_or_default() {
            "raft.vote.cast" => {
                let Some(candidate) = event["for"].as_str().and_then(lane) else { continue };
                let kind = if event["pre"] == true { "pre-vote" } else { "vote" };
                let said =
                    if event["granted"] == true { "granted".into() } else { format!("no: {}", text(event, "reason")) };
                let (from, to) = (candidate.min(place), candidate.max(place));
                let length = ((to - from) * LANE).saturating_sub(2);
                let dashes = |taken: usize| ink.dash.to_string().repeat(length.saturating_sub(taken + 2));
                if candidate < place {
                    format!("{}{kind} {}{} {said}", indent(from), dashes(kind.len()), ink.right)
                } else {
                    format!("{}{said} {}{} {kind}", indent(from), ink.left, dashes(said.len()))
                }
            }
            _ => match cell(event, ink) {
                Some(cell) => format!("{}{cell}", indent(place)),
                None => continue,
            },
        };
        row(moment(event).saturating_sub(zero), &cells);
    }
}

/// What is drawn of an event in its node's lane.
fn cell(event: &Value, ink: &Ink) -> Option<String> {
    let get = |name| text(event, name);
    Some(match event["event"].as_str()? {
        "raft.heartbeat.timeout" => format!("! timeout {} ms", get("sinceContactMs")),
        "raft.prevote.started" => "pre-vote".into(),
        "raft.prevote.lost" => "pre-vote lost".into(),
        "raft.candidate" => format!("candidate, term {}", get("term")),
        "raft.election.won" => format!("{} won {}, {} needed", ink.won, get("tally"), get("needed")),
        "raft.election.timeout" => "no majority".into(),
        "raft.leader.ready" => format!("ready at {}", get("firstIndex")),
        "raft.leader.stepdown" => format!("steps down: {}", get("reason")),
        "raft.transfer.started" => format!("hands over to {}", get("to")),
        "raft.append.first" => format!("follows {}", get("from")),
        "raft.started" => format!("{} {}", ink.back, get("role")),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(ms: u64, node: &str, name: &str, more: &Value) -> Value {
        let mut event = serde_json::json!({
            "node": node, "event": name, "term": 8, "hlc": ((1_000_000 + ms) << 16).to_string(),
        });
        for (name, value) in more.as_object().into_iter().flatten() {
            event[name] = value.clone();
        }
        event
    }

    /// Goal: an election is drawn with a lane for each node, votes across them, and all of its numbers.
    #[test]
    fn an_election_is_drawn() {
        let json = |text: &str| -> Value { serde_json::from_str(text).expect("it is JSON") };
        let events = [
            event(611, "node-b", "raft.heartbeat.timeout", &json(r#"{"sinceContactMs": 611, "term": 7}"#)),
            event(620, "node-b", "raft.candidate", &json("{}")),
            event(630, "node-c", "raft.vote.cast", &json(r#"{"for": "node-b", "granted": true, "pre": false}"#)),
            event(649, "node-b", "raft.election.won", &json(r#"{"tally": 2, "needed": 2}"#)),
            event(650, "node-c", "raft.append.first", &json(r#"{"from": "node-b"}"#)),
            event(702, "node-b", "raft.leader.ready", &json(r#"{"firstIndex": 4183}"#)),
        ];
        let votes = [serde_json::json!({"granted": true}), serde_json::json!({"granted": true})];
        let body = serde_json::json!({
            "missing": ["node-a"],
            "elections": [{"group": 0, "term": 8, "events": events, "election": {
                "number": 12, "cause": "timeout", "sentence": "leader node-a gone without hand-over", "previous": "node-a",
                "outageMs": 702, "detectMs": 611, "electMs": 38, "readyMs": 53, "needed": 2, "attempts": 1, "votes": votes,
            }}],
        });
        let expected = "\
election 12 - group 0 - term 7 -> 8 - cause: leader node-a gone without hand-over
outage 702 ms   detect 611 - elect 38 - ready 53   votes 2, 2 needed   attempts 1
   +ms   node-a                  node-b                  node-c
     0   x gone
   611                           ! timeout 611 ms
   620                           candidate, term 8
   630                           vote ----------------> granted
   649                           * won 2, 2 needed
   650                                                   follows node-b
   702                           ready at 4183
no data from: node-a";
        assert_eq!(drawn(&body, true).join("\n"), expected);
        assert!(drawn(&body, false).join("\n").contains("vote ────────────────▶ granted"));
    }
}
