//! The record of denials: what is logged of those who are refused, in both forms, and how often.

use serde_json::{Value, json};
use tungstenite::Message;

use crate::client::{Client, RawClient, now_s, token, upgrade_request, user_token};
use crate::http_client::{messages_path, request};
use crate::server::{API_KEY, Server, eventually};

const JSON: (&str, &str) = ("CHAT_LOG_FORMAT", "json");

/// The lines of the log so far, each a JSON object.
fn lines(server: &Server) -> Vec<Value> {
    server.log().lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// Waits for a denial of that reason.
fn denial(server: &Server, reason: &str) -> Value {
    eventually(reason, || {
        lines(server).into_iter().find(|line| line["message"] == "denied" && line["reason"] == reason)
    })
}

#[test]
fn every_denial_says_why_who_and_from_where() {
    let server = Server::start_with(&[JSON, ("CHAT_ORIGINS", "https://app.example.com")]);
    let mut http = server.http();
    http.call("GET", "/api/chat/rooms", &[("X-API-Key", "not the key, by far")], None).assert_error(401, "forbidden");
    denial(&server, "api_key");
    http.call("GET", "/api/chat/rooms", &[], None).assert_error(401, "forbidden");
    denial(&server, "no_credential");
    http.bearer(&user_token("ana"), "GET", "/api/chat/rooms", None).assert_error(403, "forbidden");
    let forbidden = denial(&server, "forbidden");
    assert_eq!(forbidden["user"], "ana");

    let expired = token(&json!({"userId": "ana", "exp": now_s() - 1}));
    let mut client = Client::dial(server.socket(), &format!("/ws?token={expired}"), &[]).expect("the upgrade");
    assert_eq!(client.expect_close().0, 1008);
    let invalid = denial(&server, "invalid_token");
    assert_eq!(
        (&invalid["detail"], &invalid["user"], &invalid["address"]),
        (&json!("expired"), &json!(""), &json!("127.0.0.1"))
    );

    let path = format!("/ws?token={}", user_token("ana"));
    let refused = Client::dial(server.socket(), &path, &[("Origin", "https://evil.example")]);
    assert!(refused.is_err());
    assert_eq!(denial(&server, "origin")["detail"], "https://evil.example");

    let revoke = json!({"revokeBefore": (now_s() + 10) * 1000});
    assert_eq!(http.service("POST", "/api/chat/users/ana/disconnect", Some(&revoke)).status, 200);
    let mut client = Client::dial(server.socket(), &path, &[]).expect("the upgrade");
    assert_eq!(client.expect_close().0, 1008);
    assert_eq!(denial(&server, "revoked_token")["user"], "ana");

    let log = server.log();
    for secret in [API_KEY, "not the key, by far", &user_token("ana"), &expired] {
        assert!(!log.contains(secret));
    }
}

#[test]
fn rooms_that_are_closed_are_in_the_record_and_services_under_the_name_of_their_key() {
    let access = ("CHAT_ROOM_ACCESS", "news=claims,lobby=members,open=open");
    let environment = [JSON, access, ("CHAT_STORE", "memory"), ("CHAT_LOG", "debug")];
    let server = Server::start_with(&environment);
    let mut client = Client::connect(&server, &user_token("ana"));
    for room in ["news", "lobby", "other"] {
        client.request(json!({"type": "join_room", "roomId": room}));
        eventually(room, || {
            let of_room =
                |line: Value| line["reason"] == "forbidden" && line["detail"] == room && line["user"] == "ana";
            lines(&server).into_iter().any(of_room).then_some(())
        });
    }
    server.http().bearer(&user_token("bo"), "GET", "/api/chat/rooms/lobby/online", None).assert_error(403, "forbidden");
    // A message of another is closed to a user as well.
    server.http().service("POST", &messages_path("open"), Some(&json!({"id": "m", "content": "of the ERP"})));
    let message = format!("{}/m", messages_path("open"));
    server.http().bearer(&user_token("cy"), "DELETE", &message, None).assert_error(403, "forbidden");
    for user in ["bo", "cy"] {
        eventually("over REST", || {
            let of_user =
                |line: &Value| line["reason"] == "forbidden" && line["detail"] == "REST" && line["user"] == user;
            lines(&server).into_iter().find(of_user)
        });
    }
    assert_eq!(server.http().service("GET", "/api/chat/rooms", None).status, 200);
    let call = eventually("the call", || lines(&server).into_iter().find(|line| line["call"] == "Rooms"));
    assert_eq!((&call["message"], &call["key"]), (&json!("a service calls"), &json!("default")));
    assert!(!server.log().contains(API_KEY));
}

#[test]
fn a_flood_of_denials_writes_a_few_lines_and_then_their_number() {
    let server = Server::start_with(&[JSON, ("CHAT_DENIAL_LINES_PER_SECOND", "3"), ("CHAT_THREADS", "1")]);
    let mut http = server.http();
    for _ in 0..200 {
        http.send(&request("GET", "/api/chat/rooms", &[("X-API-Key", "not the key, by far")], None));
        assert_eq!(http.response().status, 401);
    }
    let count = |lines: &[Value]| {
        let of_key = lines.iter().filter(|line| line["reason"] == "api_key");
        of_key.fold((0, 0), |(logged, suppressed), line| match line["suppressed"].as_u64() {
            Some(number) => (logged, suppressed + number),
            None => (logged + 1, suppressed),
        })
    };
    // The last count comes once its second is over, also when nobody asks any more.
    let (logged, suppressed) = eventually("all denials are accounted for", || {
        let (logged, suppressed) = count(&lines(&server));
        (logged + suppressed == 200).then_some((logged, suppressed))
    });
    assert!(suppressed >= 140, "{logged} lines, {suppressed} left out");
}

#[test]
fn nothing_that_a_peer_chose_can_forge_a_line() {
    let user = "ana\u{202e}\u{2028}\" denied reason=\"forged";
    let claims = json!({"userId": user});
    let broken = token(&json!({"userId": "a\nb"}));
    let mut invalid = token(&claims);
    invalid.push('x');
    for format in ["text", "json"] {
        let server = Server::start_with(&[("CHAT_LOG_FORMAT", format), ("CHAT_ORIGINS", "https://app.example.com")]);
        let mut client = Client::connect(&server, &token(&claims));
        client.send_message(Message::text("x".repeat(70_000)));
        assert_eq!(client.expect_close().0, 1009);
        server.http().bearer(&token(&claims), "GET", "/api/chat/rooms", None).assert_error(403, "forbidden");
        server.http().bearer(&broken, "GET", "/api/chat/rooms", None).assert_error(403, "forbidden");
        server.http().bearer(&invalid, "GET", "/api/chat/rooms", None).assert_error(401, "forbidden");
        let request = upgrade_request("/ws", &[("Origin", "https://e\u{202e}vil\u{85}x")]);
        let (_, head) = RawClient::sending(server.socket(), &request);
        assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
        let log = eventually("both are logged", || {
            let log = server.log();
            ["violation", "forbidden", "invalid_token", "origin"]
                .iter()
                .all(|reason| log.contains(reason))
                .then_some(log)
        });
        let shows = |c: char| c == '\n' || c.is_ascii_graphic() || c == ' ';
        assert!(log.chars().all(shows), "{log}");
        assert_eq!(log.lines().count(), 7, "two for the start and one for each denial: {log}");
        for line in log.lines() {
            assert_eq!(line.starts_with('{'), format == "json", "{line}");
            if format == "json" {
                let line: Value = serde_json::from_str(line).expect(line);
                assert!(
                    line["user"].is_null() || ["", user, "a\nb"].contains(&line["user"].as_str().unwrap_or("?")),
                    "{line}"
                );
            } else {
                assert!(!line.contains("reason=\"forged"), "{line}");
            }
        }
    }
}
