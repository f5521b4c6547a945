//! The settings of security as the objects that check certificates, keys and tokens.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use hush_log::exposed_secret;

use crate::admin::AdminAccess;
use crate::cli::settings::{SecuritySettings, TlsFiles};
use crate::serve::Tls;
use hush_access::{Authenticate, KeyFile, TokenReview};

/// Only warns: the operator decides which users of the machine may read the file.
fn warn_if_exposed(option: &str, secret: &Path) {
    if let Some(problem) = exposed_secret(option, secret) {
        tracing::warn!("{problem}");
    }
}

/// The TLS of a listener; `option`: `tls` or `ops-tls`. Must be called inside a tokio runtime, as the other functions.
///
/// # Errors
/// If the files are no certificate and its key.
pub fn tls(option: &str, files: Option<&TlsFiles>) -> anyhow::Result<Option<Tls>> {
    let Some(files) = files else { return Ok(None) };

    warn_if_exposed(&format!("--{option}-key"), &files.key);
    let tls = Tls::from_files(files.certificate.clone(), files.key.clone())
        .with_context(|| format!("--{option}-cert and --{option}-key"))?;
    Ok(Some(tls))
}

/// The keys of the public API; `None`: the API needs no key.
///
/// # Errors
/// If the file cannot be read.
pub fn api_keys(settings: &SecuritySettings) -> anyhow::Result<Option<KeyFile>> {
    let Some(path) = &settings.api_keys_file else { return Ok(None) };

    warn_if_exposed("--api-keys-file", path);
    let keys = KeyFile::open(path.clone()).context("--api-keys-file")?;
    Ok(Some(keys))
}

/// Who may use the admin API. `listener`: the address of the operations listener.
///
/// # Errors
/// If the file with the token cannot be read, or tokens cannot be reviewed.
pub fn access(settings: &SecuritySettings, listener: IpAddr) -> anyhow::Result<AdminAccess> {
    let mut checks: Vec<Arc<dyn Authenticate>> = Vec::new();
    if let Some(path) = &settings.admin_token_file {
        warn_if_exposed("--admin-token-file", path);
        checks.push(Arc::new(KeyFile::open(path.clone()).context("--admin-token-file")?));
    }
    if let Some(review) = &settings.admin_token_review {
        checks.push(Arc::new(TokenReview::new(review.clone()).context("--admin-token-review")?));
    }

    let access = AdminAccess::new(checks, listener);
    access.log();
    Ok(access)
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};
    use std::io::{self, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::{Mutex, PoisonError};

    use super::*;

    #[derive(Clone, Default)]
    struct LogCapture(Arc<Mutex<Vec<u8>>>);

    impl Write for LogCapture {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn keys_that_every_user_can_read_are_logged_with_the_option() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write(file.path(), "0123456789abcdef").unwrap();
        let path = file.path().to_owned();
        let files = TlsFiles { certificate: path.clone(), key: path.clone() };
        let settings = SecuritySettings {
            tls: Some(files.clone()),
            ops_tls: Some(files),
            api_keys_file: Some(path.clone()),
            admin_token_file: Some(path.clone()),
            admin_token_review: None,
        };

        for (mode, expected) in [(0o644, 4), (0o640, 0)] {
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let lines = LogCapture::default();
            let writer = lines.clone();
            let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
            tracing::subscriber::with_default(subscriber, || {
                assert!(api_keys(&settings).unwrap().is_some());
                access(&settings, IpAddr::from([127, 0, 0, 1])).unwrap();
                // The file is no certificate: that is an error, and is independent of the warning.
                assert!(tls("tls", settings.tls.as_ref()).is_err());
                assert!(tls("ops-tls", settings.ops_tls.as_ref()).is_err());
            });

            let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            assert_eq!(text.matches("every user of this machine can read").count(), expected, "{text}");
            if expected > 0 {
                for option in ["--api-keys-file: ", "--admin-token-file: ", "--tls-key: ", "--ops-tls-key: "] {
                    assert!(text.contains(option) && text.contains(&path.display().to_string()), "{text}");
                }
            }
            assert!(!text.contains("0123456789abcdef"));
        }
    }
}
