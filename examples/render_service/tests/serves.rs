//! The service as its callers meet it, with a worker and without one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use testserver::TestServer;

/// A part of the example; it is killed when the test forgets it.
struct Part(Child);

impl Part {
    fn start(url: &str, args: &[&str]) -> Part {
        let mut command = Command::new(env!("CARGO_BIN_EXE_render_service"));
        command.args(args).env("CODEQ_ENDPOINTS", url).stdin(Stdio::null()).stdout(Stdio::piped());
        Part(command.spawn().expect("the program can be run"))
    }

    /// Where the service listens.
    fn address(&mut self) -> String {
        let mut line = String::new();
        let stdout = self.0.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where");
        line.trim().strip_prefix("listening on http://").expect("it is an address").to_owned()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Status, and the whole answer.
fn ask(address: &str, line: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the service listens");
    let length = body.len();
    write!(
        stream,
        "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    )
    .expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("it has a status");
    (status, answer)
}

/// A document comes back as a page in the same call; the same request again is the same page; what is wrong is told.
#[tokio::test]
async fn a_document_is_rendered_while_its_caller_waits() {
    let server = TestServer::start().await;
    let mut service = Part::start(&server.url(), &["serve", "--listen", "127.0.0.1:0", "--wait-ms", "60000"]);
    let _worker = Part::start(&server.url(), &["work"]);
    let address = service.address();
    let (status, page) = ask(&address, "POST /documents", "Idempotency-Key: a\r\n", "# Hello\n\n*you*");
    assert_eq!(status, 200, "{page}");
    assert!(page.ends_with("<h1>Hello</h1>\n<p><em>you</em></p>\n"), "{page}");
    let (status, again) = ask(&address, "POST /documents", "Idempotency-Key: a\r\n", "# Hello\n\n*you*");
    assert_eq!((status, again.lines().last()), (200, page.lines().last()));
    assert_eq!(ask(&address, "POST /documents", "Idempotency-Key: a\r\n", "another one").0, 409);
    assert_eq!(ask(&address, "POST /documents", "", &"x".repeat(300 << 10)).0, 413);
    assert_eq!(ask(&address, "GET /documents/none", "", "").0, 404);
    assert_eq!(ask(&address, "GET /", "", "").0, 404);
    server.stop().await;
}

/// Without a worker the caller is told where the page will be, and finds it there when there is one.
#[tokio::test]
async fn a_caller_that_cannot_wait_finds_the_page_later() {
    let server = TestServer::start().await;
    let mut service = Part::start(&server.url(), &["serve", "--listen", "127.0.0.1:0", "--wait-ms", "50"]);
    let address = service.address();
    let (status, later) = ask(&address, "POST /documents", "", "later");
    assert_eq!(status, 202, "{later}");
    let place = later.lines().find_map(|line| line.strip_prefix("location: ")).expect("it says where").to_owned();
    assert_eq!(ask(&address, &format!("GET {place}"), "", "").0, 202);
    let _worker = Part::start(&server.url(), &["work"]);
    let id = place.strip_prefix("/documents/").expect("it is a document");
    let ended = server.client().finished(id, std::time::Duration::from_secs(60)).await.expect("the server answers");
    assert!(ended.is_some());
    let (status, page) = ask(&address, &format!("GET {place}"), "", "");
    assert_eq!(status, 200, "{page}");
    assert!(page.ends_with("<p>later</p>\n"), "{page}");
    server.stop().await;
}
