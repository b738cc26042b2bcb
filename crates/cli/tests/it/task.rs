//! Tasks by the command line: by hand, and by programs that a worker runs.

use std::io::Write;
use std::process::{Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::process::{Codeq, End, codeq, eventually, run};

/// A server in memory, and whoever asks it.
pub(crate) struct Asked {
    url: String,
    server: Codeq,
}

impl Asked {
    pub(crate) fn start(more: &[&str]) -> Asked {
        let mut args = vec!["serve", "--http-addr", "127.0.0.1:0", "--storage", "memory"];
        args.extend(more);
        let mut server = Codeq::start(&args, &[]);
        let line = server.wait_for("server.started");
        let addr = line.split("http://").nth(1).and_then(|rest| rest.split(',').next());
        Asked { url: format!("http://{}", addr.expect("the line names the address")), server }
    }

    pub(crate) fn run(&self, args: &[&str]) -> End {
        run(args, &[("CODEQ_ENDPOINTS", &self.url)])
    }

    /// The JSON value that a command prints.
    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let end = self.run(&[args, &["-o", "json"]].concat());
        assert_eq!(end.status, Some(0), "{end:?}");
        serde_json::from_str(&end.output).unwrap_or_else(|why| panic!("{why}: {end:?}"))
    }

    /// The id of a new task.
    pub(crate) fn create(&self, command: &str, payload: &str, more: &[&str]) -> String {
        let task = self.json(&[&["task", "create", command, payload], more].concat());
        task["id"].as_str().expect("it has an id").to_owned()
    }

    pub(crate) fn state(&self, id: &str) -> Value {
        self.json(&["task", "get", id])["state"].clone()
    }

    /// A worker of this shell line.
    fn worker(&self, queue: &str, more: &[&str], line: &str) -> Codeq {
        let args = [&["worker", "run", "--queue", queue], more, &["--", "sh", "-c", line]].concat();
        Codeq::start(&args, &[("CODEQ_ENDPOINTS", &self.url), ("PATH", "/usr/bin:/bin")])
    }

    pub(crate) fn stop(self) {
        assert_eq!(self.server.stop(Signal::SIGTERM).status, Some(0));
    }
}

/// Runs it with this on its standard input.
fn with_input(args: &[&str], url: &str, input: &str) -> Output {
    let mut command = codeq(args, &[("CODEQ_ENDPOINTS", url)]);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("the program can be run");
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

/// A task through its life, step by step; each step shows in the queue's numbers.
#[test]
fn a_task_goes_through_its_life_by_hand() {
    let asked = Asked::start(&[]);
    let stats = || {
        let stats = asked.json(&["queue", "stats", "mail"]);
        ["ready", "delayed", "inProgress", "dlq"].map(|name| stats[name].as_u64().expect("it is a count"))
    };
    let id = asked.create("mail", r#"{"n":12345678901234567890123}"#, &["--priority", "5", "--idempotency-key", "k"]);
    assert_eq!(
        asked.create("mail", r#"{"n":12345678901234567890123}"#, &["--priority", "5", "--idempotency-key", "k"]),
        id
    );
    assert_eq!(stats(), [1, 0, 0, 0]);
    let claimed = asked.json(&["task", "claim", "mail", "sms", "--lease", "1m", "--wait", "5s"]);
    let token = claimed["leaseToken"].as_str().unwrap();
    assert_eq!((&claimed["id"], &claimed["leaseMs"]), (&Value::from(id.as_str()), &Value::from(60_000)));
    let held = ["--lease-token", token];
    let beat = asked.json(&[&["task", "heartbeat", &id, "--extend", "2m"], &held[..]].concat());
    assert!(beat["leaseMs"].as_u64().unwrap() > 60_000, "{beat}");
    let nacked = asked.json(&[&["task", "nack", &id, "--reason", "busy", "--delay", "1h"], &held[..]].concat());
    assert_eq!(nacked["status"], "requeued");
    assert_eq!(stats(), [0, 1, 0, 0]);
    let shown = asked.run(&["task", "get", &id]);
    let fields: Vec<Vec<&str>> = shown.output.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(fields.contains(&vec!["payload", "{\"n\":12345678901234567890123}"]), "{}", shown.output);
    assert!(fields.contains(&vec!["lastError", "busy"]), "{}", shown.output);
    assert_eq!(asked.json(&["task", "cancel", &id, "--reason", "no need"])["state"], "CANCELLED");
    assert_eq!(asked.run(&["task", "watch", &id]).status, Some(1), "it was not completed");
    assert_eq!(asked.json(&["task", "redrive", &id])["state"], "READY");
    let token = asked.json(&["task", "claim", "mail"])["leaseToken"].as_str().unwrap().to_owned();
    assert_eq!(asked.json(&["task", "abandon", &id, "--lease-token", &token])["status"], "requeued");
    let token = asked.json(&["task", "claim", "mail"])["leaseToken"].as_str().unwrap().to_owned();
    let done = asked.json(&["task", "complete", &id, "--lease-token", &token, r#"{"sent":true}"#]);
    assert_eq!(done["status"], "COMPLETED");
    let history = asked.run(&["task", "history", &id]);
    let told: Vec<&str> = history.output.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    let happened = ["created", "claimed", "extended", "retry", "cancelled", "redriven", "claimed", "released"];
    assert_eq!(told, [&["TYPE"], &happened[..], &["claimed", "completed"]].concat(), "{history:?}");
    assert_eq!(asked.run(&["task", "history", &id, "--limit", "2", "-o", "json"]).output.lines().count(), 3);
    let watched = asked.json(&["task", "watch", &id]);
    assert_eq!(watched["result"], serde_json::json!({"sent": true}));
    assert_eq!(stats(), [0, 0, 0, 0]);
    asked.stop();
}

/// What goes wrong has a status of its own, and says what.
#[test]
fn exit_statuses_tell_what_went_wrong() {
    let asked = Asked::start(&[]);
    let unknown = "0198c4a2-0000-7000-8000-000000000000";
    let id = asked.create("mail", "1", &[]);
    for (args, status, text) in [
        (&["task", "claim", "none"][..], 10, "there is no task to claim"),
        (&["task", "get", unknown], 10, "task_not_found"),
        (&["task", "watch", &id, "--for", "0s"], 10, "it has not ended"),
        (&["task", "complete", &id, "--lease-token", "x"], 11, "lease_lost"),
        (&["task", "create", "no such name", "1"], 1, "invalid_command"),
        (&["task", "create", "mail", "hello"], 1, "this is not JSON"),
        (&["task", "create", "mail", "1", "--priority", "10"], 2, "--priority"),
        (&["task", "get", &id, "--endpoints", "ftp://a"], 1, "http://"),
        (&["task", "get", &id, "--endpoints", "http://127.0.0.1:1", "--timeout", "100ms"], 3, "no server answers"),
        (&["task", "get", &id, "--profile", "far"], 1, "there is no profile \"far\""),
    ] {
        // The variable would win over the profile.
        let variables: &[(&str, &str)] = &[("CODEQ_ENDPOINTS", &asked.url), ("CODEQ_CONFIG_DIR", "/nonexistent")];
        let is_profile = args.contains(&"--profile");
        let end = run(args, &variables[usize::from(is_profile)..]);
        assert_eq!(end.status, Some(status), "{args:?}: {end:?}");
        assert!(end.output.contains(text), "{args:?}: {end:?}");
    }
    asked.stop();
}

/// Tasks from lines, and a payload from the standard input.
#[test]
fn payloads_come_from_the_standard_input() {
    let asked = Asked::start(&[]);
    let lines: String = (0..2500).map(|number| format!("{{\"n\":{number}}}\n")).collect();
    let made = with_input(&["task", "create", "many", "--lines"], &asked.url, &lines);
    assert!(made.status.success(), "{made:?}");
    assert_eq!(String::from_utf8_lossy(&made.stdout).lines().count(), 2500);
    assert_eq!(asked.json(&["queue", "stats", "many"])["ready"], 2500);
    // Several calls are under way at a time: which of them is the first is left open.
    let first = asked.json(&["task", "claim", "many"]);
    assert!(first["payload"]["n"].as_u64().is_some_and(|number| number < 2500), "{first}");
    let one = with_input(&["task", "create", "one", "-o", "json"], &asked.url, "[1,\n2]");
    let one: Value = serde_json::from_slice(&one.stdout).unwrap();
    assert_eq!(one["payload"], serde_json::json!([1, 2]));
    let bad = with_input(&["task", "create", "bad", "--lines"], &asked.url, "1\nno\n3\n");
    assert_eq!(bad.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("line 2 is not JSON"), "{bad:?}");
    asked.stop();
}

/// Servers and token of a profile, which a variable and a flag win over.
#[test]
fn a_profile_says_which_servers() {
    let asked = Asked::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let profiles = format!(
        "[default]\nendpoints = [\"http://127.0.0.1:1\", \"{}\"]\n[dead]\nendpoints = [\"http://127.0.0.1:1\"]\n",
        asked.url
    );
    std::fs::write(folder.path().join("profiles.toml"), profiles).unwrap();
    let directory = folder.path().display().to_string();
    let stats = |more: &[&str], environment: &[(&str, &str)]| {
        let environment = [&[("CODEQ_CONFIG_DIR", directory.as_str())], environment].concat();
        run(&[&["queue", "stats", "mail", "--timeout", "2s"], more].concat(), &environment).status
    };
    assert_eq!(stats(&[], &[]), Some(0));
    assert_eq!(stats(&["--profile", "dead"], &[]), Some(3));
    assert_eq!(stats(&[], &[("CODEQ_PROFILE", "dead")]), Some(3));
    assert_eq!(stats(&["--profile", "dead", "--endpoints", &asked.url], &[]), Some(0));
    asked.stop();
}

/// A program's exit status decides what becomes of its task; what it prints is the result, what it complains about the reason.
#[test]
fn programs_work_on_tasks() {
    let asked = Asked::start(&["--queue-backoff-policy", "fixed", "--queue-backoff-base", "1ms"]);
    let line = r#"read payload
        case $payload in
        1) echo '{"id":"'$CODEQ_TASK_ID'"}' ;;
        2) echo plain; echo text ;;
        3) echo never >&2; exit 65 ;;
        4) test -e "$CODEQ_TASK_ID" && exit 0; exit 7 ;;
        esac"#;
    let ids: Vec<String> = ["1", "2", "3", "4"].map(|n| asked.create("work", n, &["--max-attempts", "2"])).into();
    // The last one takes two runs.
    let worker = asked.worker("work", &["--slots", "2", "--tasks", "5"], line);
    let end = worker.end();
    assert_eq!(end.status, Some(0), "{end:?}");
    assert!(end.output.contains("2 completed, 1 failed, 2 to be tried again, 0 given back, 0 lost"), "{end:?}");
    let ended = ids.iter().map(|id| {
        let task = asked.json(&["task", "get", id]);
        let end = asked.run(&["task", "watch", id, "-o", "json"]);
        let result: Value = serde_json::from_str(&end.output).unwrap();
        (task["state"].clone(), result["result"].clone(), result["error"].clone())
    });
    let ended: Vec<_> = ended.collect();
    assert_eq!(ended[0], ("COMPLETED".into(), serde_json::json!({"id": ids[0]}), Value::Null));
    assert_eq!(ended[1], ("COMPLETED".into(), serde_json::json!({"output": "plain\ntext"}), Value::Null));
    assert_eq!(ended[2], ("FAILED".into(), Value::Null, "exit status 65: never".into()));
    assert_eq!(ended[3], ("DEAD".into(), Value::Null, "exit status 7".into()));
    asked.stop();
}

/// SIGTERM: what is begun is finished, and nothing more; a program that does not end in time is killed and its task given back; one that is
/// asked to stop and says so as well.
#[test]
fn a_worker_that_is_asked_to_stop_loses_nothing() {
    let asked = Asked::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let go = folder.path().join("go");
    let ids = ["quick", "polite", "stubborn"].map(|kind| asked.create("work", &format!("\"{kind}\""), &[]));
    let line = format!(
        r#"read payload; echo "began $payload" >&2
        case $payload in
        *quick*) while ! test -e {go}; do sleep 0.02; done; echo done ;;
        *polite*) trap 'exit 75' TERM; while :; do sleep 0.02; done ;;
        *) trap '' TERM; while :; do sleep 0.02; done ;;
        esac"#,
        go = go.display()
    );
    let mut worker = asked.worker("work", &["--slots", "3", "--drain", "1s", "--stop", "500ms"], &line);
    for _ in 0..3 {
        worker.wait_for("began");
    }
    worker.signal(Signal::SIGTERM);
    worker.wait_for("stopping");
    std::fs::write(&go, "").unwrap();
    let end = worker.end();
    assert_eq!(end.status, Some(0), "{end:?}");
    assert!(end.output.contains("1 completed, 0 failed, 0 to be tried again, 2 given back, 0 lost"), "{end:?}");
    let attempts = |id| asked.json(&["task", "get", id])["attempts"].clone();
    assert_eq!(asked.state(&ids[0]), "COMPLETED");
    assert_eq!([asked.state(&ids[1]), asked.state(&ids[2])], ["READY", "READY"]);
    assert_eq!([attempts(&ids[1]), attempts(&ids[2])], [Value::Null, Value::Null], "no attempt is counted");
    asked.stop();
}

/// A worker is killed with its task in hand: the lease ends, and another worker does it.
#[test]
fn a_task_of_a_killed_worker_is_done_by_another() {
    let asked = Asked::start(&["--queue-backoff-policy", "fixed", "--queue-backoff-base", "1ms"]);
    let id = asked.create("work", "1", &[]);
    let mut first = asked.worker("work", &["--lease", "1s"], "echo began >&2; exec sleep 5");
    first.wait_for("began");
    first.signal(Signal::SIGKILL);
    drop(first);
    let second = asked.worker("work", &["--tasks", "1"], "echo $CODEQ_TASK_ATTEMPT");
    assert_eq!(second.end().status, Some(0));
    let task = asked.json(&["task", "get", &id]);
    assert_eq!((&task["state"], &task["attempts"]), (&"COMPLETED".into(), &2.into()));
    asked.stop();
}

/// A lease of a second is kept while a program works for longer, and a cancelled task's program is asked to stop.
#[test]
fn a_lease_is_kept_and_a_cancelled_program_stops() {
    let asked = Asked::start(&[]);
    let id = asked.create("work", "1", &[]);
    let mut worker = asked.worker("work", &["--lease", "1s", "--tasks", "1"], "echo began >&2; exec sleep 60");
    worker.wait_for("began");
    let until = || asked.json(&["task", "get", &id])["leaseUntil"].as_str().expect("it is held").to_owned();
    let first = until();
    eventually("the lease is extended", || (until() > first).then_some(()));
    assert_eq!(asked.json(&["task", "cancel", &id])["cancelRequested"], true);
    let begun = std::time::Instant::now();
    assert_eq!(worker.end().status, Some(0));
    assert!(begun.elapsed() < Duration::from_secs(30), "it did not wait for the program's own end");
    assert_eq!(asked.state(&id), "CANCELLED");
    asked.stop();
}

/// Shells and `man` are told of every command.
#[test]
fn shells_and_man_know_the_commands() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completion", shell], &[]);
        assert_eq!(script.status, Some(0));
        assert!(script.output.contains("heartbeat"), "{shell}");
        let file = folder.path().join(shell);
        std::fs::write(&file, &script.output).unwrap();
        if shell == "bash" {
            let checked = std::process::Command::new("bash").arg("-n").arg(&file).status().unwrap();
            assert!(checked.success());
        }
    }
    let pages = folder.path().join("man").display().to_string();
    assert_eq!(run(&["man", "--out", &pages], &[]).status, Some(0));
    let page = std::fs::read_to_string(folder.path().join("man/codeq-task-create.1")).unwrap();
    assert!(page.contains("codeq task create") || page.contains("codeq\\-task\\-create"), "{page}");
    assert!(folder.path().join("man/codeq.1").exists() && folder.path().join("man/codeq-worker-run.1").exists());
}
