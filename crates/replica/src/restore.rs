//! What a shard goes on from after a start: its checkpoint, and what its log holds behind it.

use base::machine::{ShardInfo, StateMachine};
use base::rows::Unreadable;
use base::{Index, ShardId, Term};
use consensus::LostLog;
use storage::StorageError;
use storage::checkpoint::{Checkpoint, Meta};
use storage::disk::Disk;
use storage::wal::{ShardLog, Wal};

use crate::members::Members;
use crate::replica::RestoreShard;

/// The first configuration stands where an entry would: whoever joins later gets it with a snapshot.
pub const FIRST: Meta = Meta { index: Index(1), term: Term(1), configuration: Vec::new() };

/// Reads a shard's checkpoint, which is called `name` in messages. If there is none yet, `found` makes the first one durable and says what it
/// is of.
///
/// # Errors
/// The disk failed, or checkpoint or log are damaged.
pub fn restore<S: StateMachine>(
    info: ShardInfo,
    checkpoint: &mut dyn Checkpoint,
    name: &str,
    mut log: ShardLog,
    found: impl FnOnce(&mut dyn Checkpoint) -> Result<Meta, StorageError>,
) -> Result<RestoreShard<S>, StorageError> {
    let damaged = |what: String| StorageError::Damaged { file: name.into(), offset: None, what };
    let meta = match checkpoint.meta()? {
        Some(meta) => meta,
        // The checkpoint is made before anything is written to the log, so a log without it has lost it.
        None if !log.entries.is_empty() => {
            return Err(damaged("it is empty, but the log has entries that follow a checkpoint".into()));
        }
        None => found(checkpoint)?,
    };
    let members = Members::decode(&meta.configuration)
        .map_err(|_| damaged("the members in table checkpoint do not read back".into()))?;
    let info = ShardInfo { incarnation: members.incarnation(info.incarnation), ..info };
    let machine = S::restore(info, &mut *checkpoint.rows()).map_err(|Unreadable(what)| damaged(what))?;
    let log_leads_here = log.drop_until(meta.index, meta.term);
    Ok(RestoreShard {
        machine,
        index: meta.index,
        term: meta.term,
        members,
        hard_state: log.hard_state,
        entries: log.entries,
        log_leads_here,
    })
}

impl<S> RestoreShard<S> {
    /// What follows the checkpoint can be written to this log from now on. Answers the first entry that the log must keep.
    pub fn follow<D: Disk>(&self, shard: ShardId, wal: &mut Wal<D>) -> Index {
        // The process that installed a snapshot may have died before the log said so.
        if !self.log_leads_here {
            wal.restart(shard, self.index, self.term);
        }
        self.index.next()
    }
}

/// What to say when the log called `file` does not hold what it must.
pub fn lost_log(file: String, shard: base::ShardId, lost: LostLog) -> StorageError {
    let what = match lost {
        LostLog::Gap { missing } => format!("entry {missing} of shard {shard} is missing"),
        LostLog::Short { last, committed } => {
            format!("the log of shard {shard} ends at entry {last}, though entry {committed} was committed")
        }
    };
    StorageError::Damaged { file, offset: None, what }
}
