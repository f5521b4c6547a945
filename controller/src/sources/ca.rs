//! The file of the authorities that servers are checked against.

use std::path::PathBuf;

use super::Source;
use crate::http::CaCertificates;

pub struct CaFile(pub PathBuf);

impl Source for CaFile {
    type Value = CaCertificates;
    const NAME: &'static str = "ca";

    fn read(&self) -> Result<CaCertificates, String> {
        CaCertificates::read(&self.0)
    }
}
