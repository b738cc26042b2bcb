//! Orchestrator's questions, and the page for people.

use serde_json::{Value, json};

use crate::server::{Running, settings, settings_with_tokens};

/// A leader that is alone answers every question, in JSON, and nothing that would change the cluster by a GET is done.
#[tokio::test]
async fn questions_are_answered_in_their_words() {
    let server = Running::open().await;
    let client = server.client();
    let names =
        ["/api/leader-check", "/api/leader-check/503", "/api/routed-leader-check", "/api/lb-check", "/api/_ping"];
    for path in names {
        assert_eq!(client.get(path).await.expect(200), json!("OK"), "{path}");
        assert_eq!(client.send("HEAD", path, None).await.status, 200, "{path}");
    }
    assert_eq!(client.get("/api/raft-state").await.expect(200), json!("Leader"));
    assert_eq!(client.get("/api/raft-leader").await.expect(200), json!("n1"));
    assert_eq!(client.get("/api/raft-peers").await.expect(200), json!(["n1"]));
    assert_eq!(client.get("/api/raft-health").await.expect(200), json!("healthy"));
    let status = client.get("/api/raft-status").await.expect(200);
    assert_eq!(
        (&status["State"], &status["Healthy"], &status["IsPartOfQuorum"]),
        (&json!("Leader"), &json!(true), &json!(true))
    );
    for path in ["/api/health", "/api/status"] {
        let health = client.get(path).await.expect(200);
        assert_eq!((&health["Code"], &health["Details"]["IsRaftLeader"]), (&json!("OK"), &json!(true)));
    }
    for path in ["/api/raft-yield/n2", "/api/reelect", "/api/raft-remove-peer/n2", "/api/reload-configuration"] {
        let refused = client.get(path).await;
        let problem = refused.expect(405);
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains(" /cluster/")), "{problem}");
        assert_eq!(refused.header("allow"), Some(""), "the path takes no method");
    }
    for path in ["/api/", "/api/leader-check/200", "/api/leader-check/404/1", "/api/raft-color"] {
        assert_eq!(client.get(path).await.status, 404, "{path}");
    }
    server.stop().await;
}

/// Without peers by choice there is no Raft to ask about; whether the node leads is a question all the same.
#[tokio::test]
async fn in_single_mode_there_is_no_raft() {
    let mut settings = settings();
    settings.raft = false;
    settings.node.is_single = true;
    let server = Running::start(settings).await;
    let client = server.client();
    for name in ["raft-state", "raft-leader", "raft-peers", "raft-health", "raft-status"] {
        // In orchestrator's words an error is no problem document.
        let said = client.raw(&client.request("GET", &format!("/api/{name}"), None)).await.expect(500);
        assert_eq!(said, json!({"Code": "ERROR", "Message": format!("{name}: not running with raft setup")}));
    }
    assert_eq!(client.get("/api/leader-check").await.expect(200), json!("OK"));
    assert_eq!(client.get("/cluster/nodes/n1").await.expect(200)["status"], "standalone");
    assert!(client.get("/").await.text().contains("single mode"));
    server.stop().await;
}

/// The page shows this node and loads nothing; where tokens are needed, it needs one, and what load balancers ask does not.
#[tokio::test]
async fn the_page_shows_this_node() {
    let server =
        Running::start(settings_with_tokens(Some(r#"{"token":"p-token","raw":{"tenantId":"acme"}}"#), None)).await;
    assert_eq!(server.client().get("/").await.status, 401);
    assert_eq!(server.client().get("/api/raft-state").await.status, 401);
    assert_eq!(server.client().get("/api/leader-check").await.expect(200), Value::from("OK"));
    let client = server.with_token("p-token");
    for path in ["/", "/web/status"] {
        let page = client.get(path).await;
        assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
        let policy = page.header("content-security-policy").expect("it says what it may load");
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        let text = page.text();
        assert!(text.contains("n1</a> (this node)") && text.contains("The cluster is healthy"), "{text}");
        assert!(text.contains("memory") && text.contains("Uptime"), "{text}");
    }
    server.stop().await;
}
