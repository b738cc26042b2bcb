//! `GET /tasks/{id}/history`: what has happened to a task, how it began included.

use std::sync::Arc;

use api::json::Writer;
use api::{Code, Problem};
use base::codec::{Reader, Write};
use base::{Index, Position};
use cluster::Freshness;
use queue::history::{Actor, Entry, Happening, Terms, entries, numbered};
use queue::{Answer as Told, Query, TaskId, TaskView};

use crate::http::answer::Answer;
use crate::http::call::{Call, Consistency, Outcome};
use crate::http::cursor::{ListOf, invalid_cursor};
use crate::http::edge::Edge;
use crate::http::error::{Words, task_not_found, unavailable};
use crate::http::lists::{LIMIT_DEFAULT, is_reading, next_page, read_limit, write_end_of_page};

/// A task with its history, and what is needed to show that.
pub(crate) struct Known {
    pub(crate) position: Position,
    pub(crate) task: Arc<TaskView>,
    pub(crate) terms: Terms,
    /// The last entry that the state machine had applied by then.
    pub(crate) applied: Option<Index>,
}

impl Edge {
    pub(crate) async fn get_history(&self, call: &Call, id: &str) -> Outcome<Answer> {
        let id = self.live_id(id, Words::Tasks)?;
        let (mut limit, mut cursor) = (LIMIT_DEFAULT, None);
        for (name, value) in call.parameters().filter(|(name, _)| !is_reading(name)) {
            match &*name {
                "limit" => limit = read_limit(&value)?,
                "cursor" => cursor = Some(value.to_string()),
                _ => return Err(unknown_parameter(&name)),
            }
        }
        let list = ListOf::new("/v1/codeq/tasks/history", &format!("{}/{id}", call.principal.tenant));
        let after = cursor.map(|cursor| read_number(&list.open(&cursor)?)).transpose()?;
        let reading = call.freshness(id.shard, self.node.identity().shards, Consistency::Linearizable)?;
        self.check_running()?;
        let known = self.history_of(&call.principal.tenant, id, reading.freshness(), None).await?;
        let Known { position, task, terms, .. } = known.ok_or_else(|| task_not_found(Words::Tasks))?;
        let mut all: Vec<_> = numbered(entries(&task).map_err(|_| self.damaged_history(id))?).collect();
        all.retain(|(number, _)| after.is_none_or(|after| *number > after));
        let has_more = all.len() > limit;
        all.truncate(limit);
        let last = all.last().filter(|_| has_more).map(|(number, _)| *number);
        let next = last.map(|(index, place)| {
            let mut bytes = Vec::new();
            bytes.put_varint(index.0);
            bytes.put_varint(u64::from(place));
            list.seal(&bytes)
        });
        let answer = Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.value("entries", |out| {
                let mut array = Writer::array(out);
                for (_, entry) in &all {
                    array.element(|out| {
                        let mut object = Writer::object(out);
                        let position = Position { shard: id.shard, term: terms.of(entry.index), index: entry.index };
                        write_entry(entry, position, &mut object);
                        object.end();
                    });
                }
                array.end();
            });
            write_end_of_page(&mut body, next.as_deref(), false);
            body.end();
        });
        let link = next.map(|next| next_page(call, &next));
        Ok(answer.at(position).age(reading.age(&self.node)?).link(link))
    }

    /// A task with its history, if there is such a task of the tenant. With `wait`: when it is changed after that entry, or so much later.
    pub(crate) async fn history_of(
        &self,
        tenant: &Arc<str>,
        id: TaskId,
        freshness: Freshness,
        wait: Option<(Index, base::Millis)>,
    ) -> Outcome<Option<Known>> {
        let query = Query::History { tenant: tenant.clone(), id, after: wait.map(|(after, _)| after) };
        let (position, found) = self.find_by(query, tenant, id, freshness, wait.map(|(_, wait)| wait)).await?;
        let Some(task) = found else { return Ok(None) };
        // Where the task was read, the terms of its entries are known.
        let up_to = self.shared.settings.node.propose_timeout;
        let freshness = Freshness::AtLeast { index: position.index, up_to };
        let asked = self.node.ask(id.shard, Query::Terms, freshness, None, Some(self.lane)).await;
        let (_, Told::Terms { terms, applied }) = asked.map_err(unavailable)? else {
            return Err(unavailable(cluster::Unavailable::Unknown));
        };
        Ok(Some(Known { position, task, terms, applied }))
    }

    pub(crate) fn damaged_history(&self, id: TaskId) -> Box<Problem> {
        tracing::error!(event = "storage.history", task = %id, "the history of a task cannot be read");
        Box::new(Problem::new(Code::Internal, "the task's history is damaged; the server's log says more"))
    }
}

pub(crate) fn unknown_parameter(name: &str) -> Box<Problem> {
    let name: String = name.chars().take(80).collect();
    Box::new(Problem::new(Code::InvalidFilter, format!("this route has no parameter {name:?}")).field(name))
}

fn read_number(bytes: &[u8]) -> Outcome<(Index, u32)> {
    let mut reader = Reader::new(bytes);
    let number = reader.varint().and_then(|index| Ok((Index(index), reader.narrow()?)));
    number.map_err(|_| invalid_cursor())
}

/// Appends who has done something, with its name under `named` if it has one.
pub(crate) fn write_actor(actor: Actor, named: &str, name: &str, body: &mut Writer<'_>) {
    body.value("actor", |out| {
        let mut object = Writer::object(out);
        object.plain("kind", actor.name());
        if !name.is_empty() {
            object.text(named, name);
        }
        object.end();
    });
}

/// Appends the members of an entry, which stands at this position of the log.
pub(crate) fn write_entry(entry: &Entry<'_>, position: Position, body: &mut Writer<'_>) {
    let is_known = entry.what != Happening::Truncated;
    if is_known {
        body.plain("position", &position.to_string());
        body.time("at", entry.at.0);
    }
    body.plain("type", entry.what.name());
    if is_known {
        write_actor(entry.actor, "workerId", entry.worker, body);
        for (name, state) in [("from", entry.from), ("to", entry.to)] {
            if let Some(state) = state {
                body.plain(name, state.name());
            }
        }
        body.number("attempt", u64::from(entry.attempt));
        if !entry.reason.is_empty() {
            body.text("reason", entry.reason);
        }
        for (name, time) in [("delayMs", entry.delay), ("leaseMs", entry.lease)] {
            if let Some(time) = time {
                body.number(name, time.0);
            }
        }
    }
    if entry.count != 1 || !is_known {
        body.number("count", entry.count);
    }
}
