//! How commands that work with tasks ask a server, and what its answers are as text and as an exit status.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use client::{Answer, Client, Code, Error};
use serde_json::Value;

use crate::endpoint::{EndpointArgs, FORBIDDEN, UNAVAILABLE};
use crate::members::columns;
use crate::output;

/// What was asked for is not there: no such task, nothing to claim, not ended in time.
pub(crate) const NOTHING: u8 = 10;
/// The lease is not held any more, or not by this token.
const LEASE_LOST: u8 = 11;
/// The answer was lost: it may have been done.
const UNKNOWN: u8 = 12;

/// The last part of the help of each of these commands.
pub(crate) const EXITS: &str = "Exit status:\n  0 done; 1 refused; 2 wrong usage; 3 no server took it, and nothing was done; 5 not \
    allowed;\n  10 nothing there (no such task, nothing to claim, not ended in time); 11 the lease is lost;\n  12 not known whether it was done";

/// Which server, and how its answers are printed.
#[derive(Args)]
pub(crate) struct CallArgs {
    /// How answers are printed.
    #[arg(short, long, value_enum, default_value_t = Form::Table)]
    pub(crate) output: Form,
    #[command(flatten)]
    pub(crate) endpoint: EndpointArgs,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// A line for each field.
    Table,
    /// As the server sent them: one JSON value in a line.
    Json,
}

/// Why a command did not do what it was made for.
pub(crate) enum Trouble {
    /// What the servers said, or did not.
    Call(Error),
    /// Something on this side.
    Own(anyhow::Error),
    /// What was asked for is not there.
    Nothing(String),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Call(error)
    }
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Trouble {
        Trouble::Own(error)
    }
}

/// Asks servers, and makes an exit status of what comes of it.
pub(crate) fn call<W: Future<Output = Result<(), Trouble>>>(
    endpoint: &EndpointArgs,
    work: impl FnOnce(Client) -> W,
) -> ExitCode {
    let outcome = (|| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
        let client = endpoint.client()?;
        runtime.block_on(work(client))
    })();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => trouble.tell(),
    }
}

impl Trouble {
    /// Says it, and what it is as an exit status.
    fn tell(&self) -> ExitCode {
        match self {
            Trouble::Own(error) => output::note(&format!("error: {error:#}")),
            Trouble::Nothing(what) => output::note(what),
            Trouble::Call(error) => {
                output::note(&format!("error: {error}"));
                if let Some(hint) = error.problem().and_then(|problem| problem.hint.as_ref()) {
                    output::note(&format!("hint: {hint}"));
                }
            }
        }
        match self {
            Trouble::Own(_) => ExitCode::FAILURE,
            Trouble::Nothing(_) => ExitCode::from(NOTHING),
            Trouble::Call(error) => ExitCode::from(status(error)),
        }
    }
}

fn status(error: &Error) -> u8 {
    let is = |codes: &[Code]| codes.iter().any(|code| error.is(*code));
    match error {
        Error::Unavailable(_) => UNAVAILABLE,
        Error::Unknown(_) => UNKNOWN,
        Error::Unusable(_) => 2,
        Error::Refused(_) if is(&[Code::TaskNotFound, Code::ResultNotFound, Code::OperationNotFound]) => NOTHING,
        Error::Refused(_) if is(&[Code::LeaseLost, Code::NotInProgress, Code::NotOwner]) => LEASE_LOST,
        Error::Refused(problem) if matches!(problem.status, 401 | 403) => FORBIDDEN,
        Error::Refused(_) => 1,
    }
}

impl CallArgs {
    /// Prints an answer.
    pub(crate) fn print(&self, answer: &Answer) {
        output::data(&shown(&answer.body, self.output));
    }
}

/// A JSON value as text: an object as lines of fields, several of them with an empty line between.
pub(crate) fn shown(body: &[u8], form: Form) -> String {
    let text = String::from_utf8_lossy(body).into_owned();
    if form == Form::Json {
        return text;
    }
    match serde_json::from_slice::<Fields>(body) {
        Ok(fields) => fields.to_text(),
        Err(_) => text,
    }
}

/// The members of an object in the order in which they came, as they came.
struct Fields(Vec<(String, Box<serde_json::value::RawValue>)>);

impl<'de> serde::Deserialize<'de> for Fields {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Fields, D::Error> {
        struct Members;
        impl<'de> serde::de::Visitor<'de> for Members {
            type Value = Fields;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Fields(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl Fields {
    fn to_text(&self) -> String {
        let mut rows = Vec::new();
        for (name, value) in &self.0 {
            // Text as it is, anything else as JSON.
            let text = match serde_json::from_str::<Value>(value.get()) {
                Ok(Value::String(text)) => text,
                _ => value.get().to_owned(),
            };
            rows.push(vec![name.clone(), text.replace('\n', "\n  ")]);
        }
        columns(&rows).join("\n")
    }
}

/// How long something may take, as far as a server holds it in one call.
pub(crate) fn seconds(length: Duration) -> f64 {
    length.as_millis() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Big numbers and the order of members stay as they were sent.
    #[test]
    fn an_object_is_shown_line_by_line() {
        let body = br#"{"id":"x","payload":{"n":12345678901234567890123,"a":1},"attempts":2}"#;
        let expected = "id        x\npayload   {\"n\":12345678901234567890123,\"a\":1}\nattempts  2";
        assert_eq!(shown(body, Form::Table), expected);
        assert_eq!(shown(body, Form::Json), String::from_utf8_lossy(body));
        assert_eq!(shown(b"ok", Form::Table), "ok");
    }
}
