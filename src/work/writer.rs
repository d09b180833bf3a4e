//! The thread that writes.
//!
//! Owns the order in which all shards' changes are committed: everything that waits becomes one batch (it never waits
//! for more), one batch one transaction, and each shard gets one post of verdicts per transaction, write by write in the
//! order in which it had handed them out. When a batch fails all of it is refused, and what comes next is refused at
//! once until a probe, a tiny write once a second, succeeds: so the store heals without traffic, and says so.
//!
//! Must not know what a write means or how it is kept: that is the [`Core`]'s. Invariants: each write has one verdict,
//! also at the end; nothing but the core's transactions takes time here; between two batches there is at most one
//! step of the retention.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never, select};

use super::failure::{Complaints, Failure, Health};
use crate::chat::ids::ShardId;
use crate::chat::store::{Asker, Done, Found, Job, Lookup, Revoke, Verdict, Write};
use crate::wire::client::ErrorCode;

/// What is done in transactions, and all that the thread knows of the database.
pub(crate) trait Core {
    /// Commits all writes, or nothing; a verdict for each.
    fn commit(&mut self, writes: &[Arc<Write>]) -> Result<Vec<Verdict>, Failure>;
    /// Keeps a revocation.
    fn revoke(&mut self, revoke: &Revoke) -> Result<(), Failure>;
    /// The last event's place in the feed, as far as it is committed.
    fn last_position(&mut self) -> Result<u64, Failure>;
    /// Commits something tiny that changes nothing.
    fn probe(&mut self) -> Result<(), Failure>;
    /// Takes another connection.
    fn reopen(&mut self) -> Result<(), Failure>;
    /// Removes some of what is not kept any more; whether there may be more.
    fn trim(&mut self) -> Result<bool, Failure>;
    /// Writes the log back if it has grown beyond its limit.
    fn bound_log(&mut self);
    /// Answers a lookup, where nobody else can.
    fn find(&mut self, lookup: &Lookup) -> Found;
}

/// How much the thread does at once, and how often what.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    /// A batch that has so many writes takes no other job.
    pub batch_writes: usize,
    /// A batch that has so many bytes takes no other job.
    pub batch_bytes: usize,
    /// Between two probes of a store that fails.
    pub probe: Duration,
    /// Between two steps of the retention while there is something to remove.
    pub trim: Duration,
    /// Between two looks for something to remove; `None` looks only after something was written.
    pub trim_look: Option<Duration>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            batch_writes: 1024,
            batch_bytes: 4 * 1024 * 1024,
            probe: Duration::from_secs(1),
            trim: Duration::from_millis(50),
            trim_look: None,
        }
    }
}

/// The state of the thread.
pub(crate) struct Writer<C, P> {
    core: C,
    post: P,
    jobs: Receiver<(ShardId, Job)>,
    health: Health,
    pace: Pace,
    batch: Batch,
    reads: Vec<(ShardId, Asker, Lookup)>,
    revokes: Vec<(ShardId, Revoke)>,
    watches: Vec<(ShardId, u64)>,
    /// Since it fails: when it is probed next.
    probe_at: Option<Instant>,
    needs_reopening: bool,
    complaints: Complaints,
    trim_at: Option<Instant>,
}

/// Writes that are committed together.
#[derive(Default)]
struct Batch {
    writes: Vec<Arc<Write>>,
    /// Whose they are, in the same order.
    shares: Vec<(ShardId, usize)>,
    bytes: usize,
}

impl<C: Core, P: FnMut(ShardId, Done)> Writer<C, P> {
    /// A writer that takes `jobs` and gives what came of them to `post`.
    pub fn new(core: C, jobs: Receiver<(ShardId, Job)>, post: P, health: Health, pace: Pace) -> Self {
        let trim_at = Some(Instant::now());
        Self {
            core,
            post,
            jobs,
            health,
            pace,
            batch: Batch::default(),
            reads: Vec::new(),
            revokes: Vec::new(),
            watches: Vec::new(),
            probe_at: None,
            needs_reopening: false,
            complaints: Complaints::default(),
            trim_at,
        }
    }

    /// Works until `stop` has no sender any more, and then once through what has been handed out; gives the core back.
    pub fn run(mut self, stop: &Receiver<()>) -> C {
        while self.wait(stop) {
            self.step();
        }
        while self.take_waiting() {
            self.step();
        }
        self.core
    }

    /// Waits for a job, a time or the end; `false` is the end.
    fn wait(&mut self, stop: &Receiver<()>) -> bool {
        if self.take_waiting() {
            return true;
        }
        // While the store fails nothing is removed from it.
        let timer = self.probe_at.or(self.trim_at).map_or_else(never, at);
        let jobs = self.jobs.clone();
        select! {
            recv(jobs) -> job => match job {
                Ok((shard, job)) => self.take(shard, job),
                Err(_) => return false,
            },
            recv(stop) -> _ => return false,
            recv(timer) -> _ => {}
        }
        self.take_waiting();
        true
    }

    /// Takes what waits, up to a batch; whether there was anything.
    fn take_waiting(&mut self) -> bool {
        let mut has_taken = false;
        while self.batch.writes.len() < self.pace.batch_writes
            && self.batch.bytes < self.pace.batch_bytes
            && self.reads.len() + self.revokes.len() < self.pace.batch_writes
        {
            let Ok((shard, job)) = self.jobs.try_recv() else { break };
            self.take(shard, job);
            has_taken = true;
        }
        has_taken
    }

    fn take(&mut self, shard: ShardId, job: Job) {
        match job {
            Job::Write(writes) => self.batch.add(shard, writes),
            Job::Read(asker, lookup) => self.reads.push((shard, asker, lookup)),
            Job::Revoke(revoke) => self.revokes.push((shard, revoke)),
            Job::WatchFeed(position) => {
                self.watches.retain(|&(other, _)| other != shard);
                self.watches.push((shard, position));
            }
        }
    }

    fn step(&mut self) {
        let now = Instant::now();
        if self.probe_at.is_some_and(|due| due <= now) {
            self.probe();
        }
        if !self.batch.writes.is_empty() {
            self.commit();
        }
        for (shard, asker, lookup) in std::mem::take(&mut self.reads) {
            let found = self.core.find(&lookup);
            (self.post)(shard, Done::Found(asker, found));
        }
        for (shard, revoke) in std::mem::take(&mut self.revokes) {
            let is_kept = self.revoke(&revoke);
            (self.post)(shard, Done::Revoked(revoke, is_kept));
        }
        self.tell_watchers();
        if self.probe_at.is_none() {
            self.trim();
        }
    }

    fn commit(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let committed = match self.probe_at {
            Some(_) => None,
            None => Some(self.core.commit(&batch.writes)),
        };
        let verdicts = match committed {
            Some(Ok(verdicts)) => {
                debug_assert_eq!(verdicts.len(), batch.writes.len());
                self.trim_at.get_or_insert_with(|| Instant::now() + self.pace.trim);
                verdicts
            }
            refused => {
                if let Some(Err(failure)) = refused {
                    self.fail(&failure);
                }
                vec![Verdict::Refused(ErrorCode::Unavailable); batch.writes.len()]
            }
        };
        for (shard, verdicts) in batch.share(verdicts) {
            (self.post)(shard, Done::Written(verdicts));
        }
        if self.probe_at.is_none() {
            self.core.bound_log();
        }
    }

    fn revoke(&mut self, revoke: &Revoke) -> bool {
        if self.probe_at.is_some() {
            return false;
        }
        self.core.revoke(revoke).map_err(|failure| self.fail(&failure)).is_ok()
    }

    /// Whether the store works again; if the connection was at fault, by another one.
    fn probe(&mut self) {
        if self.needs_reopening
            && let Err(failure) = self.core.reopen()
        {
            return self.fail(&failure);
        }
        self.needs_reopening = false;
        match self.core.probe() {
            Ok(()) => {
                self.probe_at = None;
                self.trim_at.get_or_insert_with(|| Instant::now() + self.pace.trim);
                self.health.note(false);
                tracing::info!("the store takes writes again");
            }
            Err(failure) => self.fail(&failure),
        }
    }

    fn fail(&mut self, failure: &Failure) {
        let now = Instant::now();
        if let Some(count) = self.complaints.count(now) {
            tracing::error!(reason = %failure, count, "the store fails: what is to be kept is refused");
        }
        self.needs_reopening |= failure.is_of_connection;
        self.probe_at = Some(now + self.pace.probe);
        self.health.note(true);
    }

    fn tell_watchers(&mut self) {
        if self.watches.is_empty() {
            return;
        }
        // If it cannot be read, there will be a commit that tells, or fails.
        let Ok(last) = self.core.last_position() else { return };
        let post = &mut self.post;
        self.watches.retain(|&(shard, position)| {
            let is_behind = last > position;
            if is_behind {
                post(shard, Done::FeedMoved);
            }
            !is_behind
        });
    }

    fn trim(&mut self) {
        let now = Instant::now();
        if self.trim_at.is_none_or(|due| due > now) {
            return;
        }
        match self.core.trim() {
            Ok(true) => self.trim_at = Some(Instant::now() + self.pace.trim),
            Ok(false) => self.trim_at = self.pace.trim_look.map(|interval| Instant::now() + interval),
            Err(failure) => self.fail(&failure),
        }
    }
}

impl Batch {
    fn add(&mut self, shard: ShardId, writes: Vec<Arc<Write>>) {
        self.bytes += writes.iter().map(|write| write.change.bytes() + size_of::<Write>()).sum::<usize>();
        self.shares.push((shard, writes.len()));
        self.writes.extend(writes);
    }

    /// The verdicts of each shard, in the order of its writes.
    fn share(&self, verdicts: Vec<Verdict>) -> Vec<(ShardId, Vec<Verdict>)> {
        let mut shared: Vec<(ShardId, Vec<Verdict>)> = Vec::new();
        let mut verdicts = verdicts.into_iter();
        for &(shard, count) in &self.shares {
            let its = verdicts.by_ref().take(count);
            match shared.iter_mut().find(|(other, _)| *other == shard) {
                Some((_, all)) => all.extend(its),
                None => shared.push((shard, its.collect())),
            }
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    use std::thread::JoinHandle;

    use crossbeam_channel::{Sender, unbounded};

    use super::*;
    use crate::chat::ids::RoomName;
    use crate::chat::shard::Gauges;
    use crate::chat::store::{Action, Actor, Change};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A database that fails when it is told to. The `at_ms` of a write is the `seq` that it gets.
    struct Fake {
        log: Sender<Call>,
        orders: Receiver<Order>,
        fails: Option<Failure>,
        position: u64,
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Call {
        Commit(Vec<u64>),
        Refused(usize),
        Probe(bool),
        Reopen,
        Trim,
    }

    enum Order {
        Fail(Failure),
        Heal,
    }

    impl Fake {
        fn look(&mut self) -> Option<Failure> {
            for order in self.orders.try_iter() {
                self.fails = match order {
                    Order::Fail(failure) => Some(failure),
                    Order::Heal => None,
                };
            }
            self.fails.clone()
        }

        fn note(&self, call: Call) {
            let _ = self.log.send(call);
        }
    }

    impl Core for Fake {
        fn commit(&mut self, writes: &[Arc<Write>]) -> Result<Vec<Verdict>, Failure> {
            if let Some(failure) = self.look() {
                self.note(Call::Refused(writes.len()));
                return Err(failure);
            }
            let seqs: Vec<u64> = writes.iter().map(|write| write.at_ms).collect();
            self.position += seqs.len() as u64;
            let verdicts = seqs.iter().map(|&seq| Verdict::New { seq }).collect();
            self.note(Call::Commit(seqs));
            Ok(verdicts)
        }

        fn revoke(&mut self, _: &Revoke) -> Result<(), Failure> {
            self.look().map_or(Ok(()), Err)
        }

        fn last_position(&mut self) -> Result<u64, Failure> {
            Ok(self.position)
        }

        fn probe(&mut self) -> Result<(), Failure> {
            let failure = self.look();
            self.note(Call::Probe(failure.is_none()));
            failure.map_or(Ok(()), Err)
        }

        fn reopen(&mut self) -> Result<(), Failure> {
            self.note(Call::Reopen);
            Ok(())
        }

        fn trim(&mut self) -> Result<bool, Failure> {
            self.note(Call::Trim);
            Ok(false)
        }

        fn bound_log(&mut self) {}

        fn find(&mut self, _: &Lookup) -> Found {
            Found::Position { last_seq: self.position }
        }
    }

    /// A writer's thread and all its ends.
    struct World {
        jobs: Sender<(ShardId, Job)>,
        posts: Receiver<(ShardId, Done)>,
        calls: Receiver<Call>,
        orders: Sender<Order>,
        gauges: Arc<Gauges>,
        stop: Sender<()>,
        begin: Sender<()>,
        thread: JoinHandle<Fake>,
    }

    impl World {
        /// A writer that begins when it is told to, so that tests can let jobs wait.
        fn new(pace: Pace) -> Self {
            Self::at(0, pace)
        }

        /// The same with a feed that has come to `position`.
        fn at(position: u64, pace: Pace) -> Self {
            let (jobs, jobs_in) = unbounded();
            let (post, posts) = unbounded();
            let (log, calls) = unbounded();
            let (orders, orders_in) = unbounded();
            let (stop, stopped) = unbounded::<()>();
            let (begin, begun) = unbounded::<()>();
            let gauges = Arc::new(Gauges::default());
            let core = Fake { log, orders: orders_in, fails: None, position };
            let post = move |shard, done| drop(post.send((shard, done)));
            let mut writer = Writer::new(core, jobs_in, post, Health::parts(&gauges, 1).remove(0), pace);
            writer.trim_at = None;
            let thread = std::thread::spawn(move || {
                let _ = begun.recv();
                writer.run(&stopped)
            });
            Self { jobs, posts, calls, orders, gauges, stop, begin, thread }
        }

        fn write(&self, shard: u16, numbers: impl IntoIterator<Item = u64>) {
            let writes = numbers.into_iter().map(write).collect();
            self.jobs.send((ShardId(shard), Job::Write(writes))).unwrap();
        }

        fn begin(&self) {
            self.begin.send(()).unwrap();
        }

        fn post(&self) -> (ShardId, Done) {
            self.posts.recv_timeout(PATIENCE).expect("a post comes")
        }

        fn verdicts(&self) -> (u16, Vec<Verdict>) {
            match self.post() {
                (shard, Done::Written(verdicts)) => (shard.0, verdicts),
                other => panic!("verdicts, not {other:?}"),
            }
        }

        fn call(&self) -> Call {
            self.calls.recv_timeout(PATIENCE).expect("the database is called")
        }

        fn end(self) -> Vec<(ShardId, Done)> {
            drop(self.stop);
            self.thread.join().unwrap();
            self.posts.try_iter().collect()
        }
    }

    fn write(number: u64) -> Arc<Write> {
        let room = RoomName::new("r", 0);
        let change = Change { by: Actor::Service, prefix: Vec::new(), action: Action::RemoveRoom };
        Arc::new(Write { room, at_ms: number, change })
    }

    fn new(numbers: impl IntoIterator<Item = u64>) -> Vec<Verdict> {
        numbers.into_iter().map(|seq| Verdict::New { seq }).collect()
    }

    fn full() -> Failure {
        Failure { reason: "the disk is full".to_owned(), is_of_connection: false }
    }

    fn quick() -> Pace {
        Pace { probe: Duration::from_millis(2), trim: Duration::from_millis(2), ..Pace::default() }
    }

    #[test]
    fn what_waits_is_one_batch_and_each_shard_gets_one_post() {
        let world = World::new(quick());
        world.write(0, [1, 2]);
        world.write(1, [3]);
        world.write(0, [4]);
        world.begin();
        assert_eq!(world.call(), Call::Commit(vec![1, 2, 3, 4]));
        assert_eq!(world.verdicts(), (0, new([1, 2, 4])));
        assert_eq!(world.verdicts(), (1, new([3])));
        assert!(world.end().is_empty());
    }

    #[test]
    fn verdicts_keep_each_shards_order_over_many_batches() {
        let world = World::new(Pace { batch_writes: 7, ..quick() });
        for number in 0..1000 {
            world.write((number % 3) as u16, [number]);
        }
        world.begin();
        let mut seen = [const { Vec::new() }; 3];
        while seen.iter().map(Vec::len).sum::<usize>() < 1000 {
            let (shard, verdicts) = world.verdicts();
            seen[usize::from(shard)].extend(verdicts);
        }
        for (shard, verdicts) in seen.into_iter().enumerate() {
            assert_eq!(verdicts, new((0..1000).filter(|number| number % 3 == shard as u64)));
        }
        let batches = world.calls.try_iter().filter(|call| matches!(call, Call::Commit(_))).count();
        assert_eq!(batches, 1000_usize.div_ceil(7));
        world.end();
    }

    #[test]
    fn a_failing_batch_is_refused_whole_and_heals_without_traffic() {
        let world = World::new(quick());
        world.orders.send(Order::Fail(full())).unwrap();
        world.write(0, 0..600);
        world.write(1, 600..1000);
        world.begin();
        assert_eq!(world.call(), Call::Refused(1000));
        let refused = |count| vec![Verdict::Refused(ErrorCode::Unavailable); count];
        assert_eq!(world.verdicts(), (0, refused(600)));
        assert_eq!(world.verdicts(), (1, refused(400)));
        assert!(world.gauges.is_store_failing());
        assert_eq!(world.call(), Call::Probe(false));
        world.orders.send(Order::Heal).unwrap();
        while world.call() != Call::Probe(true) {}
        world.write(0, [7]);
        assert_eq!(world.verdicts(), (0, new([7])));
        assert!(!world.gauges.is_store_failing());
        world.end();
    }

    #[test]
    fn a_broken_connection_is_replaced_before_the_probe() {
        let world = World::new(quick());
        world.orders.send(Order::Fail(Failure { is_of_connection: true, ..full() })).unwrap();
        world.write(0, [1]);
        world.begin();
        assert_eq!(world.call(), Call::Refused(1));
        assert_eq!(world.call(), Call::Reopen);
        assert!(matches!(world.call(), Call::Probe(_)));
        world.end();
    }

    #[test]
    fn while_it_fails_nothing_is_tried_but_the_probe() {
        let world = World::new(Pace { probe: PATIENCE, ..quick() });
        world.orders.send(Order::Fail(full())).unwrap();
        world.write(0, [1]);
        world.begin();
        assert_eq!(world.call(), Call::Refused(1));
        for number in 0..10 {
            world.write(0, [number]);
        }
        let mut answered = 0;
        while answered < 11 {
            answered += world.verdicts().1.len();
        }
        assert!(world.calls.try_recv().is_err());
        world.end();
    }

    #[test]
    fn a_watch_is_told_once() {
        let world = World::new(quick());
        world.begin();
        world.write(0, [1, 2]);
        assert_eq!(world.verdicts().0, 0);
        let watch = |position| world.jobs.send((ShardId(1), Job::WatchFeed(position))).unwrap();
        watch(1);
        assert!(matches!(world.post(), (ShardId(1), Done::FeedMoved)), "at once, if it has moved already");
        watch(2);
        world.write(0, [3]);
        assert_eq!(world.verdicts().0, 0);
        assert!(matches!(world.post(), (ShardId(1), Done::FeedMoved)));
        world.write(0, [4]);
        assert_eq!(world.verdicts().0, 0);
        // A later watch takes the place of an earlier one.
        watch(50);
        watch(4);
        world.write(0, [5]);
        assert_eq!(world.verdicts().0, 0);
        assert!(matches!(world.post(), (ShardId(1), Done::FeedMoved)));
        assert!(world.end().is_empty());
    }

    #[test]
    fn a_watch_that_waits_alone_is_told_at_once() {
        let world = World::at(1, quick());
        world.jobs.send((ShardId(3), Job::WatchFeed(0))).unwrap();
        world.begin();
        assert!(matches!(world.post(), (ShardId(3), Done::FeedMoved)));
        world.end();
    }

    #[test]
    fn reads_that_come_here_are_answered_behind_the_batch() {
        let world = World::new(quick());
        let lookup = Lookup::Position(write(0).room.clone());
        world.jobs.send((ShardId(2), Job::Read(Asker::Room(5), lookup))).unwrap();
        world.write(0, [1]);
        world.begin();
        assert_eq!(world.verdicts().0, 0);
        let found = world.post();
        let expected = Done::Found(Asker::Room(5), Found::Position { last_seq: 1 });
        assert_eq!(format!("{found:?}"), format!("{:?}", (ShardId(2), expected)));
        world.end();
    }

    #[test]
    fn what_waits_at_the_end_is_still_committed() {
        let world = World::new(quick());
        world.write(0, [1]);
        world.write(1, [2]);
        world.begin();
        let jobs = world.jobs.clone();
        let left = world.end();
        let written = |(_, done): &(ShardId, Done)| matches!(done, Done::Written(verdicts) if verdicts.len() == 1);
        assert!(left.len() == 2 && left.iter().all(written), "{left:?}");
        assert!(jobs.send((ShardId(0), Job::WatchFeed(0))).is_err(), "nobody takes jobs any more");
    }

    #[test]
    fn something_written_makes_it_look_for_what_to_remove() {
        let world = World::new(quick());
        world.begin();
        world.write(0, [1]);
        assert_eq!(world.call(), Call::Commit(vec![1]));
        assert_eq!(world.call(), Call::Trim);
        world.end();
    }
}
