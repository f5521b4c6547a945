//! The pods in which servers run.

use hush_contract::admin::{InvalidValue, ServerAudience};
use hush_core::ServerName;
use hush_log::printable;
use kube::core::error_boundary::InvalidObject;
use kube::core::{ApiResource, DeserializeGuard, GroupVersionKind, Object};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use rustls::pki_types::{DnsName, InvalidDnsNameError};
use serde::Deserialize;

use super::mirror::Mirror;
use crate::observe::{BaseUrl, SERVER_LABEL, ScrapeTarget};

/// The number or the name of the operations port, where no port of the pod is called [`PORT_NAME`].
pub const PORT_ANNOTATION: &str = "gpu.hush.dev/ops-port";
pub const PORT_NAME: &str = "ops";
/// `https`: the operations port speaks TLS; `http` is the default.
pub const SCHEME_ANNOTATION: &str = "gpu.hush.dev/ops-scheme";

/// The longest problem of a pod that is logged.
const PROBLEM_MAX_CHARS: usize = 300;

/// The part of a pod that is read.
pub type ObservedPod = Object<ObservedPodSpec, ObservedPodStatus>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedPodSpec {
    node_name: Option<String>,
    #[serde(default)]
    containers: Vec<ObservedContainer>,
    /// Containers that end before the others start, and sidecars, which run beside them.
    #[serde(default)]
    init_containers: Vec<ObservedContainer>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedContainer {
    /// `Always` makes an init container a sidecar.
    #[serde(default)]
    restart_policy: Option<String>,
    #[serde(default)]
    ports: Vec<ObservedPort>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedPort {
    name: Option<String>,
    container_port: u16,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObservedPodStatus {
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    phase: Option<String>,
}

/// The part of a pod that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirroredPod {
    /// Distinguishes the pod from another of the same name.
    pub uid: String,
    /// `Err`: why the pod cannot be observed.
    pub target: Result<ScrapeTarget, String>,
}

/// Why a pod cannot be observed.
#[derive(Debug, thiserror::Error)]
pub enum PodProblem {
    #[error("the pod cannot be read: {0}")]
    Unreadable(Box<InvalidObject>),
    #[error("the pod has ended")]
    Ended,
    #[error("the pod has no address yet")]
    NoAddress,
    #[error("the annotation `{PORT_ANNOTATION}` must be a port's number or name, and is `{0}`")]
    PortAnnotation(String),
    #[error("the pod has no port with the name `{PORT_NAME}`, and no annotation `{PORT_ANNOTATION}`")]
    NoPort,
    #[error("the annotation `{SCHEME_ANNOTATION}` must be `http` or `https`, and is {0:?}")]
    SchemeAnnotation(String),
    #[error("the namespace `{namespace}` cannot be part of a DNS name: {error}")]
    Namespace { namespace: String, error: InvalidDnsNameError },
    #[error("no token can be made for it: {0}")]
    Audience(InvalidValue),
}

/// Mirrors the pods of all servers, or of those on one node.
pub fn mirror(client: &Client, node: Option<&str>) -> Mirror<DeserializeGuard<ObservedPod>, ServerName, MirroredPod> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "Pod"));
    let mut config = watcher::Config::default().labels(&format!("{SERVER_LABEL}=true"));
    if let Some(node) = node {
        config = config.fields(&format!("spec.nodeName={node}"));
    }

    Mirror { part: "pods", what: "pods", api: Api::all_with(client.clone(), &resource), config, keep }
}

fn keep(pod: &DeserializeGuard<ObservedPod>) -> (ServerName, MirroredPod) {
    let server = ServerName(format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()));
    let target = match &pod.0 {
        Ok(pod) => target(pod),
        Err(error) => Err(PodProblem::Unreadable(Box::new(error.clone()))),
    };

    // The problem repeats text of the pod's owner.
    let target = target.map_err(|problem| printable(&problem.to_string(), PROBLEM_MAX_CHARS));
    (server, MirroredPod { uid: pod.uid().unwrap_or_default(), target })
}

/// The target from which the pod's server is scraped.
pub fn target(pod: &ObservedPod) -> Result<ScrapeTarget, PodProblem> {
    let status = pod.status.as_ref();
    if matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed")) {
        return Err(PodProblem::Ended);
    }

    let address = status.and_then(|status| status.pod_ip.as_deref()).filter(|ip| !ip.is_empty());
    let ip = address.ok_or(PodProblem::NoAddress)?;
    let port = port(pod)?;
    let authority = if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };

    let namespace = pod.namespace().unwrap_or_default();
    let url = match scheme(pod)? {
        Scheme::Http => BaseUrl::http(authority),
        Scheme::Https => BaseUrl::https_as(authority, certificate_name(&namespace)?),
    };

    let audience = ServerAudience::new(&namespace, &pod.uid().unwrap_or_default()).map_err(PodProblem::Audience)?;
    Ok(ScrapeTarget {
        url,
        labels: pod.labels().clone(),
        node: pod.spec.node_name.clone().unwrap_or_default(),
        audience: Some(audience),
    })
}

enum Scheme {
    Http,
    Https,
}

fn scheme(pod: &ObservedPod) -> Result<Scheme, PodProblem> {
    match pod.annotations().get(SCHEME_ANNOTATION).map(String::as_str) {
        None | Some("http") => Ok(Scheme::Http),
        Some("https") => Ok(Scheme::Https),
        Some(other) => Err(PodProblem::SchemeAnnotation(other.to_owned())),
    }
}

/// The name that the certificates of the servers in a namespace must have. It comes from what the API server says about the
/// pod, and from nothing that the pod says about itself, so that a certificate of one namespace is worth nothing in another.
fn certificate_name(namespace: &str) -> Result<DnsName<'static>, PodProblem> {
    let name = format!("hush-server.{namespace}.svc");
    DnsName::try_from(name).map_err(|error| PodProblem::Namespace { namespace: namespace.to_owned(), error })
}

fn port(pod: &ObservedPod) -> Result<u16, PodProblem> {
    let find_by_name = |name: &str| {
        let is_sidecar = |container: &&ObservedContainer| container.restart_policy.as_deref() == Some("Always");
        let sidecars = pod.spec.init_containers.iter().filter(is_sidecar);
        let mut ports = pod.spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
        ports.find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port)
    };
    let Some(annotation) = pod.annotations().get(PORT_ANNOTATION) else {
        return find_by_name(PORT_NAME).ok_or(PodProblem::NoPort);
    };

    let number = annotation.parse().ok().filter(|port| *port > 0);
    number.or_else(|| find_by_name(annotation)).ok_or_else(|| PodProblem::PortAnnotation(annotation.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(annotations: Value, ports: Value, status: Value) -> ObservedPod {
        serde_json::from_value(json!({
            "metadata": {"name": "w", "namespace": "a", "uid": "0b8a-1", "labels": {"app": "whisper"}, "annotations": annotations},
            "spec": {"nodeName": "n1", "containers": [{"name": "other"}, {"name": "server", "image": "x", "ports": ports}]},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn the_target_of_a_pod_comes_from_its_address_ports_and_annotations() {
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

        let ipv6 = json!({"phase": "Running", "podIP": "fd00::1"});
        assert_eq!(url(json!({}), &ops, &ipv6).unwrap(), "http://[fd00::1]:9001");
        assert_eq!(url(json!({SCHEME_ANNOTATION: "http"}), &ops, &ipv6).unwrap(), "http://[fd00::1]:9001");
        assert_eq!(url(json!({SCHEME_ANNOTATION: "https"}), &ops, &ipv6).unwrap(), "https://[fd00::1]:9001");

        for (annotations, ports, status, why) in [
            (json!({}), json!([]), running.clone(), "no port with the name `ops`"),
            (json!({PORT_ANNOTATION: "0"}), ops.clone(), running.clone(), "must be a port's number or name"),
            (json!({PORT_ANNOTATION: "metrics"}), ops.clone(), running.clone(), "and is `metrics`"),
            (json!({SCHEME_ANNOTATION: "HTTPS"}), ops.clone(), running, "must be `http` or `https`, and is \"HTTPS\""),
            (json!({}), ops.clone(), json!({"phase": "Pending"}), "no address yet"),
            (json!({}), ops, json!({"phase": "Failed", "podIP": "10.1.2.3"}), "has ended"),
        ] {
            let error = url(annotations, &ports, &status).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_sidecar_s_port_counts_and_that_of_a_container_that_ends_does_not() {
        let running = json!({"phase": "Running", "podIP": "10.1.2.3"});
        let with_init = |restart: Value| {
            let mut sidecar = pod(json!({}), json!([{"name": "app", "containerPort": 11434}]), running.clone());
            let ports = json!([{"name": "ops", "containerPort": 9001}]);
            let init = json!([{"name": "sidecar", "restartPolicy": restart, "ports": ports}]);
            sidecar.spec.init_containers = serde_json::from_value(init).unwrap();
            target(&sidecar).map(|target| target.url.to_string())
        };

        assert_eq!(with_init(json!("Always")).unwrap(), "http://10.1.2.3:9001");
        assert!(matches!(with_init(json!(null)), Err(PodProblem::NoPort)));
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
