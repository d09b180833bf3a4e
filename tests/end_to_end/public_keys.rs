//! Tokens that are signed with a private key, in every place of a token; and keys that are read again.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Client, now_s, token, unique};
use crate::http_client::request;
use crate::server::{Server, Signal, bare, eventually, run, with_defaults};
use crate::signing::{Signer, public};
use crate::store_folder::StoreFolder;

const ALGORITHMS: [&str; 9] = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];

/// A token of a user, good for ten minutes.
pub fn user_token(signer: &Signer, header: &str, user: &str) -> String {
    signer.sign(header, &json!({"userId": user, "exp": now_s() + 600, "jti": unique("jti")}).to_string())
}

fn key_file(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/signing");
    folder.join(name).to_str().expect("a path in UTF-8").to_owned()
}

fn all_keys() -> String {
    ["rsa.pub.pem", "p256.crt.pem", "p384.pub.pem", "ed25519.pub.pem"].map(key_file).join(",")
}

fn online_status(server: &Server, token: &str) -> u16 {
    server.http().bearer(token, "GET", "/api/chat/rooms/r/online", None).status
}

fn refused(server: &Server, token: &str) -> (u16, String) {
    let client = Client::dial(server.socket(), &format!("/ws?token={token}"), &[]);
    client.expect("the upgrade is served").expect_close()
}

#[test]
fn every_algorithm_verifies_on_both_interfaces() {
    let keys = all_keys();
    let server = Server::start_with(&[("CHAT_JWT_KEYS", &keys)]);
    for algorithm in ALGORITHMS {
        let signer = Signer::of(algorithm);
        let good = user_token(&signer, "", "ana");
        assert_eq!(Client::connect(&server, &good).connected["userId"], "ana", "{algorithm}");
        assert_eq!(online_status(&server, &good), 200, "{algorithm}");
        let other = user_token(&signer, "", "ben");
        let forged = format!("{}.{}", good.rsplit_once('.').unwrap().0, other.rsplit_once('.').unwrap().1);
        assert_eq!(refused(&server, &forged), (1008, "Invalid token".to_owned()), "{algorithm}");
        assert_eq!(online_status(&server, &forged), 401, "{algorithm}");
        assert_eq!(online_status(&server, &good), 200, "{algorithm}: once more, as it is remembered");
    }
    // A secret goes on beside them.
    assert_eq!(online_status(&server, &token(&json!({"userId": "ana", "exp": now_s() + 60}))), 200);
    let expired = Signer::of("RS256").sign("", &json!({"userId": "ana", "exp": now_s() - 1}).to_string());
    assert_eq!(online_status(&server, &expired), 401);
    server.stop_in_order();
}

#[test]
fn a_remembered_token_still_expires_and_is_revoked() {
    let keys = key_file("ed25519.pub.pem");
    let server = Server::start_with(&[("CHAT_JWT_KEYS", &keys), ("CHAT_THREADS", "1")]);
    let claims = |exp: u64| json!({"userId": "ana", "iat": now_s() - 100, "exp": exp}).to_string();
    let signer = Signer::of("EdDSA");
    let soon = signer.sign("", &claims(now_s() + 2));
    let long = signer.sign("", &claims(now_s() + 600));
    assert_eq!((online_status(&server, &soon), online_status(&server, &long)), (200, 200));
    eventually("the token expires", || (online_status(&server, &soon) == 401).then_some(()));
    assert_eq!(online_status(&server, &long), 200);
    let body = json!({"revokeBefore": (now_s() - 50) * 1000});
    assert_eq!(server.http().service("POST", "/api/chat/users/ana/disconnect", Some(&body)).status, 200);
    assert_eq!(online_status(&server, &long), 401);
}

#[test]
fn a_revocation_outlives_a_restart_and_a_move() {
    let folder = StoreFolder::new();
    let store = folder.text("chat.db");
    let env = [("CHAT_STORE", store.as_str())];
    let old = token(&json!({"userId": "ana", "iat": now_s() - 100, "exp": now_s() + 600}));
    let fresh = token(&json!({"userId": "ana", "iat": now_s(), "exp": now_s() + 600}));
    let server = Server::start_with(&env);
    let mut ana = Client::connect(&server, &old);
    let body = json!({"revokeBefore": (now_s() - 50) * 1000});
    let answer = server.http().service("POST", "/api/chat/users/ana/disconnect", Some(&body));
    assert_eq!((answer.status, answer.json()), (200, json!({"disconnected": 1})));
    assert_eq!(ana.expect_close().0, 4500);
    assert_eq!((online_status(&server, &old), online_status(&server, &fresh)), (401, 200));
    // Whether it ends in order or at once.
    server.signal(Signal::KILL);
    drop(server);
    let (lines, copy) = (folder.text("lines"), folder.text("copy.db"));
    for (command, store) in [("export", &store), ("import", &copy)] {
        let mut command = bare(&[command, &lines]);
        command.env("CHAT_STORE", store);
        assert_eq!(run(command).code, Some(0));
    }
    for store in [&store, &store, &copy] {
        let server = Server::start_with(&[("CHAT_STORE", store)]);
        assert!((0..8).all(|_| online_status(&server, &old) == 401), "on every thread");
        assert_eq!(online_status(&server, &fresh), 200);
        assert_eq!(refused(&server, &old), (1008, "Invalid token".to_owned()));
        server.stop_in_order();
    }
}

#[test]
fn every_place_of_the_token_waits_for_its_check() {
    let keys = all_keys();
    let server = Server::start_with(&[("CHAT_JWT_KEYS", &keys)]);
    let signer = Signer::of("RS256");
    let fresh = || user_token(&signer, "", "ana");
    let greeted = |client: Result<Client, _>| {
        let mut client: Client = client.map_err(|_: Box<_>| "refused").expect("the upgrade is served");
        assert_eq!(client.expect("connected")["userId"], "ana");
        client
    };
    greeted(Client::dial(server.socket(), &format!("/ws?token={}", fresh()), &[]));
    greeted(Client::dial(server.socket(), "/ws", &[("Authorization", &format!("Bearer {}", fresh()))]));
    let protocol = format!("sizland.v1, bearer.{}", fresh());
    greeted(Client::dial(server.socket(), "/ws", &[("Sec-WebSocket-Protocol", &protocol)]));
    // The first message, with others right behind it.
    let mut late = Client::dial(server.socket(), "/ws", &[("Sec-WebSocket-Protocol", "sizland.v1")]).expect("served");
    late.send_together(&[
        json!({"type": "auth", "token": fresh(), "ref": "a"}),
        json!({"type": "join_room", "roomId": "r"}),
        json!({"type": "ping", "ref": "p"}),
    ]);
    assert_eq!(late.expect("connected")["userId"], "ana");
    assert_eq!(late.expect("ack")["ref"], "a");
    let (before, _) = late.until(|message| message["type"] == "pong");
    assert!(before.iter().all(|message| message["type"] != "error"), "{before:?}");
    let mut bad = Client::dial(server.socket(), "/ws", &[("Sec-WebSocket-Protocol", "sizland.v1")]).expect("served");
    let forged = Signer::second("RS256").sign("", &json!({"userId": "ana"}).to_string());
    bad.send_together(&[json!({"type": "auth", "token": forged}), json!({"type": "join_room", "roomId": "r"})]);
    assert_eq!(bad.expect_close(), (1008, "Invalid token".to_owned()));
    server.stop_in_order();
}

#[test]
fn what_is_sent_behind_a_refresh_takes_effect_behind_it() {
    let keys = all_keys();
    let server = Server::start_with(&[("CHAT_JWT_KEYS", &keys), ("CHAT_STORE", "memory")]);
    let signer = Signer::of("PS256");
    let mut ana = Client::connect(&server, &user_token(&signer, "", "ana"));
    ana.join("r");
    let mut ben = Client::in_room(&server, "ben", "r");
    ana.wait_for("user_joined");
    let expires_at = now_s() + 7200;
    let moderator = json!({"userId": "ana", "chatRole": "moderator", "exp": expires_at}).to_string();
    let posted = server.http().post("r", &json!({"content": "of ben", "id": "m-1", "sender_user_id": "ben"}));
    assert_eq!(posted["seq"], 1, "{posted}");
    ana.wait_for("new_message");
    // Before the refresh she may not delete it, behind it she may; and a bad one takes nothing away.
    ana.send_together(&[
        json!({"type": "delete_message", "roomId": "r", "messageId": "m-1", "ref": "1"}),
        json!({"type": "refresh_token", "token": signer.sign("", &moderator), "ref": "2"}),
        json!({"type": "refresh_token", "token": user_token(&signer, "", "ben"), "ref": "3"}),
        json!({"type": "delete_message", "roomId": "r", "messageId": "m-1", "ref": "4"}),
        json!({"type": "ping", "ref": "5"}),
    ]);
    let mut answers = Vec::new();
    while answers.len() < 5 {
        let message = ana.next();
        if let Some(reference) = message["ref"].as_str() {
            answers.push((reference.to_owned(), message["type"].as_str().unwrap_or_default().to_owned()));
            if reference == "2" {
                assert_eq!(message["expiresAt"], expires_at * 1000, "{message}");
            }
        }
    }
    answers.sort();
    let kinds: Vec<&str> = answers.iter().map(|(_, kind)| kind.as_str()).collect();
    assert_eq!(kinds, ["error", "ack", "error", "ack", "pong"], "{answers:?}");
    assert_eq!(ben.wait_for("message_deleted")["id"], "m-1");
}

#[test]
fn pipelined_requests_are_answered_in_order_whoever_checks_their_tokens() {
    let keys = all_keys();
    let server = Server::start_with(&[("CHAT_JWT_KEYS", &keys)]);
    let mut http = server.http();
    let path = "/api/chat/rooms/r/messages";
    let post = |token: &str, content: &str| {
        let authorization = format!("Bearer {token}");
        let headers = [("Authorization", authorization.as_str()), ("Content-Type", "application/json")];
        request("POST", path, &headers, Some(&json!({"content": content}).to_string()))
    };
    let (signer, secret) = (Signer::of("RS256"), token(&json!({"userId": "ana", "exp": now_s() + 60})));
    let forged = Signer::second("RS256").sign("", r#"{"userId":"ana"}"#);
    let tokens = [user_token(&signer, "", "ana"), secret, forged, user_token(&signer, "", "ana")];
    let requests = tokens.iter().enumerate().map(|(at, token)| post(token, &format!("m-{at}")));
    http.send(&requests.collect::<Vec<_>>().concat());
    http.finish_sending();
    let answers = tokens.map(|_| http.response());
    assert_eq!([201, 201, 401, 201], [0, 1, 2, 3].map(|at: usize| answers[at].status), "{answers:?}");
    let seqs: Vec<Value> = [0, 1, 3].map(|at: usize| answers[at].json()["seq"].clone()).to_vec();
    assert_eq!(seqs, [json!(1), json!(2), json!(3)], "they took effect in their order");
}

#[test]
fn a_flood_of_bad_tokens_stalls_no_room() {
    let keys = all_keys();
    let server = Server::start_with(&[("CHAT_JWT_KEYS", &keys), ("CHAT_TOKEN_CHECKS_MAX", "64")]);
    let mut ana = Client::in_room(&server, "ana", "r");
    let mut ben = Client::in_room(&server, "ben", "r");
    ana.wait_for("user_joined");
    let (done, checked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let template = Signer::second("RS256").sign("", r#"{"userId":"mallory"}"#);
    let attackers: Vec<_> = (0..8)
        .map(|attacker| {
            let (done, checked, template) = (done.clone(), checked.clone(), template.clone());
            let mut http = server.http();
            std::thread::spawn(move || {
                let (message, signature) = template.rsplit_once('.').unwrap();
                for number in 0.. {
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                    // Another signature each time, so that nothing can be remembered.
                    let forged = format!("{message}.{}{attacker:04}{number:06}AA", &signature[..signature.len() - 12]);
                    let status = http.bearer(&forged, "GET", "/api/chat/rooms/r/online", None).status;
                    assert!(matches!(status, 401 | 503), "{status}");
                    checked.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    eventually("the flood has begun", || (checked.load(Ordering::Relaxed) > 50).then_some(()));
    let mut slowest = Duration::ZERO;
    for number in 0..200 {
        let began = Instant::now();
        ana.send(json!({"type": "send_message", "roomId": "r", "content": number.to_string()}));
        assert_eq!(ben.wait_for("new_message")["content"], number.to_string());
        slowest = slowest.max(began.elapsed());
    }
    let during = checked.load(Ordering::Relaxed);
    assert_eq!(online_status(&server, &token(&json!({"userId": "ana", "exp": now_s() + 60}))), 200);
    done.store(true, Ordering::Relaxed);
    attackers.into_iter().for_each(|attacker| attacker.join().expect("an attacker is answered"));
    println!("200 messages beside {during} bad tokens, the slowest in {slowest:?}");
    assert!(slowest < Duration::from_secs(2), "{slowest:?} beside {during} bad tokens");
    // Who has a good one gets in again.
    let good = user_token(&Signer::of("RS256"), "", "cem");
    eventually("a good token verifies", || (online_status(&server, &good) == 200).then_some(()));
    server.stop_in_order();
}

#[test]
fn key_files_are_read_again_and_who_is_there_stays() {
    let folder = StoreFolder::new();
    let path = folder.file("erp.pem");
    std::fs::write(&path, public("rsa")).unwrap();
    let server = Server::start_with(&[("CHAT_JWT_KEYS", path.to_str().unwrap())]);
    let (old, new) = (Signer::of("RS256"), Signer::second("RS256"));
    let old_token = user_token(&old, "", "ana");
    let mut ana = Client::connect(&server, &old_token);
    assert_eq!((online_status(&server, &old_token), online_status(&server, &user_token(&new, "", "ana"))), (200, 401));
    std::fs::write(&path, "nothing of use").unwrap();
    server.signal(Signal::HUP);
    server.log_line(|line| line.contains("could not be read again") && line.contains("no -----BEGIN"));
    assert_eq!(online_status(&server, &old_token), 200, "what was read before stays");
    std::fs::write(&path, public("rsa2")).unwrap();
    server.signal(Signal::HUP);
    eventually("the new key counts", || (online_status(&server, &user_token(&new, "", "ana")) == 200).then_some(()));
    eventually("every thread has it", || (online_status(&server, &old_token) == 401).then_some(()));
    ana.expect_none();
    server.stop_in_order();
}

#[test]
fn more_keys_of_a_kind_than_are_tried_stop_the_start() {
    let files =
        |count: usize| [vec![key_file("p256.crt.pem")], vec![key_file("rsa.pub.pem"); count]].concat().join(",");
    let check = |keys: &str| {
        let mut command = bare(&["check"]);
        with_defaults(&mut command, 3001, &[("CHAT_JWT_KEYS", keys)]);
        run(command)
    };
    assert_eq!(check(&files(4)).code, Some(0));
    let refused = check(&files(5));
    let words = ["rsa.pub.pem", "more than 4 RSA keys", "at most four of a kind"];
    assert!(
        refused.code == Some(2) && words.iter().all(|word| refused.stderr[0].contains(word)),
        "{:?}",
        refused.stderr
    );
}

#[test]
fn api_keys_have_names_and_are_revoked_without_a_restart() {
    let folder = StoreFolder::new();
    let path = folder.file("keys");
    let made = run(bare(&["api-key", "erp"]));
    assert_eq!(made.code, Some(0), "{:?}", made.stderr);
    let part = |at: usize| made.stdout[at].split_once(": ").unwrap().1.trim().to_owned();
    let (key, line) = (part(0), part(1));
    assert!(line.starts_with("erp:sha256:") && !line.contains(&key), "{line}");
    std::fs::write(&path, format!("# of the ERP\n{line}\nold:an-old-key-of-some-length\n")).unwrap();
    let keys = [("CHAT_API_KEYS_FILE", path.to_str().unwrap()), ("CHAT_API_KEYS", "more:another-key-of-some-length")];
    let server = Server::start_with(&keys);
    let status = |key: &str| server.http().call("GET", "/api/chat/rooms", &[("X-API-Key", key)], None).status;
    for good in [&key, "an-old-key-of-some-length", "another-key-of-some-length", crate::server::API_KEY] {
        assert_eq!(status(good), 200, "{good}");
    }
    let hash = line.rsplit(':').next().unwrap();
    for bad in ["", "erp", hash, "an-old-key-of-some-lengt", "an-old-key-of-some-length2"] {
        assert_eq!(status(bad), 401, "{bad}");
    }
    std::fs::write(&path, format!("{line}\n")).unwrap();
    eventually("the old key is revoked", || (0..8).all(|_| status("an-old-key-of-some-length") == 401).then_some(()));
    assert_eq!((status(&key), status("another-key-of-some-length")), (200, 200));
    assert!(!server.log().contains(&key) && !server.log().contains("an-old-key"), "no key is logged");
    let refused = run(bare(&["api-key", "no spaces"]));
    assert!(refused.code == Some(2) && refused.stderr.join("\n").contains("1 to 64 of the letters"));
}
