//! A server in a network of its own, behind a line; and what must be so when a fault is over.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::http_client::Http;
use crate::link::Link;
use crate::server::{Server, eventually};

/// How much more memory may be resident at the most than before the fault.
const GROWTH_MAX: u64 = 64 * 1024 * 1024;

/// What the server had open before the fault.
pub struct Before {
    files: usize,
    bytes: u64,
}

impl Before {
    pub fn of(server: &Server) -> Self {
        Self { files: open_files(server), bytes: server.resident_bytes_max() }
    }

    /// Everybody has left: no descriptor, slot or presence is left of them, and memory was bounded.
    pub fn assert_returned(&self, server: &Server, http: &mut Http, room: &str, users: &[String]) {
        eventually("the room is empty", || (online(http, room) == 0).then_some(()));
        for user in users {
            let answer = http.service("GET", &format!("/api/chat/users/{user}"), None).json();
            assert!(answer["online"] == false && answer["connections"] == Value::Array(Vec::new()), "{answer}");
        }
        self.assert_files_return(server);
    }

    pub fn assert_files_return(&self, server: &Server) {
        // The connection that is asked with is one, and the kernel may hold one that is just ending.
        let mut files = 0;
        eventually("descriptors are given back", || {
            files = open_files(server);
            (files <= self.files + 1).then_some(())
        });
        let grown = server.resident_bytes_max() - self.bytes;
        println!("{} files open before, {files} after; {} KiB more memory at most", self.files, grown / 1024);
        assert!(grown < GROWTH_MAX, "{grown} bytes more");
    }
}

pub fn open_files(server: &Server) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("the process runs").count()
}

/// How many users are in a room.
pub fn online(http: &mut Http, room: &str) -> u64 {
    let answer = http.service("GET", &format!("/api/chat/rooms/{room}/online"), None).json();
    answer["count"].as_u64().expect("a count")
}

/// Waits until so many are in a room, no longer than `limit`.
pub fn await_online(http: &mut Http, room: &str, count: u64, limit: Duration) -> Duration {
    let begun = Instant::now();
    loop {
        let now = online(http, room);
        if now == count {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < limit, "{now} instead of {count} are in {room} after {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A server behind a line.
pub struct World {
    pub link: Link,
    pub server: Server,
}

impl World {
    pub fn new(env: &[(&str, &str)]) -> Option<Self> {
        let link = Link::new(crate::seed())?;
        let env: Vec<(&str, &str)> = env.iter().copied().chain([("CHAT_LISTEN", "0.0.0.0")]).collect();
        let server = link.server.within(|| Server::start_with(&env));
        Some(Self { link, server })
    }

    /// A connection over the line.
    pub fn far(&self) -> TcpStream {
        self.link.socket(self.server.port())
    }

    /// A connection that the line is no part of.
    pub fn near(&self) -> TcpStream {
        self.link.server.within(|| self.server.socket())
    }

    pub fn http(&self) -> Http {
        Http::over(self.near())
    }
}
