//! What this node says of its cluster: `/cluster/*`, `/readyz`, and codeQ's status of Raft. All of it is made of one look at the node.

use std::sync::Weak;

use api::json::Writer;
use api::{Code, Problem};
use cluster::Refused;
use cluster::http::{NoSuchCheck, Readiness, checks, ready};
use cluster::view::{Inspection, NodeView};

use crate::auth::{ClusterRole, Principal};
use crate::http::answer::Answer;
use crate::http::call::{Call, Outcome};
use crate::http::edge::{Edge, Shared};
use crate::http::operate::problem;
use crate::http::page::page;
use crate::http::questions::Asked;

/// Addresses of one request to join.
const ADDRESSES_MAX: usize = 32;

/// Whether a page of the cluster tells what has happened.
pub(crate) fn is_look_back(page: &str) -> bool {
    matches!(page, "/cluster/events" | "/cluster/elections" | "/cluster/timeline")
}

/// The page `/cluster/status` of this server; nothing: it ends.
pub(crate) fn own_status(shared: &Weak<Shared>) -> Option<Vec<u8>> {
    let shared = shared.upgrade()?;
    let page = cluster::http::get("/cluster/status", &shared.node.inspect(), shared.settings.leader_lease);
    page.map(|answer| answer.body)
}

impl Edge {
    pub(crate) fn get_cluster(&self, path: &str) -> Outcome<Answer> {
        let answer = cluster::http::get(path, &self.node.inspect(), self.shared.settings.leader_lease);
        match answer {
            Some(answer) => Ok(Answer::from(answer)),
            None => Err(Box::new(Problem::new(Code::RouteNotFound, "the cluster has no such page"))),
        }
    }

    /// The status of this node, or with `?all` of every member.
    pub(crate) async fn status_page(&self, path: &str, call: &Call) -> Outcome<Answer> {
        if call.query("all").is_none_or(|all| all == "false") {
            return self.get_cluster(path);
        }
        Ok(Answer::from(cluster::http::status_of_all(&self.node, self.shared.settings.leader_lease).await))
    }

    /// An answer in orchestrator's words.
    pub(crate) fn question(&self, path: &str) -> Outcome<Answer> {
        let settings = &self.shared.settings;
        let look = self.node.inspect();
        let asked =
            Asked { look: &look, raft: settings.raft, lease: settings.leader_lease, draining: self.is_draining() };
        asked.answer(path).ok_or_else(|| Box::new(Problem::new(Code::RouteNotFound, "there is no such question")))
    }

    /// The page for people.
    pub(crate) fn page(&self, call: &Call) -> Answer {
        let settings = &self.shared.settings;
        let Principal { subject, cluster_role, .. } = &*call.principal;
        let role = cluster_role.map_or("no role in the cluster", ClusterRole::name);
        let who = if settings.auth.open.is_some() { "anybody".into() } else { format!("{subject}, {role}") };
        Answer::html(page(&self.node.inspect(), settings.raft, &who, settings.read_only))
    }

    /// What has happened in the cluster.
    pub(crate) async fn look_back(&self, page: &str, call: &Call) -> Outcome<Answer> {
        if let Some(stream) = self.follow(page, call) {
            return stream;
        }
        let query = call.head.uri.query().unwrap_or_default();
        match cluster::http::look_back(&self.node, page, query).await {
            Some(answer) => Ok(Answer::from(answer)),
            None => self.get_cluster(page),
        }
    }

    /// Makes this node known to others, and them to it. Where it belongs to a cluster already, there is nothing to do.
    pub(crate) async fn join(&self, call: &Call) -> Outcome<Answer> {
        let addresses = addresses(&call.body).ok_or_else(|| {
            let detail = format!("addresses is a list of 1 to {ADDRESSES_MAX} texts host:port");
            Box::new(Problem::new(Code::InvalidField, detail).field("addresses"))
        })?;
        if self.node.peer_addr().is_none() {
            return Err(problem(&Refused::SingleMode));
        }
        let already = self.node.cluster().is_some();
        let answers = if already { Vec::new() } else { self.node.meet(&addresses).await };
        let failed: Vec<(&String, &String)> = addresses
            .iter()
            .zip(&answers)
            .filter_map(|(address, answer)| Some((address, answer.as_ref().err()?)))
            .collect();
        if !already && failed.len() == answers.len() {
            let failed: Vec<String> = failed.iter().map(|(address, why)| format!("{address}: {why}")).collect();
            return Err(Box::new(Problem::new(Code::NotJoined, format!("no address answered; {}", failed.join("; ")))));
        }
        Ok(Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.flag("ok", true);
            body.flag("alreadyMember", already);
            body.value("contacted", |out| {
                let mut list = Writer::array(out);
                answers.iter().flatten().for_each(|name| list.element(|out| api::json::write_text(name, out)));
                list.end();
            });
            body.value("failed", |out| {
                let mut list = Writer::array(out);
                for (address, why) in failed {
                    list.element(|out| {
                        let mut item = Writer::object(out);
                        item.text("address", address);
                        item.text("reason", why);
                        item.end();
                    });
                }
                list.end();
            });
            body.end();
        }))
    }

    /// Whether requests can be served: a line per check. `only`: one of them.
    pub(crate) fn readyz(&self, call: &Call, only: Option<&str>) -> Outcome<Answer> {
        let asked = Readiness {
            only: only.map(str::to_owned),
            exclude: call.query("exclude").map(|list| list.split(',').map(str::to_owned).collect()).unwrap_or_default(),
            local: call.query("noleader").is_some(),
            verbose: call.query("verbose").is_some(),
            json: call.accepts_json(),
        };
        let answered = ready(checks(&self.node.inspect(), self.is_draining()), &asked);
        let unknown =
            |unknown: NoSuchCheck| Box::new(Problem::new(Code::InvalidField, unknown.to_string()).field("exclude"));
        answered.map(Answer::from).map_err(unknown)
    }

    /// Where consensus stands on this node: the union of codeQ's page and its code.
    pub(crate) fn raft_status(&self) -> Answer {
        let look = self.node.inspect();
        // In single mode there is nothing to say of groups.
        let enabled = self.shared.settings.raft;
        let nodes = look.nodes();
        let quorum = &nodes.quorum;
        Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.flag("enabled", enabled);
            body.text("leaderID", nodes.leader.as_deref().unwrap_or_default());
            body.value("peers", |out| {
                let mut peers = Writer::array(out);
                nodes.nodes.iter().for_each(|node| peers.element(|out| write_peer(node, out)));
                peers.end();
            });
            body.number("numGroups", if enabled { look.shards.len() as u64 } else { 0 });
            if enabled {
                body.value("groups", |out| write_groups(&look, out));
            }
            body.text("clusterId", nodes.cluster_id.as_deref().unwrap_or_default());
            body.number("term", nodes.term);
            body.value("quorum", |out| {
                let mut fields = Writer::object(out);
                fields.number("voters", quorum.voters as u64);
                fields.number("needed", quorum.needed as u64);
                fields.number("reachable", quorum.reachable as u64);
                fields.number("failureTolerance", quorum.failure_tolerance as u64);
                fields.end();
            });
            body.end();
        })
    }
}

fn write_peer(node: &NodeView, out: &mut Vec<u8>) {
    let mut peer = Writer::object(out);
    peer.text("id", &node.name);
    peer.text("bindAddr", &node.raft_addr);
    peer.text("httpAddr", &node.http_addr);
    peer.text("publicUrl", &node.public_url);
    peer.flag("voter", node.voter);
    peer.flag("healthy", node.healthy);
    peer.flag("isLeader", node.status == "leader" || (node.own && node.groups_led.contains(&0)));
    peer.end();
}

fn write_groups(look: &Inspection, out: &mut Vec<u8>) {
    let mut groups = Writer::array(out);
    for shard in &look.shards {
        let leader = shard.consensus.leader;
        let peer_of = |id: u64| match look.members.get(id) {
            Some(member) => member.peer.clone(),
            None if id == look.id => look.peer.clone(),
            None => String::new(),
        };
        groups.element(|out| {
            let mut group = Writer::object(out);
            group.number("shardIdx", u64::from(shard.shard.0));
            group.flag("isLeader", leader == look.id);
            group.text("selfId", &look.name);
            group.text("selfAddr", &look.peer);
            group.text("leaderId", &if leader == 0 { String::new() } else { look.name_of(leader) });
            group.text("leaderAddr", &peer_of(leader));
            if leader != 0 {
                group.text("leaderHTTPAddr", &look.url_of(leader));
            }
            group.flag("hasLeader", leader != 0);
            group.number("term", shard.consensus.term.0);
            group.number("commitIndex", shard.consensus.commit.0);
            group.number("appliedIndex", shard.applied.0);
            group.number("lag", shard.consensus.commit.0.saturating_sub(shard.applied.0));
            group.end();
        });
    }
    groups.end();
}

fn addresses(body: &[u8]) -> Option<Vec<String>> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        addresses: Vec<String>,
    }
    let Body { addresses } = serde_json::from_slice(body).ok()?;
    let is_address = |address: &String| {
        let parts = address.rsplit_once(':');
        parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
    };
    ((1..=ADDRESSES_MAX).contains(&addresses.len()) && addresses.iter().all(is_address)).then_some(addresses)
}
