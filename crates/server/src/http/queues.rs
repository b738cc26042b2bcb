//! `GET /queues`, `GET /queues/{command}` and `GET /whoami`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use api::json::{Seconds, Writer, write_text};
use api::v1::{NoBody, PauseBody};
use api::{Code, Problem};
use base::{Millis, Position, ShardId};
use cluster::{Freshness, Unavailable};
use queue::id::shard_of;
use queue::outcome::{Outcome as Applied, QueueStats, QueuesOf};
use queue::{Answer as Told, Op, Query};

use crate::auth::EventTypes;
use crate::http::answer::Answer;
use crate::http::call::{Call, Consistency, Outcome};
use crate::http::create::check_command;
use crate::http::cursor::{ListOf, invalid_cursor};
use crate::http::edge::Edge;
use crate::http::error::{Words, after_effect, rejected, unavailable};
use crate::http::filter::bad;
use crate::http::lease::check_unknown;
use crate::http::lists::{is_reading, next_page, read_limit, write_end_of_page};

/// A pause with an end is no longer than this: 30 days.
const PAUSE_MAX: Millis = Millis(30 * 24 * 3_600_000);

/// Queues on a page, if nothing is said.
const LIMIT_DEFAULT: usize = 50;

impl Edge {
    pub(crate) async fn list_queues(&self, call: &Call) -> Outcome<Answer> {
        let tenant = &call.principal.tenant;
        let mut list = ListOf::new("/v1/codeq/queues", tenant);
        let mut of = QueuesOf { tenant: tenant.clone(), ..QueuesOf::default() };
        let mut cursor = None;
        of.limit = LIMIT_DEFAULT;
        for (name, value) in call.parameters().filter(|(name, _)| !is_reading(name)) {
            match &*name {
                "prefix" => of.prefix = value.as_ref().into(),
                "nonEmpty" => of.non_empty = flag(&name, &value)?,
                "paused" => of.paused = Some(flag(&name, &value)?),
                "limit" => of.limit = read_limit(&value)?,
                "cursor" => cursor = Some(value.to_string()),
                _ => return Err(unknown(&name)),
            }
            if matches!(&*name, "prefix" | "nonEmpty" | "paused") {
                list.parameter(&name, &value);
            }
        }
        if let Some(cursor) = cursor {
            let after = String::from_utf8(list.open(&cursor)?).map_err(|_| invalid_cursor())?;
            of.after = Some(after.into());
        }
        if let EventTypes::Listed(listed) = &call.principal.event_types
            && !listed.is_empty()
        {
            of.commands = Some(listed.iter().map(|command| Arc::from(command.as_str())).collect());
        }
        let count = self.node.identity().shards;
        self.check_running()?;
        let (mut queues, mut looked_to, mut positions, mut age) = (Vec::new(), None::<Arc<str>>, Vec::new(), None);
        for shard in (0..count).map(ShardId) {
            let reading = call.freshness(shard, count, Consistency::Stale)?;
            let asked = self.node.ask(shard, Query::QueuesOf(of.clone()), reading.freshness(), None, Some(self.lane));
            let (position, Told::QueuePage { queues: of_shard, looked_to: to }) = asked.await.map_err(unavailable)?
            else {
                return Err(unavailable(Unavailable::Unknown));
            };
            positions.push(position);
            age = age.max(reading.age(&self.node)?);
            queues.extend(of_shard);
            // All shards together are known up to the one that is known least far.
            looked_to = match (looked_to, to) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        queues.sort_by(|one, other| one.command.cmp(&other.command));
        if let Some(end) = &looked_to {
            queues.retain(|queue| queue.command <= *end);
        }
        let has_more = looked_to.is_some() || queues.len() > of.limit;
        let is_full = queues.len() >= of.limit;
        queues.truncate(of.limit);
        let last = if is_full { queues.last().map(|queue| queue.command.clone()) } else { looked_to };
        let next = last.filter(|_| has_more).map(|last| list.seal(last.as_bytes()));
        let answer = Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.value("queues", |out| {
                let mut array = Writer::array(out);
                queues.iter().for_each(|queue| array.element(|out| self.write_queue(queue, out)));
                array.end();
            });
            write_end_of_page(&mut body, next.as_deref(), has_more && !is_full);
            body.end();
        });
        let link = next.map(|next| next_page(call, &next));
        Ok(answer.at_all(positions).age(age).link(link))
    }

    pub(crate) async fn show_queue(&self, call: &Call, command: &str) -> Outcome<Answer> {
        let command = check_command(command, false)?;
        check_parameters(call)?;
        let tenant = &call.principal.tenant;
        let shards = self.node.identity().shards;
        let shard = shard_of(tenant, command, shards);
        let reading = call.freshness(shard, shards, Consistency::Linearizable)?;
        self.check_running()?;
        let (position, stats) = self.queue_now(tenant, command, reading.freshness()).await?;
        Ok(Answer::json(200, |out| self.write_queue(&stats, out)).at(position).age(reading.age(&self.node)?))
    }

    /// Lets claims pass a queue over.
    pub(crate) async fn pause_queue(&self, call: &Call, command: &str) -> Outcome<Answer> {
        let body: PauseBody<'_> = call.json()?;
        check_unknown(body.unknown.as_deref())?;
        let command = check_command(command, false)?;
        let length = match body.duration {
            None => None,
            Some(Seconds(ms)) if (1..=PAUSE_MAX.0 as i64).contains(&ms) => Some(Millis(ms as u64)),
            Some(_) => {
                let detail =
                    "durationSeconds is more than 0 and at most 2592000, which are 30 days; absent: until resumed";
                return Err(Box::new(Problem::new(Code::InvalidField, detail).field("durationSeconds")));
            }
        };
        let tenant = &call.principal.tenant;
        let (reason, by) = (body.reason.as_deref().unwrap_or(""), &*call.principal.subject);
        self.change_queue(call, command, &Op::Pause { tenant, command, length, reason, by }).await
    }

    /// Ends a pause.
    pub(crate) async fn resume_queue(&self, call: &Call, command: &str) -> Outcome<Answer> {
        let body: NoBody<'_> = call.json()?;
        check_unknown(body.unknown.as_deref())?;
        let command = check_command(command, false)?;
        self.change_queue(call, command, &Op::Resume { tenant: &call.principal.tenant, command }).await
    }

    async fn change_queue(&self, call: &Call, command: &str, op: &Op<'_>) -> Outcome<Answer> {
        check_parameters(call)?;
        self.check_running()?;
        let tenant = &call.principal.tenant;
        let shard = shard_of(tenant, command, self.node.identity().shards);
        let position = match self.apply_to(shard, op).await? {
            (position, Applied::Done) => position,
            (_, Applied::Rejected(rejection)) => return Err(rejected(&rejection, Words::Tasks, None)),
            _ => return Err(unavailable(Unavailable::Unknown)),
        };
        let up_to = self.shared.settings.node.propose_timeout;
        let freshness = Freshness::AtLeast { index: position.index, up_to };
        let shown = self.queue_now(tenant, command, freshness).await;
        let (position, stats) = shown.map_err(|why| after_effect("the queue was changed", &why))?;
        Ok(Answer::json(200, |out| self.write_queue(&stats, out)).at(position))
    }

    /// One queue's numbers.
    pub(crate) async fn queue_now(
        &self,
        tenant: &Arc<str>,
        command: &str,
        freshness: Freshness,
    ) -> Outcome<(Position, QueueStats)> {
        let shard = shard_of(tenant, command, self.node.identity().shards);
        let query = Query::Queue { tenant: tenant.clone(), command: command.into() };
        match self.node.ask(shard, query, freshness, None, Some(self.lane)).await.map_err(unavailable)? {
            (position, Told::Queue(stats)) => Ok((position, stats)),
            _ => Err(unavailable(Unavailable::Unknown)),
        }
    }

    /// `waiters` are those of this node.
    fn write_queue(&self, queue: &QueueStats, out: &mut Vec<u8>) {
        let mut body = Writer::object(out);
        body.text("command", &queue.command);
        body.text("tenantId", &queue.tenant);
        body.number("ready", queue.depth.ready_total());
        body.number("delayed", queue.depth.delayed);
        body.number("inProgress", queue.depth.leased);
        body.number("dlq", queue.depth.dead);
        body.value("readyByPriority", |out| {
            let mut array = Writer::array(out);
            queue.depth.ready.iter().for_each(|count| array.element(|out| api::json::write_number(*count, out)));
            array.end();
        });
        if let Some(since) = queue.oldest_ready {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64);
            body.number("oldestReadyAgeMs", now.saturating_sub(since.0));
        }
        if let Some(next) = queue.next_due {
            body.time("nextDueAt", next.0);
        }
        body.number("consumers", queue.consumers);
        body.number("waiters", self.shared.waiting.for_work_of(&queue.tenant, &queue.command) as u64);
        body.number("enqueuedTotal", queue.totals.created);
        body.number("completedTotal", queue.totals.completed);
        body.number("failedTotal", queue.totals.failed);
        body.number("deadTotal", queue.totals.dead);
        body.flag("paused", queue.pause.is_some());
        if let Some(pause) = &queue.pause {
            if let Some(until) = pause.until {
                body.time("pausedUntil", until.0);
            }
            if !pause.reason.is_empty() {
                body.text("pauseReason", &pause.reason);
            }
            body.text("pausedBy", &pause.by);
        }
        if queue.updated_at.0 > 0 {
            body.time("updatedAt", queue.updated_at.0);
        }
        body.end();
    }

    pub(crate) fn whoami(&self, call: &Call) -> Outcome<Answer> {
        if let Some((name, _)) = call.parameters().next() {
            return Err(unknown(&name));
        }
        let who = &call.principal;
        let all = ["*".to_owned()];
        let event_types: Vec<&String> = match &who.event_types {
            EventTypes::Any => all.iter().collect(),
            EventTypes::Listed(listed) => listed.iter().collect(),
        };
        Ok(Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.text("subject", &who.subject);
            body.text("tenantId", &who.tenant);
            body.value("roles", |out| write_texts(who.is_admin.then_some("admin").into_iter(), out));
            if let Some(role) = who.cluster_role {
                body.text("clusterRole", role.name());
            }
            body.value("scopes", |out| write_texts(who.scopes(), out));
            body.value("eventTypes", |out| write_texts(event_types.iter().map(|name| name.as_str()), out));
            body.text("node", &self.node.identity().node);
            body.end();
        }))
    }
}

fn write_texts<'a>(texts: impl Iterator<Item = &'a str>, out: &mut Vec<u8>) {
    let mut array = Writer::array(out);
    texts.for_each(|text| array.element(|out| write_text(text, out)));
    array.end();
}

/// Refuses parameters of which this route knows nothing.
pub(crate) fn check_parameters(call: &Call) -> Outcome<()> {
    let unread = call.parameters().map(|(name, _)| name).find(|name| !is_reading(name));
    unread.map_or(Ok(()), |name| Err(unknown(&name)))
}

fn unknown(name: &str) -> Box<Problem> {
    let name: String = name.chars().take(80).collect();
    Box::new(Problem::new(Code::InvalidFilter, format!("this route has no parameter {name:?}")).field(name))
}

fn flag(name: &str, text: &str) -> Outcome<bool> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(bad(name, text, "true or false")),
    }
}
