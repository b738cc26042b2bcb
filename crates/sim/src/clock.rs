//! The clocks of a simulated node, as functions of true time.

use base::{Mono, ScheduleTime};
use replica::Now;

/// What true time is at the beginning, as wall time: 2026-01-01.
pub const EPOCH_MS: u64 = 1_767_225_600_000;

/// Clocks that drift, jump and stand still. True time is in microseconds.
#[derive(Clone, Debug)]
pub struct Clock {
    /// When the process began.
    start: u64,
    /// Time for which it was suspended since, and will be.
    suspended: u64,
    /// When its last suspension ends.
    suspended_until: u64,
    /// Parts per million by which its monotonic clock is fast.
    drift: i64,
    /// The same of the wall clock.
    wall_drift: i64,
    /// How far the wall clock has jumped, in milliseconds.
    jumped: i64,
}

fn scaled(time: u64, ppm: i64) -> u64 {
    let more = i128::from(time) * i128::from(ppm) / 1_000_000;
    (i128::from(time) + more) as u64
}

impl Clock {
    /// Clocks of a process that begins at `start`.
    pub fn new(start: u64, drift: i64, wall_drift: i64) -> Clock {
        Clock { start, suspended: 0, suspended_until: 0, drift, wall_drift, jumped: 0 }
    }

    /// A new process on the same machine.
    pub fn restart(&mut self, start: u64) {
        self.start = start;
        self.suspended = 0;
        self.suspended_until = 0;
    }

    /// The process is suspended from now until then, its monotonic clock with it.
    pub fn suspend(&mut self, time: u64, until: u64) {
        let from = self.suspended_until.max(time);
        self.suspended += until.saturating_sub(from);
        self.suspended_until = until.max(from);
    }

    /// A suspension ends now, if there is one.
    pub fn resume(&mut self, time: u64) {
        self.suspended -= self.suspended_until.saturating_sub(time);
        self.suspended_until = self.suspended_until.min(time);
    }

    /// The wall clock jumps.
    pub fn jump(&mut self, ms: i64) {
        self.jumped += ms;
    }

    /// Both clocks are set right and keep their rates.
    pub fn heal(&mut self) {
        self.jumped = 0;
    }

    /// What the process reads.
    pub fn now(&self, time: u64) -> Now {
        let running = (time - self.start).saturating_sub(self.suspended);
        let wall = EPOCH_MS as i64 + (scaled(time, self.wall_drift) / 1_000) as i64 + self.jumped;
        Now { mono: Mono(scaled(running, self.drift) / 1_000), wall: ScheduleTime(wall.max(0) as u64) }
    }

    /// The first moment at which the monotonic clock shows `mono`.
    pub fn when(&self, mono: Mono) -> u64 {
        let at = |running: u64| scaled(running, self.drift) / 1_000;
        let mut running = scaled(mono.0 * 1_000, -self.drift);
        while at(running) < mono.0 {
            running += 100;
        }
        self.start + self.suspended + running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is suspended for a while stands still for exactly that while, also if suspensions overlap or end sooner than was said.
    #[test]
    fn a_suspended_clock_stands_still() {
        let mut clock = Clock::new(0, 0, 0);
        clock.suspend(1_000_000, 3_000_000);
        clock.suspend(2_000_000, 5_000_000);
        assert_eq!(clock.now(6_000_000).mono, Mono(2_000));
        clock.resume(6_000_000);
        clock.suspend(7_000_000, 20_000_000);
        clock.resume(8_000_000);
        clock.resume(9_000_000);
        assert_eq!(clock.now(10_000_000).mono, Mono(5_000));
    }

    /// Goal: the moment at which a clock is expected to show something is one at which it does.
    #[test]
    fn a_moment_is_one_at_which_the_clock_shows_it() {
        for drift in [-10_000, -1, 0, 1, 10_000] {
            let mut clock = Clock::new(5_000_000, drift, 0);
            clock.suspend(5_000_000, 6_234_567);
            for mono in [0, 1, 999, 123_456, 987_654_321] {
                let when = clock.when(Mono(mono));
                assert!(clock.now(when).mono >= Mono(mono), "drift {drift}, {mono}");
                assert!(clock.now(when).mono <= Mono(mono + 1), "drift {drift}, {mono}");
            }
        }
    }
}
