//! What each identity may do under the roles that are shipped, and nothing else, as the API server itself judges.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use hush_tests::cluster::{ControlPlane, Namespace, Rights};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

const VERBS: [&str; 9] =
    ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "impersonate"];
/// Group, resource, subresource.
const RESOURCES: [(&str, &str, &str); 29] = [
    ("", "pods", ""),
    ("", "pods", "status"),
    ("", "pods", "exec"),
    ("", "pods", "eviction"),
    ("", "pods", "log"),
    ("", "namespaces", ""),
    ("", "nodes", ""),
    ("", "secrets", ""),
    ("", "configmaps", ""),
    ("", "services", ""),
    ("", "events", ""),
    ("", "serviceaccounts", ""),
    ("", "serviceaccounts", "token"),
    ("", "users", ""),
    ("apps", "deployments", ""),
    ("apps", "daemonsets", ""),
    ("apiextensions.k8s.io", "customresourcedefinitions", ""),
    ("admissionregistration.k8s.io", "validatingwebhookconfigurations", ""),
    ("authentication.k8s.io", "tokenreviews", ""),
    ("authorization.k8s.io", "subjectaccessreviews", ""),
    ("coordination.k8s.io", "leases", ""),
    ("events.k8s.io", "events", ""),
    ("gpu.hush.dev", "gpumodelpolicies", ""),
    ("gpu.hush.dev", "gpumodelpolicies", "status"),
    ("gpu.hush.dev", "clustergpumodelpolicies", ""),
    ("gpu.hush.dev", "clustergpumodelpolicies", "status"),
    ("rbac.authorization.k8s.io", "clusterroles", ""),
    ("rbac.authorization.k8s.io", "clusterrolebindings", ""),
    ("rbac.authorization.k8s.io", "rolebindings", ""),
];
/// Names of leases and accounts. For every other resource the name makes no difference.
const NAMES: [&str; 2] = ["hush-controller", "another"];
/// Where Kubernetes has its own leases too.
const IN_SYSTEM: &str = " in kube-system";

struct AccessReviewer {
    client: Client,
    own: String,
    other: String,
}

impl AccessReviewer {
    /// Everything that an account may do: `verb resource[/subresource][:name] [elsewhere]`.
    async fn allowed(&self, account: &str) -> Result<BTreeSet<String>> {
        let mut allowed = BTreeSet::new();
        let system = "kube-system".to_owned();
        for (group, resource, subresource) in RESOURCES {
            let names: &[&str] = if matches!(resource, "leases" | "serviceaccounts") { &NAMES } else { &["any"] };
            for verb in VERBS {
                for (place, namespace) in [("", &self.own), (" elsewhere", &self.other), (IN_SYSTEM, &system)] {
                    if place == IN_SYSTEM && resource != "leases" {
                        continue;
                    }
                    for name in names {
                        let asked = ResourceAttributes {
                            group: Some(group.to_owned()),
                            resource: Some(resource.to_owned()),
                            subresource: Some(subresource.to_owned()).filter(|sub| !sub.is_empty()),
                            verb: Some(verb.to_owned()),
                            namespace: Some(namespace.clone()),
                            // Who creates has no name yet, but where it is something of an object that is there.
                            name: (verb != "create" || !subresource.is_empty()).then(|| (*name).to_owned()),
                            ..ResourceAttributes::default()
                        };
                        if self.judge(account, asked).await? {
                            let sub = if subresource.is_empty() { String::new() } else { format!("/{subresource}") };
                            let is_named = names.len() > 1 && (verb != "create" || !subresource.is_empty());
                            let name = if is_named { format!(":{name}") } else { String::new() };
                            let resource = if group == "events.k8s.io" { group } else { resource };
                            allowed.insert(format!("{verb} {resource}{sub}{name}{place}"));
                        }
                    }
                }
            }
        }
        Ok(allowed)
    }

    async fn judge(&self, account: &str, asked: ResourceAttributes) -> Result<bool> {
        let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{}", self.own)];
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(format!("system:serviceaccount:{}:{account}", self.own)),
                groups: Some([&groups[..], &["system:authenticated".to_owned()]].concat()),
                resource_attributes: Some(asked),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer =
            Api::<SubjectAccessReview>::all(self.client.clone()).create(&PostParams::default(), &review).await?;
        Ok(answer.status.context("no verdict")?.allowed)
    }
}

async fn allowed(plane: &ControlPlane, rights: Rights, account: &str) -> Result<BTreeSet<String>> {
    let own: Namespace = plane.namespace("rights", &[]).await?;
    let other = plane.namespace("elsewhere", &[]).await?;
    plane.grant(&own, rights)?;
    AccessReviewer { client: plane.admin()?, own: own.name, other: other.name }.allowed(account).await
}

/// Everywhere: here and elsewhere.
fn everywhere(rights: &[&str]) -> BTreeSet<String> {
    rights.iter().flat_map(|right| [(*right).to_owned(), format!("{right} elsewhere")]).collect()
}

fn and(mut set: BTreeSet<String>, more: &[&str]) -> BTreeSet<String> {
    set.extend(more.iter().map(|right| (*right).to_owned()));
    set
}

/// What every controller reads, and what it tells.
fn common() -> BTreeSet<String> {
    everywhere(&[
        "list pods",
        "watch pods",
        "list namespaces",
        "watch namespaces",
        "list gpumodelpolicies",
        "watch gpumodelpolicies",
        "list clustergpumodelpolicies",
        "watch clustergpumodelpolicies",
        "create events.k8s.io",
        "patch events.k8s.io",
    ])
}

#[tokio::test]
async fn each_may_do_what_it_does_and_nothing_else() -> Result<()> {
    let Some(plane) = ControlPlane::shared().await? else { return Ok(()) };
    let controller = allowed(plane, Rights::Controller, "hush-controller").await?;
    let status = everywhere(&["patch gpumodelpolicies/status", "patch clustergpumodelpolicies/status"]);
    let named = [
        "create serviceaccounts/token:hush-controller",
        "create leases in kube-system",
        "get leases:hush-controller in kube-system",
        "list leases:hush-controller in kube-system",
        "watch leases:hush-controller in kube-system",
        "update leases:hush-controller in kube-system",
    ];
    assert_eq!(controller, and(&common() | &status, &named));

    let reads = |name: &str| ["get", "list", "watch"].map(|verb| format!("{verb} leases:{name}"));
    let of_cluster = reads("hush-controller").map(|right| format!("{right}{IN_SYSTEM}"));
    let leases: Vec<String> = NAMES.iter().flat_map(|name| reads(name)).chain(of_cluster).collect();
    let leases: Vec<&str> = leases.iter().map(String::as_str).collect();
    let node = allowed(plane, Rights::Node, "hush-controller").await?;
    let writes = [
        "create serviceaccounts/token:hush-controller",
        "create leases",
        "update leases:hush-controller",
        "update leases:another",
    ];
    assert_eq!(node, and(and(common(), &leases), &writes));

    let sidecar = allowed(plane, Rights::Sidecar, "hush-server").await?;
    assert_eq!(sidecar, and(common(), &leases));
    let written = |rights: &BTreeSet<String>| -> BTreeSet<String> {
        let reads = |right: &&String| ["get ", "list ", "watch "].iter().any(|verb| right.starts_with(verb));
        rights.iter().filter(|right| !reads(right)).cloned().collect()
    };
    assert!(written(&sidecar).is_subset(&written(&node)) && written(&sidecar) != written(&node));
    assert!(written(&sidecar).is_subset(&written(&controller)) && written(&sidecar) != written(&controller));
    assert_eq!(
        written(&sidecar),
        everywhere(&["create events.k8s.io", "patch events.k8s.io"]),
        "Events and nothing else"
    );

    let server = allowed(plane, Rights::Server, "hush-server").await?;
    assert_eq!(server, everywhere(&["create tokenreviews"]));
    Ok(())
}

const POLICIES: &str = "gpumodelpolicies.gpu.hush.dev";
const FLOORS: &str = "clustergpumodelpolicies.gpu.hush.dev";
const READS: [&str; 3] = ["get", "list", "watch"];
const WRITES: [&str; 5] = ["create", "update", "patch", "delete", "deletecollection"];
/// Users, and the role that each has in a namespace.
const PEOPLE: [(&str, &str); 3] = [("vera", "view"), ("eddie", "edit"), ("ada", "admin")];

/// What `kubectl auth can-i` answers; `place` is the flag for the namespace.
fn may(plane: &ControlPlane, user: &str, verb: &str, resource: &str, place: &[&str]) -> Result<bool> {
    let args = ["auth", "can-i", verb, resource, "--as", user, "--quiet"];
    Ok(plane.kubectl(&[&args[..], place].concat(), "")?.status.success())
}

/// As kubectl answers a person who asks it: who has `view`, `edit` or `admin` in a namespace has it for policies.
#[tokio::test]
async fn the_roles_view_edit_and_admin_of_a_namespace_cover_its_policies() -> Result<()> {
    // The roles of the whole cluster are changed.
    let Some(plane) = crate::fixture::own_plane().await? else { return Ok(()) };
    let (own, other) = (plane.namespace("people", &[]).await?, plane.namespace("elsewhere", &[]).await?);
    for (user, role) in PEOPLE {
        let (binding, role, user) =
            (format!("{user}-{role}"), format!("--clusterrole={role}"), format!("--user={user}"));
        plane.kubectl_text(&["create", "rolebinding", &binding, &role, &user, "--namespace", &own.name], "")?;
    }

    let aggregate = || ["view", "edit", "admin"].iter().try_for_each(|role| plane.aggregate(role));
    aggregate()?;
    for (user, _) in PEOPLE {
        let here = ["--namespace", own.name.as_str()];
        assert!(may(&plane, user, "get", "pods", &here)?, "{user} has the role");
        assert!(!may(&plane, user, "get", POLICIES, &here)?, "not by the API server's own rules");
    }

    plane.grant(&own, Rights::People)?;
    aggregate()?;
    roles_cover_policies_of_the_namespace(&plane, &own, &other)?;
    people_use_their_roles(&plane, &own)?;
    floors_can_be_read_and_not_changed(&plane)
}

fn roles_cover_policies_of_the_namespace(plane: &ControlPlane, own: &Namespace, other: &Namespace) -> Result<()> {
    let (here, elsewhere) = (["--namespace", own.name.as_str()], ["--namespace", other.name.as_str()]);
    // What belongs to no namespace must be asked for without one.
    let nowhere = ["--all-namespaces"];

    for (user, role) in PEOPLE {
        for verb in READS.iter().chain(&WRITES) {
            let expected = role != "view" || READS.contains(verb);
            assert_eq!(may(plane, user, verb, POLICIES, &here)?, expected, "{user}: {verb}");
            assert!(!may(plane, user, verb, POLICIES, &elsewhere)?, "{user}: {verb} elsewhere");
            assert!(!may(plane, user, verb, FLOORS, &nowhere)?, "{user}: {verb} the floor");
        }

        for verb in ["update", "patch"] {
            let args = ["auth", "can-i", verb, POLICIES, "--subresource=status", "--as", user];
            let output = plane.kubectl(&[&args[..], &["--namespace", &own.name, "--quiet"]].concat(), "")?;
            assert!(!output.status.success(), "{user}: {verb} the status, which is the controller's");
        }
    }

    assert!(!may(plane, "nora", "get", POLICIES, &here)?);
    Ok(())
}

/// With `edit` a policy can be created and a floor cannot.
fn people_use_their_roles(plane: &ControlPlane, own: &Namespace) -> Result<()> {
    let object = |kind: &str| {
        serde_json::json!({
            "apiVersion": hush_crds::API_VERSION, "kind": kind, "metadata": {"name": "mine"},
            "spec": {"selector": {"matchLabels": {"app": "whisper"}}},
        })
        .to_string()
    };
    let create = |user: &str, kind: &str| {
        let args = ["create", "--filename", "-", "--as", user, "--namespace", &own.name];
        plane.kubectl(&args, &object(kind))
    };

    assert!(!create("vera", "GpuModelPolicy")?.status.success());
    let made = create("eddie", "GpuModelPolicy")?;
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    for (user, _) in PEOPLE {
        let refused = create(user, "ClusterGpuModelPolicy")?;
        assert!(String::from_utf8_lossy(&refused.stderr).contains("forbidden"), "{user}");
    }
    Ok(())
}

/// With a role for the whole cluster floors can be read; only administrators of the cluster change them.
fn floors_can_be_read_and_not_changed(plane: &ControlPlane) -> Result<()> {
    for (user, role) in PEOPLE {
        let (binding, role, name) = (format!("{user}-all"), format!("--clusterrole={role}"), format!("--user={user}"));
        plane.kubectl_text(&["create", "clusterrolebinding", &binding, &role, &name], "")?;

        for verb in READS.iter().chain(&WRITES) {
            let floor = may(plane, user, verb, FLOORS, &["--all-namespaces"])?;
            assert_eq!(floor, READS.contains(verb), "{user}: {verb} the floor");
        }
    }
    Ok(())
}
