//! `codeq members`, `codeq join`, `codeq health`: what an operator asks a running cluster.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::endpoint::{Answer, EndpointArgs, refused, unanswered};
use crate::output;

/// A probe says no.
pub(crate) const UNHEALTHY: u8 = 6;

/// Between looks at members that are watched.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The port for peers where nobody says another one.
const PEER_PORT: u16 = 7000;

#[derive(Args)]
pub(crate) struct MembersArgs {
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    output: Form,
    /// Print them again whenever they change, until it is interrupted.
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// Columns.
    Table,
    /// More columns.
    Wide,
    /// The body of the route.
    Json,
}

#[derive(Args)]
pub(crate) struct JoinArgs {
    /// Peer ports of nodes to get to know: host:port or host.
    #[arg(required = true, value_name = "ADDRESS")]
    addresses: Vec<String>,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

#[derive(Args)]
pub(crate) struct HealthArgs {
    /// Whether it can serve requests (the default).
    #[arg(long, group = "probe")]
    ready: bool,
    /// Whether the process lives.
    #[arg(long, group = "probe")]
    live: bool,
    /// Whether the cluster works.
    #[arg(long, group = "probe")]
    cluster: bool,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

/// `/cluster/nodes`, as far as it is printed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Nodes {
    nodes: Vec<Member>,
    quorum: Quorum,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    id: String,
    name: String,
    zone: Option<String>,
    status: String,
    alive: String,
    role: Option<String>,
    voter: bool,
    raft_addr: String,
    http_addr: String,
    public_url: String,
    healthy: bool,
    term: Option<u64>,
    match_index: Option<u64>,
    applied_index: Option<u64>,
    lag: Option<u64>,
    groups_led: Vec<u16>,
    build: Option<String>,
    protocol: Option<u16>,
    uptime_ms: Option<u64>,
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Quorum {
    voters: usize,
    needed: usize,
    reachable: usize,
    summary: String,
}

/// The answer of `/cluster/join`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Joined {
    contacted: Vec<String>,
    failed: Vec<Unreached>,
    already_member: bool,
}

#[derive(Deserialize)]
struct Unreached {
    address: String,
    reason: String,
}

/// Prints the members, again and again if that is asked for.
pub(crate) fn members(args: &MembersArgs) -> ExitCode {
    let mut last = String::new();
    loop {
        let printed = match render(args) {
            Ok(printed) => printed,
            Err(exit) if !args.watch => return exit,
            // It has said why; the next look may find a server.
            Err(_) => String::new(),
        };
        if printed != last {
            output::data(&printed);
        }
        if !args.watch {
            return ExitCode::SUCCESS;
        }
        last = printed;
        std::thread::sleep(WATCH_INTERVAL);
    }
}

fn render(args: &MembersArgs) -> Result<String, ExitCode> {
    let answer = match args.endpoint.ask("/cluster/nodes", None) {
        Ok(answer) if answer.status == 200 => answer,
        Ok(answer) => return Err(refused(&answer)),
        Err(error) => return Err(unanswered(&error)),
    };
    if args.output == Form::Json {
        return Ok(answer.body);
    }
    let nodes = understood::<Nodes>(&answer).ok_or(ExitCode::FAILURE)?;
    Ok(table(&nodes, args.output == Form::Wide))
}

/// Introduces nodes to each other.
pub(crate) fn join(args: &JoinArgs) -> ExitCode {
    let addresses: Vec<String> = args.addresses.iter().map(|address| whole(address)).collect();
    let body = serde_json::json!({ "addresses": addresses }).to_string();
    let answer = match args.endpoint.ask("/cluster/join", Some(&body)) {
        Ok(answer) if answer.status == 200 => answer,
        // The server is there, and none of the addresses: nothing is unavailable that could come back by itself.
        Ok(answer) if answer.body.contains("\"not_joined\"") => {
            refused(&answer);
            return ExitCode::FAILURE;
        }
        Ok(answer) => return refused(&answer),
        Err(error) => return unanswered(&error),
    };
    let Some(joined) = understood::<Joined>(&answer) else { return ExitCode::FAILURE };
    if joined.already_member {
        output::data("joined already: the node belongs to a cluster");
        return ExitCode::SUCCESS;
    }
    let names = joined.contacted.join(", ");
    output::data(&format!("joined: {} of {} addresses answered ({names})", joined.contacted.len(), addresses.len()));
    for Unreached { address, reason } in joined.failed {
        output::note(&format!("{address}: {reason}"));
    }
    ExitCode::SUCCESS
}

/// An address with a port: the usual one, if it has none.
pub(crate) fn whole(address: &str) -> String {
    if is_whole(address) { address.into() } else { format!("{address}:{PEER_PORT}") }
}

fn is_whole(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

#[derive(Args)]
pub(crate) struct VersionArgs {
    /// The versions of all members of a cluster. Exit status 6 if they differ.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    endpoint: EndpointArgs,
}

/// Prints the version, of this program or of all members.
pub(crate) fn version(args: &VersionArgs) -> ExitCode {
    if !args.all {
        output::data(concat!("codeq ", env!("CARGO_PKG_VERSION")));
        return ExitCode::SUCCESS;
    }
    let answer = match args.endpoint.ask("/cluster/nodes", None) {
        Ok(answer) if answer.status == 200 => answer,
        Ok(answer) => return refused(&answer),
        Err(error) => return unanswered(&error),
    };
    let Some(nodes) = understood::<Nodes>(&answer) else { return ExitCode::FAILURE };
    let (printed, is_one) = versions(&nodes.nodes);
    output::data(&printed);
    if is_one { ExitCode::SUCCESS } else { ExitCode::from(UNHEALTHY) }
}

/// A line for each member, and whether all that are known are of one build.
fn versions(nodes: &[Member]) -> (String, bool) {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let mut rows = vec![["Node", "Build", "Protocol"].map(str::to_owned).to_vec()];
    rows.extend(nodes.iter().map(|node| {
        let protocol = node.protocol.map(|protocol| protocol.to_string());
        vec![node.name.clone(), or_dash(node.build.clone()), or_dash(protocol)]
    }));
    let mut builds: Vec<&String> = nodes.iter().filter_map(|node| node.build.as_ref()).collect();
    builds.dedup();
    (columns(&rows).join("\n"), builds.len() <= 1)
}

/// Prints what a probe says.
pub(crate) fn health(args: &HealthArgs) -> ExitCode {
    let path = match (args.live, args.cluster) {
        (true, _) => "/livez",
        (_, true) => "/cluster/health",
        _ => "/readyz?verbose",
    };
    let answer = match args.endpoint.ask(path, None) {
        Ok(answer) => answer,
        Err(error) => return unanswered(&error),
    };
    if ![200, 503].contains(&answer.status) {
        return refused(&answer);
    }
    let is_healthy = match args.cluster {
        false => {
            output::data(answer.body.trim_end());
            answer.status == 200
        }
        true => {
            let Some(health) = understood::<Health>(&answer) else { return ExitCode::FAILURE };
            output::data(&format!("{}: {}", health.status, health.summary));
            health.reasons.iter().for_each(|reason| output::data(reason));
            answer.status == 200
        }
    };
    if is_healthy { ExitCode::SUCCESS } else { ExitCode::from(UNHEALTHY) }
}

/// `/cluster/health`, as far as it is printed.
#[derive(Deserialize)]
struct Health {
    status: String,
    summary: String,
    reasons: Vec<String>,
}

pub(crate) fn understood<T: for<'a> Deserialize<'a>>(answer: &Answer) -> Option<T> {
    let read = serde_json::from_str(&answer.body);
    if let Err(error) = &read {
        output::note(&format!("error: the answer is not understood: {error}; is the server of another version?"));
    }
    read.ok()
}

/// Columns with a line of headings, and a sentence on the whole.
fn table(nodes: &Nodes, wide: bool) -> String {
    let mut headings =
        vec!["Node", "Address", "Status", "Type", "Build", "Protocol", "DC", "Role", "Voter", "Term", "Lag", "Health"];
    if wide {
        headings.extend(["Incarnation", "HTTP", "Public URL", "Match", "Applied", "Uptime", "Leads"]);
    }
    headings.push("Message");
    let mut rows = vec![headings.into_iter().map(str::to_owned).collect()];
    rows.extend(nodes.nodes.iter().map(|node| row(node, wide)));
    let mut lines = columns(&rows);
    let quorum = &nodes.quorum;
    lines.push(match () {
        () if quorum.voters == 0 => "no cluster yet: codeq join ADDRESS… makes this node known to others".into(),
        () if quorum.reachable < quorum.needed => format!("cluster unavailable: {}", quorum.summary),
        () if nodes.nodes.iter().any(|node| !node.healthy) => format!("cluster degraded: {}", quorum.summary),
        () => format!("cluster healthy: {}", quorum.summary),
    });
    lines.join("\n")
}

/// Lines in which every column is as wide as its longest cell. All rows have as many cells as the first.
pub(crate) fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn row(node: &Member, wide: bool) -> Vec<String> {
    let or_dash = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".into());
    let number = |number: Option<u64>| or_dash(number.map(|number| number.to_string()));
    let is_role = ["leader", "follower", "learner", "unjoined"].contains(&node.status.as_str());
    let role = if is_role { Some(node.status.clone()) } else { node.role.clone() };
    let health = match (node.healthy, node.alive.as_str()) {
        (true, _) => "ok",
        (false, "alive") => "-",
        (false, _) => "down",
    };
    let mut cells = vec![
        node.name.clone(),
        or_dash(Some(node.raft_addr.clone())),
        node.alive.clone(),
        "server".into(),
        or_dash(node.build.clone()),
        or_dash(node.protocol.map(|protocol| protocol.to_string())),
        or_dash(node.zone.clone()),
        or_dash(role),
        node.voter.to_string(),
        number(node.term),
        number(node.lag),
        health.into(),
    ];
    if wide {
        let led: Vec<String> = node.groups_led.iter().map(u16::to_string).collect();
        cells.extend([
            node.id.clone(),
            or_dash(Some(node.http_addr.clone())),
            or_dash(Some(node.public_url.clone())),
            number(node.match_index),
            number(node.applied_index),
            or_dash(node.uptime_ms.map(|ms| format!("{}s", ms / 1000))),
            or_dash(Some(led.join(","))),
        ]);
    }
    cells.push(if node.healthy { String::new() } else { node.message.clone() });
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, status: &str, healthy: bool) -> serde_json::Value {
        serde_json::json!({
            "id": "00000000000000a1", "name": name, "zone": "dc1", "protocol": 1, "status": status, "alive": if healthy { "alive" } else { "failed" },
            "role": null, "voter": true, "self": false, "raftAddr": format!("{name}:7000"),
            "httpAddr": format!("{name}:8080"), "publicUrl": format!("http://{name}:8080"), "healthy": healthy,
            "lastContactMs": 12, "term": 8, "matchIndex": 5, "appliedIndex": null, "lag": 0, "groupsLed": [0, 2],
            "build": "0.1.0", "uptimeMs": 61_000, "message": "not heard of for 12 s",
        })
    }

    fn printed(nodes: &[serde_json::Value], reachable: usize, wide: bool) -> String {
        let body = serde_json::json!({
            "nodes": nodes, "leader": "node-b", "term": 8, "source": "local", "clusterId": null,
            "quorum": {"voters": nodes.len(), "needed": 2, "reachable": reachable, "failureTolerance": 0, "summary": "in words"},
        });
        table(&serde_json::from_value(body).expect("it is what the route answers"), wide)
    }

    /// Every member has a line, also one that has not said what it is; two builds are noticed.
    #[test]
    fn versions_of_all_and_whether_they_differ() {
        let nodes = |builds: [&str; 2]| -> Vec<Member> {
            let node = |(name, build): (&str, &str)| {
                let mut node = member(name, "follower", true);
                node["build"] = (!build.is_empty()).then_some(build).into();
                serde_json::from_value(node).expect("it is what the route answers")
            };
            ["node-a", "node-b"].into_iter().zip(builds).map(node).collect()
        };
        let expected = "Node    Build  Protocol\nnode-a  0.1.0  1\nnode-b  -      1";
        assert_eq!(versions(&nodes(["0.1.0", ""])), (expected.into(), true));
        assert!(!versions(&nodes(["0.1.0", "0.2.0"])).1);
    }

    /// Columns stand where they stood, the longest cell makes the room, and the last line says how the whole is.
    #[test]
    fn a_row_for_each_member_and_a_sentence() {
        let nodes = [member("node-a", "failed", false), member("node-b", "leader", true)];
        let expected = "\
Node    Address      Status  Type    Build  Protocol  DC   Role    Voter  Term  Lag  Health  Message
node-a  node-a:7000  failed  server  0.1.0  1         dc1  -       true   8     0    down    not heard of for 12 s
node-b  node-b:7000  alive   server  0.1.0  1         dc1  leader  true   8     0    ok
cluster unavailable: in words";
        assert_eq!(printed(&nodes, 1, false), expected);
        assert!(printed(&nodes, 2, false).ends_with("cluster degraded: in words"));
        assert!(printed(&nodes[1..], 2, false).ends_with("cluster healthy: in words"));
        assert!(printed(&[], 0, false).contains("codeq join"));
        let wide = printed(&nodes, 2, true);
        let row: Vec<&str> = wide.lines().nth(2).expect("it has a row").split_whitespace().collect();
        assert_eq!(row[12..], ["00000000000000a1", "node-b:8080", "http://node-b:8080", "5", "-", "61s", "0,2"]);
    }
}
