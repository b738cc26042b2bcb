//! When a shard wants to be woken although nothing happens.

use base::machine::NextDue;
use base::{Millis, Mono, Stamps};

/// A shard's clocks, as far as deadlines are concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clocks {
    /// Stamps of the last entry proposed.
    pub(crate) proposed: Stamps,
    /// Stamps of the last entry applied.
    pub(crate) applied: Stamps,
    /// What an entry would be stamped with now.
    pub(crate) present: Stamps,
}

/// The moment at which the leader should propose an entry so that something due is handled. Nothing: nothing is due ahead.
///
/// What an entry under way will handle asks for no other one.
pub(crate) fn next_proposal(due: NextDue, clocks: &Clocks, now: Mono) -> Option<Mono> {
    if due.overdue && clocks.proposed == clocks.applied {
        return Some(now);
    }
    let ahead = |time: &u64, proposed: u64| *time > proposed;
    let lease =
        due.lease.filter(|time| ahead(&time.0, clocks.proposed.lease.0)).map(|time| time - clocks.present.lease);
    let schedule = due
        .schedule
        .filter(|time| ahead(&time.0, clocks.proposed.schedule.0))
        .map(|time| time - clocks.present.schedule);
    lease.into_iter().chain(schedule).min().map(|wait: Millis| now + wait)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{LeaseTime, ScheduleTime};

    fn stamps(lease: u64, schedule: u64) -> Stamps {
        Stamps { lease: LeaseTime(lease), schedule: ScheduleTime(schedule) }
    }

    #[test]
    fn the_earlier_of_the_two_clocks_decides() {
        let last = stamps(10, 1_000);
        let clocks = Clocks { proposed: last, applied: last, present: stamps(30, 1_005) };
        let due = NextDue { lease: Some(LeaseTime(50)), schedule: Some(ScheduleTime(1_020)), overdue: false };
        assert_eq!(next_proposal(due, &clocks, Mono(100)), Some(Mono(115)));
        assert_eq!(next_proposal(NextDue::default(), &clocks, Mono(100)), None);
        let past = NextDue { lease: Some(LeaseTime(20)), ..NextDue::default() };
        assert_eq!(next_proposal(past, &clocks, Mono(100)), Some(Mono(100)));
    }

    #[test]
    fn what_an_entry_under_way_will_handle_asks_for_no_other() {
        let clocks = Clocks { proposed: stamps(50, 0), applied: stamps(40, 0), present: stamps(60, 0) };
        let due = NextDue { lease: Some(LeaseTime(50)), schedule: None, overdue: false };
        assert_eq!(next_proposal(due, &clocks, Mono(100)), None);
        let more = NextDue { overdue: true, ..due };
        assert_eq!(next_proposal(more, &clocks, Mono(100)), None);
        let settled = Clocks { applied: stamps(50, 0), ..clocks };
        assert_eq!(next_proposal(more, &settled, Mono(100)), Some(Mono(100)));
    }
}
