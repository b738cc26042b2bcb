//! `/healthz`, `/livez`, `/readyz`, `/metrics` and `/v1/codeq/raft/status`.

use api::json::Writer;
use base::ShardId;
use cluster::{Freshness, Stage};
use queue::{Answer as Told, Query};

use crate::http::answer::Answer;
use crate::http::call::Outcome;
use crate::http::edge::Edge;

impl Edge {
    /// The process lives and its storage has not failed. Says nothing about leaders.
    pub(crate) fn livez(&self) -> Answer {
        match self.node.status().stage {
            Stage::Stopped => Answer::text(503, "stopped"),
            _ => Answer::text(200, "ok"),
        }
    }

    /// Whether requests can be served: a line per check that fails.
    pub(crate) fn readyz(&self) -> Answer {
        let status = self.node.status();
        let mut failing = Vec::new();
        match &status.stage {
            Stage::Unjoined(what) => failing.push(format!("[-]joined: not joined: {what}")),
            Stage::Starting(what) => failing.push(format!("[-]storage: {what}")),
            Stage::Stopped => failing.push("[-]storage: the node has stopped".into()),
            Stage::Draining => failing.push("[-]draining: the server stops".into()),
            Stage::Running => {}
        }
        if self.is_draining() && status.stage == Stage::Running {
            failing.push("[-]draining: the server stops".into());
        }
        let leaderless: Vec<String> = status
            .shards
            .iter()
            .filter(|shard| !self.node.serves(shard))
            .map(|shard| shard.shard.to_string())
            .collect();
        if !leaderless.is_empty() {
            failing.push(format!("[-]leader: no leader takes writes in group {}", leaderless.join(", ")));
        }
        if failing.is_empty() {
            return Answer::text(200, "ok");
        }
        failing.push(String::new());
        Answer::text(503, failing.join("\n"))
    }

    /// Where consensus stands on this node: the union of codeQ's page and its code.
    pub(crate) fn raft_status(&self) -> Answer {
        let status = self.node.status();
        let identity = self.node.identity();
        let name = &*identity.node;
        let leads = |shard: &cluster::ShardStatus| shard.consensus.leader == identity.incarnation.0;
        let first = status.shards.first();
        let http = &self.shared.settings.http_advertise;
        let raft = self.shared.settings.raft;
        // In single mode there is nothing to say of groups.
        let shards = if raft { &*status.shards } else { &[] };
        Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.flag("enabled", raft);
            body.text("leaderID", if first.is_some_and(leads) { name } else { "" });
            body.value("peers", |out| {
                let mut peers = Writer::array(out);
                peers.element(|out| {
                    let mut peer = Writer::object(out);
                    peer.text("id", name);
                    peer.text("bindAddr", "");
                    peer.text("httpAddr", http);
                    peer.flag("voter", true);
                    peer.flag("healthy", status.stage == Stage::Running);
                    peer.flag("isLeader", first.is_some_and(leads));
                    peer.end();
                });
                peers.end();
            });
            body.number("numGroups", shards.len() as u64);
            let write_groups = |out: &mut Vec<u8>| {
                let mut groups = Writer::array(out);
                for shard in shards {
                    let leads = leads(shard);
                    groups.element(|out| {
                        let mut group = Writer::object(out);
                        group.number("shardIdx", u64::from(shard.shard.0));
                        group.flag("isLeader", leads);
                        group.text("selfId", name);
                        group.text("selfAddr", "");
                        group.text("leaderId", if leads { name } else { "" });
                        group.text("leaderAddr", "");
                        if leads {
                            group.text("leaderHTTPAddr", &format!("http://{http}"));
                        }
                        group.flag("hasLeader", shard.consensus.leader != 0);
                        group.number("term", shard.consensus.term.0);
                        group.number("commitIndex", shard.consensus.commit.0);
                        group.number("appliedIndex", shard.applied.0);
                        group.number("lag", shard.consensus.commit.0 - shard.applied.0);
                        group.end();
                    });
                }
                groups.end();
            };
            if raft {
                body.value("groups", write_groups);
            }
            body.plain("clusterId", &identity.cluster_incarnation.to_string());
            body.number("term", first.map_or(0, |shard| shard.consensus.term.0));
            body.value("quorum", |out| {
                let mut quorum = Writer::object(out);
                quorum.number("voters", 1);
                quorum.number("needed", 1);
                quorum.number("reachable", 1);
                quorum.number("failureTolerance", 0);
                quorum.end();
            });
            body.end();
        })
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
