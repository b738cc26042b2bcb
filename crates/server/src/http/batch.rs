//! Batches: items go to their shards together, each shard's in one entry, and come back in their order.

use std::collections::BTreeMap;

use api::Problem;
use base::{Position, ShardId};
use cluster::{Operations, Unavailable};
use queue::outcome::Outcome as Applied;

use crate::http::call::Outcome;
use crate::http::edge::Edge;
use crate::http::error::unavailable;

/// Items of one call.
pub(crate) struct Batch {
    items: Vec<Option<Item>>,
    by_shard: BTreeMap<ShardId, (Operations, Vec<usize>)>,
}

/// What became of one item.
pub(crate) enum Item {
    /// It was refused before the log.
    Refused(Box<Problem>),
    /// It was applied.
    Applied(Position, Applied),
}

impl Batch {
    pub(crate) fn new() -> Batch {
        Batch { items: Vec::new(), by_shard: BTreeMap::new() }
    }

    /// Adds an item that goes to a shard.
    pub(crate) fn push(&mut self, shard: ShardId, encode: impl FnOnce(&mut Vec<u8>)) {
        let (operations, places) = self.by_shard.entry(shard).or_default();
        operations.push(encode);
        places.push(self.items.len());
        self.items.push(None);
    }

    /// Where items go.
    pub(crate) fn shards(&self) -> impl Iterator<Item = ShardId> {
        self.by_shard.keys().copied()
    }

    /// Adds an item that goes nowhere.
    pub(crate) fn refuse(&mut self, problem: Box<Problem>) {
        self.items.push(Some(Item::Refused(problem)));
    }

    /// Submits all items; returns the positions of the shards touched and what became of each item.
    ///
    /// # Errors
    /// No item was applied, as far as is known.
    pub(crate) async fn submit(mut self, edge: &Edge) -> Outcome<(Vec<Position>, Vec<Item>)> {
        let mut positions = Vec::new();
        let mut failure = None;
        // All shards are asked before the first one is waited for.
        let submitted: Vec<_> = self
            .by_shard
            .into_iter()
            .map(|(shard, (operations, places))| (edge.node.submit(shard, operations, None, Some(edge.lane)), places))
            .collect();
        for (applied, places) in submitted {
            match applied.await {
                Ok((position, outcomes)) => {
                    positions.push(position);
                    for (place, outcome) in places.into_iter().zip(outcomes) {
                        self.items[place] = Some(Item::Applied(position, outcome));
                    }
                }
                Err(why) => {
                    for place in places {
                        self.items[place] = Some(Item::Refused(unavailable(why)));
                    }
                    failure = Some(graver(failure, why));
                }
            }
        }
        let tried = self.items.iter().any(|item| matches!(item, Some(Item::Applied(..))));
        let items: Vec<Item> = self.items.into_iter().flatten().collect();
        match failure {
            Some(why) if !tried => Err(unavailable(why)),
            _ => Ok((positions, items)),
        }
    }
}

/// Which of two failures speaks for a whole call: what is not known to have had no effect may have had one.
fn graver(before: Option<Unavailable>, why: Unavailable) -> Unavailable {
    if before == Some(Unavailable::Unknown) { Unavailable::Unknown } else { why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_as_unknown_as_any_of_its_parts() {
        let whole = |parts: &[Unavailable]| parts.iter().fold(None, |before, why| Some(graver(before, *why)));
        use Unavailable::{NoLeader, Overloaded, Unknown};
        for parts in [&[Unknown, Overloaded][..], &[Overloaded, Unknown], &[NoLeader, Unknown, NoLeader]] {
            assert_eq!(whole(parts), Some(Unknown));
        }
        assert_eq!(whole(&[NoLeader, Overloaded]), Some(Overloaded));
    }
}
