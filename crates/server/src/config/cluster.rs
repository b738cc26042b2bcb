//! How a node meets others: what it listens on, what it tells them, and whom it founds a cluster with or asks for admission.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use cluster::forming::Plan;
use cluster::{Identity, JoinSecret, PeerConfig};

use crate::config::Notice;
use crate::config::access::{Access, resolve};
use crate::config::kinds::{Address, PEER_PORT};
use crate::config::sources::read_by_others;
use crate::config::values::Values;
use crate::reload::PeerFiles;

/// What comes of these settings.
#[derive(Debug)]
pub(crate) struct Meeting {
    /// The node's name.
    pub(crate) name: String,
    /// Where people reach it.
    pub(crate) url: String,
    /// How it meets others; nothing: it has no port for them.
    pub(crate) peers: Option<PeerConfig>,
    /// What encrypts that.
    pub(crate) encryption: Option<PeerFiles>,
}

const LIST: &str = "cluster.initialCluster";
const ADDR: &str = "cluster.raftAddr";
const ADVERTISE: &str = "cluster.raftAdvertise";
const EXPECT: &str = "cluster.bootstrapExpect";
const BOOTSTRAP: &str = "cluster.bootstrap";
const JOIN: &str = "cluster.join";
const REPLICA: &str = "cluster.replica";
const CERT: &str = "cluster.peerCert";
const KEY: &str = "cluster.peerKey";
const CA: &str = "cluster.peerCa";

/// Decides how the node meets others. `recorded`: whose data directory it is, if it is one already.
pub(crate) fn decide(
    values: &Values,
    access: &Access,
    recorded: Option<&Identity>,
    notices: &mut Vec<Notice>,
    problems: &mut Vec<String>,
) -> Meeting {
    check_forming(values, problems);
    let name = name_of(values, recorded);
    let own = own_entry(values, &name, problems);
    let is_open = values.flag("cluster.raft")
        && (values.nodes(LIST).is_some()
            || !values.hosts(JOIN).is_empty()
            || values.number(EXPECT) > 0
            || [ADDR, ADVERTISE].into_iter().any(|name| values.is_given(name))
            || is_existing(values));
    let advertise = if is_open { advertised(values, own, problems) } else { None };
    let url = match (values.maybe_text("publicUrl"), values.urls("cluster.peerHttp").remove(&name)) {
        (Some(given), _) => given.into(),
        (None, Some(own)) => own,
        (None, None) if access.encryption.is_some() => {
            format!("https://{}", http_advertised(values, access, advertise.as_ref()))
        }
        (None, None) => format!("http://{}", http_advertised(values, access, advertise.as_ref())),
    };
    let Some(advertise) = advertise else { return Meeting { name, url, peers: None, encryption: None } };
    check_redirects(values, problems);
    let listen = listener(values, own, &advertise, problems);
    check_listeners(values, access, listen, problems);
    let plan = plan(values, &name);
    let secret = values.maybe_text("cluster.clusterSecret").map(|secret| Arc::from(secret.as_bytes()));
    let token = values.maybe_text("cluster.joinToken").and_then(JoinSecret::read);
    values.refuse_if(token.is_none() && values.is_given("cluster.joinToken"), &["cluster.joinToken"], problems, || {
        format!("{} is no join token: codeq token create prints one", values.told("cluster.joinToken"))
    });
    let encryption = encryption(values, &name, notices, problems);
    // A member needs its token no more, and the authorities may have changed since it joined.
    if let Some(token) = token.as_ref().filter(|_| recorded.is_none_or(|recorded| recorded.cluster == 0)) {
        check_authority(values, token, encryption.as_ref(), problems);
    }
    if secret.is_none() && encryption.is_none() && !listen.ip().is_loopback() {
        let text = format!(
            "peers connect to {listen} with neither cluster.peerCert nor cluster.clusterSecret: whoever reaches it can pose as one of them and read everything"
        );
        notices.push(Notice::warning(text));
    }
    tell(values, &plan, recorded, notices);
    let addresses = values.nodes(LIST).into_iter().flat_map(BTreeMap::values).chain(values.hosts(JOIN));
    let mut addresses: Vec<String> = addresses.map(Address::to_string).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let is_open_on_purpose = values.text("auth.mode") == "open" || values.flag("insecure");
    let peers = PeerConfig {
        listen,
        advertise: advertise.to_string(),
        label: values.text("cluster.clusterToken").into(),
        secret,
        tls: encryption.as_ref().map(|files| files.tls.clone()),
        token,
        replica: values.flag(REPLICA),
        plan,
        addresses,
        bootstrap: values.flag(BOOTSTRAP) && !is_existing(values),
        listed: values.nodes(LIST).into_iter().flat_map(BTreeMap::keys).cloned().collect(),
        // Who needs no token on loopback does not mean to open the cluster to a network.
        admits_anybody: access.auth.open.is_some() && (is_open_on_purpose || listen.ip().is_loopback()),
        promote_lag: values.number("cluster.promoteLag"),
        promote_after: values.duration("cluster.promoteAfter"),
        health_interval: values.duration("cluster.healthInterval"),
        zone: values.text("cluster.zone").into(),
    };
    Meeting { name, url, peers: Some(peers), encryption }
}

/// What encrypts the connections between members: all three files or none, and the certificate has the node's name.
fn encryption(values: &Values, name: &str, notices: &mut Vec<Notice>, problems: &mut Vec<String>) -> Option<PeerFiles> {
    let paths = [CERT, KEY, CA].map(|name| values.maybe_text(name));
    let [Some(certificate), Some(key), Some(authorities)] = paths else {
        let given = [CERT, KEY, CA].into_iter().find(|name| values.is_given(name));
        if let Some(given) = given {
            let missing = [CERT, KEY, CA].into_iter().filter(|name| !values.is_given(name)).collect::<Vec<_>>();
            values.refuse_if(true, &[CERT, KEY, CA], problems, || {
                format!("{} needs {} as well: all three are set, or none", values.told(given), missing.join(" and "))
            });
        }
        return None;
    };
    match PeerFiles::open(certificate, key, authorities) {
        Ok(files) => {
            notices.extend(read_by_others(key.as_ref()));
            let names = files.tls.facts().names;
            values.refuse_if(!names.iter().any(|known| known == name), &[CERT], problems, || {
                let names = names.join(", ");
                format!("{} is a certificate of {names}, and this node is {name} (cluster.nodeId)", values.told(CERT))
            });
            Some(files)
        }
        Err(why) => {
            problems.push(why);
            None
        }
    }
}

/// Whoever has a token of a cluster with certificates must trust the authority of that cluster, and so knows whom it joins.
fn check_authority(values: &Values, token: &JoinSecret, encryption: Option<&PeerFiles>, problems: &mut Vec<String>) {
    let Some(authority) = token.authority() else { return };
    let trusted = encryption.map(|files| files.tls.fingerprints()).unwrap_or_default();
    values.refuse_if(!trusted.contains(&authority), &["cluster.joinToken", CERT, KEY, CA], problems, || {
        let why = match encryption {
            None => format!("{CERT}, {KEY} and {CA} are not set"),
            Some(_) => format!("that one is not among those of {}", values.told(CA)),
        };
        format!("the members of the cluster that cluster.joinToken is for are vouched for by the authority {authority}, and {why}")
    });
}

fn is_existing(values: &Values) -> bool {
    values.text("cluster.initialClusterState") == "existing"
}

/// Whom a new node founds a cluster with.
fn plan(values: &Values, name: &str) -> Plan {
    let expected = values.count(EXPECT);
    match values.nodes(LIST) {
        _ if is_existing(values) => Plan::Join,
        Some(list) => Plan::List(list.keys().cloned().collect()),
        None if expected > 0 => Plan::Expect(expected),
        None if values.hosts(JOIN).is_empty() || values.flag(BOOTSTRAP) => Plan::List([name.to_owned()].into()),
        None => Plan::Join,
    }
}

/// Ways to form a cluster that exclude each other.
fn check_forming(values: &Values, problems: &mut Vec<String>) {
    let asks = |name: &str| match name {
        LIST | JOIN => values.is_given(name),
        EXPECT => values.number(name) > 0,
        _ => values.flag(name),
    };
    if !values.flag("cluster.raft") {
        for name in [LIST, BOOTSTRAP, EXPECT, JOIN].into_iter().filter(|name| asks(name)) {
            values.refuse_if(true, &["cluster.raft", name], problems, || {
                let raft = values.told("cluster.raft");
                format!("{raft} makes one node for ever, but {} asks for a cluster; remove one", values.told(name))
            });
        }
    }
    values.refuse_if(asks(REPLICA) && asks(BOOTSTRAP), &[REPLICA, BOOTSTRAP], problems, || {
        format!("{} never votes, {} founds a cluster; remove one", values.told(REPLICA), values.told(BOOTSTRAP))
    });
    for name in [LIST, BOOTSTRAP].into_iter().filter(|name| asks(name) && asks(EXPECT)) {
        values.refuse_if(true, &[EXPECT, name], problems, || {
            format!("{} waits for any nodes, {} names them; remove one", values.told(EXPECT), values.told(name))
        });
    }
    if let Some(list) = values.nodes(LIST) {
        for name in values.urls("cluster.peerHttp").keys().filter(|name| !list.contains_key(*name)) {
            values.refuse_if(true, &[LIST, "cluster.peerHttp"], problems, || {
                format!("{} names {name}, which is not in {}", values.told("cluster.peerHttp"), values.told(LIST))
            });
        }
    }
}

/// The node's name: as asked for, as the data directory has it, as the list calls the address that it listens on, or the host's.
fn name_of(values: &Values, recorded: Option<&Identity>) -> String {
    let given = values.maybe_text("cluster.nodeId").map(str::to_owned);
    let recorded = || recorded.map(|identity| identity.node.clone());
    let listed = || {
        let listen = values.maybe_addr(ADDR)?;
        values.nodes(LIST)?.iter().find(|(_, address)| *address == listen).map(|(name, _)| name.clone())
    };
    let host = || {
        let name = host_name();
        let is_listed = values.nodes(LIST).is_none_or(|list| list.contains_key(&name));
        is_listed.then_some(name)
    };
    given.or_else(recorded).or_else(host).or_else(listed).unwrap_or_else(host_name)
}

/// What the list says of this node.
fn own_entry<'a>(values: &'a Values, name: &str, problems: &mut Vec<String>) -> Option<&'a Address> {
    let list = values.nodes(LIST)?;
    let own = list.get(name);
    values.refuse_if(own.is_none(), &[LIST, "cluster.nodeId"], problems, || {
        let who = match values.is_given("cluster.nodeId") {
            true => values.told("cluster.nodeId"),
            false => format!("{name}, which is its name as cluster.nodeId is not set"),
        };
        format!("{} does not have this node in it: {who}", values.told(LIST))
    });
    own
}

/// Where peers reach this node.
fn advertised(values: &Values, own: Option<&Address>, problems: &mut Vec<String>) -> Option<Address> {
    let listen = values.maybe_addr(ADDR);
    if let Some(given) = values.maybe_addr(ADVERTISE) {
        return Some(given.clone());
    }
    if values.is_auto(ADVERTISE) {
        // Whoever has the list dials what it says, and a container's host name may mean nothing elsewhere.
        let port = listen.map_or(PEER_PORT, |address| address.port);
        return Some(own.cloned().unwrap_or_else(|| Address { host: host_name(), port }));
    }
    if let Some(known) = own.or(listen.filter(|listen| !listen.is_unspecified())) {
        return Some(known.clone());
    }
    // That the list does not have this node has been said.
    let about = [LIST, ADDR, ADVERTISE];
    values.refuse_if(values.nodes(LIST).is_none(), &about, problems, || {
        let why = match listen {
            Some(_) => format!("{} is all interfaces", values.told(ADDR)),
            None => {
                let asks = [JOIN, EXPECT].into_iter().find(|name| values.is_given(name));
                format!("{} needs it", values.told(asks.unwrap_or("cluster.initialClusterState")))
            }
        };
        format!("cluster.raftAdvertise is not set, and {why}: say where peers reach this node (--raft-advertise), HOST:{PEER_PORT}, or auto for its host name")
    });
    None
}

/// What to listen on for peers. A node that only its own machine can reach listens only there.
fn listener(values: &Values, own: Option<&Address>, advertise: &Address, problems: &mut Vec<String>) -> SocketAddr {
    let given = values.maybe_addr(ADDR).cloned();
    let host = if advertise.is_loopback() { advertise.host.clone() } else { String::new() };
    let address = given.unwrap_or(Address { host, port: own.map_or(PEER_PORT, |own| own.port) });
    resolve(&address, true).unwrap_or_else(|| {
        let setting = if values.is_given(ADDR) { values.told(ADDR) } else { values.told(LIST) };
        problems.push(format!("{setting}: {address} has no address"));
        SocketAddr::from(([127, 0, 0, 1], address.port))
    })
}

/// Where others reach the HTTP port.
fn http_advertised(values: &Values, access: &Access, peers: Option<&Address>) -> Address {
    if let Some(given) = values.maybe_addr("http.advertise") {
        return given.clone();
    }
    let host = match peers {
        _ if values.is_auto("http.advertise") => host_name(),
        _ if !access.addr.ip().is_unspecified() => access.addr.ip().to_string(),
        Some(peers) => peers.host.clone(),
        None => host_name(),
    };
    Address { host, port: access.addr.port() }
}

fn check_listeners(values: &Values, access: &Access, listen: SocketAddr, problems: &mut Vec<String>) {
    let http = access.addr;
    let is_shared = http.port() == listen.port()
        && listen.port() != 0
        && (http.ip() == listen.ip() || http.ip().is_unspecified() || listen.ip().is_unspecified());
    let name = if values.is_given(ADDR) { ADDR } else { LIST };
    values.refuse_if(is_shared, &["http.addr", name], problems, || {
        format!("{} and {} need the same port, {}", values.told("http.addr"), values.told(name), listen.port())
    });
}

/// Whoever sends clients elsewhere must have been told where that is.
fn check_redirects(values: &Values, problems: &mut Vec<String>) {
    let about = ["followerWrites", "publicUrl", "cluster.peerHttp"];
    let is_told = values.is_given("publicUrl") || values.is_given("cluster.peerHttp");
    values.refuse_if(values.text("followerWrites") == "redirect" && !is_told, &about, problems, || {
        format!(
            "{} sends clients to public URLs, but publicUrl is unset, and so is cluster.peerHttp",
            values.told("followerWrites")
        )
    });
}

/// What an operator should know of how the cluster is formed.
fn tell(values: &Values, plan: &Plan, recorded: Option<&Identity>, notices: &mut Vec<Notice>) {
    if let Plan::Expect(count) = plan
        && count.is_multiple_of(2)
    {
        let text =
            format!("{}: an even number of nodes survives no more failures than one node less", values.told(EXPECT));
        notices.push(Notice::warning(text));
    }
    if values.text("storage.provider") == "memory" {
        let text = format!("{}: a node that restarts is a new member", values.told("storage.provider"));
        notices.push(Notice::warning(text));
    }
    if recorded.is_some_and(|identity| identity.cluster != 0) {
        let names = [BOOTSTRAP, LIST, EXPECT, JOIN, "cluster.initialClusterState", "cluster.joinTimeout"];
        let given: Vec<&str> = names.into_iter().filter(|name| values.is_given(name)).collect();
        if !given.is_empty() {
            let text = format!(
                "the data directory belongs to a cluster already, so these found and join nothing: {}",
                given.join(", ")
            );
            notices.push(Notice::info(text));
        }
    }
}

/// The machine's name, with what a node's name may not have replaced.
fn host_name() -> String {
    let name = gethostname::gethostname();
    let allowed = |char: char| if char.is_ascii_alphanumeric() || "._-".contains(char) { char } else { '-' };
    let name: String = name.to_string_lossy().chars().map(allowed).take(63).collect();
    if base::is_node_name(&name) { name } else { "codeq".into() }
}
