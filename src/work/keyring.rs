//! The keys in force: where they come from, when that is looked at again, and how the shards learn of it.
//!
//! Owns the last good state of each source (PEM files, a key set, API keys): one that fails or is wrong changes nothing,
//! and is warned of once. A set at a URL is fetched at the start, at an interval, and when a token names a key that is not
//! known, though not more often than its cooldown allows. What changes goes to all shards in one order. The lock is between
//! the thread that watches files and the one that fetches; no loop takes it.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select, unbounded};

use super::crew;
use super::fetch::Fetcher;
use super::watch::Watch;
use crate::auth::{ApiKeys, CANDIDATES_MAX, Credentials, Key, jwks};
use crate::chat::ids::{ConnId, ShardId};
use crate::chat::job::Done;
use crate::config::{Config, JwksPlace, KeyFiles, shown_url, taken};
use crate::error::Error;
use crate::reactor::io::Post;
use crate::reactor::mailbox::Mailer;

/// The sources and what they last gave.
pub struct Keyring {
    files: KeyFiles,
    pem: Vec<Arc<Key>>,
    jwks: Vec<Arc<Key>>,
    api_keys: ApiKeys,
    mailers: Vec<Mailer<Post>>,
}

/// A keyring that several threads hold.
#[derive(Clone)]
pub struct SharedKeyring(Arc<Mutex<Keyring>>);

/// The thread that fetches; it ends soon after this is dropped, or when the fetch is over that it is at.
#[derive(Debug)]
pub struct KeyThread {
    searches: Sender<(ShardId, ConnId)>,
    _stop: Sender<()>,
}

/// A set at a URL.
struct Remote {
    keyring: SharedKeyring,
    fetcher: Fetcher,
    url: String,
    refresh: Duration,
    cooldown: Duration,
    fetched_at: Instant,
    /// Why it failed the last time.
    failure: Option<String>,
}

impl SharedKeyring {
    /// Reads what is in files, and has them read again when they change.
    ///
    /// # Errors
    /// A file cannot be read or used.
    pub fn open(config: &Config, watch: &mut Watch) -> Result<Self, Error> {
        let files = config.key_files.clone();
        let (pem, jwks, api_keys) = (Vec::new(), Vec::new(), ApiKeys::default());
        let keyring = Self(Arc::new(Mutex::new(Keyring { files, pem, jwks, api_keys, mailers: Vec::new() })));
        keyring.watch(watch);
        let Keyring { files, pem, jwks, api_keys, .. } = &mut *keyring.lock();
        (*pem, *jwks) = (files.read_pem(read_file)?, files.read_jwks(read_file)?);
        *api_keys = files.read_api_keys(read_file)?;
        warn_if_crowded(&files.credentials(pem, jwks, api_keys.clone()));
        Ok(keyring.clone())
    }

    /// What is in force now.
    pub fn credentials(&self) -> Credentials {
        self.lock().credentials()
    }

    fn watch(&self, watch: &mut Watch) {
        let files = self.lock().files.clone();
        if !files.pem.is_empty() {
            let (keyring, files) = (self.clone(), files.clone());
            watch.add("the public keys", files.pem.clone(), move || {
                let pem = files.read_pem(read_file).map_err(|error| error.to_string())?;
                keyring.change(|keyring| keyring.pem = pem);
                Ok(())
            });
        }
        if let Some(JwksPlace::File(path)) = &files.jwks {
            let (keyring, path, files) = (self.clone(), path.clone(), files.clone());
            watch.add("the key set", vec![path], move || {
                let jwks = files.read_jwks(read_file).map_err(|error| error.to_string())?;
                keyring.change(|keyring| keyring.jwks = jwks);
                Ok(())
            });
        }
        if let Some(path) = &files.api_keys {
            let (keyring, path) = (self.clone(), path.clone());
            watch.add("the API keys", vec![path], move || {
                let api_keys = files.read_api_keys(read_file).map_err(|error| error.to_string())?;
                keyring.change(|keyring| keyring.api_keys = api_keys);
                Ok(())
            });
        }
    }

    /// Fetches the key set for the first time, if it is at a URL, and starts the thread that does it again. What changes
    /// from now on is told to the shards by `mailers`; what is in force before, they have to be given.
    ///
    /// # Errors
    /// The system has no more threads. A set that cannot be fetched is only warned of.
    pub fn start(
        &self,
        config: &Config,
        mailers: &[Mailer<Post>],
        watch: &mut Watch,
    ) -> Result<Option<KeyThread>, Error> {
        let Some(JwksPlace::Url(url)) = config.key_files.jwks.clone() else {
            self.lock().mailers = mailers.to_vec();
            return Ok(None);
        };
        let limits = &config.limits;
        let ms = Duration::from_millis;
        let fetcher = Fetcher::new(ms(limits.jwks_timeout_ms), jwks::JWKS_BYTES_MAX);
        let (refresh, cooldown) = (ms(limits.jwks_refresh_ms), ms(limits.jwks_cooldown_ms));
        let keyring = self.clone();
        let mut remote = Remote { keyring, fetcher, url, refresh, cooldown, fetched_at: Instant::now(), failure: None };
        remote.fetch();
        self.lock().mailers = mailers.to_vec();
        let (demand, demands) = bounded(1);
        watch.add("the key set", Vec::new(), move || {
            // One that waits to be obeyed stands for this one as well.
            let _ = demand.try_send(());
            Ok(())
        });
        let (searches, sought) = unbounded();
        let (stop, stopped) = bounded(0);
        let post = crew::poster(mailers);
        let run = move || remote.run(&sought, demands, &stopped, post);
        let spawned = Builder::new().name("keys".to_owned()).spawn(run);
        spawned.map_err(|source| Error::System { action: "start the thread that fetches keys", source })?;
        Ok(Some(KeyThread { searches, _stop: stop }))
    }

    /// Changes what is in force, and tells the shards.
    fn change(&self, change: impl FnOnce(&mut Keyring)) {
        let mut keyring = self.lock();
        change(&mut keyring);
        let credentials = Arc::new(keyring.credentials());
        warn_if_crowded(&credentials);
        for mailer in &keyring.mailers {
            // A thread that has ended needs to be told nothing.
            let _ = mailer.post(Post::Credentials(credentials.clone()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Keyring> {
        // Nothing is half done in it when a thread panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keyring {
    fn credentials(&self) -> Credentials {
        self.files.credentials(&self.pem, &self.jwks, self.api_keys.clone())
    }
}

impl KeyThread {
    /// Where a shard asks for a key that it does not know.
    pub fn searches(&self) -> Sender<(ShardId, ConnId)> {
        self.searches.clone()
    }
}

impl Remote {
    fn run(
        mut self,
        searches: &Receiver<(ShardId, ConnId)>,
        mut demands: Receiver<()>,
        stopped: &Receiver<()>,
        post: impl Fn(ShardId, Done),
    ) {
        loop {
            // What fails is tried again sooner.
            let pause = if self.failure.is_some() { self.refresh.min(self.cooldown) } else { self.refresh };
            let due = crossbeam_channel::at(self.fetched_at + pause);
            select! {
                recv(stopped) -> _ => return,
                recv(due) -> _ => self.fetch(),
                recv(demands) -> demand => match demand {
                    Ok(()) => self.fetch(),
                    Err(_) => demands = never(),
                },
                recv(searches) -> search => {
                    let Ok((shard, conn)) = search else { return };
                    if self.fetched_at.elapsed() >= self.cooldown {
                        self.fetch();
                    }
                    post(shard, Done::KeySought(conn));
                }
            }
        }
    }

    /// Fetches the set; what was fetched before stays in force if that fails.
    fn fetch(&mut self) {
        let fetched = self.fetcher.get(&self.url).map_err(|error| error.to_string());
        let found = fetched.and_then(|answer| match answer.status {
            200 => jwks::keys(&answer.body),
            status => Err(format!("the answer is {status}")),
        });
        self.fetched_at = Instant::now();
        match found {
            Ok(set) => {
                if self.failure.take().is_some() {
                    tracing::info!(url = shown_url(&self.url), "the key set can be fetched again");
                }
                let jwks = taken(set);
                tracing::debug!(keys = jwks.len(), "the key set was fetched");
                let known = self.keyring.lock().jwks.clone();
                if !is_same_set(&known, &jwks) {
                    tracing::info!(keys = jwks.len(), "the key set has other keys");
                    self.keyring.change(|keyring| keyring.jwks = jwks);
                }
            }
            Err(reason) => {
                if self.failure.is_none() {
                    tracing::warn!(url = shown_url(&self.url), %reason, "the key set cannot be fetched; keys that were fetched before stay in force");
                }
                self.failure = Some(reason);
            }
        }
    }
}

/// Not every token without a `kid` verifies that should, if there are too many keys of its kind; but those of a set have
/// names that a token can give.
fn warn_if_crowded(credentials: &Credentials) {
    if let Some(kind) = credentials.keys.crowded_kind() {
        let (kind, max) = (kind.name(), CANDIDATES_MAX);
        tracing::warn!(kind, max, "there are more keys of a kind than a token without a kid is tried with");
    }
}

/// Whether the same keys are there, in whatever order.
fn is_same_set(some: &[Arc<Key>], others: &[Arc<Key>]) -> bool {
    let is_among = |key: &Arc<Key>, others: &[Arc<Key>]| others.iter().any(|other| key.is_same(other));
    some.iter().all(|key| is_among(key, others)) && others.iter().all(|key| is_among(key, some))
}

fn read_file(path: &Path) -> std::io::Result<String> {
    std::fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_another_order_are_the_same_set() {
        let key = |secret: &[u8], until_ms| Arc::new(Key::secret(secret, until_ms));
        let (one, two) = (key(b"a secret of one", None), key(b"a secret of two", None));
        let is_same = |some: &[&Arc<Key>], others: &[&Arc<Key>]| {
            let owned = |keys: &[&Arc<Key>]| keys.iter().map(|&key| key.clone()).collect::<Vec<_>>();
            is_same_set(&owned(some), &owned(others))
        };
        assert!(is_same(&[&one, &two], &[&two, &one]) && is_same(&[], &[]));
        assert!(!is_same(&[&one], &[&one, &two]) && !is_same(&[&one, &two], &[&two]));
        assert!(!is_same(&[&one, &two], &[&one, &key(b"another secret", None)]));
        assert!(!is_same(&[&one, &two], &[&one, &key(b"a secret of two", Some(1))]));
    }
}
