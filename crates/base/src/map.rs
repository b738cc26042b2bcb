//! Maps for look-ups by numbers of our own making. They hash without a random seed, so that two replicas behave alike, and they are not
//! to be iterated where replicas must agree. Keys chosen by clients belong into a `BTreeMap`: nothing here resists chosen keys.

use std::hash::{BuildHasherDefault, Hasher};

/// A map from numbers that no client chooses.
pub type IdMap<V> = hashbrown::HashMap<u64, V, BuildHasherDefault<IdHasher>>;

/// A map from digests: the key is uniformly distributed already, so its first bytes serve as the hash.
pub type DigestMap<V> = hashbrown::HashMap<[u8; 16], V, BuildHasherDefault<IdHasher>>;

/// Spreads one 64-bit number over the table.
#[derive(Clone, Copy, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_usize(&mut self, _length: usize) {
        // Keys are of fixed size; the length prefix of an array adds nothing.
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = crate::rng::mix(self.0 ^ key);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
