//! Sending a client to the leader instead of going there for it: on request, or by setting.

use api::{Code, Problem};
use base::ShardId;

use crate::http::call::{Call, Outcome, task_id};
use crate::http::edge::Edge;
use crate::http::routes::Route;

impl Edge {
    /// Refuses a write with the leader's place, if that is wanted and one other node leads all these shards. Otherwise it is forwarded.
    pub(crate) fn redirect(&self, call: &Call, shards: impl IntoIterator<Item = ShardId>) -> Outcome<()> {
        let wanted = match call.query("redirect").as_deref() {
            Some("true") => true,
            Some("false") => false,
            _ => self.shared.settings.follower_redirects,
        };
        if !wanted {
            return Ok(());
        }
        let mut leaders = shards.into_iter().map(|shard| self.node.leader(shard));
        let Some(leader) = leaders.next().filter(|leader| *leader != 0 && *leader != self.node.id()) else {
            return Ok(());
        };
        let Some(member) = self.node.member(leader).filter(|member| !member.url.is_empty()) else { return Ok(()) };
        if leaders.any(|other| other != leader) {
            return Ok(());
        }
        let path = call.head.uri.path_and_query().map_or("", |path| path.as_str());
        let url = member.url.trim_end_matches('/');
        let problem = Problem::new(Code::NotLeader, format!("{} leads; repeat the request there", member.name));
        Err(Box::new(Problem {
            location: Some(format!("{url}{path}")),
            leader: Some((url.to_owned(), member.name)),
            ..problem
        }))
    }

    /// The same for routes whose path names the task.
    pub(crate) fn redirect_by_path(&self, route: &Route<'_>, call: &Call) -> Outcome<()> {
        let (Route::Heartbeat(id)
        | Route::Abandon(id)
        | Route::Nack(id)
        | Route::SubmitResult(id)
        | Route::Cancel(id)
        | Route::Redrive(id)) = route
        else {
            return Ok(());
        };
        let shard = task_id(id).map(|id| id.shard).filter(|shard| shard.0 < self.node.identity().shards);
        self.redirect(call, shard)
    }
}
