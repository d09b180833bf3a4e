//! Those who publish: prebuilt messages of which only the marker changes, windows and the schedule of an open loop.
//! It knows nothing of sockets: it fills output buffers.

use crate::args::{Args, Mode};
use crate::frame;
use crate::http;
use crate::marker::{COUNTER_MAX, MARKER_BYTES, Marker, PREFIX_BYTES};

/// Output held for a publisher whose connection does not take more; beyond it the schedule waits.
pub const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Length of a thumbs-up, the only emoji used.
const EMOJI: &str = "\u{1f44d}";

/// One who publishes.
pub struct Publisher {
    /// The slot of its connection.
    pub slot: usize,
    /// Messages sent.
    pub sent: u32,
    /// Messages seen by the member that watches for them: the publisher itself, or the room's first member; the highest
    /// number where there is no member.
    pub seen: u32,
    /// Posts answered; the highest number where nothing is answered.
    pub answered: u32,
    /// Messages to send in all.
    pub limit: u32,
    room: u32,
    number: u32,
    template: Template,
    tour: Option<Tour>,
}

/// The way of one who goes round the rooms.
struct Tour {
    args: Args,
    /// The publisher's number over all rooms, and that of its first room.
    first: usize,
}

/// A whole message as it goes out, but for its marker.
struct Template {
    bytes: Vec<u8>,
    marker_at: usize,
    /// Where the masked payload begins, if it is masked.
    masked_from: Option<usize>,
}

/// The times at which an open loop sends, evenly spaced and taken by the publishers in turn.
pub struct Schedule {
    start_us: u64,
    rate: f64,
    taken: u64,
}

impl Publisher {
    /// Publisher `index` over all rooms; `slot` is its connection.
    pub fn new(args: &Args, index: usize, slot: usize) -> Self {
        let (room, number) = (index % args.rooms, index / args.rooms);
        let tour = args.tour.then(|| Tour { args: args.clone(), first: index });
        Self {
            slot,
            sent: 0,
            seen: if args.mode == Mode::Post { u32::MAX } else { 0 },
            answered: if args.posts() { 0 } else { u32::MAX },
            limit: tour.as_ref().map_or(COUNTER_MAX, Tour::length),
            // The arguments hold both within the marker's width.
            room: room as u32,
            number: number as u32,
            template: Template::new(args, room),
            tour,
        }
    }

    /// Messages that the window has room for.
    pub fn credit(&self, window: u32) -> u32 {
        let back = self.seen.min(self.answered);
        let in_flight = self.sent - back;
        window.saturating_sub(in_flight).min(self.limit.saturating_sub(self.sent))
    }

    /// Whether a marker is that of this publisher's next message to be answered.
    pub fn is_answer(&self, marker: &Marker) -> bool {
        let room = self.tour.as_ref().map_or(self.room, |tour| tour.room(self.answered) as u32);
        (marker.room, marker.publisher, marker.counter) == (room, self.number, self.answered)
    }

    /// Stops after so many more messages, if not earlier anyway.
    pub fn limit(&mut self, messages: u32) {
        let most = self.tour.as_ref().map_or(COUNTER_MAX, Tour::length);
        self.limit = self.sent.saturating_add(messages).min(most);
    }

    /// Writes the next message into `out`.
    pub fn write(&mut self, prefix: &[u8; PREFIX_BYTES], sent_us: u64, late_us: u64, out: &mut Vec<u8>) {
        if let Some(tour) = &self.tour {
            let room = tour.room(self.sent);
            self.room = room as u32;
            self.template = Template::new(&tour.args, room);
        }
        let marker = Marker { room: self.room, publisher: self.number, counter: self.sent, sent_us, late_us };
        self.template.write(&marker.encode(prefix), out);
        self.sent += 1;
    }
}

impl Tour {
    /// The room of the message of this number.
    fn room(&self, message: u32) -> usize {
        self.first + message as usize * self.args.publishers()
    }

    fn length(&self) -> u32 {
        (self.args.rooms - self.first).div_ceil(self.args.publishers()) as u32
    }
}

impl Schedule {
    /// Sends `rate` messages a second from `start_us` on.
    pub fn new(rate: f64, start_us: u64) -> Self {
        Self { start_us, rate, taken: 0 }
    }

    /// When the next message is due, in microseconds.
    pub fn due_us(&self) -> u64 {
        self.start_us + (self.taken as f64 * 1e6 / self.rate) as u64
    }

    /// The publisher, of so many, whose turn it is.
    pub fn publisher(&self, publishers: usize) -> usize {
        (self.taken % publishers as u64) as usize
    }

    /// The message is sent, or its publisher has no more to send.
    pub fn advance(&mut self) {
        self.taken += 1;
    }
}

impl Template {
    fn new(args: &Args, room: usize) -> Self {
        let room = format!("{}{room}", args.room_prefix);
        let marker = "M".repeat(MARKER_BYTES);
        if args.posts() {
            let body = |content: &str| {
                format!("{{\"id\":\"{marker}\",\"content\":\"{content}\",\"sender_user_id\":\"load\"}}")
            };
            let padding = args.payload_bytes.saturating_sub(body("").len()).max(1);
            let body = body(&"x".repeat(padding));
            let mut bytes = http::post_head(args.address, &room, &args.api_key, body.len());
            let marker_at = bytes.len() + body.find(&marker).unwrap_or(0);
            bytes.extend_from_slice(body.as_bytes());
            return Self { bytes, marker_at, masked_from: None };
        }
        let payload = |emoji: &str| {
            format!("{{\"type\":\"reaction\",\"roomId\":\"{room}\",\"messageId\":\"{marker}\",\"emoji\":\"{emoji}\"}}")
        };
        let padding = args.payload_bytes.saturating_sub(payload("").len()) / EMOJI.len();
        let payload = payload(&EMOJI.repeat(padding.clamp(1, 64 / EMOJI.len())));
        let (bytes, start) = frame::masked(frame::TEXT, payload.as_bytes());
        Self { bytes, marker_at: start + payload.find(&marker).unwrap_or(0), masked_from: Some(start) }
    }

    fn write(&mut self, marker: &[u8; MARKER_BYTES], out: &mut Vec<u8>) {
        let target = &mut self.bytes[self.marker_at..self.marker_at + MARKER_BYTES];
        target.copy_from_slice(marker);
        if let Some(start) = self.masked_from {
            frame::mask(target, self.marker_at - start);
        }
        out.extend_from_slice(&self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::marker;

    fn args(line: &str) -> Args {
        Args::parse_from(line.split(' '))
    }

    #[test]
    fn a_reaction_carries_its_marker_masked() {
        let args = args("load --secret s --rooms 3");
        let mut publisher = Publisher::new(&args, 2, 2);
        let mut out = Vec::new();
        let prefix = marker::prefix(7);
        publisher.write(&prefix, 1, 0, &mut out);
        out.clear();
        publisher.write(&prefix, 5, 0, &mut out);
        let start = out.len() - usize::from(out[1] & 0x7f);
        frame::mask(&mut out[start..], 0);
        let message: serde_json::Value = serde_json::from_slice(&out[start..]).unwrap();
        assert_eq!(message["type"], "reaction");
        assert_eq!(message["roomId"], "load-2");
        assert_eq!(message["emoji"], EMOJI.repeat(2));
        let marker = Marker::decode(message["messageId"].as_str().unwrap().as_bytes()).unwrap();
        assert_eq!((marker.room, marker.counter, marker.sent_us), (2, 1, 5));
    }

    #[test]
    fn a_post_has_the_length_it_names() {
        let args = args("load --secret s --mode rest --api-key k --payload-bytes 300");
        let mut out = Vec::new();
        Publisher::new(&args, 0, 0).write(&marker::prefix(7), 1, 0, &mut out);
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("X-API-Key: k\r\n"));
        assert!(head.contains("Content-Length: 300"));
        assert_eq!(body.len(), 300);
        let message: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(Marker::decode(message["id"].as_str().unwrap().as_bytes()).is_some());
    }

    #[test]
    fn a_tour_comes_to_each_room_once() {
        let args =
            args("load --secret s --api-key k --mode post --connections 0 --rooms 11 --http-connections 3 --tour");
        let mut rooms = Vec::new();
        for index in 0..3 {
            let mut publisher = Publisher::new(&args, index, index);
            publisher.limit(100);
            while publisher.credit(1) > 0 {
                let mut out = Vec::new();
                publisher.write(&marker::prefix(7), 1, 0, &mut out);
                let text = String::from_utf8(out).unwrap();
                let (path, body) = text.split_once("\r\n\r\n").unwrap();
                let message: serde_json::Value = serde_json::from_str(body).unwrap();
                let marker = Marker::decode(message["id"].as_str().unwrap().as_bytes()).unwrap();
                assert!(path.contains(&format!("/load-{}/", marker.room)) && publisher.is_answer(&marker));
                publisher.answered += 1;
                rooms.push(marker.room);
            }
        }
        rooms.sort_unstable();
        assert_eq!(rooms, (0..11).collect::<Vec<u32>>());
    }

    #[test]
    fn a_window_counts_what_is_answered_and_seen() {
        let mut publisher = Publisher::new(&args("load --secret s"), 0, 0);
        assert_eq!(publisher.credit(4), 4);
        (publisher.sent, publisher.seen, publisher.answered) = (4, 3, 1);
        assert_eq!(publisher.credit(4), 1);
        publisher.limit = 4;
        assert_eq!(publisher.credit(4), 0);
    }
}
