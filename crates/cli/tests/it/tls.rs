//! Certificates from `codeq tls init` to requests: encrypted peers, HTTPS with certificates of clients, and certificates that are renewed
//! while the servers run.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use tls::{Authority, Issued, Usage, Validity};

use crate::cluster::stop;
use crate::process::{Codeq, End, eventually, free_ports, run};

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

/// Three nodes that encrypt everything, and the directory with their certificates.
struct Encrypted {
    folder: tempfile::TempDir,
    http: [u16; 3],
    peers: [u16; 3],
}

impl Encrypted {
    fn new() -> Encrypted {
        let ports: [u16; 6] = free_ports();
        let [a, b, c, d, e, f] = ports;
        let folder = tempfile::tempdir().expect("a folder can be made");
        Encrypted { folder, http: [a, b, c], peers: [d, e, f] }
    }

    fn certificates(&self) -> PathBuf {
        self.folder.path().join("certificates")
    }

    /// Starts a node with the settings that `tls init` has printed for it.
    fn start(&self, place: usize, printed: &str) -> Codeq {
        let name = NODES[place];
        let line =
            printed.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).expect("each node has a line");
        let list = (0..3).map(|place| format!("{}=127.0.0.1:{}", NODES[place], self.peers[place]));
        let list = list.collect::<Vec<_>>().join(",");
        let data = self.folder.path().join(name).display().to_string();
        let http = format!("127.0.0.1:{}", self.http[place]);
        let own = ["serve", "--data-dir", &data, "--http-addr", &http, "--initial-cluster", &list];
        Codeq::start(&own.into_iter().chain(line.split(' ')).collect::<Vec<_>>(), &[])
    }

    fn url(&self, place: usize) -> String {
        format!("https://127.0.0.1:{}", self.http[place])
    }

    /// A command to a node, with these certificates: `CA`, or `CA`, `CERT` and `KEY`.
    fn command(&self, place: usize, args: &[&str], trust: &[&Path]) -> End {
        let trust: Vec<String> = trust.iter().map(|path| path.display().to_string()).collect();
        let url = self.url(place);
        let flags = ["--ca", "--cert", "--key"].into_iter().zip(trust.iter().map(String::as_str));
        let flags = flags.flat_map(|(flag, path)| [flag, path]);
        run(&args.iter().copied().chain(["--endpoints", &url]).chain(flags).collect::<Vec<_>>(), &[])
    }
}

fn init(args: &[&str], out: &Path) -> String {
    let out = out.display().to_string();
    let End { status, output } = run(&[&["tls", "init", "--out", &out], args].concat(), &[]);
    assert_eq!(status, Some(0), "{output}");
    output
}

/// Goal: what `tls init` prints starts three nodes that speak TLS with each other and HTTPS with clients; a client with the certificate that it
/// made for it is served, by the node's name and by its address, and one without, or with a node's, or one that trusts somebody else, is not.
/// Plain HTTP opens nothing.
#[test]
fn what_tls_init_makes_serves_a_cluster_and_its_clients() {
    let three = Encrypted::new();
    let out = three.certificates();
    let printed = init(&["--nodes", "node-a,node-b,node-c=queue.example", "--clients", "ann"], &out);
    let nodes: Vec<Codeq> = (0..3).map(|place| three.start(place, &printed)).collect();
    let file = |name: &str| out.join(name);
    let (ca, ann, key) = (file("ca.crt"), file("ann.crt"), file("ann.key"));
    let ann = [&*ca, &*ann, &*key];
    for place in 0..3 {
        eventually("it is ready", || (three.command(place, &["health"], &ann).status == Some(0)).then_some(()));
    }
    let members = three.command(1, &["members"], &ann);
    assert!(members.status == Some(0) && members.output.contains("cluster healthy: 3 of 3"), "{members:?}");
    let created = three.command(2, &["task", "create", "greet", "{}"], &ann);
    assert_eq!(created.status, Some(0), "{created:?}");

    let nobody = three.command(0, &["members"], &[&ca]);
    assert!(nobody.status == Some(1) && nobody.output.contains("no server answers"), "{nobody:?}");
    let (node, node_key) = (file("node-b.crt"), file("node-b.key"));
    let member = three.command(0, &["members"], &[&ca, &node, &node_key]);
    assert_eq!(member.status, Some(1), "a member's certificate is none of a client: {member:?}");
    let foreign = three.folder.path().join("foreign");
    init(&["--nodes", "node-a"], &foreign);
    let distrusted = three.command(0, &["members"], &[&foreign.join("ca.crt"), ann[1], ann[2]]);
    assert!(distrusted.status == Some(1) && distrusted.output.contains("UnknownIssuer"), "{distrusted:?}");
    let plain = format!("http://127.0.0.1:{}", three.http[0]);
    assert_eq!(run(&["members", "--endpoints", &plain], &[]).status, Some(1));
    let unnamed = run(&["members", "--endpoints", &three.url(0)], &[]);
    assert!(unnamed.output.contains("name the authority that vouches for the server, with --ca FILE"), "{unnamed:?}");
    stop(nodes);
}

/// Goal: a renewed certificate is served without a restart, SIGHUP has files read again, and a broken one changes nothing and is named. What
/// is renewed here is of another authority, so that a client sees which one is served.
#[test]
fn a_renewed_certificate_is_served_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let [old, new] = ["old", "new"].map(|name| folder.path().join(name));
    [&old, &new].into_iter().for_each(|out| drop(init(&["--nodes", "only"], out)));
    let path = |out: &Path, name: &str| out.join(name).display().to_string();
    let (cert, key) = (path(&old, "only.https.crt"), path(&old, "only.https.key"));
    let data = folder.path().join("data").display().to_string();
    let mut args = vec!["serve", "--http-addr", "127.0.0.1:0", "--data-dir", &data];
    args.extend(["--node-id", "only", "--http-cert", &cert, "--http-key", &key]);
    let mut server = Codeq::start(&args, &[]);
    let line = server.wait_for("server.started");
    let url = line.split("listens on ").nth(1).and_then(|rest| rest.split(',').next()).expect("it says where");
    let ask = |ca: &Path| run(&["health", "--endpoints", url, "--ca", &path(ca, "ca.crt")], &[]);
    assert_eq!((ask(&old).status, ask(&new).status), (Some(0), Some(1)));

    std::fs::write(&cert, "no certificate").expect("it can be written");
    server.signal(Signal::SIGHUP);
    let said = server.wait_for("server.reload_failed");
    assert!(said.contains(&cert) && said.contains("the server goes on with what it had"), "{said}");
    assert_eq!(ask(&old).status, Some(0), "it goes on with what it had");

    for name in ["only.https.key", "only.https.crt"] {
        std::fs::copy(new.join(name), old.join(name)).expect("it can be copied");
    }
    eventually("the renewed one is served", || (ask(&new).status == Some(0)).then_some(()));
    assert_eq!(ask(&old).status, Some(1));
    // Nothing has changed by now, so that only the signal can be the reason.
    server.skip();
    server.signal(Signal::SIGHUP);
    let said = server.wait_for("server.reloaded");
    assert!(said.contains("HTTP certificates"), "{said}");
    assert_eq!(server.stop(Signal::SIGTERM).status, Some(0));
}

/// Goal: a certificate that ends within two weeks is an alarm, and renewing it clears the alarm; a key that
/// everybody may read is warned of by its name.
#[test]
fn a_certificate_that_ends_soon_is_an_alarm() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let authority = Authority::new("test", Validity { from: -1, to: 100 }).expect("there are random numbers");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (ca, cert, key) = (path("ca.crt"), path("own.crt"), path("own.key"));
    let write = |path: &str, text: &str| std::fs::write(path, text).expect("it can be written");
    let renew = |days: i64| {
        let issued = authority.issue(&["127.0.0.1"], Usage::Server, Validity { from: -1, to: days });
        let Issued { certificate, key: own_key } = issued.expect("it is a name");
        write(&key, &own_key);
        write(&cert, &certificate);
    };
    renew(13);
    write(&ca, &authority.own().certificate);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("it is ours");
    let data = path("data");
    let args = ["serve", "--http-addr", "127.0.0.1:0", "--data-dir", &data, "--http-cert", &cert, "--http-key", &key];
    let mut server = Codeq::start(&args, &[]);
    let line = server.wait_for("server.started");
    let url = line.split("listens on ").nth(1).and_then(|rest| rest.split(',').next()).expect("it says where");
    assert!(
        server.output.contains(&format!("{key} holds a secret and everybody here may read it")),
        "{}",
        server.output
    );
    let status = || run(&["status", "--endpoints", url, "--ca", &ca], &[]).output;
    let said = server.wait_for("alarm.raised");
    assert!(said.contains("the certificate at the port for clients ends in 31"), "{said}");
    assert!(status().contains("cert-expiry"), "{}", status());
    renew(30);
    server.wait_for("alarm.cleared");
    assert!(!status().contains("cert-expiry"), "{}", status());
    assert_eq!(server.stop(Signal::SIGTERM).status, Some(0));
}

/// Goal: what `tls init` cannot make it refuses by its name, and leaves everything as it was; called again it goes on with the same authority.
#[test]
fn tls_init_overwrites_nothing() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let out = folder.path().join("certificates");
    let shown = out.display().to_string();
    let refused = |args: &[&str], text: &str| {
        let end = run(&[&["tls", "init", "--out", &shown], args].concat(), &[]);
        assert!(end.status == Some(1) && end.output.contains(text), "{text}: {end:?}");
    };
    refused(&["--nodes", "node-a,ca"], "\"ca\" is no name");
    refused(&["--nodes", "../node-a"], "\"../node-a\" is no name");
    refused(&["--nodes", "node-a,node-a"], "two certificates would be called node-a");
    refused(&["--nodes", "node-a,node-a.https"], "two certificates would be called node-a.https");
    assert!(!out.exists(), "nothing was made");
    init(&["--nodes", "node-a"], &out);
    let read = |name: &str| std::fs::read(out.join(name)).expect("it is there");
    let before = [read("ca.crt"), read("node-a.crt")];
    refused(&["--nodes", "node-b,node-a"], "node-a.crt is there already");
    assert!(!out.join("node-b.crt").exists(), "nothing was made");
    init(&["--clients", "bob"], &out);
    assert_eq!(before, [read("ca.crt"), read("node-a.crt")]);
    let mode =
        |name: &str| std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(out.join(name)).expect("it is there"));
    assert_eq!([mode("bob.key") & 0o777, mode("ca.key") & 0o777, mode("bob.crt") & 0o777], [0o600, 0o600, 0o644]);
    std::fs::remove_file(out.join("ca.key")).expect("it can be removed");
    refused(&["--nodes", "node-c"], "has one of ca.crt and ca.key without the other");
}
