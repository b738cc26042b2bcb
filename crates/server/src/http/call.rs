//! Reading a request by the rules that all routes share.

use std::borrow::Cow;
use std::sync::Arc;

use api::{Code, Problem};
use base::{Index, Millis, Position, ShardId};
use bytes::Bytes;
use cluster::{Freshness, Handle};
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use hyper::http::request::Parts;
use queue::op::Credential;
use queue::outcome::OwnedCredential;
use queue::{LeaseToken, QueueMachine, TaskId};
use serde::de::Deserialize;

use crate::auth::Principal;
use crate::http::error::invalid_body;

/// How long a read waits for a position: if nothing is said, and at most.
const WAIT_DEFAULT: Millis = Millis(2_000);
const WAIT_MAX: Millis = Millis(60_000);

/// A request whose sender is known and whose body has been read.
pub(crate) struct Call {
    pub(crate) head: Parts,
    pub(crate) body: Bytes,
    pub(crate) principal: Arc<Principal>,
}

/// What a route answers, or what is wrong.
pub(crate) type Outcome<T> = Result<T, Box<Problem>>;

impl Call {
    /// The body as JSON. An empty one, or null, is an object without fields.
    pub(crate) fn json<'a, T: Deserialize<'a> + Default>(&'a self) -> Outcome<T> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Ok(T::default());
        }
        if api::json::is_too_deep(&self.body) {
            return Err(invalid_body("the body is nested deeper than 128 levels"));
        }
        // Values that are skipped are not looked into, so the text is checked as a whole.
        let text = std::str::from_utf8(&self.body).map_err(|_| invalid_body("the body is not UTF-8"))?;
        let parsed: Option<T> = serde_json::from_str(text)
            .map_err(|error| invalid_body(format!("the body is not what this route takes: {error}")))?;
        Ok(parsed.unwrap_or_default())
    }

    /// The JSON body of a route that has required fields.
    pub(crate) fn required_json<'a, T: Deserialize<'a> + Default>(&'a self) -> Outcome<T> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Err(invalid_body("the body is empty"));
        }
        self.json()
    }

    /// A parameter of the query, with its escapes undone; the last one of that name.
    pub(crate) fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        let query = self.head.uri.query()?;
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| unescape(value)).next_back()
    }

    /// A header that is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    /// Whether the answer should be JSON where text is the rule.
    pub(crate) fn accepts_json(&self) -> bool {
        let accept = self.head.headers.get(hyper::header::ACCEPT).and_then(|accept| accept.to_str().ok());
        accept.is_some_and(|accept| accept.contains("application/json"))
    }

    /// A parameter of the query, or else one of our headers. Our headers are also known with codeQ's prefix.
    fn parameter(&self, name: &str, header: &str) -> Option<Cow<'_, str>> {
        self.query(name).or_else(|| {
            let value = self.head.headers.get(header).or_else(|| self.head.headers.get(format!("x-{header}")))?;
            value.to_str().ok().map(|text| Cow::Borrowed(text.trim()))
        })
    }

    /// A parameter of the query that is a length of time.
    fn duration(&self, name: &'static str) -> Outcome<Option<Millis>> {
        let Some(text) = self.query(name) else { return Ok(None) };
        let bad = || {
            Box::new(
                Problem::new(Code::InvalidField, format!("{name} is a duration like 2s, not {text:?}")).field(name),
            )
        };
        parse_duration(&text).ok_or_else(bad).map(Some)
    }

    /// How fresh a read must be: `consistency`, `maxStaleness`, `minPosition` and `wait`, the first and the third also by header.
    pub(crate) fn freshness(&self, shard: ShardId, shards: u16, default: Consistency) -> Outcome<Reading> {
        let position = match self.parameter("minPosition", "codeq-min-position") {
            None => None,
            Some(text) => Some(min_position(&text, shard, shards)?),
        };
        let asked = match self.parameter("consistency", "codeq-consistency").as_deref() {
            None => None,
            Some("linearizable" | "leader") => Some(Consistency::Linearizable),
            Some("stale") => Some(Consistency::Stale),
            Some(other) => {
                let detail = format!("consistency is linearizable, leader or stale, not {other:?}");
                return Err(Box::new(Problem::new(Code::InvalidConsistency, detail).field("consistency")));
            }
        };
        let staleness_max = self.duration("maxStaleness")?;
        let wait = self.duration("wait")?.unwrap_or(WAIT_DEFAULT).min(WAIT_MAX);
        let default = if position.is_some() { Consistency::Stale } else { default };
        Ok(Reading { shard, consistency: asked.unwrap_or(default), position, wait, staleness_max })
    }

    /// The lease token of a body as a credential, else the worker's identity.
    pub(crate) fn credential<'a>(&'a self, token: Option<&str>) -> Credential<'a> {
        match token {
            None => Credential::Worker(&self.principal.subject),
            Some(text) => text.parse::<LeaseToken>().map_or(Credential::Unknown, Credential::Token),
        }
    }
}

/// The same credential for a question that outlives the call.
pub(crate) fn owned(credential: &Credential<'_>) -> OwnedCredential {
    match credential {
        Credential::Token(token) => OwnedCredential::Token(*token),
        Credential::Worker(worker) => OwnedCredential::Worker((*worker).into()),
        Credential::Unknown => OwnedCredential::Unknown,
    }
}

/// What a read is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Consistency {
    /// It reflects every write acknowledged before.
    Linearizable,
    /// Whatever is applied here.
    Stale,
}

/// How a read is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    shard: ShardId,
    consistency: Consistency,
    position: Option<Index>,
    wait: Millis,
    /// Longest time since this node last heard from the leader, of a stale read.
    staleness_max: Option<Millis>,
}

/// What the answer to a stale read says of its age: how long ago this node last heard from the leader, if it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LastContact(pub(crate) Option<Millis>);

impl Reading {
    /// What the node is asked for. A linearizable read reflects every position that has been acknowledged.
    pub(crate) fn freshness(&self) -> Freshness {
        match (self.consistency, self.position) {
            (Consistency::Linearizable, _) => Freshness::Linearizable,
            (Consistency::Stale, position) => {
                Freshness::AtLeast { index: position.unwrap_or_default(), up_to: self.wait }
            }
        }
    }

    /// What the answer, read just now, says about its age; nothing if it is linearizable.
    ///
    /// # Errors
    /// It is older than was asked for.
    pub(crate) fn age(&self, node: &Handle<QueueMachine>) -> Outcome<Option<LastContact>> {
        match self.consistency {
            Consistency::Linearizable => Ok(None),
            Consistency::Stale => check_age(node.contact_age(self.shard), self.staleness_max).map(Some),
        }
    }
}

fn check_age(age: Option<Millis>, longest: Option<Millis>) -> Outcome<LastContact> {
    match (age, longest) {
        (_, None) => Ok(LastContact(age)),
        (Some(age), Some(longest)) if age <= longest => Ok(LastContact(Some(age))),
        (age, Some(_)) => {
            let age = age.map_or_else(|| "for an unknown time".into(), |Millis(ms)| format!("for {ms} ms"));
            let detail =
                format!("this node has not heard from a leader {age}; ask another one, or for less with maxStaleness");
            Err(Box::new(Problem::new(Code::TooStale, detail).retry_after(1000)))
        }
    }
}

/// The index that a list of positions names for this shard; 0 if it names none.
fn min_position(text: &str, shard: ShardId, shards: u16) -> Outcome<Index> {
    let bad = || {
        let detail = format!("a position is <shard>:<term>:<index>, several are joined by commas, not {text:?}");
        Box::new(Problem::new(Code::InvalidPosition, detail).field("minPosition"))
    };
    let mut index = Index(0);
    for part in text.split(',') {
        let position: Position = part.trim().parse().map_err(|_| bad())?;
        if position.shard.0 >= shards {
            return Err(bad());
        }
        if position.shard == shard {
            index = position.index;
        }
    }
    Ok(index)
}

/// `250ms`, `5s`, `1m`, `1h`.
fn parse_duration(text: &str) -> Option<Millis> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let (number, factor) = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))?;
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| number.parse::<u64>().ok()?.checked_mul(factor)).flatten().map(Millis)
}

/// Whole or decimal seconds of a query parameter, in milliseconds; malformed or negative: none.
pub(crate) fn query_seconds(text: Option<Cow<'_, str>>) -> Millis {
    let seconds =
        text.and_then(|text| text.parse::<f64>().ok()).filter(|seconds| seconds.is_finite() && *seconds > 0.0);
    Millis(seconds.map_or(0, |seconds| (seconds.min(1e9) * 1000.0) as u64))
}

/// `+` and percent escapes undone; what is not UTF-8 afterwards is replaced.
fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return text.into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        let escaped = tail.get(..2).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match (byte, escaped) {
            (b'+', _) => bytes.push(b' '),
            (b'%', Some(decoded)) => {
                bytes.push(decoded);
                rest = &tail[2..];
            }
            _ => bytes.push(*byte),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// The id of a request's path.
pub(crate) fn task_id(text: &str) -> Option<TaskId> {
    text.parse().ok()
}

/// `X-Request-Id` if it is one, else 32 random digits.
pub(crate) fn request_id(headers: &HeaderMap, random: impl FnOnce() -> [u64; 2]) -> HeaderValue {
    let usable = |value: &&HeaderValue| {
        (1..=128).contains(&value.len()) && value.as_bytes().iter().all(|byte| (0x20..0x7f).contains(byte))
    };
    headers.get("x-request-id").filter(usable).cloned().unwrap_or_else(|| {
        let mut text = [0; 32];
        let bytes = random().into_iter().flat_map(u64::to_be_bytes);
        for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
            let digit = |half: u8| b"0123456789abcdef"[usize::from(half)];
            pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 0xf)]);
        }
        HeaderValue::from_bytes(&text).expect("hexadecimal digits")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_found_by_shard() {
        let at = |text: &str| min_position(text, ShardId(2), 4).map_err(|problem| problem.code);
        assert_eq!(at("0:7:4211,2:7:998"), Ok(Index(998)));
        assert_eq!(at("1:7:4211"), Ok(Index(0)));
        for bad in ["", "x", "4:1:1", "2:7", "2:7:998,", "2:7:-1"] {
            assert_eq!(at(bad), Err(Code::InvalidPosition), "{bad:?}");
        }
    }

    #[test]
    fn a_read_is_refused_if_contact_is_older_than_asked_for() {
        let checked = |age: Option<u64>, longest: Option<u64>| {
            check_age(age.map(Millis), longest.map(Millis)).map_err(|problem| problem.code)
        };
        for age in [None, Some(0), Some(99)] {
            assert_eq!(checked(age, None), Ok(LastContact(age.map(Millis))));
        }
        assert_eq!(checked(Some(0), Some(0)), Ok(LastContact(Some(Millis(0)))));
        assert_eq!(checked(Some(2_000), Some(2_000)), Ok(LastContact(Some(Millis(2_000)))));
        assert_eq!(checked(Some(2_001), Some(2_000)), Err(Code::TooStale));
        assert_eq!(checked(None, Some(2_000)), Err(Code::TooStale));
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("250ms"), Some(Millis(250)));
        assert_eq!(parse_duration("2s"), Some(Millis(2_000)));
        assert_eq!(parse_duration("1m"), Some(Millis(60_000)));
        for bad in ["", "2", "s", "-1s", "1.5s", "99999999999999999999s", "2 s"] {
            assert_eq!(parse_duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn seconds_of_a_query_are_lenient() {
        for (text, ms) in
            [("1.5", 1_500), ("60", 60_000), ("x", 0), ("-3", 0), ("NaN", 0), ("1e300", 1_000_000_000_000)]
        {
            assert_eq!(query_seconds(Some(text.into())), Millis(ms), "{text}");
        }
        assert_eq!(query_seconds(None), Millis(0));
    }

    #[test]
    fn a_request_keeps_its_id_if_it_is_printable() {
        let id = |value: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", HeaderValue::from_bytes(value).expect("a header value"));
            request_id(&headers, || [0, 0xab]).to_str().expect("it is printable").to_owned()
        };
        assert_eq!(id(b"order-7 again"), "order-7 again");
        for replaced in [&b""[..], b"caf\xc3\xa9", &[b'x'; 129]] {
            assert_eq!(id(replaced), "000000000000000000000000000000ab");
        }
    }

    #[test]
    fn query_texts_are_unescaped() {
        for (text, plain) in
            [("a+b", "a b"), ("a%20b", "a b"), ("%", "%"), ("%zz", "%zz"), ("%ff", "\u{fffd}"), ("plain", "plain")]
        {
            assert_eq!(unescape(text), plain);
        }
    }
}
