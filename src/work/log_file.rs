//! The file of the store's log beside the database file, as far as SQLite leaves it to others.
//!
//! Owns how long the file is. SQLite writes a log from its beginning, and takes nothing for a part of it that has not the
//! salt of its header; so what lies behind the log may be anything, and zeros are nothing. Must not know what is in it.
//! It takes no lock, so closing the file drops none of SQLite's.

use std::fs::{self, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::checkpointer::{LARGE_BYTES, LARGE_BYTES_LEAST};
use crate::config::Limits;

/// As long as the log is made in passing, behind something that was erased.
pub(super) const LENGTH_SHORT: u64 = with_room(LARGE_BYTES_LEAST);
static ZEROS: [u8; 65_536] = [0; 65_536];

/// From how many bytes on the log is written back; `has_room` says that it could be made long enough for that.
pub(super) fn large_bytes(limits: &Limits, has_room: bool) -> u64 {
    let most = if has_room { LARGE_BYTES } else { LARGE_BYTES_LEAST };
    most.min(limits.store_log_bytes_max / 2)
}

/// How long the log is made before it is used: as it becomes between two checkpoints of a store that is busy.
pub(super) fn length(limits: &Limits) -> u64 {
    with_room(large_bytes(limits, true))
}

/// With something more, for what is committed during the checkpoint.
const fn with_room(large_bytes: u64) -> u64 {
    large_bytes + large_bytes / 4
}

/// The log beside a database file.
pub(super) fn path_of(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// Whether there is anything in the log of a database.
pub(super) fn is_used(database: &Path) -> bool {
    fs::metadata(path_of(database)).is_ok_and(|metadata| metadata.len() > 0)
}

/// Appends zeros to the log of a database up to a length. Where there is no room for so many, none are left there.
///
/// # Errors
/// Those of the file system.
pub(super) fn lengthen(database: &Path, to: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path_of(database))?;
    let before = file.seek(SeekFrom::End(0))?;
    let mut length = before;
    let lengthened = loop {
        let missing = to.saturating_sub(length).min(ZEROS.len() as u64);
        if missing == 0 {
            break file.sync_data();
        }
        match file.write(&ZEROS[..missing as usize]) {
            Ok(written) => length += written as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    if lengthened.is_err() {
        file.set_len(before)?;
    }
    lengthened
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::work::database_tests::{Folder, open};

    /// What a copy of the files, as a crash would leave them, says of a number.
    fn number_in_copy(folder: &Folder, database: &Path) -> u64 {
        let copy = folder.path("copy.db");
        fs::copy(database, &copy).unwrap();
        fs::copy(path_of(database), path_of(&copy)).unwrap();
        let connection = Connection::open(&copy).unwrap();
        connection.query_row("SELECT batch FROM store", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_log_that_was_made_longer_is_the_same_log() {
        let folder = Folder::new("lengthened");
        let path = folder.path("chat.db");
        let database = open(&path);
        let connection = database.writer().unwrap();
        for number in 1..=20 {
            let mode = ["PASSIVE", "RESTART", "TRUNCATE"][number as usize % 3];
            if number % 2 == 0 {
                connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(())).unwrap();
            }
            lengthen(&path, LENGTH_SHORT).unwrap();
            assert_eq!(fs::metadata(path_of(&path)).unwrap().len(), LENGTH_SHORT);
            connection.execute("UPDATE store SET batch = ?1", [number]).unwrap();
            assert_eq!(number_in_copy(&folder, &path), number);
        }
    }
}
