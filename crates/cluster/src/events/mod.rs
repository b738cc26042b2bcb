//! What happens in a cluster, to be looked at: events with a time, a log line for each, and the last ones kept.
//!
//! Consensus and replica say what happened without a time ([`story`] puts it into words); here it gets its stamps: wall time, a number that
//! goes on after a restart, and a reading of a hybrid logical clock that every message to a peer carries, so that events of several nodes
//! can be put in an order in which no effect stands before its cause.
//!
//! Every event is a line of the log with the target `raft`. The last ones ([`crate::NodeConfig::events_max`]) are kept in memory, and in a small file that a
//! thread of its own writes ([`keep`]): nobody waits for it, and what it cannot take is counted.

pub(crate) mod codec;
pub(crate) mod counts;
pub mod cursor;
pub(crate) mod elections;
pub(crate) mod keep;
pub(crate) mod lasting;
pub(crate) mod members;
pub(crate) mod noticing;
pub(crate) mod story;
pub mod timeline;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use base::{Incarnation, ShardId, Term};
use replica::Role;
use tokio::sync::watch;

use crate::forming::ClusterId;
use crate::http::value_json;

/// Events that may wait to be written to the file; more are only counted.
const UNWRITTEN_MAX: usize = 1_024;

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For whoever looks closely.
    Debug,
    /// Part of the story.
    Info,
    /// Degraded, and handled.
    Warn,
    /// Somebody must act.
    Error,
}

impl Level {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }

    /// The level of this name.
    pub fn of_name(name: &str) -> Option<Level> {
        [Level::Debug, Level::Info, Level::Warn, Level::Error].into_iter().find(|level| level.name() == name)
    }
}

/// A field of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number; its name has the unit.
    Number(u64),
    /// Yes or no.
    Flag(bool),
    /// A text, most often the name of a member.
    Text(String),
    /// Several texts.
    List(Vec<String>),
}

impl From<u64> for Value {
    fn from(value: u64) -> Value {
        Value::Number(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Value {
        Value::Number(value as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Flag(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::Text(value.into())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Value {
        Value::Text(value)
    }
}

impl From<Vec<String>> for Value {
    fn from(value: Vec<String>) -> Value {
        Value::List(value)
    }
}

/// Names of events and fields: ours, or read from elsewhere.
pub type Name = Cow<'static, str>;

/// Something that has happened on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, by the node's wall clock: microseconds since 1970, UTC.
    pub at_micros: u64,
    /// When, for an order among nodes: see [`Hlc`].
    pub hlc: u64,
    /// Counts on the node, also over restarts.
    pub seq: u64,
    /// The node's name.
    pub node: String,
    /// The incarnation of its data directory.
    pub node_id: u64,
    /// The cluster that it belonged to; nothing: none.
    pub cluster: Option<ClusterId>,
    /// Names the process: random at each start.
    pub boot: u64,
    /// The group; nothing: it concerns the node or the cluster.
    pub group: Option<ShardId>,
    /// The node's term in the group, 0 without one.
    pub term: Term,
    /// The node's part in the group.
    pub role: Option<Role>,
    /// What it is, `raft.election.won`; see docs/elections.md.
    pub name: Name,
    /// How much it matters.
    pub level: Level,
    /// What it is, in a sentence.
    pub text: String,
    /// What else is known.
    pub fields: Vec<(Name, Value)>,
}

impl Event {
    /// A field.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// A field that is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.field(name)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    /// A field that is a text.
    pub fn text_of(&self, name: &str) -> Option<&str> {
        match self.field(name)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// An event that has no stamps yet.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) name: &'static str,
    pub(crate) level: Level,
    pub(crate) text: String,
    pub(crate) group: Option<ShardId>,
    pub(crate) term: Term,
    pub(crate) role: Option<Role>,
    pub(crate) fields: Vec<(&'static str, Value)>,
    /// It is kept, and not only logged.
    pub(crate) kept: bool,
}

impl Draft {
    pub(crate) fn new(level: Level, name: &'static str, text: impl Into<String>) -> Draft {
        Draft { name, level, text: text.into(), group: None, term: Term(0), role: None, fields: Vec::new(), kept: true }
    }

    /// Logged, and not kept: it comes again and again, and would take the place of what does not.
    pub(crate) fn unkept(self) -> Draft {
        Draft { kept: false, ..self }
    }

    /// With a field.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Draft {
        self.fields.push((name, value.into()));
        self
    }

    /// In a group.
    pub(crate) fn of(mut self, group: ShardId, term: Term, role: Role) -> Draft {
        (self.group, self.term, self.role) = (Some(group), term, Some(role));
        self
    }
}

/// A hybrid logical clock: milliseconds since 1970 in the upper 48 bits, a count in the lower ones. It never goes back, and is ahead of every
/// reading that has come from elsewhere, so that what is caused by a message has a later reading than what was before the message.
#[derive(Debug, Default)]
pub(crate) struct Hlc(AtomicU64);

impl Hlc {
    /// A reading that is later than all before.
    pub(crate) fn tick(&self, wall_ms: u64) -> u64 {
        let next = |last: u64| (last + 1).max(wall_ms << 16);
        let last = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
        next(last.expect("the update is always made"))
    }

    /// The last reading.
    pub(crate) fn last(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// A reading has come from another node. One that is far ahead of this node's wall clock is not followed.
    pub(crate) fn merge(&self, other: u64, wall_ms: u64) {
        if other >> 16 <= wall_ms + AHEAD_MAX_MS {
            self.0.fetch_max(other, Ordering::Relaxed);
        }
    }
}

/// Clocks of nodes that differ by more do not pull each other along: a wrong one would do so for ever.
const AHEAD_MAX_MS: u64 = 60_000;

/// Microseconds since 1970.
pub(crate) fn wall_micros() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// Whose events they are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Who {
    pub(crate) node: String,
    pub(crate) id: u64,
    pub(crate) boot: u64,
}

/// The events of this node.
pub(crate) struct Events {
    who: Who,
    pub(crate) hlc: Hlc,
    ring: Mutex<Ring>,
    /// Events kept.
    max: usize,
    /// The number of the last event, for those who wait for the next one.
    last: watch::Sender<u64>,
    /// Events that the file could not take.
    lost: AtomicU64,
}

#[derive(Default)]
struct Ring {
    next_seq: u64,
    cluster: Option<ClusterId>,
    kept: VecDeque<Arc<Event>>,
    file: Option<SyncSender<Arc<Event>>>,
}

impl Events {
    /// Goes on behind those that were kept.
    pub(crate) fn new(who: Who, kept: Vec<Event>, max: usize) -> Events {
        let next_seq = kept.last().map_or(1, |last| last.seq + 1);
        let hlc = Hlc::default();
        hlc.0.store(kept.iter().map(|event| event.hlc).max().unwrap_or_default(), Ordering::Relaxed);
        let kept = kept.into_iter().map(Arc::new).collect();
        let ring = Mutex::new(Ring { next_seq, kept, ..Ring::default() });
        Events { who, hlc, ring, max, last: watch::Sender::new(next_seq - 1), lost: AtomicU64::new(0) }
    }

    /// Events that may wait for the file: what [`keep`] takes them out of.
    pub(crate) fn to_file(&self) -> std::sync::mpsc::Receiver<Arc<Event>> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(UNWRITTEN_MAX);
        self.lock().file = Some(sender);
        receiver
    }

    /// Nothing goes to the file any more: whoever writes it ends.
    pub(crate) fn close(&self) {
        self.lock().file = None;
    }

    pub(crate) fn joined(&self, cluster: ClusterId) {
        self.lock().cluster = Some(cluster);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.ring.lock().expect("nothing panics while it holds this lock")
    }

    /// Stamps an event, logs it, and keeps it if it is to be kept. Never waits for a disk.
    pub(crate) fn tell(&self, draft: Draft) {
        let at_micros = wall_micros();
        let mut ring = self.lock();
        let mut event = Event {
            at_micros,
            hlc: self.hlc.tick(at_micros / 1_000),
            seq: ring.next_seq,
            node: self.who.node.clone(),
            node_id: self.who.id,
            cluster: ring.cluster,
            boot: self.who.boot,
            group: draft.group,
            term: draft.term,
            role: draft.role,
            name: draft.name.into(),
            level: draft.level,
            text: draft.text,
            fields: draft.fields.into_iter().map(|(name, value)| (name.into(), value)).collect(),
        };
        if !draft.kept {
            event.seq = 0;
            drop(ring);
            return log(&event);
        }
        let event = Arc::new(event);
        ring.next_seq += 1;
        ring.kept.push_back(event.clone());
        if ring.kept.len() > self.max {
            ring.kept.pop_front();
        }
        if let Some(file) = &ring.file
            && let Err(TrySendError::Full(_)) = file.try_send(event.clone())
        {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        drop(ring);
        self.last.send_replace(event.seq);
        log(&event);
    }

    /// The last events behind this number of which `wanted` is said, at most so many, the oldest first.
    pub(crate) fn after(&self, seq: u64, max: usize, wanted: impl Fn(&Event) -> bool) -> Vec<Arc<Event>> {
        let ring = self.lock();
        let newest = ring.kept.iter().rev().take_while(|event| event.seq > seq);
        let mut found: Vec<Arc<Event>> = newest.filter(|event| wanted(event)).take(max).cloned().collect();
        drop(ring);
        found.reverse();
        found
    }

    /// All that is later than a reading of the hybrid logical clock, the oldest first.
    pub(crate) fn later(&self, after: u64) -> Vec<Arc<Event>> {
        let ring = self.lock();
        // Under the lock each event has a later reading than the one before.
        let mut found: Vec<Arc<Event>> =
            ring.kept.iter().rev().take_while(|event| event.hlc > after).cloned().collect();
        drop(ring);
        found.reverse();
        found
    }

    /// Tells when there is another event: the number of the last one.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    /// Events that the file could not take.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// The word for a part in a group.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Follower => "follower",
        Role::PreCandidate => "pre-candidate",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    }
}

/// One line of the log. What is an event's own comes as one field, `own`, which knows both forms that logs have: `{}` is text, `{:#}` the
/// members of a JSON object, each behind a comma.
fn log(event: &Event) {
    macro_rules! line {
        ($macro:ident) => {
            tracing::$macro!(
                target: "raft",
                event = &*event.name,
                node = &*event.node,
                nodeId = %Incarnation(event.node_id),
                clusterId = event.cluster.map(tracing::field::display),
                boot = %Incarnation(event.boot),
                group = event.group.map(|group| group.0),
                term = event.group.map(|_| event.term.0),
                role = event.role.map(role_name),
                seq = (event.seq > 0).then_some(event.seq),
                hlc = event.hlc,
                own = %Own(&event.fields),
                "{}",
                event.text
            )
        };
    }
    match event.level {
        Level::Debug => line!(debug),
        Level::Info => line!(info),
        Level::Warn => line!(warn),
        Level::Error => line!(error),
    }
}

/// An event's own fields in a log.
struct Own<'a>(&'a [(Name, Value)]);

impl fmt::Display for Own<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_json = f.alternate();
        for (place, (name, value)) in self.0.iter().enumerate() {
            match (is_json, place) {
                (true, _) => write!(f, ",{name:?}:")?,
                (false, 0) => write!(f, "{name}=")?,
                (false, _) => write!(f, " {name}=")?,
            }
            match value {
                value if is_json => write!(f, "{}", value_json(value))?,
                Value::Number(number) => write!(f, "{number}")?,
                Value::Flag(flag) => write!(f, "{flag}")?,
                Value::Text(text) => write!(f, "{text:?}")?,
                Value::List(texts) => write!(f, "{:?}", texts.join(","))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an event's own fields are text that people read, and members of a JSON object, whatever stands in them.
    #[test]
    fn own_fields_are_text_and_json() {
        let fields: Vec<(Name, Value)> = vec![
            ("tally".into(), 2_u64.into()),
            ("granted".into(), true.into()),
            ("from".into(), "a \"b\"\n\\".into()),
            ("votesFrom".into(), vec!["a".to_owned(), "b".to_owned()].into()),
        ];
        let own = Own(&fields);
        assert_eq!(own.to_string(), r#"tally=2 granted=true from="a \"b\"\n\\" votesFrom="a,b""#);
        let json: serde_json::Value = serde_json::from_str(&format!("{{{}}}", &format!("{own:#}")[1..])).expect("JSON");
        assert_eq!(json["from"], "a \"b\"\n\\");
        assert_eq!((&json["tally"], &json["votesFrom"][1]), (&2.into(), &"b".into()));
        assert_eq!(format!("{:#}", Own(&[])), "");
    }
}
