//! `codeq tls init`: an authority of one's own, certificates for each node, and for clients.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use tls::{Authority, Issued, Usage, Validity};

use crate::output;

/// An authority holds for ten years, a certificate for one; both from yesterday on, since clocks differ.
const AUTHORITY: Validity = Validity { from: -1, to: 3_650 };
const CERTIFICATE: Validity = Validity { from: -1, to: 365 };

/// Nodes, and clients, in one call.
const NAMES_MAX: usize = 64;

/// By what commands on a node's own machine reach it.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

#[derive(Subcommand)]
pub(crate) enum TlsCommand {
    /// Makes an authority, unless the directory has one, and certificates with their keys: two for each node, of which one is for its peers and
    /// one for HTTPS, and one for each client. Nothing is overwritten.
    ///
    /// Prints the settings of each node, and what a client gives to commands. A node needs its own certificates, its own keys and ca.crt; ca.key
    /// belongs on no node: whoever has it can make members.
    #[command(
        after_help = "Example:\n  codeq tls init --nodes node-a=10.0.0.1,node-b=10.0.0.2,node-c=10.0.0.3 --clients ann --out certificates"
    )]
    Init {
        /// The nodes' names (cluster.nodeId), separated by commas. What clients call a node by, if not by its name, stands behind it.
        #[arg(long, value_name = "NAME[=HOST],…", value_delimiter = ',', required_unless_present = "clients")]
        nodes: Vec<String>,
        /// The names of clients that are to show a certificate, separated by commas.
        #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
        clients: Vec<String>,
        /// The directory, which is made if it is missing.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

pub(crate) fn run(command: &TlsCommand) -> ExitCode {
    let TlsCommand::Init { nodes, clients, out } = command;
    match init(nodes, clients, out) {
        Ok(text) => {
            output::data(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            output::note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// A certificate that is asked for: the name of its files, what it is for, and whose it is.
struct Wanted<'a> {
    stem: String,
    usage: Usage,
    names: Vec<&'a str>,
}

fn init(nodes: &[String], clients: &[String], out: &Path) -> Result<String> {
    if nodes.len() > NAMES_MAX || clients.len() > NAMES_MAX {
        bail!("at most {NAMES_MAX} nodes and {NAMES_MAX} clients at a time");
    }
    let nodes: Vec<(&str, Option<&str>)> = nodes
        .iter()
        .map(|node| node.split_once('=').map_or((&**node, None), |(name, host)| (name, Some(host))))
        .collect();
    let wanted = wanted(&nodes, clients)?;
    let file = |name: &str| out.join(name);
    let files = |stem: &str| (file(&format!("{stem}.crt")), file(&format!("{stem}.key")));
    let taken = wanted.iter().flat_map(|one| <[PathBuf; 2]>::from(files(&one.stem)));
    if let Some(taken) = taken.into_iter().find(|path| path.exists()) {
        bail!("{} is there already, and nothing is overwritten; nothing was made", taken.display());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(out)
        .with_context(|| format!("cannot make {}", out.display()))?;
    let (certificate, key) = files("ca");
    let authority = match (certificate.exists(), key.exists()) {
        (true, true) => {
            let read =
                |path: &Path| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
            Authority::read(&read(&certificate)?, &read(&key)?).with_context(|| format!("{}", certificate.display()))?
        }
        (false, false) => {
            let authority = Authority::new("codeq cluster", AUTHORITY)?;
            write_both(authority.own(), &certificate, &key)?;
            authority
        }
        _ => bail!("{} has one of ca.crt and ca.key without the other", out.display()),
    };
    for Wanted { stem, usage, names } in &wanted {
        let issued = authority.issue(names, *usage, CERTIFICATE).with_context(|| stem.clone())?;
        let (own, own_key) = files(stem);
        write_both(&issued, &own, &own_key)?;
    }
    let shown = |stem: &str| {
        let (own, own_key) = files(stem);
        (own.display().to_string(), own_key.display().to_string())
    };
    let ca = certificate.display();
    let mut lines = Vec::new();
    for (name, _) in nodes {
        let ((peer, peer_key), (http, http_key)) = (shown(name), shown(&of_https(name)));
        let mut line = format!(
            "{name}: --node-id {name} --peer-cert {peer} --peer-key {peer_key} --peer-ca {ca} --http-cert {http} --http-key {http_key}"
        );
        if !clients.is_empty() {
            line.push_str(&format!(" --http-client-ca {ca}"));
        }
        lines.push(line);
    }
    for name in clients {
        let (own, own_key) = shown(name);
        lines.push(format!("{name}: --ca {ca} --cert {own} --key {own_key}"));
    }
    Ok(lines.join("\n"))
}

/// The name of the files of a node's certificate for HTTPS.
fn of_https(node: &str) -> String {
    format!("{node}.https")
}

fn wanted<'a>(nodes: &[(&'a str, Option<&'a str>)], clients: &'a [String]) -> Result<Vec<Wanted<'a>>> {
    let mut wanted = Vec::new();
    for (name, host) in nodes {
        let mut names = vec![*name];
        names.extend(host.filter(|host| host != name));
        names.extend(LOCAL.into_iter().filter(|local| Some(*local) != *host && local != name));
        wanted.push(Wanted { stem: (*name).into(), usage: Usage::Member, names: vec![name] });
        wanted.push(Wanted { stem: of_https(name), usage: Usage::Server, names });
    }
    wanted.extend(clients.iter().map(|name| Wanted { stem: name.clone(), usage: Usage::Client, names: vec![name] }));
    for (place, Wanted { stem, names, .. }) in wanted.iter().enumerate() {
        // The authority's own files are called so.
        if !base::is_node_name(names[0]) || stem == "ca" {
            bail!("{:?} is no name: 1 to 63 of A-Z, a-z, 0-9, . _ and -, and not ca", names[0]);
        }
        if wanted[..place].iter().any(|one| one.stem == *stem) {
            bail!("two certificates would be called {stem}");
        }
    }
    Ok(wanted)
}

/// The key first: a certificate is there only when its key is.
fn write_both(issued: &Issued, certificate: &Path, key: &Path) -> Result<()> {
    for (path, text, mode) in [(key, &issued.key, 0o600), (certificate, &issued.certificate, 0o644)] {
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(mode).open(path);
        let mut file = file.with_context(|| format!("cannot make {}", path.display()))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
    }
    Ok(())
}
