//! Messages and entries as bytes. The protobuf parser of the `raft` crate never sees bytes from outside (RUSTSEC-2024-0437 concerns it).
//!
//! There is no encoding of a proposal: operations are forwarded to a leader before they are proposed, so that no stamp of an old leader
//! enters the log of a new one.
//!
//! ```text
//! entry    empty: a new leader's first entry; else the first byte is its kind: 1 operations
//! message  kind (1), to, from, term, then the fields of its kind as varints; see `encode`
//! ```

use base::codec::{Malformed, Reader, Write};
use bytes::Bytes;
use raft::eraftpb::{Entry, Message as RaftMessage, MessageType};

/// First byte of an entry that carries operations.
pub const OPERATIONS: u8 = 1;

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

const KINDS: [(u8, MessageType); 12] = [
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
];

impl Message {
    /// The member it is for.
    pub fn to(&self) -> u64 {
        self.0.to
    }

    /// The member it is from.
    pub fn from(&self) -> u64 {
        self.0.from
    }

    /// Appends its bytes.
    ///
    /// # Panics
    /// It is of a kind that does not travel: a proposal or one of the `raft` crate's local messages. [`crate::Work`] holds none.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        let message = &self.0;
        let kind = KINDS.iter().find(|(_, known)| *known == message.get_msg_type());
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
    }

    /// Reads what [`Message::encode`] wrote. The entries share the memory of `bytes`.
    ///
    /// # Errors
    /// The bytes are not a message.
    pub fn decode(bytes: &Bytes) -> Result<Message, Malformed> {
        let mut reader = Reader::new(bytes);
        let r = &mut reader;
        let kind = r.u8()?;
        let (_, kind) = KINDS.iter().find(|(known, _)| *known == kind).ok_or(Malformed)?;
        let mut message = RaftMessage::default();
        message.set_msg_type(*kind);
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
            let entry =
                Entry { term: r.varint()?, index: r.varint()?, data: bytes.slice_ref(r.bytes()?), ..Entry::default() };
            message.entries.push(entry);
        }
        reader.finish()?;
        Ok(Message(message))
    }
}

/// An entry as storage keeps it.
pub(crate) fn to_log(entry: &Entry) -> base::log::Entry {
    base::log::Entry { index: base::Index(entry.index), term: base::Term(entry.term), data: entry.data.clone() }
}

/// An entry as the `raft` crate keeps it.
pub(crate) fn from_log(entry: &base::log::Entry) -> Entry {
    Entry { index: entry.index.0, term: entry.term.0, data: entry.data.clone(), ..Entry::default() }
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
            let data = Bytes::from(vec![1; index as usize]);
            message.entries.push(Entry { term: 3, index, data, ..Entry::default() });
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
        let travels = |kind: MessageType| KINDS.iter().any(|(_, known)| *known == kind);
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
