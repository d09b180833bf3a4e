//! A folder for a store of a test's own, and what the commands say of the store.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::client::unique;
use crate::server::{bare, run};

/// Removed when dropped.
pub struct StoreFolder(PathBuf);

impl StoreFolder {
    pub fn new() -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique("store"));
        fs::create_dir_all(&path).expect("the target directory can be written");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The same as text, for the environment.
    pub fn text(&self, name: &str) -> String {
        self.file(name).to_str().expect("a path of tests is UTF-8").to_owned()
    }
}

impl Drop for StoreFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The messages of a store, room by room as `(seq, id)`, in order and without a hole.
pub fn exported(store: &str) -> BTreeMap<String, Vec<(u64, String)>> {
    exported_by(bare(&["export"]), store)
}

/// The same by a command that ends in `export`.
pub fn exported_by(mut command: Command, store: &str) -> BTreeMap<String, Vec<(u64, String)>> {
    command.env("CHAT_STORE", store);
    let finished = run(command);
    assert_eq!(finished.code, Some(0), "{:#?}", finished.stderr);
    let mut rooms: BTreeMap<String, Vec<(u64, String)>> = BTreeMap::new();
    for line in finished.stdout.iter().filter(|line| !line.is_empty()) {
        let event: Value = serde_json::from_str(line).expect("a line is JSON");
        if event["type"] == "revocation" {
            continue;
        }
        let room = rooms.entry(event["roomId"].as_str().expect("a room").to_owned()).or_default();
        let seq = event["seq"].as_u64().expect("a place");
        assert_eq!(seq, room.len() as u64 + 1, "no hole: {line}");
        room.push((seq, event["id"].as_str().expect("tests give ids as strings").to_owned()));
    }
    rooms
}
