//! The calls that these tests need of the kernel and that no safe library offers.
//!
//! Owns a network namespace, a TUN device, and a thread of another process that is held. Knows nothing of the server.
#![allow(unsafe_code, reason = "unshare, an ioctl and ptrace")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network of its own, which ends with the last thread, process or file in it.
pub struct Network(File);

impl Network {
    /// An empty one, in which only loopback is up. `None` where this process may not have one.
    pub fn new() -> Option<Self> {
        let made = thread::spawn(|| -> io::Result<File> {
            // SAFETY: only the network of this thread changes; it shares memory and files as before.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            File::open("/proc/thread-self/ns/net")
        });
        let network = Self(made.join().expect("no panic").ok()?);
        network.within(|| ip("link set lo up")).then_some(network)
    }

    /// Runs `act` in a thread that is in this network, as are the sockets that it makes and the processes that it starts.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter();
                act()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread there, for good.
    pub fn enter(&self) {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).expect("a thread can move");
    }

    /// A TUN device in this network with this address, whose other end is `peer`; packets are read from and written to the
    /// file.
    pub fn tun(&self, address: &str, peer: &str) -> Option<File> {
        self.within(|| {
            let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").ok()?;
            let mut request = [0u8; 40];
            request[..4].copy_from_slice(b"tun0");
            let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as u16;
            request[16..18].copy_from_slice(&flags.to_ne_bytes());
            // SAFETY: the request is an `ifreq` of 40 bytes: a name of 16, then the flags; the kernel writes no more.
            let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
            let is_up = done == 0
                && ip(&format!("addr add {address} peer {peer} dev tun0"))
                && ip("link set tun0 up txqueuelen 10000");
            is_up.then_some(file)
        })
    }
}

fn ip(args: &str) -> bool {
    std::process::Command::new("ip").args(args.split(' ')).status().is_ok_and(|status| status.success())
}

/// Holds one thread of another process for as long as `act` runs; `None` if that is not allowed.
pub fn while_held<T>(thread: i32, act: impl FnOnce() -> T) -> Option<T> {
    let call = |request, data: usize| {
        // SAFETY: these requests read and write no memory of this process.
        unsafe { libc::ptrace(request, thread, 0, data) == 0 }
    };
    if !call(libc::PTRACE_SEIZE, 0) || !call(libc::PTRACE_INTERRUPT, 0) {
        return None;
    }
    // Only a thread that is seen to have stopped can be let go.
    // SAFETY: a null pointer says that the status is not wanted.
    let stopped = unsafe { libc::waitpid(thread, std::ptr::null_mut(), libc::__WALL) } == thread;
    let done = act();
    (call(libc::PTRACE_DETACH, 0) && stopped).then_some(done)
}
