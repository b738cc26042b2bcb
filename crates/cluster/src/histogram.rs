//! How often values of what size came: counted by one thread, read by any.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of durations, in microseconds: from a tenth of a millisecond to five seconds.
const DURATIONS: &[u64] = &[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000,
];

/// Upper bounds of times in which nobody could write, in microseconds: from a tenth of a second to half a minute.
const OUTAGES: &[u64] =
    &[100_000, 250_000, 500_000, 1_000_000, 2_000_000, 3_000_000, 5_000_000, 10_000_000, 30_000_000];

/// Upper bounds of counts.
const COUNTS: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 4_096, 16_384];

/// Counts of values by size.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    /// One more than bounds: what is above them all.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    fn new(bounds: &'static [u64]) -> Histogram {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, counts, sum: AtomicU64::new(0) }
    }

    /// Of durations, recorded in microseconds.
    pub(crate) fn of_durations() -> Histogram {
        Histogram::new(DURATIONS)
    }

    /// Of times in which nobody could write, recorded in microseconds.
    pub(crate) fn of_outages() -> Histogram {
        Histogram::new(OUTAGES)
    }

    /// Of counts.
    pub(crate) fn of_counts() -> Histogram {
        Histogram::new(COUNTS)
    }

    pub(crate) fn record(&self, value: u64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    pub(crate) fn record_duration(&self, took: Duration) {
        self.record(took.as_micros() as u64);
    }

    /// How many values were at most each bound, from the smallest to the largest.
    pub fn up_to_bounds(&self) -> Vec<(u64, u64)> {
        let mut below = 0;
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let mut add = |count| {
            below += count;
            below
        };
        self.bounds.iter().copied().zip(counts.map(&mut add)).collect()
    }

    /// All values: how many, and their sum.
    pub fn totals(&self) -> (u64, u64) {
        let count = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        (count, self.sum.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_count_up_to_their_bound() {
        let histogram = Histogram::of_counts();
        for value in [0, 1, 2, 3, 16_384, 16_385] {
            histogram.record(value);
        }
        let up_to = histogram.up_to_bounds();
        assert_eq!(up_to[..4], [(1, 2), (2, 3), (4, 4), (8, 4)]);
        assert_eq!(up_to.last(), Some(&(16_384, 5)));
        assert_eq!(histogram.totals(), (6, 1 + 2 + 3 + 16_384 + 16_385));
    }
}
