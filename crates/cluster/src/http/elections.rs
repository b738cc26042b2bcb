//! What a node and the others have seen, over HTTP: events, elections, and timelines made of both.

use base::ShardId;
use base::machine::StateMachine;
use replica::{Cause, Election, Reason};
use serde::Serialize;
use serde_json::{Map, Value as Json};

use crate::events::cursor::Cursor;
use crate::events::story::{cause_name, reason_name};
use crate::events::{Event, Level, Value, role_name, timeline, wall_micros};
use crate::http::HttpAnswer;
use crate::node::Handle;

/// Events in one answer, where nothing else is asked for.
const EVENTS_MAX: usize = 10_000;

/// What is asked for by the query of a path.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    /// Only what is later than this.
    after: Cursor,
    /// Only names that begin so.
    kind: Option<String>,
    group: Option<u16>,
    term: Option<u64>,
    level: Option<Level>,
    node: Option<String>,
    /// Only the last so many.
    pub(super) last: Option<usize>,
    /// Only what is not older, in milliseconds.
    since_ms: Option<u64>,
}

impl Asked {
    pub(super) fn of(query: &str) -> Result<Asked, &'static str> {
        let mut asked = Asked::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let number = || value.parse::<u64>();
            match name {
                "after" => asked.after = Cursor::parse(value).ok_or("after is the hlc or the id of an event")?,
                "type" => asked.kind = Some(value.into()),
                "group" => asked.group = Some(value.parse().map_err(|_| "group is a number")?),
                "term" => asked.term = Some(number().map_err(|_| "term is a number")?),
                "level" => asked.level = Some(Level::of_name(value).ok_or("level is debug, info, warn or error")?),
                "node" => asked.node = Some(value.into()),
                "last" => asked.last = Some(value.parse().map_err(|_| "last is a number")?),
                "since" => asked.since_ms = Some(milliseconds(value).ok_or("since is a duration: 90s, 10m, 1h")?),
                _ => {}
            }
        }
        Ok(asked)
    }

    /// Behind what things matter.
    pub(super) fn cursor(&self) -> Cursor {
        let since = self.since_ms.map_or(0, |since| (wall_micros() / 1_000).saturating_sub(since) << 16);
        self.after.clone().not_before(since)
    }

    /// The reading of the hybrid logical clock from which on things matter that are not one node's.
    fn from(&self) -> u64 {
        self.cursor().of(0)
    }

    /// Whoever asks has seen what is before this, whatever it asked for at first.
    pub(super) fn go_on(&mut self, cursor: Cursor) {
        (self.after, self.since_ms, self.last) = (cursor, None, None);
    }

    pub(super) fn wants(&self, event: &Event) -> bool {
        self.kind.as_ref().is_none_or(|kind| event.name.starts_with(kind.as_str()))
            && self.group.is_none_or(|group| event.group == Some(ShardId(group)))
            && self.term.is_none_or(|term| event.group.is_some() && event.term.0 == term)
            && self.level.is_none_or(|level| event.level >= level)
            && self.node.as_ref().is_none_or(|node| event.node == *node)
    }
}

fn milliseconds(text: &str) -> Option<u64> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit())?;
    let factor = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(factor)
}

/// The answer to `GET` of `/cluster/events`, `/cluster/elections` or `/cluster/timeline`; nothing: it is another path. `query`: what
/// follows the question mark. The first and the last ask the other nodes as well, for a second at most.
pub async fn look_back<S: StateMachine>(handle: &Handle<S>, path: &str, query: &str) -> Option<HttpAnswer> {
    let asked = match Asked::of(query) {
        Ok(asked) => asked,
        Err(problem) => return Some(HttpAnswer::refused(400, "invalid_field", problem)),
    };
    Some(match path.trim_end_matches('/') {
        "/cluster/events" => {
            let (events, missing) = handle.collect_events_behind(&asked.cursor()).await;
            let mut events: Vec<Json> = events.iter().filter(|event| asked.wants(event)).map(event_json).collect();
            events.drain(..events.len().saturating_sub(asked.last.unwrap_or(EVENTS_MAX)));
            let mut answer = HttpAnswer::lines(&events);
            answer.missing = missing;
            answer
        }
        "/cluster/elections" => {
            let elections = ElectionsView { elections: views(&asked, &recorded(handle, &asked)) };
            HttpAnswer::json(200, &elections)
        }
        "/cluster/timeline" => HttpAnswer::json(200, &timeline_of(handle, &asked).await),
        _ => return None,
    })
}

/// The recorded elections that are asked for, by the time they were won.
pub(super) fn recorded<S: StateMachine>(handle: &Handle<S>, asked: &Asked) -> Vec<(ShardId, Election)> {
    let from_ms = asked.from() >> 16;
    let mut all = Vec::new();
    for group in (0..handle.identity().shards).map(ShardId) {
        if asked.group.is_some_and(|wanted| wanted != group.0) {
            continue;
        }
        let of_group = handle.elections(group);
        let wanted = |election: &&Election| {
            election.won_at.0 >= from_ms && asked.term.is_none_or(|term| term == election.term.0)
        };
        all.extend(of_group.iter().filter(wanted).map(|election| (group, election.clone())));
    }
    all.sort_by_key(|(group, election)| (election.won_at, *group, election.term));
    all
}

pub(super) fn views(asked: &Asked, elections: &[(ShardId, Election)]) -> Vec<ElectionView> {
    let skipped = elections.len().saturating_sub(asked.last.unwrap_or(usize::MAX));
    elections[skipped..].iter().map(|(group, election)| ElectionView::of(*group, election)).collect()
}

async fn timeline_of<S: StateMachine>(handle: &Handle<S>, asked: &Asked) -> TimelineView {
    let (events, missing) = handle.collect_events(0).await;
    let elections = told_view(handle, asked, &events).into_iter().map(|(_, told)| told).collect();
    TimelineView { elections, missing }
}

/// The elections that are asked for, each with the reading of the hybrid logical clock when it was won, with what `events`, which are
/// merged, tell of it.
pub(super) fn told_view<S: StateMachine>(handle: &Handle<S>, asked: &Asked, events: &[Event]) -> Vec<(u64, ToldView)> {
    let (from, last) = (asked.from(), asked.last.unwrap_or(usize::MAX));
    let mut told = Vec::new();
    for group in (0..handle.identity().shards).map(ShardId) {
        if asked.group.is_some_and(|wanted| wanted != group.0) {
            continue;
        }
        let records = handle.elections(group);
        told.extend(timeline::elections(group, records.iter(), events));
    }
    let began = |told: &timeline::Told| match (&told.election, told.events.last()) {
        (Some(election), _) => election.won_at.0 << 16,
        (None, Some(event)) => event.hlc,
        (None, None) => 0,
    };
    told.retain(|told| began(told) >= from && asked.term.is_none_or(|term| term == told.term));
    told.sort_by_key(|told| (began(told), told.group, told.term));
    told.drain(..told.len().saturating_sub(last));
    let of_node = |event: &&Event| {
        let node = asked.node.as_ref().is_none_or(|node| event.node == *node);
        node && asked.level.is_none_or(|level| event.level >= level)
    };
    let view = |told: &timeline::Told| ToldView {
        election: told.election.as_ref().map(|election| ElectionView::of(told.group, election)),
        group: told.group.0,
        term: told.term,
        events: told.events.iter().filter(of_node).map(event_json).collect(),
    };
    told.iter().map(|told| (began(told), view(told))).collect()
}

/// `GET /cluster/elections`
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ElectionsView {
    /// The oldest first.
    pub elections: Vec<ElectionView>,
}

/// An election that somebody has won.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ElectionView {
    /// Counts from 1 in the life of the group.
    pub number: u64,
    /// The group.
    pub group: u16,
    /// The term that began with it.
    pub term: u64,
    /// When it was won, by the winner's clock: UTC.
    pub won_at: String,
    /// Who won.
    pub leader: String,
    /// The id of who won.
    pub leader_id: String,
    /// Who led before.
    pub previous: Option<String>,
    /// `timeout`, `retry`, `transfer` or `bootstrap`.
    pub cause: &'static str,
    /// What that means.
    pub sentence: String,
    /// Votes that sufficed.
    pub needed: u64,
    /// Who answered before it was won.
    pub votes: Vec<VoteView>,
    /// Times the winner asked.
    pub attempts: u64,
    /// From the last contact with the leader before until the winner asked for votes.
    pub detect_ms: Option<u64>,
    /// From then until it had won.
    pub elect_ms: Option<u64>,
    /// From then until it took writes.
    pub ready_ms: Option<u64>,
    /// How long nobody could write.
    pub outage_ms: Option<u64>,
    /// How that is known: `traffic` or `contact`.
    pub basis: &'static str,
}

/// A vote.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VoteView {
    /// Whose.
    pub node: String,
    /// For the winner.
    pub granted: bool,
    /// Why.
    pub reason: &'static str,
}

impl ElectionView {
    /// The view of an election.
    pub fn of(group: ShardId, election: &Election) -> ElectionView {
        let previous = Some(&election.previous.1).filter(|name| !name.is_empty());
        let sentence = match (election.cause, previous) {
            (Cause::Bootstrap, _) => "first leader of a new group".into(),
            (Cause::Transfer, Some(previous)) => format!("{previous} handed over"),
            (Cause::Transfer, None) => "handed over".into(),
            (_, Some(previous)) => format!("leader {previous} gone without hand-over"),
            (_, None) => "no leader was heard of".into(),
        };
        let vote = |vote: &replica::Vote| VoteView {
            node: vote.name.clone(),
            granted: vote.reason == Reason::Ok,
            reason: reason_name(vote.reason),
        };
        ElectionView {
            number: election.number,
            group: group.0,
            term: election.term.0,
            won_at: timestamp(election.won_at.0 * 1_000),
            leader: election.leader.1.clone(),
            leader_id: format!("{:016x}", election.leader.0),
            previous: previous.cloned(),
            cause: cause_name(election.cause),
            sentence,
            needed: election.needed,
            votes: election.votes.iter().map(vote).collect(),
            attempts: election.attempts,
            detect_ms: election.detect.map(|ms| ms.0),
            elect_ms: election.elect.map(|ms| ms.0),
            ready_ms: election.ready.map(|ms| ms.0),
            outage_ms: election.outage().map(|ms| ms.0),
            basis: if election.traffic.is_some() { "traffic" } else { "contact" },
        }
    }
}

/// `GET /cluster/timeline`
#[derive(Clone, Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TimelineView {
    /// By the time they were won; one that is not recorded last.
    pub elections: Vec<ToldView>,
    /// Nodes that did not answer: what they alone know is not here.
    pub missing: Vec<String>,
}

/// An election with all that was told of it.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ToldView {
    /// Its record; nothing: nobody has won.
    pub election: Option<ElectionView>,
    /// The group.
    pub group: u16,
    /// The last term it reached.
    pub term: u64,
    /// Events, in an order in which no effect stands before its cause.
    pub events: Vec<Json>,
}

/// An event as JSON. Numbers that do not fit a double are texts.
pub fn event_json(event: &Event) -> Json {
    let mut json = Map::new();
    let mut put = |name: &str, value: Json| drop(json.insert(name.into(), value));
    put("ts", timestamp(event.at_micros).into());
    put("event", (*event.name).into());
    put("level", event.level.name().into());
    put("node", event.node.as_str().into());
    put("nodeId", format!("{:016x}", event.node_id).into());
    put("clusterId", event.cluster.map(|cluster| cluster.to_string()).into());
    put("group", event.group.map(|group| group.0).into());
    put("term", event.group.map(|_| event.term.0).into());
    put("role", event.role.map(role_name).into());
    put("boot", format!("{:016x}", event.boot).into());
    put("msg", event.text.as_str().into());
    put("seq", event.seq.into());
    put("hlc", event.hlc.to_string().into());
    for (name, value) in &event.fields {
        put(name, value_json(value));
    }
    Json::Object(json)
}

/// A field of an event as JSON.
pub(crate) fn value_json(value: &Value) -> Json {
    match value {
        Value::Number(number) => (*number).into(),
        Value::Flag(flag) => (*flag).into(),
        Value::Text(text) => text.as_str().into(),
        Value::List(texts) => texts.clone().into(),
    }
}

/// `2023-11-14T22:13:20.000123Z`
fn timestamp(micros: u64) -> String {
    let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
    let (days, of_day) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Days since 1 March of year 0 in the calendar that we have now, in eras of 400 years.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{rest:06}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: times are written as people read them, leap days included.
    #[test]
    fn moments_are_written_as_utc() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400_000_001, "2000-02-29T00:00:00.000001Z"),
            (1_700_000_000_000_123, "2023-11-14T22:13:20.000123Z"),
            (4_107_542_399_999_999, "2100-02-28T23:59:59.999999Z"),
        ];
        for (micros, expected) in cases {
            assert_eq!(timestamp(micros), expected);
        }
    }

    /// Goal: what cannot be meant is refused; what is not known is left to others.
    #[test]
    fn a_query_is_read_or_refused() {
        let asked = Asked::of("last=2&since=10m&group=0&level=debug&color=red").expect("it is understood");
        assert_eq!(
            (asked.last, asked.since_ms, asked.group, asked.level),
            (Some(2), Some(600_000), Some(0), Some(Level::Debug))
        );
        for wrong in ["last=x", "since=10", "since=m", "level=loud", "group=70000", "after=now"] {
            assert!(Asked::of(wrong).is_err(), "{wrong}");
        }
    }
}
