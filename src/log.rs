//! Logging: who may write, in which form, and what is masked.
//!
//! Owns the set-up of `tracing` and the masking of tokens. Lines go through a bounded queue to a
//! writer thread and are dropped when the queue is full, so a thread that logs never waits for a
//! terminal or a pipe. Must not know what is logged.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing::level_filters::LevelFilter;

use crate::error::Error;

/// Lines that may wait for the writer thread; further ones are dropped.
const LINES_WAITING_MAX: usize = 8192;

/// How long the end of the process waits for lines to be written.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// In which form lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text when standard error is a terminal, JSON lines otherwise.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is logged and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The least severe level that is written.
    pub level: LevelFilter,
    /// The form of the lines.
    pub format: Format,
}

/// Writes what waits when it is dropped, for a second at most.
#[must_use = "without its guard the last lines are lost"]
pub struct Guard {
    queue: Queue,
}

impl Guard {
    /// Lines dropped so far because the writer was behind.
    pub fn dropped_lines(&self) -> u64 {
        self.queue.dropped.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH_MAX;
        let (done, written) = sync_channel(1);
        let mut entry = Entry::Flush(done);
        while let Err(TrySendError::Full(back)) = self.queue.entries.try_send(entry) {
            if Instant::now() >= deadline {
                return;
            }
            entry = back;
            thread::sleep(Duration::from_millis(5));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        // Either way the process ends: the lines are written, or the reader of the log is stuck.
        let _ = written.recv_timeout(left);
    }
}

/// Starts logging to standard error for the whole process.
///
/// # Errors
/// When the process logs already or cannot have another thread.
pub fn init(config: LogConfig) -> Result<Guard, Error> {
    let terminal = io::stderr().is_terminal();
    let json = match config.format {
        Format::Auto => !terminal,
        Format::Text => false,
        Format::Json => true,
    };
    let queue = Queue::start(LINES_WAITING_MAX, io::stderr())?;
    let guard = Guard { queue: queue.clone() };
    let lines =
        tracing_subscriber::fmt().with_max_level(config.level).with_writer(move || queue.clone()).with_target(false);
    let started = if json {
        let lines = lines.json().flatten_event(true).finish();
        tracing::subscriber::set_global_default(lines)
    } else {
        let lines = lines.with_ansi(terminal).finish();
        tracing::subscriber::set_global_default(lines)
    };
    started.map_err(|error| Error::System { action: "start logging", source: io::Error::other(error) })?;
    Ok(guard)
}

/// The way of a line to the writer thread. Each call of `write` is one line, which is how
/// `tracing-subscriber` writes.
#[derive(Clone)]
struct Queue {
    entries: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

enum Entry {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

impl Queue {
    fn start(lines_max: usize, target: impl Write + Send + 'static) -> Result<Queue, Error> {
        let (entries, waiting) = sync_channel(lines_max);
        let thread = thread::Builder::new().name("log".to_owned());
        let started = thread.spawn(move || write_lines(&waiting, target));
        started.map_err(|source| Error::System { action: "start the thread that writes the log", source })?;
        Ok(Queue { entries, dropped: Arc::default() })
    }
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.entries.try_send(Entry::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(waiting: &Receiver<Entry>, mut target: impl Write) {
    for entry in waiting {
        // A log that nobody reads any more is no reason to stop serving.
        match entry {
            Entry::Line(line) => {
                let _ = target.write_all(&line);
            }
            Entry::Flush(done) => {
                let _ = target.flush();
                let _ = done.try_send(());
            }
        }
    }
}

/// Replaces the value of every parameter `token` in a URL or request target by `***`.
///
/// The name is compared without case and after percent-decoding, since a server may decode it
/// too, and it is found wherever a parameter could begin, also in a target that is malformed.
pub fn mask_token(url: &str) -> Cow<'_, str> {
    let mut masked = String::new();
    let mut copied = 0;
    let mut begin = 0;
    while let Some(rest) = url.get(begin..) {
        let name_end = rest.find(|c| is_boundary(c) || c == '=');
        let Some(name_bytes) = name_end else { break };
        let at = begin + name_bytes;
        if url.as_bytes().get(at) != Some(&b'=') {
            begin = at + boundary_bytes(url, at);
            continue;
        }
        let value = at + 1;
        if is_token(&url[begin..at]) {
            let value_end = url[value..].find(ends_value).map_or(url.len(), |bytes| value + bytes);
            masked.push_str(&url[copied..value]);
            masked.push_str("***");
            copied = value_end;
            begin = value_end;
        } else {
            begin = value;
        }
    }
    if copied == 0 {
        return Cow::Borrowed(url);
    }
    masked.push_str(&url[copied..]);
    Cow::Owned(masked)
}

fn is_boundary(c: char) -> bool {
    matches!(c, '?' | '/') || ends_value(c)
}

fn ends_value(c: char) -> bool {
    matches!(c, '&' | ';' | '#') || c.is_whitespace()
}

fn boundary_bytes(url: &str, at: usize) -> usize {
    url[at..].chars().next().map_or(1, char::len_utf8)
}

fn is_token(name: &str) -> bool {
    let mut wanted = b"token".iter();
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            match (digit(), digit()) {
                (Some(high), Some(low)) => u8::try_from(high * 16 + low).unwrap_or(0),
                _ => return false,
            }
        } else {
            byte
        };
        if wanted.next() != Some(&byte.to_ascii_lowercase()) {
            return false;
        }
    }
    wanted.next().is_none()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Hands each line to a test, which may keep it waiting.
    struct Target {
        gate: Receiver<()>,
        lines: Sender<String>,
    }

    impl Write for Target {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.gate.recv();
            let _ = self.lines.send(String::from_utf8_lossy(line).into_owned());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_dropped_while_the_writer_is_stuck_and_it_ends_all_the_same() {
        let (open, gate) = channel();
        let (lines, written) = channel();
        let mut queue = Queue::start(2, Target { gate, lines }).unwrap();
        let guard = Guard { queue: queue.clone() };
        let begun = Instant::now();
        for _ in 0..100 {
            queue.write_all(b"line").unwrap();
        }
        assert!((97..=98).contains(&guard.dropped_lines()));
        drop(guard);
        assert!(begun.elapsed() < FLUSH_MAX * 5);
        drop(open);
        assert_eq!(written.recv(), Ok("line".to_owned()));
    }

    #[test]
    fn the_guard_waits_until_lines_are_written() {
        let (open, gate) = channel();
        let (lines, written) = channel();
        drop(open);
        let mut queue = Queue::start(100, Target { gate, lines }).unwrap();
        for _ in 0..50 {
            queue.write_all(b"line").unwrap();
        }
        drop(Guard { queue });
        assert_eq!(written.try_iter().count(), 50);
    }

    #[test]
    fn tokens_are_masked_wherever_they_stand() {
        for (url, masked) in [
            ("/ws?token=abc.def.ghi", "/ws?token=***"),
            ("/ws?a=1&token=abc&b=2", "/ws?a=1&token=***&b=2"),
            ("/ws?TOKEN=abc", "/ws?TOKEN=***"),
            ("/ws?Token=abc&token=def", "/ws?Token=***&token=***"),
            ("/ws?%74oken=abc", "/ws?%74oken=***"),
            ("/ws?%54%6F%4ben=abc", "/ws?%54%6F%4ben=***"),
            ("/ws?token=a/b?c=d#end", "/ws?token=***#end"),
            ("/ws?token=a=b", "/ws?token=***"),
            ("/ws&token=abc", "/ws&token=***"),
            ("/ws?x;token=abc;y", "/ws?x;token=***;y"),
            ("token=abc", "token=***"),
            ("/ws?a=token=abc", "/ws?a=token=***"),
            ("ws://h/ws?token=abc HTTP/1.1", "ws://h/ws?token=*** HTTP/1.1"),
            ("/ws?token=", "/ws?token=***"),
            ("/é\u{2003}?é=1&token=é", "/é\u{2003}?é=1&token=***"),
        ] {
            assert_eq!(mask_token(url), masked, "{url}");
        }
    }

    #[test]
    fn what_is_no_token_stays() {
        for url in [
            "",
            "/",
            "/ws",
            "/token/x",
            "/ws?tokens=1",
            "/ws?xtoken=1",
            "/ws?token",
            "/ws?%7=1",
            "/ws?%zz=1",
            "/\u{2003}",
        ] {
            assert!(matches!(mask_token(url), Cow::Borrowed(_)), "{url}");
            assert_eq!(mask_token(url), url);
        }
    }
}
