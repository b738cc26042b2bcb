//! What settings come to: sources, ranks, codeQ's names, combinations, and the texts of all refusals.
//!
//! Each file of `testdata/config/` is one test. `UPDATE_GOLDENFILES=1 cargo test -p server --test config` writes the output that the present
//! code gives; read the difference before you commit it. The commands are explained in [`Script::run`].

use std::collections::BTreeMap;
use std::error::Error;
use std::os::unix::fs::PermissionsExt;

use goldenscript::{Block, Command, Context};
use server::config::kinds::Kind;
use server::config::table::{Default, Setting, settings};
use server::config::{Inputs, Origin, show};
use server::settings::Settings;
use tls::{Authority, Usage, Validity};

struct Script {
    inputs: Inputs,
    folder: tempfile::TempDir,
}

impl Script {
    fn new() -> Script {
        Script { inputs: Inputs::default(), folder: tempfile::tempdir().expect("a folder can be made") }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

impl goldenscript::Runner for Script {
    type Command = Command;

    /// The commands; each block begins with nothing given, and `@` in a value is the script's folder.
    ///
    /// - `flag NAME=VALUE…`, `env NAME=VALUE…`: give flags without dashes, and variables
    /// - `file NAME TEXT`: writes a file and takes it as the configuration file; `write NAME TEXT` only writes it
    /// - `identity`: makes the folder a data directory of node-a with 4 shards in SQLite, as the storage crate's test has it on record
    /// - `share NAME`: lets others read a file
    /// - `held NAME…`: prints what holds
    /// - `start`: prints what an operator is told and, if the settings are refused, why
    /// - `access`: prints where the server would listen, and for whom
    /// - `log`: prints the log's filter
    /// - `meets`: prints how the node meets others
    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let here = self.folder.path().display().to_string();
        let mut out = String::new();
        match command.name.as_str() {
            name @ ("flag" | "env") => {
                while let Some((key, value)) = args.next_key() {
                    let (key, value) = (key.to_owned(), value.replace('@', &here));
                    match name {
                        "flag" => self.inputs.flags.push((key, value)),
                        _ => self.inputs.environment.push((key, value.into())),
                    }
                }
            }
            name @ ("file" | "write") => {
                let path = self.path(args.next_pos().ok_or("a name")?);
                std::fs::write(&path, args.next_pos().ok_or("a text")?.replace('@', &here))?;
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
                if name == "file" {
                    self.inputs.flags.push(("config".into(), path));
                }
            }
            "identity" => {
                std::fs::copy("../storage/testdata/identity-v1.txt", self.path("identity"))?;
            }
            "share" => {
                let path = self.path(args.next_pos().ok_or("a name")?);
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
            }
            "held" => {
                let values = self.inputs.read().values;
                while let Some(name) = args.next_pos() {
                    out.push_str(&format!("{name} = {} ({})\n", values.shown(name), values.get(name).origin));
                }
            }
            "start" => match self.inputs.read().configuration() {
                Ok(configuration) => {
                    for notice in configuration.notices {
                        out.push_str(if notice.is_warning { "warning: " } else { "info: " });
                        out.push_str(&notice.text);
                        out.push('\n');
                    }
                }
                Err(refused) => out = refused.0.iter().map(|problem| format!("refused: {problem}\n")).collect(),
            },
            "access" => match self.inputs.read().configuration() {
                Ok(configuration) => {
                    let settings = configuration.settings;
                    let who = match (&settings.auth.open, &settings.auth.producer, &settings.auth.worker) {
                        (Some(open), None, None) if open.names.is_empty() => "open".into(),
                        (Some(open), None, None) => format!("open, also as {}", open.names.join(", ")),
                        (None, Some(_), Some(_)) => "tokens of producers and workers".into(),
                        (None, Some(_), None) => "tokens of producers".into(),
                        (None, None, Some(_)) => "tokens of workers".into(),
                        _ => "nobody, or both".into(),
                    };
                    out = format!("{}: {who}\n", settings.http.addr);
                }
                Err(refused) => out = refused.0.iter().map(|problem| format!("refused: {problem}\n")).collect(),
            },
            "meets" => match self.inputs.read().configuration() {
                Ok(configuration) => out = meets(&configuration.settings),
                Err(refused) => out = refused.0.iter().map(|problem| format!("refused: {problem}\n")).collect(),
            },
            "log" => out = format!("{}\n", self.inputs.read().configuration()?.log.filter),
            other => return Err(format!("there is no command {other}").into()),
        }
        args.reject_next()?;
        Ok(out.replace(&format!("{here}/"), "").replace(&here, "@"))
    }

    fn end_block(&mut self, _: &Block) -> Result<String, Box<dyn Error>> {
        self.inputs = Inputs::default();
        Ok(String::new())
    }
}

/// How a node meets others, a line each.
fn meets(settings: &Settings) -> String {
    let node = &settings.node;
    let given = if node.name_is_given { "" } else { ", unless its directory has another name" };
    // The machine's name is not the script's.
    let host = gethostname::gethostname().to_string_lossy().into_owned();
    let mut out = format!("name {}{given}\nurl {}\n", node.name, node.url);
    if let Some(peers) = &node.peers {
        let secret = if peers.secret.is_some() { ", with a secret" } else { "" };
        out += &format!("peers {} at {}, label {}{secret}\n", peers.listen, peers.advertise, peers.label);
        let bootstrap = if peers.bootstrap { ", proposes" } else { "" };
        out += &format!("plan {:?}{bootstrap}; greets {}\n", peers.plan, peers.addresses.join(", "));
        let open = if peers.admits_anybody { "anybody" } else { "nobody else" };
        let listed: Vec<&str> = peers.listed.iter().map(String::as_str).collect();
        out += &format!("admits {} and {open}\n", listed.join(", "));
    }
    out.replace(&format!(" {host}:"), " HOST:").replace(&format!("/{host}:"), "/HOST:")
}

macro_rules! scripts {
    ($($file:ident),* $(,)?) => {
        $(#[test]
        fn $file() {
            let path = concat!("testdata/config/", stringify!($file));
            goldenscript::run(&mut Script::new(), path).expect("the output is the expected one");
        })*

        #[test]
        fn every_script_is_run() {
            let mut listed = vec![$(stringify!($file).to_owned()),*];
            let found = std::fs::read_dir("testdata/config").expect("the folder exists");
            let mut found: Vec<_> =
                found.map(|file| file.expect("it can be listed").file_name().to_string_lossy().into_owned()).collect();
            listed.sort();
            found.sort();
            assert_eq!(found, listed);
        }
    };
}

scripts! { ranks, values, files, unknown, secrets, codeq, access, cluster, combinations, tokens, log_levels }

/// The value that the sources come to, with a single flag given.
fn with(flags: &[(String, String)]) -> String {
    let inputs = Inputs { flags: flags.to_vec(), ..Inputs::default() };
    let configuration = inputs.read().configuration();
    format!("{:?}", configuration.unwrap_or_else(|refused| panic!("{flags:?}: {refused}")))
}

/// What makes a node one of three.
fn three() -> Vec<(&'static str, String)> {
    let list = "a=127.0.0.1:7001,b=127.0.0.1:7002,c=127.0.0.1:7003".to_owned();
    vec![("node-id", "a".into()), ("initial-cluster", list)]
}

/// Another value than the default, and what else must be given so that it matters.
fn another(setting: &Setting, file: &str) -> (String, Vec<(&'static str, String)>) {
    let config = file.to_owned();
    let pem = || file.replace(".json", ".pem");
    match setting.name {
        "env" => {
            ("live".into(), vec![("auth-producer-provider", "static".into()), ("auth-producer-config-file", config)])
        }
        "auth.mode" => ("open".into(), Vec::new()),
        "auth.producer.provider" => ("static".into(), vec![("auth-producer-config-file", config)]),
        "auth.producer.config" => (config, vec![("auth-producer-provider", "static".into())]),
        "auth.worker.provider" => ("static".into(), vec![("auth-worker-config-file", config)]),
        "auth.worker.config" => (config, vec![("auth-worker-provider", "static".into())]),
        "auth.tokensFile" => (file.replace(".json", ".tokens"), Vec::new()),
        "auth.defaultTenant" => ("acme".into(), Vec::new()),
        "storage.bufferedSyncInterval" => ("7ms".into(), vec![("storage-durability", "buffered".into())]),
        "cluster.nodeId" => ("another-node".into(), Vec::new()),
        "http.advertise" => ("queue.example.com:80".into(), Vec::new()),
        "publicUrl" => ("https://queue.example.com".into(), Vec::new()),
        "cluster.bootstrap" | "cluster.initialClusterState" => {
            let value = if setting.name == "cluster.bootstrap" { "true" } else { "existing" };
            (value.into(), three())
        }
        "cluster.initialCluster" => ("a=127.0.0.1:7001,b=127.0.0.1:7002".into(), vec![("node-id", "a".into())]),
        "cluster.peerHttp" => ("a=http://a:8080".into(), vec![("node-id", "a".into())]),
        "cluster.raftAddr" => ("127.0.0.1:7001".into(), Vec::new()),
        "cluster.raftAdvertise" => ("127.0.0.1:7001".into(), Vec::new()),
        "cluster.clusterToken" => ("another".into(), three()),
        "cluster.clusterSecret" => (config, three()),
        "cluster.joinToken" => {
            let token = format!("{file}.token");
            let text = format!("codeq_join_{:016x}_{}", 1, "7".repeat(64));
            std::fs::write(&token, text).expect("it can be written");
            (token, three())
        }
        "cluster.replica" => ("true".into(), three()),
        "cluster.bootstrapExpect" => ("3".into(), vec![("raft-addr", "127.0.0.1:7001".into())]),
        "cluster.join" => ("127.0.0.1:7002".into(), vec![("raft-addr", "127.0.0.1:7001".into())]),
        "cluster.promoteLag" => ("5".into(), three()),
        "cluster.promoteAfter" => ("5s".into(), three()),
        "cluster.healthInterval" => ("1s".into(), three()),
        "cluster.zone" => ("dc2".into(), three()),
        "cluster.electionTimeout" => ("700ms".into(), Vec::new()),
        "cluster.heartbeat" => ("50ms".into(), Vec::new()),
        "queue.backoff.max" => ("20m".into(), Vec::new()),
        "queue.lease.default" => ("4m".into(), Vec::new()),
        "queue.lease.max" => ("10h".into(), Vec::new()),
        "limits.maxBodyBytes" => ("17MiB".into(), Vec::new()),
        "http.addr" => ("127.0.0.1:0".into(), Vec::new()),
        "http.cert" => (pem(), vec![("http-key", pem())]),
        "http.key" => (pem(), vec![("http-cert", pem())]),
        "http.clientCa" => (pem(), vec![("http-cert", pem()), ("http-key", pem())]),
        "cluster.peerCert" => (
            pem(),
            vec![
                ("node-id", "node-a".into()),
                ("raft-addr", "127.0.0.1:7001".into()),
                ("peer-key", pem()),
                ("peer-ca", pem()),
            ],
        ),
        "cluster.peerKey" => (
            pem(),
            vec![
                ("node-id", "node-a".into()),
                ("raft-addr", "127.0.0.1:7001".into()),
                ("peer-cert", pem()),
                ("peer-ca", pem()),
            ],
        ),
        "cluster.peerCa" => (
            pem(),
            vec![
                ("node-id", "node-a".into()),
                ("raft-addr", "127.0.0.1:7001".into()),
                ("peer-cert", pem()),
                ("peer-key", pem()),
            ],
        ),
        "storage.diskLow" => ("12%".into(), Vec::new()),
        "storage.diskCritical" => ("2%".into(), Vec::new()),
        _ => match (setting.kind, setting.default) {
            (Kind::Bool, Default::Is(default)) => ((default != "true").to_string(), Vec::new()),
            (Kind::Int(min, _), Default::Is(default)) if default == min.to_string() => {
                ((min + 1).to_string(), Vec::new())
            }
            (Kind::Int(min, _), _) => (min.to_string(), Vec::new()),
            (Kind::Duration(min, _), _) => (format!("{}ms", min + 1), Vec::new()),
            (Kind::Size(min, _), _) => ((min + 1).to_string(), Vec::new()),
            (Kind::Choice(words), Default::Is(default)) => {
                let other = words.known.iter().find(|(_, meaning)| *meaning != default).expect("there is a choice");
                (other.0.into(), Vec::new())
            }
            (Kind::Choice(words), _) => (words.known[0].0.into(), Vec::new()),
            (Kind::Levels, _) => ("trace".into(), Vec::new()),
            (Kind::Path, _) => ("./elsewhere".into(), Vec::new()),
            other => panic!("{}: no other value is known for {other:?}", setting.name),
        },
    }
}

const FOR_A_DAY: Validity = Validity { from: 0, to: 1 };

/// No setting is dead: giving it another value makes the server run with something else.
#[test]
fn every_setting_reaches_the_server() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let file = folder.path().join("config.json");
    std::fs::write(&file, r#"{"token": "a-long-enough-token", "raw": {"tenantId": "acme"}}"#)
        .expect("it can be written");
    let tokens = format!("operator alice {}", "5e".repeat(32));
    std::fs::write(file.with_extension("tokens"), tokens).expect("it can be written");
    let pem = Authority::new("an authority", FOR_A_DAY).and_then(|authority| {
        let member = authority.issue(&["node-a"], Usage::Member, FOR_A_DAY)?;
        Ok(member.certificate + &member.key + &authority.own().certificate)
    });
    std::fs::write(file.with_extension("pem"), pem.expect("certificates can be issued")).expect("it can be written");
    let file = file.display().to_string();
    for setting in settings().filter(|setting| setting.name != "config") {
        let (value, others) = another(setting, &file);
        // A provider and its config do nothing alone, nor does a part of what encryption needs.
        let halves = ["auth.", "http.cert", "http.key", "cluster.peer"];
        let is_half = halves.iter().any(|half| setting.name.starts_with(half)) && !others.is_empty();
        let others: Vec<(String, String)> = others.into_iter().map(|(flag, value)| (flag.to_owned(), value)).collect();
        let without = if is_half { with(&[]) } else { with(&others) };
        let mut flags = others;
        flags.push((setting.flag(), value.clone()));
        // The default tenant shows where a token names none.
        if setting.name == "auth.defaultTenant" {
            assert!(with(&flags).contains("acme"));
        }
        assert_ne!(with(&flags), without, "{} = {value} changes nothing", setting.name);
    }
}

/// Every setting can be given in each of the ways, under the names that the table derives.
#[test]
fn every_setting_is_read_from_everywhere() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let secret = folder.path().join("config.json");
    std::fs::write(&secret, "\"a-long-enough-token\"").expect("it can be written");
    let secret = secret.display().to_string();
    for setting in settings().filter(|setting| setting.name != "config") {
        let (value, _) = another(setting, &secret);
        let origin = |inputs: &Inputs| {
            let reading = inputs.read();
            assert_eq!(reading.problems().0, Vec::<String>::new(), "{}", setting.name);
            let held = reading.values.get(setting.name);
            assert!(held.value.is_some());
            held.origin.clone()
        };
        let flags = vec![(setting.flag(), value.clone())];
        assert_eq!(origin(&Inputs { flags, ..Inputs::default() }), Origin::Flag(setting.flag()));
        let direct = if setting.kind.is_secret() { "\"a-long-enough-token\"".to_owned() } else { value.clone() };
        let environment = vec![(setting.variable(), direct.clone().into())];
        assert_eq!(origin(&Inputs { environment, ..Inputs::default() }), Origin::Environment(setting.variable()));
        if let (Some(variable), Some(key)) = (setting.file_variable(), setting.file_key()) {
            let environment = vec![(variable.clone(), value.clone().into())];
            assert_eq!(origin(&Inputs { environment, ..Inputs::default() }), Origin::Environment(variable));
            let file = write(&folder, "by_file.yaml", &format!("{key}: {value}"));
            let flags = vec![("config".to_owned(), file.clone())];
            assert_eq!(origin(&Inputs { flags, ..Inputs::default() }), Origin::File(file.into(), 1));
        }
        let file = write(&folder, "direct.yaml", &format!("# first\n{}: '{direct}'", setting.name));
        let flags = vec![("config".to_owned(), file.clone())];
        assert_eq!(origin(&Inputs { flags, ..Inputs::default() }), Origin::File(file.into(), 2));
    }
}

fn write(folder: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).expect("it can be written");
    path.display().to_string()
}

/// The template as it is changes nothing, and with all its comments taken away it says what holds anyway.
#[test]
fn the_template_holds_the_defaults() {
    let template = show::template();
    let folder = tempfile::tempdir().expect("a folder can be made");
    let read = |text: &str| {
        let file = write(&folder, "codeq.yaml", text);
        let flags = vec![("config".to_owned(), file)];
        let reading = Inputs { flags, ..Inputs::default() }.read();
        assert_eq!(reading.problems().0, Vec::<String>::new());
        reading
    };
    let origins = |text: &str| {
        let reading = read(text);
        let of = |setting: &'static Setting| (setting.name, reading.values.get(setting.name).origin.clone());
        settings().filter(|setting| setting.name != "config").map(of).collect::<BTreeMap<_, _>>()
    };
    assert!(origins(&template).values().all(|origin| *origin == Origin::Default));
    let setting_of = |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).map(str::to_owned);
    let filled: Vec<String> = template.lines().map(|line| setting_of(line).unwrap_or_else(|| line.into())).collect();
    let filled = filled.join("\n");
    for (name, origin) in origins(&filled) {
        let default = server::config::table::setting(name).expect("it is in the table").default;
        assert_eq!(matches!(origin, Origin::File(..)), matches!(default, Default::Is(_)), "{name}");
    }
    assert_eq!(show::table(&read(&filled).values, false).lines().skip(1).collect::<Vec<_>>(), {
        let shown = show::table(&Inputs::default().read().values, false);
        shown.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    });
}

/// What is shown names every setting, and of a secret only that it is set.
#[test]
fn secrets_are_never_shown() {
    let secret = ("CODEQ_AUTH_PRODUCER_CONFIG".to_owned(), "\"hidden-token\"".into());
    let inputs = Inputs { environment: vec![secret], ..Inputs::default() };
    let shown = show::table(&inputs.read().values, true);
    assert_eq!(shown.lines().count(), settings().count());
    let line = shown.lines().find(|line| line.starts_with("auth.producer.config ")).expect("every setting has a line");
    assert!(line.contains(" set ") && line.ends_with("env CODEQ_AUTH_PRODUCER_CONFIG"), "{line}");
    assert!(!shown.contains("hidden"));
}
