//! Where the controllers are.

use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind, Object};
use kube::{Api, Client, Config, ResourceExt};
use serde::Deserialize;

use super::args::ReachArgs;
use super::wire::{Controller, Way};

/// What every controller's pod carries, also that of a server with a controller beside it.
pub const CONTROLLER_LABEL: &str = "gpu.hush.dev/controller";
/// Of the port with the page.
pub const PORT_NAME: &str = "controller";
/// `NAME/KEY` of a Secret in the controller's namespace: whoever may read it may act.
pub const TOKEN_ANNOTATION: &str = "gpu.hush.dev/page-token";

/// As much of a pod as is read.
type Pod = Object<PodSpec, PodStatus>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default)]
    containers: Vec<Container>,
    #[serde(default)]
    init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Deserialize)]
struct Container {
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    container_port: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct PodStatus {
    phase: Option<String>,
}

/// Where a person looks, and as whom.
pub struct Place {
    /// Of pods and policies; `None`: any.
    pub namespace: Option<String>,
    token_file: Option<std::path::PathBuf>,
    source: Source,
}

enum Source {
    Direct(Controller),
    Cluster {
        client: Client,
        /// `None`: everywhere.
        within: Option<String>,
        /// Where that is not allowed.
        own: String,
    },
}

impl Place {
    pub async fn of(args: &ReachArgs) -> anyhow::Result<Self> {
        let token_file = args.token_file.clone();
        if let Some(url) = &args.controller {
            let url = url.trim_end_matches('/').to_owned();
            if !url.starts_with("http://") && !url.starts_with("https://") {
                bail!("--controller must be a URL such as http://127.0.0.1:9002, and is {url}");
            }
            let client = crate::http::Client::new(None)?;
            let controller = Controller { name: url.clone(), way: Way::Direct { client, url }, token_secret: None };
            return Ok(Self { namespace: args.namespace.clone(), token_file, source: Source::Direct(controller) });
        }
        let config = config(args).await?;
        let own = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).context("connecting to the API server")?;
        let source = Source::Cluster { client, within: args.controller_namespace.clone(), own: own.clone() };
        Ok(Self { namespace: Some(own), token_file, source })
    }

    /// All that there are; at least one.
    pub async fn controllers(&self) -> anyhow::Result<Vec<Controller>> {
        let (client, within, own) = match &self.source {
            Source::Direct(controller) => return Ok(vec![controller.clone()]),
            Source::Cluster { client, within, own } => (client, within, own),
        };
        let (pods, looked) = match within {
            Some(namespace) => (list(client, Some(namespace)).await, format!("in the namespace `{namespace}`")),
            None => match list(client, None).await {
                Err(kube::Error::Api(status)) if status.code == 403 => {
                    (list(client, Some(own)).await, format!("in the namespace `{own}`, and you may not look elsewhere"))
                }
                found => (found, "in this cluster".to_owned()),
            },
        };
        let pods = pods.map_err(|error| match error {
            kube::Error::Api(status) if status.code == 403 => anyhow::anyhow!(
                "looking for controllers: {}\nask for the verb `list` on `pods` where they are, and name that namespace \
                 with --controller-namespace (docs/kubectl.md has the role)",
                status.message
            ),
            error => anyhow::Error::new(error).context("looking for controllers"),
        })?;
        let controllers: Vec<Controller> = pods.iter().filter_map(|pod| controller(client, pod)).collect();
        if controllers.is_empty() {
            bail!(
                "there is no controller {looked}: no running pod has the label {CONTROLLER_LABEL}=true and a port with the \
                 name `{PORT_NAME}`\nname their namespace with --controller-namespace, or one that is no pod with \
                 --controller URL"
            );
        }
        Ok(controllers)
    }

    /// What a controller asks of those who act.
    pub async fn token(&self, controller: &Controller) -> anyhow::Result<String> {
        if let Some(path) = &self.token_file {
            let text = std::fs::read_to_string(path).with_context(|| format!("--token-file {}", path.display()))?;
            return Ok(text.trim().to_owned());
        }
        let (Source::Cluster { client, .. }, Some(place)) = (&self.source, &controller.token_secret) else {
            bail!("{} asks for a token: give the file that holds it with --token-file", controller.name);
        };
        let mut parts = place.splitn(3, '/');
        let (Some(namespace), Some(name), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            bail!("{}: the annotation {TOKEN_ANNOTATION} must be NAME/KEY of a Secret", controller.name);
        };
        let secret = Api::<Secret>::namespaced(client.clone(), namespace).get(name).await.with_context(|| {
            format!(
                "the token of those who may act is in the Secret {namespace}/{name}: ask for the verb `get` on it, or give \
                 the file that holds the token with --token-file"
            )
        })?;
        let value = secret.data.unwrap_or_default().remove(key);
        let value = value.with_context(|| format!("the Secret {namespace}/{name} has no key `{key}`"))?;
        Ok(String::from_utf8(value.0).context("the token is no text")?.trim().to_owned())
    }
}

async fn config(args: &ReachArgs) -> anyhow::Result<Config> {
    let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
    let config = match &args.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("--kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &options).await
        }
        None => Config::from_kubeconfig(&options).await,
    };
    let mut config = config.context("the kubeconfig; --controller URL needs none")?;
    // A person who waits wants to know.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(10));
    Ok(config)
}

async fn list(client: &Client, namespace: Option<&str>) -> Result<Vec<Pod>, kube::Error> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"));
    let api: Api<Pod> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    Ok(api.list(&ListParams::default().labels(&format!("{CONTROLLER_LABEL}=true"))).await?.items)
}

fn controller(client: &Client, pod: &Pod) -> Option<Controller> {
    if pod.status.as_ref()?.phase.as_deref() != Some("Running") {
        return None;
    }
    let mut ports = pod.spec.containers.iter().chain(&pod.spec.init_containers).flat_map(|container| &container.ports);
    let port = ports.find(|port| port.name.as_deref() == Some(PORT_NAME))?.container_port;
    let (namespace, pod_name) = (pod.namespace()?, pod.name_any());
    let token_secret = pod.annotations().get(TOKEN_ANNOTATION).map(|place| format!("{namespace}/{place}"));
    let name = format!("{namespace}/{pod_name}");
    Some(Controller {
        name,
        way: Way::Proxied { client: client.clone(), namespace, pod: pod_name, port },
        token_secret,
    })
}
