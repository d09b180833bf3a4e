//! The system calls of the floor.
//!
//! The crate itself has no unsafe code; this bench program calls the kernel directly, because a
//! floor must have nothing in between. Each call passes pointers to live values with their true
//! lengths, and descriptors that this program made and has not closed. Sending and receiving are the
//! kernel's calls themselves, without the C library's points of cancellation around them.
#![allow(unsafe_code, reason = "the calls are declared in libc, and so unsafe; see above")]

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags};

pub const READABLE: u32 = libc::EPOLLIN as u32 | libc::EPOLLET as u32;
pub const WRITABLE: u32 = libc::EPOLLOUT as u32;
pub const ENDED: u32 = (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) as u32;
pub const READABLE_OR_ENDED: u32 = libc::EPOLLIN as u32 | ENDED;
pub const CONNECTION: u32 = READABLE | WRITABLE | libc::EPOLLRDHUP as u32;

pub fn event_buffer() -> Vec<libc::epoll_event> {
    vec![libc::epoll_event { events: 0, u64: 0 }; 1024]
}

pub fn epoll_create() -> io::Result<i32> {
    checked(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })
}

pub fn epoll_add(epoll: i32, fd: i32, events: u32) -> io::Result<()> {
    let mut event = libc::epoll_event { events, u64: fd as u64 };
    checked(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut event) }).map(drop)
}

/// The events that are there; waits for one if it is to.
pub fn epoll_wait(epoll: i32, events: &mut [libc::epoll_event], timeout: i32) -> io::Result<usize> {
    loop {
        let capacity = events.len() as i32;
        let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), capacity, timeout) };
        match checked(count) {
            Ok(count) => return Ok(count as usize),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Lengthens the queue of the listener and sets TCP_NODELAY, which accepted sockets inherit.
pub fn prepare_listener(listener: i32) -> io::Result<()> {
    let on: i32 = 1;
    checked(unsafe {
        libc::setsockopt(
            listener,
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            (&raw const on).cast(),
            size_of::<i32>() as u32,
        )
    })?;
    checked(unsafe { libc::listen(listener, 4096) }).map(drop)
}

pub fn accept(listener: i32) -> Option<i32> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
    checked(unsafe { libc::accept4(listener, address, length, flags) }).ok()
}

/// The bytes read, 0 at the end or after a failure, nothing if there is nothing to read.
pub fn recv(fd: i32, buffer: &mut [u8]) -> Option<usize> {
    match net::recv(unsafe { BorrowedFd::borrow_raw(fd) }, buffer, RecvFlags::empty()) {
        Ok((count, _)) => Some(count),
        Err(Errno::AGAIN) => None,
        Err(_) => Some(0),
    }
}

/// The bytes sent, 0 if the socket takes none or has failed.
pub fn send(fd: i32, bytes: &[u8]) -> usize {
    net::send(unsafe { BorrowedFd::borrow_raw(fd) }, bytes, SendFlags::NOSIGNAL).unwrap_or(0)
}

pub fn close(fd: i32) {
    unsafe { libc::close(fd) };
}

pub fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
