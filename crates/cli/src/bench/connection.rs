//! One connection of the load generator.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Where to, and as whom.
#[derive(Clone)]
pub(super) struct Target {
    /// `host:port`.
    authority: String,
    producer: Option<HeaderValue>,
    worker: Option<HeaderValue>,
}

/// Whose token a request carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum As {
    Producer,
    Worker,
}

/// An open connection.
pub(super) struct Connection {
    target: Target,
    host: HeaderValue,
    sender: SendRequest<Full<Bytes>>,
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

impl Target {
    pub(super) fn new(url: &str, token: Option<&str>, worker_token: Option<&str>) -> Result<Target> {
        let authority = url.trim_end_matches('/').strip_prefix("http://").context("the URL begins with http://")?;
        let authority = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
        let bearer = |token: &str| -> Result<HeaderValue> {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).context("the token is printable")?;
            value.set_sensitive(true);
            Ok(value)
        };
        let producer = token.map(bearer).transpose()?;
        let worker = worker_token.or(token).map(bearer).transpose()?;
        Ok(Target { authority, producer, worker })
    }

    pub(super) async fn connect(&self) -> Result<Connection> {
        let stream =
            TcpStream::connect(&self.authority).await.with_context(|| format!("cannot reach {}", self.authority))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Ends with the connection; what goes wrong shows at the next request.
        tokio::task::spawn_local(async move { drop(connection.await) });
        Ok(Connection { target: self.clone(), host: HeaderValue::from_str(&self.authority)?, sender })
    }
}

impl Connection {
    pub(super) async fn post(&mut self, by: As, path: &str, body: Bytes) -> Result<Answer> {
        self.send(by, Request::post(path).body(Full::new(body))?).await
    }

    pub(super) async fn get(&mut self, by: As, path: &str) -> Result<Answer> {
        self.send(by, Request::get(path).body(Full::new(Bytes::new()))?).await
    }

    async fn send(&mut self, by: As, mut request: Request<Full<Bytes>>) -> Result<Answer> {
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        let token = if by == As::Producer { &self.target.producer } else { &self.target.worker };
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, token.clone());
        }
        if self.sender.is_closed() {
            *self = self.target.clone().connect().await?;
        }
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Answer { status, body })
    }
}

impl Answer {
    /// A string member of the body: the first one of that name. The bodies read here have no escapes in these members.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let body = std::str::from_utf8(&self.body).ok()?;
        let start = body.find(&format!("\"{name}\":\""))? + name.len() + 4;
        body[start..].split('"').next()
    }

    /// Fails unless the status is one of these.
    pub(super) fn expect(self, statuses: &[u16]) -> Result<Answer> {
        if statuses.contains(&self.status) {
            return Ok(self);
        }
        let body = String::from_utf8_lossy(&self.body);
        bail!("status {}: {}", self.status, body.chars().take(300).collect::<String>())
    }
}

/// How long a server that restarts is waited for.
pub(super) const RECONNECT: Duration = Duration::from_millis(100);
