//! What can go wrong, by what the caller should do about it.

use std::fmt;
use std::time::Duration;

use api::Code;
use serde::Deserialize;

/// Why a call did not bring what it was made for.
///
/// The first two are *definite*: the call has had no effect. After the third one it may have had.
#[derive(Clone, Debug)]
pub enum Error {
    /// The server refused. The same call would be refused again.
    Refused(Box<Problem>),
    /// No server took it in the time that was given; it may be made again.
    Unavailable(String),
    /// It was sent, and no usable answer came. It may have been done.
    Unknown(String),
    /// It was never sent: an address, a token or a payload cannot be used.
    Unusable(String),
}

impl Error {
    /// Whether it is certain that the call has had no effect.
    pub fn is_definite(&self) -> bool {
        !matches!(self, Error::Unknown(_))
    }

    /// Whether a server refused with this code.
    pub fn is(&self, code: Code) -> bool {
        self.problem().is_some_and(|problem| problem.code == code.name())
    }

    /// What the server said, if it refused.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Error::Refused(problem) => Some(problem),
            _ => None,
        }
    }

    pub(crate) fn unusable(what: &str, why: impl fmt::Display) -> Error {
        Error::Unusable(format!("{what}: {why}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Refused(problem) => problem.fmt(f),
            Error::Unavailable(why) => write!(f, "no server answers; {why}"),
            Error::Unknown(why) => write!(f, "it is not known whether it was done; {why}"),
            Error::Unusable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}

/// The body of an error, as servers send it. Codes that this version does not know are kept as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// What, for programs: see [`Code::name`].
    pub code: String,
    /// What happened and what to do, for people.
    pub detail: String,
    /// A fixed phrase.
    pub error: String,
    /// Whether it is certain that there was no effect.
    pub definite: bool,
    /// The input at fault, as a dotted path.
    pub field: Option<String>,
    /// What an operator can do about it.
    pub hint: Option<String>,
    /// The task that an idempotency key is bound to.
    pub task_id: Option<String>,
    /// The id of the request, for whoever reads the server's log.
    pub request_id: String,
    /// Milliseconds after which it may be tried again.
    retry_after_ms: Option<u64>,
}

impl Problem {
    /// What a body says; nothing: it is not of a server of ours.
    pub(crate) fn read(status: u16, body: &[u8]) -> Option<Problem> {
        let problem: Problem = serde_json::from_slice(body).ok()?;
        (!problem.code.is_empty()).then_some(Problem { status, ..problem })
    }

    /// When it may be tried again, where the server said so.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after_ms.map(Duration::from_millis)
    }

    /// The same call would be refused again: it is not the server's present state that is in the way.
    pub(crate) fn is_final(&self) -> bool {
        self.definite && !matches!(self.status, 408 | 429 | 503 | 507)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = if self.detail.is_empty() { &self.error } else { &self.detail };
        write!(f, "{text} ({}", self.code)?;
        if let Some(field) = &self.field {
            write!(f, ", field {field}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is no body of ours is nobody's word; a code of a later version is.
    #[test]
    fn a_problem_is_read_as_it_was_sent() {
        let body = br#"{"type":"urn:codeq:error:overloaded","status":503,"detail":"full","error":"x","code":"overloaded","definite":true,"retryAfterMs":1200,"leader":"http://b"}"#;
        let problem = Problem::read(503, body).expect("it is one");
        assert_eq!(problem.retry_after(), Some(Duration::from_millis(1200)));
        assert!(!problem.is_final());
        assert_eq!(problem.to_string(), "full (overloaded)");
        let later = Problem::read(409, br#"{"code":"of_tomorrow","definite":true,"error":"no"}"#).expect("it is one");
        assert!(later.is_final());
        assert_eq!(later.to_string(), "no (of_tomorrow)");
        for foreign in [&b"<html>502 Bad Gateway</html>"[..], b"{}", b"", b"{\"error\":\"x\"}"] {
            assert_eq!(Problem::read(502, foreign), None);
        }
    }
}
