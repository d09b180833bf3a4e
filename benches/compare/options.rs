//! The command line of the comparison.

use std::path::PathBuf;

use crate::scenario::{self, Scenario, Server};

/// What `--help` prints.
pub(crate) const USAGE: &str = "\
Usage: cargo bench --bench compare -- [OPTIONS]

  --scenarios LIST  of F1,F16,R100,P1,P16,connect,memory (default: all)
  --servers LIST    of ours,uws,ws,floor (default: all); ratios are of the first to the others
  --pairs N         rounds of every scenario (default 5; with --quick 1)
  --quick           publish for a second instead of three
  --server PATH     the binary of this server (default: as built by cargo)
  --load PATH       the load generator (default: as built by cargo)

All of it takes about 15 minutes.
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
    /// Instead of the binary built with this program.
    pub(crate) server_path: Option<PathBuf>,
    /// Instead of the example built beside this program.
    pub(crate) load_path: Option<PathBuf>,
}

impl Options {
    /// Parses the arguments after the program's name; nothing if nothing is to be measured.
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Self {
            scenarios: scenario::SCENARIOS.iter().collect(),
            servers: Server::ALL.to_vec(),
            rounds: 0,
            quick: false,
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
                "--server" => options.server_path = Some(path(&value()?)?),
                "--load" => options.load_path = Some(path(&value()?)?),
                _ => return Err(format!("unknown argument {arg}")),
            }
        }
        if options.rounds == 0 {
            options.rounds = if options.quick { 1 } else { 5 };
        }
        // `cargo bench` passes `--bench`; `cargo test --all-targets`, which also runs this program, does not.
        Ok(is_bench.then_some(options))
    }
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
