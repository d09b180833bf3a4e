//! The configuration: parsed once, valid by construction.
//!
//! Owns the precedence flag, environment, `.env`, TOML file, default; every limit, with its unit in
//! its name; and what is printed about it. Knows nothing about what the values are used for. A
//! [`Config`] that exists is consistent, and no secret is ever in what it prints, except by
//! [`Generated`], which `--dev` exists to print.

mod dotenv;
mod limits;
mod memory;
mod open_files;
mod origins;
mod settings;
mod source;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use crate::access::{Mode, Rules};
use crate::auth::{ApiKey, Keys};
use crate::error::Error;
use crate::log::LogConfig;

pub use limits::{LimitRow, Limits};
pub use memory::*;
pub use open_files::{FILES_RESERVED, hard_limit, raise_limit};
pub use origins::Origins;
pub use settings::{Setting, TABLE as SETTINGS, table_markdown as settings_markdown};
pub use source::{Inputs, Source};

use settings::*;
use source::Layers;

/// Least bytes of `JWT_SECRET` outside of `--dev`.
const SECRET_BYTES_MIN: usize = 32;
/// Least bytes of `CHAT_API_KEY`.
const API_KEY_BYTES_MIN: usize = 16;

/// Who answers what connections send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Service {
    /// The chat.
    Chat,
    /// An echo, for conformance suites. No setting leads to it: its configuration is made by
    /// [`echo::config`](crate::chat::echo::config).
    Echo,
}

/// Where messages are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Store {
    /// Nowhere: a room remembers its latest events, and no more.
    None,
    /// In an embedded database that ends with the process.
    Memory,
    /// In an embedded database in this file.
    File(PathBuf),
}

/// Everything that the server is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who answers.
    pub service: Service,
    /// The address to listen on.
    pub listen: IpAddr,
    /// The port; 0 is any free one.
    pub port: u16,
    /// Threads that serve connections, at least 1.
    pub threads: usize,
    /// How tokens are verified.
    pub keys: Keys,
    /// What a backend sends as `X-API-Key`, if it may.
    pub api_key: Option<ApiKey>,
    /// Web pages that may connect.
    pub origins: Origins,
    /// Who may enter which room.
    pub access: Rules,
    /// Where messages are kept.
    pub store: Store,
    /// Whether `/readyz` answers 503 while the store fails.
    pub ready_requires_store: bool,
    /// Whether there are rate limits.
    pub rates: bool,
    /// Whether permessage-deflate is negotiated with clients that offer it.
    pub deflate: bool,
    /// Whether a connection closes when its token expires.
    pub enforce_expiry: bool,
    /// Whether this is a run for development.
    pub dev: bool,
    /// Every number that bounds the server.
    pub limits: Limits,
    /// What is logged and how.
    pub log: LogConfig,
    /// What `--dev` made for this run.
    pub generated: Generated,
    effective: Vec<Effective>,
}

/// Secrets that `--dev` made for this run because none were configured.
#[derive(Clone, Default)]
pub struct Generated {
    /// The secret of tokens.
    pub jwt_secret: Option<String>,
    /// The API key.
    pub api_key: Option<String>,
}

impl fmt::Debug for Generated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generated").finish_non_exhaustive()
    }
}

/// One value that is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The key.
    pub key: String,
    /// The value, masked if secret.
    pub value: String,
    /// Where it came from.
    pub source: Source,
}

impl Config {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// The first key or value that is wrong.
    pub fn load(inputs: &Inputs) -> Result<Config, Error> {
        let layers = Layers::collect(inputs)?;
        let mut reader = Reader { layers: &layers, effective: Vec::new() };
        let mut generated = Generated::default();
        let mut keys = reader.keys(inputs.dev, &mut generated)?;
        let port_key = match layers.find(WS_PORT.key) {
            None if layers.find(PORT.key).is_some() => PORT,
            _ => WS_PORT,
        };
        let port = reader.read(port_key, WS_PORT.default, |text| decimal(text)?.parse().ok())?;
        let api_key = reader.api_key(inputs.dev, &mut generated)?;
        reader.read(CHAT_CONFIG, "", |_| Some(()))?;
        let listen = if inputs.dev { "127.0.0.1" } else { CHAT_LISTEN.default };
        let listen = reader.read(CHAT_LISTEN, listen, |text| text.parse().ok())?;
        let cores = inputs.cores.clamp(1, 256).to_string();
        let threads = reader.read(CHAT_THREADS, &cores, |text| {
            let threads = decimal(text)?.parse().ok()?;
            (1..=256).contains(&threads).then_some(threads)
        })?;
        let store = if inputs.dev { "memory" } else { CHAT_STORE.default };
        let store = reader.read(CHAT_STORE, store, store_setting)?;
        let ready = CHAT_READY_REQUIRES_STORE;
        let ready_requires_store = reader.read(ready, ready.default, on_or_off)?;
        let rates = reader.read(CHAT_RATES, CHAT_RATES.default, on_or_off)?;
        let deflate = reader.read(CHAT_DEFLATE, CHAT_DEFLATE.default, on_or_off)?;
        let expiry = CHAT_ENFORCE_EXPIRY;
        let enforce_expiry = reader.read(expiry, expiry.default, on_or_off)?;
        let origins = reader.read(CHAT_ORIGINS, CHAT_ORIGINS.default, Origins::parse)?;
        let access = reader.read(CHAT_ROOM_ACCESS, CHAT_ROOM_ACCESS.default, Rules::parse)?;
        let rooms_claim = reader.read(CHAT_ROOMS_CLAIM, CHAT_ROOMS_CLAIM.default, claim_name)?;
        keys = keys.with_rooms_claim(access.has(Mode::Claims).then_some(rooms_claim));
        if access.has(Mode::Members) && store == Store::None {
            let rule = "CHAT_ROOM_ACCESS has the mode members, which is kept in the store, and CHAT_STORE is none: give \
                        the path of a database file, or memory";
            return Err(Error::Conflict { rule: rule.to_owned() });
        }
        let log = LogConfig {
            level: reader.read(CHAT_LOG, CHAT_LOG.default, log_level)?,
            format: reader.read(CHAT_LOG_FORMAT, CHAT_LOG_FORMAT.default, log_format)?,
        };
        let limits = reader.limits(inputs.open_files_max)?;
        Ok(Config {
            service: Service::Chat,
            listen,
            port,
            threads,
            keys,
            api_key,
            origins,
            access,
            store,
            ready_requires_store,
            rates,
            deflate,
            enforce_expiry,
            dev: inputs.dev,
            limits,
            log,
            generated,
            effective: reader.effective,
        })
    }

    /// Where messages are kept, and nothing else: what only works on the store needs no secret.
    ///
    /// # Errors
    /// As those of [`Config::load`], as far as it is looked at.
    pub fn load_store(inputs: &Inputs) -> Result<Store, Error> {
        let layers = Layers::collect(inputs)?;
        let mut reader = Reader { layers: &layers, effective: Vec::new() };
        let store = if inputs.dev { "memory" } else { CHAT_STORE.default };
        reader.read(CHAT_STORE, store, store_setting)
    }

    /// A configuration for development and tests: loopback, any free port, one thread, every
    /// default, and this secret and API key.
    pub fn for_tests(secret: &str, api_key: &str) -> Config {
        Config {
            service: Service::Chat,
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            threads: 1,
            keys: Keys::new(secret.as_bytes()),
            api_key: Some(ApiKey::new(api_key.as_bytes())),
            origins: Origins::Any,
            access: Rules::open(),
            store: Store::None,
            ready_requires_store: false,
            rates: true,
            deflate: true,
            enforce_expiry: true,
            dev: false,
            limits: Limits::default(),
            log: LogConfig { level: tracing::level_filters::LevelFilter::OFF, format: crate::log::Format::Auto },
            generated: Generated::default(),
            effective: Vec::new(),
        }
    }

    /// Every value in force, where it came from, in the order of the documentation.
    pub fn effective(&self) -> &[Effective] {
        &self.effective
    }

    /// What `check` prints: the values in force, secrets masked, and the bound on memory.
    pub fn report(&self) -> String {
        let widths = self
            .effective
            .iter()
            .fold((0, 0), |(key, value), line| (key.max(line.key.len()), value.max(line.value.len().min(40))));
        let mut report = String::new();
        for Effective { key, value, source } in &self.effective {
            let (keys, values) = widths;
            report.push_str(&format!("{key:<keys$}  {value:<values$}  {source}\n"));
        }
        report.push_str(&format!("\nbound on memory\n{}", memory_bound(self)));
        report
    }
}

/// Reads values and notes each as in force.
struct Reader<'a> {
    layers: &'a Layers,
    effective: Vec<Effective>,
}

impl Reader<'_> {
    fn read<T>(&mut self, setting: Setting, default: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, Error> {
        let Setting { key, secret, accepted, .. } = setting;
        self.accept(key, secret, default, || accepted.to_owned(), parse)
    }

    fn accept<T>(
        &mut self,
        key: &str,
        secret: bool,
        default: &str,
        accepted: impl FnOnce() -> String,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, Error> {
        let (value, source) = self.layers.find(key).unwrap_or((default, Source::Default));
        let Some(parsed) = parse(value) else {
            return Err(Error::Value {
                key: key.to_owned(),
                value: source::shown(value, secret),
                origin: source.to_string(),
                accepted: accepted(),
            });
        };
        let shown = match (value.is_empty(), secret) {
            (true, _) => "(none)".to_owned(),
            (false, true) => "***".to_owned(),
            (false, false) => value.chars().flat_map(char::escape_debug).collect(),
        };
        self.note(key, shown, source);
        Ok(parsed)
    }

    fn note(&mut self, key: &str, value: String, source: Source) {
        self.effective.push(Effective { key: key.to_owned(), value, source });
    }

    fn keys(&mut self, dev: bool, generated: &mut Generated) -> Result<Keys, Error> {
        let keys = if self.layers.find(JWT_SECRET.key).is_some() {
            let bytes_min = if dev { 1 } else { SECRET_BYTES_MIN };
            self.read(JWT_SECRET, "", |text| (text.len() >= bytes_min).then(|| Keys::new(text.as_bytes())))?
        } else if dev {
            let secret = generated.jwt_secret.insert(random_hex::<32>()?);
            self.note(JWT_SECRET.key, "***".to_owned(), Source::Dev);
            Keys::new(secret.as_bytes())
        } else {
            return Err(Error::Missing {
                key: JWT_SECRET.key.to_owned(),
                accepted: format!("give {}", JWT_SECRET.accepted),
            });
        };
        let default = CHAT_JWT_ALGORITHMS.default;
        let allowed = self.read(CHAT_JWT_ALGORITHMS, default, algorithms)?;
        let issuers = self.read(CHAT_JWT_ISSUER, "", names)?;
        let audiences = self.read(CHAT_JWT_AUDIENCE, "", names)?;
        let claim = self.read(CHAT_ROLE_CLAIM, CHAT_ROLE_CLAIM.default, claim_name)?;
        Ok(keys.with_algorithms(allowed).with_issuers(issuers).with_audiences(audiences).with_role_claim(claim))
    }

    fn api_key(&mut self, dev: bool, generated: &mut Generated) -> Result<Option<ApiKey>, Error> {
        if dev && self.layers.find(CHAT_API_KEY.key).is_none() {
            let key = generated.api_key.insert(random_hex::<16>()?);
            self.note(CHAT_API_KEY.key, "***".to_owned(), Source::Dev);
            return Ok(Some(ApiKey::new(key.as_bytes())));
        }
        self.read(CHAT_API_KEY, "", |text| match text.len() {
            0 => Some(None),
            API_KEY_BYTES_MIN.. => Some(Some(ApiKey::new(text.as_bytes()))),
            _ => None,
        })
    }

    fn limits(&mut self, open_files_max: u64) -> Result<Limits, Error> {
        let files = open_files_max.saturating_sub(FILES_RESERVED).max(1);
        let limits = Limits::read(|row| {
            let default = match row.field {
                "connections_max" => row.default.min(files),
                _ => row.default,
            };
            let default = default.to_string();
            self.accept(&row.key(), false, &default, || row.accepted(), |text| row.parse(text))
        })?;
        limits.check()?;
        if u64::try_from(limits.connections_max).is_ok_and(|connections| connections > files) {
            let rule = format!(
                "CHAT_CONNECTIONS_MAX={} must be at most {files}, the hard limit of open files \
                 ({open_files_max}) less {FILES_RESERVED}",
                limits.connections_max
            );
            return Err(Error::Conflict { rule });
        }
        Ok(limits)
    }
}

/// Text of decimal digits only, since `parse` would also take a sign.
fn decimal(text: &str) -> Option<&str> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then_some(text)
}

fn random_hex<const BYTES: usize>() -> Result<String, Error> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::System { action: "draw random bytes", source: io::Error::other(error) })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests;
