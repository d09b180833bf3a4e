//! What is to be reached: the table of targets. It knows no measurement.

use crate::scenario::Server::{self, Floor, Ours, OursFour, OursTwo, Uws, Ws};
use crate::store_tables::STORE_TARGETS;

/// A bound on a figure, or on how the figures of two servers compare.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// The figure's name.
    pub(crate) figure: &'static str,
    pub(crate) rule: Rule,
    /// At most so much.
    pub(crate) at_most: f64,
}

/// What is bounded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// The figure of the first divided by that of the second, round by round.
    Ratio(Server, Server),
    /// The figure of the first less that of the second, round by round.
    Difference(Server, Server),
    /// The figure of this server.
    Value,
}

const fn ratio(figure: &'static str, to: Server, at_most: f64) -> Target {
    Target { figure, rule: Rule::Ratio(Ours, to), at_most }
}

pub(crate) const fn value(figure: &'static str, at_most: f64) -> Target {
    Target { figure, rule: Rule::Value, at_most }
}

/// The targets without a store.
static TARGETS: [Target; 38] = [
    ratio("F1", Uws, 0.95),
    ratio("R100", Uws, 0.95),
    ratio("P1", Uws, 0.95),
    ratio("F16", Uws, 0.80),
    ratio("P16", Uws, 0.80),
    ratio("F1", Floor, 1.10),
    ratio("R100", Floor, 1.10),
    ratio("F16", Floor, 1.25),
    ratio("F1", Ws, 0.45),
    ratio("F16", Ws, 0.04),
    Target { figure: "connect", rule: Rule::Difference(Ours, Floor), at_most: 12.0 },
    ratio("connect", Uws, 0.05),
    ratio("storm", Uws, 0.30),
    // Twice the members receive twice the bytes in all, so a member receives no more of them; a tenth is for noise.
    value("gather-growth", 1.10),
    value("gather-rate", 2_048.0),
    value("memory", 300.0),
    ratio("F1-tls", Uws, 1.15),
    value("memory-tls", 6_144.0),
    value("memory-storm", 300.0),
    value("memory-return", 300.0),
    value("idle", 0.4),
    Target { figure: "F1x2", rule: Rule::Ratio(OursTwo, Ours), at_most: 1.05 },
    Target { figure: "F1x4", rule: Rule::Ratio(OursFour, Ours), at_most: 1.05 },
    value("fair", 2.0),
    value("hostile", 2.0),
    value("slow", 1.5),
    value("slow-process", 1.0),
    value("slow-kernel", 1.0),
    ratio("post", Uws, 1.2),
    value("calls-F1", 1.02),
    value("calls-F16", 1.0 / 12.0),
    value("epoll_ctl", 0.0),
    // Not targets of this server: no server may be below what is called the floor.
    Target { figure: "F1", rule: Rule::Ratio(Floor, Ours), at_most: 1.0 },
    Target { figure: "F16", rule: Rule::Ratio(Floor, Ours), at_most: 1.0 },
    Target { figure: "R100", rule: Rule::Ratio(Floor, Ours), at_most: 1.0 },
    Target { figure: "P1", rule: Rule::Ratio(Floor, Ours), at_most: 1.0 },
    Target { figure: "P16", rule: Rule::Ratio(Floor, Ours), at_most: 1.0 },
    Target { figure: "idle", rule: Rule::Ratio(Floor, Ours), at_most: 1.0 },
];

impl Target {
    /// All targets.
    pub(crate) fn all() -> impl Iterator<Item = &'static Self> {
        TARGETS.iter().chain(&STORE_TARGETS)
    }

    /// What is bounded, for the reader.
    pub(crate) fn what(&self) -> String {
        match self.rule {
            Rule::Ratio(of, to) => format!("{}: {} / {}", self.figure, of.name(), to.name()),
            Rule::Difference(of, to) => format!("{}: {} - {}", self.figure, of.name(), to.name()),
            Rule::Value => self.figure.to_owned(),
        }
    }
}
