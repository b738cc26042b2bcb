//! How far somebody has come who follows the events of several nodes.

use std::collections::BTreeMap;
use std::fmt;

use crate::events::Event;

/// Nodes in a cursor; a text with more is none.
const NODES_MAX: usize = 64;

/// Of each node the hybrid logical clock's reading of the last event that is known. As text: the reading behind which all nodes' events
/// matter, and then, each behind a comma, a node's id and the reading of its last event. A plain number is a cursor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    from: u64,
    nodes: BTreeMap<u64, u64>,
}

impl From<u64> for Cursor {
    /// Everything behind this reading is to come.
    fn from(from: u64) -> Cursor {
        Cursor { from, nodes: BTreeMap::new() }
    }
}

impl Cursor {
    /// What is later than this is to come from a node.
    pub fn of(&self, node: u64) -> u64 {
        self.nodes.get(&node).copied().unwrap_or_default().max(self.from)
    }

    /// Nothing before this reading matters.
    #[must_use]
    pub fn not_before(self, from: u64) -> Cursor {
        Cursor { from: self.from.max(from), ..self }
    }

    /// An event has come.
    pub fn pass(&mut self, event: &Event) {
        let last = self.nodes.entry(event.node_id).or_default();
        *last = event.hlc.max(*last);
    }

    /// The cursor of a text; nothing: it is none.
    pub fn parse(text: &str) -> Option<Cursor> {
        let mut parts = text.split(',');
        let from = parts.next()?.parse().ok()?;
        let mut nodes = BTreeMap::new();
        for part in parts {
            let (node, hlc) = part.split_once(':')?;
            nodes.insert(u64::from_str_radix(node, 16).ok()?, hlc.parse().ok()?);
        }
        (nodes.len() <= NODES_MAX).then_some(Cursor { from, nodes })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.from)?;
        self.nodes.iter().try_for_each(|(node, hlc)| write!(f, ",{node:016x}:{hlc}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a cursor reads back, knows each node by itself, and a plain number is one for all.
    #[test]
    fn a_cursor_is_of_each_node() {
        let cursor = Cursor::parse("7,000000000000000b:12,000000000000000c:5").expect("it is one");
        assert_eq!([0xb, 0xc, 0xd].map(|node| cursor.of(node)), [12, 7, 7]);
        assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor.clone()));
        assert_eq!(cursor.not_before(20).of(0xb), 20);
        assert_eq!(Cursor::parse("42"), Some(Cursor::from(42)));
        for wrong in ["", "x", "7,", "7,b", "7,b:x", "7,x:1", "7 "] {
            assert_eq!(Cursor::parse(wrong), None, "{wrong:?}");
        }
    }
}
