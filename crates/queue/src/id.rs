//! Task ids and lease tokens: what clients hold in their hands.

use std::fmt;
use std::str::FromStr;

use base::{Incarnation, Index, ShardId};
use siphasher::sip128::{Hasher128, SipHasher24};
use std::hash::Hasher;

/// A task's number within its shard: index of the entry that created it (46 bits), then its rank among that entry's creations
/// (16 bits). Rises with creation, and is never used twice in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskKey(pub u64);

const RANK_BITS: u32 = 16;
const KEY_BITS: u32 = 62;
/// The part of a cluster's incarnation that a task id shows.
const INCARNATION_MASK: u64 = (1 << 48) - 1;

impl TaskKey {
    /// The key of creation number `rank` of the entry at `index`.
    pub fn new(index: Index, rank: u16) -> TaskKey {
        assert!(index.0 < 1 << (KEY_BITS - RANK_BITS), "a log of 2^46 entries has no successor");
        TaskKey(index.0 << RANK_BITS | u64::from(rank))
    }

    /// The entry that created the task.
    pub fn index(self) -> Index {
        Index(self.0 >> RANK_BITS)
    }
}

/// The shard that carries a queue. Part of the format of a data directory: the answer must never change.
///
/// SipHash-2-4 under a fixed key, so that queues spread evenly whatever they are called.
pub fn shard_of(tenant: &str, command: &str, shards: u16) -> ShardId {
    let mut hasher = siphasher::sip::SipHasher24::new();
    hasher.write(tenant.as_bytes());
    hasher.write_u8(0);
    hasher.write(command.as_bytes());
    ShardId((hasher.finish() % u64::from(shards)) as u16)
}

/// A task's id as clients see it: unique for ever, and it names its shard.
///
/// Written as a UUID of version 8 (RFC 9562): 48 bits of the cluster's incarnation, 12 bits of shard, 62 bits of [`TaskKey`], so that
/// the texts of one shard sort by creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId {
    /// The low 48 bits of the incarnation under which the task was created.
    pub incarnation: u64,
    /// The shard that carries the task.
    pub shard: ShardId,
    /// The task's number there.
    pub key: TaskKey,
}

impl TaskId {
    /// The id of a task created under `incarnation`.
    pub fn new(incarnation: Incarnation, shard: ShardId, key: TaskKey) -> TaskId {
        TaskId { incarnation: incarnation.0 & INCARNATION_MASK, shard, key }
    }
}

impl TaskId {
    /// Its text, always 36 characters.
    pub fn text(&self) -> [u8; 36] {
        let high = self.incarnation << 16 | 0x8000 | u64::from(self.shard.0);
        let low = 0x8000_0000_0000_0000 | self.key.0;
        let mut text = [b'-'; 36];
        let bytes = high.to_be_bytes().into_iter().chain(low.to_be_bytes());
        for (place, byte) in [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34].into_iter().zip(bytes) {
            text[place] = HEX[usize::from(byte >> 4)];
            text[place + 1] = HEX[usize::from(byte & 0xf)];
        }
        text
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).expect("hexadecimal digits"))
    }
}

/// The text is not the id of any task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoTaskId;

impl FromStr for TaskId {
    type Err = NoTaskId;

    /// Upper-case digits are accepted: ids are compared as numbers.
    fn from_str(text: &str) -> Result<TaskId, NoTaskId> {
        let bytes = text.as_bytes();
        if bytes.len() != 36 {
            return Err(NoTaskId);
        }
        let mut bits = 0u128;
        for (place, byte) in bytes.iter().enumerate() {
            if matches!(place, 8 | 13 | 18 | 23) {
                if *byte != b'-' {
                    return Err(NoTaskId);
                }
            } else {
                let digit = char::from(*byte).to_digit(16).ok_or(NoTaskId)?;
                bits = bits << 4 | u128::from(digit);
            }
        }
        let (high, low) = ((bits >> 64) as u64, bits as u64);
        if (high >> 12) & 0xf != 8 || low >> KEY_BITS != 0b10 {
            return Err(NoTaskId);
        }
        Ok(TaskId {
            incarnation: high >> 16,
            shard: ShardId((high & 0xfff) as u16),
            key: TaskKey(low & ((1 << KEY_BITS) - 1)),
        })
    }
}

/// Names one grant of one task for ever. Whoever knows it may extend, complete, fail, nack or release that grant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LeaseToken {
    /// Which delivery of the task this is, counted from 1.
    pub attempt: u32,
    /// The entry that granted it.
    pub index: Index,
    /// 128 bits that nobody can guess: a one-way function of the entry's seed and the rank of the grant in it.
    pub suffix: [u8; 16],
}

impl LeaseToken {
    /// The token of grant number `rank` of an entry.
    ///
    /// SipHash-2-4 with 128-bit output is a pseudo-random function under its key, so a known suffix tells nothing about another one of
    /// the same entry. Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF", INDOCRYPT 2012.
    pub fn new(attempt: u32, index: Index, seed: &[u8; 16], rank: u32) -> LeaseToken {
        let mut hasher = SipHasher24::new_with_key(seed);
        hasher.write_u64(index.0);
        hasher.write_u32(rank);
        LeaseToken { attempt, index, suffix: hasher.finish128().as_u128().to_le_bytes() }
    }
}

/// `<attempt>-<index>-<32 hexadecimal digits>`, at most 64 characters; opaque to clients.
impl fmt::Display for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut suffix = [0; 32];
        for (pair, byte) in suffix.chunks_exact_mut(2).zip(self.suffix) {
            pair.copy_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0xf)]]);
        }
        let suffix = std::str::from_utf8(&suffix).expect("hexadecimal digits");
        write!(f, "{}-{}-{suffix}", self.attempt, self.index)
    }
}

/// Without the suffix, which is a secret.
impl fmt::Debug for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseToken({}-{}-…)", self.attempt, self.index)
    }
}

/// The text is not a lease token of any grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoLeaseToken;

impl FromStr for LeaseToken {
    type Err = NoLeaseToken;

    fn from_str(text: &str) -> Result<LeaseToken, NoLeaseToken> {
        let mut parts = text.splitn(3, '-');
        let mut part = || parts.next().ok_or(NoLeaseToken);
        let attempt = part()?.parse().map_err(|_| NoLeaseToken)?;
        let index = Index(part()?.parse().map_err(|_| NoLeaseToken)?);
        let suffix = part()?;
        if suffix.len() != 32 || !suffix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NoLeaseToken);
        }
        let suffix = u128::from_str_radix(suffix, 16).map_err(|_| NoLeaseToken)?;
        Ok(LeaseToken { attempt, index, suffix: suffix.to_be_bytes() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_and_sort_by_creation() {
        let id =
            |index, rank| TaskId::new(Incarnation(0xfedc_ba98_7654_3210), ShardId(5), TaskKey::new(Index(index), rank));
        let texts: Vec<String> =
            [id(2, 0), id(2, 1), id(2, 65535), id(3, 0), id(1 << 45, 7)].iter().map(TaskId::to_string).collect();
        assert_eq!(texts[0], "ba987654-3210-8005-8000-000000020000");
        assert!(texts.is_sorted());
        for text in &texts {
            assert_eq!(text.parse::<TaskId>().map(|id| id.to_string()).as_ref(), Ok(text));
        }
        assert_eq!(texts[1].to_uppercase().parse::<TaskId>(), Ok(id(2, 1)));
    }

    #[test]
    fn queues_keep_their_shard_for_ever() {
        let shards = |command| [1, 4, 64].map(|shards| shard_of("acme", command, shards).0);
        assert_eq!([shards("mail"), shards("thumbnails"), shards("a")], [[0, 3, 27], [0, 3, 63], [0, 1, 1]]);
    }

    #[test]
    fn other_texts_are_no_ids() {
        for bad in [
            "",
            "claim",
            "ba987654-3210-4005-8000-000000020000", // another UUID version
            "ba987654-3210-8005-c000-000000020000", // another UUID variant
            "ba9876543-210-8005-8000-000000020000",
            "ba987654-3210-8005-8000-00000002000g",
            "ba987654-3210-8005-8000-0000000200000",
            "ba987654-3210-8005-8000-00000002000é",
        ] {
            assert_eq!(bad.parse::<TaskId>(), Err(NoTaskId), "{bad:?}");
        }
    }

    #[test]
    fn tokens_read_back_differ_by_rank_and_keep_their_secret_in_debug_output() {
        let token = LeaseToken::new(3, Index(99), &[7; 16], 0);
        assert_eq!(token.to_string().parse(), Ok(token));
        assert_ne!(token, LeaseToken::new(3, Index(99), &[7; 16], 1));
        assert_eq!(format!("{token:?}"), "LeaseToken(3-99-…)");
        for bad in [
            "",
            "1",
            "1-2",
            "1-2-",
            "1-2-00",
            "x-2-00000000000000000000000000000000",
            "1-2-+0000000000000000000000000000000",
        ] {
            assert_eq!(bad.parse::<LeaseToken>(), Err(NoLeaseToken), "{bad:?}");
        }
    }
}
