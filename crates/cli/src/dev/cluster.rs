//! Several nodes, each a process: started together, their logs one stream, stopped together.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use client::{AnyRequest, Client};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};

use crate::dev::{DevArgs, ROOM, begin, name, peers};
use crate::output;
use crate::serve::Signals;

/// How often a starting node is asked whether it is ready.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// What a node is started with.
struct Plan {
    name: String,
    http: SocketAddr,
    args: Vec<String>,
}

/// A node that runs.
struct Running {
    name: String,
    process: u32,
    child: Child,
}

/// Runs the cluster until it is asked to stop.
pub(super) fn run(args: &DevArgs) -> ExitCode {
    let outcome = plan(args).and_then(|plans| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(until_stopped(args, &plans))
    });
    match outcome {
        Ok(status) => status,
        Err(error) => {
            output::note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Who listens where, with whom.
///
/// # Errors
/// An address is not one of this machine, or in use.
fn plan(args: &DevArgs) -> Result<Vec<Plan>> {
    let first = args.http_addr.to_socket_addrs().ok().and_then(|mut found| found.next());
    let first = first.with_context(|| format!("--http-addr {} is not an address", args.http_addr))?;
    if !first.ip().is_loopback() {
        bail!(
            "--http-addr {first} is not an address of this machine only; a cluster for development needs no token, so nobody else may reach it"
        );
    }
    let port = |number: u16| match first.port() {
        0 => peers::free_port(),
        port => port.checked_add(number - 1).context("--http-addr leaves no ports for all nodes"),
    };
    let ports = (1..=args.nodes).map(port).collect::<Result<Vec<u16>>>()?;
    std::fs::create_dir_all(&args.data_dir).with_context(|| format!("cannot make {}", args.data_dir.display()))?;
    let peers = peers::addresses(&args.data_dir.join("peers"), &ports, first.port() != 0)?;
    for (port, peer) in ports.iter().zip(&peers) {
        check_free(first.ip(), *port, "choose others with --http-addr")?;
        check_free(
            peer.ip(),
            peer.port(),
            "or choose another --data-dir and --http-addr: nodes reach each other there",
        )?;
    }
    let list = (1..).zip(&peers).map(|(number, peer)| format!("{}={peer}", name(number)));
    let list = list.collect::<Vec<_>>().join(",");
    let plan = |(number, port): (u16, &u16)| {
        let (name, http) = (name(number), SocketAddr::new(first.ip(), *port));
        let directory = args.data_dir.join(&name).display().to_string();
        let settings = [
            ("node-id", name.clone()),
            ("http-addr", http.to_string()),
            ("data-dir", directory),
            ("initial-cluster", list.clone()),
            ("log-level", args.log_level.clone()),
            ("log-format", "text".into()),
        ];
        let room = ROOM.map(|(flag, value)| (flag, value.to_owned()));
        let flags = settings.into_iter().chain(room).flat_map(|(flag, value)| [format!("--{flag}"), value]);
        Plan { name, http, args: std::iter::once("serve".into()).chain(flags).collect() }
    };
    Ok((1..).zip(&ports).map(plan).collect())
}

fn check_free(ip: IpAddr, port: u16, otherwise: &str) -> Result<()> {
    match TcpListener::bind((ip, port)) {
        Err(cause) if cause.kind() == std::io::ErrorKind::AddrInUse => {
            bail!("port {port} is in use ({ip}:{port}); stop whoever listens there, {otherwise}")
        }
        Err(cause) => Err(cause).with_context(|| format!("cannot listen on {ip}:{port}")),
        Ok(_) => Ok(()),
    }
}

async fn until_stopped(args: &DevArgs, plans: &[Plan]) -> Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let mut running = Vec::new();
    for plan in plans {
        running.push(start(plan)?);
    }
    let mut is_ready = std::pin::pin!(all_ready(plans));
    let mut is_waiting = true;
    loop {
        tokio::select! {
            biased;
            () = signals.next() => return stop(running, signals).await,
            (place, status) = ended(&mut running) => {
                let gone = running.remove(place);
                let plan = plans.iter().find(|plan| plan.name == gone.name).expect("every node has a plan");
                output::note(&obituary(&gone, status, plan, running.len()));
                if running.is_empty() {
                    return Ok(ExitCode::FAILURE);
                }
            }
            () = &mut is_ready, if is_waiting => {
                is_waiting = false;
                output::data(&banner(args, plans, &running));
            }
        }
    }
}

fn start(plan: &Plan) -> Result<Running> {
    let program = std::env::current_exe().context("this program does not know where it is")?;
    let mut command = Command::new(program);
    command.args(&plan.args).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Ctrl-C is for this process only, which stops the others in its own way.
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("cannot start {}", plan.name))?;
    tokio::spawn(pass_on(plan.name.clone(), child.stdout.take().expect("it is piped")));
    tokio::spawn(pass_on(plan.name.clone(), child.stderr.take().expect("it is piped")));
    let process = child.id().context("it has ended at once")?;
    Ok(Running { name: plan.name.clone(), process, child })
}

/// Prints what a node says, with its name in front.
async fn pass_on(name: String, from: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        output::note(&format!("{name} | {line}"));
    }
}

async fn all_ready(plans: &[Plan]) {
    for plan in plans {
        let client = Client::new(&plan.http.to_string()).expect("an address is one of a server");
        while !client.first_answer(AnyRequest::get("/readyz")).await.is_ok_and(|answer| answer.status == 200) {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}

/// Waits until a node has ended: its place, and how.
async fn ended(running: &mut [Running]) -> (usize, Option<ExitStatus>) {
    let mut ends: Vec<_> = running.iter_mut().map(|node| Box::pin(node.child.wait())).collect();
    std::future::poll_fn(|context| {
        for (place, end) in ends.iter_mut().enumerate() {
            if let std::task::Poll::Ready(status) = end.as_mut().poll(context) {
                return std::task::Poll::Ready((place, status.ok()));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// Asks all nodes to stop, more urgently with every further signal, and waits until they have.
async fn stop(mut running: Vec<Running>, mut signals: Signals) -> Result<ExitCode> {
    ask_to_stop(&running);
    let mut are_well = true;
    while !running.is_empty() {
        tokio::select! {
            (place, status) = ended(&mut running) => {
                let gone = running.remove(place);
                if !status.is_some_and(|status| status.success()) {
                    are_well = false;
                    output::note(&format!("{} {}", gone.name, how(status)));
                }
            }
            () = signals.next() => ask_to_stop(&running),
        }
    }
    Ok(if are_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn ask_to_stop(running: &[Running]) {
    for node in running {
        // It may have ended by itself, and is still waited for.
        let _ = kill(Pid::from_raw(node.process as i32), Signal::SIGTERM);
    }
}

fn how(status: Option<ExitStatus>) -> String {
    match status {
        Some(status) => format!("ended: {status}"),
        None => "ended".into(),
    }
}

/// Says in a line that a node has gone, and how to start it again.
fn obituary(gone: &Running, status: Option<ExitStatus>, plan: &Plan, left: usize) -> String {
    let program = std::env::current_exe().map_or_else(|_| "codeq".into(), |path| path.display().to_string());
    let words = std::iter::once(&program).chain(&plan.args).map(|word| quoted(word)).collect::<Vec<_>>();
    let (name, process) = (&gone.name, gone.process);
    format!("{name} (process {process}) {}; {left} run on. To start it again: {}", how(status), words.join(" "))
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// What to read first.
fn banner(args: &DevArgs, plans: &[Plan], running: &[Running]) -> String {
    let mut text = format!(
        "codeq {} for development: {} nodes, for this machine only, no token needed; tasks are kept in {}\n",
        env!("CARGO_PKG_VERSION"),
        plans.len(),
        args.data_dir.display()
    );
    for node in running {
        let plan = plans.iter().find(|plan| plan.name == node.name).expect("every node has a plan");
        write!(text, "\n  {}  http://{}  process {}", node.name, plan.http, node.process).expect("a string takes all");
    }
    let at = [0, 1, 2].map(|place| plans[place % plans.len()].http);
    let first = running.first().map_or(0, |node| node.process);
    write!(
        text,
        "\n\n{}\n\nAny node serves all of it, also while one is gone: try kill -9 {first}\nCtrl-C stops all of them.",
        begin(at)
    )
    .expect("a string takes all");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_from_a_shell() {
        assert_eq!(quoted("--data-dir"), "--data-dir");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
