//! One run: a fresh server, the load generator against it, and the figures that this gives.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::certificate::{CERTIFICATE, Certificate};
use crate::process::{Process, bound_command};
use crate::programs::Programs;
use crate::scenario::{Kind, Load, Scenario, Server, Time};

pub(crate) const SERVER_CPU: u32 = 0;
const LOAD_CPU: &str = "1";
pub(crate) const SECRET: &str = "the secret of the comparison, not of any service";
const API_KEY: &str = "the-api-key-of-the-comparison";
const START_TIMEOUT: Duration = Duration::from_secs(10);
const OVER_SECONDS: f64 = 0.2;
/// A run that makes no progress ends sooner by itself.
const LOAD_DEADLINE_S: u64 = 600;
const PORT_FIRST: u16 = 20_000;
const PORT_END: u16 = 32_768;
const LOG_TAIL_BYTES: usize = 2_000;

/// What one run measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measured {
    /// The scenario's figures by name, as far as this server has them.
    pub(crate) figures: Vec<(&'static str, f64)>,
    /// Nothing where nothing was published.
    pub(crate) deliveries_per_s: Option<f64>,
    /// Nothing where nothing was published.
    pub(crate) latency_p99_us: Option<f64>,
}

/// Why a run has no figures.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// Something was delivered wrongly, or a program failed.
    Invalid(String),
    /// This machine lacks what is needed.
    Skipped(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Invalid(why)
    }
}

/// Starts the servers and the load, one run after the other.
pub(crate) struct Runner<'a> {
    pub(crate) programs: &'a Programs,
    seconds: f64,
    port_next: u16,
    port_end: u16,
}

/// A server that runs, and where what it and its load print goes.
pub(crate) struct Running {
    pub(crate) process: Process,
    pub(crate) server: Server,
    pub(crate) port: u16,
    logs: PathBuf,
    stem: String,
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

    /// Measures one server in one scenario; a failure if it cannot be, or if it delivered wrongly.
    pub(crate) fn run(&mut self, scenario: &Scenario, server: Server, round: usize) -> Result<Measured, Failure> {
        let stem = format!("{}-{}-{}", scenario.name, server.name(), round + 1);
        match scenario.kind {
            Kind::Load(load) => {
                let mut running = if load.tls { self.start_secure(server, &stem)? } else { self.start(server, &stem)? };
                let outcome = self.load(&mut running, &load)?;
                measured(scenario, server, &outcome).map_err(Failure::from)
            }
            Kind::Gather => self.gather(scenario, server, &stem).map_err(Failure::from),
            Kind::Fair => self.fair(server, &stem).map_err(Failure::from),
            Kind::Hostile => self.hostile(server, &stem).map_err(Failure::from),
            Kind::Slow => self.slow(server, &stem).map_err(Failure::from),
            Kind::SystemCalls => self.system_calls(server, &stem),
            Kind::Store(kind) => self.store(kind, server, &stem).map_err(Failure::from),
        }
    }

    /// How long one publishes in this comparison.
    pub(crate) fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Starts a server on a free port and waits until it listens.
    pub(crate) fn start(&mut self, server: Server, stem: &str) -> Result<Running, String> {
        let stored = (server == Server::OursStored).then(|| self.fresh_store(stem)).transpose()?;
        let command = move |command: &mut Command| {
            if let Some(stored) = stored {
                command.env("CHAT_STORE", stored);
            }
        };
        self.start_as(server, stem, Some(SERVER_CPU), command)
    }

    /// The same with a certificate.
    fn start_secure(&mut self, server: Server, stem: &str) -> Result<Running, String> {
        let Certificate { certificate, key } = Certificate::make(&self.programs.logs)?;
        self.start_as(server, stem, Some(SERVER_CPU), |command| {
            command.env("CHAT_TLS_CERT", certificate).env("CHAT_TLS_KEY", key);
        })
    }

    /// Starts a server, on one core if one is named, whose command is completed by `finish`.
    pub(crate) fn start_as(
        &mut self,
        server: Server,
        stem: &str,
        cpu: Option<u32>,
        finish: impl FnOnce(&mut Command),
    ) -> Result<Running, String> {
        let port = self.free_port()?;
        let logs = self.programs.logs.clone();
        let log = |suffix: &str| logs.join(format!("{stem}.{suffix}"));
        let mut command = self.server_command(server, port, cpu);
        finish(&mut command);
        let mut process = Process::start(server.name(), &mut command, &log("server.out"), &log("server.err"))?;
        wait_until_listening(&mut process, port)
            .map_err(|error| format!("{error}\n  server: {}", tail(log("server.err"))))?;
        Ok(Running { process, server, port, logs, stem: stem.to_owned() })
    }

    /// Runs a load to its end; the outcome if everything was delivered correctly.
    pub(crate) fn load(&self, running: &mut Running, load: &Load) -> Result<Value, String> {
        let mut command = self.load_command(running, load);
        let mut process = running.start_load(&mut command, "load")?;
        running.finish(&mut process, "load", LOAD_DEADLINE_S + 30)
    }

    /// The load generator with all its arguments.
    pub(crate) fn load_command(&self, running: &Running, load: &Load) -> Command {
        let mut command = self.free_load_command(running.port, load);
        command.args(["--pid", &running.process.id().to_string(), "--pin", LOAD_CPU]).args(["--sources", "4"]);
        if load.tls {
            command.arg("--tls").arg(self.programs.logs.join(CERTIFICATE));
        }
        if running.server.threads().is_some() {
            command.args(load.extra_ours);
        }
        command
    }

    /// The load generator on whichever core, against whatever listens on a port.
    pub(crate) fn free_load_command(&self, port: u16, load: &Load) -> Command {
        let seconds = match load.time {
            Time::Over => OVER_SECONDS,
            Time::Publish => self.seconds,
            Time::Seconds(seconds) => seconds,
        };
        let mut command = bound_command(self.programs.load.as_os_str(), None);
        command
            .args(["--address", &format!("127.0.0.1:{port}")])
            .args(["--secret", SECRET, "--api-key", API_KEY])
            .args(["--connections", &load.connections.to_string()])
            .args(["--rooms", &load.rooms.to_string()])
            .args(["--mode", load.mode])
            .args(["--window", &load.window.to_string()])
            .args(["--seconds", &seconds.to_string()])
            .args(["--opening", "64", "--json"])
            .args(["--deadline", &LOAD_DEADLINE_S.to_string()])
            .args(load.extra)
            .current_dir(&self.programs.logs);
        command
    }

    /// The server with all its settings.
    pub(crate) fn server_command(&self, server: Server, port: u16, cpu: Option<u32>) -> Command {
        let line = self.programs.command_line(server);
        let mut command = bound_command(&line[0], cpu);
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
        if let Some(threads) = server.threads() {
            command.env("CHAT_LISTEN", "127.0.0.1").env("CHAT_THREADS", threads.to_string()).env("CHAT_RATES", "off");
            // Nothing that the others keep either.
            command.env("CHAT_STORE", "none");
        }
        command
    }

    pub(crate) fn free_port(&mut self) -> Result<u16, String> {
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

impl Running {
    /// A program that is no server but answers like one.
    pub(crate) fn besides(process: Process, port: u16, logs: PathBuf, stem: &str) -> Self {
        Self { process, server: Server::Floor, port, logs, stem: stem.to_owned() }
    }

    /// Waits until it can be connected to.
    pub(crate) fn wait_until_listening(&mut self) -> Result<(), String> {
        wait_until_listening(&mut self.process, self.port)
    }

    /// The JSON that a program has printed.
    pub(crate) fn printed(&self, name: &str) -> Result<Value, String> {
        let text = fs::read_to_string(self.log(&format!("{name}.json"))).map_err(|error| error.to_string())?;
        serde_json::from_str(text.trim()).map_err(|error| format!("{name} printed no JSON ({error}): {text:?}"))
    }

    /// A file of this run.
    pub(crate) fn log(&self, suffix: &str) -> PathBuf {
        self.logs.join(format!("{}.{suffix}", self.stem))
    }

    /// Starts a load, whose output goes to files of this name.
    pub(crate) fn start_load(&self, command: &mut Command, name: &str) -> Result<Process, String> {
        let (out, err) = (self.log(&format!("{name}.json")), self.log(&format!("{name}.err")));
        Process::start(name, command, &out, &err)
    }

    /// Waits for a load to end; its outcome if everything was delivered correctly and the server still runs.
    pub(crate) fn finish(&mut self, load: &mut Process, name: &str, timeout_s: u64) -> Result<Value, String> {
        let outcome = self.outcome(load, name, timeout_s);
        let outcome = outcome.and_then(|outcome| self.process.check_runs().map(|()| outcome));
        outcome.map_err(|error| {
            let (server, load) = (tail(self.log("server.err")), tail(self.log(&format!("{name}.err"))));
            format!("{error}\n  {name}: {load}\n  server: {server}")
        })
    }

    fn outcome(&self, load: &mut Process, name: &str, timeout_s: u64) -> Result<Value, String> {
        let status = load.wait(Duration::from_secs(timeout_s))?;
        let text = fs::read_to_string(self.log(&format!("{name}.json"))).map_err(|error| error.to_string())?;
        let outcome: Value =
            serde_json::from_str(text.trim()).map_err(|error| format!("load printed no JSON ({error}), {status}"))?;
        if !status.success() || outcome["ok"] != Value::Bool(true) {
            let (check, stopped) = (&outcome["check"], &outcome["stopped"]);
            return Err(format!("not delivered correctly: {check}, stopped: {stopped}"));
        }
        Ok(outcome)
    }
}

/// A number in the load generator's outcome.
pub(crate) fn number(outcome: &Value, pointer: &str) -> Result<f64, String> {
    let number = outcome.pointer(pointer).and_then(Value::as_f64);
    number.ok_or_else(|| format!("load does not say {pointer}"))
}

fn measured(scenario: &Scenario, server: Server, outcome: &Value) -> Result<Measured, String> {
    let mut figures = Vec::new();
    for figure in scenario.figures {
        match number(outcome, figure.pointer) {
            Ok(value) => figures.push((figure.name, value * figure.scale)),
            // What only this server is asked for, the others do not have.
            Err(error) if server.threads().is_some() => return Err(error),
            Err(_) => {}
        }
    }
    if scenario.name == "idle" {
        let (pings, connections) = (number(outcome, "/server/idle_pings")?, number(outcome, "/connections")?);
        if pings < connections {
            return Err(format!("only {pings} pings came to {connections} connections"));
        }
    }
    let published = outcome["published"].as_u64().is_some_and(|published| published > 0);
    let flow = |pointer: &str| number(outcome, pointer).ok().filter(|_| published);
    Ok(Measured {
        figures,
        deliveries_per_s: flow("/deliveries_per_s").filter(|&per_s| per_s > 0.0),
        latency_p99_us: flow("/latency_us/p99"),
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
