//! One thread of the edge: what its connections share.

use std::cell::RefCell;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::{Code, Problem};
use base::rng::SplitMix;
use cluster::{Handle, LaneId, Stage};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, HOST, HeaderValue, ORIGIN};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request};
use queue::{QueueMachine, TaskId};

use crate::auth::{Access, Authenticator};
use crate::http::answer::{Answer, HttpResponse, problem_response};
use crate::http::call::{Call, Outcome, request_id};
use crate::http::routes::{self, Route};
use crate::http::waiting::Waiting;
use crate::metrics::Metrics;
use crate::settings::Settings;

/// What all threads of the edge share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) auth: Authenticator,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) waiting: Waiting,
    pub(crate) node: Handle<QueueMachine>,
    /// The node's name as a header value.
    pub(crate) name: HeaderValue,
    /// Where the server listens.
    pub(crate) addr: std::net::SocketAddr,
    pub(crate) draining: AtomicBool,
}

impl Shared {
    /// Where clients reach this node.
    pub(crate) fn http_addr(&self) -> String {
        self.addr.to_string()
    }
}

/// One thread's part.
pub(crate) struct Edge {
    pub(crate) shared: Arc<Shared>,
    pub(crate) node: Handle<QueueMachine>,
    /// Where this thread's replies come back.
    pub(crate) lane: LaneId,
    random: RefCell<SplitMix>,
}

impl Edge {
    pub(crate) fn new(shared: Arc<Shared>, lane: LaneId) -> Edge {
        let node = shared.node.clone();
        let seed = getrandom::u64().expect("the operating system has random numbers");
        Edge { shared, node, lane, random: RefCell::new(SplitMix::new(seed)) }
    }

    /// Answers a request, whatever happens.
    pub(crate) async fn answer(&self, request: Request<Incoming>, from: IpAddr) -> HttpResponse {
        let (head, body) = request.into_parts();
        let request_id = request_id(&head.headers, || {
            let mut random = self.random.borrow_mut();
            u128::from(random.next_u64()) << 64 | u128::from(random.next_u64())
        });
        let path = head.uri.path().to_owned();
        let is_api = path.starts_with("/v1/codeq");
        let name = &self.shared.name;
        // A fault while one request is served must not take the others with it.
        let served = AssertUnwindSafe(self.serve(head, body, from));
        match catch_panic(served).await {
            Ok(answer) => answer.into_response(request_id, name, is_api),
            Err(problem) => {
                let allow = (problem.code == Code::MethodNotAllowed).then(|| routes::allowed(&path));
                problem_response(&problem, request_id, name, is_api, allow)
            }
        }
    }

    async fn serve(&self, head: Parts, body: Incoming, from: IpAddr) -> Outcome<Answer> {
        let settings = &self.shared.settings;
        check_head(&head, settings.http.header_bytes_max)?;
        let path = head.uri.path().to_owned();
        let route = routes::find(&head.method, &path)?;
        let declared = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|length| length > settings.limits.body_bytes_max as u64) {
            return Err(self.body_too_large());
        }
        let access = route.access();
        if access != Access::Open {
            let changes = !matches!(head.method, Method::GET | Method::HEAD);
            let header = |name| head.headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or(""));
            let host = header(HOST).or(head.uri.host());
            self.shared.auth.check_origin(host, header(ORIGIN), changes)?;
        }
        let authorization = head.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let principal = self.shared.auth.authenticate(access, authorization, from)?;
        let body = self.read_body(&head.headers, body).await?;
        let call = Call { head, body, principal };
        self.dispatch(&route, &call).await
    }

    async fn dispatch(&self, route: &Route<'_>, call: &Call) -> Outcome<Answer> {
        match route {
            Route::CreateTask => self.create(call).await,
            Route::CreateBatch => self.create_batch(call).await,
            Route::Claim => self.claim(call).await,
            Route::ClaimBatch => self.claim_batch(call).await,
            Route::BatchResults => self.submit_results(call).await,
            Route::Heartbeat(id) => self.heartbeat(call, id).await,
            Route::Abandon(id) => self.abandon(call, id).await,
            Route::Nack(id) => self.nack(call, id).await,
            Route::SubmitResult(id) => self.submit_result(call, id).await,
            Route::Cancel(id) => self.cancel(call, id).await,
            Route::Redrive(id) => self.redrive(call, id).await,
            Route::GetTask(id) => self.get_task(call, id).await,
            Route::GetResult(id) => self.get_result(call, id).await,
            Route::GetQueue(command) => self.get_queue(call, command).await,
            Route::RaftStatus => Ok(self.raft_status()),
            Route::Healthz => Ok(Answer::text(200, "ok")),
            Route::Livez => Ok(self.livez()),
            Route::Readyz => Ok(self.readyz()),
            Route::Metrics => self.metrics().await,
        }
    }

    async fn read_body(&self, headers: &HeaderMap, body: Incoming) -> Outcome<bytes::Bytes> {
        if let Some(encoding) = headers.get(CONTENT_ENCODING)
            && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
        {
            return Err(Box::new(Problem::new(Code::UnsupportedEncoding, "send the body as it is")));
        }
        let settings = &self.shared.settings;
        let limited = Limited::new(body, settings.limits.body_bytes_max);
        let read = tokio::time::timeout(settings.http.body_timeout.to_std(), limited.collect()).await;
        match read {
            Err(_) => Err(Box::new(Problem::new(Code::RequestTimeout, "the body did not arrive in time"))),
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(self.body_too_large()),
            Ok(Err(_)) => Err(crate::http::error::invalid_body("the body ended early")),
        }
    }

    fn body_too_large(&self) -> Box<Problem> {
        let most = self.shared.settings.limits.body_bytes_max;
        Box::new(Problem::new(Code::BodyTooLarge, format!("a body has at most {most} bytes (limits.maxBodyBytes)")))
    }

    /// Refuses what needs the node while it reads its data.
    pub(crate) fn check_running(&self) -> Outcome<()> {
        match self.node.status().stage {
            Stage::Running | Stage::Draining => Ok(()),
            Stage::Starting(what) => {
                Err(Box::new(Problem::new(Code::NotReady, format!("the server is {what}")).retry_after(1000)))
            }
            Stage::Stopped => Err(Box::new(Problem::new(Code::Draining, "the server has stopped").retry_after(0))),
        }
    }

    /// Whether an id could be one of this cluster's tasks.
    pub(crate) fn is_ours(&self, id: &TaskId) -> bool {
        let ours = TaskId::new(self.node.cluster_incarnation(), id.shard, id.key);
        *id == ours && id.shard.0 < self.node.identity().shards
    }

    /// Whether the server stops.
    pub(crate) fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Relaxed)
    }
}

/// Limits of the head that the parser does not know.
fn check_head(head: &Parts, header_bytes_max: usize) -> Outcome<()> {
    let line = head.uri.path_and_query().map_or(0, |path| path.as_str().len());
    if line > 8 << 10 {
        return Err(Box::new(Problem::new(Code::UriTooLong, "a request line has at most 8 KiB")));
    }
    let headers: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if headers > header_bytes_max {
        let detail = format!("all headers together have at most {header_bytes_max} bytes (http.maxHeaderBytes)");
        return Err(Box::new(Problem::new(Code::HeadersTooLarge, detail)));
    }
    Ok(())
}

/// Turns a panic into an answer.
async fn catch_panic(serving: AssertUnwindSafe<impl Future<Output = Outcome<Answer>>>) -> Outcome<Answer> {
    let mut serving = std::pin::pin!(serving.0);
    let caught = std::future::poll_fn(|context| {
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| serving.as_mut().poll(context)));
        match polled {
            Ok(std::task::Poll::Pending) => std::task::Poll::Pending,
            Ok(std::task::Poll::Ready(outcome)) => std::task::Poll::Ready(Ok(outcome)),
            Err(panic) => std::task::Poll::Ready(Err(panic)),
        }
    });
    caught.await.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        tracing::error!(event = "http.panic", message = text.unwrap_or("?"), "a request has met a fault of the server");
        Err(Box::new(Problem::new(Code::Internal, "the server's log says more, under the request id")))
    })
}
