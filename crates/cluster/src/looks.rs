//! The threads that look through checkpoints for clients. What is soon done is done by the first; what takes longer goes on with the second,
//! one after the other, so that it keeps nobody waiting who wants little. A row that is damaged, or a disk that does not read, stops the node.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base::{Index, Mono, Position, ShardId};
use storage::StorageError;
use storage::checkpoint::RowReader;
use tokio::sync::oneshot;

use crate::checkpoints::patiently;
use crate::rows::{Fail, RowsUnavailable};

/// The checkpoints of all shards.
pub type Readers = BTreeMap<ShardId, Reader>;

/// The checkpoint of a shard, looked at as of one moment.
pub struct Reader {
    /// That moment.
    pub position: Position,
    /// Its rows.
    pub rows: Box<dyn RowReader>,
}

impl Reader {
    fn new(shard: ShardId, rows: Box<dyn RowReader>) -> Reader {
        Reader { position: Position { shard, ..Position::default() }, rows }
    }

    fn begin(&mut self) -> Result<(), StorageError> {
        if let Some(meta) = self.rows.begin()? {
            self.position = Position { term: meta.term, index: meta.index, ..self.position };
        }
        Ok(())
    }
}

/// Looks waiting at most for one thread; more are refused.
const LOOKS_MAX: usize = 1_000;

/// How long a look may take before it goes to the second thread.
const QUICK_MAX: Duration = Duration::from_millis(10);

/// How long it may go on there; then it must answer with what it has.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// How a look stands for time.
pub struct Time {
    until: Instant,
    is_last: bool,
}

impl Time {
    /// Whether there is any left.
    pub fn is_left(&self) -> bool {
        Instant::now() < self.until
    }

    /// Whether this is all it gets: it must answer.
    pub fn is_last(&self) -> bool {
        self.is_last
    }
}

/// Reads until it has answered its client, or until the time is over; then it is called again, with the checkpoints as they are by then.
type Look = Box<dyn FnMut(&mut Readers, &Time) -> Result<ControlFlow<()>, StorageError> + Send>;

/// Where looks are put.
#[derive(Clone)]
pub(crate) struct Looks {
    quick: Queue,
    slow: Queue,
}

#[derive(Clone)]
struct Queue {
    sender: SyncSender<Look>,
    /// Readers that take the place of others, because their checkpoints have been replaced.
    replaced: Arc<Mutex<Vec<(ShardId, Box<dyn RowReader>)>>>,
}

const NEVER_POISONED: &str = "nothing panics while it holds this lock";

impl Looks {
    /// Starts the threads. They end when all clones are dropped, or with the first failure.
    pub(crate) fn start(
        quick: BTreeMap<ShardId, Box<dyn RowReader>>,
        slow: BTreeMap<ShardId, Box<dyn RowReader>>,
        fail: &Fail,
    ) -> std::io::Result<Looks> {
        let slow = Queue::start("codeq-scans", slow, LOOK_MAX, None, fail.clone())?;
        let quick = Queue::start("codeq-lists", quick, QUICK_MAX, Some(slow.sender.clone()), fail.clone())?;
        Ok(Looks { quick, slow })
    }

    /// Reads a shard's rows from its new checkpoint from now on.
    pub(crate) fn replace(&self, shard: ShardId, quick: Box<dyn RowReader>, slow: Box<dyn RowReader>) {
        self.quick.replaced.lock().expect(NEVER_POISONED).push((shard, quick));
        self.slow.replaced.lock().expect(NEVER_POISONED).push((shard, slow));
    }

    /// Answers what `read` does. It is called with all checkpoints and the time it has; while that is not the last, it may give nothing and
    /// go on when it is called again.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        mut read: impl FnMut(&mut Readers, &Time) -> Result<Option<T>, StorageError> + Send + 'static,
    ) -> Result<T, RowsUnavailable> {
        let (reply, answer) = oneshot::channel();
        let mut reply = Some(reply);
        let look = move |readers: &mut Readers, time: &Time| {
            if reply.as_ref().is_none_or(oneshot::Sender::is_closed) {
                return Ok(ControlFlow::Break(()));
            }
            let Some(found) = read(readers, time)? else { return Ok(ControlFlow::Continue(())) };
            if let Some(reply) = reply.take() {
                // Whoever asked may have gone meanwhile.
                let _ = reply.send(found);
            }
            Ok(ControlFlow::Break(()))
        };
        self.quick.sender.try_send(Box::new(look)).map_err(|refused| match refused {
            TrySendError::Full(_) => RowsUnavailable::Overloaded,
            TrySendError::Disconnected(_) => RowsUnavailable::NotRunning,
        })?;
        answer.await.map_err(|_| RowsUnavailable::Overloaded)
    }
}

impl Queue {
    fn start(
        name: &str,
        readers: BTreeMap<ShardId, Box<dyn RowReader>>,
        longest: Duration,
        then: Option<SyncSender<Look>>,
        fail: Fail,
    ) -> std::io::Result<Queue> {
        let (sender, receiver): (_, Receiver<Look>) = sync_channel(LOOKS_MAX);
        let replaced: Arc<Mutex<Vec<(ShardId, Box<dyn RowReader>)>>> = Arc::default();
        let replacements = replaced.clone();
        let run = move || {
            let named = |(shard, rows)| (shard, Reader::new(shard, rows));
            let mut readers: Readers = readers.into_iter().map(named).collect();
            while let Ok(mut look) = receiver.recv() {
                readers.extend(replacements.lock().expect(NEVER_POISONED).drain(..).map(named));
                let time = Time { until: Instant::now() + longest, is_last: then.is_none() };
                match patiently(|| look_once(&mut readers, &mut look, &time)) {
                    Ok(ControlFlow::Break(())) => {}
                    // Where there is no room its client is refused.
                    Ok(ControlFlow::Continue(())) => {
                        let _ = then.as_ref().map(|then| then.try_send(look));
                    }
                    Err(error) => return fail(error),
                }
            }
        };
        std::thread::Builder::new().name(name.into()).spawn(run)?;
        Ok(Queue { sender, replaced })
    }
}

fn look_once(readers: &mut Readers, look: &mut Look, time: &Time) -> Result<ControlFlow<()>, StorageError> {
    let mut begun = Ok(());
    for reader in readers.values_mut() {
        begun = begun.and_then(|()| reader.begin());
    }
    let looked = begun.and_then(|()| look(readers, time));
    // A look that did not begin has nothing to end.
    let ended = readers.values_mut().map(|reader| reader.rows.end()).fold(Ok(()), Result::and);
    looked.and_then(|looked| ended.map(|()| looked))
}

/// What readers of checkpoints see of each shard: the state at an index, and since when it may be older than what is applied.
#[derive(Debug, Default)]
pub(crate) struct Shown(Mutex<BTreeMap<ShardId, (Index, Mono)>>);

impl Shown {
    /// Readers see this index, which was the last one applied at `at`.
    pub(crate) fn set(&self, shard: ShardId, index: Index, at: Mono) {
        self.0.lock().expect(NEVER_POISONED).insert(shard, (index, at));
    }

    pub(crate) fn get(&self, shard: ShardId) -> Option<(Index, Mono)> {
        self.0.lock().expect(NEVER_POISONED).get(&shard).copied()
    }
}
