//! What the kernel tells about a process (CPU time, resident memory), and what this process asks of the kernel for itself
//! (file limit, CPU). It knows nothing of the load.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// CPU time of all threads of a process, in nanoseconds: the first field of `schedstat`, kernel share included.
pub fn cpu_ns(pid: u32) -> Option<u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let mut sum = 0;
    for task in tasks.flatten() {
        // A thread may end while the list is walked; its time is then lost, as it is for any reader of /proc.
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let first = text.split_whitespace().next();
        sum += first.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
    }
    Some(sum)
}

/// Resident memory of a process in bytes.
pub fn rss_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("Rss:"))?;
    let kib = line.split_whitespace().next()?.parse::<u64>().ok()?;
    Some(kib * 1024)
}

/// Raises the limit on open files as far as is allowed, and returns it.
pub fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let in_force = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    in_force.unwrap_or(u64::MAX)
}

/// Keeps this process on one CPU.
pub fn pin(cpu: usize) -> Result<(), String> {
    let refused = |why: String| format!("cannot pin to CPU {cpu}: {why}");
    if cpu >= CpuSet::MAX_CPU {
        return Err(refused("no such CPU".to_owned()));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|e| refused(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_time_and_memory() {
        assert!(cpu_ns(std::process::id()).is_some_and(|ns| ns > 0));
        assert!(rss_bytes(std::process::id()).is_some_and(|bytes| bytes > 100_000));
        assert_eq!(cpu_ns(u32::MAX), None);
    }
}
