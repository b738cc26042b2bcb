//! What holds for every queue without a policy of its own: replicated, so that all replicas apply the same numbers.

use base::Millis;
use base::codec::{Malformed, Reader, Write};

use crate::backoff::{Backoff, BackoffPolicy};

/// Bounds of a lease, on the lease clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseBounds {
    /// Length of a lease whose claim names none.
    pub default: Millis,
    /// Shorter requests get this.
    pub min: Millis,
    /// Longer requests get this.
    pub max: Millis,
}

/// How long finished tasks can be read, on the schedule clock, from their end on. Deletion is by slices of time, so it may come up to
/// a sixteenth later, never earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Completed tasks.
    pub completed: Millis,
    /// Failed and cancelled tasks.
    pub failed: Millis,
    /// Dead-lettered tasks.
    pub dead: Millis,
}

/// The settings of scope *cluster* that queues follow. The leader writes its own into the log when they differ; those in the log rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Lengths of leases.
    pub lease: LeaseBounds,
    /// Deliveries of a task whose creation names no number: 1 to 1,000,000.
    pub max_attempts: u32,
    /// Delays between attempts.
    pub backoff: Backoff,
    /// How long an idempotency key answers with its first task, on the lease clock.
    pub idempotency_window: Millis,
    /// How long finished tasks are kept.
    pub retention: Retention,
    /// Longest text of an error or reason, in bytes; longer ones are cut at a character boundary.
    pub error_bytes_max: usize,
    /// Entries of a task's history at most, up to `history::ENTRIES_MAX`; 0: none are kept.
    pub history_entries_max: u32,
}

/// What holds where nothing else is said, and in logs and checkpoints that say nothing.
const HISTORY_ENTRIES_MAX: u32 = 200;

/// No task is delivered more often.
pub const ATTEMPTS_MAX: u32 = 1_000_000;

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            lease: LeaseBounds {
                default: Millis::from_secs(300),
                min: Millis::from_secs(1),
                max: Millis::from_secs(12 * 3600),
            },
            max_attempts: 5,
            backoff: Backoff {
                policy: BackoffPolicy::ExpFullJitter,
                base: Millis::from_secs(5),
                max: Millis::from_secs(900),
            },
            idempotency_window: Millis::from_secs(24 * 3600),
            retention: Retention {
                completed: Millis::from_secs(24 * 3600),
                failed: Millis::from_secs(7 * 24 * 3600),
                dead: Millis::from_secs(7 * 24 * 3600),
            },
            error_bytes_max: 16 << 10,
            history_entries_max: HISTORY_ENTRIES_MAX,
        }
    }
}

impl LeaseBounds {
    /// The length granted when `asked` is asked for.
    pub fn clamp(&self, asked: Option<Millis>) -> Millis {
        asked.unwrap_or(self.default).clamp(self.min, self.max)
    }
}

impl Policy {
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        let place = BackoffPolicy::NAMES.iter().position(|(policy, _)| *policy == self.backoff.policy);
        bytes.put_u8(place.expect("every policy has a name") as u8);
        for millis in [
            self.lease.default,
            self.lease.min,
            self.lease.max,
            self.backoff.base,
            self.backoff.max,
            self.idempotency_window,
            self.retention.completed,
            self.retention.failed,
            self.retention.dead,
        ] {
            bytes.put_varint(millis.0);
        }
        bytes.put_varint(u64::from(self.max_attempts));
        bytes.put_varint(self.error_bytes_max as u64);
        bytes.put_varint(u64::from(self.history_entries_max));
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Policy, Malformed> {
        let (policy, _) = BackoffPolicy::NAMES.get(usize::from(reader.u8()?)).ok_or(Malformed)?;
        let mut millis = || reader.varint().map(Millis);
        Ok(Policy {
            lease: LeaseBounds { default: millis()?, min: millis()?, max: millis()? },
            backoff: Backoff { policy: *policy, base: millis()?, max: millis()? },
            idempotency_window: millis()?,
            retention: Retention { completed: millis()?, failed: millis()?, dead: millis()? },
            max_attempts: reader.narrow()?,
            error_bytes_max: reader.narrow()?,
            history_entries_max: if reader.is_empty() { HISTORY_ENTRIES_MAX } else { reader.narrow()? },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what was written before histories had a limit reads as the default.
    #[test]
    fn a_policy_without_a_limit_of_histories_has_the_default() {
        let policy = Policy { history_entries_max: 7, max_attempts: 9, ..Policy::default() };
        let mut bytes = Vec::new();
        policy.encode(&mut bytes);
        assert_eq!(Policy::decode(&mut Reader::new(&bytes)), Ok(policy));
        bytes.pop();
        let before = Policy { history_entries_max: HISTORY_ENTRIES_MAX, ..policy };
        assert_eq!(Policy::decode(&mut Reader::new(&bytes)), Ok(before));
    }
}
