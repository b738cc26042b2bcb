//! The body of a request that is a file, read piece by piece as the server takes it.

use std::io::Read;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Result;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use server::offline::WholeFile;

/// Bytes read at once.
const PIECE_BYTES: usize = 256 << 10;

/// A file on its way.
pub(crate) struct FileBody {
    file: WholeFile,
    left: u64,
}

impl FileBody {
    /// All of a file.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn open(path: &Path) -> Result<FileBody> {
        let file = WholeFile::open(path)?;
        Ok(FileBody { left: file.length(), file })
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let length = usize::try_from(self.left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        if length == 0 {
            return Poll::Ready(None);
        }
        let mut piece = vec![0; length];
        let read = self.file.read_exact(&mut piece);
        self.left -= length as u64;
        Poll::Ready(Some(read.map(|()| Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
