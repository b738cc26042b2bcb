//! An operator at the command line: a cluster grows and shrinks while it is used, leaders change, and what would break it is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::sys::signal::Signal;

use crate::cluster::{Plain, TASKS, stop};
use crate::process::{Codeq, End, eventually, free_ports, ready, request};

/// Creates tasks at a server until it is told to stop; every one must be taken. Returns how many.
fn load(addr: String) -> (Arc<AtomicBool>, JoinHandle<u64>) {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let creating = std::thread::spawn(move || {
        let mut count = 0;
        while !stopped.load(Ordering::Relaxed) {
            let created = request(&addr, TASKS, None, Some(r#"{"command":"greet","payload":{}}"#)).expect("it answers");
            assert_eq!(created.status, 202, "{created:?}");
            count += 1;
        }
        count
    });
    (stop, creating)
}

fn succeeds(end: &End, text: &str) {
    assert!(end.status == Some(0) && end.output.contains(text), "{text}: {end:?}");
}

/// Goal: one node becomes three and one again while tasks are created at it, and not one creation fails. On the way leadership is handed
/// over, by name and by stepping down; the removed node ends with 7 for ever, the one that leaves ends with 0.
#[test]
fn one_becomes_three_and_one_again_under_load() {
    let plain = Plain::new();
    let quick = ["--promote-after", "100ms"];
    let first = plain.start(0, &[&["--bootstrap"], &quick[..]].concat());
    ready(&plain.addr(0));
    let (done, creating) = load(plain.addr(0));
    let founder = plain.peer(0);
    let joins = [&["--join", &*founder], &quick[..]].concat();
    let mut second = plain.start(1, &joins);
    let third = plain.start(2, &joins);
    succeeds(&plain.command(0, &["wait", "--voters", "3", "--for", "30s"]), "");
    succeeds(&plain.command(0, &["wait", "--leader", "--ready"]), "");

    for name in ["node-b", "node-c", "node-b"] {
        succeeds(&plain.command(2, &["leader", "transfer", name]), &format!("{name} leads in term"));
    }
    let shown = plain.command(1, &["leader"]);
    succeeds(&shown, "Leader  Term  Since  Public URL\nnode-b  ");
    let stepped = plain.command(0, &["leader", "step-down", "--hold", "1m"]);
    assert!(stepped.status == Some(0) && !stepped.output.contains("node-b"), "{stepped:?}");
    succeeds(&plain.command(0, &["leader", "transfer", "node-a"]), "node-a leads");

    succeeds(
        &plain.command(1, &["check", "quorum", "--node", "node-c"]),
        "PASS without node-c 2 of 3 voters would be there",
    );
    let removed = plain.command(1, &["member", "remove", "node-c"]);
    succeeds(&removed, "node-c was removed: 2 voters, 2 are needed; nothing may fail from now on");
    let end = third.end();
    assert_eq!(end.status, Some(7), "{}", end.output);
    let again = plain.start(2, &joins).end();
    assert!(again.status == Some(7) && again.output.contains("needs an empty directory"), "{again:?}");

    second.wait_for("raft.leader.elected");
    succeeds(&plain.command(1, &["leave"]), "left; node-a leads the others");
    let end = second.end();
    assert_eq!(end.status, Some(0), "{}", end.output);
    let again = plain.start(1, &joins).end();
    assert!(again.status == Some(7) && again.output.contains("left"), "{again:?}");
    plain.has_voters(0, 1);

    done.store(true, Ordering::Relaxed);
    let created = creating.join().expect("no creation failed");
    assert!(created > 0);
    let last = plain.command(0, &["member", "remove", "node-a", "--force"]);
    assert!(last.status == Some(4) && last.output.contains("no voter left"), "{last:?}");
    stop(vec![first]);
}

/// Goal: with one of three down, what needs the other two is refused with status 4 and the numbers in words; the dead one can be removed,
/// and learns of it when it comes back. Without a majority a question is answered with status 3.
#[test]
fn what_would_cost_the_majority_is_refused() {
    let plain = Plain::new();
    let list = plain.list();
    let mut nodes: Vec<Codeq> = (0..3).map(|place| plain.start(place, &["--initial-cluster", &list])).collect();
    (0..3).for_each(|place| ready(&plain.addr(place)));
    assert_eq!(nodes.remove(2).stop(Signal::SIGKILL).status, None);
    eventually("it is taken for dead", || {
        let asked = plain.command(0, &["check", "quorum", "--node", "node-b"]);
        let said = "FAIL without node-b group 0: 1 of 3 voters would be there, and 2 are needed";
        (asked.status == Some(6) && asked.output.contains(said)).then_some(())
    });
    let refused = plain.command(0, &["member", "remove", "node-b"]);
    let sentence = "group 0: 1 of 2 voters would be there, and 2 are needed: nothing could be decided (status 409)";
    assert!(refused.status == Some(4) && refused.output.contains(sentence), "{refused:?}");
    assert_eq!(plain.command(1, &["leave"]).status, Some(4));
    let unknown = plain.command(1, &["member", "remove", "node-x"]);
    assert!(unknown.status == Some(1) && unknown.output.contains("no member node-x"), "{unknown:?}");
    let unreachable = plain.command(1, &["leader", "transfer", "node-c"]);
    assert!(unreachable.status == Some(1) && unreachable.output.contains("cannot be reached"), "{unreachable:?}");

    succeeds(&plain.command(0, &["member", "remove", "node-c"]), "node-c was removed");
    let told = plain.start(2, &["--initial-cluster", &list]).end();
    assert_eq!(told.status, Some(7), "{}", told.output);
    assert!(told.output.contains("node-c was removed from the cluster"), "{}", told.output);

    let [nobody] = free_ports().map(|port| format!("127.0.0.1:{port}"));
    let which =
        crate::process::run(&["which-endpoint"], &[("CODEQ_ENDPOINTS", &format!("{nobody},{}", plain.addr(1)))]);
    succeeds(&which, &plain.addr(1));
    assert!(which.output.contains("the first of 2 that answers") && which.output.contains("leads"), "{which:?}");
    assert_eq!(nodes.remove(1).stop(Signal::SIGKILL).status, None);
    let alone = eventually("the leader is lost", || {
        let asked = plain.command(0, &["leader"]);
        asked.output.contains("nothing can be decided").then_some(asked)
    });
    assert_eq!(alone.status, Some(3), "{alone:?}");
    let waited = plain.command(0, &["wait", "--leader", "--for", "300ms"]);
    assert!(waited.status == Some(3) && waited.output.contains("nothing can be decided"), "{waited:?}");
    drop(nodes);
}

/// Goal: a node that waits for nobody in particular is added by its address, and a member that is watched shows it.
#[test]
fn a_waiting_node_is_added() {
    let plain = Plain::new();
    let first = plain.start(0, &["--bootstrap", "--promote-after", "100ms"]);
    ready(&plain.addr(0));
    let endpoint = plain.addr(0);
    let mut watching = Codeq::start(&["members", "--watch", "--endpoints", &endpoint], &[]);
    watching.wait_for("one voter");
    let second = plain.start(1, &["--initial-cluster-state", "existing"]);
    eventually("it waits", || request(&plain.addr(1), "/readyz", None, None).ok());
    succeeds(&plain.command(0, &["member", "add", &plain.peer(1)]), "node-b is a member");
    succeeds(&plain.command(0, &["member", "add", &plain.peer(1)]), "node-b is a member");
    plain.has_voters(1, 2);
    watching.wait_for("node-b");
    let [nobody] = free_ports().map(|port| format!("127.0.0.1:{port}"));
    let dead = plain.command(0, &["member", "add", &nobody]);
    assert!(dead.status == Some(3) && dead.output.contains(&format!("not added: {nobody}: ")), "{dead:?}");
    assert!(dead.output.contains("hint: the node must run"), "{dead:?}");
    stop(vec![first, second]);
}

/// Goal: one node takes another one's place at a command, which ends with 7 and never comes back; a zone leads when it is asked to; and what
/// all run is told.
#[test]
fn a_machine_is_replaced() {
    let plain = Plain::new();
    let quick = ["--promote-after", "100ms", "--health-interval", "200ms"];
    let first = plain.start(0, &[&["--bootstrap"], &quick[..]].concat());
    ready(&plain.addr(0));
    let founder = plain.peer(0);
    let second = plain.start(1, &[&["--join", &*founder, "--zone", "dc2"], &quick[..]].concat());
    plain.has_voters(0, 2);
    let third = plain.start(2, &[&["--initial-cluster-state", "existing", "--zone", "dc3"], &quick[..]].concat());
    eventually("it waits", || request(&plain.addr(2), "/readyz", None, None).ok());
    let voter = plain.command(0, &["member", "replace", "node-a", &plain.peer(1)]);
    let said = "node-b is there and votes already, so it cannot take another one's place";
    assert!(voter.status == Some(1) && voter.output.contains(said), "{voter:?}");
    plain.has_voters(0, 2);
    let unknown = plain.command(0, &["member", "replace", "node-x", &plain.peer(2)]);
    assert!(unknown.status == Some(1) && unknown.output.contains("no member node-x"), "{unknown:?}");
    succeeds(
        &plain.command(0, &["member", "replace", "node-b", &plain.peer(2)]),
        "node-c has taken the place of node-b: 2 of 2 voters would be there",
    );
    assert_eq!(second.end().status, Some(7));
    plain.has_voters(0, 2);
    eventually("its zone is known", || {
        let members = plain.command(0, &["members"]).output;
        members.lines().any(|line| line.starts_with("node-c") && line.contains("  dc3  ")).then_some(())
    });
    succeeds(&plain.command(0, &["leader", "transfer", "--zone", "dc3"]), "node-c leads in term");
    let nowhere = plain.command(0, &["leader", "transfer", "--zone", "dc4"]);
    assert!(nowhere.status == Some(1) && nowhere.output.contains("no voter in zone dc4"), "{nowhere:?}");
    let version = env!("CARGO_PKG_VERSION");
    let all = plain.command(2, &["version", "--all"]);
    succeeds(&all, &format!("node-a  {version}"));
    succeeds(&all, &format!("node-c  {version}"));
    let late = request(&plain.addr(0), "/cluster/leader/transfer?wait=0", None, Some("{}")).expect("it answers");
    assert!(late.status == 504 && late.json()["code"] == "outcome_unknown", "{late:?}");
    stop(vec![first, third]);
}
