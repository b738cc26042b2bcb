//! Which tasks a list is asked for, and whether a row of a checkpoint is one of them.

use std::collections::BTreeSet;
use std::hash::Hasher;
use std::ops::RangeInclusive;
use std::sync::Arc;

use base::codec::Malformed;
use base::rows::{Row, Wanted};
use base::{Index, ScheduleTime, Stamps};
use siphasher::sip::SipHasher24;

use crate::checkpoint::{COMPLETED, DEAD, FAILED, LIVE, TABLES};
use crate::id::TaskId;
use crate::outcome::{State, TaskView};
use crate::payload::Payload;
use crate::task::{Due, estimate};

/// Conditions that all must hold. Those that are absent hold for every task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Whose tasks.
    pub tenant: Arc<str>,
    /// Names of queues.
    pub commands: Option<BTreeSet<Arc<str>>>,
    /// States.
    pub states: BTreeSet<State>,
    /// These tasks.
    pub ids: Option<BTreeSet<TaskId>>,
    /// Who holds it.
    pub workers: Option<BTreeSet<Arc<str>>>,
    /// 0 to 9.
    pub priority: Option<RangeInclusive<u64>>,
    /// Deliveries so far.
    pub attempts: Option<RangeInclusive<u64>>,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created: Option<RangeInclusive<u64>>,
    /// When it ended.
    pub finished: Option<RangeInclusive<u64>>,
    /// When it becomes ready.
    pub run_at: Option<RangeInclusive<u64>>,
    /// The producer's key.
    pub idempotency_key: Option<Arc<str>>,
    /// Part of its error, in lower case.
    pub error_part: Option<Arc<str>>,
    /// The fingerprint of its error.
    pub fingerprint: Option<u64>,
}

impl Filter {
    /// All tasks of a tenant.
    pub fn of(tenant: &Arc<str>) -> Filter {
        Filter {
            tenant: tenant.clone(),
            commands: None,
            states: State::NAMES.iter().map(|(state, _)| *state).collect(),
            ids: None,
            workers: None,
            priority: None,
            attempts: None,
            created: None,
            finished: None,
            run_at: None,
            idempotency_key: None,
            error_part: None,
            fingerprint: None,
        }
    }

    /// Leaves out the states in which another condition can never hold.
    pub(crate) fn narrow(&mut self) {
        if self.workers.is_some() {
            self.states.retain(|state| *state == State::Leased);
        }
        if self.run_at.is_some() {
            self.states.retain(|state| *state == State::Delayed);
        }
        if self.finished.is_some() {
            self.states.retain(|state| crate::listing::table_with(*state) != LIVE);
        }
    }

    pub(crate) fn has_command(&self, command: &str) -> bool {
        self.commands.as_ref().is_none_or(|commands| commands.contains(command))
    }

    pub(crate) fn matches(&self, task: &Seen<'_>) -> bool {
        task.tenant == &*self.tenant
            && self.states.contains(&task.state)
            && self.has_command(task.command)
            && holds(&self.priority, Some(u64::from(task.priority)))
            && holds(&self.attempts, Some(u64::from(task.attempts)))
            && holds(&self.created, Some(task.created_at))
            && holds(&self.finished, task.finished_at)
            && holds(&self.run_at, task.run_at)
            && self.workers.as_ref().is_none_or(|workers| workers.contains(task.worker))
            && self.idempotency_key.as_ref().is_none_or(|key| **key == *task.idempotency_key)
            && self.error_part.as_ref().is_none_or(|part| contains(task.error, part))
            && self.fingerprint.is_none_or(|wanted| wanted == fingerprint(task.command, task.error))
    }
}

fn holds(range: &Option<RangeInclusive<u64>>, value: Option<u64>) -> bool {
    range.as_ref().is_none_or(|range| value.is_some_and(|value| range.contains(&value)))
}

fn contains(text: &str, lower_part: &str) -> bool {
    if text.is_ascii() {
        let (text, part) = (text.as_bytes(), lower_part.as_bytes());
        return text.windows(part.len()).any(|window| window.eq_ignore_ascii_case(part));
    }
    text.to_lowercase().contains(lower_part)
}

/// What is read of a row while it is searched: everything but payload and result.
pub(crate) struct Seen<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) command: &'a str,
    pub(crate) state: State,
    pub(crate) priority: u8,
    pub(crate) attempts: u32,
    pub(crate) max_attempts: u32,
    pub(crate) created_at: u64,
    pub(crate) updated_at: u64,
    pub(crate) error: &'a str,
    pub(crate) webhook: &'a str,
    pub(crate) idempotency_key: &'a str,
    pub(crate) payload_bytes: u32,
    pub(crate) finished_at: Option<u64>,
    pub(crate) ended_at: Option<u64>,
    pub(crate) worker: &'a str,
    pub(crate) lease_until: Option<u64>,
    pub(crate) run_at: Option<u64>,
    pub(crate) cancel_requested: bool,
}

const OF_ALL: [&str; 7] = ["tenant", "command", "state", "priority", "attempts", "max_attempts", "created_at"];
const OF_LIVE: [&str; 10] = [
    "updated_at",
    "error",
    "webhook",
    "idempotency_key",
    "payload_bytes",
    "due_lease",
    "due_schedule",
    "worker",
    "lease_until",
    "cancel_requested",
];
const OF_ENDED: [&str; 5] = ["finished_at", "error", "webhook", "idempotency_key", "ended_at"];

/// The values that [`Seen::read`] takes of a table's rows.
pub(crate) fn wanted(table: u8) -> Vec<Wanted> {
    let columns = &TABLES[usize::from(table)];
    let own: &[&str] = if table == LIVE { &OF_LIVE } else { &OF_ENDED };
    let names = OF_ALL.iter().chain(own);
    let mut wanted: Vec<Wanted> = names.map(|name| Wanted::Value(columns.column(name))).collect();
    if table != LIVE {
        wanted.push(Wanted::Bytes(columns.column("payload")));
    }
    wanted
}

impl<'a> Seen<'a> {
    /// Reads the values of [`wanted`]. `clocks`: those of the checkpoint.
    pub(crate) fn read(table: u8, row: Row<'a>, clocks: Stamps) -> Result<Seen<'a>, Malformed> {
        let mut row = row.reader();
        let r = &mut row;
        let mut seen = Seen {
            tenant: r.text()?,
            command: r.text()?,
            state: State::from_name(r.text()?).ok_or(Malformed)?,
            priority: r.narrow()?,
            attempts: r.narrow()?,
            max_attempts: r.narrow()?,
            created_at: r.number()?,
            updated_at: r.number()?,
            error: r.text()?,
            webhook: r.text()?,
            idempotency_key: r.text()?,
            payload_bytes: 0,
            finished_at: None,
            ended_at: None,
            worker: "",
            lease_until: None,
            run_at: None,
            cancel_requested: false,
        };
        match table {
            LIVE => {
                seen.payload_bytes = r.narrow()?;
                let due = match (r.maybe_number()?, r.maybe_number()?) {
                    (Some(lease), None) => Some(Due::Lease(base::LeaseTime(lease))),
                    (None, Some(schedule)) => Some(Due::Schedule(ScheduleTime(schedule))),
                    (None, None) => None,
                    (Some(_), Some(_)) => return Err(Malformed),
                };
                seen.run_at = due.filter(|_| seen.state == State::Delayed).map(|due| estimate(due, clocks).0);
                seen.worker = r.text()?;
                seen.lease_until = r.maybe_number()?;
                seen.cancel_requested = r.number()? != 0;
            }
            COMPLETED | FAILED | DEAD => {
                seen.finished_at = Some(seen.updated_at);
                seen.ended_at = Some(r.number()?);
                seen.payload_bytes = r.narrow()?;
            }
            _ => return Err(Malformed),
        }
        Ok(seen)
    }

    /// What can be shown of it; of its payload only the length.
    pub(crate) fn view(&self, id: TaskId) -> TaskView {
        TaskView {
            id,
            tenant: self.tenant.into(),
            command: self.command.into(),
            payload: Payload::Stored(self.payload_bytes),
            priority: self.priority,
            state: self.state,
            worker: (self.state == State::Leased).then(|| self.worker.into()),
            lease_until: self.lease_until.map(ScheduleTime),
            attempts: self.attempts,
            max_attempts: self.max_attempts,
            error: self.error.into(),
            run_at: self.run_at.map(ScheduleTime),
            created_at: ScheduleTime(self.created_at),
            updated_at: ScheduleTime(self.updated_at),
            finished_at: self.finished_at.map(ScheduleTime),
            ended_at: self.ended_at.map(Index),
            result: None,
            webhook: self.webhook.into(),
            idempotency_key: self.idempotency_key.into(),
            cancel_requested: self.cancel_requested,
            history: Vec::new(),
        }
    }
}

/// Characters of an error that a fingerprint depends on.
const FINGERPRINT_CHARS: usize = 200;

/// A number that errors of a queue share which differ in no more than numbers, ids and quoted names.
pub fn fingerprint(command: &str, error: &str) -> u64 {
    let mut hasher = SipHasher24::new();
    hasher.write(command.as_bytes());
    hasher.write_u8(0);
    hasher.write(pattern(error).as_bytes());
    hasher.finish()
}

/// The beginning of an error, with one mark for each part that tells one occurrence from another.
fn pattern(error: &str) -> String {
    let text: Vec<char> = error.chars().take(FINGERPRINT_CHARS).flat_map(char::to_lowercase).collect();
    let mut pattern = String::new();
    let mut place = 0;
    while let Some(character) = text.get(place) {
        let after_word = place > 0 && text[place - 1].is_alphanumeric();
        let length = quoted(&text[place..], after_word)
            .or_else(|| if after_word { None } else { uuid(&text[place..]).or_else(|| hexadecimal(&text[place..])) })
            .or_else(|| digits(&text[place..]));
        match length {
            Some(length) => {
                pattern.push('#');
                place += length;
            }
            None => {
                pattern.push(*character);
                place += 1;
            }
        }
    }
    pattern
}

/// Length of the quoted part that begins here. An apostrophe within a word begins none.
fn quoted(text: &[char], after_word: bool) -> Option<usize> {
    let mark = *text.first().filter(|mark| matches!(mark, '"' | '`' | '\''))?;
    let end = text[1..].iter().position(|character| *character == mark)?;
    (mark != '\'' || !after_word).then_some(end + 2)
}

fn uuid(text: &[char]) -> Option<usize> {
    let is_one = |(place, character): (usize, &char)| match place {
        8 | 13 | 18 | 23 => *character == '-',
        _ => character.is_ascii_hexdigit(),
    };
    text.get(..36).filter(|text| text.iter().enumerate().all(is_one)).map(|_| 36)
}

/// A run of at least eight hexadecimal digits that is no word.
fn hexadecimal(text: &[char]) -> Option<usize> {
    let length = text.iter().take_while(|character| character.is_ascii_hexdigit()).count();
    let is_word = text.get(length).is_some_and(|next| next.is_alphanumeric());
    (length >= 8 && !is_word).then_some(length)
}

fn digits(text: &[char]) -> Option<usize> {
    let length = text.iter().take_while(|character| character.is_ascii_digit()).count();
    (length > 0).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_differ_in_numbers_ids_and_names_have_one_pattern() {
        for (error, expected) in [
            ("", ""),
            ("Timeout after 30s", "timeout after #s"),
            ("timeout after 2500s", "timeout after #s"),
            ("no file '/tmp/a b'", "no file #"),
            ("can't open \"x\" or `y`", "can't open # or #"),
            ("an unclosed 'quote", "an unclosed 'quote"),
            ("task 0193a5c0-0000-8000-8000-0000deadbeef is gone", "task # is gone"),
            ("commit deadbeefcafe, facade", "commit #, facade"),
            ("HTTP 503 from 10.0.0.17:8080", "http # from #.#.#.#:#"),
        ] {
            assert_eq!(pattern(error), expected);
        }
        let long = |end: &str| format!("{}{end}", "é ".repeat(100));
        assert_eq!(pattern(&long("one")), pattern(&long("another")));
        assert_eq!(fingerprint("a", "error 1"), fingerprint("a", "Error 22"));
        assert_ne!(fingerprint("a", "error 1"), fingerprint("b", "error 1"));
    }

    #[test]
    fn part_of_an_error_is_found_whatever_its_case() {
        for (text, part, found) in [
            ("Connection Refused", "refused", true),
            ("Connection Refused", "refuses", false),
            ("ÄRGER hier", "ärger", true),
            ("x", "longer than that", false),
        ] {
            assert_eq!(contains(text, part), found, "{text} {part}");
        }
    }
}
