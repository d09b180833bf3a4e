//! `compare`: this server against others that speak the same protocol, in one run on one machine.
//!
//! For each scenario and round every server runs in turn, each time as a fresh process pinned to
//! one core, with the load generator on another; the order is reversed from round to round, so that
//! a drift of the machine favours nobody. Ratios are formed per round and only then summarised.
//!
//! This module owns the order of the runs. It knows no protocol: the load generator publishes,
//! measures and checks the delivery; a run that it does not call correct yields no figure and
//! makes this program exit with 1.
//!
//! ```text
//! cargo bench --bench compare -- --scenarios F1,F16 --servers ours,uws --pairs 3
//! ```

mod machine;
mod options;
mod process;
mod programs;
mod report;
mod run;
mod scenario;

use std::process::ExitCode;
use std::time::Instant;

use options::Options;
use programs::Programs;
use report::Report;
use run::Runner;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("compare: {error}\n\n{}", options::USAGE);
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
    let programs = Programs::prepare(options)?;
    let mut report = Report::new(options.servers.clone());
    let mut runner = Runner::new(&programs, options.quick)?;
    for scenario in &options.scenarios {
        for round in 0..options.rounds {
            let mut order = options.servers.clone();
            if round % 2 == 1 {
                order.reverse();
            }
            for server in order {
                if round >= scenario.rounds_max(server) {
                    continue;
                }
                eprint!("{} round {}/{} {:<6}", scenario.name, round + 1, options.rounds, server.name());
                let begin = Instant::now();
                let outcome = runner.run(scenario, server, round);
                let took_s = begin.elapsed().as_secs_f64();
                match &outcome {
                    Ok(figures) => {
                        let unit = scenario.metric.unit();
                        eprintln!("{:>10.2} {unit:<13} ({took_s:.1} s)", figures.value);
                    }
                    Err(error) => eprintln!("INVALID: {error}"),
                }
                report.add(scenario, server, round, outcome);
            }
        }
    }
    println!("{}", machine::describe());
    println!("{}", report.text());
    if !report.is_valid() {
        eprintln!("compare: FAILED, there are invalid runs (see the end of the report)");
    }
    Ok(report.is_valid())
}
