//! What happens, by the command line, through failures of servers.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::{Plain, TASKS};
use crate::process::{Codeq, End, eventually, ready, request};

fn create(addr: &str, key: &str) -> String {
    let body = format!(r#"{{"command":"mail","payload":{{}},"idempotencyKey":"{key}"}}"#);
    let created = eventually("a task is created", || {
        request(addr, TASKS, None, Some(&body)).ok().filter(|answer| answer.status < 300)
    });
    created.json()["id"].as_str().expect("it has an id").to_owned()
}

/// Goal: whoever follows a cluster sees each event once, under its id, although the server that told them is killed; what happened while nobody was
/// connected is not missing.
#[test]
fn events_are_followed_from_node_to_node() {
    let plain = Plain::new();
    let list = plain.list();
    let listed = ["--initial-cluster", &list];
    let mut nodes: Vec<Codeq> = (0..3).map(|place| plain.start(place, &listed)).collect();
    (0..3).for_each(|place| ready(&plain.addr(place)));
    let all = (0..3).map(|place| plain.addr(place)).collect::<Vec<_>>().join(",");
    let args = ["events", "-o", "json", "--type", "task.created", "--queue", "mail", "--endpoints", &all];
    let mut follower = Codeq::start(&args, &[]);
    eventually("somebody follows", || {
        let metrics = request(&plain.addr(0), "/metrics", None, None).ok()?;
        metrics.body.contains("codeq_event_streams 1").then_some(())
    });
    let first = create(&plain.addr(1), "first");
    follower.wait_for(&first);
    nodes.remove(0).stop(Signal::SIGKILL);
    let mut made = vec![first];
    made.extend((0..20).map(|number| create(&plain.addr(1), &format!("k{number}"))));
    let last = made.last().expect("some were made").clone();
    follower.wait_for(&last);
    let End { output, .. } = follower.stop(Signal::SIGTERM);
    let told: Vec<Value> = output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let ids: Vec<&str> = told.iter().map(|event| event["data"]["taskId"].as_str().expect("it has one")).collect();
    assert_eq!(ids, made, "{output}");
    let mut numbers: Vec<&str> = told.iter().map(|event| event["id"].as_str().expect("it has one")).collect();
    numbers.dedup();
    assert_eq!(numbers.len(), made.len(), "{output}");
    crate::cluster::stop(nodes);
}
