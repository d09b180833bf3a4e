//! What the process tells its allocator: the one module with `unsafe`, one call without arguments that matter.
//!
//! glibc keeps freed memory for later, also when a storm of connections or joins has left most of it empty. It is measured,
//! not assumed, that this is worth a call: 19,000 connections that came and went keep 3 MiB otherwise. Of the
//! allocators tried (glibc, mimalloc 3 with and without delayed purging) glibc with this call holds the least.
#![allow(unsafe_code, reason = "malloc_trim is declared in libc, and so unsafe to call")]

/// Gives pages of the heap that hold nothing back to the system; does nothing where the allocator is not glibc's.
///
/// Looks at each free chunk once: some milliseconds after a storm, microseconds otherwise.
pub fn trim() {
    // SAFETY: `malloc_trim` has no precondition. It takes the locks of the allocator itself, and gives back only pages that
    // lie within free chunks, so that no live value is touched.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::malloc_trim(0);
    }
}
