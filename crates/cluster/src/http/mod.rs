//! What a node says of its cluster over HTTP: the answer to a path, to be mounted in any server. Who may ask is for that server to decide.

pub mod view;

use base::{Millis, ShardId};
use serde::Serialize;

use crate::http::view::Inspection;
use crate::node::Stage;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// Its status.
    pub status: u16,
    /// The media type of its body.
    pub content_type: &'static str,
    /// Its body.
    pub body: Vec<u8>,
}

impl HttpAnswer {
    fn json(status: u16, value: &impl Serialize) -> HttpAnswer {
        let body = serde_json::to_vec(value).expect("views are made of text, numbers and lists");
        HttpAnswer { status, content_type: "application/json", body }
    }

    fn text(status: u16, text: impl Into<String>) -> HttpAnswer {
        HttpAnswer { status, content_type: "text/plain; charset=utf-8", body: text.into().into_bytes() }
    }

    fn refused(status: u16, code: &str, text: &str) -> HttpAnswer {
        let body = serde_json::json!({ "code": code, "error": text, "status": status });
        HttpAnswer { content_type: "application/problem+json", ..HttpAnswer::json(status, &body) }
    }
}

/// The answer to `GET` of a path below `/cluster/`; nothing: there is no such path. `lease`: how long a leader is trusted after a quorum
/// has answered it.
pub fn get(path: &str, look: &Inspection, lease: Millis) -> Option<HttpAnswer> {
    let mut parts = path.strip_prefix("/cluster/")?.trim_end_matches('/').split('/');
    let answer = match (parts.next()?, parts.next(), parts.next()) {
        ("nodes", None, None) => HttpAnswer::json(200, &look.nodes()),
        ("nodes", Some(name), None) => {
            let node = look.nodes().nodes.into_iter().find(|node| node.name == name || node.id == name);
            match node {
                Some(node) => HttpAnswer::json(200, &node),
                None => HttpAnswer::refused(404, "unknown_member", "the cluster has no member of that name"),
            }
        }
        ("status", None, None) => HttpAnswer::json(200, &look.status(lease)),
        ("groups", None, None) => HttpAnswer::json(200, &look.groups()),
        ("leader", None, None) => match look.leader() {
            Some(leader) => HttpAnswer::json(200, &leader),
            None => HttpAnswer::refused(503, "no_leader", "this node knows no leader"),
        },
        ("health", None, None) => {
            let health = look.health();
            let status = if health.status == "unavailable" { 503 } else { 200 };
            HttpAnswer::json(status, &health)
        }
        ("leader-check", code, None) => leader_check(code, look, lease)?,
        _ => return None,
    };
    Some(answer)
}

/// 200 only while this node surely leads group 0; two nodes never say so at one time.
fn leader_check(code: Option<&str>, look: &Inspection, lease: Millis) -> Option<HttpAnswer> {
    let no = match code {
        None => 404,
        Some(code) => code.parse().ok().filter(|code| (400..600).contains(code))?,
    };
    let leads = look.lease_valid(lease) > Millis(0) && look.stage == Stage::Running;
    Some(if leads { HttpAnswer::text(200, "OK") } else { HttpAnswer::text(no, "Not leader") })
}

/// A check of readiness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// Whether it passes.
    pub ok: bool,
    /// What is wrong, or how things stand.
    pub text: String,
}

/// The checks that readiness consists of. `reaches`: whether requests for a group can be served through this node.
pub fn checks(look: &Inspection, draining: bool, reaches: impl Fn(ShardId) -> bool) -> Vec<Check> {
    let check = |name, problem: Option<String>| Check {
        name,
        ok: problem.is_none(),
        text: problem.unwrap_or_else(|| "ok".into()),
    };
    let storage = match &look.stage {
        Stage::Starting(what) => Some(what.clone()),
        Stage::Stopped => Some("the node has stopped".into()),
        Stage::Unjoined(_) | Stage::Running | Stage::Draining => None,
    };
    let draining = (draining || look.stage == Stage::Draining).then(|| "the server stops".into());
    let joined = match &look.stage {
        Stage::Unjoined(what) => Some(format!("not joined: {what}")),
        _ => None,
    };
    let list = |groups: Vec<String>, text: &str| (!groups.is_empty()).then(|| format!("{text} {}", groups.join(", ")));
    let leaderless = look.shards.iter().filter(|shard| shard.consensus.leader == 0);
    let leader = match look.shards.is_empty() {
        true => Some("no group runs here yet".into()),
        false => list(leaderless.map(|shard| shard.shard.to_string()).collect(), "no leader is known in group"),
    };
    let unreached = look.shards.iter().filter(|shard| shard.consensus.leader != 0 && !reaches(shard.shard));
    let contact = list(
        unreached.map(|shard| shard.shard.to_string()).collect(),
        "the leader cannot be reached, or takes no writes yet, in group",
    );
    let late = look
        .shards
        .iter()
        .filter(|shard| shard.consensus.commit.0 - shard.applied.0.min(shard.consensus.commit.0) > 10_000);
    let lag =
        list(late.map(|shard| shard.shard.to_string()).collect(), "more than 10000 entries are to be applied in group");
    vec![
        check("storage", storage),
        check("draining", draining),
        check("joined", joined),
        check("leader", leader),
        check("contact", contact),
        check("lag", lag),
    ]
}
