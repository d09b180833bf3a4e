//! Layering, every setting, and what is said about mistakes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::auth::{Role, TOKEN_BYTES_MAX};
use crate::log::Format;

use super::*;

const SECRET: &str = "a secret of at least thirty-two bytes";

fn inputs() -> Inputs {
    Inputs {
        dev: false,
        flags: Vec::new(),
        environment: BTreeMap::from([("JWT_SECRET".to_owned(), SECRET.to_owned())]),
        dot_env: None,
        read_file: |_| Err(io::ErrorKind::NotFound.into()),
        open_files_max: 20_000,
        cores: 4,
    }
}

fn with(environment: &[(&str, &str)]) -> Inputs {
    let mut inputs = inputs();
    for (key, value) in environment {
        let pair = ((*key).to_owned(), (*value).to_owned());
        inputs.environment.extend([pair]);
    }
    inputs
}

fn flag(mut inputs: Inputs, key: &str, value: &str) -> Inputs {
    inputs.flags.push((key.to_owned(), value.to_owned()));
    inputs
}

fn load(environment: &[(&str, &str)]) -> Config {
    Config::load(&with(environment)).unwrap()
}

fn refusal(environment: &[(&str, &str)]) -> String {
    let error = Config::load(&with(environment)).unwrap_err().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

fn source_of(config: &Config, key: &str) -> (String, Source) {
    let mut lines = config.effective().iter().filter(|line| line.key == key);
    let line = lines.next().unwrap();
    assert_eq!(lines.next(), None);
    (line.value.clone(), line.source)
}

#[test]
fn the_defaults() {
    let config = load(&[]);
    assert_eq!(config.listen.to_string(), "::");
    assert_eq!((config.port, config.threads), (3001, 4));
    assert!(config.credentials.api_keys.is_empty() && config.rates && config.enforce_expiry && !config.dev);
    assert_eq!(config.origins, Origins::Any);
    assert_eq!(config.log.format, Format::Auto);
    let derived = Limits { connections_max: 19_872, ..Limits::default() };
    assert_eq!(config.limits, derived);
    assert!(config.generated.jwt_secret.is_none() && config.generated.api_key.is_none());
}

#[test]
fn tls_needs_a_certificate_and_its_key() {
    assert_eq!(load(&[]).tls, None);
    assert_eq!(load(&[("CHAT_TLS_CERT", ""), ("CHAT_TLS_KEY", "")]).tls, None);
    let both = [("CHAT_TLS_CERT", "cert.pem"), ("CHAT_TLS_KEY", "key.pem"), ("CHAT_TLS_MIN", "1.3")];
    let expected = TlsFiles {
        certificate: "cert.pem".into(),
        key: "key.pem".into(),
        client_authorities: None,
        version_min: TlsVersion::Tls13,
    };
    let config = load(&both);
    assert_eq!(config.tls, Some(expected));
    assert!(memory_bound(&config).process_bytes() > memory_bound(&load(&[])).process_bytes());
    for (given, missing) in [
        (both[0], "CHAT_TLS_KEY is not set: CHAT_TLS_CERT needs it; give the path of a PEM file"),
        (both[1], "CHAT_TLS_CERT is not set: CHAT_TLS_KEY needs it; give the path of a PEM file"),
        (
            ("CHAT_TLS_CLIENT_CA", "ca.pem"),
            "CHAT_TLS_CERT is not set: CHAT_TLS_CLIENT_CA needs it; give the path of a PEM file",
        ),
    ] {
        assert_eq!(refusal(&[given]), missing);
    }
    assert!(refusal(&[("CHAT_TLS_MIN", "1.1")]).ends_with("is not accepted: 1.2 or 1.3"));
}

#[test]
fn every_key_is_reported_once() {
    let config = load(&[]);
    let reported = config.effective().iter().map(|line| line.key.clone());
    let mut reported: Vec<String> = reported.collect();
    let mut documented = settings::keys();
    documented.retain(|key| key != "PORT");
    reported.sort();
    documented.sort();
    assert_eq!(reported, documented);
}

#[test]
fn flag_then_environment_then_dot_env_then_file_then_default() {
    let full = || {
        let mut inputs = with(&[("CHAT_THREADS", "2"), ("CHAT_CONFIG", "chat.toml")]);
        inputs.dot_env = Some("CHAT_THREADS=3".into());
        inputs.read_file = |path| {
            assert_eq!(path, Path::new("chat.toml"));
            Ok("threads = 5".into())
        };
        flag(inputs, "CHAT_THREADS", "1")
    };
    let mut inputs = full();
    let expect = |inputs: &Inputs, threads: usize, source| {
        let config = Config::load(inputs).unwrap();
        assert_eq!(config.threads, threads);
        let expected = (threads.to_string(), source);
        assert_eq!(source_of(&config, "CHAT_THREADS"), expected);
    };
    expect(&inputs, 1, Source::Flag);
    inputs.flags.clear();
    expect(&inputs, 2, Source::Environment);
    inputs.environment.remove("CHAT_THREADS");
    expect(&inputs, 3, Source::DotEnv);
    inputs.dot_env = None;
    expect(&inputs, 5, Source::File);
    inputs.environment.remove("CHAT_CONFIG");
    expect(&inputs, 4, Source::Default);
}

#[test]
fn the_file_may_be_named_in_any_layer_above_it() {
    let mut by_dot_env = inputs();
    by_dot_env.dot_env = Some("CHAT_CONFIG=7".into());
    by_dot_env.read_file = |path| Ok(format!("threads = {}", path.display()));
    assert_eq!(Config::load(&by_dot_env).unwrap().threads, 7);
    let by_flag = flag(by_dot_env, "CHAT_CONFIG", "8");
    assert_eq!(Config::load(&by_flag).unwrap().threads, 8);
    let missing = flag(inputs(), "CHAT_CONFIG", "none.toml");
    let error = Config::load(&missing).unwrap_err().to_string();
    assert!(error.starts_with("none.toml: cannot be read: "), "{error}");
}

#[test]
fn the_port_is_ws_port_else_port() {
    for (environment, port) in [
        (&[][..], 3001),
        (&[("PORT", "80")], 80),
        (&[("WS_PORT", "81")], 81),
        (&[("PORT", "80"), ("WS_PORT", "81")], 81),
        (&[("PORT", "80"), ("WS_PORT", "")], 80),
        (&[("PORT", ""), ("WS_PORT", "")], 3001),
        (&[("PORT", "nonsense"), ("WS_PORT", "0")], 0),
        (&[("CHAT_PORT", "tcp://10.0.0.1:80")], 3001),
    ] {
        assert_eq!(load(environment).port, port, "{environment:?}");
    }
    let mut inputs = with(&[("PORT", "80")]);
    inputs.dot_env = Some("WS_PORT=82".into());
    assert_eq!(Config::load(&inputs).unwrap().port, 82);
    assert_eq!(
        refusal(&[("PORT", "99999")]),
        "PORT=99999 (environment) is not accepted: a port from 0 to 65535 (0: any free one)"
    );
}

#[test]
fn mistakes_name_key_value_and_what_is_accepted() {
    for (key, value, message) in [
        ("WS_PORT", "+80", "WS_PORT=+80 (environment) is not accepted: a port"),
        ("CHAT_THREADS", "0", "CHAT_THREADS=0 (environment) is not accepted: an integer from 1 to 256"),
        ("CHAT_THREADS", "two", "CHAT_THREADS=two"),
        ("CHAT_LISTEN", "localhost", "CHAT_LISTEN=localhost (environment) is not accepted: an IP address"),
        ("CHAT_READY_REQUIRES_STORE", "yes", "CHAT_READY_REQUIRES_STORE=yes (environment) is not accepted: on or off"),
        ("CHAT_RATES", "yes", "CHAT_RATES=yes (environment) is not accepted: on or off"),
        ("CHAT_ENFORCE_EXPIRY", "0", "CHAT_ENFORCE_EXPIRY=0"),
        ("CHAT_ORIGINS", "example.com", "CHAT_ORIGINS=example.com"),
        ("CHAT_JWT_ALGORITHMS", "none", "CHAT_JWT_ALGORITHMS=none"),
        ("CHAT_JWT_ISSUER", "a,,b", "CHAT_JWT_ISSUER=a,,b"),
        ("CHAT_ROLE_CLAIM", "sub", "CHAT_ROLE_CLAIM=sub"),
        ("CHAT_LOG", "loud", "CHAT_LOG=loud (environment) is not accepted: off, error, warn,"),
        ("CHAT_LOG_FORMAT", "xml", "CHAT_LOG_FORMAT=xml"),
        (
            "CHAT_HEARTBEAT_MS",
            "1",
            "CHAT_HEARTBEAT_MS=1 (environment) is not accepted: an integer from 250 to 3600000 (ms)",
        ),
        ("CHAT_OUTBOX_SOFT_BYTES", "1048576", "CHAT_OUTBOX_SOFT_BYTES=1048576 must be below"),
        ("CHAT_CONNECTIONS_MAX", "19873", "CHAT_CONNECTIONS_MAX=19873 must be at most 19872, the hard"),
        ("JWT_SECRET", "short-secret", "JWT_SECRET=*** (12 bytes) (environment) is not accepted: at least 32"),
        ("CHAT_API_KEY", "short-key", "CHAT_API_KEY=*** (9 bytes) (environment) is not accepted: at least 16"),
    ] {
        let refusal = refusal(&[(key, value)]);
        assert!(refusal.starts_with(message), "{refusal}");
    }
}

#[test]
fn unknown_keys_stop_the_start() {
    for (key, value, message) in [
        ("CHAT_THREAD", "2", "unknown key CHAT_THREAD (environment): did you mean CHAT_THREADS?"),
        ("CHAT_API_KY", "0123456789abcdef", "unknown key CHAT_API_KY (environment): did you mean CHAT_API_KEY?"),
        (
            "CHAT_SOMETHING_ELSE",
            "1",
            "unknown key CHAT_SOMETHING_ELSE (environment): README.md lists every key under Configuration",
        ),
        ("CHAT_FOO", "1", "unknown key CHAT_FOO (environment): README.md lists every key"),
        ("CHAT_", "", "unknown key CHAT_ (environment)"),
        ("CHAT_SERVICE", "1", "unknown key CHAT_SERVICE (environment)"),
    ] {
        let refusal = refusal(&[(key, value)]);
        assert!(refusal.starts_with(message), "{refusal}");
        assert!(value.len() < 3 || !refusal.contains(value), "a mistyped secret is not told: {refusal}");
    }
    let mut dot_env = inputs();
    dot_env.dot_env = Some("DATABASE_URL=x\nAPP NAME\nCHAT_X=1".into());
    let error = Config::load(&dot_env).unwrap_err().to_string();
    assert!(error.starts_with("unknown key CHAT_X (.env)"), "{error}");
    for (text, line) in [("CHAT_RATES off", 1), ("A=1\nNOT OURS\nJWT_SECRET\n", 3), ("export CHAT_RATES:off", 1)] {
        dot_env.dot_env = Some(text.into());
        let error = Config::load(&dot_env).unwrap_err().to_string();
        assert!(error.starts_with(&format!(".env: line {line}: ")) && error.contains("write NAME=VALUE"), "{error}");
    }
    for key in ["THREADS", "CHAT_PORT", "PATH"] {
        let error = Config::load(&flag(inputs(), key, "1")).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with(&format!("unknown key {key} (flag)")), "{error}");
    }
}

#[test]
fn names_of_others_are_ignored() {
    let mut inputs = with(&[
        ("CHAT_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("CHAT_SERVICE_HOST", "10.0.0.1"),
        ("PATH", "/bin"),
        ("chat_threads", "nonsense"),
        ("XCHAT_THREADS", "nonsense"),
    ]);
    inputs.dot_env = Some("DATABASE_URL='x'\nAPP_NAME=Sizland ERP\nCHAT_SERVICE_PORT=1".into());
    Config::load(&inputs).unwrap();
}

#[test]
fn a_secret_is_required_and_long() {
    let mut none = inputs();
    none.environment.clear();
    for empty in [false, true] {
        if empty {
            none.environment.insert("JWT_SECRET".into(), String::new());
        }
        let error = Config::load(&none).unwrap_err().to_string();
        assert!(
            error.starts_with("JWT_SECRET is not set: give at least 32 bytes (shorter only with --dev)"),
            "{error}"
        );
        assert!(
            error.contains("CHAT_JWT_KEYS (paths of PEM files") && error.contains("CHAT_JWKS (the path"),
            "{error}"
        );
    }
    none.dot_env = Some(format!("JWT_SECRET={SECRET}"));
    Config::load(&none).unwrap();
}

#[test]
fn public_keys_take_the_place_of_a_secret() {
    let mut inputs = inputs();
    inputs.environment.clear();
    inputs.read_file = |path| match path.to_str() {
        Some("ed.pem") => Ok(include_str!("../../tests/signing/ed25519.pub.pem").to_owned()),
        Some("rsa.pem") => Ok(include_str!("../../tests/signing/rsa.pem").to_owned()),
        Some("keys") => Ok("# of the ERP\nerp:0123456789abcdef\n".to_owned()),
        Some("bad-keys") => Ok("erp:0123456789abcdef\nerp\n".to_owned()),
        _ => Err(std::io::ErrorKind::NotFound.into()),
    };
    let mut load = |given: &[(&str, &str)]| {
        inputs.environment = given.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Config::load(&inputs).map_err(|error| error.to_string())
    };
    assert_eq!(load(&[("CHAT_JWT_KEYS", "ed.pem")]).unwrap().credentials.keys.len(), 1);
    let fetched = load(&[("CHAT_JWKS", "https://erp.example.com/jwks")]).unwrap();
    assert!(fetched.credentials.keys.is_empty(), "it is fetched later");
    let both = load(&[("JWT_SECRET", SECRET), ("CHAT_JWT_KEYS", "ed.pem, ed.pem")]).unwrap();
    assert_eq!(both.credentials.keys.len(), 3);
    let previous =
        [("JWT_SECRET", SECRET), ("CHAT_JWT_PREVIOUS_SECRET", SECRET), ("CHAT_JWT_PREVIOUS_UNTIL", "9999999999")];
    assert_eq!(load(&previous).unwrap().credentials.keys.len(), 2);
    let keys = [("JWT_SECRET", SECRET), ("CHAT_API_KEYS", "a:0123456789abcdeg"), ("CHAT_API_KEYS_FILE", "keys")];
    let keys = load(&keys).unwrap().credentials.api_keys;
    assert_eq!((keys.find(b"0123456789abcdef"), keys.find(b"0123456789abcdeg")), (Some("erp"), Some("a")));
    let pem = include_str!("../../tests/signing/rsa.pub.pem");
    for (given, reason) in [
        (&[("CHAT_JWT_KEYS", "none.pem")][..], "CHAT_JWT_KEYS: none.pem: it cannot be read"),
        (
            &[("CHAT_JWT_KEYS", "rsa.pem")],
            "CHAT_JWT_KEYS: rsa.pem: it holds a private key, which must stay with who signs; give PEM with PUBLIC KEY",
        ),
        (
            &[("CHAT_JWKS", "ed.pem")],
            "CHAT_JWKS: ed.pem: it is no JSON Web Key Set: an object with an array keys; give a JSON Web Key Set with",
        ),
        (&[("CHAT_JWKS", "ftp://erp/jwks")], "CHAT_JWKS=ftp://erp/jwks (environment) is not accepted"),
        (&[("CHAT_JWT_KEYS", "ed.pem"), ("CHAT_JWT_ALGORITHMS", "HS256")], "only algorithms with a secret"),
        (&[("JWT_SECRET", pem)], "JWT_SECRET=***"),
        (&previous[..2], "go together"),
        (&[previous[0], previous[2]], "go together"),
        (
            &[previous[0], ("CHAT_API_KEYS", "a:tiny")],
            "CHAT_API_KEYS: key 1: a key needs at least 16 bytes; give name:key or name:sha256:HEX",
        ),
        (
            &[previous[0], ("CHAT_API_KEYS_FILE", "bad-keys")],
            "CHAT_API_KEYS_FILE: bad-keys: line 2: there is no : between a name and a key; give name:key or name:sha256:HEX",
        ),
    ] {
        let error = load(given).unwrap_err();
        assert!(error.contains(reason) && !error.contains("tiny"), "{error}");
    }
}

#[test]
fn an_empty_api_key_means_none_and_covers_lower_layers() {
    let key = "0123456789abcdef";
    let mut inputs = with(&[]);
    inputs.dot_env = Some(format!("CHAT_API_KEY={key}"));
    let config = Config::load(&inputs).unwrap();
    assert!(config.credentials.api_keys.find(key.as_bytes()).is_some());
    let config = Config::load(&flag(inputs, "CHAT_API_KEY", "")).unwrap();
    assert!(config.credentials.api_keys.is_empty());
    let expected = ("(none)".to_owned(), Source::Flag);
    let shown = load(&[("CHAT_API_KEY", "")]);
    assert_eq!(source_of(&shown, "CHAT_API_KEY").0, expected.0);
}

#[test]
fn dev_makes_what_is_not_configured() {
    let mut bare = inputs();
    bare.environment.clear();
    bare.dev = true;
    let config = Config::load(&bare).unwrap();
    let other = Config::load(&bare).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1");
    let secret = config.generated.jwt_secret.clone().unwrap();
    assert_eq!(secret.len(), 64);
    assert_ne!(other.generated.jwt_secret, Some(secret.clone()));
    let key = config.generated.api_key.clone().unwrap();
    assert!(config.credentials.api_keys.find(key.as_bytes()).is_some());
    let hour = Duration::from_secs(3600);
    let token = config.credentials.keys.mint(None, Role::Service, hour, 0).unwrap();
    assert!(Keys::new(secret.as_bytes()).verify(&token, 1).is_ok());
    let shown = format!("{config:?}{}", config.report());
    assert!(!shown.contains(&secret) && !shown.contains(&key));
    assert_eq!(source_of(&config, "JWT_SECRET").1, Source::Dev);

    let mut given = with(&[("JWT_SECRET", "x"), ("CHAT_API_KEY", ""), ("CHAT_LISTEN", "::1")]);
    given.dev = true;
    let config = Config::load(&given).unwrap();
    assert!(config.generated.jwt_secret.is_none() && config.generated.api_key.is_none());
    assert!(config.credentials.api_keys.is_empty());
    assert_eq!(config.listen.to_string(), "::1");
    given.environment.insert("CHAT_API_KEY".into(), "short".into());
    assert!(Config::load(&given).is_err());
}

#[test]
fn token_rules_reach_the_keys() {
    let config = load(&[
        ("CHAT_JWT_ALGORITHMS", "HS512"),
        ("CHAT_JWT_ISSUER", "erp"),
        ("CHAT_JWT_AUDIENCE", "chat, all"),
        ("CHAT_ROLE_CLAIM", "role"),
    ]);
    let shown = format!("{:?}", config.credentials.keys);
    for part in ["[Hs512]", "[\"erp\"]", "[\"chat\", \"all\"]", "\"role\""] {
        assert!(shown.contains(part), "{shown}");
    }
}

#[test]
fn settings_and_limits_reach_their_fields() {
    let config = load(&[
        ("CHAT_RATES", "off"),
        ("CHAT_ENFORCE_EXPIRY", "off"),
        ("CHAT_ORIGINS", "https://a.example"),
        ("CHAT_LISTEN", "::"),
        ("CHAT_LOG", "warn"),
        ("CHAT_LOG_FORMAT", "json"),
        ("CHAT_STORE", "none"),
        ("CHAT_PRESENCE_LIST_LIMIT", "50"),
        ("CHAT_DRAIN_WINDOW_MS", "0"),
    ]);
    assert!(!config.rates && !config.enforce_expiry);
    assert!(config.origins.allows(Some("https://a.example")));
    assert!(!config.origins.allows(Some("https://b.example")));
    assert!(config.listen.is_unspecified() && config.listen.is_ipv6());
    assert_eq!(config.log.format, Format::Json);
    assert_eq!(config.limits.presence_list_limit, 50);
    assert_eq!(config.limits.drain_window_ms, 0);
}

#[test]
fn connections_follow_from_open_files() {
    for (open_files_max, connections_max) in
        [(0, 1), (128, 1), (1_024, 896), (1_000_128, 1_000_000), (u64::MAX, 1_000_000)]
    {
        let mut inputs = inputs();
        inputs.open_files_max = open_files_max;
        let config = Config::load(&inputs).unwrap();
        assert_eq!(config.limits.connections_max, connections_max);
    }
}

#[test]
fn the_report_shows_values_sources_and_the_bound_but_no_secret() {
    let config = load(&[("CHAT_API_KEY", "0123456789abcdef"), ("CHAT_THREADS", "2")]);
    let report = config.report();
    assert!(!report.contains(SECRET) && !report.contains("0123456789abcdef"));
    let has = |words: &[&str]| {
        let mut lines = report.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.any(|line| line == words)
    };
    assert!(has(&["JWT_SECRET", "***", "environment"]), "{report}");
    assert!(has(&["CHAT_THREADS", "2", "environment"]));
    assert!(has(&["CHAT_HEARTBEAT_MS", "30000", "default"]));
    assert!(has(&["segment", "pool", "256", "MiB"]), "{report}");
}

#[test]
fn the_bound_grows_with_what_it_counts() {
    let small = memory_bound(&load(&[("CHAT_CONNECTIONS_MAX", "1000")]));
    let large = memory_bound(&load(&[("CHAT_CONNECTIONS_MAX", "2000")]));
    let slot = SLOT_BYTES + (200 - ROOMS_IN_SLOT) * MEMBERSHIP_BYTES;
    assert_eq!(large.process_bytes() - small.process_bytes(), 1000 * slot);
    assert_eq!(small.kernel_bytes, 1000 * (131_072 * SEND_BUFFER_FACTOR + SEND_BUFFER_EXCESS_BYTES));
}

#[test]
fn the_bound_counts_a_store_only_if_there_is_one() {
    let bound = |store| memory_bound(&load(&[("CHAT_STORE", store), ("CHAT_STORE_BYTES_MAX", "1073741824")]));
    let (none, memory, file) = (bound("none"), bound("memory"), bound("data/chat.db"));
    let ids = 2 * 32_768 * RECENT_ID_BYTES;
    assert_eq!(memory, file);
    assert_eq!(file.process_bytes() - none.process_bytes(), STORE_BASE_BYTES + (1 << 30) + 4_096 * READ_BYTES + ids);
}

#[test]
fn the_bound_counts_tokens_only_where_they_are_checked_by_others_and_access_only_where_it_is_limited() {
    let bound = |environment: &[(&str, &str)]| {
        let few = [("CHAT_CONNECTIONS_MAX", "1000"), ("CHAT_THREADS", "2")];
        memory_bound(&load(&[&few, environment].concat())).process_bytes()
    };
    let (open, token) = (bound(&[]), u64::try_from(TOKEN_BYTES_MAX).unwrap());
    let keys = ("CHAT_JWKS", "http://erp.example.com/jwks");
    let checked = bound(&[keys]);
    assert_eq!(checked - open, 1_024 * (2 * token + TOKEN_BYTES) + 10_000 * TOKEN_BYTES);
    assert_eq!(bound(&[keys, ("CHAT_TOKEN_CACHE_MAX", "0")]), checked - 10_000 * TOKEN_BYTES);
    assert_eq!(bound(&[("CHAT_ROOM_ACCESS", "claims")]) - open, 1000 * GRANTS_FACTOR * token);
    assert_eq!(bound(&[("CHAT_ROOM_ACCESS", "a=members,*=open")]) - open, 1000 * 200 * GATE_ENTRY_BYTES);
}
