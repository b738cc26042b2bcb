//! Join tokens at the command line: what `codeq token create` prints joins a node, and what does not hold is refused in words.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::stop;
use crate::process::{Codeq, End, eventually, free_ports, ready, run};

/// The SHA-256 of the token `admin`.
const TOKENS: &str = "admin ann 8c6976e5b5410415bde908bd4dee15dfb167a9c873fc4bb8a81f6f2ab448a918\n";

/// A founder that admits only who has a token, and the newcomers.
struct Closed {
    folder: tempfile::TempDir,
    http: [u16; 6],
    peers: [u16; 6],
    /// Settings that all nodes have.
    more: Vec<String>,
}

impl Closed {
    fn new() -> Closed {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let tokens = folder.path().join("tokens");
        std::fs::write(&tokens, TOKENS).expect("it can be written");
        let more = vec!["--tokens-file".into(), tokens.display().to_string()];
        Closed { folder, http: free_ports(), peers: free_ports(), more }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn addr(&self, place: usize) -> String {
        format!("127.0.0.1:{}", self.http[place])
    }

    fn found(&self, more: &[&str]) -> Codeq {
        let (data, http, peer) = (self.path("founder"), self.addr(0), format!("127.0.0.1:{}", self.peers[0]));
        let own = ["serve", "--node-id", "founder", "--data-dir", &data, "--http-addr", &http, "--raft-addr", &peer];
        let own = own.into_iter().chain(["--bootstrap", "--promote-after", "100ms"]).chain(more.iter().copied());
        let founder = Codeq::start(&own.chain(self.more.iter().map(String::as_str)).collect::<Vec<_>>(), &[]);
        ready(&self.addr(0));
        founder
    }

    fn command(&self, args: &[&str]) -> End {
        run(&[args, &["--endpoints", &self.addr(0)]].concat(), &[("CODEQ_TOKEN", "admin")])
    }

    /// Makes a token; answers its id and the command that was printed.
    fn create(&self, args: &[&str]) -> (String, String) {
        let End { status, output } = self.command(&[&["token", "create"], args].concat());
        assert_eq!(status, Some(0), "{output}");
        let (sentence, command) = output.split_once('\n').expect("there are two lines");
        let id = sentence.strip_prefix("token ").and_then(|rest| rest.split(' ').next()).expect("it has an id");
        (id.into(), command.trim().into())
    }

    /// Runs a command that was printed, with what stands in capitals filled in.
    fn join(&self, place: usize, name: &str, command: &str, more: &[&str]) -> Codeq {
        let (variable, args) = command.split_once(" codeq ").expect("the token goes by the environment");
        let peer = format!("127.0.0.1:{}", self.peers[place]);
        let filled =
            args.replace("DIRECTORY", &self.path(name)).replace("--raft-addr :7000", &format!("--raft-addr {peer}"));
        let filled = filled.replace("HOST:7000", &peer).replace("NAME", name);
        let http = self.addr(place);
        let own = filled.split(' ').chain(["--http-addr", &http]).chain(self.more.iter().map(String::as_str));
        Codeq::start(
            &own.chain(more.iter().copied()).collect::<Vec<_>>(),
            &[variable.split_once('=').expect("it is set")],
        )
    }

    fn voters(&self) -> Value {
        let End { output, .. } = self.command(&["members", "-o", "json"]);
        serde_json::from_str::<Value>(&output).expect("it is JSON")["quorum"]["voters"].clone()
    }

    /// The row of a token in the list.
    fn row(&self, id: &str) -> Option<String> {
        let End { status, output } = self.command(&["token", "list"]);
        assert_eq!(status, Some(0), "{output}");
        assert!(output.starts_with("Id                Expires  Admits  Type"), "{output}");
        output
            .lines()
            .find(|line| line.starts_with(id))
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// Goal: the printed command joins a node as it stands. A token for one node is used up, one for replicas makes a learner, and one that is used,
/// revoked, or has expired is refused with the reason on the newcomer's screen and status 3. The list shows all of it and no secret.
#[test]
fn the_printed_command_joins_a_node_and_a_dead_token_does_not() {
    let closed = Closed::new();
    let founder = closed.found(&[]);
    let (once, command) = closed.create(&["--once", "--ttl", "30m"]);
    assert!(closed.row(&once).is_some_and(|row| row.ends_with("one voter 0")), "{:?}", closed.row(&once));
    let second = closed.join(1, "second", &command, &[]);
    eventually("it votes", || (closed.voters() == 2).then_some(()));
    assert!(closed.row(&once).is_some_and(|row| row.ends_with("nobody voter 1")), "{:?}", closed.row(&once));

    let refused = |place: usize, name: &str, command: &str, why: &str| {
        let end = closed.join(place, name, command, &["--join-timeout", "2s"]).end();
        assert_eq!(end.status, Some(3), "{}", end.output);
        let told = |event: &str| end.output.lines().any(|line| line.contains(event) && line.contains(why));
        assert!(told("raft.join.refused"), "{why}: {}", end.output);
        let last = end.output.lines().last().expect("it says something");
        assert!(last.contains(why), "the last words say why: {last}");
    };
    refused(2, "third", &command, "was for one node, and has been used");
    let (revoked, command) = closed.create(&[]);
    let gone = closed.command(&["token", "revoke", &revoked]);
    assert_eq!((gone.status, closed.row(&revoked)), (Some(0), None), "{gone:?}");
    refused(3, "fourth", &command, "it is wrong, was revoked, or has expired");
    let (short, command) = closed.create(&["--ttl", "1ms"]);
    eventually("it has expired", || closed.row(&short).is_none_or(|row| row.contains("expired")).then_some(()));
    refused(4, "fifth", &command, "has expired");

    let (_, command) = closed.create(&["--replica"]);
    let replica = closed.join(5, "replica", &command, &[]);
    eventually("it learns", || {
        let members = closed.command(&["members"]).output;
        members.lines().any(|line| line.starts_with("replica ") && line.contains("  false  ")).then_some(())
    });
    assert_eq!(closed.voters(), 2);

    let again = closed.command(&["token", "revoke", &revoked]);
    assert!(again.status == Some(1) && again.output.contains("there is no join token"), "{again:?}");
    let nonsense = closed.command(&["token", "revoke", "mine"]);
    assert!(nonsense.status == Some(1) && nonsense.output.contains("there is no join token mine"), "{nonsense:?}");
    let long = closed.command(&["token", "create", "--ttl", "31d"]);
    assert!(long.status != Some(0) && long.output.contains("30 days"), "{long:?}");
    stop(vec![founder, second, replica]);
}

/// Goal: a token of a cluster with certificates names its authority: a newcomer that trusts somebody else, or nobody, does not start; with the
/// right one it joins.
#[test]
fn a_token_says_whom_it_joins() {
    let mut closed = Closed::new();
    let init = |folder: &str, nodes: &str| {
        let End { status, output } = run(&["tls", "init", "--nodes", nodes, "--out", &closed.path(folder)], &[]);
        assert_eq!(status, Some(0), "{output}");
    };
    init("own", "founder,second");
    init("foreign", "second");
    let peer = |folder: &str, name: &str| {
        let file = |name: &str| Path::new(&closed.path(folder)).join(name).display().to_string();
        [
            "--peer-cert".into(),
            file(&format!("{name}.crt")),
            "--peer-key".into(),
            file(&format!("{name}.key")),
            "--peer-ca".into(),
            file("ca.crt"),
        ]
    };
    let [founder, own, foreign] = [peer("own", "founder"), peer("own", "second"), peer("foreign", "second")];
    let flags = |flags: &[String; 6]| flags.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
    closed.more.extend(["--log-level".into(), "info".into()]);
    let founder = closed.found(&founder.iter().map(String::as_str).collect::<Vec<_>>());
    let (_, command) = closed.create(&["--once"]);
    let asked = "--peer-cert NAME.crt --peer-key NAME.key --peer-ca ca.crt";
    assert!(command.contains(asked), "{command}");
    for (given, why) in
        [(String::new(), "cluster.peerCa are not set"), (flags(&foreign), "is not among those of cluster.peerCa")]
    {
        let end = closed.join(1, "second", command.replace(asked, &given).trim(), &[]).end();
        assert!(end.status == Some(2) && end.output.contains(why), "{why}: {end:?}");
    }
    let second = closed.join(1, "second", &command.replace(asked, &flags(&own)), &[]);
    eventually("it votes", || (closed.voters() == 2).then_some(()));
    // Once it is a member, its token and who made it mean nothing any more.
    assert_eq!(second.stop(Signal::SIGTERM).status, Some(0));
    let again = closed.join(1, "second", &command.replace(asked, &flags(&own)), &[]);
    ready(&closed.addr(1));
    stop(vec![founder, again]);
}
