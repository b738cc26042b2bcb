//! Checkpoints that one member asks another one to write.
//!
//! ```text
//! request   who asks, for each group (2) the index that must be applied first
//! response  for each group (2) the index that its checkpoint is of
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use base::codec::{Malformed, Reader, Write};
use base::machine::StateMachine;
use base::{Index, ShardId};
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::inbox::Control;
use crate::node::Common;
use crate::operate::Actor;
use crate::peer::Link;
use crate::peer::requests::What;

/// A member that has not caught up by then, or has not written by then, does not answer.
const SAVE_TIMEOUT: Duration = Duration::from_secs(60);

/// Which index each group is to have, or has.
pub(crate) type Indexes = BTreeMap<ShardId, Index>;

pub(crate) fn put(indexes: &Indexes, body: &mut Vec<u8>) {
    for (shard, index) in indexes {
        body.put_u16(shard.0);
        body.put_varint(index.0);
    }
}

pub(crate) fn read(body: &[u8]) -> Result<Indexes, Malformed> {
    let mut reader = Reader::new(body);
    let mut indexes = Indexes::new();
    while !reader.is_empty() {
        indexes.insert(ShardId(reader.u16()?), Index(reader.varint()?));
    }
    Ok(indexes)
}

/// Asks a member to write its checkpoints, once it has applied this much. Nothing: it cannot be reached, or is asked for much already.
pub(crate) fn ask<S: StateMachine>(link: &Link<S>, actor: &Actor, first: &Indexes) -> Option<oneshot::Receiver<Bytes>> {
    let mut body = Vec::new();
    actor.encode(&mut body);
    put(first, &mut body);
    link.request(What::Save, body)
}

/// Catches up to these indexes and writes a checkpoint of every group. Nothing: it did not come to that in time.
pub(crate) async fn save<S: StateMachine>(common: &Common<S>, first: &Indexes) -> Option<Indexes> {
    let saved = async {
        let mut status = common.status.subscribe();
        let reached = status.wait_for(|status| {
            let applied = |shard: &ShardId| status.shards.iter().find(|known| known.shard == *shard);
            first.iter().all(|(shard, index)| applied(shard).is_some_and(|known| known.applied >= *index))
        });
        reached.await.ok()?;
        let (done, saved) = oneshot::channel();
        common.inbox.control(Control::Save(Box::new(|indexes| drop(done.send(indexes)))));
        saved.await.ok()
    };
    timeout(SAVE_TIMEOUT, saved).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_read_back() {
        let indexes = Indexes::from([(ShardId(0), Index(7)), (ShardId(63), Index(1 << 40))]);
        let mut body = Vec::new();
        put(&indexes, &mut body);
        assert_eq!(read(&body), Ok(indexes));
        assert!((1..body.len()).any(|length| read(&body[..length]).is_err()));
    }
}
