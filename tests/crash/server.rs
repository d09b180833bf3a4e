//! The server that is killed: the real binary over one database file, on a loopback address of this run's own.
//!
//! Owns the process: however the value goes, the process goes with it. What it logs is appended to a file in the folder of
//! the run.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

pub const SECRET: &str = "crash-test-secret-of-at-least-32-bytes";
pub const API_KEY: &str = "crash-test-api-key";

/// What is started.
pub struct Plan {
    pub binary: PathBuf,
    pub folder: PathBuf,
    pub address: SocketAddr,
}

/// A running server.
pub struct Server {
    child: Child,
    address: SocketAddr,
}

impl Plan {
    pub fn database(&self) -> PathBuf {
        self.folder.join("chat.db")
    }

    pub fn log(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    /// Starts it; `settings` are added to the environment.
    pub fn start(&self, settings: &[(&str, String)]) -> io::Result<Server> {
        let log = OpenOptions::new().create(true).append(true).open(self.log())?;
        let child = Command::new(&self.binary)
            .arg("serve")
            .env_clear()
            .env("JWT_SECRET", SECRET)
            .env("CHAT_API_KEY", API_KEY)
            .env("CHAT_LISTEN", self.address.ip().to_string())
            .env("WS_PORT", self.address.port().to_string())
            .env("CHAT_THREADS", "2")
            .env("CHAT_RATES", "off")
            .env("CHAT_DRAIN_WINDOW_MS", "500")
            .env("CHAT_STORE", self.database())
            .envs(settings.iter().map(|(key, value)| (*key, value.as_str())))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Server { child, address: self.address })
    }
}

impl Server {
    /// Whether it serves; an error if it has ended by itself.
    pub fn is_ready(&mut self) -> Result<bool, String> {
        if let Some(status) = self.child.try_wait().map_err(|error| error.to_string())? {
            return Err(format!("the server ended by itself with {status}"));
        }
        Ok(asks_and_hears_200(self.address).unwrap_or(false))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(mut self) {
        self.end();
    }

    /// SIGTERM; how it ended, or `None` if it did not within `limit`.
    pub fn stop(mut self, limit: Duration) -> Option<ExitStatus> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)?;
        rustix::process::kill_process(pid, Signal::TERM).ok()?;
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    fn end(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// An address on which nobody else is ever met: not even while the server is away may a client reach another one.
pub fn own_address() -> SocketAddr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, 77, high, low.max(1));
    let port = (14_000..30_000).find(|port| TcpListener::bind((ip, *port)).is_ok());
    SocketAddr::from((ip, port.expect("a port is free on an address of one's own")))
}

fn asks_and_hears_200(address: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: crash\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}
