//! The programs that a comparison runs: finds, builds or installs them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::options::Options;
use crate::scenario::Server;

/// How variables begin by which cargo tells a program that it runs of its package.
const TOLD_BY_CARGO: [&[u8]; 3] = [b"CARGO_PKG_", b"CARGO_MANIFEST_", b"CARGO_BIN_"];

const PEER_FILES: [&str; 3] = ["package.json", "ws.js", "uws.js"];

/// Where everything is.
pub(crate) struct Programs {
    server: Option<PathBuf>,
    floor: PathBuf,
    /// The bare loop that commits.
    pub(crate) rows: PathBuf,
    peers: PathBuf,
    /// The load generator.
    pub(crate) load: PathBuf,
    /// For the output of the runs.
    pub(crate) logs: PathBuf,
}

impl Programs {
    /// Builds the examples and installs the packages that the servers asked for need.
    pub(crate) fn prepare(options: &Options) -> Result<Self, String> {
        let profile_dir = profile_dir()?;
        let target_dir = profile_dir.parent().ok_or("no target directory")?;
        let examples = profile_dir.join("examples");
        let built = option_env!("CARGO_BIN_EXE_sizland-chat").map(PathBuf::from);
        let programs = Self {
            server: options.server_path.clone().or(built),
            floor: examples.join("floor"),
            rows: examples.join("rows"),
            peers: target_dir.join("compare-peers"),
            load: options.load_path.clone().unwrap_or(examples.join("load")),
            logs: target_dir.join("compare-logs"),
        };
        build_examples(target_dir)?;
        let uses = |server| options.servers.contains(&server);
        if uses(Server::Uws) || uses(Server::Ws) {
            install_peers(&programs.peers)?;
        }
        fs::create_dir_all(&programs.logs).map_err(|error| error.to_string())?;
        let server = programs.server.as_deref();
        let own = uses(Server::Ours).then(|| server.unwrap_or(Path::new("sizland-chat")));
        let floor = uses(Server::Floor).then_some(programs.floor.as_path());
        for path in [Some(programs.load.as_path()), own, floor].into_iter().flatten() {
            if !path.is_file() {
                return Err(format!("there is no {}", path.display()));
            }
        }
        Ok(programs)
    }

    /// The program of a server and its arguments.
    pub(crate) fn command_line(&self, server: Server) -> Vec<OsString> {
        match server {
            Server::Ours | Server::OursTwo | Server::OursFour | Server::OursStored => {
                let path = self.server.clone().unwrap_or_default();
                vec![path.into(), "serve".into()]
            }
            Server::Uws => vec!["node".into(), self.peers.join("uws.js").into()],
            Server::Ws => vec!["node".into(), self.peers.join("ws.js").into()],
            Server::Floor => vec![self.floor.clone().into()],
        }
    }
}

/// The directory of this profile's artifacts: this program lies in its `deps`.
fn profile_dir() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let dir = own.parent().and_then(Path::parent);
    dir.map(Path::to_owned).ok_or("no profile directory".into())
}

/// `cargo bench --bench` builds the server's binary, but not the examples.
fn build_examples(target_dir: &Path) -> Result<(), String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--release", "--example", "load", "--example", "floor", "--example", "rows", "--target-dir"])
        .arg(target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo has told this program of itself would look to build scripts like a change, and cost minutes each time.
    let told = std::env::vars_os().map(|(name, _)| name);
    for name in told.filter(|name| TOLD_BY_CARGO.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix))) {
        cargo.env_remove(name);
    }
    check("cargo build --release --example", cargo)
}

/// Copies the peers' programs beside their packages, and installs those if they are not the right ones.
fn install_peers(dir: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", dir.display());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/compare/peers");
    // Written only after an installation, so that a broken one is repeated.
    let stamp = dir.join("installed.json");
    let wanted = fs::read(source.join("package.json")).map_err(failed)?;
    fs::create_dir_all(dir).map_err(failed)?;
    for file in PEER_FILES {
        fs::copy(source.join(file), dir.join(file)).map_err(failed)?;
    }
    if fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    let mut npm = Command::new("npm");
    // The packages need no install scripts, and no optional ones.
    npm.args(["install", "--no-package-lock", "--omit=optional", "--ignore-scripts"])
        .args(["--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(dir);
    check("npm install", npm)?;
    fs::write(&stamp, wanted).map_err(failed)
}

fn check(name: &str, mut command: Command) -> Result<(), String> {
    // What is printed here is no part of the report.
    let status =
        command.stdin(Stdio::null()).stdout(Stdio::null()).status().map_err(|error| format!("{name}: {error}"))?;
    if !status.success() {
        return Err(format!("{name}: {status}"));
    }
    Ok(())
}
