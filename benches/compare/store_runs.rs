//! The scenarios of the store, each of several runs.
//!
//! Each run has a database of its own below the directory of the logs, which is removed behind it, so that the disk is that
//! of the build.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::process::{Process, bound_command};
use crate::run::{Measured, Runner, Running, number};
use crate::scenario::{Load, Server, StoreKind, Time, load};

const LOAD_TIMEOUT_S: u64 = 630;
const ROWS_TIMEOUT: Duration = Duration::from_secs(60);
/// The posts that keep a durable server busy.
const POSTS: Load = Load { extra: &["--http-connections", "64"], ..load(0, 1, "post", 4) };
/// By each of 64 connections: more than 50,000 in all.
const FEED_FILL: &str = "800";
const RECOVERING: u32 = 10_000;
const RECOVERED: f64 = 50.0;
const MIB: f64 = 1_048_576.0;

impl Runner<'_> {
    /// Measures what the store does.
    pub(crate) fn store(&mut self, kind: StoreKind, server: Server, stem: &str) -> Result<Measured, String> {
        let figures = match kind {
            StoreKind::Durable => self.durable(server, stem)?,
            StoreKind::Recovery { rooms: 1 } => {
                self.recovery(server, stem, 1, ["recover-1", "join-1", "recover/join-1"])?
            }
            StoreKind::Recovery { rooms } => {
                self.recovery(server, stem, rooms, ["recover-100", "join-100", "recover/join-100"])?
            }
            StoreKind::IdleRooms => self.idle_rooms(server, stem)?,
            StoreKind::Feed => self.feed(server, stem)?,
        };
        Ok(Measured { figures, ..Measured::default() })
    }

    /// The path of a database that does not exist yet.
    pub(crate) fn fresh_store(&self, stem: &str) -> Result<OsString, String> {
        let folder = self.store_folder(stem);
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(folder.join("chat.db").into_os_string())
    }

    fn store_folder(&self, stem: &str) -> PathBuf {
        self.programs.logs.join(format!("{stem}.store"))
    }

    fn remove_store(&self, stem: &str) {
        // What is left is removed before the next run.
        let _ = fs::remove_dir_all(self.store_folder(stem));
    }

    /// Posts as fast as it takes them, and the bare loop; then half as fast, and the bare loop row by row, and behind posts.
    fn durable(&mut self, server: Server, stem: &str) -> Result<Vec<(&'static str, f64)>, String> {
        let (first, floor, half) = (format!("{stem}-all"), format!("{stem}-rows"), format!("{stem}-half"));
        let mut running = self.start_durable(server, &first)?;
        let all = self.free_load(&mut running, &POSTS, &[], "load")?;
        drop(running);
        self.remove_store(&first);
        let per_s = number(&all, "/published_per_s")?;
        let (rows, beside) = self.rows_beside_load(&floor, per_s)?;
        let single = self.rows_alone(&format!("{stem}-commit"))?;
        let mut running = self.start_durable(server, &half)?;
        let rate = (per_s / 2.0).round().to_string();
        let calm_args = ["--rate", rate.as_str(), "--drowsy"];
        let calm = self.free_load(&mut running, &POSTS, &calm_args, "load")?;
        drop(running);
        self.remove_store(&half);
        let bare = self.rows_behind_posts(&format!("{stem}-bare"), &calm_args)?;
        let (post_us, row_us) = (1e6 / per_s, 1e6 / number(&rows, "/rows_per_s")?);
        let (p99, commit) = (number(&calm, "/answer_us/p99")?, number(&single, "/commit_us/p50")?);
        let batch = number(&rows, "/commit_us/p50")?;
        let cpu_per_s = |outcome: &Value| {
            Ok::<_, String>(number(outcome, "/client_cpu_us_per_published")? * number(outcome, "/published_per_s")?)
        };
        Ok(vec![
            ("post-us", post_us),
            ("row-us", row_us),
            ("post/row", post_us / row_us),
            ("post-p99", p99),
            ("commit", commit),
            ("commit-p99", number(&single, "/commit_us/p99")?),
            ("p99/commit", p99 / commit),
            ("commit-256", batch),
            ("p99/commit-256", p99 / batch),
            ("bare-p99", bare),
            ("p99/bare-p99", p99 / bare),
            ("load-cpu", cpu_per_s(&beside)? / cpu_per_s(&all)?),
        ])
    }

    /// CPU of the server for each who comes back, and for each who comes for the first time, to the same rooms.
    fn recovery(
        &mut self,
        server: Server,
        stem: &str,
        rooms: u32,
        names: [&'static str; 3],
    ) -> Result<Vec<(&'static str, f64)>, String> {
        let [recover, join, ratio] = names;
        let mut costs = [0.0; 2];
        for (cost, (what, recovered)) in costs.iter_mut().zip([("recover", "50"), ("join", "0")]) {
            let stem = format!("{stem}-{what}");
            let store = self.fresh_store(&stem)?;
            let mut running = self.start_as(server, &stem, Some(0), |command| {
                command.env("CHAT_STORE", store);
            })?;
            let load = Load { time: Time::Seconds(0.5), ..load(RECOVERING, rooms, "rest", 16) };
            let mut command = self.load_command(&running, &load);
            command.args(["--joining", "10000", "--presence", "--history", "60", "--recover", recovered]);
            let mut process = running.start_load(&mut command, "load")?;
            let outcome = running.finish(&mut process, "load", LOAD_TIMEOUT_S)?;
            drop(running);
            self.remove_store(&stem);
            let expected = if what == "recover" { RECOVERED * f64::from(RECOVERING) } else { 0.0 };
            if number(&outcome, "/recovered")? != expected {
                return Err(format!("{} instead of {expected} messages were recovered", outcome["recovered"]));
            }
            *cost = number(&outcome, "/server/join_cpu_us_total")? / f64::from(RECOVERING);
        }
        Ok(vec![(recover, costs[0]), (join, costs[1]), (ratio, costs[0] / costs[1])])
    }

    /// Memory when 100,000 rooms have been used once, and left alone until they have left memory.
    fn idle_rooms(&mut self, server: Server, stem: &str) -> Result<Vec<(&'static str, f64)>, String> {
        let store = self.fresh_store(stem)?;
        // Long enough for all of them to be in memory at once.
        let mut running = self.start_as(server, stem, None, |command| {
            command.env("CHAT_STORE", store).env("CHAT_ROOM_LINGER_MS", "20000").env_remove("CHAT_THREADS");
        })?;
        let tour = Load { extra: &["--http-connections", "64", "--tour"], ..load(0, 100_000, "post", 4) };
        let load = Load { time: Time::Seconds(120.0), ..tour };
        let args = ["--warmup-ms", "0", "--idle-seconds", "45"];
        let outcome = self.free_load(&mut running, &load, &args, "load")?;
        drop(running);
        self.remove_store(stem);
        let rss = |name: &str| Ok::<_, String>(number(&outcome, &format!("/server/{name}"))? / MIB);
        let (before, used, idle) = (rss("rss_bytes_before")?, rss("rss_bytes_published")?, rss("rss_bytes_idle")?);
        Ok(vec![("idle-rooms", idle), ("idle-rooms-growth", idle - before), ("rooms-before-idle", used)])
    }

    /// How fast the feed is read, and what a writer is told of it.
    fn feed(&mut self, server: Server, stem: &str) -> Result<Vec<(&'static str, f64)>, String> {
        let mut running = self.start_durable(server, stem)?;
        let all = self.free_load(&mut running, &POSTS, &[], "first")?;
        let per_s = number(&all, "/published_per_s")?;
        let fill = Load { time: Time::Seconds(120.0), ..POSTS };
        self.free_load(&mut running, &fill, &["--room-prefix", "fill-", "--messages", FEED_FILL], "fill")?;
        let rate = (per_s / 2.0).round().to_string();
        let steady = ["--rate", rate.as_str(), "--drowsy", "--room-prefix"];
        let alone = self.free_load(&mut running, &POSTS, &[&steady[..], &["alone-"]].concat(), "alone")?;
        let mut command = self.posting(&running, &POSTS, &[&steady[..], &["beside-"]].concat());
        let mut writer = running.start_load(&mut command, "beside")?;
        // Its warm-up is over then.
        std::thread::sleep(Duration::from_millis(700));
        let reading = Load { time: Time::Seconds(60.0), extra: &["--messages", "50000"], ..load(0, 1, "feed", 1) };
        let mut command = self.free_load_command(running.port, &reading);
        let mut reader = running.start_load(&mut command, "feed")?;
        let read = running.finish(&mut reader, "feed", LOAD_TIMEOUT_S)?;
        let beside = running.finish(&mut writer, "beside", LOAD_TIMEOUT_S)?;
        drop(running);
        self.remove_store(stem);
        let slower = number(&alone, "/published_per_s")? / number(&beside, "/published_per_s")?;
        Ok(vec![
            ("feed", 1e6 / number(&read, "/events_per_s")?),
            ("writer-slower", slower),
            ("writer-p99-alone", number(&alone, "/answer_us/p99")?),
            ("writer-p99-beside", number(&beside, "/answer_us/p99")?),
        ])
    }

    /// A server as it is set up by itself, but for its limits of rates, on whichever cores.
    fn start_durable(&mut self, server: Server, stem: &str) -> Result<Running, String> {
        let store = self.fresh_store(stem)?;
        self.start_as(server, stem, None, |command| {
            command.env("CHAT_STORE", store).env_remove("CHAT_THREADS");
        })
    }

    fn free_load(&self, running: &mut Running, load: &Load, args: &[&str], name: &str) -> Result<Value, String> {
        let mut command = self.posting(running, load, args);
        let mut process = running.start_load(&mut command, name)?;
        running.finish(&mut process, name, LOAD_TIMEOUT_S)
    }

    fn posting(&self, running: &Running, load: &Load, args: &[&str]) -> Command {
        let mut command = self.free_load_command(running.port, load);
        command.args(["--pid", &running.process.id().to_string()]).args(args);
        command
    }

    /// What the bare loop commits while it answers so many posts a second, and what the load made of that.
    fn rows_beside_load(&mut self, stem: &str, per_s: f64) -> Result<(Value, Value), String> {
        let mut running = self.start_answering(stem, &["--answers", &per_s.to_string()])?;
        let outcome = self.free_load(&mut running, &POSTS, &[], "load")?;
        let rows = running.printed("rows")?;
        drop(running);
        self.remove_store(stem);
        Ok((rows, outcome))
    }

    /// The 99th percentile of a post that the bare loop answers behind the commit of its row.
    fn rows_behind_posts(&mut self, stem: &str, args: &[&str]) -> Result<f64, String> {
        let mut running = self.start_answering(stem, &[])?;
        let outcome = self.free_load(&mut running, &POSTS, args, "load")?;
        drop(running);
        self.remove_store(stem);
        number(&outcome, "/answer_us/p99")
    }

    /// The bare loop, which answers posts.
    fn start_answering(&mut self, stem: &str, args: &[&str]) -> Result<Running, String> {
        let port = self.free_port()?;
        let (named, seconds) = (port.to_string(), self.seconds().to_string());
        let rows =
            self.start_rows(stem, &[&["--port", named.as_str(), "--seconds", seconds.as_str()], args].concat())?;
        let mut running = Running::besides(rows, port, self.programs.logs.clone(), stem);
        running.wait_until_listening()?;
        Ok(running)
    }

    /// Commits of one row, with nothing beside.
    fn rows_alone(&mut self, stem: &str) -> Result<Value, String> {
        let mut rows = self.start_rows(stem, &["--batch", "1", "--seconds", "1"])?;
        rows.wait(ROWS_TIMEOUT)?;
        let running = Running::besides(rows, 0, self.programs.logs.clone(), stem);
        let rows = running.printed("rows");
        self.remove_store(stem);
        rows
    }

    fn start_rows(&self, stem: &str, args: &[&str]) -> Result<Process, String> {
        let mut command = bound_command(self.programs.rows.as_os_str(), None);
        command.arg("--file").arg(self.fresh_store(stem)?).args(args);
        let log = |suffix: &str| self.programs.logs.join(format!("{stem}.{suffix}"));
        Process::start("rows", &mut command, &log("rows.json"), &log("server.err"))
    }
}
