//! The report as text and as Markdown.

use std::fmt::Write;

use crate::report::Report;
use crate::run::Failure;
use crate::scenario::{Figure, Scenario, Server};
use crate::spread::amount;

/// A table per scenario, then one of all medians, then the targets, then what went wrong.
pub(crate) fn text(report: &Report) -> String {
    let mut text = String::from("Servers\n");
    for server in report.all_servers() {
        let _ = writeln!(text, "  {:<6} {}", server.name(), server.what());
    }
    for scenario in report.scenarios() {
        let _ = writeln!(text, "\n{}: {}", scenario.name, scenario.what);
        for figure in scenario.figures {
            write_figure(&mut text, report, scenario, figure);
        }
    }
    text.push_str("\nMedians\n");
    write_medians(&mut text, report);
    text.push_str("\nTargets: medians of the rounds, each ratio formed within its round\n");
    write_targets_text(&mut text, report);
    write_failures(&mut text, report);
    text
}

/// The medians and the targets as Markdown tables.
pub(crate) fn markdown(report: &Report) -> String {
    let mut text = String::new();
    write_medians(&mut text, report);
    text.push_str("\n| target | at most | median | min .. max | rounds | |\n| --- | --- | --- | --- | --- | --- |\n");
    for verdict in report.verdicts() {
        let (target, spread) = (verdict.target, verdict.spread);
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            target.what(),
            amount(target.at_most),
            amount(spread.median),
            spread.range(),
            spread.count,
            if verdict.is_met { "met" } else { "**missed**" },
        );
    }
    text
}

fn write_figure(text: &mut String, report: &Report, scenario: &Scenario, figure: &Figure) {
    let base = report.base();
    let per_s = |server| report.besides(scenario, server, |measured| measured.deliveries_per_s);
    let p99 = |server| report.besides(scenario, server, |measured| measured.latency_p99_us);
    let publishes = per_s(base).is_some();
    let _ = writeln!(
        text,
        "  {:<14} {:>6} {:>14} {:>21} {:>12} {:>15} {:>12} {:>9}",
        figure.name,
        "rounds",
        figure.unit,
        "min .. max",
        format!("{}/server", base.name()),
        "min .. max",
        if publishes { "deliveries/s" } else { "" },
        if publishes { "p99 ms" } else { "" },
    );
    let took_part = |server: &Server| report.runs.iter().any(|run| run.scenario == scenario && run.server == *server);
    for server in report.all_servers().into_iter().filter(took_part) {
        let Some(spread) = report.spread(figure.name, server) else {
            let _ = writeln!(text, "  {:<14} {:>21}", server.name(), "none");
            continue;
        };
        let ratio = report.ratio(figure.name, base, server);
        let line = format!(
            "  {:<14} {:>6} {:>14} {:>21} {:>12} {:>15} {:>12} {:>9}",
            server.name(),
            spread.count,
            amount(spread.median),
            spread.range(),
            ratio.map_or(String::new(), |ratio| amount(ratio.median)),
            ratio.map_or(String::new(), |ratio| ratio.range()),
            per_s(server).map_or(String::new(), |per_s| amount(per_s.median)),
            p99(server).map_or(String::new(), |p99| amount(p99.median / 1e3)),
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

fn write_medians(text: &mut String, report: &Report) {
    let figures = report.figures();
    let row = |text: &mut String, name: &str, cell: &dyn Fn(&Figure) -> String| {
        let cells: Vec<String> = figures.iter().map(|figure| cell(figure)).collect();
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    };
    row(text, "", &|figure| figure.name.to_owned());
    row(text, "---", &|_| "---".to_owned());
    row(text, "unit", &|figure| figure.unit.to_owned());
    for server in report.all_servers() {
        row(text, server.title(), &|figure| {
            report.spread(figure.name, server).map_or(String::new(), |spread| amount(spread.median))
        });
    }
    let base = report.base();
    for server in report.servers.iter().copied().filter(|&server| server != base) {
        row(text, &format!("{} / {}", base.title(), server.title()), &|figure| {
            report.ratio(figure.name, base, server).map_or(String::new(), |ratio| amount(ratio.median))
        });
    }
}

fn write_targets_text(text: &mut String, report: &Report) {
    for verdict in report.verdicts() {
        let (target, spread) = (verdict.target, verdict.spread);
        let _ = writeln!(
            text,
            "  {:<24} {:>9} at most {:>6}  {:<6}  ({} in {} rounds)",
            target.what(),
            amount(spread.median),
            amount(target.at_most),
            if verdict.is_met { "met" } else { "MISSED" },
            spread.range(),
            spread.count,
        );
    }
}

fn write_failures(text: &mut String, report: &Report) {
    for run in &report.runs {
        let (what, why) = match &run.outcome {
            Ok(_) => continue,
            Err(Failure::Invalid(why)) => ("INVALID", why),
            Err(Failure::Skipped(why)) => ("*** SKIPPED", why),
        };
        let (scenario, server) = (run.scenario.name, run.server.name());
        let _ = writeln!(text, "\n{what}: {scenario} {server} round {}: {why}", run.round + 1);
    }
}
