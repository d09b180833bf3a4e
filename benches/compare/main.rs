//! `compare`: this server against others that speak the same protocol, in one run on one machine.
//!
//! For each scenario and round every server runs in turn, each time as a fresh process pinned to
//! one core, with the load generator on another; the order is reversed from round to round, so that
//! a drift of the machine favours nobody. Ratios are formed per round and only then summarised.
//!
//! This module owns the order of the runs. It knows no protocol: the load generator publishes,
//! measures and checks the delivery; a run that it does not call correct yields no figure and
//! makes this program exit with 1. A missed target does not: it is printed.
//!
//! From here down: `scenario` and `target` are the tables, with `store_tables` for what the store does; `run`, `compound`, `slow` and `store_runs` run a scenario once,
//! `report` collects, `text`, `json` and `svg` write.
//!
//! ```text
//! cargo bench --bench compare -- --scenarios F1,F16 --servers ours,uws --pairs 3
//! ```

mod certificate;
mod compound;
mod hostile;
mod json;
mod machine;
mod options;
mod process;
mod programs;
mod report;
mod run;
mod scenario;
mod slow;
mod spread;
mod store_runs;
mod store_tables;
mod svg;
mod target;
mod text;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use machine::Machine;
use options::Options;
use programs::Programs;
use report::{Report, Run};
use run::{Failure, Runner};
use scenario::{Scenario, Server};
use spread::amount;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::usage());
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("compare: {error}\n\n{}", options::usage());
            return ExitCode::from(2);
        }
    };
    match compare(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("compare: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs everything and prints the report; true if every run was correct.
fn compare(options: &Options) -> Result<bool, String> {
    machine::require_two_cores()?;
    let machine = Machine::this();
    let programs = Programs::prepare(options)?;
    let mut report = Report::new(options.servers.clone());
    let mut runner = Runner::new(&programs, options.quick)?;
    for scenario in &options.scenarios {
        let servers = options.servers_of(scenario);
        for round in 0..options.rounds {
            let mut order = servers.clone();
            if round % 2 == 1 {
                order.reverse();
            }
            for server in order.into_iter().filter(|&server| round < scenario.rounds_max(server)) {
                report.add(run(&mut runner, scenario, server, round));
            }
        }
    }
    println!("{}", machine.text());
    println!("{}", text::text(&report));
    write(options.json_path.as_deref(), || format!("{:#}\n", json::json(&report, &machine)))?;
    write(options.svg_path.as_deref(), || svg::svg(&report, &machine))?;
    write(options.markdown_path.as_deref(), || text::markdown(&report))?;
    if !report.is_valid() {
        eprintln!("compare: FAILED, there are invalid runs (see the end of the report)");
    }
    Ok(report.is_valid())
}

/// Runs a scenario once, and tells on standard error how it went.
fn run(runner: &mut Runner<'_>, scenario: &'static Scenario, server: Server, round: usize) -> Run {
    eprint!("{} round {} {:<6}", scenario.name, round + 1, server.name());
    let begin = Instant::now();
    let outcome = runner.run(scenario, server, round);
    let took_s = begin.elapsed().as_secs_f64();
    match &outcome {
        Ok(measured) => {
            for (name, value) in &measured.figures {
                let figure = scenario.figures.iter().find(|figure| figure.name == *name);
                eprint!("  {name} {} {}", amount(*value), figure.map_or("", |figure| figure.unit));
            }
            eprintln!("  ({took_s:.1} s)");
        }
        Err(Failure::Invalid(why)) => eprintln!("  INVALID: {why}"),
        Err(Failure::Skipped(why)) => eprintln!("  *** SKIPPED: {why}"),
    }
    Run { scenario, server, round, outcome }
}

fn write(path: Option<&Path>, content: impl FnOnce() -> String) -> Result<(), String> {
    let Some(path) = path else {
        return Ok(());
    };
    fs::write(path, content()).map_err(|error| format!("{}: {error}", path.display()))
}
