//! The command line of the comparison.

use std::path::PathBuf;

use crate::scenario::{Scenario, Server};

/// What `--help` prints.
pub(crate) const USAGE: &str = "\
Usage: cargo bench --bench compare -- [OPTIONS]

  --scenarios LIST  of those below (default: all but fair-uws)
  --servers LIST    of ours,uws,ws,floor (default: all); ratios are of the first to the others.
                    A scenario runs on those of them that it is meant for
  --pairs N         rounds of every scenario (default 9; with --quick 1). Long scenarios take
                    fewer: R100, storm and F1-tls at most 9; idle, durable and recovery 5; gather, memory,
                    fair, hostile, slow, calls and feed 3; idle-rooms 1; ws beyond F1 and F16 at most 2
  --quick           publish for a second instead of three
  --json FILE       write every run, the medians and the targets as JSON
  --svg FILE        write the medians and the targets as a bar chart
  --markdown FILE   write the medians and the targets as tables
  --server PATH     the binary of this server (default: as built by cargo)
  --load PATH       the load generator (default: as built by cargo)

Scenarios (name, figures, servers):
";

const NOTES: &str = "
The order of the servers is reversed from round to round. A ratio is formed within each round;
the median of the rounds counts, and minimum and maximum are printed beside it. Each target is
printed as met or MISSED; a missed target does not fail the run, a wrong delivery does.

FLOOR_SLICE=N, FLOOR_ROUND=N and FLOOR_ECHO=first in the environment change the order in which
the floor serves those who are behind: N members between two polls (default 32), N members of a
room before the next room (default 512), and first of all those who have just said something.
System calls are counted by strace, which is installed by apt where it is missing and can be;
otherwise that scenario is skipped, which with CI=true fails.

All of it takes about 70 minutes.
";

/// A parsed command line.
#[derive(Debug)]
pub(crate) struct Options {
    /// In the order to run them.
    pub(crate) scenarios: Vec<&'static Scenario>,
    /// In the order to list them; the first is what the others are compared with.
    pub(crate) servers: Vec<Server>,
    /// At least 1.
    pub(crate) rounds: usize,
    /// Publish for a shorter time.
    pub(crate) quick: bool,
    /// Where to write the report as JSON.
    pub(crate) json_path: Option<PathBuf>,
    /// Where to write the chart.
    pub(crate) svg_path: Option<PathBuf>,
    /// Where to write the tables.
    pub(crate) markdown_path: Option<PathBuf>,
    /// Instead of the binary built with this program.
    pub(crate) server_path: Option<PathBuf>,
    /// Instead of the example built beside this program.
    pub(crate) load_path: Option<PathBuf>,
}

impl Options {
    /// Parses the arguments after the program's name; nothing if nothing is to be measured.
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Self {
            scenarios: Scenario::all().filter(|scenario| scenario.is_default()).collect(),
            servers: Server::ALL.to_vec(),
            rounds: 0,
            quick: false,
            json_path: None,
            svg_path: None,
            markdown_path: None,
            server_path: None,
            load_path: None,
        };
        let mut args = args;
        let mut is_bench = false;
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--bench" => is_bench = true,
                "--help" | "-h" => return Ok(None),
                "--quick" => options.quick = true,
                "--scenarios" => options.scenarios = list(&value()?, Scenario::named)?,
                "--servers" => options.servers = list(&value()?, Server::named)?,
                "--pairs" => options.rounds = rounds(&value()?)?,
                "--json" => options.json_path = Some(path(&value()?)?),
                "--svg" => options.svg_path = Some(path(&value()?)?),
                "--markdown" => options.markdown_path = Some(path(&value()?)?),
                "--server" => options.server_path = Some(path(&value()?)?),
                "--load" => options.load_path = Some(path(&value()?)?),
                _ => return Err(format!("unknown argument {arg}")),
            }
        }
        if options.rounds == 0 {
            options.rounds = if options.quick { 1 } else { 9 };
        }
        // `cargo bench` passes `--bench`; `cargo test --all-targets`, which also runs this program, does not.
        Ok(is_bench.then_some(options))
    }

    /// Who takes part in a scenario: those asked for that it is meant for, and this server's variants with it.
    pub(crate) fn servers_of(&self, scenario: &Scenario) -> Vec<Server> {
        let is_wanted = |server: &Server| {
            self.servers.contains(server) || (server.threads().is_some() && self.servers.contains(&Server::Ours))
        };
        let mut servers: Vec<Server> = self.servers.iter().copied().filter(|s| scenario.servers.contains(s)).collect();
        for &server in scenario.servers.iter().filter(|&server| is_wanted(server)) {
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        servers
    }
}

/// What can be asked for.
pub(crate) fn usage() -> String {
    let mut text = USAGE.to_owned();
    for scenario in Scenario::all() {
        let figures: Vec<&str> = scenario.figures.iter().map(|figure| figure.name).collect();
        let servers: Vec<&str> = scenario.servers.iter().map(|server| server.name()).collect();
        let (name, figures, servers) = (scenario.name, figures.join(", "), servers.join(", "));
        text.push_str(&format!("  {name:<9} {figures} ({servers})\n            {}\n", scenario.what));
    }
    text.push_str(NOTES);
    text
}

fn list<T: PartialEq>(text: &str, named: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, String> {
    let mut items = Vec::new();
    for name in text.split(',') {
        let item = named(name).ok_or(format!("no such name: {name:?}"))?;
        if !items.contains(&item) {
            items.push(item);
        }
    }
    Ok(items)
}

/// Absolute, because the runs have another working directory.
fn path(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| format!("{text:?}: {error}"))
}

fn rounds(text: &str) -> Result<usize, String> {
    let parsed = text.parse().ok().filter(|rounds| (1..=100).contains(rounds));
    parsed.ok_or(format!("--pairs is 1 to 100, not {text:?}"))
}
