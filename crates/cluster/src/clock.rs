//! The clocks that a node decides by: stamps of entries, timeouts of consensus and the age of contacts rest on what is read here, and on
//! nothing else. What only waits or measures (how long a client is held, a ping or a write takes) reads the time for itself.

use std::time::{Instant, SystemTime};

use base::{Mono, ScheduleTime};
use replica::Now;

/// This process's clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    /// Monotonic time counts from now on.
    pub(crate) fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    pub(crate) fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { mono: Mono(self.start.elapsed().as_millis() as u64), wall: ScheduleTime(wall.as_millis() as u64) }
    }
}
