//! Who is a member of a group, under which name and addresses, and who is not any more. It changes by entries of the log, so every
//! replica agrees on it at each index; a checkpoint carries it, and with it the elections that the group remembers.

use std::collections::{BTreeMap, BTreeSet};

use base::Incarnation;
use base::codec::{Malformed, Reader, Write};
use consensus::{Configuration, MemberChange};

use crate::elections::Elections;
use crate::restores::Restores;
use crate::tokens::{Joining, Tokens};

/// A member as people and peers know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Incarnation of its data directory: its Raft id.
    pub id: u64,
    /// Its name, unique among the members; 1-63 of `[A-Za-z0-9._-]`.
    pub name: String,
    /// Where peers reach it, `host:port`; empty: nowhere.
    pub peer: String,
    /// Where people reach it, a URL; empty: not known.
    pub url: String,
}

impl Member {
    /// Appends it.
    pub fn put(&self, bytes: &mut Vec<u8>) {
        bytes.put_u64(self.id);
        for text in [&self.name, &self.peer, &self.url] {
            bytes.put_bytes(text.as_bytes());
        }
    }

    /// Reads back what [`Member::put`] wrote.
    ///
    /// # Errors
    /// The bytes are not a member.
    pub fn read(reader: &mut Reader<'_>) -> Result<Member, Malformed> {
        let id = reader.u64()?;
        let mut text = || reader.text().map(String::from);
        Ok(Member { id, name: text()?, peer: text()?, url: text()? })
    }
}

/// Removed members remembered; older ones are forgotten and are then unknown rather than removed.
const REMOVED_MAX: usize = 1_000;

/// The members of a group at some index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Who votes and who listens.
    pub configuration: Configuration,
    known: BTreeMap<u64, Member>,
    /// By the order in which they were removed.
    removed: Vec<u64>,
    /// Which elections the group remembers.
    pub(crate) elections: Elections,
    /// Learners that were voters, or were admitted as replicas: they wait to be promoted by hand.
    demoted: BTreeSet<u64>,
    /// Learners that take the vote of another member when they have caught up, and whose.
    successions: BTreeMap<u64, u64>,
    /// What the group knows of restores.
    pub(crate) restores: Restores,
    /// What lets nodes become members.
    pub(crate) tokens: Tokens,
}

impl Members {
    /// These members, all of them voters.
    pub fn of_voters(voters: impl IntoIterator<Item = Member>) -> Members {
        let known: BTreeMap<u64, Member> = voters.into_iter().map(|member| (member.id, member)).collect();
        let configuration = Configuration { voters: known.keys().copied().collect(), ..Configuration::default() };
        Members { configuration, known, ..Members::default() }
    }

    /// What is known of a member.
    pub fn get(&self, id: u64) -> Option<&Member> {
        self.known.get(&id)
    }

    /// All members, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.known.values()
    }

    /// The member of this name.
    pub fn named(&self, name: &str) -> Option<&Member> {
        self.known.values().find(|member| member.name == name)
    }

    /// Which elections the group remembers.
    pub fn elections(&self) -> &Elections {
        &self.elections
    }

    /// What the group knows of restores.
    pub fn restores(&self) -> &Restores {
        &self.restores
    }

    /// What lets nodes become members.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The incarnation of a cluster that was founded with this one: that of its last restore, if there was any.
    pub fn incarnation(&self, founded: Incarnation) -> Incarnation {
        self.restores.done.map_or(founded, |id| id.incarnation)
    }

    /// How many entries the state has counted that the log does not have: its state machine sees indexes that are higher by so many.
    pub fn ahead(&self) -> i64 {
        self.restores.ahead
    }

    /// The same members, of a state that is ahead of the log by so many entries.
    #[must_use]
    pub fn ahead_by(mut self, entries: i64) -> Members {
        self.restores.ahead = entries;
        self
    }

    /// Whether this one was a member once.
    pub fn was_removed(&self, id: u64) -> bool {
        self.removed.contains(&id)
    }

    /// Whether this one is a learner because its vote was taken from it, or because it is a replica.
    /// A change that makes it a learner once more ends that.
    pub fn is_demoted(&self, id: u64) -> bool {
        self.demoted.contains(&id)
    }

    /// The members whose place this one takes: the one that it was told to succeed, and earlier data directories of its own name.
    pub fn predecessors(&self, id: u64) -> Vec<u64> {
        let name = self.get(id).map(|member| &member.name);
        let named = self.known.values().filter(|other| other.id != id && Some(&other.name) == name);
        self.successions.get(&id).copied().into_iter().chain(named.map(|other| other.id)).collect()
    }

    /// Learners among these stay what they are, until an operator promotes them.
    pub(crate) fn keep_from_voting(&mut self, ids: impl IntoIterator<Item = u64>) {
        let learners = &self.configuration.learners;
        self.demoted.extend(ids.into_iter().filter(|id| learners.contains(id)));
    }

    /// Takes over what an entry says of members, after consensus has made its changes.
    pub(crate) fn apply(&mut self, changes: &[MemberChange], records: Vec<Member>, configuration: Configuration) {
        for member in records {
            self.known.insert(member.id, member);
        }
        for change in changes {
            match *change {
                MemberChange::AddLearner(id) if self.configuration.voters.contains(&id) => {
                    self.demoted.insert(id);
                }
                MemberChange::AddSuccessor { id, of } => {
                    self.demoted.remove(&id);
                    self.successions.insert(id, of);
                }
                MemberChange::AddLearner(id) | MemberChange::AddVoter(id) | MemberChange::Remove(id) => {
                    self.demoted.remove(&id);
                    self.successions.remove(&id);
                }
            }
        }
        let present: BTreeSet<u64> = configuration.members().into_iter().collect();
        for change in changes {
            if let MemberChange::Remove(id) = change
                && !present.contains(id)
            {
                self.removed.push(*id);
            }
        }
        // Who loses its vote to another one stays until the change is left, by an entry that names nobody.
        let gone = self.known.keys().filter(|id| !present.contains(id) && !self.removed.contains(id));
        self.removed.extend(gone.copied().collect::<Vec<u64>>());
        if self.removed.len() > REMOVED_MAX {
            self.removed.drain(..self.removed.len() - REMOVED_MAX);
        }
        self.known.retain(|id, _| present.contains(id));
        self.successions.retain(|id, of| configuration.learners.contains(id) && present.contains(of));
        self.configuration = configuration;
    }

    /// Its bytes, for a checkpoint.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.put_bytes(&self.configuration.encode());
        bytes.put_bytes(&encode_records(self.known.values()));
        bytes.put_varint(self.removed.len() as u64);
        self.removed.iter().for_each(|id| bytes.put_u64(*id));
        self.elections.encode(&mut bytes);
        let more = !self.restores.is_initial() || !self.tokens.is_initial();
        // Left out where there is nothing to say, as there mostly is not.
        self.demoted.iter().for_each(|id| bytes.put_u64(*id));
        if !self.successions.is_empty() || more {
            // Nobody has this id: pairs follow.
            bytes.put_u64(0);
            self.successions.iter().for_each(|(id, of)| [id, of].into_iter().for_each(|id| bytes.put_u64(*id)));
        }
        if more {
            // Nobody has this id either: no more pairs follow.
            bytes.put_u64(0);
            self.restores.encode(&mut bytes);
        }
        if !self.tokens.is_initial() {
            self.tokens.encode(&mut bytes);
        }
        bytes
    }

    /// Reads what [`Members::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(bytes: &[u8]) -> Result<Members, Malformed> {
        let mut reader = Reader::new(bytes);
        let configuration = Configuration::decode(reader.bytes()?)?;
        let known = decode_records(reader.bytes()?)?.into_iter().map(|member| (member.id, member)).collect();
        let removed = (0..reader.varint()?).map(|_| reader.u64()).collect::<Result<_, _>>()?;
        // Checkpoints of earlier builds end here.
        let elections = if reader.is_empty() { Elections::default() } else { Elections::decode(&mut reader)? };
        let (mut demoted, mut successions) = (BTreeSet::new(), BTreeMap::new());
        while !reader.is_empty() {
            match reader.u64()? {
                0 => break,
                id => demoted.insert(id),
            };
        }
        let (mut restores, mut tokens) = (Restores::default(), Tokens::default());
        while !reader.is_empty() {
            match reader.u64()? {
                0 => {
                    restores = Restores::decode(&mut reader)?;
                    if !reader.is_empty() {
                        tokens = Tokens::decode(&mut reader)?;
                    }
                    if !reader.is_empty() {
                        return Err(Malformed);
                    }
                }
                id => drop(successions.insert(id, reader.u64()?)),
            }
        }
        Ok(Members { configuration, known, removed, elections, demoted, successions, restores, tokens })
    }
}

/// The note of an entry that changes members: what is known of them, and how the newcomer among them is admitted.
pub(crate) fn encode_note(members: &[Member], admission: Option<&Joining>) -> Vec<u8> {
    let mut bytes = encode_records(members.iter());
    if let Some(admission) = admission {
        // Nobody has this id.
        bytes.put_u64(0);
        admission.encode(&mut bytes);
    }
    bytes
}

pub(crate) fn decode_note(bytes: &[u8]) -> Result<(Vec<Member>, Option<Joining>), Malformed> {
    let mut reader = Reader::new(bytes);
    let mut members = Vec::new();
    while !reader.is_empty() {
        match reader.u64()? {
            0 => {
                let admission = Joining::decode(&mut reader)?;
                reader.finish()?;
                return Ok((members, Some(admission)));
            }
            id => members.push(decode_record(id, &mut reader)?),
        }
    }
    Ok((members, None))
}

/// Members as bytes.
fn encode_records<'a>(members: impl Iterator<Item = &'a Member>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for member in members {
        bytes.put_u64(member.id);
        for text in [&member.name, &member.peer, &member.url] {
            bytes.put_bytes(text.as_bytes());
        }
    }
    bytes
}

fn decode_records(bytes: &[u8]) -> Result<Vec<Member>, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut members = Vec::new();
    while !reader.is_empty() {
        let id = reader.u64()?;
        members.push(decode_record(id, &mut reader)?);
    }
    Ok(members)
}

fn decode_record(id: u64, reader: &mut Reader<'_>) -> Result<Member, Malformed> {
    let mut text = || reader.text().map(str::to_owned);
    Ok(Member { id, name: text()?, peer: text()?, url: text()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, name: &str) -> Member {
        Member { id, name: name.into(), peer: format!("{name}:7000"), url: format!("http://{name}:8080") }
    }

    fn configuration(voters: &[u64], learners: &[u64]) -> Configuration {
        Configuration { voters: voters.to_vec(), learners: learners.to_vec(), ..Configuration::default() }
    }

    #[test]
    fn members_come_change_and_go_and_read_back() {
        let mut members = Members::of_voters([member(1, "a")]);
        members.apply(&[MemberChange::AddLearner(2)], vec![member(2, "b")], configuration(&[1], &[2]));
        assert_eq!(members.named("b").map(|found| found.id), Some(2));
        members.apply(&[], vec![Member { peer: "elsewhere:7000".into(), ..member(2, "b") }], configuration(&[1], &[2]));
        assert_eq!(members.get(2).map(|found| found.peer.as_str()), Some("elsewhere:7000"));
        assert_eq!(Members::decode(&members.encode()), Ok(members.clone()));
        members.apply(&[MemberChange::Remove(2)], vec![], configuration(&[1], &[]));
        assert!(members.get(2).is_none() && members.was_removed(2) && !members.was_removed(1));
        let bytes = members.encode();
        assert_eq!(Members::decode(&bytes), Ok(members));
        let without_elections = bytes.len() - 2;
        let cut = |length: usize| Members::decode(&bytes[..length]);
        assert!((0..bytes.len()).all(|length| cut(length).is_ok() == (length == without_elections)));
    }

    /// Whose vote is taken waits until it is made a learner once more, or a voter.
    #[test]
    fn who_is_demoted_waits() {
        let mut members = Members::of_voters([member(1, "a"), member(2, "b")]);
        let both = configuration(&[1], &[2]);
        members.apply(&[MemberChange::AddLearner(2)], vec![], both.clone());
        assert!(members.is_demoted(2) && !members.is_demoted(1));
        assert_eq!(Members::decode(&members.encode()), Ok(members.clone()));
        members.apply(&[MemberChange::AddLearner(2)], vec![], both.clone());
        assert!(!members.is_demoted(2));
        members.apply(&[MemberChange::AddVoter(2)], vec![], configuration(&[1, 2], &[]));
        members.apply(&[MemberChange::AddLearner(2)], vec![], both);
        members.apply(&[MemberChange::Remove(2)], vec![], configuration(&[1], &[]));
        assert!(!members.is_demoted(2));
    }

    /// A successor waits as a learner, also over a restart; nobody is left to succeed when the other one has gone by itself.
    #[test]
    fn who_is_to_succeed_is_remembered_as_long_as_there_is_a_vote_to_take() {
        let mut members = Members::of_voters([member(1, "a"), member(2, "b")]);
        let both = configuration(&[1, 2], &[3]);
        members.apply(&[MemberChange::AddLearner(3)], vec![member(3, "c")], both.clone());
        assert!(members.predecessors(3).is_empty());
        members.apply(&[MemberChange::AddSuccessor { id: 3, of: 2 }], vec![], both.clone());
        assert_eq!(members.predecessors(3), [2]);
        assert_eq!(Members::decode(&members.encode()), Ok(members.clone()));
        let mut gone = members.clone();
        gone.apply(&[MemberChange::Remove(2)], vec![], configuration(&[1], &[3]));
        assert!(gone.predecessors(3).is_empty());
        members.apply(&[MemberChange::AddLearner(3)], vec![], both);
        assert!(members.predecessors(3).is_empty(), "it is a learner like others again");
        members.apply(&[MemberChange::AddLearner(4)], vec![member(4, "b")], configuration(&[1, 2], &[3, 4]));
        assert_eq!(members.predecessors(4), [2], "it has the name of a voter");
    }

    /// Goal: a note says how a newcomer is admitted, or nothing of that; tokens and who is kept from voting survive a restart.
    #[test]
    fn how_a_newcomer_is_admitted_reads_back() {
        let admission = Joining { token: Some(9), at: base::ScheduleTime(7), replica: true };
        for admission in [Some(admission), None] {
            let bytes = encode_note(&[member(2, "b")], admission.as_ref());
            assert_eq!(decode_note(&bytes), Ok((vec![member(2, "b")], admission)));
            assert!((1..bytes.len()).all(|length| decode_note(&bytes[..length]) != decode_note(&bytes)));
        }
        let mut members = Members::of_voters([member(1, "a")]);
        members.apply(&[MemberChange::AddLearner(2)], vec![member(2, "b")], configuration(&[1], &[2]));
        members.keep_from_voting([1, 2]);
        assert!(members.is_demoted(2) && !members.is_demoted(1), "a voter keeps its vote");
        members.tokens.admit(&Joining { token: None, ..admission });
        assert_eq!(Members::decode(&members.encode()), Ok(members));
    }

    #[test]
    fn a_removal_that_consensus_refused_removes_nobody() {
        let mut members = Members::of_voters([member(1, "a")]);
        members.apply(&[MemberChange::Remove(1)], vec![], configuration(&[1], &[]));
        assert!(members.get(1).is_some() && !members.was_removed(1));
    }

    /// A vote that changes hands is left in a second step; the one that had it is remembered as removed from then on.
    #[test]
    fn who_loses_its_vote_to_another_is_removed_when_the_change_is_left() {
        let mut members = Members::of_voters([member(1, "a"), member(2, "b")]);
        members.apply(&[MemberChange::AddLearner(3)], vec![member(3, "b")], configuration(&[1, 2], &[3]));
        let entered = Configuration { voters_outgoing: vec![1, 2], ..configuration(&[1, 3], &[]) };
        members.apply(&[MemberChange::AddVoter(3), MemberChange::Remove(2)], vec![], entered);
        assert!(members.get(2).is_some() && !members.was_removed(2));
        members.apply(&[], vec![], configuration(&[1, 3], &[]));
        assert!(members.get(2).is_none() && members.was_removed(2));
    }

    #[test]
    fn only_so_many_removed_members_are_remembered() {
        let mut members = Members::of_voters([member(1, "a")]);
        for id in 2..REMOVED_MAX as u64 + 3 {
            members.apply(&[MemberChange::Remove(id)], vec![], configuration(&[1], &[]));
        }
        assert!(!members.was_removed(2) && members.was_removed(3));
    }
}
