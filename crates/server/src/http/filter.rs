//! Reading what a list of tasks is asked for: the names of the filter, from a query.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use api::{Code, Problem};
use queue::outcome::State;
use queue::search::Filter;

use crate::auth::EventTypes;
use crate::http::call::Outcome;
use crate::http::create::check_command;
use crate::http::tasks::location;

/// Ids in one filter.
const IDS_MAX: usize = 100;

/// Values of one parameter that may be repeated.
const VALUES_MAX: usize = 100;

/// Characters of a part of an error: fewer would fit everywhere, more nowhere.
const ERROR_PART: RangeInclusive<usize> = 2..=100;

/// The filter that these parameters make; others than these are left to `other`, which says whether it knows them.
///
/// # Errors
/// A parameter is unknown, or its value cannot be used, or two of them contradict each other.
pub(crate) fn read_filter<'a>(
    parameters: impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)>,
    tenant: &Arc<str>,
    event_types: &EventTypes,
    mut other: impl FnMut(&str, &str) -> Outcome<bool>,
) -> Outcome<Filter> {
    let mut filter = Filter::of(tenant);
    let mut lists = Lists::default();
    for (name, value) in parameters {
        match &*name {
            "command" => put(&mut lists.commands, &name, check_command(&value, false)?.into())?,
            "state" => {
                let state = State::from_name(&value).ok_or_else(|| bad(&name, &value, "a state like READY or DEAD"))?;
                put(&mut lists.states, &name, state)?;
            }
            "status" => put(&mut lists.statuses, &name, value.to_string())?,
            "workerId" => put(&mut lists.workers, &name, Arc::from(&*value))?,
            "ids" => {
                for id in value.split(',') {
                    let id = id.trim().parse().map_err(|_| bad(&name, id, "the id of a task"))?;
                    put(&mut lists.ids, &name, id)?;
                }
            }
            "priority" => once(&mut filter.priority, &name, numbers(&name, &value, 9)?)?,
            "attempts" => once(&mut filter.attempts, &name, numbers(&name, &value, u64::MAX)?)?,
            "createdAfter" => after(&mut filter.created, &name, &value)?,
            "createdBefore" => before(&mut filter.created, &name, &value)?,
            "finishedAfter" => after(&mut filter.finished, &name, &value)?,
            "finishedBefore" => before(&mut filter.finished, &name, &value)?,
            "runAfter" => after(&mut filter.run_at, &name, &value)?,
            "runBefore" => before(&mut filter.run_at, &name, &value)?,
            "idempotencyKey" => once(&mut filter.idempotency_key, &name, Arc::from(&*value))?,
            "errorContains" => {
                if !ERROR_PART.contains(&value.chars().count()) {
                    return Err(bad(&name, &value, "2 to 100 characters"));
                }
                once(&mut filter.error_part, &name, value.to_lowercase().into())?;
            }
            "fingerprint" => {
                let number = u64::from_str_radix(&value, 16).ok().filter(|_| value.len() == 16);
                once(
                    &mut filter.fingerprint,
                    &name,
                    number.ok_or_else(|| bad(&name, &value, "16 hexadecimal digits"))?,
                )?;
            }
            _ if other(&name, &value)? => {}
            _ => {
                let detail = format!("this route has no parameter {:?}", cut(&name));
                return Err(Box::new(Problem::new(Code::InvalidFilter, detail).field(cut(&name))));
            }
        }
    }
    lists.narrow(&mut filter)?;
    if let EventTypes::Listed(listed) = event_types
        && !listed.is_empty()
    {
        let asked = filter.commands.take();
        let is_asked = |command: &Arc<str>| asked.as_ref().is_none_or(|asked| asked.contains(command));
        filter.commands = Some(listed.iter().map(|command| Arc::from(&**command)).filter(is_asked).collect());
    }
    if filter.idempotency_key.is_some() && filter.commands.as_ref().is_none_or(|commands| commands.len() != 1) {
        let detail = "idempotencyKey needs one command: a key is unique in its queue only";
        return Err(Box::new(Problem::new(Code::InvalidFilter, detail).field("idempotencyKey")));
    }
    Ok(filter)
}

/// What may be given several times.
#[derive(Default)]
struct Lists {
    commands: Option<BTreeSet<Arc<str>>>,
    states: Option<BTreeSet<State>>,
    statuses: Option<BTreeSet<String>>,
    workers: Option<BTreeSet<Arc<str>>>,
    ids: Option<BTreeSet<queue::TaskId>>,
}

impl Lists {
    fn narrow(self, filter: &mut Filter) -> Outcome<()> {
        if let Some(states) = self.states {
            filter.states = states;
        }
        if let Some(statuses) = self.statuses {
            const KNOWN: [&str; 4] = ["PENDING", "IN_PROGRESS", "COMPLETED", "FAILED"];
            if let Some(unknown) = statuses.iter().find(|status| !KNOWN.contains(&status.as_str())) {
                return Err(bad("status", unknown, "PENDING, IN_PROGRESS, COMPLETED or FAILED"));
            }
            filter.states.retain(|state| statuses.contains(location(*state).status));
        }
        if self.ids.as_ref().is_some_and(|ids| ids.len() > IDS_MAX) {
            let detail = format!("ids names at most {IDS_MAX} tasks");
            return Err(Box::new(Problem::new(Code::InvalidFilter, detail).field("ids")));
        }
        (filter.commands, filter.workers, filter.ids) = (self.commands, self.workers, self.ids);
        Ok(())
    }
}

fn put<T: Ord>(list: &mut Option<BTreeSet<T>>, name: &str, value: T) -> Outcome<()> {
    let list = list.get_or_insert_default();
    list.insert(value);
    if list.len() > VALUES_MAX {
        let detail = format!("{name} has at most {VALUES_MAX} values");
        return Err(Box::new(Problem::new(Code::InvalidFilter, detail).field(name)));
    }
    Ok(())
}

fn once<T>(place: &mut Option<T>, name: &str, value: T) -> Outcome<()> {
    if place.replace(value).is_some() {
        return Err(Box::new(Problem::new(Code::InvalidFilter, format!("{name} is given twice")).field(name)));
    }
    Ok(())
}

/// `5`, or `3-9`.
fn numbers(name: &str, text: &str, most: u64) -> Outcome<RangeInclusive<u64>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last && last <= most => Ok(first..=last),
        _ => Err(bad(name, text, "a number, or two like 3-9")),
    }
}

fn time(name: &str, text: &str) -> Outcome<u64> {
    api::time::parse(text).ok_or_else(|| bad(name, text, "a time like 2026-01-31T23:59:59Z"))
}

/// From this time on.
fn after(range: &mut Option<RangeInclusive<u64>>, name: &str, text: &str) -> Outcome<()> {
    let end = range.as_ref().map_or(u64::MAX, |range| *range.end());
    *range = Some(time(name, text)?..=end);
    Ok(())
}

/// Until before this time.
fn before(range: &mut Option<RangeInclusive<u64>>, name: &str, text: &str) -> Outcome<()> {
    let start = range.as_ref().map_or(0, |range| *range.start());
    *range = Some(match time(name, text)?.checked_sub(1) {
        Some(end) => start..=end,
        // Nothing is older than that.
        None => RangeInclusive::new(1, 0),
    });
    Ok(())
}

/// A value that cannot be used, with what would be right.
pub(crate) fn bad(name: &str, value: &str, right: &str) -> Box<Problem> {
    Box::new(Problem::new(Code::InvalidFilter, format!("{name} is {right}, not {:?}", cut(value))).field(name))
}

/// The beginning of a text, so that a message has an end.
fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Filter, (Code, String)> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let pairs = pairs.map(|(name, value)| (Cow::Borrowed(name), Cow::Borrowed(value)));
        read_filter(pairs, &"acme".into(), &EventTypes::Any, |name, _| Ok(name == "limit"))
            .map_err(|problem| (problem.code, problem.field.unwrap_or_default()))
    }

    #[test]
    fn parameters_make_a_filter() {
        let filter = read("limit=7&command=b&command=a&state=READY&priority=3-9&attempts=2&errorContains=Ab")
            .expect("it is one");
        assert_eq!(filter.commands, Some(BTreeSet::from(["a".into(), "b".into()])));
        assert_eq!(filter.states, BTreeSet::from([State::Ready]));
        assert_eq!((filter.priority, filter.attempts), (Some(3..=9), Some(2..=2)));
        assert_eq!(filter.error_part.as_deref(), Some("ab"));
        let filter = read("createdAfter=1970-01-01T00:00:01Z&createdBefore=1970-01-01T00:00:02Z").expect("it is one");
        assert_eq!(filter.created, Some(1_000..=1_999));
        let filter = read("status=FAILED&state=DEAD&state=READY").expect("it is one");
        assert_eq!(filter.states, BTreeSet::from([State::Dead]));
        assert_eq!(read("").expect("it is one").states.len(), State::NAMES.len());
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let too_many = format!(
            "ids={}",
            (0..101).map(|n| format!("00000000-0000-8000-8000-{n:012x}")).collect::<Vec<_>>().join(",")
        );
        for (query, field) in [
            ("colour=red", "colour"),
            ("state=ready", "state"),
            ("status=DONE", "status"),
            ("priority=10", "priority"),
            ("priority=9-3", "priority"),
            ("priority=3&priority=4", "priority"),
            ("attempts=-1", "attempts"),
            ("attempts=+1", "attempts"),
            ("createdAfter=yesterday", "createdAfter"),
            ("errorContains=x", "errorContains"),
            ("fingerprint=12", "fingerprint"),
            ("idempotencyKey=k", "idempotencyKey"),
            ("ids=1", "ids"),
            (&too_many, "ids"),
        ] {
            assert_eq!(read(query).map(|_| ()), Err((Code::InvalidFilter, field.into())), "{query}");
        }
        assert_eq!(read("command=a%20b").map(|_| ()), Err((Code::InvalidCommand, "command".into())));
    }
}
