//! What can stop the start.
//!
//! Owns [`Error`], the operator's faults, each told in one line that names what is wrong and what
//! is accepted. A peer's fault is never an `Error`: it is a reason to close one connection.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A fault of the configuration or the machine that keeps the server from starting.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A key that must be given is in no layer.
    Missing {
        /// The key.
        key: String,
        /// What it accepts.
        accepted: String,
    },
    /// A key has a value that it does not accept.
    Value {
        /// The key.
        key: String,
        /// The value as it may be shown: a secret is masked.
        value: String,
        /// Where the value came from.
        origin: String,
        /// What is accepted.
        accepted: String,
    },
    /// A key that does not exist.
    UnknownKey {
        /// The key. Its value is not told: it may be a secret whose key was mistyped.
        key: String,
        /// Where the key came from.
        origin: String,
        /// What to write instead.
        accepted: String,
    },
    /// Two values, each acceptable, do not go together.
    Conflict {
        /// The rule that is broken, with keys and values.
        rule: String,
    },
    /// The configuration file or `.env` cannot be read.
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file that a key names cannot be used.
    NamedFile {
        /// The key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it, as a sentence about it or its contents.
        reason: String,
        /// What the file has to hold.
        accepted: &'static str,
    },
    /// The address cannot be listened on.
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system answered.
        source: io::Error,
    },
    /// The store cannot be used.
    Store {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        reason: String,
    },
    /// The system refused something else that the start needs.
    System {
        /// What was attempted, as in "raise the open-file limit".
        action: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// An argument of the command line is wrong.
    Argument {
        /// The argument and what is accepted.
        reason: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Missing { key, accepted } => write!(f, "{key} is not set: {accepted}"),
            Error::Value { key, value, origin, accepted } => {
                write!(f, "{key}={value} ({origin}) is not accepted: {accepted}")
            }
            Error::UnknownKey { key, origin, accepted } => write!(f, "unknown key {key} ({origin}): {accepted}"),
            Error::Conflict { rule } => f.write_str(rule),
            Error::File { path, reason } | Error::Store { path, reason } => write!(f, "{}: {reason}", path.display()),
            Error::NamedFile { key, path, reason, accepted } => {
                write!(f, "{key}: {}: {reason}; give {accepted}", path.display())
            }
            Error::Bind { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
                write!(f, "{address} is already in use: stop the other server or choose another WS_PORT")
            }
            Error::Bind { address, source } => write!(f, "cannot listen on {address}: {source}"),
            Error::System { action, source } => write!(f, "cannot {action}: {source}"),
            Error::Argument { reason } => f.write_str(reason),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Bind { source, .. } | Error::System { source, .. } => Some(source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_one_line() {
        let address: SocketAddr = "127.0.0.1:3001".parse().unwrap();
        let taken = Error::Bind { address, source: io::ErrorKind::AddrInUse.into() };
        assert_eq!(
            taken.to_string(),
            "127.0.0.1:3001 is already in use: stop the other server or choose another WS_PORT"
        );
        let value = Error::Value {
            key: "CHAT_THREADS".into(),
            value: "0".into(),
            origin: "environment".into(),
            accepted: "an integer from 1 to 256".into(),
        };
        assert_eq!(value.to_string(), "CHAT_THREADS=0 (environment) is not accepted: an integer from 1 to 256");
        let file = Error::NamedFile {
            key: "CHAT_TLS_KEY",
            path: "key.pem".into(),
            reason: "it has no private key".into(),
            accepted: "a PEM file with one",
        };
        assert_eq!(file.to_string(), "CHAT_TLS_KEY: key.pem: it has no private key; give a PEM file with one");
        for error in [taken, value, file] {
            assert!(!error.to_string().contains('\n'));
        }
    }
}
