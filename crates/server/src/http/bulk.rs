//! `POST /dlq/redrive`, `/dlq/purge`, `/queues/{command}/purge` and `/tasks/cancel`, which begin operations on many tasks, and
//! `/operations`, where they are looked at, stopped and resumed. Each shard that an operation touches keeps its part of it; what is shown is
//! their sum.

use std::collections::BTreeMap;

use api::json::{Writer, write_text};
use api::{Code, Problem};
use base::codec::{Reader, Write};
use base::{Position, ShardId};
use cluster::{Freshness, Unavailable};
use queue::op::Begin;
use queue::operations::{Operation, OperationId, OperationKind, OperationState, SAMPLES_MAX};
use queue::outcome::{Outcome as Applied, Rejection};
use queue::{Answer as Told, Op, Query, codec};

use crate::bulk::Request;
use crate::http::answer::Answer;
use crate::http::call::{Call, Consistency, Outcome};
use crate::http::cursor::{ListOf, invalid_cursor};
use crate::http::edge::Edge;
use crate::http::error::{Words, rejected, unavailable};
use crate::http::filter::bad;
use crate::http::lists::{is_reading, next_page, read_limit, write_end_of_page};
use crate::http::queues::check_parameters;
use crate::http::tasks::str_of;

/// Operations on a page, if nothing is said.
const LIMIT_DEFAULT: usize = 50;

/// The id of an operation as clients see it.
pub(crate) fn operation_text(id: &OperationId) -> String {
    format!("op-{:032x}", u128::from_be_bytes(*id))
}

fn read_id(text: &str) -> Outcome<OperationId> {
    let not_found = || rejected(&Rejection::NoOperation, Words::Tasks, None);
    let digits = text.strip_prefix("op-").filter(|digits| digits.len() == 32).ok_or_else(not_found)?;
    let number = u128::from_str_radix(digits, 16).ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    number.map(u128::to_be_bytes).ok_or_else(not_found)
}

/// An operation and the positions at which its parts were read.
struct Whole {
    sum: Operation,
    parts: Vec<(ShardId, OperationState)>,
}

impl Edge {
    pub(crate) async fn begin_operation(
        &self,
        call: &Call,
        kind: OperationKind,
        command: Option<&str>,
    ) -> Outcome<Answer> {
        let command = command.map(|command| crate::http::create::check_command(command, false)).transpose()?;
        let (tenant, bounds) = (&call.principal.tenant, self.shared.settings.bulk_bounds());
        let Request { plan, takes_all } = Request::read(kind, tenant, command, &call.body, &bounds)?;
        self.check_running()?;
        let commands = plan.commands();
        let shards = plan.shards(self.node.identity().shards);
        // A conflict in one shard is found before another one has begun, unless somebody is as quick.
        let (known, _) = self.operations(call, true).await?;
        let conflicts = |whole: &&Whole| whole.sum.overlaps(tenant, kind, &commands);
        if let Some(other) = known.iter().find(conflicts) {
            return Err(rejected(&Rejection::OperationConflict { with: other.sum.id }, Words::Tasks, None));
        }
        let mut id = OperationId::default();
        getrandom::fill(&mut id).expect("the operating system has random numbers");
        let begin = Begin {
            tenant,
            id,
            kind,
            commands,
            request: &call.body,
            dry_run: plan.dry_run,
            takes_all,
            by: &call.principal.subject,
        };
        let mut positions = Vec::new();
        for shard in &shards {
            let begun = self.apply_to(*shard, &Op::Begin(begin.clone())).await;
            match begun {
                Ok((position, Applied::Done)) => positions.push(position),
                other => {
                    let problem = match other {
                        Ok((_, Applied::Rejected(rejection))) => rejected(&rejection, Words::Tasks, None),
                        Ok(_) => unavailable(Unavailable::Unknown),
                        Err(problem) => problem,
                    };
                    return Err(self.give_up(call, &id, &positions, problem).await);
                }
            }
        }
        self.shared.wake_bulk.notify_one();
        let path = format!("/v1/codeq/operations/{}", operation_text(&id));
        let (whole, _) = self.operation(call, &id).await?;
        Ok(Answer::json(202, |out| write_operation(&whole.sum, out)).at_all(positions).location(path))
    }

    /// Ends the parts of an operation that did not begin everywhere. What is said of it in the end.
    async fn give_up(&self, call: &Call, id: &OperationId, begun: &[Position], problem: Box<Problem>) -> Box<Problem> {
        let error = "it could not begin in all shards";
        let turn = Op::Turn { tenant: &call.principal.tenant, id: *id, to: OperationState::Failed, error };
        for position in begun {
            if self.apply_to(position.shard, &turn).await.is_err() {
                let detail = format!("{} has begun in part; stop it, or wait for its end", operation_text(id));
                return Box::new(Problem::new(Code::OutcomeUnknown, detail));
            }
        }
        problem
    }

    pub(crate) async fn list_operations(&self, call: &Call) -> Outcome<Answer> {
        let (mut kind, mut state, mut limit, mut cursor) = (None, None, LIMIT_DEFAULT, None);
        let mut list = ListOf::new("/v1/codeq/operations", &call.principal.tenant);
        for (name, value) in call.parameters().filter(|(name, _)| !is_reading(name)) {
            match &*name {
                "kind" => {
                    let known = OperationKind::from_name(&value);
                    kind = Some(known.ok_or_else(|| bad(&name, &value, "a kind like dlq.redrive or queue.purge"))?);
                    list.parameter(&name, &value);
                }
                "state" => {
                    let known = OperationState::from_name(&value);
                    state = Some(known.ok_or_else(|| bad(&name, &value, "RUNNING, STOPPED, SUCCEEDED or FAILED"))?);
                    list.parameter(&name, &value);
                }
                "limit" => limit = read_limit(&value)?,
                "cursor" => cursor = Some(value.to_string()),
                _ => {
                    let name: String = name.chars().take(80).collect();
                    let detail = format!("this route has no parameter {name:?}");
                    return Err(Box::new(Problem::new(Code::InvalidFilter, detail).field(name)));
                }
            }
        }
        let after = cursor.map(|cursor| read_place(&list.open(&cursor)?)).transpose()?;
        let (mut all, positions) = self.operations(call, false).await?;
        all.retain(|whole| kind.is_none_or(|kind| whole.sum.kind == kind));
        all.retain(|whole| state.is_none_or(|state| whole.sum.state == state));
        // The youngest first.
        all.sort_by_key(|whole| std::cmp::Reverse(place_of(&whole.sum)));
        all.retain(|whole| after.is_none_or(|after| place_of(&whole.sum) < after));
        let has_more = all.len() > limit;
        all.truncate(limit);
        let last = all.last().filter(|_| has_more).map(|whole| place_of(&whole.sum));
        let next = last.map(|(time, id)| {
            let mut bytes = Vec::new();
            bytes.put_u64(time);
            bytes.extend_from_slice(&id);
            list.seal(&bytes)
        });
        let answer = Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.value("operations", |out| {
                let mut array = Writer::array(out);
                all.iter().for_each(|whole| array.element(|out| write_operation(&whole.sum, out)));
                array.end();
            });
            write_end_of_page(&mut body, next.as_deref(), false);
            body.end();
        });
        Ok(answer.at_all(positions).link(next.map(|next| next_page(call, &next))))
    }

    pub(crate) async fn show_operation(&self, call: &Call, id: &str) -> Outcome<Answer> {
        check_parameters(call)?;
        let (whole, positions) = self.operation(call, &read_id(id)?).await?;
        Ok(Answer::json(200, |out| write_operation(&whole.sum, out)).at_all(positions))
    }

    /// Stops an operation, or lets it go on.
    pub(crate) async fn turn_operation(&self, call: &Call, id: &str, to: OperationState) -> Outcome<Answer> {
        check_parameters(call)?;
        let id = read_id(id)?;
        let (whole, _) = self.operation(call, &id).await?;
        let has_ended = |state: &OperationState| matches!(state, OperationState::Succeeded | OperationState::Failed);
        let open: Vec<ShardId> =
            whole.parts.iter().filter(|(_, state)| !has_ended(state)).map(|(shard, _)| *shard).collect();
        if open.is_empty() {
            return Err(rejected(&Rejection::OperationState, Words::Tasks, None));
        }
        for shard in open {
            let turn = Op::Turn { tenant: &call.principal.tenant, id, to, error: "" };
            match self.apply_to(shard, &turn).await? {
                // A part may have ended just now.
                (_, Applied::Done | Applied::Rejected(Rejection::OperationState)) => {}
                (_, Applied::Rejected(rejection)) => return Err(rejected(&rejection, Words::Tasks, None)),
                _ => return Err(unavailable(Unavailable::Unknown)),
            }
        }
        self.shared.wake_bulk.notify_one();
        let (whole, positions) = self.operation(call, &id).await?;
        Ok(Answer::json(200, |out| write_operation(&whole.sum, out)).at_all(positions))
    }

    async fn operation(&self, call: &Call, id: &OperationId) -> Outcome<(Whole, Vec<Position>)> {
        let (all, positions) = self.operations(call, true).await?;
        let found = all.into_iter().find(|whole| whole.sum.id == *id);
        Ok((found.ok_or_else(|| rejected(&Rejection::NoOperation, Words::Tasks, None))?, positions))
    }

    /// All operations of the tenant. `now`: as new as can be, unless the call says otherwise.
    async fn operations(&self, call: &Call, now: bool) -> Outcome<(Vec<Whole>, Vec<Position>)> {
        self.check_running()?;
        let count = self.node.identity().shards;
        let default = if now { Consistency::Linearizable } else { Consistency::Stale };
        let (mut wholes, mut positions): (BTreeMap<OperationId, Whole>, _) = (BTreeMap::new(), Vec::new());
        for shard in (0..count).map(ShardId) {
            let freshness = match call.head.method {
                hyper::Method::GET | hyper::Method::HEAD => call.freshness(shard, count, default)?.freshness(),
                _ => Freshness::Linearizable,
            };
            let query = Query::Operations { tenant: Some(call.principal.tenant.clone()), running: false };
            let asked = self.node.ask(shard, query, freshness, None, Some(self.lane)).await;
            let (position, Told::Operations(parts)) = asked.map_err(unavailable)? else {
                return Err(unavailable(Unavailable::Unknown));
            };
            positions.push(position);
            for part in parts {
                match wholes.get_mut(&part.id) {
                    Some(whole) => whole.add(shard, part),
                    None => {
                        let parts = vec![(shard, part.state)];
                        wholes.insert(part.id, Whole { sum: part, parts });
                    }
                }
            }
        }
        Ok((wholes.into_values().collect(), positions))
    }

    /// Applies one operation on a shard.
    pub(crate) async fn apply_to(&self, shard: ShardId, op: &Op<'_>) -> Outcome<(Position, Applied)> {
        let mut operations = cluster::Operations::with_capacity(128);
        operations.push(|bytes| codec::encode(op, bytes));
        let submitted = self.node.submit(shard, operations, None, Some(self.lane)).await;
        let (position, mut outcomes) = submitted.map_err(unavailable)?;
        Ok((position, outcomes.pop().ok_or_else(|| unavailable(Unavailable::Unknown))?))
    }
}

impl Whole {
    fn add(&mut self, shard: ShardId, part: Operation) {
        use OperationState::{Failed, Running, Stopped, Succeeded};
        self.parts.push((shard, part.state));
        let sum = &mut self.sum;
        let states = [sum.state, part.state];
        sum.state = *[Running, Stopped, Failed].iter().find(|state| states.contains(state)).unwrap_or(&Succeeded);
        sum.processed += part.processed;
        sum.changed += part.changed;
        sum.skipped += part.skipped;
        sum.estimated_total = sum.estimated_total.zip(part.estimated_total).map(|(one, other)| one + other);
        let room = SAMPLES_MAX.saturating_sub(sum.samples.len());
        sum.samples.extend(part.samples.into_iter().take(room));
        sum.started_at = sum.started_at.min(part.started_at);
        sum.updated_at = sum.updated_at.max(part.updated_at);
        sum.finished_at = sum.finished_at.zip(part.finished_at).map(|(one, other)| one.max(other));
        if sum.error.is_empty() {
            sum.error = part.error;
        }
    }
}

/// Where an operation stands among the others.
fn place_of(operation: &Operation) -> (u64, OperationId) {
    (operation.started_at.0, operation.id)
}

fn read_place(bytes: &[u8]) -> Outcome<(u64, OperationId)> {
    let mut reader = Reader::new(bytes);
    let read = reader.u64().and_then(|time| Ok((time, reader.array()?)));
    read.map_err(|_| invalid_cursor())
}

fn write_operation(operation: &Operation, out: &mut Vec<u8>) {
    let mut body = Writer::object(out);
    body.plain("operationId", &operation_text(&operation.id));
    body.plain("kind", operation.kind.name());
    body.plain("state", operation.state.name());
    // It was checked to be JSON when it came; an empty body asks for everything.
    let is_blank = operation.request.iter().all(u8::is_ascii_whitespace);
    body.raw("request", if is_blank { b"{}" } else { &operation.request });
    body.flag("dryRun", operation.dry_run);
    body.number("processed", operation.processed);
    body.number("changed", operation.changed);
    body.number("skipped", operation.skipped);
    if let Some(total) = operation.estimated_total {
        body.number("estimatedTotal", total);
    }
    if operation.dry_run {
        body.value("sampleIds", |out| {
            let mut array = Writer::array(out);
            operation.samples.iter().for_each(|id| array.element(|out| write_text(str_of(&id.text()), out)));
            array.end();
        });
    }
    body.time("startedAt", operation.started_at.0);
    body.time("updatedAt", operation.updated_at.0);
    if let Some(time) = operation.finished_at {
        body.time("finishedAt", time.0);
    }
    body.text("startedBy", &operation.by);
    if !operation.error.is_empty() {
        body.text("error", &operation.error);
    }
    body.end();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_and_others_are_unknown() {
        let id: OperationId = [0xab; 16];
        assert_eq!(read_id(&operation_text(&id)).ok(), Some(id));
        for other in ["", "op-", "op-1", "abababababababababababababababababab", &format!("op-+{}", "a".repeat(31))] {
            assert_eq!(read_id(other).map_err(|problem| problem.code), Err(Code::OperationNotFound), "{other}");
        }
    }
}
