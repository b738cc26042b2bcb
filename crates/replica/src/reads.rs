//! Questions that must reflect everything acknowledged before them: a quorum confirms that this node still leads, once for all questions of
//! one turn, and then they wait until what was committed by then is applied.
//!
//! Source: the read index of Ongaro, "Consensus: bridging theory and practice", section 6.4.

use std::collections::BTreeMap;

use base::codec::{Reader, Write};
use base::{Index, Mono};

/// What waits for the same confirmation.
struct Round<R> {
    number: u64,
    /// Known once it is confirmed.
    index: Option<Index>,
    requests: Vec<R>,
}

/// Requests waiting to be confirmed.
pub(crate) struct Reads<R> {
    /// Came since the last round began.
    gathered: Vec<R>,
    rounds: Vec<Round<R>>,
    /// Requests that need no confirmation but an entry that is not applied here yet, with the moment at which they give up.
    behind: BTreeMap<(Index, u64), (Mono, R)>,
    next_number: u64,
    /// Tells this process's rounds from those of an earlier one.
    process: u64,
}

impl<R> Reads<R> {
    pub(crate) fn new(process: u64) -> Reads<R> {
        Reads { gathered: Vec::new(), rounds: Vec::new(), behind: BTreeMap::new(), next_number: 1, process }
    }

    pub(crate) fn gather(&mut self, request: R) {
        self.gathered.push(request);
    }

    pub(crate) fn is_gathering(&self) -> bool {
        !self.gathered.is_empty()
    }

    /// Begins a round for what has gathered; the bytes identify it for consensus.
    pub(crate) fn begin_round(&mut self) -> Vec<u8> {
        let number = self.next_number;
        self.next_number += 1;
        self.rounds.push(Round { number, index: None, requests: std::mem::take(&mut self.gathered) });
        let mut context = Vec::new();
        context.put_u64(self.process);
        context.put_u64(number);
        context
    }

    /// The quorum has confirmed the round of `context`, and with it every round before.
    pub(crate) fn on_confirmed(&mut self, context: &[u8], index: Index) {
        let mut reader = Reader::new(context);
        let (Ok(process), Ok(number)) = (reader.u64(), reader.u64()) else {
            return;
        };
        if process == self.process {
            for round in self.rounds.iter_mut().filter(|round| round.number <= number && round.index.is_none()) {
                round.index = Some(index);
            }
        }
    }

    /// Takes out what is confirmed and applied.
    pub(crate) fn take_ready(&mut self, applied: Index) -> Vec<R> {
        let confirmed =
            self.rounds.iter().take_while(|round| round.index.is_some_and(|index| index <= applied)).count();
        let mut ready: Vec<R> = self.rounds.drain(..confirmed).flat_map(|round| round.requests).collect();
        let later = self.behind.split_off(&(applied.next(), 0));
        ready.extend(std::mem::replace(&mut self.behind, later).into_values().map(|(_, request)| request));
        ready
    }

    /// Lets a request wait until the entry at `index` is applied.
    pub(crate) fn wait_for(&mut self, index: Index, deadline: Mono, request: R) {
        self.behind.insert((index, self.next_number), (deadline, request));
        self.next_number += 1;
    }

    /// Takes out what has waited long enough for its entry.
    pub(crate) fn take_late(&mut self, now: Mono) -> Vec<R> {
        let late = self.behind.extract_if(.., |_, (deadline, _)| *deadline <= now);
        late.map(|(_, (_, request))| request).collect()
    }

    /// When the next one has waited long enough.
    pub(crate) fn next_deadline(&self) -> Option<Mono> {
        self.behind.values().map(|(deadline, _)| *deadline).min()
    }

    /// Takes everything out: it cannot be confirmed any more.
    pub(crate) fn drain(&mut self) -> Vec<R> {
        let rounds = std::mem::take(&mut self.rounds).into_iter().flat_map(|round| round.requests);
        let behind = std::mem::take(&mut self.behind).into_values().map(|(_, request)| request);
        rounds.chain(behind).chain(std::mem::take(&mut self.gathered)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_answered_when_it_is_confirmed_and_applied() {
        let mut reads = Reads::new(7);
        reads.gather(1);
        reads.gather(2);
        let first = reads.begin_round();
        reads.gather(3);
        let second = reads.begin_round();
        assert!(!reads.is_gathering());
        reads.on_confirmed(&first, Index(5));
        assert!(reads.take_ready(Index(4)).is_empty());
        assert_eq!(reads.take_ready(Index(5)), [1, 2]);
        reads.on_confirmed(&second, Index(6));
        assert_eq!(reads.take_ready(Index(9)), [3]);
    }

    #[test]
    fn a_request_for_an_entry_waits_until_it_is_applied_or_time_is_over() {
        let mut reads = Reads::new(7);
        reads.wait_for(Index(5), Mono(100), "five");
        reads.wait_for(Index(6), Mono(50), "six");
        reads.wait_for(Index(5), Mono(100), "five again");
        assert_eq!(reads.next_deadline(), Some(Mono(50)));
        assert!(reads.take_ready(Index(4)).is_empty());
        assert_eq!(reads.take_late(Mono(50)), ["six"]);
        assert_eq!(reads.take_ready(Index(5)), ["five", "five again"]);
        assert_eq!(reads.next_deadline(), None);
    }

    #[test]
    fn a_later_confirmation_covers_earlier_rounds_and_a_foreign_one_none() {
        let mut reads = Reads::new(7);
        reads.gather(1);
        let _lost = reads.begin_round();
        reads.gather(2);
        let second = reads.begin_round();
        let mut other = Reads::<u8>::new(8);
        let foreign = other.begin_round();
        reads.on_confirmed(&foreign, Index(1));
        reads.on_confirmed(b"short", Index(1));
        assert!(reads.take_ready(Index(9)).is_empty());
        reads.on_confirmed(&second, Index(3));
        assert_eq!(reads.take_ready(Index(3)), [1, 2]);
        reads.gather(4);
        assert_eq!(reads.drain(), [4]);
    }
}
