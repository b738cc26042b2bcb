//! Settings that no server starts with: each is refused with one clear line that names them. Where only the other nodes show that settings
//! do not fit together, nothing is founded, and both sides say why.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::Folder;
use crate::walk::nodes::{NAMES, Nodes, Process, free_ports, send_as};
use crate::walk::{Row, Skipped, walk_rows};

struct Story {
    codeq: PathBuf,
    folder: Folder,
}

/// A program that refuses its settings ends within this.
const REFUSED_MAX: Duration = Duration::from_secs(10);

/// Nodes that do not fit together notice it within this.
const CONFLICT_MAX: Duration = Duration::from_secs(5);

/// Walks through them.
///
/// # Errors
/// One of them is accepted, or refused without saying what is wrong.
pub(crate) fn walk(codeq: &Path) -> Result<Skipped> {
    let mut story = Story { codeq: codeq.to_owned(), folder: Folder::new("walk-bad-config")? };
    walk_rows("Settings that no server starts with", ROWS, &mut story)
}

const ROWS: &[Row<Story>] = &[
    Row {
        number: "B1",
        command: "RAFT_SELF_ID that is not in RAFT_PEERS",
        run: |story| {
            let variables = [("RAFT_SELF_ID", "node-d"), ("RAFT_PEERS", "node-a=a:7000,node-b=b:7000")];
            story.refused(&[], &variables, &["cluster.nodeId", "RAFT_SELF_ID", "cluster.initialCluster", "RAFT_PEERS"])
        },
    },
    Row {
        number: "B2",
        command: "--bootstrap-expect beside a list",
        run: |story| {
            let arguments = ["--bootstrap-expect", "3", "--initial-cluster", "a=127.0.0.1:7001", "--node-id", "a"];
            story.refused(&arguments, &[], &["cluster.bootstrapExpect", "cluster.initialCluster"])
        },
    },
    Row { number: "B3", command: "--bootstrap-expect 3 on one node and 2 on another", run: other_expect },
    Row { number: "B4", command: "--shards 1 on one node and 2 on another", run: other_shards },
    Row { number: "B5", command: "--shards 2 on a data directory of 1", run: shards_of_the_directory },
    Row { number: "B6", command: "another --cluster-token", run: other_token },
    Row {
        number: "B7",
        command: "--raft-advertise 0.0.0.0:7000",
        run: |story| {
            let arguments = ["--raft-addr", "0.0.0.0:7000", "--raft-advertise", "0.0.0.0:7000"];
            story.refused(&arguments, &[], &["cluster.raftAdvertise", "--raft-advertise", "0.0.0.0:7000"])
        },
    },
    Row {
        number: "B8",
        command: "--raft-addr 0.0.0.0:7000 without --raft-advertise",
        run: |story| {
            story.refused(&["--raft-addr", "0.0.0.0:7000"], &[], &["cluster.raftAdvertise", "cluster.raftAddr"])
        },
    },
    Row {
        number: "B9",
        command: "--http-addr in use",
        run: |story| {
            let (_held, addr) = held()?;
            let arguments = ["--http-addr", &addr, "--storage", "memory"];
            story.ended(&arguments, &[], 1, &["in use", &addr, "--http-addr"])
        },
    },
    Row {
        number: "B10",
        command: "--raft-addr in use",
        run: |story| {
            let (_held, addr) = held()?;
            let arguments = ["--http-addr", "127.0.0.1:0", "--storage", "memory", "--raft-addr", &addr];
            story.ended(&arguments, &[], 1, &["in use", &addr, "--raft-addr"])
        },
    },
    Row {
        number: "B11",
        command: "RAFT_LEADER_LEASE_MS above RAFT_ELECTION_MS",
        run: |story| {
            let variables = [("RAFT_LEADER_LEASE_MS", "700"), ("RAFT_ELECTION_MS", "500")];
            story.refused(&[], &variables, &["cluster.leaderLease", "cluster.electionTimeout"])
        },
    },
    Row {
        number: "B12",
        command: "--heartbeat above a fifth of --election-timeout",
        run: |story| {
            let arguments = ["--heartbeat", "200ms", "--election-timeout", "500ms"];
            story.refused(&arguments, &[], &["cluster.heartbeat", "cluster.electionTimeout"])
        },
    },
    Row {
        number: "B13",
        command: "PERSISTENCE_PROVIDER=redis",
        run: |story| {
            story.refused(
                &[],
                &[("PERSISTENCE_PROVIDER", "redis")],
                &["storage.provider", "PERSISTENCE_PROVIDER", "redis"],
            )
        },
    },
    Row {
        number: "B14",
        command: "CLUSTER_ENABLED=true",
        run: |story| story.refused(&[], &[("CLUSTER_ENABLED", "true")], &["CLUSTER_ENABLED", "RAFT_PEERS"]),
    },
    Row {
        number: "B15",
        command: "RAFT_ENABLED=false beside a list",
        run: |story| {
            let variables = [("RAFT_ENABLED", "false"), ("RAFT_SELF_ID", "a"), ("RAFT_PEERS", "a=a:7000")];
            story.refused(&[], &variables, &["cluster.raft", "RAFT_ENABLED", "cluster.initialCluster", "RAFT_PEERS"])
        },
    },
    Row {
        number: "B16",
        command: "RAFT_ENABLED=false beside RAFT_BOOTSTRAP=true",
        run: |story| {
            let variables = [("RAFT_ENABLED", "false"), ("RAFT_BOOTSTRAP", "true")];
            story.refused(&[], &variables, &["RAFT_ENABLED", "cluster.bootstrap", "RAFT_BOOTSTRAP"])
        },
    },
    Row {
        number: "B17",
        command: "RAFT_ENABLED=false beside --bootstrap-expect",
        run: |story| {
            let variables = [("RAFT_ENABLED", "false")];
            story.refused(&["--bootstrap-expect", "3"], &variables, &["RAFT_ENABLED", "cluster.bootstrapExpect"])
        },
    },
    Row {
        number: "B18",
        command: "RAFT_ENABLED=false beside --join",
        run: |story| story.refused(&["--join", "b"], &[("RAFT_ENABLED", "false")], &["RAFT_ENABLED", "cluster.join"]),
    },
    Row {
        number: "B19",
        command: "--bootstrap-expect beside --bootstrap",
        run: |story| {
            let arguments = ["--bootstrap-expect", "3", "--bootstrap", "true"];
            story.refused(&arguments, &[], &["cluster.bootstrapExpect", "cluster.bootstrap"])
        },
    },
    Row {
        number: "B20",
        command: "a name twice in RAFT_PEERS",
        run: |story| {
            let variables = [("RAFT_SELF_ID", "a"), ("RAFT_PEERS", "a=a:7000,a=b:7000")];
            story.refused(&[], &variables, &["cluster.initialCluster", "RAFT_PEERS", "twice"])
        },
    },
    Row {
        number: "B21",
        command: "an address twice in RAFT_PEERS",
        run: |story| {
            let variables = [("RAFT_SELF_ID", "a"), ("RAFT_PEERS", "a=a:7000,b=a:7000")];
            story.refused(&[], &variables, &["cluster.initialCluster", "RAFT_PEERS", "same address"])
        },
    },
    Row {
        number: "B22",
        command: "RAFT_TOPIC_CATALOG_PROTOCOL=v2",
        run: |story| {
            story.refused(&[], &[("RAFT_TOPIC_CATALOG_PROTOCOL", "v2")], &["RAFT_TOPIC_CATALOG_PROTOCOL", "v1"])
        },
    },
    Row {
        number: "B23",
        command: "one setting under two names",
        run: |story| {
            let arguments = ["--node-id", "a", "--name", "b"];
            story.refused(&arguments, &[], &["cluster.nodeId", "--node-id", "--name"])
        },
    },
];

impl Story {
    fn variables(&self, more: &[(&str, &str)]) -> BTreeMap<String, String> {
        let data = ("CODEQ_DATA_DIR", self.folder.within("data").display().to_string());
        let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        more.chain([(data.0.to_owned(), data.1)]).collect()
    }

    fn refused(&self, arguments: &[&str], variables: &[(&str, &str)], named: &[&str]) -> Result<String> {
        refused(&self.codeq, arguments, &self.variables(variables), named)
    }

    fn ended(&self, arguments: &[&str], variables: &[(&str, &str)], status: i32, named: &[&str]) -> Result<String> {
        ended(&self.codeq, arguments, &self.variables(variables), status, named)
    }
}

/// Starts a server that must refuse its settings, in one line that has these words. Returns the line.
///
/// # Errors
/// It does not.
pub(crate) fn refused(
    codeq: &Path,
    arguments: &[&str],
    variables: &BTreeMap<String, String>,
    named: &[&str],
) -> Result<String> {
    ended(codeq, arguments, variables, 2, named)
}

/// Starts a server that must end by itself with this status, and say so in one line that has these words. Returns the line.
///
/// # Errors
/// It does not.
pub(crate) fn ended(
    codeq: &Path,
    arguments: &[&str],
    variables: &BTreeMap<String, String>,
    status: i32,
    named: &[&str],
) -> Result<String> {
    let arguments: Vec<&str> = ["serve"].into_iter().chain(arguments.iter().copied()).collect();
    let mut variables = variables.clone();
    variables.entry("LOG_FORMAT".into()).or_insert("text".into());
    let end = Process::start(codeq, &arguments, &variables)?.end(REFUSED_MAX)?;
    let shown = end.lines.join("\n");
    ensure!(end.status.code() == Some(status), "it has ended with {} instead of {status}:\n{shown}", end.status);
    let says = |line: &&String| named.iter().all(|word| line.contains(word));
    let line = end.lines.iter().find(says).with_context(|| format!("no line names {named:?}:\n{shown}"))?;
    Ok(format!("exit {status}: {}", line.trim()))
}

/// What the page's readers get wrong, on top of its variables.
///
/// # Errors
/// One of them is accepted, or refused without saying what is wrong.
pub(crate) fn refused_by_the_page(codeq: &Path, page: &BTreeMap<String, String>) -> Result<()> {
    let cases: [(&[(&str, &str)], &[&str]); 4] = [
        (&[("RAFT_SELF_ID", "node-x")], &["RAFT_SELF_ID", "RAFT_PEERS"]),
        (&[("CLUSTER_ENABLED", "true")], &["CLUSTER_ENABLED", "RAFT_PEERS"]),
        (
            &[("RAFT_LEADER_LEASE_MS", "900"), ("RAFT_ELECTION_MS", "300")],
            &["RAFT_LEADER_LEASE_MS", "RAFT_ELECTION_MS"],
        ),
        (&[("PERSISTENCE_PROVIDER", "redis")], &["PERSISTENCE_PROVIDER", "redis"]),
    ];
    for (changes, named) in cases {
        let mut variables = page.clone();
        variables.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        refused(codeq, &[], &variables, named)?;
    }
    Ok(())
}

/// A port that somebody has.
fn held() -> Result<(TcpListener, String)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let addr = listener.local_addr()?.to_string();
    Ok((listener, addr))
}

/// Two nodes that know each other and differ in one setting: neither founds anything, and each names the setting and both values.
fn conflict(story: &Story, ones: &[&str], others: &[&str], named: &[&str]) -> Result<String> {
    let ports = free_ports(4)?;
    let start = |place: usize, more: &[&str]| {
        let http = format!("127.0.0.1:{}", ports[place]);
        let (own, peer) = (ports[2 + place], ports[3 - place]);
        let (own, peer) = (format!("127.0.0.1:{own}"), format!("127.0.0.1:{peer}"));
        let name = ["one", "other"][place];
        let mut arguments = vec!["serve", "--http-addr", &http, "--raft-addr", &own, "--join", &peer];
        arguments.extend(["--node-id", name, "--storage", "memory", "--log-format", "text"]);
        arguments.extend(more);
        Process::start(&story.codeq, &arguments, &story.variables(&[]))
    };
    let processes = [start(0, ones)?, start(1, others)?];
    let mut lines = Vec::new();
    for process in &processes {
        let line = crate::walk::nodes::eventually(CONFLICT_MAX, || {
            let lines = process.lines();
            let says = |line: &&String| named.iter().all(|word| line.contains(word));
            let line = lines.iter().find(says).cloned();
            line.with_context(|| format!("no line names {named:?}:\n{}", lines.join("\n")))
        })?;
        lines.push(line);
    }
    for port in &ports[..2] {
        let ready = send_as(([127, 0, 0, 1], *port).into(), None, "GET", "/readyz", "")?;
        ensure!(ready.status == 503, "a cluster was founded: {ready}");
    }
    let told = lines[0].split_once("raft").map_or(lines[0].as_str(), |(_, told)| told);
    Ok(format!("nothing is founded; {}", told.trim_start_matches([':', ' '])))
}

fn other_expect(story: &mut Story) -> Result<String> {
    conflict(
        story,
        &["--bootstrap-expect", "3"],
        &["--bootstrap-expect", "2"],
        &["cluster.bootstrapExpect", "one", "other", "3", "2"],
    )
}

fn other_shards(story: &mut Story) -> Result<String> {
    let (one, other) = (["--bootstrap-expect", "2", "--shards", "1"], ["--bootstrap-expect", "2", "--shards", "2"]);
    conflict(story, &one, &other, &["one", "other", "1", "2", "shards"])
}

fn other_token(story: &mut Story) -> Result<String> {
    let one = ["--bootstrap-expect", "2", "--cluster-token", "blue"];
    let other = ["--bootstrap-expect", "2", "--cluster-token", "green"];
    conflict(story, &one, &other, &["cluster.clusterToken", "blue", "green"])
}

fn shards_of_the_directory(story: &mut Story) -> Result<String> {
    let mut nodes = Nodes::new(&story.codeq, "walk-shards")?;
    nodes.up()?;
    nodes.ready(&[0, 1, 2], Duration::from_secs(10))?;
    nodes.stop(2)?;
    let arguments = ["--shards", "2"];
    let mut variables = nodes.variables(2).clone();
    let data: serde_json::Value = serde_json::from_str(&variables["PERSISTENCE_CONFIG"])?;
    variables.remove("PERSISTENCE_CONFIG");
    variables.insert("CODEQ_DATA_DIR".into(), data["path"].as_str().context("a path")?.into());
    let line = refused(&story.codeq, &arguments, &variables, &["shards = 2", "has 1"]);
    line.with_context(|| NAMES[2])
}
