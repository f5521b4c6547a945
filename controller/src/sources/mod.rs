//! Policies and servers from files, for a controller without a cluster. The files are read again when they change.

mod ca_file;
mod file_watch;
mod policies;
mod targets;

pub use ca_file::CaFile;
pub use file_watch::{FileSource, follow};
pub use policies::PolicyFiles;
pub use targets::{NamedTarget, TargetsFile};
