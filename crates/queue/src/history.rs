//! What has happened to a task, kept with it: in memory while it lives, then in its row.
//!
//! A history is a string of bytes to which the transitions of a task append. Every replica has the same bytes, because they are made of what is
//! applied and of nothing else. How a task began is not in them: that can be read from the task itself, so a task to which nothing has happened
//! yet has no history and takes no memory for one.
//!
//! An entry is its kind (1 byte), the index of its log entry less that of the task's creation (zigzag varint), its time less that of the
//! creation in ms (varint), flags (1 byte: bits 0 and 1 who; 4 worker, 8 reason, 16 delay, 32 lease, 64 count), the states before and after (1
//! byte: low and high half, each 0 for none or the state's number + 1), the attempt (varint), then what the flags say: worker and
//! reason (text), delay and lease in ms, count (varints). Where entries have been left out stands [`Happening::Truncated`] and their number (varint).
//! Kinds, states and flags keep their numbers.

use base::codec::{Malformed, Reader, Write};
use base::{Index, Millis, ScheduleTime, Term};

use crate::op::Op;
use crate::operations::OperationId;
use crate::outcome::{State, TaskView};

/// Most entries that a policy may ask for.
pub const ENTRIES_MAX: u32 = 10_000;

/// Longest reason in an entry, in bytes; the task itself keeps all of its last error.
pub const REASON_BYTES_MAX: usize = 256;

/// Terms whose beginning is remembered; of older entries the term is not known any more.
const TERMS_MAX: usize = 1_000;

/// What can happen to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// It was made.
    Created,
    /// Its time came.
    Ready,
    /// A worker got it.
    Claimed,
    /// Its holder goes on.
    Extended,
    /// Its holder gave it back unharmed.
    Released,
    /// An attempt failed; another one follows.
    Retry,
    /// A lease ran out; another attempt follows.
    Expired,
    /// It ended with success.
    Completed,
    /// It ended because its worker said so.
    Failed,
    /// It ended because its attempts were used up.
    Dead,
    /// Its holder is asked to stop.
    CancelRequested,
    /// It ended because somebody asked for it.
    Cancelled,
    /// It came back.
    Redriven,
    /// It was changed while it waited.
    Edited,
    /// It was deleted. No history has this: it goes with its task.
    Deleted,
    /// Somebody who does not hold it any more sent a result.
    ResultRefused,
    /// Entries were left out here.
    Truncated,
}

impl Happening {
    /// Everything that can happen, in the order of the variants, with the name that clients see.
    pub const NAMES: [(Happening, &'static str); 17] = [
        (Happening::Created, "created"),
        (Happening::Ready, "ready"),
        (Happening::Claimed, "claimed"),
        (Happening::Extended, "extended"),
        (Happening::Released, "released"),
        (Happening::Retry, "retry"),
        (Happening::Expired, "expired"),
        (Happening::Completed, "completed"),
        (Happening::Failed, "failed"),
        (Happening::Dead, "dead"),
        (Happening::CancelRequested, "cancel_requested"),
        (Happening::Cancelled, "cancelled"),
        (Happening::Redriven, "redriven"),
        (Happening::Edited, "edited"),
        (Happening::Deleted, "deleted"),
        (Happening::ResultRefused, "result_refused"),
        (Happening::Truncated, "truncated"),
    ];

    /// The name that clients see.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }
}

/// Who has done something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Whoever makes tasks.
    Producer,
    /// Whoever works on them.
    Worker,
    /// An administrator of the tenant, or an operation on many tasks.
    Admin,
    /// The server: a time has come.
    System,
}

impl Actor {
    /// All of them, in the order of the variants, with the name that clients see.
    pub const NAMES: [(Actor, &'static str); 4] =
        [(Actor::Producer, "producer"), (Actor::Worker, "worker"), (Actor::Admin, "admin"), (Actor::System, "system")];

    /// The name that clients see.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }
}

/// On whose behalf the state machine acts just now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acting {
    pub(crate) actor: Actor,
    /// The operation on many tasks whose step it is.
    pub(crate) operation: Option<OperationId>,
}

impl Acting {
    /// Times that come.
    pub(crate) const SYSTEM: Acting = Acting { actor: Actor::System, operation: None };

    /// Whoever may ask for such an operation.
    pub(crate) fn of(op: &Op<'_>) -> Acting {
        let actor = match op {
            Op::Create(_) | Op::Cancel { .. } | Op::Edit(_) | Op::Amend(_) => Actor::Producer,
            Op::Claim(_)
            | Op::Extend { .. }
            | Op::Release { .. }
            | Op::Nack { .. }
            | Op::Complete { .. }
            | Op::Fail { .. } => Actor::Worker,
            Op::Redrive(_)
            | Op::Delete(_)
            | Op::Begin(_)
            | Op::Step(_)
            | Op::Turn { .. }
            | Op::Pause { .. }
            | Op::Resume { .. } => Actor::Admin,
            Op::Configure(_) => Actor::System,
        };
        Acting { actor, operation: None }
    }
}

/// One thing that has happened to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What.
    pub what: Happening,
    /// The log entry; of heartbeats in a row the last one's. Nothing is known of [`Happening::Truncated`] but how many there were.
    pub index: Index,
    /// When, by the schedule clock; of heartbeats in a row the last one's.
    pub at: ScheduleTime,
    /// Who.
    pub actor: Actor,
    /// Its name, if it is a worker that the operation names or that held the task; else empty.
    pub worker: &'a str,
    /// The task's state before.
    pub from: Option<State>,
    /// The task's state after.
    pub to: Option<State>,
    /// The delivery.
    pub attempt: u32,
    /// Why; may be empty.
    pub reason: &'a str,
    /// Until it is ready.
    pub delay: Option<Millis>,
    /// Until the lease ends.
    pub lease: Option<Millis>,
    /// Heartbeats in a row, or entries left out; else 1.
    pub count: u64,
}

const WORKER: u8 = 4;
const REASON: u8 = 8;
const DELAY: u8 = 16;
const LEASE: u8 = 32;
const COUNT: u8 = 64;

/// When a task was created: what its entries count from.
pub(crate) type Since = (Index, ScheduleTime);

impl<'a> Entry<'a> {
    /// An entry that says no more than this.
    pub(crate) fn new(what: Happening, index: Index, at: ScheduleTime, actor: Actor) -> Entry<'a> {
        Entry {
            what,
            index,
            at,
            actor,
            worker: "",
            from: None,
            to: None,
            attempt: 0,
            reason: "",
            delay: None,
            lease: None,
            count: 1,
        }
    }

    fn truncated(count: u64) -> Entry<'a> {
        Entry { count, ..Entry::new(Happening::Truncated, Index(0), ScheduleTime(0), Actor::System) }
    }

    pub(crate) fn put(&self, since: Since, bytes: &mut Vec<u8>) {
        bytes.put_u8(self.what as u8);
        if self.what == Happening::Truncated {
            bytes.put_varint(self.count);
            return;
        }
        bytes.put_signed(self.index.0.wrapping_sub(since.0.0) as i64);
        bytes.put_varint(self.at.0.saturating_sub(since.1.0));
        let flag = |there: bool, flag: u8| if there { flag } else { 0 };
        bytes.put_u8(
            self.actor as u8
                | flag(!self.worker.is_empty(), WORKER)
                | flag(!self.reason.is_empty(), REASON)
                | flag(self.delay.is_some(), DELAY)
                | flag(self.lease.is_some(), LEASE)
                | flag(self.count != 1, COUNT),
        );
        let half = |state: Option<State>| state.map_or(0, |state| state as u8 + 1);
        bytes.put_u8(half(self.from) | half(self.to) << 4);
        bytes.put_varint(u64::from(self.attempt));
        for text in [self.worker, self.reason] {
            if !text.is_empty() {
                bytes.put_bytes(text.as_bytes());
            }
        }
        self.delay.iter().chain(&self.lease).for_each(|time| bytes.put_varint(time.0));
        if self.count != 1 {
            bytes.put_varint(self.count);
        }
    }

    pub(crate) fn read(since: Since, r: &mut Reader<'a>) -> Result<Entry<'a>, Malformed> {
        let (what, _) = *Happening::NAMES.get(usize::from(r.u8()?)).ok_or(Malformed)?;
        if what == Happening::Truncated {
            return Ok(Entry::truncated(r.varint()?));
        }
        let index = Index(since.0.0.wrapping_add_signed(r.signed()?));
        let at = ScheduleTime(since.1.0.checked_add(r.varint()?).ok_or(Malformed)?);
        let flags = r.u8()?;
        let states = r.u8()?;
        let state = |half: u8| match half {
            0 => Ok(None),
            number => State::NAMES.get(usize::from(number) - 1).map(|(state, _)| Some(*state)).ok_or(Malformed),
        };
        let attempt = r.narrow()?;
        let has = |flag: u8| flags & flag != 0;
        Ok(Entry {
            what,
            index,
            at,
            actor: Actor::NAMES[usize::from(flags & 3)].0,
            from: state(states & 0xf)?,
            to: state(states >> 4)?,
            attempt,
            worker: if has(WORKER) { r.text()? } else { "" },
            reason: if has(REASON) { r.text()? } else { "" },
            delay: if has(DELAY) { Some(Millis(r.varint()?)) } else { None },
            lease: if has(LEASE) { Some(Millis(r.varint()?)) } else { None },
            count: if has(COUNT) { r.varint()? } else { 1 },
        })
    }
}

/// What has happened to a live task since its creation.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    bytes: Vec<u8>,
    /// How many entries, without what was left out.
    entries: u32,
    /// Where the last one begins.
    last: u32,
}

impl History {
    /// Takes over what a row holds.
    pub(crate) fn read(bytes: &[u8], since: Since) -> Result<History, Malformed> {
        let mut history = History { bytes: bytes.into(), ..History::default() };
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            history.last = (bytes.len() - reader.rest().len()) as u32;
            history.entries += u32::from(Entry::read(since, &mut reader)?.what != Happening::Truncated);
        }
        Ok(history)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Appends an entry, so that there are at most so many: those in the middle are left out first. A heartbeat behind another one takes its
    /// place.
    pub(crate) fn push(&mut self, mut entry: Entry<'_>, since: Since, entries_max: u32) {
        if entries_max == 0 {
            *self = History::default();
            return;
        }
        if entry.what == Happening::Extended && self.bytes.get(self.last as usize) == Some(&(Happening::Extended as u8))
        {
            let mut before = Reader::new(&self.bytes[self.last as usize..]);
            entry.count += Entry::read(since, &mut before).map_or(0, |before| before.count);
            self.bytes.truncate(self.last as usize);
            self.entries -= 1;
        }
        if self.entries >= entries_max {
            self.leave_out(since, entries_max);
        }
        self.last = self.bytes.len() as u32;
        entry.put(since, &mut self.bytes);
        self.entries += 1;
    }

    /// Makes room for another entry, and for some more, so that not each of a long history costs a look through it.
    fn leave_out(&mut self, since: Since, entries_max: u32) {
        let kept = entries_max - 1 - entries_max / 16;
        let first = kept.div_ceil(2);
        let mut reader = Reader::new(&self.bytes);
        let at = |reader: &Reader<'_>| self.bytes.len() - reader.rest().len();
        let (mut seen, mut before, mut from, mut to) = (0, 0, 0, 0);
        while let Ok(entry) = Entry::read(since, &mut reader) {
            if entry.what == Happening::Truncated {
                before += if to == 0 { entry.count } else { 0 };
                continue;
            }
            seen += 1;
            if seen == first {
                // What is marked before stays so.
                before = 0;
                from = at(&reader);
            }
            if seen == self.entries - (kept - first) {
                to = at(&reader);
            }
        }
        let mut mark = Vec::new();
        Entry::truncated(before + u64::from(self.entries - kept)).put(since, &mut mark);
        self.bytes.splice(from..to, mark);
        self.entries = kept;
    }
}

/// Everything that is known to have happened to a task, how it began included. `task` was read with its history.
///
/// # Errors
/// The bytes are not a history.
pub fn entries(task: &TaskView) -> Result<Vec<Entry<'_>>, Malformed> {
    let since = (task.id.key.index(), task.created_at);
    let mut entries = Vec::new();
    let mut reader = Reader::new(&task.history);
    while !reader.is_empty() {
        entries.push(Entry::read(since, &mut reader)?);
    }
    let first = entries.iter().find_map(|entry| entry.from);
    // Nothing has happened to a task that waits since it began to wait, unless that was not kept.
    let to =
        first.or(Some(task.state).filter(|state| matches!(state, State::Ready | State::Delayed) && task.attempts == 0));
    let created = Entry { to, ..Entry::new(Happening::Created, since.0, since.1, Actor::Producer) };
    entries.insert(0, created);
    Ok(entries)
}

/// The same with a number for each, which stays as it is while the history goes on: its log entry, and how many of the task's came before it there.
/// A mark of what was left out stands behind the entry before it.
pub fn numbered<'a>(entries: Vec<Entry<'a>>) -> impl Iterator<Item = ((Index, u32), Entry<'a>)> {
    let mut last: Option<(Index, u32)> = None;
    entries.into_iter().map(move |entry| {
        let index = match (entry.what, last) {
            (Happening::Truncated, Some((before, _))) => before,
            _ => entry.index,
        };
        let place = last.filter(|(before, _)| *before == index).map_or(0, |(_, place)| place + 1);
        last = Some((index, place));
        ((index, place), entry)
    })
}

/// When terms began, as far as it is remembered: entries of a history name their log entries by index alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms(Vec<(Index, Term)>);

impl Terms {
    /// An entry of this term is applied.
    pub(crate) fn note(&mut self, index: Index, term: Term) {
        if self.0.last().is_none_or(|(_, last)| *last != term) {
            if self.0.len() == TERMS_MAX {
                self.0.remove(0);
            }
            self.0.push((index, term));
        }
    }

    /// The term of a log entry; 0 if it is not known any more.
    pub fn of(&self, index: Index) -> Term {
        let known = self.0.iter().rev().find(|(first, _)| *first <= index);
        known.map_or(Term(0), |(_, term)| *term)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, term) in &self.0 {
            bytes.put_varint(index.0);
            bytes.put_varint(term.0);
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Terms, Malformed> {
        let mut reader = Reader::new(bytes);
        let mut terms = Vec::new();
        while !reader.is_empty() {
            terms.push((Index(reader.varint()?), Term(reader.varint()?)));
        }
        Ok(Terms(terms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINCE: Since = (Index(7), ScheduleTime(1_000));

    fn entry(number: u64, what: Happening) -> Entry<'static> {
        Entry {
            what,
            index: Index(10 + number),
            at: ScheduleTime(2_000 + number),
            actor: Actor::Worker,
            worker: "w1",
            from: Some(State::Ready),
            to: Some(State::Leased),
            attempt: 3,
            reason: "",
            delay: None,
            lease: Some(Millis(30_000)),
            count: 1,
        }
    }

    fn read(history: &History) -> Vec<Entry<'_>> {
        let mut reader = Reader::new(history.bytes());
        let mut entries = Vec::new();
        while !reader.is_empty() {
            entries.push(Entry::read(SINCE, &mut reader).expect("it reads back"));
        }
        entries
    }

    /// Goal: every field reads back, and is no part of an entry that does not have it.
    #[test]
    fn entries_read_back() {
        let full = Entry { reason: "busy", delay: Some(Millis(5)), count: 9, ..entry(0, Happening::Retry) };
        let bare = Entry { worker: "", from: None, to: None, lease: None, attempt: 0, ..entry(1, Happening::Edited) };
        for given in [full, bare, entry(2, Happening::Deleted), Entry::truncated(300)] {
            let mut bytes = Vec::new();
            given.put(SINCE, &mut bytes);
            let mut reader = Reader::new(&bytes);
            assert_eq!(Entry::read(SINCE, &mut reader), Ok(given));
            assert!(reader.is_empty());
            for end in 0..bytes.len() {
                assert_eq!(
                    Entry::read(SINCE, &mut Reader::new(&bytes[..end])),
                    Err(Malformed),
                    "{given:?} cut at {end}"
                );
            }
        }
        let mut bytes = Vec::new();
        bare.put(SINCE, &mut bytes);
        assert_eq!(bytes.len(), 7, "a short entry is short");
    }

    /// Goal: however long a history becomes, it has its first and its last entries, and says how many are missing; also after it was read back,
    /// and after the most there may be has changed.
    #[test]
    fn the_middle_is_left_out_and_counted() {
        let mut history = History::default();
        let mut pushed = 0;
        for (entries_max, until) in [(10, 100), (3, 120), (40, 200), (1, 210), (200, 900)] {
            for number in pushed..until {
                history.push(entry(number, Happening::Claimed), SINCE, entries_max);
                history = History::read(history.bytes(), SINCE).expect("it reads back");
                let entries = read(&history);
                let kept = entries.iter().filter(|entry| entry.what != Happening::Truncated);
                assert!(kept.clone().count() <= entries_max as usize, "{entries_max}: {entries:?}");
                let missing: u64 =
                    entries.iter().filter(|entry| entry.what == Happening::Truncated).map(|mark| mark.count).sum();
                assert_eq!(kept.clone().count() as u64 + missing, number + 1, "{entries_max}: {entries:?}");
                assert_eq!(entries.last(), Some(&entry(number, Happening::Claimed)), "the last one is there");
                assert!(entries.iter().map(|entry| entry.index).filter(|index| index.0 > 0).is_sorted());
                if number < 100 {
                    assert_eq!(entries[0], entry(0, Happening::Claimed), "the first one is there");
                }
            }
            pushed = until;
        }
        history.push(entry(pushed, Happening::Claimed), SINCE, 0);
        assert!(history.is_empty(), "no entries may be kept");
    }

    /// Goal: heartbeats in a row are one entry with the last one's time; others are between them no more than before.
    #[test]
    fn heartbeats_in_a_row_are_one_entry() {
        let mut history = History::default();
        for (number, what) in [Happening::Claimed, Happening::Extended, Happening::Extended, Happening::Extended]
            .into_iter()
            .chain([Happening::CancelRequested, Happening::Extended])
            .enumerate()
        {
            history.push(entry(number as u64, what), SINCE, 200);
            history = History::read(history.bytes(), SINCE).expect("it reads back");
        }
        let seen: Vec<_> = read(&history).iter().map(|entry| (entry.what, entry.index.0, entry.count)).collect();
        let expected = [
            (Happening::Claimed, 10, 1),
            (Happening::Extended, 13, 3),
            (Happening::CancelRequested, 14, 1),
            (Happening::Extended, 15, 1),
        ];
        assert_eq!(seen, expected);
    }

    /// Goal: terms are found by index, those that began too long ago are not made up.
    #[test]
    fn terms_are_found_by_index() {
        let mut terms = Terms::default();
        for (index, term) in [(2, 1), (3, 1), (9, 4), (10, 4), (12, 5)] {
            terms.note(Index(index), Term(term));
        }
        let terms = Terms::decode(&terms.encode()).expect("they read back");
        let of = [1, 2, 8, 9, 11, 12, 99].map(|index| terms.of(Index(index)).0);
        assert_eq!(of, [0, 1, 1, 4, 4, 5, 5]);
        let mut many = terms;
        (0..TERMS_MAX as u64).for_each(|number| many.note(Index(100 + number), Term(100 + number)));
        assert_eq!(many.0.len(), TERMS_MAX);
        assert_eq!(many.of(Index(99)), Term(0));
    }
}
