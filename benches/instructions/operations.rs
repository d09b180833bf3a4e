//! What is counted: a few operations on a shard that is driven without sockets.
//!
//! An operation is prepared once and then done again and again; it leaves the world as it was, so that each time costs the
//! same. No clock is read and nothing is drawn at random: the shard's time stands still, its seed and hash key are fixed.

use std::hint::black_box;

use sizland_chat::wire::client;
use sizland_chat::wire::decoder::{Event, decode};

use crate::driven_shard::{DrivenShard, post_request, put_client_frame};

const MESSAGE_BYTES_MAX: usize = 65_536;
const REACTION: &str = r#"{"type":"reaction","roomId":"room-0000","messageId":"0192f3a4-7b1c","emoji":"👍"}"#;
const JOIN: &str = r#"{"type":"join_room","roomId":"room-0000"}"#;
const LEAVE: &str = r#"{"type":"leave_room","roomId":"room-0000"}"#;
const POSTED_TEXT_BYTES: usize = 150;
/// As many users as connect in turn.
const USERS: usize = 16;

/// Something that is done again and again.
pub struct Operation {
    /// Its name in the file of counts.
    pub name: &'static str,
    /// How many times it is done in the shorter of two runs; also how many times beforehand, uncounted.
    pub times: u32,
    /// Builds the world and returns what does it once.
    pub prepare: fn() -> Box<dyn FnMut()>,
}

/// All operations, in the order of the file of counts.
pub const OPERATIONS: [Operation; 6] = [
    Operation { name: "decode", times: 2_000, prepare: prepare_decode },
    Operation { name: "publish", times: 1_000, prepare: prepare_publish },
    Operation { name: "post", times: 1_000, prepare: prepare_post },
    Operation { name: "deliver_1000", times: 25, prepare: || prepare_deliver(1_000) },
    Operation { name: "connect", times: 200, prepare: prepare_connect },
    Operation { name: "join", times: 500, prepare: prepare_join },
];

/// A client's frame with a reaction: unmasked, decoded, parsed.
fn prepare_decode() -> Box<dyn FnMut()> {
    let input = frame(REACTION);
    let mut buffer = input.clone();
    Box::new(move || {
        buffer.copy_from_slice(&input);
        let step = decode(&mut None, black_box(&mut buffer), MESSAGE_BYTES_MAX).expect("a valid frame");
        let Some(Event::Message { payload, .. }) = step.event else { panic!("a whole message") };
        assert!(black_box(client::parse(&payload)).is_ok());
    })
}

/// A reaction of the only member of a room, from its frame to the event on its way back.
fn prepare_publish() -> Box<dyn FnMut()> {
    let mut world = DrivenShard::new();
    let slots = populated(&mut world, 1);
    sending(world, slots[0], frame(REACTION))
}

/// A message posted by a backend to a room with one member: request, event and answer.
fn prepare_post() -> Box<dyn FnMut()> {
    let mut world = DrivenShard::new();
    populated(&mut world, 1);
    let backend = world.accept();
    let body = format!(r#"{{"content":"{}","sender_user_id":"ana"}}"#, "x".repeat(POSTED_TEXT_BYTES));
    sending(world, backend, post_request("room-0000", &body))
}

/// A reaction that goes out to every member of a room: queued, gathered and sent for each of them.
fn prepare_deliver(members: usize) -> Box<dyn FnMut()> {
    let mut world = DrivenShard::new();
    let slots = populated(&mut world, members);
    let sent = world.sent_bytes();
    world.text(slots[0], REACTION);
    world.settle();
    assert!(world.sent_bytes() - sent > (members * REACTION.len()) as u64, "each member got the reaction");
    sending(world, slots[0], frame(REACTION))
}

/// A connection comes, upgrades, is verified, admitted and greeted, says Close, is answered, and goes.
fn prepare_connect() -> Box<dyn FnMut()> {
    let mut world = DrivenShard::new();
    let requests: Vec<_> = (0..USERS).map(|user| world.upgrade_request(&format!("user-{user:06}"))).collect();
    let mut close = Vec::new();
    put_client_frame(&mut close, 0x88, &1000_u16.to_be_bytes());
    let (mut next, mut buffer) = (0, Vec::new());
    Box::new(move || {
        let slot = world.accept();
        let sent = world.sent_bytes();
        send(&mut world, slot, &mut buffer, &requests[next]);
        assert!(world.sent_bytes() > sent, "greeted");
        send(&mut world, slot, &mut buffer, &close);
        world.end(slot);
        world.settle();
        assert_eq!(world.connections(), 0);
        next = (next + 1) % USERS;
    })
}

/// A connection joins a room of ten, who are told, and leaves it again.
fn prepare_join() -> Box<dyn FnMut()> {
    let mut world = DrivenShard::new();
    populated(&mut world, 10);
    let slot = world.open("user-000010");
    world.settle();
    let (join, leave, mut buffer) = (frame(JOIN), frame(LEAVE), Vec::new());
    Box::new(move || {
        for message in [&join, &leave] {
            let sent = world.sent_bytes();
            send(&mut world, slot, &mut buffer, message);
            assert!(world.sent_bytes() - sent > 10 * message.len() as u64, "the ten were told");
        }
    })
}

/// The slots of `members` connections in one room.
fn populated(world: &mut DrivenShard, members: usize) -> Vec<u32> {
    let mut slots = Vec::with_capacity(members);
    world.populate(0, members, 1, &mut slots);
    assert_eq!(world.connections(), members);
    slots
}

fn sending(mut world: DrivenShard, slot: u32, message: Vec<u8>) -> Box<dyn FnMut()> {
    let mut buffer = Vec::with_capacity(message.len());
    Box::new(move || {
        let sent = world.sent_bytes();
        send(&mut world, slot, &mut buffer, &message);
        assert!(world.sent_bytes() > sent, "something comes of it");
    })
}

/// Bytes come in, by way of `buffer` since they are unmasked in place, and turns follow until nothing is left to do.
fn send(world: &mut DrivenShard, slot: u32, buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(bytes);
    world.input(slot, buffer);
    world.settle();
}

fn frame(text: &str) -> Vec<u8> {
    let mut frame = Vec::new();
    put_client_frame(&mut frame, 0x81, text.as_bytes());
    frame
}
