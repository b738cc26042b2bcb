//! Idempotency keys: a repeated creation answers with the first task, as long as its key is bound.

use std::collections::VecDeque;

use base::map::DigestMap;
use base::{LeaseTime, Millis, ScheduleTime};
use sha2::{Digest, Sha256};

use crate::op::Schedule;

/// What a key is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Binding {
    /// The first task, by key.
    pub(crate) task: u64,
    /// Digest of what was asked for.
    pub(crate) body: [u8; 16],
    /// When it was bound; the window counts from here.
    pub(crate) since: LeaseTime,
}

/// All keys that are bound, by scope digest. A look-up decides at the moment of use whether the window is over; the order of binding
/// serves only to tidy.
#[derive(Default)]
pub(crate) struct Keys {
    bound: DigestMap<Binding>,
    order: VecDeque<(LeaseTime, [u8; 16])>,
}

/// Expired keys tidied away by one entry.
const TIDIED_PER_ENTRY: usize = 4_096;

impl Keys {
    /// The binding in force at `now`.
    pub(crate) fn find(&self, scope: &[u8; 16], now: LeaseTime, window: Millis) -> Option<&Binding> {
        self.bound.get(scope).filter(|binding| now < binding.since + window)
    }

    /// Frees a key that is bound to this task. Says whether it was.
    pub(crate) fn unbind(&mut self, scope: &[u8; 16], task: u64) -> bool {
        let is_bound = self.bound.get(scope).is_some_and(|binding| binding.task == task);
        if is_bound {
            self.bound.remove(scope);
        }
        is_bound
    }

    pub(crate) fn bind(&mut self, scope: [u8; 16], binding: Binding) {
        self.order.push_back((binding.since, scope));
        self.bound.insert(scope, binding);
    }

    /// Forgets keys whose window is over; returns the tasks they were bound to.
    pub(crate) fn tidy(&mut self, now: LeaseTime, window: Millis) -> Vec<u64> {
        let mut freed = Vec::new();
        while freed.len() < TIDIED_PER_ENTRY {
            let Some((since, scope)) = self.order.front().copied().filter(|(since, _)| *since + window <= now) else {
                break;
            };
            self.order.pop_front();
            // The same key may have been bound again since.
            if let Some(binding) = self.bound.get(&scope).filter(|binding| binding.since == since) {
                freed.push(binding.task);
                self.bound.remove(&scope);
            }
        }
        freed
    }
}

/// What a key is bound within: one tenant, one queue.
pub fn scope_digest(tenant: &str, command: &str, key: &str) -> [u8; 16] {
    digest(&[tenant.as_bytes(), command.as_bytes(), key.as_bytes()])
}

/// What "the same body" means: equal payload but for white space outside strings, priority, webhook, attempts, and the schedule as sent.
pub fn body_digest(
    payload: &[u8],
    priority: u8,
    webhook: &str,
    max_attempts: Option<u32>,
    schedule: &Schedule,
) -> [u8; 16] {
    let schedule = match schedule {
        Schedule::Now => [0, 0],
        Schedule::After(Millis(delay)) => [1, *delay],
        Schedule::At(ScheduleTime(time)) => [2, *time],
    };
    let mut numbers = Vec::with_capacity(33);
    for number in [u64::from(priority), max_attempts.map_or(0, u64::from), schedule[0], schedule[1]] {
        numbers.extend_from_slice(&number.to_le_bytes());
    }
    digest(&[&without_space(payload), webhook.as_bytes(), &numbers])
}

/// The first 128 bits of SHA-256 over the parts, each with its length.
fn digest(parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().first_chunk().expect("a SHA-256 digest has 32 bytes")
}

/// JSON without the white space outside its strings.
fn without_space(json: &[u8]) -> Vec<u8> {
    let (mut in_string, mut escaped) = (false, false);
    let keep = |byte: &u8| {
        if in_string {
            in_string = escaped || *byte != b'"';
            escaped = !escaped && *byte == b'\\';
            return true;
        }
        in_string = *byte == b'"';
        !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
    };
    json.iter()
        .copied()
        .filter({
            let mut keep = keep;
            move |byte| keep(byte)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_space_outside_strings_is_ignored() {
        for (json, stripped) in [
            (r#" { "a" : [ 1 , 2 ] } "#, r#"{"a":[1,2]}"#),
            ("\"a b\"", "\"a b\""),
            (r#""a\" b" "#, r#""a\" b""#),
            (r#""a\\" , " b""#, r#""a\\"," b""#),
            ("\t\r\n1", "1"),
        ] {
            assert_eq!(String::from_utf8_lossy(&without_space(json.as_bytes())), stripped, "{json:?}");
        }
    }

    #[test]
    fn each_part_of_a_body_counts() {
        let digest = |payload: &str, priority, webhook, attempts, schedule| {
            body_digest(payload.as_bytes(), priority, webhook, attempts, &schedule)
        };
        let first = digest("{}", 0, "", None, Schedule::Now);
        assert_eq!(first, digest("{ }", 0, "", None, Schedule::Now));
        for other in [
            digest("[]", 0, "", None, Schedule::Now),
            digest("{}", 1, "", None, Schedule::Now),
            digest("{}", 0, "http://x", None, Schedule::Now),
            digest("{}", 0, "", Some(5), Schedule::Now),
            digest("{}", 0, "", None, Schedule::After(Millis(1))),
            digest("{}", 0, "", None, Schedule::At(ScheduleTime(1))),
        ] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn parts_cannot_flow_into_each_other() {
        assert_ne!(scope_digest("a", "bc", "d"), scope_digest("ab", "c", "d"));
    }
}
