//! Actions on the cluster: who may call them, and what a node that is alone says.

use serde_json::json;

use crate::server::{Running, settings_with_tokens};

const ACTIONS: [(&str, &str); 8] = [
    ("POST", "/cluster/join"),
    ("POST", "/cluster/leave"),
    ("POST", "/cluster/members"),
    ("DELETE", "/cluster/members/node-a?force=true"),
    ("POST", "/cluster/members/node-a/demote"),
    ("POST", "/cluster/members/node-a/promote"),
    ("POST", "/cluster/leader/transfer"),
    ("POST", "/cluster/leader/step-down"),
];

fn body(path: &str) -> Vec<u8> {
    let body = match path {
        "/cluster/join" => json!({"addresses": ["127.0.0.1:1"]}),
        "/cluster/members" => json!({"address": "127.0.0.1:1"}),
        _ => json!({}),
    };
    body.to_string().into_bytes()
}

/// Goal: a node without an address for peers refuses every action alike, and malformed ones before that.
#[tokio::test]
async fn a_node_alone_refuses_actions() {
    let server = Running::open().await;
    let client = server.client();
    for (method, path) in ACTIONS {
        let refused = client.send(method, path, Some(&body(path))).await;
        let problem = refused.problem(409, "single_mode");
        assert!(problem["detail"].to_string().contains("--raft-addr"), "{path}: {problem}");
    }
    client.get("/cluster/check/quorum").await.problem(409, "single_mode");
    let wrong = [
        ("/cluster/members", r#"{"address":"nowhere"}"#, "invalid_field"),
        ("/cluster/leader/transfer", r#"{"timeoutMs":3600001}"#, "invalid_field"),
        ("/cluster/leader/step-down", r#"{"hold":1}"#, "invalid_body"),
        ("/cluster/leave", r#"[1"#, "invalid_body"),
    ];
    for (path, body, code) in wrong {
        client.send("POST", path, Some(body.as_bytes())).await.problem(400, code);
    }
    server.stop().await;
}

/// Goal: a token that may administer nothing may not act on the cluster either, and may ask what would happen.
#[tokio::test]
async fn actions_are_for_operators() {
    let maker = r#"{"token": "p-token", "subject": "maker", "raw": {"tenantId": "acme"}}"#;
    let server = Running::start(settings_with_tokens(Some(maker), None)).await;
    for (method, path) in ACTIONS {
        let answered = server.with_token("p-token").send(method, path, Some(&body(path))).await;
        answered.problem(403, "operator_required");
        let answered = server.client().send(method, path, Some(&body(path))).await;
        answered.problem(401, "missing_credentials");
    }
    server.with_token("p-token").get("/cluster/check/quorum").await.problem(409, "single_mode");
    server.stop().await;
}
