//! What travels between two nodes: frames, each with its length and checksum.
//!
//! ```text
//! frame    length of kind and body (4), CRC-32C of them (4), kind (1), body
//! hello    magic "codeqpeer" (9), protocol (2), nonce (16), incarnation of the receiver or 0 (8), then the greeting
//! proof    HMAC-SHA-256 (32)
//! refused  code and text
//! messages a reading of the hybrid logical clock (8), then for each its group (2) and its bytes
//! forward  for each request its number, its group (2), how long it may wait in ms or 0, number and bytes of its operations
//! forget   number of a request
//! answer   for each request its number, then 0, position and outcomes, or 1 and why not
//! chunk    a piece of a snapshot, see `Chunk`
//! received how much of a snapshot has arrived
//! ping     a number that a pong brings back
//! ask      whoever has introduced itself wants to become a member, see `admission::Asked`
//! admitted id and incarnation of the cluster
//! report   how the sender is, see `Report`
//! request  what the sender wants beside that, see `requests`
//! response the answer to it
//! ```
//!
//! All numbers are little-endian or varints. A frame that does not fit closes the connection, never the node.

use std::io::{Error, ErrorKind};

use base::checksum::crc32c;
use base::codec::{Malformed, Reader, Write};
use base::limits::FRAME_BYTES_MAX;
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::forming::Greeting;

/// Version of this protocol. Nodes of different versions do not talk.
pub(crate) const PROTOCOL: u16 = 5;

const MAGIC: &[u8; 9] = b"codeqpeer";
const FRAME_HEADER: usize = 8;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Hello = 1,
    Proof = 2,
    Refused = 3,
    Messages = 4,
    Forward = 5,
    Forget = 6,
    Answer = 7,
    Chunk = 8,
    Received = 9,
    Ping = 10,
    Pong = 11,
    Ask = 12,
    Admitted = 13,
    Report = 14,
    Request = 15,
    Response = 16,
}

const KINDS: [Kind; 16] = [
    Kind::Hello,
    Kind::Proof,
    Kind::Refused,
    Kind::Messages,
    Kind::Forward,
    Kind::Forget,
    Kind::Answer,
    Kind::Chunk,
    Kind::Received,
    Kind::Ping,
    Kind::Pong,
    Kind::Ask,
    Kind::Admitted,
    Kind::Report,
    Kind::Request,
    Kind::Response,
];

/// Frames that wait to be written, one behind the other.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
}

impl Frames {
    /// Adds a frame whose body `write` appends.
    pub(crate) fn put(&mut self, kind: Kind, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; FRAME_HEADER]);
        self.bytes.put_u8(kind as u8);
        write(&mut self.bytes);
        let length = self.bytes.len() - start - FRAME_HEADER;
        let checksum = crc32c(0, &self.bytes[start + FRAME_HEADER..]);
        self.bytes[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
        self.bytes[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        // One large frame does not keep its memory for ever.
        self.bytes.shrink_to(BUFFER_KEPT_MAX);
    }
}

/// Room for this much is made before a read.
const READ_BYTES: usize = 64 << 10;

/// A buffer that has grown beyond this for a large frame is given back after it.
const BUFFER_KEPT_MAX: usize = 1 << 20;

/// Takes frames out of what arrives.
pub(crate) struct FrameReader<R> {
    source: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(source: R) -> FrameReader<R> {
        FrameReader { source, buffer: BytesMut::new() }
    }

    /// The next frame: its kind and its body. Cancelling loses nothing.
    ///
    /// # Errors
    /// The connection has ended, or what arrives is no frame.
    pub(crate) async fn next(&mut self) -> std::io::Result<(Kind, Bytes)> {
        loop {
            if let Some(frame) = self.take().map_err(|_| bad_frame())? {
                return Ok(frame);
            }
            if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_KEPT_MAX {
                self.buffer = BytesMut::new();
            }
            self.fill().await?;
        }
    }

    /// Whether what comes first is a record of TLS instead of a greeting: an alert, or the first one of a client.
    ///
    /// # Errors
    /// The connection has ended.
    pub(crate) async fn speaks_tls(&mut self) -> std::io::Result<bool> {
        let wanted = FRAME_HEADER + 1 + MAGIC.len();
        loop {
            let is_record = |first: &[u8]| matches!(first, [0x15 | 0x16, 0x03, 0x00..=0x04, ..]);
            if self.buffer.len() >= 3 && !is_record(&self.buffer) {
                return Ok(false);
            }
            // A greeting may have the same length by chance.
            if self.buffer.len() >= wanted {
                return Ok(self.buffer[FRAME_HEADER + 1..wanted] != *MAGIC);
            }
            match self.fill().await {
                Err(end) if end.kind() == ErrorKind::UnexpectedEof && is_record(&self.buffer) => {
                    return Ok(true);
                }
                filled => filled?,
            }
        }
    }

    async fn fill(&mut self) -> std::io::Result<()> {
        self.buffer.reserve(READ_BYTES);
        // A process that ended says no farewell, whether its connections are encrypted or not.
        let ended = || Error::new(ErrorKind::UnexpectedEof, "it closed the connection");
        match self.source.read_buf(&mut self.buffer).await {
            Ok(0) => Err(ended()),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(ended()),
            Err(error) => Err(error),
            Ok(_) => Ok(()),
        }
    }

    /// A frame that has arrived already.
    pub(crate) fn take(&mut self) -> Result<Option<(Kind, Bytes)>, Malformed> {
        let Some(header) = self.buffer.first_chunk::<FRAME_HEADER>() else { return Ok(None) };
        let mut reader = Reader::new(header);
        let (length, checksum) = (reader.u32()? as usize, reader.u32()?);
        // Looked at before anything is kept for it.
        if length == 0 || length > FRAME_BYTES_MAX {
            return Err(Malformed);
        }
        if self.buffer.len() < FRAME_HEADER + length {
            return Ok(None);
        }
        let content = &self.buffer[FRAME_HEADER..FRAME_HEADER + length];
        if crc32c(0, content) != checksum {
            return Err(Malformed);
        }
        let kind = KINDS.into_iter().find(|kind| *kind as u8 == content[0]).ok_or(Malformed)?;
        // A copy: entries of the log are parts of it, and would keep the whole buffer.
        let body = Bytes::copy_from_slice(&content[1..]);
        self.buffer.advance(FRAME_HEADER + length);
        Ok(Some((kind, body)))
    }
}

fn bad_frame() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, "it sent bytes that are no frame")
}

/// What both sides say first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) protocol: u16,
    /// Random; what the other side proves its knowledge of the secret with.
    pub(crate) nonce: [u8; 16],
    /// The incarnation that the sender expects the receiver to have; 0: any.
    pub(crate) to: u64,
    pub(crate) greeting: Greeting,
}

impl Hello {
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(MAGIC);
        bytes.put_u16(self.protocol);
        bytes.extend_from_slice(&self.nonce);
        bytes.put_u64(self.to);
        self.greeting.encode(bytes);
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Hello, Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.array()? != *MAGIC {
            return Err(Malformed);
        }
        let (protocol, nonce, to) = (reader.u16()?, reader.array()?, reader.u64()?);
        let greeting = Greeting::decode(&mut reader)?;
        // A later version may say more.
        if protocol == PROTOCOL {
            reader.finish()?;
        }
        Ok(Hello { protocol, nonce, to, greeting })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(bytes: &[u8]) -> std::io::Result<Vec<(Kind, Bytes)>> {
        let mut reader = FrameReader::new(bytes);
        let mut frames = Vec::new();
        loop {
            match reader.next().await {
                Ok(frame) => frames.push(frame),
                Err(end) if end.kind() == ErrorKind::UnexpectedEof => return Ok(frames),
                Err(other) => return Err(other),
            }
        }
    }

    #[tokio::test]
    async fn frames_read_back_and_no_damage_goes_unnoticed() {
        let mut frames = Frames::default();
        frames.put(Kind::Ping, |body| body.put_u64(7));
        frames.put(Kind::Messages, |_| {});
        frames.put(Kind::Chunk, |body| body.resize(body.len() + 100_000, 5));
        let found = read(frames.bytes()).await.expect("they are frames");
        let kinds: Vec<(Kind, usize)> = found.iter().map(|(kind, body)| (*kind, body.len())).collect();
        assert_eq!(kinds, [(Kind::Ping, 8), (Kind::Messages, 0), (Kind::Chunk, 100_000)]);
        for place in 4..30 {
            let mut bytes = frames.bytes().to_vec();
            bytes[place] ^= 1;
            let damaged = read(&bytes).await;
            assert!(damaged.is_err() || damaged.is_ok_and(|frames| frames.len() < 3), "a flip at {place}");
        }
    }

    #[tokio::test]
    async fn a_length_beyond_the_limit_is_refused_before_it_is_read() {
        let mut bytes = u32::MAX.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0; 100]);
        let refused = read(&bytes).await.expect_err("it is refused");
        assert_eq!(refused.kind(), std::io::ErrorKind::InvalidData);
    }
}
