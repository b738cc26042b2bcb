//! What a node raises when its disk has little room, with real servers. How much is little is a setting: here more than any disk has.

use nix::sys::signal::Signal;

use crate::backup::{TASKS, Three, ask, claim, complete, create, stop};
use crate::process::{Codeq, eventually, ready, request, run};

/// More room than there is.
const ALWAYS: &str = "1000000TiB";

fn alarms(addr: &str) -> Vec<(String, String)> {
    let body = ask(addr, "/cluster/alarms", None).json();
    let text = |alarm: &serde_json::Value, name: &str| alarm[name].as_str().unwrap_or_default().to_owned();
    let list = body["alarms"].as_array().expect("it is a list");
    list.iter().map(|alarm| (text(alarm, "kind"), text(alarm, "member"))).collect()
}

fn restart(three: &Three, nodes: &mut [Option<Codeq>], place: usize, flags: &[&str]) {
    stop(nodes[place].take().expect("it runs"));
    nodes[place] = Some(three.start(place, flags));
    (0..3).for_each(|place| ready(&three.addr(place)));
}

/// One member has little room: creations are refused everywhere, with nothing done; claims, results and deletions go on; everybody can tell.
/// When it has more, all of that is over by itself.
#[test]
fn a_full_disk_of_one_stops_new_tasks_everywhere() {
    let three = Three::new();
    let room = ["--disk-low", "0", "--disk-critical", "0"];
    let mut nodes: Vec<Option<Codeq>> = three.start_all().into_iter().map(Some).collect();
    (0..3).for_each(|place| restart(&three, &mut nodes, place, &room));
    (0..4).for_each(|_| drop(create(&three.addr(0), "mail")));
    restart(&three, &mut nodes, 2, &["--disk-low", ALWAYS, "--disk-critical", "0"]);
    let expected = [("space-low".to_owned(), "node-2".to_owned())];
    for place in 0..3 {
        let addr = three.addr(place);
        eventually("the alarm is known", || (alarms(&addr) == expected).then_some(()));
        eventually("creations are refused", || {
            let body = r#"{"command":"mail","payload":{}}"#;
            let refused = request(&addr, TASKS, None, Some(body)).ok().filter(|answer| answer.status == 507)?;
            let problem = refused.json();
            assert_eq!((&problem["code"], &problem["definite"]), (&"no_space".into(), &true.into()), "{problem}");
            Some(())
        });
        assert_eq!(complete(&addr, &claim(&addr, "mail")).status, 200, "claims and results go on");
        let health = ask(&addr, "/cluster/health", None).json();
        assert_eq!(health["status"], "degraded");
        assert!(health["reasons"].to_string().contains("node-2: space-low"), "{health}");
        assert_eq!(ask(&addr, "/cluster/status", None).json()["alarms"][0]["kind"], "space-low");
        let metrics = ask(&addr, "/metrics", None).body;
        assert!(metrics.contains("codeq_alarms{kind=\"space-low\"} 1"), "{metrics}");
    }
    nodes[2].as_mut().expect("it runs").wait_for("alarm.raised");
    restart(&three, &mut nodes, 2, &room);
    for place in 0..3 {
        let addr = three.addr(place);
        eventually("creations go on", || {
            let body = r#"{"command":"mail","payload":{}}"#;
            (request(&addr, TASKS, None, Some(body)).ok()?.status == 202).then_some(())
        });
        assert_eq!(alarms(&addr), []);
    }
    nodes.into_iter().flatten().for_each(stop);
}

/// A member that has hardly any room leads nothing, though it is asked to, as long as somebody else can.
#[test]
fn who_has_hardly_any_room_leads_nothing() {
    let three = Three::new();
    let mut nodes: Vec<Option<Codeq>> = three.start_all().into_iter().map(Some).collect();
    restart(&three, &mut nodes, 1, &["--disk-low", "0", "--disk-critical", ALWAYS]);
    let leader = |place: usize| ask(&three.addr(place), "/cluster/leader", None).json()["name"].clone();
    eventually("somebody else leads", || ["node-0", "node-2"].iter().any(|name| leader(0) == *name).then_some(()));
    drop(run(&["leader", "transfer", "node-1", "--endpoints", &three.addr(0)], &[]));
    eventually("it has given it back", || ["node-0", "node-2"].iter().any(|name| leader(1) == *name).then_some(()));
    let gone = if leader(0) == "node-0" { 0 } else { 2 };
    drop(nodes[gone].take().map(|node| node.stop(Signal::SIGKILL)));
    eventually("the third one leads", || (leader(1) == format!("node-{}", 2 - gone)).then_some(()));
    nodes.into_iter().flatten().for_each(stop);
}
