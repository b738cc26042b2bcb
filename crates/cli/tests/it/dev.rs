//! A newcomer's first minute.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::process::{Codeq, request};

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
    let end = crate::process::run(&["dev", "--http-addr", "0.0.0.0:0"], &[]);
    assert_eq!(end.status, Some(2), "{end:?}");
    assert!(end.output.contains("http.addr = 0.0.0.0:0 (flag --http-addr)"), "{end:?}");
}
