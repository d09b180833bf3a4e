//! The budget of memory: what an idle connection and an idle room hold on the heap, with the real layout, and what a
//! message allocates.
//!
//! A shard with 10,000 joined connections is weighed against the same shard without. *Total* is every live byte of the
//! heap as it was asked of the allocator. *Slack* is the part of it that growing tables hold in reserve: words, in blocks of
//! at least 1 KiB, that nothing was ever written to. The allocator fills such blocks with a pattern and finds them by it,
//! so the unused half of a doubled vector and the free buckets of a hash table both count as slack, wherever they lie.
//!
//! Counts are per thread, so tests that run beside each other do not disturb each other. The socket and its latches
//! stand in the event loop and are not weighed here.

#![allow(unsafe_code, reason = "a global allocator that counts is an unsafe trait")]

mod driven_shard;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use driven_shard::DrivenShard;
use sizland_chat::chat::connection::{Connection, RoomLink, Rooms};
use sizland_chat::chat::ids::{ConnId, RoomName, UserId};
use sizland_chat::chat::outbox::Outbox;
use sizland_chat::config::ROOM_BYTES;

const CONNECTIONS: usize = 10_000;
const ROOMS: usize = 100;
/// Of an idle, authenticated connection in one room, its share of the room included.
const USED_BYTES_MAX: usize = 260;
const TOTAL_BYTES_MAX: usize = 400;
/// Of a UUID, which does not stand where it is used but once on the heap, behind its count, hash and length.
const LONG_ID_BYTES: usize = 36;
const SHARED_BYTES: usize = 24;
const HEARTBEAT_MS: u64 = 30_000;

/// From this size on, blocks are looked at for slack.
const BLOCK_BYTES_MIN: usize = 1024;
const BLOCKS_MAX: usize = 2048;
const NEVER_WRITTEN: u8 = 0xa5;

#[derive(Clone, Copy)]
struct Block {
    address: usize,
    bytes: usize,
}

const NO_BLOCK: Block = Block { address: 0, bytes: 0 };

thread_local! {
    static LIVE_BYTES: Cell<usize> = const { Cell::new(0) };
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static BLOCKS: [Cell<Block>; BLOCKS_MAX] = const { [const { Cell::new(NO_BLOCK) }; BLOCKS_MAX] };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: memory comes from `System` and goes back to it under the same layout. `realloc` and `alloc_zeroed` are the
// default ones, on top of these two. Thread-locals are constants without destructors, so they neither allocate nor end.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        let block = unsafe { System.alloc(layout) };
        let bytes = layout.size();
        LIVE_BYTES.with(|live| live.set(live.get().wrapping_add(bytes)));
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        if bytes >= BLOCK_BYTES_MIN && !block.is_null() {
            // SAFETY: the block was just allocated with that many bytes.
            unsafe { block.write_bytes(NEVER_WRITTEN, bytes) };
            replace_block(0, Block { address: block.addr(), bytes });
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE_BYTES.with(|live| live.set(live.get().wrapping_sub(layout.size())));
        if layout.size() >= BLOCK_BYTES_MIN {
            replace_block(block.addr(), NO_BLOCK);
        }
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Replaces the entry of an address; those that do not fit are not looked at, which can only make slack seem smaller.
fn replace_block(address: usize, by: Block) {
    BLOCKS.with(|blocks| {
        if let Some(entry) = blocks.iter().find(|entry| entry.get().address == address) {
            entry.set(by);
        }
    });
}

fn slack_bytes() -> usize {
    let words = |block: Block| {
        let start = std::ptr::with_exposed_provenance::<u64>(block.address);
        (0..block.bytes / 8).filter(move |&word| {
            // SAFETY: the block is alive, this thread's, and was filled when it was allocated.
            let word = unsafe { start.add(word).read_unaligned() };
            word == u64::from_ne_bytes([NEVER_WRITTEN; 8])
        })
    };
    BLOCKS.with(|blocks| blocks.iter().map(|entry| words(entry.get()).count() * 8).sum())
}

#[derive(Clone, Copy, Debug)]
struct Weight {
    total: usize,
    slack: usize,
}

impl Weight {
    fn now() -> Self {
        Self { total: LIVE_BYTES.get(), slack: slack_bytes() }
    }

    /// What there is more than there was before, without its slack.
    fn used_since(self, before: Self) -> usize {
        (self.total - self.slack) - (before.total - before.slack)
    }
}

fn allocations_of(act: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    act();
    ALLOCATIONS.get() - before
}

#[test]
fn an_idle_connection_keeps_its_budget_also_after_all_have_changed() {
    keeps_its_budget(|user| format!("user-{user:05}"), USED_BYTES_MAX, TOTAL_BYTES_MAX);
}

#[test]
fn a_long_id_costs_what_it_is_long() {
    let extra = LONG_ID_BYTES + SHARED_BYTES;
    keeps_its_budget(
        |user| format!("{user:08}-0000-4000-8000-000000000000"),
        USED_BYTES_MAX + extra,
        TOTAL_BYTES_MAX + extra,
    );
}

fn keeps_its_budget(id: impl Fn(usize) -> String, used_max: usize, total_max: usize) {
    let mut slots = Vec::with_capacity(CONNECTIONS);
    let mut world = DrivenShard::new();
    world.settle();
    let empty = Weight::now();
    let mut weigh = |first_user| {
        let users: Vec<String> = (first_user..first_user + CONNECTIONS).map(&id).collect();
        world.populate_by(&users, ROOMS, &mut slots);
        drop(users);
        world.pass(HEARTBEAT_MS + 1000, &slots);
        assert_eq!(world.connections(), CONNECTIONS);
        let full = Weight::now();
        let (used, total) = (full.used_since(empty) / CONNECTIONS, (full.total - empty.total) / CONNECTIONS);
        println!("{used} bytes per connection, {total} with slack");
        // All in one turn, the harshest way to go.
        slots.drain(..).for_each(|slot| world.end(slot));
        world.settle();
        assert_eq!(world.connections(), 0);
        (used, total)
    };
    let (used, total) = weigh(0);
    assert!(used <= used_max, "{used} bytes per connection");
    assert!(total <= total_max, "{total} bytes per connection with slack");
    // A place that was written to and is free again is not told from one in use, so only the totals can be compared.
    let (_, total_again) = weigh(CONNECTIONS);
    assert!(total_again.abs_diff(total) * 10 <= total, "{total_again} bytes with slack, {total} at first");
}

#[test]
fn an_idle_room_keeps_its_bound() {
    let weigh = |rooms: usize| {
        let mut slots = Vec::with_capacity(1000);
        // What rooms remember is bounded for all of them together.
        let mut world = DrivenShard::with(|limits| limits.history_pool_bytes = 65_536);
        world.populate(0, 1000, rooms, &mut slots);
        // Each room has had a busy turn.
        for (room, &slot) in slots.iter().enumerate().take(rooms) {
            (0..30).for_each(|_| world.text(slot, &reaction(room)));
            world.settle();
        }
        world.pass(HEARTBEAT_MS + 1000, &slots);
        let weight = Weight::now();
        drop(world);
        weight.total
    };
    let room = weigh(1000).saturating_sub(weigh(500)) / 500;
    println!("{room} bytes per idle room, the lists of its member included");
    assert!(room <= ROOM_BYTES as usize, "{room} bytes per room");
}

fn reaction(room: usize) -> String {
    format!(r#"{{"type":"reaction","roomId":"room-{room:04}","messageId":7,"emoji":"👍"}}"#)
}

#[test]
fn a_posted_message_allocates_the_same_for_ten_members_and_for_ten_thousand() {
    posting_allocates_the_same("", 150, |sent, body| sent > body);
}

#[test]
fn a_compressed_message_allocates_the_same_for_ten_members_and_for_ten_thousand() {
    let offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
    posting_allocates_the_same(offer, 3000, |sent, body| sent < body / 4);
}

#[test]
fn a_reaction_allocates_the_same_for_ten_members_and_for_ten_thousand() {
    let text = reaction(0);
    allocates_the_same(
        "",
        |sent| sent >= text.len(),
        |_, slots| {
            let (member, text) = (slots[0], text.clone());
            Box::new(move |world| world.text(member, &text))
        },
    );
}

fn posting_allocates_the_same(offer: &'static str, content_bytes: usize, is_sent: impl Fn(usize, usize) -> bool) {
    let body = format!(r#"{{"content":"{}","sender_user_id":"ana"}}"#, "x".repeat(content_bytes));
    allocates_the_same(
        offer,
        |sent| is_sent(sent, body.len()),
        |world, _| {
            let (backend, body) = (world.accept(), body.clone());
            Box::new(move |world| world.post_message(backend, "room-0000", &body))
        },
    );
}

/// Publishes by what `prepare` gives, in rooms whose members offer an extension; `is_sent` judges the bytes that each
/// member got of a message.
fn allocates_the_same(
    offer: &'static str,
    is_sent: impl Fn(usize) -> bool,
    prepare: impl Fn(&mut DrivenShard, &[u32]) -> Box<dyn Fn(&mut DrivenShard)>,
) {
    let counts = [10, 10_000].map(|members| {
        let mut slots = Vec::with_capacity(members);
        let mut world = DrivenShard::new();
        world.offer = offer;
        world.populate(0, members, 1, &mut slots);
        let publish_one = prepare(&mut world, &slots);
        let publish = |world: &mut DrivenShard| {
            let sent = world.sent_bytes();
            publish_one(world);
            world.settle();
            // The answer to the publisher is a part of it.
            let sent = (world.sent_bytes() - sent) as usize / members;
            assert!(sent > 30 && is_sent(sent), "every member got it: {sent} bytes each");
        };
        // Queues have their size after the first.
        (0..3).for_each(|_| publish(&mut world));
        allocations_of(|| (0..100).for_each(|_| publish(&mut world)))
    });
    println!("{counts:?} allocations per 100 messages, those of the message's own bytes included");
    assert!(counts[1] <= counts[0] + 10, "{counts:?} allocations per 100 messages");
}

#[test]
fn a_storm_of_joins_to_one_room_costs_bytes_that_grow_linearly() {
    let per_join = [2_500, 10_000].map(|members| {
        let mut slots = Vec::with_capacity(members);
        let mut world = DrivenShard::new();
        world.populate(0, members, 1, &mut slots);
        world.sent_bytes() / members as u64
    });
    println!("{per_join:?} bytes sent per join, presence of the seconds after included");
    assert!(per_join[1] <= per_join[0] * 5 / 4, "{per_join:?} bytes per join");
}

#[test]
fn what_a_connection_is_made_of_is_small() {
    assert!(size_of::<Connection>() <= 80);
    assert!(size_of::<Outbox>() <= 16);
    assert!(size_of::<Rooms>() <= 24);
    assert!(size_of::<RoomLink>() <= 8);
    assert!(size_of::<ConnId>() <= 8);
    assert!(size_of::<UserId>() <= 16 && size_of::<Option<UserId>>() <= 16);
    assert!(size_of::<RoomName>() <= 8 && size_of::<Option<RoomName>>() <= 8);
}
