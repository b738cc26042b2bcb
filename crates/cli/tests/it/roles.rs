//! Roles in a cluster of three: the same answers at the leader and at a follower, and what actions leave behind in the log.

use crate::cluster::{Plain, stop};
use crate::process::{Codeq, eventually, ready, run, send};

/// Each role, whose token is called like it, and the SHA-256 of that.
const ROLES: [(&str, &str); 5] = [
    ("metrics", "177a7ea3611fe6b138557deaf44941614b66c0ece1766308044c8b65c8ba2123"),
    ("join", "58393216032be6257784ac0c6a73efb2a084e27b4cfff1e6acee7b7e6ab93b10"),
    ("viewer", "d35ca5051b82ffc326a3b0b6574a9a3161dee16b9478a199ee39cd803ce5b799"),
    ("operator", "06e55b633481f7bb072957eabcf110c972e86691c3cfedabe088024bffe42f23"),
    ("admin", "8c6976e5b5410415bde908bd4dee15dfb167a9c873fc4bb8a81f6f2ab448a918"),
];

const LOOK: &[&str] = &["viewer", "operator", "admin"];
const JOIN: &[&str] = &["join", "operator", "admin"];
const OPERATE: &[&str] = &["operator", "admin"];
const ADMINISTER: &[&str] = &["admin"];

/// Routes that a role opens. Those that change something ask for what cannot be, so that nothing does.
const ROUTES: [(&str, &str, &str, &[&str]); 21] = [
    ("GET", "/cluster/nodes", "", LOOK),
    ("GET", "/cluster/status", "", LOOK),
    ("GET", "/cluster/leader", "", LOOK),
    ("GET", "/cluster/timeline", "", LOOK),
    ("GET", "/cluster/events", "", LOOK),
    ("GET", "/cluster/alarms", "", LOOK),
    ("GET", "/cluster/check/quorum", "", LOOK),
    ("POST", "/cluster/join", "{}", JOIN),
    ("POST", "/cluster/members", r#"{"address":"127.0.0.1:1"}"#, OPERATE),
    ("DELETE", "/cluster/members/nobody", "", OPERATE),
    ("POST", "/cluster/members/nobody/promote", "", OPERATE),
    ("POST", "/cluster/members/nobody/demote", "", OPERATE),
    ("POST", "/cluster/members/nobody/replace", r#"{"address":"127.0.0.1:1"}"#, OPERATE),
    ("POST", "/cluster/leader/transfer", r#"{"to":"nobody"}"#, OPERATE),
    ("POST", "/cluster/leader/step-down", r#"{"holdMs":"long"}"#, OPERATE),
    ("POST", "/cluster/snapshot/trigger", "", OPERATE),
    ("POST", "/cluster/reload", "", OPERATE),
    ("PUT", "/cluster/snapshot", "", ADMINISTER),
    ("GET", "/cluster/debug-bundle", "", ADMINISTER),
    ("POST", "/cluster/tokens", r#"{"ttlMs":0}"#, ADMINISTER),
    ("DELETE", "/cluster/tokens/a1", "", ADMINISTER),
];

/// Goal: a role opens the same routes at whichever node it asks, and none else; the command line ends with 5 where it is refused. What an
/// operator has done stands in the log with its name, what it was about, and what has come of it.
#[test]
fn each_role_opens_the_same_at_every_node() {
    let plain = Plain::new();
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let lines = ROLES.map(|(role, digest)| format!("{role} {role} {digest}\n")).concat();
    std::fs::write(path("tokens"), lines).expect("it can be written");
    let (tokens, list) = (path("tokens"), plain.list());
    let more = ["--initial-cluster", &list, "--tokens-file", &tokens];
    let mut nodes: Vec<Codeq> = (0..3).map(|place| plain.start(place, &more)).collect();
    (0..3).for_each(|place| ready(&plain.addr(place)));
    let leads = |place: usize| {
        send("GET", &plain.addr(place), "/cluster/leader-check", None, "").is_ok_and(|answer| answer.status == 200)
    };
    let leader = eventually("somebody leads", || (0..3).find(|place| leads(*place)));
    for place in [leader, (leader + 1) % 3] {
        for (method, route, body, may) in ROUTES {
            for (role, _) in ROLES {
                let answer = send(method, &plain.addr(place), route, Some(role), body).expect("it answers");
                let is_refused = answer.status == 403 && answer.body.contains("operator_required");
                assert_eq!(!is_refused, may.contains(&role), "{role} at {place}: {method} {route}: {answer:?}");
            }
            for (token, code) in [(None, "missing_credentials"), (Some("stranger"), "invalid_credentials")] {
                let answer = send(method, &plain.addr(place), route, token, body).expect("it answers");
                assert!(answer.status == 401 && answer.body.contains(code), "{method} {route}: {answer:?}");
            }
        }
    }

    let follower = (leader + 1) % 3;
    let as_role = |role: &str, args: &[&str]| {
        run(&[args, &["--endpoints", &plain.addr(follower)]].concat(), &[("CODEQ_TOKEN", role)])
    };
    let refused = as_role("viewer", &["leader", "transfer"]);
    assert!(refused.status == Some(5) && refused.output.contains("role operator or admin"), "{refused:?}");
    assert_eq!(as_role("operator", &["token", "create"]).status, Some(5));
    let unknown = as_role("operator", &["member", "replace", "nobody", "127.0.0.1:1"]);
    assert!(unknown.status == Some(1) && unknown.output.contains("no member nobody"), "{unknown:?}");
    nodes[follower].skip();
    let output = &nodes[follower].output;
    let told = |action: &str, target: &str, result: &str| {
        output.lines().any(|line| {
            ["admin.action", "\"who\":\"operator\"", action, &format!("\"member\":\"{target}\""), result]
                .iter()
                .all(|text| line.contains(text))
        })
    };
    assert!(told("POST /cluster/members/nobody/replace", "nobody", "unknown_member"), "{output}");
    assert!(told("DELETE /cluster/members/nobody", "nobody", "unknown_member"), "{output}");
    assert!(output.contains("PUT /cluster/snapshot"), "a restore that is refused is told of: {output}");
    stop(nodes);
}
