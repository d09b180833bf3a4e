//! The corpus of the fuzz targets, replayed without a fuzzer: what once was worth keeping must still hold.

#[path = "../tools/fuzz/src/lib.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use targets::TARGETS;

/// Says which file it was when its run panics.
struct Replayed(PathBuf);

impl Drop for Replayed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("failed with {}", self.0.display());
        }
    }
}

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/fuzz")
}

/// The entries of a folder by name.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = read.map(|entry| entry.expect("a folder can be read on").path()).collect();
    paths.sort();
    paths
}

fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("the target is in the list");
    let paths = entries(&fuzz_folder().join("corpus").join(name));
    assert!(!paths.is_empty(), "the corpus of {name} is empty");
    for path in &paths {
        let data = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let _replayed = Replayed(path.clone());
        (target.run)(&data);
    }
    println!("{name}: {} inputs", paths.len());
}

#[test]
fn client_json() {
    replay("client_json");
}

#[test]
fn configuration() {
    replay("configuration");
}

#[test]
fn frames() {
    replay("frames");
}

#[test]
fn http_head() {
    replay("http_head");
}

#[test]
fn inflate() {
    replay("inflate");
}

#[test]
fn jwks() {
    replay("jwks");
}

#[test]
fn origins() {
    replay("origins");
}

#[test]
fn proxy_header() {
    replay("proxy_header");
}

#[test]
fn rest_body() {
    replay("rest_body");
}

#[test]
fn shard() {
    replay("shard");
}

#[test]
fn token() {
    replay("token");
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let names = |folder: &str| -> BTreeSet<String> {
        let stems = entries(&fuzz_folder().join(folder)).into_iter();
        stems.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
    };
    let listed: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names("corpus"), listed);
    assert_eq!(names("targets"), listed);
}
