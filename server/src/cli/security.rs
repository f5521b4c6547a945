//! Settings of who gets in become what asks them.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use hush_log::exposed_secret;

use super::settings::{SecuritySettings, TlsFiles};
use crate::admin::Access;
use crate::auth::{Authenticate, KeyFile, TokenReview};
use crate::serve::Tls;

/// A warning and no refusal: whether other users are to be kept out is the operator's to know.
fn warn_of_readers(option: &str, secret: &Path) {
    if let Some(problem) = exposed_secret(option, secret) {
        tracing::warn!("{problem}");
    }
}

/// Must be called inside a tokio runtime; so must the others.
pub fn tls(option: &str, files: Option<&TlsFiles>) -> anyhow::Result<Option<Tls>> {
    if let Some(files) = files {
        warn_of_readers(&format!("--{option}-key"), &files.key);
    }
    files
        .map(|files| Tls::from_files(files.certificate.clone(), files.key.clone()))
        .transpose()
        .with_context(|| format!("--{option}-cert and --{option}-key"))
}

pub fn api_keys(settings: &SecuritySettings) -> anyhow::Result<Option<KeyFile>> {
    if let Some(path) = &settings.api_keys_file {
        warn_of_readers("--api-keys-file", path);
    }
    settings.api_keys_file.clone().map(KeyFile::open).transpose().context("--api-keys-file")
}

/// `listener`: where the operations listener is.
pub fn access(settings: &SecuritySettings, listener: IpAddr) -> anyhow::Result<Access> {
    let mut checks: Vec<Arc<dyn Authenticate>> = Vec::new();
    if let Some(path) = &settings.admin_token_file {
        warn_of_readers("--admin-token-file", path);
        checks.push(Arc::new(KeyFile::open(path.clone()).context("--admin-token-file")?));
    }
    if let Some(review) = &settings.admin_token_review {
        checks.push(Arc::new(TokenReview::new(review.clone()).context("--admin-token-review")?));
    }
    let access = Access::new(checks, listener);
    match &access {
        Access::Closed => tracing::warn!(
            "the admin API lets nobody in: no credential is configured (--admin-token-file, --admin-token-review) and \
             the operations listener is not on the loopback"
        ),
        Access::Local => tracing::info!("the admin API serves this machine without a credential"),
        Access::Tokens(_) => {}
    }
    Ok(access)
}
