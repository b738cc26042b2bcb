//! Certificates and encrypted connections. Alone in naming rustls: everybody else hands in PEM and gets a stream.
//!
//! TLS 1.3 only, and only the authorities that are named: what the system trusts is never asked. What a connection is made with can be
//! replaced at any time; connections that are open go on with what they were made with.
//!
//! Which certificate works where is in its extended key usage:
//!
//! | certificate | usage | works on |
//! |---|---|---|
//! | of a member | server and client | the port for peers, both ways |
//! | of a server | server | the port for clients, as its own |
//! | of a client | client | the port for clients, where it asks for one |

mod certificates;
mod clients;
mod issue;
mod peers;

pub use certificates::{Facts, Fingerprint, Unusable};
pub use clients::{ClientTls, ServerTls};
pub use issue::{Authority, Issued, Usage, Validity};
pub use peers::{PeerPem, PeerTls};
pub use rustls::Error;
pub use tokio_rustls::TlsStream;
