//! Who may use which listener, and with which certificates.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::SettingError;
use crate::cli::env::Env;
use crate::cli::values::Switch;
use hush_access::{ApiServer, ReviewOptions, ReviewOptionsError, ReviewSettings, ServiceAccount};

#[derive(Args, Clone, Debug, PartialEq, Serialize)]
#[command(next_help_heading = "Security")]
pub struct SecurityOptions {
    /// Certificate of the public listener, PEM, followed by its chain; makes it HTTPS. Read again when it changes.
    /// Default: none, plain HTTP.
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,

    /// Key of --tls-cert, PEM. Default: none.
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,

    /// Certificate of the operations listener, PEM, followed by its chain; makes it HTTPS. Read again when it changes.
    /// Default: none, plain HTTP.
    #[arg(long, value_name = "FILE")]
    ops_tls_cert: Option<PathBuf>,

    /// Key of --ops-tls-cert, PEM. Default: none.
    #[arg(long, value_name = "FILE")]
    ops_tls_key: Option<PathBuf>,

    /// Keys for the public API, one a line, as KEY or NAME KEY; read again when the file changes.
    ///
    /// A client sends one as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Default: no key is asked for.
    #[arg(long, value_name = "FILE")]
    api_keys_file: Option<PathBuf>,

    /// Tokens for the admin API, one a line, as TOKEN or NAME TOKEN; read again when the file changes.
    ///
    /// Without this and without --admin-token-review the admin API serves only this machine, and only when
    /// --ops-listen is on the loopback. Default: none.
    #[arg(long, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,

    /// Let Kubernetes check the tokens of the admin API (TokenReview).
    #[arg(
        long,
        value_name = "BOOL",
        action = clap::ArgAction::Set,
        value_parser = Switch::read,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    #[serde(skip)]
    admin_token_review: bool,

    /// Service account that may use the admin API; may be given several times, as a variable with commas.
    /// Default: none.
    #[arg(long = "admin-account", value_name = "NAMESPACE:NAME")]
    #[serde(skip)]
    admin_accounts: Vec<ServiceAccount>,

    /// The audience that a service account's token must have been made for. Default: hush-server/NAMESPACE/UID, of
    /// --pod-namespace and --pod-uid.
    ///
    /// Servers with the same audience accept each other's tokens.
    #[arg(long, value_name = "AUDIENCE")]
    #[serde(skip)]
    admin_audience: Option<String>,

    /// Namespace of the pod that this server runs in, with --admin-token-review. Default: none.
    #[arg(long, value_name = "NAMESPACE")]
    #[serde(skip)]
    pod_namespace: Option<String>,

    /// UID of that pod, from the downward API (metadata.uid). Default: none.
    #[arg(long, value_name = "UID")]
    #[serde(skip)]
    pod_uid: Option<String>,

    /// The Kubernetes API server. Default: the one of the cluster that this runs in.
    #[arg(long, value_name = "URL")]
    #[serde(skip)]
    kubernetes_api: Option<ApiServer>,

    /// Certificate authority of the API server, PEM. Default: ca.crt of this pod's service account.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    kubernetes_ca: Option<PathBuf>,

    /// Token for this server's requests to the API server. Default: that of this pod's service account.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    kubernetes_token: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// What [`SecurityOptions`] come to. What is `None` is not used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecuritySettings {
    /// For the public listener.
    pub tls: Option<TlsFiles>,
    /// For the operations listener.
    pub ops_tls: Option<TlsFiles>,
    /// Keys of the public API.
    pub api_keys_file: Option<PathBuf>,
    /// Tokens of the admin API.
    pub admin_token_file: Option<PathBuf>,
    pub admin_token_review: Option<ReviewSettings>,
}

impl SecurityOptions {
    pub(super) fn resolve(&self, env: &Env) -> Result<SecuritySettings, SettingError> {
        let admin_token_review = if self.admin_token_review { Some(self.token_review(env)?) } else { None };

        Ok(SecuritySettings {
            tls: tls_files("tls", self.tls_cert.as_ref(), self.tls_key.as_ref())?,
            ops_tls: tls_files("ops-tls", self.ops_tls_cert.as_ref(), self.ops_tls_key.as_ref())?,
            api_keys_file: self.api_keys_file.clone(),
            admin_token_file: self.admin_token_file.clone(),
            admin_token_review,
        })
    }

    fn token_review(&self, env: &Env) -> Result<ReviewSettings, SettingError> {
        let options = ReviewOptions {
            accounts: self.admin_accounts.clone(),
            audience: self.admin_audience.clone(),
            pod_namespace: self.pod_namespace.clone(),
            pod_uid: self.pod_uid.clone(),
            api: self.kubernetes_api.clone(),
            ca_file: self.kubernetes_ca.clone(),
            token_file: self.kubernetes_token.clone(),
        };

        options.resolve(|name| env.os(name).map(OsStr::to_owned)).map_err(|error| match error {
            ReviewOptionsError::Combination(problem) => SettingError::Combination(problem),
            ReviewOptionsError::Variable { variable, value, problem } => {
                SettingError::Variable { variable, value, problem: problem.to_owned() }
            }
        })
    }
}

/// A certificate and its key, of the options `--PREFIX-cert` and `--PREFIX-key`.
fn tls_files(
    prefix: &str,
    certificate: Option<&PathBuf>,
    key: Option<&PathBuf>,
) -> Result<Option<TlsFiles>, SettingError> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate: certificate.clone(), key: key.clone() })),
        (None, None) => Ok(None),
        _ => Err(SettingError::Combination(format!("--{prefix}-cert and --{prefix}-key need each other"))),
    }
}
