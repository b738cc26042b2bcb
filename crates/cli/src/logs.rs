//! The log: text for people, or a JSON object per line, to standard error.

use std::fmt::{self, Write as _};
use std::io::IsTerminal;

use server::config::{LogFormat, LogSettings};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload::{self, Handle};

use crate::output;

/// The log of this process, set up.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    format: LogFormat,
    filter: Handle<Targets, Registry>,
}

impl Log {
    /// Sets up the log. Once per process.
    pub(crate) fn start(settings: &LogSettings) -> Log {
        let is_terminal = std::io::stderr().is_terminal();
        let format = settings.format.unwrap_or(if is_terminal { LogFormat::Text } else { LogFormat::Json });
        let filter: Targets = settings.filter.parse().expect("the settings have checked it");
        let (filter, handle) = reload::Layer::new(filter);
        let registry = tracing_subscriber::registry().with(filter);
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        match format {
            LogFormat::Text => registry.with(layer.with_ansi(is_terminal)).init(),
            LogFormat::Json => registry.with(layer.event_format(JsonLines)).init(),
        }
        Log { format, filter: handle }
    }

    /// Logs as much as these settings say from now on.
    pub(crate) fn follow(&self, settings: &LogSettings) -> Result<(), String> {
        let filter: Targets = settings.filter.parse().expect("the settings have checked it");
        self.filter.reload(filter).map_err(|error| error.to_string())
    }

    /// Says in a line why the process ends.
    pub(crate) fn last_words(&self, why: &impl fmt::Display) {
        match self.format {
            LogFormat::Text => output::note(&format!("error: {why}")),
            LogFormat::Json => tracing::error!(event = "server.failed", "{why}"),
        }
    }
}

/// A line is `{"ts", "level", "target", "msg"}` and the event's own fields.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let level = event.metadata().level().as_str().to_ascii_lowercase();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let (target, message) = (quoted(event.metadata().target()), quoted(&fields.message));
        writeln!(
            writer,
            "{{\"ts\":\"{time}\",\"level\":\"{level}\",\"target\":{target},\"msg\":{message}{}}}",
            fields.others
        )
    }
}

/// The fields of an event.
#[derive(Default)]
struct Fields {
    message: String,
    /// The others, each with a comma in front.
    others: String,
}

impl Fields {
    fn add(&mut self, field: &Field, json: &str) {
        write!(self.others, ",{}:{json}", quoted(field.name())).expect("a string takes all");
    }
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value.to_string());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, &value.to_string());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.into();
        } else {
            self.add(field, &quoted(value));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Every line is JSON with the four members that tools look for, whatever stands in the event.
    #[test]
    fn json_lines_have_their_members() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        struct Shared(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Shared {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let writer = lines.clone();
        let layer =
            tracing_subscriber::fmt::layer().with_writer(move || Shared(writer.clone())).event_format(JsonLines);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(target: "raft", event = "raft.role", term = 7u64, cause = ?std::fmt::Error, "a \"quote\"\nand {}", 1);
        });
        let bytes = lines.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(line["ts"].as_str().unwrap().ends_with('Z'));
        assert_eq!((&line["level"], &line["target"]), (&"warn".into(), &"raft".into()));
        assert_eq!(line["msg"], "a \"quote\"\nand 1");
        assert_eq!((&line["event"], &line["term"], &line["cause"]), (&"raft.role".into(), &7.into(), &"Error".into()));
    }
}
