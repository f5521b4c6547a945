//! The rights that are shipped, granted in a namespace of a test.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::namespace::Namespace;
use super::plane::ControlPlane;
use crate::fixtures::workspace;

/// Where the manifests put the lease of the cluster's controller, which no namespace of a test is.
const LEASES: &str = "kube-system";

/// One manifest each, about the namespace `hush`.
#[derive(Clone, Copy, Debug)]
pub enum Rights {
    Controller,
    /// The rights of a controller for one node.
    Node,
    /// The rights of a controller beside a server.
    Sidecar,
    Server,
    /// The rights of people: for the plugin of kubectl, and for policies as part of `view`, `edit` and `admin`.
    People,
}

impl Rights {
    const fn file(self) -> &'static str {
        match self {
            Self::Controller => "controller/rbac/controller.yaml",
            Self::Node => "controller/rbac/node.yaml",
            Self::Sidecar => "controller/rbac/sidecar.yaml",
            Self::Server => "server/rbac.yaml",
            Self::People => "controller/rbac/people.yaml",
        }
    }
}

impl ControlPlane {
    /// Makes the account and gives it exactly what the manifest says.
    pub fn grant(&self, namespace: &Namespace, rights: Rights) -> Result<()> {
        self.grant_with_leases_in(namespace, rights, LEASES)
    }

    /// The same, with the lease of the cluster's controller in another namespace.
    pub fn grant_with_leases_in(&self, namespace: &Namespace, rights: Rights, leases: &str) -> Result<()> {
        let path = workspace().join(rights.file());
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let mut items = Vec::new();
        for document in text.split("\n---\n") {
            let mut object: Value = serde_yaml::from_str(document)?;
            move_into_test(&mut object, &namespace.name, leases)?;
            items.push(object);
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.kubectl_text(&["apply", "--filename", "-"], &list.to_string()).map(drop)
    }
}

impl ControlPlane {
    /// What the controller manager of a cluster does all the time, and no part of this control plane does: puts the rules of
    /// the roles that a role asks for by label into it.
    pub fn aggregate(&self, role: &str) -> Result<()> {
        let read = |args: &[&str]| -> Result<Value> {
            let args = [&["get", "clusterroles", "--output", "json"], args].concat();
            Ok(serde_json::from_str(&self.kubectl_text(&args, "")?)?)
        };
        let mut whole = read(&[role])?;
        let mut rules = Vec::new();
        let selectors = whole["aggregationRule"]["clusterRoleSelectors"].as_array().cloned().unwrap_or_default();
        for selector in selectors {
            let labels = selector["matchLabels"].as_object().context("a selector without labels")?;
            let labels = labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
            let parts = read(&["--selector", &labels.collect::<Vec<_>>().join(",")])?;
            for part in parts["items"].as_array().into_iter().flatten() {
                rules.extend(part["rules"].as_array().cloned().unwrap_or_default());
            }
        }
        whole["rules"] = Value::Array(rules);
        self.kubectl_text(&["replace", "--filename", "-"], &whole.to_string()).map(drop)
    }
}

/// Moves an object into the namespace of the test, or gives it a name of the test's own if it belongs to none or to one
/// that all tests share.
fn move_into_test(object: &mut Value, namespace: &str, leases: &str) -> Result<()> {
    let own = |name: &mut Value| *name = json!(format!("{}-{namespace}", name.as_str().unwrap_or_default()));
    let is_shared = match object["metadata"].get("namespace").and_then(Value::as_str) {
        None => true,
        Some(LEASES) => {
            object["metadata"]["namespace"] = json!(leases);
            true
        }
        Some(_) => {
            object["metadata"]["namespace"] = json!(namespace);
            false
        }
    };
    if is_shared {
        own(&mut object["metadata"]["name"]);
        if object.get("roleRef").is_some() {
            own(&mut object["roleRef"]["name"]);
        }
    }
    for subject in object.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
        subject["namespace"] = json!(namespace);
    }
    Ok(())
}
