//! Docker on this machine: used if it runs, else installed and started for as long as it is needed. Only what was started here is stopped.

use std::fs::File;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::target;

/// How long a daemon may take until it answers, and until it has ended.
const DAEMON_MAX: Duration = Duration::from_secs(60);

/// Between two looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A daemon that answers, for as long as this is kept.
pub(crate) struct Engine {
    /// Absent: it ran before.
    daemon: Option<Child>,
}

impl Engine {
    /// Finds the daemon, or starts one. What it prints goes to `dockerd.log` among the build products.
    ///
    /// # Errors
    /// There is none and none can be installed or started.
    pub(crate) fn running() -> Result<Engine> {
        install()?;
        if answers() {
            return Ok(Engine { daemon: None });
        }
        let log = target().join("dockerd.log");
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new("dockerd");
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let mut daemon = command.spawn().context("cannot start dockerd")?;
        let begun = Instant::now();
        while !answers() {
            if let Some(status) = daemon.try_wait()? {
                bail!("dockerd has ended with {status}; {} says why", log.display());
            }
            if begun.elapsed() > DAEMON_MAX {
                daemon.kill()?;
                bail!("dockerd does not answer after {DAEMON_MAX:?}; {} may say why", log.display());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(Engine { daemon: Some(daemon) })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let Some(daemon) = &mut self.daemon else { return };
        // It ends its containers when it is asked to end, and leaves them behind when it is killed.
        let _ = kill(Pid::from_raw(daemon.id().cast_signed()), Signal::SIGTERM);
        let begun = Instant::now();
        while begun.elapsed() < DAEMON_MAX && matches!(daemon.try_wait(), Ok(None)) {
            std::thread::sleep(LOOK_EVERY);
        }
        // It may have ended, which is all that is wanted.
        let _ = daemon.kill();
        let _ = daemon.wait();
    }
}

fn is_there(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn answers() -> bool {
    docker(&["version", "--format", "{{.Server.Version}}"]).is_ok()
}

/// Debian's packages, where Docker is missing.
fn install() -> Result<()> {
    let has_compose = has_compose_plugin() || is_there("docker-compose");
    if is_there("docker") && has_compose && (answers() || is_there("dockerd")) {
        return Ok(());
    }
    println!("installing docker.io and docker-compose");
    for arguments in [&["update"][..], &["install", "--yes", "--no-install-recommends", "docker.io", "docker-compose"]]
    {
        let mut command = Command::new("apt-get");
        command.arg("--quiet=2").args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        let status = command.status().context("Docker is missing, and so is apt-get")?;
        ensure!(status.success(), "Docker is missing, and apt-get {} failed", arguments.join(" "));
    }
    Ok(())
}

/// Whether `docker compose` is there, which knows `--wait`. The older program is `docker-compose`.
pub(crate) fn has_compose_plugin() -> bool {
    docker(&["compose", "version"]).is_ok()
}

/// `docker` with these arguments. Returns what it prints.
///
/// # Errors
/// It fails.
pub(crate) fn docker(arguments: &[&str]) -> Result<String> {
    printed(Command::new("docker").args(arguments))
}

/// The lines that a container has printed, all of them or those since a moment.
///
/// # Errors
/// There is no such container.
pub(crate) fn logs(container: &str, since: Option<&str>) -> Result<Vec<String>> {
    let mut command = Command::new("docker");
    command.arg("logs").args(since.iter().flat_map(|since| ["--since", *since])).arg(container);
    let Output { status, stdout, stderr } = ended(&mut command)?;
    ensure!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    let both = [stdout, stderr].concat();
    Ok(String::from_utf8_lossy(&both).lines().map(str::to_owned).collect())
}

/// Runs a program to its end. Returns what it prints.
///
/// # Errors
/// It fails; then the error has what it says.
pub(crate) fn printed(command: &mut Command) -> Result<String> {
    let Output { status, stdout, stderr } = ended(command)?;
    let both = || format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    ensure!(status.success(), "{command:?} has ended with {status}:\n{}", both());
    String::from_utf8(stdout).context("it prints UTF-8")
}

/// Runs a program to its end, however that is.
///
/// # Errors
/// There is no such program.
pub(crate) fn ended(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null());
    command.output().with_context(|| format!("cannot run {command:?}"))
}
