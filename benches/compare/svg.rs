//! The report as an SVG bar chart that reads well on a light and on a dark page: it brings its own background, light or
//! dark as the reader prefers.
//!
//! A panel per figure, a bar per server, and on the bar that a target is about a tick for each target: red where it is
//! missed. The Node `ws` server does not stretch a scale; where its bar does not fit, it is cut and marked so.

use std::fmt::Write;

use crate::machine::Machine;
use crate::report::{Report, Verdict};
use crate::scenario::{Figure, Server};
use crate::spread::{Spread, amount};
use crate::target::Rule;

const WIDTH: usize = 880;
const COLUMN: usize = 430;
const MARGIN: usize = 12;
const HEAD: usize = 44;
const TITLE: usize = 22;
const ROW: usize = 18;
const GAP: usize = 16;
const LABEL: usize = 106;
const BAR: usize = 180;

const STYLE: &str = "<style>
.page { fill: #ffffff; }
text { font: 12px -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328; }
.title { font-weight: 600; }
.head { font-size: 15px; font-weight: 600; }
.small { fill: #59636e; font-size: 11px; }
.ours { fill: #2563eb; } .uws { fill: #d97706; } .ws { fill: #65a30d; } .floor { fill: #8b949e; }
.ours-2 { fill: #3b82f6; } .ours-4 { fill: #60a5fa; }
.met { stroke: #16a34a; stroke-width: 2.5; } .missed { stroke: #dc2626; stroke-width: 2.5; }
.axis { stroke: #8b949e; stroke-width: 1; } .range { stroke: #1f2328; stroke-width: 1; opacity: 0.6; }
@media (prefers-color-scheme: dark) {
  .page { fill: #0d1117; } text { fill: #e6edf3; } .small { fill: #9198a1; } .ours { fill: #4f8cff; }
  .range { stroke: #ffffff; } .met { stroke: #4ade80; } .missed { stroke: #f87171; }
}
</style>
";

/// The whole chart.
pub(crate) fn svg(report: &Report, machine: &Machine) -> String {
    let verdicts = report.verdicts();
    let mut panels = String::new();
    // Two columns, the next panel goes into the shorter one.
    let mut ends = [HEAD, HEAD];
    for figure in report.figures() {
        let column = usize::from(ends[1] < ends[0]);
        let (left, top) = (MARGIN + column * COLUMN, ends[column]);
        let height = write_panel(&mut panels, report, &verdicts, figure, left, top);
        ends[column] += height;
    }
    let foot = ends[0].max(ends[1]) + 4;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\" aria-label=\"Measured figures\">\n{STYLE}\
         <rect class=\"page\" width=\"100%\" height=\"100%\" rx=\"6\"/>\n",
        height = foot + 2 * ROW,
    );
    let base = report.base();
    let _ = writeln!(
        text,
        "<text class=\"head\" x=\"{MARGIN}\" y=\"20\">Less is better</text>\
         <text class=\"small\" x=\"{}\" y=\"20\">median, line: all rounds; in brackets: {} divided by it; tick: \
         a target, green if met, red if missed</text>",
        MARGIN + 132,
        base.title(),
    );
    text.push_str(&panels);
    let about = format!(
        "{}; Linux {}; {}; commit {}; {}",
        machine.cpu, machine.kernel, machine.rustc, machine.commit, machine.date
    );
    let _ = writeln!(text, "<text class=\"small\" x=\"{MARGIN}\" y=\"{}\">{}</text>", foot + ROW, escape(&about));
    text.push_str("</svg>\n");
    text
}

/// Draws a figure of every server that has it, and says how high that is.
fn write_panel(
    text: &mut String,
    report: &Report,
    verdicts: &[Verdict],
    figure: &Figure,
    left: usize,
    top: usize,
) -> usize {
    let bars = bars(report, figure);
    if bars.is_empty() {
        return 0;
    }
    let ticks = ticks(report, verdicts, figure);
    let fitted = bars.iter().filter(|bar| bar.0 != Server::Ws || bars.len() == 1).map(|bar| bar.1.median);
    let longest = fitted.chain(ticks.iter().map(|tick| tick.1)).fold(0.0, f64::max);
    let scale = BAR as f64 / if longest > 0.0 { longest * 1.04 } else { 1.0 };
    let _ = writeln!(
        text,
        "<text class=\"title\" x=\"{left}\" y=\"{}\">{} <tspan class=\"small\">{}</tspan></text>",
        top + 14,
        escape(figure.name),
        escape(figure.unit),
    );
    let start = left + LABEL;
    for (row, (server, spread, label)) in bars.iter().enumerate() {
        let y = top + TITLE + row * ROW;
        let length = (spread.median * scale).clamp(1.0, BAR as f64);
        let cut = if spread.median * scale > BAR as f64 + 0.5 { "\u{bb} " } else { "" };
        let marks: Vec<_> = ticks.iter().filter(|tick| tick.0 == *server).collect();
        let [low, high] = [spread.min, spread.max].map(|value| (value * scale).min(BAR as f64));
        let end = marks.iter().map(|tick| tick.1 * scale).fold(length.max(high), f64::max);
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{}\" x=\"{start}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\" rx=\"2\"/>\
             <text x=\"{:.1}\" y=\"{}\">{cut}{}</text>",
            start - 6,
            y + 12,
            escape(server.title()),
            server.name(),
            y + 2,
            ROW - 5,
            start as f64 + end + 6.0,
            y + 12,
            escape(label),
        );
        if spread.count > 1 {
            let [from, to] = [low, high].map(|x| start as f64 + x);
            let _ = writeln!(text, "<path class=\"range\" d=\"M{from:.1} {y} H{to:.1}\"/>", y = y + ROW / 2);
        }
        for (_, at, is_met) in marks {
            let x = start as f64 + at * scale;
            let class = if *is_met { "met" } else { "missed" };
            let _ = writeln!(text, "<path class=\"{class}\" d=\"M{x:.1} {} V{}\"/>", y, y + ROW - 1);
        }
    }
    let bottom = top + TITLE + bars.len() * ROW;
    let _ = writeln!(text, "<path class=\"axis\" d=\"M{start} {} V{bottom}\"/>", top + TITLE);
    bottom - top + GAP
}

/// Server, figure, and what is written beside the bar.
fn bars(report: &Report, figure: &Figure) -> Vec<(Server, Spread, String)> {
    let base = report.base();
    let bars = report.all_servers().into_iter().filter_map(|server| {
        let spread = report.spread(figure.name, server)?;
        let mut label = amount(spread.median);
        // With more threads it is this server itself that is compared.
        let is_variant = server != base && server.threads().is_some();
        let (of, to) = if is_variant { (server, base) } else { (base, server) };
        if let Some(ratio) = report.ratio(figure.name, of, to) {
            let _ = write!(label, " ({}{})", amount(ratio.median), if is_variant { " x" } else { "" });
        }
        Some((server, spread, label))
    });
    bars.collect()
}

/// The server whose bar a target is about, where on the scale it lies, and whether it is met.
fn ticks(report: &Report, verdicts: &[Verdict], figure: &Figure) -> Vec<(Server, f64, bool)> {
    let median = |server| report.spread(figure.name, server).map(|spread| spread.median);
    let verdicts = verdicts.iter().filter(|verdict| verdict.target.figure == figure.name);
    let ticks = verdicts.filter_map(|verdict| {
        let at_most = verdict.target.at_most;
        let (server, at) = match verdict.target.rule {
            Rule::Ratio(Server::Floor, _) => return None,
            Rule::Ratio(of, to) => (of, median(to)? * at_most),
            Rule::Difference(of, to) => (of, median(to)? + at_most),
            Rule::Value => (Server::Ours, at_most),
        };
        Some((server, at, verdict.is_met))
    });
    ticks.collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
