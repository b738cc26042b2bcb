//! Bodies of answers: whole ones, and long ones that are made while they are sent.

use std::any::Any;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::sync::mpsc::Receiver;

/// A body.
pub(crate) enum Body {
    /// Known from the beginning; sent once.
    Whole(Option<Bytes>),
    /// Comes in pieces.
    Pieces(Pieces),
}

/// A long body. Its maker goes on as fast as the client reads, and ends when the client has gone.
pub(crate) struct Pieces {
    /// Bytes that are still to come, if that is known.
    pub(crate) left: Option<u64>,
    /// Where they come from; an error breaks the connection off, so that the client sees that something is missing.
    pub(crate) pieces: Receiver<std::io::Result<Bytes>>,
    /// What lives as long as the body is sent.
    pub(crate) held: Option<Box<dyn Any + Send>>,
}

impl Body {
    /// Keeps a value until a long body is sent.
    pub(crate) fn hold(&mut self, value: impl Any + Send) {
        if let Body::Pieces(pieces) = self {
            pieces.held = Some(Box::new(value));
        }
    }
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} bytes in pieces", self.left)
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        match &mut *self {
            Body::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Pieces(body) => body.pieces.poll_recv(context).map(|piece| {
                let piece = piece?;
                if let (Ok(bytes), Some(left)) = (&piece, &mut body.left) {
                    *left = left.saturating_sub(bytes.len() as u64);
                }
                Some(piece.map(Frame::data))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Body::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Body::Pieces(Pieces { left: Some(left), .. }) => SizeHint::with_exact(*left),
            Body::Pieces(_) => SizeHint::default(),
        }
    }
}
