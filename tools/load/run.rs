//! A run from the first connection to the report: its phases, the marks between them, and what ends it early.
//!
//! Invariant: every loop here ends, by its goal, its time, a signal, ten seconds without progress, or the deadline.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::{Args, Mode};
use crate::client::Client;
use crate::comeback::Comeback;
use crate::dial::Dialer;
use crate::gate::Gate;
use crate::probe;
use crate::publisher::Schedule;
use crate::report::{Report, ServerCost, TcpMemory, Traffic};

const PATIENCE_US: u64 = 10_000_000;
const TURN: Duration = Duration::from_millis(100);
const STALLED_RELEASE_US: u64 = 2_000_000;
const BAR_INTERVAL_US: u64 = 100_000;
/// How long the first members of a room that is joined in two steps wait for the others: longer than any change of the
/// way in which presence is told takes.
const FIRST_SETTLE_US: u64 = 2_500_000;
/// How long all stay away before they come back.
const AWAY_US: u64 = 2_000_000;

/// Why a phase ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Reached,
    Interrupted,
    Deadline,
    NoProgress,
    Failed,
}

/// A moment between two phases.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at_us: u64,
    server_ns: Option<u64>,
    client_ns: u64,
    published: u64,
    deliveries: u64,
}

/// A run under way.
pub struct Run<'a> {
    args: &'a Args,
    client: Client,
    interrupted: Arc<AtomicBool>,
    deadline_us: u64,
    bar: ProgressBar,
    bar_us: u64,
    server: ServerCost,
    tcp: TcpMemory,
    traffic: Traffic,
    gate: Option<Gate>,
    /// Begin and end of what is measured.
    measured: Option<(Mark, Mark)>,
    opened: usize,
    stopped: Option<String>,
    random: u64,
}

impl<'a> Run<'a> {
    /// Prepares a run; `interrupted` is set by a signal.
    pub fn new(args: &'a Args, interrupted: Arc<AtomicBool>, number: u32) -> io::Result<Self> {
        let bar = if io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{msg:10} [{bar:40}] {pos}/{len} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Ok(Self {
            args,
            client: Client::new(args, Dialer::new(args).map_err(io::Error::other)?, number)?,
            interrupted,
            deadline_us: microseconds(args.deadline),
            bar,
            bar_us: 0,
            server: ServerCost::default(),
            tcp: TcpMemory::default(),
            traffic: Traffic::default(),
            gate: if args.gate { Some(Gate::new()?) } else { None },
            measured: None,
            opened: 0,
            stopped: None,
            random: u64::from(number) | 1,
        })
    }

    /// Goes through the phases as far as it can. False when no connection could be opened.
    pub fn go(&mut self) -> io::Result<bool> {
        let reached = self.connect()? && self.post_history()? && self.join()?;
        let any = self.client.census.open > 0;
        if reached {
            self.settle()?;
            if self.args.returns && self.come_back()? {
                self.hold("settle", self.args.settle_ms * 1000)?;
                self.server.rss_bytes_after_return = self.args.pid.and_then(probe::rss_bytes);
            }
            self.wait_at_gate()?;
            let held = match self.args.mode {
                Mode::Idle => self.args.measured_seconds().unwrap_or(0.0),
                Mode::Ws | Mode::Rest | Mode::Post | Mode::Feed => {
                    self.publish()?;
                    self.wait_at_gate()?;
                    self.args.idle_seconds
                }
            };
            self.idle(held)?;
            self.linger()?;
        }
        self.server.rss_bytes_max = self.args.pid.and_then(probe::rss_bytes_max);
        self.client.end();
        self.bar.finish_and_clear();
        Ok(any)
    }

    /// What was found.
    pub fn report(&self) -> Report<'_> {
        let ledger = &self.client.ledger;
        let (begin, end) = self.measured.unzip();
        let span = |field: fn(Mark) -> u64| match (begin, end) {
            (Some(begin), Some(end)) => field(end).saturating_sub(field(begin)),
            _ => 0,
        };
        let (published, deliveries) = (span(|m| m.published), span(|m| m.deliveries));
        let seconds = span(|m| m.at_us) as f64 / 1e6;
        let client_us = span(|m| m.client_ns) as f64 / 1e3;
        Report {
            args: self.args,
            ledger,
            census: self.client.census,
            opened: self.opened,
            published,
            deliveries,
            seconds,
            corrected_us: self.corrected(published, seconds),
            server: self.server,
            tcp: self.tcp,
            traffic: self.traffic,
            all_deliveries: ledger.deliveries,
            client_cpu_us_per_delivery: (deliveries > 0).then(|| client_us / deliveries as f64),
            client_cpu_us_per_published: (published > 0).then(|| client_us / published as f64),
            missing: ledger.missing(self.client.sent()),
            stopped: self.stopped.clone(),
            interrupted: self.interrupted.load(Ordering::Relaxed),
        }
    }

    /// In an open loop latency counts from the schedule. In a closed one a slow answer keeps messages from being sent; what
    /// they would have seen is added at the mean interval at which a full window is sent.
    fn corrected(&self, published: u64, seconds: f64) -> Histogram<u64> {
        let ledger = &self.client.ledger;
        if self.args.rate.is_some() || published == 0 {
            return ledger.scheduled_us.clone();
        }
        let windows = self.args.publishers() as f64 * f64::from(self.args.window);
        let interval_us = (seconds * 1e6 * windows / published as f64).max(1.0);
        ledger.latency_us.clone_correct(interval_us as u64)
    }

    fn connect(&mut self) -> io::Result<bool> {
        self.server.rss_bytes_before = self.args.pid.and_then(probe::rss_bytes);
        self.tcp.bytes_before = probe::tcp_bytes().filter(|_| self.args.stall > 0);
        let begin = self.mark();
        let sockets = self.args.sockets();
        let end = self.open(0, sockets)?;
        self.opened = self.client.census.open;
        let cpu_us = cpu_us(begin, self.mark());
        self.server.connect_cpu_us_per_connection = cpu_us.map(|us| us / self.opened.max(1) as f64);
        if !self.passed("connect", end) {
            return Ok(false);
        }
        // What posts is opened apart: it is no member.
        let end = self.open(sockets, self.client.size())?;
        Ok(self.passed("connect", end))
    }

    /// Opens the connections from `next` up to `all`, all before `next` being open.
    fn open(&mut self, mut next: usize, all: usize) -> io::Result<End> {
        let opening = self.args.opening;
        self.phase("connect", all as u64);
        self.drive(None, true, |client| {
            while next < all && client.census.opening < opening && client.census.failed == 0 {
                client.open(next);
                next += 1;
            }
            client.census.open as u64
        })
    }

    /// Posts what was said before anybody joins, and notes how much of that the members know.
    fn post_history(&mut self) -> io::Result<bool> {
        let Args { history, recover, .. } = *self.args;
        if history == 0 {
            return Ok(true);
        }
        self.client.unwatch(true, 0);
        self.client.limit(history);
        self.phase("history", u64::from(history) * self.args.publishers() as u64);
        self.client.publish(Some(self.args.window));
        let end = self.drive(None, true, |client| {
            let sent = client.sent().map(u64::from).sum();
            if client.is_answered() { sent } else { 0 }
        })?;
        self.client.publish(None);
        self.client.limit(u32::MAX);
        self.client.unwatch(false, history - recover);
        self.client.comeback = Comeback::new(self.args)?;
        Ok(self.passed("history", end))
    }

    /// All join; where presence is checked, until all have been told of all others.
    fn join(&mut self) -> io::Result<bool> {
        let begin = self.mark();
        let first = self.args.join_first;
        if first > 0 {
            let end = self.join_members(0, first, None)?;
            if !self.passed("join", end) {
                return Ok(false);
            }
            self.hold("join", FIRST_SETTLE_US)?;
        }
        let sockets = self.args.sockets();
        let received = |client: &Client| (0..sockets).map(|index| client.received(index)).collect::<Vec<_>>();
        let (before, before_us) = (received(&self.client), self.client.clock_us());
        let end = self.join_members(first, sockets, self.args.join_rate)?;
        let end = if end == End::Reached && self.args.recover > 0 { self.drain()? } else { end };
        self.server.recovered = self.client.ledger.deliveries;
        self.server.join_cpu_us_total = cpu_us(begin, self.mark());
        let seconds = (self.client.clock_us() - before_us).max(1) as f64 / 1e6;
        let grown = received(&self.client).into_iter().zip(before).map(|(after, before)| (after - before) as f64);
        let grown: Vec<f64> = grown.collect();
        let most = grown[..first].iter().copied().fold(0.0, f64::max);
        self.traffic = Traffic {
            bytes_per_member: grown.iter().fold(0.0, |sum, bytes| sum + bytes) / sockets.max(1) as f64,
            bytes_per_s_max: (first > 0).then_some(most / seconds),
            join_seconds: seconds,
        };
        self.client.read_stalled(false);
        Ok(self.passed("join", end))
    }

    /// Those from `next` up to `all` join, all before `next` having joined; at a rate, or as many at once as is allowed.
    fn join_members(&mut self, mut next: usize, all: usize, rate: Option<f64>) -> io::Result<End> {
        let joining = self.args.joining;
        let is_last = all == self.args.sockets();
        let mut schedule = rate.map(|rate| Schedule::new(rate, self.client.clock_us()));
        self.phase("join", all as u64);
        self.drive(None, true, |client| {
            while next < all && client.census.joining < joining {
                if let Some(schedule) = &mut schedule {
                    if schedule.due_us() > client.clock_us() {
                        break;
                    }
                    schedule.advance();
                }
                client.join(next);
                next += 1;
            }
            match &client.presence {
                Some(presence) if is_last => presence.complete() as u64,
                _ => client.census.joined as u64,
            }
        })
    }

    /// All leave, and when the server has had time to notice, all come back.
    fn come_back(&mut self) -> io::Result<bool> {
        self.client.part();
        self.hold("away", AWAY_US)?;
        let sockets = self.args.sockets();
        let end = self.open(0, sockets)?;
        if !self.passed("return", end) {
            return Ok(false);
        }
        let end = self.join_members(0, sockets, None)?;
        Ok(self.passed("return", end))
    }

    /// Waits until another program says that it goes on, if one is to.
    fn wait_at_gate(&mut self) -> io::Result<()> {
        let Some(mut gate) = self.gate.take() else {
            return Ok(());
        };
        self.phase("gate", 1);
        let end = self.drive(None, false, |_| u64::from(gate.is_open()))?;
        gate.pass();
        self.gate = Some(gate);
        self.passed("gate", end);
        Ok(())
    }

    fn settle(&mut self) -> io::Result<()> {
        self.hold("settle", self.args.settle_ms * 1000)?;
        self.server.rss_bytes_after = self.args.pid.and_then(probe::rss_bytes);
        Ok(())
    }

    /// Warm-up, the measured time, and the wait for what is still under way.
    fn publish(&mut self) -> io::Result<()> {
        let now_us = self.client.clock_us();
        let schedule = self.args.rate.map(|rate| Schedule::new(rate, now_us));
        let mut flow = Flow { schedule, churn: Schedule::new(self.args.churn.max(1e-9), now_us) };
        self.client.progress_us = now_us;
        if flow.schedule.is_none() {
            self.client.publish(Some(self.args.window));
        }
        let warm = now_us + self.args.warmup_ms * 1000;
        self.phase("warm-up", self.args.warmup_ms);
        let mut end = self.flow(&mut flow, Some(warm))?;
        let begin = self.mark();
        self.client.ledger.measure_from(begin.at_us);
        if let Some(messages) = self.args.messages {
            self.client.limit(messages);
        }
        if end == End::Reached {
            let seconds = self.args.measured_seconds();
            let until = seconds.map(|s| begin.at_us + microseconds(s));
            let messages = self.args.messages.unwrap_or(0) as u64 * self.args.publishers() as u64;
            self.phase("publish", seconds.map_or(messages, |s| microseconds(s) / 1000));
            end = self.flow(&mut flow, until)?;
        }
        self.client.publish(None);
        let end = if matches!(end, End::Reached | End::Interrupted) { self.drain()? } else { end };
        self.passed("publish", end);
        let mut mark = self.mark();
        // Waiting in vain is not part of what is measured.
        mark.at_us = self.client.progress_us.max(begin.at_us);
        self.measured = Some((begin, mark));
        self.server.rss_bytes_published = self.args.pid.and_then(probe::rss_bytes);
        let cpu_us = cpu_us(begin, mark);
        let per = |count: u64| cpu_us.filter(|_| count > 0).map(|us| us / count as f64);
        self.server.cpu_us_per_delivery = per(mark.deliveries - begin.deliveries);
        self.server.cpu_us_per_published = per(mark.published - begin.published);
        Ok(())
    }

    fn idle(&mut self, seconds: f64) -> io::Result<()> {
        if seconds == 0.0 {
            return Ok(());
        }
        let (begin, pings) = (self.mark(), self.client.pings);
        self.hold("idle", microseconds(seconds))?;
        let mark = self.mark();
        self.server.rss_bytes_idle = self.args.pid.and_then(probe::rss_bytes);
        self.server.idle_pings = Some(self.client.pings - pings);
        let wall_us = (mark.at_us - begin.at_us).max(1) as f64;
        self.server.idle_cpu_percent = cpu_us(begin, mark).map(|us| us * 100.0 / wall_us);
        Ok(())
    }

    /// The last wait; then stalled members read what was left for them, and so see whether they were closed.
    fn linger(&mut self) -> io::Result<()> {
        self.hold("linger", self.args.linger_ms * 1000)?;
        if self.args.stall > 0 {
            self.client.read_stalled(true);
            self.hold("release", STALLED_RELEASE_US)?;
        }
        Ok(())
    }

    /// Publishes and churns until a time, or until everybody has sent what it may.
    fn flow(&mut self, flow: &mut Flow, until_us: Option<u64>) -> io::Result<End> {
        let begin = self.mark();
        loop {
            let now_us = self.client.clock_us();
            if let Some(end) = self.ended(until_us, true, now_us) {
                return Ok(end);
            }
            let mut next_us = until_us.unwrap_or(u64::MAX);
            let more = match &mut flow.schedule {
                Some(schedule) => {
                    let more = self.client.publish_due(schedule);
                    next_us = next_us.min(schedule.due_us());
                    more
                }
                None => !self.client.is_exhausted(),
            };
            if !more {
                return Ok(End::Reached);
            }
            if self.args.churn > 0.0 {
                while flow.churn.due_us() <= now_us {
                    self.churn();
                    flow.churn.advance();
                }
                next_us = next_us.min(flow.churn.due_us());
            }
            // The poll's clock ticks in milliseconds; what is due sooner is waited for awake.
            let wait_us = next_us.saturating_sub(self.client.clock_us());
            let wait = match (self.args.awake, self.args.drowsy) {
                (true, _) => Duration::ZERO,
                (_, true) => Duration::from_micros(wait_us),
                (_, false) => Duration::from_millis(wait_us / 1000),
            };
            let wait = wait.min(TURN);
            self.client.turn(wait)?;
            if now_us >= self.bar_us {
                let count = match until_us {
                    Some(_) => (now_us - begin.at_us) / 1000,
                    None => self.client.sent().map(u64::from).sum::<u64>() - begin.published,
                };
                self.show(now_us, count);
            }
        }
    }

    /// Waits until all that was sent has arrived.
    fn drain(&mut self) -> io::Result<End> {
        self.phase("drain", 0);
        // A signal has ended the publishing; what is under way is still waited for.
        let began_us = self.client.clock_us();
        self.client.progress_us = self.client.progress_us.max(began_us);
        loop {
            if self.client.is_settled() {
                return Ok(End::Reached);
            }
            let now_us = self.client.clock_us();
            match self.ended(None, true, now_us) {
                None | Some(End::Interrupted) => {}
                Some(end) => return Ok(end),
            }
            self.client.turn(TURN)?;
        }
    }

    fn churn(&mut self) {
        // Xorshift: any sequence that visits all churners will do.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let number = (self.random % self.args.churners as u64) as usize;
        let polite = self.random >> 40 & 1 == 0;
        for step in 0..self.args.churners {
            let index = self.args.connections + (number + step) % self.args.churners;
            if self.client.churn(index, polite) {
                return;
            }
        }
    }

    fn hold(&mut self, name: &'static str, duration_us: u64) -> io::Result<()> {
        let now_us = self.client.clock_us();
        self.phase(name, duration_us / 1000);
        let end = self.drive(Some(now_us + duration_us), false, |client| (client.clock_us() - now_us) / 1000)?;
        self.passed(name, end);
        Ok(())
    }

    /// Turns until the step's count reaches the phase's length, or until a time.
    fn drive(
        &mut self,
        until_us: Option<u64>,
        impatient: bool,
        mut step: impl FnMut(&mut Client) -> u64,
    ) -> io::Result<End> {
        self.client.progress_us = self.client.clock_us();
        let goal = self.bar.length().unwrap_or(0);
        loop {
            let count = step(&mut self.client);
            let now_us = self.client.clock_us();
            if until_us.is_none() && count >= goal {
                return Ok(End::Reached);
            }
            if impatient && self.client.census.failed > 0 {
                return Ok(End::Failed);
            }
            if let Some(end) = self.ended(until_us, impatient, now_us) {
                return Ok(end);
            }
            let left = until_us.map(|until| Duration::from_micros(until.saturating_sub(now_us)));
            self.client.turn(left.map_or(TURN, |left| left.min(TURN)))?;
            self.show(now_us, count);
        }
    }

    fn ended(&self, until_us: Option<u64>, impatient: bool, now_us: u64) -> Option<End> {
        if now_us >= self.deadline_us {
            Some(End::Deadline)
        } else if self.interrupted.load(Ordering::Relaxed) {
            Some(End::Interrupted)
        } else if until_us.is_some_and(|until| now_us >= until) {
            Some(End::Reached)
        } else if impatient && now_us.saturating_sub(self.client.progress_us) > PATIENCE_US {
            Some(End::NoProgress)
        } else {
            None
        }
    }

    /// Whether the run goes on after a phase; if not, it is noted why.
    fn passed(&mut self, phase: &str, end: End) -> bool {
        let census = self.client.census;
        let so_far = format!("{} open, {} joined", census.open, census.joined);
        let why = match end {
            End::Reached => return true,
            // Cutting a wait short takes nothing from what was found.
            End::Interrupted if !matches!(phase, "connect" | "join" | "return") => return true,
            End::Interrupted => "interrupted",
            End::Deadline => "the deadline passed",
            End::NoProgress => "no progress for 10 s",
            End::Failed => "a connection failed",
        };
        let stopped = format!("{phase}: {why} ({so_far})");
        self.stopped.get_or_insert(stopped);
        false
    }

    fn mark(&self) -> Mark {
        Mark {
            at_us: self.client.clock_us(),
            server_ns: self.args.pid.and_then(probe::cpu_ns),
            client_ns: probe::cpu_ns(std::process::id()).unwrap_or(0),
            published: self.client.sent().map(u64::from).sum(),
            deliveries: self.client.ledger.deliveries,
        }
    }

    fn phase(&mut self, name: &'static str, length: u64) {
        if self.args.announce {
            eprintln!("phase {name}");
        }
        self.bar.reset();
        self.bar.set_message(name);
        self.bar.set_length(length);
    }

    fn show(&mut self, now_us: u64, count: u64) {
        if now_us >= self.bar_us {
            self.bar_us = now_us + BAR_INTERVAL_US;
            self.bar.set_position(count);
            if self.args.stall > 0 {
                self.tcp.bytes_max = self.tcp.bytes_max.max(probe::tcp_bytes());
            }
        }
    }
}

/// What happens by the clock while messages flow.
struct Flow {
    schedule: Option<Schedule>,
    churn: Schedule,
}

fn cpu_us(begin: Mark, end: Mark) -> Option<f64> {
    // A thread that ended in between takes its time along.
    let ns = end.server_ns?.saturating_sub(begin.server_ns?);
    Some(ns as f64 / 1e3)
}

fn microseconds(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}
