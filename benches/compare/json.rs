//! The report as JSON, for programs.

use serde_json::{Map, Value, json};

use crate::machine::Machine;
use crate::report::Report;
use crate::run::Failure;
use crate::spread::Spread;
use crate::target::Rule;

/// Everything: the machine, every run, the medians and the targets.
pub(crate) fn json(report: &Report, machine: &Machine) -> Value {
    json!({
        "machine": machine.json(),
        "scenarios": report.scenarios().iter().map(|scenario| json!({
            "name": scenario.name,
            "what": scenario.what,
            "figures": scenario.figures.iter().map(|figure| figure.name).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "runs": runs(report),
        "figures": figures(report),
        "targets": targets(report),
        "valid": report.is_valid(),
    })
}

fn runs(report: &Report) -> Vec<Value> {
    let runs = report.runs.iter().map(|run| {
        let mut value = json!({ "scenario": run.scenario.name, "server": run.server.name(), "round": run.round + 1 });
        match &run.outcome {
            Ok(measured) => {
                let figures = measured.figures.iter().map(|(name, figure)| ((*name).to_owned(), json!(figure)));
                value["figures"] = Value::Object(figures.collect::<Map<_, _>>());
                value["deliveries_per_s"] = json!(measured.deliveries_per_s);
                value["latency_p99_us"] = json!(measured.latency_p99_us);
            }
            Err(Failure::Invalid(why)) => value["invalid"] = json!(why),
            Err(Failure::Skipped(why)) => value["skipped"] = json!(why),
        }
        value
    });
    runs.collect()
}

fn figures(report: &Report) -> Vec<Value> {
    let base = report.base();
    let figures = report.figures().into_iter().map(|figure| {
        let mut servers = Map::new();
        for server in report.all_servers() {
            let Some(spread) = report.spread(figure.name, server) else { continue };
            let mut value = spread_json(&spread);
            if let Some(ratio) = report.ratio(figure.name, base, server) {
                value[format!("{}_divided_by_it", base.name())] = spread_json(&ratio);
            }
            servers.insert(server.name().to_owned(), value);
        }
        json!({ "name": figure.name, "unit": figure.unit, "servers": servers })
    });
    figures.collect()
}

fn targets(report: &Report) -> Vec<Value> {
    let targets = report.verdicts().into_iter().map(|verdict| {
        let kind = match verdict.target.rule {
            Rule::Ratio(..) => "ratio",
            Rule::Difference(..) => "difference",
            Rule::Value => "value",
        };
        let mut value = spread_json(&verdict.spread);
        value["what"] = json!(verdict.target.what());
        value["kind"] = json!(kind);
        value["at_most"] = json!(verdict.target.at_most);
        value["met"] = json!(verdict.is_met);
        value
    });
    targets.collect()
}

fn spread_json(spread: &Spread) -> Value {
    json!({ "median": spread.median, "min": spread.min, "max": spread.max, "rounds": spread.count })
}
