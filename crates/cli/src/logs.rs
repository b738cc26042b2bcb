//! The log: text for people, or a JSON object per line, to standard error.

use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use std::sync::Arc;

use server::config::{LogFormat, LogSettings};
use server::log_lines;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;

use crate::output;

/// The log of this process, set up.
#[derive(Clone)]
pub(crate) struct Log {
    format: LogFormat,
    /// Takes the place of the filter.
    set: Arc<dyn Fn(Targets) -> Result<(), String> + Send + Sync>,
}

impl Log {
    /// Sets up the log. Once per process.
    pub(crate) fn start(settings: &LogSettings) -> Log {
        let is_terminal = std::io::stderr().is_terminal();
        let format = settings.format.unwrap_or(if is_terminal { LogFormat::Text } else { LogFormat::Json });
        let filter: Targets = settings.filter.parse().expect("the settings have checked it");
        let registry = tracing_subscriber::registry().with(Watched.with_filter(WhileWatched));
        let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let (filter, handle) = reload::Layer::new(filter);
        match format {
            LogFormat::Text => {
                let layer = layer.with_ansi(is_terminal).fmt_fields(debug_fn(text_field).delimited(" "));
                registry.with(layer.with_filter(filter)).init();
            }
            LogFormat::Json => registry.with(layer.event_format(JsonLines).with_filter(filter)).init(),
        }
        Log { format, set: Arc::new(move |filter| handle.reload(filter).map_err(|error| error.to_string())) }
    }

    /// Logs as much as these settings say from now on.
    pub(crate) fn follow(&self, settings: &LogSettings) -> Result<(), String> {
        let filter: Targets = settings.filter.parse().expect("the settings have checked it");
        (self.set)(filter)
    }

    /// Says in a line why the process ends.
    pub(crate) fn last_words(&self, why: &impl fmt::Display) {
        match self.format {
            LogFormat::Text => output::note(&format!("error: {why}")),
            LogFormat::Json => tracing::error!(event = "server.failed", "{why}"),
        }
    }
}

/// The field of an event of the cluster that has all that is its own: text, or, asked for the other form, the members of a JSON object, each
/// with a comma in front.
const OWN: &str = "own";

/// A field in a line of text.
fn text_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    match field.name() {
        "message" | OWN => write!(writer, "{value:?}"),
        name => write!(writer, "{name}={value:?}"),
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
        writeln!(writer, "{}", json_line(event)?)
    }
}

fn json_line(event: &Event<'_>) -> Result<String, fmt::Error> {
    let mut time = String::new();
    SystemTime.format_time(&mut Writer::new(&mut time))?;
    let level = event.metadata().level().as_str().to_ascii_lowercase();
    let mut fields = Fields::default();
    event.record(&mut fields);
    let (target, message) = (quoted(event.metadata().target()), quoted(&fields.message));
    let others = fields.others;
    Ok(format!("{{\"ts\":\"{time}\",\"level\":\"{level}\",\"target\":{target},\"msg\":{message}{others}}}"))
}

/// Makes lines for those who watch this process's log from elsewhere.
struct Watched;

impl<S: Subscriber> Layer<S> for Watched {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if let Ok(line) = json_line(event) {
            log_lines().put(*event.metadata().level(), &line);
        }
    }
}

/// Lets through what somebody watches. Only lines of this program: a library that tells how a line is sent would tell of that for ever.
struct WhileWatched;

/// Where this program's lines come from.
const OWN_TARGETS: [&str; 5] = ["raft", "codeq", "server", "cluster", "storage"];

impl WhileWatched {
    fn lets(metadata: &Metadata<'_>) -> bool {
        let from = metadata.target().split("::").next().unwrap_or_default();
        OWN_TARGETS.contains(&from) && *metadata.level() <= log_lines().level()
    }
}

impl<S> Filter<S> for WhileWatched {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        WhileWatched::lets(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if WhileWatched::lets(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(log_lines().level())
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
        match field.name() {
            OWN => write!(self.others, "{value:#?}").expect("a string takes all"),
            _ => self.record_str(field, &format!("{value:?}")),
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

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
