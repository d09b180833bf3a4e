//! What stops a start, with exit code 2 and one clear line.

use std::net::{Ipv4Addr, TcpListener};

use crate::server::{API_KEY, Finished, SECRET, Server, bare, free_port, run, serve, with_defaults};

#[track_caller]
fn assert_refused(finished: &Finished, parts: &[&str]) {
    assert_eq!(finished.code, Some(2), "{:#?}", finished.stderr);
    let lines: Vec<&String> = finished.stderr.iter().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "one clear line: {lines:#?}");
    for part in parts {
        assert!(lines[0].contains(part), "{part} in {:?}", lines[0]);
    }
    let all = format!("{}{}", finished.stderr.join("\n"), finished.stdout.join("\n"));
    assert!(!all.contains(SECRET) && !all.contains(API_KEY), "no secret is printed: {all}");
    assert!(!all.contains("panicked"), "{all}");
}

fn start_with(env: &[(&str, &str)]) -> Finished {
    run(serve(free_port(), env))
}

#[test]
fn a_bad_value_or_key_is_named() {
    assert_refused(&start_with(&[("CHAT_UNHEARD_OF", "1")]), &["CHAT_UNHEARD_OF", "environment"]);
    assert_refused(&start_with(&[("CHAT_CONNECTION_MAX", "5")]), &["CHAT_CONNECTION_MAX", "CHAT_CONNECTIONS_MAX"]);
    // The value of an unknown key is not told, since it may be a secret.
    assert_refused(&start_with(&[("CHAT_API_KY", API_KEY)]), &["CHAT_API_KY", "did you mean CHAT_API_KEY?"]);
    for (key, value) in [
        ("CHAT_THREADS", "many"),
        ("CHAT_THREADS", "-1"),
        ("CHAT_RATES", "maybe"),
        ("CHAT_LISTEN", "nowhere at all"),
        ("CHAT_ORIGINS", "not an origin"),
        ("CHAT_ENFORCE_EXPIRY", "perhaps"),
        ("CHAT_MESSAGE_BYTES_MAX", "64k"),
        ("CHAT_MESSAGE_BYTES_MAX", "0"),
        ("CHAT_TYPING_MS", "10s"),
        ("CHAT_HEARTBEAT_MS", "1e3"),
        ("CHAT_CONNECTIONS_MAX", "99999999999999999999"),
        ("WS_PORT", "http"),
        ("WS_PORT", "70000"),
    ] {
        assert_refused(&start_with(&[(key, value)]), &[key, value]);
    }
}

#[test]
fn what_is_accepted_is_told() {
    let finished = start_with(&[("CHAT_RATES", "maybe")]);
    assert_refused(&finished, &["CHAT_RATES", "maybe", "on", "off"]);
}

#[test]
fn limits_that_contradict_each_other_are_named() {
    let finished = start_with(&[("CHAT_OUTBOX_SOFT_BYTES", "1048576"), ("CHAT_OUTBOX_HARD_BYTES", "524288")]);
    assert_refused(&finished, &["CHAT_OUTBOX_SOFT_BYTES", "CHAT_OUTBOX_HARD_BYTES"]);
}

#[test]
fn a_secret_must_be_there_and_long_enough() {
    assert_refused(&start_with(&[("JWT_SECRET", "")]), &["JWT_SECRET"]);
    let short = start_with(&[("JWT_SECRET", "only-31-bytes-long-secret-value")]);
    assert_refused(&short, &["JWT_SECRET", "32"]);
    assert!(!short.stderr.join("").contains("only-31-bytes"), "a secret is not printed, short or not");
    let mut command = bare(&["serve"]);
    with_defaults(&mut command, free_port(), &[]);
    command.env_remove("JWT_SECRET");
    assert_refused(&run(command), &["JWT_SECRET"]);
    assert_refused(&start_with(&[("CHAT_API_KEY", "fifteen-bytes-k")]), &["CHAT_API_KEY", "16"]);
}

#[test]
fn a_port_taken_by_another_program() {
    let listener =
        (0..20).find_map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).ok()).expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    assert_refused(&run(serve(port, &[])), &[&port.to_string()]);
}

#[test]
fn a_port_taken_by_another_instance() {
    let server = Server::start();
    assert_refused(&run(serve(server.port(), &[])), &[&server.port().to_string()]);
    let mut dev = bare(&["serve", "--dev"]);
    dev.env("WS_PORT", server.port().to_string());
    assert_refused(&run(dev), &[&server.port().to_string()]);
    // The first one has noticed nothing.
    assert_eq!(server.http().call("GET", "/healthz", &[], None).status, 200);
}

#[test]
fn keys_that_kubernetes_injects_are_ignored() {
    let env = [
        ("CHAT_PORT", "tcp://10.0.0.1:3001"),
        ("CHAT_PORT_3001_TCP_ADDR", "10.0.0.1"),
        ("CHAT_SERVICE_HOST", "10.0.0.1"),
        ("CHAT_SERVICE_PORT", "3001"),
        ("UNRELATED", "x"),
    ];
    Server::start_with(&env).stop_in_order();
}

#[test]
fn ports_have_an_order() {
    // WS_PORT wins over PORT, and PORT counts alone.
    Server::start_with(&[("PORT", "1")]).stop_in_order();
    let server = Server::launch(|port| {
        let mut command = serve(port, &[]);
        command.env_remove("WS_PORT").env("PORT", port.to_string());
        command
    });
    server.stop_in_order();
}

#[test]
fn unknown_arguments_are_refused() {
    for arguments in [&["serve", "--unheard-of"][..], &["dance"], &["token"]] {
        let mut command = bare(arguments);
        command.env("JWT_SECRET", SECRET);
        let finished = run(command);
        assert_eq!(finished.code, Some(2), "{arguments:?}");
        assert!(!finished.stderr.is_empty());
    }
}
