//! TLS on the one port: what clients get, what the others are told, and certificates that change meanwhile.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ALL_VERSIONS, AlertDescription, ClientConfig, ClientConnection, Error};
use serde_json::json;

use crate::certificates::{Authority, Files, Signed, secure};
use crate::client::{Client, End, user_token};
use crate::http_client::{Http, messages_path, request};
use crate::outbox::narrow_socket;
use crate::server::{API_KEY, Finished, Server, Signal, bare, eventually, run, with_defaults};
use crate::stream::Stream;

/// A server, and who it is trusted by.
struct Secure {
    server: Server,
    files: Files,
    authority: Authority,
    client: Arc<ClientConfig>,
}

impl Secure {
    fn start(env: &[(&str, &str)]) -> Self {
        let authority = Authority::new("servers");
        let files = Files::new(&authority.sign("localhost", false));
        let (server, client) = (files.serve(env), Arc::new(authority.client(ALL_VERSIONS, None)));
        Self { server, files, authority, client }
    }

    fn stream(&self) -> Stream {
        secure(self.server.socket(), &self.client)
    }

    fn http(&self) -> Http {
        Http::over(self.stream())
    }

    fn member(&self, user: &str, room: &str) -> Client {
        let mut client = Client::over(self.stream(), &user_token(user));
        client.join(room);
        client
    }

    /// The first certificate that a new connection is shown.
    fn shown(&self) -> Vec<u8> {
        let Stream::Secure(mut stream) = self.stream() else { unreachable!() };
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).expect("the handshake succeeds");
        }
        stream.conn.peer_certificates().expect("it shows some")[0].to_vec()
    }
}

/// How the handshake of such a client ends.
fn handshake(socket: TcpStream, config: ClientConfig) -> Result<(), Error> {
    let Stream::Secure(mut stream) = secure(socket, &Arc::new(config)) else { unreachable!() };
    let ended = stream.conn.complete_io(&mut stream.sock);
    // The alert may come behind what the client takes for the end of the handshake.
    let ended = ended.and_then(|_| {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").and_then(|()| stream.read(&mut [0; 1]))
    });
    match ended {
        Ok(_) => Ok(()),
        Err(error) => Err(error.downcast::<Error>().expect("an alert")),
    }
}

/// All that a server says to bytes that are no TLS, up to the end.
fn answer_to(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut socket = server.socket();
    socket.write_all(bytes).expect("the server reads");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).expect("the server closes in order");
    answer
}

/// The first flight of a client.
fn client_hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let mut client = ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn websocket_and_rest_over_both_versions() {
    let secure_server = Secure::start(&[]);
    for (version, user) in [(&rustls::version::TLS12, "ana"), (&rustls::version::TLS13, "ben")] {
        let mut config = secure_server.authority.client(&[version], None);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let config = Arc::new(config);
        let mut client = Client::over(secure(secure_server.server.socket(), &config), &user_token(user));
        client.join("r");
        let mut http = Http::over(secure(secure_server.server.socket(), &config));
        http.post("r", &json!({"content": "sealed"}));
        assert_eq!(client.wait_for("new_message")["content"], "sealed");
        client.expect_none();
        client.close();
        assert_eq!(http.service("GET", "/api/chat/rooms/r/online", None).json()["count"], 0);
    }
    secure_server.server.stop_in_order();
}

#[test]
fn what_is_larger_than_a_record_comes_whole() {
    let secure_server = Secure::start(&[]);
    let mut ana = secure_server.member("ana", "r");
    let content = "0123456789".repeat(20_000);
    secure_server.http().post("r", &json!({"content": content}));
    assert_eq!(ana.wait_for("new_message")["content"], json!(content));
    // Some records in one read, and one in many.
    let mut http = secure_server.http();
    let body = json!({"content": "x".repeat(1000)}).to_string();
    let one = request("POST", &messages_path("r"), &[("X-API-Key", API_KEY)], Some(&body));
    http.send(&one.repeat(30));
    for _ in 0..30 {
        assert_eq!(http.response().status, 201);
    }
}

#[test]
fn bytes_that_come_one_at_a_time_are_as_good() {
    let secure_server = Secure::start(&[]);
    let Stream::Secure(mut stream) = secure_server.stream() else { unreachable!() };
    let trickle = |stream: &mut rustls::StreamOwned<ClientConnection, TcpStream>| {
        let mut bytes = Vec::new();
        while stream.conn.wants_write() {
            stream.conn.write_tls(&mut bytes).unwrap();
        }
        for byte in bytes {
            stream.sock.write_all(&[byte]).expect("the server reads");
        }
    };
    while stream.conn.is_handshaking() {
        trickle(&mut stream);
        if stream.conn.is_handshaking() {
            stream.conn.read_tls(&mut stream.sock).expect("the server answers");
            stream.conn.process_new_packets().expect("what it answers is TLS");
        }
    }
    stream.conn.writer().write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    trickle(&mut stream);
    assert_eq!(Http::over(Stream::Secure(stream)).response().status, 200);
}

#[test]
fn what_is_no_tls_is_told_so() {
    let secure_server = Secure::start(&[("CHAT_LOG", "debug"), ("CHAT_CLOSE_MS", "500")]);
    for bytes in [&b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 100], b"\x16\x03\x01\xff\xff and so on"] {
        let answer = answer_to(&secure_server.server, bytes);
        assert!(answer.len() == 7 && answer[0] == 0x15, "one alert: {answer:?}");
    }
    secure_server.server.log_line(|line| line.contains("TLS is refused"));
    secure_server.server.log_line(|line| line.contains("denied") && line.contains("\"tls\""));
    assert_eq!(secure_server.http().call("GET", "/readyz", &[], None).status, 200);
}

#[test]
fn a_client_of_other_protocols_or_versions_is_refused() {
    let secure_server = Secure::start(&[("CHAT_TLS_MIN", "1.3")]);
    let mut config = secure_server.authority.client(ALL_VERSIONS, None);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let refused = handshake(secure_server.server.socket(), config);
    assert_eq!(refused, Err(Error::AlertReceived(AlertDescription::NoApplicationProtocol)));
    let config = secure_server.authority.client(&[&rustls::version::TLS12], None);
    let refused = handshake(secure_server.server.socket(), config);
    assert_eq!(refused, Err(Error::AlertReceived(AlertDescription::ProtocolVersion)));
    assert_eq!(handshake(secure_server.server.socket(), secure_server.authority.client(ALL_VERSIONS, None)), Ok(()));
}

#[test]
fn handshake_and_head_share_one_deadline() {
    let secure_server = Secure::start(&[("CHAT_HANDSHAKE_MS", "1500")]);
    let ends = |mut socket: TcpStream, begun: Instant| {
        // With a reset if there is something that was not read, as below.
        let _ = socket.read_to_end(&mut Vec::new());
        let took = begun.elapsed();
        assert!(took > Duration::from_millis(1000) && took < Duration::from_secs(5), "{took:?}");
    };
    let hello = client_hello(&secure_server.client);
    for sent in [0, 1, hello.len() / 2, hello.len()] {
        let begun = Instant::now();
        let mut socket = secure_server.server.socket();
        socket.write_all(&hello[..sent]).expect("the server reads");
        ends(socket, begun);
    }
    // The head begins late and has no time of its own.
    let begun = Instant::now();
    let mut http = secure_server.http();
    std::thread::sleep(Duration::from_millis(1000));
    http.send(b"GET /healthz HTTP/1.1\r\n");
    assert_eq!(http.response().status, 408);
    assert!(begun.elapsed() < Duration::from_millis(2400), "{:?}", begun.elapsed());
}

#[test]
fn the_end_is_told_by_tls_as_well() {
    let secure_server = Secure::start(&[]);
    let mut http = secure_server.http();
    http.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(http.response().status, 200);
    assert!(http.ends_in_order(), "close_notify and then the end");
    let mut ana = secure_server.member("ana", "r");
    ana.send_message(tungstenite::Message::Close(None));
    assert!(matches!(ana.read(), Err(End::Close(..))));
    assert_eq!(ana.stream().read(&mut [0; 1]).expect("close_notify"), 0);
    // Who has shut its side by TLS, or by TCP alone, is still answered.
    for by_notice in [true, false] {
        let Stream::Secure(mut stream) = secure_server.stream() else { unreachable!() };
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").expect("the server reads");
        if by_notice {
            stream.conn.send_close_notify();
            stream.flush().expect("the server reads");
        } else {
            stream.sock.shutdown(std::net::Shutdown::Write).expect("the socket is open");
        }
        let mut http = Http::over(Stream::Secure(stream));
        assert_eq!(http.response().status, 200, "{by_notice}");
        assert!(http.ends_in_order());
    }
}

/// A connection that has been answered once, and then left a request in a record unfinished; and the end of that record.
fn unfinished(secure_server: &Secure) -> (Http, Vec<u8>) {
    let mut http = secure_server.http();
    assert_eq!(http.call("GET", "/healthz", &[], None).status, 200);
    let Stream::Secure(stream) = http.stream() else { unreachable!() };
    let get = "GET /healthz HTTP/1.1\r\nHost: x\r\n";
    stream.conn.writer().write_all(format!("{get}X-Long: {}\r\n\r\n", "x".repeat(16_000)).as_bytes()).unwrap();
    let mut record = Vec::new();
    stream.conn.write_tls(&mut record).unwrap();
    let end = record.split_off(record.len() - 1);
    stream.sock.write_all(&record).expect("the server reads");
    (http, end)
}

#[test]
fn records_that_are_never_finished() {
    // The share of what comes in is four such records.
    let secure_server = Secure::start(&[("CHAT_THREADS", "1"), ("CHAT_TLS_POOL_BYTES", "140000")]);
    let mut ana = secure_server.member("ana", "r");
    let (mut first, _) = unfinished(&secure_server);
    let mut holders: Vec<(Http, Vec<u8>)> = (0..20).map(|_| unfinished(&secure_server)).collect();
    first.stream().read_to_end(&mut Vec::new()).expect_err("there is no close_notify");
    secure_server.server.log_line(|line| line.contains("WARN") && line.contains("the oldest are dropped"));
    secure_server.server.log_line(|line| line.contains("denied") && line.contains("\"tls\""));
    // The one that came last finishes its own and is answered, and nobody else was harmed.
    let (mut last, end) = holders.pop().expect("there are twenty");
    last.stream().tcp().write_all(&end).expect("the server reads");
    assert_eq!(last.response().status, 200);
    secure_server.http().post("r", &json!({"content": "on it goes"}));
    assert_eq!(ana.wait_for("new_message")["content"], "on it goes");
    ana.expect_none();

    let secure_server = Secure::start(&[("CHAT_TLS_RECORD_MS", "700")]);
    let mut ana = secure_server.member("ana", "r");
    let begun = Instant::now();
    let (mut http, _) = unfinished(&secure_server);
    http.stream().read_to_end(&mut Vec::new()).expect_err("there is no close_notify");
    assert!(begun.elapsed() >= Duration::from_millis(700) && begun.elapsed() < Duration::from_secs(10));
    secure_server.http().post("r", &json!({"content": "on it goes"}));
    assert_eq!(ana.wait_for("new_message")["content"], "on it goes");
}

#[test]
fn who_does_not_read_is_closed_and_told() {
    let env = [
        ("CHAT_OUTBOX_SOFT_BYTES", "65536"),
        ("CHAT_OUTBOX_HARD_BYTES", "262144"),
        ("CHAT_SOCKET_SEND_BUFFER_BYTES", "8192"),
        ("CHAT_CLOSE_MS", "5000"),
    ];
    let secure_server = Secure::start(&env);
    let mut fast = secure_server.member("fast", "r");
    let narrow = secure(narrow_socket(&secure_server.server), &secure_server.client);
    let mut slow = Client::over(narrow, &user_token("slow"));
    slow.join("r");
    fast.expect("user_joined");
    let mut http = secure_server.http();
    for number in 0..60 {
        http.post("r", &json!({"content": "x".repeat(16_000), "number": number}));
        assert_eq!(fast.until(|message| message["type"] == "new_message").1["number"], number);
    }
    let mut received = 0;
    let code = loop {
        match slow.read() {
            Ok(message) if message["type"] == "new_message" => {
                assert_eq!(message["number"], received);
                received += 1;
            }
            Ok(_) => {}
            Err(End::Close(code, _)) => break code,
            Err(end) => panic!("{end} after {received} messages"),
        }
    };
    assert!(code == 4008 && received < 60, "{code} after {received}");
}

#[test]
fn a_new_certificate_is_shown_and_nobody_is_dropped() {
    let secure_server = Secure::start(&[]);
    let Secure { server, files, authority, .. } = &secure_server;
    let (mut ana, mut http) = (secure_server.member("ana", "r"), secure_server.http());
    let first = secure_server.shown();
    // By itself once the files have changed, and at once on SIGHUP.
    for by_signal in [false, true] {
        let before = secure_server.shown();
        files.replace(&authority.sign("localhost", false));
        if by_signal {
            server.signal(Signal::HUP);
        }
        eventually("the new certificate is shown", || (secure_server.shown() != before).then_some(()));
    }
    // What cannot be used leaves in force what is.
    let last = secure_server.shown();
    files.put("key.pem", &authority.sign("localhost", false).key);
    let warned = |key: &str, file: &str, reason: &str| {
        let told = format!("{key}: {}: {reason}", files.path(file));
        server.log_line(|line| line.contains("WARN") && line.contains(&told) && line.contains("; give a PEM file"));
    };
    warned("CHAT_TLS_KEY", "key.pem", "it is not the key of the first certificate");
    files.put("cert.pem", "nonsense");
    server.signal(Signal::HUP);
    warned("CHAT_TLS_CERT", "cert.pem", "it has no certificate");
    assert!(secure_server.shown() == last && last != first);
    http.post("r", &json!({"content": "still there"}));
    assert_eq!(ana.wait_for("new_message")["content"], "still there");
    ana.expect_none();
}

#[test]
fn a_client_certificate_is_a_service_for_rest_alone() {
    let (authority, theirs, others) = (Authority::new("servers"), Authority::new("clients"), Authority::new("others"));
    let files = Files::new(&authority.sign("localhost", false));
    files.put("clients.pem", &theirs.pem());
    let server = files.serve(&[("CHAT_TLS_CLIENT_CA", &files.path("clients.pem")), ("CHAT_API_KEY", "")]);
    let client = |own: Option<&Signed>| Arc::new(authority.client(ALL_VERSIONS, own));
    let erp = client(Some(&theirs.sign("erp", false)));
    let message = json!({"content": "from the ERP"});
    let path = messages_path("r");
    let call = |config: &Arc<ClientConfig>, headers: &[(&str, &str)]| {
        let mut http = Http::over(secure(server.socket(), config));
        http.call("POST", &path, headers, Some(&message)).status
    };
    for _ in 0..2 {
        // The second time the session is resumed.
        assert_eq!(call(&erp, &[]), 201);
    }
    assert_eq!(call(&erp, &[("Origin", "https://evil.example")]), 401, "a page does not borrow it");
    assert_eq!(call(&erp, &[("X-API-Key", "wrong-key-of-16-bytes")]), 401, "what is wrong is not made good");
    assert_eq!(call(&client(None), &[]), 401);
    let mut ana = Client::over(secure(server.socket(), &client(None)), &user_token("ana"));
    ana.join("r");
    let bad = [
        (others.sign("erp", false), AlertDescription::UnknownCA),
        (theirs.sign("erp", true), AlertDescription::CertificateExpired),
    ];
    for (signed, alert) in bad {
        let refused = handshake(server.socket(), authority.client(ALL_VERSIONS, Some(&signed)));
        assert_eq!(refused, Err(Error::AlertReceived(alert)));
    }
    // For a WebSocket it counts for nothing.
    let mut client = Client::dial(secure(server.socket(), &erp), "/ws", &[]).expect("the upgrade is served");
    client.send(json!({"type": "join_room", "roomId": "r"}));
    assert_eq!(client.expect_close().0, 1008);
}

#[test]
fn rooms_go_on_beside_a_flood_of_handshakes() {
    let secure_server = Secure::start(&[("CHAT_THREADS", "2")]);
    let (mut ana, mut http) = (secure_server.member("ana", "r"), secure_server.http());
    let hello = client_hello(&secure_server.client);
    let mut flood: Vec<TcpStream> = (0..400).map(|_| secure_server.server.socket()).collect();
    for socket in &mut flood {
        socket.write_all(&hello).expect("the server reads");
    }
    for number in 0..50 {
        http.post("r", &json!({"content": "on it goes", "number": number}));
        assert_eq!(ana.wait_for("new_message")["number"], number);
    }
    for socket in &mut flood {
        assert_eq!(socket.read(&mut [0; 1]).expect("each is answered"), 1);
    }
}

#[test]
fn wrong_files_stop_the_start_with_a_reason() {
    let authority = Authority::new("servers");
    let files = Files::new(&authority.sign("localhost", false));
    let check = |env: &[(&str, String)]| {
        let mut command = bare(&["check"]);
        with_defaults(&mut command, 3001, &[]);
        command.envs(env.iter().map(|(key, value)| (key, value)));
        run(command)
    };
    let paths = |key: &str| [("CHAT_TLS_CERT", files.path("cert.pem")), ("CHAT_TLS_KEY", files.path(key))];
    let good = check(&paths("key.pem"));
    assert_eq!(good.code, Some(0));
    assert!(good.stdout.iter().any(|line| line.trim().starts_with("valid until ")), "{:#?}", good.stdout);
    files.put("other.pem", &authority.sign("localhost", false).key);
    files.put("encrypted.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    files.put("broken.pem", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
    files.put("empty.pem", "");
    let reasons = [
        ("CHAT_TLS_KEY", "missing.pem", "it cannot be read: No such file"),
        ("CHAT_TLS_KEY", "other.pem", "it is not the key of the first certificate in "),
        ("CHAT_TLS_KEY", "encrypted.pem", "the private key is encrypted; give a PEM file with the private key"),
        ("CHAT_TLS_KEY", "cert.pem", "it has no private key; give"),
        ("CHAT_TLS_CERT", "missing.pem", "it cannot be read: No such file"),
        ("CHAT_TLS_CERT", "empty.pem", "it has no certificate; give a PEM file with the certificate"),
        ("CHAT_TLS_CERT", "broken.pem", "it is not PEM: "),
        ("CHAT_TLS_CLIENT_CA", "missing.pem", "it cannot be read: No such file"),
        ("CHAT_TLS_CLIENT_CA", "key.pem", "it has no certificate; give a PEM file with the certificates of those"),
    ];
    for (key, file, reason) in reasons {
        let mut env = paths("key.pem").to_vec();
        env.retain(|(other, _)| *other != key);
        env.push((key, files.path(file)));
        let Finished { code, stderr, .. } = check(&env);
        let told = format!("{key}: {}: {reason}", files.path(file));
        assert!(code == Some(2) && stderr.len() == 1 && stderr[0].contains(&told), "{told} in {stderr:?}");
        assert!(stderr[0].contains("; give a PEM file with "), "{stderr:?}");
    }
    let alone = check(&paths("key.pem")[..1]);
    assert!(alone.stderr[0].contains("CHAT_TLS_KEY is not set"), "{:?}", alone.stderr);
    files.replace(&authority.sign("localhost", true));
    let server = files.serve(&[]);
    server.log_line(|line| line.contains("WARN") && line.contains("the certificate has ended: Wed, 01 Jan 2020"));
}

#[test]
fn an_idle_connection_keeps_its_keys_and_little_else() {
    let secure_server = Secure::start(&[("CHAT_THREADS", "1")]);
    let connect = |count: usize| -> Vec<Client> {
        (0..count).map(|number| Client::over(secure_server.stream(), &user_token(&format!("u{number}")))).collect()
    };
    let _first = connect(200);
    let before = secure_server.server.resident_bytes();
    let _more = connect(500);
    let each = secure_server.server.resident_bytes().saturating_sub(before) / 500;
    println!("{each} bytes");
    assert!(each <= 6144, "{each} bytes of each");
}
