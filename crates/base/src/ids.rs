//! Ids of shards, terms, log indexes and processes, as types that cannot be confused.

use std::fmt;
use std::str::FromStr;

/// One Raft group and the part of the keyspace it carries. 0 to 63 (`limits::SHARDS_MAX`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

/// Raft's term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

/// Index of an entry in a shard's log. The first configuration stands at 1, the first entry at 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Index(pub u64);

impl Index {
    /// The index after this one.
    pub fn next(self) -> Index {
        Index(self.0 + 1)
    }
}

/// A random, never reused, non-zero number: of a data directory (it is the Raft id), or of a cluster (it is part of every task id).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// Whether a node may be called so: 1 to 63 of `A-Z a-z 0-9 . _ -`, and neither `.` nor `..`, for it becomes the name of a folder.
pub fn is_node_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && !matches!(text, "." | "..")
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// A point in a shard's log: what an answer reflects. Written `<shard>:<term>:<index>`, decimal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The shard whose log is meant; positions of different shards are not comparable.
    pub shard: ShardId,
    /// Term of the entry.
    pub term: Term,
    /// Index of the entry; within one shard positions compare by it.
    pub index: Index,
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// 16 hexadecimal digits.
impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.shard, self.term, self.index)
    }
}

/// The text was not `<shard>:<term>:<index>` in decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadPosition;

impl FromStr for Position {
    type Err = BadPosition;

    fn from_str(text: &str) -> Result<Position, BadPosition> {
        fn number<T: FromStr>(part: Option<&str>) -> Result<T, BadPosition> {
            let part = part.ok_or(BadPosition)?;
            if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(BadPosition);
            }
            part.parse().map_err(|_| BadPosition)
        }
        let mut parts = text.split(':');
        let position = Position {
            shard: ShardId(number(parts.next())?),
            term: Term(number(parts.next())?),
            index: Index(number(parts.next())?),
        };
        if parts.next().is_some() { Err(BadPosition) } else { Ok(position) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_reads_back_what_it_writes_and_refuses_the_rest() {
        let position = Position { shard: ShardId(2), term: Term(7), index: Index(998) };
        assert_eq!(position.to_string(), "2:7:998");
        assert_eq!("2:7:998".parse(), Ok(position));
        for bad in ["", "1", "1:2", "1:2:3:4", "1:2:", "-1:2:3", "1: 2:3", "+1:2:3", "65536:1:1", "1:2:x"] {
            assert_eq!(bad.parse::<Position>(), Err(BadPosition), "{bad:?}");
        }
    }
}
