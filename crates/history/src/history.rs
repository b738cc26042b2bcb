//! A history in memory, and in a file.
//!
//! Records are kept encoded, and only what every pass looks at stands beside them in a [`Row`]: a million operations with their log take
//! about 150 MB. Entries that several nodes have alike are kept once, and so are exports.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::record::{
    Body, Call, Digest, Entry, Event, Export, Held, Level, Line, Logged, Name, NameText, Op, Outcome, Run, Work,
};

/// A history: lines go in one by one, [`crate::judge::judge`] says what they show.
#[derive(Default)]
pub struct History {
    run: Option<Run>,
    names: BTreeMap<Name, String>,
    pub(crate) rows: Vec<Row>,
    pub(crate) logs: BTreeMap<u16, Log>,
    pub(crate) work: Vec<Work>,
    exports: Vec<StoredExport>,
    /// What happened besides, in the order recorded; true: a fault.
    pub(crate) events: Vec<(bool, Event)>,
    /// Everything encoded.
    bytes: Vec<u8>,
}

/// An operation, without what it asked for and what came of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) number: u64,
    pub(crate) t0: u64,
    /// `u64::MAX`: never.
    pub(crate) t1: u64,
    /// Of its answer's position; 0: it has none.
    pub(crate) index: u64,
    /// Where its call stands, encoded; its outcome stands behind that.
    call_from: u64,
    call_length: u32,
    pub(crate) client: u32,
    pub(crate) session: u32,
    pub(crate) term: u32,
    /// Of its answer's position.
    pub(crate) shard: u16,
    pub(crate) part: u16,
    node: u16,
    pub(crate) kind: Kind,
    pub(crate) came: Came,
}

/// What kind of operation: what its position means depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Stands in the log if it was answered.
    Write,
    /// A claim: stands in the log, or found nothing without it.
    Claim,
    Linearizable,
    AtLeast,
    Stale,
}

/// What came of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    Answered,
    Refused,
    Unknown,
    Silent,
}

/// Where something encoded stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    from: u64,
    length: u32,
}

/// One shard's log: what any node has of it.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) entries: BTreeMap<u64, StoredEntry>,
    /// The first index at which two nodes have different entries, with a word about it.
    pub(crate) conflict: Option<(u64, String)>,
}

/// An entry, without its operations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredEntry {
    node: u16,
    pub(crate) term: u32,
    digest: Digest,
    body: Option<StoredBody>,
    /// Nobody has shown yet what it says.
    pub(crate) unseen: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredBody {
    pub(crate) proposed_in: u32,
    pub(crate) lease: u64,
    pub(crate) schedule: u64,
    count: u32,
    operations: Span,
}

struct StoredExport {
    node: u16,
    export: Span,
}

/// An operation in the log, what it asks for encoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoggedBytes<'a> {
    pub(crate) number: u64,
    pub(crate) part: u16,
    pub(crate) call: &'a [u8],
}

/// A line that is none.
#[derive(Debug)]
pub enum Unreadable {
    /// The file cannot be read.
    File(io::Error),
    /// This line, counted from 1, is not one of a history.
    Line(u64, serde_json::Error),
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unreadable::File(error) => write!(f, "the history cannot be read: {error}"),
            Unreadable::Line(line, error) => write!(f, "line {line} is not one of a history: {error}"),
        }
    }
}

impl std::error::Error for Unreadable {}

impl StoredEntry {
    /// What it says about tasks, if it was proposed by the leader of its own term; else nothing of it holds.
    pub(crate) fn body(&self) -> Option<StoredBody> {
        self.body.filter(|body| body.proposed_in == self.term)
    }
}

impl History {
    /// Reads a file of lines.
    ///
    /// # Errors
    /// The reader fails, or a line is not one of a history.
    pub fn read(mut lines: impl BufRead) -> Result<History, Unreadable> {
        let mut history = History::default();
        let mut text = String::new();
        for number in 1.. {
            text.clear();
            if lines.read_line(&mut text).map_err(Unreadable::File)? == 0 {
                break;
            }
            if !text.trim().is_empty() {
                history.push(serde_json::from_str(&text).map_err(|error| Unreadable::Line(number, error))?);
            }
        }
        Ok(history)
    }

    /// Writes it as a file of lines. Entries and exports that several nodes had alike are written once.
    ///
    /// # Errors
    /// The writer fails.
    pub fn write(&self, mut file: impl Write) -> io::Result<()> {
        for line in self.lines() {
            serde_json::to_writer(&mut file, &line)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Its lines, in an order of their own.
    pub fn lines(&self) -> impl Iterator<Item = Line> {
        let run = self.run.iter().map(|run| Line::Run(Box::new(run.clone())));
        let names = self.names.iter().map(|(name, text)| Line::Name(NameText { name: *name, text: text.clone() }));
        let events = self
            .events
            .iter()
            .map(|(fault, event)| if *fault { Line::Fault(event.clone()) } else { Line::Note(event.clone()) });
        let ops = self.rows.iter().map(|row| Line::Op(Box::new(self.op(row))));
        let work = self.work.iter().map(|work| Line::Work(*work));
        let logs = self.logs.iter().flat_map(move |(shard, log)| {
            log.entries.iter().map(move |(index, entry)| Line::Log(Box::new(self.entry(*shard, *index, entry))))
        });
        let exports = self.exports().map(|export| Line::Export(Box::new(export)));
        run.chain(names).chain(events).chain(ops).chain(work).chain(logs).chain(exports)
    }

    /// Adds a line.
    pub fn push(&mut self, line: Line) {
        match line {
            Line::Run(run) => self.run = Some(*run),
            Line::Name(NameText { name, text }) => drop(self.names.insert(name, text)),
            Line::Op(op) => self.push_op(&op),
            Line::Work(work) => self.work.push(work),
            Line::Log(entry) => self.push_entry(&entry),
            Line::Held(held) => drop(self.hold(held)),
            Line::Export(export) => self.push_export(*export),
            Line::Fault(event) => self.events.push((true, event)),
            Line::Note(event) => self.events.push((false, event)),
        }
    }

    fn push_op(&mut self, op: &Op) {
        let kind = match op.call {
            Call::Claim(_) => Kind::Claim,
            Call::Read { level, .. } | Call::Stats { level, .. } | Call::Operations { level, .. } => match level {
                Level::Linearizable => Kind::Linearizable,
                Level::AtLeast(_) => Kind::AtLeast,
                Level::Stale => Kind::Stale,
            },
            _ => Kind::Write,
        };
        let (came, at) = match &op.outcome {
            Outcome::Answered { at, .. } => (Came::Answered, *at),
            Outcome::Refused(_) => (Came::Refused, Default::default()),
            Outcome::Unknown => (Came::Unknown, Default::default()),
            Outcome::Silent => (Came::Silent, Default::default()),
        };
        let call = self.keep(&op.call);
        self.keep(&op.outcome);
        let row = Row {
            number: op.number,
            t0: op.t0,
            t1: op.t1.unwrap_or(u64::MAX),
            index: at.index,
            call_from: call.from,
            call_length: call.length,
            client: op.client,
            session: op.session,
            term: at.term,
            shard: at.shard,
            part: op.part,
            node: op.node,
            kind,
            came,
        };
        self.rows.push(row);
    }

    /// Takes note that a node has an entry. Whether it is to be shown what the entry says.
    fn hold(&mut self, held: Held) -> bool {
        let Held { node, shard, index, term, digest } = held;
        let log = self.logs.entry(shard).or_default();
        let new = StoredEntry { node, term, digest, body: None, unseen: true };
        let known = *log.entries.entry(index).or_insert(new);
        let same = (known.term, known.digest) == (term, digest);
        if !same && log.conflict.as_ref().is_none_or(|(first, _)| index < *first) {
            let what = format!(
                "nodes {} and {node} applied different entries at {shard}:{index}: terms {} and {term}",
                known.node, known.term
            );
            log.conflict = Some((index, what));
        }
        same && known.unseen
    }

    fn push_entry(&mut self, entry: &Entry) {
        let Entry { node, shard, index, term, digest, .. } = *entry;
        if !self.hold(Held { node, shard, index, term, digest }) {
            return;
        }
        let body = entry.body.as_ref().map(|body| {
            let from = self.bytes.len();
            for logged in &body.operations {
                // The length of what follows stands before it, so that it can be skipped and compared without being decoded.
                let call = encode(&logged.call);
                self.keep(&(logged.number, logged.part, call.len() as u32));
                self.bytes.extend_from_slice(&call);
            }
            StoredBody {
                proposed_in: body.proposed_in,
                lease: body.lease,
                schedule: body.schedule,
                count: body.operations.len() as u32,
                operations: self.since(from),
            }
        });
        let stored = StoredEntry { node, term, digest, body, unseen: false };
        self.logs.entry(shard).or_default().entries.insert(index, stored);
    }

    fn push_export(&mut self, mut export: Export) {
        // What does not differ is kept once, so the node is left out and the order of lists means nothing.
        let node = std::mem::take(&mut export.node);
        export.tasks.sort_unstable_by_key(|view| view.task);
        export.keys.sort_unstable();
        export.queues.sort_unstable_by_key(|queue| (queue.tenant, queue.command));
        let from = self.bytes.len();
        let new = self.keep(&export);
        let same =
            self.exports.iter().find(|known| self.slice(known.export) == self.slice(new)).map(|known| known.export);
        if same.is_some() {
            self.bytes.truncate(from);
        }
        self.exports.push(StoredExport { node, export: same.unwrap_or(new) });
    }

    /// What the run was, if a line says so.
    pub fn run(&self) -> Option<&Run> {
        self.run.as_ref()
    }

    /// What the run was; for recorders that learn of the heal only when it happens.
    pub fn run_mut(&mut self) -> Option<&mut Run> {
        self.run.as_mut()
    }

    /// How many operations it has.
    pub fn operations(&self) -> usize {
        self.rows.len()
    }

    /// A name's text, or its number.
    pub fn text(&self, name: Name) -> String {
        self.names.get(&name).cloned().unwrap_or_else(|| format!("#{}", name.0))
    }

    /// What an operation asked for.
    pub(crate) fn call(&self, row: &Row) -> Call {
        decode(self.call_bytes(row))
    }

    pub(crate) fn call_bytes(&self, row: &Row) -> &[u8] {
        self.slice(Span { from: row.call_from, length: row.call_length })
    }

    /// What came of an operation.
    pub(crate) fn outcome(&self, row: &Row) -> Outcome {
        let from = row.call_from as usize + row.call_length as usize;
        postcard::take_from_bytes(&self.bytes[from..]).expect("it was encoded here").0
    }

    pub(crate) fn op(&self, row: &Row) -> Op {
        Op {
            number: row.number,
            part: row.part,
            client: row.client,
            session: row.session,
            node: row.node,
            t0: row.t0,
            t1: (row.t1 < u64::MAX).then_some(row.t1),
            call: self.call(row),
            outcome: self.outcome(row),
        }
    }

    /// The operations of an entry.
    pub(crate) fn logged(&self, body: &StoredBody) -> impl Iterator<Item = LoggedBytes<'_>> {
        let mut rest = self.slice(body.operations);
        (0..body.count).map(move |_| {
            let ((number, part, length), after): ((u64, u16, u32), _) =
                postcard::take_from_bytes(rest).expect("it was encoded here");
            let (call, after) = after.split_at(length as usize);
            rest = after;
            LoggedBytes { number, part, call }
        })
    }

    fn entry(&self, shard: u16, index: u64, entry: &StoredEntry) -> Entry {
        let operation =
            |logged: LoggedBytes<'_>| Logged { number: logged.number, part: logged.part, call: decode(logged.call) };
        let body = entry.body.map(|body| Body {
            proposed_in: body.proposed_in,
            lease: body.lease,
            schedule: body.schedule,
            operations: self.logged(&body).map(operation).collect(),
        });
        Entry { node: entry.node, shard, index, term: entry.term, digest: entry.digest, body }
    }

    /// What the nodes hold at the end.
    pub(crate) fn exports(&self) -> impl Iterator<Item = Export> {
        self.exports.iter().map(|stored| Export { node: stored.node, ..decode(self.slice(stored.export)) })
    }

    /// The same, each once, with the nodes that hold it.
    pub(crate) fn distinct_exports(&self) -> Vec<(Vec<u16>, Export)> {
        let mut distinct: BTreeMap<u64, Vec<u16>> = BTreeMap::new();
        for stored in &self.exports {
            distinct.entry(stored.export.from).or_default().push(stored.node);
        }
        let export = |from: u64| {
            let stored = self.exports.iter().find(|stored| stored.export.from == from).expect("it was just seen");
            decode(self.slice(stored.export))
        };
        distinct.into_iter().map(|(from, nodes)| (nodes, export(from))).collect()
    }

    fn slice(&self, span: Span) -> &[u8] {
        &self.bytes[span.from as usize..][..span.length as usize]
    }

    fn keep(&mut self, value: &impl Serialize) -> Span {
        let from = self.bytes.len();
        let bytes = std::mem::take(&mut self.bytes);
        self.bytes = postcard::to_extend(value, bytes).expect("memory takes everything");
        self.since(from)
    }

    fn since(&self, from: usize) -> Span {
        let length = self.bytes.len() - from;
        Span { from: from as u64, length: u32::try_from(length).expect("no record is 4 GiB long") }
    }
}

pub(crate) fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("memory takes everything")
}

/// Reads back something that this crate has encoded.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> T {
    postcard::from_bytes(bytes).expect("it was encoded here")
}
