//! Opens sockets and mints tokens: everything a connection needs before its first byte.
//! It keeps no connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header};
use mio::net::TcpStream;
use rustls::ClientConfig;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::args::Args;
use crate::http;
use crate::stream::{Stream, tls_config};

/// Receive buffer of a member that is going to stall: the kernel should not read for it.
const STALLED_RECEIVE_BYTES: usize = 4096;
const TOKEN_TTL_S: u64 = 7 * 24 * 3600;

/// Opens sockets to one server.
pub struct Dialer {
    address: SocketAddr,
    sources: u8,
    key: EncodingKey,
    tls: Option<Arc<ClientConfig>>,
    issued_s: u64,
}

impl Dialer {
    /// A dialer for the server, secret and sources of `args`.
    pub fn new(args: &Args) -> Result<Self, String> {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            address: args.address,
            sources: args.sources,
            key: EncodingKey::from_secret(args.secret.as_bytes()),
            issued_s: since_epoch.map_or(0, |d| d.as_secs()),
            tls: args.tls.as_deref().map(tls_config).transpose()?,
        })
    }

    /// Begins a connection, from the source address whose turn it is.
    pub fn dial(&self, index: usize, stalled: bool) -> io::Result<Stream> {
        let domain = Domain::for_address(self.address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if stalled {
            socket.set_recv_buffer_size(STALLED_RECEIVE_BYTES)?;
        }
        if self.sources > 1 {
            let last = (index % usize::from(self.sources)) as u8 + 1;
            let source = SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0));
            // Ports of connections that churned away are free again as far as the kernel can tell safely.
            socket.set_reuse_address(true)?;
            socket.bind(&SockAddr::from(source))?;
        }
        match socket.connect(&SockAddr::from(self.address)) {
            Ok(()) => {}
            // Under way: the socket becomes writable when it is decided.
            Err(error) if error.raw_os_error() == Some(EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        Stream::new(TcpStream::from_std(socket.into()), self.tls.as_ref())
    }

    /// The request that upgrades the connection of user `index`, with a fresh token.
    pub fn upgrade_request(&self, index: usize) -> Vec<u8> {
        let claims = serde_json::json!({
            "userId": format!("user-{index}"),
            "iat": self.issued_s,
            "exp": self.issued_s + TOKEN_TTL_S,
        });
        // An HMAC over any claims and any key succeeds; an empty token would be refused by the server and counted.
        let token = jsonwebtoken::encode(&Header::default(), &claims, &self.key);
        http::upgrade_request(self.address, &token.unwrap_or_default())
    }
}

/// Errno of a connection under way, for which `ErrorKind` has no stable name.
const EINPROGRESS: i32 = 115;
