//! `backup`: a copy of the store in one file, also while a server writes it.
//!
//! Owns that the copy is whole (it appears under its name only when all of it is on the disk, and has been looked
//! through) and that it is another store: it has an epoch of its own, so that clients which have seen more than is in it
//! notice. It keeps the key of the digests, so that retries are told in it too.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::database::Database;
use super::schema::renew_epoch;
use super::transfer::{store_file, unreadable, unusable};
use crate::config::Store;
use crate::error::Error;

/// Copies the store that is configured to `target`, a new file. Returns how many bytes it has.
///
/// # Errors
/// There is no store in a file, it cannot be read, or `target` exists or cannot be written. Then there is no `target`.
pub fn backup_to(store: &Store, target: &Path) -> Result<u64, Error> {
    let store = store_file(store)?;
    if fs::symlink_metadata(target).is_ok() {
        return Err(unusable(target, &io::ErrorKind::AlreadyExists.into()));
    }
    let connection = Database::open_beside(store)?;
    let partial = partial_of(target);
    let copied = copy(&connection, store, &partial, target);
    if copied.is_err() {
        // It may not have been made.
        let _ = fs::remove_file(&partial);
    }
    copied
}

fn copy(connection: &Connection, store: &Path, partial: &Path, target: &Path) -> Result<u64, Error> {
    let file = super::transfer::private().create_new(true).open(partial).map_err(|error| unusable(partial, &error))?;
    let name = partial.to_str().ok_or_else(|| unusable(partial, &io::ErrorKind::InvalidFilename.into()))?;
    // The copy counts as a change, though not of what is copied.
    connection.pragma_update(None, "query_only", false).map_err(|error| unreadable(store, &error))?;
    connection.execute("VACUUM INTO ?1", [name]).map_err(|error| unreadable(partial, &error))?;
    make_another(partial).map_err(|error| unreadable(partial, &error))?;
    let bytes = file.sync_all().and_then(|()| file.metadata()).map_err(|error| unusable(partial, &error))?.len();
    // A link is never made over a file that has come meanwhile; where there are none, a name is given.
    let named = match fs::hard_link(partial, target) {
        Ok(()) => fs::remove_file(partial),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        Err(_) => fs::rename(partial, target),
    };
    named.and_then(|()| sync_folder(target)).map_err(|error| unusable(target, &error))?;
    Ok(bytes)
}

/// Looks through the copy and gives it an epoch of its own.
fn make_another(partial: &Path) -> rusqlite::Result<()> {
    let copy = Connection::open(partial)?;
    renew_epoch(&copy)?;
    let found: String = copy.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if found != "ok" {
        let corrupt = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        return Err(rusqlite::Error::SqliteFailure(corrupt, Some(format!("the store is damaged: {found}"))));
    }
    copy.close().map_err(|(_, error)| error)
}

/// A name beside the target that no other backup uses.
fn partial_of(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    name.into()
}

/// So that also the name outlives a crash of the machine.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
