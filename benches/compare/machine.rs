//! What the figures were measured on and with.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

/// The machine and the versions.
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) rustc: String,
    pub(crate) node: String,
    pub(crate) commit: String,
    /// In UTC, when the comparison began.
    pub(crate) date: String,
}

/// An error unless server and load can have a core each.
pub(crate) fn require_two_cores() -> Result<(), String> {
    match std::thread::available_parallelism() {
        Ok(cores) if cores.get() >= 2 => Ok(()),
        _ => Err("server and load need a core each, and there is only one".into()),
    }
}

impl Machine {
    /// This machine, now.
    pub(crate) fn this() -> Self {
        let mut commit = output("git", &["rev-parse", "--short=12", "HEAD"]);
        if commit.is_empty() {
            commit.push_str("unknown");
        } else if !output("git", &["status", "--porcelain"]).is_empty() {
            commit.push_str(" with changes");
        }
        Self {
            cpu: cpu_model(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: output("uname", &["-r"]),
            rustc: output("rustc", &["--version"]),
            node: output("node", &["--version"]),
            commit,
            date: output("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
        }
    }

    /// A few lines.
    pub(crate) fn text(&self) -> String {
        let Self { cpu, cores, kernel, rustc, node, commit, date } = self;
        format!("cpu: {cpu}, {cores} cores; kernel: {kernel}\nrustc: {rustc}; node: {node}\ncommit: {commit}; {date}\n")
    }

    pub(crate) fn json(&self) -> Value {
        let Self { cpu, cores, kernel, rustc, node, commit, date } = self;
        json!({
            "cpu": cpu, "cores": cores, "kernel": kernel, "rustc": rustc, "node": node, "commit": commit, "date": date,
        })
    }
}

fn cpu_model() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.and_then(|line| line.split_once(':'));
    model.map_or("unknown", |(_, name)| name.trim()).to_owned()
}

/// What a command prints, or nothing if it fails.
fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => String::new(),
    }
}
