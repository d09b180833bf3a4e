//! Which web pages may connect.
//!
//! Owns the reading and comparison of origins (RFC 6454). Knows nothing about requests.

/// The origins from which a browser may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Any: no credential here is ambient, so a foreign page gains nothing by connecting.
    Any,
    /// Only these, each in the form that browsers send: lower case, no default port.
    List(Vec<String>),
}

impl Origins {
    /// Reads `*`, or origins separated by commas.
    pub fn parse(text: &str) -> Option<Origins> {
        if text.trim() == "*" {
            return Some(Origins::Any);
        }
        let list: Option<Vec<String>> = text.split(',').map(|one| normal(one.trim())).collect();
        list.map(Origins::List)
    }

    /// Whether a request with this `Origin` header is served. One without is: it comes from no
    /// web page, and a program could claim any origin.
    pub fn allows(&self, origin: Option<&str>) -> bool {
        match (self, origin) {
            (Origins::Any, _) | (_, None) => true,
            (Origins::List(list), Some(origin)) => normal(origin).is_some_and(|origin| list.contains(&origin)),
        }
    }
}

/// The form `scheme://host[:port]`, in lower case and without the scheme's default port.
fn normal(origin: &str) -> Option<String> {
    let origin = origin.to_ascii_lowercase();
    let (scheme, authority) = origin.split_once("://")?;
    let scheme_good = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse::<u16>().ok()?)),
        _ => (authority, None),
    };
    let brackets = host.starts_with('[') && host.ends_with(']');
    let host_good = !host.is_empty()
        && host.chars().all(|c| match c {
            ':' | '[' | ']' => brackets,
            _ => !c.is_whitespace() && !c.is_control() && !"/?#@,*\\".contains(c),
        });
    if !scheme_good || !host_good {
        return None;
    }
    match (scheme, port) {
        ("http" | "ws", Some(80)) | ("https" | "wss", Some(443)) | (_, None) => Some(format!("{scheme}://{host}")),
        (_, Some(port)) => Some(format!("{scheme}://{host}:{port}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_compared_exactly_but_for_case_and_default_ports() {
        let list = "https://App.example.com, http://localhost:5173,https://a.example:443,http://[::1]:80";
        let origins = Origins::parse(list).unwrap();
        for good in [
            "https://app.example.com",
            "HTTPS://APP.example.com",
            "https://app.example.com:443",
            "http://localhost:5173",
            "https://a.example",
            "http://[::1]",
        ] {
            assert!(origins.allows(Some(good)), "{good}");
        }
        for bad in [
            "",
            "null",
            "http://app.example.com",
            "https://app.example.com.evil.example",
            "https://evil.example/https://app.example.com",
            "https://app.example.com:8443",
            "http://localhost",
            "http://localhost:5174",
            "http://[::2]",
            "app.example.com",
        ] {
            assert!(!origins.allows(Some(bad)), "{bad}");
        }
        assert!(origins.allows(None));
    }

    #[test]
    fn any_allows_everything() {
        for text in ["*", " * "] {
            let any = Origins::parse(text).unwrap();
            assert!(any.allows(None) && any.allows(Some("null")) && any.allows(Some("x")));
        }
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for bad in [
            "",
            "example.com",
            "https://",
            "https://a/",
            "https://a/b",
            "https://a:b",
            "https://a:99999",
            "https://a b",
            "https://*.example.com",
            "https://u@a",
            "https://a,",
            "https://a:1:2",
            "*,https://a",
            "://a",
        ] {
            assert_eq!(Origins::parse(bad), None, "{bad}");
        }
    }
}
