//! An echo over HTTP and WebSocket on the server's own event loop, for conformance suites.
//!
//! A WebSocket gets each message back, and any other HTTP request is answered 200 with its body. What is tested so is
//! everything of the server but the chat; see `sizland_chat::chat::echo`.

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;

use clap::Parser;

use sizland_chat::chat::echo;
use sizland_chat::server;

/// Echoes WebSocket messages and HTTP bodies until SIGTERM or SIGINT.
#[derive(Parser)]
struct Arguments {
    /// The port to listen on; 0 is any free one.
    #[arg(long, default_value_t = 9001)]
    port: u16,
    /// The address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "ADDRESS")]
    host: IpAddr,
}

fn main() -> ExitCode {
    let Arguments { port, host } = Arguments::parse();
    let mut config = echo::config();
    (config.listen, config.port) = (host, port);
    match server::run_announced(config, |address| println!("listening on {address}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {error}");
            ExitCode::from(2)
        }
    }
}
