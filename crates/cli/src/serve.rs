//! `codeq serve`: a server from its start to its end, and the exit status that says how it ended.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use base::Millis;
use server::config::kinds::show_duration;
use server::config::{Configuration, Inputs, Notice};
use server::reload::Reload;
use server::{Data, Durability, Exit, NodeError, Retired, Server, Stage, StartError, StorageError};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::refuse;
use crate::flags::SettingFlags;
use crate::logs::Log;

/// Could not start, or failed while running.
const FAILED: u8 = 1;
/// It belongs to no cluster, and has waited long enough.
const NOT_ADMITTED: u8 = 3;
/// The settings do not fit the data directory.
const REFUSED: u8 = 2;
/// The node is no member of its cluster any more, for good.
const RETIRED: u8 = 7;
/// The data directory is damaged, of another identity or of another format.
const DAMAGED: u8 = 8;
/// The disk failed under a running server.
const STORAGE_FAILED: u8 = 9;

/// Runs a server with the settings from all sources.
pub(crate) fn serve(flags: SettingFlags) -> ExitCode {
    let inputs = flags.with_environment();
    match inputs.read().configuration() {
        Ok(configuration) => run(&configuration, Some(inputs), |server| {
            let text = started(&configuration, server);
            tracing::info!(event = "server.started", env = configuration.env, "{text}");
        }),
        Err(refused) => refuse(&refused),
    }
}

/// Runs a server until it is asked to stop. `inputs`: what its settings come from, and are read from again for the log's levels. `ready` is
/// called once it takes writes.
pub(crate) fn run(configuration: &Configuration, inputs: Option<Inputs>, ready: impl FnOnce(&Server)) -> ExitCode {
    give_memory_back();
    let log = Log::start(&configuration.log);
    for Notice { is_warning, text } in &configuration.notices {
        if *is_warning {
            tracing::warn!(event = "config.notice", "{text}");
        } else {
            tracing::info!(event = "config.notice", "{text}");
        }
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => {
            log.last_words(&format!("cannot wait for signals: {cause}"));
            return ExitCode::from(FAILED);
        }
    };
    let follow = inputs.map(|inputs| {
        let log = log.clone();
        move || {
            let configuration = inputs.read().configuration().map_err(|refused| refused.to_string())?;
            log.follow(&configuration.log)
        }
    });
    let ended = runtime.block_on(until_stopped(configuration, follow, ready));
    match ended {
        Ended::Clean => ExitCode::SUCCESS,
        Ended::AtOnce => {
            log.last_words(&"stopped at once, by a second signal; what was acknowledged is kept");
            ExitCode::from(FAILED)
        }
        Ended::NoSignals(cause) => {
            log.last_words(&format!("cannot wait for signals: {cause}"));
            ExitCode::from(FAILED)
        }
        Ended::NotAdmitted(why) => {
            log.last_words(&why);
            ExitCode::from(NOT_ADMITTED)
        }
        Ended::Retired(Retired::Left) => ExitCode::SUCCESS,
        Ended::Retired(Retired::Removed) => {
            log.last_words(&"this node was removed from its cluster; to join again it needs an empty data directory");
            ExitCode::from(RETIRED)
        }
        Ended::By(exit) => {
            log.last_words(&exit);
            ExitCode::from(status(&exit))
        }
    }
}

/// How a server ended.
enum Ended {
    /// As it was asked to.
    Clean,
    /// By a second signal.
    AtOnce,
    /// It never ran, since nobody could have stopped it.
    NoSignals(std::io::Error),
    /// It belongs to no cluster, though it was given time.
    NotAdmitted(String),
    /// It is no member of its cluster any more.
    Retired(Retired),
    /// By itself.
    By(Exit),
}

/// The signals that ask a process to stop.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn listen() -> std::io::Result<Signals> {
        Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

async fn until_stopped(
    configuration: &Configuration,
    follow: Option<impl Fn() -> Result<(), String> + Send + Sync + 'static>,
    ready: impl FnOnce(&Server),
) -> Ended {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(cause) => return Ended::NoSignals(cause),
    };
    let mut server = match Server::start(configuration.settings.clone()) {
        Ok(server) => server,
        Err(exit) => return Ended::By(exit),
    };
    if let Some(follow) = follow {
        server.reload().also("log levels", follow);
    }
    if let Some(text) = server.waits() {
        tracing::info!(event = "server.listening", "{text}");
    }
    tokio::spawn(reload_on_hangup(server.reload().clone()));
    let node = server.node().clone();
    let join_timeout = configuration.settings.join_timeout;
    tokio::select! {
        biased;
        exit = server.failed() => return Ended::By(exit),
        () = signals.next() => return stop(server, signals).await,
        why = not_admitted(|| node.stage(), join_timeout) => return match stop(server, signals).await {
            Ended::Clean => Ended::NotAdmitted(why),
            otherwise => otherwise,
        },
        retired = node.retired() => return retire(server, signals, retired).await,
        () = node.ready() => {}
    }
    // It may have become as ready as one that has stopped.
    if node.is_ready() {
        ready(&server);
    }
    tokio::select! {
        exit = server.failed() => Ended::By(exit),
        retired = node.retired() => retire(server, signals, retired).await,
        () = signals.next() => stop(server, signals).await,
    }
}

/// Has files read again whenever SIGHUP comes.
async fn reload_on_hangup(reload: Arc<Reload>) {
    // Without it, files are read again when they change.
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        let reload = reload.clone();
        // It says what was read, and what is wrong.
        let _ = tokio::task::spawn_blocking(move || reload.now()).await;
    }
}

/// Stops a server whose node is no member any more: requests under way are answered.
async fn retire(server: Server, signals: Signals, retired: Retired) -> Ended {
    match stop(server, signals).await {
        Ended::Clean => Ended::Retired(retired),
        otherwise => otherwise,
    }
}

/// Returns, with the reason, when a node that belongs to no cluster has waited as long as it should.
async fn not_admitted(stage: impl Fn() -> Stage, longest: Option<Millis>) -> String {
    let Some(longest) = longest else { return std::future::pending().await };
    tokio::time::sleep(longest.to_std()).await;
    match stage() {
        Stage::Unjoined(why) => {
            let shown = show_duration(longest);
            format!("this node belongs to no cluster after {shown} (cluster.joinTimeout): {why}")
        }
        _ => std::future::pending().await,
    }
}

/// Stops a server, unless a second signal is more urgent.
async fn stop(server: Server, mut signals: Signals) -> Ended {
    tracing::info!(event = "server.stopping", "stopping; requests under way are finished first");
    tokio::select! {
        stopped = server.stop() => match stopped {
            Ok(()) => {
                tracing::info!(event = "server.stopped", "stopped");
                Ended::Clean
            }
            Err(exit) => Ended::By(exit),
        },
        () = signals.next() => Ended::AtOnce,
    }
}

/// The exit status of a server that ended by itself.
fn status(exit: &Exit) -> u8 {
    match exit {
        Exit::Bind(..) | Exit::Start(StartError::Listen(..) | StartError::Thread(_)) => FAILED,
        Exit::Start(StartError::Storage(error)) => match error {
            StorageError::Failed { .. } | StorageError::Busy { .. } | StorageError::Locked { .. } => FAILED,
            StorageError::Damaged { .. }
            | StorageError::Foreign { .. }
            | StorageError::BadSnapshot { .. }
            | StorageError::BadBackup { .. } => DAMAGED,
        },
        Exit::Start(StartError::Retired { .. }) => RETIRED,
        Exit::Start(StartError::Differs { .. } | StartError::Accepted { .. } | StartError::Settings(_)) => REFUSED,
        Exit::Node(NodeError::Storage(error)) => match error {
            StorageError::Failed { .. } | StorageError::Busy { .. } => STORAGE_FAILED,
            StorageError::Locked { .. } => FAILED,
            StorageError::Damaged { .. }
            | StorageError::Foreign { .. }
            | StorageError::BadSnapshot { .. }
            | StorageError::BadBackup { .. } => DAMAGED,
        },
        Exit::Node(NodeError::Fault(_) | NodeError::Panicked) => FAILED,
    }
}

/// What a server does, in a sentence.
fn started(configuration: &Configuration, server: &Server) -> String {
    let settings = &configuration.settings;
    let node = &settings.node;
    let data = match &node.data {
        Data::Directory(path) => format!("data in {}", path.display()),
        Data::Memory => "data in memory only".into(),
    };
    let identity = server.node().identity();
    let shards = if node.shards == 1 { "1 shard".into() } else { format!("{} shards", node.shards) };
    let durability = match node.durability {
        Durability::Fsync => "durability fsync".into(),
        Durability::Buffered(interval) => format!("durability buffered, synced every {}", show_duration(interval)),
    };
    let access = match &settings.auth.open {
        Some(_) if settings.http.addr.ip().is_loopback() => "open to this machine's users",
        Some(_) => "open to everybody",
        None => "for tokens only",
    };
    let name = &identity.node;
    let members = match server.node().peer_addr() {
        None => "single node".into(),
        Some(peers) => {
            let members = server.node().members();
            let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
            format!("peers on {peers}, members {}", names.join(" "))
        }
    };
    let scheme = if settings.files.http.is_some() { "https" } else { "http" };
    format!("node {name} listens on {scheme}://{}, {data}, {shards}, {durability}, {members}, {access}", server.addr())
}

/// How often memory that nobody uses any longer is given back, at least.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(2);

/// More than the allocator keeps for later when it is freed.
const GIVE_BACK_BYTES: usize = 4 << 20;

/// The allocator gives pages back to the operating system a while after they became free, but looks only when some thread frees a page. A
/// server that has just become idle frees none: here is one.
fn give_memory_back() {
    let give_back = || loop {
        std::thread::sleep(GIVE_BACK_EVERY);
        drop(std::hint::black_box(Vec::<u8>::with_capacity(GIVE_BACK_BYTES)));
    };
    // Without it memory is given back later.
    let _ = std::thread::Builder::new().name("codeq-memory".into()).spawn(give_back);
}
