//! `cargo xtask documents`: the commands of the documents are run, as they stand there, with the ports, paths and names that stand there.
//!
//! They run in a network and a view of the disk of their own, so that nothing else on the machine is touched or in the way: `/var/lib` and
//! `/mnt` are empty in it, and `node-a` to `node-d` are addresses of the loopback. A line fails if it says so, and if a server answers curl
//! with an error. What a comment in front of a block says:
//!
//! ```text
//! <!-- run: stopped; with codeq dev -->
//!
//! skip WHY          the block cannot run here
//! needs PROGRAM     it is skipped where there is no such program
//! stopped           servers of earlier blocks are stopped before
//! empty PATH        so is this folder emptied
//! env NAME=VALUE    a variable of this block
//! with COMMAND      a server that is started before, and is ready
//! server            the block ends with a server, which goes on behind it
//! each              every line is a server of its own; the last one goes on
//! ready ADDRESS…    where a document is one session: begins when these answer that they are ready
//! ```
//!
//! Commands within lines of text must exist, with the flags that they are given, and so must those of this program, which are not run.

mod blocks;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pulldown_cmark::{Event, Parser};

use crate::docker::{ended, printed};
pub(crate) use crate::documents::blocks::{Block, blocks};
use crate::http::Client;
use crate::process::{Folder, build_codeq, build_hello};
use crate::repository::root;
use crate::walk::eventually;

#[derive(Args)]
pub(crate) struct DocumentsArgs {
    /// The program that is `codeq` in them. Absent: it is built as it is shipped.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Set when it has a network of its own.
    #[arg(long, hide = true)]
    apart: bool,
}

impl DocumentsArgs {
    pub(crate) fn all() -> DocumentsArgs {
        DocumentsArgs { program: None, apart: false }
    }
}

/// Which documents. Tutorial and guides are run by the tests of `crates/cli`; tidy looks that none is left out.
pub(crate) const DOCUMENTS: [&str; 16] = [
    "README.md",
    "docs/lists.md",
    "docs/many-tasks.md",
    "docs/history.md",
    "docs/benchmarks.md",
    "docs/internals/history.md",
    "docs/internals/simulation.md",
    "docs/cluster.md",
    "docs/security.md",
    "docs/operate.md",
    "docs/fail-over.md",
    "docs/recover.md",
    "docs/upgrade.md",
    "docs/run-a-cluster.md",
    "docs/elections.md",
    SESSION,
];

/// Its blocks are one session of a shell, with servers in the background.
const SESSION: &str = "examples/hello-cluster/README.md";

/// What the program is called where it is built before it is run.
const BUILT: &str = "cargo run --release --";

/// What stands before the chores of this program.
const CHORES: &str = "cargo xtask ";

/// Names of machines, all of them on this one.
const HOSTS: &str = "127.0.0.1 localhost\n127.0.1.1 node-a\n127.0.1.2 node-b\n127.0.1.3 node-c\n127.0.1.4 node-d\n";

/// From the start of a server to its readiness, and from a request to stop to its end.
const READY_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(15);

/// Longest time of a session, as `timeout` takes it.
const SESSION_MAX: &str = "120s";

/// Where programs of the system are.
const PROGRAMS: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the documents.
///
/// # Errors
/// A command fails, or does not exist.
pub(crate) fn run(args: &DocumentsArgs) -> Result<()> {
    if args.apart {
        let program = args.program.as_ref().context("it is given")?;
        return walk(program);
    }
    let program = std::fs::canonicalize(args.program.clone().map_or_else(build_codeq, Ok)?)?;
    let own = std::env::current_exe()?;
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "--mount", "--"]).arg(own).args(["documents", "--apart", "--program"]);
    let status = command.arg(program).status().context("there is no unshare (util-linux)")?;
    ensure!(status.success(), "the documents do not run");
    Ok(())
}

fn walk(program: &Path) -> Result<()> {
    let folder = Folder::new("documents")?;
    let here = folder.within("here");
    set_apart(&folder, &here, program)?;
    let (mut ran, mut skipped) = (0, 0);
    for document in DOCUMENTS {
        println!("{document}");
        // Each begins on a machine that has no data.
        for entry in std::fs::read_dir("/var/lib")?.chain(std::fs::read_dir(&here)?) {
            let path = entry?.path();
            if path.is_file() {
                std::fs::remove_file(path)?;
            } else if path != here.join("bin") {
                std::fs::remove_dir_all(path)?;
            }
        }
        if document == SESSION {
            ran += session(&here).with_context(|| document)?;
            continue;
        }
        let mut stage = Stage { here: here.clone(), servers: Vec::new() };
        for block in blocks(document)?.iter().filter(|block| block.language == "sh") {
            let begun = Instant::now();
            let first = block.text.lines().find(|line| !line.starts_with('#')).unwrap_or_default();
            let done = stage.run(block);
            let took = begun.elapsed().as_secs_f64();
            match done.with_context(|| format!("{document}, line {}", block.line))? {
                None => {
                    ran += 1;
                    println!("{:>4} {took:6.2} s  {first}", block.line);
                }
                Some(why) => {
                    skipped += 1;
                    println!("{:>4} SKIP {why}\n                {first}", block.line);
                }
            }
        }
        stage.stop()?;
        let known = commands(document, program)?;
        println!("                {known} commands in lines of text and chores exist");
    }
    println!("{ran} blocks run, {skipped} skipped");
    Ok(())
}

/// A loopback of its own, names for machines, and empty folders for what the documents keep.
fn set_apart(folder: &Folder, here: &Path, program: &Path) -> Result<()> {
    std::fs::create_dir_all(here.join("bin"))?;
    std::os::unix::fs::symlink(program, here.join("bin/codeq"))?;
    // An error that a server answers is one of the document.
    std::fs::write(here.join("bin/.curlrc"), "fail-with-body\n")?;
    let hosts = folder.within("hosts");
    std::fs::write(&hosts, HOSTS)?;
    printed(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    printed(Command::new("mount").arg("--bind").arg(&hosts).arg("/etc/hosts"))?;
    for path in ["/var/lib", "/mnt"] {
        printed(Command::new("mount").args(["-t", "tmpfs", "tmpfs", path]))?;
    }
    Ok(std::fs::create_dir("/mnt/backup")?)
}

/// Where the blocks of a document run.
struct Stage {
    here: PathBuf,
    /// Servers that go on, with what they are called.
    servers: Vec<(Child, String)>,
}

/// Runs the document that is one session. What it leaves in the background ends with it. Returns how many blocks it has.
fn session(here: &Path) -> Result<usize> {
    let programs = here.join("target/debug");
    std::fs::create_dir_all(&programs)?;
    std::os::unix::fs::symlink(build_hello()?, programs.join("hello-cluster"))?;
    let mut script = String::from("trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n");
    let (mut count, begun) = (0, Instant::now());
    for block in blocks(SESSION)?.iter().filter(|block| block.language == "sh") {
        match block.how.split_once(' ').unwrap_or((&block.how, "")) {
            ("skip", _) => continue,
            ("ready", addresses) => {
                for address in addresses.split(' ') {
                    script += &format!("until curl -s -o /dev/null http://{address}/readyz; do sleep 0.1; done\n");
                }
            }
            ("", _) => {}
            _ => bail!("{:?} says nothing about running in a session", block.how),
        }
        script += &block.text;
        count += 1;
    }
    let mut command = Command::new("timeout");
    command.args([SESSION_MAX, "bash", "-e", "-c", &script]).current_dir(here).env_clear();
    command.env("PATH", PROGRAMS).env("HOME", here).env("CURL_HOME", here.join("bin"));
    let Output { status, stdout, stderr } = ended(&mut command)?;
    let both = [stdout, stderr].concat();
    ensure!(status.success(), "{status}:\n{}\n{script}", String::from_utf8_lossy(&both));
    println!("     {:6.2} s  {count} blocks in one session", begun.elapsed().as_secs_f64());
    Ok(count)
}

/// What is said of a block.
#[derive(Default)]
struct How<'a> {
    is_server: bool,
    each: bool,
    variables: BTreeMap<&'a str, &'a str>,
}

impl Stage {
    /// Runs a block, or says why it cannot run here.
    fn run(&mut self, block: &Block) -> Result<Option<String>> {
        let mut how = How::default();
        for clause in block.how.split("; ").filter(|clause| !clause.is_empty()) {
            match clause.split_once(' ').unwrap_or((clause, "")) {
                ("skip", why) => return Ok(Some(why.into())),
                ("systemd", _) => return Ok(Some("cargo xtask systemd runs it".into())),
                ("needs", name) if Command::new(name).arg("--version").stdout(Stdio::null()).status().is_err() => {
                    return Ok(Some(format!("there is no {name}")));
                }
                ("needs", _) => {}
                ("stopped", "") => self.stop()?,
                ("empty", path) => {
                    let path = self.here.join(path);
                    if path.exists() {
                        std::fs::remove_dir_all(&path)?;
                    }
                }
                ("env", variable) => {
                    how.variables.extend([variable.split_once('=').context("env NAME=VALUE")?]);
                }
                ("with", command) => self.serve(command, &BTreeMap::new())?,
                ("server", "") => how.is_server = true,
                ("each", "") => how.each = true,
                _ => bail!("{clause:?} says nothing about running"),
            }
        }
        let lines = block.text.replace(BUILT, "codeq");
        if how.each {
            for line in lines.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
                self.stop()?;
                self.serve(line, &how.variables)?;
            }
        } else if how.is_server {
            self.serve(&lines, &how.variables)?;
        } else {
            let Output { status, stdout, stderr } = ended(&mut self.shell(&lines, &how.variables))?;
            let both = [stdout, stderr].concat();
            ensure!(status.success(), "{status}:\n{}\n{lines}", String::from_utf8_lossy(&both));
        }
        Ok(None)
    }

    fn shell(&self, lines: &str, variables: &BTreeMap<&str, &str>) -> Command {
        let mut command = Command::new("sh");
        let path = format!("{}:{PROGRAMS}", self.here.join("bin").display());
        // A failed line ends it, also on the left of a pipe's end.
        command.args(["-e", "-c", lines]).current_dir(&self.here).env_clear();
        command.env("PATH", path).env("HOME", &self.here).env("CURL_HOME", self.here.join("bin")).envs(variables);
        command
    }

    /// Starts a server, and waits until every address that it serves is ready.
    fn serve(&mut self, lines: &str, variables: &BTreeMap<&str, &str>) -> Result<()> {
        let log = self.here.join(format!("server-{}.log", self.servers.len()));
        let file = std::fs::File::create(&log)?;
        let mut command = self.shell(lines, variables);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        self.servers.push((command.spawn()?, lines.into()));
        let count = if lines.contains("--nodes 3") { 3 } else { 1 };
        let ready = eventually(READY_MAX, || {
            let printed = std::fs::read_to_string(&log)?;
            let (child, _) = self.servers.last_mut().context("it was started")?;
            let addresses = addresses(&printed);
            if let Some(status) = child.try_wait()? {
                // There is no sense in waiting; what it printed says why.
                bail!("it has ended with {status}:\n{printed}");
            }
            // A node that waits to be admitted is up, and not ready.
            if lines.contains("existing") && printed.contains("raft.bootstrap.waiting") {
                return Ok(());
            }
            // It wants certificates of whoever asks, so the block does.
            if printed.contains(" listens on https://") {
                return Ok(());
            }
            ensure!(addresses.len() >= count, "it serves {addresses:?}:\n{printed}");
            for addr in addresses {
                let answer = Client::connect(addr)?.get("/readyz")?;
                ensure!(answer.status == 200, "{addr}: {answer}\n{printed}");
            }
            Ok(())
        });
        ready.with_context(|| lines.trim().to_owned())
    }

    /// Asks the servers to stop, and waits until they have.
    fn stop(&mut self) -> Result<()> {
        for (mut child, lines) in self.servers.drain(..) {
            signal(&child, Signal::SIGTERM);
            let begun = Instant::now();
            // The shell may end before the server that it has started.
            while child.try_wait()?.is_none() || goes_on(&child) {
                ensure!(begun.elapsed() < STOP_MAX, "{} goes on", lines.trim());
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for (child, _) in &mut self.servers {
            signal(child, Signal::SIGKILL);
            // It may have ended, which is all that is wanted.
            let _ = child.wait();
        }
    }
}

/// To a shell and what it has started.
fn signal(child: &Child, signal: Signal) {
    // It may have ended already.
    let _ = kill(Pid::from_raw(-child.id().cast_signed()), signal);
}

/// Whether anything is left of what a shell has started.
fn goes_on(child: &Child) -> bool {
    kill(Pid::from_raw(-child.id().cast_signed()), None).is_ok()
}

/// Every address behind `http://` that a server has printed.
fn addresses(printed: &str) -> Vec<SocketAddr> {
    let address = |rest: &str| {
        let end = rest.find(|character: char| !(character.is_ascii_digit() || ".:".contains(character)));
        rest[..end.unwrap_or(rest.len())].parse().ok()
    };
    let mut found: Vec<SocketAddr> = printed.split("http://").skip(1).filter_map(address).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Looks whether the commands in a document's lines of text exist, and the chores of this program in its blocks. Returns how many there are.
fn commands(document: &str, program: &Path) -> Result<usize> {
    let text = std::fs::read_to_string(root().join(document))?;
    let mut count = 0;
    let own = std::env::current_exe()?;
    for block in blocks(document)?.iter().filter(|block| block.language == "sh") {
        for chore in block.text.lines().filter_map(|line| line.strip_prefix(CHORES)) {
            let chore = chore.split(" #").next().unwrap_or(chore);
            exists(chore, &own).with_context(|| format!("{document}, line {}: {chore}", block.line))?;
            count += 1;
        }
    }
    for event in Parser::new_ext(&text, pulldown_cmark::Options::ENABLE_TABLES) {
        let Event::Code(code) = event else { continue };
        let Some(command) = code.strip_prefix("codeq ") else { continue };
        exists(command, program).with_context(|| format!("{document}: `{code}`"))?;
        count += 1;
    }
    Ok(count)
}

/// Whether there are such subcommands, and such flags. Alternatives are written with bars.
fn exists(command: &str, program: &Path) -> Result<()> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let is_name = |word: &&&str| word.chars().all(|letter| letter.is_ascii_lowercase() || "-|".contains(letter));
    let names: Vec<&str> = words.iter().take_while(|word| is_name(word) && !word.starts_with('-')).copied().collect();
    let asked = |name: &[&str]| -> Option<String> {
        let output = Command::new(program).args(name).arg("--help").env_clear().output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let mut help = None;
    for last in 1..=names.len() {
        let (before, alternatives) = (&names[..last - 1], names[last - 1].split('|'));
        let found: Option<Vec<String>> = alternatives.map(|name| asked(&[before, &[name]].concat())).collect();
        match found {
            Some(found) => help = found.into_iter().next().or(help),
            // What follows is not a subcommand but an argument.
            None => break,
        }
    }
    let help = help.with_context(|| format!("there is no command {}", names.join(" ")))?;
    // What a chore passes on is another program's.
    let passes_on = help.contains("[ARGUMENTS]...");
    for flag in words.iter().filter(|word| word.starts_with("--") && !passes_on) {
        let flag = flag.split('=').next().unwrap_or(flag);
        ensure!(help.contains(flag), "it has no {flag}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the addresses are found that servers say they serve, once each, and no others.
    #[test]
    fn addresses_are_those_that_are_served() {
        let printed = "http://localhost/x\ncodeq 1 serves http://127.0.1.1:8080, data in a\n\
                       INFO codeq serves http://127.0.1.1:8080 event=\"server.started\"\n";
        assert_eq!(addresses(printed), ["127.0.1.1:8080".parse().expect("it is one")]);
    }
}
