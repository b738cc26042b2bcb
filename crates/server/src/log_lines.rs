//! The lines of this process's log, for whoever watches it from elsewhere: at a level of the watcher's own, finer perhaps than the log's.
//!
//! The last lines of level info and coarser are kept, for whoever wants to know what has happened. As long as nobody watches, nothing finer is
//! made into lines.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tracing::Level;
use tracing::level_filters::LevelFilter;

/// Lines that wait for one watcher; more are dropped and counted.
const LINES_MAX: usize = 1_024;

/// Bytes of lines that are kept; older lines are forgotten.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// The log's lines.
pub struct LogLines(Mutex<Watchers>);

struct Watchers {
    next: u64,
    all: Vec<Watcher>,
    kept: VecDeque<String>,
    kept_bytes: usize,
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
static LINES: LogLines =
    LogLines(Mutex::new(Watchers { next: 0, all: Vec::new(), kept: VecDeque::new(), kept_bytes: 0 }));

/// The lines of this process's log.
pub fn log_lines() -> &'static LogLines {
    &LINES
}

impl LogLines {
    fn lock(&self) -> std::sync::MutexGuard<'_, Watchers> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }

    /// The finest level that lines are wanted of: info, or finer if somebody watches.
    pub fn level(&self) -> LevelFilter {
        let finest = self.lock().all.iter().map(|watcher| watcher.level).max();
        LevelFilter::from_level(finest.unwrap_or(Level::INFO).max(Level::INFO))
    }

    /// Keeps a line of this level, and hands it to those who watch at it.
    pub fn put(&self, level: Level, line: &str) {
        let mut lines = self.lock();
        if level <= Level::INFO {
            lines.keep(line);
        }
        for watcher in lines.all.iter().filter(|watcher| level <= watcher.level) {
            if watcher.lines.try_send(line.to_owned()).is_err() {
                watcher.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The last lines, the oldest first, each with its end.
    pub(crate) fn kept(&self) -> Vec<u8> {
        self.lock().kept.iter().flat_map(|line| [line.as_bytes(), b"\n"]).flatten().copied().collect()
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

impl Watchers {
    fn keep(&mut self, line: &str) {
        self.kept.push_back(line.to_owned());
        self.kept_bytes += line.len();
        while self.kept_bytes > KEPT_BYTES_MAX {
            self.kept_bytes -= self.kept.pop_front().map_or(0, |oldest| oldest.len());
        }
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

    /// Goal: each watcher sees its own level and what is coarser, what it does not take in time is counted, and who has gone costs
    /// nothing. The last lines are kept, and no more of them than there is room for.
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
        drop((coarse, fine));
        assert_eq!(lines.level(), LevelFilter::INFO);
        let kept = String::from_utf8(lines.kept()).expect("lines are text");
        assert!(kept.starts_with("coarse\nmany\n") && !kept.contains("fine"), "{kept}");
        (0..KEPT_BYTES_MAX / 1_000).for_each(|_| lines.put(Level::INFO, &"x".repeat(1_000)));
        lines.put(Level::ERROR, "last");
        let kept = lines.kept();
        assert!(kept.ends_with(b"last\n") && !kept.starts_with(b"coarse") && kept.len() < 2 * KEPT_BYTES_MAX);
    }
}
