//! Keeps events in a file, by a thread of its own, so that they are there after a restart.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use storage::StorageError;
use storage::records::RecordFile;

use crate::events::Event;
use crate::events::codec::{decode, encode};

/// Events in one write.
const WRITE_MAX: usize = 256;

/// The file of the last `max` events, and those that it holds, the oldest first. What this build does not understand is left out.
///
/// # Errors
/// The file cannot be read or written.
pub(crate) fn open(folder: &Path, max: usize) -> Result<(RecordFile, Vec<Event>), StorageError> {
    let (file, records) = RecordFile::open(&folder.join("events"), max)?;
    Ok((file, records.iter().filter_map(|record| decode(record).ok()).collect()))
}

/// Writes what comes until nothing comes any more. Events are for people: a disk that does not take them stops nothing, and is left alone
/// from then on.
///
/// # Errors
/// The operating system gives no thread.
pub(crate) fn start(mut file: RecordFile, events: Receiver<Arc<Event>>) -> std::io::Result<JoinHandle<()>> {
    let run = move || {
        while let Ok(first) = events.recv() {
            let records: Vec<Vec<u8>> = std::iter::once(first)
                .chain(events.try_iter())
                .take(WRITE_MAX)
                .map(|event| {
                    let mut bytes = Vec::new();
                    encode(&event, &mut bytes);
                    bytes
                })
                .collect();
            if let Err(error) = file.append(&records) {
                tracing::warn!(event = "storage.events_lost", "events are kept in memory only from now on: {error}");
                return;
            }
        }
    };
    std::thread::Builder::new().name("codeq-events".into()).spawn(run)
}
