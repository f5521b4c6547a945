//! Finds the controllers: at a given URL, or as pods of a cluster.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};

use super::args::ConnectionArgs;
use super::client::{ControllerEndpoint, ControllerRoute};
use crate::api_server;

/// The label of every controller's pod, also of a server's pod with a controller beside the server.
pub const CONTROLLER_LABEL: &str = "gpu.hush.dev/controller";
/// The name of the container port that serves the page.
pub const PORT_NAME: &str = "controller";
/// `NAME/KEY` of the Secret with the page token, in the controller's namespace. Read access to it allows commands.
pub const TOKEN_ANNOTATION: &str = "gpu.hush.dev/page-token";

/// The user's name is only shown, so that a command does not wait for it any longer.
const USER_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the controllers are, and with which namespace and token requests are made.
pub struct PluginContext {
    /// The namespace of pods and policies; `None`: any.
    pub namespace: Option<String>,
    /// The namespace of the option `--namespace`; that of the kubeconfig's context does not count here.
    pub requested_namespace: Option<String>,
    token_file: Option<PathBuf>,
    source: ControllerSource,
}

enum ControllerSource {
    Direct(ControllerEndpoint),
    Cluster {
        client: Client,
        /// The option `--controller-namespace`; `None`: all namespaces.
        within: Option<String>,
        /// Searched where listing all namespaces is not allowed: the namespace of `--namespace`, and that of the context.
        own: Vec<String>,
    },
}

impl PluginContext {
    pub async fn new(args: &ConnectionArgs) -> anyhow::Result<Self> {
        let token_file = args.token_file.clone();
        let requested_namespace = args.namespace.clone();

        if let Some(url) = &args.controller {
            let controller = direct_controller(url)?;
            return Ok(Self {
                namespace: requested_namespace.clone(),
                requested_namespace,
                token_file,
                source: ControllerSource::Direct(controller),
            });
        }

        let config = load_config(args).await?;
        let mut own: Vec<String> = args.namespace.iter().cloned().collect();
        if !own.contains(&config.default_namespace) {
            own.push(config.default_namespace.clone());
        }
        let namespace = own.first().cloned();

        let client = api_server::connect(config, None).context("connecting to the API server")?;
        let source = ControllerSource::Cluster { client, within: args.controller_namespace.clone(), own };
        Ok(Self { namespace, requested_namespace, token_file, source })
    }

    /// All controllers; an error when there is none.
    pub async fn controllers(&self) -> anyhow::Result<Vec<ControllerEndpoint>> {
        let (client, within, own) = match &self.source {
            ControllerSource::Direct(controller) => return Ok(vec![controller.clone()]),
            ControllerSource::Cluster { client, within, own } => (client, within, own),
        };

        let (pods, searched) = match within {
            Some(namespace) => (list_pods(client, Some(namespace)).await, format!("in the namespace `{namespace}`")),
            None => match list_pods(client, None).await {
                Err(error) if forbidden_message(&error).is_some() => (
                    list_pods_of_first(client, own).await,
                    format!("in `{}`, and you may not look elsewhere", own.join("`, `")),
                ),
                pods => (pods, "in this cluster".to_owned()),
            },
        };
        let pods = pods.map_err(|error| match forbidden_message(&error) {
            Some(message) => anyhow::anyhow!(
                "looking for controllers: {message}\nask for the Role `NAME-view` of the chart in the namespace where they \
                 are, which lets you list its pods, and name that namespace with --controller-namespace \
                 (docs/kubectl.md, Who may)"
            ),
            None => anyhow::Error::new(error).context("looking for controllers"),
        })?;

        let controllers: Vec<ControllerEndpoint> =
            pods.iter().filter_map(|pod| proxied_controller(client, pod)).collect();
        if controllers.is_empty() {
            bail!(
                "there is no controller {searched}: no running pod has the label {CONTROLLER_LABEL}=true and a port with the \
                 name `{PORT_NAME}`\nname their namespace with --controller-namespace, or one that is no pod with \
                 --controller URL"
            );
        }
        Ok(controllers)
    }

    /// The name of the user as the API server knows it, or else as this machine does. Controllers are given it, and cannot
    /// verify it.
    pub async fn user(&self) -> Option<String> {
        if let ControllerSource::Cluster { client, .. } = &self.source {
            let reviews = Api::<SelfSubjectReview>::all(client.clone());
            let (parameters, review) = (PostParams::default(), SelfSubjectReview::default());
            let response = tokio::time::timeout(USER_TIMEOUT, reviews.create(&parameters, &review)).await;

            let user = response.ok().and_then(Result::ok).and_then(|review| review.status?.user_info?.username);
            if user.is_some() {
                return user;
            }
        }
        std::env::var("USER").ok().filter(|user| !user.is_empty())
    }

    /// The page token of the controller: from `--token-file`, or from the Secret that the controller's pod names.
    pub async fn token(&self, controller: &ControllerEndpoint) -> anyhow::Result<String> {
        if let Some(path) = &self.token_file {
            let text = std::fs::read_to_string(path).with_context(|| format!("--token-file {}", path.display()))?;
            return Ok(text.trim().to_owned());
        }

        let (ControllerSource::Cluster { client, .. }, Some(secret)) = (&self.source, &controller.token_secret) else {
            bail!("{} asks for a token: give the file that holds it with --token-file", controller.name);
        };
        let mut parts = secret.splitn(3, '/');
        let (Some(namespace), Some(name), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            bail!("{}: the annotation {TOKEN_ANNOTATION} must be NAME/KEY of a Secret", controller.name);
        };
        read_secret(client, namespace, name, key).await
    }
}

async fn read_secret(client: &Client, namespace: &str, name: &str, key: &str) -> anyhow::Result<String> {
    let secret = Api::<Secret>::namespaced(client.clone(), namespace).get(name).await.with_context(|| {
        format!(
            "the controller's page token is in the Secret {namespace}/{name}: ask for the Role `NAME-operate` of the chart \
             in that namespace, which lets you get it, or give the file that holds the token with --token-file \
             (docs/kubectl.md, Who may)"
        )
    })?;

    let value = secret.data.unwrap_or_default().remove(key);
    let value = value.with_context(|| format!("the Secret {namespace}/{name} has no key `{key}`"))?;
    Ok(String::from_utf8(value.0).context("the token is not UTF-8")?.trim().to_owned())
}

fn direct_controller(url: &str) -> anyhow::Result<ControllerEndpoint> {
    let url = url.trim_end_matches('/').to_owned();
    if !url.starts_with("http://") && !url.starts_with("https://") {
        bail!("--controller must be a URL such as http://127.0.0.1:9002, and is {url}");
    }

    let client = crate::http::HttpClient::new(None)?;
    Ok(ControllerEndpoint { name: url.clone(), route: ControllerRoute::Direct { client, url }, token_secret: None })
}

async fn load_config(args: &ConnectionArgs) -> anyhow::Result<Config> {
    let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    let config = match &args.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &options).await
        }
        None => Config::from_kubeconfig(&options).await,
    };
    let mut config = config.context("the kubeconfig; --controller URL needs none")?;

    // The user sees a failure at once; kube's own retries would hide it for a while.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Ok(config)
}

/// The controllers' pods of the first namespace that has any; an error when none of the namespaces may be listed.
async fn list_pods_of_first(client: &Client, namespaces: &[String]) -> Result<Vec<Pod>, kube::Error> {
    let (mut listed, mut refused) = (false, None);
    for namespace in namespaces {
        match list_pods(client, Some(namespace)).await {
            Ok(pods) if !pods.is_empty() => return Ok(pods),
            Ok(_) => listed = true,
            Err(error) => refused = Some(error),
        }
    }

    match refused {
        Some(error) if !listed => Err(error),
        _ => Ok(Vec::new()),
    }
}

/// The message of an API server that denies access; `None`: the error is another one.
fn forbidden_message(error: &kube::Error) -> Option<&str> {
    match error {
        kube::Error::Api(status) if status.code == 403 => Some(&status.message),
        _ => None,
    }
}

/// The pods with the controller's label; `None`: of all namespaces.
async fn list_pods(client: &Client, namespace: Option<&str>) -> Result<Vec<Pod>, kube::Error> {
    let api: Api<Pod> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    Ok(api.list(&ListParams::default().labels(&format!("{CONTROLLER_LABEL}=true"))).await?.items)
}

fn proxied_controller(client: &Client, pod: &Pod) -> Option<ControllerEndpoint> {
    let ControllerPodAddress { namespace, pod, port, token_secret } = address(pod)?;
    let name = format!("{namespace}/{pod}");
    let route = ControllerRoute::Proxied { client: client.clone(), namespace, pod, port };

    Some(ControllerEndpoint { name, route, token_secret })
}

#[derive(Debug, PartialEq, Eq)]
struct ControllerPodAddress {
    namespace: String,
    pod: String,
    port: u16,
    token_secret: Option<String>,
}

/// `None`: the pod does not run, or it has no port with the page in spite of its label.
fn address(pod: &Pod) -> Option<ControllerPodAddress> {
    if pod.status.as_ref()?.phase.as_deref() != Some("Running") {
        return None;
    }

    let spec = pod.spec.as_ref()?;
    // A controller beside a server is an init container that keeps running.
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let port = ports.find(|port| port.name.as_deref() == Some(PORT_NAME))?.container_port;

    let namespace = pod.namespace()?;
    let token_secret = pod.annotations().get(TOKEN_ANNOTATION).map(|secret| format!("{namespace}/{secret}"));
    Some(ControllerPodAddress { namespace, pod: pod.name_any(), port: u16::try_from(port).ok()?, token_secret })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn address_with(fields: Value) -> Option<ControllerPodAddress> {
        let mut pod = json!({
            "metadata": {"name": "c-0", "namespace": "hush", "annotations": {TOKEN_ANNOTATION: "hush-page/token"}},
            "spec": {"containers": [{"name": "controller", "ports": [{"name": "controller", "containerPort": 9002}]}]},
            "status": {"phase": "Running"},
        });
        fields.as_object().unwrap().iter().for_each(|(key, value)| pod[key] = value.clone());

        address(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn the_address_of_a_controller_is_its_port_with_the_name() {
        let (namespace, pod) = ("hush".to_owned(), "c-0".to_owned());
        let token_secret = Some("hush/hush-page/token".to_owned());
        let expected = ControllerPodAddress { namespace, pod, port: 9002, token_secret };
        assert_eq!(address_with(json!({})), Some(expected));

        let beside = json!({
            "containers": [{"name": "server", "ports": [{"name": "ops", "containerPort": 9001}]}, {"name": "other"}],
            "initContainers": [{"name": "controller", "ports": [{"name": "controller", "containerPort": 9102}]}],
        });
        assert_eq!(address_with(json!({"spec": beside})).map(|address| address.port), Some(9102));

        let without_annotation = json!({"metadata": {"name": "c-0", "namespace": "hush"}});
        assert_eq!(address_with(without_annotation).map(|address| address.token_secret), Some(None));

        for fields in [
            json!({"status": {"phase": "Pending"}}),
            json!({"status": {"phase": "Succeeded"}}),
            json!({"status": null}),
            json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 9002}]}]}}),
        ] {
            assert_eq!(address_with(fields.clone()), None, "{fields}");
        }
    }
}
