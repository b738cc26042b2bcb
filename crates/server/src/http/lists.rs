//! `GET /tasks` and `GET /dlq`: lists of tasks, read from the checkpoints of this node, beside the loop.
//!
//! A list shows what this node had applied a few milliseconds ago: readers of checkpoints are shown what is new when somebody asks for a
//! list. Under load that may take longer, and then the list is older; its position says which state it is of. Whoever asks for a position
//! or for a linearizable list waits until it is shown.

use api::json::Writer;
use api::{Code, Problem};
use base::rows::TableId;
use base::{Millis, Position, ShardId};
use cluster::{Readers, StorageError, Time};
use queue::id::shard_of;
use queue::listing::{Listing, Order, Reached, Search, Unlisted, encode_places};
use queue::outcome::State;
use queue::search::Filter;
use queue::{Query, TaskView};

use crate::http::answer::Answer;
use crate::http::call::{Call, Consistency, LastContact, Outcome, Reading};
use crate::http::cursor::{ListOf, places_of};
use crate::http::edge::Edge;
use crate::http::error::{damaged, rows_unavailable, unavailable};
use crate::http::filter::{bad, read_filter};
use crate::http::tasks::write_listed;

/// Tasks on a page: if nothing is said, and at most.
pub(crate) const LIMIT_DEFAULT: usize = 50;
pub(crate) const LIMIT_MAX: usize = 500;

/// How long a list waits for the newest state to be shown, if an older one will do.
const SHOW_MAX: Millis = Millis(5);

/// A row that the state machine cannot have written.
pub(crate) struct Damaged {
    shard: ShardId,
    table: TableId,
    key: i64,
}

/// What is read of checkpoints: the answer and what it is at, or the row that is damaged.
pub(crate) type Looked<T> = Result<(T, Vec<Position>), Damaged>;

/// A page of tasks.
struct Page {
    tasks: Vec<TaskView>,
    /// Where the next one begins, if there is one.
    next: Option<Vec<u8>>,
    is_partial: bool,
}

impl Edge {
    pub(crate) async fn list_tasks(&self, call: &Call) -> Outcome<Answer> {
        self.list(call, "/v1/codeq/tasks", false).await
    }

    pub(crate) async fn list_dead(&self, call: &Call) -> Outcome<Answer> {
        self.list(call, "/v1/codeq/dlq", true).await
    }

    async fn list(&self, call: &Call, path: &str, is_dead: bool) -> Outcome<Answer> {
        let mut list = ListOf::new(path, &call.principal.tenant);
        let (mut order, mut limit, mut include, mut cursor) = (None, LIMIT_DEFAULT, (false, false), None);
        let parameters = call.parameters().filter(|(name, _)| !is_reading(name));
        let filter = read_filter(parameters, &call.principal.tenant, &call.principal.event_types, |name, value| {
            match name {
                "order" => {
                    order =
                        Some(order_of(value, is_dead).ok_or_else(|| bad(name, value, "one of this route's orders"))?)
                }
                "limit" => limit = read_limit(value)?,
                "include" => include = read_include(value)?,
                "cursor" => cursor = Some(value.to_owned()),
                _ => return Ok(false),
            }
            Ok(true)
        });
        let mut filter = filter?;
        if is_dead {
            if call.parameters().any(|(name, _)| matches!(&*name, "state" | "status")) {
                let detail = "dead letters have one state; leave state and status out";
                return Err(Box::new(Problem::new(Code::InvalidFilter, detail).field("state")));
            }
            filter.states.retain(|state| *state == State::Dead);
        }
        let default = if is_dead { Order::Finished { descending: true } } else { Order::Created { descending: true } };
        let order = order.unwrap_or(default);
        check_order(order, &filter)?;
        for (name, value) in call.parameters().filter(|(name, _)| !is_reading(name)) {
            if !matches!(&*name, "limit" | "include" | "cursor") {
                list.parameter(&name, &value);
            }
        }
        let places = match &cursor {
            Some(cursor) => places_of(&list.open(cursor)?)?,
            None => Default::default(),
        };
        let shards = self.shards_with(&filter);
        let (with_payload, with_result) = include;
        let search = Search { filter, order, limit, with_payload, with_result };
        let mut listing = Listing::new(search, places);
        let (page, positions, age) = self
            .look_at(call, shards, move |looks, time| {
                let reached = listing.read(looks, &|| time.is_left())?;
                if reached == Reached::OutOfTime && !time.is_last() {
                    return Ok(None);
                }
                let tasks = std::mem::take(&mut listing.found);
                let next = (reached != Reached::End).then(|| encode_places(&listing.places));
                Ok(Some(Page { tasks, next, is_partial: reached == Reached::OutOfTime }))
            })
            .await?;
        let next = page.next.map(|places| list.seal(&places));
        let answer = Answer::json(200, |out| {
            let mut body = Writer::object(out);
            body.value("tasks", |out| {
                let mut tasks = Writer::array(out);
                page.tasks.iter().for_each(|task| tasks.element(|out| write_listed(task, out)));
                tasks.end();
            });
            write_end_of_page(&mut body, next.as_deref(), page.is_partial);
            body.end();
        });
        let link = next.map(|next| next_page(call, &next));
        Ok(answer.at_all(positions).age(age).link(link))
    }

    /// The shards in which tasks can be that fit a filter.
    pub(crate) fn shards_with(&self, filter: &Filter) -> Vec<ShardId> {
        let shards = self.node.identity().shards;
        match &filter.commands {
            Some(commands) => {
                let mut named: Vec<ShardId> =
                    commands.iter().map(|command| shard_of(&filter.tenant, command, shards)).collect();
                named.sort_unstable();
                named.dedup();
                named
            }
            None => (0..shards).map(ShardId).collect(),
        }
    }

    /// Looks through the checkpoints of these shards, as fresh as the call asks for. Says what was found, at which positions, and how old
    /// that is.
    pub(crate) async fn look_at<T: Send + 'static>(
        &self,
        call: &Call,
        shards: Vec<ShardId>,
        mut read: impl FnMut(Vec<(ShardId, &mut Rows)>, &Time) -> Result<Option<T>, Unlisted<StorageError>> + Send + 'static,
    ) -> Outcome<(T, Vec<Position>, Option<LastContact>)> {
        let count = self.node.identity().shards;
        let readings: Vec<Reading> =
            shards.iter().map(|shard| call.freshness(*shard, count, Consistency::Stale)).collect::<Outcome<_>>()?;
        self.check_running()?;
        for (shard, reading) in shards.iter().zip(&readings).filter(|(_, reading)| !reading.takes_any()) {
            // What is applied when that is answered is then shown.
            let asked = self.node.ask(*shard, Query::Policy, reading.freshness(), None, Some(self.lane)).await;
            asked.map_err(unavailable)?;
        }
        let must_wait = readings.iter().find(|reading| !reading.takes_any()).map(Reading::wait);
        let is_shown = self.node.show(must_wait.unwrap_or(SHOW_MAX)).await;
        if !is_shown && must_wait.is_some() {
            return Err(unavailable(cluster::Unavailable::TooStale));
        }
        let wanted = shards;
        let look = move |readers: &mut Readers, time: &Time| {
            let chosen = readers.iter_mut().filter(|(shard, _)| wanted.contains(shard));
            let (mut positions, mut looks) = (Vec::new(), Vec::new());
            for (shard, reader) in chosen {
                positions.push(reader.position);
                looks.push((*shard, &mut *reader.rows as &mut Rows));
            }
            match read(looks, time) {
                Ok(found) => Ok(found.map(|found| Ok((found, positions)))),
                Err(Unlisted::Rows(error)) => Err(error),
                Err(Unlisted::Damaged { shard, table, key }) => Ok(Some(Err(Damaged { shard, table, key }))),
            }
        };
        let looked: Looked<T> = self.node.look(look).await.map_err(|why| rows_unavailable(&why))?;
        let (found, positions) = looked.map_err(|Damaged { shard, table, key }| {
            self.node.row_is_damaged(shard, table, key);
            Box::new(damaged())
        })?;
        let mut oldest = None;
        for (reading, position) in readings.iter().zip(&positions) {
            oldest = oldest.max(reading.age_of(&self.node, self.node.shown_age(*position))?);
        }
        Ok((found, positions, oldest))
    }
}

/// The rows of one shard.
pub(crate) type Rows = dyn cluster::RowReader;

/// What every read takes.
pub(crate) fn is_reading(name: &str) -> bool {
    matches!(name, "consistency" | "minPosition" | "maxStaleness" | "wait")
}

fn order_of(text: &str, is_dead: bool) -> Option<Order> {
    Some(match text {
        "-created" if !is_dead => Order::Created { descending: true },
        "created" if !is_dead => Order::Created { descending: false },
        "-finished" => Order::Finished { descending: true },
        "finished" if is_dead => Order::Finished { descending: false },
        "queue" if !is_dead => Order::Queue,
        _ => return None,
    })
}

fn check_order(order: Order, filter: &Filter) -> Outcome<()> {
    let is_one_queue = filter.commands.as_ref().is_some_and(|commands| commands.len() == 1);
    let is_one_state = [State::Ready, State::Delayed].iter().any(|state| filter.states.iter().eq([state]));
    if order == Order::Queue && !(is_one_queue && is_one_state) {
        let detail = "order=queue needs one command, and state=READY or state=DELAYED";
        return Err(Box::new(Problem::new(Code::InvalidFilter, detail).field("order")));
    }
    Ok(())
}

/// How many things a page has: out of range is the next that is allowed.
pub(crate) fn read_limit(text: &str) -> Outcome<usize> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad("limit", text, "a number"));
    }
    Ok(text.parse::<i128>().map_or(LIMIT_MAX, |number| number.clamp(1, LIMIT_MAX as i128) as usize))
}

fn read_include(text: &str) -> Outcome<(bool, bool)> {
    let mut include = (false, false);
    for part in text.split(',').filter(|part| !part.is_empty()) {
        match part {
            "payload" => include.0 = true,
            "result" => include.1 = true,
            _ => return Err(bad("include", text, "payload, result, or both with a comma")),
        }
    }
    Ok(include)
}

/// What every list ends with.
pub(crate) fn write_end_of_page(body: &mut Writer<'_>, next: Option<&str>, is_partial: bool) {
    if let Some(next) = next {
        body.plain("nextCursor", next);
    }
    if is_partial {
        body.flag("partial", true);
    }
}

/// Path and query of the next page.
pub(crate) fn next_page(call: &Call, cursor: &str) -> String {
    let query = call.head.uri.query().unwrap_or_default();
    let others = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("cursor="));
    let pairs: Vec<&str> = others.collect();
    let cursor = format!("cursor={cursor}");
    let pairs: Vec<&str> = pairs.into_iter().chain([cursor.as_str()]).collect();
    format!("{}?{}", call.head.uri.path(), pairs.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_clamped_and_other_texts_refused() {
        for (text, limit) in [("7", 7), ("0", 1), ("-3", 1), ("500", 500), ("501", 500), (&"9".repeat(60), 500)] {
            assert_eq!(read_limit(text), Ok(limit), "{text}");
        }
        for bad in ["", "-", "x", "1.5", "+1", "1 "] {
            assert_eq!(read_limit(bad).map_err(|problem| problem.code), Err(Code::InvalidFilter), "{bad}");
        }
    }
}
