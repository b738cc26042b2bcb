//! Parts of a backup on their way to a member that stages them, see [`crate::restoring`].
//!
//! ```text
//! request   entry that has begun the restore (8), incarnation (8), group (2), length of the part (varint), its SHA-256 (32), offset (varint),
//!           bytes
//! response  0 and how many bytes are there (varint), or 1: the part is staged, or 2 and why it cannot be
//! ```

use std::sync::Arc;
use std::time::Duration;

use base::codec::{Malformed, Reader, Write};
use base::machine::StateMachine;
use base::{Incarnation, Index, ShardId};
use bytes::Bytes;
use replica::RestoreId;
use storage::backup::BackupFile;
use tokio::time::timeout;

use crate::backup::SavedGroup;
use crate::peer::requests::What;
use crate::peer::{Link, Shared};
use crate::restoring::{Piece, Progress};

/// Bytes in one request.
const PIECE_BYTES: usize = 256 << 10;

/// Time for the answer to one: the last of a part is answered when its state has been read.
const ANSWER_MAX: Duration = Duration::from_secs(600);

/// A member that is behind may take so long to hear of the restore.
const NEWS_MAX: Duration = Duration::from_secs(10);

/// Sends all parts, one after the other, and waits until they are staged.
///
/// # Errors
/// In words, why they are not.
pub(crate) async fn send<S: StateMachine>(
    link: &Link<S>,
    id: RestoreId,
    file: &Arc<BackupFile>,
    groups: &[SavedGroup],
) -> Result<(), String> {
    for group in groups {
        let part = file.part(&group.file).ok_or("its part is missing")?;
        let sha256 = file.clone();
        let found = part.clone();
        let sha256 = tokio::task::spawn_blocking(move || sha256.sha256(&found)).await;
        let sha256 = sha256.map_err(|_| "this node stops")?.map_err(|error| error.to_string())?;
        let (mut offset, mut buffer) = (0, vec![0; PIECE_BYTES]);
        loop {
            let read = file.read_at(part, offset, &mut buffer).map_err(|error| error.to_string())?;
            let bytes = &buffer[..read];
            let piece = Piece { id, shard: ShardId(group.group), length: part.length, sha256, offset, bytes };
            let mut body = Vec::with_capacity(read + 96);
            put(&piece, &mut body);
            let answer = link.request(What::Stage, body).ok_or("it cannot be reached")?;
            let answer = timeout(ANSWER_MAX, answer).await.map_err(|_| "it does not answer")?;
            let answer = answer.map_err(|_| "the connection was lost")?;
            match read_progress(&answer).map_err(|Malformed| "its answer is not understood")? {
                Progress::Received(received) if received <= part.length => offset = received,
                Progress::Received(_) => return Err("its answer is not understood".into()),
                Progress::Staged => break,
                Progress::Refused(why) => return Err(why),
            }
        }
    }
    Ok(())
}

/// Takes a piece, once this node has heard of the restore.
pub(crate) async fn take<S: StateMachine>(shared: &Arc<Shared<S>>, body: &Bytes) -> Option<Vec<u8>> {
    let id = read_id(&mut Reader::new(body)).ok()?;
    let mut status = shared.common.status.subscribe();
    let heard = status.wait_for(|status| {
        let first = status.restores.get(&ShardId(0)).copied().unwrap_or_default();
        first.last.is_some_and(|last| last.begun >= id.begun)
    });
    let is_pending = timeout(NEWS_MAX, heard).await.ok().and_then(Result::ok).is_some_and(|status| {
        let first = status.restores.get(&ShardId(0)).copied().unwrap_or_default();
        first.last == Some(id) && first.pending
    });
    let mut answer = Vec::new();
    if !is_pending {
        put_progress(&Progress::Refused("it has not heard of the restore".into()), &mut answer);
        return Some(answer);
    }
    let (common, body) = (shared.common.clone(), body.clone());
    let taken = tokio::task::spawn_blocking(move || {
        let piece = read(&body).ok()?;
        Some(common.staging.take(&piece).unwrap_or_else(|error| Progress::Refused(error.to_string())))
    });
    put_progress(&taken.await.ok()??, &mut answer);
    Some(answer)
}

fn put(piece: &Piece<'_>, body: &mut Vec<u8>) {
    body.put_u64(piece.id.begun.0);
    body.put_u64(piece.id.incarnation.0);
    body.put_u16(piece.shard.0);
    body.put_varint(piece.length);
    body.extend_from_slice(&piece.sha256);
    body.put_varint(piece.offset);
    body.put_bytes(piece.bytes);
}

fn read_id(reader: &mut Reader<'_>) -> Result<RestoreId, Malformed> {
    Ok(RestoreId { begun: Index(reader.u64()?), incarnation: Incarnation(reader.u64()?) })
}

fn read(body: &[u8]) -> Result<Piece<'_>, Malformed> {
    let mut reader = Reader::new(body);
    let id = read_id(&mut reader)?;
    let (shard, length, sha256) = (ShardId(reader.u16()?), reader.varint()?, reader.array()?);
    let piece = Piece { id, shard, length, sha256, offset: reader.varint()?, bytes: reader.bytes()? };
    reader.finish()?;
    Ok(piece)
}

fn put_progress(progress: &Progress, body: &mut Vec<u8>) {
    match progress {
        Progress::Received(count) => {
            body.put_u8(0);
            body.put_varint(*count);
        }
        Progress::Staged => body.put_u8(1),
        Progress::Refused(why) => {
            body.put_u8(2);
            body.put_bytes(why.as_bytes());
        }
    }
}

fn read_progress(body: &[u8]) -> Result<Progress, Malformed> {
    let mut reader = Reader::new(body);
    let progress = match reader.u8()? {
        0 => Progress::Received(reader.varint()?),
        1 => Progress::Staged,
        2 => Progress::Refused(reader.text()?.to_owned()),
        _ => return Err(Malformed),
    };
    reader.finish()?;
    Ok(progress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_and_their_answers_read_back() {
        let id = RestoreId { begun: Index(7), incarnation: Incarnation(9) };
        let piece = Piece { id, shard: ShardId(3), length: 1 << 40, sha256: [5; 32], offset: 300, bytes: b"abc" };
        let mut body = Vec::new();
        put(&piece, &mut body);
        let back = read(&body).expect("it reads back");
        assert_eq!((back.id, back.shard, back.length, back.offset), (id, ShardId(3), 1 << 40, 300));
        assert_eq!((back.sha256, back.bytes), ([5; 32], &b"abc"[..]));
        assert!((0..body.len()).all(|length| read(&body[..length]).is_err()));
        for progress in [Progress::Received(12), Progress::Staged, Progress::Refused("no room".into())] {
            let mut body = Vec::new();
            put_progress(&progress, &mut body);
            assert_eq!(read_progress(&body), Ok(progress));
        }
    }
}
