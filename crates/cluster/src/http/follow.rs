//! What goes on happening, as it happens: events, elections and timelines as streams that end only when nobody wants them any more.
//!
//! A stream is lines of JSON, or, where the client accepts them, server-sent events. Each of those has an id; a client that comes back with
//! the last one it has seen goes on behind it, at any node. After [`KEEP_ALIVE`] without anything an empty line says that the stream lives.

use std::collections::BTreeMap;
use std::time::Duration;

use base::ShardId;
use base::machine::StateMachine;
use tokio::time::{Instant, sleep};

use crate::events::cursor::Cursor;
use crate::events::{Event, timeline};
use crate::http::HttpAnswer;
use crate::http::elections::{Asked, TimelineView, event_json, recorded, told_view, views};
use crate::node::Handle;

/// How often a stream looks for what is new, on all nodes.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A stream that has nothing to say says so after this long.
pub const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Events that the stream of a timeline remembers; the oldest are forgotten.
const REMEMBERED_MAX: usize = 50_000;

/// What a stream is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An object in each line.
    Lines,
    /// Server-sent events.
    Events,
}

impl Form {
    /// What a client wants that sends this header, and this query; nothing: it wants no stream.
    pub fn of(accept: Option<&str>, query: &str) -> Option<Form> {
        let follows = || query.split('&').any(|pair| matches!(pair, "follow" | "follow=true" | "follow=1"));
        match accept {
            Some(accept) if accept.contains("text/event-stream") => Some(Form::Events),
            _ => follows().then_some(Form::Lines),
        }
    }

    /// Its media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Form::Lines => "application/x-ndjson",
            Form::Events => "text/event-stream",
        }
    }

    /// Appends an object. `kind`: what it is; `id`: what a client comes back with.
    pub fn write(self, kind: &str, id: &str, object: &str, out: &mut Vec<u8>) {
        match self {
            Form::Lines => out.extend_from_slice(format!("{object}\n").as_bytes()),
            Form::Events => out.extend_from_slice(format!("id: {id}\nevent: {kind}\ndata: {object}\n\n").as_bytes()),
        }
    }

    /// What says that the stream lives.
    pub fn keep_alive(self) -> &'static [u8] {
        match self {
            Form::Lines => b"\n",
            Form::Events => b":\n\n",
        }
    }
}

/// What a stream is of.
enum Subject {
    Events(Cursor),
    Elections(Changes),
    Timeline { cursor: Cursor, known: Vec<Event>, changes: Changes },
}

/// Objects that may still change: each is sent when it has stayed the same from one look to the next, and again if it is another one then.
#[derive(Default)]
struct Changes {
    seen: BTreeMap<(ShardId, u64), (String, bool)>,
}

impl Changes {
    /// Whether an object is to be sent.
    fn is_settled(&mut self, key: (ShardId, u64), object: &str) -> bool {
        match self.seen.get_mut(&key) {
            Some((seen, sent)) if seen == object => !std::mem::replace(sent, true),
            _ => {
                self.seen.insert(key, (object.to_owned(), false));
                false
            }
        }
    }

    /// Forgets what is not shown any more.
    fn retain(&mut self, shown: impl Fn(&(ShardId, u64)) -> bool) {
        self.seen.retain(|key, _| shown(key));
    }
}

/// A stream.
pub struct Following<S: StateMachine> {
    handle: Handle<S>,
    subject: Subject,
    asked: Asked,
    form: Form,
    is_first: bool,
    spoke: Instant,
}

/// The stream of a path that has one, for a client that wants it: `follow=true` in its query, or server-sent events in its header
/// `Accept`. `last_event_id`: that header. Nothing: no stream is wanted there.
///
/// # Errors
/// The query makes no sense.
pub fn follow<S: StateMachine>(
    handle: &Handle<S>,
    path: &str,
    query: &str,
    accept: Option<&str>,
    last_event_id: Option<&str>,
) -> Option<Result<Following<S>, HttpAnswer>> {
    let form = Form::of(accept, query)?;
    if !matches!(path, "/cluster/events" | "/cluster/elections" | "/cluster/timeline") {
        return None;
    }
    let refused = |problem: &str| HttpAnswer::refused(400, "invalid_field", problem);
    let mut asked = match Asked::of(query) {
        Ok(asked) => asked,
        Err(problem) => return Some(Err(refused(problem))),
    };
    if let Some(id) = last_event_id.filter(|id| !id.is_empty()) {
        match Cursor::parse(id) {
            Some(cursor) => asked.go_on(cursor),
            None => return Some(Err(refused("Last-Event-ID is the id of an event of this stream"))),
        }
    }
    let subject = match path {
        "/cluster/events" => Subject::Events(asked.cursor()),
        "/cluster/elections" => Subject::Elections(Changes::default()),
        // Whatever belongs to an election that is to be told.
        _ => Subject::Timeline { cursor: Cursor::default(), known: Vec::new(), changes: Changes::default() },
    };
    Some(Ok(Following { handle: handle.clone(), subject, asked, form, is_first: true, spoke: Instant::now() }))
}

impl<S: StateMachine> Following<S> {
    /// What it is made of.
    pub fn form(&self) -> Form {
        self.form
    }

    /// Waits for what is to be sent next.
    pub async fn next(&mut self) -> Vec<u8> {
        loop {
            let mut piece = match &self.subject {
                Subject::Events(_) => self.events().await,
                Subject::Elections(_) => self.elections(),
                Subject::Timeline { .. } => self.timeline().await,
            };
            self.is_first = false;
            if piece.is_empty() && self.spoke.elapsed() >= KEEP_ALIVE {
                piece = self.form.keep_alive().to_vec();
            }
            if !piece.is_empty() {
                self.spoke = Instant::now();
                return piece;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn events(&mut self) -> Vec<u8> {
        let Subject::Events(cursor) = &mut self.subject else { return Vec::new() };
        let (events, _) = self.handle.collect_events_behind(cursor).await;
        let mut wanted: Vec<(String, Event)> = Vec::new();
        for event in events {
            cursor.pass(&event);
            if self.asked.wants(&event) {
                wanted.push((cursor.to_string(), event));
            }
        }
        if self.is_first {
            wanted.drain(..wanted.len().saturating_sub(self.asked.last.unwrap_or(usize::MAX)));
        }
        let mut piece = Vec::new();
        for (id, event) in wanted {
            self.form.write(&event.name, &id, &event_json(&event).to_string(), &mut piece);
        }
        piece
    }

    fn elections(&mut self) -> Vec<u8> {
        let Subject::Elections(changes) = &mut self.subject else { return Vec::new() };
        let mut records = recorded(&self.handle, &self.asked);
        if self.is_first {
            records.drain(..records.len().saturating_sub(self.asked.last.unwrap_or(usize::MAX)));
            self.asked.last = None;
            if let Some((_, first)) = records.first() {
                self.asked.go_on(Cursor::from(first.won_at.0 << 16));
            }
        }
        let mut piece = Vec::new();
        for ((group, record), view) in records.iter().zip(views(&Asked::default(), &records)) {
            let object = serde_json::to_string(&view).expect("views are made of text, numbers and lists");
            if changes.is_settled((*group, record.term.0), &object) {
                self.form.write("election", &(record.won_at.0 << 16).to_string(), &object, &mut piece);
            }
        }
        changes.retain(|(group, term)| records.iter().any(|(of, record)| of == group && record.term.0 == *term));
        piece
    }

    async fn timeline(&mut self) -> Vec<u8> {
        let Subject::Timeline { cursor, known, changes } = &mut self.subject else { return Vec::new() };
        let (events, missing) = self.handle.collect_events_behind(cursor).await;
        events.iter().for_each(|event| cursor.pass(event));
        known.extend(events);
        *known = timeline::merged(std::mem::take(known));
        known.drain(..known.len().saturating_sub(REMEMBERED_MAX));
        let told = told_view(&self.handle, &self.asked, known);
        if self.is_first && self.asked.last.is_some() {
            self.asked.last = None;
            self.asked.go_on(Cursor::from(told.first().map_or(0, |(began, _)| began.saturating_sub(1))));
        }
        let mut piece = Vec::new();
        for (began, told) in &told {
            let key = (ShardId(told.group), told.term);
            let object = serde_json::to_string(told).expect("views are made of text, numbers and lists");
            if changes.is_settled(key, &object) {
                let view = TimelineView { elections: vec![told.clone()], missing: missing.clone() };
                let object = serde_json::to_string(&view).expect("views are made of text, numbers and lists");
                self.form.write("timeline", &began.to_string(), &object, &mut piece);
            }
        }
        changes.retain(|key| told.iter().any(|(_, told)| (ShardId(told.group), told.term) == *key));
        piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a stream is only for whoever asks for one, in the form that it understands.
    #[test]
    fn a_stream_is_wanted_by_header_or_query() {
        assert_eq!(Form::of(None, "last=2"), None);
        assert_eq!(Form::of(Some("application/json"), "follow=true"), Some(Form::Lines));
        assert_eq!(Form::of(Some("text/event-stream"), ""), Some(Form::Events));
        assert_eq!(Form::of(None, "follow=false&last=1"), None);
        let mut out = Vec::new();
        Form::Events.write("raft.role", "7,b:9", "{}", &mut out);
        Form::Lines.write("raft.role", "7,b:9", "{}", &mut out);
        assert_eq!(out, b"id: 7,b:9\nevent: raft.role\ndata: {}\n\n{}\n");
    }

    /// Goal: what still changes is sent when it has come to rest, once, and again when it has changed once more.
    #[test]
    fn what_changes_is_sent_when_it_rests() {
        let mut changes = Changes::default();
        let key = (ShardId(0), 7);
        let sent: Vec<bool> = ["a", "b", "b", "b", "c", "c"].map(|object| changes.is_settled(key, object)).into();
        assert_eq!(sent, [false, false, true, false, false, true]);
        changes.retain(|_| false);
        assert!(!changes.is_settled(key, "c") && changes.is_settled(key, "c"));
    }
}
