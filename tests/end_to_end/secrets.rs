//! What must never be in a log: tokens, keys, and what people write to each other, at any level, served or refused.

use std::process::Command;

use serde_json::json;

use crate::client::{Client, RawClient, masked_frame, now_s, signed, token, upgrade_request};
use crate::http_client::{Http, messages_path, request};
use crate::server::{Server, Signal, bare, eventually, isolate, serve};
use crate::store_folder::StoreFolder;

/// Part of every secret and of every message of this test, and of nothing else.
const MARK: &str = "Wq7Zx9Kd";

/// Secret, API key, and a word for content: all with the mark.
fn secret() -> String {
    format!("{MARK}-secret-that-has-at-least-32-bytes")
}

fn api_key() -> String {
    format!("{MARK}-api-key-of-a-backend")
}

fn words(what: &str) -> String {
    format!("{MARK} {what}")
}

fn user_token(user: &str) -> String {
    signed(jsonwebtoken::Algorithm::HS256, &secret(), &json!({"userId": user, "exp": now_s() + 3600, "name": MARK}))
}

/// Tokens carry the mark encoded: their signature is looked for as well.
fn signature(token: &str) -> String {
    token.rsplit('.').next().expect("three parts").to_owned()
}

/// All that was printed, once the server has ended.
fn whole_log(mut server: Server) -> String {
    server.signal(Signal::TERM);
    server.wait_exit(crate::server::DEADLINE);
    eventually("the last line is logged", || server.log().contains("stopped").then(|| server.log()))
}

fn assert_silent(log: &str, tokens: &[String]) {
    for line in log.lines() {
        assert!(!line.contains(MARK), "{line}");
        for token in tokens {
            assert!(!line.contains(&signature(token)) && !line.contains(token.split('.').nth(1).unwrap()), "{line}");
        }
    }
}

/// Tokens in every place, good and bad.
fn use_tokens(server: &Server, good: &str, bad: &str) {
    for token in [good, bad] {
        let protocols = format!("sizland.v1, bearer.{token}");
        let bearer = format!("Bearer {token}");
        for (path, fields) in [
            (format!("/ws?token={token}"), vec![]),
            (format!("/ws?TOKEN={token}&token={token}"), vec![]),
            (format!("/ws?%74oken={token}"), vec![]),
            (format!("/ws?a=b;token={token}#token={token}"), vec![]),
            (format!("/WS?token={token}"), vec![]),
            ("/ws".to_owned(), vec![("Authorization", bearer.as_str())]),
            ("/ws".to_owned(), vec![("Sec-WebSocket-Protocol", protocols.as_str())]),
            ("/ws".to_owned(), vec![("Authorization", bearer.as_str()), ("Origin", "null"), ("X-API-Key", token)]),
        ] {
            RawClient::sending(server.socket(), &upgrade_request(&path, &fields));
        }
        let protocol = [("Sec-WebSocket-Protocol", "sizland.v1")];
        let mut client = Client::dial(server.socket(), "/ws", &protocol).expect("the upgrade is served");
        client.send(json!({"type": "auth", "token": token}));
        if client.read().is_ok() {
            client.request(json!({"type": "auth", "token": token}));
            client.request(json!({"type": "refresh_token", "token": token}));
            client.request(json!({"type": "refresh_token", "token": bad}));
        }
        let get = |fields: &[(&str, &str)], path: &str| {
            let mut http = server.http();
            http.send(&request("GET", path, fields, None));
            http.response().status
        };
        get(&[("Authorization", &bearer)], "/api/chat/rooms");
        get(&[("Authorization", &bearer)], "/api/chat/rooms/r/online");
        get(&[("X-API-Key", token)], &format!("/api/chat/rooms?token={token}"));
        get(&[], &format!("/api/chat/nowhere?token={token}"));
        // A request that cannot be read.
        let mut http = Http::over(server.socket());
        http.send(
            format!("GET /ws?token={token} HTTP/1.1\r\nAuthorization: {bearer}\r\nX Y: {token}\r\n\r\n").as_bytes(),
        );
        http.response();
    }
}

/// Messages in every way, taken and refused.
fn use_content(server: &Server) {
    let mut ana = Client::connect(server, &user_token("ana"));
    ana.join("r");
    let id = "5e0f2f4c-8a51-4f0e-9f5b-1d4f3f9f5a10";
    let attachments = json!([{"url": words("attachment")}]);
    for message in [
        json!({"type": "send_message", "roomId": "r", "id": id, "content": words("sent"), "attachments": attachments}),
        json!({"type": "send_message", "roomId": "r", "id": id, "content": words("conflict")}),
        json!({"type": "send_message", "roomId": "r", "id": words("no UUID"), "content": words("refused")}),
        json!({"type": "send_message", "roomId": "elsewhere", "content": words("not in room")}),
        json!({"type": "edit_message", "roomId": "r", "messageId": id, "content": words("edited")}),
        json!({"type": "edit_message", "roomId": "r", "messageId": "none", "content": words("of nobody")}),
        json!({"type": "reaction", "roomId": "r", "messageId": id, "emoji": MARK}),
        json!({"type": "delete_message", "roomId": "r", "messageId": id, "why": words("deleted")}),
        json!({"type": words("unknown"), "x": MARK}),
        json!({"type": "mark_read", "roomId": "r", "seq": MARK}),
    ] {
        ana.request(message);
    }
    ana.send_text(&format!("{{\"content\": \"{MARK}"));
    ana.expect("error");
    let key = api_key();
    let call = |method: &str, path: &str, fields: &[(&str, &str)], body: &str| {
        let mut http = server.http();
        http.send(&request(method, path, fields, Some(body)));
        http.response_to(method).status
    };
    let body = json!({"content": words("posted"), "extra": MARK}).to_string();
    let good = [("X-API-Key", key.as_str()), ("Idempotency-Key", MARK)];
    let wrong = format!("{key}-wrong");
    let bad = [("X-API-Key", wrong.as_str())];
    for fields in [&good[..], &bad[..]] {
        call("POST", &messages_path("r"), fields, &body);
        call("POST", &messages_path("r"), fields, &json!({"content": words("other")}).to_string());
        call("POST", &messages_path("r"), fields, &body[..20]);
        call("POST", "/api/chat/rooms/r/events", fields, &json!({"type": "custom", "x": words("event")}).to_string());
        call("POST", "/api/chat/users/ana/events", fields, &json!({"type": "custom", "x": words("event")}).to_string());
        call("POST", "/api/chat/broadcast", fields, &json!({"rooms": ["r"], "message": {"content": MARK}}).to_string());
        call("PATCH", "/api/chat/rooms/r/messages/1", fields, &json!({"content": words("patched")}).to_string());
        call("POST", &messages_path("r"), fields, &json!({"content": MARK.repeat(100_000)}).to_string());
        call("GET", "/api/chat/events", fields, "");
        call("GET", &messages_path("r"), fields, "");
    }
    let mut raw =
        RawClient::sending(server.socket(), &upgrade_request(&format!("/ws?token={}", user_token("raw")), &[])).0;
    raw.write(&masked_frame(0x81, format!("{MARK}\u{0}\n").as_bytes()));
    // A frame that breaks the protocol, and one that is no UTF-8.
    raw.write(&masked_frame(0xf1, MARK.as_bytes()));
    raw.drain();
    call("POST", "/api/chat/users/ana/disconnect", &good[..1], &json!({"reason": "bye"}).to_string());
    call("POST", "/api/chat/users/ana/erase", &good[..1], "");
    call("DELETE", "/api/chat/rooms/r", &good[..1], "");
}

#[test]
fn nothing_secret_is_logged_at_any_level() {
    for format in ["json", "text"] {
        let folder = StoreFolder::new();
        let (secret, key, store) = (secret(), api_key(), folder.text("chat.db"));
        let env = [
            ("JWT_SECRET", secret.as_str()),
            ("CHAT_API_KEY", &key),
            ("CHAT_STORE", &store),
            ("CHAT_LOG", "trace"),
            ("CHAT_LOG_FORMAT", format),
            ("CHAT_ORIGINS", "https://app.example.com"),
        ];
        let server = Server::launch(|port| serve(port, &env));
        let good = user_token("ana");
        // By another secret, expired, and by no algorithm that is configured.
        let bad = [
            token(&json!({"userId": MARK, "exp": now_s() + 3600})),
            signed(jsonwebtoken::Algorithm::HS256, &secret, &json!({"userId": "ana", "exp": 1, "name": MARK})),
            signed(jsonwebtoken::Algorithm::HS512, &secret, &json!({"userId": {"no": MARK}})),
        ];
        bad.iter().for_each(|bad| use_tokens(&server, &good, bad));
        use_content(&server);
        let log = whole_log(server);
        assert!(log.contains("1008") || log.contains("token"), "denials are logged: {log}");
        let mut tokens = bad.to_vec();
        tokens.push(good);
        assert_silent(&log, &tokens);
    }
}

#[test]
fn commands_say_nothing_secret() {
    let folder = StoreFolder::new();
    let (secret, key) = (secret(), api_key());
    let run = |args: &[&str], more: &[(&str, &str)]| {
        let mut command = bare(args);
        command.env("JWT_SECRET", &secret).env("CHAT_API_KEY", &key).env("CHAT_LOG", "trace");
        command.env("CHAT_STORE", folder.text("chat.db")).envs(more.iter().copied());
        let output = command.output().expect("the binary runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let file = folder.text("lines");
    let line = json!({"type": "message", "roomId": "r", "content": words("imported"), "nonsense": MARK});
    std::fs::write(&file, format!("{line}\n{MARK}\n")).expect("the folder can be written");
    for said in [
        run(&["check"], &[]),
        run(&["check"], &[("CHAT_THREADS", "none")]),
        run(&["check"], &[("JWT_SECRET", &format!("short-{MARK}"))]),
        run(&["check"], &[("CHAT_API_KEY", MARK)]),
        run(&["check"], &[("CHAT_API_KEYS_OLD", &key)]),
        run(&["check", "--set", &format!("CHAT_SECRET_X={MARK}")], &[]),
        run(&["import", &file], &[]),
        run(&["backup", &folder.text("copy.db")], &[]),
    ] {
        assert!(!said.is_empty() && !said.contains(MARK), "{said}");
    }
    // `.env` and a file, with secrets where they do not belong.
    std::fs::write(folder.text(".env"), format!("JWT_SECRET={MARK}\nCHAT_API_KEY='{MARK}\n")).expect("writable");
    std::fs::write(folder.text("chat.toml"), format!("jwt_secret = \"{MARK}\"\napi_key = [\"{MARK}\"\n"))
        .expect("writable");
    for more in [vec![], vec![("CHAT_CONFIG", "chat.toml")]] {
        let mut command = Command::new(crate::server::BINARY);
        isolate(&mut command);
        command.arg("check").current_dir(folder.path()).envs(more);
        let output = command.output().expect("the binary runs");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.code() == Some(2) && !said.contains(MARK), "{said}");
    }
}
