//! A certificate for the servers of the comparison, which nobody else trusts.

use std::fs;
use std::path::{Path, PathBuf};

/// The name of the certificate's file.
pub(crate) const CERTIFICATE: &str = "certificate.pem";

/// The files of a certificate for `localhost` and of its key.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificate {
    /// Makes one, of ECDSA P-256, in this folder.
    pub(crate) fn make(folder: &Path) -> Result<Self, String> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(|error| error.to_string())?;
        let files = Self { certificate: folder.join(CERTIFICATE), key: folder.join("key.pem") };
        fs::write(&files.certificate, made.cert.pem()).map_err(|error| error.to_string())?;
        fs::write(&files.key, made.signing_key.serialize_pem()).map_err(|error| error.to_string())?;
        Ok(files)
    }
}
