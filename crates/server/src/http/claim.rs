//! `POST /tasks/claim` and `POST /tasks/claim/batch`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use api::json::{Int, Seconds, Writer};
use api::v1::{ClaimBody, Lease};
use api::{Code, Problem};
use base::{Millis, Position, ShardId};
use cluster::{Operations, Unavailable};
use queue::codec;
use queue::id::shard_of;
use queue::op::{Claim, ClaimOrder, LeaseRef, Op};
use queue::outcome::{Grant, Outcome as Applied};

use crate::auth::EventTypes;
use crate::http::answer::Answer;
use crate::http::call::{Call, Outcome};
use crate::http::create::{MapField, batch_too_large, check_command};
use crate::http::edge::Edge;
use crate::http::error::{after_effect, invalid_body, unavailable};
use crate::http::tasks::write_task;
use crate::http::waiting::For;

/// Longest wait for a task.
const WAIT_MAX: Millis = Millis(30_000);
/// Leaders that a waiting claim may lose.
const CLAIM_AGAIN_MAX: u32 = 3;
/// Queues that one claim may name.
const COMMANDS_MAX: usize = 100;

/// A claim as it was asked for.
struct Wish<'a> {
    /// None: every queue of the tenant.
    commands: Vec<&'a str>,
    order: ClaimOrder,
    count: u8,
    lease: Option<Millis>,
    wait: Millis,
}

impl Edge {
    pub(crate) async fn claim(&self, call: &Call) -> Outcome<Answer> {
        let body: ClaimBody<'_> = call.json()?;
        let wish = read_wish(&body, call, 1)?;
        let (position, grants) = self.serve_claim(call, &wish).await?;
        let Some(grant) = self.with_payloads(position, grants).await?.into_iter().next() else {
            return Ok(Answer::empty(204).at(position));
        };
        Ok(Answer::json(200, |out| write_grant(&grant, out)).at(position))
    }

    pub(crate) async fn claim_batch(&self, call: &Call) -> Outcome<Answer> {
        let body: ClaimBody<'_> = call.required_json()?;
        let most = self.shared.settings.limits.batch_claim_max;
        let count = match body.count {
            Some(Int(count)) if count > most as i64 => return Err(batch_too_large("count exceeds maximum of", most)),
            Some(Int(count)) if count > 0 => count as u8,
            _ => return Err(invalid_body("count is required, and at least 1").map_field("count")),
        };
        let wish = read_wish(&body, call, count)?;
        let (position, grants) = self.serve_claim(call, &wish).await?;
        let grants = self.with_payloads(position, grants).await?;
        if grants.is_empty() {
            return Ok(Answer::empty(204).at(position));
        }
        let answer = Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.value("tasks", |out| {
                let mut list = Writer::array(out);
                for grant in &grants {
                    list.element(|out| write_grant(grant, out));
                }
                list.end();
            });
            body.end();
        });
        Ok(answer.at(position))
    }

    /// Tries once without waiting; then waits, if that was asked for.
    async fn serve_claim(&self, call: &Call, wish: &Wish<'_>) -> Outcome<(Position, Vec<Grant>)> {
        self.check_running()?;
        let shards = self.shards_of(call, wish);
        self.redirect(call, shards.iter().map(|(shard, _)| *shard))?;
        let mut last = Position::default();
        for (shard, commands) in &shards {
            let (position, grants) = self.claim_on(call, wish, *shard, commands, None).await.map_err(unavailable)?;
            last = position;
            if !grants.is_empty() {
                return Ok((position, grants));
            }
        }
        if wish.wait == Millis(0) {
            return Ok((last, Vec::new()));
        }
        if self.is_draining() {
            return Err(unavailable(Unavailable::Draining));
        }
        let limits = &self.shared.settings.limits;
        let tenant = &call.principal.tenant;
        let what = For::Work(&wish.commands);
        let _place = self.shared.waiting.enter(tenant, what, limits.waiters_max, limits.waiters_per_tenant_max)?;
        self.wait_on_all(call, wish, &shards).await.map(|found| found.unwrap_or((last, Vec::new())))
    }

    /// Waits on every shard; the first one that has something serves the claim. What another one grants meanwhile goes back, because
    /// nobody takes its reply.
    async fn wait_on_all(
        &self,
        call: &Call,
        wish: &Wish<'_>,
        shards: &[(ShardId, Vec<&str>)],
    ) -> Outcome<Option<(Position, Vec<Grant>)>> {
        let mut waiting: Vec<_> = shards
            .iter()
            .map(|(shard, commands)| Box::pin(self.claim_on(call, wish, *shard, commands, Some(wish.wait))))
            .collect();
        let mut empty = None;
        while !waiting.is_empty() {
            let (served, place) = std::future::poll_fn(|context| {
                for (place, claim) in waiting.iter_mut().enumerate() {
                    if let std::task::Poll::Ready(served) = claim.as_mut().poll(context) {
                        return std::task::Poll::Ready((served, place));
                    }
                }
                std::task::Poll::Pending
            })
            .await;
            drop(waiting.swap_remove(place));
            let (position, grants) = served.map_err(unavailable)?;
            if !grants.is_empty() {
                return Ok(Some((position, grants)));
            }
            empty = Some((position, grants));
        }
        Ok(empty)
    }

    async fn claim_on(
        &self,
        call: &Call,
        wish: &Wish<'_>,
        shard: ShardId,
        commands: &[&str],
        wait: Option<Millis>,
    ) -> Result<(Position, Vec<Grant>), Unavailable> {
        let claim = Op::Claim(Claim {
            tenant: &call.principal.tenant,
            worker: &call.principal.subject,
            commands: commands.to_vec(),
            order: wish.order,
            count: wish.count,
            lease: wish.lease,
        });
        let mut operations = Operations::with_capacity(128);
        operations.push(|bytes| codec::encode(&claim, bytes));
        let begun = Instant::now();
        let again = wait.map(|_| operations.clone());
        let mut submitted = self.node.submit(shard, operations, wait, Some(self.lane)).await;
        // Whoever waits at a leader that dies waits on at the next one: most likely nothing was granted, and what was comes back when its
        // lease ends, as from any worker that dies.
        let mut left = CLAIM_AGAIN_MAX;
        while let (Err(Unavailable::Unknown), Some(operations), Some(wait)) = (&submitted, &again, wait) {
            let wait = Millis(wait.0.saturating_sub(begun.elapsed().as_millis() as u64));
            if wait == Millis(0) || left == 0 {
                break;
            }
            left -= 1;
            submitted = self.node.submit(shard, operations.clone(), Some(wait), Some(self.lane)).await;
        }
        let (position, mut outcomes) = submitted?;
        match outcomes.pop() {
            Some(Applied::Claimed(grants)) => Ok((position, grants)),
            _ => Err(Unavailable::Unknown),
        }
    }

    /// The shards that a claim asks, in order, each with the queues it is asked for. Queues in request order that follow each other on one
    /// shard are asked for together.
    fn shards_of<'a>(&self, call: &Call, wish: &Wish<'a>) -> Vec<(ShardId, Vec<&'a str>)> {
        let count = self.node.identity().shards;
        if wish.commands.is_empty() {
            return (0..count).map(|shard| (ShardId(shard), Vec::new())).collect();
        }
        let mut shards: Vec<(ShardId, Vec<&str>)> = Vec::new();
        for command in &wish.commands {
            let shard = shard_of(&call.principal.tenant, command, count);
            // Only request order forbids asking a shard for all its queues at once.
            let known = match wish.order {
                ClaimOrder::Request => shards.last_mut().filter(|(last, _)| *last == shard),
                ClaimOrder::Priority | ClaimOrder::Fair => shards.iter_mut().find(|(known, _)| *known == shard),
            };
            match known {
                Some((_, commands)) => commands.push(command),
                None => shards.push((shard, vec![command])),
            }
        }
        shards
    }

    /// The same grants with their payloads in memory. If that fails, all of them go back.
    async fn with_payloads(&self, position: Position, grants: Vec<Grant>) -> Outcome<Vec<Grant>> {
        if grants.iter().all(|grant| matches!(grant.task.payload, queue::Payload::Resident(_))) {
            return Ok(grants);
        }
        let mut undelivered = Undelivered { edge: self, leases: releases(&grants), shard: position.shard };
        let mut whole = Vec::with_capacity(grants.len());
        for grant in grants {
            let view = self.with_payload_at(position, Arc::new(grant.task)).await;
            let view = view.map_err(|why| after_effect("tasks were leased, and go back", &why))?;
            whole.push(Grant { task: Arc::unwrap_or_clone(view), ..grant });
        }
        undelivered.leases = Operations::default();
        Ok(whole)
    }
}

/// Leases that are given back when this is dropped, because whoever asked for them does not get them.
struct Undelivered<'a> {
    edge: &'a Edge,
    leases: Operations,
    shard: ShardId,
}

impl Drop for Undelivered<'_> {
    fn drop(&mut self) {
        if !self.leases.is_empty() {
            let leases = std::mem::take(&mut self.leases);
            // They are on their way with the call. If there is no room or no leader, they end by themselves.
            drop(self.edge.node.submit(self.shard, leases, None, None));
        }
    }
}

fn write_grant(grant: &Grant, out: &mut Vec<u8>) {
    let token = grant.token.to_string();
    write_task(&grant.task, Some(Lease { token: &token, ms: grant.length.0 }), out);
}

fn read_wish<'a>(body: &'a ClaimBody<'_>, call: &'a Call, count: u8) -> Outcome<Wish<'a>> {
    let asked = body.commands.as_deref().unwrap_or_default();
    if asked.len() > COMMANDS_MAX {
        let detail = format!("a claim names at most {COMMANDS_MAX} commands");
        return Err(Box::new(Problem::new(Code::InvalidField, detail).field("commands")));
    }
    let mut seen = BTreeSet::new();
    let mut commands = Vec::with_capacity(asked.len());
    for (place, command) in asked.iter().enumerate() {
        let command = check_command(command, false).map_err(|problem| {
            let mut problem = problem;
            problem.field = Some(format!("commands[{place}]"));
            problem
        })?;
        if seen.insert(command) {
            commands.push(command);
        }
    }
    let order = match body.order.as_deref() {
        None | Some("") | Some("request") if !commands.is_empty() => ClaimOrder::Request,
        Some("priority") if !commands.is_empty() => ClaimOrder::Priority,
        None | Some("" | "request" | "priority") => ClaimOrder::Fair,
        Some(_) => {
            return Err(Box::new(Problem::new(Code::InvalidField, "order is request or priority").field("order")));
        }
    };
    let allowed = &call.principal.event_types;
    if let Some(forbidden) = commands.iter().find(|command| !allowed.allow(command)) {
        let problem = Problem::new(Code::EventTypeNotAllowed, format!("the token may not work on {forbidden}"));
        return Err(Box::new(problem.error("event type not allowed").field("commands")));
    }
    if let (true, EventTypes::Listed(listed)) = (commands.is_empty(), allowed) {
        commands = listed.iter().map(String::as_str).collect();
    }
    let lease = body.lease.map(|Seconds(ms)| ms).filter(|ms| *ms > 0).map(|ms| Millis(ms as u64));
    let wait = Millis(body.wait.map_or(0, |Seconds(ms)| ms.max(0) as u64)).min(WAIT_MAX);
    Ok(Wish { commands, order, count, lease, wait })
}

/// What to submit when the answer to a claim could not be delivered: its leases are given back, so that nobody waits for them to end.
pub(crate) fn give_back(position: Position, outcomes: &[Applied]) -> Vec<(ShardId, Operations)> {
    let grants = outcomes.iter().filter_map(|outcome| match outcome {
        Applied::Claimed(grants) => Some(grants),
        _ => None,
    });
    let operations = releases(grants.flatten());
    if operations.is_empty() { Vec::new() } else { vec![(position.shard, operations)] }
}

fn releases<'a>(grants: impl IntoIterator<Item = &'a Grant>) -> Operations {
    let mut operations = Operations::default();
    for grant in grants {
        let credential = queue::op::Credential::Token(grant.token);
        let lease = LeaseRef { tenant: &grant.task.tenant, task: grant.task.id.key, credential };
        operations.push(|bytes| codec::encode(&Op::Release { lease }, bytes));
    }
    operations
}
