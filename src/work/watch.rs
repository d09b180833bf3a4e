//! What is read again while the server runs.
//!
//! Owns the thread `watch`, which looks once a second whether a watched file is another one (and sleeps where there is
//! none), and reads everything again when it is told to (SIGHUP). It knows nothing of what is read: whoever
//! [adds](Watch::add) something brings a closure that reads it, checks it and, only if it is good, hands it on, to the
//! shards as a [`Post`](crate::reactor::io::Post). So a bad file leaves in force what is in force, and the loops neither
//! read a file nor take a lock.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::Builder;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, never, select_biased, tick};

use crate::error::Error;

/// Between two looks at the files.
const LOOK: Duration = Duration::from_secs(1);
/// Looks after which files are read even though they still change.
const UNSETTLED_LOOKS_MAX: u32 = 10;

/// A list of things to read again, before its thread starts.
#[derive(Default, Debug)]
pub struct Watch {
    watched: Vec<Watched>,
}

/// The thread; it ends soon after this is dropped.
#[derive(Debug)]
pub struct WatchThread {
    _stop: Sender<()>,
}

/// Files that are read together.
struct Watched {
    what: String,
    paths: Vec<PathBuf>,
    /// How the files were when they were last looked at.
    seen: Vec<Option<Stamp>>,
    /// For how many looks they have been other than when they were read; 0 if they are as they were.
    unsettled: u32,
    /// Why they could not be used when they were last read.
    failure: Option<String>,
    reload: Box<dyn FnMut() -> Result<(), String> + Send>,
}

/// What tells a file from another, or from its earlier self. Symbolic links are followed, so that one that is turned
/// to another file counts as a change, as Kubernetes does it with secrets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    /// Also when its owner or its mode changes.
    changed: (i64, i64),
}

impl Watch {
    /// Adds what `reload` reads from `paths`; `what` names it in the log, as in "the certificate".
    ///
    /// Add it before the files are first read: what happens to them in between is then seen. `reload` is called by the
    /// thread when one of the files has changed, has come or has gone, and when everything is to be read again. It may
    /// block. When it fails it must leave in force what is in force, and says in one sentence what is wrong, without
    /// anything secret; that is logged as a warning, once until it fails in another way or the operator asks again.
    ///
    /// Without `paths` it is only called when everything is read again.
    pub fn add(
        &mut self,
        what: impl Into<String>,
        paths: Vec<PathBuf>,
        reload: impl FnMut() -> Result<(), String> + Send + 'static,
    ) {
        let (what, reload) = (what.into(), Box::new(reload));
        let seen = stamps(&paths);
        self.watched.push(Watched { what, paths, seen, unsettled: 0, failure: None, reload });
    }

    /// Starts the thread. Each message of `demands` has everything read again.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn start(self, demands: Receiver<()>) -> Result<WatchThread, Error> {
        let (stop, stopped) = bounded(0);
        let spawned = Builder::new().name("watch".to_owned()).spawn(move || self.run(demands, &stopped));
        spawned.map_err(|source| Error::System { action: "start the thread that watches files", source })?;
        Ok(WatchThread { _stop: stop })
    }

    fn run(mut self, mut demands: Receiver<()>, stopped: &Receiver<()>) {
        let has_files = self.watched.iter().any(|watched| !watched.paths.is_empty());
        let looks = if has_files { tick(LOOK) } else { never() };
        loop {
            select_biased! {
                recv(stopped) -> _ => return,
                recv(demands) -> demand => match demand {
                    Ok(()) => self.reload_all(),
                    // Nobody can ask any more; the files may still change.
                    Err(_) => demands = never(),
                },
                recv(looks) -> _ => self.look(),
            }
        }
    }

    fn reload_all(&mut self) {
        tracing::info!(things = self.watched.len(), "reading again what can be");
        for watched in &mut self.watched {
            watched.seen = stamps(&watched.paths);
            watched.failure = None;
            watched.reload();
        }
    }

    fn look(&mut self) {
        for watched in &mut self.watched {
            watched.look();
        }
    }
}

impl Watched {
    /// Reads the files again if they have changed, once they stay as they are from one look to the next: a certificate
    /// and its key are not replaced in the same moment.
    fn look(&mut self) {
        let stamps = stamps(&self.paths);
        if stamps != self.seen {
            self.seen = stamps;
            self.unsettled += 1;
            if self.unsettled < UNSETTLED_LOOKS_MAX {
                return;
            }
        }
        if self.unsettled > 0 {
            self.reload();
        }
    }

    fn reload(&mut self) {
        self.unsettled = 0;
        let what = &self.what;
        match (self.reload)() {
            Ok(()) => {
                self.failure = None;
                tracing::info!(%what, "read again");
            }
            Err(error) if self.failure.as_ref() != Some(&error) => {
                tracing::warn!(%what, %error, "could not be read again; what was read before stays in force");
                self.failure = Some(error);
            }
            Err(_) => {}
        }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("what", &self.what).field("paths", &self.paths).finish_non_exhaustive()
    }
}

/// How the files are now; `None` for one that is not there.
fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| stamp(path)).collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        device: metadata.dev(),
        inode: metadata.ino(),
        bytes: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::mpsc::{Receiver as Calls, RecvTimeoutError, channel};

    use super::super::database_tests::Folder;
    use super::*;

    /// A watched file whose text is what reading it comes to: an error if it begins with "bad".
    fn watched(path: PathBuf) -> (Watch, Calls<String>) {
        let (calls, called) = channel();
        let mut watch = Watch::default();
        let file = path.clone();
        watch.add("a file", vec![path], move || {
            let text = fs::read_to_string(&file).map_err(|error| error.to_string())?;
            let _ = calls.send(text.clone());
            if text.starts_with("bad") { Err(text) } else { Ok(()) }
        });
        (watch, called)
    }

    #[test]
    fn a_file_is_read_once_it_has_settled_and_only_when_it_changes() {
        let folder = Folder::new("watch");
        let path = folder.path("file");
        fs::write(&path, "one").unwrap();
        let (mut watch, called) = watched(path.clone());
        watch.look();
        watch.look();
        assert!(called.try_recv().is_err(), "it was read before it was watched");
        fs::write(&path, "four").unwrap();
        watch.look();
        assert!(called.try_recv().is_err(), "it may still be written");
        watch.look();
        assert_eq!(called.try_recv().unwrap(), "four");
        watch.look();
        assert!(called.try_recv().is_err());
        // As an editor or certbot does it: another file takes the name.
        fs::write(folder.path("new"), "five").unwrap();
        fs::rename(folder.path("new"), &path).unwrap();
        watch.look();
        watch.look();
        assert_eq!(called.try_recv().unwrap(), "five");
    }

    #[test]
    fn a_file_that_never_settles_is_read_all_the_same() {
        let folder = Folder::new("watch-unsettled");
        let path = folder.path("file");
        let (mut watch, called) = watched(path.clone());
        for number in 0..UNSETTLED_LOOKS_MAX {
            fs::write(&path, "x".repeat(number as usize + 1)).unwrap();
            watch.look();
        }
        assert_eq!(called.try_iter().count(), 1);
    }

    #[test]
    fn a_link_that_is_turned_is_a_change_and_so_is_a_file_that_comes_or_goes() {
        let folder = Folder::new("watch-link");
        let link = folder.path("data");
        for name in ["one", "two"] {
            fs::create_dir_all(folder.path(name)).unwrap();
            fs::write(folder.path(name).join("key"), name).unwrap();
        }
        symlink(folder.path("one"), &link).unwrap();
        let (mut watch, called) = watched(link.join("key"));
        symlink(folder.path("two"), folder.path("new")).unwrap();
        fs::rename(folder.path("new"), &link).unwrap();
        watch.look();
        watch.look();
        assert_eq!(called.try_recv().unwrap(), "two");
        fs::remove_file(&link).unwrap();
        watch.look();
        watch.look();
        assert!(watch.watched[0].failure.is_some());
        symlink(folder.path("one"), &link).unwrap();
        watch.look();
        watch.look();
        assert_eq!(called.try_recv().unwrap(), "one");
        assert!(watch.watched[0].failure.is_none());
    }

    #[test]
    fn a_failure_is_remembered_until_it_is_over_or_the_operator_asks() {
        let folder = Folder::new("watch-failure");
        let path = folder.path("file");
        fs::write(&path, "good").unwrap();
        let (mut watch, called) = watched(path.clone());
        fs::write(&path, "bad one").unwrap();
        watch.look();
        watch.look();
        assert_eq!(watch.watched[0].failure.as_deref(), Some("bad one"));
        watch.reload_all();
        assert_eq!(called.try_iter().count(), 2, "it is read again although it did not change");
        fs::write(&path, "good again").unwrap();
        watch.look();
        watch.look();
        assert_eq!(watch.watched[0].failure, None);
    }

    #[test]
    fn the_thread_reads_on_demand_and_ends_with_its_handle() {
        let folder = Folder::new("watch-thread");
        let path = folder.path("file");
        fs::write(&path, "text").unwrap();
        let (watch, called) = watched(path);
        let (demand, demands) = bounded(1);
        let thread = watch.start(demands).unwrap();
        demand.send(()).unwrap();
        assert_eq!(called.recv_timeout(Duration::from_secs(10)).unwrap(), "text");
        drop(thread);
        // The closure, and with it the sender, goes with the thread.
        assert_eq!(called.recv_timeout(Duration::from_secs(10)), Err(RecvTimeoutError::Disconnected));
    }
}
