//! The lines of this process's log, for whoever watches it from elsewhere: at a level of the watcher's own, finer perhaps than the log's.
//!
//! As long as nobody watches, nothing is made into lines for it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tracing::Level;
use tracing::level_filters::LevelFilter;

/// Lines that wait for one watcher; more are dropped and counted.
const LINES_MAX: usize = 1_024;

/// The log's lines.
pub struct LogLines(Mutex<Watchers>);

struct Watchers {
    next: u64,
    all: Vec<Watcher>,
}

struct Watcher {
    number: u64,
    level: Level,
    lines: Sender<String>,
    lost: std::sync::Arc<AtomicU64>,
}

/// Lines as they come, until this is dropped.
pub(crate) struct Watching {
    number: u64,
    lines: Receiver<String>,
    lost: std::sync::Arc<AtomicU64>,
}

/// A process has one log.
static LINES: LogLines = LogLines(Mutex::new(Watchers { next: 0, all: Vec::new() }));

/// The lines of this process's log.
pub fn log_lines() -> &'static LogLines {
    &LINES
}

impl LogLines {
    fn lock(&self) -> std::sync::MutexGuard<'_, Watchers> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }

    /// The finest level that somebody watches at.
    pub fn level(&self) -> LevelFilter {
        let finest = self.lock().all.iter().map(|watcher| watcher.level).max();
        finest.map_or(LevelFilter::OFF, LevelFilter::from_level)
    }

    /// Hands a line of this level to those who watch at it.
    pub fn put(&self, level: Level, line: &str) {
        for watcher in self.lock().all.iter().filter(|watcher| level <= watcher.level) {
            if watcher.lines.try_send(line.to_owned()).is_err() {
                watcher.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Watches from now on.
    pub(crate) fn watch(&self, level: Level) -> Watching {
        let (lines, receiver) = channel(LINES_MAX);
        let lost = std::sync::Arc::new(AtomicU64::new(0));
        let mut watchers = self.lock();
        watchers.next += 1;
        let number = watchers.next;
        watchers.all.push(Watcher { number, level, lines, lost: lost.clone() });
        drop(watchers);
        // What is told at which level is remembered at each place that tells something.
        tracing::callsite::rebuild_interest_cache();
        Watching { number, lines: receiver, lost }
    }
}

impl Watching {
    /// The next line, and how many were lost since the last one was taken.
    pub(crate) async fn next(&mut self) -> (String, u64) {
        let line = self.lines.recv().await.expect("the sender goes when this is dropped");
        (line, self.lost.swap(0, Ordering::Relaxed))
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        LINES.lock().all.retain(|watcher| watcher.number != self.number);
        tracing::callsite::rebuild_interest_cache();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: each watcher sees its own level and what is coarser, what it does not take in time is counted, and who has gone costs nothing.
    #[tokio::test]
    async fn watchers_see_their_level_and_hear_of_what_they_missed() {
        let lines = log_lines();
        let (mut coarse, mut fine) = (lines.watch(Level::INFO), lines.watch(Level::DEBUG));
        assert_eq!(lines.level(), LevelFilter::DEBUG);
        lines.put(Level::DEBUG, "fine");
        lines.put(Level::WARN, "coarse");
        assert_eq!(coarse.next().await, ("coarse".into(), 0));
        assert_eq!(fine.next().await, ("fine".into(), 0));
        for _ in 0..LINES_MAX + 2 {
            lines.put(Level::INFO, "many");
        }
        assert_eq!(coarse.next().await, ("many".into(), 2));
        drop(fine);
        assert_eq!(lines.level(), LevelFilter::INFO);
        drop(coarse);
        assert_eq!(lines.level(), LevelFilter::OFF);
    }
}
