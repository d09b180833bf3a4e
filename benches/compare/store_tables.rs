//! What the store does, and what it has to reach: the tables of its scenarios and targets.

use crate::scenario::Server::{Ours, OursStored};
use crate::scenario::{Figure, Kind, Load, OURS, Scenario, StoreKind, delivery, figure, load, scenario};
use crate::target::{Rule, Target, value};

/// All scenarios of the store, in the order in which they run.
pub(crate) static STORE_SCENARIOS: [Scenario; 7] = [
    Scenario {
        rounds_max: 5,
        ..scenario(
            "durable",
            "POST of 100 bytes to a store on disk, 64 connections pipelining 4, nothing pinned (post-us: time per POST); a \
             bare loop that commits the same rows in batches of 256 while the load generator posts as often to it \
             (row-us: time per row; commit-256: a commit); half as many posts a second, the same to the bare loop when it \
             commits and answers those alone (bare-p99), and commits of one row by the bare loop with nothing beside",
            OURS,
            Kind::Store(StoreKind::Durable),
            &[
                figure("post-us", "us/POST", ""),
                figure("row-us", "us/row", ""),
                figure("post/row", "x", ""),
                figure("post-p99", "us", ""),
                figure("commit", "us", ""),
                figure("commit-p99", "us", ""),
                figure("p99/commit", "x", ""),
                figure("commit-256", "us", ""),
                figure("p99/commit-256", "x", ""),
                figure("bare-p99", "us", ""),
                figure("p99/bare-p99", "x", ""),
                figure("load-cpu", "x", ""),
            ],
        )
    },
    scenario(
        "stored-F1",
        "F1 with a store on disk, and without; the load never sleeps, or the server would pay for waking it behind each commit",
        &[Ours, OursStored],
        Kind::Load(awake(1)),
        &[delivery("stored-F1")],
    ),
    scenario(
        "stored-F16",
        "F16 with a store on disk, and without; the load never sleeps",
        &[Ours, OursStored],
        Kind::Load(awake(16)),
        &[delivery("stored-F16")],
    ),
    recovery(
        "recovery-100",
        "10,000 come back to 100 rooms at once and recover 50 messages each from memory, and join for the first time",
        100,
        &[
            figure("recover-100", "us/client", ""),
            figure("join-100", "us/client", ""),
            figure("recover/join-100", "x", ""),
        ],
    ),
    recovery(
        "recovery-1",
        "the same, all of them in one room",
        1,
        &[figure("recover-1", "us/client", ""), figure("join-1", "us/client", ""), figure("recover/join-1", "x", "")],
    ),
    Scenario {
        rounds_max: 1,
        ..scenario(
            "idle-rooms",
            "a message to each of 100,000 rooms, which nobody uses from then on, with a store on disk: RSS in all, and \
             its growth",
            OURS,
            Kind::Store(StoreKind::IdleRooms),
            &[
                figure("idle-rooms", "MiB", ""),
                figure("idle-rooms-growth", "MiB", ""),
                figure("rooms-before-idle", "MiB", ""),
            ],
        )
    },
    Scenario {
        rounds_max: 3,
        ..scenario(
            "feed",
            "50,000 events read through GET /api/chat/events beside a writer that posts at half of what it can: time per \
             event, and by what the writer's time per post grows",
            OURS,
            Kind::Store(StoreKind::Feed),
            &[
                figure("feed", "us/event", ""),
                figure("writer-slower", "x", ""),
                figure("writer-p99-alone", "us", ""),
                figure("writer-p99-beside", "us", ""),
            ],
        )
    },
];

/// All targets of the store.
pub(crate) static STORE_TARGETS: [Target; 10] = [
    // Half as many posts a second as the bare loop commits rows.
    value("post/row", 2.0),
    // By the commit of one row, and by that of the batches of the bare loop beside the load.
    value("p99/commit", 10.0),
    value("p99/commit-256", 10.0),
    Target { figure: "stored-F1", rule: Rule::Ratio(OursStored, Ours), at_most: 1.10 },
    Target { figure: "stored-F16", rule: Rule::Ratio(OursStored, Ours), at_most: 1.10 },
    value("recover/join-100", 3.0),
    value("recover/join-1", 3.0),
    value("idle-rooms-growth", 64.0),
    // 20,000 a second.
    value("feed", 50.0),
    value("writer-slower", 1.10),
];

const fn awake(window: u32) -> Load {
    Load { extra: &["--awake"], ..load(1_000, 1, "ws", window) }
}

const fn recovery(name: &'static str, what: &'static str, rooms: u32, figures: &'static [Figure]) -> Scenario {
    Scenario { rounds_max: 5, ..scenario(name, what, OURS, Kind::Store(StoreKind::Recovery { rooms }), figures) }
}
