//! `GET /events` and `GET /tasks/{id}/events`: what happens to tasks, queues and operations, as server-sent events.
//!
//! All events come from this node's feed, those of one task from its history, which goes back to its beginning. Both go on behind the last
//! event that a client has seen, at any node. What this node does not know any more is a `gap`, never a hole that nobody is told of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use api::json::Writer;
use api::{Code, Problem};
use base::{Index, Millis, Position, ShardId};
use cluster::Freshness;
use cluster::http::{Form, KEEP_ALIVE};
use queue::TaskId;
use queue::events::{Body, Event, Queue, read};
use queue::history::{Happening, entries, numbered};
use queue::id::shard_of;
use tokio::time::{Instant, sleep, sleep_until};

use crate::auth::EventTypes;
use crate::feed::{At, Behind, Feed};
use crate::http::answer::Answer;
use crate::http::bulk::write_operation;
use crate::http::call::{Call, Consistency, Outcome};
use crate::http::create::check_command;
use crate::http::edge::Edge;
use crate::http::error::{Words, task_not_found};
use crate::http::filter::bad;
use crate::http::history::{Known, unknown_parameter, write_actor, write_entry};
use crate::http::lists::is_reading;
use crate::http::streams::Source;
use crate::http::tasks::{has_ended, str_of};

/// Events that wait for a client before its stream is closed; it comes back for them.
const WAITING_MAX: usize = 1_000;

/// Events of a piece.
const PIECE_MAX: usize = 100;

/// Chunks of the feed that are looked through for a piece.
const CHUNKS_MAX: usize = 8;

/// What happens within this time is looked at together.
const TOGETHER: Duration = Duration::from_millis(5);

/// Until a task is looked at again that has not changed after all.
const AGAIN: Duration = Duration::from_millis(200);

/// Values of a parameter that may be repeated.
const VALUES_MAX: usize = 100;

const OF_QUEUES: [&str; 3] = ["queue.paused", "queue.resumed", "queue.purged"];
const OF_OPERATIONS: [&str; 3] = ["operation.started", "operation.progress", "operation.ended"];

/// Which events a client gets.
#[derive(Debug)]
struct Wanted {
    tenant: Arc<str>,
    /// None: all.
    commands: Option<BTreeSet<String>>,
    /// None: all.
    types: Option<BTreeSet<String>>,
    /// Operations are for those who may ask for them.
    operations: bool,
}

impl Wanted {
    fn wants(&self, event: &Event<'_>) -> bool {
        let operation = matches!(event.body, Body::Started(_) | Body::Progress(_) | Body::Ended(_));
        *self.tenant == *event.tenant
            && (!operation || self.operations && self.commands.is_none())
            && self.commands.as_ref().is_none_or(|commands| operation || commands.contains(event.command))
            && self.types.as_ref().is_none_or(|types| types.contains(&name_of(event)))
    }
}

fn name_of(event: &Event<'_>) -> String {
    match &event.body {
        Body::Task { entry, .. } => format!("task.{}", entry.what.name()),
        Body::Paused(_) => OF_QUEUES[0].into(),
        Body::Resumed(_) => OF_QUEUES[1].into(),
        Body::Purged(_) => OF_QUEUES[2].into(),
        Body::Started(_) => OF_OPERATIONS[0].into(),
        Body::Progress(_) => OF_OPERATIONS[1].into(),
        Body::Ended(_) => OF_OPERATIONS[2].into(),
    }
}

fn is_name(text: &str) -> bool {
    let of_task =
        |rest: &str| Happening::NAMES.iter().any(|(what, name)| *name == rest && *what != Happening::Truncated);
    text.strip_prefix("task.").is_some_and(of_task) || OF_QUEUES.contains(&text) || OF_OPERATIONS.contains(&text)
}

/// How far a client has come in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing of the shard was known when it began: it gets everything.
    First,
    /// It knows nothing of it, and may have missed something.
    Lost,
    /// It has everything up to this event.
    Behind(At),
}

/// How far a client has come: for each shard of its stream `<shard>:<life>:<index>:<place>`, or `<shard>:-` where nothing is known.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cursor(BTreeMap<ShardId, Place>);

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (shard, place)) in self.0.iter().enumerate() {
            let comma = if number > 0 { "," } else { "" };
            match place {
                Place::First | Place::Lost => write!(f, "{comma}{}:-", shard.0)?,
                Place::Behind(At { life, index, place }) => write!(f, "{comma}{}:{life:04x}:{index}:{place}", shard.0)?,
            }
        }
        Ok(())
    }
}

impl Cursor {
    /// The text of an event's id, of a stream that has these shards, or more.
    fn parse(text: &str, shards: &BTreeSet<ShardId>) -> Option<Cursor> {
        let mut places = BTreeMap::new();
        for part in text.split(',') {
            let (shard, place) = part.split_once(':')?;
            let mut numbers = place.split(':');
            let place = if place == "-" {
                Place::Lost
            } else {
                let life = u16::from_str_radix(numbers.next()?, 16).ok()?;
                let index = Index(numbers.next()?.parse().ok()?);
                Place::Behind(At { life, index, place: numbers.next()?.parse().ok()? })
            };
            if place != Place::Lost && numbers.next().is_some() {
                return None;
            }
            places.insert(ShardId(shard.parse().ok()?), place);
        }
        let has_all = shards.iter().all(|shard| places.contains_key(shard));
        places.retain(|shard, _| shards.contains(shard));
        has_all.then_some(Cursor(places))
    }
}

/// A stream of all events.
struct Following {
    feed: Arc<Feed>,
    cursor: Cursor,
    wanted: Wanted,
    /// The client knows no id yet: it is told one before anything happens.
    is_new: bool,
    /// The client has had everything there was; from then on what waits for it is counted.
    is_live: bool,
}

impl Following {
    /// The next events, and whether there may be more.
    fn piece(&mut self) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        if self.skip_gaps() {
            let id = self.cursor.to_string();
            Form::Events.write("gap", &id, &format!("{{\"oldest\":\"{id}\",\"lost\":true}}"), &mut out);
            return (out, true);
        }
        let (mut events, mut chunks) = (0, 0);
        for shard in self.cursor.0.keys().copied().collect::<Vec<_>>() {
            while let Some(Place::Behind(at)) = self.cursor.0.get(&shard).copied()
                && let Some(Behind::Chunk(chunk)) = self.feed.behind(shard, at)
            {
                if events >= PIECE_MAX || chunks == CHUNKS_MAX {
                    return (out, true);
                }
                chunks += 1;
                for entry in chunk.entries() {
                    for (event, place) in read(shard, entry.events).zip(entry.first..) {
                        let here = At { index: entry.index, place, ..at };
                        if here <= at || events >= PIECE_MAX {
                            continue;
                        }
                        self.cursor.0.insert(shard, Place::Behind(here));
                        // They were written on this node.
                        let Ok(event) = event else { continue };
                        if self.wanted.wants(&event) {
                            let position = Position { shard, term: entry.term, index: entry.index };
                            let id = self.cursor.to_string();
                            Form::Events.write(&name_of(&event), &id, &shown(&event, position), &mut out);
                            events += 1;
                        }
                    }
                }
            }
        }
        (out, false)
    }

    /// Goes on from what is known wherever more is asked for. Says whether something is missing.
    fn skip_gaps(&mut self) -> bool {
        let mut is_missing = false;
        for (shard, place) in &mut self.cursor.0 {
            let known = self.feed.oldest(*shard);
            match (*place, known) {
                (Place::First, Some(oldest)) => *place = Place::Behind(oldest),
                (Place::Lost, Some(oldest)) => {
                    is_missing = true;
                    *place = Place::Behind(oldest);
                }
                (Place::Behind(at), Some(oldest)) if at.life != oldest.life || at < oldest => {
                    is_missing = true;
                    *place = Place::Behind(oldest);
                }
                _ => {}
            }
        }
        is_missing
    }

    /// How many events wait, as far as that matters.
    fn waiting(&self) -> usize {
        let mut waiting = 0;
        for (shard, place) in &self.cursor.0 {
            let Place::Behind(mut at) = *place else { continue };
            while let Some(Behind::Chunk(chunk)) = self.feed.behind(*shard, at) {
                for entry in chunk.entries() {
                    let events = read(*shard, entry.events).zip(entry.first..);
                    let later = events.filter(|(_, place)| At { index: entry.index, place: *place, ..at } > at);
                    waiting +=
                        later.filter(|(event, _)| event.as_ref().is_ok_and(|event| self.wanted.wants(event))).count();
                }
                at = chunk.last(at.life);
                if waiting > WAITING_MAX {
                    return waiting;
                }
            }
        }
        waiting
    }
}

impl Source for Following {
    async fn next(&mut self) -> Option<Vec<u8>> {
        if std::mem::take(&mut self.is_new) {
            return Some(format!("id: {}\n\n", self.cursor).into_bytes());
        }
        let silent_until = Instant::now() + KEEP_ALIVE;
        loop {
            let feed = self.feed.clone();
            let mut grown = pin!(feed.grown());
            grown.as_mut().enable();
            let (piece, has_more) = self.piece();
            if !piece.is_empty() {
                return Some(piece);
            }
            if has_more {
                tokio::task::yield_now().await;
                continue;
            }
            self.is_live = true;
            tokio::select! {
                () = grown => sleep(TOGETHER).await,
                () = sleep_until(silent_until) => return Some(Form::Events.keep_alive().to_vec()),
            }
        }
    }

    async fn overflows(&self) {
        loop {
            let mut grown = pin!(self.feed.grown());
            grown.as_mut().enable();
            if self.is_live && self.waiting() > WAITING_MAX {
                return;
            }
            grown.await;
            sleep(TOGETHER).await;
        }
    }
}

/// A stream of one task's events.
struct TaskFollowing {
    edge: Edge,
    tenant: Arc<str>,
    id: TaskId,
    /// What was read first, to be told.
    known: Option<Known>,
    /// The last entry that the state machine had applied.
    applied: Option<Index>,
    /// The last entry that was sent.
    sent: Option<(Index, u32)>,
    has_ended: bool,
}

impl TaskFollowing {
    async fn look(&mut self) -> Option<Known> {
        if let Some(known) = self.known.take() {
            return Some(known);
        }
        let wait = self.applied.map(|applied| (applied, Millis(KEEP_ALIVE.as_millis() as u64)));
        self.edge.history_of(&self.tenant, self.id, Freshness::STALE, wait).await.ok().flatten()
    }

    fn id(&self) -> String {
        let (index, place) = self.sent.unwrap_or_default();
        format!("{}:{index}:{place}", self.id.shard.0)
    }
}

impl Source for TaskFollowing {
    async fn next(&mut self) -> Option<Vec<u8>> {
        let silent_until = Instant::now() + KEEP_ALIVE;
        while !self.has_ended {
            // It may be gone, or the node stops.
            let Known { position, task, terms, applied } = self.look().await?;
            let mut piece = Vec::new();
            for (number, entry) in numbered(entries(&task).ok()?) {
                if self.sent.is_some_and(|sent| number <= sent) {
                    continue;
                }
                self.sent = Some(number);
                let name = format!("task.{}", entry.what.name());
                let position = Position { shard: self.id.shard, term: terms.of(entry.index), index: entry.index };
                let body = Body::Task { id: self.id, entry };
                let event = Event { tenant: &task.tenant, command: &task.command, body };
                Form::Events.write(&name, &self.id(), &shown(&event, position), &mut piece);
            }
            if has_ended(task.state) {
                self.has_ended = true;
                let end = format!("{{\"state\":\"{}\",\"position\":\"{position}\"}}", task.state.name());
                Form::Events.write("end", &self.id(), &end, &mut piece);
            }
            if !piece.is_empty() {
                self.applied = applied;
                return Some(piece);
            }
            if Instant::now() >= silent_until {
                return Some(Form::Events.keep_alive().to_vec());
            }
            if self.applied == applied {
                sleep(AGAIN).await;
            }
            self.applied = applied;
        }
        None
    }

    fn overflows(&self) -> impl Future<Output = ()> + Send {
        // Its history waits, and nothing else.
        std::future::pending()
    }
}

/// The data of an event.
fn shown(event: &Event<'_>, position: Position) -> String {
    let mut out = Vec::with_capacity(256);
    let of_queue = |queue: &Queue<'_>, out: &mut Vec<u8>| {
        let mut body = Writer::object(out);
        body.text("command", event.command);
        body.plain("position", &position.to_string());
        body.time("at", queue.at.0);
        write_actor(queue.actor, "subject", queue.by, &mut body);
        if !queue.reason.is_empty() {
            body.text("reason", queue.reason);
        }
        if let Some(until) = queue.until {
            body.time("pausedUntil", until.0);
        }
        body.text("tenantId", event.tenant);
        body.end();
    };
    match &event.body {
        Body::Task { id, entry } => {
            let mut body = Writer::object(&mut out);
            write_entry(entry, position, &mut body);
            body.plain("taskId", str_of(&id.text()));
            body.text("command", event.command);
            body.text("tenantId", event.tenant);
            body.end();
        }
        Body::Paused(queue) | Body::Resumed(queue) | Body::Purged(queue) => of_queue(queue, &mut out),
        Body::Started(operation) | Body::Progress(operation) | Body::Ended(operation) => {
            write_operation(operation, &mut out);
        }
    }
    String::from_utf8(out).expect("JSON is text")
}

impl Edge {
    /// All events of the tenant, from now on or from behind one.
    pub(crate) fn follow_events(&self, call: &Call) -> Outcome<Answer> {
        let (mut commands, mut types, mut after) = (BTreeSet::new(), BTreeSet::new(), None);
        for (name, value) in call.parameters() {
            match &*name {
                "command" => drop(commands.insert(check_command(&value, false)?.to_owned())),
                "type" if is_name(&value) => drop(types.insert(value.to_string())),
                "type" => return Err(bad("type", &value, "the name of an event")),
                "after" => after = Some(value.to_string()),
                _ => return Err(unknown_parameter(&name)),
            }
            if commands.len().max(types.len()) > VALUES_MAX {
                return Err(bad(&name, &value, "one of at most 100"));
            }
        }
        // As in lists, what a worker's token does not name is not there.
        let listed = match &call.principal.event_types {
            EventTypes::Listed(listed) if !listed.is_empty() => Some(listed),
            _ => None,
        };
        let commands = match listed {
            Some(listed) if commands.is_empty() => Some(listed.clone()),
            Some(listed) => Some(commands.intersection(listed).cloned().collect()),
            None => Some(commands).filter(|commands| !commands.is_empty()),
        };
        self.check_running()?;
        let tenant = call.principal.tenant.clone();
        let count = self.node.identity().shards;
        let shards: BTreeSet<ShardId> = match &commands {
            None => (0..count).map(ShardId).collect(),
            Some(commands) => commands.iter().map(|command| shard_of(&tenant, command, count)).collect(),
        };
        let feed = self.shared.feed.clone();
        let seen = call.header("last-event-id").map(str::to_owned).filter(|id| !id.is_empty()).or(after);
        let is_new = seen.is_none();
        let cursor = match seen {
            Some(id) => Cursor::parse(&id, &shards).ok_or_else(not_an_id)?,
            None => Cursor(
                shards.iter().map(|shard| (*shard, feed.last(*shard).map_or(Place::First, Place::Behind))).collect(),
            ),
        };
        let types = (!types.is_empty()).then_some(types);
        let wanted = Wanted { tenant, commands, types, operations: call.principal.is_admin };
        self.stream_events(Following { feed, cursor, wanted, is_new, is_live: false })
    }

    /// What happens to one task, from its beginning or from behind an event, until it ends.
    pub(crate) async fn follow_task(&self, call: &Call, id: &str) -> Outcome<Answer> {
        let id = self.live_id(id, Words::Tasks)?;
        let mut after = None;
        for (name, value) in call.parameters().filter(|(name, _)| !is_reading(name)) {
            match &*name {
                "after" => after = Some(value.to_string()),
                _ => return Err(unknown_parameter(&name)),
            }
        }
        let seen = call.header("last-event-id").map(str::to_owned).filter(|id| !id.is_empty()).or(after);
        let sent = seen.map(|text| parse_number(&text, id).ok_or_else(not_an_id)).transpose()?;
        let tenant = call.principal.tenant.clone();
        let reading = call.freshness(id.shard, self.node.identity().shards, Consistency::Stale)?;
        self.check_running()?;
        let known = match self.history_of(&tenant, id, reading.freshness(), None).await? {
            Some(known) => known,
            // This node may be behind.
            None => {
                let known = self.history_of(&tenant, id, Freshness::Linearizable, None).await?;
                known.ok_or_else(|| task_not_found(Words::Tasks))?
            }
        };
        let edge = Edge::new(self.shared.clone(), self.lane);
        let known = Some(known);
        self.stream_events(TaskFollowing { edge, tenant, id, known, applied: None, sent, has_ended: false })
    }
}

fn parse_number(text: &str, id: TaskId) -> Option<(Index, u32)> {
    let mut numbers = text.split(':');
    let shard = ShardId(numbers.next()?.parse().ok()?);
    let number = (Index(numbers.next()?.parse().ok()?), numbers.next()?.parse().ok()?);
    (shard == id.shard && numbers.next().is_none()).then_some(number)
}

fn not_an_id() -> Box<Problem> {
    let detail = "after, or Last-Event-ID, is the id of an event of this stream; begin without one";
    Box::new(Problem::new(Code::InvalidCursor, detail).field("after"))
}
