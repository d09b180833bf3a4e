//! Limits per address: how many connections of users there may be from one, and how fast they may come.

use serde_json::json;

use crate::client::{Client, service_token, token, upgrade_request, user_token};
use crate::http_client::{Http, Response};
use crate::server::{Server, eventually};

/// Asks for a WebSocket as the user, from the address that a trusted proxy names; the answer with the connection it is on.
fn upgrade(server: &Server, token: &str, address: &str) -> (Response, Http) {
    let mut http = server.http();
    http.send(&upgrade_request(&format!("/ws?token={token}"), &[("X-Forwarded-For", address)]));
    (http.response(), http)
}

fn server(limit: (&str, &str), more: &[(&str, &str)]) -> Server {
    let mut env = vec![("CHAT_RATES", "on"), ("CHAT_TRUSTED_PROXIES", "127.0.0.1"), limit];
    env.extend(more);
    Server::start_with(&env)
}

#[test]
fn so_many_connections_may_come_from_one_address_on_all_threads() {
    let server = server(("CHAT_ADDRESS_CONNECTIONS_MAX", "5"), &[]);
    let mut open = Vec::new();
    for number in 0..5 {
        // In one /64.
        let (response, http) = upgrade(&server, &user_token(&format!("user-{number}")), &format!("2001:db8::{number}"));
        assert_eq!(response.status, 101);
        open.push(http);
    }
    for _ in 0..5 {
        let (response, mut http) = upgrade(&server, &user_token("more"), "2001:db8::ffff");
        response.assert_error(429, "rate_limited");
        assert_eq!(response.header("retry-after"), Some("1"));
        assert!(http.closes());
    }
    assert_eq!(upgrade(&server, &user_token("else"), "2001:db8:0:1::").0.status, 101);
    let service = token(&json!({"userId": "erp", "chatRole": "service"}));
    assert_eq!(upgrade(&server, &service, "2001:db8::1").0.status, 101);
    drop(open.pop());
    let again = eventually("a place is free", || {
        let (response, http) = upgrade(&server, &user_token("more"), "2001:db8::ffff");
        (response.status == 101).then_some(http)
    });
    upgrade(&server, &user_token("more"), "2001:db8::ffff").0.assert_error(429, "rate_limited");
    drop((again, open));
}

#[test]
fn so_many_connections_may_come_at_once() {
    let server = server(("CHAT_ADDRESS_CONNECTS_PER_SECOND", "1"), &[("CHAT_ADDRESS_CONNECTS_BURST", "30")]);
    let begun = std::time::Instant::now();
    let come = (0..60).filter(|_| upgrade(&server, &user_token("ana"), "192.0.2.1").0.status == 101).count();
    let earned = begun.elapsed().as_secs() as usize + 1;
    assert!((30..=30 + earned).contains(&come), "{come}");
    let (response, _) = upgrade(&server, &user_token("ana"), "192.0.2.1");
    response.assert_error(429, "rate_limited");
    assert_eq!(upgrade(&server, &user_token("ana"), "192.0.2.2").0.status, 101);
    // REST has its own limits.
    assert_eq!(server.http().bearer(&service_token(), "GET", "/api/chat/rooms", None).status, 200);
}

#[test]
fn who_brings_the_token_later_is_told_on_the_socket() {
    let server = server(("CHAT_ADDRESS_CONNECTIONS_MAX", "1"), &[]);
    let _first = Client::user(&server, "ana");
    let mut second =
        Client::dial(server.socket(), "/ws", &[("Sec-WebSocket-Protocol", "sizland.v1")]).expect("the upgrade");
    second.send(json!({"type": "auth", "token": user_token("ben"), "ref": 7}));
    let refused = second.expect("error");
    assert_eq!((&refused["code"], &refused["ref"]), (&json!("rate_limited"), &json!(7)));
    assert!(refused["retryAfterMs"].is_u64());
    assert_eq!(second.expect_close().0, 4029);
}

#[test]
fn addresses_are_not_limited_unless_asked_for() {
    let server = Server::start_with(&[("CHAT_RATES", "on")]);
    let clients: Vec<Client> = (0..300).map(|number| Client::user(&server, &format!("user-{number}"))).collect();
    assert_eq!(clients.len(), 300);
}
