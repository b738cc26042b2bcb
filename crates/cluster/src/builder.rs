//! Settings of a node that can be left out: what most nodes want, and what goes together with what. [`NodeConfig`] has all of them.
//!
//! A node alone, in memory: `Node::<M>::builder(Data::Memory).name("a").start()`. One of three that found a cluster together:
//!
//! ```no_run
//! # use cluster::{Data, Node, Operations, Simple, SimpleMachine};
//! # fn start<M: SimpleMachine>() -> Result<(), cluster::StartError> {
//! let node = Node::<Simple<M>>::builder(Data::Directory("data".into()))
//!     .name("a")
//!     .peers([("a", "10.0.0.1:7000"), ("b", "10.0.0.2:7000"), ("c", "10.0.0.3:7000")])
//!     .secret(b"known to these three")
//!     .start()?;
//! # Ok(())
//! # }
//! ```
//!
//! The same settings may be given for ever: a data directory that belongs to a cluster knows it, and its forming settings are ignored from
//! then on. Addresses and timeouts always come from the settings.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use base::machine::StateMachine;
use base::{Millis, ShardId, limits};
use replica::{Operations, Reply};
use storage::identity::recorded;
use tls::PeerTls;

use crate::forming::{FOUNDERS_MAX, Plan};
use crate::node::{Data, Durability, Hooks, Node, NodeConfig, StartError};
use crate::peer::PeerConfig;
use crate::tokens::JoinSecret;

/// A node to be started. Made by [`Node::builder`].
pub struct Builder<S: StateMachine> {
    config: NodeConfig,
    hooks: Hooks<S>,
    name: Option<String>,
    listen: Option<SocketAddr>,
    advertise: Option<String>,
    /// Names and addresses.
    peers: Vec<(String, String)>,
    expected: Option<usize>,
    join: Vec<String>,
    label: String,
    secret: Option<Arc<[u8]>>,
    token: Option<JoinSecret>,
    replica: bool,
    tls: Option<Arc<PeerTls>>,
    admits_anybody: bool,
}

impl<S: StateMachine> Builder<S> {
    pub(crate) fn new(data: Data) -> Builder<S> {
        Builder {
            config: NodeConfig::new("", data),
            hooks: Hooks::default(),
            name: None,
            listen: None,
            advertise: None,
            peers: Vec::new(),
            expected: None,
            join: Vec::new(),
            label: "cluster".into(),
            secret: None,
            token: None,
            replica: false,
            tls: None,
            admits_anybody: false,
        }
    }

    /// The node's name, unique in its cluster: 1-63 of `[A-Za-z0-9._-]`. Left out: the data directory's, which must have one then.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Where it listens for peers; port 0 is a free one. Left out: the port of its own entry among the peers. With neither it is alone.
    #[must_use]
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.listen = Some(addr);
        self
    }

    /// Where peers reach it, `host:port`. Left out: its own entry among the peers, else where it listens.
    #[must_use]
    pub fn advertise(mut self, address: &str) -> Self {
        self.advertise = Some(address.into());
        self
    }

    /// Where people reach it: a URL that other nodes show.
    #[must_use]
    pub fn url(mut self, url: &str) -> Self {
        self.config.url = url.into();
        self
    }

    /// Founds a cluster with these nodes, names and `host:port`, itself among them, as soon as all are there: the same list on each.
    #[must_use]
    pub fn peers<N: Into<String>, A: Into<String>>(mut self, peers: impl IntoIterator<Item = (N, A)>) -> Self {
        self.peers = peers.into_iter().map(|(name, address)| (name.into(), address.into())).collect();
        self
    }

    /// Founds a cluster with any nodes, so many in all, that are reached through the addresses to [join](Builder::join).
    #[must_use]
    pub fn expect(mut self, nodes: usize) -> Self {
        self.expected = Some(nodes);
        self
    }

    /// Asks the nodes at these addresses, `host:port`, to be admitted to their cluster, again and again. Its own may be among them.
    #[must_use]
    pub fn join<A: Into<String>>(mut self, addresses: impl IntoIterator<Item = A>) -> Self {
        self.join = addresses.into_iter().map(Into::into).collect();
        self
    }

    /// Which cluster is meant; nodes with different labels never meet. It is no secret.
    #[must_use]
    pub fn label(mut self, label: &str) -> Self {
        self.label = label.into();
        self
    }

    /// What peers prove to each other that they know. Whoever knows it may join.
    #[must_use]
    pub fn secret(mut self, secret: &[u8]) -> Self {
        self.secret = Some(secret.into());
        self
    }

    /// What this node joins with: a token that the cluster has made for it.
    #[must_use]
    pub fn token(mut self, token: JoinSecret) -> Self {
        self.token = Some(token);
        self
    }

    /// It gets the log and does not vote, until an operator promotes it.
    #[must_use]
    pub fn replica(mut self) -> Self {
        self.replica = true;
        self
    }

    /// Encrypts every connection between members; all of them must do so, and whoever has a certificate of the authority may join.
    #[must_use]
    pub fn tls(mut self, tls: Arc<PeerTls>) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Whoever reaches this node and has the label may join, without any secret: for networks where everybody is trusted.
    #[must_use]
    pub fn admit_anybody(mut self) -> Self {
        self.admits_anybody = true;
        self
    }

    /// Raft groups, 1 to 64, each with a state machine of its own; fixed when a data directory is made. Left out: 1.
    #[must_use]
    pub fn shards(mut self, shards: u16) -> Self {
        self.config.shards = shards;
        self
    }

    /// When an operation is acknowledged. Left out: when it is synced.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.config.durability = durability;
        self
    }

    /// Time without a leader until a campaign, drawn from this to twice this, and time between a leader's heartbeats, a fifth of that or
    /// less. Left out: 500 ms and 100 ms.
    #[must_use]
    pub fn timeouts(mut self, election: Millis, heartbeat: Millis) -> Self {
        (self.config.election_timeout, self.config.heartbeat) = (election, heartbeat);
        self
    }

    /// How long a request is held when there is no leader; then it is refused. Left out: 2 s.
    #[must_use]
    pub fn leader_wait(mut self, longest: Millis) -> Self {
        self.config.leader_wait = longest;
        self
    }

    /// How long a request waits for its entry to be applied; then its outcome is unknown. Left out: 10 s.
    #[must_use]
    pub fn propose_timeout(mut self, longest: Millis) -> Self {
        self.config.propose_timeout = longest;
        self
    }

    /// Gives a state machine that has just been restored settings of this node, which must not change what operations do.
    #[must_use]
    pub fn prepare(mut self, prepare: impl Fn(&mut S) + Send + 'static) -> Self {
        self.hooks.prepare = Box::new(prepare);
        self
    }

    /// Takes what applied entries tell observers.
    #[must_use]
    pub fn observe(mut self, observe: impl FnMut(&mut Vec<S::Signal>) + Send + 'static) -> Self {
        self.hooks.observe = Box::new(observe);
        self
    }

    /// What to propose when a reply could not be delivered because its client had gone.
    #[must_use]
    pub fn undelivered(
        mut self,
        undo: impl Fn(Reply<S>) -> Vec<(ShardId, Operations)> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.undelivered = Box::new(undo);
        self
    }

    /// Starts the node: its data directory is locked, and it listens for peers. Reading the data and finding the others goes on behind; see
    /// [`Handle::ready`](crate::Handle::ready).
    ///
    /// # Errors
    /// The settings do not go together, the data directory cannot be used, or the address is taken.
    pub fn start(self) -> Result<Node<S>, StartError> {
        let (config, hooks) = self.into_config()?;
        Node::start(config, hooks)
    }

    /// What the node is to be started with, once it is known that it goes together.
    fn into_config(mut self) -> Result<(NodeConfig, Hooks<S>), StartError> {
        self.config.name_is_given = self.name.is_some();
        self.config.name = match (self.name.take(), &self.config.data) {
            (Some(name), _) => name,
            (None, Data::Directory(path)) => {
                let recorded = recorded(path).map_err(StartError::Storage)?;
                let unnamed = || format!("the data directory {} is new: its node needs a name", path.display());
                recorded.ok_or_else(unnamed).map_err(StartError::Settings)?.node
            }
            (None, Data::Memory) => return refuse("a node in memory needs a name"),
        };
        self.check()?;
        self.config.peers = self.meeting()?;
        Ok((self.config, self.hooks))
    }

    fn check(&self) -> Result<(), StartError> {
        let NodeConfig { name, shards, election_timeout, heartbeat, .. } = &self.config;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) {
            return refuse(format!("a node's name has 1 to 63 of the letters, digits, `.`, `_` and `-`: not {name:?}"));
        }
        if !(1..=limits::SHARDS_MAX).contains(shards) {
            return refuse(format!("there are 1 to {} shards, not {shards}", limits::SHARDS_MAX));
        }
        if heartbeat.0 == 0 || heartbeat.0 > election_timeout.0 / 5 {
            return refuse(format!(
                "the heartbeat is 1 ms to a fifth of the election timeout of {} ms, not {} ms",
                election_timeout.0, heartbeat.0
            ));
        }
        let names: BTreeSet<&str> = self.peers.iter().map(|(name, _)| name.as_str()).collect();
        let addresses: BTreeSet<&str> = self.peers.iter().map(|(_, address)| address.as_str()).collect();
        if names.len() < self.peers.len() || addresses.len() < self.peers.len() {
            return refuse("a name or an address stands twice among the peers");
        }
        if !self.peers.is_empty() && !names.contains(name.as_str()) {
            return refuse(format!(
                "{name} is not among the peers {}",
                names.into_iter().collect::<Vec<_>>().join(", ")
            ));
        }
        if !self.peers.is_empty() && self.expected.is_some() {
            return refuse("peers names the founders, expect waits for any; choose one of them");
        }
        let founders = self.expected.unwrap_or(self.peers.len().max(1));
        if !(1..=FOUNDERS_MAX).contains(&founders) {
            return refuse(format!("1 to {FOUNDERS_MAX} nodes found a cluster, not {founders}; more can join"));
        }
        Ok(())
    }

    /// How it meets others; nothing: it is alone.
    fn meeting(&mut self) -> Result<Option<PeerConfig>, StartError> {
        let name = &self.config.name;
        let own = self.peers.iter().find(|(peer, _)| peer == name).map(|(_, address)| address.clone());
        let listen = match (self.listen, &own) {
            (Some(listen), _) => listen,
            (None, Some(address)) => listener(address)?,
            (None, None) if self.join.is_empty() && self.expected.is_none() && self.advertise.is_none() => {
                return Ok(None);
            }
            (None, None) => {
                return refuse("a node that joins others, or is joined, needs an address to listen on for peers");
            }
        };
        let advertise = match self.advertise.take().or(own) {
            Some(address) => address,
            None if listen.ip().is_unspecified() => {
                return refuse(format!("peers cannot reach {listen}: say where they can, with advertise"));
            }
            None => listen.to_string(),
        };
        let unspecified = |address: &SocketAddr| address.ip().is_unspecified();
        if advertise.parse().as_ref().is_ok_and(unspecified) {
            return refuse(format!("peers cannot reach {advertise}: advertise an address or a name of this machine"));
        }
        let plan = match (self.expected, self.join.is_empty()) {
            (Some(expected), _) => Plan::Expect(expected),
            (None, _) if !self.peers.is_empty() => {
                Plan::List(self.peers.iter().map(|(name, _)| name.clone()).collect())
            }
            (None, true) => Plan::List([name.clone()].into()),
            (None, false) => Plan::Join,
        };
        let addresses = self.peers.iter().map(|(_, address)| address).chain(&self.join);
        Ok(Some(PeerConfig {
            listen,
            advertise,
            label: self.label.clone(),
            secret: self.secret.clone(),
            tls: self.tls.clone(),
            token: self.token.clone(),
            replica: self.replica,
            plan,
            addresses: addresses.cloned().collect(),
            bootstrap: false,
            listed: self.peers.iter().map(|(name, _)| name.clone()).collect(),
            admits_anybody: self.admits_anybody,
            promote_lag: 1_000,
            promote_after: Millis(1_000),
            health_interval: Millis(5_000),
            zone: String::new(),
        }))
    }
}

fn refuse<T>(what: impl Into<String>) -> Result<T, StartError> {
    Err(StartError::Settings(what.into()))
}

/// Where to listen to be reached at an address: there, or, if it is a name, on that port of every interface.
fn listener(address: &str) -> Result<SocketAddr, StartError> {
    if let Ok(addr) = address.parse() {
        return Ok(addr);
    }
    let port = address.rsplit_once(':').and_then(|(host, port)| port.parse().ok().filter(|_| !host.is_empty()));
    match port {
        Some(port) => Ok(SocketAddr::from(([0, 0, 0, 0], port))),
        None => refuse(format!("a peer's address is host:port, not {address:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simple::{Simple, SimpleMachine};
    use base::codec::Malformed;
    use base::machine::{EntryInfo, UnknownOperation};

    #[derive(Default)]
    struct Nothing;

    impl SimpleMachine for Nothing {
        type Query = ();
        type Answer = ();

        fn apply(&mut self, _operation: &[u8], _entry: &EntryInfo) -> Result<Vec<u8>, UnknownOperation> {
            Ok(Vec::new())
        }

        fn query(&self, (): &()) {}

        fn snapshot(&self) -> Vec<u8> {
            Vec::new()
        }

        fn restore(_snapshot: &[u8]) -> Result<Nothing, Malformed> {
            Ok(Nothing)
        }
    }

    fn builder() -> Builder<Simple<Nothing>> {
        Node::builder(Data::Memory).name("a")
    }

    fn config(builder: Builder<Simple<Nothing>>) -> Result<NodeConfig, String> {
        builder.into_config().map(|(config, _)| config).map_err(|error| error.to_string())
    }

    fn meeting(builder: Builder<Simple<Nothing>>) -> PeerConfig {
        config(builder).expect("it goes together").peers.expect("it meets others")
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("it is an address")
    }

    /// Whom a node meets follows from what is given, as little as that may be.
    #[test]
    fn settings_say_how_a_node_meets_others() {
        assert!(config(builder()).expect("it goes together").peers.is_none());
        let founds_alone = meeting(builder().listen(addr("127.0.0.1:7000")));
        assert_eq!(founds_alone.plan, Plan::List(["a".into()].into()));
        assert_eq!(founds_alone.advertise, "127.0.0.1:7000");
        let listed = meeting(builder().peers([("a", "node-a:7000"), ("b", "node-b:7000")]));
        assert_eq!(listed.plan, Plan::List(["a".into(), "b".into()].into()));
        assert_eq!((listed.listen, listed.advertise.as_str()), (addr("0.0.0.0:7000"), "node-a:7000"));
        assert_eq!(listed.addresses, ["node-a:7000", "node-b:7000"]);
        let exact = meeting(builder().peers([("a", "10.0.0.1:7000"), ("b", "10.0.0.2:7000")]));
        assert_eq!(exact.listen, addr("10.0.0.1:7000"));
        let joins = meeting(builder().listen(addr("10.0.0.4:7000")).join(["10.0.0.1:7000"]));
        assert_eq!((joins.plan, joins.addresses), (Plan::Join, vec!["10.0.0.1:7000".into()]));
        let expects =
            meeting(builder().listen(addr("[::]:7000")).advertise("node-a:7000").join(["nodes:7000"]).expect(3));
        assert_eq!(expects.plan, Plan::Expect(3));
    }

    /// What does not go together is refused in one sentence, before anything is touched.
    #[test]
    fn what_does_not_go_together_is_refused() {
        let pair = [("a", "x:1"), ("b", "y:1")];
        let cases = [
            (builder().name("a b"), "a node's name has"),
            (builder().shards(0), "there are 1 to 64 shards"),
            (builder().timeouts(Millis(400), Millis(100)), "the heartbeat is"),
            (builder().name("c").peers(pair), "c is not among the peers a, b"),
            (builder().peers([("a", "x:1"), ("b", "x:1")]), "a name or an address stands twice"),
            (builder().peers(pair).expect(2), "choose one of them"),
            (builder().listen(addr("127.0.0.1:0")).expect(0), "1 to 9 nodes found a cluster, not 0"),
            (builder().peers([("a", "nowhere"), ("b", "y:1")]), "a peer's address is host:port"),
            (builder().join(["x:1"]), "needs an address to listen on"),
            (builder().listen(addr("0.0.0.0:7000")), "say where they can"),
            (builder().listen(addr("[::1]:7000")).advertise("0.0.0.0:7000"), "peers cannot reach 0.0.0.0:7000"),
            (Node::builder(Data::Memory), "a node in memory needs a name"),
        ];
        for (builder, expected) in cases {
            let refused = config(builder).expect_err(expected);
            assert!(refused.contains(expected), "{refused}");
        }
    }

    /// A data directory knows its node's name; a new one does not.
    #[test]
    fn a_data_directory_knows_the_name() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let data = Data::Directory(folder.path().join("data"));
        let unnamed = || config(Node::builder(data.clone()));
        assert!(unnamed().expect_err("it is new").contains("needs a name"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("it can be made");
        let node = Node::<Simple<Nothing>>::builder(data.clone()).name("a").start().expect("it starts");
        runtime.block_on(node.shut_down()).expect("it stops");
        let known = unnamed().expect("it is known");
        assert_eq!((known.name.as_str(), known.name_is_given), ("a", false));
    }
}
