//! Connections of clients: the server shows a certificate, and a client does where it is asked for one.

use std::io::{Error, ErrorKind};
use std::sync::{Arc, RwLock};

use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::certificates::{Facts, Identity, Unusable, authorities, provider, unusable};
use crate::peers::facts_of;

/// What a server's connections are made with from now on.
pub struct ServerTls {
    current: RwLock<Arc<Current>>,
}

struct Current {
    acceptor: TlsAcceptor,
    asks: bool,
    facts: Facts,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("facts", &self.facts()).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Checks what is given, in PEM form. With `authorities` every client must show a certificate that one of them vouches for, and that
    /// is not also one of a server or a member.
    ///
    /// # Errors
    /// It does not go together.
    pub fn new(certificate: &[u8], key: &[u8], authorities: Option<&[u8]>) -> Result<ServerTls, Unusable> {
        Ok(ServerTls { current: RwLock::new(Arc::new(Current::new(certificate, key, authorities)?)) })
    }

    /// Takes this for connections from now on. Those that are open stay.
    ///
    /// # Errors
    /// It does not go together; nothing has changed.
    pub fn replace(&self, certificate: &[u8], key: &[u8], authorities: Option<&[u8]>) -> Result<(), Unusable> {
        let next = Arc::new(Current::new(certificate, key, authorities)?);
        *self.current.write().expect("nothing panics while it holds this lock") = next;
        Ok(())
    }

    fn current(&self) -> Arc<Current> {
        self.current.read().expect("nothing panics while it holds this lock").clone()
    }

    /// What the own certificate says.
    pub fn facts(&self) -> Facts {
        self.current().facts.clone()
    }

    /// Makes an encrypted connection of one that was accepted.
    ///
    /// # Errors
    /// Why not.
    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let current = self.current();
        let stream: TlsStream<TcpStream> = current.acceptor.accept(stream).await?.into();
        if !current.asks {
            return Ok(stream);
        }
        let (stream, facts) = facts_of(stream)?;
        if facts.serves {
            return Err(Error::new(ErrorKind::PermissionDenied, "a server's certificate is none of a client"));
        }
        Ok(stream)
    }
}

impl Current {
    fn new(certificate: &[u8], key: &[u8], clients: Option<&[u8]>) -> Result<Current, Unusable> {
        let Identity { chain, key, facts } = Identity::read(certificate, key)?;
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?;
        let builder = match clients {
            Some(pem) => {
                let (roots, _) = authorities(pem)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                builder.with_client_cert_verifier(verifier.map_err(unusable)?)
            }
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Current { acceptor: TlsAcceptor::from(Arc::new(config)), asks: clients.is_some(), facts })
    }
}

/// What a client's connections are made with.
#[derive(Clone)]
pub struct ClientTls(TlsConnector);

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Trusts servers that one of these authorities vouches for, and shows the certificate with its key if asked; all in PEM form.
    ///
    /// # Errors
    /// It does not go together.
    pub fn new(trusted: &[u8], own: Option<(&[u8], &[u8])>) -> Result<ClientTls, Unusable> {
        let (roots, _) = authorities(trusted)?;
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_root_certificates(roots);
        let config = match own {
            Some((certificate, key)) => {
                let Identity { chain, key, .. } = Identity::read(certificate, key)?;
                builder.with_client_auth_cert(chain, key).map_err(unusable)?
            }
            None => builder.with_no_client_auth(),
        };
        Ok(ClientTls(TlsConnector::from(Arc::new(config))))
    }

    /// Makes an encrypted connection of one that was dialled. `host`: the name or address that the server's certificate must have.
    ///
    /// # Errors
    /// Why not. That the server refuses the own certificate is known only with the first bytes that are read.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let bad = |_| Error::new(ErrorKind::InvalidInput, format!("{host} is no name that a certificate could have"));
        let name = ServerName::try_from(host.to_owned()).map_err(bad)?;
        Ok(self.0.connect(name, stream).await?.into())
    }
}
