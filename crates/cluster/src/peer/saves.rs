//! Checkpoints that one member asks another one to write.
//!
//! ```text
//! save   number of the request, then for each group (2) the index that must be applied first
//! saved  number of the request, then for each group (2) the index that its checkpoint is of
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use base::codec::{Malformed, Reader, Write};
use base::machine::StateMachine;
use base::{Index, ShardId};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::inbox::Control;
use crate::node::Common;

/// A member that has not caught up by then, or has not written by then, does not answer.
const SAVE_TIMEOUT: Duration = Duration::from_secs(60);

/// Requests to one member that wait at a time; more are refused.
pub(crate) const SAVES_MAX: usize = 16;

/// Which index each group is to have, or has.
pub(crate) type Indexes = BTreeMap<ShardId, Index>;

pub(crate) fn put(request: u64, indexes: &Indexes, body: &mut Vec<u8>) {
    body.put_varint(request);
    for (shard, index) in indexes {
        body.put_u16(shard.0);
        body.put_varint(index.0);
    }
}

pub(crate) fn read(body: &[u8]) -> Result<(u64, Indexes), Malformed> {
    let mut reader = Reader::new(body);
    let request = reader.varint()?;
    let mut indexes = Indexes::new();
    while !reader.is_empty() {
        indexes.insert(ShardId(reader.u16()?), Index(reader.varint()?));
    }
    Ok((request, indexes))
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
        common.inbox.control(Control::Save(done));
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
        put(300, &indexes, &mut body);
        assert_eq!(read(&body), Ok((300, indexes)));
        assert!((1..body.len()).any(|length| read(&body[..length]).is_err()));
    }
}
