//! Where the nodes of a development cluster reach each other. It is kept beside their directories: members find each other at the next start
//! only where they were.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use anyhow::{Context, Result};

/// From a node's HTTP port to its port for peers, where that is free to choose.
const OFFSET: u16 = 10_000;

/// The peer addresses of nodes 1, 2, … with these HTTP ports: those of the last start, and new ones for new nodes.
///
/// # Errors
/// The file cannot be read or written, or this machine has no free port.
pub(super) fn addresses(file: &Path, http: &[u16], chosen: bool) -> Result<Vec<SocketAddr>> {
    let shown = file.display();
    let mut addresses = match std::fs::read_to_string(file) {
        Ok(text) => read(&text).with_context(|| format!("{shown} is not a list of addresses, one in a line"))?,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(cause) => return Err(cause).with_context(|| format!("cannot read {shown}")),
    };
    let known = addresses.len();
    for port in http.iter().skip(known) {
        let port = if chosen { port.checked_add(OFFSET).unwrap_or_else(|| port - OFFSET) } else { free_port()? };
        addresses.push(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    if addresses.len() > known {
        let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
        std::fs::write(file, text).with_context(|| format!("cannot write {shown}"))?;
    }
    Ok(addresses)
}

fn read(text: &str) -> Result<Vec<SocketAddr>, std::net::AddrParseError> {
    text.lines().map(str::parse).collect()
}

/// A port that nobody listened on a moment ago.
///
/// # Errors
/// There is none.
pub(super) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("this machine has no free port")?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was chosen once stays, whatever the HTTP ports are then; new nodes get new addresses.
    #[test]
    fn addresses_stay() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let file = folder.path().join("peers");
        let ports = |http: &[u16], chosen| {
            let addresses = addresses(&file, http, chosen).expect("the file can be written");
            addresses.iter().map(SocketAddr::port).collect::<Vec<_>>()
        };
        assert_eq!(ports(&[8080, 60_000], true), [18_080, 50_000]);
        assert_eq!(ports(&[9000, 9001, 9002], true), [18_080, 50_000, 19_002]);
        let four = ports(&[1, 2, 3, 4], false);
        assert_eq!(four[..3], [18_080, 50_000, 19_002]);
        assert_ne!(four[3], 10_004);
        std::fs::write(&file, "here\n").expect("it can be written");
        assert!(addresses(&file, &[8080], true).is_err());
    }
}
