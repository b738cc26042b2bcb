//! Requests that are held open until there is something for them. They are not replicated: a client whose node stops asks again.
//!
//! A waiting claim is woken by the commit that makes a task ready, and proposed again; no more claims are woken than there are tasks to
//! take, in the order in which they came. A waiting question is answered as soon as its answer can be final. Nothing polls.

use std::collections::{BTreeMap, BTreeSet};

use base::Mono;
use base::machine::WaitKey;

use crate::batch::Operations;

/// A request that waits.
pub(crate) struct Waiter<Q, O, C> {
    /// Names it for [`Waiters::forget`].
    pub(crate) wait: u64,
    pub(crate) keys: Vec<WaitKey>,
    pub(crate) deadline: Mono,
    pub(crate) client: C,
    pub(crate) wants: Wants<Q, O>,
}

/// What it waits for.
pub(crate) enum Wants<Q, O> {
    /// To be proposed when there is something to do; `nothing` is its answer when time is over.
    Work { operations: Operations, nothing: O },
    /// A better answer.
    Answer(Q),
}

/// All that wait for one shard, by rank: whoever came first is served first.
pub(crate) struct Waiters<Q, O, C> {
    by_rank: BTreeMap<u64, Waiter<Q, O, C>>,
    by_key: BTreeSet<(WaitKey, u64)>,
    by_deadline: BTreeSet<(Mono, u64)>,
    by_wait: BTreeMap<u64, u64>,
    next_rank: u64,
    /// Claims woken by a key and not applied yet: each will take one of what there is.
    under_way: BTreeMap<WaitKey, usize>,
    /// Keys for which something has come up since claims were woken last.
    signalled: BTreeSet<WaitKey>,
}

impl<Q, O, C> Default for Waiters<Q, O, C> {
    fn default() -> Self {
        Waiters {
            by_rank: BTreeMap::new(),
            by_key: BTreeSet::new(),
            by_deadline: BTreeSet::new(),
            by_wait: BTreeMap::new(),
            next_rank: 0,
            under_way: BTreeMap::new(),
            signalled: BTreeSet::new(),
        }
    }
}

impl<Q, O, C> Waiters<Q, O, C> {
    pub(crate) fn len(&self) -> usize {
        self.by_rank.len()
    }

    /// A rank for a request that begins to wait.
    pub(crate) fn new_rank(&mut self) -> u64 {
        self.next_rank += 1;
        self.next_rank
    }

    /// Holds a request open. Whoever was woken in vain comes back with its old rank.
    pub(crate) fn park(&mut self, rank: u64, waiter: Waiter<Q, O, C>) {
        for key in &waiter.keys {
            self.by_key.insert((*key, rank));
        }
        self.by_deadline.insert((waiter.deadline, rank));
        self.by_wait.insert(waiter.wait, rank);
        self.by_rank.insert(rank, waiter);
    }

    fn remove(&mut self, rank: u64) -> Option<Waiter<Q, O, C>> {
        let waiter = self.by_rank.remove(&rank)?;
        for key in &waiter.keys {
            self.by_key.remove(&(*key, rank));
        }
        self.by_deadline.remove(&(waiter.deadline, rank));
        self.by_wait.remove(&waiter.wait);
        Some(waiter)
    }

    /// Something has come up for `key`.
    pub(crate) fn signal(&mut self, key: WaitKey) {
        // Most keys are those of things that nobody waits for.
        if self.by_key.range((key, 0)..=(key, u64::MAX)).next().is_some() {
            self.signalled.insert(key);
        }
    }

    /// A claim that was woken by `key` is applied, or will not be.
    pub(crate) fn settled(&mut self, key: WaitKey) {
        if let Some(count) = self.under_way.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(&key);
            }
        }
        // Whoever waits behind it may be next.
        self.signal(key);
    }

    /// Takes out whoever can go on: questions of every signalled key, and of its claims as many as `available` says beyond those under
    /// way. In order of rank, each with the key that woke it.
    pub(crate) fn wake(&mut self, available: impl Fn(WaitKey) -> usize) -> Vec<(u64, WaitKey, Waiter<Q, O, C>)> {
        let mut woken = Vec::new();
        for key in std::mem::take(&mut self.signalled) {
            let under_way = self.under_way.get(&key).copied().unwrap_or(0);
            let mut claims = available(key).saturating_sub(under_way);
            let mut next = 0;
            while let Some((_, rank)) = self.by_key.range((key, next)..=(key, u64::MAX)).next().copied() {
                next = rank + 1;
                if matches!(self.by_rank[&rank].wants, Wants::Work { .. }) {
                    if claims == 0 {
                        continue;
                    }
                    claims -= 1;
                    *self.under_way.entry(key).or_default() += 1;
                }
                let waiter = self.remove(rank).expect("it was found by key");
                woken.push((rank, key, waiter));
            }
        }
        woken.sort_by_key(|(rank, _, _)| *rank);
        woken
    }

    /// Takes out whoever has waited long enough.
    pub(crate) fn take_late(&mut self, now: Mono) -> Vec<Waiter<Q, O, C>> {
        let mut late = Vec::new();
        while let Some((_, rank)) = self.by_deadline.first().copied().filter(|(deadline, _)| *deadline <= now) {
            late.extend(self.remove(rank));
        }
        late
    }

    /// Drops the request of that name.
    pub(crate) fn forget(&mut self, wait: u64) {
        if let Some(rank) = self.by_wait.get(&wait).copied() {
            self.remove(rank);
        }
    }

    /// Takes everybody out.
    pub(crate) fn drain(&mut self) -> Vec<Waiter<Q, O, C>> {
        let ranks: Vec<u64> = self.by_rank.keys().copied().collect();
        ranks.into_iter().filter_map(|rank| self.remove(rank)).collect()
    }

    /// When the next one has waited long enough.
    pub(crate) fn next_deadline(&self) -> Option<Mono> {
        self.by_deadline.first().map(|(deadline, _)| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WaitKey = WaitKey(1);
    const B: WaitKey = WaitKey(2);

    fn claim(wait: u64, keys: &[WaitKey], deadline: u64) -> Waiter<(), (), u64> {
        let wants = Wants::Work { operations: Operations::default(), nothing: () };
        Waiter { wait, keys: keys.to_vec(), deadline: Mono(deadline), client: wait, wants }
    }

    fn question(wait: u64, keys: &[WaitKey]) -> Waiter<(), (), u64> {
        Waiter { wait, keys: keys.to_vec(), deadline: Mono(100), client: wait, wants: Wants::Answer(()) }
    }

    fn clients(woken: &[(u64, WaitKey, Waiter<(), (), u64>)]) -> Vec<u64> {
        woken.iter().map(|(_, _, waiter)| waiter.client).collect()
    }

    #[test]
    fn as_many_claims_are_woken_as_there_are_tasks_and_whoever_came_first_is_first() {
        let mut waiters = Waiters::default();
        for wait in [30, 20, 10, 40] {
            let rank = waiters.new_rank();
            waiters.park(rank, claim(wait, &[A], 100));
        }
        assert!(waiters.wake(|_| 9).is_empty(), "nothing has come up");
        waiters.signal(A);
        assert_eq!(clients(&waiters.wake(|_| 2)), [30, 20]);
        // Those two are under way, so the same two tasks wake nobody else.
        waiters.signal(A);
        assert!(waiters.wake(|_| 2).is_empty());
        // One of them was served, the other one is applied too: a third task is there for the next.
        waiters.settled(A);
        waiters.settled(A);
        assert_eq!(clients(&waiters.wake(|_| 1)), [10]);
        assert_eq!(waiters.len(), 1);
    }

    #[test]
    fn who_was_woken_in_vain_keeps_its_rank() {
        let mut waiters = Waiters::default();
        for wait in [1, 2] {
            let rank = waiters.new_rank();
            waiters.park(rank, claim(wait, &[A], 100));
        }
        waiters.signal(A);
        let (rank, key, waiter) = waiters.wake(|_| 1).pop().expect("one was woken");
        waiters.park(rank, waiter);
        waiters.settled(key);
        assert_eq!(clients(&waiters.wake(|_| 1)), [1]);
    }

    #[test]
    fn who_waits_for_several_queues_is_woken_once() {
        let mut waiters = Waiters::default();
        for (wait, keys) in [(1, &[A, B][..]), (2, &[B]), (3, &[A])] {
            let rank = waiters.new_rank();
            waiters.park(rank, claim(wait, keys, 100));
        }
        waiters.signal(A);
        waiters.signal(B);
        assert_eq!(clients(&waiters.wake(|_| 1)), [1, 2]);
        assert_eq!(waiters.len(), 1);
    }

    #[test]
    fn questions_are_all_woken_and_late_ones_and_forgotten_ones_leave() {
        let mut waiters = Waiters::default();
        for wait in [1, 2] {
            let rank = waiters.new_rank();
            waiters.park(rank, question(wait, &[A]));
        }
        let rank = waiters.new_rank();
        waiters.park(rank, claim(3, &[B], 50));
        let rank = waiters.new_rank();
        waiters.park(rank, claim(4, &[B], 60));
        assert_eq!(waiters.next_deadline(), Some(Mono(50)));
        let late: Vec<u64> = waiters.take_late(Mono(50)).iter().map(|waiter| waiter.client).collect();
        assert_eq!(late, [3]);
        waiters.forget(4);
        waiters.forget(99);
        waiters.signal(A);
        assert_eq!(clients(&waiters.wake(|_| 0)), [1, 2]);
        assert_eq!((waiters.len(), waiters.next_deadline()), (0, None));
    }
}
