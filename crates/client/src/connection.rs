//! Connections to one server: made when there is none free, kept for the next request, closed after a while without one.
//!
//! What matters here is to know whether a request has left this program: if not, nothing can have happened.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tls::ClientTls;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::error::Error;
use crate::repeat::Miss;

/// Servers close connections that are idle for two minutes; before that they are not used any more, so that no request meets their end.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Longest body of an answer: a batch of claimed tasks with the largest payloads that a server may allow.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// One server.
pub(crate) struct Endpoint {
    /// `http://host:port` and what stands before each path.
    pub(crate) url: String,
    address: String,
    /// The name that its certificate must have, and whom to trust for that; nothing: it is not encrypted.
    tls: Option<(String, ClientTls)>,
    host: HeaderValue,
    prefix: String,
    idle: Mutex<Vec<Idle>>,
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

impl Endpoint {
    /// # Errors
    /// It is not an address that can be reached from here.
    pub(crate) fn new(url: &str, tls: Option<&ClientTls>) -> Result<Endpoint, Error> {
        let bad = |why: &str| Error::unusable(&format!("the endpoint {url:?} cannot be used"), why);
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
        let tls = match (scheme, tls) {
            ("http", _) => None,
            (_, Some(tls)) => Some((authority.host().trim_matches(['[', ']']).to_owned(), tls.clone())),
            (_, None) => return Err(bad("it must be said who vouches for it (its authority)")),
        };
        let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(port));
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad("it is not a URL"))?;
        let prefix = uri.path().trim_end_matches('/').to_owned();
        let url = format!("{scheme}://{authority}{prefix}");
        Ok(Endpoint { url, address, tls, host, prefix, idle: Mutex::default() })
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
                None => {
                    let late = |_| Miss::NotSent(format!("{}: no connection within {connect_timeout:?}", self.url));
                    (timeout(connect_timeout, self.connect()).await.map_err(late)??, true)
                }
            };
            // What was idle may have been closed by the server meanwhile; nothing is lost by that.
            if sender.ready().await.is_err() {
                if is_fresh {
                    return Err(Miss::NotSent(format!("{}: the connection was closed at once", self.url)));
                }
                continue;
            }
            let sent = tokio::time::timeout_at(until, sender.try_send_request(self.addressed(request))).await;
            let response = match sent {
                Err(_) => return Err(Miss::Lost(format!("{}: no answer within {longest:?}", self.url))),
                Ok(Err(failure)) if failure.message().is_some() => {
                    if is_fresh {
                        return Err(Miss::NotSent(format!("{}: {}", self.url, failure.into_error())));
                    }
                    continue;
                }
                Ok(Err(failure)) => return Err(Miss::Lost(format!("{}: {}", self.url, failure.into_error()))),
                Ok(Ok(response)) => response,
            };
            let read = tokio::time::timeout_at(until, read(response)).await;
            let answer = read.unwrap_or_else(|_| Err(format!("the answer breaks off after {longest:?}")));
            let answer = answer.map_err(|why| Miss::Lost(format!("{}: {why}", self.url)))?;
            if !sender.is_closed() {
                let idle = Idle { sender, since: Instant::now() };
                self.idle.lock().expect("nothing panics while it holds this lock").push(idle);
            }
            return Ok(answer);
        }
    }

    fn addressed(&self, request: &Request<Bytes>) -> Request<Full<Bytes>> {
        let mut own = Request::new(Full::new(request.body().clone()));
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

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Miss> {
        let not_sent = |why: &dyn std::fmt::Display| Miss::NotSent(format!("{}: {why}", self.url));
        let stream = TcpStream::connect(&self.address).await.map_err(|cause| not_sent(&cause))?;
        stream.set_nodelay(true).map_err(|cause| not_sent(&cause))?;
        let sender = match &self.tls {
            None => speak(stream).await,
            Some((name, tls)) => {
                let stream = tls.connect(name, stream).await.map_err(|cause| not_sent(&cause))?;
                speak(stream).await
            }
        };
        sender.map_err(|cause| not_sent(&cause))
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> hyper::Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Ends with the connection; what goes wrong shows at the request that is under way.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

async fn read(response: Response<hyper::body::Incoming>) -> Result<Answer, String> {
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
            assert_eq!((&*endpoint.url, &*endpoint.address, &*endpoint.prefix), (url, address, prefix));
        }
        for bad in ["", "ftp://a", "https://a", "http://", "http://me:secret@a", "a b"] {
            assert!(matches!(Endpoint::new(bad, None), Err(Error::Unusable(_))), "{bad:?}");
        }
    }
}
