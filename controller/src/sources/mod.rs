//! Where policies and servers come from when there is no cluster: files, read again when they change.

mod policies;
mod targets;
mod watched;

pub use policies::PolicyFiles;
pub use targets::{NamedTarget, TargetsFile};
pub use watched::{Source, follow};
