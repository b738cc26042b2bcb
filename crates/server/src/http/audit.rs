//! The record of what operators do: an event for each action, done or refused, with who wanted it and from where.

use cluster::AdminAction;
use hyper::Method;

use crate::http::answer::Answer;
use crate::http::call::{Call, Outcome};
use crate::http::edge::Edge;
use crate::http::routes::Route;
use crate::http::source::Source;

impl Edge {
    /// Tells of an action and what has come of it. Questions change nothing, and are not told of.
    pub(crate) fn record_action(&self, route: &Route<'_>, call: &Call, from: Source, outcome: &Outcome<Answer>) {
        let asks = matches!(call.head.method, Method::GET | Method::HEAD);
        if asks || !route.is_action() {
            return;
        }
        let own = &self.node.identity().node;
        let target = match route {
            Route::RemoveMember(member)
            | Route::Demote(member)
            | Route::Promote(member)
            | Route::Replace(member)
            | Route::RevokeToken(member) => member.as_ref(),
            _ => own,
        };
        let result = match outcome {
            Ok(_) => "done".into(),
            Err(problem) => format!("{}: {}", problem.code.name(), problem.detail),
        };
        self.node.tell_action(&AdminAction {
            who: &call.principal.subject,
            from: &from.to_string(),
            action: &format!("{} {}", call.head.method, call.head.uri.path()),
            target,
            result: &result,
        });
    }
}
