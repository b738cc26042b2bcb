//! Time as values: durations and readings of three different clocks that the types keep apart.
//!
//! The *lease clock* counts elapsed time in which some node led the shard; leases, backoff, relative delays and idempotency windows
//! run on it. The *schedule clock* is wall time; absolute run-at, retention and times shown to people run on it. Both are
//! stamped on each log entry by its leader. The *monotonic clock* belongs to one process and never enters the log.

use std::ops::{Add, Sub};

/// A duration in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

/// A reading of a shard's lease clock: milliseconds since the shard began, outages of the whole cluster not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseTime(pub u64);

/// A reading of a shard's schedule clock: milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScheduleTime(pub u64);

/// A reading of this process's monotonic clock: milliseconds since some fixed moment before the process began to serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub u64);

/// The two clock readings a leader writes into an entry. Apply forces both to be non-decreasing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamps {
    /// The lease clock.
    pub lease: LeaseTime,
    /// The schedule clock.
    pub schedule: ScheduleTime,
}

impl Millis {
    /// Longest representable duration that still adds to any clock reading without overflow: about 292,000 years.
    pub const MAX: Millis = Millis(u64::MAX / 1024);

    /// A duration of whole seconds.
    pub const fn from_secs(seconds: u64) -> Millis {
        Millis(seconds * 1000)
    }

    /// The same duration for the standard library.
    pub const fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
}

impl Add for Millis {
    type Output = Millis;
    fn add(self, other: Millis) -> Millis {
        Millis(self.0.saturating_add(other.0))
    }
}

macro_rules! reading {
    ($clock:ident) => {
        impl Add<Millis> for $clock {
            type Output = $clock;
            fn add(self, duration: Millis) -> $clock {
                $clock(self.0.saturating_add(duration.0))
            }
        }

        /// Elapsed time, zero if `earlier` is later.
        impl Sub for $clock {
            type Output = Millis;
            fn sub(self, earlier: $clock) -> Millis {
                Millis(self.0.saturating_sub(earlier.0))
            }
        }
    };
}

reading!(LeaseTime);
reading!(ScheduleTime);
reading!(Mono);
