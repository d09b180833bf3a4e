//! What is measured, and on whom: the tables of scenarios and servers.

/// One situation, in which every server is measured.
#[derive(Debug, PartialEq)]
pub(crate) struct Scenario {
    /// As given on the command line.
    pub(crate) name: &'static str,
    /// For the reader of the report.
    pub(crate) what: &'static str,
    /// Connections opened; they are spread evenly over the rooms.
    pub(crate) connections: u32,
    /// Rooms, each with one publisher unless the mode is `idle`.
    pub(crate) rooms: u32,
    /// How messages are published.
    pub(crate) mode: Mode,
    /// Messages in flight per publisher.
    pub(crate) window: u32,
    /// The figure compared.
    pub(crate) metric: Metric,
    /// Whether the slowest server takes so long to fill its rooms that two rounds of it must do.
    pub(crate) is_long: bool,
}

/// All scenarios, in the order in which they run.
pub(crate) static SCENARIOS: [Scenario; 7] = [
    Scenario {
        name: "F1",
        what: "1 room, 1,000 members, one publisher, 1 reaction in flight",
        connections: 1_000,
        rooms: 1,
        mode: Mode::WebSocket,
        window: 1,
        metric: Metric::CpuPerDelivery,
        is_long: false,
    },
    Scenario {
        name: "F16",
        what: "1 room, 1,000 members, one publisher, 16 reactions in flight",
        connections: 1_000,
        rooms: 1,
        mode: Mode::WebSocket,
        window: 16,
        metric: Metric::CpuPerDelivery,
        is_long: false,
    },
    Scenario {
        name: "R100",
        what: "100 rooms of 100 members, a publisher in each, 1 reaction in flight",
        connections: 10_000,
        rooms: 100,
        mode: Mode::WebSocket,
        window: 1,
        metric: Metric::CpuPerDelivery,
        is_long: true,
    },
    Scenario {
        name: "P1",
        what: "1 room, 1,000 members, POST on one keep-alive connection, 1 in flight",
        connections: 1_000,
        rooms: 1,
        mode: Mode::Rest,
        window: 1,
        metric: Metric::CpuPerDelivery,
        is_long: false,
    },
    Scenario {
        name: "P16",
        what: "1 room, 1,000 members, POST on one keep-alive connection, 16 pipelined",
        connections: 1_000,
        rooms: 1,
        mode: Mode::Rest,
        window: 16,
        metric: Metric::CpuPerDelivery,
        is_long: false,
    },
    Scenario {
        name: "connect",
        what: "4,000 connections accepted, upgraded and greeted, 64 opening at a time",
        connections: 4_000,
        rooms: 40,
        mode: Mode::Idle,
        window: 1,
        metric: Metric::ConnectCpu,
        is_long: false,
    },
    Scenario {
        name: "memory",
        what: "19,000 connections open, joined to 190 rooms, idle: growth of RSS",
        connections: 19_000,
        rooms: 190,
        mode: Mode::Idle,
        window: 1,
        metric: Metric::Memory,
        is_long: true,
    },
];

impl Scenario {
    /// The scenario of this name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }

    /// How many rounds at most a server takes part in.
    pub(crate) fn rounds_max(&self, server: Server) -> usize {
        if self.is_long && server == Server::Ws { 2 } else { usize::MAX }
    }
}

/// How messages are published, as the load generator calls it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    Idle,
    WebSocket,
    Rest,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::WebSocket => "ws",
            Self::Rest => "rest",
        }
    }
}

/// The figure that a scenario compares; less is better for each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Metric {
    CpuPerDelivery,
    ConnectCpu,
    Memory,
}

impl Metric {
    /// Where the load generator's JSON has it.
    pub(crate) fn pointer(self) -> &'static str {
        match self {
            Self::CpuPerDelivery => "/server/cpu_us_per_delivery",
            Self::ConnectCpu => "/server/connect_cpu_us_per_connection",
            Self::Memory => "/server/rss_bytes_per_connection",
        }
    }

    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::CpuPerDelivery => "us/delivery",
            Self::ConnectCpu => "us/connection",
            Self::Memory => "B/connection",
        }
    }
}

/// A server that speaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Server {
    Ours,
    Uws,
    Ws,
    Floor,
}

impl Server {
    pub(crate) const ALL: [Self; 4] = [Self::Ours, Self::Uws, Self::Ws, Self::Floor];

    /// The server of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|server| server.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Uws => "uws",
            Self::Ws => "ws",
            Self::Floor => "floor",
        }
    }

    /// For the reader of the report.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Ours => "this server, one thread",
            Self::Uws => "uWebSockets.js, native pub/sub, JWT verified by jsonwebtoken",
            Self::Ws => "Node ws, the guide's own code, JWT verified by jsonwebtoken",
            Self::Floor => "bare epoll loop, no JSON, no JWT, one send per member and turn",
        }
    }
}
