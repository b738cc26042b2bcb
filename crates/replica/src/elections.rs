//! Elections that a group remembers: one record for each term that got a leader, in an entry of its own, so that every replica has the same.
//!
//! ```text
//! entry    kind (1 byte: election), then the record
//! record   version (1), term, leader, its name, the one before or 0, its name, cause (1), votes that suffice, attempts, votes: their number,
//!          and for each the member, its name and the reason (1); when it was won, then detect, elect, ready and traffic
//! ```
//!
//! Ids take 8 bytes; names have a length in front; all other numbers are varints; a duration that is not known is 0, any other one is
//! one more than it says. The leader writes the record behind the first entry of its term, and once more, with all durations, when it
//! takes writes.

use std::collections::VecDeque;
use std::sync::Arc;

use base::codec::{Malformed, Reader, Write};
use base::{Millis, ScheduleTime, Term};
use consensus::codec::ELECTION;
use consensus::{Cause, Reason};

/// Elections that a group remembers. Every replica has the same, so it is no setting of a node.
const ELECTIONS_MAX: usize = 500;

/// Votes in a record; no group has more voters.
const VOTES_MAX: usize = 64;

/// An election that somebody has won.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Election {
    /// Counts from 1 in the life of the group. What a leader proposes says 0.
    pub number: u64,
    /// The term that began with it.
    pub term: Term,
    /// Who won.
    pub leader: (u64, String),
    /// Who led before, as far as the winner knew; id 0: nobody.
    pub previous: (u64, String),
    /// Why there was an election.
    pub cause: Cause,
    /// Votes that sufficed.
    pub needed: u64,
    /// Times the winner has asked for votes since there was a leader.
    pub attempts: u64,
    /// Who answered the winner before it had won, and how; itself included.
    pub votes: Vec<Vote>,
    /// When it was won, by the winner's wall clock.
    pub won_at: ScheduleTime,
    /// From the last contact with the leader before until the winner first asked for votes.
    pub detect: Option<Millis>,
    /// From then until it had won.
    pub elect: Option<Millis>,
    /// From then until it took writes.
    pub ready: Option<Millis>,
    /// From the last write in the term before until the first one in this, if there were writes in the second before the leader was lost.
    pub traffic: Option<Millis>,
}

/// A vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The voter.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Why it voted so; [`Reason::Ok`]: for the winner.
    pub reason: Reason,
}

const VERSION: u8 = 1;

impl Election {
    /// How long nobody could take writes: what was seen of writes, else detect, elect and ready together, if all of it is known.
    pub fn outage(&self) -> Option<Millis> {
        let contact = || Some(self.detect? + self.elect? + self.ready?);
        self.traffic.or_else(contact)
    }

    /// An entry that records it.
    pub(crate) fn entry(&self) -> Vec<u8> {
        let mut bytes = vec![ELECTION];
        self.encode(&mut bytes);
        bytes
    }

    /// Appends its bytes, without its number.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_u8(VERSION);
        bytes.put_varint(self.term.0);
        for (id, name) in [&self.leader, &self.previous] {
            bytes.put_u64(*id);
            bytes.put_bytes(name.as_bytes());
        }
        bytes.put_u8(self.cause.code());
        bytes.put_varint(self.needed);
        bytes.put_varint(self.attempts);
        bytes.put_varint(self.votes.len() as u64);
        for vote in &self.votes {
            bytes.put_u64(vote.id);
            bytes.put_bytes(vote.name.as_bytes());
            bytes.put_u8(vote.reason.code());
        }
        bytes.put_varint(self.won_at.0);
        for duration in [self.detect, self.elect, self.ready, self.traffic] {
            bytes.put_option(duration.map(|duration| duration.0));
        }
    }

    /// Reads what [`Election::encode`] wrote; its number is 0.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Election, Malformed> {
        if reader.u8()? != VERSION {
            return Err(Malformed);
        }
        let term = Term(reader.varint()?);
        let (leader, previous) = (named(reader)?, named(reader)?);
        let cause = Cause::of_code(reader.u8()?).ok_or(Malformed)?;
        let (needed, attempts) = (reader.varint()?, reader.varint()?);
        let count = reader.varint()?;
        if count > VOTES_MAX as u64 {
            return Err(Malformed);
        }
        let mut votes = Vec::new();
        for _ in 0..count {
            let (id, name) = named(reader)?;
            votes.push(Vote { id, name, reason: Reason::of_code(reader.u8()?) });
        }
        let won_at = ScheduleTime(reader.varint()?);
        let mut duration = || Ok(reader.option()?.map(Millis));
        let (detect, elect, ready, traffic) = (duration()?, duration()?, duration()?, duration()?);
        let number = 0;
        Ok(Election {
            number,
            term,
            leader,
            previous,
            cause,
            needed,
            attempts,
            votes,
            won_at,
            detect,
            elect,
            ready,
            traffic,
        })
    }
}

fn named(reader: &mut Reader<'_>) -> Result<(u64, String), Malformed> {
    Ok((reader.u64()?, reader.text()?.to_owned()))
}

/// The last elections of a group. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elections {
    /// How many there were in the life of the group.
    total: u64,
    last: Arc<VecDeque<Election>>,
}

impl Elections {
    /// Those that are remembered, the oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Election> {
        self.last.iter()
    }

    /// Takes over what an entry of this term says. What comes for the last one once more completes it. The oldest beyond
    /// [`ELECTIONS_MAX`] are forgotten.
    pub(crate) fn apply(&mut self, mut election: Election) {
        let last = Arc::make_mut(&mut self.last);
        if last.back().is_some_and(|last| last.term >= election.term) {
            let known = last.back_mut().expect("it was looked at");
            // An entry says the term in which it was proposed, so nothing comes for an earlier one.
            election.number = known.number;
            *known = election;
            return;
        }
        self.total += 1;
        election.number = self.total;
        last.push_back(election);
        last.drain(..last.len().saturating_sub(ELECTIONS_MAX));
    }

    /// Appends its bytes, for a checkpoint.
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_varint(self.total);
        bytes.put_varint(self.last.len() as u64);
        self.last.iter().for_each(|election| election.encode(bytes));
    }

    /// Reads what [`Elections::encode`] wrote.
    pub(crate) fn decode(reader: &mut Reader<'_>) -> Result<Elections, Malformed> {
        let (total, count) = (reader.varint()?, reader.varint()?);
        let first = total.checked_sub(count).ok_or(Malformed)?;
        if count > ELECTIONS_MAX as u64 {
            return Err(Malformed);
        }
        let mut last = VecDeque::new();
        for number in first + 1..=total {
            last.push_back(Election { number, ..Election::decode(reader)? });
        }
        Ok(Elections { total, last: Arc::new(last) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn election(term: u64) -> Election {
        Election {
            number: 0,
            term: Term(term),
            leader: (0xb, "node-b".into()),
            previous: (0xa, "node-a".into()),
            cause: Cause::Timeout,
            needed: 2,
            attempts: 1,
            votes: vec![
                Vote { id: 0xb, name: "node-b".into(), reason: Reason::Ok },
                Vote { id: 0xc, name: "node-c".into(), reason: Reason::LogBehind },
            ],
            won_at: ScheduleTime(1_700_000_000_000),
            detect: Some(Millis(611)),
            elect: Some(Millis(38)),
            ready: None,
            traffic: None,
        }
    }

    /// Goal: an entry that was once written is read for ever. The golden file holds one.
    #[test]
    fn the_entry_is_the_one_of_the_golden_file() {
        let golden = include_str!("../testdata/election-v1.hex").trim();
        let entry = election(8).entry();
        let hex: String = entry.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden);
        let mut reader = Reader::new(&entry[1..]);
        assert_eq!(Election::decode(&mut reader), Ok(election(8)));
        assert!((1..entry.len()).all(|length| Election::decode(&mut Reader::new(&entry[1..length])).is_err()));
    }

    /// Goal: one record for each term, however often it is told; the last ones are kept, with the numbers they had.
    #[test]
    fn each_term_has_one_record_and_the_last_are_kept() {
        let mut elections = Elections::default();
        for term in 1..=503 {
            elections.apply(election(term));
            elections.apply(Election { ready: Some(Millis(53)), ..election(term) });
        }
        assert_eq!(elections.iter().count(), 500);
        let first = elections.iter().next().expect("some are kept");
        assert_eq!((first.number, first.term, first.outage()), (4, Term(4), Some(Millis(702))));
        let mut bytes = Vec::new();
        elections.encode(&mut bytes);
        assert_eq!(Elections::decode(&mut Reader::new(&bytes)), Ok(elections));
    }
}
