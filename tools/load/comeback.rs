//! Those who come back to a room: how far they know it, what they say when they join, and how they must be answered.
//! It asks the server for the epoch over a connection of its own.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use memchr::memmem;

use crate::args::Args;

const TIMEOUT: Duration = Duration::from_secs(10);
const EPOCH: &[u8] = b"\"epoch\":\"";

/// The position at which all members left off.
pub struct Comeback {
    since: u32,
    epoch: String,
}

impl Comeback {
    /// Members come back who lack the last of the messages that were posted; `None` if they come for the first time.
    pub fn new(args: &Args) -> io::Result<Option<Self>> {
        if args.recover == 0 {
            return Ok(None);
        }
        let page = get(args.address, &args.api_key, &format!("{}0", args.room_prefix))?;
        let epoch = epoch_of(&page).ok_or_else(|| io::Error::other("the server names no epoch"))?;
        Ok(Some(Self { since: args.history - args.recover, epoch }))
    }

    /// What `join_room` says besides the room.
    pub fn members(&self) -> String {
        format!(",\"since\":{},\"epoch\":\"{}\"", self.since, self.epoch)
    }

    /// Whether the answer to a join says that what was missed follows.
    pub fn is_answered_by(online_update: &[u8]) -> bool {
        memmem::find(online_update, b"\"recovered\":true").is_some()
    }
}

fn get(address: SocketAddr, api_key: &str, room: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let path = format!("/api/chat/rooms/{room}/messages?limit=1");
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nX-API-Key: {api_key}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

fn epoch_of(page: &[u8]) -> Option<String> {
    let from = memmem::find(page, EPOCH)? + EPOCH.len();
    let length = memchr::memchr(b'"', &page[from..])?;
    String::from_utf8(page[from..from + length].to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_is_found() {
        assert_eq!(epoch_of(br#"{"messages":[],"epoch":"0af1","firstSeq":1}"#).as_deref(), Some("0af1"));
        assert_eq!(epoch_of(b"{}"), None);
    }
}
