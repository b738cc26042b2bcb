//! The clocks that a node decides by: stamps of entries, timeouts of consensus and the age of contacts rest on what is read here, and on
//! nothing else. What only waits or measures (how long a client is held, a ping or a write takes) reads the time for itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use base::{Millis, Mono, ScheduleTime};
use replica::Now;

/// The clocks that a node decides by: the machine's, and how far they were moved by hand. Clones are moved together.
#[derive(Clone, Debug)]
pub struct Clock {
    start: Instant,
    /// Milliseconds.
    ahead: Arc<AtomicU64>,
}

/// The machine's; monotonic time counts from now on.
impl Default for Clock {
    fn default() -> Clock {
        Clock { start: Instant::now(), ahead: Arc::default() }
    }
}

impl Clock {
    /// Moves time on, for whoever tests what happens later. Both clocks are then ahead of the machine's by so much more.
    pub fn advance(&self, by: Millis) {
        self.ahead.fetch_add(by.0, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> Now {
        let ahead = self.ahead.load(Ordering::Relaxed);
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mono = self.start.elapsed().as_millis() as u64;
        Now { mono: Mono(mono + ahead), wall: ScheduleTime(wall.as_millis() as u64 + ahead) }
    }
}
