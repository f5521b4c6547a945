//! The options of token review, and what they come to in a pod.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use hush_contract::admin::ServerAudience;

use crate::review::{ApiServer, ReviewSettings, ServiceAccount};

/// Where Kubernetes puts what a pod needs to speak to its API server.
const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// `--admin-token-review` and the options that go with it. An empty text counts as not given.
#[derive(Clone, Debug, Default)]
pub struct ReviewOptions {
    pub accounts: Vec<ServiceAccount>,
    pub audience: Option<String>,
    pub pod_namespace: Option<String>,
    pub pod_uid: Option<String>,
    /// `None`: the API server of the cluster that the program runs in.
    pub api: Option<ApiServer>,
    /// `None`: the files of the pod's service account.
    pub ca_file: Option<PathBuf>,
    pub token_file: Option<PathBuf>,
}

/// Why the options cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewOptionsError {
    #[error("{0}")]
    Combination(String),
    #[error("the variable {variable} is {value:?}: {problem}")]
    Variable { variable: String, value: String, problem: &'static str },
}

/// The pod that the program runs in.
struct OwnPod {
    uid: String,
    audience: ServerAudience,
}

impl ReviewOptions {
    /// `variable`: the environment; Kubernetes tells a pod there where its API server is.
    ///
    /// # Errors
    /// If an option is missing or does not go with the others.
    pub fn resolve(&self, variable: impl Fn(&str) -> Option<OsString>) -> Result<ReviewSettings, ReviewOptionsError> {
        let pod = self.own_pod()?;
        let in_service_account = |given: &Option<PathBuf>, name: &str| {
            given.clone().unwrap_or_else(|| Path::new(SERVICE_ACCOUNT_DIR).join(name))
        };

        Ok(ReviewSettings {
            api: self.api_server(variable)?,
            ca_file: in_service_account(&self.ca_file, "ca.crt"),
            token_file: in_service_account(&self.token_file, "token"),
            accounts: self.accounts()?,
            audience: self.audience(pod.as_ref())?,
            pod_uid: pod.map(|pod| pod.uid),
            timeout: ReviewSettings::TIMEOUT,
            remember: ReviewSettings::REMEMBER,
            remember_refusal: ReviewSettings::REMEMBER_REFUSAL,
        })
    }

    fn own_pod(&self) -> Result<Option<OwnPod>, ReviewOptionsError> {
        let refused = |problem: &str| combination(&format!("--pod-namespace and --pod-uid: {problem}"));

        match (not_empty(&self.pod_namespace), not_empty(&self.pod_uid)) {
            (None, None) => Ok(None),
            (Some(namespace), Some(uid)) => {
                let audience = ServerAudience::new(namespace, uid).map_err(|error| refused(&error.to_string()))?;
                Ok(Some(OwnPod { uid: uid.to_owned(), audience }))
            }
            _ => Err(refused("they need each other")),
        }
    }

    fn audience(&self, pod: Option<&OwnPod>) -> Result<String, ReviewOptionsError> {
        if let Some(audience) = not_empty(&self.audience) {
            return Ok(audience.to_owned());
        }
        if let Some(pod) = pod {
            return Ok(pod.audience.to_string());
        }
        Err(combination(
            "--admin-token-review needs to know for which server a token must be made: give --pod-namespace and \
             --pod-uid, which the downward API of Kubernetes tells (metadata.namespace, metadata.uid), or an audience of \
             your own with --admin-audience",
        ))
    }

    fn api_server(&self, variable: impl Fn(&str) -> Option<OsString>) -> Result<ApiServer, ReviewOptionsError> {
        if let Some(api) = &self.api {
            return Ok(api.clone());
        }

        let (host_variable, port_variable) = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT");
        let Some(host) = variable(host_variable).map(|host| host.to_string_lossy().into_owned()) else {
            return Err(combination(&format!(
                "--admin-token-review needs an API server: give --kubernetes-api or HUSH_KUBERNETES_API, or run in a pod, \
                 where {host_variable} is set"
            )));
        };

        let refused = |variable: &str, value: &str, problem| ReviewOptionsError::Variable {
            variable: variable.to_owned(),
            value: value.to_owned(),
            problem,
        };
        let port = match variable(port_variable).map(|port| port.to_string_lossy().into_owned()) {
            Some(text) => text.parse().map_err(|_| refused(port_variable, &text, "expected the number of a port"))?,
            None => 443,
        };
        ApiServer::new(&host, port).map_err(|_| refused(host_variable, &host, "expected an address or a host name"))
    }

    fn accounts(&self) -> Result<Vec<ServiceAccount>, ReviewOptionsError> {
        if self.accounts.is_empty() {
            return Err(combination(
                "--admin-token-review needs the service accounts that may command this server: give --admin-account \
                 NAMESPACE:NAME",
            ));
        }
        Ok(self.accounts.clone())
    }
}

fn combination(problem: &str) -> ReviewOptionsError {
    ReviewOptionsError::Combination(problem.to_owned())
}

fn not_empty(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}
