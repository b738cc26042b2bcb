//! The client: which servers there are, as whom it asks, and how one call goes, from the first try to the last.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::BASE64;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use hyper::{Method, Request};
use serde::de::DeserializeOwned;
use tls::ClientTls;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::connection::{Answer, Endpoint, Pieces, Upload};
use crate::error::{Error, Problem};
use crate::key::chance;
use crate::repeat::{Miss, Next, Repeat, pause};

/// Calls under way at one time, where nothing else is asked for; more of them wait.
const CALLS_MAX: usize = 256;

/// Asks a cluster of servers. Clones share their connections.
///
/// ```
/// # async fn example(url: &str) -> Result<(), client::Error> {
/// use client::{Client, NewTask};
///
/// let client = Client::new(url)?;
/// let created = client.create(NewTask::new("mail", "hello")?).await?;
/// println!("{} waits", created.task.id);
/// # Ok(())
/// # }
/// # let runtime = tokio::runtime::Runtime::new().expect("a runtime");
/// # runtime.block_on(async {
/// #     let server = testserver::TestServer::start().await;
/// #     example(&server.url()).await.expect("it runs");
/// #     server.stop().await;
/// # });
/// ```
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    endpoints: Vec<Endpoint>,
    /// The server that answered last.
    preferred: AtomicUsize,
    authorization: Option<HeaderValue>,
    connect_timeout: Duration,
    timeout: Duration,
    patience: Duration,
    calls: Semaphore,
}

/// A client to be made.
#[derive(Clone, Debug)]
pub struct Builder {
    endpoints: Vec<String>,
    token: Option<String>,
    user: Option<String>,
    tls: Option<ClientTls>,
    connect_timeout: Duration,
    timeout: Duration,
    patience: Duration,
    calls_max: usize,
}

/// A request to any route.
#[derive(Clone, Debug)]
pub struct AnyRequest {
    method: Method,
    path: String,
    headers: Vec<(String, String)>,
    body: Bytes,
    repeat: Repeat,
    wait: Duration,
}

/// A call to be made.
pub(crate) struct Call {
    request: Request<Bytes>,
    repeat: Repeat,
    /// How long the server may hold it, beyond the time that an answer may take.
    wait: Duration,
    /// Longest time for all tries; nothing: the client's.
    pub(crate) patience: Option<Duration>,
}

/// How a call went.
pub(crate) struct Called {
    pub(crate) outcome: Result<Answer, Error>,
    /// A try before the last one may have had an effect.
    pub(crate) maybe_done: bool,
}

impl AnyRequest {
    /// A question. The path begins with a slash and may have a query.
    pub fn get(path: &str) -> AnyRequest {
        AnyRequest { method: Method::GET, ..AnyRequest::post(path, Bytes::new(), Repeat::Always) }
    }

    /// A POST. Whether it may be made again after a lost answer depends on what it does.
    pub fn post(path: &str, body: impl Into<Bytes>, repeat: Repeat) -> AnyRequest {
        let (method, path, body) = (Method::POST, path.to_owned(), body.into());
        AnyRequest { method, path, headers: Vec::new(), body, repeat, wait: Duration::ZERO }
    }

    /// A PATCH. Whether it may be made again after a lost answer depends on what it does.
    pub fn patch(path: &str, body: impl Into<Bytes>, repeat: Repeat) -> AnyRequest {
        AnyRequest { method: Method::PATCH, ..AnyRequest::post(path, body, repeat) }
    }

    /// A PUT, of a body that is given to [`Client::upload`].
    pub fn put(path: &str) -> AnyRequest {
        AnyRequest { method: Method::PUT, ..AnyRequest::post(path, Bytes::new(), Repeat::IfDefinite) }
    }

    /// A DELETE. Whether it may be made again after a lost answer depends on what it does.
    pub fn delete(path: &str, repeat: Repeat) -> AnyRequest {
        AnyRequest { method: Method::DELETE, ..AnyRequest::post(path, Bytes::new(), repeat) }
    }

    /// With another header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> AnyRequest {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The server was asked to wait so long before it answers.
    #[must_use]
    pub fn waiting(self, wait: Duration) -> AnyRequest {
        AnyRequest { wait, ..self }
    }
}

impl Builder {
    /// With this token, as `Authorization: Bearer`.
    #[must_use]
    pub fn token(mut self, token: &str) -> Builder {
        self.token = Some(token.trim().into());
        self
    }

    /// The token goes as the password of this user, for what stands between and knows only names and passwords.
    #[must_use]
    pub fn basic(mut self, user: &str) -> Builder {
        self.user = Some(user.into());
        self
    }

    /// Whom to trust at `https://`, and which certificate to show: what the system trusts is never asked.
    #[must_use]
    pub fn tls(mut self, tls: ClientTls) -> Builder {
        self.tls = Some(tls);
        self
    }

    /// How long a connection may take to be there. Left out: 3 s.
    #[must_use]
    pub fn connect_timeout(mut self, longest: Duration) -> Builder {
        self.connect_timeout = longest;
        self
    }

    /// How long a server may take to answer, besides the time that it was asked to wait. Left out: 15 s, which is more than a server takes to
    /// say that it does not know.
    #[must_use]
    pub fn timeout(mut self, longest: Duration) -> Builder {
        self.timeout = longest;
        self
    }

    /// How long a call is tried again while nobody takes it; zero: each server is asked once. Left out: 30 s.
    #[must_use]
    pub fn patience(mut self, longest: Duration) -> Builder {
        self.patience = longest;
        self
    }

    /// Calls under way at one time, each on a connection of its own; more of them wait. Left out: 256.
    #[must_use]
    pub fn calls_max(mut self, calls: usize) -> Builder {
        self.calls_max = calls.max(1);
        self
    }

    /// The client.
    ///
    /// # Errors
    /// There is no server, or what is given cannot be used.
    pub fn build(self) -> Result<Client, Error> {
        let endpoints = self.endpoints.iter().map(|url| Endpoint::new(url, self.tls.as_ref()));
        let endpoints = endpoints.collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(Error::Unusable("a client needs an endpoint".into()));
        }
        let authorization = match (&self.token, &self.user) {
            (None, None) => None,
            (None, Some(_)) => return Err(Error::Unusable("a user needs a token as password".into())),
            (Some(token), None) => Some(format!("Bearer {token}")),
            (Some(token), Some(user)) => Some(format!("Basic {}", BASE64.encode(format!("{user}:{token}").as_bytes()))),
        };
        let authorization = authorization.map(|text| {
            let mut value =
                HeaderValue::try_from(text).map_err(|why| Error::unusable("the token cannot be used", why))?;
            value.set_sensitive(true);
            Ok(value)
        });
        let shared = Shared {
            endpoints,
            preferred: AtomicUsize::new(0),
            authorization: authorization.transpose()?,
            connect_timeout: self.connect_timeout,
            timeout: self.timeout,
            patience: self.patience,
            calls: Semaphore::new(self.calls_max),
        };
        Ok(Client { shared: Arc::new(shared) })
    }
}

impl Client {
    /// Asks this server, without a token.
    ///
    /// # Errors
    /// The URL cannot be used.
    pub fn new(url: &str) -> Result<Client, Error> {
        Client::builder([url]).build()
    }

    /// Asks these servers, nodes of one cluster: `http://host:port`, `https://` with [`Builder::tls`], or `unix:` and the path of a socket. Each
    /// call goes to the one that answered last, and to the next one if that does not answer or cannot take it.
    pub fn builder<U: Into<String>>(endpoints: impl IntoIterator<Item = U>) -> Builder {
        Builder {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            token: None,
            user: None,
            tls: None,
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(15),
            patience: Duration::from_secs(30),
            calls_max: CALLS_MAX,
        }
    }

    /// The server that the next call goes to first.
    pub fn endpoint(&self) -> &str {
        &self.shared.endpoints[self.shared.preferred.load(Ordering::Relaxed)].url
    }

    /// Any request, for routes that have no method here. The answer has a status below 300.
    ///
    /// # Errors
    /// As every call.
    pub async fn send(&self, request: AnyRequest) -> Result<Answer, Error> {
        self.call(&self.prepared(request)?).await.outcome
    }

    /// What the first server that can be reached says, whatever its status: for pages whose status is a part of what they say, as `/readyz`.
    /// Each server is asked once, from the one that answered last on. After a request that is not to be repeated and may have been done, no
    /// other one is asked.
    ///
    /// # Errors
    /// None of them answers.
    pub async fn first_answer(&self, request: AnyRequest) -> Result<Answer, Error> {
        let (call, shared) = (self.prepared(request)?, &*self.shared);
        let longest = shared.timeout + call.wait;
        self.first(call.repeat, async |endpoint| {
            endpoint.exchange(&call.request, shared.connect_timeout, longest).await
        })
        .await
    }

    /// The same for a body that is read piece by piece: a backup, or events that come for as long as one reads.
    ///
    /// # Errors
    /// None of them answers.
    pub async fn stream(&self, request: AnyRequest) -> Result<Pieces, Error> {
        let (call, shared) = (self.prepared(request)?, &*self.shared);
        self.first(call.repeat, async |endpoint| {
            let sender = endpoint.reach(shared.connect_timeout).await?;
            let body = Full::new(call.request.body().clone());
            endpoint.open(sender, &call.request, body, shared.timeout + call.wait).await
        })
        .await
    }

    /// Sends a body that is made while it goes out, to the first server that there is a connection to, once.
    ///
    /// # Errors
    /// There is no connection to any of them; or no answer, and it may have been done.
    pub async fn upload<B: Upload>(&self, request: AnyRequest, body: B) -> Result<Answer, Error> {
        let (call, shared) = (self.prepared(request)?, &*self.shared);
        // Who cannot be reached has begun nothing.
        let reached = async |endpoint| Ok((endpoint, Endpoint::reach::<B>(endpoint, shared.connect_timeout).await?));
        let (endpoint, sender) = self.first(Repeat::IfDefinite, reached).await?;
        let opened = endpoint.open(sender, &call.request, body, shared.timeout + call.wait).await;
        match opened {
            Ok(pieces) => pieces.whole().await,
            Err(miss) if miss.is_definite() => Err(Error::Unavailable(miss.text())),
            Err(miss) => Err(Error::Unknown(miss.text())),
        }
    }

    /// Asks each server once, up to the first that answers.
    async fn first<'a, T>(
        &'a self,
        repeat: Repeat,
        attempt: impl AsyncFn(&'a Endpoint) -> Result<T, Miss>,
    ) -> Result<T, Error> {
        let shared = &*self.shared;
        let _place = shared.calls.acquire().await.expect("nobody closes it");
        let begin = shared.preferred.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for place in (0..shared.endpoints.len()).map(|place| (begin + place) % shared.endpoints.len()) {
            match attempt(&shared.endpoints[place]).await {
                Ok(answer) => {
                    shared.preferred.store(place, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(miss) => {
                    failures.push(miss.text());
                    if repeat == Repeat::IfDefinite && !miss.is_definite() {
                        return Err(Error::Unknown(failures.join("; ")));
                    }
                }
            }
        }
        Err(Error::Unavailable(failures.join("; ")))
    }

    fn prepared(&self, request: AnyRequest) -> Result<Call, Error> {
        let AnyRequest { method, path, headers, body, repeat, wait } = request;
        let mut call = self.prepare(method, &path, body, repeat)?;
        for (name, value) in headers {
            let bad =
                |why: &dyn std::fmt::Display| Error::unusable(&format!("the header {name:?} cannot be used"), why);
            let value = HeaderValue::try_from(value).map_err(|why| bad(&why))?;
            let name = HeaderName::try_from(&name).map_err(|why| bad(&why))?;
            call.request.headers_mut().insert(name, value);
        }
        Ok(call.waiting(wait))
    }

    pub(crate) fn prepare(&self, method: Method, path: &str, body: Bytes, repeat: Repeat) -> Result<Call, Error> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(authorization) = &self.shared.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request =
            request.body(body).map_err(|why| Error::unusable(&format!("the path {path:?} cannot be used"), why))?;
        Ok(Call { request, repeat, wait: Duration::ZERO, patience: None })
    }

    /// Tries until there is an answer, or it is clear that there will be none.
    pub(crate) async fn call(&self, call: &Call) -> Called {
        let shared = &*self.shared;
        let _place = shared.calls.acquire().await.expect("nobody closes it");
        let (begun, patience) = (Instant::now(), call.patience.unwrap_or(shared.patience));
        let servers = shared.endpoints.len() as u32;
        let (mut maybe_done, mut tries) = (false, 0);
        loop {
            tries += 1;
            let place = shared.preferred.load(Ordering::Relaxed);
            let miss = match self.attempt(&shared.endpoints[place], call).await {
                Ok(answer) => return Called { outcome: Ok(answer), maybe_done },
                Err(miss) => miss,
            };
            let next = miss.next(call.repeat);
            let definite = miss.is_definite();
            if let (Next::End, true, Miss::Problem(problem)) = (next, definite, &miss) {
                return Called { outcome: Err(Error::Refused(problem.clone())), maybe_done };
            }
            maybe_done |= !definite;
            if !is_about_all(&miss) {
                let following = (place + 1) % shared.endpoints.len();
                // Another call may have found out first.
                let _ = shared.preferred.compare_exchange(place, following, Ordering::Relaxed, Ordering::Relaxed);
            }
            let wait = match next {
                Next::End => None,
                // The others may be well.
                Next::Again(_) if tries < servers && !is_about_all(&miss) => Some(Duration::ZERO),
                Next::Again(named) => {
                    Some(named.unwrap_or_default().max(pause(tries.saturating_sub(servers) + 1, chance())))
                }
            };
            let left = patience.saturating_sub(begun.elapsed());
            match wait.filter(|wait| wait.is_zero() || *wait < left) {
                Some(wait) => sleep(wait).await,
                None if maybe_done => return Called { outcome: Err(Error::Unknown(miss.text())), maybe_done },
                None => return Called { outcome: Err(Error::Unavailable(miss.text())), maybe_done },
            }
        }
    }

    /// How long a call is tried.
    pub(crate) fn patience(&self) -> Duration {
        self.shared.patience
    }

    /// Pauses before another try of what began then; false: there is no time for one.
    pub(crate) async fn rest(&self, begun: Instant, tries: u32) -> bool {
        let wait = pause(tries, chance());
        let is_worth = begun.elapsed() + wait < self.shared.patience;
        if is_worth {
            sleep(wait).await;
        }
        is_worth
    }

    async fn attempt(&self, endpoint: &Endpoint, call: &Call) -> Result<Answer, Miss> {
        let shared = &*self.shared;
        let answer = endpoint.exchange(&call.request, shared.connect_timeout, shared.timeout + call.wait).await?;
        if answer.status < 300 {
            return Ok(answer);
        }
        match Problem::read(answer.status, &answer.body) {
            Some(problem) => Err(Miss::Problem(Box::new(problem))),
            None => {
                Err(Miss::Lost(format!("{}: status {}, which no server of ours says so", endpoint.url, answer.status)))
            }
        }
    }

    /// A call whose answer is read as JSON.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, call: &Call) -> Result<T, Error> {
        self.call(call).await.outcome.and_then(|answer| answer.json())
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let endpoints: Vec<&String> = self.shared.endpoints.iter().map(|endpoint| &endpoint.url).collect();
        f.debug_struct("Client").field("endpoints", &endpoints).finish_non_exhaustive()
    }
}

impl Call {
    /// The server may hold it so long before it answers.
    pub(crate) fn waiting(mut self, wait: Duration) -> Call {
        self.wait = wait;
        self
    }
}

impl Answer {
    /// The body as a type.
    ///
    /// # Errors
    /// It does not fit: whatever answered, it is not known what it did.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let read = serde_json::from_slice(&self.body);
        read.map_err(|why| Error::Unknown(format!("status {}, and a body that cannot be read: {why}", self.status)))
    }
}

/// It is not this server's state alone: asking another one brings the same.
fn is_about_all(miss: &Miss) -> bool {
    matches!(miss, Miss::Problem(problem) if matches!(problem.status, 429 | 507) || problem.is_final())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_refused_at_once() {
        let none: [&str; 0] = [];
        for builder in [
            Client::builder(none),
            Client::builder(["http://a"]).token("a\nb"),
            Client::builder(["http://a"]).basic("me"),
        ] {
            assert!(matches!(builder.build(), Err(Error::Unusable(_))));
        }
    }
}
