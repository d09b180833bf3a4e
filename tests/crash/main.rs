//! The crash test: the real server over a database file, killed again and again while everybody uses it, and then everything
//! that anybody was told is held against the file.
//!
//! Owns the course of a run. While the server is killed and restarted, publishers post over REST (pipelined, retries told by
//! id or by `Idempotency-Key`) and over WebSockets, edit, delete and react, and repeat whatever is not acknowledged;
//! readers come back and recover or begin anew; others page through the history and follow the feed. Nothing but the
//! final judgement decides, so no time is asserted; see [`judge`].
//!
//! `CRASH_KILLS` and `CRASH_SEED` say how often and by which dice, `CRASH_BINARY` which server: `tools/crash/run` sets them.

mod book;
mod client;
mod forgery;
mod history;
mod judge;
mod member;
mod members;
mod pollers;
mod posters;
#[path = "../random/mod.rs"]
mod random;
mod run;
mod server;
mod store;

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use book::{Author, Book};
use client::{Credential, Http, Lost, messages_path, request};
use judge::{Evidence, Summary};
use member::{Legacy, Member};
use members::Speaker;
use pollers::FeedReader;
use posters::{Poster, Retries};
use random::Random;
use run::{PATIENCE, Run, Watch};
use server::{Plan, Server};

const KILLS_DEFAULT: usize = 6;
/// A run of so many kills has time for long lives as well.
const LONG_RUN_KILLS: usize = 50;
/// The last one needs escaping in a path.
const ROOMS: [&str; 4] = ["sales", "project-7", "42", "caf\u{e9}/\u{1f389} 3"];
const PUBLISHERS: usize = 6;
/// Of all posts over REST so many are repeated at the end.
const REPLAYS_MAX: usize = 1500;

/// A run of more events is not forged and judged again, which takes long.
const FORGED_EVENTS_MAX: usize = 5_000;

/// What the threads of a run bring back.
#[derive(Default)]
struct Harvest {
    books: Vec<Book>,
    legacies: Vec<Legacy>,
    pages: Vec<member::Page>,
    followed: Vec<String>,
    feed_repeated: usize,
}

#[test]
fn nothing_that_was_acknowledged_or_seen_is_lost_however_often_the_server_is_killed() {
    let kills = number("CRASH_KILLS").map_or(KILLS_DEFAULT, |kills| kills as usize);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    let seed =
        number("CRASH_SEED").unwrap_or(u64::from(now.subsec_nanos()) << 16 | u64::from(std::process::id() & 0xffff));
    println!("crash: seed {seed}, {kills} kills");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-{}-{seed}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the target directory can be written");
    let binary = std::env::var_os("CRASH_BINARY").map_or(env!("CARGO_BIN_EXE_sizland-chat").into(), PathBuf::from);
    let plan = Plan { binary, folder: folder.clone(), address: server::own_address() };
    let run = Run::new(seed, plan.address, ROOMS.map(str::to_owned).to_vec(), PUBLISHERS);
    let violations = match run_all(&run, &plan, kills) {
        Ok(violations) => violations,
        Err(error) => run.violations().into_iter().chain([error]).collect(),
    };
    let count = violations.len();
    assert!(
        violations.is_empty(),
        "seed {seed}, {kills} kills: {count} violations; the database and the log are in {}\n{}",
        folder.display(),
        violations.join("\n")
    );
    // Left behind only if something is to be looked at.
    let _ = std::fs::remove_dir_all(&folder);
}

/// The whole run; what was found wrong.
fn run_all(run: &Run, plan: &Plan, kills: usize) -> Result<Vec<String>, String> {
    let mut random = Random::new(run.seed);
    let mut server = None;
    let harvest = thread::scope(|scope| {
        let _watch = Watch(run, "the run".to_owned());
        let threads = Threads::start(scope, run, &mut random);
        server = storm(run, plan, kills, random);
        if server.is_some() && !run.has_failed() {
            settle(run);
        }
        threads.join()
    });
    let server = server.filter(|_| !run.has_failed()).ok_or("the run was given up")?;
    let evidence = last_words(run, harvest).map_err(|Lost| "the server left at the end".to_owned())?;
    match server.stop(PATIENCE) {
        Some(status) if status.success() => {}
        ended => run.fail(format!("SIGTERM at the end led to {ended:?}")),
    }
    let log = std::fs::read_to_string(plan.log()).unwrap_or_default();
    log.lines().filter(|line| line.contains("panicked")).for_each(|line| run.fail(format!("the server logged {line}")));
    let store = store::read(&plan.database(), &run.rooms, run.epoch()).map_err(|error| error.to_string())?;
    let (mut violations, summary) = judge::judge(&evidence, &store);
    violations.splice(0..0, run.violations());
    if violations.is_empty() && summary.events <= FORGED_EVENTS_MAX {
        violations.extend(forgery::unfound(&evidence, &store, &mut Random::new(run.seed)));
    }
    report(run, kills, &evidence, &summary);
    Ok(violations)
}

/// Kills the server, and starts it again at once. Gives the last one.
fn storm(run: &Run, plan: &Plan, kills: usize, mut random: Random) -> Option<Server> {
    let mut server = start(run, plan, &mut random)?;
    for kill in 0..kills {
        if random.one_in(5) {
            // Perhaps while it starts, and reads back what the last one left.
            run.pause(Duration::from_millis(random.below(120) as u64));
        } else {
            let before = run.acknowledged();
            // The log has to become large in some lives, so that a kill may meet the checkpoint.
            let is_long = kills >= LONG_RUN_KILLS && random.one_in(6);
            let more = random.below(if is_long { 1500 } else { 150 }) as u64;
            let mut ended = None;
            let progressed = run.wait_until(&format!("{more} answers behind kill {kill}"), || {
                ended = server.is_ready().err();
                ended.is_some() || run.acknowledged() > before + more
            });
            if let Some(error) = ended {
                run.fail(format!("behind kill {kill}: {error}"));
            }
            if !progressed || run.has_failed() {
                return None;
            }
            run.pause(Duration::from_micros(random.below(60_000) as u64));
        }
        server.kill();
        server = start(run, plan, &mut random)?;
    }
    let before = run.acknowledged();
    run.wait_until("answers behind the last kill", || run.acknowledged() > before + 50).then_some(server)
}

/// One more server, its settings by chance.
fn start(run: &Run, plan: &Plan, random: &mut Random) -> Option<Server> {
    let mut settings = vec![("CHAT_RECOVERY_EVENTS", random.pick(&[3, 30, 1000, 1000]).to_string())];
    if random.one_in(3) {
        settings.push(("CHAT_STORE_LOG_BYTES_MAX", "1048576".to_owned()));
    }
    if random.one_in(3) {
        settings.push(("CHAT_ROOM_LINGER_MS", "0".to_owned()));
    }
    plan.start(&settings).map_err(|error| run.fail(format!("the server does not start: {error}"))).ok()
}

/// Waits until everything is answered, and then until everything is read.
fn settle(run: &Run) {
    run.calm();
    if !run.wait_until("an answer to everything", || run.publishers() == 0) {
        return;
    }
    let ask = |room: &String| {
        let path = format!("{}?limit=1", messages_path(room));
        let answer = Http::dial(run)?.call(&request("GET", &path, &Credential::Service, None, None))?;
        answer.json()["lastSeq"].as_u64().ok_or(Lost)
    };
    match run.rooms.iter().map(ask).collect() {
        Ok(last_seqs) => run.end(last_seqs),
        Err(Lost) => run.fail("the last seq of a room is not told"),
    }
}

/// All who use the server.
struct Threads<'s> {
    books: Vec<thread::ScopedJoinHandle<'s, Book>>,
    speakers: Vec<thread::ScopedJoinHandle<'s, (Book, Legacy)>>,
    readers: Vec<thread::ScopedJoinHandle<'s, Legacy>>,
    pager: thread::ScopedJoinHandle<'s, Vec<member::Page>>,
    feed: thread::ScopedJoinHandle<'s, FeedReader<'s>>,
}

impl<'s> Threads<'s> {
    fn start<'e: 's>(scope: &'s thread::Scope<'s, 'e>, run: &'e Run, random: &mut Random) -> Self {
        let mut dice = || random.split();
        let watched = |name: &str| Watch(run, name.to_owned());
        let mut books = Vec::new();
        for (name, retries) in [("erp", Retries::ById), ("crm", Retries::ById), ("shop", Retries::ByKey)] {
            let (poster, watch) = (Poster::new(run, name.to_owned(), retries, dice()), watched(name));
            books.push(scope.spawn(move || {
                let _watch = watch;
                poster.run()
            }));
        }
        let (editor, watch) = (Author::new("eva".to_owned(), vec![0, 1, 2, 3], dice()), watched("eva"));
        books.push(scope.spawn(move || {
            let _watch = watch;
            posters::edit_over_rest(run, editor)
        }));
        let mut speakers = Vec::new();
        for (name, rooms) in [("sam", vec![0, 3]), ("sue", vec![1, 3])] {
            let author = Author::new(name.to_owned(), rooms.clone(), dice());
            let speaker = Speaker::new(run, Member::new(run, name, rooms, dice()), author);
            let watch = watched(name);
            speakers.push(scope.spawn(move || {
                let _watch = watch;
                speaker.run()
            }));
        }
        let mut readers = Vec::new();
        for (name, rooms) in [("rob", vec![0, 1, 2, 3]), ("ria", vec![0, 2]), ("ray", vec![3]), ("rob", vec![1, 3])] {
            let (member, random, watch) = (Member::new(run, name, rooms, dice()), dice(), watched(name));
            readers.push(scope.spawn(move || {
                let _watch = watch;
                members::read(run, member, random)
            }));
        }
        let (random, watch) = (dice(), watched("the pager"));
        let pager = scope.spawn(move || {
            let _watch = watch;
            pollers::page(run, random)
        });
        let (random, watch) = (dice(), watched("the reader of the feed"));
        let feed = scope.spawn(move || {
            let _watch = watch;
            FeedReader::new(run).follow(random)
        });
        Self { books, speakers, readers, pager, feed }
    }

    /// What they bring; who panicked brings nothing, and is told of by its watch.
    fn join(self) -> Harvest {
        let mut harvest = Harvest::default();
        harvest.books.extend(self.books.into_iter().filter_map(|thread| thread.join().ok()));
        for (book, legacy) in self.speakers.into_iter().filter_map(|thread| thread.join().ok()) {
            harvest.books.push(book);
            harvest.legacies.push(legacy);
        }
        harvest.legacies.extend(self.readers.into_iter().filter_map(|thread| thread.join().ok()));
        harvest.pages = self.pager.join().unwrap_or_default();
        if let Ok(feed) = self.feed.join() {
            harvest.feed_repeated = feed.repeated;
            harvest.followed = feed.into_events();
        }
        harvest
    }
}

/// What the server still says at the end: posts that are repeated, every page, and the feed from its beginning.
fn last_words(run: &Run, mut harvest: Harvest) -> Result<Evidence, Lost> {
    println!("crash: the feed repeated {} events", harvest.feed_repeated);
    let posts: Vec<_> =
        harvest.books.iter().flat_map(|book| &book.posts).filter(|post| post.request.is_some()).collect();
    let mut http = Http::dial(run)?;
    for post in posts.iter().step_by(posts.len().div_ceil(REPLAYS_MAX).max(1)) {
        let answer = http.call(post.request.as_deref().unwrap_or_default())?;
        let told = answer.json();
        let is_same = told["id"] == *post.id && told["seq"] == post.seq;
        if answer.status != 201 || !answer.is_replay || !is_same || told["timestamp"] != post.timestamp {
            run.fail(format!("{}, told as {} of {}, is repeated as {answer:?}", post.id, post.seq, post.timestamp));
        }
    }
    for room in 0..run.rooms.len() {
        pollers::walk(run, room, 200, true, None, usize::MAX, &mut harvest.pages)?;
        pollers::walk(run, room, 199, false, None, usize::MAX, &mut harvest.pages)?;
    }
    let feeds = [harvest.followed, FeedReader::new(run).read_all()?];
    let (books, legacies, pages) = (harvest.books, harvest.legacies, harvest.pages);
    Ok(Evidence { rooms: run.rooms.clone(), books, legacies, pages, feeds })
}

fn report(run: &Run, kills: usize, evidence: &Evidence, summary: &Summary) {
    let Summary { events, messages, edits, deletions, reactions, seen, pages } = summary;
    let discarded: usize = evidence.legacies.iter().map(|legacy| legacy.discarded.len()).sum();
    let recoveries: u64 = evidence.legacies.iter().map(|legacy| legacy.recoveries).sum();
    println!(
        "crash: seed {}, {kills} kills: {events} events in {} rooms ({messages} messages, {edits} edits, {deletions} deletions, \
         {reactions} reactions); {seen} deliveries compared, {recoveries} recoveries, {discarded} begun anew, {pages} pages",
        run.seed,
        run.rooms.len()
    );
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}
