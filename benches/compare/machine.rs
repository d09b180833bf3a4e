//! What the figures were measured on and with.

use std::fs;
use std::process::Command;

/// An error unless server and load can have a core each.
pub(crate) fn require_two_cores() -> Result<(), String> {
    match std::thread::available_parallelism() {
        Ok(cores) if cores.get() >= 2 => Ok(()),
        _ => Err("server and load need a core each, and there is only one".into()),
    }
}

/// A few lines on machine and versions.
pub(crate) fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let mut commit = output("git", &["rev-parse", "--short=12", "HEAD"]);
    if !output("git", &["status", "--porcelain"]).is_empty() {
        commit.push_str(" with changes");
    }
    format!(
        "cpu: {}, {cores} cores; kernel: {}\nrustc: {}; node: {}\ncommit: {}\n",
        cpu_model(),
        output("uname", &["-r"]),
        output("rustc", &["--version"]),
        output("node", &["--version"]),
        if commit.is_empty() { "unknown" } else { &commit },
    )
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
