//! The echo: what conformance suites are pointed at, in place of the chat.
//!
//! Owns what an echo answers: a message comes back as it came, and a request is answered 200 with its own body. All
//! else is the server's, which is the point of it: reactor, HTTP, handshake, frames, closing, limits. Must not know of
//! users or rooms: there are no tokens, and a connection is open once it is upgraded.
//!
//! Invariant: what waits for one peer is bounded, although there is no rate limit and nobody is closed for being slow:
//! who is behind is not read until it has caught up. (A chat reads always, see [`Shard::wants_input`]; who talks to an
//! echo has to read what it said.)

use std::borrow::Cow;

use super::connection::Phase;
use super::http::Rest;
use super::routes::{Body, Handled, error};
use super::shard::Shard;
use crate::config::{Config, Limits, Service};
use crate::wire::client::ErrorCode;
use crate::wire::extensions::Terms;
use crate::wire::http::{Framing, Head};
use crate::wire::response::put_switching_protocols;
use crate::wire::target::parse_target;
use crate::wire::upgrade::Upgrade;
use crate::wire::websocket::Opcode;

/// The largest message, and the largest body.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The methods that have a meaning for somebody; any other is answered too.
const ALLOW: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE";
const POOL_BYTES: usize = 1024 * 1024 * 1024;

/// The configuration of an echo: loopback, any free port, one thread, no origin refused, no rate limit.
pub fn config() -> Config {
    let limits = Limits {
        message_bytes_max: MESSAGE_BYTES_MAX,
        body_bytes_max: MESSAGE_BYTES_MAX,
        // Everything is compressed, whether or not that makes it smaller: kosoku fails on a text that comes back plain.
        deflate_threshold_bytes: 0,
        burst_bytes_max: MESSAGE_BYTES_MAX,
        // From here on it is not read; the hard limit is then out of reach.
        outbox_soft_bytes: MESSAGE_BYTES_MAX,
        outbox_hard_bytes: 16 * MESSAGE_BYTES_MAX,
        direct_pool_bytes: POOL_BYTES,
        input_pool_bytes: POOL_BYTES,
        ..Limits::default()
    };
    // Neither secret nor key is ever looked at.
    let mut config = Config::for_tests("", "");
    (config.service, config.rates, config.limits) = (Service::Echo, false, limits);
    config
}

impl Shard {
    /// Answers a request: a WebSocket's is taken up, whatever its path, and any other gets its body back.
    pub(super) fn echo_request(
        &mut self,
        slot: u32,
        head: &Head<'_>,
        framing: &Framing,
        body: &Body<'_>,
        is_first: bool,
    ) -> Handled {
        if let Err(reject) = parse_target(head.target) {
            return error(reject.status, ErrorCode::InvalidMessage, reject.reason);
        }
        // Of other requests the field is ignored, as it may be (RFC 9110 7.8).
        if head.method == "GET" && head.minor_version > 0 && head.list_has("upgrade", "websocket") {
            return self.handle_upgrade(slot, head, framing, is_first, |shard, wanted| shard.open_echo(slot, wanted));
        }
        let body = match body {
            Body::Bytes(bytes) => bytes.to_vec(),
            Body::Absent | Body::Decoded => Vec::new(),
            Body::TooLarge => return error(413, ErrorCode::TooLarge, "the body is larger than is accepted"),
        };
        let given = head.header_str("content-type").filter(|given| !given.is_empty());
        let content_type = given.map_or(Cow::Borrowed("application/octet-stream"), |given| given.to_owned().into());
        let headers = if head.method == "OPTIONS" { vec![("Allow", ALLOW.to_owned())] } else { Vec::new() };
        Handled::Now(Rest { status: 200, headers, content_type, body })
    }

    /// Sends a message back.
    pub(super) fn echo_message(&mut self, slot: u32, payload: &[u8], binary: bool) {
        let opcode = if binary { Opcode::Binary } else { Opcode::Text };
        self.send_message(slot, opcode, payload);
    }

    /// Whether so much waits for the peer that it is not read.
    pub(super) fn is_echo_behind(&self, slot: u32) -> bool {
        self.connections[slot].outbox.bytes() >= self.config.limits.outbox_soft_bytes
    }

    /// Opens a WebSocket, with the first subprotocol that was offered.
    fn open_echo(&mut self, slot: u32, wanted: &Upgrade<'_>) -> Handled {
        let tick = self.tick();
        let (protocol, extensions) = (wanted.protocols.first().copied(), wanted.deflate.map(Terms::answer));
        let conn = &mut self.connections[slot];
        conn.set_window_bits(wanted.deflate.map_or(0, |terms| terms.window_bits));
        self.pool.append_direct(&mut conn.outbox, |out| {
            put_switching_protocols(out, &wanted.accept, protocol, extensions.as_deref());
        });
        conn.phase = Phase::Open;
        (conn.opened, conn.seen) = (tick, tick);
        self.arm_open(slot);
        self.mark_express(slot);
        Handled::Upgraded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_go_together() {
        config().limits.check().unwrap();
    }
}
