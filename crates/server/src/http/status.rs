//! `/livez` and `/metrics`.

use base::ShardId;
use cluster::{Freshness, LaneId, Stage};
use queue::{Answer as Told, Query};

use crate::http::answer::Answer;
use crate::http::call::Outcome;
use crate::http::edge::{Edge, Shared};
use crate::metrics::render_certificates;

impl Edge {
    /// The process lives: its loop turns, and its storage has not failed. Says nothing about leaders.
    pub(crate) fn livez(&self) -> Answer {
        Answer::from(cluster::http::live(&self.node.stage(), self.node.last_turn()))
    }

    pub(crate) async fn metrics(&self) -> Outcome<Answer> {
        match metrics(&self.shared, Some(self.lane)).await {
            Some(text) => Ok(Answer::metrics(text)),
            None => {
                let problem = api::Problem::new(api::Code::RouteNotFound, "metrics are off (metrics.enabled)");
                Err(Box::new(problem))
            }
        }
    }
}

/// The page of metrics, unless they are off.
pub(crate) async fn metrics(shared: &Shared, lane: Option<LaneId>) -> Option<String> {
    if !shared.settings.metrics_enabled {
        return None;
    }
    let mut queues = Vec::new();
    // While the node starts there are no queues to tell of.
    if matches!(shared.node.stage(), Stage::Running | Stage::Draining) {
        for shard in 0..shared.node.identity().shards {
            let asked = shared.node.ask(ShardId(shard), Query::Queues, Freshness::STALE, None, lane).await;
            if let Ok((_, Told::Queues(of_shard))) = asked {
                queues.extend(of_shard);
            }
        }
    }
    let streams = shared.settings.limits.event_streams_max - shared.event_streams.available_permits();
    let (waiting, backup) = (shared.waiting.len(), shared.last_backup.age());
    let mut text = shared.metrics.render(&queues, &shared.node, waiting, streams, backup);
    render_certificates(&mut text, &shared.reload.certificates());
    Some(text)
}
