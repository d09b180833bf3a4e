//! Which files are opened, and what is said of the others.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;

use super::database::Database;
use super::ledger::Ledger;
use super::ledger_tests::{delete, edit, new, post};
use super::schema;
use crate::chat::store::Actor;
use crate::config::{Limits, Store};

/// A folder of the test's own, which goes with it.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sizland-chat-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn open(path: &Path) -> Database {
    Database::open(&Store::File(path.to_owned())).unwrap_or_else(|error| panic!("{error}"))
}

fn refusal(path: &Path) -> String {
    let error = Database::open(&Store::File(path.to_owned())).expect_err("it is refused").to_string();
    assert!(error.starts_with(&path.display().to_string()) && !error.contains('\n'), "{error}");
    error
}

fn ledger(database: &Database) -> Ledger {
    Ledger::new(database.writer().unwrap(), &Limits::default())
}

fn posts(count: usize, content: &str) -> Vec<Arc<crate::chat::store::Write>> {
    (0..count).map(|n| Arc::new(post("r", &format!("m{n}"), content, Some("1")))).collect()
}

/// A database with something in it, closed.
fn filled(folder: &Folder) -> PathBuf {
    let path = folder.path("chat.db");
    let database = open(&path);
    ledger(&database).commit(&posts(500, &"content ".repeat(20))).unwrap();
    path
}

#[test]
fn a_new_file_is_private_and_keeps_what_is_fixed() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new("new");
    let path = folder.path("deep/below/chat.db");
    let facts = open(&path).facts();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let database = open(&path);
    assert_eq!(database.facts().epoch, facts.epoch);
    assert_eq!(database.facts().digest_key, facts.digest_key);
    assert_eq!(facts.epoch.len(), 16);
    assert!(!database.is_memory() && database.path() == Some(&*path));
    let other = open(&folder.path("other.db")).facts();
    assert!(other.epoch != facts.epoch && other.digest_key != facts.digest_key);
    schema::renew_epoch(&database.writer().unwrap()).unwrap();
    drop(database);
    assert_ne!(open(&path).facts().epoch, facts.epoch);
}

#[test]
fn connections_are_what_they_are_for() {
    let folder = Folder::new("connections");
    let database = open(&folder.path("chat.db"));
    for connection in [database.writer(), database.reader(), database.checkpointer()] {
        let connection = connection.unwrap();
        let pragma = |name: &str| {
            connection.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0)).unwrap()
        };
        assert_eq!(pragma("journal_mode"), "wal".to_owned().into());
        for (name, value) in
            [("synchronous", 2), ("wal_autocheckpoint", 0), ("secure_delete", 1), ("cell_size_check", 1)]
        {
            assert_eq!(pragma(name), value.into(), "{name}");
        }
        assert_eq!(pragma("trusted_schema"), 0.into());
    }
    assert!(database.reader().unwrap().execute("DELETE FROM event", []).is_err());
    let memory = Database::open(&Store::Memory).unwrap();
    assert!(memory.is_memory() && memory.reader().is_err() && memory.writer().is_ok() && memory.writer().is_err());
    assert!(Database::open(&Store::None).is_err());
}

#[test]
fn a_file_of_the_first_version_goes_on_where_it_was() {
    let folder = Folder::new("first");
    let path = folder.path("chat.db");
    let mut old = Connection::open(&path).unwrap();
    old.pragma_update(None, "journal_mode", "WAL").unwrap();
    schema::make_first_version(&mut old);
    old.execute_batch(
        "UPDATE store SET batch = 9, last_position = 12, trimmed_position = 8;
         INSERT INTO room VALUES (1, 'r', 4, 6, 5, 2, 11), (2, 'empty', 8, 7, 3, 3, 5), (3, 'other', 1, 1, 1, 0, 12);
         INSERT INTO event VALUES
             (9, 1, 4, 1, 1, 0, 0, 4, 'm4', 0, NULL, NULL, NULL, x'7b7d', NULL),
             (10, 1, 5, 1, 1, 0, 0, 5, 'm5', 0, NULL, NULL, NULL, x'7b7d', NULL),
             (11, 1, 6, 0, 4, 0, 0, 5, 'm5', 0, '1', '+', NULL, x'7b7d', NULL),
             (12, 3, 1, 1, 1, 0, 0, 1, 'm1', 0, NULL, NULL, NULL, x'7b7d', NULL);",
    )
    .unwrap();
    let facts = schema::facts(&old).unwrap();
    drop(old);
    let refused = Database::open_beside(&path).expect_err("nothing is changed from beside").to_string();
    assert!(refused.contains("older version"), "{refused}");
    let database = open(&path);
    assert_eq!((database.facts().epoch, database.facts().digest_key), (facts.epoch, facts.digest_key));
    let mut ledger = ledger(&database);
    assert_eq!(ledger.last_position().unwrap(), 12);
    let writes: Vec<_> = ["r", "empty", "other", "new"].map(|room| Arc::new(post(room, "m", "x", None))).into();
    assert_eq!(ledger.commit(&writes).unwrap(), [new(7), new(8), new(2), new(1)]);
    assert_eq!(ledger.last_position().unwrap(), 16);
    let sql =
        "SELECT name, first_seq, last_seq, messages, messages_trimmed, last_position FROM room_now ORDER BY number";
    let mut rooms = ledger.connection().prepare(sql).unwrap();
    let rooms = rooms.query_map([], |row| {
        Ok((row.get::<_, String>(0)?, [row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get::<_, u64>(5)?]))
    });
    let rooms: Vec<(String, [u64; 5])> = rooms.unwrap().map(Result::unwrap).collect();
    let expected =
        [("r", [4, 7, 6, 2, 13]), ("empty", [8, 8, 4, 3, 14]), ("other", [1, 2, 2, 0, 15]), ("new", [1, 1, 1, 0, 16])];
    assert_eq!(rooms, expected.map(|(name, numbers)| (name.to_owned(), numbers)));
}

#[test]
fn an_emptied_file_is_refused_while_its_log_is_there() {
    let folder = Folder::new("emptied");
    let path = filled(&folder);
    fs::write(&path, "").unwrap();
    fs::write(folder.path("chat.db-wal"), "something").unwrap();
    let refused = refusal(&path);
    assert!(refused.contains("is empty") && refused.contains("chat.db-wal"), "{refused}");
    fs::remove_file(folder.path("chat.db-wal")).unwrap();
    assert_eq!(ledger(&open(&path)).last_position().unwrap(), 0, "then a new store begins");
}

#[test]
fn one_process_at_a_time() {
    let folder = Folder::new("lock");
    let path = folder.path("chat.db");
    let database = open(&path);
    assert!(refusal(&path).contains("another process has it open"));
    let beside = Database::open_beside(&path).unwrap();
    assert_eq!(schema::facts(&beside).unwrap().epoch, database.facts().epoch);
    assert!(beside.execute("DELETE FROM event", []).is_err());
    drop((beside, database));
    open(&path);
    assert!(Database::open_beside(&folder.path("none.db")).is_err());
    assert!(!folder.path("none.db").exists());
}

#[test]
fn what_is_no_database() {
    let folder = Folder::new("foreign");
    let text = folder.path("text");
    fs::write(&text, "no database, and long enough for a page".repeat(200)).unwrap();
    assert!(refusal(&text).contains("is no database"));
    let short = folder.path("short");
    fs::write(&short, "SQL").unwrap();
    assert!(refusal(&short).contains("is no database"));
    assert!(refusal(&folder.path("")).contains("cannot be written"));
    fs::create_dir(folder.path("folder")).unwrap();
    assert!(refusal(&folder.path("folder")).contains("cannot be written"));
    let other = folder.path("other");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    assert!(refusal(&other).contains("the database of another program"));
    assert_eq!(fs::read(&short).unwrap(), b"SQL", "what is refused is left as it was");
}

#[test]
fn a_newer_version() {
    let folder = Folder::new("newer");
    let path = filled(&folder);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let refusal = refusal(&path);
    assert!(refusal.contains("has version 99") && refusal.contains("run the newer server"), "{refusal}");
}

#[test]
fn what_is_damaged() {
    let folder = Folder::new("damaged");
    let path = filled(&folder);
    let whole = fs::read(&path).unwrap();
    let damaged = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let refusal = refusal(&path);
        assert!(refusal.contains("restore a backup"), "{refusal}");
        assert!(refusal.contains("damaged") || refusal.contains("is no database"), "{refusal}");
    };
    damaged(&whole[..whole.len() / 2]);
    damaged(&whole[..whole.len() - 4096]);
    damaged(&whole[..50]);
    for at in [0, 5] {
        let mut flipped = whole.clone();
        flipped[at] ^= 4;
        damaged(&flipped);
    }
    // A page in the middle that is something else.
    let mut other = whole.clone();
    let page = whole.len() / 4096 / 2 * 4096;
    other[page..page + 4096].fill(0xa5);
    damaged(&other);
    fs::write(&path, &whole).unwrap();
    assert_eq!(ledger(&open(&path)).last_position().unwrap(), 500);
}

#[test]
fn a_place_that_cannot_be_written() {
    // Where nobody may make a file, not even root.
    assert!(refusal(Path::new("/proc/chat.db")).contains("cannot be written"));
    assert!(refusal(Path::new("/proc/none/chat.db")).contains("cannot be written"));
}

#[test]
fn what_a_crash_left_in_the_log_is_there() {
    let folder = Folder::new("crash");
    let (path, copy) = (folder.path("chat.db"), folder.path("copy.db"));
    let database = open(&path);
    let mut ledger = ledger(&database);
    ledger.commit(&posts(100, "x")).unwrap();
    // What is on disk now is what a killed process leaves.
    for suffix in ["", "-wal"] {
        fs::copy(format!("{}{suffix}", path.display()), format!("{}{suffix}", copy.display())).unwrap();
    }
    let copied = open(&copy);
    let mut ledger = Ledger::new(copied.writer().unwrap(), &Limits::default());
    assert_eq!(ledger.last_position().unwrap(), 100);
    assert_eq!(ledger.commit(&[Arc::new(post("r", "next", "x", None))]).unwrap(), [new(101)]);
}

#[test]
fn what_is_deleted_is_erased_from_the_file() {
    let folder = Folder::new("erase");
    let path = folder.path("chat.db");
    let database = open(&path);
    let mut ledger = ledger(&database);
    let secret = |n: usize| format!("secret-{n}-{}", "s".repeat(n));
    for (n, length) in [10, 300, 5_000, 20_000].into_iter().enumerate() {
        let id = format!("m{n}");
        let writes = [
            post("r", &id, &secret(length), Some("1")),
            edit("r", Actor::Service, &id, &secret(length + 1)),
            delete("r", Actor::Service, &id),
        ];
        for write in writes {
            let before = database.checkpointer().unwrap();
            ledger.commit(&[Arc::new(write)]).unwrap();
            before.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        }
    }
    for suffix in ["", "-wal"] {
        let bytes = fs::read(format!("{}{suffix}", path.display())).unwrap();
        assert!(!bytes.windows(7).any(|window| window == b"secret-" || window == b"sssssss"), "{suffix}");
    }
}
