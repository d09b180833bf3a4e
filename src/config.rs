//! The configuration: parsed once, valid by construction.
//!
//! Owns the precedence flag, environment, `.env`, TOML file, default; every limit, with its unit in
//! its name; and what is printed about it. Knows nothing about what the values are used for. A
//! [`Config`] that exists is consistent, and no secret is ever in what it prints, except by
//! [`Generated`], which `--dev` exists to print.

mod dotenv;
mod key_files;
mod limits;
mod memory;
mod open_files;
mod origins;
mod proxies;
mod settings;
mod source;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use crate::access::{Mode, Rules};
use crate::auth::api_keys::API_KEY_BYTES_MIN;
use crate::auth::{Algorithm, ApiKeys, Credentials, Key, KeyKind, Keys};
use crate::error::Error;
use crate::log::LogConfig;

pub use key_files::{JwksPlace, KeyFiles, is_url, shown_url, taken};
pub use limits::{LimitRow, Limits};
pub use memory::*;
pub use open_files::{FILES_RESERVED, hard_limit, raise_limit};
pub use origins::Origins;
pub use proxies::Proxies;
pub use settings::{
    CHAT_TLS_CERT, CHAT_TLS_CLIENT_CA, CHAT_TLS_KEY, Setting, TABLE as SETTINGS, table_markdown as settings_markdown,
};
pub use source::{Inputs, Source};

use settings::*;
use source::Layers;

/// Least bytes of `JWT_SECRET` outside of `--dev`.
const SECRET_BYTES_MIN: usize = 32;

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

/// A version of TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsVersion {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// The files of TLS, which are read again when they change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// The certificate and those that it is signed with.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of client certificates, if there may be some.
    pub client_authorities: Option<PathBuf>,
    /// The least version that is spoken.
    pub version_min: TlsVersion,
}

/// How the ERP is asked who may enter a room.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessPoint {
    /// Where.
    pub url: String,
    /// What is sent along as a bearer token, if there is something.
    pub key: Option<String>,
    /// Whether everybody is let in while there is no answer.
    pub allows_without: bool,
}

impl fmt::Debug for AccessPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessPoint").field("url", &self.url).finish_non_exhaustive()
    }
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
    /// Whether connections are TLS, and with what.
    pub tls: Option<TlsFiles>,
    /// Threads that serve connections, at least 1.
    pub threads: usize,
    /// How tokens are verified, and what a backend sends as `X-API-Key`.
    pub credentials: Credentials,
    /// Where more of that comes from, again and again.
    pub key_files: KeyFiles,
    /// Web pages that may connect.
    pub origins: Origins,
    /// Who may enter which room.
    pub access: Rules,
    /// Where the ERP is asked about that, if it is.
    pub access_point: Option<AccessPoint>,
    /// Peers whose word about their clients counts.
    pub trusted_proxies: Proxies,
    /// Whether connections of trusted proxies begin with a PROXY header.
    pub proxy_protocol: bool,
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
        let (access, rooms_claim) = reader.access()?;
        let access_point = reader.access_point(&access)?;
        let base = reader.keys(inputs.dev, &mut generated)?;
        let base = base.with_rooms_claim(access.has(Mode::Claims).then_some(rooms_claim));
        let port_key = match layers.find(WS_PORT.key) {
            None if layers.find(PORT.key).is_some() => PORT,
            _ => WS_PORT,
        };
        let port = reader.read(port_key, WS_PORT.default, |text| decimal(text)?.parse().ok())?;
        let key_files = reader.key_files(base, inputs.dev, &mut generated)?;
        let (pem, jwks) = (key_files.read_pem(inputs.read_file)?, key_files.read_jwks(inputs.read_file)?);
        let credentials = key_files.credentials(&pem, &jwks, key_files.read_api_keys(inputs.read_file)?);
        reader.read(CHAT_CONFIG, "", |_| Some(()))?;
        let listen = if inputs.dev { "127.0.0.1" } else { CHAT_LISTEN.default };
        let listen = reader.read(CHAT_LISTEN, listen, |text| text.parse().ok())?;
        let tls = reader.tls()?;
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
        if access.has(Mode::Members) && store == Store::None {
            let rule = "CHAT_ROOM_ACCESS has the mode members, which is kept in the store, and CHAT_STORE is none: give \
                        the path of a database file, or memory";
            return Err(Error::Conflict { rule: rule.to_owned() });
        }
        let (trusted_proxies, proxy_protocol) = reader.proxies()?;
        let log = LogConfig {
            level: reader.read(CHAT_LOG, CHAT_LOG.default, log_level)?,
            format: reader.read(CHAT_LOG_FORMAT, CHAT_LOG_FORMAT.default, log_format)?,
        };
        let limits = reader.limits(inputs.open_files_max)?;
        Ok(Config {
            service: Service::Chat,
            listen,
            port,
            tls,
            threads,
            credentials,
            key_files,
            origins,
            access,
            access_point,
            trusted_proxies,
            proxy_protocol,
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
        let (keys, api_keys) = (Keys::new(secret.as_bytes()), ApiKeys::one(api_key.as_bytes()));
        Config {
            service: Service::Chat,
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            tls: None,
            threads: 1,
            key_files: KeyFiles::none(keys.clone(), api_keys.clone()),
            credentials: Credentials { keys, api_keys },
            origins: Origins::Any,
            access: Rules::open(),
            access_point: None,
            trusted_proxies: Proxies::default(),
            proxy_protocol: false,
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

    /// The secrets, and the rules by which tokens are verified.
    fn keys(&mut self, dev: bool, generated: &mut Generated) -> Result<Keys, Error> {
        let others = [CHAT_JWT_KEYS.key, CHAT_JWKS.key];
        let has_others = others.iter().any(|key| self.layers.find(key).is_some());
        let keys = if self.layers.find(JWT_SECRET.key).is_some() {
            let bytes_min = if dev { 1 } else { SECRET_BYTES_MIN };
            Keys::new(self.read(JWT_SECRET, "", |text| secret(text, bytes_min))?.as_bytes())
        } else if has_others {
            Keys::of(Vec::new())
        } else if dev {
            let secret = generated.jwt_secret.insert(random_hex::<32>()?);
            self.note(JWT_SECRET.key, "***".to_owned(), Source::Dev);
            Keys::new(secret.as_bytes())
        } else {
            return Err(Error::Missing {
                key: JWT_SECRET.key.to_owned(),
                accepted: format!(
                    "give {}, or public keys: CHAT_JWT_KEYS ({}) or CHAT_JWKS ({})",
                    JWT_SECRET.accepted, CHAT_JWT_KEYS.accepted, CHAT_JWKS.accepted
                ),
            });
        };
        let keys = keys.and(self.previous_secret()?);
        let allowed = self.read(CHAT_JWT_ALGORITHMS, "", algorithms)?;
        let issuers = self.read(CHAT_JWT_ISSUER, "", names)?;
        let audiences = self.read(CHAT_JWT_AUDIENCE, "", names)?;
        let user_claim = self.read(CHAT_USER_CLAIM, "", user_claim)?;
        let claim = self.read(CHAT_ROLE_CLAIM, CHAT_ROLE_CLAIM.default, claim_name)?;
        let keys = keys.with_issuers(issuers).with_audiences(audiences);
        let keys = keys.with_user_claim(user_claim).with_role_claim(claim);
        let Some(allowed) = allowed else { return Ok(keys) };
        let for_others = |algorithm: &Algorithm| algorithm.key_kind() != KeyKind::Secret;
        if keys.is_empty() && !allowed.iter().any(for_others) {
            let rule =
                "CHAT_JWT_ALGORITHMS allows only algorithms with a secret, and there is no JWT_SECRET".to_owned();
            return Err(Error::Conflict { rule });
        }
        Ok(keys.with_algorithms(allowed))
    }

    /// Who may enter which room, and the claim that says so where tokens do.
    fn access(&mut self) -> Result<(Rules, String), Error> {
        let access = self.read(CHAT_ROOM_ACCESS, CHAT_ROOM_ACCESS.default, Rules::parse)?;
        Ok((access, self.read(CHAT_ROOMS_CLAIM, CHAT_ROOMS_CLAIM.default, claim_name)?))
    }

    /// Where it is asked who may enter, if a rule says so.
    fn access_point(&mut self, access: &Rules) -> Result<Option<AccessPoint>, Error> {
        let url = self.read(CHAT_ACCESS_URL, "", access_url)?;
        let key = self.read(CHAT_ACCESS_KEY, "", access_key)?;
        let fallback = CHAT_ACCESS_FALLBACK;
        let allows_without = self.read(fallback, fallback.default, deny_or_allow)?;
        match (url, access.has(Mode::Ask)) {
            (Some(url), true) => Ok(Some(AccessPoint { url, key, allows_without })),
            (None, true) => {
                let rule = "CHAT_ROOM_ACCESS has the mode ask, and CHAT_ACCESS_URL does not say where: give the http or \
                            https URL that answers who may enter";
                Err(Error::Conflict { rule: rule.to_owned() })
            }
            (_, false) => Ok(None),
        }
    }

    /// The secret that tokens of some time ago are signed with.
    fn previous_secret(&mut self) -> Result<Option<Arc<Key>>, Error> {
        let previous = self.read(CHAT_JWT_PREVIOUS_SECRET, "", |text| match text {
            "" => Some(None),
            text => secret(text, SECRET_BYTES_MIN).map(Some),
        })?;
        let until_ms = self.read(CHAT_JWT_PREVIOUS_UNTIL, "", previous_until)?;
        match (previous, until_ms) {
            (Some(secret), Some(until_ms)) => Ok(Some(Arc::new(Key::secret(secret.as_bytes(), Some(until_ms))))),
            (None, None) => Ok(None),
            _ => {
                let rule = "CHAT_JWT_PREVIOUS_SECRET and CHAT_JWT_PREVIOUS_UNTIL go together: give both or none";
                Err(Error::Conflict { rule: rule.to_owned() })
            }
        }
    }

    fn key_files(&mut self, base: Keys, dev: bool, generated: &mut Generated) -> Result<KeyFiles, Error> {
        let pem = self.read(CHAT_JWT_KEYS, "", names)?.into_iter().map(PathBuf::from).collect();
        let jwks = self.read(CHAT_JWKS, "", |text| match text {
            "" => Some(None),
            text => JwksPlace::parse(text).map(Some),
        })?;
        let one = self.api_key(dev, generated)?;
        let (mut many, mut wrong) = (ApiKeys::default(), None);
        self.read(CHAT_API_KEYS, "", |text| {
            let entries = text.split(',').filter(|entry| !entry.trim().is_empty());
            let parsed = ApiKeys::parse(entries).map_err(|reason| wrong = Some(reason)).ok();
            parsed.map(|keys| many = keys)
        })
        .map_err(|error| match wrong.take() {
            Some(reason) => wrong_api_keys(&reason),
            None => error,
        })?;
        let base_api_keys = one.and(&many).map_err(|reason| wrong_api_keys(&reason))?;
        let api_keys = self.read(CHAT_API_KEYS_FILE, "", |text| Some((!text.is_empty()).then(|| text.into())))?;
        Ok(KeyFiles { base, base_api_keys, pem, jwks, api_keys })
    }

    fn api_key(&mut self, dev: bool, generated: &mut Generated) -> Result<ApiKeys, Error> {
        let given = [CHAT_API_KEY, CHAT_API_KEYS, CHAT_API_KEYS_FILE];
        if dev && !given.iter().any(|setting| self.layers.find(setting.key).is_some()) {
            let key = generated.api_key.insert(random_hex::<16>()?);
            self.note(CHAT_API_KEY.key, "***".to_owned(), Source::Dev);
            return Ok(ApiKeys::one(key.as_bytes()));
        }
        self.read(CHAT_API_KEY, "", |text| match text.len() {
            0 => Some(ApiKeys::default()),
            API_KEY_BYTES_MIN.. => Some(ApiKeys::one(text.as_bytes())),
            _ => None,
        })
    }

    fn tls(&mut self) -> Result<Option<TlsFiles>, Error> {
        let certificate = self.read(CHAT_TLS_CERT, "", optional_path)?;
        let key = self.read(CHAT_TLS_KEY, "", optional_path)?;
        let client_authorities = self.read(CHAT_TLS_CLIENT_CA, "", optional_path)?;
        let version_min = self.read(CHAT_TLS_MIN, CHAT_TLS_MIN.default, tls_version)?;
        let missing = |setting: Setting, given: Setting| Error::Missing {
            key: setting.key.to_owned(),
            accepted: format!("{} needs it; give the path of a PEM file", given.key),
        };
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key, client_authorities, version_min })),
            (Some(_), None) => Err(missing(CHAT_TLS_KEY, CHAT_TLS_CERT)),
            (None, Some(_)) => Err(missing(CHAT_TLS_CERT, CHAT_TLS_KEY)),
            (None, None) if client_authorities.is_some() => Err(missing(CHAT_TLS_CERT, CHAT_TLS_CLIENT_CA)),
            (None, None) => Ok(None),
        }
    }

    fn proxies(&mut self) -> Result<(Proxies, bool), Error> {
        let trusted = self.read(CHAT_TRUSTED_PROXIES, "", Proxies::parse)?;
        let protocol = self.read(CHAT_PROXY_PROTOCOL, CHAT_PROXY_PROTOCOL.default, on_or_off)?;
        if protocol && trusted.is_empty() {
            let rule = "CHAT_PROXY_PROTOCOL=on needs CHAT_TRUSTED_PROXIES: the header is read from those alone";
            return Err(Error::Conflict { rule: rule.to_owned() });
        }
        Ok((trusted, protocol))
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

/// A fault of `CHAT_API_KEYS`, told without the keys.
fn wrong_api_keys(reason: &str) -> Error {
    let Setting { key, accepted, .. } = CHAT_API_KEYS;
    Error::Conflict { rule: format!("{key}: {reason}; give {accepted}") }
}

/// Text of decimal digits only, since `parse` would also take a sign.
fn decimal(text: &str) -> Option<&str> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then_some(text)
}

/// So many random bytes, in hexadecimal.
///
/// # Errors
/// The system has none.
pub fn random_hex<const BYTES: usize>() -> Result<String, Error> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::System { action: "draw random bytes", source: io::Error::other(error) })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests;
