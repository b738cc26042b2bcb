//! Messages and entries as bytes. The protobuf parser of the `raft` crate never sees bytes from outside (RUSTSEC-2024-0437 concerns it).
//!
//! There is no encoding of a proposal: operations are forwarded to a leader before they are proposed, so that no stamp of an old leader
//! enters the log of a new one.
//!
//! ```text
//! entry    empty: a new leader's first entry; else the first byte is its kind: 1 operations, 2 members, 3 an election,
//!          4 a step of a restore, 5 a join token
//! members  kind (1), number of changes (varint), for each its kind (1) and the member (8), then a note of the proposer
//! message  kind (1), to, from, term, then the fields of its kind as varints; see `encode`
//! ```

use base::codec::{Malformed, Reader, Write};
use base::{Index, Term, planted};
use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message as RaftMessage, MessageType};

use crate::configuration::Configuration;

/// First byte of an entry that carries operations.
pub const OPERATIONS: u8 = 1;

/// First byte of an entry that changes the members; see [`crate::MemberChange`].
pub const MEMBERS: u8 = 2;

/// First byte of an entry that records an election.
pub const ELECTION: u8 = 3;

/// First byte of an entry that is a step of a restore.
pub const RESTORE: u8 = 4;

/// First byte of an entry that makes or revokes a join token.
pub const TOKEN: u8 = 5;

/// A change of members without changes: the group leaves the change it is in.
pub(crate) const LEAVE: [u8; 2] = [MEMBERS, 0];

/// A message of one group from one member to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Message(pub(crate) RaftMessage);

const APPEND: u8 = 1;
const APPEND_RESPONSE: u8 = 2;
const REQUEST_VOTE: u8 = 3;
const REQUEST_VOTE_RESPONSE: u8 = 4;
const REQUEST_PRE_VOTE: u8 = 5;
const REQUEST_PRE_VOTE_RESPONSE: u8 = 6;
const HEARTBEAT: u8 = 7;
const HEARTBEAT_RESPONSE: u8 = 8;
const TRANSFER_LEADER: u8 = 9;
const TIMEOUT_NOW: u8 = 10;
const READ_INDEX: u8 = 11;
const READ_INDEX_RESPONSE: u8 = 12;
const SNAPSHOT: u8 = 13;

const KINDS: [(u8, MessageType); 13] = [
    (APPEND, MessageType::MsgAppend),
    (APPEND_RESPONSE, MessageType::MsgAppendResponse),
    (REQUEST_VOTE, MessageType::MsgRequestVote),
    (REQUEST_VOTE_RESPONSE, MessageType::MsgRequestVoteResponse),
    (REQUEST_PRE_VOTE, MessageType::MsgRequestPreVote),
    (REQUEST_PRE_VOTE_RESPONSE, MessageType::MsgRequestPreVoteResponse),
    (HEARTBEAT, MessageType::MsgHeartbeat),
    (HEARTBEAT_RESPONSE, MessageType::MsgHeartbeatResponse),
    (TRANSFER_LEADER, MessageType::MsgTransferLeader),
    (TIMEOUT_NOW, MessageType::MsgTimeoutNow),
    (READ_INDEX, MessageType::MsgReadIndex),
    (READ_INDEX_RESPONSE, MessageType::MsgReadIndexResp),
    (SNAPSHOT, MessageType::MsgSnapshot),
];

fn kinds() -> impl Iterator<Item = (u8, MessageType)> {
    // M15: proposals travel.
    let proposal = planted::is(15).then_some((14, MessageType::MsgPropose));
    KINDS.into_iter().chain(proposal)
}

/// What a snapshot is of: it stands for the log up to here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotOf {
    /// The last entry that it covers.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
    /// The members at that entry.
    pub configuration: Configuration,
}

impl SnapshotOf {
    pub(crate) fn from_raft(snapshot: &raft::eraftpb::Snapshot) -> SnapshotOf {
        let metadata = snapshot.get_metadata();
        SnapshotOf {
            index: Index(metadata.index),
            term: Term(metadata.term),
            configuration: Configuration::from_raft(metadata.get_conf_state().clone()),
        }
    }

    pub(crate) fn to_raft(&self) -> raft::eraftpb::Snapshot {
        let mut snapshot = raft::eraftpb::Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = self.index.0;
        metadata.term = self.term.0;
        metadata.set_conf_state(self.configuration.to_raft());
        snapshot
    }
}

impl Message {
    /// The member it is for.
    pub fn to(&self) -> u64 {
        self.0.to
    }

    /// The member it is from.
    pub fn from(&self) -> u64 {
        self.0.from
    }

    /// If it hands over a snapshot: what of. The snapshot itself travels beside the message, before it.
    pub fn snapshot(&self) -> Option<SnapshotOf> {
        (self.0.get_msg_type() == MessageType::MsgSnapshot).then(|| SnapshotOf::from_raft(self.0.get_snapshot()))
    }

    /// The same message for a snapshot of another state: the one that is really sent.
    #[must_use]
    pub fn with_snapshot(mut self, snapshot: &SnapshotOf) -> Message {
        self.0.set_snapshot(snapshot.to_raft());
        self
    }

    /// Whether it keeps a leader in office: such messages go before all others.
    pub fn is_urgent(&self) -> bool {
        use MessageType as T;
        !matches!(self.0.get_msg_type(), T::MsgAppend | T::MsgAppendResponse | T::MsgSnapshot)
    }

    /// The term in which a leader sends entries with it, perhaps none.
    pub fn append_term(&self) -> Option<Term> {
        (self.0.get_msg_type() == MessageType::MsgAppend).then_some(Term(self.0.term))
    }

    /// About as many bytes as it takes.
    pub fn size(&self) -> usize {
        64 + self.0.entries.iter().map(|entry| entry.data.len() + 32).sum::<usize>()
    }

    /// Appends its bytes.
    ///
    /// # Panics
    /// It is of a kind that does not travel: a proposal or one of the `raft` crate's local messages. [`crate::Work`] holds none.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        let message = &self.0;
        let kind = kinds().find(|(_, known)| *known == message.get_msg_type());
        bytes.put_u8(kind.expect("only messages that travel are sent").0);
        for field in [
            message.to,
            message.from,
            message.term,
            message.log_term,
            message.index,
            message.commit,
            message.commit_term,
            message.request_snapshot,
            message.reject_hint,
        ] {
            bytes.put_varint(field);
        }
        bytes.put_signed(message.priority);
        bytes.put_u8(u8::from(message.reject));
        bytes.put_bytes(&message.context);
        bytes.put_varint(message.entries.len() as u64);
        for entry in &message.entries {
            bytes.put_varint(entry.term);
            bytes.put_varint(entry.index);
            bytes.put_bytes(&entry.data);
        }
        if let Some(snapshot) = self.snapshot() {
            bytes.put_varint(snapshot.index.0);
            bytes.put_varint(snapshot.term.0);
            bytes.put_bytes(&snapshot.configuration.encode());
        }
    }

    /// Reads what [`Message::encode`] wrote. The entries share the memory of `bytes`.
    ///
    /// # Errors
    /// The bytes are not a message.
    pub fn decode(bytes: &Bytes) -> Result<Message, Malformed> {
        let mut reader = Reader::new(bytes);
        let r = &mut reader;
        let kind = r.u8()?;
        let (_, kind) = kinds().find(|(known, _)| *known == kind).ok_or(Malformed)?;
        let mut message = RaftMessage::default();
        message.set_msg_type(kind);
        message.to = r.varint()?;
        message.from = r.varint()?;
        message.term = r.varint()?;
        message.log_term = r.varint()?;
        message.index = r.varint()?;
        message.commit = r.varint()?;
        message.commit_term = r.varint()?;
        message.request_snapshot = r.varint()?;
        message.reject_hint = r.varint()?;
        message.priority = r.signed()?;
        message.reject = match r.u8()? {
            0 => false,
            1 => true,
            _ => return Err(Malformed),
        };
        message.context = bytes.slice_ref(r.bytes()?);
        for _ in 0..r.varint()? {
            let (term, index) = (r.varint()?, r.varint()?);
            message.entries.push(entry(term, index, bytes.slice_ref(r.bytes()?)));
        }
        if kind == MessageType::MsgSnapshot {
            let (index, term) = (Index(r.varint()?), Term(r.varint()?));
            let configuration = Configuration::decode(r.bytes()?)?;
            message.set_snapshot(SnapshotOf { index, term, configuration }.to_raft());
        }
        reader.finish()?;
        Ok(Message(message))
    }
}

/// An entry as storage keeps it.
pub(crate) fn to_log(entry: &Entry) -> base::log::Entry {
    base::log::Entry { index: Index(entry.index), term: Term(entry.term), data: entry.data.clone() }
}

/// An entry as the `raft` crate keeps it.
pub(crate) fn from_log(from: &base::log::Entry) -> Entry {
    entry(from.term.0, from.index.0, from.data.clone())
}

/// The `raft` crate learns from the type of an entry that members change, and does not campaign before the change is applied.
fn entry(term: u64, index: u64, data: Bytes) -> Entry {
    let mut entry = Entry { term, index, data, ..Entry::default() };
    if entry.data.first() == Some(&MEMBERS) {
        entry.set_entry_type(EntryType::EntryConfChangeV2);
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: MessageType) -> Message {
        let mut message = RaftMessage::default();
        message.set_msg_type(kind);
        (message.to, message.from, message.term, message.log_term) = (1, u64::MAX, 3, 4);
        (message.index, message.commit, message.commit_term) = (5, 6, 7);
        (message.request_snapshot, message.reject_hint, message.priority, message.reject) = (8, 9, -10, true);
        message.context = Bytes::from_static(b"context");
        for index in 6..8 {
            message.entries.push(entry(3, index, Bytes::from(vec![index as u8 - 5; index as usize])));
        }
        if kind == MessageType::MsgSnapshot {
            let configuration = Configuration { voters: vec![1, 2], learners: vec![3], ..Configuration::default() };
            message.set_snapshot(SnapshotOf { index: Index(9), term: Term(2), configuration }.to_raft());
        }
        Message(message)
    }

    #[test]
    fn every_kind_of_message_reads_back() {
        for (_, kind) in KINDS {
            let message = message(kind);
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            assert_eq!(Message::decode(&bytes.clone().into()), Ok(message), "{kind:?}");
            for length in 0..bytes.len() {
                assert_eq!(
                    Message::decode(&bytes[..length].to_vec().into()),
                    Err(Malformed),
                    "{kind:?} cut to {length}"
                );
            }
        }
    }

    #[test]
    fn proposals_and_local_messages_have_no_encoding() {
        let travels = |kind: MessageType| kinds().any(|(_, known)| known == kind);
        for kind in [
            MessageType::MsgPropose,
            MessageType::MsgHup,
            MessageType::MsgBeat,
            MessageType::MsgUnreachable,
            MessageType::MsgSnapStatus,
            MessageType::MsgCheckQuorum,
        ] {
            assert!(!travels(kind), "{kind:?}");
        }
    }
}
