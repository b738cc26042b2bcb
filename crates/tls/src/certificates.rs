//! Certificates and keys as files have them, and what is read from them.

use std::fmt;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;

/// Certificates in one file; more are refused.
const CERTIFICATES_MAX: usize = 32;

/// Why a certificate, a key or an authority cannot be used, in words. No key is repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable(pub String);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

pub(crate) fn unusable(text: impl fmt::Display) -> Unusable {
    Unusable(text.to_string())
}

/// SHA-256 of a certificate; shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its DNS names.
    pub names: Vec<String>,
    /// It says that it is for servers.
    pub serves: bool,
    /// It says that it is for clients.
    pub asks: bool,
    /// When it ends, in seconds since 1970.
    pub not_after: i64,
}

impl Facts {
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Facts, Unusable> {
        let (_, read) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|_| unusable("a certificate does not read as one"))?;
        let twice = |_| unusable("a certificate says something twice");
        let names = read.subject_alternative_name().map_err(twice)?.map_or_else(Vec::new, |found| {
            let dns = |name: &GeneralName<'_>| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            };
            found.value.general_names.iter().filter_map(dns).collect()
        });
        let usage = read.extended_key_usage().map_err(twice)?.map(|found| found.value);
        Ok(Facts {
            names,
            serves: usage.is_some_and(|usage| usage.server_auth),
            asks: usage.is_some_and(|usage| usage.client_auth),
            not_after: read.validity().not_after.timestamp(),
        })
    }

    /// Whether it is a member's certificate: for servers and clients, and says so.
    pub fn is_of_a_member(&self) -> bool {
        self.serves && self.asks
    }
}

/// A certificate with those that vouch for it, and its key.
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) facts: Facts,
}

impl Identity {
    pub(crate) fn read(certificate: &[u8], key: &[u8]) -> Result<Identity, Unusable> {
        let chain = certificates(certificate)?;
        let facts = Facts::of(chain.first().ok_or_else(|| unusable("there is no certificate in it"))?)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| unusable("there is no private key in it"))?;
        Ok(Identity { chain, key, facts })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let mut found = Vec::new();
    for one in CertificateDer::pem_slice_iter(pem) {
        found.push(one.map_err(|_| unusable("it is not in PEM form"))?);
        if found.len() > CERTIFICATES_MAX {
            return Err(unusable(format!("it has more than {CERTIFICATES_MAX} certificates")));
        }
    }
    Ok(found)
}

/// Who is trusted to vouch for others, at least one, and the fingerprint of each.
pub(crate) fn authorities(pem: &[u8]) -> Result<(Arc<RootCertStore>, Vec<Fingerprint>), Unusable> {
    let found = certificates(pem)?;
    if found.is_empty() {
        return Err(unusable("there is no certificate in it"));
    }
    let fingerprints = found.iter().map(|one| Fingerprint(Sha256::digest(one).into())).collect();
    let mut store = RootCertStore::empty();
    for one in found {
        store.add(one).map_err(|error| unusable(format!("a certificate cannot vouch for others: {error}")))?;
    }
    Ok((Arc::new(store), fingerprints))
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
