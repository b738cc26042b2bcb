//! The tasks of connections: greeting a node, dialling the members, serving those who dial.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io::{Error, ErrorKind};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base::codec::{Malformed, Reader, Write};
use base::machine::StateMachine;
use base::{Incarnation, Index, Position, Term};
use base::{Mono, ShardId};
use bytes::Bytes;
use replica::{Event, Member, Message, Operations, Reply, Unavailable, Wait};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{interval, sleep, timeout};

use crate::events::{Draft, Events, Level};
use crate::forming::ClusterId;
use crate::health;
use crate::inbox::Control;
use crate::lane::ReplyTo;
use crate::node::Cluster;
use crate::peer::admission::Asked;
use crate::peer::answers::Answers;
use crate::peer::handshake::{
    CODES, Guest, IS_PEER, NOT_LEADER, REMOVED, Refusal, TLS, check_certificate, is_proof, judge, proof,
};
use crate::peer::links::Link;
use crate::peer::requests::{self, REQUESTS_MAX};
use crate::peer::snapshots::{Piece, Receipt, put_receipt, read_receipt};
use crate::peer::stream::{Side, Sink, Source, secure};
use crate::peer::wire::{FrameReader, Frames, Hello, Kind, PROTOCOL};
use crate::peer::{GREETING_INTERVAL, Heard, Shared};

/// Time to connect, and time for the whole handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Addresses of one name that are greeted.
const ADDRESSES_MAX: usize = 16;

/// Time for a node to answer whom an operator introduces it to.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(2);

/// Time to be admitted.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(15);

/// Between attempts to reach a member: doubled from the first to the last of these.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(1);

/// A connection is asked for a sign of life this often, and given up without one for this long.
const PING_INTERVAL: Duration = Duration::from_millis(500);
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// Connections that have not finished their handshake: all of them, and those from one address. More from it are closed at once, so that
/// nobody alone keeps the others out.
const UNFINISHED_MAX: usize = 64;
const UNFINISHED_OF_ONE_MAX: usize = 32;

/// A member that is not heard of for so long may still answer; but once somebody else leads, nobody waits for that.
const SILENCE_OF_A_LEADER_MAX: Duration = Duration::from_secs(1);

/// A connection whose other side is known.
struct Met {
    reader: FrameReader<Source>,
    writer: Sink,
    /// What this side and the other one have said first.
    own: Hello,
    theirs: Hello,
    guest: Guest,
}

// Handshake.

/// Connects and introduces this node. `to`: the incarnation that is expected there, 0: any.
async fn dial<S: StateMachine>(shared: &Shared<S>, address: &str, to: u64) -> Result<Met, Failure> {
    let stream = timeout(CONNECT_TIMEOUT, connect(address)).await.map_err(|_| Error::from(ErrorKind::TimedOut))??;
    timeout(HANDSHAKE_TIMEOUT, introduce(shared, stream, to)).await.map_err(|_| Error::from(ErrorKind::TimedOut))?
}

/// Every address of the name is tried; it is resolved anew each time.
async fn connect(address: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Why there is no connection.
enum Failure {
    Network(Error),
    Refused(Refusal),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Network(error)
    }
}

impl From<Malformed> for Failure {
    fn from(Malformed: Malformed) -> Failure {
        Failure::Network(Error::new(ErrorKind::InvalidData, "it sent something that is not of this protocol"))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Network(error) => error.fmt(f),
            Failure::Refused(refusal) => write!(f, "{}: {}", refusal.code, refusal.text),
        }
    }
}

fn hello<S: StateMachine>(shared: &Shared<S>, to: u64) -> Hello {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).expect("the operating system has random numbers");
    Hello { protocol: PROTOCOL, nonce, to, greeting: shared.greeting() }
}

async fn introduce<S: StateMachine>(shared: &Shared<S>, stream: TcpStream, to: u64) -> Result<Met, Failure> {
    let secured = secure(shared.config.tls.as_deref(), stream, Side::Dialled).await;
    let (reader, mut writer, facts) = secured.map_err(|error| not_encrypted(&error))?;
    let mut reader = FrameReader::new(reader);
    let own = hello(shared, to);
    let mut frames = Frames::default();
    frames.put(Kind::Hello, |body| own.encode(body));
    writer.send(frames.bytes()).await?;
    let theirs = Hello::decode(&expect(&mut reader, Kind::Hello).await?)?;
    if let Err(refusal) = check_certificate(facts.as_ref(), &theirs) {
        refuse(&mut writer, &refusal).await;
        return Err(Failure::Refused(refusal));
    }
    let guest = judge(&own.greeting, &shared.members(), &theirs).map_err(Failure::Refused)?;
    if let Some(secret) = &shared.config.secret {
        let given = expect(&mut reader, Kind::Proof).await?;
        if !is_proof(IS_PEER, secret, &theirs, &own, &given) {
            return Err(Failure::Refused(bad_secret(&theirs)));
        }
        frames.clear();
        frames.put(Kind::Proof, |body| body.extend_from_slice(&proof(IS_PEER, secret, &own, &theirs)));
        writer.send(frames.bytes()).await?;
    }
    Ok(Met { reader, writer, own, theirs, guest })
}

async fn receive<S: StateMachine>(shared: &Shared<S>, stream: TcpStream) -> Result<Met, Failure> {
    stream.set_nodelay(true)?;
    let secured = secure(shared.config.tls.as_deref(), stream, Side::Accepted).await;
    let (reader, mut writer, facts) = secured.map_err(|error| not_encrypted(&error))?;
    let mut reader = FrameReader::new(reader);
    let theirs = Hello::decode(&expect(&mut reader, Kind::Hello).await?)?;
    if let Err(refusal) = check_certificate(facts.as_ref(), &theirs) {
        refuse(&mut writer, &refusal).await;
        return Err(Failure::Refused(refusal));
    }
    let own = hello(shared, theirs.greeting.me.id);
    let judged = judge(&own.greeting, &shared.members(), &theirs);
    let mut frames = Frames::default();
    let guest = match judged {
        Ok(guest) => guest,
        // It is told when it can know who says so.
        Err(refusal) if refusal.code == REMOVED => Guest::Removed,
        Err(refusal) => {
            refuse(&mut writer, &refusal).await;
            return Err(Failure::Refused(refusal));
        }
    };
    frames.put(Kind::Hello, |body| own.encode(body));
    if let Some(secret) = &shared.config.secret {
        frames.put(Kind::Proof, |body| body.extend_from_slice(&proof(IS_PEER, secret, &own, &theirs)));
    }
    writer.send(frames.bytes()).await?;
    if let Some(secret) = &shared.config.secret {
        let given = match expect(&mut reader, Kind::Proof).await {
            // It has found something wrong with this side, and said so.
            Err(Failure::Refused(refusal)) => return Err(Failure::Refused(refusal)),
            given => given,
        };
        if !given.is_ok_and(|given| is_proof(IS_PEER, secret, &theirs, &own, &given)) {
            let refusal = bad_secret(&theirs);
            refuse(&mut writer, &refusal).await;
            return Err(Failure::Refused(refusal));
        }
    }
    Ok(Met { reader, writer, own, theirs, guest })
}

/// The two sides do not agree on encryption, or one does not accept the other's certificate.
fn not_encrypted(error: &Error) -> Failure {
    Failure::Refused(Refusal { code: TLS, text: format!("no encrypted connection (cluster.peerCert): {error}") })
}

fn bad_secret(theirs: &Hello) -> Refusal {
    let text = format!("{} does not know the secret that cluster.clusterSecret sets here", theirs.greeting.me.name);
    Refusal { code: "bad-secret", text }
}

async fn refuse(writer: &mut Sink, refusal: &Refusal) {
    let mut frames = Frames::default();
    frames.put(Kind::Refused, |body| {
        body.put_bytes(refusal.code.as_bytes());
        body.put_bytes(refusal.text.as_bytes());
    });
    // Whoever is refused may have gone.
    let _ = writer.send(frames.bytes()).await;
}

/// The next frame, which must be of this kind.
async fn expect(reader: &mut FrameReader<Source>, kind: Kind) -> Result<Bytes, Failure> {
    // What is wrong with this side's certificate is heard only when something is read.
    let failed = |error: Error| match error.get_ref() {
        Some(cause) if cause.is::<tls::Error>() => not_encrypted(&error),
        _ => Failure::Network(error),
    };
    if kind == Kind::Hello && reader.speaks_tls().await.map_err(failed)? {
        let text = "the other side encrypts its connections, and cluster.peerCert is not set here";
        return Err(Failure::Refused(Refusal { code: TLS, text: text.into() }));
    }
    match reader.next().await.map_err(failed)? {
        (found, body) if found == kind => Ok(body),
        (Kind::Refused, body) => {
            let mut fields = Reader::new(&body);
            let (code, text) = (fields.text()?, fields.text()?.to_owned());
            let code = CODES.into_iter().find(|known| *known == code).unwrap_or("refused");
            Err(Failure::Refused(Refusal { code, text }))
        }
        _ => Err(Malformed.into()),
    }
}

/// Says something about a node once, and again when it changes.
struct Report {
    last: String,
    /// How much it matters that it cannot be reached.
    level: Level,
}

impl Report {
    fn new(level: Level) -> Report {
        Report { last: String::new(), level }
    }

    fn failure(&mut self, events: &Events, who: &str, failure: &Failure) {
        let text = failure.to_string();
        if self.last == text {
            return;
        }
        match failure {
            Failure::Network(_) => {
                let text = format!("{who} cannot be reached: {text}");
                let unreachable = Draft::new(self.level, "raft.peer.unreachable", text);
                events.tell(unreachable.with("peer", who).unkept());
            }
            Failure::Refused(refusal) => {
                let rejected = Draft::new(Level::Warn, "raft.peer.rejected", &*refusal.text);
                events.tell(rejected.with("peer", who).with("reason", refusal.code));
            }
        }
        self.last = text;
    }

    fn success(&mut self) {
        self.last.clear();
    }
}

/// Greets the node at an address again and again, until this node has a cluster. Several nodes may share a name: all are greeted.
pub(super) async fn greet<S: StateMachine>(shared: Arc<Shared<S>>, address: String) {
    let mut report = Report::new(Level::Info);
    while shared.greeting().cluster.is_none() {
        let found: Vec<String> = match timeout(CONNECT_TIMEOUT, lookup_host(&address)).await {
            Ok(Ok(found)) => found.map(|one| one.to_string()).take(ADDRESSES_MAX).collect(),
            // Dialling it says what is wrong.
            Ok(Err(_)) | Err(_) => vec![address.clone()],
        };
        let mut failed = None;
        for one in &found {
            match dial(&shared, one, 0).await {
                Ok(met) => {
                    report.success();
                    // If nobody is founding any more, nobody listens.
                    let _ = shared.heard.send(Heard::Greeting(Box::new(met.theirs.greeting)));
                }
                // Some networks know a name by addresses that lead nowhere.
                Err(Failure::Network(_)) if found.len() > 1 => {}
                Err(failure) => failed = Some(failure),
            }
        }
        if let Some(failure) = failed {
            report.failure(&shared.common.events, &address, &failure);
        }
        sleep(GREETING_INTERVAL).await;
    }
}

/// Greets the node at an address now. Returns its name.
pub(super) async fn introduce_once<S: StateMachine>(shared: Arc<Shared<S>>, address: String) -> Result<String, String> {
    let met = timeout(INTRODUCTION_TIMEOUT, dial(&shared, &address, 0)).await;
    match met.unwrap_or_else(|_| Err(Error::from(ErrorKind::TimedOut).into())) {
        Ok(met) => {
            let name = met.theirs.greeting.me.name.clone();
            // If nobody is founding any more, nobody listens.
            let _ = shared.heard.send(Heard::Greeting(Box::new(met.theirs.greeting)));
            Ok(name)
        }
        Err(failure) => Err(failure.to_string()),
    }
}

/// Asks the node at an address to be admitted to its cluster.
pub(super) async fn ask<S: StateMachine>(shared: Arc<Shared<S>>, address: String) {
    let request = async {
        let Met { mut reader, mut writer, own, theirs, .. } = dial(&shared, &address, 0).await?;
        let mut frames = Frames::default();
        frames.put(Kind::Ask, |body| Asked::new(&shared.config, &own, &theirs).encode(body));
        writer.send(frames.bytes()).await?;
        let body = expect(&mut reader, Kind::Admitted).await?;
        let mut fields = Reader::new(&body);
        let id = ClusterId(u128::from_le_bytes(fields.array()?));
        Ok::<_, Failure>(Cluster { id, incarnation: Incarnation(fields.u64()?) })
    };
    match timeout(ADMISSION_TIMEOUT, request).await {
        Ok(Ok(cluster)) => {
            // Only the founding listens, and it ends with the first admission.
            let _ = shared.heard.send(Heard::Admitted(cluster));
        }
        // Another node leads, and is asked as well.
        Ok(Err(Failure::Refused(refusal))) if refusal.code == NOT_LEADER => {}
        Ok(Err(Failure::Refused(refusal))) => {
            shared.wait_because(&refusal);
            sleep(RETRY_LAST).await;
        }
        Ok(Err(Failure::Network(_))) | Err(_) => sleep(RETRY_LAST).await,
    }
}

/// Admits a node, or says why not. `hellos`: what it said first, and what this one said.
async fn answer_request<S: StateMachine>(
    shared: &Shared<S>,
    asked: &[u8],
    hellos: (&Hello, &Hello),
    mut writer: Sink,
) -> Result<(), Failure> {
    let name = &hellos.0.greeting.me.name;
    let asked = Asked::decode(asked)?;
    match crate::peer::admission::admit(shared, &asked, hellos).await {
        Ok(cluster) => {
            let text = format!("admitted {name} as a learner");
            let joining = Draft::new(Level::Info, "raft.member.joining", text).with("member", &**name);
            shared.common.events.tell(joining.with("by", shared.greeting().me.name));
            let mut frames = Frames::default();
            frames.put(Kind::Admitted, |body| {
                body.extend_from_slice(&cluster.id.0.to_le_bytes());
                body.put_u64(cluster.incarnation.0);
            });
            // It asks again if it does not hear this.
            let _ = writer.send(frames.bytes()).await;
        }
        Err(refusal) => {
            refuse(&mut writer, &refusal).await;
            // Another node is asked as well, or this one once more.
            if refusal.code != NOT_LEADER {
                return Err(Failure::Refused(refusal));
            }
        }
    }
    Ok(())
}

// Dialling members.

/// Keeps a connection to every other member.
pub(super) async fn dial_members<S: StateMachine>(shared: Arc<Shared<S>>) {
    let mut dialled: BTreeMap<u64, Arc<Link<S>>> = BTreeMap::new();
    loop {
        let links = shared.links.all();
        dialled.retain(|id, link| links.iter().any(|present| present.id == *id && Arc::ptr_eq(present, link)));
        for link in links {
            if let Entry::Vacant(place) = dialled.entry(link.id) {
                place.insert(link.clone());
                tokio::spawn(keep_connected(shared.clone(), link));
            }
        }
        shared.links.changed.notified().await;
    }
}

async fn keep_connected<S: StateMachine>(shared: Arc<Shared<S>>, link: Arc<Link<S>>) {
    let mut target = link.target.subscribe();
    // That a connection has ended was told.
    let mut report = Report::new(Level::Debug);
    let mut pause = RETRY_FIRST;
    let mut down_since: Option<Mono> = None;
    // A member that has moved says so to whom it can reach, and until a majority can, that is in no record. What it has said may be older
    // than a record, too: they take turns.
    let mut by_word = true;
    loop {
        let Some(recorded) = target.borrow_and_update().clone() else { return };
        let member = link.told().filter(|_| by_word).unwrap_or(recorded);
        by_word = !by_word;
        match dial(&shared, &member.peer, member.id).await {
            Ok(met) if met.guest == Guest::Member(member.id) => {
                report.success();
                (pause, by_word) = (RETRY_FIRST, true);
                let up = Draft::new(Level::Info, "raft.peer.up", format!("peer {} up", member.name));
                let up = up.with("peer", &*member.name).with("addr", &*member.peer);
                shared.common.events.tell(match down_since.take() {
                    Some(since) => up.with("downMs", (shared.clock.now().mono - since).0),
                    None => up,
                });
                link.connected(met.writer);
                link.put_report(health::report(&shared));
                shared.common.routes.bump();
                let ended = tokio::select! {
                    ended = talk(&shared, &link, met.reader) => ended,
                    () = turned_away(&mut target, &member.peer) => Ok(()),
                };
                for (client, why) in link.lost() {
                    client.refuse(&shared.common, why);
                }
                shared.common.inbox.control(Control::Unreachable(member.id));
                let why = ended.as_ref().err().map_or("its address has changed".into(), ToString::to_string);
                let down = Draft::new(Level::Warn, "raft.peer.down", format!("peer {} down: {why}", member.name));
                let down = down.with("peer", &*member.name).with("addr", &*member.peer).with("reason", why);
                shared.common.events.tell(down);
                down_since = Some(shared.clock.now().mono);
                if let Err(failure) = ended {
                    report.failure(&shared.common.events, &member.name, &failure);
                }
            }
            Ok(_) => {
                let text = format!("{} has not joined the cluster yet", member.name);
                let failure = Failure::Network(Error::new(ErrorKind::NotConnected, text));
                report.failure(&shared.common.events, &member.name, &failure);
            }
            Err(failure) => report.failure(&shared.common.events, &member.name, &failure),
        }
        tokio::select! {
            () = sleep(pause) => {}
            _ = target.changed() => {}
            // Whoever has just come is there.
            () = link.called.notified() => by_word = true,
        }
        pause = (pause * 2).min(RETRY_LAST);
    }
}

/// Waits until a member is recorded at another address than this one, or is to be dialled no more.
async fn turned_away(target: &mut watch::Receiver<Option<Member>>, peer: &str) {
    while target.changed().await.is_ok() {
        if target.borrow_and_update().as_ref().is_none_or(|now| now.peer != peer) {
            return;
        }
    }
}

/// Sends what waits for a member, and takes its answers.
async fn talk<S: StateMachine>(
    shared: &Shared<S>,
    link: &Link<S>,
    mut reader: FrameReader<Source>,
) -> Result<(), Failure> {
    let started = Instant::now();
    // When something came last, in milliseconds.
    let answered = AtomicU64::new(0);
    let receive = async {
        loop {
            let (kind, body) =
                timeout(SILENCE_MAX, reader.next()).await.map_err(|_| Error::from(ErrorKind::TimedOut))??;
            link.on_heard(shared.clock.now().mono);
            answered.store(started.elapsed().as_millis() as u64, Ordering::Relaxed);
            match kind {
                Kind::Answer => take_answers(shared, link, &body)?,
                Kind::Received => {
                    let (shard, receipt) = read_receipt(&body)?;
                    link.on_receipt(shard, receipt);
                }
                Kind::Pong => {
                    let sent = Reader::new(&body).u64()?;
                    let now = started.elapsed().as_micros() as u64;
                    link.rtt.store((now.saturating_sub(sent)).max(1), Ordering::Relaxed);
                }
                Kind::Refused => {
                    let failure = refused(&body);
                    if let Failure::Refused(Refusal { code: REMOVED, text }) = &failure {
                        shared.retire(text);
                    }
                    return Err(failure);
                }
                Kind::Response => link.on_response(&body)?,
                _ => return Err(Malformed.into()),
            }
        }
    };
    tokio::select! {
        ended = receive => ended,
        ended = send(link, started) => ended,
        never = give_up_silent(shared, link, started, &answered) => never,
    }
}

/// Tells clients that the outcome of their requests is unknown, if nothing comes back on the connection they were sent on and the member
/// has lost the group: it may be held up or cut off for as long as it likes, while they could go on with the new leader. What it says on
/// the connection that it made itself does not count: it may be deaf.
async fn give_up_silent<S: StateMachine>(
    shared: &Shared<S>,
    link: &Link<S>,
    started: Instant,
    answered: &AtomicU64,
) -> ! {
    let mut look = interval(PING_INTERVAL);
    loop {
        look.tick().await;
        let silent_for = started.elapsed().saturating_sub(Duration::from_millis(answered.load(Ordering::Relaxed)));
        if silent_for < SILENCE_OF_A_LEADER_MAX {
            continue;
        }
        let routes = &shared.common.routes;
        for client in link.give_up(|shard| ![0, link.id].contains(&routes.leader(shard))) {
            client.refuse(&shared.common, Unavailable::Unknown);
        }
    }
}

fn removed(name: &str) -> Refusal {
    Refusal { code: REMOVED, text: format!("{name} was removed from the cluster") }
}

fn refused(body: &Bytes) -> Failure {
    let mut fields = Reader::new(body);
    let (Ok(code), Ok(text)) = (fields.text(), fields.text()) else { return Malformed.into() };
    let code = CODES.into_iter().find(|known| *known == code).unwrap_or("refused");
    Failure::Refused(Refusal { code, text: text.to_owned() })
}

async fn send<S: StateMachine>(link: &Link<S>, started: Instant) -> Result<(), Failure> {
    let mut ping = interval(PING_INTERVAL);
    loop {
        tokio::select! {
            () = link.wake.notified() => {}
            _ = ping.tick() => link.ping(started.elapsed()),
        }
        loop {
            tokio::select! {
                flushed = poll_fn(|context| link.poll_flush(context)) => {
                    flushed?;
                    break;
                }
                // The loop has found the socket full and cannot wait for it: it is asked anew, by whom it can wake.
                () = link.wake.notified() => {}
            }
        }
    }
}

fn take_answers<S: StateMachine>(shared: &Shared<S>, link: &Link<S>, body: &Bytes) -> Result<(), Failure> {
    let mut reader = Reader::new(body);
    let mut replies = Vec::new();
    while !reader.is_empty() {
        let request = reader.varint()?;
        let bytes = reader.bytes()?;
        let Some(client) = link.answered(request) else {
            // Its client has gone: what the answer brings is given back.
            if let Ok(reply) = decode_reply::<S>(bytes) {
                shared.common.compensate(reply);
            }
            continue;
        };
        replies.push((client, decode_reply(bytes)?));
    }
    shared.common.hand_out(replies);
    Ok(())
}

const APPLIED: u8 = 0;
const UNAVAILABLE: u8 = 1;

const UNAVAILABLES: [Unavailable; 6] = [
    Unavailable::NoLeader,
    Unavailable::Overloaded,
    Unavailable::Draining,
    Unavailable::TooStale,
    Unavailable::Unknown,
    Unavailable::Restoring,
];

fn encode_reply<S: StateMachine>(reply: &Reply<S>, body: &mut Vec<u8>) {
    match reply {
        Reply::Applied { position, outcomes } => {
            body.put_u8(APPLIED);
            body.put_u16(position.shard.0);
            body.put_varint(position.term.0);
            body.put_varint(position.index.0);
            body.put_varint(outcomes.len() as u64);
            let mut bytes = Vec::new();
            for outcome in outcomes {
                bytes.clear();
                S::encode_outcome(outcome, &mut bytes);
                body.put_bytes(&bytes);
            }
        }
        Reply::Unavailable(why) => {
            body.put_u8(UNAVAILABLE);
            let place = UNAVAILABLES.iter().position(|known| known == why).expect("all are listed");
            body.put_u8(place as u8);
        }
        Reply::Answered { .. } => panic!("questions are answered where they are asked"),
    }
}

fn decode_reply<S: StateMachine>(bytes: &[u8]) -> Result<Reply<S>, Malformed> {
    let mut reader = Reader::new(bytes);
    let reply = match reader.u8()? {
        APPLIED => {
            let shard = ShardId(reader.u16()?);
            let position = Position { shard, term: Term(reader.varint()?), index: Index(reader.varint()?) };
            let outcomes =
                (0..reader.varint()?).map(|_| S::decode_outcome(reader.bytes()?)).collect::<Result<_, _>>()?;
            Reply::Applied { position, outcomes }
        }
        UNAVAILABLE => match *UNAVAILABLES.get(usize::from(reader.u8()?)).ok_or(Malformed)? {
            // That the leader stops is no concern of this node's clients: another one will lead.
            Unavailable::Draining => Reply::Unavailable(Unavailable::NoLeader),
            why => Reply::Unavailable(why),
        },
        _ => return Err(Malformed),
    };
    reader.finish()?;
    Ok(reply)
}

// Serving those who dial.

/// What was refused lately, so that it is said once: whoever is refused comes again and again.
#[derive(Default)]
struct Refusals(Mutex<VecDeque<String>>);

/// Refusals that are remembered.
const REFUSALS_MAX: usize = 64;

impl Refusals {
    fn tell(&self, refusal: &Refusal, from: IpAddr, events: &Events) {
        let mut known = self.0.lock().expect("nothing panics while it holds this lock");
        if known.contains(&refusal.text) {
            return;
        }
        known.truncate(REFUSALS_MAX - 1);
        known.push_front(refusal.text.clone());
        let text = format!("refused a connection from {from}: {}", refusal.text);
        let draft = Draft::new(Level::Warn, "raft.peer.rejected", text).with("addr", from.to_string());
        events.tell(draft.with("reason", refusal.code));
    }
}

/// Connections that have not finished their handshake, by the address that they come from.
#[derive(Default)]
struct Unfinished(Mutex<BTreeMap<IpAddr, usize>>);

/// A place among them, given back when it is dropped.
struct Place {
    unfinished: Arc<Unfinished>,
    from: IpAddr,
    _place: OwnedSemaphorePermit,
}

impl Unfinished {
    /// Nothing: this address has enough of them.
    fn enter(self: &Arc<Self>, from: IpAddr, place: OwnedSemaphorePermit) -> Option<Place> {
        let mut unfinished = self.0.lock().expect("nothing panics while it holds this lock");
        let count = unfinished.entry(from).or_default();
        if *count >= UNFINISHED_OF_ONE_MAX {
            return None;
        }
        *count += 1;
        Some(Place { unfinished: self.clone(), from, _place: place })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut unfinished = self.unfinished.0.lock().expect("nothing panics while it holds this lock");
        if let Entry::Occupied(mut count) = unfinished.entry(self.from) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// Takes connections for ever.
pub(super) async fn accept<S: StateMachine>(shared: Arc<Shared<S>>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(UNFINISHED_MAX));
    let unfinished = Arc::new(Unfinished::default());
    let refusals = Arc::new(Refusals::default());
    loop {
        let place = places.clone().acquire_owned().await.expect("it is never closed");
        match listener.accept().await {
            Ok((stream, from)) => {
                let from = from.ip();
                let Some(place) = unfinished.enter(from, place) else { continue };
                let (shared, refusals) = (shared.clone(), refusals.clone());
                tokio::spawn(async move {
                    let met = timeout(HANDSHAKE_TIMEOUT, receive(&shared, stream)).await;
                    drop(place);
                    match met {
                        Ok(Ok(met)) => {
                            if met.guest == Guest::Removed {
                                refusals.tell(&removed(&met.theirs.greeting.me.name), from, &shared.common.events);
                            }
                            if let Err(Failure::Refused(refusal)) = serve(shared.clone(), met).await {
                                refusals.tell(&refusal, from, &shared.common.events);
                            }
                        }
                        Ok(Err(Failure::Refused(refusal))) => refusals.tell(&refusal, from, &shared.common.events),
                        // Somebody who did not speak this protocol, or went away.
                        Ok(Err(Failure::Network(_))) | Err(_) => {}
                    }
                });
            }
            // Out of handles, most likely: those in use come back.
            Err(error) => {
                tracing::warn!(target: "raft", event = "raft.peer.accept_failed", "cannot take a connection: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves a connection to its end. What is refused here was refused by the other side, or is the other side's wish to become a member.
async fn serve<S: StateMachine>(shared: Arc<Shared<S>>, met: Met) -> Result<(), Failure> {
    let Met { mut reader, mut writer, own, theirs, guest } = met;
    let other = theirs.greeting.clone();
    if guest == Guest::Removed {
        refuse(&mut writer, &removed(&other.me.name)).await;
        return Ok(());
    }
    let Guest::Member(id) = guest else {
        match timeout(HANDSHAKE_TIMEOUT, reader.next()).await {
            Ok(Ok((Kind::Ask, body))) => return answer_request(&shared, &body, (&theirs, &own), writer).await,
            Ok(Ok((Kind::Refused, body))) => return Err(refused(&body)),
            // It only wanted to know whom it has met. If nobody is founding here, nobody listens.
            _ => drop(shared.heard.send(Heard::Greeting(Box::new(other)))),
        }
        return Ok(());
    };
    let members = shared.members();
    if members.get(id).is_none() {
        shared.links.introduce(&other.me);
    }
    if let Some(link) = shared.links.get(id) {
        link.on_called(&other.me);
    }
    if members.get(id).is_some_and(|recorded| *recorded != other.me) {
        shared.common.inbox.control(Control::Heard(other.me.clone()));
        // The leader may be another one, and not be able to reach it.
        let report = health::report(&shared);
        shared.links.all().iter().for_each(|link| link.put_report(report.clone()));
    }
    let answers = Arc::new(Answers::new());
    let (pong, pongs) = tokio::sync::mpsc::unbounded_channel();
    let (receipt, receipts) = tokio::sync::mpsc::unbounded_channel();
    let (respond, responses) = tokio::sync::mpsc::unbounded_channel();
    let places = Arc::new(Semaphore::new(REQUESTS_MAX));
    let receive = async {
        loop {
            let (kind, body) =
                timeout(SILENCE_MAX, reader.next()).await.map_err(|_| Error::from(ErrorKind::TimedOut))??;
            if let Some(link) = shared.links.get(id) {
                link.on_heard(shared.clock.now().mono);
            }
            match kind {
                Kind::Messages => take_messages(&shared, id, &body)?,
                Kind::Forward => take_forwards(&shared, &answers, &body)?,
                Kind::Report => shared.on_report(id, health::Report::decode(&body)?),
                Kind::Chunk => shared.take_piece(Piece { body, answer: receipt.clone() }),
                Kind::Forget => {
                    if let Some((shard, wait)) = answers.unpark(Reader::new(&body).varint()?) {
                        shared.common.inbox.control(Control::Forget(shard, wait));
                    }
                }
                Kind::Request => {
                    let (number, what, body) = requests::read(&body)?;
                    // Whoever asks for more does not wait for ever.
                    if let Ok(place) = places.clone().try_acquire_owned() {
                        let (shared, respond) = (shared.clone(), respond.clone());
                        tokio::spawn(async move {
                            if let Some(answer) = requests::answer(&shared, what, &body).await {
                                // The connection may have ended meanwhile.
                                let _ = respond.send((number, answer));
                            }
                            drop(place);
                        });
                    }
                }
                Kind::Ping => {
                    // The receiver ends with this task.
                    let _ = pong.send(body);
                }
                Kind::Refused => return Err(refused(&body)),
                _ => return Err(Malformed.into()),
            }
        }
    };
    let ended: Result<(), Failure> = tokio::select! {
        ended = receive => ended,
        ended = send_answers(&shared, &answers, &mut writer, Results { pongs, receipts, responses }) => ended.map_err(Failure::from),
        () = shared.removed(id) => {
            refuse(&mut writer, &removed(&other.me.name)).await;
            Ok(())
        }
    };
    let (left, parked) = answers.close();
    for (shard, wait) in parked {
        shared.common.inbox.control(Control::Forget(shard, wait));
    }
    left.into_iter().for_each(|(_, reply)| shared.common.compensate(reply));
    if let Err(Failure::Network(failure)) = &ended {
        tracing::debug!(target: "raft", event = "raft.peer.disconnected", peer = %other.me.name, "{failure}");
    }
    ended
}

fn take_messages<S: StateMachine>(shared: &Shared<S>, from: u64, body: &Bytes) -> Result<(), Failure> {
    let mut reader = Reader::new(body);
    let mut messages = Vec::new();
    let me = shared.common.me;
    shared.common.events.hlc.merge(reader.u64()?, shared.clock.now().wall.0);
    while !reader.is_empty() {
        let shard = ShardId(reader.u16()?);
        let message = Message::decode(&body.slice_ref(reader.bytes()?))?;
        // Nobody speaks for another member, and nobody to another one through this one.
        if message.from() != from || message.to() != me {
            return Err(Malformed.into());
        }
        messages.push((shard, message));
    }
    shared.common.inbox.deliver(messages);
    Ok(())
}

fn take_forwards<S: StateMachine>(shared: &Shared<S>, answers: &Arc<Answers<S>>, body: &Bytes) -> Result<(), Failure> {
    let mut reader = Reader::new(body);
    while !reader.is_empty() {
        let request = reader.varint()?;
        let shard = ShardId(reader.u16()?);
        let wait = Some(reader.varint()?).filter(|wait| *wait > 0);
        let operations = Operations::decode(&mut reader)?;
        let wait = wait.map(|up_to| shared.common.new_wait(base::Millis(up_to)));
        if let Some(Wait { id, .. }) = wait {
            answers.park(request, shard, id);
        }
        let client = ReplyTo::Remote { answers: answers.clone(), request };
        let known = shared.common.inbox.has(shard);
        if !known || !shared.common.inbox.push(shard, Event::Submit { shard, operations, wait, client }) {
            // The connection is there: this task has just read from it.
            let _ = answers.put(request, Reply::Unavailable(Unavailable::Overloaded));
        }
    }
    Ok(())
}

/// What goes back to a member besides replies.
struct Results {
    pongs: UnboundedReceiver<Bytes>,
    receipts: UnboundedReceiver<(ShardId, Receipt)>,
    /// To requests, by number.
    responses: UnboundedReceiver<(u64, Vec<u8>)>,
}

async fn send_answers<S: StateMachine>(
    shared: &Shared<S>,
    answers: &Answers<S>,
    writer: &mut Sink,
    results: Results,
) -> std::io::Result<()> {
    let Results { mut pongs, mut receipts, mut responses } = results;
    let mut frames = Frames::default();
    let mut bytes = Vec::new();
    loop {
        tokio::select! {
            Some((number, response)) = responses.recv() => frames.put(Kind::Response, |body| {
                body.put_varint(number);
                body.extend_from_slice(&response);
            }),
            () = answers.wake.notified() => {}
            Some(pong) = pongs.recv() => frames.put(Kind::Pong, |body| body.extend_from_slice(&pong)),
            Some((shard, receipt)) = receipts.recv() => frames.put(Kind::Received, |body| put_receipt(shard, receipt, body)),
        }
        let replies = answers.take();
        if !replies.is_empty() {
            frames.put(Kind::Answer, |body| {
                for (request, reply) in &replies {
                    body.put_varint(*request);
                    bytes.clear();
                    encode_reply(reply, &mut bytes);
                    body.put_bytes(&bytes);
                }
            });
        }
        if let Err(error) = writer.send(frames.bytes()).await {
            replies.into_iter().for_each(|(_, reply)| shared.common.compensate(reply));
            return Err(error);
        }
        frames.clear();
    }
}
