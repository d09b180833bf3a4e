//! The real server as a process of its own, killed and reaped when the value is dropped; and what the kernel tells of its
//! memory and of all memory.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What the server verifies tokens with.
pub const SECRET: &str = "a-secret-of-at-least-32-bytes-for-a-million";
/// What the server authorizes posts by.
pub const API_KEY: &str = "an-api-key-for-a-million";
const START_MAX: Duration = Duration::from_secs(60);

/// A running server.
pub struct Server {
    child: Child,
    port: u16,
}

/// Memory at one moment, in bytes.
#[derive(Clone, Copy, Default, Debug)]
pub struct Memory {
    /// Resident memory of the server.
    pub server: u64,
    /// Resident memory of this process.
    pub client: u64,
    /// Slab of the kernel, in all.
    pub slab: u64,
    /// Of it what the kernel cannot reclaim.
    pub slab_unreclaimable: u64,
    /// Buffers of TCP.
    pub tcp: u64,
    /// Memory that nothing uses.
    pub free: u64,
}

impl Server {
    /// Starts `binary` for so many connections on so many threads, and waits until it listens.
    ///
    /// # Errors
    /// It does not start, or does not listen within a minute.
    pub fn start(binary: &Path, connections: usize, threads: usize) -> Result<Self, String> {
        let port = free_port().map_err(|error| format!("no free port: {error}"))?;
        let mut command = Command::new(binary);
        // The environment and a `.env` of whoever runs this are none of its business.
        command.arg("serve").env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        command.envs([
            ("JWT_SECRET", SECRET.to_owned()),
            ("CHAT_API_KEY", API_KEY.to_owned()),
            ("WS_PORT", port.to_string()),
            ("CHAT_LISTEN", "0.0.0.0".to_owned()),
            ("CHAT_THREADS", threads.to_string()),
            ("CHAT_CONNECTIONS_MAX", connections.to_string()),
            ("CHAT_RATES", "off".to_owned()),
            ("CHAT_STORE", "none".to_owned()),
            ("CHAT_HEARTBEAT_MS", "3600000".to_owned()),
            ("CHAT_HANDSHAKE_MS", "600000".to_owned()),
            ("CHAT_LOG", "warn".to_owned()),
        ]);
        let child = command.spawn().map_err(|error| format!("{}: {error}", binary.display()))?;
        let mut server = Self { child, port };
        let started = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Ok(Some(status)) = server.child.try_wait() {
                return Err(format!("the server ended at start with {status}"));
            }
            if started.elapsed() > START_MAX {
                return Err("the server does not listen".to_owned());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// Where it listens, on every address.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The memory of now.
    pub fn memory(&self) -> Memory {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let sockets = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
        Memory {
            server: resident(&self.child.id().to_string()),
            client: resident("self"),
            slab: kibibytes(&meminfo, "Slab:"),
            slab_unreclaimable: kibibytes(&meminfo, "SUnreclaim:"),
            tcp: tcp_pages(&sockets) * 4096,
            free: kibibytes(&meminfo, "MemFree:"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> std::io::Result<u16> {
    // Below what the kernel gives to outgoing connections, of which there will be many.
    let mut ports = 12_000..20_000;
    let free = ports.find(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok());
    free.ok_or_else(|| std::io::ErrorKind::AddrInUse.into())
}

fn resident(process: &str) -> u64 {
    kibibytes(&fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default(), "VmRSS:")
}

/// The value of a line such as `Slab: 12 kB`, in bytes; 0 if there is none.
fn kibibytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()).and_then(|word| word.parse::<u64>().ok());
    number.unwrap_or(0) * 1024
}

fn tcp_pages(sockets: &str) -> u64 {
    let line = sockets.lines().find_map(|line| line.strip_prefix("TCP:"));
    let mut words = line.unwrap_or_default().split_whitespace();
    words.find(|word| *word == "mem").and_then(|_| words.next()).and_then(|word| word.parse().ok()).unwrap_or(0)
}
