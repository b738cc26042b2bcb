//! What a node says of its cluster: one look at everything, and the views that are made of it. Every face of the program shows these, so
//! none can contradict another. What is not known is absent, never invented.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use base::{Millis, ScheduleTime, ShardId};
use replica::{Election, Members, Progress, Role, ShardStatus};
use serde::Serialize;

use crate::alarms::AlarmKind;
use crate::health::Report;
use crate::http::elections::ElectionView;
use crate::node::{Cluster, Stage};
use crate::peer::PROTOCOL;

/// How this node stands to another member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// There is a connection to it.
    pub connected: bool,
    /// How long ago it was last heard of; nothing: never.
    pub heard: Option<Millis>,
    /// Round trip in microseconds; nothing: not measured yet.
    pub rtt_micros: Option<u64>,
}

/// What does not change of a node while it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Names this run of the process.
    pub boot: u64,
    /// When it started.
    pub started_at: ScheduleTime,
    /// Where it listens for peers.
    pub listens: Option<SocketAddr>,
    /// Where its data is; nothing: in memory.
    pub paths: Vec<String>,
    /// It is to stay alone.
    pub is_single: bool,
    /// What it acknowledges may not be synced yet.
    pub is_buffered: bool,
}

/// One look at a node and at what it knows of the others.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// This node's Raft id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// Its peer address; empty: it is alone.
    pub peer: String,
    /// Its URL.
    pub url: String,
    /// The cluster it belongs to.
    pub cluster: Option<Cluster>,
    /// What it is doing.
    pub stage: Stage,
    /// Its groups.
    pub shards: Vec<ShardStatus>,
    /// What it knows of the members of groups that it leads.
    pub progress: BTreeMap<ShardId, Vec<Progress>>,
    /// The members of group 0, as far as they are applied here.
    pub members: Members,
    /// By member.
    pub contacts: BTreeMap<u64, Contact>,
    /// What the other members have said of themselves, and how long ago.
    pub reports: BTreeMap<u64, (Millis, Report)>,
    /// How often they say so.
    pub report_interval: Millis,
    /// This node's alarms: what it says of each, and how long ago it was raised.
    pub alarms: Vec<(AlarmKind, String, Millis)>,
    /// Room on this node's disk, in bytes.
    pub free_bytes: Option<u64>,
    /// The label of this node's data centre; empty: it has none.
    pub zone: String,
    /// How long ago a quorum was asked that has answered, by group that it leads.
    pub confirmed: BTreeMap<ShardId, Millis>,
    /// Since it started.
    pub uptime: Millis,
    /// Whoever was not heard of for longer is taken for dead.
    pub contact_max: Millis,
    /// How long ago each group got its leader, or lost it; nothing: before this process started.
    pub leader_since: BTreeMap<ShardId, Millis>,
    /// How long ago its loop turned last.
    pub last_turn: Millis,
    /// The last election of group 0 that is recorded.
    pub last_election: Option<Election>,
    /// What its data is kept in.
    pub provider: String,
    /// What does not change while it runs.
    pub about: Arc<About>,
}

/// `GET /cluster/nodes`
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodesView {
    /// The members, by name.
    pub nodes: Vec<NodeView>,
    /// The leader's name.
    pub leader: Option<String>,
    /// Of group 0.
    pub term: u64,
    /// Who says so: `local`.
    pub source: &'static str,
    /// 32 hexadecimal digits.
    pub cluster_id: Option<String>,
    /// Whether the cluster can decide, and how much it can lose.
    pub quorum: QuorumView,
}

/// A member.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// 16 hexadecimal digits.
    pub id: String,
    /// Chosen by people.
    pub name: String,
    /// The label of its data centre.
    pub zone: Option<String>,
    /// `leader`, `follower`, `learner`, `unjoined`, `failed` or `standalone`.
    pub status: &'static str,
    /// `alive` or `failed`.
    pub alive: &'static str,
    /// Its part in group 0, as far as it is known.
    pub role: Option<&'static str>,
    /// Whether its vote counts.
    pub voter: bool,
    /// It is the node that says so.
    #[serde(rename = "self")]
    pub own: bool,
    /// Where peers reach it.
    pub raft_addr: String,
    /// Host and port of its URL.
    pub http_addr: String,
    /// Where people reach it.
    pub public_url: String,
    /// It is there, and lacks little.
    pub healthy: bool,
    /// The age of its last report of its health, where it is not this node.
    pub last_report_ms: Option<u64>,
    /// How long ago it was last heard of.
    pub last_contact_ms: Option<u64>,
    /// Of group 0.
    pub term: Option<u64>,
    /// Its log agrees with the leader's up to here, in group 0.
    pub match_index: Option<u64>,
    /// What it has applied, in group 0.
    pub applied_index: Option<u64>,
    /// Entries that it lacks, in the worst group.
    pub lag: Option<u64>,
    /// Groups that it leads, as far as this node knows.
    pub groups_led: Vec<u16>,
    /// The program it runs.
    pub build: Option<String>,
    /// The version of the peer protocol that it speaks.
    pub protocol: Option<u16>,
    /// Since it started.
    pub uptime_ms: Option<u64>,
    /// What its data is kept in.
    pub storage: Option<StorageView>,
    /// In words.
    pub message: String,
}

/// What a node's data is kept in.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StorageView {
    /// `sqlite` or `memory`.
    pub kind: String,
    /// Where.
    pub paths: Vec<String>,
    /// How much there is of it; not measured.
    pub bytes: Option<u64>,
    /// How much more there could be; not measured.
    pub free_bytes: Option<u64>,
}

/// Whether a cluster can decide.
#[derive(Clone, Debug, Default, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct QuorumView {
    /// Members whose votes count.
    pub voters: usize,
    /// How many of them must be there.
    pub needed: usize,
    /// How many are there.
    pub reachable: usize,
    /// How many more may fail.
    pub failure_tolerance: usize,
    /// The same in words.
    pub summary: String,
}

/// `GET /cluster/leader`
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LeaderView {
    /// 16 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Host and port of its URL.
    pub http_addr: String,
    /// Where people reach it.
    pub public_url: String,
    /// Of group 0.
    pub term: u64,
    /// For how long it has led group 0, as far as this node was there to see it.
    pub since_ms: u64,
    /// Groups that it leads.
    pub groups: Vec<u16>,
}

/// A group, as one node sees it.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GroupView {
    /// Its number, which is its shard's.
    pub group: u16,
    /// `leader`, `follower`, `candidate` or `pre-candidate`.
    pub role: &'static str,
    /// The leader's name, or its id if its name is not known here.
    pub leader: Option<String>,
    /// It leads and takes writes.
    pub ready: bool,
    /// How far it is.
    #[serde(flatten)]
    pub indexes: IndexesView,
    /// Names of those whose votes count, as the leader of the group knows them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerView>,
}

/// A member of a group, as its leader sees it.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PeerView {
    /// Its name, or its id if its name is not known here.
    pub name: String,
    /// Its vote does not count.
    pub learner: bool,
    /// Its log agrees with the leader's up to here.
    #[serde(rename = "match")]
    pub matched: u64,
    /// The entry it is sent next.
    pub next: u64,
    /// Entries that it lacks.
    pub lag: u64,
    /// `probing`, `replicating` or `snapshot`.
    pub state: &'static str,
    /// Round trip in milliseconds, measured on the connection to it.
    pub rtt_ms: Option<f64>,
    /// How long ago it was last heard of.
    pub last_contact_ms: Option<u64>,
}

/// `GET /cluster/status`
#[derive(Clone, Debug, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct StatusView {
    /// This node's name.
    pub name: String,
    /// 16 hexadecimal digits.
    pub id: String,
    /// Names this run of the process: 16 hexadecimal digits.
    pub boot: String,
    /// 32 hexadecimal digits.
    pub cluster_id: Option<String>,
    /// 16 hexadecimal digits; part of every task id.
    pub cluster_incarnation: Option<String>,
    /// The program it runs.
    pub build: &'static str,
    /// The version of the peer protocol that it speaks.
    pub protocol: u16,
    /// `single` or `cluster`.
    pub mode: &'static str,
    /// `sqlite` or `memory`.
    pub storage: String,
    /// `fsync`; or `buffered`, which loses with the power what was acknowledged a moment ago.
    pub durability: &'static str,
    /// Where it is reached.
    pub addresses: AddressesView,
    /// What it is doing, in words.
    pub stage: String,
    /// Its part in group 0.
    pub role: &'static str,
    /// Its vote counts.
    pub voter: bool,
    /// The leader of group 0.
    pub leader: Option<LeaderView>,
    /// A leader of group 0 is known.
    pub has_leader: bool,
    /// It is one of a majority that can decide.
    pub part_of_quorum: bool,
    /// For so long it surely leads group 0.
    pub lease_valid_ms: u64,
    /// Group 0, once more, without what is there of its leader.
    #[serde(flatten)]
    pub first: Option<IndexesView>,
    /// On the leader of group 0: its members.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerView>,
    /// Its groups.
    pub groups: Vec<GroupView>,
    /// Whether the cluster can decide.
    pub quorum: QuorumView,
    /// When it started, in milliseconds since 1970.
    pub started_at: u64,
    /// Since it started.
    pub uptime_ms: u64,
    /// How long ago the leader of group 0 was last heard of.
    pub last_contact_ms: Option<u64>,
    /// What the lease clock of group 0 showed at the last entry applied here.
    pub lease_clock_ms: Option<u64>,
    /// How far its clock is from the leader's; not measured.
    pub clock_skew_ms: Option<i64>,
    /// What somebody should look after.
    pub alarms: Vec<AlarmView>,
    /// The last election of group 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_election: Option<ElectionView>,
}

/// Where a node is reached.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AddressesView {
    /// Where it listens for peers.
    pub raft_listen: Option<String>,
    /// Where peers reach it.
    pub raft_addr: String,
    /// Host and port of its URL.
    pub http_addr: String,
    /// Where people reach it.
    pub public_url: String,
}

/// How far a group is on a node.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct IndexesView {
    /// The term it knows.
    pub term: u64,
    /// Whom it has voted for in that term.
    pub voted_for: Option<String>,
    /// The last entry of its log.
    pub last_index: u64,
    /// The last entry known to be committed.
    pub commit_index: u64,
    /// The last entry applied.
    pub applied_index: u64,
    /// The last entry that its checkpoint covers.
    pub checkpoint_index: u64,
    /// The term of that entry; not remembered.
    pub checkpoint_term: Option<u64>,
    /// Entries in its log that are not applied yet.
    pub pending: u64,
}

/// An element of `GET /cluster/health-reports`
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ReportView {
    /// Who says so.
    pub member: String,
    /// How long ago.
    pub age_ms: u64,
    /// It comes as often as it should.
    pub fresh: bool,
    /// The program it runs.
    pub build: String,
    /// The version of the peer protocol that it speaks.
    pub protocol: u16,
    /// Since it started.
    pub uptime_ms: u64,
    /// What its data is kept in: `sqlite` or `memory`.
    pub storage: String,
    /// Where.
    pub paths: Vec<String>,
    /// Bytes of its log on disk.
    pub log_bytes: u64,
    /// Of group 0.
    pub term: u64,
    /// What it has applied, by group.
    pub applied: Vec<u64>,
}

/// One of `GET /cluster/alarms`.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AlarmView {
    /// What it is.
    pub kind: &'static str,
    /// The name of who has raised it.
    pub member: String,
    /// What there is to say.
    pub text: String,
    /// How long ago it was raised.
    pub since_ms: u64,
}

/// `GET /cluster/health`
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HealthView {
    /// `healthy`, `degraded` or `unavailable`.
    pub status: &'static str,
    /// Whether the cluster can decide.
    #[serde(flatten)]
    pub quorum: QuorumView,
    /// The members' names, and whether each is there.
    pub members: Vec<MemberHealth>,
    /// What is wrong, in words.
    pub reasons: Vec<String>,
}

/// Whether a member is there.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MemberHealth {
    /// Its name.
    pub name: String,
    /// It is there, and lacks little.
    pub healthy: bool,
    /// In words.
    pub message: String,
}

/// The program.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");

/// Entries that a member may lack and be healthy.
pub(super) const LAG_MAX: u64 = 10_000;

/// What to do when those who are missing do not come back.
const IF_FOR_GOOD: &str = "bring back the voters that are missing; if their disks are lost for good, stop those that are left and see what \
                           `codeq recover plan DATA_DIR` says of each";

impl Inspection {
    /// A node that knows nothing yet but its name. What follows from a look is tested by changing what it starts from.
    ///
    /// ```
    /// use cluster::view::Inspection;
    ///
    /// let look = Inspection::new("a");
    /// assert_eq!(look.health().status, "unavailable");
    /// assert_eq!(look.nodes().nodes[0].name, "a");
    /// ```
    pub fn new(name: &str) -> Inspection {
        Inspection {
            id: 1,
            name: name.into(),
            peer: String::new(),
            url: String::new(),
            cluster: None,
            stage: Stage::Running,
            shards: Vec::new(),
            progress: BTreeMap::new(),
            members: Members::default(),
            contacts: BTreeMap::new(),
            reports: BTreeMap::new(),
            report_interval: Millis(5_000),
            alarms: Vec::new(),
            free_bytes: None,
            zone: String::new(),
            confirmed: BTreeMap::new(),
            uptime: Millis(0),
            contact_max: Millis(1_000),
            leader_since: BTreeMap::new(),
            last_turn: Millis(0),
            last_election: None,
            provider: "memory".into(),
            about: Arc::default(),
        }
    }

    /// Whether requests for a group can be served through this node: it leads and takes writes, or is connected with who does.
    pub fn reaches(&self, shard: &ShardStatus) -> bool {
        let leader = shard.consensus.leader;
        match leader == self.id {
            true => shard.ready,
            false => self.contacts.get(&leader).is_some_and(|contact| contact.connected),
        }
    }

    /// The last entry of a group that this node knows to be decided: by its own log, or by what another member has said of itself lately.
    pub(super) fn known(&self, shard: ShardId) -> u64 {
        let recent = self.reports.values().filter(|(age, _)| !crate::health::is_late(*age, self.report_interval));
        let told = recent.filter_map(|(_, report)| report.applied.get(usize::from(shard.0)));
        let own = self.shards.iter().find(|one| one.shard == shard).map(|one| &one.consensus.commit);
        told.chain(own).map(|index| index.0).max().unwrap_or(0)
    }

    fn first(&self) -> Option<&ShardStatus> {
        self.shards.first()
    }

    fn leader_of(&self, shard: &ShardStatus) -> Option<u64> {
        Some(shard.consensus.leader).filter(|leader| *leader != 0)
    }

    /// The leader of group 0.
    pub fn leader(&self) -> Option<LeaderView> {
        let first = self.first()?;
        let id = self.leader_of(first)?;
        Some(LeaderView {
            id: base::Incarnation(id).to_string(),
            name: self.name_of(id),
            http_addr: host_of(&self.url_of(id)),
            public_url: self.url_of(id),
            term: first.consensus.term.0,
            since_ms: self.leader_since.get(&first.shard).unwrap_or(&self.uptime).0,
            groups: self.groups_led(id),
        })
    }

    /// A member's name, or its id if its name is not known here.
    pub fn name_of(&self, id: u64) -> String {
        match self.members.get(id) {
            Some(member) => member.name.clone(),
            None if id == self.id => self.name.clone(),
            None => base::Incarnation(id).to_string(),
        }
    }

    /// Where people reach a member; empty if that is not known here.
    pub fn url_of(&self, id: u64) -> String {
        match self.members.get(id) {
            _ if id == self.id => self.url.clone(),
            Some(member) => member.url.clone(),
            None => String::new(),
        }
    }

    fn groups_led(&self, id: u64) -> Vec<u16> {
        let led = self.shards.iter().filter(|shard| shard.consensus.leader == id);
        led.map(|shard| shard.shard.0).collect()
    }

    fn is_there(&self, id: u64) -> bool {
        let heard = self.contacts.get(&id).and_then(|contact| contact.heard);
        id == self.id || heard.is_some_and(|heard| heard <= self.contact_max)
    }

    /// Whether the members of group 0 can decide. A node without a cluster has no quorum.
    pub fn quorum(&self) -> QuorumView {
        let configuration = &self.members.configuration;
        let voters = if self.cluster.is_some() && configuration.voters.is_empty() && self.peer.is_empty() {
            vec![self.id]
        } else {
            configuration.voters.clone()
        };
        let reachable = voters.iter().filter(|id| self.is_there(**id)).count();
        let needed = if voters.is_empty() { 0 } else { voters.len() / 2 + 1 };
        let failure_tolerance = reachable.saturating_sub(needed);
        let voters = voters.len();
        let summary = match (voters, reachable >= needed) {
            (0, _) => "this node belongs to no cluster".into(),
            (1, true) => "one voter: nothing may fail".into(),
            (_, true) => {
                format!(
                    "{reachable} of {voters} voters are there, {needed} are needed: {failure_tolerance} more may fail"
                )
            }
            (_, false) => {
                format!("{reachable} of {voters} voters are there, {needed} are needed: nothing can be decided")
            }
        };
        QuorumView { voters, needed, reachable, failure_tolerance, summary }
    }

    /// The members.
    pub fn nodes(&self) -> NodesView {
        let mut nodes: Vec<NodeView> = self.members.iter().map(|member| self.node(member.id)).collect();
        if self.members.get(self.id).is_none() {
            nodes.push(self.node(self.id));
        }
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        NodesView {
            nodes,
            leader: self.leader().map(|leader| leader.name),
            term: self.first().map_or(0, |first| first.consensus.term.0),
            source: "local",
            cluster_id: self.cluster.map(|cluster| cluster.id.to_string()),
            quorum: self.quorum(),
        }
    }

    fn node(&self, id: u64) -> NodeView {
        let own = id == self.id;
        let name = self.name_of(id);
        let contact = self.contacts.get(&id).copied().unwrap_or_default();
        let there = self.is_there(id);
        let learner = self.members.configuration.learners.contains(&id);
        let alone = self.peer.is_empty();
        let leads = self.first().is_some_and(|first| first.consensus.leader == id);
        let lag = self.lag(id);
        let status = match () {
            () if own && matches!(self.stage, Stage::Unjoined(_)) => "unjoined",
            () if !there => "failed",
            () if self.about.is_single => "standalone",
            () if leads => "leader",
            () if learner => "learner",
            () => "follower",
        };
        let (age, report) = self.reports.get(&id).map(|(age, report)| (*age, report)).unzip();
        let is_late = age.is_some_and(|age| crate::health::is_late(age, self.report_interval));
        let message = match (&self.stage, status, lag) {
            (Stage::Unjoined(what), "unjoined", _) => format!("belongs to no cluster yet: {what}"),
            (_, "failed", _) => match contact.heard {
                Some(heard) => format!("not heard of for {} s", heard.0 / 1000),
                None => "not heard of since this node started".into(),
            },
            (_, _, Some(lag)) if lag > LAG_MAX => format!("there, but lacks {lag} entries"),
            _ if learner && self.members.is_demoted(id) => "there, and votes when it is promoted by hand".into(),
            _ if is_late => format!("there, but has not said how it is for {} s", age.unwrap_or_default().0 / 1000),
            _ => "there".into(),
        };
        let url = self.url_of(id);
        let first = self.first();
        let known = first.and_then(|first| self.progress.get(&first.shard)?.iter().find(|member| member.id == id));
        NodeView {
            id: base::Incarnation(id).to_string(),
            zone: own
                .then(|| self.zone.clone())
                .or(report.map(|report| report.zone.clone()))
                .filter(|zone| !zone.is_empty()),
            status,
            alive: if there { "alive" } else { "failed" },
            role: match own {
                true => first.map(|first| role(first.consensus.role)),
                false if leads => Some("leader"),
                false => None,
            },
            voter: self.members.configuration.voters.contains(&id) || (own && alone),
            own,
            raft_addr: match self.members.get(id) {
                Some(member) => member.peer.clone(),
                None => self.peer.clone(),
            },
            http_addr: host_of(&url),
            public_url: url,
            healthy: there && !is_late && status != "unjoined" && lag.is_none_or(|lag| lag <= LAG_MAX),
            last_report_ms: age.map(|age| age.0),
            last_contact_ms: if own { Some(0) } else { contact.heard.map(|heard| heard.0) },
            term: first.filter(|_| own).map(|first| first.consensus.term.0).or(report.map(|report| report.term.0)),
            match_index: known.map(|member| member.matched.0),
            applied_index: first
                .filter(|_| own)
                .map(|first| first.applied.0)
                .or(report.and_then(|report| Some(report.applied.first()?.0))),
            lag,
            groups_led: self.groups_led(id),
            build: own.then(|| BUILD.to_owned()).or(report.map(|report| report.build.clone())),
            protocol: own.then_some(PROTOCOL).or(report.map(|report| report.protocol)),
            uptime_ms: own.then_some(self.uptime.0).or(report.map(|report| report.uptime.0)),
            storage: own
                .then(|| (self.provider.clone(), self.about.paths.clone(), self.free_bytes))
                .or(report.map(|report| {
                    let free = Some(report.free_bytes).filter(|free| *free > 0);
                    (report.kind.clone(), report.paths.clone(), free)
                }))
                .map(|(kind, paths, free_bytes)| StorageView { kind, paths, bytes: None, free_bytes }),
            name,
            message,
        }
    }

    /// Entries that a member lacks in the worst of the groups that this node leads, or that this node lacks.
    fn lag(&self, id: u64) -> Option<u64> {
        if id == self.id {
            return self.shards.iter().map(|shard| shard.consensus.commit.0.saturating_sub(shard.applied.0)).max();
        }
        let lags = self.shards.iter().filter_map(|shard| {
            let progress = self.progress.get(&shard.shard)?.iter().find(|member| member.id == id)?;
            Some(shard.consensus.last.0.saturating_sub(progress.matched.0))
        });
        lags.max()
    }

    /// What the other members have said of themselves last.
    pub fn reports(&self) -> Vec<ReportView> {
        let view = |(id, (age, report)): (&u64, &(Millis, Report))| ReportView {
            member: self.name_of(*id),
            age_ms: age.0,
            fresh: !crate::health::is_late(*age, self.report_interval),
            build: report.build.clone(),
            protocol: report.protocol,
            uptime_ms: report.uptime.0,
            storage: report.kind.clone(),
            paths: report.paths.clone(),
            log_bytes: report.log_bytes,
            term: report.term.0,
            applied: report.applied.iter().map(|index| index.0).collect(),
        };
        self.reports.iter().map(view).collect()
    }

    /// The groups.
    pub fn groups(&self) -> Vec<GroupView> {
        self.shards.iter().map(|shard| self.group(shard)).collect()
    }

    fn group(&self, shard: &ShardStatus) -> GroupView {
        let last = shard.consensus.last.0;
        let peer = |member: &Progress| {
            let contact = self.contacts.get(&member.id).copied().unwrap_or_default();
            PeerView {
                name: self.name_of(member.id),
                learner: member.learner,
                matched: member.matched.0,
                next: member.next.0,
                lag: last.saturating_sub(member.matched.0),
                state: match (member.snapshot.is_some(), member.replicating) {
                    (true, _) => "snapshot",
                    (false, true) => "replicating",
                    (false, false) => "probing",
                },
                rtt_ms: contact.rtt_micros.map(|micros| micros as f64 / 1000.0),
                last_contact_ms: if member.id == self.id { Some(0) } else { contact.heard.map(|heard| heard.0) },
            }
        };
        GroupView {
            group: shard.shard.0,
            role: role(shard.consensus.role),
            leader: self.leader_of(shard).map(|leader| self.name_of(leader)),
            ready: shard.ready,
            indexes: IndexesView {
                term: shard.consensus.term.0,
                voted_for: Some(shard.consensus.vote).filter(|vote| *vote != 0).map(|vote| self.name_of(vote)),
                last_index: last,
                commit_index: shard.consensus.commit.0,
                applied_index: shard.applied.0,
                checkpoint_index: shard.checkpoint.0,
                checkpoint_term: None,
                pending: last.saturating_sub(shard.applied.0),
            },
            peers: self.progress.get(&shard.shard).map(|all| all.iter().map(peer).collect()).unwrap_or_default(),
        }
    }

    /// For how long this node surely leads group 0, if a leader is trusted for `lease` after a quorum has answered it.
    pub fn lease_valid(&self, lease: Millis) -> Millis {
        let Some(first) = self.first().filter(|first| first.ready) else { return Millis(0) };
        if first.alone {
            return lease;
        }
        let left = |ago: &Millis| Millis(lease.0.saturating_sub(ago.0));
        self.confirmed.get(&first.shard).map(left).unwrap_or_default()
    }

    /// Everything about this node.
    pub fn status(&self, lease: Millis) -> StatusView {
        let first = self.first();
        let quorum = self.quorum();
        let leader = self.leader();
        let contact = first.and_then(|first| self.contacts.get(&first.consensus.leader)).and_then(|found| found.heard);
        let leads = first.is_some_and(|first| first.consensus.leader == self.id);
        let groups = self.groups();
        StatusView {
            name: self.name.clone(),
            id: base::Incarnation(self.id).to_string(),
            boot: base::Incarnation(self.about.boot).to_string(),
            cluster_id: self.cluster.map(|cluster| cluster.id.to_string()),
            cluster_incarnation: self.cluster.map(|cluster| cluster.incarnation.to_string()),
            build: BUILD,
            protocol: PROTOCOL,
            mode: if self.about.is_single { "single" } else { "cluster" },
            storage: self.provider.clone(),
            durability: if self.about.is_buffered { "buffered" } else { "fsync" },
            addresses: AddressesView {
                raft_listen: self.about.listens.map(|listens| listens.to_string()),
                raft_addr: self.peer.clone(),
                http_addr: host_of(&self.url),
                public_url: self.url.clone(),
            },
            stage: match &self.stage {
                Stage::Unjoined(what) => format!("unjoined: {what}"),
                Stage::Starting(what) => format!("starting: {what}"),
                Stage::Running => "running".into(),
                Stage::Draining => "draining".into(),
                Stage::Stopped => "stopped".into(),
            },
            role: first.map_or("unjoined", |first| role(first.consensus.role)),
            voter: self.members.configuration.voters.contains(&self.id) || self.peer.is_empty(),
            has_leader: leader.is_some(),
            leader,
            part_of_quorum: quorum.needed > 0 && quorum.reachable >= quorum.needed,
            lease_valid_ms: self.lease_valid(lease).0,
            first: groups.first().map(|first| first.indexes.clone()),
            peers: groups.first().map(|first| first.peers.clone()).unwrap_or_default(),
            groups,
            quorum,
            started_at: self.about.started_at.0,
            uptime_ms: self.uptime.0,
            last_contact_ms: if leads { Some(0) } else { contact.map(|heard| heard.0) },
            lease_clock_ms: first.map(|first| first.lease_clock.0),
            clock_skew_ms: None,
            alarms: self.alarms(),
            last_election: self.last_election.as_ref().map(|election| ElectionView::of(ShardId(0), election)),
        }
    }

    /// The alarms of this node, and those that others have told.
    pub fn alarms(&self) -> Vec<AlarmView> {
        let view = |member: &str, (kind, text, since): &(AlarmKind, String, Millis), age: Millis| AlarmView {
            kind: kind.name(),
            member: member.to_owned(),
            text: text.clone(),
            since_ms: (*since + age).0,
        };
        let mut alarms: Vec<AlarmView> = self.alarms.iter().map(|alarm| view(&self.name, alarm, Millis(0))).collect();
        for (id, (age, report)) in &self.reports {
            // What a member said that is gone says nothing of how it is.
            if !crate::health::is_late(*age, self.report_interval) {
                alarms.extend(report.alarms.iter().map(|alarm| view(&self.name_of(*id), alarm, *age)));
            }
        }
        alarms.sort_by(|a, b| (a.kind, &a.member).cmp(&(b.kind, &b.member)));
        alarms
    }

    /// Whether the cluster works, and what is wrong.
    pub fn health(&self) -> HealthView {
        let nodes = self.nodes();
        let quorum = nodes.quorum;
        let leaderless: Vec<String> = self
            .shards
            .iter()
            .filter(|shard| shard.consensus.leader == 0)
            .map(|shard| format!("group {} has no leader", shard.shard))
            .collect();
        let members: Vec<MemberHealth> = nodes
            .nodes
            .into_iter()
            .map(|node| MemberHealth { name: node.name, healthy: node.healthy, message: node.message })
            .collect();
        let mut reasons: Vec<String> = members
            .iter()
            .filter(|member| !member.healthy)
            .map(|member| format!("{}: {}", member.name, member.message))
            .collect();
        reasons
            .extend(self.alarms().into_iter().map(|alarm| format!("{}: {}: {}", alarm.member, alarm.kind, alarm.text)));
        let works = quorum.needed > 0 && quorum.reachable >= quorum.needed && leaderless.is_empty();
        reasons.extend(leaderless);
        if quorum.reachable < quorum.needed || quorum.needed == 0 {
            reasons.push(quorum.summary.clone());
        }
        if quorum.needed > 0 && quorum.reachable < quorum.needed {
            reasons.push(IF_FOR_GOOD.into());
        }
        let status = match (works, reasons.is_empty()) {
            (true, true) => "healthy",
            (true, false) => "degraded",
            (false, _) => "unavailable",
        };
        HealthView { status, quorum, members, reasons }
    }
}

/// Host and port of a URL.
fn host_of(url: &str) -> String {
    url.split_once("://").map(|(_, host)| host.trim_end_matches('/').to_owned()).unwrap_or_default()
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Follower => "follower",
        Role::PreCandidate => "pre-candidate",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forming::ClusterId;
    use base::{Incarnation, Index, Term};
    use replica::Member;

    fn member(id: u64, name: &str) -> Member {
        Member { id, name: name.into(), peer: format!("{name}:7000"), url: format!("http://{name}:8080") }
    }

    fn shard(leader: u64) -> ShardStatus {
        ShardStatus {
            shard: ShardId(0),
            consensus: replica::Status {
                role: if leader == 1 { Role::Leader } else { Role::Follower },
                term: Term(7),
                leader,
                vote: 0,
                commit: Index(20),
                last: Index(21),
                first: Index(2),
            },
            applied: Index(20),
            applied_term: Term(7),
            lease_clock: base::LeaseTime(1_000),
            checkpoint: Index(10),
            ready: leader == 1,
            confirmed: None,
            alone: false,
            installing: false,
            wants_checkpoint: false,
            waiting: 0,
            skipped: 0,
        }
    }

    /// Node a of three, which knows what it was told of the others.
    fn look(leader: u64, heard: [Option<u64>; 2]) -> Inspection {
        let contact = |heard: Option<u64>| Contact { connected: true, heard: heard.map(Millis), rtt_micros: None };
        Inspection {
            id: 1,
            name: "a".into(),
            peer: "a:7000".into(),
            url: "http://a:8080".into(),
            cluster: Some(Cluster { id: ClusterId(9), incarnation: Incarnation(8) }),
            stage: Stage::Running,
            shards: vec![shard(leader)],
            progress: BTreeMap::new(),
            members: Members::of_voters([member(1, "a"), member(2, "b"), member(3, "c")]),
            reports: BTreeMap::new(),
            report_interval: Millis(5_000),
            alarms: Vec::new(),
            free_bytes: None,
            zone: "dc2".into(),
            contacts: BTreeMap::from([(2, contact(heard[0])), (3, contact(heard[1]))]),
            confirmed: BTreeMap::from([(ShardId(0), Millis(100))]),
            uptime: Millis(5_000),
            contact_max: Millis(1_000),
            leader_since: BTreeMap::new(),
            last_turn: Millis(0),
            last_election: None,
            provider: "sqlite".into(),
            about: Arc::default(),
        }
    }

    /// Goal: a member that catches up is not ready, however little it knows itself: what others have applied is what it lacks. Who has said
    /// so long ago has no say.
    #[test]
    fn a_member_that_catches_up_is_not_ready() {
        let lag = |applied: u64, told: u64, age: u64| {
            let mut look = look(2, [Some(10), Some(10)]);
            look.shards[0].applied = Index(applied);
            look.shards[0].consensus.commit = Index(applied);
            let report = Report { applied: vec![Index(told)], ..Report::default() };
            look.reports = BTreeMap::from([(2, (Millis(age), report))]);
            let checks = crate::http::checks(&look, false);
            checks.into_iter().find(|check| check.name == "lag").expect("there is such a check").text
        };
        assert_eq!(lag(0, 0, 10), "nothing is applied yet in group 0");
        assert_eq!(lag(0, 100, 10), "nothing is applied yet in group 0");
        assert_eq!(lag(1, 10_001, 10), "ok");
        assert_eq!(lag(1, 10_002, 10), "more than 10000 entries are to be applied in group 0");
        assert_eq!(lag(1, 10_002, 60_000), "ok");
    }

    fn statuses(look: &Inspection) -> Vec<(String, &'static str)> {
        look.nodes().nodes.into_iter().map(|node| (node.name, node.status)).collect()
    }

    #[test]
    fn members_are_shown_as_this_node_knows_them() {
        let all = look(2, [Some(10), Some(10)]);
        assert_eq!(statuses(&all), [("a".into(), "follower"), ("b".into(), "leader"), ("c".into(), "follower")]);
        assert_eq!(all.health().status, "healthy");
        assert_eq!(all.nodes().leader.as_deref(), Some("b"));
        let two = look(2, [Some(10), Some(9_000)]);
        assert_eq!(statuses(&two)[2].1, "failed");
        assert_eq!(two.health().status, "degraded");
        assert_eq!(two.health().reasons, ["c: not heard of for 9 s"]);
        assert_eq!(two.quorum().failure_tolerance, 0);
        let one = look(0, [None, Some(9_000)]);
        assert_eq!(one.health().status, "unavailable");
        assert!(one.leader().is_none());
        assert_eq!(one.health().reasons.last().map(String::as_str), Some(IF_FOR_GOOD));
        assert_eq!(one.quorum().summary, "1 of 3 voters are there, 2 are needed: nothing can be decided");
        assert!(!one.status(Millis(400)).part_of_quorum);
    }

    /// A member is shown with what it has said of itself, and is not healthy when it says nothing any more, however well it is connected.
    #[test]
    fn a_member_that_reports_no_more_is_not_healthy() {
        let report = Report { build: "9.9".into(), uptime: Millis(7), applied: vec![Index(4)], ..Report::default() };
        let mut look = look(2, [Some(10), Some(10)]);
        look.reports = BTreeMap::from([(2, (Millis(10_000), report.clone())), (3, (Millis(10_001), report))]);
        let nodes = look.nodes().nodes;
        assert_eq!(
            (nodes[1].build.as_deref(), nodes[1].uptime_ms, nodes[1].applied_index),
            (Some("9.9"), Some(7), Some(4))
        );
        assert_eq!((nodes[1].healthy, nodes[1].last_report_ms), (true, Some(10_000)));
        assert_eq!(
            (nodes[2].healthy, nodes[2].message.as_str()),
            (false, "there, but has not said how it is for 10 s")
        );
        let fresh: Vec<(String, bool)> =
            look.reports().into_iter().map(|report| (report.member, report.fresh)).collect();
        assert_eq!(fresh, [("b".into(), true), ("c".into(), false)]);
    }

    #[test]
    fn a_leader_is_trusted_for_as_long_as_its_last_confirmation_allows() {
        let leads = look(1, [Some(10), Some(10)]);
        assert_eq!(leads.lease_valid(Millis(400)), Millis(300));
        assert_eq!(leads.lease_valid(Millis(50)), Millis(0));
        assert_eq!(look(2, [Some(10), Some(10)]).lease_valid(Millis(400)), Millis(0));
    }

    #[test]
    fn a_node_that_is_alone_is_a_whole_cluster() {
        let alone = Inspection { peer: String::new(), members: Members::default(), ..look(1, [None, None]) };
        assert_eq!(statuses(&alone), [("a".into(), "leader")]);
        let about = Arc::new(About { is_single: true, ..About::default() });
        assert_eq!(statuses(&Inspection { about, ..alone.clone() }), [("a".into(), "standalone")]);
        assert_eq!(alone.quorum().summary, "one voter: nothing may fail");
        assert_eq!(alone.health().status, "healthy");
    }

    #[test]
    fn a_node_without_a_cluster_says_what_it_waits_for() {
        let waits = Inspection {
            cluster: None,
            stage: Stage::Unjoined("1 of 3 nodes known".into()),
            shards: vec![],
            members: Members::default(),
            ..look(0, [None, None])
        };
        assert_eq!(statuses(&waits), [("a".into(), "unjoined")]);
        assert_eq!(waits.nodes().nodes[0].message, "belongs to no cluster yet: 1 of 3 nodes known");
        assert_eq!(waits.health().status, "unavailable");
    }
}
