//! `/livez` and `/metrics`.

use base::ShardId;
use cluster::{Freshness, Stage};
use queue::{Answer as Told, Query};

use crate::http::answer::Answer;
use crate::http::call::Outcome;
use crate::http::edge::Edge;

/// A loop that has not turned for longer hangs: a disk does not answer, or the machine is frozen.
const TURN_MAX: base::Millis = base::Millis(2_000);

impl Edge {
    /// The process lives: its loop turns, and its storage has not failed. Says nothing about leaders.
    pub(crate) fn livez(&self) -> Answer {
        match (self.node.status().stage, self.node.last_turn()) {
            (Stage::Stopped, _) => Answer::text(503, "stopped"),
            (Stage::Running | Stage::Draining, last) if last > TURN_MAX => {
                Answer::text(503, format!("the loop has not turned for {} ms", last.0))
            }
            _ => Answer::text(200, "ok"),
        }
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
                let freshness = Freshness::AtLeast { index: base::Index(0), up_to: base::Millis(0) };
                let asked = self.node.ask(ShardId(shard), Query::Queues, freshness, None, Some(self.lane)).await;
                if let Ok((_, Told::Queues(of_shard))) = asked {
                    queues.extend(of_shard);
                }
            }
        }
        Ok(Answer::metrics(self.shared.metrics.render(&queues, &self.node, self.shared.waiting.len())))
    }
}
