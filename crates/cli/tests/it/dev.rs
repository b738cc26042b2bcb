//! A newcomer's first minute.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{Codeq, eventually, ready, request, run};

/// A development server on a free port, and the three lines it prints.
fn start(directory: &str) -> (Codeq, String, Vec<String>) {
    let mut server = Codeq::start(&["dev", "--http-addr", "127.0.0.1:0", "--data-dir", directory], &[]);
    server.wait_for("Ctrl-C stops the server.");
    let banner = server.output.clone();
    let addr = banner.split("http://").nth(1).expect("the banner names the address");
    let addr = addr.split(',').next().expect("a split has a first part").to_owned();
    let lines = banner.lines().filter(|line| line.contains("curl")).map(|line| line.trim().to_owned()).collect();
    (server, addr, lines)
}

/// The lines of the banner, pasted into a shell, take a task through its life; after Ctrl-C and another start it can still be read.
#[test]
fn the_three_lines_work_and_what_they_did_stays() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("dev").display().to_string();
    let (server, addr, lines) = start(&directory);
    let tasks = format!("http://{addr}/v1/codeq/tasks");
    let create = r#"{"command":"greet","payload":{"name":"Ada"}}"#;
    let claim = r#"{"commands":["greet"]}"#;
    let complete = r#"{"status":"COMPLETED","result":{"greeting":"Hello, Ada!"}}"#;
    let expected = [
        format!("curl -sw '\\n' {tasks} -d '{create}'"),
        format!("id=$(curl -s {tasks}/claim -d '{claim}' | cut -d'\"' -f4); echo \"claimed $id\""),
        format!("curl -sw '\\n' {tasks}/$id/result -d '{complete}'"),
    ];
    assert_eq!(lines, expected);
    let has_curl = Command::new("curl").arg("--version").output().is_ok();
    let id = if has_curl {
        let done = Command::new("sh").arg("-c").arg(lines.join("\n")).output().expect("there is a shell");
        let printed = String::from_utf8(done.stdout).unwrap();
        let printed: Vec<&str> = printed.lines().collect();
        assert_eq!(printed.len(), 3, "{printed:?}");
        assert!(printed[0].contains("\"status\":\"PENDING\""), "{printed:?}");
        assert!(printed[2].contains("\"status\":\"COMPLETED\""), "{printed:?}");
        printed[1].strip_prefix("claimed ").expect("it tells the id").to_owned()
    } else {
        let post = |path: &str, body| request(&addr, path, None, Some(body)).expect("it answers");
        assert_eq!(post("/v1/codeq/tasks", create).status, 202);
        let claimed = post("/v1/codeq/tasks/claim", claim).body;
        let id = claimed.split('"').nth(3).expect("the id comes first").to_owned();
        assert_eq!(post(&format!("/v1/codeq/tasks/{id}/result"), complete).status, 200);
        id
    };
    let end = server.stop(Signal::SIGINT);
    assert_eq!(end.status, Some(0), "{end:?}");

    let (server, addr, _) = start(&directory);
    let path = format!("/v1/codeq/tasks/{id}/result");
    let read = request(&addr, &path, None, None).expect("it answers").json();
    assert_eq!(read["result"]["result"]["greeting"], "Hello, Ada!", "{read}");
    assert_eq!(server.stop(Signal::SIGINT).status, Some(0));
}

/// Without tokens nobody else is let in.
#[test]
fn it_stays_on_this_machine() {
    let end = run(&["dev", "--http-addr", "0.0.0.0:0"], &[]);
    assert_eq!(end.status, Some(2), "{end:?}");
    assert!(end.output.contains("http.addr = 0.0.0.0:0 (flag --http-addr)"), "{end:?}");
    let end = run(&["dev", "--nodes", "3", "--http-addr", "0.0.0.0:0"], &[]);
    assert_eq!(end.status, Some(1), "{end:?}");
    assert!(end.output.contains("not an address of this machine only"), "{end:?}");
}

/// Three nodes as their banner tells of them.
struct Three {
    parent: Codeq,
    addrs: Vec<String>,
    processes: Vec<i32>,
}

fn start_three(directory: &str) -> Three {
    let args = ["dev", "--nodes", "3", "--http-addr", "127.0.0.1:0", "--data-dir", directory];
    let mut parent = Codeq::start(&args, &[]);
    parent.wait_for("Ctrl-C stops all of them.");
    let rows: Vec<Vec<String>> = (1..=3)
        .map(|number| {
            let row =
                parent.output.lines().find(|line| line.trim_start().starts_with(&format!("node-{number}  http://")));
            row.expect("every node has a row").split_whitespace().map(str::to_owned).collect()
        })
        .collect();
    let addrs = rows.iter().map(|row| row[1].trim_start_matches("http://").to_owned()).collect();
    let processes = rows.iter().map(|row| row[3].parse().expect("a process has a number")).collect();
    Three { parent, addrs, processes }
}

fn create(addr: &str, key: &str) -> String {
    let body = format!(r#"{{"command":"greet","payload":{{}},"idempotencyKey":"{key}"}}"#);
    let created = eventually("a task is created", || {
        request(addr, "/v1/codeq/tasks", None, Some(&body)).ok().filter(|answer| answer.status < 300)
    });
    created.json()["id"].as_str().expect("it has an id").to_owned()
}

/// One node with a task becomes three that have it. Each line of the banner goes to another node. One is killed: a line tells how to start it
/// again, which works, and meanwhile the others serve. Ctrl-C stops all, and at the next start everything is there.
#[test]
fn one_node_becomes_three_and_one_of_them_may_be_killed() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("dev").display().to_string();
    let (server, addr, _) = start(&directory);
    let old = create(&addr, "old");
    assert_eq!(server.stop(Signal::SIGINT).status, Some(0));

    let mut three = start_three(&directory);
    let lines: Vec<&str> = three.parent.output.lines().filter(|line| line.contains("curl")).collect();
    assert_eq!(lines.len(), 3);
    for (line, addr) in lines.iter().zip(&three.addrs) {
        assert!(line.contains(&format!("http://{addr}/v1/codeq/tasks")), "{line}");
    }
    let id = create(&three.addrs[0], "new");
    for addr in &three.addrs {
        for id in [&old, &id] {
            assert_eq!(request(addr, &format!("/v1/codeq/tasks/{id}"), None, None).unwrap().status, 200);
        }
    }
    // A second start finds the ports taken, and says so in a line.
    let port = three.addrs[0].clone();
    let end = run(&["dev", "--nodes", "3", "--http-addr", &port, "--data-dir", &directory], &[]);
    assert!(end.status == Some(1) && end.output.contains("is in use (127.0.0.1:"), "{end:?}");
    // Nor do fewer nodes take over what three hold.
    let end = run(&["dev", "--http-addr", "127.0.0.1:0", "--data-dir", &directory], &[]);
    assert!(end.status == Some(1) && end.output.contains("codeq dev --nodes 3"), "{end:?}");

    kill(Pid::from_raw(three.processes[1]), Signal::SIGKILL).expect("it runs");
    let line = three.parent.wait_for("To start it again: ");
    let told = format!("node-2 (process {}) ended: signal: 9 (SIGKILL); 2 run on. ", three.processes[1]);
    assert!(line.starts_with(&told), "{line}");
    let id = create(&three.addrs[2], "without");
    // What was seen of it is told by any other node, which names the one that is gone.
    let endpoint = format!("http://{}", three.addrs[2]);
    let timeline = run(&["cluster", "timeline", "--endpoints", &endpoint], &[]);
    assert!(timeline.status == Some(0) && timeline.output.contains("no data from: node-2"), "{timeline:?}");
    let events = run(&["cluster", "events", "--node", "node-1", "--endpoints", &endpoint], &[]);
    assert!(events.status == Some(0) && events.output.contains("peer node-2 down"), "{events:?}");
    let command = line.split_once("To start it again: ").expect("it was waited for").1;
    let mut again = Command::new("sh").arg("-c").arg(format!("exec {command}")).spawn().expect("there is a shell");
    ready(&three.addrs[1]);
    let read = request(&three.addrs[1], &format!("/v1/codeq/tasks/{id}"), None, None).unwrap();
    assert_eq!(read.status, 200, "{read:?}");
    kill(Pid::from_raw(again.id() as i32), Signal::SIGTERM).expect("it runs");
    assert_eq!(again.wait().expect("it can be waited for").code(), Some(0));

    let end = three.parent.stop(Signal::SIGINT);
    assert_eq!(end.status, Some(0), "{end:?}");
    let three = start_three(&directory);
    for id in [&old, &id] {
        let read = request(&three.addrs[2], &format!("/v1/codeq/tasks/{id}"), None, None).unwrap();
        assert_eq!(read.status, 200, "{read:?}");
    }
    assert_eq!(three.parent.stop(Signal::SIGTERM).status, Some(0));
}
