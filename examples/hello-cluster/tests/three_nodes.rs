//! Three processes of the example: they agree, count, lose one of them and nothing else, and let nobody in who does not belong.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Nothing that is waited for takes longer, also where many tests run at once.
const LONGEST: Duration = Duration::from_secs(25);

/// Whoever waits looks again after each line that a node logs, and at least this often.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A node, running or not.
struct Process {
    name: &'static str,
    http: SocketAddr,
    peer: SocketAddr,
    data: PathBuf,
    child: Option<Child>,
    log: Arc<Mutex<String>>,
    news: Sender<()>,
}

impl Process {
    /// Starts it with its addresses and what else is given.
    fn start(&mut self, flags: &[&str]) {
        let (http, peer) = (self.http.to_string(), self.peer.to_string());
        let mut command = Command::new(env!("CARGO_BIN_EXE_hello-cluster"));
        command.args(["--http", &http, "--peer", &peer, "--data"]).arg(&self.data).args(flags);
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
        let lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let (log, news) = (self.log.clone(), self.news.clone());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                log.lock().expect("nobody panics with it").push_str(&(line + "\n"));
                // The test may have ended.
                let _ = news.send(());
            }
        });
        self.child = Some(child);
    }

    fn logged(&self, text: &str) -> bool {
        self.log.lock().expect("nobody panics with it").contains(text)
    }

    /// `kill -9`.
    fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }

    /// SIGTERM; answers the exit code.
    fn terminate(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it runs");
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("it can be told");
        child.wait().expect("it ends").code()
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        ask(self.http, "GET", path, "")
    }

    fn json(&self, path: &str) -> Option<Value> {
        self.get(path).and_then(|(_, body)| serde_json::from_str(&body).ok())
    }

    /// Reads what reflects every write acknowledged before, as soon as somebody leads.
    fn read(&self, cluster: &Cluster, path: &str) -> String {
        let mut read = None;
        cluster.eventually(&format!("{} answers {path}", self.name), |_| {
            read = self.get(path).filter(|(status, _)| *status == 200).map(|(_, body)| body);
            read.is_some()
        });
        read.expect("it was waited for")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One request on a connection of its own; nothing: there was no answer.
fn ask(http: SocketAddr, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&http, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(LONGEST)).ok()?;
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {http}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// Ports that nobody listens on, below those that the kernel gives to outgoing connections: a node that is down must find its own free.
fn free_addrs(count: usize) -> Vec<SocketAddr> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut found = Vec::new();
    while found.len() < count {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 12_000 + (u64::from(std::process::id()) * 97 + step) % 20_000;
        let addr = SocketAddr::from(([127, 0, 0, 1], port as u16));
        if TcpListener::bind(addr).is_ok() {
            found.push(addr);
        }
    }
    found
}

/// The processes of one test.
struct Cluster {
    folder: tempfile::TempDir,
    nodes: Vec<Process>,
    news: (Sender<()>, Receiver<()>),
}

impl Cluster {
    /// Three nodes that serve.
    fn begin() -> Cluster {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let mut cluster = Cluster { folder, nodes: Vec::new(), news: channel() };
        NAMES.into_iter().for_each(|name| cluster.add(name));
        (0..3).for_each(|place| cluster.start_listed(place));
        cluster.ready();
        cluster
    }

    fn add(&mut self, name: &'static str) {
        let addrs = free_addrs(2);
        let (data, news) = (self.folder.path().join(name), self.news.0.clone());
        let log = Arc::default();
        self.nodes.push(Process { name, http: addrs[0], peer: addrs[1], data, child: None, log, news });
    }

    /// Starts a node with the flags that found the cluster.
    fn start_listed(&mut self, place: usize) {
        let list: Vec<String> = self.nodes[..3].iter().map(|node| format!("{}={}", node.name, node.peer)).collect();
        let name = self.nodes[place].name;
        self.nodes[place].start(&["--name", name, "--peers", &list.join(",")]);
    }

    fn running(&self) -> impl Iterator<Item = &Process> {
        self.nodes.iter().filter(|node| node.child.is_some())
    }

    fn ready(&self) {
        self.eventually("every node is ready", |cluster| {
            cluster.running().all(|node| node.get("/readyz").is_some_and(|(status, _)| status == 200))
        });
    }

    /// Looks again and again until it is so.
    fn eventually(&self, what: &str, mut is_so: impl FnMut(&Cluster) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(begun.elapsed() < LONGEST, "{what}: not after {LONGEST:?}\n{}", self.state());
            // Time has passed, which is as good as news.
            let _ = self.news.1.recv_timeout(LOOK_AGAIN);
        }
    }

    /// What the nodes have logged, and how their groups stand.
    fn state(&self) -> String {
        let of_node = |node: &Process| {
            let groups = node.get("/cluster/groups").map(|(_, groups)| groups).unwrap_or_default();
            format!("{}: {groups}\n{}", node.name, node.log.lock().expect("nobody panics with it"))
        };
        self.nodes.iter().map(of_node).collect()
    }

    /// The leader, once all nodes that run name the same one and it says so itself.
    fn leader(&self) -> usize {
        let mut leader = None;
        self.eventually("all name one leader", |cluster| {
            let names: Vec<Option<String>> = cluster
                .running()
                .map(|node| node.json("/cluster/leader").and_then(|leader| Some(leader["name"].as_str()?.to_owned())))
                .collect();
            let leads = |node: &Process| node.get("/cluster/leader-check").is_some_and(|(status, _)| status == 200);
            let say_so: Vec<&str> = cluster.running().filter(|node| leads(node)).map(|node| node.name).collect();
            let agreed = say_so.len() == 1 && names.iter().all(|name| name.as_deref() == say_so.first().copied());
            leader = say_so.first().filter(|_| agreed).and_then(|name| NAMES.iter().position(|known| known == name));
            leader.is_some()
        });
        leader.expect("it was waited for")
    }
}

/// Name, incarnation and vote of every member, as a node knows them.
fn members(node: &Process) -> Vec<(String, String, bool)> {
    let nodes = node.json("/cluster/nodes").unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let listed = nodes["nodes"].as_array().into_iter().flatten();
    listed.map(|node| (text(&node["name"]), text(&node["id"]), node["voter"] == true)).collect()
}

fn count(node: &Process) -> Option<(u16, String)> {
    ask(node.http, "POST", "/counter", "")
}

/// All nodes know the same members and one leader; what is written at a follower is read everywhere; SIGTERM ends a node with 0; and a data
/// directory knows its cluster, so that a restart needs no more than addresses.
#[test]
fn three_nodes_agree_and_restart_without_cluster_flags() {
    let mut cluster = Cluster::begin();
    let leader = cluster.leader();
    let all = members(&cluster.nodes[0]);
    assert_eq!(all.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), NAMES);
    for node in &cluster.nodes {
        assert_eq!(members(node), all, "{}", node.name);
        assert!(all.iter().all(|(_, _, voter)| *voter));
    }
    let follower = (leader + 1) % 3;
    for expected in 1..=20 {
        assert_eq!(count(&cluster.nodes[follower]), Some((200, expected.to_string())));
    }
    assert_eq!(ask(cluster.nodes[follower].http, "PUT", "/kv/color", "red"), Some((200, "red".into())));
    for node in &cluster.nodes {
        assert_eq!(node.read(&cluster, "/counter"), "20", "{}", node.name);
        assert_eq!(node.read(&cluster, "/kv/color"), "red", "{}", node.name);
        assert_eq!(node.get("/kv/size").map(|(status, _)| status), Some(404));
    }
    for node in &mut cluster.nodes {
        assert_eq!(node.terminate(), Some(0), "{}: {}", node.name, node.log.lock().expect("nobody panics with it"));
    }
    cluster.nodes.iter_mut().for_each(|node| node.start(&[]));
    cluster.ready();
    assert_eq!(count(&cluster.nodes[follower]), Some((200, "21".into())));
    for node in &cluster.nodes {
        assert_eq!(members(node), all, "{}", node.name);
        assert_eq!(node.read(&cluster, "/counter"), "21", "{}", node.name);
    }
}

/// What one client has counted, with how many requests of unknown outcome it had before each answer.
#[derive(Default)]
struct Counted {
    answers: Vec<(u64, u64)>,
    unknown: u64,
}

/// `kill -9` of the leader while a client counts at another node: a new one leads, and the numbers go on without a gap or a repeat, but for
/// requests whose outcome was said to be unknown.
#[test]
fn a_killed_leader_takes_nothing_with_it() {
    let mut cluster = Cluster::begin();
    let leader = cluster.leader();
    let survivor = (leader + 1) % 3;
    let (http, news, stop) = (cluster.nodes[survivor].http, cluster.news.0.clone(), Arc::new(AtomicBool::new(false)));
    let (counted, done) = (Arc::new(Mutex::new(Counted::default())), stop.clone());
    let shown = counted.clone();
    let client = std::thread::spawn(move || {
        while !done.load(Ordering::Relaxed) {
            let answer = ask(http, "POST", "/counter", "");
            let mut counted = shown.lock().expect("nobody panics with it");
            match answer {
                Some((200, number)) => {
                    let unknown = std::mem::take(&mut counted.unknown);
                    counted.answers.push((number.parse().expect("it is a number"), unknown));
                }
                // Nothing has happened.
                Some((503, _)) => {}
                _ => counted.unknown += 1,
            }
            // The test may have ended.
            let _ = news.send(());
        }
    });
    let answers = || counted.lock().expect("nobody panics with it").answers.len();
    cluster.eventually("the client counts", |_| answers() >= 50);
    cluster.nodes[leader].kill();
    let before = answers();
    cluster.eventually("the client counts on", |_| answers() >= before + 50);
    stop.store(true, Ordering::Relaxed);
    client.join().expect("the client has met nothing unexpected");
    assert_ne!(cluster.leader(), leader);
    cluster.start_listed(leader);
    cluster.ready();
    let counted = counted.lock().expect("nobody panics with it");
    let mut last = 0;
    for (number, unknown) in &counted.answers {
        let expected = last + 1..=last + 1 + unknown;
        assert!(expected.contains(number), "{number} after {last}, with {unknown} of unknown outcome between");
        last = *number;
    }
    let read: Vec<String> = cluster.nodes.iter().map(|node| node.read(&cluster, "/counter")).collect();
    assert!(read.iter().all(|number| *number == read[0]), "{read:?}");
    let number: u64 = read[0].parse().expect("it is a number");
    assert!((last..=last + counted.unknown).contains(&number), "{number} after {last}");
}

/// A node of another label is refused as long as it has that label; with the right one it becomes a voter.
#[test]
fn another_label_never_enters() {
    let mut cluster = Cluster::begin();
    let join: Vec<String> = cluster.nodes.iter().map(|node| node.peer.to_string()).collect();
    cluster.add("d");
    let flags = ["--name", "d", "--join", &join.join(",")];
    cluster.nodes[3].start(&[flags.as_slice(), &["--label", "another"]].concat());
    let refused = "cluster-token-mismatch";
    cluster.eventually("both sides say why", |cluster| cluster.nodes.iter().all(|node| node.logged(refused)));
    let stranger = &cluster.nodes[3];
    assert_eq!(stranger.get("/readyz/joined").map(|(status, _)| status), Some(503));
    assert_eq!(count(stranger).map(|(status, _)| status), Some(503), "it has nowhere to count");
    assert_eq!(stranger.json("/cluster/nodes").expect("it answers")["nodes"][0]["status"], "unjoined");
    for node in &cluster.nodes[..3] {
        assert!(members(node).iter().all(|(name, ..)| NAMES.contains(&name.as_str())), "{}", node.name);
    }
    assert_eq!(cluster.nodes[3].terminate(), Some(0));
    cluster.nodes[3].start(&flags);
    cluster.eventually("it votes", |cluster| {
        cluster.nodes.iter().all(|node| members(node).iter().any(|(name, _, voter)| name == "d" && *voter))
    });
}

/// A node whose data directory was lost comes back under the same name, as another incarnation that takes the vote of the old one.
#[test]
fn a_wiped_node_returns_under_a_new_incarnation() {
    let mut cluster = Cluster::begin();
    assert_eq!(count(&cluster.nodes[0]), Some((200, "1".into())));
    let before = members(&cluster.nodes[0]);
    cluster.nodes[2].kill();
    std::fs::remove_dir_all(&cluster.nodes[2].data).expect("it can be removed");
    cluster.start_listed(2);
    cluster.eventually("it votes under a new incarnation", |cluster| {
        cluster.nodes.iter().all(|node| {
            let now = members(node);
            now.len() == 3 && now[..2] == before[..2] && now[2].0 == "c" && now[2].1 != before[2].1 && now[2].2
        })
    });
    cluster.ready();
    assert_eq!(cluster.nodes[2].read(&cluster, "/counter"), "1");
    assert_eq!(count(&cluster.nodes[2]), Some((200, "2".into())));
}
