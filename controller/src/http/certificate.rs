//! The authorities that certificates of servers are checked against, and what is wrong with a certificate that fails.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, RootCertStore};

/// So many names of a certificate are told, and so many characters of each: a server chooses them.
const NAMES_TOLD: usize = 3;
const NAME_MAX_CHARS: usize = 100;

/// What a file of `--ca-file` holds. Each certificate of it can be used.
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

impl CaCertificates {
    /// Blocking. The error names the file and the fix.
    pub fn read(path: &Path) -> Result<Self, String> {
        let file = path.display();
        let pem = std::fs::read(path).map_err(|error| format!("{file}: {error}"))?;
        Self::of_pem(&pem).map_err(|problem| format!("{file}: {problem}"))
    }

    fn of_pem(pem: &[u8]) -> Result<Self, String> {
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|error| format!("it must hold certificates in PEM: {error}"))?;
        if certificates.is_empty() {
            return Err("there is no certificate in it (`-----BEGIN CERTIFICATE-----`)".to_owned());
        }

        let mut roots = RootCertStore::empty();
        for (index, certificate) in certificates.iter().enumerate() {
            let added = roots.add(certificate.clone());
            added.map_err(|error| format!("certificate {} of it cannot be used: {error}", index + 1))?;
        }
        Ok(Self { certificates, roots: Arc::new(roots) })
    }

    /// Those that the operating system trusts. What the system has that is no certificate is left out.
    pub fn of_system() -> Self {
        let certificates = rustls_native_certs::load_native_certs().certs;
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates.iter().cloned());
        Self { certificates, roots: Arc::new(roots) }
    }

    pub fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }
}

/// Why a server's certificate is refused. The text of one problem stays the same while time passes, because it is part of
/// conditions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateProblem {
    #[error("its certificate expired{}", at(.0))]
    Expired(Option<Timestamp>),
    #[error("its certificate is not valid yet{}", from(.0))]
    NotValidYet(Option<Timestamp>),
    #[error("its certificate is not signed by an authority that servers are checked against (--ca-file)")]
    UnknownIssuer,
    #[error("its certificate does not have the name `{expected}`{}", names_told(.presented))]
    OtherName { expected: String, presented: Vec<String> },
    #[error("its certificate is not for servers: its extended key usage must include serverAuth")]
    OtherPurpose,
    #[error("its certificate cannot be used: {0}")]
    Other(String),
}

impl CertificateProblem {
    /// `expected`: the name that was asked for.
    pub fn new(error: &CertificateError, expected: &str) -> Self {
        let expected = expected.to_owned();
        match error {
            CertificateError::Expired => Self::Expired(None),
            CertificateError::ExpiredContext { not_after, .. } => Self::Expired(timestamp(*not_after)),
            CertificateError::NotValidYet => Self::NotValidYet(None),
            CertificateError::NotValidYetContext { not_before, .. } => Self::NotValidYet(timestamp(*not_before)),
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownIssuer,
            CertificateError::NotValidForName => Self::OtherName { expected, presented: Vec::new() },
            CertificateError::NotValidForNameContext { presented, .. } => {
                Self::OtherName { expected, presented: presented.iter().map(|presented| name(presented)).collect() }
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Self::OtherPurpose,
            other => Self::Other(bounded(&other.to_string())),
        }
    }
}

fn timestamp(time: UnixTime) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(time.as_secs()).ok()?).ok()
}

fn at(time: &Option<Timestamp>) -> String {
    time.map_or_else(String::new, |time| format!(" at {time}"))
}

fn from(time: &Option<Timestamp>) -> String {
    time.map_or_else(String::new, |time| format!(", only from {time}"))
}

fn names_told(names: &[String]) -> String {
    let told: Vec<&str> = names.iter().take(NAMES_TOLD).map(String::as_str).collect();
    match names.len() {
        0 => String::new(),
        all if all > NAMES_TOLD => format!("; it has {} and {} more", told.join(", "), all - NAMES_TOLD),
        _ => format!("; it has {}", told.join(", ")),
    }
}

/// As it is written in the certificate: rustls tells it as `DnsName("...")`.
fn name(presented: &str) -> String {
    let inner = presented.split_once("(\"").and_then(|(_, rest)| rest.strip_suffix("\")"));
    bounded(inner.unwrap_or(presented))
}

/// Printable and short.
fn bounded(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).take(NAME_MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_problem_says_the_same_while_time_passes() {
        let not_after = UnixTime::since_unix_epoch(Duration::from_secs(1_795_000_000));
        let expired = |seconds| {
            let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            CertificateProblem::new(&CertificateError::ExpiredContext { time, not_after }, "h").to_string()
        };
        assert_eq!(expired(1_795_000_001), "its certificate expired at 2026-11-18T11:06:40Z");
        assert_eq!(expired(1_795_000_001), expired(1_795_009_999));
    }

    #[test]
    fn names_of_a_certificate_are_told_within_bounds() {
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
        let refused = || CaCertificates::read(&path).unwrap_err();
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
