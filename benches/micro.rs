//! What single steps cost, from one frame to a whole broadcast.
//!
//! `cargo bench --bench micro`; names given behind `--` choose among the benches. The broadcasts count deliveries: one
//! member given one event, from the client's frame to the bytes that are ready for the members' sockets, system calls
//! apart. Behind the table stands what one delivery took.

#[path = "../tests/driven_shard/mod.rs"]
#[allow(dead_code, reason = "some of it is for the tests only")]
mod driven_shard;
// The masking loop is private to the decoder; this is the same file.
#[path = "../src/wire/mask.rs"]
#[allow(dead_code, unused_imports, reason = "its tests run with the library")]
mod mask;

use std::hint::black_box;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Instant;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use driven_shard::{DrivenShard, put_client_frame};
use sizland_chat::chat::outbox::{Outbox, OutboxPool};
use sizland_chat::chat::wheel::Wheel;
use sizland_chat::wire::client;
use sizland_chat::wire::decoder::decode;
use sizland_chat::wire::message::{Author, parse_posted};
use sizland_chat::wire::websocket::{Opcode, put_frame};

const MEMBERS: usize = 1000;
const TIMERS: u32 = 10_000;
const MESSAGE_BYTES_MAX: usize = 65_536;
const WRITE_BYTES_MAX: usize = 256 * 1024;
const REACTION: &str = r#"{"type":"reaction","roomId":"room-0000","messageId":"0192f3a4-7b1c","emoji":"👍"}"#;
const JOIN: &str = r#"{"type":"join_room","roomId":"room-0000"}"#;

fn main() {
    divan::main();
    // `cargo bench` says so; `cargo test --benches` only wants to know whether everything runs.
    if std::env::args().any(|argument| argument == "--bench") {
        println!("\nthe median of 200 turns");
        [1, 16].into_iter().for_each(report_delivery);
    }
}

fn report_delivery(reactions: usize) {
    let mut world = Broadcast::new(reactions);
    let mut times: Vec<_> = (0..200)
        .map(|_| {
            let started = Instant::now();
            world.turn();
            started.elapsed()
        })
        .collect();
    times.sort_unstable();
    let median = times[times.len() / 2];
    let each = median.as_nanos() as f64 / (MEMBERS * reactions) as f64;
    println!("{reactions:>2} reactions to {MEMBERS} members: {median:?}, {each:.1} ns per delivery");
}

mod websocket {
    use super::*;

    fn frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        put_client_frame(&mut frame, first_byte, payload);
        frame
    }

    /// Decodes all of `input`, which is restored first, since decoding unmasks it in place.
    fn decode_all(bencher: Bencher<'_, '_>, input: Vec<u8>) {
        let mut buffer = input.clone();
        bencher.counter(BytesCount::new(input.len())).bench_local(|| {
            buffer.copy_from_slice(&input);
            let (mut partial, mut at, mut events) = (None, 0, 0);
            while at < buffer.len() {
                let step = decode(&mut partial, &mut buffer[at..], MESSAGE_BYTES_MAX).expect("valid frames");
                at += step.consumed;
                events += usize::from(step.event.is_some());
            }
            assert_eq!(black_box(events), 1);
        });
    }

    #[divan::bench]
    fn decode_reaction(bencher: Bencher<'_, '_>) {
        decode_all(bencher, frame(0x81, REACTION.as_bytes()));
    }

    #[divan::bench]
    fn decode_text_1024(bencher: Bencher<'_, '_>) {
        decode_all(bencher, frame(0x81, &[b'x'; 1024]));
    }

    #[divan::bench]
    fn decode_text_1024_in_four_fragments(bencher: Bencher<'_, '_>) {
        let first_bytes = [0x01, 0x00, 0x00, 0x80];
        decode_all(bencher, first_bytes.into_iter().flat_map(|first| frame(first, &[b'x'; 256])).collect());
    }

    #[divan::bench(args = [64, 1024, 65_536])]
    fn encode(bencher: Bencher<'_, '_>, payload: usize) {
        let payload = vec![b'x'; payload];
        let mut out = Vec::with_capacity(payload.len() + 10);
        bencher.counter(BytesCount::new(payload.len())).bench_local(|| {
            out.clear();
            put_frame(&mut out, Opcode::Text, &[black_box(&payload)]);
            black_box(out.len())
        });
    }

    #[divan::bench(args = [64, 1024, 65_536])]
    fn mask_payload(bencher: Bencher<'_, '_>, payload: usize) {
        let mut payload = vec![b'x'; payload];
        let key = mask::rotated([1, 2, 3, 4], 1);
        let count = BytesCount::new(payload.len());
        bencher.counter(count).bench_local(|| mask::apply(black_box(key), black_box(&mut payload)));
    }
}

mod json {
    use super::*;

    #[divan::bench]
    fn parse_reaction(bencher: Bencher<'_, '_>) {
        parse(bencher, REACTION);
    }

    #[divan::bench]
    fn parse_join_room(bencher: Bencher<'_, '_>) {
        parse(bencher, JOIN);
    }

    fn parse(bencher: Bencher<'_, '_>, text: &str) {
        bencher.counter(BytesCount::new(text.len())).bench(|| client::parse(black_box(text.as_bytes())).is_ok());
    }

    #[divan::bench]
    fn parse_posted_200(bencher: Bencher<'_, '_>) {
        let id = "0192f3a4-7b1c-7cc3-98c4-dc0c0c07398f";
        let text = "x".repeat(119);
        let body = format!(r#"{{"id":"{id}","sender_user_id":"ana","content":"{text}"}}"#);
        assert_eq!(body.len(), 200);
        bencher
            .counter(BytesCount::new(body.len()))
            .bench(|| parse_posted(black_box(body.as_bytes()), "room-0000", (1, 2), &Author::Service).is_ok());
    }
}

mod wheel {
    use super::*;

    fn armed() -> Wheel {
        let mut wheel = Wheel::default();
        (0..TIMERS).for_each(|slot| wheel.set(slot, 1000 + u64::from(slot) * 3));
        wheel
    }

    #[divan::bench]
    fn move_10_000(bencher: Bencher<'_, '_>) {
        let (mut wheel, mut later_ms) = (armed(), 0);
        bencher.counter(ItemsCount::new(TIMERS)).bench_local(|| {
            later_ms += 250;
            (0..TIMERS).for_each(|slot| wheel.set(slot, 1000 + later_ms + u64::from(slot) * 3));
        });
    }

    #[divan::bench]
    fn expire_10_000(bencher: Bencher<'_, '_>) {
        let mut fired = Vec::with_capacity(TIMERS as usize);
        bencher.counter(ItemsCount::new(TIMERS)).with_inputs(armed).bench_local_refs(|wheel| {
            fired.clear();
            wheel.expire(40_000, &mut fired);
            assert_eq!(fired.len(), TIMERS as usize);
        });
    }
}

mod outbox {
    use super::*;

    /// One segment handed to each member, gathered and sent.
    #[divan::bench]
    fn link_gather_advance(bencher: Bencher<'_, '_>) {
        let mut frames = Vec::new();
        put_frame(&mut frames, Opcode::Text, &[&[b'x'; 200]]);
        let frames: Arc<[u8]> = frames.into();
        let (mut pool, mut outboxes) = (OutboxPool::default(), vec![Outbox::default(); MEMBERS]);
        bencher.counter(ItemsCount::new(MEMBERS)).bench_local(|| {
            let handle = pool.hold(Arc::clone(&frames));
            outboxes.iter_mut().for_each(|outbox| pool.link(outbox, handle));
            pool.release(handle);
            for outbox in &mut outboxes {
                let mut slices = [IoSlice::new(&[]); 64];
                let count = pool.gather(outbox, &mut slices, WRITE_BYTES_MAX);
                let sent = slices[..count].iter().map(|slice| slice.len()).sum();
                pool.advance(outbox, sent);
            }
            assert_eq!(pool.shared_bytes(), 0);
        });
    }
}

/// A room of [`MEMBERS`] connections of which some react at the same time.
struct Broadcast {
    world: DrivenShard,
    reacting: Vec<u32>,
}

impl Broadcast {
    fn new(reactions: usize) -> Self {
        let (mut world, mut slots) = (DrivenShard::new(), Vec::new());
        world.populate(0, MEMBERS, 1, &mut slots);
        assert_eq!(world.connections(), MEMBERS);
        slots.truncate(reactions);
        Self { world, reacting: slots }
    }

    /// The reactions come in, and turns follow until all members have all of them.
    fn turn(&mut self) {
        let sent = self.world.sent_bytes();
        for &slot in &self.reacting {
            self.world.text(slot, REACTION);
        }
        self.world.settle();
        let delivered = (MEMBERS * self.reacting.len() * REACTION.len()) as u64;
        assert!(self.world.sent_bytes() - sent > delivered, "each member got each reaction");
    }
}

#[divan::bench(args = [1, 16])]
fn broadcast_reactions(bencher: Bencher<'_, '_>, reactions: usize) {
    let mut broadcast = Broadcast::new(reactions);
    bencher.counter(ItemsCount::new(MEMBERS * reactions)).bench_local(|| broadcast.turn());
}
