//! The thread that reads single rows of checkpoints for clients: what has ended is not kept in memory. A row that is damaged, or a disk that
//! does not read, stops the node.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};

use base::ShardId;
use base::rows::TableId;
use storage::StorageError;
use storage::checkpoint::{RowReader, StoredRow};
use tokio::sync::oneshot;

use crate::checkpoints::{READERS, patiently};
use crate::looks::Looks;
use crate::open::checkpoint_name;

/// A row that somebody wants.
struct Wanted {
    shard: ShardId,
    /// Looked at in this order; the first row found is the answer.
    tables: Vec<TableId>,
    key: i64,
    reply: oneshot::Sender<Result<Option<(TableId, StoredRow)>, RowsUnavailable>>,
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
    /// The disk failed, or the checkpoint is damaged: the node stops, and says what is wrong.
    Failed,
}

/// Where requests for rows are put.
#[derive(Clone)]
pub(crate) struct Rows {
    sender: SyncSender<Wanted>,
    /// Readers that take the place of others, because their checkpoints have been replaced.
    replaced: Arc<Mutex<Vec<(ShardId, Box<dyn RowReader>)>>>,
    folder: Option<PathBuf>,
    fail: Fail,
    pub(crate) looks: Looks,
}

/// Stops the node for what is wrong with its data.
pub(crate) type Fail = Arc<dyn Fn(StorageError) + Send + Sync>;

impl Rows {
    /// Starts the thread. It ends when all clones are dropped, or with the first failure. `folder` is where the checkpoints are.
    pub(crate) fn start(
        readers: BTreeMap<ShardId, Box<dyn RowReader>>,
        folder: Option<PathBuf>,
        fail: Fail,
        looks: Looks,
    ) -> std::io::Result<Rows> {
        let (sender, receiver) = sync_channel(WANTED_MAX);
        let replaced = Arc::new(Mutex::new(Vec::new()));
        let (replacements, failed) = (replaced.clone(), fail.clone());
        let thread = std::thread::Builder::new().name("codeq-rows".into());
        thread.spawn(move || run(readers, &receiver, &replacements, &*failed))?;
        Ok(Rows { sender, replaced, folder, fail, looks })
    }

    /// Reads a shard's rows from its new checkpoint from now on.
    pub(crate) fn replace(&self, shard: ShardId, [single, quick, slow]: [Box<dyn RowReader>; READERS]) {
        self.replaced.lock().expect("nothing panics while it holds this lock").push((shard, single));
        self.looks.replace(shard, quick, slow);
    }

    /// A row fits its checksum, and yet it is none that the state machine has written.
    pub(crate) fn damaged(&self, shard: ShardId, table: &str, key: i64) {
        let file = checkpoint_name(self.folder.as_deref(), shard);
        let what = format!("row {key} of a table {table} does not read back");
        (self.fail)(StorageError::Damaged { file, offset: None, what });
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
        answer.await.unwrap_or(Err(RowsUnavailable::NotRunning))
    }
}

fn run(
    mut readers: BTreeMap<ShardId, Box<dyn RowReader>>,
    wanted: &Receiver<Wanted>,
    replaced: &Mutex<Vec<(ShardId, Box<dyn RowReader>)>>,
    fail: &(dyn Fn(StorageError) + Send + Sync),
) {
    while let Ok(Wanted { shard, tables, key, reply }) = wanted.recv() {
        if reply.is_closed() {
            continue;
        }
        readers.extend(replaced.lock().expect("nothing panics while it holds this lock").drain(..));
        let reader = readers.get_mut(&shard).expect("every shard has a checkpoint");
        let find = || -> Result<Option<(TableId, StoredRow)>, StorageError> {
            for &table in &tables {
                if let Some(row) = reader.find(table, key)? {
                    return Ok(Some((table, row)));
                }
            }
            Ok(None)
        };
        let found = patiently(find);
        let failed = found.is_err();
        let found = found.map_err(|error| {
            fail(error);
            RowsUnavailable::Failed
        });
        // Whoever asked may have gone meanwhile.
        let _ = reply.send(found);
        if failed {
            return;
        }
    }
}
