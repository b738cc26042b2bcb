//! What operators do to the cluster: members come and go, leaders change. Any node takes it, and it is done when the answer comes.

use api::json::Writer;
use api::{Code, Problem};
use base::{Millis, ShardId};
use cluster::{Actor, Done, HOLD, Handle, Numbers, Refused, Right, TRANSFER_MAX, Target};
use queue::QueueMachine;
use serde::Deserialize;

use crate::auth::{ClusterRole, Principal};
use crate::http::answer::Answer;
use crate::http::call::{Call, Outcome};
use crate::http::edge::Edge;
use crate::http::error::invalid_body;

/// Longest time that a transfer may be given, and that a node may stay out.
const TIME_MAX: Millis = Millis(3_600_000);

/// The body of `POST /cluster/leave` and `POST /cluster/members/{id}/demote`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Leave {
    force: bool,
}

/// The body of `POST /cluster/members`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Add {
    address: String,
    replica: bool,
}

/// The body of `POST /cluster/members/{id}/replace`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Replace {
    address: String,
}

/// The body of `POST /cluster/leader/transfer`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Transfer {
    to: Option<String>,
    zone: Option<String>,
    group: Option<u16>,
    timeout_ms: Option<u64>,
}

/// The body of `POST /cluster/leader/step-down`.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct StepDown {
    hold_ms: Option<u64>,
}

impl Edge {
    /// This node leaves its cluster; afterwards its process ends.
    pub(crate) async fn leave(&self, call: &Call) -> Outcome<Answer> {
        let Leave { force } = body(call)?;
        self.check_running()?;
        let node = self.acting(call);
        told(bounded(call, async move { node.leave(force).await }).await?)
    }

    /// A node that waits for a cluster becomes a member of this one.
    pub(crate) async fn add_member(&self, call: &Call) -> Outcome<Answer> {
        let Add { address, replica } = body(call)?;
        check_address(&address)?;
        self.check_running()?;
        let node = self.acting(call);
        let added = bounded(call, async move { node.add(&address, replica).await }).await?;
        let member = added.map_err(|refused| problem(&refused))?;
        Ok(Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.flag("ok", true);
            body.text("id", &base::Incarnation(member.id).to_string());
            body.text("name", &member.name);
            body.text("raftAddr", &member.peer);
            body.text("publicUrl", &member.url);
            body.flag("voter", self.node.members().configuration.voters.contains(&member.id));
            body.text("note", &self.node.inspect().quorum().summary);
            body.end();
        }))
    }

    /// A member is taken out, unless that would cost a majority.
    pub(crate) async fn remove_member(&self, call: &Call, member: &str) -> Outcome<Answer> {
        let force = call.query("force").is_some_and(|force| force != "false");
        self.check_running()?;
        let (node, member) = (self.acting(call), member.to_owned());
        told(bounded(call, async move { node.remove(&member, force).await }).await?)
    }

    /// A member votes no more.
    pub(crate) async fn demote(&self, call: &Call, member: &str) -> Outcome<Answer> {
        let Leave { force } = body(call)?;
        self.check_running()?;
        let (node, member) = (self.acting(call), member.to_owned());
        told(bounded(call, async move { node.demote(&member, force).await }).await?)
    }

    /// A member votes, as soon as it has caught up.
    pub(crate) async fn promote(&self, call: &Call, member: &str) -> Outcome<Answer> {
        self.check_running()?;
        let (node, member) = (self.acting(call), member.to_owned());
        told(bounded(call, async move { node.promote(&member).await }).await?)
    }

    /// A node takes the place of a member.
    pub(crate) async fn replace(&self, call: &Call, member: &str) -> Outcome<Answer> {
        let Replace { address } = body(call)?;
        check_address(&address)?;
        self.check_running()?;
        let (node, member) = (self.acting(call), member.to_owned());
        told(bounded(call, async move { node.replace(&member, &address).await }).await?)
    }

    /// Another node leads.
    pub(crate) async fn transfer(&self, call: &Call) -> Outcome<Answer> {
        let Transfer { to, zone, group, timeout_ms } = body(call)?;
        let longest = time(timeout_ms, TRANSFER_MAX, "timeoutMs")?;
        if to.is_some() && zone.is_some() {
            return Err(Box::new(Problem::new(Code::InvalidField, "to and zone exclude each other").field("zone")));
        }
        self.check_running()?;
        let (node, target) = (self.acting(call), Target { name: to, zone });
        told(bounded(call, async move { node.hand_over(group.map(ShardId), &target, longest).await }).await?)
    }

    /// The leader leads no more, and stays out for a while.
    pub(crate) async fn step_down(&self, call: &Call) -> Outcome<Answer> {
        let StepDown { hold_ms } = body(call)?;
        let hold = time(hold_ms, HOLD, "holdMs")?;
        self.check_running()?;
        let node = self.acting(call);
        told(bounded(call, async move { node.step_down(hold).await }).await?)
    }

    /// The node, as whoever sends this request uses it.
    pub(crate) fn acting(&self, call: &Call) -> Handle<QueueMachine> {
        let Principal { subject, cluster_role, .. } = &*call.principal;
        let right = match cluster_role {
            Some(role) if *role == ClusterRole::Admin => Right::Administer,
            Some(role) if role.operates() => Right::Operate,
            _ => Right::Look,
        };
        self.node.on_behalf_of(Actor { name: subject.to_string(), right })
    }

    /// Files with certificates and tokens are read again, and the log's levels.
    pub(crate) async fn reload(&self) -> Outcome<Answer> {
        let reload = self.shared.reload.clone();
        // Files are read on a thread of their own: a slow disk must not hold up other requests.
        let read = tokio::task::spawn_blocking(move || reload.now()).await;
        let read = read.map_err(|_| Box::new(Problem::new(Code::Internal, "reading failed; the log says more")))?;
        match read {
            Ok(what) => Ok(Answer::json(200, |out| {
                let mut body = Writer::object(out);
                body.flag("ok", true);
                body.value("reloaded", |out| {
                    let mut list = Writer::array(out);
                    what.iter().for_each(|one| list.element(|out| api::json::write_text(one, out)));
                    list.end();
                });
                body.end();
            })),
            Err(wrong) => Err(Box::new(Problem::new(Code::InvalidFile, wrong.join("; ")))),
        }
    }

    /// Whether a node may stop: 200 if the others could decide without it, else 409.
    pub(crate) fn check_quorum(&self, call: &Call) -> Outcome<Answer> {
        self.check_running()?;
        let own = self.node.identity().node.clone();
        let node = call.query("node").unwrap_or(own.into());
        let numbers = self.node.if_stopped(&node).map_err(|refused| problem(&refused))?;
        let safe = numbers.decides();
        Ok(Answer::json(if safe { 200 } else { Code::QuorumGuard.status() }, |out| {
            let mut body = Writer::object(out);
            body.flag("safe", safe);
            body.text("sentence", &format!("without {node} {numbers}"));
            body.value("numbers", |out| {
                let mut object = Writer::object(out);
                fields(&numbers).iter().for_each(|(name, number)| object.number(name, *number));
                object.end();
            });
            body.end();
        }))
    }
}

fn check_address(address: &str) -> Outcome<()> {
    let parts = address.rsplit_once(':');
    let is_one = parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    let refused =
        || Problem::new(Code::InvalidField, "address is the peer address of a node, host:port").field("address");
    if is_one { Ok(()) } else { Err(Box::new(refused())) }
}

/// Waits for an action at most as long as `?wait=` says, in seconds. The action goes on when nobody waits any more.
pub(crate) async fn bounded<T: Send + 'static>(
    call: &Call,
    action: impl Future<Output = T> + Send + 'static,
) -> Outcome<T> {
    let wait = call.query("wait").map(|wait| match wait.trim_end_matches('s').parse::<f64>() {
        Ok(seconds) if (0.0..=TIME_MAX.0 as f64 / 1000.0).contains(&seconds) => Ok(Millis((seconds * 1000.0) as u64)),
        _ => Err(Box::new(
            Problem::new(Code::InvalidField, "wait is a number of seconds, at most an hour").field("wait"),
        )),
    });
    let wait = wait.transpose()?;
    let action = tokio::spawn(action);
    let done = match wait {
        None => action.await,
        Some(wait) => match tokio::time::timeout(wait.to_std(), action).await {
            Ok(done) => done,
            Err(_) => {
                let detail = format!("not done within {} ms, and under way: look at the members", wait.0);
                return Err(Box::new(Problem::new(Code::OutcomeUnknown, detail)));
            }
        },
    };
    // A panic has been logged where it happened; what became of the action nobody knows.
    done.map_err(|_| Box::new(Problem::new(Code::OutcomeUnknown, "the action broke off")))
}

pub(crate) fn body<'a, T: Deserialize<'a> + Default>(call: &'a Call) -> Outcome<T> {
    if call.body.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    serde_json::from_slice(&call.body).map_err(|error| invalid_body(error.to_string()))
}

fn time(given: Option<u64>, default: Millis, field: &'static str) -> Outcome<Millis> {
    match given {
        None => Ok(default),
        Some(ms) if ms <= TIME_MAX.0 => Ok(Millis(ms)),
        Some(_) => {
            let detail = format!("{field} is at most {} (an hour)", TIME_MAX.0);
            Err(Box::new(Problem::new(Code::InvalidField, detail).field(field)))
        }
    }
}

/// What an action has come to.
pub(crate) fn told(outcome: Result<Done, Refused>) -> Outcome<Answer> {
    outcome.map(|done| answer(&done)).map_err(|refused| problem(&refused))
}

fn answer(done: &Done) -> Answer {
    let answer = Answer::json(200, |out| {
        let mut body = Writer::object(out);
        body.flag("ok", true);
        body.text("leader", &done.leader);
        body.number("term", done.term.0);
        if let Some(position) = done.position {
            body.text("position", &position.to_string());
        }
        body.number("durationMs", done.took.0);
        body.text("note", &done.note);
        body.end();
    });
    match done.position {
        Some(position) => answer.at(position),
        None => answer,
    }
}

fn fields(numbers: &Numbers) -> Vec<(&'static str, u64)> {
    let Numbers { group, voters, alive, needed } = *numbers;
    vec![("group", group.into()), ("voters", voters as u64), ("alive", alive as u64), ("needed", needed as u64)]
}

/// What a refusal is on the wire.
pub(crate) fn problem(refused: &Refused) -> Box<Problem> {
    let code = match refused {
        Refused::SingleMode => Code::SingleMode,
        Refused::NoLeader => Code::NoLeader,
        Refused::Busy => Code::Overloaded,
        Refused::UnknownMember(_) => Code::UnknownMember,
        Refused::UnknownGroup(_) => Code::UnknownGroup,
        Refused::NotVoter(_) => Code::NotVoter,
        Refused::Guard(_) => Code::QuorumGuard,
        Refused::TransferFailed(_) => Code::TransferFailed,
        Refused::NotAdmitted(_) => Code::NotJoined,
        Refused::VotesAlready(_) => Code::NameInUse,
        Refused::UnknownToken(_) => Code::UnknownToken,
        Refused::TooManyTokens(_) => Code::TooManyTokens,
        Refused::NotAllowed(_) => Code::OperatorRequired,
        Refused::Unknown => Code::OutcomeUnknown,
    };
    let problem = Problem::new(code, refused.to_string());
    let problem = if code.status() == 503 { problem.retry_after(1000) } else { problem };
    Box::new(match refused {
        Refused::Guard(numbers) => {
            let hint = match numbers.voters {
                0 => "the last voter stays: stop it, if the cluster is to end",
                _ => "bring back a voter that is down, or remove that one first; force does it all the same",
            };
            Problem { numbers: fields(numbers), hint: Some(hint.into()), ..problem }
        }
        Refused::NotAdmitted(_) => Problem {
            hint: Some("the node must run, wait for a cluster, and be reached at its peer address (--raft-advertise) from here".into()),
            ..problem
        },
        Refused::VotesAlready(_) => {
            let hint = "to have one member fewer, remove the other one; to replace it, start a node that waits";
            Problem { hint: Some(hint.into()), ..problem }
        }
        Refused::TransferFailed(_) => {
            Problem { hint: Some("codeq members shows who can be reached, and who lacks entries".into()), ..problem }
        }
        _ => problem,
    })
}
