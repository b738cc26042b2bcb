//! One thread of the edge: what its connections share.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use api::{Code, Problem};
use base::Position;
use base::rng::mix;
use cluster::{Handle, LaneId, Stage};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, ORIGIN, WWW_AUTHENTICATE,
};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request};
use queue::operations::{OperationKind, OperationState};
use queue::{QueueMachine, TaskId};
use tokio::sync::{Notify, Semaphore};

use crate::auth::{Access, Authenticator, Principal};
use crate::backups::LastBackup;
use crate::feed::Feed;
use crate::http::answer::{Answer, HttpResponse, problem_response};
use crate::http::call::{Call, Outcome, request_id};
use crate::http::cluster::is_look_back;
use crate::http::epochs::Epochs;
use crate::http::openapi;
use crate::http::routes::{self, MONITOR, Route};
use crate::http::source::Source;
use crate::http::waiting::Waiting;
use crate::metrics::Metrics;
use crate::reload::Reload;
use crate::settings::Settings;

/// Bodies up to this size are copied out of the connection's buffer.
const COPIED_MAX: usize = 4 << 10;

/// What all threads of the edge share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) auth: Authenticator,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) waiting: Waiting,
    pub(crate) epochs: Arc<Epochs>,
    pub(crate) last_backup: Arc<LastBackup>,
    pub(crate) reload: Arc<Reload>,
    pub(crate) node: Handle<QueueMachine>,
    /// The node's name as a header value.
    pub(crate) name: HeaderValue,
    pub(crate) draining: AtomicBool,
    /// Somebody has begun an operation on many tasks.
    pub(crate) wake_bulk: Arc<Notify>,
    /// Places for answers that go on.
    pub(crate) streams: Arc<Semaphore>,
    /// Room for streams of what happens to tasks.
    pub(crate) event_streams: Arc<Semaphore>,
    /// What has happened lately.
    pub(crate) feed: Arc<Feed>,
}

/// One thread's part.
pub(crate) struct Edge {
    pub(crate) shared: Arc<Shared>,
    pub(crate) node: Handle<QueueMachine>,
    /// Where this thread's replies come back.
    pub(crate) lane: LaneId,
    seed: u64,
    requests: AtomicU64,
}

impl Edge {
    pub(crate) fn new(shared: Arc<Shared>, lane: LaneId) -> Edge {
        let node = shared.node.clone();
        let seed = getrandom::u64().expect("the operating system has random numbers");
        Edge { shared, node, lane, seed, requests: AtomicU64::new(0) }
    }

    /// Answers a request, whatever happens.
    pub(crate) async fn answer(&self, request: Request<Incoming>, from: Source) -> HttpResponse {
        let (head, body) = request.into_parts();
        let request_id = request_id(&head.headers, || {
            // Unique and spread out, which is all that an id for looking things up needs.
            let number = self.requests.fetch_add(2, Ordering::Relaxed);
            [mix(self.seed ^ number), mix(self.seed ^ (number + 1))]
        });
        let is_api = head.uri.path().starts_with("/v1/codeq");
        let is_write = head.method == Method::POST;
        let is_page = matches!(head.uri.path(), "/" | "/web/status");
        let name = &self.shared.name;
        let is_told =
            head.uri.path().starts_with("/cluster/") || head.headers.get("codeq-verbose").is_some_and(|on| on == "1");
        let mut response = match self.serve(head, body, from).await {
            Ok(answer) => {
                let leader = if is_write { self.leader_of(answer.positions()) } else { None };
                answer.into_response(request_id, leader.as_ref().unwrap_or(name), is_api)
            }
            Err((mut problem, allow)) => {
                self.explain(&mut problem);
                let mut response = problem_response(&problem, request_id, name, is_api, allow);
                if is_page && problem.code.status() == 401 {
                    // A browser asks its user.
                    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"codeq\""));
                }
                response
            }
        };
        if is_told {
            self.tell_leader(&mut response);
        }
        response
    }

    /// How group 0 stands, as this node knows it.
    fn tell_leader(&self, response: &mut HttpResponse) {
        let look = self.node.inspect();
        let Some(first) = look.shards.first() else { return };
        let leader = look.leader().map(|leader| leader.name).unwrap_or_default();
        let headers = response.headers_mut();
        headers.insert("codeq-term", HeaderValue::from(first.consensus.term.0));
        headers.insert("codeq-index", HeaderValue::from(first.applied.0));
        headers
            .extend(HeaderValue::try_from(leader).ok().map(|leader| (HeaderName::from_static("codeq-leader"), leader)));
    }

    /// The name of the other node that has executed all of a write. What several leaders have executed was put together here.
    fn leader_of(&self, positions: &[Position]) -> Option<HeaderValue> {
        let mut executors = positions.iter().map(|position| self.node.executor(*position));
        let first = executors.next()?.filter(|first| *first != self.node.id())?;
        let is_alone = executors.all(|other| other == Some(first));
        is_alone.then(|| HeaderValue::from_str(&self.node.member(first)?.name).ok()).flatten()
    }

    /// Adds what this node knows of its cluster to a refusal that has to do with it.
    fn explain(&self, problem: &mut Problem) {
        match problem.code {
            Code::NoLeader => {
                let look = self.node.inspect();
                let quorum = look.quorum();
                if quorum.reachable < quorum.needed {
                    problem.code = Code::Isolated;
                    problem.detail = "this node has lost contact with the majority; try another node".into();
                }
                problem.hint = Some(quorum.summary);
                problem.leader = look.leader().map(|leader| (leader.public_url, leader.name));
            }
            Code::NotJoined if problem.hint.is_none() => {
                problem.hint =
                    Some("start the nodes that it waits for, or introduce it to others with POST /cluster/join".into())
            }
            Code::Draining | Code::NotReady | Code::Overloaded | Code::TooStale => {
                let leader = self.node.inspect().leader();
                problem.leader = leader.map(|leader| (leader.public_url, leader.name));
            }
            _ => {}
        }
    }

    /// Serves a request; a refusal may name the methods that its path has.
    async fn serve(
        &self,
        head: Parts,
        body: Incoming,
        from: Source,
    ) -> Result<Answer, (Box<Problem>, Option<&'static str>)> {
        let plain = |problem| (problem, None);
        let settings = &self.shared.settings;
        check_head(&head, settings.http.header_bytes_max).map_err(plain)?;
        let uri = head.uri.clone();
        let route = routes::find(&head.method, uri.path()).map_err(|problem| {
            let allow = (problem.code == Code::MethodNotAllowed).then(|| routes::allowed(uri.path()));
            (problem, allow)
        })?;
        if route == Route::Restore {
            let principal = self.identify(&route, &head, from).map_err(plain)?;
            let call = Call { head, body: bytes::Bytes::new(), principal };
            let restoring: Pin<Box<dyn Future<Output = Outcome<Answer>> + Send + '_>> =
                Box::pin(self.restore(&call, body));
            let outcome = catch_panic(AssertUnwindSafe(restoring)).await;
            self.record_action(&route, &call, from, &outcome);
            return outcome.map_err(plain);
        }
        let declared = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|length| length > settings.limits.body_bytes_max as u64) {
            return Err(plain(self.body_too_large()));
        }
        let principal = self.identify(&route, &head, from).map_err(plain)?;
        let body = self.read_body(&head.headers, body).await.map_err(plain)?;
        let call = Call { head, body, principal };
        // Each route's future is as large as that route needs, instead of as large as the largest one. A fault while one request is served
        // must not take the others with it.
        let outcome = catch_panic(AssertUnwindSafe(self.dispatch(&route, &call))).await;
        self.record_action(&route, &call, from, &outcome);
        outcome.map_err(plain)
    }

    fn identify(&self, route: &Route<'_>, head: &Parts, from: Source) -> Outcome<Arc<Principal>> {
        let settings = &self.shared.settings;
        let access = match route {
            Route::Metrics if settings.metrics_need_token => Access::Metrics,
            route => route.access(),
        };
        let authorization = head.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let by_socket = from == Source::Socket;
        // No page of a browser reaches the socket.
        if access != Access::Open && !by_socket {
            let changes = !matches!(head.method, Method::GET | Method::HEAD);
            let header = |name| head.headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or(""));
            let host = header(HOST).or(head.uri.host());
            self.shared.auth.check_origin(host, header(ORIGIN), changes, authorization)?;
        }
        let principal = match authorization {
            None if by_socket => self.shared.auth.owner(access)?,
            _ => self.shared.auth.authenticate(access, authorization, from.address())?,
        };
        if settings.read_only && route.is_action() {
            let detail = "this node takes no actions on the cluster (readOnly); ask another one";
            return Err(Box::new(Problem::new(Code::ReadOnlyNode, detail)));
        }
        Ok(principal)
    }

    fn dispatch<'a>(
        &'a self,
        route: &'a Route<'a>,
        call: &'a Call,
    ) -> Pin<Box<dyn Future<Output = Outcome<Answer>> + Send + 'a>> {
        if let Err(elsewhere) = self.redirect_by_path(route, call) {
            return ready(Err(elsewhere));
        }
        match route {
            Route::CreateTask => Box::pin(self.create(call)),
            Route::CreateBatch => Box::pin(self.create_batch(call)),
            Route::Claim => Box::pin(self.claim(call)),
            Route::ClaimBatch => Box::pin(self.claim_batch(call)),
            Route::BatchResults => Box::pin(self.submit_results(call)),
            Route::Heartbeat(id) => Box::pin(self.heartbeat(call, id)),
            Route::Abandon(id) => Box::pin(self.abandon(call, id)),
            Route::Nack(id) => Box::pin(self.nack(call, id)),
            Route::SubmitResult(id) => Box::pin(self.submit_result(call, id)),
            Route::Cancel(id) => Box::pin(self.cancel(call, id)),
            Route::Redrive(id) => Box::pin(self.redrive(call, id)),
            Route::ListTasks => Box::pin(self.list_tasks(call)),
            Route::ListDead => Box::pin(self.list_dead(call)),
            Route::DeadGroups => Box::pin(self.dead_groups(call)),
            Route::ListQueues => Box::pin(self.list_queues(call)),
            Route::ShowQueue(command) => Box::pin(self.show_queue(call, command)),
            Route::PauseQueue(command) => Box::pin(self.pause_queue(call, command)),
            Route::ResumeQueue(command) => Box::pin(self.resume_queue(call, command)),
            Route::PurgeQueue(command) => {
                Box::pin(self.begin_operation(call, OperationKind::QueuePurge, Some(&**command)))
            }
            Route::RedriveDead => Box::pin(self.begin_operation(call, OperationKind::DeadRedrive, None)),
            Route::PurgeDead => Box::pin(self.begin_operation(call, OperationKind::DeadPurge, None)),
            Route::CancelTasks => Box::pin(self.begin_operation(call, OperationKind::Cancel, None)),
            Route::ListOperations => Box::pin(self.list_operations(call)),
            Route::ShowOperation(id) => Box::pin(self.show_operation(call, id)),
            Route::StopOperation(id) => Box::pin(self.turn_operation(call, id, OperationState::Stopped)),
            Route::ResumeOperation(id) => Box::pin(self.turn_operation(call, id, OperationState::Running)),
            Route::EditTask(id) => Box::pin(self.edit(call, id)),
            Route::HeartbeatBatch => Box::pin(self.heartbeat_batch(call)),
            Route::Whoami => ready(self.whoami(call)),
            Route::OpenApi => ready(Ok(openapi::answer())),
            Route::GetTask(id) => Box::pin(self.get_task(call, id)),
            Route::GetResult(id) => Box::pin(self.get_result(call, id)),
            Route::TaskHistory(id) => Box::pin(self.get_history(call, id)),
            Route::TaskEvents(id) => Box::pin(self.follow_task(call, id)),
            Route::Events => ready(self.follow_events(call)),
            Route::GetQueue(command) => Box::pin(self.get_queue(call, command)),
            Route::RaftStatus => ready(Ok(self.raft_status())),
            Route::Healthz => ready(Ok(Answer::text(200, "ok"))),
            Route::Livez => ready(Ok(self.livez())),
            Route::Cluster(MONITOR) => ready(self.monitor(call)),
            Route::Cluster(page) if is_look_back(page) => Box::pin(self.look_back(page, call)),
            Route::Cluster(page @ "/cluster/status") => Box::pin(self.status_page(page, call)),
            Route::Cluster(page) => ready(self.get_cluster(page)),
            Route::Join => Box::pin(self.join(call)),
            Route::Question(path) => ready(self.question(path)),
            Route::Page => ready(Ok(self.page(call))),
            // Its body is taken as it comes, before this.
            Route::Restore => ready(Err(crate::http::error::invalid_body("the body is a backup"))),
            Route::Bundle => Box::pin(self.bundle(call)),
            Route::Save => Box::pin(self.save(call)),
            Route::Trigger => Box::pin(self.trigger(call)),
            Route::Reload => Box::pin(self.reload()),
            Route::Leave => Box::pin(self.leave(call)),
            Route::AddMember => Box::pin(self.add_member(call)),
            Route::CreateToken => Box::pin(self.create_token(call)),
            Route::ListTokens => ready(self.list_tokens()),
            Route::RevokeToken(id) => Box::pin(self.revoke_token(call, id)),
            Route::RemoveMember(member) => Box::pin(self.remove_member(call, member)),
            Route::Demote(member) => Box::pin(self.demote(call, member)),
            Route::Promote(member) => Box::pin(self.promote(call, member)),
            Route::Replace(member) => Box::pin(self.replace(call, member)),
            Route::Transfer => Box::pin(self.transfer(call)),
            Route::StepDown => Box::pin(self.step_down(call)),
            Route::CheckQuorum => ready(self.check_quorum(call)),
            Route::Readyz(only) => ready(self.readyz(call, *only)),
            Route::Metrics => Box::pin(self.metrics()),
        }
    }

    async fn read_body(&self, headers: &HeaderMap, body: Incoming) -> Outcome<bytes::Bytes> {
        if let Some(encoding) = headers.get(CONTENT_ENCODING)
            && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
        {
            return Err(Box::new(Problem::new(Code::UnsupportedEncoding, "send the body as it is")));
        }
        let settings = &self.shared.settings;
        let mut read = std::pin::pin!(Limited::new(body, settings.limits.body_bytes_max).collect());
        // Most bodies have come with their head: no timer is set for them.
        let at_once = std::future::poll_fn(|context| std::task::Poll::Ready(read.as_mut().poll(context))).await;
        let read = match at_once {
            std::task::Poll::Ready(read) => read,
            std::task::Poll::Pending => {
                let longest = settings.http.body_timeout.to_std();
                let late = |_| Box::new(Problem::new(Code::RequestTimeout, "the body did not arrive in time"));
                Box::pin(tokio::time::timeout(longest, read)).await.map_err(late)?
            }
        };
        match read {
            Ok(collected) => {
                let body = collected.to_bytes();
                // A small body is copied, so that the connection can use its read buffer again.
                Ok(if body.len() <= COPIED_MAX { bytes::Bytes::copy_from_slice(&body) } else { body })
            }
            Err(error) if error.is::<LengthLimitError>() => Err(self.body_too_large()),
            Err(_) => Err(crate::http::error::invalid_body("the body ended early")),
        }
    }

    fn body_too_large(&self) -> Box<Problem> {
        let most = self.shared.settings.limits.body_bytes_max;
        Box::new(Problem::new(Code::BodyTooLarge, format!("a body has at most {most} bytes (limits.maxBodyBytes)")))
    }

    /// Refuses what needs the node while it reads its data.
    pub(crate) fn check_running(&self) -> Outcome<()> {
        match self.node.stage() {
            Stage::Running | Stage::Draining => Ok(()),
            Stage::Unjoined(what) => {
                let text = format!("this node belongs to no cluster yet: {what}");
                Err(Box::new(Problem::new(Code::NotJoined, text).retry_after(1000)))
            }
            Stage::Starting(what) => {
                Err(Box::new(Problem::new(Code::NotReady, format!("the server is {what}")).retry_after(1000)))
            }
            Stage::Stopped => Err(Box::new(Problem::new(Code::Draining, "the server has stopped").retry_after(0))),
        }
    }

    /// Whether an id could be one of this cluster's tasks.
    pub(crate) fn is_ours(&self, id: &TaskId) -> bool {
        if self.node.cluster().is_none() || id.shard.0 >= self.node.identity().shards {
            return false;
        }
        // A node that has not read its data yet, or has not got any, cannot tell.
        self.shared.epochs.is_of(id).unwrap_or(true) || !self.has_data(id.shard)
    }

    /// Whether the node has anything of a shard: one that has just joined has not.
    fn has_data(&self, shard: base::ShardId) -> bool {
        let status = self.node.status();
        status.shards.iter().any(|known| known.shard == shard && known.applied.0 > 0)
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

/// An answer that needs no waiting.
fn ready<'a>(answer: Outcome<Answer>) -> Pin<Box<dyn Future<Output = Outcome<Answer>> + Send + 'a>> {
    Box::pin(std::future::ready(answer))
}

/// Turns a panic into an answer.
async fn catch_panic(serving: AssertUnwindSafe<impl Future<Output = Outcome<Answer>> + Unpin>) -> Outcome<Answer> {
    let mut serving = serving.0;
    let caught = std::future::poll_fn(|context| {
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| Pin::new(&mut serving).poll(context)));
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
