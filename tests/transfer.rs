//! `backup`, `export` and `import` against stores in files of their own.
//!
//! The stores are filled by the ledger as a server does it, with whatever a seed draws.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::Value;
use sizland_chat::chat::ids::RoomName;
use sizland_chat::chat::store::{Action, Actor, Change, Post, Verdict, Write};
use sizland_chat::config::{Limits, Store};
use sizland_chat::wire::event;
use sizland_chat::wire::message::{Author, new_message_prefix, parse_posted};
use sizland_chat::wire::value::Id;
use sizland_chat::work::backup::backup_to;
use sizland_chat::work::database::Database;
use sizland_chat::work::import::Imported;
use sizland_chat::work::ledger::Ledger;
use sizland_chat::work::retention::Retention;
use sizland_chat::work::transfer::{export_to, import_from};

const NOW_MS: u64 = 1_700_000_000_000;

/// A folder of a test's own, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("transfer-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn store(&self, name: &str) -> Store {
        Store::File(self.file(name))
    }

    fn export(&self, store: &str, name: &str) -> String {
        export_to(&self.store(store), Some(&self.file(name))).unwrap();
        fs::read_to_string(self.file(name)).unwrap()
    }

    fn import(&self, store: &str, lines: &str) -> Result<Imported, String> {
        let file = self.file("lines");
        fs::write(&file, lines).unwrap();
        import_from(&self.store(store), &file).map_err(|error| error.to_string())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn id(text: &str) -> Id {
    Id::parse_raw(text).unwrap()
}

/// What a home would make of a request of a service.
fn write(room: &str, at_ms: u64, action: Action) -> Arc<Write> {
    let mut prefix = Vec::new();
    match &action {
        Action::Edit { message, fields } => event::message_updated_prefix(&mut prefix, room, message, fields, None),
        Action::Delete { message } => event::message_deleted_prefix(&mut prefix, room, message, None),
        Action::React { message, emoji, user, .. } => {
            event::reaction_prefix(&mut prefix, room, message, emoji, user.as_ref());
        }
        Action::Unreact { message, emoji, user } => {
            event::reaction_removed_prefix(&mut prefix, room, message, emoji, user.as_ref());
        }
        _ => {}
    }
    let change = Change { by: Actor::Service, prefix, action };
    Arc::new(Write { room: RoomName::new(room, room.len() as u64), at_ms, change })
}

fn post(room: &str, at_ms: u64, key: (u64, u64), body: &str) -> Arc<Write> {
    let posted = parse_posted(body.as_bytes(), room, key, &Author::Service).unwrap();
    let id = posted.id.clone().unwrap();
    let mut prefix = Vec::new();
    new_message_prefix(&mut prefix, room, &id, &posted);
    let fields: Value = serde_json::from_str(body).unwrap();
    let sender = Id::parse_raw(&fields["sender_user_id"].to_string());
    let (digest, timestamp) = (posted.digest, posted.timestamp.map(Into::into));
    let post = Post { id, id_given: true, idempotency_key: None, digest, timestamp, sender, author: None };
    let change = Change { by: Actor::Service, prefix, action: Action::Post(post) };
    Arc::new(Write { room: RoomName::new(room, room.len() as u64), at_ms, change })
}

/// Fills a store with what `seed` draws, and trims it.
fn fill(store: &Store, seed: u64, limits: &Limits) {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let database = Database::open(store).unwrap();
    let key = database.facts().digest_key;
    let mut ledger = Ledger::new(database.writer().unwrap(), limits);
    let mut batch = Vec::new();
    for step in 0..600_u64 {
        let at_ms = NOW_MS + step;
        let mut below = |end: u32| rng.next_u32() % end;
        let room = format!("room \"{}\"", "x".repeat(below(4) as usize));
        let message = format!("{}", below(60));
        let (user, emoji) = (id(&format!("\"u{}\"", below(5))), ["👍", "x"][below(2) as usize].into());
        batch.push(match below(12) {
            0..=4 => {
                let time = if below(3) == 0 { ",\"timestamp\":\"2024-02-29T12:34:56Z\"" } else { "" };
                let body = format!(
                    "{{\"id\":{message},\"content\":\"é\\u00e9 {step}\",\"sender_user_id\":{}{time}}}",
                    below(9)
                );
                post(&room, at_ms, key, &body)
            }
            5 | 6 => {
                let fields = format!("\"content\":[{}]", below(3)).into_bytes();
                write(&room, at_ms, Action::Edit { message: id(&message), fields })
            }
            7 => write(&room, at_ms, Action::Delete { message: id(&message) }),
            8 => write(&room, at_ms, Action::React { message: id(&message), emoji, user, repeats: below(2) == 0 }),
            9 => write(&room, at_ms, Action::Unreact { message: id(&message), emoji, user }),
            10 if below(20) == 0 => write(&room, at_ms, Action::RemoveRoom),
            _ => write(&room, at_ms, Action::MarkRead { user, seq: u64::from(below(40)) }),
        });
        if below(10) == 0 {
            ledger.commit(&std::mem::take(&mut batch)).unwrap();
        }
    }
    ledger.commit(&batch).unwrap();
    let mut retention = Retention::new(limits);
    while ledger.trim(&mut retention, NOW_MS + 1000).unwrap() {}
}

/// Names the first line that differs, rather than all.
fn assert_same(found: &str, expected: &str) {
    for (number, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "line {}", number + 1);
    }
    assert_eq!(found.lines().count(), expected.lines().count());
}

#[test]
fn an_export_that_was_imported_is_exported_again_the_same() {
    for seed in 0..6 {
        println!("seed {seed}");
        let folder = Folder::new();
        let kept = if seed % 2 == 0 { 0 } else { 40 };
        fill(&folder.store("a"), seed, &Limits { retention_events: kept, ..Limits::default() });
        let first = folder.export("a", "first");
        let lines = first.lines().count() as u64;
        assert!(lines > 50, "{lines} lines");
        for line in first.lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            assert!(event["roomId"].is_string() && event["seq"].is_u64(), "{line}");
        }
        assert_eq!(folder.import("b", &first), Ok(Imported { kept: lines, skipped: 0 }), "seed {seed}");
        assert_same(&folder.export("b", "second"), &first);
        // Into either store again it changes nothing.
        for store in ["a", "b"] {
            assert_eq!(folder.import(store, &first), Ok(Imported { kept: 0, skipped: lines }), "seed {seed}");
            assert_same(&folder.export(store, &format!("again {store}")), &first);
        }
    }
}

#[test]
fn whose_older_tokens_are_refused_is_exported_too() {
    let folder = Folder::new();
    let database = Database::open(&folder.store("a")).unwrap();
    let mut ledger = Ledger::new(database.writer().unwrap(), &Limits::default());
    for (user, before_ms) in [("ana", 5), ("7", 9), ("ana", 8), ("ana", 6)] {
        ledger.revoke(user, before_ms, 10).unwrap();
    }
    drop((ledger, database));
    let lines = folder.export("a", "lines");
    let expected = "{\"type\":\"revocation\",\"userId\":\"ana\",\"revokeBefore\":8}\n\
                    {\"type\":\"revocation\",\"userId\":\"7\",\"revokeBefore\":9}\n";
    assert_eq!(lines, expected);
    assert_eq!(folder.import("b", &lines), Ok(Imported { kept: 2, skipped: 0 }));
    let older = "{\"type\":\"revocation\",\"userId\":7,\"revokeBefore\":3}\n";
    assert_eq!(folder.import("b", &format!("{lines}{older}")), Ok(Imported { kept: 0, skipped: 3 }));
    assert_eq!(folder.export("b", "again"), expected);
    assert_eq!(folder.import("b", &older.replace('3', "30")), Ok(Imported { kept: 1, skipped: 0 }));
    assert_eq!(folder.export("b", "later"), expected.replace('9', "30"));
}

#[test]
fn what_was_imported_goes_on_where_it_was() {
    let folder = Folder::new();
    let lines = r#"{"roomId":"r","id":7,"content":"old","sender_user_id":"ana","timestamp":5}
{"id":8,"roomId":"r","content":"older"}

{"type":"reaction","roomId":"r","messageId":7,"emoji":"x","userId":1,"timestamp":6}
{"type":"new_message","roomId":"trimmed","id":1,"content":"x","timestamp":5,"seq":41}
{"type":"read_mark","roomId":"r","userId":"ana","seq":2}
"#;
    assert_eq!(folder.import("a", lines), Ok(Imported { kept: 5, skipped: 0 }));
    let database = Database::open(&folder.store("a")).unwrap();
    let key = database.facts().digest_key;
    let mut ledger = Ledger::new(database.writer().unwrap(), &Limits::default());
    assert_eq!(ledger.last_position().unwrap(), 4);
    let verdicts = ledger.commit(&[
        // The ERP's retry of what was imported.
        post("r", 9, key, r#"{"id":7,"content":"old","sender_user_id":"ana"}"#),
        post("r", 9, key, r#"{"id":7,"content":"other","sender_user_id":"ana"}"#),
        post("r", 9, key, r#"{"id":9,"content":"new"}"#),
        post("trimmed", 9, key, r#"{"id":2,"content":"new"}"#),
        write("r", 9, Action::React { message: id("7"), emoji: "x".into(), user: id("1"), repeats: false }),
    ]);
    let verdicts = verdicts.unwrap();
    assert!(matches!(&verdicts[0], Verdict::Same(place) if place.seq == 1 && &*place.timestamp == "5"), "{verdicts:?}");
    assert!(matches!(verdicts[1], Verdict::Refused(_)), "{verdicts:?}");
    assert_eq!(verdicts[2..], [Verdict::New { seq: 4 }, Verdict::New { seq: 42 }, Verdict::Unchanged]);
}

#[test]
fn who_posts_again_what_was_exported_edited_or_deleted_is_told_its_place() {
    let folder = Folder::new();
    let database = Database::open(&folder.store("a")).unwrap();
    let posts = |key| [1, 2].map(|id| post("r", 5, key, &format!("{{\"id\":{id},\"content\":\"as it was\"}}")));
    let mut ledger = Ledger::new(database.writer().unwrap(), &Limits::default());
    ledger.commit(&posts(database.facts().digest_key)).unwrap();
    let edit = Action::Edit { message: id("1"), fields: b"\"content\":\"other\"".to_vec() };
    ledger.commit(&[write("r", 6, edit), write("r", 7, Action::Delete { message: id("2") })]).unwrap();
    drop((ledger, database));
    let lines = folder.export("a", "lines");
    folder.import("b", &lines).unwrap();
    let database = Database::open(&folder.store("b")).unwrap();
    let mut ledger = Ledger::new(database.writer().unwrap(), &Limits::default());
    let verdicts = ledger.commit(&posts(database.facts().digest_key)).unwrap();
    for (seq, verdict) in (1..).zip(verdicts) {
        assert!(matches!(&verdict, Verdict::Same(place) if place.seq == seq), "{verdict:?}");
    }
}

#[test]
fn what_can_be_read_of_a_damaged_store_is_kept_under_another_name() {
    let folder = Folder::new();
    fill(&folder.store("a"), 7, &Limits::default());
    let whole = folder.export("a", "whole");
    let mut bytes = fs::read(folder.file("a")).unwrap();
    let from = bytes.len() * 3 / 4;
    bytes[from..].fill(0xa5);
    fs::write(folder.file("a"), bytes).unwrap();
    let error = export_to(&folder.store("a"), Some(&folder.file("half"))).unwrap_err().to_string();
    assert!(error.contains("what could be read before that is in") && error.contains("half.partial"), "{error}");
    assert!(!folder.file("half").exists());
    let partial = fs::read_to_string(folder.file("half.partial")).unwrap();
    assert!(!partial.is_empty() && whole.starts_with(&partial), "{} bytes", partial.len());
}

#[test]
fn a_bad_line_keeps_nothing_of_its_batch() {
    let folder = Folder::new();
    let mut lines: Vec<String> =
        (0..1500).map(|id| format!("{{\"roomId\":\"r\",\"id\":{id},\"content\":\"x\"}}")).collect();
    for (at, bad, wrong) in [
        (1200, "{\"roomId\":\"r\"}", "a message needs an id"),
        (1200, "{\"roomId\":\"r\",\"id\":1,\"content\":\"y\"}", "another message with this id"),
        (1200, "{\"roomId\":\"r\",\"id\":\"x\",\"seq\":7}", "event 7 is another one"),
        (1200, "{\"roomId\":\"r\",\"id\":\"x\",\"seq\":9000}", "seq must be 1201"),
        (1200, "nonsense", "not JSON"),
    ] {
        let good = std::mem::replace(&mut lines[at], bad.to_owned());
        let error = folder.import("a", &lines.join("\n")).unwrap_err();
        for part in ["line 1201: ", wrong, "lines 1 to 1000 are kept"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        lines[at] = good;
        let exported = folder.export("a", wrong);
        assert_eq!(exported.lines().count(), 1000);
    }
    assert_eq!(folder.import("a", &lines.join("\n")), Ok(Imported { kept: 500, skipped: 1000 }));
}

#[test]
fn a_backup_is_another_store_with_the_same_content() {
    let folder = Folder::new();
    fill(&folder.store("a"), 99, &Limits::default());
    backup_to(&folder.store("a"), &folder.file("b")).unwrap();
    let (first, second) = (folder.export("a", "first"), folder.export("b", "second"));
    assert_same(&first, &second);
    let facts = ["a", "b"].map(|name| Database::open(&folder.store(name)).unwrap().facts());
    assert_ne!(facts[0].epoch, facts[1].epoch);
    assert_eq!(facts[0].digest_key, facts[1].digest_key);
    let again = backup_to(&folder.store("a"), &folder.file("b")).unwrap_err().to_string();
    assert!(again.contains("exists already"), "{again}");
    let nowhere = backup_to(&folder.store("a"), &folder.file("none/b")).unwrap_err().to_string();
    assert!(nowhere.contains("none"), "{nowhere}");
    let missing = backup_to(&folder.store("c"), &folder.file("d")).unwrap_err().to_string();
    assert!(missing.contains("/c: cannot be opened"), "{missing}");
    let mut names: BTreeMap<String, ()> = BTreeMap::new();
    for entry in fs::read_dir(&folder.0).unwrap() {
        names.insert(entry.unwrap().file_name().into_string().unwrap(), ());
    }
    assert!(!names.keys().any(|name| name.contains("partial")), "{names:?}");
}

#[test]
fn without_a_file_there_is_nothing_to_copy() {
    let folder = Folder::new();
    for store in [Store::None, Store::Memory] {
        let file = folder.file("x");
        let errors = [
            backup_to(&store, &file).map(drop),
            export_to(&store, Some(&file)).map(drop),
            import_from(&store, &file).map(drop),
        ];
        for error in errors {
            assert!(error.is_err());
            assert!(!file.exists());
        }
    }
}
