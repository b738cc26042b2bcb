//! The three nodes of codeQ's compose page as processes of this machine: its service names, its variables, ports of this machine.
//!
//! The rows of a walk ask for what a user of the page does: up, down, stop, kill, remove a volume, change a variable, read a log.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::http::{Answer, Client};
use crate::process::Folder;

/// The services of the page.
pub(crate) const NAMES: [&str; 3] = ["node-a", "node-b", "node-c"];

/// Longest a planned stop may take.
pub(crate) const STOP_MAX: Duration = Duration::from_secs(5);

/// Between two looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Ports are looked for from here on, below those that the operating system gives to outgoing connections: whoever is down finds its own again.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Three nodes, of which some run.
pub(crate) struct Nodes {
    codeq: PathBuf,
    folder: Folder,
    nodes: Vec<Node>,
}

struct Node {
    http: SocketAddr,
    variables: BTreeMap<String, String>,
    process: Option<Process>,
}

/// A process and everything that it has printed.
pub(crate) struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

/// How a process has ended by itself.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    pub(crate) lines: Vec<String>,
}

impl Process {
    /// Starts the program with these variables and no others.
    ///
    /// # Errors
    /// There is no such program.
    pub(crate) fn start(codeq: &Path, arguments: &[&str], variables: &BTreeMap<String, String>) -> Result<Process> {
        let mut command = Command::new(codeq);
        command.args(arguments).env_clear().envs(variables);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", codeq.display()))?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let pipes: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
            child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        ];
        let read = |pipe: Box<dyn Read + Send>| {
            let lines = lines.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    lines.lock().expect("nothing panics while it holds this lock").push(line);
                }
            })
        };
        let readers = pipes.into_iter().flatten().map(read).collect();
        Ok(Process { child, lines, readers })
    }

    /// What it has printed so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("nothing panics while it holds this lock").clone()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal).context("cannot send a signal")
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// It goes on for longer than `longest`; then it is killed.
    pub(crate) fn end(mut self, longest: Duration) -> Result<End> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                for reader in self.readers.drain(..) {
                    // A panic there has nothing to do with the server.
                    let _ = reader.join();
                }
                return Ok(End { status, lines: self.lines() });
            }
            ensure!(begun.elapsed() < longest, "it goes on after {longest:?}:\n{}", self.lines().join("\n"));
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already, which is all that is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Nodes {
    /// Three nodes with the variables of the page, none of them running and none with data.
    ///
    /// # Errors
    /// There are no free ports, or no room for data.
    pub(crate) fn new(codeq: &Path, name: &str) -> Result<Nodes> {
        let folder = Folder::new(name)?;
        let ports = free_ports(2 * NAMES.len())?;
        let (peers, https) = ports.split_at(NAMES.len());
        let list = |shown: &dyn Fn(usize) -> String| {
            (0..NAMES.len()).map(|place| format!("{}={}", NAMES[place], shown(place))).collect::<Vec<_>>().join(",")
        };
        let token = r#"{"token":"dev-token","subject":"dev","scopes":["codeq:claim","codeq:heartbeat","codeq:abandon","codeq:nack","codeq:result","codeq:subscribe"],"eventTypes":["*"],"raw":{"tenantId":"dev-tenant","role":"ADMIN","clusterRole":"admin"}}"#;
        let node = |place: usize| {
            let data = folder.within(NAMES[place]).display().to_string();
            let variables = [
                ("PORT", https[place].to_string()),
                ("ENV", "prod".into()),
                ("LOG_FORMAT", "text".into()),
                ("PERSISTENCE_PROVIDER", "pebble".into()),
                ("PERSISTENCE_CONFIG", serde_json::json!({ "path": data, "numShards": 1 }).to_string()),
                ("PRODUCER_AUTH_PROVIDER", "static".into()),
                ("PRODUCER_AUTH_CONFIG", token.into()),
                ("WORKER_AUTH_PROVIDER", "static".into()),
                ("WORKER_AUTH_CONFIG", token.into()),
                ("RAFT_ENABLED", "true".into()),
                ("RAFT_MUX_ENABLED", "true".into()),
                ("RAFT_SELF_ID", NAMES[place].into()),
                ("RAFT_BIND_ADDR", format!("127.0.0.1:{}", peers[place])),
                ("RAFT_PEERS", list(&|place| format!("127.0.0.1:{}", peers[place]))),
                ("RAFT_PEER_HTTP_ADDRS", list(&|place| format!("http://127.0.0.1:{}", https[place]))),
                ("RAFT_BOOTSTRAP", (place == 0).to_string()),
                ("CODEQ_PUBLIC_URL", format!("http://localhost:{}", https[place])),
            ];
            let variables = variables.map(|(name, value)| (name.to_owned(), value)).into();
            Node { http: SocketAddr::from(([127, 0, 0, 1], https[place])), variables, process: None }
        };
        let nodes = (0..NAMES.len()).map(node).collect();
        Ok(Nodes { codeq: codeq.to_owned(), folder, nodes })
    }

    /// The program.
    pub(crate) fn codeq(&self) -> &Path {
        &self.codeq
    }

    /// The variables that a node is started with.
    pub(crate) fn variables(&self, place: usize) -> &BTreeMap<String, String> {
        &self.nodes[place].variables
    }

    /// Changes a variable of a node, for its next start.
    pub(crate) fn set(&mut self, place: usize, name: &str, value: &str) {
        self.nodes[place].variables.insert(name.into(), value.into());
    }

    /// Removes a variable of a node, for its next start.
    pub(crate) fn unset(&mut self, place: usize, name: &str) {
        self.nodes[place].variables.remove(name);
    }

    /// Where clients reach a node.
    pub(crate) fn http(&self, place: usize) -> SocketAddr {
        self.nodes[place].http
    }

    /// The URL that people are told.
    pub(crate) fn public_url(&self, place: usize) -> String {
        format!("http://localhost:{}", self.nodes[place].http.port())
    }

    /// Those that run.
    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|place| self.nodes[*place].process.is_some()).collect()
    }

    /// `docker compose up -d`
    ///
    /// # Errors
    /// There is no program.
    pub(crate) fn up(&mut self) -> Result<()> {
        for place in 0..NAMES.len() {
            if self.nodes[place].process.is_none() {
                self.start(place)?;
            }
        }
        Ok(())
    }

    /// `docker compose start`
    ///
    /// # Errors
    /// There is no program.
    pub(crate) fn start(&mut self, place: usize) -> Result<()> {
        let process = Process::start(&self.codeq, &["serve"], &self.nodes[place].variables)?;
        self.nodes[place].process = Some(process);
        Ok(())
    }

    fn take(&mut self, place: usize) -> Result<Process> {
        self.nodes[place].process.take().with_context(|| format!("{} does not run", NAMES[place]))
    }

    fn process(&self, place: usize) -> Result<&Process> {
        self.nodes[place].process.as_ref().with_context(|| format!("{} does not run", NAMES[place]))
    }

    /// Asks a node to stop, and returns at once.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn stopping(&mut self, place: usize) -> Result<Process> {
        let process = self.take(place)?;
        process.signal(Signal::SIGTERM)?;
        Ok(process)
    }

    /// `docker compose stop`. Returns how long it took.
    ///
    /// # Errors
    /// It does not end with 0 in time.
    pub(crate) fn stop(&mut self, place: usize) -> Result<Duration> {
        let begun = Instant::now();
        let End { status, lines } = self.stopping(place)?.end(STOP_MAX)?;
        ensure!(status.success(), "{} has ended with {status}:\n{}", NAMES[place], lines.join("\n"));
        Ok(begun.elapsed())
    }

    /// `docker compose kill`
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn kill(&mut self, place: usize) -> Result<()> {
        let process = self.take(place)?;
        process.signal(Signal::SIGKILL)?;
        process.end(STOP_MAX).map(|_| ())
    }

    /// `docker compose down`, which keeps the volumes.
    ///
    /// # Errors
    /// One of them does not end with 0 in time.
    pub(crate) fn down(&mut self) -> Result<()> {
        let running = self.running();
        let stopping: Vec<_> = running.iter().map(|place| self.stopping(*place)).collect::<Result<_>>()?;
        for (place, process) in running.into_iter().zip(stopping) {
            let End { status, lines } = process.end(STOP_MAX)?;
            ensure!(status.success(), "{} has ended with {status}:\n{}", NAMES[place], lines.join("\n"));
        }
        Ok(())
    }

    /// `docker volume rm`
    ///
    /// # Errors
    /// It cannot be removed.
    pub(crate) fn remove_volume(&self, place: usize) -> Result<()> {
        let path = self.folder.within(NAMES[place]);
        std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// `docker compose logs`, since the last start.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn log(&self, place: usize) -> Result<Vec<String>> {
        self.process(place).map(Process::lines)
    }

    /// A line of a node's log that has this text.
    ///
    /// # Errors
    /// There is none in time.
    pub(crate) fn logged(&self, place: usize, text: &str, longest: Duration) -> Result<String> {
        let found = eventually(longest, || {
            let lines = self.log(place)?;
            lines.into_iter().find(|line| line.contains(text)).with_context(|| format!("no line has {text:?}"))
        });
        found.with_context(|| format!("log of {}:\n{}", NAMES[place], self.log(place).unwrap_or_default().join("\n")))
    }

    /// A request with the token of the page, on a connection of its own.
    ///
    /// # Errors
    /// There is no answer.
    pub(crate) fn send(&self, place: usize, method: &str, path: &str, body: &str) -> Result<Answer> {
        send(self.http(place), method, path, body)
    }

    pub(crate) fn get(&self, place: usize, path: &str) -> Result<Answer> {
        self.send(place, "GET", path, "")
    }

    pub(crate) fn post(&self, place: usize, path: &str, body: &Value) -> Result<Answer> {
        self.send(place, "POST", path, &body.to_string())
    }

    /// The body of a page that is there.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn page(&self, place: usize, path: &str) -> Result<Value> {
        let answer = self.get(place, path)?;
        ensure!(answer.status == 200, "{} answers {path} with {answer}", NAMES[place]);
        answer.json()
    }

    /// Waits until requests for every shard can be served through these nodes.
    ///
    /// # Errors
    /// One of them is not ready in time.
    pub(crate) fn ready(&self, places: &[usize], longest: Duration) -> Result<Duration> {
        let begun = Instant::now();
        for place in places {
            let ready = eventually(longest.saturating_sub(begun.elapsed()), || {
                let answer = self.get(*place, "/readyz")?;
                ensure!(answer.status == 200, "{} is not ready: {answer}", NAMES[*place]);
                Ok(())
            });
            ready.with_context(|| {
                format!("log of {}:\n{}", NAMES[*place], self.log(*place).unwrap_or_default().join("\n"))
            })?;
        }
        Ok(begun.elapsed())
    }

    /// The place of the node that this one takes for the leader.
    ///
    /// # Errors
    /// It knows none.
    pub(crate) fn leader(&self, place: usize) -> Result<usize> {
        let status = self.page(place, "/v1/codeq/raft/status")?;
        let leader = status["leaderID"].as_str().unwrap_or_default();
        NAMES.iter().position(|name| *name == leader).with_context(|| format!("{} sees {status}", NAMES[place]))
    }
}

/// A request with the token of the page, on a connection of its own.
///
/// # Errors
/// There is no answer.
pub(crate) fn send(addr: SocketAddr, method: &str, path: &str, body: &str) -> Result<Answer> {
    send_as(addr, Some("dev-token"), method, path, body)
}

/// The same with another token, or none.
///
/// # Errors
/// There is no answer.
pub(crate) fn send_as(addr: SocketAddr, token: Option<&str>, method: &str, path: &str, body: &str) -> Result<Answer> {
    let mut client = Client::connect(addr).with_context(|| format!("nobody listens on {addr}"))?;
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
    Ok(client.send_with(method, path, &headers, body)?)
}

/// Tries until it works.
///
/// # Errors
/// The last failure, when time is over.
pub(crate) fn eventually<T>(longest: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(failure) if begun.elapsed() >= longest => {
                return Err(failure.context(format!("not within {longest:?}")));
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Ports that nobody has now, and that this program has not given out before.
///
/// # Errors
/// There are not as many.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let width = u32::from(PORTS.end - PORTS.start);
    let mut ports = Vec::new();
    for _ in 0..width {
        let step = std::process::id().wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + (step % width) as u16;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            ports.push(port);
        }
        if ports.len() == count {
            return Ok(ports);
        }
    }
    bail!("there are no {count} free ports")
}
