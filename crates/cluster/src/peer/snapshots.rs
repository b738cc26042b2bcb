//! Snapshots on their way between nodes: copies of checkpoints, sent in pieces between everything else, and put together by a thread of
//! their own.
//!
//! ```text
//! chunk     group (2), index, term, length (varints), SHA-256 (32), members, the message of consensus that hands the snapshot over,
//!           offset, bytes
//! received  group (2), 0 and how many bytes have arrived, or 1: it is installed, or 2: it cannot be used
//! ```

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base::codec::{Malformed, Reader, Write};
use base::machine::{ShardInfo, StateMachine};
use base::{Index, ShardId, Term};
use bytes::Bytes;
use replica::{Arrived, Members, Message, Role, SnapshotOf};
use storage::StorageError;
use storage::checkpoint::{Incoming, Meta, Outgoing, Snapshot, Snapshots};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::timeout;

use crate::events::{Draft, Level};
use crate::inbox::Control;
use crate::peer::{Link, Shared};

/// Bytes of a snapshot in one frame: what others are sent waits behind one.
const CHUNK_BYTES: usize = 64 << 10;

/// Bytes that may be on their way: more wait until some have arrived.
const WINDOW_BYTES: u64 = 1 << 20;

/// Bytes of one snapshot sent in a second: the disks and the network belong to those who wait for answers.
const BYTES_PER_SECOND_MAX: f64 = (32 << 20) as f64;

/// A snapshot is given up when nothing of it arrives for so long, and when it is not installed after so long.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(10);
const INSTALL_TIMEOUT: Duration = Duration::from_secs(120);

/// What the receiver says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Receipt {
    /// So many bytes have arrived.
    Arrived(u64),
    /// The snapshot is the member's checkpoint now, or the member does not need it.
    Installed,
    /// It cannot be used.
    Refused,
}

// Sending.

/// Copies that were made for one member and may serve another, or the same one after a broken connection.
#[derive(Default)]
pub(crate) struct Copies(Mutex<BTreeMap<ShardId, Arc<Outgoing>>>);

impl Copies {
    /// A copy of the checkpoint of a shard whose log goes back to `first`.
    fn get(&self, shard: ShardId, first: Index, snapshots: &dyn Snapshots) -> Result<Arc<Outgoing>, StorageError> {
        let mut copies = self.0.lock().expect("nothing panics while it holds this lock");
        // What follows the copy must still be in the log.
        if let Some(copy) = copies.get(&shard).filter(|copy| copy.snapshot().meta.index.next() >= first) {
            return Ok(copy.clone());
        }
        copies.remove(&shard);
        let copy = Arc::new(snapshots.take()?);
        copies.insert(shard, copy.clone());
        Ok(copy)
    }

    /// Nobody needs it any more.
    fn release(&self, shard: ShardId) {
        self.0.lock().expect("nothing panics while it holds this lock").remove(&shard);
    }
}

/// Sends a shard's checkpoint to a member, and tells consensus what has become of it.
pub(crate) async fn send<S: StateMachine>(
    shared: Arc<Shared<S>>,
    link: Arc<Link<S>>,
    shard: ShardId,
    first: Index,
    message: Message,
) {
    let arrived = match try_send(&shared, &link, shard, first, message).await {
        Ok(arrived) => arrived,
        Err(error) => {
            let text = format!("a snapshot cannot be made: {error}");
            tell(
                &shared,
                shard,
                Draft::new(Level::Warn, "raft.snapshot.failed", text).with("peer", shared.name(link.id)),
            );
            false
        }
    };
    if arrived {
        shared.copies.release(shard);
    }
    link.end_transfer(shard);
    shared.common.inbox.control(Control::SnapshotSent(shard, link.id, arrived));
}

async fn try_send<S: StateMachine>(
    shared: &Arc<Shared<S>>,
    link: &Link<S>,
    shard: ShardId,
    first: Index,
    message: Message,
) -> Result<bool, StorageError> {
    let Some(mut receipts) = link.begin_transfer(shard) else { return Ok(false) };
    let context = shared.clone();
    let taken = tokio::task::spawn_blocking(move || {
        let snapshots = context.snapshots.get().and_then(|snapshots| snapshots.get(&shard)).cloned();
        snapshots.map(|snapshots| context.copies.get(shard, first, &*snapshots))
    });
    // A panic has been logged where it happened; without snapshots the node has not opened its checkpoints.
    let Ok(Some(copy)) = taken.await else { return Ok(false) };
    let copy = copy?;
    let snapshot = copy.snapshot().clone();
    let Ok(members) = Members::decode(&snapshot.meta.configuration) else { return Ok(false) };
    let of = SnapshotOf { index: snapshot.meta.index, term: snapshot.meta.term, configuration: members.configuration };
    let message = message.with_snapshot(&of);
    let mut message_bytes = Vec::new();
    message.encode(&mut message_bytes);
    let peer = shared.name(link.id);
    let sending = Draft::new(Level::Info, "raft.snapshot.sending", format!("sends {peer} a snapshot at {}", of.index))
        .with("index", of.index.0)
        .with("snapshotTerm", of.term.0)
        .with("bytes", snapshot.length)
        .with("peer", peer);
    tell(shared, shard, sending);
    // An empty piece asks how much is there already.
    let (mut sent, mut there) = (0, None);
    let mut begun = (tokio::time::Instant::now(), 0);
    let mut buffer = vec![0; CHUNK_BYTES];
    link.put_chunk(chunk(shard, &snapshot, &message_bytes, 0, &[]));
    loop {
        let longest = if there == Some(snapshot.length) { INSTALL_TIMEOUT } else { PROGRESS_TIMEOUT };
        match timeout(longest, receipts.recv()).await {
            Ok(Some(Receipt::Arrived(count))) => {
                if there.is_none() {
                    sent = count;
                    begun = (tokio::time::Instant::now(), count);
                }
                there = Some(count);
            }
            Ok(Some(Receipt::Installed)) => return Ok(true),
            Ok(Some(Receipt::Refused) | None) | Err(_) => return Ok(false),
        }
        while sent < snapshot.length && sent - there.unwrap_or_default() < WINDOW_BYTES {
            let read = copy.read_at(sent, &mut buffer)?;
            link.put_chunk(chunk(shard, &snapshot, &message_bytes, sent, &buffer[..read]));
            sent += read as u64;
            let due = Duration::from_secs_f64((sent - begun.1) as f64 / BYTES_PER_SECOND_MAX);
            tokio::time::sleep_until(begun.0 + due).await;
        }
    }
}

fn chunk(shard: ShardId, snapshot: &Snapshot, message: &[u8], offset: u64, bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(bytes.len() + message.len() + snapshot.meta.configuration.len() + 96);
    body.put_u16(shard.0);
    body.put_varint(snapshot.meta.index.0);
    body.put_varint(snapshot.meta.term.0);
    body.put_varint(snapshot.length);
    body.extend_from_slice(&snapshot.sha256);
    body.put_bytes(&snapshot.meta.configuration);
    body.put_bytes(message);
    body.put_varint(offset);
    body.put_bytes(bytes);
    body
}

/// Tells something of a group.
fn tell<S: StateMachine>(shared: &Shared<S>, shard: ShardId, draft: Draft) {
    let status = shared.common.status.borrow().shards.iter().find(|status| status.shard == shard).copied();
    let part = status.map(|status| (status.consensus.term, status.consensus.role));
    let (term, role) = part.unwrap_or((Term(0), Role::Follower));
    shared.common.events.tell(draft.of(shard, term, role));
}

// Receiving.

/// A piece that has come, and how to answer.
pub(crate) struct Piece {
    pub(crate) body: Bytes,
    pub(crate) answer: UnboundedSender<(ShardId, Receipt)>,
}

struct Chunk {
    shard: ShardId,
    snapshot: Snapshot,
    message: Message,
    offset: u64,
    bytes: Bytes,
}

fn read_chunk(body: &Bytes) -> Result<Chunk, Malformed> {
    let mut reader = Reader::new(body);
    let shard = ShardId(reader.u16()?);
    let (index, term) = (Index(reader.varint()?), Term(reader.varint()?));
    let (length, sha256) = (reader.varint()?, reader.array()?);
    let meta = Meta { index, term, configuration: reader.bytes()?.to_vec() };
    let message = Message::decode(&body.slice_ref(reader.bytes()?))?;
    let offset = reader.varint()?;
    let bytes = body.slice_ref(reader.bytes()?);
    reader.finish()?;
    Ok(Chunk { shard, snapshot: Snapshot { meta, length, sha256 }, message, offset, bytes })
}

/// Starts the thread that puts snapshots together. It ends when the sender is dropped.
pub(crate) fn start_receiver<S: StateMachine>(shared: Arc<Shared<S>>) -> std::io::Result<Sender<Piece>> {
    let (sender, pieces) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("codeq-snapshot".into()).spawn(move || receive(&shared, &pieces))?;
    Ok(sender)
}

fn receive<S: StateMachine>(shared: &Shared<S>, pieces: &Receiver<Piece>) {
    let mut arriving: BTreeMap<ShardId, Incoming> = BTreeMap::new();
    while let Ok(Piece { body, answer }) = pieces.recv() {
        let Ok(chunk) = read_chunk(&body) else { continue };
        let shard = chunk.shard;
        let receipt = match take_chunk(shared, &mut arriving, chunk) {
            Ok(receipt) => receipt,
            Err(error) => {
                let text = format!("a snapshot that has come cannot be used: {error}");
                tell(shared, shard, Draft::new(Level::Warn, "raft.snapshot.failed", text));
                Receipt::Refused
            }
        };
        // The connection may have ended: the sender begins again.
        let _ = answer.send((shard, receipt));
    }
}

fn take_chunk<S: StateMachine>(
    shared: &Shared<S>,
    arriving: &mut BTreeMap<ShardId, Incoming>,
    chunk: Chunk,
) -> Result<Receipt, StorageError> {
    let Chunk { shard, snapshot, message, offset, bytes } = chunk;
    let Some(snapshots) = shared.snapshots.get().and_then(|all| all.get(&shard)) else { return Ok(Receipt::Refused) };
    let mut incoming = snapshots.receive(&snapshot, arriving.remove(&shard))?;
    // A piece that does not follow is one of an earlier attempt: the answer says where to go on.
    if offset == incoming.received() && !bytes.is_empty() {
        incoming.write(offset, &bytes)?;
    }
    let received = incoming.received();
    if received < snapshot.length {
        arriving.insert(shard, incoming);
        return Ok(Receipt::Arrived(received));
    }
    let mut staged = incoming.finish()?;
    let damaged =
        |what: String| StorageError::BadSnapshot { index: snapshot.meta.index, term: snapshot.meta.term, what };
    let members =
        Members::decode(&staged.meta().configuration).map_err(|_| damaged("its members do not read back".into()))?;
    let founded = shared.common.cluster().map(|cluster| cluster.incarnation).unwrap_or_default();
    let info = ShardInfo { shard, incarnation: members.incarnation(founded) };
    let machine = S::restore(info, &mut staged).map_err(|error| damaged(error.0))?;
    let (done, installed) = tokio::sync::oneshot::channel();
    let meta = snapshot.meta;
    // The connection may have ended meanwhile.
    let done = Box::new(|| {
        let _ = done.send(());
    });
    let arrived = Arrived { shard, message, meta, staged, machine, members, done };
    shared.common.inbox.control(Control::Arrived(Box::new(arrived)));
    // The next snapshot waits: one at a time is enough for a disk. An error: it was not wanted, or the node stops.
    let _ = installed.blocking_recv();
    Ok(Receipt::Installed)
}

/// What a receiver has said, on the wire.
pub(crate) fn put_receipt(shard: ShardId, receipt: Receipt, body: &mut Vec<u8>) {
    body.put_u16(shard.0);
    match receipt {
        Receipt::Arrived(count) => {
            body.put_u8(0);
            body.put_varint(count);
        }
        Receipt::Installed => body.put_u8(1),
        Receipt::Refused => body.put_u8(2),
    }
}

pub(crate) fn read_receipt(body: &[u8]) -> Result<(ShardId, Receipt), Malformed> {
    let mut reader = Reader::new(body);
    let shard = ShardId(reader.u16()?);
    let receipt = match reader.u8()? {
        0 => Receipt::Arrived(reader.varint()?),
        1 => Receipt::Installed,
        2 => Receipt::Refused,
        _ => return Err(Malformed),
    };
    reader.finish()?;
    Ok((shard, receipt))
}

/// Where receipts of a transfer are put.
pub(crate) type Receipts = UnboundedReceiver<Receipt>;
