//! Encrypted connections between members: who is let in, who is not and what both sides say of it, certificates that are replaced while
//! the nodes run, and a port that strangers throw bytes at.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cluster::{Data, Node, PeerPem, PeerTls};
use tls::{Authority, ClientTls, Issued, Usage, Validity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::register::Register;
use crate::three_nodes::{free_addrs, write};
use crate::{LOGGED, logged};

const NOW: Validity = Validity { from: -1, to: 30 };

fn authority() -> Authority {
    Authority::new("codeq", NOW).expect("there are random numbers")
}

fn member(of: &Authority, name: &str, validity: Validity) -> Issued {
    of.issue(&[name], Usage::Member, validity).expect("it is a name")
}

fn pem<'a>(own: &'a Issued, authorities: &'a str) -> PeerPem<'a> {
    PeerPem { certificate: own.certificate.as_bytes(), key: own.key.as_bytes(), authorities: authorities.as_bytes() }
}

fn tls(own: &Issued, trusted: &Authority) -> Arc<PeerTls> {
    Arc::new(PeerTls::new(pem(own, &trusted.own().certificate)).expect("it goes together"))
}

fn node(name: &str, listen: SocketAddr, join: Option<SocketAddr>, tls: Option<Arc<PeerTls>>) -> Node<Register> {
    let mut builder = Node::<Register>::builder(Data::Memory).name(name).listen(listen).admit_anybody();
    if let Some(first) = join {
        builder = builder.join([first.to_string()]);
    }
    if let Some(tls) = tls {
        builder = builder.tls(tls);
    }
    builder.start().expect("it starts")
}

/// Waits until what is logged makes something so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waits = async {
        loop {
            let mut more = std::pin::pin!(LOGGED.notified());
            more.as_mut().enable();
            if is_so() {
                return;
            }
            more.await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waits).await.unwrap_or_else(|_| panic!("not in 20 s: {what}"));
}

/// Lines of refusals for this reason that were logged after so many lines.
fn rejected(after: usize) -> Vec<String> {
    let is_one = |line: &String| line.contains("raft.peer.rejected") && line.contains("reason=\"tls\"");
    logged().into_iter().skip(after).filter(is_one).collect()
}

/// Goal: whoever does not show a member's certificate with its own name, of the cluster's authority and of today, does not get in, and
/// both sides say so. One founder and one newcomer for each case; in the last two they do not agree whether to encrypt at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_certificate_of_its_own_is_refused_on_both_sides() {
    crate::log();
    let (ours, other) = (authority(), authority());
    let own = || Some(tls(&member(&ours, "first", NOW), &ours));
    let past = Validity { from: -30, to: -1 };
    let future = Validity { from: 1, to: 30 };
    let cases: [(&str, Option<Arc<PeerTls>>, Option<Arc<PeerTls>>); 7] = [
        ("another authority, trusted by itself", own(), Some(tls(&member(&other, "second", NOW), &other))),
        ("another authority", own(), Some(tls(&member(&other, "second", NOW), &ours))),
        ("expired", own(), Some(tls(&member(&ours, "second", past), &ours))),
        ("not valid yet", own(), Some(tls(&member(&ours, "second", future), &ours))),
        ("another node's", own(), Some(tls(&member(&ours, "third", NOW), &ours))),
        ("plain text", own(), None),
        ("plain text there", None, Some(tls(&member(&ours, "second", NOW), &ours))),
    ];
    for (case, there, here) in cases {
        let addrs = free_addrs(2);
        let before = logged().len();
        let founder = node("first", addrs[0], None, there);
        founder.handle().ready().await;
        let newcomer = node("second", addrs[1], Some(addrs[0]), here);
        until(case, || {
            let lines = rejected(before);
            let by_dialler = lines.iter().any(|line| line.contains("peer=\"127.0.0.1"));
            let by_listener = lines.iter().any(|line| line.contains("addr=\"127.0.0.1\""));
            by_dialler && by_listener
        })
        .await;
        assert!(newcomer.handle().cluster().is_none(), "{case}");
        assert_eq!(founder.handle().members().iter().count(), 1, "{case}");
        newcomer.shut_down().await.expect("it stops");
        founder.shut_down().await.expect("it stops");
    }
}

/// Goal: a client's certificate, and none at all, open nothing at the port for peers. A client connects and sends a request; it gets no
/// answer, and the connection is closed at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_certificate_opens_nothing_at_the_port_for_peers() {
    crate::log();
    let ours = authority();
    let addr = free_addrs(1)[0];
    let own = ours.issue(&["first", "127.0.0.1"], Usage::Member, NOW).expect("they are names");
    let founder = node("first", addr, None, Some(tls(&own, &ours)));
    let client = ours.issue(&["someone"], Usage::Client, NOW).expect("it is a name");
    let trusted = ours.own().certificate.as_bytes();
    let shown = Some((client.certificate.as_bytes(), client.key.as_bytes()));
    for own in [shown, None] {
        let before = logged().len();
        let client = ClientTls::new(trusted, own).expect("it goes together");
        let stream = TcpStream::connect(addr).await.expect("somebody listens");
        let mut stream = client.connect("127.0.0.1", stream).await.expect("the refusal comes afterwards");
        // It may be closed before this has left.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok() && answer.is_empty(), "it is closed, and says nothing: {answer:?}");
        until("it is logged", || !rejected(before).is_empty()).await;
    }
    founder.shut_down().await.expect("it stops");
}

/// Goal: authority and certificates are replaced on running nodes, in the order that the documents tell, and no connection is lost. Then a
/// node starts anew with what is old, and stays out, and with what is new, and gets in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_replaced_without_losing_a_connection() {
    crate::log();
    let (old, new) = (authority(), authority());
    let addrs = free_addrs(3);
    let names = ["r1", "r2", "r3"];
    let shown: Vec<Arc<PeerTls>> = names.iter().map(|name| tls(&member(&old, name, NOW), &old)).collect();
    let list = || names.iter().copied().zip(addrs.iter().map(SocketAddr::to_string));
    let start = |place: usize, tls: Arc<PeerTls>| {
        let peers: Vec<(&str, String)> = list().collect();
        Node::<Register>::builder(Data::Memory)
            .name(names[place])
            .peers(peers.iter().map(|(name, addr)| (*name, addr.as_str())))
            .tls(tls)
            .start()
            .expect("it starts")
    };
    let nodes: Vec<Node<Register>> = (0..3).map(|place| start(place, shown[place].clone())).collect();
    for node in &nodes {
        node.handle().ready().await;
    }
    let both = format!("{}{}", old.own().certificate, new.own().certificate);
    let downs = |nodes: &[Node<Register>]| -> usize {
        nodes.iter().map(|node| node.handle().events(0, usize::MAX, |event| event.name == "raft.peer.down").len()).sum()
    };
    let before = downs(&nodes);
    let own = |of: &Authority, place: usize| member(of, names[place], NOW);
    for (issuer, trusted) in [(&old, both.as_str()), (&new, both.as_str()), (&new, new.own().certificate.as_str())] {
        for (place, tls) in shown.iter().enumerate() {
            tls.replace(pem(&own(issuer, place), trusted)).expect("it goes together");
        }
        for node in &nodes {
            write(node.handle(), "line").await.expect("it is written");
        }
    }
    assert_eq!(downs(&nodes), before, "no connection was lost");
    let mut nodes = nodes;
    let last = nodes.pop().expect("there are three");
    last.shut_down().await.expect("it stops");
    let before = logged().len();
    let outdated = start(2, tls(&own(&old, 2), &old));
    until("what is old is refused", || rejected(before).len() >= 2).await;
    assert!(outdated.handle().cluster().is_none());
    outdated.shut_down().await.expect("it stops");
    let renewed = start(2, tls(&own(&new, 2), &new));
    renewed.handle().ready().await;
    write(renewed.handle(), "line").await.expect("it is written");
    for node in nodes.into_iter().chain([renewed]) {
        node.shut_down().await.expect("it stops");
    }
}

/// Goal: strangers who open connections and say nothing, or say nonsense, do not keep members from their work, and those beyond the limit
/// of one address are closed at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_strangers_is_bounded_and_disturbs_nobody() {
    crate::log();
    for encrypted in [false, true] {
        let ours = authority();
        let addrs = free_addrs(2);
        let own = |name: &str| encrypted.then(|| tls(&member(&ours, name, NOW), &ours));
        let founder = node("first", addrs[0], None, own("first"));
        let second = node("second", addrs[1], Some(addrs[0]), own("second"));
        second.handle().ready().await;
        let mut silent = Vec::new();
        for number in 0..200_u8 {
            let mut stream = TcpStream::connect(addrs[0]).await.expect("somebody listens");
            if number.is_multiple_of(4) {
                // It may be closed already.
                let _ = stream.write_all(&[number; 4_096]).await;
            }
            silent.push(stream);
            if number.is_multiple_of(20) {
                write(second.handle(), "line").await.expect("it is written");
            }
        }
        let mut open = 0;
        for stream in &mut silent {
            let mut byte = [0];
            let read = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut byte)).await;
            open += usize::from(read.is_err());
        }
        assert!(open <= 64, "{open} strangers are waited for");
        write(second.handle(), "last").await.expect("it is written");
        second.shut_down().await.expect("it stops");
        founder.shut_down().await.expect("it stops");
    }
}
