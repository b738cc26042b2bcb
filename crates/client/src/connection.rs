//! Connections to one server: made when there is none free, kept for the next request, closed after a while without one.
//!
//! What matters here is to know whether a request has left this program: if not, nothing can have happened.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tls::ClientTls;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::Error;
use crate::repeat::Miss;

/// Servers close connections that are idle for two minutes; before that they are not used any more, so that no request meets their end.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Longest body of an answer: a batch of claimed tasks with the largest payloads that a server may allow.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// How a socket in the file system is named among servers.
const SOCKET: &str = "unix:";

/// One server.
pub(crate) struct Endpoint {
    /// `http://host:port` and what stands before each path, or `unix:` and a path of the file system.
    pub(crate) url: String,
    way: Way,
    host: HeaderValue,
    prefix: String,
    idle: Mutex<Vec<Idle>>,
}

/// How to get there.
enum Way {
    /// Host and port.
    Plain(String),
    /// The same, encrypted: with the name that the certificate must have, and whom to trust for that.
    Encrypted { address: String, name: String, tls: ClientTls },
    /// A socket in the file system.
    Socket(PathBuf),
}

struct Idle {
    sender: SendRequest<Full<Bytes>>,
    since: Instant,
}

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Bytes,
    /// The position in the log that it belongs to, as `shard:term:index`; empty: it has none.
    pub position: String,
    /// It shows what an earlier call with the same key has made.
    pub is_replayed: bool,
}

/// What a body to send must be.
pub trait Upload: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static {}

impl<B: Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static> Upload for B {}

/// An answer, whatever its status, whose body is read piece by piece.
#[derive(Debug)]
pub struct Pieces {
    /// The HTTP status.
    pub status: u16,
    url: String,
    response: Response<Incoming>,
    /// When the head was to be there; the same holds for the whole of it.
    until: Instant,
}

impl Pieces {
    /// The next piece of the body, which may take so long to come; nothing: that was all.
    ///
    /// # Errors
    /// The body breaks off.
    pub async fn next(&mut self, longest: Duration) -> Result<Option<Bytes>, Error> {
        let broken =
            |why: &dyn std::fmt::Display| Error::Unknown(format!("{}: the answer breaks off: {why}", self.url));
        loop {
            let frame = timeout(longest, self.response.body_mut().frame()).await;
            match frame.map_err(|_| broken(&format!("nothing for {longest:?}")))? {
                None => return Ok(None),
                Some(Err(why)) => return Err(broken(&why)),
                // Trailers are nobody's.
                Some(Ok(frame)) => {
                    if let Ok(piece) = frame.into_data() {
                        return Ok(Some(piece));
                    }
                }
            }
        }
    }

    /// The rest of it, in the time that the call has: an answer as others are.
    ///
    /// # Errors
    /// The body breaks off, or is longer than an answer may be.
    pub async fn whole(self) -> Result<Answer, Error> {
        let read = timeout_at(self.until, read(self.response)).await;
        let answer = read.unwrap_or_else(|_| Err("the answer does not end in time".into()));
        answer.map_err(|why| Error::Unknown(format!("{}: {why}", self.url)))
    }
}

impl Endpoint {
    /// # Errors
    /// It is not an address that can be reached from here.
    pub(crate) fn new(url: &str, tls: Option<&ClientTls>) -> Result<Endpoint, Error> {
        let bad = |why: &str| Error::unusable(&format!("the endpoint {url:?} cannot be used"), why);
        if let Some(path) = url.strip_prefix(SOCKET) {
            if path.is_empty() {
                return Err(bad("it names no socket"));
            }
            let (way, host) = (Way::Socket(path.into()), HeaderValue::from_static("localhost"));
            return Ok(Endpoint { url: url.into(), way, host, prefix: String::new(), idle: Mutex::default() });
        }
        let whole = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: hyper::Uri = whole.parse().map_err(|_| bad("it is not a URL"))?;
        let (scheme, port) = match uri.scheme_str() {
            Some("http") => ("http", 80),
            Some("https") => ("https", 443),
            _ => return Err(bad("it begins with http:// or https://")),
        };
        let authority = uri.authority().ok_or_else(|| bad("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("credentials are given beside it, not in it"));
        }
        let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(port));
        let way = match (scheme, tls) {
            ("http", _) => Way::Plain(address),
            (_, Some(tls)) => {
                let name = authority.host().trim_matches(['[', ']']).to_owned();
                Way::Encrypted { address, name, tls: tls.clone() }
            }
            (_, None) => return Err(bad("it must be said who vouches for it (its authority)")),
        };
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad("it is not a URL"))?;
        let prefix = uri.path().trim_end_matches('/').to_owned();
        let url = format!("{scheme}://{authority}{prefix}");
        Ok(Endpoint { url, way, host, prefix, idle: Mutex::default() })
    }

    /// Sends a request and reads its answer to the end. `connect_timeout` is for the connection, `longest` for the rest.
    pub(crate) async fn exchange(
        &self,
        request: &Request<Bytes>,
        connect_timeout: Duration,
        longest: Duration,
    ) -> Result<Answer, Miss> {
        let until = Instant::now() + longest;
        loop {
            let (mut sender, is_fresh) = match self.take() {
                Some(sender) => (sender, false),
                None => (self.reach(connect_timeout).await?, true),
            };
            let body = Full::new(request.body().clone());
            let response = match self.hand_over(&mut sender, self.addressed(request, body), until).await {
                // What was idle may have been closed by the server meanwhile; nothing is lost by that.
                Err(Miss::NotSent(_)) if !is_fresh => continue,
                response => response?,
            };
            let read = timeout_at(until, read(response)).await;
            let answer = read.unwrap_or_else(|_| Err(format!("the answer breaks off after {longest:?}")));
            let answer = answer.map_err(|why| Miss::Lost(format!("{}: {why}", self.url)))?;
            if !sender.is_closed() {
                let idle = Idle { sender, since: Instant::now() };
                self.idle.lock().expect("nothing panics while it holds this lock").push(idle);
            }
            return Ok(answer);
        }
    }

    /// A connection of its own. Nothing has happened by that.
    pub(crate) async fn reach<B: Upload>(&self, longest: Duration) -> Result<SendRequest<B>, Miss> {
        let late = |_| Miss::NotSent(format!("{}: no connection within {longest:?}", self.url));
        timeout(longest, self.connect()).await.map_err(late)?
    }

    /// Sends a request on a connection of its own, and waits for the head of the answer.
    pub(crate) async fn open<B: Upload>(
        &self,
        mut sender: SendRequest<B>,
        request: &Request<Bytes>,
        body: B,
        longest: Duration,
    ) -> Result<Pieces, Miss> {
        let until = Instant::now() + longest;
        let response = self.hand_over(&mut sender, self.addressed(request, body), until).await?;
        Ok(Pieces { status: response.status().as_u16(), url: self.url.clone(), response, until })
    }

    /// Sends a request and waits for the head of its answer.
    async fn hand_over<B: Upload>(
        &self,
        sender: &mut SendRequest<B>,
        request: Request<B>,
        until: Instant,
    ) -> Result<Response<Incoming>, Miss> {
        if sender.ready().await.is_err() {
            return Err(Miss::NotSent(format!("{}: the connection was closed at once", self.url)));
        }
        let begun = Instant::now();
        match timeout_at(until, sender.try_send_request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(failure)) if failure.message().is_some() => {
                Err(Miss::NotSent(format!("{}: {}", self.url, failure.into_error())))
            }
            Ok(Err(failure)) => Err(Miss::Lost(format!("{}: {}", self.url, failure.into_error()))),
            Err(_) => Err(Miss::Lost(format!("{}: no answer within {:?}", self.url, until - begun))),
        }
    }

    /// A request as it goes to this server, with its body.
    fn addressed<B>(&self, request: &Request<Bytes>, body: B) -> Request<B> {
        let mut own = Request::new(body);
        *own.method_mut() = request.method().clone();
        *own.uri_mut() = if self.prefix.is_empty() {
            request.uri().clone()
        } else {
            let path = format!("{}{}", self.prefix, request.uri());
            path.parse().expect("a path before a path is a path")
        };
        *own.headers_mut() = request.headers().clone();
        own.headers_mut().insert(HOST, self.host.clone());
        own
    }

    /// The connection that was used last.
    fn take(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().expect("nothing panics while it holds this lock");
        let last = idle.pop()?;
        if last.since.elapsed() > IDLE_MAX || last.sender.is_closed() {
            // All others are older.
            idle.retain(|other| other.since.elapsed() <= IDLE_MAX && !other.sender.is_closed());
            return idle.pop().map(|idle| idle.sender);
        }
        Some(last.sender)
    }

    async fn connect<B: Upload>(&self) -> Result<SendRequest<B>, Miss> {
        let not_sent = |why: &dyn std::fmt::Display| Miss::NotSent(format!("{}: {why}", self.url));
        let dial = async |address: &str| {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true).map(|()| stream)
        };
        let sender = match &self.way {
            Way::Plain(address) => speak(dial(address).await.map_err(|cause| not_sent(&cause))?).await,
            Way::Encrypted { address, name, tls } => {
                let stream = dial(address).await.map_err(|cause| not_sent(&cause))?;
                speak(tls.connect(name, stream).await.map_err(|cause| not_sent(&cause))?).await
            }
            Way::Socket(path) => speak(UnixStream::connect(path).await.map_err(|cause| not_sent(&cause))?).await,
        };
        sender.map_err(|cause| not_sent(&cause))
    }
}

async fn speak<B: Upload>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> hyper::Result<SendRequest<B>> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Ends with the connection; what goes wrong shows at the request that is under way.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

async fn read(response: Response<Incoming>) -> Result<Answer, String> {
    let status = response.status().as_u16();
    let headers = response.headers();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let position = text("codeq-position").to_owned();
    let is_replayed = text("idempotency-replayed") == "true";
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|why| format!("the answer breaks off: {why}"))?.to_bytes();
    Ok(Answer { status, body, position, is_replayed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_urls_or_addresses() {
        for (given, url, address, prefix) in [
            ("http://a:8080", "http://a:8080", "a:8080", ""),
            ("a:8080", "http://a:8080", "a:8080", ""),
            ("http://a/", "http://a", "a:80", ""),
            ("http://a/queue/", "http://a/queue", "a:80", "/queue"),
            ("http://[::1]:80", "http://[::1]:80", "[::1]:80", ""),
        ] {
            let endpoint = Endpoint::new(given, None).expect("it can be used");
            assert!(matches!(&endpoint.way, Way::Plain(there) if there == address), "{given}");
            assert_eq!((&*endpoint.url, &*endpoint.prefix), (url, prefix));
        }
        let socket = Endpoint::new("unix:/run/codeq.sock", None).expect("it can be used");
        assert!(matches!(&socket.way, Way::Socket(path) if path.ends_with("codeq.sock")), "{}", socket.url);
        for bad in ["", "unix:", "ftp://a", "https://a", "http://", "http://me:secret@a", "a b"] {
            assert!(matches!(Endpoint::new(bad, None), Err(Error::Unusable(_))), "{bad:?}");
        }
    }
}
