//! Connections to the other nodes: one thread with one runtime carries them all.
//!
//! Each node dials each other one. What the dialler has to say travels on the connection that it made: messages of all groups, requests
//! of clients for the leader, pieces of snapshots; only the answers to those come back on it. A connection that breaks is dialled again,
//! its name resolved anew; whoever waits for an answer on it learns that the outcome is unknown, or that nothing was sent.
//!
//! Reading order: `wire` (the bytes), `stream` (the socket, perhaps encrypted), `handshake` (who may talk), `links`, `outgoing`, `requests` and `answers` (the queues), `connection` (the tasks).

pub(crate) mod admission;
mod answers;
pub(crate) mod collecting;
mod connection;
pub(crate) mod handshake;
mod links;
mod outgoing;
pub(crate) mod requests;
pub(crate) mod saves;
pub(crate) mod snapshots;
pub(crate) mod stages;
mod stream;
pub(crate) mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use base::machine::StateMachine;
use base::{Incarnation, Index, Millis, Mono, ShardId};
use replica::{Member, Members, Message};
use storage::StorageError;
use storage::checkpoint::Snapshots;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

pub(crate) use answers::Answers;
pub(crate) use links::{Forward, Link, Links};
use snapshots::{Copies, Piece, start_receiver};
pub(crate) use wire::PROTOCOL;

use crate::clock::Clock;
use crate::events::lasting::{Lasting, Said};
use crate::events::noticing::notice_for_ever;
use crate::events::{Draft, Level};
use crate::forming::{Conflict, Forming, Greeting, Plan, Proposal, Step};
use crate::health::{Report, report_for_ever};
use crate::inbox::Control;
use crate::node::{Cluster, Common};
use crate::open::random_incarnation;
use crate::operate::{ACTIONS_MAX, Retired};
use crate::tokens::JoinSecret;

/// How a node meets others.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    /// Where it listens for them; port 0 is a free one.
    pub listen: SocketAddr,
    /// Where they reach it, `host:port`. Port 0 means the one it listens on.
    pub advertise: String,
    /// Which cluster is meant; nodes with different labels never meet.
    pub label: String,
    /// What peers prove to each other, if there is a secret.
    pub secret: Option<Arc<[u8]>>,
    /// What encrypts every connection, and proves who is at its other end; nothing: nobody's connections are encrypted.
    pub tls: Option<Arc<tls::PeerTls>>,
    /// What it joins with, if it was given one. It is proved wherever this node asks to be admitted.
    pub token: Option<JoinSecret>,
    /// It does not vote by itself when it is admitted.
    pub replica: bool,
    /// Whom it founds a cluster with, if it has none.
    pub plan: Plan,
    /// Whom it greets: `host:port`, its own address perhaps among them.
    pub addresses: Vec<String>,
    /// It proposes the cluster, and asks for votes at once.
    pub bootstrap: bool,
    /// Names that are admitted whoever has them.
    pub listed: BTreeSet<String>,
    /// Anybody who asks is admitted. Otherwise: who is listed, or has proved to know the secret or a join token.
    pub admits_anybody: bool,
    /// Entries that a learner may lack when it becomes a voter.
    pub promote_lag: u64,
    /// For how long it must have lacked no more.
    pub promote_after: Millis,
    /// How often it says how it is; more than 0.
    pub health_interval: Millis,
    /// The label of its data centre.
    pub zone: String,
}

/// How a node has come to belong to a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// It is a founder.
    Founded(Proposal),
    /// It was admitted.
    Admitted(Cluster),
}

/// A node that belongs to no cluster says so after this long: as long as it takes those who start together to find each other.
const PATIENCE: Millis = Millis(3_000);

/// Greetings go out this often while there is no cluster.
const GREETING_INTERVAL: Duration = Duration::from_millis(100);

/// What the tasks of the peers' thread share with each other and with the loop.
pub(crate) struct Shared<S: StateMachine> {
    pub(crate) config: PeerConfig,
    pub(crate) clock: Clock,
    pub(crate) common: Arc<Common<S>>,
    pub(crate) links: Links<S>,
    /// What this node says of itself.
    pub(crate) own: Mutex<Greeting>,
    /// The members of group 0, as far as they are applied here.
    pub(crate) members: Mutex<Members>,
    /// What the founding hears, while there is no cluster.
    pub(crate) heard: mpsc::UnboundedSender<Heard>,
    /// The checkpoints of this node's shards, once they are open.
    pub(crate) snapshots: OnceLock<BTreeMap<ShardId, Arc<dyn Snapshots>>>,
    pub(crate) copies: Copies,
    /// Pieces of snapshots that have come.
    pieces: Mutex<Option<std::sync::mpsc::Sender<Piece>>>,
    runtime: OnceLock<tokio::runtime::Handle>,
    /// Places for the actions that this node does for others and itself.
    pub(crate) actions: Semaphore,
    /// What members have said of themselves, and when.
    reports: Mutex<BTreeMap<u64, (Mono, Report)>>,
    /// How far their clocks are ahead of this node's, in milliseconds.
    skews: Mutex<BTreeMap<u64, i64>>,
    /// Counts changes of the members.
    changes: watch::Sender<u64>,
    /// What keeps this node from founding or joining, in words.
    pub(crate) waiting: Mutex<String>,
}

impl<S: StateMachine> Shared<S> {
    pub(crate) fn greeting(&self) -> Greeting {
        self.own.lock().expect("nothing panics while it holds this lock").clone()
    }

    pub(crate) fn members(&self) -> Members {
        self.members.lock().expect("nothing panics while it holds this lock").clone()
    }

    /// The name of a member, or its id.
    pub(crate) fn name(&self, id: u64) -> String {
        self.member(id).map_or_else(|| Incarnation(id).to_string(), |member| member.name)
    }

    pub(crate) fn member(&self, id: u64) -> Option<Member> {
        self.members.lock().expect("nothing panics while it holds this lock").get(id).cloned()
    }

    /// Members that have said of themselves something else than is recorded.
    pub(crate) fn moved(&self) -> Vec<Member> {
        let members = self.members();
        let told = self.links.all().into_iter().filter_map(|link| link.told());
        told.filter(|told| members.get(told.id).is_some_and(|recorded| recorded != told)).collect()
    }

    /// Sends a shard's checkpoint to a member, whose log begins before this node's does. `first`: the first entry in this node's log.
    pub(crate) fn send_snapshot(self: &Arc<Self>, shard: ShardId, first: Index, message: Message) {
        let (Some(runtime), Some(link)) = (self.runtime.get(), self.links.get(message.to())) else {
            // Consensus sends the member nothing else before it hears what has become of this.
            return self.common.inbox.control(Control::SnapshotSent(shard, message.to(), false));
        };
        runtime.spawn(snapshots::send(self.clone(), link, shard, first, message));
    }

    /// The names of the nodes at these addresses, or why there is none.
    pub(crate) async fn introduce(self: &Arc<Self>, addresses: &[String]) -> Vec<Result<String, String>> {
        let Some(runtime) = self.runtime.get() else { return Vec::new() };
        let dial = |address: &String| runtime.spawn(connection::introduce_once(self.clone(), address.clone()));
        let dialled: Vec<_> = addresses.iter().map(dial).collect();
        let mut answers = Vec::new();
        for one in dialled {
            answers.push(one.await.unwrap_or_else(|_| Err("this node is stopping".into())));
        }
        answers
    }

    /// A piece of a snapshot has come.
    fn take_piece(&self, piece: Piece) {
        if let Some(pieces) = &*self.pieces.lock().expect("nothing panics while it holds this lock") {
            // The thread ends only with the node.
            let _ = pieces.send(piece);
        }
    }

    /// Says, once, why this node is not admitted.
    fn wait_because(&self, refusal: &handshake::Refusal) {
        let mut waiting = self.waiting.lock().expect("nothing panics while it holds this lock");
        if *waiting != refusal.text {
            let refused = Draft::new(Level::Warn, "raft.join.refused", &*refusal.text);
            self.common.events.tell(refused.with("reason", refusal.code));
            waiting.clone_from(&refusal.text);
        }
    }

    /// Takes over who the members are. As long as this node does not know them, it keeps to whoever has introduced itself.
    pub(crate) fn follow(&self, members: Members) {
        // A node that has just been admitted knows those who have introduced themselves, and nobody else yet.
        if members.configuration.members().is_empty() {
            return;
        }
        let mut own = self.own.lock().expect("nothing panics while it holds this lock");
        let me = own.me.id;
        own.acquaintances =
            members.iter().filter(|member| !member.peer.is_empty()).map(|member| member.peer.clone()).collect();
        drop(own);
        let others = members.iter().filter(|member| member.id != me && !member.peer.is_empty());
        self.links.follow(others, |id| members.was_removed(id));
        *self.members.lock().expect("nothing panics while it holds this lock") = members;
        self.changes.send_modify(|count| *count += 1);
        let members = self.members();
        let mut reports = self.reports.lock().expect("nothing panics while it holds this lock");
        reports.retain(|id, _| members.get(*id).is_some());
    }

    /// What the other members have said of themselves, and how long ago.
    pub(crate) fn reports(&self) -> BTreeMap<u64, (Millis, Report)> {
        let now = self.clock.now().mono;
        let reports = self.reports.lock().expect("nothing panics while it holds this lock");
        reports.iter().map(|(id, (at, report))| (*id, (now - *at, report.clone()))).collect()
    }

    /// A member says how it is. Of others nothing is kept.
    fn on_report(&self, from: u64, report: Report) {
        let members = self.members();
        // What comes by way of another one may be old: it counts where there is nothing better.
        for moved in report.moved.iter().filter(|moved| members.get(moved.id).is_some()) {
            if let Some(link) = self.links.get(moved.id).filter(|link| !link.is_up()) {
                link.on_called(moved);
            }
        }
        let mut reports = self.reports.lock().expect("nothing panics while it holds this lock");
        reports.retain(|id, _| members.get(*id).is_some());
        let Some(member) = members.get(from) else { return };
        if report.lacks_room() {
            self.common.lacks_room.store(true, Ordering::Relaxed);
        }
        let (now, applied) = (self.clock.now(), report.applied.first().copied().unwrap_or_default());
        let told = Draft::new(Level::Debug, "cluster.health.report", format!("{} says how it is", member.name))
            .with("member", &*member.name)
            .with("applied", applied.0)
            .with("bytes", report.log_bytes);
        self.common.events.tell(told.unkept());
        let mut skews = self.skews.lock().expect("nothing panics while it holds this lock");
        skews.retain(|id, _| members.get(*id).is_some());
        skews.insert(from, report.wall.0 as i64 - now.wall.0 as i64);
        reports.insert(from, (now.mono, report));
    }

    /// How far the clocks of the other members were ahead of this node's when they last said how they are, in milliseconds, but for the
    /// time that took to come here.
    pub(crate) fn skews(&self) -> BTreeMap<u64, i64> {
        self.skews.lock().expect("nothing panics while it holds this lock").clone()
    }

    /// Waits until a member is none any more.
    async fn removed(&self, id: u64) {
        let is_removed = |_: &u64| self.members.lock().is_ok_and(|members| members.was_removed(id));
        // The sender lives in `self`.
        let _ = self.changes.subscribe().wait_for(is_removed).await;
    }

    /// A member that knows the secret says that this node is none any more.
    fn retire(&self, why: &str) {
        let text = format!("{why}; to join again it needs an empty data directory");
        self.common.events.tell(Draft::new(Level::Warn, "raft.removed", text));
        self.common.retire(Retired::Removed);
    }
}

/// What a node without a cluster hears.
pub(crate) enum Heard {
    /// A greeting.
    Greeting(Box<Greeting>),
    /// Addresses that an operator has named.
    Addresses(Vec<String>),
    /// It was admitted to a cluster.
    Admitted(Cluster),
}

/// Makes an accepted proposal durable.
pub(crate) type Accept = Box<dyn Fn(&Proposal) -> Result<(), StorageError> + Send>;

/// The peers' thread.
pub(crate) struct Peers<S: StateMachine> {
    pub(crate) shared: Arc<Shared<S>>,
    pub(crate) addr: SocketAddr,
    stop: watch::Sender<bool>,
    thread: std::thread::JoinHandle<()>,
}

impl<S: StateMachine> Peers<S> {
    /// Listens, and starts the thread. If the node has no cluster, the proposal that it becomes a founder of comes out of the receiver.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub(crate) fn start(
        config: PeerConfig,
        mut own: Greeting,
        clock: Clock,
        common: Arc<Common<S>>,
        accept: Accept,
    ) -> std::io::Result<(Peers<S>, oneshot::Receiver<Result<Joined, StorageError>>)> {
        let listener = std::net::TcpListener::bind(config.listen)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        if let Some(host) = own.me.peer.strip_suffix(":0") {
            own.me.peer = format!("{host}:{}", addr.port());
        }
        let (heard, received) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            config,
            clock,
            common,
            links: Links::default(),
            own: Mutex::new(own),
            members: Mutex::new(Members::default()),
            heard,
            snapshots: OnceLock::new(),
            copies: Copies::default(),
            pieces: Mutex::new(None),
            runtime: OnceLock::new(),
            actions: Semaphore::new(ACTIONS_MAX),
            reports: Mutex::default(),
            skews: Mutex::default(),
            changes: watch::Sender::new(0),
            waiting: Mutex::new(String::new()),
        });
        *shared.pieces.lock().expect("nobody holds it yet") = Some(start_receiver(shared.clone())?);
        let (stop, stopped) = watch::channel(false);
        let (form, formed) = oneshot::channel();
        let context = shared.clone();
        let run = move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
            context.runtime.get_or_init(|| runtime.handle().clone());
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("it does not block");
                tokio::spawn(connection::accept(context.clone(), listener));
                tokio::spawn(connection::dial_members(context.clone()));
                tokio::spawn(report_for_ever(context.clone()));
                tokio::spawn(notice_for_ever(context.clone()));
                if context.greeting().cluster.is_none() {
                    tokio::spawn(form_cluster(context, received, accept, form));
                }
                let mut stopped = stopped;
                // An error means that the node has gone.
                let _ = stopped.wait_for(|stop| *stop).await;
                // What was handed to the connections a moment ago still leaves.
                tokio::time::sleep(Duration::from_millis(20)).await;
            });
        };
        let thread = std::thread::Builder::new().name("codeq-peers".into()).spawn(run)?;
        Ok((Peers { shared, addr, stop, thread }, formed))
    }

    /// Closes all connections.
    pub(crate) fn stop(self) {
        self.stop.send_replace(true);
        self.shared.pieces.lock().expect("nothing panics while it holds this lock").take();
        // A panic has been logged where it happened.
        let _ = self.thread.join();
    }
}

/// Greets whoever is known until a cluster is founded.
async fn form_cluster<S: StateMachine>(
    shared: Arc<Shared<S>>,
    mut received: mpsc::UnboundedReceiver<Heard>,
    accept: Accept,
    form: oneshot::Sender<Result<Joined, StorageError>>,
) {
    let mut forming = Forming::new(shared.greeting());
    let (begun, mut waiting) = (shared.clock.now().mono, Lasting::default());
    let mut greeted = Vec::new();
    let mut asking: Option<tokio::task::JoinHandle<()>> = None;
    let mut interval = tokio::time::interval(GREETING_INTERVAL);
    shared.config.addresses.iter().for_each(|address| forming.meet(address));
    loop {
        let now: Mono = shared.clock.now().mono;
        let steps = tokio::select! {
            heard = received.recv() => match heard {
                Some(Heard::Greeting(greeting)) => forming.on_greeting(now, *greeting),
                Some(Heard::Addresses(addresses)) => {
                    addresses.iter().for_each(|address| forming.meet(address));
                    Vec::new()
                }
                Some(Heard::Admitted(cluster)) => {
                    shared.own.lock().expect("nothing panics while it holds this lock").cluster = Some(cluster.id);
                    // Nobody listens any more if the node has stopped.
                    let _ = form.send(Ok(Joined::Admitted(cluster)));
                    return;
                }
                None => return,
            },
            _ = interval.tick() => {
                let random: Incarnation = random_incarnation();
                forming.tick(now, random)
            }
        };
        for step in steps {
            match step {
                Step::Accept(proposal) => {
                    let text = format!("cluster {} is proposed by {}", proposal.cluster, proposal.first);
                    let proposed = Draft::new(Level::Debug, "raft.bootstrap.proposed", text)
                        .with("by", &*proposal.first)
                        .with("proposal", proposal.cluster.to_string());
                    shared.common.events.tell(proposed);
                    if let Err(failure) = accept(&proposal) {
                        // Nobody listens any more if the node has stopped.
                        let _ = form.send(Err(failure));
                        return;
                    }
                    forming.on_accepted(proposal);
                }
                Step::Formed(proposal) => {
                    let mut own = shared.own.lock().expect("nothing panics while it holds this lock");
                    own.accepted = Some(proposal.clone());
                    own.cluster = Some(proposal.cluster);
                    drop(own);
                    let _ = form.send(Ok(Joined::Founded(proposal)));
                    return;
                }
                Step::Ask(address) => {
                    if asking.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
                        asking = Some(tokio::spawn(connection::ask(shared.clone(), address)));
                    }
                }
                Step::Several(names) => {
                    let names = names.join(", ");
                    tracing::warn!(target: "raft", event = "raft.bootstrap.several", "cluster.bootstrap is set on {names}; one is enough, and this node proposes");
                }
                Step::Conflict(Conflict { other, theirs, ours, text }) => {
                    let conflict = Draft::new(Level::Error, "raft.bootstrap.conflict", &*text)
                        .with("other", other)
                        .with("theirs", theirs)
                        .with("ours", ours);
                    shared.common.events.tell(conflict);
                    *shared.waiting.lock().expect("nothing panics while it holds this lock") = text;
                }
            }
        }
        let own = forming.greeting();
        for address in &own.acquaintances {
            if !greeted.contains(address) && *address != own.me.peer {
                greeted.push(address.clone());
                tokio::spawn(connection::greet(shared.clone(), address.clone()));
            }
        }
        *shared.own.lock().expect("nothing panics while it holds this lock") = own.clone();
        let progress = forming.progress(now, &shared.waiting.lock().expect("nothing panics while it holds this lock"));
        let (age, (expect, known, missing)) = (now - begun, forming.known(now));
        if let Some(said) = waiting.look(now, age >= PATIENCE) {
            // Once for all to hear: whoever waits may wait for long.
            let level = if said == Said::Began { Level::Warn } else { Level::Debug };
            let text = format!("this node belongs to no cluster yet, and starts no election: {progress}");
            let waits = Draft::new(level, "raft.bootstrap.waiting", text)
                .with("expect", expect)
                .with("known", known)
                .with("missing", missing);
            shared.common.events.tell(if said == Said::Began { waits } else { waits.unkept() });
        }
        shared.common.status.send_if_modified(|status| status.is_unjoined(&progress));
    }
}

/// What a founder's greeting says.
pub(crate) fn own_greeting(config: &PeerConfig, me: Member, shards: u16) -> Greeting {
    Greeting {
        label: config.label.clone(),
        me,
        shards,
        plan: config.plan.clone(),
        bootstrap: config.bootstrap,
        accepted: None,
        cluster: None,
        acquaintances: Vec::new(),
    }
}
