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

/// Goal: who may use the data directory may do everything to the cluster, with no flags and no token: by the socket there, also where the port
/// speaks HTTPS and asks for certificates. A tenant's tasks take a token all the same. A socket that a killed server has left is in nobody's
/// way: commands go on to the port, and the next server takes its place.
#[test]
fn the_owner_of_the_directory_needs_no_token() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("tokens"), format!("viewer ann {}\n", ROLES[2].1)).expect("it can be written");
    let end = run(&["tls", "init", "--nodes", "only", "--clients", "ann", "--out", &path("certificates")], &[]);
    let line =
        end.output.lines().next().and_then(|line| line.strip_prefix("only: ")).expect("it has a line").to_owned();
    let own = ["serve", "--data-dir", &path("data"), "--http-addr", "127.0.0.1:0", "--tokens-file", &path("tokens")];
    let args: Vec<&str> = own.into_iter().chain(line.split(' ')).filter(|arg| !arg.is_empty()).collect();
    let peers = args.iter().position(|arg| *arg == "--peer-cert").expect("it has peers");
    let args: Vec<&str> = args[..peers].iter().chain(&args[peers + 6..]).copied().collect();
    let mut server = Codeq::start(&args, &[]);
    server.wait_for("server.started");

    let data = path("data");
    let command = |args: &[&str], token: &str| run(args, &[("CODEQ_DATA_DIR", &data), ("CODEQ_TOKEN", token)]);
    let by = command(&["which-endpoint"], "");
    assert!(by.status == Some(0) && by.output.contains(&format!("unix:{data}/codeq.sock")), "{by:?}");
    assert_eq!(command(&["health"], "").status, Some(0));
    let tokens = command(&["token", "list"], "");
    assert!(tokens.status == Some(0) && tokens.output.starts_with("Id"), "an administrator: {tokens:?}");
    assert_eq!(command(&["token", "list"], "viewer").status, Some(5), "who shows a token is who that says");
    assert_eq!(command(&["token", "list"], "stranger").status, Some(5));
    let tenant = run(&["queue", "stats", "mail", "--endpoints", &format!("unix:{data}/codeq.sock")], &[]);
    assert_ne!(tenant.status, Some(0), "{tenant:?}");
    let moved = command(&["leader", "transfer"], "");
    assert!(moved.status == Some(1) && moved.output.contains("no peer address"), "{moved:?}");
    server.wait_for("the local socket from the local socket: POST /cluster/leader/transfer");

    assert_eq!(server.stop(nix::sys::signal::Signal::SIGKILL).status, None);
    assert!(folder.path().join("data/codeq.sock").exists(), "nobody has removed it");
    let gone = command(&["health"], "");
    assert!(
        gone.status == Some(1) && gone.output.contains("unix:") && gone.output.contains("; http://127"),
        "{gone:?}"
    );
    let mut server = Codeq::start(&args, &[]);
    server.wait_for("server.started");
    assert_eq!(command(&["health"], "").status, Some(0));
    assert_eq!(server.stop(nix::sys::signal::Signal::SIGTERM).status, Some(0));
    assert!(!folder.path().join("data/codeq.sock").exists(), "it goes with its server");
}
