//! One run: a fresh server, the load generator against it, and the figures that this gives.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{Process, bound_command};
use crate::programs::Programs;
use crate::scenario::{Mode, Scenario, Server};

const SERVER_CPU: u32 = 0;
const LOAD_CPU: &str = "1";
const SECRET: &str = "the secret of the comparison, not of any service";
const API_KEY: &str = "the-api-key-of-the-comparison";
const START_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_SECONDS: f64 = 0.2;
const LOAD_DEADLINE_S: u64 = 120;
const PORT_FIRST: u16 = 20_000;
const PORT_END: u16 = 32_768;
const LOG_TAIL_BYTES: usize = 2_000;

/// What one run measured.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    /// The scenario's metric, in its unit.
    pub(crate) value: f64,
    /// Nothing where nothing was published.
    pub(crate) deliveries_per_s: Option<f64>,
    /// Nothing where nothing was published.
    pub(crate) latency_p99_us: Option<f64>,
}

/// Starts the servers and the load, one run after the other.
pub(crate) struct Runner<'a> {
    programs: &'a Programs,
    seconds: f64,
    port_next: u16,
    port_end: u16,
}

impl<'a> Runner<'a> {
    /// A runner that publishes for three seconds, or for one if it is to be quick.
    pub(crate) fn new(programs: &'a Programs, quick: bool) -> Result<Self, String> {
        let port_end = ephemeral_port_first().min(PORT_END);
        if port_end <= PORT_FIRST {
            return Err(format!("no ports from {PORT_FIRST} up are kept free for servers"));
        }
        // Comparisons that run at the same time begin at different ports.
        let offset = std::process::id() % u32::from(port_end - PORT_FIRST);
        Ok(Self { programs, seconds: if quick { 1.0 } else { 3.0 }, port_next: PORT_FIRST + offset as u16, port_end })
    }

    /// Measures one server in one scenario; an error if it cannot be, or if it delivered wrongly.
    pub(crate) fn run(&mut self, scenario: &Scenario, server: Server, round: usize) -> Result<Figures, String> {
        let port = self.free_port()?;
        let stem = format!("{}-{}-{}", scenario.name, server.name(), round + 1);
        let log = |suffix: &str| self.programs.logs.join(format!("{stem}.{suffix}"));
        let mut process = Process::start(
            server.name(),
            &mut self.server_command(server, port),
            &log("server.out"),
            &log("server.err"),
        )?;
        let result = wait_until_listening(&mut process, port)
            .and_then(|()| self.load(scenario, &process, port, &log("load.json"), &log("load.err")))
            .and_then(|figures| process.check_runs().map(|()| figures));
        result.map_err(|error| {
            let (server, load) = (tail(log("server.err")), tail(log("load.err")));
            format!("{error}\n  load: {load}\n  server: {server}")
        })
    }

    fn server_command(&self, server: Server, port: u16) -> Command {
        let line = self.programs.command_line(server);
        let mut command = bound_command(&line[0], Some(SERVER_CPU));
        command.args(&line[1..]);
        for (key, _) in std::env::vars_os() {
            if key.to_str().is_some_and(|key| key.starts_with("CHAT_")) {
                command.env_remove(key);
            }
        }
        command
            // Not the checkout: an `.env` there would be read.
            .current_dir(&self.programs.logs)
            .env("JWT_SECRET", SECRET)
            .env("CHAT_API_KEY", API_KEY)
            .env("PORT", port.to_string())
            .env("WS_PORT", port.to_string())
            .env("NODE_ENV", "production");
        if server == Server::Ours {
            command.env("CHAT_LISTEN", "127.0.0.1").env("CHAT_THREADS", "1").env("CHAT_RATES", "off");
        }
        command
    }

    fn load(
        &self,
        scenario: &Scenario,
        server: &Process,
        port: u16,
        stdout: &Path,
        stderr: &Path,
    ) -> Result<Figures, String> {
        let seconds = match scenario.mode {
            // What is measured is over when nothing but idling is left.
            Mode::Idle => IDLE_SECONDS,
            Mode::WebSocket | Mode::Rest => self.seconds,
        };
        let mut command = bound_command(self.programs.load.as_os_str(), None);
        command
            .args(["--address", &format!("127.0.0.1:{port}")])
            .args(["--secret", SECRET, "--api-key", API_KEY])
            .args(["--connections", &scenario.connections.to_string()])
            .args(["--rooms", &scenario.rooms.to_string()])
            .args(["--mode", scenario.mode.name()])
            .args(["--window", &scenario.window.to_string()])
            .args(["--seconds", &seconds.to_string()])
            .args(["--opening", "64", "--sources", "4"])
            .args(["--pid", &server.id().to_string()])
            .args(["--pin", LOAD_CPU, "--json", "--settle-ms", "500"])
            .args(["--deadline", &LOAD_DEADLINE_S.to_string()])
            .current_dir(&self.programs.logs);
        let mut load = Process::start("load", &mut command, stdout, stderr)?;
        let status = load.wait(Duration::from_secs(LOAD_DEADLINE_S + 30))?;
        let text = fs::read_to_string(stdout).map_err(|error| error.to_string())?;
        let outcome: Value =
            serde_json::from_str(text.trim()).map_err(|error| format!("load printed no JSON ({error}), {status}"))?;
        if !status.success() || outcome["ok"] != Value::Bool(true) {
            let (check, stopped) = (&outcome["check"], &outcome["stopped"]);
            return Err(format!("not delivered correctly: {check}, stopped: {stopped}"));
        }
        figures(scenario, &outcome)
    }

    fn free_port(&mut self) -> Result<u16, String> {
        for _ in PORT_FIRST..self.port_end {
            let port = self.port_next;
            self.port_next = port + 1;
            if self.port_next >= self.port_end {
                self.port_next = PORT_FIRST;
            }
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return Ok(port);
            }
        }
        Err("no port is free".into())
    }
}

fn figures(scenario: &Scenario, outcome: &Value) -> Result<Figures, String> {
    let number = |pointer: &str| outcome.pointer(pointer).and_then(Value::as_f64);
    let published = |pointer: &str| (scenario.mode != Mode::Idle).then(|| number(pointer)).flatten();
    let pointer = scenario.metric.pointer();
    Ok(Figures {
        value: number(pointer).ok_or(format!("load does not say {pointer}"))?,
        deliveries_per_s: published("/deliveries_per_s"),
        latency_p99_us: published("/latency_us/p99"),
    })
}

fn wait_until_listening(process: &mut Process, port: u16) -> Result<(), String> {
    let deadline = Instant::now() + START_TIMEOUT;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        process.check_runs()?;
        if Instant::now() >= deadline {
            return Err(format!("nothing listens on port {port} after {START_TIMEOUT:?}"));
        }
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The first port that the kernel gives to clients: a server's must lie below, or a connection of
/// the load may hold it.
fn ephemeral_port_first() -> u16 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = range.split_whitespace().next();
    first.and_then(|port| port.parse().ok()).unwrap_or(PORT_END)
}

/// The end of a log, for an error message.
fn tail(path: PathBuf) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let start = bytes.len().saturating_sub(LOG_TAIL_BYTES);
    String::from_utf8_lossy(&bytes[start..]).trim().to_owned()
}
