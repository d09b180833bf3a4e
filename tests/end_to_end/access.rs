//! Who may enter which room, in each mode, over WebSocket and REST alike.

use serde_json::{Value, json};

use crate::client::{Client, now_s, service_token, token, types, user_token};
use crate::http_client::{Response, messages_path};
use crate::server::{Server, bare, free_port, run, serve, with_defaults};
use crate::store_folder::StoreFolder;

const MEMBERS: [(&str, &str); 2] = [("CHAT_ROOM_ACCESS", "members"), ("CHAT_STORE", "memory")];

/// What somebody turns out to be in a room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum May {
    Nothing,
    Read,
    Write,
}

/// Tries all that there is to be tried in a room over both ways, and demands that all of it agrees.
#[track_caller]
pub fn tried(server: &Server, token: &str, user: &str, room: &str) -> May {
    let mut client = Client::connect(server, token);
    let mut rests = server.http();
    let path = messages_path(room);
    let reads = [
        rests.bearer(token, "GET", &format!("{path}?limit=1"), None),
        rests.bearer(token, "GET", &format!("/api/chat/rooms/{room}/online"), None),
        rests.bearer(token, "GET", &format!("/api/chat/messages?roomId={room}"), None),
        rests.bearer(token, "GET", &format!("/api/chat/rooms/{room}/read/{user}"), None),
    ];
    let writes = [
        rests.bearer(token, "POST", &path, Some(&json!({"content": "x"}))),
        rests.bearer(token, "PUT", &format!("{path}/7/reactions/x?userId={user}"), None),
        rests.bearer(token, "POST", &format!("/api/chat/messages?roomId={room}"), Some(&json!({"content": "x"}))),
        rests.bearer(token, "PATCH", &format!("{path}/nothing"), Some(&json!({"content": "x"}))),
        rests.bearer(token, "DELETE", &format!("{path}/nothing"), None),
    ];
    let (_, joined) = client.request(json!({"type": "join_room", "roomId": room}));
    let requests = [
        json!({"type": "typing_start", "roomId": room}),
        json!({"type": "send_message", "roomId": room, "content": "x"}),
        json!({"type": "reaction", "roomId": room, "messageId": 7, "emoji": "y"}),
        json!({"type": "edit_message", "roomId": room, "messageId": "nothing", "content": "x"}),
        json!({"type": "delete_message", "roomId": room, "messageId": "nothing"}),
    ];
    let sent = requests.map(|request| client.request(request).1);
    let may = match (&joined["type"] == "ack", sent.iter().all(|answer| answer["code"] != "forbidden")) {
        (false, _) => May::Nothing,
        (true, false) => May::Read,
        (true, true) => May::Write,
    };
    if may == May::Nothing {
        assert_eq!(joined["code"], "forbidden", "{joined}");
        assert!(sent.iter().all(|answer| answer["code"] == "not_in_room"), "{sent:#?}");
    } else {
        let forbidden = if may == May::Read { sent.len() } else { 0 };
        assert_eq!(sent.iter().filter(|answer| answer["code"] == "forbidden").count(), forbidden, "{sent:#?}");
    }
    let is_forbidden = |response: &Response| {
        let is_forbidden = response.status == 403;
        assert!(!is_forbidden || response.json()["code"] == "forbidden", "{response:?}");
        is_forbidden
    };
    assert!(reads.iter().all(|response| is_forbidden(response) == (may == May::Nothing)), "{may:?}: {reads:#?}");
    assert!(writes.iter().all(|response| is_forbidden(response) == (may != May::Write)), "{may:?}: {writes:#?}");
    may
}

fn member_path(room: &str, user: &str) -> String {
    format!("/api/chat/rooms/{room}/members/{user}")
}

/// Puts a member, or takes one away without a role; gives the version.
#[track_caller]
fn set(server: &Server, room: &str, user: &str, role: Option<&str>, version: Option<u64>) -> u64 {
    let response = try_set(server, room, user, role, version);
    assert_eq!(response.status, 200, "{response:?}");
    response.json()["version"].as_u64().expect("a version")
}

fn try_set(server: &Server, room: &str, user: &str, role: Option<&str>, version: Option<u64>) -> Response {
    let path = member_path(room, user);
    match role {
        Some(role) => server.http().service("PUT", &path, Some(&json!({"role": role, "version": version}))),
        None => {
            let query = version.map(|version| format!("?version={version}")).unwrap_or_default();
            server.http().service("DELETE", &format!("{path}{query}"), None)
        }
    }
}

#[test]
fn open_rooms_are_named_at_the_start() {
    let server = Server::start();
    assert_eq!(tried(&server, &user_token("ana"), "ana", "any"), May::Write);
    server.log_line(|line| line.contains("CHAT_ROOM_ACCESS"));
    let server = Server::start_with(&[("CHAT_ROOM_ACCESS", "lobby=open,*=claims")]);
    server.log_line(|line| line.contains("lobby"));
    let server = Server::start_with(&[("CHAT_ROOM_ACCESS", "claims")]);
    assert!(!server.log().contains("CHAT_ROOM_ACCESS"), "{}", server.log());
}

#[test]
fn what_is_not_accepted_stops_the_start() {
    for (env, words) in [
        (vec![("CHAT_ROOM_ACCESS", "private")], vec!["CHAT_ROOM_ACCESS=private", "project/*=members"]),
        (vec![("CHAT_ROOM_ACCESS", "a=open,")], vec!["CHAT_ROOM_ACCESS=a=open,"]),
        (vec![("CHAT_ROOM_ACCESS", "a=members"), ("CHAT_STORE", "none")], vec!["members", "CHAT_STORE"]),
        (vec![("CHAT_ROOMS_CLAIM", "exp")], vec!["CHAT_ROOMS_CLAIM=exp"]),
    ] {
        let finished = run(serve(free_port(), &env));
        assert_eq!(finished.code, Some(2), "{env:?}");
        let text = finished.stderr.join("\n");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}

#[test]
fn the_first_pattern_counts_and_no_match_closes_a_room() {
    let server = Server::start_with(&[("CHAT_ROOM_ACCESS", "lobby=open,team-*=claims"), ("CHAT_STORE", "memory")]);
    let token = token(&json!({"userId": "ana", "rooms": ["*"], "exp": now_s() + 3600}));
    for (room, may) in [("lobby", May::Write), ("team-1", May::Write), ("other", May::Nothing)] {
        assert_eq!(tried(&server, &token, "ana", room), may, "{room}");
    }
    assert_eq!(tried(&server, &service_token(), "erp", "other"), May::Write);
    server.http().post("other", &json!({"content": "the API key opens all"}));
}

#[test]
fn a_token_lists_its_rooms() {
    let env = [("CHAT_ROOM_ACCESS", "claims"), ("CHAT_ROOMS_CLAIM", "https://erp/rooms"), ("CHAT_STORE", "memory")];
    let server = Server::start_with(&env);
    let claims = json!({
        "userId": "ana",
        "https://erp/rooms": ["own", "team-*", {"room": "news-*", "role": "reader"}, {"room": "news-1", "role": "member"}],
        "rooms": ["other"],
        "exp": now_s() + 3600,
    });
    let ana = token(&claims);
    for (room, may) in [
        ("own", May::Write),
        ("team-7", May::Write),
        ("news-7", May::Read),
        ("news-1", May::Write),
        ("other", May::Nothing),
        ("owner", May::Nothing),
    ] {
        assert_eq!(tried(&server, &ana, "ana", room), may, "{room}");
    }
    assert_eq!(tried(&server, &user_token("ben"), "ben", "own"), May::Nothing, "no claim grants nothing");
    let moderator = json!({"userId": "mod", "chatRole": "moderator", "exp": now_s() + 3600});
    assert_eq!(
        tried(&server, &token(&moderator), "mod", "own"),
        May::Nothing,
        "a moderator needs to be let in as well"
    );
    let mut client = Client::connect(&server, &ana);
    let rooms = json!([{"roomId": "own"}, {"roomId": "other"}, {"roomId": "news-7"}]);
    let (_, ack) = client.request(json!({"type": "join_rooms", "rooms": rooms}));
    let codes: Vec<&Value> = ack["rooms"].as_array().expect("a list").iter().map(|room| &room["code"]).collect();
    assert_eq!(codes, [&Value::Null, &json!("forbidden"), &Value::Null]);
}

#[test]
fn a_reader_notes_what_was_read() {
    let server = Server::start_with(&[("CHAT_ROOM_ACCESS", "claims"), ("CHAT_STORE", "memory")]);
    server.http().post("r", &json!({"id": 1, "content": "x"}));
    let claims = json!({"userId": "ana", "rooms": [{"room": "r", "role": "reader"}], "exp": now_s() + 3600});
    let ana = token(&claims);
    let mut client = Client::connect(&server, &ana);
    client.join("r");
    assert_eq!(client.request(json!({"type": "mark_read", "roomId": "r", "seq": 1})).1["type"], "ack");
    let response = server.http().bearer(&ana, "PUT", "/api/chat/rooms/r/read/ana", Some(&json!({"seq": 1})));
    assert_eq!((response.status, response.json()), (200, json!({"seq": 1, "unread": 0})));
}

#[test]
fn a_new_token_leaves_the_rooms_that_it_does_not_grant() {
    let server = Server::start_with(&[("CHAT_ROOM_ACCESS", "claims"), ("CHAT_STORE", "memory")]);
    let granting = |user: &str, rooms: Value| token(&json!({"userId": user, "rooms": rooms, "exp": now_s() + 3600}));
    let mut ana = Client::connect(&server, &granting("ana", json!(["a", "b", "c"])));
    let mut tab = Client::connect(&server, &granting("ana", json!(["a", "b", "c"])));
    let mut ben = Client::connect(&server, &granting("ben", json!(["*"])));
    ["a", "b", "c"].iter().for_each(|room| drop(ben.join(room)));
    ["a", "b", "c"].iter().for_each(|room| drop(ana.join(room)));
    tab.join("b");
    for _ in 0..3 {
        ben.wait_for("user_joined");
    }
    let lesser = granting("ana", json!(["b", {"room": "c", "role": "reader"}]));
    // What is sent behind the new token is judged by it, and a join before it by both.
    ana.send_together(&[
        json!({"type": "refresh_token", "token": lesser, "ref": 1}),
        json!({"type": "send_message", "roomId": "a", "content": "late", "ref": 2}),
        json!({"type": "join_room", "roomId": "a", "ref": 3}),
        json!({"type": "send_message", "roomId": "c", "content": "as a reader", "ref": 4}),
        json!({"type": "send_message", "roomId": "b", "content": "still", "ref": 5}),
    ]);
    let (before, ack) = ana.until(|message| message["ref"] == 1);
    assert_eq!((types(&before), &ack["type"]), (vec!["removed_from_room"], &json!("ack")), "{before:?}");
    assert_eq!(before[0]["roomId"], "a");
    let (between, last) = ana.until(|message| message["ref"] == 5);
    assert_eq!(last["type"], "ack", "{last}");
    let code = |n: u64| between.iter().find(|message| message["ref"] == n).expect("an answer")["code"].clone();
    assert_eq!([code(2), code(3), code(4)], [json!("not_in_room"), json!("forbidden"), json!("forbidden")]);
    let left = ben.wait_for("user_left");
    assert_eq!((&left["roomId"], &left["userId"]), (&json!("a"), &json!("ana")));
    // Another tab has its own token.
    assert_eq!(tab.wait_for("new_message")["content"], "still");
    assert_eq!(tab.request(json!({"type": "join_room", "roomId": "a"})).1["type"], "ack");
}

#[test]
fn members_are_who_was_put_on_the_list() {
    let server = Server::start_with(&MEMBERS);
    let ana = user_token("ana");
    assert_eq!(tried(&server, &ana, "ana", "r"), May::Nothing);
    assert_eq!(set(&server, "r", "ana", Some("reader"), None), 1);
    assert_eq!(tried(&server, &ana, "ana", "r"), May::Read);
    assert_eq!(set(&server, "r", "ana", Some("member"), None), 2);
    assert_eq!(tried(&server, &ana, "ana", "r"), May::Write);
    assert_eq!(tried(&server, &ana, "ana", "s"), May::Nothing, "each room has its own");
    assert_eq!(tried(&server, &user_token("ben"), "ben", "r"), May::Nothing);
    assert_eq!(set(&server, "r", "ana", None, None), 3);
    assert_eq!(tried(&server, &ana, "ana", "r"), May::Nothing);
    assert_eq!(tried(&server, &service_token(), "erp", "r"), May::Write);
    // An empty body makes a member, and a number is the same user as its text.
    let response = server.http().service("PUT", &member_path("r", "42"), None);
    assert_eq!(response.json(), json!({"version": 1}));
    assert_eq!(tried(&server, &token(&json!({"userId": 42, "exp": now_s() + 3600})), "42", "r"), May::Write);
}

#[test]
fn a_member_who_comes_back_is_let_in_also_when_what_was_missed_is_gone() {
    let server = Server::start_with(&MEMBERS);
    set(&server, "r", "ana", Some("member"), None);
    let mut ana = Client::connect(&server, &user_token("ana"));
    let epoch = ana.join("r")["epoch"].clone();
    (0..5).for_each(|number| drop(server.http().post("r", &json!({"content": number.to_string()}))));
    assert_eq!(server.http().service("DELETE", "/api/chat/rooms/r", None).status, 200);
    ana.wait_for("removed_from_room");
    set(&server, "r", "ana", Some("reader"), None);
    let (events, answer) = ana.request(json!({"type": "join_room", "roomId": "r", "since": 1, "epoch": epoch}));
    assert_eq!((types(&events), &answer["type"]), (vec!["user_joined", "online_update"], &json!("ack")), "{events:?}");
    assert_eq!((&events[1]["recovered"], &events[1]["seq"]), (&json!(false), &json!(5)));
}

#[test]
fn the_calls_about_members() {
    let server = Server::start_with(&MEMBERS);
    let all = "/api/chat/rooms/r/members";
    let list = || server.http().service("GET", all, None).json();
    assert_eq!(list(), json!({"members": [], "more": false, "next": null}));
    set(&server, "r", "42", Some("member"), Some(10));
    for (role, version, status) in [
        (Some("member"), 10, 200),
        (Some("reader"), 10, 409),
        (Some("member"), 9, 409),
        (None, 9, 409),
        (None, 11, 200),
        (Some("member"), 10, 409),
        (None, 11, 200),
        (Some("reader"), 12, 200),
    ] {
        let response = try_set(&server, "r", "42", role, Some(version));
        assert_eq!(response.status, status, "{role:?} {version}: {response:?}");
        if status == 409 {
            response.assert_error(409, "conflict");
            assert!(response.json()["error"].as_str().expect("a text").contains("version 1"), "{response:?}");
        }
    }
    assert_eq!(list()["members"], json!([{"userId": 42, "role": "reader", "version": 12}]));
    let replace = |body: Value| server.http().service("PUT", all, Some(&body));
    let members = json!([{"userId": "ana"}, {"userId": 7, "role": "reader"}]);
    replace(json!({"members": members, "version": 11})).assert_error(409, "conflict");
    assert_eq!(replace(json!({"members": members, "version": 20})).json(), json!({"version": 20}));
    assert_eq!(replace(json!({"members": members, "version": 20})).status, 200);
    let expected =
        json!([{"userId": 7, "role": "reader", "version": 20}, {"userId": "ana", "role": "member", "version": 20}]);
    assert_eq!(list()["members"], expected);
    try_set(&server, "r", "42", Some("member"), Some(13)).assert_error(409, "conflict");
    let page = server.http().service("GET", &format!("{all}?limit=1"), None).json();
    assert_eq!((&page["more"], &page["next"]), (&json!(true), &json!("7")), "{page}");
    assert_eq!(server.http().service("GET", &format!("{all}?after=7"), None).json()["members"], json!([expected[1]]));
    for (body, status) in [
        (json!({"members": [{"userId": 1}, {"userId": "1"}]}), 422),
        (json!({"members": [{"userId": 1, "role": "owner"}]}), 422),
        (json!({"members": 7}), 422),
        (json!({}), 422),
        (json!({"members": [], "version": 0}), 422),
    ] {
        replace(body.clone()).assert_error(status, "invalid_message");
    }
    let ana = user_token("ana");
    for (method, path) in [("GET", all), ("PUT", all), ("PUT", "/api/chat/rooms/r/members/ana")] {
        let body = json!({"members": []});
        server
            .http()
            .bearer(&ana, method, path, Some(&body).filter(|_| method != "GET"))
            .assert_error(403, "forbidden");
    }
    let without = Server::start();
    without.http().service("PUT", &member_path("r", "ana"), None).assert_error(503, "unavailable");
    without.http().service("GET", all, None).assert_error(503, "unavailable");
}

#[test]
fn a_revocation_takes_effect_on_every_connection_before_it_is_answered() {
    let server = Server::start_with(&MEMBERS);
    set(&server, "r", "ana", Some("member"), None);
    set(&server, "r", "ben", Some("member"), None);
    let mut ben = Client::in_room(&server, "ben", "r");
    // On several threads, several tabs on some.
    let mut tabs: Vec<Client> = (0..12).map(|_| Client::in_room(&server, "ana", "r")).collect();
    ben.wait_for("user_joined");
    set(&server, "r", "ana", None, None);
    let online = server.http().service("GET", "/api/chat/rooms/r/online", None).json();
    assert_eq!(online, json!({"online": ["ben"], "count": 1}));
    server.http().post("r", &json!({"content": "behind it"}));
    assert_eq!(ben.expect("user_left")["userId"], "ana");
    ben.expect("new_message");
    for tab in &mut tabs {
        let removed = tab.expect("removed_from_room");
        assert_eq!((&removed["roomId"], removed["reason"].is_string()), (&json!("r"), true));
        let (before, error) = tab.request(json!({"type": "send_message", "roomId": "r", "content": "x"}));
        assert_eq!((types(&before), &error["code"]), (vec![], &json!("not_in_room")));
        let (before, error) = tab.request(json!({"type": "join_room", "roomId": "r"}));
        assert_eq!((types(&before), &error["code"]), (vec![], &json!("forbidden")), "{error}");
    }
    set(&server, "r", "ana", Some("reader"), None);
    tabs[0].join("r");
    assert_eq!(ben.expect("user_joined")["userId"], "ana");
    let replaced = server.http().service("PUT", "/api/chat/rooms/r/members", Some(&json!({"members": []})));
    assert_eq!(replaced.status, 200, "{replaced:?}");
    tabs[0].expect("removed_from_room");
    ben.wait_for("removed_from_room");
    let online = server.http().service("GET", "/api/chat/rooms/r/online", None).json();
    assert_eq!(online["count"], 0);
}

#[test]
fn joins_and_writes_beside_revocations_never_outlive_them() {
    let server = Server::start_with(&MEMBERS);
    let mut ben = Client::connect(&server, &service_token());
    ben.join("r");
    for round in 0..40 {
        set(&server, "r", "ana", Some("member"), None);
        let mut ana = Client::user(&server, "ana");
        let mut http = server.http();
        let delete = format!(
            "DELETE {} HTTP/1.1\r\nHost: x\r\nX-API-Key: {}\r\n\r\n",
            member_path("r", "ana"),
            crate::server::API_KEY
        );
        ana.send(json!({"type": "join_room", "roomId": "r"}));
        if round % 2 == 0 {
            ana.wait_for("online_update");
        }
        http.send(delete.as_bytes());
        for _ in 0..5 {
            ana.send(json!({"type": "send_message", "roomId": "r", "content": "beside it"}));
        }
        assert_eq!(http.response().status, 200);
        server.http().post("r", &json!({"content": "over", "id": format!("over-{round}")}));
        let (before, _) = ben.until(|message| message["id"] == format!("over-{round}"));
        // What ana wrote came before she left, and nothing after.
        let left = before.iter().rposition(|message| message["type"] == "user_left");
        let wrote = before.iter().rposition(|message| message["type"] == "new_message");
        assert!(wrote.is_none() || wrote < left, "{before:#?}");
        let (heard, error) = ana.request(json!({"type": "join_room", "roomId": "r"}));
        assert_eq!(error["code"], "forbidden", "{heard:#?}");
        assert!(!heard.iter().any(|message| message["content"] == "over"), "{heard:#?}");
        let removed = heard.iter().position(|message| message["type"] == "removed_from_room");
        let rest = heard.iter().skip(removed.map_or(heard.len(), |at| at + 1));
        assert!(rest.clone().all(|message| message["type"] == "error"), "the last message of the room: {heard:#?}");
        ana.close();
    }
}

#[test]
fn memberships_outlive_the_process_and_are_copied() {
    let folder = StoreFolder::new();
    let store = folder.text("chat.db");
    let env = |store: &'static str| [("CHAT_ROOM_ACCESS", "members"), ("CHAT_STORE", store)];
    let env = env(Box::leak(store.clone().into_boxed_str()));
    let server = Server::start_with(&env);
    set(&server, "r", "ana", Some("member"), Some(5));
    set(&server, "r", "42", Some("reader"), Some(6));
    set(&server, "r", "ben", None, Some(7));
    server.http().service(
        "PUT",
        "/api/chat/rooms/s/members",
        Some(&json!({"members": [{"userId": "ana"}], "version": 9})),
    );
    let list = |server: &Server, room: &str| {
        server.http().service("GET", &format!("/api/chat/rooms/{room}/members"), None).json()
    };
    let before = ["r", "s"].map(|room| list(&server, room));
    server.stop_in_order();
    let lines = folder.text("lines");
    let command = |arguments: &[&str], store: &str| {
        let mut command = bare(arguments);
        command.env("CHAT_STORE", store);
        let finished = run(command);
        assert_eq!(finished.code, Some(0), "{:#?}", finished.stderr);
        finished.stdout.join("\n")
    };
    command(&["export", &lines], &store);
    command(&["backup", &folder.text("backup.db")], &store);
    let copy = folder.text("copy.db");
    assert!(command(&["import", &lines], &copy).starts_with("5 lines kept, 0 "));
    assert!(command(&["import", &lines], &copy).starts_with("0 lines kept, 5 "));
    for name in ["chat.db", "backup.db", "copy.db"] {
        let store = folder.text(name);
        let server = Server::launch(|port| {
            let mut command = bare(&["serve"]);
            with_defaults(&mut command, port, &[("CHAT_ROOM_ACCESS", "members")]);
            command.env("CHAT_STORE", &store);
            command
        });
        assert_eq!(["r", "s"].map(|room| list(&server, room)), before, "{name}");
        assert_eq!(tried(&server, &user_token("ana"), "ana", "r"), May::Write, "{name}");
        assert_eq!(tried(&server, &user_token("42"), "42", "r"), May::Read, "{name}");
        assert_eq!(tried(&server, &user_token("ben"), "ben", "r"), May::Nothing, "{name}");
        try_set(&server, "r", "ben", Some("member"), Some(6)).assert_error(409, "conflict");
        try_set(&server, "s", "cem", Some("member"), Some(8)).assert_error(409, "conflict");
        server.stop_in_order();
    }
}

#[test]
fn who_is_erased_and_what_is_removed_has_no_members_any_more() {
    let server = Server::start_with(&MEMBERS);
    set(&server, "r", "ana", Some("member"), Some(5));
    set(&server, "s", "ana", Some("reader"), None);
    set(&server, "r", "ben", Some("member"), None);
    let mut ana = Client::in_room(&server, "ana", "r");
    let erased = server.http().service("POST", "/api/chat/users/ana/erase", None);
    assert_eq!(erased.status, 200, "{erased:?}");
    assert_eq!(ana.expect("removed_from_room")["roomId"], "r");
    for room in ["r", "s"] {
        assert_eq!(tried(&server, &user_token("ana"), "ana", room), May::Nothing, "{room}");
    }
    try_set(&server, "r", "ana", Some("member"), Some(5)).assert_error(409, "conflict");
    let mut ben = Client::in_room(&server, "ben", "r");
    assert_eq!(server.http().service("DELETE", "/api/chat/rooms/r", None).status, 200);
    ben.wait_for("removed_from_room");
    assert_eq!(ben.request(json!({"type": "join_room", "roomId": "r"})).1["code"], "forbidden");
    let members = server.http().service("GET", "/api/chat/rooms/r/members", None).json();
    assert_eq!(members["members"], json!([]));
    try_set(&server, "r", "ben", Some("member"), Some(1)).assert_error(409, "conflict");
    assert_eq!(set(&server, "r", "ben", Some("member"), None), 7);
    ben.join("r");
}
