//! What no server may do, whatever it is sent: panic, or log an error. One watch for the whole process; every test looks at it at its end.

use std::fmt::Write;
use std::sync::{Mutex, Once};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
static WATCHING: Once = Once::new();

/// Begins to watch, once in a process.
pub(crate) fn watch() {
    WATCHING.call_once(|| {
        tracing::subscriber::set_global_default(Errors).expect("nobody else watches");
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // Tests panic to say that they failed; a server's threads have names of their own.
            let thread = std::thread::current();
            if thread.name().is_some_and(|name| name.starts_with("codeq-")) {
                SEEN.lock().expect("it is never held while something panics").push(panic.to_string());
            }
            before(panic);
        }));
    });
}

/// Fails if any server of this process has done what none may do.
pub(crate) fn assert_none() {
    let seen = SEEN.lock().expect("it is never held while something panics");
    assert!(seen.is_empty(), "a server has met a fault of its own: {seen:#?}");
}

/// Keeps what is logged as an error.
struct Errors;

impl Subscriber for Errors {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        // A payload is missing, and storage fails, only where a test has seen to it; a server whose storage has failed stops, which no
        // other test overlooks.
        if !["storage.missing", "storage.failed"].iter().any(|event| text.0.contains(&format!("event={event:?}"))) {
            SEEN.lock().expect("it is never held while something panics").push(text.0);
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{field}={value:?} ").expect("a string takes all");
    }
}
