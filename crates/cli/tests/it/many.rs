//! Queues, dead letters and many tasks at once by the command line.

use serde_json::Value;

use crate::task::Asked;

/// The first cells of the lines below the header.
fn first_cells(output: &str) -> Vec<&str> {
    output.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect()
}

/// So many dead letters of a queue.
fn dead(asked: &Asked, queue: &str, count: usize) -> Vec<String> {
    let die = |number: usize| {
        let id = asked.create(queue, &number.to_string(), &["--max-attempts", "1"]);
        let task = asked.json(&["task", "claim", queue]);
        let token = task["leaseToken"].as_str().expect("it has a token").to_owned();
        let reason = format!("timeout after {number} ms");
        assert_eq!(asked.run(&["task", "nack", &id, "--lease-token", &token, "--reason", &reason]).status, Some(0));
        id
    };
    (0..count).map(die).collect()
}

/// Goal: a paused queue gives nothing, says why, and is among the paused ones until it is resumed.
#[test]
fn a_queue_is_paused_and_resumed() {
    let asked = Asked::start(&[]);
    asked.create("mail", "1", &[]);
    let paused = asked.json(&["queue", "pause", "mail", "--reason", "relay down", "--for", "1h"]);
    assert_eq!((&paused["paused"], &paused["pauseReason"]), (&true.into(), &"relay down".into()));
    assert_eq!(asked.run(&["task", "claim", "mail"]).status, Some(10));
    let end = asked.run(&["queue", "list", "--paused"]);
    assert!(end.output.contains("relay down"), "{end:?}");
    assert_eq!(asked.json(&["queue", "resume", "mail"])["paused"], Value::Bool(false));
    assert_eq!(first_cells(&asked.run(&["queue", "list", "--paused"]).output).len(), 0);
    assert_eq!(first_cells(&asked.run(&["queue", "list", "--non-empty"]).output), ["mail"]);
    assert_eq!(asked.run(&["task", "claim", "mail"]).status, Some(0));
    assert_eq!(asked.run(&["queue", "pause", "no such name"]).status, Some(1));
    assert_eq!(asked.run(&["queue", "pause", "mail", "--for", "40d"]).status, Some(1));
    asked.stop();
}

/// Goal: dead letters are listed, grouped, counted, brought back and deleted; what deletes must be confirmed.
#[test]
fn dead_letters_are_looked_through_redriven_and_purged() {
    let asked = Asked::start(&[]);
    let ids = dead(&asked, "mail", 3);
    dead(&asked, "sms", 2);
    let listed = asked.run(&["dlq", "list", "--queue", "mail"]);
    assert_eq!(first_cells(&listed.output), ids.iter().rev().map(String::as_str).collect::<Vec<_>>(), "{listed:?}");
    let one = asked.run(&["dlq", "list", "--limit", "1"]);
    assert!(one.output.contains("--limit"), "{one:?}");
    let groups = asked.run(&["dlq", "groups"]);
    let fingerprints = first_cells(&groups.output);
    assert_eq!(fingerprints.len(), 2, "{groups:?}");
    let counted = asked.json(&["dlq", "redrive", "--dry-run"]);
    assert_eq!((&counted["changed"], &counted["state"]), (&5.into(), &"SUCCEEDED".into()));
    let back = asked.json(&["dlq", "redrive", "--fingerprint", fingerprints[0], "--priority", "9"]);
    assert_eq!(back["changed"], 3, "{back}");
    assert_eq!(asked.state(&ids[0]), "READY");
    let refused = asked.run(&["dlq", "purge"]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert!(refused.output.contains("confirm"), "{refused:?}");
    let begun = asked.json(&["dlq", "purge", "--yes", "--detach"]);
    let id = begun["operationId"].as_str().expect("it has an id");
    assert_eq!(asked.json(&["operation", "show", id, "--wait"])["changed"], 2);
    assert_eq!(first_cells(&asked.run(&["operation", "list"]).output).len(), 3);
    assert_eq!(asked.run(&["operation", "stop", id]).status, Some(1), "it has ended");
    assert_eq!(asked.run(&["operation", "show", "op-1"]).status, Some(10));
    asked.stop();
}

/// Goal: tasks are listed by what they are, edited while they wait, cancelled many at a time, and a queue is emptied.
#[test]
fn tasks_are_listed_edited_cancelled_and_purged() {
    let asked = Asked::start(&[]);
    let ids: Vec<String> = (0..3).map(|n| asked.create("mail", &n.to_string(), &[])).collect();
    let other = asked.create("sms", "1", &["--delay", "1h"]);
    let edited = asked.json(&["task", "edit", &ids[0], "--priority", "9", "--payload", "[12345678901234567890123]"]);
    assert_eq!(edited["priority"], 9);
    let shown = asked.run(&["task", "get", &ids[0], "-o", "json"]);
    assert!(shown.output.contains("[12345678901234567890123]"), "{shown:?}");
    assert_eq!(asked.run(&["task", "edit", &ids[0]]).status, Some(1), "nothing is to be changed");
    let listed = asked.run(&["task", "list", "--queue", "mail", "--state", "ready"]);
    assert_eq!(first_cells(&listed.output), ids.iter().rev().map(String::as_str).collect::<Vec<_>>(), "{listed:?}");
    assert_eq!(first_cells(&asked.run(&["task", "list", "--state", "DELAYED"]).output), [other.as_str()]);
    let lines = asked.run(&["task", "list", "--priority-is", "9", "-o", "json"]).output;
    let task: Value = serde_json::from_str(lines.trim()).expect("one task in a line");
    assert_eq!(task["id"], ids[0].as_str());
    assert_eq!(asked.run(&["task", "cancel-many"]).status, Some(1), "all tasks of the tenant are too many");
    let cancelled = asked.json(&["task", "cancel-many", "--queue", "mail", "--priority-is", "0", "--reason", "typo"]);
    assert_eq!(cancelled["changed"], 2);
    assert_eq!((asked.state(&ids[1]), asked.state(&ids[0])), ("CANCELLED".into(), "READY".into()));
    let refused = asked.run(&["queue", "purge", "sms"]);
    assert_eq!(refused.status, Some(1), "{refused:?}");
    assert_eq!(asked.json(&["queue", "purge", "sms", "--yes", "--state", "ready"])["changed"], 0);
    assert_eq!(asked.json(&["queue", "purge", "sms", "--yes"])["changed"], 1);
    assert_eq!(asked.run(&["task", "get", &other]).status, Some(10));
    asked.stop();
}
