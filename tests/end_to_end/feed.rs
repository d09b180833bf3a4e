//! The feed of all durable events: in order, from any cursor, and as soon as there is one.

use serde_json::{Value, json};

use crate::client::Client;
use crate::http_client::{Http, request};
use crate::server::{API_KEY, Server, Signal, eventually};

const FEED: &str = "/api/chat/events";

fn read(server: &Server, query: &str) -> Value {
    let response = server.http().service("GET", &format!("{FEED}{query}"), None);
    assert_eq!(response.status, 200, "{response:?}");
    response.json()
}

fn cursor(page: &Value) -> String {
    page["next"].as_str().expect("a page has a cursor").to_owned()
}

/// Sends the request and reads no answer.
fn poll(server: &Server, query: &str) -> Http {
    let mut http = server.http();
    http.send(&request("GET", &format!("{FEED}{query}"), &[("X-API-Key", API_KEY)], None));
    http
}

fn contents(page: &Value) -> Vec<&Value> {
    page["events"].as_array().expect("a page has events").iter().map(|event| &event["content"]).collect()
}

#[test]
fn events_of_all_rooms_come_once_and_in_order() {
    let server = Server::start_durable();
    let begin = read(&server, "");
    assert_eq!((&begin["events"], &begin["more"]), (&json!([]), &json!(false)));
    for n in 0..20 {
        server.http().post(&format!("room-{}", n % 3), &json!({"content": n}));
    }
    let all: Vec<Value> = (0..20).map(|n| json!(n)).collect();
    assert_eq!(contents(&read(&server, "?limit=99999")), all.iter().collect::<Vec<_>>());
    let (mut at, mut found) = (cursor(&begin), Vec::new());
    loop {
        let page = read(&server, &format!("?after={at}&limit=7"));
        found.extend(contents(&page).into_iter().cloned());
        at = cursor(&page);
        if page["more"] == false {
            break;
        }
        assert_eq!(page["events"].as_array().map(Vec::len), Some(7));
    }
    assert_eq!(found, all);
    assert_eq!(contents(&read(&server, &format!("?after={at}&wait=0"))).len(), 0);
    server.http().service("GET", &format!("{FEED}?after=nonsense"), None).assert_error(422, "invalid_message");
    server.http().service("GET", &format!("{FEED}?after=1-1"), None).assert_error(409, "conflict");
}

#[test]
fn every_kind_of_event_is_in_it() {
    let server = Server::start_durable();
    let mut ana = Client::in_room(&server, "ana", "r");
    for action in [
        json!({"type": "send_message", "roomId": "r", "content": "x", "id": "0190a5b0-0000-7000-8000-00000000000f"}),
        json!({"type": "reaction", "roomId": "r", "messageId": "m", "emoji": "x", "action": "add"}),
        json!({"type": "reaction", "roomId": "r", "messageId": "m", "emoji": "x", "action": "remove"}),
        json!({"type": "edit_message", "roomId": "r", "messageId": "0190a5b0-0000-7000-8000-00000000000f", "content": "y"}),
        json!({"type": "delete_message", "roomId": "r", "messageId": "0190a5b0-0000-7000-8000-00000000000f"}),
    ] {
        ana.request(action);
    }
    let page = read(&server, "");
    let events = page["events"].as_array().expect("events");
    let kinds: Vec<(&Value, &Value)> = events.iter().map(|event| (&event["type"], &event["seq"])).collect();
    let expected = ["new_message", "reaction", "reaction_removed", "message_updated", "message_deleted"];
    let expected: Vec<(Value, Value)> = expected.iter().zip(1..).map(|(kind, seq)| (json!(kind), json!(seq))).collect();
    assert_eq!(kinds, expected.iter().map(|(kind, seq)| (kind, seq)).collect::<Vec<_>>());
    assert!(events.iter().all(|event| event["roomId"] == "r"), "{page}");
}

#[test]
fn who_waits_gets_the_next_event_as_it_comes() {
    let server = Server::start_durable();
    let at = cursor(&read(&server, ""));
    let mut waiting: Vec<Http> = (0..8).map(|_| poll(&server, &format!("?after={at}&wait=60"))).collect();
    server.http().post("r", &json!({"content": "first"}));
    for http in &mut waiting {
        let page = http.response().json();
        assert_eq!(contents(&page), ["first"], "{page}");
        let next = cursor(&page);
        http.send(&request("GET", &format!("{FEED}?after={next}&wait=60"), &[("X-API-Key", API_KEY)], None));
    }
    server.http().post("s", &json!({"content": "second"}));
    for http in &mut waiting {
        assert_eq!(contents(&http.response().json()), ["second"]);
    }
}

#[test]
fn who_waits_in_vain_gets_an_empty_page() {
    let server = Server::start_durable();
    let at = cursor(&read(&server, ""));
    let page = read(&server, &format!("?after={at}&wait=1"));
    assert_eq!((&page["events"], &page["more"]), (&json!([]), &json!(false)));
    // Nothing is lost in between.
    server.http().post("r", &json!({"content": "x"}));
    assert_eq!(contents(&read(&server, &format!("?after={}&wait=60", cursor(&page)))), ["x"]);
}

#[test]
fn waits_are_bounded_and_who_goes_away_is_forgotten() {
    let server = Server::start_with(&[("CHAT_STORE", "memory"), ("CHAT_THREADS", "1"), ("CHAT_FEED_WAITS_MAX", "1")]);
    let at = cursor(&read(&server, ""));
    let query = format!("?after={at}&wait=60");
    let first = poll(&server, &query);
    eventually("a second one is refused", || {
        let response = server.http().service("GET", &format!("{FEED}?after={at}&wait=1"), None);
        (response.status == 503).then_some(response)
    })
    .assert_error(503, "overloaded");
    assert_eq!(contents(&read(&server, &format!("?after={at}"))).len(), 0, "who does not wait is served");
    drop(first);
    let mut second = eventually("its place is free again", || {
        let mut http = poll(&server, &query);
        server.http().post("r", &json!({"content": "x"}));
        let response = http.response();
        (response.status == 200).then_some(response)
    });
    second.body.truncate(10);
    assert_eq!(second.body, b"{\"events\":");
}

#[test]
fn who_waits_is_answered_when_the_server_stops() {
    let mut server = Server::start_durable();
    let at = cursor(&read(&server, ""));
    let mut waiting: Vec<Http> = (0..4).map(|_| poll(&server, &format!("?after={at}&wait=60"))).collect();
    // Behind an answer on each connection, so that all have been read before.
    for http in &mut waiting {
        http.send(&request("GET", "/healthz", &[], None));
    }
    eventually("all wait", || (server.established() >= 4).then_some(()));
    server.signal(Signal::TERM);
    let answers: Vec<_> = waiting.iter_mut().map(Http::response).collect();
    for answer in answers {
        assert!(answer.status == 200 || answer.status == 503, "{answer:?}");
    }
    assert_eq!(server.wait_exit(crate::server::DEADLINE).code(), Some(0));
}
