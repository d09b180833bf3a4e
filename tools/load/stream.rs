//! A socket that does not block, with TLS on it if the server speaks that. It knows nothing of what is said.

use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// A connection to the server.
pub struct Stream {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

/// What is needed to speak TLS with a server that shows this certificate for `localhost`: each handshake is a full one.
pub fn tls_config(certificate: &Path) -> Result<Arc<ClientConfig>, String> {
    let fail = |error: &dyn std::fmt::Display| format!("{}: {error}", certificate.display());
    let certificate = CertificateDer::from_pem_file(certificate).map_err(|error| fail(&error))?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate).map_err(|error| error.to_string())?;
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

impl Stream {
    /// Over a socket that may not be connected yet.
    pub fn new(socket: TcpStream, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let tls = match tls {
            None => None,
            Some(config) => {
                let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
                Some(Box::new(ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?))
            }
        };
        Ok(Self { socket, tls })
    }

    /// What lies below.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// The same, to be registered.
    pub fn socket_mut(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// Whether a read may give less than is there.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    fn send(tls: &mut ClientConnection, socket: &mut TcpStream) -> io::Result<()> {
        while tls.wants_write() {
            match tls.write_tls(socket) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                written => written?,
            };
        }
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.read(buffer) };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            if tls.read_tls(&mut self.socket)? == 0 {
                return Ok(0);
            }
            tls.process_new_packets().map_err(io::Error::other)?;
            Self::send(tls, &mut self.socket)?;
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.write(bytes) };
        let count = tls.writer().write(bytes)?;
        Self::send(tls, &mut self.socket)?;
        if count == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }

    /// Sends what was taken over and could not be sent.
    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None => Ok(()),
            Some(tls) => Self::send(tls, &mut self.socket),
        }
    }
}
