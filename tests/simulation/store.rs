//! The store of the simulation: the real ledger and the real reader on a database in memory, worked off in one thread.
//!
//! What the shards hand out waits until [`Store::work`] takes some of it up. Each batch may fail before, while or after it
//! is committed. Of every state that nobody has seen yet a copy is kept, so that a crash can take back what is unsynced.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::Connection;
use rusqlite::backup::Backup;
use sizland_chat::chat::store::{Asker, Done, Found, Job, Lookup, Revoke, StoreFacts, Verdict, Write};
use sizland_chat::config::{self, Limits};
use sizland_chat::wire::client::ErrorCode;
use sizland_chat::work::database::Database;
use sizland_chat::work::ledger::Ledger;
use sizland_chat::work::reader;

use super::plan::Faults;
use super::random::Random;
use super::truth::Truth;

/// Virtual instructions between two looks at whether a transaction is to fail.
const INSTRUCTIONS: i32 = 20;

/// What the store tells a shard, and which of its states that shows.
pub struct Told {
    pub shard: usize,
    pub done: Done,
    pub state: u64,
}

/// Makes the transaction under way fail: when it is committed, or after so many looks.
#[derive(Default)]
struct Breaker {
    commits: AtomicI64,
    looks: AtomicI64,
}

pub struct Store {
    ledger: Ledger,
    breaker: Arc<Breaker>,
    limits: Limits,
    facts: StoreFacts,
    writes: VecDeque<(usize, Vec<Arc<Write>>)>,
    reads: Vec<(usize, Asker, Lookup)>,
    /// What was read of memberships and is told later: readers and the writer are not in step.
    late: Vec<Told>,
    revokes: Vec<(usize, Revoke)>,
    watches: Vec<(usize, u64)>,
    /// Batches that were committed.
    state: u64,
    keeps_copies: bool,
    /// Of the states that nobody has seen: what was there before.
    unseen: VecDeque<(u64, Connection)>,
    pub truth: Truth,
}

impl Store {
    pub fn new(limits: &Limits, facts: StoreFacts, keeps_copies: bool) -> Self {
        let database = Database::open(&config::Store::Memory).unwrap();
        let connection = database.writer().unwrap();
        // What is drawn when a database is made would differ from run to run.
        let key = u128::from(facts.digest_key.0) | u128::from(facts.digest_key.1) << 64;
        let sql = "UPDATE store SET epoch = ?1, digest_key = ?2";
        connection.execute(sql, (&*facts.epoch, &key.to_le_bytes()[..])).unwrap();
        let (ledger, breaker) = open(connection, limits);
        Self {
            ledger,
            breaker,
            limits: limits.clone(),
            facts,
            writes: VecDeque::new(),
            reads: Vec::new(),
            late: Vec::new(),
            revokes: Vec::new(),
            watches: Vec::new(),
            state: 0,
            keeps_copies,
            unseen: VecDeque::new(),
            truth: Truth::default(),
        }
    }

    pub fn facts(&self) -> StoreFacts {
        self.facts.clone()
    }

    pub fn submit(&mut self, shard: usize, job: Job) {
        match job {
            Job::Write(writes) => self.writes.push_back((shard, writes)),
            Job::Read(asker, lookup) => self.reads.push((shard, asker, lookup)),
            Job::Revoke(revoke) => self.revokes.push((shard, revoke)),
            Job::WatchFeed(position) => {
                self.watches.retain(|&(other, _)| other != shard);
                self.watches.push((shard, position));
            }
        }
    }

    pub fn has_work(&self) -> bool {
        !self.writes.is_empty() || !self.reads.is_empty() || !self.late.is_empty() || !self.revokes.is_empty()
    }

    /// Does some of what waits: a batch of writes, or a read, whichever comes to hand.
    pub fn work(&mut self, random: &mut Random, faults: &Faults) -> Vec<Told> {
        let mut told = Vec::new();
        let reads_first = random.one_in(2);
        if !self.late.is_empty() && (random.one_in(6) || self.writes.is_empty() && self.reads.is_empty()) {
            told.push(self.late.swap_remove(random.below(self.late.len())));
        } else if !self.reads.is_empty() && (reads_first || self.writes.is_empty()) {
            self.read(random, faults, &mut told);
        } else if !self.writes.is_empty() {
            self.write(random, faults, &mut told);
        }
        for (shard, revoke) in self.revokes.drain(..) {
            let is_kept = !random.one_in(faults.store_before);
            told.push(Told { shard, done: Done::Revoked(revoke, is_kept), state: 0 });
        }
        self.tell_watchers(&mut told);
        told
    }

    fn read(&mut self, random: &mut Random, faults: &Faults, told: &mut Vec<Told>) {
        let (shard, asker, lookup) = self.reads.swap_remove(random.below(self.reads.len()));
        let fails = random.one_in(faults.read_fails);
        let found = if fails { Found::Failed } else { self.find(&lookup) };
        let is_answer = matches!(found, Found::Failed | Found::Refused(..));
        let is_late = matches!(asker, Asker::Member(..)) && random.one_in(if faults.is_any_of_store() { 2 } else { 0 });
        let read = Told { shard, done: Done::Found(asker, found), state: if is_answer { 0 } else { self.state } };
        if is_late { self.late.push(read) } else { told.push(read) }
    }

    pub fn find(&self, lookup: &Lookup) -> Found {
        reader::find_on(self.ledger.connection(), &self.facts, lookup)
    }

    fn write(&mut self, random: &mut Random, faults: &Faults, told: &mut Vec<Told>) {
        let jobs = if faults.is_any_of_store() { random.range(1, 4) } else { usize::MAX };
        let jobs: Vec<_> = self.writes.drain(..jobs.min(self.writes.len())).collect();
        let batch: Vec<Arc<Write>> = jobs.iter().flat_map(|(_, writes)| writes.iter().cloned()).collect();
        let verdicts = self.commit(&batch, random, faults);
        let state = if verdicts.is_some() { self.state } else { 0 };
        let refused = || vec![Verdict::Refused(ErrorCode::Unavailable); batch.len()];
        let mut verdicts = verdicts.unwrap_or_else(refused).into_iter();
        for (shard, writes) in jobs {
            let its: Vec<Verdict> = verdicts.by_ref().take(writes.len()).collect();
            match told.iter_mut().find(|told| told.shard == shard) {
                Some(Told { done: Done::Written(all), .. }) => all.extend(its),
                _ => told.push(Told { shard, done: Done::Written(its), state }),
            }
        }
    }

    /// One batch, in one of the ways in which it can go; `None` if those who asked learn nothing.
    fn commit(&mut self, batch: &[Arc<Write>], random: &mut Random, faults: &Faults) -> Option<Vec<Verdict>> {
        if random.one_in(faults.store_before) {
            return None;
        }
        let is_broken = random.one_in(faults.store_during);
        if is_broken {
            let (at, count) = if random.one_in(2) { (&self.breaker.commits, 1) } else { (&self.breaker.looks, 40) };
            at.store(random.range(1, count) as i64, Ordering::Relaxed);
        }
        let before = self.keeps_copies.then(|| copy(self.ledger.connection()));
        let committed = self.ledger.commit(batch);
        assert!(is_broken || committed.is_ok(), "{committed:?}");
        for at in [&self.breaker.commits, &self.breaker.looks] {
            at.store(0, Ordering::Relaxed);
        }
        let verdicts = committed.ok()?;
        assert_eq!(verdicts.len(), batch.len(), "each write has a verdict");
        self.state += 1;
        self.unseen.extend(before.map(|before| (self.state, before)));
        self.truth.take_in(batch, &verdicts);
        assert_eq!(self.ledger.last_position().unwrap(), self.truth.last_position());
        let is_lost = random.one_in(faults.store_lost);
        (!is_lost).then_some(verdicts)
    }

    fn tell_watchers(&mut self, told: &mut Vec<Told>) {
        let (last, state) = (self.truth.last_position(), self.state);
        self.watches.retain(|&(shard, position)| {
            let is_behind = last > position;
            if is_behind {
                told.push(Told { shard, done: Done::FeedMoved, state });
            }
            !is_behind
        });
    }

    /// Somebody has seen a state: no crash can take it back.
    pub fn note_seen(&mut self, state: u64) {
        while self.unseen.front().is_some_and(|&(of, _)| of <= state) {
            self.unseen.pop_front();
        }
    }

    /// The process ends at once, and another begins with what was synced; some of what nobody has seen may be gone.
    pub fn crash(&mut self, random: &mut Random) {
        // Somebody may still have been at work.
        for _ in 0..random.below(3) {
            if !self.writes.is_empty() {
                self.write(random, &Faults::default(), &mut Vec::new());
            }
        }
        let lost = random.below(self.unseen.len() + 1);
        let mut later = self.unseen.split_off(self.unseen.len() - lost);
        let connection = match later.pop_front() {
            Some((_, before)) => before,
            None => copy(self.ledger.connection()),
        };
        self.state += 1;
        self.unseen.clear();
        (self.ledger, self.breaker) = open(connection, &self.limits);
        (self.writes, self.reads, self.late, self.revokes, self.watches) = Default::default();
        let position = self.ledger.last_position().unwrap();
        self.truth.roll_back(position, self.ledger.connection());
    }

    /// Compares what the database holds with what it was told.
    pub fn check(&self) {
        self.truth.check(self.ledger.connection());
    }
}

fn open(mut connection: Connection, limits: &Limits) -> (Ledger, Arc<Breaker>) {
    let breaker = Arc::new(Breaker::default());
    let (at_commit, at_look) = (breaker.clone(), breaker.clone());
    connection.commit_hook(Some(move || at_commit.commits.load(Ordering::Relaxed) > 0)).unwrap();
    let looks = move || {
        let left = at_look.looks.load(Ordering::Relaxed);
        at_look.looks.store((left - 1).max(0), Ordering::Relaxed);
        left == 1
    };
    connection.progress_handler(INSTRUCTIONS, Some(looks)).unwrap();
    (Ledger::new(connection, limits), breaker)
}

fn copy(connection: &Connection) -> Connection {
    let mut to = Connection::open_in_memory().unwrap();
    Backup::new(connection, &mut to).unwrap().step(-1).unwrap();
    to
}
