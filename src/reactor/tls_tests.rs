//! The TLS of a thread, with clients driven by hand over wires that split bytes as they like.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, ClientConnection, Error, RootCertStore, SupportedProtocolVersion};

use super::io::{Input, Received};
use super::tls::{Certificates, Tls};
use crate::config::{TlsFiles, TlsVersion};
use crate::work::certificates::Loaded;

const SLOT: u32 = 3;
const POOL: usize = 1 << 20;
const BUFFER: usize = 64 * 1024;

/// An authority and what it signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate and its key, in PEM.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }
}

/// What a server is shown with: a certificate for `localhost`, and `clients` as authority of those of clients.
fn certificates(name: &str, authority: &Authority, clients: Option<&Authority>) -> Arc<Certificates> {
    let folder = std::env::temp_dir().join(format!("sizland-chat-tls-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let file = |name: &str, text: String| -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let (certificate, key) = authority.sign("localhost");
    let files = TlsFiles {
        certificate: file("certificate.pem", certificate),
        key: file("key.pem", key),
        client_authorities: clients.map(|clients| file("clients.pem", clients.0.pem())),
        version_min: TlsVersion::Tls12,
    };
    let loaded = Loaded::read(&files).unwrap();
    fs::remove_dir_all(folder).unwrap();
    loaded.certificates
}

/// Both directions between a client and its server.
#[derive(Default)]
struct Wire {
    to_server: VecDeque<u8>,
    to_client: VecDeque<u8>,
    /// The most that one read gives, and one write takes.
    step: usize,
    /// What the server's socket takes until it refuses.
    room: usize,
    is_ended: bool,
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.to_server.is_empty() && !self.is_ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let bytes = buffer.len().min(self.step).min(self.to_server.len());
        for (to, from) in buffer.iter_mut().zip(self.to_server.drain(..bytes)) {
            *to = from;
        }
        Ok(bytes)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.room);
        if taken == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.room -= taken;
        self.to_client.extend(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A server, and one client of it.
struct Pair {
    tls: Tls,
    wire: Wire,
    client: ClientConnection,
    buffer: Vec<u8>,
    /// What the server was given to read, and the client.
    heard: Vec<u8>,
    answered: Vec<u8>,
    is_certified: bool,
    /// How the server's side ended.
    end: Option<Received>,
}

impl Pair {
    fn new(certificates: &Arc<Certificates>, client: ClientConfig, step: usize) -> Self {
        let client = ClientConnection::new(Arc::new(client), ServerName::try_from("localhost").unwrap()).unwrap();
        Self {
            tls: Tls::new(Arc::clone(certificates), POOL),
            wire: Wire { step, room: usize::MAX, ..Wire::default() },
            client,
            buffer: vec![0; BUFFER],
            heard: Vec::new(),
            answered: Vec::new(),
            is_certified: false,
            end: None,
        }
    }

    /// Another client of the same server, which goes on in the same slot.
    fn reconnect(&mut self, client: &Arc<ClientConfig>) {
        self.tls.remove(SLOT);
        self.client = ClientConnection::new(Arc::clone(client), ServerName::try_from("localhost").unwrap()).unwrap();
        self.wire = Wire { step: usize::MAX, room: usize::MAX, ..Wire::default() };
        (self.is_certified, self.end) = (false, None);
    }

    /// What the client has goes to the server, which reads as the turn does, until it may wait for an event.
    fn hear(&mut self) {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        self.wire.to_server.extend(bytes);
        self.read();
    }

    fn read(&mut self) {
        while self.end.is_none() {
            match self.tls.read(SLOT, &mut self.wire, &mut self.buffer) {
                Ok(Received::Input(Input { bytes, is_short, is_certified })) => {
                    self.heard.extend_from_slice(&self.buffer[..bytes]);
                    self.is_certified |= is_certified;
                    // A wire that gives less than it has wakes the poll again.
                    if is_short && !self.wire.is_ended && self.wire.to_server.is_empty() {
                        break;
                    }
                }
                Ok(end) => self.end = Some(end),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn bring_back(&mut self) -> Result<(), Error> {
        while !self.wire.to_client.is_empty() {
            self.client.read_tls(&mut self.wire.to_client).unwrap();
            self.client.process_new_packets()?;
            let mut bytes = Vec::new();
            // The end of the stream is an error until it is one.
            let _ = self.client.reader().read_to_end(&mut bytes);
            self.answered.extend_from_slice(&bytes);
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<(), Error> {
        while self.client.wants_write() || !self.wire.to_client.is_empty() {
            self.hear();
            self.bring_back()?;
        }
        Ok(())
    }

    fn say(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(20_000) {
            self.client.writer().write_all(piece).unwrap();
            self.hear();
        }
    }

    /// Writes as the turn does, until the socket refuses; returns what was taken over.
    fn answer(&mut self, bytes: &[u8]) -> (usize, bool) {
        let slices: Vec<IoSlice<'_>> = bytes.chunks(777).map(IoSlice::new).collect();
        let written = self.tls.write(SLOT, &mut self.wire, &slices).unwrap();
        (written.bytes, written.is_blocked)
    }
}

fn client(authority: &Authority, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_protocol_versions(versions).unwrap().with_root_certificates(authority.roots());
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

fn client_with_certificate(authority: &Authority, own: &Authority) -> ClientConfig {
    let (certificate, key) = own.sign("erp");
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(authority.roots());
    let mut config = builder.with_client_auth_cert(chain, key).unwrap();
    config.resumption = Resumption::in_memory_sessions(4);
    config
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at * 31 % 251) as u8).collect()
}

#[test]
fn bytes_pass_both_ways_however_they_are_split() {
    let authority = Authority::new("ours");
    let certificates = certificates("split", &authority, None);
    let text = pattern(100_000);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for step in [1, 2, 3, 7, 1000, usize::MAX] {
            let mut pair = Pair::new(&certificates, client(&authority, &[version]), step);
            pair.settle().unwrap();
            assert!(!pair.tls.is_opening(SLOT) && !pair.client.is_handshaking());
            let length = if step < 1000 { 20_000 } else { text.len() };
            pair.say(&text[..length]);
            assert!(pair.heard == text[..length], "{version:?} {step}");
            let (mut sent, mut rounds) = (0, 0);
            while sent < length {
                pair.wire.room = 10_000;
                assert!(rounds == 0 || pair.tls.flush(SLOT, &mut pair.wire) || pair.wire.room == 0);
                let (taken, is_blocked) = pair.answer(&text[sent..length]);
                assert!(is_blocked || sent + taken == length);
                (sent, rounds) = (sent + taken, rounds + 1);
                assert!(rounds < 100 && pair.tls.kept_bytes() <= 17 * 1024, "at most a record is kept");
                pair.bring_back().unwrap();
            }
            pair.wire.room = usize::MAX;
            assert!(pair.tls.flush(SLOT, &mut pair.wire));
            pair.bring_back().unwrap();
            assert!(pair.answered == text[..length], "{version:?} {step}");
            assert_eq!(pair.tls.kept_bytes(), 0, "{version:?} {step}: an idle session keeps nothing");
        }
    }
}

#[test]
fn what_comes_together_with_the_end_is_heard_before_it() {
    let authority = Authority::new("ours");
    let certificates = certificates("end", &authority, None);
    for with_notice in [true, false] {
        let mut pair = Pair::new(&certificates, client(&authority, rustls::ALL_VERSIONS), usize::MAX);
        pair.settle().unwrap();
        pair.client.writer().write_all(b"last words").unwrap();
        if with_notice {
            pair.client.send_close_notify();
        } else {
            pair.wire.is_ended = true;
        }
        pair.hear();
        assert_eq!((pair.heard.as_slice(), pair.end), (&b"last words"[..], Some(Received::End)));
        // Who has only ended its own side is still answered.
        assert_eq!(pair.answer(b"heard"), (5, false));
        pair.tls.take_leave(SLOT, &mut pair.wire);
        pair.tls.take_leave(SLOT, &mut pair.wire);
        pair.bring_back().unwrap();
        assert_eq!(pair.answered, b"heard");
        assert_eq!(pair.client.reader().read(&mut [0]).unwrap(), 0, "close_notify has come");
    }
}

#[test]
fn what_is_no_tls_is_told_so_and_no_longer_listened_to() {
    let authority = Authority::new("ours");
    let certificates = certificates("plain", &authority, None);
    for step in [1, usize::MAX] {
        for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 300], &[0x16, 3, 1, 0xff, 0xff, 0, 0]] {
            let mut pair = Pair::new(&certificates, client(&authority, rustls::ALL_VERSIONS), step);
            pair.wire.to_server.extend(garbage);
            pair.read();
            assert_eq!(pair.end, Some(Received::Refused), "{garbage:?}");
            let alert: Vec<u8> = pair.wire.to_client.iter().copied().collect();
            assert!(alert.len() == 7 && alert[0] == 0x15, "a fatal alert and nothing else: {alert:?}");
            pair.end = None;
            pair.wire.to_server.extend(b"and more of it");
            pair.read();
            assert!(pair.end.is_none() && pair.heard.is_empty() && pair.wire.to_server.is_empty());
            assert_eq!(pair.answer(b"nobody hears this"), (17, false));
            pair.tls.take_leave(SLOT, &mut pair.wire);
            assert_eq!((pair.wire.to_client.len(), pair.tls.kept_bytes()), (7, 0));
        }
    }
}

#[test]
fn a_client_that_speaks_only_other_protocols_is_refused() {
    let authority = Authority::new("ours");
    let certificates = certificates("alpn", &authority, None);
    for (offered, refused) in [(vec!["h2"], true), (vec!["h2", "http/1.1"], false), (vec![], false)] {
        let mut config = client(&authority, rustls::ALL_VERSIONS);
        config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let mut pair = Pair::new(&certificates, config, usize::MAX);
        let expected = Error::AlertReceived(AlertDescription::NoApplicationProtocol);
        assert_eq!(pair.settle().err(), refused.then_some(expected), "{offered:?}");
        assert_eq!(pair.end, refused.then_some(Received::Refused));
    }
}

#[test]
fn what_was_said_before_the_protocol_was_broken_is_heard() {
    let authority = Authority::new("ours");
    let certificates = certificates("broken", &authority, None);
    let mut pair = Pair::new(&certificates, client(&authority, rustls::ALL_VERSIONS), usize::MAX);
    pair.settle().unwrap();
    pair.client.writer().write_all(b"good").unwrap();
    let mut bytes = Vec::new();
    pair.client.write_tls(&mut bytes).unwrap();
    pair.wire.to_server.extend(&bytes);
    // A record that was sent before.
    pair.wire.to_server.extend(&bytes);
    pair.read();
    assert_eq!((pair.heard.as_slice(), pair.end), (&b"good"[..], Some(Received::Refused)));
    assert_eq!(pair.bring_back(), Err(Error::AlertReceived(AlertDescription::BadRecordMac)));
}

#[test]
fn keys_are_changed_in_the_middle() {
    let authority = Authority::new("ours");
    let certificates = certificates("keys", &authority, None);
    for step in [1, usize::MAX] {
        let mut pair = Pair::new(&certificates, client(&authority, &[&rustls::version::TLS13]), step);
        pair.settle().unwrap();
        for round in 0..3 {
            pair.client.refresh_traffic_keys().unwrap();
            let mut bytes = Vec::new();
            pair.client.write_tls(&mut bytes).unwrap();
            for byte in bytes {
                // Part of it is there while something is written.
                pair.wire.to_server.push_back(byte);
                pair.read();
                assert_eq!(pair.answer(b"tick"), (4, false));
            }
            pair.say(b"tock");
            pair.settle().unwrap();
            assert_eq!((pair.heard.len(), pair.end), (4 * (round + 1), None));
            assert!(pair.answered.len() >= 4 && pair.answered.chunks(4).all(|word| word == b"tick"));
        }
        assert_eq!(pair.tls.kept_bytes(), 0);
    }
}

#[test]
fn what_is_kept_is_bounded() {
    let authority = Authority::new("ours");
    let certificates = certificates("pool", &authority, None);
    let mut pair = Pair::new(&certificates, client(&authority, rustls::ALL_VERSIONS), usize::MAX);
    pair.tls = Tls::new(certificates, 10_000);
    pair.settle().unwrap();
    pair.wire.room = 100;
    let text = pattern(16_000);
    let error = pair.tls.write(SLOT, &mut pair.wire, &[IoSlice::new(&text)]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
    pair.tls.remove(SLOT);
    assert_eq!(pair.tls.kept_bytes(), 0, "what is gone is not counted");
    // The beginning of a handshake that never ends.
    pair.wire.to_server.extend([0x16, 3, 1, 0x40, 0, 1, 0, 0xf0, 0]);
    pair.wire.to_server.extend([0; 12_000]);
    let error = pair.tls.read(SLOT, &mut pair.wire, &mut pair.buffer).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
}

#[test]
fn clients_are_certified_by_the_authority_that_is_trusted_now() {
    let (authority, theirs, others) = (Authority::new("ours"), Authority::new("theirs"), Authority::new("others"));
    let trusting = certificates("clients", &authority, Some(&theirs));
    let with = Arc::new(client_with_certificate(&authority, &theirs));
    let mut pair = Pair::new(&trusting, client(&authority, rustls::ALL_VERSIONS), usize::MAX);
    pair.settle().unwrap();
    assert!(!pair.is_certified && pair.end.is_none(), "nobody has to");
    for _ in 0..2 {
        pair.reconnect(&with);
        pair.settle().unwrap();
        assert!(pair.is_certified && pair.end.is_none());
    }
    assert_eq!(pair.client.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    pair.reconnect(&Arc::new(client_with_certificate(&authority, &others)));
    assert_eq!(pair.settle(), Err(Error::AlertReceived(AlertDescription::UnknownCA)));
    // Neither is what was agreed before resumed under other authorities, nor would it be trusted.
    pair.tls.renew(certificates("others", &authority, Some(&others)));
    pair.reconnect(&with);
    assert!(pair.settle().is_err() && !pair.is_certified);
}
