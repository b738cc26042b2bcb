//! `codeq tls init`: an authority of one's own, and a certificate for each node.

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

/// Nodes in one call.
const NODES_MAX: usize = 64;

#[derive(Subcommand)]
pub(crate) enum TlsCommand {
    /// Makes an authority, unless the directory has one, and a certificate with its key for each node. Nothing is overwritten.
    ///
    /// Prints the settings of each node. A node needs its own certificate, its own key and ca.crt; ca.key belongs on no node: whoever has it
    /// can make members.
    Init {
        /// The nodes' names (cluster.nodeId), separated by commas.
        #[arg(long, value_name = "NAME,…", value_delimiter = ',', required = true)]
        nodes: Vec<String>,
        /// The directory, which is made if it is missing.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

pub(crate) fn run(command: &TlsCommand) -> ExitCode {
    let TlsCommand::Init { nodes, out } = command;
    match init(nodes, out) {
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

fn init(nodes: &[String], out: &Path) -> Result<String> {
    if nodes.len() > NODES_MAX {
        bail!("at most {NODES_MAX} nodes at a time");
    }
    for (place, name) in nodes.iter().enumerate() {
        // The authority's own files are called so.
        if !server::config::table::is_node_id(name) || name == "ca" {
            bail!("{name:?} is no name for a node: 1 to 63 of A-Z, a-z, 0-9, . _ and -, and not ca");
        }
        if nodes[..place].contains(name) {
            bail!("{name} stands there twice");
        }
    }
    let file = |name: &str| out.join(name);
    let taken = nodes.iter().flat_map(|name| [file(&format!("{name}.crt")), file(&format!("{name}.key"))]);
    if let Some(taken) = taken.into_iter().find(|path| path.exists()) {
        bail!("{} is there already, and nothing is overwritten; nothing was made", taken.display());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(out)?;
    let (certificate, key) = (file("ca.crt"), file("ca.key"));
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
    let mut text = String::new();
    for name in nodes {
        let issued = authority.issue(&[name], Usage::Member, CERTIFICATE).with_context(|| name.clone())?;
        let (own, own_key) = (file(&format!("{name}.crt")), file(&format!("{name}.key")));
        write_both(&issued, &own, &own_key)?;
        text.push_str(&format!(
            "{name}: --node-id {name} --peer-cert {} --peer-key {} --peer-ca {}\n",
            own.display(),
            own_key.display(),
            certificate.display()
        ));
    }
    Ok(text.trim_end().into())
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
