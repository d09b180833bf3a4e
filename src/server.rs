//! Starts the shards, joins them by their mailboxes, and leads them through stopping.
//!
//! The only place that knows how many threads there are and in which order a server ends.

use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::access::Mode;
use crate::allocator;
use crate::chat::drain::Stage;
use crate::chat::ids::{HashKey, ShardId};
use crate::chat::job::{Done, Question, Verify};
use crate::chat::shard::{Gauges, Shard, ShardSetup};
use crate::chat::store::StoreFacts;
use crate::config::{self, Config, TlsFiles};
use crate::error::Error;
use crate::reactor::io::Post;
use crate::reactor::jobs::Jobs;
use crate::reactor::mailbox::Mailer;
use crate::reactor::mio_io::{Endpoint, MioIo, clock, listen};
use crate::reactor::neighbours::Neighbours;
use crate::reactor::tls::{Certificates, Tls};
use crate::reactor::turn::Reactor;
use crate::work::authorizer::Authorizer;
use crate::work::certificates::Loaded;
use crate::work::crew::{self, Crew};
use crate::work::keyring::{KeyThread, SharedKeyring};
use crate::work::store::{Store, StoreThreads};
use crate::work::watch::{Watch, WatchThread};

/// How long shards may take over what has no window of its own.
const STAGE_MAX: Duration = Duration::from_secs(5);
/// What the end of the window may be late.
const WINDOW_GRACE: Duration = Duration::from_millis(750);

/// Serves until SIGTERM or SIGINT; SIGHUP has read again what can be.
///
/// # Errors
/// What keeps the server from starting, or a poll that fails.
pub fn run(config: Config) -> Result<(), Error> {
    run_announced(config, |_| {})
}

/// As [`run`]; `announce` gets the address, with the port that the system chose if none was asked for, once connections
/// to it succeed.
///
/// # Errors
/// As those of [`run`].
pub fn run_announced(config: Config, announce: impl FnOnce(SocketAddr)) -> Result<(), Error> {
    allocator::prepare();
    let signals = Signalled::listen()?;
    let raised = config::raise_limit();
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    let server = Server::start(Arc::new(config), signals.reload)?;
    tracing::info!(address = %server.address, threads = server.mailers.len(), "listening");
    warn_of_open_rooms(&server.config);
    announce(server.address);
    if server.config.dev {
        let banner = crate::dev::dev_banner(&server.config, server.address, clock(server.started).wall_ms);
        // Whoever closed the standard output does not want to read it.
        let _ = io::stdout().write_all(banner.as_bytes()).and_then(|()| io::stdout().flush());
    }
    // A send is also lost when every shard has ended: then there is nothing left to serve.
    let signal = signals.end.recv().unwrap_or(SIGTERM);
    tracing::info!(signal, "stopping");
    server.stop()
}

/// Says which rooms every token opens, which may not be meant where it was not said.
fn warn_of_open_rooms(config: &Config) {
    let rooms: Vec<&str> = config.access.patterns(Mode::Open).collect();
    if !rooms.is_empty() && !config.dev {
        let rooms = rooms.join(", ");
        tracing::warn!(%rooms, "every user with a valid token may enter these rooms; CHAT_ROOM_ACCESS says who may");
    }
}

/// What the process is told by signals.
struct Signalled {
    /// The first that ends it; a second one does at once.
    end: Receiver<i32>,
    /// SIGHUP, several that come together once.
    reload: Receiver<()>,
}

impl Signalled {
    fn listen() -> Result<Self, Error> {
        let fail = |source| Error::System { action: "listen for signals", source };
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(fail)?;
        let (sender, end) = bounded(1);
        let (demand, reload) = bounded(1);
        let wait = move || {
            let mut ending = false;
            for signal in signals.forever() {
                if signal == SIGHUP {
                    // One that is waiting to be obeyed stands for this one as well.
                    let _ = demand.try_send(());
                } else if ending {
                    std::process::exit(128 + signal);
                } else {
                    ending = true;
                    let _ = sender.send(signal);
                }
            }
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(fail)?;
        Ok(Self { end, reload })
    }
}

struct Server {
    config: Arc<Config>,
    address: SocketAddr,
    started: Instant,
    mailers: Vec<Mailer<Post>>,
    reports: Receiver<(ShardId, Stage)>,
    threads: Vec<JoinHandle<io::Result<()>>>,
    store: Option<StoreThreads>,
    watch: Option<WatchThread>,
    keys: Option<KeyThread>,
    checks: Option<Crew<Box<Verify>>>,
    questions: Option<Crew<Box<Question>>>,
}

impl Server {
    fn start(mut config: Arc<Config>, reload: Receiver<()>) -> Result<Self, Error> {
        let wanted = SocketAddr::new(config.listen, config.port);
        let send_buffer_bytes = config.limits.socket_send_buffer_bytes;
        let bind = |source| Error::Bind { address: wanted, source };
        let address = free_address(wanted, send_buffer_bytes).map_err(bind)?;
        // What keeps the server from starting is found before a store is made.
        config.tls.as_ref().map(Loaded::read).transpose()?;
        let store = match config.store {
            config::Store::None => None,
            _ => Some(Store::open(&config)?),
        };

        let system = |source| Error::System { action: "start an event loop", source };
        let (mut endpoints, mut mailers) = (Vec::new(), Vec::new());
        for _ in 0..config.threads {
            let listener = listen(address, true, send_buffer_bytes).map_err(bind)?;
            let (endpoint, mailer) = Endpoint::new(listener, config.limits.mailbox_batches_max).map_err(system)?;
            endpoints.push(endpoint);
            mailers.push(mailer);
        }
        let (reporter, reports) = unbounded();
        let started = Instant::now();
        let gauges = Arc::new(Gauges::default());
        let facts = store.as_ref().map(Store::facts);
        let revocations = store.as_ref().map(Store::revocations).transpose()?.unwrap_or_default();
        let store = store.map(|store| store.start(&mailers, &gauges)).transpose()?;
        // What can be read again is added here; its closure hands it on with `tell`.
        let mut watch = Watch::default();
        let certificates =
            config.tls.as_ref().map(|files| watch_certificates(files, &mailers, &mut watch)).transpose()?;
        let keyring = SharedKeyring::open(&config, &mut watch)?;
        let keys = keyring.start(&config, &mailers, &mut watch)?;
        Arc::make_mut(&mut config).credentials = keyring.credentials();
        let checks = Some(crew_of_checks(&config, &mailers).map_err(system)?);
        let questions = crew_of_questions(&config, &mailers).map_err(system)?;
        let (watch, threads) = (Some(watch.start(reload)?), Vec::new());
        let revocations = Arc::new(revocations);
        let mut server =
            Self { config, address, started, mailers, reports, threads, store, watch, keys, checks, questions };
        server
            .spawn(endpoints, &reporter, &gauges, facts.as_ref(), &revocations, certificates.as_ref())
            .map_err(system)?;
        Ok(server)
    }

    fn spawn(
        &mut self,
        endpoints: Vec<Endpoint>,
        reporter: &Sender<(ShardId, Stage)>,
        gauges: &Arc<Gauges>,
        store: Option<&StoreFacts>,
        revocations: &Arc<Vec<(String, u64)>>,
        certificates: Option<&Arc<Certificates>>,
    ) -> io::Result<()> {
        let key = HashKey::new(random()?);
        let shards = endpoints.len();
        let cores = std::thread::available_parallelism().map_or(usize::MAX, NonZero::get);
        // All before the first thread serves: what a start has opened is open by then.
        let polls: Vec<_> = endpoints.iter().map(Endpoint::poll_fd).collect();
        let neighbours = polls.iter().map(|&own| {
            let others: Vec<_> = polls.iter().copied().filter(|&poll| poll != own).collect();
            Neighbours::new(others.into_iter(), store.is_some(), cores)
        });
        let neighbours = neighbours.collect::<io::Result<Vec<_>>>()?;
        for (number, (endpoint, neighbours)) in endpoints.into_iter().zip(neighbours).enumerate() {
            let id = ShardId(number as u16);
            let (config, seed, gauges) = (Arc::clone(&self.config), random()?, Arc::clone(gauges));
            let (mailers, reporter, started) = (self.mailers.clone(), reporter.clone(), self.started);
            let (store, revocations) = (store.cloned(), Arc::clone(revocations));
            let jobs = self.jobs(id);
            let (kept_bytes_max, record_ms) =
                (self.config.limits.tls_pool_bytes / shards, self.config.limits.tls_record_ms);
            let tls = certificates.map(|certificates| Tls::new(Arc::clone(certificates), kept_bytes_max, record_ms));
            let work = move || {
                let setup = ShardSetup { config, id, shards, key, seed, gauges, store };
                let mut shard = Shard::new(setup, clock(started));
                shard.load_revocations(revocations.iter().map(|(user, before_ms)| (user.as_str(), *before_ms)));
                drop(revocations);
                let io = MioIo::new(id, endpoint, tls, mailers, reporter, jobs, started, neighbours);
                Reactor::new(shard, id, shards, io).run()
            };
            self.threads.push(std::thread::Builder::new().name(format!("shard-{number}")).spawn(work)?);
        }
        Ok(())
    }

    fn jobs(&self, shard: ShardId) -> Jobs {
        let jobs = Jobs::new(shard).with_store(self.store.as_ref().map(StoreThreads::jobs));
        let jobs = jobs.with_searches(self.keys.as_ref().map(KeyThread::searches));
        let jobs = jobs.with_questions(self.questions.as_ref().map(|questions| questions.queue(shard)));
        match &self.checks {
            Some(checks) => jobs.with_checks(checks.queue(shard)),
            None => jobs,
        }
    }

    /// Leads all shards through the stages of stopping, each to the end before the next.
    fn stop(mut self) -> Result<(), Error> {
        self.watch = None;
        let limits = &self.config.limits;
        self.lead(Stage::Notice, STAGE_MAX);
        std::thread::sleep(Duration::from_millis(limits.drain_delay_ms));
        self.lead(Stage::Quiesce, STAGE_MAX);
        // A deadline fires up to a tick late, and the last connection is closed at the end of the window.
        let window = Duration::from_millis(limits.drain_window_ms + limits.close_ms) + WINDOW_GRACE;
        let mut waiting = self.lead(Stage::Close, window);
        if !waiting.is_empty() {
            tracing::warn!("connections are left at the end of the window");
            tell(&self.mailers, || Post::WindowOver);
            self.await_all(Stage::Close, STAGE_MAX, &mut waiting);
        }
        self.lead(Stage::Settle, STAGE_MAX);
        if let Some(store) = self.store.take() {
            tracing::info!(stage = %"Store", "stopping");
            store.stop();
        }
        if let Some(checks) = self.checks.take() {
            checks.stop();
        }
        if let Some(questions) = self.questions.take() {
            questions.stop();
        }
        tell(&self.mailers, || Post::End);
        for thread in self.threads {
            if let Ok(Err(source)) = thread.join() {
                return Err(Error::System { action: "poll for events", source });
            }
        }
        tracing::info!("stopped");
        Ok(())
    }

    /// Names a stage to all shards and waits for at most `max`; returns those that have not reached it.
    fn lead(&self, stage: Stage, max: Duration) -> Vec<ShardId> {
        tracing::info!(?stage, "stopping");
        tell(&self.mailers, || Post::Stage(stage));
        let mut waiting = (0..self.mailers.len() as u16).map(ShardId).collect();
        self.await_all(stage, max, &mut waiting);
        waiting
    }

    /// Takes the shards that reach the stage off the list, until it is empty or `max` is over.
    fn await_all(&self, stage: Stage, max: Duration, waiting: &mut Vec<ShardId>) {
        let deadline = Instant::now() + max;
        while !waiting.is_empty() {
            match self.reports.recv_deadline(deadline) {
                Ok((shard, done)) if done == stage => waiting.retain(|&other| other != shard),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

/// Reads the files of TLS, now and whenever they change.
fn watch_certificates(
    files: &TlsFiles,
    mailers: &[Mailer<Post>],
    watch: &mut Watch,
) -> Result<Arc<Certificates>, Error> {
    let read = |files: &TlsFiles| {
        let loaded = Loaded::read(files)?;
        if let Some(warning) = &loaded.warning {
            tracing::warn!(file = %files.certificate.display(), "{warning}");
        }
        Ok::<_, Error>(loaded.certificates)
    };
    let paths = [Some(&files.certificate), Some(&files.key), files.client_authorities.as_ref()];
    let paths = paths.into_iter().flatten().cloned().collect();
    let (again, mailers) = (files.clone(), mailers.to_vec());
    watch.add("the TLS certificate", paths, move || {
        let certificates = read(&again).map_err(|error| error.to_string())?;
        tell(&mailers, || Post::Certificates(Arc::clone(&certificates)));
        Ok(())
    });
    read(files)
}

/// Tells all shards, waiting for room in their mailboxes.
fn tell(mailers: &[Mailer<Post>], post: impl Fn() -> Post) {
    for mailer in mailers {
        // A thread that has ended needs to be told nothing.
        let _ = mailer.post(post());
    }
}

/// The threads that verify what is signed with a private key.
fn crew_of_checks(config: &Config, mailers: &[Mailer<Post>]) -> io::Result<Crew<Box<Verify>>> {
    let post = crew::poster(mailers);
    let work = move |shard, verify: Box<Verify>| post(shard, Done::Verified(verify.run().into()));
    Crew::start("tokens", config.limits.token_threads, mailers.len(), work)
}

/// The threads that ask the ERP who may enter a room, if it is to be asked.
fn crew_of_questions(config: &Config, mailers: &[Mailer<Post>]) -> io::Result<Option<Crew<Box<Question>>>> {
    let Some(authorizer) = Authorizer::of(config) else { return Ok(None) };
    let post = crew::poster(mailers);
    let work = move |shard, question: Box<Question>| {
        let permit = authorizer.ask(&question.room, &question.user);
        post(shard, Done::Permitted(question, permit));
    };
    Crew::start("access", config.limits.access_concurrency, mailers.len(), work).map(Some)
}

/// The address to listen on, with the port that the system chose if none was asked for.
///
/// Another instance listens with SO_REUSEPORT and would silently share its port with us; the plain bind here does not.
fn free_address(wanted: SocketAddr, send_buffer_bytes: usize) -> io::Result<SocketAddr> {
    let every_ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, wanted.port()));
    let probe = match listen(wanted, false, send_buffer_bytes) {
        // EAFNOSUPPORT, EADDRNOTAVAIL: without IPv6, every address is every IPv4 address.
        Err(error) if wanted.ip() == Ipv6Addr::UNSPECIFIED && matches!(error.raw_os_error(), Some(97 | 99)) => {
            listen(every_ipv4, false, send_buffer_bytes)?
        }
        probe => probe?,
    };
    Ok(probe.local_addr()?.as_socket().unwrap_or(wanted))
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}
