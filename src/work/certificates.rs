//! The files of TLS, read and checked.
//!
//! Owns what is asked of them: certificates and a key in PEM that belong together, and a say about when they end. Knows
//! no connection; what becomes of [`Certificates`] is the business of [`reactor::tls`](crate::reactor::tls).

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, Error as TlsError, InconsistentKeys, RootCertStore, ServerConfig};

use crate::config::{CHAT_TLS_CERT, CHAT_TLS_CLIENT_CA, CHAT_TLS_KEY, TlsFiles, TlsVersion};
use crate::error::Error;
use crate::reactor::tls::Certificates;
use crate::wire::response::HttpDate;

/// How long before its end a certificate is warned of.
const ENDS_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);
/// 9999-12-31T23:59:59Z, which stands for a certificate without an end (RFC 5280, section 4.1.2.5).
const END_OF_TIME: Duration = Duration::from_secs(253_402_300_799);

/// A file, and what it is for.
#[derive(Clone, Copy)]
struct File<'a> {
    /// The key of the configuration that names it.
    key: &'static str,
    path: &'a Path,
    accepted: &'static str,
}

/// Certificates that can be used, and what an operator should know of them.
#[derive(Debug)]
pub struct Loaded {
    /// For the connections.
    pub certificates: Arc<Certificates>,
    /// When the certificate ends, if it says so in a way that is understood.
    pub ends: Option<Duration>,
    /// What is wrong with it though it can be used.
    pub warning: Option<String>,
}

impl Loaded {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// The first that cannot be used, and why.
    pub fn read(files: &TlsFiles) -> Result<Self, Error> {
        let provider = Arc::new(default_provider());
        let (certificate, key) = (File::certificate(files), File::key(files));
        let (chain, private) = (certificate.read_certificates()?, key.read_key()?);
        let (leaf, now) = (chain[0].clone(), SystemTime::now());
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let certified = certify(certificate, chain, key, private, &provider)?;
        let clients =
            files.client_authorities.as_deref().map(|path| read_authorities(File::authorities(path), &provider));
        let clients = clients.transpose()?;
        let system = |error: TlsError| certificate.fault(error.to_string());
        let versions: &[_] = match files.version_min {
            TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::Tls13 => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let builder = builder.with_protocol_versions(versions).map_err(system)?;
        let builder = match &clients {
            Some(clients) => builder.with_client_cert_verifier(Arc::clone(clients)),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A session is resumed by what its client keeps, so that nothing is kept here; the keys to it are new with each
        // reading, so that what was agreed under other certificates is not resumed.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Ticketer::new().map_err(system)?;
        config.send_tls13_tickets = 1;
        config.max_early_data_size = 0;
        let certificates = Arc::new(Certificates { config: Arc::new(config), clients });
        let judge = |time| judge(&leaf, time, &provider);
        let (ends, warning) = (ends(judge), warning(judge, now));
        Ok(Self { certificates, ends, warning })
    }

    /// When the certificate ends, in words.
    pub fn end_text(&self) -> String {
        self.ends.map_or_else(|| "unknown".to_owned(), date)
    }
}

impl<'a> File<'a> {
    fn certificate(files: &'a TlsFiles) -> Self {
        let accepted = "a PEM file with the certificate, and behind it those that it is signed with";
        Self { key: CHAT_TLS_CERT.key, path: &files.certificate, accepted }
    }

    fn key(files: &'a TlsFiles) -> Self {
        let accepted = "a PEM file with the private key of the certificate in PKCS #8, PKCS #1 or SEC 1, not encrypted: RSA \
                        of 2048 to 8192 bits, ECDSA P-256 or P-384, or Ed25519";
        Self { key: CHAT_TLS_KEY.key, path: &files.key, accepted }
    }

    fn authorities(path: &'a Path) -> Self {
        let accepted = "a PEM file with the certificates of those who sign the ones of clients";
        Self { key: CHAT_TLS_CLIENT_CA.key, path, accepted }
    }

    fn read(self) -> Result<Vec<u8>, Error> {
        fs::read(self.path).map_err(|error| self.fault(format!("it cannot be read: {error}")))
    }

    fn read_certificates(self) -> Result<Vec<CertificateDer<'static>>, Error> {
        let text = self.read()?;
        let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| self.fault(format!("it is not PEM: {error}")))?;
        if chain.is_empty() { Err(self.fault("it has no certificate")) } else { Ok(chain) }
    }

    fn read_key(self) -> Result<PrivateKeyDer<'static>, Error> {
        let text = self.read()?;
        PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
            let is_encrypted = memchr::memmem::find(&text, b"ENCRYPTED").is_some();
            self.fault(match error {
                _ if is_encrypted => "the private key is encrypted".to_owned(),
                rustls::pki_types::pem::Error::NoItemsFound => "it has no private key".to_owned(),
                error => format!("it is not PEM: {error}"),
            })
        })
    }

    fn fault(self, reason: impl Into<String>) -> Error {
        let Self { key, path, accepted } = self;
        Error::NamedFile { key, path: path.to_owned(), reason: reason.into(), accepted }
    }
}

/// The certificate with its key, which have to belong together.
fn certify(
    certificate: File<'_>,
    chain: Vec<CertificateDer<'static>>,
    key: File<'_>,
    private: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Error> {
    let private = provider.key_provider.load_private_key(private);
    let private = private.map_err(|_| key.fault("the private key is of no kind that is supported"))?;
    let certified = CertifiedKey::new(chain, private);
    match certified.keys_match() {
        Ok(()) | Err(TlsError::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(TlsError::InconsistentKeys(_)) => {
            let (named, path) = (certificate.key, certificate.path.display());
            Err(key.fault(format!("it is not the key of the first certificate in {path} ({named})")))
        }
        Err(error) => Err(certificate.fault(format!("the certificate cannot be used: {error}"))),
    }
}

fn read_authorities(file: File<'_>, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    for authority in file.read_certificates()? {
        let added = roots.add(authority);
        added.map_err(|error| file.fault(format!("it has an authority that cannot be used: {error}")))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    builder.allow_unauthenticated().build().map_err(|error| file.fault(error.to_string()))
}

/// What is said of the certificate at a time. Without an authority there is no more to it than its validity.
fn judge(leaf: &CertificateDer<'_>, time: Duration, provider: &CryptoProvider) -> Option<CertificateError> {
    let parsed = ParsedCertificate::try_from(leaf).ok()?;
    let (nobody, time) = (RootCertStore::empty(), UnixTime::since_unix_epoch(time));
    let algorithms = provider.signature_verification_algorithms.all;
    match verify_server_cert_signed_by_trust_anchor(&parsed, &nobody, &[], time, algorithms) {
        Err(TlsError::InvalidCertificate(error)) => Some(error),
        _ => None,
    }
}

fn ends(judge: impl Fn(Duration) -> Option<CertificateError>) -> Option<Duration> {
    match judge(END_OF_TIME)? {
        CertificateError::ExpiredContext { not_after, .. } => Some(Duration::from_secs(not_after.as_secs())),
        _ => None,
    }
}

fn warning(judge: impl Fn(Duration) -> Option<CertificateError>, now: Duration) -> Option<String> {
    let date = |time: UnixTime| date(Duration::from_secs(time.as_secs()));
    match (judge(now), judge(now + ENDS_SOON)) {
        (Some(CertificateError::ExpiredContext { not_after, .. }), _) => {
            Some(format!("the certificate has ended: {}", date(not_after)))
        }
        (Some(CertificateError::NotValidYetContext { not_before, .. }), _) => {
            Some(format!("the certificate is not valid before {}", date(not_before)))
        }
        (_, Some(CertificateError::ExpiredContext { not_after, .. })) => {
            Some(format!("the certificate ends soon: {}", date(not_after)))
        }
        _ => None,
    }
}

fn date(time: Duration) -> String {
    HttpDate::from_unix_ms(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)).as_str().to_owned()
}
