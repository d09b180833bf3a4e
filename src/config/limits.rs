//! The limits: one table from which parsing, `check` and the README come.
//!
//! Owns every number that bounds the server, with the unit in its name. Must not know where values
//! come from. A limit's key is `CHAT_` and the field's name in capitals.

use crate::error::Error;

/// One limit as it is documented.
#[derive(Clone, Copy, Debug)]
pub struct LimitRow {
    /// The field of [`Limits`].
    pub field: &'static str,
    /// What is counted.
    pub unit: &'static str,
    /// The value unless configured.
    pub default: u64,
    /// The least value accepted.
    pub min: u64,
    /// The greatest value accepted.
    pub max: u64,
    doc: &'static str,
}

impl LimitRow {
    /// The key in the environment.
    pub fn key(&self) -> String {
        format!("CHAT_{}", self.field.to_ascii_uppercase())
    }

    /// What the limit is for, in one line.
    pub fn doc(&self) -> &'static str {
        self.doc.trim_start()
    }

    /// What is accepted, for messages.
    pub fn accepted(&self) -> String {
        let LimitRow { min, max, unit, .. } = self;
        format!("an integer from {min} to {max} ({unit})")
    }

    /// Reads a value, which must be plain decimal digits within the range.
    pub fn parse(&self, text: &str) -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let value = digits.then(|| text.parse().ok()).flatten()?;
        (self.min..=self.max).contains(&value).then_some(value)
    }
}

macro_rules! limits {
    ($(#[doc = $doc:literal] $field:ident: $number:ty, $unit:literal, $default:expr, $min:literal..=$max:expr;)+) => {
        /// Every number that bounds the server, the unit in its name.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Limits {
            $(#[doc = $doc] pub $field: $number,)+
        }

        impl Limits {
            /// The limits as documented, in the order of the fields.
            pub const TABLE: &'static [LimitRow] = &[$(LimitRow {
                field: stringify!($field),
                unit: $unit,
                default: $default,
                min: $min,
                max: $max,
                doc: $doc,
            }),+];

            /// Builds the limits from what `read` gives for each row; a value above what the
            /// field holds becomes the greatest that it does.
            pub(crate) fn read(
                mut read: impl FnMut(&LimitRow) -> Result<u64, Error>,
            ) -> Result<Limits, Error> {
                let mut next = 0;
                let mut value = || {
                    let row = &Limits::TABLE[next];
                    next += 1;
                    read(row)
                };
                Ok(Limits {
                    $($field: <$number>::try_from(value()?).unwrap_or(<$number>::MAX),)+
                })
            }
        }

        impl Default for Limits {
            fn default() -> Limits {
                Limits { $($field: $default,)+ }
            }
        }
    };
}

limits! {
    /// WebSocket connections at once. Default: the hard limit of open files less 128, at most 1000000.
    connections_max: usize, "connections", 1_000_000, 1..=1_000_000;
    /// WebSocket connections of one user; the one silent longest gives way to a new one (4503).
    connections_per_user_max: usize, "connections", 100, 1..=100_000;
    /// Rooms that one connection may be in.
    rooms_per_connection_max: usize, "rooms", 200, 1..=10_000;
    /// Rooms that the server holds at once.
    rooms_max: usize, "rooms", 1_000_000, 1..=10_000_000;
    /// One WebSocket message, all its fragments together; above it the connection closes 1009.
    message_bytes_max: usize, "bytes", 65_536, 1_024..=16_777_216;
    /// Least size of a message that is compressed for clients that take it so.
    deflate_threshold_bytes: usize, "bytes", 512, 1..=16_777_216;
    /// Request line and header fields of one HTTP request; above it the answer is 431.
    header_bytes_max: usize, "bytes", 16_384, 1_024..=1_048_576;
    /// Body of one HTTP request; above it the answer is 413.
    body_bytes_max: usize, "bytes", 262_144, 1_024..=16_777_216;
    /// Pipelined HTTP requests under way on one connection; further ones stay unread.
    requests_under_way_max: usize, "requests", 32, 1..=1_024;
    /// Time for a request's head, from the connection's start or the head's first byte on; with TLS the handshake included.
    handshake_ms: u64, "ms", 5_000, 100..=600_000;
    /// Time for a record of TLS to come whole, from its first byte on.
    tls_record_ms: u64, "ms", 15_000, 100..=600_000;
    /// Time for the first message `auth` when no token came with the upgrade.
    auth_ms: u64, "ms", 5_000, 100..=600_000;
    /// Time for a request with a body to arrive whole, and that a REST connection may stay open without a request.
    rest_idle_ms: u64, "ms", 60_000, 100..=3_600_000;
    /// Time that a closing connection has for the peer's part of the close.
    close_ms: u64, "ms", 5_000, 100..=600_000;
    /// Interval of pings; a connection silent for one whole further interval is ended.
    heartbeat_ms: u64, "ms", 30_000, 250..=3_600_000;
    /// Unsent bytes of a connection above which typing, presence and receipts are shed.
    outbox_soft_bytes: usize, "bytes", 262_144, 1_024..=1_073_741_824;
    /// Unsent bytes of a connection above which it is closed (4008).
    outbox_hard_bytes: usize, "bytes", 1_048_576, 2_048..=1_073_741_824;
    /// Send buffer asked of the kernel for each connection, which doubles it for its own needs.
    socket_send_buffer_bytes: usize, "bytes", 131_072, 4_096..=16_777_216;
    /// Room events not yet sent to everybody, each counted once.
    segment_pool_bytes: usize, "bytes", 268_435_456, 65_536..=1_099_511_627_776;
    /// Direct answers not yet sent.
    direct_pool_bytes: usize, "bytes", 67_108_864, 65_536..=1_099_511_627_776;
    /// Unfinished messages, heads and bodies.
    input_pool_bytes: usize, "bytes", 67_108_864, 65_536..=1_099_511_627_776;
    /// Unfinished records of TLS: half for those coming in, half for those going out.
    tls_pool_bytes: usize, "bytes", 134_217_728, 65_536..=1_099_511_627_776;
    /// Batches that may wait in the mailbox of a thread.
    mailbox_batches_max: usize, "batches", 1_024, 1..=1_048_576;
    /// Requests under way from one thread to another; further ones are refused (`overloaded`, 503).
    shard_credits_max: usize, "requests", 16_384, 1..=1_048_576;
    /// Room events under way from one thread to another.
    burst_window_bytes: usize, "bytes", 16_777_216, 1_024..=1_073_741_824;
    /// Events that a room collects while a window is closed; then it refuses messages.
    burst_bytes_max: usize, "bytes", 4_194_304, 1_024..=1_073_741_824;
    /// Joins under way in each thread.
    pending_joins_max: usize, "joins", 65_536, 1..=1_048_576;
    /// Messages of a connection that wait behind one join; further ones are refused (`overloaded`).
    parked_messages_max: usize, "messages", 16, 1..=1_024;
    /// Time after the last `typing_start` when typing ends.
    typing_ms: u64, "ms", 10_000, 250..=600_000;
    /// Time within which a repeated `typing_start` is not passed on.
    typing_repeat_ms: u64, "ms", 2_000, 0..=600_000;
    /// Typing events a second that a large room passes on.
    typing_per_second_max: u32, "events", 10, 1..=1_000_000;
    /// Users above which a room is large: lists are cut and presence is sent as differences.
    presence_list_limit: usize, "users", 200, 1..=10_000;
    /// Interval of presence differences in a large room.
    presence_diff_ms: u64, "ms", 1_000, 250..=60_000;
    /// Time that a room without members keeps its sequence and recent history.
    room_linger_ms: u64, "ms", 300_000, 0..=86_400_000;
    /// Time that an id or `Idempotency-Key` is remembered without a store.
    idempotency_ms: u64, "ms", 600_000, 1_000..=86_400_000;
    /// Ids and keys remembered at once without a store.
    idempotency_entries_max: usize, "entries", 100_000, 1..=10_000_000;
    /// Missed events that a client is sent when it comes back; behind more it has to page.
    recovery_events: usize, "events", 1_000, 0..=100_000;
    /// Bytes of missed events that a client is sent when it comes back.
    recovery_bytes_max: usize, "bytes", 1_048_576, 1_024..=16_777_216;
    /// Recent events that rooms keep in memory for those who come back.
    history_pool_bytes: usize, "bytes", 67_108_864, 65_536..=1_099_511_627_776;
    /// Durable requests under way to the store; further ones are refused (`overloaded`, 503).
    store_writes_max: usize, "requests", 8_192, 1..=1_048_576;
    /// Bytes of durable requests under way to the store; further ones are refused (`overloaded`, 503).
    store_bytes_max: usize, "bytes", 67_108_864, 65_536..=1_099_511_627_776;
    /// Reads of the store under way; further ones are refused (`overloaded`, 503).
    store_reads_max: usize, "reads", 4_096, 1..=1_048_576;
    /// Time that an `Idempotency-Key` is remembered with a store.
    store_idempotency_ms: u64, "ms", 86_400_000, 1_000..=31_536_000_000;
    /// Log of the store above which it is written back at once, rather than besides.
    store_log_bytes_max: u64, "bytes", 67_108_864, 1_048_576..=1_099_511_627_776;
    /// Ids of the newest messages that the store keeps in memory before it writes them, sorted, to the table by which messages are found; half as many may come on top meanwhile.
    store_recent_ids_max: usize, "messages", 32_768, 1..=1_048_576;
    /// Requests that wait for the feed's next event.
    feed_waits_max: usize, "requests", 256, 1..=1_048_576;
    /// Days after which an event is removed from the store; 0 keeps it for ever.
    retention_days: u64, "days", 0, 0..=36_500;
    /// Events that the store keeps of each room, the newest; 0 keeps all.
    retention_events: u64, "events", 0, 0..=1_000_000_000;
    /// Tokens whose signature is being verified with a public key, or whose key is being looked for; further ones are refused (`overloaded`, 503), and so are those from one address (IPv6: /64) beyond an eighth.
    token_checks_max: usize, "tokens", 1_024, 1..=1_048_576;
    /// Threads that verify signatures with public keys.
    token_threads: usize, "threads", 1, 1..=256;
    /// Verified tokens that are remembered, so that the same one needs no new signature check; 0 remembers none.
    token_cache_max: usize, "tokens", 10_000, 0..=10_000_000;
    /// Interval at which a key set is fetched again from its URL.
    jwks_refresh_ms: u64, "ms", 300_000, 1_000..=86_400_000;
    /// Least time between two fetches of a key set that tokens with an unknown `kid` ask for.
    jwks_cooldown_ms: u64, "ms", 30_000, 100..=86_400_000;
    /// Time for one fetch of a key set.
    jwks_timeout_ms: u64, "ms", 5_000, 100..=60_000;
    /// Threads that ask the ERP who may enter a room where the mode is ask, and so questions at a time.
    access_concurrency: usize, "threads", 8, 1..=256;
    /// Questions to the ERP that wait or are being asked; further ones are refused (`overloaded`, 503), and so are those about one user beyond an eighth, or beyond the rooms of a connection if those are more.
    access_questions_max: usize, "questions", 1_024, 1..=1_048_576;
    /// Time for one question to the ERP.
    access_timeout_ms: u64, "ms", 3_000, 50..=60_000;
    /// Time for which an answer of the ERP counts that names none; 0 keeps it for nothing else.
    access_ttl_ms: u64, "ms", 60_000, 0..=3_600_000;
    /// Answers of the ERP that are remembered; of more the oldest goes.
    access_entries_max: usize, "answers", 100_000, 0..=10_000_000;
    /// Time for which the ERP is left alone when five questions in a row have failed.
    access_retry_ms: u64, "ms", 5_000, 50..=600_000;
    /// Users whose older tokens are refused (`revokeBefore`).
    revocations_max: usize, "users", 100_000, 1..=10_000_000;
    /// Messages a second that a connection may send in the long run.
    rate_per_second: u32, "messages", 50, 1..=1_000;
    /// Messages that a connection may send at once.
    rate_burst: u32, "messages", 100, 1..=1_000_000;
    /// Messages refused in debt before the connection closes for flooding (4029).
    rate_flood: u32, "messages", 200, 1..=1_000_000;
    /// Joins and leaves a second, room by room, that a user may ask for in the long run.
    rate_join_per_second: u32, "rooms", 50, 1..=1_000;
    /// Joins and leaves that a user may ask for at once.
    rate_join_burst: u32, "rooms", 500, 1..=1_000_000;
    /// Typing messages a second that a user may send in the long run.
    rate_typing_per_second: u32, "messages", 30, 1..=1_000;
    /// Typing messages that a user may send at once.
    rate_typing_burst: u32, "messages", 100, 1..=1_000_000;
    /// Reactions and read positions a second that a user may send in the long run.
    rate_reaction_per_second: u32, "reactions", 20, 1..=1_000;
    /// Reactions and read positions that a user may send at once.
    rate_reaction_burst: u32, "reactions", 100, 1..=1_000_000;
    /// Messages, edits and deletions a second that a user may send in the long run.
    rate_message_per_second: u32, "messages", 20, 1..=1_000;
    /// Messages, edits and deletions that a user may send at once.
    rate_message_burst: u32, "messages", 100, 1..=1_000_000;
    /// REST calls a second that a user may make in the long run.
    rate_rest_per_second: u32, "calls", 50, 1..=1_000;
    /// REST calls that a user may make at once.
    rate_rest_burst: u32, "calls", 200, 1..=1_000_000;
    /// Users who owe something, in each of two tables of each thread; above it the debts of some are forgotten.
    rate_users_max: usize, "users", 100_000, 1..=10_000_000;
    /// WebSockets of users from one address (IPv6: /64) at once; above it an upgrade is answered 429. 0 for no limit.
    address_connections_max: u32, "connections", 0, 0..=1_000_000;
    /// WebSockets of users that may come from one address (IPv6: /64) a second in the long run. 0 for no limit.
    address_connects_per_second: u32, "connections", 0, 0..=1_000;
    /// WebSockets of users that may come from one address at once.
    address_connects_burst: u32, "connections", 100, 1..=1_000_000;
    /// Addresses without connections of which each thread remembers how many came; above it some are forgotten.
    addresses_max: usize, "addresses", 100_000, 1..=10_000_000;
    /// Denials of each reason that each thread logs in a second; one further line counts the rest.
    denial_lines_per_second: u32, "lines", 10, 0..=1_000_000;
    /// Time between `/readyz` answering 503 and the listeners' close.
    drain_delay_ms: u64, "ms", 0, 0..=600_000;
    /// Time over which the closes of a shutdown are spread.
    drain_window_ms: u64, "ms", 10_000, 0..=600_000;
    /// Members of one PUT that replaces all of a room.
    members_replaced_max: usize, "members", 10_000, 1..=100_000;
    /// Rooms of one broadcast.
    broadcast_rooms_max: usize, "rooms", 1_000, 1..=1_000;
}

impl Limits {
    /// The limits as a Markdown table, as in the README.
    pub fn table_markdown() -> String {
        let mut table = String::from("| key | default | accepted | what it bounds |\n| --- | --- | --- | --- |\n");
        for row in Limits::TABLE {
            let default = if row.field == "connections_max" { "derived".to_owned() } else { row.default.to_string() };
            table.push_str(&format!(
                "| `{}` | {default} {} | {} to {} | {} |\n",
                row.key(),
                row.unit,
                row.min,
                row.max,
                row.doc()
            ));
        }
        table
    }

    /// Checks the rules between limits.
    pub(crate) fn check(&self) -> Result<(), Error> {
        macro_rules! ordered {
            ($small:ident $order:tt $large:ident) => {
                if !(self.$small $order self.$large) {
                    let order = if stringify!($order) == "<" { "below" } else { "at most" };
                    return Err(disorder(
                        (stringify!($small), self.$small.to_string()),
                        order,
                        (stringify!($large), self.$large.to_string()),
                    ));
                }
            };
        }
        ordered!(outbox_soft_bytes < outbox_hard_bytes);
        ordered!(outbox_hard_bytes <= segment_pool_bytes);
        ordered!(outbox_hard_bytes <= direct_pool_bytes);
        ordered!(message_bytes_max <= body_bytes_max);
        ordered!(body_bytes_max <= outbox_hard_bytes);
        ordered!(body_bytes_max <= input_pool_bytes);
        ordered!(header_bytes_max <= input_pool_bytes);
        ordered!(body_bytes_max <= burst_bytes_max);
        ordered!(burst_bytes_max <= burst_window_bytes);
        ordered!(burst_window_bytes <= segment_pool_bytes);
        ordered!(typing_repeat_ms <= typing_ms);
        ordered!(body_bytes_max <= store_bytes_max);
        Ok(())
    }
}

fn disorder(small: (&str, String), order: &str, large: (&str, String)) -> Error {
    let key = |field: &str| format!("CHAT_{}", field.to_ascii_uppercase());
    let rule = format!("{}={} must be {order} {}={}", key(small.0), small.1, key(large.0), large.1);
    Error::Conflict { rule }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order() {
        let mut keys: Vec<String> = Limits::TABLE.iter().map(LimitRow::key).collect();
        for row in Limits::TABLE {
            assert!(row.min <= row.default && row.default <= row.max, "{row:?}");
            assert!(row.doc().ends_with('.') && !row.doc().contains('|'), "{row:?}");
            assert!(!row.key().starts_with("CHAT_PORT"), "{row:?}");
            assert!(!row.key().starts_with("CHAT_SERVICE_"), "{row:?}");
        }
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), Limits::TABLE.len());
    }

    #[test]
    fn the_defaults_are_those_of_the_table_and_go_together() {
        let read = Limits::read(|row| Ok(row.default)).unwrap();
        assert_eq!(read, Limits::default());
        read.check().unwrap();
    }

    #[test]
    fn every_field_gets_the_value_of_its_row() {
        let read = Limits::read(|row| Ok(row.min)).unwrap();
        assert_eq!(read.connections_max, 1);
        assert_eq!(read.heartbeat_ms, 250);
        assert_eq!(read.rate_flood, 1);
        assert_eq!(read.socket_send_buffer_bytes, 4_096);
    }

    #[test]
    fn values_are_plain_integers_in_range() {
        let row = &Limits::TABLE[0];
        assert_eq!(row.key(), "CHAT_CONNECTIONS_MAX");
        assert_eq!(row.parse("1"), Some(1));
        assert_eq!(row.parse("1000000"), Some(1_000_000));
        for bad in ["", "0", "1000001", "-1", "+1", "1.0", "1e3", " 1", "64k", "99999999999999999999999"] {
            assert_eq!(row.parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn limits_that_do_not_go_together_are_named() {
        let limits = Limits { outbox_soft_bytes: 2_048, outbox_hard_bytes: 2_048, ..Limits::default() };
        assert_eq!(
            limits.check().unwrap_err().to_string(),
            "CHAT_OUTBOX_SOFT_BYTES=2048 must be below CHAT_OUTBOX_HARD_BYTES=2048"
        );
        let limits = Limits { message_bytes_max: 300_000, ..Limits::default() };
        assert_eq!(
            limits.check().unwrap_err().to_string(),
            "CHAT_MESSAGE_BYTES_MAX=300000 must be at most CHAT_BODY_BYTES_MAX=262144"
        );
    }

    #[test]
    fn the_markdown_table_has_a_row_for_each() {
        let table = Limits::table_markdown();
        assert_eq!(table.lines().count(), Limits::TABLE.len() + 2);
        assert!(table.contains("| `CHAT_HEARTBEAT_MS` | 30000 ms | 250 to 3600000 | Interval of pings;"));
    }
}
