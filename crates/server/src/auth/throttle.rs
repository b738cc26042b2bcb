//! Slows down whoever tries tokens: after 50 refusals within a minute an address waits for a minute. Tokens that were accepted within the
//! last minute, from wherever, still pass: who has one tries none.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Refusals within a minute that block an address.
const REFUSALS_MAX: u32 = 50;
/// How long refusals count, an address is blocked, and a token accepted meanwhile still passes.
const MINUTE: Duration = Duration::from_secs(60);
/// Addresses remembered; more forget the one that was refused longest ago.
const ADDRESSES_MAX: usize = 10_000;
/// Accepted tokens remembered, at most; a token may take another one's place.
const ACCEPTED_MAX: usize = 1_024;

/// Refusals by address.
#[derive(Debug)]
pub(crate) struct Throttle {
    /// How many addresses are remembered: none is the common case and costs no lock.
    known: AtomicUsize,
    addresses: Mutex<BTreeMap<IpAddr, Address>>,
    accepted: Accepted,
}

#[derive(Debug)]
struct Address {
    since: Instant,
    refusals: u32,
}

impl Default for Throttle {
    fn default() -> Throttle {
        Throttle { known: AtomicUsize::new(0), addresses: Mutex::default(), accepted: Accepted::new() }
    }
}

impl Throttle {
    /// Whether this address must wait. A token that was accepted within the last minute passes.
    pub(crate) fn is_blocked(&self, from: IpAddr, token: &str) -> bool {
        if self.known.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut addresses = self.addresses.lock().expect("nothing panics while it holds this lock");
        let Some(address) = addresses.get(&from) else { return false };
        if address.since.elapsed() >= MINUTE {
            addresses.remove(&from);
            self.known.store(addresses.len(), Ordering::Relaxed);
            return false;
        }
        address.refusals >= REFUSALS_MAX && !self.accepted.is_recent(token)
    }

    pub(crate) fn on_refused(&self, from: IpAddr) {
        let now = Instant::now();
        let mut addresses = self.addresses.lock().expect("nothing panics while it holds this lock");
        let address = addresses.entry(from).or_insert(Address { since: now, refusals: 0 });
        if now - address.since >= MINUTE {
            *address = Address { since: now, refusals: 0 };
        }
        address.refusals += 1;
        // A block counts from the refusal that caused it.
        if address.refusals == REFUSALS_MAX {
            address.since = now;
        }
        if addresses.len() > ADDRESSES_MAX {
            let oldest = addresses.iter().min_by_key(|(_, address)| address.since).map(|(from, _)| *from);
            oldest.map(|from| addresses.remove(&from));
        }
        self.known.store(addresses.len(), Ordering::Relaxed);
    }

    pub(crate) fn on_accepted(&self, token: &str) {
        self.accepted.note(token);
    }
}

/// Tokens that were accepted lately. Every request notes its own, so it takes no lock.
#[derive(Debug)]
struct Accepted {
    /// Secret, so that nobody can find a token with the hash of another one.
    hasher: RandomState,
    began: Instant,
    /// By the lowest bits of a token's hash: the others, and in [`SECONDS_BITS`] the second in which it was accepted.
    slots: Vec<AtomicU64>,
}

/// Enough for twelve days; then they begin again.
const SECONDS_BITS: u32 = 20;

impl Accepted {
    fn new() -> Accepted {
        let slots = (0..ACCEPTED_MAX).map(|_| AtomicU64::new(0)).collect();
        Accepted { hasher: RandomState::new(), began: Instant::now(), slots }
    }

    /// A token's slot, and what stands there if the token is accepted now.
    fn place(&self, token: &str) -> (&AtomicU64, u64) {
        let hash = self.hasher.hash_one(token);
        let second = self.began.elapsed().as_secs() & ((1 << SECONDS_BITS) - 1);
        (&self.slots[hash as usize % ACCEPTED_MAX], hash >> SECONDS_BITS << SECONDS_BITS | second)
    }

    fn note(&self, token: &str) {
        let (slot, now) = self.place(token);
        // Threads that accept the same token need not take the slot from each other.
        if slot.load(Ordering::Relaxed) != now {
            slot.store(now, Ordering::Relaxed);
        }
    }

    fn is_recent(&self, token: &str) -> bool {
        let (slot, now) = self.place(token);
        now.wrapping_sub(slot.load(Ordering::Relaxed)) <= MINUTE.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_blocked_after_too_many_refusals_and_others_are_not() {
        let throttle = Throttle::default();
        let [bad, good] = ["192.0.2.1", "192.0.2.2"].map(|address| address.parse().expect("an address"));
        for _ in 0..REFUSALS_MAX - 1 {
            throttle.on_refused(bad);
        }
        assert!(!throttle.is_blocked(bad, "any"));
        throttle.on_accepted("right");
        throttle.on_refused(bad);
        assert!(throttle.is_blocked(bad, "any"));
        assert!(!throttle.is_blocked(bad, "right"), "a token accepted within the last minute passes");
        assert!(!throttle.is_blocked(good, "any"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let throttle = Throttle::default();
        for number in 0..ADDRESSES_MAX as u32 + 100 {
            throttle.on_refused(IpAddr::V4(number.into()));
        }
        assert_eq!(throttle.addresses.lock().expect("it is free").len(), ADDRESSES_MAX);
    }
}
