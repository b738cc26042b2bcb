//! I1: durable on a majority before the reply. I2: votes and acknowledgements leave after the sync of what they promise. I3: no term that was
//! promised is forgotten (looked at when a directory is opened again).

use base::codec::Reader;
use base::{Position, ShardId};

use crate::world::World;

/// Messages of consensus by the first byte of their encoding.
const APPEND_RESPONSE: u8 = 2;
const VOTE: u8 = 3;
const VOTE_RESPONSE: u8 = 4;
const HEARTBEAT_RESPONSE: u8 = 8;

impl World {
    /// A turn has written and, if it had to, synced.
    pub(crate) fn check_synced(&mut self, n: usize, synced: bool) {
        let directory = &mut self.nodes[n].directory;
        if !synced {
            return;
        }
        if let Some(name) = directory.disk.unsynced("wal-") {
            return self.violate("I2", format!("n{} takes {name} for durable, and it is not", n + 1));
        }
        directory.sealed = true;
        for written in directory.written.values_mut() {
            written.durable_term = written.term;
            for index in std::mem::take(&mut written.pending) {
                if let Some((_, durable)) = written.entries.get_mut(&index) {
                    *durable = true;
                }
            }
        }
    }

    /// A message of consensus is about to leave.
    pub(crate) fn check_sent(&mut self, n: usize, shard: ShardId, bytes: &[u8]) {
        let mut reader = Reader::new(bytes);
        let mut read = || Some((reader.u8().ok()?, [(); 5].map(|()| reader.varint().unwrap_or(0))));
        let Some((kind, [_to, _from, term, _log_term, index])) = read() else { return };
        let promises = matches!(kind, APPEND_RESPONSE | VOTE | VOTE_RESPONSE | HEARTBEAT_RESPONSE);
        if !promises {
            return;
        }
        let written = self.nodes[n].directory.written.get_mut(&shard).expect("every shard has a log");
        written.promised = written.promised.max(term);
        if term > written.durable_term {
            let what = format!(
                "n{} speaks in term {term} of shard {shard} by a message of kind {kind}, and only {} is durable ({} written)",
                n + 1,
                written.durable_term,
                written.term
            );
            return self.violate("I2", what);
        }
        let rejects = bytes_reject(bytes);
        // What was acknowledged in an earlier term may have been replaced by a later one's leader in the same turn. That one was elected by a
        // majority that had what was committed, so what it replaces was not, and is never by this answer.
        let is_present = term == written.durable_term;
        if kind == APPEND_RESPONSE
            && is_present
            && !rejects
            && index > written.checkpoint
            && !written.entries.get(&index).is_some_and(|(_, durable)| *durable)
        {
            let what = format!("n{} acknowledges entry {index} of shard {shard}, which is not durable", n + 1);
            self.violate("I2", what);
        }
    }

    /// A reply is about to leave.
    pub(crate) fn check_reply(&mut self, n: usize, position: Position) {
        let replied = self.watch.replied.entry(position.shard).or_default();
        if position.index.0 > *replied {
            *replied = position.index.0;
            self.check_majority(n, position.shard, position.index.0, "I1");
        }
    }
}

/// Whether a message says no: the byte behind ten numbers, the last of them signed.
fn bytes_reject(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes);
    let mut read = || {
        reader.u8().ok()?;
        for _ in 0..9 {
            reader.varint().ok()?;
        }
        reader.signed().ok()?;
        reader.u8().ok()
    };
    let mut skip = || read();
    skip().is_some_and(|reject| reject == 1)
}
