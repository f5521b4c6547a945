//! Who may use which listener, and with which certificates.

use std::path::PathBuf;

use clap::Args;
use hush_contract::admin::ServerAudience;
use serde::Serialize;

use super::SettingError;
use crate::auth::{ApiServer, ReviewSettings, ServiceAccount};
use crate::cli::command_line::variable;
use crate::cli::env::Env;
use crate::cli::values::Switch;

/// Where Kubernetes puts what a pod needs to speak to its API server.
const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

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

/// The pod that the server runs in.
struct OwnPod {
    uid: String,
    audience: ServerAudience,
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
        let pod = self.server_pod()?;
        let in_service_account = |given: &Option<PathBuf>, name: &str| {
            given.clone().unwrap_or_else(|| PathBuf::from(SERVICE_ACCOUNT_DIR).join(name))
        };

        Ok(ReviewSettings {
            api: self.api_server(env)?,
            ca_file: in_service_account(&self.kubernetes_ca, "ca.crt"),
            token_file: in_service_account(&self.kubernetes_token, "token"),
            accounts: self.accounts()?,
            audience: self.audience(pod.as_ref())?,
            pod_uid: pod.map(|pod| pod.uid),
            timeout: ReviewSettings::TIMEOUT,
            remember: ReviewSettings::REMEMBER,
            remember_refusal: ReviewSettings::REMEMBER_REFUSAL,
        })
    }

    fn server_pod(&self) -> Result<Option<OwnPod>, SettingError> {
        let refused = |problem: &str| SettingError::Combination(format!("--pod-namespace and --pod-uid: {problem}"));

        match (not_empty(&self.pod_namespace), not_empty(&self.pod_uid)) {
            (None, None) => Ok(None),
            (Some(namespace), Some(uid)) => {
                let audience = ServerAudience::new(namespace, uid).map_err(|error| refused(&error.to_string()))?;
                Ok(Some(OwnPod { uid: uid.to_owned(), audience }))
            }
            _ => Err(refused("they need each other")),
        }
    }

    fn audience(&self, pod: Option<&OwnPod>) -> Result<String, SettingError> {
        if let Some(audience) = not_empty(&self.admin_audience) {
            return Ok(audience.to_owned());
        }
        if let Some(pod) = pod {
            return Ok(pod.audience.to_string());
        }
        let problem = "--admin-token-review needs to know for which server a token must be made: give --pod-namespace \
                       and --pod-uid, which the downward API of Kubernetes tells (metadata.namespace, metadata.uid), or \
                       an audience of your own with --admin-audience";
        Err(SettingError::Combination(problem.to_owned()))
    }

    fn api_server(&self, env: &Env) -> Result<ApiServer, SettingError> {
        if let Some(api) = &self.kubernetes_api {
            return Ok(api.clone());
        }

        let (host_variable, port_variable) = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT");
        let Some(host) = env.text(host_variable)? else {
            return Err(SettingError::Combination(format!(
                "--admin-token-review needs an API server: give --kubernetes-api or {}, or run in a pod, where \
                 {host_variable} is set",
                variable("kubernetes-api")
            )));
        };

        let refused = |variable: &str, value: &str, problem: &str| SettingError::Variable {
            variable: variable.to_owned(),
            value: value.to_owned(),
            problem: problem.to_owned(),
        };
        let port = match env.text(port_variable)? {
            Some(text) => text.parse().map_err(|_| refused(port_variable, text, "expected the number of a port"))?,
            None => 443,
        };
        ApiServer::new(host, port).map_err(|_| refused(host_variable, host, "expected an address or a host name"))
    }

    fn accounts(&self) -> Result<Vec<ServiceAccount>, SettingError> {
        if self.admin_accounts.is_empty() {
            let problem = "--admin-token-review needs the service accounts that may command this server: give \
                           --admin-account NAMESPACE:NAME";
            return Err(SettingError::Combination(problem.to_owned()));
        }
        Ok(self.admin_accounts.clone())
    }
}

fn not_empty(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
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
