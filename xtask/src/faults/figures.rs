//! What is measured: moments at which writes were acknowledged, and durations over many rounds.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::faults::cluster::wait_until;
use crate::load::{Shared, Write};

/// The writes that are acknowledged from some moment on.
pub(super) struct Watch<'a> {
    shared: &'a Shared,
    writes: Vec<Write>,
}

impl<'a> Watch<'a> {
    /// Watches from now on.
    pub(super) fn begin(shared: &'a Shared) -> Watch<'a> {
        shared.take_writes();
        Watch { shared, writes: Vec::new() }
    }

    fn look(&mut self) {
        self.writes.extend(self.shared.take_writes());
    }

    /// Waits for the first acknowledgement of a write that was sent after a moment, and says how long after it came.
    ///
    /// # Errors
    /// There is none for too long.
    pub(super) fn first_after(&mut self, moment: Instant) -> Result<Duration> {
        let mut first = None;
        wait_until("an acknowledged write", || {
            self.look();
            let sent_after = self.writes.iter().filter(|write| write.sent >= moment);
            first = sent_after.map(|write| write.acknowledged - moment).min();
            Ok(first.is_some())
        })?;
        Ok(first.unwrap_or_default())
    }

    /// The longest time without an acknowledgement between two moments.
    pub(super) fn longest_gap(&mut self, from: Instant, to: Instant) -> Duration {
        self.look();
        let mut moments: Vec<Instant> = self.writes.iter().map(|write| write.acknowledged).collect();
        moments.retain(|moment| (from..=to).contains(moment));
        moments.extend([from, to]);
        moments.sort_unstable();
        moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Acknowledged writes in a second, between two moments.
    pub(super) fn rate(&mut self, from: Instant, to: Instant) -> f64 {
        self.look();
        let count = self.writes.iter().filter(|write| (from..=to).contains(&write.acknowledged)).count();
        count as f64 / (to - from).as_secs_f64()
    }
}

/// Durations of one kind, one from each round.
#[derive(Default)]
pub(super) struct Figures(Vec<Duration>);

impl Figures {
    pub(super) fn add(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// All of them, in their order.
    pub(super) fn into_all(self) -> Vec<Duration> {
        self.0
    }

    /// How many took longer.
    pub(super) fn longer_than(&self, longest: Duration) -> usize {
        self.0.iter().filter(|took| **took > longest).count()
    }

    /// The smallest one that this share of all does not exceed.
    fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = [50, 99, 100].map(|percent| self.percentile(percent).as_millis());
        write!(f, "p50 {p50} ms, p99 {p99} ms, max {max} ms of {} rounds", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: percentiles are of the nearest rank, so a single slow round in a hundred is the maximum and not the 99th.
    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let figures = |count: u64| Figures((1..=count).rev().map(Duration::from_millis).collect());
        assert_eq!(figures(100).to_string(), "p50 50 ms, p99 99 ms, max 100 ms of 100 rounds");
        assert_eq!(figures(1).to_string(), "p50 1 ms, p99 1 ms, max 1 ms of 1 rounds");
        assert_eq!(figures(0).to_string(), "p50 0 ms, p99 0 ms, max 0 ms of 0 rounds");
    }

    /// Goal: a gap is found inside, at the beginning and at the end of what is looked at.
    #[test]
    fn the_longest_gap_counts_both_ends() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let shared = Shared::new(1, &[]);
        let gap = |moments: &[u64]| {
            let writes = moments.iter().map(|ms| Write { sent: start, acknowledged: at(*ms) }).collect();
            Watch { shared: &shared, writes }.longest_gap(at(100), at(200)).as_millis()
        };
        assert_eq!(gap(&[110, 150, 190]), 40);
        assert_eq!(gap(&[90, 180, 190, 250]), 80);
        assert_eq!(gap(&[110]), 90);
        assert_eq!(gap(&[]), 100);
    }
}
