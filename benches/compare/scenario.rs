//! What is measured, and on whom: the tables of scenarios and servers.
//!
//! A scenario is what is run; a figure is what comes of it, and its name is found once in the table.

use crate::store_tables::STORE_SCENARIOS;

/// One situation, in which servers are measured in turn.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// As given on the command line.
    pub(crate) name: &'static str,
    /// For the reader of the report.
    pub(crate) what: &'static str,
    /// Who takes part.
    pub(crate) servers: &'static [Server],
    /// How it is run.
    pub(crate) kind: Kind,
    /// What comes of it.
    pub(crate) figures: &'static [Figure],
    /// Rounds at most, however many are asked for: some take long.
    pub(crate) rounds_max: usize,
    /// Rounds at most of the Node `ws` server, which takes longest.
    pub(crate) rounds_max_ws: usize,
}

/// Scenarios are the same if their names are.
impl PartialEq for Scenario {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// How a scenario is run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// One load against one server.
    Load(Load),
    /// Everybody joins one room: three sizes at once, and then the largest over a few seconds.
    Gather,
    /// Many small rooms, first alone, then beside a large one.
    Fair,
    /// Many small rooms, first alone, then beside attackers.
    Hostile,
    /// A large room, first while everybody reads, then while some do not.
    Slow,
    /// Two loads, each while `strace` counts the server's system calls.
    SystemCalls,
    /// Something that the store does.
    Store(StoreKind),
}

/// What the store does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StoreKind {
    /// As many posts as it takes, and half of them; a bare loop beside the same load.
    Durable,
    /// So many rooms of members that come back, and that come for the first time.
    Recovery { rooms: u32 },
    /// Very many rooms that nobody uses any more.
    IdleRooms,
    /// The feed is read beside a writer.
    Feed,
}

/// What the load generator is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Connections opened; they are spread evenly over the rooms.
    pub(crate) connections: u32,
    pub(crate) rooms: u32,
    /// How messages are published, as the load generator calls it.
    pub(crate) mode: &'static str,
    /// Messages in flight per publisher.
    pub(crate) window: u32,
    pub(crate) time: Time,
    /// Over TLS.
    pub(crate) tls: bool,
    /// Further arguments.
    pub(crate) extra: &'static [&'static str],
    /// Further arguments for this server alone.
    pub(crate) extra_ours: &'static [&'static str],
}

/// How long a load lasts once all have joined.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Time {
    /// As long as one publishes in this comparison.
    Publish,
    /// What is measured is over when nothing but idling is left.
    Over,
    /// So many seconds.
    Seconds(f64),
}

/// A number that comes of a scenario; less is better for each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// Where the load generator's JSON has it; empty if it is made of several runs.
    pub(crate) pointer: &'static str,
    /// What the pointer's value is multiplied by to have the unit.
    pub(crate) scale: f64,
}

pub(crate) const fn figure(name: &'static str, unit: &'static str, pointer: &'static str) -> Figure {
    Figure { name, unit, pointer, scale: 1.0 }
}

pub(crate) const fn delivery(name: &'static str) -> Figure {
    figure(name, "us/delivery", "/server/cpu_us_per_delivery")
}

pub(crate) const fn load(connections: u32, rooms: u32, mode: &'static str, window: u32) -> Load {
    Load { connections, rooms, mode, window, time: Time::Publish, tls: false, extra: &[], extra_ours: &[] }
}

const fn idle(connections: u32, rooms: u32) -> Load {
    Load { time: Time::Over, ..load(connections, rooms, "idle", 1) }
}

pub(crate) const fn scenario(
    name: &'static str,
    what: &'static str,
    servers: &'static [Server],
    kind: Kind,
    figures: &'static [Figure],
) -> Scenario {
    Scenario { name, what, servers, kind, figures, rounds_max: usize::MAX, rounds_max_ws: 2 }
}

const ALL: &[Server] = &Server::ALL;
pub(crate) const OURS: &[Server] = &[Server::Ours];

/// The scenarios without a store.
static SCENARIOS: [Scenario; 20] = [
    Scenario {
        rounds_max_ws: usize::MAX,
        ..scenario(
            "F1",
            "1 room, 1,000 members, one publisher, 1 reaction in flight",
            ALL,
            Kind::Load(load(1_000, 1, "ws", 1)),
            &[delivery("F1")],
        )
    },
    Scenario {
        rounds_max_ws: usize::MAX,
        ..scenario(
            "F16",
            "1 room, 1,000 members, one publisher, 16 reactions in flight",
            ALL,
            Kind::Load(load(1_000, 1, "ws", 16)),
            &[delivery("F16")],
        )
    },
    Scenario {
        rounds_max: 21,
        ..scenario(
            "R100",
            "100 rooms of 100 members, a publisher in each, 1 reaction in flight",
            ALL,
            Kind::Load(load(10_000, 100, "ws", 1)),
            &[delivery("R100")],
        )
    },
    scenario(
        "P1",
        "1 room, 1,000 members, POST on one keep-alive connection, 1 in flight",
        ALL,
        Kind::Load(load(1_000, 1, "rest", 1)),
        &[delivery("P1")],
    ),
    scenario(
        "P16",
        "1 room, 1,000 members, POST on one keep-alive connection, 16 pipelined",
        ALL,
        Kind::Load(load(1_000, 1, "rest", 16)),
        &[delivery("P16")],
    ),
    scenario(
        "post",
        "POST to a room without members, 64 connections, 16 pipelined on each",
        &[Server::Ours, Server::Uws, Server::Floor],
        Kind::Load(Load { extra: &["--http-connections", "64"], ..load(0, 1, "post", 16) }),
        &[figure("post", "us/request", "/server/cpu_us_per_published")],
    ),
    scenario(
        "connect",
        "4,000 connections accepted, upgraded and greeted, 64 opening at a time",
        ALL,
        Kind::Load(idle(4_000, 40)),
        &[figure("connect", "us/connection", "/server/connect_cpu_us_per_connection")],
    ),
    Scenario {
        rounds_max: 9,
        ..scenario(
            "storm",
            "19,000 connections join 190 rooms at once; from the first join sent until each member has been told of all \
             100 of its room; then all leave, come back and join again",
            &[Server::Ours, Server::Uws, Server::Floor],
            Kind::Load(Load {
                extra: &["--joining", "19000", "--presence", "--settle-ms", "3000"],
                extra_ours: &["--return"],
                ..idle(19_000, 190)
            }),
            &[
                Figure { scale: 1e-3, ..figure("storm", "ms of CPU", "/server/join_cpu_us_total") },
                figure("memory-storm", "B/connection", "/server/rss_bytes_per_connection"),
                figure("memory-return", "B/connection", "/server/rss_bytes_per_connection_after_return"),
            ],
        )
    },
    Scenario {
        rounds_max: 3,
        ..scenario(
            "gather",
            "2,500, 5,000 and 10,000 connections join one room at once: bytes that a member receives; then 9,000 join \
             1,000 within 5 s: the most that one of the 1,000 receives",
            OURS,
            Kind::Gather,
            &[
                figure("gather-2500", "B/member", ""),
                figure("gather-5000", "B/member", ""),
                figure("gather-10000", "B/member", ""),
                figure("gather-growth", "x", ""),
                figure("gather-rate", "B/s", "/join/bytes_per_s_max"),
            ],
        )
    },
    Scenario {
        rounds_max: 3,
        ..scenario(
            "memory",
            "19,000 connections open, joined to 190 rooms, idle for three seconds: growth of RSS",
            ALL,
            Kind::Load(Load { extra: &["--settle-ms", "3000"], ..idle(19_000, 190) }),
            &[figure("memory", "B/connection", "/server/rss_bytes_per_connection")],
        )
    },
    Scenario {
        rounds_max: 5,
        ..scenario(
            "idle",
            "19,000 joined connections that do nothing but answer pings, one each in 30 s; from the second ping on, since \
             the first is acknowledged by a packet of its own",
            &[Server::Ours, Server::Floor],
            Kind::Load(Load { time: Time::Seconds(31.0), extra: &["--settle-ms", "31000"], ..idle(19_000, 190) }),
            &[figure("idle", "% of a core", "/server/idle_cpu_percent")],
        )
    },
    Scenario {
        rounds_max: 9,
        ..scenario(
            "F1-tls",
            "F1 over TLS 1.3, ECDSA P-256, a record for each delivery",
            &[Server::Ours, Server::Uws],
            Kind::Load(Load { tls: true, ..load(1_000, 1, "ws", 1) }),
            &[delivery("F1-tls")],
        )
    },
    Scenario {
        rounds_max: 3,
        ..scenario(
            "memory-tls",
            "5,000 connections over TLS open, joined to 50 rooms, idle: growth of RSS",
            &[Server::Ours, Server::Uws],
            Kind::Load(Load { tls: true, ..idle(5_000, 50) }),
            &[
                figure("memory-tls", "B/connection", "/server/rss_bytes_per_connection"),
                figure("connect-tls", "us/connection", "/server/connect_cpu_us_per_connection"),
            ],
        )
    },
    scenario(
        "F1x2",
        "F1 with two threads, and with one, all on one core",
        &[Server::Ours, Server::OursTwo],
        Kind::Load(load(1_000, 1, "ws", 1)),
        &[delivery("F1x2")],
    ),
    scenario(
        "F1x4",
        "F1 with four threads, and with one, all on one core",
        &[Server::Ours, Server::OursFour],
        Kind::Load(load(1_000, 1, "ws", 1)),
        &[delivery("F1x4")],
    ),
    Scenario {
        rounds_max: 3,
        ..scenario(
            "fair",
            "1,000 rooms of 5 with 1 message a second in each, alone and beside a room of 10,000 with 5 messages a \
             second, whose load runs only when the core is idle: 99th percentile of the small rooms' latency",
            OURS,
            Kind::Fair,
            &[figure("fair-alone", "us", ""), figure("fair-beside", "us", ""), figure("fair", "x", "")],
        )
    },
    Scenario {
        rounds_max: 3,
        ..scenario(
            "hostile",
            "the same 1,000 rooms with rates on, alone and beside slow heads, floods of tiny frames, pings and fragments, \
             compressed bombs, bad tokens and bad requests: 99th percentile of their latency",
            OURS,
            Kind::Hostile,
            &[figure("hostile-alone", "us", ""), figure("hostile-beside", "us", ""), figure("hostile", "x", "")],
        )
    },
    Scenario {
        rounds_max: 3,
        ..scenario(
            "slow",
            "a room of 5,000, 5 posts of 7.5 kB a second, while all read and while 1,000 do not and are closed for it: 99th \
             percentile of the latency of those who read; memory by the bound that check prints, and the kernel's by slow reader",
            OURS,
            Kind::Slow,
            &[
                figure("slow-reading", "us", ""),
                figure("slow-beside", "us", ""),
                figure("slow", "x", ""),
                figure("slow-process", "of bound", ""),
                figure("slow-kernel", "of bound", ""),
                figure("slow-reader", "B/reader", ""),
            ],
        )
    },
    Scenario {
        rounds_max: 3,
        ..scenario(
            "calls",
            "system calls of all threads, counted by strace, in F1 and F16, from the first message to the last delivery",
            OURS,
            Kind::SystemCalls,
            &[
                figure("calls-F1", "calls/delivery", ""),
                figure("calls-F16", "calls/delivery", ""),
                figure("epoll_ctl", "calls", ""),
            ],
        )
    },
    Scenario {
        rounds_max: 2,
        ..scenario(
            "fair-uws",
            "fair, for uWebSockets.js",
            &[Server::Uws],
            Kind::Fair,
            &[figure("fair-alone", "us", ""), figure("fair-beside", "us", ""), figure("fair", "x", "")],
        )
    },
];

impl Scenario {
    /// The scenario of this name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        Self::all().find(|scenario| scenario.name == name)
    }

    /// All, in the order in which they run.
    pub(crate) fn all() -> impl Iterator<Item = &'static Self> {
        SCENARIOS.iter().chain(&STORE_SCENARIOS)
    }

    /// Whether it runs unless others are named.
    pub(crate) fn is_default(&self) -> bool {
        self.servers.contains(&Server::Ours)
    }

    /// How many rounds at most a server takes part in.
    pub(crate) fn rounds_max(&self, server: Server) -> usize {
        if server == Server::Ws { self.rounds_max.min(self.rounds_max_ws) } else { self.rounds_max }
    }
}

/// A server that speaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Server {
    Ours,
    Uws,
    Ws,
    Floor,
    OursTwo,
    OursFour,
    OursStored,
}

impl Server {
    /// Those that are compared. This server with more threads takes part where it is what is measured.
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
            Self::OursTwo => "ours-2",
            Self::OursFour => "ours-4",
            Self::OursStored => "ours-stored",
        }
    }

    /// For the reader of the report.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Ours => "this server, one thread",
            Self::Uws => "uWebSockets.js, native pub/sub, JWT verified by jsonwebtoken",
            Self::Ws => "Node ws, the guide's own code, JWT verified by jsonwebtoken",
            Self::Floor => "bare epoll loop, no JSON, no JWT, one send of all that a member lacks",
            Self::OursTwo => "this server, two threads",
            Self::OursFour => "this server, four threads",
            Self::OursStored => "this server, one thread, with a store on disk",
        }
    }

    /// For the heading of a table or chart.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Ours => "this server",
            Self::Uws => "uWebSockets.js",
            Self::Ws => "Node ws",
            Self::Floor => "floor",
            Self::OursTwo => "2 threads",
            Self::OursFour => "4 threads",
            Self::OursStored => "stored",
        }
    }

    /// Threads of this server; nothing of another.
    pub(crate) fn threads(self) -> Option<usize> {
        match self {
            Self::Ours | Self::OursStored => Some(1),
            Self::OursTwo => Some(2),
            Self::OursFour => Some(4),
            Self::Uws | Self::Ws | Self::Floor => None,
        }
    }
}
