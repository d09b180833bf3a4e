//! What this server asks of others over HTTP or HTTPS, for threads that may block.
//!
//! Owns the bounds: one time for the whole exchange, the name's lookup and the TLS handshake included; so many bytes of
//! head and body; no redirect is followed, since where it leads is not what was configured. Proxies of the environment
//! are not used. Must not know what is asked, nor keep it: an error names neither the URL nor what was sent.

use std::fmt;
use std::io::Read;
use std::time::Duration;

use ureq::http::Response;
use ureq::{Agent, Body};

/// Bytes of the head of an answer.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const USER_AGENT: &str = concat!("sizland-chat/", env!("CARGO_PKG_VERSION"));

/// Asks, with connections that are kept for the next question. Clones share them.
#[derive(Clone, Debug)]
pub struct Fetcher {
    agent: Agent,
    body_bytes_max: usize,
}

/// An answer, whatever it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The status code.
    pub status: u16,
    /// The whole body.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchError {
    /// It did not come in time.
    TimedOut,
    /// The body is larger than so many bytes.
    TooLarge(usize),
    /// No connection, no TLS, or no HTTP.
    Failed(String),
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TimedOut => f.write_str("no answer in time"),
            Self::TooLarge(max) => write!(f, "the answer is larger than {max} bytes"),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}

impl std::error::Error for FetchError {}

impl Fetcher {
    /// Exchanges take at most `timeout`, and bodies have at most `body_bytes_max`.
    pub fn new(timeout: Duration, body_bytes_max: usize) -> Self {
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(HEAD_BYTES_MAX)
            .proxy(None)
            .user_agent(USER_AGENT)
            .build();
        Self { agent: config.new_agent(), body_bytes_max }
    }

    /// Gets what is at `url`.
    ///
    /// # Errors
    /// There is no whole answer within the bounds.
    pub fn get(&self, url: &str) -> Result<Fetched, FetchError> {
        self.take(self.agent.get(url).call())
    }

    /// Posts JSON to `url`, with further header fields.
    ///
    /// # Errors
    /// There is no whole answer within the bounds.
    pub fn post_json(&self, url: &str, headers: &[(&str, &str)], json: &[u8]) -> Result<Fetched, FetchError> {
        let mut request = self.agent.post(url).header("Content-Type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.take(request.send(json))
    }

    fn take(&self, answer: Result<Response<Body>, ureq::Error>) -> Result<Fetched, FetchError> {
        let answer = answer.map_err(|error| self.failure(&error))?;
        let status = answer.status().as_u16();
        let mut body = Vec::new();
        // One more, to tell a body that is just as long from one that is longer.
        let mut reader = answer.into_body().into_reader().take(self.body_bytes_max as u64 + 1);
        reader.read_to_end(&mut body).map_err(|error| self.failure(&ureq::Error::from(error)))?;
        if body.len() > self.body_bytes_max {
            return Err(FetchError::TooLarge(self.body_bytes_max));
        }
        Ok(Fetched { status, body })
    }

    fn failure(&self, error: &ureq::Error) -> FetchError {
        match error {
            ureq::Error::Timeout(_) => FetchError::TimedOut,
            ureq::Error::BodyExceedsLimit(_) => FetchError::TooLarge(self.body_bytes_max),
            ureq::Error::BadUri(_) => FetchError::Failed("the URL is not valid".to_owned()),
            error => FetchError::Failed(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{SocketAddr, TcpListener};
    use std::thread::JoinHandle;

    use super::*;

    /// Answers one request with these bytes, then holds the connection until the other side closes it.
    fn serve(answer: impl Into<Vec<u8>>) -> (SocketAddr, JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, answer) = (listener.local_addr().unwrap(), answer.into());
        let answered = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let mut read = 0;
            while !request[..read].windows(4).any(|end| end == b"\r\n\r\n") {
                read += socket.read(&mut request[read..]).unwrap();
            }
            let _ = socket.write_all(&answer);
            let _ = socket.read(&mut [0; 1024]);
            String::from_utf8_lossy(&request[..read]).into_owned()
        });
        (address, answered)
    }

    fn get(answer: impl Into<Vec<u8>>, timeout_ms: u64) -> (Result<Fetched, FetchError>, String) {
        let (address, answered) = serve(answer);
        let fetched = Fetcher::new(Duration::from_millis(timeout_ms), 100).get(&format!("http://{address}/keys?a=b"));
        (fetched, answered.join().unwrap())
    }

    #[test]
    fn a_whole_answer_is_taken_whatever_its_status() {
        for status in [200, 404, 500] {
            let (fetched, request) = get(format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nok"), 20_000);
            assert_eq!(fetched, Ok(Fetched { status, body: b"ok".to_vec() }));
            assert!(request.starts_with("GET /keys?a=b HTTP/1.1\r\n"), "{request}");
        }
    }

    #[test]
    fn no_redirect_is_followed() {
        let (fetched, _) = get("HTTP/1.1 302 X\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n", 20_000);
        assert_eq!(fetched.unwrap().status, 302);
    }

    #[test]
    fn a_large_body_is_not_taken() {
        let (fetched, _) = get(format!("HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\n{}", "x".repeat(100)), 20_000);
        assert_eq!(fetched.unwrap().body.len(), 100);
        let (fetched, _) = get(format!("HTTP/1.1 200 X\r\nContent-Length: 101\r\n\r\n{}", "x".repeat(101)), 20_000);
        assert_eq!(fetched, Err(FetchError::TooLarge(100)));
        let (fetched, _) = get(format!("HTTP/1.1 200 X\r\nConnection: close\r\n\r\n{}", "x".repeat(100_000)), 20_000);
        assert_eq!(fetched, Err(FetchError::TooLarge(100)));
    }

    #[test]
    fn what_is_slow_or_no_http_fails() {
        let (fetched, _) = get("HTTP/1.1 200 X\r\nContent-Length: 2\r\n\r\no", 100);
        assert_eq!(fetched, Err(FetchError::TimedOut));
        let (fetched, _) = get("", 100);
        assert_eq!(fetched, Err(FetchError::TimedOut));
        let (fetched, _) = get("SSH-2.0-OpenSSH_9.6\r\n\r\n", 20_000);
        assert!(matches!(fetched, Err(FetchError::Failed(_))), "{fetched:?}");
        let (fetched, _) = get(format!("HTTP/1.1 200 X\r\nA: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX)), 20_000);
        assert!(matches!(fetched, Err(FetchError::Failed(_))), "{fetched:?}");
    }

    #[test]
    fn json_is_posted() {
        let (address, answered) = serve("HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n");
        let fetcher = Fetcher::new(Duration::from_secs(20), 100);
        let fetched = fetcher.post_json(&format!("http://{address}/ask"), &[("Authorization", "Bearer x")], b"{}");
        assert_eq!(fetched, Ok(Fetched { status: 200, body: Vec::new() }));
        drop(fetcher);
        let request = answered.join().unwrap().to_ascii_lowercase();
        assert!(request.starts_with("post /ask http/1.1\r\n") && request.contains("authorization: bearer x\r\n"));
        assert!(request.contains("content-type: application/json\r\n"), "{request}");
    }
}
