//! Events as bytes: in the file of a node, and between nodes.
//!
//! ```text
//! event    version (1), at in µs, hlc, seq, node, its id (8), cluster (16, 0: none), boot (8), group or none, term, part (1), name, level (1),
//!          text, number of fields, for each its name, kind (1: 0 number, 1 flag, 2 text, 3 list) and value
//! ```

use base::codec::{Malformed, Reader, Write};
use base::{ShardId, Term};
use replica::Role;

use crate::events::{Event, Level, Value};
use crate::forming::ClusterId;

const VERSION: u8 = 1;

/// Fields of an event, and items of a list.
const ITEMS_MAX: u64 = 256;

const ROLES: [Role; 4] = [Role::Follower, Role::PreCandidate, Role::Candidate, Role::Leader];
const LEVELS: [Level; 4] = [Level::Debug, Level::Info, Level::Warn, Level::Error];

pub(crate) fn encode(event: &Event, bytes: &mut Vec<u8>) {
    bytes.put_u8(VERSION);
    for number in [event.at_micros, event.hlc, event.seq] {
        bytes.put_varint(number);
    }
    bytes.put_bytes(event.node.as_bytes());
    bytes.put_u64(event.node_id);
    bytes.extend_from_slice(&event.cluster.map_or(0, |cluster| cluster.0).to_le_bytes());
    bytes.put_u64(event.boot);
    bytes.put_option(event.group.map(|group| u64::from(group.0)));
    bytes.put_varint(event.term.0);
    let role = event.role.and_then(|role| ROLES.iter().position(|known| *known == role));
    bytes.put_u8(role.map_or(0, |place| place as u8 + 1));
    bytes.put_bytes(event.name.as_bytes());
    bytes.put_u8(LEVELS.iter().position(|known| *known == event.level).expect("all are listed") as u8);
    bytes.put_bytes(event.text.as_bytes());
    bytes.put_varint(event.fields.len() as u64);
    for (name, value) in &event.fields {
        bytes.put_bytes(name.as_bytes());
        match value {
            Value::Number(number) => {
                bytes.put_u8(0);
                bytes.put_varint(*number);
            }
            Value::Flag(flag) => {
                bytes.put_u8(1);
                bytes.put_u8(u8::from(*flag));
            }
            Value::Text(text) => {
                bytes.put_u8(2);
                bytes.put_bytes(text.as_bytes());
            }
            Value::List(texts) => {
                bytes.put_u8(3);
                bytes.put_varint(texts.len() as u64);
                texts.iter().for_each(|text| bytes.put_bytes(text.as_bytes()));
            }
        }
    }
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Event, Malformed> {
    let mut reader = Reader::new(bytes);
    if reader.u8()? != VERSION {
        return Err(Malformed);
    }
    let (at_micros, hlc, seq) = (reader.varint()?, reader.varint()?, reader.varint()?);
    let (node, node_id) = (reader.text()?.to_owned(), reader.u64()?);
    let cluster = Some(u128::from_le_bytes(reader.array()?)).filter(|id| *id != 0).map(ClusterId);
    let boot = reader.u64()?;
    let group = match reader.option()? {
        Some(group) => Some(ShardId(u16::try_from(group).map_err(|_| Malformed)?)),
        None => None,
    };
    let term = Term(reader.varint()?);
    let role = match reader.u8()?.checked_sub(1) {
        Some(place) => Some(*ROLES.get(usize::from(place)).ok_or(Malformed)?),
        None => None,
    };
    let name = reader.text()?.to_owned().into();
    let level = *LEVELS.get(usize::from(reader.u8()?)).ok_or(Malformed)?;
    let text = reader.text()?.to_owned();
    let mut fields = Vec::new();
    for _ in 0..count(&mut reader)? {
        let name = reader.text()?.to_owned().into();
        let value = match reader.u8()? {
            0 => Value::Number(reader.varint()?),
            1 => Value::Flag(reader.u8()? != 0),
            2 => Value::Text(reader.text()?.to_owned()),
            3 => {
                let count = count(&mut reader)?;
                let texts = (0..count).map(|_| reader.text().map(str::to_owned));
                Value::List(texts.collect::<Result<_, _>>()?)
            }
            _ => return Err(Malformed),
        };
        fields.push((name, value));
    }
    reader.finish()?;
    Ok(Event { at_micros, hlc, seq, node, node_id, cluster, boot, group, term, role, name, level, text, fields })
}

fn count(reader: &mut Reader<'_>) -> Result<u64, Malformed> {
    Some(reader.varint()?).filter(|count| *count <= ITEMS_MAX).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an event that was once written is read for ever, and no part of it is an event. The golden file holds one with every kind of
    /// field.
    #[test]
    fn the_event_is_the_one_of_the_golden_file() {
        let event = Event {
            at_micros: 1_700_000_000_000_123,
            hlc: 1_700_000_000_000 << 16 | 7,
            seq: 42,
            node: "node-b".into(),
            node_id: 0xb,
            cluster: Some(ClusterId(0xc1)),
            boot: 0xb007,
            group: Some(ShardId(0)),
            term: Term(8),
            role: Some(Role::Leader),
            name: "raft.election.won".into(),
            level: Level::Info,
            text: "election won".into(),
            fields: vec![
                ("tally".into(), Value::Number(2)),
                ("granted".into(), Value::Flag(true)),
                ("from".into(), Value::Text("node-c".into())),
                ("votesFrom".into(), Value::List(vec!["node-b".into(), "node-c".into()])),
            ],
        };
        let mut bytes = Vec::new();
        encode(&event, &mut bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("../../testdata/event-v1.hex").trim());
        assert_eq!(decode(&bytes), Ok(event));
        assert!((0..bytes.len()).all(|length| decode(&bytes[..length]).is_err()));
    }
}
