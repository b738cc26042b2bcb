//! Conditions that last: said when they begin, then at doubling intervals, and when they end.

use base::{Millis, Mono};

/// How long a condition lasts before it is said again.
const AGAIN: Millis = Millis(10_000);

/// A condition.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lasting {
    since: Option<Mono>,
    /// How old it is when it is said again.
    again: Millis,
}

/// What is to be said of a condition, with how long it has lasted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// It begins.
    Began,
    /// It goes on.
    Lasts(Millis),
    /// It is over.
    Ended(Millis),
}

impl Lasting {
    /// Whether the condition held when it was looked at last.
    pub(crate) fn is_on(&self) -> bool {
        self.since.is_some()
    }

    /// The condition holds now, or does not.
    pub(crate) fn look(&mut self, now: Mono, holds: bool) -> Option<Said> {
        match (self.since, holds) {
            (None, false) => None,
            (None, true) => {
                *self = Lasting { since: Some(now), again: AGAIN };
                Some(Said::Began)
            }
            (Some(since), true) => {
                let age = now - since;
                if age < self.again {
                    return None;
                }
                while self.again <= age {
                    self.again = Millis(self.again.0 * 2);
                }
                Some(Said::Lasts(age))
            }
            (Some(since), false) => {
                self.since = None;
                Some(Said::Ended(now - since))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: whatever lasts is said ever more rarely, once if a moment was missed, and once when it ends.
    #[test]
    fn a_condition_is_said_at_doubling_intervals() {
        let mut lasting = Lasting::default();
        let mut said: Vec<(u64, Said)> = Vec::new();
        for second in 0..100 {
            let holds = (10..95).contains(&second);
            said.extend(lasting.look(Mono(second * 1_000), holds).map(|what| (second, what)));
        }
        let at = |ms| Said::Lasts(Millis(ms));
        let expected = [
            (10, Said::Began),
            (20, at(10_000)),
            (30, at(20_000)),
            (50, at(40_000)),
            (90, at(80_000)),
            (95, Said::Ended(Millis(85_000))),
        ];
        assert_eq!(said, expected);
        assert_eq!(lasting.look(Mono(200_000), true), Some(Said::Began));
        assert_eq!(lasting.look(Mono(300_000), true), Some(at(100_000)));
        assert_eq!(lasting.look(Mono(310_000), true), None, "what was missed is not made up for");
    }
}
