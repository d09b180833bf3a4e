//! The configuration: any `.env` and any TOML file give a configuration that says the same when it is given again, or a
//! message that names the fault; a secret is in neither.
//!
//! Input: the `.env` up to a NUL, then the TOML file.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;

use sizland_chat::config::{Config, Inputs, Source};

const SECRET: &str = "s3cr3t-7fd0c1a9-of-the-fuzz-target-configuration";
const API_KEY: &str = "k3y-51ab90ee-of-the-fuzz-target-configuration";

thread_local! {
    /// What the file holds that every path names here.
    static FILE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Loads what the input says.
pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (dot_env, file) = text.split_once('\0').unwrap_or((text, ""));
    FILE.with(|kept| file.clone_into(&mut kept.borrow_mut()));
    let secrets = [("JWT_SECRET", SECRET), ("CHAT_API_KEY", API_KEY)];
    let mut given: BTreeMap<String, String> = pairs(&secrets);
    given.insert("CHAT_CONFIG".to_owned(), "chat.toml".to_owned());
    match Config::load(&inputs(given, Some(dot_env.to_owned()))) {
        Ok(config) => {
            assert_no_secret(&config.report());
            assert_no_secret(&format!("{config:?}"));
            check_again(&config);
        }
        Err(error) => {
            let message = error.to_string();
            assert_no_secret(&message);
            assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
        }
    }
    // The same with the secrets where they usually stand.
    let secret_lines = format!("JWT_SECRET='{SECRET}'\nCHAT_API_KEY={API_KEY}\n{dot_env}");
    match Config::load(&inputs(BTreeMap::new(), Some(secret_lines))) {
        Ok(config) => assert_no_secret(&config.report()),
        Err(error) => assert_no_secret(&error.to_string()),
    }
}

/// What is in force, given as an environment, is in force again.
fn check_again(config: &Config) {
    let mut environment = BTreeMap::new();
    for line in config.effective() {
        let is_plain = line.source != Source::Default && !line.value.contains('\\') && line.value != "(none)";
        if is_plain && line.value != "***" {
            environment.insert(line.key.clone(), line.value.clone());
        }
    }
    environment.extend(pairs(&[("JWT_SECRET", SECRET), ("CHAT_API_KEY", API_KEY)]));
    let again = match Config::load(&inputs(environment.clone(), None)) {
        Ok(again) => again,
        Err(error) => panic!("{error}: {environment:?}"),
    };
    for (line, other) in config.effective().iter().zip(again.effective()) {
        if environment.get(&line.key) == Some(&line.value) {
            assert_eq!((&line.key, &line.value), (&other.key, &other.value));
        }
    }
}

fn inputs(environment: BTreeMap<String, String>, dot_env: Option<String>) -> Inputs {
    Inputs {
        dev: false,
        flags: Vec::new(),
        environment,
        dot_env,
        read_file: |_| Ok::<_, io::Error>(FILE.with(|kept| kept.borrow().clone())),
        open_files_max: 20_000,
        cores: 2,
    }
}

fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn assert_no_secret(text: &str) {
    assert!(!text.contains("7fd0c1a9") && !text.contains("51ab90ee"), "{text}");
}
