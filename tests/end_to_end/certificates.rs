//! Certificates of a test's own, and TLS clients that trust them.

use std::fs;
use std::net::TcpStream;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use crate::server::Server;
use crate::store_folder::StoreFolder;
use crate::stream::Stream;

/// An authority and what it signs.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
pub struct Signed {
    pub certificate: String,
    pub key: String,
}

/// The files that a server is given.
pub struct Files {
    folder: StoreFolder,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("it signs itself"))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for this name that ended in 2020 if it has `ended`.
    pub fn sign(&self, name: &str, ended: bool) -> Signed {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a valid name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if ended {
            (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
        }
        let certificate = params.signed_by(&key, &self.0).expect("it is signed").pem();
        Signed { certificate, key: key.serialize_pem() }
    }

    /// A client that trusts this authority, and shows `own` if there is one.
    pub fn client(&self, versions: &[&'static SupportedProtocolVersion], own: Option<&Signed>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("it is an authority");
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_protocol_versions(versions).expect("known versions").with_root_certificates(roots);
        let Some(own) = own else { return builder.with_no_client_auth() };
        let certificate = CertificateDer::from_pem_slice(own.certificate.as_bytes()).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("PEM");
        builder.with_client_auth_cert(vec![certificate], key).expect("they belong together")
    }
}

impl Files {
    pub fn new(signed: &Signed) -> Self {
        let files = Self { folder: StoreFolder::new() };
        files.replace(signed);
        files
    }

    /// Other files take the names, as certbot does it.
    pub fn replace(&self, signed: &Signed) {
        self.put("cert.pem", &signed.certificate);
        self.put("key.pem", &signed.key);
    }

    pub fn put(&self, name: &str, text: &str) {
        let (new, path) = (self.folder.file("new"), self.folder.file(name));
        fs::write(&new, text).expect("the folder can be written");
        fs::rename(new, path).expect("the folder can be written");
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.text(name)
    }

    /// A server with these files.
    pub fn serve(&self, env: &[(&str, &str)]) -> Server {
        let (certificate, key) = (self.path("cert.pem"), self.path("key.pem"));
        let mut all = vec![("CHAT_TLS_CERT", certificate.as_str()), ("CHAT_TLS_KEY", key.as_str())];
        all.extend(env);
        Server::start_secure(&all)
    }
}

/// TLS over a socket, whose handshake happens with the first byte.
pub fn secure(stream: TcpStream, config: &Arc<ClientConfig>) -> Stream {
    let name = ServerName::try_from("localhost").expect("a name");
    let conn = ClientConnection::new(Arc::clone(config), name).expect("a configuration that works");
    Stream::Secure(Box::new(StreamOwned::new(conn, stream)))
}
