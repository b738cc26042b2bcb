//! The three nodes of a compose file: in containers, or as processes of this machine with its service names, its variables, and free ports.
//!
//! The rows of a walk ask for what a user of the file does: up, down, stop, kill, remove a volume, change a variable, read a log.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::compose::{Changes, DATA, Project};
use crate::disks::Disk;
use crate::docker::{docker, ended, logs};
use crate::http::{Answer, Client};
use crate::image::{self, TAGS};
use crate::process::{Folder, target};
use crate::walk::page::Page;
use crate::walk::{Skip, bad_config};

/// The services of codeQ's page.
pub(crate) const NAMES: [&str; 3] = ["node-a", "node-b", "node-c"];

/// Longest a planned stop may take.
pub(crate) const STOP_MAX: Duration = Duration::from_secs(5);

/// What compose itself may take beside the containers.
const COMPOSE_MAX: Duration = Duration::from_secs(5);

/// Between two looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Ports are looked for from here on, below those that the operating system gives to outgoing connections: whoever is down finds its own again.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// What nodes run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Driver {
    /// Processes of this machine.
    Process,
    /// Containers.
    Docker,
}

/// Three nodes, of which some run.
pub(crate) struct Nodes {
    codeq: PathBuf,
    page: Page,
    host: Host,
    nodes: Vec<Node>,
}

enum Host {
    /// With a folder for their data.
    Processes(Folder),
    Containers(Project),
}

struct Node {
    http: SocketAddr,
    peer: String,
    /// Of a process all, of a container those that differ from its file's.
    variables: BTreeMap<String, String>,
    /// Variables of a container's file that it is not given.
    without: BTreeSet<String>,
    running: Option<Running>,
}

enum Running {
    Process(Process),
    Container,
}

/// A process and everything that it has printed.
pub(crate) struct Process {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<std::thread::JoinHandle<()>>,
}

/// How a process has ended by itself.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    pub(crate) lines: Vec<String>,
}

impl Process {
    /// Starts the program with these variables and no others.
    ///
    /// # Errors
    /// There is no such program.
    pub(crate) fn start(codeq: &Path, arguments: &[&str], variables: &BTreeMap<String, String>) -> Result<Process> {
        let mut command = Command::new(codeq);
        command.args(arguments).env_clear().envs(variables);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", codeq.display()))?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let pipes: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
            child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        ];
        let read = |pipe: Box<dyn Read + Send>| {
            let lines = lines.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    lines.lock().expect("nothing panics while it holds this lock").push(line);
                }
            })
        };
        let readers = pipes.into_iter().flatten().map(read).collect();
        Ok(Process { child, lines, readers })
    }

    /// What it has printed so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("nothing panics while it holds this lock").clone()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal).context("cannot send a signal")
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// It goes on for longer than `longest`; then it is killed.
    pub(crate) fn end(mut self, longest: Duration) -> Result<End> {
        let (begun, longest) = (Instant::now(), allowed(longest));
        loop {
            if let Some(status) = self.child.try_wait()? {
                for reader in self.readers.drain(..) {
                    // A panic there has nothing to do with the server.
                    let _ = reader.join();
                }
                return Ok(End { status, lines: self.lines() });
            }
            ensure!(begun.elapsed() < longest, "it goes on after {longest:?}:\n{}", self.lines().join("\n"));
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already, which is all that is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node beside those of a page; it is gone when this is dropped.
pub(crate) enum Extra {
    Process {
        codeq: PathBuf,
        variables: BTreeMap<String, String>,
        process: Process,
    },
    /// Its name.
    Container(String),
}

impl Extra {
    /// The command as somebody on the node's machine gives it.
    ///
    /// # Errors
    /// It cannot be run.
    pub(crate) fn codeq(&self, arguments: &[&str]) -> Result<Output> {
        match self {
            Extra::Process { codeq, variables, .. } => {
                ended(Command::new(codeq).args(arguments).env_clear().envs(variables))
            }
            Extra::Container(name) => ended(Command::new("docker").args(["exec", name, "codeq"]).args(arguments)),
        }
    }

    /// What it has printed.
    ///
    /// # Errors
    /// There is no such container.
    pub(crate) fn lines(&self) -> Result<Vec<String>> {
        match self {
            Extra::Process { process, .. } => Ok(process.lines()),
            Extra::Container(name) => logs(name, None),
        }
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        if let Extra::Container(name) = self {
            // It may be gone already, which is all that is wanted.
            let _ = docker(&["rm", "--force", "--volumes", name]);
        }
    }
}

impl Nodes {
    /// Three processes with the variables of codeQ's page, none of them running and none with data.
    ///
    /// # Errors
    /// There are no free ports, or no room for data.
    pub(crate) fn new(codeq: &Path, name: &str) -> Result<Nodes> {
        Nodes::of(Page::Raft, Driver::Process, codeq, name)
    }

    /// Three nodes of a page, none of them running and none with data.
    ///
    /// # Errors
    /// There are no free ports, no room for data, or no Docker.
    pub(crate) fn of(page: Page, driver: Driver, codeq: &Path, name: &str) -> Result<Nodes> {
        let count = page.names().len();
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let node = |http, peer, variables| Node { http, peer, variables, without: BTreeSet::new(), running: None };
        let (host, nodes) = match driver {
            Driver::Process => {
                let folder = Folder::new(name)?;
                let ports = free_ports(2 * count)?;
                let (peers, https) = ports.split_at(count);
                let made = |place: usize| {
                    let data = folder.within(page.names()[place]).display().to_string();
                    let variables = page.of_process(place, &data, peers, https);
                    node(loopback(https[place]), format!("127.0.0.1:{}", peers[place]), variables)
                };
                let nodes = (0..count).map(made).collect();
                (Host::Processes(folder), nodes)
            }
            Driver::Docker => {
                let (file, ports) = page.file().context("there is no compose file of it")?;
                let made = |place: usize| {
                    let peer = format!("{}:7000", page.names()[place]);
                    node(loopback(ports[place]), peer, page.of_container())
                };
                let project = Project::new(file, page.names(), &format!("codeq-{name}"))?;
                (Host::Containers(project), (0..count).map(made).collect())
            }
        };
        Ok(Nodes { codeq: codeq.to_owned(), page, host, nodes })
    }

    /// Others of the same page, as new. In containers they have the same ports: these must be down.
    ///
    /// # Errors
    /// There are no free ports, or no room for data.
    pub(crate) fn others(&self, name: &str) -> Result<Nodes> {
        Nodes::of(self.page, self.driver(), &self.codeq, name)
    }

    /// What they run as.
    pub(crate) fn driver(&self) -> Driver {
        match self.host {
            Host::Processes(_) => Driver::Process,
            Host::Containers(_) => Driver::Docker,
        }
    }

    /// The containers' project.
    pub(crate) fn project(&self) -> Option<&Project> {
        match &self.host {
            Host::Processes(_) => None,
            Host::Containers(project) => Some(project),
        }
    }

    /// A node's name.
    pub(crate) fn name(&self, place: usize) -> &'static str {
        self.page.names()[place]
    }

    /// Their names.
    pub(crate) fn names(&self) -> &'static [&'static str; 3] {
        self.page.names()
    }

    /// Where a node's peers reach it.
    pub(crate) fn peer(&self, place: usize) -> &str {
        &self.nodes[place].peer
    }

    /// The program.
    pub(crate) fn codeq(&self) -> &Path {
        &self.codeq
    }

    /// The variables that a node is started with.
    pub(crate) fn variables(&self, place: usize) -> &BTreeMap<String, String> {
        &self.nodes[place].variables
    }

    /// Changes a variable of a node, for its next start.
    pub(crate) fn set(&mut self, place: usize, name: &str, value: &str) {
        self.nodes[place].without.remove(name);
        self.nodes[place].variables.insert(name.into(), value.into());
    }

    /// Removes a variable of a node, for its next start.
    pub(crate) fn unset(&mut self, place: usize, name: &str) {
        self.nodes[place].variables.remove(name);
        self.nodes[place].without.insert(name.into());
    }

    /// Gives each of three nodes a disk of so many bytes below `folder`, and a log of small segments.
    ///
    /// # Errors
    /// [`Skip`]: none may be mounted here.
    pub(crate) fn with_disks(&mut self, folder: &Folder, bytes: u64) -> Result<Vec<Disk>> {
        let disk = |place: usize| Disk::mount(folder.within(self.name(place)), bytes);
        let Some(disks) = (0..3).map(disk).collect::<Result<Option<Vec<_>>>>()? else {
            return Err(Skip("file systems cannot be mounted here").into());
        };
        for (place, disk) in disks.iter().enumerate() {
            self.keeps_data_on(place, disk)?;
            self.set(place, "CODEQ_STORAGE_SEGMENT_BYTES", "4MiB");
        }
        Ok(disks)
    }

    /// From its next start on, a node keeps its data on this disk.
    ///
    /// # Errors
    /// There is no room on it.
    fn keeps_data_on(&mut self, place: usize, disk: &Disk) -> Result<()> {
        let (name, data) = (self.name(place), disk.folder().join("data"));
        match &mut self.host {
            Host::Processes(_) => self.set(place, "CODEQ_DATA_DIR", &data.display().to_string()),
            Host::Containers(project) => {
                std::fs::create_dir(&data)?;
                std::os::unix::fs::chown(&data, Some(image::USER), Some(image::USER))?;
                project.keeps_data_in(name, data);
            }
        }
        Ok(())
    }

    /// A file on a node's machine. Returns its path there.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn put(&self, place: usize, file: &str, text: &str) -> Result<String> {
        let folder = match &self.host {
            Host::Processes(folder) => folder.within(&format!("{}-files", self.name(place))),
            Host::Containers(_) => target().join(format!("xtask-files-{}", std::process::id())),
        };
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(file);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        let Host::Containers(project) = &self.host else { return Ok(path.display().to_string()) };
        let there = format!("{DATA}/{file}");
        docker(&["cp", &path.display().to_string(), &format!("{}:{there}", project.container(self.name(place))?)])?;
        std::fs::remove_dir_all(&folder)?;
        Ok(there)
    }

    /// Where clients reach a node.
    pub(crate) fn http(&self, place: usize) -> SocketAddr {
        self.nodes[place].http
    }

    /// The URL that people are told.
    pub(crate) fn public_url(&self, place: usize) -> String {
        format!("http://localhost:{}", self.http(place).port())
    }

    /// One more node beside those of the page, with the settings of the last of them and a name of its own.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn extra(&self, name: &str) -> Result<Extra> {
        let place = self.nodes.len() - 1;
        let mut variables = self.nodes[place].variables.clone();
        match &self.host {
            Host::Processes(folder) => {
                let ports = free_ports(2)?;
                let peer = format!("127.0.0.1:{}", ports[0]);
                variables.insert("CODEQ_NODE_ID".into(), name.into());
                variables.insert("CODEQ_DATA_DIR".into(), folder.within(name).display().to_string());
                variables.insert("CODEQ_RAFT_ADDR".into(), peer);
                variables.insert("PORT".into(), ports[1].to_string());
                variables.insert("CODEQ_PUBLIC_URL".into(), format!("http://localhost:{}", ports[1]));
                let process = Process::start(&self.codeq, &["serve"], &variables)?;
                Ok(Extra::Process { codeq: self.codeq.clone(), variables, process })
            }
            Host::Containers(project) => {
                let network = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}";
                let network = project.look(self.name(place), network)?;
                let settings = project.look(self.name(place), "{{json .Config.Env}}")?;
                let settings: Vec<String> = serde_json::from_str(&settings)?;
                let own = [format!("CODEQ_NODE_ID={name}"), format!("CODEQ_PUBLIC_URL=http://{name}:8080")];
                let container = format!("{}-{name}", project.name());
                let settings = settings.iter().chain(&own).flat_map(|setting| ["--env", setting]);
                let mut arguments = vec!["run", "--detach", "--name", &container, "--hostname", name];
                arguments.extend(["--network", &network, "--network-alias", name]);
                arguments.extend(settings);
                arguments.push(TAGS[1]);
                docker(&arguments)?;
                Ok(Extra::Container(container))
            }
        }
    }

    /// Those that run.
    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|place| self.nodes[*place].running.is_some()).collect()
    }

    /// `docker compose up -d`
    ///
    /// # Errors
    /// There is no program.
    pub(crate) fn up(&mut self) -> Result<()> {
        let down: Vec<usize> = (0..self.nodes.len()).filter(|place| self.nodes[*place].running.is_none()).collect();
        self.start_all(&down)
    }

    /// `docker compose up -d --wait`
    ///
    /// # Errors
    /// They are not healthy in time.
    pub(crate) fn up_and_wait(&mut self, longest: Duration) -> Result<Duration> {
        self.up()?;
        let begun = Instant::now();
        match &self.host {
            Host::Processes(_) => self.ready(&(0..self.nodes.len()).collect::<Vec<_>>(), longest)?,
            Host::Containers(project) => {
                project.up_and_wait(self.page.names())?;
                begun.elapsed()
            }
        };
        Ok(begun.elapsed())
    }

    /// `docker compose start`
    ///
    /// # Errors
    /// There is no program.
    pub(crate) fn start(&mut self, place: usize) -> Result<()> {
        self.start_all(&[place])
    }

    fn start_all(&mut self, places: &[usize]) -> Result<()> {
        match &self.host {
            Host::Processes(_) => {
                for place in places {
                    let process = Process::start(&self.codeq, &["serve"], &self.nodes[*place].variables)?;
                    self.nodes[*place].running = Some(Running::Process(process));
                }
            }
            Host::Containers(project) => {
                project.change(&self.changes())?;
                project.up(&places.iter().map(|place| self.name(*place)).collect::<Vec<_>>())?;
                places.iter().for_each(|place| self.nodes[*place].running = Some(Running::Container));
            }
        }
        Ok(())
    }

    /// What containers are given that their file does not have.
    fn changes(&self) -> Changes {
        let of_node = |(place, node): (usize, &Node)| {
            let given = node.variables.iter().map(|(name, value)| (name.clone(), Some(value.clone())));
            let without = node.without.iter().map(|name| (name.clone(), None));
            (self.name(place), given.chain(without).collect())
        };
        self.nodes.iter().enumerate().map(of_node).collect()
    }

    /// Starts a node with a variable that it must refuse, in a line that has these words.
    ///
    /// # Errors
    /// It does not end with 2, or does not say so.
    pub(crate) fn refused(&mut self, place: usize, name: &str, value: &str, named: &[&str]) -> Result<String> {
        let before = self.nodes[place].variables.insert(name.into(), value.into());
        let line = match &self.host {
            Host::Processes(_) => bad_config::refused(&self.codeq, &[], &self.nodes[place].variables, named),
            Host::Containers(project) => project.change(&self.changes()).and_then(|()| {
                let Output { status, stdout, stderr } = project.once(self.name(place))?;
                let both = [stdout, stderr].concat();
                let shown = String::from_utf8_lossy(&both);
                ensure!(status.code() == Some(2), "it has ended with {status}:\n{shown}");
                let line = shown.lines().find(|line| named.iter().all(|word| line.contains(word)));
                Ok(line.with_context(|| format!("no line names {named:?}:\n{shown}"))?.trim().to_owned())
            }),
        };
        match before {
            Some(before) => self.nodes[place].variables.insert(name.into(), before),
            None => self.nodes[place].variables.remove(name),
        };
        line
    }

    fn take(&mut self, place: usize) -> Result<Running> {
        self.nodes[place].running.take().with_context(|| format!("{} does not run", self.page.names()[place]))
    }

    /// Asks a process to stop, and returns at once.
    ///
    /// # Errors
    /// It does not run, or in a container.
    pub(crate) fn stopping(&mut self, place: usize) -> Result<Process> {
        let Running::Process(process) = self.take(place)? else { bail!("it runs in a container") };
        process.signal(Signal::SIGTERM)?;
        Ok(process)
    }

    /// The process that a node is.
    ///
    /// # Errors
    /// It does not run, or in a container.
    pub(crate) fn process_id(&self, place: usize) -> Result<Pid> {
        match &self.nodes[place].running {
            Some(Running::Process(process)) => Ok(Pid::from_raw(process.child.id() as i32)),
            _ => bail!("{} runs as no process", self.name(place)),
        }
    }

    /// `docker compose stop`. Returns how long it took.
    ///
    /// # Errors
    /// It does not end with 0 in time.
    pub(crate) fn stop(&mut self, place: usize) -> Result<Duration> {
        let begun = Instant::now();
        self.stop_all(&[place])?;
        Ok(begun.elapsed())
    }

    /// Waits until a node has ended by itself. Returns its exit status.
    ///
    /// # Errors
    /// It goes on for longer than `longest`.
    pub(crate) fn ended(&mut self, place: usize, longest: Duration) -> Result<Option<i32>> {
        match (self.take(place)?, &self.host) {
            (Running::Process(process), _) => Ok(process.end(longest)?.status.code()),
            (Running::Container, Host::Containers(project)) => {
                // It may have been started again since, and have ended again.
                let status = eventually(longest, || {
                    let status: i32 = project.look(self.name(place), "{{.State.ExitCode}}")?.parse()?;
                    ensure!(status != 0, "{} goes on", self.name(place));
                    Ok(status)
                })?;
                project.run(&["stop", self.name(place)])?;
                Ok(Some(status))
            }
            (Running::Container, Host::Processes(_)) => bail!("processes run in no container"),
        }
    }

    /// `docker compose kill`
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn kill(&mut self, place: usize) -> Result<()> {
        match (self.take(place)?, &self.host) {
            (Running::Process(process), _) => {
                process.signal(Signal::SIGKILL)?;
                process.end(STOP_MAX).map(|_| ())
            }
            (Running::Container, Host::Containers(project)) => project.run(&["kill", self.name(place)]).map(|_| ()),
            (Running::Container, Host::Processes(_)) => bail!("processes run in no container"),
        }
    }

    /// `docker compose down`, which keeps the volumes.
    ///
    /// # Errors
    /// One of them does not end with 0 in time.
    pub(crate) fn down(&mut self) -> Result<()> {
        self.stop_all(&self.running())?;
        match &self.host {
            Host::Processes(_) => Ok(()),
            Host::Containers(project) => project.down(),
        }
    }

    /// As if nobody had ever started them: none runs, and none has data.
    ///
    /// # Errors
    /// One of them does not end with 0 in time.
    pub(crate) fn forget(&mut self) -> Result<()> {
        self.stop_all(&self.running())?;
        match &self.host {
            Host::Containers(project) => project.forget(),
            Host::Processes(folder) => {
                let data = self.page.names().iter().map(|name| folder.within(name));
                data.filter(|path| path.exists()).try_for_each(|path| {
                    std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))
                })
            }
        }
    }

    fn stop_all(&mut self, places: &[usize]) -> Result<()> {
        if let Host::Containers(project) = &self.host {
            let names: Vec<&str> = places.iter().map(|place| self.name(*place)).collect();
            let begun = Instant::now();
            project.stop(&names)?;
            ensure!(begun.elapsed() <= allowed(STOP_MAX + COMPOSE_MAX), "they have ended after {:?}", begun.elapsed());
            places.iter().for_each(|place| self.nodes[*place].running = None);
            return Ok(());
        }
        let stopping: Vec<_> = places.iter().map(|place| self.stopping(*place)).collect::<Result<_>>()?;
        for (place, process) in places.iter().zip(stopping) {
            let End { status, lines } = process.end(STOP_MAX)?;
            ensure!(status.success(), "{} has ended with {status}:\n{}", self.name(*place), lines.join("\n"));
        }
        Ok(())
    }

    /// `docker volume rm`
    ///
    /// # Errors
    /// It cannot be removed.
    pub(crate) fn remove_volume(&self, place: usize) -> Result<()> {
        match &self.host {
            Host::Processes(folder) => {
                let path = folder.within(self.name(place));
                std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))
            }
            Host::Containers(project) => project.remove_volumes(self.name(place)),
        }
    }

    /// `docker compose logs`, since the last start.
    ///
    /// # Errors
    /// It does not run.
    pub(crate) fn log(&self, place: usize) -> Result<Vec<String>> {
        match (&self.nodes[place].running, &self.host) {
            (Some(Running::Process(process)), _) => Ok(process.lines()),
            (_, Host::Containers(project)) => project.log(self.name(place)),
            (_, Host::Processes(_)) => bail!("{} does not run", self.name(place)),
        }
    }

    /// `docker exec NODE codeq …`: the command as somebody on the node's machine gives it.
    ///
    /// # Errors
    /// It cannot be run.
    pub(crate) fn codeq_at(&self, place: usize, arguments: &[&str]) -> Result<Output> {
        match &self.host {
            Host::Containers(project) => project.exec(self.name(place), &[&["codeq"], arguments].concat()),
            Host::Processes(_) => {
                let mut command = Command::new(&self.codeq);
                ended(command.args(arguments).env_clear().envs(&self.nodes[place].variables))
            }
        }
    }

    /// A command as somebody on the node's machine gives it, that goes on until it is dropped.
    ///
    /// # Errors
    /// It cannot be run.
    pub(crate) fn watching(&self, place: usize, arguments: &[&str]) -> Result<Process> {
        match &self.host {
            Host::Containers(project) => {
                let container = project.container(self.name(place))?;
                let path = std::env::var("PATH").map(|path| ("PATH".to_owned(), path));
                let variables = path.into_iter().collect();
                Process::start(Path::new("docker"), &[&["exec", &container, "codeq"], arguments].concat(), &variables)
            }
            Host::Processes(_) => Process::start(&self.codeq, arguments, &self.nodes[place].variables),
        }
    }

    /// A line of a node's log that has this text.
    ///
    /// # Errors
    /// There is none in time.
    pub(crate) fn logged(&self, place: usize, text: &str, longest: Duration) -> Result<String> {
        let found = eventually(longest, || {
            let lines = self.log(place)?;
            lines.into_iter().find(|line| line.contains(text)).with_context(|| format!("no line has {text:?}"))
        });
        found.with_context(|| {
            format!("log of {}:\n{}", self.name(place), self.log(place).unwrap_or_default().join("\n"))
        })
    }

    /// A request with the token of the page, on a connection of its own.
    ///
    /// # Errors
    /// There is no answer.
    pub(crate) fn send(&self, place: usize, method: &str, path: &str, body: &str) -> Result<Answer> {
        send_as(self.http(place), self.page.token(), method, path, body)
    }

    pub(crate) fn get(&self, place: usize, path: &str) -> Result<Answer> {
        self.send(place, "GET", path, "")
    }

    pub(crate) fn post(&self, place: usize, path: &str, body: &Value) -> Result<Answer> {
        self.send(place, "POST", path, &body.to_string())
    }

    /// The body of a page that is there.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn page(&self, place: usize, path: &str) -> Result<Value> {
        let answer = self.get(place, path)?;
        ensure!(answer.status == 200, "{} answers {path} with {answer}", self.name(place));
        answer.json()
    }

    /// Waits until requests for every shard can be served through these nodes.
    ///
    /// # Errors
    /// One of them is not ready in time.
    pub(crate) fn ready(&self, places: &[usize], longest: Duration) -> Result<Duration> {
        let begun = Instant::now();
        for place in places {
            let ready = eventually(longest.saturating_sub(begun.elapsed()), || {
                let answer = self.get(*place, "/readyz")?;
                ensure!(answer.status == 200, "{} is not ready: {answer}", self.name(*place));
                Ok(())
            });
            ready.with_context(|| {
                format!("log of {}:\n{}", self.name(*place), self.log(*place).unwrap_or_default().join("\n"))
            })?;
        }
        Ok(begun.elapsed())
    }

    /// The place of the node that this one takes for the leader.
    ///
    /// # Errors
    /// It knows none.
    pub(crate) fn leader(&self, place: usize) -> Result<usize> {
        let status = self.page(place, "/v1/codeq/raft/status")?;
        let leader = status["leaderID"].as_str().unwrap_or_default();
        self.page
            .names()
            .iter()
            .position(|name| *name == leader)
            .with_context(|| format!("{} sees {status}", self.name(place)))
    }
}

/// A request with a token, or none, on a connection of its own.
///
/// # Errors
/// There is no answer.
pub(crate) fn send_as(addr: SocketAddr, token: Option<&str>, method: &str, path: &str, body: &str) -> Result<Answer> {
    let mut client = Client::connect(addr).with_context(|| format!("nobody listens on {addr}"))?;
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> = bearer.iter().map(|bearer| ("Authorization", bearer.as_str())).collect();
    Ok(client.send_with(method, path, &headers, body)?)
}

/// How many times as long everything may take: on a machine that has other work, or with a program that is not built as it is shipped.
static SLOWER: AtomicU32 = AtomicU32::new(1);

/// From now on everything that is waited for may take so many times as long.
pub(crate) fn allow_slower(times: u32) {
    SLOWER.store(times, Ordering::Relaxed);
}

/// How long something may take here that may take so long elsewhere.
pub(crate) fn allowed(longest: Duration) -> Duration {
    longest * slower()
}

/// How many times as long things may take here.
pub(crate) fn slower() -> u32 {
    SLOWER.load(Ordering::Relaxed)
}

/// Tries until it works.
///
/// # Errors
/// The last failure, when time is over.
pub(crate) fn eventually<T>(longest: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let longest = allowed(longest);
    let begun = Instant::now();
    loop {
        match attempt() {
            Ok(done) => return Ok(done),
            Err(failure) if begun.elapsed() >= longest => {
                return Err(failure.context(format!("not within {longest:?}")));
            }
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

/// Ports that nobody has now, and that this program has not given out before.
///
/// # Errors
/// There are not as many.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let width = u32::from(PORTS.end - PORTS.start);
    let mut ports = Vec::new();
    for _ in 0..width {
        let step = std::process::id().wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + (step % width) as u16;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            ports.push(port);
        }
        if ports.len() == count {
            return Ok(ports);
        }
    }
    bail!("there are no {count} free ports")
}
