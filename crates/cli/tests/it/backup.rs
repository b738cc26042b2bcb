//! Backups and recovery with real servers and real files: what docs/recover.md tells an operator to do.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::process::{Answer, Codeq, End, eventually, free_ports, put, ready, request, run};

pub(crate) const TASKS: &str = "/v1/codeq/tasks";

pub(crate) fn ask(addr: &str, path: &str, body: Option<&str>) -> Answer {
    request(addr, path, None, body).expect("it answers")
}

pub(crate) fn create(addr: &str, command: &str) -> String {
    let body = format!(r#"{{"command":"{command}","payload":{{}}}}"#);
    let created = ask(addr, TASKS, Some(&body));
    assert_eq!(created.status, 202, "{created:?}");
    created.json()["id"].as_str().expect("it has an id").to_owned()
}

pub(crate) fn claim(addr: &str, command: &str) -> serde_json::Value {
    let body = format!(r#"{{"commands":["{command}"],"leaseSeconds":600,"waitSeconds":10}}"#);
    let claimed = ask(addr, &format!("{TASKS}/claim"), Some(&body));
    assert_eq!(claimed.status, 200, "{claimed:?}");
    claimed.json()
}

pub(crate) fn complete(addr: &str, task: &serde_json::Value) -> Answer {
    let (id, token) = (task["id"].as_str().expect("it has an id"), &task["leaseToken"]);
    let body = format!(r#"{{"status":"COMPLETED","result":{{"ok":true}},"leaseToken":{token}}}"#);
    ask(addr, &format!("{TASKS}/{id}/result"), Some(&body))
}

fn status(addr: &str, id: &str) -> serde_json::Value {
    ask(addr, &format!("{TASKS}/{id}"), None).json()["status"].clone()
}

/// Runs a command that must succeed; answers what it prints.
fn succeed(args: &[&str]) -> String {
    let End { status, output } = run(args, &[]);
    assert_eq!(status, Some(0), "{args:?}: {output}");
    output
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

pub(crate) fn stop(server: Codeq) {
    let end = server.stop(Signal::SIGTERM);
    assert_eq!(end.status, Some(0), "{}", end.output);
}

/// A server with two shards and tasks in every stage that matters; answers ids by stage, and a grant.
fn with_tasks(data: &str) -> (Codeq, String, [String; 2], serde_json::Value) {
    let (server, addr) = Codeq::serve(data, &["--shards", "2", "--node-id", "node-a"]);
    let done = create(&addr, "mail");
    assert_eq!(complete(&addr, &claim(&addr, "mail")).status, 200);
    create(&addr, "held");
    let held = claim(&addr, "held");
    let waiting = create(&addr, "greet");
    (server, addr, [done, waiting], held)
}

/// Saved while the server runs, looked at and verified without it, restored into an empty directory: every task has its id and its state, what
/// was held is delivered again, and neither its old lease counts nor what happened after the backup was made. A directory with data, or one
/// that is used, is refused.
#[test]
fn a_backup_is_saved_and_restored() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = |name: &str| shown(&folder.path().join(name));
    let (server, addr, [done, waiting], held) = with_tasks(&path("old"));
    let file = path("backup.tar");
    let saved = succeed(&["snapshot", "save", &file, "--endpoints", &addr]);
    assert!(saved.contains("3 tasks in 2 groups"), "{saved}");
    let again = run(&["snapshot", "save", &file, "--endpoints", &addr], &[]);
    assert!(again.status == Some(1) && again.output.contains("cannot make"), "{again:?}");
    let local = succeed(&["snapshot", "save", &path("local.tar"), "--local", "--endpoints", &addr]);
    assert!(local.contains("of that node alone"), "{local}");
    let late = create(&addr, "greet");
    let used = run(&["snapshot", "restore", &file, "--data-dir", &path("old")], &[]);
    assert!(used.status == Some(1) && used.output.contains("another process uses"), "{used:?}");
    stop(server);
    let full = run(&["snapshot", "restore", &file, "--data-dir", &path("old")], &[]);
    assert!(full.status == Some(1) && full.output.contains("has the data of node node-a"), "{full:?}");

    let inspected = succeed(&["snapshot", "inspect", &file]);
    for text in ["3 tasks in 2 groups", "mail   COMPLETED  1", "held   LEASED", "greet  READY"] {
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed(&inspected).contains(&squeezed(text)), "{text}: {inspected}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&succeed(&["snapshot", "inspect", &file, "-o", "json"])).expect("it is JSON");
    assert_eq!((&json["format"], &json["node"], &json["local"]), (&1.into(), &"node-a".into(), &false.into()));
    let verified = succeed(&["snapshot", "verify", &file]);
    assert!(verified.lines().count() == 5 && verified.contains("shard-1.sqlite"), "{verified}");

    let restored = succeed(&["snapshot", "restore", &file, "--data-dir", &path("new")]);
    assert!(restored.contains("is now node node-a of the new cluster"), "{restored}");
    let (server, addr) = Codeq::serve(&path("new"), &["--shards", "2", "--node-id", "node-a"]);
    ready(&addr);
    assert_eq!(status(&addr, &done), "COMPLETED");
    assert_eq!(status(&addr, &waiting), "PENDING");
    let refused = complete(&addr, &held);
    assert_eq!((refused.status, &refused.json()["code"]), (409, &"lease_lost".into()), "{refused:?}");
    assert_eq!(ask(&addr, &format!("{TASKS}/{late}"), None).status, 404, "it came after the backup");
    let fresh = create(&addr, "greet");
    assert!(fresh != late && fresh != waiting);
    for _ in 0..2 {
        assert_eq!(complete(&addr, &claim(&addr, "greet")).status, 200);
    }
    assert_eq!(status(&addr, &fresh), "COMPLETED");
    let delivered = eventually("the task that was held is delivered again", || {
        let body = r#"{"commands":["held"],"waitSeconds":10}"#;
        let claimed = ask(&addr, &format!("{TASKS}/claim"), Some(body));
        (claimed.status == 200).then(|| claimed.json())
    });
    assert_eq!(delivered["id"], held["id"]);
    assert_eq!(complete(&addr, &delivered).status, 200);
    let mut server = Some(server);
    // A restart reads the incarnations of both lives.
    stop(server.take().expect("it runs"));
    let (server, addr) = Codeq::serve(&path("new"), &["--shards", "2"]);
    ready(&addr);
    assert_eq!((status(&addr, &done), status(&addr, &fresh)), ("COMPLETED".into(), "COMPLETED".into()));
    stop(server);
}

/// A flipped bit in any part, and a file that was cut off, are found by `verify`, which names the part; nothing of it is restored.
#[test]
fn a_damaged_backup_is_refused_by_the_name_of_its_part() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = |name: &str| shown(&folder.path().join(name));
    let (server, addr, ..) = with_tasks(&path("data"));
    succeed(&["snapshot", "save", &path("backup.tar"), "--endpoints", &addr]);
    stop(server);
    let whole = std::fs::read(path("backup.tar")).expect("it can be read");
    let damaged = path("damaged.tar");
    let mut offset = 0;
    let mut parts = 0;
    while whole[offset] != 0 {
        let name = whole[offset..offset + 100].split(|byte| *byte == 0).next().expect("a split has a first part");
        let name = String::from_utf8_lossy(name).into_owned();
        let digits = std::str::from_utf8(&whole[offset + 124..offset + 135]).expect("a size is text");
        let length = usize::from_str_radix(digits, 8).expect("a size has octal digits");
        let mut bytes = whole.clone();
        bytes[offset + 512 + length / 2] ^= 1;
        std::fs::write(&damaged, &bytes).expect("it can be written");
        let verdict = run(&["snapshot", "verify", &damaged], &[]);
        assert_eq!(verdict.status, Some(6), "{name}: {verdict:?}");
        let line = verdict.output.lines().find(|line| line.contains("damaged")).expect("a part is damaged");
        assert!(line.contains(&name) || line.contains("SHA256SUMS"), "{name}: {line}");
        // The manifest has the checksums of the groups as well: without the list nothing is lost.
        if name != "SHA256SUMS" {
            let refused = run(&["snapshot", "restore", &damaged, "--data-dir", &path("never")], &[]);
            assert!(refused.status == Some(1) && refused.output.contains("cannot be used"), "{name}: {refused:?}");
        }
        offset += 512 + length.next_multiple_of(512);
        parts += 1;
    }
    assert_eq!(parts, 4, "a manifest, two groups, the checksums");
    std::fs::write(&damaged, &whole[..whole.len() / 2]).expect("it can be written");
    let cut = run(&["snapshot", "verify", &damaged], &[]);
    assert!(cut.status == Some(6) && cut.output.contains("the file ends in the middle of"), "{cut:?}");
    // The directory that was refused so often is as good as new.
    succeed(&["snapshot", "restore", &path("backup.tar"), "--data-dir", &path("never")]);
}

/// A server with a directory for backups fills it by itself, says how old the last one is, and what it saves can be restored. A second start
/// finds a recent one and makes none.
#[test]
fn a_server_saves_by_itself() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = |name: &str| shown(&folder.path().join(name));
    std::fs::create_dir(path("backups")).expect("it can be made");
    let (server, addr, ..) = with_tasks(&path("data"));
    stop(server);
    let listed = || -> Vec<PathBuf> {
        let entries = std::fs::read_dir(path("backups")).expect("it can be listed");
        entries.map(|entry| entry.expect("it can be listed").path()).collect()
    };
    let flags = ["--shards", "2", "--backup-dir", &path("backups"), "--backup-interval", "1h", "--backup-keep", "2"];
    let (mut server, _) = Codeq::serve(&path("data"), &flags);
    server.wait_for("backup.made");
    stop(server);
    let [file] = &listed()[..] else { panic!("there is one file: {:?}", listed()) };
    assert!(succeed(&["snapshot", "restore", &shown(file), "--data-dir", &path("new")]).contains("3 tasks"), "{addr}");
    let (server, addr) = Codeq::serve(&path("data"), &flags);
    eventually("it tells the age", || {
        let metrics = ask(&addr, "/metrics", None).body;
        metrics.lines().any(|line| line.starts_with("codeq_backup_age_seconds ")).then_some(())
    });
    stop(server);
    assert_eq!(listed().len(), 1);
}

/// Three nodes of one cluster.
pub(crate) struct Three {
    pub(crate) folder: tempfile::TempDir,
    http: [u16; 3],
    peers: [u16; 3],
}

impl Three {
    pub(crate) fn new() -> Three {
        let [a, b, c, d, e, f] = free_ports();
        Three { folder: tempfile::tempdir().expect("a folder can be made"), http: [a, b, c], peers: [d, e, f] }
    }

    fn data(&self, place: usize) -> PathBuf {
        self.folder.path().join(format!("node-{place}"))
    }

    pub(crate) fn addr(&self, place: usize) -> String {
        format!("127.0.0.1:{}", self.http[place])
    }

    fn peer(&self, place: usize) -> String {
        format!("127.0.0.1:{}", self.peers[place])
    }

    pub(crate) fn start(&self, place: usize, more: &[&str]) -> Codeq {
        self.start_in(place, more, &[])
    }

    pub(crate) fn start_in(&self, place: usize, more: &[&str], environment: &[(&str, &str)]) -> Codeq {
        let (name, data) = (format!("node-{place}"), shown(&self.data(place)));
        let (http, peer) = (self.addr(place), self.peer(place));
        let own = ["serve", "--node-id", &name, "--data-dir", &data, "--http-addr", &http, "--raft-addr", &peer];
        let own = [&own[..], &["--shards", "2", "--promote-after", "100ms"]].concat();
        Codeq::start(&[&own[..], more].concat(), environment)
    }

    pub(crate) fn start_all(&self) -> Vec<Codeq> {
        self.start_all_in(&[], &[])
    }

    pub(crate) fn start_all_in(&self, more: &[&str], environment: &[(&str, &str)]) -> Vec<Codeq> {
        let entries = (0..3).map(|place| format!("node-{place}={}", self.peer(place)));
        let list = entries.collect::<Vec<_>>().join(",");
        let flags = [&["--initial-cluster", &list][..], more].concat();
        let nodes = (0..3).map(|place| self.start_in(place, &flags, environment)).collect();
        (0..3).for_each(|place| ready(&self.addr(place)));
        nodes
    }
}

/// Three nodes that are at rest save the same index and have the same rows; `debug db` finds the file and its tables, and what it copies is whole.
#[test]
fn checkpoints_of_three_nodes_are_the_same() {
    let three = Three::new();
    let nodes = three.start_all();
    let ids: Vec<String> =
        (0..60).map(|number| create(&three.addr(number % 3), ["mail", "greet"][number % 2])).collect();
    for number in 0..20 {
        assert_eq!(complete(&three.addr((number + 1) % 3), &claim(&three.addr(number % 3), "mail")).status, 200);
    }
    // A read that is linearizable has made every node catch up.
    for (number, id) in ids.iter().enumerate() {
        (0..3).for_each(|place| assert_ne!(status(&three.addr((number + place) % 3), id), "FAILED"));
    }
    let dump = |place: usize| {
        let data = shown(&three.data(place));
        assert!(succeed(&["debug", "db", "check", "--data-dir", &data]).contains("shard 1: ok"), "it is checked");
        succeed(&["debug", "db", "dump", "--data-dir", &data])
    };
    let triggered = succeed(&["snapshot", "trigger", "--endpoints", &three.addr(1)]);
    let indexes = |name: &str| -> Vec<String> {
        let lines = triggered.lines().filter_map(|line| line.strip_prefix(name)).map(str::to_owned);
        lines.collect()
    };
    assert!(indexes("node-0").len() == 2 && indexes("node-0") == indexes("node-1"), "{triggered}");
    assert_eq!(indexes("node-0"), indexes("node-2"));
    let dumps: Vec<String> = (0..3).map(dump).collect();
    let has = |text: &str| dumps[0].contains(text);
    assert!(has("INSERT INTO live VALUES(") && has("INSERT INTO completed_"), "{}", dumps[0]);
    assert!(dumps[0] == dumps[1] && dumps[0] == dumps[2], "{}\n---\n{}\n---\n{}", dumps[0], dumps[1], dumps[2]);

    let data = shown(&three.data(0));
    let file = succeed(&["debug", "db", "path", "--shard", "1", "--data-dir", &data]);
    assert!(Path::new(file.trim()).exists(), "{file}");
    let tables = succeed(&["debug", "db", "tables", "--data-dir", &data]);
    assert!(tables.contains("live") && tables.contains("payloads"), "{tables}");
    let copy = shown(&three.folder.path().join("copy.sqlite"));
    succeed(&["debug", "db", "copy", &copy, "--shard", "1", "--data-dir", &data]);
    assert!(std::fs::read(&copy).expect("it can be read").starts_with(b"SQLite format 3"));
    let nowhere = run(&["debug", "db", "tables", "--shard", "2", "--data-dir", &data], &[]);
    assert!(nowhere.status == Some(1) && nowhere.output.contains("there is no shard 2"), "{nowhere:?}");
    nodes.into_iter().for_each(stop);
}

/// Copies all files of a folder, and of the folders in it. A socket that a killed server has left is none.
fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("it can be made");
    for entry in std::fs::read_dir(from).expect("it can be listed") {
        let path = entry.expect("it can be listed").path();
        let to = to.join(path.file_name().expect("it has a name"));
        if path.is_dir() {
            copy_folder(&path, &to);
        } else if path.is_file() {
            std::fs::copy(&path, &to).expect("it can be copied");
        }
    }
}

/// What `recover apply` or an offline restore leaves at each of its steps, if it does not come further: the directory is as before and takes
/// the command again, or no node starts with it and the command, given again, finishes what it began, or it is the new one. The steps are
/// made by hand, from the files of a directory before and after.
#[test]
fn an_interrupted_recovery_leaves_the_old_or_the_new() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let within = |name: &str| folder.path().join(name);
    let path = |name: &str| shown(&within(name));
    let (server, addr, [done, waiting], _) = with_tasks(&path("old"));
    succeed(&["snapshot", "save", &path("backup.tar"), "--endpoints", &addr]);
    drop(server.stop(Signal::SIGKILL));
    let has_all = |name: &str| {
        let (server, addr) = Codeq::serve(&path(name), &["--shards", "2", "--node-id", "node-a"]);
        ready(&addr);
        let found = [status(&addr, &done), status(&addr, &waiting)];
        assert_eq!(found, ["COMPLETED", "PENDING"], "{name}");
        stop(server);
    };
    let is_refused = |name: &str| {
        let end = run(&["serve", "--http-addr", "127.0.0.1:0", "--data-dir", &path(name)], &[]);
        assert!(end.status == Some(8) && end.output.contains("no identity"), "{name}: {end:?}");
        end.output
    };
    let remove = |name: &str, files: &[&str]| {
        for file in files {
            std::fs::remove_file(within(name).join(file)).unwrap_or_else(|error| panic!("{name}: {file}: {error}"));
        }
    };

    // While it copies aside, and while it stages: what is left over is in nobody's way.
    copy_folder(&within("old"), &within("staging"));
    let partial = within("staging").join("before-recovery-1");
    std::fs::create_dir(&partial).expect("it can be made");
    std::fs::write(partial.join("shard-0.sqlite"), b"half").expect("it can be written");
    std::fs::write(within("staging").join("recovered-1.sqlite"), b"half").expect("it can be written");
    copy_folder(&within("staging"), &within("applied"));
    has_all("staging");
    let applied = succeed(&["recover", "apply", &path("applied")]);
    assert!(applied.contains("is now node node-a of the new cluster"), "{applied}");
    let mut copies =
        std::fs::read_dir(within("applied")).expect("it can be listed").map(|entry| entry.expect("listed").path());
    let is_copy =
        |copy: &PathBuf| copy.file_name().is_some_and(|name| name.to_string_lossy().starts_with("before-recovery-"));
    let copy =
        copies.find(|copy| is_copy(copy) && !copy.ends_with("before-recovery-1")).expect("what was there is kept");

    // The old content has lost its identity, and then its log; one new checkpoint is in place; both are, without an identity.
    let put = |name: &str, shard: u16| {
        let file = format!("shard-{shard}.sqlite");
        std::fs::copy(within("applied").join(&file), within(name).join(&file)).expect("it can be copied");
    };
    let folder_of_copy = copy.file_name().expect("it has a name").to_string_lossy().into_owned();
    copy_folder(&within("old"), &within("midway"));
    copy_folder(&copy, &within("midway").join(&folder_of_copy));
    std::fs::write(within("midway").join("recovering"), &folder_of_copy).expect("it can be written");
    // The command, given again, finishes.
    let mut count = 0;
    let mut finishes = || {
        count += 1;
        let said = is_refused("midway");
        assert!(said.contains("codeq recover apply was interrupted here: run that again"), "{said}");
        let name = format!("again-{count}");
        copy_folder(&within("midway"), &within(&name));
        let applied = succeed(&["recover", "apply", &path(&name)]);
        assert!(applied.contains(&folder_of_copy), "it goes on with the same copy: {applied}");
        assert!(!within(&name).join("recovering").exists(), "it is over");
        has_all(&name);
    };
    // Before anything is gone, what is there is still the old node's, whatever the file says.
    copy_folder(&within("midway"), &within("marked"));
    has_all("marked");
    assert!(!within("marked").join("recovering").exists(), "a node that starts has nothing to finish");
    remove("midway", &["identity"]);
    finishes();
    remove("midway", &["founding"]);
    finishes();
    std::fs::remove_dir_all(within("midway").join("wal")).expect("it can be removed");
    finishes();
    put("midway", 0);
    finishes();
    put("midway", 1);
    finishes();
    std::fs::copy(within("applied").join("founding"), within("midway").join("founding")).expect("it can be copied");
    finishes();
    // The copy is whole by itself.
    copy_folder(&copy, &within("kept"));
    has_all("kept");
    has_all("applied");

    // An offline restore that has brought some of the checkpoints, or all, and not the identity.
    succeed(&["snapshot", "restore", &path("backup.tar"), "--data-dir", &path("restored")]);
    std::fs::create_dir(within("begun")).expect("it can be made");
    put("begun", 0);
    drop(is_refused("begun"));
    put("begun", 1);
    drop(is_refused("begun"));
    std::fs::remove_dir_all(within("begun")).expect("it can be removed");
    succeed(&["snapshot", "restore", &path("backup.tar"), "--data-dir", &path("begun")]);
    has_all("begun");
    has_all("restored");
}

/// Two nodes of three have lost the third one, and both are recovered by mistake: two clusters, each with all that was acknowledged before and
/// nothing of the other's. Whoever still belongs to the old cluster is refused by both, and says that nothing can be decided and what to read.
#[test]
fn two_that_were_recovered_by_mistake_refuse_each_other() {
    let three = Three::new();
    let mut nodes = three.start_all();
    let before: Vec<String> = (0..6).map(|number| create(&three.addr(number % 3), "mail")).collect();
    // They have all that was acknowledged: a linearizable read has made them catch up.
    (1..3).for_each(|place| before.iter().for_each(|id| assert_eq!(status(&three.addr(place), id), "PENDING")));
    nodes.drain(..).for_each(|node| drop(node.stop(Signal::SIGKILL)));
    for place in 1..3 {
        succeed(&["recover", "apply", &shown(&three.data(place))]);
    }
    let mut nodes: Vec<Codeq> = (1..3).map(|place| three.start(place, &[])).collect();
    (1..3).for_each(|place| ready(&three.addr(place)));
    let fresh = [1, 2].map(|place| create(&three.addr(place), "greet"));
    let mut old = three.start(0, &[]);
    for node in &mut nodes {
        let line = node.wait_for("raft.peer.rejected");
        assert!(line.contains("node-0") && line.contains("stale-incarnation"), "{line}");
    }
    let added = run(&["member", "add", &three.peer(2), "--endpoints", &three.addr(1)], &[]);
    assert!(added.status.is_some_and(|status| status != 0), "{added:?}");
    let health = eventually("the old one says what to do", || {
        let answer = request(&three.addr(0), "/cluster/health", None, None).ok()?;
        answer.body.contains("codeq recover plan").then_some(answer)
    });
    assert_eq!((health.status, &health.json()["status"]), (503, &"unavailable".into()), "{health:?}");
    let told = run(&["status", "--endpoints", &three.addr(0)], &[]);
    assert!(told.output.contains("codeq recover plan") && told.output.contains("nothing can be decided"), "{told:?}");
    assert!(ask(&three.addr(0), "/web/status", None).body.contains("codeq recover plan"));
    let cluster = |place: usize| ask(&three.addr(place), "/cluster/nodes", None).json()["clusterId"].clone();
    assert!(cluster(0) != cluster(1) && cluster(0) != cluster(2) && cluster(1) != cluster(2));
    for (place, own) in [(1, 0), (2, 1)] {
        let addr = three.addr(place);
        let members = ask(&addr, "/cluster/nodes", None).json();
        assert_eq!((&members["quorum"]["voters"], &members["quorum"]["needed"]), (&1.into(), &1.into()), "{members}");
        before.iter().for_each(|id| assert_eq!(status(&addr, id), "PENDING", "{id}"));
        assert_eq!(status(&addr, &fresh[own]), "PENDING");
        assert_eq!(ask(&addr, &format!("{TASKS}/{}", fresh[1 - own]), None).status, 404, "it is the other one's");
    }
    old.skip();
    nodes.into_iter().chain([old]).for_each(stop);
}

/// Two disks of three are lost while tasks come in. The third one's data is planned and applied: everything that was acknowledged is there, from
/// its log as well as from its checkpoint, and the other two join it with empty directories.
#[test]
fn the_last_of_three_nodes_is_recovered() {
    let three = Three::new();
    let mut nodes = three.start_all();
    let before: Vec<String> = (0..10).map(|number| create(&three.addr(number % 3), "mail")).collect();
    succeed(&["snapshot", "trigger", "--endpoints", &three.addr(2)]);
    let held = claim(&three.addr(0), "mail");
    let after: Vec<String> = (0..10).map(|number| create(&three.addr(2), ["mail", "greet"][number % 2])).collect();
    // It has all that was acknowledged: a linearizable read has made it catch up.
    after.iter().for_each(|id| assert_eq!(status(&three.addr(2), id), "PENDING"));
    let data = shown(&three.data(2));
    let running = run(&["recover", "plan", &data], &[]);
    assert!(running.status == Some(1) && running.output.contains("another process uses"), "{running:?}");
    nodes.drain(..).for_each(|node| drop(node.stop(Signal::SIGKILL)));
    (0..2).for_each(|place| std::fs::remove_dir_all(three.data(place)).expect("it can be removed"));

    let plan = succeed(&["recover", "plan", &data]);
    for text in ["node node-2 of cluster", "intact", "recommended", "what may be lost", "codeq recover apply"] {
        assert!(plan.contains(text), "{text}: {plan}");
    }
    let applied = succeed(&["recover", "apply", &data]);
    for text in ["what was there is now in", "before-recovery-", "is now node node-2 of the new cluster", "--join"] {
        assert!(applied.contains(text), "{text}: {applied}");
    }
    nodes.push(three.start(2, &[]));
    ready(&three.addr(2));
    for id in before.iter().chain(&after) {
        let found = ask(&three.addr(2), &format!("{TASKS}/{id}"), None);
        // The lease that was held is over, and shows until the first entry ends it.
        let is_there = ["PENDING", "IN_PROGRESS"].iter().any(|known| found.json()["status"] == *known);
        assert!(found.status == 200 && is_there, "{id}: {found:?}");
    }
    assert_eq!(complete(&three.addr(2), &held).status, 409, "leases are over");
    let fresh = create(&three.addr(2), "greet");
    for place in 0..2 {
        nodes.push(three.start(place, &["--join", &three.peer(2)]));
        ready(&three.addr(place));
    }
    for place in 0..3 {
        assert_eq!(status(&three.addr(place), &fresh), "PENDING");
        assert_eq!(status(&three.addr(place), &after[0]), "PENDING");
    }
    nodes.into_iter().for_each(stop);
}

/// Each of two directories is ahead in another group: no one of them is recommended, nothing is done without `--merge`, and with it the new
/// cluster has what either had.
#[test]
fn groups_are_merged_when_no_directory_is_ahead_in_all() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = |name: &str| shown(&folder.path().join(name));
    let (server, ..) = with_tasks(&path("one"));
    stop(server);
    std::fs::create_dir_all(path("two/wal")).expect("it can be made");
    for part in ["", "wal"] {
        for entry in std::fs::read_dir(folder.path().join("one").join(part)).expect("it can be listed") {
            let entry = entry.expect("it can be listed");
            if entry.file_type().expect("it is known").is_file() {
                let to = folder.path().join("two").join(part).join(entry.file_name());
                std::fs::copy(entry.path(), to).expect("it can be copied");
            }
        }
    }
    // The shard stands in an id behind the version.
    let shard = |id: &str| id[15..18].to_owned();
    let mut created: Vec<String> = Vec::new();
    for (name, wanted) in [("one", "000"), ("two", "001")] {
        let (server, addr) = Codeq::serve(&path(name), &["--shards", "2"]);
        ready(&addr);
        let names = (0..).map(|number| format!("queue-{number}"));
        let found = names.map(|name| create(&addr, &name)).find(|id| shard(id) == wanted);
        created.extend(found);
        let id = created.last().expect("there is one");
        // Far more in this group than a few misses have put into the other one.
        let command = ask(&addr, &format!("{TASKS}/{id}"), None).json()["command"].as_str().map(str::to_owned);
        (0..50).for_each(|_| drop(create(&addr, command.as_deref().expect("it has a queue"))));
        stop(server);
    }
    let plan = succeed(&["recover", "plan", &path("one"), &path("two")]);
    assert!(plan.contains("with --merge: group 0 from") && plan.contains("group 1 from"), "{plan}");
    let refused = run(&["recover", "apply", &path("one"), &path("two")], &[]);
    assert!(refused.status == Some(1) && refused.output.contains("add --merge"), "{refused:?}");
    let applied = succeed(&["recover", "apply", &path("one"), &path("two"), "--merge"]);
    assert!(applied.contains("move") && applied.contains(&path("two")), "{applied}");
    let (server, addr) = Codeq::serve(&path("one"), &["--shards", "2"]);
    ready(&addr);
    created.iter().for_each(|id| assert_eq!(status(&addr, id), "PENDING", "{id}"));
    stop(server);
}

/// A backup is restored into the cluster that runs, through any node: ids and states are those of the backup, old leases count no more, and
/// what came later is unknown. It is not done without a confirmation, nor for another cluster.
#[test]
fn a_backup_is_restored_into_a_running_cluster() {
    let three = Three::new();
    let nodes = three.start_all();
    let done = create(&three.addr(0), "mail");
    assert_eq!(complete(&three.addr(1), &claim(&three.addr(2), "mail")).status, 200);
    create(&three.addr(1), "held");
    let held = claim(&three.addr(0), "held");
    let waiting = create(&three.addr(2), "greet");
    let file = shown(&three.folder.path().join("backup.tar"));
    succeed(&["snapshot", "save", &file, "--endpoints", &three.addr(0)]);
    let late: Vec<String> = (0..20).map(|number| create(&three.addr(number % 3), "greet")).collect();
    let unconfirmed = put(&three.addr(1), "/cluster/snapshot?confirm=0123");
    assert_eq!((unconfirmed.status, &unconfirmed.json()["code"]), (409, &"wrong_cluster".into()), "{unconfirmed:?}");
    let restored = succeed(&["snapshot", "restore", &file, "--yes", "--endpoints", &three.addr(1)]);
    assert!(restored.contains("3 tasks in 2 groups") && restored.contains("into cluster"), "{restored}");
    for place in 0..3 {
        let addr = three.addr(place);
        assert_eq!((status(&addr, &done), status(&addr, &waiting)), ("COMPLETED".into(), "PENDING".into()));
        late.iter().for_each(|id| assert_eq!(ask(&addr, &format!("{TASKS}/{id}"), None).status, 404, "{id}"));
    }
    let refused = complete(&three.addr(2), &held);
    assert_eq!((refused.status, &refused.json()["code"]), (409, &"lease_lost".into()), "{refused:?}");
    let fresh = create(&three.addr(0), "greet");
    assert!(!late.contains(&fresh));
    for _ in 0..2 {
        assert_eq!(complete(&three.addr(1), &claim(&three.addr(2), "greet")).status, 200);
    }
    assert_eq!(status(&three.addr(2), &fresh), "COMPLETED");
    nodes.into_iter().for_each(stop);
}

/// Nodes are killed while a backup is restored, each time another one at another moment: afterwards all groups have what was before or what is
/// in the backup, the same on all nodes, and the cluster takes writes.
#[test]
fn a_crash_during_a_restore_leaves_the_old_or_the_new() {
    let three = Three::new();
    let mut nodes: Vec<Option<Codeq>> = three.start_all().into_iter().map(Some).collect();
    // Queues of both shards.
    let names: Vec<String> = (0..8).map(|number| format!("queue-{number}")).collect();
    let all = |addr: &str| -> Vec<String> { names.iter().map(|name| create(addr, name)).collect() };
    let saved = all(&three.addr(0));
    let file = shown(&three.folder.path().join("backup.tar"));
    succeed(&["snapshot", "save", &file, "--endpoints", &three.addr(0)]);
    let (begun, first, second) = ("a restore has begun", "shard 0 was restored", "shard 1 was restored");
    for (victim, moment) in [(0, begun), (0, first), (0, second), (1, first), (2, second)] {
        let later = all(&three.addr(0));
        let node = nodes[victim].as_mut().expect("it runs");
        node.skip();
        // Whoever looks after a restore says when it begins.
        let asked = three.addr(if moment == begun { victim } else { (victim + 1) % 3 });
        let args = ["snapshot", "restore", &file, "--yes", "--endpoints", &asked].map(str::to_owned);
        let restoring = std::thread::spawn(move || run(&args.each_ref().map(String::as_str), &[]));
        node.wait_for(moment);
        drop(nodes[victim].take().map(|node| node.stop(Signal::SIGKILL)));
        let end = restoring.join().expect("it does not panic");
        nodes[victim] = Some(three.start(victim, &[]));
        (0..3).for_each(|place| ready(&three.addr(place)));
        eventually("the restore is decided", || {
            let body = r#"{"command":"other","payload":{}}"#;
            (request(&three.addr(victim), TASKS, None, Some(body)).ok()?.status == 202).then_some(())
        });
        let found = |place: usize, id: &String| ask(&three.addr(place), &format!("{TASKS}/{id}"), None).status;
        let is_old = found(0, &later[0]) == 200;
        for place in 0..3 {
            saved.iter().for_each(|id| assert_eq!(found(place, id), 200, "{moment}: {id} was there before: {end:?}"));
            let expected = if is_old { 200 } else { 404 };
            later.iter().for_each(|id| assert_eq!(found(place, id), expected, "{moment}, at {place}: {id}: {end:?}"));
        }
        // What was decided is done; what was said to be done as well.
        assert!(!is_old || (moment == begun && end.status != Some(0)), "{moment}: {end:?}");
    }
    nodes.into_iter().flatten().for_each(stop);
}
