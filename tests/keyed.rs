//! Names that are made to collide, and comparisons that are made to be timed: nothing to be gained by either.

use std::fs;
use std::path::{Path, PathBuf};

use hashbrown::HashTable;

use sizland_chat::auth::ApiKeys;
use sizland_chat::chat::ids::{HashKey, home};

/// Twelve times one of two pairs of letters that the polynomial hash of Java and many others takes for the same.
fn colliding() -> Vec<String> {
    (0..1 << 12).map(|bits| (0..12).map(|pair| if bits >> pair & 1 == 0 { "Aa" } else { "BB" }).collect()).collect()
}

fn unkeyed(text: &str) -> u64 {
    text.bytes().fold(0, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(u64::from(byte)))
}

/// How many names are compared while each is looked for and put into a table.
fn comparisons(names: &[String], hash: impl Fn(&str) -> u64) -> usize {
    let (mut table, mut count) = (HashTable::new(), 0);
    for name in names {
        let found = table.find(hash(name), |other: &&String| {
            count += 1;
            *other == name
        });
        assert!(found.is_none());
        table.insert_unique(hash(name), name, |name| hash(name));
    }
    count
}

#[test]
fn names_that_collide_without_a_key_cost_no_more_with_one() {
    let names = colliding();
    let pairs = names.len() * (names.len() - 1) / 2;
    assert_eq!(comparisons(&names, unkeyed), pairs, "they do collide");
    for key in 0..16 {
        let key = HashKey::new([key; 16]);
        // A table's tag of seven bits lets about one in 128 of those that share a group through.
        let count = comparisons(&names, |name| key.hash(name));
        assert!(count < names.len(), "{count} comparisons for {} names", names.len());
        let mut at_home = [0; 4];
        names.iter().for_each(|name| at_home[home(key.hash(name), 4).index()] += 1);
        assert!(at_home.iter().all(|count| (850..1200).contains(count)), "{at_home:?}");
    }
}

/// The sources below `src`, by path.
fn sources() -> Vec<(PathBuf, String)> {
    let (mut folders, mut sources) = (vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                sources.push((path, text));
            }
        }
    }
    sources
}

#[test]
fn no_map_has_a_hasher_without_a_key() {
    for (path, text) in sources() {
        for word in ["FxHash", "AHash", "FnvHash", "foldhash", "DefaultHasher", "DefaultHashBuilder", "NoHash"] {
            assert!(!text.contains(word), "{} names {word}", path.display());
        }
        for hasher in text.split("BuildHasherDefault<").skip(1) {
            assert!(hasher.starts_with("KeyedHasher>"), "{}: {}", path.display(), &hasher[..20]);
        }
    }
}

#[test]
fn keys_are_compared_in_constant_time() {
    let keys = ApiKeys::one(b"a key of a backend");
    assert!(keys.find(b"a key of a backend").is_some());
    for other in ["", "a", "a key of a backenD", "A key of a backend", "a key of a backend ", "a key of a backend\0"] {
        assert!(keys.find(other.as_bytes()).is_none(), "{other:?}");
    }
    // That no time is saved at the first difference, nor at the first key, can be read, and not be measured: it is in one
    // place, which compares digests, all of them, and turns the outcome into a branch only behind the last one.
    let sources = sources();
    let (_, text) =
        sources.iter().find(|(path, _)| path.ends_with("auth/api_keys.rs")).expect("API keys have a module");
    let (_, rest) = text.split_once("pub fn find(").expect("one function finds a key");
    let (found, _) = rest.split_once("\n    }\n").expect("its end");
    assert!(found.contains("ct_eq") && found.contains("Sha256::digest(given)"), "{found}");
    for word in ["==", "break", "return", "any(", "find(", "position("] {
        assert!(!found.contains(word), "{word} in {found}");
    }
}
