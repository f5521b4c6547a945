//! Kubernetes: servers, policies and namespaces come from it, status and Events go to it.
//!
//! ```text
//! pods ------\
//! policies ---+--> mirror (what matters of each object) --> sources --> the loop --> writer (status), events
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

pub use events::{Reporting, recorder};
pub use mirror::{Copied, Mirror};
pub use pods::{PORT_ANNOTATION, PORT_NAME, ServerPod};
pub use policies::{Enforced, PolicyObject};
pub use scope::{LeaseNames, Scope, ScopeGate};
pub use server_namespaces::{InvalidSelector, NamespaceSelector, SERVERS_LABEL_SELECTOR, ServerNamespaces};
pub use server_tokens::{AccountName, ServerTokens};
pub use sources::{Look, Policies, Sources, follow, look};
pub use writer::Writer;
