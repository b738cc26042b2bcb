//! Slows down whoever tries tokens: after 50 refusals within a minute an address waits for a minute.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// Refusals within a minute that block an address.
const REFUSALS_MAX: u32 = 50;
/// How long refusals count, an address is blocked, and a token accepted meanwhile still passes.
const MINUTE: Duration = Duration::from_secs(60);
/// Addresses remembered; more forget the one that was refused longest ago.
const ADDRESSES_MAX: usize = 10_000;

/// Refusals by address.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// How many addresses are remembered: none is the common case and costs no lock.
    known: AtomicUsize,
    addresses: Mutex<BTreeMap<IpAddr, Address>>,
}

#[derive(Debug)]
struct Address {
    since: Instant,
    refusals: u32,
    /// A token accepted from here since, by digest.
    accepted: Option<[u8; 32]>,
}

impl Throttle {
    /// Whether this address must wait. A token it has been accepted with passes.
    pub(crate) fn is_blocked(&self, from: IpAddr, token: &str) -> bool {
        if self.known.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let addresses = self.addresses.lock().expect("nothing panics while it holds this lock");
        addresses.get(&from).is_some_and(|address| {
            address.refusals >= REFUSALS_MAX
                && address.since.elapsed() < MINUTE
                && address.accepted.is_none_or(|accepted| accepted != digest(token))
        })
    }

    pub(crate) fn on_refused(&self, from: IpAddr) {
        let now = Instant::now();
        let mut addresses = self.addresses.lock().expect("nothing panics while it holds this lock");
        let address = addresses.entry(from).or_insert(Address { since: now, refusals: 0, accepted: None });
        if now - address.since >= MINUTE {
            *address = Address { since: now, refusals: 0, accepted: None };
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

    pub(crate) fn on_accepted(&self, from: IpAddr, token: &str) {
        if self.known.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut addresses = self.addresses.lock().expect("nothing panics while it holds this lock");
        if let Some(address) = addresses.get_mut(&from) {
            if address.since.elapsed() >= MINUTE {
                addresses.remove(&from);
                self.known.store(addresses.len(), Ordering::Relaxed);
            } else {
                address.accepted = Some(digest(token));
            }
        }
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
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
        throttle.on_accepted(bad, "right");
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
