//! Clusters of real processes: how they are formed by settings, and that they serve while one is gone.

use nix::sys::signal::Signal;

use crate::process::{Answer, Codeq, End, eventually, free_ports, ready, request, run};

pub(crate) const TASKS: &str = "/v1/codeq/tasks";
const NAMES: [&str; 3] = ["node-a", "node-b", "node-c"];

/// Three nodes as codeQ's environment starts them.
struct Three {
    folder: tempfile::TempDir,
    http: [u16; 3],
    peers: [u16; 3],
    nodes: [Option<Codeq>; 3],
}

impl Three {
    fn begin() -> Three {
        let ports: [u16; 6] = free_ports();
        let ([http @ .., _, _, _], [_, _, _, peers @ ..]) = (ports, ports);
        let folder = tempfile::tempdir().expect("a folder can be made");
        let mut three = Three { folder, http, peers, nodes: [None, None, None] };
        (0..3).for_each(|place| three.start(place));
        (0..3).for_each(|place| ready(&three.addr(place)));
        three
    }

    fn start(&mut self, place: usize) {
        let path = self.folder.path().join(NAMES[place]).display().to_string();
        let list = |of: &dyn Fn(usize) -> String| {
            (0..3).map(|place| format!("{}={}", NAMES[place], of(place))).collect::<Vec<_>>().join(",")
        };
        let provider = r#"{"token": "dev-token", "subject": "dev", "raw": {"tenantId": "dev-tenant", "role": "ADMIN"}, "eventTypes": ["*"], "scopes": ["codeq:claim", "codeq:result"]}"#;
        let environment = [
            ("PORT", self.http[place].to_string()),
            ("LOG_LEVEL", "warn".into()),
            ("PERSISTENCE_PROVIDER", "pebble".into()),
            ("PERSISTENCE_CONFIG", format!(r#"{{"path": "{path}", "numShards": 2, "fsyncOnCommit": true}}"#)),
            ("RAFT_ENABLED", "true".into()),
            ("RAFT_MUX_ENABLED", "true".into()),
            ("RAFT_SELF_ID", NAMES[place].into()),
            ("RAFT_BIND_ADDR", format!("127.0.0.1:{}", self.peers[place])),
            ("RAFT_PEERS", list(&|place| format!("127.0.0.1:{}", self.peers[place]))),
            ("RAFT_PEER_HTTP_ADDRS", list(&|place| format!("http://{}", self.addr(place)))),
            ("RAFT_BOOTSTRAP", (place == 0).to_string()),
            ("PRODUCER_AUTH_PROVIDER", "static".into()),
            ("PRODUCER_AUTH_CONFIG", provider.into()),
            ("WORKER_AUTH_PROVIDER", "static".into()),
            ("WORKER_AUTH_CONFIG", provider.into()),
        ];
        let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
        self.nodes[place] = Some(Codeq::start(&["serve"], &environment));
    }

    fn addr(&self, place: usize) -> String {
        format!("127.0.0.1:{}", self.http[place])
    }

    fn ask(&self, place: usize, path: &str, body: Option<&str>) -> Answer {
        request(&self.addr(place), path, Some("dev-token"), body).expect("it answers")
    }

    /// Creates a task; whoever is told that nothing happened, or does not know, repeats it under the same key.
    fn create(&self, place: usize, key: &str) -> String {
        let body = format!(r#"{{"command":"greet","payload":{{}},"idempotencyKey":"{key}"}}"#);
        let created = eventually("a task is created", || {
            let answer = self.ask(place, TASKS, Some(&body));
            assert!([200, 202, 503, 504].contains(&answer.status), "{answer:?}");
            (answer.status < 300).then_some(answer)
        });
        created.json()["id"].as_str().expect("it has an id").to_owned()
    }

    fn claim_and_complete(&self, at: [usize; 2]) -> String {
        let claimed =
            self.ask(at[0], &format!("{TASKS}/claim"), Some(r#"{"commands":["greet"],"waitSeconds":10}"#)).json();
        let id = claimed["id"].as_str().unwrap_or_else(|| panic!("nothing was claimed: {claimed}")).to_owned();
        let result = format!(r#"{{"status":"COMPLETED","result":{{"by":{}}}}}"#, at[1]);
        assert_eq!(self.ask(at[1], &format!("{TASKS}/{id}/result"), Some(&result)).status, 200);
        id
    }

    /// Who leads, as a node sees it.
    fn leader(&self, place: usize) -> usize {
        eventually("there is a leader", || {
            let status = self.ask(place, "/v1/codeq/raft/status", None).json();
            NAMES.iter().position(|name| status["leaderID"] == *name)
        })
    }
}

/// codeQ's three-node environment makes a cluster that serves everything at every node. The leader is killed: the others go on, and the killed
/// one comes back with the same environment and knows all. Asked to stop, all end with status 0.
#[test]
fn codeq_s_environment_makes_three_nodes_of_which_one_may_die() {
    let mut three = Three::begin();
    let first = three.create(0, "first");
    assert_eq!(three.claim_and_complete([1, 2]), first);
    for place in 0..3 {
        let read = three.ask(place, &format!("{TASKS}/{first}/result"), None).json();
        assert_eq!(read["result"]["result"]["by"], 2, "{read}");
    }

    let leader = three.leader(0);
    let (next, last) = ((leader + 1) % 3, (leader + 2) % 3);
    let killed = three.nodes[leader].take().expect("it runs").stop(Signal::SIGKILL);
    assert_eq!(killed.status, None, "a signal has ended it");
    let second = three.create(next, "second");
    assert_eq!(three.claim_and_complete([last, next]), second);

    three.start(leader);
    ready(&three.addr(leader));
    for id in [&first, &second] {
        assert_eq!(three.ask(leader, &format!("{TASKS}/{id}"), None).json()["status"], "COMPLETED");
    }
    for node in three.nodes.iter().flatten() {
        node.signal(Signal::SIGTERM);
    }
    for node in three.nodes.iter_mut().filter_map(Option::take) {
        let End { status, output } = node.end();
        assert_eq!(status, Some(0), "{output}");
        assert!(!output.contains("\"level\":\"error\""), "{output}");
    }
}

/// A node with flags of ours, open to this machine.
pub(crate) struct Plain {
    folder: tempfile::TempDir,
    http: Vec<u16>,
    peers: Vec<u16>,
}

impl Plain {
    pub(crate) fn new() -> Plain {
        let ports: [u16; 6] = free_ports();
        Plain {
            folder: tempfile::tempdir().expect("a folder can be made"),
            http: ports[..3].into(),
            peers: ports[3..].into(),
        }
    }

    pub(crate) fn start(&self, place: usize, more: &[&str]) -> Codeq {
        let path = self.folder.path().join(NAMES[place]).display().to_string();
        let (http, peer) = (self.addr(place), self.peer(place));
        let own = ["serve", "--node-id", NAMES[place], "--data-dir", &path, "--http-addr", &http, "--raft-addr", &peer];
        Codeq::start(&[&own, more].concat(), &[])
    }

    pub(crate) fn addr(&self, place: usize) -> String {
        format!("127.0.0.1:{}", self.http[place])
    }

    pub(crate) fn peer(&self, place: usize) -> String {
        format!("127.0.0.1:{}", self.peers[place])
    }

    pub(crate) fn list(&self) -> String {
        let entry = |place: usize| format!("{}={}", NAMES[place], self.peer(place));
        (0..3).map(entry).collect::<Vec<_>>().join(",")
    }

    /// Waits until a node says that it is not ready, for this reason.
    fn waits_for(&self, place: usize, why: &str) {
        eventually(why, || {
            let answer = request(&self.addr(place), "/readyz", None, None).ok()?;
            (answer.status == 503 && answer.body.contains(why)).then_some(())
        });
    }

    pub(crate) fn command(&self, place: usize, args: &[&str]) -> End {
        run(&[args, &["--endpoints", &self.addr(place)]].concat(), &[])
    }

    /// What `codeq members` says of the nodes, by name.
    fn members(&self, place: usize) -> serde_json::Value {
        let End { status, output } = self.command(place, &["members", "-o", "json"]);
        assert_eq!(status, Some(0), "{output}");
        serde_json::from_str(&output).expect("it is JSON")
    }

    /// Waits until a node has so many voters among its members.
    pub(crate) fn has_voters(&self, place: usize, count: usize) {
        eventually(&format!("there are {count} voters"), || {
            (self.members(place)["quorum"]["voters"] == count).then_some(())
        });
    }
}

pub(crate) fn stop(nodes: Vec<Codeq>) {
    nodes.iter().for_each(|node| node.signal(Signal::SIGTERM));
    for node in nodes {
        let end = node.end();
        assert_eq!(end.status, Some(0), "{}", end.output);
    }
}

/// Two of three listed nodes found nothing, and a node with another token does not count. It says why, and gives up when it was told to. With
/// the right token it completes the three.
#[test]
fn a_list_waits_for_all_of_it_and_another_token_never_enters() {
    let plain = Plain::new();
    let list = plain.list();
    let listed = ["--initial-cluster", &list];
    let mut nodes: Vec<Codeq> = (0..2).map(|place| plain.start(place, &listed)).collect();
    for place in 0..2 {
        plain.waits_for(place, "2 of 3 nodes known");
    }
    let health = plain.command(0, &["health"]);
    assert_eq!((health.status, health.output.contains("[-]joined: not joined: 2 of 3")), (Some(6), true), "{health:?}");
    nodes[0].wait_for("raft.bootstrap.waiting");

    let stranger = plain.start(2, &[&listed[..], &["--cluster-token", "other", "--join-timeout", "2s"]].concat()).end();
    assert_eq!(stranger.status, Some(3), "{}", stranger.output);
    for text in ["cluster-token-mismatch", "belongs to no cluster after 2s (cluster.joinTimeout): 1 of 3 nodes known"] {
        assert!(stranger.output.contains(text), "{text}: {}", stranger.output);
    }
    plain.waits_for(0, "2 of 3 nodes known");

    nodes.push(plain.start(2, &listed));
    (0..3).for_each(|place| ready(&plain.addr(place)));
    let printed = plain.command(1, &["members"]).output;
    assert!(
        NAMES.iter().all(|name| printed.contains(name)) && printed.contains("cluster healthy: 3 of 3"),
        "{printed}"
    );
    assert_eq!(plain.command(2, &["health", "--cluster"]).status, Some(0));
    stop(nodes);
}

/// One node founds alone and has data; another one asks to be admitted, becomes a voter by itself, and has the data. A third one knows only
/// the second.
#[test]
fn a_newcomer_becomes_a_voter() {
    let plain = Plain::new();
    let mut nodes = vec![plain.start(0, &["--bootstrap", "--promote-after", "100ms"])];
    ready(&plain.addr(0));
    let created = request(&plain.addr(0), TASKS, None, Some(r#"{"command":"greet","payload":{}}"#)).unwrap();
    let id = created.json()["id"].as_str().expect("it has an id").to_owned();
    for place in 1..3 {
        nodes.push(plain.start(place, &["--join", &plain.peer(place - 1), "--promote-after", "100ms"]));
        plain.has_voters(0, place + 1);
        ready(&plain.addr(place));
        let read = request(&plain.addr(place), &format!("{TASKS}/{id}"), None, None).unwrap();
        assert_eq!(read.json()["status"], "PENDING", "{read:?}");
    }
    // The same command lines start them for ever.
    stop(nodes);
    let mut nodes = vec![plain.start(0, &["--bootstrap"])];
    nodes.extend((1..3).map(|place| plain.start(place, &["--join", &plain.peer(place - 1)])));
    (0..3).for_each(|place| ready(&plain.addr(place)));
    plain.has_voters(2, 3);
    stop(nodes);
}

/// Nodes that wait for two others found nothing until an operator introduces them, however little each knows.
#[test]
fn introduced_nodes_found_a_cluster() {
    let plain = Plain::new();
    let mut nodes: Vec<Codeq> = (0..3).map(|place| plain.start(place, &["--bootstrap-expect", "3"])).collect();
    for (place, node) in nodes.iter_mut().enumerate() {
        plain.waits_for(place, "1 of 3 nodes known");
        let said = node.wait_for("server.listening");
        let where_and_how = [plain.addr(place), plain.peer(place), "codeq join ADDRESS".into()];
        assert!(where_and_how.iter().all(|text| said.contains(text)), "{said}");
    }
    // Whose task that is they cannot know, so nobody is told that there is none.
    let read = request(&plain.addr(0), &format!("{TASKS}/7b06e441-4628-8000-8000-000000030000"), None, None).unwrap();
    assert_eq!((read.status, &read.json()["code"]), (503, &"not_joined".into()), "{read:?}");
    let printed = plain.command(1, &["members"]).output;
    assert!(printed.contains("unjoined") && printed.contains("codeq join"), "{printed}");
    let [dead] = free_ports().map(|port| format!("127.0.0.1:{port}"));
    let lost = plain.command(0, &["join", &dead]);
    assert_eq!((lost.status, lost.output.contains("no address answered")), (Some(1), true), "{lost:?}");
    let joined = plain.command(0, &["join", &plain.peer(1), &plain.peer(2)]);
    assert_eq!(joined.status, Some(0), "{joined:?}");
    assert_eq!(joined.output, "joined: 2 of 2 addresses answered (node-b, node-c)\n");
    (0..3).for_each(|place| ready(&plain.addr(place)));
    plain.has_voters(2, 3);
    let again = plain.command(2, &["join", &plain.peer(1)]);
    assert_eq!((again.status, again.output.contains("joined already")), (Some(0), true), "{again:?}");
    stop(nodes);
}

/// Goal: `status --all` has a row for each member as it sees itself, and says of one that is down that it does not answer; what says which
/// server to ask may stand before the command.
#[test]
fn the_status_of_all_is_asked_of_one() {
    let plain = Plain::new();
    let list = plain.list();
    let mut nodes: Vec<Codeq> = (0..3).map(|place| plain.start(place, &["--initial-cluster", &list])).collect();
    (0..3).for_each(|place| ready(&plain.addr(place)));
    let ask = || run(&["--endpoints", &plain.addr(0), "--timeout=5s", "status", "--all"], &[]);
    let all = ask();
    let row = |output: &str, name: &str| {
        let row = output.lines().find(|line| line.starts_with(name)).map(str::to_owned);
        row.unwrap_or_else(|| panic!("{name} has no row: {output}"))
    };
    assert_eq!(all.status, Some(0), "{all:?}");
    assert_eq!(NAMES.iter().filter(|name| row(&all.output, name).contains("  leader  ")).count(), 1, "{}", all.output);
    assert_eq!(
        NAMES.iter().filter(|name| row(&all.output, name).contains("  follower  ")).count(),
        2,
        "{}",
        all.output
    );
    assert_eq!(nodes.remove(2).stop(Signal::SIGKILL).status, None);
    let partial = ask();
    assert!(row(&partial.output, "node-c").contains("does not answer"), "{}", partial.output);
    assert!(!row(&partial.output, "node-b").contains("does not answer"), "{}", partial.output);
    stop(nodes);
}

/// Nobody there is a failure, with the address that was tried: the one of the settings, if no other is given.
#[test]
fn commands_say_whom_they_asked() {
    let [port] = free_ports();
    let asked = run(&["members"], &[("PORT", &port.to_string())]);
    assert_eq!(asked.status, Some(1), "{asked:?}");
    assert!(asked.output.contains(&format!("no server answers; http://127.0.0.1:{port}: ")), "{asked:?}");
    let folder = tempfile::tempdir().expect("a folder can be made");
    let (server, addr) = Codeq::serve(&folder.path().join("data").display().to_string(), &["--node-id", "only"]);
    let endpoints = format!("127.0.0.1:{port},http://{addr}");
    let asked = run(&["members"], &[("CODEQ_ENDPOINTS", &endpoints)]);
    assert!(asked.status == Some(0) && asked.output.contains("only"), "{asked:?}");
    let refused = run(&["join", "127.0.0.1:1", "--endpoints", &addr], &[]);
    assert!(refused.status == Some(1) && refused.output.contains("no peer address"), "{refused:?}");
    assert_eq!(server.stop(Signal::SIGTERM).status, Some(0));
}
