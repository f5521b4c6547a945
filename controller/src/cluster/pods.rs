//! Pods in which a server runs.

use hush_contract::admin::ServerAudience;
use hush_core::{Labels, ServerName};
use hush_log::printable;
use kube::core::{ApiResource, DeserializeGuard, GroupVersionKind, Object};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use rustls::pki_types::DnsName;
use serde::Deserialize;

use super::mirror::Mirror;
use crate::observe::{BaseUrl, SERVER_LABEL, Target};

/// Names the operations port, or gives its number, where no port of the pod is called [`PORT_NAME`].
pub const PORT_ANNOTATION: &str = "gpu.hush.dev/ops-port";
pub const PORT_NAME: &str = "ops";
/// `https`: the operations port speaks TLS; `http` is the same as nothing.
pub const SCHEME_ANNOTATION: &str = "gpu.hush.dev/ops-scheme";

/// As much of a pod as is read.
pub type Pod = Object<PodSpec, PodStatus>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    node_name: Option<String>,
    #[serde(default)]
    containers: Vec<Container>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Container {
    #[serde(default)]
    ports: Vec<Port>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    name: Option<String>,
    container_port: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    phase: Option<String>,
}

/// What is kept of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerPod {
    /// Tells the pod from another of the same name.
    pub uid: String,
    /// `Err`: why there is nothing to be observed.
    pub target: Result<Target, String>,
}

/// All servers, or those on one node.
pub fn mirror(client: &Client, node: Option<&str>) -> Mirror<DeserializeGuard<Pod>, ServerName, ServerPod> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"));
    let mut config = watcher::Config::default().labels(&format!("{SERVER_LABEL}=true"));
    if let Some(node) = node {
        config = config.fields(&format!("spec.nodeName={node}"));
    }
    Mirror { part: "pods", what: "pods", api: Api::all_with(client.clone(), &resource), config, keep }
}

/// What is wrong with a pod, for the log.
const PROBLEM_MAX_CHARS: usize = 300;

fn keep(pod: &DeserializeGuard<Pod>) -> (ServerName, ServerPod) {
    let server = ServerName(format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()));
    let target = match &pod.0 {
        Ok(pod) => target(pod),
        Err(error) => Err(format!("the pod cannot be read: {error}")),
    };
    // It repeats what the pod's owner wrote.
    let target = target.map_err(|problem| printable(&problem, PROBLEM_MAX_CHARS));
    (server, ServerPod { uid: pod.uid().unwrap_or_default(), target })
}

/// Where its server is observed.
pub fn target(pod: &Pod) -> Result<Target, String> {
    let status = pod.status.as_ref();
    if matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed")) {
        return Err("the pod has ended".to_owned());
    }
    let ip = status.and_then(|status| status.pod_ip.as_deref()).filter(|ip| !ip.is_empty());
    let ip = ip.ok_or("the pod has no address yet")?;
    let port = port(pod)?;
    let authority = if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
    let labels: Labels = pod.labels().clone();
    let url = match scheme(pod)? {
        Scheme::Http => BaseUrl::http(authority),
        Scheme::Https => BaseUrl::https_as(authority, certificate_name(&pod.namespace().unwrap_or_default())?),
    };
    let audience = ServerAudience::new(&pod.namespace().unwrap_or_default(), &pod.uid().unwrap_or_default());
    let audience = audience.map_err(|error| format!("no token can be made for it: {error}"))?;
    Ok(Target { url, labels, node: pod.spec.node_name.clone().unwrap_or_default(), audience: Some(audience) })
}

enum Scheme {
    Http,
    Https,
}

fn scheme(pod: &Pod) -> Result<Scheme, String> {
    match pod.annotations().get(SCHEME_ANNOTATION).map(String::as_str) {
        None | Some("http") => Ok(Scheme::Http),
        Some("https") => Ok(Scheme::Https),
        Some(other) => Err(format!("the annotation `{SCHEME_ANNOTATION}` must be `http` or `https`, and is {other:?}")),
    }
}

/// The name that certificates of the servers in a namespace must have. It is made of what the API server says of the pod
/// and of nothing that the pod says of itself, so that a certificate of one namespace is worth nothing in another.
fn certificate_name(namespace: &str) -> Result<DnsName<'static>, String> {
    let name = format!("hush-server.{namespace}.svc");
    DnsName::try_from(name).map_err(|error| format!("the namespace `{namespace}` is no part of a DNS name: {error}"))
}

fn port(pod: &Pod) -> Result<u16, String> {
    let named = |name: &str| {
        let mut ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
        ports.find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port)
    };
    match pod.annotations().get(PORT_ANNOTATION) {
        Some(asked) => asked.parse().ok().filter(|port| *port > 0).or_else(|| named(asked)).ok_or_else(|| {
            format!("the annotation `{PORT_ANNOTATION}` must be a port's number or name, and is `{asked}`")
        }),
        None => named(PORT_NAME).ok_or_else(|| {
            format!("the pod has no port with the name `{PORT_NAME}`, and no annotation `{PORT_ANNOTATION}`")
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(annotations: Value, ports: Value, status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "w", "namespace": "a", "uid": "0b8a-1", "labels": {"app": "whisper"}, "annotations": annotations},
            "spec": {"nodeName": "n1", "containers": [{"name": "other"}, {"name": "server", "image": "x", "ports": ports}]},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn where_a_server_is_observed() {
        let running = json!({"phase": "Running", "podIP": "10.1.2.3"});
        let ops = json!([{"name": "http", "containerPort": 9000}, {"name": "ops", "containerPort": 9001}]);
        let url = |annotations: Value, ports: &Value, status: &Value| {
            target(&pod(annotations, ports.clone(), status.clone())).map(|target| target.url.to_string())
        };
        assert_eq!(url(json!({}), &ops, &running).unwrap(), "http://10.1.2.3:9001");
        assert_eq!(url(json!({PORT_ANNOTATION: "9100"}), &ops, &running).unwrap(), "http://10.1.2.3:9100");
        assert_eq!(url(json!({PORT_ANNOTATION: "http"}), &ops, &running).unwrap(), "http://10.1.2.3:9000");
        let audience = target(&pod(json!({}), ops.clone(), running.clone())).unwrap().audience;
        assert_eq!(audience.unwrap().as_str(), "hush-server/a/0b8a-1");
        let six = json!({"phase": "Running", "podIP": "fd00::1"});
        assert_eq!(url(json!({}), &ops, &six).unwrap(), "http://[fd00::1]:9001");
        assert_eq!(url(json!({SCHEME_ANNOTATION: "http"}), &ops, &six).unwrap(), "http://[fd00::1]:9001");
        assert_eq!(url(json!({SCHEME_ANNOTATION: "https"}), &ops, &six).unwrap(), "https://[fd00::1]:9001");
        for (annotations, ports, status, why) in [
            (json!({}), json!([]), running.clone(), "no port with the name `ops`"),
            (json!({PORT_ANNOTATION: "0"}), ops.clone(), running.clone(), "must be a port's number or name"),
            (json!({PORT_ANNOTATION: "metrics"}), ops.clone(), running.clone(), "and is `metrics`"),
            (json!({SCHEME_ANNOTATION: "HTTPS"}), ops.clone(), running, "must be `http` or `https`, and is \"HTTPS\""),
            (json!({}), ops.clone(), json!({"phase": "Pending"}), "no address yet"),
            (json!({}), ops, json!({"phase": "Failed", "podIP": "10.1.2.3"}), "has ended"),
        ] {
            let error = url(annotations, &ports, &status).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_certificate_has_the_name_of_the_namespace_whatever_the_pod_says() {
        let annotations = json!({SCHEME_ANNOTATION: "https", "gpu.hush.dev/ops-server-name": "hush-server.b.svc"});
        let running = json!({"phase": "Running", "podIP": "10.1.2.3"});
        let target = target(&pod(annotations, json!([{"name": "ops", "containerPort": 9001}]), running)).unwrap();
        let name = |url: &BaseUrl| url.join("/metrics").unwrap().certificate_name.unwrap();
        assert_eq!(name(&target.url).as_ref(), "hush-server.a.svc");
        assert_eq!(name(&target.url.on_loopback()).as_ref(), "hush-server.a.svc", "also for a controller beside it");
        assert!(certificate_name("").is_err());
    }
}
