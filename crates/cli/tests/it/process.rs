//! A running `codeq`, its output line by line, and a client that speaks just enough HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longest wait for a line or an end; a test that waits so long has failed.
const LONG: Duration = Duration::from_secs(60);

/// A process; it is killed when the test forgets it.
pub(crate) struct Codeq {
    child: Child,
    lines: Receiver<String>,
    /// Everything it has printed so far, as far as it was read.
    pub(crate) output: String,
}

/// How a process ended.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) status: Option<i32>,
    pub(crate) output: String,
}

/// A command that sees this environment only.
pub(crate) fn codeq(args: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_codeq"));
    command.args(args).env_clear();
    if args.first() == Some(&"serve") {
        // Nothing here depends on how full this machine's disk is; whoever means that says so.
        command.envs([("CODEQ_DISK_LOW", "0"), ("CODEQ_DISK_CRITICAL", "0")]);
    }
    command.envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end.
pub(crate) fn run(args: &[&str], environment: &[(&str, &str)]) -> End {
    Codeq::start(args, environment).end()
}

impl Codeq {
    pub(crate) fn start(args: &[&str], environment: &[(&str, &str)]) -> Codeq {
        let mut child = codeq(args, environment).spawn().expect("the program can be run");
        let (sender, lines) = channel();
        forward(child.stdout.take().expect("it is piped"), sender.clone());
        forward(child.stderr.take().expect("it is piped"), sender);
        Codeq { child, lines, output: String::new() }
    }

    /// A server on a free port of this machine, in this directory, that takes requests.
    pub(crate) fn serve(directory: &str, more: &[&str]) -> (Codeq, String) {
        let mut args = vec!["serve", "--http-addr", "127.0.0.1:0", "--data-dir", directory];
        args.extend(more);
        let mut server = Codeq::start(&args, &[]);
        let line = server.wait_for("server.started");
        let addr = line.split("http://").nth(1).expect("the line names the address");
        let addr = addr.split(',').next().expect("a split has a first part").to_owned();
        (server, addr)
    }

    /// Waits for a line that holds this text.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        self.wait_for_one(&[text])
    }

    /// Waits for a line that holds one of these texts.
    pub(crate) fn wait_for_one(&mut self, texts: &[&str]) -> String {
        loop {
            match self.lines.recv_timeout(LONG) {
                Ok(line) => {
                    self.output.push_str(&line);
                    self.output.push('\n');
                    if texts.iter().any(|text| line.contains(text)) {
                        return line;
                    }
                }
                Err(why) => panic!("no line has one of {texts:?} ({why}); there was:\n{}", self.output),
            }
        }
    }

    /// Passes over what it has said so far.
    pub(crate) fn skip(&mut self) {
        for line in self.lines.try_iter() {
            self.output.push_str(&line);
            self.output.push('\n');
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the process runs");
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended.
    pub(crate) fn end(mut self) -> End {
        loop {
            match self.lines.recv_timeout(LONG) {
                Ok(line) => {
                    self.output.push_str(&line);
                    self.output.push('\n');
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end; there was:\n{}", self.output),
            }
        }
        let status = self.child.wait().expect("it can be waited for").code();
        End { status, output: std::mem::take(&mut self.output) }
    }

    /// Asks it to stop and waits until it has.
    pub(crate) fn stop(self, signal: Signal) -> End {
        self.signal(signal);
        self.end()
    }
}

impl Drop for Codeq {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let rest: Vec<String> = self.lines.try_iter().collect();
            let said = format!("process {} said:\n{}{}\n", self.child.id(), self.output, rest.join("\n"));
            // Whoever looks for what went wrong needs it, and there is no better place.
            let _ = std::io::stderr().write_all(said.as_bytes());
        }
    }
}

fn forward(from: impl Read + Send + 'static, to: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if to.send(line).is_err() {
                return;
            }
        }
    });
}

/// An answer of a server.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// One request on a connection of its own; a body makes it a POST.
pub(crate) fn request(addr: &str, path: &str, token: Option<&str>, body: Option<&str>) -> std::io::Result<Answer> {
    let method = if body.is_some() { "POST" } else { "GET" };
    send(method, addr, path, token, body.unwrap_or_default())
}

/// A PUT without a body.
pub(crate) fn put(addr: &str, path: &str) -> Answer {
    send("PUT", addr, path, None, "").expect("it answers")
}

/// One request with this method on a connection of its own.
pub(crate) fn send(method: &str, addr: &str, path: &str, token: Option<&str>, body: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(LONG))?;
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n{token}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let bad = || std::io::Error::other(format!("not an answer: {text:?}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
    Ok(Answer { status, body: body.into() })
}

/// Ports of this machine that were free a moment ago; somebody else may be quicker.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port is free"));
    held.map(|listener| listener.local_addr().expect("it is bound").port())
}

/// Asks again and again until there is an answer. For what another process does and does not tell.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < LONG, "it never came to this: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until a server can serve requests.
pub(crate) fn ready(addr: &str) {
    eventually(&format!("{addr} is ready"), || {
        request(addr, "/readyz", None, None).ok().filter(|answer| answer.status == 200)
    });
}
