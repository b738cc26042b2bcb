//! Who votes and who listens.

use base::codec::{Malformed, Reader, Write};
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState};

use crate::codec::MEMBERS;

/// The members of a group, by incarnation. During a change of members, both the old and the new majority must agree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Members whose votes count.
    pub voters: Vec<u64>,
    /// Members that get the log and do not vote.
    pub learners: Vec<u64>,
    /// Voters of the configuration that is being left.
    pub voters_outgoing: Vec<u64>,
    /// Voters that become learners when it has been left.
    pub learners_next: Vec<u64>,
    /// Whether the group leaves the change by itself.
    pub auto_leave: bool,
}

impl Configuration {
    /// One voter.
    pub fn of_one(voter: u64) -> Configuration {
        Configuration { voters: vec![voter], ..Configuration::default() }
    }

    /// Its bytes, for a checkpoint.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for ids in [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next] {
            bytes.put_varint(ids.len() as u64);
            ids.iter().for_each(|id| bytes.put_u64(*id));
        }
        bytes.put_u8(u8::from(self.auto_leave));
        bytes
    }

    /// Reads what [`Configuration::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are not a configuration.
    pub fn decode(bytes: &[u8]) -> Result<Configuration, Malformed> {
        let mut reader = Reader::new(bytes);
        let mut ids = || (0..reader.varint()?).map(|_| reader.u64()).collect::<Result<Vec<u64>, _>>();
        let (voters, learners, voters_outgoing, learners_next) = (ids()?, ids()?, ids()?, ids()?);
        let auto_leave = reader.u8()? != 0;
        reader.finish()?;
        Ok(Configuration { voters, learners, voters_outgoing, learners_next, auto_leave })
    }

    /// Whether both majorities must agree: the group has entered a change and not left it yet.
    pub fn is_changing(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// Everyone who gets the log, once each, in ascending order.
    pub fn members(&self) -> Vec<u64> {
        let mut all =
            [&self.voters, &self.learners, &self.voters_outgoing, &self.learners_next].map(Vec::as_slice).concat();
        all.sort_unstable();
        all.dedup();
        all
    }

    pub(crate) fn from_raft(state: ConfState) -> Configuration {
        // The `raft` crate keeps sets, whose order depends on who came when: a checkpoint must have the same bytes on every member.
        let sorted = |mut ids: Vec<u64>| {
            ids.sort_unstable();
            ids
        };
        Configuration {
            voters: sorted(state.voters),
            learners: sorted(state.learners),
            voters_outgoing: sorted(state.voters_outgoing),
            learners_next: sorted(state.learners_next),
            auto_leave: state.auto_leave,
        }
    }

    pub(crate) fn to_raft(&self) -> ConfState {
        ConfState {
            voters: self.voters.clone(),
            learners: self.learners.clone(),
            voters_outgoing: self.voters_outgoing.clone(),
            learners_next: self.learners_next.clone(),
            auto_leave: self.auto_leave,
            ..ConfState::default()
        }
    }
}

/// One step of a change of members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// It votes from now on.
    AddVoter(u64),
    /// It gets the log and does not vote. A voter becomes a learner.
    AddLearner(u64),
    /// It gets the log and does not vote, until it takes the vote of another member, which is a member no more then.
    AddSuccessor {
        /// Who learns.
        id: u64,
        /// Whose vote it takes.
        of: u64,
    },
    /// It is a member no more.
    Remove(u64),
}

const ADD_VOTER: u8 = 0;
const ADD_LEARNER: u8 = 1;
const REMOVE: u8 = 2;
const ADD_SUCCESSOR: u8 = 3;

/// An entry that makes these changes together; none: it leaves the change under way. `note` is the proposer's, carried along.
pub(crate) fn encode_changes(changes: &[MemberChange], note: &[u8]) -> Vec<u8> {
    let mut bytes = vec![MEMBERS];
    bytes.put_varint(changes.len() as u64);
    for change in changes {
        let (kind, id) = match *change {
            MemberChange::AddVoter(id) => (ADD_VOTER, id),
            MemberChange::AddLearner(id) => (ADD_LEARNER, id),
            MemberChange::AddSuccessor { id, .. } => (ADD_SUCCESSOR, id),
            MemberChange::Remove(id) => (REMOVE, id),
        };
        bytes.put_u8(kind);
        bytes.put_u64(id);
        if let MemberChange::AddSuccessor { of, .. } = *change {
            bytes.put_u64(of);
        }
    }
    bytes.extend_from_slice(note);
    bytes
}

/// The changes of an entry, and its proposer's note.
///
/// # Errors
/// The bytes are not such an entry.
pub fn decode_changes(data: &[u8]) -> Result<(Vec<MemberChange>, &[u8]), Malformed> {
    let mut reader = Reader::new(data);
    if reader.u8()? != MEMBERS {
        return Err(Malformed);
    }
    let mut changes = Vec::new();
    for _ in 0..reader.varint()? {
        changes.push(match (reader.u8()?, reader.u64()?) {
            (ADD_VOTER, id) => MemberChange::AddVoter(id),
            (ADD_LEARNER, id) => MemberChange::AddLearner(id),
            (REMOVE, id) => MemberChange::Remove(id),
            (ADD_SUCCESSOR, id) => MemberChange::AddSuccessor { id, of: reader.u64()? },
            _ => return Err(Malformed),
        });
    }
    Ok((changes, reader.rest()))
}

/// The same in the `raft` crate's words. One change is made at once; several go through both majorities.
pub(crate) fn to_raft_change(changes: &[MemberChange]) -> ConfChangeV2 {
    let mut change = ConfChangeV2::default();
    if changes.len() > 1 {
        change.set_transition(ConfChangeTransition::Explicit);
    }
    for step in changes {
        let (kind, id) = match *step {
            MemberChange::AddVoter(id) => (ConfChangeType::AddNode, id),
            MemberChange::AddLearner(id) | MemberChange::AddSuccessor { id, .. } => {
                (ConfChangeType::AddLearnerNode, id)
            }
            MemberChange::Remove(id) => (ConfChangeType::RemoveNode, id),
        };
        let mut single = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
        single.set_change_type(kind);
        change.mut_changes().push(single);
    }
    change
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_reads_back() {
        let configuration = Configuration {
            voters: vec![1, u64::MAX],
            learners: vec![3],
            voters_outgoing: vec![1, 4],
            learners_next: vec![4],
            auto_leave: true,
        };
        let bytes = configuration.encode();
        assert_eq!(Configuration::decode(&bytes), Ok(configuration));
        assert_eq!(Configuration::decode(&bytes[..bytes.len() - 1]), Err(Malformed));
    }

    #[test]
    fn changes_and_their_note_read_back() {
        let changes = [MemberChange::AddVoter(u64::MAX), MemberChange::AddLearner(2), MemberChange::Remove(3)];
        let bytes = encode_changes(&changes, b"note");
        assert_eq!(decode_changes(&bytes), Ok((changes.to_vec(), b"note".as_slice())));
        let succession = [MemberChange::AddSuccessor { id: 4, of: u64::MAX }];
        assert_eq!(decode_changes(&encode_changes(&succession, b"")), Ok((succession.to_vec(), b"".as_slice())));
        assert_eq!(decode_changes(&encode_changes(&[], b"")), Ok((vec![], b"".as_slice())));
        assert!((0..bytes.len() - 4).all(|length| decode_changes(&bytes[..length]).is_err()));
        assert!(decode_changes(&[MEMBERS, 1, 9, 0, 0, 0, 0, 0, 0, 0, 0]).is_err(), "an unknown kind");
    }
}
