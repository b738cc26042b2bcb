//! The shell lines of the tutorial and the guides, as a reader types them: a document is one session, from its first block to its last, with a
//! server of its own. What a comment `<!-- run: skip REASON -->` stands before is left out.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::process::Codeq;

/// The blocks for a shell, each with a line in front that tells where it begins.
fn script(text: &str) -> String {
    let (mut script, mut is_open, mut is_skipped) = (String::new(), false, false);
    for (number, line) in text.lines().enumerate() {
        match line {
            "```sh" => {
                is_open = true;
                if !is_skipped {
                    script += &format!("echo '-- line {}'\n", number + 1);
                }
            }
            "```" => (is_open, is_skipped) = (false, false),
            _ if is_open && !is_skipped => script += &format!("{line}\n"),
            _ if line.starts_with("<!-- run: skip ") => is_skipped = true,
            _ => {}
        }
    }
    script
}

/// Every line succeeds.
#[track_caller]
fn check(document: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(document);
    let script = script(&std::fs::read_to_string(path).expect("there is such a document"));
    assert!(script.contains("codeq"), "there is something to run");
    let mut server = Codeq::start(&["serve", "--http-addr", "127.0.0.1:0", "--storage", "memory"], &[]);
    let line = server.wait_for("server.started");
    let addr =
        line.split("http://").nth(1).and_then(|rest| rest.split(',').next()).expect("the line names the address");
    let folder = tempfile::tempdir().expect("there is room");
    let programs = Path::new(env!("CARGO_BIN_EXE_codeq")).parent().expect("it is in a folder");
    let session = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &format!("exec 2>&1\n{script}")])
        .current_dir(folder.path())
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
        .env("CODEQ_ENDPOINTS", format!("http://{addr}"))
        .stdin(Stdio::null())
        .output()
        .expect("there is bash");
    let said = String::from_utf8_lossy(&session.stdout);
    assert!(session.status.success(), "{document} fails: {}\n{said}", session.status);
    assert_eq!(server.stop(Signal::SIGTERM).status, Some(0));
}

#[test]
fn the_tutorial_runs() {
    check("docs/tutorial.md");
}

#[test]
fn the_guide_for_producers_runs() {
    check("docs/guides/producers.md");
}

#[test]
fn the_guide_for_workers_runs() {
    check("docs/guides/workers.md");
}

#[test]
fn the_guide_to_the_command_line_runs() {
    check("docs/guides/cli.md");
}

/// A block that is skipped is, and the next one is not.
#[test]
fn blocks_are_found() {
    let text = "a\n<!-- run: skip it never ends -->\n```sh\nb\n```\n```text\nc\n```\n```sh\nd\n```\n";
    assert_eq!(script(text), "echo '-- line 9'\nd\n");
}
