//! The connection that posts one message to each room, pipelined, and checks each answer.
//! It knows nothing of members but how many a room has.

use std::io::{ErrorKind, Read, Write};

use mio::net::TcpStream;
use serde::Deserialize;

use crate::member::{MESSAGE_PREFIX, ROOM_PREFIX, head_end};

/// Posts to rooms 0 and up, and reads the answers in order.
pub struct Poster {
    stream: TcpStream,
    out: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    answered: usize,
    rooms: usize,
    room_size: usize,
}

#[derive(Deserialize)]
struct Answer {
    seq: u64,
    delivered: Delivered,
}

#[derive(Deserialize)]
struct Delivered {
    users: usize,
    connections: usize,
}

impl Poster {
    /// One post for each of `rooms`.
    pub fn new(stream: TcpStream, api_key: &str, rooms: usize, room_size: usize) -> Self {
        let mut out = Vec::new();
        for room in 0..rooms {
            let body = format!(
                "{{\"id\":\"{MESSAGE_PREFIX}{room}\",\"content\":\"To everybody in room {room}\",\"sender_user_id\":\"erp\"}}"
            );
            let head = format!(
                "POST /api/chat/rooms/{ROOM_PREFIX}{room}/messages HTTP/1.1\r\nHost: million\r\nX-API-Key: {api_key}\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            out.extend_from_slice(head.as_bytes());
            out.extend_from_slice(body.as_bytes());
        }
        Self { stream, out, written: 0, input: Vec::new(), answered: 0, rooms, room_size }
    }

    /// Posts that were answered 201, for a whole room.
    pub fn answered(&self) -> usize {
        self.answered
    }

    /// Writes and reads as far as the socket goes.
    ///
    /// # Errors
    /// The connection failed, or an answer is not the expected one.
    pub fn turn(&mut self, buffer: &mut [u8]) -> Result<(), String> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
                Err(error) => return Err(format!("cannot post: {error}")),
            }
        }
        loop {
            match self.stream.read(buffer) {
                // The server closes it when it has been idle for long, which is well before a million are told.
                Ok(0) if self.answered == self.rooms => return Ok(()),
                Ok(0) => return Err("the server ended the connection that posts".to_owned()),
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
                Err(error) => return Err(format!("cannot read answers: {error}")),
            }
        }
        self.take_answers()
    }

    fn take_answers(&mut self) -> Result<(), String> {
        let mut done = 0;
        while let Some(size) = self.check_answer(&self.input[done..])? {
            done += size;
            self.answered += 1;
        }
        self.input.drain(..done);
        Ok(())
    }

    /// The size of the answer that `bytes` begins with; `None` if it is not whole.
    fn check_answer(&self, bytes: &[u8]) -> Result<Option<usize>, String> {
        let Some(end) = head_end(bytes) else { return Ok(None) };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length = length.and_then(|digits| digits.trim().parse::<usize>().ok());
        let Some(body) = bytes.get(end..end + length.ok_or("an answer without length")?) else { return Ok(None) };
        let wrong = || format!("post {} was answered {head}{}", self.answered, String::from_utf8_lossy(body));
        if !head.starts_with("http/1.1 201 ") {
            return Err(wrong());
        }
        let answer: Answer = serde_json::from_slice(body).map_err(|_| wrong())?;
        let Delivered { users, connections } = answer.delivered;
        if (answer.seq, users, connections) != (1, self.room_size, self.room_size) {
            return Err(wrong());
        }
        Ok(Some(end + body.len()))
    }
}
