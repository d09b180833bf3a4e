//! The command line: arguments, then a configuration, then what the library does with it.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Parser, Subcommand, ValueEnum};

use sizland_chat::auth::{Role, api_keys};
use sizland_chat::config::{Config, Inputs, Store, random_hex};
use sizland_chat::error::Error;
use sizland_chat::wire::value::Id;
use sizland_chat::work::backup::backup_to;
use sizland_chat::work::certificates::Loaded;
use sizland_chat::work::import::Imported;
use sizland_chat::work::transfer::{Exported, export_to, import_from};
use sizland_chat::{log, server};

/// Real-time chat: WebSocket for frontends, REST for backends.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves until SIGTERM or SIGINT; reads again what can be on SIGHUP.
    Serve(ServeArguments),
    /// Prints a token, signed with JWT_SECRET.
    Token(TokenArguments),
    /// Makes an API key, and prints it with the line for CHAT_API_KEYS_FILE that has only its SHA-256.
    ApiKey(ApiKeyArguments),
    /// Validates the configuration and prints the one in force and the bound on memory.
    Check(ServeArguments),
    /// Copies the store to a new file, also while a server uses it.
    Backup(BackupArguments),
    /// Writes what the store keeps as lines of JSON, also while a server uses it.
    Export(ExportArguments),
    /// Reads lines of JSON into the store, which no server may be using.
    Import(ImportArguments),
}

#[derive(Args)]
struct ServeArguments {
    #[command(flatten)]
    source: SourceArguments,
    /// The port of WebSocket and REST (WS_PORT).
    #[arg(long)]
    port: Option<String>,
    /// The address to listen on (CHAT_LISTEN).
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Threads that serve connections (CHAT_THREADS).
    #[arg(long, value_name = "COUNT")]
    threads: Option<String>,
}

#[derive(Args)]
struct TokenArguments {
    #[command(flatten)]
    source: SourceArguments,
    /// The user that the token is for; only a service may have none.
    #[arg(long, value_name = "ID", required_unless_present = "role")]
    user: Option<String>,
    /// How long the token is good for: a number with s, m, h or d.
    #[arg(long, default_value = "1h", value_parser = parse_ttl)]
    ttl: Duration,
    /// The rights that the token grants.
    #[arg(long, value_enum, default_value = "user")]
    role: RoleArgument,
}

#[derive(Args)]
struct ApiKeyArguments {
    /// What the key is called in configuration and log.
    #[arg(default_value = api_keys::DEFAULT_NAME)]
    name: String,
}

#[derive(Args)]
struct BackupArguments {
    #[command(flatten)]
    source: SourceArguments,
    /// Where the copy is to be; there must be no such file.
    file: PathBuf,
}

#[derive(Args)]
struct ExportArguments {
    #[command(flatten)]
    source: SourceArguments,
    /// Where the lines are to be; there must be no such file. Standard output without it.
    file: Option<PathBuf>,
}

#[derive(Args)]
struct ImportArguments {
    #[command(flatten)]
    source: SourceArguments,
    /// Where the lines are; - is standard input.
    file: PathBuf,
}

#[derive(Args)]
struct SourceArguments {
    /// Needs no configuration: makes secrets for this run, listens on 127.0.0.1.
    #[arg(long)]
    dev: bool,
    /// The TOML file to read (CHAT_CONFIG).
    #[arg(long, value_name = "FILE")]
    config: Option<String>,
    /// Sets any key of the documentation.
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    set: Vec<(String, String)>,
}

#[derive(Clone, Copy, ValueEnum)]
enum RoleArgument {
    User,
    Moderator,
    Service,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Serve(arguments) => serve(arguments),
        Command::Token(arguments) => token(arguments),
        Command::ApiKey(arguments) => api_key(&arguments),
        Command::Check(arguments) => check(arguments),
        Command::Backup(arguments) => backup(arguments),
        Command::Export(arguments) => export(arguments),
        Command::Import(arguments) => import(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sizland-chat: {error}");
            ExitCode::from(2)
        }
    }
}

fn serve(arguments: ServeArguments) -> Result<(), Error> {
    let config = arguments.load()?;
    let _guard = log::init(config.log)?;
    server::run(config)
}

fn token(arguments: TokenArguments) -> Result<(), Error> {
    let config = arguments.source.load(Vec::new())?;
    if config.generated.jwt_secret.is_some() {
        let key = "JWT_SECRET".to_owned();
        let accepted = "give the secret of the server that the token is for".to_owned();
        return Err(Error::Missing { key, accepted });
    }
    let wrong = |reason: &str| Error::Argument { reason: reason.to_owned() };
    let user = match arguments.user.as_deref() {
        Some(text) => Some(Id::from_text(text).ok_or_else(|| wrong("--user: give 1 to 128 bytes"))?),
        None => None,
    };
    let role = arguments.role.role();
    if user.is_none() && role != Role::Service {
        return Err(wrong("--user: only a service may have none"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let token = config.credentials.keys.mint(user.as_ref(), role, arguments.ttl, now_ms);
    let token = token.ok_or_else(|| wrong("tokens are signed with JWT_SECRET, which is not set or not allowed"))?;
    print(&format!("{token}\n"))
}

fn api_key(ApiKeyArguments { name }: &ApiKeyArguments) -> Result<(), Error> {
    if !api_keys::is_name(name) {
        let reason = "NAME: give 1 to 64 of the letters a to z, digits, -, _ and .".to_owned();
        return Err(Error::Argument { reason });
    }
    let key = random_hex::<32>()?;
    print(&format!("key:  {key}\nline: {}\n", api_keys::hashed(name, key.as_bytes())))
}

fn check(arguments: ServeArguments) -> Result<(), Error> {
    let config = arguments.load()?;
    let tls = config.tls.as_ref().map(Loaded::read).transpose()?;
    let mut report = config.report();
    if let Some(loaded) = tls {
        report.push_str(&format!("\nTLS certificate\n  valid until {}\n", loaded.end_text()));
        report.extend(loaded.warning.map(|warning| format!("  {warning}\n")));
    }
    print(&report)
}

fn backup(arguments: BackupArguments) -> Result<(), Error> {
    let store = arguments.source.load_store()?;
    let bytes = backup_to(&store, &arguments.file)?;
    print(&format!("{}: {bytes} bytes\n", arguments.file.display()))
}

fn export(arguments: ExportArguments) -> Result<(), Error> {
    let store = arguments.source.load_store()?;
    let Exported { events, others } = export_to(&store, arguments.file.as_deref())?;
    // Standard output may be the export.
    eprintln!("{events} events, {others} other lines");
    Ok(())
}

fn import(arguments: ImportArguments) -> Result<(), Error> {
    let store = arguments.source.load_store()?;
    let Imported { kept, skipped } = import_from(&store, &arguments.file)?;
    print(&format!("{kept} lines kept, {skipped} were there already\n"))
}

impl ServeArguments {
    fn load(self) -> Result<Config, Error> {
        let given = [("WS_PORT", self.port), ("CHAT_LISTEN", self.listen), ("CHAT_THREADS", self.threads)];
        let given = given.into_iter();
        let flags = given.filter_map(|(key, value)| Some((key.to_owned(), value?)));
        self.source.load(flags.collect())
    }
}

impl SourceArguments {
    fn load(self, flags: Vec<(String, String)>) -> Result<Config, Error> {
        let mut all = self.set;
        all.extend(flags);
        all.extend(self.config.map(|path| ("CHAT_CONFIG".to_owned(), path)));
        Config::load(&Inputs::of_process(self.dev, all)?)
    }

    fn load_store(self) -> Result<Store, Error> {
        let mut all = self.set;
        all.extend(self.config.map(|path| ("CHAT_CONFIG".to_owned(), path)));
        Config::load_store(&Inputs::of_process(self.dev, all)?)
    }
}

impl RoleArgument {
    fn role(self) -> Role {
        match self {
            RoleArgument::User => Role::User,
            RoleArgument::Moderator => Role::Moderator,
            RoleArgument::Service => Role::Service,
        }
    }
}

fn print(text: &str) -> Result<(), Error> {
    let written = std::io::stdout().write_all(text.as_bytes());
    written.map_err(|source| Error::System { action: "write to standard output", source })
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("give KEY=VALUE")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds = match &text[digits.len()..] {
        "" | "s" => Some(1),
        "m" => Some(60),
        "h" => Some(60 * 60),
        "d" => Some(24 * 60 * 60),
        _ => None,
    };
    let count = digits.parse::<u32>().ok();
    let ttl = seconds.zip(count).filter(|(_, count)| *count > 0);
    let (seconds, count) = ttl.ok_or("give a number with s, m, h or d, such as 30m")?;
    Ok(Duration::from_secs(seconds * u64::from(count)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn times_to_live() {
        for (text, seconds) in [("90", 90), ("30s", 30), ("15m", 900), ("1h", 3600), ("7d", 604_800)] {
            assert_eq!(parse_ttl(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "h", "0", "0s", "1w", "-1h", "1.5h", "1 h", "99999999999s", "1é"] {
            assert!(parse_ttl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pairs_may_hold_the_sign() {
        assert_eq!(parse_pair("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert!(parse_pair("A").is_err());
    }
}
