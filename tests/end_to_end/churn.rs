//! Connections come and go while messages flow; those who stay lose nothing, see nothing twice, and see all in order.

use std::thread;

use serde_json::{Value, json};

use crate::client::{Client, fence};
use crate::http_client::request;
use crate::server::{API_KEY, Server, eventually};

const ROOMS: usize = 4;
const STAYERS_PER_ROOM: usize = 5;
const MESSAGES_PER_ROOM: u64 = 300;
const CHURNERS: usize = 4;
const CONNECTIONS_PER_CHURNER: usize = 125;

fn room(number: usize) -> String {
    format!("room-{number}")
}

#[test]
fn five_hundred_churning_connections_disturb_nobody() {
    let server = Server::start();
    let stayers: Vec<(usize, Client)> = (0..ROOMS * STAYERS_PER_ROOM)
        .map(|number| (number % ROOMS, Client::in_room(&server, &format!("stayer-{number}"), &room(number % ROOMS))))
        .collect();
    let stayers = thread::scope(|scope| {
        let readers: Vec<_> =
            stayers.into_iter().map(|(number, client)| scope.spawn(move || (number, read_all(client)))).collect();
        for churner in 0..CHURNERS {
            let server = &server;
            scope.spawn(move || churn(server, churner));
        }
        for number in 0..ROOMS {
            let server = &server;
            scope.spawn(move || post_all(server, number));
        }
        readers.into_iter().map(|reader| reader.join().expect("no gap, double or disorder")).collect::<Vec<_>>()
    });
    // Once all is quiet, exactly those who stayed are there, each knows it, and each still hears.
    for number in 0..ROOMS {
        eventually("only the stayers are online", || {
            let online = server.http().service("GET", &format!("/api/chat/rooms/{}/online", room(number)), None).json();
            (online["count"] == STAYERS_PER_ROOM).then_some(())
        });
    }
    for (number, (mut client, seq)) in stayers {
        let (_, reaction) = {
            fence(&room(number), &mut client, []);
            client.request(json!({"type": "reaction", "roomId": room(number), "messageId": "m", "emoji": "x"}))
        };
        assert_eq!(reaction["type"], "ack", "{reaction}");
        assert!(seq >= MESSAGES_PER_ROOM);
    }
}

/// Reads until the last message of the room; gives the client back with the last number seen.
fn read_all(mut client: Client) -> (Client, u64) {
    let mut next = 0;
    let mut seq: Option<u64> = None;
    while next < MESSAGES_PER_ROOM {
        let message = client.next();
        if let Some(number) = message["seq"].as_u64().filter(|_| is_durable(&message)) {
            assert!(seq.is_none_or(|last| number == last + 1), "{number} after {seq:?}");
            seq = Some(number);
        }
        if message["type"] == "new_message" {
            assert_eq!(message["content"], next, "in order, none lost, none twice");
            next += 1;
        }
    }
    (client, seq.unwrap_or(0))
}

fn is_durable(message: &Value) -> bool {
    matches!(message["type"].as_str(), Some("new_message" | "reaction"))
}

/// Connects, joins, takes part a little, and goes in one of several ways, again and again.
fn churn(server: &Server, churner: usize) {
    for number in 0..CONNECTIONS_PER_CHURNER {
        let mut client = Client::user(server, &format!("churner-{churner}-{}", number % 10));
        let (first, second) = (room(number % ROOMS), room((number + 1) % ROOMS));
        let join = |room: &str| json!({"type": "join_room", "roomId": room});
        match number % 5 {
            // Gone before the join is answered.
            0 => client.send(join(&first)),
            1 => {
                client.send_together(&[join(&first), join(&second), json!({"type": "typing_start", "roomId": first})]);
                client.wait_for("online_update");
            }
            2 => {
                client.send(join(&first));
                client.wait_for("online_update");
                client.send(json!({"type": "reaction", "roomId": first, "messageId": number, "emoji": "x"}));
                client.wait_for("reaction");
            }
            3 => {
                client.send_together(&[join(&first), json!({"type": "leave_room", "roomId": first}), join(&first)]);
                client.wait_for("online_update");
                client.close();
            }
            _ => {
                client.send(join(&first));
                assert_eq!(client.request(json!({"type": "leave_room", "roomId": first})).1["type"], "ack");
            }
        }
    }
}

fn post_all(server: &Server, number: usize) {
    let mut http = server.http();
    let path = format!("/api/chat/rooms/{}/messages", room(number));
    for message in 0..MESSAGES_PER_ROOM {
        http.send(&request("POST", &path, &[("X-API-Key", API_KEY)], Some(&json!({"content": message}).to_string())));
        let response = http.response();
        assert_eq!(response.status, 201, "{response:?}");
    }
}
