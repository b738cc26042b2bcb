//! Batches: items go to their shards together, each shard's in one entry, and come back in their order.

use std::collections::BTreeMap;

use api::Problem;
use api::json::Writer;
use base::{Position, ShardId};
use cluster::{Operations, Unavailable};
use queue::outcome::Outcome as Applied;

use crate::http::answer::Answer;
use crate::http::call::Outcome;
use crate::http::edge::Edge;
use crate::http::error::unavailable;

/// Items of one call, each with what its answer needs to know of it.
pub(crate) struct Batch<S> {
    /// An error: it goes nowhere.
    items: Vec<Outcome<S>>,
    by_shard: BTreeMap<ShardId, (Operations, Vec<usize>)>,
}

/// What became of one item.
pub(crate) enum Item<S> {
    /// It was refused before the log, or it is not known what became of it.
    Refused(Box<Problem>),
    /// It was applied.
    Applied(Position, Applied, S),
}

impl<S> Batch<S> {
    pub(crate) fn new() -> Batch<S> {
        Batch { items: Vec::new(), by_shard: BTreeMap::new() }
    }

    /// Adds an item that goes to a shard.
    pub(crate) fn push(&mut self, shard: ShardId, item: S, encode: impl FnOnce(&S, &mut Vec<u8>)) {
        let (operations, places) = self.by_shard.entry(shard).or_default();
        operations.push(|bytes| encode(&item, bytes));
        places.push(self.items.len());
        self.items.push(Ok(item));
    }

    /// Where items go.
    pub(crate) fn shards(&self) -> impl Iterator<Item = ShardId> {
        self.by_shard.keys().copied()
    }

    /// Adds an item that goes nowhere.
    pub(crate) fn refuse(&mut self, problem: Box<Problem>) {
        self.items.push(Err(problem));
    }

    /// Submits all items; returns the positions of the shards touched and what became of each item.
    ///
    /// # Errors
    /// No item was applied, as far as is known.
    pub(crate) async fn submit(self, edge: &Edge) -> Outcome<(Vec<Position>, Vec<Item<S>>)> {
        let mut positions = Vec::new();
        let mut failure = None;
        let mut applied: Vec<Result<(Position, Applied), Unavailable>> = Vec::new();
        applied.resize_with(self.items.len(), || Err(Unavailable::Unknown));
        // All shards are asked before the first one is waited for.
        let submitted: Vec<_> = self
            .by_shard
            .into_iter()
            .map(|(shard, (operations, places))| (edge.node.submit(shard, operations, None, Some(edge.lane)), places))
            .collect();
        for (outcome, places) in submitted {
            match outcome.await {
                Ok((position, outcomes)) => {
                    positions.push(position);
                    for (place, outcome) in places.into_iter().zip(outcomes) {
                        applied[place] = Ok((position, outcome));
                    }
                }
                Err(why) => {
                    places.into_iter().for_each(|place| applied[place] = Err(why));
                    failure = Some(graver(failure, why));
                }
            }
        }
        if let Some(why) = failure.filter(|_| applied.iter().all(Result::is_err)) {
            return Err(unavailable(why));
        }
        let items = self.items.into_iter().zip(applied).map(|(item, applied)| match (item, applied) {
            (Ok(item), Ok((position, applied))) => Item::Applied(position, applied, item),
            (Ok(_), Err(why)) => Item::Refused(unavailable(why)),
            (Err(problem), _) => Item::Refused(problem),
        });
        Ok((positions, items.collect()))
    }
}

/// The answer to a batch: `results` with an object for each item, in their order. `begin` writes what each has, by its place; `write` what those
/// have that were not refused.
pub(crate) fn results<T>(
    answered: &[Outcome<T>],
    begin: impl Fn(usize, &mut Writer<'_>),
    write: impl Fn(&T, &mut Writer<'_>),
) -> Answer {
    Answer::json(200, |out| {
        let mut body = Writer::object(out);
        body.value("results", |out| {
            let mut list = Writer::array(out);
            for (place, answered) in answered.iter().enumerate() {
                list.element(|out| {
                    let mut item = Writer::object(out);
                    begin(place, &mut item);
                    match answered {
                        Ok(answered) => write(answered, &mut item),
                        Err(problem) => problem.write_item(&mut item),
                    }
                    item.end();
                });
            }
            list.end();
        });
        body.end();
    })
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
