//! Roles in the cluster: which routes each of them opens, a node that takes no actions, and tokens that change while the server runs.

use std::fmt::Write;
use std::time::Duration;

use server::reload::{Files, TokensFile};
use server::settings::Settings;
use sha2::{Digest, Sha256};

use crate::client::Client;
use crate::server::{Running, settings, settings_with_tokens};

const ROLES: [&str; 5] = ["metrics", "join", "viewer", "operator", "admin"];

/// A file in which each of these roles has a token of its own, called like it.
fn tokens(roles: &[&str]) -> String {
    roles.iter().fold(String::new(), |mut text, role| {
        let digest: Vec<String> = Sha256::digest(role.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{role} {role} {}", digest.concat()).expect("a string takes all");
        text
    })
}

fn with_roles(file: &TokensFile, mut settings: Settings) -> Settings {
    settings.auth.open = None;
    settings.auth.roles = Some(file.tokens.clone());
    settings.files = Files { roles: Some(file.clone()), ..Files::default() };
    settings
}

/// Goal: each role opens what the table says and nothing else; a tenant's token looks, and acts on nothing. A node that is alone refuses
/// every action that passes with 409, which tells it from a refusal of the role.
#[tokio::test]
async fn each_role_opens_its_routes() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("tokens");
    std::fs::write(&path, tokens(&ROLES)).expect("it is written");
    let file = TokensFile::open(path.to_str().expect("it is text")).expect("it reads well");
    let maker = r#"{"token": "tenant", "subject": "maker", "raw": {"tenantId": "acme", "role": "ADMIN"}}"#;
    let settings = Settings { metrics_need_token: true, ..settings_with_tokens(Some(maker), None) };
    let server = Running::start(with_roles(&file, settings)).await;
    let everybody = ["metrics", "join", "viewer", "operator", "admin", "tenant"];
    let rows: [(&str, &str, &[&str]); 12] = [
        ("GET", "/metrics", &everybody),
        ("GET", "/cluster/nodes", &["viewer", "operator", "admin", "tenant"]),
        ("GET", "/cluster/status", &["viewer", "operator", "admin", "tenant"]),
        ("GET", "/cluster/events", &["viewer", "operator", "admin"]),
        ("POST", "/cluster/join", &["join", "operator", "admin"]),
        ("POST", "/cluster/leader/transfer", &["operator", "admin"]),
        ("POST", "/cluster/reload", &["operator", "admin"]),
        ("GET", "/cluster/debug-bundle", &["admin"]),
        ("POST", "/cluster/tokens", &["admin"]),
        ("GET", "/cluster/tokens", &["admin"]),
        ("DELETE", "/cluster/tokens/a1", &["admin"]),
        ("PUT", "/cluster/snapshot", &["admin"]),
    ];
    for (method, path, may) in rows {
        let body = (method == "POST" || method == "PUT").then_some(match path {
            "/cluster/join" => br#"{"addresses":["127.0.0.1:1"]}"#.as_slice(),
            _ => b"{}",
        });
        for token in everybody {
            let answer = server.with_token(token).send(method, path, body).await;
            assert_eq!(answer.status != 403, may.contains(&token), "{token}: {method} {path}: {}", answer.status);
        }
        server.client().send(method, path, body).await.problem(401, "missing_credentials");
        server.with_token("unknown").send(method, path, body).await.problem(401, "invalid_credentials");
    }
    server.stop().await;
}

fn with_password(server: &Running, pair: &str) -> Client {
    server.client().header("Authorization", &format!("Basic {pair}"))
}

/// Goal: a token is taken as a password, changes with it only from the server's own pages; and a node that was told so takes no actions.
#[tokio::test]
async fn a_token_is_a_password_and_a_read_only_node_takes_no_actions() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("tokens");
    std::fs::write(&path, tokens(&ROLES)).expect("it is written");
    let file = TokensFile::open(path.to_str().expect("it is text")).expect("it reads well");
    let server = Running::start(with_roles(&file, settings())).await;
    // anybody:operator
    let pair = "YW55Ym9keTpvcGVyYXRvcg==";
    with_password(&server, pair).get("/cluster/nodes").await.expect(200);
    with_password(&server, "nonsense").get("/cluster/nodes").await.problem(401, "invalid_credentials");
    let step_down = async |origin: Option<&str>| {
        let client = with_password(&server, pair);
        let client = match origin {
            Some(origin) => client.header("Origin", origin),
            None => client,
        };
        client.send("POST", "/cluster/leader/step-down", Some(b"{}")).await
    };
    step_down(None).await.problem(409, "single_mode");
    step_down(Some("https://evil.example")).await.problem(403, "origin_not_allowed");
    server.stop().await;

    let server = Running::start(with_roles(&file, Settings { read_only: true, ..settings() })).await;
    let client = server.with_token("admin");
    client.send("POST", "/cluster/leader/step-down", Some(b"{}")).await.problem(403, "read_only_node");
    client.get("/cluster/nodes").await.expect(200);
    server.stop().await;
}

/// Goal: a token that is taken out of the file opens nothing any more, without a restart, and a file that does not read well changes
/// nothing.
#[tokio::test]
async fn tokens_are_read_again() {
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("tokens");
    std::fs::write(&path, tokens(&ROLES)).expect("it is written");
    let file = TokensFile::open(path.to_str().expect("it is text")).expect("it reads well");
    let server = Running::start(with_roles(&file, settings())).await;
    let admin = server.with_token("admin");
    std::fs::write(&path, "nonsense").expect("it is written");
    let refused = admin.send("POST", "/cluster/reload", Some(b"{}")).await;
    let problem = refused.problem(422, "invalid_file");
    assert!(problem["detail"].to_string().contains("line 1"), "{problem}");
    server.with_token("viewer").get("/cluster/nodes").await.expect(200);
    std::fs::write(&path, tokens(&["admin"])).expect("it is written");
    // Nobody asks: the server looks by itself.
    let taken = async {
        while server.with_token("viewer").get("/cluster/nodes").await.status != 401 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), taken).await.expect("the server has looked");
    admin.send("POST", "/cluster/reload", Some(b"{}")).await.expect(200);
    server.stop().await;
}
