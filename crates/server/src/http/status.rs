//! `/livez` and `/metrics`.

use base::ShardId;
use cluster::Freshness;
use queue::{Answer as Told, Query};

use crate::http::answer::Answer;
use crate::http::call::Outcome;
use crate::http::edge::Edge;

impl Edge {
    /// The process lives: its loop turns, and its storage has not failed. Says nothing about leaders.
    pub(crate) fn livez(&self) -> Answer {
        Answer::from(cluster::http::live(&self.node.stage(), self.node.last_turn()))
    }

    pub(crate) async fn metrics(&self) -> Outcome<Answer> {
        let settings = &self.shared.settings;
        if !settings.metrics_enabled {
            let problem = api::Problem::new(api::Code::RouteNotFound, "metrics are off (metrics.enabled)");
            return Err(Box::new(problem));
        }
        let mut queues = Vec::new();
        // While the node starts there are no queues to tell of.
        if self.check_running().is_ok() {
            for shard in 0..self.node.identity().shards {
                let asked = self.node.ask(ShardId(shard), Query::Queues, Freshness::STALE, None, Some(self.lane)).await;
                if let Ok((_, Told::Queues(of_shard))) = asked {
                    queues.extend(of_shard);
                }
            }
        }
        Ok(Answer::metrics(self.shared.metrics.render(
            &queues,
            &self.node,
            self.shared.waiting.len(),
            self.shared.last_backup.age(),
        )))
    }
}
