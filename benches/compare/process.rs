//! Child processes that never outlive this program.
//!
//! Invariant: a child ends when its guard is dropped, also by a panic; if this program is killed,
//! the kernel kills the child (`setpriv --pdeathsig`).

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(10);
const TERM_GRACE: Duration = Duration::from_secs(1);

/// A command that runs `program` so that it dies with this program; on one core, if one is named.
pub(crate) fn bound_command(program: &OsStr, cpu: Option<u32>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(cpu) = cpu {
        command.arg("taskset").arg("-c").arg(cpu.to_string());
    }
    command.arg(program).stdin(Stdio::null());
    command
}

/// A running child process; dropping it ends it.
pub(crate) struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts `command`; its output goes to two files.
    pub(crate) fn start(name: &str, command: &mut Command, stdout: &Path, stderr: &Path) -> Result<Self, String> {
        command.stdout(create(stdout)?).stderr(create(stderr)?);
        let child = command.spawn().map_err(|error| format!("{name} does not start: {error}"))?;
        Ok(Self { child, name: name.to_owned() })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, where that is a pipe.
    pub(crate) fn take_input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Asks the process to end what it does.
    pub(crate) fn interrupt(&mut self) {
        self.signal("-INT");
    }

    /// An error if the process has ended.
    pub(crate) fn check_runs(&mut self) -> Result<(), String> {
        match self.status()? {
            Some(status) => Err(format!("{} has ended: {status}", self.name)),
            None => Ok(()),
        }
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Result<ExitStatus, String> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.status()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(format!("{} takes more than {timeout:?}", self.name));
            }
            sleep(POLL);
        }
    }

    fn signal(&mut self, signal: &str) {
        if matches!(self.status(), Ok(None)) {
            // The child has not been waited for, so its id cannot belong to another process.
            let _ = Command::new("kill").args([signal, &self.id().to_string()]).stderr(Stdio::null()).status();
        }
    }

    fn status(&mut self) -> Result<Option<ExitStatus>, String> {
        self.child.try_wait().map_err(|error| format!("{}: {error}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.status(), Ok(Some(_))) {
            return;
        }
        self.signal("-TERM");
        if self.wait(TERM_GRACE).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn create(path: &Path) -> Result<File, String> {
    File::create(path).map_err(|error| format!("{}: {error}", path.display()))
}
