//! Collects the runs and writes the tables.
//!
//! Invariant: a server with an invalid run in a scenario has no figure in that scenario.

use std::fmt::Write;

use crate::run::Figures;
use crate::scenario::{Mode, Scenario, Server};

/// All runs so far.
pub(crate) struct Report {
    servers: Vec<Server>,
    runs: Vec<Run>,
}

struct Run {
    scenario: &'static Scenario,
    server: Server,
    round: usize,
    outcome: Result<Figures, String>,
}

impl Report {
    /// An empty report; the first of the servers is compared with the others.
    pub(crate) fn new(servers: Vec<Server>) -> Self {
        Self { servers, runs: Vec::new() }
    }

    pub(crate) fn add(
        &mut self,
        scenario: &'static Scenario,
        server: Server,
        round: usize,
        outcome: Result<Figures, String>,
    ) {
        self.runs.push(Run { scenario, server, round, outcome });
    }

    /// Whether every run was correct.
    pub(crate) fn is_valid(&self) -> bool {
        self.runs.iter().all(|run| run.outcome.is_ok())
    }

    /// A table per scenario, then one of all medians, then what went wrong.
    pub(crate) fn text(&self) -> String {
        let mut text = String::from("Servers\n");
        for server in &self.servers {
            let _ = writeln!(text, "  {:<6} {}", server.name(), server.what());
        }
        let scenarios = self.scenarios();
        for scenario in &scenarios {
            self.write_scenario(&mut text, scenario);
        }
        self.write_summary(&mut text, &scenarios);
        self.write_invalid(&mut text);
        text
    }

    fn write_scenario(&self, text: &mut String, scenario: &Scenario) {
        let base = self.base();
        let publishes = scenario.mode != Mode::Idle;
        let _ = writeln!(
            text,
            "\n{}: {}\n  {:<6} {:>6} {:>13} {:>19} {:>12} {:>15} {:>12} {:>9}",
            scenario.name,
            scenario.what,
            "server",
            "rounds",
            scenario.metric.unit(),
            "min .. max",
            format!("{}/server", base.name()),
            "min .. max",
            if publishes { "deliveries/s" } else { "" },
            if publishes { "p99 ms" } else { "" },
        );
        for &server in &self.servers {
            let Some(spread) = self.spread(scenario, server, |figures| Some(figures.value)) else {
                let _ = writeln!(text, "  {:<6} {:>20}", server.name(), "invalid");
                continue;
            };
            let (ratio, ratio_range) = match self.ratio(scenario, server) {
                Some(ratio) => (format!("{:.2}", ratio.median), format!("{:.2} .. {:.2}", ratio.min, ratio.max)),
                None => (String::new(), String::new()),
            };
            let per_s = self.spread(scenario, server, |figures| figures.deliveries_per_s);
            let p99 = self.spread(scenario, server, |figures| figures.latency_p99_us);
            let line = format!(
                "  {:<6} {:>6} {:>13} {:>19} {ratio:>12} {ratio_range:>15} {:>12} {:>9}",
                server.name(),
                spread.count,
                amount(spread.median),
                format!("{} .. {}", amount(spread.min), amount(spread.max)),
                per_s.map_or(String::new(), |per_s| amount(per_s.median)),
                p99.map_or(String::new(), |p99| format!("{:.2}", p99.median / 1e3)),
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
        if self.servers.iter().any(|&server| self.is_shortened(scenario, server)) {
            text.push_str("  ws takes part in two rounds only, because it is slow to fill the rooms.\n");
        }
    }

    fn write_summary(&self, text: &mut String, scenarios: &[&'static Scenario]) {
        text.push_str("\nMedians\n| server |");
        for scenario in scenarios {
            let _ = write!(text, " {} {} |", scenario.name, scenario.metric.unit());
        }
        text.push_str("\n| --- |");
        text.push_str(&" --- |".repeat(scenarios.len()));
        for &server in &self.servers {
            let _ = write!(text, "\n| {} |", server.name());
            for scenario in scenarios {
                let spread = self.spread(scenario, server, |figures| Some(figures.value));
                let cell = spread.map_or("invalid".into(), |spread| amount(spread.median));
                let _ = write!(text, " {cell} |");
            }
        }
        let base = self.base();
        for &server in self.servers.iter().filter(|&&server| server != base) {
            let _ = write!(text, "\n| {} / {} |", base.name(), server.name());
            for scenario in scenarios {
                let ratio = self.ratio(scenario, server);
                let cell = ratio.map_or("-".into(), |ratio| format!("{:.2}", ratio.median));
                let _ = write!(text, " {cell} |");
            }
        }
        text.push('\n');
    }

    fn write_invalid(&self, text: &mut String) {
        for run in &self.runs {
            if let Err(error) = &run.outcome {
                let _ = writeln!(
                    text,
                    "\nINVALID: {} {} round {}: {error}",
                    run.scenario.name,
                    run.server.name(),
                    run.round + 1,
                );
            }
        }
    }

    fn scenarios(&self) -> Vec<&'static Scenario> {
        let mut scenarios: Vec<&'static Scenario> = Vec::new();
        for run in &self.runs {
            if !scenarios.contains(&run.scenario) {
                scenarios.push(run.scenario);
            }
        }
        scenarios
    }

    fn base(&self) -> Server {
        self.servers.first().copied().unwrap_or(Server::Ours)
    }

    fn runs_of(&self, scenario: &Scenario, server: Server) -> impl Iterator<Item = &Run> {
        let name = scenario.name;
        self.runs.iter().filter(move |run| run.scenario.name == name && run.server == server)
    }

    fn is_shortened(&self, scenario: &Scenario, server: Server) -> bool {
        let rounds = self.runs.iter().filter(|run| run.scenario == scenario).map(|run| run.round);
        rounds.max().is_some_and(|last| last >= scenario.rounds_max(server))
    }

    /// The rounds of a server with the figure picked from each, unless one was invalid.
    fn rounds(
        &self,
        scenario: &Scenario,
        server: Server,
        pick: impl Fn(&Figures) -> Option<f64>,
    ) -> Option<Vec<(usize, f64)>> {
        let value = |run: &Run| Some((run.round, pick(run.outcome.as_ref().ok()?)?));
        self.runs_of(scenario, server).map(value).collect()
    }

    fn spread(&self, scenario: &Scenario, server: Server, pick: impl Fn(&Figures) -> Option<f64>) -> Option<Spread> {
        let rounds = self.rounds(scenario, server, pick)?;
        Spread::of(rounds.into_iter().map(|(_, value)| value).collect())
    }

    /// Of the first server to this one, formed in each round that both took part in.
    fn ratio(&self, scenario: &Scenario, server: Server) -> Option<Spread> {
        if server == self.base() {
            return None;
        }
        let ours = self.rounds(scenario, self.base(), |figures| Some(figures.value))?;
        let theirs = self.rounds(scenario, server, |figures| Some(figures.value))?;
        let ratios = theirs.into_iter().filter_map(|(round, theirs)| {
            let (_, ours) = ours.iter().find(|(other, _)| *other == round)?;
            (theirs > 0.0).then(|| ours / theirs)
        });
        Spread::of(ratios.collect())
    }
}

/// Median and extremes of at least one value.
#[derive(Debug, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
    count: usize,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let count = values.len();
        let median = (values[(count - 1) / 2] + values[count / 2]) / 2.0;
        Some(Self { median, min, max, count })
    }
}

/// A figure with as many digits as mean something, thousands set apart.
fn amount(value: f64) -> String {
    if value.abs() < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}
