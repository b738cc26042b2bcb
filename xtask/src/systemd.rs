//! `cargo xtask systemd`: three machines with Debian's systemd as their first process, on which the lines of docs/run-a-cluster.md install the
//! unit. Then the machines do what machines do: a process crashes, a service is stopped, a machine restarts, settings are wrong, a node is
//! removed. A machine is a container with an init of its own; its system comes from Debian by debootstrap.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;

use crate::docker::{Engine, docker, ended, printed};
use crate::documents::{Block, blocks};
use crate::process::{build_codeq, target};
use crate::repository::root;
use crate::walk::{eventually, send_as};

#[derive(Args)]
pub(crate) struct SystemdArgs {
    /// The program that is installed. Absent: it is built as it is shipped.
    #[arg(long)]
    program: Option<PathBuf>,
}

const DOCUMENT: &str = "docs/run-a-cluster.md";

const NAMES: [&str; 3] = ["node-a", "node-b", "node-c"];

/// The token of the document's settings, which its producers have.
const TOKEN: &str = "a-long-random-one";

/// The address of the first machine in the document; the others follow it.
const FIRST: &str = "10.0.0.1";

const IMAGE: &str = "codeq-machine:latest";

/// A Debian that systemd and what it needs are in.
const SUITE: &str = "bookworm";
const PACKAGES: &str = "--include=systemd,systemd-sysv,dbus";

/// From a start to a machine, and to a cluster.
const UP_MAX: Duration = Duration::from_secs(60);

/// systemd waits a second before it starts again what crashed: so long nothing may come, where nothing must.
const QUIET: Duration = Duration::from_secs(4);

/// Runs the unit on three machines.
///
/// # Errors
/// Something does not do what the document says.
pub(crate) fn run(args: &SystemdArgs) -> Result<()> {
    let blocks: Vec<Block> = blocks(DOCUMENT)?.into_iter().filter(|block| block.how == "systemd").collect();
    let [install, settings, enable] = &blocks[..] else {
        anyhow::bail!("{DOCUMENT} has {} blocks for systemd, not three", blocks.len());
    };
    let program = args.program.clone().map_or_else(build_codeq, Ok)?;
    let system = system()?;
    let _engine = Engine::running()?;
    import(&system)?;
    let machines = Machines::start()?;
    println!("three machines, systemd runs on each");
    let addresses = (0..NAMES.len()).map(|place| machines.address(place)).collect::<Result<Vec<_>>>()?;
    for (place, name) in NAMES.iter().enumerate() {
        machines.copy(place, &program.display().to_string(), "/usr/local/bin/codeq")?;
        machines.copy(place, &root().join("deploy").display().to_string(), "/srv/deploy")?;
        machines.shell(place, &install.text)?;
        let mut text = settings.text.clone();
        for (other, address) in addresses.iter().enumerate() {
            text = text.replace(&FIRST.replace(".1", &format!(".{}", other + 1)), address);
        }
        let own = format!("CODEQ_HTTP_ADDR={address}:8080", address = addresses[place]);
        let text = text.replace(&format!("CODEQ_HTTP_ADDR={}:8080", addresses[0]), &own);
        let text = text.replace("CODEQ_NODE_ID=node-a", &format!("CODEQ_NODE_ID={name}"));
        // The document's producer becomes an operator, so that a member can be removed.
        let text = text.replacen("\"tenantId\":\"acme\"", "\"tenantId\":\"acme\",\"clusterRole\":\"operator\"", 1);
        machines.shell(place, &format!("umask 077; cat > /etc/codeq/codeq.env <<'END'\n{text}END\n"))?;
    }
    for place in 0..NAMES.len() {
        machines.shell(place, &enable.text)?;
    }
    let begun = Instant::now();
    machines.formed(&[0, 1, 2], 3)?;
    println!(
        "installed by the document's lines: three voters, one leader, after {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    machines.rights()?;
    machines.crash(0)?;
    machines.stop(1)?;
    machines.restart(2)?;
    machines.wrong_settings(1)?;
    machines.removed(2)?;
    Ok(())
}

/// Debian with systemd, made once.
fn system() -> Result<PathBuf> {
    let system = target().join("machine/debian");
    if system.join("sbin/init").exists() || system.join("lib/systemd/systemd").exists() {
        return Ok(system);
    }
    if Command::new("debootstrap").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("installing debootstrap");
        let apt = ["--quiet=2", "install", "--yes", "--no-install-recommends", "debootstrap"];
        printed(Command::new("apt-get").args(apt).env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    println!("making {SUITE} with systemd in {}", system.display());
    std::fs::create_dir_all(&system)?;
    printed(Command::new("debootstrap").args(["--variant=minbase", PACKAGES, SUITE]).arg(&system))?;
    Ok(system)
}

fn import(system: &PathBuf) -> Result<()> {
    let mut packed = Command::new("tar").arg("-C").arg(system).args(["-c", "."]).stdout(Stdio::piped()).spawn()?;
    let out = packed.stdout.take().context("it is piped")?;
    let mut import = Command::new("docker");
    import.args(["import", "--change", "CMD [\"/sbin/init\"]", "-", IMAGE]).stdin(out);
    let Output { status, stderr, .. } = import.output()?;
    ensure!(packed.wait()?.success() && status.success(), "{}", String::from_utf8_lossy(&stderr));
    Ok(())
}

/// Machines in a network of their own; they are gone when this is dropped.
struct Machines {
    network: String,
}

impl Machines {
    fn start() -> Result<Machines> {
        let machines = Machines { network: format!("codeq-systemd-{}", std::process::id()) };
        docker(&["network", "create", &machines.network])?;
        for (place, name) in NAMES.iter().enumerate() {
            // What an init needs: to mount, to make control groups. Not the devices of this machine.
            let rights = ["--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--security-opt", "seccomp=unconfined"];
            let rights = [&rights[..], &["--security-opt", "apparmor=unconfined", "--cgroupns", "host"]].concat();
            let folders = ["--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw", "--tmpfs", "/run", "--tmpfs", "/run/lock"];
            let container = machines.container(place);
            let own = ["--name", &container, "--hostname", name, "--network", &machines.network];
            let own = [&own[..], &["--env", "container=docker", IMAGE]].concat();
            docker(&[&["run", "--detach"], &rights[..], &folders, &own].concat())?;
        }
        (0..NAMES.len()).try_for_each(|place| machines.up(place))?;
        Ok(machines)
    }

    fn container(&self, place: usize) -> String {
        format!("{}-{}", self.network, NAMES[place])
    }

    /// Waits until systemd has started everything.
    fn up(&self, place: usize) -> Result<()> {
        eventually(UP_MAX, || {
            let said = self.try_shell(place, "systemctl is-system-running")?;
            let said = String::from_utf8_lossy(&said.stdout).trim().to_owned();
            ensure!(["running", "degraded"].contains(&said.as_str()), "{} is {said}", NAMES[place]);
            Ok(())
        })
    }

    fn address(&self, place: usize) -> Result<String> {
        let look = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        Ok(docker(&["inspect", "--format", look, &self.container(place)])?.trim().to_owned())
    }

    fn copy(&self, place: usize, from: &str, to: &str) -> Result<()> {
        docker(&["cp", from, &format!("{}:{to}", self.container(place))]).map(|_| ())
    }

    fn try_shell(&self, place: usize, lines: &str) -> Result<Output> {
        let mut command = Command::new("docker");
        ended(command.args(["exec", "--workdir", "/srv", &self.container(place), "sh", "-e", "-c", lines]))
    }

    /// Lines at a machine's shell, as root. Returns what they print.
    fn shell(&self, place: usize, lines: &str) -> Result<String> {
        let Output { status, stdout, stderr } = self.try_shell(place, lines)?;
        ensure!(status.success(), "{} at {lines}: {}", NAMES[place], String::from_utf8_lossy(&stderr));
        Ok(String::from_utf8_lossy(&stdout).trim().to_owned())
    }

    /// A property of the service.
    fn property(&self, place: usize, name: &str) -> Result<String> {
        self.shell(place, &format!("systemctl show codeq --property {name} --value"))
    }

    fn journal(&self, place: usize) -> String {
        self.shell(place, "journalctl --unit codeq --no-pager --lines 40").unwrap_or_default()
    }

    fn ask(&self, place: usize, method: &str, path: &str) -> Result<(u16, Value)> {
        let addr: SocketAddr = format!("{}:8080", self.address(place)?).parse()?;
        let answer = send_as(addr, Some(TOKEN), method, path, "")?;
        Ok((answer.status, answer.json().unwrap_or_default()))
    }

    /// Waits until these serve, and see so many voters, all of them there.
    fn formed(&self, places: &[usize], voters: usize) -> Result<()> {
        for place in places {
            let formed = eventually(UP_MAX, || {
                let (status, nodes) = self.ask(*place, "GET", "/cluster/nodes")?;
                let quorum = &nodes["quorum"];
                ensure!(
                    status == 200 && quorum["voters"] == voters && quorum["reachable"] == voters,
                    "{status} {nodes}"
                );
                ensure!(self.ask(*place, "GET", "/readyz")?.0 == 200, "{} is not ready", NAMES[*place]);
                Ok(())
            });
            formed.with_context(|| self.journal(*place))?;
        }
        Ok(())
    }

    /// The service is not root, its data is its own, and its settings are root's.
    fn rights(&self) -> Result<()> {
        for place in 0..NAMES.len() {
            let pid = self.property(place, "MainPID")?;
            let user = self.shell(place, &format!("stat --format %U /proc/{pid}"))?;
            let data = self.shell(place, "stat --format '%U %a' /var/lib/codeq")?;
            let settings = self.shell(place, "stat --format '%U %a' /etc/codeq/codeq.env")?;
            ensure!(user == "codeq" && data == "codeq 700" && settings == "root 600", "{user}, {data}, {settings}");
        }
        println!("it runs as codeq; /var/lib/codeq is its own; the settings are root's");
        Ok(())
    }

    /// What crashed is started again.
    fn crash(&self, place: usize) -> Result<()> {
        let before = self.property(place, "MainPID")?;
        self.shell(place, "systemctl kill --signal KILL codeq")?;
        eventually(UP_MAX, || {
            let (restarts, now) = (self.property(place, "NRestarts")?, self.property(place, "MainPID")?);
            ensure!(restarts == "1" && now != before && now != "0", "{restarts} restarts, process {now}");
            Ok(())
        })?;
        self.formed(&[0, 1, 2], 3)?;
        println!("killed: started again by systemd, three voters");
        Ok(())
    }

    /// What is stopped ends with 0, the others go on, and it starts again.
    fn stop(&self, place: usize) -> Result<()> {
        self.shell(place, "systemctl stop codeq")?;
        let (result, status) = (self.property(place, "Result")?, self.property(place, "ExecMainStatus")?);
        ensure!(result == "success" && status == "0", "{result}, {status}:\n{}", self.journal(place));
        let other = (place + 1) % NAMES.len();
        ensure!(self.ask(other, "GET", "/readyz")?.0 == 200, "the others are not ready");
        self.shell(place, "systemctl start codeq")?;
        self.formed(&[0, 1, 2], 3)?;
        println!("stopped: status 0, the others go on; started: three voters");
        Ok(())
    }

    /// A machine that restarts brings its node back.
    fn restart(&self, place: usize) -> Result<()> {
        docker(&["restart", &self.container(place)])?;
        self.up(place)?;
        self.formed(&[0, 1, 2], 3)?;
        println!("the machine restarted: its node came back by itself");
        Ok(())
    }

    /// Ends with this status, and is left alone.
    fn stays_down(&self, place: usize, expected: &str) -> Result<()> {
        eventually(UP_MAX, || {
            let (state, status) = (self.property(place, "ActiveState")?, self.property(place, "ExecMainStatus")?);
            ensure!(state == "failed" && status == expected, "{state}, status {status}:\n{}", self.journal(place));
            Ok(())
        })?;
        std::thread::sleep(QUIET);
        let state = self.property(place, "ActiveState")?;
        ensure!(state == "failed", "it is {state} again");
        Ok(())
    }

    fn wrong_settings(&self, place: usize) -> Result<()> {
        let settings = "/etc/codeq/codeq.env";
        self.shell(place, &format!("cp -p {settings} /srv/kept; echo CODEQ_SHARDS=2 >> {settings}"))?;
        // It may be told at once that it has failed.
        self.try_shell(place, "systemctl restart codeq")?;
        self.stays_down(place, "2")?;
        self.shell(place, &format!("cp -p /srv/kept {settings}; systemctl reset-failed codeq; systemctl start codeq"))?;
        self.formed(&[0, 1, 2], 3)?;
        println!("settings refused: status 2, and not started again until they are right");
        Ok(())
    }

    fn removed(&self, place: usize) -> Result<()> {
        let other = (place + 1) % NAMES.len();
        let (status, done) = self.ask(other, "DELETE", &format!("/cluster/members/{}", NAMES[place]))?;
        ensure!(status == 200, "{status} {done}");
        self.stays_down(place, "7")?;
        self.formed(&[other, (place + 2) % NAMES.len()], 2)?;
        println!("removed: status 7, and not started again; {}", done["note"].as_str().unwrap_or_default());
        Ok(())
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        // What is gone already is all that is wanted.
        for place in 0..NAMES.len() {
            let _ = docker(&["rm", "--force", "--volumes", &self.container(place)]);
        }
        let _ = docker(&["network", "rm", &self.network]);
    }
}
