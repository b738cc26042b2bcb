//! The real server as a process: built, started, stopped, held up, killed without warning.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::http::Client;
use crate::repository::{cargo, root};

/// A server that runs until it is killed or dropped.
pub(crate) struct Server {
    child: Child,
    addr: SocketAddr,
    output: Output,
}

/// What a process has printed last, for the message when something goes wrong; and all of it in a file, if there is one.
#[derive(Clone, Default)]
struct Output {
    lines: Arc<Mutex<Vec<String>>>,
    file: Option<Arc<File>>,
}

/// A server is started and has this long until it serves.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Lines of its output that are kept.
const LINES_KEPT: usize = 20;

/// Between two looks at whether a starting server serves.
const LOOK_EVERY: Duration = Duration::from_millis(1);

impl Server {
    /// Starts `codeq serve` on a free port of the loopback, and waits until it serves.
    ///
    /// # Errors
    /// It ends, or does not serve in time.
    pub(crate) fn start(codeq: &Path, data: &Path, options: &[&str]) -> Result<Server> {
        let mut server = Server::spawn(codeq, data, options)?.listening()?;
        server.wait_until_ready()?;
        Ok(server)
    }

    /// Starts `codeq serve` and waits for nothing.
    ///
    /// # Errors
    /// There is no such program.
    pub(crate) fn spawn(codeq: &Path, data: &Path, options: &[&str]) -> Result<Starting> {
        let mut command = Command::new(codeq);
        // How full this machine's disk is, is nobody's business here.
        command.args(["serve", "--disk-low", "0", "--disk-critical", "0", "--http-addr", "127.0.0.1:0"]);
        command.arg("--data-dir").arg(data).args(options);
        Starting::spawn(command, None)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// SIGKILL, and wait until the process is gone.
    ///
    /// # Errors
    /// It had ended by itself before, which nobody asked for.
    pub(crate) fn kill(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the server has ended by itself ({status}):\n{}", self.output.shown());
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM.
    ///
    /// # Errors
    /// It cannot be sent.
    pub(crate) fn terminate(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// SIGSTOP: the process does nothing, and the operating system goes on taking what is sent to it.
    ///
    /// # Errors
    /// It cannot be sent.
    pub(crate) fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// It cannot be sent.
    pub(crate) fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.id().cast_signed()), signal).with_context(|| format!("cannot send {signal}"))
    }

    /// The operating system's number of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the process has ended by itself.
    ///
    /// # Errors
    /// It has not, after so long.
    pub(crate) fn ended(&mut self, within: Duration) -> Result<ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if begun.elapsed() > within {
                bail!("the server has not ended after {within:?}:\n{}", self.output.shown());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// What the process has printed last.
    pub(crate) fn printed(&self) -> String {
        self.output.shown()
    }

    /// Bytes of memory that the process has now: VmRSS.
    ///
    /// # Errors
    /// The operating system does not tell.
    pub(crate) fn resident_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("the kernel tells no VmRSS")?;
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS is a number")?;
        Ok(kilobytes << 10)
    }

    /// Waits until it says that it can serve every request.
    ///
    /// # Errors
    /// It ends, or does not in time.
    pub(crate) fn wait_until_ready(&mut self) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < START_TIMEOUT {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server has ended ({status}):\n{}", self.output.shown());
            }
            let answer = Client::connect(self.addr).ok().and_then(|mut client| client.get("/readyz").ok());
            if answer.is_some_and(|answer| answer.status == 200) {
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        bail!("the server is not ready after {START_TIMEOUT:?}:\n{}", self.output.shown())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already, which is all that is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that was started and has not said where it listens.
pub(crate) struct Starting {
    child: Child,
    output: Output,
    addresses: Receiver<SocketAddr>,
}

impl Starting {
    /// Starts a server that will print `http://` and its address. What it prints goes to the end of the file as well.
    ///
    /// # Errors
    /// There is no such program, or the file cannot be written.
    pub(crate) fn spawn(mut command: Command, file: Option<&Path>) -> Result<Starting> {
        let open = |file: &Path| File::options().create(true).append(true).open(file);
        let file = file.map(open).transpose().context("cannot open a file for what the server prints")?.map(Arc::new);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let output = Output { lines: Arc::default(), file };
        let (sender, addresses) = channel();
        let pipes: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
            child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        ];
        for pipe in pipes.into_iter().flatten() {
            let (output, sender) = (output.clone(), sender.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    if let Some(addr) = address(&line) {
                        // Whoever waits has what it wanted after the first.
                        let _ = sender.send(addr);
                    }
                    output.add(line);
                }
            });
        }
        Ok(Starting { child, output, addresses })
    }

    /// SIGKILL before it serves.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub(crate) fn kill(mut self) -> Result<()> {
        // It may have ended by itself: a start that fails shows at the next start.
        let _ = self.child.kill();
        self.child.wait()?;
        Ok(())
    }

    /// Takes it for granted that it listens there.
    pub(crate) fn listens_at(self, addr: SocketAddr) -> Server {
        Server { child: self.child, addr, output: self.output }
    }

    /// Waits until it says where it listens.
    ///
    /// # Errors
    /// It ends without that, or says nothing in time.
    pub(crate) fn listening(mut self) -> Result<Server> {
        match self.addresses.recv_timeout(START_TIMEOUT) {
            Ok(addr) => Ok(Server { child: self.child, addr, output: self.output }),
            Err(RecvTimeoutError::Timeout) => {
                self.child.kill()?;
                bail!("the server does not say where it listens:\n{}", self.output.shown())
            }
            // Both of its pipes are closed.
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                bail!("the server has ended ({status}):\n{}", self.output.shown())
            }
        }
    }
}

impl Output {
    fn add(&self, line: String) {
        if let Some(mut file) = self.file.as_deref() {
            // It only helps to understand what happened.
            let _ = writeln!(file, "{line}");
        }
        let mut lines = self.lines.lock().expect("nothing panics while it holds this lock");
        if lines.len() == LINES_KEPT {
            lines.remove(0);
        }
        lines.push(line);
    }

    fn shown(&self) -> String {
        self.lines.lock().expect("nothing panics while it holds this lock").join("\n")
    }
}

/// The address in a line that has one.
fn address(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("http://")?;
    let end = rest.find(|character: char| !(character.is_ascii_digit() || ".:[]".contains(character)));
    rest[..end.unwrap_or(rest.len())].trim_end_matches(['.', ':']).parse().ok()
}

/// A folder on the same disk as the build, which is gone when this is dropped. Not the system's folder for such things: that may be memory.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// # Errors
    /// It cannot be made.
    pub(crate) fn new(name: &str) -> Result<Folder> {
        let path = target().join(format!("xtask-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Folder(path))
    }

    /// A folder in it that is not there yet.
    pub(crate) fn within(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left of it is in the build folder, where nobody minds.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The folder of build products.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Builds the server as it is shipped; returns the program.
///
/// # Errors
/// It does not build.
pub(crate) fn build_codeq() -> Result<PathBuf> {
    built(&["build", "--release", "--package", "cli", "--bin", "codeq"], "codeq")
}

/// Builds the example that is a cluster; returns the program.
///
/// # Errors
/// It does not build.
pub(crate) fn build_hello() -> Result<PathBuf> {
    built(&["build", "--package", "hello-cluster"], "hello-cluster")
}

/// Builds the server of canned replies; returns the program.
///
/// # Errors
/// It does not build.
pub(crate) fn build_bare() -> Result<PathBuf> {
    built(&["bench", "--no-run", "--package", "cli", "--bench", "bare"], "bare")
}

fn built(arguments: &[&str], target: &str) -> Result<PathBuf> {
    let mut command = Command::new(cargo());
    command.args(arguments).args(["--locked", "--message-format", "json-render-diagnostics"]);
    let output = command.current_dir(root()).stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "{target} does not build");
    let messages = String::from_utf8(output.stdout).context("cargo prints UTF-8")?;
    let executable = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message.get("target")?.get("name")?.as_str()? == target;
        is_it.then(|| message.get("executable")?.as_str().map(PathBuf::from)).flatten()
    });
    executable.with_context(|| format!("cargo does not say where {target} is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the address of a server is found in whatever line it is printed.
    #[test]
    fn an_address_is_found_in_a_line() {
        let check = |line: &str, expected: Option<&str>| {
            assert_eq!(address(line).map(|addr| addr.to_string()).as_deref(), expected, "{line}");
        };
        check("codeq 0.1.0 serves http://127.0.0.1:40123, data in /x", Some("127.0.0.1:40123"));
        check("listening on http://127.0.0.1:8080/", Some("127.0.0.1:8080"));
        check("{\"url\":\"http://[::1]:80\"}", Some("[::1]:80"));
        check("try http://127.0.0.1:80.", Some("127.0.0.1:80"));
        check("http://localhost", None);
        check("127.0.0.1:80", None);
    }
}
