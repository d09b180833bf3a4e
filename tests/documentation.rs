//! The README against the program: what it lists is what there is.
//!
//! Tables that come from code must stand in it word for word, every route must be answered, every code must be explained,
//! and nothing in it may depend on the machine on which it was written. Nothing here opens a socket: a shard takes bytes
//! and gives bytes.

use std::collections::BTreeSet;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use sizland_chat::chat::Now;
use sizland_chat::chat::closing::CloseReason;
use sizland_chat::chat::ids::{HashKey, ShardId};
use sizland_chat::chat::queues::SendBudget;
use sizland_chat::chat::shard::{Gauges, Shard, ShardSetup};
use sizland_chat::config::{Config, Limits, settings_markdown};
use sizland_chat::wire::client::ErrorCode;

const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

#[test]
fn the_tables_of_the_configuration_are_those_of_the_code() {
    let readme = readme();
    for table in [settings_markdown(), Limits::table_markdown()] {
        assert!(readme.contains(&format!("\n\n{table}\n")), "README.md must contain exactly:\n\n{table}");
    }
}

#[test]
fn every_route_in_a_table_exists() {
    let readme = readme();
    let routes = routes(&readme);
    assert!(routes.len() >= 12, "the table of routes was not found: {routes:?}");
    for (method, path) in routes {
        let answer = options(&path);
        assert!(answer.starts_with("HTTP/1.1 204 "), "{method} {path}: {answer}");
        let allow = answer.lines().find_map(|line| line.strip_prefix("Allow: ")).unwrap_or_default();
        assert!(allow.split(", ").any(|allowed| allowed == method), "{method} {path}: {allow}");
    }
    assert!(options("/api/chat/nowhere").starts_with("HTTP/1.1 404 "));
}

#[test]
fn every_close_code_is_in_a_table() {
    let rows = rows_that_begin_with_code(&readme());
    for reason in [
        CloseReason::NoToken,
        CloseReason::InvalidToken,
        CloseReason::Expired,
        CloseReason::SlowConsumer,
        CloseReason::Flooding,
        CloseReason::Removed(String::new()),
        CloseReason::Replaced,
        CloseReason::GoingAway,
        CloseReason::InputPoolFull,
    ] {
        assert!(rows.contains(&reason.code().to_string()), "{}: {rows:?}", reason.label());
    }
}

#[test]
fn every_error_code_is_in_a_table() {
    let rows = rows_that_begin_with_code(&readme());
    for code in [
        ErrorCode::InvalidJson,
        ErrorCode::InvalidMessage,
        ErrorCode::UnknownType,
        ErrorCode::NotInRoom,
        ErrorCode::Forbidden,
        ErrorCode::NotFound,
        ErrorCode::Conflict,
        ErrorCode::RoomLimit,
        ErrorCode::TooLarge,
        ErrorCode::RateLimited,
        ErrorCode::Overloaded,
        ErrorCode::Unavailable,
        ErrorCode::Internal,
    ] {
        assert!(rows.contains(code.as_str()), "{}: {rows:?}", code.as_str());
    }
}

#[test]
fn every_attack_and_fault_is_shown_by_a_test() {
    let readme = readme();
    let rows: Vec<&str> = ["attack", "fault"].into_iter().flat_map(|name| rows_below(&readme, name)).collect();
    assert!(rows.len() >= 30, "{rows:?}");
    for row in rows {
        let shown = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        let tests: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "{row}");
        for test in tests {
            let (module, name) = test.split_once("::").expect("a module and a test");
            let paths = ["end_to_end/", "faults/", ""].map(|folder| format!("tests/{folder}{module}.rs"));
            let text = paths.iter().find_map(|path| std::fs::read_to_string(repository().join(path)).ok());
            let text = text.unwrap_or_else(|| panic!("no file for {test}"));
            assert!(text.contains(&format!("\nfn {name}() {{")), "{test} does not exist");
        }
    }
}

/// The rows of the table of what is named first, and what happens, and which test shows it.
fn rows_below<'a>(readme: &'a str, name: &str) -> Vec<&'a str> {
    let head = format!("\n| {name} | what happens | test that shows it |\n");
    let (_, table) = readme.split_once(&head).unwrap_or_else(|| panic!("no table of this head: {head}"));
    table.lines().skip(1).take_while(|line| line.starts_with('|')).collect()
}

#[test]
fn nothing_depends_on_the_machine_where_it_was_written() {
    let readme = readme();
    for word in ["/home/", "/tmp/", "/Users/", "file://"] {
        assert!(!readme.contains(word), "README.md contains {word}");
    }
}

#[test]
fn every_local_link_leads_somewhere() {
    let readme = readme();
    let anchors: BTreeSet<String> = readme.lines().filter(|line| line.starts_with('#')).map(anchor).collect();
    for target in readme.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target) {
        match target.strip_prefix('#') {
            Some(name) => assert!(anchors.contains(name), "no heading for #{name}: {anchors:?}"),
            None if target.contains("://") => {}
            None => assert!(repository().join(target).exists(), "{target} does not exist"),
        }
    }
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    std::fs::read_to_string(repository().join("README.md")).expect("README.md can be read")
}

/// Method and path of each `METHOD /path` in a table, with what stands in braces filled in and without the query.
fn routes(readme: &str) -> BTreeSet<(String, String)> {
    let tables = readme.lines().filter(|line| line.starts_with('|'));
    let spans = tables.flat_map(|line| line.split('`').skip(1).step_by(2));
    let calls = spans.filter_map(|span| span.split_once(' '));
    calls
        .filter(|(method, path)| METHODS.contains(method) && path.starts_with('/'))
        .map(|(method, path)| {
            let path = path.split('?').next().unwrap_or_default();
            (method.to_owned(), path.replace(['{', '}'], ""))
        })
        .collect()
}

/// What stands as code at the start of a table's rows, several of them separated by commas.
fn rows_that_begin_with_code(readme: &str) -> BTreeSet<String> {
    let cells = readme.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// The name that a heading is linked by.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || "- _".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// What a server answers to `OPTIONS` of a path.
fn options(path: &str) -> String {
    let now = Now { tick_ms: 1000, wall_ms: 1_700_000_000_000 };
    let setup = ShardSetup {
        config: Arc::new(Config::for_tests("a secret that is at least 32 bytes", "an api key")),
        id: ShardId(0),
        shards: 1,
        key: HashKey::new([1; 16]),
        seed: [1; 32],
        gauges: Arc::new(Gauges::default()),
        store: None,
    };
    let mut shard = Shard::new(setup, now);
    shard.begin_turn(now);
    let conn = shard.handle_accept(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mut request = format!("OPTIONS {path} HTTP/1.1\r\nHost: chat\r\n\r\n").into_bytes();
    shard.handle_input(conn.slot(), &mut request);
    let (mut answer, mut budget) = (Vec::new(), SendBudget { express: 100, bulk: 100 });
    while let Some(slot) = shard.poll_transmit(&mut budget) {
        let mut slices = [IoSlice::new(&[]); 8];
        let count = shard.gather(slot, &mut slices);
        let sent: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.iter().copied()).collect();
        answer.extend_from_slice(&sent);
        shard.handle_sent(slot, sent.len(), false);
    }
    String::from_utf8(answer).expect("an answer without body is text")
}
