//! `token`, `check` and `serve --dev`, used as their own output says.

use serde_json::{Value, json};

use crate::client::{Client, now_s};
use crate::http_client::request;
use crate::server::{API_KEY, SECRET, Server, bare, free_port, run, with_defaults};

/// The one line that `token` prints.
fn printed_token(arguments: &[&str]) -> String {
    let mut command = bare(arguments);
    with_defaults(&mut command, free_port(), &[]);
    let finished = run(command);
    assert_eq!(finished.code, Some(0), "{:#?}", finished.stderr);
    let lines: Vec<String> = finished.stdout.into_iter().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    lines[0].clone()
}

#[test]
fn token_prints_one_that_works() {
    let server = Server::start();
    let token = printed_token(&["token", "--user", "ana"]);
    assert_eq!(Client::connect(&server, &token).connected["userId"], "ana");
    assert_eq!(server.http().bearer(&token, "GET", "/api/chat/rooms", None).status, 403);
    let token = printed_token(&["token", "--user", "erp", "--role", "service", "--ttl", "2h"]);
    assert_eq!(server.http().bearer(&token, "GET", "/api/chat/rooms", None).status, 200);
    let expires_at = Client::connect(&server, &token).connected["expiresAt"].as_u64().expect("a time") / 1000;
    assert!(expires_at.abs_diff(now_s() + 7200) < 60, "{expires_at}");
}

#[test]
fn check_prints_the_configuration_masked() {
    let mut command = bare(&["check"]);
    with_defaults(&mut command, free_port(), &[("CHAT_TYPING_MS", "4321")]);
    let finished = run(command);
    assert_eq!(finished.code, Some(0), "{:#?}", finished.stderr);
    let text = finished.stdout.join("\n");
    assert!(text.contains("4321"), "{text}");
    assert!(text.to_lowercase().contains("memory"), "{text}");
    assert!(!text.contains(SECRET) && !text.contains(API_KEY), "{text}");
    let mut command = bare(&["check"]);
    with_defaults(&mut command, free_port(), &[("CHAT_TYPING_MS", "soon")]);
    let finished = run(command);
    assert_eq!(finished.code, Some(2));
    assert!(finished.stderr.join("\n").contains("CHAT_TYPING_MS"), "{:#?}", finished.stderr);
}

#[test]
fn help_and_version_are_printed() {
    for arguments in [&["--help"][..], &["serve", "--help"], &["--version"]] {
        let finished = run(bare(arguments));
        assert_eq!(finished.code, Some(0), "{arguments:?}: {:#?}", finished.stderr);
        assert!(!finished.stdout.is_empty());
    }
}

#[test]
fn dev_prints_lines_that_work() {
    let server = Server::launch(|port| {
        let mut command = bare(&["serve", "--dev"]);
        command.env("WS_PORT", port.to_string());
        command
    });
    // The lines may be spread over several by a backslash.
    server.stdout_line(|line| line.contains("curl"));
    let text = crate::server::eventually("the curl line is complete", || {
        let text = server.stdout_lines().join("\n").replace("\\\n", " ");
        text.lines().any(|line| line.contains("curl") && line.contains("/messages")).then_some(text)
    });
    let wscat: Vec<&str> = text.lines().filter(|line| line.contains("wscat") && line.contains("ws://")).collect();
    assert_eq!(wscat.len(), 2, "{text}");
    let curl = text.lines().find(|line| line.contains("curl") && line.contains("/messages")).expect("found above");
    let curl = Curl::parse(curl);
    assert_eq!(curl.port, server.port(), "{text}");
    let room = curl.path.trim_start_matches("/api/chat/rooms/").trim_end_matches("/messages").to_owned();

    let mut clients: Vec<Client> = Vec::new();
    for line in wscat {
        let url =
            words(line).into_iter().find(|word| word.starts_with("ws://")).unwrap_or_else(|| panic!("a URL in {line}"));
        let (authority, path) = url["ws://".len()..].split_once('/').expect("a path");
        assert!(authority.ends_with(&format!(":{}", server.port())), "{authority}");
        let mut client = Client::dial(server.socket(), &format!("/{path}"), &[]).expect("the upgrade is served");
        client.connected = client.expect("connected");
        client.join(&room);
        clients.push(client);
    }
    assert_ne!(clients[0].connected["userId"], clients[1].connected["userId"], "two users");

    let mut http = server.http();
    let headers: Vec<(&str, &str)> = curl.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    http.send(&request("POST", &curl.path, &headers, Some(&curl.body)));
    assert_eq!(http.response().status, 201);
    let posted: Value = serde_json::from_str(&curl.body).expect("the line posts JSON");
    for client in &mut clients {
        assert_eq!(client.wait_for("new_message")["content"], posted["content"]);
    }
    server.stop_in_order();
}

#[test]
fn dev_makes_its_own_secrets_for_each_run() {
    let secrets = || {
        let server = Server::launch(|port| {
            let mut command = bare(&["serve", "--dev"]);
            command.env("WS_PORT", port.to_string());
            command
        });
        server.stdout_line(|line| line.contains("curl"));
        server.stdout_lines().join("\n")
    };
    let (first, second) = (secrets(), secrets());
    let token = |text: &str| {
        text.split("token=").nth(1).map(|rest| rest.chars().take_while(|c| !" '\"".contains(*c)).collect::<String>())
    };
    assert!(token(&first).is_some_and(|token| token.len() > 50), "{first}");
    assert_ne!(token(&first), token(&second));
    let server = Server::start();
    let foreign = token(&first).expect("checked above");
    let mut client = Client::dial(server.socket(), &format!("/ws?token={foreign}"), &[]).expect("served");
    assert_eq!(client.expect_close().0, 1008);
}

/// What a `curl` line asks for.
struct Curl {
    port: u16,
    path: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Curl {
    fn parse(line: &str) -> Self {
        let all = words(line);
        let start = all.iter().position(|word| word == "curl").expect("curl is a word of its own");
        let mut curl = Self { port: 0, path: String::new(), headers: Vec::new(), body: String::new() };
        let mut rest = all.into_iter().skip(start + 1);
        while let Some(word) = rest.next() {
            match word.as_str() {
                "-H" | "--header" => {
                    let header = rest.next().expect("a header follows");
                    let (name, value) = header.split_once(':').expect("a header has a colon");
                    curl.headers.push((name.to_owned(), value.trim().to_owned()));
                }
                "-d" | "--data" | "--json" | "--data-raw" => curl.body = rest.next().expect("a body follows"),
                "-X" | "--request" => assert_eq!(rest.next().as_deref(), Some("POST")),
                word if word.starts_with("http://") => {
                    let (authority, path) = word["http://".len()..].split_once('/').expect("a path");
                    curl.port = authority.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
                    curl.path = format!("/{path}");
                }
                word => assert!(word.starts_with('-'), "an argument that is not understood: {word}"),
            }
        }
        // What curl itself sends for a body with -d.
        let typed = curl.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        if !typed && !line.contains("--json") {
            curl.headers.push(("Content-Type".to_owned(), "application/x-www-form-urlencoded".to_owned()));
        }
        curl
    }
}

/// Splits a line as a shell does: spaces part words, quotes keep them together.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' => words.extend(word.take()),
            quote @ ('\'' | '"') => {
                let word = word.get_or_insert_default();
                while let Some(inner) = characters.next().filter(|inner| *inner != quote) {
                    match inner {
                        '\\' if quote == '"' => word.extend(characters.next()),
                        inner => word.push(inner),
                    }
                }
            }
            '\\' => word.get_or_insert_default().extend(characters.next()),
            character => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

#[test]
fn words_are_split_as_a_shell_does() {
    assert_eq!(words(r#"a 'b c' "d \" e" f\ g"#), ["a", "b c", "d \" e", "f g"]);
    assert_eq!(Curl::parse(r#"curl -H 'X: y' -d '{"a":1}' http://127.0.0.1:9/p"#).body, json!({"a": 1}).to_string());
}
