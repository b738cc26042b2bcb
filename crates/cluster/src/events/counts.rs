//! How many elections a node has stood for in a new term, and how they ended: counted by one thread, read by any.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use base::ShardId;
use replica::{Cause, Happening, Role};

use crate::events::story::cause_name;

const CAUSES: [Cause; 4] = [Cause::Timeout, Cause::Retry, Cause::Transfer, Cause::Bootstrap];

/// Elections by cause, of all groups.
#[derive(Debug, Default)]
pub struct ElectionCounts {
    won: [AtomicU64; CAUSES.len()],
    /// Somebody else has won, or nobody.
    lost: [AtomicU64; CAUSES.len()],
}

impl ElectionCounts {
    /// Each cause with its result, `won` or `lost`, and how often that was.
    pub fn all(&self) -> Vec<(&'static str, &'static str, u64)> {
        let of = |result, counts: &[AtomicU64; CAUSES.len()]| {
            let named = CAUSES.iter().zip(counts);
            named.map(|(cause, count)| (cause_name(*cause), result, count.load(Ordering::Relaxed))).collect::<Vec<_>>()
        };
        [of("won", &self.won), of("lost", &self.lost)].concat()
    }

    fn add(counts: &[AtomicU64; CAUSES.len()], cause: Cause) {
        let place = CAUSES.iter().position(|known| *known == cause).expect("all are listed");
        counts[place].fetch_add(1, Ordering::Relaxed);
    }
}

/// What this node stands for election for, by group.
#[derive(Debug, Default)]
pub(crate) struct Standing(BTreeMap<ShardId, Cause>);

impl Standing {
    /// Counts what has ended.
    pub(crate) fn on_told(&mut self, group: ShardId, happening: &Happening, counts: &ElectionCounts) {
        match happening {
            Happening::Candidate { cause, .. } => {
                self.0.insert(group, *cause);
            }
            Happening::Won(won) => {
                self.0.remove(&group);
                ElectionCounts::add(&counts.won, won.cause);
            }
            Happening::ElectionTimeout { .. } | Happening::Role { from: Role::Candidate, .. } => {
                if let Some(cause) = self.0.remove(&group) {
                    ElectionCounts::add(&counts.lost, cause);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::{Index, Term};

    /// Goal: each candidacy counts once, by its own cause, however it is told that it ended.
    #[test]
    fn each_candidacy_counts_once() {
        let (mut standing, counts) = (Standing::default(), ElectionCounts::default());
        let stands = |cause| Happening::Candidate { cause, attempt: 1, needed: 2, last: Index(1), last_term: Term(1) };
        let timeout = || Happening::ElectionTimeout { tally: 1, needed: 2, split: false };
        let mut tell = |happening| standing.on_told(ShardId(0), &happening, &counts);
        tell(Happening::Role { from: Role::Follower, to: Role::Candidate });
        tell(stands(Cause::Timeout));
        tell(timeout());
        tell(Happening::Role { from: Role::Candidate, to: Role::PreCandidate });
        tell(stands(Cause::Retry));
        tell(Happening::Role { from: Role::Candidate, to: Role::Follower });
        tell(Happening::Role { from: Role::Follower, to: Role::PreCandidate });
        let told: Vec<_> = counts.all().into_iter().filter(|(.., count)| *count > 0).collect();
        assert_eq!(told, [("timeout", "lost", 1), ("retry", "lost", 1)]);
    }
}
