//! A reverse proxy in front of the server under test: nginx or HAProxy, on ports and with a directory of its own.
//!
//! Owns the process, its configuration and its log of requests. nginx gets the very configuration that the README
//! gives, with addresses replaced, HAProxy its defaults and a few timeouts. There are two listeners over the same connections to
//! the server: one for honest clients, and one for attackers, which differs in short timeouts only, so that every
//! attack comes to an end.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::server::{DEADLINE, Server, eventually, free_port, prepare};

/// Which proxy it is, and how the README's configuration of nginx is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Not at all.
    Readme,
    /// The bodies of requests go on as they come, every path is handed on, and fields with odd names are, too; one
    /// idle connection to the server is kept, for whoever comes next.
    Unbuffered,
    /// A WebSocket that is silent for a second is ended.
    Impatient,
    /// HAProxy, which may use any connection to the server for any client.
    HaProxy,
}

/// A running proxy, killed, reaped and its directory removed when dropped.
pub struct Proxy {
    child: Child,
    directory: PathBuf,
    port: u16,
    attack_port: u16,
}

/// A request as the proxy read it, and handed on or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    pub client_port: u16,
    pub method: String,
    pub uri: String,
    pub status: u16,
}

impl Proxy {
    pub fn start(server: &Server, variant: Variant) -> Self {
        for _ in 0..20 {
            if let Some(proxy) = Self::try_start(server, variant) {
                return proxy;
            }
        }
        panic!("no free ports after 20 attempts");
    }

    /// `None` when a port was taken between the choice and the start.
    fn try_start(server: &Server, variant: Variant) -> Option<Self> {
        let (port, attack_port) = (free_port(), free_port());
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("nginx-{}-{port}", std::process::id()));
        fs::create_dir_all(&directory).expect("the target directory can be written");
        let ports = [server.port(), port, attack_port];
        let mut command = match variant {
            Variant::HaProxy => haproxy(&directory, ports),
            _ => nginx(&directory, ports, variant),
        };
        let child = command.stdin(Stdio::null()).spawn().expect("the proxy is installed: tools/test does that");
        let mut proxy = Self { child, directory, port, attack_port };
        let answers = |port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
        let status = eventually("the proxy listens, or has ended", || {
            let ended = proxy.child.try_wait().expect("the child can be waited for");
            ended.map(Some).or_else(|| (answers(port) && answers(attack_port)).then_some(None))
        });
        let Some(status) = status else { return Some(proxy) };
        let log = proxy.errors();
        let is_taken = log.contains("Address already in use") || log.contains("cannot bind socket");
        assert!(is_taken, "the proxy ended with {status}: {log}");
        None
    }

    /// A connection to the listener of honest clients.
    pub fn socket(&self) -> TcpStream {
        connect(self.port)
    }

    /// A connection to the listener of attackers.
    pub fn attack_socket(&self) -> TcpStream {
        connect(self.attack_port)
    }

    /// The requests so far. A request is logged behind its answer, so wait with [`Proxy::log_until`] for the last one.
    pub fn log(&self) -> Vec<Logged> {
        let text = fs::read(self.directory.join("access.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().filter_map(Logged::parse).collect()
    }

    /// The requests up to one of this target.
    pub fn log_until(&self, uri: &str) -> Vec<Logged> {
        eventually("the proxy logs the last request", || {
            let log = self.log();
            log.iter().any(|request| request.uri == uri).then_some(log)
        })
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.directory.join("error.log")).unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- what the proxy logged ---\n{}\n---", self.errors());
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Logged {
    /// `port status method uri`; the target of a request that could not be read is left out.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(4, ' ');
        let (client_port, status) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let (method, uri) = (words.next()?.to_owned(), words.next()?.to_owned());
        Some(Self { client_port, method, uri, status })
    }
}

/// The configuration in the README's section about nginx.
pub fn readme_snippet() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(path).expect("the README can be read");
    let (_, rest) = readme.split_once("```nginx\n").expect("the README has a configuration of nginx");
    rest.split_once("```").expect("its end").0.to_owned()
}

fn nginx(directory: &Path, ports: [u16; 3], variant: Variant) -> Command {
    let file = directory.join("nginx.conf");
    fs::write(&file, configuration(directory, ports, variant)).expect("a file can be written");
    let mut command = Command::new("nginx");
    command.arg("-p").arg(directory).arg("-c").arg(&file).arg("-e").arg(directory.join("error.log"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn haproxy(directory: &Path, [server_port, port, attack_port]: [u16; 3]) -> Command {
    let file = directory.join("haproxy.cfg");
    let text = format!(
        "global\n nbthread 1\n log stdout format raw local0\n\
         defaults\n mode http\n log global\n log-format \"%cp %ST %HM %HU\"\n http-reuse always\n timeout connect 5s\n \
         timeout server 120s\n timeout client 120s\n timeout tunnel 120s\n\
         frontend honest\n bind 127.0.0.1:{port}\n default_backend chat\n\
         frontend attacked\n bind 127.0.0.1:{attack_port}\n default_backend chat\n timeout client 150ms\n \
         timeout http-request 150ms\n timeout http-keep-alive 150ms\n\
         backend chat\n server chat 127.0.0.1:{server_port}\n"
    );
    fs::write(&file, text).expect("a file can be written");
    let output = |name: &str| fs::File::create(directory.join(name)).expect("a file can be made");
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file).stdout(output("access.log")).stderr(output("error.log"));
    command
}

fn configuration(directory: &Path, [server_port, port, attack_port]: [u16; 3], variant: Variant) -> String {
    let snippet = replaced(&readme_snippet(), "127.0.0.1:3001", &format!("127.0.0.1:{server_port}"));
    let snippet = match variant {
        Variant::Readme | Variant::HaProxy => snippet,
        Variant::Impatient => replaced(&snippet, "proxy_read_timeout 120s;", "proxy_read_timeout 1s;"),
        Variant::Unbuffered => {
            let snippet = replaced(&snippet, "keepalive 32;", "keepalive 1;");
            let snippet =
                replaced(&snippet, "client_max_body_size", "proxy_request_buffering off;\nclient_max_body_size");
            replaced(
                &snippet,
                "location = /ws {",
                "ignore_invalid_headers off;\nunderscores_in_headers on;\nlocation / {\nproxy_pass http://chat;\n\
                 proxy_http_version 1.1;\nproxy_set_header Connection '';\nproxy_request_buffering off;\n}\nlocation = /ws {",
            )
        }
    };
    let (_, block) = snippet.split_once("server {\n").expect("a block of a server");
    let listen = |port: u16, more: &str| format!("listen 127.0.0.1:{port};\nkeepalive_requests 1000000;\n{more}");
    let patience =
        "client_header_timeout 150ms;\nclient_body_timeout 150ms;\nkeepalive_timeout 150ms;\nlingering_timeout 150ms;";
    let attacked = replaced(&format!("server {{\n{block}"), "listen 80;", &listen(attack_port, patience));
    let snippet = replaced(&snippet, "listen 80;", &listen(port, ""));
    let directory = directory.display();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {directory}/{name};\n"))
        .concat();
    format!(
        "daemon off;\nmaster_process off;\npid {directory}/nginx.pid;\nevents {{ worker_connections 1024; }}\nhttp {{\n{paths}\
         log_format requests '$remote_port $status $request_method $request_uri';\n\
         access_log {directory}/access.log requests;\n{snippet}\n{attacked}\n}}\n"
    )
}

/// What is replaced must be there, or the README has changed.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "no {from:?} in the configuration of nginx");
    text.replace(from, to)
}

fn connect(port: u16) -> TcpStream {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, DEADLINE).expect("the proxy accepts");
    prepare(&stream);
    stream
}
