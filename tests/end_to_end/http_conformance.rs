//! The table of `http_table` against the real binary.
//!
//! Every row goes over a connection of its own, twice: first whole, with a second request behind its answers; then with
//! the second request in the same stream and the stream split at a random byte. Both must give the same answers, and
//! the connection must live on or end as the row says. What a row tries to smuggle must never arrive in its room, and
//! what is posted must arrive exactly once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::client::Client;
use crate::http_client::{Http, Response};
use crate::http_table::{Answer, Fate, MARKED_ROOM, Row, TABLE_ROOM, expand, table};
use crate::server::Server;

/// What shows that a connection lives on; no row asks for it.
const PROBE: &[u8] = b"GET /readyz HTTP/1.1\r\nHost: chat.test\r\n\r\n";
const WORKERS: usize = 8;
/// Between the two parts of a split request, so that the server mostly sees them apart. Nothing depends on it.
const SPLIT_PAUSE: Duration = Duration::from_millis(2);

#[derive(Clone, Copy)]
enum Pass {
    Whole,
    /// Split at this fraction of its length, in millionths.
    Split(usize),
}

#[test]
fn every_request_of_the_table_gets_its_exact_answer() {
    let rows = table();
    assert!(rows.len() >= 250, "{} rows", rows.len());
    let server = Server::start();
    let mut member = Client::in_room(&server, "member", MARKED_ROOM);
    let mut random = Random::from_environment();

    let passes: Vec<Pass> = rows.iter().map(|_| Pass::Split(random.below(1_000_000))).collect();
    let whole = vec![Pass::Whole; rows.len()];
    let failures = [run(&server, &rows, &whole), run(&server, &rows, &passes)].concat();
    assert!(failures.is_empty(), "{} failed\n{}", failures.len(), failures.join("\n"));

    // The fence is the first message of its room, so none was smuggled into it.
    let fence = server.http().post(MARKED_ROOM, &json!({"content": "fence"}));
    assert_eq!(fence["seq"], 1, "a smuggled request was served");
    assert_eq!(member.expect("new_message")["content"], "fence");
    let posted = 2 * rows.iter().flat_map(|row| &row.answers).filter(|answer| answer.status == 201).count();
    let last = server.http().post(TABLE_ROOM, &json!({"content": "last"}));
    assert_eq!(last["seq"], json!(posted + 1), "each message is posted once");
}

/// Runs every row in its way; gives a line for each that failed.
fn run(server: &Server, rows: &[Row], passes: &[Pass]) -> Vec<String> {
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(row), Some(pass)) = (rows.get(number), passes.get(number)) else { break };
                    if let Err(failure) = check(server, row, number, *pass) {
                        let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                        failures.push(format!("{number} {:?}, {failure}", row.name));
                    }
                }
            });
        }
    });
    failures.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn check(server: &Server, row: &Row, number: usize, pass: Pass) -> Result<(), String> {
    let mut http = server.http();
    let mut bytes = expand(row.request, number);
    let has_probe = matches!(row.fate, Fate::Kept | Fate::Closed);
    let how = match pass {
        Pass::Whole => {
            // The server may have answered and closed before all of it is sent.
            let _ = http.try_send(&bytes);
            "whole".to_owned()
        }
        Pass::Split(millionths) => {
            if has_probe {
                bytes.extend_from_slice(PROBE);
            }
            let at = 1 + (bytes.len() - 1) * millionths / 1_000_000;
            let (first, second) = bytes.split_at(at);
            let _ = http.try_send(first);
            thread::sleep(SPLIT_PAUSE);
            let _ = http.try_send(second);
            format!("split at {at} of {}", bytes.len())
        }
    };
    let outcome = judge(&mut http, row, matches!(pass, Pass::Whole) && has_probe);
    outcome.map_err(|failure| format!("{how}: {failure}"))
}

/// Reads the answers and what follows them.
fn judge(http: &mut Http, row: &Row, sends_probe: bool) -> Result<(), String> {
    for (index, expected) in row.answers.iter().enumerate() {
        let answer = next(http, expected)?;
        let closes = row.fate == Fate::Closed && index + 1 == row.answers.len();
        compare(&answer, expected, closes).map_err(|what| format!("answer {index}: {what}: {answer:?}"))?;
    }
    if sends_probe {
        let _ = http.try_send(PROBE);
    }
    match row.fate {
        Fate::Kept => {
            let answer = http.read_response("GET").map_err(|error| format!("no second answer: {error}"))?;
            if answer.body != br#"{"status":"ready"}"# {
                return Err(format!("not the answer to the second request: {answer:?}"));
            }
            http.finish_sending();
        }
        Fate::Closed => {}
        Fate::Waits => http.finish_sending(),
        // A greeting that begins as a frame does.
        Fate::Upgraded => return http.take_frame_of("connected"),
    }
    if http.ends_in_order() { Ok(()) } else { Err("the connection goes on, or is reset".to_owned()) }
}

/// The next answer; an interim one is passed over unless it is asked for.
fn next(http: &mut Http, expected: &Answer) -> Result<Response, String> {
    let method = if expected.head { "HEAD" } else { "GET" };
    loop {
        let answer = http.read_response(method).map_err(|error| format!("no {}: {error}", expected.status))?;
        if answer.status != 100 || expected.status == 100 {
            return Ok(answer);
        }
    }
}

fn compare(answer: &Response, expected: &Answer, closes: bool) -> Result<(), String> {
    let ensure = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_owned()) };
    ensure(answer.status == expected.status, &format!("not {}", expected.status))?;
    ensure(answer.reason == reason(expected.status), "the reason phrase")?;
    for (name, value) in &expected.fields {
        ensure(answer.header(name) == Some(value), &format!("{name} is not {value:?}"))?;
    }
    for name in &expected.absent {
        ensure(answer.header(name).is_none(), &format!("{name} is there"))?;
    }
    if expected.status < 200 {
        return Ok(());
    }
    ensure(answer.lists("connection", if closes { "close" } else { "keep-alive" }), "Connection")?;
    ensure(answer.header("date").is_some_and(|date| date.len() == 29 && date.ends_with(" GMT")), "Date")?;
    let has_body = expected.status != 204;
    ensure(answer.header("content-length").is_some() == has_body, "Content-Length")?;
    ensure(answer.header("content-type") == has_body.then_some("application/json"), "Content-Type")?;
    if expected.head || !has_body {
        return ensure(answer.body.is_empty(), "a body");
    }
    if let Some(body) = expected.body {
        ensure(answer.body == body.as_bytes(), "the body")?;
    }
    if let Some((code, text)) = expected.error {
        ensure(answer.json() == json!({"error": text, "code": code}), &format!("not {code}: {text}"))?;
    }
    ensure(expected.status != 201 || matches!(answer.json()["id"], Value::String(_)), "no id")
}

/// RFC 9110 15.
fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        426 => "Upgrade Required",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        505 => "HTTP Version Not Supported",
        _ => panic!("no row expects {status}"),
    }
}

/// A small generator (SplitMix64), so that a seed gives the same splits again.
pub struct Random(u64);

impl Random {
    pub fn from_environment() -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |elapsed| elapsed.as_nanos() as u64);
        let given = std::env::var("HTTP_TABLE_SEED").ok();
        let seed = given.map_or_else(now, |seed| seed.parse().expect("HTTP_TABLE_SEED is a number"));
        println!("HTTP_TABLE_SEED={seed}");
        Self(seed)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as usize % limit
    }
}
