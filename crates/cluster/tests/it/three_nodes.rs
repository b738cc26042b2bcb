//! Three nodes: they found a cluster, any of them takes writes and answers reads, one may die, and it comes back.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base::{Millis, ShardId};
use cluster::forming::Plan;
use cluster::{Data, Freshness, Handle, Hooks, Node, NodeConfig, Operations, PeerConfig, Room, Unavailable};

use crate::register::Register;

pub(crate) const SHARD: ShardId = ShardId(0);
pub(crate) const NAMES: [&str; 3] = ["a", "b", "c"];

pub(crate) struct Three {
    folder: tempfile::TempDir,
    addrs: Vec<SocketAddr>,
    shards: u16,
    pub(crate) nodes: Vec<Option<Node<Register>>>,
}

/// Addresses that are free: they were a moment ago, and nobody else takes ports of loopback by number.
pub(crate) fn free_addrs(count: usize) -> Vec<SocketAddr> {
    let held: Vec<_> =
        (0..count).map(|_| std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free")).collect();
    held.iter().map(|listener| listener.local_addr().expect("it is bound")).collect()
}

pub(crate) fn config(folder: &Path, place: usize, addrs: &[SocketAddr]) -> NodeConfig {
    NodeConfig {
        peers: Some(PeerConfig {
            listen: addrs[place],
            advertise: addrs[place].to_string(),
            label: "test".into(),
            secret: Some(Arc::from(*b"secret")),
            tls: None,
            token: None,
            replica: false,
            plan: Plan::List(NAMES.iter().map(|name| name.to_string()).collect()),
            addresses: addrs.iter().map(SocketAddr::to_string).collect(),
            bootstrap: false,
            listed: NAMES.map(Into::into).into(),
            admits_anybody: false,
            promote_lag: 100,
            promote_after: Millis(100),
            health_interval: Millis(200),
            zone: String::new(),
        }),
        segment_bytes: 1 << 20,
        checkpoint_interval: Millis(500),
        checkpoint_log_bytes: 1 << 20,
        inbox_depth: 1024,
        leader_wait: Millis(5_000),
        trailing_log_bytes: 1 << 20,
        election_timeout: Millis(300),
        heartbeat: Millis(60),
        // Nothing here depends on how full this machine's disk is.
        disk_low: Room::Bytes(0),
        disk_critical: Room::Bytes(0),
        ..NodeConfig::new(NAMES[place], Data::Directory(folder.join(NAMES[place])))
    }
}

pub(crate) fn start(config: NodeConfig) -> Node<Register> {
    Node::start(config, hooks()).expect("the node starts")
}

pub(crate) fn hooks() -> Hooks<Register> {
    Hooks { prepare: Box::new(|_| {}), observe: Box::new(|_| {}), undelivered: Box::new(|_| Vec::new()) }
}

pub(crate) async fn write(node: &Handle<Register>, line: &str) -> Result<u64, Unavailable> {
    write_to(node, SHARD, line).await
}

async fn write_to(node: &Handle<Register>, shard: ShardId, line: &str) -> Result<u64, Unavailable> {
    let mut operations = Operations::default();
    operations.push(|bytes| bytes.extend_from_slice(line.as_bytes()));
    node.submit(shard, operations, None, None).await.map(|(_, outcomes)| outcomes[0])
}

pub(crate) async fn read(node: &Handle<Register>) -> Vec<String> {
    let asked = node.ask(SHARD, (), Freshness::Linearizable, None, None).await;
    asked.expect("there is a leader").1
}

impl Three {
    pub(crate) async fn begin() -> Three {
        Three::with_shards(1).await
    }

    pub(crate) async fn with_shards(shards: u16) -> Three {
        crate::log();
        let folder = tempfile::tempdir().expect("a folder can be made");
        let mut three = Three { folder, addrs: free_addrs(3), shards, nodes: vec![None, None, None] };
        (0..3).for_each(|place| three.start(place));
        three.ready().await;
        three
    }

    pub(crate) fn start(&mut self, place: usize) {
        self.nodes[place] = Some(start(self.config(place)));
    }

    pub(crate) fn node(&self, place: usize) -> &Handle<Register> {
        self.nodes[place].as_ref().expect("it runs").handle()
    }

    pub(crate) async fn ready(&self) {
        for node in self.nodes.iter().flatten() {
            let ready = tokio::time::timeout(Duration::from_secs(20), node.handle().ready()).await;
            ready.expect("a cluster of three is ready within seconds");
        }
    }

    pub(crate) async fn stop(&mut self, place: usize) {
        let mut node = self.nodes[place].take().expect("it runs");
        node.handle().stop();
        node.ended().await.expect("it stops without a fault");
    }

    /// Gives a node that has stopped another address, which no other one is told.
    pub(crate) fn start_elsewhere(&mut self, place: usize) {
        let addr = free_addrs(1)[0];
        let config = self.config(place);
        let peers = PeerConfig {
            listen: addr,
            advertise: addr.to_string(),
            addresses: Vec::new(),
            ..config.peers.expect("it has peers")
        };
        self.nodes[place] = Some(start(NodeConfig { peers: Some(peers), ..config }));
    }

    /// Takes its data directory from a node that has stopped.
    pub(crate) fn wipe(&self, place: usize) {
        std::fs::remove_dir_all(self.folder.path().join(NAMES[place])).expect("it has a data directory");
    }

    /// What a node is started with.
    pub(crate) fn config(&self, place: usize) -> NodeConfig {
        NodeConfig { shards: self.shards, ..config(self.folder.path(), place, &self.addrs) }
    }

    pub(crate) fn running(&self) -> Vec<usize> {
        (0..3).filter(|place| self.nodes[*place].is_some()).collect()
    }

    pub(crate) fn term(&self) -> u64 {
        self.node(self.running()[0]).status().shards[0].consensus.term.0
    }

    pub(crate) fn leader(&self) -> usize {
        let leader = self.nodes.iter().flatten().next().expect("one runs").handle().leader(SHARD);
        let leads = |node: &Option<Node<Register>>| node.as_ref().is_some_and(|node| node.handle().id() == leader);
        self.nodes.iter().position(leads).expect("the leader runs")
    }
}

/// Any node takes a write and answers a read that reflects it; the leader stops; the other two go on; it comes back and has everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_serves_and_one_may_go() {
    let mut three = Three::begin().await;
    let mut expected = Vec::new();
    for round in 0..20 {
        let line = format!("line {round}");
        let count = write(three.node(round % 3), &line).await.expect("it is written");
        expected.push(line);
        assert_eq!(count as usize, expected.len());
        assert_eq!(read(three.node((round + 1) % 3)).await, expected, "a read at any node reflects it");
    }
    let leader = three.leader();
    three.stop(leader).await;
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    for (round, place) in others.into_iter().cycle().take(10).enumerate() {
        let line = format!("without {leader}, {round}");
        write(three.node(place), &line).await.expect("two of three go on");
        expected.push(line);
    }
    three.start(leader);
    three.ready().await;
    assert_eq!(read(three.node(leader)).await, expected);
    for place in 0..3 {
        three.stop(place).await;
    }
    // All at once, from their files.
    (0..3).for_each(|place| three.start(place));
    three.ready().await;
    assert_eq!(read(three.node(0)).await, expected);
}

/// A node that is asked to stop while others go on writing ends, although entries come to it all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_stops_while_others_write() {
    let mut three = Three::with_shards(16).await;
    let leader = three.leader();
    let (end, ended) = tokio::sync::watch::channel(());
    let writers: Vec<_> = (0..64)
        .map(|writer| {
            let (leader, ended) = (three.node(leader).clone(), ended.clone());
            tokio::spawn(async move {
                while ended.has_changed().is_ok() {
                    let written = write_to(&leader, ShardId(writer % 16), &format!("line of {writer}")).await;
                    written.expect("two of three go on");
                }
            })
        })
        .collect();
    let stopped = tokio::time::timeout(Duration::from_secs(20), three.stop((leader + 1) % 3)).await;
    drop(end);
    for writer in writers {
        writer.await.expect("no write fails");
    }
    stopped.expect("a stop does not wait until nobody writes any more");
}

/// A node that was away for longer than the log goes back gets a snapshot, while the others go on, and has everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_too_long_gets_a_snapshot() {
    let mut three = Three::begin().await;
    let away = (three.leader() + 1) % 3;
    let here = three.leader();
    three.stop(away).await;
    // More than the log keeps for those who are away.
    let long = "x".repeat(20_000);
    let mut written = 0;
    while written < 4 << 20 {
        write(three.node(here), &long).await.expect("two of three go on");
        written += long.len();
    }
    eventually("a checkpoint covers what was written", three.node(here), || {
        let look = three.node(here).inspect();
        look.shards[0].checkpoint == look.shards[0].applied && look.shards[0].consensus.first > base::Index(50)
    })
    .await;
    write(three.node(here), "last").await.expect("two of three go on");
    three.start(away);
    three.ready().await;
    let everything = read(three.node(here)).await;
    assert_eq!(read(three.node(away)).await, everything);
    let look = three.node(away).inspect();
    assert!(look.shards[0].checkpoint > base::Index(100), "it has begun with a snapshot: {look:?}");
    // From its own files.
    three.stop(away).await;
    three.start(away);
    three.ready().await;
    assert_eq!(read(three.node(away)).await, everything);
}

/// A node alone becomes three under load: newcomers are learners first, then voters; then the first one may go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_grows_to_three() {
    crate::log();
    let folder = tempfile::tempdir().expect("a folder can be made");
    let mut three = Three { folder, addrs: free_addrs(3), shards: 1, nodes: vec![None, None, None] };
    let of = |three: &Three, place: usize| {
        let mut config = config(three.folder.path(), place, &three.addrs);
        let peers = config.peers.as_mut().expect("it has peers");
        peers.plan = if place == 0 { Plan::List([NAMES[0].to_string()].into()) } else { Plan::Join };
        peers.addresses = vec![three.addrs[0].to_string()];
        peers.admits_anybody = true;
        config
    };
    three.nodes[0] = Some(start(of(&three, 0)));
    three.ready().await;
    // Writes go on all the time, and none of them fails.
    let first = three.node(0).clone();
    let (end, mut ended) = tokio::sync::oneshot::channel::<()>();
    let writer = tokio::spawn(async move {
        let mut written: Vec<String> = Vec::new();
        while ended.try_recv().is_err() {
            let line = written.len().to_string();
            write(&first, &line).await.expect("it is written");
            written.push(line);
        }
        written
    });
    for place in 1..3 {
        three.nodes[place] = Some(start(of(&three, place)));
        let votes = |node: &Handle<Register>| node.members().configuration.voters.len() == place + 1;
        eventually("the newcomer votes", three.node(0), || votes(three.node(0)) && votes(three.node(place))).await;
    }
    three.ready().await;
    end.send(()).expect("the writer has not failed");
    let mut expected = writer.await.expect("no write has failed");
    assert!(expected.len() > 10, "{} writes meanwhile", expected.len());
    for place in 0..3 {
        assert_eq!(read(three.node(place)).await, expected);
    }
    three.stop(0).await;
    write(three.node(1), "without the first").await.expect("two of three go on");
    expected.push("without the first".into());
    assert_eq!(read(three.node(2)).await, expected);
}

/// Looks again whenever the node says something, until it is so; a cluster needs less than a second for anything asked for here.
pub(crate) async fn eventually(what: &str, node: &Handle<Register>, mut is_so: impl FnMut() -> bool) {
    let looks = async {
        while !is_so() {
            node.changed().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), looks).await.unwrap_or_else(|_| panic!("{what}: not after 20 s"));
}

/// Every member knows how old its state may be, as long as it is in contact with a leader; one that is left alone does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_knows_how_long_ago_it_heard_from_its_leader() {
    let mut three = Three::begin().await;
    for place in 0..3 {
        let node = three.node(place).clone();
        // Heartbeats come every 60 ms.
        let fresh = || node.contact_age(SHARD).is_some_and(|age| age < Millis(10_000));
        eventually("contact", &node, fresh).await;
    }
    three.stop(0).await;
    three.stop(1).await;
    let last = three.node(2).clone();
    eventually("no leader", &last, || last.contact_age(SHARD).is_none()).await;
}
