//! Names, texts, paths and tokens that are made to be misread: kept as data, or refused; never more.
//!
//! The README's table of attacks names these tests.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto;
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use crate::client::{Client, RawClient, now_s, token, unique, upgrade_request, user_token};
use crate::http_client::{Http, messages_path, request};
use crate::live_room::beside;
use crate::server::{API_KEY, SECRET, Server, eventually};

const RTL: &str = "\u{202e}gpj.exe\u{2066}";

/// A user whose name is any text at all.
fn named(server: &Server, user: &str) -> Client {
    Client::connect(server, &token(&json!({"userId": user, "exp": now_s() + 3600})))
}

/// Each line of the log is one, begins as every line does, and shows no character that changes what stands beside it.
fn assert_log_is_sound(server: &Server, is_json: bool) {
    let log = server.log();
    assert!(log.lines().count() > 1, "nothing is logged");
    for line in log.lines() {
        if is_json {
            assert!(serde_json::from_str::<Value>(line).is_ok_and(|line| line["timestamp"].is_string()), "{line}");
        } else {
            assert!(line.starts_with("20") && line.as_bytes().get(10) == Some(&b'T'), "{line:?}");
        }
        let bad =
            |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        assert!(!line.contains(bad), "{line:?}");
    }
}

/// The answer to a text that is sent as it is.
fn answer(client: &mut Client, text: &str) -> Value {
    client.send_text(text);
    client.next()
}

#[test]
fn deep_json() {
    let server = Server::start();
    beside(&server, || {
        let mut ana = Client::in_room(&server, "ana", "r");
        for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
            for depth in [101, 129, 10_000] {
                let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
                // A field that nobody knows is ignored, however deep it is.
                let text = format!(r#"{{"type":"ping","ref":1,"x":{deep}}}"#);
                assert_eq!(answer(&mut ana, &text)["type"], "pong");
                let text = format!(r#"{{"type":"send_message","roomId":"r","content":{deep}}}"#);
                assert_eq!(answer(&mut ana, &text)["code"], "invalid_message", "{depth}");
                let body = format!(r#"{{"content":{deep}}}"#);
                let mut http = server.http();
                http.send(&request("POST", &messages_path("r"), &[("X-API-Key", API_KEY)], Some(&body)));
                http.response().assert_error(422, "invalid_message");
            }
            let endless = open.repeat(60_000 / open.len());
            assert_eq!(answer(&mut ana, &endless)["code"], "invalid_json");
        }
        ana.expect_none();
    });
}

#[test]
fn huge_ids() {
    let server = Server::start();
    beside(&server, || {
        let mut ana = Client::in_room(&server, "ana", "r");
        for room in ["x".repeat(257), "x".repeat(60_000), "\u{1f642}".repeat(65)] {
            let (_, refused) = ana.request(json!({"type": "join_room", "roomId": room}));
            assert_eq!(refused["code"], "invalid_message");
        }
        for id in [json!("x".repeat(129)), json!("x".repeat(60_000)), json!(1u64 << 54), json!(-1.5), json!(1e300)] {
            let (_, refused) = ana.request(json!({"type": "reaction", "roomId": "r", "messageId": id, "emoji": "x"}));
            assert_eq!(refused["code"], "invalid_message", "{id}");
        }
        for number in ["1e999", "9007199254740993", "99999999999999999999999999", "-0.0"] {
            let text = format!(r#"{{"type":"reaction","roomId":"r","messageId":{number},"emoji":"x"}}"#);
            assert_eq!(answer(&mut ana, &text)["code"], "invalid_message", "{number}");
        }
        for user in ["x".repeat(129), "x".repeat(4_000)] {
            let token = token(&json!({"userId": user}));
            let mut client = Client::dial(server.socket(), &format!("/ws?token={token}"), &[]).expect("the upgrade");
            assert_eq!(client.expect_close().0, 1008);
        }
        // The longest that there may be.
        let mut bea = named(&server, &"é".repeat(64));
        bea.join(&"é".repeat(128));
        ana.expect_none();
    });
}

#[test]
fn duplicate_and_escaped_keys() {
    let server = Server::start();
    beside(&server, || {
        let mut ana = Client::in_room(&server, "ana", "r");
        // A name is what it is after unescaping, and no name may stand twice: no reader has to choose.
        let escaped = r#"{"ty\u0070e":"pi\u006eg","ref":7}"#;
        assert_eq!(answer(&mut ana, escaped)["ref"], 7);
        for body in [
            r#"{"content":"a","content":"b"}"#,
            r#"{"content":"a","c\u006fntent":"b"}"#,
            r#"{"content":"a","s\u0065q":5}"#,
            r#"{"content":"a","t\u0079pe":"user_left"}"#,
        ] {
            let mut http = server.http();
            http.send(&request("POST", &messages_path("r"), &[("X-API-Key", API_KEY)], Some(body)));
            http.response().assert_error(422, "invalid_message");
            let sent = body.replacen('{', r#"{"type":"send_message","roomId":"r","ref":1,"#, 1);
            let refused = answer(&mut ana, &sent);
            assert_eq!((&refused["type"], &refused["code"]), (&json!("error"), &json!("invalid_message")), "{sent}");
        }
        // Nobody becomes somebody else by naming a sender, escaped or not.
        let sent = r#"{"type":"send_message","roomId":"r","content":"a","\u0073ender_user_id":"eve"}"#;
        let event = answer(&mut ana, sent);
        assert_ne!(event["sender_user_id"], "eve", "{event}");
        ana.expect_none();
    });
}

#[test]
fn lone_surrogates() {
    let server = Server::start();
    beside(&server, || {
        let mut ana = Client::in_room(&server, "ana", "r");
        for text in [
            r#"{"type":"join_room","roomId":"\ud800"}"#,
            r#"{"type":"reaction","roomId":"r","messageId":"\udfff","emoji":"x"}"#,
            r#"{"type":"reaction","roomId":"r","messageId":"m","emoji":"\ud83d"}"#,
        ] {
            assert_eq!(answer(&mut ana, text)["code"], "invalid_message", "{text}");
        }
        // In a value they are the poster's, and go out as written.
        let mut raw = RawClient::connect(&server, "raw");
        raw.write(&crate::client::masked_frame(0x81, br#"{"type":"join_room","roomId":"r"}"#));
        (0..2).for_each(|_| drop(raw.frame()));
        let mut http = server.http();
        http.send(&request("POST", &messages_path("r"), &[("X-API-Key", API_KEY)], Some(r#"{"content":"\ud800x"}"#)));
        assert_eq!(http.response().status, 201);
        let event = raw.frame().expect("the message").1;
        assert!(String::from_utf8_lossy(&event).contains(r#""content":"\ud800x""#));
        // As bytes they are no UTF-8.
        raw.write(&crate::client::masked_frame(0x81, b"{\"type\":\"\xed\xa0\x80\"}"));
        assert_eq!(raw.close_code(), 1007);
    });
}

#[test]
fn nul() {
    let server = Server::start_with(&[("CHAT_LOG", "trace")]);
    beside(&server, || {
        let mut ana = Client::in_room(&server, "ana", "r");
        assert_eq!(ana.request(json!({"type": "join_room", "roomId": "a\0b"})).1["code"], "invalid_message");
        assert_eq!(answer(&mut ana, "{\"type\":\"pi\0ng\"}")["code"], "invalid_json");
        let (before, _) = ana.request(json!({"type": "send_message", "roomId": "r", "content": "a\0b"}));
        assert_eq!(before[0]["content"], "a\0b");
        server.http().service("GET", "/api/chat/rooms/a%00b/online", None).assert_error(400, "invalid_message");
        ana.expect_none();
    });
}

#[test]
fn text_that_turns_round() {
    let server = Server::start_with(&[("CHAT_LOG", "trace"), ("CHAT_CONNECTIONS_PER_USER_MAX", "1")]);
    beside(&server, || {
        let (user, room) = (format!("{RTL}{}", unique("u")), format!("{RTL}{}", unique("r")));
        let mut client = named(&server, &user);
        assert_eq!(client.connected["userId"], json!(user), "kept as it is");
        assert_eq!(client.join(&room)["online"], json!([user]));
        // This one takes its place, which is logged.
        let _second = named(&server, &user);
        assert_eq!(client.expect_close().0, 4503);
    });
    eventually("the dismissal is logged", || server.log().contains("gpj.exe").then_some(()));
    assert_log_is_sound(&server, true);
}

#[test]
fn lines_forged_in_the_log() {
    for format in ["json", "text"] {
        let env = [("CHAT_LOG", "trace"), ("CHAT_LOG_FORMAT", format), ("CHAT_CONNECTIONS_PER_USER_MAX", "1")];
        let server = Server::start_with(&env);
        beside(&server, || {
            let line = "x\n2026-01-01T00:00:00Z  INFO forged=\"yes\"\r\n{\"level\":\"INFO\",\"message\":\"forged\"}\u{2028}\u{1b}[2J";
            let mut client = named(&server, line);
            let _second = named(&server, line);
            assert_eq!(client.expect_close().0, 4503);
            for path in ["/ws?token=x%0d%0aforged", "/ws?x=%0aforged&token=x", "/%1b%5b2Jforged"] {
                RawClient::sending(server.socket(), &upgrade_request(path, &[]));
            }
            let fields = [("Origin", "http://x\u{202e}forged"), ("User-Agent", "\u{1b}[2Jforged")];
            RawClient::sending(server.socket(), &upgrade_request("/ws?token=x", &fields));
            // A line feed ends a field, so one in a field makes another of the rest, and no line of the log.
            let mut http = server.http();
            http.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-API-Key: a\nforged: yes\r\n\r\n");
            assert_eq!(http.response().status, 400);
        });
        eventually("the dismissal is logged", || server.log().contains("Replaced by a newer connection").then_some(()));
        assert_log_is_sound(&server, format == "json");
        assert!(
            !server.log().lines().any(|line| line.starts_with("2026-01-01") || line.contains("\"message\":\"forged\""))
        );
    }
}

#[test]
fn tricks_in_paths() {
    let server = Server::start();
    beside(&server, || {
        let get = |path: &str| {
            let mut http = server.http();
            http.send(&request("GET", path, &[("X-API-Key", API_KEY)], None));
            http.response()
        };
        // Split, then decoded, and that once.
        for (path, room) in
            [("a%2Fb", "a/b"), ("a%252fb", "a%2fb"), ("%2e%2e%2fb", "../b"), ("a%3Fb%23", "a?b#"), ("..a", "..a")]
        {
            let mut client = Client::in_room(&server, &unique("u"), room);
            let online = get(&format!("/api/chat/rooms/{path}/online"));
            assert_eq!((online.status, &online.json()["count"]), (200, &json!(1)), "{path}");
            server.http().post(path, &json!({"content": "x"}));
            assert_eq!(client.expect("new_message")["roomId"], room);
        }
        for path in ["..", ".", "%2e%2e", "%2E", "a%0d%0ab", "%7f", "%c2%85", ""] {
            let status = get(&format!("/api/chat/rooms/{path}/online")).status;
            assert!([400, 404, 422].contains(&status), "{path}: {status}");
        }
        // Overlong, cut short, a surrogate, beyond Unicode, and no hexadecimal digits.
        for path in [
            "%c0%af",
            "%e0%80%af",
            "%f0%80%80%af",
            "%c3",
            "%ed%a0%80",
            "%f4%90%80%80",
            "%ff",
            "%",
            "%2",
            "%zz",
            "%u002f",
        ] {
            assert_eq!(get(&format!("/api/chat/rooms/{path}/online")).status, 400, "{path}");
        }
        for path in [
            "/api/chat/rooms/r/../../../healthz",
            "/api//chat/rooms",
            "/api/chat/rooms/",
            "//healthz",
            "/API/chat/rooms",
            "/healthz/",
            "/api%2fchat%2frooms",
        ] {
            assert_eq!(get(path).status, 404, "{path}");
        }
        for target in ["healthz", "/a b", "/\u{e4}", "/a\\b\u{1}"] {
            assert_eq!(get(target).status, 400, "{target}");
        }
    });
}

/// A token with any header, signed with the secret.
fn with_header(header: &Value, claims: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("a secret signs");
    format!("{message}.{signature}")
}

/// Whether a token opens a WebSocket; if not, it is closed as the contract says.
fn opens(server: &Server, token: &str) -> bool {
    let mut client = Client::dial(server.socket(), &format!("/ws?token={token}"), &[]).expect("the upgrade is served");
    match client.read() {
        Ok(message) => message["type"] == "connected",
        Err(end) => {
            assert!(end.to_string().starts_with("close 1008 "), "{end}");
            false
        }
    }
}

#[test]
fn odd_tokens() {
    let server = Server::start();
    beside(&server, || {
        let claims = json!({"userId": "u", "exp": now_s() + 60}).to_string();
        let good = with_header(&json!({"alg": "HS256"}), &claims);
        assert!(opens(&server, &good));
        // A key is never taken from where a token says, so what it says opens nothing that is not signed.
        for kid in [
            json!("../../../../dev/null"),
            json!("' OR 1=1 --"),
            json!("\0"),
            json!(7),
            json!({"a": []}),
            json!("x".repeat(4_000)),
        ] {
            let header =
                json!({"alg": "HS256", "kid": kid, "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/"});
            let signed = with_header(&header, &claims);
            let (message, _) = signed.rsplit_once('.').expect("three parts");
            let forged =
                crypto::sign(message.as_bytes(), &EncodingKey::from_secret(b""), Algorithm::HS256).expect("signed");
            assert!(!opens(&server, &format!("{message}.{forged}")), "{kid}");
        }
        for header in [
            json!({"alg": "none"}),
            json!({"alg": "None"}),
            json!({"alg": "hs256"}),
            json!({"alg": ["HS256"]}),
            json!({}),
            json!({"alg": "HS256", "crit": ["exp"]}),
            json!({"alg": "RS256"}),
            json!([]),
            json!("HS256"),
        ] {
            assert!(!opens(&server, &with_header(&header, &claims)), "{header}");
        }
        // A token in a token is no token.
        assert!(!opens(&server, &with_header(&json!({"alg": "HS256", "cty": "JWT"}), &good)));
        for text in
            ["", ".", "..", "...", "a.b.c", &good.replace('.', "%2e."), &format!("{good}."), &format!(".{good}")]
        {
            let mut client = Client::dial(server.socket(), &format!("/ws?token={text}"), &[]).expect("the upgrade");
            assert_eq!(client.expect_close().0, 1008, "{text}");
        }
        let deep = format!(r#"{{"userId":"u","a":{}{}}}"#, "[".repeat(2_000), "]".repeat(2_000));
        opens(&server, &with_header(&json!({"alg": "HS256"}), &deep));
    });
}

#[test]
fn tokens_of_a_mebibyte() {
    let server = Server::start();
    beside(&server, || {
        let long = "a".repeat(1024 * 1024);
        for (path, fields) in [
            (format!("/ws?token={long}"), String::new()),
            ("/ws".to_owned(), format!("Authorization: Bearer {long}\r\n")),
            ("/ws".to_owned(), format!("Sec-WebSocket-Protocol: sizland.v1, bearer.{long}\r\n")),
            ("/api/chat/rooms".to_owned(), format!("X-API-Key: {long}\r\n")),
        ] {
            let mut http = Http::over(server.socket());
            let _ = http.try_send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n").as_bytes());
            // The rest of it may find the connection gone, and the answer with it.
            let status = http.try_response().map(|response| response.status);
            assert!(status.is_none_or(|status| status == 414 || status == 431), "{status:?}");
        }
        let protocol = [("Sec-WebSocket-Protocol", "sizland.v1")];
        let mut client = Client::dial(server.socket(), "/ws", &protocol).expect("the upgrade is served");
        client.try_send(json!({"type": "auth", "token": long}));
        assert_eq!(client.expect_close().0, 1009);
        // As long as a message may be, and longer than a token may be.
        let mut client = Client::dial(server.socket(), "/ws", &protocol).expect("the upgrade is served");
        client.send(json!({"type": "auth", "token": "a".repeat(60_000)}));
        assert_eq!(client.expect_close().0, 1008);
        let mut ana = Client::connect(&server, &user_token("ana"));
        assert_eq!(ana.request(json!({"type": "refresh_token", "token": "a".repeat(60_000)})).1["code"], "forbidden");
    });
}
