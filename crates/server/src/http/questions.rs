//! The questions that clients and load balancers of orchestrator ask, below `/api/`: the same answers as everywhere, in its words.
//!
//! They only ask. What orchestrator did by `GET`, like giving leadership away, is refused with the route that does it here: a `GET` must not
//! change a cluster.

use cluster::http::{Check, checks};
use cluster::view::{Inspection, NodeView};
use cluster::{Millis, Role};
use serde_json::{Value, json};

use crate::auth::Access;
use crate::http::answer::Answer;

/// What an action of orchestrator's is here; nothing: it is none of them.
pub(crate) fn action(path: &str) -> Option<&'static str> {
    let name = path.strip_prefix("/api/")?.split('/').next()?;
    Some(match name {
        "raft-yield" | "raft-yield-hint" => "POST /cluster/leader/transfer",
        "reelect" => "POST /cluster/leader/step-down",
        "raft-add-peer" => "POST /cluster/members",
        "raft-remove-peer" => "DELETE /cluster/members/{id}",
        "raft-snapshot" => "POST /cluster/snapshot/trigger",
        "reload-configuration" => "POST /cluster/reload",
        _ => return None,
    })
}

/// Who may ask: anybody what a load balancer wants to know, and whoever is known the rest.
pub(crate) fn access(path: &str) -> Access {
    let name = path.strip_prefix("/api/").unwrap_or_default().split('/').next().unwrap_or_default();
    match name {
        "leader-check" | "routed-leader-check" | "lb-check" | "_ping" | "raft-health" => Access::Open,
        _ => Access::Any,
    }
}

/// How a node that is asked stands.
pub(crate) struct Asked<'a> {
    pub(crate) look: &'a Inspection,
    /// Not in single mode.
    pub(crate) raft: bool,
    /// How long a leader is trusted after a quorum has answered it.
    pub(crate) lease: Millis,
    /// The server stops.
    pub(crate) draining: bool,
}

impl Asked<'_> {
    /// The answer to a path; nothing: there is no such question.
    pub(crate) fn answer(&self, path: &str) -> Option<Answer> {
        let mut parts = path.strip_prefix("/api/")?.split('/');
        let (name, code) = (parts.next()?, parts.next());
        if parts.next().is_some() || (code.is_some() && !name.ends_with("leader-check")) {
            return None;
        }
        let unless = match code {
            None => 404,
            Some(code) => code.parse().ok().filter(|code| (400..600).contains(code))?,
        };
        Some(match name {
            "leader-check" => checked(self.leads(), unless),
            "routed-leader-check" => checked(self.leads() || self.passes(&["leader", "contact"]).is_ok(), unless),
            "lb-check" | "_ping" => said(200, &json!("OK")),
            "health" | "status" => self.health(),
            _ if name.starts_with("raft-") => self.of_raft(name)?,
            _ => return None,
        })
    }

    fn of_raft(&self, name: &str) -> Option<Answer> {
        let nodes = self.look.nodes();
        let leader = nodes.nodes.iter().find(|node| Some(&node.name) == nodes.leader.as_ref());
        let peers: Vec<&str> = nodes.nodes.iter().map(address).collect();
        let value = match name {
            _ if !self.raft && QUESTIONS.contains(&name) => {
                let message = format!("{name}: not running with raft setup");
                return Some(said(500, &json!({ "Code": "ERROR", "Message": message })));
            }
            "raft-state" => json!(self.state()),
            "raft-leader" => json!(leader.map(address).unwrap_or_default()),
            "raft-peers" => json!(peers),
            "raft-health" => match self.passes(&["joined", "leader", "contact"]) {
                Ok(()) => json!("healthy"),
                Err(why) => return Some(said(500, &json!({ "Code": "ERROR", "Message": why }))),
            },
            "raft-status" => {
                let quorum = &nodes.quorum;
                json!({
                    "RaftBind": self.look.about.listens.map(|listens| listens.to_string()),
                    "RaftAdvertise": self.look.peer,
                    "State": self.state(),
                    "Healthy": self.passes(&["joined", "leader", "contact"]).is_ok(),
                    "IsPartOfQuorum": quorum.needed > 0 && quorum.reachable >= quorum.needed,
                    "Leader": leader.map(address).unwrap_or_default(),
                    "LeaderURI": leader.map(|leader| leader.public_url.as_str()).unwrap_or_default(),
                    "Peers": peers,
                })
            }
            _ => return None,
        };
        Some(said(200, &value))
    }

    fn health(&self) -> Answer {
        let nodes = self.look.nodes();
        let leader = nodes.nodes.iter().find(|node| Some(&node.name) == nodes.leader.as_ref());
        let healthy: Vec<&str> = nodes.nodes.iter().filter(|node| node.healthy).map(address).collect();
        let passed = self.passes(&[]);
        let details = json!({
            "Healthy": passed.is_ok(),
            "Hostname": self.look.name,
            "IsActiveNode": self.leads(),
            "RaftLeader": leader.map(address).unwrap_or_default(),
            "RaftLeaderURI": leader.map(|leader| leader.public_url.as_str()).unwrap_or_default(),
            "RaftAdvertise": self.look.peer,
            "IsRaftLeader": self.leads(),
            "RaftHealthyMembers": healthy,
        });
        match passed {
            Ok(()) => said(200, &json!({ "Code": "OK", "Message": "the node is healthy", "Details": details })),
            Err(why) => said(500, &json!({ "Code": "ERROR", "Message": why, "Details": details })),
        }
    }

    fn leads(&self) -> bool {
        !self.draining && self.look.lease_valid(self.lease) > Millis(0)
    }

    fn state(&self) -> &'static str {
        match self.look.shards.first().map(|shard| shard.consensus.role) {
            Some(Role::Leader) => "Leader",
            Some(Role::Candidate | Role::PreCandidate) => "Candidate",
            Some(Role::Follower) | None => "Follower",
        }
    }

    /// Whether these checks of readiness pass, or all if none is named; else which do not, and why.
    fn passes(&self, named: &[&str]) -> Result<(), String> {
        let is_asked = |check: &Check| named.is_empty() || named.contains(&check.name);
        let failed = checks(self.look, self.draining).into_iter().filter(|check| is_asked(check) && !check.ok);
        let failed: Vec<String> = failed.map(|check| format!("{}: {}", check.name, check.text)).collect();
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }
}

/// Questions that make no sense in single mode.
const QUESTIONS: [&str; 5] = ["raft-state", "raft-leader", "raft-peers", "raft-health", "raft-status"];

/// Where a member's peers reach it; a node that has no peers has only a name.
fn address(node: &NodeView) -> &str {
    if node.raft_addr.is_empty() { &node.name } else { &node.raft_addr }
}

fn checked(passes: bool, unless: u16) -> Answer {
    if passes { said(200, &json!("OK")) } else { said(unless, &json!("Not leader")) }
}

fn said(status: u16, value: &Value) -> Answer {
    Answer::json(status, |out| out.extend_from_slice(value.to_string().as_bytes()))
}
