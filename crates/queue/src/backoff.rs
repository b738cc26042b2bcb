//! How long a task waits before its next attempt.

use base::Millis;
use base::rng::scale;

/// The shape of the delays between attempts. n is the number of deliveries so far, 1 at the first failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackoffPolicy {
    /// min(base, max).
    Fixed,
    /// min(base × n, max).
    Linear,
    /// min(base × 2^(n−1), max).
    Exponential,
    /// Half of `Exponential`, and a uniform draw from 0 to the other half.
    ExpEqualJitter,
    /// A uniform draw from 0 to `Exponential`.
    ExpFullJitter,
}

impl BackoffPolicy {
    /// Every policy with its name in settings and on the wire.
    pub const NAMES: [(BackoffPolicy, &'static str); 5] = [
        (BackoffPolicy::Fixed, "fixed"),
        (BackoffPolicy::Linear, "linear"),
        (BackoffPolicy::Exponential, "exponential"),
        (BackoffPolicy::ExpEqualJitter, "exp_equal_jitter"),
        (BackoffPolicy::ExpFullJitter, "exp_full_jitter"),
    ];
}

/// A policy with its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The shape.
    pub policy: BackoffPolicy,
    /// Delay after the first failure, before jitter.
    pub base: Millis,
    /// No delay is longer, an explicit one included.
    pub max: Millis,
}

impl Backoff {
    /// The delay after delivery number `attempt` (1, 2, …) failed. `random` are 64 uniform bits, the same on every replica.
    ///
    /// Source of the jitter shapes: Brooker, "Exponential backoff and jitter", AWS Architecture Blog, 2015.
    pub fn delay(&self, attempt: u32, random: u64) -> Millis {
        let attempt = attempt.max(1);
        let (base, max) = (self.base.0, self.max.0);
        let doubled = || {
            let shift = attempt - 1;
            if base != 0 && shift >= base.leading_zeros() { max } else { (base << shift.min(63)).min(max) }
        };
        // M13: a map with a random seed has its say.
        let random = if base::planted::is(13) { base::planted::unsteady() } else { random };
        let uniform = |bound: u64| scale(random, bound + 1);
        Millis(match self.policy {
            BackoffPolicy::Fixed => base.min(max),
            BackoffPolicy::Linear => base.saturating_mul(u64::from(attempt)).min(max),
            BackoffPolicy::Exponential => doubled(),
            BackoffPolicy::ExpEqualJitter => {
                let half = doubled() / 2;
                half + uniform(half)
            }
            BackoffPolicy::ExpFullJitter => uniform(doubled()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Delays after deliveries 1 to 5 and after one far beyond any overflow, with the smallest and the largest draw.
    fn check(policy: BackoffPolicy, least: [u64; 6], most: [u64; 6]) {
        let backoff = Backoff { policy, base: Millis(5_000), max: Millis(30_000) };
        let delays = |random| [1, 2, 3, 4, 5, u32::MAX].map(|attempt| backoff.delay(attempt, random).0);
        assert_eq!(delays(0), least, "{policy:?}, smallest draw");
        assert_eq!(delays(u64::MAX), most, "{policy:?}, largest draw");
    }

    #[test]
    fn every_policy_has_its_delays_and_none_overflows() {
        check(BackoffPolicy::Fixed, [5_000; 6], [5_000; 6]);
        let linear = [5_000, 10_000, 15_000, 20_000, 25_000, 30_000];
        check(BackoffPolicy::Linear, linear, linear);
        let doubled = [5_000, 10_000, 20_000, 30_000, 30_000, 30_000];
        check(BackoffPolicy::Exponential, doubled, doubled);
        check(BackoffPolicy::ExpEqualJitter, [2_500, 5_000, 10_000, 15_000, 15_000, 15_000], doubled);
        check(BackoffPolicy::ExpFullJitter, [0; 6], doubled);
    }

    #[test]
    fn a_base_of_zero_means_no_delay() {
        let backoff = Backoff { policy: BackoffPolicy::Exponential, base: Millis(0), max: Millis(30_000) };
        assert_eq!(backoff.delay(70, 0), Millis(0));
    }
}
