//! A blocking HTTP/1.1 client for one connection: enough to talk to a server that is killed in the middle of a word.
//!
//! What it promises is the difference between a request that was never sent and one whose outcome is unknown.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An open connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// The request was sent, at least in part, and no whole answer came: it may have been carried out.
#[derive(Debug)]
pub(crate) struct Unknown(io::Error);

/// How long it may take to connect: longer than ever, unless nobody takes connections.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an answer may take before it counts as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of the largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub(crate) fn connect(addr: SocketAddr) -> io::Result<Client> {
        let stream = TcpStream::connect_timeout(&addr, CONNECT_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// Sends a request and reads its answer. After an error the connection is of no use.
    ///
    /// # Errors
    /// There is no answer.
    pub(crate) fn send(&mut self, method: &str, path: &str, body: &str) -> Result<Answer, Unknown> {
        self.send_with(method, path, &[], body)
    }

    /// The same with more headers.
    ///
    /// # Errors
    /// There is no answer.
    pub(crate) fn send_with(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Answer, Unknown> {
        let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{more}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes()).map_err(Unknown)?;
        self.read_answer(method != "HEAD").map_err(Unknown)
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<Answer, Unknown> {
        self.send("GET", path, "")
    }

    pub(crate) fn post(&mut self, path: &str, body: &str) -> Result<Answer, Unknown> {
        self.send("POST", path, body)
    }

    fn read_answer(&mut self, has_body: bool) -> io::Result<Answer> {
        let head = self.read_line()?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| strange(&head))?;
        let (mut length, mut headers) = (0, Vec::new());
        loop {
            let line = self.read_line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| strange(&line))?;
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().map_err(|_| strange(&line))?;
            }
            if name.eq_ignore_ascii_case("transfer-encoding") || length > ANSWER_BYTES_MAX {
                return Err(strange(&line));
            }
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut body = vec![0; if has_body { length } else { 0 }];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, headers, body })
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 || !line.ends_with("\r\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.truncate(line.len() - 2);
        Ok(line)
    }
}

fn strange(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("this client does not understand {line:?}"))
}

impl Answer {
    /// A header, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.body).map_err(|error| anyhow::anyhow!("{self} is not JSON: {error}"))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        write!(f, "{} {}", self.status, body.chars().take(400).collect::<String>())
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer: {}", self.0)
    }
}

impl std::error::Error for Unknown {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an answer is whole or it is unknown; a connection that ends within one never yields a short body.
    fn check(sent: &'static str, expected: Option<(u16, &str)>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let addr = listener.local_addr().expect("it has an address");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("somebody connects");
            // The request ends with an empty line, for it has no body.
            let mut request = BufReader::new(stream.try_clone().expect("a socket"));
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                request.read_line(&mut line).expect("the request is whole");
            }
            stream.write_all(sent.as_bytes()).expect("the client reads");
        });
        let answer = Client::connect(addr).expect("it listens").get("/");
        server.join().expect("the server ends");
        let answer = answer.ok().map(|answer| (answer.status, String::from_utf8(answer.body).expect("text")));
        assert_eq!(answer, expected.map(|(status, body)| (status, body.to_owned())), "{sent:?}");
    }

    #[test]
    fn answers_are_whole_or_unknown() {
        check("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab", Some((200, "ab")));
        check("HTTP/1.1 204 No Content\r\n\r\n", Some((204, "")));
        check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", None);
        check("HTTP/1.1 200 OK\r\ncontent-len", None);
        check("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n", None);
        check("", None);
        check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", None);
    }
}
