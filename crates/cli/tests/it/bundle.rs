//! What `codeq debug bundle` gathers, with real servers: something of every node that answers, and nothing that is secret.

use crate::backup::{TASKS, Three, stop};
use crate::process::{request, run};

const PRODUCER: &str = "canary-producer-token";
const WORKER: &str = "canary-worker-token";
const ADMIN: &str = "canary-admin-token";
const SECRET: &str = "canary-cluster-secret";

/// The SHA-256 of [`ADMIN`].
const TOKENS: &str = "admin ann a3619121e43f8ee3e77633059f0ce80f9d36d1a0c4daa1a98254f52be38cd54a\n";

/// Goal: the file has what each node says of itself, also when one of them does not answer, which it names; whoever is no admin of the cluster
/// gets none; and no token, secret, payload or result is in it. Method: canaries in all of these, looked for in the bytes of the file.
#[test]
fn a_bundle_has_every_node_and_no_secret() {
    let three = Three::new();
    let path = |name: &str| three.folder.path().join(name).display().to_string();
    std::fs::write(path("tokens"), TOKENS).expect("it is written");
    let provider = |token: &str| {
        format!(
            r#"{{"token": "{token}", "subject": "dev", "raw": {{"tenantId": "acme", "role": "ADMIN"}}, "eventTypes": ["*"], "scopes": ["codeq:claim", "codeq:result"]}}"#
        )
    };
    let (producer, worker) = (provider(PRODUCER), provider(WORKER));
    let environment = [
        ("PRODUCER_AUTH_PROVIDER", "static"),
        ("PRODUCER_AUTH_CONFIG", &producer),
        ("WORKER_AUTH_PROVIDER", "static"),
        ("WORKER_AUTH_CONFIG", &worker),
        ("CODEQ_CLUSTER_SECRET", SECRET),
        ("CODEQ_LOG_LEVEL", "debug"),
    ];
    let mut nodes = three.start_all_in(&["--tokens-file", &path("tokens")], &environment);
    let task = r#"{"command":"mail","payload":{"text":"canary-payload"},"idempotencyKey":"canary-key"}"#;
    let asked = |path: &str, token: &str, body: &str| {
        let answer = request(&three.addr(1), path, Some(token), Some(body)).expect("it answers");
        assert!(answer.status < 300, "{answer:?}");
        answer.json()
    };
    asked(TASKS, PRODUCER, task);
    let claimed = asked(&format!("{TASKS}/claim"), WORKER, r#"{"commands":["mail"],"waitSeconds":10}"#);
    let lease = claimed["leaseToken"].as_str().expect("it has a lease").to_owned();
    let done = format!(r#"{{"status":"COMPLETED","result":{{"text":"canary-result"}},"leaseToken":"{lease}"}}"#);
    asked(&format!("{TASKS}/{}/result", claimed["id"].as_str().expect("it has an id")), WORKER, &done);
    let bundle = |name: &str, token: &str| {
        let end = run(&["debug", "bundle", &path(name), "--endpoints", &three.addr(0)], &[("CODEQ_TOKEN", token)]);
        let bytes = std::fs::read(path(name)).unwrap_or_default();
        (end, String::from_utf8_lossy(&bytes).into_owned())
    };
    let (refused, nothing) = bundle("refused.tar", PRODUCER);
    assert!(refused.status == Some(5) && nothing.is_empty(), "{refused:?}");
    let (end, whole) = bundle("whole.tar", ADMIN);
    assert_eq!(end.status, Some(0), "{end:?}");
    stop(nodes.pop().expect("there are three"));
    let (end, partial) = bundle("partial.tar", ADMIN);
    assert_eq!(end.status, Some(0), "{end:?}");
    assert!(whole.contains(r#""missing":[]"#) && partial.contains(r#""missing":["node-2"]"#));
    assert!(!partial.contains("node-2/status.json"));
    let parts = ["status", "nodes", "groups", "health", "alarms", "elections"].map(|page| format!("{page}.json"));
    for node in ["node-0", "node-1", "node-2"] {
        for part in parts.iter().map(String::as_str).chain(["settings.txt", "metrics.txt", "log.jsonl"]) {
            assert!(whole.contains(&format!("{node}/{part}")), "{node}/{part}");
        }
        assert!(whole.contains(&format!("node {node} listens on")), "the log of {node} is there");
    }
    for text in ["events.jsonl", "timeline.json", "raft.election.won", "cluster.clusterSecret", "# TYPE codeq_"] {
        assert!(whole.contains(text), "{text}");
    }
    // The name of the settings' file is told, and what stands in it is not.
    let canaries = [PRODUCER, WORKER, ADMIN, SECRET, &TOKENS[10..], "canary-payload", "canary-result", &lease];
    for canary in canaries {
        assert!(!whole.contains(canary.trim()) && !partial.contains(canary.trim()), "{canary}");
    }
    nodes.into_iter().for_each(stop);
}
