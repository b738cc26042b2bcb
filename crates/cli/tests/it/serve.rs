//! A server from its start to its end, and what it says when it cannot start.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;

use nix::sys::signal::Signal;

use crate::process::{Codeq, End, free_ports, request, run};

const CREATE: &str = r#"{"command":"greet","payload":{"n":1}}"#;

/// One line, without a backtrace, says why.
fn refused(args: &[&str], status: i32) -> End {
    let end = run(args, &[]);
    assert_eq!(end.status, Some(status), "{end:?}");
    assert_eq!(end.output.lines().filter(|line| line.contains("\"level\":\"error\"")).count(), 1, "{end:?}");
    assert!(!end.output.contains("panicked"), "{end:?}");
    end
}

fn directory(folder: &tempfile::TempDir) -> String {
    folder.path().join("data").display().to_string()
}

/// A server that codeQ's environment started takes tasks with codeQ's tokens; nothing but the environment is given.
#[test]
fn codeq_s_environment_starts_it_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let persistence = format!(r#"{{"path": "{}", "numShards": 4}}"#, directory(&folder));
    let producer =
        r#"{"token": "dev-token", "subject": "producer", "raw": {"tenantId": "dev-tenant", "role": "ADMIN"}}"#;
    let worker = r#"{"token": "dev-token", "subject": "worker", "eventTypes": ["*"], "scopes": ["codeq:claim", "codeq:result"], "raw": {"tenantId": "dev-tenant"}}"#;
    // The port is free when it is looked for; somebody else may be quicker.
    let (mut server, addr) = loop {
        let [port, peers] = free_ports().map(|port| port.to_string());
        let (bind, list) = (format!(":{peers}"), format!("node-a=node-a:{peers}"));
        let environment = [
            ("PORT", port.as_str()),
            ("ENV", "production"),
            ("LOG_LEVEL", "warn"),
            ("LOG_FORMAT", "json"),
            ("PERSISTENCE_PROVIDER", "pebble"),
            ("PERSISTENCE_CONFIG", &persistence),
            ("RAFT_ENABLED", "true"),
            ("RAFT_SELF_ID", "node-a"),
            ("RAFT_BIND_ADDR", bind.as_str()),
            ("RAFT_PEERS", &list),
            ("RAFT_BOOTSTRAP", "true"),
            ("RAFT_MUX_ENABLED", "true"),
            ("PRODUCER_AUTH_PROVIDER", "static"),
            ("PRODUCER_AUTH_CONFIG", producer),
            ("WORKER_AUTH_PROVIDER", "static"),
            ("WORKER_AUTH_CONFIG", worker),
            ("DEFAULT_LEASE_SECONDS", "60"),
            ("REDIS_ADDR", "redis:6379"),
            ("TIMEZONE", "UTC"),
        ];
        let mut server = Codeq::start(&["serve"], &environment);
        // Raft's lines are shown in spite of LOG_LEVEL.
        let line = server.wait_for_one(&["raft.leader.ready", "is in use"]);
        if !line.contains("is in use") {
            break (server, format!("127.0.0.1:{port}"));
        }
    };
    while server.output.matches("raft.leader.ready").count() < 4 {
        server.wait_for("raft.leader.ready");
    }
    for line in server.output.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("every line is JSON");
        assert!(["ts", "level", "target", "msg"].iter().all(|name| line[name].is_string()), "{line}");
    }
    assert!(server.output.contains("weak token"), "{}", server.output);
    assert_eq!(request(&addr, "/v1/codeq/tasks", None, Some(CREATE)).unwrap().status, 401);
    let created = request(&addr, "/v1/codeq/tasks", Some("dev-token"), Some(CREATE)).unwrap();
    assert_eq!((created.status, &created.json()["tenantId"]), (202, &"dev-tenant".into()));
    let claimed = request(&addr, "/v1/codeq/tasks/claim", Some("dev-token"), Some("{}")).unwrap().json();
    assert_eq!(claimed["id"], created.json()["id"]);
    assert_eq!(server.stop(Signal::SIGTERM).status, Some(0));
}

/// The first sentence says what the server does.
#[test]
fn the_start_line_says_what_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let directory = directory(&folder);
    let (server, addr) =
        Codeq::serve(&directory, &["--shards", "2", "--node-id", "node-a", "--storage-durability", "buffered"]);
    let line = server.output.lines().last().expect("there are lines").to_owned();
    let line: serde_json::Value = serde_json::from_str(&line).expect("it is JSON");
    let expected = format!(
        "node node-a listens on http://{addr}, data in {directory}, 2 shards, durability buffered, synced every 50ms, single node, \
         open to this machine's users"
    );
    assert_eq!(line["msg"], expected);
    assert!(!addr.ends_with(":0"));
    assert_eq!(server.stop(Signal::SIGTERM).status, Some(0));
}

#[test]
fn a_port_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let end = refused(&["serve", "--http-addr", &addr.to_string(), "--data-dir", &directory(&folder)], 1);
    let text = format!(
        "port {} is in use ({addr}); stop whoever listens there, or choose another one with --http-addr",
        addr.port()
    );
    assert!(end.output.contains(&text), "{end:?}");
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let directory = file.join("data").display().to_string();
    let end = refused(&["serve", "--http-addr", "127.0.0.1:0", "--data-dir", &directory], 1);
    assert!(end.output.contains(&format!("cannot make the data directory {directory}: Not a directory")), "{end:?}");
}

#[test]
fn a_directory_in_use_is_named_with_its_holder() {
    let folder = tempfile::tempdir().unwrap();
    let directory = directory(&folder);
    let (server, _) = Codeq::serve(&directory, &[]);
    let end = refused(&["serve", "--http-addr", "127.0.0.1:0", "--data-dir", &directory], 1);
    let text =
        format!("another process uses this data directory ({directory}/lock is held by process {})", server.id());
    assert!(end.output.contains(&text), "{end:?}");
    assert_eq!(server.stop(Signal::SIGTERM).status, Some(0));
}

/// What a directory was made with stays; nothing was opened when it is refused.
#[test]
fn other_fixed_settings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let directory = directory(&folder);
    let (server, _) = Codeq::serve(&directory, &["--shards", "2", "--node-id", "node-a"]);
    assert_eq!(server.stop(Signal::SIGTERM).status, Some(0));
    let args =
        ["serve", "--http-addr", "127.0.0.1:0", "--data-dir", &directory, "--shards", "3", "--node-id", "node-b"];
    let end = run(&args, &[]);
    assert_eq!(end.status, Some(2), "{end:?}");
    for (given, recorded) in
        [("shards = 3 (flag --shards)", "2"), ("cluster.nodeId = node-b (flag --node-id)", "node-a")]
    {
        let text = format!(
            "{given} is fixed when a data directory is made, and dataDir = {directory} (flag --data-dir) has {recorded}; use {recorded}, \
             or another directory"
        );
        assert!(end.output.contains(&text), "{end:?}");
    }
}

#[test]
fn damaged_data_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let directory = directory(&folder);
    let (server, _) = Codeq::serve(&directory, &[]);
    assert_eq!(server.stop(Signal::SIGTERM).status, Some(0));
    let identity = format!("{directory}/identity");
    let text = std::fs::read_to_string(&identity).unwrap();
    std::fs::write(&identity, text.replace("shards = 1", "shards = 2")).unwrap();
    let end = refused(&["serve", "--http-addr", "127.0.0.1:0", "--data-dir", &directory], 8);
    assert!(end.output.contains(&format!("{identity} is damaged")), "{end:?}");
    // A directory of somebody else's is not taken over either.
    std::fs::remove_file(&identity).unwrap();
    let end = refused(&["serve", "--http-addr", "127.0.0.1:0", "--data-dir", &directory], 8);
    assert!(end.output.contains("it has no identity file, but holds "), "{end:?}");
}

/// Whoever was told that a task exists finds it after the next start, also if the server was stopped while many were writing.
#[test]
fn a_stop_under_load_is_clean_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let directory = directory(&folder);
    let (server, addr) = Codeq::serve(&directory, &["--shards", "2"]);
    let (sender, acknowledged) = channel();
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let (addr, sender) = (addr.clone(), sender.clone());
            std::thread::spawn(move || {
                let body = format!(r#"{{"command":"q{number}","payload":{{}}}}"#);
                // Until the server has gone: then nobody takes the connection.
                while let Ok(answer) = request(&addr, "/v1/codeq/tasks", None, Some(&body)) {
                    if answer.status == 202 {
                        sender.send(answer.json()["id"].as_str().unwrap().to_owned()).unwrap();
                    }
                }
            })
        })
        .collect();
    drop(sender);
    let mut ids: Vec<String> = acknowledged.iter().take(100).collect();
    let end = server.stop(Signal::SIGTERM);
    assert_eq!(end.status, Some(0), "{end:?}");
    assert!(!end.output.contains("\"level\":\"error\""), "{end:?}");
    clients.into_iter().for_each(|client| client.join().unwrap());
    ids.extend(acknowledged);

    let (server, addr) = Codeq::serve(&directory, &["--shards", "2"]);
    for id in ids {
        let found = request(&addr, &format!("/v1/codeq/tasks/{id}"), None, None).unwrap();
        assert_eq!(found.status, 200, "{id} is lost: {found:?}");
    }
    assert_eq!(server.stop(Signal::SIGINT).status, Some(0));
}

/// A stop waits for a request under way, and does not once it is asked again.
#[test]
fn a_second_signal_ends_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--drain-timeout", "5m", "--http-body-timeout", "10m"];
    let (mut server, addr) = Codeq::serve(&directory(&folder), &args);
    let mut half = TcpStream::connect(&addr).unwrap();
    let head = "Content-Length: 100\r\nExpect: 100-continue\r\n\r\n";
    write!(half, "POST /v1/codeq/tasks HTTP/1.1\r\nHost: {addr}\r\n{head}").unwrap();
    // The server asks for the body, so the request is under way.
    let mut asked = [0; 12];
    half.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"HTTP/1.1 100");
    server.signal(Signal::SIGTERM);
    server.wait_for("server.stopping");
    let end = server.stop(Signal::SIGTERM);
    assert_eq!(end.status, Some(1), "{end:?}");
    assert!(end.output.contains("stopped at once, by a second signal"), "{end:?}");
}
