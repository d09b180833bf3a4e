//! The server under test: the real binary as a process of its own.
//!
//! Owns the process: a free port, the environment, the captured output, and the end of it (killed and reaped when the value is
//! dropped). Knows nothing of what is said over the connections.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

pub use rustix::process::Signal;
use rustix::process::{Resource, Rlimit};

use crate::http_client::Http;

/// The secret that every server of these tests is given.
pub const SECRET: &str = "end-to-end-secret-of-at-least-32-bytes";
/// The API key that every server of these tests is given.
pub const API_KEY: &str = "end-to-end-api-key";
/// How long an event may take before a test fails. Nothing ever waits this long when all is well.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// The path of the binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_sizland-chat");

/// How often a condition that has no event of its own (a process that ends, a port that opens) is looked at.
pub const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A running server, killed and reaped when dropped.
pub struct Server {
    child: Child,
    port: u16,
    stdout: Option<Lines>,
    stderr: Option<Lines>,
}

/// What a command that ran to its end left behind.
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: Vec<String>,
    pub stderr: Vec<String>,
}

impl Server {
    /// A server with four shards, so that two cores cross shards too, and no rate limit.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more environment; a key given here wins over the default.
    pub fn start_with(env: &[(&str, &str)]) -> Self {
        Self::launch(|port| serve(port, env))
    }

    /// The same with a store, which is gone with the process.
    pub fn start_durable() -> Self {
        Self::start_with(&[("CHAT_STORE", "memory")])
    }

    /// Starts whatever command `make` builds for a port, on a port that is free.
    pub fn launch(make: impl Fn(u16) -> Command) -> Self {
        Self::launch_until(make, |server| ready(server.port))
    }

    /// A server that speaks TLS, so that nobody without its certificate can ask whether it is ready.
    pub fn start_secure(env: &[(&str, &str)]) -> Self {
        let listens = |server: &Self| {
            let lines = server.stderr.as_ref().map(Lines::so_far).unwrap_or_default();
            lines.iter().any(|line| line.contains("listening"))
        };
        Self::launch_until(|port| serve(port, env), listens)
    }

    fn launch_until(make: impl Fn(u16) -> Command, is_ready: impl Fn(&Self) -> bool) -> Self {
        raise_file_limit();
        for _ in 0..20 {
            let port = free_port();
            if let Some(server) = Self::try_launch(port, make(port), &is_ready) {
                return server;
            }
        }
        panic!("no free port after 20 attempts");
    }

    /// Starts on exactly this port.
    pub fn start_on(port: u16, env: &[(&str, &str)]) -> Self {
        Self::try_launch(port, serve(port, env), |server| ready(server.port))
            .unwrap_or_else(|| panic!("port {port} is taken"))
    }

    /// `None` when the port was taken between the choice and the start.
    fn try_launch(port: u16, mut command: Command, is_ready: impl Fn(&Self) -> bool) -> Option<Self> {
        let mut child = command.spawn().expect("the binary starts");
        let stdout = child.stdout.take().map(Lines::of);
        let stderr = child.stderr.take().map(Lines::of);
        let mut server = Self { child, port, stdout, stderr };
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = server.child.try_wait().expect("the child can be waited for") {
                let lines = server.stderr.as_ref().map(Lines::to_end).unwrap_or_default();
                if status.code() == Some(2) && lines.iter().any(|line| line.contains(&port.to_string())) {
                    return None;
                }
                panic!("the server ended at start with {status}: {lines:#?}");
            }
            if is_ready(&server) {
                return Some(server);
            }
            assert!(Instant::now() < end, "the server was not ready within {DEADLINE:?}");
            thread::sleep(POLL_INTERVAL);
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The most memory that the process has had resident, in bytes.
    pub fn resident_bytes_max(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// The memory that the process has resident now, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    fn status_bytes(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the process runs");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("Linux tells it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// How many connections to the server are established, as the kernel sees it.
    pub fn established(&self) -> usize {
        self.sockets(|_, state, _| state == "01")
    }

    /// Whether the server's socket to a peer, also if it has closed it, holds what the peer has not taken.
    pub fn has_unsent_to(&self, peer: SocketAddr) -> bool {
        let remote = format!(":{:04X}", peer.port());
        self.sockets(|at, _, queues| at.ends_with(&remote) && !queues.starts_with("00000000:")) > 0
    }

    /// Counts sockets of the server by the remote address, the state and the lengths of the queues.
    fn sockets(&self, is_counted: impl Fn(&str, &str, &str) -> bool) -> usize {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux tells its connections");
        let local = format!(":{:04X}", self.port);
        let columns = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let own = columns.filter(|columns| columns.get(1).is_some_and(|at| at.ends_with(&local)));
        own.filter(|columns| is_counted(columns[2], columns[3], columns[4])).count()
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// A plain connection, with the deadline as read and write timeout.
    pub fn socket(&self) -> TcpStream {
        let stream = TcpStream::connect_timeout(&self.address(), DEADLINE).expect("the server accepts");
        prepare(&stream);
        stream
    }

    /// A fresh HTTP connection.
    pub fn http(&self) -> Http {
        Http::over(self.socket())
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a pid is positive");
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid is not zero");
        rustix::process::kill_process(pid, signal).expect("the signal is delivered");
    }

    /// Waits for the process to end, within `limit`.
    pub fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        wait_child(&mut self.child, limit).unwrap_or_else(|| panic!("the server still runs after {limit:?}"))
    }

    /// SIGTERM, then exit 0 within the deadline.
    pub fn stop_in_order(mut self) {
        self.signal(Signal::TERM);
        let status = self.wait_exit(DEADLINE);
        assert_eq!(status.code(), Some(0), "a stop in order exits with 0, not {status}");
    }

    /// Blocks until a line of standard output satisfies `wanted`.
    pub fn stdout_line(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.stdout.as_ref().expect("stdout is captured").wait(wanted)
    }

    /// What has been printed on standard output so far.
    pub fn stdout_lines(&self) -> Vec<String> {
        self.stdout.as_ref().expect("stdout is captured").so_far()
    }

    /// Blocks until a line of standard error satisfies `wanted`.
    pub fn log_line(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.stderr.as_ref().expect("stderr is captured").wait(wanted)
    }

    /// What has been logged on standard error and standard output so far.
    pub fn log(&self) -> String {
        let mut lines = self.stderr.as_ref().map(Lines::so_far).unwrap_or_default();
        lines.extend(self.stdout.as_ref().map(Lines::so_far).unwrap_or_default());
        lines.join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGKILL also ends a stopped process; an error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- what the server on port {} logged ---\n{}\n---", self.port, self.log());
        }
    }
}

/// `serve` on `port` with the environment of these tests, its output captured.
pub fn serve(port: u16, env: &[(&str, &str)]) -> Command {
    let mut command = bare(&["serve"]);
    with_defaults(&mut command, port, env);
    command
}

/// The environment of these tests on any command.
pub fn with_defaults(command: &mut Command, port: u16, env: &[(&str, &str)]) {
    command
        .env("JWT_SECRET", SECRET)
        .env("CHAT_API_KEY", API_KEY)
        .env("CHAT_LISTEN", "127.0.0.1")
        .env("WS_PORT", port.to_string())
        .env("CHAT_THREADS", "4")
        .env("CHAT_RATES", "off")
        // Who wants one names it; the default would lie in the working directory that all share.
        .env("CHAT_STORE", "none")
        .envs(env.iter().copied());
}

/// The binary with arguments, no environment, and a working directory without a `.env`.
pub fn bare(args: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    isolate(&mut command);
    command.args(args);
    command
}

/// No environment of the caller, no `.env`, captured output.
pub fn isolate(command: &mut Command) {
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .current_dir(empty_directory())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
}

/// Runs a command that must end by itself.
pub fn run(mut command: Command) -> Finished {
    let mut child = command.spawn().expect("the binary starts");
    let stdout = Lines::of(child.stdout.take().expect("stdout is captured"));
    let stderr = Lines::of(child.stderr.take().expect("stderr is captured"));
    let status = wait_child(&mut child, DEADLINE);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let (stdout, stderr) = (stdout.to_end(), stderr.to_end());
    let status = status.unwrap_or_else(|| panic!("did not end within {DEADLINE:?}: {stdout:#?} {stderr:#?}"));
    Finished { code: status.code(), stdout, stderr }
}

/// A port below the range from which the kernel takes ports of outgoing connections: those would collide with it.
pub fn free_port() -> u16 {
    static NEXT: OnceLock<AtomicU16> = OnceLock::new();
    let next = NEXT.get_or_init(|| AtomicU16::new((std::process::id() % 2_000 * 10) as u16));
    for _ in 0..20_000 {
        let port = 11_000 + next.fetch_add(1, Ordering::Relaxed) % 20_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port between 11000 and 31000 is free");
}

/// Polls `attempt` until it gives a value; `what` is named when it does not within the deadline.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        thread::sleep(POLL_INTERVAL);
    }
}

/// Timeouts that only a failing test ever reaches.
pub fn prepare(stream: &TcpStream) {
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout can be set");
    stream.set_write_timeout(Some(DEADLINE)).expect("a timeout can be set");
    stream.set_nodelay(true).expect("no delay can be set");
}

/// Tests run side by side and some open hundreds of connections, more than the soft limit of many systems allows.
fn raise_file_limit() {
    static RAISED: OnceLock<()> = OnceLock::new();
    RAISED.get_or_init(|| {
        let limit = rustix::process::getrlimit(Resource::Nofile);
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        // Where even this is not allowed, the soft limit may still be enough.
        let _ = rustix::process::setrlimit(Resource::Nofile, raised);
    });
}

fn ready(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
        return false;
    };
    prepare(&stream);
    let mut http = Http::over(stream);
    http.try_send(b"GET /readyz HTTP/1.1\r\nHost: test\r\n\r\n").is_ok()
        && http.try_response().is_some_and(|response| response.status == 200)
}

fn wait_child(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("the child can be waited for") {
            return Some(status);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

fn empty_directory() -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("empty");
    std::fs::create_dir_all(&path).expect("the target directory can be written");
    path
}

/// Lines of a pipe, read by a thread so that the process never blocks on it.
#[derive(Clone)]
struct Lines(Arc<(Mutex<Captured>, Condvar)>);

#[derive(Default)]
struct Captured {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let shared = Self(Arc::default());
        let writer = shared.clone();
        thread::spawn(move || {
            let mut reader = BufReader::new(pipe);
            let mut bytes = Vec::new();
            while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
                let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                bytes.clear();
                writer.0.0.lock().expect("no reader panicked").lines.push(line);
                writer.0.1.notify_all();
            }
            writer.0.0.lock().expect("no reader panicked").ended = true;
            writer.0.1.notify_all();
        });
        shared
    }

    fn wait(&self, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + DEADLINE;
        let mut captured = self.0.0.lock().expect("no reader panicked");
        loop {
            if let Some(line) = captured.lines.iter().find(|line| wanted(line)) {
                return line.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero() && !captured.ended, "no such line among {:#?}", captured.lines);
            captured = self.0.1.wait_timeout(captured, left).expect("no reader panicked").0;
        }
    }

    fn so_far(&self) -> Vec<String> {
        self.0.0.lock().expect("no reader panicked").lines.clone()
    }

    /// All lines, once the writing end is closed (or the deadline has passed).
    fn to_end(&self) -> Vec<String> {
        let guard = self.0.0.lock().expect("no reader panicked");
        let waited = self.0.1.wait_timeout_while(guard, DEADLINE, |captured| !captured.ended);
        waited.expect("no reader panicked").0.lines.clone()
    }
}
