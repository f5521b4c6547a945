//! Where policies and servers come from when there is no cluster: files, read again when they change.

mod ca;
mod policies;
mod targets;
mod watched;

pub use ca::CaFile;
pub use policies::PolicyFiles;
pub use targets::{NamedTarget, TargetsFile};
pub use watched::{Source, follow};
