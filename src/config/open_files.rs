//! The process's limit of open files, from which the number of connections follows.

use crate::error::Error;

/// Open files that are no connections: listeners, logs, health checks, the ERP.
pub const FILES_RESERVED: u64 = 128;

/// The hard limit of open files, which is how far a process may raise its own.
///
/// # Errors
/// When the system does not tell.
pub fn hard_limit() -> Result<u64, Error> {
    let limits = rlimit::Resource::NOFILE.get();
    let (_, hard) = limits.map_err(|source| Error::System { action: "read the open-file limit", source })?;
    Ok(hard)
}

/// Raises the soft limit of open files to the hard one.
///
/// # Errors
/// When the system refuses.
pub fn raise_limit() -> Result<(), Error> {
    let hard = hard_limit()?;
    let raised = rlimit::Resource::NOFILE.set(hard, hard);
    raised.map_err(|source| Error::System { action: "raise the open-file limit", source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        raise_limit().unwrap();
        let (soft, hard) = rlimit::Resource::NOFILE.get().unwrap();
        assert_eq!((soft, hard), (hard, hard_limit().unwrap()));
    }
}
