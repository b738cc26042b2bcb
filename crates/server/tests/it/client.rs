//! A client that speaks HTTP/1.1 by hand, one connection for each request, and can also send what is no HTTP at all.
//!
//! Whatever takes longer than [`PATIENCE`] fails the test: nothing here waits for ever.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// Longer than any answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Somebody who sends requests, all with the same headers.
#[derive(Clone)]
pub(crate) struct Client {
    addr: SocketAddr,
    from: Option<SocketAddr>,
    headers: Vec<(String, String)>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// An open connection.
pub(crate) struct Connection {
    stream: TcpStream,
    /// Read and not taken yet.
    read: Vec<u8>,
}

impl Client {
    pub(crate) fn of(addr: SocketAddr) -> Client {
        Client { addr, from: None, headers: Vec::new() }
    }

    /// The same with one more header in each request.
    pub(crate) fn header(&self, name: &str, value: &str) -> Client {
        let mut client = self.clone();
        client.headers.push((name.into(), value.into()));
        client
    }

    /// The same from another address of this machine.
    pub(crate) fn from(&self, address: [u8; 4]) -> Client {
        Client { from: Some((address, 0).into()), ..self.clone() }
    }

    pub(crate) async fn connect(&self) -> Connection {
        let socket = TcpSocket::new_v4().expect("a socket");
        if let Some(from) = self.from {
            socket.bind(from).expect("an address of this machine");
        }
        let stream = socket.connect(self.addr).await.expect("the server listens");
        Connection { stream, read: Vec::new() }
    }

    /// Waits until nobody takes connections there any more.
    pub(crate) async fn until_refused(&self) {
        let wait = async {
            while TcpStream::connect(self.addr).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, wait).await.expect("nobody listens any more");
    }

    /// The bytes of a request; with a body they say how long it is.
    pub(crate) fn request(&self, method: &str, path: &str, body: Option<&[u8]>) -> Vec<u8> {
        let mut bytes = format!("{method} {path} HTTP/1.1\r\n");
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            bytes += &format!("Host: {}\r\n", self.addr);
        }
        for (name, value) in &self.headers {
            bytes += &format!("{name}: {value}\r\n");
        }
        if let Some(body) = body {
            bytes += &format!("Content-Length: {}\r\n", body.len());
        }
        bytes += "\r\n";
        [bytes.as_bytes(), body.unwrap_or_default()].concat()
    }

    /// Sends these bytes on a new connection and waits for an answer.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> Response {
        let mut connection = self.connect().await;
        connection.write(bytes).await;
        connection.answer().await
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: Option<&[u8]>) -> Response {
        let mut connection = self.connect().await;
        connection.write(&self.request(method, path, body)).await;
        let response = if method == "HEAD" { connection.head().await } else { connection.answer().await };
        response.check();
        response
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.send("GET", path, None).await
    }

    /// Posts JSON to a route under `/v1/codeq`.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Response {
        self.post_text(path, &body.to_string()).await
    }

    /// Posts a text to a route under `/v1/codeq`.
    pub(crate) async fn post_text(&self, path: &str, body: &str) -> Response {
        self.send("POST", &format!("/v1/codeq{path}"), Some(body.as_bytes())).await
    }

    /// Creates a task and returns its id.
    pub(crate) async fn create(&self, body: Value) -> String {
        let created = self.post("/tasks", body).await;
        created.expect(202)["id"].as_str().expect("an id").to_owned()
    }

    /// The task as it is now.
    pub(crate) async fn task(&self, id: &str) -> Value {
        self.get(&format!("/v1/codeq/tasks/{id}")).await.expect(200)
    }

    /// The counts of a queue: ready, delayed, in progress, dead.
    pub(crate) async fn depths(&self, command: &str) -> [u64; 4] {
        let queue = self.get(&format!("/v1/codeq/admin/queues/{command}")).await.expect(200);
        ["ready", "delayed", "inProgress", "dlq"].map(|name| queue[name].as_u64().expect("a count"))
    }

    /// The value of a metric; 0 if it has none yet.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until so many requests wait in the server.
    pub(crate) async fn until_waiting(&self, count: usize) {
        let wait = async {
            while self.metric("codeq_waiters").await != count as f64 {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, wait).await.expect("as many requests wait as should");
    }
}

impl Connection {
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        // A server may have answered and closed before it has read all of this.
        let _ = timeout(PATIENCE, self.stream.write_all(bytes)).await.expect("the server reads");
    }

    /// Says that nothing more will be written.
    pub(crate) async fn finish(&mut self) {
        self.stream.shutdown().await.expect("the connection is open");
    }

    /// The next answer.
    pub(crate) async fn answer(&mut self) -> Response {
        self.maybe_answer().await.expect("the server answers before it closes")
    }

    /// The next answer to a `HEAD`, which has no body.
    pub(crate) async fn head(&mut self) -> Response {
        timeout(PATIENCE, self.read_head()).await.expect("the server answers").expect("it answers before it closes").0
    }

    /// The next answer, or nothing if the connection is closed instead.
    pub(crate) async fn maybe_answer(&mut self) -> Option<Response> {
        let read = async {
            let (mut response, length) = self.read_head().await?;
            while self.read.len() < length {
                assert!(self.read_more().await, "the body is complete");
            }
            response.body = self.read.drain(..length).collect();
            Some(response)
        };
        timeout(PATIENCE, read).await.expect("the server answers or closes")
    }

    /// Waits until this text has come, and takes all that has.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        let read = async {
            while !String::from_utf8_lossy(&self.read).contains(text) {
                assert!(self.read_more().await, "it ends without {text:?}: {}", String::from_utf8_lossy(&self.read));
            }
            String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()
        };
        timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("there is no {text:?}"))
    }

    /// Waits until the server closes the connection, whatever it says before.
    pub(crate) async fn ended(&mut self) {
        while timeout(PATIENCE, self.read_more()).await.expect("the server closes the connection") {}
    }

    /// Waits until the server closes the connection without another word.
    pub(crate) async fn closed(&mut self) {
        self.ended().await;
        assert_eq!(String::from_utf8_lossy(&self.read), "", "nothing is said before the connection is closed");
    }

    /// Waits until the server asks for the body of a request that has begun.
    pub(crate) async fn asked_to_continue(&mut self) {
        const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
        while self.read.len() < CONTINUE.len() {
            assert!(timeout(PATIENCE, self.read_more()).await.expect("the server answers"), "it does not close");
        }
        assert_eq!(self.read.drain(..CONTINUE.len()).as_slice(), CONTINUE);
    }

    /// Whether the server has said nothing yet.
    pub(crate) fn is_silent(&self) -> bool {
        let mut byte = [0];
        let read = self.stream.try_read(&mut byte);
        self.read.is_empty() && read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    async fn read_head(&mut self) -> Option<(Response, usize)> {
        loop {
            if let Some(end) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.read.drain(..end + 4).collect();
                let head = String::from_utf8(head).expect("a head is text");
                let mut lines = head.trim_end().split("\r\n");
                let line = lines.next().expect("a status line");
                let status = line.strip_prefix("HTTP/1.1 ").expect("an answer of HTTP/1.1")[..3].parse();
                let headers = lines.map(|line| {
                    let (name, value) = line.split_once(": ").expect("a header");
                    (name.to_owned(), value.to_owned())
                });
                let response =
                    Response { status: status.expect("a status"), headers: headers.collect(), body: Vec::new() };
                if response.status == 100 {
                    continue;
                }
                let length = response.header("content-length").map_or(0, |length| length.parse().expect("a length"));
                return Some((response, length));
            }
            if !self.read_more().await {
                assert!(self.read.is_empty(), "an answer is complete: {:?}", String::from_utf8_lossy(&self.read));
                return None;
            }
        }
    }

    /// False: the connection is closed.
    async fn read_more(&mut self) -> bool {
        // A connection that is reset is closed as well.
        self.stream.read_buf(&mut self.read).await.is_ok_and(|length| length > 0)
    }
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "the header {name} comes once");
        value
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("a body is text")
    }

    /// The body, of an answer that must have this status.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body of an error, which must have this status and code.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        let problem = self.expect(status);
        assert_eq!(problem["code"], code, "{problem}");
        self.check();
        problem
    }

    /// Checks what holds for every answer.
    #[track_caller]
    pub(crate) fn check(&self) {
        let id = self.header("x-request-id").expect("every answer has the id of its request");
        assert!((1..=128).contains(&id.len()), "{id:?}");
        assert_eq!(self.header("codeq-served-by"), Some("n1"));
        if self.status < 400 || self.header("content-type") == Some("text/plain; charset=utf-8") {
            return;
        }
        let seconds = self.header("retry-after").map(|text| text.parse::<u64>().expect("whole seconds"));
        assert_eq!(seconds.is_some(), matches!(self.status, 429 | 503 | 507), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        if self.body.is_empty() {
            return;
        }
        let problem: Value = serde_json::from_slice(&self.body).expect("an error is JSON");
        let known = [
            "type",
            "title",
            "status",
            "detail",
            "error",
            "code",
            "definite",
            "requestId",
            "field",
            "retryAfterSeconds",
            "retryAfterMs",
            "taskId",
            "leader",
            "leaderId",
            "hint",
        ];
        let members = problem.as_object().expect("an object");
        assert!(members.keys().all(|name| known.contains(&name.as_str())), "{problem}");
        for name in ["type", "title", "detail", "error", "code", "requestId"] {
            assert!(problem[name].as_str().is_some_and(|text| !text.is_empty()), "{name} of {problem}");
        }
        let code = problem["code"].as_str().expect("a code");
        let listed = api::Code::ALL.iter().find(|listed| listed.name() == code).expect("a code of the list");
        assert_eq!(problem["type"], format!("urn:codeq:error:{code}"));
        assert_eq!(problem["title"], listed.title());
        assert_eq!(problem["status"], self.status);
        assert_eq!(problem["definite"], self.status != 504, "{problem}");
        assert_eq!(problem["requestId"], id);
        assert_eq!(problem["retryAfterSeconds"].as_u64(), seconds, "{problem}");
        assert_eq!(
            problem["retryAfterMs"].as_u64().map(|ms| ms.div_ceil(1000)),
            seconds,
            "the exact time fits the whole seconds: {problem}"
        );
    }
}

/// A part of a JSON object that must be a string.
#[track_caller]
pub(crate) fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_else(|| panic!("{name} is a string in {object}"))
}

/// Fails unless this is a time as answers have them; returns it in milliseconds since the Unix epoch.
#[track_caller]
pub(crate) fn time(object: &Value, name: &str) -> u64 {
    let text = text(object, name);
    let ms = api::time::parse(text).unwrap_or_else(|| panic!("{name} is a time in {object}"));
    assert_eq!(api::time::format(ms), text.as_bytes(), "{name} is in UTC with three decimals");
    ms
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    now.expect("it is later than 1970").as_millis() as u64
}
