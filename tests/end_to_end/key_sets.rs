//! Keys from a JSON Web Key Set at a URL, whose server does what it likes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::client::Client;
use crate::http_client::request;
use crate::public_keys::user_token;
use crate::server::{Server, Signal, eventually, prepare};
use crate::signing::{Signer, jwk, public};
use crate::store_folder::StoreFolder;

/// What the source answers with.
#[derive(Clone)]
enum Answer {
    Set(String),
    Status(u16),
    Garbage,
    Huge,
    Redirect,
    /// Nothing, and the connection stays open.
    Silence,
    Drip,
}

/// A web server with a key set.
struct Source {
    address: SocketAddr,
    state: Arc<Mutex<(Answer, usize)>>,
}

impl Source {
    fn new(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Arc::new(Mutex::new((answer, 0))));
        let shared = state.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(&mut socket.unwrap(), &shared));
            }
        });
        Self { address, state }
    }

    fn url(&self) -> String {
        format!("http://{}/.well-known/jwks.json", self.address)
    }

    fn answer(&self, answer: Answer) {
        self.state.lock().unwrap().0 = answer;
    }

    fn asked(&self) -> usize {
        self.state.lock().unwrap().1
    }
}

fn serve(socket: &mut TcpStream, state: &Mutex<(Answer, usize)>) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if socket.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let answer = {
        let mut state = state.lock().unwrap();
        state.1 += 1;
        state.0.clone()
    };
    let with_body = |status: u16, body: &str| {
        let length = body.len();
        format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    let _ = match answer {
        Answer::Set(set) => socket.write_all(with_body(200, &set).as_bytes()),
        Answer::Status(status) => socket.write_all(with_body(status, "{\"keys\":[]}").as_bytes()),
        Answer::Garbage => socket.write_all(with_body(200, "<html>sign in</html>").as_bytes()),
        Answer::Huge => socket.write_all(with_body(200, &" ".repeat(5 << 20)).as_bytes()),
        Answer::Redirect => socket.write_all(b"HTTP/1.1 302 X\r\nLocation: /keys\r\nContent-Length: 0\r\n\r\n"),
        Answer::Silence => socket.read(&mut byte).map(|_| ()),
        Answer::Drip => {
            let _ = socket.write_all(b"HTTP/1.1 200 X\r\nContent-Length: 1000\r\n\r\n");
            while socket.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        }
    };
}

fn set(keys: &[(&str, &str)]) -> Answer {
    let keys: Vec<String> =
        keys.iter().map(|(name, id)| format!(r#"{},"kid":"{id}","use":"sig"}}"#, jwk(name))).collect();
    Answer::Set(format!(r#"{{"keys":[{}]}}"#, keys.join(",")))
}

fn start(source: &Source, more: &[(&str, &str)]) -> Server {
    let url = source.url();
    let mut env = vec![("JWT_SECRET", ""), ("CHAT_JWKS", &url), ("CHAT_JWKS_COOLDOWN_MS", "100")];
    env.extend_from_slice(more);
    Server::start_with(&env)
}

fn status(server: &Server, token: &str) -> u16 {
    server.http().bearer(token, "GET", "/api/chat/rooms/r/online", None).status
}

fn first() -> String {
    user_token(&Signer::of("RS256"), r#","kid":"one""#, "ana")
}

fn second() -> String {
    user_token(&Signer::second("RS256"), r#","kid":"two""#, "ana")
}

#[test]
fn keys_rotate_by_kid() {
    let source = Source::new(set(&[("rsa", "one")]));
    let server = start(&source, &[]);
    assert_eq!(source.asked(), 1, "it is fetched before the server listens");
    let mut ana = Client::connect(&server, &first());
    assert_eq!((status(&server, &first()), status(&server, &second())), (200, 401));
    source.answer(set(&[("rsa", "one"), ("rsa2", "two")]));
    // No interval has passed: the unknown kid has it fetched, and the token waits for that.
    eventually("the cooldown is over", || (status(&server, &second()) == 200).then_some(()));
    assert_eq!(Client::connect(&server, &second()).connected["userId"], "ana");
    let kept = first();
    assert_eq!(status(&server, &kept), 200);
    source.answer(set(&[("rsa2", "two")]));
    server.signal(Signal::HUP);
    eventually("the first key is gone from every thread", || {
        (0..8).all(|_| status(&server, &kept) == 401).then_some(())
    });
    assert_eq!(status(&server, &second()), 200);
    ana.expect_none();
    server.stop_in_order();
}

#[test]
fn a_source_that_fails_takes_no_key_away() {
    let source = Source::new(set(&[("rsa", "one")]));
    let limits = [("CHAT_JWKS_REFRESH_MS", "1000"), ("CHAT_JWKS_TIMEOUT_MS", "300"), ("CHAT_LOG", "debug")];
    let server = start(&source, &limits);
    let ill = [
        (Answer::Status(500), "the answer is 500"),
        (Answer::Garbage, "no JSON Web Key Set"),
        (Answer::Huge, "larger than 1048576"),
        (Answer::Redirect, "the answer is 302"),
        (Answer::Silence, "no answer in time"),
        (Answer::Drip, "no answer in time"),
        (Answer::Set(r#"{"keys":[{"kty":"oct","k":"c2VjcmV0","kid":"one"}]}"#.into()), "no key that can be used"),
    ];
    for (answer, reason) in ill {
        source.answer(answer);
        server.signal(Signal::HUP);
        server.log_line(|line| line.contains("the key set cannot be fetched") && line.contains(reason));
        assert_eq!(status(&server, &first()), 200, "{reason}");
        assert_eq!(status(&server, &second()), 401, "{reason}");
        source.answer(set(&[("rsa", "one")]));
        server.signal(Signal::HUP);
        let healed = format!("the key set can be fetched again after {reason}");
        eventually(&healed, || {
            let log = server.log();
            let (failed, healed) = (log.rfind("the key set cannot be fetched"), log.rfind("can be fetched again"));
            (failed < healed).then_some(())
        });
    }
    server.stop_in_order();
}

#[test]
fn a_source_that_is_down_at_the_start_is_waited_for() {
    let source = Source::new(Answer::Status(503));
    let server = start(&source, &[("CHAT_JWKS", &format!("{}?key=its-secret", source.url()))]);
    let line = server.log_line(|line| line.contains("the key set cannot be fetched") && line.contains("503"));
    assert!(line.contains(&source.url()) && !server.log().contains("its-secret"), "{line}");
    assert_eq!(status(&server, &first()), 401);
    source.answer(set(&[("rsa", "one")]));
    eventually("it is tried again", || (status(&server, &first()) == 200).then_some(()));
    let warnings = server.log().matches("cannot be fetched").count();
    assert_eq!(warnings, 1, "{}", server.log());
}

#[test]
fn unknown_kids_do_not_become_a_flood_on_the_source_nor_on_the_server() {
    let source = Source::new(set(&[("rsa", "one")]));
    let server = start(&source, &[("CHAT_JWKS_COOLDOWN_MS", "60000"), ("CHAT_JWKS_TIMEOUT_MS", "2000")]);
    for number in 0..200 {
        let unknown = user_token(&Signer::of("EdDSA"), &format!(r#","kid":"k-{number}""#), "ana");
        assert_eq!(status(&server, &unknown), 401);
    }
    assert_eq!(source.asked(), 1, "the cooldown holds");
    assert_eq!(status(&server, &first()), 200);
}

#[test]
fn who_waits_for_a_slow_source_holds_up_nobody_else() {
    let source = Source::new(set(&[("rsa", "one")]));
    let server = start(&source, &[("CHAT_JWKS_TIMEOUT_MS", "3000"), ("CHAT_THREADS", "1")]);
    source.answer(Answer::Silence);
    let asked = source.asked();
    // Within the cooldown it is refused at once; then the next one waits.
    let mut waiting = eventually("an unknown kid has it fetched", || {
        let client = Client::dial(server.socket(), "/ws", &[("Sec-WebSocket-Protocol", "sizland.v1")]);
        let mut client = client.expect("the upgrade is served");
        client.send(serde_json::json!({"type": "auth", "token": second()}));
        client.raw().set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let _ = client.read();
        (source.asked() > asked).then_some(client)
    });
    prepare(waiting.raw());
    for _ in 0..20 {
        assert_eq!(status(&server, &first()), 200, "others go on meanwhile");
    }
    assert_eq!(waiting.expect_close(), (1008, "Invalid token".to_owned()));
}

#[test]
fn a_key_is_sought_once_for_a_token_that_another_may_have_signed() {
    let source = Source::new(set(&[("rsa", "one")]));
    let folder = StoreFolder::new();
    let path = folder.file("erp.pem");
    std::fs::write(&path, public("rsa2")).unwrap();
    // The key of the file has no name, so it may have signed whatever names a key that is not known.
    let more = [
        ("CHAT_JWT_KEYS", path.to_str().unwrap()),
        ("CHAT_TOKEN_CACHE_MAX", "0"),
        ("CHAT_TOKEN_CHECKS_MAX", "1"),
        ("CHAT_THREADS", "1"),
        ("CHAT_JWKS_COOLDOWN_MS", "60000"),
    ];
    let server = start(&source, &more);
    let named = r#","kid":"three""#;
    let good = user_token(&Signer::second("RS256"), named, "ana");
    let forged = user_token(&Signer::of("RS256"), named, "ana");
    for _ in 0..3 {
        assert_eq!((status(&server, &good), status(&server, &forged)), (200, 401));
    }
    assert_eq!(Client::connect(&server, &good).connected["userId"], "ana");
    let path = format!("/ws?token={forged}");
    let mut refused = Client::dial(server.socket(), &path, &[]).expect("the upgrade is served");
    assert_eq!(refused.expect_close(), (1008, "Invalid token".to_owned()));
    assert_eq!(source.asked(), 1, "the cooldown holds");
    server.stop_in_order();
}

#[test]
fn one_address_cannot_take_all_checks() {
    let source = Source::new(set(&[("rsa", "one")]));
    let more = [
        ("CHAT_JWKS_TIMEOUT_MS", "3000"),
        ("CHAT_JWKS_COOLDOWN_MS", "100"),
        ("CHAT_TOKEN_CHECKS_MAX", "16"),
        ("CHAT_TRUSTED_PROXIES", "127.0.0.1"),
        ("CHAT_THREADS", "1"),
    ];
    let server = start(&source, &more);
    source.answer(Answer::Silence);
    std::thread::sleep(Duration::from_millis(100));
    let authorization = format!("Bearer {}", second());
    let ask = |address: &[(&str, &str)]| {
        let mut http = server.http();
        let headers = [&[("Authorization", authorization.as_str())], address].concat();
        http.send(&request("GET", "/api/chat/rooms/r/online", &headers, None));
        http
    };
    let mut flood: Vec<_> = (0..6).map(|n| ask(&[("X-Forwarded-For", &format!("2001:db8::{n}"))])).collect();
    let refused = flood.iter_mut().skip(2).map(|http| http.response()).collect::<Vec<_>>();
    refused.iter().for_each(|response| response.assert_error(503, "overloaded"));
    // Another address, and the proxy itself, which speaks for many.
    let mut others = vec![ask(&[("X-Forwarded-For", "2001:db8:0:1::")])];
    others.extend((0..8).map(|_| ask(&[])));
    let looked_at = flood.drain(..2).chain(others).map(|mut http| http.response().status).collect::<Vec<_>>();
    assert!(looked_at.len() == 11 && looked_at.iter().all(|&status| status == 401), "{looked_at:?}");
    assert_eq!(status(&server, &first()), 200);
    server.stop_in_order();
}

#[test]
fn no_key_is_sought_for_a_token_that_has_verified() {
    let source = Source::new(set(&[("rsa", "one")]));
    let folder = StoreFolder::new();
    let path = folder.file("erp.pem");
    std::fs::write(&path, public("rsa2")).unwrap();
    let more = [
        ("CHAT_JWT_KEYS", path.to_str().unwrap()),
        ("CHAT_JWKS_COOLDOWN_MS", "100"),
        ("CHAT_JWKS_TIMEOUT_MS", "60000"),
        ("CHAT_THREADS", "1"),
    ];
    let server = start(&source, &more);
    let good = user_token(&Signer::second("RS256"), r#","kid":"three""#, "ana");
    assert_eq!(status(&server, &good), 200);
    // Who asks the source now waits for a minute.
    source.answer(Answer::Silence);
    let asked = source.asked();
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!((status(&server, &good), source.asked()), (200, asked));
    assert_eq!(Client::connect(&server, &good).connected["userId"], "ana");
}

#[test]
fn a_set_of_more_keys_than_are_tried_is_warned_of() {
    let mut keys: Vec<_> = ["a", "b", "c", "d"].map(|id| ("rsa2", id)).to_vec();
    keys.push(("rsa", "one"));
    let source = Source::new(set(&keys));
    let server = start(&source, &[("CHAT_THREADS", "1")]);
    server.log_line(|line| line.contains("WARN") && line.contains("than a token without a kid is tried with"));
    assert_eq!(status(&server, &first()), 200, "the one that it names is tried");
    assert_eq!(status(&server, &user_token(&Signer::of("RS256"), "", "ana")), 401);
}

#[test]
fn the_order_of_a_set_means_nothing() {
    let mut keys = vec![("rsa", "one"), ("rsa2", "two")];
    let source = Source::new(set(&keys));
    let server = start(&source, &[("CHAT_THREADS", "1")]);
    let (changes, asked) = (|| server.log().matches("the key set has other keys").count(), source.asked());
    let before = changes();
    keys.reverse();
    source.answer(set(&keys));
    server.signal(Signal::HUP);
    eventually("it is fetched again", || (source.asked() > asked).then_some(()));
    // What is new is told behind what was not.
    source.answer(set(&keys[..1]));
    server.signal(Signal::HUP);
    eventually("other keys are noted", || (changes() > before).then_some(()));
    assert_eq!(changes(), before + 1);
}
