//! Logging: who may write, and in which form.
//!
//! Owns the set-up of `tracing`. A line is one line of printable text, whatever names are in it. Lines go through a bounded queue to a writer thread and are dropped when the queue is full, so a thread that logs never waits for a
//! terminal or a pipe. Must not know what is logged.
//!
//! What a peer chose is logged as a field of its own, never within the message: then both forms quote it and escape what
//! would end the quotes. What would end the line, does not show, or turns the direction of writing is escaped here.

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
    let queue = Queue::start(LINES_WAITING_MAX, io::stderr(), terminal && !json)?;
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
    colours: bool,
    dropped: Arc<AtomicU64>,
}

enum Entry {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

impl Queue {
    fn start(lines_max: usize, target: impl Write + Send + 'static, colours: bool) -> Result<Queue, Error> {
        let (entries, waiting) = sync_channel(lines_max);
        let thread = thread::Builder::new().name("log".to_owned());
        let started = thread.spawn(move || write_lines(&waiting, target));
        started.map_err(|source| Error::System { action: "start the thread that writes the log", source })?;
        Ok(Queue { entries, colours, dropped: Arc::default() })
    }
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.entries.try_send(Entry::Line(printable(line, self.colours).into_owned())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The line with everything escaped, as JSON escapes it, that could end it early, move a cursor or turn the direction of
/// text: names in it are whatever peers call themselves. The colours of a terminal are ours, since `tracing-subscriber`
/// escapes those of values.
fn printable(line: &[u8], colours: bool) -> Cow<'_, [u8]> {
    let (text, end) = match line.strip_suffix(b"\n") {
        Some(text) => (text, "\n"),
        None => (line, ""),
    };
    if text.iter().all(|byte| matches!(byte, b' '..=b'~')) {
        return Cow::Borrowed(line);
    }
    let mut out = String::with_capacity(line.len() + 16);
    for char in String::from_utf8_lossy(text).chars() {
        if is_treacherous(char) && !(colours && char == '\u{1b}') {
            char.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
        } else {
            out.push(char);
        }
    }
    out.push_str(end);
    Cow::Owned(out.into_bytes())
}

/// Control characters, those that end lines or paragraphs, and those without a width that change how others are shown
/// (Unicode Technical Report 36, section 3.5).
fn is_treacherous(char: char) -> bool {
    let unseen = matches!(char, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}');
    char.is_control()
        || unseen
        || matches!(char, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
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
        let mut queue = Queue::start(2, Target { gate, lines }, false).unwrap();
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
    fn no_line_of_json_has_a_character_that_does_not_show() {
        let line = "{\"user\":\"a\u{202e}b\u{2028}\u{7f}\u{85}\u{feff}\u{e0001}é👍\"}\n";
        let shown = String::from_utf8(printable(line.as_bytes(), false).into_owned()).unwrap();
        let escaped = r#"{"user":"a\u202eb\u2028\u007f\u0085\ufeff\udb40\udc01é👍"}"#;
        assert_eq!(shown, format!("{escaped}\n"));
        let (read, written): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(&shown).unwrap(), serde_json::from_str(line).unwrap());
        assert_eq!(read, written);
    }

    #[test]
    fn the_guard_waits_until_lines_are_written() {
        let (open, gate) = channel();
        let (lines, written) = channel();
        drop(open);
        let mut queue = Queue::start(100, Target { gate, lines }, false).unwrap();
        for _ in 0..50 {
            queue.write_all(b"line").unwrap();
        }
        drop(Guard { queue });
        assert_eq!(written.try_iter().count(), 50);
    }

    #[test]
    fn what_is_in_a_line_stays_in_it() {
        let shown = |line: &str, colours| String::from_utf8(printable(line.as_bytes(), colours).into_owned()).unwrap();
        for line in ["plain\n", "no end", "größer 🙂 你好\n", ""] {
            assert_eq!(shown(line, false), line);
        }
        assert_eq!(shown("a\nb\r\u{85}\u{2028}c\n", false), "a\\u000ab\\u000d\\u0085\\u2028c\n");
        assert_eq!(shown("\u{202e}gpj\u{2069}\u{200b}\0\n", false), "\\u202egpj\\u2069\\u200b\\u0000\n");
        assert_eq!(shown("\u{1b}[31mred\u{7f}\n", true), "\u{1b}[31mred\\u007f\n");
        assert_eq!(shown("\u{1b}[31mred\n", false), "\\u001b[31mred\n");
        assert_eq!(printable(b"\xff\n", false), "\u{fffd}\n".as_bytes());
    }
}
