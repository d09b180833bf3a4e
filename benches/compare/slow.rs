//! The scenario of the slow readers: a large room in which some stop reading, and what they cost the others and memory.

use std::process::Command;

use crate::run::{Measured, Runner, SERVER_CPU, number};
use crate::scenario::{Load, Server, Time};

const STALLED: u32 = 1_000;
/// The outbox and the kernel's send buffer fill up within some 14 s, and 5 s later the server has given up waiting for those
/// that it has closed.
const SECONDS: f64 = 20.0;
const READING: Load = Load {
    connections: 5_000,
    rooms: 1,
    mode: "rest",
    window: 1,
    time: Time::Seconds(SECONDS),
    tls: false,
    extra: &["--rate", "5", "--payload-bytes", "7500"],
    extra_ours: &[],
};
const STALLING: Load = Load { extra: &["--rate", "5", "--payload-bytes", "7500", "--stall", "1000"], ..READING };
/// No more than the room needs, so that the bound is near, and outboxes that fill up while the server is far from busy; the
/// kernel's send buffers are as they are by default.
const LIMITS: [(&str, &str); 11] = [
    ("CHAT_CONNECTIONS_MAX", "5100"),
    ("CHAT_ROOMS_MAX", "1000"),
    ("CHAT_ROOMS_PER_CONNECTION_MAX", "2"),
    ("CHAT_OUTBOX_SOFT_BYTES", "65536"),
    ("CHAT_OUTBOX_HARD_BYTES", "262144"),
    ("CHAT_SEGMENT_POOL_BYTES", "16777216"),
    ("CHAT_BURST_WINDOW_BYTES", "4194304"),
    ("CHAT_DIRECT_POOL_BYTES", "8388608"),
    ("CHAT_INPUT_POOL_BYTES", "8388608"),
    ("CHAT_IDEMPOTENCY_ENTRIES_MAX", "1000"),
    ("CHAT_REVOCATIONS_MAX", "1000"),
];

/// What `check` says that is held at most, in bytes.
struct Bound {
    process: f64,
    kernel: f64,
}

impl Runner<'_> {
    /// The room's latency while everybody reads, and while some do not, each on a fresh server; and the memory of the latter.
    pub(crate) fn slow(&mut self, server: Server, stem: &str) -> Result<Measured, String> {
        let limits = |command: &mut Command| _ = command.envs(LIMITS);
        let mut running = self.start_as(server, &format!("{stem}-reading"), Some(SERVER_CPU), limits)?;
        let reading = number(&self.load(&mut running, &READING)?, "/latency_us/p99")?;
        drop(running);
        let mut running = self.start_as(server, &format!("{stem}-beside"), Some(SERVER_CPU), limits)?;
        let bound = self.bound(server, running.port)?;
        let outcome = self.load(&mut running, &STALLING)?;
        let closed = number(&outcome, "/stall/closed")?;
        if closed < f64::from(STALLED) {
            return Err(format!("only {closed} of {STALLED} that do not read were closed"));
        }
        let beside = number(&outcome, "/latency_us/p99")?;
        let process = number(&outcome, "/server/rss_bytes_max")?;
        let kernel = number(&outcome, "/stall/tcp_bytes_max")? - number(&outcome, "/stall/tcp_bytes_before")?;
        let figures = vec![
            ("slow-reading", reading),
            ("slow-beside", beside),
            ("slow", beside / reading.max(1.0)),
            ("slow-process", process / bound.process),
            ("slow-kernel", kernel / bound.kernel),
            ("slow-reader", kernel / f64::from(STALLED)),
        ];
        Ok(Measured { figures, ..Measured::default() })
    }

    /// The bound on memory that the server's program prints for the limits.
    fn bound(&self, server: Server, port: u16) -> Result<Bound, String> {
        let serve = self.server_command(server, port, None);
        let mut check = Command::new(&self.programs.command_line(server)[0]);
        check.arg("check").current_dir(&self.programs.logs);
        for (key, value) in serve.get_envs() {
            match value {
                Some(value) => check.env(key, value),
                None => check.env_remove(key),
            };
        }
        let output = check.envs(LIMITS).output().map_err(|error| format!("check: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let named = |name| mebibytes(&text, name).ok_or(format!("check names no bound of the {name}: {text}"));
        Ok(Bound { process: named("process")?, kernel: named("kernel, send buffers")? })
    }
}

/// A line of the bound, in bytes.
fn mebibytes(text: &str, name: &str) -> Option<f64> {
    let amount = text.lines().find_map(|line| line.trim().strip_prefix(name)?.trim().strip_suffix(" MiB"))?;
    Some(amount.parse::<f64>().ok()? * 1024.0 * 1024.0)
}
