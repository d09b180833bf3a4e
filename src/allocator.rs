//! What the process tells its allocator: the one module with `unsafe`, two calls without arguments that matter.
//!
//! glibc keeps freed memory for later, also when a storm of connections or joins has left most of it empty, and puts ever
//! larger blocks among small ones once a large one was freed. It is measured, not assumed, that this is worth a call: 19,000
//! connections that came and went keep 3 MiB otherwise. Of the allocators tried (glibc, mimalloc 3 with and without delayed
//! purging) glibc with these calls holds the least.
#![allow(unsafe_code, reason = "the calls are declared in libc, and so unsafe")]

use crate::chat::slack::APART_BYTES;

/// Has blocks of [`APART_BYTES`] and more stand apart from the heap for as long as the process runs, so that a vector that
/// grows is never copied, owes no memory that it has not used, and leaves no hole. To be called before threads are made;
/// does nothing where the allocator is not glibc's.
pub fn prepare() {
    // SAFETY: `mallopt` sets a number of the allocator under its lock; this one is within what it accepts.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, APART_BYTES as libc::c_int);
    }
}

/// Gives pages of the heap that hold nothing back to the system; does nothing where the allocator is not glibc's.
///
/// Looks at each free chunk once: some milliseconds after a storm, microseconds otherwise.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    exchange_cached();
    // SAFETY: `malloc_trim` has no precondition. It takes the locks of the allocator itself, and gives back only pages that
    // lie within free chunks, so that no live value is touched.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Blocks of up to this size are kept by the thread that frees them, for its next request, some of each size.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const CACHED_BYTES_MAX: usize = 1032;
/// At least as many as glibc keeps of a size: 7, or 16 since 2.42.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const CACHED_PER_SIZE: usize = 16;

/// Has this thread keep blocks for its next requests that lie where the heap has holes now, in place of those that a storm
/// left to it. Each of those would keep a page, which of 19,000 connections is a tenth of what they take.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn exchange_cached() {
    let mut scattered: Vec<Vec<u8>> = Vec::with_capacity(CACHED_PER_SIZE);
    let mut together: Vec<Vec<u8>> = Vec::with_capacity(CACHED_PER_SIZE);
    for bytes in (24..=CACHED_BYTES_MAX).step_by(16) {
        for blocks in [&mut scattered, &mut together] {
            blocks.extend((0..CACHED_PER_SIZE).map(|_| Vec::with_capacity(bytes)));
        }
        // What is freed first is kept.
        std::hint::black_box(&mut together).clear();
        std::hint::black_box(&mut scattered).clear();
    }
}
