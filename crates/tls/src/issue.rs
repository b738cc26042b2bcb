//! Issuing certificates: an authority of one's own, and what it vouches for.

use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::certificates::{Unusable, unusable};

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// A member: the port for peers.
    Member,
    /// A server: the port for clients.
    Server,
    /// A client of it.
    Client,
}

/// When a certificate holds, in days from now; less than 0: days ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first day.
    pub from: i64,
    /// The last day.
    pub to: i64,
}

/// A certificate and its key, in PEM form.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key: a secret.
    pub key: String,
}

/// Somebody who vouches for certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    own: Issued,
}

impl Authority {
    /// A new one, which vouches for itself. A part of its key's hash is added to its name: whoever trusts one of two that are called alike must be
    /// told that the other is unknown, and not that a signature is wrong.
    ///
    /// # Errors
    /// The operating system gives no random numbers.
    pub fn new(name: &str, validity: Validity) -> Result<Authority, Unusable> {
        let key = KeyPair::generate().map_err(unusable)?;
        let hash = Sha256::digest(key.public_key_raw());
        let hash = HEXLOWER.encode(&hash[..4]);
        let mut params = params(&format!("{name} {hash}"), validity)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(unusable)?;
        let own = Issued { certificate: certificate.pem(), key: key.serialize_pem() };
        Ok(Authority { issuer: Issuer::new(params, key), own })
    }

    /// The one of this certificate and key, in PEM form.
    ///
    /// # Errors
    /// They are not an authority's.
    pub fn read(certificate: &str, key: &str) -> Result<Authority, Unusable> {
        let pair = KeyPair::from_pem(key).map_err(|_| unusable("there is no private key in it"))?;
        let issuer = Issuer::from_ca_cert_pem(certificate, pair).map_err(unusable)?;
        Ok(Authority { issuer, own: Issued { certificate: certificate.into(), key: key.into() } })
    }

    /// Its own certificate and key.
    pub fn own(&self) -> &Issued {
        &self.own
    }

    /// Vouches for a new key under these names or IP addresses, the first of which is the subject.
    ///
    /// # Errors
    /// A name is none that a certificate can have.
    pub fn issue(&self, names: &[&str], usage: Usage, validity: Validity) -> Result<Issued, Unusable> {
        let key = KeyPair::generate().map_err(unusable)?;
        let mut params = params(names.first().copied().unwrap_or_default(), validity)?;
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*name).try_into().map_err(unusable)?),
            });
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match usage {
            Usage::Member => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(unusable)?;
        Ok(Issued { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn params(name: &str, validity: Validity) -> Result<CertificateParams, Unusable> {
    let mut params = CertificateParams::new(Vec::new()).map_err(unusable)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    params.not_before = now + Duration::days(validity.from);
    params.not_after = now + Duration::days(validity.to);
    Ok(params)
}
