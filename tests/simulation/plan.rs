//! What a seed draws before the first step: sizes, limits and which faults there are.

use sizland_chat::config::Limits;
use sizland_chat::reactor::turn::Budgets;

use super::random::Random;

/// How often each fault happens: once in so many chances, 0 for never. Each seed switches random ones off.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub spurious_event: usize,
    pub stale_event: usize,
    pub late_event: usize,
    pub interrupted: usize,
    pub short_write: usize,
    pub reset: usize,
    pub half_close: usize,
    pub stop_reading: usize,
    pub exhausted: usize,
    pub aborted: usize,
    pub register: usize,
    pub mailbox_full: usize,
    pub stall: usize,
    pub wall_jump: usize,
    pub slow_post: usize,
    pub store_before: usize,
    pub store_during: usize,
    pub store_lost: usize,
    pub store_slow: usize,
    pub read_fails: usize,
    pub restart: usize,
    pub split: bool,
}

impl Faults {
    /// Whether the store has any of its own.
    pub fn is_any_of_store(&self) -> bool {
        let own = [self.store_before, self.store_during, self.store_lost, self.store_slow, self.read_fails];
        own.iter().any(|&times| times > 0) || self.restart > 0
    }
}

/// A drawn world.
#[derive(Clone, Debug)]
pub struct Plan {
    pub shards: usize,
    pub clients: usize,
    pub rooms: usize,
    pub users: usize,
    pub steps: usize,
    pub send_buffer_bytes: usize,
    pub mailbox_batches: usize,
    pub rates: bool,
    pub big_messages: bool,
    pub has_store: bool,
    /// The first room is for members.
    pub guarded: bool,
    pub limits: Limits,
    pub budgets: Budgets,
    pub faults: Faults,
    /// Tokens are verified by another thread.
    pub late_tokens: bool,
}

impl Plan {
    pub fn draw(random: &mut Random) -> Self {
        let limits = draw_limits(random);
        let has_store = !random.one_in(3);
        Self {
            shards: random.range(1, 4),
            clients: random.range(3, 20),
            rooms: random.range(1, 4),
            users: random.range(2, 8),
            steps: random.range(300, 600),
            send_buffer_bytes: random.pick(&[64, 300, 2_000, 20_000, 100_000]),
            mailbox_batches: random.pick(&[1, 2, 8, 1024]),
            rates: random.one_in(4),
            big_messages: random.one_in(3),
            has_store,
            guarded: has_store && random.one_in(2),
            limits,
            budgets: draw_budgets(random),
            faults: draw_faults(random),
            late_tokens: random.one_in(2),
        }
    }
}

impl Plan {
    /// Whether a pool is so small that connections are dropped for it without a word.
    pub fn drops(&self) -> bool {
        let defaults = Limits::default();
        self.limits.input_pool_bytes < defaults.input_pool_bytes
            || self.limits.segment_pool_bytes < defaults.segment_pool_bytes
    }
}

fn draw_limits(random: &mut Random) -> Limits {
    let mut limits = Limits { handshake_ms: 60_000, auth_ms: 60_000, ..Limits::default() };
    let mut tiny = |value: &mut usize, choices: &[usize]| {
        if random.one_in(3) {
            *value = random.pick(choices);
        }
    };
    tiny(&mut limits.shard_credits_max, &[1, 2, 5]);
    tiny(&mut limits.burst_window_bytes, &[1, 200, 2_000]);
    tiny(&mut limits.burst_bytes_max, &[300, 2_000]);
    tiny(&mut limits.parked_messages_max, &[1, 3]);
    tiny(&mut limits.presence_list_limit, &[1, 2, 3, 5]);
    tiny(&mut limits.requests_under_way_max, &[1, 2, 5]);
    tiny(&mut limits.rooms_per_connection_max, &[1, 2, 3]);
    tiny(&mut limits.connections_per_user_max, &[1, 2, 3]);
    tiny(&mut limits.pending_joins_max, &[1, 2, 4]);
    tiny(&mut limits.outbox_soft_bytes, &[200, 1_000, 4_000]);
    limits.outbox_hard_bytes = limits.outbox_soft_bytes * 4;
    tiny(&mut limits.input_pool_bytes, &[2_000, 20_000]);
    tiny(&mut limits.segment_pool_bytes, &[4_000, 40_000]);
    tiny(&mut limits.connections_max, &[4, 8]);
    tiny(&mut limits.rooms_max, &[4, 8]);
    tiny(&mut limits.idempotency_entries_max, &[1, 5]);
    tiny(&mut limits.deflate_threshold_bytes, &[1, 100]);
    tiny(&mut limits.store_writes_max, &[1, 4, 16]);
    tiny(&mut limits.store_bytes_max, &[1, 1_000, 10_000]);
    tiny(&mut limits.store_reads_max, &[1, 4]);
    tiny(&mut limits.history_pool_bytes, &[1, 1_000, 10_000]);
    tiny(&mut limits.recovery_events, &[0, 1, 5, 20]);
    tiny(&mut limits.recovery_bytes_max, &[1, 500, 4_000]);
    tiny(&mut limits.feed_waits_max, &[1, 2]);
    if random.one_in(3) {
        limits.room_linger_ms = random.pick(&[0, 100, 2_000]);
    }
    limits.rate_flood = random.pick(&[1, 10, 200]);
    limits.rate_burst = random.pick(&[3, 20, 100]);
    // By a number that has nothing to do with it, where rates are off as they mostly are.
    limits.store_recent_ids_max = limits.rate_burst as usize / 3;
    limits.drain_window_ms = random.pick(&[0, 50, 2_000]);
    limits
}

fn draw_budgets(random: &mut Random) -> Budgets {
    let mut budgets = Budgets { read_bytes: random.pick(&[16, 300, 4_096, 65_536]), ..Budgets::default() };
    let mut tiny = |value: &mut usize, choices: &[usize]| {
        if random.one_in(3) {
            *value = random.pick(choices);
        }
    };
    tiny(&mut budgets.posts_max, &[1, 2]);
    tiny(&mut budgets.local_max, &[1, 3]);
    tiny(&mut budgets.accepts_max, &[1, 2]);
    tiny(&mut budgets.input_bytes_max, &[1, 50, 500]);
    tiny(&mut budgets.timers_max, &[1, 2]);
    tiny(&mut budgets.express_max, &[1, 2]);
    tiny(&mut budgets.bulk_max, &[1, 2]);
    budgets
}

fn draw_faults(random: &mut Random) -> Faults {
    let mut rate = |times: usize| if random.one_in(2) { times } else { 0 };
    Faults {
        spurious_event: rate(10),
        stale_event: rate(10),
        late_event: rate(4),
        interrupted: rate(15),
        short_write: rate(6),
        reset: rate(6),
        half_close: rate(20),
        stop_reading: rate(15),
        exhausted: rate(20),
        aborted: rate(10),
        register: rate(30),
        mailbox_full: rate(8),
        stall: rate(3),
        wall_jump: rate(60),
        slow_post: rate(3),
        store_before: rate(5),
        store_during: rate(5),
        store_lost: rate(4),
        store_slow: rate(2),
        read_fails: rate(5),
        restart: rate(6),
        split: rate(1) == 1,
    }
}
