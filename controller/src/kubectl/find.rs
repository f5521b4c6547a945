//! Where the controllers are.

use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind, Object};
use kube::{Api, Client, Config, ResourceExt};
use serde::Deserialize;

use super::args::ReachArgs;
use super::wire::{Controller, Way};
use crate::api_server;

/// What every controller's pod carries, also that of a server with a controller beside it.
pub const CONTROLLER_LABEL: &str = "gpu.hush.dev/controller";
/// Of the port with the page.
pub const PORT_NAME: &str = "controller";
/// `NAME/KEY` of a Secret in the controller's namespace: whoever may read it may act.
pub const TOKEN_ANNOTATION: &str = "gpu.hush.dev/page-token";

/// A name is worth no longer wait.
const USER_PATIENCE: Duration = Duration::from_secs(5);

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
    /// The one that was asked for in words; the context's own is none.
    pub only: Option<String>,
    token_file: Option<std::path::PathBuf>,
    source: Source,
}

enum Source {
    Direct(Controller),
    Cluster {
        client: Client,
        /// `None`: everywhere.
        within: Option<String>,
        /// Where that is not allowed: the namespace that was asked for, and that of the context.
        own: Vec<String>,
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
            let (namespace, only) = (args.namespace.clone(), args.namespace.clone());
            return Ok(Self { namespace, only, token_file, source: Source::Direct(controller) });
        }
        let config = config(args).await?;
        let mut own: Vec<String> = args.namespace.iter().cloned().collect();
        if !own.contains(&config.default_namespace) {
            own.push(config.default_namespace.clone());
        }
        let namespace = own.first().cloned();
        let client = api_server::connect(config, None).context("connecting to the API server")?;
        let source = Source::Cluster { client, within: args.controller_namespace.clone(), own };
        Ok(Self { namespace, only: args.namespace.clone(), token_file, source })
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
                Err(error) if forbidden(&error).is_some() => (
                    within_any(client, own).await,
                    format!("in `{}`, and you may not look elsewhere", own.join("`, `")),
                ),
                found => (found, "in this cluster".to_owned()),
            },
        };
        let pods = pods.map_err(|error| match forbidden(&error) {
            Some(message) => anyhow::anyhow!(
                "looking for controllers: {message}\nask for the Role `NAME-view` of the chart in the namespace where they \
                 are, which lets you list its pods, and name that namespace with --controller-namespace \
                 (docs/kubectl.md, Who may)"
            ),
            None => anyhow::Error::new(error).context("looking for controllers"),
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

    /// Who asks, as the API server knows them, or else as this machine does. Told to controllers, which cannot prove it.
    pub async fn user(&self) -> Option<String> {
        if let Source::Cluster { client, .. } = &self.source {
            let reviews = Api::<SelfSubjectReview>::all(client.clone());
            let (parameters, review) = (PostParams::default(), SelfSubjectReview::default());
            let answer = tokio::time::timeout(USER_PATIENCE, reviews.create(&parameters, &review)).await;
            let user = answer.ok().and_then(Result::ok).and_then(|review| review.status?.user_info?.username);
            if user.is_some() {
                return user;
            }
        }
        std::env::var("USER").ok().filter(|user| !user.is_empty())
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
                "the token of those who may act is in the Secret {namespace}/{name}: ask for the Role `NAME-operate` of \
                 the chart in that namespace, which lets you get it, or give the file that holds the token with \
                 --token-file (docs/kubectl.md, Who may)"
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

/// Those of the first of some namespaces that has any; an error when none may be looked into.
async fn within_any(client: &Client, namespaces: &[String]) -> Result<Vec<Pod>, kube::Error> {
    let (mut looked, mut refused) = (false, None);
    for namespace in namespaces {
        match list(client, Some(namespace)).await {
            Ok(pods) if !pods.is_empty() => return Ok(pods),
            Ok(_) => looked = true,
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        Some(error) if !looked => Err(error),
        _ => Ok(Vec::new()),
    }
}

/// What the API server says to somebody who may not.
fn forbidden(error: &kube::Error) -> Option<&str> {
    match error {
        kube::Error::Api(status) if status.code == 403 => Some(&status.message),
        _ => None,
    }
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
    let Address { namespace, pod, port, token_secret } = address(pod)?;
    let name = format!("{namespace}/{pod}");
    Some(Controller { name, way: Way::Proxied { client: client.clone(), namespace, pod, port }, token_secret })
}

#[derive(Debug, PartialEq, Eq)]
struct Address {
    namespace: String,
    pod: String,
    port: u16,
    token_secret: Option<String>,
}

/// `None`: nobody answers there, or it is no controller in spite of its label.
fn address(pod: &Pod) -> Option<Address> {
    if pod.status.as_ref()?.phase.as_deref() != Some("Running") {
        return None;
    }
    // One beside a server is an init container that goes on.
    let mut ports = pod.spec.containers.iter().chain(&pod.spec.init_containers).flat_map(|container| &container.ports);
    let port = ports.find(|port| port.name.as_deref() == Some(PORT_NAME))?.container_port;
    let namespace = pod.namespace()?;
    let token_secret = pod.annotations().get(TOKEN_ANNOTATION).map(|place| format!("{namespace}/{place}"));
    Some(Address { namespace, pod: pod.name_any(), port, token_secret })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn found(more: Value) -> Option<Address> {
        let mut pod = json!({
            "metadata": {"name": "c-0", "namespace": "hush", "annotations": {TOKEN_ANNOTATION: "hush-page/token"}},
            "spec": {"containers": [{"name": "controller", "ports": [{"name": "controller", "containerPort": 9002}]}]},
            "status": {"phase": "Running"},
        });
        more.as_object().unwrap().iter().for_each(|(key, value)| pod[key] = value.clone());
        address(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn where_a_controller_is() {
        let (namespace, pod) = ("hush".to_owned(), "c-0".to_owned());
        let token_secret = Some("hush/hush-page/token".to_owned());
        assert_eq!(found(json!({})), Some(Address { namespace, pod, port: 9002, token_secret }));
        let beside = json!({
            "containers": [{"name": "server", "ports": [{"name": "ops", "containerPort": 9001}]}, {"name": "other"}],
            "initContainers": [{"name": "controller", "ports": [{"name": "controller", "containerPort": 9102}]}],
        });
        assert_eq!(found(json!({"spec": beside})).map(|address| address.port), Some(9102));
        let bare = json!({"metadata": {"name": "c-0", "namespace": "hush"}});
        assert_eq!(found(bare).map(|address| address.token_secret), Some(None));
        for more in [
            json!({"status": {"phase": "Pending"}}),
            json!({"status": {"phase": "Succeeded"}}),
            json!({"status": null}),
            json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 9002}]}]}}),
        ] {
            assert_eq!(found(more.clone()), None, "{more}");
        }
    }
}
