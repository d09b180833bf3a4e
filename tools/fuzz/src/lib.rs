//! The fuzz targets: each is a function that takes any bytes and panics when something does not hold.
//!
//! Owns what is compared with what. Knows nothing of the fuzzer, so that `tests/corpus.rs` replays the committed corpus
//! with the same functions, on a stable compiler. Invariant: a run depends on its bytes only, never on a clock, a random
//! number or an earlier run.

pub mod client_json;
pub mod configuration;
pub mod frames;
pub mod http_head;
pub mod inflate;
pub mod input;
pub mod jwks;
pub mod origins;
pub mod peer_bytes;
pub mod proxy_header;
pub mod rest_body;
pub mod server_frame;
pub mod shard;
pub mod token;

/// One target.
pub struct Target {
    /// Its name in `targets/` and in `corpus/`.
    pub name: &'static str,
    /// What it does with an input.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "client_json", run: client_json::run },
    Target { name: "configuration", run: configuration::run },
    Target { name: "frames", run: frames::run },
    Target { name: "http_head", run: http_head::run },
    Target { name: "inflate", run: inflate::run },
    Target { name: "jwks", run: jwks::run },
    Target { name: "origins", run: origins::run },
    Target { name: "proxy_header", run: proxy_header::run },
    Target { name: "rest_body", run: rest_body::run },
    Target { name: "shard", run: shard::run },
    Target { name: "token", run: token::run },
];
