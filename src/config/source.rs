//! Where values come from, and which of several counts.
//!
//! Owns the layers (flag, environment, `.env`, TOML file) and the refusal of unknown keys. Must not
//! know what a value means. Nothing here touches the process but [`Inputs::of_process`].

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

use super::{dotenv, open_files, settings};

/// Longest value that a message repeats, in characters.
const SHOWN_MAX: usize = 64;
/// Most letters that an unknown key may differ in from the one that is suggested, however long it is.
const SUGGESTED_EDITS_MAX: usize = 3;

/// Where a value came from; of two, the lesser counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The command line.
    Flag,
    /// The environment.
    Environment,
    /// The file `.env` in the working directory.
    DotEnv,
    /// The TOML file.
    File,
    /// Made for this run by `--dev`.
    Dev,
    /// Not configured.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Flag => "flag",
            Source::Environment => "environment",
            Source::DotEnv => ".env",
            Source::File => "file",
            Source::Dev => "--dev",
            Source::Default => "default",
        })
    }
}

/// Everything that a configuration is made of, so that loading one depends on nothing else.
pub struct Inputs {
    /// Whether `--dev` was given.
    pub dev: bool,
    /// Keys and values from the command line; the last of two equal keys counts.
    pub flags: Vec<(String, String)>,
    /// The environment. Names that are not ours are ignored.
    pub environment: BTreeMap<String, String>,
    /// The text of `.env`, if there is one.
    pub dot_env: Option<String>,
    /// Reads the TOML file.
    pub read_file: fn(&Path) -> io::Result<String>,
    /// The hard limit of open files.
    pub open_files_max: u64,
    /// Cores that the process may use.
    pub cores: usize,
}

impl Inputs {
    /// What this process was started with.
    ///
    /// # Errors
    /// When `.env` exists but cannot be read, or one of our variables is not UTF-8.
    pub fn of_process(dev: bool, flags: Vec<(String, String)>) -> Result<Inputs, Error> {
        let mut environment = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else {
                continue;
            };
            match value.into_string() {
                Ok(value) => {
                    environment.insert(name, value);
                }
                Err(_) if is_ours(&name) => return Err(not_utf8(name)),
                Err(_) => {}
            }
        }
        let dot_env = match std::fs::read_to_string(".env") {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(unreadable(Path::new(".env"), &error)),
        };
        Ok(Inputs {
            dev,
            flags,
            environment,
            dot_env,
            read_file: |path| std::fs::read_to_string(path),
            open_files_max: open_files::hard_limit()?,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
        })
    }
}

/// The values of all layers, the one that counts first.
pub(crate) struct Layers {
    layers: Vec<(Source, BTreeMap<String, String>)>,
}

impl Layers {
    /// Collects the layers and refuses keys that do not exist.
    pub(crate) fn collect(inputs: &Inputs) -> Result<Layers, Error> {
        let flags: BTreeMap<String, String> = inputs.flags.iter().cloned().collect();
        if let Some(key) = flags.keys().find(|key| !settings::is_known(key)) {
            return Err(unknown_key(key, Source::Flag));
        }
        let dot_env = inputs.dot_env.as_deref().map(parse_dot_env).transpose()?;
        let mut layers = vec![(Source::Flag, flags)];
        let variables =
            [(Source::Environment, inputs.environment.clone()), (Source::DotEnv, dot_env.unwrap_or_default())];
        for (source, mut values) in variables {
            values.retain(|key, _| is_ours(key));
            if let Some(key) = values.keys().find(|key| !settings::is_known(key)) {
                return Err(unknown_key(key, source));
            }
            layers.push((source, values));
        }
        let mut layers = Layers { layers };
        let path = layers.find(settings::CHAT_CONFIG.key);
        if let Some(path) = path.map(|(path, _)| PathBuf::from(path)) {
            let text = (inputs.read_file)(&path).map_err(|error| unreadable(&path, &error))?;
            layers.layers.push((Source::File, parse_toml(&path, &text)?));
        }
        Ok(layers)
    }

    /// The value that counts. An empty one counts only for keys where it means something:
    /// elsewhere it is what a composed environment gives for a variable that is not set.
    pub(crate) fn find(&self, key: &str) -> Option<(&str, Source)> {
        self.layers.iter().find_map(|(source, values)| {
            let value = values.get(key)?;
            let counts = !value.is_empty() || settings::empty_means_none(key);
            counts.then_some((value.as_str(), *source))
        })
    }
}

/// A value as a message may repeat it.
pub(crate) fn shown(value: &str, secret: bool) -> String {
    if secret {
        return format!("*** ({} bytes)", value.len());
    }
    let mut shown: String = value.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
    if value.chars().count() > SHOWN_MAX {
        shown.push_str("...");
    }
    shown
}

/// Whether a variable is meant for this server. Kubernetes injects `CHAT_PORT*` and
/// `CHAT_SERVICE_*` for a service that is called `chat`.
fn is_ours(name: &str) -> bool {
    let injected = name.starts_with("CHAT_PORT") || name.starts_with("CHAT_SERVICE_");
    (name.starts_with("CHAT_") && !injected) || settings::is_known(name)
}

/// Lines of others are theirs, whatever they are; one that begins with a name of ours has to give it a value.
fn parse_dot_env(text: &str) -> Result<BTreeMap<String, String>, Error> {
    let parsed = dotenv::parse(text);
    match parsed.skipped.into_iter().find(|(_, name)| is_ours(name)) {
        Some((line, name)) => {
            let reason = format!("line {line}: {} gets no value: write NAME=VALUE", shown(&name, false));
            Err(Error::File { path: PathBuf::from(".env"), reason })
        }
        None => Ok(parsed.values),
    }
}

fn parse_toml(path: &Path, text: &str) -> Result<BTreeMap<String, String>, Error> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        let message = error.message().replace('\n', " ");
        Error::File { path: path.to_owned(), reason: format!("line {line}: {message}") }
    })?;
    let mut values = BTreeMap::new();
    flatten(path, "", &table, &mut values)?;
    Ok(values)
}

/// Turns `[presence] list_limit = 200`, `presence_list_limit = 200` and
/// `CHAT_PRESENCE_LIST_LIMIT = 200` alike into the last one's key and value.
fn flatten(path: &Path, prefix: &str, table: &toml::Table, values: &mut BTreeMap<String, String>) -> Result<(), Error> {
    for (name, value) in table {
        let name = format!("{prefix}{name}");
        if let toml::Value::Table(inner) = value {
            flatten(path, &format!("{name}_"), inner, values)?;
            continue;
        }
        let text = toml_text(value);
        let upper = name.to_ascii_uppercase();
        let key = [upper.clone(), format!("CHAT_{upper}")]
            .into_iter()
            .find(|key| settings::is_known(key) && key != settings::CHAT_CONFIG.key);
        let Some(key) = key else {
            return Err(unknown_key(&name, Source::File));
        };
        if values.insert(key.clone(), text).is_some() {
            return Err(Error::File { path: path.to_owned(), reason: format!("{key} is given twice") });
        }
    }
    Ok(())
}

fn toml_text(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Boolean(on) => if *on { "on" } else { "off" }.to_owned(),
        toml::Value::Array(values) => {
            let texts: Vec<String> = values.iter().map(toml_text).collect();
            texts.join(",")
        }
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Datetime(time) => time.to_string(),
        toml::Value::Table(_) => "{...}".to_owned(),
    }
}

fn unknown_key(key: &str, source: Source) -> Error {
    let accepted = match nearest_key(&key.to_ascii_uppercase()) {
        Some(known) => format!("did you mean {known}?"),
        None => "README.md lists every key under Configuration".to_owned(),
    };
    Error::UnknownKey { key: shown(key, false), origin: source.to_string(), accepted }
}

/// The key that is probably meant: few letters of it are others, for a name of its length.
fn nearest_key(name: &str) -> Option<String> {
    let bare = |key: &str| key.strip_prefix("CHAT_").unwrap_or(key).to_owned();
    let name = bare(name);
    let edits_max = (name.chars().count() / 3).min(SUGGESTED_EDITS_MAX);
    let nearest = settings::keys().into_iter().map(|known| (edits(&name, &bare(&known)), known)).min();
    nearest.filter(|(edits, _)| *edits <= edits_max).map(|(_, known)| known)
}

/// The edit distance of two names.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (above, one) in from.chars().enumerate() {
        let mut last = above + 1;
        let mut next = vec![last];
        for (other, pair) in to.iter().zip(row.windows(2)) {
            let [diagonal, up] = pair else { break };
            let replaced = diagonal + usize::from(one != *other);
            last = replaced.min(up + 1).min(last + 1);
            next.push(last);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

fn not_utf8(key: String) -> Error {
    Error::Value {
        key,
        value: "***".to_owned(),
        origin: Source::Environment.to_string(),
        accepted: "text in UTF-8".to_owned(),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    Error::File { path: path.to_owned(), reason: format!("cannot be read: {error}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (from, to, distance) in
            [("", "", 0), ("A", "", 1), ("", "AB", 2), ("CHAT_THREAD", "CHAT_THREADS", 1), ("KITTEN", "SITTING", 3)]
        {
            assert_eq!(edits(from, to), distance, "{from} {to}");
        }
    }

    #[test]
    fn a_suggestion_is_near() {
        for (name, known) in [
            ("CHAT_THREAD", "CHAT_THREADS"),
            ("THREADS", "CHAT_THREADS"),
            ("CHAT_LOGS", "CHAT_LOG"),
            ("CHAT_JWT_SECRET", "JWT_SECRET"),
            ("CHAT_PORT", "PORT"),
            ("CHAT_TRUSTED_PROXYS", "CHAT_TRUSTED_PROXIES"),
        ] {
            assert_eq!(nearest_key(name).as_deref(), Some(known), "{name}");
        }
        for name in ["CHAT_FOO", "CHAT_", "CHAT_X", "", "CHAT_PO", "CHAT_SOMETHING_ELSE", "CHAT_DATABASE_URL"] {
            assert_eq!(nearest_key(name), None, "{name}");
        }
    }

    #[test]
    fn what_messages_repeat() {
        assert_eq!(shown("secret", true), "*** (6 bytes)");
        assert_eq!(shown("a\nb", false), "a\\nb");
        assert_eq!(shown(&"x".repeat(70), false).len(), 67);
    }

    #[test]
    fn toml_names() {
        let path = Path::new("chat.toml");
        let text = "CHAT_RATES = 'off'\nthreads = 2\nport = 1\nrates_x = 1";
        let error = parse_toml(path, text).unwrap_err().to_string();
        assert!(error.starts_with("unknown key rates_x (file)"), "{error}");
        let text = "ws_port = 1\n[presence]\nlist_limit = 5\ndiff_ms = 250\n[jwt]\nsecret = 's'\nalgorithms = ['HS256', 'HS512']\n";
        let values = parse_toml(path, text).unwrap();
        let pairs: Vec<(&str, &str)> = values.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(
            pairs,
            [
                ("CHAT_JWT_ALGORITHMS", "HS256,HS512"),
                ("CHAT_PRESENCE_DIFF_MS", "250"),
                ("CHAT_PRESENCE_LIST_LIMIT", "5"),
                ("JWT_SECRET", "s"),
                ("WS_PORT", "1"),
            ]
        );
        for (text, message) in [
            ("threads = 1\nCHAT_THREADS = 2", "chat.toml: CHAT_THREADS is given twice"),
            ("config = 'x'", "unknown key config (file)"),
            ("[chat]\nstoree = 'x'", "unknown key chat_storee (file): did you mean CHAT_STORE?"),
            ("threads =", "chat.toml: line 1: "),
            ("a = 1\n\nb", "chat.toml: line 3: "),
        ] {
            let error = parse_toml(path, text).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
