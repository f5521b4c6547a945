//! The Kubernetes side: servers, policies and namespaces are read from the API server; statuses and Events are written to
//! it.
//!
//! ```text
//! pods ------\
//! policies ---+--> mirror (the relevant part of each object) --> sources --> the loop --> writer (status), events
//! namespaces -/
//! ```

mod events;
mod mirror;
mod namespaces;
mod pods;
mod policies;
mod scope;
mod server_namespaces;
mod server_tokens;
mod sources;
mod write_failures;
mod writer;

pub use events::{EventPublisher, recorder};
pub use mirror::{Mirror, MirroredObjects};
pub use pods::{MirroredPod, PORT_ANNOTATION, PORT_NAME};
pub use policies::{EnforcedPolicy, PolicyObject};
pub use scope::{LeaseNames, Scope, ScopeGate};
pub use server_namespaces::{InvalidSelector, NamespaceSelector, SERVERS_LABEL_SELECTOR, ServerNamespaces};
pub use server_tokens::{AccountName, ServerTokens};
pub use sources::{ClusterInventory, ClusterSources, Policies, follow, read_once};
pub use writer::StatusWriter;
