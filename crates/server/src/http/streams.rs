//! Answers that go on: what happens in the cluster, and the lines of this node's log, until the client goes or the server stops.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use api::{Code, Problem};
use bytes::Bytes;
use cluster::http::{Following, Form, KEEP_ALIVE};
use queue::QueueMachine;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::channel;
use tokio::time::{sleep, timeout};
use tracing::Level;

use crate::http::answer::Answer;
use crate::http::body::Pieces;
use crate::http::call::{Call, Outcome};
use crate::http::edge::{Edge, Shared};
use crate::log_lines::{Watching, log_lines};

/// Streams of one node at a time; more are refused.
pub(crate) const STREAMS_MAX: usize = 32;

/// Pieces that wait for the client.
const PIECES_MAX: usize = 4;

/// How soon a stream notices that the server stops.
const NOTICE: Duration = Duration::from_millis(50);

/// Where the pieces of a stream come from.
pub(crate) trait Source: Send + 'static {
    /// The next piece; nothing: the stream ends.
    fn next(&mut self) -> impl Future<Output = Option<Vec<u8>>> + Send;

    /// Done when more waits for the client than should; never, where nothing does.
    fn overflows(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

impl Source for Following<QueueMachine> {
    async fn next(&mut self) -> Option<Vec<u8>> {
        Some(Following::next(self).await)
    }
}

/// The lines of this node's log.
struct Monitored {
    lines: Watching,
    form: Form,
    /// Lines so far: their ids. Nobody can come back to one.
    count: u64,
}

impl Source for Monitored {
    async fn next(&mut self) -> Option<Vec<u8>> {
        let Ok((line, lost)) = timeout(KEEP_ALIVE, self.lines.next()).await else {
            return Some(self.form.keep_alive().to_vec());
        };
        let mut piece = Vec::new();
        let mut write = |kind, line: &str| {
            self.count += 1;
            self.form.write(kind, &self.count.to_string(), line, &mut piece);
        };
        if lost > 0 {
            write("lost", &format!("{{\"level\":\"warn\",\"event\":\"monitor.lost\",\"lost\":{lost}}}"));
        }
        write("line", &line);
        Some(piece)
    }
}

impl Edge {
    /// What goes on happening, if that is what the client wants.
    pub(crate) fn follow(&self, page: &str, call: &Call) -> Option<Outcome<Answer>> {
        let query = call.head.uri.query().unwrap_or_default();
        let following =
            cluster::http::follow(&self.node, page, query, call.header("accept"), call.header("last-event-id"));
        Some(match following? {
            Ok(following) => self.stream(following.form(), following),
            Err(refusal) => {
                let body: serde_json::Value = serde_json::from_slice(&refusal.body).unwrap_or_default();
                Err(Box::new(Problem::new(Code::InvalidField, body["error"].as_str().unwrap_or_default())))
            }
        })
    }

    /// The lines of this node's log, from now on.
    pub(crate) fn monitor(&self, call: &Call) -> Outcome<Answer> {
        let level = match call.query("level").as_deref() {
            None | Some("info") => Level::INFO,
            Some("debug") => Level::DEBUG,
            Some("warn") => Level::WARN,
            Some("error") => Level::ERROR,
            Some(_) => {
                let problem = Problem::new(Code::InvalidField, "level is debug, info, warn or error");
                return Err(Box::new(problem.field("level")));
            }
        };
        let form = Form::of(call.header("accept"), "follow").unwrap_or(Form::Lines);
        self.stream(form, Monitored { lines: log_lines().watch(level), form, count: 0 })
    }

    fn stream(&self, form: Form, source: impl Source) -> Outcome<Answer> {
        let detail = format!("{STREAMS_MAX} streams go out already; try another node");
        self.stream_in(&self.shared.streams, detail, form, source)
    }

    /// A stream of what happens to tasks.
    pub(crate) fn stream_events(&self, source: impl Source) -> Outcome<Answer> {
        let detail = "limits.eventStreams is reached; try another node".to_owned();
        self.stream_in(&self.shared.event_streams, detail, Form::Events, source)
    }

    fn stream_in(&self, places: &Arc<Semaphore>, full: String, form: Form, mut source: impl Source) -> Outcome<Answer> {
        let Ok(place) = places.clone().try_acquire_owned() else {
            return Err(Box::new(Problem::new(Code::Overloaded, full).retry_after(1000)));
        };
        if self.is_draining() {
            return Err(Box::new(Problem::new(Code::Draining, "the server stops").retry_after(0)));
        }
        let (sender, pieces) = channel(PIECES_MAX);
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let go_on = async {
                loop {
                    let piece = tokio::select! {
                        piece = source.next() => piece,
                        () = sender.closed() => return,
                    };
                    let Some(piece) = piece else { return };
                    tokio::select! {
                        biased;
                        // The client may have gone.
                        sent = sender.send(Ok(Bytes::from(piece))) => if sent.is_err() { return },
                        () = source.overflows() => return,
                    }
                }
            };
            tokio::select! {
                () = go_on => {}
                () = drained(&shared) => {}
            }
            drop(place);
        });
        Ok(Answer::stream(form, Pieces { left: None, pieces, held: None }))
    }
}

async fn drained(shared: &Arc<Shared>) {
    while !shared.draining.load(Ordering::Relaxed) {
        sleep(NOTICE).await;
    }
}
