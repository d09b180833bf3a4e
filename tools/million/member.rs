//! One member as a client sees it: how far it has come, and what it makes of the bytes that come in.
//!
//! It owns no socket and keeps no buffer: only the beginning of a frame that was not whole when it was read. What no server
//! of this protocol may send to it, a message of another room or a second copy of one among them, is an error.

use std::io::Cursor;

use serde::Deserialize;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// The key of RFC 6455 section 1.3 and the answer that it must get; one key serves all members.
pub const UPGRADE_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const UPGRADE_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// What the names of rooms begin with; their number follows.
pub const ROOM_PREFIX: &str = "room-";
/// What the ids of messages begin with; the number of their room follows.
pub const MESSAGE_PREFIX: &str = "message-";
/// The load is no browser, so nothing has to be unpredictable.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// How far a member has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Upgrading,
    Upgraded,
    Greeted,
    Joining,
    Joined,
    Told,
}

/// One member.
pub struct Member {
    room: u32,
    stage: Stage,
    /// The beginning of what was not whole.
    tail: Option<Box<[u8]>>,
}

/// What all members together have seen.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    /// Members with `connected`.
    pub greeted: usize,
    /// Members with the `online_update` that answers their join.
    pub joined: usize,
    /// Members with the message of their room.
    pub told: usize,
    /// Events about presence.
    pub presence: u64,
    /// Whole frames.
    pub frames: u64,
    /// Bytes of whole frames.
    pub bytes: u64,
}

/// What of an event is looked at.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(rename = "roomId")]
    room: Option<&'a str>,
    id: Option<&'a str>,
}

impl Member {
    /// A member-to-be of a room, whose upgrade is under way.
    pub fn new(room: u32) -> Self {
        Self { room, stage: Stage::Upgrading, tail: None }
    }

    /// The frame that asks to join the room.
    pub fn ask(&mut self) -> Vec<u8> {
        debug_assert_eq!(self.stage, Stage::Greeted);
        self.stage = Stage::Joining;
        let text = format!("{{\"type\":\"join_room\",\"roomId\":\"{ROOM_PREFIX}{}\"}}", self.room);
        let mut frame = Vec::with_capacity(text.len() + 8);
        mask_into(OpCode::Data(Data::Text), text.as_bytes(), &mut frame);
        frame
    }

    /// Puts what was kept at the head of `buffer` and says how many bytes that are.
    pub fn restore(&mut self, buffer: &mut Vec<u8>) -> usize {
        let Some(tail) = self.tail.take() else { return 0 };
        if buffer.len() < tail.len() * 2 {
            buffer.resize(tail.len() * 2, 0);
        }
        buffer[..tail.len()].copy_from_slice(&tail);
        tail.len()
    }

    /// Takes what was read, behind what was kept. Pongs to be sent are put into `replies`.
    ///
    /// # Errors
    /// What came is not what a server of this protocol sends to this member now.
    pub fn take(&mut self, mut bytes: &[u8], tally: &mut Tally, replies: &mut Vec<u8>) -> Result<(), String> {
        if self.stage == Stage::Upgrading {
            let Some(end) = head_end(bytes) else {
                self.tail = Some(bytes.into());
                return Ok(());
            };
            check_upgrade(&bytes[..end])?;
            self.stage = Stage::Upgraded;
            bytes = &bytes[end..];
        }
        while !bytes.is_empty() {
            let mut cursor = Cursor::new(bytes);
            let parsed = FrameHeader::parse(&mut cursor).map_err(|error| error.to_string())?;
            let start = cursor.position() as usize;
            let whole = parsed.and_then(|(header, length)| {
                let payload = bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)?;
                Some((header, payload))
            });
            let Some((header, payload)) = whole else {
                self.tail = Some(bytes.into());
                return Ok(());
            };
            let size = start + payload.len();
            tally.frames += 1;
            tally.bytes += size as u64;
            self.frame(&header, payload, tally, replies)?;
            bytes = &bytes[size..];
        }
        Ok(())
    }

    fn frame(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        tally: &mut Tally,
        replies: &mut Vec<u8>,
    ) -> Result<(), String> {
        if !header.is_final || header.rsv1 || header.rsv2 || header.rsv3 || header.mask.is_some() {
            return Err(format!("a frame of the wrong shape: {header:?}"));
        }
        match header.opcode {
            OpCode::Data(Data::Text) => self.event(payload, tally),
            OpCode::Control(Control::Ping) => {
                mask_into(OpCode::Control(Control::Pong), payload, replies);
                Ok(())
            }
            other => Err(format!("{other}: {}", String::from_utf8_lossy(payload))),
        }
    }

    fn event(&mut self, payload: &[u8], tally: &mut Tally) -> Result<(), String> {
        let shown = || format!("unexpected at stage {:?}: {}", self.stage, String::from_utf8_lossy(payload));
        let event: Event = serde_json::from_slice(payload).map_err(|error| format!("{error}: {}", shown()))?;
        let is_ours = number(event.room, ROOM_PREFIX) == Some(self.room);
        let (stage, counter) = match (event.kind, self.stage) {
            ("connected", Stage::Upgraded) => (Stage::Greeted, &mut tally.greeted),
            ("online_update", Stage::Joining) if is_ours => (Stage::Joined, &mut tally.joined),
            ("new_message", Stage::Joined) if is_ours && number(event.id, MESSAGE_PREFIX) == Some(self.room) => {
                (Stage::Told, &mut tally.told)
            }
            ("user_joined" | "online_update" | "presence_diff", Stage::Joining | Stage::Joined | Stage::Told)
                if is_ours =>
            {
                tally.presence += 1;
                return Ok(());
            }
            _ => return Err(shown()),
        };
        self.stage = stage;
        *counter += 1;
        Ok(())
    }
}

/// Where the head of an HTTP answer ends.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

fn check_upgrade(head: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(head);
    if text.starts_with("HTTP/1.1 101 ") && text.contains(UPGRADE_ACCEPT) {
        return Ok(());
    }
    Err(format!("no upgrade: {text}"))
}

fn number(name: Option<&str>, prefix: &str) -> Option<u32> {
    name?.strip_prefix(prefix)?.parse().ok()
}

fn mask_into(opcode: OpCode, payload: &[u8], out: &mut Vec<u8>) {
    let header = FrameHeader { opcode, mask: Some(MASK), ..FrameHeader::default() };
    // Writing into memory does not fail.
    let _ = header.format(payload.len() as u64, out);
    out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    fn text(payload: &str) -> Vec<u8> {
        let mut bytes = vec![0x81, 126];
        bytes.extend_from_slice(&(payload.len() as u16).to_be_bytes());
        bytes.extend_from_slice(payload.as_bytes());
        bytes
    }

    fn joined(member: &mut Member, tally: &mut Tally) {
        let mut replies = Vec::new();
        member.take(HEAD.as_bytes(), tally, &mut replies).unwrap();
        member.take(&text(r#"{"type":"connected"}"#), tally, &mut replies).unwrap();
        assert_eq!(member.ask()[0], 0x81);
        member.take(&text(r#"{"type":"online_update","roomId":"room-7"}"#), tally, &mut replies).unwrap();
        assert!(replies.is_empty());
    }

    #[test]
    fn a_member_is_small() {
        assert!(size_of::<Member>() <= 24);
    }

    #[test]
    fn bytes_may_be_cut_anywhere() {
        let mut bytes = HEAD.as_bytes().to_vec();
        bytes.extend(text(r#"{"type":"connected"}"#));
        let (mut member, mut tally, mut replies) = (Member::new(7), Tally::default(), Vec::new());
        for byte in bytes {
            let mut buffer = vec![0; 1];
            let held = member.restore(&mut buffer);
            buffer.truncate(held);
            buffer.push(byte);
            member.take(&buffer, &mut tally, &mut replies).unwrap();
        }
        assert_eq!((member.stage, tally.greeted, tally.frames), (Stage::Greeted, 1, 1));
        assert!(member.tail.is_none());
    }

    #[test]
    fn the_message_counts_once_and_only_in_its_room() {
        let (mut member, mut tally, mut replies) = (Member::new(7), Tally::default(), Vec::new());
        joined(&mut member, &mut tally);
        let message =
            |room, id| text(&format!(r#"{{"type":"new_message","roomId":"room-{room}","id":"message-{id}"}}"#));
        assert!(member.take(&message(8, 8), &mut tally, &mut replies).is_err());
        assert!(member.take(&message(7, 8), &mut tally, &mut replies).is_err());
        member.take(&message(7, 7), &mut tally, &mut replies).unwrap();
        assert!(member.take(&message(7, 7), &mut tally, &mut replies).is_err(), "a second copy");
        assert_eq!((tally.joined, tally.told), (1, 1));
    }

    #[test]
    fn a_ping_is_answered_and_a_close_is_an_error() {
        let (mut member, mut tally, mut replies) = (Member::new(7), Tally::default(), Vec::new());
        joined(&mut member, &mut tally);
        member.take(&[0x89, 1, b'x'], &mut tally, &mut replies).unwrap();
        assert_eq!(replies, [0x8a, 0x81, 0x37, 0xfa, 0x21, 0x3d, b'x' ^ 0x37]);
        assert!(member.take(&[0x88, 0], &mut tally, &mut replies).is_err());
    }
}
