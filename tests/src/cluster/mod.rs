//! A real control plane on the loopback: etcd and kube-apiserver with RBAC, and the objects that a test puts there. There
//! is no kubelet and no controller: a test gives its pods their addresses, and what it deletes is gone at once.
//!
//! The programs are built by `make control-plane`, or lie where `KUBEBUILDER_ASSETS` says. Without that variable and
//! without the programs the tests say so and are skipped.

mod credentials;
mod keeper;
mod kubectl;
mod link;
mod namespace;
mod plane;
mod programs;
mod rights;
mod setup;
mod store;

pub use credentials::ForgedToken;
pub use link::Link;
pub use namespace::{Namespace, PodAt, SERVERS_LABEL};
pub use plane::ControlPlane;
pub use rights::Rights;
