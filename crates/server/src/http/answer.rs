//! Answers, and the headers they all have.

use api::Problem;
use base::Position;
use bytes::Bytes;
use cluster::http::{Form, HttpAnswer};
use hyper::Response;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, LINK,
    LOCATION, RETRY_AFTER,
};

use crate::http::body::{Body, Pieces};
use crate::http::call::LastContact;

/// An answer with a body.
pub(crate) type HttpResponse = Response<Body>;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CODEQ_POSITION: HeaderName = HeaderName::from_static("codeq-position");
const CODEQ_SERVED_BY: HeaderName = HeaderName::from_static("codeq-served-by");
const CODEQ_CONSISTENCY: HeaderName = HeaderName::from_static("codeq-consistency");
const CODEQ_LAST_CONTACT: HeaderName = HeaderName::from_static("codeq-last-contact-ms");
const CODEQ_MISSING: HeaderName = HeaderName::from_static("codeq-missing");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const NOTHING_FOREIGN: HeaderValue =
    HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'");
const LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
const TAR: HeaderValue = HeaderValue::from_static("application/x-tar");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const STALE: HeaderValue = HeaderValue::from_static("stale");
const TRUE: HeaderValue = HeaderValue::from_static("true");

/// What a route answers.
#[derive(Debug)]
pub(crate) struct Answer {
    status: u16,
    kind: Kind,
    body: Vec<u8>,
    /// A long body instead, and the name under which people keep it, if they do.
    long: Option<(Option<HeaderValue>, Pieces)>,
    positions: Vec<Position>,
    replayed: bool,
    /// How old it may be, where it was not read linearizably.
    age: Option<LastContact>,
    /// Nodes that did not answer.
    missing: Vec<String>,
    /// Path and query of the next page.
    next: Option<String>,
    /// Path of what was made.
    location: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Json,
    Text,
    Html,
    Lines,
    Metrics,
    Problem,
    Tar,
    Events,
    Empty,
}

/// What the cluster's own pages say.
impl From<HttpAnswer> for Answer {
    fn from(made: HttpAnswer) -> Answer {
        let kind = match made.content_type.split_once(';').map_or(made.content_type, |(kind, _)| kind) {
            "application/json" => Kind::Json,
            "application/problem+json" => Kind::Problem,
            "application/x-ndjson" => Kind::Lines,
            _ => Kind::Text,
        };
        let mut answer = Answer::new(made.status, kind, made.body);
        answer.missing = made.missing;
        answer
    }
}

impl Answer {
    /// JSON that `write` appends.
    pub(crate) fn json(status: u16, write: impl FnOnce(&mut Vec<u8>)) -> Answer {
        let mut body = Vec::with_capacity(512);
        write(&mut body);
        Answer::new(status, Kind::Json, body)
    }

    /// No body.
    pub(crate) fn empty(status: u16) -> Answer {
        Answer::new(status, Kind::Empty, Vec::new())
    }

    /// Text for people and probes.
    pub(crate) fn text(status: u16, text: impl Into<String>) -> Answer {
        Answer::new(status, Kind::Text, text.into().into_bytes())
    }

    /// A page for people, which may ask for nothing more.
    pub(crate) fn html(text: String) -> Answer {
        Answer::new(200, Kind::Html, text.into_bytes())
    }

    /// Metrics in Prometheus' text format.
    pub(crate) fn metrics(text: String) -> Answer {
        Answer::new(200, Kind::Metrics, text.into_bytes())
    }

    /// A tar file that is made while it is sent. `name`: how people keep it.
    pub(crate) fn file(name: &str, pieces: Pieces) -> Answer {
        let disposition = HeaderValue::try_from(format!("attachment; filename=\"{name}\""));
        let disposition = disposition.expect("names of nodes and numbers are plain text");
        Answer { long: Some((Some(disposition), pieces)), ..Answer::new(200, Kind::Tar, Vec::new()) }
    }

    /// What goes on as long as the client wants it.
    pub(crate) fn stream(form: Form, pieces: Pieces) -> Answer {
        let kind = match form {
            Form::Lines => Kind::Lines,
            Form::Events => Kind::Events,
        };
        Answer { long: Some((None, pieces)), ..Answer::new(200, kind, Vec::new()) }
    }

    fn new(status: u16, kind: Kind, body: Vec<u8>) -> Answer {
        Answer {
            status,
            kind,
            body,
            long: None,
            positions: Vec::new(),
            replayed: false,
            age: None,
            missing: Vec::new(),
            next: None,
            location: None,
        }
    }

    /// With what it reflects.
    pub(crate) fn at(mut self, position: Position) -> Answer {
        self.positions.push(position);
        self
    }

    /// With what it reflects of several shards.
    pub(crate) fn at_all(mut self, positions: impl IntoIterator<Item = Position>) -> Answer {
        self.positions.extend(positions);
        self
    }

    /// It shows an earlier creation.
    pub(crate) fn replayed(mut self) -> Answer {
        self.replayed = true;
        self
    }

    /// It was read without asking the leader.
    pub(crate) fn age(mut self, age: Option<LastContact>) -> Answer {
        self.age = age;
        self
    }

    /// It is a page of a list, and this is the next one.
    pub(crate) fn link(mut self, next: Option<String>) -> Answer {
        self.next = next;
        self
    }

    /// Something was made, which has this path.
    pub(crate) fn location(mut self, path: String) -> Answer {
        self.location = Some(path);
        self
    }

    /// What it reflects.
    pub(crate) fn positions(&self) -> &[Position] {
        &self.positions
    }

    /// With all headers; `node`: who executed the request.
    pub(crate) fn into_response(self, request_id: HeaderValue, node: &HeaderValue, is_api: bool) -> HttpResponse {
        let whole = Body::Whole((!self.body.is_empty()).then(|| Bytes::from(self.body)));
        let (disposition, body) = match self.long {
            Some((disposition, pieces)) => (disposition, Body::Pieces(pieces)),
            None => (None, whole),
        };
        let mut response = Response::new(body);
        *response.status_mut() = hyper::StatusCode::from_u16(self.status).expect("a status of ours");
        let headers = response.headers_mut();
        match self.kind {
            Kind::Json => headers.insert(CONTENT_TYPE, JSON),
            Kind::Problem => headers.insert(CONTENT_TYPE, PROBLEM),
            Kind::Text => headers.insert(CONTENT_TYPE, TEXT),
            Kind::Html => {
                headers.insert(CONTENT_SECURITY_POLICY, NOTHING_FOREIGN);
                headers.insert(CACHE_CONTROL, NO_STORE);
                headers.insert(CONTENT_TYPE, HTML)
            }
            Kind::Lines => headers.insert(CONTENT_TYPE, LINES),
            Kind::Metrics => headers.insert(CONTENT_TYPE, METRICS),
            Kind::Tar => headers.insert(CONTENT_TYPE, TAR),
            Kind::Events => {
                headers.insert(CACHE_CONTROL, NO_STORE);
                headers.insert(CONTENT_TYPE, EVENTS)
            }
            Kind::Empty => None,
        };
        if let Some(link) = self.next.and_then(|next| HeaderValue::try_from(format!("<{next}>; rel=\"next\"")).ok()) {
            headers.insert(LINK, link);
        }
        if let Some(location) = self.location.and_then(|path| HeaderValue::try_from(path).ok()) {
            headers.insert(LOCATION, location);
        }
        if let Some(disposition) = disposition {
            headers.insert(CONTENT_DISPOSITION, disposition);
        }
        headers.insert(X_REQUEST_ID, request_id);
        headers.insert(CODEQ_SERVED_BY, node.clone());
        if is_api {
            headers.insert(CACHE_CONTROL, NO_STORE);
        }
        if !self.positions.is_empty() {
            headers.insert(CODEQ_POSITION, joined(&self.positions));
        }
        if self.replayed {
            headers.insert(IDEMPOTENCY_REPLAYED, TRUE);
        }
        if let Ok(missing) = HeaderValue::try_from(self.missing.join(","))
            && !self.missing.is_empty()
        {
            headers.insert(CODEQ_MISSING, missing);
        }
        if let Some(LastContact(ago)) = self.age {
            headers.insert(CODEQ_CONSISTENCY, STALE);
            if let Some(ago) = ago {
                headers.insert(CODEQ_LAST_CONTACT, HeaderValue::from(ago.0));
            }
        }
        response
    }
}

fn joined(positions: &[Position]) -> HeaderValue {
    let mut text = Vec::with_capacity(24 * positions.len());
    for (place, position) in positions.iter().enumerate() {
        if place > 0 {
            text.push(b',');
        }
        api::json::write_number(u64::from(position.shard.0), &mut text);
        text.push(b':');
        api::json::write_number(position.term.0, &mut text);
        text.push(b':');
        api::json::write_number(position.index.0, &mut text);
    }
    HeaderValue::try_from(text).expect("digits, colons and commas")
}

/// The answer that says what went wrong.
pub(crate) fn problem_response(
    problem: &Problem,
    request_id: HeaderValue,
    node: &HeaderValue,
    is_api: bool,
    allow: Option<&'static str>,
) -> HttpResponse {
    let mut body = Vec::with_capacity(512);
    problem.write(request_id.to_str().unwrap_or_default(), &mut body);
    let mut answer = Answer::new(problem.code.status(), Kind::Json, body).into_response(request_id, node, is_api);
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, PROBLEM);
    if let Some(ms) = problem.retry_after_ms {
        headers.insert(RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
    }
    if let Some(location) = problem.location.as_deref().and_then(|location| HeaderValue::try_from(location).ok()) {
        headers.insert(LOCATION, location);
    }
    if let Some(allow) = allow {
        headers.insert(ALLOW, HeaderValue::from_static(allow));
    }
    answer
}
