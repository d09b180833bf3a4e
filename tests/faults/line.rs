//! Faults of the line between clients and server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::{Domain, SockRef, Socket, Type};

use crate::client::{RawClient, masked_frame, upgrade_request, user_token};
use crate::http_client::{Http, messages_path, request};
use crate::member::Member;
use crate::server::{API_KEY, prepare};
use crate::world::{Before, World, await_online, online};
use crate::{seed, skip};

const NO_NETWORK: &str = "networks of one's own need root, ip and /dev/net/tun";
const PARTITION: Duration = Duration::from_secs(60);

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("far{number}")).collect()
}

fn join_all(world: &World, users: &[String]) -> Vec<Member> {
    thread::scope(|scope| {
        let joins: Vec<_> = users.iter().map(|user| scope.spawn(|| Member::join(world.far(), user, "r"))).collect();
        joins.into_iter().map(|join| join.join().expect("everybody joins")).collect()
    })
}

fn post(http: &mut Http, count: u64) -> u64 {
    let mut seq = 0;
    for number in 0..count {
        seq = http.post("r", &json!({"content": "x".repeat(200), "number": number}))["seq"].as_u64().expect("a seq");
    }
    seq
}

fn read_all(members: &mut [Member], seq: u64) {
    thread::scope(|scope| members.iter_mut().for_each(|member| _ = scope.spawn(move || member.read_to(seq))));
}

#[test]
#[ignore = "needs root"]
fn a_line_that_loses_delays_and_reorders() {
    let Some(world) = World::new(&[]) else { return skip(NO_NETWORK) };
    let (before, users) = (Before::of(&world.server), names(8));
    let mut http = world.http();
    for (lost, delay, jitter) in [(0, 0, 0), (0, 30, 60), (20, 5, 0), (50, 10, 30)] {
        world.link.set(lost, delay, jitter);
        let mut members = join_all(&world, &users);
        let first = members[0].seq;
        // Those behind the line write as well.
        for (number, member) in members.iter_mut().enumerate() {
            for message in 0..10 {
                let id = format!("{number}-{message}-{lost}-{delay}");
                member.client.send(json!({"type": "reaction", "roomId": "r", "messageId": id, "emoji": "x"}));
            }
        }
        post(&mut http, 200);
        read_all(&mut members, first + 8 * 10 + 200);
        await_online(&mut http, "r", 8, Duration::from_secs(1));
        drop(members);
        await_online(&mut http, "r", 0, Duration::from_secs(10));
    }
    let (carried, lost) = world.link.carried_and_lost();
    println!("{carried} packets carried, {lost} lost, seed {}", seed());
    assert!(lost > 20, "the line is too good");
    before.assert_returned(&world.server, &mut http, "r", &users);
}

#[test]
#[ignore = "needs root"]
fn a_partition_of_a_minute() {
    let heartbeat = Duration::from_secs(5);
    let Some(world) = World::new(&[("CHAT_HEARTBEAT_MS", "5000")]) else { return skip(NO_NETWORK) };
    let (before, users) = (Before::of(&world.server), names(8));
    let mut http = world.http();
    world.link.set(0, 5, 0);
    let mut members = join_all(&world, &users);
    let mut near = Member::join(world.near(), "near", "r");
    let first = post(&mut http, 20);
    read_all(&mut members, first);

    world.link.cut(true);
    let cut = Instant::now();
    let (mut missed, mut gone) = (first, None);
    while cut.elapsed() < PARTITION {
        missed = post(&mut http, 1);
        let left = near.read_to(missed);
        assert!(left.iter().all(|event| ["user_left", "online_update"].contains(&event["type"].as_str().unwrap())));
        if gone.is_none() && online(&mut http, "r") == 1 {
            gone = Some(cut.elapsed());
        }
        thread::sleep(Duration::from_millis(250));
    }
    println!("all are gone {gone:?} after the cut");
    // A ping that was answered just before is the last that was heard; then one more interval is waited.
    assert!(gone.is_some_and(|gone| gone < 2 * heartbeat + Duration::from_secs(2)), "{gone:?}");
    world.link.cut(false);
    thread::scope(|scope| {
        members.iter_mut().for_each(|member| _ = scope.spawn(|| member.come_back(world.far())));
    });
    await_online(&mut http, "r", 9, heartbeat);
    let last = post(&mut http, 20);
    assert!(missed - first > 50, "little was missed: {}", missed - first);
    read_all(&mut members, last);
    near.read_to(last);
    drop((members, near));
    before.assert_returned(&world.server, &mut http, "r", &users);
}

/// A connection over the line whose window is full after a few KiB.
fn narrow(world: &World) -> TcpStream {
    let address: SocketAddr = ([10, 77, 0, 1], world.server.port()).into();
    let stream: TcpStream = world.link.clients.within(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a buffer can be narrowed");
        socket.connect(&address.into()).expect("the server is reached");
        socket.into()
    });
    prepare(&stream);
    stream
}

#[test]
#[ignore = "needs root"]
fn readers_whose_window_is_shut() {
    let env = [
        ("CHAT_OUTBOX_SOFT_BYTES", "65536"),
        ("CHAT_OUTBOX_HARD_BYTES", "131072"),
        ("CHAT_BODY_BYTES_MAX", "65536"),
        ("CHAT_SOCKET_SEND_BUFFER_BYTES", "8192"),
        ("CHAT_CLOSE_MS", "1000"),
    ];
    let Some(world) = World::new(&env) else { return skip(NO_NETWORK) };
    let (before, users) = (Before::of(&world.server), names(6));
    let mut http = world.http();
    world.link.set(0, 2, 0);
    let mut stuck: Vec<Member> = users[..3].iter().map(|user| Member::join(narrow(&world), user, "r")).collect();
    let mut members = join_all(&world, &users[3..]);
    let mut last = 0;
    for _ in 0..300 {
        last = http.post("r", &json!({"content": "x".repeat(2_000)}))["seq"].as_u64().expect("a seq");
        // Who reads is never behind.
        members.iter_mut().for_each(|member| _ = member.read_to(last));
    }
    await_online(&mut http, "r", 3, Duration::from_secs(5));
    for member in &mut stuck {
        let end = member.read_to_end();
        println!("{} ends with {end} at {} of {last}", member.user, member.seq);
        assert!(member.seq < last, "it was not behind");
        member.come_back(world.far());
        member.read_to(last);
    }
    await_online(&mut http, "r", 6, Duration::from_secs(1));
    drop((members, stuck));
    before.assert_returned(&world.server, &mut http, "r", &users);
}

/// Ends a connection by a reset, whatever is under way.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("linger can be set");
}

#[test]
#[ignore = "needs root"]
fn resets_in_the_middle_of_frames() {
    let Some(world) = World::new(&[]) else { return skip(NO_NETWORK) };
    let before = Before::of(&world.server);
    let mut http = world.http();
    world.link.set(0, 1, 3);
    let mut near = Member::join(world.near(), "near", "r");
    let large = json!({"type": "send_message", "roomId": "r", "content": "never whole".repeat(2_000)}).to_string();
    let frame = masked_frame(0x81, large.as_bytes());
    let body = json!({"content": "never whole".repeat(2_000)}).to_string();
    let call = request("POST", &messages_path("r"), &[("X-API-Key", API_KEY)], Some(&body));
    let upgrade = |user: &str| upgrade_request(&format!("/ws?token={}", user_token(user)), &[]);
    let users = names(40);
    for (round, user) in users.iter().enumerate() {
        // In a head, in a body, behind an upgrade, in a frame, and in one that is being read.
        let mut stream = world.far();
        match round % 5 {
            0 => stream.write_all(&upgrade(user)[..30]).expect("the server reads"),
            1 => stream.write_all(&call[..call.len() / 2]).expect("the server reads"),
            2 => stream.write_all(&upgrade(user)).expect("the server reads"),
            case => {
                let keep = stream.try_clone().expect("a handle");
                let mut raw = RawClient::over(stream, user);
                raw.write(&masked_frame(0x81, br#"{"type":"join_room","roomId":"r","ref":1}"#));
                while raw.frame().is_some_and(|frame| !String::from_utf8_lossy(&frame.1).contains("\"ack\"")) {}
                if case == 3 {
                    raw.write(&frame[..frame.len() / 2]);
                } else {
                    let seq = http.post("r", &json!({"content": "y".repeat(100_000)}))["seq"].as_u64().expect("a seq");
                    near.read_to(seq);
                    let _ = (&keep).read(&mut [0; 100]).expect("the begin of it");
                }
                stream = keep;
            }
        }
        reset(stream);
    }
    await_online(&mut http, "r", 1, Duration::from_secs(5));
    let last = post(&mut http, 20);
    assert_eq!(last, 8 + 20, "what was never whole was never said");
    near.read_to(last);
    drop(near);
    before.assert_returned(&world.server, &mut http, "r", &users);
}
