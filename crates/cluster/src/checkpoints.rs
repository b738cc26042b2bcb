//! The thread that writes checkpoints, makes files for the log, and drops what nobody needs any more: everything that takes time and that
//! nobody waits for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use base::machine::StateMachine;
use base::{Index, ShardId};
use replica::{Job, Jobs};
use storage::StorageError;
use storage::checkpoint::{BUSY_MAX, Checkpoint};
use storage::disk::Disk;

use crate::inbox::{Control, Inbox};
use crate::restoring;

/// A checkpoint is durable.
pub(crate) struct Saved {
    pub(crate) shard: ShardId,
    pub(crate) index: Index,
    /// Time spent writing it.
    pub(crate) took: Duration,
}

/// Jobs waiting at most: what does not fit is collected later.
const JOBS_MAX: usize = 8;

/// Where the loop puts jobs.
pub(crate) struct Background<D: Disk> {
    sender: SyncSender<Job<D>>,
}

impl<D: Disk> Background<D> {
    /// Starts the thread. It ends when the value is dropped.
    pub(crate) fn start<S: StateMachine>(
        checkpoints: BTreeMap<ShardId, Box<dyn Checkpoint>>,
        inbox: Arc<Inbox<S>>,
    ) -> std::io::Result<(Background<D>, std::thread::JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(JOBS_MAX);
        let thread = std::thread::Builder::new().name("codeq-checkpoint".into()).spawn(move || {
            if let Err(failure) = run(checkpoints, &receiver, &inbox) {
                inbox.control(Control::Failed(failure));
            }
        })?;
        Ok((Background { sender }, thread))
    }
}

impl<D: Disk> Jobs<D> for Background<D> {
    fn try_queue(&mut self, job: Job<D>) -> Result<(), Job<D>> {
        self.sender.try_send(job).map_err(|refused| match refused {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
        })
    }

    fn queue(&mut self, job: Job<D>) {
        // The thread has ended: the job is dropped, and the reason is on its way to the loop.
        let _ = self.sender.send(job);
    }
}

fn run<S: StateMachine, D: Disk>(
    mut checkpoints: BTreeMap<ShardId, Box<dyn Checkpoint>>,
    jobs: &Receiver<Job<D>>,
    inbox: &Inbox<S>,
) -> Result<(), StorageError> {
    let mut spent = Duration::ZERO;
    while let Ok(job) = jobs.recv() {
        let start = Instant::now();
        match job {
            Job::Write(shard, changes) => {
                let checkpoint = checkpoints.get_mut(&shard).expect("every shard has a checkpoint");
                patiently(|| checkpoint.write(&changes))?;
                spent += start.elapsed();
                // The loop may have waited for room.
                inbox.wake();
            }
            Job::Commit(shard, meta) => {
                let checkpoint = checkpoints.get_mut(&shard).expect("every shard has a checkpoint");
                patiently(|| checkpoint.commit(&meta))?;
                let took = std::mem::take(&mut spent) + start.elapsed();
                inbox.control(Control::Saved(Saved { shard, index: meta.index, took }));
            }
            Job::Install(shard, staged) => {
                let checkpoint = checkpoints.get_mut(&shard).expect("every shard has a checkpoint");
                checkpoint.install(*staged)?;
                inbox.control(Control::Installed(shard, checkpoint.reader()?));
            }
            Job::Restore(path, swap) => {
                let checkpoint = checkpoints.get_mut(&swap.shard).expect("every shard has a checkpoint");
                let members = restoring::install::<S>(&mut **checkpoint, &path, &swap)?;
                inbox.control(Control::Restored(swap.shard, Box::new(members), checkpoint.reader()?));
            }
            Job::Drop(garbage) => drop(garbage),
            Job::MakeSpare(job) => inbox.control(Control::Spare(job.run()?)),
        }
    }
    Ok(())
}

/// Tries again for as long as another program's lock is in the way: a tool of an operator must not stop a node.
pub(crate) fn patiently<T>(mut attempt: impl FnMut() -> Result<T, StorageError>) -> Result<T, StorageError> {
    let mut attempts: u64 = 0;
    loop {
        let outcome = attempt();
        let Err(busy @ StorageError::Busy { .. }) = &outcome else { return outcome };
        attempts += 1;
        // Each attempt takes as long as the one before, so this is at doubling intervals.
        if attempts.is_power_of_two() {
            let waited = BUSY_MAX.as_secs() * attempts;
            tracing::warn!(
                event = "storage.busy",
                waited,
                "{busy}; no checkpoint is written until then, and the log grows"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_of_another_program_is_waited_for_and_nothing_else() {
        let mut outcomes =
            vec![Ok(7), Err(StorageError::Busy { file: "f".into() }), Err(StorageError::Busy { file: "f".into() })];
        assert!(matches!(patiently(|| outcomes.pop().expect("it is not tried again")), Ok(7)));
        let damaged = || StorageError::Damaged { file: "f".into(), offset: None, what: "x".into() };
        let mut outcomes: Vec<Result<(), StorageError>> = vec![Err(damaged())];
        assert!(patiently(|| outcomes.pop().expect("it is not tried again")).is_err());
    }
}
