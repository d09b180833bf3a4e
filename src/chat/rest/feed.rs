//! The feed of all durable events: a page at once, or when there is one.
//!
//! A reader whose page is empty waits with that page in hand. It is looked up anew when the feed has moved, and given the
//! empty page when its time is over or the server stops. Nobody who has gone counts: the ticket of a wait ends with its
//! request.

use std::sync::Arc;

use crate::chat::envelope::{Answer, Origin, ReplyTo};
use crate::chat::http::Rest;
use crate::chat::ids::ConnId;
use crate::chat::routes::{Call, Gather, Handled, error};
use crate::chat::shard::Shard;
use crate::chat::store::{Found, Lookup};
use crate::wire::client::ErrorCode;
use crate::wire::rest_body::{parse_limit, parse_wait};

use super::{BUSY, refused};

const PAGE_DEFAULT: u32 = 1000;
const PAGE_MAX: u32 = 5000;

/// A request for a page of the feed.
pub struct FeedWait {
    after: Option<Box<str>>,
    limit: u32,
    /// Until then (tick clock) it may wait.
    due_ms: u64,
    /// The empty page of one that waits.
    empty: Option<Vec<u8>>,
    _ticket: Option<Arc<()>>,
}

/// The requests of a shard that wait for the feed to move.
#[derive(Default)]
pub struct FeedWaits {
    /// Held by every request that may wait.
    ticket: Arc<()>,
    /// Those that do, and perhaps some that have gone.
    waiting: Vec<(ConnId, u32)>,
    /// The position that the store watches.
    watched: Option<u64>,
}

impl FeedWaits {
    /// Requests that wait, or may.
    fn len(&self) -> usize {
        Arc::strong_count(&self.ticket) - 1
    }
}

impl Shard {
    pub(in crate::chat) fn read_feed(&mut self, call: &Call<'_>) -> Handled {
        let [after, limit, wait] = ["after", "limit", "wait"].map(|name| call.target.query(name));
        let limit = match parse_limit(limit.as_deref(), PAGE_DEFAULT, PAGE_MAX) {
            Ok(limit) => limit,
            Err(refusal) => return refused(&refusal),
        };
        let wait_ms = match parse_wait(wait.as_deref()) {
            Ok(wait_ms) => wait_ms,
            Err(refusal) => return refused(&refusal),
        };
        if let Some(turned_away) = self.turn_away(call).or_else(|| self.without_store()) {
            return turned_away;
        }
        if wait_ms > 0 && self.feed.len() >= self.config.limits.feed_waits_max.div_ceil(self.shards) {
            return error(503, ErrorCode::Overloaded, "too many wait for events, try again");
        }
        let wait = FeedWait {
            after: after.filter(|after| !after.is_empty()).map(|after| after.into()),
            limit,
            due_ms: self.now.tick_ms + wait_ms,
            empty: None,
            _ticket: (wait_ms > 0).then(|| self.feed.ticket.clone()),
        };
        let lookup = wait.lookup();
        let origin = Origin { conn: self.connections.id(call.slot), to: ReplyTo::RestPart(call.number, 0) };
        match self.lookup(origin, lookup) {
            Ok(()) => Handled::Gather(Box::new(Gather::Feed(wait))),
            Err(_) => error(503, ErrorCode::Overloaded, BUSY),
        }
    }

    /// Takes a page; an empty one is kept until there is another.
    pub(super) fn gather_feed(&mut self, slot: u32, number: u32, wait: &mut FeedWait, answer: Answer) -> Option<Rest> {
        match answer {
            Answer::Found(Found::Feed { body, is_empty: true, position })
                if wait.due_ms > self.now.tick_ms && !self.is_quiescing() =>
            {
                wait.empty = Some(body);
                self.wait_for_feed(slot, number, wait.due_ms, position);
                None
            }
            Answer::Found(Found::Feed { body, .. }) => Some(Rest::json(200, body)),
            answer => Some(self.render(answer)),
        }
    }

    fn wait_for_feed(&mut self, slot: u32, number: u32, due_ms: u64, position: u64) {
        self.arm_http(slot, due_ms);
        if self.feed.waiting.len() > 2 * self.feed.len() {
            let connections = &self.connections;
            self.feed.waiting.retain(|(conn, _)| connections.is_current(*conn));
        }
        self.feed.waiting.push((self.connections.id(slot), number));
        if self.feed.watched.is_none_or(|watched| watched > position) {
            self.feed.watched = Some(position);
            self.desk.watch_feed(position);
        }
    }

    /// There are events behind the position that was watched: who waits asks again.
    pub(in crate::chat) fn handle_feed_moved(&mut self) {
        self.feed.watched = None;
        for (conn, number) in std::mem::take(&mut self.feed.waiting) {
            if !self.connections.is_current(conn) {
                continue;
            }
            let slot = conn.slot();
            let Some(Gather::Feed(wait)) = self.gathering(slot, number) else { continue };
            let Some(empty) = wait.empty.take() else { continue };
            let lookup = wait.lookup();
            if self.lookup(Origin { conn, to: ReplyTo::RestPart(number, 0) }, lookup).is_ok() {
                continue;
            }
            // Too much is being read: it may as well ask again itself.
            if let Some(Gather::Feed(wait)) = self.gathering(slot, number) {
                (wait.empty, wait.due_ms) = (Some(empty), 0);
            }
            self.end_feed_waits(slot);
        }
    }

    /// The store will not tell of what it was to watch.
    pub(in crate::chat) fn handle_feed_unwatched(&mut self) {
        self.feed.watched = None;
    }

    /// Answers all that wait.
    pub(in crate::chat) fn end_all_feed_waits(&mut self) {
        for (conn, number) in std::mem::take(&mut self.feed.waiting) {
            if !self.connections.is_current(conn) {
                continue;
            }
            if let Some(Gather::Feed(wait)) = self.gathering(conn.slot(), number) {
                wait.due_ms = 0;
            }
            self.end_feed_waits(conn.slot());
        }
    }

    /// Answers those on a connection whose time is over; returns when the next one's is.
    pub(in crate::chat) fn end_feed_waits(&mut self, slot: u32) -> Option<u64> {
        let now_ms = self.now.tick_ms;
        let mut next_ms: Option<u64> = None;
        let mut is_over = false;
        self.each_gathering(slot, |gather| {
            let Gather::Feed(FeedWait { due_ms, empty: Some(_), .. }) = gather else { return };
            if *due_ms <= now_ms {
                is_over = true;
            } else {
                next_ms = Some(next_ms.map_or(*due_ms, |next_ms| next_ms.min(*due_ms)));
            }
        });
        if is_over {
            self.finish_gathering(slot, |gather| match gather {
                Gather::Feed(wait) if wait.due_ms <= now_ms => wait.empty.take().map(|body| Rest::json(200, body)),
                _ => None,
            });
        }
        next_ms
    }
}

impl FeedWait {
    fn lookup(&self) -> Lookup {
        Lookup::Feed { after: self.after.clone(), limit: self.limit }
    }
}
