//! When a call is made again, and how long that waits: plain functions of what went wrong.
//!
//! | what happened | a call that may be repeated | any other |
//! |---|---|---|
//! | it was not sent: no connection | again, at another server first | the same |
//! | the server could not take it (429, 503, 507) | again, after the time it named | the same |
//! | it was sent, and no usable answer came; 504 | again | ends: unknown |
//! | refused for what it is | ends: refused | the same |

use std::time::Duration;

use crate::error::Problem;

/// Whether a call that may have had an effect is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// A second time does what the first one did: reads, creations with a key, what names a lease.
    Always,
    /// Only if it is certain that it has had no effect.
    IfDefinite,
}

/// Why one try did not bring an answer.
#[derive(Debug)]
pub(crate) enum Miss {
    /// It never left: there was no connection.
    NotSent(String),
    /// It left, and nothing usable came back.
    Lost(String),
    /// The server says what is wrong.
    Problem(Box<Problem>),
}

/// What follows from a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another try, not before this has passed; none given: as [`pause`] says.
    Again(Option<Duration>),
    /// The call has ended.
    End,
}

impl Miss {
    pub(crate) fn is_definite(&self) -> bool {
        match self {
            Miss::NotSent(_) => true,
            Miss::Lost(_) => false,
            Miss::Problem(problem) => problem.definite,
        }
    }

    /// What follows for a call of this kind.
    pub(crate) fn next(&self, repeat: Repeat) -> Next {
        if !self.is_definite() && repeat == Repeat::IfDefinite {
            return Next::End;
        }
        match self {
            Miss::Problem(problem) if problem.is_final() => Next::End,
            Miss::Problem(problem) => Next::Again(problem.retry_after()),
            Miss::NotSent(_) | Miss::Lost(_) => Next::Again(None),
        }
    }

    pub(crate) fn text(&self) -> String {
        match self {
            Miss::NotSent(why) | Miss::Lost(why) => why.clone(),
            Miss::Problem(problem) => problem.to_string(),
        }
    }
}

/// The first pause, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// The pause before try `tries` + 1: it doubles, and `chance` (0 to 1) takes up to half of it away, so that those who failed together do not
/// come back together.
pub(crate) fn pause(tries: u32, chance: f64) -> Duration {
    let whole = PAUSES.0.saturating_mul(1 << tries.saturating_sub(1).min(10)).min(PAUSES.1);
    whole.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(status: u16, definite: bool) -> Miss {
        let text = format!("{{\"code\":\"x\",\"definite\":{definite},\"retryAfterMs\":700}}");
        Miss::Problem(Box::new(Problem::read(status, text.as_bytes()).expect("it is one")))
    }

    /// The table at the top, row by row.
    #[test]
    fn what_may_have_happened_is_repeated_only_where_that_is_harmless() {
        let (again, named) = (Next::Again(None), Next::Again(Some(Duration::from_millis(700))));
        for (miss, always, if_definite) in [
            (Miss::NotSent("refused".into()), again, again),
            (Miss::Lost("reset".into()), again, Next::End),
            (problem(429, true), named, named),
            (problem(503, true), named, named),
            (problem(507, true), named, named),
            (problem(504, false), named, Next::End),
            (problem(500, false), named, Next::End),
            (problem(409, true), Next::End, Next::End),
            (problem(500, true), Next::End, Next::End),
        ] {
            assert_eq!(miss.next(Repeat::Always), always, "{miss:?}");
            assert_eq!(miss.next(Repeat::IfDefinite), if_definite, "{miss:?}");
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest_one_and_are_spread() {
        let ms = |tries, chance| pause(tries, chance).as_millis();
        assert_eq!([ms(1, 0.0), ms(2, 0.0), ms(3, 0.0), ms(9, 0.0), ms(u32::MAX, 0.0)], [50, 100, 200, 2000, 2000]);
        assert_eq!([ms(1, 1.0), ms(9, 0.5)], [25, 1500]);
    }
}
