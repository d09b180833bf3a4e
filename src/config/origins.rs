//! Which web pages may connect.
//!
//! Owns the reading and comparison of origins (RFC 6454). Knows nothing about requests.
//!
//! A pattern is an origin whose first label is `*`. As in a Content-Security-Policy it stands for one label or more, so
//! `https://*.example.com` is every subdomain, however deep, and neither the domain itself nor one that only ends alike.

/// The origins from which a browser may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Any: no credential here is ambient, so a foreign page gains nothing by connecting.
    Any,
    /// Only these.
    List(Vec<OriginPattern>),
}

/// One entry of a list, in the form that browsers send: lower case, no default port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// This origin; `null`, which pages without one send, is one as well.
    Exact(String),
    /// The subdomains of a domain.
    Subdomains {
        /// The scheme with `://`.
        scheme: String,
        /// What stands behind the subdomain's labels: a dot, the domain, and the port if it is not the scheme's own.
        suffix: String,
    },
}

impl OriginPattern {
    fn parse(text: &str) -> Option<OriginPattern> {
        if text == "null" {
            return Some(OriginPattern::Exact(text.to_owned()));
        }
        let Some((scheme, domain)) = text.split_once("://*.") else {
            return normal(text).map(OriginPattern::Exact);
        };
        let domain = normal(&format!("{scheme}://{domain}"))?;
        let (scheme, domain) = domain.split_once("://")?;
        let host = domain.split(':').next()?;
        let last = host.rsplit('.').next()?;
        // Whatever is under a top-level domain has nothing in common, and an address has no subdomains.
        let is_domain = host.contains('.') && are_labels(host) && !last.bytes().all(|byte| byte.is_ascii_digit());
        let (scheme, suffix) = (format!("{scheme}://"), format!(".{domain}"));
        is_domain.then_some(OriginPattern::Subdomains { scheme, suffix })
    }

    /// Whether it is the origin, which is in its normal form.
    fn matches(&self, origin: &str) -> bool {
        match self {
            OriginPattern::Exact(exact) => exact == origin,
            OriginPattern::Subdomains { scheme, suffix } => {
                let host = origin.strip_prefix(&**scheme).and_then(|authority| authority.strip_suffix(&**suffix));
                host.is_some_and(are_labels)
            }
        }
    }
}

impl Origins {
    /// Reads `*`, or origins and patterns separated by commas.
    pub fn parse(text: &str) -> Option<Origins> {
        if text.trim() == "*" {
            return Some(Origins::Any);
        }
        let list: Option<Vec<OriginPattern>> = text.split(',').map(|one| OriginPattern::parse(one.trim())).collect();
        list.map(Origins::List)
    }

    /// Whether a request with this `Origin` header is served. One without is: it comes from no
    /// web page, and a program could claim any origin.
    pub fn allows(&self, origin: Option<&str>) -> bool {
        match (self, origin) {
            (Origins::Any, _) | (_, None) => true,
            (Origins::List(list), Some(origin)) => {
                let origin = if origin == "null" { Some(origin.to_owned()) } else { normal(origin) };
                origin.is_some_and(|origin| list.iter().any(|pattern| pattern.matches(&origin)))
            }
        }
    }
}

/// Whether a host's name, or a part of one, consists of labels, none of them empty.
fn are_labels(name: &str) -> bool {
    name.split('.').all(|label| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    })
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
    fn a_pattern_is_every_subdomain_and_nothing_else() {
        let list = "https://*.example.com, http://*.Dev.example.org:8080,https://*.example.net:443,null";
        let origins = Origins::parse(list).unwrap();
        for good in [
            "https://app.example.com",
            "https://APP.Example.Com:443",
            "https://a.b.c.example.com",
            "https://xn--bcher-kva.example.com",
            "https://a_b-c.example.com",
            "http://x.dev.example.org:8080",
            "https://x.example.net",
            "null",
        ] {
            assert!(origins.allows(Some(good)), "{good}");
        }
        for bad in [
            "https://example.com",
            "https://evilexample.com",
            "https://.example.com",
            "https://a..example.com",
            "https://*.example.com",
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com.",
            "https://app.example.com.evil.example",
            "https://evil.example/.example.com",
            "https://evil.example#.example.com",
            "https://evil.example?.example.com",
            "https://evil.example\\.example.com",
            "https://evil.example:80.example.com",
            "https://evil.example@app.example.com",
            "https://evil.example%2f.example.com",
            "https://[::1].example.com",
            "https://a b.example.com",
            "http://x.dev.example.org",
            "http://dev.example.org:8080",
            "NULL",
            "",
        ] {
            assert!(!origins.allows(Some(bad)), "{bad}");
        }
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
            "https://*.com",
            "https://*.",
            "https://*",
            "https://*example.com",
            "https://app.*.com",
            "https://*.*.example.com",
            "https://*.0.0.1",
            "https://*.[::1]",
            "https://*.example.com/",
            "*.example.com",
            "https://*.example..com",
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
