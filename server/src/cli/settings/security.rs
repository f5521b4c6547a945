//! Who gets in, and over what.

use std::path::PathBuf;

use super::super::args::SecurityArgs;
use super::sources::Sources;
use super::{SettingError, variable};
use crate::auth::{Account, ApiServer, ReviewSettings};
use hush_contract::admin::ServerAudience;

/// Where Kubernetes puts what a pod needs to speak to its API server.
const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// `None` throughout: not wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecuritySettings {
    /// Of the public listener.
    pub tls: Option<TlsFiles>,
    /// Of the operations listener.
    pub ops_tls: Option<TlsFiles>,
    /// Who may use the public API.
    pub api_keys_file: Option<PathBuf>,
    /// Who may use the admin API.
    pub admin_token_file: Option<PathBuf>,
    pub admin_token_review: Option<ReviewSettings>,
}

/// The pod that the server runs in.
struct Pod {
    uid: String,
    audience: ServerAudience,
}

impl Sources<'_> {
    pub fn security(&self, args: SecurityArgs) -> Result<SecuritySettings, SettingError> {
        Ok(SecuritySettings {
            tls: self.tls("tls", args.tls_cert, args.tls_key)?,
            ops_tls: self.tls("ops-tls", args.ops_tls_cert, args.ops_tls_key)?,
            api_keys_file: self.path("api-keys-file", args.api_keys_file),
            admin_token_file: self.path("admin-token-file", args.admin_token_file),
            admin_token_review: match self.switch("admin-token-review", args.admin_token_review)? {
                Some(true) => {
                    let pod = self.pod(args.pod_namespace, args.pod_uid)?;
                    Some(ReviewSettings {
                        api: self.api_server(args.kubernetes_api)?,
                        ca_file: self.service_account("kubernetes-ca", args.kubernetes_ca, "ca.crt"),
                        token_file: self.service_account("kubernetes-token", args.kubernetes_token, "token"),
                        accounts: self.accounts(args.admin_account)?,
                        audience: self.audience(args.admin_audience, pod.as_ref())?,
                        pod_uid: pod.map(|pod| pod.uid),
                        timeout: ReviewSettings::TIMEOUT,
                        remember: ReviewSettings::REMEMBER,
                        remember_refusal: ReviewSettings::REMEMBER_REFUSAL,
                    })
                }
                _ => None,
            },
        })
    }

    fn pod(&self, namespace: Option<String>, uid: Option<String>) -> Result<Option<Pod>, SettingError> {
        let combination =
            |problem: &str| SettingError::Combination(format!("--pod-namespace and --pod-uid: {problem}"));
        match (self.text("pod-namespace", namespace)?, self.text("pod-uid", uid)?) {
            (None, None) => Ok(None),
            (Some(namespace), Some(uid)) => {
                let audience =
                    ServerAudience::new(&namespace, &uid).map_err(|error| combination(&error.to_string()))?;
                Ok(Some(Pod { uid, audience }))
            }
            _ => Err(combination("they need each other")),
        }
    }

    fn audience(&self, flag: Option<String>, pod: Option<&Pod>) -> Result<String, SettingError> {
        if let Some(audience) = self.text("admin-audience", flag)? {
            return Ok(audience);
        }
        pod.map(|pod| pod.audience.to_string()).ok_or_else(|| {
            let problem = "--admin-token-review needs to know for which server a token must be made: give --pod-namespace \
                           and --pod-uid, which the downward API of Kubernetes tells (metadata.namespace, metadata.uid), \
                           or an audience of your own with --admin-audience";
            SettingError::Combination(problem.to_owned())
        })
    }

    fn tls(&self, prefix: &str, cert: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<TlsFiles>, SettingError> {
        let (cert_option, key_option) = (format!("{prefix}-cert"), format!("{prefix}-key"));
        match (self.path(&cert_option, cert), self.path(&key_option, key)) {
            (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key })),
            (None, None) => Ok(None),
            _ => Err(SettingError::Combination(format!("--{cert_option} and --{key_option} need each other"))),
        }
    }

    fn api_server(&self, flag: Option<ApiServer>) -> Result<ApiServer, SettingError> {
        if let Some(api) = self.parsed("kubernetes-api", flag)? {
            return Ok(api);
        }
        let (host, port) = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT");
        let Some(host) = self.env.text(host)? else {
            let problem = format!(
                "--admin-token-review needs an API server: give --kubernetes-api or {}, or run in a pod, where {host} \
                 is set",
                variable("kubernetes-api")
            );
            return Err(SettingError::Combination(problem));
        };
        let bad = |variable: &str, value: &str, problem: &str| SettingError::Variable {
            variable: variable.to_owned(),
            value: value.to_owned(),
            problem: problem.to_owned(),
        };
        let number = match self.env.text(port)? {
            Some(text) => text.parse().map_err(|_| bad(port, text, "expected the number of a port"))?,
            None => 443,
        };
        ApiServer::new(host, number)
            .map_err(|_| bad("KUBERNETES_SERVICE_HOST", host, "expected an address or a host name"))
    }

    fn service_account(&self, option: &str, flag: Option<PathBuf>, name: &str) -> PathBuf {
        self.path(option, flag).unwrap_or_else(|| PathBuf::from(SERVICE_ACCOUNT_DIR).join(name))
    }

    fn accounts(&self, flags: Vec<Account>) -> Result<Vec<Account>, SettingError> {
        let accounts = self.list("admin-account", flags)?;
        if accounts.is_empty() {
            let problem = "--admin-token-review needs the service accounts that may command this server: give \
                           --admin-account NAMESPACE:NAME";
            return Err(SettingError::Combination(problem.to_owned()));
        }
        Ok(accounts)
    }
}
