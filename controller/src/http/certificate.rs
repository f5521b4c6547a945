//! The certificate authorities that servers are checked against, and the reasons why a certificate is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, RootCertStore};

/// A server chooses the names of its certificate, so that an error lists at most this many of them, and of each at most
/// this much.
const NAMES_LISTED_MAX: usize = 3;
const NAME_MAX_CHARS: usize = 100;

/// The certificates of a `--ca-file`. Every one of them is usable.
#[derive(Clone, Debug)]
pub struct CaCertificates {
    certificates: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
}

impl PartialEq for CaCertificates {
    fn eq(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }
}

#[derive(Debug, thiserror::Error)]
pub enum CaFileError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Pem { path: PathBuf, source: CaPemError },
}

#[derive(Debug, thiserror::Error)]
pub enum CaPemError {
    #[error("it must hold certificates in PEM: {0}")]
    Syntax(#[source] pem::Error),
    #[error("there is no certificate in it (`-----BEGIN CERTIFICATE-----`)")]
    Empty,
    /// `number` counts from 1.
    #[error("certificate {number} of it cannot be used: {source}")]
    Unusable { number: usize, source: rustls::Error },
}

impl CaCertificates {
    /// Reads a file in PEM. Blocking.
    pub fn read(path: &Path) -> Result<Self, CaFileError> {
        let pem = std::fs::read(path).map_err(|source| CaFileError::Read { path: path.to_owned(), source })?;
        Self::from_pem(&pem).map_err(|source| CaFileError::Pem { path: path.to_owned(), source })
    }

    fn from_pem(pem: &[u8]) -> Result<Self, CaPemError> {
        let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(CaPemError::Syntax)?;
        if certificates.is_empty() {
            return Err(CaPemError::Empty);
        }

        let mut roots = RootCertStore::empty();
        for (index, certificate) in certificates.iter().enumerate() {
            let added = roots.add(certificate.clone());
            added.map_err(|source| CaPemError::Unusable { number: index + 1, source })?;
        }
        Ok(Self { certificates, roots: Arc::new(roots) })
    }

    /// The authorities that the operating system trusts. Files of the system that are no certificates are left out.
    pub fn from_system() -> Self {
        let certificates = rustls_native_certs::load_native_certs().certs;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.iter().cloned());
        Self { certificates, roots: Arc::new(roots) }
    }

    pub fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }
}

/// Why a server's certificate is refused. The text does not depend on the current time, because it is part of conditions,
/// which would change all the time otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateProblem {
    #[error("its certificate expired{}", expiry(.0))]
    Expired(Option<Timestamp>),
    #[error("its certificate is not valid yet{}", beginning(.0))]
    NotValidYet(Option<Timestamp>),
    #[error("its certificate is not signed by an authority that servers are checked against (--ca-file)")]
    UnknownIssuer,
    #[error("its certificate does not have the name `{expected}`{}", listed_names(.presented))]
    OtherName { expected: String, presented: Vec<String> },
    #[error("its certificate is not for servers: its extended key usage must include serverAuth")]
    OtherPurpose,
    #[error("its certificate cannot be used: {0}")]
    Other(String),
}

impl CertificateProblem {
    /// `expected`: the name that the certificate must have.
    pub fn new(error: &CertificateError, expected: &str) -> Self {
        let expected = expected.to_owned();
        match error {
            CertificateError::Expired => Self::Expired(None),
            CertificateError::ExpiredContext { not_after, .. } => Self::Expired(timestamp(*not_after)),
            CertificateError::NotValidYet => Self::NotValidYet(None),
            CertificateError::NotValidYetContext { not_before, .. } => Self::NotValidYet(timestamp(*not_before)),
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownIssuer,
            CertificateError::NotValidForName => Self::OtherName { expected, presented: Vec::new() },
            CertificateError::NotValidForNameContext { presented, .. } => Self::OtherName {
                expected,
                presented: presented.iter().map(|presented| certificate_name(presented)).collect(),
            },
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Self::OtherPurpose,
            other => Self::Other(bounded(&other.to_string())),
        }
    }
}

fn timestamp(time: UnixTime) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(time.as_secs()).ok()?).ok()
}

fn expiry(time: &Option<Timestamp>) -> String {
    time.map_or_else(String::new, |time| format!(" at {time}"))
}

fn beginning(time: &Option<Timestamp>) -> String {
    time.map_or_else(String::new, |time| format!(", only from {time}"))
}

fn listed_names(names: &[String]) -> String {
    let listed: Vec<&str> = names.iter().take(NAMES_LISTED_MAX).map(String::as_str).collect();
    match names.len() {
        0 => String::new(),
        all if all > NAMES_LISTED_MAX => format!("; it has {} and {} more", listed.join(", "), all - NAMES_LISTED_MAX),
        _ => format!("; it has {}", listed.join(", ")),
    }
}

/// The name as it is in the certificate; rustls writes it as `DnsName("...")`.
fn certificate_name(presented: &str) -> String {
    let inner = presented.split_once("(\"").and_then(|(_, rest)| rest.strip_suffix("\")"));
    bounded(inner.unwrap_or(presented))
}

/// Text of a server without control characters, cut to a bounded length.
fn bounded(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(NAME_MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_text_of_a_problem_does_not_change_while_time_passes() {
        let not_after = UnixTime::since_unix_epoch(Duration::from_secs(1_795_000_000));
        let expired = |seconds| {
            let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            CertificateProblem::new(&CertificateError::ExpiredContext { time, not_after }, "h").to_string()
        };

        assert_eq!(expired(1_795_000_001), "its certificate expired at 2026-11-18T11:06:40Z");
        assert_eq!(expired(1_795_000_001), expired(1_795_009_999));
    }

    #[test]
    fn names_of_a_certificate_are_listed_within_bounds() {
        let presented =
            ["DnsName(\"a\nb\")".to_owned(), "c".repeat(1000), "d".to_owned(), "e".to_owned(), "f".to_owned()].to_vec();
        let expected = rustls::pki_types::ServerName::try_from("hush-server.a.svc").unwrap();
        let error = CertificateError::NotValidForNameContext { expected, presented };
        let text = CertificateProblem::new(&error, "hush-server.a.svc").to_string();

        assert!(text.contains("`hush-server.a.svc`") && text.contains("; it has a\u{fffd}b, ccc"), "{text}");
        assert!(text.ends_with(", d and 2 more"), "{text}");
        assert!(!text.contains('\n') && text.len() < 400, "{text}");
    }

    #[test]
    fn a_file_that_holds_no_authority_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.crt");
        let refused = || CaCertificates::read(&path).unwrap_err().to_string();

        assert!(refused().contains("ca.crt: No such file"), "{}", refused());

        for (text, problem) in [
            ("", "there is no certificate in it"),
            ("nothing", "there is no certificate in it"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1 of it cannot be used"),
            ("-----BEGIN CERTIFICATE-----\nAA", "it must hold certificates in PEM"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = refused();
            assert!(error.contains("ca.crt") && error.contains(problem), "{error}");
        }
    }
}
