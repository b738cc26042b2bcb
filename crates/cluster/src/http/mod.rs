//! What a node says of its cluster over HTTP: the answer to a path, to be mounted in any server. Who may ask is for that server to decide.
//!
//! [`look_back`] tells what has happened, in the whole cluster, and [`follow`] what goes on happening. [`serve`] answers for a node: `/cluster/*`, `/healthz`, `/livez` and `/readyz`. [`answer`] does the same for an
//! [`Inspection`], which is a plain value: so a server's routes can be tested without a node, a socket or a disk.
//!
//! ```
//! use cluster::view::Inspection;
//! use cluster::{Millis, Stage};
//!
//! let waiting = Inspection { stage: Stage::Unjoined("1 of 3 nodes known".into()), ..Inspection::new("a") };
//! let ready = cluster::http::answer(&waiting, Millis(400), "/readyz", "", None).expect("there is such a path");
//! assert_eq!(ready.status, 503);
//! assert!(ready.text().contains("[-]joined: not joined: 1 of 3 nodes known"));
//! assert!(cluster::http::answer(&waiting, Millis(400), "/kv/color", "", None).is_none(), "that is the application's");
//! ```

mod elections;
mod follow;
pub(crate) mod manifest;
pub mod view;

use base::Millis;
use base::machine::StateMachine;
use replica::ShardStatus;
use serde::Serialize;

pub(crate) use crate::http::elections::value_json;
pub use crate::http::elections::{
    ElectionView, ElectionsView, TimelineView, ToldView, VoteView, event_json, look_back,
};
pub use crate::http::follow::{Following, Form, KEEP_ALIVE, follow};
use crate::http::view::{Inspection, LAG_MAX};
use crate::node::{Handle, Stage};
use crate::peer::collecting::ask_all;
use crate::peer::requests::What;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// Its status.
    pub status: u16,
    /// The media type of its body.
    pub content_type: &'static str,
    /// Its body.
    pub body: Vec<u8>,
    /// Nodes that did not answer, where others were asked: for the header `codeq-missing`.
    pub missing: Vec<String>,
}

impl HttpAnswer {
    fn json(status: u16, value: &impl Serialize) -> HttpAnswer {
        let body = serde_json::to_vec(value).expect("views are made of text, numbers and lists");
        HttpAnswer { status, content_type: "application/json", body, missing: Vec::new() }
    }

    /// A value per line.
    fn lines(values: &[serde_json::Value]) -> HttpAnswer {
        let body = values.iter().map(|value| format!("{value}\n")).collect::<String>().into_bytes();
        HttpAnswer { status: 200, content_type: "application/x-ndjson", body, missing: Vec::new() }
    }

    fn plain(status: u16, text: impl Into<String>) -> HttpAnswer {
        let (content_type, body) = ("text/plain; charset=utf-8", text.into().into_bytes());
        HttpAnswer { status, content_type, body, missing: Vec::new() }
    }

    fn refused(status: u16, code: &str, text: &str) -> HttpAnswer {
        let body = serde_json::json!({ "code": code, "error": text, "status": status });
        HttpAnswer { content_type: "application/problem+json", ..HttpAnswer::json(status, &body) }
    }

    /// Its body, which is always text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("bodies are made of text")
    }
}

/// The answer to `GET` or `HEAD` of a path that is the cluster's; nothing: the path is the application's. `query`: what follows the
/// question mark. `accept`: that header, which chooses JSON for `/readyz`. A leader is trusted for four fifths of an election timeout after
/// a quorum has answered it.
pub fn serve<S: StateMachine>(handle: &Handle<S>, path: &str, query: &str, accept: Option<&str>) -> Option<HttpAnswer> {
    answer(&handle.inspect(), handle.lease(), path, query, accept)
}

/// What [`serve`] answers for a node that looks like this. `lease`: how long a leader is trusted after a quorum has answered it.
pub fn answer(look: &Inspection, lease: Millis, path: &str, query: &str, accept: Option<&str>) -> Option<HttpAnswer> {
    match path {
        "/healthz" => return Some(HttpAnswer::plain(200, "ok")),
        "/livez" => return Some(live(&look.stage, look.last_turn)),
        _ => {}
    }
    let Some(rest) = path.strip_prefix("/readyz") else { return get(path, look, lease) };
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let value = |name: &str| pairs.clone().filter(|(key, _)| *key == name).map(|(_, value)| value).next_back();
    let asked = Readiness {
        only: if rest.is_empty() { None } else { Some(rest.strip_prefix('/')?.to_owned()) },
        exclude: value("exclude").map(|list| list.split(',').map(str::to_owned).collect()).unwrap_or_default(),
        local: value("noleader").is_some(),
        verbose: value("verbose").is_some(),
        json: accept.is_some_and(|accept| accept.contains("application/json")),
    };
    let answered = ready(checks(look, false), &asked);
    Some(answered.unwrap_or_else(|unknown| HttpAnswer::refused(400, "invalid_field", &unknown.to_string())))
}

/// How long others may take to say their page.
const PAGE_MAX: std::time::Duration = std::time::Duration::from_secs(1);

/// The answer to `GET /cluster/status?all`: the pages of all members by their names, as each of them says it ([`Handle::show_status_with`]); of
/// whoever does not answer within a second, why there is none.
pub async fn status_of_all<S: StateMachine>(handle: &Handle<S>, lease: Millis) -> HttpAnswer {
    let own = serde_json::to_value(handle.inspect().status(lease)).expect("views are made of text, numbers and lists");
    let mut pages = serde_json::Map::from_iter([(handle.identity().node.clone(), own)]);
    let mut missing = Vec::new();
    let others = match handle.common().peers.get() {
        Some(peers) => ask_all(peers, What::Status, PAGE_MAX, |_| Vec::new()).await,
        None => Vec::new(),
    };
    for (member, answer) in others {
        let page = answer.and_then(|answer| serde_json::from_slice(&answer).ok()).unwrap_or_else(|| {
            missing.push(member.name.clone());
            serde_json::json!({ "error": "it cannot be reached, or does not answer" })
        });
        pages.insert(member.name, page);
    }
    HttpAnswer { missing, ..HttpAnswer::json(200, &pages) }
}

/// A loop that has not turned for longer hangs: a disk does not answer, or the machine is frozen.
const TURN_MAX: Millis = Millis(2_000);

/// The answer to `/livez`: the process lives, its loop turns, and its storage has not failed. Says nothing about leaders. `last_turn`: how
/// long ago the loop of a node that runs turned last.
pub fn live(stage: &Stage, last_turn: Millis) -> HttpAnswer {
    match stage {
        Stage::Stopped => HttpAnswer::plain(503, "stopped"),
        Stage::Running | Stage::Draining if last_turn > TURN_MAX => {
            HttpAnswer::plain(503, format!("the loop has not turned for {} ms", last_turn.0))
        }
        _ => HttpAnswer::plain(200, "ok"),
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
        ("health-reports", None, None) => HttpAnswer::json(200, &serde_json::json!({ "reports": look.reports() })),
        ("alarms", None, None) => HttpAnswer::json(200, &serde_json::json!({ "alarms": look.alarms() })),
        ("groups", None, None) => HttpAnswer::json(200, &look.groups()),
        ("leader", None, None) => match look.leader() {
            Some(leader) => HttpAnswer::json(200, &leader),
            None => {
                HttpAnswer::refused(503, "no_leader", &format!("this node knows no leader: {}", look.quorum().summary))
            }
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
    Some(if leads { HttpAnswer::plain(200, "OK") } else { HttpAnswer::plain(no, "Not leader") })
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

/// What is asked of `/readyz`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Only the check of this name: `/readyz/<name>`.
    pub only: Option<String>,
    /// All but these: `?exclude=a,b`.
    pub exclude: Vec<String>,
    /// Only what this node can tell by itself: `?noleader`.
    pub local: bool,
    /// A line for each check, also if all pass: `?verbose`.
    pub verbose: bool,
    /// As JSON.
    pub json: bool,
}

/// Something other than a check was named; there are these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoSuchCheck {
    /// What was named.
    pub name: String,
    /// The checks' names.
    pub known: Vec<&'static str>,
}

impl std::fmt::Display for NoSuchCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "there is no check {:?}; there are {}", self.name, self.known.join(", "))
    }
}

impl std::error::Error for NoSuchCheck {}

/// The answer to `/readyz`: 200 if all checks that are asked for pass, else 503 with a line for each of them.
///
/// # Errors
/// One is named that does not exist.
pub fn ready(mut checks: Vec<Check>, asked: &Readiness) -> Result<HttpAnswer, NoSuchCheck> {
    let known = |name: &&String| checks.iter().any(|check| check.name == **name);
    if let Some(unknown) = asked.exclude.iter().chain(&asked.only).find(|name| !known(name)) {
        return Err(NoSuchCheck { name: unknown.clone(), known: checks.iter().map(|check| check.name).collect() });
    }
    checks.retain(|check| {
        let named = asked.only.as_ref().is_none_or(|only| only == check.name);
        let excluded = asked.exclude.iter().any(|name| name == check.name);
        named && !excluded && !(asked.local && matches!(check.name, "leader" | "contact"))
    });
    let passes = checks.iter().all(|check| check.ok);
    let status = if passes { 200 } else { 503 };
    if asked.json {
        let reasons: Vec<&str> = checks.iter().filter(|check| !check.ok).map(|check| check.text.as_str()).collect();
        let word = if passes { "ready" } else { "not ready" };
        return Ok(HttpAnswer::json(status, &ReadyView { status: word, reasons, checks: &checks }));
    }
    if passes && !asked.verbose {
        return Ok(HttpAnswer::plain(200, "ok"));
    }
    let line = |check: &Check| match check.ok {
        true => format!("[+]{}\n", check.name),
        false => format!("[-]{}: {}\n", check.name, check.text),
    };
    Ok(HttpAnswer::plain(status, checks.iter().map(line).collect::<String>()))
}

/// `GET /readyz` as JSON.
#[derive(Serialize)]
struct ReadyView<'a> {
    status: &'static str,
    reasons: Vec<&'a str>,
    checks: &'a [Check],
}

/// The checks that readiness consists of. `draining`: the server in front of the node stops.
pub fn checks(look: &Inspection, draining: bool) -> Vec<Check> {
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
    let unreached = look.shards.iter().filter(|shard| shard.consensus.leader != 0 && !look.reaches(shard));
    let contact = list(
        unreached.map(|shard| shard.shard.to_string()).collect(),
        "the leader cannot be reached, or takes no writes yet, in group",
    );
    // A member that catches up is not told how far the others are before it is there itself, but by their reports.
    let lacks = |shard: &ShardStatus| look.known(shard.shard).saturating_sub(shard.applied.0);
    let groups = |is_late: &dyn Fn(&ShardStatus) -> bool| {
        look.shards.iter().filter(|shard| is_late(shard)).map(|shard| shard.shard.to_string()).collect()
    };
    let lag = list(groups(&|shard| shard.applied.0 == 0), "nothing is applied yet in group").or_else(|| {
        list(groups(&|shard| lacks(shard) > LAG_MAX), "more than 10000 entries are to be applied in group")
    });
    vec![
        check("storage", storage),
        check("draining", draining),
        check("joined", joined),
        check("leader", leader),
        check("contact", contact),
        check("lag", lag),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(look: &Inspection, path: &str, query: &str) -> (u16, String) {
        let answer = answer(look, Millis(400), path, query, None).expect("there is such a path");
        (answer.status, answer.text().into())
    }

    /// A node that knows no group yet: it lives, and is not ready for one reason.
    #[test]
    fn readiness_is_asked_for_in_parts() {
        let look = Inspection::new("a");
        let reason = "[-]leader: no group runs here yet\n";
        assert_eq!(told(&look, "/healthz", ""), (200, "ok".into()));
        assert_eq!(told(&look, "/livez", ""), (200, "ok".into()));
        let (status, text) = told(&look, "/readyz", "");
        assert!(status == 503 && text.contains(reason) && text.contains("[+]storage\n"), "{text}");
        assert_eq!(told(&look, "/readyz/leader", ""), (503, reason.into()));
        assert_eq!(told(&look, "/readyz/storage", ""), (200, "ok".into()));
        assert_eq!(told(&look, "/readyz", "exclude=leader,contact"), (200, "ok".into()));
        assert_eq!(told(&look, "/readyz", "noleader"), (200, "ok".into()));
        let lines = "[+]storage\n[+]draining\n[+]joined\n[+]lag\n";
        assert_eq!(told(&look, "/readyz", "noleader&verbose"), (200, lines.into()));
        let json =
            answer(&look, Millis(400), "/readyz/leader", "", Some("application/json")).expect("there is such a path");
        let expected = r#"{"status":"not ready","reasons":["no group runs here yet"],"checks":[{"name":"leader","ok":false,"text":"no group runs here yet"}]}"#;
        assert_eq!((json.status, json.content_type, json.text()), (503, "application/json", expected));
        assert_eq!(told(&Inspection { stage: Stage::Stopped, ..look }, "/livez", "").0, 503);
    }

    /// A check that does not exist is refused with the names of those that do; a path that does not exist is somebody else's.
    #[test]
    fn what_does_not_exist_is_told_apart() {
        let look = Inspection::new("a");
        for (path, query) in [("/readyz/color", ""), ("/readyz/", ""), ("/readyz", "exclude=lag,color")] {
            let (status, text) = told(&look, path, query);
            assert!(status == 400 && text.contains("there are storage, draining"), "{path}: {text}");
        }
        for path in ["/", "/kv/readyz", "/readyzz", "/cluster", "/cluster/color", "/cluster/leader-check/200"] {
            assert_eq!(answer(&look, Millis(400), path, "", None), None, "{path}");
        }
        assert_eq!(told(&look, "/cluster/nodes/b", "").0, 404);
        assert_eq!(told(&look, "/cluster/leader", "").0, 503);
        assert_eq!(told(&look, "/cluster/leader-check/418", ""), (418, "Not leader".into()));
    }
}
