//! Probes, and where consensus stands.

use serde_json::json;

use crate::client::{Response, text};
use crate::server::{Running, settings, settings_in};

fn check_text(response: &Response, status: u16, body: &str) {
    assert_eq!((response.status, &*response.text()), (status, body));
    assert_eq!(response.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!((response.header("cache-control"), response.header("codeq-position")), (None, None));
}

/// The probes say `ok`, with and without credentials.
#[tokio::test]
async fn a_running_server_is_alive_and_ready() {
    let server = Running::open().await;
    let client = server.client();
    for path in ["/healthz", "/livez", "/readyz"] {
        check_text(&client.get(path).await, 200, "ok");
        check_text(&client.header("Authorization", "nonsense").get(path).await, 200, "ok");
    }
    server.stop().await;
}

/// Goal: pages of the cluster say by headers how group 0 stands, and other routes when they are asked to.
#[tokio::test]
async fn headers_say_who_leads() {
    let server = Running::open().await;
    let name =
        server.client().get("/cluster/status").await.expect(200)["name"].as_str().expect("it has a name").to_owned();
    let verbose = server.client().header("codeq-verbose", "1");
    for answer in
        [server.client().get("/cluster/health").await, verbose.get("/queues").await, verbose.get("/none").await]
    {
        assert_eq!(answer.header("codeq-leader"), Some(&*name));
        let number = |name: &str| answer.header(name).and_then(|text| text.parse::<u64>().ok());
        assert!(
            number("codeq-term").is_some_and(|term| term > 0) && number("codeq-index").is_some_and(|index| index > 0)
        );
    }
    assert_eq!(server.client().get("/queues").await.header("codeq-leader"), None);
    server.stop().await;
}

/// Until a server has read its data and leads its shards it refuses definitely, and says that it lives and is not ready.
#[tokio::test]
async fn a_starting_server_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut settings = settings_in(&directory.path().join("data"));
    settings.node.shards = 4;
    let server = Running::starting(settings);
    let client = server.client();
    let (mut refused, mut created) = (0, 0);
    while created < 10 {
        let ready = client.get("/readyz").await;
        let answered = client.post("/tasks", json!({"command": format!("q{created}"), "payload": 1})).await;
        if answered.status == 202 {
            created += 1;
        } else {
            let code = answered.expect(503)["code"].clone();
            assert!([json!("not_ready"), json!("no_leader")].contains(&code), "{code}");
            assert_eq!(created, 0, "what is ready stays ready");
            assert!(ready.status == 503 && ready.text().contains("[-]"), "{}", ready.text());
            refused += 1;
        }
        assert_eq!(client.get("/livez").await.status, 200);
    }
    check_text(&client.get("/readyz").await, 200, "ok");
    let mut all = 0;
    for number in 0..10 {
        all += client.depths(&format!("q{number}")).await[0];
    }
    assert_eq!(all, 10, "{refused} creations that were refused have made no task");
    server.stop().await;
}

/// The status has every field of codeQ's page and of ours, and names no address that nobody could call.
#[tokio::test]
async fn consensus_is_shown() {
    let mut settings = settings();
    settings.node.shards = 2;
    let server = Running::start(settings).await;
    let client = server.client();
    client.create(json!({"command": "mail", "payload": 1})).await;
    let answered = client.get("/v1/codeq/raft/status").await;
    let status = answered.expect(200);
    assert_eq!(answered.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!((&status["enabled"], text(&status, "leaderID"), &status["numGroups"]), (&json!(true), "n1", &json!(2)));
    let peers = status["peers"].as_array().expect("a list");
    assert_eq!(peers.len(), 1, "this node is among its peers");
    assert_eq!(text(&peers[0], "id"), "n1");
    assert!(text(&peers[0], "httpAddr").starts_with("127.0.0.1:"));
    assert!(peers[0]["bindAddr"].is_string());
    for flag in ["voter", "healthy", "isLeader"] {
        assert_eq!(peers[0][flag], true, "{flag}");
    }
    let groups = status["groups"].as_array().expect("a list");
    assert_eq!(groups.len(), 2);
    for (number, group) in groups.iter().enumerate() {
        assert_eq!(group["shardIdx"], number);
        assert_eq!((&group["isLeader"], &group["hasLeader"]), (&json!(true), &json!(true)));
        assert_eq!((text(group, "selfId"), text(group, "leaderId")), ("n1", "n1"));
        assert!(group["selfAddr"].is_string() && group["leaderAddr"].is_string());
        let leader = text(group, "leaderHTTPAddr").strip_prefix("http://").expect("a URL");
        assert_eq!(leader, text(&peers[0], "httpAddr"));
        let [term, commit, applied, lag] =
            ["term", "commitIndex", "appliedIndex", "lag"].map(|name| group[name].as_u64().expect("a number"));
        assert!(term >= 1 && applied >= 1 && commit == applied + lag, "{group}");
    }
    assert!(!text(&status, "clusterId").is_empty());
    assert_eq!(status["quorum"], json!({"voters": 1, "needed": 1, "reachable": 1, "failureTolerance": 0}));
    assert!(status["term"].as_u64() >= Some(1));
    server.stop().await;
}
