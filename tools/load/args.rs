//! The command line of the load tool, parsed once and valid by construction: what `Args` holds can be run as it stands.
//! It knows nothing of sockets or of the protocol.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{CommandFactory, Parser, ValueEnum, error::ErrorKind};

/// What flows once everybody has joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Nothing: connect, join, and hold the connections.
    Idle,
    /// Members publish `reaction` over their WebSocket.
    Ws,
    /// Messages are posted over keep-alive HTTP connections.
    Rest,
    /// Messages are posted to rooms without members.
    Post,
    /// The feed of all durable events is read from its beginning.
    Feed,
}

impl Mode {
    /// The name used on the command line and in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Ws => "ws",
            Self::Rest => "rest",
            Self::Post => "post",
            Self::Feed => "feed",
        }
    }
}

/// Loads a chat server and checks every delivery.
///
/// Opens connections with tokens it mints, joins rooms, publishes by WebSocket or REST, and checks on every member that each
/// publisher's messages come in order, without gap and without double. It ends by itself. Exit code: 0 when every check
/// held, 1 when one did not, 2 for bad arguments or when no connection could be opened.
///
/// The server must accept the tokens (`--secret`) and, for `--mode rest`, the key (`--api-key`), and must not limit rates
/// or connections below what is asked for.
#[derive(Clone, Debug, Parser)]
#[command(name = "load", after_help = EXAMPLES)]
pub struct Args {
    /// Address of the server
    #[arg(long, default_value = "127.0.0.1:3001", value_name = "IP:PORT")]
    pub address: SocketAddr,
    /// Speak TLS; the PEM file of the certificate that the server shows for localhost
    #[arg(long, value_name = "FILE")]
    pub tls: Option<PathBuf>,
    /// HS256 secret that tokens are signed with
    #[arg(long, env = "JWT_SECRET", hide_env_values = true)]
    pub secret: String,
    /// Key sent as X-API-Key in modes rest, post and feed
    #[arg(long, env = "CHAT_API_KEY", hide_env_values = true, default_value = "")]
    pub api_key: String,
    /// Process id of the server, for its CPU time and memory
    #[arg(long)]
    pub pid: Option<u32>,

    /// What flows once everybody has joined
    #[arg(long, value_enum, default_value_t = Mode::Ws)]
    pub mode: Mode,
    /// Members; member i is user `user-<i>` in room i modulo --rooms (none in modes post and feed)
    #[arg(long, default_value_t = 1_000, value_name = "N")]
    pub connections: usize,
    /// Rooms
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub rooms: usize,
    /// Rooms are named by this and a number (letters, digits, `.`, `_` and `-`)
    #[arg(long, default_value = "load-", value_name = "TEXT")]
    pub room_prefix: String,
    /// Source addresses: connections leave from 127.0.0.1 to 127.0.0.K in turn
    #[arg(long, default_value_t = 1, value_name = "K")]
    pub sources: u8,
    /// Connections opening at once
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub opening: usize,
    /// Joins under way at once
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub joining: usize,
    /// Joins per second, once those of --join-first have joined
    #[arg(long, value_name = "R")]
    pub join_rate: Option<f64>,
    /// Members that join before --join-rate applies; what they are sent while the others join is measured
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub join_first: usize,
    /// Check that every member is told who is in its room; the joins end when all have been told of everybody
    #[arg(long)]
    pub presence: bool,
    /// Once joined, all members leave, come back and join again, and memory is read a second time
    #[arg(long = "return")]
    pub returns: bool,

    /// Messages posted to each room before anybody joins it (mode rest, one HTTP connection per room)
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub history: u32,
    /// Members come back: they join with the position behind which there are N of these messages, and must be sent just those
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub recover: u32,

    /// Publishing members per room (mode ws)
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub publishers_per_room: usize,
    /// HTTP connections that post, spread over the rooms (modes rest and post; default one per room)
    #[arg(long, value_name = "N")]
    pub http_connections: Option<usize>,
    /// Messages that a publisher keeps in flight: it sends the next when it has its own one back (mode rest: when it is
    /// answered and the room's first member has it; mode post: when it is answered)
    #[arg(long, default_value_t = 1, value_name = "W")]
    pub window: u32,
    /// Those who post go round the rooms together, until each room has one message (mode post)
    #[arg(long)]
    pub tour: bool,
    /// Messages per second over all publishers, sent on schedule whatever comes back; --window is then ignored
    #[arg(long, value_name = "R")]
    pub rate: Option<f64>,
    /// Sleep until the next message is due, at the price of sending it up to 1 ms late: leaves the CPU to others
    #[arg(long)]
    pub drowsy: bool,
    /// Never sleep while messages flow, so that nobody pays for waking this process up
    #[arg(long, conflicts_with = "drowsy")]
    pub awake: bool,
    /// Stop after so many measured messages per publisher; in mode feed, so many events
    #[arg(long, value_name = "M")]
    pub messages: Option<u32>,
    /// Stop after so many measured seconds (5 when --messages is absent too); in mode idle, hold so long
    #[arg(long, value_name = "S")]
    pub seconds: Option<f64>,
    /// Publish so long before measuring begins
    #[arg(long, default_value_t = 500, value_name = "MS")]
    pub warmup_ms: u64,
    /// Size to aim at for the published JSON (reactions are padded in `emoji`, 4 to 64 bytes; posts in `content`)
    #[arg(long, default_value_t = 100, value_name = "BYTES")]
    pub payload_bytes: usize,

    /// Churners closed and reopened per second while messages flow
    #[arg(long, default_value_t = 0.0, value_name = "RATE")]
    pub churn: f64,
    /// Extra connections for --churn, checked for order and doubles but not for gaps
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub churners: usize,
    /// Of the members, the last N stop reading once all have joined; what they get is not checked, and neither a close for
    /// that (4008) nor the end of their connection is an error: both are counted apart, as is the kernel's memory for TCP
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub stall: usize,

    /// Wait after the joins, before memory is read
    #[arg(long, default_value_t = 500, value_name = "MS")]
    pub settle_ms: u64,
    /// Hold so long after publishing and measure the idle server (modes ws, rest and post)
    #[arg(long, default_value_t = 0.0, value_name = "S")]
    pub idle_seconds: f64,
    /// Keep the connections open so long before the end
    #[arg(long, default_value_t = 0, value_name = "MS")]
    pub linger_ms: u64,
    /// Hard limit on the whole run
    #[arg(long, default_value_t = 300.0, value_name = "S")]
    pub deadline: f64,
    /// Pin this process to a CPU
    #[arg(long, value_name = "CPU")]
    pub pin: Option<usize>,
    /// Name each phase on standard error when it begins
    #[arg(long)]
    pub announce: bool,
    /// Wait for a line on standard input before publishing begins, and for another when all has arrived
    #[arg(long)]
    pub gate: bool,
    /// Print one JSON object on standard output instead of text
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  load --secret S --pid 4711                                   one room of 1,000, one message in flight
  load --secret S --connections 10000 --rooms 100 --sources 4  100 rooms, a publisher each
  load --secret S --api-key K --mode rest --window 16          pipelined posts
  load --secret S --mode idle --connections 19000 --rooms 190 --pid 4711 --seconds 10
  load --secret S --mode idle --joining 1000 --presence        all join at once
  load --secret S --churners 200 --churn 100 --stall 5         while others come, go and hang";

/// Rooms, publishers and counters have a fixed width in the marker that every message carries.
const ROOMS_MAX: usize = 1 << 18;
const PUBLISHERS_PER_ROOM_MAX: usize = 1 << 12;

impl Args {
    /// Parses the process's arguments; prints what is wrong and exits with code 2 otherwise.
    pub fn from_command_line() -> Self {
        let args = Self::parse();
        if let Err(message) = args.validate() {
            Self::command().error(ErrorKind::ValueValidation, message).exit();
        }
        args
    }

    /// Publishing connections over all rooms.
    pub fn publishers(&self) -> usize {
        match self.mode {
            Mode::Idle | Mode::Feed => 0,
            Mode::Ws => self.rooms * self.publishers_per_room,
            Mode::Rest | Mode::Post => self.http_connections.unwrap_or(self.rooms),
        }
    }

    /// The most publishers that any room has.
    pub fn publishers_per_room(&self) -> usize {
        self.publishers().div_ceil(self.rooms)
    }

    /// Whether publishers post over HTTP.
    pub fn posts(&self) -> bool {
        matches!(self.mode, Mode::Rest | Mode::Post)
    }

    /// Connections that speak WebSocket: members and churners.
    pub fn sockets(&self) -> usize {
        self.connections + self.churners
    }

    /// Whether nobody is a member of any room.
    fn is_without_members(&self) -> bool {
        matches!(self.mode, Mode::Post | Mode::Feed)
    }

    /// Measured seconds, where time ends the run.
    pub fn measured_seconds(&self) -> Option<f64> {
        self.seconds.or(match self.messages {
            Some(_) if self.mode != Mode::Idle => None,
            None if self.tour => None,
            _ => Some(5.0),
        })
    }

    fn validate(&self) -> Result<(), String> {
        let positive = [
            ("--connections", if self.is_without_members() { 1 } else { self.connections }),
            ("--rooms", self.rooms),
            ("--sources", usize::from(self.sources)),
            ("--opening", self.opening),
            ("--joining", self.joining),
            ("--publishers-per-room", self.publishers_per_room),
            ("--http-connections", self.http_connections.unwrap_or(1)),
            ("--window", self.window as usize),
            ("--messages", self.messages.unwrap_or(1) as usize),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("{name} must be at least 1"));
        }
        let times = [
            ("--seconds", self.seconds.unwrap_or(1.0)),
            ("--rate", self.rate.unwrap_or(1.0)),
            ("--join-rate", self.join_rate.unwrap_or(1.0)),
            ("--deadline", self.deadline),
        ];
        if let Some((name, _)) = times.iter().find(|(_, v)| !v.is_finite() || *v <= 0.0) {
            return Err(format!("{name} must be a number above 0"));
        }
        let spans = [("--churn", self.churn), ("--idle-seconds", self.idle_seconds)];
        if let Some((name, _)) = spans.iter().find(|(_, v)| !v.is_finite() || *v < 0.0) {
            return Err(format!("{name} must be a number, 0 or above"));
        }
        self.validate_shape()
    }

    fn validate_shape(&self) -> Result<(), String> {
        if self.rooms > ROOMS_MAX || self.publishers_per_room() > PUBLISHERS_PER_ROOM_MAX {
            return Err(format!("at most {ROOMS_MAX} rooms and {PUBLISHERS_PER_ROOM_MAX} publishers in each"));
        }
        let needed = match self.mode {
            Mode::Ws => self.publishers(),
            Mode::Idle | Mode::Rest => self.rooms,
            Mode::Post | Mode::Feed => 0,
        };
        if self.is_without_members() && (self.connections, self.churners) != (0, 0) {
            return Err(format!("--mode {} needs no members: --connections 0", self.mode.name()));
        }
        if self.tour && (self.mode != Mode::Post || self.publishers() > self.rooms) {
            return Err("--tour goes with mode post, and not more connections than rooms".to_owned());
        }
        self.validate_history()?;
        if self.connections < needed + self.stall {
            return Err(format!(
                "--connections {} is too few: {needed} publish or watch a room and {} stall",
                self.connections, self.stall
            ));
        }
        if (self.churn > 0.0) != (self.churners > 0) {
            return Err("--churn and --churners go together".to_owned());
        }
        if self.sources > 1 && !self.address.ip().is_loopback() {
            return Err("--sources needs a server on a loopback address".to_owned());
        }
        if self.sources > 1 && !self.address.is_ipv4() {
            return Err("--sources needs an IPv4 address".to_owned());
        }
        if (self.posts() || self.mode == Mode::Feed) && self.api_key.is_empty() {
            return Err(format!("--mode {} needs --api-key", self.mode.name()));
        }
        if (self.presence || self.returns) && (self.churners > 0 || self.stall > 0) {
            return Err("--presence and --return take members only that stay and read".to_owned());
        }
        if self.returns && self.posts() {
            return Err("--return goes with modes idle and ws".to_owned());
        }
        if self.join_first > self.connections || (self.join_first > 0 && self.join_rate.is_none()) {
            return Err("--join-first is a part of the members and goes with --join-rate".to_owned());
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if self.room_prefix.len() > 64 || !self.room_prefix.bytes().all(plain) {
            return Err("--room-prefix takes up to 64 letters, digits, '.', '_' and '-'".to_owned());
        }
        if self.api_key.bytes().any(|b| b.is_ascii_control()) {
            return Err("--api-key must not hold control characters".to_owned());
        }
        if self.payload_bytes > 60_000 {
            return Err("--payload-bytes is at most 60000".to_owned());
        }
        Ok(())
    }

    fn validate_history(&self) -> Result<(), String> {
        if self.recover > self.history {
            return Err("--recover is a part of --history".to_owned());
        }
        if self.history > 0 && (self.mode != Mode::Rest || self.publishers() != self.rooms) {
            return Err("--history goes with mode rest and one HTTP connection per room".to_owned());
        }
        if self.history > 0 && (self.churners > 0 || self.stall > 0) {
            return Err("--history takes members only that stay and read".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches;

    fn parse(line: &str) -> Result<(), String> {
        // What stands in the environment of the tests is not part of the line.
        let command = Args::command().mut_args(|arg| arg.env(None::<&str>));
        let matches = command.try_get_matches_from(line.split(' ')).map_err(|e| e.to_string())?;
        Args::from_arg_matches(&matches).map_err(|e| e.to_string())?.validate()
    }

    #[test]
    fn shapes_that_cannot_run_are_refused() {
        assert_eq!(parse("load --secret s"), Ok(()));
        assert_eq!(parse("load --secret s --api-key k --mode post --connections 0"), Ok(()));
        assert_eq!(
            parse("load --secret s --api-key k --mode post --connections 0 --rooms 9 --http-connections 4 --tour"),
            Ok(())
        );
        assert_eq!(parse("load --secret s --api-key k --mode rest --history 60 --recover 50"), Ok(()));
        assert_eq!(parse("load --secret s --api-key k --mode feed --connections 0"), Ok(()));
        assert_eq!(parse("load --secret s --presence --join-first 10 --join-rate 5 --return"), Ok(()));
        for line in [
            "load --secret s --connections 0",
            "load --secret s --connections 3 --rooms 4",
            "load --secret s --connections 8 --rooms 4 --publishers-per-room 2 --stall 1",
            "load --secret s --mode rest",
            "load --secret s --api-key k --mode post",
            "load --secret s --api-key k --mode feed",
            "load --secret s --tour",
            "load --secret s --history 5",
            "load --secret s --api-key k --mode rest --history 5 --recover 6",
            "load --secret s --api-key k --mode rest --history 5 --rooms 2 --http-connections 1",
            "load --secret s --presence --stall 1",
            "load --secret s --join-first 10",
            "load --secret s --churn 5",
            "load --secret s --seconds -1",
            "load --secret s --rate 0",
            "load --secret s --sources 2 --address 10.0.0.1:80",
            "load --secret s --room-prefix a/b",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
