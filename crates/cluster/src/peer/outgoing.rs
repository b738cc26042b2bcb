//! What goes out to one member: what waits, and the socket that it is written to.
//!
//! The socket belongs to whoever has something for it, the loop or the connection's task: to wake a task only for it to write would make
//! the member wait for that, in each direction of each round of consensus. What the socket does not take at once is left to the task.

use std::io::ErrorKind;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use base::ShardId;
use base::codec::Write;
use replica::{Message, Operations};
use tokio::io::AsyncWrite;

use crate::peer::requests::Request;
use crate::peer::stream::Sink;
use crate::peer::wire::{Frames, Kind};

/// Messages waiting for one member, in bytes; more are dropped, and Raft sends them again.
const MESSAGES_BYTES_MAX: usize = 64 << 20;

/// Messages of consensus in one frame, in bytes.
const MESSAGES_BYTES: usize = 1 << 20;

/// What waits to be sent.
#[derive(Default)]
pub(crate) struct Outbox {
    /// A sign of life asked for: the time of asking, in microseconds.
    pub(crate) ping: Option<u64>,
    /// A reading of the hybrid logical clock, not earlier than what caused the messages.
    pub(crate) hlc: u64,
    /// What keeps a leader in office.
    urgent: Vec<(ShardId, Message)>,
    messages: Vec<(ShardId, Message)>,
    messages_bytes: usize,
    /// By the number of the request, with how long it may wait in milliseconds.
    pub(crate) forwards: Vec<(u64, ShardId, u64, Operations)>,
    pub(crate) forgets: Vec<u64>,
    /// How this node is; a later report takes the place of one that waits.
    pub(crate) report: Option<Vec<u8>>,
    pub(crate) requests: Vec<Request>,
    /// Pieces of snapshots, sent behind everything else.
    pub(crate) chunks: Vec<Vec<u8>>,
}

impl Outbox {
    /// Adds a message. False: too much waits already, and it was dropped.
    pub(crate) fn put(&mut self, shard: ShardId, message: Message) -> bool {
        if message.is_urgent() {
            self.urgent.push((shard, message));
        } else if self.messages_bytes < MESSAGES_BYTES_MAX {
            self.messages_bytes += message.size();
            self.messages.push((shard, message));
        } else {
            return false;
        }
        true
    }

    fn write(self, frames: &mut Frames) {
        if let Some(asked) = self.ping {
            frames.put(Kind::Ping, |body| body.put_u64(asked));
        }
        for messages in [self.urgent, self.messages] {
            let mut messages = messages.into_iter().peekable();
            while messages.peek().is_some() {
                frames.put(Kind::Messages, |body| {
                    body.put_u64(self.hlc);
                    let start = body.len();
                    while let Some((shard, message)) = messages.peek() {
                        if body.len() > start && body.len() - start + message.size() > MESSAGES_BYTES {
                            break;
                        }
                        body.put_u16(shard.0);
                        let mut bytes = Vec::with_capacity(message.size());
                        message.encode(&mut bytes);
                        body.put_bytes(&bytes);
                        messages.next();
                    }
                });
            }
        }
        if !self.forwards.is_empty() {
            frames.put(Kind::Forward, |body| {
                for (request, shard, wait, operations) in &self.forwards {
                    body.put_varint(*request);
                    body.put_u16(shard.0);
                    body.put_varint(*wait);
                    operations.encode(body);
                }
            });
        }
        if let Some(report) = &self.report {
            frames.put(Kind::Report, |body| body.extend_from_slice(report));
        }
        for request in &self.requests {
            frames.put(Kind::Request, |body| request.encode(body));
        }
        for chunk in self.chunks {
            frames.put(Kind::Chunk, |body| body.extend_from_slice(&chunk));
        }
        for request in self.forgets {
            frames.put(Kind::Forget, |body| body.put_varint(request));
        }
    }
}

/// The socket, and what it has not taken yet.
pub(crate) struct Writing {
    socket: Sink,
    frames: Frames,
    written: usize,
}

impl Writing {
    pub(crate) fn new(socket: Sink) -> Writing {
        Writing { socket, frames: Frames::default(), written: 0 }
    }

    /// Writes what is left of the last frames, then what `next` gives until it gives nothing. Pending: the socket takes no more just now,
    /// and wakes whoever asked last when it does.
    ///
    /// # Errors
    /// The connection has ended.
    pub(crate) fn poll_flush(
        &mut self,
        context: &mut Context<'_>,
        mut next: impl FnMut() -> Outbox,
    ) -> Poll<std::io::Result<()>> {
        loop {
            while self.written < self.frames.bytes().len() {
                let rest = &self.frames.bytes()[self.written..];
                match ready!(Pin::new(&mut self.socket).poll_write(context, rest))? {
                    0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                    written => self.written += written,
                }
            }
            ready!(Pin::new(&mut self.socket).poll_flush(context))?;
            self.frames.clear();
            self.written = 0;
            next().write(&mut self.frames);
            if self.frames.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}
