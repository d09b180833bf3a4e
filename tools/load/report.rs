//! What a run found, as text and as JSON. It measures nothing itself.

use std::fmt::{self, Display};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::args::{Args, Mode};
use crate::ledger::Ledger;
use crate::slot::Census;

/// CPU time and memory of the server, as far as a process id was given and the phase was reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerCost {
    /// From the first connection to the last `connected`.
    pub connect_cpu_us_per_connection: Option<f64>,
    /// From the first join to the last `online_update`.
    pub join_cpu_us_total: Option<f64>,
    /// While publishing.
    pub cpu_us_per_delivery: Option<f64>,
    /// While publishing.
    pub cpu_us_per_published: Option<f64>,
    /// While nothing was published, of one CPU.
    pub idle_cpu_percent: Option<f64>,
    /// Before the first connection.
    pub rss_bytes_before: Option<u64>,
    /// When all had joined.
    pub rss_bytes_after: Option<u64>,
    /// When all had left, come back and joined again.
    pub rss_bytes_after_return: Option<u64>,
    /// When all that was published had arrived.
    pub rss_bytes_published: Option<u64>,
    /// The most there ever was, until the end.
    pub rss_bytes_max: Option<u64>,
    /// When nothing had been published for as long as was asked for.
    pub rss_bytes_idle: Option<u64>,
    /// Messages that the members were sent because they came back.
    pub recovered: u64,
    /// Pings that came while nothing was published.
    pub idle_pings: Option<u64>,
}

/// What the kernel holds for all TCP sockets of the machine, as far as it was read: where members stall.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpMemory {
    /// Before the first connection.
    pub bytes_before: Option<u64>,
    /// The most that was seen while members stalled.
    pub bytes_max: Option<u64>,
}

/// What the members were sent while they joined.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Received by all, divided by how many there are; those who joined first not counted until the others began.
    pub bytes_per_member: f64,
    /// Received by the one of those who joined first that received most, while the others joined.
    pub bytes_per_s_max: Option<f64>,
    /// From the first join to the last answer, or until all had been told everything.
    pub join_seconds: f64,
}

/// Everything a run found.
pub struct Report<'a> {
    /// What was asked for.
    pub args: &'a Args,
    /// The books.
    pub ledger: &'a Ledger,
    /// The connections at the end.
    pub census: Census,
    /// Connections that were open when memory was read, churners included.
    pub opened: usize,
    /// Messages sent while measuring.
    pub published: u64,
    /// Messages received while measuring.
    pub deliveries: u64,
    /// How long was measured.
    pub seconds: f64,
    /// Latencies from the scheduled time, or corrected for what a closed loop omits.
    pub corrected_us: Histogram<u64>,
    /// The server's cost.
    pub server: ServerCost,
    /// The kernel's memory.
    pub tcp: TcpMemory,
    /// What the members were sent while they joined.
    pub traffic: Traffic,
    /// Messages received in all, measured or not.
    pub all_deliveries: u64,
    /// CPU time of the load itself while publishing.
    pub client_cpu_us_per_delivery: Option<f64>,
    /// CPU time of the load itself while publishing.
    pub client_cpu_us_per_published: Option<f64>,
    /// Messages that never came.
    pub missing: u64,
    /// Where the run stopped short, if it did.
    pub stopped: Option<String>,
    /// Whether a signal ended it.
    pub interrupted: bool,
}

impl Report<'_> {
    /// Whether every check held.
    pub fn is_ok(&self) -> bool {
        let l = self.ledger;
        let faults = l.gaps + l.doubles + l.reordered + l.closed + l.failures + self.missing;
        faults == 0 && self.stopped.is_none()
    }

    /// Deliveries per second.
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.deliveries as f64 / self.seconds } else { 0.0 }
    }

    /// Stalled members whose connection ended.
    fn stalled_closed(&self) -> u64 {
        self.ledger.stalled.values().sum()
    }

    /// The report as one JSON object.
    pub fn json(&self) -> Value {
        json!({
            "mode": self.args.mode.name(),
            "connections": self.args.connections,
            "rooms": self.args.rooms,
            "window": self.args.window,
            "rate": self.args.rate,
            "published": self.published,
            "deliveries": self.deliveries,
            "all_deliveries": self.all_deliveries,
            "seconds": rounded(self.seconds),
            "deliveries_per_s": self.rate().round(),
            "latency_us": quantiles(&self.ledger.latency_us),
            "latency_corrected_us": quantiles(&self.corrected_us),
            "answer_us": quantiles(&self.ledger.answer_us),
            "server": self.args.pid.map(|_| self.server_json()),
            "join": {
                "bytes_per_member": rounded(self.traffic.bytes_per_member),
                "bytes_per_s_max": self.traffic.bytes_per_s_max.map(rounded),
                "seconds": rounded(self.traffic.join_seconds),
            },
            "recovered": self.server.recovered,
            "published_per_s": if self.seconds > 0.0 { (self.published as f64 / self.seconds).round() } else { 0.0 },
            "client_cpu_us_per_published": self.client_cpu_us_per_published.map(rounded),
            "client": { "cpu_us_per_delivery": self.client_cpu_us_per_delivery.map(rounded) },
            "check": {
                "gaps": self.ledger.gaps,
                "doubles": self.ledger.doubles,
                "reordered": self.ledger.reordered,
                "missing": self.missing,
                "errors": self.ledger.errors,
                "closed": self.ledger.closed,
            },
            "stall": {
                "members": self.args.stall,
                "closed": self.stalled_closed(),
                "closes": self.ledger.stalled,
                "tcp_bytes_before": self.tcp.bytes_before,
                "tcp_bytes_max": self.tcp.bytes_max,
            },
            "churn": { "connections": self.args.churners, "cycles": self.census.churned },
            "other_messages": self.ledger.others,
            "stopped": self.stopped,
            "interrupted": self.interrupted,
            "ok": self.is_ok(),
        })
    }

    fn server_json(&self) -> Value {
        let s = &self.server;
        json!({
            "connect_cpu_us_per_connection": s.connect_cpu_us_per_connection.map(rounded),
            "join_cpu_us_total": s.join_cpu_us_total.map(rounded),
            "cpu_us_per_delivery": s.cpu_us_per_delivery.map(rounded),
            "cpu_us_per_published": s.cpu_us_per_published.map(rounded),
            "idle_cpu_percent": s.idle_cpu_percent.map(rounded),
            "rss_bytes_before": s.rss_bytes_before,
            "rss_bytes_after": s.rss_bytes_after,
            "rss_bytes_per_connection": self.rss_per_connection(s.rss_bytes_after).map(rounded),
            "rss_bytes_per_connection_after_return": self.rss_per_connection(s.rss_bytes_after_return).map(rounded),
            "rss_bytes_published": s.rss_bytes_published,
            "rss_bytes_idle": s.rss_bytes_idle,
            "rss_bytes_max": s.rss_bytes_max,
            "idle_pings": s.idle_pings,
        })
    }

    fn rss_per_connection(&self, after: Option<u64>) -> Option<f64> {
        let grown = after? as f64 - self.server.rss_bytes_before? as f64;
        (self.opened > 0).then(|| grown / self.opened as f64)
    }

    fn write_flow(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "published {} messages, delivered {} in {:.2} s: {:.0} deliveries/s",
            self.published,
            self.deliveries,
            self.seconds,
            self.rate()
        )?;
        for (name, histogram) in [("latency", &self.ledger.latency_us), ("corrected", &self.corrected_us)] {
            let q = |quantile| histogram.value_at_quantile(quantile);
            let (p50, p90, p99, p999) = (q(0.5), q(0.9), q(0.99), q(0.999));
            let max = histogram.max();
            writeln!(f, "{name:<12} p50 {p50} us, p90 {p90} us, p99 {p99} us, p99.9 {p999} us, max {max} us")?;
        }
        Ok(())
    }

    fn write_server(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.server;
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.2}"));
        let connect = number(s.connect_cpu_us_per_connection);
        let join = number(s.join_cpu_us_total.map(|us| us / self.opened.max(1) as f64));
        writeln!(f, "server CPU   {connect} us per connect, {join} us per join")?;
        let delivery = number(s.cpu_us_per_delivery);
        let published = number(s.cpu_us_per_published);
        let idle = number(s.idle_cpu_percent);
        writeln!(f, "             {delivery} us per delivery, {published} us per message, {idle} % when idle")?;
        let mib = |bytes: Option<u64>| number(bytes.map(|b| b as f64 / (1024.0 * 1024.0)));
        writeln!(
            f,
            "server RSS   {} MiB before, {} MiB after, {} bytes per connection",
            mib(s.rss_bytes_before),
            mib(s.rss_bytes_after),
            number(self.rss_per_connection(s.rss_bytes_after))
        )
    }

    fn write_check(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let l = self.ledger;
        writeln!(
            f,
            "check        {} gaps, {} doubles, {} reordered, {} missing, {} closed",
            l.gaps, l.doubles, l.reordered, self.missing, l.closed
        )?;
        for (code, count) in &l.errors {
            writeln!(f, "             {code}: {count}")?;
        }
        if self.args.stall > 0 {
            let (closed, members) = (self.stalled_closed(), self.args.stall);
            writeln!(f, "stalled      {closed} of {members} closed by the server {:?}", self.ledger.stalled)?;
            if let (Some(before), Some(max)) = (self.tcp.bytes_before, self.tcp.bytes_max) {
                writeln!(f, "             {before} bytes of TCP in the kernel before, {max} at most")?;
            }
        }
        if self.args.churners > 0 {
            writeln!(f, "churn        {} reopened", self.census.churned)?;
        }
        if let Some(stopped) = &self.stopped {
            writeln!(f, "stopped      {stopped}")?;
        }
        if self.interrupted {
            writeln!(f, "interrupted  by a signal")?;
        }
        write!(f, "{}", if self.is_ok() { "ok" } else { "FAILED" })
    }
}

impl Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let a = self.args;
        writeln!(f, "mode {}: {} connections in {} rooms, window {}", a.mode.name(), a.connections, a.rooms, a.window)?;
        if a.mode != Mode::Idle {
            self.write_flow(f)?;
        }
        if a.pid.is_some() {
            self.write_server(f)?;
        }
        if let Some(us) = self.client_cpu_us_per_delivery {
            writeln!(f, "load CPU     {us:.2} us per delivery")?;
        }
        self.write_check(f)
    }
}

/// `null` for a histogram without a value.
fn quantiles(histogram: &Histogram<u64>) -> Value {
    if histogram.is_empty() {
        return Value::Null;
    }
    json!({
        "p50": histogram.value_at_quantile(0.5),
        "p90": histogram.value_at_quantile(0.9),
        "p99": histogram.value_at_quantile(0.99),
        "p999": histogram.value_at_quantile(0.999),
        "max": histogram.max(),
    })
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
