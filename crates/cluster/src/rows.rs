//! The thread that reads single rows of checkpoints for clients: what has ended is not kept in memory.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};

use base::ShardId;
use base::rows::TableId;
use storage::StorageError;
use storage::checkpoint::{RowReader, StoredRow};
use tokio::sync::oneshot;

/// A row that somebody wants.
struct Wanted {
    shard: ShardId,
    /// Looked at in this order; the first row found is the answer.
    tables: Vec<TableId>,
    key: i64,
    reply: oneshot::Sender<Result<Option<(TableId, StoredRow)>, StorageError>>,
}

/// Requests waiting at most; more are refused.
const WANTED_MAX: usize = 10_000;

/// Why a row could not be read.
#[derive(Debug)]
pub enum RowsUnavailable {
    /// Too many requests wait for rows.
    Overloaded,
    /// The node has not opened its checkpoints yet, or has stopped.
    NotRunning,
    /// The disk failed, or the checkpoint is damaged.
    Failed(StorageError),
}

/// Where requests for rows are put.
#[derive(Clone)]
pub(crate) struct Rows {
    sender: SyncSender<Wanted>,
    /// Readers that take the place of others, because their checkpoints have been replaced.
    replaced: Arc<Mutex<Vec<(ShardId, Box<dyn RowReader>)>>>,
}

impl Rows {
    /// Starts the thread. It ends when all clones are dropped.
    pub(crate) fn start(readers: BTreeMap<ShardId, Box<dyn RowReader>>) -> std::io::Result<Rows> {
        let (sender, receiver) = sync_channel(WANTED_MAX);
        let replaced = Arc::new(Mutex::new(Vec::new()));
        let replacements = replaced.clone();
        std::thread::Builder::new().name("codeq-rows".into()).spawn(move || run(readers, &receiver, &replacements))?;
        Ok(Rows { sender, replaced })
    }

    /// Reads a shard's rows from its new checkpoint from now on.
    pub(crate) fn replace(&self, shard: ShardId, reader: Box<dyn RowReader>) {
        self.replaced.lock().expect("nothing panics while it holds this lock").push((shard, reader));
    }

    pub(crate) async fn find(
        &self,
        shard: ShardId,
        tables: &[TableId],
        key: i64,
    ) -> Result<Option<(TableId, StoredRow)>, RowsUnavailable> {
        let (reply, answer) = oneshot::channel();
        self.sender.try_send(Wanted { shard, tables: tables.to_vec(), key, reply }).map_err(
            |refused| match refused {
                TrySendError::Full(_) => RowsUnavailable::Overloaded,
                TrySendError::Disconnected(_) => RowsUnavailable::NotRunning,
            },
        )?;
        match answer.await {
            Ok(found) => found.map_err(RowsUnavailable::Failed),
            Err(_) => Err(RowsUnavailable::NotRunning),
        }
    }
}

fn run(
    mut readers: BTreeMap<ShardId, Box<dyn RowReader>>,
    wanted: &Receiver<Wanted>,
    replaced: &Mutex<Vec<(ShardId, Box<dyn RowReader>)>>,
) {
    while let Ok(Wanted { shard, tables, key, reply }) = wanted.recv() {
        if reply.is_closed() {
            continue;
        }
        readers.extend(replaced.lock().expect("nothing panics while it holds this lock").drain(..));
        let reader = readers.get_mut(&shard).expect("every shard has a checkpoint");
        let find = || -> Result<Option<(TableId, StoredRow)>, StorageError> {
            for table in tables {
                if let Some(row) = reader.find(table, key)? {
                    return Ok(Some((table, row)));
                }
            }
            Ok(None)
        };
        // Whoever asked may have gone meanwhile.
        let _ = reply.send(find());
    }
}
