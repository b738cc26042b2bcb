//! Questions that must reflect everything acknowledged before them: a quorum confirms, by way of the leader, how far the log was committed,
//! once for all questions of one turn, and then they wait until that much is applied here.
//!
//! Source: the read index of Ongaro, "Consensus: bridging theory and practice", section 6.4.

use std::collections::BTreeMap;

use base::codec::{Reader, Write};
use base::{Index, Millis, Mono};

/// A confirmation may get lost on its way; after this long it is asked for again.
const ASK_AGAIN: Millis = Millis(200);

/// What waits for the same confirmation.
struct Round<R> {
    number: u64,
    /// When it was asked for first.
    begun: Mono,
    /// Known once it is confirmed.
    index: Option<Index>,
    requests: Vec<Waiting<R>>,
}

struct Waiting<R> {
    deadline: Mono,
    request: R,
}

/// A request that has waited long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Late<R> {
    /// For a quorum.
    Unconfirmed(R),
    /// For its entry.
    Behind(R),
}

/// Requests waiting to be confirmed.
pub(crate) struct Reads<R> {
    /// Came since the last round began.
    gathered: Vec<Waiting<R>>,
    rounds: Vec<Round<R>>,
    /// When a confirmation was asked for last.
    asked: Mono,
    /// The latest moment at which a round began that a quorum has confirmed.
    confirmed: Option<Mono>,
    /// Requests that need no confirmation but an entry that is not applied here yet, with the moment at which they give up.
    behind: BTreeMap<(Index, u64), (Mono, R)>,
    next_number: u64,
    /// Tells this process's rounds from those of an earlier one.
    process: u64,
}

impl<R> Reads<R> {
    pub(crate) fn new(process: u64) -> Reads<R> {
        Reads {
            gathered: Vec::new(),
            rounds: Vec::new(),
            asked: Mono(0),
            confirmed: None,
            behind: BTreeMap::new(),
            next_number: 1,
            process,
        }
    }

    /// Lets a request wait for a confirmation that is asked for later than now.
    pub(crate) fn gather(&mut self, deadline: Mono, request: R) {
        self.gathered.push(Waiting { deadline, request });
    }

    pub(crate) fn is_gathering(&self) -> bool {
        !self.gathered.is_empty()
    }

    /// Begins a round for what has gathered; the bytes identify it for consensus.
    pub(crate) fn begin_round(&mut self, now: Mono) -> Vec<u8> {
        let number = self.next_number;
        self.next_number += 1;
        self.rounds.push(Round { number, begun: now, index: None, requests: std::mem::take(&mut self.gathered) });
        self.asked = now;
        self.context(number)
    }

    /// When this node last asked a quorum that has answered.
    pub(crate) fn confirmed(&self) -> Option<Mono> {
        self.confirmed
    }

    /// Whether nothing has been asked for this long.
    pub(crate) fn is_idle_for(&self, time: Millis, now: Mono) -> bool {
        now - self.asked >= time
    }

    /// The last round, if it has waited for its confirmation so long that it should be asked for again.
    pub(crate) fn repeat_round(&mut self, now: Mono) -> Option<Vec<u8>> {
        let lost = self.rounds.last().filter(|round| round.index.is_none() && now - self.asked >= ASK_AGAIN)?;
        let number = lost.number;
        self.asked = now;
        Some(self.context(number))
    }

    fn context(&self, number: u64) -> Vec<u8> {
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
                self.confirmed = self.confirmed.max(Some(round.begun));
            }
        }
    }

    /// Takes out what is confirmed and applied.
    pub(crate) fn take_ready(&mut self, applied: Index) -> Vec<R> {
        let confirmed =
            self.rounds.iter().take_while(|round| round.index.is_some_and(|index| index <= applied)).count();
        let confirmed = self.rounds.drain(..confirmed).flat_map(|round| round.requests);
        let mut ready: Vec<R> = confirmed.map(|waiting| waiting.request).collect();
        let later = self.behind.split_off(&(applied.next(), 0));
        ready.extend(std::mem::replace(&mut self.behind, later).into_values().map(|(_, request)| request));
        ready
    }

    /// Lets a request wait until the entry at `index` is applied.
    pub(crate) fn wait_for(&mut self, index: Index, deadline: Mono, request: R) {
        self.behind.insert((index, self.next_number), (deadline, request));
        self.next_number += 1;
    }

    /// Takes out what has waited long enough.
    pub(crate) fn take_late(&mut self, now: Mono) -> Vec<Late<R>> {
        let behind = self.behind.extract_if(.., |_, (deadline, _)| *deadline <= now);
        let mut late: Vec<Late<R>> = behind.map(|(_, (_, request))| Late::Behind(request)).collect();
        for requests in self.rounds.iter_mut().map(|round| &mut round.requests).chain([&mut self.gathered]) {
            let unconfirmed = requests.extract_if(.., |waiting| waiting.deadline <= now);
            late.extend(unconfirmed.map(|waiting| Late::Unconfirmed(waiting.request)));
        }
        late
    }

    /// When something is to be done although nothing happens.
    pub(crate) fn next_deadline(&self) -> Option<Mono> {
        let unconfirmed = self.rounds.iter().map(|round| &round.requests).chain([&self.gathered]).flatten();
        let given_up = unconfirmed.map(|waiting| waiting.deadline);
        let asked_again = self.rounds.last().filter(|round| round.index.is_none()).map(|_| self.asked + ASK_AGAIN);
        self.behind.values().map(|(deadline, _)| *deadline).chain(given_up).chain(asked_again).min()
    }

    /// Takes out everything that waits for a confirmation.
    pub(crate) fn drain(&mut self) -> Vec<R> {
        let rounds = std::mem::take(&mut self.rounds).into_iter().flat_map(|round| round.requests);
        rounds.chain(std::mem::take(&mut self.gathered)).map(|waiting| waiting.request).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Mono = Mono(1_000);

    #[test]
    fn a_round_is_answered_when_it_is_confirmed_and_applied() {
        let mut reads = Reads::new(7);
        reads.gather(LATER, 1);
        reads.gather(LATER, 2);
        let first = reads.begin_round(Mono(0));
        reads.gather(LATER, 3);
        let second = reads.begin_round(Mono(0));
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
        assert_eq!(reads.take_late(Mono(50)), [Late::Behind("six")]);
        assert_eq!(reads.take_ready(Index(5)), ["five", "five again"]);
        assert_eq!(reads.next_deadline(), None);
    }

    #[test]
    fn a_later_confirmation_covers_earlier_rounds_and_a_foreign_one_none() {
        let mut reads = Reads::new(7);
        reads.gather(LATER, 1);
        let _lost = reads.begin_round(Mono(0));
        reads.gather(LATER, 2);
        let second = reads.begin_round(Mono(0));
        let mut other = Reads::<u8>::new(8);
        let foreign = other.begin_round(Mono(0));
        reads.on_confirmed(&foreign, Index(1));
        reads.on_confirmed(b"short", Index(1));
        assert!(reads.take_ready(Index(9)).is_empty());
        reads.on_confirmed(&second, Index(3));
        assert_eq!(reads.take_ready(Index(3)), [1, 2]);
        reads.gather(LATER, 4);
        assert_eq!(reads.drain(), [4]);
    }

    #[test]
    fn what_gets_lost_is_asked_for_again_and_given_up_in_time() {
        let mut reads = Reads::new(7);
        reads.gather(LATER, 1);
        let first = reads.begin_round(Mono(0));
        reads.gather(Mono(300), 2);
        assert_eq!(reads.next_deadline(), Some(Mono(200)));
        assert_eq!(reads.repeat_round(Mono(199)), None);
        assert_eq!(reads.repeat_round(Mono(200)), Some(first.clone()));
        assert_eq!(reads.repeat_round(Mono(201)), None);
        assert_eq!(reads.take_late(Mono(300)), [Late::Unconfirmed(2)]);
        assert_eq!(reads.take_late(LATER), [Late::Unconfirmed(1)]);
        reads.on_confirmed(&first, Index(1));
        assert!(reads.take_ready(Index(1)).is_empty());
        assert_eq!(reads.next_deadline(), None);
    }
}
