//! The two halves of a connection, as they are or encrypted. Bytes that were given to an encrypted one leave it only when it is flushed.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};

use tls::{Facts, PeerTls, TlsStream};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// What comes in.
pub(crate) enum Source {
    Plain(OwnedReadHalf),
    Encrypted(ReadHalf<TlsStream<TcpStream>>),
}

/// What goes out.
pub(crate) enum Sink {
    Plain(OwnedWriteHalf),
    Encrypted(WriteHalf<TlsStream<TcpStream>>),
}

/// Both halves, and what the certificate of the other side says, if it has shown one.
pub(crate) type Secured = (Source, Sink, Option<Facts>);

/// Which side has made a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// This one.
    Dialled,
    /// The other one.
    Accepted,
}

/// Encrypts a connection if members do so here.
///
/// # Errors
/// The two sides do not agree on that, or one does not accept the other's certificate.
pub(crate) async fn secure(tls: Option<&PeerTls>, stream: TcpStream, side: Side) -> Result<Secured> {
    let Some(tls) = tls else {
        let (source, sink) = stream.into_split();
        return Ok((Source::Plain(source), Sink::Plain(sink), None));
    };
    let (stream, facts) = match side {
        Side::Dialled => tls.connect(stream).await?,
        Side::Accepted => tls.accept(stream).await?,
    };
    let (source, sink) = tokio::io::split(stream);
    Ok((Source::Encrypted(source), Sink::Encrypted(sink), Some(facts)))
}

impl Sink {
    /// Sends these bytes now.
    ///
    /// # Errors
    /// The connection has ended.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).await?;
        self.flush().await
    }
}

impl AsyncRead for Source {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        match self.get_mut() {
            Source::Plain(half) => Pin::new(half).poll_read(context, buffer),
            Source::Encrypted(half) => Pin::new(half).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        match self.get_mut() {
            Sink::Plain(half) => Pin::new(half).poll_write(context, bytes),
            Sink::Encrypted(half) => Pin::new(half).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        match self.get_mut() {
            Sink::Plain(half) => Pin::new(half).poll_flush(context),
            Sink::Encrypted(half) => Pin::new(half).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        match self.get_mut() {
            Sink::Plain(half) => Pin::new(half).poll_shutdown(context),
            Sink::Encrypted(half) => Pin::new(half).poll_shutdown(context),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Sink::Plain(half) => half.is_write_vectored(),
            Sink::Encrypted(half) => half.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        match self.get_mut() {
            Sink::Plain(half) => Pin::new(half).poll_write_vectored(context, parts),
            Sink::Encrypted(half) => Pin::new(half).poll_write_vectored(context, parts),
        }
    }
}
