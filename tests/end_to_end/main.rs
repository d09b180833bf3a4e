//! End-to-end tests: the real binary on a free port, and clients that know only the contract.
//!
//! The tests own nothing of the server's code and never look inside it. They wait for events, with a deadline that only a
//! failure reaches, and leave no process behind.

mod certificates;
mod client;
mod http_client;
mod live_room;
mod proxy;
mod server;
#[path = "../signing/mod.rs"]
mod signing;
mod store_folder;
mod stream;

mod access;
mod access_asked;
mod address_limits;
mod behind_proxy;
mod churn;
mod commands;
mod deflate;
mod denials;
mod echo;
mod edits;
mod erase;
mod events;
mod feed;
mod history;
mod hostile;
mod hostile_words;
mod http;
mod http_conformance;
mod http_table;
mod key_sets;
mod lifecycle;
mod limits;
mod outbox;
mod presence;
mod proxied;
mod public_keys;
mod rates;
mod reactions;
mod read_state;
mod recovery;
mod refs;
mod rest;
mod rest_order;
mod secrets;
mod seed;
mod sockets;
mod start;
mod store_faults;
mod store_files;
mod tls;
mod tokens;
mod typing;
mod users;
mod websocket;
