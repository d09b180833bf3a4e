//! What the kernel tells about a process (CPU time, resident memory) and about its own memory for TCP, and what this process asks of the kernel for itself
//! (file limit, CPU). It knows nothing of the load.

use std::fs;

use rustix::param::page_size;
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

/// The most memory of a process that was ever resident, in bytes.
pub fn rss_bytes_max(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib = line.split_whitespace().next()?.parse::<u64>().ok()?;
    Some(kib * 1024)
}

/// What the kernel holds for all TCP sockets, at both their ends, in bytes.
pub fn tcp_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/net/sockstat").ok()?;
    Some(tcp_pages(&text)? * page_size() as u64)
}

fn tcp_pages(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|l| l.strip_prefix("TCP:"))?;
    let mut words = line.split_whitespace().skip_while(|word| *word != "mem");
    words.nth(1)?.parse().ok()
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
        assert!(rss_bytes_max(std::process::id()) >= rss_bytes(std::process::id()));
        assert_eq!(cpu_ns(u32::MAX), None);
    }

    #[test]
    fn the_kernel_counts_pages() {
        let text = "sockets: used 28\nTCP: inuse 2 orphan 0 tw 0 alloc 2 mem 62\nUDP: inuse 0 mem 7\n";
        assert_eq!(tcp_pages(text), Some(62));
        assert_eq!(tcp_pages("UDP: inuse 0 mem 7\n"), None);
    }
}
