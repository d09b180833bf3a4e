//! Reads the feed of all durable events as the ERP would: one keep-alive connection, a page after the other, from the
//! beginning. It checks that the events of each room come in the order of their `seq`, each once and without a hole.
//! It shares nothing with the connections of the other modes.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::args::Args;
use crate::http::{self, Answer};
use crate::probe;

const READ_BYTES: usize = 256 * 1024;
const TIMEOUT: Duration = Duration::from_secs(10);
const PAGE_EVENTS: u32 = 1_000;
const PAGE_US_MAX: u64 = 600_000_000;

/// What reading gave.
pub struct Reading {
    events: u64,
    pages: u64,
    seconds: f64,
    page_us: Histogram<u64>,
    client_us: f64,
    faults: Vec<String>,
}

#[derive(Deserialize)]
struct Page<'p> {
    #[serde(borrow)]
    events: Vec<Event<'p>>,
    next: String,
    more: bool,
}

#[derive(Deserialize)]
struct Event<'p> {
    #[serde(rename = "roomId", borrow)]
    room: &'p str,
    seq: u64,
}

/// A connection and what came on it that was not whole.
struct Reader<'a> {
    args: &'a Args,
    stream: TcpStream,
    bytes: Vec<u8>,
}

impl Reading {
    /// Reads until so many events have come as were asked for, or for the time asked for, or until nothing is left.
    pub fn of(args: &Args) -> io::Result<Self> {
        let mut reader = Reader::open(args)?;
        let wanted = args.messages.map_or(u64::MAX, u64::from);
        let time = args.seconds.map(Duration::from_secs_f64);
        let page_us = Histogram::new_with_bounds(1, PAGE_US_MAX, 3).map_err(io::Error::other)?;
        let mut reading = Self { events: 0, pages: 0, seconds: 0.0, page_us, client_us: 0.0, faults: Vec::new() };
        let (mut last, mut next) = (HashMap::new(), String::new());
        let (begin, begin_ns) = (Instant::now(), probe::cpu_ns(std::process::id()).unwrap_or(0));
        let mut has_more = true;
        while reading.events < wanted && time.is_none_or(|time| begin.elapsed() < time) && has_more {
            let asked = Instant::now();
            let body = reader.page(&next)?;
            reading.page_us.saturating_record(asked.elapsed().as_micros() as u64);
            let page: Page<'_> = serde_json::from_slice(&body).map_err(io::Error::other)?;
            for event in &page.events {
                reading.enter(&mut last, event);
            }
            reading.pages += 1;
            has_more = page.more;
            next = page.next;
        }
        if args.messages.is_some() && reading.events < wanted {
            reading.faults.push(format!("only {} events are there", reading.events));
        }
        reading.seconds = begin.elapsed().as_secs_f64();
        reading.client_us = (probe::cpu_ns(std::process::id()).unwrap_or(0) - begin_ns) as f64 / 1e3;
        Ok(reading)
    }

    /// Whether every check held.
    pub fn is_ok(&self) -> bool {
        self.faults.is_empty()
    }

    /// One JSON object.
    pub fn json(&self) -> Value {
        let quantile = |quantile| self.page_us.value_at_quantile(quantile);
        json!({
            "mode": "feed",
            "events": self.events,
            "pages": self.pages,
            "seconds": self.seconds,
            "events_per_s": self.events as f64 / self.seconds.max(1e-9),
            "page_us": { "p50": quantile(0.5), "p99": quantile(0.99), "max": self.page_us.max() },
            "client": { "cpu_us": self.client_us },
            "check": { "faults": self.faults },
            "stopped": null,
            "ok": self.is_ok(),
        })
    }

    fn enter(&mut self, last: &mut HashMap<String, u64>, event: &Event<'_>) {
        self.events += 1;
        let expected = match last.get_mut(event.room) {
            Some(seq) => {
                *seq += 1;
                *seq
            }
            None => {
                last.insert(event.room.to_owned(), 1);
                1
            }
        };
        if event.seq != expected && self.faults.len() < 10 {
            self.faults.push(format!("{}: {} instead of {expected}", event.room, event.seq));
        }
    }
}

impl<'a> Reader<'a> {
    fn open(args: &'a Args) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&args.address, TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self { args, stream, bytes: Vec::new() })
    }

    /// The body of the page behind a cursor.
    fn page(&mut self, after: &str) -> io::Result<Vec<u8>> {
        let Args { address, api_key, .. } = self.args;
        let target = format!("/api/chat/events?limit={PAGE_EVENTS}&after={after}");
        let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nX-API-Key: {api_key}\r\n\r\n");
        self.stream.write_all(request.as_bytes())?;
        self.bytes.clear();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let count = self.stream.read(&mut buffer)?;
            self.bytes.extend_from_slice(&buffer[..count]);
            match http::answer(&self.bytes) {
                Answer::Whole { status: 200, .. } => return Ok(http::body(&self.bytes).to_vec()),
                Answer::Partial if count > 0 => {}
                Answer::Whole { status, .. } => return Err(io::Error::other(format!("the feed answers {status}"))),
                _ => return Err(io::Error::other("the feed gives no whole answer")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_is_found() {
        let page_us = Histogram::new_with_bounds(1, 100, 3).unwrap();
        let mut reading = Reading { events: 0, pages: 0, seconds: 0.0, page_us, client_us: 0.0, faults: Vec::new() };
        let mut last = HashMap::new();
        for (room, seq) in [("a", 1), ("b", 1), ("a", 2), ("b", 2)] {
            reading.enter(&mut last, &Event { room, seq });
        }
        assert!(reading.is_ok());
        reading.enter(&mut last, &Event { room: "a", seq: 4 });
        assert!(!reading.is_ok());
    }
}
