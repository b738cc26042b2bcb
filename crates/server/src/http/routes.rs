//! Which path is what, and who may call it. One table: a route without a row does not exist.

use std::borrow::Cow;

use api::{Code, Problem};
use hyper::Method;

use crate::auth::{Access, scope};
use crate::http::questions;

/// A route with what its path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    CreateTask,
    ListTasks,
    ListDead,
    DeadGroups,
    ListQueues,
    ShowQueue(Cow<'a, str>),
    PauseQueue(Cow<'a, str>),
    ResumeQueue(Cow<'a, str>),
    PurgeQueue(Cow<'a, str>),
    RedriveDead,
    PurgeDead,
    CancelTasks,
    ListOperations,
    ShowOperation(Cow<'a, str>),
    StopOperation(Cow<'a, str>),
    ResumeOperation(Cow<'a, str>),
    EditTask(Cow<'a, str>),
    HeartbeatBatch,
    Whoami,
    OpenApi,
    CreateBatch,
    Claim,
    ClaimBatch,
    BatchResults,
    Heartbeat(Cow<'a, str>),
    Abandon(Cow<'a, str>),
    Nack(Cow<'a, str>),
    SubmitResult(Cow<'a, str>),
    Cancel(Cow<'a, str>),
    Redrive(Cow<'a, str>),
    GetTask(Cow<'a, str>),
    GetResult(Cow<'a, str>),
    TaskHistory(Cow<'a, str>),
    TaskEvents(Cow<'a, str>),
    Events,
    GetQueue(Cow<'a, str>),
    RaftStatus,
    /// A page of the cluster, by its path.
    Cluster(&'a str),
    Join,
    /// A question of orchestrator's, by its path.
    Question(&'a str),
    /// The page for people.
    Page,
    Bundle,
    Save,
    Restore,
    Trigger,
    Reload,
    Leave,
    AddMember,
    CreateToken,
    ListTokens,
    RevokeToken(Cow<'a, str>),
    RemoveMember(Cow<'a, str>),
    Demote(Cow<'a, str>),
    Promote(Cow<'a, str>),
    Replace(Cow<'a, str>),
    Transfer,
    StepDown,
    CheckQuorum,
    Healthz,
    Livez,
    /// All checks, or one.
    Readyz(Option<&'a str>),
    Metrics,
}

impl Route<'_> {
    /// Who may call it.
    pub(crate) fn access(&self) -> Access {
        match self {
            Route::CreateTask | Route::CreateBatch | Route::Cancel(_) | Route::EditTask(_) => Access::Producer,
            Route::Claim | Route::ClaimBatch => Access::Worker(scope::CLAIM),
            Route::Heartbeat(_) | Route::HeartbeatBatch => Access::Worker(scope::HEARTBEAT),
            Route::Abandon(_) => Access::Worker(scope::ABANDON),
            Route::Nack(_) => Access::Worker(scope::NACK),
            Route::SubmitResult(_) | Route::BatchResults => Access::Worker(scope::RESULT),
            Route::GetTask(_) | Route::GetResult(_) | Route::RaftStatus => Access::Any,
            Route::TaskHistory(_) | Route::TaskEvents(_) | Route::Events => Access::Any,
            Route::ListTasks
            | Route::ListDead
            | Route::DeadGroups
            | Route::ListQueues
            | Route::ShowQueue(_)
            | Route::Whoami => Access::Any,
            Route::GetQueue(_)
            | Route::Redrive(_)
            | Route::PauseQueue(_)
            | Route::ResumeQueue(_)
            | Route::PurgeQueue(_)
            | Route::RedriveDead
            | Route::PurgeDead
            | Route::CancelTasks
            | Route::ListOperations
            | Route::ShowOperation(_)
            | Route::StopOperation(_)
            | Route::ResumeOperation(_) => Access::Admin,
            Route::Cluster(page) if *page == "/cluster/health" || page.starts_with("/cluster/leader-check") => {
                Access::Open
            }
            Route::Cluster("/cluster/events") => Access::Viewer,
            Route::Cluster(MONITOR) => Access::Operator,
            Route::Cluster(_) | Route::CheckQuorum | Route::Page => Access::Any,
            Route::Question(path) => questions::access(path),
            Route::Join => Access::Join,
            Route::Bundle | Route::Restore | Route::CreateToken | Route::ListTokens | Route::RevokeToken(_) => {
                Access::ClusterAdmin
            }
            Route::Save
            | Route::Trigger
            | Route::Reload
            | Route::Leave
            | Route::AddMember
            | Route::RemoveMember(_)
            | Route::Demote(_)
            | Route::Promote(_)
            | Route::Replace(_)
            | Route::Transfer
            | Route::StepDown => Access::Operator,
            Route::OpenApi | Route::Healthz | Route::Livez | Route::Readyz(_) | Route::Metrics => Access::Open,
        }
    }
}

impl Route<'_> {
    /// Whether it changes something of the cluster or of this node.
    pub(crate) fn is_action(&self) -> bool {
        matches!(self.access(), Access::Join | Access::Operator | Access::ClusterAdmin)
            && !matches!(self, Route::Save | Route::Bundle | Route::ListTokens)
    }
}

const BASE: &str = "/v1/codeq/";
/// The log of a node, as it is written.
pub(crate) const MONITOR: &str = "/cluster/monitor";
const MEMBERS: &str = "/cluster/members/";
const TOKENS: &str = "/cluster/tokens/";

/// The route of a request. `HEAD` goes where `GET` does; one trailing slash is ignored.
///
/// # Errors
/// There is no such path, or it has other methods.
pub(crate) fn find<'a>(method: &Method, path: &'a str) -> Result<Route<'a>, Box<Problem>> {
    let path = path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path);
    if let Some(instead) = questions::action(path) {
        return Err(Box::new(Problem::new(Code::MethodNotAllowed, format!("to do that, use {instead}"))));
    }
    let (route, allowed) = of_path(path, method).ok_or_else(|| not_found(path))?;
    if *method == allowed || (*method == Method::HEAD && allowed == Method::GET) {
        return Ok(route);
    }
    let allow = if allowed == Method::GET { "GET, HEAD" } else { allowed.as_str() };
    Err(Box::new(Problem::new(Code::MethodNotAllowed, format!("this path takes {allow}"))))
}

/// The methods of a path that exists, for the header `Allow`.
pub(crate) fn allowed(path: &str) -> &'static str {
    let path = path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path);
    let is_action = questions::action(path).is_some();
    let takes = |method: &Method| !is_action && of_path(path, method).is_some_and(|(_, allowed)| allowed == *method);
    match (takes(&Method::GET), takes(&Method::POST)) {
        (true, false) if takes(&Method::PUT) => "GET, HEAD, PUT",
        (true, true) => "GET, HEAD, POST",
        (true, false) if takes(&Method::PATCH) => "GET, HEAD, PATCH",
        (true, false) => "GET, HEAD",
        (false, false) if takes(&Method::DELETE) => "DELETE",
        (false, false) => "",
        (false, true) => "POST",
    }
}

/// The route and its method. Where a path is something else by method, `method` decides; fixed segments win over ids on `POST`.
fn of_path<'a>(path: &'a str, method: &Method) -> Option<(Route<'a>, Method)> {
    let (get, post) = (Method::GET, Method::POST);
    match path {
        "/healthz" => return Some((Route::Healthz, get)),
        "/livez" => return Some((Route::Livez, get)),
        "/readyz" => return Some((Route::Readyz(None), get)),
        "/metrics" => return Some((Route::Metrics, get)),
        "/openapi.json" => return Some((Route::OpenApi, get)),
        "/cluster/join" => return Some((Route::Join, post)),
        "/" | "/web/status" => return Some((Route::Page, get)),
        _ if path.starts_with("/api/") => return Some((Route::Question(path), get)),
        "/cluster/snapshot" if *method == Method::PUT => return Some((Route::Restore, Method::PUT)),
        "/cluster/snapshot" => return Some((Route::Save, get)),
        "/cluster/debug-bundle" => return Some((Route::Bundle, get)),
        "/cluster/snapshot/trigger" => return Some((Route::Trigger, post)),
        "/cluster/reload" => return Some((Route::Reload, post)),
        "/cluster/leave" => return Some((Route::Leave, post)),
        "/cluster/members" => return Some((Route::AddMember, post)),
        "/cluster/tokens" if *method == post => return Some((Route::CreateToken, post)),
        "/cluster/tokens" => return Some((Route::ListTokens, get)),
        _ if path.starts_with(TOKENS) => {
            let id = decode(path.strip_prefix(TOKENS)?)?;
            return Some((Route::RevokeToken(id), Method::DELETE));
        }
        "/cluster/leader/transfer" => return Some((Route::Transfer, post)),
        "/cluster/leader/step-down" => return Some((Route::StepDown, post)),
        "/cluster/check/quorum" => return Some((Route::CheckQuorum, get)),
        _ if path.starts_with(MEMBERS) => {
            let mut parts = path.strip_prefix(MEMBERS)?.split('/');
            let member = decode(parts.next()?)?;
            return match (parts.next(), parts.next()) {
                (None, _) => Some((Route::RemoveMember(member), Method::DELETE)),
                (Some("demote"), None) => Some((Route::Demote(member), post)),
                (Some("promote"), None) => Some((Route::Promote(member), post)),
                (Some("replace"), None) => Some((Route::Replace(member), post)),
                _ => None,
            };
        }
        _ if path.starts_with("/cluster/") => return Some((Route::Cluster(path), get)),
        _ => {}
    }
    if let Some(check) = path.strip_prefix("/readyz/") {
        return Some((Route::Readyz(Some(check)), get));
    }
    let mut segments = path.strip_prefix(BASE)?.split('/');
    let parts = [segments.next(), segments.next(), segments.next()];
    if segments.next().is_some() {
        return None;
    }
    Some(match parts {
        [Some("tasks"), None, None] if *method == post => (Route::CreateTask, post),
        [Some("tasks"), None, None] => (Route::ListTasks, get),
        [Some("dlq"), None, None] => (Route::ListDead, get),
        [Some("dlq"), Some("redrive"), None] => (Route::RedriveDead, post),
        [Some("dlq"), Some("purge"), None] => (Route::PurgeDead, post),
        [Some("dlq"), Some("groups"), None] => (Route::DeadGroups, get),
        [Some("queues"), None, None] => (Route::ListQueues, get),
        [Some("queues"), Some(command), None] => (Route::ShowQueue(decode(command)?), get),
        [Some("queues"), Some(command), Some("pause")] => (Route::PauseQueue(decode(command)?), post),
        [Some("queues"), Some(command), Some("resume")] => (Route::ResumeQueue(decode(command)?), post),
        [Some("queues"), Some(command), Some("purge")] => (Route::PurgeQueue(decode(command)?), post),
        [Some("operations"), None, None] => (Route::ListOperations, get),
        [Some("operations"), Some(id), None] => (Route::ShowOperation(decode(id)?), get),
        [Some("operations"), Some(id), Some("stop")] => (Route::StopOperation(decode(id)?), post),
        [Some("operations"), Some(id), Some("resume")] => (Route::ResumeOperation(decode(id)?), post),
        [Some("whoami"), None, None] => (Route::Whoami, get),
        [Some("openapi.json"), None, None] => (Route::OpenApi, get),
        [Some("tasks"), Some("batch"), None] if *method == post => (Route::CreateBatch, post),
        [Some("tasks"), Some("batch"), Some("results")] => (Route::BatchResults, post),
        [Some("tasks"), Some("batch"), Some("heartbeat")] => (Route::HeartbeatBatch, post),
        [Some("tasks"), Some("cancel"), None] if *method == post => (Route::CancelTasks, post),
        [Some("tasks"), Some("claim"), None] if *method == post => (Route::Claim, post),
        [Some("tasks"), Some("claim"), Some("batch")] => (Route::ClaimBatch, post),
        [Some("tasks"), Some(id), None] if *method == Method::PATCH && !is_fixed(id) => {
            (Route::EditTask(decode(id)?), Method::PATCH)
        }
        [Some("tasks"), Some(id), None] => (Route::GetTask(decode(id)?), get),
        [Some("tasks"), Some(id), Some("heartbeat")] => (Route::Heartbeat(decode(id)?), post),
        [Some("tasks"), Some(id), Some("abandon")] => (Route::Abandon(decode(id)?), post),
        [Some("tasks"), Some(id), Some("nack")] => (Route::Nack(decode(id)?), post),
        [Some("tasks"), Some(id), Some("cancel")] => (Route::Cancel(decode(id)?), post),
        [Some("tasks"), Some(id), Some("redrive")] => (Route::Redrive(decode(id)?), post),
        [Some("tasks"), Some(id), Some("result")] if *method == post => (Route::SubmitResult(decode(id)?), post),
        [Some("tasks"), Some(id), Some("result")] => (Route::GetResult(decode(id)?), get),
        [Some("events"), None, None] => (Route::Events, get),
        [Some("tasks"), Some(id), Some("events")] => (Route::TaskEvents(decode(id)?), get),
        [Some("tasks"), Some(id), Some("history")] => (Route::TaskHistory(decode(id)?), get),
        [Some("admin"), Some("queues"), Some(command)] => (Route::GetQueue(decode(command)?), get),
        [Some("raft"), Some("status"), None] => (Route::RaftStatus, get),
        _ => return None,
    })
}

/// Whether something else than a task has this place, for other methods than `GET`.
fn is_fixed(segment: &str) -> bool {
    matches!(segment, "batch" | "cancel" | "claim")
}

fn not_found(path: &str) -> Box<Problem> {
    let shown: String = path.chars().take(200).collect();
    Box::new(Problem::new(Code::RouteNotFound, format!("there is no {shown}")))
}

/// A segment with its percent escapes undone, once. An encoded slash does not become one that separates. Nothing: it is not UTF-8, or empty.
fn decode(segment: &str) -> Option<Cow<'_, str>> {
    if segment.is_empty() {
        return None;
    }
    if !segment.contains('%') {
        return Some(segment.into());
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let mut digit = || char::from(rest.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            bytes.push((high * 16 + low) as u8);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &Method, path: &str, expected: &Result<Route<'_>, Code>) {
        assert_eq!(&find(method, path).map_err(|problem| problem.code), expected, "{method} {path}");
    }

    #[test]
    fn paths_lead_to_their_routes() {
        let (get, post) = (&Method::GET, &Method::POST);
        check(post, "/v1/codeq/tasks", &Ok(Route::CreateTask));
        check(post, "/v1/codeq/tasks/", &Ok(Route::CreateTask));
        check(get, "/v1/codeq/tasks", &Ok(Route::ListTasks));
        check(get, "/v1/codeq/dlq", &Ok(Route::ListDead));
        check(get, "/v1/codeq/dlq/groups", &Ok(Route::DeadGroups));
        check(get, "/v1/codeq/queues/", &Ok(Route::ListQueues));
        check(get, "/v1/codeq/queues/a%3Ab", &Ok(Route::ShowQueue("a:b".into())));
        check(get, "/v1/codeq/whoami", &Ok(Route::Whoami));
        check(get, "/", &Ok(Route::Page));
        check(get, "/web/status/", &Ok(Route::Page));
        check(get, "/api/leader-check/503", &Ok(Route::Question("/api/leader-check/503")));
        check(get, "/api/raft-yield/codeq2", &Err(Code::MethodNotAllowed));
        check(post, "/v1/codeq/tasks/batch", &Ok(Route::CreateBatch));
        check(post, "/v1/codeq/tasks/claim", &Ok(Route::Claim));
        check(post, "/v1/codeq/tasks/claim/batch", &Ok(Route::ClaimBatch));
        check(post, "/v1/codeq/tasks/batch/results", &Ok(Route::BatchResults));
        check(post, "/v1/codeq/tasks/batch/heartbeat", &Ok(Route::HeartbeatBatch));
        check(post, "/v1/codeq/tasks/cancel", &Ok(Route::CancelTasks));
        check(&Method::PATCH, "/v1/codeq/tasks/x", &Ok(Route::EditTask("x".into())));
        check(post, "/v1/codeq/queues/mail/pause", &Ok(Route::PauseQueue("mail".into())));
        check(post, "/v1/codeq/queues/mail/resume", &Ok(Route::ResumeQueue("mail".into())));
        check(post, "/v1/codeq/queues/mail/purge", &Ok(Route::PurgeQueue("mail".into())));
        check(post, "/v1/codeq/dlq/redrive", &Ok(Route::RedriveDead));
        check(post, "/v1/codeq/dlq/purge", &Ok(Route::PurgeDead));
        check(get, "/v1/codeq/operations", &Ok(Route::ListOperations));
        check(get, "/v1/codeq/operations/op-1", &Ok(Route::ShowOperation("op-1".into())));
        check(post, "/v1/codeq/operations/op-1/stop", &Ok(Route::StopOperation("op-1".into())));
        check(post, "/v1/codeq/operations/op-1/resume", &Ok(Route::ResumeOperation("op-1".into())));
        assert_eq!(allowed("/v1/codeq/tasks/x"), "GET, HEAD, PATCH");
        check(post, "/v1/codeq/tasks/x/heartbeat", &Ok(Route::Heartbeat("x".into())));
        check(post, "/v1/codeq/tasks/x/abandon", &Ok(Route::Abandon("x".into())));
        check(post, "/v1/codeq/tasks/x/nack", &Ok(Route::Nack("x".into())));
        check(post, "/v1/codeq/tasks/x/result", &Ok(Route::SubmitResult("x".into())));
        check(post, "/v1/codeq/tasks/x/cancel", &Ok(Route::Cancel("x".into())));
        check(post, "/v1/codeq/tasks/x/redrive", &Ok(Route::Redrive("x".into())));
        check(get, "/v1/codeq/tasks/x/result", &Ok(Route::GetResult("x".into())));
        check(get, "/v1/codeq/tasks/x", &Ok(Route::GetTask("x".into())));
        check(&Method::HEAD, "/v1/codeq/tasks/x", &Ok(Route::GetTask("x".into())));
        check(get, "/v1/codeq/events", &Ok(Route::Events));
        check(get, "/v1/codeq/tasks/x/events", &Ok(Route::TaskEvents("x".into())));
        check(get, "/v1/codeq/tasks/x/history", &Ok(Route::TaskHistory("x".into())));
        check(get, "/v1/codeq/admin/queues/a%3Ab", &Ok(Route::GetQueue("a:b".into())));
        check(get, "/v1/codeq/raft/status", &Ok(Route::RaftStatus));
        check(get, "/healthz", &Ok(Route::Healthz));
        check(get, "/cluster/snapshot", &Ok(Route::Save));
        check(get, "/cluster/debug-bundle", &Ok(Route::Bundle));
        check(&Method::PUT, "/cluster/snapshot", &Ok(Route::Restore));
        check(post, "/cluster/snapshot", &Err(Code::MethodNotAllowed));
        assert_eq!(allowed("/cluster/snapshot"), "GET, HEAD, PUT");
        check(post, "/cluster/leader/step-down", &Ok(Route::StepDown));
        check(&Method::DELETE, "/cluster/members/node-a", &Ok(Route::RemoveMember("node-a".into())));
        check(post, "/cluster/members/node-a/replace", &Ok(Route::Replace("node-a".into())));
        check(post, "/cluster/members/node-a/demote", &Ok(Route::Demote("node-a".into())));
        check(post, "/cluster/tokens", &Ok(Route::CreateToken));
        check(get, "/cluster/tokens", &Ok(Route::ListTokens));
        check(&Method::DELETE, "/cluster/tokens/a1", &Ok(Route::RevokeToken("a1".into())));
        assert_eq!(allowed("/cluster/tokens"), "GET, HEAD, POST");
        check(get, "/cluster/members/node-a", &Err(Code::MethodNotAllowed));
        check(&Method::DELETE, "/cluster/members/a/b", &Err(Code::RouteNotFound));
    }

    #[test]
    fn fixed_segments_win_over_ids_where_their_method_is_asked_for() {
        check(&Method::GET, "/v1/codeq/tasks/claim", &Ok(Route::GetTask("claim".into())));
        check(&Method::GET, "/v1/codeq/tasks/batch", &Ok(Route::GetTask("batch".into())));
        check(&Method::PUT, "/v1/codeq/tasks/claim", &Err(Code::MethodNotAllowed));
    }

    #[test]
    fn other_paths_and_methods_are_refused() {
        let get = &Method::GET;
        for path in [
            "",
            "/v1",
            "/v1/codeq",
            "/v1/codeq/",
            "/v1/codeq/tasks//result",
            "/v1/codeq/tasks/x/y/z",
            "/v1/codeq/tasks/x/unknown",
            "/V1/codeq/tasks/x",
            "/v1/codeq/../codeq/tasks/x",
            "/v1/codeq/tasks/%ff",
            "/v1/codeq/tasks/%zz",
            "/v1/codeq/tasks/%2",
            "//healthz",
        ] {
            check(get, path, &Err(Code::RouteNotFound));
        }
        check(get, "/v1/codeq/tasks/a%2Fb", &Ok(Route::GetTask("a/b".into())));
        check(get, "/v1/codeq/tasks/batch/results", &Err(Code::MethodNotAllowed));
        check(&Method::DELETE, "/v1/codeq/tasks/x", &Err(Code::MethodNotAllowed));
        check(&Method::POST, "/healthz", &Err(Code::MethodNotAllowed));
        check(&Method::DELETE, "/v1/codeq/tasks", &Err(Code::MethodNotAllowed));
        assert_eq!(allowed("/v1/codeq/tasks"), "GET, HEAD, POST");
        assert_eq!(allowed("/v1/codeq/tasks/x/result"), "GET, HEAD, POST");
        assert_eq!(allowed("/healthz"), "GET, HEAD");
        assert_eq!(allowed("/cluster/members/node-a"), "DELETE");
    }
}
