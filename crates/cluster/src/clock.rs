//! The only place that reads a clock.

use std::time::{Instant, SystemTime};

use base::{Mono, ScheduleTime};
use replica::Now;

/// This process's clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    pub(crate) fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { mono: Mono(self.start.elapsed().as_millis() as u64), wall: ScheduleTime(wall.as_millis() as u64) }
    }
}
