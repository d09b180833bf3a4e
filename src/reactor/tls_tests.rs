//! The TLS of a thread, with clients driven by hand over wires that split bytes as they like.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, ClientConnection, Error, RootCertStore, SupportedProtocolVersion};

use super::io::{Input, Received};
use super::tls::{Certificates, Tls};
use crate::chat::ids::{ConnId, ShardId};
use crate::config::{TlsFiles, TlsVersion};
use crate::work::certificates::Loaded;

const SLOT: u32 = 3;
const POOL: usize = 1 << 20;
const RECORD_MS: u64 = 1000;
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

/// A server with a connection at [`SLOT`], and so many bytes for what is kept.
fn serving(certificates: &Arc<Certificates>, kept_bytes_max: usize) -> Tls {
    let mut tls = Tls::new(Arc::clone(certificates), kept_bytes_max, RECORD_MS);
    tls.register(conn(SLOT));
    tls
}

fn conn(slot: u32) -> ConnId {
    ConnId::new(ShardId(0), 0, slot)
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
            tls: serving(certificates, POOL),
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

/// The beginning of a record that never ends.
fn beginning(bytes: usize) -> Vec<u8> {
    let mut record = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0xf0, 0];
    record.resize(bytes, 0);
    record
}

/// A wire on which so much has come, and which takes so much.
fn wire(to_server: &[u8], room: usize) -> Wire {
    Wire { to_server: to_server.iter().copied().collect(), step: usize::MAX, room, ..Wire::default() }
}

/// A connection at a slot from which the server reads once.
fn come(tls: &mut Tls, slot: u32, to_server: &[u8]) -> io::Result<Received> {
    tls.register(conn(slot));
    tls.read(slot, &mut wire(to_server, usize::MAX), &mut [0; BUFFER])
}

const NOTHING_YET: Received = Received::Input(Input { bytes: 0, is_short: true, is_certified: false });

#[test]
fn whose_record_has_been_unfinished_longest_is_the_first_to_go() {
    let certificates = certificates("oldest", &Authority::new("ours"), None);
    let mut tls = serving(&certificates, 2 * 40_000);
    for (now_ms, slot) in [(1, 8), (2, 5), (3, 6)] {
        tls.begin_turn(now_ms);
        assert_eq!(come(&mut tls, slot, &beginning(9_000)).unwrap(), NOTHING_YET);
    }
    // More of the same record makes it no younger.
    tls.begin_turn(4);
    assert_eq!(come(&mut tls, 8, &[0; 1_000]).unwrap(), NOTHING_YET);
    assert_eq!((tls.kept_bytes(), tls.poll_due()), (36_000, None));
    assert_eq!(come(&mut tls, 7, &beginning(9_000)).unwrap(), NOTHING_YET);
    assert_eq!(tls.kept_bytes(), 27_000, "the one that had no room has it now");
    assert_eq!((tls.timeout(), tls.poll_due(), tls.poll_due()), (Some(Duration::ZERO), Some(conn(8)), None));
    assert_eq!(come(&mut tls, 8, b"").unwrap(), Received::Refused);
    assert_eq!(come(&mut tls, 8, b"more of it").unwrap(), NOTHING_YET, "which is not looked at");
    (5..=8).for_each(|slot| tls.remove(slot));
    assert_eq!((tls.kept_bytes(), tls.timeout()), (0, None), "what is gone is not counted");
}

#[test]
fn those_who_do_not_read_take_no_room_of_input() {
    let authority = Authority::new("ours");
    let certificates = certificates("rests", &authority, None);
    let mut pair = Pair::new(&certificates, client(&authority, rustls::ALL_VERSIONS), usize::MAX);
    pair.tls = serving(&certificates, 2 * 12_000);
    pair.settle().unwrap();
    assert_eq!(come(&mut pair.tls, 9, &beginning(9_000)).unwrap(), NOTHING_YET);
    pair.wire.room = 100;
    assert_eq!(pair.answer(&pattern(10_000)), (10_000, true));
    assert!(pair.tls.kept_bytes() > 18_000 && pair.tls.poll_due().is_none(), "there is room for both");
    pair.tls.remove(SLOT);
    let mut stalled = Pair::new(&certificates, client(&authority, rustls::ALL_VERSIONS), usize::MAX);
    std::mem::swap(&mut stalled.tls, &mut pair.tls);
    stalled.settle().unwrap();
    stalled.wire.room = 100;
    // Of what goes out alone there is too much, and it is the only one.
    assert_eq!(stalled.answer(&pattern(16_000)), (16_000, true));
    assert_eq!(
        (stalled.tls.kept_bytes(), stalled.tls.poll_due(), stalled.tls.poll_due()),
        (9_000, Some(conn(SLOT)), None)
    );
    stalled.wire.room = usize::MAX;
    let sent = stalled.wire.to_client.len();
    assert_eq!(stalled.answer(b"behind half a record"), (20, false));
    assert!(stalled.tls.flush(SLOT, &mut stalled.wire));
    stalled.tls.take_leave(SLOT, &mut stalled.wire);
    assert_eq!(stalled.wire.to_client.len(), sent, "nothing follows half a record");
    stalled.read();
    assert_eq!(stalled.end, Some(Received::Refused));
}

#[test]
fn a_record_has_a_time_to_come_whole() {
    let authority = Authority::new("ours");
    let certificates = certificates("overdue", &authority, None);
    let mut pair = Pair::new(&certificates, client(&authority, rustls::ALL_VERSIONS), usize::MAX);
    pair.settle().unwrap();
    let mut record = Vec::new();
    for _ in 0..3 {
        pair.client.writer().write_all(b"word").unwrap();
        pair.client.write_tls(&mut record).unwrap();
    }
    let length = record.len() / 3;
    let mut hear = |now_ms: u64, bytes: std::ops::Range<usize>| {
        pair.tls.begin_turn(now_ms);
        pair.wire.to_server.extend(&record[bytes]);
        let due = pair.tls.poll_due();
        pair.read();
        (due, pair.heard.len(), pair.end, pair.tls.timeout().map(|timeout| timeout.as_millis()))
    };
    assert_eq!(hear(1, 0..10), (None, 0, None, Some(1000)));
    assert_eq!(hear(900, 10..20), (None, 0, None, Some(101)), "from its first byte on");
    // What has come when its time is over is taken, and the next record has a time of its own.
    assert_eq!(hear(1_001, 20..length + 5), (Some(conn(SLOT)), 4, None, Some(1000)));
    assert_eq!(hear(2_000, length + 5..2 * length), (None, 8, None, None));
    assert_eq!(hear(10_000, 2 * length..2 * length + 5), (None, 8, None, Some(1000)));
    assert_eq!(hear(11_000, 0..0), (Some(conn(SLOT)), 8, Some(Received::Refused), None));
    assert_eq!(pair.tls.kept_bytes(), 0);
    // Neither does it help to send more of it then.
    let mut tls = serving(&certificates, POOL);
    assert_eq!(come(&mut tls, SLOT, &beginning(100)).unwrap(), NOTHING_YET);
    tls.begin_turn(RECORD_MS);
    assert_eq!(come(&mut tls, SLOT, &[0; 100]).unwrap(), Received::Refused);
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
