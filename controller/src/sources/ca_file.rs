//! The file of the certificate authorities that servers are checked against.

use std::path::PathBuf;

use super::FileSource;
use crate::http::{CaCertificates, CaFileError};

pub struct CaFile(pub PathBuf);

impl FileSource for CaFile {
    type Value = CaCertificates;
    type Error = CaFileError;

    const NAME: &'static str = "ca";

    fn read(&self) -> Result<CaCertificates, CaFileError> {
        CaCertificates::read(&self.0)
    }
}
