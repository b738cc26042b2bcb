//! Three nodes as three processes, and what can be done to them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::faults::links::Links;
use crate::http::{Answer, Client};
use crate::process::{Folder, Server, Starting, target};

/// Nodes of a cluster.
pub(crate) const NODES: usize = 3;

/// Their names. None is part of anything else that nodes tell each other.
pub(crate) const NAMES: [&str; NODES] = ["node-one", "node-two", "node-three"];

/// How long anything may take that must happen. It is there to end a run that is stuck, and asserts nothing about speed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Entries that a member may lack and count as caught up.
const LAG_MAX: u64 = 500;

/// Small segments and frequent checkpoints, so that faults hit those too; short retries, so that the end comes soon.
const OPTIONS: &[&str] = &[
    "--storage-segment-bytes",
    "4MiB",
    "--storage-checkpoint-interval",
    "1s",
    "--queue-backoff-policy",
    "fixed",
    "--queue-backoff-base",
    "500ms",
];

/// Three nodes that form one cluster.
pub(crate) struct Cluster {
    codeq: PathBuf,
    folder: Folder,
    logs: PathBuf,
    nodes: Vec<Node>,
    options: Vec<String>,
    /// Between the nodes, if the scenario cuts connections.
    pub(crate) links: Option<Links>,
}

struct Node {
    http: SocketAddr,
    /// Where it listens for peers.
    raft: SocketAddr,
    /// Where peers are told to reach it.
    reach: SocketAddr,
    data: PathBuf,
    server: Option<Server>,
    paused: bool,
}

/// What a node says of group 0.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) role: String,
    pub(crate) term: u64,
    /// It leads and takes writes.
    pub(crate) ready: bool,
    /// Entries that each other member lacks, and whether its log is known; only of a leader.
    members: Vec<(String, u64, bool)>,
    /// Its vote counts.
    pub(crate) voter: bool,
}

impl Cluster {
    /// Prepares three nodes; nothing runs yet.
    ///
    /// # Errors
    /// There is no folder, or there are no ports.
    pub(crate) fn new(codeq: &Path, scenario: &str, proxied: bool) -> Result<Cluster> {
        let folder = Folder::new(&format!("faults-{scenario}"))?;
        let logs = Cluster::logs(scenario);
        // Of a run before.
        let _ = std::fs::remove_dir_all(&logs);
        std::fs::create_dir_all(&logs)?;
        let ports = free_ports(NODES * 3)?;
        let nodes = (0..NODES).map(|place| Node {
            http: ports[place],
            raft: ports[NODES + place],
            reach: ports[NODES * if proxied { 2 } else { 1 } + place],
            data: folder.within(NAMES[place]),
            server: None,
            paused: false,
        });
        let nodes: Vec<Node> = nodes.collect();
        let links = match proxied {
            true => Some(Links::start(&nodes.iter().map(|node| (node.reach, node.raft)).collect::<Vec<_>>())?),
            false => None,
        };
        let options = OPTIONS.iter().map(|option| (*option).to_owned()).collect();
        Ok(Cluster { codeq: codeq.to_owned(), folder, logs, nodes, options, links })
    }

    /// Where the nodes of a scenario write what they print.
    pub(crate) fn logs(scenario: &str) -> PathBuf {
        target().join("faults").join(scenario)
    }

    /// Leaves the settings as they are shipped.
    pub(crate) fn with_defaults(mut self) -> Cluster {
        self.options.clear();
        self
    }

    /// Adds a setting of all nodes that are started from here on.
    pub(crate) fn option(&mut self, flag: &str, value: &str) {
        self.options.extend([flag.to_owned(), value.to_owned()]);
    }

    /// Puts a node's data elsewhere.
    pub(crate) fn keeps_data_in(&mut self, place: usize, data: PathBuf) {
        self.nodes[place].data = data;
    }

    pub(crate) fn data(&self, place: usize) -> &Path {
        &self.nodes[place].data
    }

    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Starts all nodes and waits until they serve.
    ///
    /// # Errors
    /// One does not start.
    pub(crate) fn start_all(&mut self) -> Result<()> {
        (0..NODES)
            .filter(|place| self.nodes[*place].server.is_none())
            .collect::<Vec<_>>()
            .into_iter()
            .try_for_each(|place| self.spawn(place))?;
        (0..NODES).try_for_each(|place| self.wait_until_ready(place))?;
        self.wait_until_whole()
    }

    /// Starts a node, always with the same flags, and waits for nothing.
    ///
    /// # Errors
    /// There is no such program.
    pub(crate) fn spawn(&mut self, place: usize) -> Result<()> {
        let mut command = Command::new(&self.codeq);
        self.arguments(&mut command, place);
        self.spawn_as(place, command)
    }

    /// Starts a node by a command of the caller's, which ends with [`Cluster::arguments`].
    ///
    /// # Errors
    /// There is no such program.
    pub(crate) fn spawn_as(&mut self, place: usize, command: Command) -> Result<()> {
        let log = self.logs.join(NAMES[place]).with_extension("log");
        let node = &mut self.nodes[place];
        node.server = Some(Starting::spawn(command, Some(&log))?.listens_at(node.http));
        node.paused = false;
        Ok(())
    }

    /// The program and the arguments of a node.
    pub(crate) fn program(&self) -> &Path {
        &self.codeq
    }

    /// Adds the arguments of a node.
    pub(crate) fn arguments(&self, command: &mut Command, place: usize) {
        let node = &self.nodes[place];
        let list: Vec<String> =
            NAMES.iter().zip(&self.nodes).map(|(name, node)| format!("{name}={}", node.reach)).collect();
        command.args(["serve", "--node-id", NAMES[place], "--initial-cluster", &list.join(",")]);
        command.args(["--http-addr", &node.http.to_string(), "--public-url", &format!("http://{}", node.http)]);
        command.args(["--raft-addr", &node.raft.to_string(), "--raft-advertise", &node.reach.to_string()]);
        // How full this machine's disk is, is nobody's business here.
        command.args(["--disk-low", "0", "--disk-critical", "0"]);
        command.arg("--data-dir").arg(&node.data).args(&self.options);
    }

    fn server(&mut self, place: usize) -> Result<&mut Server> {
        self.nodes[place].server.as_mut().with_context(|| format!("{} does not run", NAMES[place]))
    }

    /// Waits until a node can serve every request.
    ///
    /// # Errors
    /// It ends, or does not in time.
    pub(crate) fn wait_until_ready(&mut self, place: usize) -> Result<()> {
        self.server(place)?.wait_until_ready()
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// It had ended by itself.
    pub(crate) fn kill(&mut self, place: usize) -> Result<()> {
        let server = self.nodes[place].server.take().with_context(|| format!("{} does not run", NAMES[place]))?;
        server.kill()
    }

    /// SIGTERM.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn terminate(&mut self, place: usize) -> Result<()> {
        self.server(place)?.terminate()
    }

    /// Waits until a node that was asked to stop has ended as it should.
    ///
    /// # Errors
    /// It does not end, or not with status 0.
    pub(crate) fn wait_until_stopped(&mut self, place: usize) -> Result<()> {
        let (status, printed) = self.wait_until_ended(place)?;
        ensure!(status == Some(0), "{} ended with {status:?}:\n{printed}", NAMES[place]);
        Ok(())
    }

    /// Waits until a node has ended by itself. Returns its exit status and what it printed last.
    ///
    /// # Errors
    /// It does not end.
    pub(crate) fn wait_until_ended(&mut self, place: usize) -> Result<(Option<i32>, String)> {
        let server = self.server(place)?;
        let status = server.ended(DEADLINE)?;
        let printed = server.printed();
        self.nodes[place].server = None;
        Ok((status.code(), printed))
    }

    /// SIGSTOP.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn pause(&mut self, place: usize) -> Result<()> {
        self.nodes[place].paused = true;
        self.server(place)?.pause()
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn resume(&mut self, place: usize) -> Result<()> {
        self.nodes[place].paused = false;
        self.server(place)?.resume()
    }

    /// Deletes the data of a node that does not run.
    ///
    /// # Errors
    /// It cannot be deleted.
    pub(crate) fn wipe(&mut self, place: usize) -> Result<()> {
        ensure!(self.nodes[place].server.is_none(), "{} runs", NAMES[place]);
        std::fs::remove_dir_all(&self.nodes[place].data).context("cannot delete a data directory")
    }

    /// The operating system's number of a node's process.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn process(&mut self, place: usize) -> Result<u32> {
        Ok(self.server(place)?.id())
    }

    /// Where the nodes serve.
    pub(crate) fn addrs(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.http).collect()
    }

    pub(crate) fn addr(&self, place: usize) -> SocketAddr {
        self.nodes[place].http
    }

    /// Where the other nodes are in the list.
    pub(crate) fn others(place: usize) -> [usize; NODES - 1] {
        [(place + 1) % NODES, (place + 2) % NODES]
    }

    /// What a node says; nothing if it says nothing.
    pub(crate) fn view(&self, place: usize) -> Option<View> {
        let node = &self.nodes[place];
        node.server.as_ref().filter(|_| !node.paused)?;
        let status = Client::connect(node.http).ok()?.get("/cluster/status").ok()?.json().ok()?;
        let group = &status["groups"][0];
        let peers = group["peers"].as_array().cloned().unwrap_or_default();
        let member = |peer: &Value| {
            let known = peer["state"] == "replicating";
            Some((peer["name"].as_str()?.to_owned(), peer["lag"].as_u64()?, known))
        };
        Some(View {
            role: group["role"].as_str()?.to_owned(),
            term: group["term"].as_u64()?,
            ready: group["ready"].as_bool()?,
            members: peers.iter().filter_map(member).collect(),
            voter: status["voter"].as_bool()?,
        })
    }

    /// The node that leads and takes writes, if there is one, by its own account.
    pub(crate) fn leader_among(&self, places: &[usize]) -> Option<usize> {
        let leading = |place: &usize| self.view(*place).filter(|view| view.ready).map(|view| (view.term, *place));
        // One that has not noticed yet that it does not lead any more has a lower term.
        places.iter().filter_map(leading).max().map(|(_, place)| place)
    }

    /// The node that leads.
    ///
    /// # Errors
    /// There is none for too long.
    pub(crate) fn leader(&self) -> Result<usize> {
        self.leader_of(&[0, 1, 2])
    }

    /// The one of these nodes that leads.
    ///
    /// # Errors
    /// There is none for too long.
    pub(crate) fn leader_of(&self, places: &[usize]) -> Result<usize> {
        let mut leader = None;
        wait_until("a leader", || {
            leader = self.leader_among(places);
            Ok(leader.is_some())
        })?;
        leader.context("there is one")
    }

    /// Waits until one node leads, and the logs of all others are close behind its own.
    ///
    /// # Errors
    /// It takes too long.
    pub(crate) fn wait_until_whole(&self) -> Result<()> {
        wait_until("three members that have caught up", || Ok(self.is_whole()))
    }

    fn is_whole(&self) -> bool {
        let Some(leader) = self.leader_among(&[0, 1, 2]) else { return false };
        let Some(view) = self.view(leader) else { return false };
        let close = view.members.iter().filter(|(_, lag, known)| *known && *lag <= LAG_MAX);
        let voters = (0..NODES).all(|place| self.view(place).is_some_and(|view| view.voter));
        voters && view.members.len() == NODES && close.count() == NODES
    }

    /// Asks a node something on a connection of its own.
    ///
    /// # Errors
    /// There is no answer.
    pub(crate) fn post(&self, place: usize, path: &str, body: &Value) -> Result<Answer> {
        Ok(Client::connect(self.nodes[place].http)?.post(path, &body.to_string())?)
    }

    /// Reads something from a node.
    ///
    /// # Errors
    /// There is no answer.
    pub(crate) fn get(&self, place: usize, path: &str) -> Result<Answer> {
        Ok(Client::connect(self.nodes[place].http)?.get(path)?)
    }
}

/// Waits until something holds.
///
/// # Errors
/// It does not in time, or cannot be found out.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < DEADLINE {
        if holds()? {
            return Ok(());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    bail!("after {DEADLINE:?} there is not {what}")
}

/// Ports below those that the operating system gives to outgoing connections: one of these could not be listened on again after its node was
/// down for a while.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

fn free_ports(count: usize) -> Result<Vec<SocketAddr>> {
    let first = base::rng::mix(u64::from(std::process::id())) % u64::from(PORTS.end - PORTS.start);
    let mut listeners = Vec::new();
    for port in PORTS.cycle().skip(first as usize).take(PORTS.len()) {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        listeners.extend(listener.ok());
        if listeners.len() == count {
            return Ok(listeners.iter().map(TcpListener::local_addr).collect::<std::io::Result<_>>()?);
        }
    }
    bail!("there are no {count} free ports from {} to {}", PORTS.start, PORTS.end)
}
