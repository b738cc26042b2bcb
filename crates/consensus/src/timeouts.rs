//! Election timeouts from a seed.
//!
//! The `raft` crate draws its timeout from the thread's generator at construction and whenever a role or term changes. The draw may repeat
//! the value before, so reacting to a changed value is not enough: the timeout is set after every call that can step.

use base::rng::{mix_all, scale};

/// What an election timeout is a function of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    pub(crate) seed: u64,
    pub(crate) shard: u64,
    /// The node's Raft id.
    pub(crate) id: u64,
    pub(crate) term: u64,
    /// Campaigns begun so far, so that two nodes that drew alike do not collide for ever.
    pub(crate) campaigns: u64,
}

/// Ticks until the next campaign: `min` to 2 × `min` - 1.
pub(crate) fn election_ticks(draw: &Draw, min: usize) -> usize {
    let bits = mix_all(&[draw.seed, draw.shard, draw.id, draw.term, draw.campaigns]);
    min + scale(bits, min as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_stays_in_its_range_and_depends_on_every_part() {
        let draw = Draw { seed: 1, shard: 2, id: 3, term: 4, campaigns: 5 };
        let others = [
            Draw { seed: 9, ..draw },
            Draw { shard: 9, ..draw },
            Draw { id: 9, ..draw },
            Draw { term: 9, ..draw },
            Draw { campaigns: 9, ..draw },
        ];
        let min = 1_000_000;
        let ticks = election_ticks(&draw, min);
        assert!((min..2 * min).contains(&ticks));
        assert_eq!(ticks, election_ticks(&draw, min));
        assert!(others.iter().all(|other| election_ticks(other, min) != ticks));
    }
}
