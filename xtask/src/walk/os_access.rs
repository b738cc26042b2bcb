//! Who may do what at three nodes: tokens with roles, a node that takes no actions, and HTTPS.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::docker::{ended, printed};
use crate::http::{Answer, Client};
use crate::process::Folder;
use crate::walk::nodes::{Driver, Nodes, eventually, send_as};
use crate::walk::os::Story;
use crate::walk::{READY_MAX, Skip, expect, text};

/// Tokens, and what the file of roles says of them.
pub(super) const TOKENS: [(&str, &str, &str); 2] =
    [("viewer", "vera", "a-token-that-only-vera-knows"), ("operator", "olga", "a-token-that-only-olga-knows")];

/// What `--tokens-file` reads, made as the documents say.
pub(super) fn tokens_file() -> Result<String> {
    TOKENS
        .iter()
        .map(|(role, name, token)| {
            let digest = printed(Command::new("sh").args(["-c", "printf %s \"$0\" | sha256sum", token]))?;
            let digest = digest.split_whitespace().next().context("it prints one")?;
            Ok(format!("{role} {name} {digest}\n"))
        })
        .collect()
}

/// What is waited for without a token: nodes that have credentials answer only the probes without one.
fn ready(nodes: &Nodes) -> Result<()> {
    nodes.ready(&[0, 1, 2], READY_MAX).map(|_| ())
}

pub(super) fn roles(story: &mut Story) -> Result<String> {
    if story.nodes.driver() == Driver::Docker {
        return Err(Skip("the same over processes").into());
    }
    let mut nodes = story.nodes.others("walk-roles")?;
    for place in 0..3 {
        let file = nodes.put(place, "tokens", &tokens_file()?)?;
        nodes.set(place, "CODEQ_TOKENS_FILE", &file);
    }
    nodes.set(2, "CODEQ_READ_ONLY", "true");
    nodes.up()?;
    ready(&nodes)?;
    let [(_, vera, viewer), (_, olga, operator)] = TOKENS;
    let transfer = "/cluster/leader/transfer";
    let leader = |place: usize| -> Result<String> {
        let seen = expect(&send_as(nodes.http(place), Some(viewer), "GET", "/cluster/leader", "")?, 200)?;
        text(&seen["name"])
    };
    let asked = |place: usize, token: Option<&str>| send_as(nodes.http(place), token, "POST", transfer, "{}");
    let before = eventually(READY_MAX, || leader(0))?;
    for place in 0..2 {
        let refused = expect(&asked(place, Some(viewer))?, 403)?;
        ensure!(refused["code"] == "operator_required", "{refused}");
        ensure!(asked(place, None)?.status == 401, "without a token");
        ensure!(asked(place, Some("another"))?.status == 401, "with a token that nobody knows");
    }
    ensure!(leader(0)? == before, "who was refused has changed the leader");
    for path in ["/healthz", "/livez", "/readyz", "/cluster/leader-check", "/api/lb-check"] {
        let status = send_as(nodes.http(0), None, "GET", path, "")?.status;
        ensure!([200, 404].contains(&status), "{path} without a token: {status}");
    }
    for path in ["/", "/cluster/nodes", "/cluster/status", "/cluster/events"] {
        ensure!(send_as(nodes.http(0), None, "GET", path, "")?.status == 401, "{path} without a token");
        ensure!(send_as(nodes.http(0), Some(viewer), "GET", path, "")?.status == 200, "{path} as a viewer");
    }
    let read_only = expect(&asked(2, Some(operator))?, 403)?;
    ensure!(read_only["code"] == "read_only_node", "{read_only}");
    let page = String::from_utf8(basic(&nodes, 2, viewer)?.body)?;
    ensure!(page.contains(&format!("{vera}, viewer")) && page.contains("none are taken here: read-only"), "{page}");
    let page = basic(&nodes, 0, operator)?;
    ensure!(
        page.status == 200 && String::from_utf8(page.body.clone())?.contains(&format!("{olga}, operator")),
        "{page}"
    );
    ensure!(basic(&nodes, 0, "another")?.status == 401, "a password that nobody knows");
    let done = expect(&asked(0, Some(operator))?, 200)?;
    ensure!(done["leader"] != json!(before), "{done}");
    nodes.forget()?;
    Ok("viewer: 403 operator_required; nobody: 401, probes open; read-only: 403 read_only_node; by password: the page; operator: done".into())
}

/// A node's page for somebody who has only a password, as a browser asks for it.
fn basic(nodes: &Nodes, place: usize, password: &str) -> Result<Answer> {
    let both = printed(Command::new("sh").args(["-c", "printf %s \"user:$0\" | base64 --wrap 0", password]))?;
    let mut client = Client::connect(nodes.http(place))?;
    Ok(client.send_with("GET", "/", &[("Authorization", &format!("Basic {}", both.trim()))], "")?)
}

/// An authority, and certificates of a server and of a client that it vouches for.
const CERTIFICATES: &str = r#"
new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 30'
openssl req -x509 $new -subj /CN=authority -keyout ca.key -out ca.crt -addext keyUsage=critical,keyCertSign
signed="$new -CA ca.crt -CAkey ca.key -addext basicConstraints=critical,CA:FALSE"
openssl req -x509 $signed -subj /CN=server -keyout server.key -out server.crt \
  -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -addext extendedKeyUsage=serverAuth
openssl req -x509 $signed -subj /CN=client -keyout client.key -out client.crt -addext extendedKeyUsage=clientAuth
"#;

pub(super) fn encrypted(story: &mut Story) -> Result<String> {
    if story.nodes.driver() == Driver::Docker {
        return Err(Skip("the same over processes").into());
    }
    if printed(Command::new("openssl").arg("version")).is_err() {
        return Err(Skip("there is no openssl").into());
    }
    let folder = Folder::new("walk-certificates")?;
    let within = folder.within("made");
    std::fs::create_dir_all(&within)?;
    printed(Command::new("sh").args(["-e", "-c", CERTIFICATES]).current_dir(&within))?;
    let file = |name: &str| within.join(name).display().to_string();
    let mut nodes = story.nodes.others("walk-https")?;
    for place in 0..3 {
        let url = format!("https://localhost:{}", nodes.http(place).port());
        nodes.set(place, "CODEQ_PUBLIC_URL", &url);
        nodes.set(place, "CODEQ_HTTP_CERT", &file("server.crt"));
        nodes.set(place, "CODEQ_HTTP_KEY", &file("server.key"));
        nodes.set(place, "CODEQ_HTTP_CLIENT_CA", &file("ca.crt"));
    }
    nodes.up()?;
    let [authority, certificate, key] = ["ca.crt", "client.crt", "client.key"].map(file);
    let ask = |place: usize, shown: &[&str], arguments: &[&str]| {
        let url = format!("https://localhost:{}", nodes.http(place).port());
        let own = ["--endpoints", &url, "--ca", &authority];
        ended(Command::new(nodes.codeq()).args(arguments).args(own).args(shown).env_clear())
    };
    let shown = ["--cert", &certificate, "--key", &key];
    let mut printed = String::new();
    for place in 0..3 {
        printed = eventually(READY_MAX, || {
            let output = ask(place, &shown, &["members"])?;
            let both = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            ensure!(output.status.success() && both.contains("healthy"), "{}: {both}", output.status);
            Ok(both)
        })?;
    }
    let without = ask(0, &[], &["members"])?;
    let complained = String::from_utf8_lossy(&without.stderr).trim().replace('\n', "; ");
    ensure!(!without.status.success() && !complained.is_empty(), "it is let in without a certificate");
    let wrong = ask(0, &["--cert", &file("server.crt"), "--key", &file("server.key")], &["members"])?;
    ensure!(!wrong.status.success(), "a server's certificate is taken for a client's");
    ensure!(is_no_http(&nodes), "it speaks HTTP without TLS");
    nodes.forget()?;
    let last = printed.lines().last().unwrap_or_default().to_owned();
    Ok(format!("with a client's certificate: {last}; with none or a server's: refused ({complained})"))
}

/// Whether a request that is not encrypted has no good answer.
fn is_no_http(nodes: &Nodes) -> bool {
    !send_as(nodes.http(0), None, "GET", "/healthz", "").is_ok_and(|answer| answer.status == 200)
}
