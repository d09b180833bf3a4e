//! The scenarios that take more than one load: everybody into one room, small rooms beside a large one or attackers, system
//! calls.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use crate::hostile;
use crate::process::{Process, bound_command};
use crate::run::{Failure, Measured, Runner, Running, SERVER_CPU, number};
use crate::scenario::{Load, Scenario, Server, Time};

const GATHER: [(&str, u32); 3] = [("gather-2500", 2_500), ("gather-5000", 5_000), ("gather-10000", 10_000)];
const PHASE_TIMEOUT: Duration = Duration::from_secs(300);
const LOAD_TIMEOUT_S: u64 = 120;
const POLL: Duration = Duration::from_millis(20);
/// What strace needs to be attached to all threads, and a server to be idle again.
const ATTACH: Duration = Duration::from_millis(500);

/// The large room beside the small ones: its load ends when it is told to.
const LARGE: Load = Load {
    connections: 10_000,
    rooms: 1,
    mode: "ws",
    window: 1,
    time: Time::Seconds(600.0),
    tls: false,
    extra: &["--room-prefix", "large-", "--rate", "5", "--drowsy", "--announce"],
    extra_ours: &[],
};
/// The small rooms.
const SMALL: Load = Load {
    connections: 5_000,
    rooms: 1_000,
    mode: "ws",
    window: 1,
    time: Time::Publish,
    tls: false,
    extra: &["--room-prefix", "small-", "--rate", "1000", "--drowsy"],
    extra_ours: &[],
};

impl Runner<'_> {
    /// Bytes per member in rooms of three sizes, and what a member of a large room receives while others join.
    pub(crate) fn gather(&mut self, scenario: &Scenario, server: Server, stem: &str) -> Result<Measured, String> {
        let mut figures = Vec::new();
        for (name, connections) in GATHER {
            let mut running = self.start(server, &format!("{stem}-{connections}"))?;
            let extra = &["--joining", "10000", "--presence"];
            let outcome = self.load(&mut running, &gathering(connections, extra))?;
            figures.push((name, number(&outcome, "/join/bytes_per_member")?));
        }
        let (first, last) = (figures[0].1, figures[GATHER.len() - 1].1);
        figures.push(("gather-growth", last / first));
        let mut running = self.start(server, &format!("{stem}-rate"))?;
        let extra = &["--joining", "10000", "--presence", "--join-first", "1000", "--join-rate", "1800"];
        let outcome = self.load(&mut running, &gathering(10_000, extra))?;
        for figure in scenario.figures.iter().filter(|figure| !figure.pointer.is_empty()) {
            figures.push((figure.name, number(&outcome, figure.pointer)?));
        }
        Ok(Measured { figures, ..Measured::default() })
    }

    /// The small rooms' latency alone, and beside the large room, each on a fresh server.
    pub(crate) fn fair(&mut self, server: Server, stem: &str) -> Result<Measured, String> {
        let small = Load { time: Time::Seconds(self.seconds() * 3.0), ..SMALL };
        let mut running = self.start(server, &format!("{stem}-alone"))?;
        let alone = number(&self.load(&mut running, &small)?, "/latency_us/p99")?;
        drop(running);
        let mut running = self.start(server, &format!("{stem}-beside"))?;
        let mut command = when_idle(self.load_command(&running, &LARGE));
        let mut large = running.start_load(&mut command, "large")?;
        wait_for_phase(&running, &mut large, "large", "publish", 1)?;
        let beside = number(&self.load(&mut running, &small)?, "/latency_us/p99")?;
        // A signal ends the publishing; what is under way is still waited for and checked.
        large.interrupt();
        let outcome = running.finish(&mut large, "large", LOAD_TIMEOUT_S)?;
        number(&outcome, "/published")?;
        let figures = vec![("fair-alone", alone), ("fair-beside", beside), ("fair", beside / alone.max(1.0))];
        Ok(Measured { figures, ..Measured::default() })
    }

    /// The small rooms' latency alone, and beside attackers, each on a fresh server that limits rates.
    pub(crate) fn hostile(&mut self, server: Server, stem: &str) -> Result<Measured, String> {
        let small = Load { time: Time::Seconds(self.seconds() * 3.0), ..SMALL };
        let run = |runner: &mut Self, stem: String, is_attacked: bool| {
            let env = |command: &mut Command| _ = command.env("CHAT_RATES", "on").env("CHAT_HANDSHAKE_MS", "2000");
            let mut running = runner.start_as(server, &stem, Some(SERVER_CPU), env)?;
            let (port, ended) = (running.port, AtomicBool::new(!is_attacked));
            thread::scope(|scope| {
                let attack = scope.spawn(|| hostile::attack(port, &ended));
                let outcome = runner.load(&mut running, &small);
                ended.store(true, Ordering::Relaxed);
                let blows = attack.join().map_err(|_| "an attacker panicked".to_owned())?;
                eprintln!("compare: {stem}: {blows} blows");
                number(&outcome?, "/latency_us/p99")
            })
        };
        let alone = run(self, format!("{stem}-alone"), false)?;
        let beside = run(self, format!("{stem}-beside"), true)?;
        let figures = vec![("hostile-alone", alone), ("hostile-beside", beside), ("hostile", beside / alone.max(1.0))];
        Ok(Measured { figures, ..Measured::default() })
    }

    /// System calls per delivery, and calls of `epoll_ctl`, while messages flow.
    pub(crate) fn system_calls(&mut self, server: Server, stem: &str) -> Result<Measured, Failure> {
        install_strace()?;
        let mut figures = Vec::new();
        let mut registrations = 0.0;
        for (name, window) in [("calls-F1", 1), ("calls-F16", 16)] {
            let load = Load {
                connections: 1_000,
                rooms: 1,
                mode: "ws",
                window,
                time: Time::Publish,
                tls: false,
                extra: &["--gate", "--announce", "--warmup-ms", "0"],
                extra_ours: &[],
            };
            let mut running = self.start(server, &format!("{stem}-{window}"))?;
            let (calls, registered, deliveries) = self.count_calls(&mut running, &load)?;
            figures.push((name, calls / deliveries));
            registrations += registered;
        }
        figures.push(("epoll_ctl", registrations));
        Ok(Measured { figures, ..Measured::default() })
    }

    /// All system calls of the server, those of `epoll_ctl`, and the deliveries, from the first message to the last delivery.
    fn count_calls(&self, running: &mut Running, load: &Load) -> Result<(f64, f64, f64), Failure> {
        let mut command = self.load_command(running, load);
        command.stdin(Stdio::piped());
        let mut process = running.start_load(&mut command, "load")?;
        let mut gate = process.take_input().ok_or("load has no standard input".to_owned())?;
        wait_for_phase(running, &mut process, "load", "gate", 1)?;
        let table = running.log("strace.table");
        let mut strace = bound_command("strace".as_ref(), None);
        strace.args(["-c", "-f", "-p", &running.process.id().to_string(), "-o"]).arg(&table);
        let mut strace = Process::start("strace", &mut strace, &running.log("strace.out"), &running.log("strace.err"))?;
        sleep(ATTACH);
        if strace.check_runs().is_err() {
            let why = fs::read_to_string(running.log("strace.err")).unwrap_or_default();
            return Err(Failure::Skipped(format!("strace cannot attach: {}", why.trim())));
        }
        let open = |gate: &mut dyn Write| gate.write_all(b"go\n").map_err(|error| format!("load: {error}"));
        open(&mut gate)?;
        wait_for_phase(running, &mut process, "load", "gate", 2)?;
        strace.interrupt();
        strace.wait(PHASE_TIMEOUT)?;
        open(&mut gate)?;
        let outcome = running.finish(&mut process, "load", LOAD_TIMEOUT_S)?;
        let text = fs::read_to_string(&table).map_err(|error| format!("{}: {error}", table.display()))?;
        let calls = calls_of(&text, "total").ok_or(format!("strace counted nothing: {text:?}"))?;
        Ok((calls, calls_of(&text, "epoll_ctl").unwrap_or(0.0), number(&outcome, "/all_deliveries")?))
    }
}

fn gathering(connections: u32, extra: &'static [&'static str]) -> Load {
    Load {
        connections,
        rooms: 1,
        mode: "idle",
        window: 1,
        time: Time::Seconds(0.2),
        tls: false,
        extra,
        extra_ours: &[],
    }
}

/// The same command, run only when nothing else wants the core.
fn when_idle(command: Command) -> Command {
    let mut idle = Command::new("chrt");
    idle.args(["--idle", "0"]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    if let Some(dir) = command.get_current_dir() {
        idle.current_dir(dir);
    }
    idle
}

/// Waits until a load has announced a phase so many times.
fn wait_for_phase(running: &Running, load: &mut Process, name: &str, phase: &str, times: usize) -> Result<(), String> {
    let deadline = Instant::now() + PHASE_TIMEOUT;
    let line = format!("phase {phase}");
    loop {
        let text = fs::read_to_string(running.log(&format!("{name}.err"))).unwrap_or_default();
        if text.lines().filter(|&said| said == line).count() >= times {
            return Ok(());
        }
        if load.check_runs().is_err() {
            let out = fs::read_to_string(running.log(&format!("{name}.json"))).unwrap_or_default();
            return Err(format!("{name} ended before its phase {phase}: {text}{out}"));
        }
        if Instant::now() >= deadline {
            return Err(format!("{name} does not come to its phase {phase}: {text}"));
        }
        sleep(POLL);
    }
}

/// The column `calls` in strace's table, of one call or of the total.
fn calls_of(table: &str, name: &str) -> Option<f64> {
    let line = table.lines().find(|line| line.split_whitespace().last() == Some(name))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

/// By apt, where it is missing and can be installed.
fn install_strace() -> Result<(), Failure> {
    let is_there = || {
        let dirs = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&dirs).any(|dir| dir.join("strace").is_file())
    };
    if !is_there() && Path::new("/usr/bin/apt-get").is_file() {
        eprintln!("compare: installing strace");
        for args in [&["update", "-qq"][..], &["install", "-y", "-qq", "--no-install-recommends", "strace"][..]] {
            let mut apt = Command::new("apt-get");
            apt.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
            let _ = apt.status();
        }
    }
    if is_there() { Ok(()) } else { Err(Failure::Skipped("there is no strace".to_owned())) }
}
