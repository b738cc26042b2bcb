//! The body of every error: RFC 9457's members, codeQ's `error`, and ours.

use crate::Code;
use crate::json::Writer;

/// What went wrong, for the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What, for programs.
    pub code: Code,
    /// What happened here and what to do, for people. No secrets, no internal addresses.
    pub detail: String,
    /// codeQ's text, where it has one; otherwise the code's title.
    pub error: Option<&'static str>,
    /// The input at fault, as a dotted path.
    pub field: Option<String>,
    /// When to try again, in milliseconds.
    pub retry_after_ms: Option<u64>,
    /// The task that an idempotency key is bound to.
    pub task_id: Option<String>,
    /// Where to repeat the request: a URL.
    pub location: Option<String>,
    /// What an operator can do about it, or should know.
    pub hint: Option<String>,
    /// The leader's URL and name.
    pub leader: Option<(String, String)>,
    /// What a refusal to change the members counted, by name.
    pub numbers: Vec<(&'static str, u64)>,
}

impl Problem {
    /// A problem with its explanation.
    pub fn new(code: Code, detail: impl Into<String>) -> Problem {
        Problem {
            code,
            detail: detail.into(),
            error: None,
            field: None,
            retry_after_ms: None,
            task_id: None,
            location: None,
            hint: None,
            leader: None,
            numbers: Vec::new(),
        }
    }

    /// With codeQ's text.
    #[must_use]
    pub fn error(self, error: &'static str) -> Problem {
        Problem { error: Some(error), ..self }
    }

    /// With the input at fault.
    #[must_use]
    pub fn field(self, field: impl Into<String>) -> Problem {
        Problem { field: Some(field.into()), ..self }
    }

    /// With advice when to try again.
    #[must_use]
    pub fn retry_after(self, ms: u64) -> Problem {
        Problem { retry_after_ms: Some(ms), ..self }
    }

    /// codeQ's text, or the title.
    pub fn error_text(&self) -> &'static str {
        self.error.unwrap_or(self.code.title())
    }

    /// Appends the body.
    pub fn write(&self, request_id: &str, out: &mut Vec<u8>) {
        let mut body = Writer::object(out);
        body.text("type", &format!("urn:codeq:error:{}", self.code.name()));
        body.text("title", self.code.title());
        body.number("status", u64::from(self.code.status()));
        body.text("detail", &self.detail);
        body.text("error", self.error_text());
        body.text("code", self.code.name());
        body.flag("definite", self.code.is_definite());
        body.text("requestId", request_id);
        if let Some(field) = &self.field {
            body.text("field", field);
        }
        if let Some(ms) = self.retry_after_ms {
            body.number("retryAfterSeconds", ms.div_ceil(1000));
            body.number("retryAfterMs", ms);
        }
        if let Some(task_id) = &self.task_id {
            body.text("taskId", task_id);
        }
        if let Some(hint) = &self.hint {
            body.text("hint", hint);
        }
        if let Some((url, name)) = &self.leader {
            if !url.is_empty() {
                body.text("leader", url);
            }
            body.text("leaderId", name);
        }
        if !self.numbers.is_empty() {
            body.value("numbers", |out| {
                let mut numbers = Writer::object(out);
                self.numbers.iter().for_each(|(name, number)| numbers.number(name, *number));
                numbers.end();
            });
        }
        body.end();
    }

    /// Appends the members that an item of a batch carries.
    pub fn write_item(&self, item: &mut Writer<'_>) {
        item.text("error", self.error_text());
        item.text("code", self.code.name());
        item.number("status", u64::from(self.code.status()));
        item.flag("definite", self.code.is_definite());
        if let Some(task_id) = &self.task_id {
            item.text("taskId", task_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_all_members_it_needs_and_no_others() {
        let mut out = Vec::new();
        Problem::new(Code::InvalidRunAt, "it is \"soon\"")
            .error("invalid 'runAt'")
            .field("runAt")
            .write("r1", &mut out);
        let text = String::from_utf8(out).expect("JSON is text");
        assert_eq!(
            text,
            "{\"type\":\"urn:codeq:error:invalid_run_at\",\"title\":\"the time cannot be used\",\"status\":400,\
             \"detail\":\"it is \\\"soon\\\"\",\"error\":\"invalid 'runAt'\",\"code\":\"invalid_run_at\",\"definite\":true,\
             \"requestId\":\"r1\",\"field\":\"runAt\"}"
        );
        let mut out = Vec::new();
        Problem::new(Code::Overloaded, "full").retry_after(1200).write("r2", &mut out);
        let text = String::from_utf8(out).expect("JSON is text");
        assert!(text.ends_with("\"retryAfterSeconds\":2,\"retryAfterMs\":1200}"), "{text}");
    }
}
