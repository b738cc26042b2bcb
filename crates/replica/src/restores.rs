//! Restores: a backup takes the place of all that a running cluster holds, decided by entries of its logs.
//!
//! 1. *Begin* enters the log of group 0. From there on no group takes operations, and its members do not change.
//! 2. Every voter stages its part of the backup beside its data, which is not the log's business.
//! 3. *Commit* enters the log of group 0, or *abort*. Where a group applies a commit, what was staged becomes its state at that entry; the
//!    leaders of the other groups follow what stands in group 0, each with a commit in its own log.
//!
//! Which of commit and abort comes first in the log decides, so a restore happens in every group or in none. What is staged for a restore may
//! be thrown away as soon as group 0 has aborted it, has begun a later one, or the group in question has committed it, and no sooner.

use base::codec::{Malformed, Reader, Write};
use base::{Incarnation, Index};
use consensus::codec::RESTORE;

/// Names a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RestoreId {
    /// The entry of group 0 that has begun it: later ones have higher indexes.
    pub begun: Index,
    /// The incarnation of the cluster from then on.
    pub incarnation: Incarnation,
}

/// An entry about a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreStep {
    /// In group 0: operations are refused from now on. The restore gets this incarnation.
    Begin(Incarnation),
    /// What was staged is the state from now on.
    Commit(RestoreId),
    /// In group 0: everything stays as it was.
    Abort(RestoreId),
}

/// What a group knows of restores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restores {
    /// Group 0: the last one that was begun.
    pub last: Option<RestoreId>,
    /// Group 0: it is neither committed nor aborted.
    pub pending: bool,
    /// The last one that this group has committed.
    pub done: Option<RestoreId>,
    /// How many entries the state has counted that this log does not have; negative: the log has more.
    pub(crate) ahead: i64,
}

impl Restores {
    /// The index that the state machine sees of an entry.
    pub(crate) fn seen(&self, index: Index) -> Index {
        Index(index.0.wrapping_add_signed(self.ahead))
    }

    /// Whether what was staged for this restore can still be needed by a group that knows `own`, where `self` is what group 0 knows.
    pub fn needs(&self, id: RestoreId, own: &Restores) -> bool {
        match self.last {
            Some(last) if last.begun > id.begun => false,
            Some(last) if last == id => self.pending || (self.done == Some(id) && own.done != Some(id)),
            Some(last) => last.begun < id.begun,
            // This node is behind whoever has begun it.
            None => true,
        }
    }

    /// Whether a group that knows `own` may take operations, where `self` is what group 0 knows.
    pub(crate) fn lets_write(&self, own: &Restores) -> bool {
        !self.pending && self.done == own.done
    }

    /// Takes over an entry at `index`. True: what was staged for that restore is the state now.
    pub(crate) fn apply(&mut self, step: RestoreStep, index: Index, is_first_group: bool) -> bool {
        match step {
            RestoreStep::Begin(_) if self.pending => false,
            RestoreStep::Begin(incarnation) => {
                (self.last, self.pending) = (Some(RestoreId { begun: index, incarnation }), true);
                false
            }
            RestoreStep::Abort(id) => {
                self.pending &= self.last != Some(id);
                false
            }
            RestoreStep::Commit(id) => {
                let counts = match is_first_group {
                    true => self.pending && self.last == Some(id),
                    false => self.done.is_none_or(|done| done.begun < id.begun),
                };
                if counts {
                    (self.pending, self.done) = (false, Some(id));
                }
                counts
            }
        }
    }

    pub(crate) fn is_initial(&self) -> bool {
        *self == Restores::default()
    }

    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_u8(u8::from(self.pending));
        put_id(self.last.unwrap_or(NONE), bytes);
        put_id(self.done.unwrap_or(NONE), bytes);
        bytes.put_signed(self.ahead);
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Restores, Malformed> {
        let pending = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(Malformed),
        };
        let (last, done) = (read_id(reader)?, read_id(reader)?);
        let some = |id: RestoreId| (id != NONE).then_some(id);
        Ok(Restores { last: some(last), pending, done: some(done), ahead: reader.signed()? })
    }
}

/// No restore: nothing is begun by the entry 0.
const NONE: RestoreId = RestoreId { begun: Index(0), incarnation: Incarnation(0) };

fn put_id(id: RestoreId, bytes: &mut Vec<u8>) {
    bytes.put_u64(id.begun.0);
    bytes.put_u64(id.incarnation.0);
}

fn read_id(reader: &mut Reader<'_>) -> Result<RestoreId, Malformed> {
    Ok(RestoreId { begun: Index(reader.u64()?), incarnation: Incarnation(reader.u64()?) })
}

const BEGIN: u8 = 0;
const COMMIT: u8 = 1;
const ABORT: u8 = 2;

impl RestoreStep {
    /// The entry.
    pub fn entry(&self) -> Vec<u8> {
        let mut bytes = vec![RESTORE];
        let (kind, id) = match *self {
            RestoreStep::Begin(incarnation) => (BEGIN, RestoreId { begun: Index(0), incarnation }),
            RestoreStep::Commit(id) => (COMMIT, id),
            RestoreStep::Abort(id) => (ABORT, id),
        };
        bytes.put_u8(kind);
        put_id(id, &mut bytes);
        bytes
    }

    /// Reads what follows the kind of the entry.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(bytes: &[u8]) -> Result<RestoreStep, Malformed> {
        let mut reader = Reader::new(bytes);
        let (kind, id) = (reader.u8()?, read_id(&mut reader)?);
        reader.finish()?;
        match kind {
            BEGIN => Ok(RestoreStep::Begin(id.incarnation)),
            COMMIT => Ok(RestoreStep::Commit(id)),
            ABORT => Ok(RestoreStep::Abort(id)),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(begun: u64, incarnation: u64) -> RestoreId {
        RestoreId { begun: Index(begun), incarnation: Incarnation(incarnation) }
    }

    /// Goal: an entry reads back, and nothing else is one.
    #[test]
    fn steps_and_what_they_lead_to_read_back() {
        for step in [RestoreStep::Begin(Incarnation(7)), RestoreStep::Commit(id(3, 7)), RestoreStep::Abort(id(3, 7))] {
            let bytes = step.entry();
            assert_eq!((bytes[0], RestoreStep::decode(&bytes[1..])), (RESTORE, Ok(step)));
            assert!((1..bytes.len()).all(|length| RestoreStep::decode(&bytes[1..length]).is_err()));
        }
        let restores = Restores { last: Some(id(9, 4)), pending: true, done: Some(id(3, 7)), ahead: -12 };
        let mut bytes = Vec::new();
        restores.encode(&mut bytes);
        assert_eq!(Restores::decode(&mut Reader::new(&bytes)), Ok(restores));
        assert_eq!(restores.seen(Index(20)), Index(8));
    }

    /// Goal: the first of commit and abort decides, a repeat changes nothing, and what is staged is kept exactly as long as it may be needed.
    #[test]
    fn the_log_decides_once() {
        let mut first = Restores::default();
        let mut other = Restores::default();
        let a = id(5, 70);
        assert!(first.needs(a, &other), "this node may be behind");
        assert!(!first.apply(RestoreStep::Begin(Incarnation(70)), Index(5), true));
        assert!(!first.apply(RestoreStep::Begin(Incarnation(71)), Index(6), true), "one at a time");
        assert_eq!((first.last, first.pending), (Some(a), true));
        assert!(first.needs(a, &other) && !first.lets_write(&other));
        first.apply(RestoreStep::Abort(a), Index(7), true);
        assert!(!first.apply(RestoreStep::Commit(a), Index(8), true), "it is aborted");
        assert!(first.lets_write(&other) && !first.needs(a, &other));
        let b = id(9, 72);
        first.apply(RestoreStep::Begin(Incarnation(72)), Index(9), true);
        assert!(first.apply(RestoreStep::Commit(b), Index(10), true));
        assert!(!first.apply(RestoreStep::Commit(b), Index(11), true), "once");
        assert!(!first.apply(RestoreStep::Abort(b), Index(12), true) && first.done == Some(b), "too late");
        assert!(!first.needs(b, &first) && first.needs(b, &other), "the other group has still to follow");
        assert!(first.lets_write(&first) && !first.lets_write(&other));
        assert!(other.apply(RestoreStep::Commit(b), Index(3), false));
        assert!(!other.apply(RestoreStep::Commit(a), Index(4), false), "an older one is history");
        assert!(!first.needs(b, &other) && first.lets_write(&other));
    }
}
