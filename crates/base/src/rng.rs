//! Seeded random numbers. The core draws from generators that its driver seeds, so that one seed replays a run.

/// SplitMix64: 64 bits of state, one output per step, passes BigCrush; not for secrets.
///
/// Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
#[derive(Clone, Debug)]
pub struct SplitMix(u64);

impl SplitMix {
    /// A generator that produces the same sequence for the same seed, on every machine.
    pub fn new(seed: u64) -> SplitMix {
        SplitMix(seed)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which must not be zero. The bias is below `bound` / 2^64.
    pub fn below(&mut self, bound: u64) -> u64 {
        scale(self.next_u64(), bound)
    }

    /// True once in `n` draws on average; `n` must not be zero.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Scrambles 64 bits so that each output bit depends on every input bit (SplitMix64's finaliser).
pub fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Scrambles a sequence of numbers into one; the order of the parts matters.
pub fn mix_all(parts: &[u64]) -> u64 {
    parts.iter().fold(0, |hash, part| mix(hash.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mix(*part)))
}

/// Maps 64 uniform bits onto 0..bound. `bound` must not be zero.
pub fn scale(bits: u64, bound: u64) -> u64 {
    assert!(bound > 0, "an empty range has no members to draw");
    ((u128::from(bits) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_published_sequence() {
        // Reference values of SplitMix64 with seed 1234567, as published with the algorithm.
        let mut rng = SplitMix::new(1_234_567);
        let drawn: Vec<u64> = (0..3).map(|_| rng.next_u64()).collect();
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn scaling_stays_below_the_bound() {
        assert_eq!(scale(u64::MAX, 10), 9);
        assert_eq!(scale(0, 10), 0);
    }
}
