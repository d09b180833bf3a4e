//! Origins: a list allows what stands in it, in any case and with its default port, and nothing that only looks like it.
//!
//! Input: the configured list, up to a newline, then what a browser sends.

use sizland_chat::config::Origins;

/// Reads the list and asks it.
pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let (list, origin) = text.split_once('\n').unwrap_or((text, ""));
    let Some(origins) = Origins::parse(list) else { return };
    assert!(origins.allows(None), "who comes from no page is served");
    let _ = origins.allows(Some(origin));
    if list.trim() == "*" {
        assert!(origins.allows(Some(origin)));
        return;
    }
    // What pages without an origin send is one of its own, and has neither scheme nor host.
    for one in list.split(',').map(str::trim).filter(|one| *one != "null") {
        check_one(&origins, one, list);
    }
    if origin == "null" {
        assert_eq!(origins.allows(Some(origin)), list.split(',').any(|one| one.trim() == "null"));
    } else if origins.allows(Some(origin)) {
        let (scheme, host) = parts(origin).expect("an origin that is allowed has a host");
        let is_named = |one: &str| {
            parts(one).is_some_and(|(named_scheme, named)| {
                let suffix = named.strip_prefix("*.").map(|suffix| format!(".{suffix}"));
                scheme == named_scheme && suffix.map_or(host == named, |suffix| host.ends_with(&suffix))
            })
        };
        assert!(list.split(',').map(str::trim).any(is_named), "{origin} is not in {list}");
    }
}

/// What stands in the list is allowed, and what only begins or ends like it is not.
fn check_one(origins: &Origins, one: &str, list: &str) {
    let (scheme, host) = parts(one).expect("what is accepted has a host");
    let concrete = one.replacen("*.", "a.", 1);
    assert!(origins.allows(Some(&concrete)), "{concrete} of {list}");
    assert!(origins.allows(Some(&concrete.to_ascii_uppercase())), "{concrete} of {list}");
    let lower = list.to_ascii_lowercase();
    if lower.contains("evil") || lower.contains("//*.") && lower.contains("test") {
        return;
    }
    let host = host.replacen("*.", "a.", 1);
    for foreign in [
        format!("{scheme}://{host}.evil.test"),
        format!("{scheme}://evil.test/{host}"),
        format!("{scheme}://evil.test?{host}"),
        format!("{scheme}://evil.test#.{host}"),
        format!("{scheme}://evil.test\\.{host}"),
        format!("{scheme}://user@{host}"),
        format!("evil://{host}"),
    ] {
        assert!(!origins.allows(Some(&foreign)), "{foreign} passes {list}");
    }
}

/// Scheme and host, in lower case.
fn parts(origin: &str) -> Option<(String, String)> {
    let origin = origin.to_ascii_lowercase();
    let (scheme, authority) = origin.split_once("://")?;
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => authority,
    };
    Some((scheme.to_owned(), host.to_owned()))
}
