//! How nodes without a cluster found one, exactly once.
//!
//! Nodes that know of each other exchange greetings, again and again. When everybody that the settings ask for is there, agrees on the
//! settings and has no cluster, one of them proposes the cluster: its id and its founders. A node accepts one proposal in the life of
//! its data directory, and from then on its greetings carry it. Whoever has seen all founders accept knows that the cluster is founded.
//! All must accept, not only a majority: two nodes with wiped disks could otherwise found an empty cluster beside the third one's data.
//!
//! This is a value: greetings and time go in, what to do comes out. What it accepts is made durable before it is said to anybody.

use std::collections::{BTreeMap, BTreeSet};

use crate::Member;
use base::codec::{Malformed, Reader, Write};
use base::rng::mix_all;
use base::{Incarnation, Millis, Mono};

/// Greetings older than this do not count as contact.
const CONTACT: Millis = Millis(2_000);

/// Nodes of one founding at most.
pub const FOUNDERS_MAX: usize = 9;

/// Names a cluster: a hash of its label and its founders, so that equal settings used twice give two clusters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u128);

/// A cluster as one of its founders proposes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Its id.
    pub cluster: ClusterId,
    /// The number inside task ids.
    pub incarnation: Incarnation,
    /// Its Raft groups.
    pub shards: u16,
    /// Its first members, by name.
    pub founders: Vec<Member>,
    /// Who asks for votes at once.
    pub first: String,
}

/// Whom a node wants to found a cluster with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// With the nodes of these names.
    List(BTreeSet<String>),
    /// With any nodes, so many in all.
    Expect(usize),
    /// With nobody: it waits until it is admitted somewhere.
    Join,
}

impl Plan {
    /// Whether the node of this name founds a cluster with nobody else.
    pub fn is_only(&self, name: &str) -> bool {
        matches!(self, Plan::List(names) if names.iter().eq([name]))
    }
}

/// What a node says of itself to another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Which cluster the settings mean; different labels never meet.
    pub label: String,
    /// The node as it would be a member.
    pub me: Member,
    /// Groups that it was started with.
    pub shards: u16,
    /// Whom it wants to found with.
    pub plan: Plan,
    /// It was told to propose.
    pub bootstrap: bool,
    /// The proposal it has accepted.
    pub accepted: Option<Proposal>,
    /// The cluster it belongs to.
    pub cluster: Option<ClusterId>,
    /// Peer addresses of other nodes that it knows.
    pub acquaintances: Vec<String>,
}

/// What follows from a greeting or from the passing of time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make this durable, then tell [`Forming::on_accepted`].
    Accept(Proposal),
    /// The cluster is founded: this node is a member of it.
    Formed(Proposal),
    /// The node at this address belongs to a cluster that this one could be admitted to: ask for it.
    Ask(String),
    /// More than one node was told to propose; this one, the first of them by name, does.
    Several(Vec<String>),
    /// Two nodes do not fit together; nothing is founded until an operator acts. Said once for each change.
    Conflict(Conflict),
}

/// What keeps two nodes from founding a cluster together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The name of the other node.
    pub other: String,
    /// What it says.
    pub theirs: String,
    /// What this node says.
    pub ours: String,
    /// Both, in a sentence.
    pub text: String,
}

/// A node that has no cluster yet.
pub struct Forming {
    own: Greeting,
    seen: BTreeMap<String, (Mono, Greeting)>,
    /// Names of founders that have accepted the same proposal.
    acceptances: BTreeSet<String>,
    conflict: Option<Conflict>,
}

impl Forming {
    /// A node that greets with `own`.
    pub fn new(own: Greeting) -> Forming {
        let acceptances = own.accepted.iter().map(|_| own.me.name.clone()).collect();
        Forming { own, seen: BTreeMap::new(), acceptances, conflict: None }
    }

    /// What this node says of itself.
    pub fn greeting(&self) -> &Greeting {
        &self.own
    }

    /// Another node is known at this address.
    pub fn meet(&mut self, address: &str) {
        if !self.own.acquaintances.iter().any(|known| known == address) && self.own.acquaintances.len() < 64 {
            self.own.acquaintances.push(address.into());
        }
    }

    /// Another node has greeted.
    pub fn on_greeting(&mut self, now: Mono, other: Greeting) -> Vec<Step> {
        if other.me.id == self.own.me.id {
            return Vec::new();
        }
        if let Some(conflict) = self.disagreement(&other) {
            return self.tell(conflict);
        }
        self.meet(&other.me.peer);
        other.acquaintances.iter().for_each(|address| self.meet(address));
        let mut steps = Vec::new();
        if let Some(proposal) = &other.accepted {
            match &self.own.accepted {
                None if proposal.founders.iter().any(|founder| founder.id == self.own.me.id) => {
                    steps.push(Step::Accept(proposal.clone()));
                }
                Some(own) if own == proposal => {
                    self.acceptances.insert(other.me.name.clone());
                    if other.cluster == Some(own.cluster) {
                        steps.push(Step::Formed(own.clone()));
                    }
                }
                _ => {}
            }
        }
        if other.cluster.is_some() && steps.is_empty() && self.own.accepted.is_none() {
            steps.push(Step::Ask(other.me.peer.clone()));
        }
        self.seen.insert(other.me.name.clone(), (now, other));
        steps
    }

    /// A proposal that [`Step::Accept`] asked for is durable.
    pub fn on_accepted(&mut self, proposal: Proposal) {
        self.acceptances = BTreeSet::from([self.own.me.name.clone()]);
        self.own.accepted = Some(proposal);
    }

    /// Time has passed: proposes if everybody is there and it is for this node to do so. `random` becomes the cluster's incarnation.
    pub fn tick(&mut self, now: Mono, random: Incarnation) -> Vec<Step> {
        if let Some(own) = &self.own.accepted {
            let all = own.founders.iter().all(|founder| self.acceptances.contains(&founder.name));
            return if all { vec![Step::Formed(own.clone())] } else { Vec::new() };
        }
        let Some(founders) = self.complete(now) else { return Vec::new() };
        let flagged: Vec<&str> =
            founders.iter().filter(|founder| founder.bootstrap).map(|founder| founder.me.name.as_str()).collect();
        let lowest = founders.iter().map(|founder| founder.me.name.as_str()).min().expect("this node is one of them");
        let first = flagged.iter().min().copied().unwrap_or(lowest);
        if first != self.own.me.name {
            return Vec::new();
        }
        let mut members: Vec<Member> = founders.iter().map(|founder| founder.me.clone()).collect();
        members.sort_by(|one, other| one.name.cmp(&other.name));
        let cluster = cluster_id(&self.own.label, members.iter().map(|member| member.id));
        let proposal =
            Proposal { cluster, incarnation: random, shards: self.own.shards, first: first.into(), founders: members };
        let several = (flagged.len() > 1).then(|| Step::Several(flagged.iter().map(|name| (*name).into()).collect()));
        several.into_iter().chain([Step::Accept(proposal)]).collect()
    }

    /// How many nodes are known of how many that are needed, for people; or, where there is a cluster already, why it has not admitted this node,
    /// as far as it has said so (`refused`).
    pub fn progress(&self, now: Mono, refused: &str) -> String {
        let formed = self.in_contact(now).find_map(|other| Some((&other.me.name, other.cluster?)));
        if let Some((name, cluster)) = formed {
            let why = if refused.is_empty() { String::new() } else { format!(": {refused}") };
            return format!("{name} belongs to cluster {cluster}, which has not admitted this node{why}");
        }
        let known = 1 + self.in_contact(now).count();
        match &self.own.plan {
            Plan::List(names) => {
                let present = self.in_contact(now).chain([&self.own]).map(|node| node.me.name.clone()).collect();
                let missing: Vec<&str> = names.difference(&present).map(String::as_str).collect();
                let count = names.len();
                match missing.split_last() {
                    None => format!("{known} of {count} nodes known"),
                    Some((last, [])) => format!("{known} of {count} nodes known, {last} is missing"),
                    Some((last, rest)) => {
                        format!("{known} of {count} nodes known, {} and {last} are missing", rest.join(", "))
                    }
                }
            }
            Plan::Expect(count) => format!("{known} of {count} nodes known"),
            Plan::Join => "waiting to be admitted".into(),
        }
    }

    /// How many nodes are needed, as far as that is known, and how many are known, this one included; and the names of those that are missing.
    pub fn known(&self, now: Mono) -> (usize, usize, Vec<String>) {
        let mut names: BTreeSet<&str> = self.in_contact(now).map(|greeting| greeting.me.name.as_str()).collect();
        names.insert(&self.own.me.name);
        match &self.own.plan {
            Plan::List(list) => {
                let missing = list.iter().filter(|name| !names.contains(name.as_str())).cloned();
                (list.len(), names.len(), missing.collect())
            }
            Plan::Expect(count) => (*count, names.len(), Vec::new()),
            Plan::Join => (0, names.len(), Vec::new()),
        }
    }

    fn in_contact(&self, now: Mono) -> impl Iterator<Item = &Greeting> {
        self.seen.values().filter(move |(when, _)| now - *when < CONTACT).map(|(_, greeting)| greeting)
    }

    /// Everybody that the plan asks for, this node included, if nobody is missing and none has a cluster or has accepted one.
    fn complete(&self, now: Mono) -> Option<Vec<&Greeting>> {
        let mut present: BTreeMap<&str, &Greeting> =
            self.in_contact(now).map(|greeting| (greeting.me.name.as_str(), greeting)).collect();
        present.insert(&self.own.me.name, &self.own);
        let chosen: Vec<&Greeting> = match &self.own.plan {
            Plan::List(names) => names.iter().map(|name| present.get(name.as_str()).copied()).collect::<Option<_>>()?,
            Plan::Expect(count) => {
                if present.len() < *count {
                    return None;
                }
                // Those with the lowest names: everybody who sees the same nodes chooses the same ones.
                present.into_values().take(*count).collect()
            }
            Plan::Join => return None,
        };
        let fresh = |greeting: &&Greeting| greeting.accepted.is_none() && greeting.cluster.is_none();
        let own = chosen.iter().any(|greeting| greeting.me.name == self.own.me.name);
        (own && chosen.iter().all(fresh)).then_some(chosen)
    }

    /// Why this node and the other one can never be founders of the same cluster.
    fn disagreement(&self, other: &Greeting) -> Option<Conflict> {
        let (own, name) = (&self.own, &other.me.name);
        let here = &own.me.name;
        let conflict = |theirs: &str, ours: &str, text: String| {
            Some(Conflict { other: name.clone(), theirs: theirs.into(), ours: ours.into(), text })
        };
        if other.label != own.label {
            let text =
                format!("{name} has cluster.clusterToken {}, {here} has {}; they never meet", other.label, own.label);
            return conflict(&other.label, &own.label, text);
        }
        if name == here {
            let text = format!(
                "another node at {} is called {here} too; every node needs a name of its own (cluster.nodeId)",
                other.me.peer
            );
            return conflict(name, here, text);
        }
        if other.shards != own.shards {
            let text = format!("{name} was started with shards {}, {here} with {}", other.shards, own.shards);
            return conflict(&other.shards.to_string(), &own.shards.to_string(), text);
        }
        if other.cluster.is_some() {
            // Whether it admits this node is for it to say.
            return None;
        }
        let list = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
        match (&own.plan, &other.plan) {
            (Plan::List(ours), Plan::List(theirs)) if ours != theirs => {
                let (theirs, ours) = (list(theirs), list(ours));
                let text = format!("cluster.initialCluster names {theirs} at {name} and {ours} at {here}");
                conflict(&theirs, &ours, text)
            }
            (Plan::Expect(ours), Plan::Expect(theirs)) if ours != theirs => {
                let text = format!("cluster.bootstrapExpect is {theirs} at {name} and {ours} at {here}");
                conflict(&theirs.to_string(), &ours.to_string(), text)
            }
            (Plan::List(names), _) if !names.contains(name) => {
                let text = format!("{name} at {} is not in cluster.initialCluster of {here}", other.me.peer);
                conflict(name, &list(names), text)
            }
            _ => match (&own.accepted, &other.accepted) {
                (Some(ours), Some(theirs)) if ours != theirs => {
                    let text = format!(
                        "{name} has accepted cluster {}, {here} cluster {}; nothing is stored in either yet: empty the data \
                         directory of one of them and start it again",
                        theirs.cluster, ours.cluster
                    );
                    conflict(&theirs.cluster.to_string(), &ours.cluster.to_string(), text)
                }
                (Some(ours), None) if !ours.founders.iter().any(|founder| founder.id == other.me.id) => {
                    let text = format!(
                        "{name} has a new data directory since {here} accepted cluster {} with it; nothing is stored yet: \
                         empty the data directories of the others as well and start them again",
                        ours.cluster
                    );
                    conflict("a new data directory", &ours.cluster.to_string(), text)
                }
                _ => None,
            },
        }
    }

    fn tell(&mut self, conflict: Conflict) -> Vec<Step> {
        if self.conflict.as_ref() == Some(&conflict) {
            return Vec::new();
        }
        self.conflict = Some(conflict.clone());
        vec![Step::Conflict(conflict)]
    }
}

/// The id of the cluster of these founders.
pub fn cluster_id(label: &str, founders: impl Iterator<Item = u64>) -> ClusterId {
    let mut words: Vec<u64> = label.bytes().map(u64::from).collect();
    let mut founders: Vec<u64> = founders.collect();
    founders.sort_unstable();
    words.push(founders.len() as u64);
    words.extend(founders);
    let half = |salt: u64| u128::from(mix_all(&[&[salt], words.as_slice()].concat()));
    ClusterId(half(1) << 64 | half(2))
}

/// 32 hexadecimal digits.
impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Proposal {
    /// Appends its bytes.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.cluster.0.to_le_bytes());
        bytes.put_u64(self.incarnation.0);
        bytes.put_u16(self.shards);
        bytes.put_bytes(self.first.as_bytes());
        bytes.put_varint(self.founders.len() as u64);
        self.founders.iter().for_each(|founder| founder.put(bytes));
    }

    /// Reads what [`Proposal::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Proposal, Malformed> {
        let cluster = ClusterId(u128::from_le_bytes(reader.array()?));
        let incarnation = Incarnation(reader.u64()?);
        let shards = reader.u16()?;
        let first = reader.text()?.into();
        let founders = (0..reader.varint()?).map(|_| Member::read(reader)).collect::<Result<_, _>>()?;
        Ok(Proposal { cluster, incarnation, shards, founders, first })
    }
}

impl Greeting {
    /// Appends its bytes.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.put_bytes(self.label.as_bytes());
        self.me.put(bytes);
        bytes.put_u16(self.shards);
        match &self.plan {
            Plan::List(names) => {
                bytes.put_u8(0);
                bytes.put_varint(names.len() as u64);
                names.iter().for_each(|name| bytes.put_bytes(name.as_bytes()));
            }
            Plan::Expect(count) => {
                bytes.put_u8(1);
                bytes.put_varint(*count as u64);
            }
            Plan::Join => bytes.put_u8(2),
        }
        bytes.put_u8(u8::from(self.bootstrap));
        bytes.put_u8(u8::from(self.accepted.is_some()));
        if let Some(proposal) = &self.accepted {
            proposal.encode(bytes);
        }
        bytes.put_u8(u8::from(self.cluster.is_some()));
        if let Some(cluster) = self.cluster {
            bytes.extend_from_slice(&cluster.0.to_le_bytes());
        }
        bytes.put_varint(self.acquaintances.len() as u64);
        self.acquaintances.iter().for_each(|address| bytes.put_bytes(address.as_bytes()));
    }

    /// Reads what [`Greeting::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Greeting, Malformed> {
        let label = reader.text()?.into();
        let me = Member::read(reader)?;
        let shards = reader.u16()?;
        let plan = match reader.u8()? {
            0 => Plan::List((0..reader.varint()?).map(|_| reader.text().map(Into::into)).collect::<Result<_, _>>()?),
            1 => Plan::Expect(reader.narrow()?),
            2 => Plan::Join,
            _ => return Err(Malformed),
        };
        let bootstrap = flag(reader)?;
        let accepted = flag(reader)?.then(|| Proposal::decode(reader)).transpose()?;
        let cluster = match flag(reader)? {
            true => Some(ClusterId(u128::from_le_bytes(reader.array()?))),
            false => None,
        };
        let addresses = (0..reader.varint()?).map(|_| reader.text().map(Into::into));
        let acquaintances = addresses.collect::<Result<_, _>>()?;
        Ok(Greeting { label, me, shards, plan, bootstrap, accepted, cluster, acquaintances })
    }
}

fn flag(reader: &mut Reader<'_>) -> Result<bool, Malformed> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greeting(name: &str, id: u64, plan: Plan) -> Greeting {
        let peer = format!("{name}:7000");
        let me = Member { id, name: name.into(), peer, url: String::new() };
        Greeting {
            label: "codeq".into(),
            me,
            shards: 1,
            plan,
            bootstrap: false,
            accepted: None,
            cluster: None,
            acquaintances: vec![],
        }
    }

    fn list(names: &[&str]) -> Plan {
        Plan::List(names.iter().map(|name| name.to_string()).collect())
    }

    /// Nodes in one thread, each in contact with every other that is up. What they accept survives.
    struct World {
        nodes: Vec<Forming>,
        up: Vec<bool>,
        formed: Vec<Option<Proposal>>,
        conflicts: Vec<String>,
        several: Vec<(usize, Vec<String>)>,
        asked: Vec<(usize, String)>,
        now: Mono,
    }

    impl World {
        fn new(greetings: Vec<Greeting>) -> World {
            let count = greetings.len();
            World {
                nodes: greetings.into_iter().map(Forming::new).collect(),
                up: vec![true; count],
                formed: vec![None; count],
                conflicts: vec![],
                several: vec![],
                asked: vec![],
                now: Mono(1_000),
            }
        }

        fn take(&mut self, node: usize, steps: Vec<Step>) {
            for step in steps {
                match step {
                    Step::Accept(proposal) => self.nodes[node].on_accepted(proposal),
                    Step::Formed(proposal) => {
                        assert!(self.formed[node].as_ref().is_none_or(|formed| *formed == proposal));
                        self.nodes[node].own.cluster = Some(proposal.cluster);
                        self.formed[node] = Some(proposal);
                    }
                    Step::Ask(address) => self.asked.push((node, address)),
                    Step::Several(names) => self.several.push((node, names)),
                    Step::Conflict(conflict) => self.conflicts.push(conflict.text),
                }
            }
        }

        fn round(&mut self) {
            self.now = self.now + Millis(200);
            for from in 0..self.nodes.len() {
                for to in 0..self.nodes.len() {
                    if from != to && self.up[from] && self.up[to] {
                        let mut bytes = Vec::new();
                        self.nodes[from].greeting().encode(&mut bytes);
                        let mut reader = Reader::new(&bytes);
                        let greeting = Greeting::decode(&mut reader).expect("it was encoded here");
                        reader.finish().expect("it was read whole");
                        let steps = self.nodes[to].on_greeting(self.now, greeting);
                        self.take(to, steps);
                    }
                }
                if self.up[from] {
                    let steps = self.nodes[from].tick(self.now, Incarnation(100 + from as u64));
                    self.take(from, steps);
                }
            }
        }

        fn formed(&self) -> usize {
            self.formed.iter().flatten().count()
        }
    }

    fn three() -> World {
        let names = ["a", "b", "c"];
        World::new(names.iter().zip(1..).map(|(name, id)| greeting(name, id, list(&names))).collect())
    }

    #[test]
    fn listed_nodes_found_one_cluster_when_all_are_there() {
        let mut world = three();
        world.up[2] = false;
        (0..50).for_each(|_| world.round());
        assert_eq!(world.formed(), 0, "two of three must wait");
        assert_eq!(world.nodes[0].progress(world.now, ""), "2 of 3 nodes known, c is missing");
        assert_eq!(three().nodes[0].progress(Mono(0), ""), "1 of 3 nodes known, b and c are missing");
        world.up[2] = true;
        (0..5).for_each(|_| world.round());
        assert_eq!(world.formed(), 3);
        let first = world.formed[0].clone().expect("it is founded");
        assert!(world.formed.iter().all(|formed| formed.as_ref() == Some(&first)));
        assert_eq!((first.first.as_str(), first.incarnation, first.founders.len()), ("a", Incarnation(100), 3));
    }

    #[test]
    fn a_flagged_node_proposes_and_two_of_them_still_found_one_cluster() {
        let mut world = three();
        world.nodes[1].own.bootstrap = true;
        world.nodes[2].own.bootstrap = true;
        (0..5).for_each(|_| world.round());
        assert_eq!(world.formed(), 3);
        assert_eq!(world.formed[0].as_ref().map(|proposal| proposal.first.as_str()), Some("b"));
        assert_eq!(world.several, [(1, vec!["b".to_owned(), "c".to_owned()])], "the one that proposes says so, once");
    }

    #[test]
    fn whoever_dies_on_the_way_finds_the_same_cluster_when_it_comes_back() {
        for dies in 0..3 {
            for after in 1..5 {
                let mut world = three();
                (0..after).for_each(|_| world.round());
                world.up[dies] = false;
                (0..20).for_each(|_| world.round());
                // What it had accepted is on its disk; the rest it has forgotten.
                let own = world.nodes[dies].own.clone();
                world.nodes[dies] = Forming::new(own);
                world.up[dies] = true;
                (0..5).for_each(|_| world.round());
                assert_eq!(world.formed(), 3, "node {dies} died after {after} rounds");
                assert!(world.conflicts.is_empty());
            }
        }
    }

    #[test]
    fn expected_nodes_found_with_as_many_as_were_asked_for() {
        let mut world = World::new((1..5).map(|id| greeting(&format!("n{id}"), id, Plan::Expect(3))).collect());
        (0..5).for_each(|_| world.round());
        assert_eq!(world.formed(), 3, "the fourth finds a cluster that it can join");
        assert!(world.formed[3].is_none());
        assert!(world.asked.iter().any(|(node, _)| *node == 3));
        assert!(world.nodes[3].own.accepted.is_none());
    }

    #[test]
    fn a_list_of_only_itself_is_complete() {
        let mut world = World::new(vec![greeting("a", 1, list(&["a"]))]);
        (0..2).for_each(|_| world.round());
        assert_eq!(world.formed(), 1);
    }

    #[test]
    fn a_wiped_node_founds_nothing_with_the_others_data() {
        let mut world = three();
        world.round();
        (0..5).for_each(|_| world.round());
        // Two of the three lose their disks: they want to found again, and the third one's cluster stands in the way.
        for node in [1, 2] {
            let fresh = greeting(["a", "b", "c"][node], 50 + node as u64, list(&["a", "b", "c"]));
            world.nodes[node] = Forming::new(fresh);
            world.formed[node] = None;
        }
        (0..50).for_each(|_| world.round());
        assert_eq!(world.formed(), 1);
        // They ask the third one, as new nodes.
        assert!([1, 2].iter().all(|node| world.asked.contains(&(*node, "a:7000".into()))));
    }

    #[test]
    fn nodes_that_do_not_fit_say_so_once() {
        let cases = [
            (greeting("b", 2, list(&["a", "b", "c"])), "cluster.initialCluster names"),
            (Greeting { label: "other".into(), ..greeting("b", 2, list(&["a", "b"])) }, "cluster.clusterToken"),
            (Greeting { shards: 4, ..greeting("b", 2, list(&["a", "b"])) }, "was started with shards"),
            (greeting("a", 2, list(&["a", "b"])), "is called a too"),
            (greeting("z", 2, Plan::Expect(2)), "is not in cluster.initialCluster"),
        ];
        for (other, expected) in cases {
            let mut world = World::new(vec![greeting("a", 1, list(&["a", "b"])), other]);
            (0..5).for_each(|_| world.round());
            assert_eq!(world.formed(), 0);
            assert!(world.conflicts[0].contains(expected), "{:?}", world.conflicts);
            assert!(world.conflicts.len() <= 2, "each side says it once: {:?}", world.conflicts);
        }
    }

    #[test]
    fn other_bytes_are_no_greeting() {
        let mut whole = greeting("a", 1, list(&["a", "b"]));
        whole.accepted = Some(Proposal {
            cluster: ClusterId(7),
            incarnation: Incarnation(8),
            shards: 1,
            founders: vec![whole.me.clone()],
            first: "a".into(),
        });
        let mut bytes = Vec::new();
        whole.encode(&mut bytes);
        assert!((0..bytes.len()).all(|length| Greeting::decode(&mut Reader::new(&bytes[..length])).is_err()));
    }
}
