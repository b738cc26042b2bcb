//! `codeq leader`, `member`, `leave`, `check`, `wait`, `which-endpoint`: what an operator does to a running cluster, and waits for.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use client::{AnyRequest, Repeat};
use serde::Deserialize;

use crate::endpoint::{Answer, EndpointArgs, UNAVAILABLE, refused, unanswered};
use crate::members::{Form, UNHEALTHY, columns, understood, whole};
use crate::output;

/// An action answers when it is done: at most so long after a server would have to answer.
pub(crate) const ACTION_MAX: Duration = Duration::from_secs(65);

/// Between looks at what is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct LeaderArgs {
    #[command(subcommand)]
    action: Option<LeaderAction>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

#[derive(Subcommand)]
enum LeaderAction {
    /// Hands leadership to a voter, or to the one that lacks least.
    #[command(after_help = "Examples:\n  codeq leader transfer node-c\n  codeq leader transfer --zone dc2")]
    Transfer {
        /// Its name or id.
        name: Option<String>,
        /// Only a voter with this label of a data centre.
        #[arg(long, conflicts_with = "name")]
        zone: Option<String>,
        /// Only this group; without it, all.
        #[arg(long)]
        group: Option<u16>,
        /// How long it may take for each group.
        #[arg(long, value_name = "DURATION", value_parser = crate::flags::duration)]
        within: Option<Duration>,
        #[command(flatten)]
        endpoint: EndpointArgs,
    },
    /// The leader gives every group away and stays out for a while.
    #[command(after_help = "Example:\n  codeq leader step-down --hold 5m")]
    StepDown {
        /// For how long it neither asks for leadership nor keeps it; without it, a minute.
        #[arg(long, value_name = "DURATION", value_parser = crate::flags::duration)]
        hold: Option<Duration>,
        #[command(flatten)]
        endpoint: EndpointArgs,
    },
}

#[derive(Subcommand)]
pub(crate) enum MemberCommand {
    /// Makes a node that waits for a cluster a member of this one.
    #[command(after_help = "Example:\n  codeq member add node-d:7000")]
    Add {
        /// Its peer port: host:port or host.
        address: String,
        /// It does not vote, until it is promoted.
        #[arg(long)]
        replica: bool,
        #[command(flatten)]
        endpoint: EndpointArgs,
    },
    /// Takes a member's vote, unless the others could not decide any more; it keeps up, and waits to be promoted.
    #[command(after_help = "Example:\n  codeq member demote node-c")]
    Demote {
        /// Its name or id.
        member: String,
        /// Also if the others cannot decide any more.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        endpoint: EndpointArgs,
    },
    /// Lets a member vote as soon as it has caught up.
    #[command(after_help = "Example:\n  codeq member promote node-c")]
    Promote {
        /// Its name or id.
        member: String,
        #[command(flatten)]
        endpoint: EndpointArgs,
    },
    /// Lets a node that waits for a cluster take a member's place: it learns, and then the vote changes hands at once.
    #[command(after_help = "Example:\n  codeq member replace node-c node-d:7000")]
    Replace {
        /// Name or id of the member that goes.
        member: String,
        /// Peer port of the node that comes: host:port or host.
        address: String,
        #[command(flatten)]
        endpoint: EndpointArgs,
    },
    /// Takes a member out of the cluster for good, unless the others could not decide any more.
    #[command(after_help = "Example:\n  codeq member remove node-c")]
    Remove {
        /// Its name or id.
        member: String,
        /// Also if the others cannot decide any more.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        endpoint: EndpointArgs,
    },
}

#[derive(Args)]
pub(crate) struct LeaveArgs {
    /// Also if the others cannot decide any more.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

#[derive(Subcommand)]
pub(crate) enum CheckCommand {
    /// Whether a node may stop without costing the cluster its majority. Exit status 6 if not.
    #[command(after_help = "Example:\n  codeq check quorum --node node-b")]
    Quorum {
        /// Its name or id; without it, the server that is asked.
        #[arg(long)]
        node: Option<String>,
        #[command(flatten)]
        endpoint: EndpointArgs,
    },
}

#[derive(Args)]
pub(crate) struct WaitArgs {
    /// Until there is a leader (the default).
    #[arg(long)]
    leader: bool,
    /// Until the server can serve requests.
    #[arg(long)]
    ready: bool,
    /// Until so many members vote and are there.
    #[arg(long, value_name = "N")]
    voters: Option<usize>,
    /// How long to wait.
    #[arg(long = "for", value_name = "DURATION", default_value = "1m", value_parser = crate::flags::duration)]
    longest: Duration,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

#[derive(Args)]
pub(crate) struct WhichArgs {
    #[command(flatten)]
    endpoint: EndpointArgs,
}

/// `/cluster/leader`, as far as it is printed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Leader {
    name: String,
    public_url: String,
    term: u64,
    since_ms: u64,
    groups: Vec<u16>,
}

/// What an action answers.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Done {
    leader: String,
    term: u64,
    duration_ms: u64,
    note: String,
}

/// A node that was added.
#[derive(Deserialize)]
struct Added {
    name: String,
    voter: bool,
    note: String,
}

/// `/cluster/check/quorum`
#[derive(Deserialize)]
struct Checked {
    safe: bool,
    sentence: String,
}

/// Shows who leads, or changes it.
pub(crate) fn leader(args: &LeaderArgs) -> ExitCode {
    match &args.action {
        None => show_leader(args),
        Some(LeaderAction::Transfer { name, zone, group, within, endpoint }) => {
            let within = within.map(|within| within.as_millis() as u64);
            let body = serde_json::json!({ "to": name, "zone": zone, "group": group, "timeoutMs": within });
            let extra = ACTION_MAX + Duration::from_millis(within.unwrap_or_default());
            act(endpoint, post("/cluster/leader/transfer", &body), extra, leads)
        }
        Some(LeaderAction::StepDown { hold, endpoint }) => {
            let body = serde_json::json!({ "holdMs": hold.map(|hold| hold.as_millis() as u64) });
            act(endpoint, post("/cluster/leader/step-down", &body), ACTION_MAX, leads)
        }
    }
}

fn leads(Done { leader, term, duration_ms, .. }: &Done) -> String {
    format!("{leader} leads in term {term} ({duration_ms} ms)")
}

fn show_leader(args: &LeaderArgs) -> ExitCode {
    let answer = match args.endpoint.ask("/cluster/leader", None) {
        Ok(answer) if answer.status == 200 => answer,
        Ok(answer) => return refused(&answer),
        Err(error) => return unanswered(&error),
    };
    if args.output == Form::Json {
        output::data(&answer.body);
        return ExitCode::SUCCESS;
    }
    let Some(leader) = understood::<Leader>(&answer) else { return ExitCode::FAILURE };
    let since = format!("{}s", leader.since_ms / 1000);
    let mut rows = vec![vec!["Leader", "Term", "Since", "Public URL"], vec![&leader.name]];
    let term = leader.term.to_string();
    rows[1].extend([&*term, &since, &leader.public_url]);
    let groups: Vec<String> = leader.groups.iter().map(u16::to_string).collect();
    let groups = groups.join(",");
    if args.output == Form::Wide {
        rows[0].push("Leads");
        rows[1].push(&groups);
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(|row| row.into_iter().map(str::to_owned).collect()).collect();
    output::data(&columns(&rows).join("\n"));
    ExitCode::SUCCESS
}

/// Adds or removes a member.
pub(crate) fn member(command: &MemberCommand) -> ExitCode {
    let note = |done: &Done| done.note.clone();
    match command {
        MemberCommand::Add { address, replica, endpoint } => {
            let body = serde_json::json!({ "address": whole(address), "replica": replica });
            let when = if *replica { "when it is promoted" } else { "when it has caught up" };
            let said = |Added { name, voter, note }: &Added| match voter {
                true => format!("{name} is a member, and votes: {note}"),
                false => format!("{name} is a member, and votes {when}: {note}"),
            };
            act(endpoint, post("/cluster/members", &body), ACTION_MAX, said)
        }
        MemberCommand::Demote { member, force, endpoint } => {
            let (path, body) = (format!("/cluster/members/{member}/demote"), serde_json::json!({ "force": force }));
            act(endpoint, post(&path, &body), ACTION_MAX, note)
        }
        MemberCommand::Promote { member, endpoint } => {
            let (path, body) = (format!("/cluster/members/{member}/promote"), serde_json::json!({}));
            act(endpoint, post(&path, &body), ACTION_MAX, note)
        }
        MemberCommand::Replace { member, address, endpoint } => {
            let (path, body) =
                (format!("/cluster/members/{member}/replace"), serde_json::json!({ "address": whole(address) }));
            act(endpoint, post(&path, &body), ACTION_MAX, note)
        }
        MemberCommand::Remove { member, force, endpoint } => {
            let path = format!("/cluster/members/{member}{}", if *force { "?force=true" } else { "" });
            act(endpoint, AnyRequest::delete(&path, Repeat::IfDefinite), ACTION_MAX, note)
        }
    }
}

/// Takes the server that is asked out of its cluster.
pub(crate) fn leave(args: &LeaveArgs) -> ExitCode {
    let body = serde_json::json!({ "force": args.force });
    let said = |done: &Done| format!("left; {} leads the others; the server ends", done.leader);
    act(&args.endpoint, post("/cluster/leave", &body), ACTION_MAX, said)
}

/// What may have been done is not asked for again.
pub(crate) fn post(path: &str, body: &serde_json::Value) -> AnyRequest {
    AnyRequest::post(path, body.to_string(), Repeat::IfDefinite)
}

/// Has something done, and says what came of it.
pub(crate) fn act<T: for<'a> Deserialize<'a>>(
    endpoint: &EndpointArgs,
    request: AnyRequest,
    extra: Duration,
    said: impl Fn(&T) -> String,
) -> ExitCode {
    match endpoint.act(request, extra) {
        Ok(answer) if answer.status == 200 => {
            let Some(done) = understood::<T>(&answer) else { return ExitCode::FAILURE };
            output::data(&said(&done));
            ExitCode::SUCCESS
        }
        Ok(answer) => refused(&answer),
        Err(error) => unanswered(&error),
    }
}

/// Asks whether something may be done.
pub(crate) fn check(command: &CheckCommand) -> ExitCode {
    let CheckCommand::Quorum { node, endpoint } = command;
    let query = node.as_ref().map(|node| format!("?node={node}")).unwrap_or_default();
    let answer = match endpoint.ask(&format!("/cluster/check/quorum{query}"), None) {
        Ok(answer) if answer.status == 200 || (answer.status == 409 && answer.body.contains("\"safe\"")) => answer,
        Ok(answer) => return refused(&answer),
        Err(error) => return unanswered(&error),
    };
    let Some(Checked { safe, sentence }) = understood(&answer) else { return ExitCode::FAILURE };
    output::data(&format!("{} {sentence}", if safe { "PASS" } else { "FAIL" }));
    if safe { ExitCode::SUCCESS } else { ExitCode::from(UNHEALTHY) }
}

/// Waits until the cluster is as it was asked for.
pub(crate) fn wait(args: &WaitArgs) -> ExitCode {
    let begun = Instant::now();
    let wants_leader = args.leader || !(args.ready || args.voters.is_some());
    loop {
        let missing = [
            wants_leader.then(|| lacks_leader(&args.endpoint)).flatten(),
            args.ready.then(|| is_not_ready(&args.endpoint)).flatten(),
            args.voters.and_then(|voters| lacks_voters(&args.endpoint, voters)),
        ];
        let Some((status, why)) = missing.into_iter().flatten().next() else { return ExitCode::SUCCESS };
        if begun.elapsed() >= args.longest {
            output::note(&format!("error: not after {:?}: {why}", args.longest));
            return ExitCode::from(status);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// What is wrong, as a status and in words.
type Missing = Option<(u8, String)>;

fn lacks_leader(endpoint: &EndpointArgs) -> Missing {
    match endpoint.ask("/cluster/leader", None) {
        Ok(answer) if answer.status == 200 => None,
        Ok(answer) => Some((UNAVAILABLE, answer.reason())),
        Err(error) => Some((1, format!("{error:#}"))),
    }
}

fn is_not_ready(endpoint: &EndpointArgs) -> Missing {
    match endpoint.ask("/readyz", None) {
        Ok(answer) if answer.status == 200 => None,
        Ok(answer) => Some((UNHEALTHY, answer.body.trim().replace('\n', ", "))),
        Err(error) => Some((1, format!("{error:#}"))),
    }
}

fn lacks_voters(endpoint: &EndpointArgs, wanted: usize) -> Missing {
    let answer = match endpoint.ask("/cluster/nodes", None) {
        Ok(answer) => answer,
        Err(error) => return Some((1, format!("{error:#}"))),
    };
    let nodes: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    let count = |field: &str| nodes["quorum"][field].as_u64();
    let there = count("voters") == Some(wanted as u64) && count("reachable") == Some(wanted as u64);
    let summary = || nodes["quorum"]["summary"].as_str().map_or_else(|| answer.reason(), str::to_owned);
    (!there).then(|| (UNAVAILABLE, summary()))
}

/// Says which server the other commands ask.
pub(crate) fn which_endpoint(args: &WhichArgs) -> ExitCode {
    let asked = args.endpoint.each("/cluster/leader");
    for (endpoint, answer) in &asked {
        match answer {
            Ok(answer) => {
                let leader = serde_json::from_str::<Leader>(&answer.body).map(|leader| leader.name);
                let leader = leader.map_or_else(|_| answer.reason(), |name| format!("{name} leads"));
                output::data(endpoint);
                output::note(&format!("the first of {} that answers; {leader}", asked_of(&args.endpoint)));
                return ExitCode::SUCCESS;
            }
            Err(error) => output::note(&format!("{endpoint}: {error:#}")),
        }
    }
    output::note("error: no server answers");
    ExitCode::FAILURE
}

fn asked_of(endpoint: &EndpointArgs) -> usize {
    endpoint.endpoints().len()
}

impl Answer {
    /// What a refusal says.
    fn reason(&self) -> String {
        let problem: serde_json::Value = serde_json::from_str(&self.body).unwrap_or_default();
        let text = [&problem["detail"], &problem["error"]].into_iter().find_map(|text| text.as_str());
        text.unwrap_or(self.body.trim()).to_owned()
    }
}
