//! Who votes and who listens.

use base::codec::{Malformed, Reader, Write};
use raft::eraftpb::ConfState;

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
}
