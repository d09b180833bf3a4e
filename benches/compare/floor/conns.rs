//! The connections, by descriptor, 32 bytes each. What a socket did not take yet, or brought only in part, is kept apart:
//! that is rare.

use std::collections::{HashMap, VecDeque};

use crate::sys;
use crate::text::UserJson;

/// `Conn::room` of a connection that speaks HTTP.
pub const HTTP: u32 = u32::MAX;
/// `Conn::room` of a WebSocket that has joined nothing.
pub const NO_ROOM: u32 = u32::MAX - 1;
/// `Conn::slot` of a connection whose join takes effect at the end of the turn.
pub const JOINING: u32 = u32::MAX;

/// Ticks from opening a connection to its ping, and from one ping to the next.
const PING_TICKS: u32 = 120;
/// Pings between two polls.
const PINGS_MAX: usize = 128;

/// All connections.
#[derive(Default)]
pub struct Conns {
    list: Vec<Conn>,
    /// Whose ping is due when, in ticks. Who was closed since is in it still.
    pings: VecDeque<(u32, i32)>,
    unsent: HashMap<i32, Vec<u8>>,
    unread: HashMap<i32, Vec<u8>>,
}

/// One connection.
pub struct Conn {
    /// Who it is.
    pub user: UserJson,
    /// The number of its room.
    pub room: u32,
    /// Its place among the room's members.
    pub slot: u32,
    /// The tick of its next ping.
    ping: u32,
}

impl Default for Conn {
    fn default() -> Self {
        Self { user: UserJson::default(), room: HTTP, slot: JOINING, ping: 0 }
    }
}

impl Conns {
    /// The connection of this descriptor, which must be one.
    pub fn at(&mut self, fd: i32) -> &mut Conn {
        &mut self.list[fd as usize]
    }

    /// A new connection, opened in this tick.
    pub fn open(&mut self, fd: i32, tick: u32) {
        let index = fd as usize;
        if self.list.len() <= index {
            self.list.resize_with(index + 1, Conn::default);
        }
        self.list[index] = Conn { ping: tick + PING_TICKS, ..Conn::default() };
        self.pings.push_back((tick + PING_TICKS, fd));
    }

    /// Pings some of those whose turn it is in this tick, or was before it; returns how many.
    pub fn ping(&mut self, tick: u32) -> usize {
        for count in 0..PINGS_MAX {
            let Some(&(due, fd)) = self.pings.front().filter(|(due, _)| *due <= tick) else { return count };
            self.pings.pop_front();
            let conn = &mut self.list[fd as usize];
            if conn.ping != due {
                continue;
            }
            conn.ping = tick + PING_TICKS;
            self.pings.push_back((conn.ping, fd));
            if conn.room != HTTP {
                self.send(fd, &[0x89, 0]);
            }
        }
        PINGS_MAX
    }

    /// The connection is gone.
    pub fn close(&mut self, fd: i32) {
        self.list[fd as usize] = Conn::default();
        self.unsent.remove(&fd);
        self.unread.remove(&fd);
        sys::close(fd);
    }

    /// Sends what the socket takes and keeps the rest. A failed socket is closed by its own event.
    pub fn send(&mut self, fd: i32, bytes: &[u8]) {
        if !self.unsent.is_empty()
            && let Some(unsent) = self.unsent.get_mut(&fd)
        {
            unsent.extend_from_slice(bytes);
            return;
        }
        let sent = sys::send(fd, bytes);
        if sent < bytes.len() {
            self.unsent.insert(fd, bytes[sent..].to_vec());
        }
    }

    /// Sends what was kept.
    pub fn flush(&mut self, fd: i32) {
        if let Some(unsent) = self.unsent.get_mut(&fd) {
            let sent = sys::send(fd, unsent);
            unsent.drain(..sent);
            if unsent.is_empty() {
                self.unsent.remove(&fd);
            }
        }
    }

    /// Moves what was not whole before to the head of `inbox`, and says how much that is.
    pub fn take_unread(&mut self, fd: i32, inbox: &mut [u8]) -> usize {
        if self.unread.is_empty() {
            return 0;
        }
        let Some(unread) = self.unread.remove(&fd) else {
            return 0;
        };
        inbox[..unread.len()].copy_from_slice(&unread);
        unread.len()
    }

    /// Keeps what is not whole.
    pub fn keep_unread(&mut self, fd: i32, bytes: &[u8]) {
        self.unread.insert(fd, bytes.to_vec());
    }
}
