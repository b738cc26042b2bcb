//! Where a request comes from.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// An address, over the port for clients.
    Address(IpAddr),
    /// The socket in the data directory: whoever may use that directory.
    Socket,
}

impl Source {
    /// The address to which what it does is put down.
    pub(crate) fn address(self) -> IpAddr {
        match self {
            Source::Address(address) => address,
            Source::Socket => Ipv4Addr::LOCALHOST.into(),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Address(address) => address.fmt(f),
            Source::Socket => f.write_str("the local socket"),
        }
    }
}
