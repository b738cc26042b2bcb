//! The two clocks that a leader stamps on entries.
//!
//! The lease clock is elapsed time: a leader goes on from the last value it knows, and never looks at its wall clock. The schedule clock follows
//! the wall clock at a rate of 0.9 to 1.1, so that a jump of the wall clock becomes a slow drift; one step forward is allowed in the
//! first entry of a term, which is how an outage is counted.

use base::{LeaseTime, Millis, Mono, ScheduleTime, Stamps, planted};

use crate::event::Now;

/// After this long the schedule clock's rate is measured anew.
const ANCHOR: Millis = Millis(1_000);

/// Both clocks of one shard, on the node that leads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamper {
    lease: (LeaseTime, Mono),
    schedule: (ScheduleTime, Mono),
    last: Stamps,
}

impl Stamper {
    /// Begins a term: goes on from the stamps applied last, which this process knows since `heard`. What has passed since then has passed
    /// for whoever holds a lease, too; while no process was there to hear them, no time passes.
    pub(crate) fn begin_term(applied: Stamps, heard: Mono, now: Now) -> Stamper {
        let schedule = applied.schedule.max(now.wall);
        // M17: a new leader's lease clock begins with its wall clock.
        let lease = if planted::is(17) { LeaseTime(now.wall.0) } else { applied.lease + (now.mono - heard) };
        let last = Stamps { lease, schedule };
        Stamper { lease: (lease, now.mono), schedule: (schedule, now.mono), last }
    }

    /// The clocks' present readings. They never go back.
    pub(crate) fn stamp(&mut self, now: Now) -> Stamps {
        let (lease, since) = self.lease;
        // M26: leases run on the wall clock.
        let lease = if planted::is(26) { LeaseTime(now.wall.0) } else { lease + (now.mono - since) };
        let (anchor, since) = self.schedule;
        let elapsed = now.mono - since;
        let slowest = anchor + Millis(elapsed.0 - elapsed.0 / 10);
        let fastest = anchor + Millis(elapsed.0 + elapsed.0 / 10);
        let schedule = now.wall.clamp(slowest, fastest);
        self.last = Stamps { lease: lease.max(self.last.lease), schedule: schedule.max(self.last.schedule) };
        if elapsed >= ANCHOR {
            self.schedule = (self.last.schedule, now.mono);
        }
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(mono: u64, wall: u64) -> Now {
        Now { mono: Mono(mono), wall: ScheduleTime(wall) }
    }

    fn applied(lease: u64, schedule: u64) -> Stamps {
        Stamps { lease: LeaseTime(lease), schedule: ScheduleTime(schedule) }
    }

    #[test]
    fn a_term_goes_on_from_the_last_lease_stamp_and_steps_to_the_wall_clock() {
        let mut stamper = Stamper::begin_term(applied(480, 10_000), Mono(87), now(107, 90_000));
        assert_eq!(stamper.stamp(now(107, 90_000)), applied(500, 90_000));
        assert_eq!(stamper.stamp(now(117, 90_010)), applied(510, 90_010));
    }

    #[test]
    fn a_wall_clock_that_is_behind_is_caught_up_with_slowly() {
        let mut stamper = Stamper::begin_term(applied(0, 10_000), Mono(0), now(0, 4_000));
        assert_eq!(stamper.stamp(now(100, 4_100)).schedule, ScheduleTime(10_090));
        assert_eq!(stamper.stamp(now(1_000, 5_000)).schedule, ScheduleTime(10_900));
        assert_eq!(stamper.stamp(now(2_000, 6_000)).schedule, ScheduleTime(11_800));
    }

    #[test]
    fn a_jump_of_the_wall_clock_moves_no_lease_and_the_schedule_clock_by_a_tenth_at_most() {
        let mut stamper = Stamper::begin_term(applied(0, 1_000), Mono(0), now(0, 1_000));
        let hour = 3_600_000;
        let mut last = Stamps::default();
        for second in 1..=10 {
            last = stamper.stamp(now(second * 1_000, 1_000 + second * 1_000 + hour));
        }
        assert_eq!(last, applied(10_000, 12_000));
        for second in 11..=20 {
            last = stamper.stamp(now(second * 1_000, 1_000 + second * 1_000 - 1_000));
        }
        assert_eq!(last, applied(20_000, 21_000), "and drifts back at the same rate");
    }

    #[test]
    fn the_clocks_never_go_back_and_keep_their_rate_when_they_are_read_often() {
        let mut stamper = Stamper::begin_term(applied(0, 1_000), Mono(0), now(0, 1_000));
        let mut before = Stamps::default();
        for tick in 0..50_000u64 {
            let stamps = stamper.stamp(now(tick / 5, 1_000 + tick / 5));
            assert!(stamps.lease >= before.lease && stamps.schedule >= before.schedule);
            before = stamps;
        }
        assert_eq!(before, applied(9_999, 10_999));
    }
}
