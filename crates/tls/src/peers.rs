//! Connections between members: both sides show a certificate of the cluster's own authority.

use std::io::{Error, ErrorKind};
use std::sync::{Arc, RwLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::certificates::{Facts, Fingerprint, Identity, Unusable, authorities, provider, unusable};

/// What a member's connections are made with, each in PEM form.
#[derive(Clone, Copy)]
pub struct PeerPem<'a> {
    /// Its certificate, first, and those that vouch for it.
    pub certificate: &'a [u8],
    /// The certificate's key.
    pub key: &'a [u8],
    /// Who vouches for members; several while one takes the place of another.
    pub authorities: &'a [u8],
}

/// What a member's connections are made with from now on. Both sides must show a certificate for servers and clients; whose it is, is for
/// the caller to compare with what the other side says.
pub struct PeerTls {
    current: RwLock<Arc<Current>>,
}

struct Current {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    facts: Facts,
    fingerprints: Vec<Fingerprint>,
}

impl std::fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerTls").field("facts", &self.facts()).finish_non_exhaustive()
    }
}

impl PeerTls {
    /// Checks what is given.
    ///
    /// # Errors
    /// It does not go together, or is not a member's.
    pub fn new(pem: PeerPem<'_>) -> Result<PeerTls, Unusable> {
        Ok(PeerTls { current: RwLock::new(Arc::new(Current::new(pem)?)) })
    }

    /// Takes this for connections from now on. Those that are open stay.
    ///
    /// # Errors
    /// It does not go together, or is not a member's; nothing has changed.
    pub fn replace(&self, pem: PeerPem<'_>) -> Result<(), Unusable> {
        let next = Arc::new(Current::new(pem)?);
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

    /// Of the authorities, at least one.
    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        self.current().fingerprints.clone()
    }

    /// Makes an encrypted connection of one that was dialled.
    ///
    /// # Errors
    /// Why not. What ails the own certificate is known only with the first bytes that are read.
    pub async fn connect(&self, stream: TcpStream) -> std::io::Result<(TlsStream<TcpStream>, Facts)> {
        // Who is dialled says its name itself: an address says nothing of it.
        let name = ServerName::IpAddress(stream.peer_addr()?.ip().into());
        let stream = self.current().connector.connect(name, stream).await?;
        facts_of_member(stream.into())
    }

    /// Makes an encrypted connection of one that was accepted.
    ///
    /// # Errors
    /// Why not.
    pub async fn accept(&self, stream: TcpStream) -> std::io::Result<(TlsStream<TcpStream>, Facts)> {
        let acceptor = self.current().acceptor.clone();
        match acceptor.accept(stream).into_fallible().await {
            Ok(stream) => facts_of_member(stream.into()),
            Err((error, stream)) => {
                listen_on(stream).await;
                Err(error)
            }
        }
    }
}

/// Whoever is refused has mostly said more already. To close before that has come would take back the alert that says why.
async fn listen_on(mut stream: TcpStream) {
    let more = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(LISTEN_BYTES), &mut tokio::io::sink()).await
    };
    // It may have gone, or not go at all.
    let _ = tokio::time::timeout(LISTEN_TIME, more).await;
}

/// How much, and for how long.
const LISTEN_BYTES: u64 = 64 << 10;
const LISTEN_TIME: std::time::Duration = std::time::Duration::from_millis(250);

fn facts_of_member(stream: TlsStream<TcpStream>) -> std::io::Result<(TlsStream<TcpStream>, Facts)> {
    let (stream, facts) = facts_of(stream)?;
    if !facts.is_of_a_member() {
        let text = "it shows a certificate that is none of a member: that is for servers and for clients";
        return Err(Error::new(ErrorKind::PermissionDenied, text));
    }
    Ok((stream, facts))
}

/// What the certificate of the other side says.
pub(crate) fn facts_of(stream: TlsStream<TcpStream>) -> std::io::Result<(TlsStream<TcpStream>, Facts)> {
    let invalid = |text: &str| Error::new(ErrorKind::InvalidData, text.to_owned());
    let shown = stream.get_ref().1.peer_certificates().and_then(|shown| shown.first());
    let facts = Facts::of(shown.ok_or_else(|| invalid("it shows no certificate"))?);
    let facts = facts.map_err(|Unusable(text)| invalid(&text))?;
    Ok((stream, facts))
}

impl Current {
    fn new(pem: PeerPem<'_>) -> Result<Current, Unusable> {
        let Identity { chain, key, facts } = Identity::read(pem.certificate, pem.key)?;
        if !facts.is_of_a_member() {
            return Err(unusable("a member's certificate is for servers and for clients, by its extended key usage"));
        }
        let (roots, fingerprints) = authorities(pem.authorities)?;
        let provider = provider();
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone());
        let clients = clients.build().map_err(unusable)?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(unusable)?;
        // Every connection is judged anew.
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyMember::new(roots, &provider)))
            .with_client_auth_cert(chain, key)
            .map_err(unusable)?;
        client.resumption = Resumption::disabled();
        Ok(Current {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            connector: TlsConnector::from(Arc::new(client)),
            facts,
            fingerprints,
        })
    }
}

/// Accepts whoever an authority vouches for, at whatever address: a member is known by what it says, which is compared with its
/// certificate afterwards.
#[derive(Debug)]
struct AnyMember {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyMember {
    fn new(roots: Arc<RootCertStore>, provider: &CryptoProvider) -> AnyMember {
        AnyMember { roots, algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for AnyMember {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&certificate, &self.roots, intermediates, now, self.algorithms.all)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
