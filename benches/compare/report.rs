//! Collects the runs, and says what follows from them: medians, ratios round by round, and which targets are met.
//!
//! Invariant: a server with an invalid run in a scenario has no figure of that scenario.

use crate::run::{Failure, Measured};
use crate::scenario::{Figure, Scenario, Server};
use crate::spread::Spread;
use crate::target::{Rule, Target};

/// All runs so far.
pub(crate) struct Report {
    /// In the order to list them.
    pub(crate) servers: Vec<Server>,
    pub(crate) runs: Vec<Run>,
}

/// One server in one scenario, once.
pub(crate) struct Run {
    pub(crate) scenario: &'static Scenario,
    pub(crate) server: Server,
    pub(crate) round: usize,
    pub(crate) outcome: Result<Measured, Failure>,
}

/// A target and what was measured of it.
pub(crate) struct Verdict {
    pub(crate) target: &'static Target,
    pub(crate) spread: Spread,
    pub(crate) is_met: bool,
}

impl Report {
    /// An empty report; the first of the servers is compared with the others.
    pub(crate) fn new(servers: Vec<Server>) -> Self {
        Self { servers, runs: Vec::new() }
    }

    pub(crate) fn add(&mut self, run: Run) {
        self.runs.push(run);
    }

    /// Whether every run was correct, and none was left out where none may be.
    pub(crate) fn is_valid(&self) -> bool {
        let may_skip = std::env::var("CI").as_deref() != Ok("true");
        self.runs.iter().all(|run| match run.outcome {
            Ok(_) => true,
            Err(Failure::Skipped(_)) => may_skip,
            Err(Failure::Invalid(_)) => false,
        })
    }

    /// Those that were run, in the order of their first runs.
    pub(crate) fn scenarios(&self) -> Vec<&'static Scenario> {
        let mut scenarios: Vec<&'static Scenario> = Vec::new();
        for run in &self.runs {
            if !scenarios.contains(&run.scenario) {
                scenarios.push(run.scenario);
            }
        }
        scenarios
    }

    /// The figures of the scenarios that were run, each once.
    pub(crate) fn figures(&self) -> Vec<&'static Figure> {
        let mut figures: Vec<&'static Figure> = Vec::new();
        for figure in self.scenarios().into_iter().flat_map(|scenario| scenario.figures) {
            if !figures.iter().any(|other| other.name == figure.name) {
                figures.push(figure);
            }
        }
        figures
    }

    /// Those asked for, and those that took part besides.
    pub(crate) fn all_servers(&self) -> Vec<Server> {
        let mut servers = self.servers.clone();
        for run in &self.runs {
            if !servers.contains(&run.server) {
                servers.push(run.server);
            }
        }
        servers
    }

    /// The server that the others are compared with.
    pub(crate) fn base(&self) -> Server {
        self.servers.first().copied().unwrap_or(Server::Ours)
    }

    /// A server's figure over all its rounds, unless one was invalid.
    pub(crate) fn spread(&self, figure: &str, server: Server) -> Option<Spread> {
        let rounds = self.rounds(figure, server)?;
        Spread::of(rounds.into_iter().map(|(_, value)| value).collect())
    }

    /// The figure of one server divided by that of another in the same round, over all rounds that both have.
    pub(crate) fn ratio(&self, figure: &str, of: Server, to: Server) -> Option<Spread> {
        self.pairs(figure, of, to, |of, to| (to > 0.0).then(|| of / to))
    }

    /// All targets of which something was measured.
    pub(crate) fn verdicts(&self) -> Vec<Verdict> {
        let verdicts = Target::all().filter_map(|target| {
            let spread = match target.rule {
                Rule::Ratio(of, to) => self.ratio(target.figure, of, to),
                Rule::Difference(of, to) => self.pairs(target.figure, of, to, |of, to| Some(of - to)),
                Rule::Value => self.spread(target.figure, Server::Ours),
            }?;
            Some(Verdict { target, spread, is_met: spread.median <= target.at_most })
        });
        verdicts.collect()
    }

    /// Something that a run says besides its figures, over all rounds of a server.
    pub(crate) fn besides(
        &self,
        scenario: &Scenario,
        server: Server,
        pick: impl Fn(&Measured) -> Option<f64>,
    ) -> Option<Spread> {
        let runs = self.runs.iter().filter(|run| run.scenario == scenario && run.server == server);
        Spread::of(runs.filter_map(|run| run.outcome.as_ref().ok().and_then(&pick)).collect())
    }

    fn pairs(&self, figure: &str, of: Server, to: Server, compare: impl Fn(f64, f64) -> Option<f64>) -> Option<Spread> {
        if of == to {
            return None;
        }
        let (of, to) = (self.rounds(figure, of)?, self.rounds(figure, to)?);
        let pairs = of.into_iter().filter_map(|(round, of)| {
            let (_, to) = to.iter().find(|(other, _)| *other == round)?;
            compare(of, *to)
        });
        Spread::of(pairs.collect())
    }

    /// The rounds of a server with the figure of each, unless one was invalid.
    fn rounds(&self, figure: &str, server: Server) -> Option<Vec<(usize, f64)>> {
        let has = |run: &&Run| run.server == server && run.scenario.figures.iter().any(|other| other.name == figure);
        let mut rounds = Vec::new();
        for run in self.runs.iter().filter(has) {
            let measured = run.outcome.as_ref().ok()?;
            let value = measured.figures.iter().find(|(name, _)| *name == figure);
            rounds.extend(value.map(|(_, value)| (run.round, *value)));
        }
        Some(rounds)
    }
}
