//! Thousands of real files, workers killed in the middle, and the program `sha256sum` as the judge.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use testserver::TestServer;

/// Files at most.
const FILES: usize = 3000;
const LONG: Duration = Duration::from_secs(120);

/// One part of the example.
fn part(url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_checksum_tree"));
    command.args(args).env("CODEQ_ENDPOINTS", url).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A worker; it is killed when the test forgets it.
struct Worker(Child);

impl Worker {
    fn start(url: &str) -> Worker {
        let mut command = part(url, &["work", "--lease-seconds", "1"]);
        Worker(command.stdout(Stdio::null()).spawn().expect("the program can be run"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SIGKILL: it has no time for last words. It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn with_input(mut command: Command, input: Vec<u8>) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().expect("the program can be run");
    let mut stdin = child.stdin.take().expect("it is piped");
    // It may print before it has read everything.
    let feeding = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().expect("it ends");
    feeding.join().expect("it does not panic").expect("it reads everything");
    output
}

/// Real files that everybody has who builds this: the sources of other people's crates.
fn folder() -> PathBuf {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let sources = home.map(|home| home.join("registry").join("src")).filter(|folder| folder.is_dir());
    sources.unwrap_or_else(|| "/usr/share".into())
}

/// Every file has the sum that `sha256sum` computes, though two of three workers are killed twice while they work.
#[tokio::test]
async fn sums_agree_though_workers_are_killed() {
    let server = TestServer::with(&[("queue.backoff.policy", "fixed"), ("queue.backoff.base", "10ms")]).await;
    let url = server.url();
    let folder = folder().display().to_string();
    let enqueued = part(&url, &["enqueue", &folder, "--most", &FILES.to_string()]).output().expect("it runs");
    assert!(enqueued.status.success(), "{enqueued:?}");
    let lines = String::from_utf8(enqueued.stdout).expect("paths are text");
    let ids: Vec<&str> = lines.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(ids.len() >= 1000, "there are only {} files below {folder}", ids.len());

    let client = server.client();
    let mut workers: Vec<Worker> = (0..3).map(|_| Worker::start(&url)).collect();
    for third in [1, 2] {
        let far = client.finished(ids[ids.len() * third / 3], LONG).await.expect("the server answers");
        assert!(far.is_some(), "the workers get as far");
        workers.drain(..2);
        workers.extend((0..2).map(|_| Worker::start(&url)));
    }
    let collected = with_input(part(&url, &["collect"]), lines.clone().into_bytes());
    assert!(collected.status.success(), "{}", String::from_utf8_lossy(&collected.stderr));
    assert_eq!(collected.stdout.iter().filter(|byte| **byte == b'\n').count(), ids.len());

    let mut judge = Command::new("sha256sum");
    judge.args(["--check", "--quiet"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let judged = with_input(judge, collected.stdout);
    assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stdout));

    let counts = client.queue("checksum").await.expect("the server answers");
    assert_eq!((counts.ready, counts.delayed, counts.in_progress, counts.dlq), (0, 0, 0, 0));
    drop(workers);
    server.stop().await;
}
